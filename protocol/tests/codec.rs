//! What the codec refuses, and that damage never passes for a message.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

#[path = "../fuzz/properties.rs"]
mod properties;
mod samples;

use std::fmt::Debug;

use bytes::Bytes;
use minicbor::{Decode, Encode};
use properties::framed;
use samples::{
    answer, append, chain, child, death_note, envelope, page, records, reply, request, sighted,
    slots,
};
use understudy_protocol::cluster::directory::{Directory, Entry};
use understudy_protocol::id::{COUNTER_MAX, Seq};
use understudy_protocol::wire::codec::{
    CALL_BODY_BYTES_MAX, CALL_FRAME_BYTES_MAX, DecodeError, EncodeError, Frame, FrameSplitter,
    HEADER_BYTES, HEART_FRAME_BYTES_MAX, Message, MessageType, RECORD_FRAME_BYTES_MAX,
    RECORDS_BUDGET_BYTES, REPLICA_FRAME_BYTES_MAX, decode_exact, decode_frame, decode_whole,
    encode_frame, record_bytes_max, records_that_fit,
};
use understudy_protocol::wire::envelope::{CallKey, Envelope, KEY_BYTES_MAX, Outcome, Reply};
use understudy_protocol::wire::heart::{AT_WORK_MAX, HeartMessage, SIGHTED_MAX};
use understudy_protocol::wire::record::{BODY_BYTES_MAX, Head, Record};
use understudy_protocol::wire::replica::{
    Ask, CHAIN_RECORDS_MAX, EXCEPTIONS_MAX, INDEX_PAGE, ReplicaAnswer, ReplicaRequest, Said, Scope,
};
use understudy_protocol::wire::step::{Remembered, Step};

// --- Damage.

#[test]
fn any_single_flipped_bit_is_detected() {
    let mut flips = 0;
    for sample in frames() {
        for bit in 0..sample.frame.len() * 8 {
            let mut damaged = sample.frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(
                Frame::split(&damaged).is_err() && !(sample.reads_back)(&damaged),
                "{}: bit {bit}",
                sample.name
            );
            flips += 1;
        }
    }
    assert!(flips > 50_000, "only {flips} flips");
}

#[test]
fn a_frame_cut_at_any_length_is_incomplete_and_says_how_much_is_missing() {
    for sample in frames() {
        for length in 0..sample.frame.len() {
            match Frame::split(&sample.frame[..length]) {
                Err(DecodeError::Incomplete { needed }) => {
                    assert!((1..=sample.frame.len() - length).contains(&needed));
                    let whole = length >= HEADER_BYTES;
                    assert!(!whole || needed == sample.frame.len() - length);
                }
                other => panic!("{} cut at {length}: {other:?}", sample.name),
            }
        }
    }
}

#[test]
fn a_frame_never_decodes_as_another_type() {
    for sample in samples::all() {
        let read_as = [
            decode_whole::<HeartMessage>(&sample.frame).err(),
            decode_whole::<ReplicaRequest>(&sample.frame).err(),
            decode_whole::<ReplicaAnswer>(&sample.frame).err(),
            decode_whole::<Envelope>(&sample.frame).err(),
            decode_whole::<Reply>(&sample.frame).err(),
            decode_whole::<Record>(&sample.frame).err(),
            decode_whole::<Entry>(&sample.frame).err(),
            decode_whole::<Directory>(&sample.frame).err(),
        ];
        for (expected, error) in MessageType::ALL.into_iter().zip(read_as) {
            let wrong = DecodeError::WrongType {
                seen: sample.kind,
                expected,
            };
            let right = (expected != sample.kind).then_some(wrong);
            assert_eq!(error, right, "{}", sample.name);
        }
    }
}

// --- The frame.

