//! A record of 4 KiB, flushed on its replicas, many at a time.
//!
//! Owns: the rounds and the rows. In each round take turns: the disk alone, one store, three stores on
//! the same disk, and three nodes whose callers run in the nodes (by their handle) and then outside
//! (by HTTP). There are 64 callers, each with its own child, each waiting for its answer before it calls
//! again.
//!
//! All three replicas stand on one disk here, so a record costs it three writes and three flushes;
//! machines of their own would share nothing.

mod node;
mod stores;

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::json;
use tokio::task::JoinSet;
use understudy_benches::cpu;
use understudy_benches::report::{Row, Target, quantile, report};
use understudy_tests::cluster::{Cluster, Options, items};
use understudy_tests::http::{Called, Client};

use stores::Stores;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    let done = match args.get(1) {
        None => measure().map(|()| ExitCode::SUCCESS),
        Some(_) => node::act(args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::FAILURE
    })
}

fn measure() -> Result<()> {
    let base = PathBuf::from("target/bench");
    std::fs::create_dir_all(&base)?;
    let base = base.canonicalize()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let mut one = Stores::start(&base, 1)?;
    let mut three = Stores::start(&base, 3)?;
    let options = Options {
        base: Some(base.clone()),
        // A busy machine must not expel anybody: that is another bench's matter.
        preset: Some("wan"),
        ..Options::default()
    };
    let exe = std::env::current_exe()?;
    let mut cluster = runtime.block_on(Cluster::start(&exe, options))?;
    runtime.block_on(share(&mut cluster))?;
    runtime.block_on(by_handles(&cluster, MANY, WARM))?; // the children are made
    let mut rounds = Vec::new();
    for round in 1..=ROUNDS {
        let measured = Measured {
            single: stores::raw(&base, 1, TIME)?,
            grouped: stores::raw(&base, CALLERS, TIME)?,
            one: one.run(TIME)?,
            three: three.run(TIME)?,
            handles: metered(&cluster, || {
                runtime.block_on(by_handles(&cluster, CALLERS, TIME))
            })?,
            many: metered(&cluster, || {
                runtime.block_on(by_handles(&cluster, MANY, TIME))
            })?,
            http: metered(&cluster, || runtime.block_on(by_http(&cluster, TIME)))?,
        };
        eprintln!("round {round}: {measured}");
        rounds.push(measured);
    }
    report("checkpoint", &rows(&rounds))?;
    let left = runtime.block_on(cluster.shut_down(LIMIT))?;
    if !left.is_empty() {
        bail!("processes are left: {left:?}");
    }
    Ok(())
}

/// Each node owns a third of the shards: a new cluster's are all where it was formed.
async fn share(cluster: &mut Cluster) -> Result<()> {
    let (client, url) = (cluster.client().clone(), cluster.url(0));
    let units = client.get(&url, "/v1/units").await?;
    for (nth, unit) in items(&units).enumerate() {
        let to = cluster.name(nth % cluster.size());
        let id = unit["id"].as_str().context("a unit has an id")?;
        if unit["owner"] != json!(to) {
            let path = format!("/v1/units/{id}/move");
            client.post(&url, &path, &json!({ "to": to })).await?;
        }
    }
    cluster.wait_whole(LIMIT).await?;
    for (name, units) in cluster.owners(&url).await? {
        eprintln!("node {name} owns {} shards", units.len());
    }
    Ok(())
}

/// Runs a turn and adds what its records cost the nodes and their wardens in processor time.
fn metered(cluster: &Cluster, turn: impl FnOnce() -> Result<Round>) -> Result<Round> {
    let pids: Vec<u32> = cluster.alive().into_iter().map(|(pid, _)| pid).collect();
    let before = cpu::used(&pids)?;
    let mut round = turn()?;
    let used = cpu::used(&pids)?.saturating_sub(before);
    round.cpu_micros = Some(used.as_secs_f64() * 1e6 / round.records as f64);
    Ok(round)
}

/// Callers in the three nodes, each on a child that may be anywhere.
async fn by_handles(cluster: &Cluster, callers: usize, time: Duration) -> Result<Round> {
    let mut nodes = JoinSet::new();
    let began = Instant::now();
    for nth in 0..cluster.size() {
        let share = |nth| callers * nth / cluster.size();
        let (first, end) = (share(nth), share(nth + 1));
        let data = cluster.data_dir(nth);
        nodes.spawn(async move { node::callers(&data, time, first, end - first).await });
    }
    let mut took = Vec::new();
    while let Some(from_one) = nodes.join_next().await {
        let from_one = from_one?.with_context(|| logs(cluster))?;
        took.extend(from_one);
    }
    Ok(Round::new(took.len() as u64, began.elapsed(), took))
}

fn logs(cluster: &Cluster) -> String {
    let logs: Vec<String> = (0..cluster.size()).map(|nth| cluster.log(nth)).collect();
    logs.join("\n")
}

