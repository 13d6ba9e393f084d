//! What a member holds: the log, its snapshot, the memberships within, and what of it is flushed.
//!
//! Owns: the order of writes to the disk and the one account of what they have made durable. Never
//! does: deciding what to write, or writing it. [`Persisted`] is the disk's side of the same story:
//! applying each flushed [`Write`] to it gives exactly what a restart sees.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use understudy_protocol::id::{LogId, LogIndex, StoreId, Term};
use understudy_protocol::time::Time;

/// Who votes and who only listens. A store is in one of the two sets at most.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Members {
    /// Stores whose copies and votes count.
    pub voters: BTreeSet<StoreId>,
    /// Stores that are sent the log and do not count.
    pub learners: BTreeSet<StoreId>,
}

impl Members {
    /// `voters` and no learner.
    pub fn of(voters: impl IntoIterator<Item = StoreId>) -> Members {
        Members {
            voters: voters.into_iter().collect(),
            learners: BTreeSet::new(),
        }
    }

    /// Whether `store` is in either set.
    pub fn contains(&self, store: StoreId) -> bool {
        self.voters.contains(&store) || self.learners.contains(&store)
    }

    /// How many voters are a majority.
    pub fn quorum(&self) -> usize {
        self.voters.len() / 2 + 1
    }

    /// Whether they could run a group: somebody votes, nobody is in both sets, and they are not too
    /// many.
    pub(super) fn is_sound(&self) -> bool {
        !self.voters.is_empty()
            && self.voters.len() + self.learners.len() <= super::MEMBERS_MAX
            && self.voters.is_disjoint(&self.learners)
    }

    /// Voters, then learners.
    pub fn all(&self) -> impl Iterator<Item = StoreId> + '_ {
        self.voters.iter().chain(&self.learners).copied()
    }
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Payload<T> {
    /// Nothing: a new leader's first entry, by which it commits what came before.
    Blank,
    /// The application's.
    Command(T),
    /// The members from here on, effective as soon as it is appended.
    Members(Members),
}

/// One entry of the log. Shared, so that sending it costs no copy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Entry<T> {
    pub id: LogId,
    pub payload: Payload<T>,
}

/// What stands in for the log up to and with `last`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Snapshot {
    /// The last entry it covers.
    pub last: LogId,
    /// The members as of `last`.
    pub members: Members,
    /// The application's state.
    pub data: Bytes,
}

/// What Raft must never forget besides the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HardState {
    /// The newest term this member has been in.
    pub term: Term,
    /// Whom it voted for in that term.
    pub voted_for: Option<StoreId>,
}

/// One write to the disk. Writes are flushed in the order they were asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Write<T> {
    /// Replaces the hard state.
    HardState(HardState),
    /// Drops the entry at this index and every later one.
    Truncate(LogIndex),
    /// Goes on after the last entry.
    Append(Vec<Arc<Entry<T>>>),
    /// This member's own snapshot, in place of the older one; the log up to and with `drop_upto`
    /// goes.
    Snapshot {
        /// The snapshot.
        snapshot: Arc<Snapshot>,
        /// The last entry that is dropped; at most `snapshot.last`.
        drop_upto: LogId,
    },
    /// The leader's snapshot, in place of the older one and of the whole log.
    Install(Arc<Snapshot>),
}

/// All that a restart sees: the flushed writes, applied.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Persisted<T> {
    pub(super) hard_state: HardState,
    pub(super) snapshot: Option<Arc<Snapshot>>,
    /// The entry before the first of `log`; zero while nothing was dropped.
    pub(super) start: LogId,
    pub(super) log: VecDeque<Arc<Entry<T>>>,
}

impl<T> Default for Persisted<T> {
    /// An empty disk: that of a store which waits to be made a learner.
    fn default() -> Persisted<T> {
        Persisted {
            hard_state: HardState::default(),
            snapshot: None,
            start: LogId::default(),
            log: VecDeque::new(),
        }
    }
}

impl<T> Persisted<T> {
    /// The disk of each founder of a cluster of `members`: they all hold the same first entry, of
    /// term zero, before the first election.
    ///
    /// # Panics
    ///
    /// When there are no voters or more than [`MEMBERS_MAX`](super::MEMBERS_MAX) members.
    pub fn founded(members: Members) -> Persisted<T> {
        assert!(members.is_sound(), "founders are members like any other");
        let first = Entry {
            id: LogId {
                term: Term::ZERO,
                index: LogIndex(1),
            },
            payload: Payload::Members(members),
        };
        Persisted {
            log: VecDeque::from([Arc::new(first)]),
            ..Persisted::default()
        }
    }

