//! How good a node is for a unit, or why it will not do.
//!
//! Owns: the parts of a score, their weights, and the sentences that say them. Never compares more
//! than two scores: choosing is the board's.

use core::cmp::Ordering;
use core::fmt;

use super::view::{Domain, GroupId, ResourceName, Selector};
use crate::id::NodeId;

/// How much fuller, in milli-units, a node may be and still be chosen for a preferred label it has.
pub const PREFERRED_MILLI: i64 = 200;

/// The same for a complete replica: a takeover that reads its own disk is worth more than a label,
/// but not a node about to overflow.
pub const REPLICA_MILLI: i64 = 300;

/// The same for having companions there. As one label.
pub const TOGETHER_MILLI: i64 = 200;

/// What each mate in the same zone adds when a unit would rather be apart. Below a node mate's, so
/// that a zone of several nodes fills evenly first.
pub const ZONE_MATE_MILLI: i64 = 150;

/// What each mate on the same node adds when a unit would rather be apart.
pub const NODE_MATE_MILLI: i64 = 300;

/// What speaks for and against a node that may run a unit. Milli-units; 1000 is a whole node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Score {
    /// Suspected nodes come last, whatever the sum.
    pub suspected: bool,
    /// How full its reservations would be with the unit: the mean share over its resources.
    pub fill_milli: i64,
    /// Its live load without the unit.
    pub live_milli: i64,
    /// For mates the unit would rather be apart from, in the zone and on the node.
    pub mates_milli: i64,
    /// For preferred labels; counts against the sum.
    pub preferred_milli: i64,
    /// For a complete replica; counts against the sum.
    pub replica_milli: i64,
    /// For companions; counts against the sum.
    pub together_milli: i64,
}

impl Score {
    /// The sum: smaller is better.
    pub fn total_milli(&self) -> i64 {
        self.fill_milli + self.live_milli + self.mates_milli
            - self.preferred_milli
            - self.replica_milli
            - self.together_milli
    }

    /// Whether it is to be chosen before `other`; equal ones are not.
    pub fn beats(&self, other: &Score) -> bool {
        self.order(other) == Ordering::Less
    }

    /// How much better `other` is for a unit that is here, both sums without the bonus for a replica:
    /// the owner always has one, and a move makes one where it goes.
    pub fn gain_milli(&self, other: &Score) -> i64 {
        self.total_milli() + self.replica_milli - other.total_milli() - other.replica_milli
    }

    fn order(&self, other: &Score) -> Ordering {
        self.suspected
            .cmp(&other.suspected)
            .then(self.total_milli().cmp(&other.total_milli()))
    }
}

/// Why a unit is not on a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the fields are what the sentences below name
pub enum WhyNot {
    /// Witnesses run no units.
    Witness,
    /// The node's units are on their way out.
    Draining,
    /// The unit is quarantined: no node will do.
    Quarantined,
    /// The unit is pinned to another node.
    PinnedElsewhere { to: NodeId },
    /// A required label is missing.
    LacksLabel { label: Selector },
    /// Not enough of a resource is left (`free` of it, in its own unit).
    Full {
        resource: ResourceName,
        needed: u64,
        free: u64,
    },
    /// A mate that it must be apart from is in the same domain.
    Crowded { group: GroupId, by: Domain },
    /// Membership gossip doubts it, and there is another.
    Suspected { score: Score },
    /// Another is better by so much; 0 means as good, and later in order.
    Outscored { score: Score, by_milli: i64 },
    /// It would be better, but not so that a running unit is moved.
    NotWorthAMove { score: Score, gain_milli: i64 },
    /// It would do, but the unit is not moved now.
    NotNow { score: Score },
    /// It would do, but the emptiest of its kind were looked at first.
    NotLookedAt { score: Score },
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WhyNot::Witness => f.write_str("is a witness, which runs no units"),
            WhyNot::Draining => f.write_str("is draining"),
            WhyNot::Quarantined => f.write_str("may not have it: the unit is quarantined"),
            WhyNot::PinnedElsewhere { to } => {
                write!(f, "may not have it: the unit is pinned to {to}")
            }
            WhyNot::LacksLabel { label } => write!(f, "lacks the required label {label}"),
            WhyNot::Full {
                resource,
                needed,
                free,
            } => {
                write!(f, "is full: {resource} needs {needed}, {free} free")
            }
            WhyNot::Crowded { group, by } => {
                write!(
                    f,
                    "has a mate of {group} in the same {by}, from which the unit must be apart"
                )
            }
            WhyNot::Suspected { score } => {
                write!(f, "is suspected, which makes it the last choice ({score})")
            }
            WhyNot::Outscored { score, by_milli: 0 } => {
                write!(
                    f,
                    "is as good as the chosen one, which comes first in order ({score})"
                )
            }
            WhyNot::Outscored { score, by_milli } => {
                write!(f, "is worse than the chosen one by {by_milli} ({score})")
            }
            WhyNot::NotWorthAMove { score, gain_milli } => {
                write!(
                    f,
                    "is better by {gain_milli}, which is no reason to move a running unit ({score})"
                )
            }
            WhyNot::NotNow { score } => {
                write!(f, "would do, but the unit is not moved now ({score})")
            }
            WhyNot::NotLookedAt { score } => {
                write!(
                    f,
                    "would do, but emptier nodes of its kind were looked at first ({score})"
                )
            }
        }
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "score {}: fill {}, live {}",
            self.total_milli(),
            self.fill_milli,
            self.live_milli
        )?;
        let parts = [
            ("mates", self.mates_milli),
            ("preferred labels", -self.preferred_milli),
            ("complete replica", -self.replica_milli),
            ("companions", -self.together_milli),
        ];
        for (name, milli) in parts.into_iter().filter(|(_, milli)| *milli != 0) {
            write!(f, ", {name} {milli}")?;
        }
        if self.suspected {
            f.write_str(", suspected")
        } else {
            Ok(())
        }
    }
}
