//! The processes below a warden: started, killed, reaped.
//!
//! Owns: the thread that starts helpers, a pidfd for each process, and the orphans. Never decides
//! when a helper dies: the machine does.
//!
//! One thread starts every helper and lives as long as the warden, because the kernel kills a helper
//! when the *thread* that started it ends. It is not the thread of the main loop, so that an exec
//! which waits for a dead disk delays no kill. One start is under way at a time.
//!
//! A child is only ever signalled through a pidfd that was seen to be ours, so a number that the
//! kernel has given to somebody else is never killed.
//!
//! **Orphans.** The warden is a subreaper: what a helper leaves behind becomes the warden's child. A
//! leaving in the session of a helper that lives is held like a helper; any other, a daemon or what
//! outlived its helper, has nobody who answers for it and is killed at once.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Rlimit, Signal, WaitId, WaitIdOptions, WaitIdStatus, getpid, getsid,
    pidfd_open, pidfd_send_signal, waitid,
};
use understudy_protocol::cluster::lease::warden::HelperId;

use crate::line::{Plan, User};

/// Every process below this warden.
pub(crate) struct Helpers {
    running: BTreeMap<HelperId, Process>,
    waiting: VecDeque<(HelperId, Order)>,
    starting: Option<Starting>,
    orders: SyncSender<Order>,
    outcomes: Receiver<io::Result<Pid>>,
    woken: Arc<OwnedFd>,
    orphans: u64,
}

/// What to start.
pub(crate) struct Order {
    pub(crate) plan: Plan,
    pub(crate) fds: Vec<OwnedFd>,
}

/// What became of processes.
pub(crate) enum Change {
    /// A helper runs.
    Started(HelperId, Pid),
    /// A helper could not be started.
    NotStarted(HelperId, io::Error),
    /// An orphan came to the warden; it is held under this name.
    Orphan(HelperId),
    /// A process has ended and is reaped.
    Reaped(HelperId, WaitIdStatus),
}

struct Process {
    pid: Pid,
    handle: OwnedFd,
}

struct Starting {
    id: HelperId,
    is_doomed: bool,
}

impl Helpers {
    /// None yet, and the thread that will start them.
    pub(crate) fn new(open_files: Rlimit) -> io::Result<Helpers> {
        let woken = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        // One start is under way at a time.
        let (orders, ordered) = sync_channel::<Order>(1);
        let (outcome, outcomes) = sync_channel(1);
        let wake = Arc::clone(&woken);
        thread::Builder::new().spawn(move || {
            for order in ordered {
                if outcome.send(start(order, &open_files)).is_err() {
                    return;
                }
                let _ = rustix::io::write(&wake, &1_u64.to_ne_bytes());
            }
        })?;
        Ok(Helpers {
            running: BTreeMap::new(),
            waiting: VecDeque::new(),
            starting: None,
            orders,
            outcomes,
            woken,
            orphans: 0,
        })
    }

    /// Starts a helper, after those that wait already.
    pub(crate) fn start(&mut self, id: HelperId, order: Order) {
        self.waiting.push_back((id, order));
        self.start_next();
    }

    fn start_next(&mut self) {
        if self.starting.is_some() {
            return;
        }
        if let Some((id, order)) = self.waiting.pop_front() {
            let is_doomed = false;
            self.starting = Some(Starting { id, is_doomed });
            self.orders
                .try_send(order)
                .expect("the starter lives as long as the warden and has nothing to do");
        }
    }

    /// Kills a helper (`SIGKILL`). Whatever state it is in, a [`Change`] tells of its end.
    pub(crate) fn kill(&mut self, id: HelperId) -> Option<Change> {
        if let Some(process) = self.running.get(&id) {
            process.kill();
        }
        if let Some(starting) = self.starting.as_mut().filter(|starting| starting.id == id) {
            starting.is_doomed = true;
        }
        let place = self.waiting.iter().position(|(waits, _)| *waits == id)?;
        self.waiting.remove(place);
        let never = io::Error::other("it was killed before it was started");
        Some(Change::NotStarted(id, never))
    }

