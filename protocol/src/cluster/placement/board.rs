//! The board: nodes, units and what is reserved where, laid out so that a choice is cheap.
//!
//! Owns: the running sums, and the judgement of one node for one unit. Never chooses between nodes
//! and never decides which unit is to be placed or moved. Everything is an index into a vector here,
//! because a plan of 100,000 units has no time to look names up.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::score::{
    NODE_MATE_MILLI, REPLICA_MILLI, Score, TOGETHER_MILLI, WhyNot, ZONE_MATE_MILLI,
};
use super::view::{
    Apart, Domain, GroupId, Needs, NodeView, ResourceName, Role, UnitView, UnitWanted,
};
use crate::id::{NodeId, StoreId, UnitId};

pub(super) struct Board<'a> {
    /// In the order of their ids.
    pub(super) nodes: Vec<Node<'a>>,
    /// In the order of their ids.
    pub(super) items: Vec<Item<'a>>,
    pub(super) classes: Vec<Class<'a>>,
    pub(super) kinds: Vec<Kind>,
    pub(super) resources: Vec<&'a ResourceName>,
    pub(super) stores: BTreeMap<StoreId, usize>,
    pub(super) on_node: BTreeMap<(GroupId, usize), Mates>,
    pub(super) in_zone: BTreeMap<(GroupId, usize), Mates>,
    pub(super) companions: BTreeMap<(GroupId, usize), u32>,
}

pub(super) struct Node<'a> {
    pub(super) id: NodeId,
    pub(super) view: &'a NodeView,
    /// `None` when it takes no units.
    pub(super) kind: Option<usize>,
    pub(super) zone: usize,
    pub(super) capacity: Vec<u64>,
    /// Reserved by units that are here to stay, or on their way here.
    pub(super) staying: Vec<u64>,
    /// Reserved by units on their way elsewhere.
    pub(super) leaving: Vec<u64>,
    pub(super) live_milli: i64,
    pub(super) units: u32,
}

pub(super) struct Item<'a> {
    pub(super) id: UnitId,
    pub(super) wanted: &'a UnitWanted,
    pub(super) seen: Option<&'a UnitView>,
    pub(super) class: usize,
    /// Who runs it, if that node is seen.
    pub(super) owner: Option<usize>,
    /// Where it counts: its owner, or where it is going.
    pub(super) at: Option<usize>,
    pub(super) is_moving: bool,
}

/// Who of a group is in a domain.
#[derive(Clone, Copy, Default)]
pub(super) struct Mates {
    /// Here to stay, or on their way here.
    staying: u32,
    staying_strict: u32,
    /// On their way elsewhere.
    leaving: u32,
    leaving_strict: u32,
}

/// Units with the same needs.
pub(super) struct Class<'a> {
    pub(super) needs: &'a Needs,
    pub(super) amounts: Vec<u64>,
    pub(super) by_kind: Vec<Fit>,
    /// How many nodes its labels allow.
    pub(super) choices: usize,
    /// The largest share of a node that it takes anywhere.
    pub(super) size_milli: i64,
}

/// What a class finds in a kind.
#[derive(Clone, Default)]
pub(super) struct Fit {
    pub(super) is_allowed: bool,
    pub(super) preferred_milli: i64,
    /// The least that a unit of the class adds to the fill of a node of the kind.
    pub(super) adds_milli: i64,
    /// All nodes of the kind were full when the kind had been relieved so many times.
    pub(super) was_full_at: Option<u32>,
}

/// Nodes that differ in load alone, as far as any unit here can tell.
pub(super) struct Kind {
    pub(super) is_suspected: bool,
    pub(super) zone: usize,
    /// Pressure, units and node, emptiest first.
    pub(super) order: BTreeSet<(i64, u32, usize)>,
    /// How often a unit was lifted off one of its nodes.
    pub(super) relieved: u32,
}

impl<'a> Board<'a> {
    pub(super) fn node_index(&self, id: NodeId) -> Option<usize> {
        self.nodes.binary_search_by_key(&id, |node| node.id).ok()
    }

    pub(super) fn item_index(&self, id: UnitId) -> Option<usize> {
        self.items.binary_search_by_key(&id, |item| item.id).ok()
    }

    /// Whether any node takes units at all.
    pub(super) fn takes_units(&self) -> bool {
        !self.kinds.is_empty()
    }

    /// How many nodes the unit's labels allow, and how large a share of one it takes.
    pub(super) fn choices_and_size(&self, item: usize) -> (usize, i64) {
        let class = &self.classes[self.items[item].class];
        (class.choices, class.size_milli)
    }

    /// How full and busy a node is.
    pub(super) fn pressure_milli(&self, node: usize) -> i64 {
        let node = &self.nodes[node];
        node.fill_milli(&[]) + node.live_milli.max(0)
    }

    /// The pressure of the emptiest node that a unit could move to.
    pub(super) fn least_pressure_milli(&self) -> Option<i64> {
        let trusted = self.kinds.iter().filter(|kind| !kind.is_suspected);
        trusted
            .filter_map(|kind| kind.order.first())
            .map(|key| key.0)
            .min()
    }

