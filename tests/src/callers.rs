//! Callers and their ledger: what was asked, what was acknowledged, and whether the cluster kept it.
//!
//! Owns: concurrent callers that add to counters, each step under its own idempotency key, trying
//! every address with the same key until they are told an answer; and the judgement: every
//! acknowledged step is there exactly once. The ledger lives outside the cluster and believes nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::task::JoinSet;

use crate::http::{Called, Client};

/// Callers at work.
pub struct Callers {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

struct Shared {
    client: Client,
    servers: Vec<String>,
    counters: usize,
    stop: AtomicBool,
    drawn: AtomicU64,
    ledger: Mutex<Ledger>,
}

/// What callers were told.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// The values that were acknowledged, by counter: every step answers the counter's new value, so
    /// a value twice, or a gap at the end, is a step lost or done twice.
    pub told: BTreeMap<usize, Vec<u64>>,
    /// Steps acknowledged.
    pub acknowledged: u64,
    /// Tries that had to be repeated.
    pub retries: u64,
    /// Longest wait of any step.
    pub slowest: Duration,
    /// What should never have been answered.
    pub wrong: Vec<String>,
    /// Steps whose caller gave up: nobody may say whether they were done.
    pub abandoned: Vec<(usize, String)>,
}

/// How a look at all counters came out.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Steps acknowledged to callers.
    pub acknowledged: u64,
    /// Sum of all counters.
    pub found: u64,
    /// What is wrong, in words; empty when all is well.
    pub wrong: Vec<String>,
}

/// The name of a counter.
pub fn counter(nth: usize) -> String {
    format!("demo/counter/{nth}")
}

impl Callers {
    /// Starts `callers` callers over `counters` counters, each pausing between steps.
    pub fn start(
        client: Client,
        servers: Vec<String>,
        counters: usize,
        callers: usize,
        pause: Duration,
    ) -> Callers {
        let shared = Arc::new(Shared {
            client,
            servers,
            counters,
            stop: AtomicBool::new(false),
            drawn: AtomicU64::new(0),
            ledger: Mutex::new(Ledger::default()),
        });
        let mut tasks = JoinSet::new();
        for caller in 0..callers {
            tasks.spawn(call_on(shared.clone(), caller, pause));
        }
        Callers { shared, tasks }
    }

    /// Steps acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.ledger().acknowledged
    }

    /// Lets every caller finish its step, and closes the ledger.
    pub async fn finish(mut self) -> Ledger {
        self.shared.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        self.shared.ledger().clone()
    }
}

