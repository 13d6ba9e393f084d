//! The demo: three real nodes, a thousand counters, some sandboxes and a browser session in a shop, callers
//! who know all three addresses, and kills.
//!
//! Owns: the story, its table and its verdict. Everything that happens is real: processes, QUIC, disks
//! and SIGKILL. It fails when a single acknowledged step is missing or there twice, or a process is
//! left behind.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use understudy_tests::callers::{Callers, Ledger, first_answers};
use understudy_tests::cluster::{Cluster, Options};
use understudy_tests::guests::{self, Users};
use understudy_tests::shop::Shop;

mod visit;

use visit::Visit;

const HELP: &str = "\
The demo: three nodes, a thousand counters, four sandboxes, a browser session, callers, and kills.

Usage: understudy-demo [--exe PATH] [--json FILE] [--once] [--counters N] [--callers N]

  --exe PATH     the understudy binary; beside this program when not given
  --json FILE    write what was measured
  --once         one round of faults (the default; --rounds N for more)
  --rounds N     so many rounds
  --counters N   counters (1000)
  --callers N    callers at once (16)

Example: cargo xtask demo --json demo.json
";

struct Asked {
    exe: PathBuf,
    json: Option<PathBuf>,
    rounds: u64,
    counters: usize,
    callers: usize,
}

fn main() -> ExitCode {
    let asked = match arguments() {
        Ok(Some(asked)) => asked,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("understudy-demo: {error:#}\nTry --help.");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Runtime::new();
    match runtime
        .context("no runtime")
        .and_then(|runtime| runtime.block_on(run(&asked)))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn arguments() -> Result<Option<Asked>> {
    use lexopt::prelude::*;
    let beside = std::env::current_exe()?.with_file_name("understudy");
    let mut asked = Asked {
        exe: beside,
        json: None,
        rounds: 1,
        counters: 1_000,
        callers: 16,
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("exe") => asked.exe = parser.value()?.into(),
            Long("json") => asked.json = Some(parser.value()?.into()),
            Long("once") => asked.rounds = 1,
            Long("rounds") => asked.rounds = parser.value()?.parse()?,
            Long("counters") => asked.counters = parser.value()?.parse()?,
            Long("callers") => asked.callers = parser.value()?.parse()?,
            Long("help") | Short('h') => return Ok(None),
            other => return Err(other.unexpected().into()),
        }
    }
    if asked.counters == 0 || asked.callers == 0 || asked.rounds == 0 {
        bail!("--counters, --callers and --rounds begin at 1");
    }
    Ok(Some(asked))
}

/// What befalls a node.
#[derive(Clone, Copy)]
enum Fault {
    KillOwner,
    KillLeader,
    PauseOwner,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Fault::KillOwner => "SIGKILL of the owner of most",
            Fault::KillLeader => "SIGKILL of the Raft leader",
            Fault::PauseOwner => "SIGSTOP of an owner for 5 s",
        }
    }
}

async fn run(asked: &Asked) -> Result<()> {
    let began = Instant::now();
    println!("Three nodes, a throw-away certificate authority, loopback QUIC. Starting...");
    let shop = Shop::open().await?;
    let options = Options {
        config: visit::config(&shop),
        ..Options::default()
    };
    let mut cluster = Cluster::start(&asked.exe, options).await?;
    for nth in 0..cluster.size() {
        let pid = cluster.pid(nth).unwrap_or_default();
        println!(
            "  node {}  pid {pid:<8} {}",
            cluster.name(nth),
            cluster.url(nth)
        );
    }
    let all: Vec<usize> = (0..asked.counters).collect();
    let (_, mut ledger) = first_answers(
        cluster.client(),
        &cluster.urls(),
        &all,
        0,
        Duration::from_secs(60),
    )
    .await;
    let users = Users::start(
        cluster.client().clone(),
        cluster.urls(),
        SANDBOXES,
        USER_PAUSE,
    )
    .await?;
    let mut visit = Visit::begin(&cluster, shop).await?;
    println!(
        "{} counters and {SANDBOXES} sandboxes answer; {} callers begin.\n",
        asked.counters,
        asked.callers + SANDBOXES
    );
    let callers = Callers::start(
        cluster.client().clone(),
        cluster.urls(),
        asked.counters,
        asked.callers,
        CALLER_PAUSE,
    );
    clean_run(&mut cluster, &callers, &users).await?;
    let mut rows = Vec::new();
    let mut probe = 1;
    let browser = visit.strike(&mut cluster).await?;
    println!("{}", visit::line(&browser));
    cluster.wait_whole(WHOLE_LIMIT).await?;
    clean_run(&mut cluster, &callers, &users).await?;
    for _ in 0..asked.rounds {
        for fault in [Fault::KillOwner, Fault::KillLeader, Fault::PauseOwner] {
            let (row, told) = strike(&mut cluster, asked, fault, probe).await?;
            probe += 1;
            ledger.merge(told);
            println!("{}", line(&row));
            rows.push(row);
            cluster.wait_whole(WHOLE_LIMIT).await?;
            clean_run(&mut cluster, &callers, &users).await?;
        }
    }
    ledger.merge(callers.finish().await);
    println!("Giving each sandbox's calls to one that nobody disturbs...");
    let guests = users.finish().await?;
    let browser = visit.finish(&cluster, browser).await?;
    finish(cluster, asked, began, ledger, guests, browser, rows).await
}

