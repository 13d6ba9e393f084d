//! Stateless functions: calls that leave nothing behind, run by as many instances as they need.
//!
//! Owns: one task for each pool, which feeds the pool machine and does what it says. Never decides when
//! to grow, to shrink, to let wait or to refuse: `understudy_protocol::workload::pool` does.
//!
//! ```text
//!   call ──> Arrive ──> machine ──> Create: an instance is made              (a task)
//!                          │    ──> Reset, Assign: a fresh one runs the call  (a task) ──> the answer
//!                          │    ──> Refuse: Overloaded, retry_after
//!                          └──────> Retire: it is dropped
//! ```
//!
//! **Every call begins in the module's first state.** What an instance did for one caller is gone before
//! the next: a reset drops it and makes another, which for a pooled engine is a matter of microseconds.
//! So a function cannot leak from one caller to another, nor be spoiled by one.
//!
//! **A call that nobody waits for is not run**, and one that is running when its caller goes away, or its
//! deadline comes, is ended with its instance.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use understudy_protocol::machine::Machine;
use understudy_protocol::time::Time;
use understudy_protocol::workload::lifecycle::{self, Lifecycle, State};
use understudy_protocol::workload::pool::{
    Action, CallId, Event, GROW_WAIT, INSTANCES_MAX, InstanceId, Pool,
};
use understudy_supervision::clock;

use crate::abi::{Args, CallError, Outcome};
use crate::engine::{Compiled, Limits};
use crate::instance::{Instance, Setup};
use crate::library::{Library, LoadError};
use crate::module::{ModuleHash, ModuleId, ModuleSource};
use crate::policy::{DenialSink, Policy, PolicyError};
use crate::threads::GuestThreads;
use crate::wasi::Log;

/// Calls on their way to a pool's task. The machine holds those that wait; this only bridges the moment
/// until the task takes them.
const MAILBOX: usize = 64;

/// The longest a call may take, if its caller sets no earlier deadline: the pool's own wait and the
/// longest run together.
pub const CALL_MAX: Duration = Duration::from_secs(20);

/// A pool without instances and calls for this long ends: its module may never be called again.
const END_IDLE: Duration = Duration::from_secs(60);

/// The most pools of one node. Each is a task and some kilobytes; its instances are bounded by the
/// engine's slots.
pub const POOLS_MAX: usize = 512;

/// A call of a function.
#[derive(Clone, Debug, PartialEq)]
pub struct FunctionCall {
    /// Which export.
    pub export: String,
    /// With what.
    pub args: FunctionArgs,
    /// When the caller stops waiting, on the node's clock.
    pub deadline: Time,
}

/// The arguments of a call; see [`Args`].
#[derive(Clone, Debug, PartialEq)]
pub enum FunctionArgs {
    /// Numbers, one a parameter.
    Numbers(Vec<Value>),
    /// Bytes, through the guest's memory.
    Bytes(Bytes),
}

/// How a call ended that the guest brought to its end.
#[derive(Clone, Debug, PartialEq)]
pub enum FunctionOutcome {
    /// Its results.
    Numbers(Vec<Value>),
    /// Its answer.
    Bytes(Bytes),
    /// It says that it failed.
    Failed {
        /// Its code: see [`crate::abi::Failure`].
        code: u32,
        /// Its words.
        message: String,
    },
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct FunctionAnswer {
    /// How it ended.
    pub outcome: FunctionOutcome,
    /// What it wrote.
    pub log: Log,
    /// How often it was denied something.
    pub denied: u32,
}

/// Why a call has no outcome. A function has no state, so calling again is always right; whether it
/// helps is said with each.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FunctionError {
    /// Too many calls. It did not begin, and may after this time.
    #[error("too many calls of this function: try again in {retry_after:?}")]
    Overloaded {
        /// How long to wait.
        retry_after: Duration,
    },
    /// The deadline came. It may have begun.
    #[error("the function did not answer before the deadline")]
    DeadlineExceeded,
    /// The guest did not bring it to its end, or cannot be called so; calling again will most likely end
    /// likewise.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The module is not to be had.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The policy is none.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The node is stopping. It may have begun.
    #[error("the node is stopping")]
    Stopping,
}

