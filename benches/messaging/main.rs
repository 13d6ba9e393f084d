//! Tells and asks between two processes on loopback: our lanes, a raw QUIC stream with the same
//! settings, `ractor_cluster` over the same connection, and Erlang's distribution.
//!
//! Owns: the rounds, in which all of them take turns, and their rows. The bench starts itself again as
//! the other process. A tell carries 64 bytes. *Frames* are the smallest that do, made and checked one
//! by one; *envelopes* are whole calls as a node sends them: encoded, decoded, and put through the
//! bounded queue to the task behind it.
//!
//! Processor time is that of both ends, so it says what a message costs even where other processes
//! take turns on the same cores.

mod erlang;
mod node;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::{Bytes, BytesMut};
use quinn::{RecvStream as Recv, SendStream as Send};
use ractor::ActorRef;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use understudy_benches::cpu;
use understudy_benches::report::{Row, Target, quantile, report};
use understudy_protocol::id::{ChildId, NodeId};
use understudy_transport::identity::{Ca, Identity};
use understudy_transport::net::{Lane, SendError};
use understudy_transport::ractor_link;

use erlang::Erlang;
use node::{BARE_FRAME_BYTES, BODY_BYTES, EXPECT, FLOOD, Letter, Node, PING, REACHED, Told};

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let mut args = std::env::args_os().skip(1);
    let work = match args.next() {
        Some(word) if word == "--peer" => {
            let folder: PathBuf = args.next().context("no folder")?.into();
            let seed = args.next().context("no address")?;
            let seed = seed.into_string().ok().context("no address")?;
            // A worker runs it, like a node's own tasks: the main thread would be woken for each.
            runtime.spawn(be_the_peer(folder, seed))
        }
        Some(word) if word == "--only" => {
            let what = args
                .next()
                .context("--only frames, envelopes, ask or ping")?;
            runtime.spawn(measure_only(what))
        }
        Some(word) => bail!("{word:?} is not understood"),
        None => runtime.spawn(measure()),
    };
    let done = runtime.block_on(work)?;
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

async fn be_the_peer(folder: PathBuf, seed: String) -> Result<()> {
    let mut node = Node::start(Identity::load(&folder)?, vec![seed]).await?;
    node.until_up().await?;
    // The parent's end of the pipe closes with the parent.
    let gone = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    tokio::select! {
        served = node::serve(node) => served,
        _ = gone => Ok(()),
    }
}

async fn measure() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut ours = Ours::start(folder.path()).await?;
    let mut erlang = match Erlang::start().await {
        Ok(erlang) => Some(erlang),
        Err(why) => {
            println!("without Erlang: {why:#} (`cargo xtask bench messaging` installs it)");
            None
        }
    };
    let mut rounds = Rounds::default();
    for round in 0..=ROUNDS {
        let measured = measure_round(&mut ours, erlang.as_mut())
            .await
            .context("a round broke off; on a machine this busy even its own peer is lost")?;
        eprintln!("round {round} (0 warms up): {measured}");
        if round > 0 {
            rounds.0.push(measured);
        }
    }
    report("messaging", &rounds.rows())?;
    Ok(())
}

async fn measure_round(ours: &mut Ours, mut erlang: Option<&mut Erlang>) -> Result<Measured> {
    Ok(Measured {
        frames: ours.tell_frames(TELLS).await?,
        envelopes: ours.tell_envelopes(TELLS).await?,
        raw: ours.flood(RAW_BYTES).await?,
        ractor: ours.tell_ractor(RACTOR_TELLS).await?,
        erlang: match &mut erlang {
            Some(erlang) => Some(tell_erlang(erlang).await?),
            None => None,
        },
        ask: ours.ask(ASKS).await?,
        ping: ours.ping(ASKS).await?,
        ask_ractor: ours.ask_ractor(ASKS).await?,
        ask_erlang: match &mut erlang {
            Some(erlang) => Some(micros(&erlang.ask(ASKS).await?)),
            None => None,
        },
    })
}

/// One of them alone, again and again: for a profiler.
async fn measure_only(what: std::ffi::OsString) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut ours = Ours::start(folder.path()).await?;
    for _ in 0..ROUNDS {
        match what.to_str() {
            Some("frames") => println!("{:?}", ours.tell_frames(TELLS).await?),
            Some("envelopes") => println!("{:?}", ours.tell_envelopes(TELLS).await?),
            Some("ask") => println!("p50 {:.1} us", p50(&ours.ask(10 * ASKS).await?)),
            Some("ping") => println!("p50 {:.1} us", p50(&ours.ping(10 * ASKS).await?)),
            _ => bail!("{what:?} is not understood"),
        }
    }
    Ok(())
}

