//! The browser kind: sessions that outlive the Chromium process they run in.
//!
//! Owns: Chromium processes over the debugging pipe, the filter that shows a client its own session
//! and no other, and what a session's checkpoint holds (cookies, storage by origin, open pages with
//! history, scroll and form state, emulation).
//!
//! Never does: starting Chromium through a shell wrapper, switching its sandbox off unasked, or
//! repeating a request that was not a GET. A restored page that posts a form twice is worse than a
//! page that says it was interrupted.

pub mod cdp;
pub mod client;
pub mod door;
pub mod egress;
pub mod filter;
pub mod host;
pub mod jail;
mod mend;
pub mod process;
pub mod recorder;
pub mod restore;
pub mod session;
mod shape;
pub mod state;
pub mod tunnel;

pub use cdp::{Cdp, CdpError, Event, Heard, Reply, Root};
pub use client::{Ended, serve};
pub use door::Door;
pub use jail::Jail;
pub use process::{Browser, BrowserError, BrowserSetup};
pub use recorder::Recorder;
pub use restore::{Restored, restore};
pub use session::Sessions;
pub use state::{Delta, SessionState, StateError};
