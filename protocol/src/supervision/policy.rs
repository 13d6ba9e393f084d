//! What a supervisor is told once: strategy, restart type, restart intensity and backoff.
//!
//! Owns: the vocabulary of OTP's `supervisor` behaviour
//! (<https://www.erlang.org/doc/apps/stdlib/supervisor.html>) and its arithmetic, as values that
//! decide alone. Never holds a child. All arithmetic is on whole milliseconds and integers, so that
//! every replica of the directory computes the same instant.

use alloc::collections::VecDeque;
use core::time::Duration;

use minicbor::{Decode, Encode};

use crate::time::ClusterTime;

/// How one supervisor restarts its children.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Policy {
    /// Who restarts with a child that failed.
    #[n(0)]
    pub strategy: Strategy,
    /// How many restarts are too many.
    #[n(1)]
    pub intensity: Intensity,
    /// How long a child that keeps failing waits.
    #[n(2)]
    pub backoff: Backoff,
}

impl Policy {
    /// `strategy` with the default intensity and backoff.
    pub const fn new(strategy: Strategy) -> Policy {
        Policy {
            strategy,
            intensity: Intensity::DEFAULT,
            backoff: Backoff::DEFAULT,
        }
    }

    /// Whether no span is above [`SPAN_MAX`].
    pub fn is_within_limits(&self) -> bool {
        let spans = [self.intensity.window, self.backoff.first, self.backoff.max];
        spans.iter().all(|span| *span <= SPAN_MAX)
    }
}

/// Who restarts with a child that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum Strategy {
    /// The child alone.
    #[n(0)]
    OneForOne,
    /// Every child: none can live without the others.
    #[n(1)]
    OneForAll,
    /// The child and those started after it, which may lean on it.
    #[n(2)]
    RestForOne,
}

/// Which of its exits a child is started again after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum RestartType {
    /// After every exit.
    #[n(0)]
    Permanent,
    /// After an abnormal exit only.
    #[n(1)]
    Transient,
    /// After none, not even with its group: it is forgotten when it is down.
    #[n(2)]
    Temporary,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum Exit {
    /// Its work was done.
    #[n(0)]
    Normal,
    /// Someone who may asked it to stop. As good as normal.
    #[n(1)]
    Shutdown,
    /// Everything else: a panic, a trap, a kill, a start that failed.
    #[n(2)]
    Abnormal,
}

impl RestartType {
    /// Whether a child of this type that ended by itself with `exit` is started again.
    pub const fn restarts_after(self, exit: Exit) -> bool {
        match self {
            RestartType::Permanent => true,
            RestartType::Transient => matches!(exit, Exit::Abnormal),
            RestartType::Temporary => false,
        }
    }
}

/// At most `restarts` within `window`; one more, and the supervisor gives up. A restart exactly
/// `window` ago still counts, as in OTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Intensity {
    /// How many are still in order. Sixteen bits are the limit: the history keeps one instant for
    /// each, so no policy can make it larger than half a megabyte.
    #[n(0)]
    pub restarts: u16,
    /// Over how long.
    #[n(1)]
    pub window: Duration,
}

impl Intensity {
    /// Five in ten seconds. OTP's own default, one in five seconds, is meant for children on one
    /// healthy machine; five lets a child outlive a dependency that takes a few seconds to return,
    /// and a child that dies at once still escalates after about three seconds of backoff.
    pub const DEFAULT: Intensity = Intensity {
        restarts: 5,
        window: Duration::from_secs(10),
    };
}

/// The restarts that may still count, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct RestartHistory(#[n(0)] VecDeque<ClusterTime>);

impl RestartHistory {
    /// None yet.
    pub const fn new() -> RestartHistory {
        RestartHistory(VecDeque::new())
    }

    /// Notes a restart and says whether the intensity allows it. Keeps at most the allowed restarts
    /// and the one that was too many.
    pub fn allows_one_more(&mut self, now: ClusterTime, intensity: Intensity) -> bool {
        let allowed = usize::from(intensity.restarts);
        self.0.push_back(now);
        while self
            .0
            .front()
            .is_some_and(|at| now.since(*at) > intensity.window)
        {
            self.0.pop_front();
        }
        let within = self.0.len() <= allowed;
        while self.0.len() > allowed + 1 {
            self.0.pop_front();
        }
        within
    }

    /// Whether [`RestartHistory::allows_one_more`] could have left it like this.
    pub(super) fn fits(&self, intensity: Intensity) -> bool {
        self.0.len() <= usize::from(intensity.restarts) + 1 && self.0.iter().is_sorted()
    }

    /// How many restarts lie within `window` before `now`.
    pub fn within(&self, now: ClusterTime, window: Duration) -> usize {
        self.0.iter().filter(|at| now.since(**at) <= window).count()
    }
}

