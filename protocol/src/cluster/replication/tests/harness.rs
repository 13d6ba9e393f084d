//! A store with a disk that a test flushes when it likes, and the short words of the other tests.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::vec::Vec;

use bytes::Bytes;

use super::super::*;
use crate::cluster::directory::Command;
use crate::id::{
    ChildId, ConfigVersion, Epoch, IncarnationId, NodeId, Seq, SlotRange, StoreId, UnitId,
};
use crate::machine::Machine;
use crate::time::Time;
use crate::wire::record::{Head, Record, RecordKind};
use crate::wire::replica::{Append, Ask, ReplicaAnswer, ReplicaRequest, Said, Scope};

pub(super) const OWNER: NodeId = NodeId(1);
pub(super) const UNIT: UnitId = UnitId(1);

/// What a store's disk holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    promises: SlotMap<Epoch>,
    child_promises: BTreeMap<ChildId, Epoch>,
    pub(super) chains: BTreeMap<ChildId, Vec<Record>>,
    damaged: BTreeSet<ChildId>,
    pub(super) cut: CutMark,
}

impl Disk {
    pub(super) fn apply(&mut self, write: Write) {
        match write {
            Write::Promise { range, epoch } => {
                self.promises.update(range, |old| (*old).max(epoch));
            }
            Write::ChildPromise { child, epoch } => {
                self.child_promises.insert(child, epoch);
            }
            Write::Truncate { child, after } => {
                self.chain(child).retain(|record| record.seq <= after);
            }
            Write::Prune { child, from } => self.chain(child).retain(|record| record.seq >= from),
            Write::Drop { child } => self.chain(child).clear(),
            Write::Put(record) => {
                let chain = self.chain(record.child.clone());
                let follows = chain.last().is_none_or(|last| last.head() == record.prev);
                assert!(follows, "{record:?} after {:?}", chain.last());
                chain.push(record);
            }
            Write::Damaged { child, damaged } => {
                self.damaged.remove(&child);
                if damaged {
                    self.damaged.insert(child);
                }
            }
            Write::Cut(cut) => self.cut = cut,
        }
    }

    fn chain(&mut self, child: ChildId) -> &mut Vec<Record> {
        self.chains.entry(child).or_default()
    }

    /// The last record's bytes are torn or damaged: nobody can tell (R8).
    pub(super) fn cut_last(&mut self, child: &ChildId) {
        self.chains.get_mut(child).unwrap().pop();
        self.cut = CutMark {
            slots: [SlotRange::ALL].into(),
            ..CutMark::default()
        };
    }

    /// The record at `at` is damaged.
    pub(super) fn damage(&mut self, child: &ChildId, at: u64) {
        self.chain(child.clone()).retain(|record| record.seq.0 < at);
        self.damaged.insert(child.clone());
    }

    pub(super) fn opened(&self) -> Opened {
        let promises = self.promises.iter(SlotRange::ALL);
        let chains = self.chains.iter().map(|(child, records)| OpenedChain {
            child: child.clone(),
            heads: records.iter().map(Record::head).collect(),
            damaged: self.damaged.contains(child),
        });
        let lost = self
            .damaged
            .iter()
            .filter(|child| !self.chains.contains_key(*child));
        let lost = lost.map(|child| OpenedChain {
            child: child.clone(),
            heads: Vec::new(),
            damaged: true,
        });
        Opened {
            promises: promises.map(|(range, epoch)| (range, *epoch)).collect(),
            child_promises: self
                .child_promises
                .iter()
                .map(|(child, epoch)| (child.clone(), *epoch))
                .collect(),
            chains: chains.chain(lost).collect(),
            cut: self.cut.clone(),
        }
    }
}

/// One store: its replica, what it has written, and what of that is flushed.
#[derive(Clone, Debug)]
pub(super) struct Store {
    pub(super) replica: Replica,
    pub(super) flushed: Disk,
    written: Disk,
    queue: VecDeque<(u64, Vec<Write>)>,
    session: IncarnationId,
}

