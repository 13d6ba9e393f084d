//! Lays the board out: numbers nodes, finds classes and kinds, seats what is owned.
//!
//! Owns: the board's beginning, one pass over everything. Never decides anything.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use super::board::{Board, Class, Fit, Item, Kind, Node, live_milli, mean_share};
use super::score::PREFERRED_MILLI;
use super::view::{
    Desired, LabelValue, Needs, NodeView, Observed, ResourceName, Role, Selector, ZONE_LABEL,
};
use crate::id::NodeId;

impl<'a> Board<'a> {
    pub(super) fn new(desired: &'a Desired, observed: &'a Observed) -> Board<'a> {
        let (items, needs) = classify(desired, observed);
        let mut resources: BTreeSet<&ResourceName> = BTreeSet::new();
        resources.extend(
            observed
                .nodes
                .values()
                .flat_map(|node| node.capacity.keys()),
        );
        resources.extend(needs.iter().flat_map(|needs| needs.resources.keys()));
        let resources: Vec<&ResourceName> = resources.into_iter().collect();

        let mut board = Board {
            nodes: lay_nodes(observed, &resources),
            items,
            classes: Vec::new(),
            kinds: Vec::new(),
            resources,
            stores: BTreeMap::new(),
            on_node: BTreeMap::new(),
            in_zone: BTreeMap::new(),
            companions: BTreeMap::new(),
        };
        for (at, node) in board.nodes.iter().enumerate() {
            board
                .stores
                .extend(node.view.store.map(|store| (store, at)));
        }
        board.sort_into_kinds(&needs);
        board.seat_owned();
        (0..board.nodes.len()).for_each(|at| board.put_in_order(at));
        board
    }

    fn sort_into_kinds(&mut self, needs: &[&'a Needs]) {
        let mut asked: BTreeSet<&Selector> = BTreeSet::new();
        asked.extend(
            needs
                .iter()
                .flat_map(|needs| needs.required.iter().chain(&needs.preferred)),
        );

        let mut kinds: BTreeMap<(bool, usize, Vec<bool>, Vec<u32>), usize> = BTreeMap::new();
        let mut members: Vec<Vec<usize>> = Vec::new();
        for (at, node) in self.nodes.iter_mut().enumerate() {
            if node.view.role == Role::Witness || node.view.draining {
                continue;
            }
            let labels = asked.iter().map(|label| label.takes(node.view)).collect();
            let sizes = node
                .capacity
                .iter()
                .map(|capacity| size_step(*capacity))
                .collect();
            let next = kinds.len();
            let kind = *kinds
                .entry((node.view.suspected, node.zone, labels, sizes))
                .or_insert(next);
            if kind == next {
                members.push(Vec::new());
                let (is_suspected, zone) = (node.view.suspected, node.zone);
                self.kinds.push(Kind {
                    is_suspected,
                    zone,
                    order: BTreeSet::new(),
                    relieved: 0,
                });
            }
            node.kind = Some(kind);
            members[kind].push(at);
        }
        for needs in needs {
            let of = |name: &ResourceName| needs.resources.get(name).copied().unwrap_or(0);
            let amounts: Vec<u64> = self.resources.iter().map(|name| of(name)).collect();
            let by_kind: Vec<Fit> = members
                .iter()
                .map(|members| self.fit(needs, &amounts, members))
                .collect();
            let allowed = || {
                by_kind
                    .iter()
                    .zip(&members)
                    .filter(|(fit, _)| fit.is_allowed)
            };
            let choices = allowed().map(|(_, members)| members.len()).sum();
            let size_milli = allowed().map(|(fit, _)| fit.adds_milli).max().unwrap_or(0);
            self.classes.push(Class {
                needs,
                amounts,
                by_kind,
                choices,
                size_milli,
            });
        }
    }

    fn fit(&self, needs: &Needs, amounts: &[u64], members: &[usize]) -> Fit {
        let sample = self.nodes[members[0]].view;
        let preferred = needs
            .preferred
            .iter()
            .filter(|label| label.takes(sample))
            .count();
        let adds = members.iter().map(|at| {
            let node = &self.nodes[*at];
            mean_share(amounts.iter().copied(), &node.capacity)
        });
        Fit {
            is_allowed: needs.required.iter().all(|label| label.takes(sample)),
            preferred_milli: preferred as i64 * PREFERRED_MILLI,
            adds_milli: adds.min().unwrap_or(0),
            was_full_at: None,
        }
    }

    fn seat_owned(&mut self) {
        for item in 0..self.items.len() {
            let unit = &mut self.items[item];
            let Some(seen) = unit.seen else { continue };
            let Some(owner_id) = seen.owner else { continue };
            let Ok(owner) = self.nodes.binary_search_by_key(&owner_id, |node| node.id) else {
                continue;
            };
            unit.owner = Some(owner);
            // What the unit adds is in its owner's live load already; it is counted where it will be.
            self.nodes[owner].live_milli -= live_milli(unit);
            let Some(to) = seen.moving_to.filter(|to| *to != owner_id) else {
                self.count(item, owner);
                continue;
            };
            unit.is_moving = true;
            match self.node_index(to) {
                Some(to) => {
                    self.send_off(item, owner);
                    self.count(item, to);
                }
                None => self.count(item, owner),
            }
        }
    }
}

