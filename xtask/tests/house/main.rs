//! The house rules that a machine can judge.
//!
//! Owns: reading ARCHITECTURE.md, the manifests and the sources, and failing with the name of what
//! breaks a rule. Each rule is a pure function from text to faults, and beside each stands a test
//! that shows it a bad sample: a check that cannot fail is no check.

#![allow(clippy::unwrap_used)] // a missing file or a failing cargo is a failing test

mod layout;
mod manifests;
mod sabotage;
mod sources;

use std::path::PathBuf;
use std::process::Command;

/// The workspace that runs the test: asked at run time, because clones may share a target folder.
fn root() -> PathBuf {
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo and nextest set it");
    PathBuf::from(xtask).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// What `cargo` prints for `args`, which are split at spaces. It may fetch a crate that was never
/// built here (a fresh clone), but never another version than the lock file's.
fn cargo(args: &str) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(args.split_whitespace())
        .arg("--locked")
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "cargo {args} failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Fails with all faults at once, so that one run shows the whole list.
#[track_caller]
fn assert_no_faults(faults: Vec<String>) {
    assert!(faults.is_empty(), "\n  {}\n", faults.join("\n  "));
}
