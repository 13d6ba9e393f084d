//! Arguments to a [`Command`], help texts, and the refusal of everything else.
//!
//! Owns: what may be typed. Never acts: a wrong word is found before anything has been installed,
//! built or run.

use std::ffi::OsString;
use std::fmt;

use lexopt::prelude::*;

use crate::bench::{BENCHES, Bench};
use crate::demo::{SEED, Show};
use crate::stages::{Stage, TestOptions};

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Help(Topic),
    Test(TestOptions),
    Demo { show: Show, yes: bool },
    Bench { bench: &'static Bench, yes: bool },
    Doctor { json: bool },
}

/// What help was asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topic {
    All,
    Test,
    Demo,
    Bench,
    Doctor,
}

/// Why the arguments make no sense. Nothing has been done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    what: String,
    /// The nearest word that would have made sense.
    meant: Option<&'static str>,
    topic: Topic,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(meant) = self.meant {
            write!(f, "; did you mean `{meant}`?")?;
        }
        let about = match self.topic.name() {
            "" => String::new(),
            name => format!("{name} "),
        };
        write!(f, "\nTry `cargo xtask {about}--help`.")
    }
}

/// Reads the arguments after the program's name.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, Usage> {
    let mut parser = lexopt::Parser::from_args(args);
    let Some(first) = parser.next().map_err(|why| wrong(Topic::All, why))? else {
        return Err(usage(
            Topic::All,
            "a command is missing: test, demo, bench or doctor",
        ));
    };
    match first {
        Long("help") | Short('h') => Ok(Command::Help(Topic::All)),
        Value(word) => match word.to_string_lossy().as_ref() {
            "test" => parse_test(&mut parser),
            "demo" => parse_demo(&mut parser),
            "bench" => parse_bench(&mut parser),
            "doctor" => parse_doctor(&mut parser),
            "help" => Ok(Command::Help(Topic::All)),
            word => Err(unknown(Topic::All, "command", word, &COMMANDS)),
        },
        flag => Err(unknown_flag(Topic::All, &flag, &["--help"])),
    }
}

fn parse_test(parser: &mut lexopt::Parser) -> Result<Command, Usage> {
    let topic = Topic::Test;
    let mut options = TestOptions::default();
    while let Some(arg) = parser.next().map_err(|why| wrong(topic, why))? {
        match arg {
            Long("help") | Short('h') => return Ok(Command::Help(topic)),
            Long("long") => options.long = true,
            Long("yes") | Short('y') => options.yes = true,
            Long("stage") => {
                let word = text(parser, topic)?;
                let stage = Stage::ALL.into_iter().find(|stage| stage.name() == word);
                let names = Stage::ALL.map(Stage::name);
                options.only = Some(stage.ok_or_else(|| unknown(topic, "stage", &word, &names))?);
            }
            flag => return Err(unknown_flag(topic, &flag, &["--stage", "--long", "--yes"])),
        }
    }
    Ok(Command::Test(options))
}

fn parse_demo(parser: &mut lexopt::Parser) -> Result<Command, Usage> {
    let topic = Topic::Demo;
    let (mut seed, mut story, mut yes) = (None, false, false);
    let (mut json, mut rounds) = (None, 1);
    while let Some(arg) = parser.next().map_err(|why| wrong(topic, why))? {
        match arg {
            Long("help") | Short('h') => return Ok(Command::Help(topic)),
            Long("yes") | Short('y') => yes = true,
            Long("story") => story = true,
            Long("once") => rounds = 1,
            Long("json") => json = Some(text(parser, topic)?),
            Long("rounds") => {
                let word = text(parser, topic)?;
                let read = word.parse().ok().filter(|rounds| *rounds > 0);
                rounds = read.ok_or_else(|| usage(topic, &format!("`{word}` is no count")))?;
            }
            Long("seed") => {
                let word = text(parser, topic)?;
                let read = parse_seed(&word);
                seed = Some(
                    read.ok_or_else(|| usage(topic, &format!("`{word}` is no seed (a number)")))?,
                );
            }
            flag => return Err(unknown_flag(topic, &flag, &DEMO_FLAGS)),
        }
    }
    let show = match seed {
        Some(seed) => Show::Story(seed),
        None if story => Show::Story(SEED),
        None => Show::Nodes { json, rounds },
    };
    Ok(Command::Demo { show, yes })
}

