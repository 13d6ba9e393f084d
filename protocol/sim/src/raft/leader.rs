//! What a leader does (3.5, 3.6.2, chapter 4): append, replicate, count copies, change members.
//!
//! Owns: the peers' progress, the proposals in flight, and the commit index of its term. Never does:
//! speaking while it may not lead, or committing by an older term's entry.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use understudy_protocol::id::{LogId, LogIndex, StoreId};
use understudy_protocol::time::Time;

use super::log::{Effect, Entry, Members, Payload, Write};
use super::progress::{Progress, Source};
use super::{Action, Message, Raft, Refused, Role, WRITES_UNDER_WAY_MAX};

/// The most members, learners included. Directories have three to seven voters; the rest is room for
/// replacing every one of them at once.
pub const MEMBERS_MAX: usize = 16;

/// The most proposals a leader has appended and not applied: some 20 ms of commands at 50,000 a
/// second, about one slow flush. Beyond it a caller does better to wait than to queue.
pub const PROPOSALS_IN_FLIGHT_MAX: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Leader {
    pub(super) peers: BTreeMap<StoreId, Progress>,
    pub(super) heartbeat_due: Time,
    /// The first entry of this leader's own term: its blank one.
    pub(super) term_start: LogIndex,
    /// Proposals that are appended and not yet applied, oldest first.
    pub(super) proposals: VecDeque<(LogIndex, u64)>,
}

impl Leader {
    /// The highest index that a majority of voters holds flushed; `own` is the leader's.
    pub(super) fn majority_index(&self, me: StoreId, own: LogIndex, members: &Members) -> LogIndex {
        let mut held = [LogIndex::ZERO; MEMBERS_MAX];
        let voters = members.voters.len();
        for (slot, voter) in held.iter_mut().zip(&members.voters) {
            *slot = if *voter == me {
                own
            } else {
                self.peers
                    .get(voter)
                    .map_or(LogIndex::ZERO, |peer| peer.matched)
            };
        }
        held[..voters].sort_unstable();
        held[voters - members.quorum()]
    }

    /// Whether a majority of voters, this leader included, answered within `patience`.
    pub(super) fn hears_majority(
        &self,
        now: Time,
        me: StoreId,
        patience: Duration,
        members: &Members,
    ) -> bool {
        let heard = |voter: &&StoreId| {
            **voter == me
                || self
                    .peers
                    .get(voter)
                    .is_some_and(|peer| now.since(peer.heard_at) <= patience)
        };
        members.voters.iter().filter(heard).count() >= members.quorum()
    }
}

impl<T: Clone> Raft<T> {
    pub(super) fn propose(&mut self, now: Time, token: u64, command: T) -> Result<(), Refused> {
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

    pub(super) fn change_members(&mut self, now: Time, members: Members) -> Result<(), Refused> {
        let leader = self.leading()?;
        if self.commit < leader.term_start {
            return Err(Refused::LeaderTooNew);
        }
        if self.commit < self.log.members_index() {
            return Err(Refused::ChangeUnderWay);
        }
        if !members.is_sound() {
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

    pub(super) fn leading(&self) -> Result<&Leader, Refused> {
        match &self.role {
            Role::Leader(leader) if self.may_lead => Ok(leader),
            Role::Leader(_) => Err(Refused::NotLeader { hint: None }),
            _ => Err(Refused::NotLeader { hint: self.leader }),
        }
    }

    pub(super) fn append_own(&mut self, now: Time, payload: Payload<T>) -> LogId {
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

    pub(super) fn heartbeat(&mut self, now: Time) {
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
    pub(super) fn replicate(&mut self, now: Time) {
        self.send_to_peers(now, Progress::next_message);
    }

    /// Sends each peer one message, if the leader may speak.
    pub(super) fn send_to_peers(
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
    pub(super) fn answered(&mut self, now: Time, from: StoreId, take: impl FnOnce(&mut Progress)) {
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

    pub(super) fn send_more(&mut self, now: Time, to: StoreId) {
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
    pub(super) fn advance_commit(&mut self, now: Time) {
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
    pub(super) fn members_committed(&mut self, now: Time) {
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
