//! The command line as values: arguments in, text and exit code out.
//!
//! Owns: what the binary answers. Never prints and never exits, so that a test asks it as a user
//! would. A command that does not exist yet is refused by name: whoever follows the documents of a
//! later version must not mistake silence for success.

use std::fmt::Write as _;

use understudy_protocol::id::SLOTS;

/// What to print, where, and how to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The whole text, with its last newline.
    pub text: String,
    /// Zero prints on standard output, anything else on standard error: 0 done, 2 wrong usage.
    pub exit_code: u8,
}

/// Answers one command line, the program's name left out.
pub fn answer<S: AsRef<str>>(args: &[S]) -> Answer {
    let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
    match args.as_slice() {
        ["--version" | "-V"] => done(version()),
        ["--help" | "-h" | "help"] => done(help()),
        [] => refused(help()),
        [flag, more, ..] if flag.starts_with('-') => refused(format!(
            "understudy: `{more}` after `{flag}` means nothing.\n"
        )),
        [word, ..] => refused(match planned(word) {
            Some(what) => format!(
                "understudy: `{word}` ({what}) does not exist in this version.\n{}",
                nothing_yet()
            ),
            None => format!(
                "understudy: `{word}` is no command; `understudy --help` lists what there is.\n"
            ),
        }),
    }
}

fn done(text: String) -> Answer {
    Answer { text, exit_code: 0 }
}

fn refused(text: String) -> Answer {
    Answer { text, exit_code: 2 }
}

fn version() -> String {
    format!("understudy {} ({SLOTS} slots)\n", env!("CARGO_PKG_VERSION"))
}

fn nothing_yet() -> &'static str {
    "What exists today is the core and its simulator: `cargo xtask demo` shows them.\n"
}

fn help() -> String {
    let mut text = String::from(
        "understudy: keeps an understudy ready for every piece of live state in a cluster.\n\n\
         Usage: understudy --version | --help\n\n\
         This version cannot run a node. ",
    );
    text.push_str(nothing_yet());
    text.push_str("\nNot there yet, and refused by name:\n");
    for (noun, what) in PLANNED {
        let _ = writeln!(text, "  {noun:<9} {what}");
    }
    text.push_str("\nExit codes: 0 done, 2 wrong usage.\n");
    text
}

fn planned(word: &str) -> Option<&'static str> {
    PLANNED
        .iter()
        .find(|(noun, _)| *noun == word)
        .map(|(_, what)| *what)
}

/// What later versions offer. A command leaves this list in the change that makes it work.
const PLANNED: [(&str, &str); 13] = [
    ("cluster", "form a cluster, once"),
    ("node", "run, list and drain nodes"),
    ("ca", "the cluster's own certificates"),
    ("token", "access for tenants"),
    ("unit", "where a child is, and why"),
    ("session", "browser sessions"),
    ("sandbox", "durable WebAssembly guests"),
    ("function", "stateless WebAssembly guests"),
    ("module", "the registry of WebAssembly modules"),
    ("job", "render jobs"),
    ("kv", "the key-value store"),
    ("events", "what supervisors did, live"),
    ("dev", "one node without a configuration"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn check(args: &[&str], exit_code: u8, says: &str) {
        let answer = answer(args);
        assert_eq!(answer.exit_code, exit_code, "{args:?} answered {answer:?}");
        assert!(
            answer.text.contains(says),
            "{args:?} should say {says:?}, said {answer:?}"
        );
        assert!(
            answer.text.ends_with('\n'),
            "{args:?} ends without a newline"
        );
    }

    #[test]
    fn version_and_help_are_answered() {
        check(&["--version"], 0, env!("CARGO_PKG_VERSION"));
        check(&["-V"], 0, "understudy");
        check(&["--help"], 0, "cannot run a node");
        check(&["help"], 0, "Usage:");
    }

    #[test]
    fn no_command_shows_the_help_and_counts_as_wrong_usage() {
        check(&[], 2, "Usage:");
    }

    #[test]
    fn a_command_of_a_later_version_is_refused_by_name() {
        check(
            &["node", "run"],
            2,
            "`node` (run, list and drain nodes) does not exist",
        );
    }

    #[test]
    fn an_unknown_command_is_refused() {
        check(&["frobnicate"], 2, "is no command");
        check(
            &["--version", "now"],
            2,
            "`now` after `--version` means nothing",
        );
        check(&["--verbose"], 2, "is no command");
    }
}
