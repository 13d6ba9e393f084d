//! One agent with one dedicated unit and one store, which answers everything that it is asked.
//!
//! Owns: the short words of these tests. What many agents do to each other is the simulator's.

#![allow(clippy::unwrap_used)]

use alloc::vec;

use super::*;
use crate::cluster::replication::UnitView;
use crate::id::{ConfigVersion, Epoch};
use crate::wire::envelope::CallKey;
use crate::wire::replica::{Ask, Indexed, Said};
use crate::wire::step::{SCHEMA_INLINE, SCHEMA_PIECES, named_by};

pub(super) const UNIT: UnitId = UnitId(1);
const HOME: StoreId = StoreId(1);
const INCARNATION: IncarnationId = IncarnationId(7);
const WORK_LIMIT: Duration = Duration::from_secs(30);

/// An agent, its store and what it wanted done.
pub(super) struct Node {
    pub(super) agent: Agent,
    pub(super) chain: Vec<Record>,
    pub(super) now: Time,
    pub(super) said: Vec<Action>,
    calls: u64,
}

impl Node {
    /// A node that serves `@t/k/c`, whose child is up.
    pub(super) fn serving() -> Node {
        let settings = AgentSettings {
            incarnation: INCARNATION,
            home: HOME,
            key_kept: super::super::calls::KEY_KEPT,
            passivate_after: Duration::from_secs(300),
            work_limit: WORK_LIMIT,
            snapshot_every: 64,
            sealing: Sealing::default(),
        };
        let mut node = Node {
            agent: Agent::new(settings),
            chain: Vec::new(),
            now: Time::from_millis(1),
            said: Vec::new(),
            calls: 0,
        };
        node.tell(Event::Lease(Time::MAX));
        for serving in [false, true] {
            node.tell(Event::Units(vec![(UNIT, Some(granted(serving)))]));
        }
        node.tell(Event::Started(child()));
        node.said.clear();
        node
    }

    pub(super) fn tell(&mut self, event: Event) {
        self.agent.handle(self.now, event).unwrap();
        while let Some(action) = self.agent.poll_action() {
            match action {
                Action::Ask { request, .. } => self.store(request),
                action => self.said.push(action),
            }
        }
    }

    fn store(&mut self, request: ReplicaRequest) {
        let last = self.chain.last().map_or(Head::NONE, Record::head);
        let child = child();
        let said = match request.ask {
            Ask::Seal { after, .. } => Said::Sealed {
                after,
                page: match last {
                    Head::NONE => Vec::new(),
                    tail => vec![Indexed {
                        child,
                        tail,
                        damaged: false,
                    }],
                },
                more: false,
                cut: false,
            },
            Ask::Append(append) => {
                let upto = append.records.last().map_or(append.prev, Record::head);
                self.chain.extend(append.records);
                Said::Appended { child, upto }
            }
            Ask::Fetch { after, .. } => Said::Fetched {
                child,
                after,
                records: self.chain.clone(),
            },
            Ask::Confirm { .. } => Said::Confirmed,
        };
        let answer = ReplicaAnswer {
            store: HOME,
            unit: UNIT,
            epoch: request.epoch,
            session: INCARNATION,
            said,
        };
        // A store may answer what nobody waits for any more.
        let _ = self.agent.handle(self.now, Event::Answer(answer));
    }

    /// A call that the child is given at once.
    pub(super) fn call(&mut self) -> CallId {
        self.ask(self.calls + 1)
    }

    /// The same call again, which is another attempt.
    pub(super) fn again(&mut self, call: CallId) -> CallId {
        self.ask(call.number)
    }

    fn ask(&mut self, key: u64) -> CallId {
        self.calls += 1;
        let call = CallId {
            gateway: IncarnationId(9),
            number: self.calls,
        };
        let key = CallKey::Client(alloc::format!("key {key}"));
        let envelope = Envelope {
            call,
            to: child(),
            key,
            request_hash: 1,
            patience_ms: 60_000,
            body: Bytes::new(),
        };
        let route = Route {
            unit: UNIT,
            epoch: Epoch(1),
            node: crate::id::NodeId(1),
        };
        let route = Some(route);
        self.tell(Event::Call { envelope, route });
        call
    }

    pub(super) fn executed(&mut self, call: CallId, answer: Bytes, effect: Option<Bytes>) {
        let (answer, effect) = (answer.into(), effect.map(Content::from));
        self.tell(Event::Executed {
            child: child(),
            call,
            answer,
            effect,
            state: None,
            durable: true,
        });
    }