const DEMO_FLAGS: [&str; 6] = ["--once", "--rounds", "--json", "--story", "--seed", "--yes"];

fn parse_bench(parser: &mut lexopt::Parser) -> Result<Command, Usage> {
    let topic = Topic::Bench;
    let (mut bench, mut yes) = (None, false);
    while let Some(arg) = parser.next().map_err(|why| wrong(topic, why))? {
        match arg {
            Long("help") | Short('h') => return Ok(Command::Help(topic)),
            Long("yes") | Short('y') => yes = true,
            Value(word) if bench.is_none() => {
                let word = word.to_string_lossy();
                let known = BENCHES.iter().find(|bench| bench.name == word);
                let names: Vec<_> = BENCHES.iter().map(|bench| bench.name).collect();
                bench = Some(known.ok_or_else(|| {
                    let mut usage = unknown(topic, "bench", &word, &names);
                    usage
                        .what
                        .push_str(&format!(" (there are: {})", names.join(", ")));
                    usage
                })?);
            }
            flag => return Err(unknown_flag(topic, &flag, &["--yes"])),
        }
    }
    let names: Vec<_> = BENCHES.iter().map(|bench| bench.name).collect();
    let missing = || usage(topic, &format!("name a bench: {}", names.join(", ")));
    Ok(Command::Bench {
        bench: bench.ok_or_else(missing)?,
        yes,
    })
}

fn parse_doctor(parser: &mut lexopt::Parser) -> Result<Command, Usage> {
    let topic = Topic::Doctor;
    let mut json = false;
    while let Some(arg) = parser.next().map_err(|why| wrong(topic, why))? {
        match arg {
            Long("help") | Short('h') => return Ok(Command::Help(topic)),
            Long("json") => json = true,
            flag => return Err(unknown_flag(topic, &flag, &["--json"])),
        }
    }
    Ok(Command::Doctor { json })
}

/// A decimal number, or a hexadecimal one after `0x`, as failing runs print theirs.
fn parse_seed(word: &str) -> Option<u64> {
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}

fn text(parser: &mut lexopt::Parser, topic: Topic) -> Result<String, Usage> {
    let value = parser.value().map_err(|why| wrong(topic, why))?;
    Ok(value.to_string_lossy().into_owned())
}

fn usage(topic: Topic, what: &str) -> Usage {
    Usage {
        what: what.to_owned(),
        meant: None,
        topic,
    }
}

fn wrong(topic: Topic, why: lexopt::Error) -> Usage {
    usage(topic, &why.to_string())
}

fn unknown(topic: Topic, noun: &str, word: &str, known: &[&'static str]) -> Usage {
    Usage {
        what: format!("unknown {noun} `{word}`"),
        meant: nearest(word, known),
        topic,
    }
}

fn unknown_flag(topic: Topic, arg: &lexopt::Arg<'_>, known: &[&'static str]) -> Usage {
    let word = match arg {
        Short(letter) => format!("-{letter}"),
        Long(name) => format!("--{name}"),
        Value(word) => word.to_string_lossy().into_owned(),
    };
    unknown(topic, "argument", &word, known)
}

/// The known word at most [`TYPOS_MAX`] slips away from `word`, and not all of it.
fn nearest(word: &str, known: &[&'static str]) -> Option<&'static str> {
    let slips = |known: &&'static str| (strsim::osa_distance(word, known), *known);
    let (slips, meant) = known.iter().map(slips).min()?;
    (slips <= TYPOS_MAX && slips < word.chars().count()).then_some(meant)
}

/// Two slips are a typing mistake; three make another word.
const TYPOS_MAX: usize = 2;

const COMMANDS: [&str; 5] = ["test", "demo", "bench", "doctor", "help"];

impl Topic {
    fn name(self) -> &'static str {
        match self {
            Topic::All => "",
            Topic::Test => "test",
            Topic::Demo => "demo",
            Topic::Bench => "bench",
            Topic::Doctor => "doctor",
        }
    }

    /// The help text.
    pub(crate) fn help(self) -> &'static str {
        match self {
            Topic::All => HELP,
            Topic::Test => HELP_TEST,
            Topic::Demo => HELP_DEMO,
            Topic::Bench => HELP_BENCH,
            Topic::Doctor => HELP_DOCTOR,
        }
    }
}

