//! One child's remembered calls: the effectively-once table (rule E2).
//!
//! Owns: which keys are known, with what answer, and for how long; which of them a base holds itself
//! and which stand in pieces. Never evicts early: a full table refuses new keys instead. It is no
//! machine of events and actions but a value inside the agent, asked before a call is carried out and
//! told after.
//!
//! ```text
//!   remember ──> tail ── seal, with a base, when it is long ──> pieces ── all in one expired ──> gone
//!                  └──────── the base itself                      └────── the base, by name
//! ```
//!
//! Internal keys never go into pieces: their gateways confirm them within seconds.

mod sealed;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use minicbor::{Decode, Encode};

use crate::id::{IncarnationId, Seq};
use crate::rules::{Rule, keeps};
use crate::time::Time;
use crate::wire::codec::DecodeError;
use crate::wire::content::{Content, PIECE_BYTES, Parts};
use crate::wire::envelope::CallKey;
use crate::wire::older::{self, Older};
use crate::wire::step::{FIELDS_BYTES_MAX, INLINE_CALLS_MAX, Remembered};

use sealed::{Next, Sealed};

/// The calls that one child remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Calls {
    sealing: Sealing,
    clients: BTreeMap<Arc<str>, Known>,
    internal: BTreeMap<(IncarnationId, u64), Known>,
    /// What all of them take in a snapshot, in bytes, at most; and the internal ones alone.
    bytes: usize,
    internal_bytes: usize,
    /// Clients' keys in the order in which they are forgotten. One that was remembered anew is here
    /// twice; the first place says nothing then.
    expiries: VecDeque<(Time, Arc<str>)>,
    /// Clients' calls that are in no piece, oldest first.
    tail: VecDeque<Waiting>,
    tail_bytes: usize,
    /// How many of them found no room in pieces, and their bytes.
    stuck: usize,
    stuck_bytes: usize,
    sealed: Sealed,
    /// What becomes of the tail when the next base is written.
    sealing_now: Option<Going>,
    /// What of the pieces that its last base names has not come yet, in bytes.
    to_come: u64,
}

/// When calls go into pieces: the default, unless a test hurries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Sealing {
    /// A base that would hold more bytes of calls itself has them in pieces.
    #[n(0)]
    pub at_bytes: u32,
    /// How full a piece gets.
    #[n(1)]
    pub piece_bytes: u32,
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
    /// The table is full; it is worth asking again at this instant.
    Full {
        /// When the oldest key is forgotten, or a gateway may have confirmed its own.
        until: Time,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Known {
    request_hash: u64,
    answer: Content,
    seq: Seq,
    expires: Time,
    /// It is in a piece that a base names.
    is_sealed: bool,
}

/// A client's call that is in no piece.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Waiting {
    key: Arc<str>,
    bytes: usize,
    /// It found no room in pieces the last time.
    is_stuck: bool,
}

/// A tail on its way into pieces.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Going {
    next: Next,
    /// How many of the tail were looked at.
    looked: usize,
    gone: Vec<Arc<str>>,
    left: Vec<Waiting>,
}

impl Calls {
    /// No calls yet.
    pub fn new(sealing: Sealing) -> Calls {
        Calls {
            sealing,
            ..Calls::default()
        }
    }

    /// Forgets all of them: a base says which there are.
    pub fn clear(&mut self) {
        *self = Calls::new(self.sealing);
    }

    /// What is known of a call. `crowded` says that the node's children remember too much altogether:
    /// then those that remember much get no new keys.
    pub fn admit(
        &mut self,
        now: Time,
        key: &CallKey,
        request_hash: u64,
        crowded: bool,
    ) -> Admission {
        self.expire(now, EXPIRED_A_CALL);
        // Nothing is at work now, so no base is on its way.
        self.sealing_now = None;
        self.prune();
        let known = self.get(key).filter(|known| known.expires > now);
        match known {
            // E2: a key that is known is never carried out again.
            Some(known) if keeps(Rule::E2) && known.request_hash == request_hash => {
                Admission::Answered {
                    answer: known.answer.clone(),
                    seq: known.seq,
                }
            }
            Some(_) if keeps(Rule::E2) => Admission::Conflict,
            Some(_) => Admission::Fresh,
            // E2: full is refused, never evicted early.
            None if self.is_full() || crowded && self.len() >= CALLS_ALWAYS => {
                let oldest = self.expiries.front();
                let until = oldest.map_or(now + KEY_KEPT, |(expires, _)| *expires);
                Admission::Full { until }
            }
            None if self.is_stuck() => Admission::Full {
                until: now + STUCK_FOR,
            },
            None => Admission::Fresh,
        }
    }

