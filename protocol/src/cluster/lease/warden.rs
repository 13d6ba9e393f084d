//! The warden: the small process beside a node that holds its helpers and its death note.
//!
//! Owns: rules L10 and L11: when helpers die, and what is said of a dead node. Never holds keys of
//! the cluster, and never guesses: it speaks only of a process it has itself seen end, after it has
//! reaped every helper.
//!
//! ```text
//!   heart ── Deadline{until} ──> Warden ── Kill ──> helpers      (at the deadline, node stopped or not)
//!   kernel ── NodeEnded, HelperReaped ──> Warden ── Keep, Send ──> voters   (all helpers reaped)
//! ```

use alloc::collections::{BTreeSet, VecDeque};
use core::time::Duration;

use minicbor::{Decode, Encode};

use crate::id::{IncarnationId, UnitId};
use crate::machine::Machine;
use crate::time::Time;
use crate::wire::heart::{AT_WORK_MAX, DeathNote};

/// One node's warden.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Warden {
    incarnation: IncarnationId,
    secret: [u8; 32],
    helpers: BTreeSet<HelperId>,
    at_work: BTreeSet<UnitId>,
    /// When every helper must die unless the heart moves it on; `None` before the first lease.
    deadline: Option<Time>,
    /// The node's process has ended.
    ended: bool,
    /// The note is on disk.
    kept: bool,
    sends_left: u32,
    send_at: Time,
    actions: VecDeque<Action>,
}

/// A process that the warden started for its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct HelperId(#[n(0)] pub u64);

