//! The children of one supervisor, and the orders in which they are asked for.
//!
//! Owns: the children, their start order, and the indexes that keep every question `O(log n)` with
//! [`super::supervisor::CHILDREN_MAX`] children: who is due, who is quarantined, is anyone stopping.
//! Never decides anything. A child changes only through [`Roster::change`], which keeps the indexes
//! true; they are never stored, so no byte from a disk can make them lie.

use alloc::collections::{BTreeMap, BTreeSet};
use core::ops::RangeBounds;

use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::{Decode, Encode};

use super::child::{Child, Phase};
use super::policy::RestartType;
use super::strikes::STRIKES_MAX;
use crate::time::ClusterTime;

#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode)]
pub(super) struct Roster<K: Ord> {
    #[n(0)]
    children: BTreeMap<K, Child>,
    #[n(1)]
    next_order: u64,
    #[cbor(skip)]
    start_order: BTreeMap<u64, K>,
    /// The children in [`Phase::Waiting`].
    #[cbor(skip)]
    due: BTreeSet<(ClusterTime, u64)>,
    /// The children in [`Phase::Quarantined`].
    #[cbor(skip)]
    quarantined: BTreeSet<u64>,
    /// How many children are in [`Phase::Stopping`].
    #[cbor(skip)]
    stopping: usize,
}

impl<K: Clone + Ord> Roster<K> {
    pub(super) const fn new() -> Roster<K> {
        Roster {
            children: BTreeMap::new(),
            next_order: 0,
            start_order: BTreeMap::new(),
            due: BTreeSet::new(),
            quarantined: BTreeSet::new(),
            stopping: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.children.len()
    }

    pub(super) fn get(&self, key: &K) -> Option<&Child> {
        self.children.get(key)
    }

    /// Those in `range` of the start order.
    pub(super) fn in_order(
        &self,
        range: impl RangeBounds<u64>,
    ) -> impl DoubleEndedIterator<Item = (&K, &Child)> {
        self.start_order
            .range(range)
            .map(|(_, key)| (key, &self.children[key]))
    }

    /// The next child to start alone, and when.
    pub(super) fn first_due(&self) -> Option<(ClusterTime, &K)> {
        let (until, order) = self.due.first()?;
        Some((*until, &self.start_order[order]))
    }

    /// The place of the first quarantined child.
    pub(super) fn first_quarantined(&self) -> Option<u64> {
        self.quarantined.first().copied()
    }

    pub(super) fn anyone_stopping(&self) -> bool {
        self.stopping > 0
    }

    /// Adds a child that is not there, last in the start order and stopped.
    pub(super) fn add(&mut self, key: K, restart: RestartType) {
        let order = self.next_order;
        self.next_order += 1;
        self.start_order.insert(order, key.clone());
        self.children.insert(key, Child::new(order, restart));
    }

    pub(super) fn forget(&mut self, key: &K) {
        if let Some(child) = self.children.remove(key) {
            self.unindex(&child);
            self.start_order.remove(&child.order);
        }
    }

    /// Changes a child, which must be there.
    pub(super) fn change<R>(&mut self, key: &K, change: impl FnOnce(&mut Child) -> R) -> R {
        let child = self
            .children
            .get_mut(key)
            .expect("the caller has just seen this child");
        let before = child.clone();
        let answer = change(child);
        let after = child.clone();
        self.unindex(&before);
        self.index(&after);
        answer
    }

    fn index(&mut self, child: &Child) {
        match child.phase {
            Phase::Waiting { until } => {
                self.due.insert((until, child.order));
            }
            Phase::Quarantined => {
                self.quarantined.insert(child.order);
            }
            Phase::Stopping { .. } => self.stopping += 1,
            Phase::Stopped | Phase::Starting | Phase::Running { .. } => {}
        }
    }

    fn unindex(&mut self, child: &Child) {
        match child.phase {
            Phase::Waiting { until } => {
                self.due.remove(&(until, child.order));
            }
            Phase::Quarantined => {
                self.quarantined.remove(&child.order);
            }
            Phase::Stopping { .. } => self.stopping -= 1,
            Phase::Stopped | Phase::Starting | Phase::Running { .. } => {}
        }
    }
}

impl<'b, C, K: Clone + Ord + Decode<'b, C>> Decode<'b, C> for Roster<K> {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, DecodeError> {
        #[derive(Decode)]
        struct Stored<K: Ord> {
            #[n(0)]
            children: BTreeMap<K, Child>,
            #[n(1)]
            next_order: u64,
        }
        let Stored {
            children,
            next_order,
        } = Stored::<K>::decode(d, ctx)?;
        let mut roster = Roster {
            next_order,
            ..Roster::new()
        };
        // Half of the places must be left, so that no stored number can make the count overflow.
        if next_order > u64::MAX / 2 {
            return Err(DecodeError::message(
                "a start order that nothing could have reached",
            ));
        }
        for (key, child) in &children {
            let taken = roster
                .start_order
                .insert(child.order, key.clone())
                .is_some();
            if taken || child.order >= next_order {
                return Err(DecodeError::message(
                    "every child has its own place in the start order",
                ));
            }
            if child.strikes.count() > STRIKES_MAX {
                return Err(DecodeError::message("a child has at most three strikes"));
            }
            roster.index(child);
        }
        Ok(Roster { children, ..roster })
    }
}
