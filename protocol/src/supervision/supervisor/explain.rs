//! What a supervisor says about itself, for `tree` and `explain`.
//!
//! Owns: the answers. Never changes anything.

use core::fmt::Debug;

use super::{Mode, Supervisor};
use crate::supervision::child::{Child, Phase};
use crate::supervision::policy::{Policy, RestartType};
use crate::supervision::strikes::Strikes;
use crate::time::{ClusterTime, Time};

/// What a child is doing, for `tree` and `explain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the fields are explained with their variants
pub enum ChildState {
    /// Told to start.
    Starting,
    /// Its start was reported at `since`.
    Running { since: ClusterTime },
    /// Told to stop.
    Stopping,
    /// Starts at `until`, alone or with its group.
    Waiting { until: ClusterTime },
    /// Starts with its group, which waits for a sibling to stop or for one in quarantine.
    Held,
    /// Ended as it should, or its supervisor is down.
    Stopped,
    /// Down until an operator pardons it.
    Quarantined,
}

impl<K: Clone + Ord + Debug> Supervisor<K> {
    /// How it restarts.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// How many children it has.
    pub fn len(&self) -> usize {
        self.roster.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.roster.len() == 0
    }

    /// Whether it escalated or was shut down, and all its children have stopped.
    pub fn is_down(&self) -> bool {
        matches!(self.mode, Mode::Down)
    }

    /// Its children in start order.
    pub fn children(&self) -> impl Iterator<Item = (&K, RestartType, ChildState)> {
        self.roster
            .in_order(..)
            .map(|(key, child)| (key, child.restart, self.state_of(child)))
    }

    /// What a child is doing; `None` when it is unknown.
    pub fn state(&self, child: &K) -> Option<ChildState> {
        self.roster.get(child).map(|child| self.state_of(child))
    }

    /// When a child is restarted; `None` when it is unknown.
    pub fn restart_type(&self, child: &K) -> Option<RestartType> {
        self.roster.get(child).map(|child| child.restart)
    }

    /// The strikes that stand against a child at `now`; `None` when it is unknown.
    pub fn strikes(&self, now: Time, child: &K) -> Option<Strikes> {
        let now = ClusterTime::from_millis(now.as_millis());
        self.roster
            .get(child)
            .map(|child| child.standing_strikes(now))
    }

    /// How many restarts count at `now` towards the intensity.
    pub fn restarts_in_window(&self, now: Time) -> usize {
        let now = ClusterTime::from_millis(now.as_millis());
        self.history.within(now, self.policy.intensity.window)
    }

    fn state_of(&self, child: &Child) -> ChildState {
        match child.phase {
            Phase::Starting => ChildState::Starting,
            Phase::Running { since } => ChildState::Running { since },
            Phase::Stopping { .. } => ChildState::Stopping,
            Phase::Waiting { until } => ChildState::Waiting { until },
            Phase::Quarantined => ChildState::Quarantined,
            Phase::Stopped => {
                let Some(group) = self.group.filter(|group| group.from <= child.order) else {
                    return ChildState::Stopped;
                };
                let held = self
                    .held_from()
                    .is_some_and(|held_from| held_from <= child.order);
                if held || self.roster.anyone_stopping() {
                    return ChildState::Held;
                }
                ChildState::Waiting { until: group.until }
            }
        }
    }
}
