//! A seeded cluster of Raft members over a bad network and bad disks, and a judge of what they say.
//!
//! Owns: time, messages, disks and their faults. Never does: anything a member should do. The judge
//! panics, so that a seed which breaks Raft's promises fails its test with the seed's number.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use understudy_protocol::id::{LogId, LogIndex, StoreId, Term};
use understudy_protocol::machine::Machine;
use understudy_protocol::time::Time;

use crate::raft::{
    Action, Config, Entry, Event, Members, Message, Payload, Persisted, Raft, Refused, Write,
};

/// Splitmix64, as in the member itself.
#[derive(Clone)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.draw() % (range.end - range.start)
    }

    pub(super) fn chance(&mut self, per_mille: u64) -> bool {
        self.draw() % 1000 < per_mille
    }
}

/// How bad network and disks are.
#[derive(Clone)]
pub(super) struct Weather {
    pub(super) loss_per_mille: u64,
    pub(super) doubled_per_mille: u64,
    pub(super) delay_us: Range<u64>,
    pub(super) flush_us: Range<u64>,
}

impl Weather {
    pub(super) fn fine() -> Weather {
        Weather {
            loss_per_mille: 0,
            doubled_per_mille: 0,
            delay_us: 100..400,
            flush_us: 100..1_000,
        }
    }

    pub(super) fn foul() -> Weather {
        Weather {
            loss_per_mille: 60,
            doubled_per_mille: 60,
            delay_us: 100..30_000,
            flush_us: 100..20_000,
        }
    }
}

/// What a cluster under test gets wrong on purpose, to prove that the judge notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sabotage {
    None,
    /// Every write is reported flushed before it is.
    LyingDisk,
    /// A restart does not remember whom it voted for, nor the term.
    ForgottenVote,
    /// A restart sometimes finds an empty disk under the old store id.
    ReusedStoreId,
}

enum What {
    Deliver {
        to: StoreId,
        from: StoreId,
        message: Message<u64>,
    },
    Flush {
        store: StoreId,
        start: u64,
        ticket: u64,
    },
    Tick {
        store: StoreId,
        start: u64,
    },
    Restart {
        store: StoreId,
    },
}

pub(super) struct Node {
    pub(super) raft: Option<Raft<u64>>,
    pub(super) disk: Persisted<u64>,
    unflushed: VecDeque<(u64, Write<u64>)>,
    disk_free_at: Time,
    paused_until: Time,
    tick_at: Option<Time>,
    start: u64,
    may_lead: bool,
    /// The application: the last entry applied and a digest of all of them.
    state: (LogIndex, u64),
    last_snapshot: LogIndex,
    pub(super) snapshots_installed: u64,
}

pub(super) struct Cluster {
    pub(super) now: Time,
    pub(super) random: Random,
    pub(super) weather: Weather,
    pub(super) sabotage: Sabotage,
    pub(super) config: Config,
    /// How many entries an application applies before it makes a snapshot.
    pub(super) snapshot_every: u64,
    pub(super) nodes: BTreeMap<StoreId, Node>,
    /// Pairs `(from, to)` between which nothing passes.
    pub(super) cut: BTreeSet<(StoreId, StoreId)>,
    pub(super) messages: u64,
    queue: BTreeMap<(Time, u64), What>,
    queued: u64,
    pub(super) judge: Judge,
}

/// What has been said for good.
#[derive(Default)]
pub(super) struct Judge {
    pub(super) leaders: BTreeMap<Term, StoreId>,
    /// The entry at index 1, 2, …, with the digest up to it and the lowest term in which somebody
    /// had applied it.
    pub(super) committed: Vec<(Arc<Entry<u64>>, u64, Term)>,
    /// The payload and predecessor of every entry ever found on a disk.
    seen: BTreeMap<LogId, (Payload<u64>, Option<LogId>)>,
    /// Proposals that were applied where they had been made.
    pub(super) tokens_outstanding: BTreeMap<u64, LogId>,
}

