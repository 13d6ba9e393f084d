//! The `understudy` binary: prints what the command line answers and ends with its exit code.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use understudy::cli::args::{Command, Node, Store};
use understudy::cli::{self, Answer, Cli, Exit, Failure, Screen};
use understudy::{dev, run};

fn main() -> ExitCode {
    let answer = match cli::parse(std::env::args_os()) {
        Ok(cli) => match cli.command {
            Command::Warden { fd } => return run::warden(fd),
            Command::Store(Store::Fsck { dir, probe: true }) => return run::store_probe(&dir),
            _ => carry_out(&cli),
        },
        Err(answer) => answer,
    };
    // A reader that has gone away (`understudy --help | head -1`) is no failure of ours.
    let _ = std::io::stdout().write_all(&answer.out);
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().write_all(answer.err.as_bytes());
    ExitCode::from(answer.exit as u8)
}

fn carry_out(cli: &Cli) -> Answer {
    let stayed = match &cli.command {
        Command::Node(Node::Run {
            config,
            testing_kinds,
        }) => run::node(config, *testing_kinds),
        Command::Dev(wanted) => with_runtime(async || dev::run(wanted, cli.global.json).await),
        _ => return with_runtime(async || Ok(ask(cli).await)).unwrap_or_else(Into::into),
    };
    stayed.map_or_else(Into::into, |()| Answer::done(""))
}

async fn ask(cli: &Cli) -> Answer {
    let mut stdout = std::io::stdout();
    let is_terminal = stdout.is_terminal();
    let columns = rustix::termios::tcgetwinsize(&stdout)
        .ok()
        .filter(|size| is_terminal && size.ws_col > 0)
        .map_or(usize::MAX, |size| usize::from(size.ws_col));
    let mut stderr = std::io::stderr();
    let aside = stderr.is_terminal();
    let mut screen = Screen {
        columns,
        is_terminal,
        live: &mut stdout,
        aside: aside.then_some(&mut stderr),
    };
    cli::answer(cli, &mut screen).await
}

fn with_runtime<T>(work: impl AsyncFnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("no runtime: {error}")))?;
    runtime.block_on(work())
}
