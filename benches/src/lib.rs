//! Benches, alone and side by side with peers in one run.
//!
//! Owns: the workloads, the alternation of ours and the peer's, medians with their spread, and the
//! rows that a bench writes to `target/bench/NAME.json`. `RESULTS.md` beside this crate keeps the
//! numbers that have been measured, each with its command.
//!
//! Never does: comparing numbers from two runs. Machines differ from hour to hour by more than most
//! improvements are worth.

pub mod cpu;
pub mod report;
