//! The node's end of the line to its warden.
//!
//! Owns: the warden's process as the node's child, one thread that reads what it says, and what the
//! warden has yet to hear of the units. Never waits for the warden when it sends: the heart's thread
//! feeds through it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, Shutdown, SocketFlags, SocketType};
use understudy_protocol::cluster::lease::warden::HelperId;
use understudy_protocol::id::{IncarnationId, UnitId};
use understudy_protocol::time::Time;
use understudy_protocol::wire::heart::DeathDigest;

use crate::line::{
    self, LINE_VERSION, LineError, MESSAGE_BYTES_MAX, Plan, ToNode, ToWarden, User, Variable,
};

/// One node's warden. Clones speak to the same one. When the last is dropped the warden stays until
/// the node's process has ended.
#[derive(Clone, Debug)]
pub struct WardenClient {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    line: Arc<OwnedFd>,
    /// The node let go of the line itself: its end is no news.
    let_go: Arc<AtomicBool>,
    next_helper: AtomicU64,
    pid: u32,
    /// Whether a unit is at work, where the warden was behind and has not been told yet: the latest
    /// of each, and so never more than the node has units. Locked for some sends, never for a wait.
    untold: Mutex<BTreeMap<UnitId, bool>>,
}

/// What a warden tells its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WardenEvent {
    /// The helper runs as this process.
    HelperStarted {
        /// Which.
        id: HelperId,
        /// Its process id; also its session and its process group.
        pid: u32,
    },
    /// The helper does not run, and will not.
    HelperRefused {
        /// Which.
        id: HelperId,
        /// Why not, for a person.
        why: String,
    },
    /// The helper has ended and been reaped.
    HelperEnded {
        /// Which.
        id: HelperId,
        /// How.
        end: HelperEnd,
    },
    /// The warden dropped a message of ours: a fault of this program.
    NotUnderstood {
        /// Why, for a person.
        why: String,
    },
    /// The warden has died, and every helper with it. The node must abort: nobody would kill its
    /// helpers in time, and nobody would prove its death. The last event.
    Gone,
}

/// How a helper ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelperEnd {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

/// How to start a helper.
#[derive(Debug)]
pub struct HelperSpec {
    /// The program: an absolute path.
    pub program: PathBuf,
    /// Its arguments, the program's name left out.
    pub args: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Where it runs: an absolute path.
    pub dir: PathBuf,
    /// Whom it runs as, user and group, its other groups left; `None`: as the node does. Only root
    /// may change it.
    pub user: Option<(u32, u32)>,
    /// What it finds open from descriptor 3 on, in this order; at most [`HELPER_FDS_MAX`]. Its
    /// standard input and output are `/dev/null`, its standard error is the node's.
    ///
    /// [`HELPER_FDS_MAX`]: crate::HELPER_FDS_MAX
    pub fds: Vec<OwnedFd>,
    /// A folder of its own: an absolute path, removed with all that is in it once the helper has ended,
    /// or when it did not start. Also when the node is killed; not when the warden is.
    pub scratch: Option<PathBuf>,
}

impl HelperSpec {
    /// `program` (an absolute path) in `/`, with no arguments, no environment and nothing open.
    pub fn new(program: impl Into<PathBuf>) -> HelperSpec {
        HelperSpec {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            dir: PathBuf::from("/"),
            user: None,
            fds: Vec::new(),
            scratch: None,
        }
    }
}

