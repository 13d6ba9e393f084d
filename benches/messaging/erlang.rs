//! Erlang's distribution: two nodes of its own on loopback, plain TCP, no epmd.
//!
//! Owns: their processes, which end with it. Never installs Erlang; `cargo xtask bench` does. Where it
//! is missing, the rows stand without this peer.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

/// Two Erlang nodes: one tells and asks, the other counts and answers.
pub(crate) struct Erlang {
    _folder: TempDir,
    receiver: Child,
    sender: Child,
    words: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
    _receiver_said: Lines<BufReader<ChildStdout>>,
}

impl Erlang {
    /// Compiles the module and starts both; an error says why there is no Erlang here.
    pub(crate) async fn start() -> Result<Erlang> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("bench_peer.erl"), SOURCE)?;
        let compiled = Command::new("erlc")
            .arg("bench_peer.erl")
            .current_dir(folder.path())
            .status()
            .await
            .context("erlc cannot be run")?;
        if !compiled.success() {
            bail!("erlc: {compiled}");
        }
        let port = understudy_tests::ports::tcp()?.to_string();
        let cookie = std::process::id().to_string();
        let mark = std::process::id();
        let (there, here) = (format!("r{mark}@127.0.0.1"), format!("s{mark}@127.0.0.1"));
        let common = |name: &str| {
            let mut erl = Command::new("erl");
            erl.args(["-noshell", "-boot", "start_clean", "-name", name])
                .args(["-setcookie", &cookie, "-start_epmd", "false"])
                .args(["-erl_epmd_port", &port])
                .args(["-kernel", "inet_dist_use_interface", "{127,0,0,1}"])
                // No spinning while it waits: that would be counted as its processor time.
                .args(["+sbwt", "none", "+sbwtdcpu", "none", "+sbwtdio", "none"])
                .current_dir(folder.path())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .kill_on_drop(true);
            erl
        };
        let mut receiver = common(&there)
            .args(["-s", "bench_peer", "receiver"])
            .spawn()?;
        let mut receiver_said = lines(&mut receiver)?;
        until_ready(&mut receiver_said).await?;
        let mut sender = common(&here)
            .args(["-dist_listen", "false", "-s", "bench_peer", "sender"])
            .args(["-extra", &there])
            .spawn()?;
        let mut said = lines(&mut sender)?;
        until_ready(&mut said).await?;
        let words = sender.stdin.take().context("it has no standard input")?;
        Ok(Erlang {
            _folder: folder,
            receiver,
            sender,
            words,
            said,
            _receiver_said: receiver_said,
        })
    }

    /// The processes whose time counts: both ends.
    pub(crate) fn pids(&self) -> Result<[u32; 2]> {
        let id = |child: &Child| child.id().context("an Erlang node has ended");
        Ok([id(&self.sender)?, id(&self.receiver)?])
    }

    /// How long it took until the last of `count` tells was counted.
    pub(crate) async fn tell(&mut self, count: u64) -> Result<Duration> {
        let line = self.obey(&format!("tell {count}\n")).await?;
        Ok(Duration::from_nanos(line.trim().parse()?))
    }

    /// How long each of `count` asks took.
    pub(crate) async fn ask(&mut self, count: u64) -> Result<Vec<Duration>> {
        let line = self.obey(&format!("ask {count}\n")).await?;
        let each = line.split_whitespace();
        each.map(|nanos| Ok(Duration::from_nanos(nanos.parse()?)))
            .collect()
    }

    async fn obey(&mut self, words: &str) -> Result<String> {
        self.words.write_all(words.as_bytes()).await?;
        let line = timeout(PATIENCE, self.said.next_line()).await;
        line.context("Erlang took too long")??
            .context("Erlang has ended")
    }
}

fn lines(child: &mut Child) -> Result<Lines<BufReader<ChildStdout>>> {
    let out = child.stdout.take().context("it has no standard output")?;
    Ok(BufReader::new(out).lines())
}

async fn until_ready(said: &mut Lines<BufReader<ChildStdout>>) -> Result<()> {
    let line = timeout(PATIENCE, said.next_line()).await;
    match line.context("Erlang did not come up")?? {
        Some(line) if line == "ready" => Ok(()),
        other => bail!("Erlang did not come up: {other:?}"),
    }
}

const SOURCE: &str = include_str!("bench_peer.erl");

const PATIENCE: Duration = Duration::from_secs(60);
