//! Leases, every interleaving of them within bounds.
//!
//! Owns: one incarnation's real [`LeaseHolder`], the real [`LeaseVoter`]s of three nodes and the real
//! [`Controller`] of a leader that expels the incarnation at any time for no reason; the datagrams
//! between them; and the one thing that must be true: when the directory says that the incarnation's
//! promises are over, its lease is not valid by its own clock, then and ever after.
//!
//! Time goes on in steps of a third of a TTL, each node's clock at its own rate within 1 % (L2). Steps
//! are coarse, but they end where leases do: three of them are a TTL, and only the drift decides
//! whose comes first. Nobody has to act in a step: a node may be stopped for as long as it likes.
//!
//! Within a step the nodes act in turn: whoever expels, the holder's sending, each voter, the leader's
//! hearing, the holder's hearing. No chain of causes goes the other way round (voters do not speak to
//! each other, and nothing follows from hearing a promise but what the holder believes), so every
//! order of one instant's doings is equal to one of these.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use stateright::{Model, Property};
use understudy_protocol::cluster::controller::{self, Controller};
use understudy_protocol::cluster::directory::{Command, Directory, Entry, Formation, Registration};
use understudy_protocol::cluster::lease::holder::{self, LeaseHolder};
use understudy_protocol::cluster::lease::voter::{self, Fact, LeaseVoter};
use understudy_protocol::id::{IncarnationId, LogId, LogIndex, NodeId, StoreId, Term};
use understudy_protocol::machine::Machine;
#[cfg(feature = "sabotage")]
use understudy_protocol::rules::Rule;
use understudy_protocol::time::{ClusterTime, Time};
use understudy_protocol::wire::heart::{DeathDigest, Promise, Renewal, Report, Ttl, Verdict};

#[cfg(not(feature = "sabotage"))]
use crate::Search;
use crate::see;
use crate::shared::Shared;

/// How much may happen. Everything within is tried.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    /// Thirds of a TTL.
    pub(crate) steps: u16,
    /// In how many of them the holder may renew.
    pub(crate) rounds: u8,
    pub(crate) voters: u64,
    /// Rates of the clocks in thousandths: the holder's, then every voter's.
    pub(crate) rates: (u64, u64),
    /// Voters that may be killed and started again.
    pub(crate) restarts: u8,
    /// Datagrams that may arrive twice.
    pub(crate) duplicates: u8,
    /// The TTL is raised at some time (L3).
    pub(crate) longer_ttl: bool,
}

impl Bounds {
    /// Two voters, the holder's clock as slow and theirs as fast as may be, one renewal.
    const PLAIN: Bounds = Bounds {
        steps: 4,
        rounds: 1,
        voters: 2,
        rates: SKEWED,
        restarts: 0,
        duplicates: 0,
        longer_ttl: false,
    };
}

/// What L2 still allows: 1 % each, apart.
const SKEWED: (u64, u64) = (990, 1_010);

/// Worlds that are explored to their end within seconds.
#[cfg(not(feature = "sabotage"))]
pub(crate) fn small() -> Vec<(Search, Bounds)> {
    vec![
        (Search::All, Bounds::PLAIN),
        (
            Search::All,
            Bounds {
                voters: 1,
                restarts: 1,
                ..Bounds::PLAIN
            },
        ),
        (
            Search::All,
            Bounds {
                voters: 1,
                longer_ttl: true,
                ..Bounds::PLAIN
            },
        ),
    ]
}

/// Minutes.
#[cfg(not(feature = "sabotage"))]
pub(crate) fn large() -> Vec<(Search, Bounds)> {
    vec![
        (
            Search::All,
            Bounds {
                rounds: 2,
                ..Bounds::PLAIN
            },
        ),
        (
            Search::All,
            Bounds {
                restarts: 1,
                ..Bounds::PLAIN
            },
        ),
        // Too large for an end: as deep as some millions of steps go.
        (
            SOME_MILLIONS,
            Bounds {
                steps: 6,
                rounds: 2,
                restarts: 2,
                duplicates: 1,
                longer_ttl: true,
                ..Bounds::PLAIN
            },
        ),
        (
            SOME_MILLIONS,
            Bounds {
                voters: 3,
                restarts: 2,
                ..Bounds::PLAIN
            },
        ),
        // The other way round: the holder's clock is fast.
        (
            SOME_MILLIONS,
            Bounds {
                voters: 3,
                rates: (1_010, 990),
                ..Bounds::PLAIN
            },
        ),
    ]
}

#[cfg(not(feature = "sabotage"))]
const SOME_MILLIONS: Search = Search::Nearest(5_000_000);

