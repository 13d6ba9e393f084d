//! The supervisor: which children start, in what order, when; and when to give up.
//!
//! ```text
//!  operator   Add Remove Pardon ─┐    ┌────────────┐    ┌─> Start Stop         the child
//!  child         Started Exited ─┤    │ Supervisor │    │
//!  directory       Lost Drained ─┼──> │  children  │ ───┼─> Quarantine Forget  the operator
//!  parent        Start Shutdown ─┤    │  group     │    │
//!  clock                   Tick ─┘    │  history   │    └─> Escalate Down      the parent
//!                                     └────────────┘
//!
//!  a child's life
//!    alone    Running ── falls ──> Waiting ── is due ──> Starting ── Started ──> Running
//!    grouped  Running ── falls ──────────────┐
//!             Running ── Stop ──> Stopping ──┴─> Stopped ── all are ──> Starting ── …
//!    poison   Running ── third strike ──> Quarantined ── Pardon ──> one of the above
//!    the end  Running ── ends well, or is removed ──> forgotten
//! ```
//!
//! A fall is an `Exited`, `Lost` or `Drained`. A group is a run of children that stop together and
//! then start together: all of them under `one_for_all`, the one that fell and those after it under
//! `rest_for_one`.
//!
//! Owns: the children of one supervisor, their start order and everything OTP would decide about
//! them. Never does: start, stop or place a child. It says so, and believes only what it is told.
//!
//! Three things keep it simple:
//!
//! - **Falls are judged one by one, groups as a whole.** One event, however many children it is
//!   about, first judges each (`Child::come_down`), then stops what must stop, once. So a node
//!   that takes half a group with it is one restart of that group (T3).
//! - **Every start is due at an instant**, though it be now. `advance` runs after every
//!   event and is the only place that starts anything.
//! - **No child is started twice without an exit between.** A group waits until nothing is stopping.
//!
//! `Stop`s are asked for in reverse start order and `Start`s in start order, each batch at once: a
//! directory puts a whole group into one entry. Whoever needs more (wait for each before the next)
//! can have it by carrying out the actions one after another.
//!
//! An exit has no number. The embedder lets through only exits of the current start (it knows the
//! unit's epoch, or the actor's id); what it cannot know, that a child is not up at all, is refused
//! here.
//!
//! The state is directory data, so it encodes; the queue of actions does not, because it is always
//! drained before the state is stored. Instants are whole milliseconds of the clock that `now` is of.

mod explain;
#[cfg(test)]
mod tests;

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::fmt::Debug;
use core::ops::RangeBounds;

use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::{Decode, Encode};

pub use self::explain::ChildState;
use super::child::{Child, Fall, Phase, Verdict};
use super::policy::{Exit, Policy, RestartHistory, RestartType, Strategy, spread};
use super::roster::Roster;
use crate::machine::Machine;
use crate::rules::{Rule, keeps};
use crate::time::{ClusterTime, Time};

/// Children of one supervisor. With its indexes a child takes a few hundred bytes, so this is some
/// tens of megabytes on every voter, and one event about all of them still takes well under a
/// second to decide. More children take more supervisors.
pub const CHILDREN_MAX: usize = 100_000;

/// What may happen to a supervisor. `random` is uniform over all 64 bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the fields are named for what they hold
pub enum Event<K> {
    /// A child joins, last in start order. It starts now, or with its group or supervisor.
    Add { child: K, restart: RestartType },
    /// A child leaves: it is stopped if it is up, then forgotten. This is no restart of anyone.
    Remove { child: K },
    /// A child that was told to start is running.
    Started { child: K },
    /// A child ended, by itself or because it was told to stop.
    Exited { child: K, exit: Exit, random: u64 },
    /// Processes died together, and these children with them; the flag says whether the child was
    /// at work. Children that were not up are passed over: they had nothing to lose.
    Lost {
        children: Vec<(K, bool)>,
        random: u64,
    },
    /// A child was brought down to be started elsewhere.
    Drained { child: K },
    /// An operator lets a quarantined child start again, its strikes forgotten.
    Pardon { child: K },
    /// The parent starts the supervisor again after it went down. The intensity begins anew;
    /// strikes and quarantine stay.
    Start,
    /// The parent wants the supervisor down.
    Shutdown,
    /// Time has passed.
    Tick,
}