    /// Takes in one flushed write.
    ///
    /// # Panics
    ///
    /// When the writes come out of order: the disk then holds something nobody asked for.
    pub fn apply(&mut self, write: Write<T>) {
        match write {
            Write::HardState(hard_state) => self.hard_state = hard_state,
            Write::Truncate(from) => {
                assert!(from > self.start.index, "a truncation starts in the log");
                self.log
                    .truncate((from.0 - self.start.index.0 - 1) as usize);
            }
            Write::Append(entries) => {
                for entry in entries {
                    assert_eq!(
                        entry.id.index,
                        self.last().index.next(),
                        "the log has no gaps"
                    );
                    self.log.push_back(entry);
                }
            }
            Write::Snapshot {
                snapshot,
                drop_upto,
            } => {
                let drop = drop_upto.index.0.saturating_sub(self.start.index.0);
                self.log.drain(..drop as usize);
                if drop > 0 {
                    self.start = drop_upto;
                }
                self.snapshot = Some(snapshot);
            }
            Write::Install(snapshot) => {
                self.log.clear();
                self.start = snapshot.last;
                self.snapshot = Some(snapshot);
            }
        }
    }

    /// The hard state.
    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// The snapshot, if there is one.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_deref()
    }

    /// The entries after the dropped prefix, oldest first.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &Arc<Entry<T>>> {
        self.log.iter()
    }

    /// The last entry, or the last one the snapshot covers.
    pub fn last(&self) -> LogId {
        self.log.back().map_or(self.start, |entry| entry.id)
    }
}

/// The log in memory, which runs ahead of the disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Log<T> {
    start: LogId,
    entries: VecDeque<Arc<Entry<T>>>,
    snapshot: Option<Arc<Snapshot>>,
    /// The members by the entry that made them so, oldest first. Never empty: the first are those
    /// of the snapshot, or nobody.
    members: Vec<(LogIndex, Arc<Members>)>,
}

impl<T> Log<T> {
    pub(super) fn restore(
        start: LogId,
        snapshot: Option<Arc<Snapshot>>,
        entries: VecDeque<Arc<Entry<T>>>,
    ) -> Log<T> {
        let covered = snapshot.as_ref().map_or(start.index, |s| s.last.index);
        let base = snapshot.as_ref().map(|s| s.members.clone());
        let mut log = Log {
            start,
            entries: VecDeque::with_capacity(entries.len()),
            snapshot,
            members: vec![(covered, Arc::new(base.unwrap_or_default()))],
        };
        for entry in entries {
            log.push(entry);
        }
        log
    }

    /// The entry before the first one held.
    pub(super) fn start(&self) -> LogId {
        self.start
    }

    pub(super) fn last(&self) -> LogId {
        self.entries.back().map_or(self.start, |entry| entry.id)
    }

    pub(super) fn snapshot(&self) -> Option<&Arc<Snapshot>> {
        self.snapshot.as_ref()
    }

    /// The id of the entry at `index`, if it is held or the last one dropped.
    pub(super) fn id_at(&self, index: LogIndex) -> Option<LogId> {
        if index == self.start.index {
            return Some(self.start);
        }
        self.get(index).map(|entry| entry.id)
    }

    pub(super) fn get(&self, index: LogIndex) -> Option<&Arc<Entry<T>>> {
        let nth = index.0.checked_sub(self.start.index.0 + 1)?;
        self.entries.get(nth as usize)
    }

    /// The entries from `from`, or from the first one held.
    pub(super) fn from(&self, from: LogIndex) -> impl Iterator<Item = &Arc<Entry<T>>> {
        let skip = from.0.saturating_sub(self.start.index.0 + 1) as usize;
        self.entries.range(skip.min(self.entries.len())..)
    }

    /// The first index held whose entry has the term of the one at `index`: a follower's hint, by
    /// which a leader skips a whole term at a time.
    pub(super) fn first_of_term_at(&self, index: LogIndex) -> LogIndex {
        let Some(id) = self.id_at(index) else {
            return self.last().index.next();
        };
        let mut first = index;
        while first.0 > self.start.index.0 + 1 {
            let before = LogIndex(first.0 - 1);
            if self.id_at(before).is_none_or(|b| b.term != id.term) {
                break;
            }
            first = before;
        }
        first
    }

