//! `understudy dev`, as a person would use it.
//!
//! Owns: what it prints, that what it prints can be typed, and that nothing of it is left.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use tempfile::TempDir;
use understudy_tests::process;

use crate::exe;

#[test]
fn one_node_is_started_called_and_ended_by_an_interrupt() -> Result<()> {
    let mut dev = Dev::start(&[])?;
    dev.check(1)?;
    dev.interrupt()
}

#[test]
fn three_nodes_outlive_the_kill_that_the_greeting_proposes() -> Result<()> {
    let mut dev = Dev::start(&["--nodes", "3"])?;
    dev.check(3)?;
    let kill = dev.command("kill -9 ")?;
    let pid: u32 = kill.split_whitespace().nth(2).context("no pid")?.parse()?;
    process::signal(pid, Signal::KILL)?;
    let began = Instant::now();
    let mut value = 2;
    let mut calls = 0;
    while began.elapsed() < FAILOVER {
        calls += 1;
        if dev.call("add 1", &format!("after-{calls}")).is_ok() {
            value += 1;
        }
        // A child remembers each key for ten minutes, and only some hundred of them.
        std::thread::park_timeout(POLL);
    }
    assert!(value > 2, "nothing was answered after the kill");
    // A try that was given up may have been done.
    let sum: i64 = dev.call("get", "read")?.parse()?;
    assert!(
        sum >= value,
        "{value} steps were acknowledged, the sum is {sum}"
    );
    dev.interrupt()
}

#[test]
fn an_interrupt_before_anything_stands_leaves_nothing_either() -> Result<()> {
    let mut dev = Dev::spawn(&["--nodes", "3"])?;
    let began = Instant::now();
    while process::marked(&dev.mark).len() < 2 && began.elapsed() < PATIENCE {
        std::thread::yield_now();
    }
    dev.interrupt()
}

/// A running `understudy dev`.
struct Dev {
    child: Child,
    mark: String,
    /// Where it makes its folder.
    temp: TempDir,
    greeting: String,
}

impl Dev {
    fn spawn(args: &[&str]) -> Result<Dev> {
        let mark = process::new_mark()?;
        let temp = tempfile::Builder::new().prefix("understudy-").tempdir()?;
        let child = Command::new(exe())
            .arg("dev")
            .args(args)
            .env(process::MARK, &mark)
            .env("TMPDIR", temp.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Dev {
            child,
            mark,
            temp,
            greeting: String::new(),
        })
    }

    /// Starts it and reads its greeting.
    fn start(args: &[&str]) -> Result<Dev> {
        let mut dev = Dev::spawn(args)?;
        let out = dev.child.stdout.take().context("no output")?;
        let (lines, read) = mpsc::sync_channel(LINES_MAX);
        // Ends with the process, whose output it reads to the end.
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let _ = lines.send(line);
            }
        });
        let until = Instant::now() + PATIENCE;
        while !dev.greeting.contains("Ctrl-C") {
            let left = until.saturating_duration_since(Instant::now());
            match read.recv_timeout(left) {
                Ok(line) => dev.greeting += &(line + "\n"),
                Err(_) => bail!("no greeting within {PATIENCE:?}, only {:?}", dev.greeting),
            }
        }
        Ok(dev)
    }

    /// The line of the greeting that begins like this.
    fn command(&self, start: &str) -> Result<&str> {
        let mut lines = self.greeting.lines().map(str::trim);
        let line = lines.find(|line| line.starts_with(start));
        line.with_context(|| format!("no {start:?} in\n{}", self.greeting))
    }

    /// It names so many nodes, an address and a token, and what it proposes works as it stands there.
    fn check(&self, nodes: usize) -> Result<()> {
        let pids = self.greeting.lines().filter(|line| line.contains("  pid "));
        assert_eq!(pids.count(), nodes, "{}", self.greeting);
        self.command("export UNDERSTUDY_SERVER=http://127.0.0.1:")?;
        self.command("export UNDERSTUDY_TOKEN=us_dev_")?;
        let call = self.command("understudy call ")?;
        assert_eq!(self.run(&words(call))?, "1");
        let tree = self.run(&words(self.command("understudy tree")?))?;
        assert!(tree.contains("shards"), "{tree}");
        assert_eq!(self.call("add 1", "once")?, "1");
        assert_eq!(
            self.call("add 1", "once")?,
            "1",
            "a key stands for one call"
        );
        assert_eq!(self.call("add 1", "twice")?, "2");
        Ok(())
    }

    fn call(&self, body: &str, key: &str) -> Result<String> {
        self.run(&["understudy", "call", "demo/counter/x", body, "--key", key])
    }

    /// Runs one of the proposed commands with the proposed environment.
    fn run(&self, words: &[&str]) -> Result<String> {
        let value = |name: &str| {
            let line = self.command(&format!("export {name}="));
            line.map(|line| {
                line.rsplit_once('=')
                    .map_or("", |(_, value)| value)
                    .to_owned()
            })
        };
        let output = Command::new(exe())
            .args(&words[1..])
            .env("UNDERSTUDY_SERVER", value("UNDERSTUDY_SERVER")?)
            .env("UNDERSTUDY_TOKEN", value("UNDERSTUDY_TOKEN")?)
            .output()?;
        if !output.status.success() {
            bail!("{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// SIGINT: everything ends soon, in order, and no process and no folder is left.
    fn interrupt(&mut self) -> Result<()> {
        process::signal(self.child.id(), Signal::INT)?;
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if began.elapsed() > PATIENCE {
                bail!("it still runs {PATIENCE:?} after SIGINT");
            }
            std::thread::park_timeout(POLL);
        };
        let mut said = String::new();
        if let Some(mut err) = self.child.stderr.take() {
            err.read_to_string(&mut said)?;
        }
        assert_eq!(status.code(), Some(0), "{said}");
        // A warden ends a moment after its node.
        while began.elapsed() < PATIENCE && !process::marked(&self.mark).is_empty() {
            std::thread::park_timeout(POLL);
        }
        let left = process::marked(&self.mark);
        assert!(left.is_empty(), "{left:?}");
        let folders = std::fs::read_dir(self.temp.path())?.count();
        assert_eq!(folders, 0, "{} is not empty", self.temp.path().display());
        println!("understudy dev ended {:?} after SIGINT", began.elapsed());
        Ok(())
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for (pid, _) in process::marked(&self.mark) {
            let _ = process::signal(pid, Signal::KILL);
        }
    }
}

/// The words of a line as a shell sees them: quotes hold some together.
fn words(line: &str) -> Vec<&str> {
    let parts = line.split('\'').enumerate();
    let words = parts.flat_map(|(nth, part)| match nth % 2 {
        0 => part.split_whitespace().collect(),
        _ => vec![part],
    });
    words.collect()
}

/// How long nodes may take to start, or to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long after a kill calls are made.
const FAILOVER: Duration = Duration::from_secs(10);

/// Lines that wait to be read: a greeting has a dozen.
const LINES_MAX: usize = 1_000;

const POLL: Duration = Duration::from_millis(50);
