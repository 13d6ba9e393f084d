//! End-to-end tests: real processes, real faults, and a ledger of what callers were told.
//!
//! Owns: the table of faults ([`table::TABLE`]) and one test a row. Run one at a time (`cargo xtask
//! test --stage e2e`): each has three nodes, and two cores carry no more.
#![allow(clippy::unwrap_used)]

mod control;
mod dev;
mod disks;
mod faults;
mod input;
mod large;
mod links;
mod remembered;
mod sandbox;
mod session;
mod story;
mod table;

use std::path::Path;

/// The binary under test.
fn exe() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_understudy"))
}
