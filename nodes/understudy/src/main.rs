//! The `understudy` binary: prints what the command line answers and ends with its exit code.

use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    let answer = understudy::cli::answer(&args);
    // A reader that has gone away (`understudy --help | head -1`) is no failure of ours.
    let _ = if answer.exit_code == 0 {
        std::io::stdout().write_all(answer.text.as_bytes())
    } else {
        std::io::stderr().write_all(answer.text.as_bytes())
    };
    ExitCode::from(answer.exit_code)
}
