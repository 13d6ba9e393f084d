//! One instance of a guest, from its slot in the pool to its end.
//!
//! Owns: a store, its limits, its slices, and what a guest sees of the host ([`Host`]). Never keeps a
//! guest that failed: whoever gets an error after guest code has run drops the instance, since nobody
//! can say what it left half done.
//!
//! A caller who goes away in the middle of a call (its future is dropped) leaves such a guest behind too.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use wasmtime::{
    Memory, PoolConcurrencyLimitError, Store, StoreLimits, StoreLimitsBuilder, UpdateDeadline,
};

use crate::abi::{self, Args, CallError, Exports, Outcome};
use crate::engine::{CALL_LIMIT, Compiled, Limits, MAX_MEMORY, MAX_TABLE_ELEMENTS, MAX_TABLES};
use crate::policy::{DenialSink, Policy};
use crate::rewrite;
use crate::wasi::{Log, Wasi};

/// What a reactor built by ordinary toolchains wants called once before all else.
const INITIALIZE: &str = "_initialize";

/// With what an instance is made.
#[derive(Clone)]
pub struct Setup {
    /// What it may reach: a policy that was [checked](Policy::check).
    pub policy: Policy,
    /// What it may use.
    pub limits: Limits,
    /// Whose it is.
    pub tenant: String,
    /// Which sandbox or function it is.
    pub name: String,
    /// Where it is told what it was denied.
    pub denials: DenialSink,
}

impl Setup {
    /// Nothing granted, the usual limits, and denials told to nobody.
    pub fn of(tenant: &str, name: &str) -> Setup {
        Setup {
            policy: Policy::default(),
            limits: Limits::default(),
            tenant: tenant.to_owned(),
            name: name.to_owned(),
            denials: Arc::new(|_| {}),
        }
    }
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup")
            .field("policy", &self.policy)
            .field("limits", &self.limits)
            .field("tenant", &self.tenant)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What a guest's host functions have at hand.
pub struct Host {
    wasi: Wasi,
    limits: StoreLimits,
    slices_left: u32,
}

impl Host {
    /// The state behind its WASI functions.
    pub fn wasi(&mut self) -> &mut Wasi {
        &mut self.wasi
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}

/// One instance.
pub struct Instance {
    pub(crate) store: Store<Host>,
    pub(crate) instance: wasmtime::Instance,
    pub(crate) memory: Option<Memory>,
    pub(crate) exports: Exports,
    compiled: Compiled,
    setup: Setup,
    is_spent: bool,
}

impl Instance {
    /// A new instance, its start function and `_initialize` run. Together they may take as long as a
    /// call.
    ///
    /// # Errors
    /// As [`Instance::call`]. Nothing is left of it.
    pub async fn create(compiled: &Compiled, setup: Setup) -> Result<Instance, CallError> {
        let mut instance = Instance::bare(compiled, setup).await?;
        instance.initialize().await?;
        Ok(instance)
    }

    /// A new instance in which no code has run: its memory is the module's image.
    pub(crate) async fn bare(compiled: &Compiled, setup: Setup) -> Result<Instance, CallError> {
        let mut store = store(compiled, &setup);
        let instance = instantiate(compiled, &mut store).await?;
        Ok(Instance {
            memory: memory(compiled, &mut store, &instance),
            store,
            instance,
            exports: Exports::default(),
            compiled: compiled.clone(),
            setup,
            is_spent: false,
        })
    }

    /// Runs the start function and `_initialize`, if there are any.
    pub(crate) async fn initialize(&mut self) -> Result<(), CallError> {
        let mut functions = Vec::new();
        for name in [rewrite::START, INITIALIZE] {
            let function = self.instance.get_func(&mut self.store, name);
            functions.extend(function.map(|function| (name, function)));
        }
        if functions.is_empty() {
            return Ok(());
        }
        self.begin_call();
        self.is_spent = true;
        let limit = self.wall_limit();
        let run = async {
            for (name, function) in functions {
                abi::run_plain(&mut self.store, function, name).await?;
            }
            Ok(())
        };
        within(limit, run).await?;
        self.is_spent = false;
        Ok(())
    }

    /// Becomes an instance in which no code has run, but stays spent until it is told that it is in a
    /// state to go on from ([`Instance::set_spent`]). The old one's slot is free before the new one takes
    /// its own, so that a full pool is no obstacle.
    ///
    /// # Errors
    /// As [`Instance::bare`].
    pub(crate) async fn replace(&mut self) -> Result<(), CallError> {
        self.is_spent = true;
        self.memory = None;
        self.exports = Exports::default();
        self.store = store(&self.compiled, &self.setup);
        self.instance = instantiate(&self.compiled, &mut self.store).await?;
        self.memory = memory(&self.compiled, &mut self.store, &self.instance);
        Ok(())
    }

