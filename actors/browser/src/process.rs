//! One Chromium process: started, watched, ended, and nothing left of it.
//!
//! Owns: where the program is, its arguments, its profile's folder, and the two ends of its pipe. Who
//! starts the process is the node's affair ([`Launcher`]): there its warden does, so that it dies with
//! the node; [`Direct`] starts it from this process.
//!
//! Never does: going through a shell wrapper, opening a debugging port, or switching Chromium's own
//! sandbox off unless the configuration says so.
//!
//! **It dies with its pipe.** A browser that was started with `--remote-debugging-pipe` ends itself when
//! the pipe does (measured: gone in 0.3 s after the controller's SIGKILL, five of five; with a debugging
//! port it lived on, five of five).

mod direct;

use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::net::unix::pipe;

use crate::cdp::{Carrier, Cdp, CdpError};

pub use direct::Direct;

/// How browsers are started on a node.
#[derive(Clone, Debug)]
pub struct BrowserSetup {
    /// The program; `None` looks where Debian puts it ([`HEADLESS_SHELL`]).
    pub binary: Option<PathBuf>,
    /// The folder below which each process has its profile's folder. It belongs to the user whom they
    /// run as, and to nobody else.
    pub profiles: PathBuf,
    /// Whom they run as: user and group; `None` as this process does.
    pub user: Option<(u32, u32)>,
    /// Whether Chromium's own sandbox is on. Only an operator who has another one may say no.
    pub sandbox: bool,
}

impl BrowserSetup {
    /// The program that is started.
    pub fn program(&self) -> PathBuf {
        let named = self.binary.clone();
        named.unwrap_or_else(|| PathBuf::from(HEADLESS_SHELL))
    }
}

/// What is to be started.
#[derive(Debug)]
pub struct LaunchSpec {
    /// The program: an absolute path.
    pub program: PathBuf,
    /// Its arguments, the program's name left out.
    pub args: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Where it runs. To be removed, with all that is in it, once the process has ended.
    pub dir: PathBuf,
    /// Whom it runs as.
    pub user: Option<(u32, u32)>,
    /// What it finds open at descriptors 3 (it reads commands) and 4 (it writes answers).
    pub pipe: [OwnedFd; 2],
}

/// A process that runs. Dropping it kills the process and removes its folder.
pub trait Launched: Send + Sync {
    /// Its process id, for people.
    fn pid(&self) -> u32;
}

/// Starts processes.
pub trait Launcher: Send + Sync + 'static {
    /// Starts one. An error says why it does not run; then nothing is left of it.
    fn launch(&self, spec: LaunchSpec) -> Launching<'_>;
}

/// A process that is being started.
pub type Launching<'a> = Pin<Box<dyn Future<Output = io::Result<Box<dyn Launched>>> + Send + 'a>>;

/// A browser that runs. Dropping it ends it.
pub struct Browser {
    cdp: Cdp,
    about: About,
    dir: PathBuf,
    process: Box<dyn Launched>,
    _carrier: Carrier,
}

/// What a browser says of itself (`Browser.getVersion`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct About {
    /// Such as `HeadlessChrome/156.0.8078.79`.
    pub product: String,
    /// The protocol's version, such as `1.3`.
    pub protocol_version: String,
    /// Of its source.
    pub revision: String,
    /// What pages are told.
    pub user_agent: String,
    /// Of its JavaScript engine.
    pub js_version: String,
}