/// What a supervisor wants done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Action<K> {
    /// Start it; report `Started`, or `Exited` when that failed.
    Start { child: K },
    /// Stop it; report `Exited`, whichever way it ends.
    Stop { child: K },
    /// Tell the operator: three strikes. `held` are the children that stay down because of it, in
    /// start order: all others under `one_for_all`, those after it under `rest_for_one`. A group is
    /// one because its members cannot work apart, so a part of it is not started.
    Quarantine { child: K, held: Vec<K> },
    /// The child is down for good, and no longer known here.
    Forget { child: K },
    /// Every child is down, after one restart too many, which was `cause`'s. Report it to the parent
    /// as this supervisor's exit with [`Exit::Shutdown`] (OTP's reason: a parent that wants its
    /// supervisor back whatever happens makes it permanent).
    Escalate { cause: K },
    /// Every child is down, as the parent asked. Report it as [`Exit::Shutdown`].
    Down,
}

/// Why an event was refused. Nothing has changed, in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SupervisorError {
    /// There is no such child: it was never added, or it has been forgotten.
    #[error("the supervisor has no such child")]
    Unknown,
    /// The child is there, perhaps still stopping; `Forget` says when the name is free.
    #[error("the child is there already")]
    AlreadyPresent,
    /// There are [`CHILDREN_MAX`] children; removing one makes room.
    #[error("a supervisor has at most {CHILDREN_MAX} children")]
    Full,
    /// A late or duplicate exit: the child is down, and what follows from that was decided before.
    #[error("the child is not up")]
    NotUp,
    /// A late or duplicate start: the child runs already, or was told to stop meanwhile, which holds.
    #[error("the child is not starting")]
    NotStarting,
    /// The child may start as it is.
    #[error("the child is not quarantined")]
    NotQuarantined,
    /// The child is being removed already; `Forget` follows.
    #[error("the child is being removed")]
    BeingRemoved,
    /// `Start` is for a supervisor that is down. This one is up, or on its way down; then
    /// `Escalate` or `Down` follows.
    #[error("the supervisor is not down")]
    NotDown,
    /// `Shutdown` came twice, or after an escalation; `Escalate` or `Down` follows or has been sent.
    #[error("the supervisor is going down or is down")]
    AlreadyGoingDown,
}

/// A supervisor and its children, named `K`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode)]
pub struct Supervisor<K: Clone + Ord> {
    #[n(0)]
    policy: Policy,
    #[n(1)]
    roster: Roster<K>,
    #[n(2)]
    mode: Mode<K>,
    #[n(3)]
    group: Option<Group>,
    #[n(4)]
    history: RestartHistory,
    #[cbor(skip)]
    actions: VecDeque<Action<K>>,
}

/// Whether the supervisor itself is up.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
enum Mode<K> {
    #[n(0)]
    Up,
    /// Every child was told to stop; `cause` when that is an escalation.
    #[n(1)]
    GoingDown {
        #[n(0)]
        cause: Option<K>,
    },
    #[n(2)]
    Down,
}

/// The children from `from` in start order, which stop together and then start together. While
/// there is one, no child in it starts or runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
struct Group {
    #[n(0)]
    from: u64,
    /// Not before this.
    #[n(1)]
    until: ClusterTime,
}

impl<K: Clone + Ord + Debug> Machine for Supervisor<K> {
    type Event = Event<K>;
    type Action = Action<K>;
    type Error = SupervisorError;

    fn handle(&mut self, now: Time, event: Event<K>) -> Result<(), SupervisorError> {
        let now = ClusterTime::from_millis(now.as_millis());
        match event {
            Event::Add { child, restart } => self.add(now, child, restart)?,
            Event::Remove { child } => self.remove(now, &child)?,
            Event::Started { child } => self.started(now, &child)?,
            Event::Exited {
                child,
                exit,
                random,
            } => {
                self.fallen(now, [(child, Fall::Exited(exit), random)].into())?;
            }
            Event::Lost { children, random } => {
                let lost = children
                    .into_iter()
                    .enumerate()
                    .map(|(nth, (child, at_work))| {
                        (child, Fall::Lost { at_work }, spread(random, nth))
                    });
                self.fallen(now, lost.collect())?;
            }
            // V1: a drain neither counts nor backs off, so there is nothing to jitter.
            Event::Drained { child } => self.fallen(now, [(child, Fall::Drained, 0)].into())?,
            Event::Pardon { child } => self.pardon(now, &child)?,
            Event::Start => self.start_again(now)?,
            Event::Shutdown => self.shut_down(now)?,
            Event::Tick => {}
        }
        self.advance(now);
        Ok(())
    }

