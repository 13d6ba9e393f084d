//! Bad input from outside: configurations, requests, certificates, frames, datagrams.
//!
//! Owns: what a node says to each kind. All of it is thrown at one cluster with callers at work, whose
//! nodes stay up, keep their leases and go on.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use quinn::{Connection, ConnectionError};
use understudy_protocol::id::{IncarnationId, NodeId};
use understudy_protocol::wire::heart::DeathNote;
use understudy_tests::cluster::{Cluster, Options};
use understudy_tests::stranger::{self, Role, Stranger};
use understudy_transport::heart::plain_note;
use understudy_transport::identity::Identity;

use crate::exe;
use crate::story::Story;
use crate::table::{bound, say};

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_should_not_be_or_babble_are_refused_by_name() -> Result<()> {
    let fault = "a peer that should not be one, or babbles";
    let mut story = Story::begin(Options::default()).await?;
    let starts = story.starts();
    let mut checks = 0;
    for victim in [
        story.cluster.leader().await?,
        story.cluster.owner_of_most().await?,
    ] {
        let outsider = Outsider::of(&story.cluster, victim)?;
        outsider.a_foreign_certificate("test").await?;
        outsider.a_foreign_certificate("other").await?;
        outsider.a_greeting_that_is_none().await?;
        outsider.a_greeting_of_another_node().await?;
        outsider.garbage_datagrams()?;
        outsider.a_forged_death_note(&story).await?;
        outsider.a_member_that_babbles().await?;
        if !story.goes_on(bound(fault)).await {
            bail!("callers stand still\n{}", story.logs());
        }
        checks += 7;
    }
    for nth in 0..story.cluster.size() {
        assert!(story.cluster.runs(nth), "{}", story.cluster.log(nth));
    }
    assert_eq!(story.starts(), starts, "{}", story.logs());
    let events = story.cluster.client().events(&story.cluster.url(0)).await?;
    let ended = |(kind, _): &&(String, String)| kind == "node_died" || kind == "node_expelled";
    assert_eq!(events.iter().find(ended), None);
    story.whole().await?;
    let ledger = story.end().await?;
    say(
        fault,
        format!(
            "{checks} attempts; {} steps meanwhile, the slowest took {:?}",
            ledger.acknowledged, ledger.slowest
        ),
    );
    Ok(())
}

/// Somebody outside of the cluster, and the node that is to suffer.
struct Outsider<'c> {
    cluster: &'c Cluster,
    victim: usize,
    /// What it has: authorities and certificates.
    foreign: tempfile::TempDir,
}

