//! The owner's side of replication: take over, acknowledge, and keep the replica set whole.
//!
//! Owns: rules R2, R3, R5, R6 (the owner's half), R8, T1, T2, S2 and S3 for one unit at one epoch.
//! Never touches a child: the agent feeds it records and hears which are acknowledged.
//!
//! ```text
//!            first sealed + 100 ms,         whole set sealed,         Leave, Reshape
//!            or all sealed                  every log agrees
//!   Sealing ───────────────────> Adopting ─────────────────> Serving ──────> Quiet ──> (gone)
//!      │ nobody complete: Unavailable (T2), and goes on asking
//! ```
//!
//! Whatever the phase, one routine keeps the set whole: members that are silent leave it, complete
//! learners join it, each by a compare-and-swap entry. While such an entry is under way its outcome
//! is unknown, so acknowledgements need every store of both sets (R5).

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;
use minicbor::{Decode, Encode};

use crate::cluster::directory::{Claim, Command};
use crate::id::{ChildId, ConfigVersion, Epoch, IncarnationId, Seq, StoreId, UnitId};
use crate::machine::Machine;
use crate::rules::{Rule, keeps};
use crate::supervision::Exit;
use crate::time::Time;
use crate::wire::codec::records_that_fit;
use crate::wire::record::{BODY_BYTES_MAX, Head, Record, RecordKind};
use crate::wire::replica::{
    Append, Ask, CHAIN_RECORDS_MAX, Indexed, ReplicaAnswer, ReplicaRequest, Said, Scope,
};

/// One unit's replication at one epoch, on the node that was granted it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    config: OwnerConfig,
    view: UnitView,
    phase: Phase,
    /// When sealing began; when the first complete replica was sealed.
    began: Time,
    first_sealed: Option<Time>,
    unavailable: bool,
    /// The set's members and the learner.
    peers: BTreeMap<StoreId, Peer>,
    children: BTreeMap<ChildId, Log>,
    loading: BTreeMap<ChildId, Loading>,
    /// A store that is being made complete, and since when it has been tried.
    learner: Option<(StoreId, Time)>,
    /// Stores that failed as learners, oldest first; others are tried before them.
    failed: VecDeque<StoreId>,
    /// Sets proposed from the present config version, whose outcome is unknown (R5).
    proposed: Vec<BTreeSet<StoreId>>,
    /// When something was last proposed, to repeat it until it is applied.
    proposed_at: Option<Time>,
    leaving: Option<Leaving>,
    advanced_at: Time,
    actions: VecDeque<Action>,
}

/// What stays the same as long as the grant does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OwnerConfig {
    /// Which unit.
    pub unit: UnitId,
    /// At which epoch.
    pub epoch: Epoch,
    /// By which start of the node.
    pub incarnation: IncarnationId,
    /// The node's own store: read from first, dropped last.
    pub home: StoreId,
}

/// What the applied directory says of the unit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct UnitView {
    /// Whose records it owns.
    #[n(0)]
    pub scope: Scope,
    /// The replica set's version.
    #[n(1)]
    pub config: ConfigVersion,
    /// The replica set.
    #[n(2)]
    pub set: BTreeSet<StoreId>,
    /// How many it must have (R4).
    #[n(3)]
    pub min_copies: usize,
    /// How many it should have (R4).
    #[n(4)]
    pub wanted: usize,
    /// Stores that could join, best first.
    #[n(5)]
    pub candidates: Vec<StoreId>,
    /// Stores whose node is not live, or that are retired.
    #[n(6)]
    pub unreachable: BTreeSet<StoreId>,
    /// The store of the node that the unit is to move to.
    #[n(7)]
    pub move_to: Option<StoreId>,
    /// The directory has applied that this owner serves.
    #[n(8)]
    pub serving: bool,
}

/// How far the owner is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Asking the replicas for their promises and their logs.
    Sealing,
    /// The longest logs are known; the set is being made to agree with them.
    Adopting,
    /// Calls are answered.
    Serving,
    /// Nothing is admitted any more; what is under way is finished (S2, L12).
    Quiet,
}

/// Why an owner goes quiet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Leaving {
    /// The unit moves: release it when everything is acknowledged (L12).
    Release,
    /// The child ended, or is to be stopped.
    Exit(Exit),
    /// The shard is split at this slot (S2).
    Split(u16),
    /// This child gets a unit of its own (S2).
    Except(ChildId),
    /// The shard is merged with its neighbour; another owner's quiet is awaited by the agent (S2).
    Merge,
}

/// What may happen to an owner.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The applied directory says something new of the unit.
    View(UnitView),
    /// A store answers.
    Answer(ReplicaAnswer),
    /// A loaded child takes a step.
    Write {
        /// Whose.
        child: ChildId,
        /// What the body is.
        kind: RecordKind,
        /// The version of the child's encoding.
        schema: u16,
        /// The child's bytes.
        body: Bytes,
    },
    /// A child's records are wanted.
    Load(ChildId),
    /// A child's records are not wanted any more.
    Unload(ChildId),
    /// Go quiet, then leave.
    Leave(Leaving),
    /// A merge cannot be any more: serve again.
    Resume,
    /// The deadline has come.
    Tick,
}

/// What an owner wants done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send a request to a store.
    Ask {
        /// Which.
        to: StoreId,
        /// What to send.
        request: ReplicaRequest,
    },
    /// Have this committed.
    Propose(Command),
    /// Every record of the child up to this one is acknowledged (R2).
    Acknowledged {
        /// Whose.
        child: ChildId,
        /// Up to which.
        upto: Head,
    },
    /// The child's records, from its base on. None: the child is new.
    Loaded {
        /// Whose.
        child: ChildId,
        /// In order.
        records: Vec<Record>,
    },
    /// The takeover is complete: answer calls.
    Serve,
    /// No complete replica answers (T2). Said once; the owner goes on asking.
    Unavailable,
    /// Everything is acknowledged and nothing is admitted: the agent may merge.
    Quiet,
}

/// Why an event was refused. Nothing has changed, in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The owner does not admit anything now.
    #[error("the unit is not being served")]
    NotServing,
    /// The child's records have not been loaded.
    #[error("the child is not loaded")]
    NotLoaded,
    /// The child is not the unit's.
    #[error("the child is not the unit's")]
    NotOurs,
    /// The child's chain is as long as a chain may be: the next record must be a snapshot, and the
    /// one before it must be acknowledged.
    #[error("the chain is at its limit; a snapshot is due")]
    ChainFull,
    /// The body is larger than a record may be.
    #[error("the record is larger than {BODY_BYTES_MAX} bytes")]
    TooLarge,
    /// The answer is to another epoch, or from a store that is not asked.
    #[error("the answer is not to this owner")]
    NotMine,
}

