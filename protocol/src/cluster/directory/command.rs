//! What is committed: the commands that change the directory, and why one was void.
//!
//! Owns: the closed set of commands and their encoding. Never decides whether one is void: applying
//! it does (rule R7).
//!
//! A node that meets a command it does not know must stop applying, not skip it: its directory would
//! part from the others'. So a new command comes with a new wire version.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use minicbor::{Decode, Encode};

use crate::cluster::lease::voter::Fact;
use crate::cluster::voters::Voters;
use crate::id::{
    ChildId, ConfigVersion, Epoch, IncarnationId, NodeId, StoreId, SupervisorId, UnitId,
};
use crate::supervision::{Exit, Policy, RestartType};
use crate::time::ClusterTime;
use crate::wire::heart::{DeathDigest, Ttl};

/// One entry of the Raft log, as the leader stamped it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Entry {
    /// The directory's time.
    #[n(0)]
    pub at: ClusterTime,
    /// Drawn for this entry: the only randomness that applying it may use.
    #[n(1)]
    pub random: u64,
    /// What changes.
    #[n(2)]
    pub command: Command,
}

/// A change of the directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Command {
    /// The first entry of a cluster, once and for all.
    #[n(0)]
    Form(#[n(0)] Formation),
    /// A node has started: its incarnation is live, and every earlier one of it is expelled.
    #[n(1)]
    Register(#[n(0)] Registration),
    /// The incarnation may not run units any more (L4).
    #[n(2)]
    Expel {
        /// Which.
        #[n(0)]
        incarnation: IncarnationId,
    },
    /// A majority of voters, all holding the expulsion, reported their promises over (L5).
    #[n(3)]
    PromisesOver {
        /// To whom.
        #[n(0)]
        incarnation: IncarnationId,
    },
    /// The warden's proof of death (L11).
    #[n(4)]
    DeathNote {
        /// Whose.
        #[n(0)]
        incarnation: IncarnationId,
        /// The proof.
        #[cbor(n(1), with = "minicbor::bytes")]
        secret: [u8; 32],
        /// Units that were starting or at work (V2).
        #[n(2)]
        at_work: Vec<UnitId>,
    },
    /// Ownerless units get owners, in one batch (T3). Each stands or is void alone (R7).
    #[n(5)]
    Grant {
        /// At most [`GRANTS_MAX`].
        #[n(0)]
        grants: Vec<Grant>,
    },
    /// The owner gives its unit back (L12).
    #[n(6)]
    Release(#[n(0)] Claim),
    /// The owner's child has ended.
    #[n(7)]
    Exited {
        /// Whose.
        #[n(0)]
        claim: Claim,
        /// How.
        #[n(1)]
        exit: Exit,
    },
    /// The owner serves: the takeover is complete.
    #[n(8)]
    Serving(#[n(0)] Claim),
    /// The owner changes its replica set (R5, R6), by compare-and-swap on (epoch, config version).
    #[n(9)]
    ChangeSet {
        /// Whose.
        #[n(0)]
        claim: Claim,
        /// The version it was made from.
        #[n(1)]
        config: ConfigVersion,
        /// The new set.
        #[n(2)]
        set: BTreeSet<StoreId>,
    },
    /// The owner cuts its shard in two (S2).
    #[n(10)]
    Split {
        /// Whose.
        #[n(0)]
        claim: Claim,
        /// The version it was made from.
        #[n(1)]
        config: ConfigVersion,
        /// The first slot of the new shard.
        #[n(2)]
        at: u16,
    },
    /// The owner of two neighbouring shards makes them one (S2).
    #[n(11)]
    Merge {
        /// The lower shard, which stays.
        #[n(0)]
        low: Claim,
        /// Its version.
        #[n(1)]
        low_config: ConfigVersion,
        /// The higher shard, which ends.
        #[n(2)]
        high: Claim,
        /// Its version.
        #[n(3)]
        high_config: ConfigVersion,
    },
    /// The owner makes one child of its shard a dedicated unit (S1, S2).
    #[n(12)]
    Except {
        /// Whose.
        #[n(0)]
        claim: Claim,
        /// The version it was made from.
        #[n(1)]
        config: ConfigVersion,
        /// Which child.
        #[n(2)]
        child: ChildId,
    },
    /// A new dedicated unit, empty.
    #[n(13)]
    Create {
        /// Which child.
        #[n(0)]
        child: ChildId,
        /// Under which supervisor.
        #[n(1)]
        supervisor: SupervisorId,
        /// When it is restarted.
        #[n(2)]
        restart: RestartType,
        /// What it needs of a node.
        #[n(3)]
        needs: Needs,
        /// Where its records are.
        #[n(4)]
        set: BTreeSet<StoreId>,
    },
    /// A unit is to end for good. Only one of a dedicated kind can: a light child always has a unit,
    /// its shard or its own (S1).
    #[n(14)]
    Remove {
        /// Which.
        #[n(0)]
        unit: UnitId,
    },
    /// A new supervisor.
    #[n(15)]
    Supervise {
        /// Under which.
        #[n(0)]
        parent: SupervisorId,
        /// When it is restarted.
        #[n(1)]
        restart: RestartType,
        /// How it restarts its children.
        #[n(2)]
        policy: Policy,
    },
    /// An operator lets a quarantined unit start again.
    #[n(16)]
    Pardon {
        /// Which.
        #[n(0)]
        unit: UnitId,
    },
    /// Time has passed for the supervisors.
    #[n(17)]
    Tick,
    /// Another TTL (L3).
    #[n(18)]
    SetTtl(#[n(0)] Ttl),
    /// How many replicas, and how many at least (R4).
    #[n(19)]
    SetCopies {
        /// How many a set should have.
        #[n(0)]
        replicas: u8,
        /// How many it must have for anything to be acknowledged.
        #[n(1)]
        min_copies: u8,
        /// An operator's word holds: the cluster does not raise `min_copies` by itself afterwards.
        #[n(2)]
        by_operator: bool,
    },
    /// A step of a change of the lease voters (L8).
    #[n(20)]
    SetVoters(#[n(0)] Voters),
    /// A node's units are to go elsewhere, or may stay again.
    #[n(21)]
    Drain {
        /// Which.
        #[n(0)]
        node: NodeId,
        /// Whether to.
        #[n(1)]
        draining: bool,
    },
    /// A unit is to move.
    #[n(22)]
    Move {
        /// Which.
        #[n(0)]
        unit: UnitId,
        /// At which epoch it was decided.
        #[n(1)]
        epoch: Epoch,
        /// Where to.
        #[n(2)]
        to: NodeId,
    },
    /// An operator accepts loss: the unit goes on from these stores alone (T2).
    #[n(23)]
    Recover {
        /// Which.
        #[n(0)]
        unit: UnitId,
        /// From what is left.
        #[n(1)]
        set: BTreeSet<StoreId>,
    },
}

/// How a cluster begins.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Formation {
    /// The lease voters.
    #[n(0)]
    pub voters: BTreeSet<StoreId>,
    /// The TTL (L3).
    #[n(1)]
    pub ttl: Ttl,
    /// How many replicas a set should have (R4).
    #[n(2)]
    pub replicas: u8,
    /// How many it must have (R4).
    #[n(3)]
    pub min_copies: u8,
    /// How many shards the slots are cut into at first.
    #[n(4)]
    pub shards: u16,
    /// Where their records are at first.
    #[n(5)]
    pub set: BTreeSet<StoreId>,
}

/// What a starting node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Registration {
    /// Which node.
    #[n(0)]
    pub node: NodeId,
    /// Which start of it.
    #[n(1)]
    pub incarnation: IncarnationId,
    /// The store it opened.
    #[n(2)]
    pub store: StoreId,
    /// What its warden's death note must match (L10).
    #[n(3)]
    pub death: DeathDigest,
    /// Whether its store should vote.
    #[n(4)]
    pub votes: bool,
    /// Whether it runs units; a witness does not.
    #[n(5)]
    pub works: bool,
    /// Labels, such as `zone`.
    #[n(6)]
    pub labels: BTreeMap<String, String>,
    /// What it offers, in each resource's own unit.
    #[n(7)]
    pub capacity: BTreeMap<String, u64>,
    /// What people call it, unique among the nodes.
    #[n(8)]
    pub name: String,
    /// Where its peers reach it, as `host:port`; its heart listens on the next port.
    #[n(9)]
    pub address: String,
}

/// What a unit needs of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Needs {
    /// Labels it must have; no value takes any.
    #[n(0)]
    pub labels: BTreeMap<String, Option<String>>,
    /// What is reserved there, in each resource's own unit.
    #[n(1)]
    pub resources: BTreeMap<String, u64>,
    /// The only node that will do.
    #[n(2)]
    pub pin: Option<NodeId>,
}

/// One unit's grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Grant {
    /// Which unit.
    #[n(0)]
    pub unit: UnitId,
    /// The epoch that the grant ends; the grant's own is one more.
    #[n(1)]
    pub epoch: Epoch,
    /// The replica set's version that it was decided with.
    #[n(2)]
    pub config: ConfigVersion,
    /// To whom.
    #[n(3)]
    pub to: IncarnationId,
}

/// Who says something of a unit, and under which grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Claim {
    /// Which unit.
    #[n(0)]
    pub unit: UnitId,
    /// The grant.
    #[n(1)]
    pub epoch: Epoch,
    /// Its holder.
    #[n(2)]
    pub incarnation: IncarnationId,
}

