//! Takeover and replication, every interleaving of them within bounds.
//!
//! Owns: a cluster of real [`Owner`]s, [`Replica`]s and a real [`Directory`], the wire and the disks
//! between them, and what must be true in every state. Raft is one sequence of entries; an owner
//! learns of it an entry at a time, as late as can be. Leases do not exist here: an owner that was
//! replaced goes on as long as it likes, for the safety of records must not rest on a clock.
//!
//! ```text
//!   Owner ── requests ──> wire (any order, lost, repeated) ──> Replica ── writes ──> disk
//!     │ ChangeSet                                                 ^ crash: what is not flushed
//!     v                                                             is gone; disk lost: all
//!   proposals (any order, lost) ──> Directory ──> views, in order
//! ```
//!
//! Time is what an owner's timeouts make of it: each step of an owner's clock is longer than every
//! wait of the machine, whatever round trips it has measured, so "late" and "not late" are the only
//! two cases. A message that is never delivered is a lost one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use stateright::{Model, Property};
use understudy_protocol::cluster::directory::{
    Action as Applied, Command, Directory, Entry, Event as Committed, Formation, Grant,
    Registration,
};
use understudy_protocol::cluster::replication::{
    CutMark, Opened, OpenedChain, Owner, OwnerAction, OwnerConfig, OwnerEvent, Phase, Replica,
    ReplicaAction, ReplicaEvent, UnitView, Write,
};
use understudy_protocol::id::{
    ChildId, Epoch, IncarnationId, LogId, LogIndex, NodeId, Seq, SlotRange, StoreId, Term, UnitId,
};
use understudy_protocol::machine::Machine;
use understudy_protocol::rules::{Rule, keeps};
use understudy_protocol::time::{ClusterTime, Time};
use understudy_protocol::wire::heart::{DeathDigest, Ttl};
use understudy_protocol::wire::record::{Head, Record, RecordKind};
use understudy_protocol::wire::replica::{Ask, ReplicaAnswer, ReplicaRequest, Said};

#[cfg(not(feature = "sabotage"))]
use crate::Search;
use crate::see;
use crate::shared::Shared;

/// How much may happen. Everything within is tried.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    /// Nodes, each with a store.
    pub(crate) stores: u64,
    /// How many of them are in the replica sets at first.
    pub(crate) members: u64,
    pub(crate) units: u16,
    /// Grants of one unit.
    pub(crate) epochs: u64,
    /// Records that the owners of the first, second, … epoch may write.
    pub(crate) writes: &'static [u8],
    /// How often the timeouts of the owner of the first, second, … epoch may run out.
    pub(crate) ticks: &'static [u8],
    /// Stores that may be killed and started again.
    pub(crate) crashes: u8,
    /// Stores that may lose the end of their log by it (R8).
    pub(crate) cuts: u8,
    /// Stores that may lose everything.
    pub(crate) losses: u8,
    /// Messages that may arrive twice.
    pub(crate) duplicates: u8,
    /// A flush is a step of its own; otherwise a store flushes before it takes the next message in.
    pub(crate) late_flush: bool,
}

impl Bounds {
    /// Three nodes, one unit in all three stores, one takeover, one record of the first owner.
    const PLAIN: Bounds = Bounds {
        stores: 3,
        members: 3,
        units: 1,
        epochs: 2,
        writes: &[1],
        ticks: &[],
        crashes: 0,
        cuts: 0,
        losses: 0,
        duplicates: 0,
        late_flush: false,
    };
}