impl Store {
    pub(super) fn new(id: StoreId) -> Store {
        let session = IncarnationId(id.0 * 100);
        Store {
            replica: Replica::open(id, session, Opened::default()),
            flushed: Disk::default(),
            written: Disk::default(),
            queue: VecDeque::new(),
            session,
        }
    }

    pub(super) fn session(&self) -> IncarnationId {
        self.session
    }

    /// Opens the store again: what was not flushed is gone.
    pub(super) fn restart(&mut self) {
        self.session = IncarnationId(self.session.0 + 1);
        self.queue.clear();
        self.written = self.flushed.clone();
        let opened = self.flushed.opened();
        self.replica = Replica::open(self.replica.store(), self.session, opened);
    }

    pub(super) fn handle(
        &mut self,
        event: ReplicaEvent,
    ) -> Result<Vec<ReplicaAnswer>, ReplicaRefused> {
        let before = self.replica.clone();
        let handled = self.replica.handle(Time::ZERO, event);
        if handled.is_err() {
            assert_eq!(self.replica, before, "a refused event changes nothing");
        }
        handled?;
        Ok(self.drain())
    }

    fn drain(&mut self) -> Vec<ReplicaAnswer> {
        let mut answers = Vec::new();
        while let Some(action) = self.replica.poll_action() {
            match action {
                ReplicaAction::Write { ticket, batch } => {
                    for write in &batch {
                        self.written.apply(write.clone());
                    }
                    self.queue.push_back((ticket, batch));
                }
                ReplicaAction::Read { read, child, after } => {
                    let chain = self.written.chains.get(&child);
                    let records = chain.into_iter().flatten();
                    let records = records.filter(|record| record.seq > after).cloned();
                    let records = records
                        .take(crate::wire::replica::CHAIN_RECORDS_MAX)
                        .collect();
                    self.replica
                        .handle(Time::ZERO, ReplicaEvent::Read { read, records })
                        .unwrap();
                }
                ReplicaAction::Answer { answer, .. } => answers.push(answer),
            }
        }
        answers
    }

    /// Whether a takeover would count it alone after a crash now (R8).
    pub(super) fn opened_whole(&self) -> bool {
        let opened = self.flushed.opened();
        let replica = Replica::open(self.replica.store(), self.session, opened);
        replica.is_whole(&all())
    }

    pub(super) fn flush_one(&mut self) -> Vec<ReplicaAnswer> {
        let Some((ticket, batch)) = self.queue.pop_front() else {
            return Vec::new();
        };
        for write in batch {
            self.flushed.apply(write);
        }
        self.handle(ReplicaEvent::Flushed { ticket }).unwrap()
    }

    pub(super) fn flush(&mut self) -> Vec<ReplicaAnswer> {
        let mut answers = Vec::new();
        while !self.queue.is_empty() {
            answers.extend(self.flush_one());
        }
        answers
    }

    /// The scrubber finds a damaged record.
    pub(super) fn damage(&mut self, child: &ChildId, at: u64) -> Vec<Said> {
        let child = child.clone();
        let found = self.handle(ReplicaEvent::Damage { child, at: Seq(at) });
        found
            .unwrap()
            .into_iter()
            .map(|answer| answer.said)
            .collect()
    }

    /// Asks, for this session; what is answered before anything more is flushed.
    pub(super) fn ask(&mut self, epoch: u64, ask: Ask) -> Vec<Said> {
        self.request(epoch, Some(self.session), ask)
    }

    pub(super) fn request(
        &mut self,
        epoch: u64,
        session: Option<IncarnationId>,
        ask: Ask,
    ) -> Vec<Said> {
        let request = ReplicaRequest {
            unit: UNIT,
            epoch: Epoch(epoch),
            config: ConfigVersion(1),
            session,
            ask,
        };
        let from = OWNER;
        let answers = self.handle(ReplicaEvent::Asked { from, request }).unwrap();
        answers.into_iter().map(|answer| answer.said).collect()
    }

    /// Asks, flushes, and gives the one answer.
    pub(super) fn asked(&mut self, epoch: u64, ask: Ask) -> Said {
        let mut said = self.ask(epoch, ask);
        said.extend(self.flush().into_iter().map(|answer| answer.said));
        assert_eq!(said.len(), 1, "{said:?}");
        said.remove(0)
    }

