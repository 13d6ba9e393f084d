//! The voter's side of a lease: promise, refuse, and report when promises are over.
//!
//! Owns: rules L2 (the voter's count), L3, L4 and the voter's half of L5, L7, L8 and L9. Never
//! decides that a node is dead: it only says what it promised.
//!
//! What the voter's log and snapshot hold reaches it as [`Fact`]s, as soon as they are flushed there
//! and before they are committed: a voter that holds an expulsion must not forget it because the
//! commit is late (L4). An entry that Raft truncates takes its fact away again.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use minicbor::{Decode, Encode};

use super::Ended;
use crate::cluster::voters::Voters;
use crate::id::{IncarnationId, LogId, LogIndex, NodeId, StoreId};
use crate::machine::Machine;
use crate::rules::{Rule, keeps};
use crate::time::Time;
use crate::wire::heart::{
    DeathDigest, Promise, Renewal, Report, SIGHTED_MAX, Sighted, Sighting, Ttl, Verdict,
};

/// One voter's promises.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeaseVoter {
    store: StoreId,
    /// `None` until the log and the snapshot have been read: until then the heart is mute (L4).
    held: Option<Held>,
    /// The longest TTL ever flushed as a limit (L3).
    limit: Ttl,
    /// Before this instant promises may stand that the voter does not remember.
    unsure_until: Time,
    promises: BTreeMap<IncarnationId, Given>,
    /// When each promise ends that stood when the leader was last told of it.
    ends: BTreeSet<(Time, IncarnationId)>,
    leader: Option<NodeId>,
    leader_seen: Time,
    speak_at: Time,
    actions: VecDeque<Action>,
}