#[test]
fn bytes_that_are_no_message_are_refused() {
    use DecodeError::*;
    let fetch_frame = frame_of(&fetch());
    let edited = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fetch_frame.clone();
        edit(&mut bytes);
        bytes
    };
    let payload = payload_of(&fetch());
    let with = |payload: &[u8]| framed(2, 1, payload);
    #[rustfmt::skip]
    let rows: Vec<(&str, Vec<u8>, DecodeError)> = vec![
        ("nothing", vec![], Incomplete { needed: 12 }),
        ("text", b"GET / HTTP/1.1\r\n".to_vec(), BadMagic),
        ("one byte of text", b"G".to_vec(), BadMagic),
        ("half a magic", vec![0xF5], Incomplete { needed: 11 }),
        ("half a wrong magic", vec![0xF5, 0x56], BadMagic),
        ("another checksum", edited(&|b| b[11] ^= 1), BadChecksum),
        ("bytes after the frame", edited(&|b| b.push(0)), TrailingBytes),
        ("claims 4 GiB", edited(&|b| b[4..8].fill(0xFF)),
            TooLong { length: 0xFFFF_FFFF + 12, limit: REPLICA_FRAME_BYTES_MAX }),
        ("type 0", framed(0, 1, &payload), UnknownType { seen: 0 }),
        ("type 10", framed(10, 1, &payload), UnknownType { seen: 10 }),
        ("version 0", framed(2, 0, &payload), Malformed("version 0 was never written")),
        ("version 2", framed(2, 2, &payload),
            NewerVersion { kind: MessageType::ReplicaRequest, seen: 2, known: 1 }),
        ("no payload", with(&[]), Malformed("ends inside a value")),
        ("half a payload", with(&payload[..payload.len() - 1]), Malformed("ends inside a value")),
        ("two payloads", with(&[&payload[..], &payload[..]].concat()), TrailingBytes),
        ("a number", with(&[0x05]), Malformed("a value is of another type")),
        ("too few fields", with(&[0x82, 0x01, 0x02]), Malformed("a field is missing")),
        ("a negative id", with(&[0x85, 0x20, 0, 0, 0, 0]), Malformed("a value is of another type")),
        ("an indefinite array", with(&[0x9F, 0xFF]), Malformed("has an indefinite length")),
        ("a tag", with(&[0xC0, 0x00]), Malformed("has a tag")),
        ("2^64-1 items", with(&[&[0x9B], &[0xFF; 8][..]].concat()), Malformed("ends inside a value")),
        ("2^64-1 pairs", with(&[&[0xBB], &[0xFF; 8][..]].concat()), Malformed("ends inside a value")),
        ("2^64-1 bytes", with(&[&[0x5B], &[0xFF; 8][..]].concat()), Malformed("ends inside a value")),
        ("2^64-1 letters", with(&[&[0x7B], &[0xFF; 8][..]].concat()), Malformed("ends inside a value")),
        ("a megabyte of arrays", with(&vec![0x81; 1_000_000]), Malformed("nested too deeply")),
        ("a megabyte of maps", with(&vec![0xA1; 1_000_000]), Malformed("nested too deeply")),
    ];
    for (name, bytes, error) in rows {
        let seen = decode_whole::<ReplicaRequest>(&bytes);
        assert_eq!(seen, Err(error), "{name}");
    }
}

#[test]
fn a_number_spelled_long_is_read_in_a_message_and_refused_in_a_record() {
    let (_, record) = records().swap_remove(0);
    let payload = payload_of(&record);
    let epoch = 1 + payload_of(&record.child.as_str().to_owned()).len();
    assert_eq!(payload[epoch], 3, "the epoch is where it is thought to be");
    let long = [&payload[..epoch], &[0x18, 3], &payload[epoch + 1..]].concat();
    refuses::<Record>(&framed(6, 1, &long), DecodeError::NotExact);

    let payload = payload_of(&fetch());
    assert_eq!(payload[1], 12, "the unit is where it is thought to be");
    let long = [&payload[..1], &[0x18, 12], &payload[2..]].concat();
    assert_eq!(decode_whole(&framed(2, 1, &long)), Ok(fetch()));
}

#[test]
fn a_body_with_anything_unknown_is_refused_whole() {
    let step = Step {
        call: Some(Remembered {
            key: CallKey::Client("k".into()),
            request_hash: 1,
            answer: Bytes::from_static(b"ok").into(),
            seq: None,
        }),
        effect: Bytes::from_static(b"effect").into(),
        earlier: Vec::new(),
    };
    let bytes = payload_of(&step);
    assert_eq!(decode_exact::<Step>(&bytes), Ok(step));

    let added = [&[0x84], &bytes[1..], &[0x80, 0x00]].concat();
    assert_eq!(decode_exact::<Step>(&added), Err(DecodeError::NotExact));
    let after = [&bytes[..], &[0x00]].concat();
    assert_eq!(
        decode_exact::<Step>(&after),
        Err(DecodeError::TrailingBytes)
    );
    let cut = &bytes[..bytes.len() - 1];
    let ends = DecodeError::Malformed("ends inside a value");
    assert_eq!(decode_exact::<Step>(cut), Err(ends));
    // The variant of the key, inside an optional struct, where minicbor would read on.
    assert_eq!(bytes[1..4], [0x83, 0x82, 0x00], "the key's variant");
    let mut unknown = bytes.clone();
    unknown[3] = 9;
    assert!(decode_exact::<Step>(&unknown).is_err());
}