/// Why there is no warden. No process is left behind.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The directory for notes is not there and cannot be made, or its path is not absolute.
    #[error("the directory for death notes, {}, is of no use: {source}", dir.display())]
    Notes {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The program cannot be started.
    #[error("{} cannot be started as the warden: {source}", exe.display())]
    Exe {
        /// The program.
        exe: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No socket pair, or no thread.
    #[error("the line to the warden: {0}")]
    Line(io::Error),
    /// The process ended before it gave its digest, or said something else.
    #[error("the process at the other end is no warden")]
    NoWarden,
    /// It has not given its digest within five seconds.
    #[error("the warden does not answer")]
    Silent,
}

/// Why a message did not leave. The warden knows nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The warden is behind by some hundred messages. A deadline is fed again soon; anything else is
    /// to be repeated.
    #[error("the warden is behind")]
    Full,
    /// The warden is dead: [`WardenEvent::Gone`] comes or has come.
    #[error("the warden is gone")]
    Gone,
    /// The message would be refused.
    #[error("the warden would refuse it: {0}")]
    Refused(&'static str),
}

impl WardenClient {
    /// Starts `exe warden --fd 0`, the line to it being its standard input, and waits for its digest,
    /// which the node commits with `incarnation` (L10). Notes are kept in `notes`, which is made when
    /// it is not there. `on_event` is called by one thread, in order; [`WardenEvent::Gone`] is last.
    pub fn spawn(
        exe: &Path,
        incarnation: IncarnationId,
        notes: &Path,
        on_event: Box<dyn FnMut(WardenEvent) + Send>,
    ) -> Result<(WardenClient, DeathDigest), SpawnError> {
        let notes = usable(notes).map_err(|source| SpawnError::Notes {
            dir: notes.to_owned(),
            source,
        })?;
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|error| SpawnError::Line(error.into()))?;
        let mut warden = Command::new(exe)
            .args(["warden", "--fd", "0"])
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(|source| SpawnError::Exe {
                exe: exe.to_owned(),
                source,
            })?;
        let begun = begin(&ours, incarnation, notes)
            .and_then(|digest| Ok((digest, WardenClient::listen(ours, &warden, on_event)?)));
        match begun {
            Ok((digest, (client, listener))) => {
                // The listener reaps the warden when the line ends.
                let _ = listener.send(warden);
                Ok((client, digest))
            }
            Err(error) => {
                let _ = warden.kill();
                let _ = warden.wait();
                Err(error)
            }
        }
    }

    fn listen(
        ours: OwnedFd,
        warden: &Child,
        on_event: Box<dyn FnMut(WardenEvent) + Send>,
    ) -> Result<(WardenClient, SyncSender<Child>), SpawnError> {
        let line = Arc::new(ours);
        let let_go = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = sync_channel(1); // the warden, once
        let reader = Reader {
            line: Arc::clone(&line),
            let_go: Arc::clone(&let_go),
            on_event,
        };
        thread::Builder::new()
            .name("warden line".into())
            .spawn(move || {
                if let Ok(warden) = receiver.recv() {
                    reader.run(warden);
                }
            })
            .map_err(SpawnError::Line)?;
        let client = WardenClient {
            inner: Arc::new(Inner {
                line,
                let_go,
                next_helper: AtomicU64::new(1),
                pid: warden.id(),
                untold: Mutex::default(),
            }),
        };
        Ok((client, sender))
    }

    /// The lease ends at `until`: every helper is killed then, unless a later end is fed before. An
    /// earlier one changes nothing. Never waits. Also says what the warden was too far behind to hear
    /// of the units, as far as there is room.
    pub fn feed(&self, until: Time) -> Result<(), SendError> {
        self.send(&ToWarden::Feed(until.as_nanos()))?;
        match self.inner.untold.try_lock() {
            Ok(untold) => self.tell(untold),
            Err(TryLockError::Poisoned(untold)) => self.tell(untold.into_inner()),
            // Whoever holds it is telling.
            Err(TryLockError::WouldBlock) => Ok(()),
        }
    }

    /// The unit starts or works (V2). Say it before the unit does. Where the warden is behind, it is
    /// told as soon as there is room: with the next word about any unit, or the next deadline. Until
    /// then a death would cost the unit no strike.
    pub fn at_work(&self, unit: UnitId) -> Result<(), SendError> {
        self.is_working(unit, true)
    }

    /// The unit has started, or rests. Told later where the warden is behind, as [`Self::at_work`].
    pub fn at_rest(&self, unit: UnitId) -> Result<(), SendError> {
        self.is_working(unit, false)
    }

    /// The heart addresses of the voters, all of them: where the note goes.
    pub fn voters(&self, addresses: &[SocketAddr]) -> Result<(), SendError> {
        let texts = addresses.iter().map(SocketAddr::to_string).collect();
        self.send(&ToWarden::Voters(texts))
    }

    /// Has a helper started; one of [`WardenEvent::HelperStarted`] and [`WardenEvent::HelperRefused`]
    /// follows. The descriptors of `spec` are closed here in any case.
    pub fn spawn_helper(&self, spec: HelperSpec) -> Result<HelperId, SendError> {
        let HelperSpec {
            program,
            args,
            env,
            dir,
            user,
            fds,
            scratch,
        } = spec;
        let bytes = |text: OsString| text.into_vec().into();
        let plan = Plan {
            program: bytes(program.into_os_string()),
            args: args.into_iter().map(bytes).collect(),
            env: env
                .into_iter()
                .map(|(name, value)| Variable {
                    name: bytes(name),
                    value: bytes(value),
                })
                .collect(),
            dir: bytes(dir.into_os_string()),
            user: user.map(|(uid, gid)| User { uid, gid }),
            fds: u8::try_from(fds.len()).unwrap_or(u8::MAX),
            scratch: scratch.map(|folder| bytes(folder.into_os_string())),
        };
        plan.check().map_err(|error| match error {
            LineError::Invalid(why) => SendError::Refused(why),
            LineError::Cut | LineError::NoMessage => SendError::Refused("no message"),
        })?;
        let id = self.inner.next_helper.fetch_add(1, Ordering::Relaxed);
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
        self.send_with(&ToWarden::Start { id, plan }, &fds)?;
        Ok(HelperId(id))
    }

    /// Kills a helper and everything it left behind; [`WardenEvent::HelperEnded`] follows unless it
    /// has ended already.
    pub fn kill_helper(&self, helper: HelperId) -> Result<(), SendError> {
        self.send(&ToWarden::Kill(helper.0))
    }

    /// The warden's process id.
    pub fn pid(&self) -> u32 {
        self.inner.pid
    }

    /// What was not told before goes first, so that the last word about a unit is the last one heard.
    fn is_working(&self, unit: UnitId, working: bool) -> Result<(), SendError> {
        let untold = self.inner.untold.lock();
        let mut untold = untold.unwrap_or_else(PoisonError::into_inner);
        untold.insert(unit, working);
        self.tell(untold)
    }

    fn tell(&self, mut untold: MutexGuard<'_, BTreeMap<UnitId, bool>>) -> Result<(), SendError> {
        for _ in 0..TOLD_AT_ONCE {
            let Some((unit, working)) = untold.first_key_value() else {
                break;
            };
            let message = if *working {
                ToWarden::AtWork(*unit)
            } else {
                ToWarden::AtRest(*unit)
            };
            match self.send(&message) {
                Ok(()) => untold.pop_first(),
                Err(SendError::Full) => break,
                Err(error) => return Err(error),
            };
        }
        Ok(())
    }

    fn send(&self, message: &ToWarden) -> Result<(), SendError> {
        self.send_with(message, &[])
    }

    fn send_with(&self, message: &ToWarden, fds: &[BorrowedFd<'_>]) -> Result<(), SendError> {
        let bytes = line::encode(message).ok_or(SendError::Refused("too long"))?;
        match line::send(&self.inner.line, &bytes, fds) {
            Ok(()) => Ok(()),
            // The kernel counts descriptors under way; no memory passes like no room.
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM | Errno::TOOMANYREFS) => {
                Err(SendError::Full)
            }
            Err(_) => Err(SendError::Gone),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.let_go.store(true, Ordering::Release);
        let _ = rustix::net::shutdown(&self.line, Shutdown::Both);
    }
}

/// The thread that hears the warden.
struct Reader {
    line: Arc<OwnedFd>,
    let_go: Arc<AtomicBool>,
    on_event: Box<dyn FnMut(WardenEvent) + Send>,
}

impl Reader {
    fn run(mut self, mut warden: Child) {
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        while let Ok(Some(packet)) = line::receive(&self.line, &mut buffer, RecvFlags::empty()) {
            if let Some(event) = packet.ok().and_then(|packet| event(&packet.bytes)) {
                (self.on_event)(event);
            }
        }
        if self.let_go.load(Ordering::Acquire) {
            return;
        }
        // One that closed the line without ending is no warden any more.
        let _ = warden.kill();
        let _ = warden.wait();
        (self.on_event)(WardenEvent::Gone);
    }
}

fn event(bytes: &[u8]) -> Option<WardenEvent> {
    Some(match line::decode(bytes).ok()? {
        ToNode::Ready(_) => return None,
        ToNode::Started { id, pid } => WardenEvent::HelperStarted {
            id: HelperId(id),
            pid: u32::try_from(pid).ok()?,
        },
        ToNode::Refused { id, why } => WardenEvent::HelperRefused {
            id: HelperId(id),
            why,
        },
        ToNode::Ended { id, code, signal } => WardenEvent::HelperEnded {
            id: HelperId(id),
            end: match (code, signal) {
                (Some(code), _) => HelperEnd::Exited(code),
                (None, signal) => HelperEnd::Killed(signal.unwrap_or_default()),
            },
        },
        ToNode::NotUnderstood(why) => WardenEvent::NotUnderstood { why },
    })
}

/// The directory's own path, once it is there.
fn usable(dir: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(dir)?;
    dir.canonicalize()
}

fn begin(
    line: &OwnedFd,
    incarnation: IncarnationId,
    notes: PathBuf,
) -> Result<DeathDigest, SpawnError> {
    let begin = ToWarden::Begin {
        version: LINE_VERSION,
        incarnation,
        notes: notes.into_os_string().into_vec().into(),
    };
    let bytes = line::encode(&begin).ok_or(SpawnError::NoWarden)?;
    line::send(line, &bytes, &[]).map_err(|_| SpawnError::NoWarden)?;
    let mut ready = [PollFd::new(line, PollFlags::IN)];
    let patience = Timespec {
        tv_sec: READY_PATIENCE.as_secs() as i64,
        tv_nsec: 0,
    };
    if poll(&mut ready, Some(&patience)) == Ok(0) {
        return Err(SpawnError::Silent);
    }
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    let packet = line::receive(line, &mut buffer, RecvFlags::DONTWAIT);
    let Ok(Some(Ok(packet))) = packet else {
        return Err(SpawnError::NoWarden);
    };
    match line::decode(&packet.bytes) {
        Ok(ToNode::Ready(digest)) => Ok(DeathDigest(digest)),
        _ => Err(SpawnError::NoWarden),
    }
}

/// Units that the warden is told of in one go: some hundred microseconds of the heart's thread.
const TOLD_AT_ONCE: usize = 64;

/// How long a warden may take for its digest: it draws 32 bytes.
const READY_PATIENCE: Duration = Duration::from_secs(5);
