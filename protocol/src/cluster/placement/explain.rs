//! Why a unit is where it is, and why not elsewhere.
//!
//! Owns: the explanation and its sentences. Never guesses: it runs the very plan and keeps the
//! board's judgement at the moment the unit was decided on.

use alloc::collections::BTreeMap;
use core::fmt;

use super::planner::{IMBALANCE_MILLI, MoveReason, Planner, WhyUnplaced};
use super::score::{Score, WhyNot};
use super::view::{Desired, Observed};
use crate::id::{NodeId, UnitId};
use crate::time::ClusterTime;

/// What the plan says about one unit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Explanation {
    /// The unit.
    pub unit: UnitId,
    /// Where it is or goes.
    pub place: Place,
    /// Each node's verdict, judged as if the unit were nowhere.
    pub nodes: BTreeMap<NodeId, Verdict>,
}

/// Where a unit is or goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the fields are what the sentences below name
pub enum Place {
    /// Nobody asked for it.
    NotWanted,
    /// It had no owner and gets one.
    Granted { node: NodeId },
    /// It stays with its owner.
    Stays { node: NodeId, why: Stay },
    /// It moves.
    Moves {
        from: NodeId,
        to: NodeId,
        why: MoveReason,
    },
    /// It has no owner and gets none.
    Unplaced { why: WhyUnplaced },
}

/// Why a unit stays.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Stay {
    /// It may stay, and its node is not so full that it should not.
    Settled,
    /// It is already on its way.
    OnItsWay { to: NodeId },
    /// Its owner is not among the nodes seen; ownership ends by release or expulsion alone.
    OwnerNotSeen,
    /// It moved a moment ago.
    CoolsDown { until: ClusterTime },
    /// It should leave, but enough others are on their way.
    Waits,
    /// It may not stay, and nothing else will do.
    NowhereToGo { why: WhyUnplaced },
    /// It is quarantined: its supervisor stops it, nobody moves it.
    Quarantined,
}

/// What one node is to one unit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The unit is here, or comes here.
    Chosen(Score),
    /// It does not come here; on its owner: it may not stay here.
    Not(WhyNot),
}

/// Why `unit` is where it is, and why not elsewhere. Costs as much as a plan.
pub fn explain(desired: &Desired, observed: &Observed, unit: UnitId) -> Explanation {
    let mut planner = Planner::run(desired, observed, Some(unit));
    let Some(item) = planner.board.item_index(unit) else {
        return Explanation {
            unit,
            place: Place::NotWanted,
            nodes: BTreeMap::new(),
        };
    };
    let judged = planner.judged.take().unwrap_or_else(|| {
        let at = planner.board.lift(item);
        let judged = planner.judge_all(item);
        at.into_iter().for_each(|at| planner.board.seat(item, at));
        judged
    });
    let place = place_of(&planner, item, &judged);
    let here = place.node().and_then(|node| planner.board.node_index(node));
    let chosen = here.and_then(|at| judged[at].as_ref().ok()).copied();
    let is_owned = matches!(place, Place::Stays { .. });
    let is_quarantined = planner.board.items[item].wanted.quarantined;
    let verdict = |(at, judged): (usize, Result<Score, WhyNot>)| match judged {
        Ok(score) if Some(at) == here => Verdict::Chosen(score),
        _ if is_quarantined => Verdict::Not(WhyNot::Quarantined),
        Ok(score) => Verdict::Not(compare(score, chosen, is_owned)),
        Err(why) => Verdict::Not(why),
    };
    let ids = planner.board.nodes.iter().map(|node| node.id);
    let nodes = ids
        .zip(judged.into_iter().enumerate().map(verdict))
        .collect();
    Explanation { unit, place, nodes }
}

impl Place {
    /// The node it is on or goes to.
    pub fn node(&self) -> Option<NodeId> {
        match self {
            Place::NotWanted | Place::Unplaced { .. } => None,
            Place::Stays {
                why: Stay::OnItsWay { to },
                ..
            } => Some(*to),
            Place::Granted { node } | Place::Stays { node, .. } => Some(*node),
            Place::Moves { to, .. } => Some(*to),
        }
    }
}

