//! Every interleaving, within bounds, of what the simulator only samples: leases, and takeover with
//! replication, through the real machines of understudy-protocol.
//!
//! The suite everybody runs explores small worlds to their end. `UNDERSTUDY_LONG=1` explores larger
//! ones, to their end or to some millions of states. With the feature `sabotage` one rule at a time is
//! switched off, and the checker must find the run that the rule prevents: a checker that finds
//! nothing is believed only then. That build has no other tests, because the switch is the process's.
#![allow(clippy::unwrap_used)]

mod lease;
mod replication;
mod shared;

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use stateright::{Checker, CheckerBuilder, HasDiscoveries, Model};

/// One world: how much may happen in it, and after how many steps the search ends where the world
/// does not.
struct Row<B> {
    bounds: B,
    steps_max: usize,
}

/// What a search came to.
struct Found {
    ended: bool,
    /// The broken property and the steps that broke it.
    broken: Option<(&'static str, Vec<String>)>,
}

fn search<M>(checker: CheckerBuilder<M>, steps_max: usize, name: &str) -> Found
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq,
{
    let started = Instant::now();
    let checker = checker
        .finish_when(HasDiscoveries::AnyFailures)
        .target_state_count(steps_max)
        .spawn_bfs()
        .join();
    let ended = checker.state_count() < steps_max;
    println!(
        "{name}: {} states, depth {}, {} steps{}, {:.1} s",
        checker.unique_state_count(),
        checker.max_depth(),
        checker.state_count(),
        if ended { " (all)" } else { "" },
        started.elapsed().as_secs_f64(),
    );
    let broken = checker
        .discoveries()
        .into_iter()
        .next()
        .map(|(property, path)| {
            let steps = path
                .into_actions()
                .into_iter()
                .map(|step| format!("{step:?}"));
            (property, steps.collect())
        });
    Found { ended, broken }
}

fn see(what: &AtomicBool) {
    what.store(true, Ordering::Relaxed);
}

/// Larger than any search that is to end.
#[cfg(not(feature = "sabotage"))]
const TO_THE_END: usize = 100_000_000;

#[cfg(not(feature = "sabotage"))]
mod kept {
    use super::*;
    use crate::lease::Lease;
    use crate::replication::Takeover;

    #[track_caller]
    fn holds<M>(model: M, steps_max: usize, name: &str)
    where
        M: Model + Send + Sync + 'static,
        M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
        M::Action: Clone + Debug + PartialEq,
    {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let found = search(model.checker().threads(threads), steps_max, name);
        if let Some((property, steps)) = found.broken {
            panic!("{name}: not so: {property}\n  {}", steps.join("\n  "));
        }
        assert!(found.ended || steps_max < TO_THE_END, "{name} has no end");
    }

    #[track_caller]
    fn all_seen(seen: &[(&str, &AtomicBool)]) {
        for (what, seen) in seen {
            assert!(seen.load(Ordering::Relaxed), "never seen: {what}");
        }
    }

    fn long() -> bool {
        std::env::var_os("UNDERSTUDY_LONG").is_some()
    }

    fn check_replication(rows: Vec<Row<replication::Bounds>>) {
        let seen = std::sync::Arc::<replication::Seen>::default();
        for Row { bounds, steps_max } in rows {
            let name = format!("{bounds:?}");
            holds(Takeover::within(bounds, seen.clone()), steps_max, &name);
        }
        all_seen(&[
            (
                "a takeover finds a tail nobody was told of",
                &seen.unacknowledged_tail_adopted,
            ),
            ("a set grows", &seen.grown),
            ("a set shrinks", &seen.shrunk),
            ("a replaced owner is refused", &seen.stale_owner_refused),
            (
                "a new owner acknowledges",
                &seen.acknowledged_after_takeover,
            ),
            (
                "a replaced owner hears late of its flushes",
                &seen.acknowledged_by_stale_owner,
            ),
        ]);
    }

    fn check_leases(rows: Vec<Row<lease::Bounds>>) {
        let seen = std::sync::Arc::<lease::Seen>::default();
        for Row { bounds, steps_max } in rows {
            let name = format!("{bounds:?}");
            holds(Lease::within(bounds, seen.clone()), steps_max, &name);
        }
        all_seen(&[
            ("a lease is held", &seen.held),
            (
                "a voter promises that has not heard of the expulsion",
                &seen.renewed_after_expulsion,
            ),
            ("a voter refuses the expelled", &seen.refused),
            (
                "the promises of a lease are over",
                &seen.over_while_held_at_expulsion,
            ),
            (
                "a voter that forgot its promises reports",
                &seen.reported_after_restart,
            ),
        ]);
    }

    #[test]
    fn what_is_acknowledged_outlives_every_takeover() {
        check_replication(replication::small());
    }

    #[test]
    fn no_lease_is_valid_when_its_promises_are_over() {
        check_leases(lease::small());
    }

    #[test]
    fn what_is_acknowledged_outlives_every_takeover_in_larger_worlds() {
        if long() {
            check_replication(replication::large());
        }
    }

    #[test]
    fn no_lease_is_valid_when_its_promises_are_over_in_larger_worlds() {
        if long() {
            check_leases(lease::large());
        }
    }
}

#[cfg(feature = "sabotage")]
mod sabotaged {
    use super::*;
    use crate::lease::Lease;
    use crate::replication::Takeover;
    use understudy_protocol::rules::{Rule, switch_off};

    /// With the rule the world is in order; without it the search finds out.
    #[track_caller]
    fn needed<M>(rule: Rule, model: impl Fn() -> M)
    where
        M: Model + Send + Sync + 'static,
        M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
        M::Action: Clone + Debug + PartialEq,
    {
        switch_off(Some(rule));
        let found = search(model().checker(), STEPS_MAX, &format!("without {rule:?}"));
        switch_off(None);
        let (property, steps) = found
            .broken
            .unwrap_or_else(|| panic!("nobody needs {rule:?}"));
        println!("  not so: {property}\n    {}", steps.join("\n    "));
    }

    /// The dearest of the runs is found within half of it.
    const STEPS_MAX: usize = 12_000_000;

    #[test]
    fn every_rule_that_the_models_cover_is_needed() {
        for (rule, bounds) in lease::needing() {
            needed(rule, || Lease::within(bounds.clone(), Default::default()));
        }
        for (rule, bounds) in replication::needing() {
            needed(rule, || {
                Takeover::within(bounds.clone(), Default::default())
            });
        }
    }
}