    fn poll_action(&mut self) -> Option<Action<K>> {
        self.actions.pop_front()
    }

    fn next_deadline(&self) -> Option<Time> {
        let alone = self.roster.first_due().map(|(until, _)| until);
        let group = self
            .group
            .filter(|group| self.can_start(*group))
            .map(|group| group.until);
        let next = [alone, group].into_iter().flatten().min()?;
        Some(Time::from_millis(next.as_millis()))
    }
}

impl<K: Clone + Ord + Debug> Supervisor<K> {
    /// A supervisor that is up and has no children.
    pub const fn new(policy: Policy) -> Supervisor<K> {
        Supervisor {
            policy,
            roster: Roster::new(),
            mode: Mode::Up,
            group: None,
            history: RestartHistory::new(),
            actions: VecDeque::new(),
        }
    }

    fn add(
        &mut self,
        now: ClusterTime,
        key: K,
        restart: RestartType,
    ) -> Result<(), SupervisorError> {
        if self.roster.get(&key).is_some() {
            return Err(SupervisorError::AlreadyPresent);
        }
        if self.roster.len() >= CHILDREN_MAX {
            return Err(SupervisorError::Full);
        }
        self.roster.add(key.clone(), restart);
        // A group reaches to the end of the order, so it holds the newcomer too.
        if self.group.is_none() {
            self.wait_alone(&key, now);
        }
        Ok(())
    }

    fn remove(&mut self, now: ClusterTime, key: &K) -> Result<(), SupervisorError> {
        match self.child(key)?.phase {
            Phase::Stopping { removed: true } => return Err(SupervisorError::BeingRemoved),
            Phase::Stopping { removed: false } => {
                self.roster.change(key, |child| child.stop(now, true));
            }
            Phase::Starting | Phase::Running { .. } => self.stop(now, key, true),
            Phase::Stopped | Phase::Waiting { .. } | Phase::Quarantined => self.forget(key),
        }
        Ok(())
    }

    fn started(&mut self, now: ClusterTime, key: &K) -> Result<(), SupervisorError> {
        if self.child(key)?.phase != Phase::Starting {
            return Err(SupervisorError::NotStarting);
        }
        self.roster
            .change(key, |child| child.phase = Phase::Running { since: now });
        Ok(())
    }

    /// Children came down in one event: judges each, then stops what must stop with them, once.
    fn fallen(
        &mut self,
        now: ClusterTime,
        falls: Vec<(K, Fall, u64)>,
    ) -> Result<(), SupervisorError> {
        let mut anyone_up = false;
        for (key, ..) in &falls {
            anyone_up |= self.child(key)?.phase.is_up();
        }
        if !anyone_up {
            return Err(SupervisorError::NotUp);
        }

        let grouped_before = self.group.map_or(u64::MAX, |group| group.from);
        let mut quarantined = Vec::new();
        for (key, fall, random) in falls {
            // Passed over: a child that was down before, or that the event names twice.
            let Some(child) = self.roster.get(&key).filter(|child| child.phase.is_up()) else {
                continue;
            };
            let order = child.order;
            let backoff = self.policy.backoff;
            let judge = |child: &mut Child| child.come_down(now, fall, random, backoff);
            match self.roster.change(&key, judge) {
                Verdict::Gone => self.forget(&key),
                // No group will ever start it again, so keeping it would only use up room.
                Verdict::Ended if self.policy.strategy == Strategy::OneForOne => self.forget(&key),
                Verdict::Ended => {}
                Verdict::Restart { delay, counts } => {
                    let allowed =
                        !counts || self.history.allows_one_more(now, self.policy.intensity);
                    if !keeps(Rule::Intensity) || allowed {
                        self.restart(&key, order, now + delay);
                    } else {
                        self.go_down(now, Some(key));
                    }
                }
                Verdict::Quarantined => {
                    self.widen_group(order, now);
                    quarantined.push(key);
                }
            }
        }
        if let Some(group) = self.group {
            self.stop_range(now, group.from..grouped_before.max(group.from));
        }
        for child in quarantined {
            let held = self.held();
            self.actions.push_back(Action::Quarantine { child, held });
        }
        Ok(())
    }

