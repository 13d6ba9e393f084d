//! What happened on this node and in the directory, for people to follow.
//!
//! Owns: a bounded history and its followers. Never decides anything and is never read back: what must
//! survive is in the directory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::broadcast;

use understudy_protocol::id::{Epoch, NodeId, UnitId};

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterEvent {
    /// Counts the events of this start of the node, from one.
    pub id: u64,
    /// When, for people.
    pub at: SystemTime,
    /// Of or on which node.
    pub node: Option<NodeId>,
    /// Of which unit.
    pub unit: Option<UnitId>,
    /// At which epoch of it.
    pub epoch: Option<Epoch>,
    /// One of a closed set of words with underscores, such as `unit_serving` or `node_expelled`.
    pub kind: &'static str,
    /// One sentence.
    pub text: String,
}

/// The history, shared by all who tell and follow.
#[derive(Clone)]
pub struct Events {
    inner: Arc<Inner>,
}

struct Inner {
    history: Mutex<VecDeque<Arc<ClusterEvent>>>,
    live: broadcast::Sender<Arc<ClusterEvent>>,
}

/// Events in order; see [`EventStream::next`].
pub struct EventStream {
    kept: VecDeque<Arc<ClusterEvent>>,
    live: broadcast::Receiver<Arc<ClusterEvent>>,
    last: u64,
}

/// What a follower hears next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Followed {
    /// An event.
    Event(Arc<ClusterEvent>),
    /// The follower was too slow, or asked for what is no longer kept: this many are missing.
    Missed(u64),
}

impl Default for Events {
    fn default() -> Events {
        let (live, _) = broadcast::channel(LIVE_MAX);
        let history = Mutex::new(VecDeque::new());
        Events {
            inner: Arc::new(Inner { history, live }),
        }
    }
}

impl Events {
    /// Adds an event.
    pub fn tell(
        &self,
        kind: &'static str,
        node: Option<NodeId>,
        unit: Option<(UnitId, Epoch)>,
        text: String,
    ) {
        let mut history = self
            .inner
            .history
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let id = history.back().map_or(1, |last| last.id + 1);
        // A date for people; nothing is decided by it.
        #[allow(clippy::disallowed_methods)]
        let at = SystemTime::now();
        let event = Arc::new(ClusterEvent {
            id,
            at,
            node,
            unit: unit.map(|(unit, _)| unit),
            epoch: unit.map(|(_, epoch)| epoch),
            kind,
            text,
        });
        if history.len() >= HISTORY_MAX {
            history.pop_front();
        }
        history.push_back(event.clone());
        // Nobody may be listening.
        let _ = self.inner.live.send(event);
    }

    /// Follows from after the event `after`, or from now on.
    pub fn follow(&self, after: Option<u64>) -> EventStream {
        let history = self
            .inner
            .history
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let live = self.inner.live.subscribe();
        let newest = history.back().map_or(0, |last| last.id);
        let last = after.unwrap_or(newest);
        let kept = history
            .iter()
            .filter(|event| event.id > last)
            .cloned()
            .collect();
        EventStream { kept, live, last }
    }
}

impl EventStream {
    /// The next event; `None` when the node has stopped.
    pub async fn next(&mut self) -> Option<Followed> {
        loop {
            let event = match self.kept.pop_front() {
                Some(event) => event,
                None => match self.live.recv().await {
                    Ok(event) => event,
                    Err(broadcast::error::RecvError::Lagged(_)) => continue,
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
            };
            if event.id <= self.last {
                continue;
            }
            let missed = event.id - self.last - 1;
            if missed > 0 {
                self.last = event.id - 1;
                self.kept.push_front(event);
                return Some(Followed::Missed(missed));
            }
            self.last = event.id;
            return Some(Followed::Event(event));
        }
    }
}

/// Events that are kept: an hour of a busy failover, a few megabytes at most.
pub const HISTORY_MAX: usize = 10_000;

/// Events that a follower may fall behind.
const LIVE_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    fn tell(events: &Events, count: usize) {
        for nth in 0..count {
            events.tell("test", None, None, format!("{nth}"));
        }
    }

    async fn check(stream: &mut EventStream, expected: Result<u64, u64>) {
        let next = stream.next().await;
        let next = next.map(|followed| match followed {
            Followed::Event(event) => Ok(event.id),
            Followed::Missed(count) => Err(count),
        });
        assert_eq!(next, Some(expected));
    }

    #[tokio::test]
    async fn a_follower_goes_on_after_the_event_it_names_and_hears_what_is_new() {
        let events = Events::default();
        tell(&events, 3);
        let mut stream = events.follow(Some(1));
        check(&mut stream, Ok(2)).await;
        check(&mut stream, Ok(3)).await;
        tell(&events, 1);
        check(&mut stream, Ok(4)).await;
        let mut fresh = events.follow(None);
        tell(&events, 1);
        check(&mut fresh, Ok(5)).await;
    }

    #[tokio::test]
    async fn a_follower_is_told_how_many_events_it_has_missed() {
        let events = Events::default();
        tell(&events, HISTORY_MAX + 5);
        let mut stream = events.follow(Some(1));
        check(&mut stream, Err(4)).await;
        check(&mut stream, Ok(6)).await;
        let mut slow = events.follow(None);
        tell(&events, LIVE_MAX + 10);
        check(&mut slow, Err(10)).await;
        check(&mut slow, Ok(HISTORY_MAX as u64 + 16)).await;
    }
}
