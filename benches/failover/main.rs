//! How long a failure is seen by callers, with the `lan` preset (TTL 500 ms).
//!
//! Owns: the rounds: SIGKILL of a node's process (its warden proves the death), and a lost machine
//! (node and warden gone at once, so that promises must end), each of the owner of most and of the
//! leader. Counted from the signal to the first correct answer of each of the victim's counters,
//! asked at the other nodes. No peer: nobody else keeps these promises on this machine.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use understudy_benches::report::{Row, Target, quantile, report};
use understudy_tests::callers::first_answers;
use understudy_tests::cluster::{Cluster, Options};

#[tokio::main]
async fn main() -> Result<()> {
    let exe: PathBuf = match std::env::args_os().nth(1) {
        Some(path) => path.into(),
        None => std::env::current_exe()?.with_file_name("understudy"),
    };
    let options = Options {
        preset: Some("lan"),
        ..Options::default()
    };
    let mut cluster = Cluster::start(&exe, options).await?;
    let all: Vec<usize> = (0..COUNTERS).collect();
    let urls = cluster.urls();
    first_answers(cluster.client(), &urls, &all, 0, LIMIT).await;
    let mut rows = Vec::new();
    let mut probe = 0;
    for (name, lost, leader, p50, p99) in CASES {
        let (mut medians, mut worst, mut firsts) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            cluster.wait_whole(LIMIT).await?;
            tokio::time::sleep(CLEAN).await;
            probe += 1;
            let took = strike(&mut cluster, lost, leader, probe).await?;
            eprintln!(
                "{name}, round {}: first {:.0} ms, p50 {:.0} ms, p99 {:.0} ms",
                round + 1,
                quantile(&took, 0.0).unwrap_or(f64::NAN),
                quantile(&took, 0.5).unwrap_or(f64::NAN),
                quantile(&took, 0.99).unwrap_or(f64::NAN),
            );
            firsts.extend(quantile(&took, 0.0));
            medians.extend(quantile(&took, 0.5));
            worst.extend(quantile(&took, 0.99));
        }
        rows.push(Row::new(
            format!("{name}, first"),
            "ms",
            firsts,
            vec![],
            None,
        ));
        rows.push(Row::new(
            format!("{name}, p50"),
            "ms",
            medians,
            vec![],
            p50.map(Target::AtMost),
        ));
        rows.push(Row::new(
            format!("{name}, p99"),
            "ms",
            worst,
            vec![],
            Some(Target::AtMost(p99)),
        ));
    }
    report("failover", &rows)?;
    let left = cluster.shut_down(LIMIT).await?;
    if !left.is_empty() {
        bail!("processes are left: {left:?}");
    }
    Ok(())
}

/// Name, whether the machine is lost, whether the victim leads, targets for p50 and p99 in ms.
const CASES: [(&str, bool, bool, Option<f64>, f64); 4] = [
    ("kill -9 of an owner", false, false, Some(400.0), 1_000.0),
    ("kill -9 of the leader", false, true, Some(400.0), 1_000.0),
    ("a lost machine that owned", true, false, None, 1_000.0),
    ("a lost machine that led", true, true, None, 1_500.0),
];

async fn strike(cluster: &mut Cluster, lost: bool, leader: bool, probe: u64) -> Result<Vec<f64>> {
    let leads = cluster.leader().await?;
    let victim = if leader {
        leads
    } else {
        (0..cluster.size())
            .find(|nth| *nth != leads)
            .context("one node alone")?
    };
    let theirs = cluster.counters_of(victim, COUNTERS).await?;
    if theirs.is_empty() {
        bail!("node {} owns no counter", cluster.name(victim));
    }
    let others: Vec<String> = (0..cluster.size())
        .filter(|nth| *nth != victim)
        .map(|nth| cluster.url(nth))
        .collect();
    if lost {
        cluster.lose(victim)?;
    } else {
        cluster.kill(victim)?;
    }
    let client = cluster.client().clone();
    let (answers, _) = first_answers(&client, &others, &theirs, probe, LIMIT).await;
    cluster.spawn(victim)?;
    let took = answers.iter().map(|(nth, took)| {
        let took = took.with_context(|| format!("counter {nth} did not answer"))?;
        Ok(took.as_secs_f64() * 1e3)
    });
    took.collect()
}

const COUNTERS: usize = 300;

const ROUNDS: usize = 5;

const LIMIT: Duration = Duration::from_secs(60);

/// Clean running between two faults, so that strikes are cleared (V2).
const CLEAN: Duration = Duration::from_secs(10);