    /// Plans to start a child that is down: alone, or with its group.
    fn restart(&mut self, key: &K, order: u64, until: ClusterTime) {
        match self.policy.strategy {
            Strategy::OneForOne => self.wait_alone(key, until),
            Strategy::OneForAll | Strategy::RestForOne => self.widen_group(order, until),
        }
    }

    fn wait_alone(&mut self, key: &K, until: ClusterTime) {
        if matches!(self.mode, Mode::Up) {
            self.roster
                .change(key, |child| child.phase = Phase::Waiting { until });
        }
    }

    fn widen_group(&mut self, order: u64, until: ClusterTime) {
        let from = match self.policy.strategy {
            Strategy::OneForOne => return,
            Strategy::OneForAll => 0,
            Strategy::RestForOne => order,
        };
        if matches!(self.mode, Mode::Up) {
            let group = self.group.get_or_insert(Group { from, until });
            group.from = group.from.min(from);
            group.until = group.until.max(until);
        }
    }

    fn pardon(&mut self, now: ClusterTime, key: &K) -> Result<(), SupervisorError> {
        let Child {
            phase,
            order,
            restart,
            ..
        } = *self.child(key)?;
        if phase != Phase::Quarantined {
            return Err(SupervisorError::NotQuarantined);
        }
        self.roster
            .change(key, |child| *child = Child::new(order, restart));
        self.restart(key, order, now);
        Ok(())
    }

    fn start_again(&mut self, now: ClusterTime) -> Result<(), SupervisorError> {
        if !matches!(self.mode, Mode::Down) {
            return Err(SupervisorError::NotDown);
        }
        self.mode = Mode::Up;
        self.history = RestartHistory::new();
        self.group = Some(Group {
            from: 0,
            until: now,
        });
        Ok(())
    }

    fn shut_down(&mut self, now: ClusterTime) -> Result<(), SupervisorError> {
        if !matches!(self.mode, Mode::Up) {
            return Err(SupervisorError::AlreadyGoingDown);
        }
        self.go_down(now, None);
        Ok(())
    }

    /// Stops every child. `advance` tells the parent when all are down.
    fn go_down(&mut self, now: ClusterTime, cause: Option<K>) {
        self.mode = Mode::GoingDown { cause };
        self.group = None;
        for key in self.keys(.., |child| matches!(child.phase, Phase::Waiting { .. })) {
            self.roster
                .change(&key, |child| child.phase = Phase::Stopped);
        }
        self.stop_range(now, ..);
    }

    /// Does what is due. Nothing else starts a child, or says that the supervisor is down.
    fn advance(&mut self, now: ClusterTime) {
        if let Mode::GoingDown { cause } = &self.mode {
            if !self.roster.anyone_stopping() {
                let escalation = cause.clone().map(|cause| Action::Escalate { cause });
                self.actions.push_back(escalation.unwrap_or(Action::Down));
                self.mode = Mode::Down;
            }
            return;
        }
        while let Some((until, key)) = self.roster.first_due()
            && until <= now
        {
            let key = key.clone();
            self.start(&key);
        }
        if let Some(group) = self.group
            && group.until <= now
            && self.can_start(group)
        {
            self.start_group(group);
        }
    }

    /// Starts the members of a group that nothing holds, in start order. The rest stays a group.
    fn start_group(&mut self, group: Group) {
        let held_from = self.held_from();
        let end = held_from.unwrap_or(u64::MAX).max(group.from);
        for key in self.keys(group.from..end, |child| child.phase == Phase::Stopped) {
            self.start(&key);
        }
        self.group = held_from.map(|from| Group { from, ..group });
    }

    fn can_start(&self, group: Group) -> bool {
        let some_free = self
            .held_from()
            .is_none_or(|held_from| group.from < held_from);
        some_free && !self.roster.anyone_stopping()
    }

