//! The plan: which unit to decide on, in which order, and how many may move.
//!
//! Owns: the stages (grants, drains, broken rules, imbalance), their limits and reasons. Never judges
//! a node itself: the board does.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::fmt;
use core::time::Duration;

use super::board::Board;
use super::choice::Wish;
use super::score::{Score, WhyNot};
use super::view::{Desired, Observed};
use crate::id::{NodeId, UnitId};
use crate::rules::{Rule, keeps};
use crate::time::ClusterTime;

/// The most units on their way at once. Each copies its records and is out of reach for a moment:
/// 32 keep the bulk lanes busy, and leave a cluster of any size mostly where it is.
pub const MOVES_MAX: usize = 32;

/// How long a moved unit is left alone, whatever the reason to move it again but a drain: live load is
/// gossiped every few seconds and smoothed, so before this nobody knows what the move did.
pub const COOL_DOWN: Duration = Duration::from_secs(15);

/// How much better, in milli-units of a node, another node must be to move a unit that could stay.
/// Above what a preferred label or companions are worth, so that a move is for load.
pub const IMBALANCE_MILLI: i64 = 250;

/// What to do next. The same input gives the same plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Plan {
    /// Every ownerless unit that fits somewhere, by unit; to be one batched entry (rules L12, T3).
    pub grants: Vec<Grant>,
    /// Owned units to move, most urgent first.
    pub moves: Vec<Move>,
    /// Units with nowhere to go: ownerless ones, and owned ones that may not stay. `explain` has the
    /// verdict of each node.
    pub unplaced: BTreeMap<UnitId, WhyUnplaced>,
}

/// Gives an ownerless unit to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Grant {
    pub unit: UnitId,
    pub node: NodeId,
}

/// Moves a unit that runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Move {
    pub unit: UnitId,
    pub from: NodeId,
    pub to: NodeId,
    pub why: MoveReason,
}

/// Why a running unit is moved.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum MoveReason {
    /// Its node drains.
    Draining,
    /// It may not be where it is.
    Broken(WhyNot),
    /// The other node is better by more than [`IMBALANCE_MILLI`].
    Imbalance {
        /// By how much.
        gain_milli: i64,
    },
}

/// Why a unit has nowhere to go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WhyUnplaced {
    /// It must not be placed (rule V2).
    Quarantined,
    /// The node it is pinned to is not there.
    PinnedNodeGone(NodeId),
    /// The node it is pinned to will not do.
    PinnedNodeRefuses(NodeId, WhyNot),
    /// Every node is a witness or draining, or there is none.
    NoNodeTakesUnits,
    /// No node has the labels, the room and the distance from mates that it needs.
    NothingFits,
}

/// Where ownerless units go, and which owned ones move.
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    Planner::run(desired, observed, None).plan
}

/// One run of the stages.
pub(super) struct Planner<'a> {
    pub(super) board: Board<'a>,
    pub(super) plan: Plan,
    /// The judgement of every node on the watched unit, at the moment it was decided on.
    pub(super) judged: Option<Vec<Result<Score, WhyNot>>>,
    watched: Option<usize>,
    now: ClusterTime,
    pub(super) moves_left: usize,
}

