//! One seed, from beginning to end.
//!
//! Owns: what a run came to, and how it is reported. Never prints: the binary does.

use std::time::Duration;

use crate::cover::Coverage;
use crate::judge::Violation;
use crate::scenario::Scenario;
use crate::world::{Figures, World};

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// The first violation, and when.
    pub violation: Option<(Duration, Violation)>,
    /// Hash over everything that happened: equal for equal seeds.
    pub trace_hash: u64,
    /// Rare paths taken.
    pub coverage: Coverage,
    /// What was counted.
    pub figures: Figures,
}

impl Outcome {
    /// The one command that replays it.
    pub fn command(&self) -> String {
        format!(
            "cargo run -p understudy-sim -- --seed {} --trace",
            self.seed
        )
    }
}

/// How long a run is, in virtual time.
pub const VIRTUAL: Duration = Duration::from_secs(120);

/// Runs one seed; `say` is told every step, when there is one.
pub fn run(seed: u64, say: Option<Box<dyn FnMut(&str)>>) -> Outcome {
    run_scenario(Scenario::new(seed), say)
}

/// Runs one scenario.
pub fn run_scenario(scenario: Scenario, say: Option<Box<dyn FnMut(&str)>>) -> Outcome {
    let seed = scenario.seed;
    let mut world = World::new(scenario, say);
    world.run();
    let at = world.now();
    Outcome {
        seed,
        violation: world
            .judge
            .violation
            .take()
            .map(|violation| (at, violation)),
        trace_hash: world.trace_hash(),
        coverage: world.judge.coverage.clone(),
        figures: world.figures(),
    }
}
