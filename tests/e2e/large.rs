//! States that are longer than a record.
//!
//! Owns: that every byte of them survives what a record survives, and that what is longer than any
//! value may be is refused in words.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use understudy_protocol::id::ChildId;
use understudy_supervision::testing::{hex, noise};
use understudy_tests::cluster::{Cluster, Options};
use understudy_tests::http::Called;

use crate::exe;

/// A child whose state is long, and what its state should be.
struct Large {
    cluster: Cluster,
    child: &'static str,
    state: Vec<u8>,
    calls: u64,
}

impl Large {
    /// Asks some node until one answers; a key makes it one call however often it is asked.
    async fn call(&mut self, body: &str) -> Result<String> {
        self.calls += 1;
        let key = format!("large-{}", self.calls);
        let began = Instant::now();
        let mut said = String::new();
        while began.elapsed() < PATIENCE {
            for url in self.cluster.urls() {
                let client = self.cluster.client();
                let limit = Duration::from_secs(20);
                match client.call(&url, self.child, Some(&key), body, limit).await {
                    Called::Answered(answer) => return Ok(answer),
                    Called::Refused(why) => bail!("{body} was refused: {why}"),
                    Called::Again(why) => said = why,
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("{body} was not answered within {PATIENCE:?}; at last: {said}")
    }

    async fn set(&mut self, kib: usize, seed: u64) -> Result<()> {
        self.call(&format!("set {kib} {seed}")).await?;
        self.state = noise(kib, seed);
        Ok(())
    }

    async fn patch(&mut self, at: usize, kib: usize, seed: u64) -> Result<()> {
        self.call(&format!("patch {at} {kib} {seed}")).await?;
        self.state[at * 1024..(at + kib) * 1024].copy_from_slice(&noise(kib, seed));
        Ok(())
    }

    /// Every byte of its state is what it should be.
    async fn judge(&mut self) -> Result<()> {
        let kib = self.state.len() / 1024;
        for at in (0..kib).step_by(READ_KIB) {
            let part = READ_KIB.min(kib - at);
            let answer = self.call(&format!("read {at} {part}")).await?;
            let expected = hex(&self.state[at * 1024..(at + part) * 1024]);
            ensure!(answer == expected, "from KiB {at} on it is another state");
        }
        Ok(())
    }

    /// The node that runs it.
    async fn owner(&self) -> Result<usize> {
        let (owner, _) = self.owner_and_unit().await?;
        let mut nodes = 0..self.cluster.size();
        let nth = nodes.find(|nth| self.cluster.name(*nth) == owner);
        nth.context("a node of another name owns it")
    }

    async fn unit(&self) -> Result<String> {
        Ok(self.owner_and_unit().await?.1)
    }

    async fn owner_and_unit(&self) -> Result<(String, String)> {
        let child = ChildId::parse(self.child)?;
        let slot = u64::from(child.slot().get());
        for nth in 0..self.cluster.size() {
            let url = self.cluster.url(nth);
            let Ok(owners) = self.cluster.owners(&url).await else {
                continue;
            };
            let holds = |unit: &serde_json::Value| {
                let end = |name| unit["slots"][name].as_u64();
                let (start, end) = (end("start"), end("end"));
                start.is_some_and(|start| start <= slot) && end.is_some_and(|end| slot < end)
            };
            for (owner, units) in owners {
                if let Some(unit) = units.iter().find(|unit| holds(unit)) {
                    let name = unit["unit"].as_str().or(unit["id"].as_str());
                    return Ok((owner, name.context("a unit has a name")?.to_owned()));
                }
            }
        }
        bail!("nobody owns {}", self.child)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_of_a_long_state_survives_its_owners_kill_and_a_lost_disk() -> Result<()> {
    let cluster = Cluster::start(exe(), options()).await?;
    let mut large = Large {
        cluster,
        child: "acme/testing-large/one",
        state: Vec::new(),
        calls: 0,
    };
    large.set(9 * 1024, 1).await?;
    for nth in 0..40 {
        // Some of these are inline and some are not, and a snapshot comes between them.
        large.patch(nth * 200, 1 + nth % 3 * 40, nth as u64).await?;
    }
    large.judge().await?;

    for round in 0..2 {
        let owner = large.owner().await?;
        large.cluster.kill(owner)?;
        large.judge().await.context("after its owner was killed")?;
        large.patch(100 * round, 70, 1_000 + round as u64).await?;
        large.cluster.spawn(owner)?;
        large.cluster.wait_whole(PATIENCE).await?;
    }

    // A new store gets every piece again: in the end it alone is asked.
    let lost = large.owner().await?;
    large.cluster.lose(lost)?;
    std::fs::remove_dir_all(large.cluster.data_dir(lost)).context("the disk")?;
    large
        .judge()
        .await
        .context("after its owner's disk was lost")?;
    large.cluster.spawn(lost)?;
    large.cluster.wait_whole(PATIENCE).await?;
    large.judge().await?;
    let left = large.cluster.shut_down(PATIENCE).await?;
    ensure!(left.is_empty(), "{left:?} are left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_answer_of_a_step_is_the_same_however_often_it_is_asked_for() -> Result<()> {
    let cluster = Cluster::start(exe(), options()).await?;
    let mut large = Large {
        cluster,
        child: "acme/testing-large/answers",
        state: Vec::new(),
        calls: 0,
    };
    large.set(1, 1).await?;
    let first = large.call("answer 100 7").await?;
    large.calls -= 1;
    ensure!(large.call("answer 100 7").await? == first, "by its memory");
    let owner = large.owner().await?;
    large.cluster.kill(owner)?;
    large.calls -= 1;
    ensure!(large.call("answer 100 7").await? == first, "by its records");
    large.judge().await?;
    large.cluster.shut_down(PATIENCE).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_above_the_limit_is_refused_in_words_and_the_child_goes_on() -> Result<()> {
    let cluster = Cluster::start(exe(), options()).await?;
    let mut large = Large {
        cluster,
        child: "acme/testing-large/most",
        state: Vec::new(),
        calls: 0,
    };
    large.set(2_000, 1).await?;
    // The step says beside its bytes where they belong.
    let refused = large.call("zeros 65536").await;
    let why = refused.expect_err("it is above 64 MiB").to_string();
    ensure!(why.contains("too_large"), "{why}");
    large
        .judge()
        .await
        .context("after a step that was refused")?;
    large.call("zeros 65535").await?;
    large.state = vec![0; 65_535 * 1024];
    large.patch(64_000, 100, 9).await?;
    large.state.drain(..63_000 * 1024);
    for at in (63_000..65_000).step_by(READ_KIB) {
        let part = &large.state[(at - 63_000) * 1024..(at - 63_000 + READ_KIB) * 1024];
        let expected = hex(part);
        let answer = large.call(&format!("read {at} {READ_KIB}")).await?;
        ensure!(answer == expected, "from KiB {at} on it is another state");
    }
    large.cluster.shut_down(PATIENCE).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_loosely_is_handed_out_before_its_unit_moves() -> Result<()> {
    let cluster = Cluster::start(exe(), options()).await?;
    let mut loose = Large {
        cluster,
        child: "acme/testing-loose/one",
        state: Vec::new(),
        calls: 0,
    };
    for sum in 1..=3 {
        ensure!(loose.call("hold 1").await? == sum.to_string());
    }
    loose.calls -= 1;
    ensure!(loose.call("hold 1").await? == "3", "it is done once");
    let owner = loose.owner().await?;
    let (unit, to) = (loose.unit().await?, (owner + 1) % loose.cluster.size());
    loose.cluster.send(&unit, to).await?;
    ensure!(loose.owner().await? != owner, "it has moved");
    ensure!(loose.call("get").await? == "3", "nothing of it was lost");
    loose.calls -= 2;
    ensure!(loose.call("hold 1").await? == "3", "nor was its last key");
    loose.cluster.shut_down(PATIENCE).await.map(drop)
}

fn options() -> Options {
    Options {
        testing_kinds: true,
        ..Options::default()
    }
}

/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// Two digits a byte, and an answer has a mebibyte at most.
const READ_KIB: usize = 500;
