//! Bad input from outside: configurations, certificates, frames.
//!
//! Owns: one test a kind of input. A node refuses each with a clear word and goes on.

use std::process::Command;

use anyhow::Result;
use understudy_tests::cluster::{Cluster, Options};

use crate::exe;

#[tokio::test(flavor = "multi_thread")]
async fn a_misspelt_key_is_answered_with_the_one_that_was_meant() -> Result<()> {
    let options = Options {
        nodes: 1,
        config: "[store]\non_damge = \"rebuild\"\n".into(),
        ..Options::default()
    };
    let cluster = Cluster::prepare(exe(), options).await?;
    let run = Command::new(exe())
        .args(["node", "run", "--config"])
        .arg(cluster.config_file(0))
        .output()?;
    let said = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(2), "{said}");
    assert!(
        said.contains("on_damge") && said.contains("on_damage"),
        "{said}"
    );
    Ok(())
}