/// Exponential backoff: `first`, doubled with each consecutive failure up to `max`, then jittered.
/// Whole milliseconds; a shorter `first` means none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Backoff {
    /// The longest wait after a first failure.
    #[n(0)]
    pub first: Duration,
    /// The longest wait of all.
    #[n(1)]
    pub max: Duration,
}

impl Backoff {
    /// A tenth of a second, which a caller's deadline survives, up to ten seconds, so that a mended
    /// dependency is noticed before a person would look for it.
    pub const DEFAULT: Backoff = Backoff {
        first: Duration::from_millis(100),
        max: Duration::from_secs(10),
    };

    /// How long the `failures`-th consecutive failure waits.
    pub fn delay(self, failures: u32, random: u64) -> Duration {
        let doublings = failures.saturating_sub(1).min(63);
        let span = millis(self.first)
            .saturating_mul(1 << doublings)
            .min(millis(self.max));
        jittered(Duration::from_millis(span), random)
    }
}

/// The longest window and the longest backoff: whatever waits longer than a year has been given up,
/// and so far from the end of the numbers no sum of spans gets there.
pub const SPAN_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Between half of `span` and all of it ("equal jitter"): those who failed together come back
/// apart, and yet no one comes back at once. `random` is uniform over all 64 bits.
pub(super) fn jittered(span: Duration, random: u64) -> Duration {
    let span = millis(span);
    let half = span / 2;
    let choices = u128::from(span - half) + 1;
    let extra = (choices * u128::from(random)) >> 64;
    Duration::from_millis(half + extra as u64)
}

/// The `nth` of many random numbers drawn from one, for an event that is about many children.
/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
pub(super) fn spread(random: u64, nth: usize) -> u64 {
    let mut z = random.wrapping_add((nth as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn millis(span: Duration) -> u64 {
    span.as_millis().min(u128::from(u64::MAX)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use Exit::*;
    use RestartType::*;

    #[test]
    fn restart_types_follow_otp() {
        for (restart, exit, expected) in [
            (Permanent, Normal, true),
            (Permanent, Shutdown, true),
            (Permanent, Abnormal, true),
            (Transient, Normal, false),
            (Transient, Shutdown, false),
            (Transient, Abnormal, true),
            (Temporary, Normal, false),
            (Temporary, Shutdown, false),
            (Temporary, Abnormal, false),
        ] {
            assert_eq!(
                restart.restarts_after(exit),
                expected,
                "{restart:?} after {exit:?}"
            );
        }
    }

    #[test]
    fn a_restart_exactly_one_window_ago_still_counts() {
        let two_a_second = Intensity {
            restarts: 2,
            window: Duration::from_secs(1),
        };
        for (third_at, expected) in [(1_000, false), (1_001, true)] {
            let mut history = RestartHistory::new();
            for at in [0, 500] {
                assert!(history.allows_one_more(ClusterTime::from_millis(at), two_a_second));
            }
            let third = ClusterTime::from_millis(third_at);
            assert_eq!(
                history.allows_one_more(third, two_a_second),
                expected,
                "at {third_at}"
            );
        }
    }

    #[test]
    fn no_restart_allowed_means_the_first_is_too_many() {
        let never = Intensity {
            restarts: 0,
            window: Duration::from_secs(1),
        };
        assert!(!RestartHistory::new().allows_one_more(ClusterTime::ZERO, never));
    }

    #[test]
    fn history_never_holds_more_than_the_restart_that_was_too_many() {
        let mut history = RestartHistory::new();
        for _ in 0..100 {
            history.allows_one_more(ClusterTime::ZERO, Intensity::DEFAULT);
        }
        assert_eq!(history.0.len(), 6);
    }

    #[test]
    fn backoff_doubles_up_to_its_maximum_and_jitter_takes_at_most_half() {
        for (failures, longest) in [
            (1, 100),
            (2, 200),
            (3, 400),
            (7, 6_400),
            (8, 10_000),
            (64, 10_000),
            (u32::MAX, 10_000),
        ] {
            let delay = |random| Backoff::DEFAULT.delay(failures, random).as_millis();
            assert_eq!(delay(u64::MAX), longest, "longest after {failures}");
            assert_eq!(delay(0), longest / 2, "shortest after {failures}");
            assert!(
                (longest / 2..=longest).contains(&delay(1 << 63)),
                "middle after {failures}"
            );
        }
    }

    #[test]
    fn jitter_of_extreme_spans_neither_overflows_nor_exceeds_them() {
        for span in [0, 1, 3, u64::MAX] {
            let jittered = |random| millis(jittered(Duration::from_millis(span), random));
            assert_eq!(jittered(u64::MAX), span);
            assert_eq!(jittered(0), span / 2);
        }
        assert_eq!(millis(jittered(Duration::MAX, u64::MAX)), u64::MAX);
    }

    #[test]
    fn children_lost_together_draw_apart() {
        let mut draws: alloc::vec::Vec<u64> = (0..100).map(|nth| spread(7, nth)).collect();
        draws.sort_unstable();
        draws.dedup();
        assert_eq!(draws.len(), 100);
    }
}
