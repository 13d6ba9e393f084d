//! The list of lease voters and what a majority of it is (rule L8).
//!
//! Owns: the versioned list, joint while it changes. Never decides when it changes: the controller
//! does.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use minicbor::{Decode, Encode};

use crate::id::{StoreId, VotersVersion};
use crate::rules::{Rule, keeps};

/// The stores whose hearts promise leases. While the list changes there are two, and everything
/// that takes a majority takes one of each (L8).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Voters {
    /// Counts the changes.
    #[n(0)]
    pub version: VotersVersion,
    /// The list, or the new list while it changes.
    #[n(1)]
    pub current: BTreeSet<StoreId>,
    /// The old list while it changes.
    #[n(2)]
    pub outgoing: Option<BTreeSet<StoreId>>,
}

impl Voters {
    /// The first list of a cluster.
    pub fn first(stores: impl IntoIterator<Item = StoreId>) -> Voters {
        Voters {
            version: VotersVersion(1),
            current: stores.into_iter().collect(),
            outgoing: None,
        }
    }

    /// The first entry of a change: majorities of both lists from now on.
    pub fn joint(&self, new: BTreeSet<StoreId>) -> Voters {
        Voters {
            version: self.version.next(),
            current: new,
            outgoing: Some(self.current.clone()),
        }
    }

    /// The second entry of a change: the new list alone.
    pub fn settled(&self) -> Voters {
        Voters {
            version: self.version.next(),
            current: self.current.clone(),
            outgoing: None,
        }
    }

    /// Whether `next` is one step of a change away (L8): both lists, or the new one alone after both.
    pub fn may_become(&self, next: &Voters) -> bool {
        let step = match (&self.outgoing, &next.outgoing) {
            (None, Some(old)) => *old == self.current,
            (Some(_), None) => next.current == self.current,
            _ => false,
        };
        step && next.version == self.version.next() && !next.current.is_empty()
    }

    /// Whether `store` votes in either list.
    pub fn contains(&self, store: StoreId) -> bool {
        self.current.contains(&store)
            || self
                .outgoing
                .as_ref()
                .is_some_and(|old| old.contains(&store))
    }

    /// Every voter of either list, once.
    pub fn iter(&self) -> impl Iterator<Item = StoreId> {
        let old = self
            .outgoing
            .iter()
            .flatten()
            .copied()
            .filter(|store| !self.current.contains(store));
        self.current.iter().copied().chain(old)
    }

    /// Whether the stores that satisfy `has` are a majority of every list in force.
    pub fn majority(&self, has: impl Fn(StoreId) -> bool) -> bool {
        self.lists()
            .all(|list| list.iter().filter(|store| has(**store)).count() > list.len() / 2)
    }

    /// The greatest value that a majority of every list in force reaches; `None` when too few
    /// voters have one.
    pub fn majority_value<T: Ord + Copy>(&self, value: impl Fn(StoreId) -> Option<T>) -> Option<T> {
        let mut least = None;
        for list in self.lists() {
            let mut values: Vec<T> = list.iter().filter_map(|store| value(*store)).collect();
            values.sort_unstable_by(|a, b| b.cmp(a));
            let reached = *values.get(list.len() / 2)?;
            least = Some(least.map_or(reached, |so_far: T| so_far.min(reached)));
        }
        least
    }

    fn lists(&self) -> impl Iterator<Item = &BTreeSet<StoreId>> {
        // L8: under a joint list both count.
        let old = self.outgoing.iter().filter(|_| keeps(Rule::L8));
        core::iter::once(&self.current).chain(old)
    }
}

/// Stores in one list. Every node asks every voter for its promise, so a handful serves; this is as
/// many as a cluster has nodes.
pub const VOTERS_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    fn stores(ids: &[u64]) -> BTreeSet<StoreId> {
        ids.iter().map(|id| StoreId(*id)).collect()
    }

    fn check(voters: &Voters, has: &[u64], majority: bool) {
        let has = stores(has);
        assert_eq!(
            voters.majority(|store| has.contains(&store)),
            majority,
            "{voters:?} {has:?}"
        );
    }

    #[test]
    fn a_majority_is_more_than_half() {
        let three = Voters::first(stores(&[1, 2, 3]));
        check(&three, &[1, 2], true);
        check(&three, &[1], false);
        check(&three, &[1, 7, 8], false);
        let two = Voters::first(stores(&[1, 2]));
        check(&two, &[1], false);
        check(&two, &[1, 2], true);
    }

    #[test]
    fn a_joint_list_needs_both_majorities() {
        let joint = Voters::first(stores(&[1, 2, 3])).joint(stores(&[3, 4, 5]));
        check(&joint, &[1, 2], false);
        check(&joint, &[4, 5], false);
        check(&joint, &[2, 3, 4], true);
        check(&joint.settled(), &[4, 5], true);
        assert_eq!(joint.iter().count(), 5);
    }

    #[test]
    fn majority_value_is_what_a_majority_reaches() {
        let three = Voters::first(stores(&[1, 2, 3]));
        let value = |store: StoreId| (store.0 != 3).then_some(store.0 * 10);
        assert_eq!(three.majority_value(value), Some(10));
        assert_eq!(
            three.majority_value(|store| (store.0 == 1).then_some(1)),
            None
        );
    }
}
