//! The probe: a process that opens a store before the node does.
//!
//! Owns: its limits and what its end means. sled 0.34.7 hangs on some damaged pages, and on a file cut
//! short it takes memory until it is killed; nothing inside the node may do either. What the probe has
//! opened and read to the end, the node opens.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, pidfd_open, prlimit};
use understudy_supervision::clock;

use crate::data_dir::OpenError;
use crate::fsck::{SAYS, SAYS_BEGUN, SAYS_DAMAGED, SAYS_NEWER, SAYS_REFUSED, SAYS_USABLE};
use crate::ledger::DATABASE;

/// What the probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The store can go on under its id.
    Usable,
    /// It must not.
    Damaged(String),
}

/// How the probe is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    exe: PathBuf,
    time_max: Duration,
}

impl Probe {
    /// Run as `EXE store fsck --probe DATA`: the `understudy` binary, or whatever calls
    /// [`probe`](crate::probe).
    pub fn new(exe: impl Into<PathBuf>) -> Probe {
        Probe {
            exe: exe.into(),
            time_max: TIME_MAX,
        }
    }

    /// With another limit of time than 30 s. A second more is given for every 32 MiB.
    #[must_use]
    pub fn within(self, time_max: Duration) -> Probe {
        Probe { time_max, ..self }
    }
}

/// Runs the probe and waits for its end, or ends it.
pub(crate) fn run(probe: &Probe, data: &Path, records: &Path) -> Result<Verdict, OpenError> {
    let exe = &probe.exe;
    let not_run = |error: &dyn std::fmt::Display| {
        OpenError::Probe(format!("{} did not run: {error}", exe.display()))
    };
    let limit = probe.time_max + time_to_read(records);
    let mut child = Command::new(exe)
        .args(["store", "fsck", "--probe"])
        .arg(data)
        // Each of the allocator's arenas sets 64 MiB of addresses aside, which would count.
        .env("MALLOC_ARENA_MAX", "2")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| not_run(&error))?;
    let ended = confine(&child, limit).and_then(|()| wait(&mut child, limit));
    if !matches!(ended, Ok(Some(_))) {
        // Only this child, by its own handle; and reaped, so that nothing holds sled's lock.
        let _ = child.kill();
        let _ = child.wait();
    }
    let ended = ended.map_err(|error| not_run(&error))?;
    judge(ended, limit, &said(&mut child))
}

/// What the probe's words mean and, when it did not come to an end with them, how it ended.
fn judge(ended: Option<ExitStatus>, limit: Duration, said: &str) -> Result<Verdict, OpenError> {
    let words: Vec<&str> = said
        .lines()
        .filter_map(|line| Some(line.split_once(SAYS)?.1))
        .collect();
    let [SAYS_BEGUN, rest @ ..] = &words[..] else {
        return Err(OpenError::Probe("what was started is no probe".into()));
    };
    let word = rest.first().copied().unwrap_or_default();
    if word == SAYS_USABLE {
        return Ok(Verdict::Usable);
    }
    if let Some(reason) = word.strip_prefix(SAYS_DAMAGED) {
        return Ok(Verdict::Damaged(reason.to_owned()));
    }
    if let Some(reason) = word.strip_prefix(SAYS_NEWER) {
        return Err(OpenError::Newer(reason.to_owned()));
    }
    if let Some(reason) = word.strip_prefix(SAYS_REFUSED) {
        return Err(OpenError::Probe(reason.to_owned()));
    }
    let Some(status) = ended else {
        let seconds = limit.as_secs();
        let reason = format!("the probe was not done after {seconds} s");
        return Ok(Verdict::Damaged(reason));
    };
    let died_of_damage = status.code() == Some(PANICKED)
        || DIED_OF_DAMAGE
            .iter()
            .any(|died| status.signal() == Some(died.as_raw()));
    match died_of_damage {
        true => Ok(Verdict::Damaged(format!("the probe died of it: {status}"))),
        // Somebody ended it: that says nothing of the store.
        false => Err(OpenError::Probe(format!("it ended early: {status}"))),
    }
}

fn confine(child: &Child, limit: Duration) -> rustix::io::Result<()> {
    let pid = Some(Pid::from_child(child));
    let to = |most: u64| Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    prlimit(pid, Resource::As, to(MEMORY_BYTES_MAX))?;
    // If this process dies first, a probe that hangs ends by itself.
    prlimit(
        pid,
        Resource::Cpu,
        to(limit.as_secs() * CPU_SECONDS_A_SECOND),
    )?;
    prlimit(pid, Resource::Core, to(0))?;
    Ok(())
}

/// Waits for the child's end; `None` when the limit is over first.
fn wait(child: &mut Child, limit: Duration) -> rustix::io::Result<Option<ExitStatus>> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let until = clock::now() + limit;
    loop {
        let left = until.since(clock::now());
        if left.is_zero() {
            return Ok(None);
        }
        let left = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => {
                let status = child.wait().map_err(|_| Errno::CHILD)?;
                return Ok(Some(status));
            }
            Err(error) => return Err(error),
        }
    }
}

/// What the probe said.
fn said(child: &mut Child) -> String {
    let mut said = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        // What cannot be read is only the wording.
        let _ = stdout.take(SAID_BYTES_MAX).read_to_end(&mut said);
    }
    String::from_utf8_lossy(&said).trim().to_owned()
}

/// A large store takes longer to read, and is not damaged for that.
fn time_to_read(records: &Path) -> Duration {
    let bytes = std::fs::metadata(records.join(DATABASE).join("db")).map_or(0, |file| file.len());
    Duration::from_secs(bytes / BYTES_A_SECOND_MIN)
}

/// How long the probe may take: a small store is read in milliseconds, one that hangs never.
const TIME_MAX: Duration = Duration::from_secs(30);
/// And a second more for so many bytes of the database: a slow disk reads more.
const BYTES_A_SECOND_MIN: u64 = 32 * 1024 * 1024;
/// Addresses that the probe may take: sound stores of two million children need less, and a machine
/// with 2 GiB survives it.
const MEMORY_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// sled reads with several threads.
const CPU_SECONDS_A_SECOND: u64 = 4;

/// What a panicking Rust program exits with.
const PANICKED: i32 = 101;
/// Out of memory, out of time, or sled's own mistakes on damaged pages.
const DIED_OF_DAMAGE: [Signal; 7] = [
    Signal::ABORT,
    Signal::SEGV,
    Signal::BUS,
    Signal::ILL,
    Signal::FPE,
    Signal::TRAP,
    Signal::XCPU,
];

/// More than its two lines.
const SAID_BYTES_MAX: u64 = 4_096;
