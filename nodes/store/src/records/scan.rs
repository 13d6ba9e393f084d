//! Looking through a store when it is opened: what is there, and what is lost.
//!
//! Owns: the line between a damaged record (its child says so, R3), lost last writes (the store says
//! so, R8) and a lost promise (the store must not be used again). Changes nothing: [`Found::mending`]
//! is what the opened store writes first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use understudy_protocol::cluster::replication::CutMark;
use understudy_protocol::id::{ChildId, Epoch, SLOTS, Seq, SlotRange};
use understudy_protocol::wire::codec::{DecodeError, decode_whole};
use understudy_protocol::wire::content::Pieces;
use understudy_protocol::wire::record::{Head, Record, RecordKind};
use understudy_protocol::wire::step::named_by;

use super::index::{
    CUT_CHILD, CUT_CONFIRMED, CUT_DEDICATED, CUT_SLOTS, Index, Keys, Sums, cut_keys,
    promise_payload, record_tag, state_tag,
};
use super::names_of;
use super::{CHILD_PROMISE, CUT, DAMAGED, Damages, PROMISE, RECORD};
use crate::chunks::ChunkName;
use crate::damage::Damage;
use crate::ledger::{Missing, STAMP, Stamp, Unopened, unopened};
use crate::value::{Broken, Sum, seal, unseal};

/// What a store holds and lacks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    index: Index,
    /// What is wrong, in the order of the keys.
    pub(crate) damages: Damages,
    /// Keys of records that are damaged or stand behind one.
    lost_keys: Vec<Vec<u8>>,
    /// The cut as it stands on the disk.
    old_cut: Keys,
    newly_damaged: BTreeSet<ChildId>,
    /// What the records name.
    named: BTreeMap<ChildId, BTreeMap<Seq, Vec<Pieces>>>,
}

impl Found {
    pub(crate) fn scan(db: &sled::Db, stamp: &Stamp) -> Result<Found, Unopened> {
        let mut found = Found::default();
        let mut chains = Chains::default();
        let mut state = Sum::default();
        for pair in db.iter() {
            let (key, value) = pair.map_err(|error| unopened(&error))?;
            if key == STAMP {
                continue;
            }
            match key.split_first() {
                Some((&RECORD, name)) => chains.take(&mut found, &key, name, &value)?,
                Some((&space, name)) => {
                    let payload = match unseal(&key, &value) {
                        Ok(payload) => payload,
                        Err(Broken::Newer) => return Err(Unopened::Newer),
                        Err(Broken::Damaged) => {
                            found.forgot(format!("the value of {space:?} is damaged"));
                            continue;
                        }
                    };
                    state.add(state_tag(&key, payload));
                    found.take_state(space, name, payload);
                }
                None => found.forgot("an empty key".into()),
            }
        }
        chains.end_child(&mut found);
        found.compare(
            stamp,
            Sums {
                records: chains.expected,
                state,
            },
            &chains.doubtful,
        );
        found.old_cut = cut_keys(&found.index.cut);
        if found
            .damages
            .iter()
            .any(|damage| matches!(damage, Damage::Cut { .. }))
        {
            found.index.cut = CutMark {
                slots: vec![SlotRange::ALL],
                dedicated: true,
                ..CutMark::default()
            };
        }
        found.newly_damaged = found
            .newly_damaged
            .difference(&found.index.damaged)
            .cloned()
            .collect();
        found
            .index
            .damaged
            .extend(found.newly_damaged.iter().cloned());
        found.index.sums = found.sums_now();
        let chains = &found.index.chains;
        found.named.retain(|child, named| {
            let heads = chains.get(child);
            let stands = |seq: &Seq| heads.is_some_and(|all| all.iter().any(|h| h.seq == *seq));
            named.retain(|seq, _| stands(seq));
            !named.is_empty()
        });
        Ok(found)
    }

    /// The writes that make the store say what it lost, and the sums after them.
    pub(crate) fn mending(&self) -> (sled::Batch, Vec<u8>) {
        let mut batch = sled::Batch::default();
        for key in &self.lost_keys {
            batch.remove(key.as_slice());
        }
        let new_cut = cut_keys(&self.index.cut);
        for key in self
            .old_cut
            .keys()
            .filter(|key| !new_cut.contains_key(*key))
        {
            batch.remove(key.as_slice());
        }
        for (key, payload) in &new_cut {
            batch.insert(key.as_slice(), seal(key, payload));
        }
        for child in &self.newly_damaged {
            let key = super::child_key(DAMAGED, child);
            batch.insert(key.as_slice(), seal(&key, &[]));
        }
        (batch, self.index.summary())
    }

    pub(super) fn into_index(self) -> (Index, BTreeMap<ChildId, BTreeMap<Seq, Vec<Pieces>>>) {
        (self.index, self.named)
    }

