//! A thread that runs before all others.
//!
//! Owns: the crate's only `unsafe`.

use std::io;

/// Gives the calling thread real-time priority (`SCHED_RR`); what it starts has none.
///
/// # Errors
///
/// When the process may not: it takes `CAP_SYS_NICE`, or a limit for real-time priorities. Nothing has
/// changed.
pub(crate) fn prefer_this_thread() -> io::Result<()> {
    // SAFETY: the structure is plain numbers, for which zeroes are values.
    let mut wish: libc::sched_param = unsafe { std::mem::zeroed() };
    wish.sched_priority = PRIORITY;
    let policy = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
    // SAFETY: 0 names the calling thread, and `wish` outlives the call, which only reads it.
    let done = unsafe { libc::sched_setscheduler(0, policy, &wish) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Above everything that is not real-time, below a kernel's own threads.
const PRIORITY: libc::c_int = 10;