impl Shared {
    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
    fn draw(&self) -> u64 {
        let mut z = self
            .drawn
            .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

async fn call_on(shared: Arc<Shared>, caller: usize, pause: Duration) {
    let mut server = caller % shared.servers.len();
    let mut step = 0_u64;
    while !shared.stop.load(Ordering::Relaxed) {
        step += 1;
        let nth = (shared.draw() % shared.counters as u64) as usize;
        let key = format!("caller-{caller}-{step}");
        let began = Instant::now();
        loop {
            let called = shared
                .client
                .call(
                    &shared.servers[server],
                    &counter(nth),
                    Some(&key),
                    "add 1",
                    TRY_LIMIT,
                )
                .await;
            let done = shared.ledger().enter(nth, &key, began.elapsed(), called);
            if done {
                break;
            }
            server = (server + 1) % shared.servers.len();
            tokio::time::sleep(TRY_AGAIN).await;
        }
        tokio::time::sleep(pause).await;
    }
}

impl Ledger {
    /// Enters what a try came to; whether the step is over.
    fn enter(&mut self, nth: usize, key: &str, took: Duration, called: Called) -> bool {
        match called {
            Called::Answered(text) => {
                match text.trim().parse() {
                    Ok(value) => {
                        self.acknowledged += 1;
                        self.told.entry(nth).or_default().push(value);
                    }
                    Err(_) => self
                        .wrong
                        .push(format!("{} answered {text:?}", counter(nth))),
                }
                self.slowest = self.slowest.max(took);
                true
            }
            Called::Refused(why) => {
                self.wrong
                    .push(format!("{} refused {key}: {why}", counter(nth)));
                true
            }
            Called::Again(why) => {
                self.retries += 1;
                if took > GIVE_UP {
                    self.abandoned.push((nth, format!("{key}: {why}")));
                }
                took > GIVE_UP
            }
        }
    }

    /// Reads every counter and compares it with what callers were told.
    pub async fn judge(&self, client: &Client, servers: &[String]) -> Result<Verdict> {
        let mut wrong = self.wrong.clone();
        let mut found = 0;
        for (nth, told) in &self.told {
            let value = read(client, servers, *nth).await?;
            found += value;
            let abandoned = self.abandoned.iter().filter(|(of, _)| of == nth).count() as u64;
            let distinct: BTreeSet<u64> = told.iter().copied().collect();
            if distinct.len() != told.len() {
                wrong.push(format!(
                    "{}: two steps were told the same value",
                    counter(*nth)
                ));
            }
            let steps = told.len() as u64;
            if value < steps || value > steps + abandoned {
                wrong.push(format!(
                    "{}: {steps} steps were acknowledged, {abandoned} are open, the value is {value}",
                    counter(*nth)
                ));
            }
            if distinct.last().is_some_and(|last| *last > value) {
                wrong.push(format!("{}: a step that was told is gone", counter(*nth)));
            }
        }
        for (nth, why) in &self.abandoned {
            wrong.push(format!("{}: never answered: {why}", counter(*nth)));
        }
        Ok(Verdict {
            acknowledged: self.acknowledged,
            found,
            wrong,
        })
    }
}

/// The value of a counter, from whichever node answers.
pub async fn read(client: &Client, servers: &[String], nth: usize) -> Result<u64> {
    let began = Instant::now();
    let mut last = String::new();
    while began.elapsed() < GIVE_UP {
        for server in servers {
            match client
                .call(server, &counter(nth), None, "get", TRY_LIMIT)
                .await
            {
                Called::Answered(text) => return Ok(text.trim().parse()?),
                Called::Again(why) | Called::Refused(why) => last = why,
            }
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
    bail!("{} could not be read: {last}", counter(nth))
}

/// How long each of `counters` takes, from now, until it has answered one new step; every one is
/// asked at once. None where it did not within `limit`.
pub async fn first_answers(
    client: &Client,
    servers: &[String],
    counters: &[usize],
    round: u64,
    limit: Duration,
) -> (Vec<(usize, Option<Duration>)>, Ledger) {
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for nth in counters.iter().copied() {
        let (client, servers) = (client.clone(), servers.to_vec());
        tasks.spawn(async move {
            let key = format!("probe-{round}-{nth}");
            let mut at = nth;
            let mut retries = 0;
            while began.elapsed() < limit {
                at += 1;
                let server = &servers[at % servers.len()];
                let called = client
                    .call(server, &counter(nth), Some(&key), "add 1", TRY_LIMIT)
                    .await;
                match called {
                    Called::Answered(text) => {
                        return (
                            nth,
                            Some(began.elapsed()),
                            text.trim().parse().ok(),
                            retries,
                        );
                    }
                    Called::Refused(_) => break,
                    Called::Again(_) => retries += 1,
                }
                tokio::time::sleep(TRY_AGAIN).await;
            }
            (nth, None, None, retries)
        });
    }
    let mut answers = Vec::new();
    let mut ledger = Ledger::default();
    while let Some(Ok((nth, took, value, retries))) = tasks.join_next().await {
        ledger.retries += retries;
        match (took, value) {
            (Some(_), Some(value)) => {
                ledger.acknowledged += 1;
                ledger.told.entry(nth).or_default().push(value);
            }
            (Some(_), None) => ledger
                .wrong
                .push(format!("{} answered no number", counter(nth))),
            (None, _) => ledger
                .abandoned
                .push((nth, format!("probe {round}: no answer"))),
        }
        answers.push((nth, took));
    }
    (answers, ledger)
}

impl Ledger {
    /// Adds what other callers were told.
    pub fn merge(&mut self, other: Ledger) {
        for (nth, mut values) in other.told {
            self.told.entry(nth).or_default().append(&mut values);
        }
        self.acknowledged += other.acknowledged;
        self.retries += other.retries;
        self.slowest = self.slowest.max(other.slowest);
        self.wrong.extend(other.wrong);
        self.abandoned.extend(other.abandoned);
    }
}

/// How long one try waits: the node retries inside it.
const TRY_LIMIT: Duration = Duration::from_secs(2);

/// Between two tries of one step.
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// After this long a caller gives a step up; the judgement counts that as a fault of the cluster.
const GIVE_UP: Duration = Duration::from_secs(60);
