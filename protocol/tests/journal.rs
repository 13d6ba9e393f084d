//! The event log of one machine: it replays to the same actions, and whatever was done to it since is
//! noticed where it was done.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

mod samples;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use minicbor::{Decode, Encode};
use understudy_protocol::cluster::lease::holder::{Event, Refused};
use understudy_protocol::cluster::lease::{LeaseHolder, holder, voter, warden};
use understudy_protocol::cluster::voters::Voters;
use understudy_protocol::cluster::{agent, caller, controller, replication};
use understudy_protocol::id::{
    ConfigVersion, Epoch, IncarnationId, LogId, LogIndex, NodeId, Seq, SlotRange, StoreId, UnitId,
};
use understudy_protocol::journal::log::{
    FORMAT, Line, LogReader, LogWriter, MachineKind, PROGRAM, ReadError,
};
use understudy_protocol::journal::{
    End, HolderStart, Journaled, Recorded, ReplayError, Replayed, Sink, Step, Unlike, replay,
};
use understudy_protocol::machine::Machine;
use understudy_protocol::supervision::Exit;
use understudy_protocol::time::Time;
use understudy_protocol::wire::codec::decode_exact;
use understudy_protocol::wire::envelope::{CallKey, Outcome, Route};
use understudy_protocol::wire::heart::{DeathDigest, DeathNote, Ttl, Verdict};
use understudy_protocol::wire::record::Head;

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Memory {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl Sink for Memory {
    fn write(&mut self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

const START: HolderStart = HolderStart {
    node: NodeId(1),
    incarnation: IncarnationId(0x1122_3344_5566_7788),
    kill_time: Duration::from_millis(50),
};

fn at(millis: u64) -> Time {
    Time::from_millis(millis)
}

fn directory() -> Event {
    Event::Directory {
        voters: Voters::first([StoreId(1), StoreId(2), StoreId(0xFEED)]),
        ttl: Ttl::DEFAULT,
        applied: LogIndex(4),
    }
}

/// A lease that is renewed once, refuses a stranger's promise, and lapses.
fn drive(holder: &mut impl Machine<Event = Event, Action = holder::Action, Error = Refused>) {
    let mut tell = |millis, event| {
        let told = holder.handle(at(millis), event);
        while holder.poll_action().is_some() {}
        told
    };
    tell(10, directory()).unwrap();
    tell(10, Event::Tick).unwrap();
    for voter in [1, 2] {
        let mut promise = samples::promise(Verdict::Promised);
        (promise.voter, promise.round) = (StoreId(voter), 1);
        tell(12, Event::Heard(promise)).unwrap();
    }
    let late = Event::Heard(samples::promise(Verdict::Promised));
    assert_eq!(tell(13, late), Err(Refused::UnknownRound));
    tell(500, Event::CanaryAnswered).unwrap();
    tell(2_950, Event::Tick).unwrap();
}

fn recorded() -> Vec<u8> {
    let memory = Memory::default();
    let mut holder: Recorded<LeaseHolder> =
        Recorded::begin(at(10), START, Some(Box::new(memory.clone())));
    drive(&mut holder);
    drop(holder);
    memory.bytes()
}

fn again(bytes: &[u8]) -> Result<Replayed, ReplayError> {
    replay(bytes, &mut |_| {})
}

/// The lines of a log, written anew, `change` having had a look at each.
fn rewritten(bytes: &[u8], mut change: impl FnMut(usize, Line<'_>, &mut LogWriter)) -> Vec<u8> {
    let memory = Memory::default();
    let mut writer = LogWriter::new(Box::new(memory.clone()), u64::MAX);
    let mut reader = LogReader::new(bytes).unwrap();
    let mut nth = 0;
    while let Some(line) = reader.next_line().unwrap() {
        change(nth, line, &mut writer);
        nth += 1;
    }
    memory.bytes()
}

#[test]
fn a_recorded_machine_does_what_it_does_alone_and_its_log_replays_to_the_same_actions() {
    let (mut alone, mut watched) = (Vec::new(), Vec::new());
    let mut holder = LeaseHolder::begin(at(10), START);
    let mut told = Told(&mut holder, &mut alone);
    drive(&mut told);
    let bytes = recorded();
    let replayed = replay(&bytes, &mut |step| {
        if let Step::Action(action) = step {
            watched.push(format!("{action:?}"));
        }
    });
    assert_eq!(alone, watched);
    assert!(alone.len() > 4, "{alone:?}");
    let replayed = replayed.unwrap();
    assert_eq!(
        replayed,
        Replayed {
            machine: MachineKind::LeaseHolder,
            events: 7,
            actions: alone.len() as u64,
            end: End::Stopped
        }
    );
}

/// A machine whose actions are kept as text.
struct Told<'m>(&'m mut LeaseHolder, &'m mut Vec<String>);

impl Machine for Told<'_> {
    type Event = Event;
    type Action = holder::Action;
    type Error = Refused;

    fn handle(&mut self, now: Time, event: Event) -> Result<(), Refused> {
        self.0.handle(now, event)
    }

    fn poll_action(&mut self) -> Option<holder::Action> {
        let action = self.0.poll_action()?;
        self.1.push(format!("{action:?}"));
        Some(action)
    }

    fn next_deadline(&self) -> Option<Time> {
        self.0.next_deadline()
    }
}

#[test]
fn a_flipped_bit_is_noticed_wherever_it_is() {
    let bytes = recorded();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut hurt = bytes.clone();
            hurt[at] ^= 1 << bit;
            let refused = again(&hurt).unwrap_err();
            let ReplayError::Unreadable(why) = refused else {
                panic!("byte {at}, bit {bit}: {refused}");
            };
            match why {
                ReadError::NotALog => assert!(at < 8),
                ReadError::OtherFormat { .. } => assert!((8..10).contains(&at)),
                ReadError::Damaged { at: line } => assert!(line <= at),
                other => panic!("byte {at}, bit {bit}: {other}"),
            }
        }
    }
}

#[test]
fn a_log_that_was_cut_replays_as_far_as_it_goes_and_says_where_that_is() {
    let bytes = recorded();
    let mut begins = Vec::new();
    let mut events = 0;
    for length in 1..bytes.len() {
        match again(&bytes[..length]) {
            Ok(replayed) => {
                match replayed.end {
                    End::Open => begins.push(length),
                    End::Cut(at) => assert_eq!(Some(&at), begins.last()),
                    other => panic!("{length}: {other:?}"),
                }
                assert!(replayed.events >= events);
                events = replayed.events;
            }
            Err(ReplayError::Unreadable(ReadError::Cut { at })) => {
                assert!(at <= 10 && begins.is_empty(), "{length}");
            }
            Err(ReplayError::Empty) => assert_eq!(length, 10),
            Err(other) => panic!("{length}: {other}"),
        }
    }
    assert_eq!(events, 7);
    assert_eq!(again(&[]), Err(ReadError::NotALog.into()));
    let longer = [bytes.as_slice(), &[0]].concat();
    let at = bytes.len();
    assert_eq!(again(&longer), Err(ReadError::Trailing { at }.into()));
}

#[test]
fn a_line_that_is_lost_or_repeated_is_noticed() {
    let bytes = recorded();
    let mut reader = LogReader::new(&bytes).unwrap();
    let mut ends = vec![10];
    let mut rest = 10;
    while reader.next_line().unwrap().is_some() {
        let length = u32::from_be_bytes(bytes[rest..rest + 4].try_into().unwrap()) as usize;
        rest += length + 12;
        ends.push(rest);
    }
    assert_eq!(rest, bytes.len());
    for line in ends.windows(2) {
        let (from, to) = (line[0], line[1]);
        let lost = [&bytes[..from], &bytes[to..]].concat();
        let twice = [&bytes[..to], &bytes[from..]].concat();
        if to < bytes.len() {
            assert_eq!(again(&lost), Err(ReadError::Damaged { at: from }.into()));
            assert_eq!(again(&twice), Err(ReadError::Damaged { at: to }.into()));
        } else {
            assert_eq!(again(&twice), Err(ReadError::Trailing { at: to }.into()));
        }
    }
}

#[test]
fn a_log_that_tells_of_another_event_shows_the_first_difference() {
    let bytes = recorded();
    // The directory names another list of voters: the first tick renews elsewhere.
    let other = Event::Directory {
        voters: Voters::first([StoreId(8)]),
        ttl: Ttl::DEFAULT,
        applied: LogIndex(4),
    };
    let other = minicbor::to_vec(other).unwrap();
    let mut changed = false;
    let altered = rewritten(&bytes, |_, line, writer| match line {
        Line::Event { at, .. } if !std::mem::replace(&mut changed, true) => {
            writer.write(&Line::Event { at, event: &other });
        }
        line => writer.write(&line),
    });
    let Err(ReplayError::Difference(difference)) = again(&altered) else {
        panic!("nothing differs");
    };
    assert_eq!((difference.number, difference.at), (2, at(10)));
    assert_eq!(difference.event.as_deref(), Some("Tick"));
    let Unlike::Action {
        nth,
        expected,
        actual,
    } = &difference.unlike
    else {
        panic!("{difference}");
    };
    let (sum, action) = actual.as_ref().unwrap();
    assert_eq!(*nth, 1);
    assert!(expected.is_some_and(|expected| expected != *sum));
    assert!(action.contains("Renew { to: store-8"), "{action}");
    let said = difference.to_string();
    assert!(
        said.contains("after event 2 at 10000000 ns, Tick: action 1 had checksum"),
        "{said}"
    );
}

#[test]
fn a_refusal_an_action_and_a_deadline_are_each_compared() {
    let bytes = recorded();
    let difference = |altered: &[u8]| match again(altered) {
        Err(ReplayError::Difference(difference)) => (difference.number, difference.unlike),
        other => panic!("{other:?}"),
    };
    let without = rewritten(&bytes, |_, line, writer| {
        if line != Line::Refused {
            writer.write(&line);
        }
    });
    assert_eq!(difference(&without), (5, Unlike::Refusal { now: false }));
    let refused = rewritten(&bytes, |nth, line, writer| {
        writer.write(&line);
        if nth == 1 {
            writer.write(&Line::Refused);
        }
    });
    assert_eq!(difference(&refused), (1, Unlike::Refusal { now: true }));
    let fewer = rewritten(&bytes, |_, line, writer| match line {
        Line::Actions {
            mut sums,
            drained,
            deadline,
        } => {
            sums.truncate(2);
            let line = Line::Actions {
                sums,
                drained,
                deadline,
            };
            writer.write(&line);
        }
        line => writer.write(&line),
    });
    let (number, unlike) = difference(&fewer);
    let more = matches!(
        &unlike,
        Unlike::Action {
            nth: 3,
            expected: None,
            actual: Some(_)
        }
    );
    assert!(number == 2 && more, "{unlike:?}");
    let later = rewritten(&bytes, |_, line, writer| match line {
        Line::Actions {
            sums,
            drained,
            deadline: Some(deadline),
        } => {
            let deadline = Some(deadline + 1);
            let line = Line::Actions {
                sums,
                drained,
                deadline,
            };
            writer.write(&line);
        }
        line => writer.write(&line),
    });
    assert!(matches!(difference(&later), (1, Unlike::Deadline { .. })));
}

#[test]
fn a_full_log_says_so_and_the_machine_goes_on() {
    let whole = recorded();
    for limit in 0..whole.len() as u64 {
        let memory = Memory::default();
        let mut holder: Recorded<LeaseHolder> =
            Recorded::begin_within(at(10), START, Some(Box::new(memory.clone())), limit);
        drive(&mut holder);
        assert_eq!(holder.standing(), holder::Standing::Over);
        drop(holder);
        let bytes = memory.bytes();
        assert!(
            bytes.len() as u64 <= limit.max(10),
            "{limit}: {}",
            bytes.len()
        );
        match again(&bytes) {
            Ok(replayed) => assert_eq!(replayed.end, End::Full, "{limit}"),
            Err(ReplayError::Empty) => assert!(limit < 128, "{limit}"),
            Err(other) => panic!("{limit}: {other}"),
        }
    }
}

#[test]
fn a_log_of_another_program_or_format_is_refused() {
    let bytes = recorded();
    let other = rewritten(&bytes, |_, line, writer| match line {
        Line::Start {
            machine, at, with, ..
        } => writer.write(&Line::Start {
            program: "understudy 9.9.9",
            machine,
            at,
            with,
        }),
        line => writer.write(&line),
    });
    let refused = again(&other).unwrap_err().to_string();
    assert_eq!(
        refused,
        format!("the log was recorded by understudy 9.9.9, and this is {PROGRAM}")
    );
    let mut other = bytes;
    other[9] += 1;
    let seen = FORMAT + 1;
    assert_eq!(again(&other), Err(ReadError::OtherFormat { seen }.into()));
}

#[test]
fn what_is_no_event_or_not_in_its_place_is_refused() {
    let bytes = recorded();
    let nonsense = rewritten(&bytes, |nth, line, writer| match line {
        Line::Event { at, .. } if nth > 3 => writer.write(&Line::Event { at, event: &[0x80] }),
        line => writer.write(&line),
    });
    assert!(matches!(
        again(&nonsense),
        Err(ReplayError::BadEvent { number: 3, .. })
    ));
    let twice = rewritten(&bytes, |_, line, writer| {
        writer.write(&line);
        if matches!(line, Line::Start { .. }) {
            writer.write(&line);
        }
    });
    assert_eq!(again(&twice), Err(ReplayError::BadOrder { line: 2 }));
    let headless = rewritten(&bytes, |_, line, writer| {
        if !matches!(line, Line::Start { .. }) {
            writer.write(&line);
        }
    });
    assert_eq!(again(&headless), Err(ReplayError::BadOrder { line: 1 }));
}

/// A machine with a fault.
struct Faulty;

impl Machine for Faulty {
    type Event = u32;
    type Action = u32;
    type Error = ();

    fn handle(&mut self, _: Time, event: u32) -> Result<(), ()> {
        assert_ne!(event, 13);
        Ok(())
    }

    fn poll_action(&mut self) -> Option<u32> {
        None
    }

    fn next_deadline(&self) -> Option<Time> {
        None
    }
}

impl Journaled for Faulty {
    const KIND: MachineKind = MachineKind::Warden;
    type Start = ();

    fn begin(_: Time, (): ()) -> Faulty {
        Faulty
    }
}

#[test]
fn the_event_that_a_machine_does_not_survive_is_the_last_of_its_log() {
    let memory = Memory::default();
    let mut faulty: Recorded<Faulty> = Recorded::begin(at(1), (), Some(Box::new(memory.clone())));
    faulty.handle(at(2), 12).unwrap();
    let _ = catch_unwind(AssertUnwindSafe(|| faulty.handle(at(3), 13))).unwrap_err();
    drop(faulty);
    let bytes = memory.bytes();
    let mut reader = LogReader::new(&bytes).unwrap();
    let mut last = None;
    while let Some(line) = reader.next_line().unwrap() {
        last = Some(line);
    }
    let event = &minicbor::to_vec(13u32).unwrap()[..];
    assert_eq!(last, Some(Line::Event { at: at(3), event }));
}

/// Each comes back from the log as it was.
fn come_back<E>(events: impl IntoIterator<Item = E>)
where
    E: Encode<()> + for<'b> Decode<'b, ()> + PartialEq + std::fmt::Debug,
{
    for event in events {
        let bytes = minicbor::to_vec(&event).unwrap();
        assert_eq!(decode_exact::<E>(&bytes), Ok(event));
    }
}

#[test]
fn every_event_of_a_heart_and_a_warden_comes_back() {
    let id = LogId::default();
    let voters = Voters::first([StoreId(1)]).joint([StoreId(2)].into());
    let (node, incarnation) = (NodeId(1), IncarnationId(u64::MAX));
    let secret = [0xA5; 32];
    let facts = [
        voter::Fact::Live {
            node,
            incarnation,
            death: DeathDigest::of(&secret),
        },
        voter::Fact::Expelled(incarnation),
        voter::Fact::Over(incarnation),
        voter::Fact::Dead {
            incarnation,
            secret,
        },
        voter::Fact::Formed {
            voters: voters.clone(),
            ttl: Ttl::LAN,
        },
        voter::Fact::Voters(voters),
        voter::Fact::Ttl(Ttl::WAN),
    ];
    let held = facts
        .iter()
        .cloned()
        .map(|fact| voter::Event::Held(id, fact));
    come_back(held);
    come_back([
        voter::Event::Read {
            settled: facts.iter().cloned().map(|fact| (id, fact)).collect(),
            open: Vec::new(),
        },
        voter::Event::Truncated(LogIndex(3)),
        voter::Event::Voided(LogIndex(3)),
        voter::Event::Committed(LogIndex(3)),
        voter::Event::Asked(samples::renewal()),
        voter::Event::LimitFlushed(Ttl::LAN),
        voter::Event::LeaderSeen(node),
        voter::Event::Tick,
    ]);
    come_back([
        directory(),
        Event::Heard(samples::promise(Verdict::Expelled)),
        Event::CanaryAnswered,
        Event::Leading(true),
        Event::Tick,
    ]);
    let helper = warden::HelperId(u64::MAX);
    come_back([
        warden::Event::HelperStarted(helper),
        warden::Event::HelperReaped(helper),
        warden::Event::Deadline(Time::MAX),
        warden::Event::AtWork(UnitId(1)),
        warden::Event::AtRest(UnitId(1)),
        warden::Event::NodeEnded,
        warden::Event::NoteKept,
        warden::Event::Tick,
    ]);
}

#[test]
fn every_event_of_a_controller_comes_back() {
    let id = LogId::default();
    let note = DeathNote {
        incarnation: IncarnationId(3),
        secret: [3; 32],
        at_work: vec![UnitId(1)],
    };
    let entries = || samples::directory::entries().into_iter();
    come_back(entries().map(|(_, entry)| controller::Event::Apply(id, entry)));
    come_back(entries().map(|(_, entry)| controller::Event::Forwarded(entry.command)));
    let snapshots = samples::directory::snapshots().into_iter();
    come_back(snapshots.map(|(_, directory)| controller::Event::Install(directory)));
    come_back([
        controller::Event::Skip(id),
        controller::Event::Leading(false),
        controller::Event::Died(note),
        controller::Event::Members(controller::RaftMembers {
            voters: [StoreId(1)].into(),
            learners: [].into(),
            caught_up: [StoreId(2)].into(),
        }),
        controller::Event::Tick,
    ]);
}

#[test]
fn every_event_of_a_caller_comes_back() {
    let route = Route {
        unit: UnitId(1),
        epoch: Epoch(2),
        node: NodeId(3),
    };
    come_back([
        caller::Event::Call {
            number: u64::MAX,
            child: samples::child("acme/cart/u-1"),
            key: samples::internal(7),
            request_hash: 1,
            body: vec![1; 300].into(),
            patience: Duration::new(u64::MAX, 999_999_999),
        },
        caller::Event::Routed {
            number: 1,
            unit: Some(UnitId(1)),
            route: Some(route),
        },
        caller::Event::Routed {
            number: 1,
            unit: None,
            route: None,
        },
        caller::Event::Reply(samples::reply(Outcome::Unknown)),
        caller::Event::PeerLost(NodeId(4)),
        caller::Event::Moved(UnitId(1), Some(route)),
        caller::Event::Tick,
    ]);
}

#[test]
fn every_event_of_an_agent_and_a_replica_comes_back() {
    let child = samples::child("acme/cart/u-1");
    let call = samples::envelope(CallKey::Client("key".into()), vec![1, 2].into());
    let view = replication::UnitView {
        scope: samples::slots(3),
        config: ConfigVersion(2),
        set: [StoreId(1)].into(),
        min_copies: usize::MAX,
        wanted: 0,
        candidates: vec![StoreId(4), StoreId(3)],
        unreachable: [StoreId(9)].into(),
        move_to: None,
        serving: true,
    };
    let granted = agent::Granted {
        epoch: Epoch(4),
        view,
        stopping: false,
        moving: true,
    };
    let executed =
        |effect: Option<&'static [u8]>, state: Option<&'static [u8]>| agent::Event::Executed {
            child: child.clone(),
            call: call.call,
            answer: bytes::Bytes::new().into(),
            effect: effect.map(|effect| bytes::Bytes::from_static(effect).into()),
            state: state.map(|state| bytes::Bytes::from_static(state).into()),
            durable: true,
        };
    come_back([
        agent::Event::Units(vec![(UnitId(1), None), (UnitId(2), Some(granted))]),
        agent::Event::Call {
            envelope: call.clone(),
            route: None,
        },
        agent::Event::Started(child.clone()),
        executed(None, None),
        executed(Some(b""), None),
        executed(None, Some(b"state")),
        agent::Event::Ended {
            child: child.clone(),
            exit: Exit::Abnormal,
            random: u64::MAX,
        },
        agent::Event::RollBack {
            child: child.clone(),
            state: vec![7].into(),
        },
        agent::Event::Lease(Time::MAX),
        agent::Event::Reshape(UnitId(1), agent::Reshape::Split(7)),
        agent::Event::Reshape(UnitId(1), agent::Reshape::Merge),
        agent::Event::Reshape(UnitId(1), agent::Reshape::Except(child.clone())),
        agent::Event::Confirmed(IncarnationId(1), u64::MAX),
        agent::Event::GatewayGone(IncarnationId(1)),
        agent::Event::Tick,
        agent::Event::Unkept {
            child: child.clone(),
            call: None,
            too_large: true,
        },
        agent::Event::Prod(child.clone()),
        agent::Event::Prodded {
            child: child.clone(),
            effect: Some(samples::pieces(100_000)),
            state: None,
            durable: false,
        },
    ]);
    let records = samples::chain(&child, 3, 10);
    come_back([
        replication::ReplicaEvent::Flushed { ticket: 3 },
        replication::ReplicaEvent::Read { read: 1, records },
        replication::ReplicaEvent::Damage {
            child: child.clone(),
            at: Seq(3),
        },
    ]);
    come_back([replication::Opened {
        promises: vec![(SlotRange::ALL, Epoch(2))],
        child_promises: vec![(child.clone(), Epoch(3))],
        chains: vec![replication::OpenedChain {
            child: child.clone(),
            heads: vec![Head::NONE],
            damaged: true,
        }],
        cut: replication::CutMark {
            slots: vec![SlotRange::ALL],
            children: [child.clone()].into(),
            confirmed: [child].into(),
            dedicated: true,
        },
    }]);
}
