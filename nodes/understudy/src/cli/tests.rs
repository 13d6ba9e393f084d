//! Asked as a user would: arguments in, text and exit code out.
#![allow(clippy::unwrap_used)]

use clap::CommandFactory as _;

use super::*;
use crate::cli::args::{Command, Node, Unit};

fn parsed(line: &str) -> Result<Cli, Answer> {
    parse(line.split_whitespace())
}

fn refused(line: &str, says: &str) {
    let answer = parsed(line).expect_err(line);
    assert_eq!(answer.exit, Exit::Usage, "{line}: {answer:?}");
    assert!(answer.out.is_empty(), "{line}");
    assert!(
        answer.err.contains(says),
        "{line} should say {says:?}, said {}",
        answer.err
    );
}

fn screen(live: &mut Vec<u8>) -> Screen<'_> {
    Screen {
        columns: usize::MAX,
        is_terminal: false,
        live,
        aside: None,
    }
}

#[test]
fn the_grammar_holds() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_is_understood() {
    for line in [
        "understudy dev",
        "understudy dev --nodes 3 --dir /tmp/d --port 9000 --json",
        "understudy call t1/counter/a increment --key k --timeout 250ms",
        "understudy call @t1/counter/a -",
        "understudy tree --all",
        "understudy events --follow --after 7f.3",
        "understudy cluster init --single",
        "understudy cluster show --json",
        "understudy node run --config a.toml",
        "understudy node list --server http://a:1,http://b:2 --server c:3",
        "understudy node drain a --wait 30s",
        "understudy node drain a --undo",
        "understudy unit list --kind counter --tenant t1 --node a",
        "understudy unit explain unit-3",
        "understudy unit create @t1/counter/a --restart transient --label zone=z1 --label gpu",
        "understudy unit move unit-3 b --wait 5s",
        "understudy unit remove @t1/counter/a",
        "understudy child list --kind counter --tenant t1",
        "understudy module push a.wasm hash@1.2.0-rc.1 --tenant acme",
        "understudy module list --tenant acme --json",
        "understudy module list hash --all",
        "understudy module inspect hash@1.2.0",
        "understudy sandbox create s --module hash --policy p.json --durability interval",
        "understudy sandbox create s --module hash@1.0.0 --durability interval=250ms",
        "understudy sandbox call s add 5 -5 0.25 --key k --timeout 1s",
        "understudy sandbox call s greet -",
        "understudy sandbox list",
        "understudy function call hash fnv",
        "understudy function call hash@1.2.0 fnv 42 --tenant acme",
        "understudy ca init --cluster prod --dir ca",
        "understudy ca issue --dir ca --name a --address a:7600 --out a",
        "understudy store fsck /var/lib/understudy",
        "understudy store fsck /var/lib/understudy --probe",
        "understudy warden --fd 3",
    ] {
        let read = parsed(line);
        assert!(read.is_ok(), "{line}: {read:?}");
    }
}

#[test]
fn servers_may_be_named_together_or_one_by_one() {
    let cli = parsed("understudy tree --server a:1,b:2 --server c:3").unwrap();
    assert_eq!(cli.global.server, ["a:1", "b:2", "c:3"]);
    let Command::Tree { all } = cli.command else {
        panic!("{cli:?}");
    };
    assert!(!all);
}

#[test]
fn what_is_mistyped_is_refused_with_what_was_meant() {
    for (line, says) in [
        ("understudy", "Usage:"),
        ("understudy node", "Usage:"),
        ("understudy noed list", "similar subcommand exists: 'node'"),
        ("understudy node lst", "similar subcommand exists: 'list'"),
        ("understudy tree --jsn", "similar argument exists: '--json'"),
        ("understudy unit explain", "<UNIT>"),
        ("understudy call t1/counter", "three names"),
        ("understudy call t1/counter/a --timeout 5", "250ms"),
        ("understudy dev --nodes 0", "1..=9"),
        (
            "understudy unit create @t/k/a --restart never",
            "permanent, transient, temporary",
        ),
        ("understudy module push a.wasm hash", "NAME@VERSION"),
        ("understudy module push a.wasm Hash@1.0.0", "a-z"),
        ("understudy module push a.wasm hash@one", "no version"),
        ("understudy sandbox create s", "--module"),
        ("understudy sandbox list --tenant a/counter", "has no `/`"),
        (
            "understudy sandbox create s --module hash --durability never",
            "interval=500ms",
        ),
        (
            "understudy sandbox create s --module hash --durability interval=0ms",
            "interval=500ms",
        ),
        ("understudy sandbox list --tenant @acme", "no `@`"),
        ("understudy function call", "<EXPORT>"),
        (
            "understudy node drain a --undo --wait 5s",
            "cannot be used with",
        ),
        (
            "understudy tree --token t --token-file f",
            "cannot be used with",
        ),
    ] {
        refused(line, says);
    }
}

