//! The store's side of replication: promise, append, flush, answer.
//!
//! Owns: rule R1 (one promise a slot and an excepted child; chains; truncation of a tail that
//! disagrees) and what R3 and R8 need to know of a store that was damaged. Never judges who may own
//! a unit: it knows epochs, not owners.
//!
//! The machine keeps the heads of every chain in memory and no bodies; the shell writes, reads and
//! flushes. Writes are flushed in the order in which they were asked for, and an answer leaves when
//! everything it rests on is flushed.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use minicbor::{Decode, Encode};

use super::slots::SlotMap;
use crate::id::{ChildId, Epoch, IncarnationId, NodeId, Seq, SlotRange, StoreId, UnitId};
use crate::machine::Machine;
use crate::rules::{Rule, keeps};
use crate::time::Time;
use crate::wire::record::{Head, Record};
use crate::wire::replica::{
    Append, Ask, CHAIN_RECORDS_MAX, INDEX_PAGE, Indexed, ReplicaAnswer, ReplicaRequest, Said, Scope,
};

/// One open store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Replica {
    store: StoreId,
    session: IncarnationId,
    /// The promise of every slot.
    promises: SlotMap<Epoch>,
    /// Excepted children have a promise of their own (S1).
    child_promises: BTreeMap<ChildId, Epoch>,
    /// Scopes sealed since the store was opened: older requests are not for this session.
    sealed_slots: SlotMap<Epoch>,
    sealed_children: BTreeMap<ChildId, Epoch>,
    chains: BTreeMap<ChildId, Chain>,
    cut: Cut,
    /// Answers that wait for a flush, by its ticket.
    waiting: BTreeMap<u64, Vec<Answer>>,
    next_ticket: u64,
    /// Every ticket below this one is flushed.
    flushed: u64,
    reads: BTreeMap<u64, Reading>,
    next_read: u64,
    actions: VecDeque<Action>,
}

/// What a store held when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Opened {
    /// Promises of slots.
    #[n(0)]
    pub promises: Vec<(SlotRange, Epoch)>,
    /// Promises of excepted children.
    #[n(1)]
    pub child_promises: Vec<(ChildId, Epoch)>,
    /// Every child's chain.
    #[n(2)]
    pub chains: Vec<OpenedChain>,
    /// The store lost its last write or part of it, now or at an earlier opening since which nobody
    /// has confirmed these slots. It may have been torn, or flushed and damaged: nobody can tell (R8).
    #[n(3)]
    pub cut: CutMark,
}

/// Which part of a store was cut and not confirmed since.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Encode, Decode)]
pub struct CutMark {
    /// Slots.
    #[n(0)]
    pub slots: Vec<SlotRange>,
    /// Excepted children whose slots are confirmed for the others.
    #[n(1)]
    pub children: BTreeSet<ChildId>,
    /// Excepted children that are confirmed though their slots are not, and dedicated ones that are
    /// though `dedicated` says otherwise of the rest.
    #[n(2)]
    pub confirmed: BTreeSet<ChildId>,
    /// Every dedicated child but the confirmed ones: one whose only record was lost is not even known
    /// by name.
    #[n(3)]
    pub dedicated: bool,
}

/// One chain as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct OpenedChain {
    /// Whose.
    #[n(0)]
    pub child: ChildId,
    /// The intact records from the oldest kept one on.
    #[n(1)]
    pub heads: Vec<Head>,
    /// A damaged record stands after them, with others behind it.
    #[n(2)]
    pub damaged: bool,
}

/// What may happen to a store. Numbered for the event log: see [`crate::journal`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Event {
    /// An owner asks.
    #[n(0)]
    Asked {
        /// The owner's node.
        #[n(0)]
        from: NodeId,
        /// What it asks.
        #[n(1)]
        request: ReplicaRequest,
    },
    /// A write is flushed, and every write before it.
    #[n(1)]
    Flushed {
        /// Its ticket.
        #[n(0)]
        ticket: u64,
    },
    /// Records were read.
    #[n(2)]
    Read {
        /// The read's number.
        #[n(0)]
        read: u64,
        /// What was found, in order; intact.
        #[n(1)]
        records: Vec<Record>,
    },
    /// A record of this child is damaged: found by a read or by the scrubber.
    #[n(3)]
    Damage {
        /// Whose.
        #[n(0)]
        child: ChildId,
        /// The first damaged record.
        #[n(1)]
        at: Seq,
    },
}

