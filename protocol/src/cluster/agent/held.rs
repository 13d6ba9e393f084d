//! Replies that are held back: their limit.

use super::*;
use crate::cluster::replication::{Opened, Replica, ReplicaAction, ReplicaEvent, UnitView, Write};
use crate::id::{ConfigVersion, Epoch, NodeId, SlotRange};
use crate::wire::envelope::CallKey;

/// A node with one shard on its own store, which flushes promises and no record.
struct Node {
    agent: Agent,
    replica: Replica,
    executed: usize,
    replies: Vec<Outcome>,
}

const SHARD: UnitId = UnitId(1);

impl Node {
    fn serving() -> Node {
        let (incarnation, home) = (IncarnationId(9), StoreId(1));
        let settings = AgentSettings {
            incarnation,
            home,
            key_kept: Duration::from_secs(600),
            passivate_after: Duration::from_secs(60),
            work_limit: Duration::from_secs(60),
            snapshot_every: 1_000,
            sealing: Sealing::default(),
        };
        let mut node = Node {
            agent: Agent::new(settings),
            replica: Replica::open(home, incarnation, Opened::default()),
            executed: 0,
            replies: Vec::new(),
        };
        let scope = Scope::Slots {
            range: SlotRange::ALL,
            except: Vec::new(),
        };
        let view = UnitView {
            scope,
            config: ConfigVersion(1),
            set: [home].into(),
            min_copies: 1,
            wanted: 1,
            candidates: Vec::new(),
            unreachable: BTreeSet::new(),
            move_to: None,
            serving: false,
        };
        let granted = Granted {
            epoch: Epoch(1),
            view,
            stopping: false,
            moving: false,
        };
        node.tell(Event::Lease(Time::MAX));
        node.tell(Event::Units([(SHARD, Some(granted))].into()));
        node
    }

    fn tell(&mut self, event: Event) {
        self.agent.handle(Time::ZERO, event).expect("taken in");
        while let Some(action) = self.agent.poll_action() {
            match action {
                Action::Ask { request, .. } => self.ask(request),
                Action::Start { child, .. } => self.tell(Event::Started(child)),
                Action::Execute {
                    child, envelope, ..
                } => {
                    self.executed += 1;
                    self.tell(Event::Executed {
                        child,
                        call: envelope.call,
                        answer: Bytes::new().into(),
                        effect: Some(Bytes::from_static(b"step").into()),
                        state: None,
                        durable: true,
                    });
                }
                Action::Reply(reply) => self.replies.push(reply.outcome),
                _ => {}
            }
        }
    }

    fn ask(&mut self, request: ReplicaRequest) {
        let from = NodeId(1);
        let asked = ReplicaEvent::Asked { from, request };
        self.replica.handle(Time::ZERO, asked).expect("taken in");
        while let Some(action) = self.replica.poll_action() {
            match action {
                ReplicaAction::Write { ticket, batch } => {
                    let record = |write: &Write| matches!(write, Write::Put(_));
                    if !batch.iter().any(record) {
                        let flushed = ReplicaEvent::Flushed { ticket };
                        self.replica.handle(Time::ZERO, flushed).expect("flushed");
                    }
                }
                ReplicaAction::Answer { answer, .. } => self.tell(Event::Answer(answer)),
                ReplicaAction::Read { .. } => {}
            }
        }
    }

    fn call(&mut self, number: u64, key: &str) {
        let gateway = IncarnationId(5);
        let envelope = Envelope {
            call: CallId { gateway, number },
            to: ChildId::parse("t/k/c").expect("a child id"),
            key: CallKey::Client(key.into()),
            request_hash: 1,
            patience_ms: 1_000,
            body: Bytes::new(),
        };
        let route = Route {
            unit: SHARD,
            epoch: Epoch(1),
            node: NodeId(1),
        };
        self.tell(Event::Call {
            envelope,
            route: Some(route),
        });
    }
}

#[test]
fn replies_that_wait_for_one_record_have_a_limit_though_the_call_is_the_same() {
    let mut node = Node::serving();
    for number in 0..HELD_MAX as u64 {
        node.call(number, "again");
    }
    assert_eq!((node.executed, node.agent.usage().1), (1, HELD_MAX));
    assert_eq!(node.replies, []);
    node.call(9_999, "again");
    let retry_after_ms = RETRY_AFTER_MS;
    assert_eq!(node.replies, [Outcome::Overloaded { retry_after_ms }]);
    assert_eq!((node.executed, node.agent.usage().1), (1, HELD_MAX));
}
