//! The directory in placement's words.
//!
//! Owns: the translation. Never decides.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;

use crate::cluster::directory::{Directory, Needs, NodeEntry, Run, UnitEntry};
use crate::cluster::placement::{
    self, Desired, NodeView, Observed, Role, Selector, UnitView, UnitWanted,
};
use crate::id::IncarnationId;
use crate::rules::{Rule, keeps};
use crate::time::ClusterTime;

/// What should run and what is there. `now` is the directory's time carried on: its clock stands still
/// while nothing is committed, and a unit would never cool down. A unit that is down is not wanted,
/// unless it is quarantined, which `explain` should say. Any node may ask, to explain what the leader
/// does.
pub fn translate(
    directory: &Directory,
    suspected: &BTreeSet<IncarnationId>,
    now: ClusterTime,
) -> (Desired, Observed) {
    let mut shared: BTreeMap<&Needs, Arc<placement::Needs>> = BTreeMap::new();
    let mut desired = Desired::default();
    let mut observed = Observed {
        now,
        ..Observed::default()
    };
    for (id, unit) in directory.units() {
        let quarantined = directory.is_quarantined(*id);
        if unit.run == Run::Down && !quarantined && unit.owner.is_none() {
            continue;
        }
        let needs = shared
            .entry(&unit.needs)
            .or_insert_with(|| Arc::new(needs(&unit.needs)));
        let wanted = UnitWanted {
            needs: needs.clone(),
            pin: unit.needs.pin,
            quarantined,
            ..UnitWanted::default()
        };
        desired.units.insert(*id, wanted);
        observed.units.insert(*id, unit_view(directory, unit));
    }
    // A node may have to hold them all, and one that holds all while others hold none is full.
    let places = u64::try_from(desired.units.len()).unwrap_or(u64::MAX);
    let places = places.max(PLACES_MIN);
    for (id, node) in directory.nodes() {
        if let Some(incarnation) = node.incarnation {
            let suspected = suspected.contains(&incarnation);
            observed
                .nodes
                .insert(*id, node_view(node, places, suspected));
        }
    }
    (desired, observed)
}

fn needs(needs: &Needs) -> placement::Needs {
    let required = needs.labels.iter().map(|(key, value)| Selector {
        key: key.as_str().into(),
        value: value.as_deref().map(Into::into),
    });
    let mut resources: BTreeMap<_, _> = needs
        .resources
        .iter()
        .map(|(name, amount)| (name.as_str().into(), *amount))
        .collect();
    // Every unit takes a place, so that units which name no resource spread too.
    resources.entry(PLACES.into()).or_insert(1);
    placement::Needs {
        required: required.collect(),
        preferred: BTreeSet::new(),
        resources,
    }
}

fn unit_view(directory: &Directory, unit: &UnitEntry) -> UnitView {
    let owner = unit.owner.filter(|owner| {
        // L7: an expelled owner is an owner until its promises are over.
        keeps(Rule::L7) || directory.is_live(owner.incarnation)
    });
    UnitView {
        owner: owner.map(|owner| owner.node),
        moving_to: unit.move_to,
        last_moved: unit.last_moved,
        live_milli: 0,
        complete: unit.set.iter().copied().collect(),
    }
}

fn node_view(node: &NodeEntry, places: u64, suspected: bool) -> NodeView {
    let labels = node
        .labels
        .iter()
        .map(|(key, value)| (key.as_str().into(), value.as_str().into()));
    let mut capacity: BTreeMap<_, _> = node
        .capacity
        .iter()
        .map(|(name, amount)| (name.as_str().into(), *amount))
        .collect();
    capacity.entry(PLACES.into()).or_insert(places);
    NodeView {
        role: if node.works {
            Role::Worker
        } else {
            Role::Witness
        },
        labels: labels.collect(),
        capacity,
        live_milli: 0,
        draining: node.draining,
        suspected,
        store: Some(node.store),
    }
}

/// The resource that every unit takes one of.
const PLACES: &str = "places";

/// Places of a node that does not say, at least: with fewer, a cluster of a handful of units would move
/// them about for the sake of one.
const PLACES_MIN: u64 = 16;
