//! One process, kept: started, started again when it ends, and ended for good when told to.
//!
//! Owns: the process from its start until it is reaped, and this crate's only `unsafe`. Never leaves
//! one behind: the kernel ends it even when this process is killed.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, getpid, getppid, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// What to run.
pub(super) struct Program {
    pub(super) name: String,
    pub(super) exe: PathBuf,
    pub(super) args: Vec<OsString>,
    /// Where its output goes, behind what is there.
    pub(super) log: PathBuf,
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    No,
    /// SIGTERM, and after [`STOP_PATIENCE`] SIGKILL.
    Gently,
    /// SIGKILL.
    Now,
}

/// What has happened.
#[derive(Debug)]
pub(super) enum Told {
    Started {
        name: String,
        pid: u32,
        again: bool,
    },
    Ended {
        name: String,
        status: ExitStatus,
        wait: Duration,
    },
    NotStarted {
        name: String,
        error: io::Error,
        wait: Duration,
    },
}

/// Keeps the program running until it is stopped; then no process of it is left.
pub(super) async fn keep(
    program: Program,
    mut stop: watch::Receiver<Stop>,
    told: mpsc::Sender<Told>,
) {
    let name = || program.name.clone();
    let mut wait = WAIT_FIRST;
    let mut again = false;
    loop {
        let started = Instant::now();
        let ended = match spawn(&program) {
            Ok(mut child) => {
                let pid = child.id().unwrap_or(0);
                let name = name();
                let _ = told.try_send(Told::Started { name, pid, again });
                tokio::select! {
                    ended = child.wait() => ended,
                    () = told_to_stop(&mut stop) => return end(child, stop).await,
                }
            }
            Err(error) => Err(error),
        };
        again = true;
        if started.elapsed() >= STEADY {
            wait = WAIT_FIRST;
        }
        let name = name();
        // A report that finds no room is not worth a node's life.
        let _ = told.try_send(match ended {
            Ok(status) => Told::Ended { name, status, wait },
            Err(error) => Told::NotStarted { name, error, wait },
        });
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = told_to_stop(&mut stop) => return,
        }
        wait = (wait * 2).min(WAIT_MAX);
    }
}

fn spawn(program: &Program) -> io::Result<Child> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&program.log)?;
    let mut command = Command::new(&program.exe);
    command
        .args(&program.args)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C at the terminal is for this process, which ends the others in its own way.
        .process_group(0)
        .kill_on_drop(true);
    let parent = getpid();
    let bound = move || bound_to(parent);
    // SAFETY: between fork and exec only two system calls are made, `prctl` and `getppid`; both are
    // async-signal-safe, and nothing is allocated or locked. `bound_to` keeps to that.
    unsafe { command.pre_exec(bound) };
    command.spawn()
}

/// The process that calls this is ended when `parent` ends: also when that one is killed.
fn bound_to(parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    if getppid() == Some(parent) {
        Ok(())
    } else {
        // It ended before the kernel was told.
        Err(io::Error::from_raw_os_error(
            rustix::io::Errno::SRCH.raw_os_error(),
        ))
    }
}

async fn end(mut child: Child, mut stop: watch::Receiver<Stop>) {
    // A node that is told once moves its units away first; told twice, it stops at once. Here all
    // end, so there is nowhere to move them to.
    for _ in 0..2 {
        // While it has not been waited for, its id is nobody else's.
        if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            let _ = kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(TOLD_APART, child.wait()).await.is_ok() {
            return;
        }
    }
    tokio::select! {
        _ = child.wait() => return,
        () = tokio::time::sleep(STOP_PATIENCE) => {}
        _ = stop.wait_for(|stop| *stop == Stop::Now) => {}
    }
    let _ = child.kill().await;
}

async fn told_to_stop(stop: &mut watch::Receiver<Stop>) {
    // An error means that whoever could say so is gone, which says it too.
    let _ = stop.wait_for(|stop| *stop != Stop::No).await;
}

/// How long a node may take to stop: its children write their last records.
pub(super) const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// Between the two signals: two at once would be one.
const TOLD_APART: Duration = Duration::from_millis(250);

/// The first wait before a start: systemd's own.
const WAIT_FIRST: Duration = Duration::from_millis(100);

/// The longest: so that what is mended is noticed before a person looks for it.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Who ran this long has started well.
const STEADY: Duration = Duration::from_secs(10);