    /// Remembers a call that was carried out, with the record of its effect. `kept` is for how long
    /// a client's key is remembered.
    pub fn remember(&mut self, now: Time, call: Remembered, seq: Seq, kept: Duration) {
        let bytes = call.room();
        self.forget(&call.key);
        let known = Known {
            request_hash: call.request_hash,
            answer: call.answer,
            seq,
            expires: Time::MAX,
            is_sealed: false,
        };
        match call.key {
            CallKey::Client(key) => {
                let key: Arc<str> = key.into();
                self.push(Waiting {
                    key: key.clone(),
                    bytes,
                    is_stuck: false,
                });
                self.keep_client(now + kept, key, known);
            }
            CallKey::Internal { gateway, number } => {
                self.internal.insert((gateway, number), known);
                self.internal_bytes += bytes;
                self.bytes += bytes;
            }
        }
    }

    fn keep_client(&mut self, expires: Time, key: Arc<str>, mut known: Known) {
        // They are forgotten in order, whatever the clock says.
        let last = self.expiries.back().map_or(Time::ZERO, |(last, _)| *last);
        known.expires = expires.max(last);
        self.bytes += client_bytes(&key, &known.answer);
        self.expiries.push_back((known.expires, key.clone()));
        self.clients.insert(key, known);
    }

    /// A gateway has its answers up to this call and will not ask again for them.
    pub fn confirmed(&mut self, of: IncarnationId, upto: u64) {
        let confirmed = self.internal.range((of, 0)..=(of, upto));
        let confirmed: Vec<u64> = confirmed.map(|((_, number), _)| *number).collect();
        for number in confirmed {
            self.forget(&CallKey::Internal {
                gateway: of,
                number,
            });
        }
    }

    /// A gateway is expelled: nobody waits for its answers any more.
    pub fn gateway_gone(&mut self, of: IncarnationId) {
        self.confirmed(of, u64::MAX);
    }

    /// The base from which the child goes on names these: they are [recalled](Calls::recall) next.
    pub fn expect(&mut self, older: &Older) {
        self.to_come = older.calls.length();
        self.sealed.expect(older);
    }

    /// Whether all that its base names was recalled.
    pub fn is_recalled(&self) -> bool {
        self.to_come == 0
    }

    /// Remembers the calls of the next piece, from now on for `kept`. What was remembered otherwise
    /// is newer.
    ///
    /// # Errors
    ///
    /// When it is not the next piece of any base, or cannot be read. Then nothing has changed.
    pub fn recall(&mut self, now: Time, piece: &[u8], kept: Duration) -> Result<(), DecodeError> {
        let length = self.to_come.min(PIECE_BYTES as u64);
        if length == 0 || piece.len() as u64 != length {
            return Err(DecodeError::Malformed(
                "a piece of calls has another length",
            ));
        }
        let calls = older::calls_in(piece)?;
        self.to_come -= length;
        let expires = now + kept;
        self.sealed.take_in(piece, &calls, expires);
        for call in calls {
            let CallKey::Client(key) = call.key else {
                continue;
            };
            let newer = self.clients.get(&*key);
            if newer.is_some_and(|known| !known.is_sealed) {
                continue;
            }
            let known = Known {
                request_hash: call.request_hash,
                answer: call.answer,
                seq: call.seq.unwrap_or(Seq::ZERO), // it has one, or it was not read
                expires,
                is_sealed: true,
            };
            let key: Arc<str> = key.into();
            self.forget_client(&key);
            self.keep_client(expires, key, known);
        }
        Ok(())
    }

    /// Has the calls of the tail go into pieces when the next base is written, if there are so many;
    /// but not these, whose effects no record holds. What is returned must be kept before that base.
    pub fn seal(&mut self, now: Time, loose: &BTreeSet<CallKey>) -> Parts {
        self.sealing_now = None;
        self.prune();
        let at_bytes = self.sealing.at_bytes as usize;
        let is_long = self.tail_bytes + self.internal_bytes >= at_bytes
            || self.tail.len() + self.internal.len() >= INLINE_CALLS_MAX / 2;
        let has_new = self.tail.len() > self.stuck;
        let mut next = self.sealed.next(now);
        let is_worth_it = is_long && has_new || next.drops();
        if !is_worth_it {
            return Parts::new();
        }
        let piece_bytes = self.sealing.piece_bytes as usize;
        let (mut gone, mut left) = (Vec::new(), Vec::new());
        for waiting in &self.tail {
            let call = self.tail_call(&waiting.key);
            let Some((known, call)) = call.filter(|(known, _)| known.expires > now) else {
                continue;
            };
            let is_loose = !loose.is_empty() && loose.contains(&call.key);
            if !is_loose && next.push(&self.sealed, &call, known.expires, piece_bytes) {
                gone.push(waiting.key.clone());
            } else {
                left.push(Waiting {
                    is_stuck: !is_loose,
                    ..waiting.clone()
                });
            }
        }
        let parts = next.finish(&self.sealed);
        self.sealing_now = Some(Going {
            next,
            looked: self.tail.len(),
            gone,
            left,
        });
        parts
    }

