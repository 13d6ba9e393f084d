//! Where modules come from.

use std::future::Future;

use bytes::Bytes;

/// A module as it was pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its bytes.
    pub wasm: Bytes,
    /// Their SHA-256.
    pub sha256: [u8; 32],
}

/// Why a module is not to be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModuleError {
    /// Nobody pushed it.
    #[error("there is no module {0}")]
    NotFound(String),
    /// Whoever has it cannot be asked now.
    #[error("the module cannot be fetched now: {0}")]
    Unavailable(String),
}

/// Gives modules by name and version.
pub trait ModuleSource: Send + Sync + 'static {
    /// The module `name@version` of a tenant.
    ///
    /// # Errors
    /// See [`ModuleError`]. Nothing has changed.
    fn fetch(
        &self,
        tenant: &str,
        name: &str,
        version: &str,
    ) -> impl Future<Output = Result<Module, ModuleError>> + Send;
}
