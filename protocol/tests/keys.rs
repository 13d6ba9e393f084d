//! Keyed calls of one child, thousands of them, whose owner dies now and then: none is forgotten, and
//! none is carried out twice (rule E2).
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use understudy_protocol::cluster::agent::{Action, Agent, AgentSettings, Event, Granted};
use understudy_protocol::cluster::calls::{CALLS_MAX, KEY_KEPT, Sealing};
use understudy_protocol::cluster::replication::{
    Opened, Replica, ReplicaAction, ReplicaEvent, UnitView, Write,
};
use understudy_protocol::id::{
    ChildId, ConfigVersion, Epoch, IncarnationId, NodeId, Seq, StoreId, UnitId,
};
use understudy_protocol::machine::Machine;
use understudy_protocol::time::Time;
use understudy_protocol::wire::content::{Content, PIECE_BYTES, PieceName, Pieces};
use understudy_protocol::wire::envelope::{CallId, CallKey, Envelope, Outcome, Route};
use understudy_protocol::wire::record::{Record, RecordKind};
use understudy_protocol::wire::replica::Scope;
use understudy_protocol::wire::step::named_by;

const NODE: NodeId = NodeId(1);
const STORE: StoreId = StoreId(1);
const UNIT: UnitId = UnitId(1);

/// One store, one owner after the other, and a child that counts its calls.
struct World {
    now: Time,
    epoch: u64,
    agent: Agent,
    replica: Replica,
    records: BTreeMap<Seq, Record>,
    pieces: BTreeMap<PieceName, Bytes>,
    sealing: Sealing,
    calls: u64,
    sum: u64,
    outcomes: Vec<Outcome>,
    is_serving: bool,
    /// The owner dies when it has carried out so many actions more.
    dies_after: Option<u64>,
    /// Bytes of bases, and of pieces that were new.
    written: (u64, u64),
    bases: u64,
}

impl World {
    fn new(sealing: Sealing) -> World {
        let mut world = World {
            now: Time::from_millis(1),
            epoch: 0,
            agent: agent(0, sealing),
            replica: Replica::open(STORE, IncarnationId(1), Opened::default()),
            records: BTreeMap::new(),
            pieces: BTreeMap::new(),
            sealing,
            calls: 0,
            sum: 0,
            outcomes: Vec::new(),
            is_serving: false,
            dies_after: None,
            written: (0, 0),
            bases: 0,
        };
        world.take_over();
        world
    }

    /// Another owner begins, with what is in the store.
    fn take_over(&mut self) {
        self.epoch += 1;
        self.dies_after = None;
        self.is_serving = false;
        self.agent = agent(self.epoch, self.sealing);
        self.tell(Event::Lease(Time::MAX));
        self.grant();
    }

    fn grant(&mut self) {
        let view = UnitView {
            scope: Scope::Child(child()),
            config: ConfigVersion(1),
            set: BTreeSet::from([STORE]),
            min_copies: 1,
            wanted: 1,
            candidates: vec![STORE],
            unreachable: BTreeSet::new(),
            move_to: None,
            serving: self.is_serving,
        };
        let granted = Granted {
            epoch: Epoch(self.epoch),
            view,
            stopping: false,
            moving: false,
        };
        self.tell(Event::Units(vec![(UNIT, Some(granted))]));
    }

    /// Tells the agent, and carries everything out that comes of it, unless it dies meanwhile.
    fn tell(&mut self, event: Event) {
        let _ = self.agent.handle(self.now, event);
        while let Some(action) = self.agent.poll_action() {
            match &mut self.dies_after {
                Some(0) => return,
                Some(left) => *left -= 1,
                None => {}
            }
            match action {
                Action::Ask { request, .. } => {
                    let asked = ReplicaEvent::Asked {
                        from: NODE,
                        request,
                    };
                    let _ = self.replica.handle(self.now, asked);
                    self.settle_store();
                }
                Action::Propose(_) if !self.is_serving => {
                    self.is_serving = true;
                    self.grant();
                }
                Action::Start {
                    base, steps, calls, ..
                } => self.start(base, &steps, calls),
                Action::Execute {
                    envelope, snapshot, ..
                } => {
                    let asks_state = snapshot.is_some();
                    for (name, part) in snapshot.unwrap_or_default() {
                        if self.pieces.insert(name, part.clone()).is_none() {
                            self.written.1 += part.len() as u64;
                        }
                    }
                    self.sum += 1;
                    let sum = Bytes::copy_from_slice(&self.sum.to_be_bytes());
                    self.tell(Event::Executed {
                        child: child(),
                        call: envelope.call,
                        answer: sum.clone().into(),
                        effect: Some(Bytes::from_static(b"1").into()),
                        state: asks_state.then(|| sum.into()),
                        durable: true,
                    });
                }
                Action::Reply(reply) => self.outcomes.push(reply.outcome),
                _ => {}
            }
        }
    }