    /// What a base says, if it is written now. Where the tail was [sealed](Calls::seal), its pieces
    /// are kept.
    pub fn base(&self, now: Time) -> (Vec<Remembered>, Option<Older>) {
        let internal = self.internal.iter().map(|((gateway, number), known)| {
            let (gateway, number) = (*gateway, *number);
            known.call(CallKey::Internal { gateway, number })
        });
        let (left, looked) = match &self.sealing_now {
            Some(going) => (&going.left[..], going.looked),
            None => (&[][..], 0),
        };
        let tail = left.iter().chain(self.tail.iter().skip(looked));
        let tail = tail.filter_map(|waiting| self.tail_call(&waiting.key));
        let tail = tail.filter(|(known, _)| known.expires > now);
        let calls = tail.map(|(_, call)| call).chain(internal).collect();
        let older = match &self.sealing_now {
            Some(going) => going.next.older(),
            None => self.sealed.older(),
        };
        (calls, older)
    }

    /// That base was written.
    pub fn sealed(&mut self) {
        let Some(going) = self.sealing_now.take() else {
            return;
        };
        self.sealed.go_on(going.next);
        for key in going.gone {
            if let Some(known) = self.clients.get_mut(&key) {
                known.is_sealed = true;
            }
        }
        let newer = self.tail.split_off(going.looked);
        self.tail.clear();
        (self.tail_bytes, self.stuck, self.stuck_bytes) = (0, 0, 0);
        for waiting in going.left.into_iter().chain(newer) {
            self.push(waiting);
        }
    }

    /// It was not, or what it was to name is not kept: the tail stays.
    pub fn unsealed(&mut self) {
        self.sealing_now = None;
    }

    /// Those of these that are still remembered, for the first record that holds their effects.
    pub fn of(&mut self, keys: &BTreeSet<CallKey>) -> Vec<Remembered> {
        let call = |key: &CallKey| {
            let known = self.get(key)?;
            Some(Remembered {
                seq: None,
                ..known.call(key.clone())
            })
        };
        keys.iter().filter_map(call).collect()
    }

    /// The effects of these calls are in this record now.
    pub fn recorded(&mut self, keys: &BTreeSet<CallKey>, seq: Seq) {
        for key in keys {
            let known = match key {
                CallKey::Client(key) => self.clients.get_mut(&**key),
                CallKey::Internal { gateway, number } => {
                    self.internal.get_mut(&(*gateway, *number))
                }
            };
            if let Some(known) = known {
                known.seq = seq;
            }
        }
    }

    /// How many calls are remembered. At most [`CALLS_MAX`] and, after a takeover, those beside them
    /// that its base and the steps above it name: all are kept for their time anew.
    pub fn len(&self) -> usize {
        self.clients.len() + self.internal.len()
    }

    /// Whether no call is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What they take in this node's memory, in bytes, about.
    pub fn memory_bytes(&self) -> usize {
        self.bytes + self.len() * MEMORY_BYTES
    }

    /// Forgets clients' keys whose time is over, at most so many.
    pub fn expire(&mut self, now: Time, at_most: usize) {
        for _ in 0..at_most {
            match self.expiries.front() {
                Some((expires, _)) if *expires <= now => {}
                _ => return,
            }
            let Some((expires, key)) = self.expiries.pop_front() else {
                return;
            };
            // A key that was remembered anew has a later expiry of its own.
            let known = self.clients.get(&key);
            if known.is_some_and(|known| known.expires == expires) {
                self.forget_client(&key);
            }
        }
    }

    /// When the next of them is forgotten.
    pub fn next_expiry(&self) -> Option<Time> {
        self.expiries.front().map(|(expires, _)| *expires)
    }

    fn push(&mut self, waiting: Waiting) {
        self.count(&waiting, |sum, of| sum + of);
        self.tail.push_back(waiting);
    }

    /// Forgets of the tail what was forgotten otherwise.
    fn prune(&mut self) {
        while let Some(waiting) = self.tail.pop_front() {
            if self.tail_call(&waiting.key).is_some() {
                return self.tail.push_front(waiting);
            }
            self.count(&waiting, |sum, of| sum - of);
        }
    }

