//! How the scripts of clients are run: their packages, installed once below the build's folder, and Node.

#![allow(unreachable_pub)] // a test has it as a module of its own

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// Where the scripts are, and the packages that they need.
#[derive(Clone, Debug)]
pub struct Scripts {
    folder: PathBuf,
    modules: PathBuf,
}

impl Scripts {
    /// Installs the packages if they are not there. `folder` is this file's own.
    ///
    /// # Errors
    /// There is no npm, or it cannot have them: whoever gets this leaves its test out, aloud.
    pub async fn install(folder: &Path) -> io::Result<Scripts> {
        // The test's own program is below it: target/debug/deps/clients-...
        let program = std::env::current_exe()?;
        let target = program.ancestors().nth(3);
        let target = target.ok_or_else(|| io::Error::other("no folder of the build"))?;
        let dir = target.join("clients");
        std::fs::create_dir_all(&dir)?;
        let lock = std::fs::File::create(dir.join(".lock"))?;
        // Other tests, in processes of their own, want the same.
        let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock));
        let _lock = lock.await??;
        let wanted = std::fs::read(folder.join("package.json"))?;
        let scripts = Scripts {
            folder: folder.to_owned(),
            modules: dir.join("node_modules"),
        };
        let installed = dir.join("installed.json");
        if std::fs::read(&installed).is_ok_and(|there| there == wanted) {
            return Ok(scripts);
        }
        std::fs::write(dir.join("package.json"), &wanted)?;
        let install = Command::new("npm")
            .args([
                "install",
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
                "--prefix",
            ])
            .arg(&dir)
            .kill_on_drop(true)
            .output();
        let output = timeout(INSTALL_LIMIT, install).await??;
        if !output.status.success() {
            return Err(io::Error::other(text(&output)));
        }
        std::fs::write(installed, wanted)?;
        Ok(scripts)
    }

    /// One phase of a script: `at` is the session's address, `pages` that of the pages.
    pub fn command(&self, script: &str, phase: &str, at: &str, pages: &str) -> Command {
        let mut command = Command::new("node");
        command
            .arg(self.folder.join(script))
            .args([phase, at, pages])
            .env("NODE_PATH", &self.modules)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs one phase to its end; what it printed.
    ///
    /// # Errors
    /// It failed, and says at which step, or took longer than [`SCRIPT_LIMIT`].
    pub async fn run(
        &self,
        script: &str,
        phase: &str,
        at: &str,
        pages: &str,
    ) -> io::Result<String> {
        let output = self.command(script, phase, at, pages).output();
        let output = timeout(SCRIPT_LIMIT, output).await??;
        match output.status.success() {
            true => Ok(text(&output)),
            false => Err(io::Error::other(format!(
                "{script} {phase}:\n{}",
                text(&output)
            ))),
        }
    }
}

/// What it printed.
fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A script's steps take some seconds, several times that beside a build.
pub const SCRIPT_LIMIT: Duration = Duration::from_secs(120);

const INSTALL_LIMIT: Duration = Duration::from_secs(180);
