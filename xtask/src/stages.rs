//! The stages of `cargo xtask test`.
//!
//! Owns: their order and the command lines of each, which [`Stage::steps`] works out from what is
//! there without running anything. Never captures a test runner's output, and never goes on after a
//! stage that failed: what comes later would only hide the reason.

use std::time::{Duration, Instant};

use crate::console::say;
use crate::demo;
use crate::guests;
use crate::line::{Line, workspace_root};
use crate::needs::{self, Probe, Task, is_present};

/// How `cargo xtask test` was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TestOptions {
    /// This stage alone; all of them otherwise.
    pub(crate) only: Option<Stage>,
    /// Longer suites.
    pub(crate) long: bool,
    /// Install what is missing without asking.
    pub(crate) yes: bool,
}

/// A stage. The cheapest to run and the quickest to be wrong comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    House,
    Units,
    Clippy,
    EndToEnd,
    Demo,
}

/// What decides which steps a stage has.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    nextest: bool,
    deny: bool,
    /// `protocol/sim/tests/sabotage.rs` exists.
    sabotage: bool,
    /// A nightly compiler and cargo-fuzz. Looked for in a long run only: nothing else fuzzes.
    fuzz: bool,
    long: bool,
}

/// One thing a stage does.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Run(Line),
    /// Tells the demo's story.
    Demo,
    /// Builds the guests of real toolchains, or says why their tests will be skipped.
    Guests,
    /// Nothing is run, and why.
    Skip(&'static str),
}

/// Runs the stages, then says how long each took.
pub(crate) fn run(options: &TestOptions) -> Result<(), String> {
    let found = Found::look(options.long);
    let stages: Vec<Stage> = match options.only {
        Some(stage) => vec![stage],
        None => Stage::ALL.to_vec(),
    };
    if stages.contains(&Stage::Units) {
        let ensured =
            guests::installing().and_then(|_alone| needs::ensure(Task::Guests, options.yes));
        if let Err(why) = ensured {
            say(&format!(
                "Going on without the toolchains of guests: {why}."
            ));
        }
    }
    let mut taken = Vec::new();
    let mut outcome = Ok(());
    for stage in stages {
        say(&format!("==> {}: {}", stage.name(), stage.what()));
        let steps = stage.steps(found);
        let started = Instant::now();
        outcome = steps.iter().try_for_each(Step::run);
        let seconds = started.elapsed();
        let word = match &outcome {
            Err(_) => "FAILED",
            Ok(()) if steps.iter().all(Step::is_skipped) => "skipped",
            Ok(()) => "passed",
        };
        say(&format!(
            "==> {} {word} in {}\n",
            stage.name(),
            show(seconds)
        ));
        taken.push((stage, seconds, word));
        if outcome.is_err() {
            break;
        }
    }
    say(&table(&taken));
    outcome.map_err(|why| match taken.last() {
        Some((stage, ..)) => format!(
            "stage `{0}` failed: {why}\nOnly this stage: cargo xtask test --stage {0}",
            stage.name()
        ),
        None => why,
    })
}

impl Stage {
    /// In the order they run in.
    pub(crate) const ALL: [Stage; 5] = [
        Stage::House,
        Stage::Units,
        Stage::Clippy,
        Stage::EndToEnd,
        Stage::Demo,
    ];

    /// What is typed after `--stage`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Stage::House => "house",
            Stage::Units => "units",
            Stage::Clippy => "clippy",
            Stage::EndToEnd => "e2e",
            Stage::Demo => "demo",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Stage::House => "formatting, layering, licences",
            Stage::Units => "unit tests, documentation tests, simulator",
            Stage::Clippy => "lints, each warning an error",
            Stage::EndToEnd => "real processes, real clients",
            Stage::Demo => "the demo, as shown to a guest",
        }
    }

    fn steps(self, found: Found) -> Vec<Step> {
        match self {
            Stage::House => vec![
                Step::cargo("fmt --all --check"),
                Step::cargo("test --quiet -p xtask"),
                licences(found),
            ],
            // The documentation tests go first: a workspace has few, and what stands last on the
            // screen should be the summary of the many.
            Stage::Units => [
                Step::Guests,
                Step::Run(long(Line::cargo("test --quiet --doc --workspace"), found)),
            ]
            .into_iter()
            .chain([unit_tests(found)])
            .chain(sabotage(found))
            .chain(fuzz(found))
            .collect(),
            Stage::Clippy => vec![Step::cargo(
                "clippy --workspace --all-targets --features understudy/e2e -- -D warnings",
            )],
            Stage::EndToEnd => vec![end_to_end(found)],
            Stage::Demo => vec![Step::Demo],
        }
    }
}

/// Before the tests that want them, since the first one takes minutes: a compiler builds its own
/// libraries first. What cannot be built is no failure here, and its tests say the same again.
fn build_guests() {
    for guest in guests::ALL {
        if !guests::is_built(guest) {
            say(&format!("building the guest of {}", guest.source));
        }
        if let Err(why) = guests::build(guest) {
            say(&format!(
                "SKIPPED: the tests with the guest of {}: {why}",
                guest.source
            ));
        }
    }
}

