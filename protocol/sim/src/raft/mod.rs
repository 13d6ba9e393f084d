//! A Raft member, for the simulator: the same contract as the Raft of a real node, with every
//! message, flush and tick in the simulator's hands.
//!
//! Owns: elections, the log and its replication, membership, snapshots. Never does: IO, or reading a
//! clock. It follows Ongaro's thesis; section numbers below are the thesis's.
//!
//! ```text
//!   Propose ──> append ──> Persist ──> Flushed ─┐
//!                 └──> Append to peers ──> Appended from a majority ──> Apply, Apply, …
//! ```
//!
//! Nothing that promises is said before it is flushed: votes, acknowledgements and a candidate's
//! requests wait for the hard state, and an acknowledgement names only flushed entries. What a
//! member says is thus always what one with an instant disk and a slower network could have said.
//! A leader may send entries that it has not flushed (10.2.1); its own copy counts once it has.
//!
//! Two things are stricter than Raft needs: an entry is applied only when this member has flushed it,
//! so that what it acts on survives its own restart; and a leader whose disk has not answered for
//! the longest election timeout steps down.
//!
//! A leader's heartbeats move a follower's deadline each time. An early tick is harmless, so an
//! embedder may leave an already set timer alone and ask for the deadline again when it fires.

mod disk;
mod election;
mod follower;
mod leader;
mod log;
mod progress;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use understudy_protocol::id::{LogId, LogIndex, StoreId, Term};
use understudy_protocol::machine::Machine;
use understudy_protocol::time::Time;

pub use disk::ENTRIES_KEPT_UNDER_SNAPSHOT;
use leader::Leader;
pub use leader::{MEMBERS_MAX, PROPOSALS_IN_FLIGHT_MAX};
pub use log::{Entry, HardState, Members, Payload, Persisted, Snapshot, Write};
use log::{Flushes, Log};
pub use progress::{APPEND_ENTRIES_MAX, WINDOW_ENTRIES_MAX};

/// The most writes a member leaves unflushed. Beyond it peers' messages count as lost, as they would
/// on a node whose disk hangs. Room for each of a leader's proposals, and for as much besides.
pub const WRITES_UNDER_WAY_MAX: usize = 2 * PROPOSALS_IN_FLIGHT_MAX;

/// The most messages kept back until a term or a vote is flushed: one request to each member and
/// their answers. The oldest goes first, which is a lost message.
pub const HELD_MESSAGES_MAX: usize = 4 * MEMBERS_MAX;

/// How often and how patiently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// Between a leader's heartbeats.
    pub heartbeat: Duration,
    /// The shortest election timeout; for as long after a leader was heard, requests for votes are
    /// ignored.
    pub election_min: Duration,
    /// The longest election timeout; a leader that has not heard from a majority for as long steps
    /// down.
    pub election_max: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            heartbeat: Duration::from_millis(40),
            election_min: Duration::from_millis(150),
            election_max: Duration::from_millis(300),
        }
    }
}

/// What one member says to another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the fields are those of the thesis's figure 3.1
pub enum Message<T> {
    /// A candidate asks for a vote; `last` is its last entry.
    RequestVote { term: Term, last: LogId },
    /// The answer.
    Vote { term: Term, granted: bool },
    /// A leader's entries after `prev`, or none: a heartbeat.
    Append {
        term: Term,
        prev: LogId,
        entries: Vec<Arc<Entry<T>>>,
        commit: LogIndex,
    },
    /// The sender agrees with its leader and holds the log up to `matched`, flushed.
    Appended { term: Term, matched: LogIndex },
    /// The sender does not hold the entry `prev`; the logs may agree before `hint`.
    Conflict {
        term: Term,
        prev: LogIndex,
        hint: LogIndex,
    },
    /// A leader's snapshot, for a follower that needs entries the leader has dropped.
    InstallSnapshot { term: Term, snapshot: Arc<Snapshot> },
    /// The leader it answers is of an older term.
    Stale { term: Term },
}

