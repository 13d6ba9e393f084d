//! The holder's side of a lease: renew, count, and stop in time.
//!
//! Owns: rules L1, L2 (the node's count), L6 and L9's canary. Never judges another node.

use alloc::collections::{BTreeMap, VecDeque};
use core::time::Duration;

use minicbor::{Decode, Encode};

use crate::cluster::voters::Voters;
use crate::id::{IncarnationId, LogIndex, NodeId, StoreId};
use crate::machine::Machine;
use crate::rules::{Rule, keeps};
use crate::time::Time;
use crate::wire::heart::{Promise, Renewal, Ttl, Verdict};

/// One incarnation's lease, as the incarnation itself counts it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeaseHolder {
    node: NodeId,
    incarnation: IncarnationId,
    /// How long it takes to kill every helper, taken off the lease's end (L2).
    kill_time: Duration,
    ttl: Ttl,
    voters: Voters,
    applied: LogIndex,
    standing: Standing,
    /// Until when each voter's promise counts, by this node's clock.
    promised: BTreeMap<StoreId, Time>,
    /// For which TTL each voter promised last: a majority's sets the pace of the renewals.
    promised_ttl: BTreeMap<StoreId, Ttl>,
    /// Rounds whose answers still count, oldest first; at most [`ROUNDS_MAX`].
    rounds: VecDeque<Round>,
    next_round: u64,
    renew_at: Time,
    canary_at: Time,
    leading_since: Option<Time>,
    may_lead: bool,
    actions: VecDeque<Action>,
}

/// How a lease stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Never held yet.
    Waiting,
    /// Held until the given instant, the time to kill helpers already taken off.
    Held {
        /// When everything must begin to die.
        until: Time,
    },
    /// Over for good: a lapsed lease is not revived (L6).
    Over,
}

/// What may happen to a lease's holder. Numbered for the event log: see [`crate::journal`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Event {
    /// The applied directory moved on.
    #[n(0)]
    Directory {
        /// The list of voters.
        #[n(0)]
        voters: Voters,
        /// The TTL in force.
        #[n(1)]
        ttl: Ttl,
        /// How far the node has applied it.
        #[n(2)]
        applied: LogIndex,
    },
    /// A voter answered.
    #[n(1)]
    Heard(#[n(0)] Promise),
    /// The main runtime answered the heart's canary.
    #[n(2)]
    CanaryAnswered,
    /// The node became Raft's leader, or ceased to be.
    #[n(3)]
    Leading(#[n(0)] bool),
    /// The deadline has come.
    #[n(4)]
    Tick,
}

/// What a lease's holder wants done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send the renewal to a voter's heart.
    Renew {
        /// The voter.
        to: StoreId,
        /// What to send.
        renewal: Renewal,
    },
    /// The lease is valid until then; feed it to the warden and to every gate for replies.
    Valid {
        /// By the node's own clock.
        until: Time,
    },
    /// The lease is over: kill every helper, then exit; come back as a new incarnation (L6).
    Lapsed,
    /// The main runtime has not answered for [`CANARY_PATIENCE`]: abort the process (L9).
    Abort,
    /// Whether the node may lead Raft: a leader that cannot get a lease stops its heartbeats, so
    /// that another is elected (L9).
    MayLead(bool),
}

/// Why an event was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The promise is to another incarnation. Nothing changed.
    #[error("the promise is to another incarnation")]
    NotMine,
    /// The promise answers a round that no longer counts, or never was. Nothing changed.
    #[error("the promise answers a round that no longer counts")]
    UnknownRound,
    /// The lease is over for good. Nothing changed.
    #[error("the lease is over")]
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Round {
    number: u64,
    sent: Time,
    ttl: Ttl,
}

impl LeaseHolder {
    /// The lease of a new incarnation. It renews once the directory names voters.
    pub fn new(
        now: Time,
        node: NodeId,
        incarnation: IncarnationId,
        kill_time: Duration,
    ) -> LeaseHolder {
        LeaseHolder {
            node,
            incarnation,
            kill_time,
            ttl: Ttl::DEFAULT,
            voters: Voters::default(),
            applied: LogIndex::ZERO,
            standing: Standing::Waiting,
            promised: BTreeMap::new(),
            promised_ttl: BTreeMap::new(),
            rounds: VecDeque::new(),
            next_round: 1,
            renew_at: now,
            canary_at: now,
            leading_since: None,
            may_lead: true,
            actions: VecDeque::new(),
        }
    }

