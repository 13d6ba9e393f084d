//! The one clock of a node and its warden: `CLOCK_BOOTTIME`, which counts while the machine sleeps
//! (rule L2).

use rustix::time::{ClockId, Timespec, clock_gettime};
use understudy_protocol::time::Time;

/// Now.
pub(crate) fn now() -> Time {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(tv_sec).unwrap_or(0);
    let nanos = u64::try_from(tv_nsec).unwrap_or(0);
    Time::from_nanos(seconds.saturating_mul(NANOS_PER_SECOND) + nanos)
}

/// `at` as the kernel wants it.
pub(crate) fn timespec(at: Time) -> Timespec {
    Timespec {
        tv_sec: (at.as_nanos() / NANOS_PER_SECOND) as i64, // below 2^35
        tv_nsec: (at.as_nanos() % NANOS_PER_SECOND) as i64,
    }
}

const NANOS_PER_SECOND: u64 = 1_000_000_000;
