//! The benches by name.
//!
//! Owns: the table of names and command lines. Never measures anything itself: a bench writes its
//! own rows to `target/bench/NAME.json`.

use crate::line::Line;

/// One bench.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bench {
    pub(crate) name: &'static str,
    /// What `cargo` is given, split at spaces.
    cargo: &'static str,
}

/// Every bench there is.
pub(crate) const BENCHES: [Bench; 1] = [Bench {
    name: "simulator",
    cargo: "run --release -p understudy-sim -- --bench",
}];

/// Runs `bench`.
pub(crate) fn run(bench: &Bench) -> Result<(), String> {
    Line::cargo(bench.cargo)
        .run()
        .map_err(|why| why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bench_runs_optimised() {
        for bench in &BENCHES {
            assert!(
                bench.cargo.contains(" --release "),
                "{} is not optimised",
                bench.name
            );
        }
    }
}
