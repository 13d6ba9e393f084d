//! Whole clusters hold every invariant, and the rare paths are really taken.
//!
//! Owns: how many seeds, and that the same seed is the same run. What a run is and what is checked in
//! it belong to the simulator.
//!
//! ```text
//!   cargo test -p understudy-sim --test seeds -- --nocapture       a thousand seeds
//!   UNDERSTUDY_LONG=1 cargo test -p understudy-sim --test seeds    a hundred thousand
//! ```
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::thread;
use std::time::Instant;

use understudy_sim::batch::{run_all, threads};
use understudy_sim::cover::Coverage;
use understudy_sim::run::run;

#[test]
fn a_thousand_seeds_hold_every_invariant() {
    let long = std::env::var("UNDERSTUDY_LONG").is_ok_and(|value| value == "1");
    let seeds = if long { LONG_SEEDS } else { SEEDS };
    let began = Instant::now();
    let mut coverage = Coverage::default();
    let mut failed = Vec::new();
    run_all(1..=seeds, threads(), |outcome| {
        coverage.add_run(&outcome.coverage);
        if let Some((_, violation)) = &outcome.violation {
            let line = format!(
                "{}: {}\n  {}",
                violation.invariant,
                violation.what,
                outcome.command()
            );
            eprintln!("seed {} does not hold {line}", outcome.seed);
            failed.push(line);
        }
        if outcome.seed.is_multiple_of(PROGRESS_EVERY) && outcome.seed < seeds {
            let rest = seeds - outcome.seed;
            eprintln!(
                "{} of {seeds} seeds, {} failed, {:.0} s; the rest alone: \
                 cargo run -p understudy-sim -- --seeds {rest} --from {}",
                outcome.seed,
                failed.len(),
                began.elapsed().as_secs_f64(),
                outcome.seed + 1
            );
        }
        if failed.len() < FAILURES_MAX {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    let table = coverage.table(seeds);
    println!("{table}");
    assert!(
        failed.is_empty(),
        "seeds that do not hold:\n{}",
        failed.join("\n")
    );
    let untaken = coverage.untaken();
    assert!(
        untaken.is_empty(),
        "paths that no seed took: {untaken:?}\n{table}"
    );
}

/// Each of these found a fault of the core or of the simulator, which was mended.
#[test]
fn seeds_that_once_failed_hold() {
    for seed in [
        17, 27, 62, 264, 311, 382, 500, 780, 986, 1142, 2261, 2419, 2598, 2777, 3087,
    ] {
        let outcome = run(seed, None);
        assert_eq!(outcome.violation, None, "seed {seed}");
    }
}

#[test]
fn same_seed_same_hash() {
    for seed in [1, 2, 3, 0xdead_beef] {
        let first = run(seed, None);
        let again = thread::spawn(move || run(seed, None)).join().unwrap();
        assert_eq!(first.trace_hash, again.trace_hash, "seed {seed:#x}");
        assert_eq!(first.figures, again.figures, "seed {seed:#x}");
        assert_eq!(first.coverage, again.coverage, "seed {seed:#x}");
    }
    assert_ne!(run(1, None).trace_hash, run(2, None).trace_hash);
}

#[test]
fn a_listener_changes_nothing() {
    let lines = Rc::new(RefCell::new(0));
    let heard = lines.clone();
    let listened = run(5, Some(Box::new(move |_| *heard.borrow_mut() += 1)));
    assert_eq!(listened.trace_hash, run(5, None).trace_hash);
    assert!(
        *lines.borrow() > 100,
        "a run has more than {} steps to tell",
        lines.borrow()
    );
}

/// About a minute on two cores: what a normal run of the tests can bear.
const SEEDS: u64 = 1_000;

/// An hour or two.
const LONG_SEEDS: u64 = 100_000;

/// A line a few minutes.
const PROGRESS_EVERY: u64 = 2_500;

/// After so many failures the rest would say nothing new.
const FAILURES_MAX: usize = 20;
