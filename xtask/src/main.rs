//! `cargo xtask test | demo | bench NAME | doctor`: all set-up of this workspace lives here.
//!
//! Owns: what each command needs on a machine and how it is installed, the stages of the test run,
//! and the names of the benches. Never does: changing what a tool prints (a test runner's output
//! reaches the terminal as it is), or building anything slow itself: it must be ready in seconds on
//! a machine that has seen nothing of this repository yet.
//!
//! ```text
//!   arguments ──> cli::parse ──> Command ──> needs (look, plan, install) ──> test | demo | bench
//! ```

mod bench;
mod cli;
mod console;
mod demo;
mod doctor;
// The sandbox's tests find guests by it, and the toolchains are installed by it here.
#[path = "../../actors/sandbox/tests/guests/mod.rs"]
mod guests;
mod line;
mod needs;
mod stages;

use std::process::ExitCode;

use cli::Command;
use console::{complain, say};
use needs::Task;

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os().skip(1)) {
        Ok(command) => command,
        Err(usage) => {
            complain(&format!("xtask: {usage}"));
            return ExitCode::from(WRONG_USAGE);
        }
    };
    let done = match command {
        Command::Help(topic) => {
            say(topic.help());
            Ok(())
        }
        Command::Test(options) => {
            needs::ensure(Task::Test, options.yes).and_then(|()| stages::run(&options))
        }
        Command::Demo { show, yes } => {
            needs::ensure(Task::Demo, yes).and_then(|()| demo::run(&show))
        }
        Command::Bench { bench, yes } => {
            needs::ensure(Task::Bench, yes).and_then(|()| bench::run(bench, yes))
        }
        Command::Doctor { json } => doctor::run(json),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            complain(&format!("xtask: {why}"));
            ExitCode::FAILURE
        }
    }
}

/// The exit code for arguments that make no sense; 1 is for work that failed.
const WRONG_USAGE: u8 = 2;
