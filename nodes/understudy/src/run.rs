//! What the command line starts and does on this machine.
//!
//! Owns: the doors from the command line to a node, its certificates and its files. Never parses an
//! argument, and prints nothing but a node's log.

use std::fmt::Write as _;
use std::os::fd::RawFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

use understudy_config::{Config, LogConfig, LogFormat};
use understudy_gateway::Token;
use understudy_protocol::id::NodeId;
use understudy_store::fsck;
use understudy_supervision::counter::Counter;
use understudy_supervision::driver::Kinds;
use understudy_supervision::testing;
use understudy_transport::identity::Ca;

use crate::cli::{Exit, Failure};
use crate::node::{self, Node};

/// Runs a node until SIGTERM or SIGINT; then it drains, and ends.
pub fn node(config: &Path, testing_kinds: bool) -> Result<(), Failure> {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let config = Config::load(config, environment)
        .map_err(|errors| Failure::new(Exit::Usage, errors.to_string().trim_end().to_owned()))?;
    start_log(&config.log);
    let token = read_token(&config.gateway.token_file)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("main")
        .build()
        .map_err(|error| failed(format!("no runtime: {error}")))?;
    let ran = runtime.block_on(run(config, kinds(testing_kinds), token));
    runtime.shutdown_timeout(SHUTDOWN_LIMIT);
    ran
}

async fn run(config: Config, kinds: Kinds, token: Token) -> Result<(), Failure> {
    let no_signals = |error| failed(format!("no signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let marker = config.node.data_dir.join("draining");
    let node = Node::start(config, kinds, token)
        .await
        .map_err(|error| failed(error.to_string()))?;
    let handle = node.handle.clone();
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        // Done soon after the start, and then there is nothing more to do but to run.
        () = async {
            node::end_own_drain(&handle, &marker).await;
            std::future::pending().await
        } => {}
    }
    info!("is to stop: its units go to others first");
    if let Err(error) = std::fs::write(&marker, b"") {
        warn!(%error, "the drain could not be noted: the next start will not undo it");
    }
    tokio::select! {
        drained = node.drain(DRAIN_LIMIT) => if !drained {
            warn!("not every unit could be moved; they are taken over from their records");
        },
        _ = terminate.recv() => warn!("stops at once"),
        _ = interrupt.recv() => warn!("stops at once"),
    }
    node.stop().await;
    Ok(())
}

fn kinds(testing_kinds: bool) -> Kinds {
    let kinds = Kinds::new().with("counter", Counter);
    if testing_kinds {
        testing::register(kinds)
    } else {
        kinds
    }
}

fn start_log(config: &LogConfig) {
    let filter = EnvFilter::builder()
        .parse(
            format!("warn,understudy={0},{OURS}", config.level.as_str())
                .replace("LEVEL", config.level.as_str()),
        )
        .unwrap_or_default();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // A second log in one process is only a test's.
    let _ = match config.format {
        LogFormat::Text => log.with_ansi(false).try_init(),
        LogFormat::Json => log.json().try_init(),
    };
}

/// The crates of this workspace that say something.
const OURS: &str = "understudy_control=LEVEL,understudy_transport=LEVEL,understudy_store=LEVEL,\
                    understudy_gateway=LEVEL,understudy_warden=LEVEL,understudy_supervision=LEVEL,\
                    understudy_sandbox=LEVEL";

/// The gateway's token; one is made where there is none.
fn read_token(file: &Path) -> Result<Token, Failure> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let text = format!("us_{:016x}{:016x}", random()?, random()?);
            write_private(file, &text)?;
            text
        }
        Err(error) => return Err(failed(format!("{}: {error}", file.display()))),
    };
    Token::new(text.trim()).map_err(|error| {
        Failure::new(Exit::Usage, format!("{}: {error}", file.display()))
            .hint("remove the file, and the next start makes one")
    })
}

fn write_private(file: &Path, text: &str) -> Result<(), Failure> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let written = (|| {
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut options = std::fs::File::options();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(file)?;
        file.write_all(text.as_bytes())
    })();
    written.map_err(|error| failed(format!("{}: {error}", file.display())))
}

/// Is the warden of the process at the other end of `fd`. Does not return while that one lives.
pub fn warden(fd: RawFd) -> ExitCode {
    understudy_warden::main(fd)
}

/// Makes a cluster's certificate authority in `dir`: what to say of it.
pub fn ca_init(cluster: &str, dir: &Path) -> Result<String, Failure> {
    let ca = Ca::create(cluster).map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    ca.save(dir).map_err(|error| failed(error.to_string()))?;
    Ok(format!(
        "The authority of cluster `{cluster}` is in {0}. Keep ca.key there secret: whoever has it can \
         join.\nNext: understudy ca issue --dir {0} --name a --address HOST:7600 --out FOLDER\n",
        dir.display()
    ))
}

/// Makes a node's certificate in `out` by the authority in `dir`: what to say of it.
pub fn ca_issue(dir: &Path, name: &str, address: &str, out: &Path) -> Result<String, Failure> {
    let ca = Ca::load(dir).map_err(|error| {
        failed(error.to_string()).hint(format!(
            "make an authority first: understudy ca init --cluster NAME --dir {}",
            dir.display()
        ))
    })?;
    let node = NodeId(random()?);
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let identity = ca
        .issue(name, node, &[host.to_owned()])
        .map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    identity
        .save(out)
        .map_err(|error| failed(error.to_string()))?;
    Ok(format!(
        "Node `{name}` is {node}; its certificate is in {}.\n",
        out.display()
    ))
}

/// Looks for damage in a stopped node's files: what was found.
pub fn store_fsck(dir: &Path) -> Result<String, Failure> {
    let report = fsck(dir).map_err(|error| failed(error.to_string()))?;
    let mut text = String::new();
    let store = report
        .store
        .map_or("(unreadable)".to_owned(), |store| store.to_string());
    let _ = writeln!(text, "store           {store}");
    let _ = writeln!(
        text,
        "records         {} of {} children",
        report.records, report.children
    );
    let _ = writeln!(text, "raft entries    {}", report.raft_entries);
    let _ = writeln!(
        text,
        "chunks          {} ({} bytes)",
        report.chunks, report.chunk_bytes
    );
    let _ = writeln!(text, "damaged chains  {}", report.damaged_children);
    let cut = match (report.cut_slots, report.cut_dedicated) {
        (0, false) => "no".to_owned(),
        (0, true) => "perhaps of dedicated children; other copies will say".to_owned(),
        (slots, _) => format!("perhaps, in {slots} slots; other copies will say"),
    };
    let _ = writeln!(text, "writes lost     {cut}");
    for damage in &report.damages {
        let _ = writeln!(text, "found: {damage}");
    }
    if report.is_usable() {
        return Ok(text);
    }
    Err(failed(format!("the store cannot go on under its id\n{text}")).hint(
        "a node with `[store] on_damage = \"rebuild\"` keeps it aside and is filled from the others",
    ))
}

/// The same for the node that is about to open it, in a process whose memory and time are limited.
pub fn store_probe(dir: &Path) -> ExitCode {
    ExitCode::from(understudy_store::probe(dir))
}

fn random() -> Result<u64, Failure> {
    node::random().map_err(|error| {
        error!(%error, "no randomness");
        failed(error.to_string())
    })
}

fn failed(what: String) -> Failure {
    Failure::new(Exit::Failed, what)
}

/// How long a stopping node waits for its units to move.
const DRAIN_LIMIT: Duration = Duration::from_secs(15);

/// What still runs after a node has stopped gets this long.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(2);