    pub(super) fn outcome(&self, of: CallId) -> Option<&Outcome> {
        self.said.iter().find_map(|action| match action {
            Action::Reply(Reply { call, outcome }) if *call == of => Some(outcome),
            _ => None,
        })
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.said.contains(&Action::Stop(child()))
    }
}

pub(super) fn child() -> ChildId {
    ChildId::parse("@t/k/c").unwrap()
}

pub(super) fn granted(serving: bool) -> Granted {
    Granted {
        epoch: Epoch(1),
        view: UnitView {
            scope: Scope::Child(child()),
            config: ConfigVersion(1),
            set: [HOME].into(),
            min_copies: 1,
            wanted: 1,
            candidates: vec![HOME],
            unreachable: BTreeSet::new(),
            move_to: None,
            serving,
        },
        stopping: false,
        moving: false,
    }
}

#[test]
fn a_hung_child_that_was_killed_has_failed_however_well_it_ends() {
    for exit in [Exit::Normal, Exit::Shutdown, Exit::Abnormal] {
        let mut node = Node::serving();
        let call = node.call();
        node.now = node.now + WORK_LIMIT;
        node.tell(Event::Tick);
        assert_eq!(node.outcome(call), Some(&Outcome::Unknown));
        assert!(node.is_stopped());
        assert!(node.agent.is_killed(&child()));
        let (child, random) = (child(), 0);
        node.tell(Event::Ended {
            child,
            exit,
            random,
        });
        let said = node.said.iter().find_map(|action| match action {
            Action::Propose(Command::Exited { exit, .. }) => Some(*exit),
            _ => None,
        });
        assert_eq!(said, Some(Exit::Abnormal), "it ended with {exit:?}");
    }
}

#[test]
fn a_child_that_ends_by_itself_has_ended_as_it_says() {
    let mut node = Node::serving();
    let (child, random) = (child(), 0);
    let exit = Exit::Normal;
    node.tell(Event::Ended {
        child,
        exit,
        random,
    });
    let is_told = |action: &Action| {
        let normal = Exit::Normal;
        matches!(action, Action::Propose(Command::Exited { exit, .. }) if *exit == normal)
    };
    assert!(node.said.iter().any(is_told), "{:?}", node.said);
}

#[test]
fn an_answer_that_no_lane_would_take_is_refused_and_a_read_costs_nothing_else() {
    let mut node = Node::serving();
    let longest = Bytes::from(vec![1; CALL_BODY_BYTES_MAX]);
    let longer = Bytes::from(vec![1; CALL_BODY_BYTES_MAX + 1]);

    let call = node.call();
    node.executed(call, longest.clone(), None);
    let answered = Outcome::Answered {
        body: longest,
        reflects: Seq::ZERO,
        durable: true,
    };
    assert_eq!(node.outcome(call), Some(&answered));

    let call = node.call();
    node.executed(call, longer.clone(), None);
    assert_eq!(node.outcome(call), Some(&Outcome::TooLarge));
    assert!(!node.is_stopped(), "its memory is what its records say");

    let call = node.call();
    let effect = Some(Bytes::from_static(b"effect"));
    node.executed(call, longer, effect);
    assert_eq!(node.outcome(call), Some(&Outcome::TooLarge));
    assert!(node.is_stopped(), "its memory is ahead of its records");
    assert_eq!(node.chain, [], "nothing of it was written");
}

fn remembered(number: u64) -> Remembered {
    let gateway = IncarnationId(1);
    Remembered {
        key: CallKey::Internal { gateway, number },
        request_hash: 7,
        answer: Bytes::new().into(),
        seq: None,
    }
}

fn base(calls: usize) -> Bytes {
    encoded(&Base {
        calls: (0..calls as u64).map(remembered).collect(),
        state: Bytes::from_static(b"state").into(),
        older: None,
    })
}

fn step() -> Bytes {
    encoded(&Step {
        call: Some(remembered(9_999)),
        effect: Bytes::from_static(b"effect").into(),
        earlier: Vec::new(),
    })
}

/// How many steps and calls are read from a base and a step.
fn check(base: Bytes, step: Bytes, expected: Result<(usize, usize), DecodeError>) {
    let child = ChildId::parse("t/k/c").expect("a child id");
    let mut prev = Head::NONE;
    let records = [(RecordKind::Snapshot, base), (RecordKind::Delta, step)].map(|(kind, body)| {
        let (epoch, config) = (Epoch(1), ConfigVersion(1));
        let record = Record::chained(
            child.clone(),
            epoch,
            config,
            prev,
            kind,
            SCHEMA_INLINE,
            body,
        );
        prev = record.head();
        record
    });
    let mut calls = Calls::default();
    let read = read_bodies(Time::ZERO, Duration::from_secs(1), &records, &mut calls);
    let read = read.map(|(base, steps, older)| {
        assert_eq!(older, None);
        assert_eq!(base, Some(Bytes::from_static(b"state").into()));
        (steps.len(), calls.len())
    });
    assert_eq!(read, expected);
}

