//! The engine of a node: one pool of instances, one clock of slices, compiled modules.
//!
//! Owns: how guests are compiled and in what they run: Cranelift only, memories and stacks from a pool
//! whose slots are reset by the kernel, a tick every [`SLICE`]. Never decides who may run or for how
//! long: that is said with each instance ([`Limits`]).
//!
//! What is switched off is what ordinary toolchains do not need and what has broken sandboxes: threads,
//! exceptions, garbage-collected heaps, 64-bit memories, relaxed vectors (whose results differ from
//! machine to machine). Floats that are not a number are made canonical, so that a guest which moves
//! goes on with the same bits.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wasmtime::{
    InstanceAllocationStrategy, InstancePre, Linker, PoolingAllocationConfig, Strategy,
};

use crate::dirty::Scanner;
use crate::instance::{Host, Instance};
use crate::rewrite::{self, Layout, RewriteError};
use crate::snapshot::stored_len;
use crate::wasi;

/// For how long a guest holds its core before others get their turn: long enough that the change costs
/// nothing, short enough that a node's own tasks on the same thread keep their deadlines.
pub const SLICE: Duration = Duration::from_millis(10);

/// How many slices one call may take unless its limits say otherwise: a second of one core.
pub const CALL_SLICES: u32 = 100;

/// How long one call may take by the clock, sleeps and host calls included: on a machine so busy that a
/// second of work takes ten, somebody else's retry serves the caller better.
pub const CALL_LIMIT: Duration = Duration::from_secs(10);

/// How many functions of the host's one call may use: what the cheapest of them costs, so often, is a
/// fifth of a second in which the node works for the guest.
pub const HOST_CALLS: u32 = 4_000_000;

/// How many bytes the host copies for one call: as long as that again, and more than a hundred times all
/// the files that a guest may have.
pub const HOST_BYTES: u64 = 1 << 30;

/// The largest memory that any guest may have. A node with a thousand of them, all full, would not fit
/// in anything; this is what one large script interpreter needs.
pub const MAX_MEMORY: usize = 256 << 20;

/// How many elements a table may have: the largest we have seen in real programs has some ten thousand.
pub const MAX_TABLE_ELEMENTS: usize = 20_000;

/// How many tables one module may have: compilers make one, and some tools add another.
pub const MAX_TABLES: u32 = 4;

/// How many instances may live at once. Each reserves 4 GiB of addresses (not memory), which spares every
/// access its bounds check: a thousand are 4 TiB of the 128 that a process has.
pub const SLOTS: u32 = 1_000;

/// Where addresses are scarce, fewer slots are tried down to this many, below which a node is of no use.
const MIN_SLOTS: u32 = 16;

/// How deep a guest may recurse, in bytes of stack. What most platforms give a native thread is more;
/// what real guests use is less than a tenth.
const WASM_STACK: usize = 512 << 10;

/// A guest's stack and the host functions' that it calls on top of it.
const ASYNC_STACK: usize = 1 << 20;

/// How large one module's table of contents in an instance may be: functions, types and globals.
const MAX_INSTANCE_BYTES: usize = 2 << 20;

/// What one instance may use. Whatever is above what the engine allows is cut to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Elements of each table.
    pub table_elements: u32,
    /// Slices of [`SLICE`] for one call.
    pub slices: u32,
    /// Milliseconds that one call may take by the clock.
    pub call_ms: u32,
    /// Functions of the host's that one call may use.
    pub host_calls: u32,
    /// Bytes that the host copies for one call.
    pub host_bytes: u64,
}

impl Limits {
    /// As these, but never more than `max`.
    #[must_use]
    pub fn within(self, max: Limits) -> Limits {
        Limits {
            memory_bytes: self.memory_bytes.min(max.memory_bytes),
            table_elements: self.table_elements.min(max.table_elements),
            slices: self.slices.min(max.slices),
            call_ms: self.call_ms.min(max.call_ms),
            host_calls: self.host_calls.min(max.host_calls),
            host_bytes: self.host_bytes.min(max.host_bytes),
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            memory_bytes: MAX_MEMORY as u64,
            table_elements: MAX_TABLE_ELEMENTS as u32,
            slices: CALL_SLICES,
            call_ms: CALL_LIMIT.as_millis() as u32,
            host_calls: HOST_CALLS,
            host_bytes: HOST_BYTES,
        }
    }
}