/// Licences, bans and sources. Advisories are left out: they need a database from the network, and
/// a test that passes today must not fail tomorrow because somebody else published something.
fn licences(found: Found) -> Step {
    if found.deny {
        Step::cargo("deny check bans licenses sources")
    } else {
        Step::Skip("cargo-deny is not installed (cargo install cargo-deny)")
    }
}

fn unit_tests(found: Found) -> Step {
    let line = match (found.nextest, found.long) {
        (true, false) => Line::cargo("nextest run --workspace --exclude xtask"),
        (true, true) => Line::cargo("nextest run --workspace --exclude xtask --profile long"),
        (false, _) => Line::cargo("test --workspace --exclude xtask --lib --bins --tests"),
    };
    Step::Run(long(line, found))
}

/// Real processes need both cores, so that they run one at a time, and apart from the units.
fn end_to_end(found: Found) -> Step {
    let line = match (found.nextest, found.long) {
        (true, false) => Line::cargo("nextest run -p understudy --features e2e --test e2e -j 1"),
        (true, true) => {
            Line::cargo("nextest run -p understudy --features e2e --test e2e -j 1 --profile long")
        }
        (false, _) => {
            Line::cargo("test -p understudy --features e2e --test e2e -- --test-threads=1")
        }
    };
    Step::Run(long(line, found))
}

/// The build in which one numbered rule at a time is switched off, and the simulator and the model
/// checker must notice.
/// Plain `cargo test`: the rules are switched for a whole process, so that its rows share one.
fn sabotage(found: Found) -> Option<Step> {
    let line =
        Line::cargo("test -p understudy-sim --features sabotage --test sabotage --test model");
    found.sabotage.then(|| Step::Run(long(line, found)))
}

/// Every fuzz target for a while, in a long run. What the fuzzer finds on its way goes under `target`:
/// inputs that are kept are chosen by hand.
fn fuzz(found: Found) -> Vec<Step> {
    if !found.long {
        return Vec::new();
    }
    if !found.fuzz {
        return vec![Step::Skip(
            "cargo-fuzz needs a nightly compiler, and one of the two is not installed (rustup \
             toolchain install nightly && cargo install --locked cargo-fuzz)",
        )];
    }
    let folders = FUZZ_TARGETS
        .iter()
        .fold(Line::new("mkdir -p"), |line, target| {
            line.and(&format!("target/fuzz/{target}"))
        });
    let run = |target: &&str| {
        let inputs = format!("target/fuzz/{target} protocol/fuzz/corpus/{target}");
        let line = Line::new("rustup run nightly cargo fuzz run --fuzz-dir protocol/fuzz")
            .and(target)
            .and(&inputs);
        Step::Run(line.and(&format!("-- -max_total_time={FUZZ_SECONDS}")))
    };
    [Step::Run(folders)]
        .into_iter()
        .chain(FUZZ_TARGETS.iter().map(run))
        .collect()
}

/// The programs in `protocol/fuzz/targets`.
const FUZZ_TARGETS: [&str; 11] = [
    "directory_command",
    "directory_snapshot",
    "envelope",
    "frame",
    "heart",
    "record",
    "replica_answer",
    "replica_request",
    "reply",
    "step",
    "stream",
];

/// Seconds for each target: a shallow fault shows within them, and all targets together take about
/// as long as the rest of a long run. Depth is for whoever fuzzes one target overnight.
const FUZZ_SECONDS: u32 = 20;

fn long(line: Line, found: Found) -> Line {
    if found.long {
        line.with_env("UNDERSTUDY_LONG", "1")
    } else {
        line
    }
}

impl Found {
    fn look(long: bool) -> Found {
        Found {
            nextest: is_present(&Probe::Program("cargo-nextest")),
            deny: is_present(&Probe::Program("cargo-deny")),
            sabotage: workspace_root()
                .join("protocol/sim/tests/sabotage.rs")
                .exists(),
            fuzz: long && is_present(&Probe::Runs("rustup run nightly cargo fuzz --version")),
            long,
        }
    }
}

impl Step {
    fn cargo(text: &str) -> Step {
        Step::Run(Line::cargo(text))
    }

    fn is_skipped(&self) -> bool {
        matches!(self, Step::Skip(_))
    }

    fn run(&self) -> Result<(), String> {
        match self {
            Step::Run(line) => {
                say(&format!("$ {line}"));
                line.run().map_err(|why| why.to_string())
            }
            Step::Demo => demo::run(&demo::Show::default()),
            Step::Guests => {
                build_guests();
                Ok(())
            }
            Step::Skip(why) => {
                say(&format!("skipped: {why}"));
                Ok(())
            }
        }
    }
}

