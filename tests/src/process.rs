//! Processes of a test: spawned with a mark, signalled by id, counted afterwards.
//!
//! Owns: the mark in the environment by which everything that a run started can be found again, its
//! grandchildren too. Never signals a process that does not carry the run's mark.

use std::io;
use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

/// The variable that marks every process of a run.
pub const MARK: &str = "UNDERSTUDY_TEST_RUN";

/// A new mark.
pub fn new_mark() -> Result<String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

/// Every process that carries the mark: its id and its command line. Zombies carry none.
pub fn marked(mark: &str) -> Vec<(u32, String)> {
    let wanted = format!("{MARK}={mark}");
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ
            .split(|byte| *byte == 0)
            .any(|variable| variable == wanted.as_bytes())
    })
    .map(|pid| (pid, command_line(pid)))
    .collect()
}

/// Every process whose command line or environment names this text, or whose working folder does: its id
/// and its command line. Zombies have none of these.
pub fn naming(text: &str) -> Vec<(u32, String)> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let names = |bytes: &[u8]| {
        bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        let cwd = cwd.as_os_str().as_encoded_bytes();
        names(&read("cmdline")) || names(&read("environ")) || names(cwd)
    })
    .map(|pid| (pid, command_line(pid)))
    .collect()
}

fn command_line(pid: u32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<String> = bytes
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    words.join(" ").trim_end().to_owned()
}

/// Sends a signal to a process of ours. A process that is gone already is no error.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    let Some(id) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        anyhow::bail!("{pid} is no process id");
    };
    match kill_process(id, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(io::Error::from(error)).with_context(|| format!("signal to {pid}")),
    }
}

/// Bytes of memory that the process has resident.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Processor time that the process has used, in clock ticks of 10 ms.
pub fn cpu_ticks(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after) = text.rsplit_once(')')?;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let of = |nth: usize| fields.get(nth)?.parse::<u64>().ok();
    Some(of(11)? + of(12)?)
}

/// Whether the file can be run.
pub fn is_executable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}
