//! What a guest may reach, as data; nothing is the default.

use serde::{Deserialize, Serialize};
use wasmtime::Linker;
use wasmtime_wasi::WasiCtxBuilder;

use crate::instance::Host;

/// What a guest may reach beyond its own memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {}

impl Policy {
    /// Grants what the policy names, for one call.
    pub(crate) fn grant(&self, _builder: &mut WasiCtxBuilder) {}
}

/// Gives the linker every function that a guest may import.
///
/// # Errors
/// Two functions of one name, which is a bug.
pub(crate) fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    wasmtime_wasi::p1::add_to_linker_async(linker, Host::wasi)
}
