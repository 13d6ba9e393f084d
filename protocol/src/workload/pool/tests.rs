//! Rows of what is fed and what comes out, and a random walk.

#![allow(clippy::unwrap_used)]

use alloc::collections::BTreeSet;
use std::format;
use std::string::String;

use super::*;

/// A pool, the time, and what it wants done as a line: `+1` create, `~1` reset, `7>1` assign, `-1`
/// retire, `7!` refuse.
struct Bench {
    pool: Pool,
    now: Time,
}

impl Bench {
    fn new(instances_max: u32) -> Bench {
        let pool = Pool::new(NonZeroU32::new(instances_max).unwrap());
        Bench {
            pool,
            now: Time::from_millis(1000),
        }
    }

    /// A pool whose instances 0 up to `count` each run a call, numbered from 900.
    fn busy(instances_max: u32, count: u64) -> Bench {
        let mut bench = Bench::new(instances_max);
        for id in 0..count {
            let mut calls = 900 + id * 100..;
            while bench.pool.instances() as u64 <= id {
                bench.arrive(calls.next().unwrap());
            }
            bench.feed(Event::Ready(InstanceId(id)));
            // The rest of the burst is answered on the spot.
            while bench.pool.waiting() > 0 {
                bench.feed(Event::Freed(InstanceId(id)));
            }
        }
        assert_eq!(
            (bench.pool.instances() as u64, bench.pool.waiting()),
            (count, 0)
        );
        bench
    }

    fn feed(&mut self, event: Event) -> String {
        self.pool.handle(self.now, event).unwrap();
        self.drain()
    }

    fn drain(&mut self) -> String {
        let said = core::iter::from_fn(|| self.pool.poll_action()).map(|action| match action {
            Action::Create(id) => format!("+{}", id.0),
            Action::Reset(id) => format!("~{}", id.0),
            Action::Assign { call, instance } => format!("{}>{}", call.0, instance.0),
            Action::Retire(id) => format!("-{}", id.0),
            Action::Refuse { call, .. } => format!("{}!", call.0),
        });
        said.collect::<Vec<_>>().join(" ")
    }

    fn arrive(&mut self, call: u64) -> String {
        self.feed(Event::Arrive(CallId(call)))
    }

    fn ready(&mut self, id: u64) -> String {
        self.feed(Event::Ready(InstanceId(id)))
    }

    fn freed(&mut self, id: u64) -> String {
        self.feed(Event::Freed(InstanceId(id)))
    }

    fn failed(&mut self, id: u64) -> String {
        self.feed(Event::Failed(InstanceId(id)))
    }

    /// Time passes, and the deadline is told.
    fn wait(&mut self, span: Duration) -> String {
        self.now = self.now + span;
        self.feed(Event::Tick)
    }

    #[track_caller]
    fn refuses(&mut self, event: Event, error: PoolError) {
        let before = self.pool.clone();
        assert_eq!(self.pool.handle(self.now, event), Err(error));
        assert_eq!(self.pool, before, "a refused event changes nothing");
    }
}

const NANO: Duration = Duration::from_nanos(1);

#[test]
fn the_first_call_makes_the_first_instance() {
    let mut bench = Bench::new(5);
    assert_eq!(bench.arrive(1), "+0");
    assert_eq!(bench.arrive(2), "");
    assert_eq!(bench.ready(0), "~0 1>0");
    assert_eq!(bench.freed(0), "~0 2>0");
    assert_eq!(bench.freed(0), "");
    assert_eq!(bench.arrive(3), "~0 3>0");
}

#[test]
fn it_grows_when_a_wait_passes_80_ms() {
    let mut bench = Bench::busy(5, 1);
    assert_eq!(bench.arrive(1), "");
    assert_eq!(
        bench.pool.next_deadline(),
        Some(bench.now + GROW_WAIT + NANO)
    );
    assert_eq!(bench.wait(GROW_WAIT), "");
    assert_eq!(bench.wait(NANO), "+1");
    assert_eq!(bench.wait(GROW_WAIT), "", "one at a time");
    assert_eq!(
        bench.ready(1),
        "~1 1>1",
        "the new one takes what waits before the old one"
    );
}