    /// From where in the start order a quarantined child keeps the others down.
    fn held_from(&self) -> Option<u64> {
        let first = self.roster.first_quarantined()?;
        match self.policy.strategy {
            Strategy::OneForOne => None,
            Strategy::OneForAll => Some(0),
            Strategy::RestForOne => Some(first),
        }
    }

    fn held(&self) -> Vec<K> {
        let held_from = self.held_from().unwrap_or(u64::MAX);
        self.keys(held_from.., |child| child.phase != Phase::Quarantined)
    }

    /// Stops those in the range that are up and were not told before, last started first.
    fn stop_range(&mut self, now: ClusterTime, range: impl RangeBounds<u64>) {
        let untold = |child: &Child| child.phase.is_up() && !child.phase.is_stopping();
        for key in self.keys(range, untold).iter().rev() {
            self.stop(now, key, false);
        }
    }

    fn start(&mut self, key: &K) {
        self.roster
            .change(key, |child| child.phase = Phase::Starting);
        self.actions.push_back(Action::Start { child: key.clone() });
    }

    fn stop(&mut self, now: ClusterTime, key: &K, removed: bool) {
        self.roster.change(key, |child| child.stop(now, removed));
        self.actions.push_back(Action::Stop { child: key.clone() });
    }

    fn forget(&mut self, key: &K) {
        self.roster.forget(key);
        self.actions
            .push_back(Action::Forget { child: key.clone() });
    }

    fn child(&self, key: &K) -> Result<&Child, SupervisorError> {
        self.roster.get(key).ok_or(SupervisorError::Unknown)
    }

    /// Those in the range of the start order that `wanted` picks.
    fn keys(&self, range: impl RangeBounds<u64>, wanted: impl Fn(&Child) -> bool) -> Vec<K> {
        let picked = self
            .roster
            .in_order(range)
            .filter(|(_, child)| wanted(child));
        picked.map(|(key, _)| key.clone()).collect()
    }
}

impl<K: Clone + Ord> Supervisor<K> {
    /// What holds between two events, for a supervisor from outside; says what does not.
    fn check(&self) -> Result<(), &'static str> {
        if !self.policy.is_within_limits() || !self.history.fits(self.policy.intensity) {
            return Err("a supervisor's policy and history are within their limits");
        }
        if self.roster.len() > CHILDREN_MAX {
            return Err("a supervisor has at most 100,000 children");
        }
        // Nothing in a group, and nothing under a supervisor that is not up, runs or is to start
        // alone.
        let grouped = |child: &Child| self.group.is_some_and(|group| group.from <= child.order);
        let is_up = matches!(self.mode, Mode::Up);
        let held = |child: &Child| !is_up || grouped(child);
        let goes_on = |child: &Child| match child.phase {
            Phase::Starting | Phase::Running { .. } | Phase::Waiting { .. } => true,
            Phase::Stopped | Phase::Stopping { .. } | Phase::Quarantined => false,
        };
        let mut children = self.roster.in_order(..).map(|(_, child)| child);
        if children.any(|child| held(child) && goes_on(child)) || !is_up && self.group.is_some() {
            return Err("a group and a supervisor that goes down hold their children down");
        }
        let stopping = self.roster.anyone_stopping();
        if !is_up && matches!(self.mode, Mode::GoingDown { .. }) != stopping {
            return Err("a supervisor is down when its last child is");
        }
        Ok(())
    }
}

/// By hand, because the derived one would ask for a default name of a child.
impl<'b, C, K: Clone + Ord + Debug + Decode<'b, C>> Decode<'b, C> for Supervisor<K> {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, DecodeError> {
        #[derive(Decode)]
        struct Stored<K: Clone + Ord> {
            #[n(0)]
            policy: Policy,
            #[n(1)]
            roster: Roster<K>,
            #[n(2)]
            mode: Mode<K>,
            #[n(3)]
            group: Option<Group>,
            #[n(4)]
            history: RestartHistory,
        }
        let Stored {
            policy,
            roster,
            mode,
            group,
            history,
        } = Stored::decode(d, ctx)?;
        let supervisor = Supervisor {
            policy,
            roster,
            mode,
            group,
            history,
            actions: VecDeque::new(),
        };
        supervisor.check().map_err(DecodeError::message)?;
        Ok(supervisor)
    }
}