#[test]
fn only_lost_framing_ends_a_stream() {
    use DecodeError::*;
    let kind = MessageType::Heart;
    #[rustfmt::skip]
    let rows = [
        (BadMagic, true),
        (BadChecksum, true),
        (TooLong { length: 1, limit: 0 }, true),
        (Incomplete { needed: 1 }, false),
        (UnknownType { seen: 9 }, false),
        (WrongType { seen: kind, expected: MessageType::Reply }, false),
        (NewerVersion { kind, seen: 2, known: 1 }, false),
        (UnknownVariant, false),
        (Malformed(""), false),
        (TrailingBytes, false),
        (NotExact, false),
        (Invalid(""), false),
    ];
    for (error, ends) in rows {
        assert_eq!(error.ends_stream(), ends, "{error}");
    }
}

// --- Limits.

#[test]
fn the_frame_of_a_small_tell_costs_twelve_bytes() {
    let tell = envelope(CallKey::Client("k".into()), Bytes::from_static(&[0; 64]));
    assert_eq!(frame_of(&tell).len() - payload_of(&tell).len(), 12);
}

#[test]
fn messages_at_their_limits_fit_their_frames() {
    let largest = largest_record();
    fits(&largest);
    assert!(frame_of(&largest).len() <= RECORD_FRAME_BYTES_MAX);
    fits(&HeartMessage::Sighting(sighted(SIGHTED_MAX)));
    fits(&HeartMessage::DeathNote(death_note(AT_WORK_MAX)));
    assert!(
        frame_of(&HeartMessage::DeathNote(death_note(AT_WORK_MAX))).len() <= HEART_FRAME_BYTES_MAX
    );
    fits(&request(Ask::Seal {
        scope: slots(EXCEPTIONS_MAX),
        after: Some(samples::long_child(0)),
    }));
    fits(&answer(Said::Sealed {
        after: None,
        page: page(INDEX_PAGE),
        more: true,
        cut: true,
    }));
    let body = Bytes::from(vec![0; CALL_BODY_BYTES_MAX]);
    let mut call = envelope(CallKey::Client("k".repeat(KEY_BYTES_MAX)), body.clone());
    call.to = samples::long_child(0);
    call.call.number = u64::MAX;
    fits(&call);
    assert!(frame_of(&call).len() <= CALL_FRAME_BYTES_MAX);
    fits(&reply(Outcome::Answered {
        body,
        reflects: Seq(COUNTER_MAX),
        durable: true,
    }));
}