    pub(super) fn chain(&self, child: &ChildId) -> Vec<Record> {
        self.written.chains.get(child).cloned().unwrap_or_default()
    }
}

pub(super) fn child(name: &str) -> ChildId {
    ChildId::parse(&format!("t/k/{name}")).unwrap()
}

pub(super) fn dedicated(name: &str) -> ChildId {
    ChildId::parse(&format!("@t/k/{name}")).unwrap()
}

pub(super) fn all() -> Scope {
    except(&[])
}

pub(super) fn except(children: &[&str]) -> Scope {
    let mut except: Vec<ChildId> = children.iter().map(|name| child(name)).collect();
    except.sort();
    Scope::Slots {
        range: SlotRange::ALL,
        except,
    }
}

pub(super) fn only(name: &str) -> Scope {
    Scope::Child(child(name))
}

pub(super) fn seal(scope: Scope) -> Ask {
    Ask::Seal { scope, after: None }
}

/// A chain of `len` records that goes on after `chain`, by an owner of this epoch. The bodies tell
/// one owner's records from another's.
pub(super) fn more(chain: &[Record], child: &ChildId, epoch: u64, len: usize) -> Vec<Record> {
    let mut prev = chain.last().map_or(Head::NONE, Record::head);
    let mut records = chain.to_vec();
    for _ in 0..len {
        let record = record(child, epoch, prev, RecordKind::Delta);
        prev = record.head();
        records.push(record);
    }
    records
}

pub(super) fn record(child: &ChildId, epoch: u64, prev: Head, kind: RecordKind) -> Record {
    let body = Bytes::from(epoch.to_be_bytes().to_vec());
    let (epoch, config) = (Epoch(epoch), ConfigVersion(1));
    Record::chained(child.clone(), epoch, config, prev, kind, 0, body)
}

/// Appends `records` after `prev`, by an owner that took over at `adopted`.
pub(super) fn append(prev: Head, records: &[Record], adopted: u64) -> Ask {
    Ask::Append(Append {
        child: records
            .first()
            .map_or_else(|| child("a"), |record| record.child.clone()),
        prev,
        from_base: false,
        records: records.to_vec(),
        adopted: Seq(adopted),
        keep_from: Seq::ZERO,
    })
}

pub(super) fn from_base(records: &[Record], adopted: u64) -> Ask {
    Ask::Append(Append {
        child: records
            .first()
            .map_or_else(|| child("a"), |record| record.child.clone()),
        prev: records.first().map_or(Head::NONE, |record| record.prev),
        from_base: true,
        records: records.to_vec(),
        adopted: Seq(adopted),
        keep_from: Seq::ZERO,
    })
}

pub(super) fn keep_from(ask: Ask, keep_from: u64) -> Ask {
    match ask {
        Ask::Append(append) => Ask::Append(Append {
            keep_from: Seq(keep_from),
            ..append
        }),
        other => other,
    }
}

/// A message under way.
#[derive(Clone, Debug)]
pub(super) enum Message {
    Request {
        to: StoreId,
        request: ReplicaRequest,
    },
    Answer(ReplicaAnswer),
}

/// Stores, owners, and what is between them. Unless a test holds something back, a message takes a
/// millisecond, every write is flushed at once and every proposal is committed at once.
#[derive(Clone, Debug)]
pub(super) struct World {
    /// In milliseconds.
    pub(super) now: u64,
    pub(super) stores: BTreeMap<StoreId, Store>,
    /// In the order of their grants.
    pub(super) owners: Vec<Owner>,
    pub(super) net: Vec<Message>,
    /// Stores that nothing reaches and that answer nothing.
    pub(super) away: BTreeSet<StoreId>,
    /// Stores that do not flush.
    pub(super) unflushed: BTreeSet<StoreId>,
    pub(super) commits: bool,
    pub(super) proposals: Vec<Command>,
    /// What the directory says of the unit; its owner is the last of `owners`.
    pub(super) view: UnitView,
    /// Everything else that owners said, with the epoch of who said it.
    pub(super) said: Vec<(Epoch, OwnerAction)>,
    /// Records sent in appends.
    pub(super) sent: usize,
}