/// A store, as the owner sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Peer {
    /// Which start of its node has been sealed.
    session: Option<IncarnationId>,
    sealed: bool,
    /// The index so far, while it is being sealed.
    index: BTreeMap<ChildId, Indexed>,
    seal_after: Option<ChildId>,
    sealed_at: Option<Time>,
    cut: bool,
    /// It was cut or damaged and has not been told that it is whole again.
    unconfirmed: bool,
    confirm_at: Option<Time>,
    /// Children whose chain there is not known to end where the owner's does.
    behind: BTreeMap<ChildId, Behind>,
    /// Since when it owes an answer.
    waiting: Option<Time>,
    round_trip: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Behind {
    /// Where its chain agrees with ours, flushed or not: what to send from. `None` while unknown.
    agrees: Option<Head>,
    /// Up to where it has said that it agrees and has flushed: what counts.
    flushed: Option<Head>,
    /// What has been sent, and when.
    sent: Seq,
    sent_at: Option<Time>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Log {
    tail: Head,
    /// The tail when the owner took over (R1).
    adopted: Seq,
    acked: Seq,
    /// From the oldest kept record on, while the child is loaded.
    records: Option<VecDeque<Record>>,
    /// The child is loaded for the agent, not only to mend a replica.
    wanted: bool,
    /// Places of the snapshots among the records.
    snapshots: VecDeque<Seq>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Loading {
    from: StoreId,
    got: Vec<Record>,
    asked_at: Time,
    tries: u32,
}

impl Owner {
    /// The owner of a unit that was just granted: it seals first.
    pub fn new(now: Time, config: OwnerConfig, view: UnitView) -> Owner {
        let mut owner = Owner::begin(now, config, view, Phase::Sealing);
        owner.advance(now);
        owner
    }

    /// The owners of the parts of a unit that this one split, or gave a child of (S2): they go on
    /// with what this one knows, at the parts' new epochs. They copy no bytes.
    pub fn reshaped(now: Time, old: Vec<Owner>, parts: Vec<(OwnerConfig, UnitView)>) -> Vec<Owner> {
        let mut children: BTreeMap<ChildId, Log> = BTreeMap::new();
        for owner in old {
            children.extend(owner.children);
        }
        let mut owners = Vec::new();
        for (config, view) in parts {
            let mut owner = Owner::begin(now, config, view, Phase::Serving);
            let mine: Vec<ChildId> = children
                .keys()
                .filter(|child| owner.view.scope.holds(child))
                .cloned()
                .collect();
            for child in mine {
                let log = children.remove(&child).expect("the key was just listed");
                owner.children.insert(
                    child,
                    Log {
                        adopted: log.tail.seq,
                        ..log
                    },
                );
            }
            // Loads that were under way go on.
            let loads = owner.children.iter();
            let loads = loads.filter(|(_, log)| log.wanted && log.records.is_none());
            for child in loads.map(|(child, _)| child.clone()).collect::<Vec<_>>() {
                owner.fetch(now, child);
            }
            owner.advance(now);
            owners.push(owner);
        }
        owners
    }

    fn begin(now: Time, config: OwnerConfig, view: UnitView, phase: Phase) -> Owner {
        let peers = view
            .set
            .iter()
            .map(|store| (*store, Peer::default()))
            .collect();
        Owner {
            config,
            view,
            phase,
            began: now,
            first_sealed: None,
            unavailable: false,
            peers,
            children: BTreeMap::new(),
            loading: BTreeMap::new(),
            learner: None,
            failed: VecDeque::new(),
            proposed: Vec::new(),
            proposed_at: None,
            leaving: None,
            advanced_at: now,
            actions: VecDeque::new(),
        }
    }

    /// The grant.
    pub fn claim(&self) -> Claim {
        let OwnerConfig {
            unit,
            epoch,
            incarnation,
            ..
        } = self.config;
        Claim {
            unit,
            epoch,
            incarnation,
        }
    }

    /// The version of the replica set that it works with.
    pub fn set_version(&self) -> ConfigVersion {
        self.view.config
    }

    /// What the directory last said of the unit.
    pub fn view(&self) -> &UnitView {
        &self.view
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Why it is quiet.
    pub fn leaving(&self) -> Option<&Leaving> {
        self.leaving.as_ref()
    }

    /// Whether it waits for a complete replica (T2).
    pub fn is_unavailable(&self) -> bool {
        self.unavailable
    }

    /// Where the child's chain ends.
    pub fn tail(&self, child: &ChildId) -> Seq {
        self.children
            .get(child)
            .map_or(Seq::ZERO, |log| log.tail.seq)
    }

    /// Up to where the child's chain is acknowledged.
    pub fn acknowledged(&self, child: &ChildId) -> Seq {
        self.children.get(child).map_or(Seq::ZERO, |log| log.acked)
    }

    /// Records since the child's last snapshot.
    pub fn since_snapshot(&self, child: &ChildId) -> u64 {
        let Some(log) = self.children.get(child) else {
            return 0;
        };
        log.tail.seq.0 - log.snapshots.back().map_or(0, |seq| seq.0)
    }

    /// How many records of the child are held in memory; at most [`CHAIN_RECORDS_MAX`].
    pub fn chain_len(&self, child: &ChildId) -> usize {
        let records = self
            .children
            .get(child)
            .and_then(|log| log.records.as_ref());
        records.map_or(0, VecDeque::len)
    }

    /// Whether it admits nothing and everything is acknowledged.
    pub fn is_quiet(&self) -> bool {
        self.phase == Phase::Quiet && self.all_acknowledged()
    }

    /// Everything that it holds in memory and that has a limit: the longest chain.
    pub fn longest_chain(&self) -> usize {
        let chains = self
            .children
            .values()
            .filter_map(|log| log.records.as_ref());
        chains.map(VecDeque::len).max().unwrap_or(0)
    }

    fn on_view(&mut self, now: Time, view: UnitView) {
        if view.config < self.view.config {
            return;
        }
        let moved_on = view.config > self.view.config;
        let serves = view.serving && !self.view.serving;
        self.view = view;
        if serves && self.proposed.is_empty() && self.leaving.is_none() {
            self.proposed_at = None;
        }
        if moved_on {
            // Every proposal from the version before is applied or void for good.
            self.proposed.clear();
            self.proposed_at = None;
            if self
                .learner
                .is_some_and(|(store, _)| self.view.set.contains(&store))
            {
                self.learner = None;
            }
            let (set, learner) = (&self.view.set, self.learner);
            self.peers.retain(|store, _| {
                set.contains(store) || learner.is_some_and(|(learner, _)| learner == *store)
            });
            for store in set {
                self.peers.entry(*store).or_default();
            }
            self.recount_all();
        }
        self.advance(now);
    }

    fn on_answer(&mut self, now: Time, answer: ReplicaAnswer) -> Result<(), Refused> {
        let ReplicaAnswer {
            store,
            epoch,
            session,
            said,
            ..
        } = answer;
        let peer = self.peers.get_mut(&store).ok_or(Refused::NotMine)?;
        if epoch != self.config.epoch {
            return Err(Refused::NotMine);
        }
        if let Some(since) = peer.waiting.take() {
            // No longer than one is waited for: a store that was away for a minute is not that slow.
            let took = now.since(since).min(peer.patience());
            // An average that forgets: a quarter of each new measurement.
            peer.round_trip = Some(peer.round_trip.map_or(took, |old| (old * 3 + took) / 4));
        }
        let seals = matches!(said, Said::Sealed { .. });
        if peer.session.is_some_and(|known| known != session) && (seals || peer.sealed) {
            // The store was opened anew, or this is an answer of a former start: nothing said before
            // counts, and nothing that it says now, before it is sealed again.
            peer.forget();
            self.advance(now);
            return Ok(());
        }
        match said {
            Said::Sealed {
                after,
                page,
                more,
                cut,
            } => {
                self.on_sealed(store, session, after, page, more, cut);
            }
            Said::Unsealed => peer.forget(),
            Said::Appended { child, upto } => self.on_appended(store, &child, upto),
            Said::Mismatch { child, tail } => {
                let known = self.children.get(&child).is_some_and(|log| log.holds(tail));
                if let Some(behind) = peer.behind.get_mut(&child) {
                    behind.agrees = known.then_some(tail);
                    // It said where its chain ends, not that the end is flushed.
                    behind.flushed = None;
                    behind.sent_at = None;
                }
            }
            Said::Fetched {
                child,
                after,
                records,
            } => self.on_fetched(now, store, &child, after, records),
            Said::Damaged { child } => {
                if self.children.contains_key(&child) {
                    peer.unconfirmed = true;
                    let behind = Behind::from(None);
                    peer.behind.insert(child, behind);
                }
            }
            Said::Confirmed => peer.unconfirmed = false,
            // Another owner has been granted the unit. The directory will say so.
            Said::Promised(_) => {}
            // That it was heard is all that counts of this.
            Said::Fetching { .. } => {}
        }
        if peer_owes(self.peers.get(&store)) {
            self.peers
                .entry(store)
                .and_modify(|peer| peer.waiting = Some(now));
        }
        self.advance(now);
        Ok(())
    }

    fn on_sealed(
        &mut self,
        store: StoreId,
        session: IncarnationId,
        after: Option<ChildId>,
        page: Vec<Indexed>,
        more: bool,
        cut: bool,
    ) {
        let Some(peer) = self.peers.get_mut(&store) else {
            return;
        };
        if peer.sealed || peer.seal_after != after {
            return;
        }
        peer.session = Some(session);
        peer.cut = cut;
        peer.sealed_at = None;
        peer.seal_after = page.last().map(|indexed| indexed.child.clone());
        for indexed in page {
            peer.index.insert(indexed.child.clone(), indexed);
        }
        if more {
            return;
        }
        peer.sealed = true;
        let damaged = peer.index.values().any(|indexed| indexed.damaged);
        peer.unconfirmed = cut || damaged;
        if self.phase != Phase::Sealing {
            self.compare(store);
            self.recount_all();
        }
    }

    /// Takes the longest logs of the sealed replicas (T1), once enough are sealed.
    fn try_adopt(&mut self, now: Time) {
        let sealed: Vec<StoreId> = self
            .view
            .set
            .iter()
            .filter(|store| self.peers[store].sealed)
            .copied()
            .collect();
        let all = sealed.len() == self.view.set.len();
        // R8: one that was cut or damaged counts only beside a whole one, or when all are sealed.
        let whole = |store: &StoreId| {
            let peer = &self.peers[store];
            !peer.cut && !peer.index.values().any(|indexed| indexed.damaged)
        };
        let enough = if keeps(Rule::R8) {
            all || sealed.iter().any(whole)
        } else {
            !sealed.is_empty()
        };
        if enough {
            self.first_sealed.get_or_insert(now);
        } else {
            self.first_sealed = None;
            if now.since(self.began) >= UNAVAILABLE_AFTER && !self.unavailable {
                self.unavailable = true;
                self.actions.push_back(Action::Unavailable);
            }
            // T2: unavailable, never empty.
            if keeps(Rule::T2) || !self.unavailable {
                return;
            }
        }
        // Those whose node is not live are about to leave the set: nobody waits for them.
        let gone = |store: &StoreId| self.view.unreachable.contains(store);
        let mut reachable = self.view.set.iter().filter(|store| !gone(store));
        let waits = reachable.any(|store| !sealed.contains(store));
        if waits && now < self.adopt_at() {
            return;
        }
        self.unavailable = false;
        for store in &sealed {
            for indexed in self.peers[store].index.values() {
                let log = self
                    .children
                    .entry(indexed.child.clone())
                    .or_insert_with(|| Log::ending(Head::NONE));
                // T1: the longest.
                if keeps(Rule::T1) {
                    log.tail = log.tail.max(indexed.tail);
                } else if log.tail == Head::NONE {
                    log.tail = indexed.tail;
                }
                log.adopted = log.tail.seq;
            }
        }
        self.phase = Phase::Adopting;
        for store in sealed {
            self.compare(store);
        }
        if !keeps(Rule::T1) {
            for peer in self.peers.values_mut() {
                peer.behind.clear();
            }
        }
        self.recount_all();
    }

    /// When sealing ends though some are not sealed (T1).
    fn adopt_at(&self) -> Time {
        let slowest = self
            .peers
            .values()
            .filter_map(|peer| peer.round_trip)
            .max()
            .unwrap_or_default();
        self.first_sealed
            .map_or(self.began, |first| first + (slowest * 4).max(SEAL_WAIT))
    }

    /// A chain that was adopted from a store that is gone before it was read ends where the longest of
    /// the others does (T1): what only the lost store had was never acknowledged, and nobody was shown
    /// it. As in sealing, stores that were cut do not decide this alone (R8).
    fn give_up_tails(&mut self, now: Time) {
        if self.phase != Phase::Adopting || self.loading.is_empty() {
            return;
        }
        let answering = |store: &&StoreId| !self.peers[*store].is_late(now);
        let members: Vec<&Peer> = self
            .view
            .set
            .iter()
            .filter(answering)
            .map(|store| &self.peers[store])
            .collect();
        let all = members.len() == self.view.set.len();
        let whole = members.iter().any(|peer| !peer.unconfirmed);
        // One that is being sealed may hold more.
        if members.iter().any(|peer| !peer.sealed) || !(all || whole) {
            return;
        }
        let mut given_up = Vec::new();
        for child in self.loading.keys() {
            let ends = members
                .iter()
                .map(|peer| peer.behind.get(child).map(|behind| behind.agrees));
            // `None`: it holds the whole chain.
            if let Some(ends) = ends.collect::<Option<Vec<_>>>() {
                let longest = ends.into_iter().flatten().max();
                given_up.extend(longest.map(|tail| (child.clone(), tail)));
            }
        }
        for (child, tail) in given_up {
            self.end_at(child, tail);
        }
    }

    /// The child's chain ends here and nothing of it has been read.
    fn end_at(&mut self, child: ChildId, tail: Head) {
        self.loading.remove(&child);
        let log = Log::ending(tail);
        let old = self.children.insert(child.clone(), log);
        for peer in self.peers.values_mut().filter(|peer| peer.sealed) {
            let whole = Behind::from(old.as_ref().map(|log| log.tail));
            let behind = peer.behind.entry(child.clone()).or_insert(whole);
            if behind.agrees == Some(tail) {
                peer.behind.remove(&child);
            }
        }
        self.recount(&child);
        self.drop_unneeded(&child);
    }

    /// Finds out where a sealed replica's chains differ from ours.
    fn compare(&mut self, store: StoreId) {
        let Some(peer) = self.peers.get_mut(&store) else {
            return;
        };
        let index = core::mem::take(&mut peer.index);
        peer.behind.clear();
        for (child, indexed) in &index {
            let log = self
                .children
                .entry(child.clone())
                .or_insert_with(|| Log::ending(Head::NONE));
            if log.tail != indexed.tail {
                // Its chain may be a part of ours; merging finds out.
                let agrees = Some(indexed.tail);
                peer.behind.insert(child.clone(), Behind::from(agrees));
            }
        }
        for (child, log) in &self.children {
            if !index.contains_key(child) && log.tail != Head::NONE {
                let agrees = Some(Head::NONE);
                peer.behind.insert(child.clone(), Behind::from(agrees));
            }
        }
    }

    fn on_appended(&mut self, store: StoreId, child: &ChildId, upto: Head) {
        let Some(log) = self.children.get(child) else {
            return;
        };
        if !log.holds(upto) {
            return;
        }
        let tail = log.tail;
        let Some(peer) = self.peers.get_mut(&store) else {
            return;
        };
        let Some(behind) = peer.behind.get_mut(child) else {
            return;
        };
        if upto == tail {
            peer.behind.remove(child);
            self.recount(child);
            return self.drop_unneeded(child);
        }
        let newer =
            |known: Option<Head>| known.is_none_or(|head| head.seq < upto.seq || !log.holds(head));
        if newer(behind.flushed) {
            behind.flushed = Some(upto);
        }
        if newer(behind.agrees) {
            behind.agrees = Some(upto);
        }
        if behind.sent <= upto.seq {
            behind.sent_at = None;
        }
        self.recount(child);
    }

    fn on_fetched(
        &mut self,
        now: Time,
        store: StoreId,
        child: &ChildId,
        after: Seq,
        records: Vec<Record>,
    ) {
        let Some(loading) = self
            .loading
            .get_mut(child)
            .filter(|loading| loading.from == store)
        else {
            return;
        };
        let has = loading.got.last().map_or(Seq::ZERO, |record| record.seq);
        if has != after {
            return;
        }
        for record in records {
            let follows = loading
                .got
                .last()
                .is_none_or(|last| last.head() == record.prev);
            if !follows || !record.is_intact() || record.child != *child {
                loading.got.clear();
                loading.asked_at = Time::ZERO;
                return;
            }
            loading.got.push(record);
        }
        let Some(log) = self.children.get_mut(child) else {
            return;
        };
        let reached = loading.got.last().map_or(Head::NONE, Record::head);
        if reached == log.tail {
            let loading = self.loading.remove(child).expect("it was just found");
            log.load(loading.got);
            if log.wanted {
                let records = log.records.iter().flatten().cloned().collect();
                self.actions.push_back(Action::Loaded {
                    child: child.clone(),
                    records,
                });
            }
        } else if reached.seq > has {
            loading.asked_at = now;
            let (from, after) = (loading.from, reached.seq);
            self.ask(
                now,
                from,
                Ask::Fetch {
                    child: child.clone(),
                    after,
                },
            );
        } else {
            loading.asked_at = Time::ZERO;
        }
    }

    fn on_write(
        &mut self,
        now: Time,
        child: ChildId,
        kind: RecordKind,
        schema: u16,
        body: Bytes,
    ) -> Result<(), Refused> {
        if self.phase != Phase::Serving {
            return Err(Refused::NotServing);
        }
        if body.len() > BODY_BYTES_MAX {
            return Err(Refused::TooLarge);
        }
        let log = self.children.get_mut(&child).ok_or(Refused::NotLoaded)?;
        let records = log
            .records
            .as_mut()
            .filter(|_| log.wanted)
            .ok_or(Refused::NotLoaded)?;
        if records.len() >= CHAIN_RECORDS_MAX {
            return Err(Refused::ChainFull);
        }
        let prev = log.tail;
        let (epoch, config) = (self.config.epoch, self.view.config);
        let record = Record::chained(child.clone(), epoch, config, prev, kind, schema, body);
        log.tail = record.head();
        if kind == RecordKind::Snapshot {
            log.snapshots.push_back(record.seq);
        }
        records.push_back(record);
        for peer in self.peers.values_mut().filter(|peer| peer.sealed) {
            let behind = peer.behind.entry(child.clone());
            behind.or_insert(Behind {
                sent: prev.seq,
                ..Behind::from(Some(prev))
            });
        }
        self.recount(&child);
        self.send_child(now, &child);
        Ok(())
    }

    fn on_load(&mut self, now: Time, child: ChildId) -> Result<(), Refused> {
        if !matches!(self.phase, Phase::Serving) {
            return Err(Refused::NotServing);
        }
        if !self.view.scope.holds(&child) {
            return Err(Refused::NotOurs);
        }
        let log = self
            .children
            .entry(child.clone())
            .or_insert_with(|| Log::ending(Head::NONE));
        log.wanted = true;
        if log.tail == Head::NONE {
            log.records = Some(VecDeque::new());
        }
        if let Some(records) = &log.records {
            let records = records.iter().cloned().collect();
            self.actions.push_back(Action::Loaded { child, records });
        } else {
            self.fetch(now, child);
        }
        Ok(())
    }

    fn on_unload(&mut self, child: &ChildId) {
        if let Some(log) = self.children.get_mut(child) {
            log.wanted = false;
        }
        self.drop_unneeded(child);
    }

    /// Drops the records of a child that neither the agent nor a replica needs.
    fn drop_unneeded(&mut self, child: &ChildId) {
        let behind = |peer: &Peer| peer.behind.contains_key(child);
        if self.peers.values().any(behind) {
            return;
        }
        if let Some(log) = self.children.get_mut(child).filter(|log| !log.wanted) {
            log.records = None;
            if log.tail == Head::NONE {
                self.children.remove(child);
            }
        }
    }

    /// Asks a store that has the whole chain for it: the own one first.
    fn fetch(&mut self, now: Time, child: ChildId) {
        let tries = self.loading.get(&child).map_or(0, |loading| loading.tries);
        let has = |store: &&StoreId| {
            self.peers
                .get(store)
                .is_some_and(|peer| peer.sealed && !peer.behind.contains_key(&child))
        };
        let mut holders: Vec<StoreId> = self.view.set.iter().filter(has).copied().collect();
        holders.sort_by_key(|store| (*store != self.config.home, *store));
        let from = holders.get(tries as usize % holders.len().max(1)).copied();
        let loading = Loading {
            from: from.unwrap_or(self.config.home),
            got: Vec::new(),
            asked_at: now,
            tries: tries + 1,
        };
        self.loading.insert(child.clone(), loading);
        // Without a holder it is tried again: one is being sealed, or made complete.
        if let Some(from) = from {
            let after = Seq::ZERO;
            self.ask(now, from, Ask::Fetch { child, after });
        }
    }

    /// Everything that follows from the state: one routine, after every event.
    fn advance(&mut self, now: Time) {
        self.advanced_at = now;
        self.seal(now);
        if self.phase == Phase::Sealing {
            match self.leaving {
                Some(Leaving::Release | Leaving::Exit(_)) => return self.leave(now),
                _ => self.try_adopt(now),
            }
        }
        if self.phase == Phase::Sealing {
            return;
        }
        self.give_up_tails(now);
        self.mend(now);
        self.confirm(now);
        self.choose_learner(now);
        self.change_set(now);
        self.try_serve(now);
        self.leave(now);
    }

    fn seal(&mut self, now: Time) {
        let due = |peer: &Peer| {
            let retry = peer.retry();
            !peer.sealed && peer.sealed_at.is_none_or(|at| now.since(at) >= retry)
        };
        let stores: Vec<StoreId> = self
            .peers
            .iter()
            .filter(|(_, peer)| due(peer))
            .map(|(store, _)| *store)
            .collect();
        for store in stores {
            let Some(peer) = self.peers.get_mut(&store) else {
                continue;
            };
            peer.sealed_at = Some(now);
            let after = peer.seal_after.clone();
            let scope = self.view.scope.clone();
            self.ask(now, store, Ask::Seal { scope, after });
        }
    }

    /// Sends every sealed replica what it lacks.
    fn mend(&mut self, now: Time) {
        let mut behind: BTreeSet<ChildId> = BTreeSet::new();
        for peer in self.peers.values().filter(|peer| peer.sealed) {
            let retry = peer.retry();
            let due = |state: &Behind| state.sent_at.is_none_or(|at| now.since(at) >= retry);
            let children = peer
                .behind
                .iter()
                .filter(|(_, state)| due(state))
                .take(MENDED_AT_ONCE);
            behind.extend(children.map(|(child, _)| child.clone()));
        }
        for child in behind {
            self.send_child(now, &child);
        }
        let late: Vec<ChildId> = self
            .loading
            .iter()
            .filter(|(_, loading)| now.since(loading.asked_at) >= FETCH_RETRY)
            .map(|(child, _)| child.clone())
            .collect();
        for child in late {
            self.fetch(now, child);
        }
    }

    /// Sends one child's missing records to every sealed replica that is due some.
    fn send_child(&mut self, now: Time, child: &ChildId) {
        let Some(log) = self.children.get(child) else {
            return;
        };
        if log.records.is_none() && log.tail != Head::NONE {
            if !self.loading.contains_key(child) {
                self.fetch(now, child.clone());
            }
            return;
        }
        let keep_from = log.keep_from();
        let mut asks = Vec::new();
        for (store, peer) in self.peers.iter_mut().filter(|(_, peer)| peer.sealed) {
            let retry = peer.retry();
            let Some(behind) = peer.behind.get_mut(child) else {
                continue;
            };
            let streaming = behind.sent_at.is_some_and(|at| now.since(at) < retry);
            // What is under way is not sent again before its time; what is new is.
            let from = if streaming && behind.sent > Seq::ZERO {
                if behind.sent >= log.tail.seq {
                    continue;
                }
                log.head_at(behind.sent)
            } else {
                behind.agrees.filter(|agrees| log.holds(*agrees))
            };
            let (prev, from_base, records) = log.suffix(from);
            behind.sent = records.last().map_or(prev.seq, |record| record.seq);
            behind.sent_at = Some(now);
            let adopted = log.adopted;
            let append = Append {
                child: child.clone(),
                prev,
                from_base,
                records,
                adopted,
                keep_from,
            };
            asks.push((*store, append));
        }
        for (store, append) in asks {
            self.ask(now, store, Ask::Append(append));
        }
    }

    fn confirm(&mut self, now: Time) {
        let set = &self.view.set;
        let due = |store: &StoreId, peer: &Peer| {
            let retry = peer.retry();
            let whole = peer.sealed && peer.behind.is_empty() && set.contains(store);
            whole && peer.unconfirmed && peer.confirm_at.is_none_or(|at| now.since(at) >= retry)
        };
        let stores: Vec<StoreId> = self
            .peers
            .iter()
            .filter(|(store, peer)| due(store, peer))
            .map(|(store, _)| *store)
            .collect();
        for store in stores {
            self.peers
                .entry(store)
                .and_modify(|peer| peer.confirm_at = Some(now));
            let scope = self.view.scope.clone();
            self.ask(now, store, Ask::Confirm { scope });
        }
    }

    /// Members that do not answer, or cannot.
    fn silent(&self, now: Time) -> BTreeSet<StoreId> {
        let is_silent = |store: &&StoreId| {
            let late = self.peers.get(store).is_some_and(|peer| peer.is_late(now));
            late || self.view.unreachable.contains(store)
        };
        self.view.set.iter().filter(is_silent).copied().collect()
    }

    fn choose_learner(&mut self, now: Time) {
        if let Some((store, since)) = self.learner {
            let gone = self.view.unreachable.contains(&store);
            let peer = self.peers.get(&store);
            let waited = peer
                .and_then(|peer| peer.waiting)
                .map_or(Duration::ZERO, |since| now.since(since));
            let stuck = waited >= LEARNER_PATIENCE && now.since(since) >= LEARNER_PATIENCE;
            let proposed = self.proposed.iter().any(|set| set.contains(&store));
            if (gone || stuck) && !proposed {
                self.learner = None;
                self.peers.remove(&store);
                self.failed.retain(|failed| *failed != store);
                self.failed.push_back(store);
                if self.failed.len() > FAILED_LEARNERS_MAX {
                    self.failed.pop_front();
                }
            } else {
                return;
            }
        }
        let answering = self.view.set.len() - self.silent(now).len();
        let target = self
            .view
            .move_to
            .filter(|store| !self.view.set.contains(store));
        let short = answering < self.view.wanted;
        let could = |store: &&StoreId| {
            !self.view.set.contains(store) && !self.view.unreachable.contains(store)
        };
        let fresh = self
            .view
            .candidates
            .iter()
            .filter(could)
            .find(|store| !self.failed.contains(store));
        let again = || {
            self.failed
                .iter()
                .find(|store| self.view.candidates.contains(store))
        };
        let next = target.or_else(|| short.then(|| fresh.or_else(again).copied()).flatten());
        let Some(store) = next.filter(|store| could(&store)) else {
            return;
        };
        self.learner = Some((store, now));
        self.peers.insert(store, Peer::default());
        self.seal(now);
    }

    /// The store that is complete and could join (R3: the base and every record).
    fn complete_learner(&self) -> Option<StoreId> {
        let (store, _) = self.learner?;
        let peer = self.peers.get(&store)?;
        if self.view.unreachable.contains(&store) {
            return None;
        }
        let complete = peer.sealed && (peer.behind.is_empty() || !keeps(Rule::R3));
        complete.then_some(store)
    }

    /// Proposes the next set, if another would be better (R5, R6).
    fn change_set(&mut self, now: Time) {
        if self.phase == Phase::Quiet && self.proposed.is_empty() && self.all_acknowledged() {
            return;
        }
        let repeat = self
            .proposed_at
            .is_none_or(|at| now.since(at) >= PROPOSAL_RETRY);
        if !repeat {
            return;
        }
        let better = self.better_set(now);
        let Some(set) = better.or_else(|| self.standing_proposal()) else {
            return;
        };
        self.proposed_at = Some(now);
        if set == self.view.set || self.proposed.contains(&set) {
            return self.propose_set(set);
        }
        if self.proposed.len() >= PROPOSED_MAX {
            // Its outcome tells that of all the others.
            return self.propose_set(self.view.set.clone());
        }
        self.proposed.push(set.clone());
        self.recount_all();
        self.propose_set(set);
    }

    /// What is proposed again though nothing better is known: the last proposal, or the present set
    /// where that one would be void. Either makes every outcome known (R5).
    fn standing_proposal(&self) -> Option<BTreeSet<StoreId>> {
        let last = self.proposed.last()?;
        let few = last.len() < self.view.min_copies && last.len() < self.view.set.len();
        let void = few || !last.is_disjoint(&self.view.unreachable);
        Some(if void { &self.view.set } else { last }.clone())
    }

    fn propose_set(&mut self, set: BTreeSet<StoreId>) {
        let (claim, config) = (self.claim(), self.view.config);
        self.actions
            .push_back(Action::Propose(Command::ChangeSet { claim, config, set }));
    }

    fn better_set(&self, now: Time) -> Option<BTreeSet<StoreId>> {
        let mut out = self.silent(now);
        if self.phase == Phase::Adopting {
            // T1: the unsealed are dropped.
            out.extend(
                self.view
                    .set
                    .iter()
                    .filter(|store| !self.peers[store].sealed),
            );
        }
        let mut set: BTreeSet<StoreId> = self.view.set.difference(&out).copied().collect();
        let learner = self.complete_learner();
        set.extend(learner);
        if self.leans_on(&out, &set) {
            return None;
        }
        let min_copies = if keeps(Rule::R6) {
            self.view.min_copies
        } else {
            1
        };
        if !out.is_empty() {
            // R6: never below `min_copies`, so a silent one stays until another is complete.
            let enough = set.len() >= min_copies || set.len() >= self.view.set.len();
            return (enough && !set.is_empty()).then_some(set);
        }
        if learner.is_some() {
            return Some(set);
        }
        // One too many, after a move: the one that is neither here nor where the unit goes.
        if set.len() > self.view.wanted.max(min_copies) {
            let stays =
                |store: &StoreId| *store == self.config.home || self.view.move_to == Some(*store);
            let spare = set.iter().rev().find(|store| !stays(store)).copied()?;
            set.remove(&spare);
            return Some(set);
        }
        None
    }

    /// Whether a whole store would go while those that stay were cut and have not all that it has: what
    /// they lack may be acknowledged (R8).
    fn leans_on(&self, out: &BTreeSet<StoreId>, set: &BTreeSet<StoreId>) -> bool {
        let sealed = |store: &StoreId| self.peers.get(store).filter(|peer| peer.sealed);
        let whole = |peer: &Peer| !peer.unconfirmed;
        let agrees = |peer: &Peer| peer.behind.is_empty();
        let goes = out.iter().filter_map(sealed).any(whole);
        let mut stay = set.iter().filter_map(sealed);
        let decides = self.phase == Phase::Adopting && keeps(Rule::R8);
        decides && goes && !stay.any(|peer| whole(peer) || agrees(peer))
    }

    fn try_serve(&mut self, now: Time) {
        if self.phase == Phase::Adopting {
            let agreed = |store: &StoreId| {
                self.peers
                    .get(store)
                    .is_some_and(|peer| peer.sealed && peer.behind.is_empty())
            };
            // S3, T1: the index is sealed and the whole set agrees with it.
            let ready = self.proposed.is_empty() && self.view.set.iter().all(agreed);
            if ready || !keeps(Rule::T1) {
                self.phase = Phase::Serving;
                self.actions.push_back(Action::Serve);
            }
        }
        let repeat = self
            .proposed_at
            .is_none_or(|at| now.since(at) >= PROPOSAL_RETRY);
        if self.phase == Phase::Serving && !self.view.serving && repeat && self.proposed.is_empty()
        {
            self.proposed_at = Some(now);
            self.actions
                .push_back(Action::Propose(Command::Serving(self.claim())));
        }
    }

    fn leave(&mut self, now: Time) {
        let Some(leaving) = self.leaving.clone() else {
            return;
        };
        if self.phase == Phase::Serving {
            let moves = leaving == Leaving::Release;
            // A move waits until its target holds a complete replica.
            let target_in = self.view.move_to.is_none_or(|store| {
                self.view.set.contains(&store) || self.view.unreachable.contains(&store)
            });
            // The outcome of every set change must be known first: a reshape compares and swaps.
            if !self.proposed.is_empty() || (moves && !target_in) {
                return;
            }
            self.phase = Phase::Quiet;
            self.proposed_at = None;
        }
        if matches!(leaving, Leaving::Exit(_)) {
            // The child is gone whatever is acknowledged; its records stay. An owner that has not
            // read them yet must never mend them: it goes on sealing.
            if self.phase != Phase::Sealing {
                self.phase = Phase::Quiet;
            }
        } else if self.phase == Phase::Sealing && leaving == Leaving::Release {
            // Nothing was admitted, so there is nothing to wait for.
        } else if self.phase != Phase::Quiet
            || !self.proposed.is_empty()
            || !self.all_acknowledged()
        {
            return;
        }
        if self
            .proposed_at
            .is_some_and(|at| now.since(at) < PROPOSAL_RETRY)
        {
            return;
        }
        self.proposed_at = Some(now);
        let (claim, config) = (self.claim(), self.view.config);
        self.actions.push_back(match leaving {
            Leaving::Release => Action::Propose(Command::Release(claim)),
            Leaving::Exit(exit) => Action::Propose(Command::Exited { claim, exit }),
            Leaving::Split(at) => Action::Propose(Command::Split { claim, config, at }),
            Leaving::Except(child) => Action::Propose(Command::Except {
                claim,
                config,
                child,
            }),
            Leaving::Merge => Action::Quiet,
        });
    }

    fn all_acknowledged(&self) -> bool {
        self.children.values().all(|log| log.acked == log.tail.seq)
    }

    /// The stores that must have flushed a record before it is acknowledged.
    fn required(&self) -> BTreeSet<StoreId> {
        let mut required = self.view.set.clone();
        // R5: from the proposal until its outcome is known, the proposed set too.
        if keeps(Rule::R5) {
            required.extend(self.proposed.iter().flatten());
        }
        required
    }

    fn recount_all(&mut self) {
        let children: Vec<ChildId> = self
            .children
            .iter()
            .filter(|(_, log)| log.acked < log.tail.seq)
            .map(|(child, _)| child.clone())
            .collect();
        for child in children {
            self.recount(&child);
        }
    }

    /// Recounts how far the child's chain is acknowledged (R2).
    fn recount(&mut self, child: &ChildId) {
        if self.phase == Phase::Sealing {
            return;
        }
        // R6: below `min_copies` nothing is acknowledged.
        if self.view.set.len() < self.view.min_copies && keeps(Rule::R6) {
            return;
        }
        let required = self.required();
        let Some(log) = self.children.get_mut(child) else {
            return;
        };
        let flushed = required.iter().map(|store| {
            let Some(peer) = self.peers.get(store).filter(|peer| peer.sealed) else {
                return Seq::ZERO;
            };
            match peer.behind.get(child) {
                None => log.tail.seq,
                Some(behind) => behind
                    .flushed
                    .filter(|head| log.holds(*head))
                    .map_or(Seq::ZERO, |head| head.seq),
            }
        });
        // R2: on every replica of the set.
        let acked = if keeps(Rule::R2) {
            flushed.min()
        } else {
            flushed.max()
        }
        .unwrap_or(Seq::ZERO);
        if acked > log.acked {
            let Some(upto) = log.head_at(acked) else {
                return;
            };
            log.acked = acked;
            log.shorten();
            self.actions.push_back(Action::Acknowledged {
                child: child.clone(),
                upto,
            });
        }
    }

    fn ask(&mut self, now: Time, to: StoreId, ask: Ask) {
        let Some(peer) = self.peers.get_mut(&to) else {
            return;
        };
        peer.waiting = peer.waiting.or(Some(now));
        let request = ReplicaRequest {
            unit: self.config.unit,
            epoch: self.config.epoch,
            config: self.view.config,
            session: peer.session,
            ask,
        };
        self.actions.push_back(Action::Ask { to, request });
    }

    fn has_work(&self) -> bool {
        let settled = |(store, peer): (&StoreId, &Peer)| {
            let unreachable = self.view.unreachable.contains(store);
            peer.sealed && peer.behind.is_empty() && !peer.unconfirmed && !unreachable
        };
        self.phase != Phase::Serving
            || !self.view.serving
            || self.learner.is_some()
            || self.leaving.is_some()
            || !self.proposed.is_empty()
            || !self.loading.is_empty()
            || self.view.set.len() > self.view.wanted.max(self.view.min_copies)
            || !self.peers.iter().all(settled)
    }
}

/// Whether the store has been asked something that it has not answered.
fn peer_owes(peer: Option<&Peer>) -> bool {
    peer.is_some_and(|peer| {
        peer.behind.values().any(|behind| behind.sent_at.is_some())
            || (!peer.sealed && peer.sealed_at.is_some())
    })
}

impl Behind {
    /// A chain whose flushed end is known to be here, or unknown.
    fn from(flushed: Option<Head>) -> Behind {
        Behind {
            agrees: flushed,
            flushed,
            sent: Seq::ZERO,
            sent_at: None,
        }
    }
}

impl Peer {
    /// What is known of it is of a former start.
    fn forget(&mut self) {
        let round_trip = self.round_trip;
        *self = Peer {
            round_trip,
            ..Peer::default()
        };
    }

    /// After how long an unanswered request is sent again.
    fn retry(&self) -> Duration {
        (self.round_trip.unwrap_or_default() * 4).max(ASK_RETRY)
    }

    /// After how long a silent member is shrunk out (R6).
    fn patience(&self) -> Duration {
        (self.round_trip.unwrap_or_default() * 4).max(SILENCE)
    }

    /// Whether it has owed an answer for longer than that.
    fn is_late(&self, now: Time) -> bool {
        let waited = self.waiting.map(|since| now.since(since));
        waited.is_some_and(|waited| waited >= self.patience())
    }
}

impl Log {
    fn ending(tail: Head) -> Log {
        Log {
            tail,
            adopted: tail.seq,
            acked: Seq::ZERO,
            records: None,
            wanted: false,
            snapshots: VecDeque::new(),
        }
    }

    fn load(&mut self, records: Vec<Record>) {
        self.snapshots.clear();
        let snapshots = records
            .iter()
            .filter(|record| record.kind == RecordKind::Snapshot);
        self.snapshots.extend(snapshots.map(|record| record.seq));
        self.records = Some(records.into());
    }

    /// Whether this head stands in the chain, as far as is known here.
    fn holds(&self, head: Head) -> bool {
        head == self.tail || self.head_at(head.seq) == Some(head)
    }

    fn head_at(&self, seq: Seq) -> Option<Head> {
        if seq == self.tail.seq {
            return Some(self.tail);
        }
        let records = self.records.as_ref()?;
        let first = records.front()?;
        if seq.0 + 1 == first.seq.0 {
            return Some(first.prev);
        }
        let place = usize::try_from(seq.0.checked_sub(first.seq.0)?).ok()?;
        records.get(place).map(Record::head)
    }

    /// The records after `from`, or all of them from the base on; with what they follow.
    fn suffix(&self, from: Option<Head>) -> (Head, bool, Vec<Record>) {
        let none = VecDeque::new();
        let records = self.records.as_ref().unwrap_or(&none);
        let base = records.front().map_or(self.tail, |first| first.prev);
        let (prev, from_base) = match from {
            Some(head) => (head, false),
            None => (base, true),
        };
        let after = || records.iter().skip_while(|record| record.seq <= prev.seq);
        let fit = records_that_fit(after());
        (prev, from_base, after().take(fit).cloned().collect())
    }

    /// Two generations are kept: from the snapshot before the last acknowledged one.
    fn keep_from(&self) -> Seq {
        let acknowledged = self
            .snapshots
            .iter()
            .rev()
            .filter(|seq| **seq <= self.acked);
        acknowledged.copied().nth(1).unwrap_or(Seq::ZERO)
    }

    fn shorten(&mut self) {
        let keep_from = self.keep_from();
        if let Some(records) = &mut self.records {
            while records.front().is_some_and(|record| record.seq < keep_from) {
                records.pop_front();
            }
        }
        while self.snapshots.front().is_some_and(|seq| *seq < keep_from) {
            self.snapshots.pop_front();
        }
    }
}

impl Machine for Owner {
    type Event = Event;
    type Action = Action;
    type Error = Refused;

    fn handle(&mut self, now: Time, event: Event) -> Result<(), Refused> {
        match event {
            Event::View(view) => self.on_view(now, view),
            Event::Answer(answer) => self.on_answer(now, answer)?,
            Event::Write {
                child,
                kind,
                schema,
                body,
            } => self.on_write(now, child, kind, schema, body)?,
            Event::Load(child) => self.on_load(now, child)?,
            Event::Unload(child) => self.on_unload(&child),
            Event::Leave(leaving) => {
                // An exit overrides: the child is gone. A release gives way to nothing else.
                let exits = matches!(leaving, Leaving::Exit(_));
                if self.leaving.is_none()
                    || (exits && !matches!(self.leaving, Some(Leaving::Exit(_))))
                {
                    self.leaving = Some(leaving);
                    self.proposed_at = self.proposed_at.filter(|_| !self.proposed.is_empty());
                }
                self.advance(now);
            }
            Event::Resume => {
                if self.leaving == Some(Leaving::Merge) {
                    self.leaving = None;
                    if self.phase == Phase::Quiet {
                        self.phase = Phase::Serving;
                    }
                    self.advance(now);
                }
            }
            Event::Tick => self.advance(now),
        }
        Ok(())
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn next_deadline(&self) -> Option<Time> {
        // Which of the waits ends first matters less than that none is slept through: while there is
        // anything to wait for, the machine looks again every [`LOOK_AGAIN`].
        let adopt = self.adopt_at();
        let adopts =
            self.phase == Phase::Sealing && self.first_sealed.is_some() && adopt > self.advanced_at;
        let look = self.advanced_at + LOOK_AGAIN;
        self.has_work()
            .then_some(if adopts { look.min(adopt) } else { look })
    }
}

/// How long the takeover waits for the other replicas after the first (T1), at least.
const SEAL_WAIT: Duration = Duration::from_millis(100);

/// How often an owner that waits for something looks again: the grain of its timeouts.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How long a member may be silent before it is shrunk out (R6), at least.
const SILENCE: Duration = Duration::from_millis(300);

/// An unanswered request is sent again after four round trips, and after this at least.
const ASK_RETRY: Duration = Duration::from_millis(50);

/// A fetch may carry megabytes; another holder is asked after this long.
const FETCH_RETRY: Duration = Duration::from_millis(500);

/// A proposal that is not applied is repeated after this: some heartbeats of Raft.
const PROPOSAL_RETRY: Duration = Duration::from_millis(250);

/// A learner that owes an answer for this long gives way to another.
const LEARNER_PATIENCE: Duration = Duration::from_secs(2);

/// After this long without a complete replica the unit is called unavailable (T2).
const UNAVAILABLE_AFTER: Duration = Duration::from_secs(1);

/// Sets proposed from one version: the first, and what better ones came up before it was applied.
const PROPOSED_MAX: usize = 4;

/// Failed learners remembered: with more candidates than this the oldest is worth another try.
const FAILED_LEARNERS_MAX: usize = 8;

/// Children sent to one replica at once, so that mending does not crowd out serving.
const MENDED_AT_ONCE: usize = 32;
