//! How much a tenant may do a second: a token bucket.
//!
//! Owns: the balance. Never queues: what it refuses, it refuses with the exact moment at which the
//! same request would be granted if nobody else came first.
//!
//! The balance is counted in billionths of a token. A rate in tokens a second is then a whole number
//! of billionths a nanosecond, so refilling often or seldom comes to the same and nothing drifts.

use alloc::collections::VecDeque;
use core::num::NonZeroU64;
use core::time::Duration;

use crate::machine::Machine;
use crate::time::Time;

/// Names one request, so that its answer finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TakeId(pub u64);

/// What may happen to a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Someone wants `tokens`, all or none.
    Take {
        /// Names the request.
        id: TakeId,
        /// How many.
        tokens: u64,
    },
    /// An operator changed the quota. What is in the bucket stays, as far as it still fits.
    Set(Quota),
}

/// What a tenant is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quota {
    /// The largest burst, in tokens.
    pub capacity: NonZeroU64,
    /// Tokens that come back each second.
    pub per_second: NonZeroU64,
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The tokens are taken.
    Granted {
        /// The request.
        id: TakeId,
    },
    /// Nothing was taken (`Overloaded`).
    Refused {
        /// The request.
        id: TakeId,
        /// After exactly this long the tokens are there, unless others take them first.
        retry_after: Duration,
    },
}

/// Why a request has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum TakeError {
    /// More than the bucket ever holds: waiting does not help. The balance is untouched.
    #[error("{tokens} tokens are never there: the bucket holds {capacity}")]
    AboveCapacity {
        /// How many were wanted.
        tokens: u64,
        /// How many the bucket holds.
        capacity: u64,
    },
}

/// A token bucket, full at first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenBucket {
    quota: Quota,
    /// Billionths of a token, as of `updated_at`.
    balance: u128,
    updated_at: Time,
    answers: VecDeque<Action>,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(now: Time, quota: Quota) -> TokenBucket {
        TokenBucket {
            quota,
            balance: quota.most(),
            updated_at: now,
            answers: VecDeque::new(),
        }
    }

    /// Whole tokens in it at `now`.
    pub fn tokens(&self, now: Time) -> u64 {
        (self.balance_at(now) / BILLION) as u64
    }

    fn balance_at(&self, now: Time) -> u128 {
        let elapsed = now.since(self.updated_at).as_nanos();
        // Two 64-bit numbers multiply within 128 bits; the sum may pass them.
        let earned = elapsed * u128::from(self.quota.per_second.get());
        let refilled = self.balance.saturating_add(earned);
        refilled.min(self.quota.most())
    }
}

impl Machine for TokenBucket {
    type Event = Event;
    type Action = Action;
    type Error = TakeError;

    fn handle(&mut self, now: Time, event: Event) -> Result<(), TakeError> {
        let balance = self.balance_at(now);
        match event {
            Event::Take { id, tokens } => {
                let capacity = self.quota.capacity.get();
                if tokens > capacity {
                    return Err(TakeError::AboveCapacity { tokens, capacity });
                }
                let wanted = u128::from(tokens) * BILLION;
                if wanted <= balance {
                    self.balance = balance - wanted;
                    self.answers.push_back(Action::Granted { id });
                } else {
                    self.balance = balance;
                    let per_nano = u128::from(self.quota.per_second.get());
                    let retry_after = nanos((wanted - balance).div_ceil(per_nano));
                    self.answers.push_back(Action::Refused { id, retry_after });
                }
            }
            Event::Set(quota) => {
                self.balance = balance.min(quota.most());
                self.quota = quota;
            }
        }
        self.updated_at = self.updated_at.max(now);
        Ok(())
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.answers.pop_front()
    }

    /// Never: nothing happens to a bucket by itself.
    fn next_deadline(&self) -> Option<Time> {
        None
    }
}

impl Quota {
    /// A full bucket, in billionths of a token.
    fn most(self) -> u128 {
        u128::from(self.capacity.get()) * BILLION
    }
}

/// At most 2^64 tokens at one a second: the seconds fit.
fn nanos(nanos: u128) -> Duration {
    Duration::new((nanos / BILLION) as u64, (nanos % BILLION) as u32)
}