/// Why there is no engine. Nothing runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// Not even the smallest pool could be reserved, or the machine cannot run what we compile.
    #[error("the engine of guests cannot start: {0}")]
    Refused(String),
    /// The thread that ends slices cannot be started.
    #[error("the thread that ends guests' slices cannot start: {0}")]
    Ticker(std::io::Error),
}

/// Why a module was not compiled. Nothing of it is kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// It is no module, or uses our names.
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
    /// It is not valid, or needs what is switched off here.
    #[error("the module is not valid here: {0}")]
    Invalid(String),
    /// It imports what no policy can give it.
    #[error("the module asks for what there is not: {0}")]
    Import(String),
    /// It does not fit the pool: too large a memory or too many tables to begin with.
    #[error("the module is too large: {0}")]
    TooLarge(String),
}

/// The engine of a node. Clones are the same engine; it ends with the last clone and the last module.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    wasmtime: wasmtime::Engine,
    linker: Linker<Host>,
    scanner: Scanner,
    slots: u32,
    // Last, so that time goes on until nothing runs any more.
    _ticker: Ticker,
}

impl Engine {
    /// An engine with [`SLOTS`] slots, or as many as the machine has addresses for.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn new() -> Result<Engine, EngineError> {
        Engine::with_slots(SLOTS)
    }

    /// An engine for so many instances at once; fewer where addresses are scarce.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn with_slots(slots: u32) -> Result<Engine, EngineError> {
        Engine::build(slots, Scanner::new())
    }

    /// As [`Engine::with_slots`], with a scanner of one's own choice.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn build(slots: u32, scanner: Scanner) -> Result<Engine, EngineError> {
        tracing::info!(method = %scanner.method(), "how guests' written pages are found");
        let mut slots = slots.max(1);
        let wasmtime = loop {
            match wasmtime::Engine::new(&configuration(slots)) {
                Ok(engine) => break engine,
                Err(error) if slots <= MIN_SLOTS => {
                    return Err(EngineError::Refused(format!("{error:#}")));
                }
                Err(error) => {
                    tracing::warn!(slots, %error, "no addresses for so many guests: trying half");
                    slots = (slots / 2).max(MIN_SLOTS);
                }
            }
        };
        let mut linker = Linker::new(&wasmtime);
        wasi::add_to_linker(&mut linker, Host::wasi)
            .map_err(|error| EngineError::Refused(format!("{error:#}")))?;
        let ticker = Ticker::start(wasmtime.clone()).map_err(EngineError::Ticker)?;
        Ok(Engine(Arc::new(Inner {
            wasmtime,
            linker,
            scanner,
            slots,
            _ticker: ticker,
        })))
    }

    /// Compiles a module. Takes seconds for a large one, so call it where a thread may be held.
    ///
    /// # Errors
    /// See [`CompileError`].
    pub fn compile(&self, wasm: &[u8]) -> Result<Compiled, CompileError> {
        let rewritten = rewrite::rewrite(wasm)?;
        let invalid = |error: wasmtime::Error| CompileError::Invalid(format!("{error:#}"));
        let module = wasmtime::Module::new(&self.0.wasmtime, &rewritten.wasm).map_err(invalid)?;
        let needs = module.resources_required();
        let memory_pages = needs.max_initial_memory_size.unwrap_or(0);
        if memory_pages.saturating_mul(PAGE_BYTES) > MAX_MEMORY as u64 {
            let why = format!("a memory of {memory_pages} pages");
            return Err(CompileError::TooLarge(why));
        }
        if needs.num_tables > MAX_TABLES
            || needs.max_initial_table_size.unwrap_or(0) > MAX_TABLE_ELEMENTS as u64
        {
            return Err(CompileError::TooLarge("its tables".to_owned()));
        }
        let pre = self.0.linker.instantiate_pre(&module);
        let pre = pre.map_err(|error| CompileError::Import(format!("{error:#}")))?;
        Ok(Compiled(Arc::new(CompiledInner {
            engine: self.clone(),
            sha256: Sha256::digest(wasm).into(),
            layout: rewritten.layout,
            pre,
            image: OnceLock::new(),
        })))
    }

    /// How many instances may live at once.
    pub fn slots(&self) -> u32 {
        self.0.slots
    }

    /// How many instances live now.
    pub fn live(&self) -> u64 {
        let metrics = self.0.wasmtime.pooling_allocator_metrics();
        metrics.map_or(0, |metrics| metrics.core_instances())
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.0.wasmtime
    }

    pub(crate) fn scanner(&self) -> &Scanner {
        &self.0.scanner
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("slots", &self.0.slots)
            .finish_non_exhaustive()
    }
}

