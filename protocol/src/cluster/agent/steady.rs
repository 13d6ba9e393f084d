//! A shard whose children are called over and over: nothing gathers that is never taken away.

use super::*;
use crate::cluster::replication::{Opened, Replica, ReplicaAction, ReplicaEvent, UnitView};
use crate::id::{ConfigVersion, Epoch, NodeId, SlotRange};
use crate::wire::envelope::CallKey;

const UNIT: UnitId = UnitId(1);
const STORE: StoreId = StoreId(1);

/// An agent that serves one shard, its one store, and a child that takes a step a call.
struct Stage {
    agent: Agent,
    store: Replica,
    now: Time,
    said: Vec<Action>,
}

impl Stage {
    fn serving(snapshot_every: u64) -> Stage {
        let (incarnation, second) = (IncarnationId(1), Duration::from_secs(1));
        let agent = Agent::new(AgentSettings {
            incarnation,
            home: STORE,
            key_kept: 600 * second,
            passivate_after: 300 * second,
            work_limit: 30 * second,
            snapshot_every,
            sealing: Sealing::default(),
        });
        let mut stage = Stage {
            agent,
            store: Replica::open(STORE, incarnation, Opened::default()),
            now: Time::from_millis(1),
            said: Vec::new(),
        };
        let view = UnitView {
            scope: Scope::Slots {
                range: SlotRange::ALL,
                except: Vec::new(),
            },
            config: ConfigVersion(1),
            set: [STORE].into(),
            min_copies: 1,
            wanted: 1,
            candidates: Vec::new(),
            unreachable: BTreeSet::new(),
            move_to: None,
            serving: false,
        };
        let mut granted = Granted {
            epoch: Epoch(1),
            view,
            stopping: false,
            moving: false,
        };
        stage.tell(Event::Lease(Time::MAX));
        stage.tell(Event::Units(Vec::from([(UNIT, Some(granted.clone()))])));
        granted.view.serving = true;
        stage.tell(Event::Units(Vec::from([(UNIT, Some(granted))])));
        stage
    }

    fn tell(&mut self, event: Event) {
        self.now = self.now + Duration::from_millis(1);
        // A refusal shows in what is said.
        let _ = self.agent.handle(self.now, event);
        while let Some(action) = self.agent.poll_action() {
            self.said.push(action.clone());
            match action {
                Action::Ask { request, .. } => self.ask(request),
                Action::Start { child, .. } => self.tell(Event::Started(child)),
                Action::Execute {
                    child,
                    envelope,
                    snapshot,
                } => self.tell(Event::Executed {
                    child,
                    call: envelope.call,
                    answer: Bytes::from_static(b"done").into(),
                    effect: Some(Bytes::from_static(b"step").into()),
                    state: snapshot.map(|_| Bytes::from_static(b"state").into()),
                    durable: true,
                }),
                _ => {}
            }
        }
    }

    fn ask(&mut self, request: ReplicaRequest) {
        let from = NodeId(1);
        let mut next = Some(ReplicaEvent::Asked { from, request });
        while let Some(event) = next.take() {
            let heard = self.store.handle(self.now, event);
            assert_eq!(heard, Ok(()));
            while let Some(action) = self.store.poll_action() {
                match action {
                    ReplicaAction::Write { ticket, .. } => {
                        next = Some(ReplicaEvent::Flushed { ticket });
                    }
                    ReplicaAction::Answer { answer, .. } => self.tell(Event::Answer(answer)),
                    ReplicaAction::Read { .. } => panic!("nothing is read here"),
                }
            }
        }
    }

    /// What the child answers to one more call, and what else was said meanwhile.
    fn call(&mut self, child: &str, number: u64) -> (Vec<Outcome>, Vec<Action>) {
        self.said.clear();
        let gateway = IncarnationId(9);
        let envelope = Envelope {
            call: CallId { gateway, number },
            to: ChildId::parse(child).expect("a child id"),
            key: CallKey::Internal { gateway, number },
            request_hash: 1,
            patience_ms: 1_000,
            body: Bytes::new(),
        };
        let route = Some(Route {
            unit: UNIT,
            epoch: Epoch(1),
            node: NodeId(1),
        });
        self.tell(Event::Call { envelope, route });
        self.tell(Event::Confirmed(gateway, number));
        let said = core::mem::take(&mut self.said);
        let outcomes = said.iter().filter_map(|action| match action {
            Action::Reply(reply) => Some(reply.outcome.clone()),
            _ => None,
        });
        (outcomes.collect(), said)
    }
}

#[test]
fn a_child_that_is_called_and_called_again_is_never_full() {
    for every in [1, 2, 32, SNAPSHOT_EVERY_MAX] {
        let mut stage = Stage::serving(every);
        for number in 0..1_000 {
            let (outcomes, _) = stage.call("t/k/a", number);
            assert!(
                matches!(outcomes[..], [Outcome::Answered { .. }]),
                "call {number} with a snapshot every {every} records: {outcomes:?}"
            );
        }
    }
}

#[test]
fn calls_leave_no_deadlines_behind_and_a_child_at_rest_is_passivated_in_time() {
    let mut stage = Stage::serving(32);
    for number in 0..1_000 {
        stage.call("t/k/a", number);
        stage.call("t/k/b", number);
    }
    let last = stage.now;
    let hosts = |agent: &Agent| {
        let is_host = |(_, due): &&(Time, Due)| matches!(due, Due::Host(_));
        agent.due.iter().filter(is_host).count()
    };
    assert_eq!(hosts(&stage.agent), 2);
    while !stage.agent.children.is_empty() {
        let at = stage.agent.next_deadline();
        stage.now = stage
            .now
            .max(at.expect("a child at rest is looked at again"));
        stage.tell(Event::Tick);
    }
    assert_eq!(hosts(&stage.agent), 0);
    let rested = stage.now.since(last);
    let passivated = Duration::from_secs(300);
    assert!(rested >= passivated - Duration::from_secs(1), "{rested:?}");
    assert!(rested <= passivated + Duration::from_secs(1), "{rested:?}");
}

#[test]
fn the_warden_hears_of_a_unit_once_while_any_of_its_children_works() {
    let mut stage = Stage::serving(32);
    stage.call("t/k/a", 0);
    let (_, said) = stage.call("t/k/a", 1);
    let work: Vec<&Action> = said
        .iter()
        .filter(|action| matches!(action, Action::AtWork(_) | Action::AtRest(_)))
        .collect();
    assert_eq!(work, [&Action::AtWork(UNIT), &Action::AtRest(UNIT)]);
    let at = |action: fn(&Action) -> bool| said.iter().position(action);
    let told = at(|action| matches!(action, Action::AtWork(_)));
    let begun = at(|action| matches!(action, Action::Execute { .. }));
    assert!(told < begun, "the warden knows before the child does (V2)");
}
