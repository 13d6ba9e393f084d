//! `[browser]`: the browsers of a node, and where their pages may connect to.

use std::path::PathBuf;

use understudy_protocol::workload::egress::{ALLOW_MAX, Allow};

use crate::read::{self, Entry, Section, spelled};

/// What a node's browsers are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrowserConfig {
    /// `binary`: the Chromium to start, an absolute path; `None`, which is `"auto"`, takes the first
    /// that is found. A node on which none is found runs no sessions.
    pub binary: Option<PathBuf>,
    /// `isolation`: what sessions of one tenant share; `"context"` by default.
    pub isolation: Isolation,
    /// `user`: the user that Chromium runs as where the node is root; `None`, which is `"auto"`, takes
    /// an unprivileged one. A node that is not root starts it as itself.
    pub user: Option<String>,
    /// `sandbox`: whether Chromium's own sandbox is on. True by default; without it a page that
    /// breaks out of its renderer is that user on this machine.
    pub sandbox: bool,
    /// `sessions`: sessions at once, 64 by default, up to [`SESSIONS_MAX`]. One more does not start here.
    pub sessions: u32,
    /// `egress_allow`: what pages may reach beside the public network, at most [`ALLOW_MAX`] entries:
    /// `"host"`, `"*.example.net"`, `"10.1.2.3"`, each with or without `":port"`, or `"10.0.0.0/8"`.
    /// Empty by default.
    pub egress_allow: Vec<Allow>,
}

/// What two sessions of one tenant share. Those of two tenants share no process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// A browser process; each has a browser context of its own.
    Context,
    /// Nothing: each has a browser of its own.
    Process,
}

impl Default for BrowserConfig {
    /// What a machine with other work too can carry: 64 sessions are about 1.5 GiB.
    fn default() -> BrowserConfig {
        BrowserConfig {
            binary: None,
            isolation: Isolation::Context,
            user: None,
            sandbox: true,
            sessions: 64,
            egress_allow: Vec::new(),
        }
    }
}

pub(crate) fn read(mut section: Section<'_>) -> Option<BrowserConfig> {
    let usual = BrowserConfig::default();
    let binary = section.get_or("binary", None, |entry| match entry.text()? {
        AUTO => Ok(None),
        _ => read::path(entry).map(Some),
    });
    let isolation = section.get_or("isolation", usual.isolation, |entry| entry.word(ISOLATION));
    let user = section.get_or("user", None, user);
    let sandbox = section.get_or("sandbox", usual.sandbox, Entry::flag);
    let sessions = section.get_or("sessions", usual.sessions, sessions_of);
    let egress_allow = section.get_or("egress_allow", Vec::new(), |entry| allow(&entry.list()?));
    let browser = (|| {
        Some(BrowserConfig {
            binary: binary?,
            isolation: isolation?,
            user: user?,
            sandbox: sandbox?,
            sessions: sessions?,
            egress_allow: egress_allow?,
        })
    })();
    section.finish(browser)
}

fn user(entry: &Entry) -> Result<Option<String>, String> {
    let name = entry.text()?;
    let is_plain = |sign: char| sign.is_ascii_alphanumeric() || "-_.".contains(sign);
    match name {
        AUTO => Ok(None),
        "root" => Err("root is no unprivileged user".to_owned()),
        _ if (1..=USER_BYTES_MAX).contains(&name.len()) && name.chars().all(is_plain) => {
            Ok(Some(name.to_owned()))
        }
        _ => Err(format!("{name:?} should be a user's name, or \"auto\"")),
    }
}

fn sessions_of(entry: &Entry) -> Result<u32, String> {
    let number = entry.integer()?;
    u32::try_from(number)
        .ok()
        .filter(|number| (1..=SESSIONS_MAX).contains(number))
        .ok_or_else(|| format!("{number} is not from 1 to {SESSIONS_MAX}"))
}

fn allow(entries: &[String]) -> Result<Vec<Allow>, String> {
    if entries.len() > ALLOW_MAX {
        return Err(format!("there are more than {ALLOW_MAX} entries"));
    }
    entries.iter().map(|entry| Allow::parse(entry)).collect()
}

impl BrowserConfig {
    pub(crate) fn write(&self) -> toml::Table {
        let binary = self.binary.as_ref();
        let binary = binary.map_or(AUTO.to_owned(), |path| path.display().to_string());
        let allow: Vec<String> = self.egress_allow.iter().map(Allow::to_string).collect();
        let mut keys = toml::Table::new();
        let mut put = |key: &str, value: toml::Value| keys.insert(key.to_owned(), value);
        put("binary", binary.into());
        put("isolation", spelled(&self.isolation, ISOLATION).into());
        put("user", self.user.as_deref().unwrap_or(AUTO).into());
        put("sandbox", self.sandbox.into());
        put("sessions", i64::from(self.sessions).into());
        put("egress_allow", allow.into());
        keys
    }
}

const AUTO: &str = "auto";

const ISOLATION: &[(&str, Isolation)] = &[
    ("context", Isolation::Context),
    ("process", Isolation::Process),
];

/// With a page each, and nothing else on the machine, these take 24 GiB.
pub const SESSIONS_MAX: u32 = 1_000;

/// What Linux allows for a user's name.
const USER_BYTES_MAX: usize = 32;
