//! `[store]`: what a node does when its disk has lied.

use crate::read::{self, Section};

/// What a node does with its store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreConfig {
    /// `on_damage = "rebuild"` or `"refuse"`.
    pub on_damage: OnDamage,
}

/// What happens to a store that cannot be opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDamage {
    /// It is put aside, and a new one with a new id is filled by the peers. The default: with two
    /// copies nothing is lost, and nobody has to get up at night.
    #[default]
    Rebuild,
    /// The node does not start until somebody has looked.
    Refuse,
}

pub(crate) fn read(mut section: Section<'_>) -> Option<StoreConfig> {
    let on_damage = section.get("on_damage", |entry| entry.word(&ON_DAMAGE));
    let on_damage = on_damage.unwrap_or_default();
    section.finish(Some(StoreConfig { on_damage }))
}

impl StoreConfig {
    pub(crate) fn write(&self) -> toml::Table {
        let mut keys = toml::Table::new();
        let on_damage = read::spelled(&self.on_damage, &ON_DAMAGE);
        keys.insert("on_damage".into(), on_damage.into());
        keys
    }
}

const ON_DAMAGE: [(&str, OnDamage); 2] =
    [("rebuild", OnDamage::Rebuild), ("refuse", OnDamage::Refuse)];
