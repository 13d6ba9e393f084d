//! `[node]`: who a node is, where its data lies, and what it takes part in.

use std::collections::BTreeMap;
use std::path::PathBuf;

use understudy_protocol::cluster::directory::{LABEL_BYTES_MAX, LABELS_MAX};

use crate::read::{self, Section};

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// `name`: what people call it, unique in the cluster: ASCII letters, digits, `-`, `_` and `.`, at
    /// most [`NAME_BYTES_MAX`] bytes. Needed.
    pub name: String,
    /// `data_dir`: an absolute path. Needed, because a default would put two nodes of one machine
    /// into one directory.
    pub data_dir: PathBuf,
    /// `labels`, such as `{ zone = "z1" }`; none by default.
    pub labels: BTreeMap<String, String>,
    /// `roles`
    pub roles: Roles,
}

/// What a node takes part in.
///
/// Written as `["voter", "worker"]` (the default), `["worker"]`, `["witness"]` (or `["voter"]`, which
/// says the same), or `["gateway"]` for a node that only answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    /// Its store votes, in Raft and on leases.
    pub votes: bool,
    /// It runs units.
    pub works: bool,
}

impl Default for Roles {
    /// Both: three equal nodes are the cluster that most people want.
    fn default() -> Roles {
        Roles {
            votes: true,
            works: true,
        }
    }
}

pub(crate) fn read(mut section: Section<'_>) -> Option<NodeConfig> {
    let name = section.need("name", |entry| name(entry.text()?));
    let data_dir = section.need("data_dir", read::path);
    let labels = section.get("labels", |entry| labels(entry.table()?));
    let roles = section.get("roles", |entry| roles(&entry.list()?));
    let node = (|| {
        Some(NodeConfig {
            name: name?,
            data_dir: data_dir?,
            labels: labels.unwrap_or_default(),
            roles: roles.unwrap_or_default(),
        })
    })();
    section.finish(node)
}

fn name(text: &str) -> Result<String, String> {
    let is_plain = |sign: char| sign.is_ascii_alphanumeric() || "-_.".contains(sign);
    let fits = (1..=NAME_BYTES_MAX).contains(&text.len()) && text.chars().all(is_plain);
    let right = "should be 1 to 63 of A-Z, a-z, 0-9, '-', '_' and '.'";
    fits.then(|| text.to_owned())
        .ok_or_else(|| format!("{text:?} {right}: it stands in addresses and in files' names"))
}

fn labels(pairs: Vec<(String, String)>) -> Result<BTreeMap<String, String>, String> {
    if pairs.len() > LABELS_MAX {
        return Err(format!("a node has at most {LABELS_MAX} labels"));
    }
    let fits = |text: &str| text.len() <= LABEL_BYTES_MAX;
    match pairs
        .iter()
        .find(|(name, value)| name.is_empty() || !fits(name) || !fits(value))
    {
        Some((name, _)) => Err(format!(
            "the name and the value of {name:?} should have 1 to {LABEL_BYTES_MAX} bytes each"
        )),
        None => Ok(pairs.into_iter().collect()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Voter,
    Worker,
    Witness,
    Gateway,
}

fn roles(words: &[String]) -> Result<Roles, String> {
    let roles: Vec<Role> = words
        .iter()
        .map(|text| read::word(text, &ROLES))
        .collect::<Result<_, _>>()?;
    let has = |role| roles.contains(&role);
    let (votes, works) = (has(Role::Voter) || has(Role::Witness), has(Role::Worker));
    if roles.is_empty() {
        return Err("a node without a role takes part in nothing".to_owned());
    }
    if has(Role::Witness) && (works || has(Role::Gateway)) {
        return Err("a witness votes and does nothing else".to_owned());
    }
    if has(Role::Gateway) && (votes || works) {
        return Err(
            "every node answers; \"gateway\" is for one that neither votes nor works".to_owned(),
        );
    }
    Ok(Roles { votes, works })
}

impl NodeConfig {
    pub(crate) fn write(&self) -> toml::Table {
        let roles = match (self.roles.votes, self.roles.works) {
            (true, true) => &["voter", "worker"][..],
            (true, false) => &["witness"],
            (false, true) => &["worker"],
            (false, false) => &["gateway"],
        };
        let labels = self.labels.iter();
        let labels: toml::Table = labels
            .map(|(name, value)| (name.clone(), value.clone().into()))
            .collect();
        let mut keys = toml::Table::new();
        keys.insert("name".into(), self.name.clone().into());
        let data_dir = self.data_dir.display().to_string();
        keys.insert("data_dir".into(), data_dir.into());
        keys.insert("roles".into(), roles.to_vec().into());
        keys.insert("labels".into(), labels.into());
        keys
    }
}

const ROLES: [(&str, Role); 4] = [
    ("voter", Role::Voter),
    ("worker", Role::Worker),
    ("witness", Role::Witness),
    ("gateway", Role::Gateway),
];

/// The longest name in bytes: it stands in routes and beside every event, and is as long as a DNS
/// label (RFC 1035).
pub const NAME_BYTES_MAX: usize = 63;
