//! A recorded event log, replayed and reported.
//!
//! Owns: what is printed of it. Never compares: the protocol's `journal` does.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use understudy_protocol::journal::log::LOG_BYTES_MAX;
use understudy_protocol::journal::{End, Replayed, Step, replay};
use understudy_protocol::time::Time;

/// Replays the log in that file; false when something is not as it was recorded.
pub(crate) fn tell(log: &Path, trace: bool) -> io::Result<bool> {
    let mut out = BufWriter::new(io::stdout());
    let bytes = match read(log) {
        Ok(bytes) => bytes,
        Err(why) => {
            writeln!(out, "{}: {why}", log.display())?;
            out.flush()?;
            return Ok(false);
        }
    };
    let mut last = None;
    let mut printed = Ok(());
    // A machine that panics did so when it was recorded, perhaps: the log is there to show it.
    let ended = catch_unwind(AssertUnwindSafe(|| {
        replay(&bytes, &mut |step| {
            if let Step::Event { number, at, .. } = &step {
                last = Some((*number, *at));
            }
            if trace && printed.is_ok() {
                printed = show(&mut out, &step);
            }
        })
    }));
    printed?;
    let equal = match ended {
        Ok(Ok(replayed)) => {
            writeln!(out, "{}", summary(&replayed))?;
            true
        }
        Ok(Err(why)) => {
            writeln!(out, "{}: {why}", log.display())?;
            false
        }
        Err(_) => {
            let (number, at) = last.unwrap_or((0, Time::ZERO));
            let at = at.as_nanos();
            writeln!(out, "the machine panics at event {number}, at {at} ns")?;
            false
        }
    };
    out.flush()?;
    Ok(equal)
}

/// The whole log; a file longer than any log is not even looked at.
fn read(log: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(log)?;
    file.take(LOG_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LOG_BYTES_MAX {
        return Err(io::Error::other("the file is longer than any event log"));
    }
    Ok(bytes)
}

fn show(out: &mut impl Write, step: &Step<'_>) -> io::Result<()> {
    match step {
        Step::Event { number, at, event } => {
            writeln!(out, "{number:>8}  {:>15} ns  {event:?}", at.as_nanos())
        }
        Step::Action(action) => writeln!(out, "{:>29}  -> {action:?}", ""),
    }
}

fn summary(replayed: &Replayed) -> String {
    let Replayed {
        machine,
        events,
        actions,
        end,
    } = replayed;
    let end = match end {
        End::Stopped => String::new(),
        End::Full => "; then the log was full, and the machine went on".into(),
        End::Open => "; the log was not closed: its process was killed, or did not survive".into(),
        End::Cut(at) => {
            format!("; the log was cut inside the line at byte {at}: its process was killed")
        }
    };
    format!("{machine:?}: {events} events, {actions} actions, all equal{end}")
}