    /// Whether a rule that must hold is broken where the unit is. Cheap, and may cry wolf: `judge`
    /// has the last word.
    pub(super) fn may_be_broken(&self, item: usize) -> bool {
        let unit = &self.items[item];
        let Some(at) = unit.at else { return false };
        let node = &self.nodes[at];
        let Some(kind) = node.kind else { return true };
        let class = &self.classes[unit.class];
        if !class.by_kind[kind].is_allowed || unit.wanted.pin.is_some_and(|pin| pin != node.id) {
            return true;
        }
        let is_crowded = |apart: &Apart| {
            let mates = self.mates(apart, at);
            mates.staying > 1 && mates.staying_strict > 0
        };
        if unit.wanted.apart.iter().any(is_crowded) {
            return true;
        }
        let mut amounts = class
            .amounts
            .iter()
            .zip(node.staying.iter().zip(&node.capacity));
        amounts.any(|(needed, (staying, capacity))| *needed > 0 && staying > capacity)
    }

    /// How good `node` is for a unit that is not on the board, or why it will not do.
    pub(super) fn judge(&self, item: usize, at: usize) -> Result<Score, WhyNot> {
        let (unit, node) = (&self.items[item], &self.nodes[at]);
        let class = &self.classes[unit.class];
        if node.view.role == Role::Witness {
            return Err(WhyNot::Witness);
        }
        if node.view.draining {
            return Err(WhyNot::Draining);
        }
        if let Some(to) = unit.wanted.pin
            && to != node.id
        {
            return Err(WhyNot::PinnedElsewhere { to });
        }
        let fit = &class.by_kind[node.kind.expect("a worker that is not draining has a kind")];
        if !fit.is_allowed {
            let lacking = class
                .needs
                .required
                .iter()
                .find(|label| !label.takes(node.view));
            let label = lacking.expect("a kind is allowed when every required label is there");
            return Err(WhyNot::LacksLabel {
                label: label.clone(),
            });
        }
        // What runs here already has its place, though others may still be on their way out.
        let runs_here = unit.owner == Some(at);
        let mut mates_milli = 0;
        for apart in &unit.wanted.apart {
            let mates = self.mates(apart, at);
            if mates.forbid(apart.strict, runs_here) {
                return Err(WhyNot::Crowded {
                    group: apart.group,
                    by: apart.by,
                });
            }
            mates_milli += i64::from(mates.staying) * mate_milli(apart.by);
        }
        for (nth, needed) in class
            .amounts
            .iter()
            .enumerate()
            .filter(|(_, needed)| **needed > 0)
        {
            let leaving = if runs_here { 0 } else { node.leaving[nth] };
            let used = node.staying[nth].saturating_add(leaving);
            let free = node.capacity[nth].saturating_sub(used);
            if *needed > free {
                let resource = self.resources[nth].clone();
                return Err(WhyNot::Full {
                    resource,
                    needed: *needed,
                    free,
                });
            }
        }
        let together = unit.wanted.together;
        let holds_replica = node
            .view
            .store
            .is_some_and(|store| unit.seen.is_some_and(|seen| seen.complete.contains(&store)));
        Ok(Score {
            suspected: node.view.suspected,
            fill_milli: node.fill_milli(&class.amounts),
            live_milli: node.live_milli.max(0),
            mates_milli,
            preferred_milli: fit.preferred_milli,
            replica_milli: if holds_replica { REPLICA_MILLI } else { 0 },
            together_milli: match together {
                Some(group) if self.companions.contains_key(&(group, at)) => TOGETHER_MILLI,
                _ => 0,
            },
        })
    }

    /// Puts a unit that is not on the board onto `at`.
    pub(super) fn seat(&mut self, item: usize, at: usize) {
        self.take_from_order(at);
        self.count(item, at);
        self.put_in_order(at);
    }

    /// Takes a unit off the board, and says where it was.
    pub(super) fn lift(&mut self, item: usize) -> Option<usize> {
        let at = self.items[item].at.take()?;
        self.take_from_order(at);
        let (unit, node) = (&self.items[item], &mut self.nodes[at]);
        for (staying, amount) in node
            .staying
            .iter_mut()
            .zip(&self.classes[unit.class].amounts)
        {
            *staying = staying.saturating_sub(*amount);
        }
        node.live_milli -= live_milli(unit);
        node.units -= 1;
        if let Some(group) = unit.wanted.together {
            let here = self.companions.get_mut(&(group, at));
            let here = here.expect("a seated unit is counted among its companions");
            *here -= 1;
            if *here == 0 {
                self.companions.remove(&(group, at));
            }
        }
        self.count_mate(item, at, |mates, strict| {
            mates.staying -= 1;
            mates.staying_strict -= strict;
        });
        if let Some(kind) = self.nodes[at].kind {
            self.kinds[kind].relieved += 1;
        }
        self.put_in_order(at);
        Some(at)
    }