impl FunctionError {
    /// A word for machines: a type of error of the HTTP interface.
    pub fn code(&self) -> &'static str {
        match self {
            FunctionError::Overloaded { .. } => "overloaded",
            FunctionError::DeadlineExceeded => "deadline_exceeded",
            FunctionError::Call(error) => error.code(),
            FunctionError::Load(error) => error.code(),
            FunctionError::Policy(_) => "invalid",
            FunctionError::Stopping => "unavailable",
        }
    }
}

/// What a pool is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Instances, those starting included.
    pub instances: usize,
    /// Calls that wait.
    pub waiting: usize,
    /// How many instances are in each state, in the order of [`State::ALL`].
    pub now: [u64; State::ALL.len()],
    /// How often an instance entered each state, in the order of [`State::ALL`].
    pub entered: [u64; State::ALL.len()],
    /// Calls that were answered with an outcome.
    pub answered: u64,
    /// Calls that ended with an error of the guest's, or at their deadline.
    pub failed: u64,
    /// Calls that were refused.
    pub refused: u64,
}

/// The functions of a node: a pool for each module, tenant and policy.
pub struct Functions<M> {
    library: Library<M>,
    denials: DenialSink,
    instances_max: NonZeroU32,
    pools: Mutex<HashMap<PoolKey, Arc<FunctionPool>>>,
}

/// What a pool is one of. Another tenant's calls, or those of another policy, have a pool of their own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PoolKey {
    tenant: String,
    sha256: [u8; 32],
    /// The policy and the limits, as JSON.
    grants: String,
}

impl<M: ModuleSource> Functions<M> {
    /// The functions of a library, which run on its threads. Denials are told to `denials`.
    pub fn new(library: Library<M>, denials: DenialSink) -> Functions<M> {
        let instances_max = NonZeroU32::new(INSTANCES_MAX).unwrap_or(NonZeroU32::MIN);
        Functions {
            library,
            denials,
            instances_max,
            pools: Mutex::default(),
        }
    }

    /// As [`Functions::new`], with so many instances in each pool.
    #[must_use]
    pub fn with_instances(self, instances_max: NonZeroU32) -> Functions<M> {
        Functions {
            instances_max,
            ..self
        }
    }

    /// Calls a function of a tenant's module; with `sha256`, only if the module has that hash.
    ///
    /// # Errors
    /// See [`FunctionError`].
    pub async fn call(
        &self,
        tenant: &str,
        module: &ModuleId,
        sha256: Option<ModuleHash>,
        grants: (&Policy, Limits),
        call: FunctionCall,
    ) -> Result<FunctionAnswer, FunctionError> {
        let (policy, limits) = grants;
        policy.check()?;
        let left = call.deadline.since(clock::now()).min(CALL_MAX);
        let loaded = timeout(left, self.library.load(tenant, module, sha256)).await;
        let compiled = loaded.map_err(|_| FunctionError::DeadlineExceeded)??;
        let setup = Setup {
            policy: policy.clone(),
            limits,
            tenant: tenant.to_owned(),
            name: module.to_string(),
            denials: self.denials.clone(),
        };
        let pool = self.pool(compiled.clone(), setup.clone())?;
        match pool.call(call.clone()).await {
            // It had just ended for want of calls, and took this one no more.
            Err(FunctionError::Stopping) if pool.has_ended() => {
                self.pool(compiled, setup)?.call(call).await
            }
            done => done,
        }
    }

    /// What every pool is doing.
    pub fn stats(&self) -> Vec<PoolStats> {
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.values().map(|pool| pool.stats()).collect()
    }

    fn pool(&self, compiled: Compiled, setup: Setup) -> Result<Arc<FunctionPool>, FunctionError> {
        let grants = serde_json::to_string(&(&setup.policy, &setup.limits)).unwrap_or_default();
        let key = PoolKey {
            tenant: setup.tenant.clone(),
            sha256: *compiled.sha256(),
            grants,
        };
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(&key).filter(|pool| !pool.has_ended()) {
            return Ok(pool.clone());
        }
        pools.retain(|_, pool| !pool.has_ended());
        if pools.len() >= POOLS_MAX {
            return Err(FunctionError::Overloaded {
                retry_after: END_IDLE,
            });
        }
        let threads = self.library.threads().clone();
        let pool = FunctionPool::start(compiled, setup, self.instances_max, threads);
        let pool = Arc::new(pool);
        pools.insert(key, pool.clone());
        Ok(pool)
    }
}