    fn count(&mut self, waiting: &Waiting, sum: fn(usize, usize) -> usize) {
        self.tail_bytes = sum(self.tail_bytes, waiting.bytes);
        if waiting.is_stuck {
            self.stuck = sum(self.stuck, 1);
            self.stuck_bytes = sum(self.stuck_bytes, waiting.bytes);
        }
    }

    fn get(&self, key: &CallKey) -> Option<&Known> {
        match key {
            CallKey::Client(key) => self.clients.get(&**key),
            CallKey::Internal { gateway, number } => self.internal.get(&(*gateway, *number)),
        }
    }

    /// The call, if it is remembered and in no piece.
    fn tail_call(&self, key: &Arc<str>) -> Option<(&Known, Remembered)> {
        let known = self.clients.get(key).filter(|known| !known.is_sealed)?;
        Some((known, known.call(CallKey::Client(String::from(&**key)))))
    }

    fn is_full(&self) -> bool {
        self.len() >= CALLS_MAX || self.bytes >= CALLS_BYTES_MAX
    }

    /// Whether there is so much that goes into no piece that a base would soon have no room.
    fn is_stuck(&self) -> bool {
        self.internal.len() + self.stuck >= STUCK_MAX
            || self.internal_bytes + self.stuck_bytes >= STUCK_BYTES_MAX
    }

    fn forget(&mut self, key: &CallKey) {
        match key {
            CallKey::Client(key) => self.forget_client(key),
            CallKey::Internal { gateway, number } => {
                if let Some(known) = self.internal.remove(&(*gateway, *number)) {
                    let bytes = known.answer.room() + FIELDS_BYTES_MAX;
                    self.bytes -= bytes;
                    self.internal_bytes -= bytes;
                }
            }
        }
    }

    fn forget_client(&mut self, key: &str) {
        if let Some(known) = self.clients.remove(key) {
            self.bytes -= client_bytes(key, &known.answer);
        }
    }
}

impl Known {
    fn call(&self, key: CallKey) -> Remembered {
        Remembered {
            key,
            request_hash: self.request_hash,
            answer: self.answer.clone(),
            seq: Some(self.seq),
        }
    }
}

impl Default for Sealing {
    fn default() -> Sealing {
        Sealing {
            at_bytes: SEAL_AT_BYTES,
            piece_bytes: PIECE_BYTES as u32,
        }
    }
}

/// As [`Remembered::room`] says it of a client's.
fn client_bytes(key: &str, answer: &Content) -> usize {
    key.len() + answer.room() + FIELDS_BYTES_MAX
}

/// For how long a client's key is kept, counted anew after a takeover: longer than any client of
/// ours goes on retrying.
pub const KEY_KEPT: Duration = Duration::from_secs(600);

/// Calls that one child remembers: 333 a second for ten minutes, which is more than three flushes a
/// call leave room for on most disks. With short keys and answers they take about 65 MiB of its
/// node's memory and 15 MiB of each of its disks, and a takeover reads them in about a second.
pub const CALLS_MAX: usize = 200_000;

/// What they may take in pieces, in bytes, answers included: half of what a value may, since a piece
/// goes only when all in it have expired, and some are not full.
pub const CALLS_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What the calls of all children of one node may take of its memory: an eighth of a small node's 4 GiB.
/// Above it only children that remember little get new keys.
pub const NODE_BYTES_MAX: usize = 512 * 1024 * 1024;

/// So many calls a child remembers however many other children there are: what a base holds itself.
/// Thousands of such children take 200 KiB each.
pub const CALLS_ALWAYS: usize = INLINE_CALLS_MAX;

/// What a remembered call takes in memory beside its key and answer, in bytes: a place in a tree that
/// is two thirds full, one in the order of expiry, and two allocations.
pub const MEMORY_BYTES: usize = 256;

/// A base that would hold more than this of calls has them in pieces: a quarter of a record, as other
/// values. The base that does so writes two pieces, 64 KiB and the list.
const SEAL_AT_BYTES: u32 = 16 * 1024;

/// Calls that go into no piece, and their bytes: half a record. The other half is the child's.
const STUCK_MAX: usize = INLINE_CALLS_MAX - 64;
const STUCK_BYTES_MAX: usize = 32 * 1024;

/// After which time it is worth asking again when those are too many: gateways confirm every second.
const STUCK_FOR: Duration = Duration::from_secs(1);

/// Keys that are forgotten at one call at most: after a takeover all have the same time, and no call
/// should wait for all of them.
const EXPIRED_A_CALL: usize = 16;

#[cfg(test)]
mod tests;
