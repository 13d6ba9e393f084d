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
    // The everyday run leaves out what may go unnoticed; the long one counts from the first seed.
    let long = std::env::var("UNDERSTUDY_LONG").is_ok_and(|value| value == "1");
    for row in ROWS
        .iter()
        .filter(|row| row.required || row.rare.is_none() || long)
    {
        let Row { rule, protects, .. } = row;
        let near = if long { 1 } else { row.near };
        let caught = first_notice(*rule, near, row.bound());
        let (seeds, by) = match &caught {
            Some(outcome) => (
                format!("{} of {}", outcome.seed, row.bound()),
                notice(outcome),
            ),
            None => (format!("none of {}", row.bound()), "not yet caught".into()),
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

/// The first seed, from `near` on and then from 1, whose run is noticed to lack the rule. A seed that
/// fails with every rule kept is no notice: it is skipped here, and is the business of
/// `a_thousand_seeds_hold_every_invariant`.
fn first_notice(rule: Rule, near: u64, bound: u64) -> Option<Outcome> {
    [near..=bound, 1..=near.saturating_sub(1)]
        .into_iter()
        .find_map(|seeds| {
            let (mut from, to) = seeds.into_inner();
            while from <= to {
                switch_off(Some(rule));
                let caught = first_violation(from..=to);
                switch_off(None);
                let caught = caught?;
                if run(caught.seed, None).violation.is_none() {
                    return Some(caught);
                }
                from = caught.seed + 1;
            }
            None
        })
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
    /// Where the last whole search found it: the everyday run begins there and goes round.
    near: u64,
    protects: &'static str,
    /// Why its absence shows in so few runs that it has [`RARE_BOUND`] seeds.
    rare: Option<&'static str>,
}

impl Row {
    /// Seeds within which it must be noticed.
    fn bound(&self) -> u64 {
        if self.rare.is_some() {
            RARE_BOUND
        } else {
            BOUND
        }
    }
}

const fn row(rule: Rule, required: bool, protects: &'static str) -> Row {
    Row {
        rule,
        required,
        near: 1,
        protects,
        rare: None,
    }
}

const fn rare(
    rule: Rule,
    required: bool,
    near: u64,
    protects: &'static str,
    why: &'static str,
) -> Row {
    Row {
        rule,
        required,
        near,
        protects,
        rare: Some(why),
    }
}

#[rustfmt::skip]
const ROWS: [Row; 24] = [
    rare(Rule::L2, true, 1, "one lease at a time, whatever the clocks do",
        "two leases at once need a takeover within the 2 % of drift or the delay of an answer"),
    row(Rule::L3, true, "a node and its voters count the same TTL"),
    rare(Rule::L4, true, 1, "a restarted voter remembers whom it refused",
        "an expelled node must go on renewing at a voter that restarted"),
    row(Rule::L5, false, "nobody takes over before the promises are over"),
    rare(Rule::L6, false, 1, "a lapsed lease is not revived",
        "a lapsed holder must be heard again before its expulsion is held"),
    row(Rule::L7, false, "one grantee at a time"),
    row(Rule::L8, true, "majorities meet while the voters change"),
    rare(Rule::L12, false, 1, "what was released or expelled is not resumed",
        "a grant must cross an expulsion in the log"),
    row(Rule::R1, true, "an older epoch writes nothing"),
    row(Rule::R2, true, "acknowledged means flushed on the whole set"),
    row(Rule::R3, false, "only a complete replica counts"),
    row(Rule::R5, true, "a growing set loses nothing between old and new"),
    rare(Rule::R6, true, 1, "no set shrinks below min_copies",
        "a set must shrink to one store whose disk is the next to be lost"),
    rare(Rule::R7, false, 1, "a stale change of a set is void",
        "a set change must be decided before another and applied after it"),
    rare(Rule::R8, true, 1, "a damaged store does not pass for a torn one",
        "the holder of a damaged last record must be sealed alone"),
    row(Rule::T1, true, "what one reader saw, no takeover un-says"),
    row(Rule::T2, false, "unavailable is not empty"),
    row(Rule::E1, true, "a reply reflects only what is acknowledged, under a lease"),
    row(Rule::E2, true, "a key takes effect once"),
    row(Rule::S2, true, "a new shard starts above every promised epoch"),
    rare(Rule::S3, false, 1, "a shard serves once its index is sealed",
        "no switch: its two halves are T1's wait for the whole set, and loading by the agent"),
    row(Rule::V1, false, "a node's loss is no restart"),
    row(Rule::V2, true, "a poisonous unit is quarantined"),
    row(Rule::Intensity, true, "too many restarts escalate"),
];

const BOUND: u64 = 100;
const RARE_BOUND: u64 = 1_000;
const WHOLE_SEEDS: u64 = 30;
const THREADS: NonZeroUsize = NonZeroUsize::new(2).unwrap();