/// Callers outside, with a connection each, spread over the nodes.
async fn by_http(cluster: &Cluster, time: Duration) -> Result<Round> {
    let urls = cluster.urls();
    let mut callers = JoinSet::new();
    let began = Instant::now();
    for nth in 0..CALLERS {
        let client = cluster.client().clone();
        let url = urls[nth % urls.len()].clone();
        callers.spawn(call_until(client, url, nth as u64, began + time));
    }
    let mut took = Vec::new();
    while let Some(from_one) = callers.join_next().await {
        let from_one = from_one?.with_context(|| logs(cluster))?;
        took.extend(from_one);
    }
    Ok(Round::new(took.len() as u64, began.elapsed(), took))
}

async fn call_until(
    client: Client,
    url: String,
    nth: u64,
    until: Instant,
) -> Result<Vec<Duration>> {
    let mut took = Vec::new();
    let child = node::child_name(nth);
    while Instant::now() < until {
        let began = Instant::now();
        match client.call(&url, &child, None, "write", LIMIT).await {
            Called::Answered(_) => took.push(began.elapsed()),
            // Refused for now, and told so.
            Called::Again(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            Called::Refused(why) => return Err(anyhow!("{child}: {why}")),
        }
    }
    Ok(took)
}

/// What one of them did in one round.
struct Round {
    records: u64,
    per_second: f64,
    /// What a record cost, of all processes that had to do with it.
    cpu_micros: Option<f64>,
    /// Of each record, or of each flush where there is nothing but the disk.
    millis: Vec<f64>,
}

impl Round {
    fn new(records: u64, elapsed: Duration, took: Vec<Duration>) -> Round {
        Round {
            records,
            cpu_micros: None,
            per_second: records as f64 / elapsed.as_secs_f64(),
            millis: took.iter().map(|took| took.as_secs_f64() * 1e3).collect(),
        }
    }

    fn p50(&self) -> f64 {
        quantile(&self.millis, 0.5).unwrap_or(f64::NAN)
    }

    fn p99(&self) -> f64 {
        quantile(&self.millis, 0.99).unwrap_or(f64::NAN)
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (p50, p99) = (self.p50(), self.p99());
        write!(f, "{:.0}/s p50 {p50:.1} p99 {p99:.1} ms", self.per_second)?;
        match self.cpu_micros {
            Some(micros) => write!(f, " {micros:.0} us of processors each"),
            None => Ok(()),
        }
    }
}

/// One round of all.
struct Measured {
    single: Round,
    grouped: Round,
    one: Round,
    three: Round,
    handles: Round,
    many: Round,
    http: Round,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "fdatasync each {}; 64 a fdatasync {}; a store {}; three {}; handles {}; {MANY} callers {}; \
             HTTP {}",
            self.single, self.grouped, self.one, self.three, self.handles, self.many, self.http
        )
    }
}

fn rows(rounds: &[Measured]) -> Vec<Row> {
    type Of = fn(&Measured) -> &Round;
    let each = |of: Of, what: fn(&Round) -> f64| -> Vec<f64> {
        rounds.iter().map(|round| what(of(round))).collect()
    };
    let rate: fn(&Round) -> f64 = |round| round.per_second;
    let raw = || each(|round| &round.grouped, rate);
    let budget = || Some(Target::AtLeast(10_000.0));
    let ways: [(&str, Of); 5] = [
        ("one store", |round| &round.one),
        ("three stores", |round| &round.three),
        ("three nodes, by handle", |round| &round.handles),
        ("three nodes, by HTTP", |round| &round.http),
        ("three nodes, by handle, 256 callers", |round| &round.many),
    ];
    let mut rows = vec![Row::new(
        "the disk, 4 KiB and fdatasync each",
        "1/s",
        each(|round| &round.single, rate),
        raw(),
        None,
    )];
    for (name, of) in ways {
        rows.push(Row::new(
            format!("{name}, by 64 a fdatasync"),
            "1/s",
            each(of, rate),
            raw(),
            budget(),
        ));
        for (which, what) in [
            ("p50", Round::p50 as fn(&Round) -> f64),
            ("p99", Round::p99),
        ] {
            rows.push(Row::new(
                format!("{name}, {which}"),
                "ms",
                each(of, what),
                each(|round| &round.grouped, what),
                None,
            ));
        }
    }
    for (name, of) in [
        ("three nodes, by handle, processors", ways[2].1),
        ("three nodes, by HTTP, processors", ways[3].1),
    ] {
        let each = rounds.iter().filter_map(|round| of(round).cpu_micros);
        rows.push(Row::new(name, "us", each.collect(), vec![], None));
    }
    rows
}

/// Callers at once, each with its own child.
const CALLERS: usize = 64;

/// And so many more, to see whether it is their waiting or the work that limits.
const MANY: usize = 256;

/// What a call writes.
const RECORD_BYTES: usize = 4_096;

const ROUNDS: usize = 5;

/// Of each turn in a round.
const TIME: Duration = Duration::from_secs(2);

const WARM: Duration = Duration::from_secs(1);

const LIMIT: Duration = Duration::from_secs(30);