const HELP: &str = "\
Set-up, tests, demo and benches of this workspace.

Usage: cargo xtask COMMAND [OPTIONS]

Commands:
  test          everything that has to hold, in stages
  demo          three nodes, a thousand counters, and kills
  bench NAME    one bench, in release mode
  doctor        what this machine has, lacks, and what to type

Examples:
  cargo xtask test
  cargo xtask test --stage units
  cargo xtask demo --json demo.json
  cargo xtask bench simulator
  cargo xtask doctor --json

What a command needs on this machine is named and then installed with apt-get (compilers of test
guests: from PyPI, below ~/.cache/understudy); on a terminal it asks first. `cargo xtask COMMAND --help` says more.

Exit codes: 0 done, 1 failed, 2 wrong usage.
";

const HELP_TEST: &str = "\
Everything that has to hold, in stages; stops at the first stage that fails.

Usage: cargo xtask test [--stage NAME] [--long] [--yes]

Stages, in order:
  house     formatting, layering, licences (the last where cargo-deny is installed)
  units     unit tests, documentation tests and the simulator's suites
  clippy    lints, each warning an error
  e2e       end-to-end tests: real processes, real faults, one at a time
  demo      what `cargo xtask demo` shows

Options:
  --stage NAME   only this stage
  --long         longer suites: UNDERSTUDY_LONG=1 reaches the tests; fuzzing
  -y, --yes      install what is missing without asking

Examples:
  cargo xtask test
  cargo xtask test --stage house
  cargo xtask test --long --stage units

One test alone: `cargo nextest run -p understudy-protocol NAME`, or `cargo test` in its place.
";

const HELP_DEMO: &str = "\
Three real nodes on this machine, a thousand counters, concurrent callers; SIGKILL of the owner of
most, SIGKILL of the Raft leader, SIGSTOP of an owner. It takes about a minute and a half, prints the
recovery times, and fails if one acknowledged step is missing or there twice.

Usage: cargo xtask demo [--once | --rounds N] [--json FILE] [--yes]
       cargo xtask demo --story [--seed N] [--yes]

Options:
  --once       one round of the three faults (the default)
  --rounds N   so many rounds
  --json FILE  write what was measured
  --story      a simulated failover instead, told as it happens
  --seed N     which story: the same number tells the same one (decimal, or hexadecimal after 0x)
  -y, --yes    install what is missing without asking

Examples:
  cargo xtask demo
  cargo xtask demo --once --json demo.json
  cargo xtask demo --story --seed 7
";

const HELP_BENCH: &str = "\
Runs one bench in release mode; its rows are written to target/bench/NAME.json.

Usage: cargo xtask bench NAME [--yes]

Benches:
  simulator    whole simulated clusters a second
  failover     how long callers see the loss of a node
  messaging    tells and asks between two processes, beside Erlang, ractor_cluster and a raw QUIC stream
  checkpoint   records of 4 KiB flushed on three replicas, beside the disk alone
  sandbox      guests beside bare wasmtime, and their checkpoints beside copying everything

Options:
  -y, --yes    install what is missing without asking

A peer that cannot be installed is left out, and the bench says so.

Examples:
  cargo xtask bench simulator
  cargo xtask bench messaging --yes
";

const HELP_DOCTOR: &str = "\
Says what this machine has and lacks for the commands of `cargo xtask`, and what to type. Changes
nothing. Ends with 1 when a command lacks something.

  present     it is there
  missing     a command cannot do without it
  optional    commands do better with it
  later       no command of this version uses it

Usage: cargo xtask doctor [--json]

