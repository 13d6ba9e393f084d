//! An agent with one unit and one store, and a child that is called again and again.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use understudy_protocol::cluster::agent::{Action, Agent, AgentSettings, Event, Granted};
use understudy_protocol::cluster::calls::{KEY_KEPT, Sealing};
use understudy_protocol::cluster::replication::{
    Opened, Replica, ReplicaAction, ReplicaEvent, UnitView, Write,
};
use understudy_protocol::id::{
    ChildId, ConfigVersion, Epoch, IncarnationId, NodeId, Seq, StoreId, UnitId,
};
use understudy_protocol::machine::Machine;
use understudy_protocol::time::Time;
use understudy_protocol::wire::envelope::{CallId, CallKey, Envelope, Outcome, Route};
use understudy_protocol::wire::record::Record;
use understudy_protocol::wire::replica::{CHAIN_RECORDS_MAX, Scope};

const ME: IncarnationId = IncarnationId(1);
const NODE: NodeId = NodeId(1);
const STORE: StoreId = StoreId(1);
const UNIT: UnitId = UnitId(1);

struct World {
    now: Time,
    agent: Agent,
    replica: Replica,
    records: BTreeMap<Seq, Record>,
    calls: u64,
    outcomes: Vec<Outcome>,
    is_serving: bool,
    state: usize,
}

impl World {
    /// A dedicated child that is served, its agent told to write a snapshot so often.
    fn new(snapshot_every: u64) -> World {
        let settings = AgentSettings {
            incarnation: ME,
            home: STORE,
            key_kept: KEY_KEPT,
            passivate_after: Duration::from_secs(600),
            work_limit: Duration::from_secs(5),
            snapshot_every,
            sealing: Sealing::default(),
        };
        let mut world = World {
            now: Time::from_millis(1),
            agent: Agent::new(settings),
            replica: Replica::open(STORE, ME, Opened::default()),
            records: BTreeMap::new(),
            calls: 0,
            outcomes: Vec::new(),
            is_serving: false,
            state: 0,
        };
        world.tell(Event::Lease(Time::MAX));
        world.grant();
        world
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
            epoch: Epoch(1),
            view,
            stopping: false,
            moving: false,
        };
        self.tell(Event::Units(vec![(UNIT, Some(granted))]));
    }

    /// Tells the agent, and carries everything out that comes of it.
    fn tell(&mut self, event: Event) {
        let _ = self.agent.handle(self.now, event);
        while let Some(action) = self.agent.poll_action() {
            self.now = self.now + Duration::from_millis(1);
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
                Action::Start { child, .. } => self.tell(Event::Started(child)),
                Action::Execute {
                    child,
                    envelope,
                    snapshot,
                } => self.tell(Event::Executed {
                    child,
                    call: envelope.call,
                    answer: Bytes::from_static(b"done").into(),
                    effect: Some(envelope.body.into()),
                    state: snapshot.map(|_| vec![7; self.state].into()),
                    durable: true,
                }),
                Action::Reply(reply) => self.outcomes.push(reply.outcome),
                _ => {}
            }
        }
    }

    fn settle_store(&mut self) {
        while let Some(action) = self.replica.poll_action() {
            match action {
                ReplicaAction::Write { ticket, batch } => {
                    for write in batch {
                        match write {
                            Write::Put(record) => drop(self.records.insert(record.seq, record)),
                            Write::Prune { from, .. } => self.records.retain(|seq, _| *seq >= from),
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

    /// One call, and what came of it.
    fn call(&mut self) -> Outcome {
        self.calls += 1;
        let envelope = Envelope {
            call: CallId {
                gateway: ME,
                number: self.calls,
            },
            to: child(),
            key: CallKey::Internal {
                gateway: ME,
                number: self.calls,
            },
            request_hash: self.calls,
            patience_ms: 1_000,
            body: Bytes::from_static(b"step"),
        };
        let route = Route {
            unit: UNIT,
            node: NODE,
            epoch: Epoch(1),
        };
        self.outcomes.clear();
        self.tell(Event::Call {
            envelope,
            route: Some(route),
        });
        // Its gateway has the answer.
        self.agent
            .handle(self.now, Event::Confirmed(ME, self.calls))
            .unwrap();
        self.outcomes.pop().expect("the store answers at once")
    }
}

fn child() -> ChildId {
    ChildId::parse("@t/counter/a").unwrap()
}

/// So many steps of one child, with snapshots as often as the settings say, each of so many bytes.
fn check(snapshot_every: u64, state_bytes: usize) {
    let mut world = World::new(snapshot_every);
    world.state = state_bytes;
    for step in 1..=10 * CHAIN_RECORDS_MAX {
        let outcome = world.call();
        assert!(
            matches!(outcome, Outcome::Answered { .. }),
            "every {snapshot_every}, step {step}: {outcome:?}"
        );
        assert!(world.records.len() <= CHAIN_RECORDS_MAX, "step {step}");
    }
}

#[test]
fn a_child_takes_more_steps_than_its_chain_holds_however_rare_its_snapshots_are_to_be() {
    for snapshot_every in [1, 2, 40, 62, 63, 64, 65, 127, 128, 1_000, u64::MAX] {
        check(snapshot_every, 8);
    }
}