pub(super) fn store(n: u64) -> StoreId {
    StoreId(n)
}

impl Cluster {
    pub(super) fn of(members: u64, seed: u64, weather: Weather) -> Cluster {
        let founders = Members::of((1..=members).map(store));
        let mut cluster = Cluster {
            now: Time::from_millis(1_000),
            random: Random(seed),
            weather,
            sabotage: Sabotage::None,
            config: Config::default(),
            snapshot_every: 50,
            nodes: BTreeMap::new(),
            cut: BTreeSet::new(),
            messages: 0,
            queue: BTreeMap::new(),
            queued: 0,
            judge: Judge::default(),
        };
        for n in 1..=members {
            cluster.add(store(n), Persisted::founded(founders.clone()));
        }
        cluster
    }

    /// Starts one more member from `disk`.
    pub(super) fn add(&mut self, id: StoreId, disk: Persisted<u64>) {
        self.nodes.insert(
            id,
            Node {
                raft: None,
                disk,
                unflushed: VecDeque::new(),
                disk_free_at: Time::ZERO,
                paused_until: Time::ZERO,
                tick_at: None,
                start: 0,
                may_lead: true,
                state: (LogIndex::ZERO, 0),
                last_snapshot: LogIndex::ZERO,
                snapshots_installed: 0,
            },
        );
        self.restart(id);
    }

    pub(super) fn run_for(&mut self, span: Duration) {
        let end = self.now + span;
        while let Some((&(at, _), _)) = self.queue.first_key_value() {
            if at > end {
                break;
            }
            let (_, what) = self.queue.pop_first().unwrap();
            self.now = at;
            self.happen(what);
        }
        self.now = end;
    }

    /// Runs until `done`, and panics when that takes longer than `limit`.
    pub(super) fn run_until(
        &mut self,
        what: &str,
        limit: Duration,
        done: impl Fn(&Cluster) -> bool,
    ) {
        let end = self.now + limit;
        while !done(self) {
            assert!(
                self.now < end,
                "{what} did not happen within {limit:?}: {}",
                self.summary()
            );
            self.run_for(Duration::from_millis(5));
        }
    }

    /// The leader of the highest term among those up that lead.
    pub(super) fn leader(&self) -> Option<StoreId> {
        let leading = self.nodes.iter().filter_map(|(id, node)| {
            let raft = node.raft.as_ref().filter(|raft| raft.is_leader())?;
            Some((raft.term(), *id))
        });
        leading.max().map(|(_, id)| id)
    }

    pub(super) fn raft(&self, id: StoreId) -> &Raft<u64> {
        self.nodes[&id].raft.as_ref().unwrap()
    }

    pub(super) fn event(&mut self, id: StoreId, event: Event<u64>) -> Result<(), Refused> {
        let now = self.now;
        let raft = self.nodes.get_mut(&id).unwrap().raft.as_mut();
        let outcome = raft.expect("the node is up").handle(now, event);
        self.drain(id);
        outcome
    }

    pub(super) fn propose(&mut self, id: StoreId, command: u64) -> Result<(), Refused> {
        let token = command;
        self.event(id, Event::Propose { token, command })
    }

    /// Proposes to whoever leads until that is applied everywhere in `on`.
    pub(super) fn settle(&mut self, on: &[StoreId]) {
        let mut marks = BTreeSet::new();
        let mut asked_at = Time::ZERO;
        let end = self.now + Duration::from_secs(6);
        loop {
            if self.now.since(asked_at) > Duration::from_millis(500)
                && let Some(leader) = self.leader()
            {
                let mark = 1_000_000 + self.random.draw() % 1_000_000_000;
                if self.propose(leader, mark).is_ok() {
                    marks.insert(mark);
                    asked_at = self.now;
                }
            }
            let marked = self.judge.committed.iter().rev().find(|(entry, ..)| {
                matches!(&entry.payload, Payload::Command(command) if marks.contains(command))
            });
            let index = marked.map(|(entry, ..)| entry.id.index);
            if index.is_some_and(|i| on.iter().all(|id| self.nodes[id].state.0 >= i)) {
                return;
            }
            assert!(
                self.now < end,
                "the cluster did not settle: {}",
                self.summary()
            );
            self.run_for(Duration::from_millis(10));
        }
    }

