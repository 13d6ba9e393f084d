//! The one shape of every state machine here.
//!
//! ```text
//!   event ──> handle(now, event) ──> state ──> poll_action() ──> action, action, …, None
//!                                      └─────> next_deadline() ──> when to send the next tick
//! ```
//!
//! A shell feeds events, then drains `poll_action` to `None`, carrying each action out before it
//! lets anything leave the node. It chooses nothing. When `next_deadline` has come it feeds the
//! machine's `Tick` event; a tick that comes early or twice is harmless.

use crate::time::Time;

/// A deciding machine without IO. Learn one, read all.
pub trait Machine {
    /// What may happen to it. A closed set, so that a log of events replays.
    type Event;
    /// What it wants done.
    type Action;
    /// Why an event was refused. A refused event left the state as it was.
    type Error;

    /// Takes one event in. `now` never goes backwards within one incarnation.
    fn handle(&mut self, now: Time, event: Self::Event) -> Result<(), Self::Error>;

    /// The next thing to do, oldest first; `None` when all is done.
    fn poll_action(&mut self) -> Option<Self::Action>;

    /// When the machine wants its `Tick`, if ever.
    fn next_deadline(&self) -> Option<Time>;
}