/// Worlds that are explored to their end within seconds.
#[cfg(not(feature = "sabotage"))]
pub(crate) fn small() -> Vec<(Search, Bounds)> {
    vec![
        (
            Search::All,
            Bounds {
                crashes: 1,
                ..Bounds::PLAIN
            },
        ),
        (
            Search::All,
            Bounds {
                ticks: &[1],
                ..Bounds::PLAIN
            },
        ),
        (
            Search::All,
            Bounds {
                members: 2,
                losses: 1,
                ..Bounds::PLAIN
            },
        ),
        (
            Search::All,
            Bounds {
                units: 2,
                epochs: 1,
                writes: &[1],
                crashes: 1,
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
                epochs: 3,
                writes: &[1, 1, 1],
                ..Bounds::PLAIN
            },
        ),
        (
            Search::All,
            Bounds {
                ticks: &[0, 1],
                ..Bounds::PLAIN
            },
        ),
        (
            Search::All,
            Bounds {
                crashes: 1,
                duplicates: 1,
                late_flush: true,
                ..Bounds::PLAIN
            },
        ),
        (
            Search::All,
            Bounds {
                writes: &[1, 1],
                cuts: 1,
                ..Bounds::PLAIN
            },
        ),
        (
            Search::All,
            Bounds {
                stores: 4,
                writes: &[1, 1],
                ticks: &[1],
                ..Bounds::PLAIN
            },
        ),
        // Too large for an end: as deep as some millions of steps go.
        (
            SOME_MILLIONS,
            Bounds {
                members: 2,
                writes: &[2, 1],
                losses: 1,
                ..Bounds::PLAIN
            },
        ),
        (
            SOME_MILLIONS,
            Bounds {
                epochs: 3,
                writes: &[1, 1, 1],
                ticks: &[1, 1, 1],
                crashes: 2,
                losses: 1,
                duplicates: 1,
                ..Bounds::PLAIN
            },
        ),
        (
            SOME_MILLIONS,
            Bounds {
                units: 2,
                ticks: &[1, 1],
                crashes: 2,
                duplicates: 1,
                ..Bounds::PLAIN
            },
        ),
        // The same, walked to the end.
        (
            WALKS,
            Bounds {
                epochs: 3,
                writes: &[2, 1, 1],
                ticks: &[2, 2, 2],
                crashes: 2,
                losses: 1,
                duplicates: 2,
                late_flush: true,
                ..Bounds::PLAIN
            },
        ),
        (
            WALKS,
            Bounds {
                members: 2,
                units: 2,
                epochs: 3,
                writes: &[1, 1, 1],
                ticks: &[2, 2, 2],
                crashes: 2,
                losses: 1,
                duplicates: 2,
                ..Bounds::PLAIN
            },
        ),
        (
            WALKS,
            Bounds {
                stores: 4,
                epochs: 3,
                writes: &[1, 1, 1],
                ticks: &[2, 2, 2],
                crashes: 2,
                cuts: 1,
                duplicates: 2,
                ..Bounds::PLAIN
            },
        ),
    ]
}

/// More than a million different states; some five gigabytes of them wait to be looked at in the end.
#[cfg(not(feature = "sabotage"))]
const SOME_MILLIONS: Search = Search::Nearest(6_000_000);

#[cfg(not(feature = "sabotage"))]
const WALKS: Search = Search::Walks(3_000_000);

/// The smallest worlds in which each rule is needed.
#[cfg(feature = "sabotage")]
pub(crate) fn needing() -> Vec<(Rule, Bounds)> {
    let joining = Bounds {
        members: 2,
        ..Bounds::PLAIN
    };
    vec![
        (Rule::R1, Bounds::PLAIN),
        (Rule::R2, Bounds::PLAIN),
        (Rule::R3, joining.clone()),
        (
            Rule::R5,
            Bounds {
                writes: &[2],
                ..joining
            },
        ),
        (
            Rule::R6,
            Bounds {
                ticks: &[1],
                losses: 1,
                ..Bounds::PLAIN
            },
        ),
        (
            Rule::R8,
            Bounds {
                ticks: &[0, 1],
                cuts: 1,
                ..Bounds::PLAIN
            },
        ),
        (Rule::T1, Bounds::PLAIN),
    ]
}

/// The model; `seen` says what happened in any run, so that none of the properties is true for want
/// of a case.
#[derive(Clone, Debug)]
pub(crate) struct Takeover {
    bounds: Bounds,
    seen: Arc<Seen>,
}

#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) unacknowledged_tail_adopted: AtomicBool,
    pub(crate) grown: AtomicBool,
    pub(crate) shrunk: AtomicBool,
    pub(crate) stale_owner_refused: AtomicBool,
    pub(crate) acknowledged_after_takeover: AtomicBool,
    pub(crate) acknowledged_by_stale_owner: AtomicBool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    directory: Shared<Directory>,
    owners: Vec<Shared<Acting>>,
    stores: Vec<Shared<Store>>,
    wire: BTreeSet<Shared<Message>>,
    proposals: BTreeSet<Shared<Command>>,
    /// What was acknowledged of each unit's child, by anyone, in order.
    acknowledged: Vec<Vec<Head>>,
    /// Two records were acknowledged for one place.
    contradicted: bool,
    spent: Spent,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Spent {
    crashes: u8,
    cuts: u8,
    losses: u8,
    duplicates: u8,
}