    /// Every chunk that a record names, those in lists too as far as `list` has the lists.
    pub(crate) fn names(&self, list: impl Fn(ChunkName) -> Option<Vec<u8>>) -> BTreeSet<ChunkName> {
        let pieces = self.named.values().flat_map(BTreeMap::values).flatten();
        let names = pieces.flat_map(|pieces| names_of(pieces, &list).unwrap_or_else(|names| names));
        names.collect()
    }

    /// How many records stand.
    pub(crate) fn records(&self) -> u64 {
        self.index
            .chains
            .values()
            .map(|heads| heads.len() as u64)
            .sum()
    }

    /// How many children have records.
    pub(crate) fn children(&self) -> u64 {
        self.index.chains.len() as u64
    }

    /// Whether a cut stands that nobody has confirmed, from this opening or an earlier one.
    #[cfg(test)]
    pub(crate) fn is_cut(&self) -> bool {
        self.index.cut != CutMark::default()
    }

    /// How many slots are cut, and whether dedicated children are.
    pub(crate) fn cut_parts(&self) -> (u64, bool) {
        let CutMark {
            slots, dedicated, ..
        } = &self.index.cut;
        let count = |range: &SlotRange| u64::from(range.end() - range.start());
        (slots.iter().map(count).sum(), *dedicated)
    }

    /// Children that are damaged, from this opening or an earlier one.
    pub(crate) fn damaged(&self) -> u64 {
        self.index.damaged.len() as u64
    }

    fn forgot(&mut self, noticed: String) {
        self.damages.push(Damage::Memory {
            place: "records",
            noticed,
        });
    }

    fn take_state(&mut self, space: u8, name: &[u8], payload: &[u8]) {
        let index = &mut self.index;
        let taken = match space {
            PROMISE => run_of(name, payload.get(..2)).and_then(|range| {
                index.promises.set(range, epoch_of(payload.get(2..)?)?);
                Some(())
            }),
            CHILD_PROMISE => child_of(name).and_then(|child| {
                index.child_promises.insert(child, epoch_of(payload)?);
                Some(())
            }),
            DAMAGED => child_of(name).map(|child| {
                index.damaged.insert(child);
            }),
            CUT => take_cut(&mut index.cut, name, payload),
            _ => None,
        };
        if taken.is_none() {
            // Its checksum fits, so it was written like this: by a fault or a later version.
            self.forgot(format!(
                "a value of kind {:?} makes no sense",
                char::from(space)
            ));
        }
    }

    /// Whether all is there that the last commit says.
    fn compare(&mut self, stamp: &Stamp, seen: Sums, doubtful: &[(ChildId, Seq)]) {
        match stamp.missing {
            Missing::None => {}
            Missing::Unknown => self.cut("the mark beside the database is damaged".into()),
            Missing::Last(lost) => self.cut(format!("{lost} flushed commits are gone")),
            Missing::Binding(lost) => {
                self.forgot(format!(
                    "{lost} flushed commits are gone, with promises among them"
                ));
            }
        }
        let Some(said) = Sums::from_bytes(&stamp.summary) else {
            return self.forgot("the last commit's stamp makes no sense".into());
        };
        if said.state != seen.state {
            self.forgot("not every promise and mark is there that was written".into());
        }
        if said.records != seen.records {
            self.cut("not every record is there that was written".into());
            // A chain that begins with a step from something else has lost what it began with.
            for (child, at) in doubtful {
                self.lose_from(child, *at);
            }
        }
    }

    fn cut(&mut self, noticed: String) {
        self.damages.push(Damage::Cut { noticed });
    }

    fn lose_from(&mut self, child: &ChildId, at: Seq) {
        let heads = self.index.chains.entry(child.clone()).or_default();
        for head in heads.iter().filter(|head| head.seq >= at) {
            self.lost_keys.push(super::record_key(child, head.seq));
        }
        heads.retain(|head| head.seq < at);
        if heads.is_empty() {
            self.index.chains.remove(child);
        }
        self.newly_damaged.insert(child.clone());
        let child = child.clone();
        self.damages.push(Damage::Record { child, at });
    }

    fn sums_now(&self) -> Sums {
        let mut sums = Sums::default();
        for (child, heads) in &self.index.chains {
            for head in heads {
                sums.records.add(record_tag(child, *head));
            }
        }
        let mut keys = super::index::promise_keys(&self.index.promises);
        keys.extend(cut_keys(&self.index.cut));
        for (child, epoch) in &self.index.child_promises {
            keys.insert(
                super::child_key(CHILD_PROMISE, child),
                promise_payload(*epoch),
            );
        }
        for child in &self.index.damaged {
            keys.insert(super::child_key(DAMAGED, child), Vec::new());
        }
        for (key, payload) in &keys {
            sums.state.add(state_tag(key, payload));
        }
        sums
    }
}