impl Outsider<'_> {
    fn of(cluster: &Cluster, victim: usize) -> Result<Outsider<'_>> {
        let foreign = tempfile::Builder::new().prefix("understudy-").tempdir()?;
        Ok(Outsider {
            cluster,
            victim,
            foreign,
        })
    }

    fn port(&self) -> u16 {
        self.cluster.udp(self.victim)
    }

    /// One with a certificate that the cluster's own authority made.
    fn member(&self, name: &str) -> Result<(Stranger, NodeId)> {
        let ca = self.cluster.dir().join("ca");
        let folder = self.foreign.path().join(name);
        issue(&ca, &folder)?;
        Ok((
            Stranger::new(&folder, &ca)?,
            Identity::load(&folder)?.node(),
        ))
    }

    /// Of an authority that calls its cluster as ours does, and of one that does not.
    async fn a_foreign_certificate(&self, cluster: &str) -> Result<()> {
        let (ca, folder) = (
            self.foreign.path().join(cluster),
            self.foreign.path().join("foreign"),
        );
        make_authority(&ca, cluster)?;
        issue(&ca, &folder)?;
        let stranger = Stranger::new(&folder, &self.cluster.dir().join("ca"))?;
        let connection = stranger.connect(self.port()).await?;
        let why = closed(&connection).await?;
        assert!(matches!(why, ConnectionError::ConnectionClosed(_)), "{why}");
        self.log_says(&["a handshake was refused", &stranger.address()?.to_string()])
            .await
    }

    async fn a_greeting_that_is_none(&self) -> Result<()> {
        let (stranger, _) = self.member("mumbler")?;
        for greeting in [
            vec![0xFF; 64],                          // no such role
            vec![1, 0xFF, 0xFF, 0, 0],               // too long
            [&[1, 0, 40][..], &[0x9F; 40]].concat(), // a list that never ends
        ] {
            let connection = stranger.connect(self.port()).await?;
            let (mut send, _recv) = connection.open_bi().await?;
            let _ = send.write_all(&greeting).await;
            closed(&connection).await?;
        }
        self.log_says(&["a greeting was refused", &stranger.address()?.to_string()])
            .await
    }

    async fn a_greeting_of_another_node(&self) -> Result<()> {
        let (stranger, node) = self.member("impostor")?;
        let other = Identity::load(&self.cluster.identity((self.victim + 1) % 3))?.node();
        let connection = stranger.connect(self.port()).await?;
        let (mut send, _recv) = connection.open_bi().await?;
        let greeting = stranger::greeting(Role::Truth, &stranger::hello(other, "impostor"))?;
        send.write_all(&greeting).await?;
        closed(&connection).await?;
        self.log_says(&[
            "a greeting was refused",
            &other.to_string(),
            &node.to_string(),
        ])
        .await
    }

    /// Whoever threw them is not told, and their number is no news: they are counted, not logged.
    fn garbage_datagrams(&self) -> Result<()> {
        for port in [self.port(), self.port() + 1] {
            // First bytes of every kind: of plain datagrams, of QUIC's long and short headers.
            let datagrams = (0..2_000_u32).map(|nth| {
                let mut bytes = vec![0; 1 + (nth as usize * 37) % 1_400];
                let _ = getrandom::fill(&mut bytes);
                bytes[0] = nth as u8;
                bytes
            });
            stranger::throw(port, datagrams)?;
        }
        Ok(())
    }

    /// A note in the clear ends no life unless it holds what only the warden knew.
    async fn a_forged_death_note(&self, story: &Story) -> Result<()> {
        for nth in 0..self.cluster.size() {
            let text = story.field_of(nth, "incarnation").await?;
            let digits = text.strip_prefix("inc-").context("an incarnation")?;
            let note = DeathNote {
                incarnation: IncarnationId(u64::from_str_radix(digits, 16)?),
                secret: [7; 32],
                at_work: Vec::new(),
            };
            let datagram = plain_note(&note)?;
            let mut cut = datagram.clone();
            cut.truncate(datagram.len() / 2);
            let mut long = datagram.clone();
            long.resize(60_000, 0);
            stranger::throw(self.port() + 1, [datagram, cut, long])?;
        }
        Ok(())
    }

    /// A certificate of the cluster's own, and frames that nobody should send.
    async fn a_member_that_babbles(&self) -> Result<()> {
        let (stranger, node) = self.member("babbler")?;
        let hello = stranger::hello(node, "babbler");
        let truth = stranger.greet(self.port(), Role::Truth, &hello).await?;
        let data = stranger.greet(self.port(), Role::Data, &hello).await?;
        self.log_says(&["peer up", &node.to_string()]).await?;

        // A frame that says it has four gigabytes; then one of another magic; then half of one.
        let endless = [0xF5, 0x55, 1, 1, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0];
        for (lane, bytes) in [(0, &endless[..]), (1, b"GET / HTTP/1.1\r\n\r\n")] {
            let mut send = data.open_uni().await?;
            send.write_all(&[lane]).await?;
            let _ = send.write_all(bytes).await;
            let stopped = tokio::time::timeout(PATIENCE, send.stopped()).await;
            stopped
                .context("the lane was not reset")??
                .context("the lane ended well")?;
            self.log_says(&[
                "a lane was reset",
                &node.to_string(),
                &format!("lane={lane}"),
            ])
            .await?;
        }
        let mut send = data.open_uni().await?;
        send.write_all(&[[2].as_slice(), &endless[..7]].concat())
            .await?;
        send.finish()?;
        // No such lane.
        let mut send = data.open_uni().await?;
        send.write_all(&[200]).await?;
        let stopped = tokio::time::timeout(PATIENCE, send.stopped()).await;
        stopped.context("lane 200 was not refused")??;
        // A frame of a type that only a later version knows is stepped over, and so is what follows.
        let mut later = vec![0xF5, 0x55, 250, 1, 0, 0, 0, 4];
        let sum = checksum_of(&later, b"abcd");
        later.extend_from_slice(&sum.to_be_bytes());
        later.extend_from_slice(b"abcd");
        let mut send = data.open_uni().await?;
        send.write_all(&[3]).await?;
        for _ in 0..100 {
            send.write_all(&later).await?;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        send.write_all(&later)
            .await
            .context("an unknown type reset its lane")?;

        // A request of a kind that nobody serves, one that is too long, and noise for each kind.
        assert_eq!(request(&truth, 200, 0, b"").await?, Some(1), "not served");
        assert_eq!(request(&truth, 1, u32::MAX, b"").await?, None, "taken back");
        for kind in 1..=6 {
            let noise: Vec<u8> = (0..=255).collect();
            // Whatever it says to that, it says something or takes the stream back.
            request(&truth, kind, noise.len() as u32, &noise).await?;
        }
        assert!(data.close_reason().is_none(), "{:?}", data.close_reason());
        assert!(truth.close_reason().is_none(), "{:?}", truth.close_reason());
        truth.close(0_u32.into(), b"");
        data.close(0_u32.into(), b"");
        self.log_says(&["peer down", &node.to_string()]).await
    }

    /// Waits until one line of the victim's log holds all of these.
    async fn log_says(&self, parts: &[&str]) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            let log = self.cluster.whole_log(self.victim);
            if log
                .lines()
                .any(|line| parts.iter().all(|part| line.contains(part)))
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("{parts:?} is not in {}", self.cluster.log(self.victim))
    }
}

