//! A log, driven through the machine that it is of.
//!
//! Owns: the comparison of what the machine does now with what the log says it did. Never prints.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::fmt::{self, Debug};

use super::Journaled;
use super::log::{ActionSum, Closing, Line, LogReader, MachineKind, PROGRAM, ReadError};
use crate::cluster::agent::Agent;
use crate::cluster::caller::Caller;
use crate::cluster::controller::Controller;
use crate::cluster::lease::{LeaseHolder, LeaseVoter, Warden};
use crate::cluster::replication::Replica;
use crate::time::Time;
use crate::wire::codec::{DecodeError, decode_exact};

/// A log whose every action came out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// Which machine.
    pub machine: MachineKind,
    /// Events that it was handed.
    pub events: u64,
    /// Actions that were compared.
    pub actions: u64,
    /// How the log ends.
    pub end: End,
}

/// How a log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The machine was stopped.
    Stopped,
    /// The log was full.
    Full,
    /// Behind a whole line, but without the last one: the process was killed, or the machine did not
    /// survive the last event.
    Open,
    /// Inside the line that begins at this byte: the process was killed.
    Cut(usize),
}

/// Why a log was not replayed to its end. The lines before have come out as recorded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// These are not the bytes of a log, or not any more.
    #[error(transparent)]
    Unreadable(#[from] ReadError),
    /// The log is of another version of the program, which may well decide otherwise.
    #[error("the log was recorded by {seen}, and this is {PROGRAM}")]
    OtherProgram {
        /// Which.
        seen: String,
    },
    /// Not even the start of a machine is in it: there was no time for it, or no room.
    #[error("nothing was recorded in the log")]
    Empty,
    /// What the machine was started with is not what this program writes.
    #[error("the log does not begin with the start of a {machine:?}: {why}")]
    BadStart {
        /// Which machine.
        machine: MachineKind,
        /// What is wrong with it.
        why: DecodeError,
    },
    /// The log does not begin with a start, or has a second one.
    #[error("line {line} of the log does not belong there")]
    BadOrder {
        /// Counted from one.
        line: u64,
    },
    /// An event is not what this program writes.
    #[error("event {number} is none of a {machine:?}'s: {why}")]
    BadEvent {
        /// Counted from one.
        number: u64,
        /// Whose log.
        machine: MachineKind,
        /// What is wrong with it.
        why: DecodeError,
    },
    /// The machine did something else.
    #[error(transparent)]
    Difference(Box<Difference>),
}

/// The first thing that did not come out as recorded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Difference {
    /// Which machine.
    pub machine: MachineKind,
    /// After how many events.
    pub number: u64,
    /// When the last of them was handed over, by the node's clock.
    pub at: Time,
    /// The last of them; none when it was the start.
    pub event: Option<String>,
    /// What is different.
    pub unlike: Unlike,
}

/// What the log says, and what came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unlike {
    /// The event was refused then and is taken now (`now`), or the other way round.
    Refusal {
        /// Whether it is taken now.
        now: bool,
    },
    /// Another action.
    Action {
        /// Which of those after the event, counted from one.
        nth: u64,
        /// The recorded [`ActionSum`]; none when there was no such action.
        expected: Option<u32>,
        /// The action now and its checksum; none when there is none.
        actual: Option<(u32, String)>,
    },
    /// The machine waits for another instant.
    Deadline {
        /// For which it waited.
        expected: Option<Time>,
        /// For which it waits now.
        actual: Option<Time>,
    },
}

/// What is about to be replayed, for whoever wants to see it.
pub enum Step<'s> {
    /// An event, before it is handled.
    Event {
        /// Counted from one.
        number: u64,
        /// When, by the node's clock.
        at: Time,
        /// The event.
        event: &'s dyn Debug,
    },
    /// An action, before it is compared.
    Action(&'s dyn Debug),
}