#[test]
fn help_and_version_are_answers() {
    for (line, says) in [
        ("understudy --help", "Exit codes: 0 done, 1 failed"),
        ("understudy help node", "understudy node list"),
        ("understudy --version", env!("CARGO_PKG_VERSION")),
    ] {
        let answer = parsed(line).expect_err(line);
        assert_eq!(answer.exit, Exit::Done, "{line}");
        let text = String::from_utf8(answer.out).unwrap();
        assert!(text.contains(says), "{line} said {text}");
    }
}

#[test]
fn the_help_of_every_command_has_an_example_that_is_understood() {
    fn walk(command: &clap::Command, path: &str, seen: &mut usize) {
        let help = command.clone().render_long_help().to_string();
        let examples = help.split("Example").nth(1);
        let examples = examples.unwrap_or_else(|| panic!("`{path}` has no example"));
        for line in examples.lines() {
            // What stands after two spaces says what the example is for.
            let Some(typed) = line.trim_start().strip_prefix("understudy ") else {
                continue;
            };
            let typed = typed.split("  ").next().unwrap_or_default();
            let typed = typed.replace("'add 1'", "add-1");
            let words = std::iter::once("understudy").chain(typed.split_whitespace());
            assert!(parse(words).is_ok(), "`{path}` shows `{typed}`");
            *seen += 1;
        }
        for sub in command.get_subcommands() {
            walk(sub, &format!("{path} {}", sub.get_name()), seen);
        }
    }
    let mut seen = 0;
    walk(&Cli::command(), "understudy", &mut seen);
    assert!(seen > 45, "only {seen} examples were read");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_said_with_what_to_do() {
    // A port that was free a moment ago, and that nobody serves.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    drop(taken);
    for line in ["node list", "call t/k/a x", "events", "unit explain unit-1"] {
        let cli = parsed(&format!("understudy {line} --server {at}")).unwrap();
        let mut live = Vec::new();
        let answer = answer(&cli, &mut screen(&mut live)).await;
        assert_eq!(answer.exit, Exit::Unreachable, "{line}: {answer:?}");
        assert!(answer.err.contains("understudy dev"), "{}", answer.err);
        assert!(answer.out.is_empty() && live.is_empty());
    }
}

#[tokio::test]
async fn wrong_servers_and_tokens_are_wrong_usage() {
    for (line, says) in [
        ("understudy tree --server https://a", "not spoken here"),
        ("understudy tree --server http://", "no address"),
        (
            "understudy tree --token-file /nonexistent/token",
            "/nonexistent/token",
        ),
    ] {
        let cli = parsed(line).unwrap();
        let mut live = Vec::new();
        let answer = answer(&cli, &mut screen(&mut live)).await;
        assert_eq!(answer.exit, Exit::Usage, "{line}: {answer:?}");
        assert!(answer.err.contains(says), "{line}: {}", answer.err);
    }
}

#[test]
fn a_failure_says_what_happened_and_what_to_type_next() {
    let failure = Failure::new(Exit::Failed, "there is no node `x`").hint("understudy node list");
    let answer = Answer::from(failure);
    assert_eq!(
        answer.err,
        "understudy: there is no node `x`\n  understudy node list\n"
    );
    let cli = parsed("understudy unit move unit-3 b").unwrap();
    assert!(matches!(
        cli.command,
        Command::Unit(Unit::Move { wait: None, .. })
    ));
    let cli = parsed("understudy node drain a --wait 2m").unwrap();
    let Command::Node(Node::Drain { wait, .. }) = cli.command else {
        panic!("{cli:?}");
    };
    assert_eq!(wait, Some(std::time::Duration::from_secs(120)));
}
