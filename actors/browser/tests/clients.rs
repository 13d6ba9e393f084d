//! Playwright and Puppeteer, unmodified, against a session behind a WebSocket: the scripts of
//! `tests/clients`. Where there is no Node, or its packages cannot be had, they are left out, aloud.

#![allow(clippy::unwrap_used)]

mod common;
mod jailed;
#[path = "../../../tests/clients/node.rs"]
mod node;
#[path = "jailed/bridge.rs"]
mod the_bridge;

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::time::timeout;
use understudy_browser::{Browser, Ended};

use common::Place;
use node::{SCRIPT_LIMIT, Scripts};
use the_bridge::Bridge;

#[tokio::test]
async fn playwright_works_leaves_and_finds_its_page_again() {
    let Some(scripts) = scripts().await else {
        return;
    };
    let world = World::new().await;
    let at = world.bridge.http.clone();
    world.script(&scripts, "playwright.cjs", "work", &at).await;
    world
        .script(&scripts, "playwright.cjs", "rejoin", &at)
        .await;
    let ws = world.bridge.ws.clone();
    world
        .script(&scripts, "playwright.cjs", "rejoin", &ws)
        .await;
    world.check_ended(&[Ended::Left; 4]).await;
    world.script(&scripts, "playwright.cjs", "close", &at).await;
    assert_eq!(
        world.bridge.ended.lock().unwrap().pop(),
        Some(Ended::Released)
    );
    assert!(!world.browser.cdp().is_closed());
}

#[tokio::test]
async fn puppeteer_works_leaves_and_finds_its_page_again() {
    let Some(scripts) = scripts().await else {
        return;
    };
    let world = World::new().await;
    let at = world.bridge.ws.clone();
    world.script(&scripts, "puppeteer.cjs", "work", &at).await;
    let http = world.bridge.http.clone();
    world
        .script(&scripts, "puppeteer.cjs", "rejoin", &http)
        .await;
    world.check_ended(&[Ended::Left; 3]).await;
    world.script(&scripts, "puppeteer.cjs", "close", &at).await;
    assert_eq!(
        world.bridge.ended.lock().unwrap().pop(),
        Some(Ended::Released)
    );
    assert!(!world.browser.cdp().is_closed());
}

#[tokio::test]
async fn both_at_once_see_the_browser_killed() {
    let Some(scripts) = scripts().await else {
        return;
    };
    let world = World::new().await;
    let mut running = Vec::new();
    for script in ["playwright.cjs", "puppeteer.cjs"] {
        let mut child = scripts.command(script, "killed", &world.bridge.ws, &world.pages);
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
        running.push((script, child, lines));
    }
    common::kill(world.browser.pid());
    for (script, mut child, mut lines) in running {
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

    async fn script(&self, scripts: &Scripts, script: &str, phase: &str, at: &str) {
        let said = scripts.run(script, phase, at, &self.pages).await.unwrap();
        print!("{script} {phase}:\n{said}");
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

async fn scripts() -> Option<Scripts> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/clients");
    match Scripts::install(&folder).await {
        Ok(scripts) => Some(scripts),
        Err(why) => {
            println!("SKIPPED: the clients cannot be installed by npm: {why}");
            eprintln!("SKIPPED: the clients cannot be installed by npm: {why}");
            None
        }
    }
}
