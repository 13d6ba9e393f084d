//! The warden's process: its start, its loop, its end.
//!
//! Owns: the machine and everything it acts on. Never waits for anything but its loop's one `poll`,
//! so a node that is stopped, a disk that hangs or a line that is full delays no kill.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::{DumpableBehavior, Pid, PidfdFlags, Resource, Rlimit};
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use understudy_protocol::cluster::lease::Warden;
use understudy_protocol::cluster::lease::warden::{Action, Event, HelperId};
use understudy_protocol::machine::Machine as _;
use understudy_protocol::time::Time;
use understudy_protocol::wire::heart::{DeathDigest, DeathNote};

use crate::clock;
use crate::helpers::{Change, Helpers, ORPHANS_FROM, Order};
use crate::line::{self, LineError, MESSAGE_BYTES_MAX, ToNode, ToWarden};
use crate::note;
use crate::scratch::Scratch;
use crate::sys;

/// The body of `understudy warden --fd N`: `line` is the number of the socket to the node, which this
/// takes over. Returns when everything is done, or at once when it cannot begin.
pub fn main(line: RawFd) -> ExitCode {
    // A warden with a fault must not live on with half of its memory: its death kills the helpers
    // and the node hears of it.
    std::panic::set_hook(Box::new(|fault| {
        say(&format!("{fault}"));
        std::process::abort()
    }));
    match run(line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("it ends: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Why a warden did not begin. No digest has left it, so nobody counts on it.
#[derive(Debug, thiserror::Error)]
enum BeginError {
    #[error("{0}")]
    System(#[from] io::Error),
    #[error("no node at the other end")]
    NoNode,
    #[error("{0}")]
    Line(#[from] LineError),
}

impl From<Errno> for BeginError {
    fn from(error: Errno) -> BeginError {
        BeginError::System(error.into())
    }
}

fn run(line: RawFd) -> Result<(), BeginError> {
    let line = sys::take(line)?;
    sys::close_on_exec()?;
    let _reserved = sys::reserve_helper_fds()?;
    sys::ignore_stop_signals();
    // Out of reach of what is meant for the node's terminal; refused to whom leads a group already.
    let _ = rustix::process::setsid();
    // Nobody else of the same user may read the secret, and no core holds it.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let open_files = rustix::process::getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: open_files.maximum,
        maximum: open_files.maximum,
    };
    rustix::process::setrlimit(Resource::Nofile, most)?;

    let node = node_of(&line)?;
    let secret = secret()?;
    let (incarnation, notes) = match first_message(&line, &node)? {
        ToWarden::Begin {
            incarnation, notes, ..
        } => (incarnation, PathBuf::from(path_from(&notes))),
        _ => return Err(LineError::NoMessage.into()),
    };
    let mut process = Process {
        machine: Warden::new(incarnation, secret),
        node: Some(node),
        line: Some(line),
        outbox: VecDeque::new(),
        helpers: Helpers::new(open_files)?,
        scratch: Scratch::new()?,
        newest_helper: None,
        voters: Vec::new(),
        notes,
        keeping: None,
        timer: timerfd_create(
            TimerfdClockId::Boottime,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?,
        packet: vec![0; MESSAGE_BYTES_MAX],
        is_done: false,
    };
    process.tell(ToNode::Ready(DeathDigest::of(&secret).0));
    process.guard()?;
    Ok(())
}

/// A handle of the process that made the line, which must be our parent *after* the handle was
/// opened: so it is the node, not whoever got its number.
fn node_of(line: &OwnedFd) -> Result<OwnedFd, BeginError> {
    let maker: Pid = rustix::net::sockopt::socket_peercred(line)?.pid;
    let handle = rustix::process::pidfd_open(maker, PidfdFlags::empty())?;
    if rustix::process::getppid() != Some(maker) {
        return Err(BeginError::NoNode);
    }
    Ok(handle)
}

fn secret() -> Result<[u8; 32], BeginError> {
    let mut secret = [0; 32];
    // Up to 256 bytes come whole or not at all.
    let drawn = getrandom(&mut secret, GetRandomFlags::empty())?;
    if drawn != secret.len() {
        return Err(io::Error::other("too little randomness").into());
    }
    Ok(secret)
}

fn first_message(line: &OwnedFd, node: &OwnedFd) -> Result<ToWarden, BeginError> {
    let mut ready = [
        PollFd::new(line, PollFlags::IN),
        PollFd::new(node, PollFlags::IN),
    ];
    let patience = Timespec {
        tv_sec: BEGIN_PATIENCE.as_secs() as i64,
        tv_nsec: 0,
    };
    poll(&mut ready, Some(&patience))?;
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    match line::receive(line, &mut buffer, RecvFlags::DONTWAIT)? {
        Some(packet) => Ok(line::request(&packet?)?),
        None => Err(BeginError::NoNode),
    }
}

struct Process {
    machine: Warden,
    /// The node's process; `None` once it has ended.
    node: Option<OwnedFd>,
    /// `None` once the other end is closed. That alone says nothing: a node may close it and live.
    line: Option<OwnedFd>,
    /// What the line had no room for.
    outbox: VecDeque<Vec<u8>>,
    helpers: Helpers,
    scratch: Scratch,
    newest_helper: Option<u64>,
    voters: Vec<SocketAddr>,
    notes: PathBuf,
    keeping: Option<Keeping>,
    timer: OwnedFd,
    packet: Vec<u8>,
    is_done: bool,
}

/// A note that is to be kept.
struct Keeping {
    note: DeathNote,
    tries: u32,
    try_at: Time,
}

impl Process {
    /// Until everything is done.
    fn guard(&mut self) -> Result<(), Errno> {
        loop {
            self.act();
            if self.is_done {
                self.scratch.finish();
                return Ok(());
            }
            let node_ended = self.wait()?;
            self.flush();
            // What the heart fed before the deadline is heard before the deadline is judged, and
            // what a node said before its death before its death; but no flood may delay either.
            let most = if node_ended {
                usize::MAX
            } else {
                HEARD_AT_ONCE
            };
            self.hear(most);
            self.look_after_helpers();
            self.act();
            if node_ended {
                self.node = None;
                self.line = None;
                self.tell_machine(Event::NodeEnded);
            }
            self.tell_machine(Event::Tick);
            self.act();
            self.keep();
        }
    }

    /// Waits for whatever comes first, and says whether the node's process has ended.
    fn wait(&mut self) -> Result<bool, Errno> {
        self.arm()?;
        let mut ready = vec![PollFd::new(&self.timer, PollFlags::IN)];
        if let Some(node) = &self.node {
            ready.push(PollFd::new(node, PollFlags::IN));
        }
        if let Some(line) = &self.line {
            let mut of_interest = PollFlags::empty();
            of_interest.set(PollFlags::IN, self.has_room());
            of_interest.set(PollFlags::OUT, !self.outbox.is_empty());
            ready.push(PollFd::new(line, of_interest));
        }
        for handle in self.helpers.handles() {
            ready.push(PollFd::from_borrowed_fd(handle, PollFlags::IN));
        }
        match poll(&mut ready, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let has_news = |fd: &PollFd<'_>| fd.revents().contains(PollFlags::IN);
        Ok(self.node.is_some() && has_news(&ready[1]))
    }

    /// Sets the timer. It counts like the lease, so a machine that slept past the deadline kills as
    /// it wakes.
    fn arm(&self) -> Result<(), Errno> {
        let now = clock::now();
        let look_again = (!self.helpers.is_idle()).then(|| now + SWEEP_PERIOD);
        let keep_again = self.keeping.as_ref().map(|keeping| keeping.try_at);
        let wake_at = [self.machine.next_deadline(), look_again, keep_again]
            .into_iter()
            .flatten()
            .min();
        // Zero would disarm it.
        let at = wake_at.map_or(Time::ZERO, |at| at.max(Time::from_nanos(1)));
        let timer = Itimerspec {
            it_interval: clock::timespec(Time::ZERO),
            it_value: clock::timespec(at),
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &timer)?;
        Ok(())
    }

    /// Takes what the node has said, at most `most` messages of it.
    fn hear(&mut self, most: usize) {
        for _ in 0..most.min(HEARD_AT_END) {
            let Some(line) = &self.line else { return };
            match line::receive(line, &mut self.packet, RecvFlags::DONTWAIT) {
                Ok(Some(packet)) => {
                    let heard = packet.and_then(|packet| {
                        let request = line::request(&packet)?;
                        self.obey(request, packet.fds)
                    });
                    if let Err(error) = heard {
                        self.tell(ToNode::NotUnderstood(error.to_string()));
                    }
                }
                Err(Errno::AGAIN) => return,
                Ok(None) | Err(_) => self.line = None,
            }
            self.act();
        }
    }

    fn obey(&mut self, request: ToWarden, fds: Vec<OwnedFd>) -> Result<(), LineError> {
        match request {
            ToWarden::Begin { .. } => return Err(LineError::Invalid("it has begun already")),
            ToWarden::Feed(until) => self.tell_machine(Event::Deadline(Time::from_nanos(until))),
            ToWarden::AtWork(unit) => self.tell_machine(Event::AtWork(unit)),
            ToWarden::AtRest(unit) => self.tell_machine(Event::AtRest(unit)),
            ToWarden::Voters(voters) => self.voters = line::addresses(&voters)?,
            ToWarden::Kill(id) => self.kill(HelperId(id)),
            ToWarden::Start { id, plan } => {
                if id >= ORPHANS_FROM || self.newest_helper.is_some_and(|newest| id <= newest) {
                    return Err(LineError::Invalid(
                        "a helper's id is used once, and ids grow",
                    ));
                }
                self.newest_helper = Some(id);
                let helper = HelperId(id);
                if let Some(folder) = &plan.scratch {
                    self.scratch.hold(helper, PathBuf::from(path_from(folder)));
                }
                // Held from here on, so that no note is written while it is being started.
                match self
                    .machine
                    .handle(clock::now(), Event::HelperStarted(helper))
                {
                    Ok(()) => self.helpers.start(helper, Order { plan, fds }),
                    Err(refused) => {
                        let why = refused.to_string();
                        self.tell(ToNode::Refused { id, why });
                        self.scratch.drop_of(helper);
                        self.tell_machine(Event::HelperReaped(helper));
                    }
                }
            }
        }
        Ok(())
    }

    fn look_after_helpers(&mut self) {
        for change in self.helpers.changes() {
            self.changed(change);
        }
    }

    fn changed(&mut self, change: Change) {
        match change {
            Change::Started(HelperId(id), pid) => {
                let pid = pid.as_raw_pid();
                self.tell(ToNode::Started { id, pid });
            }
            Change::NotStarted(helper, error) => {
                let why = error.to_string();
                self.tell(ToNode::Refused { id: helper.0, why });
                self.scratch.drop_of(helper);
                self.tell_machine(Event::HelperReaped(helper));
            }
            Change::Orphan(orphan) => self.tell_machine(Event::HelperStarted(orphan)),
            Change::Reaped(helper, status) => {
                if helper.0 < ORPHANS_FROM {
                    self.scratch.drop_of(helper);
                    self.tell(ToNode::Ended {
                        id: helper.0,
                        code: status.exit_status(),
                        signal: status.terminating_signal(),
                    });
                }
                self.tell_machine(Event::HelperReaped(helper));
            }
        }
    }

    fn kill(&mut self, helper: HelperId) {
        if let Some(change) = self.helpers.kill(helper) {
            self.changed(change);
        }
    }

    /// The machine refuses only helpers, and has them killed by an action.
    fn tell_machine(&mut self, event: Event) {
        let _ = self.machine.handle(clock::now(), event);
    }

    fn act(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Kill(helper) => self.kill(helper),
                Action::KeepNote(note) => {
                    self.keeping = Some(Keeping {
                        note,
                        tries: 0,
                        try_at: clock::now(),
                    });
                }
                Action::SendNote(note) => note::send(&self.voters, &note),
                Action::Exit => self.is_done = true,
            }
        }
    }

    /// Writes the note, once the kernel itself says that nothing is left below this process.
    fn keep(&mut self) {
        let now = clock::now();
        let is_due = |keeping: &Keeping| keeping.try_at <= now;
        if !self.keeping.as_ref().is_some_and(is_due) {
            return;
        }
        if !self.helpers.are_all_gone() {
            // The next sweep takes in what is still there, and the machine waits for its end.
            if let Some(keeping) = &mut self.keeping {
                keeping.try_at = now + KEEP_PERIOD;
            }
            return;
        }
        let Some(mut keeping) = self.keeping.take() else {
            return;
        };
        keeping.tries += 1;
        match note::keep(&self.notes, &keeping.note) {
            Err(error) if keeping.tries < KEEP_TRIES => {
                say(&format!("the death note is not on disk yet: {error}"));
                keeping.try_at = now + KEEP_PERIOD;
                self.keeping = Some(keeping);
            }
            // A disk that takes nothing must not silence the note, which proves itself: what is lost
            // is only that the node's next start could send it again.
            _ => self.tell_machine(Event::NoteKept),
        }
    }

    /// Tells the node, or keeps it for when the line has room: a stopped node delays nothing.
    fn tell(&mut self, message: ToNode) {
        let room = self.outbox.len() < OUTBOX_MAX + ANSWERS_BEYOND;
        if let Some(bytes) = line::encode(&message).filter(|_| room && self.line.is_some()) {
            self.outbox.push_back(bytes);
            self.flush();
        }
    }

    fn flush(&mut self) {
        while let (Some(line), Some(bytes)) = (&self.line, self.outbox.front()) {
            match line::send(line, bytes, &[]) {
                Ok(()) => {
                    self.outbox.pop_front();
                }
                Err(Errno::AGAIN) => return,
                // The other end is closed, or will be found closed by the next reading.
                Err(_) => self.outbox.clear(),
            }
        }
    }

    /// A node that does not listen is not listened to: each of its messages may cost an answer.
    fn has_room(&self) -> bool {
        self.outbox.len() < OUTBOX_MAX
    }
}

fn path_from(bytes: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

/// Says it on standard error, unless that would wait for a reader.
fn say(what: &str) {
    let stderr = io::stderr();
    let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    if poll(&mut ready, Some(&at_once)) == Ok(1) && ready[0].revents().contains(PollFlags::OUT) {
        // A pipe that is ready takes this many bytes without waiting (PIPE_BUF).
        let mut line = format!("warden: {what}\n").into_bytes();
        line.truncate(4_096);
        let _ = io::stderr().write_all(&line);
    }
}

/// Between two looks for orphans that no helper's end announced.
const SWEEP_PERIOD: Duration = Duration::from_secs(1);

/// How long a node may take for its first word: it speaks right after the fork.
const BEGIN_PATIENCE: Duration = Duration::from_secs(10);

/// Messages heard between two looks at the clock: a few hundred microseconds of work.
const HEARD_AT_ONCE: usize = 64;

/// Messages heard of a node that has ended: a socket's buffer of 208 KiB holds fewer, and nobody
/// adds to it any more.
const HEARD_AT_END: usize = 4_096;

/// Answers that wait for the line before the node is no longer heard: twice what all helpers cause.
const OUTBOX_MAX: usize = 16_384;

/// The ends of all helpers come also while the node is not heard.
const ANSWERS_BEYOND: usize = 16_384;

/// Tries to write the note: they span half a second, past a hiccup of the disk.
const KEEP_TRIES: u32 = 5;

/// Between two of them.
const KEEP_PERIOD: Duration = Duration::from_millis(100);
