//! The demo's browser session: somebody shops, the session's node is killed, and the shopping goes on.
//!
//! Owns: the visit, its pictures and what it must look like. Everything that is compared is what a page of
//! a real browser shows.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use understudy_tests::cdp::CdpClient;
use understudy_tests::cluster::Cluster;
use understudy_tests::process;
use understudy_tests::shop::{Shop, expected, go_shopping, look};

/// A visit that goes on.
pub(super) struct Visit {
    shop: Shop,
    folder: PathBuf,
}

/// What every node's configuration says of it: the shop is on this machine, which pages may not reach
/// unless they are let.
pub(super) fn config(shop: &Shop) -> String {
    format!("[browser]\negress_allow = [\"{}\"]\n", shop.host())
}

impl Visit {
    /// Opens the session and goes shopping, through node a.
    pub(super) async fn begin(cluster: &Cluster, shop: Shop) -> Result<Visit> {
        let open = json!({ "id": SESSION, "url": shop.url("/") });
        let client = cluster.client();
        client.post(&cluster.url(0), "/v1/sessions", &open).await?;
        let mut visitor = connect(cluster, 0).await?;
        go_shopping(&mut visitor, &shop).await?;
        let folder = std::env::current_dir()?.join("target").join("demo");
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(Visit { shop, folder })
    }

    /// Kills the session's node, and looks for the session at another.
    pub(super) async fn strike(&mut self, cluster: &mut Cluster) -> Result<Value> {
        let expected = expected(&self.shop);
        let shown = cluster.client().get(&cluster.url(0), PATH).await?;
        let name = shown["node"].as_str().context("no node")?;
        let mut nodes = 0..cluster.size();
        let victim = nodes.find(|nth| cluster.name(*nth) == name);
        let victim = victim.with_context(|| format!("no node {name}"))?;
        let mut visitor = connect(cluster, victim).await?;
        let seen = look(&mut visitor).await?;
        ensure!(
            seen == expected,
            "before the fault it is {seen}, not {expected}"
        );
        let before = self.picture(&mut visitor, "before").await?;
        let at = cluster.kill(victim)?;
        let other = (victim + 1) % cluster.size();
        let mut seen = Err(anyhow::anyhow!("nobody has looked"));
        while at.elapsed() < BACK_LIMIT {
            seen = async {
                let mut visitor = connect(cluster, other).await?;
                Ok::<_, anyhow::Error>((look(&mut visitor).await?, visitor))
            }
            .await;
            if seen.as_ref().is_ok_and(|(seen, _)| *seen == expected) {
                break;
            }
            tokio::time::sleep(AGAIN).await;
        }
        let took = at.elapsed();
        let (seen, mut visitor) = seen?;
        if seen != expected {
            bail!("after {took:?} the session is {seen}, not {expected}");
        }
        let after = self.picture(&mut visitor, "after").await?;
        let shown = cluster.client().get(&cluster.url(other), PATH).await?;
        cluster.spawn(victim)?;
        Ok(json!({
            "fault": "SIGKILL of the session's node",
            "node": cluster.name(victim),
            "now_on": shown["node"],
            "restored": true,
            "failover_ms": super::millis(took),
            "before": before,
            "after": after,
        }))
    }

    async fn picture(&self, visitor: &mut CdpClient, name: &str) -> Result<String> {
        let (target, _) = visitor
            .pages()
            .await?
            .into_iter()
            .next()
            .context("no page")?;
        let page = visitor.attach(&target).await?;
        let png = visitor.screenshot(&page).await?;
        let file = self.folder.join(format!("session-{name}.png"));
        std::fs::write(&file, png).with_context(|| file.display().to_string())?;
        Ok(file.display().to_string())
    }

    /// After all faults: it is still there, and nothing was ordered that the visitor did not order.
    pub(super) async fn finish(self, cluster: &Cluster, mut told: Value) -> Result<Value> {
        let expected = expected(&self.shop);
        let began = Instant::now();
        loop {
            let seen = async {
                let mut visitor = connect(cluster, 0).await?;
                look(&mut visitor).await
            };
            match seen.await {
                Ok(seen) if seen == expected => break,
                _ if began.elapsed() < BACK_LIMIT => tokio::time::sleep(AGAIN).await,
                seen => bail!("in the end the session is {seen:?}, not {expected}"),
            }
        }
        ensure!(
            self.shop.orders() == 0,
            "a restored page has ordered something"
        );
        told["orders"] = self.shop.orders().into();
        told["pages_asked_for"] = self.shop.pages().into();
        Ok(told)
    }
}

/// A row beside those of the counters.
pub(super) fn line(told: &Value) -> String {
    format!(
        "{:<30} node {}  1 session       first answer {:>6.0} ms, restored on node {}",
        told["fault"].as_str().unwrap_or_default(),
        told["node"].as_str().unwrap_or_default(),
        told["failover_ms"].as_f64().unwrap_or_default(),
        told["now_on"].as_str().unwrap_or_default(),
    )
}

/// Browsers of these nodes that still run.
pub(super) fn browsers_left(nodes: &[String]) -> Vec<(u32, String)> {
    let left = nodes
        .iter()
        .flat_map(|node| process::naming(&format!("understudy-browsers-{node}")));
    left.collect()
}

async fn connect(cluster: &Cluster, nth: usize) -> Result<CdpClient> {
    let host = cluster.url(nth).replacen("http", "ws", 1);
    CdpClient::connect(&format!("{host}{PATH}/cdp"), cluster.token()).await
}

const SESSION: &str = "shop";
const PATH: &str = "/v1/sessions/shop";

/// How long the session may take to be back.
const BACK_LIMIT: Duration = Duration::from_secs(30);

/// Between two looks.
const AGAIN: Duration = Duration::from_millis(50);
