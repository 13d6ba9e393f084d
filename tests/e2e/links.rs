//! Links that lose what they carry.
//!
//! Owns: one test for each such row of [`crate::table::TABLE`]. Relays stand in front of the nodes; a
//! node cannot tell them from a network.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use understudy_tests::callers::counter;
use understudy_tests::cluster::{Cluster, Options};
use understudy_tests::http::Called;

use crate::story::{COUNTERS, Story};
use crate::table::{bound, say};

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
    let theirs = story.cluster.counters_of(victim, COUNTERS).await?;
    let took = story
        .strike(victim, bound(fault), async |cluster, victim| {
            cut(cluster, victim)
        })
        .await?;
    // The minority side: its own address answers nothing any more.
    let alone = [story.cluster.url(victim)];
    let client = story.cluster.client().clone();
    for nth in theirs.iter().take(5) {
        let child = counter(*nth);
        let limit = Duration::from_millis(500);
        let called = client.call(&alone[0], &child, None, "get", limit).await;
        if matches!(called, Called::Answered(_)) {
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
async fn links_that_lose_a_tenth_cost_nobody_its_lease() -> Result<()> {
    let fault = "one datagram of ten lost for 30 s";
    let options = Options {
        relays: true,
        ..Options::default()
    };
    let mut story = Story::begin(options).await?;
    let starts = story.starts();
    let server = story.cluster.url(0);
    let expelled = async |story: &Story| -> Result<usize> {
        let events = story.cluster.client().events(&server).await?;
        Ok(events
            .iter()
            .filter(|(kind, _)| kind == "node_expelled")
            .count())
    };
    let before = expelled(&story).await?;
    story.cluster.relays()?.lose(100);
    let began = Instant::now();
    let mut steps = 0;
    while began.elapsed() < LOSSY {
        let told = story.acknowledged();
        if !story.goes_on(bound(fault)).await {
            bail!("callers stand still\n{}", story.logs());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        steps += story.acknowledged() - told;
    }
    story.cluster.relays()?.heal();
    for nth in 0..story.cluster.size() {
        assert!(story.cluster.runs(nth), "{}", story.cluster.log(nth));
    }
    assert_eq!(story.starts(), starts);
    assert_eq!(expelled(&story).await?, before, "{}", story.logs());
    story.whole().await?;
    let ledger = story.end().await?;
    say(
        fault,
        format!(
            "{steps} steps, the slowest took {:?}; {} tries were repeated",
            ledger.slowest, ledger.retries
        ),
    );
    Ok(())
}

/// How long datagrams are lost: ten leases.
const LOSSY: Duration = Duration::from_secs(30);
