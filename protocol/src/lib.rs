//! Every decision of an Understudy cluster, and every type that crosses a wire or a disk.
//!
//! Owns: leases, the directory, placement, replication, supervision, the small machines of a
//! workload, and the codec. Never does: IO, reading a clock, drawing a random number. The crate is
//! `no_std`, so `Instant::now()` does not even compile here; time and randomness are arguments, and
//! one seeded simulation (`protocol/sim`) can run whole clusters through these very machines.
//!
//! Every state machine has the one shape of [`machine::Machine`]. Comments name the numbered rule
//! they keep (`L2`, `R5`, …); ARCHITECTURE.md says where each rule lives.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

#[cfg(all(feature = "sabotage", not(debug_assertions)))]
compile_error!(
    "the `sabotage` feature switches safety rules off; it exists for tests alone and must never be in an optimised, shipped build"
);

pub mod cluster;
pub mod id;
pub mod journal;
pub mod machine;
pub mod rules;
pub mod supervision;
pub mod time;
pub mod wire;
pub mod workload;
