//! One value of everything that crosses a wire, small and at its limits; the tests of frames share
//! them. Adding is free. Changing one changes what the golden files hold, and so fails.

pub mod directory;

use std::fmt::Debug;

use bytes::Bytes;
use minicbor::{Decode, Encode};
use understudy_protocol::id::{
    CHILD_ID_BYTES_MAX, COUNTER_MAX, ChildId, ConfigVersion, Epoch, IncarnationId, LogId, LogIndex,
    NodeId, Seq, SlotRange, StoreId, Term, UnitId, VotersVersion,
};
use understudy_protocol::wire::codec::{
    Message, MessageType, decode_exact, decode_whole, encode_frame,
};
use understudy_protocol::wire::content::{Content, Pieces};
use understudy_protocol::wire::envelope::{
    CallId, CallKey, Confirmed, Envelope, KEY_BYTES_MAX, Outcome, Reply, Route,
};
use understudy_protocol::wire::heart::{
    AT_WORK_MAX, DeathNote, HeartMessage, Promise, Renewal, Report, SIGHTED_MAX, Sighted, Sighting,
    Ttl, Verdict,
};
use understudy_protocol::wire::older::Older;
use understudy_protocol::wire::record::{BODY_BYTES_MAX, Head, Record, RecordKind};
use understudy_protocol::wire::replica::{
    Append, Ask, EXCEPTIONS_MAX, INDEX_PAGE, Indexed, ReplicaAnswer, ReplicaRequest, Said, Scope,
};
use understudy_protocol::wire::step::{Base, INLINE_CALLS_MAX, Remembered, Step};

/// A message as a frame, with what its type makes of bytes.
pub struct Sample {
    pub name: String,
    pub kind: MessageType,
    pub frame: Vec<u8>,
    /// Whether the bytes decode to this very value.
    pub reads_back: Box<ReadsBack>,
}

type ReadsBack = dyn Fn(&[u8]) -> bool;

/// Every sample, in a fixed order.
pub fn all() -> Vec<Sample> {
    let mut samples = Vec::new();
    hearts(&mut samples);
    requests(&mut samples);
    answers(&mut samples);
    calls(&mut samples);
    for (name, record) in records() {
        add(&mut samples, name, record);
    }
    for (name, body) in steps() {
        add_body(&mut samples, name, RecordKind::Delta, body);
    }
    for (name, body) in bases() {
        add_body(&mut samples, name, RecordKind::Snapshot, body);
    }
    for (name, entry) in directory::entries() {
        add(&mut samples, &format!("command-{name}"), entry);
    }
    for (name, snapshot) in directory::snapshots() {
        add(&mut samples, &format!("snapshot-{name}"), snapshot);
    }
    samples
}

pub fn child(text: &str) -> ChildId {
    ChildId::parse(text).unwrap()
}

/// The `n`th of many children in order, with an id of the greatest length.
pub fn long_child(n: usize) -> ChildId {
    let start = format!("tenant/kind/{n:04}-");
    child(&format!(
        "{start}{}",
        "k".repeat(CHILD_ID_BYTES_MAX - start.len())
    ))
}

/// `count` records, each after the other, from the first of the chain on.
pub fn chain(child: &ChildId, count: usize, body: usize) -> Vec<Record> {
    let mut prev = Head::NONE;
    (0..count)
        .map(|n| {
            let kind = if n == 0 {
                RecordKind::Snapshot
            } else {
                RecordKind::Delta
            };
            let body = Bytes::from(vec![n as u8; body]);
            let record = Record::chained(
                child.clone(),
                Epoch(3),
                ConfigVersion(2),
                prev,
                kind,
                1,
                body,
            );
            prev = record.head();
            record
        })
        .collect()
}

pub fn renewal() -> Renewal {
    Renewal {
        node: NodeId(1),
        incarnation: IncarnationId(0x1122_3344_5566_7788),
        round: 42,
        ttl: Ttl::DEFAULT,
        voters: VotersVersion(1),
        applied: LogIndex(1_000),
    }
}

pub fn promise(verdict: Verdict) -> Promise {
    Promise {
        voter: StoreId(0xFEED),
        incarnation: IncarnationId(0x1122_3344_5566_7788),
        round: 42,
        verdict,
    }
}

pub fn envelope(key: CallKey, body: Bytes) -> Envelope {
    Envelope {
        call: CallId {
            gateway: IncarnationId(9),
            number: 7,
        },
        to: child("acme/cart/u-1"),
        key,
        request_hash: 0x0123_4567_89AB_CDEF,
        patience_ms: 2_500,
        body,
    }
}