/// Parts of a token, and nanoseconds of a second.
const BILLION: u128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn quota(capacity: u64, per_second: u64) -> Quota {
        Quota {
            capacity: NonZeroU64::new(capacity).unwrap(),
            per_second: NonZeroU64::new(per_second).unwrap(),
        }
    }

    /// `None` is granted, `Some` the time to wait.
    fn take(bucket: &mut TokenBucket, nanos: u64, tokens: u64) -> Option<Duration> {
        let id = TakeId(nanos);
        let event = Event::Take { id, tokens };
        bucket.handle(Time::from_nanos(nanos), event).unwrap();
        let answer = bucket.poll_action().unwrap();
        assert_eq!(bucket.poll_action(), None);
        match answer {
            Action::Granted { id: of } => (of == id).then_some(None).unwrap(),
            Action::Refused {
                id: of,
                retry_after,
            } => (of == id).then_some(Some(retry_after)).unwrap(),
        }
    }

    /// Takes from a fresh bucket at the given nanoseconds; each row's last number is the wait.
    #[track_caller]
    fn check(quota: Quota, rows: &[(u64, u64, Option<u64>)]) {
        let mut bucket = TokenBucket::new(Time::ZERO, quota);
        for &(nanos, tokens, wait) in rows {
            let expect = wait.map(Duration::from_nanos);
            assert_eq!(take(&mut bucket, nanos, tokens), expect, "at {nanos}");
        }
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_as_large_as_the_bucket_is_granted() {
        check(
            quota(10, 1),
            &[(0, 10, None), (0, 1, Some(SECOND)), (0, 0, None)],
        );
        check(
            quota(10, 1),
            &[(0, 3, None), (0, 7, None), (0, 10, Some(10 * SECOND))],
        );
        check(
            quota(1, 1),
            &[(0, 1, None), (SECOND, 1, None), (SECOND, 1, Some(SECOND))],
        );
    }

    #[test]
    fn the_bucket_never_holds_more_than_its_capacity() {
        check(
            quota(5, 10),
            &[
                (0, 5, None),
                (900 * SECOND, 5, None),
                (900 * SECOND, 1, Some(SECOND / 10)),
            ],
        );
    }

    #[test]
    fn the_hint_is_exact_to_the_nanosecond() {
        // A third of a second does not divide evenly: it is rounded up, never down.
        let third = 333_333_334;
        check(
            quota(1, 3),
            &[
                (0, 1, None),
                (0, 1, Some(third)),
                (third - 1, 1, Some(1)),
                (third, 1, None),
            ],
        );
        // What the rounding earned is kept: three such waits are a second, not two nanoseconds more.
        check(
            quota(2, 3),
            &[
                (0, 2, None),
                (third, 1, None),
                (third, 1, Some(third - 1)),
                (2 * third - 1, 1, None),
                (SECOND, 1, None),
            ],
        );
    }

    #[test]
    fn asking_often_earns_neither_more_nor_less() {
        let mut bucket = TokenBucket::new(Time::ZERO, quota(7, 7));
        assert_eq!(take(&mut bucket, 0, 7), None);
        let mut granted = 0;
        // A prime step: most refills are a broken number of tokens.
        for nanos in (0..=10 * SECOND).step_by(999_983) {
            granted += u64::from(take(&mut bucket, nanos, 1).is_none());
        }
        assert_eq!(granted, 69, "ten seconds less the last step's end");
        assert_eq!(take(&mut bucket, 10 * SECOND, 1), None);
    }

    #[test]
    fn a_request_above_the_capacity_is_never_granted() {
        let mut bucket = TokenBucket::new(Time::ZERO, quota(10, 1));
        let before = bucket.clone();
        let event = Event::Take {
            id: TakeId(1),
            tokens: 11,
        };
        let error = bucket.handle(Time::from_millis(1), event).unwrap_err();
        let (tokens, capacity) = (11, 10);
        assert_eq!(error, TakeError::AboveCapacity { tokens, capacity });
        assert_eq!(bucket, before);
    }

    #[test]
    fn a_changed_quota_keeps_what_fits() {
        let mut bucket = TokenBucket::new(Time::ZERO, quota(10, 1));
        bucket.handle(Time::ZERO, Event::Set(quota(4, 2))).unwrap();
        assert_eq!(bucket.tokens(Time::ZERO), 4);
        bucket.handle(Time::ZERO, Event::Set(quota(10, 2))).unwrap();
        assert_eq!(
            bucket.tokens(Time::ZERO),
            4,
            "a larger bucket is not a fuller one"
        );
        assert_eq!(bucket.tokens(Time::from_millis(500)), 5);
        assert_eq!(bucket.poll_action(), None);
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let mut bucket = TokenBucket::new(Time::ZERO, quota(u64::MAX, 1));
        assert_eq!(take(&mut bucket, 0, u64::MAX), None);
        assert_eq!(
            take(&mut bucket, 0, u64::MAX),
            Some(Duration::from_secs(u64::MAX))
        );
        let mut bucket = TokenBucket::new(Time::ZERO, quota(u64::MAX, u64::MAX));
        assert_eq!(take(&mut bucket, 0, u64::MAX), None);
        assert_eq!(take(&mut bucket, u64::MAX, u64::MAX), None);
        let bucket = TokenBucket::new(Time::ZERO, quota(u64::MAX, u64::MAX));
        assert_eq!(bucket.tokens(Time::MAX), u64::MAX);
    }
}