/// Grants in one entry: with 40 bytes each it stays under a megabyte.
pub const GRANTS_MAX: usize = 20_000;

/// Stores in a replica set: `replicas` is a byte, and while a set moves as a whole both sets count.
pub const SET_MAX: usize = 512;

/// Labels of a node or a unit: a few dozen are what machines are told apart by, and each is compared
/// for every pair of a unit and a node.
pub const LABELS_MAX: usize = 64;

/// The longest name or value of a label, and the longest name of a resource, in bytes: a host's name
/// or a device's, with room. With it a registration stays below 32 KiB.
pub const LABEL_BYTES_MAX: usize = 128;

/// The longest name or address of a node, in bytes: a DNS name (RFC 1035 allows 253) and a port.
pub const ADDRESS_BYTES_MAX: usize = 260;

/// Kinds of resources that a node offers or a unit needs: processor, memory, disk, and the devices
/// of one machine.
pub const RESOURCES_MAX: usize = 32;

/// Why a command changed nothing. The directory is as it was before, in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Void {
    /// The cluster is formed already, or not yet.
    #[error("the cluster is formed once, before everything else")]
    NotNow,
    /// There is no such incarnation, or it is not in the state that the command needs.
    #[error("the incarnation is not live, or not expelled")]
    NoIncarnation,
    /// The store is retired or belongs to another node.
    #[error("the store id was used before")]
    StoreUsed,
    /// The secret does not match the incarnation's digest.
    #[error("the death note does not prove itself")]
    NotProven,
    /// There is no such unit, node or supervisor.
    #[error("there is no such unit, node or supervisor")]
    Unknown,
    /// The claim is not the unit's present grant, or its holder is expelled (R7).
    #[error("the claim is not the unit's present grant")]
    NotOwner,
    /// The (epoch, config version) is stale (R7).
    #[error("the replica set has changed since")]
    Stale,
    /// The set would fall below `min_copies` (R6), or names a store that is not there.
    #[error("no set may fall below min_copies, nor name an unknown store")]
    BadSet,
    /// The slots, the child or the neighbours do not fit.
    #[error("the slots do not fit")]
    BadSlots,
    /// The child has a unit already.
    #[error("the child has a unit of its own already")]
    Exists,
    /// The list of voters was not made from the newest one.
    #[error("the list of voters has changed since")]
    OldVoters,
    /// A supervisor refused.
    #[error("the supervisor refused")]
    Refused,
}

impl Entry {
    /// What a lease voter must know of this entry as soon as its log holds it.
    pub fn fact(&self) -> Option<Fact> {
        match &self.command {
            Command::Form(form) => Some(Fact::Formed {
                voters: Voters::first(form.voters.iter().copied()),
                ttl: form.ttl,
            }),
            Command::Register(new) => Some(Fact::Live {
                node: new.node,
                incarnation: new.incarnation,
                death: new.death,
            }),
            Command::Expel { incarnation } => Some(Fact::Expelled(*incarnation)),
            Command::PromisesOver { incarnation } => Some(Fact::Over(*incarnation)),
            Command::DeathNote {
                incarnation,
                secret,
                ..
            } => Some(Fact::Dead {
                incarnation: *incarnation,
                secret: *secret,
            }),
            Command::SetTtl(ttl) => Some(Fact::Ttl(*ttl)),
            Command::SetVoters(voters) => Some(Fact::Voters(voters.clone())),
            _ => None,
        }
    }
}
