//! The node's clock.
//!
//! Owns: the one place where a shell reads the time that machines are given. Never reads the wall
//! clock, which may be set, nor `CLOCK_MONOTONIC`, which stands still while the machine is suspended:
//! a lease must end then too (rule L2).

use rustix::time::{ClockId, clock_gettime};
use understudy_protocol::time::Time;

/// Now, on `CLOCK_BOOTTIME`: the same clock in every process of the machine, so that a node and its
/// warden compare the same instants. Nanoseconds since the machine started.
pub fn now() -> Time {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    Time::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_clock_counts_nanoseconds_and_never_goes_back() {
        let (_silent, hears) = std::sync::mpsc::sync_channel::<()>(1);
        let before = now();
        let heard = hears.recv_timeout(Duration::from_millis(20));
        assert!(heard.is_err(), "nobody says anything");
        let span = now().since(before);
        assert!(
            span >= Duration::from_millis(20) && span < Duration::from_secs(20),
            "{span:?}"
        );
    }
}