#[test]
fn a_body_that_is_not_read_exactly_ends_the_reading_and_is_never_passed_over() {
    check(base(2), step(), Ok((1, 3)));
    check(
        base(INLINE_CALLS_MAX),
        step(),
        Ok((1, INLINE_CALLS_MAX + 1)),
    );
    let range = DecodeError::Malformed("a value is out of its range");
    check(base(INLINE_CALLS_MAX + 1), step(), Err(range));
    let cut = DecodeError::Malformed("ends inside a value");
    check(base(2), Bytes::new(), Err(cut));
    check(base(2).slice(1..), step(), Err(DecodeError::TrailingBytes));
    let mut added = step().to_vec();
    added[0] += 2; // an array of four
    added.extend([0x80, 1]);
    check(base(2), Bytes::from(added), Err(DecodeError::NotExact));
    let mut key = remembered(1);
    key.key = CallKey::Client("k".repeat(65));
    let call = Some(key);
    let effect = Bytes::new().into();
    check(
        base(0),
        encoded(&Step {
            call,
            effect,
            earlier: Vec::new(),
        }),
        Err(range),
    );
}

fn in_pieces(bytes: usize) -> Content {
    let value = Bytes::from(vec![7; bytes]);
    Content::Pieces(Pieces::cut(&value).unwrap().pieces)
}

#[test]
fn what_is_in_pieces_is_named_by_the_record_and_comes_back_by_name() {
    let mut node = Node::serving();
    let call = node.call();
    let (answer, effect) = (in_pieces(70_000), in_pieces(200_000));
    node.tell(Event::Executed {
        child: child(),
        call,
        answer: answer.clone(),
        effect: Some(effect.clone()),
        state: None,
        durable: true,
    });
    let record = node.chain.last().unwrap();
    assert_eq!(record.schema, SCHEMA_PIECES);
    let named = named_by(record).unwrap();
    let pieces: Vec<&Pieces> = [&answer, &effect]
        .into_iter()
        .filter_map(Content::pieces)
        .collect();
    assert_eq!(named.iter().collect::<Vec<_>>(), pieces);
    let replied = Action::ReplyPieces {
        call,
        pieces: answer.pieces().unwrap().clone(),
        reflects: Seq(1),
        durable: true,
    };
    assert!(node.said.contains(&replied), "{:?}", node.said);

    let mut calls = Calls::default();
    let read = read_bodies(node.now, Duration::ZERO, &node.chain, &mut calls);
    assert_eq!(read, Ok((None, vec![effect], None)));
}

#[test]
fn what_cannot_be_kept_is_refused_and_its_child_starts_again_from_its_records() {
    for (too_large, outcome) in [(true, Outcome::TooLarge), (false, Outcome::Unknown)] {
        let mut node = Node::serving();
        let call = node.call();
        let child = child();
        node.tell(Event::Unkept {
            child: child.clone(),
            call: Some(call),
            too_large,
        });
        assert_eq!(node.outcome(call), Some(&outcome));
        assert!(node.is_stopped(), "its memory is ahead of its records");
        assert_eq!(node.chain, [], "nothing of it was written");
        let again = Event::Unkept {
            child,
            call: Some(call),
            too_large,
        };
        let refused = node.agent.handle(node.now, again);
        assert_eq!(refused, Err(Refused::NotExpected));
    }
}

#[test]
fn a_snapshot_is_due_when_the_steps_hold_as_much_as_a_start_should_read() {
    let mut node = Node::serving();
    let snapshots = |node: &Node| {
        let mut asked = node.said.iter().rev();
        asked.find_map(|action| match action {
            Action::Execute { snapshot, .. } => Some(snapshot.is_some()),
            _ => None,
        })
    };
    for due in [false, false, true, false] {
        let call = node.call();
        assert_eq!(snapshots(&node), Some(due));
        node.tell(Event::Executed {
            child: child(),
            call,
            answer: Bytes::new().into(),
            effect: Some(in_pieces(VALUE_BYTES_MAX / 2)),
            state: due.then(|| in_pieces(100_000)),
            durable: true,
        });
    }
}
