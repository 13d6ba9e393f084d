//! The directory: what Raft applies, the same on every node.
//!
//! Owns: nodes and incarnations, stores, units with their epochs, owners and replica sets, the slots,
//! the supervisors' tree with its restart history, the list of lease voters and the few numbers that
//! are cluster-wide. Rules L7, L8, L12, R4, R6, R7, S1, S2, T3, V1. Never proposes: the controller
//! and the owners do, and a proposal that is out of date by the time it is applied is void (R7).
//!
//! ```text
//!   Apply{id, entry} ──> Directory ──> Changed(unit), Voided(reason)
//! ```
//!
//! It takes no time but the entry's own, so every node computes the same; `next_deadline` says, in
//! the directory's time, when a supervisor wants a `Tick` committed.
//!
//! A unit's life here:
//!
//! ```text
//!          supervisor: Start            Grant              Serving
//!   Down ──────────────────> Wanted ───────────> granted ───────────> serving
//!    ^                         ^                    │ Release            │
//!    │                         └────────────────────┴────────────────────┤
//!    └── Exited, or the owner's promises are over (supervisor decides) ──┘
//! ```
//!
//! An owner is cleared by a release, an exit, or the end of its incarnation's promises, and by
//! nothing else (L7); only then is the unit granted again.

mod apply;
mod codec;
mod command;
mod entries;
#[cfg(test)]
mod tests;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use minicbor::Encode;

pub use command::{
    ADDRESS_BYTES_MAX, Claim, Command, Entry, Formation, GRANTS_MAX, Grant, LABEL_BYTES_MAX,
    LABELS_MAX, Needs, RESOURCES_MAX, Registration, SET_MAX, Void,
};
pub use entries::{
    IncarnationEntry, Member, NodeEntry, Owner, Run, StoreEntry, SupervisorEntry, UnitEntry,
};

use crate::cluster::lease::voter::Fact;
use crate::cluster::voters::Voters;
use crate::id::{
    ChildId, Epoch, IncarnationId, LogId, NodeId, Slot, StoreId, SupervisorId, UnitId,
};
use crate::machine::Machine;
use crate::supervision::ChildState;
use crate::time::{ClusterTime, Time};
use crate::wire::heart::Ttl;

/// Who owns what, at which epoch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode)]
pub struct Directory {
    /// The version of this encoding.
    #[n(0)]
    version: u16,
    #[n(1)]
    applied: LogId,
    #[n(2)]
    clock: ClusterTime,
    #[n(3)]
    ttl: Ttl,
    #[n(4)]
    replicas: u8,
    #[n(5)]
    min_copies: u8,
    #[n(6)]
    voters: Voters,
    #[n(7)]
    nodes: BTreeMap<NodeId, NodeEntry>,
    #[n(8)]
    incarnations: BTreeMap<IncarnationId, IncarnationEntry>,
    #[n(9)]
    stores: BTreeMap<StoreId, StoreEntry>,
    #[n(10)]
    units: BTreeMap<UnitId, UnitEntry>,
    #[n(11)]
    supervisors: BTreeMap<SupervisorId, SupervisorEntry>,
    #[n(12)]
    next_unit: u64,
    #[n(13)]
    next_supervisor: u64,
    /// An operator has set the copies (R4).
    #[n(14)]
    copies_fixed: bool,
    /// The highest epoch of any unit that is gone: a new unit of the same child must not begin below
    /// what the stores have promised to the old one.
    #[n(15)]
    epoch_floor: Epoch,
    /// Shards by the first of their slots; follows from `units`.
    #[cbor(skip)]
    shards: BTreeMap<u16, UnitId>,
    /// Dedicated units by child; follows from `units`.
    #[cbor(skip)]
    dedicated: BTreeMap<ChildId, UnitId>,
    #[cbor(skip)]
    actions: VecDeque<Action>,
}

