//! Browser sessions on real nodes: killed with their browser, with their node, and found again at the same
//! path.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use understudy_tests::cdp::CdpClient;
use understudy_tests::cluster::{Cluster, Options};
use understudy_tests::shop::{Shop, expected, go_shopping, look};

use crate::exe;

/// A cluster whose pages may reach the shop.
async fn cluster(shop: &Shop) -> Result<Cluster> {
    let config = format!("[browser]\negress_allow = [\"{}\"]\n", shop.host());
    let options = Options {
        config,
        ..Options::default()
    };
    Cluster::start(exe(), options).await
}

/// The path of a session's clients, at one node.
fn address(cluster: &Cluster, nth: usize, session: &str) -> String {
    let host = cluster.url(nth).replacen("http", "ws", 1);
    format!("{host}/v1/sessions/{session}/cdp")
}

async fn connect(cluster: &Cluster, nth: usize, session: &str) -> Result<CdpClient> {
    CdpClient::connect(&address(cluster, nth, session), cluster.token()).await
}

/// Which node runs the session.
async fn runs_on(cluster: &Cluster, asked: usize, session: &str) -> Result<usize> {
    let path = format!("/v1/sessions/{session}");
    let shown = cluster.client().get(&cluster.url(asked), &path).await?;
    let name = shown["node"].as_str().context("no node")?.to_owned();
    let mut nodes = 0..cluster.size();
    nodes
        .find(|nth| cluster.name(*nth) == name)
        .with_context(|| format!("no node {name}"))
}

/// A session that is what it should be, within `bound` of now.
async fn comes_back(
    cluster: &Cluster,
    nth: usize,
    session: &str,
    expected: &Value,
    bound: Duration,
) -> Result<Duration> {
    let began = Instant::now();
    loop {
        let seen = async {
            let mut client = connect(cluster, nth, session).await?;
            look(&mut client).await
        };
        let seen = seen.await;
        if seen.as_ref().is_ok_and(|seen| seen == expected) {
            return Ok(began.elapsed());
        }
        if began.elapsed() > bound {
            bail!(
                "not back after {bound:?}: {seen:?}, expected {expected}\n{}",
                cluster.log(nth)
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_outlives_its_browser_and_its_node_at_the_same_path() -> Result<()> {
    let shop = Shop::open().await?;
    let mut cluster = cluster(&shop).await?;
    let open = json!({ "id": "shop", "url": shop.url("/") });
    let client = cluster.client().clone();
    let opened = client.post(&cluster.url(0), "/v1/sessions", &open).await?;
    ensure!(opened["id"] == json!("shop"), "{opened}");
    let mut visitor = connect(&cluster, 1, "shop").await?;
    go_shopping(&mut visitor, &shop).await?;
    let expected = expected(&shop);
    let seen = look(&mut visitor).await?;
    ensure!(seen == expected, "{seen}");
    // A browser loses what came less than its interval ago, and says so.
    tokio::time::sleep(SETTLED).await;

    // The browser dies.
    let about = client.get(&cluster.url(0), "/v1/sessions/shop").await?;
    let pid = about["pid"].as_u64().context("no pid")?;
    understudy_tests::process::signal(u32::try_from(pid)?, rustix::process::Signal::KILL)?;
    let closed = visitor.closed(Duration::from_secs(10)).await?;
    ensure!(closed.code == Some(1012), "{closed:?}");
    let took = comes_back(&cluster, 1, "shop", &expected, BACK).await?;
    println!("kill -9 of the browser: back after {took:?}");
    tokio::time::sleep(SETTLED).await;

    // Its node dies: the same path serves it at every other.
    let victim = runs_on(&cluster, 0, "shop").await?;
    cluster.kill(victim)?;
    let others: Vec<usize> = (0..cluster.size()).filter(|nth| *nth != victim).collect();
    let took = comes_back(&cluster, others[0], "shop", &expected, BACK).await?;
    println!("kill -9 of the node: back after {took:?}");
    comes_back(&cluster, others[1], "shop", &expected, BACK).await?;
    ensure!(shop.orders() == 0, "a restored page has ordered something");

    cluster.spawn(victim)?;
    cluster.wait_whole(Duration::from_secs(60)).await?;
    client
        .delete(&cluster.url(others[0]), "/v1/sessions/shop")
        .await?;
    let gone = client
        .get(&cluster.url(others[0]), "/v1/sessions/shop")
        .await;
    ensure!(gone.is_err(), "{gone:?}");
    let left = cluster.shut_down(Duration::from_secs(30)).await?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

/// Longer than a change takes to be in a record on every replica.
const SETTLED: Duration = Duration::from_secs(2);

/// How long a session may take to be back: a lease, a browser's start, and a page's load.
const BACK: Duration = Duration::from_secs(30);
