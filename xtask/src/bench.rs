//! The benches by name.
//!
//! Owns: the table of names and command lines. Never measures anything itself: a bench writes its
//! own rows to `target/bench/NAME.json`.

use crate::console::say;
use crate::line::Line;
use crate::needs::{self, Task};

/// One bench.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bench {
    pub(crate) name: &'static str,
    /// What `cargo` is given, line after line, split at spaces: what the bench runs is built before
    /// the bench.
    cargo: &'static [&'static str],
    /// Whether there are peers to install. Without them it still runs, and says so.
    has_peers: bool,
}

/// Every bench there is.
pub(crate) const BENCHES: [Bench; 5] = [
    Bench {
        name: "simulator",
        cargo: &["run --release -p understudy-sim -- --bench"],
        has_peers: false,
    },
    Bench {
        name: "failover",
        cargo: &[
            "build --release -p understudy",
            "run --release -p understudy-benches --bin bench-failover",
        ],
        has_peers: false,
    },
    Bench {
        name: "messaging",
        cargo: &["run --release -p understudy-benches --bin bench-messaging"],
        has_peers: true,
    },
    Bench {
        name: "checkpoint",
        cargo: &["run --release -p understudy-benches --bin bench-checkpoint"],
        has_peers: false,
    },
    Bench {
        name: "sandbox",
        cargo: &["run --release -p understudy-benches --bin bench-sandbox"],
        has_peers: false,
    },
];

/// Runs `bench`.
pub(crate) fn run(bench: &Bench, yes: bool) -> Result<(), String> {
    if bench.has_peers
        && let Err(why) = needs::ensure(Task::Peers, yes)
    {
        say(&format!("Going on without a peer: {why}."));
    }
    bench
        .cargo
        .iter()
        .try_for_each(|line| Line::cargo(line).run())
        .map_err(|why| why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bench_runs_optimised() {
        for bench in &BENCHES {
            assert!(!bench.cargo.is_empty(), "{} runs nothing", bench.name);
            for line in bench.cargo {
                assert!(line.contains(" --release "), "{} runs `{line}`", bench.name);
            }
        }
    }
}
