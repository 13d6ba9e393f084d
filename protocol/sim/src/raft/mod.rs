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

mod leader;
mod log;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use understudy_protocol::id::{LogId, LogIndex, StoreId, Term};
use understudy_protocol::machine::Machine;
use understudy_protocol::time::Time;

pub use leader::{APPEND_ENTRIES_MAX, MEMBERS_MAX, WINDOW_ENTRIES_MAX};
use leader::{Leader, Progress, Source};
use log::{Effect, Flushes, Log};
pub use log::{Entry, HardState, Members, Payload, Persisted, Snapshot, Write};

/// The most proposals a leader has appended and not applied: some 20 ms of commands at 50,000 a
/// second, about one slow flush. Beyond it a caller does better to wait than to queue.
pub const PROPOSALS_IN_FLIGHT_MAX: usize = 1024;

/// How many entries stay in the log under a snapshot, so that a follower that was away for a moment
/// catches up by entries.
pub const ENTRIES_KEPT_UNDER_SNAPSHOT: u64 = 128;

/// The most writes a member leaves unflushed. Beyond it peers' messages count as lost, as they would
/// on a node whose disk hangs. Room for a whole window of single-entry appends, and terms besides.
pub const WRITES_UNDER_WAY_MAX: usize = 2 * WINDOW_ENTRIES_MAX as usize;

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

    // ---- elections (3.4, 3.6, 4.2.3) ----

    fn tick(&mut self, now: Time) {
        match &self.role {
            Role::Leader(leader) if leader.heartbeat_due <= now => self.heartbeat(now),
            Role::Leader(_) => {}
            _ if self.election_due.is_some_and(|due| due <= now) => self.election_timeout(now),
            _ => {}
        }
    }

    fn election_timeout(&mut self, now: Time) {
        self.know_leader(None);
        if !self.may_campaign() {
            self.role = Role::Follower;
            self.election_due = None;
            return;
        }
        self.rearm(now);
        // A disk that has not flushed what it was given would not flush a vote in time either.
        if self.flushes.under_way() > 0 {
            return;
        }
        self.enter_term(
            now,
            HardState {
                term: self.hard_state.term.next(),
                voted_for: Some(self.me),
            },
        );
        self.role = Role::Candidate {
            votes: BTreeSet::new(),
        };
        let request = Message::RequestVote {
            term: self.hard_state.term,
            last: self.log.last(),
        };
        let others: Vec<_> = self.others_voting().collect();
        for to in others {
            self.send_once_flushed(to, request.clone());
        }
    }

    fn vote_requested(&mut self, now: Time, from: StoreId, term: Term, last: LogId) {
        if self.has_live_leader(now) {
            return;
        }
        let current = self.hard_state;
        let is_free = term > current.term || current.voted_for.is_none_or(|voted| voted == from);
        let granted = term >= current.term && is_free && last >= self.log.last();
        if term > current.term {
            let voted_for = granted.then_some(from);
            self.follow(now, HardState { term, voted_for }, None);
        } else if granted && current.voted_for.is_none() {
            let voted_for = Some(from);
            self.enter_term(now, HardState { term, voted_for });
        }
        if granted {
            self.rearm(now);
        }
        let term = self.hard_state.term;
        self.send_once_flushed(from, Message::Vote { term, granted });
    }

    /// A member that has just heard a leader, or leads, does not help to depose it (4.2.3).
    fn has_live_leader(&self, now: Time) -> bool {
        match &self.role {
            Role::Leader(_) => self.may_lead,
            _ => {
                self.leader.is_some()
                    && now.since(self.leader_heard_at) < self.config.election_min
            }
        }
    }

    fn voted(&mut self, now: Time, from: StoreId) {
        let members = self.log.members();
        let Role::Candidate { votes } = &mut self.role else {
            return;
        };
        if members.voters.contains(&from) {
            votes.insert(from);
        }
        if votes.len() >= members.quorum() {
            self.lead(now);
        }
    }

    fn lead(&mut self, now: Time) {
        let next = self.log.last().index.next();
        let others = self.log.members().all().filter(|store| *store != self.me);
        self.role = Role::Leader(Leader {
            peers: others
                .map(|store| (store, Progress::new(now, next)))
                .collect(),
            heartbeat_due: now + self.config.heartbeat,
            term_start: next,
            proposals: VecDeque::new(),
        });
        self.actions.push_back(Action::Role {
            leader: true,
            term: self.hard_state.term,
        });
        self.know_leader(Some(self.me));
        self.append_own(now, Payload::Blank);
        self.replicate(now);
    }

    /// Enters a newer term, or stays in this one, as a follower of `leader`.
    fn follow(&mut self, now: Time, hard_state: HardState, leader: Option<StoreId>) {
        let was = mem::replace(&mut self.role, Role::Follower);
        if let Role::Leader(was) = was {
            let lost = was.proposals.into_iter();
            let lost = lost.map(|(_, token)| Action::ProposalLost { token });
            self.actions.extend(lost);
            self.actions.push_back(Action::Role {
                leader: false,
                term: self.hard_state.term,
            });
            self.rearm(now);
        }
        if hard_state.term > self.hard_state.term {
            self.enter_term(now, hard_state);
        }
        self.know_leader(leader);
    }

    fn enter_term(&mut self, now: Time, hard_state: HardState) {
        if hard_state.term > self.hard_state.term {
            // What is kept back belongs to the older term; nobody waits for it.
            self.held.clear();
            self.owed = None;
            self.leader = None;
            self.actions.push_back(Action::LeaderKnown {
                leader: None,
                term: hard_state.term,
            });
        }
        self.hard_state = hard_state;
        self.hard_ticket = self.persist(
            now,
            Write::HardState(hard_state),
            LogId::default(),
            Effect::Nothing,
        );
    }

    fn know_leader(&mut self, leader: Option<StoreId>) {
        if self.leader != leader {
            self.leader = leader;
            let term = self.hard_state.term;
            self.actions.push_back(Action::LeaderKnown { leader, term });
        }
    }

    fn may_campaign(&self) -> bool {
        self.may_lead && self.log.members().voters.contains(&self.me)
    }

    fn others_voting(&self) -> impl Iterator<Item = StoreId> {
        let voters = self.log.members().voters.iter().copied();
        voters.filter(|store| *store != self.me)
    }

    fn rearm(&mut self, now: Time) {
        let spread = (self.config.election_max - self.config.election_min).as_nanos() as u64;
        let jitter = Duration::from_nanos(self.draw() % spread);
        self.election_due = Some(now + self.config.election_min + jitter);
    }

    /// Splitmix64 (Steele, Lea, Flood 2014).
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn set_may_lead(&mut self, now: Time, may_lead: bool) {
        if self.may_lead == may_lead {
            return;
        }
        self.may_lead = may_lead;
        match &mut self.role {
            Role::Leader(leader) => leader.heartbeat_due = now,
            Role::Candidate { .. } if !may_lead => self.role = Role::Follower,
            _ if self.election_due.is_none() => self.rearm(now),
            _ => {}
        }
    }

    // ---- messages ----

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

    // ---- the follower's log (3.5) ----

    fn append(
        &mut self,
        now: Time,
        from: StoreId,
        prev: LogId,
        mut entries: Vec<Arc<Entry<T>>>,
        commit: LogIndex,
    ) {
        // What was dropped here is committed, so the leader's log agrees with it.
        let start = self.log.start().index;
        let agrees = prev.index < start || self.log.id_at(prev.index) == Some(prev);
        if !agrees {
            let message = Message::Conflict {
                term: self.hard_state.term,
                prev: prev.index,
                hint: self.log.first_of_term_at(prev.index),
            };
            self.send_once_flushed(from, message);
            return;
        }
        let matched = LogIndex(prev.index.0 + entries.len() as u64);
        let known = entries
            .iter()
            .take_while(|e| e.id.index <= start || self.log.id_at(e.id.index) == Some(e.id))
            .count();
        let has_news = known < entries.len();
        if has_news {
            entries.drain(..known);
            self.replace_tail(now, entries);
        }
        self.commit = self.commit.max(commit.min(matched));
        self.acknowledge(from, matched.max(start), !has_news);
        self.apply_committed();
    }

    /// Cuts off what conflicts with `entries` and appends them.
    fn replace_tail(&mut self, now: Time, entries: Vec<Arc<Entry<T>>>) {
        let from = entries[0].id.index;
        if from <= self.log.last().index {
            assert!(from > self.commit, "a committed entry is never cut off");
            self.log.truncate(from);
            self.flushes.cut(self.log.last());
            self.persist(
                now,
                Write::Truncate(from),
                LogId::default(),
                Effect::Truncated(from),
            );
        }
        for entry in &entries {
            self.log.push(entry.clone());
        }
        let write = Write::Append(entries.clone());
        self.persist(now, write, self.log.last(), Effect::Appended(entries));
    }

    fn install(&mut self, now: Time, from: StoreId, snapshot: Arc<Snapshot>) {
        let last = snapshot.last;
        if last.index <= self.commit {
            self.acknowledge(from, last.index, true);
            return;
        }
        let is_held = self.log.id_at(last.index) == Some(last);
        if !is_held {
            // The committed part of the old log stays true; the rest counts as cut off.
            if let Some(committed) = self.log.id_at(self.commit) {
                self.flushes.cut(committed);
            }
            self.log.install(snapshot.clone());
            let write = Write::Install(snapshot.clone());
            self.persist(now, write, last, Effect::Installed(snapshot));
        }
        self.commit = last.index;
        self.acknowledge(from, last.index, is_held);
        self.apply_committed();
    }

    /// Owes `leader` an acknowledgement up to `matched`. `at_once`: nothing of it is on its way to
    /// the disk for the first time, so the leader hears now how much is flushed.
    fn acknowledge(&mut self, leader: StoreId, matched: LogIndex, at_once: bool) {
        let matched = self.owed.map_or(matched, |(_, owed)| owed.max(matched));
        self.owed = Some((leader, matched));
        if at_once {
            self.pay();
        }
    }

    fn pay(&mut self) {
        let Some((to, matched)) = self.owed else {
            return;
        };
        if !self.flushes.covers(self.hard_ticket) {
            return;
        }
        let flushed = matched.min(self.flushes.held().index);
        if flushed == matched {
            self.owed = None;
        }
        let message = Message::Appended {
            term: self.hard_state.term,
            matched: flushed,
        };
        self.actions.push_back(Action::Send { to, message });
    }

    // ---- the disk ----

    fn persist(&mut self, now: Time, write: Write<T>, upto: LogId, effect: Effect<T>) -> u64 {
        let ticket = self.flushes.ask(now, upto, effect);
        self.actions.push_back(Action::Persist { ticket, write });
        ticket
    }

    fn flushed(&mut self, now: Time, ticket: u64) -> Result<(), Refused> {
        if ticket > self.flushes.last_ticket() {
            return Err(Refused::UnknownTicket);
        }
        while let Some(effect) = self.flushes.flushed(ticket) {
            match effect {
                Effect::Nothing => {}
                Effect::Appended(entries) => self.actions.push_back(Action::Appended { entries }),
                Effect::Truncated(from) => self.actions.push_back(Action::Truncated { from }),
                Effect::Installed(snapshot) => self.installed(&snapshot),
            }
        }
        if self.flushes.covers(self.hard_ticket) {
            for (to, message) in self.held.drain(..) {
                self.actions.push_back(Action::Send { to, message });
            }
            if self.hard_state.voted_for == Some(self.me) {
                self.voted(now, self.me);
            }
        }
        self.pay();
        self.advance_commit(now);
        self.apply_committed();
        Ok(())
    }

    fn installed(&mut self, snapshot: &Snapshot) {
        self.applied = snapshot.last.index;
        self.actions.push_back(Action::InstallSnapshot {
            last: snapshot.last,
            members: snapshot.members.clone(),
            data: snapshot.data.clone(),
        });
    }

    fn snapshot_made(&mut self, now: Time, upto: LogIndex, data: Bytes) -> Result<(), Refused> {
        if upto > self.applied {
            return Err(Refused::SnapshotAhead);
        }
        let newest = self.log.snapshot().map_or(LogIndex::ZERO, |s| s.last.index);
        let last = self.log.id_at(upto).filter(|last| last.index > newest);
        let last = last.ok_or(Refused::SnapshotOld)?;
        let snapshot = Arc::new(Snapshot {
            last,
            members: self.log.members_at(upto).clone(),
            data,
        });
        let drop_upto = LogIndex(upto.0.saturating_sub(ENTRIES_KEPT_UNDER_SNAPSHOT));
        let drop_upto = self.log.id_at(drop_upto).unwrap_or(self.log.start());
        self.log.compact(snapshot.clone(), drop_upto);
        let write = Write::Snapshot {
            snapshot,
            drop_upto,
        };
        self.persist(now, write, LogId::default(), Effect::Nothing);
        Ok(())
    }

    /// Hands out what is committed and flushed here. Waits while a snapshot is being installed.
    fn apply_committed(&mut self) {
        let upto = self.commit.min(self.flushes.held().index);
        while self.applied < upto {
            let Some(entry) = self.log.get(self.applied.next()) else {
                return;
            };
            self.applied = entry.id.index;
            let entry = entry.clone();
            self.actions.push_back(Action::Apply { entry });
        }
        if let Role::Leader(leader) = &mut self.role {
            let applied = self.applied;
            while leader
                .proposals
                .pop_front_if(|(index, _)| *index <= applied)
                .is_some()
            {}
        }
    }

    // ---- the leader (3.5, 3.6.2, 4.1) ----

    fn propose(&mut self, now: Time, token: u64, command: T) -> Result<(), Refused> {
        let leader = self.leading()?;
        if leader.proposals.len() >= PROPOSALS_IN_FLIGHT_MAX
            || self.flushes.under_way() >= WRITES_UNDER_WAY_MAX
        {
            return Err(Refused::Overloaded);
        }
        let id = self.append_own(now, Payload::Command(command));
        if let Role::Leader(leader) = &mut self.role {
            leader.proposals.push_back((id.index, token));
        }
        self.actions.push_back(Action::Proposed { token, id });
        self.replicate(now);
        Ok(())
    }

    fn change_members(&mut self, now: Time, members: Members) -> Result<(), Refused> {
        let leader = self.leading()?;
        if self.commit < leader.term_start {
            return Err(Refused::LeaderTooNew);
        }
        if self.commit < self.log.members_index() {
            return Err(Refused::ChangeUnderWay);
        }
        let is_sound = !members.voters.is_empty()
            && members.all().count() <= MEMBERS_MAX
            && members.voters.is_disjoint(&members.learners);
        if !is_sound {
            return Err(Refused::BadMembers);
        }
        let current = &self.log.members().voters;
        if current.symmetric_difference(&members.voters).count() > 1 {
            return Err(Refused::NotOneVoter);
        }
        let next = self.log.last().index.next();
        if let Role::Leader(leader) = &mut self.role {
            // Those who leave are sent this entry too, and forgotten when it is committed.
            for store in members.all().filter(|store| *store != self.me) {
                leader
                    .peers
                    .entry(store)
                    .or_insert_with(|| Progress::new(now, next));
            }
        }
        self.append_own(now, Payload::Members(members));
        self.replicate(now);
        Ok(())
    }

    fn leading(&self) -> Result<&Leader, Refused> {
        match &self.role {
            Role::Leader(leader) if self.may_lead => Ok(leader),
            Role::Leader(_) => Err(Refused::NotLeader { hint: None }),
            _ => Err(Refused::NotLeader { hint: self.leader }),
        }
    }

    fn append_own(&mut self, now: Time, payload: Payload<T>) -> LogId {
        let id = LogId {
            term: self.hard_state.term,
            index: self.log.last().index.next(),
        };
        let entry = Arc::new(Entry { id, payload });
        self.log.push(entry.clone());
        let write = Write::Append(vec![entry.clone()]);
        self.persist(now, write, id, Effect::Appended(vec![entry]));
        id
    }

    fn heartbeat(&mut self, now: Time) {
        let patience = self.config.election_max;
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        leader.heartbeat_due = now + self.config.heartbeat;
        let disk_stalls = self
            .flushes
            .oldest_asked_at()
            .is_some_and(|at| now.since(at) > patience);
        if disk_stalls || !leader.hears_majority(now, self.me, patience, self.log.members()) {
            self.follow(now, self.hard_state, None);
            return;
        }
        self.send_to_peers(now, |peer, source| Some(peer.heartbeat(source)));
    }

    /// Sends every peer what it lacks and has room for.
    fn replicate(&mut self, now: Time) {
        self.send_to_peers(now, Progress::next_message);
    }

    /// Sends each peer one message, if the leader may speak.
    fn send_to_peers(
        &mut self,
        now: Time,
        message: impl Fn(&mut Progress, &Source<'_, T>) -> Option<Message<T>>,
    ) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        if !self.may_lead {
            return;
        }
        let source = Source {
            now,
            term: self.hard_state.term,
            commit: self.commit,
            log: &self.log,
            snapshot_patience: self.config.election_min,
        };
        for (&to, peer) in &mut leader.peers {
            if let Some(message) = message(peer, &source) {
                self.actions.push_back(Action::Send { to, message });
            }
        }
    }

    /// A peer answered an append: takes it in, commits what it can, and sends it more.
    fn answered(&mut self, now: Time, from: StoreId, take: impl FnOnce(&mut Progress)) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(peer) = leader.peers.get_mut(&from) else {
            return;
        };
        let matched = peer.matched;
        peer.heard_at = now;
        take(peer);
        if peer.matched > matched {
            self.advance_commit(now);
        }
        self.send_more(now, from);
    }

    fn send_more(&mut self, now: Time, to: StoreId) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(peer) = leader.peers.get_mut(&to).filter(|_| self.may_lead) else {
            return;
        };
        let source = Source {
            now,
            term: self.hard_state.term,
            commit: self.commit,
            log: &self.log,
            snapshot_patience: self.config.election_min,
        };
        while let Some(message) = peer.next_message(&source) {
            self.actions.push_back(Action::Send { to, message });
        }
    }

    /// Commits what a majority holds, if it is of this leader's own term (3.6.2).
    fn advance_commit(&mut self, now: Time) {
        let Role::Leader(leader) = &self.role else {
            return;
        };
        let own = self.flushes.held().index;
        let index = leader.majority_index(self.me, own, self.log.members());
        let is_own_term = self
            .log
            .id_at(index)
            .is_some_and(|id| id.term == self.hard_state.term);
        if index <= self.commit || !is_own_term {
            return;
        }
        let changed = self.commit < self.log.members_index() && self.log.members_index() <= index;
        self.commit = index;
        self.apply_committed();
        self.send_to_peers(now, |peer, source| {
            peer.next_message(source)
                .or_else(|| peer.commit_notice(source))
        });
        if changed {
            self.members_committed(now);
        }
    }

    /// Forgets the peers that left, and leaves if this member did (4.2.2).
    fn members_committed(&mut self, now: Time) {
        let members = self.log.members();
        let stays = members.voters.contains(&self.me);
        if let Role::Leader(leader) = &mut self.role {
            leader.peers.retain(|store, _| members.contains(*store));
        }
        if !stays {
            self.follow(now, self.hard_state, None);
        }
    }
}
