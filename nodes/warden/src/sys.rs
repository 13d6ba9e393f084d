//! What the warden asks of the system that Rust cannot check.
//!
//! Owns: every `unsafe` block of this crate: taking over the descriptor that a command line names,
//! the step between fork and exec of a helper, and three signals.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, Signal};

use crate::line::HELPER_FDS_MAX;

/// Takes the descriptor that the command line names to where nothing overwrites it. Its old number
/// is taken by nothing else: standard input becomes `/dev/null`, any other is closed.
pub(crate) fn take(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: the borrow ends in this statement, nothing else runs in this process yet that could
    // close the number, and the kernel refuses a number that is not open.
    let line =
        rustix::io::fcntl_dupfd_cloexec(unsafe { BorrowedFd::borrow_raw(number) }, FIRST_FREE_FD)?;
    match number {
        0 => rustix::stdio::dup2_stdin(File::open("/dev/null")?)?,
        1 | 2 => {}
        // SAFETY: the number is open, as was just seen; the caller gave it away with the command
        // line, and no value of this process owns it.
        _ => drop(unsafe { OwnedFd::from_raw_fd(number) }),
    }
    Ok(line)
}

/// Whatever was left open by who started the node is not the helpers'.
pub(crate) fn close_on_exec() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let Some(number) = number.filter(|number: &RawFd| *number >= FIRST_HELPER_FD) {
            // SAFETY: the borrow ends in this statement, and a flag of a descriptor breaks no
            // promise of whoever owns it. One that was closed since is refused by the kernel.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            let _ = rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC);
        }
    }
    Ok(())
}

/// Fills the numbers that helpers are given descriptors at, so that nothing that this process opens,
/// nor the pipe by which a failed exec is told, is ever overwritten by one.
pub(crate) fn reserve_helper_fds() -> io::Result<Vec<OwnedFd>> {
    let null = File::open("/dev/null")?;
    let mut reserved = Vec::new();
    loop {
        let fd = rustix::io::fcntl_dupfd_cloexec(&null, FIRST_HELPER_FD)?;
        if fd.as_raw_fd() >= FIRST_FREE_FD {
            return Ok(reserved);
        }
        reserved.push(fd);
    }
}

/// A stop that is meant for the node must not take the warden first: a service manager signals every
/// process it started, and the node drains while its warden holds its helpers.
pub(crate) fn ignore_stop_signals() {
    for signal in STOP_SIGNALS {
        // SAFETY: ignoring a signal installs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Has the helper that `command` starts live no longer than the thread that starts it, in a session
/// of its own, below everything else of the node, with `fds` at the numbers from 3 on.
pub(crate) fn prepare(command: &mut Command, warden: Pid, fds: Vec<OwnedFd>, open_files: Rlimit) {
    let step = move || {
        rustix::process::setsid()?;
        // After the change of user, which would clear it.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != Some(warden) {
            // The warden died before the line above: nobody would kill this helper.
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        rustix::process::setpriority_process(None, HELPER_NICE)?;
        rustix::process::setrlimit(Resource::Nofile, open_files)?;
        for signal in STOP_SIGNALS {
            // SAFETY: the default action is the kernel's, no code of ours.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        for (at, fd) in (FIRST_HELPER_FD..).zip(&fds) {
            // SAFETY: `at` is one of the numbers that `reserve_helper_fds` filled, so no value of
            // this process that is still used owns it. The copy has no close-on-exec flag.
            if unsafe { libc::dup2(fd.as_raw_fd(), at) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec only system calls may be made, because another thread may have
    // held any lock at the fork. The step makes nothing else: it allocates nothing (an error is a
    // number), frees nothing and locks nothing.
    unsafe { command.pre_exec(step) };
}

/// What service managers, terminals and people send.
const STOP_SIGNALS: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// Everything heavy runs below the node, whose heart must be heard.
const HELPER_NICE: i32 = 10;

const FIRST_HELPER_FD: RawFd = 3;

/// Descriptors of the warden itself begin here.
pub(crate) const FIRST_FREE_FD: RawFd = FIRST_HELPER_FD + HELPER_FDS_MAX as RawFd;
