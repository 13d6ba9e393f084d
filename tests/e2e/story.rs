//! What every fault test has in common: a cluster, callers, a fault, and the judgement.
//!
//! Owns: the order of a test. A fault is a function; everything around it is the same for all.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use understudy_tests::callers::{Callers, Ledger, first_answers};
use understudy_tests::cluster::{Cluster, Options};

use crate::exe;

/// A cluster with callers at work.
pub(crate) struct Story {
    pub(crate) cluster: Cluster,
    callers: Option<Callers>,
    ledger: Ledger,
    probes: u64,
}

impl Story {
    /// Three nodes, `COUNTERS` counters that have answered once, and callers that go on.
    pub(crate) async fn begin(options: Options) -> Result<Story> {
        let cluster = Cluster::start(exe(), options).await?;
        let mut story = Story {
            cluster,
            callers: None,
            ledger: Ledger::default(),
            probes: 0,
        };
        let all: Vec<usize> = (0..COUNTERS).collect();
        story.all_answer(&all, Duration::from_secs(60)).await?;
        story.callers = Some(Callers::start(
            story.cluster.client().clone(),
            story.cluster.urls(),
            COUNTERS,
            CALLERS,
            Duration::from_millis(20),
        ));
        Ok(story)
    }

    /// Each of these counters takes one new step within `bound`; how long the last of them took.
    pub(crate) async fn all_answer(
        &mut self,
        counters: &[usize],
        bound: Duration,
    ) -> Result<Duration> {
        let urls = self.cluster.urls();
        self.all_answer_at(&urls, counters, bound).await
    }

    /// As above, asked at these addresses.
    pub(crate) async fn all_answer_at(
        &mut self,
        urls: &[String],
        counters: &[usize],
        bound: Duration,
    ) -> Result<Duration> {
        self.probes += 1;
        let client = self.cluster.client().clone();
        let (answers, told) = first_answers(&client, urls, counters, self.probes, bound).await;
        self.ledger.merge(told);
        let mut slowest = Duration::ZERO;
        for (nth, took) in answers {
            match took {
                Some(took) => slowest = slowest.max(took),
                None => bail!(
                    "counter {nth} did not answer within {bound:?}\n{}",
                    self.logs()
                ),
            }
        }
        Ok(slowest)
    }

    /// The addresses of all nodes but one.
    pub(crate) fn others(&self, nth: usize) -> Vec<String> {
        let others = (0..self.cluster.size()).filter(|other| *other != nth);
        others.map(|other| self.cluster.url(other)).collect()
    }

    /// The counters of a node, and what they take to answer elsewhere after `fault`; the node is
    /// started again afterwards if it has ended, and the cluster is whole again.
    pub(crate) async fn strike(
        &mut self,
        victim: usize,
        bound: Duration,
        fault: impl AsyncFnOnce(&mut Cluster, usize) -> Result<()>,
    ) -> Result<Duration> {
        let theirs = self.cluster.counters_of(victim, COUNTERS).await?;
        if theirs.is_empty() {
            bail!(
                "node {} owns no counter: nothing would be shown",
                self.cluster.name(victim)
            );
        }
        let others = self.others(victim);
        fault(&mut self.cluster, victim).await?;
        let took = self.all_answer_at(&others, &theirs, bound).await;
        took.with_context(|| format!("after a fault of node {}", self.cluster.name(victim)))
    }

    /// Waits until the cluster is whole again.
    pub(crate) async fn whole(&mut self) -> Result<()> {
        self.cluster.wait_whole(WHOLE).await
    }

    /// Steps acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        let going_on = self.callers.as_ref().map_or(0, Callers::acknowledged);
        self.ledger.acknowledged + going_on
    }

    /// Whether callers are told something new within `bound`.
    pub(crate) async fn goes_on(&self, bound: Duration) -> bool {
        let before = self.acknowledged();
        let began = Instant::now();
        while began.elapsed() < bound {
            if self.acknowledged() > before {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    }

    /// The last lines of every node's log.
    pub(crate) fn logs(&self) -> String {
        let logs: Vec<String> = (0..self.cluster.size())
            .map(|nth| self.cluster.log(nth))
            .collect();
        logs.join("\n")
    }

    /// Steps acknowledged in the next `span`; an error when there are none.
    pub(crate) async fn clean_run(&mut self, span: Duration) -> Result<u64> {
        let before = self.acknowledged();
        tokio::time::sleep(span).await;
        match self.acknowledged() - before {
            0 => bail!("nothing was answered in {span:?}\n{}", self.logs()),
            steps => Ok(steps),
        }
    }

    /// How often each node was started.
    pub(crate) fn starts(&self) -> Vec<u32> {
        let nodes = 0..self.cluster.size();
        nodes.map(|nth| self.cluster.starts(nth)).collect()
    }

    /// Something of one node's view of the cluster, as text.
    pub(crate) async fn field_of(&self, nth: usize, field: &str) -> Result<String> {
        let client = self.cluster.client();
        let cluster = client.get(&self.cluster.url(nth), "/v1/cluster").await?;
        let text = cluster[field].as_str();
        Ok(text
            .with_context(|| format!("no {field} in {cluster}"))?
            .to_owned())
    }

    /// The judgement: every acknowledged step is there exactly once, no caller was refused, and no
    /// process and no folder is left.
    pub(crate) async fn end(mut self) -> Result<Ledger> {
        if let Some(callers) = self.callers.take() {
            self.ledger.merge(callers.finish().await);
        }
        let urls = self.cluster.urls();
        let verdict = self.ledger.judge(self.cluster.client(), &urls).await?;
        if !verdict.wrong.is_empty() || verdict.acknowledged != verdict.found {
            bail!(
                "{} acknowledged, {} found: {}\n{}",
                verdict.acknowledged,
                verdict.found,
                verdict.wrong.join("\n"),
                self.logs()
            );
        }
        let left = self.cluster.shut_down(Duration::from_secs(30)).await?;
        if !left.is_empty() {
            bail!("processes are left: {left:?}\n{}", self.logs());
        }
        let folder = self.cluster.dir().to_owned();
        drop(self.cluster);
        if folder.exists() && std::env::var_os("UNDERSTUDY_KEEP").is_none() {
            bail!("{} is left", folder.display());
        }
        Ok(self.ledger)
    }
}

/// Counters of a test: several in each node's shards.
pub(crate) const COUNTERS: usize = 120;

/// Callers at once.
const CALLERS: usize = 4;

/// How long a cluster may take to be whole again.
const WHOLE: Duration = Duration::from_secs(60);