/// What a store wants done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Write these as one, after every earlier write; flush; then say [`Event::Flushed`].
    Write {
        /// Names the write.
        ticket: u64,
        /// What to write, in order.
        batch: Vec<Write>,
    },
    /// Read the child's records after `after`: as many as
    /// [`records_that_fit`](crate::wire::codec::records_that_fit) one answer.
    Read {
        /// Names the read.
        read: u64,
        /// Whose.
        child: ChildId,
        /// The last record not wanted.
        after: Seq,
    },
    /// Send an answer.
    Answer {
        /// The owner's node.
        to: NodeId,
        /// What to send.
        answer: ReplicaAnswer,
    },
}

/// One change of the store's content.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the fields are named for what they hold
pub enum Write {
    /// The slots' promise.
    Promise { range: SlotRange, epoch: Epoch },
    /// An excepted child's promise.
    ChildPromise { child: ChildId, epoch: Epoch },
    /// The child's records after `after` are gone.
    Truncate { child: ChildId, after: Seq },
    /// The child's records before `from` are gone.
    Prune { child: ChildId, from: Seq },
    /// All the child's records are gone.
    Drop { child: ChildId },
    /// A record is appended to its child's chain.
    Put(Record),
    /// The child's chain is damaged after its last intact record, or whole again.
    Damaged { child: ChildId, damaged: bool },
    /// What of the cut is not confirmed yet.
    Cut(CutMark),
}

/// Why an event was refused. Nothing has changed, in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The records are not intact, not of the child, or not a chain.
    #[error("the records are not an intact chain")]
    BadChain,
    /// There is no such ticket or read.
    #[error("there is no such write or read")]
    Unknown,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Chain {
    /// From the oldest kept record on.
    heads: VecDeque<Head>,
    /// Something after them was lost.
    damaged: bool,
    /// Up to where an owner may believe that it stood here when damage was found in this session: a
    /// confirmation that was under way then means nothing before it stands again.
    lost: Seq,
    /// In this session it was found to agree with the owner of this epoch up to here: nothing older
    /// of that owner may replace it.
    agreed: Option<(Epoch, Seq)>,
    /// Who sealed or wrote last, to be told of damage.
    owner: Option<(NodeId, UnitId, Epoch)>,
}

