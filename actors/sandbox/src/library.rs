//! Modules ready to run: fetched, checked, compiled once.
//!
//! Owns: the way from `NAME@VERSION` to code. Never runs any, and never trusts whoever gave the bytes:
//! what they hold is looked at here again, right before they are compiled.
//!
//! ```text
//!   name@version ──ModuleSource──> bytes ──validate──> rewrite, compile ──> Cache ──> Compiled
//! ```

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use crate::cache::{Cache, GaveUp};
use crate::engine::{CompileError, Compiled, Engine};
use crate::module::{Module, ModuleError, ModuleHash, ModuleId, ModuleSource};
use crate::threads::GuestThreads;
use crate::validate::{Limits, ValidateError, validate};

/// How many names are remembered with their hashes: a sealed version never changes, so a name that was
/// fetched once need not be fetched again.
const REMEMBERED_MAX: usize = 1_000;

/// Where a node's guests come from. A clone is the same library.
pub struct Library<M>(Arc<Inner<M>>);

struct Inner<M> {
    engine: Engine,
    /// Of the engine's settings: the other half of what names compiled code.
    settings: u64,
    threads: GuestThreads,
    source: M,
    limits: Limits,
    cache: Cache<Compiled, LoadError>,
    remembered: Mutex<HashMap<(String, ModuleId), ModuleHash>>,
}

/// Why there is nothing to run. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// It was not to be had.
    #[error(transparent)]
    Fetch(#[from] ModuleError),
    /// It has another hash than the caller wants.
    #[error("the module has the SHA-256 {found}, not {wanted}")]
    WrongHash {
        /// What was wanted.
        wanted: ModuleHash,
        /// What it has.
        found: ModuleHash,
    },
    /// It may not run here.
    #[error(transparent)]
    Invalid(#[from] ValidateError),
    /// The compiler refuses it.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The compiler came to no end.
    #[error(transparent)]
    GaveUp(#[from] GaveUp),
}

impl LoadError {
    /// A word for machines: a type of error of the HTTP interface.
    pub fn code(&self) -> &'static str {
        match self {
            LoadError::Fetch(ModuleError::NotFound(_)) => "not_found",
            LoadError::WrongHash { .. } => "conflict",
            LoadError::Invalid(_) | LoadError::Compile(_) => "invalid",
            LoadError::Fetch(_) | LoadError::GaveUp(_) => "unavailable",
        }
    }
}

impl<M: ModuleSource> Library<M> {
    /// A library of what `source` has, compiled for this engine, beside these guests.
    pub fn new(engine: Engine, threads: GuestThreads, source: M) -> Library<M> {
        let mut settings = DefaultHasher::new();
        engine
            .wasmtime()
            .precompile_compatibility_hash()
            .hash(&mut settings);
        Library(Arc::new(Inner {
            engine,
            settings: settings.finish(),
            source,
            limits: Limits::NODE,
            cache: Cache::new(threads.clone()),
            threads,
            remembered: Mutex::new(HashMap::new()),
        }))
    }

    /// The engine that it compiles for.
    pub fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// The threads on which it compiles, and on which its guests should run.
    pub fn threads(&self) -> &GuestThreads {
        &self.0.threads
    }

    /// A tenant's module, ready to run. With `wanted`, only if it has this hash.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub async fn load(
        &self,
        tenant: &str,
        id: &ModuleId,
        wanted: Option<ModuleHash>,
    ) -> Result<Compiled, LoadError> {
        let key = (tenant.to_owned(), id.clone());
        let known = self.lock().get(&key).copied();
        let fits = |found: ModuleHash| match wanted {
            Some(wanted) if wanted != found => Err(LoadError::WrongHash { wanted, found }),
            _ => Ok(()),
        };
        if let Some(sha256) = known {
            fits(sha256)?;
            if let Some(compiled) = self.0.cache.peek(sha256, self.0.settings) {
                return compiled;
            }
        }
        let module = self.0.source.fetch(tenant, id).await?;
        self.remember(key, module.sha256());
        fits(module.sha256())?;
        self.compile(&module).await
    }

    /// A module of which one has the bytes, ready to run.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub async fn compile(&self, module: &Module) -> Result<Compiled, LoadError> {
        let (engine, limits) = (self.0.engine.clone(), self.0.limits);
        let compile = move |module: &Module| {
            validate(module.wasm(), &limits)?;
            Ok(engine.compile(module.wasm())?)
        };
        self.0.cache.get(module, self.0.settings, compile).await?
    }

    /// How many compiled modules are kept, and the bytes that they were compiled from.
    pub fn size(&self) -> (usize, usize) {
        self.0.cache.size()
    }

    fn remember(&self, key: (String, ModuleId), sha256: ModuleHash) {
        let mut remembered = self.lock();
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(key, sha256);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, ModuleId), ModuleHash>> {
        let remembered = self.0.remembered.lock();
        remembered.unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M> Clone for Library<M> {
    fn clone(&self) -> Library<M> {
        Library(self.0.clone())
    }
}

impl<M> std::fmt::Debug for Library<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Library")
    }
}
