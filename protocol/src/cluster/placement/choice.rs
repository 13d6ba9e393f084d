//! The best node for one unit, without looking at every node.
//!
//! Owns: the search over kinds. Never changes what is on the board.

use alloc::vec::Vec;

use super::board::Board;
use super::score::{Score, WhyNot};
use super::view::Domain;

/// How many nodes of one kind that would do are compared for one unit. They are the emptiest, so the
/// rest could only win by a rounding or by fewer mates; without a limit a level cluster of 1,000
/// nodes would cost 1,000 looks a unit.
pub const LOOKS_MAX: usize = 16;

/// What to count when a node is chosen.
#[derive(Clone, Copy)]
pub(super) struct Wish {
    /// A suspected node will do where no other does.
    pub(super) or_suspected: bool,
    /// A complete replica makes a node better.
    pub(super) count_replica: bool,
}

/// The best node so far.
struct Best {
    milli: i64,
    units: u32,
    at: usize,
    score: Score,
}

impl Board<'_> {
    /// The best node for a unit that is not on the board.
    pub(super) fn choose(&mut self, item: usize, wish: Wish) -> Option<(usize, Score)> {
        let found = self.search(item, wish, false);
        if found.is_some() || !wish.or_suspected {
            return found;
        }
        self.search(item, wish, true)
    }

    fn search(&mut self, item: usize, wish: Wish, suspected: bool) -> Option<(usize, Score)> {
        if let Some(pin) = self.items[item].wanted.pin {
            let at = self
                .node_index(pin)
                .filter(|at| self.nodes[*at].view.suspected == suspected)?;
            return self.judge(item, at).ok().map(|score| (at, score));
        }
        let mut best = None;
        for at in self.likely(item) {
            if self.nodes[at].view.suspected == suspected
                && let Ok(score) = self.judge(item, at)
            {
                self.keep_better(&mut best, wish, score, at);
            }
        }
        let class = self.items[item].class;
        for kind in 0..self.kinds.len() {
            let fit = &self.classes[class].by_kind[kind];
            if self.kinds[kind].is_suspected != suspected
                || !fit.is_allowed
                || fit.was_full_at == Some(self.kinds[kind].relieved)
            {
                continue;
            }
            if self.search_kind(item, wish, kind, &mut best) {
                self.classes[class].by_kind[kind].was_full_at = Some(self.kinds[kind].relieved);
            }
        }
        best.map(|best: Best| (best.at, best.score))
    }

    /// Improves `best` by the nodes of one kind; says whether all of them were full.
    fn search_kind(&self, item: usize, wish: Wish, kind: usize, best: &mut Option<Best>) -> bool {
        let unit = &self.items[item];
        let fit = &self.classes[unit.class].by_kind[kind];
        let zone_milli = self.zone_milli(unit, self.kinds[kind].zone);
        let (mut looks, mut all_full) = (0, true);
        for &(pressure, units, at) in &self.kinds[kind].order {
            // No node from here on can be better than this.
            let at_best = pressure + fit.adds_milli + zone_milli - fit.preferred_milli;
            let is_beaten = |best: &Best| (best.milli, best.units) <= (at_best, units);
            if best.as_ref().is_some_and(is_beaten) || looks == LOOKS_MAX {
                return false;
            }
            match self.judge(item, at) {
                Ok(score) => {
                    self.keep_better(best, wish, score, at);
                    looks += 1;
                    all_full = false;
                }
                Err(WhyNot::Full { .. }) => {}
                Err(WhyNot::Crowded {
                    by: Domain::Zone, ..
                }) => return false,
                Err(_) => all_full = false,
            }
        }
        all_full
    }

    fn keep_better(&self, best: &mut Option<Best>, wish: Wish, score: Score, at: usize) {
        let uncounted = if wish.count_replica {
            0
        } else {
            score.replica_milli
        };
        let (milli, units) = (score.total_milli() + uncounted, self.nodes[at].units);
        if best
            .as_ref()
            .is_none_or(|best| (milli, units) < (best.milli, best.units))
        {
            *best = Some(Best {
                milli,
                units,
                at,
                score,
            });
        }
    }

    /// Nodes with a bonus that only this unit would get, which the order of load does not show.
    fn likely(&self, item: usize) -> Vec<usize> {
        let unit = &self.items[item];
        let complete = unit.seen.map_or(&[][..], |seen| &seen.complete);
        let mut likely: Vec<usize> = complete
            .iter()
            .filter_map(|store| self.stores.get(store).copied())
            .collect();
        if let Some(group) = unit.wanted.together {
            let beside = self.companions.range((group, 0)..=(group, usize::MAX));
            likely.extend(beside.take(LOOKS_MAX).map(|((_, at), _)| *at));
        }
        likely
    }
}