impl<'a> Planner<'a> {
    pub(super) fn run(
        desired: &'a Desired,
        observed: &'a Observed,
        watched: Option<UnitId>,
    ) -> Planner<'a> {
        let board = Board::new(desired, observed);
        let on_their_way = board.items.iter().filter(|unit| unit.is_moving).count();
        let mut planner = Planner {
            watched: watched.and_then(|unit| board.item_index(unit)),
            board,
            plan: Plan::default(),
            judged: None,
            now: observed.now,
            moves_left: MOVES_MAX.saturating_sub(on_their_way),
        };
        planner.grant_ownerless();
        let at = planner.units_by_node();
        planner.move_from_draining(&at);
        planner.move_broken();
        planner.level(&at);
        planner.plan.grants.sort_unstable_by_key(|grant| grant.unit);
        planner
    }

    /// Whether the unit moved so lately that it is left alone; until when. A node that drains waits for
    /// no unit: its operator does, and no unit comes back to it.
    pub(super) fn cools_until(&self, item: usize) -> Option<ClusterTime> {
        let unit = &self.board.items[item];
        let until = unit.seen?.last_moved? + COOL_DOWN;
        let drains = unit
            .owner
            .is_some_and(|at| self.board.nodes[at].view.draining);
        (self.now < until && !drains).then_some(until)
    }

    pub(super) fn judge_all(&self, item: usize) -> Vec<Result<Score, WhyNot>> {
        (0..self.board.nodes.len())
            .map(|at| self.board.judge(item, at))
            .collect()
    }

    /// Those with the fewest choices first, so that the rest do not take their room.
    fn grant_ownerless(&mut self) {
        let mut ownerless = Vec::new();
        for (item, unit) in self.board.items.iter().enumerate() {
            // L7: a unit whose owner is not seen has an owner all the same.
            let is_owned = match unit.seen.and_then(|seen| seen.owner) {
                Some(_) => keeps(Rule::L7) || unit.at.is_some(),
                None => false,
            };
            if is_owned {
                continue;
            }
            // V2: nothing starts a quarantined unit.
            if keeps(Rule::V2) && unit.wanted.quarantined {
                self.plan.unplaced.insert(unit.id, WhyUnplaced::Quarantined);
                continue;
            }
            let (choices, size_milli) = self.board.choices_and_size(item);
            let is_strict = unit.wanted.apart.iter().any(|apart| apart.strict);
            let key = (
                unit.wanted.pin.is_none(),
                choices,
                !is_strict,
                Reverse(size_milli),
                item,
            );
            ownerless.push((key, item));
        }
        ownerless.sort_unstable();
        for (_, item) in ownerless {
            self.note(item);
            let unit = self.board.items[item].id;
            let best = self.board.choose(item, GRANT);
            match self.destination(item, best.as_ref()).or(best) {
                Some((at, _)) => {
                    self.board.seat(item, at);
                    self.plan.grants.push(Grant {
                        unit,
                        node: self.board.nodes[at].id,
                    });
                }
                None => self.leave_unplaced(item),
            }
        }
    }

    /// Where a unit is on its way to that its owner has released, if it may still be there: it was
    /// sent, by somebody or by a plan, and another node that looks as good is no reason to turn back.
    /// That it is suspected is one, unless the best node is suspected too.
    fn destination(&self, item: usize, best: Option<&(usize, Score)>) -> Option<(usize, Score)> {
        let to = self.board.items[item].seen?.moving_to?;
        let at = self.board.node_index(to)?;
        let score = self.board.judge(item, at).ok()?;
        let is_trusted = !score.suspected || best.is_none_or(|(_, best)| best.suspected);
        is_trusted.then_some((at, score))
    }

    fn move_from_draining(&mut self, by_node: &[Vec<usize>]) {
        for (at, items) in by_node.iter().enumerate() {
            if self.board.nodes[at].view.draining {
                items.iter().for_each(|item| self.consider(*item, false));
            }
        }
    }

    fn move_broken(&mut self) {
        for item in 0..self.board.items.len() {
            let unit = &self.board.items[item];
            let is_draining = unit.at.is_some_and(|at| self.board.nodes[at].view.draining);
            if unit.owner.is_some() && !is_draining && self.board.may_be_broken(item) {
                self.consider(item, false);
            }
        }
    }

    /// Relieves the fullest nodes while another is emptier by the threshold.
    fn level(&mut self, by_node: &[Vec<usize>]) {
        let Some(mut least) = self.board.least_pressure_milli() else {
            return;
        };
        let pressure = |at: &usize| self.board.pressure_milli(*at);
        let is_hot =
            |at: &usize| pressure(at) > least + IMBALANCE_MILLI && !by_node[*at].is_empty();
        let mut hot: Vec<usize> = (0..self.board.nodes.len()).filter(is_hot).collect();
        hot.sort_by_key(|at| Reverse(pressure(at)));
        for at in hot {
            let mut looks: BTreeMap<usize, usize> = BTreeMap::new();
            for &item in &by_node[at] {
                if self.moves_left == 0 || self.board.pressure_milli(at) <= least + IMBALANCE_MILLI
                {
                    break;
                }
                let looks = looks.entry(self.board.items[item].class).or_default();
                if *looks == LEVEL_LOOKS_MAX || !self.may_move(item) {
                    continue;
                }
                *looks += 1;
                self.consider(item, true);
                least = self.board.least_pressure_milli().unwrap_or(least);
            }
        }
    }

    /// Moves one owned unit if it must leave, or, where `for_load`, if it would be better elsewhere.
    fn consider(&mut self, item: usize, for_load: bool) {
        if self.moves_left == 0 || !self.may_move(item) {
            return;
        }
        let Some(from) = self.board.lift(item) else {
            return;
        };
        self.note(item);
        let here = self.board.judge(item, from);
        // A move never goes to a suspected node: the unit runs where it is.
        let there = match &here {
            Ok(_) if !for_load => None,
            Ok(stay) => self
                .better_by_load(item, stay)
                .filter(|(to, _)| *to != from),
            Err(_) => self.board.choose(item, MOVE).filter(|(to, _)| *to != from),
        };
        let why = match (here, &there) {
            (Err(WhyNot::Draining), Some(_)) => Some(MoveReason::Draining),
            (Err(why), Some(_)) => Some(MoveReason::Broken(why)),
            (Err(_), None) => {
                self.leave_unplaced(item);
                None
            }
            (Ok(stay), Some((_, go))) => {
                let gain_milli = stay.gain_milli(go);
                (gain_milli > IMBALANCE_MILLI).then_some(MoveReason::Imbalance { gain_milli })
            }
            (Ok(_), None) => None,
        };
        let (Some(why), Some((to, _))) = (why, there) else {
            self.board.seat(item, from);
            return;
        };
        self.board.seat(item, to);
        self.board.send_off(item, from);
        self.moves_left -= 1;
        let (from, to) = (self.board.nodes[from].id, self.board.nodes[to].id);
        self.plan.moves.push(Move {
            unit: self.board.items[item].id,
            from,
            to,
            why,
        });
    }

    /// A node that already has a copy, if it relieves enough; else any: a new node has no copies yet
    /// and is to be used all the same.
    fn better_by_load(&mut self, item: usize, stay: &Score) -> Option<(usize, Score)> {
        let with_copy = self.board.choose(item, MOVE);
        if with_copy.is_some_and(|(_, go)| stay.gain_milli(&go) > IMBALANCE_MILLI) {
            return with_copy;
        }
        self.board.choose(
            item,
            Wish {
                count_replica: false,
                ..MOVE
            },
        )
    }

    fn may_move(&self, item: usize) -> bool {
        let unit = &self.board.items[item];
        !unit.is_moving && !unit.wanted.quarantined && self.cools_until(item).is_none()
    }

    fn leave_unplaced(&mut self, item: usize) {
        let unit = &self.board.items[item];
        let why = match unit.wanted.pin {
            Some(pin) => match self
                .board
                .node_index(pin)
                .map(|at| self.board.judge(item, at))
            {
                None => WhyUnplaced::PinnedNodeGone(pin),
                Some(Err(why)) => WhyUnplaced::PinnedNodeRefuses(pin, why),
                // It would do, but is suspected, and the unit runs elsewhere.
                Some(Ok(score)) => WhyUnplaced::PinnedNodeRefuses(pin, WhyNot::Suspected { score }),
            },
            None if !self.board.takes_units() => WhyUnplaced::NoNodeTakesUnits,
            None => WhyUnplaced::NothingFits,
        };
        self.plan.unplaced.insert(unit.id, why);
    }

    fn note(&mut self, item: usize) {
        if self.watched == Some(item) {
            self.judged = Some(self.judge_all(item));
        }
    }

    /// The owned units of each node, by id.
    fn units_by_node(&self) -> Vec<Vec<usize>> {
        let mut by_node = vec![Vec::new(); self.board.nodes.len()];
        for (item, unit) in self.board.items.iter().enumerate() {
            if let (Some(owner), false) = (unit.owner, unit.is_moving) {
                by_node[owner].push(item);
            }
        }
        by_node
    }
}

