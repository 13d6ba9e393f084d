//! One child's remembered calls: the effectively-once table (rule E2).
//!
//! Owns: which keys are known, with what answer, and for how long. Never evicts early: a full table
//! refuses new keys instead. It is no machine of events and actions but a value inside the agent,
//! asked before a call is carried out and told after.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use crate::id::{IncarnationId, Seq};
use crate::rules::{Rule, keeps};
use crate::time::Time;
use crate::wire::content::Content;
use crate::wire::envelope::CallKey;
pub use crate::wire::step::CALLS_MAX;
use crate::wire::step::Remembered;

/// The calls that one child remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Calls {
    known: BTreeMap<CallKey, Known>,
    /// What they take in a snapshot, in bytes, at most.
    bytes: usize,
    /// Clients' keys by when they are forgotten.
    expiries: BTreeSet<(Time, CallKey)>,
}

/// What is known of a call that asks to be carried out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Admission {
    /// Nothing: carry it out.
    Fresh,
    /// It was carried out; this was the answer, and this the record of the effect.
    Answered {
        /// The answer.
        answer: Content,
        /// The record.
        seq: Seq,
    },
    /// The key was used for another request.
    Conflict,
    /// The table is full; there is room at this instant at the latest.
    Full {
        /// When the oldest key is forgotten.
        until: Time,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Known {
    request_hash: u64,
    answer: Content,
    seq: Seq,
    expires: Time,
}

impl Calls {
    /// What is known of a call.
    pub fn admit(&mut self, now: Time, key: &CallKey, request_hash: u64) -> Admission {
        self.expire(now);
        match self.known.get(key) {
            // E2: a key that is known is never carried out again.
            Some(known) if keeps(Rule::E2) && known.request_hash == request_hash => {
                Admission::Answered {
                    answer: known.answer.clone(),
                    seq: known.seq,
                }
            }
            Some(_) if keeps(Rule::E2) => Admission::Conflict,
            // E2: full is refused, never evicted early.
            None if self.known.len() >= CALLS_MAX || self.bytes >= CALLS_BYTES_MAX => {
                let until = self
                    .expiries
                    .first()
                    .map_or(now + KEY_KEPT, |(expires, _)| *expires);
                Admission::Full { until }
            }
            _ => Admission::Fresh,
        }
    }

    /// Remembers a call that was carried out, with the record of its effect. `kept` is for how long
    /// a client's key is remembered.
    pub fn remember(&mut self, now: Time, call: Remembered, seq: Seq, kept: Duration) {
        let Remembered {
            key,
            request_hash,
            answer,
            ..
        } = call;
        let expires = match &key {
            CallKey::Client(_) => now + kept,
            CallKey::Internal { .. } => Time::MAX,
        };
        if expires < Time::MAX {
            self.expiries.insert((expires, key.clone()));
        }
        self.forget(&key);
        self.bytes += bytes_of(&key, &answer);
        self.known.insert(
            key,
            Known {
                request_hash,
                answer,
                seq,
                expires,
            },
        );
    }

    /// A gateway has its answers up to this call and will not ask again for them.
    pub fn confirmed(&mut self, of: IncarnationId, upto: u64) {
        let ours = |key: &&CallKey| matches!(key, CallKey::Internal { gateway, number } if *gateway == of && *number <= upto);
        let forgotten: Vec<CallKey> = self.known.keys().filter(ours).cloned().collect();
        for key in forgotten {
            self.forget(&key);
        }
    }

    /// A gateway is expelled: nobody waits for its answers any more.
    pub fn gateway_gone(&mut self, of: IncarnationId) {
        self.confirmed(of, u64::MAX);
    }

    /// Every remembered call, for a snapshot.
    pub fn remembered(&mut self, now: Time) -> Vec<Remembered> {
        self.expire(now);
        let call = |(key, known): (&CallKey, &Known)| Remembered {
            key: key.clone(),
            request_hash: known.request_hash,
            answer: known.answer.clone(),
            seq: Some(known.seq),
        };
        self.known.iter().map(call).collect()
    }

    /// Those of these that are still remembered, for the first record that holds their effects.
    pub fn of(&mut self, now: Time, keys: &BTreeSet<CallKey>) -> Vec<Remembered> {
        self.expire(now);
        let call = |key: &CallKey| {
            let known = self.known.get(key)?;
            Some(Remembered {
                key: key.clone(),
                request_hash: known.request_hash,
                answer: known.answer.clone(),
                seq: None,
            })
        };
        keys.iter().filter_map(call).collect()
    }

    /// The effects of these calls are in this record now.
    pub fn recorded(&mut self, keys: &BTreeSet<CallKey>, seq: Seq) {
        for key in keys {
            if let Some(known) = self.known.get_mut(key) {
                known.seq = seq;
            }
        }
    }

    /// How many calls are remembered. At most [`CALLS_MAX`] and, after a takeover, one for each step
    /// above the base: all are kept for their time anew.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether no call is remembered.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    fn expire(&mut self, now: Time) {
        while let Some((expires, key)) = self.expiries.first().cloned() {
            if expires > now {
                return;
            }
            self.expiries.pop_first();
            // A key that was remembered anew has a later expiry of its own.
            if self
                .known
                .get(&key)
                .is_some_and(|known| known.expires == expires)
            {
                self.forget(&key);
            }
        }
    }

    fn forget(&mut self, key: &CallKey) {
        if let Some(known) = self.known.remove(key) {
            self.bytes -= bytes_of(key, &known.answer);
        }
    }
}