#[test]
fn it_grows_when_a_queue_holds_more_than_two() {
    let mut bench = Bench::busy(5, 1);
    assert_eq!(
        (bench.arrive(1), bench.arrive(2)),
        (String::new(), String::new())
    );
    assert_eq!(bench.arrive(3), "+1");
}

#[test]
fn it_grows_to_its_limit_and_no_further() {
    assert_eq!(INSTANCES_MAX, 5);
    let mut bench = Bench::busy(INSTANCES_MAX, 5);
    for call in 0..5 * QUEUE_MAX as u64 {
        assert_eq!(bench.arrive(call), "", "{call}");
    }
    assert_eq!(bench.wait(GROW_WAIT * 2), "");
    assert_eq!(bench.pool.instances(), 5);
}

#[test]
fn a_full_queue_refuses_with_a_hint() {
    let mut bench = Bench::busy(1, 1);
    (0..QUEUE_MAX as u64).for_each(|call| assert_eq!(bench.arrive(call), ""));
    bench
        .pool
        .handle(bench.now, Event::Arrive(CallId(99)))
        .unwrap();
    let (call, retry_after) = (CallId(99), GROW_WAIT);
    assert_eq!(
        bench.pool.poll_action(),
        Some(Action::Refuse { call, retry_after })
    );
    assert_eq!(bench.freed(0), "~0 0>0");
    assert_eq!(bench.arrive(99), "", "a refused call may come again");
}

#[test]
fn the_hint_follows_how_long_calls_take() {
    let mut bench = Bench::busy(1, 1);
    bench.now = bench.now + Duration::from_secs(8);
    assert_eq!(bench.freed(0), "");
    (0..=QUEUE_MAX as u64).for_each(|call| drop(bench.arrive(call)));
    bench
        .pool
        .handle(bench.now, Event::Arrive(CallId(99)))
        .unwrap();
    let Some(Action::Refuse { retry_after, .. }) = bench.pool.poll_action() else {
        panic!()
    };
    assert!(
        retry_after > Duration::from_secs(1) && retry_after < WAIT_MAX,
        "{retry_after:?}"
    );
}

#[test]
fn the_shortest_queue_is_first() {
    let mut bench = Bench::busy(2, 2);
    for call in 1..=4 {
        assert_eq!(bench.arrive(call), "");
    }
    // 1 and 3 wait before 0, 2 and 4 before 1.
    assert_eq!(bench.freed(1), "~1 2>1");
    assert_eq!(bench.freed(1), "~1 4>1");
    assert_eq!(bench.arrive(5), "", "the queue before 1 is the shorter one");
    assert_eq!(bench.freed(1), "~1 5>1");
    assert_eq!(bench.freed(1), "~1 1>1", "nothing of its own, so it helps");
    assert_eq!(bench.freed(0), "~0 3>0");
}

#[test]
fn an_idle_instance_retires_after_30_seconds() {
    let mut bench = Bench::busy(2, 2);
    assert_eq!(bench.freed(0), "");
    assert_eq!(bench.pool.next_deadline(), Some(bench.now + RETIRE_IDLE));
    assert_eq!(bench.wait(RETIRE_IDLE - NANO), "");
    assert_eq!(bench.wait(NANO), "-0");
    assert_eq!(bench.wait(RETIRE_IDLE), "", "a busy one is not idle");
    assert_eq!(bench.pool.instances(), 1);
}

#[test]
fn the_last_to_work_works_next_so_that_others_may_retire() {
    let mut bench = Bench::busy(2, 2);
    assert_eq!(bench.freed(1), "");
    bench.wait(NANO);
    assert_eq!(bench.freed(0), "");
    for call in 0..3 {
        bench.wait(RETIRE_IDLE / 4);
        assert_eq!(bench.arrive(call), format!("~0 {call}>0"));
        assert_eq!(bench.freed(0), "");
    }
    assert_eq!(bench.wait(RETIRE_IDLE / 4), "-1");
}