#[test]
fn messages_beyond_their_limits_are_refused() {
    let cart = child("acme/cart/u-1");
    let chain3 = chain(&cart, 3, 5);
    let page2 = page(2);
    let swapped: Vec<_> = page2.iter().rev().cloned().collect();
    let sealed = |after, page, more| {
        answer(Said::Sealed {
            after,
            page,
            more,
            cut: false,
        })
    };
    let fetched = |after, records| {
        answer(Said::Fetched {
            child: cart.clone(),
            after,
            records,
        })
    };
    let unsorted = Scope::Slots {
        range: understudy_protocol::id::SlotRange::ALL,
        except: vec![child("b/b/b"), child("a/a/a")],
    };
    let twice = Scope::Slots {
        range: understudy_protocol::id::SlotRange::ALL,
        except: vec![child("a/a/a"), child("a/a/a")],
    };
    let one_more = HeartMessage::Sighting(sighted(SIGHTED_MAX + 1));
    invalid(one_more, "a sighting names at most 50 incarnations");
    let one_more = HeartMessage::DeathNote(death_note(AT_WORK_MAX + 1));
    invalid(one_more, "a death note names at most 100 units");
    let long_key = CallKey::Client("k".repeat(KEY_BYTES_MAX + 1));
    invalid(
        envelope(long_key, Bytes::new()),
        "a key has at most 64 bytes",
    );
    let long_body = Bytes::from(vec![0; CALL_BODY_BYTES_MAX + 1]);
    invalid(
        envelope(CallKey::Client("k".into()), long_body.clone()),
        "a call's body has at most 1 MiB",
    );
    let outcome = Outcome::Answered {
        body: long_body,
        reflects: Seq(1),
        durable: true,
    };
    invalid(reply(outcome), "a call's body has at most 1 MiB");

    for scope in [unsorted, twice] {
        let order = "exceptions are in order, each once";
        let after = None;
        invalid(
            request(Ask::Confirm {
                scope: scope.clone(),
            }),
            order,
        );
        invalid(request(Ask::Seal { scope, after }), order);
    }
    invalid(
        request(Ask::Confirm {
            scope: slots(EXCEPTIONS_MAX + 1),
        }),
        "a shard names at most 64 exceptions",
    );

    let order = "a page lists children in order, each once";
    invalid(sealed(None, swapped, false), order);
    invalid(
        sealed(None, page(INDEX_PAGE + 1), false),
        "a page lists at most 256 children",
    );
    let first = page2[0].child.clone();
    invalid(
        sealed(Some(first), page2, false),
        "a page begins after what was asked",
    );
    invalid(sealed(None, vec![], true), "an empty page is the last");

    let gap = vec![chain3[0].clone(), chain3[2].clone()];
    let broken = "each record follows the one before it";
    invalid(request(Ask::Append(append(gap.clone()))), broken);
    invalid(fetched(Seq::ZERO, gap), broken);
    let many = chain(&cart, CHAIN_RECORDS_MAX + 1, 1);
    let too_many = "a message carries at most 128 records";
    invalid(request(Ask::Append(append(many.clone()))), too_many);
    invalid(fetched(Seq::ZERO, many), too_many);
    let strange = chain(&child("acme/cart/u-2"), 1, 5);
    let whose = "all records are the child's";
    invalid(request(Ask::Append(append(strange.clone()))), whose);
    invalid(fetched(Seq::ZERO, strange), whose);
    let mut elsewhere = append(chain3.clone());
    elsewhere.prev = chain3[0].head();
    invalid(
        request(Ask::Append(elsewhere)),
        "an append's first record follows its `prev`",
    );
    invalid(
        fetched(Seq(1), chain3.clone()),
        "a fetched page begins after what was asked",
    );

    let intact = "the record is not intact";
    let mut altered = chain3[0].clone();
    altered.body = Bytes::from_static(b"other");
    invalid(altered.clone(), intact);
    invalid(request(Ask::Append(append(vec![altered]))), intact);
    let mut jumped = chain3[1].clone();
    jumped.seq = Seq(9);
    invalid(jumped, intact);
}

#[test]
fn a_message_too_long_for_its_frame_is_not_encoded_and_leaves_the_buffer_alone() {
    let cart = child("acme/cart/u-1");
    let long = request(Ask::Append(append(chain(&cart, 17, BODY_BYTES_MAX))));
    let mut out = vec![1, 2, 3];
    let refused = encode_frame(&long, &mut out);
    assert!(
        matches!(
            refused,
            Err(EncodeError::TooLong {
                kind: MessageType::ReplicaRequest,
                limit: REPLICA_FRAME_BYTES_MAX,
                ..
            })
        ),
        "{refused:?}"
    );
    assert_eq!(out, [1, 2, 3]);
}

#[test]
fn an_append_of_the_records_that_fit_always_fits_its_frame() {
    for (body, whole) in [
        (0, CHAIN_RECORDS_MAX),
        (1000, CHAIN_RECORDS_MAX),
        (8 * 1024, 123),
        (BODY_BYTES_MAX - 1, 15),
        (BODY_BYTES_MAX, 15),
    ] {
        let cart = samples::long_child(0);
        let records = chain(&cart, CHAIN_RECORDS_MAX + 1, body);
        let fitting = records_that_fit(&records);
        assert_eq!(fitting, whole, "bodies of {body} bytes");
        let mut message = append(records[..fitting].to_vec());
        message.child = cart;
        message.adopted = Seq(COUNTER_MAX);
        message.keep_from = Seq(COUNTER_MAX);
        fits(&request(Ask::Append(message)));
    }
    assert_eq!(records_that_fit([]), 0);
    assert_eq!(records_that_fit([&largest_record()]), 1);
}

#[test]
fn a_records_bound_is_never_below_its_encoding() {
    for (name, record) in records() {
        let bound = record_bytes_max(&record);
        assert!(payload_of(&record).len() <= bound, "{name}");
        assert!(bound <= RECORDS_BUDGET_BYTES, "{name}");
    }
}

// --- Streams.

