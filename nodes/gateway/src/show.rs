//! What a node knows, in the words of the API.
//!
//! Owns: the translation from a [`View`] to [`crate::api`]. Never asks anything and never waits: what
//! it shows is one moment, as one node knew it.

use std::collections::{BTreeMap, BTreeSet};

use understudy_control::handle::View;
use understudy_control::listing::{Children, Listed};
use understudy_protocol::cluster::controller::translate;
use understudy_protocol::cluster::directory::{
    Directory, Member, NodeEntry, ROOT, Run, SupervisorEntry, UnitEntry,
};
use understudy_protocol::cluster::placement::{self, Verdict};
use understudy_protocol::id::{NodeId, StoreId, SupervisorId, UnitId};
use understudy_protocol::supervision::strikes::STRIKES_MAX;
use understudy_protocol::supervision::{ChildState, RestartType, Strategy};
use understudy_protocol::time::Time;
use understudy_protocol::wire::replica::Scope;

use crate::api;
use crate::params::span_text;

/// The cluster.
pub fn cluster(view: &View) -> api::Cluster {
    let directory = &view.directory;
    let applied = directory.applied();
    let serving = |unit: &&UnitEntry| unit.owner.is_some_and(|owner| owner.serving);
    api::Cluster {
        formed: directory.is_formed(),
        node: node_name(directory, view.node),
        incarnation: view.incarnation.to_string(),
        store: view.store.to_string(),
        leader: view.leader.map(|leader| node_name(directory, leader)),
        ttl: span_text(directory.ttl().duration()),
        replicas: directory.replicas(),
        min_copies: directory.min_copies(),
        voters: directory
            .voters()
            .iter()
            .map(|store| replica(directory, store))
            .collect(),
        voters_changing: directory.voters().outgoing.is_some(),
        nodes_live: directory
            .nodes()
            .values()
            .filter(|node| is_live(node))
            .count(),
        nodes: directory.nodes().len(),
        units_serving: directory.units().values().filter(serving).count(),
        units: directory.units().len(),
        applied: api::Applied {
            term: applied.term.0,
            index: applied.index.0,
        },
        peers: view
            .peers
            .iter()
            .map(|peer| api::Peer {
                id: peer.node.to_string(),
                name: peer.name.clone(),
                address: peer.address.clone(),
                votes: peer.votes,
            })
            .collect(),
        missing_seeds: view.missing_seeds.clone(),
    }
}

/// A page of children.
pub fn children(view: &View, children: &Children) -> api::Listing<api::ListedChild> {
    let item = |listed: &Listed| api::ListedChild {
        id: listed.child.to_string(),
        node: node_name(&view.directory, listed.node),
        record: listed.seq.0,
    };
    listing(view, children, children.items.iter().map(item).collect())
}

/// A page of children, shown as something else.
pub fn listing<T>(view: &View, children: &Children, items: Vec<T>) -> api::Listing<T> {
    let last = children.items.last().filter(|_| children.more);
    let silent = children.silent.iter();
    api::Listing {
        items,
        next: last.map(|listed| listed.child.to_string()),
        silent: silent
            .map(|node| node_name(&view.directory, *node))
            .collect(),
    }
}

/// Every node of the directory, by name.
pub fn nodes(view: &View) -> Vec<api::Node> {
    let mut owned: BTreeMap<NodeId, (usize, usize)> = BTreeMap::new();
    for owner in view
        .directory
        .units()
        .values()
        .filter_map(|unit| unit.owner)
    {
        let (units, serving) = owned.entry(owner.node).or_default();
        *units += 1;
        *serving += usize::from(owner.serving);
    }
    let ids = view.directory.nodes().iter();
    let mut nodes: Vec<api::Node> = ids
        .map(|(id, entry)| node_of(view, *id, entry, owned.get(id).copied().unwrap_or_default()))
        .collect();
    nodes.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    nodes
}

/// One node.
pub fn node(view: &View, id: NodeId) -> Option<api::Node> {
    let entry = view.directory.nodes().get(&id)?;
    let owners = view.directory.units().values();
    let owners = owners.filter_map(|unit| unit.owner.filter(|owner| owner.node == id));
    let (units, serving) = owners.fold((0, 0), |(units, serving), owner| {
        (units + 1, serving + usize::from(owner.serving))
    });
    Some(node_of(view, id, entry, (units, serving)))
}