#[test]
fn a_call_is_refused_after_ten_seconds_of_waiting() {
    let mut bench = Bench::busy(1, 1);
    assert_eq!(bench.arrive(1), "");
    assert_eq!(bench.pool.next_deadline(), Some(bench.now + WAIT_MAX));
    assert_eq!(bench.wait(WAIT_MAX - NANO), "");
    assert_eq!(bench.wait(NANO), "1!");
    assert_eq!(bench.pool.waiting(), 0);
}

#[test]
fn those_waiting_before_a_failed_instance_go_to_others() {
    let mut bench = Bench::busy(2, 2);
    assert_eq!(bench.arrive(1), "");
    assert_eq!(bench.wait(NANO), "");
    assert_eq!(bench.arrive(2), "");
    assert_eq!(bench.failed(0), "");
    assert_eq!(bench.freed(1), "~1 1>1", "by arrival");
    assert_eq!(bench.freed(1), "~1 2>1");
    // Nobody is left: the next is made at once, for it was not the start that failed.
    assert_eq!(bench.arrive(3), "");
    assert_eq!(bench.failed(1), "+2");
    assert_eq!(bench.ready(2), "~2 3>2");
}

#[test]
fn an_instance_that_does_not_start_is_tried_again_a_second_later() {
    let mut bench = Bench::new(5);
    assert_eq!(bench.arrive(1), "+0");
    assert_eq!(bench.failed(0), "");
    assert_eq!(bench.arrive(2), "");
    assert_eq!(bench.pool.next_deadline(), Some(bench.now + CREATE_RETRY));
    assert_eq!(bench.wait(CREATE_RETRY - NANO), "");
    assert_eq!(bench.wait(NANO), "+1");
    assert_eq!(
        bench.ready(1),
        "~1 1>1 +2",
        "the other has waited enough for a third"
    );
}

#[test]
fn late_and_double_events_are_refused() {
    let mut bench = Bench::new(5);
    bench.refuses(
        Event::Ready(InstanceId(0)),
        PoolError::NoInstance(InstanceId(0)),
    );
    bench.arrive(1);
    bench.refuses(Event::Arrive(CallId(1)), PoolError::CallIsHere(CallId(1)));
    bench.refuses(
        Event::Freed(InstanceId(0)),
        PoolError::NotBusy(InstanceId(0)),
    );
    bench.ready(0);
    bench.refuses(
        Event::Ready(InstanceId(0)),
        PoolError::NotStarting(InstanceId(0)),
    );
    bench.refuses(Event::Arrive(CallId(1)), PoolError::CallIsHere(CallId(1)));
    bench.failed(0);
    bench.refuses(
        Event::Freed(InstanceId(0)),
        PoolError::NoInstance(InstanceId(0)),
    );
    bench.refuses(
        Event::Failed(InstanceId(0)),
        PoolError::NoInstance(InstanceId(0)),
    );
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// What the shell knows of a pool, by its actions alone.
#[derive(Default)]
struct Shell {
    starting: BTreeSet<InstanceId>,
    idle: BTreeSet<InstanceId>,
    busy: BTreeMap<InstanceId, CallId>,
    waiting: BTreeSet<CallId>,
    reset: Option<InstanceId>,
    assigned: u64,
    refused: u64,
    most: usize,
}

impl Shell {
    fn carry_out(&mut self, action: Action, instances_max: usize) {
        let was_reset = self.reset.take();
        match action {
            Action::Create(id) => assert!(self.starting.insert(id)),
            Action::Reset(id) => {
                assert!(self.idle.contains(&id));
                self.reset = Some(id);
            }
            Action::Assign { call, instance } => {
                assert_eq!(was_reset, Some(instance), "reset on acquire");
                assert!(self.waiting.remove(&call), "a call is assigned once");
                assert!(self.idle.remove(&instance), "an instance has one call");
                self.busy.insert(instance, call);
                self.assigned += 1;
            }
            Action::Retire(id) => assert!(self.idle.remove(&id)),
            Action::Refuse { call, retry_after } => {
                assert!(self.waiting.remove(&call) && retry_after >= GROW_WAIT);
                self.refused += 1;
            }
        }
        let count = self.starting.len() + self.idle.len() + self.busy.len();
        assert!(count <= instances_max, "{count} instances");
        self.most = self.most.max(count);
    }

    /// What a real shell could report now.
    fn next_event(&self, random: &mut Random, calls: &mut u64) -> Event {
        let starting: Vec<_> = self.starting.iter().copied().collect();
        let busy: Vec<_> = self.busy.keys().copied().collect();
        let any: Vec<_> = self
            .starting
            .iter()
            .chain(&self.idle)
            .chain(self.busy.keys())
            .copied()
            .collect();
        match random.below(20) {
            0..=8 => {
                *calls += 1;
                Event::Arrive(CallId(*calls))
            }
            9..=11 if !starting.is_empty() => Event::Ready(random.pick(&starting)),
            12..=17 if !busy.is_empty() => Event::Freed(random.pick(&busy)),
            18 if !any.is_empty() && random.below(3) == 0 => Event::Failed(random.pick(&any)),
            _ => Event::Tick,
        }
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Arrive(call) => drop(self.waiting.insert(call)),
            Event::Ready(id) => {
                self.starting.remove(&id);
                self.idle.insert(id);
            }
            Event::Freed(id) => {
                self.busy.remove(&id);
                self.idle.insert(id);
            }
            Event::Failed(id) => {
                let known = self.starting.remove(&id) | self.idle.remove(&id);
                assert!(known | self.busy.remove(&id).is_some());
            }
            Event::Tick => {}
        }
    }
}

