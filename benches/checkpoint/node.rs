//! A node of the bench: the real one, put together by the same library, with one kind more and a
//! socket by which the bench has callers run inside its process.
//!
//! Owns: the kind that writes 4 KiB a call, the callers behind the node's own handle, and the way of
//! every other command line to the real program, since a node starts its own program again as its
//! warden.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use understudy::cli::args::{Command, Node as NodeCommand, Store};
use understudy::cli::{self, Screen};
use understudy::node::Node;
use understudy::run;
use understudy_config::Config;
use understudy_control::handle::{CallError, Handle};
use understudy_gateway::Token;
use understudy_protocol::id::ChildId;
use understudy_supervision::child::{
    Checkpoint, Child, ChildError, Context, Handled, Kind, Request, StartError,
};
use understudy_supervision::driver::Kinds;

use crate::RECORD_BYTES;

/// What the program `understudy` would do, but for the kinds of a node.
pub(crate) fn act(args: Vec<OsString>) -> Result<ExitCode> {
    let cli = match cli::parse(args) {
        Ok(cli) => cli,
        Err(answer) => return Err(anyhow!("{}", answer.err)),
    };
    match &cli.command {
        Command::Warden { fd } => Ok(run::warden(*fd)),
        Command::Store(Store::Fsck { dir, probe: true }) => Ok(run::store_probe(dir)),
        Command::Node(NodeCommand::Run { config, .. }) => {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()?;
            let ran = runtime.block_on(run_node(config));
            runtime.shutdown_timeout(Duration::from_secs(1));
            ran.map(|()| ExitCode::SUCCESS)
        }
        _ => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let mut out = std::io::stdout();
            let mut screen = Screen {
                columns: usize::MAX,
                is_terminal: false,
                live: &mut out,
                aside: None,
            };
            let answer = runtime.block_on(cli::answer(&cli, &mut screen));
            eprint!("{}", answer.err);
            Ok(ExitCode::from(answer.exit as u8))
        }
    }
}

async fn run_node(file: &Path) -> Result<()> {
    let config = Config::load(file, []).map_err(|errors| anyhow!("{errors}"))?;
    let token = std::fs::read_to_string(&config.gateway.token_file)?;
    let token = Token::new(token.trim())?;
    let socket = socket_in(&config.node.data_dir);
    let mut terminate = signal(SignalKind::terminate())?;
    let kinds = Kinds::new().with("writer", Writer);
    let node = Node::start(config, kinds, token).await?;
    let listener = UnixListener::bind(&socket).context("the bench's socket")?;
    let serving = async {
        while let Ok((stream, _)) = listener.accept().await {
            // One bench asks, one line at a time.
            if let Err(error) = serve(stream, &node.handle).await {
                eprintln!("callers: {error:#}");
            }
        }
    };
    tokio::select! {
        () = serving => {}
        _ = terminate.recv() => {}
    }
    node.stop().await;
    Ok(())
}

/// Where the bench asks for callers: beside the node's data.
pub(crate) fn socket_in(data: &Path) -> PathBuf {
    data.join("bench.sock")
}

/// `MILLIS FIRST COUNT`: so many callers, each on its own child, for so long. Answers how many
/// microseconds each acknowledged call took.
async fn serve(stream: UnixStream, handle: &Handle) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        let numbers: Vec<u64> = line
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let &[millis, first, count] = numbers.as_slice() else {
            return Err(anyhow!("{line:?} is not understood"));
        };
        let until = Instant::now() + Duration::from_millis(millis);
        let mut callers = JoinSet::new();
        for nth in first..first + count {
            let child = ChildId::parse(&child_name(nth))?;
            callers.spawn(call_until(handle.clone(), child, until));
        }
        let mut said = String::new();
        while let Some(took) = callers.join_next().await {
            for took in took?? {
                said.push_str(&took.as_micros().to_string());
                said.push(' ');
            }
        }
        said.push('\n');
        stream.write_all(said.as_bytes()).await?;
        line.clear();
    }
    Ok(())
}

async fn call_until(handle: Handle, child: ChildId, until: Instant) -> Result<Vec<Duration>> {
    let mut took = Vec::new();
    let mut last = 0;
    while Instant::now() < until {
        let began = Instant::now();
        let body = Bytes::from_static(b"write");
        match handle.call(child.clone(), None, body, PATIENCE).await {
            Ok(answered) => {
                let value: u64 = std::str::from_utf8(&answered.body)?.parse()?;
                if last != 0 && value != last + 1 {
                    return Err(anyhow!("{child} answered {value} after {last}"));
                }
                last = value;
                took.push(began.elapsed());
            }
            Err(CallError::Overloaded { retry_after }) => tokio::time::sleep(retry_after).await,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(took)
}

/// Has the node whose data is in `data` run callers.
pub(crate) async fn callers(
    data: &Path,
    time: Duration,
    first: usize,
    count: usize,
) -> Result<Vec<Duration>> {
    let stream = UnixStream::connect(socket_in(data)).await?;
    let mut stream = BufReader::new(stream);
    let line = format!("{} {first} {count}\n", time.as_millis());
    stream.write_all(line.as_bytes()).await?;
    let mut said = String::new();
    stream.read_line(&mut said).await?;
    if !said.ends_with('\n') {
        return Err(anyhow!("a node's callers failed; its log says why"));
    }
    said.split_whitespace()
        .map(|micros| Ok(Duration::from_micros(micros.parse()?)))
        .collect()
}

/// The child of a caller.
pub(crate) fn child_name(nth: u64) -> String {
    format!("bench/writer/{nth}")
}

/// Starts writers.
struct Writer;

/// Writes 4 KiB a call and counts them.
struct Written(u64);

impl Kind for Writer {
    type Child = Written;

    async fn start(&self, _: Context, checkpoint: Checkpoint) -> Result<Written, StartError> {
        let base = match &checkpoint.base {
            Some(base) => u64::from_be_bytes(base.as_ref().try_into().map_err(|_| {
                StartError::BadCheckpoint("a writer's base has eight bytes".to_owned())
            })?),
            None => 0,
        };
        Ok(Written(base + checkpoint.steps.len() as u64))
    }
}

impl Child for Written {
    async fn handle(&mut self, _: Request) -> Result<Handled, ChildError> {
        self.0 += 1;
        let mut effect = vec![7; RECORD_BYTES];
        effect[..8].copy_from_slice(&self.0.to_be_bytes());
        Ok(Handled::step(self.0.to_string(), effect))
    }

    async fn snapshot(&mut self) -> Result<Bytes, ChildError> {
        Ok(Bytes::copy_from_slice(&self.0.to_be_bytes()))
    }
}

const PATIENCE: Duration = Duration::from_secs(10);
