//! The simulator must notice when a rule is not kept.
//!
//! Owns: for each rule of the core, within how many seeds its absence is noticed. A rule whose absence
//! nobody notices is either not needed or not tested; both are faults. One test in a binary of its own,
//! because a switch is off for the whole process.
//!
//! ```text
//!   cargo test -p understudy-sim --features sabotage --test sabotage -- --nocapture
//! ```
#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::num::NonZeroUsize;
use std::ops::{ControlFlow, RangeInclusive};
use std::panic;

use understudy_protocol::rules::{Rule, switch_off};
use understudy_sim::batch::run_all;
use understudy_sim::run::{ASSERTION, Outcome, run};

#[test]
fn every_rule_that_is_switched_off_is_noticed() {
    // Machines that lack a rule run into their own assertions: that is a way of noticing, not a crash
    // of the test, and thousands of backtraces would hide the table.
    panic::set_hook(Box::new(|_| {}));

    switch_off(None);
    let whole = first_violation(1..=WHOLE_SEEDS);
    assert!(whole.is_none(), "with every rule kept: {whole:?}");

    let mut table = format!(
        "{:<10} {:<64} {:>12}  {}\n",
        "rule", "what it protects", "seeds", "noticed by"
    );
    let mut unnoticed = Vec::new();
    for row in &ROWS {
        let Row { rule, protects, .. } = row;
        let caught = first_notice(*rule, row.bound);
        let (seeds, by) = match &caught {
            Some(outcome) => (
                format!("{} of {}", outcome.seed, row.bound),
                notice(outcome),
            ),
            None => (format!("none of {}", row.bound), "not yet caught".into()),
        };
        let name = format!("{rule:?}");
        writeln!(table, "{name:<10} {protects:<64} {seeds:>12}  {by}").unwrap();
        eprintln!("{name:<10} {protects:<64} {seeds:>12}  {by}");
        if caught.is_none() && row.required {
            unnoticed.push(*rule);
        }
    }
    let _ = panic::take_hook();
    println!("{table}");
    assert!(
        unnoticed.is_empty(),
        "nobody noticed that these are off: {unnoticed:?}\n\n{table}"
    );
}

/// The first seed whose run is noticed to lack the rule. A seed that fails with every rule kept is no
/// notice: it is skipped here, and is the business of `a_thousand_seeds_hold_every_invariant`.
fn first_notice(rule: Rule, bound: u64) -> Option<Outcome> {
    let mut from = 1;
    loop {
        switch_off(Some(rule));
        let caught = first_violation(from..=bound);
        switch_off(None);
        let caught = caught?;
        if run(caught.seed, None).violation.is_none() {
            return Some(caught);
        }
        from = caught.seed + 1;
    }
}

fn first_violation(seeds: RangeInclusive<u64>) -> Option<Outcome> {
    let mut first = None;
    run_all(seeds, THREADS, |outcome| {
        if outcome.violation.is_none() {
            return ControlFlow::Continue(());
        }
        first = Some(outcome);
        ControlFlow::Break(())
    });
    first
}

fn notice(outcome: &Outcome) -> String {
    let (_, violation) = outcome.violation.as_ref().unwrap();
    let what: String = violation
        .what
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(90)
        .collect();
    match violation.invariant {
        ASSERTION => format!("an assertion of the core: {what}"),
        invariant => format!("{invariant}: {what}"),
    }
}

struct Row {
    rule: Rule,
    /// A rule that may still go unnoticed says so by being listed, and is not hidden.
    required: bool,
    /// Seeds within which it must be noticed.
    bound: u64,
    protects: &'static str,
}

const ROWS: [Row; 24] = [
    Row {
        rule: Rule::L2,
        required: true,
        bound: 1000,
        protects: "one lease at a time, whatever the clocks do",
    },
    Row {
        rule: Rule::L3,
        required: true,
        bound: 1000,
        protects: "a node and its voters count the same TTL",
    },
    Row {
        rule: Rule::L4,
        required: true,
        bound: 1000,
        protects: "a restarted voter remembers whom it refused",
    },
    Row {
        rule: Rule::L5,
        required: false,
        bound: 1000,
        protects: "nobody takes over before the promises are over",
    },
    Row {
        rule: Rule::L6,
        required: false,
        bound: 1000,
        protects: "a lapsed lease is not revived",
    },
    Row {
        rule: Rule::L7,
        required: false,
        bound: 1000,
        protects: "one grantee at a time",
    },
    Row {
        rule: Rule::L8,
        required: true,
        bound: 1000,
        protects: "majorities meet while the voters change",
    },
    Row {
        rule: Rule::L12,
        required: false,
        bound: 1000,
        protects: "what was released or expelled is not resumed",
    },
    Row {
        rule: Rule::R1,
        required: true,
        bound: 1000,
        protects: "an older epoch writes nothing",
    },
    Row {
        rule: Rule::R2,
        required: true,
        bound: 1000,
        protects: "acknowledged means flushed on the whole set",
    },
    Row {
        rule: Rule::R3,
        required: false,
        bound: 1000,
        protects: "only a complete replica counts",
    },
    Row {
        rule: Rule::R5,
        required: true,
        bound: 1000,
        protects: "a growing set loses nothing between old and new",
    },
    Row {
        rule: Rule::R6,
        required: true,
        bound: 1000,
        protects: "no set shrinks below min_copies",
    },
    Row {
        rule: Rule::R7,
        required: false,
        bound: 1000,
        protects: "a stale change of a set is void",
    },
    Row {
        rule: Rule::R8,
        required: true,
        bound: 1000,
        protects: "a damaged store does not pass for a torn one",
    },
    Row {
        rule: Rule::T1,
        required: true,
        bound: 1000,
        protects: "what one reader saw, no takeover un-says",
    },
    Row {
        rule: Rule::T2,
        required: false,
        bound: 1000,
        protects: "unavailable is not empty",
    },
    Row {
        rule: Rule::E1,
        required: true,
        bound: 1000,
        protects: "a reply reflects only what is acknowledged, under a lease",
    },
    Row {
        rule: Rule::E2,
        required: true,
        bound: 1000,
        protects: "a key takes effect once",
    },
    Row {
        rule: Rule::S2,
        required: true,
        bound: 1000,
        protects: "a new shard starts above every promised epoch",
    },
    Row {
        rule: Rule::S3,
        required: false,
        bound: 1000,
        protects: "a shard serves once its index is sealed",
    },
    Row {
        rule: Rule::V1,
        required: false,
        bound: 1000,
        protects: "a node's loss is no restart",
    },
    Row {
        rule: Rule::V2,
        required: true,
        bound: 1000,
        protects: "a poisonous unit is quarantined",
    },
    Row {
        rule: Rule::Intensity,
        required: true,
        bound: 1000,
        protects: "too many restarts escalate",
    },
];
const WHOLE_SEEDS: u64 = 30;
const THREADS: NonZeroUsize = NonZeroUsize::new(2).unwrap();