/// The chains as they come by, in the order of the keys.
#[derive(Default)]
struct Chains {
    child: Option<ChildId>,
    heads: VecDeque<Head>,
    /// The first record of the child at hand that is damaged, gone, or does not follow.
    broken_at: Option<Seq>,
    /// The place before, and whether a sound record stands there.
    before: Option<(Seq, bool)>,
    /// What the records add up to, with those that their successor names.
    expected: Sum,
    /// Chains that begin with a step, and where.
    doubtful: Vec<(ChildId, Seq)>,
}

impl Chains {
    fn take(
        &mut self,
        found: &mut Found,
        key: &[u8],
        name: &[u8],
        value: &[u8],
    ) -> Result<(), Unopened> {
        let parted = name
            .split_last_chunk::<9>()
            .filter(|(_, rest)| rest[0] == 0)
            .and_then(|(child, rest)| {
                let [_, seq @ ..] = *rest;
                Some((child_of(child)?, Seq(u64::from_be_bytes(seq))))
            });
        let Some((child, seq)) = parted else {
            found.cut("a record's key makes no sense".into());
            found.lost_keys.push(key.to_vec());
            return Ok(());
        };
        if self.child.as_ref() != Some(&child) {
            self.end_child(found);
            self.child = Some(child.clone());
        }
        let record = match decode_whole::<Record>(value) {
            Ok(record) => Some(record),
            Err(DecodeError::NewerVersion { .. } | DecodeError::UnknownType { .. }) => {
                return Err(Unopened::Newer);
            }
            Err(_) => None,
        };
        let record = record
            .filter(|record| record.child == child && record.seq == seq && record.is_intact());
        // A body that cannot be read is not started from either; its record stands.
        let named = record.as_ref().map(|record| named_by(record).ok());
        if let Some(named) = named.flatten().filter(|named| !named.is_empty()) {
            let of = found.named.entry(child.clone()).or_default();
            of.insert(seq, named);
        }
        self.place(&child, seq, record.as_ref());
        if self.broken_at.is_some() {
            found.lost_keys.push(key.to_vec());
        }
        Ok(())
    }

    fn place(&mut self, child: &ChildId, seq: Seq, record: Option<&Record>) {
        let before = self.before.replace((seq, record.is_some()));
        let Some(record) = record else {
            self.break_at(before.map_or(seq, |(last, _)| last.next()));
            return;
        };
        self.expected.add(record_tag(child, record.head()));
        match before {
            None => {
                if record.kind == RecordKind::Delta && seq > Seq(1) {
                    self.doubtful.push((child.clone(), seq));
                }
            }
            Some((last, sound)) => {
                // The record before this one is gone or damaged, but this one names it.
                if last.next() != seq || !sound {
                    self.expected.add(record_tag(child, record.prev));
                }
                if last.next() != seq || self.heads.back().is_some_and(|head| *head != record.prev)
                {
                    self.break_at(last.next());
                }
            }
        }
        if self.broken_at.is_none() {
            self.heads.push_back(record.head());
        }
    }

    fn break_at(&mut self, seq: Seq) {
        self.broken_at.get_or_insert(seq);
    }

    fn end_child(&mut self, found: &mut Found) {
        self.before = None;
        let heads = std::mem::take(&mut self.heads);
        let broken_at = self.broken_at.take();
        let Some(child) = self.child.take() else {
            return;
        };
        if !heads.is_empty() {
            found.index.chains.insert(child.clone(), heads);
        }
        if let Some(at) = broken_at {
            found.newly_damaged.insert(child.clone());
            found.damages.push(Damage::Record { child, at });
        }
    }
}

fn take_cut(cut: &mut CutMark, name: &[u8], payload: &[u8]) -> Option<()> {
    let (kind, name) = name.split_first()?;
    match *kind {
        CUT_DEDICATED => cut.dedicated = true,
        CUT_SLOTS => cut.slots.push(run_of(name, Some(payload))?),
        CUT_CHILD => {
            cut.children.insert(child_of(name)?);
        }
        CUT_CONFIRMED => {
            cut.confirmed.insert(child_of(name)?);
        }
        _ => return None,
    }
    Some(())
}

fn run_of(start: &[u8], end: Option<&[u8]>) -> Option<SlotRange> {
    let start = u16::from_be_bytes(start.try_into().ok()?);
    let end = u16::from_be_bytes(end?.try_into().ok()?);
    SlotRange::new(start, end.min(SLOTS))
}

fn epoch_of(bytes: &[u8]) -> Option<Epoch> {
    Some(Epoch(u64::from_be_bytes(bytes.try_into().ok()?)))
}

fn child_of(bytes: &[u8]) -> Option<ChildId> {
    ChildId::parse(std::str::from_utf8(bytes).ok()?).ok()
}