/// What the store lost when it was opened and nobody has confirmed yet (R8).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Cut {
    dedicated: bool,
    slots: SlotMap<bool>,
    children: BTreeSet<ChildId>,
    confirmed: BTreeSet<ChildId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Answer {
    to: NodeId,
    unit: UnitId,
    epoch: Epoch,
    said: Said,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Reading {
    to: NodeId,
    unit: UnitId,
    epoch: Epoch,
    child: ChildId,
    after: Seq,
}

impl Replica {
    /// A store that was just opened by this start of its node.
    pub fn open(store: StoreId, session: IncarnationId, opened: Opened) -> Replica {
        let mut replica = Replica {
            store,
            session,
            promises: SlotMap::default(),
            child_promises: opened.child_promises.into_iter().collect(),
            sealed_slots: SlotMap::default(),
            sealed_children: BTreeMap::new(),
            chains: BTreeMap::new(),
            cut: Cut {
                dedicated: opened.cut.dedicated,
                slots: SlotMap::default(),
                children: opened.cut.children,
                confirmed: opened.cut.confirmed,
            },
            waiting: BTreeMap::new(),
            next_ticket: 1,
            flushed: 1,
            reads: BTreeMap::new(),
            next_read: 1,
            actions: VecDeque::new(),
        };
        for (range, epoch) in opened.promises {
            replica.promises.set(range, epoch);
        }
        for range in opened.cut.slots {
            replica.cut.slots.set(range, true);
        }
        for OpenedChain {
            child,
            heads,
            damaged,
        } in opened.chains
        {
            replica.chains.insert(
                child,
                Chain {
                    heads: heads.into(),
                    damaged,
                    ..Chain::default()
                },
            );
        }
        replica
    }

    /// Whose store this is.
    pub fn store(&self) -> StoreId {
        self.store
    }

    /// Where the child's chain ends, flushed or not.
    pub fn tail(&self, child: &ChildId) -> Head {
        self.chains.get(child).map_or(Head::NONE, Chain::tail)
    }

    /// Whether the whole scope may count in a takeover by itself: neither cut nor damaged (R3, R8).
    pub fn is_whole(&self, scope: &Scope) -> bool {
        !self.is_cut(scope) && self.in_scope(scope, None).all(|(_, chain)| !chain.damaged)
    }

    fn on_asked(&mut self, from: NodeId, request: ReplicaRequest) -> Result<(), Refused> {
        let ReplicaRequest {
            unit,
            epoch,
            session,
            ask,
            ..
        } = request;
        let answer = |said| Answer {
            to: from,
            unit,
            epoch,
            said,
        };
        let this_session = session == Some(self.session);
        match ask {
            Ask::Seal { scope, after } => {
                let said = self.seal((from, unit, epoch), &scope, after);
                match said {
                    Ok((batch, sealed)) => self.write_then(batch, answer(sealed)),
                    Err(promised) => self.answer_now(answer(promised)),
                }
            }
            _ if !this_session => self.answer_now(answer(Said::Unsealed)),
            Ask::Append(append) => {
                if let Err(said) = self.admits(&append.child, epoch) {
                    self.answer_now(answer(said));
                } else {
                    self.append(from, unit, epoch, append)?;
                }
            }
            Ask::Fetch { child, after } => {
                if let Err(said) = self.admits(&child, epoch) {
                    self.answer_now(answer(said));
                } else {
                    self.fetch(Reading {
                        to: from,
                        unit,
                        epoch,
                        child,
                        after,
                    });
                }
            }
            Ask::Confirm { scope } => match self.admits_scope(&scope, epoch) {
                Err(said) => self.answer_now(answer(said)),
                Ok(()) => self.confirm(answer(Said::Confirmed), &scope),
            },
        }
        Ok(())
    }

    /// Raises the promise and lists the heads (T1). R1: the promise is flushed before it is answered;
    /// so is every head of the page.
    fn seal(
        &mut self,
        owner: (NodeId, UnitId, Epoch),
        scope: &Scope,
        after: Option<ChildId>,
    ) -> Result<(Vec<Write>, Said), Said> {
        let (.., epoch) = owner;
        let promised = self.highest_promise(scope);
        // R1: never below a promise.
        if epoch < promised && keeps(Rule::R1) {
            return Err(Said::Promised(promised));
        }
        let batch = self.promise(scope, epoch);
        let mut page = Vec::new();
        let mut more = false;
        for (child, chain) in self.in_scope(scope, after.as_ref()) {
            if page.len() == INDEX_PAGE {
                more = true;
                break;
            }
            page.push(Indexed {
                child: child.clone(),
                tail: chain.tail(),
                damaged: chain.damaged,
            });
        }
        for Indexed { child, .. } in &page {
            self.chains
                .entry(child.clone())
                .and_modify(|chain| chain.owner = Some(owner));
        }
        let cut = self.is_cut(scope);
        let sealed = Said::Sealed {
            after,
            page,
            more,
            cut,
        };
        Ok((batch, sealed))
    }

    fn promise(&mut self, scope: &Scope, epoch: Epoch) -> Vec<Write> {
        let mut batch = Vec::new();
        match scope {
            Scope::Slots { range, except } => {
                // S1: an excepted child keeps the promise it had before its shard's goes on.
                for child in except {
                    if !self.child_promises.contains_key(child) {
                        let kept = *self.promises.get(child.slot());
                        self.child_promises.insert(child.clone(), kept);
                        batch.push(Write::ChildPromise {
                            child: child.clone(),
                            epoch: kept,
                        });
                    }
                }
                if self
                    .promises
                    .iter(*range)
                    .any(|(_, promise)| *promise < epoch)
                {
                    self.promises
                        .update(*range, |promise| (*promise).max(epoch));
                    batch.push(Write::Promise {
                        range: *range,
                        epoch,
                    });
                }
                self.sealed_slots
                    .update(*range, |sealed| (*sealed).max(epoch));
            }
            Scope::Child(child) => {
                if self
                    .child_promises
                    .get(child)
                    .is_none_or(|promise| *promise < epoch)
                {
                    self.child_promises.insert(child.clone(), epoch);
                    batch.push(Write::ChildPromise {
                        child: child.clone(),
                        epoch,
                    });
                }
                self.sealed_children.insert(child.clone(), epoch);
            }
        }
        batch
    }

    fn append(
        &mut self,
        from: NodeId,
        unit: UnitId,
        epoch: Epoch,
        append: Append,
    ) -> Result<(), Refused> {
        if !is_chain(&append) {
            return Err(Refused::BadChain);
        }
        let child = append.child.clone();
        let chain = self.chains.entry(child.clone()).or_default();
        chain.owner = Some((from, unit, epoch));
        let upto = append.records.last().map_or(append.prev, Record::head);
        let (batch, agrees) = chain.merge(epoch, append);
        let said = if agrees {
            Said::Appended { child, upto }
        } else if chain.damaged {
            Said::Damaged { child }
        } else {
            let tail = chain.tail();
            Said::Mismatch { child, tail }
        };
        let answer = Answer {
            to: from,
            unit,
            epoch,
            said,
        };
        self.write_then(batch, answer);
        Ok(())
    }

    fn fetch(&mut self, reading: Reading) {
        if self.reads.len() == READS_MAX {
            // The oldest reader has waited longest and has asked again by now.
            self.reads.pop_first();
        }
        let read = self.next_read;
        self.next_read += 1;
        let (child, after) = (reading.child.clone(), reading.after);
        self.reads.insert(read, reading);
        self.actions.push_back(Action::Read { read, child, after });
    }

    fn on_read(&mut self, read: u64, records: Vec<Record>) -> Result<(), Refused> {
        let Reading {
            to,
            unit,
            epoch,
            child,
            after,
        } = self.reads.remove(&read).ok_or(Refused::Unknown)?;
        let said = match self.admits(&child, epoch) {
            Ok(()) => Said::Fetched {
                child,
                after,
                records,
            },
            Err(said) => said,
        };
        self.answer_now(Answer {
            to,
            unit,
            epoch,
            said,
        });
        Ok(())
    }

    /// The owner has found everything in the scope in agreement with its own.
    fn confirm(&mut self, answer: Answer, scope: &Scope) {
        let mut chains = self.in_scope(scope, None);
        let unmended = chains.find(|(_, chain)| chain.tail().seq < chain.lost);
        let unmended = unmended.map(|(child, _)| child.clone());
        drop(chains);
        if let Some(child) = unmended {
            // It was found damaged while the confirmation was under way.
            let said = Said::Damaged { child };
            return self.answer_now(Answer { said, ..answer });
        }
        let mut batch = Vec::new();
        if self.is_cut(scope) {
            self.cut.confirm(scope);
            batch.push(Write::Cut(self.cut.mark()));
        }
        let damaged: Vec<ChildId> = self
            .in_scope(scope, None)
            .filter(|(_, chain)| chain.damaged)
            .map(|(child, _)| child.clone())
            .collect();
        for child in damaged {
            self.chains
                .entry(child.clone())
                .and_modify(|chain| (chain.damaged, chain.lost) = (false, Seq::ZERO));
            batch.push(Write::Damaged {
                child,
                damaged: false,
            });
        }
        self.write_then(batch, answer);
    }

    fn on_damage(&mut self, child: &ChildId, at: Seq) {
        let promised = self.promise_of(child);
        let Some(chain) = self.chains.get_mut(child) else {
            return;
        };
        if !chain.heads.iter().any(|head| head.seq == at) {
            return;
        }
        let stood = match chain.agreed {
            Some((epoch, upto)) if epoch == promised => upto,
            _ => chain.tail().seq,
        };
        chain.lost = chain.lost.max(stood);
        while chain.heads.back().is_some_and(|head| head.seq >= at) {
            chain.heads.pop_back();
        }
        chain.damaged = true;
        let before = chain.tail().seq;
        chain.agreed = chain.agreed.map(|(epoch, upto)| (epoch, upto.min(before)));
        let owner = chain.owner;
        for answers in self.waiting.values_mut() {
            answers.retain(|answer| {
                !matches!(&answer.said, Said::Appended { child: of, upto } if of == child && upto.seq >= at)
            });
        }
        let (after, damaged) = (Seq(at.0.saturating_sub(1)), true);
        self.write(alloc::vec![
            Write::Truncate {
                child: child.clone(),
                after
            },
            Write::Damaged {
                child: child.clone(),
                damaged
            },
        ]);
        if let Some((to, unit, epoch)) = owner {
            self.answer_now(Answer {
                to,
                unit,
                epoch,
                said: Said::Damaged {
                    child: child.clone(),
                },
            });
        }
    }

    /// Whether a request of `epoch` may touch the child: at the promise exactly, and sealed in this
    /// session (R1).
    fn admits(&self, child: &ChildId, epoch: Epoch) -> Result<(), Said> {
        let own = self.child_promises.get(child);
        let promised = self.promise_of(child);
        if epoch < promised && keeps(Rule::R1) {
            return Err(Said::Promised(promised));
        }
        let sealed = match own {
            Some(_) => self
                .sealed_children
                .get(child)
                .copied()
                .unwrap_or(Epoch::ZERO),
            None if child.is_dedicated() => Epoch::ZERO,
            None => *self.sealed_slots.get(child.slot()),
        };
        if sealed < epoch {
            Err(Said::Unsealed)
        } else {
            Ok(())
        }
    }

    fn admits_scope(&self, scope: &Scope, epoch: Epoch) -> Result<(), Said> {
        let promised = self.highest_promise(scope);
        if epoch < promised && keeps(Rule::R1) {
            return Err(Said::Promised(promised));
        }
        let sealed = match scope {
            Scope::Slots { range, .. } => self
                .sealed_slots
                .iter(*range)
                .all(|(_, sealed)| *sealed >= epoch),
            Scope::Child(child) => self
                .sealed_children
                .get(child)
                .is_some_and(|sealed| *sealed >= epoch),
        };
        if sealed { Ok(()) } else { Err(Said::Unsealed) }
    }

    /// The promise that governs a child: its own, or its slot's. A dedicated child has no slot.
    fn promise_of(&self, child: &ChildId) -> Epoch {
        let slot = || {
            if child.is_dedicated() {
                Epoch::ZERO
            } else {
                *self.promises.get(child.slot())
            }
        };
        self.child_promises.get(child).copied().unwrap_or_else(slot)
    }

    fn highest_promise(&self, scope: &Scope) -> Epoch {
        match scope {
            Scope::Slots { range, .. } => {
                let slots = self.promises.iter(*range).map(|(_, promise)| *promise);
                // A child that has a promise of its own and that the asker does not except was
                // excepted after the asker's grant.
                let own = self
                    .child_promises
                    .iter()
                    .filter(|(child, _)| scope.holds(child));
                slots
                    .chain(own.map(|(_, promise)| *promise))
                    .max()
                    .unwrap_or(Epoch::ZERO)
            }
            Scope::Child(child) => self.promise_of(child),
        }
    }

    fn in_scope<'a>(
        &'a self,
        scope: &'a Scope,
        after: Option<&'a ChildId>,
    ) -> impl Iterator<Item = (&'a ChildId, &'a Chain)> {
        use core::ops::Bound;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let chains = self.chains.range::<ChildId, _>((from, Bound::Unbounded));
        chains.filter(|(child, chain)| {
            scope.holds(child) && (!chain.heads.is_empty() || chain.damaged)
        })
    }

    fn is_cut(&self, scope: &Scope) -> bool {
        match scope {
            Scope::Slots { range, .. } => self.cut.slots.iter(*range).any(|(_, cut)| *cut),
            Scope::Child(child) => {
                let around = if child.is_dedicated() {
                    self.cut.dedicated
                } else {
                    *self.cut.slots.get(child.slot())
                };
                self.cut.children.contains(child) || (around && !self.cut.confirmed.contains(child))
            }
        }
    }

    fn write(&mut self, batch: Vec<Write>) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.actions.push_back(Action::Write { ticket, batch });
        ticket
    }

    /// Answers once `batch`, and everything written before it, is flushed.
    fn write_then(&mut self, batch: Vec<Write>, answer: Answer) {
        let ticket = if batch.is_empty() {
            self.next_ticket - 1
        } else {
            self.write(batch)
        };
        if ticket < self.flushed {
            self.answer_now(answer);
        } else {
            self.waiting.entry(ticket).or_default().push(answer);
        }
    }

    fn on_flushed(&mut self, ticket: u64) -> Result<(), Refused> {
        if ticket >= self.next_ticket {
            return Err(Refused::Unknown);
        }
        self.flushed = self.flushed.max(ticket + 1);
        let later = self.waiting.split_off(&(ticket + 1));
        for answer in core::mem::replace(&mut self.waiting, later)
            .into_values()
            .flatten()
        {
            self.answer_now(answer);
        }
        Ok(())
    }

    fn answer_now(&mut self, answer: Answer) {
        let Answer {
            to,
            unit,
            epoch,
            said,
        } = answer;
        let answer = ReplicaAnswer {
            store: self.store,
            unit,
            epoch,
            session: self.session,
            said,
        };
        self.actions.push_back(Action::Answer { to, answer });
    }
}