pub fn reply(outcome: Outcome) -> Reply {
    Reply {
        call: CallId {
            gateway: IncarnationId(9),
            number: 7,
        },
        outcome,
    }
}

pub fn request(ask: Ask) -> ReplicaRequest {
    ReplicaRequest {
        unit: UnitId(12),
        epoch: Epoch(3),
        config: ConfigVersion(2),
        session: Some(IncarnationId(4)),
        ask,
    }
}

pub fn answer(said: Said) -> ReplicaAnswer {
    ReplicaAnswer {
        store: StoreId(0xFEED),
        unit: UnitId(12),
        epoch: Epoch(3),
        session: IncarnationId(4),
        said,
    }
}

pub fn append(records: Vec<Record>) -> Append {
    Append {
        child: child("acme/cart/u-1"),
        prev: records.first().map_or(Head::NONE, |first| first.prev),
        from_base: true,
        records,
        adopted: Seq(1),
        keep_from: Seq(1),
    }
}

pub fn sighted(count: usize) -> Sighting {
    Sighting {
        voter: StoreId(u64::MAX),
        voters: VotersVersion(COUNTER_MAX),
        sighted: (0..count as u64)
            .map(|n| Sighted {
                incarnation: IncarnationId(u64::MAX - n),
                promised: n % 2 == 0,
                applied: LogIndex(COUNTER_MAX - n),
            })
            .collect(),
    }
}

pub fn death_note(at_work: usize) -> DeathNote {
    DeathNote {
        incarnation: IncarnationId(u64::MAX),
        secret: [0xAB; 32],
        at_work: (0..at_work as u64).map(|n| UnitId(u64::MAX - n)).collect(),
    }
}

pub fn slots(except: usize) -> Scope {
    Scope::Slots {
        range: SlotRange::ALL,
        except: (0..except).map(long_child).collect(),
    }
}

pub fn page(children: usize) -> Vec<Indexed> {
    (0..children)
        .map(|n| Indexed {
            child: long_child(n),
            tail: Head {
                epoch: Epoch(COUNTER_MAX),
                seq: Seq(COUNTER_MAX),
                checksum: u32::MAX,
            },
            damaged: n % 2 == 1,
        })
        .collect()
}

pub fn records() -> Vec<(&'static str, Record)> {
    let cart = child("acme/cart/u-1");
    let mut chain = chain(&cart, 2, 5);
    let delta = chain.pop().unwrap();
    let base = chain.pop().unwrap();
    let largest = Record::chained(
        long_child(0),
        Epoch(COUNTER_MAX),
        ConfigVersion(COUNTER_MAX),
        Head {
            epoch: Epoch(COUNTER_MAX),
            seq: Seq(COUNTER_MAX - 1),
            checksum: u32::MAX,
        },
        RecordKind::Delta,
        u16::MAX,
        Bytes::from(vec![0x5A; BODY_BYTES_MAX]),
    );
    let empty = Record::chained(
        cart,
        Epoch::ZERO,
        ConfigVersion::ZERO,
        Head::NONE,
        RecordKind::Snapshot,
        0,
        Bytes::new(),
    );
    vec![
        ("record-base", base),
        ("record-delta", delta),
        ("record-empty", empty),
        ("record-largest", largest),
    ]
}

pub fn remembered(key: CallKey, seq: Option<Seq>) -> Remembered {
    Remembered {
        key,
        request_hash: 0x0123_4567_89AB_CDEF,
        answer: Bytes::from_static(b"ok").into(),
        seq,
    }
}

pub fn steps() -> Vec<(&'static str, Step)> {
    let effect = Bytes::from_static(b"+1");
    let client = CallKey::Client("key".to_owned());
    let step = |key: Option<CallKey>| Step {
        call: key.map(|key| remembered(key, None)),
        effect: effect.clone().into(),
        earlier: Vec::new(),
    };
    let in_pieces = Step {
        call: Some(Remembered {
            answer: pieces(70_000),
            ..remembered(internal(7), None)
        }),
        effect: pieces(66 * 65_536),
        earlier: Vec::new(),
    };
    let with_earlier = Step {
        earlier: vec![remembered(internal(8), None), remembered(internal(9), None)],
        ..step(None)
    };
    vec![
        ("step-by-itself", step(None)),
        ("step-of-a-client", step(Some(client))),
        ("step-of-a-gateway", step(Some(internal(7)))),
        ("step-in-pieces", in_pieces),
        ("step-with-earlier-calls", with_earlier),
    ]
}

