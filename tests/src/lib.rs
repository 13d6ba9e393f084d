//! The harness of the end-to-end tests, the demo and the benches: real processes, real kills, and a
//! ledger of what callers were told.
//!
//! Owns: starting a cluster of `understudy` processes on loopback, faults, callers with idempotency
//! keys, and the judgement from outside. Never reaches into a node's insides: it sees what a user sees,
//! the command line, the HTTP surface and the process table. Ends only what it started, by process id.

pub mod callers;
pub mod cdp;
#[path = "../clients/node.rs"]
pub mod clients;
pub mod cluster;
pub mod disk;
pub mod guests;
pub mod http;
#[path = "../clients/pages.rs"]
pub mod pages;
pub mod ports;
pub mod process;
pub mod relay;
pub mod shop;
pub mod stranger;