#[test]
fn a_stream_gives_the_same_frames_however_it_is_cut() {
    let samples = samples::all();
    let stream: Vec<u8> = samples.iter().flat_map(|one| one.frame.clone()).collect();
    for read in [1, 2, 11, 12, 13, 1_000, 65_536, 1_000_000] {
        let mut splitter = FrameSplitter::new(REPLICA_FRAME_BYTES_MAX);
        let mut kinds = Vec::new();
        for chunk in stream.chunks(read) {
            push_all(&mut splitter, chunk, &mut kinds).unwrap();
        }
        let expected: Vec<_> = samples.iter().map(|one| one.kind).collect();
        assert_eq!(kinds, expected, "in reads of {read}");
        assert!(splitter.is_between_frames());
    }
}

#[test]
fn a_stream_goes_on_after_frames_that_are_not_understood() {
    let fetch = frame_of(&fetch());
    let newer = framed(2, 9, b"what this is only version 9 knows");
    let unknown = framed(200, 1, b"nor this");
    let malformed = framed(2, 1, b"\x05");
    let mut splitter = FrameSplitter::new(REPLICA_FRAME_BYTES_MAX);
    splitter.push(&[newer, unknown, malformed, fetch].concat());
    let mut seen = Vec::new();
    while let Some(frame) = splitter.poll().unwrap() {
        seen.push(frame.decode::<ReplicaRequest>().is_ok());
    }
    assert_eq!(seen, [false, false, false, true]);
}

#[test]
fn a_stream_ends_at_the_first_byte_that_is_no_frame_and_says_so_again() {
    let fetch = frame_of(&fetch());
    let mut damaged = fetch.clone();
    damaged[HEADER_BYTES] ^= 1;
    let longer = framed(4, 1, &[0; 500]);
    let too_long = DecodeError::TooLong {
        length: 512,
        limit: 200,
    };
    for (name, bytes, error) in [
        ("text", b"hello".to_vec(), DecodeError::BadMagic),
        ("damage", damaged, DecodeError::BadChecksum),
        ("a long frame", longer.clone(), too_long),
        ("only its header", longer[..12].to_vec(), too_long),
    ] {
        let mut splitter = FrameSplitter::new(200);
        splitter.push(&[&fetch[..], &bytes, &fetch].concat());
        assert!(
            splitter.poll().unwrap().is_some(),
            "{name}: the good one first"
        );
        assert_eq!(splitter.poll(), Err(error), "{name}");
        assert_eq!(splitter.push(&fetch), fetch.len());
        assert_eq!(splitter.poll(), Err(error), "{name}: again");
        assert!(!splitter.is_between_frames());
    }
}

#[test]
fn a_splitter_takes_no_more_than_its_bound_and_goes_on_when_polled() {
    let call = frame_of(&envelope(CallKey::Client("k".into()), vec![7; 900].into()));
    let stream = call.repeat(200); // three times the read-ahead of 64 KiB
    let mut splitter = FrameSplitter::new(1_000);
    let taken = splitter.push(&stream);
    assert_eq!(taken, 64 * 1024);
    assert_eq!(splitter.push(&stream), 0, "full");
    let mut kinds = Vec::new();
    push_all(&mut splitter, &stream[taken..], &mut kinds).unwrap();
    assert_eq!(kinds.len(), 200);
}

#[test]
fn a_stream_that_ends_inside_a_frame_is_noticed() {
    let fetch = frame_of(&fetch());
    let mut splitter = FrameSplitter::new(200);
    assert!(splitter.is_between_frames());
    splitter.push(&fetch[..fetch.len() - 1]);
    assert_eq!(splitter.poll(), Ok(None));
    assert!(!splitter.is_between_frames());
}

// --- The rule for change rests on what minicbor does; an upgrade that did otherwise would show here.

#[test]
fn an_optional_field_may_be_added_at_the_end_of_a_struct() {
    #[derive(Debug, PartialEq, Encode, Decode)]
    struct Old {
        #[n(0)]
        round: u64,
    }
    #[derive(Debug, PartialEq, Encode, Decode)]
    struct New {
        #[n(0)]
        round: u64,
        #[n(1)]
        load: Option<u8>,
    }
    let old = payload_of(&Old { round: 1 });
    let without = New {
        round: 1,
        load: None,
    };
    let with = New {
        round: 1,
        load: Some(9),
    };
    assert_eq!(minicbor::decode::<New>(&old).unwrap(), without);
    assert_eq!(
        payload_of(&without),
        old,
        "absent, the bytes are the old ones"
    );
    let new: Old = minicbor::decode(&payload_of(&with)).unwrap();
    assert_eq!(new, Old { round: 1 });
}

