//! `understudy dev`: nodes on this machine, to try things.
//!
//! Owns: their folder, their ports, and their processes from the first to the last, as a service
//! manager would. Never reaches into a node: it writes configurations, starts the same binary that a
//! server runs, and speaks to it over HTTP.
//!
//! ```text
//!   dev ── home (folder, certificates, configurations)
//!    ├─── keep (one task a node) ── `understudy node run --config …` ── restarted when it ends
//!    └─── asks: healthz of all, cluster init at one, readyz of all
//! ```

mod home;
mod keep;

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitStatus;
use std::time::Duration;

use reqwest::Method;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use understudy_gateway::api;

use self::home::Home;
use self::keep::{Program, Stop, Told};
use crate::cli::args::{Dev, Global};
use crate::cli::client::{Ask, Client};
use crate::cli::{Exit, Failure};

/// Starts the nodes, forms their cluster, and keeps them until SIGINT or SIGTERM. Leaves no process.
pub async fn run(wanted: &Dev, json: bool) -> Result<(), Failure> {
    if wanted.nodes == 2 {
        return Err(Failure::new(
            Exit::Usage,
            "two nodes outlive the loss of none: each change needs both",
        )
        .hint("understudy dev --nodes 3"));
    }
    let mut signals = Signals::new()?;
    let home = Home::make(wanted)?;
    let exe = std::env::current_exe()
        .map_err(|error| failed(format!("where this program is: {error}")))?;
    let (told, mut heard) = mpsc::channel(TOLD_MAX);
    let (stopping, stop) = watch::channel(Stop::No);
    let mut keepers = JoinSet::new();
    for node in home.nodes() {
        let program = Program {
            name: node.name.clone(),
            exe: exe.clone(),
            args: vec![
                "node".into(),
                "run".into(),
                "--config".into(),
                node.config.clone().into(),
            ],
            log: node.log.clone(),
        };
        keepers.spawn(keep::keep(program, stop.clone(), told.clone()));
    }
    drop(told);
    let mut nodes = Nodes::of(&home);
    let stayed = stay(&home, json, &mut nodes, &mut heard, &mut signals).await;
    // The receivers live as long as the keepers, which are awaited below.
    let _ = stopping.send(Stop::Gently);
    loop {
        tokio::select! {
            kept = keepers.join_next() => if kept.is_none() { break },
            () = signals.next() => {
                let _ = stopping.send(Stop::Now);
            }
            // Nobody is to wait for room to say that it stops.
            Some(_) = heard.recv() => {}
        }
    }
    stayed
}

async fn stay(
    home: &Home,
    json: bool,
    nodes: &mut Nodes,
    heard: &mut mpsc::Receiver<Told>,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let client = Client::new(&Global {
        server: home
            .nodes()
            .iter()
            .map(|node| node.server.clone())
            .collect(),
        token: Some(home.token().to_owned()),
        token_file: None,
        json,
    })?;
    let formed = form(home, &client);
    let mut formed = std::pin::pin!(formed);
    loop {
        tokio::select! {
            done = &mut formed => {
                done?;
                break;
            }
            () = signals.next() => return Ok(()),
            Some(told) = heard.recv() => {
                nodes.note(&told);
                if let Some(name) = nodes.fails_to_start() {
                    return Err(never_started(home, &name));
                }
                say(&told);
            }
        }
    }
    print(&nodes.greeting(home, json));
    loop {
        tokio::select! {
            () = signals.next() => return Ok(()),
            Some(told) = heard.recv() => {
                nodes.note(&told);
                say(&told);
            }
        }
    }
}

