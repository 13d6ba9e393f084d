//! The table of faults, and a test for each row.
//!
//! Owns: for each fault, what must come of it and within which bound. The bounds are what an operator
//! may rely on (TTL 3 s: the `default` preset), doubled for a machine that builds other things
//! meanwhile; speed is for the benches. Every test ends with the same judgement: each acknowledged
//! step is there exactly once, and no process is left.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use understudy_tests::cluster::{Cluster, Options, items};
use understudy_tests::process;

use crate::story::Story;

/// One row: the fault, what comes of it, and within which bound.
pub(crate) struct Row {
    pub(crate) fault: &'static str,
    pub(crate) outcome: &'static str,
    pub(crate) bound: Duration,
}

/// A process died and its warden said so: no lease is waited out.
const DIED: Duration = Duration::from_secs(10);

/// A machine is lost: TTL, detection, and an election when it led; doubled.
const LOST: Duration = Duration::from_secs(15);

/// Every row, in the order of the tests.
pub(crate) const TABLE: [Row; 13] = [
    Row {
        fault: "kill -9 of the owner of most",
        outcome: "its units are served elsewhere",
        bound: DIED,
    },
    Row {
        fault: "kill -9 of the leader",
        outcome: "another leads; its units are served elsewhere",
        bound: DIED,
    },
    Row {
        fault: "kill -9 of owner and leader in turn, ten times",
        outcome: "as above, each time",
        bound: DIED,
    },
    Row {
        fault: "two of three down",
        outcome: "the third serves nothing; goes on when one is back",
        bound: LOST,
    },
    Row {
        fault: "the owner's machine lost with its disk",
        outcome: "nothing acknowledged is lost; it comes back as a new store",
        bound: LOST,
    },
    Row {
        fault: "a unit that kills its process each time it works",
        outcome: "quarantined after three strikes; the others go on",
        bound: LOST,
    },
    Row {
        fault: "SIGSTOP of an owner for 5 s, then SIGCONT",
        outcome: "served elsewhere; the stopped one ends itself",
        bound: LOST,
    },
    Row {
        fault: "an owner cut off in both directions",
        outcome: "served by the majority; the minority serves nothing",
        bound: LOST,
    },
    Row {
        fault: "an owner that is heard by nobody, but hears",
        outcome: "as above",
        bound: LOST,
    },
    Row {
        fault: "restart of all three",
        outcome: "everything acknowledged is there",
        bound: Duration::from_secs(30),
    },
    Row {
        fault: "one damaged record",
        outcome: "the copy is mended from the others",
        bound: LOST,
    },
    Row {
        fault: "a store file cut short",
        outcome: "quarantined; a new store id; filled from the others",
        bound: Duration::from_secs(60),
    },
    Row {
        fault: "SIGTERM",
        outcome: "drains, then ends with 0",
        bound: Duration::from_secs(30),
    },
];

fn bound(fault: &str) -> Duration {
    let row = TABLE.iter().find(|row| row.fault == fault);
    row.unwrap_or_else(|| panic!("{fault:?} is not in the table"))
        .bound
}

fn say(fault: &str, saw: String) {
    let row = TABLE.iter().find(|row| row.fault == fault).unwrap();
    println!(
        "{:<48} | {:<58} | {:>5} s | {saw}",
        row.fault,
        row.outcome,
        row.bound.as_secs()
    );
}