impl Cut {
    fn confirm(&mut self, scope: &Scope) {
        match scope {
            Scope::Slots { range, except } => {
                // What the shard's owner confirms says nothing of the children it excepts.
                let unsure = except.iter().filter(|child| {
                    *self.slots.get(child.slot()) && !self.confirmed.contains(*child)
                });
                self.children.extend(unsure.cloned());
                self.slots.set(*range, false);
            }
            Scope::Child(child) => {
                self.children.remove(child);
                self.confirmed.insert(child.clone());
            }
        }
        let slots = &self.slots;
        self.confirmed
            .retain(|child| child.is_dedicated() || *slots.get(child.slot()));
    }

    fn mark(&self) -> CutMark {
        let cut = self.slots.iter(SlotRange::ALL).filter(|(_, cut)| **cut);
        CutMark {
            slots: cut.map(|(range, _)| range).collect(),
            children: self.children.clone(),
            confirmed: self.confirmed.clone(),
            dedicated: self.dedicated,
        }
    }
}

impl Chain {
    fn tail(&self) -> Head {
        self.heads.back().copied().unwrap_or(Head::NONE)
    }

    /// Makes the chain agree with the owner's: the writes that this takes, and whether it does now.
    /// When not, the records do not connect, and the owner must begin at its base.
    fn merge(&mut self, epoch: Epoch, append: Append) -> (Vec<Write>, bool) {
        let Append {
            child,
            prev,
            from_base,
            mut records,
            adopted,
            keep_from,
        } = append;
        let last = records.last().map_or(prev, Record::head);
        match self.agreed {
            Some((of, upto)) if of == epoch && last.seq <= upto => return (Vec::new(), true),
            Some((of, _)) if of == epoch => {}
            // The owner's first: nobody believes in what lay beyond its tail.
            _ => self.lost = self.lost.min(adopted),
        }
        let mut batch = Vec::new();
        // What was pruned here was acknowledged, so the owner has it too; unless all of this chain is
        // an odd tail.
        let base = self.heads.front().copied();
        let base =
            base.filter(|base| base.seq > Seq(1) && (base.seq <= adopted || base.epoch >= epoch));
        let pruned = |seq: Seq| base.is_some_and(|base| seq < base.seq);
        if pruned(last.seq) {
            return (batch, true);
        }
        let mut at = match self.position(prev) {
            Some(after) if !from_base => after,
            _ => {
                // Go on from the first record that was not pruned here, if it stands here too.
                let skipped = records
                    .iter()
                    .take_while(|record| pruned(record.seq))
                    .count();
                let first = records.get(skipped).map(Record::head);
                let parts = first.is_some_and(|first| {
                    base.is_some_and(|base| first.seq == base.seq && first != base)
                });
                match first.and_then(|first| self.position(first)) {
                    Some(after) => {
                        records.drain(..=skipped);
                        after
                    }
                    None if from_base => {
                        self.clear(&child, &mut batch);
                        0
                    }
                    None if parts => {
                        // It parts from the owner's below its base: nothing of it is right.
                        self.clear(&child, &mut batch);
                        return (batch, false);
                    }
                    None => return (batch, false),
                }
            }
        };
        for record in records {
            let head = record.head();
            if self.heads.get(at) != Some(&head) {
                self.truncate(&child, at, &mut batch);
                self.heads.push_back(head);
                batch.push(Write::Put(record));
            }
            at += 1;
        }
        // R1: what an earlier owner wrote beyond what this one took over was never acknowledged.
        if self
            .heads
            .get(at)
            .is_some_and(|head| head.seq > adopted && head.epoch < epoch)
        {
            self.truncate(&child, at, &mut batch);
        }
        self.agreed = Some((epoch, last.seq));
        self.prune(&child, keep_from, &mut batch);
        (batch, true)
    }

