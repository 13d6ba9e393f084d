//! What xtask itself prints.
//!
//! Owns: the two ways out. Never fails: a reader that has gone away (`cargo xtask --help | head -1`)
//! is no reason to stop a test run half-way.

use std::io::Write as _;

/// Prints a line on standard output.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
}

/// Prints a line on standard error.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", text.trim_end());
}
