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

use stateright::{Checker, HasDiscoveries, Model, UniformChooser};

/// How much of a world is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Search {
    /// Every state. The world must be small enough.
    All,
    /// The nearest to the beginning, up to so many steps.
    Nearest(usize),
    /// So many steps of random walks, from the beginning to where nothing can happen any more: deep,
    /// where `Nearest` is wide. The seed is fixed.
    Walks(usize),
}

/// The broken property, if one is, and the steps that broke it.
type Found = Option<(&'static str, Vec<String>)>;

fn search<M>(model: M, search: Search, threads: usize, name: &str) -> Found
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq,
{
    let checker = model
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .threads(threads);
    match search {
        Search::All => conclude(checker.spawn_bfs(), search, name),
        Search::Nearest(steps) => {
            let checker = checker.target_state_count(steps);
            conclude(checker.spawn_bfs(), search, name)
        }
        Search::Walks(steps) => {
            let checker = checker.target_state_count(steps);
            conclude(checker.spawn_simulation(SEED, UniformChooser), search, name)
        }
    }
}

fn conclude<M>(checker: impl Checker<M>, search: Search, name: &str) -> Found
where
    M: Model,
    M::State: Clone + Debug + Hash + PartialEq,
    M::Action: Clone + Debug + PartialEq,
{
    let started = Instant::now();
    let checker = checker.join();
    println!(
        "{name}: {search:?}: {} states, {} steps, depth {}, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        started.elapsed().as_secs_f64(),
    );
    let broken = checker.discoveries().into_iter().next();
    broken.map(|(property, path)| {
        let steps = path.into_actions().into_iter();
        (property, steps.map(|step| format!("{step:?}")).collect())
    })
}

fn see(what: &AtomicBool) {
    what.store(true, Ordering::Relaxed);
}

/// Of the random walks.
const SEED: u64 = 1;

#[cfg(not(feature = "sabotage"))]
mod kept {
    use super::*;
    use crate::lease::Lease;
    use crate::replication::Takeover;

    #[track_caller]
    fn holds<M>(model: M, how: Search, name: &str)
    where
        M: Model + Send + Sync + 'static,
        M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
        M::Action: Clone + Debug + PartialEq,
    {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        if let Some((property, steps)) = search(model, how, threads, name) {
            panic!("{name}: not so: {property}\n  {}", steps.join("\n  "));
        }
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

    fn check_replication(rows: Vec<(Search, replication::Bounds)>) {
        let seen = std::sync::Arc::<replication::Seen>::default();
        for (how, bounds) in rows {
            let name = format!("{bounds:?}");
            holds(Takeover::within(bounds, seen.clone()), how, &name);
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

    fn check_leases(rows: Vec<(Search, lease::Bounds)>) {
        let seen = std::sync::Arc::<lease::Seen>::default();
        for (how, bounds) in rows {
            let name = format!("{bounds:?}");
            holds(Lease::within(bounds, seen.clone()), how, &name);
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
        let found = search(model(), STEPS, 1, &format!("without {rule:?}"));
        switch_off(None);
        let (property, steps) = found.unwrap_or_else(|| panic!("nobody needs {rule:?}"));
        println!("  not so: {property}\n    {}", steps.join("\n    "));
    }

    /// The dearest of the runs is found within a tenth of it.
    const STEPS: Search = Search::Nearest(6_000_000);

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