Examples:
  cargo xtask doctor
  cargo xtask doctor --json
";

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(line: &str) -> Result<Command, Usage> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[track_caller]
    fn check(line: &str, command: Command) {
        assert_eq!(parse_words(line), Ok(command), "{line}");
    }

    #[track_caller]
    fn check_refused(line: &str, says: &str) {
        let said = parse_words(line).expect_err(line).to_string();
        assert!(
            said.contains(says),
            "{line}: should say {says:?}, said {said:?}"
        );
        assert!(
            said.contains("--help`."),
            "{line}: names no way to help: {said:?}"
        );
    }

    #[test]
    fn commands_and_their_options_are_read() {
        let only = |stage, long, yes| {
            Command::Test(TestOptions {
                only: stage,
                long,
                yes,
            })
        };
        check("test", only(None, false, false));
        check("test --long --yes", only(None, true, true));
        check(
            "test --stage units -y",
            only(Some(Stage::Units), false, true),
        );
        check(
            "test --stage=clippy",
            only(Some(Stage::Clippy), false, false),
        );
        check(
            "demo",
            Command::Demo {
                show: Show::default(),
                yes: false,
            },
        );
        check(
            "demo --seed 7",
            Command::Demo {
                show: Show::Story(7),
                yes: false,
            },
        );
        check(
            "demo --story --seed 0x1f --yes",
            Command::Demo {
                show: Show::Story(31),
                yes: true,
            },
        );
        let json = Some("demo.json".to_owned());
        check(
            "demo --once --json demo.json",
            Command::Demo {
                show: Show::Nodes { json, rounds: 1 },
                yes: false,
            },
        );
        check(
            "bench simulator",
            Command::Bench {
                bench: &BENCHES[0],
                yes: false,
            },
        );
        check("doctor --json", Command::Doctor { json: true });
    }

    #[test]
    fn help_is_given_where_it_is_asked_for() {
        check("--help", Command::Help(Topic::All));
        check("help", Command::Help(Topic::All));
        check("test --long -h", Command::Help(Topic::Test));
        check("bench --help", Command::Help(Topic::Bench));
    }

    #[test]
    fn a_slip_is_answered_with_the_word_that_was_meant() {
        check_refused("tset", "unknown command `tset`; did you mean `test`?");
        check_refused("docter", "did you mean `doctor`?");
        check_refused(
            "test --stage unit",
            "unknown stage `unit`; did you mean `units`?",
        );
        check_refused(
            "test --lnog",
            "unknown argument `--lnog`; did you mean `--long`?",
        );
        check_refused("bench simulatro", "did you mean `simulator`?");
    }

    #[test]
    fn another_word_is_refused_without_a_guess() {
        for line in [
            "frobnicate",
            "x",
            "test everything",
            "demo --forever",
            "doctor --fix",
        ] {
            let said = parse_words(line).expect_err(line).to_string();
            assert!(!said.contains("did you mean"), "{line}: {said}");
        }
    }

    #[test]
    fn an_unknown_bench_lists_those_there_are() {
        check_refused("bench", "name a bench: simulator");
        check_refused("bench tell", "there are: simulator");
        check_refused("bench simulator simulator", "unknown argument `simulator`");
    }

    #[test]
    fn a_missing_command_or_value_is_refused() {
        check_refused("", "a command is missing");
        check_refused("demo --seed", "--seed");
        check_refused("demo --seed seven", "`seven` is no seed");
        check_refused("demo --seed 0x", "`0x` is no seed");
        check_refused("demo --yes=no", "--yes");
        check_refused("demo --rounds 0", "`0` is no count");
    }

    #[test]
    fn every_stage_and_every_bench_is_in_the_help() {
        for stage in Stage::ALL {
            let row = format!("\n  {} ", stage.name());
            assert!(
                HELP_TEST.contains(&row),
                "no help for stage {}",
                stage.name()
            );
        }
        for bench in &BENCHES {
            let row = format!("\n  {} ", bench.name);
            assert!(
                HELP_BENCH.contains(&row),
                "no help for bench {}",
                bench.name
            );
        }
    }
}