/// Replays the log that `bytes` are through the machine that it names; `watch` sees every step.
///
/// # Panics
///
/// Where the machine does, as it may have when the log was recorded: an event is shown to `watch`
/// before the machine has it.
pub fn replay(bytes: &[u8], watch: &mut dyn FnMut(Step<'_>)) -> Result<Replayed, ReplayError> {
    let mut reader = LogReader::new(bytes)?;
    let (program, machine, at, with) = match reader.next_line()? {
        Some(Line::Start {
            program,
            machine,
            at,
            with,
        }) => (program, machine, at, with),
        Some(Line::Closed(_)) | None => return Err(ReplayError::Empty),
        Some(_) => return Err(ReplayError::BadOrder { line: 1 }),
    };
    if program != PROGRAM {
        let seen = program.into();
        return Err(ReplayError::OtherProgram { seen });
    }
    match machine {
        MachineKind::Controller => drive::<Controller>(reader, at, with, watch),
        MachineKind::Agent => drive::<Agent>(reader, at, with, watch),
        MachineKind::LeaseHolder => drive::<LeaseHolder>(reader, at, with, watch),
        MachineKind::LeaseVoter => drive::<LeaseVoter>(reader, at, with, watch),
        MachineKind::Replica => drive::<Replica>(reader, at, with, watch),
        MachineKind::Warden => drive::<Warden>(reader, at, with, watch),
        MachineKind::Caller => drive::<Caller>(reader, at, with, watch),
    }
}

fn drive<M: Journaled>(
    mut reader: LogReader<'_>,
    at: Time,
    with: &[u8],
    watch: &mut dyn FnMut(Step<'_>),
) -> Result<Replayed, ReplayError> {
    let machine = M::KIND;
    let start = decode_exact(with).map_err(|why| ReplayError::BadStart { machine, why })?;
    let mut run = Run {
        machine: M::begin(at, start),
        at,
        event: None,
        refused_now: None,
        nth: 0,
        events: 0,
        actions: 0,
    };
    let mut lines = 1;
    let end = loop {
        lines += 1;
        let line = match reader.next_line() {
            Ok(Some(line)) => line,
            Ok(None) => break End::Open,
            Err(ReadError::Cut { at }) => break End::Cut(at),
            Err(error) => return Err(error.into()),
        };
        match line {
            Line::Start { .. } => return Err(ReplayError::BadOrder { line: lines }),
            Line::Event { at, event } => {
                run.settle_refusal(false)?;
                let bytes = event;
                let event = decode_exact(bytes).map_err(|why| ReplayError::BadEvent {
                    number: run.events + 1,
                    machine,
                    why,
                })?;
                run.event = Some(bytes);
                run.handle(at, event, watch);
            }
            Line::Refused => run.settle_refusal(true)?,
            Line::Actions {
                sums,
                drained,
                deadline,
            } => {
                run.settle_refusal(false)?;
                for expected in sums {
                    run.poll(Some(expected), watch)?;
                }
                if drained {
                    run.poll(None, watch)?;
                    run.wait(deadline.map(Time::from_nanos))?;
                }
            }
            Line::Closed(why) => {
                // Nothing may follow it.
                if reader.next_line()?.is_some() {
                    return Err(ReplayError::BadOrder { line: lines + 1 });
                }
                break match why {
                    Closing::Stopped => {
                        run.settle_refusal(false)?;
                        End::Stopped
                    }
                    // There may have been no room to say that the last event was refused.
                    Closing::Full => End::Full,
                };
            }
        }
    };
    Ok(Replayed {
        machine,
        events: run.events,
        actions: run.actions,
        end,
    })
}

/// A machine in the middle of its log.
struct Run<'b, M: Journaled> {
    machine: M,
    /// The last event in CBOR, and when it was handed over.
    at: Time,
    event: Option<&'b [u8]>,
    /// Whether it was refused now, until the log has said whether it was refused then.
    refused_now: Option<bool>,
    /// Actions since then.
    nth: u64,
    events: u64,
    actions: u64,
}

impl<M: Journaled> Run<'_, M> {
    fn handle(&mut self, at: Time, event: M::Event, watch: &mut dyn FnMut(Step<'_>)) {
        self.events += 1;
        (self.at, self.nth) = (at, 0);
        watch(Step::Event {
            number: self.events,
            at,
            event: &event,
        });
        self.refused_now = Some(self.machine.handle(at, event).is_err());
    }

    /// The log says whether the last event was refused: by its own line, or by any other.
    fn settle_refusal(&mut self, then: bool) -> Result<(), ReplayError> {
        match self.refused_now.take() {
            Some(refused) if refused != then => {
                Err(self.difference(Unlike::Refusal { now: !refused }))
            }
            _ => Ok(()),
        }
    }

    fn poll(
        &mut self,
        expected: Option<u32>,
        watch: &mut dyn FnMut(Step<'_>),
    ) -> Result<(), ReplayError> {
        let action = self.machine.poll_action();
        if let Some(action) = &action {
            watch(Step::Action(action));
        }
        let sum = action.as_ref().map(ActionSum::of);
        if sum != expected {
            let actual = sum.zip(action.map(|action| brief(&action)));
            let nth = self.nth + 1;
            return Err(self.difference(Unlike::Action {
                nth,
                expected,
                actual,
            }));
        }
        if expected.is_some() {
            self.nth += 1;
            self.actions += 1;
        }
        Ok(())
    }

    fn wait(&mut self, expected: Option<Time>) -> Result<(), ReplayError> {
        let actual = self.machine.next_deadline();
        if actual == expected {
            return Ok(());
        }
        Err(self.difference(Unlike::Deadline { expected, actual }))
    }

    fn difference(&self, unlike: Unlike) -> ReplayError {
        let event = self
            .event
            .and_then(|event| decode_exact::<M::Event>(event).ok());
        ReplayError::Difference(Box::new(Difference {
            machine: M::KIND,
            number: self.events,
            at: self.at,
            event: event.map(|event| brief(&event)),
            unlike,
        }))
    }
}

/// The text of an event or an action, cut where nobody would read on: some hold a whole directory.
fn brief(value: &dyn Debug) -> String {
    struct Brief(String);

    impl fmt::Write for Brief {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            if self.0.len() + text.len() > TEXT_BYTES_MAX {
                self.0.push('…');
                return Err(fmt::Error);
            }
            self.0.push_str(text);
            Ok(())
        }
    }

    let mut text = Brief(String::new());
    // It fails where it is cut.
    let _ = fmt::write(&mut text, format_args!("{value:?}"));
    text.0
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference {
            machine,
            number,
            at,
            event,
            unlike,
        } = self;
        let at = at.as_nanos();
        match event {
            Some(event) => write!(
                f,
                "the {machine:?} differs after event {number} at {at} ns, {event}: "
            )?,
            None => write!(f, "the {machine:?} differs at its start, at {at} ns: ")?,
        }
        write!(f, "{unlike}")
    }
}

impl fmt::Display for Unlike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unlike::Refusal { now: true } => write!(f, "it was refused, and is taken now"),
            Unlike::Refusal { now: false } => write!(f, "it was taken, and is refused now"),
            Unlike::Action {
                nth,
                expected,
                actual,
            } => {
                match expected {
                    Some(sum) => write!(f, "action {nth} had checksum {sum:08x}, and now ")?,
                    None => write!(f, "there was no action {nth}, and now ")?,
                }
                match actual {
                    Some((sum, action)) => write!(f, "there is {sum:08x}, {action}"),
                    None => write!(f, "there is none"),
                }
            }
            Unlike::Deadline { expected, actual } => {
                let nanos = |time: &Option<Time>| match time {
                    Some(time) => format!("for {} ns", time.as_nanos()),
                    None => "for no deadline".into(),
                };
                let (then, now) = (nanos(expected), nanos(actual));
                write!(f, "it waited {then}, and waits {now} now")
            }
        }
    }
}

/// What is shown of one event or action: about half a screen.
const TEXT_BYTES_MAX: usize = 1_000;
