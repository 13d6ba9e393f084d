//! The simulator.

pub mod raft;