/// One unit.
pub fn unit(view: &View, id: UnitId) -> Option<api::Unit> {
    let directory = &view.directory;
    let entry = directory.unit(id)?;
    let supervised = supervised(directory, id, entry);
    let unavailable = view.unavailable.contains(&id);
    let replicas: Vec<api::Replica> = entry
        .set
        .iter()
        .map(|store| replica(directory, *store))
        .collect();
    let (child, slots) = match &entry.scope {
        Scope::Child(child) => (Some(child.to_string()), None),
        Scope::Slots { range, .. } => {
            let (start, end) = (range.start(), range.end());
            (None, Some(api::Slots { start, end }))
        }
    };
    Some(api::Unit {
        id: id.to_string(),
        scope: scope_text(&entry.scope),
        child,
        slots,
        state: state_of(entry, supervised.as_ref(), unavailable).to_owned(),
        owner: entry.owner.map(|owner| node_name(directory, owner.node)),
        serving: entry.owner.is_some_and(|owner| owner.serving),
        epoch: entry.epoch.0,
        config_version: entry.config.0,
        replicas_live: replicas.iter().filter(|replica| replica.live).count(),
        replicas,
        run: run_text(entry.run).to_owned(),
        quarantined: directory.is_quarantined(id),
        unavailable,
        move_to: entry.move_to.map(|to| node_name(directory, to)),
        supervisor: entry.supervisor.to_string(),
        restart: supervised
            .as_ref()
            .map(|child| restart_text(child.restart).to_owned()),
        strikes: supervised.as_ref().map_or(0, |child| child.strikes),
    })
}

/// The supervisors' tree; none before there is a cluster.
pub fn tree(view: &View) -> Option<api::Supervisor> {
    supervisor(view, ROOT)
}

/// Why a unit is where it is: the very plan that the leader makes, without what gossip tells it.
pub fn explain(view: &View, id: UnitId) -> Option<api::Explained> {
    let directory = &view.directory;
    let entry = directory.unit(id)?;
    let unit = unit(view, id)?;
    let (desired, observed) = translate(directory, &BTreeSet::new(), directory.clock());
    let explanation = placement::explain(&desired, &observed, id);
    let place = named(directory, &explanation.place.to_string());
    let nodes: Vec<api::Verdict> = explanation
        .nodes
        .iter()
        .map(|(node, verdict)| api::Verdict {
            node: node_name(directory, *node),
            chosen: matches!(verdict, Verdict::Chosen(_)),
            why: named(directory, &verdict.to_string()),
        })
        .collect();
    let restarts = restarts(directory, id, entry);
    let copies = api::Copies {
        wanted: directory.wanted_replicas(),
        min_copies: directory.min_copies(),
        now: unit.replicas.len(),
        live: unit.replicas_live,
    };
    let mut sentences = vec![format!("{} ({}) {place}.", unit.id, unit.scope)];
    sentences.extend(owner_sentence(&unit));
    sentences.extend(copies_sentence(&unit, &copies));
    sentences.extend(restart_sentences(&unit, &restarts));
    sentences.extend(
        nodes
            .iter()
            .map(|verdict| format!("{} {}.", verdict.node, verdict.why)),
    );
    Some(api::Explained {
        unit,
        sentences,
        place,
        nodes,
        restarts,
        copies,
    })
}

/// A node's name, or its id when it has none.
pub fn node_name(directory: &Directory, id: NodeId) -> String {
    directory
        .nodes()
        .get(&id)
        .map(|node| node.name.clone())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| id.to_string())
}

/// `slots 0..64`, or the child.
pub fn scope_text(scope: &Scope) -> String {
    match scope {
        Scope::Slots { range, except } if except.is_empty() => format!("slots {range:?}"),
        Scope::Slots { range, except } => format!("slots {range:?} but {}", except.len()),
        Scope::Child(child) => child.to_string(),
    }
}

/// Reads what [`restart_text`] writes.
pub fn restart_of(text: &str) -> Option<RestartType> {
    RESTARTS
        .into_iter()
        .find(|restart| restart_text(*restart) == text)
}

/// When a unit is restarted.
pub const fn restart_text(restart: RestartType) -> &'static str {
    match restart {
        RestartType::Permanent => "permanent",
        RestartType::Transient => "transient",
        RestartType::Temporary => "temporary",
    }
}

/// What the supervisor of a unit knows of it.
pub(crate) struct Supervised {
    pub(crate) restart: RestartType,
    state: ChildState,
    strikes: u8,
}