/// What may happen to a warden. Numbered for the event log: see [`crate::journal`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Event {
    /// A helper runs.
    #[n(0)]
    HelperStarted(#[n(0)] HelperId),
    /// A helper has ended and been reaped.
    #[n(1)]
    HelperReaped(#[n(0)] HelperId),
    /// The heart feeds the lease's end. It never moves back.
    #[n(2)]
    Deadline(#[cbor(n(0), with = "crate::time::as_nanos")] Time),
    /// A unit starts or works (V2).
    #[n(3)]
    AtWork(#[n(0)] UnitId),
    /// A unit has started, or rests.
    #[n(4)]
    AtRest(#[n(0)] UnitId),
    /// The node's process has ended and been reaped.
    #[n(5)]
    NodeEnded,
    /// The note is on disk.
    #[n(6)]
    NoteKept,
    /// The deadline has come.
    #[n(7)]
    Tick,
}

/// What a warden wants done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Kill this helper (`SIGKILL`), then reap it.
    Kill(HelperId),
    /// Write the note to disk, for the next start to send (L11).
    KeepNote(DeathNote),
    /// Send the note to every voter's heart.
    SendNote(DeathNote),
    /// Nothing is left to do: exit.
    Exit,
}

/// Why an event was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The node is at its lease's end or has ended: a new helper is killed at once.
    #[error("the node's time is over; the helper is killed")]
    TooLate,
    /// The warden holds [`HELPERS_MAX`] helpers: a new one is killed at once.
    #[error("the warden holds {HELPERS_MAX} helpers; the new one is killed")]
    TooMany,
}

impl Warden {
    /// The warden of one incarnation, with the secret whose digest the node commits.
    pub fn new(incarnation: IncarnationId, secret: [u8; 32]) -> Warden {
        Warden {
            incarnation,
            secret,
            helpers: BTreeSet::new(),
            at_work: BTreeSet::new(),
            deadline: None,
            ended: false,
            kept: false,
            sends_left: NOTE_SENDS,
            send_at: Time::MAX,
            actions: VecDeque::new(),
        }
    }

    fn is_over(&self, now: Time) -> bool {
        self.ended || self.deadline.is_some_and(|deadline| now >= deadline)
    }

    fn kill_all(&mut self) {
        self.actions
            .extend(self.helpers.iter().copied().map(Action::Kill));
    }

    fn note(&self) -> DeathNote {
        let at_work = self.at_work.iter().copied().take(AT_WORK_MAX).collect();
        DeathNote {
            incarnation: self.incarnation,
            secret: self.secret,
            at_work,
        }
    }

    /// Writes the note once the node and all its helpers are gone, and not before (L11).
    fn settle(&mut self) {
        if self.ended && self.helpers.is_empty() {
            self.actions.push_back(Action::KeepNote(self.note()));
        }
    }

    fn on_started(&mut self, now: Time, helper: HelperId) -> Result<(), Refused> {
        let refused = if self.is_over(now) {
            Some(Refused::TooLate)
        } else {
            (self.helpers.len() >= HELPERS_MAX).then_some(Refused::TooMany)
        };
        // Also a helper that comes too late is held until it is reaped: it runs.
        self.helpers.insert(helper);
        if let Some(refused) = refused {
            self.actions.push_back(Action::Kill(helper));
            return Err(refused);
        }
        Ok(())
    }

    fn on_tick(&mut self, now: Time) {
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            self.deadline = None;
            self.kill_all();
        }
        if self.kept && now >= self.send_at {
            if self.sends_left == 0 {
                self.send_at = Time::MAX;
                self.actions.push_back(Action::Exit);
                return;
            }
            self.sends_left -= 1;
            self.send_at = now + NOTE_SEND_PERIOD;
            self.actions.push_back(Action::SendNote(self.note()));
        }
    }
}

impl Machine for Warden {
    type Event = Event;
    type Action = Action;
    type Error = Refused;

    fn handle(&mut self, now: Time, event: Event) -> Result<(), Refused> {
        match event {
            Event::HelperStarted(helper) => self.on_started(now, helper)?,
            Event::HelperReaped(helper) => {
                if self.helpers.remove(&helper) {
                    self.settle();
                }
            }
            Event::Deadline(until) => self.deadline = self.deadline.max(Some(until)),
            Event::AtWork(unit) => {
                if self.at_work.len() < AT_WORK_HELD_MAX {
                    self.at_work.insert(unit);
                }
            }
            Event::AtRest(unit) => {
                self.at_work.remove(&unit);
            }
            Event::NodeEnded if !self.ended => {
                self.ended = true;
                self.deadline = None;
                self.kill_all();
                self.settle();
            }
            Event::NodeEnded => {}
            Event::NoteKept => {
                self.kept = true;
                self.send_at = now;
                self.on_tick(now);
            }
            Event::Tick => self.on_tick(now),
        }
        Ok(())
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn next_deadline(&self) -> Option<Time> {
        let send_at = Some(self.send_at).filter(|at| self.kept && *at < Time::MAX);
        match (self.deadline, send_at) {
            (Some(kill), Some(send)) => Some(kill.min(send)),
            (kill, send) => kill.or(send),
        }
    }
}

/// Helpers of one node: Chromium processes, render workers and probes. A node with more has lost
/// track of them.
pub const HELPERS_MAX: usize = 4_096;

/// Units at work at once: a note names [`AT_WORK_MAX`] of them, and those that come to rest make room
/// for others. A node with more is not understood any more; what comes on top is not held.
const AT_WORK_HELD_MAX: usize = 65_536;

/// How often the note is sent: datagrams are lost, and nobody answers them.
const NOTE_SENDS: u32 = 10;

/// Between two sendings: ten of them span one second, well past a burst of loss.
const NOTE_SEND_PERIOD: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn at(millis: u64) -> Time {
        Time::from_millis(millis)
    }

    fn warden() -> Warden {
        let mut warden = Warden::new(IncarnationId(7), [3; 32]);
        for helper in [1, 2] {
            warden
                .handle(at(0), Event::HelperStarted(HelperId(helper)))
                .expect("held");
        }
        warden
            .handle(at(0), Event::Deadline(at(1_000)))
            .expect("fed");
        warden
    }

    fn drain(warden: &mut Warden) -> Vec<Action> {
        core::iter::from_fn(|| warden.poll_action()).collect()
    }

    fn kills() -> [Action; 2] {
        [Action::Kill(HelperId(1)), Action::Kill(HelperId(2))]
    }

    #[test]
    fn helpers_die_at_the_deadline_though_the_node_is_stopped() {
        let mut warden = warden();
        warden
            .handle(at(500), Event::Deadline(at(1_500)))
            .expect("fed");
        warden.handle(at(1_000), Event::Tick).expect("ticks");
        assert_eq!(drain(&mut warden), []);
        assert_eq!(warden.next_deadline(), Some(at(1_500)));
        warden.handle(at(1_500), Event::Tick).expect("ticks");
        assert_eq!(drain(&mut warden), kills());
    }

    #[test]
    fn the_note_waits_for_the_last_helper() {
        let mut warden = warden();
        warden
            .handle(at(0), Event::AtWork(UnitId(5)))
            .expect("noted");
        warden.handle(at(10), Event::NodeEnded).expect("seen");
        assert_eq!(drain(&mut warden), kills());
        warden
            .handle(at(11), Event::HelperReaped(HelperId(1)))
            .expect("reaped");
        assert_eq!(drain(&mut warden), []);
        warden
            .handle(at(12), Event::HelperReaped(HelperId(2)))
            .expect("reaped");
        let [Action::KeepNote(note)] = &drain(&mut warden)[..] else {
            panic!("no note")
        };
        assert_eq!(note.at_work, [UnitId(5)]);
        assert!(note.proves(&crate::wire::heart::DeathDigest::of(&[3; 32])));
    }

    #[test]
    fn the_note_is_on_disk_before_it_is_sent_and_is_sent_a_bounded_number_of_times() {
        let mut warden = Warden::new(IncarnationId(7), [3; 32]);
        warden.handle(at(0), Event::NodeEnded).expect("seen");
        assert!(matches!(drain(&mut warden)[..], [Action::KeepNote(_)]));
        warden.handle(at(5), Event::NoteKept).expect("kept");
        let mut sent = 0;
        loop {
            for action in drain(&mut warden) {
                match action {
                    Action::SendNote(_) => sent += 1,
                    Action::Exit => return assert_eq!(sent, NOTE_SENDS),
                    other => panic!("{other:?}"),
                }
            }
            let now = warden.next_deadline().expect("not done yet");
            warden.handle(now, Event::Tick).expect("ticks");
        }
    }

    #[test]
    fn a_helper_that_starts_after_the_end_is_killed() {
        let mut warden = warden();
        let late = Event::HelperStarted(HelperId(9));
        assert_eq!(warden.handle(at(1_000), late), Err(Refused::TooLate));
        assert_eq!(drain(&mut warden), [Action::Kill(HelperId(9))]);
    }
}
