//! The event log: what a shell told one machine, kept so that the same machine decides it again.
//!
//! Owns: [`Recorded`], which a shell drives in the place of its machine; the log's format ([`log`]);
//! and its [`replay`]. Never decides anything, and never touches a file: bytes go to a [`Sink`] and
//! come from a slice.
//!
//! ```text
//!   shell ── handle, poll_action ──> Recorded<M> ──> M
//!                                        └── Start, Event, Actions, … ──> Sink ──> bytes
//!   bytes ──> replay ──> a fresh M: the same actions, or the first that differs
//! ```
//!
//! One log is one machine's, from its first event on, so nothing but the log is needed to replay it.
//! Events are kept whole. Of an action only a checksum is kept, over what its `Hash` says: an action
//! follows from the events, so the log need only tell whether it did. What `Hash` says is stable for
//! one build and not beyond; so a log names the version of the program, and another refuses it.
//!
//! A log is as secret as the process that it is of: it holds what callers said, and the secret of a
//! warden's death note.

pub mod log;
mod machines;
mod replay;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt::Debug;
use core::hash::Hash;
use core::mem;
use core::ops::Deref;

use minicbor::{Decode, Encode};

use crate::machine::Machine;
use crate::time::Time;
use crate::wire::codec::decode_exact;
use log::{ActionSum, Closing, Line, LogWriter, MachineKind};

pub use machines::{ControllerStart, HolderStart, ReplicaStart, VoterStart, WardenStart};
pub use replay::{Difference, End, ReplayError, Replayed, Step, Unlike, replay};

/// A machine that can be recorded.
pub trait Journaled:
    Machine<Event: Encode<()> + for<'b> Decode<'b, ()> + Debug + PartialEq, Action: Hash + Debug>
    + Sized
{
    /// Names the machine in a log.
    const KIND: MachineKind;

    /// What it is started with, beside the time.
    type Start: Encode<()> + for<'b> Decode<'b, ()>;

    /// A machine that has just been started.
    fn begin(now: Time, start: Self::Start) -> Self;
}

/// Where a log goes. The log does not hear of failures: a sink that can write no more takes and
/// forgets, and the log ends there.
pub trait Sink: Send {
    /// Takes the next bytes of the log.
    fn write(&mut self, bytes: &[u8]);
}

/// A machine whose events and actions go into a log, if there is one. Reads like the machine; the
/// only way to change it is through the three methods of [`Machine`], so nothing is missed.
pub struct Recorded<M: Journaled> {
    machine: M,
    recorder: Option<Box<Recorder>>,
}

struct Recorder {
    log: LogWriter,
    /// An event on its way into the log.
    event: Vec<u8>,
    /// What was polled and is not in the log yet.
    actions: Vec<u32>,
    /// Something happened since the machine had nothing more to do.
    is_busy: bool,
    /// The machine is at work on an event: if this is dropped now, it did not survive the event.
    is_handling: bool,
}

impl<M: Journaled> Recorded<M> {
    /// Starts the machine, and its log when there is a sink. The log has at most
    /// [`LOG_BYTES_MAX`](log::LOG_BYTES_MAX).
    pub fn begin(now: Time, start: M::Start, sink: Option<Box<dyn Sink>>) -> Recorded<M> {
        Recorded::begin_within(now, start, sink, log::LOG_BYTES_MAX)
    }

    /// As [`Recorded::begin`], with a log of at most `limit` bytes.
    pub fn begin_within(
        now: Time,
        start: M::Start,
        sink: Option<Box<dyn Sink>>,
        limit: u64,
    ) -> Recorded<M> {
        let recorder = sink.map(|sink| Box::new(Recorder::new::<M>(now, &start, sink, limit)));
        Recorded {
            machine: M::begin(now, start),
            recorder,
        }
    }
}

impl<M: Journaled> Deref for Recorded<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.machine
    }
}

impl<M: Journaled> Machine for Recorded<M> {
    type Event = M::Event;
    type Action = M::Action;
    type Error = M::Error;

    fn handle(&mut self, now: Time, event: M::Event) -> Result<(), M::Error> {
        let Some(recorder) = &mut self.recorder else {
            return self.machine.handle(now, event);
        };
        if recorder.log.is_closed() {
            // It is full: from here on nothing is recorded.
            self.recorder = None;
            return self.machine.handle(now, event);
        }
        // Before it is handled, so that the event which the machine does not survive is there.
        recorder.before(now, &event);
        let handled = self.machine.handle(now, event);
        recorder.after(handled.is_ok());
        handled
    }

    fn poll_action(&mut self) -> Option<M::Action> {
        let action = self.machine.poll_action();
        if let Some(recorder) = &mut self.recorder {
            match &action {
                Some(action) => recorder.polled(action),
                None => recorder.drained(self.machine.next_deadline()),
            }
        }
        action
    }

    fn next_deadline(&self) -> Option<Time> {
        self.machine.next_deadline()
    }
}

impl Recorder {
    fn new<M: Journaled>(now: Time, start: &M::Start, sink: Box<dyn Sink>, limit: u64) -> Recorder {
        let mut log = LogWriter::new(sink, limit);
        let with = minicbor::to_vec(start).expect(ENCODES);
        log.write(&Line::Start {
            program: log::PROGRAM,
            machine: M::KIND,
            at: now,
            with: &with,
        });
        Recorder {
            log,
            event: Vec::new(),
            actions: Vec::new(),
            is_busy: true,
            is_handling: false,
        }
    }

    fn before<E>(&mut self, at: Time, event: &E)
    where
        E: Encode<()> + for<'b> Decode<'b, ()> + PartialEq,
    {
        self.flush(None);
        self.event.clear();
        minicbor::encode(event, &mut self.event).expect(ENCODES);
        debug_assert!(
            decode_exact::<E>(&self.event).is_ok_and(|read| read == *event),
            "an event reads back as it was"
        );
        self.log.write(&Line::Event {
            at,
            event: &self.event,
        });
        log::shrink(&mut self.event);
        (self.is_busy, self.is_handling) = (true, true);
    }

    fn after(&mut self, is_ok: bool) {
        self.is_handling = false;
        if !is_ok {
            self.log.write(&Line::Refused);
        }
    }

    fn polled(&mut self, action: &impl Hash) {
        self.is_busy = true;
        self.actions.push(ActionSum::of(action));
        if self.actions.len() >= ACTIONS_A_LINE {
            self.flush(None);
        }
    }

    fn drained(&mut self, deadline: Option<Time>) {
        if mem::take(&mut self.is_busy) {
            self.flush(Some(deadline));
        }
    }

    /// Writes what was polled; `drained` says that there was no more, and what the machine waits for.
    fn flush(&mut self, drained: Option<Option<Time>>) {
        if drained.is_none() && self.actions.is_empty() {
            return;
        }
        self.log.write(&Line::Actions {
            sums: mem::take(&mut self.actions),
            drained: drained.is_some(),
            deadline: drained.flatten().map(Time::as_nanos),
        });
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if !self.is_handling {
            self.flush(None);
            self.log.close(Closing::Stopped);
        }
    }
}

const ENCODES: &str = "a vector takes every byte, and no event of ours refuses to be encoded";

/// Actions in one line of the log: a batch that starts more children at once is told in several.
const ACTIONS_A_LINE: usize = 4_096;