/// What the supervisor of a unit knows of it.
pub(crate) fn supervised(
    directory: &Directory,
    id: UnitId,
    entry: &UnitEntry,
) -> Option<Supervised> {
    let supervisor = &directory.supervisors().get(&entry.supervisor)?.supervisor;
    let member = Member::Unit(id);
    let strikes = supervisor.strikes(clock(directory), &member)?.count();
    Some(Supervised {
        restart: supervisor.restart_type(&member)?,
        state: supervisor.state(&member)?,
        strikes,
    })
}

fn node_of(
    view: &View,
    id: NodeId,
    entry: &NodeEntry,
    (units, units_serving): (usize, usize),
) -> api::Node {
    let directory = &view.directory;
    let mut starts = directory.incarnations().values();
    let state = if is_live(entry) {
        "live"
    } else if starts.any(|start| start.node == id && start.expelled.is_some()) {
        "expelled"
    } else {
        "down"
    };
    api::Node {
        id: id.to_string(),
        name: node_name(directory, id),
        address: entry.address.clone(),
        live: is_live(entry),
        state: state.to_owned(),
        incarnation: entry.incarnation.map(|start| start.to_string()),
        draining: entry.draining,
        works: entry.works,
        voter: directory.voters().contains(entry.store),
        leader: view.leader == Some(id),
        this: view.node == id,
        connected: view.node == id || view.peers.iter().any(|peer| peer.node == id),
        store: entry.store.to_string(),
        units,
        units_serving,
        labels: entry.labels.clone(),
        capacity: entry.capacity.clone(),
    }
}

fn supervisor(view: &View, id: SupervisorId) -> Option<api::Supervisor> {
    let SupervisorEntry { supervisor: of, .. } = view.directory.supervisors().get(&id)?;
    let mut children = Vec::new();
    for (member, _, _) in of.children().take(CHILDREN_SHOWN_MAX) {
        children.extend(match member {
            Member::Unit(id) => unit(view, *id).map(api::Child::Unit),
            Member::Supervisor(id) => supervisor(view, *id).map(api::Child::Supervisor),
        });
    }
    let policy = of.policy();
    Some(api::Supervisor {
        id: id.to_string(),
        strategy: strategy_text(policy.strategy).to_owned(),
        restarts: of.restarts_in_window(clock(&view.directory)),
        restarts_max: policy.intensity.restarts,
        window: span_text(policy.intensity.window),
        down: of.is_down(),
        more: of.len() - children.len().min(of.len()),
        children,
    })
}

fn restarts(directory: &Directory, id: UnitId, entry: &UnitEntry) -> api::Restarts {
    let supervised = supervised(directory, id, entry);
    let of = directory.supervisors().get(&entry.supervisor);
    let policy = of.map(|of| of.supervisor.policy());
    api::Restarts {
        supervisor: entry.supervisor.to_string(),
        strategy: policy.map(|policy| strategy_text(policy.strategy).to_owned()),
        state: supervised
            .as_ref()
            .map(|child| child_text(child.state).to_owned()),
        strikes: supervised.as_ref().map_or(0, |child| child.strikes),
        strikes_max: STRIKES_MAX,
        recent: of.map_or(0, |of| of.supervisor.restarts_in_window(clock(directory))),
        recent_max: policy.map_or(0, |policy| policy.intensity.restarts),
        window: policy.map_or_else(String::new, |policy| span_text(policy.intensity.window)),
    }
}

fn owner_sentence(unit: &api::Unit) -> Option<String> {
    let owner = unit.owner.as_ref()?;
    Some(match &*unit.state {
        "unavailable" => format!(
            "{owner} owns it, at epoch {}, and serves nothing of it: no complete copy of its records answers.",
            unit.epoch
        ),
        _ if unit.serving => format!("{owner} serves it, at epoch {}.", unit.epoch),
        _ => format!("{owner} takes it over, at epoch {}.", unit.epoch),
    })
}

fn copies_sentence(unit: &api::Unit, copies: &api::Copies) -> Vec<String> {
    let on: Vec<&str> = unit
        .replicas
        .iter()
        .map(|replica| {
            let node = replica.node.as_deref();
            node.unwrap_or(&replica.store)
        })
        .collect();
    let mut sentences = vec![format!(
        "Its records are on {}: {} of {} copies, {} of them on live nodes.",
        on.join(", "),
        copies.now,
        copies.wanted,
        copies.live
    )];
    if copies.live < copies.min_copies {
        sentences.push(format!(
            "That is fewer than the {} that every write must reach, so nothing is acknowledged.",
            copies.min_copies
        ));
    }
    sentences
}

