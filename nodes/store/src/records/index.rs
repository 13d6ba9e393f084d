//! What a store holds, without the bodies, and what a batch of writes changes in it.
//!
//! Owns: the translation of writes into keys. A batch is staged beside the index and settles in it
//! only when it is flushed, so that a refused or failed batch leaves nothing behind.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use understudy_protocol::cluster::replication::{CutMark, Opened, OpenedChain, SlotMap, Write};
use understudy_protocol::id::{ChildId, Epoch, Seq, SlotRange};
use understudy_protocol::wire::checksum;
use understudy_protocol::wire::codec::encode_frame;
use understudy_protocol::wire::record::{Head, Record};
use understudy_supervision::store::StoreError;

use super::{CHILD_PROMISE, CUT, DAMAGED, PROMISE, Writes, child_key, record_key};
use crate::value::{Sum, seal, tag};

/// Everything but the bodies.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    pub(super) chains: BTreeMap<ChildId, VecDeque<Head>>,
    pub(super) promises: SlotMap<Epoch>,
    pub(super) child_promises: BTreeMap<ChildId, Epoch>,
    pub(super) damaged: BTreeSet<ChildId>,
    pub(super) cut: CutMark,
    pub(super) sums: Sums,
}

/// What all values add up to: records, and everything else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) records: Sum,
    pub(super) state: Sum,
}

impl Sums {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        [self.records.to_bytes(), self.state.to_bytes()].concat()
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Sums> {
        let [records, state]: [[u8; 16]; 2] = match bytes.as_chunks::<16>() {
            (chunks, []) => chunks.try_into().ok()?,
            _ => return None,
        };
        Some(Sums {
            records: Sum::from_bytes(records),
            state: Sum::from_bytes(state),
        })
    }
}

impl Index {
    pub(super) fn summary(&self) -> Vec<u8> {
        self.sums.to_bytes()
    }

    pub(super) fn heads(&self, child: &ChildId) -> impl Iterator<Item = &Head> {
        self.chains.get(child).into_iter().flatten()
    }

    pub(super) fn chains_after(
        &self,
        after: Option<&ChildId>,
    ) -> impl Iterator<Item = (&ChildId, &VecDeque<Head>)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.chains.range::<ChildId, _>((from, Bound::Unbounded))
    }

    pub(super) fn opened(&self) -> Opened {
        let promises = self.promises.iter(SlotRange::ALL);
        let named: BTreeSet<&ChildId> = self.chains.keys().chain(&self.damaged).collect();
        let chains = named.into_iter().map(|child| OpenedChain {
            child: child.clone(),
            heads: self.heads(child).copied().collect(),
            damaged: self.damaged.contains(child),
        });
        Opened {
            promises: promises
                .filter(|(_, epoch)| **epoch > Epoch::ZERO)
                .map(|(range, epoch)| (range, *epoch))
                .collect(),
            child_promises: self.child_promises.clone().into_iter().collect(),
            chains: chains
                .filter(|chain| chain.damaged || !chain.heads.is_empty())
                .collect(),
            cut: self.cut.clone(),
        }
    }

    /// What these writes change, in order.
    pub(super) fn stage(&self, batch: &[Write]) -> Result<Staged, StoreError> {
        let mut staged = Staged {
            sums: self.sums,
            ..Staged::default()
        };
        for write in batch {
            self.stage_one(&mut staged, write)?;
        }
        if let Some(promises) = &staged.promises {
            let (old, new) = (promise_keys(&self.promises), promise_keys(promises));
            staged.change_keys(&old, &new);
        }
        if let Some(cut) = &staged.cut {
            let (old, new) = (cut_keys(&self.cut), cut_keys(cut));
            staged.change_keys(&old, &new);
        }
        Ok(staged)
    }

    fn stage_one(&self, staged: &mut Staged, write: &Write) -> Result<(), StoreError> {
        match write {
            Write::Promise { range, epoch } => {
                let promises = staged.promises.get_or_insert_with(|| self.promises.clone());
                promises.update(*range, |promise| (*promise).max(*epoch));
            }
            Write::ChildPromise { child, epoch } => {
                let old = staged.child_promises.get(child);
                let old = old.or_else(|| self.child_promises.get(child)).copied();
                let key = child_key(CHILD_PROMISE, child);
                staged.change(
                    &key,
                    old.map(promise_payload),
                    Some(promise_payload(*epoch)),
                );
                staged.child_promises.insert(child.clone(), *epoch);
            }
            Write::Truncate { child, after } => {
                self.chain(staged, child).keep(child, |seq| seq <= *after);
            }
            Write::Prune { child, from } => {
                self.chain(staged, child).keep(child, |seq| seq >= *from);
            }
            Write::Drop { child } => self.chain(staged, child).keep(child, |_| false),
            Write::Put(record) => self.chain(staged, &record.child).put(record)?,
            Write::Damaged { child, damaged } => {
                let old = staged.damaged.get(child).copied();
                let old = old.unwrap_or_else(|| self.damaged.contains(child));
                let present = |is: bool| is.then(Vec::new);
                staged.change(&child_key(DAMAGED, child), present(old), present(*damaged));
                staged.damaged.insert(child.clone(), *damaged);
            }
            Write::Cut(mark) => staged.cut = Some(mark.clone()),
        }
        Ok(())
    }

    fn chain<'s>(&self, staged: &'s mut Staged, child: &ChildId) -> StagedChain<'s> {
        let heads = staged
            .chains
            .entry(child.clone())
            .or_insert_with(|| self.heads(child).copied().collect());
        StagedChain {
            heads,
            writes: &mut staged.writes,
            sum: &mut staged.sums.records,
        }
    }
}