    /// What has happened since: starts first, then orphans, then ends. So whoever counts processes
    /// hears of an orphan before the end of the helper that left it.
    pub(crate) fn changes(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut drained = [0; 8];
        let _ = rustix::io::read(&self.woken, &mut drained);
        while let Ok(outcome) = self.outcomes.try_recv() {
            let Starting { id, is_doomed } = self.starting.take().expect("one was under way");
            changes.push(match outcome.and_then(|pid| Ok((pid, open(pid)?))) {
                Ok((pid, handle)) => {
                    let process = Process { pid, handle };
                    if is_doomed {
                        process.kill();
                    }
                    self.running.insert(id, process);
                    Change::Started(id, pid)
                }
                Err(error) => Change::NotStarted(id, error),
            });
            self.start_next();
        }
        let mut ended = Vec::new();
        self.running.retain(|id, process| match process.reap() {
            Some(status) => {
                ended.push(Change::Reaped(*id, status));
                false
            }
            None => true,
        });
        changes.extend(self.sweep());
        changes.extend(ended);
        changes
    }

    /// Takes in what helpers left behind, and kills what no living helper's session holds.
    fn sweep(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        match &self.starting {
            // The child that is being started is not known by its number yet.
            Some(starting) if !starting.is_doomed => {}
            Some(_) => self.strangers().iter().for_each(Process::kill),
            None => {
                for process in self.strangers() {
                    self.orphans += 1;
                    let id = HelperId(ORPHANS_FROM | self.orphans);
                    self.running.insert(id, process);
                    changes.push(Change::Orphan(id));
                }
            }
        }
        let sessions: HashSet<Pid> = self.helpers().map(|(_, process)| process.pid).collect();
        for (_, orphan) in self.running.range(HelperId(ORPHANS_FROM)..) {
            // Asked every time: a daemon leaves its session when it likes.
            if !getsid(Some(orphan.pid)).is_ok_and(|session| sessions.contains(&session)) {
                orphan.kill();
            }
        }
        changes
    }

    /// Children of this process that it does not know.
    fn strangers(&self) -> Vec<Process> {
        let known: HashSet<Pid> = self.running.values().map(|process| process.pid).collect();
        children()
            .into_iter()
            .filter(|pid| !known.contains(pid))
            .filter_map(|pid| {
                let process = Process {
                    pid,
                    handle: open(pid).ok()?,
                };
                // Only a child can be waited for: the number still means the process that was read.
                process.is_child().then_some(process)
            })
            .collect()
    }

    fn helpers(&self) -> impl Iterator<Item = (&HelperId, &Process)> {
        self.running.range(..HelperId(ORPHANS_FROM))
    }

    /// Whether this process has no child, known or not, dead or alive, and starts none.
    pub(crate) fn are_all_gone(&self) -> bool {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        self.starting.is_none()
            && self.waiting.is_empty()
            && matches!(waitid(WaitId::All, look), Err(Errno::CHILD))
    }

    /// Whether there is anything to look after.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.starting.is_none()
    }

    /// Readable when [`Helpers::changes`] has something to say (but for an orphan that just came).
    pub(crate) fn handles(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let ends = self.running.values().map(|process| process.handle.as_fd());
        ends.chain([self.woken.as_fd()])
    }
}

impl Process {
    fn kill(&self) {
        // One that has just ended needs no killing; nothing else can go wrong below us.
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
    }

    fn reap(&self) -> Option<WaitIdStatus> {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        waitid(WaitId::PidFd(self.handle.as_fd()), look).ok()?
    }

    fn is_child(&self) -> bool {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::PidFd(self.handle.as_fd()), look).is_ok()
    }
}

fn open(pid: Pid) -> io::Result<OwnedFd> {
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Forks and execs; on the starter's thread.
fn start(order: Order, open_files: &Rlimit) -> io::Result<Pid> {
    let Order { plan, fds } = order;
    let mut command = Command::new(OsStr::from_bytes(&plan.program));
    command
        .args(plan.args.iter().map(|arg| OsStr::from_bytes(arg)))
        .current_dir(Path::new(OsStr::from_bytes(&plan.dir)))
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    for variable in &plan.env {
        let (name, value) = (&variable.name, &variable.value);
        command.env(OsStr::from_bytes(name), OsStr::from_bytes(value));
    }
    if let Some(User { uid, gid }) = plan.user {
        command.uid(uid).gid(gid);
    }
    crate::sys::prepare(&mut command, getpid(), fds, *open_files);
    let child = command.spawn()?;
    // Dropping it neither kills nor reaps: the main loop does both, by its number.
    Ok(Pid::from_child(&child))
}

/// The numbers of this process's children, of whichever of its threads.
fn children() -> Vec<Pid> {
    let Ok(threads) = fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .flat_map(|line| {
            let numbers = line.split_ascii_whitespace().map(str::parse);
            numbers.filter_map(Result::ok).collect::<Vec<i32>>()
        })
        .filter_map(Pid::from_raw)
        .collect()
}

/// Orphans are named from here on, helpers below.
pub(crate) const ORPHANS_FROM: u64 = 1 << 63;
