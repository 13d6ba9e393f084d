//! Whole clusters in one thread, from one seed.
//!
//! Owns: the simulated world (clocks, network, disks, processes, wardens, clients and the faults that
//! befall them) and the judge that checks DESIGN's invariants after every step. Never decides anything
//! of a cluster: every decision is made by the machines of `understudy-protocol`, reached only through
//! `handle`, `poll_action` and `next_deadline`. Raft is modelled ([`raft`]); a real node uses openraft.
//!
//! ```text
//!   seed ──> Scenario ──> World: queue of happenings ──> nodes (real machines) ──> Judge
//!                           ^   network, disks, clocks, faults, clients  │          │ violation:
//!                           └────────────────────────────────────────────┘          v one command to replay
//! ```

pub mod batch;
pub mod clock;
pub mod cover;
pub mod disk;
pub mod judge;
pub mod net;
pub mod node;
pub mod raft;
pub mod record;
pub mod rng;
pub mod run;
pub mod scenario;
pub mod world;
