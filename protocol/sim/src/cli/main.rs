//! The simulator's command line.
//!
//! Owns: what is printed, and the exit code. Never decides what a run is: `scenario` does.
//!
//! ```text
//!   arguments ──> args::parse ──> Wanted ──> one seed | many seeds | replay | story | bench ──> exit code
//! ```

mod args;
mod bench;
mod replay;
mod story;

use std::io::{self, BufWriter, Write};
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Instant;

use understudy_sim::batch::{run_all, threads};
use understudy_sim::cover::Coverage;
use understudy_sim::run::{Outcome, VIRTUAL, run};

use args::Wanted;

fn main() -> ExitCode {
    let wanted = match args::parse(std::env::args_os().skip(1)) {
        Ok(wanted) => wanted,
        Err(why) => {
            let _ = writeln!(io::stderr(), "understudy-sim: {why}\nTry --help.");
            return ExitCode::from(2);
        }
    };
    let held = match wanted {
        Wanted::One { seed, trace } => one(seed, trace),
        Wanted::Many {
            from,
            count,
            coverage,
        } => many(from, count, coverage),
        Wanted::Replay { log, trace } => replay::tell(&log, trace),
        Wanted::Story { seed } => story::tell(seed),
        Wanted::Bench => bench::measure(),
        Wanted::Help => write!(io::stdout(), "{}", args::HELP).map(|()| true),
    };
    match held {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        // Whoever read this has read enough (`… --trace | head`).
        Err(why) if why.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(why) => {
            let _ = writeln!(io::stderr(), "understudy-sim: {why}");
            ExitCode::from(1)
        }
    }
}

fn one(seed: u64, trace: bool) -> io::Result<bool> {
    let outcome = if trace {
        let mut out = BufWriter::new(io::stdout());
        // A reader that has gone away is noticed at the end; the run goes on without it.
        run(
            seed,
            Some(Box::new(move |line| drop(writeln!(out, "{line}")))),
        )
    } else {
        run(seed, None)
    };
    let mut out = io::stdout();
    if let Some(lines) = failure(&outcome) {
        writeln!(out, "{lines}")?;
    } else {
        let figures = outcome.figures;
        writeln!(
            out,
            "seed {seed} holds: {} steps, {} messages, {} calls answered, {} takeovers, {} faults",
            figures.steps, figures.messages, figures.answered, figures.takeovers, figures.faults
        )?;
    }
    writeln!(out, "trace hash {:016x}", outcome.trace_hash)?;
    Ok(outcome.violation.is_none())
}

fn many(from: u64, count: NonZeroU64, with_coverage: bool) -> io::Result<bool> {
    let began = Instant::now();
    let mut coverage = Coverage::default();
    let mut failed = 0;
    let mut printed = Ok(());
    let threads = threads();
    run_all(from..=from + (count.get() - 1), threads, |outcome| {
        coverage.add_run(&outcome.coverage);
        if let Some(lines) = failure(&outcome) {
            failed += 1;
            printed = writeln!(io::stdout(), "{lines}");
        }
        if printed.is_ok() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    printed?;
    let mut out = io::stdout();
    if with_coverage {
        write!(out, "{}", coverage.table(count.get()))?;
    }
    let took = began.elapsed().as_secs_f64();
    let ratio = VIRTUAL.as_secs_f64() * count.get() as f64 / took;
    writeln!(
        out,
        "{failed} of {count} seeds failed; {took:.1} s on {threads} threads, {ratio:.0} virtual seconds a second"
    )?;
    Ok(failed == 0)
}

/// What is said of a seed that failed: what, and the one command that replays it.
fn failure(outcome: &Outcome) -> Option<String> {
    let (at, violation) = outcome.violation.as_ref()?;
    Some(format!(
        "seed {} does not hold: {} at {:.6} s\n  {}\n  {}",
        outcome.seed,
        violation.invariant,
        at.as_secs_f64(),
        violation.what,
        outcome.command()
    ))
}