/// What may happen to the directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Raft committed an entry; entries come in order, each once.
    Apply(LogId, Entry),
    /// Raft committed an entry that is none of ours (a blank or a change of its members).
    Skip(LogId),
}

/// What applying an entry brought about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The unit is new, changed or gone: whoever serves it or holds its records must look.
    Changed(UnitId),
    /// The voters, the TTL, a node or an incarnation changed: hearts must look.
    Membership,
    /// The entry, or one grant of it, changed nothing.
    Voided(LogId, Void),
    /// A supervisor put a unit in quarantine (V2).
    Quarantined(UnitId),
}

/// Why an entry was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The entry does not follow the last one applied. Nothing changed; the log must be read again.
    #[error("the entry is not the next one")]
    OutOfOrder,
}

/// The version of the directory's own encoding.
pub const DIRECTORY_VERSION: u16 = 1;

/// The root of the supervisors' tree.
pub const ROOT: SupervisorId = SupervisorId(0);

impl Default for Directory {
    fn default() -> Directory {
        Directory {
            version: DIRECTORY_VERSION,
            applied: LogId::default(),
            clock: ClusterTime::ZERO,
            ttl: Ttl::DEFAULT,
            replicas: 0,
            min_copies: 0,
            voters: Voters::default(),
            nodes: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            stores: BTreeMap::new(),
            units: BTreeMap::new(),
            supervisors: BTreeMap::new(),
            next_unit: 0,
            next_supervisor: 0,
            copies_fixed: false,
            epoch_floor: Epoch::ZERO,
            shards: BTreeMap::new(),
            dedicated: BTreeMap::new(),
            actions: VecDeque::new(),
        }
    }
}

impl Directory {
    /// The last entry applied.
    pub fn applied(&self) -> LogId {
        self.applied
    }

    /// The directory's time.
    pub fn clock(&self) -> ClusterTime {
        self.clock
    }

    /// Whether the cluster has been formed.
    pub fn is_formed(&self) -> bool {
        self.replicas > 0
    }

    /// The TTL in force (L3).
    pub fn ttl(&self) -> Ttl {
        self.ttl
    }

    /// How many replicas a set should have (R4): at most as many as there are storing nodes.
    pub fn wanted_replicas(&self) -> usize {
        usize::from(self.replicas).min(self.storing_stores().count())
    }

    /// How many replicas were asked for.
    pub fn replicas(&self) -> u8 {
        self.replicas
    }

    /// Whether `min_copies` is one because the cluster began with one store (R4).
    pub fn may_raise_min_copies(&self) -> bool {
        self.is_formed() && self.min_copies == 1 && !self.copies_fixed
    }

    /// How many replicas a set must have for anything to be acknowledged (R4).
    pub fn min_copies(&self) -> usize {
        usize::from(self.min_copies)
    }

    /// The lease voters.
    pub fn voters(&self) -> &Voters {
        &self.voters
    }

    /// Every node that was ever registered.
    pub fn nodes(&self) -> &BTreeMap<NodeId, NodeEntry> {
        &self.nodes
    }

    /// Every incarnation whose promises may not be over.
    pub fn incarnations(&self) -> &BTreeMap<IncarnationId, IncarnationEntry> {
        &self.incarnations
    }

    /// Every store, retired ones too.
    pub fn stores(&self) -> &BTreeMap<StoreId, StoreEntry> {
        &self.stores
    }

    /// Every unit.
    pub fn units(&self) -> &BTreeMap<UnitId, UnitEntry> {
        &self.units
    }

    /// One unit.
    pub fn unit(&self, unit: UnitId) -> Option<&UnitEntry> {
        self.units.get(&unit)
    }

    /// Whether the unit is in quarantine (V2).
    pub fn is_quarantined(&self, unit: UnitId) -> bool {
        let supervisor = self
            .units
            .get(&unit)
            .and_then(|entry| self.supervisors.get(&entry.supervisor));
        let state = supervisor.and_then(|entry| entry.supervisor.state(&Member::Unit(unit)));
        state == Some(ChildState::Quarantined)
    }