/// The size of a page of WebAssembly memory.
pub const PAGE_BYTES: u64 = 64 << 10;

/// A compiled module. Clones are the same module.
#[derive(Clone)]
pub struct Compiled(Arc<CompiledInner>);

struct CompiledInner {
    engine: Engine,
    sha256: [u8; 32],
    layout: Layout,
    pre: InstancePre<Host>,
    /// What a memory of it begins with, once one of its guests has a state that is kept.
    image: OnceLock<Vec<u8>>,
}

impl Compiled {
    /// The SHA-256 of the bytes that it was compiled from.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.0.sha256
    }

    /// Where its instances keep their state.
    pub fn layout(&self) -> &Layout {
        &self.0.layout
    }

    /// The engine that it was compiled for.
    pub fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// Copies what a memory of it begins with, out of an instance in which nothing has run, unless that
    /// was done before.
    pub(crate) fn remember_image(&self, untouched: &Instance) {
        let memory = untouched.memory();
        let image = || memory[..stored_len(memory)].to_vec();
        self.0.image.get_or_init(image);
    }

    /// What a memory of it begins with, zeros beyond it; empty unless it was remembered.
    pub(crate) fn remembered_image(&self) -> &[u8] {
        self.0.image.get().map_or(&[], Vec::as_slice)
    }

    pub(crate) fn pre(&self) -> &InstancePre<Host> {
        &self.0.pre
    }
}

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiled")
            .field("layout", &self.0.layout)
            .finish_non_exhaustive()
    }
}

fn configuration(slots: u32) -> wasmtime::Config {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_core_instances(slots)
        .total_memories(slots)
        .total_tables(slots)
        .total_stacks(slots)
        .max_memories_per_module(1)
        .max_tables_per_module(MAX_TABLES)
        .max_memory_size(MAX_MEMORY)
        .table_elements(MAX_TABLE_ELEMENTS)
        .max_core_instance_size(MAX_INSTANCE_BYTES)
        // A slot that keeps pages of its last guest would show them as this guest's writes; and the
        // engine's own scan for them (`pagemap_scan`, off unless asked for) overlooks swapped pages.
        .linear_memory_keep_resident(0)
        .table_keep_resident(0);
    let mut config = wasmtime::Config::new();
    config
        .strategy(Strategy::Cranelift)
        .cranelift_nan_canonicalization(true)
        .epoch_interruption(true)
        .max_wasm_stack(WASM_STACK)
        .async_stack_size(ASYNC_STACK)
        .memory_init_cow(true)
        .wasm_bulk_memory(true)
        .wasm_multi_value(true)
        .wasm_simd(true)
        .wasm_relaxed_simd(false)
        .wasm_tail_call(false)
        .wasm_multi_memory(false)
        .wasm_memory64(false)
        .wasm_gc(false)
        .wasm_custom_page_sizes(false)
        .shared_memory(false)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}

/// A thread that ends everybody's slice, every [`SLICE`]. It is no task, since it must not wait for the
/// guests that it interrupts.
struct Ticker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    fn start(engine: wasmtime::Engine) -> std::io::Result<Ticker> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("guest-slices".to_owned())
            .spawn(move || {
                while !stopped.load(Ordering::Acquire) {
                    std::thread::park_timeout(SLICE);
                    engine.increment_epoch();
                }
            })?;
        Ok(Ticker {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