/// What one remembered call takes in a snapshot, in bytes, at most.
fn bytes_of(key: &CallKey, answer: &Content) -> usize {
    let key = match key {
        CallKey::Client(key) => key.len(),
        CallKey::Internal { .. } => 0,
    };
    key + answer.room() + FIELDS_BYTES_MAX
}

/// For how long a client's key is kept, counted anew after a takeover: longer than any client of
/// ours goes on retrying.
pub const KEY_KEPT: Duration = Duration::from_secs(600);

/// What they may take in a snapshot, in bytes: half a record. The other half is the child's.
pub const CALLS_BYTES_MAX: usize = 32 * 1024;

/// The fields of one remembered call beside its key and its answer, in bytes, at most.
const FIELDS_BYTES_MAX: usize = 39;

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn key(name: &str) -> CallKey {
        CallKey::Client(name.into())
    }

    fn internal(number: u64) -> CallKey {
        CallKey::Internal {
            gateway: IncarnationId(3),
            number,
        }
    }

    fn call(key: CallKey, request_hash: u64) -> Remembered {
        Remembered {
            key,
            request_hash,
            answer: Bytes::from_static(b"five").into(),
            seq: None,
        }
    }

    fn at(seconds: u64) -> Time {
        Time::from_millis(seconds * 1_000)
    }

    #[test]
    fn the_same_key_gets_the_first_answer_and_another_body_a_conflict() {
        let mut calls = Calls::default();
        assert_eq!(calls.admit(at(0), &key("a"), 1), Admission::Fresh);
        calls.remember(at(0), call(key("a"), 1), Seq(4), KEY_KEPT);
        let answered = Admission::Answered {
            answer: Bytes::from_static(b"five").into(),
            seq: Seq(4),
        };
        assert_eq!(calls.admit(at(599), &key("a"), 1), answered);
        assert_eq!(calls.admit(at(599), &key("a"), 2), Admission::Conflict);
    }

    #[test]
    fn a_clients_key_is_forgotten_after_its_time_and_not_before() {
        let mut calls = Calls::default();
        calls.remember(at(0), call(key("a"), 1), Seq(4), KEY_KEPT);
        assert_ne!(calls.admit(at(599), &key("a"), 1), Admission::Fresh);
        assert_eq!(calls.admit(at(600), &key("a"), 1), Admission::Fresh);
    }

    #[test]
    fn an_internal_key_is_kept_until_its_gateway_confirms_or_is_gone() {
        let mut calls = Calls::default();
        for number in 1..=3 {
            calls.remember(at(0), call(internal(number), 1), Seq(number), KEY_KEPT);
        }
        assert_ne!(calls.admit(at(90_000), &internal(1), 1), Admission::Fresh);
        calls.confirmed(IncarnationId(3), 2);
        assert_eq!(calls.admit(at(90_000), &internal(2), 1), Admission::Fresh);
        assert_ne!(calls.admit(at(90_000), &internal(3), 1), Admission::Fresh);
        calls.gateway_gone(IncarnationId(3));
        assert!(calls.is_empty());
    }

    #[test]
    fn a_full_table_refuses_and_says_until_when() {
        let mut calls = Calls::default();
        for number in 0..CALLS_MAX as u64 {
            calls.remember(
                at(number),
                call(key(&alloc::format!("k{number}")), 1),
                Seq(number),
                KEY_KEPT,
            );
        }
        let now = at(CALLS_MAX as u64);
        assert_eq!(
            calls.admit(now, &key("new"), 1),
            Admission::Full { until: at(600) }
        );
        assert_ne!(
            calls.admit(now, &key("k0"), 1),
            Admission::Fresh,
            "nothing is evicted early"
        );
        assert_eq!(calls.admit(at(600), &key("new"), 1), Admission::Fresh);
    }

    #[test]
    fn long_answers_fill_the_table_before_it_outgrows_half_a_record() {
        let mut calls = Calls::default();
        let long = Bytes::from(alloc::vec![7; 4_000]);
        let mut remembered = 0;
        while calls.admit(at(0), &internal(remembered), 1) == Admission::Fresh {
            let call = Remembered {
                answer: long.clone().into(),
                ..call(internal(remembered), 1)
            };
            calls.remember(at(0), call, Seq(remembered), KEY_KEPT);
            remembered += 1;
        }
        assert_eq!(remembered, 9);
        calls.confirmed(IncarnationId(3), 0);
        assert_eq!(
            calls.admit(at(0), &internal(99), 1),
            Admission::Fresh,
            "there is room again"
        );
    }

    #[test]
    fn remembered_calls_survive_a_snapshot() {
        let mut calls = Calls::default();
        calls.remember(at(0), call(key("a"), 1), Seq(4), KEY_KEPT);
        let mut again = Calls::default();
        for call in calls.remembered(at(0)) {
            let seq = call.seq.expect("a remembered call names its record");
            again.remember(at(100), call, seq, KEY_KEPT);
        }
        assert_ne!(
            again.admit(at(699), &key("a"), 1),
            Admission::Fresh,
            "counted anew"
        );
    }
}