/// So many bytes, one of which is not zero in each piece but the first.
pub fn pieces(bytes: usize) -> Content {
    let mut value = vec![0; bytes];
    let marks = value.chunks_mut(65_536).zip(0u32..);
    marks.for_each(|(piece, nth)| piece[0] = nth as u8);
    let cut = Pieces::cut(&value.into()).expect("it is within the limit");
    Content::Pieces(cut.pieces)
}

pub fn bases() -> Vec<(&'static str, Base)> {
    let base = |calls: usize| Base {
        calls: (0..calls as u64)
            .map(|nth| remembered(internal(nth), Some(Seq(nth + 1))))
            .collect(),
        state: Bytes::from_static(b"1").into(),
        older: None,
    };
    let in_pieces = Base {
        state: pieces(64 * 65_536),
        ..base(2)
    };
    let named = |bytes: usize| match pieces(bytes) {
        Content::Pieces(pieces) => pieces,
        Content::Inline(_) => unreachable!("it was cut"),
    };
    let with_older = |bytes: usize, answers: Option<usize>| Base {
        older: Some(Older {
            calls: named(bytes),
            answers: answers.map(|answers| named(answers * 65_536)),
        }),
        ..base(2)
    };
    vec![
        ("base-with-older-calls", with_older(2 * 65_536 + 100, None)),
        ("base-with-older-answers", with_older(65_536, Some(3))),
        (
            "base-with-most-older-calls",
            with_older(1_024 * 65_536, Some(1_024)),
        ),
        ("base-in-pieces", in_pieces),
        ("base-empty", base(0)),
        ("base-two-calls", base(2)),
        ("base-most-calls", base(INLINE_CALLS_MAX)),
    ]
}

pub fn internal(number: u64) -> CallKey {
    CallKey::Internal {
        gateway: IncarnationId(9),
        number,
    }
}

fn hearts(samples: &mut Vec<Sample>) {
    add(samples, "heart-renewal", HeartMessage::Renewal(renewal()));
    let largest = Renewal {
        node: NodeId(u64::MAX),
        incarnation: IncarnationId(u64::MAX),
        round: u64::MAX,
        ttl: Ttl::from_millis(u32::MAX),
        voters: VotersVersion(COUNTER_MAX),
        applied: LogIndex(COUNTER_MAX),
    };
    add(
        samples,
        "heart-renewal-largest",
        HeartMessage::Renewal(largest),
    );
    for (name, verdict) in [
        ("promised", Verdict::Promised),
        ("expelled", Verdict::Expelled),
        ("not-live", Verdict::NotLive),
        ("ttl-above-limit", Verdict::TtlAboveLimit),
        ("old-voters", Verdict::OldVoters),
        ("no-leader", Verdict::NoLeader),
    ] {
        add(
            samples,
            &format!("heart-promise-{name}"),
            HeartMessage::Promise(promise(verdict)),
        );
    }
    let report = Report {
        voter: StoreId(5),
        incarnation: IncarnationId(6),
        expel: LogId {
            term: Term(2),
            index: LogIndex(77),
        },
    };
    add(samples, "heart-report", HeartMessage::Report(report));
    for (name, count) in [("empty", 0), ("one", 1), ("largest", SIGHTED_MAX)] {
        add(
            samples,
            &format!("heart-sighting-{name}"),
            HeartMessage::Sighting(sighted(count)),
        );
    }
    for (name, count) in [("empty", 0), ("one", 1), ("largest", AT_WORK_MAX)] {
        add(
            samples,
            &format!("heart-death-note-{name}"),
            HeartMessage::DeathNote(death_note(count)),
        );
    }
}

fn requests(samples: &mut Vec<Sample>) {
    let cart = child("acme/cart/u-1");
    let mut ask = |name: &str, ask| add(samples, &format!("request-{name}"), request(ask));
    ask(
        "seal-first",
        Ask::Seal {
            scope: slots(0),
            after: None,
        },
    );
    ask(
        "seal-next",
        Ask::Seal {
            scope: slots(2),
            after: Some(cart.clone()),
        },
    );
    ask(
        "seal-most-exceptions",
        Ask::Seal {
            scope: slots(EXCEPTIONS_MAX),
            after: None,
        },
    );
    ask(
        "seal-child",
        Ask::Seal {
            scope: Scope::Child(cart.clone()),
            after: None,
        },
    );
    ask("append-empty", Ask::Append(append(vec![])));
    ask("append-two", Ask::Append(append(chain(&cart, 2, 5))));
    ask(
        "fetch",
        Ask::Fetch {
            child: cart.clone(),
            after: Seq(4),
        },
    );
    ask("confirm", Ask::Confirm { scope: slots(1) });
    let unknown = ReplicaRequest {
        session: None,
        ..request(Ask::Confirm {
            scope: Scope::Child(cart),
        })
    };
    add(samples, "request-without-a-session", unknown);
}

