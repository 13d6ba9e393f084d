//! `[lease]`: how long a lease lasts from one renewal (rule L3).

use std::time::Duration;

use understudy_protocol::wire::heart::Ttl;

use crate::read::{self, Section};
use crate::units;

/// How long a lease lasts. It counts when the cluster is formed; later the TTL is directory data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseConfig {
    /// `preset = "default"` (3 s), `"lan"` (500 ms) or `"wan"` (5 s); or `ttl`, from [`TTL_MIN`] to
    /// [`TTL_MAX`].
    pub ttl: Ttl,
}

impl Default for LeaseConfig {
    fn default() -> LeaseConfig {
        LeaseConfig { ttl: Ttl::DEFAULT }
    }
}

pub(crate) fn read(mut section: Section<'_>) -> Option<LeaseConfig> {
    let ttl_at = section.place("ttl");
    let has_both = section.has("preset") && section.has("ttl");
    let preset = section.get("preset", |entry| entry.word(&PRESETS));
    let ttl = section.get("ttl", |entry| ttl(units::duration(entry.text()?)?));
    if has_both {
        let what = "contradicts `preset`: give one of the two".to_owned();
        section.fail(ttl_at, "ttl", what);
    }
    let ttl = preset.or(ttl).unwrap_or(Ttl::DEFAULT);
    section.finish(Some(LeaseConfig { ttl }))
}

fn ttl(span: Duration) -> Result<Ttl, String> {
    let millis = u32::try_from(span.as_millis()).map(Ttl::from_millis).ok();
    millis
        .filter(|_| (TTL_MIN..=TTL_MAX).contains(&span))
        .ok_or_else(|| {
            let (least, most) = (units::written(TTL_MIN), units::written(TTL_MAX));
            format!("{} is not from {least} to {most}", units::written(span))
        })
}

impl LeaseConfig {
    pub(crate) fn write(&self) -> toml::Table {
        let mut keys = toml::Table::new();
        match PRESETS.iter().any(|(_, ttl)| *ttl == self.ttl) {
            true => keys.insert("preset".into(), read::spelled(&self.ttl, &PRESETS).into()),
            false => keys.insert("ttl".into(), units::written(self.ttl.duration()).into()),
        };
        keys
    }
}

const PRESETS: [(&str, Ttl); 3] = [
    ("default", Ttl::DEFAULT),
    ("lan", Ttl::LAN),
    ("wan", Ttl::WAN),
];

/// The shortest TTL: a fifth of it is still ten times the jitter of a scheduler with work to do, and
/// the time to kill helpers is taken off it.
pub const TTL_MIN: Duration = Duration::from_millis(250);

/// The longest TTL: for so long nobody takes over from a node that vanished with its warden.
pub const TTL_MAX: Duration = Duration::from_secs(60);
