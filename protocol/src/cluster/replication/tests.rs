//! Replication, tested: one store alone, one owner with stores, and owners in random trouble.
#![allow(clippy::unwrap_used)]

mod harness;
mod owner;
mod random;
mod replica;