impl<T> Message<T> {
    /// The sender's term.
    pub fn term(&self) -> Term {
        match self {
            Message::RequestVote { term, .. }
            | Message::Vote { term, .. }
            | Message::Append { term, .. }
            | Message::Appended { term, .. }
            | Message::Conflict { term, .. }
            | Message::InstallSnapshot { term, .. }
            | Message::Stale { term } => *term,
        }
    }
}

/// What may happen to a member.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event<T> {
    /// A message came. It may be late, doubled or out of order.
    Receive {
        /// Whose.
        from: StoreId,
        /// What.
        message: Message<T>,
    },
    /// Append this. Answered by [`Action::Proposed`], then by [`Action::Apply`] of that id or
    /// [`Action::ProposalLost`].
    Propose {
        /// The caller's name for it, given back in the answers.
        token: u64,
        /// The command.
        command: T,
    },
    /// Make these the members. They are once the entry is applied.
    ChangeMembers(Members),
    /// The write with this ticket and all before it are flushed.
    Flushed {
        /// The ticket of [`Action::Persist`].
        ticket: u64,
    },
    /// The embedder made a snapshot of all it has applied up to `upto`.
    SnapshotMade {
        /// The last entry it covers.
        upto: LogIndex,
        /// The application's state.
        data: Bytes,
    },
    /// Whether this member may lead (it does at the start). One that may not does not campaign, and
    /// one that leads falls silent and takes no proposals (rule L9).
    MayLead(bool),
    /// A deadline came.
    Tick,
}

/// What a member wants done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the fields say what they are
pub enum Action<T> {
    /// Send this. It may get lost.
    Send { to: StoreId, message: Message<T> },
    /// Write and flush this after every earlier write, then say so with [`Event::Flushed`].
    Persist { ticket: u64, write: Write<T> },
    /// The log on this member's disk now ends with these. Said again for the whole log after a
    /// restart.
    Appended { entries: Vec<Arc<Entry<T>>> },
    /// The log on this member's disk was cut: this entry and all later ones are gone.
    Truncated { from: LogIndex },
    /// Committed. In order, each once in a start; a new start begins after its snapshot.
    Apply { entry: Arc<Entry<T>> },
    /// Forget the application's state and take this one; the log on disk is empty. Also said first
    /// after a restart that found a snapshot, then followed by the log.
    InstallSnapshot {
        last: LogId,
        members: Members,
        data: Bytes,
    },
    /// The proposal is in the leader's log under this id.
    Proposed { token: u64, id: LogId },
    /// This member stopped leading before it could apply the proposal. It may still be applied, here
    /// as elsewhere, under the id it was given.
    ProposalLost { token: u64 },
    /// This member began or stopped to lead in `term`.
    Role { leader: bool, term: Term },
    /// Whom this member takes for the leader of `term`, on each change.
    LeaderKnown { leader: Option<StoreId>, term: Term },
}

/// Why an event was refused. Every refusal leaves the member as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refused {
    /// This member does not lead, or may not. Nothing was appended; ask `hint`.
    #[error("not the leader")]
    NotLeader {
        /// Who probably is.
        hint: Option<StoreId>,
    },
    /// [`PROPOSALS_IN_FLIGHT_MAX`] or the disk's queue is reached. Nothing was appended; try again
    /// when some were applied.
    #[error("too many proposals in flight")]
    Overloaded,
    /// The leader has not yet committed an entry of its own term, so it cannot know whether an older
    /// change is under way (the fix to 4.1). Nothing changed; try again after the next
    /// [`Action::Apply`].
    #[error("the leader has not committed in its term yet")]
    LeaderTooNew,
    /// An earlier change is not committed. Nothing changed.
    #[error("a membership change is under way")]
    ChangeUnderWay,
    /// More than one voter differs, so that two majorities might not meet. Nothing changed.
    #[error("a change adds or removes one voter at most")]
    NotOneVoter,
    /// No voter, more than [`MEMBERS_MAX`], or a store in both sets. Nothing changed.
    #[error("not a membership")]
    BadMembers,
    /// The snapshot covers entries that were not applied here. Nothing changed.
    #[error("the snapshot is ahead of what was applied")]
    SnapshotAhead,
    /// There is a snapshot as new. Nothing changed.
    #[error("there is a newer snapshot")]
    SnapshotOld,
    /// No write has this ticket. Nothing changed.
    #[error("no write has this ticket")]
    UnknownTicket,
}

