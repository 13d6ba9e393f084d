//! The command line, parsed once.
//!
//! Owns: which arguments there are and what they mean. Never runs anything: what comes out is a
//! [`Wanted`] that cannot be half-right.

use std::ffi::OsString;
use std::num::NonZeroU64;
use std::path::PathBuf;

use lexopt::prelude::{Long, Short, ValueExt};

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// One seed, with every step when `trace`.
    One { seed: u64, trace: bool },
    /// Many seeds from `from` on, with the table of paths when `coverage`.
    Many {
        from: u64,
        count: NonZeroU64,
        coverage: bool,
    },
    /// One failover, told.
    Story { seed: u64 },
    /// A recorded event log, driven through its machine again; with every step when `trace`.
    Replay { log: PathBuf, trace: bool },
    /// How fast the simulator is.
    Bench,
    /// The help text.
    Help,
}

/// Parses what follows the program's name. The error is a sentence for whoever typed it.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Wanted, String> {
    let mut parser = lexopt::Parser::from_args(args);
    let mut given = Given::default();
    while let Some(arg) = parser.next().map_err(|why| why.to_string())? {
        let once = match arg {
            Long("seed") => given.seed.replace(number(&mut parser, "--seed")?).is_none(),
            Long("seeds") => given
                .seeds
                .replace(number(&mut parser, "--seeds")?)
                .is_none(),
            Long("from") => given.from.replace(number(&mut parser, "--from")?).is_none(),
            Long("trace") => !std::mem::replace(&mut given.trace, true),
            Long("coverage") => !std::mem::replace(&mut given.coverage, true),
            Long("replay") => {
                let log = parser.value().map_err(|why| why.to_string())?;
                given.replay.replace(log.into()).is_none()
            }
            Long("story") => !std::mem::replace(&mut given.story, true),
            Long("bench") => !std::mem::replace(&mut given.bench, true),
            Long("help") | Short('h') => return Ok(Wanted::Help),
            other => return Err(other.unexpected().to_string()),
        };
        if !once {
            return Err("an argument is given twice".into());
        }
    }
    given.wanted()
}

#[derive(Default)]
struct Given {
    seed: Option<u64>,
    seeds: Option<u64>,
    from: Option<u64>,
    trace: bool,
    coverage: bool,
    replay: Option<PathBuf>,
    story: bool,
    bench: bool,
}

impl Given {
    fn wanted(self) -> Result<Wanted, String> {
        let many = self.seeds.is_some() || self.from.is_some() || self.coverage;
        let one = self.seed.is_some() || self.trace;
        if let Some(log) = self.replay {
            let trace = self.trace;
            if many || self.seed.is_some() || self.story || self.bench {
                return Err("--replay goes with --trace only".into());
            }
            return Ok(Wanted::Replay { log, trace });
        }
        if self.bench && (many || one || self.story) {
            return Err("--bench stands alone".into());
        }
        if self.bench {
            return Ok(Wanted::Bench);
        }
        if self.story && (many || self.trace) {
            return Err("--story goes with --seed only".into());
        }
        if self.story {
            return Ok(Wanted::Story {
                seed: self.seed.unwrap_or(FIRST_SEED),
            });
        }
        if many && one {
            return Err(
                "--seed and --trace are for one seed; --seeds, --from and --coverage for many"
                    .into(),
            );
        }
        if many {
            let from = self.from.unwrap_or(FIRST_SEED);
            let count =
                NonZeroU64::new(self.seeds.unwrap_or(SEEDS)).ok_or("--seeds needs at least one")?;
            from.checked_add(count.get())
                .ok_or("there are no seeds beyond 2^64")?;
            return Ok(Wanted::Many {
                from,
                count,
                coverage: self.coverage,
            });
        }
        match self.seed {
            Some(seed) => Ok(Wanted::One {
                seed,
                trace: self.trace,
            }),
            None if self.trace => Err("--trace needs --seed N or --replay FILE".into()),
            None => Err(
                "say what to run: --seed N, --seeds N, --replay FILE, --story or --bench".into(),
            ),
        }
    }
}

/// Decimal, or hexadecimal after `0x`.
fn number(parser: &mut lexopt::Parser, name: &str) -> Result<u64, String> {
    let value = parser.value().map_err(|why| why.to_string())?;
    let text = value.string().map_err(|why| why.to_string())?;
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| format!("{name} needs a number, not `{text}`"))
}

