//! Where units go, and why there.
//!
//! Owns: the answer to "which node should run this unit, and which store should keep it". Never
//! does: grant, move or expel anything, remember anything between two calls, or ask whether a node
//! is alive. It is a function of what is wanted and what is seen, so that the leader may call it as
//! often as it likes, any node may call it to explain the leader, and a test needs no cluster.
//!
//! ```text
//!   Desired (what units need) ──┐              ┌─> grants   every ownerless unit that fits, one batch
//!                               ├──> plan() ───┼─> moves    at most MOVES_MAX, each with its reason
//!   Observed (who runs what) ───┘              └─> unplaced who fits nowhere, and why
//! ```
//!
//! **What must hold** is never traded for load: a witness runs no units, a draining node takes none,
//! required labels, capacity, a pin, strict separation, quarantine. **What is better** is a sum in
//! milli-units, smaller first: how full the node's reservations are (the mean share over its
//! resources), its live load, mates that the unit would rather be apart from, less a bonus for each
//! preferred label, for a complete replica of the unit (its takeover reads a local disk) and for
//! companions. A suspected node comes after every other, whatever its sum; suspicion is a hint, so
//! nothing that runs there is moved for it.
//!
//! **An owned unit stays**, unless its node drains, a rule that must hold is broken, or another node
//! is better by more than [`IMBALANCE_MILLI`]. Both sums are taken with the unit lifted off the
//! board, so the way back would have to gain the same amount again: two plans cannot play
//! ping-pong. A unit that moved is left alone for [`COOL_DOWN`], unless its node drains, and one on its
//! way counts against [`MOVES_MAX`] and is reserved for at both ends.
//!
//! **A unit whose owner is not seen stays with its owner**: ownership ends by release or expulsion
//! alone (rule L7), which the directory reports as having no owner.
//!
//! **Scale.** Nodes that no unit could tell apart but by load (same asked-for labels, zone and size)
//! are one *kind*, kept in order of load; units with the same needs are one *class*. A choice looks
//! at the emptiest of each kind that suits the class, so a unit costs about as many looks as there
//! are kinds, not nodes. Share the [`Needs`] of like units behind one `Arc` to make a class cheap to
//! recognise.

mod board;
mod choice;
mod explain;
mod layout;
mod planner;
mod replicas;
mod score;
mod view;

#[cfg(test)]
mod tests;

pub use choice::LOOKS_MAX;
pub use explain::{Explanation, Place, Stay, Verdict, explain};
pub use planner::{
    COOL_DOWN, Grant, IMBALANCE_MILLI, MOVES_MAX, Move, MoveReason, Plan, WhyUnplaced, plan,
};
pub use replicas::{REPLICAS, STORE_FULL_MILLI, StoreView, choose_replicas};
pub use score::{
    NODE_MATE_MILLI, PREFERRED_MILLI, REPLICA_MILLI, Score, TOGETHER_MILLI, WhyNot, ZONE_MATE_MILLI,
};
pub use view::{
    Apart, Desired, Domain, GroupId, LabelKey, LabelValue, Needs, NodeView, Observed, ResourceName,
    Role, Selector, UnitView, UnitWanted, ZONE_LABEL,
};