impl<M> std::fmt::Debug for Functions<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Functions")
    }
}

/// The pool of one module. Dropping it ends its calls.
#[derive(Debug)]
pub struct FunctionPool {
    calls: mpsc::Sender<Asked>,
    stats: watch::Receiver<PoolStats>,
    /// The one task, which ends with this.
    _task: JoinSet<()>,
}

#[derive(Debug)]
struct Asked {
    call: FunctionCall,
    reply: oneshot::Sender<Result<FunctionAnswer, FunctionError>>,
}

impl FunctionPool {
    /// An empty pool, whose instances are made so. Must be called in a runtime.
    pub fn start(
        compiled: Compiled,
        setup: Setup,
        instances_max: NonZeroU32,
        threads: GuestThreads,
    ) -> FunctionPool {
        let (calls, asked) = mpsc::channel(MAILBOX);
        let (shown, stats) = watch::channel(PoolStats::default());
        let owner = Owner {
            pool: Pool::new(instances_max),
            compiled,
            setup,
            asked: BTreeMap::new(),
            next_call: 0,
            slots: BTreeMap::new(),
            work: JoinSet::new(),
            threads,
            workers: HashMap::new(),
            stats: PoolStats::default(),
            shown,
        };
        let mut task = JoinSet::new();
        task.spawn(owner.run(asked));
        FunctionPool {
            calls,
            stats,
            _task: task,
        }
    }

    /// Calls a function. Dropping the future ends the call.
    ///
    /// # Errors
    /// See [`FunctionError`].
    pub async fn call(&self, call: FunctionCall) -> Result<FunctionAnswer, FunctionError> {
        let now = clock::now();
        let left = call.deadline.since(now).min(CALL_MAX);
        if left.is_zero() {
            return Err(FunctionError::DeadlineExceeded);
        }
        let deadline = now + left;
        let (reply, answer) = oneshot::channel();
        let call = FunctionCall { deadline, ..call };
        let sent = self.calls.try_send(Asked { call, reply });
        if let Err(error) = sent {
            let retry_after = GROW_WAIT;
            return Err(match error {
                mpsc::error::TrySendError::Full(_) => FunctionError::Overloaded { retry_after },
                mpsc::error::TrySendError::Closed(_) => FunctionError::Stopping,
            });
        }
        match timeout(left, answer).await {
            Ok(answer) => answer.unwrap_or(Err(FunctionError::Stopping)),
            Err(_) => Err(FunctionError::DeadlineExceeded),
        }
    }

    /// What it is doing.
    pub fn stats(&self) -> PoolStats {
        *self.stats.borrow()
    }

    fn has_ended(&self) -> bool {
        self.calls.is_closed()
    }
}

/// What the task of a pool holds.
struct Owner {
    pool: Pool,
    compiled: Compiled,
    setup: Setup,
    /// Calls that wait.
    asked: BTreeMap<CallId, Asked>,
    next_call: u64,
    slots: BTreeMap<InstanceId, Slot>,
    work: JoinSet<Done>,
    /// On which guests run: not the node's own.
    threads: GuestThreads,
    /// Whose each task is: one that panics says no more.
    workers: HashMap<Id, InstanceId>,
    stats: PoolStats,
    shown: watch::Sender<PoolStats>,
}

/// One of the machine's instances.
struct Slot {
    life: Lifecycle,
    /// An instance in its first state, if one is made already; or why none could be.
    fresh: Option<Result<Instance, CallError>>,
}

/// What a task came to.
enum Done {
    /// An instance was made, or not.
    Made(Result<Instance, CallError>),
    /// A call is over, and its caller has heard.
    Ran(Fate),
}

