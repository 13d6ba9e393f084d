//! The small machines of a workload: what one child, one tenant or one pool may do next.
//!
//! Owns: a child's lifecycle, a tenant's rate quota, the size and the queues of an elastic pool, and
//! where pages and guests may connect to. Never runs a call, loads a module or kills a process: each
//! machine says what should happen, and a shell does it.
//!
//! ```text
//!   call ──> quota ── refused: 429, retry_after
//!              │ granted
//!              v
//!            pool ──── refused: Overloaded, retry_after
//!              │ Reset, Assign
//!              v
//!          lifecycle   Ready ──> Running ──> Idle ──> …
//! ```
//!
//! They know nothing of one another; the shell that owns them strings them together. Each has the
//! shape of [`Machine`](crate::machine::Machine), so each can be walked at random by a test and
//! replayed from a log, and each refuses with a hint and never in silence: what is full says when to
//! come back.

pub mod egress;
pub mod lifecycle;
pub mod pool;
pub mod quota;