/// What a log entry or a snapshot says that a voter must know.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Fact {
    /// The incarnation is live; every earlier one of the node is expelled by the same entry.
    #[n(0)]
    Live {
        /// Of which node.
        #[n(0)]
        node: NodeId,
        /// Which start.
        #[n(1)]
        incarnation: IncarnationId,
        /// What a death note must match (L10).
        #[n(2)]
        death: DeathDigest,
    },
    /// The incarnation is expelled.
    #[n(1)]
    Expelled(#[n(0)] IncarnationId),
    /// The incarnation's promises are over for good.
    #[n(2)]
    Over(#[n(0)] IncarnationId),
    /// The incarnation is one of the node's last that are over: what a snapshot says of it.
    #[n(7)]
    Ended {
        /// Of which node.
        #[n(0)]
        node: NodeId,
        /// Which start.
        #[n(1)]
        incarnation: IncarnationId,
    },
    /// A death note, which ends all promises to the incarnation if it proves itself (L11).
    #[n(3)]
    Dead {
        /// Whose.
        #[n(0)]
        incarnation: IncarnationId,
        /// The proof.
        #[cbor(n(1), with = "minicbor::bytes")]
        secret: [u8; 32],
    },
    /// The cluster was formed with these voters and this TTL.
    #[n(4)]
    Formed {
        /// The first list.
        #[n(0)]
        voters: Voters,
        /// The first TTL.
        #[n(1)]
        ttl: Ttl,
    },
    /// A step of a change of the list of voters.
    #[n(5)]
    Voters(#[n(0)] Voters),
    /// The TTL in force, and so the limit to flush.
    #[n(6)]
    Ttl(#[n(0)] Ttl),
}

/// What may happen to a voter. Numbered for the event log: see [`crate::journal`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Event {
    /// The snapshot and the log have been read. Also after Raft installed another snapshot.
    #[n(0)]
    Read {
        /// What the snapshot and the committed entries hold, oldest first.
        #[n(0)]
        settled: Vec<(LogId, Fact)>,
        /// What the entries above the commit index hold.
        #[n(1)]
        open: Vec<(LogId, Fact)>,
    },
    /// An entry was flushed to the log.
    #[n(1)]
    Held(#[n(0)] LogId, #[n(1)] Fact),
    /// Raft truncated its log from this index on.
    #[n(2)]
    Truncated(#[n(0)] LogIndex),
    /// The directory has applied the committed entry and it was void: its fact is none. Comes before
    /// the [`Event::Committed`] that reaches it.
    #[n(3)]
    Voided(#[n(0)] LogIndex),
    /// Entries up to here are committed and applied: no truncation can reach them.
    #[n(4)]
    Committed(#[n(0)] LogIndex),
    /// A node asks.
    #[n(5)]
    Asked(#[n(0)] Renewal),
    /// The limit is flushed (L3).
    #[n(6)]
    LimitFlushed(#[n(0)] Ttl),
    /// Raft heard a leader, on this node.
    #[n(7)]
    LeaderSeen(#[n(0)] NodeId),
    /// The deadline has come.
    #[n(8)]
    Tick,
}

/// What a voter wants done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Answer the node that asked.
    Answer {
        /// The node.
        to: NodeId,
        /// What to send.
        promise: Promise,
    },
    /// Send the report to the leader, by the heart and on the truth plane (L5).
    Report {
        /// The leader's node.
        to: NodeId,
        /// What to send.
        report: Report,
    },
    /// Tell the leader who is live, by the heart.
    Sight {
        /// The leader's node.
        to: NodeId,
        /// What to send.
        sighting: Sighting,
    },
    /// Flush the limit, then say [`Event::LimitFlushed`] (L3).
    FlushLimit(Ttl),
}

/// Why an event was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The log and the snapshot have not been read yet. Nothing changed; the asker will ask again.
    #[error("the voter has not read its log and snapshot yet")]
    Mute,
}

/// What the log and the snapshot hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Held {
    /// What committed entries made.
    settled: View,
    /// Entries that Raft may still truncate.
    open: BTreeMap<LogIndex, (LogId, Fact)>,
    /// `settled` with `open` on top.
    view: View,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct View {
    live: BTreeMap<IncarnationId, (NodeId, DeathDigest)>,
    expelled: BTreeMap<IncarnationId, Expelled>,
    /// The last starts of each node that are over: nothing makes one live again, and one that still asks
    /// is told to end.
    ended: BTreeMap<NodeId, Ended>,
    voters: Voters,
    ttl: Option<Ttl>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Expelled {
    /// The entry that expelled it.
    by: LogId,
    node: NodeId,
    death: DeathDigest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Given {
    until: Time,
    applied: LogIndex,
}

impl LeaseVoter {
    /// A voter that has just started. `limit` is what its disk says of [`Event::LimitFlushed`]; until
    /// that has run out, promises of its former life may stand (L3).
    pub fn new(now: Time, store: StoreId, limit: Ttl) -> LeaseVoter {
        LeaseVoter {
            store,
            held: None,
            limit,
            unsure_until: now + limit.duration(),
            promises: BTreeMap::new(),
            ends: BTreeSet::new(),
            leader: None,
            leader_seen: now,
            speak_at: now,
            actions: VecDeque::new(),
        }
    }

    /// Whether a promise to `incarnation` stands at `now`, or may stand.
    pub fn may_have_promised(&self, now: Time, incarnation: IncarnationId) -> bool {
        now < self.unsure_until || self.has_promised(now, incarnation)
    }

    fn has_promised(&self, now: Time, incarnation: IncarnationId) -> bool {
        self.promises
            .get(&incarnation)
            .is_some_and(|given| now < given.until)
    }

    fn on_asked(&mut self, now: Time, renewal: Renewal) -> Result<(), Refused> {
        let held = self.held.as_ref().ok_or(Refused::Mute)?;
        let verdict = self.judge(now, &held.view, &renewal);
        if verdict == Verdict::Promised {
            // L2: from the receiving. L3: for the TTL that the renewal names.
            let ttl = if keeps(Rule::L3) {
                renewal.ttl
            } else {
                held.view.ttl.unwrap_or(renewal.ttl)
            };
            let until = now + ttl.duration();
            let given = self.promises.entry(renewal.incarnation).or_insert(Given {
                until,
                applied: renewal.applied,
            });
            self.ends.remove(&(given.until, renewal.incarnation));
            given.until = given.until.max(until);
            self.ends.insert((given.until, renewal.incarnation));
            given.applied = given.applied.max(renewal.applied);
        }
        let promise = Promise {
            voter: self.store,
            incarnation: renewal.incarnation,
            round: renewal.round,
            verdict,
        };
        self.actions.push_back(Action::Answer {
            to: renewal.node,
            promise,
        });
        Ok(())
    }

    fn judge(&self, now: Time, view: &View, renewal: &Renewal) -> Verdict {
        let expelled = view.expelled.contains_key(&renewal.incarnation)
            || view.has_ended(renewal.node, renewal.incarnation);
        // L4: an expulsion in the log or the snapshot is never answered with a promise.
        if expelled && keeps(Rule::L4) {
            return Verdict::Expelled;
        }
        if !expelled && !view.live.contains_key(&renewal.incarnation) {
            return Verdict::NotLive;
        }
        // L3: nothing longer than what a restart would wait out.
        if renewal.ttl > self.limit && keeps(Rule::L3) {
            return Verdict::TtlAboveLimit;
        }
        // L8: a majority of an older list is no majority.
        if renewal.voters < view.voters.version && keeps(Rule::L8) {
            return Verdict::OldVoters;
        }
        if now.since(self.leader_seen) >= renewal.ttl.duration() * NO_LEADER_TTL {
            return Verdict::NoLeader;
        }
        Verdict::Promised
    }

    fn on_facts_changed(&mut self, now: Time) {
        let Some(held) = self.held.as_mut() else {
            return;
        };
        let voted = held.view.voters.contains(self.store);
        let old = core::mem::replace(&mut held.view, held.settled.clone());
        for (id, fact) in held.open.values() {
            held.view.learn(*id, fact);
        }
        let view = &held.view;
        // An expulsion that ends nothing any more is reported at once.
        let new = |incarnation: &&IncarnationId| !old.expelled.contains_key(*incarnation);
        if view.expelled.keys().any(|incarnation| new(&incarnation)) {
            self.speak_at = now;
        }
        // L8: an added voter counts as restarted.
        if !voted && view.voters.contains(self.store) && keeps(Rule::L8) {
            let longest = self.limit.max(view.ttl.unwrap_or(LONGEST)).max(LONGEST);
            self.unsure_until = self.unsure_until.max(now + longest.duration());
        }
        if let Some(ttl) = view.ttl.filter(|ttl| *ttl > self.limit) {
            self.actions.push_back(Action::FlushLimit(ttl));
        }
        let ends = &mut self.ends;
        self.promises.retain(|incarnation, given| {
            let known =
                view.live.contains_key(incarnation) || view.expelled.contains_key(incarnation);
            if !known {
                ends.remove(&(given.until, *incarnation));
            }
            now < given.until || known
        });
    }

    fn on_tick(&mut self, now: Time) {
        let mut ended = BTreeSet::new();
        while self.ends.first().is_some_and(|(until, _)| *until <= now) {
            ended.extend(self.ends.pop_first().map(|(_, incarnation)| incarnation));
        }
        let whole = now >= self.speak_at;
        if !whole && ended.is_empty() {
            return;
        }
        let Some(held) = self.held.as_ref() else {
            self.speak_at = now + QUIET_PERIOD;
            return;
        };
        if whole {
            let ttl = held.view.ttl;
            let period = ttl.map_or(QUIET_PERIOD, |ttl| ttl.duration() / SPOKEN_PER_TTL);
            self.speak_at = now + period;
            if now < self.unsure_until {
                // What it may have promised in a former life ends then.
                self.speak_at = self.speak_at.min(self.unsure_until);
            }
        }
        let Some(to) = self
            .leader
            .filter(|_| held.view.voters.contains(self.store))
        else {
            return;
        };
        // Everything now and then; between, what has just ended.
        let spoken = |incarnation: &IncarnationId| whole || ended.contains(incarnation);
        let expelled = held.view.expelled.iter();
        for (incarnation, expelled) in expelled.filter(|(id, _)| spoken(id)) {
            // L5: only a voter that holds the entry, and whose promise is over, says so.
            if !self.may_have_promised(now, *incarnation) {
                let report = Report {
                    voter: self.store,
                    incarnation: *incarnation,
                    expel: expelled.by,
                };
                self.actions.push_back(Action::Report { to, report });
            }
        }
        let live = held.view.live.keys().copied();
        let live: Vec<IncarnationId> = live.filter(|id| spoken(id)).collect();
        let version = held.view.voters.version;
        // Also without anyone live: the leader counts who holds which list of voters (L8).
        let empty = whole && live.is_empty();
        let pages = live
            .chunks(SIGHTED_MAX)
            .map(Some)
            .chain(empty.then_some(None));
        for page in pages {
            let sighted = page
                .unwrap_or_default()
                .iter()
                .map(|incarnation| self.sight(now, *incarnation));
            let sighting = Sighting {
                voter: self.store,
                voters: version,
                sighted: sighted.collect(),
            };
            self.actions.push_back(Action::Sight { to, sighting });
        }
    }

    fn sight(&self, now: Time, incarnation: IncarnationId) -> Sighted {
        let applied = self
            .promises
            .get(&incarnation)
            .map_or(LogIndex::ZERO, |given| given.applied);
        Sighted {
            incarnation,
            promised: self.may_have_promised(now, incarnation),
            applied,
        }
    }
}

impl View {
    fn expel(&mut self, incarnation: IncarnationId, by: LogId) {
        if let Some((node, death)) = self.live.remove(&incarnation) {
            self.expelled
                .insert(incarnation, Expelled { by, node, death });
        }
    }

    fn has_ended(&self, node: NodeId, incarnation: IncarnationId) -> bool {
        let ended = self.ended.get(&node);
        ended.is_some_and(|ended| ended.contains(incarnation))
    }

    fn end(&mut self, node: NodeId, incarnation: IncarnationId) {
        self.ended.entry(node).or_default().remember(incarnation);
    }

    fn learn(&mut self, id: LogId, fact: &Fact) {
        match fact {
            Fact::Live {
                node,
                incarnation,
                death,
            } => {
                let known =
                    self.live.contains_key(incarnation) || self.expelled.contains_key(incarnation);
                if known || self.has_ended(*node, *incarnation) {
                    return;
                }
                let former = self
                    .live
                    .iter()
                    .find(|(_, (of, _))| of == node)
                    .map(|(former, _)| *former);
                if let Some(former) = former {
                    self.expel(former, id);
                }
                self.live.insert(*incarnation, (*node, *death));
            }
            Fact::Expelled(incarnation) => {
                self.expel(*incarnation, id);
            }
            Fact::Over(incarnation) => {
                if let Some(expelled) = self.expelled.remove(incarnation) {
                    self.end(expelled.node, *incarnation);
                }
            }
            Fact::Ended { node, incarnation } => self.end(*node, *incarnation),
            Fact::Dead {
                incarnation,
                secret,
            } => {
                let expelled = self.expelled.get(incarnation);
                let expelled = expelled.map(|expelled| (expelled.node, expelled.death));
                let known = self.live.get(incarnation).copied().or(expelled);
                let proven = |(_, death): &(NodeId, DeathDigest)| *death == DeathDigest::of(secret);
                if let Some((node, _)) = known.filter(proven) {
                    self.live.remove(incarnation);
                    self.expelled.remove(incarnation);
                    self.end(node, *incarnation);
                }
            }
            // A cluster is formed once: a second formation is void, and must not bring back an old list
            // of voters until the directory says so.
            Fact::Formed { voters, ttl } if self.voters == Voters::default() => {
                self.voters = voters.clone();
                self.ttl = Some(*ttl);
            }
            Fact::Formed { .. } => {}
            // As the directory applies it: a change that was not made from the newest list is void.
            Fact::Voters(voters) if voters.version > self.voters.version => {
                self.voters = voters.clone()
            }
            Fact::Voters(_) => {}
            Fact::Ttl(ttl) => self.ttl = Some(*ttl),
        }
    }
}

impl Machine for LeaseVoter {
    type Event = Event;
    type Action = Action;
    type Error = Refused;

    fn handle(&mut self, now: Time, event: Event) -> Result<(), Refused> {
        match event {
            Event::Read { settled, open } => {
                let mut held = Held::default();
                // One that has voted before has restarted: what it may have promised is within its
                // flushed limit. One with a new disk knows no limit, and counts as added.
                let voted_before = self.held.is_none() && self.limit > Ttl::from_millis(0);
                // An added voter counts as restarted; one that only reads again is no added voter.
                held.view.voters = self
                    .held
                    .take()
                    .map(|held| held.view.voters)
                    .unwrap_or_default();
                for (id, fact) in &settled {
                    held.settled.learn(*id, fact);
                }
                if voted_before {
                    held.view.voters = held.settled.voters.clone();
                }
                held.open = open
                    .into_iter()
                    .map(|(id, fact)| (id.index, (id, fact)))
                    .collect();
                self.held = Some(held);
                self.on_facts_changed(now);
            }
            Event::Held(id, fact) => {
                self.held
                    .as_mut()
                    .ok_or(Refused::Mute)?
                    .open
                    .insert(id.index, (id, fact));
                self.on_facts_changed(now);
            }
            Event::Truncated(from) => {
                self.held
                    .as_mut()
                    .ok_or(Refused::Mute)?
                    .open
                    .split_off(&from);
                self.on_facts_changed(now);
            }
            Event::Voided(index) => {
                let held = self.held.as_mut().ok_or(Refused::Mute)?;
                held.open.remove(&index);
                self.on_facts_changed(now);
            }
            Event::Committed(upto) => {
                let held = self.held.as_mut().ok_or(Refused::Mute)?;
                let open = held.open.split_off(&upto.next());
                for (id, fact) in core::mem::replace(&mut held.open, open).into_values() {
                    held.settled.learn(id, &fact);
                }
            }
            Event::Asked(renewal) => self.on_asked(now, renewal)?,
            Event::LimitFlushed(ttl) => self.limit = self.limit.max(ttl),
            Event::LeaderSeen(node) => {
                if self.leader.replace(node) != Some(node) {
                    // A new leader has heard nothing.
                    self.speak_at = now;
                }
                self.leader_seen = now;
            }
            Event::Tick => self.on_tick(now),
        }
        Ok(())
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn next_deadline(&self) -> Option<Time> {
        let ends = self.ends.first().map(|(until, _)| *until);
        Some(ends.map_or(self.speak_at, |until| until.min(self.speak_at)))
    }
}

/// How often in one TTL everything is said again, since datagrams are lost: what ends is said at once.
const SPOKEN_PER_TTL: u32 = 4;

/// How often a voter that knows no TTL yet looks again.
const QUIET_PERIOD: Duration = Duration::from_millis(250);

/// An added voter knows nothing of the leases that began before it: it waits out the longest TTL that a
/// cluster uses, whatever the present one.
const LONGEST: Ttl = Ttl::WAN;

/// A voter that has seen no leader for this many TTL promises nothing (L9).
const NO_LEADER_TTL: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const STORE: StoreId = StoreId(1);
    const INC: IncarnationId = IncarnationId(70);

    fn at(millis: u64) -> Time {
        Time::from_millis(millis)
    }

    fn id(index: u64) -> LogId {
        LogId {
            term: crate::id::Term(1),
            index: LogIndex(index),
        }
    }

    fn live(incarnation: u64) -> Fact {
        let (node, incarnation) = (NodeId(7), IncarnationId(incarnation));
        Fact::Live {
            node,
            incarnation,
            death: DeathDigest::of(&[1; 32]),
        }
    }

    fn voter() -> LeaseVoter {
        let mut voter = LeaseVoter::new(Time::ZERO, STORE, Ttl::from_millis(1));
        let voters = Voters::first([STORE, StoreId(2), StoreId(3)]);
        let settled = [
            (id(1), Fact::Voters(voters)),
            (id(2), Fact::Ttl(Ttl::DEFAULT)),
            (id(3), live(70)),
        ];
        let read = Event::Read {
            settled: settled.to_vec(),
            open: Vec::new(),
        };
        voter.handle(Time::ZERO, read).expect("reads");
        voter
            .handle(Time::ZERO, Event::LimitFlushed(Ttl::DEFAULT))
            .expect("flushed");
        voter
            .handle(Time::ZERO, Event::LeaderSeen(NodeId(9)))
            .expect("seen");
        drain(&mut voter);
        voter
    }

    fn drain(voter: &mut LeaseVoter) -> Vec<Action> {
        core::iter::from_fn(|| voter.poll_action()).collect()
    }

    fn renewal(ttl: Ttl, version: u64) -> Renewal {
        Renewal {
            node: NodeId(7),
            incarnation: INC,
            round: 1,
            ttl,
            voters: VotersVersion(version),
            applied: LogIndex(3),
        }
    }

    fn check(voter: &mut LeaseVoter, now: Time, renewal: Renewal, expect: Verdict) {
        voter.handle(now, Event::Asked(renewal)).expect("reads");
        let answers = drain(voter);
        let Some(Action::Answer { promise, .. }) = answers.last() else {
            panic!("{answers:?}")
        };
        assert_eq!(promise.verdict, expect);
    }

    fn reports(voter: &mut LeaseVoter, now: Time) -> Vec<IncarnationId> {
        voter.handle(now, Event::Tick).expect("ticks");
        let said = drain(voter).into_iter();
        said.filter_map(|action| match action {
            Action::Report { report, .. } => Some(report.incarnation),
            _ => None,
        })
        .collect()
    }

    use crate::id::VotersVersion;

    #[test]
    fn a_voter_is_mute_until_it_has_read_its_log_and_snapshot() {
        let mut voter = LeaseVoter::new(Time::ZERO, STORE, Ttl::DEFAULT);
        assert_eq!(
            voter.handle(at(1), Event::Asked(renewal(Ttl::DEFAULT, 1))),
            Err(Refused::Mute)
        );
        assert_eq!(drain(&mut voter), []);
    }

    #[test]
    fn each_refusal_has_its_reason() {
        check(
            &mut voter(),
            at(1),
            renewal(Ttl::DEFAULT, 1),
            Verdict::Promised,
        );
        check(
            &mut voter(),
            at(1),
            renewal(Ttl::WAN, 1),
            Verdict::TtlAboveLimit,
        );
        check(
            &mut voter(),
            at(1),
            renewal(Ttl::DEFAULT, 0),
            Verdict::OldVoters,
        );
        check(
            &mut voter(),
            at(30_000),
            renewal(Ttl::DEFAULT, 1),
            Verdict::NoLeader,
        );
        let stranger = Renewal {
            incarnation: IncarnationId(99),
            ..renewal(Ttl::DEFAULT, 1)
        };
        check(&mut voter(), at(1), stranger, Verdict::NotLive);
        let mut expelled = voter();
        expelled
            .handle(at(1), Event::Held(id(4), Fact::Expelled(INC)))
            .expect("held");
        check(
            &mut expelled,
            at(2),
            renewal(Ttl::DEFAULT, 1),
            Verdict::Expelled,
        );
    }

    #[test]
    fn a_report_waits_until_the_promise_is_over() {
        let mut voter = voter();
        check(
            &mut voter,
            at(1_000),
            renewal(Ttl::DEFAULT, 1),
            Verdict::Promised,
        );
        voter
            .handle(at(1_100), Event::Held(id(4), Fact::Expelled(INC)))
            .expect("held");
        assert_eq!(reports(&mut voter, at(3_999)), []);
        assert_eq!(reports(&mut voter, at(4_749)), [INC]);
        assert_eq!(
            reports(&mut voter, at(5_499)),
            [INC],
            "repeated until it is over"
        );
        voter
            .handle(at(5_500), Event::Held(id(5), Fact::Over(INC)))
            .expect("held");
        assert_eq!(reports(&mut voter, at(6_300)), []);
    }

    /// When the voter next wants to be looked at, and what it says then.
    fn next_said(voter: &mut LeaseVoter) -> (Time, Vec<Action>) {
        let at = voter
            .next_deadline()
            .expect("it always waits for something");
        voter.handle(at, Event::Tick).expect("ticks");
        (at, drain(voter))
    }

    #[test]
    fn the_end_of_a_promise_is_said_at_that_instant() {
        let mut voter = voter();
        let asked = renewal(Ttl::LAN, 1);
        check(&mut voter, at(1_000), asked.clone(), Verdict::Promised);
        voter.handle(at(1_100), Event::Tick).expect("ticks");
        drain(&mut voter);
        let (when, said) = next_said(&mut voter);
        assert_eq!(when, at(1_500));
        let [Action::Sight { sighting, .. }] = &said[..] else {
            panic!("{said:?}")
        };
        let promised: Vec<bool> = sighting.sighted.iter().map(|seen| seen.promised).collect();
        assert_eq!(promised, [false]);
        // Once: then as often as everything is said.
        assert_eq!(voter.next_deadline(), Some(at(1_100 + 750)));
        // A renewal moves it.
        check(&mut voter, at(1_600), asked.clone(), Verdict::Promised);
        check(&mut voter, at(1_700), asked, Verdict::Promised);
        next_said(&mut voter);
        assert_eq!(next_said(&mut voter).0, at(2_200));
    }

    #[test]
    fn an_expelled_incarnations_end_is_reported_at_that_instant() {
        let mut voter = voter();
        let asked = renewal(Ttl::LAN, 1);
        check(&mut voter, at(1_000), asked, Verdict::Promised);
        let expel = Event::Held(id(4), Fact::Expelled(INC));
        voter.handle(at(1_100), expel).expect("held");
        assert_eq!(reports(&mut voter, at(1_100)), []);
        assert_eq!(voter.next_deadline(), Some(at(1_500)));
        assert_eq!(reports(&mut voter, at(1_499)), []);
        assert_eq!(reports(&mut voter, at(1_500)), [INC]);
    }

    #[test]
    fn an_expulsion_after_the_end_and_a_new_leader_are_spoken_to_at_once() {
        let mut voter = voter();
        assert_eq!(reports(&mut voter, at(1_000)), []);
        let expel = Event::Held(id(4), Fact::Expelled(INC));
        voter.handle(at(1_001), expel).expect("held");
        assert_eq!(reports(&mut voter, at(1_001)), [INC]);
        assert_eq!(reports(&mut voter, at(1_002)), []);
        for (node, said) in [(9, vec![]), (8, vec![INC])] {
            let seen = Event::LeaderSeen(NodeId(node));
            voter.handle(at(1_003), seen).expect("seen");
            assert_eq!(reports(&mut voter, at(1_003)), said);
        }
    }

    #[test]
    fn a_truncated_expulsion_is_forgotten_and_a_committed_one_is_not() {
        let mut voter = voter();
        voter
            .handle(at(1), Event::Held(id(4), Fact::Expelled(INC)))
            .expect("held");
        voter
            .handle(at(2), Event::Truncated(LogIndex(4)))
            .expect("truncated");
        check(
            &mut voter,
            at(3),
            renewal(Ttl::DEFAULT, 1),
            Verdict::Promised,
        );
        voter
            .handle(at(4), Event::Held(id(5), Fact::Expelled(INC)))
            .expect("held");
        voter
            .handle(at(5), Event::Committed(LogIndex(5)))
            .expect("committed");
        voter
            .handle(at(6), Event::Truncated(LogIndex(4)))
            .expect("truncated");
        check(
            &mut voter,
            at(7),
            renewal(Ttl::DEFAULT, 1),
            Verdict::Expelled,
        );
    }

    #[test]
    fn a_void_entry_is_forgotten_when_it_is_committed() {
        let mut voter = voter();
        for event in [
            Event::Held(id(4), live(71)),
            Event::Voided(LogIndex(4)),
            Event::Committed(LogIndex(4)),
        ] {
            voter.handle(at(1), event).expect("reads");
        }
        check(
            &mut voter,
            at(2),
            renewal(Ttl::DEFAULT, 1),
            Verdict::Promised,
        );
        let mut mute = LeaseVoter::new(Time::ZERO, STORE, Ttl::DEFAULT);
        assert_eq!(
            mute.handle(at(1), Event::Voided(LogIndex(4))),
            Err(Refused::Mute)
        );
    }

    #[test]
    fn a_second_formation_brings_no_old_voters_back() {
        let mut voter = voter();
        let newer = Voters::first([STORE, StoreId(2), StoreId(3)]).joint([STORE].into());
        let again = Fact::Formed {
            voters: Voters::first([STORE]),
            ttl: Ttl::DEFAULT,
        };
        for event in [
            Event::Held(id(4), Fact::Voters(newer)),
            Event::Held(id(5), again),
        ] {
            voter.handle(at(1), event).expect("reads");
        }
        check(
            &mut voter,
            at(2),
            renewal(Ttl::DEFAULT, 1),
            Verdict::OldVoters,
        );
    }

    #[test]
    fn promises_are_over_only_for_an_expelled_incarnation() {
        let mut voter = voter();
        voter
            .handle(at(1), Event::Held(id(4), Fact::Over(INC)))
            .expect("held");
        check(
            &mut voter,
            at(2),
            renewal(Ttl::DEFAULT, 1),
            Verdict::Promised,
        );
    }

    #[test]
    fn a_restarted_voter_waits_out_the_longest_limit_it_ever_flushed() {
        let mut voter = LeaseVoter::new(at(10_000), STORE, Ttl::WAN);
        let voters = Voters::first([STORE]);
        let settled = [
            (id(1), Fact::Voters(voters)),
            (id(3), live(70)),
            (id(4), Fact::Expelled(INC)),
        ];
        let read = Event::Read {
            settled: settled.to_vec(),
            open: Vec::new(),
        };
        voter.handle(at(10_000), read).expect("reads");
        voter
            .handle(at(10_000), Event::LeaderSeen(NodeId(9)))
            .expect("seen");
        assert_eq!(reports(&mut voter, at(14_999)), []);
        assert_eq!(reports(&mut voter, at(15_300)), [INC]);
    }

    #[test]
    fn an_added_voter_counts_as_restarted() {
        let mut voter = voter();
        let away = Voters {
            version: VotersVersion(2),
            ..Voters::first([StoreId(2)])
        };
        voter
            .handle(at(1), Event::Held(id(4), Fact::Voters(away.clone())))
            .expect("held");
        let back = away.joint([STORE, StoreId(2)].into_iter().collect());
        voter
            .handle(at(10_000), Event::Held(id(5), Fact::Voters(back)))
            .expect("held");
        assert!(voter.may_have_promised(at(14_999), INC));
        assert!(!voter.may_have_promised(at(15_000), INC));
    }

    #[test]
    fn a_voter_with_a_new_disk_waits_out_the_longest_ttl_though_it_knows_no_limit() {
        let mut voter = LeaseVoter::new(at(1_000), STORE, Ttl::from_millis(0));
        let voters = Fact::Voters(Voters::first([STORE, StoreId(2)]));
        let settled = vec![
            (id(1), voters),
            (id(2), Fact::Ttl(Ttl::LAN)),
            (id(3), live(70)),
        ];
        let read = Event::Read {
            settled,
            open: Vec::new(),
        };
        voter.handle(at(1_000), read).expect("reads");
        assert!(voter.may_have_promised(at(5_999), INC));
        assert!(!voter.may_have_promised(at(6_000), INC));
    }

    #[test]
    fn a_new_start_of_a_node_expels_the_one_before() {
        let mut voter = voter();
        voter
            .handle(at(1), Event::Held(id(4), live(71)))
            .expect("held");
        check(
            &mut voter,
            at(2),
            renewal(Ttl::DEFAULT, 1),
            Verdict::Expelled,
        );
        let new = Renewal {
            incarnation: IncarnationId(71),
            ..renewal(Ttl::DEFAULT, 1)
        };
        check(&mut voter, at(2), new, Verdict::Promised);
    }

    #[test]
    fn only_a_note_that_proves_itself_ends_a_life() {
        let mut voter = voter();
        let forged = Fact::Dead {
            incarnation: INC,
            secret: [2; 32],
        };
        voter
            .handle(at(1), Event::Held(id(4), forged))
            .expect("held");
        check(
            &mut voter,
            at(2),
            renewal(Ttl::DEFAULT, 1),
            Verdict::Promised,
        );
        let note = Fact::Dead {
            incarnation: INC,
            secret: [1; 32],
        };
        voter.handle(at(3), Event::Held(id(5), note)).expect("held");
        check(
            &mut voter,
            at(4),
            renewal(Ttl::DEFAULT, 1),
            Verdict::Expelled,
        );
    }

    #[test]
    fn a_start_that_is_over_is_told_to_end_and_made_live_by_nothing() {
        // By reports, by a death note, and as a snapshot has it.
        let node = NodeId(7);
        let secret = [1; 32];
        let incarnation = INC;
        let expelled = Fact::Expelled(INC);
        for facts in [
            vec![expelled, Fact::Over(INC)],
            vec![Fact::Dead {
                incarnation,
                secret,
            }],
            vec![
                Fact::Dead {
                    incarnation,
                    secret,
                },
                Fact::Ended { node, incarnation },
            ],
        ] {
            let mut voter = voter();
            for (fact, index) in facts.into_iter().chain([live(71), live(70)]).zip(4..) {
                voter
                    .handle(at(1), Event::Held(id(index), fact))
                    .expect("held");
            }
            let asked = renewal(Ttl::DEFAULT, 1);
            check(&mut voter, at(2), asked.clone(), Verdict::Expelled);
            let newer = Renewal {
                incarnation: IncarnationId(71),
                ..asked
            };
            check(&mut voter, at(2), newer, Verdict::Promised);
        }
    }

    #[test]
    fn a_longer_ttl_is_promised_only_after_its_limit_is_flushed() {
        let mut voter = voter();
        voter
            .handle(at(1), Event::Held(id(4), Fact::Ttl(Ttl::WAN)))
            .expect("held");
        assert_eq!(drain(&mut voter), [Action::FlushLimit(Ttl::WAN)]);
        check(
            &mut voter,
            at(2),
            renewal(Ttl::WAN, 1),
            Verdict::TtlAboveLimit,
        );
        voter
            .handle(at(3), Event::LimitFlushed(Ttl::WAN))
            .expect("flushed");
        check(&mut voter, at(4), renewal(Ttl::WAN, 1), Verdict::Promised);
    }
}
