//! Elections (3.4, 3.6, 4.2.3): when to campaign, whom to vote for, and what ends a leadership.
//!
//! Owns: the role, the term and the election timer. Never does: replication.

use std::collections::{BTreeSet, VecDeque};
use std::mem;
use std::time::Duration;

use understudy_protocol::id::{LogId, StoreId, Term};
use understudy_protocol::time::Time;

use super::leader::Leader;
use super::log::{Effect, HardState, Payload, Write};
use super::progress::Progress;
use super::{Action, Message, Raft, Role};

impl<T: Clone> Raft<T> {
    pub(super) fn tick(&mut self, now: Time) {
        match &self.role {
            Role::Leader(leader) if leader.heartbeat_due <= now => self.heartbeat(now),
            Role::Leader(_) => {}
            _ if self.election_due.is_some_and(|due| due <= now) => self.election_timeout(now),
            _ => {}
        }
    }

    pub(super) fn election_timeout(&mut self, now: Time) {
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

    pub(super) fn vote_requested(&mut self, now: Time, from: StoreId, term: Term, last: LogId) {
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
    pub(super) fn has_live_leader(&self, now: Time) -> bool {
        match &self.role {
            Role::Leader(_) => self.may_lead,
            _ => {
                self.leader.is_some() && now.since(self.leader_heard_at) < self.config.election_min
            }
        }
    }

    pub(super) fn voted(&mut self, now: Time, from: StoreId) {
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

    pub(super) fn lead(&mut self, now: Time) {
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
    pub(super) fn follow(&mut self, now: Time, hard_state: HardState, leader: Option<StoreId>) {
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

    pub(super) fn enter_term(&mut self, now: Time, hard_state: HardState) {
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

    pub(super) fn know_leader(&mut self, leader: Option<StoreId>) {
        if self.leader != leader {
            self.leader = leader;
            let term = self.hard_state.term;
            self.actions.push_back(Action::LeaderKnown { leader, term });
        }
    }

    pub(super) fn may_campaign(&self) -> bool {
        self.may_lead && self.log.members().voters.contains(&self.me)
    }

    pub(super) fn others_voting(&self) -> impl Iterator<Item = StoreId> {
        let voters = self.log.members().voters.iter().copied();
        voters.filter(|store| *store != self.me)
    }

    pub(super) fn rearm(&mut self, now: Time) {
        let spread = (self.config.election_max - self.config.election_min).as_nanos() as u64;
        let jitter = Duration::from_nanos(self.draw() % spread);
        self.election_due = Some(now + self.config.election_min + jitter);
    }

    /// Splitmix64 (Steele, Lea, Flood 2014).
    pub(super) fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn set_may_lead(&mut self, now: Time, may_lead: bool) {
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
}
