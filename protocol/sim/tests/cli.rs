//! The binary as somebody types it: exit codes, what is printed, and that it looks well in a page.
//!
//! Owns: the command line's promises. What a run is, is tested elsewhere.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn sim(line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_understudy-sim"))
        .args(line.split_whitespace())
        .output()
        .unwrap()
}

/// Runs it, and gives what it printed; the exit code must be `code`.
fn check(line: &str, code: i32) -> String {
    let output = sim(line);
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(code), "{line}: {printed}");
    printed
}

#[test]
fn a_trace_ends_with_its_hash_and_is_the_same_twice() {
    let trace = check("--seed 3 --trace", 0);
    assert!(trace.lines().count() > 100);
    let last = trace.lines().last().unwrap();
    assert!(last.starts_with("trace hash "), "{last}");
    assert_eq!(trace, check("--seed 3 --trace", 0));
    assert_eq!(check("--seed 0x3", 0).lines().last(), Some(last));
}

#[test]
fn many_seeds_are_counted_with_the_paths_they_took() {
    let printed = check("--seeds 4 --from 2 --coverage", 0);
    assert!(
        printed.contains(" of 4  a death note ended promises"),
        "{printed}"
    );
    assert!(printed.contains("0 of 4 seeds failed"), "{printed}");
}

#[test]
fn a_story_fits_a_page_and_says_what_it_is() {
    for seed in 1..=4 {
        let story = check(&format!("--story --seed {seed}"), 0);
        for wanted in [
            "simulated",
            "SIGKILL: node-",
            "LOST: node-",
            "SIGSTOP: node-",
            "granted to node-",
            "first answer:",
        ] {
            assert!(
                story.contains(wanted),
                "seed {seed} lacks `{wanted}`:\n{story}"
            );
        }
        assert!(
            story.contains(&format!("-- --story --seed {seed}")),
            "{story}"
        );
        let longest = story
            .lines()
            .map(|line| line.chars().count())
            .max()
            .unwrap();
        assert!(longest <= 100 && story.lines().count() <= 65, "{story}");
        assert!(
            !story.contains('\x1b'),
            "colour where there is no terminal:\n{story}"
        );
    }
}

#[test]
fn wrong_usage_ends_with_two_and_help_with_none() {
    for line in ["", "--sed 1", "--seed one", "--seeds 3 --trace", "extra"] {
        assert_eq!(check(line, 2), "", "{line}");
    }
    assert!(check("--help", 0).contains("Exit codes: 0"));
}