/// Why no browser runs. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub enum BrowserError {
    /// There is no such program.
    #[error(
        "there is no browser at {}: install it (`apt-get install chromium-headless-shell`), or name \
         another with `[browser] binary`", .0.display()
    )]
    NoBinary(PathBuf),
    /// Its folder cannot be made.
    #[error("a folder for the browser's profile cannot be made in {}: {error}", dir.display())]
    Profile {
        /// Where.
        dir: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The system did not start it.
    #[error("{} cannot be started: {error}", program.display())]
    Launch {
        /// What.
        program: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// It ended, or said nothing, before it was ready.
    #[error(
        "{} was not ready within {} s: {error}{}", program.display(), READY_LIMIT.as_secs(),
        if *sandbox { SANDBOX_HINT } else { "" }
    )]
    NotReady {
        /// What.
        program: PathBuf,
        /// What came instead.
        error: CdpError,
        /// Whether its sandbox was on: the usual reason.
        sandbox: bool,
    },
    /// It is none that this version works with.
    #[error(
        "{} is {found}; needed is Chromium {VERSION_MIN} or later (`apt-get install \
         chromium-headless-shell`)", program.display()
    )]
    Version {
        /// What.
        program: PathBuf,
        /// What it says of itself.
        found: String,
    },
}

impl Browser {
    /// Starts one and waits until it answers.
    ///
    /// # Errors
    /// See [`BrowserError`].
    pub async fn start(
        launcher: &dyn Launcher,
        setup: &BrowserSetup,
    ) -> Result<Browser, BrowserError> {
        let program = setup.program();
        if !program.is_file() {
            return Err(BrowserError::NoBinary(program));
        }
        let dir = profile(&setup.profiles, setup.user).map_err(|error| BrowserError::Profile {
            dir: setup.profiles.clone(),
            error,
        })?;
        let launch_error = |error| BrowserError::Launch {
            program: program.clone(),
            error,
        };
        let (ours, theirs) = pipes().map_err(launch_error)?;
        let spec = LaunchSpec {
            args: arguments(&dir, setup.sandbox),
            env: environment(&dir),
            program: program.clone(),
            user: setup.user,
            pipe: theirs,
            dir: dir.clone(),
        };
        let process = match launcher.launch(spec).await {
            Ok(process) => process,
            Err(error) => {
                let _ = std::fs::remove_dir_all(&dir);
                return Err(launch_error(error));
            }
        };
        let (reader, writer) = ours;
        let (cdp, carrier) = Cdp::over(reader, writer);
        let about = tokio::time::timeout(READY_LIMIT, ready(&cdp)).await;
        let about = about.unwrap_or_else(|_| Err(CdpError::Gone("Browser.getVersion".into())));
        let about = about.map_err(|error| BrowserError::NotReady {
            program: program.clone(),
            error,
            sandbox: setup.sandbox,
        })?;
        if major(&about.product).is_none_or(|major| major < VERSION_MIN) {
            return Err(BrowserError::Version {
                program,
                found: about.product,
            });
        }
        Ok(Browser {
            cdp,
            about,
            dir,
            process,
            _carrier: carrier,
        })
    }

    /// Its pipe.
    pub fn cdp(&self) -> &Cdp {
        &self.cdp
    }

    /// What it is.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Its folder, which goes with it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its process id, for people.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

impl std::fmt::Debug for Browser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Browser")
            .field("pid", &self.pid())
            .field("product", &self.about.product)
            .finish_non_exhaustive()
    }
}

async fn ready(cdp: &Cdp) -> Result<About, CdpError> {
    let about = cdp.call("", "Browser.getVersion", json!({})).await?;
    // By which the pipe hears of pages that crash.
    let all = json!({ "discover": true, "filter": [{}] });
    let _: serde_json::Value = cdp.call("", "Target.setDiscoverTargets", all).await?;
    Ok(about)
}

/// `HeadlessChrome/156.0.8078.79` is 156.
fn major(product: &str) -> Option<u32> {
    let (name, version) = product.split_once('/')?;
    let known = matches!(name, "HeadlessChrome" | "Chrome" | "Chromium");
    version.split('.').next()?.parse().ok().filter(|_| known)
}

type Ours = (pipe::Receiver, pipe::Sender);