    pub(super) fn push(&mut self, entry: Arc<Entry<T>>) {
        assert_eq!(
            entry.id.index,
            self.last().index.next(),
            "the log has no gaps"
        );
        if let Payload::Members(members) = &entry.payload
            && entry.id.index > self.members[0].0
        {
            self.members
                .push((entry.id.index, Arc::new(members.clone())));
        }
        self.entries.push_back(entry);
    }

    /// Drops `from` and what follows; memberships made there revert.
    pub(super) fn truncate(&mut self, from: LogIndex) {
        self.entries
            .truncate((from.0 - self.start.index.0 - 1) as usize);
        let kept = self
            .members
            .partition_point(|(index, _)| *index < from)
            .max(1);
        self.members.truncate(kept);
    }

    /// Puts `snapshot` in place of the older one and drops the log up to and with `drop_upto`.
    pub(super) fn compact(&mut self, snapshot: Arc<Snapshot>, drop_upto: LogId) {
        let drop = drop_upto.index.0.saturating_sub(self.start.index.0);
        self.entries.drain(..drop as usize);
        if drop > 0 {
            self.start = drop_upto;
        }
        let covered = snapshot.last.index;
        let older = self
            .members
            .partition_point(|(index, _)| *index <= covered)
            .saturating_sub(1);
        self.members.drain(..older);
        self.snapshot = Some(snapshot);
    }

    /// Puts the leader's snapshot in place of everything.
    pub(super) fn install(&mut self, snapshot: Arc<Snapshot>) {
        *self = Log::restore(snapshot.last, Some(snapshot), VecDeque::new());
    }

    pub(super) fn members(&self) -> &Members {
        &self.newest_members().1
    }

    /// The entry that made the members what they are.
    pub(super) fn members_index(&self) -> LogIndex {
        self.newest_members().0
    }

    pub(super) fn members_at(&self, index: LogIndex) -> &Members {
        let upto = self.members.partition_point(|(at, _)| *at <= index).max(1);
        &self.members[upto - 1].1
    }

    fn newest_members(&self) -> &(LogIndex, Arc<Members>) {
        self.members
            .last()
            .expect("the first membership is never dropped")
    }
}

/// What a flushed write lets the member say.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Effect<T> {
    Nothing,
    Appended(Vec<Arc<Entry<T>>>),
    Truncated(LogIndex),
    Installed(Arc<Snapshot>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pending<T> {
    ticket: u64,
    asked_at: Time,
    /// How far the log is durable once this write is.
    upto: LogId,
    effect: Effect<T>,
}

/// The writes under way, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Flushes<T> {
    last_ticket: u64,
    flushed_ticket: u64,
    held: LogId,
    pending: VecDeque<Pending<T>>,
}

impl<T> Flushes<T> {
    pub(super) fn restore(held: LogId) -> Flushes<T> {
        Flushes {
            last_ticket: 0,
            flushed_ticket: 0,
            held,
            pending: VecDeque::new(),
        }
    }

    /// The last entry that is flushed and not cut off since.
    pub(super) fn held(&self) -> LogId {
        self.held
    }

    pub(super) fn last_ticket(&self) -> u64 {
        self.last_ticket
    }

    pub(super) fn covers(&self, ticket: u64) -> bool {
        ticket <= self.flushed_ticket
    }

    pub(super) fn under_way(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn oldest_asked_at(&self) -> Option<Time> {
        self.pending.front().map(|pending| pending.asked_at)
    }

    pub(super) fn ask(&mut self, now: Time, upto: LogId, effect: Effect<T>) -> u64 {
        self.last_ticket += 1;
        self.pending.push_back(Pending {
            ticket: self.last_ticket,
            asked_at: now,
            upto,
            effect,
        });
        self.last_ticket
    }

    /// The log in memory was cut after `last`: no flush still under way can make more durable.
    pub(super) fn cut(&mut self, last: LogId) {
        let uptos = self.pending.iter_mut().map(|pending| &mut pending.upto);
        for upto in uptos.chain([&mut self.held]) {
            if upto.index > last.index {
                *upto = last;
            }
        }
    }

    /// The next write that `ticket` reports flushed.
    pub(super) fn flushed(&mut self, ticket: u64) -> Option<Effect<T>> {
        let pending = self.pending.pop_front_if(|p| p.ticket <= ticket)?;
        self.flushed_ticket = pending.ticket;
        if pending.upto.index > self.held.index {
            self.held = pending.upto;
        }
        Some(pending.effect)
    }
}