/// Why the other side closed the connection.
async fn closed(connection: &Connection) -> Result<ConnectionError> {
    let closed = tokio::time::timeout(PATIENCE, connection.closed());
    closed.await.context("the connection was not refused")
}

/// Asks, and gives the answer's status; none when the stream was taken back.
async fn request(truth: &Connection, kind: u8, length: u32, body: &[u8]) -> Result<Option<u8>> {
    let (mut send, mut recv) = truth.open_bi().await?;
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&1_000_u32.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(body);
    send.write_all(&bytes).await?;
    let mut status = [0];
    let read = tokio::time::timeout(PATIENCE, recv.read_exact(&mut status));
    Ok(read.await.context("no answer")?.ok().map(|()| status[0]))
}

fn checksum_of(header: &[u8], payload: &[u8]) -> u32 {
    understudy_protocol::wire::checksum(&[header, payload].concat())
}

fn make_authority(dir: &Path, cluster: &str) -> Result<()> {
    let mut command = Command::new(exe());
    command
        .args(["ca", "init", "--cluster", cluster, "--dir"])
        .arg(dir);
    done(command)
}

fn issue(ca: &Path, out: &Path) -> Result<()> {
    let mut command = Command::new(exe());
    command.args([
        "ca",
        "issue",
        "--name",
        "x",
        "--address",
        "127.0.0.1:9",
        "--dir",
    ]);
    command.arg(ca).arg("--out").arg(out);
    done(command)
}

