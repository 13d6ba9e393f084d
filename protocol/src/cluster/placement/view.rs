//! What placement is told: plain values, translated from the directory and from gossip.
//!
//! Owns: the types of a plan's input. Never checks a name's length or a label's spelling: whoever
//! parsed the configuration or the gossip message did.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use crate::id::{NodeId, StoreId, UnitId};
use crate::time::ClusterTime;

/// The label that names a node's zone. Nodes without it share one unnamed zone: nothing is known to
/// keep them apart.
pub const ZONE_LABEL: &str = "zone";

/// The units that should run, and what each needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Desired {
    /// Every unit that should run.
    pub units: BTreeMap<UnitId, UnitWanted>,
}

/// What one unit asks of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct UnitWanted {
    /// Labels and resources. Like units should share one `Arc`.
    pub needs: Arc<Needs>,
    /// Only this node will do.
    pub pin: Option<NodeId>,
    /// Must not be placed (rule V2: three strikes).
    pub quarantined: bool,
    /// Units to be apart from. Few: each is looked up whenever the unit is judged.
    pub apart: Vec<Apart>,
    /// Units to be beside if that costs little, such as the group of a `one_for_all` supervisor.
    pub together: Option<GroupId>,
}

/// Labels and resources that a unit needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Needs {
    /// A node without one of these never runs the unit.
    pub required: BTreeSet<Selector>,
    /// Each of these that a node has makes it better by [`PREFERRED_MILLI`](super::PREFERRED_MILLI).
    pub preferred: BTreeSet<Selector>,
    /// What is reserved on the node, in the resource's own unit (bytes, sessions, …).
    pub resources: BTreeMap<ResourceName, u64>,
}

/// Asks for a label: any value of it, or one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// The label's key.
    pub key: LabelKey,
    /// The value it must have; `None` takes any.
    pub value: Option<LabelValue>,
}

/// Keeps the units of a group out of each other's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Apart {
    /// Every unit that names this group is a mate.
    pub group: GroupId,
    /// What mates should not share.
    pub by: Domain,
    /// Whether sharing is forbidden, or only worse with each mate (a spread). One strict mate makes
    /// sharing with it forbidden to all.
    pub strict: bool,
}

/// A number that units of one group share, such as their supervisor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u64);

/// What fails as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Domain {
    /// One node.
    Node,
    /// All nodes with one value of [`ZONE_LABEL`].
    Zone,
}

/// What is there: the nodes that hold a lease, and who runs what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Observed {
    /// The directory's time.
    pub now: ClusterTime,
    /// Every node that may be granted units or runs some. An expelled node is not among them.
    pub nodes: BTreeMap<NodeId, NodeView>,
    /// Every unit that was ever granted.
    pub units: BTreeMap<UnitId, UnitView>,
}

/// One node, as the directory and its gossip show it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodeView {
    /// What it is for.
    pub role: Role,
    /// Its labels, declared (`zone`) and found out (`gpu`, `browser`).
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// What it offers in all, in each resource's own unit. A resource it does not name it has none of.
    pub capacity: BTreeMap<ResourceName, u64>,
    /// How busy it says it is: 0 idle, 1000 as busy as it should ever be. May pass 1000.
    pub live_milli: u32,
    /// Its units are to go elsewhere.
    pub draining: bool,
    /// Membership gossip doubts it. A hint: last choice, never a reason to move.
    pub suspected: bool,
    /// The store it opened, if it stores.
    pub store: Option<StoreId>,
}

/// What a node is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Runs units.
    #[default]
    Worker,
    /// Votes, and runs no units.
    Witness,
}

/// One unit, as the directory shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct UnitView {
    /// Who holds its last grant, serving or not, until released or expelled (rule L7).
    pub owner: Option<NodeId>,
    /// Where it is on its way to, when a move has begun.
    pub moving_to: Option<NodeId>,
    /// When it last arrived by a move; a grant after a loss is none.
    pub last_moved: Option<ClusterTime>,
    /// What it adds to its owner's live load, as measured there. This is what keeps a plan from
    /// chasing a unit's own load round the cluster.
    pub live_milli: u32,
    /// The stores that hold a complete replica of it (rule R3).
    pub complete: Vec<StoreId>,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> $name {
                $name(Arc::from(text))
            }
        }

        impl core::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A label's key: `zone`, `gpu`, …
    LabelKey
);
name!(
    /// A label's value.
    LabelValue
);
name!(
    /// Something a node has so much of, its unit in its name: `memory_bytes`, `sessions`, …
    ResourceName
);

impl Selector {
    /// Any value of `key`.
    pub fn has(key: &str) -> Selector {
        Selector {
            key: key.into(),
            value: None,
        }
    }

    /// `value` of `key`.
    pub fn is(key: &str, value: &str) -> Selector {
        Selector {
            key: key.into(),
            value: Some(value.into()),
        }
    }

    /// Whether `node` has it.
    pub fn takes(&self, node: &NodeView) -> bool {
        match (node.labels.get(&self.key), &self.value) {
            (Some(has), Some(wanted)) => has == wanted,
            (has, None) => has.is_some(),
            (None, Some(_)) => false,
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}={value}", self.key),
            None => write!(f, "{}", self.key),
        }
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group-{:x}", self.0)
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Domain::Node => "node",
            Domain::Zone => "zone",
        })
    }
}
