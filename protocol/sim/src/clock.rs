//! A node's own clock, and true time.
//!
//! Owns: drift (within the 1 % of rule L2) and the clock of a virtual machine that was paused with its
//! host not telling it. Never shows true time to a machine.

use std::time::Duration;

use understudy_protocol::time::Time;

/// True time since the run began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct True(pub u64);

impl True {
    /// `seconds` after the beginning.
    pub const fn secs(seconds: u64) -> True {
        True(seconds * 1_000_000_000)
    }

    /// Later by `span`.
    #[must_use]
    pub fn after(self, span: Duration) -> True {
        True(self.0 + span.as_nanos() as u64)
    }

    /// How long ago `earlier` was.
    pub fn since(self, earlier: True) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// One node's `CLOCK_BOOTTIME`.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    base_true: True,
    base_local: u64,
    /// Parts per million that it runs fast.
    drift_ppm: i64,
}

impl Clock {
    /// A clock that shows `local` nanoseconds at the beginning.
    pub fn new(local: u64, drift_ppm: i64) -> Clock {
        Clock {
            base_true: True(0),
            base_local: local,
            drift_ppm,
        }
    }

    /// What it shows.
    pub fn show(&self, now: True) -> Time {
        let passed = i128::from(now.0 - self.base_true.0);
        let shown = passed * i128::from(1_000_000 + self.drift_ppm) / 1_000_000;
        Time::from_nanos(self.base_local + shown as u64)
    }

    /// The first true instant at which it shows `at` or more.
    pub fn when(&self, at: Time) -> True {
        let ahead = i128::from(at.as_nanos()) - i128::from(self.base_local);
        let needed =
            (ahead * 1_000_000 + i128::from(999_999)) / i128::from(1_000_000 + self.drift_ppm);
        True((i128::from(self.base_true.0) + needed.max(0) + 1) as u64)
    }

    /// It stood still from `from` until now.
    pub fn stood_still(&mut self, from: True, now: True) {
        let shown = self.show(from).as_nanos();
        *self = Clock {
            base_true: now,
            base_local: shown,
            drift_ppm: self.drift_ppm,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_reached_when_the_clock_says_so_and_not_before() {
        for drift in [-10_000, -3, 0, 7, 10_000] {
            let clock = Clock::new(5_000_000_000, drift);
            for ahead in [0, 1, 999, 1_000_003, 77_000_000_001] {
                let at = Time::from_nanos(5_000_000_000 + ahead);
                let when = clock.when(at);
                assert!(clock.show(when) >= at, "drift {drift}, ahead {ahead}");
                assert!(when.0 < 3 || clock.show(True(when.0 - 3)) <= at);
            }
        }
    }
}
