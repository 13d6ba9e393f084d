//! One child's life, and what its coming down means.
//!
//! Owns: the phases of a child and the verdict on a fall. Never touches a sibling: groups, order
//! and escalation are the supervisor's.

use core::mem;
use core::time::Duration;

use minicbor::{Decode, Encode};

use super::policy::{Backoff, Exit, RestartType};
use super::strikes::{CLEAN_RUNNING, Penalty, Strikes};
use crate::rules::{Rule, keeps};
use crate::time::ClusterTime;

/// What a supervisor remembers of a child.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub(super) struct Child {
    /// Its place in the start order; never used again.
    #[n(0)]
    pub(super) order: u64,
    #[n(1)]
    pub(super) restart: RestartType,
    #[n(2)]
    pub(super) phase: Phase,
    /// Consecutive failures, for the backoff.
    #[n(3)]
    pub(super) failures: u32,
    #[n(4)]
    pub(super) strikes: Strikes,
}

/// Where a child is in its life. It may have a process in the three phases that [`Phase::is_up`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub(super) enum Phase {
    /// Down, until its group or its supervisor starts.
    #[n(0)]
    Stopped,
    /// Down, and to be started alone.
    #[n(1)]
    Waiting {
        #[n(0)]
        until: ClusterTime,
    },
    /// Told to start.
    #[n(2)]
    Starting,
    #[n(3)]
    Running {
        #[n(0)]
        since: ClusterTime,
    },
    /// Told to stop; `removed` when it is to be forgotten then.
    #[n(4)]
    Stopping {
        #[n(0)]
        removed: bool,
    },
    /// Down, until an operator pardons it.
    #[n(5)]
    Quarantined,
}

impl Phase {
    /// Whether an exit must come before another start may.
    pub(super) const fn is_up(self) -> bool {
        matches!(
            self,
            Phase::Starting | Phase::Running { .. } | Phase::Stopping { .. }
        )
    }

    pub(super) const fn is_stopping(self) -> bool {
        matches!(self, Phase::Stopping { .. })
    }
}

/// How a child came down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fall {
    /// By itself, or because it was told to.
    Exited(Exit),
    /// Its process died under it.
    Lost { at_work: bool },
    /// It was moved away.
    Drained,
}

/// What becomes of a child that came down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is never started again: forget it.
    Gone,
    /// It ended as it should; only a restart of its group would start it again.
    Ended,
    /// Start it again after `delay`; `counts` when this is a restart in the sense of the intensity.
    Restart { delay: Duration, counts: bool },
    /// Three strikes.
    Quarantined,
}

impl Child {
    pub(super) const fn new(order: u64, restart: RestartType) -> Child {
        Child {
            order,
            restart,
            phase: Phase::Stopped,
            failures: 0,
            strikes: Strikes::NONE,
        }
    }

    /// The strikes that still stand at `now`.
    pub(super) fn standing_strikes(&self, now: ClusterTime) -> Strikes {
        if self.has_run_clean(now) {
            Strikes::NONE
        } else {
            self.strikes
        }
    }

    /// It is told to stop.
    pub(super) fn stop(&mut self, now: ClusterTime, removed: bool) {
        self.leave_phase(now, Phase::Stopping { removed });
    }

    /// It has come down: judges it. The child is left `Stopped` or `Quarantined`.
    pub(super) fn come_down(
        &mut self,
        now: ClusterTime,
        fall: Fall,
        random: u64,
        backoff: Backoff,
    ) -> Verdict {
        let was = self.leave_phase(now, Phase::Stopped);
        let ends = match (was, fall) {
            (Phase::Stopping { removed }, _) => removed || self.restart == RestartType::Temporary,
            (_, Fall::Exited(exit)) => !self.restart.restarts_after(exit),
            (_, Fall::Lost { .. }) => !self.restart.restarts_after(Exit::Abnormal),
            // A move is no end: even a temporary child goes on elsewhere.
            (_, Fall::Drained) => false,
        };
        if ends {
            let stays = self.restart != RestartType::Temporary && !was.is_stopping();
            return if stays { Verdict::Ended } else { Verdict::Gone };
        }

        // V2: starting or at work when its process died is a strike.
        let mut delay = Duration::ZERO;
        let at_work = match fall {
            Fall::Lost { at_work } => at_work || was == Phase::Starting,
            Fall::Exited(_) | Fall::Drained => false,
        };
        if keeps(Rule::V2) && at_work {
            match self.strikes.strike(random) {
                Penalty::Wait(strike) => delay = strike,
                Penalty::Quarantine => {
                    self.phase = Phase::Quarantined;
                    return Verdict::Quarantined;
                }
            }
        }

        // V1: node loss and drain count as no restart. Nor does the exit of a child that was told
        // to stop: the failure that made it stop has counted.
        let counts = !was.is_stopping() && (!keeps(Rule::V1) || matches!(fall, Fall::Exited(_)));
        if counts {
            self.failures = self.failures.saturating_add(1);
            delay = delay.max(backoff.delay(self.failures, random));
        }
        Verdict::Restart { delay, counts }
    }

    /// Every way out of `Running` goes through here, so that clean running is never overlooked.
    fn leave_phase(&mut self, now: ClusterTime, next: Phase) -> Phase {
        if self.has_run_clean(now) {
            self.failures = 0;
            self.strikes = Strikes::NONE;
        }
        mem::replace(&mut self.phase, next)
    }

    fn has_run_clean(&self, now: ClusterTime) -> bool {
        matches!(self.phase, Phase::Running { since } if now.since(since) >= CLEAN_RUNNING)
    }
}
