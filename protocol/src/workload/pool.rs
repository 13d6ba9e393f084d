//! How many instances of a stateless function there are, and which takes the next call.
//!
//! Owns: the queues before the instances, and when to make and retire one. Never runs a call and
//! never retries one: a call that was assigned to an instance ends with it, well or badly, and its
//! caller hears so from the shell.
//!
//! ```text
//!   Arrive ──> the shortest queue ──> Reset, Assign ──> Freed, or Failed
//!      │           │ waits more than 80 ms, or 3 in it: Create ──> Ready, or Failed
//!      │           └ waits 10 s: Refuse
//!      └ all queues full: Refuse           idle for 30 s: Retire
//! ```
//!
//! One instance is made at a time, because until it is ready the queues do not show what it is worth.
//! An instance with nothing of its own to do takes the oldest call of the longest queue, so a new one
//! relieves the old ones at once. Every call is preceded by a reset, also the first: no call then
//! depends on what an instance did before it, or on how it was made.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::fmt;
use core::num::NonZeroU32;
use core::time::Duration;

use crate::machine::Machine;
use crate::time::Time;

/// Another instance is made when a call has waited longer than this: what a person notices, less the
/// time to make one.
pub const GROW_WAIT: Duration = Duration::from_millis(80);

/// Another instance is made when a queue holds more than this: a burst shows here before anyone has
/// waited.
pub const GROW_QUEUE: usize = 2;

/// Instances a pool may have unless configured otherwise: enough to use the cores that one function
/// should get on a shared node.
pub const INSTANCES_MAX: u32 = 5;

/// An instance that did nothing for this long is retired: its memory serves others better.
pub const RETIRE_IDLE: Duration = Duration::from_secs(30);

/// The most calls waiting before one instance. More would wait longer than their callers do.
pub const QUEUE_MAX: usize = 16;

/// The longest a call waits; below the usual deadline of a caller, who is better told than left.
pub const WAIT_MAX: Duration = Duration::from_secs(10);

/// How long after an instance failed to start the next is made: a module that cannot start must not
/// take a core for trying.
pub const CREATE_RETRY: Duration = Duration::from_secs(1);

/// Names a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// Names an instance of this pool; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(pub u64);

/// What may happen to a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A call came.
    Arrive(CallId),
    /// An instance that was to be created can take calls.
    Ready(InstanceId),
    /// An instance finished its call.
    Freed(InstanceId),
    /// An instance did not start, or is gone, and its call with it.
    Failed(InstanceId),
    /// The deadline came.
    Tick,
}

/// What the shell is to do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the fields are named as the types are
pub enum Action {
    /// Make an instance and answer `Ready` or `Failed`. A start has the shell's deadline: while one
    /// is silent, no other is made.
    Create(InstanceId),
    /// Bring the instance to its first state before the call that follows.
    Reset(InstanceId),
    /// Run the call and answer `Freed` or `Failed`.
    Assign { call: CallId, instance: InstanceId },
    /// Dispose of an idle instance; no answer.
    Retire(InstanceId),
    /// Tell the caller `Overloaded`. The call did not begin.
    Refuse { call: CallId, retry_after: Duration },
}

/// Why an event was refused. The pool is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PoolError {
    /// A call of this name waits or runs; that one goes on.
    #[error("{0} is here already")]
    CallIsHere(CallId),
    /// There is no such instance, or no longer: a late answer may be dropped.
    #[error("{0} is not in the pool")]
    NoInstance(InstanceId),
    /// It was ready before.
    #[error("{0} is not starting")]
    NotStarting(InstanceId),
    /// It has no call that could end.
    #[error("{0} has no call")]
    NotBusy(InstanceId),
}

