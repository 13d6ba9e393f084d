//! The simulator must notice when a rule is not kept.
//!
//! Owns: for each rule of the core, within how many seeds its absence is noticed. A rule whose absence
//! nobody notices is either not needed or not tested; both are faults. One test in a binary of its own,
//! because a switch is off for the whole process.
//!
//! ```text
//!   cargo test -p understudy-sim --features sabotage --test sabotage -- --nocapture
//!   SABOTAGE=L2,R6 cargo test …      only these rules
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

    let only = std::env::var("SABOTAGE").unwrap_or_default();
    let wanted = |rule: &str| only.is_empty() || only.split(',').any(|only| only == rule);
    let mut table = format!(
        "{:<10} {:<52} {:>14}  noticed by\n",
        "rule", "what it protects", "seeds"
    );
    let mut unnoticed = Vec::new();
    let long = std::env::var("UNDERSTUDY_LONG").is_ok_and(|value| value == "1");
    for row in &ROWS {
        let Row {
            rule,
            bound,
            protects,
            ..
        } = row;
        let rule = format!("{rule:?}");
        // What may go unnoticed, and is rare besides, is for the long run.
        let affordable = row.required || row.bound < RARE || long;
        if !wanted(&rule) || !affordable {
            continue;
        }
        let caught = first_notice(row);
        let (seeds, by) = match &caught {
            Some(outcome) => (format!("{} of {bound}", outcome.seed), notice(outcome)),
            None => (
                format!("none of {bound}"),
                format!("not yet caught: {}", row.why),
            ),
        };
        writeln!(table, "{rule:<10} {protects:<52} {seeds:>14}  {by}").unwrap();
        // A line as soon as it is known: all of them take minutes.
        eprintln!("{rule:<10} {seeds:>14}");
        if caught.is_none() && row.required {
            unnoticed.push(rule);
        }
    }
    let _ = panic::take_hook();
    println!("\n{table}");
    assert!(
        unnoticed.is_empty(),
        "nobody noticed that these are off: {unnoticed:?}\n\n{table}"
    );
}

/// The first seed whose run is noticed to lack the rule. A seed that fails with every rule kept is no
/// notice: it is skipped here, and is the business of `a_thousand_seeds_hold_every_invariant`.
fn first_notice(row: &Row) -> Option<Outcome> {
    let mut from = 1;
    loop {
        switch_off(Some(row.rule));
        let caught = first_violation(from..=row.bound);
        switch_off(None);
        let caught = caught?;
        // A cluster that comes to rest too slowly may do so for any reason: only a rule that is there
        // so that something goes on may be noticed by its standing still.
        let stalls = caught
            .violation
            .as_ref()
            .is_some_and(|(_, what)| what.invariant == LIVENESS);
        if (!stalls || row.by_stalling) && run(caught.seed, None).violation.is_none() {
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
    let what = violation.what.lines().next().unwrap_or_default();
    let what: String = what.chars().take(90).collect();
    match violation.invariant {
        ASSERTION => format!("an assertion of the core: {what}"),
        invariant => format!("{invariant}: {what}"),
    }
}

struct Row {
    rule: Rule,
    /// Whether the test fails when nobody notices. A rule that may go unnoticed is listed all the same.
    required: bool,
    /// Seeds within which it must be noticed: [`OFTEN`], or [`RARE`] where `why` says so.
    bound: u64,
    protects: &'static str,
    /// Which rare order of events a run needs to break without the rule, or why none is known.
    why: &'static str,
    /// Without it the cluster stands still.
    by_stalling: bool,
}

const fn required(rule: Rule, bound: u64, protects: &'static str, why: &'static str) -> Row {
    Row {
        rule,
        required: true,
        bound,
        protects,
        why,
        by_stalling: false,
    }
}

const fn tried(rule: Rule, bound: u64, protects: &'static str, why: &'static str) -> Row {
    Row {
        required: false,
        ..required(rule, bound, protects, why)
    }
}

const fn by_stalling(row: Row) -> Row {
    Row {
        by_stalling: true,
        ..row
    }
}

const ROWS: [Row; 24] = [
    required(
        Rule::L2,
        OFTEN,
        "one lease at a time, whatever the clocks do",
        "promises that were long on their way, then silence, and a call within the difference",
    ),
    required(
        Rule::L3,
        OFTEN,
        "a node and its voters count the same TTL",
        "",
    ),
    by_stalling(required(
        Rule::L4,
        OFTEN,
        "a restarted voter remembers whom it refused",
        "",
    )),
    tried(
        Rule::L5,
        OFTEN,
        "nobody takes over before the promises are over",
        "",
    ),
    tried(
        Rule::L6,
        OFTEN,
        "a lapsed lease is not revived",
        "voters that promise again know of no expulsion, so nobody has taken over: L4 and L5 hold alone",
    ),
    tried(
        Rule::L7,
        RARE,
        "one grantee at a time",
        "a grant that overtakes the end of the last grantee's promises",
    ),
    required(
        Rule::L8,
        OFTEN,
        "majorities meet while the voters change",
        "a voter's disk is lost while an owner's lease rests on it, and the third never promised",
    ),
    tried(
        Rule::L12,
        OFTEN,
        "nothing is granted to an expelled incarnation",
        "a grant that crosses the expulsion ends with it all the same, when the promises are over",
    ),
    required(Rule::R1, OFTEN, "an older epoch writes nothing", ""),
    required(
        Rule::R2,
        OFTEN,
        "acknowledged means flushed on the whole set",
        "",
    ),
    tried(Rule::R3, OFTEN, "only a complete replica counts", ""),
    required(
        Rule::R5,
        OFTEN,
        "a growing set loses nothing between old and new",
        "",
    ),
    required(
        Rule::R6,
        RARE,
        "no set shrinks below min_copies",
        "a whole set but one away, and that one's disk lost before another replica is complete",
    ),
    tried(
        Rule::R7,
        RARE,
        "a stale change of a set is void",
        "two changes of one set in flight, the older applied last",
    ),
    required(
        Rule::R8,
        RARE,
        "a damaged store does not pass for a torn one",
        "a damaged store is up alone of its set",
    ),
    required(
        Rule::T1,
        OFTEN,
        "what one reader saw, no takeover un-says",
        "",
    ),
    tried(
        Rule::T2,
        RARE,
        "unavailable is not empty",
        "a takeover that finds cut stores only, for longer than it waits",
    ),
    required(
        Rule::E1,
        OFTEN,
        "a reply reflects what is acknowledged, under a lease",
        "",
    ),
    required(Rule::E2, OFTEN, "a key takes effect once", ""),
    by_stalling(required(
        Rule::S2,
        OFTEN,
        "a new shard starts above every promised epoch",
        "",
    )),
    tried(
        Rule::S3,
        OFTEN,
        "a shard serves once its index is sealed",
        "T1 alone already serves nothing before the index is sealed; no place depends on S3 only",
    ),
    tried(Rule::V1, OFTEN, "a node's loss is no restart", ""),
    required(Rule::V2, OFTEN, "a poisonous unit is quarantined", ""),
    required(Rule::Intensity, OFTEN, "too many restarts escalate", ""),
];

/// What a normal run of the tests can bear for each rule.
const OFTEN: u64 = 100;

/// For rules whose run needs a rare order of events.
const RARE: u64 = 1_000;

/// A few: `a_thousand_seeds_hold_every_invariant` runs more.
const WHOLE_SEEDS: u64 = 30;

/// The invariant that stands for a cluster that comes to rest.
const LIVENESS: &str = "liveness";

const THREADS: NonZeroUsize = NonZeroUsize::new(2).unwrap();
