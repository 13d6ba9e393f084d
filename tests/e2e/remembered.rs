//! Keys of calls, thousands of them at one child.
//!
//! Owns: that a call which was answered is not carried out again, by whoever runs its child now.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::task::JoinSet;
use understudy_protocol::id::ChildId;
use understudy_tests::cluster::{Cluster, Options};
use understudy_tests::http::{Called, Client};

use crate::exe;

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_keys_of_one_counter_outlive_its_owner_and_none_counts_twice() -> Result<()> {
    let mut cluster = Cluster::start(exe(), Options::default()).await?;
    let urls = cluster.urls();
    let began = Instant::now();
    let answers = add_all(cluster.client(), &urls).await?;
    let took = began.elapsed();
    println!("{CALLS} keyed calls of one child in {took:?}");

    let owner = owner(&cluster).await?;
    cluster.kill(owner)?;
    let others: Vec<String> = (0..cluster.size())
        .filter(|nth| *nth != owner)
        .map(|nth| cluster.url(nth))
        .collect();
    let began = Instant::now();
    let again = (0..CALLS).step_by(7);
    for number in again.chain(1..20) {
        let answer = ask(cluster.client(), &others, Some(number), "add 1").await?;
        let first = &answers[number as usize];
        ensure!(answer == *first, "key {number}: {first}, and now {answer}");
        if number == 0 {
            println!(
                "the first of them is answered again after {:?}",
                began.elapsed()
            );
        }
    }
    let sum = ask(cluster.client(), &others, None, "get").await?;
    ensure!(sum == CALLS.to_string(), "{CALLS} calls make {sum}");
    let other = ask(cluster.client(), &others, Some(1), "add 2").await;
    let why = other.expect_err("the key is another call's").to_string();
    ensure!(why.contains("conflict"), "{why}");
    // The longest body that a node takes.
    let long = format!("add{}1", " ".repeat((1 << 20) - 4));
    let sum = ask(cluster.client(), &others, None, &long).await?;
    ensure!(sum == (CALLS + 1).to_string(), "{sum}");
    cluster.shut_down(PATIENCE).await.map(drop)
}

/// Every call once, each with a key of its own: the answers, by their numbers.
async fn add_all(client: &Client, urls: &[String]) -> Result<Vec<String>> {
    let (next, urls) = (Arc::new(AtomicU64::new(0)), Arc::new(urls.to_vec()));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (next, urls, client) = (next.clone(), urls.clone(), client.clone());
        callers.spawn(async move {
            let mut answers = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= CALLS {
                    return anyhow::Ok(answers);
                }
                answers.push((number, ask(&client, &urls, Some(number), "add 1").await?));
            }
        });
    }
    let mut answers = vec![String::new(); CALLS as usize];
    while let Some(some) = callers.join_next().await {
        for (number, answer) in some?? {
            answers[number as usize] = answer;
        }
    }
    Ok(answers)
}

/// Asks some node until one answers.
async fn ask(client: &Client, urls: &[String], key: Option<u64>, body: &str) -> Result<String> {
    let key =
        key.map(|number| format!("a key as long as keys often are, with its number {number:06}"));
    let key = key.map(|key| key.replace([' ', ','], "-"));
    let began = Instant::now();
    let mut said = String::new();
    while began.elapsed() < PATIENCE {
        for url in urls {
            let limit = Duration::from_secs(10);
            match client.call(url, COUNTER, key.as_deref(), body, limit).await {
                Called::Answered(answer) => return Ok(answer),
                Called::Refused(why) => bail!("it was refused: {why}"),
                Called::Again(why) => said = why,
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("it was not answered within {PATIENCE:?}; at last: {said}")
}

/// The node that runs the counter.
async fn owner(cluster: &Cluster) -> Result<usize> {
    let slot = u64::from(ChildId::parse(COUNTER)?.slot().get());
    let holds = |unit: &serde_json::Value| {
        let end = |name| unit["slots"][name].as_u64();
        let (start, end) = (end("start"), end("end"));
        start.is_some_and(|start| start <= slot) && end.is_some_and(|end| slot < end)
    };
    for url in cluster.urls() {
        let Ok(owners) = cluster.owners(&url).await else {
            continue;
        };
        for (owner, units) in owners {
            if units.iter().any(holds) {
                let mut nodes = 0..cluster.size();
                let nth = nodes.find(|nth| cluster.name(*nth) == owner);
                return nth.context("a node of another name owns it");
            }
        }
    }
    bail!("nobody owns {COUNTER}")
}

const COUNTER: &str = "acme/counter/thousands";

/// Some pieces full of them.
const CALLS: u64 = 4_000;

const CALLERS: usize = 32;

/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);
