//! What state an instance is in, and which it may enter next.
//!
//! Owns: the legal moves, and how often each state was entered. Never does what a state means: the
//! shell loads, runs and disposes, and then says so here.
//!
//! ```text
//!   Pending ──> Loaded ──> Ready ──> Running ──> Idle
//!                            ^          ^         │ │
//!                            │          └─ again ─┘ │  (it keeps its state between calls)
//!                            └────────── reset ─────┘  (it is made new before the next)
//!
//!   every state but Disposed ──> Disposed
//! ```
//!
//! Running is exclusive: there is no move from Running to Running, so a second call on a busy
//! instance is an error here before it is a race there. Disposed is final: an instance is never
//! revived, another is made.

use alloc::collections::VecDeque;
use core::fmt;

use crate::machine::Machine;
use crate::time::Time;

/// Where an instance is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Asked for; nothing is there yet.
    Pending,
    /// Its code and its last checkpoint are in memory.
    Loaded,
    /// It may take a call.
    Ready,
    /// It is at work on one call.
    Running,
    /// Its call is over; what the call left in it is still there.
    Idle,
    /// It is gone.
    Disposed,
}

/// What the shell did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The instance is now in this state.
    Enter(State),
}

/// What others should see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Show the move: in a metric, on the dashboard, to whoever waits for it.
    Show {
        /// The state it left.
        from: State,
        /// The state it entered.
        to: State,
    },
}

/// Why a move was refused. The instance is where it was, and nothing was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("an instance does not go from {from} to {to}")]
pub struct IllegalMove {
    /// The state it is in.
    pub from: State,
    /// The state it should have entered.
    pub to: State,
}

/// One instance's life.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lifecycle {
    state: State,
    since: Time,
    entered: [u64; State::ALL.len()],
    actions: VecDeque<Action>,
}

impl Lifecycle {
    /// An instance that was asked for at `now`.
    pub fn new(now: Time) -> Lifecycle {
        let mut entered = [0; State::ALL.len()];
        entered[State::Pending as usize] = 1;
        Lifecycle {
            state: State::Pending,
            since: now,
            entered,
            actions: VecDeque::new(),
        }
    }

    /// The state it is in.
    pub fn state(&self) -> State {
        self.state
    }

    /// When it entered that state.
    pub fn since(&self) -> Time {
        self.since
    }

    /// How often it has entered `state`.
    pub fn entered(&self, state: State) -> u64 {
        self.entered[state as usize]
    }
}

impl Machine for Lifecycle {
    type Event = Event;
    type Action = Action;
    type Error = IllegalMove;

    fn handle(&mut self, now: Time, Event::Enter(to): Event) -> Result<(), IllegalMove> {
        let from = self.state;
        if !from.may_become(to) {
            return Err(IllegalMove { from, to });
        }
        self.state = to;
        self.since = now;
        self.entered[to as usize] += 1;
        self.actions.push_back(Action::Show { from, to });
        Ok(())
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn next_deadline(&self) -> Option<Time> {
        None
    }
}

impl State {
    /// Every state, in the order of a life.
    pub const ALL: [State; 6] = [
        State::Pending,
        State::Loaded,
        State::Ready,
        State::Running,
        State::Idle,
        State::Disposed,
    ];

    /// Whether the move to `to` is legal: the diagram above, as a function.
    pub const fn may_become(self, to: State) -> bool {
        use State::{Disposed, Idle, Loaded, Pending, Ready, Running};
        matches!(
            (self, to),
            (Pending, Loaded)
                | (Loaded, Ready)
                | (Ready, Running)
                | (Running, Idle)
                | (Idle, Running | Ready)
                | (Pending | Loaded | Ready | Running | Idle, Disposed)
        )
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Pending => "pending",
            State::Loaded => "loaded",
            State::Ready => "ready",
            State::Running => "running",
            State::Idle => "idle",
            State::Disposed => "disposed",
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::string::ToString;

    use super::State::{Disposed, Idle, Loaded, Ready, Running};
    use super::*;

    /// Takes a fresh instance along `path`.
    fn walked(path: &[State]) -> Lifecycle {
        let mut life = Lifecycle::new(Time::ZERO);
        for (step, to) in path.iter().enumerate() {
            let (now, from) = (Time::from_millis(step as u64 + 1), life.state());
            life.handle(now, Event::Enter(*to)).unwrap();
            assert_eq!((life.state(), life.since()), (*to, now));
            assert_eq!(
                life.poll_action(),
                Some(Action::Show { from, to: *to }),
                "a move is seen"
            );
            assert_eq!(life.poll_action(), None);
        }
        life
    }

    /// From the end of `path` the states in `legal` may be entered, and no others.
    #[track_caller]
    fn check(path: &[State], legal: &[State]) {
        for to in State::ALL {
            let mut life = walked(path);
            let before = life.clone();
            let result = life.handle(Time::from_millis(99), Event::Enter(to));
            if legal.contains(&to) {
                assert_eq!(result, Ok(()));
                assert_eq!(life.entered(to), before.entered(to) + 1);
            } else {
                let from = before.state();
                assert_eq!(result, Err(IllegalMove { from, to }));
                assert_eq!(life, before, "a refused move changes nothing");
            }
        }
    }

    #[test]
    fn only_the_moves_of_the_diagram_are_legal() {
        check(&[], &[Loaded, Disposed]);
        check(&[Loaded], &[Ready, Disposed]);
        check(&[Loaded, Ready], &[Running, Disposed]);
        check(&[Loaded, Ready, Running], &[Idle, Disposed]);
        check(&[Loaded, Ready, Running, Idle], &[Ready, Running, Disposed]);
        check(&[Disposed], &[]);
        check(&[Loaded, Ready, Running, Disposed], &[]);
    }

    #[test]
    fn every_entry_is_counted() {
        let life = walked(&[
            Loaded, Ready, Running, Idle, Running, Idle, Ready, Running, Disposed,
        ]);
        let counts = State::ALL.map(|state| life.entered(state));
        assert_eq!(counts, [1, 1, 2, 3, 2, 1]);
        assert_eq!(life.next_deadline(), None);
    }

    #[test]
    fn an_illegal_move_names_both_ends() {
        let mut life = walked(&[Loaded, Ready, Running]);
        let error = life.handle(Time::ZERO, Event::Enter(Running)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "an instance does not go from running to running"
        );
    }
}