/// Our end of everything that goes over our own network, and the other process.
struct Ours {
    node: Node,
    peer: NodeId,
    pids: [u32; 2],
    remote: ActorRef<Told>,
    ping: (Send, Recv),
    flood: (Send, Recv),
    child: ChildId,
    sent: u64,
    _process: Child,
}

impl Ours {
    async fn start(folder: &Path) -> Result<Ours> {
        let ca = Ca::create("bench")?;
        ca.issue("b", NodeId(2), &[])?.save(folder)?;
        let mut node = Node::start(ca.issue("a", NodeId(1), &[])?, Vec::new()).await?;
        let process = Command::new(std::env::current_exe()?)
            .arg("--peer")
            .arg(folder)
            .arg(node.net.local_addr()?.to_string())
            .stdin(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let peer = node.until_up().await?;
        let stream = node.net.open_stream(peer, PATIENCE).await?;
        ractor_link::link(&node.server, stream, true)?;
        let remote = until_member().await?;
        let ping = open(&node, peer, PING).await?;
        let flood = open(&node, peer, FLOOD).await?;
        let pids = [
            std::process::id(),
            process.id().context("the peer has ended")?,
        ];
        Ok(Ours {
            node,
            peer,
            pids,
            remote,
            ping,
            flood,
            child: ChildId::parse("bench/counter/1")?,
            sent: 0,
            _process: process,
        })
    }

    async fn tell_frames(&mut self, count: u64) -> Result<Tell> {
        self.tell_with(count, |_, number| node::bare_frame(number))
            .await
    }

    async fn tell_envelopes(&mut self, count: u64) -> Result<Tell> {
        self.tell_with(count, |child, number| {
            node::framed(&node::envelope(number, child, 0))
        })
        .await
    }

    /// Tells on one lane, as one unit would be told, until the peer has counted the last.
    async fn tell_with(
        &mut self,
        count: u64,
        frame: impl Fn(&ChildId, u64) -> Bytes,
    ) -> Result<Tell> {
        let net = &self.node.net;
        let wanted = Bytes::copy_from_slice(&count.to_be_bytes());
        net.request(self.peer, EXPECT, wanted, PATIENCE).await?;
        let meter = Meter::start(&self.pids)?;
        let mut reached = JoinSet::new();
        {
            let (net, peer) = (net.clone(), self.peer);
            reached.spawn(async move { net.request(peer, REACHED, Bytes::new(), PATIENCE).await });
        }
        for number in 0..count {
            let frame = frame(&self.child, number);
            loop {
                match net.send(self.peer, Lane::Of(7), frame.clone()) {
                    Ok(()) => break,
                    Err(SendError::Full { retry_after }) => tokio::time::sleep(retry_after).await,
                    Err(error) => return Err(error.into()),
                }
            }
            if number % TURN == 0 {
                tokio::task::yield_now().await;
            }
        }
        reached.join_next().await.context("it was asked")???;
        self.sent += count;
        meter.stop(count)
    }

    async fn flood(&mut self, bytes: u64) -> Result<Tell> {
        let meter = Meter::start(&self.pids)?;
        let (send, recv) = &mut self.flood;
        send.write_all(&bytes.to_be_bytes()).await?;
        let mut left = bytes;
        while left > 0 {
            let most = left.min(64 * 1024) as usize;
            let mut chunk = BytesMut::with_capacity(most);
            while chunk.len() < most {
                chunk.extend_from_slice(&[left as u8; BODY_BYTES]);
            }
            left -= chunk.len() as u64;
            send.write_chunk(chunk.freeze()).await?;
        }
        recv.read_exact(&mut [0]).await?;
        meter.stop(bytes / BODY_BYTES as u64)
    }

    async fn tell_ractor(&mut self, count: u64) -> Result<Tell> {
        let meter = Meter::start(&self.pids)?;
        for number in 0..count {
            self.remote.cast(Told::Tell(body_of(number)))?;
            if number % TURN == 0 {
                tokio::task::yield_now().await;
            }
        }
        let counted = ractor::call_t!(self.remote, Told::Counted, PATIENCE.as_millis() as u64)?;
        if counted != count {
            bail!("ractor_cluster counted {counted} of {count}");
        }
        meter.stop(count)
    }

    async fn ask(&mut self, count: u64) -> Result<Vec<f64>> {
        let mut took = Vec::with_capacity(count as usize);
        for number in 0..count {
            let began = Instant::now();
            let envelope = node::envelope(number, &self.child, 1_000);
            self.node
                .net
                .send(self.peer, Lane::Of(7), node::framed(&envelope))?;
            match self.node.letters.recv().await {
                Some(Letter::Reply(reply)) if reply.call.number == number => {}
                _ => bail!("another answer came than the one asked for"),
            }
            took.push(began.elapsed());
        }
        Ok(micros(&took))
    }

    async fn ping(&mut self, count: u64) -> Result<Vec<f64>> {
        let (send, recv) = &mut self.ping;
        let mut took = Vec::with_capacity(count as usize);
        let mut body = [0; BODY_BYTES];
        for _ in 0..count {
            let began = Instant::now();
            send.write_all(&body).await?;
            recv.read_exact(&mut body).await?;
            took.push(began.elapsed());
        }
        Ok(micros(&took))
    }

    async fn ask_ractor(&mut self, count: u64) -> Result<Vec<f64>> {
        let mut took = Vec::with_capacity(count as usize);
        let patience = PATIENCE.as_millis() as u64;
        for number in 0..count {
            let began = Instant::now();
            ractor::call_t!(self.remote, Told::Ask, patience, body_of(number))?;
            took.push(began.elapsed());
        }
        Ok(micros(&took))
    }
}

async fn tell_erlang(erlang: &mut Erlang) -> Result<Tell> {
    let meter = Meter::start(&erlang.pids()?)?;
    let took = erlang.tell(ERLANG_TELLS).await?;
    let mut tell = meter.stop(ERLANG_TELLS)?;
    tell.per_second = ERLANG_TELLS as f64 / took.as_secs_f64();
    Ok(tell)
}

async fn open(node: &Node, peer: NodeId, kind: u8) -> Result<(Send, Recv)> {
    let stream = node.net.open_stream(peer, PATIENCE).await?;
    let (mut send, recv) = stream.into_halves();
    send.write_all(&[kind]).await?;
    Ok((send, recv))
}

async fn until_member() -> Result<ActorRef<Told>> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if let Some(member) = ractor::pg::get_members(&node::GROUP.to_owned()).pop() {
            return Ok(member.into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("the peer's actor never appeared")
}

fn body_of(number: u64) -> Vec<u8> {
    let mut body = vec![0; BODY_BYTES];
    body[..8].copy_from_slice(&number.to_be_bytes());
    body
}

/// Time and processor time of some processes.
struct Meter {
    pids: [u32; 2],
    used: Duration,
    began: Instant,
}

impl Meter {
    fn start(pids: &[u32; 2]) -> Result<Meter> {
        Ok(Meter {
            pids: *pids,
            used: cpu::used(pids)?,
            began: Instant::now(),
        })
    }

    fn stop(self, messages: u64) -> Result<Tell> {
        let took = self.began.elapsed();
        let used = cpu::used(&self.pids)?.saturating_sub(self.used);
        Ok(Tell {
            per_second: messages as f64 / took.as_secs_f64(),
            cpu_micros: used.as_secs_f64() * 1e6 / messages as f64,
        })
    }
}

/// Tells of one round.
#[derive(Clone, Copy, Debug)]
struct Tell {
    per_second: f64,
    /// Of both ends, for one message.
    cpu_micros: f64,
}

/// One round. Asks in microseconds each.
struct Measured {
    frames: Tell,
    envelopes: Tell,
    raw: Tell,
    ractor: Tell,
    erlang: Option<Tell>,
    ask: Vec<f64>,
    ping: Vec<f64>,
    ask_ractor: Vec<f64>,
    ask_erlang: Option<Vec<f64>>,
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tells = [
            ("frames", Some(self.frames)),
            ("envelopes", Some(self.envelopes)),
            ("raw", Some(self.raw)),
            ("ractor", Some(self.ractor)),
            ("erlang", self.erlang),
        ];
        for (name, tell) in tells {
            if let Some(Tell {
                per_second,
                cpu_micros,
            }) = tell
            {
                write!(f, "{name} {per_second:.0}/s {cpu_micros:.2} us; ")?;
            }
        }
        let asks = [
            ("ask", Some(&self.ask)),
            ("ping", Some(&self.ping)),
            ("ractor", Some(&self.ask_ractor)),
            ("erlang", self.ask_erlang.as_ref()),
        ];
        for (name, asks) in asks {
            if let Some(asks) = asks {
                let (p50, p99) = (p50(asks), p99(asks));
                write!(f, "{name} p50 {p50:.0} p99 {p99:.0} us; ")?;
            }
        }
        Ok(())
    }
}

#[derive(Default)]
struct Rounds(Vec<Measured>);

impl Rounds {
    fn rows(&self) -> Vec<Row> {
        let each = |of: fn(&Measured) -> f64| self.0.iter().map(of).collect::<Vec<f64>>();
        let some = |of: fn(&Measured) -> Option<f64>| self.0.iter().filter_map(of).collect();
        let erlang_rate = || some(|round| round.erlang.map(|tell| tell.per_second));
        let erlang_cpu = || some(|round| round.erlang.map(|tell| tell.cpu_micros));
        let ask_erlang = || some(|round| round.ask_erlang.as_deref().map(p50));
        let frames_rate = || each(|round| round.frames.per_second);
        let envelopes_rate = || each(|round| round.envelopes.per_second);
        let raw_megabytes = || each(|round| megabytes(round.raw.per_second, BODY_BYTES));
        let ask = || each(|round| p50(&round.ask));
        let row = Row::new;
        let faster = Some(Target::RatioAtLeast(3.0));
        let cheaper = Some(Target::RatioAtMost(1.0 / 3.0));
        let share = Some(Target::RatioAtLeast(0.2));
        vec![
            row(
                "tell, frames, by Erlang",
                "1/s",
                frames_rate(),
                erlang_rate(),
                faster,
            ),
            row(
                "tell, envelopes, by Erlang",
                "1/s",
                envelopes_rate(),
                erlang_rate(),
                faster,
            ),
            row(
                "tell, frames, CPU, by Erlang",
                "us",
                each(|round| round.frames.cpu_micros),
                erlang_cpu(),
                cheaper,
            ),
            row(
                "tell, envelopes, CPU, by Erlang",
                "us",
                each(|round| round.envelopes.cpu_micros),
                erlang_cpu(),
                cheaper,
            ),
            row(
                "tell, frames, 64 B each, by a raw stream",
                "MB/s",
                each(|round| megabytes(round.frames.per_second, BODY_BYTES)),
                raw_megabytes(),
                share,
            ),
            row(
                "tell, frames, whole, by a raw stream",
                "MB/s",
                each(|round| megabytes(round.frames.per_second, BARE_FRAME_BYTES)),
                raw_megabytes(),
                None,
            ),
            row(
                "tell, envelopes, 64 B each, by a raw stream",
                "MB/s",
                each(|round| megabytes(round.envelopes.per_second, BODY_BYTES)),
                raw_megabytes(),
                None,
            ),
            row(
                "tell, envelopes, by ractor_cluster",
                "1/s",
                envelopes_rate(),
                each(|round| round.ractor.per_second),
                None,
            ),
            row(
                "tell, envelopes, CPU, by ractor_cluster",
                "us",
                each(|round| round.envelopes.cpu_micros),
                each(|round| round.ractor.cpu_micros),
                None,
            ),
            row(
                "ask, p50, by a raw ping-pong",
                "us",
                ask(),
                each(|round| p50(&round.ping)),
                Some(Target::RatioAtMost(1.25)),
            ),
            row(
                "ask, p99, by a raw ping-pong",
                "us",
                each(|round| p99(&round.ask)),
                each(|round| p99(&round.ping)),
                None,
            ),
            row(
                "ask, p50, by ractor_cluster",
                "us",
                ask(),
                each(|round| p50(&round.ask_ractor)),
                None,
            ),
            row(
                "ask, p50, by Erlang (plain TCP)",
                "us",
                ask(),
                ask_erlang(),
                None,
            ),
        ]
    }
}

fn megabytes(per_second: f64, bytes: usize) -> f64 {
    per_second * bytes as f64 / 1e6
}

fn micros(took: &[Duration]) -> Vec<f64> {
    took.iter().map(|took| took.as_secs_f64() * 1e6).collect()
}

fn p50(values: &[f64]) -> f64 {
    quantile(values, 0.5).unwrap_or(f64::NAN)
}

fn p99(values: &[f64]) -> f64 {
    quantile(values, 0.99).unwrap_or(f64::NAN)
}

const ROUNDS: usize = 7;

/// About a second of each, so that 10 ms of processor time are one in a hundred.
const TELLS: u64 = 1_000_000;
const RAW_BYTES: u64 = 8_192 * 64 * 1024;
const RACTOR_TELLS: u64 = 200_000;
const ERLANG_TELLS: u64 = 300_000;
const ASKS: u64 = 3_000;

/// Tells between two turns that a sender gives the rest of its runtime.
const TURN: u64 = 128;

const PATIENCE: Duration = Duration::from_secs(60);
