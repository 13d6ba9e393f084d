//! `[checkpoint]`: how many copies a record has (rules R2 and R4).

use crate::read::{Entry, Section};

/// How many copies a record has. It counts when the cluster is formed; later these are directory
/// data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointConfig {
    /// `replicas`: how many a set should have; 3 by default, from 1 to [`REPLICAS_MAX`].
    pub replicas: u8,
    /// `min_copies`: how many an acknowledged record has at least, once every set has them; by
    /// default 2, or 1 where `replicas` is 1.
    pub min_copies: u8,
}

impl Default for CheckpointConfig {
    /// Any one node may be lost, disk and all, and another may be away meanwhile.
    fn default() -> CheckpointConfig {
        CheckpointConfig {
            replicas: 3,
            min_copies: 2,
        }
    }
}

pub(crate) fn read(mut section: Section<'_>) -> Option<CheckpointConfig> {
    let CheckpointConfig {
        replicas,
        min_copies,
    } = CheckpointConfig::default();
    let min_copies_at = section.place("min_copies");
    let replicas = section.get_or("replicas", replicas, copies);
    let fewest = min_copies.min(replicas.unwrap_or(min_copies));
    let min_copies = section.get_or("min_copies", fewest, copies);
    let checkpoint = replicas.zip(min_copies).map(|(replicas, min_copies)| {
        if min_copies > replicas {
            let what = format!("{min_copies} is more than `replicas`, which is {replicas}");
            section.fail(min_copies_at, "min_copies", what);
        }
        CheckpointConfig {
            replicas,
            min_copies,
        }
    });
    section.finish(checkpoint)
}

fn copies(entry: &Entry) -> Result<u8, String> {
    let number = entry.integer()?;
    u8::try_from(number)
        .ok()
        .filter(|number| (1..=REPLICAS_MAX).contains(number))
        .ok_or_else(|| format!("{number} is not from 1 to {REPLICAS_MAX}"))
}

impl CheckpointConfig {
    pub(crate) fn write(&self) -> toml::Table {
        let mut keys = toml::Table::new();
        keys.insert("replicas".into(), i64::from(self.replicas).into());
        keys.insert("min_copies".into(), i64::from(self.min_copies).into());
        keys
    }
}

/// Replicas of a set: every acknowledgement waits for all of them, and three lose nothing but to two
/// losses at once.
pub const REPLICAS_MAX: u8 = 7;