/// A batch that is not flushed yet.
#[derive(Debug, Default)]
pub(super) struct Staged {
    writes: Writes,
    chains: BTreeMap<ChildId, VecDeque<Head>>,
    promises: Option<SlotMap<Epoch>>,
    child_promises: BTreeMap<ChildId, Epoch>,
    damaged: BTreeMap<ChildId, bool>,
    cut: Option<CutMark>,
    sums: Sums,
}

impl Staged {
    pub(super) fn writes(&self) -> &Writes {
        &self.writes
    }

    pub(super) fn summary(&self) -> Vec<u8> {
        self.sums.to_bytes()
    }

    /// Whether it holds something that must never be forgotten.
    pub(super) fn is_binding(&self) -> bool {
        self.promises.is_some() || !self.child_promises.is_empty()
    }

    /// It is flushed.
    pub(super) fn settle(self, index: &mut Index) {
        for (child, heads) in self.chains {
            if heads.is_empty() {
                index.chains.remove(&child);
            } else {
                index.chains.insert(child, heads);
            }
        }
        for (child, damaged) in self.damaged {
            if damaged {
                index.damaged.insert(child);
            } else {
                index.damaged.remove(&child);
            }
        }
        index.child_promises.extend(self.child_promises);
        if let Some(promises) = self.promises {
            index.promises = promises;
        }
        if let Some(cut) = self.cut {
            index.cut = cut;
        }
        index.sums = self.sums;
    }

    fn change_keys(&mut self, old: &Keys, new: &Keys) {
        for (key, payload) in old {
            if new.get(key) != Some(payload) {
                self.change(key, Some(payload.clone()), new.get(key).cloned());
            }
        }
        for (key, payload) in new {
            if !old.contains_key(key) {
                self.change(key, None, Some(payload.clone()));
            }
        }
    }

    fn change(&mut self, key: &[u8], old: Option<Vec<u8>>, new: Option<Vec<u8>>) {
        if let Some(old) = old {
            self.sums.state.remove(state_tag(key, &old));
        }
        if let Some(new) = &new {
            self.sums.state.add(state_tag(key, new));
        }
        let value = new.map(|payload| seal(key, &payload));
        self.writes.insert(key.to_vec(), value);
    }
}

struct StagedChain<'s> {
    heads: &'s mut VecDeque<Head>,
    writes: &'s mut Writes,
    sum: &'s mut Sum,
}

impl StagedChain<'_> {
    fn keep(&mut self, child: &ChildId, keeps: impl Fn(Seq) -> bool) {
        for head in self.heads.iter().filter(|head| !keeps(head.seq)) {
            self.sum.remove(record_tag(child, *head));
            self.writes.insert(record_key(child, head.seq), None);
        }
        self.heads.retain(|head| keeps(head.seq));
    }

    fn put(&mut self, record: &Record) -> Result<(), StoreError> {
        if self.heads.back().is_some_and(|last| *last != record.prev) {
            return Err(StoreError::Invalid("a record does not follow the last one"));
        }
        let mut frame = Vec::new();
        // It compares the record's own checksum too.
        encode_frame(record, &mut frame)
            .map_err(|_| StoreError::Invalid("a record is not intact, or breaks its limits"))?;
        let head = record.head();
        self.heads.push_back(head);
        self.sum.add(record_tag(&record.child, head));
        self.writes
            .insert(record_key(&record.child, record.seq), Some(frame));
        Ok(())
    }
}

/// What a record adds to the sum. It is made of the record's name, which the record after it says
/// too: so what a damaged one added is known if the next one stands.
pub(super) fn record_tag(child: &ChildId, head: Head) -> u64 {
    let mut value = head.epoch.0.to_be_bytes().to_vec();
    value.extend_from_slice(&head.checksum.to_be_bytes());
    tag(checksum(&record_key(child, head.seq)), checksum(&value))
}

/// What any other key adds.
pub(super) fn state_tag(key: &[u8], payload: &[u8]) -> u64 {
    tag(checksum(key), checksum(payload))
}

pub(super) type Keys = BTreeMap<Vec<u8>, Vec<u8>>;

pub(super) fn promise_keys(promises: &SlotMap<Epoch>) -> Keys {
    let runs = promises.iter(SlotRange::ALL);
    let promised = runs.filter(|(_, epoch)| **epoch > Epoch::ZERO);
    promised
        .map(|(range, epoch)| {
            let mut key = vec![PROMISE];
            key.extend_from_slice(&range.start().to_be_bytes());
            let mut payload = range.end().to_be_bytes().to_vec();
            payload.extend_from_slice(&epoch.0.to_be_bytes());
            (key, payload)
        })
        .collect()
}

pub(super) fn promise_payload(epoch: Epoch) -> Vec<u8> {
    epoch.0.to_be_bytes().to_vec()
}

/// A cut by its parts, so that no value grows with the number of children.
pub(super) fn cut_keys(cut: &CutMark) -> Keys {
    let mut keys = Keys::new();
    if cut.dedicated {
        keys.insert(vec![CUT, CUT_DEDICATED], Vec::new());
    }
    for range in &cut.slots {
        let mut key = vec![CUT, CUT_SLOTS];
        key.extend_from_slice(&range.start().to_be_bytes());
        keys.insert(key, range.end().to_be_bytes().to_vec());
    }
    for (kind, children) in [(CUT_CHILD, &cut.children), (CUT_CONFIRMED, &cut.confirmed)] {
        for child in children {
            let mut key = vec![CUT, kind];
            key.extend_from_slice(child.as_str().as_bytes());
            keys.insert(key, Vec::new());
        }
    }
    keys
}

pub(super) const CUT_CHILD: u8 = b'c';
pub(super) const CUT_DEDICATED: u8 = b'd';
pub(super) const CUT_CONFIRMED: u8 = b'f';
pub(super) const CUT_SLOTS: u8 = b's';
