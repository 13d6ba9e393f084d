//! What every supervised child has in common, whatever its kind.
//!
//! Owns: `trait Child` (start from a checkpoint, take a call, give a record, stop), the actor driver
//! that runs one, `trait CheckpointStore` and the store in memory that tests use. These two traits
//! are the public promise to whoever adds a kind of their own.
//!
//! Never does: deciding a restart, a placement or who owns a unit. The machines of
//! `understudy-protocol` decide; the driver feeds them events and carries their actions out, so
//! that a decision can be replayed from a log without any actor running.
//!
//! TUTORIAL.md beside this crate builds a whole kind; its code is `tests/tutorial.rs`.

pub mod child;
pub mod clock;
pub mod counter;
pub mod driver;
mod kinds;
pub mod store;
pub mod testing;
pub mod values;

pub use child::{
    Checkpoint, Child, ChildError, Context, Ender, Handled, Kind, Prodder, Request, StartError,
};
pub use values::Values;
