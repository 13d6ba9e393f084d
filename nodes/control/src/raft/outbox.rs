//! Everything that Raft tells the core, in one order.
//!
//! Owns: the order of events, and the facts that may still be truncated. openraft's log, its state
//! machine and the driver run in tasks of their own; what they say must not be reordered: a fact held
//! after a snapshot was read must be told after it. So the room in the queue is taken first, and then
//! the table changes and the event is queued under one short lock.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot, watch};

use understudy_protocol::cluster::lease::voter::Fact;
use understudy_protocol::id::{LogId, LogIndex, StoreId, Term};

use super::RaftEvent;

pub(super) struct Outbox {
    events: mpsc::Sender<RaftEvent>,
    /// True when the driver stops: nobody may wait for the core any more.
    stop: watch::Receiver<bool>,
    told: Mutex<Told>,
}

/// What the core has been told.
#[derive(Default)]
pub(super) struct Told {
    /// Facts of entries that are held and not yet applied, by index.
    pub(super) open: BTreeMap<LogIndex, (LogId, Fact)>,
    /// The term in which this node leads.
    pub(super) leads: Option<Term>,
}

/// The core is gone, or the driver stops: Raft cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the core listens no more")]
pub(super) struct Stopped;

impl Outbox {
    pub(super) fn new(events: mpsc::Sender<RaftEvent>, stop: watch::Receiver<bool>) -> Outbox {
        let told = Mutex::default();
        Outbox { events, stop, told }
    }

    /// Changes what has been told and queues the event that says so, as one. Waits for room.
    pub(super) async fn tell(
        &self,
        change: impl FnOnce(&mut Told) -> Option<RaftEvent> + Send,
    ) -> Result<(), Stopped> {
        let mut stop = self.stop.clone();
        let room = tokio::select! {
            biased;
            () = super::stopped(&mut stop) => return Err(Stopped),
            room = self.events.reserve() => room.map_err(|_| Stopped)?,
        };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(event) = change(&mut told) {
            room.send(event);
        }
        Ok(())
    }

    /// Waits for the core's answer.
    pub(super) async fn wait<T>(&self, answer: oneshot::Receiver<T>) -> Result<T, Stopped> {
        let mut stop = self.stop.clone();
        tokio::select! {
            biased;
            () = super::stopped(&mut stop) => Err(Stopped),
            answer = answer => answer.map_err(|_| Stopped),
        }
    }

    /// Says that a leader was seen, if there is room: it is said again soon.
    pub(super) fn leader_seen(&self, leader: StoreId) {
        let _ = self.events.try_send(RaftEvent::LeaderSeen(leader));
    }
}