/// How a call left its instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It ended by itself.
    Answered,
    /// It did not begin, or ended with an error before the guest ran.
    Declined,
    /// The instance is gone.
    Spent,
}

impl Owner {
    async fn run(mut self, mut asked: mpsc::Receiver<Asked>) {
        let mut idle_since = clock::now();
        loop {
            let now = clock::now();
            let rests = self.slots.is_empty() && self.asked.is_empty();
            if !rests {
                idle_since = now;
            }
            let deadline = match self.pool.next_deadline() {
                None if rests => idle_since + END_IDLE,
                deadline => deadline.unwrap_or(Time::MAX),
            };
            tokio::select! {
                call = asked.recv() => match call {
                    Some(call) => self.arrive(call),
                    None => return,
                },
                Some(done) = self.work.join_next_with_id() => self.finish(done),
                () = sleep(deadline.since(now)) => {
                    if rests && clock::now().since(idle_since) >= END_IDLE {
                        // Whoever sends meanwhile is told `Stopping`, and the next call makes a new pool.
                        asked.close();
                        while let Some(late) = asked.recv().await {
                            let _ = late.reply.send(Err(FunctionError::Stopping));
                        }
                        return;
                    }
                    self.tell(Event::Tick);
                }
            }
            self.show();
        }
    }

    fn arrive(&mut self, asked: Asked) {
        let call = CallId(self.next_call);
        self.next_call += 1;
        self.asked.insert(call, asked);
        self.tell(Event::Arrive(call));
    }

    /// Feeds the machine and does what it says, to the end.
    fn tell(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            if let Err(error) = self.pool.handle(clock::now(), event) {
                tracing::error!(%error, ?event, "the pool refused an event");
            }
            while let Some(action) = self.pool.poll_action() {
                events.extend(self.act(action));
            }
        }
    }

    /// Does one thing; and says what came of it, if that is known at once.
    fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Create(id) => {
                self.create(id);
                None
            }
            Action::Reset(id) => {
                self.enter(id, State::Ready);
                None
            }
            Action::Assign { call, instance } => self.assign(call, instance),
            Action::Retire(id) => {
                self.enter(id, State::Disposed);
                self.slots.remove(&id);
                None
            }
            Action::Refuse { call, retry_after } => {
                if let Some(asked) = self.asked.remove(&call) {
                    self.stats.refused += 1;
                    let _ = asked
                        .reply
                        .send(Err(FunctionError::Overloaded { retry_after }));
                }
                None
            }
        }
    }

    fn create(&mut self, id: InstanceId) {
        let life = Lifecycle::new(clock::now());
        self.stats.entered[State::Pending as usize] += 1;
        self.slots.insert(id, Slot { life, fresh: None });
        let (compiled, setup) = (self.compiled.clone(), self.setup.clone());
        let work = async move { Done::Made(Instance::create(&compiled, setup).await) };
        let worker = self.work.spawn_on(work, self.threads.handle()).id();
        self.workers.insert(worker, id);
    }

    /// Runs a call in an instance that has run none, or says at once that there is nothing to run.
    fn assign(&mut self, call: CallId, id: InstanceId) -> Option<Event> {
        let asked = self.asked.remove(&call);
        let asked = asked.filter(|asked| !asked.reply.is_closed());
        let Some(Asked { call, mut reply }) = asked else {
            self.enter(id, State::Running);
            self.enter(id, State::Idle);
            return Some(Event::Freed(id));
        };
        self.enter(id, State::Running);
        let fresh = self.slots.get_mut(&id).and_then(|slot| slot.fresh.take());
        let (compiled, setup) = (self.compiled.clone(), self.setup.clone());
        let work = async move {
            let left = call.deadline.since(clock::now());
            let running = timeout(left, run_one(fresh, compiled, setup, call));
            let (answer, fate) = tokio::select! {
                done = running => done.unwrap_or((Err(FunctionError::DeadlineExceeded), Fate::Spent)),
                () = reply.closed() => return Done::Ran(Fate::Spent),
            };
            let _ = reply.send(answer);
            Done::Ran(fate)
        };
        let worker = self.work.spawn_on(work, self.threads.handle()).id();
        self.workers.insert(worker, id);
        None
    }

    fn finish(&mut self, done: Result<(Id, Done), JoinError>) {
        let (worker, done) = match done {
            Ok((worker, done)) => (worker, done),
            Err(error) => {
                tracing::error!(%error, "a task of a pool was lost");
                (error.id(), Done::Ran(Fate::Spent))
            }
        };
        let Some(id) = self.workers.remove(&worker) else {
            return;
        };
        let event = match done {
            // As many guests run as may: the machine tries again later, and the calls wait.
            Done::Made(Err(CallError::Crowded)) => Event::Failed(id),
            // A guest that cannot even begin: its callers shall hear why, so they get to it.
            Done::Made(made) => {
                self.enter(id, State::Loaded);
                self.enter(id, State::Ready);
                if let Some(slot) = self.slots.get_mut(&id) {
                    slot.fresh = Some(made);
                }
                Event::Ready(id)
            }
            Done::Ran(Fate::Spent) => {
                self.stats.failed += 1;
                Event::Failed(id)
            }
            Done::Ran(fate) => {
                match fate {
                    Fate::Answered => self.stats.answered += 1,
                    _ => self.stats.failed += 1,
                }
                self.enter(id, State::Idle);
                Event::Freed(id)
            }
        };
        if let Event::Failed(id) = event {
            self.enter(id, State::Disposed);
            self.slots.remove(&id);
        }
        self.tell(event);
    }

    /// Notes where an instance is. Being where it should go already is no move.
    fn enter(&mut self, id: InstanceId, to: State) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        if slot.life.state() == to {
            return;
        }
        match slot.life.handle(clock::now(), lifecycle::Event::Enter(to)) {
            Ok(()) => self.stats.entered[to as usize] += 1,
            Err(error) => tracing::error!(%error, instance = %id, "an instance of a pool"),
        }
        while slot.life.poll_action().is_some() {}
    }

    fn show(&mut self) {
        self.stats.instances = self.pool.instances();
        self.stats.waiting = self.pool.waiting();
        self.stats.now = [0; State::ALL.len()];
        for slot in self.slots.values() {
            self.stats.now[slot.life.state() as usize] += 1;
        }
        self.shown.send_replace(self.stats);
    }
}

