//! What the directory holds of each thing.
//!
//! Owns: the entries' shape. Never changes one: `apply` does.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;

use minicbor::{Decode, Encode};

use super::command::Needs;
use crate::cluster::lease::Ended;
use crate::id::{
    ConfigVersion, Epoch, IncarnationId, LogId, NodeId, StoreId, SupervisorId, UnitId,
};
use crate::supervision::Supervisor;
use crate::time::ClusterTime;
use crate::wire::heart::DeathDigest;
use crate::wire::replica::Scope;

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct NodeEntry {
    /// Its newest start, while that is live.
    #[n(0)]
    pub incarnation: Option<IncarnationId>,
    /// The store it opened last.
    #[n(1)]
    pub store: StoreId,
    /// Whether its store should vote.
    #[n(2)]
    pub votes: bool,
    /// Whether it runs units.
    #[n(3)]
    pub works: bool,
    /// Labels, such as `zone`.
    #[n(4)]
    pub labels: BTreeMap<String, String>,
    /// What it offers, in each resource's own unit.
    #[n(5)]
    pub capacity: BTreeMap<String, u64>,
    /// Its units are to go elsewhere.
    #[n(6)]
    pub draining: bool,
    /// What people call it.
    #[n(7)]
    pub name: String,
    /// Where its peers reach it, as `host:port`; its heart listens on the next port.
    #[n(8)]
    pub address: String,
    /// Its last starts that are over: none of them is made live again by a registration that comes late
    /// or twice.
    #[n(9)]
    pub ended: Ended,
}

/// One start of a node, until its promises are over.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct IncarnationEntry {
    /// Of which node.
    #[n(0)]
    pub node: NodeId,
    /// What a death note must match (L10).
    #[n(1)]
    pub death: DeathDigest,
    /// The entry that made it live.
    #[n(2)]
    pub registered: LogId,
    /// The entry that expelled it (L4).
    #[n(3)]
    pub expelled: Option<LogId>,
}

/// A store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct StoreEntry {
    /// Of which node.
    #[n(0)]
    pub node: NodeId,
    /// Its node came back with another one; it is never used again.
    #[n(1)]
    pub retired: bool,
}

/// A unit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct UnitEntry {
    /// Whose records it owns.
    #[n(0)]
    pub scope: Scope,
    /// Who decides its restarts.
    #[n(1)]
    pub supervisor: SupervisorId,
    /// What it needs of a node.
    #[n(2)]
    pub needs: Needs,
    /// How often it has been granted.
    #[n(3)]
    pub epoch: Epoch,
    /// How often its set has changed.
    #[n(4)]
    pub config: ConfigVersion,
    /// The stores that hold every record of it.
    #[n(5)]
    pub set: BTreeSet<StoreId>,
    /// Who holds its last grant, serving or not, until released or over (L7).
    #[n(6)]
    pub owner: Option<Owner>,
    /// What its supervisor wants.
    #[n(7)]
    pub run: Run,
    /// Where it is to move.
    #[n(8)]
    pub move_to: Option<NodeId>,
    /// When it last arrived by a move.
    #[n(9)]
    pub last_moved: Option<ClusterTime>,
}

/// Who holds a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Owner {
    /// Which node.
    #[n(0)]
    pub node: NodeId,
    /// Which start of it.
    #[n(1)]
    pub incarnation: IncarnationId,
    /// The entry of the grant.
    #[n(2)]
    pub granted: LogId,
    /// The takeover is complete.
    #[n(3)]
    pub serving: bool,
}

/// What a unit's supervisor wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Run {
    /// It should run.
    #[n(0)]
    Wanted,
    /// Its owner is to stop it and say that it exited.
    #[n(1)]
    Stopping,
    /// It stays down until its supervisor starts it: after a backoff, with its group, or, from
    /// quarantine, when an operator pardons it.
    #[n(2)]
    Down,
}

/// A supervisor in the tree.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct SupervisorEntry {
    /// Under which; none for the root.
    #[n(0)]
    pub parent: Option<SupervisorId>,
    /// Its children, their restarts and its own.
    #[n(1)]
    pub supervisor: Supervisor<Member>,
}

/// What a supervisor of the tree may supervise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[allow(missing_docs)] // each variant is the id it carries
pub enum Member {
    #[n(0)]
    Unit(#[n(0)] UnitId),
    #[n(1)]
    Supervisor(#[n(0)] SupervisorId),
}

impl UnitEntry {
    /// Whether it should be granted to someone now.
    pub fn wants_owner(&self) -> bool {
        self.owner.is_none() && self.run == Run::Wanted
    }
}
