//! Replication: what it takes for a record to be acknowledged, and for the next owner to find it.
//!
//! Owns: the owner's side (rules R2-R6, R8, T1, T2, S2, S3) and the store's side (R1, R3, R8).
//! Never relies on a clock for safety: an owner that does not know yet that it was replaced is
//! refused by every store that the new owner has sealed.
//!
//! ```text
//!   Owner (one a unit)                       Replica (one a store)
//!     Seal{epoch} ─────────────────────────>  promise flushed
//!     <───────────────── Sealed{heads, cut}
//!     longest log; Append{tail} to the set ─>  flushed
//!     <───────────────────────────  Appended      … then it serves
//!     Append{record} ──────────────────────>  flushed
//!     <───────────────────────────  Appended      all of the set: acknowledged (R2)
//! ```
//!
//! Two facts carry the safety argument. In the unit's replica set every log is a prefix of the
//! longest (an owner writes only after the whole set agrees with it, T1), so any complete member
//! suffices to go on. And a member leaves or joins only by a committed entry that names the epoch and
//! the version it was made from (R6, R7), while acknowledgements need both the old and the proposed
//! set until the outcome is known (R5).

mod owner;
mod replica;
mod slots;

pub use owner::{
    Action as OwnerAction, Event as OwnerEvent, Leaving, Owner, OwnerConfig, Phase,
    Refused as OwnerRefused, UnitView,
};
pub use replica::{
    Action as ReplicaAction, CutMark, Event as ReplicaEvent, Opened, OpenedChain,
    Refused as ReplicaRefused, Replica, Write,
};
pub use slots::SlotMap;