/// A member of a Raft group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Raft<T> {
    me: StoreId,
    config: Config,
    random: u64,
    may_lead: bool,
    hard_state: HardState,
    /// The write that makes `hard_state` durable.
    hard_ticket: u64,
    log: Log<T>,
    flushes: Flushes<T>,
    commit: LogIndex,
    applied: LogIndex,
    role: Role,
    leader: Option<StoreId>,
    leader_heard_at: Time,
    /// `None`: nothing to wait for until a leader is heard, since this member would not campaign.
    election_due: Option<Time>,
    /// An acknowledgement that waits for its flush. One is enough: the newest says it all.
    owed: Option<(StoreId, LogIndex)>,
    /// Messages that wait until `hard_state` is flushed.
    held: VecDeque<(StoreId, Message<T>)>,
    actions: VecDeque<Action<T>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Role {
    Follower,
    Candidate { votes: BTreeSet<StoreId> },
    Leader(Leader),
}

impl<T: Clone> Machine for Raft<T> {
    type Event = Event<T>;
    type Action = Action<T>;
    type Error = Refused;

    fn handle(&mut self, now: Time, event: Event<T>) -> Result<(), Refused> {
        match event {
            Event::Receive { from, message } => {
                if self.flushes.under_way() < WRITES_UNDER_WAY_MAX {
                    self.receive(now, from, message);
                }
                Ok(())
            }
            Event::Propose { token, command } => self.propose(now, token, command),
            Event::ChangeMembers(members) => self.change_members(now, members),
            Event::Flushed { ticket } => self.flushed(now, ticket),
            Event::SnapshotMade { upto, data } => self.snapshot_made(now, upto, data),
            Event::MayLead(may_lead) => {
                self.set_may_lead(now, may_lead);
                Ok(())
            }
            Event::Tick => {
                self.tick(now);
                Ok(())
            }
        }
    }

    fn poll_action(&mut self) -> Option<Action<T>> {
        self.actions.pop_front()
    }

    fn next_deadline(&self) -> Option<Time> {
        match &self.role {
            Role::Leader(leader) => Some(leader.heartbeat_due),
            _ => self.election_due,
        }
    }
}

impl<T: Clone> Raft<T> {
    /// A member that starts from its disk. `seed` draws its election timeouts; give each start its
    /// own.
    pub fn restart(
        me: StoreId,
        config: Config,
        seed: u64,
        persisted: Persisted<T>,
        now: Time,
    ) -> Raft<T> {
        assert!(
            config.heartbeat < config.election_min && config.election_min < config.election_max,
            "a heartbeat comes before any election timeout"
        );
        let Persisted {
            hard_state,
            snapshot,
            start,
            log,
        } = persisted;
        let log = Log::restore(start, snapshot, log);
        let mut raft = Raft {
            me,
            config,
            random: seed,
            may_lead: true,
            hard_state,
            hard_ticket: 0,
            flushes: Flushes::restore(log.last()),
            commit: log.snapshot().map_or(log.start(), |s| s.last).index,
            applied: LogIndex::ZERO,
            log,
            role: Role::Follower,
            leader: None,
            leader_heard_at: Time::ZERO,
            election_due: None,
            owed: None,
            held: VecDeque::new(),
            actions: VecDeque::new(),
        };
        if let Some(snapshot) = raft.log.snapshot().cloned() {
            raft.installed(&snapshot);
        }
        let entries: Vec<_> = raft.log.from(raft.applied.next()).cloned().collect();
        if !entries.is_empty() {
            raft.actions.push_back(Action::Appended { entries });
        }
        raft.rearm(now);
        raft
    }