#[test]
fn an_unknown_variant_in_an_option_is_none_but_inside_an_optional_struct_it_derails() {
    #[derive(Debug, PartialEq, Encode, Decode)]
    enum Mood {
        #[n(0)]
        Calm,
    }
    #[derive(Debug, PartialEq, Encode, Decode)]
    enum LaterMood {
        #[n(1)]
        Wild,
    }
    #[derive(Debug, PartialEq, Encode, Decode)]
    struct Holder<T> {
        #[n(0)]
        held: Option<T>,
        #[n(1)]
        after: u64,
    }
    #[derive(Debug, PartialEq, Encode, Decode)]
    struct Inner<T> {
        #[n(0)]
        mood: T,
        #[n(1)]
        number: u64,
    }
    let later = Holder {
        held: Some(LaterMood::Wild),
        after: 5,
    };
    let read: Holder<Mood> = minicbor::decode(&payload_of(&later)).unwrap();
    let none = Holder {
        held: None,
        after: 5,
    };
    assert_eq!(read, none);

    let inner = Inner {
        mood: LaterMood::Wild,
        number: 77,
    };
    let later = Holder {
        held: Some(inner),
        after: 5,
    };
    let read: Holder<Inner<Mood>> = minicbor::decode(&payload_of(&later)).unwrap();
    assert_eq!(read.after, 77, "read from the middle of the other struct");
}

// --- Helpers.

/// A hundred small frames and more: the samples of up to 400 bytes, and records in many shapes.
fn frames() -> Vec<samples::Sample> {
    let mut frames: Vec<_> = samples::all()
        .into_iter()
        .filter(|sample| sample.frame.len() <= 400)
        .collect();
    let cart = child("acme/cart/u-1");
    for (n, record) in chain(&cart, 40, 40).into_iter().enumerate() {
        frames.push(samples::Sample {
            name: format!("record {n}"),
            kind: MessageType::Record,
            frame: frame_of(&record),
            reads_back: Box::new(move |bytes| decode_whole::<Record>(bytes).is_ok()),
        });
    }
    assert!(frames.len() >= 100);
    assert!(frames.iter().all(|one| (one.reads_back)(&one.frame)));
    frames
}

fn fetch() -> ReplicaRequest {
    request(Ask::Fetch {
        child: child("acme/cart/u-1"),
        after: Seq(5),
    })
}

fn largest_record() -> Record {
    let (name, record) = records().pop().unwrap();
    assert_eq!(name, "record-largest");
    assert_ne!(record.prev, Head::NONE);
    record
}

fn frame_of<T: Message>(message: &T) -> Vec<u8> {
    let mut frame = Vec::new();
    encode_frame(message, &mut frame).unwrap();
    frame
}

fn payload_of<T: minicbor::Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).unwrap()
}

fn fits<T: Message + PartialEq + Debug>(message: &T) {
    let mut frame = frame_of(message);
    frame.push(0xEE);
    let (read, rest) = decode_frame::<T>(&frame).unwrap();
    assert!(read == *message);
    assert_eq!(rest, [0xEE]);
}

fn refuses<T: Message + PartialEq + Debug>(frame: &[u8], error: DecodeError) {
    assert_eq!(decode_whole::<T>(frame), Err(error));
}

/// The message is well-formed but broken: a sender without our checks could send it.
fn invalid<T: Message + PartialEq + Debug>(message: T, why: &'static str) {
    assert_eq!(message.check(), Err(why));
    let frame = framed(T::TYPE.number(), 1, &payload_of(&message));
    let seen = decode_whole::<T>(&frame);
    // Some limits are so near the frame's own that the frame is refused first.
    let frame_first = matches!(seen, Err(DecodeError::TooLong { .. }));
    assert!(
        frame_first || seen == Err(DecodeError::Invalid(why)),
        "{why}: {seen:?}"
    );
}

fn push_all(
    splitter: &mut FrameSplitter,
    mut bytes: &[u8],
    kinds: &mut Vec<MessageType>,
) -> Result<(), DecodeError> {
    loop {
        while let Some(frame) = splitter.poll()? {
            kinds.push(frame.kind()?);
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let taken = splitter.push(bytes);
        assert!(taken > 0, "a polled splitter takes a byte");
        bytes = &bytes[taken..];
    }
}