impl World {
    /// Stores `1..=stores`, the first `members` of them the unit's set; nobody owns it.
    pub(super) fn new(stores: u64, members: u64, min_copies: usize) -> World {
        let ids = (1..=stores).map(StoreId);
        World {
            now: 0,
            stores: ids.clone().map(|id| (id, Store::new(id))).collect(),
            owners: Vec::new(),
            net: Vec::new(),
            away: BTreeSet::new(),
            unflushed: BTreeSet::new(),
            commits: true,
            proposals: Vec::new(),
            view: UnitView {
                scope: all(),
                config: ConfigVersion(1),
                set: (1..=members).map(StoreId).collect(),
                min_copies,
                wanted: members as usize,
                candidates: ids.collect(),
                unreachable: BTreeSet::new(),
                move_to: None,
                serving: false,
            },
            said: Vec::new(),
            sent: 0,
        }
    }

    /// A world whose first owner serves and has loaded `a`.
    pub(super) fn serving(stores: u64, members: u64, min_copies: usize) -> World {
        let mut world = World::new(stores, members, min_copies);
        world.take_over();
        world.run(5);
        assert_eq!(world.owner().phase(), Phase::Serving);
        world.tell(OwnerEvent::Load(child("a"))).unwrap();
        world
    }

    /// Grants the unit to another node.
    pub(super) fn take_over(&mut self) {
        let epoch = self
            .owners
            .last()
            .map_or(Epoch(1), |owner| owner.claim().epoch.next());
        let config = OwnerConfig {
            unit: UNIT,
            epoch,
            incarnation: IncarnationId(epoch.0),
            home: StoreId(1),
        };
        self.view.serving = false;
        let now = self.time();
        self.owners.push(Owner::new(now, config, self.view.clone()));
        self.drain();
    }

    pub(super) fn time(&self) -> Time {
        Time::from_millis(self.now)
    }

    pub(super) fn owner(&self) -> &Owner {
        self.owners.last().unwrap()
    }

    pub(super) fn tell(&mut self, event: OwnerEvent) -> Result<(), OwnerRefused> {
        self.tell_nth(self.owners.len() - 1, event)
    }

    pub(super) fn tell_nth(&mut self, nth: usize, event: OwnerEvent) -> Result<(), OwnerRefused> {
        let now = self.time();
        let before = self.owners[nth].clone();
        let handled = self.owners[nth].handle(now, event);
        if handled.is_err() {
            assert_eq!(self.owners[nth], before, "a refused event changes nothing");
        }
        self.drain();
        handled
    }

    pub(super) fn write(&mut self, name: &str) -> Result<(), OwnerRefused> {
        self.write_kind(name, RecordKind::Delta)
    }

    pub(super) fn write_kind(&mut self, name: &str, kind: RecordKind) -> Result<(), OwnerRefused> {
        let epoch = self.owner().claim().epoch.0;
        let body = Bytes::from(epoch.to_be_bytes().to_vec());
        self.tell(OwnerEvent::Write {
            child: child(name),
            kind,
            schema: 0,
            body,
        })
    }

    /// The directory says something else of the unit.
    pub(super) fn change(&mut self, change: impl Fn(&mut UnitView)) {
        change(&mut self.view);
        let view = self.view.clone();
        self.tell(OwnerEvent::View(view)).unwrap();
    }

    pub(super) fn drain(&mut self) {
        for owner in &mut self.owners {
            while let Some(action) = owner.poll_action() {
                match action {
                    OwnerAction::Ask { to, request } => {
                        if let Ask::Append(append) = &request.ask {
                            self.sent += append.records.len();
                        }
                        self.net.push(Message::Request { to, request });
                    }
                    OwnerAction::Propose(command) => self.proposals.push(command),
                    other => self.said.push((owner.claim().epoch, other)),
                }
            }
        }
    }

