//! A place for real browsers to run in.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // each test file uses its own part

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use understudy_browser::process::Direct;
use understudy_browser::{Browser, BrowserSetup, Heard, Root};

/// A folder for profiles, gone with the test.
pub struct Place {
    dir: tempfile::TempDir,
    programs: tempfile::TempDir,
    user: Option<(u32, u32)>,
}

impl Place {
    pub fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        // Chromium's sandbox refuses root; `nobody` is on every machine.
        let user = rustix::process::geteuid()
            .is_root()
            .then_some((65534, 65534));
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let programs = tempfile::tempdir().unwrap();
        std::fs::set_permissions(programs.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Place {
            dir,
            programs,
            user,
        }
    }

    /// A program of the test's own, outside of the profiles.
    pub fn program(&self, name: &str, text: &str) -> std::path::PathBuf {
        let program = self.programs.path().join(name);
        std::fs::write(&program, text).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        program
    }

    pub fn setup(&self) -> BrowserSetup {
        BrowserSetup {
            binary: None,
            profiles: self.dir.path().to_owned(),
            user: self.user,
            sandbox: true,
        }
    }

    pub async fn browser(&self) -> Browser {
        Browser::start(&Direct, &self.setup()).await.unwrap()
    }

    /// How many profiles there are.
    pub fn profiles(&self) -> usize {
        std::fs::read_dir(self.dir.path()).unwrap().count()
    }
}

/// Process ids of everything that was started with a profile of this place.
pub fn processes_of(place: &Place) -> Vec<u32> {
    let dir = place.dir.path().to_str().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(dir)
        })
        .collect()
}

pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// A page with a root of its own.
pub struct Page {
    root: Root,
    session: String,
}

impl Page {
    pub fn session(&self) -> &str {
        &self.session
    }

    pub async fn next(&mut self) -> Option<Heard> {
        self.root.next().await
    }
}

pub async fn page(browser: &Browser, url: &str) -> Page {
    let cdp = browser.cdp();
    let root = cdp.root().await.unwrap();
    let session = root.session().clone();
    let created: Value = cdp
        .call(&session, "Target.createTarget", json!({ "url": url }))
        .await
        .unwrap();
    let attach = json!({ "targetId": created["targetId"], "flatten": true });
    let attached: Value = cdp
        .call(&session, "Target.attachToTarget", attach)
        .await
        .unwrap();
    let session = attached["sessionId"].as_str().unwrap().to_owned();
    Page { root, session }
}

pub async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < until, "{what}: not within 10 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