    fn start(&mut self, base: Option<Content>, steps: &[Content], calls: Option<Pieces>) {
        let base = base.map(|base| base.inline().unwrap().clone());
        let base = base.map_or(0, |base| u64::from_be_bytes(base[..].try_into().unwrap()));
        self.sum = base + steps.len() as u64;
        if let Some(calls) = calls {
            let list = calls.list().map(|list| &self.pieces[&list][..]);
            let names = calls.names(list).unwrap();
            let value = calls.join(&names, |name| self.pieces.get(&name)).unwrap();
            for piece in value.chunks(PIECE_BYTES) {
                let piece = Bytes::copy_from_slice(piece);
                let child = child();
                self.tell(Event::Recalled { child, piece });
            }
        }
        self.tell(Event::Started(child()));
    }

    fn settle_store(&mut self) {
        while let Some(action) = self.replica.poll_action() {
            match action {
                ReplicaAction::Write { ticket, batch } => {
                    for write in batch {
                        match write {
                            Write::Put(record) => self.put(record),
                            Write::Prune { from, .. } => self.records.retain(|seq, _| *seq >= from),
                            Write::Truncate { after, .. } => {
                                self.records.retain(|seq, _| *seq <= after);
                            }
                            _ => {}
                        }
                    }
                    let _ = self
                        .replica
                        .handle(self.now, ReplicaEvent::Flushed { ticket });
                }
                ReplicaAction::Read { read, after, .. } => {
                    let records = self.records.range(after.next()..);
                    let records = records.map(|(_, record)| record.clone()).collect();
                    let _ = self
                        .replica
                        .handle(self.now, ReplicaEvent::Read { read, records });
                }
                ReplicaAction::Answer { answer, .. } => self.tell(Event::Answer(answer)),
            }
        }
    }

    fn put(&mut self, record: Record) {
        for pieces in named_by(&record).unwrap() {
            let list = pieces.list().map(|list| &self.pieces[&list][..]);
            for name in pieces.names(list).unwrap() {
                assert!(
                    self.pieces.contains_key(&name),
                    "it is kept before it is named"
                );
            }
        }
        if record.kind == RecordKind::Snapshot {
            self.written.0 += record.body.len() as u64;
            self.bases += 1;
        }
        self.records.insert(record.seq, record);
    }

    /// One attempt of a call, and what came of it; nothing if its owner died.
    fn call(&mut self, key: u64, request_hash: u64) -> Option<Outcome> {
        self.calls += 1;
        let gateway = IncarnationId(9);
        let envelope = Envelope {
            call: CallId {
                gateway,
                number: self.calls,
            },
            to: child(),
            key: CallKey::Client(format!("7f3a-{key:027}")),
            request_hash,
            patience_ms: 1_000,
            body: Bytes::from_static(b"add 1"),
        };
        let route = Some(Route {
            unit: UNIT,
            node: NODE,
            epoch: Epoch(self.epoch),
        });
        self.outcomes.clear();
        self.tell(Event::Call { envelope, route });
        self.outcomes.pop()
    }

    /// Asked until it is answered, by whoever owns it then.
    fn answer(&mut self, key: u64) -> u64 {
        loop {
            match self.call(key, 1) {
                Some(Outcome::Answered { body, .. }) => {
                    return u64::from_be_bytes(body[..].try_into().unwrap());
                }
                None => self.take_over(),
                other => panic!("key {key}: {other:?}"),
            }
        }
    }
}