fn done(mut command: Command) -> Result<()> {
    let output = command.output()?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_none_get_a_typed_problem() -> Result<()> {
    let fault = "requests that are none";
    let options = Options {
        nodes: 1,
        ..Options::default()
    };
    let mut story = Story::begin(options).await?;
    let server = story.cluster.url(0);
    let token = story.cluster.token().to_owned();
    let other = if token.ends_with('0') { '1' } else { '0' };
    let nearly = format!("{}{other}", &token[..token.len() - 1]);
    let call = "/v1/children/demo/counter/0/call";
    let (long, key) = ("x".repeat((1 << 20) + 1), "k".repeat(5_000));
    let units = "/v1/units";
    // Method, path, token, header, body: status and type.
    let rows = [
        ("POST", call, "", "", "get", 401, "unauthenticated"),
        ("POST", call, &nearly, "", "get", 401, "unauthenticated"),
        ("GET", "/v1/cluster", "", "", "", 401, "unauthenticated"),
        ("POST", call, &token, "", &long, 413, "too_large"),
        ("POST", call, &token, &key, "get", 400, "invalid"),
        (
            "POST",
            "/v1/children/demo/counter/0/call?timeout=5",
            &token,
            "",
            "get",
            400,
            "invalid",
        ),
        (
            "POST",
            "/v1/children/demo/counter/0/call?patience=5s",
            &token,
            "",
            "get",
            400,
            "invalid",
        ),
        (
            "POST",
            "/v1/children/@demo/counter/none/call",
            &token,
            "",
            "get",
            404,
            "not_found",
        ),
        (
            "POST",
            "/v1/children/demo/%00/0/call",
            &token,
            "",
            "get",
            400,
            "invalid",
        ),
        ("GET", call, &token, "", "", 405, "method_not_allowed"),
        ("GET", "/v2", &token, "", "", 404, "not_found"),
        ("POST", units, &token, "", "{", 400, "invalid"),
        ("POST", units, &token, "", "[1]", 400, "invalid"),
        ("POST", units, &token, "", "\u{0}\u{1}", 400, "invalid"),
        (
            "POST",
            units,
            &token,
            "",
            r#"{"child":"@t/counter/a","colour":1}"#,
            400,
            "invalid",
        ),
        (
            "POST",
            units,
            &token,
            "",
            r#"{"child":"no child"}"#,
            400,
            "invalid",
        ),
        ("POST", units, &token, "", &long, 413, "too_large"),
        (
            "POST",
            "/v1/cluster/init",
            &token,
            "",
            r#"{"single":true}"#,
            409,
            "conflict",
        ),
    ];
    let http = reqwest::Client::builder().no_proxy().build()?;
    for (method, path, token, key, body, status, kind) in rows {
        let method = reqwest::Method::from_bytes(method.as_bytes())?;
        let mut request = http.request(method, format!("{server}{path}"));
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        if !key.is_empty() {
            request = request.header("Idempotency-Key", key);
        }
        let response = request.body(body.to_owned()).send().await?;
        let shown = &body[..body.len().min(60)];
        assert_eq!(response.status().as_u16(), status, "{path} {shown:?}");
        let media = response.headers()["content-type"].to_str()?.to_owned();
        assert_eq!(media, "application/problem+json", "{path} {shown:?}");
        let problem: serde_json::Value = response.json().await?;
        assert_eq!(problem["type"], kind, "{path} {shown:?}: {problem}");
        assert!(problem["hint"].is_string(), "{path}: {problem}");
    }
    if !story.goes_on(bound(fault)).await {
        bail!("callers stand still\n{}", story.logs());
    }
    assert_eq!(story.starts(), [1]);
    assert!(story.cluster.runs(0));
    story.end().await?;
    say(
        fault,
        format!("{} requests, each with its type and a hint", rows.len()),
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_is_none_says_what_was_meant() -> Result<()> {
    let fault = "a configuration that is none";
    let rows = [
        (
            "[store]\non_damge = \"rebuild\"\n",
            &["on_damge", "on_damage"][..],
        ),
        ("[lease]\nttl = \"3 bananas\"\n", &["ttl", "bananas"]),
        ("[lease]\nttl = 3\n", &["lease.ttl", "the number 3"]),
        ("[store]\non_damage = \"pray\"\n", &["pray", "refuse"]),
        ("[chekpoint]\nreplicas = 3\n", &["chekpoint", "checkpoint"]),
        (
            "[checkpoint]\nreplicas = 2\nmin_copies = 3\n",
            &["min_copies"],
        ),
        ("[log\n", &["a.toml:", "`]`"]),
    ];
    let began = Instant::now();
    for (config, parts) in rows {
        let options = Options {
            nodes: 1,
            config: config.into(),
            ..Options::default()
        };
        let cluster = Cluster::prepare(exe(), options).await?;
        refuses(&cluster.config_file(0), parts)?;
    }
    refuses(Path::new("/nowhere/a.toml"), &["/nowhere/a.toml"])?;
    assert!(began.elapsed() < bound(fault));
    say(fault, format!("{} files", rows.len() + 1));
    Ok(())
}

fn refuses(config: &Path, parts: &[&str]) -> Result<()> {
    let run = Command::new(exe())
        .args(["node", "run", "--config"])
        .arg(config)
        .output()?;
    let said = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(2), "{said}");
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    Ok(())
}

/// How long a node may take to refuse.
const PATIENCE: Duration = Duration::from_secs(10);