fn answers(samples: &mut Vec<Sample>) {
    let cart = child("acme/cart/u-1");
    let head = chain(&cart, 1, 5)[0].head();
    let mut said = |name: &str, said| add(samples, &format!("answer-{name}"), answer(said));
    said(
        "sealed-empty",
        Said::Sealed {
            after: None,
            page: vec![],
            more: false,
            cut: true,
        },
    );
    said(
        "sealed-largest",
        Said::Sealed {
            after: Some(child("a/a/a")),
            page: page(INDEX_PAGE),
            more: true,
            cut: false,
        },
    );
    said(
        "appended",
        Said::Appended {
            child: cart.clone(),
            upto: head,
        },
    );
    said(
        "mismatch",
        Said::Mismatch {
            child: cart.clone(),
            tail: Head::NONE,
        },
    );
    said(
        "fetched-empty",
        Said::Fetched {
            child: cart.clone(),
            after: Seq(9),
            records: vec![],
        },
    );
    said(
        "fetched-two",
        Said::Fetched {
            child: cart.clone(),
            after: Seq::ZERO,
            records: chain(&cart, 2, 5),
        },
    );
    said("promised", Said::Promised(Epoch(COUNTER_MAX)));
    said("unsealed", Said::Unsealed);
    said("damaged", Said::Damaged { child: cart });
    said("confirmed", Said::Confirmed);
    let child = child("acme/cart/u-1");
    said("fetching", Said::Fetching { child });
}

fn calls(samples: &mut Vec<Sample>) {
    let internal = CallKey::Internal {
        gateway: IncarnationId(9),
        number: 7,
    };
    add(
        samples,
        "envelope-tell-of-64-bytes",
        envelope(internal.clone(), Bytes::from_static(&[0x42; 64])),
    );
    add(samples, "envelope-empty", envelope(internal, Bytes::new()));
    let confirmed = Confirmed {
        gateway: IncarnationId(9),
        upto: 7,
    };
    add(samples, "confirmed", confirmed);
    add(
        samples,
        "envelope-client-key",
        envelope(
            CallKey::Client("k".repeat(KEY_BYTES_MAX)),
            Bytes::from_static(b"{}"),
        ),
    );
    let route = Route {
        unit: UnitId(1),
        epoch: Epoch(2),
        node: NodeId(3),
    };
    for (name, outcome) in [
        (
            "answered",
            Outcome::Answered {
                body: Bytes::from_static(b"ok"),
                reflects: Seq(8),
                durable: true,
            },
        ),
        (
            "answered-loosely",
            Outcome::Answered {
                body: Bytes::from_static(b"ok"),
                reflects: Seq(8),
                durable: false,
            },
        ),
        ("not-owner", Outcome::NotOwner { hint: None }),
        ("not-owner-hint", Outcome::NotOwner { hint: Some(route) }),
        (
            "overloaded",
            Outcome::Overloaded {
                retry_after_ms: u32::MAX,
            },
        ),
        ("conflict", Outcome::Conflict),
        ("unavailable", Outcome::Unavailable),
        ("unknown", Outcome::Unknown),
    ] {
        add(samples, &format!("reply-{name}"), reply(outcome));
    }
}

fn add<T: Message + PartialEq + Debug + 'static>(samples: &mut Vec<Sample>, name: &str, value: T) {
    let mut frame = Vec::new();
    encode_frame(&value, &mut frame).unwrap();
    samples.push(Sample {
        name: name.to_owned(),
        kind: T::TYPE,
        frame,
        reads_back: Box::new(move |bytes| decode_whole::<T>(bytes).as_ref() == Ok(&value)),
    });
}

/// A record's body, in its record.
fn add_body<T>(samples: &mut Vec<Sample>, name: &str, kind: RecordKind, body: T)
where
    T: Encode<()> + for<'b> Decode<'b, ()> + PartialEq + 'static,
{
    let record = Record::chained(
        child("acme/cart/u-1"),
        Epoch(3),
        ConfigVersion(2),
        Head::NONE,
        kind,
        1,
        minicbor::to_vec(&body).unwrap().into(),
    );
    let mut frame = Vec::new();
    encode_frame(&record, &mut frame).unwrap();
    let reads_back = move |bytes: &[u8]| {
        decode_whole::<Record>(bytes)
            .is_ok_and(|record| decode_exact::<T>(&record.body).is_ok_and(|read| read == body))
    };
    samples.push(Sample {
        name: name.to_owned(),
        kind: MessageType::Record,
        frame,
        reads_back: Box::new(reads_back),
    });
}
