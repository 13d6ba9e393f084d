//! Who may run what: leases, the directory, placement, replication.
//!
//! Owns: the rules of ARCHITECTURE.md's rule table but for supervision. Never carries anything out.
//!
//! ```text
//!            renewals, promises                 entries (Raft)
//!   LeaseHolder <──────> LeaseVoter   Controller ───────────> Directory
//!        │ valid until        │ reports    ^  proposals           │ changed units
//!        v                    └────────────┘                      v
//!   Warden (kills)              Caller <── calls ──> Agent: one Owner a unit ──> Replica (stores)
//! ```

pub mod agent;
pub mod caller;
pub mod calls;
pub mod controller;
pub mod directory;
pub mod lease;
pub mod placement;
pub mod replication;
pub mod voters;
