//! The JSON of the API, for who writes it and who reads it.
//!
//! Owns: the shapes. Never fills one: `show` does. Spans are written as `"3s"`, times as RFC 3339,
//! sizes in bytes; a node is called by its name,
//! or by its id while it has none; an id is written as everywhere else (`unit-1f`), so that it can be searched for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct List<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// Where the next page begins (`?after=`); none on the last.
    pub next: Option<String>,
}

/// A child that has records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedChild {
    /// `tenant/kind/key`, with a leading `@` if it has a unit of its own.
    pub id: String,
    /// Who owns it.
    pub node: String,
    /// The number of its last record.
    pub record: u64,
}

/// The cluster, as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the fields are named for what they hold
pub struct Cluster {
    /// Whether it has been formed.
    pub formed: bool,
    /// Who answers.
    pub node: String,
    /// This start of it.
    pub incarnation: String,
    /// Its store.
    pub store: String,
    /// Who leads the directory, as far as the node knows.
    pub leader: Option<String>,
    /// How long its lease lasted from the moment it was last renewed.
    pub ttl: String,
    pub replicas: u8,
    pub min_copies: usize,
    /// The stores that grant leases.
    pub voters: Vec<Replica>,
    /// Whether the list of voters is about to change.
    pub voters_changing: bool,
    pub nodes_live: usize,
    pub nodes: usize,
    pub units_serving: usize,
    pub units: usize,
    /// The last entry applied.
    pub applied: Applied,
    /// Nodes that the one that answers is connected to.
    pub peers: Vec<Peer>,
    /// Seeds that it cannot reach.
    pub missing_seeds: Vec<String>,
}

/// A place in the directory's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Applied {
    pub term: u64,
    pub index: u64,
}

/// A connected node, also before there is a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Peer {
    pub id: String,
    pub name: String,
    pub address: String,
    pub votes: bool,
}

/// A node of the directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Node {
    pub id: String,
    pub name: String,
    /// Where its peers reach it.
    pub address: String,
    /// Whether its newest start is a member.
    pub live: bool,
    /// The same in a word: `live`; `expelled`, while its promises may not be over; or `down`.
    pub state: String,
    /// Its newest start, while that is live.
    pub incarnation: Option<String>,
    pub draining: bool,
    /// Whether it runs units; a witness does not.
    pub works: bool,
    /// Whether its store grants leases.
    pub voter: bool,
    /// Whether it leads the directory.
    pub leader: bool,
    /// Whether the node that answers is it.
    pub this: bool,
    /// Whether the node that answers has a connection to it.
    pub connected: bool,
    pub store: String,
    /// Units that it owns.
    pub units: usize,
    /// Those of them that serve.
    pub units_serving: usize,
    pub labels: BTreeMap<String, String>,
    pub capacity: BTreeMap<String, u64>,
}

/// A unit: a dedicated child, or a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Unit {
    pub id: String,
    /// `slots 0..64`, or the child.
    pub scope: String,
    /// The child of a dedicated unit.
    pub child: Option<String>,
    /// The slots of a shard.
    pub slots: Option<Slots>,
    /// One word for what it does: `serving`, `starting`, `moving`, `stopping`, `unowned`, `waiting`,
    /// `down`, `quarantined` or `unavailable`.
    pub state: String,
    /// Who holds its last grant.
    pub owner: Option<String>,
    /// The takeover is complete.
    pub serving: bool,
    pub epoch: u64,
    pub config_version: u64,
    /// The stores that hold every record of it.
    pub replicas: Vec<Replica>,
    /// Those of them whose nodes are live.
    pub replicas_live: usize,
    /// What its supervisor wants: `wanted`, `stopping` or `down`.
    pub run: String,
    pub quarantined: bool,
    /// No complete replica answers its owner; known on its owner alone.
    pub unavailable: bool,
    /// Where it is to move.
    pub move_to: Option<String>,
    pub supervisor: String,
    /// When it is restarted: `permanent`, `transient` or `temporary`.
    pub restart: Option<String>,
    /// Strikes that stand against it; three quarantine it.
    pub strikes: u8,
}

/// A run of slots, from `start` up to and not including `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Slots {
    pub start: u16,
    pub end: u16,
}

/// A store with a part in something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Replica {
    pub store: String,
    /// None when the store is not in use any more.
    pub node: Option<String>,
    /// Whether its node is live.
    pub live: bool,
}

/// A supervisor with what it supervises.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Supervisor {
    pub id: String,
    /// `one_for_one`, `one_for_all` or `rest_for_one`.
    pub strategy: String,
    /// Restarts that count now.
    pub restarts: usize,
    /// How many are in order.
    pub restarts_max: u16,
    /// Within how long.
    pub window: String,
    /// It has given up, or was stopped.
    pub down: bool,
    /// In start order; at most [`crate::show::CHILDREN_SHOWN_MAX`].
    pub children: Vec<Child>,
    /// How many more there are.
    pub more: usize,
}

/// What a supervisor supervises.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // each variant is what it carries
pub enum Child {
    Unit(Unit),
    Supervisor(Supervisor),
}

