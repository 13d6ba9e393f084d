//! Processes that end: killed, stopped, terminated, poisoned.
//!
//! Owns: one test for each such row of [`crate::table::TABLE`]. Every test ends with the same judgement:
//! each acknowledged step is there exactly once, and no process and no folder is left.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use understudy_tests::cluster::{Cluster, Options, items};

use crate::story::{COUNTERS, Story};
use crate::table::{bound, say};

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
    if story
        .cluster
        .counters_of(victim, COUNTERS)
        .await?
        .is_empty()
    {
        story.cluster.give(victim, 16).await?;
    }
    let began = Instant::now();
    let took = story.strike(victim, bound(fault), kill).await?;
    // Followers know for a moment only who led.
    let next = loop {
        match story.cluster.leader().await {
            Ok(next) if next != victim => break next,
            _ if began.elapsed() > bound(fault) => bail!("nobody else leads\n{}", story.logs()),
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let led = began.elapsed();
    say(
        fault,
        format!(
            "{} leads after {led:?} at most; its counters answered after {took:?}",
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
            let leader = story.cluster.leader().await?;
            story.cluster.give(leader, 16).await?;
            leader
        };
        slowest = slowest.max(story.strike(victim, bound(fault), kill).await?);
        story.whole().await?;
        // Who was at work in two processes that died soon after each other is taken for poisonous with
        // the third: ten seconds of clean running clear it (V2).
        if story.has_strikes(2).await? {
            story.clean_run(CLEAN).await?;
        }
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
    // Without a majority it ended with its lease; a service manager starts it again.
    if !story.cluster.runs(0) {
        story.cluster.spawn(0)?;
    }
    if !story.goes_on(bound(fault)).await {
        bail!("two of three do not go on\n{}", story.logs());
    }
    say(fault, "froze, and went on with two");
    story.whole().await?;
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
async fn a_unit_that_kills_its_process_each_time_is_quarantined() -> Result<()> {
    let fault = "a unit that kills its process each time it works";
    let options = Options {
        testing_kinds: true,
        ..Options::default()
    };
    let mut story = Story::begin(options).await?;
    let client = story.cluster.client().clone();
    let poison = "@demo/testing-poison/1";
    let body = json!({ "child": poison, "restart": "permanent" });
    let unit = client
        .post(&story.cluster.url(0), "/v1/units", &body)
        .await?;
    // The first to die of it leads: nobody does when its warden speaks.
    let unit = unit["id"].as_str().context("no id")?;
    let leader = story.cluster.leader().await?;
    story.cluster.send(unit, leader).await?;
    let began = Instant::now();
    let mut deaths = 0;
    while !story.is_quarantined(poison).await? {
        if deaths > STRIKES || began.elapsed() > WALK {
            let events = client.events(&story.cluster.any_url()?).await?;
            bail!("{deaths} nodes died of it and it is not in quarantine: {events:#?}");
        }
        story.whole().await?;
        let before: u32 = story.starts().iter().sum();
        // One call at most is on its way, and it is one and the same: it dies with the first node
        // that it kills, or is done by the next.
        let limit = Duration::from_secs(3);
        client
            .call(
                &story.cluster.any_url()?,
                poison,
                Some("poison"),
                "die",
                limit,
            )
            .await;
        story.whole().await?;
        deaths += story.starts().iter().sum::<u32>() - before;
    }
    if deaths != STRIKES {
        let events = client.events(&story.cluster.any_url()?).await?;
        bail!("three strikes, and no more, but {deaths} nodes died of it: {events:#?}");
    }
    if !story.goes_on(bound(fault)).await {
        bail!("the others do not go on\n{}", story.logs());
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
    let all: Vec<usize> = (0..COUNTERS).collect();
    let took = story.all_answer(&all, bound(fault)).await?;
    say(fault, format!("every counter answered after {took:?}"));
    story.whole().await?;
    story.end().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_are_terminated_in_turn_drain_and_no_caller_is_refused() -> Result<()> {
    let fault = "SIGTERM of each in turn, callers at work";
    let mut story = Story::begin(Options::default()).await?;
    let mut slowest = Duration::ZERO;
    for victim in 0..story.cluster.size() {
        let began = Instant::now();
        let code = story.cluster.terminate(victim, bound(fault)).await?;
        slowest = slowest.max(began.elapsed());
        assert_eq!(code, Some(0), "{}", story.cluster.log(victim));
        let owners = story.cluster.owners(&story.cluster.any_url()?).await?;
        let name = story.cluster.name(victim);
        assert!(!owners.contains_key(name), "{name} owns units still");
        story.whole().await?;
        // It may hold units again.
        story.clean_run(Duration::from_secs(2)).await?;
    }
    let ledger = story.end().await?;
    say(
        fault,
        format!(
            "the slowest stop took {slowest:?}, the slowest of {} steps {:?}, {} tries were repeated",
            ledger.acknowledged, ledger.slowest, ledger.retries
        ),
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn three_that_are_terminated_at_once_end_in_order_and_forget_nothing() -> Result<()> {
    let fault = "SIGTERM of all three at once";
    let mut story = Story::begin(Options::default()).await?;
    let began = Instant::now();
    for nth in 0..3 {
        story.cluster.ask_to_end(nth)?;
    }
    for nth in 0..3 {
        let code = story.cluster.wait_end(nth, bound(fault)).await?;
        assert_eq!(code, Some(0), "{}", story.cluster.log(nth));
    }
    let ended = began.elapsed();
    for nth in 0..3 {
        story.cluster.spawn(nth)?;
    }
    let all: Vec<usize> = (0..COUNTERS).collect();
    let took = story.all_answer(&all, bound(fault)).await?;
    say(
        fault,
        format!("all had ended after {ended:?}; every counter answered {took:?} after the start"),
    );
    story.whole().await?;
    story.end().await.map(drop)
}

impl Story {
    async fn is_quarantined(&self, child: &str) -> Result<bool> {
        let units = self.units().await?;
        let unit = items(&units).find(|unit| unit["child"] == json!(child));
        Ok(unit.context("no such unit")?["quarantined"] == json!(true))
    }

    /// Whether so many strikes are noted for any unit.
    async fn has_strikes(&self, count: u64) -> Result<bool> {
        let units = self.units().await?;
        Ok(items(&units).any(|unit| unit["strikes"].as_u64() >= Some(count)))
    }

    async fn units(&self) -> Result<Value> {
        let server = self.cluster.any_url()?;
        self.cluster.client().get(&server, "/v1/units").await
    }
}

/// What quarantines a unit.
const STRIKES: u32 = 3;

/// How long the poisonous unit may walk through the cluster.
const WALK: Duration = Duration::from_secs(120);

/// Clean running that clears strikes.
const CLEAN: Duration = Duration::from_secs(10);
