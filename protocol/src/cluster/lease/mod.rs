//! Leases: the right of one start of a node to run its units.
//!
//! Owns: the holder's side, the voter's side and the warden (rules L1-L4, L6, L9-L11). What the
//! leader makes of reports and sightings is the controller's; the list of voters is the directory's.
//! Never touches Raft, a disk (but for one number, rule L3) or the main runtime: a lease must
//! outlive the loss of any of them by others.
//!
//! ```text
//!   node's heart                         voters' hearts (a majority of them, rule L1)
//!   LeaseHolder ── Renewal{round, ttl} ──> LeaseVoter
//!       ^  until = sent + ttl·98 % − kill      │  until = received + ttl
//!       └──────────── Promise{round} ──────────┘
//!       │ Valid{until}                         │ Report, Sighting ──> leader
//!       v
//!     Warden: kills every helper at `until`, also when the node is stopped (L10)
//! ```
//!
//! The holder's count ends before any voter's in the majority, whatever the delay of the answer:
//! it starts earlier (at the sending) and runs 2 % shorter, twice the drift either clock may have.

mod ended;
pub mod holder;
pub mod voter;
pub mod warden;

pub use ended::{ENDED_MAX, Ended};
pub use holder::LeaseHolder;
pub use voter::LeaseVoter;
pub use warden::Warden;