/// An elastic pool; empty at first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pool {
    instances_max: NonZeroU32,
    instances: BTreeMap<InstanceId, Instance>,
    /// Calls waiting while there is no instance at all.
    lobby: VecDeque<Waiting>,
    next_id: u64,
    /// No instance is made before this.
    create_from: Time,
    /// How long calls took lately; the hint of a refusal.
    mean_run: Duration,
    actions: VecDeque<Action>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Instance {
    work: Work,
    /// By arrival.
    queue: VecDeque<Waiting>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Work {
    Starting,
    Idle { since: Time },
    Busy { call: CallId, since: Time },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Waiting {
    since: Time,
    call: CallId,
}

impl Pool {
    /// An empty pool of up to `instances_max`.
    pub fn new(instances_max: NonZeroU32) -> Pool {
        Pool {
            instances_max,
            instances: BTreeMap::new(),
            lobby: VecDeque::new(),
            next_id: 0,
            create_from: Time::ZERO,
            mean_run: GROW_WAIT,
            actions: VecDeque::new(),
        }
    }

    /// How many instances there are, those starting included.
    pub fn instances(&self) -> usize {
        self.instances.len()
    }

    /// How many calls wait.
    pub fn waiting(&self) -> usize {
        self.queues().map(VecDeque::len).sum()
    }

    fn queues(&self) -> impl Iterator<Item = &VecDeque<Waiting>> {
        let lobby = core::iter::once(&self.lobby);
        lobby.chain(self.instances.values().map(|one| &one.queue))
    }

    fn has_call(&self, call: CallId) -> bool {
        let runs = |one: &Instance| matches!(one.work, Work::Busy { call: of, .. } if of == call);
        self.instances.values().any(runs)
            || self.queues().flatten().any(|waiting| waiting.call == call)
    }

    fn instance(&self, id: InstanceId) -> Result<&Instance, PoolError> {
        self.instances.get(&id).ok_or(PoolError::NoInstance(id))
    }

    fn set_work(&mut self, id: InstanceId, work: Work) {
        let one = self.instances.get_mut(&id);
        one.expect("the instance was just looked up").work = work;
    }

    fn fail(&mut self, now: Time, id: InstanceId) -> Result<(), PoolError> {
        let failed = self
            .instances
            .remove(&id)
            .ok_or(PoolError::NoInstance(id))?;
        if failed.work == Work::Starting {
            self.create_from = now + CREATE_RETRY;
        }
        failed
            .queue
            .into_iter()
            .for_each(|waiting| self.enqueue(waiting));
        Ok(())
    }

    /// Shortest queue first; of two, one that is idle, and that for the shortest time, so that the
    /// others come to be retired.
    fn enqueue(&mut self, waiting: Waiting) {
        let rank = |(id, one): &(&InstanceId, &mut Instance)| {
            let (busy, since) = match one.work {
                Work::Idle { since } => (0, since),
                Work::Starting | Work::Busy { .. } => (1, Time::ZERO),
            };
            (one.queue.len() + busy, Reverse(since), **id)
        };
        let shortest = self.instances.iter_mut().min_by_key(rank);
        let queue = shortest.map_or(&mut self.lobby, |(_, one)| &mut one.queue);
        if queue.len() < QUEUE_MAX {
            let at = queue.partition_point(|before| before.since <= waiting.since);
            queue.insert(at, waiting);
        } else {
            self.refuse(waiting.call);
        }
    }

    /// A place comes free about once in the time that a call takes.
    fn refuse(&mut self, call: CallId) {
        let retry_after = self.mean_run.clamp(GROW_WAIT, WAIT_MAX);
        self.actions.push_back(Action::Refuse { call, retry_after });
    }

    /// Does all that is due, whatever brought it about.
    fn settle(&mut self, now: Time) {
        self.refuse_overdue(now);
        self.put_idle_to_work(now);
        self.grow(now);
        self.retire_idle(now);
    }

    fn refuse_overdue(&mut self, now: Time) {
        let mut overdue = Vec::new();
        let queues = self.instances.values_mut().map(|one| &mut one.queue);
        for queue in queues.chain([&mut self.lobby]) {
            while let Some(waiting) = queue.pop_front_if(|first| now.since(first.since) >= WAIT_MAX)
            {
                overdue.push(waiting.call);
            }
        }
        overdue.into_iter().for_each(|call| self.refuse(call));
    }

    fn put_idle_to_work(&mut self, now: Time) {
        let idle = |(id, one): (&InstanceId, &Instance)| match one.work {
            Work::Idle { since } => Some((one.queue.is_empty(), Reverse(since), *id)),
            Work::Starting | Work::Busy { .. } => None,
        };
        let mut idle: Vec<_> = self.instances.iter().filter_map(idle).collect();
        idle.sort_unstable();
        for (_, _, instance) in idle {
            let Some(Waiting { call, .. }) = self.next_for(instance) else {
                return;
            };
            self.set_work(instance, Work::Busy { call, since: now });
            self.actions.push_back(Action::Reset(instance));
            self.actions.push_back(Action::Assign { call, instance });
        }
    }

    /// Its own first call, or the first of the longest queue.
    fn next_for(&mut self, id: InstanceId) -> Option<Waiting> {
        if let Some(own) = self.instances.get_mut(&id)?.queue.pop_front() {
            return Some(own);
        }
        let fullest = self.instances.values_mut().map(|one| &mut one.queue).rev();
        fullest.max_by_key(|queue| queue.len())?.pop_front()
    }

    fn grow(&mut self, now: Time) {
        if self.may_grow() && now >= self.create_from && self.wants_more(now) {
            let id = InstanceId(self.next_id);
            self.next_id += 1;
            let queue = core::mem::take(&mut self.lobby);
            self.instances.insert(
                id,
                Instance {
                    work: Work::Starting,
                    queue,
                },
            );
            self.actions.push_back(Action::Create(id));
        }
    }

    fn may_grow(&self) -> bool {
        self.instances.len() < self.instances_max.get() as usize
            && self
                .instances
                .values()
                .all(|one| one.work != Work::Starting)
    }

    fn wants_more(&self, now: Time) -> bool {
        let waits = |queue: &VecDeque<Waiting>| {
            queue
                .front()
                .is_some_and(|first| now.since(first.since) > GROW_WAIT)
        };
        !self.lobby.is_empty()
            || self
                .queues()
                .any(|queue| queue.len() > GROW_QUEUE || waits(queue))
    }

    fn retire_idle(&mut self, now: Time) {
        let actions = &mut self.actions;
        self.instances.retain(|id, one| match one.work {
            Work::Idle { since } if now.since(since) >= RETIRE_IDLE => {
                actions.push_back(Action::Retire(*id));
                false
            }
            _ => true,
        });
    }

    /// When `grow` will make an instance if nothing else happens.
    fn grow_deadline(&self) -> Option<Time> {
        if !self.may_grow() {
            return None;
        }
        let crowded = |queue: &VecDeque<Waiting>| queue.len() > GROW_QUEUE;
        if !self.lobby.is_empty() || self.queues().any(crowded) {
            return Some(self.create_from);
        }
        let first = self
            .queues()
            .filter_map(VecDeque::front)
            .map(|first| first.since)
            .min()?;
        // "Passes" is strict: the first moment after.
        Some((first + GROW_WAIT + Duration::from_nanos(1)).max(self.create_from))
    }
}

impl Machine for Pool {
    type Event = Event;
    type Action = Action;
    type Error = PoolError;

    fn handle(&mut self, now: Time, event: Event) -> Result<(), PoolError> {
        match event {
            Event::Arrive(call) => {
                if self.has_call(call) {
                    return Err(PoolError::CallIsHere(call));
                }
                self.enqueue(Waiting { since: now, call });
            }
            Event::Ready(id) => {
                if self.instance(id)?.work != Work::Starting {
                    return Err(PoolError::NotStarting(id));
                }
                self.set_work(id, Work::Idle { since: now });
            }
            Event::Freed(id) => {
                let Work::Busy { since, .. } = self.instance(id)?.work else {
                    return Err(PoolError::NotBusy(id));
                };
                self.mean_run = (self.mean_run * 7 + now.since(since)) / 8;
                self.set_work(id, Work::Idle { since: now });
            }
            Event::Failed(id) => self.fail(now, id)?,
            Event::Tick => {}
        }
        self.settle(now);
        Ok(())
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn next_deadline(&self) -> Option<Time> {
        let overdue = self
            .queues()
            .filter_map(VecDeque::front)
            .map(|first| first.since + WAIT_MAX);
        let retire = self.instances.values().filter_map(|one| match one.work {
            Work::Idle { since } => Some(since + RETIRE_IDLE),
            Work::Starting | Work::Busy { .. } => None,
        });
        overdue.chain(retire).chain(self.grow_deadline()).min()
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "call-{:x}", self.0)
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "instance-{}", self.0)
    }
}

#[cfg(test)]
mod tests;