    /// How the lease stands, as of the last event.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// Whether the lease is valid at `now`: what every reply asks at the moment it leaves (E1).
    pub fn is_valid(&self, now: Time) -> bool {
        matches!(self.standing, Standing::Held { until } if now < until)
    }

    fn on_directory(&mut self, now: Time, voters: Voters, ttl: Ttl, applied: LogIndex) {
        if voters != self.voters {
            self.promised.retain(|store, _| voters.contains(*store));
            self.promised_ttl.retain(|store, _| voters.contains(*store));
            self.voters = voters;
            self.renew_at = now;
        }
        if ttl != self.ttl {
            self.ttl = ttl;
            self.renew_at = now;
        }
        self.applied = applied;
    }

    fn on_promise(&mut self, now: Time, promise: Promise) -> Result<(), Refused> {
        if promise.incarnation != self.incarnation {
            return Err(Refused::NotMine);
        }
        if promise.verdict == Verdict::Expelled {
            self.end();
            return Ok(());
        }
        if promise.verdict == Verdict::TtlAboveLimit {
            self.ask_again_soon();
        }
        if promise.verdict != Verdict::Promised {
            return Ok(());
        }
        let round = self
            .rounds
            .iter()
            .find(|round| round.number == promise.round)
            .copied()
            .ok_or(Refused::UnknownRound)?;
        // L2: from the sending, less two clocks' drift and the time to kill helpers.
        let until = if keeps(Rule::L2) {
            round.sent + round.ttl.duration() * (100 - DRIFT_PERCENT) / 100 - self.kill_time
        } else {
            now + round.ttl.duration()
        };
        let counted = self.promised.entry(promise.voter).or_insert(until);
        *counted = (*counted).max(until);
        self.promised_ttl.insert(promise.voter, round.ttl);
        self.count(now);
        Ok(())
    }

    /// Recounts the lease's end from the promises (L1).
    fn count(&mut self, now: Time) {
        let Some(until) = self
            .voters
            .majority_value(|store| self.promised.get(&store).copied())
        else {
            return;
        };
        let advances = match self.standing {
            Standing::Waiting => until > now,
            Standing::Held { until: old } => until > old,
            Standing::Over => false,
        };
        if advances {
            self.standing = Standing::Held { until };
            self.actions.push_back(Action::Valid { until });
            self.allow_leading(true);
        }
    }

    fn end(&mut self) {
        if self.standing != Standing::Over {
            self.standing = Standing::Over;
            self.actions.push_back(Action::Lapsed);
        }
    }

    fn on_tick(&mut self, now: Time) {
        if now.since(self.canary_at) >= CANARY_PATIENCE {
            self.standing = Standing::Over;
            self.actions.push_back(Action::Abort);
            return;
        }
        if matches!(self.standing, Standing::Held { until } if now >= until) {
            // L6: a lapsed lease is not revived.
            if keeps(Rule::L6) {
                self.end();
                return;
            }
            self.standing = Standing::Waiting;
        }
        if now >= self.renew_at {
            self.renew(now);
        }
        if self.lead_verdict_at().is_some_and(|at| now >= at) {
            self.allow_leading(!self.may_lead);
            self.leading_since = self.leading_since.map(|_| now);
        }
    }

    /// The TTL that the lease in hand was promised for, where that is shorter than the one in force:
    /// until a majority has promised the longer one, the old lease ends at its own pace, and a round
    /// that asks too rarely comes too late for it.
    fn pace(&self) -> Ttl {
        let promised = self
            .voters
            .majority_value(|store| self.promised_ttl.get(&store).copied());
        promised.map_or(self.ttl, |promised| promised.min(self.ttl))
    }

    /// A voter has not flushed the new limit yet (L3): a matter of milliseconds, and nothing to wait a
    /// whole round for. One that stays behind a majority is asked at the common pace.
    fn ask_again_soon(&mut self) {
        let pace = self.pace();
        let is_settled = pace == self.ttl && self.standing != Standing::Waiting;
        if let Some(last) = self.rounds.back().filter(|_| !is_settled) {
            let soon = last.sent + pace.duration() / (ROUNDS_PER_TTL * ASKED_AGAIN_PER_ROUND);
            self.renew_at = self.renew_at.min(soon);
        }
    }