    /// The entries from `index` on, flushed or not, or from the first one not dropped.
    pub fn log_entries_from(&self, index: LogIndex) -> impl Iterator<Item = &Arc<Entry<T>>> {
        self.log.from(index)
    }

    /// The last entry that this member's disk holds, in its log or under its snapshot.
    pub fn held_last(&self) -> LogId {
        self.flushes.held()
    }

    /// Entries up to here are committed, as far as this member knows.
    pub fn commit_index(&self) -> LogIndex {
        self.commit
    }

    /// The last entry handed out to be applied.
    pub fn applied_index(&self) -> LogIndex {
        self.applied
    }

    /// Whether it leads, as far as it knows. A newer leader may exist.
    pub fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    /// The term it is in.
    pub fn term(&self) -> Term {
        self.hard_state.term
    }

    /// Whom it takes for the leader.
    pub fn leader(&self) -> Option<StoreId> {
        self.leader
    }

    /// The members by its log, committed or not.
    pub fn members(&self) -> &Members {
        self.log.members()
    }

    /// As leader: how far `peer` holds the log. By this an embedder sees that a learner has caught
    /// up and may be made a voter.
    pub fn replicated(&self, peer: StoreId) -> Option<LogIndex> {
        match &self.role {
            Role::Leader(_) if peer == self.me => Some(self.flushes.held().index),
            Role::Leader(leader) => leader.peers.get(&peer).map(|p| p.matched),
            _ => None,
        }
    }

    /// The latest snapshot, if there is one.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.log.snapshot().map(Arc::as_ref)
    }

    fn receive(&mut self, now: Time, from: StoreId, message: Message<T>) {
        let term = message.term();
        if let Message::RequestVote { last, .. } = message {
            self.vote_requested(now, from, term, last);
            return;
        }
        let from_leader = matches!(
            message,
            Message::Append { .. } | Message::InstallSnapshot { .. }
        );
        if term < self.hard_state.term {
            if from_leader {
                let term = self.hard_state.term;
                self.send_once_flushed(from, Message::Stale { term });
            }
            return;
        }
        if term > self.hard_state.term {
            let voted_for = None;
            self.follow(now, HardState { term, voted_for }, None);
        }
        if from_leader {
            if self.is_leader() {
                return; // no other leader is of this term, so nobody sent this
            }
            self.follow(now, self.hard_state, Some(from));
            self.leader_heard_at = now;
            self.rearm(now);
        }
        match message {
            Message::RequestVote { .. } | Message::Stale { .. } => {}
            Message::Vote { granted, .. } => {
                if granted {
                    self.voted(now, from);
                }
            }
            Message::Append {
                prev,
                entries,
                commit,
                ..
            } => self.append(now, from, prev, entries, commit),
            Message::InstallSnapshot { snapshot, .. } => self.install(now, from, snapshot),
            Message::Appended { matched, .. } => {
                self.answered(now, from, |peer| peer.agrees(matched))
            }
            Message::Conflict { prev, hint, .. } => {
                self.answered(now, from, |peer| peer.conflicts(prev, hint));
            }
        }
    }

    /// Sends once the hard state is flushed; at once if it is.
    fn send_once_flushed(&mut self, to: StoreId, message: Message<T>) {
        if self.flushes.covers(self.hard_ticket) {
            self.actions.push_back(Action::Send { to, message });
            return;
        }
        if self.held.len() == HELD_MESSAGES_MAX {
            self.held.pop_front();
        }
        self.held.push_back((to, message));
    }
}
