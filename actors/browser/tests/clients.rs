//! Playwright and Puppeteer, unmodified, against a session behind a WebSocket: the scripts of
//! `tests/clients`. Where there is no Node, or its packages cannot be had, they are left out, aloud.

#![allow(clippy::unwrap_used)]

mod common;
mod jailed;
#[path = "jailed/bridge.rs"]
mod the_bridge;

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Command;
use tokio::time::timeout;
use understudy_browser::{Browser, Ended};

use common::Place;
use the_bridge::Bridge;

#[tokio::test]
async fn playwright_works_leaves_and_finds_its_page_again() {
    let Some(modules) = modules().await else {
        return;
    };
    let world = World::new().await;
    let at = world.bridge.http.clone();
    world.script(&modules, "playwright.cjs", "work", &at).await;
    world
        .script(&modules, "playwright.cjs", "rejoin", &at)
        .await;
    let ws = world.bridge.ws.clone();
    world
        .script(&modules, "playwright.cjs", "rejoin", &ws)
        .await;
    world.check_ended(&[Ended::Left; 4]).await;
    world.script(&modules, "playwright.cjs", "close", &at).await;
    assert_eq!(
        world.bridge.ended.lock().unwrap().pop(),
        Some(Ended::Released)
    );
    assert!(!world.browser.cdp().is_closed());
}

#[tokio::test]
async fn puppeteer_works_leaves_and_finds_its_page_again() {
    let Some(modules) = modules().await else {
        return;
    };
    let world = World::new().await;
    let at = world.bridge.ws.clone();
    world.script(&modules, "puppeteer.cjs", "work", &at).await;
    let http = world.bridge.http.clone();
    world
        .script(&modules, "puppeteer.cjs", "rejoin", &http)
        .await;
    world.check_ended(&[Ended::Left; 3]).await;
    world.script(&modules, "puppeteer.cjs", "close", &at).await;
    assert_eq!(
        world.bridge.ended.lock().unwrap().pop(),
        Some(Ended::Released)
    );
    assert!(!world.browser.cdp().is_closed());
}

#[tokio::test]
async fn both_at_once_see_the_browser_killed() {
    let Some(modules) = modules().await else {
        return;
    };
    let world = World::new().await;
    let mut scripts = Vec::new();
    for script in ["playwright.cjs", "puppeteer.cjs"] {
        let mut child = world.command(&modules, script, "killed", &world.bridge.ws);
        let mut child = child.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line == "ready" {
                    return;
                }
            }
            panic!("{script} ended before it was ready");
        };
        timeout(SCRIPT_LIMIT, ready).await.unwrap();
        scripts.push((script, child, lines));
    }
    common::kill(world.browser.pid());
    for (script, mut child, mut lines) in scripts {
        let rest = async {
            let mut last = String::new();
            while let Some(line) = lines.next_line().await.unwrap() {
                last = line;
            }
            let mut errors = String::new();
            let mut stderr = child.stderr.take().unwrap();
            stderr.read_to_string(&mut errors).await.unwrap();
            (last, errors)
        };
        let (last, errors) = timeout(SCRIPT_LIMIT, rest).await.unwrap();
        assert_eq!(last, "done", "{script}: {errors}");
    }
    world.check_ended(&[Ended::BrowserGone; 2]).await;
}

struct World {
    _place: Place,
    _folder: tempfile::TempDir,
    browser: Browser,
    bridge: Bridge,
    pages: String,
    _served: tokio::task::JoinSet<()>,
}

impl World {
    async fn new() -> World {
        let place = Place::new();
        let browser = place.browser().await;
        let folder = tempfile::tempdir().unwrap();
        let door = jailed::door(&browser).await;
        let jail = jailed::session_with_door(&browser, &door, folder.path()).await;
        let (pages, served) = jailed::pages().await;
        World {
            bridge: Bridge::new(browser.cdp(), &jail).await,
            _place: place,
            _folder: folder,
            browser,
            pages,
            _served: served,
        }
    }

    fn command(&self, modules: &Path, script: &str, phase: &str, at: &str) -> Command {
        let mut command = Command::new("node");
        command
            .arg(scripts().join(script))
            .args([phase, at, &self.pages])
            .env("NODE_PATH", modules)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn script(&self, modules: &Path, script: &str, phase: &str, at: &str) {
        let output = self.command(modules, script, phase, at).output();
        let output = timeout(SCRIPT_LIMIT, output).await.unwrap().unwrap();
        print!("{script} {phase}:\n{}", text(&output));
        assert!(output.status.success(), "{script} {phase}");
    }

    /// A line that its client has left ends a moment later.
    async fn check_ended(&self, expected: &[Ended]) {
        let is_so = || *self.bridge.ended.lock().unwrap() == expected;
        for _ in 0..200 {
            if is_so() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?} is not {expected:?}", self.bridge.ended);
    }
}

/// The clients' packages, installed below the build's folder once.
async fn modules() -> Option<PathBuf> {
    // The test's own program is below it: target/debug/deps/clients-...
    let program = std::env::current_exe().unwrap();
    let dir = program.ancestors().nth(3).unwrap().join("clients");
    std::fs::create_dir_all(&dir).unwrap();
    let lock = std::fs::File::create(dir.join(".lock")).unwrap();
    // Other tests, in processes of their own, want the same.
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock));
    let _lock = lock.await.unwrap().unwrap();
    let wanted = std::fs::read(scripts().join("package.json")).unwrap();
    let modules = dir.join("node_modules");
    let installed = dir.join("installed.json");
    if std::fs::read(&installed).is_ok_and(|there| there == wanted) {
        return Some(modules);
    }
    std::fs::write(dir.join("package.json"), &wanted).unwrap();
    let install = Command::new("npm")
        .args([
            "install",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--prefix",
        ])
        .arg(&dir)
        .kill_on_drop(true)
        .output();
    let why = match timeout(INSTALL_LIMIT, install).await {
        Ok(Ok(output)) if output.status.success() => {
            std::fs::write(installed, wanted).unwrap();
            return Some(modules);
        }
        Ok(Ok(output)) => text(&output),
        Ok(Err(error)) => error.to_string(),
        Err(late) => late.to_string(),
    };
    println!("SKIPPED: the clients cannot be installed by npm: {why}");
    eprintln!("SKIPPED: the clients cannot be installed by npm: {why}");
    None
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/clients")
}

/// A script's steps take some seconds, several times that beside a build.
const SCRIPT_LIMIT: Duration = Duration::from_secs(120);

const INSTALL_LIMIT: Duration = Duration::from_secs(180);
