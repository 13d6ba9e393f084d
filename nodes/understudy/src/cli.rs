//! The command line as values: arguments in, text and exit code out.
//!
//! Owns: what the binary answers. Never prints and never exits, so that a test asks it as a user
//! would; the two commands that go on (`events --follow` and the daemons) get a place to write to.
//!
//! ```text
//!   arguments ── args (clap) ──┬─> commands ── client (HTTP) ── print (tables, trees) ──> Answer
//!                              └─> crate::run, crate::dev      nodes that stay
//! ```

pub mod args;
pub mod client;
mod commands;
pub mod print;
mod sse;
pub mod table;

use std::ffi::OsString;
use std::io::Write;

use clap::Parser as _;

pub use args::Cli;

/// How a command ended, as the shell sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Not done: what was asked for could not be.
    Failed = 1,
    /// Wrong usage, or a wrong configuration.
    Usage = 2,
    /// No server could be reached.
    Unreachable = 3,
    /// A server refused: no valid token, or no room.
    Refused = 4,
    /// No answer in time; it may have been done.
    TimedOut = 5,
}

/// What to print, where, and how to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// For standard output.
    pub out: Vec<u8>,
    /// For standard error, with its last newline.
    pub err: String,
    /// How to end.
    pub exit: Exit,
}

/// A command that could not be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// How to end.
    pub exit: Exit,
    /// What happened.
    pub what: String,
    /// What to type next.
    pub hint: Option<String>,
}

/// What a command prints about.
pub struct Screen<'a> {
    /// Columns of the terminal; `usize::MAX` where there is none, so that nothing is cut.
    pub columns: usize,
    /// Whether standard output is a terminal.
    pub is_terminal: bool,
    /// For commands that go on: text as it comes.
    pub live: &'a mut dyn Write,
    /// Standard error, if it is a terminal: for what a person waits beside, and what a guest wrote.
    pub aside: Option<&'a mut dyn Write>,
}

/// Reads one command line, the program's name first. Help and version are answers too.
pub fn parse<I, T>(args: I) -> Result<Cli, Answer>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    Cli::try_parse_from(args).map_err(|error| {
        let text = error.render().to_string();
        if error.exit_code() == 0 {
            Answer::done(text)
        } else {
            Answer {
                out: Vec::new(),
                err: text,
                exit: Exit::Usage,
            }
        }
    })
}

/// Carries out a command that asks a server, or a file, and ends.
pub async fn answer(cli: &Cli, screen: &mut Screen<'_>) -> Answer {
    match commands::run(cli, screen).await {
        Ok(out) => Answer {
            out,
            err: String::new(),
            exit: Exit::Done,
        },
        Err(failure) => failure.into(),
    }
}

impl Answer {
    /// A command that was carried out.
    pub fn done(text: impl Into<Vec<u8>>) -> Answer {
        Answer {
            out: text.into(),
            err: String::new(),
            exit: Exit::Done,
        }
    }
}

impl Failure {
    /// A failure without a hint.
    pub fn new(exit: Exit, what: impl Into<String>) -> Failure {
        Failure {
            exit,
            what: what.into(),
            hint: None,
        }
    }

    /// With what to type next.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Failure {
        Failure {
            hint: Some(hint.into()),
            ..self
        }
    }
}

impl From<Failure> for Answer {
    fn from(failure: Failure) -> Answer {
        let hint = failure.hint.map(|hint| format!("  {hint}\n"));
        Answer {
            out: Vec::new(),
            err: format!("understudy: {}\n{}", failure.what, hint.unwrap_or_default()),
            exit: failure.exit,
        }
    }
}

#[cfg(test)]
mod tests;
