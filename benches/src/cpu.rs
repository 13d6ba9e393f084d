//! Processor time of processes, as the kernel counts it.
//!
//! Owns: reading `/proc/PID/stat`. Its tick is 10 ms, so a round has to last long enough for some
//! hundred of them.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// What these processes have used so far, in user and kernel mode, all their threads together.
pub fn used(pids: &[u32]) -> Result<Duration> {
    pids.iter().map(|pid| used_by(*pid)).sum()
}

fn used_by(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let ticks = ticks(&text).with_context(|| format!("{path} reads {text:?}"))?;
    let a_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_secs_f64(ticks as f64 / a_second as f64))
}

/// `utime` and `stime` (proc(5)). The name in parentheses before them may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let kernel: u64 = fields.next()?.parse().ok()?;
    Some(user + kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_are_found_behind_a_name_that_looks_like_fields() {
        let stat = "7 (a) b 1) S 1 2 3 4 5 6 7 8 9 10 120 30 0 0 20 0";
        assert_eq!(ticks(stat), Some(150));
        assert_eq!(ticks("7 (a"), None);
        assert_eq!(ticks("7 (a) S 1"), None);
    }

    #[test]
    #[allow(clippy::unwrap_used)]
    fn a_process_that_works_uses_time() {
        let me = [std::process::id()];
        let before = used(&me).unwrap();
        let mut turns = 0_u64;
        while used(&me).unwrap() <= before && turns < 10_000_000 {
            turns += 1;
        }
        assert!(used(&me).unwrap() > before);
    }
}