    pub(crate) fn set_spent(&mut self, is_spent: bool) {
        self.is_spent = is_spent;
    }

    /// Calls an export. `with` sees the outcome while it still lies in the guest's memory.
    ///
    /// # Errors
    /// See [`CallError`]. When guest code had already run, the instance [`Instance::is_spent`].
    pub async fn call<R>(
        &mut self,
        export: &str,
        args: Args<'_>,
        with: impl FnOnce(Outcome<'_>) -> R,
    ) -> Result<R, CallError> {
        if self.is_spent {
            return Err(CallError::Spent);
        }
        let prepared = abi::prepare(self, export, &args)?;
        self.begin_call();
        // From here until it is proved to have ended well; a caller who goes away leaves it so.
        self.is_spent = true;
        let limit = self.wall_limit();
        let outcome = within(limit, abi::perform(self, prepared, args, with)).await?;
        self.is_spent = false;
        Ok(outcome)
    }

    /// Whether a call failed half-way: then the instance answers nothing any more.
    pub fn is_spent(&self) -> bool {
        self.is_spent
    }

    /// What it is an instance of.
    pub fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    /// With what it was made.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// What it wrote to its standard output and error during the last call.
    pub fn log(&self) -> &Log {
        self.store.data().wasi.log()
    }

    /// How often it was denied something during the last call.
    pub fn denied(&self) -> u32 {
        self.store.data().wasi.denials()
    }

    /// Its memory. Empty if it has none.
    pub fn memory(&self) -> &[u8] {
        self.memory.map_or(&[], |memory| memory.data(&self.store))
    }

    fn begin_call(&mut self) {
        let host = self.store.data_mut();
        host.wasi.begin_call(&self.setup.limits);
        host.slices_left = self.setup.limits.slices.max(1);
        self.store.set_epoch_deadline(1);
    }

    fn wall_limit(&self) -> Duration {
        Duration::from_millis(self.setup.limits.call_ms.into()).min(CALL_LIMIT)
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance")
            .field("memory_bytes", &self.memory().len())
            .field("is_spent", &self.is_spent)
            .finish_non_exhaustive()
    }
}

/// Waits no longer than that for a call. Most are done before their first slice ends: those take no timer.
async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    let until = Instant::now() + limit;
    let mut call = pin!(call);
    let mut timer = None;
    poll_fn(|context| {
        if let Poll::Ready(done) = call.as_mut().poll(context) {
            return Poll::Ready(done);
        }
        let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        let late = timer.as_mut().poll(context);
        late.map(|()| Err(CallError::Late(limit)))
    })
    .await
}

/// A call's slices are used up. Comes out of the guest as an error of the call.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("out of slices")]
pub(crate) struct OutOfSlices;

fn store(compiled: &Compiled, setup: &Setup) -> Store<Host> {
    let host = Host {
        wasi: Wasi::new(
            setup.policy.clone(),
            &setup.tenant,
            &setup.name,
            setup.denials.clone(),
        ),
        limits: store_limits(&setup.limits),
        slices_left: setup.limits.slices,
    };
    let mut store = Store::new(compiled.engine().wasmtime(), host);
    store.limiter(|host| &mut host.limits);
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|mut store| {
        let host = store.data_mut();
        host.slices_left = host.slices_left.saturating_sub(1);
        match host.slices_left {
            0 => Err(wasmtime::Error::new(OutOfSlices)),
            // This one lets the runtime look at its sockets and timers too. A plain yield is only a
            // place at the end of the line, and guests that take a slice each would keep the node from
            // them for sixty slices.
            _ => Ok(UpdateDeadline::YieldCustom(
                1,
                Box::pin(tokio::task::yield_now()),
            )),
        }
    });
    store
}

async fn instantiate(
    compiled: &Compiled,
    store: &mut Store<Host>,
) -> Result<wasmtime::Instance, CallError> {
    let instance = compiled.pre().instantiate_async(store).await;
    instance.map_err(
        |error| match error.downcast_ref::<PoolConcurrencyLimitError>() {
            Some(_) => CallError::Crowded,
            None => abi::call_error(error, "(instantiation)"),
        },
    )
}

fn memory(
    compiled: &Compiled,
    store: &mut Store<Host>,
    instance: &wasmtime::Instance,
) -> Option<Memory> {
    match compiled.layout().has_memory {
        true => instance.get_memory(store, rewrite::MEMORY),
        false => None,
    }
}

fn store_limits(limits: &Limits) -> StoreLimits {
    let memory = usize::try_from(limits.memory_bytes).unwrap_or(MAX_MEMORY);
    let elements = limits.table_elements as usize;
    StoreLimitsBuilder::new()
        .memory_size(memory.min(MAX_MEMORY))
        .table_elements(elements.min(MAX_TABLE_ELEMENTS))
        .instances(1)
        .memories(1)
        .tables(MAX_TABLES as usize)
        .build()
}