fn agent(epoch: u64, sealing: Sealing) -> Agent {
    Agent::new(AgentSettings {
        incarnation: IncarnationId(epoch),
        home: STORE,
        key_kept: KEY_KEPT,
        passivate_after: Duration::from_secs(600),
        work_limit: Duration::from_secs(5),
        snapshot_every: 40,
        sealing,
    })
}

fn child() -> ChildId {
    ChildId::parse("@t/counter/a").unwrap()
}

#[test]
fn ten_thousand_keyed_calls_in_a_minute_are_all_remembered_also_by_the_next_owner() {
    let mut world = World::new(Sealing::default());
    for key in 1..=10_000 {
        world.now = world.now + Duration::from_millis(6);
        assert_eq!(world.answer(key), key);
    }
    assert_eq!(world.agent.usage().2, 10_000);
    for _ in 0..2 {
        assert_eq!(world.answer(1), 1, "it is not counted twice");
        assert_eq!(world.call(1, 2), Some(Outcome::Conflict));
        world.now = world.now + Duration::from_secs(500);
        world.take_over();
    }
    for key in 1..=10_000 {
        assert_eq!(world.answer(key), key, "its time was counted anew");
    }
    assert_eq!(world.answer(10_001), 10_001);
    assert_eq!(world.call(10_000, 2), Some(Outcome::Conflict));
}

#[test]
fn a_full_table_is_overloaded_and_says_when_there_is_room_again() {
    let mut world = World::new(Sealing::default());
    for key in 1..=CALLS_MAX as u64 {
        assert_eq!(world.answer(key), key);
    }
    world.now = world.now + Duration::from_secs(400);
    for _ in 0..2 {
        let retry_after_ms = match world.epoch {
            1 => 200_000,
            _ => 600_000, // counted anew
        };
        let full = Outcome::Overloaded { retry_after_ms };
        assert_eq!(world.call(u64::MAX, 1), Some(full));
        assert_eq!(world.answer(1), 1, "nothing is evicted early");
        let began = std::time::Instant::now();
        world.take_over();
        println!("{CALLS_MAX} are read in {:?}", began.elapsed());
    }
    world.now = world.now + KEY_KEPT;
    assert_eq!(world.answer(u64::MAX), CALLS_MAX as u64 + 1);
}

#[test]
fn nothing_is_lost_or_done_twice_wherever_its_owner_dies_while_a_base_is_written() {
    // Bases with calls in pieces, every few dozen calls.
    let sealing = Sealing {
        at_bytes: 1_000,
        piece_bytes: 3_000,
    };
    let mut world = World::new(sealing);
    let mut answers = Vec::new();
    let mut seed = 7_u64;
    for key in 1..=3_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        if (seed >> 33).is_multiple_of(10) {
            world.dies_after = Some((seed >> 40) % 12);
        }
        answers.push(world.answer(key));
        if key % 500 == 0 {
            world.dies_after = None;
            for (key, answer) in (1..).zip(&answers) {
                assert_eq!(world.answer(key), *answer);
            }
        }
    }
    assert!(world.epoch > 150, "only {} owners", world.epoch);
    let distinct: BTreeSet<u64> = answers.iter().copied().collect();
    assert_eq!(distinct.len(), answers.len());
    world.take_over();
    assert_eq!(world.sum, 3_000, "each was carried out once");
}

/// Prints what a base costs: `cargo test --test keys -- --nocapture what_a_base`.
#[test]
fn what_a_base_writes_hardly_grows_with_what_is_remembered() {
    let mut world = World::new(Sealing::default());
    let mut costs = Vec::new();
    for tens in 1..=10 {
        let before = (world.written, world.bases);
        let began = std::time::Instant::now();
        for key in (tens - 1) * 10_000..tens * 10_000 {
            world.answer(key);
        }
        let bases = world.bases - before.1;
        let each = |now: u64, before: u64| (now - before) / bases;
        let (base, pieces) = (
            each(world.written.0, before.0.0),
            each(world.written.1, before.0.1),
        );
        let call = began.elapsed() / 10_000;
        println!(
            "{tens:>3}0,000 remembered: {base:>6} bytes a base, {pieces:>6} of new pieces; {call:?} a call"
        );
        costs.push(base + pieces);
    }
    assert!(costs[9] < 2 * costs[0], "{costs:?}");
}
