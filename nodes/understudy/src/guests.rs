//! What WebAssembly guests need of a node: the engine, modules, and somebody who hears of them.
//!
//! Owns: the node's one engine and library, where modules come from (their children, and a folder of
//! those that were fetched before), and the events of what guests do wrong. Never runs a guest: the kinds
//! and the pools do.
//!
//! The engine is made when the node starts, and not when the first guest does: it costs addresses and one
//! thread that wakes for each slice, a machine that has no room for it says so while somebody looks, and
//! the first call after a takeover does not wait for it.
//!
//! ```text
//!   kinds `module`, `sandbox` ──┐                   ┌─ files: by hash, read back with their hash
//!                               ├── Library ── Fetched
//!   functions (the gateway's) ──┘                   └─ Handle::call ── the module's child, anywhere
//! ```

mod events;
mod files;

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{info, warn};

use understudy_config::SandboxConfig;
use understudy_control::handle::{CallError, Handle};
use understudy_gateway::{FunctionAsk, RunFunctions};
use understudy_protocol::id::ChildId;
use understudy_sandbox::engine::{EngineError, SLICE};
use understudy_sandbox::module::{
    self, Answer, Ask, Module, ModuleError, ModuleHash, ModuleId, ModuleSource, Modules,
    TransferError,
};
use understudy_sandbox::pool::Functions;
use understudy_sandbox::threads::GuestThreads;
use understudy_sandbox::{Engine, Library, Limits, Policy, Sandbox, sandbox};
use understudy_supervision::driver::Kinds;

pub(crate) use events::Teller;
use events::Watched;
use files::ModuleFiles;

/// The guests of a node.
pub(crate) struct Guests {
    handle: Arc<OnceLock<Handle>>,
    library: Library<Fetched>,
    teller: Teller,
    limits: Limits,
    function_instances: NonZeroU32,
}

/// Why there are no guests on a node. Nothing is left of what was made for them.
#[derive(Debug, thiserror::Error)]
pub enum GuestsError {
    /// There is no engine.
    #[error("{0}\n  fewer guests need fewer addresses: set `[sandbox] guests` lower")]
    Engine(#[from] EngineError),
    /// There are no threads for them to run on.
    #[error("the threads of guests cannot start: {0}")]
    Threads(std::io::Error),
}

impl Guests {
    /// The engine, and a folder for modules below `data`.
    ///
    /// # Errors
    /// See [`GuestsError`].
    pub(crate) fn start(config: &SandboxConfig, data: &Path) -> Result<Guests, GuestsError> {
        let threads = GuestThreads::start().map_err(GuestsError::Threads)?;
        let engine = Engine::with_slots(config.guests)?;
        if engine.slots() < config.guests {
            warn!(
                slots = engine.slots(),
                wanted = config.guests,
                "this machine has no addresses for so many guests"
            );
        }
        let handle = Arc::<OnceLock<Handle>>::default();
        let fetched = Fetched {
            handle: handle.clone(),
            files: ModuleFiles::open(&data.join("modules"), config.module_cache),
            fetches: Arc::new(Semaphore::new(FETCHES_MAX)),
        };
        Ok(Guests {
            library: Library::new(engine, threads, fetched),
            teller: Teller::new(handle.clone()),
            handle,
            limits: limits(config),
            function_instances: NonZeroU32::new(config.function_instances)
                .unwrap_or(NonZeroU32::MIN),
        })
    }

    /// These kinds, and the two of guests.
    pub(crate) fn register(&self, kinds: Kinds) -> Kinds {
        let sandboxes = Sandbox::telling(self.library.clone(), self.teller.denials());
        let sandboxes = sandboxes.limited(self.limits);
        kinds
            .with(module::KIND, Modules::default())
            .with(sandbox::KIND, Watched::new(sandboxes, self.teller.clone()))
    }

    /// The node that asks for modules, once it runs. Until then none is to be had.
    pub(crate) fn know(&self, handle: Handle) {
        // Nobody else sets it.
        let _ = self.handle.set(handle);
    }