    /// Reserves what a unit that will leave `at` holds there until it has left.
    pub(super) fn send_off(&mut self, item: usize, at: usize) {
        self.items[item].is_moving = true;
        let amounts = &self.classes[self.items[item].class].amounts;
        for (leaving, amount) in self.nodes[at].leaving.iter_mut().zip(amounts) {
            *leaving = leaving.saturating_add(*amount);
        }
        self.count_mate(item, at, |mates, strict| {
            mates.leaving += 1;
            mates.leaving_strict += strict;
        });
    }

    pub(super) fn count(&mut self, item: usize, at: usize) {
        let (unit, node) = (&mut self.items[item], &mut self.nodes[at]);
        unit.at = Some(at);
        for (staying, amount) in node
            .staying
            .iter_mut()
            .zip(&self.classes[unit.class].amounts)
        {
            *staying = staying.saturating_add(*amount);
        }
        node.live_milli += live_milli(unit);
        node.units += 1;
        if let Some(group) = unit.wanted.together {
            *self.companions.entry((group, at)).or_default() += 1;
        }
        self.count_mate(item, at, |mates, strict| {
            mates.staying += 1;
            mates.staying_strict += strict;
        });
    }

    fn take_from_order(&mut self, at: usize) {
        if let Some(kind) = self.nodes[at].kind {
            let key = (self.pressure_milli(at), self.nodes[at].units, at);
            self.kinds[kind].order.remove(&key);
        }
    }

    pub(super) fn put_in_order(&mut self, at: usize) {
        if let Some(kind) = self.nodes[at].kind {
            let key = (self.pressure_milli(at), self.nodes[at].units, at);
            self.kinds[kind].order.insert(key);
        }
    }

    fn mates(&self, apart: &Apart, at: usize) -> Mates {
        match apart.by {
            Domain::Node => self.on_node.get(&(apart.group, at)),
            Domain::Zone => self.in_zone.get(&(apart.group, self.nodes[at].zone)),
        }
        .copied()
        .unwrap_or_default()
    }

    /// Changes the counts of every group that the unit is to be apart from.
    fn count_mate(&mut self, item: usize, at: usize, change: fn(&mut Mates, u32)) {
        let zone = self.nodes[at].zone;
        for apart in &self.items[item].wanted.apart {
            let (counts, key) = match apart.by {
                Domain::Node => (&mut self.on_node, (apart.group, at)),
                Domain::Zone => (&mut self.in_zone, (apart.group, zone)),
            };
            change(counts.entry(key).or_default(), u32::from(apart.strict));
        }
    }

    pub(super) fn zone_milli(&self, unit: &Item<'_>, zone: usize) -> i64 {
        let by_zone = unit
            .wanted
            .apart
            .iter()
            .filter(|apart| apart.by == Domain::Zone);
        let staying = |apart: &Apart| {
            self.in_zone
                .get(&(apart.group, zone))
                .map_or(0, |mates| mates.staying)
        };
        by_zone
            .map(|apart| i64::from(staying(apart)) * ZONE_MATE_MILLI)
            .sum()
    }
}

impl Mates {
    /// Whether a unit may not come: it or one of them insists on being apart.
    fn forbid(self, is_strict: bool, runs_here: bool) -> bool {
        let (leaving, leaving_strict) = if runs_here {
            (0, 0)
        } else {
            (self.leaving, self.leaving_strict)
        };
        self.staying_strict + leaving_strict > 0 || is_strict && self.staying + leaving > 0
    }
}

impl Node<'_> {
    /// The mean share reserved of what it offers, with `more` on top.
    fn fill_milli(&self, more: &[u64]) -> i64 {
        let with = |(nth, staying): (usize, &u64)| {
            staying.saturating_add(more.get(nth).copied().unwrap_or(0))
        };
        mean_share(self.staying.iter().enumerate().map(with), &self.capacity)
    }
}

pub(super) fn live_milli(unit: &Item<'_>) -> i64 {
    unit.seen.map_or(0, |seen| i64::from(seen.live_milli))
}

fn mate_milli(by: Domain) -> i64 {
    match by {
        Domain::Node => NODE_MATE_MILLI,
        Domain::Zone => ZONE_MATE_MILLI,
    }
}

/// The mean, in milli-units, of each amount's share of what there is; what there is none of does
/// not count. Rounded down at each step, so that it never falls when an amount grows.
pub(super) fn mean_share(amounts: impl Iterator<Item = u64>, capacity: &[u64]) -> i64 {
    let (mut sum, mut count) = (0_u64, 0);
    for (amount, &capacity) in amounts.zip(capacity).filter(|(_, capacity)| **capacity > 0) {
        let milli = match amount.checked_mul(1000) {
            Some(amount) => amount / capacity,
            None => amount / (capacity / 1000).max(1),
        };
        sum = sum.saturating_add(milli.min(MILLI_CEILING));
        count += 1;
    }
    sum.checked_div(count).unwrap_or(0) as i64
}

/// Keeps a sum of shares from overflowing however little a node offers: a billion nodes' worth.
const MILLI_CEILING: u64 = 1_000_000_000_000;