impl fmt::Display for MoveReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MoveReason::Draining => f.write_str("its node is draining"),
            MoveReason::Broken(why) => write!(f, "its node {why}"),
            MoveReason::Imbalance { gain_milli } => {
                write!(
                    f,
                    "its node is worse by {gain_milli}, more than {IMBALANCE_MILLI}"
                )
            }
        }
    }
}

impl fmt::Display for WhyUnplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WhyUnplaced::Quarantined => f.write_str("it is quarantined"),
            WhyUnplaced::PinnedNodeGone(node) => {
                write!(f, "it is pinned to {node}, which is not there")
            }
            WhyUnplaced::PinnedNodeRefuses(node, why) => {
                write!(f, "it is pinned to {node}, which {why}")
            }
            WhyUnplaced::NoNodeTakesUnits => {
                f.write_str("every node is a witness or draining, or there is none")
            }
            WhyUnplaced::NothingFits => f.write_str("no node fits"),
        }
    }
}

const GRANT: Wish = Wish {
    or_suspected: true,
    count_replica: true,
};
const MOVE: Wish = Wish {
    or_suspected: false,
    count_replica: true,
};

/// How many units of one class are tried on one full node: like units mostly fare alike, and a node
/// may hold all 100,000.
const LEVEL_LOOKS_MAX: usize = 8;