const FIRST_SEED: u64 = 1;

/// What the normal test suite runs.
const SEEDS: u64 = 1_000;

pub(crate) const HELP: &str = "\
Whole clusters in one thread, each from one seed: the decisions are the real ones of
understudy-protocol; network, disks, clocks, clients and faults are simulated, and a judge checks
every invariant after every step.

Usage: understudy-sim --seed N [--trace]
       understudy-sim --seeds N [--from N] [--coverage]
       understudy-sim --replay FILE [--trace]
       understudy-sim --story [--seed N]
       understudy-sim --bench

Options:
  --seed N      one run (decimal, or hexadecimal after 0x)
  --trace       every step of it; the last line is the hash of all of them, or the outcome
  --seeds N     many runs on all cores, in order; each that fails with the command that replays it
  --from N      the first of them (1)
  --coverage    how many of the runs took each rare path
  --replay FILE what a real node's machine was told, told to it again: the same actions, or
                the first that differs
  --story       one failover in words: a killed node, a lost disk, a stopped process
  --bench       virtual seconds a real second; writes target/bench/simulator.json
  -h, --help    this

Examples:
  cargo run -p understudy-sim -- --seeds 1000
  cargo run -p understudy-sim -- --seed 42 --trace | less
  cargo run -p understudy-sim -- --seeds 1000 --coverage
  cargo run -p understudy-sim -- --story
  cargo run --release -p understudy-sim -- --bench

Exit codes: 0 all held, 1 an invariant did not hold, a log differs or a target was missed,
2 wrong usage.
";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parsed(line: &str) -> Result<Wanted, String> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn check(line: &str, wanted: Wanted) {
        assert_eq!(parsed(line), Ok(wanted), "{line}");
    }

    fn check_refused(line: &str, why: &str) {
        let refused = parsed(line).unwrap_err();
        assert!(refused.contains(why), "{line}: {refused}");
    }

    #[test]
    fn each_kind_of_run_can_be_asked_for() {
        check(
            "--seed 7",
            Wanted::One {
                seed: 7,
                trace: false,
            },
        );
        check(
            "--trace --seed 0x1F",
            Wanted::One {
                seed: 31,
                trace: true,
            },
        );
        let count = NonZeroU64::new(9).unwrap();
        check(
            "--seeds 9",
            Wanted::Many {
                from: 1,
                count,
                coverage: false,
            },
        );
        check(
            "--seeds 9 --from 4 --coverage",
            Wanted::Many {
                from: 4,
                count,
                coverage: true,
            },
        );
        let usual = NonZeroU64::new(SEEDS).unwrap();
        check(
            "--coverage",
            Wanted::Many {
                from: 1,
                count: usual,
                coverage: true,
            },
        );
        check("--story", Wanted::Story { seed: 1 });
        check("--story --seed 3", Wanted::Story { seed: 3 });
        let log = PathBuf::from("a.log");
        check(
            "--replay a.log",
            Wanted::Replay {
                log: log.clone(),
                trace: false,
            },
        );
        check(
            "--trace --replay a.log",
            Wanted::Replay { log, trace: true },
        );
        check("--bench", Wanted::Bench);
        check("--seed 7 --help", Wanted::Help);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        check_refused("", "say what to run");
        check_refused("--sead 7", "--sead");
        check_refused("7", "7");
        check_refused("--seed", "--seed");
        check_refused("--seed seven", "needs a number, not `seven`");
        check_refused("--seed -1", "needs a number");
        check_refused("--seed 1 --seed 2", "given twice");
        check_refused("--trace", "--trace needs --seed N");
        check_refused("--seeds 0", "at least one");
        check_refused("--seeds 2 --from 18446744073709551615", "no seeds beyond");
        check_refused("--seeds 9 --trace", "for one seed");
        check_refused("--seed 1 --coverage", "for one seed");
        check_refused("--story --trace", "--story goes with");
        check_refused("--bench --seed 1", "--bench stands alone");
        check_refused("--replay", "--replay");
        check_refused("--replay a.log --replay b.log", "given twice");
        check_refused("--replay a.log --seed 1", "--replay goes with");
        check_refused("--replay a.log --bench", "--replay goes with");
    }
}
