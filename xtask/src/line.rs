//! A command line as a value: compared in tests, shown before it runs, typed by hand when it fails.
//!
//! Never captures what a program prints and gives it no input to wait for but the terminal's own.

use std::fmt;
use std::path::PathBuf;
use std::process::Command;

/// A program, its arguments, and the variables set for it beside those of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    words: Vec<String>,
    env: Vec<(&'static str, &'static str)>,
}

/// A command line that did not end well.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LineError {
    /// The program could not be started; nothing happened.
    NotStarted { line: String, why: String },
    /// It ran and said that it failed, or was killed.
    Failed { line: String, status: String },
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LineError::NotStarted { line, why } => write!(f, "cannot start `{line}`: {why}"),
            LineError::Failed { line, status } => write!(f, "`{line}` failed ({status})"),
        }
    }
}

impl Line {
    /// `cargo` with the arguments in `text`, which are split at spaces.
    pub(crate) fn cargo(text: &str) -> Line {
        Line::new(&format!("cargo {text}"))
    }

    /// The program and arguments in `text`, which are split at spaces.
    pub(crate) fn new(text: &str) -> Line {
        Line {
            words: text.split_whitespace().map(str::to_owned).collect(),
            env: Vec::new(),
        }
    }

    /// These words, spaces and all.
    pub(crate) fn of(words: &[String]) -> Line {
        Line {
            words: words.to_vec(),
            env: Vec::new(),
        }
    }

    /// The same with one more variable set.
    pub(crate) fn with_env(mut self, name: &'static str, value: &'static str) -> Line {
        self.env.push((name, value));
        self
    }

    /// The same with more arguments, split at spaces.
    pub(crate) fn and(mut self, text: &str) -> Line {
        self.words
            .extend(text.split_whitespace().map(str::to_owned));
        self
    }

    /// The same with one more argument, spaces and all.
    pub(crate) fn word(mut self, word: &str) -> Line {
        self.words.push(word.to_owned());
        self
    }

    /// Runs it in the workspace's root with this process's own input and output.
    pub(crate) fn run(&self) -> Result<(), LineError> {
        let status = self
            .command()
            .status()
            .map_err(|why| LineError::NotStarted {
                line: self.to_string(),
                why: why.to_string(),
            })?;
        if status.success() {
            Ok(())
        } else {
            Err(LineError::Failed {
                line: self.to_string(),
                status: status.to_string(),
            })
        }
    }

    /// Whether it ends well, with nothing shown: for looking at the machine.
    pub(crate) fn succeeds_silently(&self) -> bool {
        self.command()
            .output()
            .is_ok_and(|output| output.status.success())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command
            .args(&self.words[1..])
            .envs(self.env.iter().copied())
            .current_dir(workspace_root());
        command
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.env {
            write!(f, "{name}={value} ")?;
        }
        f.write_str(&self.words.join(" "))
    }
}

/// The workspace this xtask was started in. Asked of the environment and not compiled in: clones
/// that share a target folder may run each other's binary.
pub(crate) fn workspace_root() -> PathBuf {
    match std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from) {
        Some(xtask) => xtask.parent().map(PathBuf::from).unwrap_or_default(),
        None => std::env::current_dir().unwrap_or_default(),
    }
}