    pub(super) fn crash(&mut self, id: StoreId) {
        let node = self.nodes.get_mut(&id).unwrap();
        if node.raft.take().is_none() {
            return;
        }
        // What was under way may have reached the disk, up to any point, without a report.
        let survives = self.random.within(0..node.unflushed.len() as u64 + 1);
        for (_, write) in node.unflushed.drain(..).take(survives as usize) {
            node.disk.apply(write);
        }
        node.disk_free_at = Time::ZERO;
        node.paused_until = Time::ZERO;
        node.start += 1;
    }

    pub(super) fn restart_at(&mut self, id: StoreId, at: Time) {
        self.enqueue(at, What::Restart { store: id });
    }

    pub(super) fn restart(&mut self, id: StoreId) {
        let seed = self.random.draw();
        let wipes = self.random.chance(300);
        let node = self.nodes.get_mut(&id).unwrap();
        if node.raft.is_some() {
            return;
        }
        match self.sabotage {
            Sabotage::ForgottenVote => {
                let term = Term(node.disk.hard_state.term.0.saturating_sub(1));
                let voted_for = None;
                node.disk
                    .apply(Write::HardState(crate::raft::HardState { term, voted_for }));
            }
            Sabotage::ReusedStoreId if wipes && node.start > 0 => {
                node.disk = Persisted::founded(Members::of((1..=3).map(store)));
            }
            _ => {}
        }
        node.start += 1;
        node.tick_at = None;
        node.state = (LogIndex::ZERO, 0);
        node.last_snapshot = LogIndex::ZERO;
        node.may_lead = true;
        let disk = node.disk.clone();
        let mut raft = Raft::restart(id, self.config, seed, disk, self.now);
        assert_eq!(raft.held_last(), node.disk.last());
        // A restart that finds its log first says so.
        let said = raft.clone().poll_action();
        let says = matches!(
            said,
            Some(Action::Appended { .. } | Action::InstallSnapshot { .. })
        );
        assert_eq!(says, node.disk.last() != LogId::default());
        raft.handle(self.now, Event::Tick).unwrap();
        node.raft = Some(raft);
        self.drain(id);
    }

    pub(super) fn pause(&mut self, id: StoreId, span: Duration) {
        self.nodes.get_mut(&id).unwrap().paused_until = self.now + span;
    }

    pub(super) fn stall_disk(&mut self, id: StoreId, span: Duration) {
        let free_at = self.now + span;
        let node = self.nodes.get_mut(&id).unwrap();
        node.disk_free_at = node.disk_free_at.max(free_at);
    }

    /// Cuts `side` off from everybody else, both ways.
    pub(super) fn partition(&mut self, side: &[StoreId]) {
        let all: Vec<_> = self.nodes.keys().copied().collect();
        for &a in &all {
            for &b in &all {
                if side.contains(&a) != side.contains(&b) {
                    self.cut.insert((a, b));
                }
            }
        }
    }

    /// Ends every fault and brings every node up.
    pub(super) fn heal(&mut self) {
        self.weather = Weather::fine();
        self.cut.clear();
        let ids: Vec<_> = self.nodes.keys().copied().collect();
        for id in ids {
            self.restart(id);
            self.may_lead(id, true);
        }
    }

    pub(super) fn may_lead(&mut self, id: StoreId, may_lead: bool) {
        let node = self.nodes.get_mut(&id).unwrap();
        if node.raft.is_some() && node.may_lead != may_lead {
            node.may_lead = may_lead;
            self.event(id, Event::MayLead(may_lead)).unwrap();
        }
    }

