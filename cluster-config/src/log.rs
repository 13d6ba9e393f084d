//! `[log]`: how much a node says, and how; whether it records its decisions.

use crate::read::{self, Section};

/// What goes to standard error, and what is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogConfig {
    /// `level = "error"`, `"warn"`, `"info"` (the default), `"debug"` or `"trace"`.
    pub level: LogLevel,
    /// `format = "text"` (the default) or `"json"`.
    pub format: LogFormat,
    /// `events = "on"` or `"off"` (the default): whether what the node's machines are told goes to
    /// `events/` in its data folder, from where `understudy-sim --replay` can drive them again. The
    /// files hold what callers say.
    pub events: bool,
}

/// The least that is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// What somebody must look at.
    Error,
    /// What somebody may have to look at.
    Warn,
    /// What happened to the node.
    #[default]
    Info,
    /// Why it happened.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// As it is written, which is how log filters write it too.
    pub fn as_str(self) -> &'static str {
        read::spelled(&self, &LEVELS)
    }
}

/// How a line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

pub(crate) fn read(mut section: Section<'_>) -> Option<LogConfig> {
    let level = section.get("level", |entry| entry.word(&LEVELS));
    let format = section.get("format", |entry| entry.word(&FORMATS));
    let events = section.get("events", |entry| entry.word(&EVENTS));
    let (level, format) = (level.unwrap_or_default(), format.unwrap_or_default());
    let events = events.unwrap_or_default();
    section.finish(Some(LogConfig {
        level,
        format,
        events,
    }))
}

impl LogConfig {
    pub(crate) fn write(&self) -> toml::Table {
        let mut keys = toml::Table::new();
        keys.insert("level".into(), self.level.as_str().into());
        keys.insert(
            "format".into(),
            read::spelled(&self.format, &FORMATS).into(),
        );
        let events = read::spelled(&self.events, &EVENTS);
        keys.insert("events".into(), events.into());
        keys
    }
}

const LEVELS: [(&str, LogLevel); 5] = [
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];

const FORMATS: [(&str, LogFormat); 2] = [("text", LogFormat::Text), ("json", LogFormat::Json)];

const EVENTS: [(&str, bool); 2] = [("off", false), ("on", true)];