    fn renew(&mut self, now: Time) {
        self.renew_at = now + self.pace().duration() / ROUNDS_PER_TTL;
        let round = Round {
            number: self.next_round,
            sent: now,
            ttl: self.ttl,
        };
        self.next_round += 1;
        if self.rounds.len() == ROUNDS_MAX {
            self.rounds.pop_front();
        }
        self.rounds.push_back(round);
        for to in self.voters.iter() {
            let renewal = Renewal {
                node: self.node,
                incarnation: self.incarnation,
                round: round.number,
                ttl: self.ttl,
                voters: self.voters.version,
                applied: self.applied,
            };
            self.actions.push_back(Action::Renew { to, renewal });
        }
    }

    fn allow_leading(&mut self, may_lead: bool) {
        if self.may_lead != may_lead {
            self.may_lead = may_lead;
            self.actions.push_back(Action::MayLead(may_lead));
        }
    }

    /// When the right to lead changes hands: a leader waits [`LEAD_GRACE_TTL`] for its lease, then
    /// lets others try for as long. Only a lease that was never held can be waited for: one that
    /// lapsed ends the process.
    fn lead_verdict_at(&self) -> Option<Time> {
        let since = self
            .leading_since
            .filter(|_| self.standing == Standing::Waiting)?;
        Some(since + self.ttl.duration() * LEAD_GRACE_TTL)
    }
}

impl Machine for LeaseHolder {
    type Event = Event;
    type Action = Action;
    type Error = Refused;

    fn handle(&mut self, now: Time, event: Event) -> Result<(), Refused> {
        if self.standing == Standing::Over {
            return Err(Refused::Over);
        }
        match event {
            Event::Directory {
                voters,
                ttl,
                applied,
            } => self.on_directory(now, voters, ttl, applied),
            Event::Heard(promise) => self.on_promise(now, promise)?,
            Event::CanaryAnswered => self.canary_at = now,
            Event::Leading(true) => self.leading_since = self.leading_since.or(Some(now)),
            // While the right to lead is withheld, the clock that gives it back goes on.
            Event::Leading(false) if self.may_lead => self.leading_since = None,
            Event::Leading(false) => {}
            Event::Tick => self.on_tick(now),
        }
        Ok(())
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn next_deadline(&self) -> Option<Time> {
        let ends = match self.standing {
            Standing::Over => return None,
            Standing::Held { until } => until,
            Standing::Waiting => Time::MAX,
        };
        let lead = self.lead_verdict_at().unwrap_or(Time::MAX);
        Some(
            self.renew_at
                .min(ends)
                .min(self.canary_at + CANARY_PATIENCE)
                .min(lead),
        )
    }
}

/// Two clocks, each within 1 % (L2).
const DRIFT_PERCENT: u32 = 2;

/// Renewals in one TTL. Five may be lost in a row before the sixth comes too late.
const ROUNDS_PER_TTL: u32 = 6;

/// How often a round is repeated early while voters have yet to flush a longer TTL: with the shortest
/// preset after 20 ms, which is some flushes, and [`ROUNDS_MAX`] of them still cover a round trip of a
/// third of the TTL.
const ASKED_AGAIN_PER_ROUND: u32 = 4;

/// Answers count for this many rounds: later ones would add less than nothing to the lease.
const ROUNDS_MAX: usize = 8;

/// How long the main runtime may leave the heart's canary unanswered (L9): far beyond a slow poll,
/// well within what a caller waits.
pub const CANARY_PATIENCE: Duration = Duration::from_secs(3);

/// For how many TTL a leader may lead before it first holds a lease: long enough for its own
/// registration to be committed and renewed in a cluster that starts from cold.
const LEAD_GRACE_TTL: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    const KILL: Duration = Duration::from_millis(100);

    fn holder() -> LeaseHolder {
        let mut holder = LeaseHolder::new(Time::ZERO, NodeId(1), IncarnationId(7), KILL);
        let voters = Voters::first([StoreId(1), StoreId(2), StoreId(3)]);
        let directory = Event::Directory {
            voters,
            ttl: Ttl::DEFAULT,
            applied: LogIndex(4),
        };
        holder.handle(Time::ZERO, directory).expect("accepted");
        holder
    }

