//! How many in a second.

use std::time::Duration;

use understudy_protocol::time::Time;

/// Lets so many pass in each second, and counts the others.
#[derive(Debug)]
pub(super) struct Rate {
    in_a_second: u32,
    since: Time,
    passed: u32,
    held: u64,
}

impl Rate {
    pub(super) fn new(in_a_second: u32) -> Rate {
        Rate {
            in_a_second,
            since: Time::ZERO,
            passed: 0,
            held: 0,
        }
    }

    /// Whether one may pass now; and then how many were held back since the last one that did.
    pub(super) fn pass(&mut self, now: Time) -> Option<u64> {
        if now.since(self.since) >= Duration::from_secs(1) {
            (self.since, self.passed) = (now, 0);
        }
        if self.passed == self.in_a_second {
            self.held += 1;
            return None;
        }
        self.passed += 1;
        Some(std::mem::take(&mut self.held))
    }
}
