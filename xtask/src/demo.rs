//! The demo: a simulated cluster that loses a node, told as it happens.
//!
//! Owns: which story is told and what is said before it. The story itself is the simulator's.

use crate::console::say;
use crate::line::Line;

/// The story that is told when no other is asked for.
pub(crate) const SEED: u64 = 1;

/// Tells the story of `seed`.
pub(crate) fn run(seed: u64) -> Result<(), String> {
    say(
        "This is the simulator: the decisions are the real ones, but network, disks and clocks are",
    );
    say("simulated. Real nodes do not exist yet.");
    say("");
    line(seed).run().map_err(|why| why.to_string())
}

fn line(seed: u64) -> Line {
    Line::cargo("run --quiet -p understudy-sim -- --story").and(&format!("--seed {seed}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_reaches_the_simulator() {
        assert_eq!(
            line(7).to_string(),
            "cargo run --quiet -p understudy-sim -- --story --seed 7"
        );
    }
}