/// Gives every unit its class, and every class its needs, in the order of the units.
fn classify<'a>(desired: &'a Desired, observed: &'a Observed) -> (Vec<Item<'a>>, Vec<&'a Needs>) {
    let mut needs: Vec<&'a Needs> = Vec::new();
    let mut by_value: BTreeMap<&'a Needs, usize> = BTreeMap::new();
    // Only a shortcut: the same `Arc` is the same class. Addresses decide nothing.
    let mut by_address: BTreeMap<usize, usize> = BTreeMap::new();
    let mut views = observed.units.iter().peekable();
    let mut items = Vec::with_capacity(desired.units.len());
    for (&id, wanted) in &desired.units {
        let class = *by_address
            .entry(Arc::as_ptr(&wanted.needs) as usize)
            .or_insert_with(|| {
                *by_value.entry(&wanted.needs).or_insert_with(|| {
                    needs.push(&wanted.needs);
                    needs.len() - 1
                })
            });
        while views.next_if(|(seen, _)| **seen < id).is_some() {}
        let seen = views
            .next_if(|(seen, _)| **seen == id)
            .map(|(_, view)| view);
        items.push(Item {
            id,
            wanted,
            seen,
            class,
            owner: None,
            at: None,
            is_moving: false,
        });
    }
    (items, needs)
}

fn lay_nodes<'a>(observed: &'a Observed, resources: &[&ResourceName]) -> Vec<Node<'a>> {
    let mut zones: BTreeMap<Option<&LabelValue>, usize> = BTreeMap::new();
    let lay = |(&id, view): (&NodeId, &'a NodeView)| {
        let next = zones.len();
        let capacity = |name: &&ResourceName| view.capacity.get(*name).copied().unwrap_or(0);
        Node {
            id,
            view,
            kind: None,
            zone: *zones.entry(view.labels.get(ZONE_LABEL)).or_insert(next),
            capacity: resources.iter().map(capacity).collect(),
            staying: vec![0; resources.len()],
            leaving: vec![0; resources.len()],
            live_milli: i64::from(view.live_milli),
            units: 0,
        }
    };
    observed.nodes.iter().map(lay).collect()
}

/// Four steps to each doubling: nodes of one step differ in size by a quarter at most.
fn size_step(capacity: u64) -> u32 {
    let Some(log) = capacity.checked_ilog2() else {
        return 0;
    };
    let quarter = if log >= 2 {
        (capacity >> (log - 2)) & 3
    } else {
        (capacity << (2 - log)) & 3
    };
    4 * log + quarter as u32 + 1
}
