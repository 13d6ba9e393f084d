//! One seed, from beginning to end.
//!
//! Owns: what a run came to, and how it is reported. Never prints: the binary does.

use std::panic::{AssertUnwindSafe, catch_unwind};
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

/// Somebody who is told every step of a run, a line each.
pub type Say = Box<dyn FnMut(&str)>;

/// How long a run is, in virtual time.
pub const VIRTUAL: Duration = Duration::from_secs(120);

/// The invariant of a machine that panicked.
pub const ASSERTION: &str = "assertion";

/// Runs one seed; `say` is told every step, when there is one.
pub fn run(seed: u64, say: Option<Say>) -> Outcome {
    run_scenario(Scenario::new(seed), say)
}

/// Runs one scenario. A machine that panics is a violation like any other: an assertion of the core
/// did not hold, and the seed replays it.
pub fn run_scenario(scenario: Scenario, say: Option<Say>) -> Outcome {
    let seed = scenario.seed;
    let mut world = World::new(scenario, say);
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    if let Err(panic) = ended {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        let what = text.unwrap_or("a panic without words").into();
        world.judge.fail(ASSERTION, what);
    }
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