/// Ten seconds in which nothing is broken: a strike is cleared by ten seconds of clean running (V2).
async fn clean_run(cluster: &mut Cluster, callers: &Callers, users: &Users) -> Result<()> {
    let (before, calls_before) = (callers.acknowledged(), users.acknowledged());
    let began = Instant::now();
    while began.elapsed() < CLEAN {
        let ended = cluster.respawn_ended()?;
        if let Some(nth) = ended.first() {
            bail!(
                "node {} ended by itself:\n{}",
                cluster.name(*nth),
                cluster.log(*nth)
            );
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let steps = callers.acknowledged() - before;
    let rate = steps as f64 / began.elapsed().as_secs_f64();
    let calls = users.acknowledged() - calls_before;
    println!(
        "  whole; {steps} steps in {:.0} s ({rate:.0} a second), {calls} calls of sandboxes",
        CLEAN.as_secs_f64()
    );
    if steps == 0 {
        bail!("nothing was answered in {CLEAN:?}");
    }
    if calls == 0 {
        bail!("no sandbox answered in {CLEAN:?}");
    }
    Ok(())
}

async fn strike(
    cluster: &mut Cluster,
    asked: &Asked,
    fault: Fault,
    probe: u64,
) -> Result<(Value, Ledger)> {
    let victim = match fault {
        Fault::KillOwner | Fault::PauseOwner => cluster.owner_of_most().await?,
        Fault::KillLeader => cluster.leader().await?,
    };
    let mut theirs = cluster.counters_of(victim, asked.counters).await?;
    let owned = theirs.len();
    theirs.truncate(PROBES);
    let name = cluster.name(victim).to_owned();
    match fault {
        Fault::KillOwner | Fault::KillLeader => cluster.kill(victim)?,
        Fault::PauseOwner => cluster.pause(victim)?,
    };
    // Nobody waits at a node that does not answer: callers know the others.
    let others: Vec<String> = (0..cluster.size())
        .filter(|nth| *nth != victim)
        .map(|nth| cluster.url(nth))
        .collect();
    let client = cluster.client().clone();
    let answers = first_answers(&client, &others, &theirs, probe, ANSWER_LIMIT);
    let (answers, told) = match fault {
        Fault::KillOwner | Fault::KillLeader => {
            let answers = answers.await;
            cluster.spawn(victim)?;
            answers
        }
        Fault::PauseOwner => {
            let (answers, ()) = tokio::join!(answers, tokio::time::sleep(PAUSE));
            cluster.resume(victim)?;
            let code = cluster.wait_end(victim, PAUSE).await;
            code.context("a node whose lease has ended must end too")?;
            cluster.spawn(victim)?;
            answers
        }
    };
    let mut took: Vec<Duration> = answers.iter().filter_map(|(_, took)| *took).collect();
    took.sort();
    if took.is_empty() {
        bail!(
            "{}: node {name} owned no counter, or none answered",
            fault.name()
        );
    }
    let at = |share: f64| millis(took[((took.len() - 1) as f64 * share).round() as usize]);
    let row = json!({
        "fault": fault.name(),
        "node": name,
        "counters_owned": owned,
        "probed": answers.len(),
        "answered": took.len(),
        "first_ms": at(0.0),
        "p50_ms": at(0.5),
        "p99_ms": at(0.99),
        "last_ms": at(1.0),
    });
    Ok((row, told))
}

fn line(row: &Value) -> String {
    let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
    let number = |name: &str| row[name].as_f64().unwrap_or_default();
    format!(
        "{:<30} node {}  {:>4} counters   first answer {:>6.0} ms   p50 {:>6.0}   p99 {:>6.0}   last {:>6.0}",
        text("fault"),
        text("node"),
        number("counters_owned"),
        number("first_ms"),
        number("p50_ms"),
        number("p99_ms"),
        number("last_ms"),
    )
}

async fn finish(
    mut cluster: Cluster,
    asked: &Asked,
    began: Instant,
    ledger: Ledger,
    guests: guests::Verdict,
    browser: Value,
    rows: Vec<Value>,
) -> Result<()> {
    let urls = cluster.urls();
    let mut verdict = ledger.judge(cluster.client(), &urls).await?;
    let ids = cluster.node_ids(&urls[0]).await?;
    let mut left = cluster.shut_down(STOP_LIMIT).await?;
    left.extend(visit::browsers_left(&ids));
    for (pid, command) in &left {
        verdict
            .wrong
            .push(format!("process {pid} is left: {command}"));
    }
    println!("\nFrom the fault to the first correct answer:");
    println!("  {}", visit::line(&browser));
    for row in &rows {
        println!("  {}", line(row));
    }
    println!(
        "\n{} steps were acknowledged, {} are there; {} tries were repeated; {} processes are left.",
        verdict.acknowledged,
        verdict.found,
        ledger.retries,
        left.len()
    );
    println!(
        "{} calls of {} sandboxes were acknowledged, the slowest after {:.0} ms; {}.",
        guests.acknowledged,
        guests.sandboxes,
        millis(guests.slowest),
        match guests.wrong.is_empty() {
            true => "answers and memories are those of undisturbed ones",
            false => "they are NOT as undisturbed ones are",
        }
    );
    println!(
        "The session came back with its log-in, its basket, its half-filled form and where it was scrolled \
         to; pictures: {}, {}.",
        browser["before"].as_str().unwrap_or_default(),
        browser["after"].as_str().unwrap_or_default()
    );
    verdict.wrong.extend(guests.wrong.iter().cloned());
    let seconds = began.elapsed().as_secs_f64();
    if let Some(path) = &asked.json {
        let json = json!({
            "counters": asked.counters,
            "callers": asked.callers,
            "acknowledged": verdict.acknowledged,
            "found": verdict.found,
            "exactly_once": verdict.wrong.is_empty() && verdict.acknowledged == verdict.found,
            "retries": ledger.retries,
            "sandboxes": guests.sandboxes,
            "sandbox_calls": guests.acknowledged,
            "sandbox_retries": guests.retries,
            "sandbox_slowest_ms": millis(guests.slowest),
            "sandboxes_undisturbed": guests.wrong.is_empty(),
            "browser": browser,
            "faults": rows,
            "orphans": left.len(),
            "wrong": verdict.wrong,
            "seconds": seconds,
        });
        let text = serde_json::to_string_pretty(&json)?;
        std::fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
        println!("Written to {}.", path.display());
    }
    if !verdict.wrong.is_empty() {
        bail!("{}", verdict.wrong.join("\n"));
    }
    if verdict.acknowledged != verdict.found {
        bail!(
            "{} acknowledged, {} found",
            verdict.acknowledged,
            verdict.found
        );
    }
    println!("Every acknowledged step is there exactly once. ({seconds:.0} s)");
    Ok(())
}

fn millis(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e4).round() / 10.0
}

/// Between two steps of one caller: a load that two cores carry beside three nodes.
const CALLER_PAUSE: Duration = Duration::from_millis(10);

/// Sandboxes, each with a caller of its own.
const SANDBOXES: usize = 4;

/// Between two calls of one sandbox: a minute of them.
const USER_PAUSE: Duration = Duration::from_millis(200);

/// Clean running before the next fault (V2).
const CLEAN: Duration = Duration::from_secs(10);

/// Counters of the victim that are asked at once after a fault.
const PROBES: usize = 200;

/// How long a counter may take to answer after a fault.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How long an owner is stopped.
const PAUSE: Duration = Duration::from_secs(5);

/// How long the cluster may take to be whole again.
const WHOLE_LIMIT: Duration = Duration::from_secs(60);

/// How long the nodes may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(30);