    /// Delivers one message; what it brings about is under way then.
    pub(super) fn deliver(&mut self, message: Message) {
        match message {
            Message::Request { to, request } => {
                let Some(store) = self
                    .stores
                    .get_mut(&to)
                    .filter(|_| !self.away.contains(&to))
                else {
                    return;
                };
                let from = OWNER;
                let asked = ReplicaEvent::Asked { from, request };
                let answers = store.handle(asked).unwrap();
                self.net.extend(answers.into_iter().map(Message::Answer));
            }
            Message::Answer(answer) => {
                if self.away.contains(&answer.store) {
                    return;
                }
                let (unit, epoch) = (answer.unit, answer.epoch);
                let mine =
                    |owner: &Owner| (owner.claim().unit, owner.claim().epoch) == (unit, epoch);
                if let Some(nth) = self.owners.iter().position(mine) {
                    // Refused when the store is none of the set any more.
                    let _ = self.tell_nth(nth, OwnerEvent::Answer(answer));
                }
            }
        }
    }

    pub(super) fn flush(&mut self, id: StoreId) {
        let answers = self.stores.get_mut(&id).unwrap().flush();
        self.net.extend(answers.into_iter().map(Message::Answer));
    }

    /// Commits a proposal, as the directory would.
    pub(super) fn commit(&mut self, command: &Command) {
        let claim = match command {
            Command::ChangeSet { claim, .. } | Command::Serving(claim) => claim,
            other => {
                self.said.push((
                    self.owner().claim().epoch,
                    OwnerAction::Propose(other.clone()),
                ));
                return;
            }
        };
        if *claim != self.owner().claim() {
            return;
        }
        match command {
            Command::ChangeSet { config, set, .. } => {
                let few = set.len() < self.view.min_copies && set.len() < self.view.set.len();
                if *config != self.view.config || few {
                    return;
                }
                self.view.set = set.clone();
                self.view.config = config.next();
            }
            _ => self.view.serving = true,
        }
        let view = self.view.clone();
        self.tell(OwnerEvent::View(view)).unwrap();
    }

    /// Lets time pass.
    pub(super) fn run(&mut self, millis: u64) {
        for _ in 0..millis {
            self.now += 1;
            for message in core::mem::take(&mut self.net) {
                self.deliver(message);
            }
            for id in self.stores.keys().copied().collect::<Vec<_>>() {
                if !self.unflushed.contains(&id) {
                    self.flush(id);
                }
            }
            self.tick();
            if self.commits {
                for command in core::mem::take(&mut self.proposals) {
                    self.commit(&command);
                }
            }
        }
    }

    pub(super) fn tick(&mut self) {
        for nth in 0..self.owners.len() {
            let due = self.owners[nth].next_deadline();
            if due.is_some_and(|due| due <= self.time()) {
                self.tell_nth(nth, OwnerEvent::Tick).unwrap();
            }
        }
    }

    /// Up to where `a` is acknowledged.
    pub(super) fn acked(&self) -> u64 {
        self.owner().acknowledged(&child("a")).0
    }

    /// The places of the records of `a` that the store has flushed.
    pub(super) fn places(&self, store: u64) -> Vec<u64> {
        let disk = &self.stores[&StoreId(store)].flushed;
        let chain = disk.chains.get(&child("a"));
        chain
            .into_iter()
            .flatten()
            .map(|record| record.seq.0)
            .collect()
    }

    pub(super) fn heads(&self, store: u64) -> Vec<Head> {
        let disk = &self.stores[&StoreId(store)].flushed;
        let chain = disk.chains.get(&child("a"));
        chain.into_iter().flatten().map(Record::head).collect()
    }

    /// What was said, but for acknowledgements.
    pub(super) fn take_said(&mut self) -> Vec<OwnerAction> {
        let said = core::mem::take(&mut self.said)
            .into_iter()
            .map(|(_, said)| said);
        said.filter(|said| !matches!(said, OwnerAction::Acknowledged { .. }))
            .collect()
    }

    pub(super) fn set(&self) -> Vec<u64> {
        self.view.set.iter().map(|store| store.0).collect()
    }
}
