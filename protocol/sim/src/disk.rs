//! A node's disk: what was flushed stays, what was not may be lost or torn.
//!
//! Owns: the content that a restart sees, the queues of writes under way, and damage. Never answers a
//! machine: the node does, when the disk is done.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use understudy_protocol::cluster::directory::Entry;
use understudy_protocol::cluster::replication::{CutMark, Opened, OpenedChain, SlotMap, Write};
use understudy_protocol::id::{ChildId, Epoch, Seq, SlotRange};
use understudy_protocol::wire::content::PieceName;
use understudy_protocol::wire::heart::Ttl;
use understudy_protocol::wire::record::Record;

use crate::raft;

/// One disk: the Raft log, the records and the heart's one number, each in a file of its own.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// What Raft has flushed.
    pub raft: raft::Persisted<Entry>,
    /// What the store has flushed.
    pub store: Content,
    /// What the store keeps beside its records, by name.
    pub pieces: BTreeMap<PieceName, Bytes>,
    /// The longest TTL ever flushed as a limit (rule L3).
    pub limit: Ttl0,
    /// Raft's writes, oldest first.
    pub raft_queue: VecDeque<(u64, raft::Write<Entry>)>,
    /// The store's writes, oldest first.
    pub store_queue: VecDeque<(u64, Vec<Write>)>,
    /// How many of each queue the flush under way covers; none when none is under way.
    pub raft_flushing: Option<usize>,
    /// As above, for the store.
    pub store_flushing: Option<usize>,
}

/// A TTL that is zero on a new disk.
#[derive(Clone, Copy, Debug)]
pub struct Ttl0(pub Ttl);

impl Default for Ttl0 {
    fn default() -> Ttl0 {
        Ttl0(Ttl::from_millis(0))
    }
}

/// What a store holds, flushed.
#[derive(Clone, Debug, Default)]
pub struct Content {
    promises: SlotMap<Epoch>,
    child_promises: BTreeMap<ChildId, Epoch>,
    chains: BTreeMap<ChildId, Vec<Record>>,
    damaged: BTreeSet<ChildId>,
    cut: CutMark,
}

impl Content {
    /// Applies one flushed write.
    pub fn apply(&mut self, write: Write) {
        match write {
            Write::Promise { range, epoch } => {
                self.promises.update(range, |promise| (*promise).max(epoch));
            }
            Write::ChildPromise { child, epoch } => {
                self.child_promises.insert(child, epoch);
            }
            Write::Truncate { child, after } => {
                if let Some(chain) = self.chains.get_mut(&child) {
                    chain.retain(|record| record.seq <= after);
                }
            }
            Write::Prune { child, from } => {
                if let Some(chain) = self.chains.get_mut(&child) {
                    chain.retain(|record| record.seq >= from);
                }
            }
            Write::Drop { child } => {
                self.chains.remove(&child);
            }
            Write::Put(record) => self
                .chains
                .entry(record.child.clone())
                .or_default()
                .push(record),
            Write::Damaged {
                child,
                damaged: true,
            } => {
                self.damaged.insert(child);
            }
            Write::Damaged {
                child,
                damaged: false,
            } => {
                self.damaged.remove(&child);
            }
            Write::Cut(mark) => self.cut = mark,
        }
    }

    /// A child's records.
    pub fn chain(&self, child: &ChildId) -> &[Record] {
        self.chains.get(child).map_or(&[], Vec::as_slice)
    }

    /// Every child with records.
    pub fn children(&self) -> impl Iterator<Item = &ChildId> {
        self.chains
            .iter()
            .filter(|(_, chain)| !chain.is_empty())
            .map(|(child, _)| child)
    }

    /// The records that a reader after `after` gets.
    pub fn read(&self, child: &ChildId, after: Seq, most: usize) -> Vec<Record> {
        self.chain(child)
            .iter()
            .filter(|record| record.seq > after)
            .take(most)
            .cloned()
            .collect()
    }

    /// Whether the store knows that it may lack records of this child.
    pub fn admits_loss(&self, child: &ChildId) -> bool {
        let around = if child.is_dedicated() {
            self.cut.dedicated
        } else {
            self.cut
                .slots
                .iter()
                .any(|range| range.contains(child.slot()))
        };
        self.damaged.contains(child)
            || self.cut.children.contains(child)
            || (around && !self.cut.confirmed.contains(child))
    }

    /// Whether the store knows of any loss.
    pub fn is_hurt(&self) -> bool {
        !self.cut.slots.is_empty() || self.chains.keys().any(|child| self.admits_loss(child))
    }

    /// The last write was torn, or looks so.
    pub fn tear(&mut self) {
        self.cut = CutMark {
            slots: vec![SlotRange::ALL],
            dedicated: true,
            ..CutMark::default()
        };
    }

    /// The last record of a child is unreadable: it looks torn, and is gone.
    pub fn lose_last(&mut self, child: &ChildId) {
        if let Some(chain) = self.chains.get_mut(child) {
            chain.pop();
        }
        self.tear();
    }

    /// What opening the store finds.
    pub fn open(&self) -> Opened {
        let promises = self
            .promises
            .iter(SlotRange::ALL)
            .map(|(range, epoch)| (range, *epoch));
        let chain = |(child, records): (&ChildId, &Vec<Record>)| OpenedChain {
            child: child.clone(),
            heads: records.iter().map(Record::head).collect(),
            damaged: self.damaged.contains(child),
        };
        Opened {
            promises: promises.collect(),
            child_promises: self
                .child_promises
                .iter()
                .map(|(child, epoch)| (child.clone(), *epoch))
                .collect(),
            chains: self.chains.iter().map(chain).collect(),
            cut: self.cut.clone(),
        }
    }
}

impl Disk {
    /// The machine or the process stopped: of what was not flushed, a first part may have reached the
    /// platter (`kept` writes of the store), the rest is gone.
    pub fn crash(&mut self, kept: usize, torn: bool) {
        for (_, batch) in self.store_queue.drain(..).take(kept) {
            for write in batch {
                self.store.apply(write);
            }
        }
        if torn {
            self.store.tear();
        }
        self.store_queue.clear();
        self.raft_queue.clear();
        self.raft_flushing = None;
        self.store_flushing = None;
    }
}