fn restart_sentences(unit: &api::Unit, restarts: &api::Restarts) -> Vec<String> {
    let mut sentences = Vec::new();
    let supervisor = &restarts.supervisor;
    if unit.quarantined {
        sentences.push(format!(
            "It is in quarantine after {} strikes: it was starting or at work each time its node died.",
            restarts.strikes_max
        ));
    } else if restarts.strikes > 0 {
        sentences.push(format!(
            "{} of {} strikes stand against it: so often it was starting or at work when its node died.",
            restarts.strikes, restarts.strikes_max
        ));
    }
    if restarts.recent > 0 && restarts.recent_max < u16::MAX {
        sentences.push(format!(
            "{supervisor} has restarted children {} times of {} within {}; one more than that and it gives up.",
            restarts.recent, restarts.recent_max, restarts.window
        ));
    }
    match restarts.state.as_deref() {
        Some("waiting") => sentences.push(format!("{supervisor} waits before it starts it again.")),
        Some("held") => sentences.push(format!(
            "{supervisor} starts it with its group, which waits for another child."
        )),
        Some("stopped") => sentences.push(format!("{supervisor} has stopped it.")),
        _ => {}
    }
    sentences
}

fn replica(directory: &Directory, store: StoreId) -> api::Replica {
    let node = directory.node_of(store);
    let live = |node: NodeId| directory.nodes().get(&node).is_some_and(is_live);
    api::Replica {
        store: store.to_string(),
        node: node.map(|node| node_name(directory, node)),
        live: node.is_some_and(live),
    }
}

/// The text with each node's name for its id.
fn named(directory: &Directory, text: &str) -> String {
    let mut named = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(NODE) {
        let (before, from) = rest.split_at(at);
        let digits = &from[NODE.len()..];
        let end = digits
            .find(|c: char| !c.is_ascii_hexdigit())
            .unwrap_or(digits.len());
        named.push_str(before);
        match u64::from_str_radix(&digits[..end], 16) {
            Ok(id) => named.push_str(&node_name(directory, NodeId(id))),
            Err(_) => named.push_str(&from[..NODE.len() + end]),
        }
        rest = &digits[end..];
    }
    named.push_str(rest);
    named
}

fn state_of(entry: &UnitEntry, supervised: Option<&Supervised>, unavailable: bool) -> &'static str {
    let state = supervised.map(|child| child.state);
    match (entry.run, entry.owner) {
        _ if state == Some(ChildState::Quarantined) => "quarantined",
        (Run::Stopping, _) => "stopping",
        (_, Some(_)) if unavailable => "unavailable",
        (_, Some(_)) if entry.move_to.is_some() => "moving",
        (_, Some(owner)) if owner.serving => "serving",
        (_, Some(_)) => "starting",
        (Run::Wanted, None) => "unowned",
        (Run::Down, None) => match state {
            Some(ChildState::Waiting { .. } | ChildState::Held) => "waiting",
            _ => "down",
        },
    }
}

fn is_live(node: &NodeEntry) -> bool {
    node.incarnation.is_some()
}

/// The directory's clock, as supervisors are asked with it.
fn clock(directory: &Directory) -> Time {
    Time::from_millis(directory.clock().as_millis())
}

const fn run_text(run: Run) -> &'static str {
    match run {
        Run::Wanted => "wanted",
        Run::Stopping => "stopping",
        Run::Down => "down",
    }
}

const fn strategy_text(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::OneForOne => "one_for_one",
        Strategy::OneForAll => "one_for_all",
        Strategy::RestForOne => "rest_for_one",
    }
}

const fn child_text(state: ChildState) -> &'static str {
    match state {
        ChildState::Starting => "starting",
        ChildState::Running { .. } => "running",
        ChildState::Stopping => "stopping",
        ChildState::Waiting { .. } => "waiting",
        ChildState::Held => "held",
        ChildState::Stopped => "stopped",
        ChildState::Quarantined => "quarantined",
    }
}

/// Children of one supervisor in a tree: as many as a person may page through.
pub const CHILDREN_SHOWN_MAX: usize = 1_000;

/// Begins a node's id in a text.
const NODE: &str = "node-";

const RESTARTS: [RestartType; 3] = [
    RestartType::Permanent,
    RestartType::Transient,
    RestartType::Temporary,
];

#[cfg(test)]
mod tests;
