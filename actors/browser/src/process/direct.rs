//! Processes started from this one: for tests, benches and programs without a warden.
//!
//! Owns: the process and its folder. When this process is killed, the pipe's end ends the browser, but
//! nobody removes the folder: nodes have a warden for that.

use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::process::{Pid, Signal, kill_process_group};

use super::{LaunchSpec, Launched, Launcher, Launching};

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Direct;

struct Process {
    child: Child,
    dir: PathBuf,
}

impl Launcher for Direct {
    fn launch(&self, spec: LaunchSpec) -> Launching<'_> {
        let started = start(spec);
        Box::pin(async move { started.map(|process| Box::new(process) as Box<dyn Launched>) })
    }
}

fn start(spec: LaunchSpec) -> io::Result<Process> {
    use std::os::unix::process::CommandExt as _;
    let mut command = Command::new(&spec.program);
    command
        .args(&spec.args)
        .env_clear()
        .envs(spec.env)
        .current_dir(&spec.dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    if let Some((uid, gid)) = spec.user {
        command.uid(uid).gid(gid);
    }
    let at = |(child_fd, parent_fd)| FdMapping {
        parent_fd,
        child_fd,
    };
    let mappings = (3..).zip(spec.pipe).map(at).collect();
    command.fd_mappings(mappings).map_err(io::Error::other)?;
    let child = command.spawn()?;
    Ok(Process {
        child,
        dir: spec.dir,
    })
}

impl Launched for Process {
    fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The group is the process's own; one that has ended already is not there to be killed.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
        // A folder is not empty for as long as one of its helpers still writes.
        for _ in 0..REMOVALS_MAX {
            if std::fs::remove_dir_all(&self.dir).is_ok() || !self.dir.exists() {
                return;
            }
            std::thread::yield_now();
        }
    }
}

/// How often the folder's removal is tried.
const REMOVALS_MAX: usize = 1000;
