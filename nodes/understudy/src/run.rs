//! What the command line starts and does on this machine.
//!
//! Owns: the doors from the command line to a node, its certificates and its files. Never parses an
//! argument and never prints.

use std::path::Path;

use crate::cli::{Exit, Failure};

/// Runs a node until it is stopped by a signal.
pub fn node(config: &Path) -> Result<(), Failure> {
    let _ = config;
    Err(not_in_this_build("node run"))
}

/// Is the warden of the process at the other end of `fd`. Does not return while that one lives.
pub fn warden(fd: i32) -> Result<(), Failure> {
    let _ = fd;
    Err(not_in_this_build("warden"))
}

/// Makes a cluster's certificate authority in `dir`: what to say of it.
pub fn ca_init(cluster: &str, dir: &Path) -> Result<String, Failure> {
    let _ = (cluster, dir);
    Err(not_in_this_build("ca init"))
}

/// Makes a node's certificate in `out` by the authority in `dir`: what to say of it.
pub fn ca_issue(dir: &Path, name: &str, address: &str, out: &Path) -> Result<String, Failure> {
    let _ = (dir, name, address, out);
    Err(not_in_this_build("ca issue"))
}

/// Looks for damage in a stopped node's files: what was found.
pub fn store_fsck(dir: &Path, probe: bool) -> Result<String, Failure> {
    let _ = (dir, probe);
    Err(not_in_this_build("store fsck"))
}

fn not_in_this_build(command: &str) -> Failure {
    Failure::new(
        Exit::Failed,
        format!("`{command}` is not in this build yet"),
    )
}