/// Waits for every node, has one of them form the cluster, and waits until each is ready.
async fn form(home: &Home, client: &Client) -> Result<(), Failure> {
    for node in home.nodes() {
        until_up(&node.server, "/healthz").await?;
    }
    let init = api::Init {
        single: home.nodes().len() == 1,
    };
    let ask = Ask::change(Method::POST, "/v1/cluster/init").json(&init);
    let until = Instant::now() + START_PATIENCE;
    loop {
        let Err(failure) = client.ask(&ask).await else {
            break;
        };
        let (shown, _) = client
            .read::<api::Cluster>(&Ask::get("/v1/cluster"))
            .await?;
        if shown.formed {
            break;
        }
        // The nodes may not have found each other yet.
        if Instant::now() >= until {
            return Err(failure);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    for node in home.nodes() {
        until_up(&node.server, "/readyz").await?;
    }
    Ok(())
}

async fn until_up(server: &str, path: &str) -> Result<(), Failure> {
    let one = Client::new(&Global {
        server: vec![server.to_owned()],
        token: None,
        token_file: None,
        json: false,
    })?;
    let until = Instant::now() + START_PATIENCE;
    loop {
        match one.ask(&Ask::get(path)).await {
            Ok(_) => return Ok(()),
            Err(failure) if Instant::now() >= until => return Err(failure),
            Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

/// What is known of the processes.
struct Nodes(Vec<Process>);

struct Process {
    name: String,
    pid: Option<u32>,
    ended: u32,
}

impl Nodes {
    fn of(home: &Home) -> Nodes {
        let processes = home.nodes().iter().map(|node| Process {
            name: node.name.clone(),
            pid: None,
            ended: 0,
        });
        Nodes(processes.collect())
    }

    fn note(&mut self, told: &Told) {
        let (Told::Started { name, .. } | Told::Ended { name, .. } | Told::NotStarted { name, .. }) =
            told;
        let Some(process) = self.0.iter_mut().find(|process| process.name == *name) else {
            return;
        };
        match told {
            Told::Started { pid, .. } => process.pid = Some(*pid),
            Told::Ended { .. } | Told::NotStarted { .. } => {
                process.pid = None;
                process.ended += 1;
            }
        }
    }

    fn fails_to_start(&self) -> Option<String> {
        let failing = self.0.iter().find(|process| process.ended >= STARTS_MAX);
        failing.map(|process| process.name.clone())
    }

    fn greeting(&self, home: &Home, json: bool) -> String {
        let servers: Vec<&str> = home.nodes().iter().map(|node| &*node.server).collect();
        let pairs = || home.nodes().iter().zip(&self.0);
        if json {
            let nodes: Vec<_> = pairs()
                .map(|(node, process)| {
                    serde_json::json!({
                        "name": node.name,
                        "server": node.server,
                        "pid": process.pid,
                        "config": node.config,
                        "log": node.log,
                    })
                })
                .collect();
            let pids: Vec<_> = self.0.iter().map(|process| process.pid).collect();
            let line = serde_json::json!({
                "servers": servers,
                "token": home.token(),
                "pids": pids,
                "dir": home.dir(),
                "nodes": nodes,
            });
            return format!("{line}\n");
        }
        let mut text = match self.0.len() {
            1 => "A cluster of one node is up.\n".to_owned(),
            count => format!("A cluster of {count} nodes is up, each a process of its own.\n"),
        };
        for (node, process) in pairs() {
            let pid = process
                .pid
                .map_or(String::new(), |pid| format!("pid {pid}"));
            let _ = writeln!(text, "  {}  {}  {pid}", node.name, node.server);
        }
        let _ = write!(
            text,
            "\nIn another terminal:\n  export UNDERSTUDY_SERVER={}\n  export UNDERSTUDY_TOKEN={}\n  \
             understudy call t1/counter/a 'add 1'\n  understudy tree\n",
            servers.join(","),
            home.token()
        );
        if let (true, Some(pid)) = (self.0.len() > 1, self.0.first().and_then(|node| node.pid)) {
            let _ = writeln!(text, "  kill -9 {pid}     # and call again");
        }
        let _ = writeln!(
            text,
            "\nWhat they log is in {}. Ctrl-C ends them all.",
            home.dir().display()
        );
        if let Err(full) = understudy_store::room_under(home.dir()) {
            let _ = writeln!(
                text,
                "\n{full}, or name another place with --dir. Calls that change something will not be answered."
            );
        }
        text
    }
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Signals, Failure> {
        let listen = |kind| signal(kind).map_err(|error| failed(format!("signals: {error}")));
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn never_started(home: &Home, name: &str) -> Failure {
    let node = home.nodes().iter().find(|node| node.name == name);
    let tail = node.map_or_else(String::new, |node| home::tail_of(&node.log, LOG_LINES));
    let why = if tail.is_empty() {
        "and said nothing".to_owned()
    } else {
        format!("and said at last:\n{tail}")
    };
    failed(format!(
        "{name} ended {STARTS_MAX} times before it was ready, {why}"
    ))
    .hint("understudy dev --dir DIR keeps its folder, so that you can look at it")
}

fn say(told: &Told) {
    let line = match told {
        // The greeting says so for the first start.
        Told::Started { again: false, .. } => return,
        Told::Started { name, pid, .. } => format!("{name} is started again, pid {pid}\n"),
        Told::Ended { name, status, wait } => {
            format!("{name} {}; it is started again in {wait:?}\n", how(*status))
        }
        Told::NotStarted { name, error, wait } => {
            format!("{name} could not be started ({error}); tried again in {wait:?}\n")
        }
    };
    // Nobody may be reading.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn print(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

fn how(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

fn failed(what: String) -> Failure {
    Failure::new(Exit::Failed, what)
}

/// How long all nodes may take to answer, and then to be ready: a debug build on a busy machine.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A node that ended so often before the cluster stood has a fault that another start does not mend.
const STARTS_MAX: u32 = 3;

/// Of a node that never started: enough for an error with its causes.
const LOG_LINES: usize = 12;

/// Reports that wait to be printed: some for each node.
const TOLD_MAX: usize = 64;

#[cfg(test)]
mod tests;