/// The smallest worlds in which each rule is needed.
#[cfg(feature = "sabotage")]
pub(crate) fn needing() -> Vec<(Rule, Bounds)> {
    let raised = Bounds {
        voters: 1,
        longer_ttl: true,
        ..Bounds::PLAIN
    };
    vec![
        (Rule::L2, Bounds::PLAIN),
        (Rule::L3, raised),
        (Rule::L4, Bounds::PLAIN),
        (Rule::L5, Bounds::PLAIN),
    ]
}

#[derive(Clone, Debug)]
pub(crate) struct Lease {
    bounds: Bounds,
    seen: Arc<Seen>,
}

#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) held: AtomicBool,
    pub(crate) renewed_after_expulsion: AtomicBool,
    pub(crate) refused: AtomicBool,
    pub(crate) over_while_held_at_expulsion: AtomicBool,
    pub(crate) reported_after_restart: AtomicBool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    step: u16,
    turn: Turn,
    holder: Shared<Holder>,
    voters: Vec<Shared<Voter>>,
    leader: Shared<Controller>,
    log: Shared<Vec<(LogId, Entry)>>,
    wire: BTreeSet<Shared<Message>>,
    /// The lease was valid when the incarnation was expelled.
    held_at_expulsion: bool,
    /// Whose reports the leader has.
    reported: BTreeSet<StoreId>,
    restarts: u8,
    duplicates: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Turn {
    Operator,
    HolderSends,
    Voter(StoreId),
    LeaderHears,
    HolderHears,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Holder {
    machine: LeaseHolder,
    applied: usize,
    rounds: u8,
    /// It has renewed in this step.
    renewed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Voter {
    machine: LeaseVoter,
    /// How much of the log it holds.
    held: usize,
    read: bool,
    restarted: bool,
    flushed: Ttl,
    to_flush: Option<Ttl>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Message {
    Renewal(StoreId, Renewal),
    Promise(Promise),
    Report(Report),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The next one's turn; after the last one's a third of a TTL goes by.
    Next,
    Deliver(Shared<Message>),
    DeliverAndKeep(Shared<Message>),
    Renew,
    Apply,
    Speak(StoreId),
    Hold(StoreId),
    FlushLimit(StoreId),
    Crash(StoreId),
    ReadLog(StoreId),
    Expel,
    RaiseTtl,
}

impl Lease {
    pub(crate) fn within(bounds: Bounds, seen: Arc<Seen>) -> Lease {
        Lease { bounds, seen }
    }

    fn holders_clock(&self, state: &State) -> Time {
        Time::from_millis(u64::from(state.step) * self.bounds.rates.0)
    }

    fn voters_clock(&self, state: &State) -> Time {
        Time::from_millis(u64::from(state.step) * self.bounds.rates.1)
    }

    fn stores(&self) -> impl Iterator<Item = StoreId> + use<> {
        (1..=self.bounds.voters).map(StoreId)
    }

    fn first_state(&self) -> State {
        let mut log = Vec::new();
        let form = Formation {
            voters: self.stores().collect(),
            ttl: TTL,
            replicas: 3,
            min_copies: 2,
            shards: 1,
            set: self.stores().collect(),
        };
        let live = Registration {
            node: NODE,
            incarnation: INCARNATION,
            store: StoreId(1),
            death: DeathDigest([0; 32]),
            votes: true,
            works: true,
            labels: BTreeMap::new(),
            capacity: BTreeMap::new(),
            name: String::new(),
            address: String::new(),
        };
        for (command, index) in [Command::Form(form), Command::Register(live)]
            .into_iter()
            .zip(1..)
        {
            let id = LogId {
                term: Term(1),
                index: LogIndex(index),
            };
            let entry = Entry {
                at: ClusterTime::ZERO,
                random: 0,
                command,
            };
            log.push((id, entry));
        }
        let mut leader = Controller::new(Time::ZERO, Directory::default(), 0);
        for (id, entry) in &log {
            leader
                .handle(Time::ZERO, controller::Event::Apply(*id, entry.clone()))
                .expect("in order");
        }
        leader
            .handle(Time::ZERO, controller::Event::Leading(true))
            .expect("it leads");
        while leader.poll_action().is_some() {}
        let voter = |id: StoreId| {
            let mut voter = Voter {
                // It has voted before: one with a new disk would wait out the longest TTL (L8).
                machine: LeaseVoter::new(Time::ZERO, id, Ttl::from_millis(1)),
                held: log.len(),
                read: false,
                restarted: false,
                flushed: Ttl::from_millis(0),
                to_flush: None,
            };
            voter.read(Time::ZERO, &log);
            voter.flush_limit(Time::ZERO);
            Shared::new(voter)
        };
        let mut holder = Holder {
            machine: LeaseHolder::new(Time::ZERO, NODE, INCARNATION, Duration::ZERO),
            applied: log.len(),
            rounds: 0,
            renewed: false,
        };
        holder.learn(Time::ZERO, leader.directory(), TTL);
        State {
            step: 0,
            turn: Turn::Operator,
            holder: Shared::new(holder),
            voters: self.stores().map(voter).collect(),
            leader: Shared::new(leader),
            log: Shared::new(log),
            wire: BTreeSet::new(),
            held_at_expulsion: false,
            reported: BTreeSet::new(),
            restarts: 0,
            duplicates: 0,
        }
    }

    fn deliver(&self, state: &mut State, message: &Message) {
        match message {
            Message::Renewal(to, renewal) => {
                let nth = to.0 as usize - 1;
                let now = self.voters_clock(state);
                let answers = state.voters[nth].change(|voter| {
                    // Mute until it has read: as good as lost.
                    let _ = voter
                        .machine
                        .handle(now, voter::Event::Asked(renewal.clone()));
                    voter.drain()
                });
                for answer in &answers {
                    let Message::Promise(promise) = answer else {
                        continue;
                    };
                    match promise.verdict {
                        Verdict::Expelled => see(&self.seen.refused),
                        Verdict::Promised if state.is_expelled() => {
                            see(&self.seen.renewed_after_expulsion);
                        }
                        _ => {}
                    }
                }
                state.wire.extend(answers.into_iter().map(Shared::new));
            }
            Message::Promise(promise) => {
                let now = self.holders_clock(state);
                state.holder.change(|holder| {
                    let _ = holder
                        .machine
                        .handle(now, holder::Event::Heard(promise.clone()));
                    holder.drain();
                });
                if state.holder.machine.is_valid(now) {
                    see(&self.seen.held);
                }
            }
            Message::Report(report) => {
                if state.voters[report.voter.0 as usize - 1].restarted {
                    see(&self.seen.reported_after_restart);
                }
                state.reported.insert(report.voter);
                self.lead(state, controller::Event::Reported(report.clone()));
            }
        }
    }

    /// The leader takes an event in; what it says of the incarnation is committed at once. Its clock
    /// stands still, so it does nothing for reasons of its own.
    fn lead(&self, state: &mut State, event: controller::Event) {
        let mut log = state.log.to_vec();
        state.leader.change(|leader| {
            let handle = |leader: &mut Controller, event| {
                leader.handle(Time::ZERO, event).expect("it leads");
                std::iter::from_fn(|| leader.poll_action()).collect::<Vec<_>>()
            };
            let mut actions = handle(leader, event);
            while !actions.is_empty() {
                for action in std::mem::take(&mut actions) {
                    let controller::Action::Propose(entry) = action else {
                        continue;
                    };
                    if !matches!(
                        entry.command,
                        Command::Expel { .. } | Command::PromisesOver { .. } | Command::SetTtl(_)
                    ) {
                        continue;
                    }
                    let id = LogId {
                        term: Term(1),
                        index: leader.directory().applied().index.next(),
                    };
                    log.push((id, entry.clone()));
                    actions.extend(handle(leader, controller::Event::Apply(id, entry)));
                }
            }
        });
        state.log = Shared::new(log);
        if state.is_over() && state.held_at_expulsion {
            see(&self.seen.over_while_held_at_expulsion);
        }
    }

    fn voter_steps(&self, state: &State, id: StoreId, steps: &mut Vec<Step>) {
        let voter = &state.voters[id.0 as usize - 1];
        if voter.read {
            // Saying it again changes nothing.
            if !state.has_report_of(id) {
                steps.push(Step::Speak(id));
            }
            if voter.held < state.log.len() {
                steps.push(Step::Hold(id));
            }
            if voter.to_flush.is_some() {
                steps.push(Step::FlushLimit(id));
            }
        } else {
            steps.push(Step::ReadLog(id));
        }
        if state.restarts < self.bounds.restarts {
            steps.push(Step::Crash(id));
        }
    }

    fn voter(&self, state: &mut State, id: StoreId, act: impl FnOnce(&mut Voter, Time)) {
        let nth = id.0 as usize - 1;
        let now = self.voters_clock(state);
        let said = state.voters[nth].change(|voter| {
            act(voter, now);
            voter.drain()
        });
        state.wire.extend(said.into_iter().map(Shared::new));
    }
}

impl Model for Lease {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![self.first_state()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.turn != Turn::HolderHears || state.step < self.bounds.steps {
            steps.push(Step::Next);
        }
        for message in state
            .wire
            .iter()
            .filter(|message| message.at() == state.turn)
        {
            steps.push(Step::Deliver(message.clone()));
            if state.duplicates < self.bounds.duplicates {
                steps.push(Step::DeliverAndKeep(message.clone()));
            }
        }
        // After that nobody but the holder matters.
        if state.is_over() {
            return;
        }
        match state.turn {
            Turn::Operator => {
                if !state.is_expelled() {
                    steps.push(Step::Expel);
                }
                if self.bounds.longer_ttl && state.leader.directory().ttl() == TTL {
                    steps.push(Step::RaiseTtl);
                }
            }
            Turn::HolderSends => {
                let holder = &state.holder;
                let goes_on = holder.machine.next_deadline().is_some();
                if goes_on && !holder.renewed && holder.rounds < self.bounds.rounds {
                    steps.push(Step::Renew);
                }
                if goes_on && holder.applied < state.log.len() && self.bounds.longer_ttl {
                    steps.push(Step::Apply);
                }
            }
            Turn::Voter(id) => self.voter_steps(state, id, steps),
            Turn::LeaderHears | Turn::HolderHears => {}
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match step {
            Step::Next => {
                state.turn = state.turn.next(self.bounds.voters);
                if state.turn == Turn::Operator {
                    state.step += 1;
                    state.holder.change(|holder| holder.renewed = false);
                }
            }
            Step::Deliver(message) => {
                state.wire.remove(&message);
                self.deliver(&mut state, &message);
            }
            Step::DeliverAndKeep(message) => {
                state.duplicates += 1;
                self.deliver(&mut state, &message);
            }
            Step::Renew => {
                let now = self.holders_clock(&state);
                let asked = state.holder.change(|holder| holder.renew(now));
                state.wire.extend(asked.into_iter().map(Shared::new));
            }
            Step::Apply => {
                let now = self.holders_clock(&state);
                let (log, leader) = (state.log.clone(), state.leader.clone());
                state.holder.change(|holder| {
                    holder.applied += 1;
                    let mut ttls =
                        log[..holder.applied].iter().filter_map(|(_, entry)| {
                            match &entry.command {
                                Command::SetTtl(ttl) => Some(*ttl),
                                _ => None,
                            }
                        });
                    holder.learn(now, leader.directory(), ttls.next_back().unwrap_or(TTL));
                });
            }
            Step::Speak(id) => {
                let wire = state.wire.len();
                self.voter(&mut state, id, |voter, now| {
                    voter
                        .machine
                        .handle(now, voter::Event::Tick)
                        .expect("it has read");
                });
                // Having looked in vain is forgotten, or it would tell states apart for nothing.
                if state.wire.len() == wire {
                    return None;
                }
            }
            Step::Hold(id) => {
                let log = state.log.clone();
                self.voter(&mut state, id, |voter, now| voter.hold(now, &log));
            }
            Step::FlushLimit(id) => self.voter(&mut state, id, Voter::flush_limit),
            Step::Crash(id) => {
                state.restarts += 1;
                self.voter(&mut state, id, |voter, now| {
                    voter.machine = LeaseVoter::new(now, id, voter.flushed);
                    (voter.read, voter.restarted, voter.to_flush) = (false, true, None);
                });
            }
            Step::ReadLog(id) => {
                let log = state.log.clone();
                self.voter(&mut state, id, |voter, now| voter.read(now, &log));
            }
            Step::Expel => {
                state.held_at_expulsion = state.holder.machine.is_valid(self.holders_clock(&state));
                let incarnation = INCARNATION;
                let expel = Command::Expel { incarnation };
                self.lead(&mut state, controller::Event::Forwarded(expel));
            }
            Step::RaiseTtl => {
                let raise = Command::SetTtl(Ttl::WAN);
                self.lead(&mut state, controller::Event::Forwarded(raise));
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Lease>> {
        vec![Property::always(
            NOT_VALID_WHEN_OVER,
            |lease: &Lease, state: &State| {
                !state.is_over() || !state.holder.machine.is_valid(lease.holders_clock(state))
            },
        )]
    }
}

/// What every takeover's replies rest on (L1-L5, E1).
const NOT_VALID_WHEN_OVER: &str =
    "an incarnation whose promises are over has no valid lease by its own clock";

impl State {
    fn is_expelled(&self) -> bool {
        !self.leader.directory().is_live(INCARNATION)
    }

    fn has_report_of(&self, voter: StoreId) -> bool {
        let by = |message: &Shared<Message>| matches!(&**message, Message::Report(report) if report.voter == voter);
        self.reported.contains(&voter) || self.wire.iter().any(by)
    }

    fn is_over(&self) -> bool {
        !self
            .leader
            .directory()
            .incarnations()
            .contains_key(&INCARNATION)
    }
}

impl Turn {
    fn next(self, voters: u64) -> Turn {
        match self {
            Turn::Operator => Turn::HolderSends,
            Turn::HolderSends => Turn::Voter(StoreId(1)),
            Turn::Voter(id) if id.0 < voters => Turn::Voter(StoreId(id.0 + 1)),
            Turn::Voter(_) => Turn::LeaderHears,
            Turn::LeaderHears => Turn::HolderHears,
            Turn::HolderHears => Turn::Operator,
        }
    }
}

impl Message {
    /// In whose turn it arrives.
    fn at(&self) -> Turn {
        match self {
            Message::Renewal(to, _) => Turn::Voter(*to),
            Message::Promise(_) => Turn::HolderHears,
            Message::Report(_) => Turn::LeaderHears,
        }
    }
}

impl Holder {
    fn learn(&mut self, now: Time, directory: &Directory, ttl: Ttl) {
        let voters = directory.voters().clone();
        let applied = LogIndex(self.applied as u64);
        let event = holder::Event::Directory {
            voters,
            ttl,
            applied,
        };
        let _ = self.machine.handle(now, event);
        self.drain();
    }

    fn renew(&mut self, now: Time) -> Vec<Message> {
        (self.renewed, self.rounds) = (true, self.rounds + 1);
        let _ = self.machine.handle(now, holder::Event::CanaryAnswered);
        let _ = self.machine.handle(now, holder::Event::Tick);
        self.drain()
    }

    fn drain(&mut self) -> Vec<Message> {
        std::iter::from_fn(|| self.machine.poll_action())
            .filter_map(|action| match action {
                holder::Action::Renew { to, renewal } => Some(Message::Renewal(to, renewal)),
                _ => None,
            })
            .collect()
    }
}

impl Voter {
    fn read(&mut self, now: Time, log: &[(LogId, Entry)]) {
        let settled = log[..self.held].iter().filter_map(fact).collect();
        let open = Vec::new();
        self.machine
            .handle(now, voter::Event::Read { settled, open })
            .expect("it reads");
        // It hears the leader again: a voter that hears none promises nothing (L9), which only
        // makes leases shorter.
        self.machine
            .handle(now, voter::Event::LeaderSeen(NODE))
            .expect("it hears");
        self.read = true;
        self.drain();
    }

    fn hold(&mut self, now: Time, log: &[(LogId, Entry)]) {
        let entry = &log[self.held];
        self.held += 1;
        if let Some((id, fact)) = fact(entry) {
            self.machine
                .handle(now, voter::Event::Held(id, fact))
                .expect("it has read");
            self.machine
                .handle(now, voter::Event::Committed(id.index))
                .expect("it has read");
        }
    }

    fn flush_limit(&mut self, now: Time) {
        let Some(ttl) = self.to_flush.take() else {
            return;
        };
        self.flushed = self.flushed.max(ttl);
        self.machine
            .handle(now, voter::Event::LimitFlushed(ttl))
            .expect("taken in");
        self.drain();
    }

    fn drain(&mut self) -> Vec<Message> {
        let mut said = Vec::new();
        while let Some(action) = self.machine.poll_action() {
            match action {
                voter::Action::Answer { promise, .. } => said.push(Message::Promise(promise)),
                voter::Action::Report { report, .. } => said.push(Message::Report(report)),
                voter::Action::FlushLimit(ttl) => self.to_flush = Some(ttl),
                voter::Action::Sight { .. } => {}
            }
        }
        said
    }
}

fn fact((id, entry): &(LogId, Entry)) -> Option<(LogId, Fact)> {
    entry.fact().map(|fact| (*id, fact))
}

const NODE: NodeId = NodeId(1);
const INCARNATION: IncarnationId = IncarnationId(7);

/// Three steps.
const TTL: Ttl = Ttl::DEFAULT;

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Message::Renewal(to, renewal) => {
                write!(
                    f,
                    "renewal {} of {} ms -> {to}",
                    renewal.round,
                    renewal.ttl.as_millis()
                )
            }
            Message::Promise(promise) => {
                let (voter, round) = (promise.voter, promise.round);
                write!(f, "{voter} to renewal {round}: {:?}", promise.verdict)
            }
            Message::Report(report) => write!(f, "{} reports", report.voter),
        }
    }
}
