//! A node as its warden sees one: a process that starts a warden and does what its standard input
//! says, line by line. What it hears, it writes to standard output.
//!
//! `warden-test-node NOTES INCARNATION`, and, started by itself, `warden-test-node warden --fd N`.

// A heart feeds at its own pace.
#![allow(clippy::disallowed_methods)]

use std::io::{self, BufRead as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use understudy_protocol::cluster::lease::warden::HelperId;
use understudy_protocol::id::{IncarnationId, UnitId};
use understudy_protocol::time::Time;
use understudy_warden::{HelperSpec, WardenClient};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "warden", "--fd", fd] => understudy_warden::main(fd.parse().expect("a number")),
        [_, notes, incarnation] => {
            node(Path::new(notes), incarnation.parse().expect("a number"));
            ExitCode::SUCCESS
        }
        _ => panic!("warden-test-node NOTES INCARNATION"),
    }
}

fn node(notes: &Path, incarnation: u64) {
    let exe = std::env::current_exe().expect("its own path");
    let hear = Box::new(|event| say(&format!("{event:?}")));
    let (warden, digest) =
        WardenClient::spawn(&exe, IncarnationId(incarnation), notes, hear).expect("a warden");
    say(&format!("warden {}", warden.pid()));
    let hex: String = digest.0.iter().map(|byte| format!("{byte:02x}")).collect();
    say(&format!("digest {hex}"));
    for line in io::stdin().lock().lines() {
        let line = line.expect("text");
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let number = || rest.parse::<u64>().expect("a number");
        let done = match word {
            "feed" => warden.feed(now() + Duration::from_millis(number())),
            "feed-for-ever" => (0..)
                .map(|_| {
                    std::thread::sleep(Duration::from_millis(20));
                    warden.feed(now() + Duration::from_millis(number()))
                })
                .find(Result::is_err)
                .unwrap_or(Ok(())),
            "at-work" => warden.at_work(UnitId(number())),
            "at-rest" => warden.at_rest(UnitId(number())),
            // Every unit up to this one starts; then all but the last rest.
            "busy" => (1..=number())
                .try_for_each(|unit| warden.at_work(UnitId(unit)))
                .and_then(|()| (1..number()).try_for_each(|unit| warden.at_rest(UnitId(unit)))),
            "sync" => {
                say("synced");
                Ok(())
            }
            "voter" => warden.voters(&[rest.parse().expect("an address")]),
            "kill" => warden.kill_helper(HelperId(number())),
            "run" => warden.spawn_helper(HelperSpec::new(rest)).map(drop),
            "sh" | "sh-in" => {
                let mut spec = HelperSpec::new("/bin/sh");
                let rest = match rest.split_once(' ') {
                    Some((folder, rest)) if word == "sh-in" => {
                        spec.scratch = Some(folder.into());
                        spec.dir = folder.into();
                        rest
                    }
                    _ => rest,
                };
                spec.args = vec!["-c".into(), rest.into()];
                spec.env = vec![("PATH".into(), "/usr/bin:/bin".into())];
                let (read, write) = io::pipe().expect("a pipe");
                spec.fds = vec![write.into()];
                std::thread::spawn(move || {
                    for line in io::BufReader::new(read).lines().map_while(Result::ok) {
                        say(&format!("helper says {line}"));
                    }
                });
                warden.spawn_helper(spec).map(drop)
            }
            _ => panic!("{word}?"),
        };
        if let Err(error) = done {
            say(&format!("failed {error}"));
        }
    }
}

fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn now() -> Time {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Time::from_nanos(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}
