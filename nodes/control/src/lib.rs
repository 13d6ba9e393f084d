//! The control plane of one node: drivers around machines that decide elsewhere.
//!
//! Owns: the Raft and membership drivers, the thread that renews leases and answers renewals, and
//! the node agent that starts and stops children as granted.
//!
//! Never does: choosing. What to grant, whom to expel and where a unit goes are decisions of
//! `understudy-protocol`, taken from applied state alone, so that every one of them can be replayed.
//! Membership gossip only steers placement; it never ends a lease.

pub mod agents;
pub mod contents;
pub mod core;
pub mod events;
pub mod handle;
pub mod heart;
pub mod journal;
pub mod listing;
pub mod raft;
mod realtime;
pub mod tunnels;
pub mod wakeups;