fn pipes() -> io::Result<(Ours, [OwnedFd; 2])> {
    use rustix::pipe::{PipeFlags, pipe_with};
    let (command_read, command_write) = pipe_with(PipeFlags::CLOEXEC)?;
    let (answer_read, answer_write) = pipe_with(PipeFlags::CLOEXEC)?;
    for ours in [&command_write, &answer_read] {
        rustix::io::ioctl_fionbio(ours, true)?;
    }
    let reader = pipe::Receiver::from_owned_fd(answer_read)?;
    let writer = pipe::Sender::from_owned_fd(command_write)?;
    Ok(((reader, writer), [command_read, answer_write]))
}

/// A new folder below `profiles`, of the browser's user alone.
fn profile(profiles: &Path, user: Option<(u32, u32)>) -> io::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt as _;
    let mut name = [0; 8];
    getrandom::fill(&mut name).map_err(|error| io::Error::other(error.to_string()))?;
    let dir = profiles.join(format!("{:016x}", u64::from_le_bytes(name)));
    std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
    if let Some((uid, gid)) = user {
        std::os::unix::fs::chown(&dir, Some(uid), Some(gid))?;
    }
    Ok(dir)
}

fn environment(dir: &Path) -> Vec<(OsString, OsString)> {
    let dir = dir.as_os_str();
    let mut env = vec![
        ("HOME".into(), dir.to_owned()),
        ("TMPDIR".into(), dir.to_owned()),
        ("XDG_CONFIG_HOME".into(), dir.to_owned()),
        ("XDG_CACHE_HOME".into(), dir.to_owned()),
        ("LANG".into(), "C.UTF-8".into()),
    ];
    // Fonts and time zones are the machine's.
    env.extend(["TZ", "FONTCONFIG_PATH"].into_iter().filter_map(|name| {
        let value = std::env::var_os(name)?;
        Some((name.into(), value))
    }));
    env
}

fn arguments(dir: &Path, sandbox: bool) -> Vec<OsString> {
    let mut args: Vec<OsString> = ARGUMENTS.iter().map(Into::into).collect();
    let mut profile = OsString::from("--user-data-dir=");
    profile.push(dir);
    args.push(profile);
    let mut crashes = OsString::from("--crash-dumps-dir=");
    crashes.push(dir);
    args.push(crashes);
    if !sandbox {
        args.push("--no-sandbox".into());
    }
    args
}

/// What every browser is started with.
const ARGUMENTS: &[&str] = &[
    "--remote-debugging-pipe",
    "--no-startup-window",
    // It is nobody's desktop: no first run, no default browser, no extensions, no sync.
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-background-networking",
    "--disable-client-side-phishing-detection",
    "--metrics-recording-only",
    "--mute-audio",
    "--hide-scrollbars",
    "--password-store=basic",
    // Nothing leaves but through the proxy: no UDP of any kind, and no name is looked up here.
    "--disable-quic",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    // A page that is not looked at runs as one that is.
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    // /dev/shm has 64 MiB in most containers.
    "--disable-dev-shm-usage",
    // No device; pictures are made by the processor.
    "--disable-gpu",
    // A renderer kept in stock costs more memory than it saves time.
    "--disable-features=SpareRendererForSitePerProcess,MediaRouter,OptimizationHints,Translate",
];

/// Where Debian's package `chromium-headless-shell` has the program itself, behind the wrapper.
pub const HEADLESS_SHELL: &str = "/usr/lib/chromium/chromium-headless-shell";

/// The oldest version that has what is used here: a browser target attached over the pipe, partitioned
/// cookies, and the headless shell as a program of its own.
pub const VERSION_MIN: u32 = 132;

/// From the start to the first answer. Measured: 70 ms alone, 0.6 s beside a build.
const READY_LIMIT: Duration = Duration::from_secs(20);

const SANDBOX_HINT: &str = "\n  its sandbox needs user namespaces or `apt-get install \
    chromium-sandbox`; where the machine itself is a sandbox, `[browser] sandbox = false` runs it without";

/// One for all who share it.
pub type SharedLauncher = Arc<dyn Launcher>;