/// One call in one fresh instance, which is dropped after it.
async fn run_one(
    fresh: Option<Result<Instance, CallError>>,
    compiled: Compiled,
    setup: Setup,
    call: FunctionCall,
) -> (Result<FunctionAnswer, FunctionError>, Fate) {
    if call.deadline <= clock::now() {
        return (Err(FunctionError::DeadlineExceeded), Fate::Spent);
    }
    let made = match fresh {
        Some(made) => made,
        None => Instance::create(&compiled, setup).await,
    };
    let mut instance = match made {
        Ok(instance) => instance,
        Err(CallError::Crowded) => {
            let retry_after = GROW_WAIT;
            return (Err(FunctionError::Overloaded { retry_after }), Fate::Spent);
        }
        Err(error) => return (Err(error.into()), Fate::Declined),
    };
    let args = match &call.args {
        FunctionArgs::Numbers(numbers) => Args::Numbers(numbers),
        FunctionArgs::Bytes(bytes) => Args::Bytes(bytes),
    };
    let kept = |outcome: Outcome<'_>| match outcome {
        Outcome::Numbers(numbers) => FunctionOutcome::Numbers(numbers),
        Outcome::Bytes(bytes) => FunctionOutcome::Bytes(Bytes::copy_from_slice(bytes)),
        Outcome::Failed { code, message } => FunctionOutcome::Failed { code, message },
    };
    match instance.call(&call.export, args, kept).await {
        Ok(outcome) => {
            let log = instance.log().clone();
            let denied = instance.denied();
            let answer = FunctionAnswer {
                outcome,
                log,
                denied,
            };
            (Ok(answer), Fate::Answered)
        }
        Err(error) => {
            let fate = if instance.is_spent() {
                Fate::Spent
            } else {
                Fate::Declined
            };
            (Err(error.into()), fate)
        }
    }
}
