//! The simulator's command line.
//!
//! Owns: arguments and printing. Never decides what a run is: `scenario` does.

use std::process::ExitCode;
use std::time::Instant;

use understudy_sim::run::{VIRTUAL, run};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let seed: u64 = args
        .iter()
        .position(|a| a == "--seed")
        .and_then(|i| args.get(i + 1))
        .and_then(|s| s.parse().ok())
        .unwrap_or(1);
    let trace = args.iter().any(|a| a == "--trace");
    let seeds: u64 = args
        .iter()
        .position(|a| a == "--seeds")
        .and_then(|i| args.get(i + 1))
        .and_then(|s| s.parse().ok())
        .unwrap_or(1);
    let mut bad = 0;
    let began = Instant::now();
    for seed in seed..seed + seeds {
        let say: Option<Box<dyn FnMut(&str)>> = if trace {
            Some(Box::new(|line: &str| println!("{line}")))
        } else {
            None
        };
        let outcome = run(seed, say);
        if let Some((at, violation)) = &outcome.violation {
            bad += 1;
            println!("seed {seed} at {at:?}: {violation:?}");
        }
        if seeds == 1 {
            println!("{:?} hash {:016x}", outcome.figures, outcome.trace_hash);
        }
    }
    println!(
        "{bad} bad of {seeds} in {:?}; {:.0} x",
        began.elapsed(),
        VIRTUAL.as_secs_f64() * seeds as f64 / began.elapsed().as_secs_f64()
    );
    ExitCode::from(u8::from(bad > 0))
}