    /// Every disk's log agrees with all that was ever seen on a disk (log matching, 3.5).
    pub(super) fn audit(&mut self) {
        for node in self.nodes.values() {
            self.judge.read_disk(&node.disk);
        }
    }

    fn enqueue(&mut self, at: Time, what: What) {
        self.queued += 1;
        self.queue.insert((at.max(self.now), self.queued), what);
    }

    fn happen(&mut self, what: What) {
        let (id, start) = match &what {
            What::Deliver { to, .. } => (*to, None),
            What::Flush { store, start, .. } | What::Tick { store, start } => {
                (*store, Some(*start))
            }
            What::Restart { store } => return self.restart(*store),
        };
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        if node.raft.is_none() || start.is_some_and(|start| start != node.start) {
            return;
        }
        if node.paused_until > self.now {
            let until = node.paused_until;
            return self.enqueue(until, what);
        }
        let event = match what {
            What::Deliver { from, message, .. } => Event::Receive { from, message },
            What::Flush { ticket, .. } => {
                while let Some((_, write)) = node.unflushed.pop_front_if(|(t, _)| *t <= ticket) {
                    node.disk.apply(write);
                }
                Event::Flushed { ticket }
            }
            _ => {
                node.tick_at = None;
                Event::Tick
            }
        };
        let raft = node.raft.as_mut().unwrap();
        raft.handle(self.now, event).unwrap();
        self.drain(id);
    }

    fn drain(&mut self, id: StoreId) {
        let now = self.now;
        loop {
            let node = self.nodes.get_mut(&id).unwrap();
            let raft = node.raft.as_mut().unwrap();
            let Some(action) = raft.poll_action() else {
                break;
            };
            match action {
                Action::Send { to, message } => self.send(id, to, message),
                Action::Persist { ticket, write } => {
                    node.unflushed.push_back((ticket, write));
                    let takes = self.random.within(self.weather.flush_us.clone());
                    let at = node.disk_free_at.max(now) + Duration::from_micros(takes);
                    node.disk_free_at = at;
                    let (store, start) = (id, node.start);
                    if self.sabotage == Sabotage::LyingDisk {
                        raft.handle(now, Event::Flushed { ticket }).unwrap();
                    }
                    self.enqueue(
                        at,
                        What::Flush {
                            store,
                            start,
                            ticket,
                        },
                    );
                }
                Action::Apply { entry } => {
                    assert_eq!(entry.id.index, node.state.0.next(), "{id} applies in order");
                    let digest = self.judge.applied(&entry, node.state.1, raft.term());
                    node.state = (entry.id.index, digest);
                    self.maybe_snapshot(id);
                }
                Action::InstallSnapshot { last, data, .. } => {
                    let digest = u64::from_le_bytes(data[..].try_into().unwrap());
                    assert!(last.index > node.state.0, "a snapshot goes forward");
                    self.judge.installed(last, digest);
                    node.state = (last.index, digest);
                    node.last_snapshot = last.index;
                    node.snapshots_installed += 1;
                }
                Action::Role { leader: true, term } => {
                    let raft = raft.clone();
                    self.judge.elected(id, term, &raft);
                }
                Action::Proposed { token, id } => {
                    self.judge.tokens_outstanding.insert(token, id);
                }
                Action::ProposalLost { token } => {
                    let was = self.judge.tokens_outstanding.remove(&token);
                    assert!(was.is_some(), "only a proposal can be lost");
                }
                Action::Appended { .. }
                | Action::Truncated { .. }
                | Action::Role { .. }
                | Action::LeaderKnown { .. } => {}
            }
        }
        let node = self.nodes.get_mut(&id).unwrap();
        let deadline = node.raft.as_ref().unwrap().next_deadline();
        if let Some(deadline) = deadline
            && node.tick_at.is_none_or(|at| deadline < at)
        {
            node.tick_at = Some(deadline);
            let (store, start) = (id, node.start);
            self.enqueue(deadline, What::Tick { store, start });
        }
    }

