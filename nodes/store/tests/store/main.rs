//! The store on real files, in real processes that are really killed.
#![allow(clippy::unwrap_used)]

mod conformance;
mod damage;
mod full_disk;
mod kills;
mod named_chunks;
mod raft_log;
mod replica_thread;
mod support;
