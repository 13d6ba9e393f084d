//! The sandbox kind: WebAssembly guests, stateless in pools or durable with a checkpointed memory.
//!
//! Owns: the engine, the module cache (a module is `name@semver` and its SHA-256), the policy of
//! what a guest may import, the limits on its memory and its time, the calling convention, and
//! snapshots as deltas of dirty pages.
//!
//! Never does: letting a guest hold a core for longer than its slice, or reach anything that its
//! policy does not name. Denied is the default, because a guest is somebody else's program.
//!
//! ```text
//!   push ──> Modules: parts, hash, validate ──> sealed: a module is a child, and never changes
//!
//!   name@version ──> Library: fetch, validate, rewrite, compile once ──> Compiled
//!       Compiled ──> Instance::create ──> Instance::call
//!           ├──> Durable: call, checkpoint ──> deltas, images ──> the kind Sandbox
//!           └──> Functions: a pool of fresh instances, sized by the pool machine
//!
//!   guest ──> Wasi: what its Policy grants, from this process's memory ──> or EACCES, and a Denial
//! ```

pub mod abi;
pub mod cache;
pub mod dirty;
pub mod durable;
pub mod engine;
mod files;
pub mod instance;
pub mod library;
pub mod module;
pub mod policy;
pub mod pool;
pub mod rewrite;
pub mod sandbox;
pub mod snapshot;
pub mod threads;
pub mod validate;
pub mod wasi;

pub use abi::{Args, CallError, Outcome};
pub use durable::Durable;
pub use engine::{Compiled, Engine, Limits};
pub use instance::{Instance, Setup};
pub use library::Library;
pub use module::{Module, ModuleHash, ModuleId, ModuleSource, Modules};
pub use policy::Policy;
pub use pool::Functions;
pub use sandbox::Sandbox;
pub use threads::GuestThreads;