#[test]
fn a_random_walk_keeps_every_promise() {
    let (mut assigned, mut refused, mut full) = (0, 0, 0);
    for seed in 0..200 {
        let mut random = Random(seed);
        let instances_max = 1 + random.below(6) as usize;
        // Some walks are in a hurry, so that queues fill; some are slow, so that instances retire.
        let pace = [1, 20, 200, 5_000][random.below(4) as usize];
        let mut pool = Pool::new(NonZeroU32::new(instances_max as u32).unwrap());
        let (mut shell, mut now, mut calls) = (Shell::default(), Time::ZERO, 0);
        for step in 0..2_000 {
            let later = now + Duration::from_millis(random.below(pace));
            // The shell ticks at each deadline it comes to.
            let due = pool.next_deadline().filter(|due| *due <= later);
            let event = match due {
                Some(_) => Event::Tick,
                // The last part lets everything come to an end.
                None if step > 1_500 => match shell.next_event(&mut random, &mut 0) {
                    Event::Arrive(_) | Event::Failed(_) => Event::Tick,
                    event => event,
                },
                None => shell.next_event(&mut random, &mut calls),
            };
            now = due.unwrap_or(later).max(now);
            shell.note(event);
            pool.handle(now, event).unwrap();
            while let Some(action) = pool.poll_action() {
                shell.carry_out(action, instances_max);
            }
            assert_eq!(
                pool.waiting(),
                shell.waiting.len(),
                "a call waits or has ended"
            );
            assert!(pool.waiting() <= instances_max * QUEUE_MAX, "seed {seed}");
            assert!(
                shell.waiting.is_empty() || shell.idle.is_empty(),
                "nobody idles while calls wait"
            );
            assert!(
                pool.next_deadline().is_none_or(|due| due > now),
                "a deadline that came is gone"
            );
            assert!(
                shell.waiting.is_empty() || pool.next_deadline().is_some(),
                "nobody waits for ever"
            );
        }
        // Time alone ends what still waits.
        while !shell.waiting.is_empty() {
            now = pool.next_deadline().unwrap();
            pool.handle(now, Event::Tick).unwrap();
            while let Some(action) = pool.poll_action() {
                shell.carry_out(action, instances_max);
            }
        }
        assert_eq!(shell.assigned + shell.refused, calls, "seed {seed}");
        assigned += shell.assigned;
        refused += shell.refused;
        full += usize::from(shell.most == instances_max);
    }
    assert!(
        assigned > 10_000 && refused > 1_000 && full > 100,
        "{assigned} {refused} {full}"
    );
}