fn table(taken: &[(Stage, Duration, &str)]) -> String {
    let all: Duration = taken.iter().map(|(_, seconds, _)| *seconds).sum();
    let mut text = String::from("stage      seconds\n");
    for (stage, seconds, word) in taken {
        text.push_str(&format!(
            "{:<8}{:>10}  {word}\n",
            stage.name(),
            show(*seconds)
        ));
    }
    text.push_str(&format!("{:<8}{:>10}\n", "all", show(all)));
    text
}

fn show(seconds: Duration) -> String {
    format!("{:.1} s", seconds.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(stage: Stage, found: Found, expect: &[&str]) {
        let shown: Vec<String> = stage
            .steps(found)
            .iter()
            .map(|step| match step {
                Step::Run(line) => line.to_string(),
                Step::Demo => "demo".to_owned(),
                Step::Guests => "guests".to_owned(),
                Step::Skip(why) => format!("skipped: {why}"),
            })
            .collect();
        assert_eq!(shown, expect, "{stage:?} with {found:?}");
    }

    const BARE: Found = Found {
        nextest: false,
        deny: false,
        sabotage: false,
        fuzz: false,
        long: false,
    };

    #[test]
    fn without_nextest_plain_cargo_test_serves_and_documentation_tests_run_in_both() {
        check(
            Stage::Units,
            BARE,
            &[
                "guests",
                "cargo test --quiet --doc --workspace",
                "cargo test --workspace --exclude xtask --lib --bins --tests",
            ],
        );
        check(
            Stage::Units,
            Found {
                nextest: true,
                ..BARE
            },
            &[
                "guests",
                "cargo test --quiet --doc --workspace",
                "cargo nextest run --workspace --exclude xtask",
            ],
        );
    }

    #[test]
    fn long_reaches_every_test_run() {
        check(
            Stage::Units,
            Found {
                nextest: true,
                long: true,
                sabotage: true,
                ..BARE
            },
            &[
                "guests",
                "UNDERSTUDY_LONG=1 cargo test --quiet --doc --workspace",
                "UNDERSTUDY_LONG=1 cargo nextest run --workspace --exclude xtask --profile long",
                "UNDERSTUDY_LONG=1 cargo test -p understudy-sim --features sabotage --test sabotage --test model",
                "skipped: cargo-fuzz needs a nightly compiler, and one of the two is not installed \
                 (rustup toolchain install nightly && cargo install --locked cargo-fuzz)",
            ],
        );
    }

    #[test]
    fn a_long_run_fuzzes_every_target_for_a_while_and_no_other_run_fuzzes() {
        let fuzz = true;
        let usual = Stage::Units.steps(Found { fuzz, ..BARE });
        assert_eq!(usual, Stage::Units.steps(BARE));

        let long = true;
        let steps = Stage::Units.steps(Found { fuzz, long, ..BARE });
        let shown: Vec<String> = steps[usual.len()..]
            .iter()
            .map(|step| match step {
                Step::Run(line) => line.to_string(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(shown.len(), 1 + FUZZ_TARGETS.len());
        assert!(shown[0].starts_with("mkdir -p target/fuzz/directory_command "));
        assert_eq!(
            shown[5],
            "rustup run nightly cargo fuzz run --fuzz-dir protocol/fuzz heart target/fuzz/heart \
             protocol/fuzz/corpus/heart -- -max_total_time=20"
        );
    }

    #[test]
    fn every_fuzz_target_is_named() {
        let folder = workspace_root().join("protocol/fuzz/targets");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .expect("the targets are there")
            .map(|entry| entry.expect("it can be read").file_name())
            .map(|name| name.to_string_lossy().replace(".rs", ""))
            .collect();
        files.sort();
        assert_eq!(files, FUZZ_TARGETS);
    }

    #[test]
    fn licences_are_checked_where_the_checker_is_installed_and_named_as_skipped_otherwise() {
        let first = ["cargo fmt --all --check", "cargo test --quiet -p xtask"];
        let skipped = "skipped: cargo-deny is not installed (cargo install cargo-deny)";
        check(Stage::House, BARE, &[first[0], first[1], skipped]);
        let checked = "cargo deny check bans licenses sources";
        check(
            Stage::House,
            Found { deny: true, ..BARE },
            &[first[0], first[1], checked],
        );
    }

    #[test]
    fn the_other_stages_do_one_thing() {
        check(
            Stage::Clippy,
            BARE,
            &["cargo clippy --workspace --all-targets --features understudy/e2e -- -D warnings"],
        );
        check(
            Stage::EndToEnd,
            BARE,
            &["cargo test -p understudy --features e2e --test e2e -- --test-threads=1"],
        );
        check(Stage::Demo, BARE, &["demo"]);
    }

    #[test]
    fn the_table_adds_up() {
        let taken = [
            (Stage::House, Duration::from_millis(1_500), "passed"),
            (Stage::Units, Duration::from_millis(20_000), "FAILED"),
        ];
        assert_eq!(
            table(&taken),
            "stage      seconds\n\
             house        1.5 s  passed\n\
             units       20.0 s  FAILED\n\
             all         21.5 s\n"
        );
    }
}