    /// Every supervisor.
    pub fn supervisors(&self) -> &BTreeMap<SupervisorId, SupervisorEntry> {
        &self.supervisors
    }

    /// Whether the incarnation is listed as live.
    pub fn is_live(&self, incarnation: IncarnationId) -> bool {
        self.incarnations
            .get(&incarnation)
            .is_some_and(|entry| entry.expelled.is_none())
    }

    /// The unit that owns a child: its own, or the shard of its slot.
    pub fn unit_of(&self, child: &ChildId) -> Option<UnitId> {
        let shard = || {
            if child.is_dedicated() {
                None
            } else {
                self.shard_of(child.slot())
            }
        };
        self.dedicated.get(child).copied().or_else(shard)
    }

    /// The shard that a slot lies in.
    pub fn shard_of(&self, slot: Slot) -> Option<UnitId> {
        self.shards
            .range(..=slot.get())
            .next_back()
            .map(|(_, unit)| *unit)
    }

    /// Stores that records may go to, in order: those of nodes that work, and those of witnesses
    /// while fewer than three others store (R4).
    pub fn storing_stores(&self) -> impl Iterator<Item = (StoreId, NodeId)> {
        let workers = self.nodes.values().filter(|node| node.works).count();
        let stores = self
            .nodes
            .iter()
            .filter(move |(_, node)| node.works || workers < STORING_WORKERS);
        stores.map(|(id, node)| (node.store, *id))
    }

    /// What a lease voter must know of everything applied so far.
    pub fn facts(&self) -> Vec<(LogId, Fact)> {
        let mut facts = Vec::new();
        for (node, entry) in &self.nodes {
            let ended = entry.ended.iter().map(|incarnation| Fact::Ended {
                node: *node,
                incarnation,
            });
            facts.extend(ended.map(|fact| (self.applied, fact)));
        }
        if self.is_formed() {
            facts.push((
                self.applied,
                Fact::Formed {
                    voters: self.voters.clone(),
                    ttl: self.ttl,
                },
            ));
        }
        // Expelled ones first: a live one of the same node would expel them by another entry's name.
        let of = |expelled: bool| {
            self.incarnations
                .iter()
                .filter(move |(_, entry)| entry.expelled.is_some() == expelled)
        };
        for (id, entry) in of(true) {
            let live = Fact::Live {
                node: entry.node,
                incarnation: *id,
                death: entry.death,
            };
            facts.push((entry.registered, live));
            facts.push((
                entry.expelled.unwrap_or(entry.registered),
                Fact::Expelled(*id),
            ));
        }
        for (id, entry) in of(false) {
            let live = Fact::Live {
                node: entry.node,
                incarnation: *id,
                death: entry.death,
            };
            facts.push((entry.registered, live));
        }
        facts
    }
}

impl Machine for Directory {
    type Event = Event;
    type Action = Action;
    type Error = ApplyError;

    fn handle(&mut self, _: Time, event: Event) -> Result<(), ApplyError> {
        let (Event::Apply(id, _) | Event::Skip(id)) = &event;
        if id.index != self.applied.index.next() {
            return Err(ApplyError::OutOfOrder);
        }
        self.applied = *id;
        if let Event::Apply(id, entry) = event {
            self.clock = self.clock.max(entry.at);
            if let Err(void) = self.apply(id, entry) {
                self.actions.push_back(Action::Voided(id, void));
            }
        }
        Ok(())
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// In the directory's time: when a supervisor wants a `Tick` committed.
    fn next_deadline(&self) -> Option<Time> {
        self.supervisors
            .values()
            .filter_map(|entry| entry.supervisor.next_deadline())
            .min()
    }
}

/// A witness stores records while fewer nodes than this do (R4).
const STORING_WORKERS: usize = 3;
