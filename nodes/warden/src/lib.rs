//! The small process that outlives a node by just long enough to clean up after it.
//!
//! Owns: the helper processes of a node (Chromium, render workers), the deadline that the node's
//! heart feeds it, the 32 bytes of the death note (rules L10 and L11), and the list of units at work
//! (V2). What it decides stands in [`understudy_protocol::cluster::lease::warden`]; here is the
//! process that carries it out ([`main`]) and the node's end of the line to it ([`WardenClient`]).
//!
//! Never does: running a child, holding a cluster key, or talking to anything but the voters' heart
//! ports, and that only after the node has died and the helpers are reaped. It is kept so small that
//! it has nothing left to crash on: one loop, one thread beside it that starts helpers, no runtime.
//!
//! ```text
//!   node ── Feed, AtWork, AtRest, Voters, Start, Kill ──> warden ── fork, exec ──> helpers
//!   node <── Started, Refused, Ended ─────────────────────┘ │  (die with the warden, PDEATHSIG)
//!   node's process ends ── pidfd ──> kill, reap, keep the note, send it to the voters, exit
//! ```
//!
//! What it does not reach: a process that a helper set loose (a daemon) dies with its helper and with
//! the node, because orphans come to the warden; but not when the warden itself is killed. The node
//! hears [`WardenEvent::Gone`] then and must abort.

mod client;
mod clock;
mod helpers;
mod line;
mod note;
mod process;
mod scratch;
mod sys;

pub use client::{HelperEnd, HelperSpec, SendError, SpawnError, WardenClient, WardenEvent};
pub use line::{HELPER_FDS_MAX, MESSAGE_BYTES_MAX};
pub use note::{KEPT_NOTES_MAX, NOTE_MARK, NotesError, forget_note, kept_notes};
pub use process::main;