    fn drain(holder: &mut LeaseHolder) -> Vec<Action> {
        core::iter::from_fn(|| holder.poll_action()).collect()
    }

    fn promise(voter: u64, round: u64) -> Event {
        let (voter, incarnation) = (StoreId(voter), IncarnationId(7));
        Event::Heard(Promise {
            voter,
            incarnation,
            round,
            verdict: Verdict::Promised,
        })
    }

    fn at(millis: u64) -> Time {
        Time::from_millis(millis)
    }

    #[test]
    fn the_lease_counts_from_the_sending_less_drift_and_the_time_to_kill() {
        let mut holder = holder();
        holder.handle(at(10), Event::Tick).expect("ticks");
        assert_eq!(drain(&mut holder).len(), 3);
        holder.handle(at(400), promise(1, 1)).expect("counted");
        assert_eq!(holder.standing(), Standing::Waiting);
        holder.handle(at(450), promise(3, 1)).expect("counted");
        let until = at(10 + 2_940 - 100);
        assert_eq!(drain(&mut holder), [Action::Valid { until }]);
        assert!(holder.is_valid(until - Duration::from_nanos(1)));
        assert!(!holder.is_valid(until));
    }

    #[test]
    fn a_lapsed_lease_is_never_revived() {
        let mut holder = holder();
        holder.handle(at(0), Event::Tick).expect("ticks");
        for voter in [1, 2] {
            holder.handle(at(1), promise(voter, 1)).expect("counted");
        }
        holder
            .handle(at(2_000), Event::CanaryAnswered)
            .expect("answered");
        drain(&mut holder);
        holder.handle(at(2_840), Event::Tick).expect("ticks");
        assert_eq!(drain(&mut holder), [Action::Lapsed]);
        assert_eq!(holder.handle(at(2_841), promise(3, 1)), Err(Refused::Over));
        assert_eq!(holder.next_deadline(), None);
    }

    #[test]
    fn an_answer_to_an_unknown_round_or_another_incarnation_counts_for_nothing() {
        let mut holder = holder();
        holder.handle(at(0), Event::Tick).expect("ticks");
        assert_eq!(
            holder.handle(at(1), promise(1, 9)),
            Err(Refused::UnknownRound)
        );
        let other = Promise {
            voter: StoreId(1),
            incarnation: IncarnationId(8),
            round: 1,
            verdict: Verdict::Promised,
        };
        assert_eq!(
            holder.handle(at(1), Event::Heard(other)),
            Err(Refused::NotMine)
        );
    }

    #[test]
    fn one_voter_that_holds_the_expulsion_ends_the_lease() {
        let mut holder = holder();
        holder.handle(at(0), Event::Tick).expect("ticks");
        drain(&mut holder);
        let expelled = Promise {
            voter: StoreId(2),
            incarnation: IncarnationId(7),
            round: 1,
            verdict: Verdict::Expelled,
        };
        holder
            .handle(at(5), Event::Heard(expelled))
            .expect("counted");
        assert_eq!(drain(&mut holder), [Action::Lapsed]);
    }

    /// Plays rounds every 10 ms: voters answer 5 ms later, and refuse a TTL above the limit until they
    /// have flushed it at `flushed`. Returns when the lease is over, or `until`.
    fn play(holder: &mut LeaseHolder, from: u64, until: u64, flushed: u64) -> u64 {
        for millis in (from..until).step_by(5) {
            let _ = holder.handle(at(millis), Event::CanaryAnswered);
            if holder.next_deadline().is_some_and(|due| due <= at(millis)) {
                let _ = holder.handle(at(millis), Event::Tick);
            }
            for action in drain(holder) {
                match action {
                    Action::Lapsed => return millis,
                    Action::Renew { to, renewal } => {
                        let is_above = renewal.ttl > Ttl::LAN && millis + 5 < flushed;
                        let verdict = if is_above {
                            Verdict::TtlAboveLimit
                        } else {
                            Verdict::Promised
                        };
                        let answer = Promise {
                            voter: to,
                            incarnation: renewal.incarnation,
                            round: renewal.round,
                            verdict,
                        };
                        let _ = holder.handle(at(millis + 5), Event::Heard(answer));
                    }
                    _ => {}
                }
            }
        }
        until
    }

