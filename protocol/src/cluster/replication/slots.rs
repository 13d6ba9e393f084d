//! A value for each of the 16,384 slots, kept as runs.
//!
//! Owns: the run-length map behind a store's promises. Never holds two neighbouring runs of one
//! value, so its size is bounded by the number of shards that ever met at a boundary.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::id::{SLOTS, Slot, SlotRange};

/// A value for every slot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SlotMap<T> {
    /// Each run's first slot and value; the first run begins at slot 0.
    runs: BTreeMap<u16, T>,
}

impl<T: Clone + PartialEq + Default> Default for SlotMap<T> {
    fn default() -> Self {
        SlotMap {
            runs: BTreeMap::from([(0, T::default())]),
        }
    }
}

impl<T: Clone + PartialEq + Default> SlotMap<T> {
    /// The slot's value.
    pub fn get(&self, slot: Slot) -> &T {
        let (_, value) = self
            .runs
            .range(..=slot.get())
            .next_back()
            .expect("a run begins at slot 0");
        value
    }

    /// The runs of values in `range`, in order.
    pub fn iter(&self, range: SlotRange) -> impl Iterator<Item = (SlotRange, &T)> {
        let first = *self
            .runs
            .range(..=range.start())
            .next_back()
            .expect("a run begins at slot 0")
            .0;
        let starts = self.runs.range(first..range.end());
        starts.map(move |(start, value)| {
            let next = self
                .runs
                .range(start + 1..)
                .next()
                .map_or(SLOTS, |(next, _)| *next);
            let run = SlotRange::new((*start).max(range.start()), next.min(range.end()));
            (run.expect("the run overlaps the range"), value)
        })
    }

    /// Gives every slot of `range` the value that `change` makes of its old one.
    pub fn update(&mut self, range: SlotRange, change: impl Fn(&T) -> T) {
        let changed: Vec<(SlotRange, T)> = self
            .iter(range)
            .map(|(run, value)| (run, change(value)))
            .collect();
        for (run, value) in changed {
            self.set(run, value);
        }
    }

    /// Gives every slot of `range` this value.
    pub fn set(&mut self, range: SlotRange, value: T) {
        let after = Slot::new(range.end()).map(|slot| (range.end(), self.get(slot).clone()));
        let inside: Vec<u16> = self
            .runs
            .range(range.start()..range.end())
            .map(|(start, _)| *start)
            .collect();
        for start in inside {
            self.runs.remove(&start);
        }
        self.runs.insert(range.start(), value);
        if let Some((end, value)) = after {
            self.runs.insert(end, value);
        }
        self.join_at(range.end());
        self.join_at(range.start());
    }

    fn join_at(&mut self, start: u16) {
        let before = self.runs.range(..start).next_back().map(|(_, value)| value);
        if before.is_some() && before == self.runs.get(&start) {
            self.runs.remove(&start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u16, end: u16) -> SlotRange {
        SlotRange::new(start, end).expect("a range")
    }

    #[test]
    fn every_slot_has_the_value_set_last_and_equal_neighbours_are_one_run() {
        let mut map: SlotMap<u8> = SlotMap::default();
        let mut plain = [0u8; SLOTS as usize];
        let mut random = 1u64;
        for _ in 0..400 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let start = (random % 16_384) as u16;
            let end = (start + 1 + (random >> 20) as u16 % 3_000).min(SLOTS);
            let value = (random >> 50) as u8 % 3;
            map.set(range(start, end), value);
            plain[usize::from(start)..usize::from(end)].fill(value);
            for slot in [0, start, end - 1, end.min(SLOTS - 1), SLOTS - 1] {
                let got = map.get(Slot::new(slot).expect("a slot"));
                assert_eq!(*got, plain[usize::from(slot)]);
            }
            let runs: Vec<_> = map.iter(SlotRange::ALL).collect();
            assert!(
                runs.windows(2)
                    .all(|pair| pair[0].1 != pair[1].1 && pair[0].0.end() == pair[1].0.start())
            );
        }
    }
}
