//! What a store in memory holds. The simulator's disk keeps the same and loses it on purpose.

use std::collections::{BTreeMap, BTreeSet};

use understudy_protocol::cluster::replication::{CutMark, Opened, OpenedChain, SlotMap, Write};
use understudy_protocol::id::{ChildId, Epoch, Seq, SlotRange};
use understudy_protocol::wire::codec::records_that_fit;
use understudy_protocol::wire::record::Record;

use super::ReadError;

#[derive(Debug, Default)]
pub(super) struct Content {
    promises: SlotMap<Epoch>,
    child_promises: BTreeMap<ChildId, Epoch>,
    chains: BTreeMap<ChildId, BTreeMap<Seq, Record>>,
    damaged: BTreeSet<ChildId>,
    cut: CutMark,
}

impl Content {
    pub(super) fn apply(&mut self, write: Write) {
        match write {
            Write::Promise { range, epoch } => {
                self.promises.update(range, |promise| (*promise).max(epoch));
            }
            Write::ChildPromise { child, epoch } => {
                self.child_promises.insert(child, epoch);
            }
            Write::Truncate { child, after } => {
                let chain = self.chains.entry(child).or_default();
                chain.retain(|seq, _| *seq <= after);
            }
            Write::Prune { child, from } => {
                let chain = self.chains.entry(child).or_default();
                chain.retain(|seq, _| *seq >= from);
            }
            Write::Drop { child } => {
                self.chains.remove(&child);
            }
            Write::Put(record) => {
                let chain = self.chains.entry(record.child.clone()).or_default();
                chain.insert(record.seq, record);
            }
            Write::Damaged { child, damaged } => {
                if damaged {
                    self.damaged.insert(child);
                } else {
                    self.damaged.remove(&child);
                }
            }
            Write::Cut(mark) => self.cut = mark,
        }
    }

    pub(super) fn read(&self, child: &ChildId, after: Seq) -> Result<Vec<Record>, ReadError> {
        let chain = self.chains.get(child);
        let records = || {
            chain
                .into_iter()
                .flat_map(|chain| chain.range(after.next()..).map(|(_, record)| record))
        };
        let fit = records_that_fit(records());
        if let Some(broken) = records().take(fit).find(|record| !record.is_intact()) {
            return Err(ReadError::Damaged { at: broken.seq });
        }
        Ok(records().take(fit).cloned().collect())
    }

    pub(super) fn open(&mut self) -> Opened {
        self.drop_damaged();
        let promises = self.promises.iter(SlotRange::ALL);
        let heads = |child| {
            let chain = self.chains.get(child);
            let records = chain.into_iter().flat_map(BTreeMap::values);
            records.map(Record::head).collect::<Vec<_>>()
        };
        let named: BTreeSet<&ChildId> = self.chains.keys().chain(&self.damaged).collect();
        let chains = named.into_iter().map(|child| OpenedChain {
            child: child.clone(),
            heads: heads(child),
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

    pub(super) fn damage(&mut self, child: &ChildId, at: Seq) {
        let chain = self.chains.get_mut(child);
        if let Some(record) = chain.and_then(|chain| chain.get_mut(&at)) {
            record.checksum ^= 1;
        }
    }

    pub(super) fn tear(&mut self) {
        self.cut = CutMark {
            slots: vec![SlotRange::ALL],
            dedicated: true,
            ..CutMark::default()
        };
    }

    /// What stands from a damaged record on is lost, and remembered as lost.
    fn drop_damaged(&mut self) {
        for (child, chain) in &mut self.chains {
            let broken = chain.values().find(|record| !record.is_intact());
            if let Some(at) = broken.map(|record| record.seq) {
                chain.retain(|seq, _| *seq < at);
                self.damaged.insert(child.clone());
            }
        }
    }
}