    fn set_ttl(holder: &mut LeaseHolder, millis: u64, ttl: Ttl) {
        let directory = Event::Directory {
            voters: Voters::first([StoreId(1), StoreId(2), StoreId(3)]),
            ttl,
            applied: LogIndex(5),
        };
        holder.handle(at(millis), directory).expect("accepted");
    }

    #[test]
    fn a_longer_ttl_is_asked_for_at_the_old_pace_until_a_majority_has_promised_it() {
        for flushed in [1_000, 1_010, 1_100, 1_200, 1_300] {
            let mut holder = holder();
            set_ttl(&mut holder, 0, Ttl::LAN);
            assert_eq!(play(&mut holder, 0, 1_000, u64::MAX), 1_000);
            set_ttl(&mut holder, 1_000, Ttl::DEFAULT);
            let ended = play(&mut holder, 1_000, 10_000, flushed);
            assert_eq!(ended, 10_000, "flushed at {flushed}");
        }
    }

    #[test]
    fn a_settled_ttl_is_asked_for_at_its_own_pace() {
        let mut holder = holder();
        set_ttl(&mut holder, 0, Ttl::LAN);
        play(&mut holder, 0, 1_000, u64::MAX);
        set_ttl(&mut holder, 1_000, Ttl::DEFAULT);
        play(&mut holder, 1_000, 3_000, 1_020);
        let first = holder.next_round;
        play(&mut holder, 3_000, 6_000, 0);
        assert_eq!(holder.next_round - first, u64::from(ROUNDS_PER_TTL));
        // One voter whose disk is stuck makes nobody ask more often.
        let stuck = Promise {
            voter: StoreId(3),
            incarnation: IncarnationId(7),
            round: holder.next_round - 1,
            verdict: Verdict::TtlAboveLimit,
        };
        let due = holder.next_deadline();
        holder
            .handle(at(6_000), Event::Heard(stuck))
            .expect("heard");
        assert_eq!(holder.next_deadline(), due);
    }

    #[test]
    fn a_silent_main_runtime_aborts_the_process() {
        let mut holder = holder();
        holder.handle(at(3_000), Event::Tick).expect("ticks");
        assert_eq!(drain(&mut holder), [Action::Abort]);
    }

    #[test]
    fn a_leader_without_a_lease_lets_others_lead_for_a_while() {
        let mut holder = holder();
        holder.handle(at(0), Event::Leading(true)).expect("heard");
        let mut said = Vec::new();
        for millis in (0..30_000).step_by(100) {
            holder
                .handle(at(millis), Event::CanaryAnswered)
                .expect("answered");
            holder.handle(at(millis), Event::Tick).expect("ticks");
            for action in drain(&mut holder) {
                if let Action::MayLead(may) = action {
                    said.push((millis, may));
                    holder
                        .handle(at(millis), Event::Leading(may))
                        .expect("heard");
                }
            }
        }
        assert_eq!(said, [(12_000, false), (24_000, true)]);
    }

    #[test]
    fn a_new_list_of_voters_must_give_its_own_majority() {
        let mut holder = holder();
        holder.handle(at(0), Event::Tick).expect("ticks");
        for voter in [1, 2] {
            holder.handle(at(1), promise(voter, 1)).expect("counted");
        }
        let old = Voters::first([StoreId(1), StoreId(2), StoreId(3)]);
        let voters = old.joint([3, 4, 5].map(StoreId).into_iter().collect());
        let directory = Event::Directory {
            voters,
            ttl: Ttl::DEFAULT,
            applied: LogIndex(5),
        };
        holder.handle(at(100), directory).expect("accepted");
        holder.handle(at(100), Event::Tick).expect("ticks");
        drain(&mut holder);
        for voter in [1, 2, 3] {
            holder.handle(at(110), promise(voter, 2)).expect("counted");
        }
        assert_eq!(drain(&mut holder), [], "the new list's majority is missing");
        holder.handle(at(120), promise(4, 2)).expect("counted");
        assert_eq!(
            drain(&mut holder),
            [Action::Valid {
                until: at(100 + 2_940 - 100)
            }]
        );
    }
}