    fn send(&mut self, from: StoreId, to: StoreId, message: Message<u64>) {
        self.messages += 1;
        let weather = &self.weather;
        if self.cut.contains(&(from, to)) || self.random.chance(weather.loss_per_mille) {
            return;
        }
        let copies = 1 + u64::from(self.random.chance(weather.doubled_per_mille));
        for _ in 0..copies {
            let delay = self.random.within(self.weather.delay_us.clone());
            let message = message.clone();
            self.enqueue(
                self.now + Duration::from_micros(delay),
                What::Deliver { to, from, message },
            );
        }
    }

    fn maybe_snapshot(&mut self, id: StoreId) {
        let now = self.now;
        let node = self.nodes.get_mut(&id).unwrap();
        let (upto, digest) = node.state;
        if upto.0 - node.last_snapshot.0 < self.snapshot_every {
            return;
        }
        node.last_snapshot = upto;
        let data = Bytes::copy_from_slice(&digest.to_le_bytes());
        let raft = node.raft.as_mut().unwrap();
        raft.handle(now, Event::SnapshotMade { upto, data })
            .unwrap();
    }

    fn summary(&self) -> String {
        let lines = self.nodes.iter().map(|(id, node)| match &node.raft {
            None => format!("\n{id} is down"),
            Some(raft) => format!(
                "\n{id} leads {} term {} held {:?} commit {} applied {} members {:?}",
                raft.is_leader(),
                raft.term(),
                raft.held_last(),
                raft.commit_index(),
                raft.applied_index(),
                raft.members()
            ),
        });
        lines.collect()
    }
}

impl Judge {
    /// At most one leader a term; and it holds all that was committed in earlier terms.
    fn elected(&mut self, id: StoreId, term: Term, raft: &Raft<u64>) {
        let first = *self.leaders.entry(term).or_insert(id);
        assert_eq!(first, id, "two leaders in {term}");
        let older = self
            .committed
            .iter()
            .rev()
            .find(|(.., in_term)| *in_term < term);
        if let Some((entry, ..)) = older
            && entry.id.index > raft.log.start().index
        {
            let held = raft.log.id_at(entry.id.index);
            assert_eq!(held, Some(entry.id), "the leader of {term} lacks an entry");
        }
    }

    /// Everybody applies the same entries.
    fn applied(&mut self, entry: &Arc<Entry<u64>>, digest: u64, term: Term) -> u64 {
        let payload = match &entry.payload {
            Payload::Command(command) => *command,
            Payload::Blank => 1,
            Payload::Members(members) => members.all().fold(2, |sum, store| sum * 31 + store.0),
        };
        let digest = Random(digest ^ payload ^ entry.id.term.0.rotate_left(32)).draw();
        let nth = entry.id.index.0 as usize - 1;
        assert!(
            nth <= self.committed.len(),
            "nothing is applied before its turn"
        );
        if let Some((first, first_digest, in_term)) = self.committed.get_mut(nth) {
            assert_eq!(first, entry, "two entries were committed in one place");
            assert_eq!(*first_digest, digest, "two histories");
            *in_term = term.min(*in_term);
        } else {
            self.committed.push((entry.clone(), digest, term));
        }
        digest
    }

    fn installed(&self, last: LogId, digest: u64) {
        let (entry, committed, _) = &self.committed[last.index.0 as usize - 1];
        assert_eq!((entry.id, *committed), (last, digest), "a false snapshot");
    }

    fn read_disk(&mut self, disk: &Persisted<u64>) {
        let mut before = Some(disk.start);
        for entry in disk.entries() {
            let found = (entry.payload.clone(), before);
            let first = self.seen.entry(entry.id).or_insert_with(|| found.clone());
            assert_eq!(*first, found, "one id, two entries or two pasts");
            before = Some(entry.id);
        }
    }
}
