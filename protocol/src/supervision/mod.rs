//! Who is started again, when, in what order, and when to give up. Read [`supervisor`] first.
//!
//! Owns: the decision of OTP's supervisors (strategy, restart type, restart intensity, escalation),
//! backoff with jitter, and strikes. Never does: start or stop anything, choose a node, read a
//! clock, draw a random number.
//!
//! The words are OTP's, so that whoever knows Erlang or Elixir can guess what happens, and near and
//! far mean the same (I6): one machine, [`Supervisor`], runs in two places. In the directory its
//! state is replicated data, its children are units and further supervisors, and its clock is the
//! directory's; on a node's shard host its children are light children, and it is gone with the
//! node. That is why it is generic over its children's names and stores whole milliseconds of
//! whatever clock it is given.
//!
//! Three things are not OTP's, because OTP has one node and we have many:
//!
//! - **A machine that dies is nobody's fault** (V1). Children lost with a node, or moved by a drain,
//!   start again at once and count as no restart. Their group still restarts with them.
//! - **Unless it was somebody's fault** (V2). A child that was starting or at work when its process
//!   died gets a strike. Without strikes a poisonous unit would walk through the cluster, killing
//!   one innocent node after another, and each death would be forgiven.
//! - **Backoff.** OTP restarts at once and leaves the damping to the intensity. Thousands of
//!   children that failed together would then start together, so each waits a jittered while.
//!
//! ```text
//!   policy    pure values: which exits restart, how many are too many, how long to wait
//!   strikes   pure values: who is poisonous
//!   child     one child's life, and what its coming down means
//!   roster    the children and their start order, indexed
//!   supervisor   the machine: groups, order, escalation
//! ```

mod child;
pub mod policy;
mod roster;
pub mod strikes;
pub mod supervisor;

pub use policy::{Backoff, Exit, Intensity, Policy, RestartType, Strategy};
pub use strikes::Strikes;
pub use supervisor::{Action, ChildState, Event, Supervisor, SupervisorError};