async fn kill(cluster: &mut Cluster, victim: usize) -> Result<()> {
    cluster.kill(victim).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_owner_loses_nothing_and_its_units_go_on_elsewhere() -> Result<()> {
    let fault = "kill -9 of the owner of most";
    let mut story = Story::begin(Options::default()).await?;
    let victim = story.cluster.owner_of_most().await?;
    let took = story.strike(victim, bound(fault), kill).await?;
    say(
        fault,
        format!("all of its counters answered after {took:?}"),
    );
    story.whole().await?;
    story.end().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_followed_by_another() -> Result<()> {
    let fault = "kill -9 of the leader";
    let mut story = Story::begin(Options::default()).await?;
    let victim = story.cluster.leader().await?;
    let took = story.strike(victim, bound(fault), kill).await?;
    let next = story.cluster.leader().await?;
    assert_ne!(next, victim);
    say(
        fault,
        format!(
            "{} leads; its counters answered after {took:?}",
            story.cluster.name(next)
        ),
    );
    story.whole().await?;
    story.end().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_in_turn_lose_nothing() -> Result<()> {
    let fault = "kill -9 of owner and leader in turn, ten times";
    let kills = if std::env::var_os("UNDERSTUDY_LONG").is_some() {
        100
    } else {
        10
    };
    let mut story = Story::begin(Options::default()).await?;
    let mut slowest = Duration::ZERO;
    for nth in 0..kills {
        let victim = if nth % 2 == 0 {
            story.cluster.owner_of_most().await?
        } else {
            story.cluster.leader().await?
        };
        slowest = slowest.max(story.strike(victim, bound(fault), kill).await?);
        story.whole().await?;
    }
    say(
        fault,
        format!("{kills} kills, the slowest recovery took {slowest:?}"),
    );
    story.end().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_three_serves_nothing_and_goes_on_when_another_is_back() -> Result<()> {
    let fault = "two of three down";
    let mut story = Story::begin(Options::default()).await?;
    story.cluster.kill(1)?;
    story.cluster.kill(2)?;
    // What was acknowledged before the leases ended may still be on its way to a caller.
    tokio::time::sleep(Duration::from_secs(4)).await;
    if story.goes_on(Duration::from_secs(5)).await {
        bail!("one node of three answered");
    }
    story.cluster.spawn(1)?;
    if !story.runs_again(0).await? || !story.goes_on(bound(fault)).await {
        bail!("two of three do not go on\n{}", story.logs());
    }
    say(fault, "froze, and went on with two".into());
    story.whole().await?;
    story.end().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_lost_with_its_disk_takes_nothing_with_it() -> Result<()> {
    let fault = "the owner's machine lost with its disk";
    let mut story = Story::begin(Options::default()).await?;
    let victim = story.cluster.owner_of_most().await?;
    let store = story.store_of(victim).await?;
    let took = story
        .strike(victim, bound(fault), async |cluster, victim| {
            cluster.lose(victim)?;
            std::fs::remove_dir_all(cluster.data_dir(victim)).context("the disk")
        })
        .await?;
    story.whole().await?;
    let next = story.store_of(victim).await?;
    assert_ne!(store, next, "a lost store's id is never used again");
    say(
        fault,
        format!("answered after {took:?}; {store} was replaced by {next}"),
    );
    story.end().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_owner_is_replaced_and_ends_itself_when_it_goes_on() -> Result<()> {
    let fault = "SIGSTOP of an owner for 5 s, then SIGCONT";
    let mut story = Story::begin(Options::default()).await?;
    let victim = story.cluster.owner_of_most().await?;
    let took = story
        .strike(victim, bound(fault), async |cluster, victim| {
            cluster.pause(victim).map(drop)
        })
        .await?;
    tokio::time::sleep(Duration::from_secs(5).saturating_sub(took)).await;
    story.cluster.resume(victim)?;
    let code = story
        .cluster
        .wait_end(victim, Duration::from_secs(10))
        .await?;
    say(
        fault,
        format!("answered elsewhere after {took:?}; it ended with {code:?}"),
    );
    story.whole().await?;
    story.end().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_cut_off_serves_nothing_while_the_majority_does() -> Result<()> {
    partition("an owner cut off in both directions", |cluster, victim| {
        cluster.relays()?.isolate(victim);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_nobody_hears_counts_as_cut_off() -> Result<()> {
    partition(
        "an owner that is heard by nobody, but hears",
        |cluster, victim| {
            for other in (0..cluster.size()).filter(|other| *other != victim) {
                cluster.relays()?.cut_one_way(victim, other);
            }
            Ok(())
        },
    )
    .await
}

async fn partition(fault: &str, cut: impl Fn(&Cluster, usize) -> Result<()>) -> Result<()> {
    let options = Options {
        relays: true,
        ..Options::default()
    };
    let mut story = Story::begin(options).await?;
    let victim = story.cluster.owner_of_most().await?;
    let theirs = story
        .cluster
        .counters_of(victim, crate::story::COUNTERS)
        .await?;
    let took = story
        .strike(victim, bound(fault), async |cluster, victim| {
            cut(cluster, victim)
        })
        .await?;
    // The minority side: its own address answers nothing any more.
    let alone = [story.cluster.url(victim)];
    let client = story.cluster.client().clone();
    for nth in theirs.iter().take(5) {
        let child = understudy_tests::callers::counter(*nth);
        let limit = Duration::from_millis(500);
        let called = client.call(&alone[0], &child, None, "get", limit).await;
        if matches!(called, understudy_tests::http::Called::Answered(_)) {
            bail!("the minority answered {child}");
        }
    }
    story.cluster.relays()?.heal();
    say(
        fault,
        format!("the majority answered after {took:?}, the minority never"),
    );
    story.whole().await?;
    story.end().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_that_kills_its_process_each_time_is_quarantined() -> Result<()> {
    let fault = "a unit that kills its process each time it works";
    let options = Options {
        testing_kinds: true,
        ..Options::default()
    };
    let mut story = Story::begin(options).await?;
    let client = story.cluster.client().clone();
    let poison = "@demo/testing-poison/1";
    let body = serde_json::json!({ "child": poison, "restart": "permanent" });
    client
        .post(&story.cluster.url(0), "/v1/units", &body)
        .await?;
    let mut deaths = 0;
    for round in 0..STRIKES_MAX {
        story.whole().await?;
        let starts: u32 = (0..story.cluster.size())
            .map(|nth| story.cluster.starts(nth))
            .sum();
        let key = format!("poison-{round}");
        let limit = Duration::from_secs(3);
        client
            .call(&story.cluster.any_url()?, poison, Some(&key), "die", limit)
            .await;
        story.whole().await?;
        let now: u32 = (0..story.cluster.size())
            .map(|nth| story.cluster.starts(nth))
            .sum();
        deaths += now - starts;
        if story.is_quarantined(poison).await? {
            break;
        }
    }
    if !story.is_quarantined(poison).await? {
        bail!("{deaths} nodes died of it and it is not in quarantine");
    }
    say(fault, format!("quarantined after {deaths} deaths"));
    story.end().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_all_three_forgets_nothing() -> Result<()> {
    let fault = "restart of all three";
    let mut story = Story::begin(Options::default()).await?;
    for nth in 0..3 {
        story.cluster.kill(nth)?;
    }
    for nth in 0..3 {
        story.cluster.spawn(nth)?;
    }
    let all: Vec<usize> = (0..crate::story::COUNTERS).collect();
    let took = story.all_answer(&all, bound(fault)).await?;
    say(fault, format!("every counter answered after {took:?}"));
    story.whole().await?;
    story.end().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_file_that_is_cut_short_is_replaced_by_a_new_store() -> Result<()> {
    let fault = "a store file cut short";
    let mut story = Story::begin(Options::default()).await?;
    let store = story.store_of(1).await?;
    story.cluster.kill(1)?;
    let file = story.cluster.data_dir(1).join("store/records/db");
    let length = std::fs::metadata(&file)?.len();
    std::fs::File::options()
        .write(true)
        .open(&file)?
        .set_len(length / 2)?;
    story.cluster.spawn(1)?;
    story.whole().await?;
    let next = story.store_of(1).await?;
    say(fault, format!("{store} became {next}"));
    story.end().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_node_drains_and_ends_well() -> Result<()> {
    let fault = "SIGTERM";
    let mut story = Story::begin(Options::default()).await?;
    let victim = story.cluster.owner_of_most().await?;
    let code = story.cluster.terminate(victim, bound(fault)).await?;
    assert_eq!(code, Some(0), "{}", story.cluster.log(victim));
    let owners = story.cluster.owners(&story.cluster.any_url()?).await?;
    assert!(
        !owners.contains_key(story.cluster.name(victim)),
        "it owns units still"
    );
    say(fault, "its units moved first; it ended with 0".into());
    story.whole().await?;
    story.end().await.map(drop)
}

impl Story {
    async fn store_of(&self, nth: usize) -> Result<String> {
        let cluster = self
            .cluster
            .client()
            .get(&self.cluster.url(nth), "/v1/cluster")
            .await?;
        Ok(cluster["store"].to_string())
    }

    async fn is_quarantined(&self, child: &str) -> Result<bool> {
        let units = self
            .cluster
            .client()
            .get(&self.cluster.any_url()?, "/v1/units")
            .await?;
        let unit = items(&units).find(|unit| unit["child"] == serde_json::json!(child));
        Ok(unit.context("no such unit")?["quarantined"] == serde_json::json!(true))
    }

    /// A node without a majority ends itself when its lease does; a service manager starts it again.
    async fn runs_again(&mut self, nth: usize) -> Result<bool> {
        if !self.cluster.runs(nth) {
            self.cluster.spawn(nth)?;
        }
        let pid = self.cluster.pid(nth);
        process::signal(pid.context("it does not run")?, Signal::CONT)?;
        Ok(true)
    }
}

/// Deaths that a poisonous unit may cause before the test gives up: three strikes, and one for luck.
const STRIKES_MAX: usize = 5;