fn place_of(planner: &Planner<'_>, item: usize, judged: &[Result<Score, WhyNot>]) -> Place {
    let (plan, unit) = (&planner.plan, &planner.board.items[item]);
    if let Ok(at) = plan
        .grants
        .binary_search_by_key(&unit.id, |grant| grant.unit)
    {
        return Place::Granted {
            node: plan.grants[at].node,
        };
    }
    if let Some(found) = plan.moves.iter().find(|found| found.unit == unit.id) {
        return Place::Moves {
            from: found.from,
            to: found.to,
            why: found.why.clone(),
        };
    }
    let unplaced = plan.unplaced.get(&unit.id);
    let owner = unit.seen.and_then(|seen| seen.owner);
    let Some(node) = owner else {
        let why = unplaced
            .cloned()
            .expect("an ownerless unit is granted or unplaced");
        return Place::Unplaced { why };
    };
    Place::Stays {
        node,
        why: why_it_stays(planner, item, judged, unplaced),
    }
}

fn why_it_stays(
    planner: &Planner<'_>,
    item: usize,
    judged: &[Result<Score, WhyNot>],
    unplaced: Option<&WhyUnplaced>,
) -> Stay {
    let unit = &planner.board.items[item];
    let Some(owner) = unit.owner else {
        return Stay::OwnerNotSeen;
    };
    if let (true, Some(to)) = (unit.is_moving, unit.seen.and_then(|seen| seen.moving_to)) {
        return Stay::OnItsWay { to };
    }
    if unit.wanted.quarantined {
        return Stay::Quarantined;
    }
    if let Some(why) = unplaced {
        return Stay::NowhereToGo { why: why.clone() };
    }
    let mut trusted = judged.iter().flatten().filter(|score| !score.suspected);
    let should_leave = match &judged[owner] {
        Err(_) => true,
        Ok(stay) => trusted.any(|score| stay.gain_milli(score) > IMBALANCE_MILLI),
    };
    match planner.cools_until(item) {
        _ if !should_leave => Stay::Settled,
        Some(until) => Stay::CoolsDown { until },
        None if planner.moves_left == 0 => Stay::Waits,
        None => Stay::Settled,
    }
}

fn compare(score: Score, chosen: Option<Score>, is_owned: bool) -> WhyNot {
    let Some(chosen) = chosen else {
        return if score.suspected {
            WhyNot::Suspected { score }
        } else {
            WhyNot::NotNow { score }
        };
    };
    let by_milli = score.total_milli() - chosen.total_milli();
    if score.suspected && !chosen.suspected {
        WhyNot::Suspected { score }
    } else if by_milli >= 0 {
        WhyNot::Outscored { score, by_milli }
    } else if is_owned {
        WhyNot::NotWorthAMove {
            score,
            gain_milli: -by_milli,
        }
    } else {
        WhyNot::NotLookedAt { score }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {}", self.unit, self.place)?;
        for (node, verdict) in &self.nodes {
            writeln!(f, "  {node} {verdict}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::NotWanted => f.write_str("is not wanted: no such unit should run"),
            Place::Granted { node } => write!(f, "has no owner and is granted to {node}"),
            Place::Stays { node, why } => write!(f, "stays on {node}: {why}"),
            Place::Moves { from, to, why } => write!(f, "moves from {from} to {to}: {why}"),
            Place::Unplaced { why } => write!(f, "has no owner and cannot be placed: {why}"),
        }
    }
}

impl fmt::Display for Stay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stay::Settled => f.write_str("it may, and load is no reason to move it"),
            Stay::OnItsWay { to } => write!(f, "it is already on its way to {to}"),
            Stay::OwnerNotSeen => {
                f.write_str("its owner is not seen, but has neither released it nor been expelled")
            }
            Stay::CoolsDown { until } => {
                write!(
                    f,
                    "it moved lately and is left alone until {} ms",
                    until.as_millis()
                )
            }
            Stay::Waits => f.write_str("it should leave, but other units are moved first"),
            Stay::NowhereToGo { why } => write!(f, "it may not stay, but {why}"),
            Stay::Quarantined => f.write_str("it is quarantined, so nobody moves it"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Chosen(score) => write!(f, "is chosen ({score})"),
            Verdict::Not(why) => why.fmt(f),
        }
    }
}
