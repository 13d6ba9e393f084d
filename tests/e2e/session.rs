//! Browser sessions on real nodes: killed with their browser, with their node, and found again at the same
//! path.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout};
use understudy_tests::cdp::CdpClient;
use understudy_tests::clients::{SCRIPT_LIMIT, Scripts};
use understudy_tests::cluster::{Cluster, Options, items};
use understudy_tests::process::{naming, signal};
use understudy_tests::shop::{Shop, expected, go_shopping, look};
use understudy_tests::{http, pages};

use crate::exe;

/// A cluster whose pages may reach this host.
async fn cluster(host: &str) -> Result<Cluster> {
    let config = format!("[browser]\negress_allow = [\"{host}\"]\n");
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

/// SIGKILL of the session's browser.
async fn kill_browser(cluster: &Cluster, asked: usize, session: &str) -> Result<()> {
    let path = format!("/v1/sessions/{session}");
    let shown = cluster.client().get(&cluster.url(asked), &path).await?;
    let pid = shown["pid"].as_u64().context("no pid")?;
    signal(u32::try_from(pid)?, Signal::KILL)
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
    let mut cluster = cluster(&shop.host()).await?;
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
    kill_browser(&cluster, 0, "shop").await?;
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

#[tokio::test(flavor = "multi_thread")]
async fn unmodified_playwright_and_puppeteer_use_a_session_before_and_after_its_node_died()
-> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/clients");
    let scripts = match Scripts::install(&folder).await {
        Ok(scripts) => scripts,
        Err(why) => {
            println!("SKIPPED: the clients cannot be installed by npm: {why}");
            eprintln!("SKIPPED: the clients cannot be installed by npm: {why}");
            return Ok(());
        }
    };
    let (pages, _served) = pages::open().await?;
    let host = pages.trim_start_matches("http://").to_owned();
    let mut cluster = cluster(&host).await?;
    for (script, session) in [
        ("playwright.cjs", "playwright"),
        ("puppeteer.cjs", "puppeteer"),
    ] {
        let visitor = Visitor {
            scripts: &scripts,
            script,
            session,
            pages: &pages,
        };
        visitor.lives_through(&mut cluster).await?;
        cluster.wait_whole(WHOLE).await?;
    }
    let left = cluster.shut_down(Duration::from_secs(30)).await?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

/// A client's script, and its session.
struct Visitor<'a> {
    scripts: &'a Scripts,
    script: &'a str,
    session: &'a str,
    pages: &'a str,
}

/// A script that waits for the end of its browser.
struct Waiting {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Visitor<'_> {
    async fn lives_through(&self, cluster: &mut Cluster) -> Result<()> {
        let (client, id) = (cluster.client().clone(), self.session);
        client
            .post(&cluster.url(0), "/v1/sessions", &json!({ "id": id }))
            .await?;
        self.run("work", &self.socket(cluster, 0)).await?;
        // Any node serves it, and says where to those who ask first.
        for at in self.asked(cluster, 1) {
            self.run("rejoin", &at).await?;
        }
        self.run("rejoin", &self.socket(cluster, 2)).await?;
        tokio::time::sleep(SETTLED).await;

        let waiting = self.wait_for_its_end(&self.socket(cluster, 1)).await?;
        kill_browser(cluster, 0, id).await?;
        let killed = Instant::now();
        waiting.saw_it().await?;
        println!(
            "{}: kill -9 of its browser: seen after {:?}",
            self.script,
            killed.elapsed()
        );
        self.run("rejoin", &self.socket(cluster, 1)).await?;
        tokio::time::sleep(SETTLED).await;

        let victim = runs_on(cluster, 0, id).await?;
        let others: Vec<usize> = (0..cluster.size()).filter(|nth| *nth != victim).collect();
        let waiting = self
            .wait_for_its_end(&self.socket(cluster, others[0]))
            .await?;
        let killed = cluster.kill(victim)?;
        waiting.saw_it().await?;
        let seen = killed.elapsed();
        ensure!(
            seen < SEEN,
            "{} heard of its node's end after {seen:?}",
            self.script
        );
        self.run("rejoin", &self.socket(cluster, others[0])).await?;
        let back = killed.elapsed();
        println!(
            "{}: kill -9 of its node: seen after {seen:?}, back after {back:?}",
            self.script
        );
        ensure!(runs_on(cluster, others[0], id).await? != victim);
        cluster.spawn(victim)?;
        cluster.wait_whole(WHOLE).await?;
        // At the node that it died with, too.
        self.run("rejoin", &self.socket(cluster, victim)).await?;
        self.run("close", &self.socket(cluster, others[1])).await?;
        for _ in 0..100 {
            let listed = client.get(&cluster.url(0), "/v1/sessions").await?;
            if !items(&listed).any(|listed| listed["id"] == json!(id)) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("{id} was closed and is still there")
    }

    fn socket(&self, cluster: &Cluster, nth: usize) -> String {
        let address = address(cluster, nth, self.session);
        format!("{address}?token={}", cluster.token())
    }

    /// Addresses that are asked for the session's. Puppeteer asks at the root, and without a parameter.
    fn asked(&self, cluster: &Cluster, nth: usize) -> Vec<String> {
        let (url, token, id) = (cluster.url(nth), cluster.token(), self.session);
        match self.script {
            "playwright.cjs" => vec![
                format!("{url}/?session={id}&token={token}"),
                format!("{url}/v1/sessions/{id}?token={token}"),
            ],
            _ => Vec::new(),
        }
    }

    async fn run(&self, phase: &str, at: &str) -> Result<()> {
        let began = Instant::now();
        self.scripts.run(self.script, phase, at, self.pages).await?;
        println!("{} {phase}: {:?}", self.script, began.elapsed());
        Ok(())
    }

    async fn wait_for_its_end(&self, at: &str) -> Result<Waiting> {
        let mut child = self
            .scripts
            .command(self.script, "killed", at, self.pages)
            .spawn()?;
        let mut waiting = Waiting {
            stdout: BufReader::new(child.stdout.take().context("no output")?),
            child,
        };
        let ready = async {
            let mut line = String::new();
            while waiting.stdout.read_line(&mut line).await? > 0 {
                if line.trim_end() == "ready" {
                    return Ok(());
                }
                line.clear();
            }
            bail!(
                "{} ended before it was ready: {}",
                self.script,
                errors(&mut waiting.child).await
            )
        };
        tokio::time::timeout(SCRIPT_LIMIT, ready).await??;
        Ok(waiting)
    }
}

impl Waiting {
    async fn saw_it(mut self) -> Result<()> {
        let mut rest = String::new();
        let read = self.stdout.read_to_string(&mut rest);
        tokio::time::timeout(SCRIPT_LIMIT, read).await??;
        if !rest.ends_with("done\n") {
            bail!("{rest}{}", errors(&mut self.child).await);
        }
        Ok(())
    }
}

async fn errors(child: &mut Child) -> String {
    let mut errors = String::new();
    if let Some(stderr) = &mut child.stderr {
        // What could be read is shown.
        let _ = stderr.read_to_string(&mut errors).await;
    }
    errors
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_found_with_its_token_alone_and_a_fresh_one_goes_with_its_client() -> Result<()>
{
    let shop = Shop::open().await?;
    let mut cluster = cluster(&shop.host()).await?;
    let (client, url, token) = (
        cluster.client().clone(),
        cluster.url(0),
        cluster.token().to_owned(),
    );
    client
        .post(&url, "/v1/sessions", &json!({ "id": "shop" }))
        .await?;
    // What is refused leaves no session behind.
    let bad = json!({ "id": "bad", "url": "file:///etc/passwd" });
    let refused = client.post(&url, "/v1/sessions", &bad).await;
    let refused = refused.err().context("a file was opened")?;
    ensure!(format!("{refused:#}").contains("400"), "{refused:#}");
    let listed = client.get(&url, "/v1/sessions").await?;
    ensure!(!listed.to_string().contains("\"bad\""), "{listed}");
    let stranger = http::Client::new("us_wrong")?;
    for path in [
        "/json/version?session=shop".to_owned(),
        "/json/version/?session=shop".to_owned(),
        "/json/version/".to_owned(),
        "/v1/sessions/shop/json/version/".to_owned(),
    ] {
        let sign = if path.contains('?') { '&' } else { '?' };
        let said = client
            .get(&url, &format!("{path}{sign}token={token}"))
            .await?;
        let given = said["webSocketDebuggerUrl"]
            .as_str()
            .context("no address")?;
        ensure!(
            given.starts_with("ws://") && given.ends_with(&format!("token={token}")),
            "{said}"
        );
        let refused = stranger
            .get(&url, &path)
            .await
            .err()
            .context(path.clone())?;
        ensure!(
            format!("{refused:#}").contains("401"),
            "{path}: {refused:#}"
        );
    }
    let missing = client.get(&url, "/json/version/?session=nobody").await;
    ensure!(missing.is_err(), "{missing:?}");
    for path in ["/v1/cdp", "/v1/sessions/shop/cdp"] {
        let address = format!("{}{path}", url.replacen("http", "ws", 1));
        let refused = CdpClient::connect(&address, "us_wrong").await.err();
        let refused = format!("{:#}", refused.context("a stranger came in")?);
        ensure!(refused.contains("401"), "{path}: {refused}");
    }

    let address = format!("{}/v1/cdp", url.replacen("http", "ws", 1));
    let mut fresh = CdpClient::connect(&address, &token).await?;
    let (target, _) = fresh.pages().await?.into_iter().next().context("no page")?;
    let page = fresh.attach(&target).await?;
    // Longer than a lease, in which nothing else happens: the node may act all the same.
    tokio::time::sleep(Duration::from_secs(5)).await;
    fresh.goto(&page, &shop.url("/")).await?;
    let greeting = fresh.evaluate(&page, "document.title").await?;
    ensure!(greeting == json!("Props and costumes"), "{greeting}");
    let count = async || -> Result<usize> {
        let listed = client.get(&url, "/v1/sessions").await?;
        Ok(items(&listed).count())
    };
    ensure!(count().await? == 2);
    drop(fresh);
    let left = Instant::now();
    while count().await? > 1 {
        ensure!(
            left.elapsed() < Duration::from_secs(10),
            "it outlives its client"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    client.get(&url, "/v1/sessions/shop").await?;
    let left = cluster.shut_down(Duration::from_secs(30)).await?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_chromium_and_no_profile_is_left_after_a_node_was_killed_again_and_again() -> Result<()>
{
    let kills = if std::env::var_os("UNDERSTUDY_LONG").is_some() {
        50
    } else {
        10
    };
    let shop = Shop::open().await?;
    let mut cluster = cluster(&shop.host()).await?;
    let client = cluster.client().clone();
    let open = json!({ "id": "shop", "url": shop.url("/") });
    client.post(&cluster.url(0), "/v1/sessions", &open).await?;
    let mut visitor = connect(&cluster, 0, "shop").await?;
    go_shopping(&mut visitor, &shop).await?;
    let expected = expected(&shop);
    tokio::time::sleep(SETTLED).await;
    drop(visitor);
    let (mut slowest_end, mut slowest_back) = (Duration::ZERO, Duration::ZERO);
    for nth in 0..kills {
        let victim = runs_on(&cluster, nth % 3, "shop").await?;
        let folder = profiles(&cluster, victim).await?;
        ensure!(
            !left_in(&folder).is_empty(),
            "{} holds no profile",
            folder.display()
        );
        ensure!(
            !naming(&folder.to_string_lossy()).is_empty(),
            "no browser of {}",
            folder.display()
        );
        cluster.kill(victim)?;
        let killed = Instant::now();
        loop {
            let (processes, files) = (naming(&folder.to_string_lossy()), left_in(&folder));
            if processes.is_empty() && files.is_empty() {
                break;
            }
            ensure!(
                killed.elapsed() < GONE,
                "kill {nth}: left are {processes:?} and {files:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        slowest_end = slowest_end.max(killed.elapsed());
        let other = (victim + 1) % cluster.size();
        comes_back(&cluster, other, "shop", &expected, BACK).await?;
        slowest_back = slowest_back.max(killed.elapsed());
        cluster.spawn(victim)?;
        cluster.wait_whole(WHOLE).await?;
        // Whoever was at work in three processes that died soon after each other is taken for poisonous;
        // a while of clean running clears that.
        let units = client.get(&cluster.url(victim), "/v1/units").await?;
        if items(&units).any(|unit| unit["strikes"].as_u64() >= Some(2)) {
            tokio::time::sleep(CLEAN).await;
        }
    }
    ensure!(shop.orders() == 0, "a restored page has ordered something");
    println!(
        "{kills} kills: browser and profile gone after {slowest_end:?}, the session back after {slowest_back:?} at most"
    );
    let left = cluster.shut_down(Duration::from_secs(30)).await?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

/// Where a node has the profiles of its browsers.
async fn profiles(cluster: &Cluster, nth: usize) -> Result<PathBuf> {
    let nodes = cluster.client().get(&cluster.url(nth), "/v1/nodes").await?;
    let node = items(&nodes).find(|node| node["name"] == json!(cluster.name(nth)));
    let id = node
        .and_then(|node| node["id"].as_str())
        .context("no id")?
        .to_owned();
    Ok(std::env::temp_dir().join(format!("understudy-browsers-{id}")))
}

fn left_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect()
}

/// Longer than a change takes to be in a record on every replica.
const SETTLED: Duration = Duration::from_secs(2);

/// How long a session may take to be back: a lease, a browser's start, and a page's load.
const BACK: Duration = Duration::from_secs(30);

/// How long a browser may outlive its node, and its profile.
const GONE: Duration = Duration::from_secs(5);

/// How long a client may be left waiting by a node that is gone: less than its silence takes to be noticed.
const SEEN: Duration = Duration::from_secs(4);

/// How long the cluster may take to be whole again.
const WHOLE: Duration = Duration::from_secs(60);

/// Clean running that clears strikes.
const CLEAN: Duration = Duration::from_secs(11);
