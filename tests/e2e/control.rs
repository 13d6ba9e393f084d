//! The control plane between real nodes: what their agents do for each other.
//!
//! Owns: one test a promise. What an agent did is seen in the events of its node; that the directory
//! would have done as well is why the plane may be lost at any time.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use understudy_protocol::journal::replay;
use understudy_tests::cluster::{Cluster, Options, items};
use understudy_tests::http::Called;

use crate::exe;

#[tokio::test(flavor = "multi_thread")]
async fn every_node_knows_why_a_child_failed_on_one() -> Result<()> {
    let options = Options {
        testing_kinds: true,
        ..Options::default()
    };
    let mut cluster = Cluster::start(exe(), options).await?;
    let (a, b, c) = (0, 1, 2);
    let faulty = "@demo/testing-faulty/1";
    until_agents_are_linked(&cluster, b).await?;

    // It is the node itself that is asked to run it.
    let body = json!({ "child": faulty, "restart": "permanent", "node": cluster.name(b) });
    let client = cluster.client().clone();
    let unit = client.post(&cluster.url(a), "/v1/units", &body).await?;
    assert_eq!(unit["owner"], json!(cluster.name(b)), "{unit}");
    assert_eq!(unit["serving"], json!(true), "{unit}");
    let asked = |event: &Value| says(event, "agent_asked", &format!("asked to run {faulty}"));
    until_told(&cluster, b, asked).await?;
    // The same again is done already.
    client.post(&cluster.url(c), "/v1/units", &body).await?;

    let limit = Duration::from_secs(5);
    let called = client
        .call(&cluster.url(c), faulty, Some("once"), "panic", limit)
        .await;
    assert!(!matches!(called, Called::Answered(_)), "{called:?}");
    for nth in [a, b, c] {
        let why = |event: &Value| {
            let text = format!("{faulty} failed");
            says(event, "child_ended", &text)
                && event["text"].to_string().contains("it was asked to")
                && event["node"] == json!("b")
                && event["unit"] == unit["id"]
        };
        until_told(&cluster, nth, why).await?;
    }
    end(&mut cluster).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_drains_itself_when_asked_and_can_be_asked_again_after_a_kill() -> Result<()> {
    let mut cluster = Cluster::start(exe(), Options::default()).await?;
    let (a, b) = (0, 1);
    until_agents_are_linked(&cluster, b).await?;

    cluster.kill(b)?;
    cluster.spawn(b)?;
    cluster.wait_whole(WHOLE).await?;
    // Its events begin anew with it, so whatever they tell is of this start.
    until_agents_are_linked(&cluster, b).await?;

    let client = cluster.client().clone();
    let path = format!("/v1/nodes/{}/drain?wait=30s", cluster.name(b));
    client.post(&cluster.url(a), &path, &Value::Null).await?;
    let owners = cluster.owners(&cluster.url(a)).await?;
    assert!(!owners.contains_key(cluster.name(b)), "it owns units still");
    undrain(&cluster, a, b)?;
    end(&mut cluster).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_node_holds_up_who_asks_it_for_no_longer_than_the_deadline() -> Result<()> {
    let mut cluster = Cluster::start(exe(), Options::default()).await?;
    let leader = cluster.leader().await?;
    let victim = (leader + 1) % 3;
    let asker = (leader + 2) % 3;
    until_agents_are_linked(&cluster, victim).await?;

    cluster.pause(victim)?;
    let began = Instant::now();
    let path = format!("/v1/nodes/{}/drain", cluster.name(victim));
    let client = cluster.client().clone();
    client
        .post(&cluster.url(asker), &path, &Value::Null)
        .await?;
    let took = began.elapsed();
    let log = cluster.log(asker);
    assert!(log.contains("has not answered within"), "{log}");
    assert!(took < Duration::from_secs(8), "it took {took:?}");
    cluster.resume(victim)?;
    undrain(&cluster, leader, victim)?;
    end(&mut cluster).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_every_machine_did_comes_out_again_from_its_event_log() -> Result<()> {
    let options = Options {
        config: "[log]\nevents = \"on\"\n".into(),
        ..Options::default()
    };
    let mut cluster = Cluster::start(exe(), options).await?;
    let (client, limit) = (cluster.client().clone(), Duration::from_secs(10));
    let urls = cluster.urls();
    let count = async |key: &str| {
        for nth in 0..30 {
            let child = format!("demo/counter/{nth}");
            let called = client.call(&urls[nth % 3], &child, Some(key), "add 1", limit);
            assert!(matches!(called.await, Called::Answered(_)));
        }
    };
    count("before").await;
    let victim = cluster.leader().await?;
    cluster.kill(victim)?;
    cluster.spawn(victim)?;
    cluster.wait_whole(WHOLE).await?;
    count("after").await;
    end(&mut cluster).await?;

    let machines = [
        "agent",
        "caller",
        "controller",
        "holder",
        "replica",
        "voter",
    ];
    for nth in 0..cluster.size() {
        let folder = cluster.data_dir(nth).join("events");
        for machine in machines {
            let mut starts = vec![format!("{machine}.log")];
            if nth == victim {
                // The kill ended this one in the middle of whatever it was at.
                starts.push(format!("{machine}.previous.log"));
            }
            for name in starts {
                let file = folder.join(name);
                let log = std::fs::read(&file).with_context(|| file.display().to_string())?;
                let replayed = replay(&log, &mut |_| {});
                let replayed = replayed.with_context(|| file.display().to_string())?;
                assert!(replayed.events > 10, "{}: {replayed:?}", file.display());
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn children_are_listed_wherever_they_are_and_a_silent_node_is_named() -> Result<()> {
    let mut cluster = Cluster::start(exe(), Options::default()).await?;
    let (client, limit) = (cluster.client().clone(), Duration::from_secs(10));
    let url = cluster.url(0);
    let mut wanted = Vec::new();
    for nth in 0..30 {
        let child = format!("demo/counter/{nth:02}");
        let called = client.call(&url, &child, None, "add 1", limit);
        assert!(matches!(called.await, Called::Answered(_)));
        wanted.push(child);
    }
    // One that was only asked has no records, and is no more than a name.
    let called = client.call(&url, "demo/counter/none", None, "get", limit);
    assert!(matches!(called.await, Called::Answered(_)));
    let (leader, third) = (cluster.leader().await?, cluster.size() - 1);
    cluster.give(third, 10).await?;

    let mut listed = Vec::new();
    let mut path = "/v1/children?kind=counter&limit=7".to_owned();
    loop {
        let page = client.get(&cluster.url(0), &path).await?;
        listed.extend(items(&page).map(|child| child["id"].as_str().unwrap().to_owned()));
        match page["next"].as_str() {
            Some(next) => path = format!("/v1/children?kind=counter&limit=7&after={next}"),
            None => break,
        }
    }
    assert_eq!(listed, wanted);
    let printed = cli(&cluster, third, &["child", "list", "--tenant", "demo"])?;
    assert!(
        wanted.iter().all(|child| printed.contains(child)),
        "{printed}"
    );
    let other = client
        .get(&cluster.url(0), "/v1/children?tenant=nobody")
        .await?;
    assert_eq!(items(&other).count(), 0);

    let stopped = (leader + 1) % 3;
    cluster.pause(stopped)?;
    let page = client.get(&cluster.url(leader), "/v1/children").await?;
    assert_eq!(page["silent"], json!([cluster.name(stopped)]), "{page}");
    cluster.resume(stopped)?;
    cluster.wait_whole(WHOLE).await?;
    end(&mut cluster).await
}

/// Every other node can ask this one: each does, and its events show it. A drain is asked for and
/// taken back; until there is a link, the directory does it, and nothing shows.
async fn until_agents_are_linked(cluster: &Cluster, nth: usize) -> Result<()> {
    let others = (0..cluster.size()).filter(|other| *other != nth);
    for other in others {
        let began = Instant::now();
        let before = count_asked(cluster, nth)?;
        loop {
            let path = format!("/v1/nodes/{}/drain", cluster.name(nth));
            let client = cluster.client();
            client
                .post(&cluster.url(other), &path, &Value::Null)
                .await?;
            undrain(cluster, other, nth)?;
            if count_asked(cluster, nth)? >= before + 2 {
                break;
            }
            if began.elapsed() > LINKED {
                bail!("never linked\n{}\n{}", cluster.log(other), cluster.log(nth));
            }
        }
    }
    Ok(())
}

fn count_asked(cluster: &Cluster, nth: usize) -> Result<usize> {
    let events = events(cluster, nth)?;
    let asked = events
        .iter()
        .filter(|event| event["type"] == json!("agent_asked"));
    Ok(asked.count())
}

async fn until_told(cluster: &Cluster, nth: usize, wanted: impl Fn(&Value) -> bool) -> Result<()> {
    let began = Instant::now();
    loop {
        let events = events(cluster, nth)?;
        if events.iter().any(&wanted) {
            return Ok(());
        }
        if began.elapsed() > TOLD {
            bail!("{} was told {events:#?}", cluster.name(nth));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn says(event: &Value, kind: &str, text: &str) -> bool {
    event["type"] == json!(kind) && event["text"].to_string().contains(text)
}

/// What the node remembers.
fn events(cluster: &Cluster, nth: usize) -> Result<Vec<Value>> {
    let printed = cli(cluster, nth, &["events", "--json"])?;
    let lines = printed.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}

fn undrain(cluster: &Cluster, at: usize, nth: usize) -> Result<()> {
    let name = cluster.name(nth).to_owned();
    cli(cluster, at, &["node", "drain", "--undo", &name]).map(drop)
}

fn cli(cluster: &Cluster, nth: usize, args: &[&str]) -> Result<String> {
    let output = Command::new(cluster.exe())
        .args(["--server", &cluster.url(nth), "--token", cluster.token()])
        .args(args)
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        bail!("{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

async fn end(cluster: &mut Cluster) -> Result<()> {
    let left = cluster.shut_down(Duration::from_secs(30)).await?;
    assert!(left.is_empty(), "processes are left: {left:?}");
    Ok(())
}

/// How long a cluster may take to be whole again.
const WHOLE: Duration = Duration::from_secs(60);

/// How long agents may take to find each other, on a busy machine.
const LINKED: Duration = Duration::from_secs(30);

/// How long a word may take to be everywhere.
const TOLD: Duration = Duration::from_secs(20);
