//! Many seeds on several threads.
//!
//! Owns: the workers, and the order in which outcomes are handed on, which is the seeds' own whatever
//! thread was faster. Never lets two runs share anything: a run is one thread's alone.
//!
//! ```text
//!   next seed ──> worker ──┐
//!   next seed ──> worker ──┴─> channel ──> outcomes in order of their seeds ──> each(outcome)
//! ```

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::{ControlFlow, RangeInclusive};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use crate::run::{Outcome, run};

/// Runs the seeds on `threads` threads and hands each outcome to `each` in the order of the seeds,
/// until it breaks; runs under way are then finished and dropped.
pub fn run_all(
    seeds: RangeInclusive<u64>,
    threads: NonZeroUsize,
    mut each: impl FnMut(Outcome) -> ControlFlow<()>,
) {
    let (first, last) = (*seeds.start(), *seeds.end());
    let next = AtomicU64::new(first);
    let enough = AtomicBool::new(false);
    // A worker that is far ahead of the slowest seed waits: outcomes do not pile up.
    let (done, outcomes) = mpsc::sync_channel(threads.get() * AHEAD_MAX);
    thread::scope(|scope| {
        for _ in 0..threads.get() {
            let done = done.clone();
            let (next, enough) = (&next, &enough);
            scope.spawn(move || {
                while !enough.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > last || done.send(run(seed, None)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        let mut early = BTreeMap::new();
        let mut wanted = first;
        for outcome in outcomes {
            early.insert(outcome.seed, outcome);
            while let Some(outcome) = early.remove(&wanted) {
                wanted += 1;
                if each(outcome).is_break() {
                    enough.store(true, Ordering::Relaxed);
                    return;
                }
            }
        }
    });
}

/// As many threads as there are cores.
pub fn threads() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Outcomes that may wait for an earlier seed, a thread: some runs are several times as long as others.
const AHEAD_MAX: usize = 16;