    /// The node's pools. A function is granted nothing, and may use what any guest may.
    pub(crate) fn functions(&self) -> RunFunctions {
        let functions = Functions::new(self.library.clone(), self.teller.denials());
        let functions = Arc::new(functions.with_instances(self.function_instances));
        let (teller, limits) = (self.teller.clone(), self.limits);
        RunFunctions::new(move |ask: FunctionAsk| {
            let (functions, teller) = (functions.clone(), teller.clone());
            async move {
                let FunctionAsk {
                    tenant,
                    module,
                    call,
                } = ask;
                let grants = (&Policy::default(), limits);
                let called = functions.call(&tenant, &module, None, grants, call).await;
                if let Err(error) = &called
                    && error.code() == events::TRAPPED
                {
                    teller.trapped(None, format!("{tenant}/{module}: {error}"));
                }
                called
            }
        })
    }
}

/// What one guest may use at most.
fn limits(config: &SandboxConfig) -> Limits {
    let slices = config.call_cpu.as_millis() / SLICE.as_millis();
    Limits {
        memory_bytes: config.memory_limit,
        slices: u32::try_from(slices).unwrap_or(u32::MAX),
        call_ms: u32::try_from(config.call_limit.as_millis()).unwrap_or(u32::MAX),
        ..Limits::default()
    }
}

/// Modules as their children have them, and as they were fetched before.
struct Fetched {
    handle: Arc<OnceLock<Handle>>,
    files: ModuleFiles,
    fetches: Arc<Semaphore>,
}

impl ModuleSource for Fetched {
    async fn fetch(&self, tenant: &str, id: &ModuleId) -> Result<Module, ModuleError> {
        let unavailable =
            |error: &dyn std::fmt::Display| ModuleError::Unavailable(error.to_string());
        let handle = self.handle.get();
        let handle = handle.ok_or_else(|| unavailable(&"the node is starting"))?;
        let child = ChildId::parse(&format!("{tenant}/{}/{id}", module::KIND));
        let child = child.map_err(|error| unavailable(&error))?;
        let until = Instant::now() + FETCH_PATIENCE;
        // Which bytes a name stands for, only its child can say.
        let look = module::encode(&Ask::Read { offset: 0, len: 0 }, &[]);
        let told = ask(handle, &child, look, until).await;
        let sha256 = hash(told, id)?;
        let _place = self.fetches.acquire().await;
        if let Some(module) = self.files.get(sha256).await {
            return Ok(module);
        }
        let pulled = module::pull(|body| ask(handle, &child, body, until)).await;
        let module = pulled.map_err(|error| match error {
            TransferError::Refused(refusal) if refusal.code == "not_found" => {
                ModuleError::NotFound(id.to_string())
            }
            error => unavailable(&why(error)),
        })?;
        info!(%id, %sha256, bytes = module.wasm().len(), "a module was fetched");
        self.files.put(&module).await;
        Ok(module)
    }
}

/// The hash of a sealed module, out of what its child answered.
fn hash(told: Result<Bytes, CallError>, id: &ModuleId) -> Result<ModuleHash, ModuleError> {
    let told = told.map_err(|error| ModuleError::Unavailable(error.to_string()))?;
    match module::decode(&told) {
        Ok((Answer::Ok(told), _)) => told
            .sha256
            .ok_or_else(|| ModuleError::NotFound(id.to_string())),
        Ok((Answer::Error(refusal), _)) if refusal.code == "not_found" => {
            Err(ModuleError::NotFound(id.to_string()))
        }
        Ok((Answer::Error(refusal), _)) => Err(ModuleError::Unavailable(refusal.detail)),
        Err(why) => Err(ModuleError::Unavailable(why)),
    }
}

/// Asks until there is an answer: reading changes nothing, and what keeps a module away passes.
async fn ask(
    handle: &Handle,
    child: &ChildId,
    body: Bytes,
    until: Instant,
) -> Result<Bytes, CallError> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let asked = handle.call(child.clone(), None, body.clone(), left.min(ASK_PATIENCE));
        let wait = match asked.await {
            Ok(answered) => return Ok(answered.body),
            Err(CallError::Overloaded { retry_after }) => retry_after,
            Err(CallError::Unavailable(_) | CallError::DeadlineExceeded { .. })
                if Instant::now() + AGAIN < until =>
            {
                AGAIN
            }
            Err(error) => return Err(error),
        };
        if Instant::now() + wait >= until {
            return Err(CallError::Overloaded { retry_after: wait });
        }
        tokio::time::sleep(wait).await;
    }
}

fn why(error: TransferError<CallError>) -> String {
    match error {
        TransferError::Call(error) => error.to_string(),
        error => error.to_string(),
    }
}

/// How long a module may take to be here: below the time that a child gets for its start.
const FETCH_PATIENCE: Duration = Duration::from_secs(30);

/// How long one question may take: a failover with room.
const ASK_PATIENCE: Duration = Duration::from_secs(5);

/// Before a child that cannot be asked is asked again.
const AGAIN: Duration = Duration::from_millis(100);

/// Modules fetched at a time: each is held in memory, 32 MiB at most.
const FETCHES_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_configuration_gives_a_guest_all_that_the_engine_has() {
        let usual = SandboxConfig::default();
        assert_eq!(limits(&usual), Limits::default());
        assert_eq!(understudy_config::SLICE, SLICE);
        assert_eq!(
            understudy_config::CALL_LIMIT_MAX,
            understudy_sandbox::engine::CALL_LIMIT
        );
        assert_eq!(
            understudy_config::MEMORY_MAX,
            understudy_sandbox::engine::MAX_MEMORY as u64
        );
        assert_eq!(usual.guests, understudy_sandbox::engine::SLOTS);
    }
}