/// Why a unit is where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// The unit.
    pub unit: Unit,
    /// All of it in sentences, the most important first.
    pub sentences: Vec<String>,
    /// What the plan says of it.
    pub place: String,
    /// What each node is to it.
    pub nodes: Vec<Verdict>,
    /// Its supervisor's view.
    pub restarts: Restarts,
    /// Its records.
    pub copies: Copies,
}

/// What one node is to a unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The node.
    pub node: String,
    /// Whether the unit is or goes there.
    pub chosen: bool,
    /// Why, or why not.
    pub why: String,
}

/// A unit's restarts, as its supervisor counts them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Restarts {
    pub supervisor: String,
    pub strategy: Option<String>,
    /// What the supervisor thinks that the unit does: `starting`, `running`, `stopping`, `waiting`,
    /// `held`, `stopped` or `quarantined`.
    pub state: Option<String>,
    pub strikes: u8,
    pub strikes_max: u8,
    /// Restarts of all the supervisor's children that count now.
    pub recent: usize,
    pub recent_max: u16,
    pub window: String,
}

/// A unit's replica set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Copies {
    pub wanted: usize,
    pub min_copies: usize,
    pub now: usize,
    pub live: usize,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Event {
    /// An opaque cursor.
    pub id: String,
    pub time: String,
    pub node: Option<String>,
    pub unit: Option<String>,
    pub epoch: Option<u64>,
    #[serde(rename = "type")]
    pub kind: String,
    pub text: String,
}

/// What `POST /v1/units` takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewUnit {
    /// The child, with its leading `@`.
    pub child: String,
    /// `permanent` unless said otherwise.
    #[serde(default)]
    pub restart: Option<String>,
    /// Labels that its node must have; null takes any value.
    #[serde(default)]
    pub labels: BTreeMap<String, Option<String>>,
    /// The only node that it may run on, by name or id. It waits for that node when it is down.
    #[serde(default)]
    pub node: Option<String>,
}

/// What `POST /v1/units/{unit}/move` takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveTo {
    /// The node's name or id.
    pub to: String,
}

/// What `POST /v1/cluster/init` takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Init {
    /// A cluster of this node alone.
    #[serde(default)]
    pub single: bool,
}

/// A page of a list that every node has a part of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// Where the next page begins (`?after=`); none on the last.
    pub next: Option<String>,
    /// Nodes that did not answer in time: what they own is not on this page.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub silent: Vec<String>,
}

/// A WebAssembly module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Module {
    /// `name@version`.
    pub id: String,
    pub tenant: String,
    pub name: String,
    pub version: String,
    /// `sealed`, and it can be used and never changes; `uploading`; `empty`, when a push was refused; or
    /// `unknown`, when it could not be asked.
    pub state: String,
    /// Who owns it, where that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// In hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Its length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How much of it is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<u64>,
    /// What it imports, exports and needs; of one module, not in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<understudy_sandbox::validate::About>,
}

/// What `POST /v1/sandboxes` takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewSandbox {
    /// What it is to be called, within its tenant.
    pub name: String,
    /// `name@version`; a bare name is its highest version.
    pub module: String,
    /// What the module's SHA-256 must be, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// What it may reach: nothing unless said.
    #[serde(default)]
    pub policy: understudy_sandbox::Policy,
    /// When what its calls change is recorded: `"every-call"`, or `{"interval_ms": 500}`.
    #[serde(default)]
    pub durability: understudy_sandbox::sandbox::Durability,
    /// What it may use, if less than its node allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<understudy_sandbox::Limits>,
}

/// A sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Sandbox {
    /// Its name.
    pub id: String,
    pub tenant: String,
    /// Who owns it.
    pub node: String,
    /// The number of its last record.
    pub record: u64,
    /// What it was created as.
    #[serde(flatten)]
    pub about: understudy_sandbox::sandbox::About,
    /// How large its memory is now.
    pub memory_bytes: u64,
}

/// A sandbox in a list: none is woken up to be listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ListedSandbox {
    /// Its name.
    pub id: String,
    pub tenant: String,
    /// Who owns it.
    pub node: String,
    /// The number of its last record.
    pub record: u64,
}

/// What `POST /v1/sessions` takes: nothing is needed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewSession {
    /// What it is to be called, within its tenant; drawn at random unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What its first page opens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Labels that its node must have; null takes any value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Option<String>>,
    /// The only node that it may run on, by name or id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// A browser's session.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Session {
    pub id: String,
    pub tenant: String,
    pub unit: String,
    /// Who runs it.
    pub node: String,
    /// The number of its last record.
    pub record: u64,
    /// Where clients of the browser's protocol connect to; the same wherever it runs. Whoever cannot send
    /// the token as a header adds `&token=…`.
    pub cdp: String,
    /// What it says of itself.
    #[serde(flatten)]
    pub about: understudy_browser::session::About,
}

/// A session in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ListedSession {
    pub id: String,
    pub tenant: String,
    pub unit: String,
    /// Who owns it, if anybody does now.
    pub node: Option<String>,
    pub epoch: u64,
    /// Whether it is there for its clients.
    pub serving: bool,
    pub cdp: String,
}