    fn clear(&mut self, child: &ChildId, batch: &mut Vec<Write>) {
        if !self.heads.is_empty() {
            self.heads.clear();
            let child = child.clone();
            batch.push(Write::Drop { child });
        }
    }

    /// How many records stand up to and with this one; `None` when it does not stand here.
    fn position(&self, head: Head) -> Option<usize> {
        if head == Head::NONE {
            let from_first = self.heads.front().is_none_or(|first| first.seq == Seq(1));
            return from_first.then_some(0);
        }
        let first = self.heads.front()?.seq;
        let place = usize::try_from(head.seq.0.checked_sub(first.0)?).ok()?;
        (self.heads.get(place) == Some(&head)).then_some(place + 1)
    }

    fn truncate(&mut self, child: &ChildId, keep: usize, batch: &mut Vec<Write>) {
        if keep >= self.heads.len() {
            return;
        }
        let after = Seq(self.heads[keep].seq.0 - 1);
        self.heads.truncate(keep);
        batch.push(Write::Truncate {
            child: child.clone(),
            after,
        });
    }

    fn prune(&mut self, child: &ChildId, from: Seq, batch: &mut Vec<Write>) {
        let stands = self.heads.iter().any(|head| head.seq == from);
        if stands && self.heads.front().is_some_and(|first| first.seq < from) {
            self.heads.retain(|head| head.seq >= from);
            batch.push(Write::Prune {
                child: child.clone(),
                from,
            });
        }
    }
}

/// Whether the records are intact, the child's, and each follows the one before.
fn is_chain(append: &Append) -> bool {
    let mut prev = append.prev;
    append.records.len() <= CHAIN_RECORDS_MAX
        && append.records.iter().enumerate().all(|(nth, record)| {
            let follows = record.prev == prev || (nth == 0 && append.from_base);
            prev = record.head();
            follows && record.child == append.child && record.is_intact()
        })
}

impl Machine for Replica {
    type Event = Event;
    type Action = Action;
    type Error = Refused;

    fn handle(&mut self, _: Time, event: Event) -> Result<(), Refused> {
        match event {
            Event::Asked { from, request } => self.on_asked(from, request),
            Event::Flushed { ticket } => self.on_flushed(ticket),
            Event::Read { read, records } => self.on_read(read, records),
            Event::Damage { child, at } => {
                self.on_damage(&child, at);
                Ok(())
            }
        }
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// A store waits for no clock: it only answers.
    fn next_deadline(&self) -> Option<Time> {
        None
    }
}

/// Reads under way: an owner asks again when its answer is late, so more would only repeat.
const READS_MAX: usize = 1_024;