/// An owner and what is known of it from outside.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Acting {
    machine: Owner,
    node: NodeId,
    unit: UnitId,
    epoch: Epoch,
    ticks: u8,
    written: u8,
    /// Its chain, once it has said so by loading the child.
    chain: Option<Vec<Head>>,
    /// Up to where it called its chain acknowledged.
    upto: Seq,
    /// What the directory applied of the unit and the owner's node has not yet.
    ahead: Vec<UnitView>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Store {
    machine: Replica,
    starts: u64,
    lost: bool,
    disk: Disk,
    unflushed: Vec<(u64, Vec<Write>)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Disk {
    promises: Vec<(SlotRange, Epoch)>,
    chains: BTreeMap<ChildId, Vec<Record>>,
    cut: CutMark,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Message {
    Request {
        from: NodeId,
        to: StoreId,
        request: ReplicaRequest,
    },
    Answer(ReplicaAnswer),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Deliver(Shared<Message>),
    DeliverAndKeep(Shared<Message>),
    Flush(StoreId),
    Crash(StoreId),
    CrashAndCut(StoreId),
    LoseDisk(StoreId),
    Write(UnitId, Epoch),
    TimeOut(UnitId, Epoch),
    Learn(UnitId, Epoch),
    Commit(Shared<Command>),
    /// The node is expelled, its promises are over, and its units are granted to the next node.
    TakeOver(NodeId),
}

impl Takeover {
    pub(crate) fn within(bounds: Bounds, seen: Arc<Seen>) -> Takeover {
        Takeover { bounds, seen }
    }

    fn first_state(&self) -> State {
        let Bounds { stores, units, .. } = self.bounds;
        let mut directory = Directory::default();
        let form = Formation {
            voters: (1..=stores).map(StoreId).collect(),
            ttl: Ttl::DEFAULT,
            replicas: 3,
            min_copies: 2,
            shards: units,
            set: (1..=self.bounds.members).map(StoreId).collect(),
        };
        commit(&mut directory, Command::Form(form)).expect("the first entry");
        for node in 1..=stores {
            register(&mut directory, NodeId(node));
        }
        let mut state = State {
            directory: Shared::new(directory),
            owners: Vec::new(),
            stores: (1..=stores).map(|id| Shared::new(Store::new(id))).collect(),
            wire: BTreeSet::new(),
            proposals: BTreeSet::new(),
            acknowledged: vec![Vec::new(); usize::from(units)],
            contradicted: false,
            spent: Spent::default(),
        };
        for unit in state.directory.units().keys().copied().collect::<Vec<_>>() {
            let node = NodeId((unit.0 - 1) % stores + 1);
            self.grant(&mut state, unit, node);
        }
        // The first owners serve before anything goes wrong.
        while let Some(message) = state.wire.pop_first() {
            self.deliver(&mut state, &message);
            for store in 0..state.stores.len() {
                self.flush(&mut state, store);
            }
        }
        for owner in &state.owners {
            assert_eq!(owner.machine.phase(), Phase::Serving);
        }
        state
    }

    fn grant(&self, state: &mut State, unit: UnitId, node: NodeId) {
        let incarnation = state.directory.nodes()[&node]
            .incarnation
            .expect("the node is live");
        let granted = state.directory.change(|directory| {
            while !directory.units()[&unit].wants_owner() {
                commit(directory, Command::Tick).expect("time passes");
            }
            let entry = &directory.units()[&unit];
            let grant = Grant {
                unit,
                epoch: entry.epoch,
                config: entry.config,
                to: incarnation,
            };
            commit(
                directory,
                Command::Grant {
                    grants: vec![grant],
                },
            )
            .expect("granted");
            view(directory, unit)
        });
        let epoch = state.directory.units()[&unit].epoch;
        let config = OwnerConfig {
            unit,
            epoch,
            incarnation,
            home: StoreId(node.0),
        };
        let machine = Owner::new(at(0), config, granted);
        let claim = machine.claim();
        // Whether it serves is the supervisors' concern alone; said early, it costs no states.
        state
            .directory
            .change(|directory| commit(directory, Command::Serving(claim)))
            .expect("the owner serves");
        state.owners.push(Shared::new(Acting {
            machine,
            node,
            unit,
            epoch,
            ticks: 0,
            written: 0,
            chain: None,
            upto: Seq::ZERO,
            ahead: Vec::new(),
        }));
        let owner = state.owners.len() - 1;
        self.drain(state, owner);
    }

    /// Carries out what an owner wants, and loads its child as soon as it serves.
    fn drain(&self, state: &mut State, nth: usize) {
        let mut owner = Acting::clone(&state.owners[nth]);
        let child = child_of(owner.unit);
        let index = owner.unit.0 as usize - 1;
        while let Some(action) = owner.machine.poll_action() {
            match action {
                OwnerAction::Ask { to, request } => {
                    if !state.store(to).lost {
                        let from = owner.node;
                        state
                            .wire
                            .insert(Shared::new(Message::Request { from, to, request }));
                    }
                }
                OwnerAction::Propose(command @ Command::ChangeSet { .. }) => {
                    state.proposals.insert(Shared::new(command));
                }
                OwnerAction::Serve => {
                    let load = OwnerEvent::Load(child.clone());
                    owner
                        .machine
                        .handle(at(owner.ticks), load)
                        .expect("the owner serves");
                }
                OwnerAction::Loaded { records, .. } => {
                    let chain: Vec<Head> = records.iter().map(Record::head).collect();
                    if chain.len() > state.acknowledged[index].len() && owner.epoch > Epoch(1) {
                        see(&self.seen.unacknowledged_tail_adopted);
                    }
                    owner.chain = Some(chain);
                }
                OwnerAction::Acknowledged { upto, .. } => owner.upto = upto.seq,
                OwnerAction::Propose(_) | OwnerAction::Unavailable | OwnerAction::Quiet => {}
            }
        }
        let present = state.directory.units()[&owner.unit].epoch;
        // A record is acknowledged when somebody could have been told so: its owner serves.
        for (place, head) in owner.chain.iter().flatten().enumerate() {
            if place as u64 >= owner.upto.0 {
                break;
            }
            let acknowledged = &mut state.acknowledged[index];
            match acknowledged.get(place) {
                Some(before) => state.contradicted |= before != head,
                None => {
                    acknowledged.push(*head);
                    if owner.epoch > Epoch(1) {
                        see(&self.seen.acknowledged_after_takeover);
                    }
                    if owner.epoch < present {
                        see(&self.seen.acknowledged_by_stale_owner);
                    }
                }
            }
        }
        state.owners[nth] = Shared::new(owner);
        state.forget_void();
    }

    fn tell(&self, state: &mut State, nth: usize, event: OwnerEvent) {
        state.owners[nth].change(|owner| {
            // A refusal is an answer: the owner has moved on.
            let _ = owner.machine.handle(at(owner.ticks), event);
        });
        self.drain(state, nth);
    }

    fn deliver(&self, state: &mut State, message: &Message) {
        match message {
            Message::Answer(answer) => {
                let nth = state.owner(answer.unit, answer.epoch);
                self.tell(state, nth, OwnerEvent::Answer(answer.clone()));
            }
            Message::Request { from, to, request } => {
                let asked = ReplicaEvent::Asked {
                    from: *from,
                    request: request.clone(),
                };
                let nth = to.0 as usize - 1;
                self.ask(state, nth, asked);
                if !self.bounds.late_flush {
                    self.flush(state, nth);
                }
            }
        }
    }

    fn ask(&self, state: &mut State, nth: usize, event: ReplicaEvent) {
        let answers = state.stores[nth].change(|store| store.handle(event));
        for answer in answers {
            // Nothing follows from a refusal but that the owner waits no longer; losing it on the
            // wire is among the runs, so only that one is tried.
            if matches!(answer.said, Said::Promised(_)) {
                see(&self.seen.stale_owner_refused);
            } else {
                state.wire.insert(Shared::new(Message::Answer(answer)));
            }
        }
    }

    fn flush(&self, state: &mut State, nth: usize) {
        let Some((ticket, _)) = state.stores[nth].unflushed.last().cloned() else {
            return;
        };
        state.stores[nth].change(Store::flush);
        self.ask(state, nth, ReplicaEvent::Flushed { ticket });
    }

    fn write(&self, state: &mut State, nth: usize) {
        let mut owner = Acting::clone(&state.owners[nth]);
        let child = child_of(owner.unit);
        owner.written += 1;
        let body = Bytes::from(vec![owner.epoch.0 as u8, owner.written]);
        let chain = owner.chain.as_mut().expect("it is loaded");
        let (config, prev) = (
            owner.machine.set_version(),
            chain.last().copied().unwrap_or(Head::NONE),
        );
        let record = Record::chained(
            child.clone(),
            owner.epoch,
            config,
            prev,
            RecordKind::Delta,
            0,
            body.clone(),
        );
        chain.push(record.head());
        let write = OwnerEvent::Write {
            child,
            kind: RecordKind::Delta,
            schema: 0,
            body,
        };
        owner
            .machine
            .handle(at(owner.ticks), write)
            .expect("it serves and is loaded");
        state.owners[nth] = Shared::new(owner);
        self.drain(state, nth);
    }

    fn commit(&self, state: &mut State, command: &Command) {
        let Command::ChangeSet { claim, set, .. } = command else {
            unreachable!("only sets are proposed here")
        };
        let before = state.directory.units()[&claim.unit].set.len();
        if set.len() > before {
            see(&self.seen.grown);
        } else if set.len() < before {
            see(&self.seen.shrunk);
        }
        let applied = state
            .directory
            .change(|directory| commit(directory, command.clone()));
        applied.expect("void proposals are forgotten");
        let view = view(&state.directory, claim.unit);
        let nth = state.owner(claim.unit, claim.epoch);
        state.owners[nth].change(|owner| owner.ahead.push(view));
        state.forget_void();
    }

    fn take_over(&self, state: &mut State, from: NodeId) {
        let units: Vec<UnitId> = state.units_of(from).collect();
        state.directory.change(|directory| {
            let incarnation = directory.nodes()[&from].incarnation.expect("it is live");
            commit(directory, Command::Expel { incarnation }).expect("it was live");
            commit(directory, Command::PromisesOver { incarnation }).expect("it was expelled");
            register(directory, from);
        });
        let next = NodeId(from.0 % self.bounds.stores + 1);
        for unit in units {
            self.grant(state, unit, next);
        }
        state.forget_void();
    }
}

impl Model for Takeover {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![self.first_state()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        let Bounds {
            epochs,
            writes,
            ticks,
            ref crashes,
            ref cuts,
            ref losses,
            ref duplicates,
            ..
        } = self.bounds;
        for message in &state.wire {
            steps.push(Step::Deliver(message.clone()));
            if state.spent.duplicates < *duplicates {
                steps.push(Step::DeliverAndKeep(message.clone()));
            }
        }
        for owner in &state.owners {
            let (unit, epoch) = (owner.unit, owner.epoch);
            let nth = epoch.0 as usize - 1;
            let of = |bound: &[u8]| bound.get(nth).copied().unwrap_or(0);
            let (may_write, may_wait) = (of(writes), of(ticks));
            let admits = owner.machine.phase() == Phase::Serving && owner.chain.is_some();
            if admits && owner.written < may_write {
                steps.push(Step::Write(unit, epoch));
            }
            if owner.ticks < may_wait && owner.machine.next_deadline().is_some() {
                steps.push(Step::TimeOut(unit, epoch));
            }
            if !owner.ahead.is_empty() {
                steps.push(Step::Learn(unit, epoch));
            }
        }
        steps.extend(state.proposals.iter().cloned().map(Step::Commit));
        for (store, nth) in state.stores.iter().zip(1..) {
            let id = StoreId(nth);
            if store.lost {
                continue;
            }
            if !store.unflushed.is_empty() {
                steps.push(Step::Flush(id));
            }
            if state.spent.crashes < *crashes {
                steps.push(Step::Crash(id));
            }
            // One disk at a time: what two disks lose together, two copies cannot keep.
            let disks = state.spent.cuts + state.spent.losses;
            if disks < *cuts {
                steps.push(Step::CrashAndCut(id));
            }
            if disks < *losses {
                steps.push(Step::LoseDisk(id));
            }
        }
        for node in state.directory.nodes().keys() {
            let epoch_of = |unit: UnitId| state.directory.units()[&unit].epoch;
            let mut units = state.units_of(*node).peekable();
            if units.peek().is_some() && units.all(|unit| epoch_of(unit).0 < epochs) {
                steps.push(Step::TakeOver(*node));
            }
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match step {
            Step::Deliver(message) => {
                state.wire.remove(&message);
                self.deliver(&mut state, &message);
            }
            Step::DeliverAndKeep(message) => {
                state.spent.duplicates += 1;
                self.deliver(&mut state, &message);
            }
            Step::Flush(store) => self.flush(&mut state, store.0 as usize - 1),
            Step::Crash(store) => {
                state.spent.crashes += 1;
                state.stores[store.0 as usize - 1].change(|store| store.restart(false));
            }
            Step::CrashAndCut(store) => {
                state.spent.cuts += 1;
                state.stores[store.0 as usize - 1].change(|store| store.restart(true));
            }
            Step::LoseDisk(store) => {
                state.spent.losses += 1;
                state.stores[store.0 as usize - 1].change(Store::lose);
                state.wire.retain(
                    |message| !matches!(&**message, Message::Request { to, .. } if *to == store),
                );
            }
            Step::Write(unit, epoch) => {
                let nth = state.owner(unit, epoch);
                self.write(&mut state, nth);
            }
            Step::TimeOut(unit, epoch) => {
                let nth = state.owner(unit, epoch);
                state.owners[nth].change(|owner| owner.ticks += 1);
                self.tell(&mut state, nth, OwnerEvent::Tick);
            }
            Step::Learn(unit, epoch) => {
                let nth = state.owner(unit, epoch);
                let view = state.owners[nth].change(|owner| owner.ahead.remove(0));
                self.tell(&mut state, nth, OwnerEvent::View(view));
            }
            Step::Commit(command) => self.commit(&mut state, &command),
            Step::TakeOver(node) => self.take_over(&mut state, node),
        }
        state.forget_refused(&self.seen);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Takeover>> {
        vec![
            Property::always(ONE_RECORD, |_, state: &State| !state.contradicted),
            Property::always(ON_EVERY_DISK, |_, state: &State| state.is_on_every_disk()),
            Property::always(ON_SOME_DISK, |_, state: &State| state.is_on_some_disk()),
            Property::always(OWNER_HAS_ALL, |_, state: &State| state.owner_has_all()),
        ]
    }
}

/// No two records are acknowledged for one place.
const ONE_RECORD: &str = "one record is acknowledged for a place";
/// So any one of them suffices to go on: what a takeover's safety rests on (T1).
const ON_EVERY_DISK: &str =
    "what is acknowledged is on every disk of the directory's set that has lost nothing";
/// With two copies at least, one lost disk loses nothing (R4, R6).
const ON_SOME_DISK: &str = "what is acknowledged is on a disk of the directory's set";
/// Reads included: what was shown was acknowledged.
const OWNER_HAS_ALL: &str = "the present owner, once it serves, has all acknowledged";

impl State {
    fn store(&self, id: StoreId) -> &Store {
        &self.stores[id.0 as usize - 1]
    }

    fn owner(&self, unit: UnitId, epoch: Epoch) -> usize {
        let of = |owner: &Shared<Acting>| owner.unit == unit && owner.epoch == epoch;
        self.owners.iter().position(of).expect("it was granted")
    }

    fn units_of(&self, node: NodeId) -> impl Iterator<Item = UnitId> {
        let of = move |unit: UnitId| self.directory.units()[&unit].owner.expect("it is granted");
        let units = self.directory.units().keys().copied();
        units.filter(move |unit| of(*unit).node == node)
    }

    /// A request below a flushed promise is refused whenever it arrives (R1), so the runs in which it
    /// does are those in which it is lost.
    fn forget_refused(&mut self, seen: &Seen) {
        if !keeps(Rule::R1) {
            return;
        }
        let stores = &self.stores;
        self.wire.retain(|message| {
            let Message::Request { to, request, .. } = &**message else {
                return true;
            };
            let slot = child_of(request.unit).slot();
            let promises = &stores[to.0 as usize - 1].disk.promises;
            let mut own = promises.iter().filter(|(range, _)| range.contains(slot));
            let refused = own.any(|(_, epoch)| request.epoch < *epoch);
            if refused {
                see(&seen.stale_owner_refused);
            }
            !refused
        });
    }

    /// A proposal that is void now is void for good.
    fn forget_void(&mut self) {
        let directory = &self.directory;
        self.proposals.retain(|command| {
            let mut directory = Directory::clone(directory);
            commit(&mut directory, Command::clone(command)).is_ok()
        });
    }

    fn is_on_every_disk(&self) -> bool {
        self.copies().all(|(whole, holds)| whole == holds)
    }

    fn is_on_some_disk(&self) -> bool {
        self.copies().all(|(_, holds)| holds > 0)
    }

    /// For each unit, how many disks of its set have lost nothing, and how many of these hold
    /// everything acknowledged.
    fn copies(&self) -> impl Iterator<Item = (usize, usize)> {
        self.directory.units().iter().map(|(unit, entry)| {
            let acknowledged = &self.acknowledged[unit.0 as usize - 1];
            let whole = |store: &&Store| !store.lost && store.disk.cut.slots.is_empty();
            let holds = |store: &&Store| {
                let chain = store.disk.chains.get(&child_of(*unit)).into_iter();
                let heads = chain.flatten().map(Record::head).take(acknowledged.len());
                heads.eq(acknowledged.iter().copied())
            };
            let stores = || entry.set.iter().map(|store| self.store(*store));
            (
                stores().filter(whole).count(),
                stores().filter(whole).filter(holds).count(),
            )
        })
    }

    fn owner_has_all(&self) -> bool {
        self.owners.iter().all(|owner| {
            let present = self.directory.units()[&owner.unit].epoch == owner.epoch;
            let acknowledged = &self.acknowledged[owner.unit.0 as usize - 1];
            let has = |chain: &Vec<Head>| chain.starts_with(acknowledged);
            !present || owner.chain.as_ref().is_none_or(has)
        })
    }
}

impl Store {
    fn new(id: u64) -> Store {
        let session = IncarnationId(id * 100);
        Store {
            machine: Replica::open(StoreId(id), session, Opened::default()),
            starts: 0,
            lost: false,
            disk: Disk::default(),
            unflushed: Vec::new(),
        }
    }

    /// What the machine says to an event. Writes wait for a flush; reads do not.
    fn handle(&mut self, event: ReplicaEvent) -> Vec<ReplicaAnswer> {
        let mut answers = Vec::new();
        self.machine
            .handle(Time::ZERO, event)
            .expect("owners send intact chains");
        while let Some(action) = self.machine.poll_action() {
            match action {
                ReplicaAction::Write { ticket, batch } => self.unflushed.push((ticket, batch)),
                ReplicaAction::Answer { answer, .. } => answers.push(answer),
                ReplicaAction::Read { read, child, after } => {
                    let mut written = self.disk.clone();
                    for write in self.unflushed.iter().flat_map(|(_, batch)| batch) {
                        written.write(write);
                    }
                    let chain = written.chains.get(&child).into_iter().flatten();
                    let records = chain.filter(|record| record.seq > after).cloned().collect();
                    self.machine
                        .handle(Time::ZERO, ReplicaEvent::Read { read, records })
                        .expect("it asked");
                }
            }
        }
        answers
    }

    fn flush(&mut self) {
        for (_, batch) in std::mem::take(&mut self.unflushed) {
            for write in &batch {
                self.disk.write(write);
            }
        }
    }

    /// Memory and what was not flushed are gone; with a cut, so is the last flushed record.
    fn restart(&mut self, cut: bool) {
        self.unflushed.clear();
        if cut {
            self.disk.cut.slots = vec![SlotRange::ALL];
            for chain in self.disk.chains.values_mut() {
                chain.pop();
            }
        }
        self.starts += 1;
        let heads = |records: &Vec<Record>| records.iter().map(Record::head).collect();
        let chains = self.disk.chains.iter().map(|(child, records)| OpenedChain {
            child: child.clone(),
            heads: heads(records),
            damaged: false,
        });
        let opened = Opened {
            promises: self.disk.promises.clone(),
            chains: chains.collect(),
            cut: self.disk.cut.clone(),
            ..Opened::default()
        };
        let id = self.machine.store();
        let session = IncarnationId(id.0 * 100 + self.starts);
        self.machine = Replica::open(id, session, opened);
    }

    fn lose(&mut self) {
        self.lost = true;
        self.disk = Disk::default();
        self.restart(false);
    }
}

impl Disk {
    fn write(&mut self, write: &Write) {
        match write {
            Write::Promise { range, epoch } => {
                self.promises.retain(|(of, _)| of != range);
                self.promises.push((*range, *epoch));
                self.promises.sort();
            }
            Write::Truncate { child, after } => {
                let chain = self.chains.entry(child.clone()).or_default();
                chain.retain(|record| record.seq <= *after);
            }
            Write::Drop { child } => {
                self.chains.remove(child);
            }
            Write::Put(record) => {
                let chain = self.chains.entry(record.child.clone()).or_default();
                chain.push(record.clone());
            }
            Write::Cut(mark) => self.cut = mark.clone(),
            Write::ChildPromise { .. } | Write::Prune { .. } | Write::Damaged { .. } => {
                unreachable!("there are no exceptions, snapshots or scrubs here: {write:?}")
            }
        }
    }
}

/// Applies a command; what it says when it is void.
fn commit(directory: &mut Directory, command: Command) -> Result<(), Applied> {
    let index = directory.applied().index.next();
    let id = LogId {
        term: Term(1),
        index,
    };
    // Longer than every backoff of a supervisor.
    let at = ClusterTime::from_millis(index.0 * 3_600_000);
    let entry = Entry {
        at,
        random: 0,
        command,
    };
    directory
        .handle(Time::ZERO, Committed::Apply(id, entry))
        .expect("it is the next one");
    let mut void = Ok(());
    while let Some(action) = directory.poll_action() {
        if matches!(action, Applied::Voided(..)) {
            void = Err(action);
        }
    }
    void
}

fn register(directory: &mut Directory, node: NodeId) {
    let LogIndex(index) = directory.applied().index;
    let new = Registration {
        node,
        incarnation: IncarnationId(10_000 + index),
        store: StoreId(node.0),
        death: DeathDigest([0; 32]),
        votes: true,
        works: true,
        labels: BTreeMap::new(),
        capacity: BTreeMap::new(),
        name: String::new(),
        address: String::new(),
    };
    commit(directory, Command::Register(new)).expect("a new start");
}

/// What an agent tells an owner of the applied directory.
fn view(directory: &Directory, unit: UnitId) -> UnitView {
    let entry = &directory.units()[&unit];
    UnitView {
        scope: entry.scope.clone(),
        config: entry.config,
        set: entry.set.clone(),
        min_copies: directory.min_copies(),
        wanted: directory.wanted_replicas(),
        candidates: directory.storing_stores().map(|(store, _)| store).collect(),
        unreachable: BTreeSet::new(),
        move_to: None,
        serving: true,
    }
}

/// The one child of a unit: of the first unit's slots, or of the second's.
fn child_of(unit: UnitId) -> ChildId {
    let name = match unit.0 {
        1 => FIRST,
        _ => SECOND,
    };
    ChildId::parse(name).expect("a child's id")
}

const FIRST: &str = "t/k/a";
const SECOND: &str = "t/k/c";

/// The owner's clock: every step is longer than four times any round trip that could be measured
/// before it, and than every wait of the machine.
fn at(ticks: u8) -> Time {
    Time::from_millis([0, 10_000, 100_000, 1_000_000][usize::from(ticks)])
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Message::Request { to, request, .. } => {
                let (unit, epoch, config) = (request.unit, request.epoch, request.config);
                let session = request.session.map_or(0, |session| session.0);
                write!(f, "{unit} {epoch} {config} -> {to}/{session}: ")?;
                match &request.ask {
                    Ask::Seal { .. } => write!(f, "seal"),
                    Ask::Append(append) => {
                        let heads: Vec<String> =
                            append.records.iter().map(|r| short(r.head())).collect();
                        let (base, adopted) = (append.from_base, append.adopted);
                        write!(
                            f,
                            "append {heads:?} after {} base {base} adopted {adopted}",
                            short(append.prev)
                        )
                    }
                    Ask::Fetch { after, .. } => write!(f, "fetch after {after}"),
                    Ask::Confirm { .. } => write!(f, "confirm"),
                }
            }
            Message::Answer(answer) => {
                let ReplicaAnswer {
                    store,
                    unit,
                    epoch,
                    session,
                    said,
                } = answer;
                write!(f, "{unit} {epoch} <- {store}/{}: ", session.0)?;
                match said {
                    Said::Sealed { page, cut, .. } => {
                        let tails: Vec<String> = page.iter().map(|i| short(i.tail)).collect();
                        write!(f, "sealed {tails:?} cut {cut}")
                    }
                    Said::Appended { upto, .. } => write!(f, "appended {}", short(*upto)),
                    Said::Mismatch { tail, .. } => write!(f, "mismatch {}", short(*tail)),
                    Said::Fetched { records, .. } => write!(f, "fetched {}", records.len()),
                    other => write!(f, "{other:?}"),
                }
            }
        }
    }
}

fn short(head: Head) -> String {
    format!("{}/{}", head.epoch, head.seq)
}
