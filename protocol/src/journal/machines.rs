//! What each machine is started with.
//!
//! Owns: the arguments of every machine's start, as the event log stores them. Never runs a machine.

use core::time::Duration;

use minicbor::{Decode, Encode};

use super::Journaled;
use super::log::MachineKind;
use crate::cluster::agent::{Agent, AgentSettings};
use crate::cluster::caller::Caller;
use crate::cluster::controller::Controller;
use crate::cluster::directory::Directory;
use crate::cluster::lease::{LeaseHolder, LeaseVoter, Warden};
use crate::cluster::replication::{Opened, Replica};
use crate::id::{IncarnationId, NodeId, StoreId};
use crate::time::Time;
use crate::wire::heart::Ttl;

/// What a [`Controller`] is started with.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct ControllerStart {
    /// The directory as the node's store held it.
    #[n(0)]
    pub directory: Directory,
    /// For the entries that this node will stamp.
    #[n(1)]
    pub seed: u64,
}

impl Journaled for Controller {
    const KIND: MachineKind = MachineKind::Controller;
    type Start = ControllerStart;

    fn begin(now: Time, start: ControllerStart) -> Controller {
        Controller::new(now, start.directory, start.seed)
    }
}

impl Journaled for Agent {
    const KIND: MachineKind = MachineKind::Agent;
    type Start = AgentSettings;

    fn begin(_: Time, settings: AgentSettings) -> Agent {
        Agent::new(settings)
    }
}

impl Journaled for Caller {
    const KIND: MachineKind = MachineKind::Caller;
    /// The gateway's incarnation.
    type Start = IncarnationId;

    fn begin(_: Time, gateway: IncarnationId) -> Caller {
        Caller::new(gateway)
    }
}

/// What a [`LeaseHolder`] is started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct HolderStart {
    /// Whose lease.
    #[n(0)]
    pub node: NodeId,
    /// Which start of it.
    #[n(1)]
    pub incarnation: IncarnationId,
    /// How long it takes to kill every helper (L2).
    #[n(2)]
    pub kill_time: Duration,
}

impl Journaled for LeaseHolder {
    const KIND: MachineKind = MachineKind::LeaseHolder;
    type Start = HolderStart;

    fn begin(now: Time, start: HolderStart) -> LeaseHolder {
        LeaseHolder::new(now, start.node, start.incarnation, start.kill_time)
    }
}

/// What a [`LeaseVoter`] is started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct VoterStart {
    /// The voter's store.
    #[n(0)]
    pub store: StoreId,
    /// The longest TTL ever flushed as a limit (L3).
    #[n(1)]
    pub limit: Ttl,
}

impl Journaled for LeaseVoter {
    const KIND: MachineKind = MachineKind::LeaseVoter;
    type Start = VoterStart;

    fn begin(now: Time, start: VoterStart) -> LeaseVoter {
        LeaseVoter::new(now, start.store, start.limit)
    }
}

/// What a [`Replica`] is started with. With a large store this is long: every head of every chain. A
/// log that has no room for it is closed at once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct ReplicaStart {
    /// Whose store.
    #[n(0)]
    pub store: StoreId,
    /// Which start of the store's node.
    #[n(1)]
    pub session: IncarnationId,
    /// What the store held.
    #[n(2)]
    pub opened: Opened,
}

impl Journaled for Replica {
    const KIND: MachineKind = MachineKind::Replica;
    type Start = ReplicaStart;

    fn begin(_: Time, start: ReplicaStart) -> Replica {
        Replica::open(start.store, start.session, start.opened)
    }
}

/// What a [`Warden`] is started with. While the node lives, whoever reads the secret can declare it
/// dead.
#[derive(Clone, PartialEq, Eq, Hash, Encode, Decode)]
pub struct WardenStart {
    /// Whose warden.
    #[n(0)]
    pub incarnation: IncarnationId,
    /// What its death note will prove itself with (L10).
    #[cbor(n(1), with = "minicbor::bytes")]
    pub secret: [u8; 32],
}

impl Journaled for Warden {
    const KIND: MachineKind = MachineKind::Warden;
    type Start = WardenStart;

    fn begin(_: Time, start: WardenStart) -> Warden {
        Warden::new(start.incarnation, start.secret)
    }
}
