//! What must hold for any bytes at all, as functions: the fuzz targets run them on what a fuzzer
//! finds, `tests/replay.rs` on kept inputs and seeded mutations, without nightly.
//!
//! Each takes bytes and panics where a property fails. The first: nothing panics by itself.

use std::fmt::Debug;

use understudy_protocol::cluster::directory::{Command, Directory, Entry, Event, Formation, Grant};
use understudy_protocol::id::{COUNTER_MAX, LogId, NodeId, StoreId, Term, UnitId};
use understudy_protocol::machine::Machine;
use understudy_protocol::time::{ClusterTime, Time};
use understudy_protocol::wire::checksum;
use understudy_protocol::wire::codec::{
    DecodeError, Frame, FrameSplitter, Message, MessageType, decode_exact, decode_frame,
    decode_whole, encode_frame,
};
use understudy_protocol::wire::envelope::{Envelope, Reply};
use understudy_protocol::wire::heart::{HeartMessage, Ttl};
use understudy_protocol::wire::record::Record;
use understudy_protocol::wire::replica::{ReplicaAnswer, ReplicaRequest};
use understudy_protocol::wire::step::{Base, Step};

/// A property, by the name of its fuzz target.
pub type Property = (&'static str, fn(&[u8]));

/// Every target. Those named after a message take the payload of a frame, so that a fuzzer need
/// not guess a checksum; `step` takes a record's body; `frame` and `stream` take raw bytes.
pub const TARGETS: [Property; 11] = [
    ("heart", payload::<HeartMessage>),
    ("replica_request", payload::<ReplicaRequest>),
    ("replica_answer", payload::<ReplicaAnswer>),
    ("envelope", payload::<Envelope>),
    ("reply", payload::<Reply>),
    ("record", payload::<Record>),
    ("step", step),
    ("directory_command", directory_command),
    ("directory_snapshot", directory_snapshot),
    ("frame", frame),
    ("stream", stream),
];

/// The bytes as the payload of a frame whose checksum fits.
pub fn payload<T: Message + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(message) = decode_whole::<T>(&framed(T::TYPE.number(), T::TYPE.version(), bytes)) {
        comes_back(&message, bytes);
    }
}

/// The bytes as the body of a record.
pub fn step(bytes: &[u8]) {
    if let Ok(step) = decode_exact::<Step>(bytes) {
        assert_eq!(minicbor::to_vec(&step).expect("it was read"), bytes);
    }
    if let Ok(base) = decode_exact::<Base>(bytes) {
        assert_eq!(minicbor::to_vec(&base).expect("it was read"), bytes);
    }
}

/// An entry that is accepted is applied before and after the formation, and what comes of it is a
/// directory that others accept.
pub fn directory_command(bytes: &[u8]) {
    payload::<Entry>(bytes);
    let Ok(entry) = decode_whole::<Entry>(&framed(7, 1, bytes)) else {
        return;
    };
    let mut fresh = Directory::default();
    apply(&mut fresh, entry.clone());
    assert_eq!(fresh.check(), Ok(()));
    let mut formed = Directory::default();
    apply(&mut formed, at(entry.at, Command::Form(formation())));
    apply(&mut formed, entry.clone());
    apply(&mut formed, entry);
    assert_eq!(formed.check(), Ok(()));
    comes_back_whole(&formed);
}

/// A snapshot that is accepted goes on: everything that is there may be granted, lost and expelled.
pub fn directory_snapshot(bytes: &[u8]) {
    payload::<Directory>(bytes);
    let Ok(mut directory) = decode_whole::<Directory>(&framed(8, 1, bytes)) else {
        return;
    };
    let _ = directory.facts();
    let now = directory.clock();
    apply(&mut directory, at(now, Command::Form(formation())));
    let incarnations: Vec<_> = directory.incarnations().keys().copied().collect();
    for unit in directory.units().keys().copied().collect::<Vec<UnitId>>() {
        let Some(&to) = incarnations.first() else {
            break;
        };
        let Some(entry) = directory.unit(unit) else {
            continue;
        };
        let grant = Grant {
            unit,
            epoch: entry.epoch,
            config: entry.config,
            to,
        };
        let grants = vec![grant];
        apply(&mut directory, at(now, Command::Grant { grants }));
        apply(&mut directory, at(now, Command::Pardon { unit }));
        apply(&mut directory, at(now, Command::Remove { unit }));
    }
    for incarnation in incarnations {
        apply(&mut directory, at(now, Command::Expel { incarnation }));
        apply(
            &mut directory,
            at(now, Command::PromisesOver { incarnation }),
        );
    }
    let node = NodeId(1);
    apply(
        &mut directory,
        at(
            now,
            Command::Drain {
                node,
                draining: true,
            },
        ),
    );
    let later = ClusterTime::from_millis(now.as_millis().saturating_add(60_000));
    for _ in 0..3 {
        apply(&mut directory, at(later, Command::Tick));
    }
    // Hostile clocks and counters may have stood one step before the end of what is read.
    let counters = directory.units().values().map(|unit| unit.epoch.0);
    let highest = counters.chain([directory.applied().index.0]).max();
    if later.as_millis() <= Time::MAX.as_millis() && highest < Some(COUNTER_MAX) {
        assert_eq!(directory.check(), Ok(()));
        comes_back_whole(&directory);
    }
}

/// The bytes as a frame of every type; it is of one type at most.
pub fn frame(bytes: &[u8]) {
    let mut read_as = Vec::new();
    frame_as::<HeartMessage>(bytes, &mut read_as);
    frame_as::<ReplicaRequest>(bytes, &mut read_as);
    frame_as::<ReplicaAnswer>(bytes, &mut read_as);
    frame_as::<Envelope>(bytes, &mut read_as);
    frame_as::<Reply>(bytes, &mut read_as);
    frame_as::<Record>(bytes, &mut read_as);
    frame_as::<Entry>(bytes, &mut read_as);
    frame_as::<Directory>(bytes, &mut read_as);
    assert!(read_as.len() <= 1, "one frame, read as {read_as:?}");
}

/// The bytes as a stream: the first byte says how it is cut into reads, which must not matter.
pub fn stream(bytes: &[u8]) {
    let Some((&cut, bytes)) = bytes.split_first() else {
        return;
    };
    let (at_once, end_at_once) = frames_of_slice(bytes);
    let (in_reads, end_in_reads) = frames_of_stream(bytes, usize::from(cut).max(1));
    assert_eq!(at_once, in_reads);
    assert_eq!(end_at_once, end_in_reads);
}

/// The payload framed by the table in the codec's documentation, not by its code.
pub fn framed(kind: u8, version: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("fuzzers make small inputs");
    let mut frame = vec![0xF5, 0x55, kind, version];
    frame.extend(length.to_be_bytes());
    let sum = checksum(&[&frame[..], payload].concat());
    frame.extend(sum.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Above every type a fuzzer reaches, so that a stream and a slice refuse the same frames.
const STREAM_LIMIT: usize = 64 * 1024 * 1024;

fn frame_as<T: Message + PartialEq + Debug>(bytes: &[u8], read_as: &mut Vec<MessageType>) {
    if let Ok((message, rest)) = decode_frame::<T>(bytes) {
        assert!(bytes.ends_with(rest), "what is left is the end of it");
        comes_back(&message, &bytes[12..bytes.len() - rest.len()]);
        read_as.push(T::TYPE);
    }
}

/// What was accepted can be said again, means the same, and is then said in one way only.
fn comes_back<T: Message + PartialEq + Debug>(message: &T, payload: &[u8]) {
    let mut frame = Vec::new();
    if encode_frame(message, &mut frame).is_err() {
        // A sender may spell a number in more bytes than it needs, but never in fewer.
        panic!("accepted, but too long to be said again: {message:?}");
    }
    let again: T = decode_whole(&frame).expect("our own frame is accepted");
    assert_eq!(again, *message);
    let mut twice = Vec::new();
    encode_frame(&again, &mut twice).expect("it was encoded before");
    assert_eq!(twice, frame);
    if T::TYPE.is_exact() {
        assert_eq!(&frame[12..], payload, "an exact type has one spelling");
    }
}

fn at(at: ClusterTime, command: Command) -> Entry {
    Entry {
        at,
        random: 7,
        command,
    }
}

fn apply(directory: &mut Directory, entry: Entry) {
    let index = directory.applied().index.next();
    let term = Term(1);
    let next = Event::Apply(LogId { term, index }, entry);
    directory
        .handle(Time::ZERO, next)
        .expect("it is the next entry");
    while directory.poll_action().is_some() {}
    let _ = directory.next_deadline();
}

fn formation() -> Formation {
    Formation {
        voters: [StoreId(1)].into(),
        ttl: Ttl::DEFAULT,
        replicas: 1,
        min_copies: 1,
        shards: 2,
        set: [StoreId(1)].into(),
    }
}

/// A directory of our own making is read as it is, indexes and all.
fn comes_back_whole(directory: &Directory) {
    let mut frame = Vec::new();
    encode_frame(directory, &mut frame).expect("it holds what it promises");
    let again = decode_whole::<Directory>(&frame).expect("our own frame is accepted");
    assert_eq!(again, *directory);
}

type Frames = Vec<(Result<MessageType, DecodeError>, Vec<String>)>;

fn frames_of_slice(mut bytes: &[u8]) -> (Frames, Option<DecodeError>) {
    let mut frames = Vec::new();
    loop {
        match Frame::split(bytes) {
            Ok((frame, rest)) => {
                frames.push(described(&frame));
                bytes = rest;
            }
            Err(DecodeError::Incomplete { .. }) => return (frames, None),
            Err(error) => return (frames, Some(error)),
        }
    }
}

fn frames_of_stream(bytes: &[u8], read: usize) -> (Frames, Option<DecodeError>) {
    let mut splitter = FrameSplitter::new(STREAM_LIMIT);
    let mut frames = Vec::new();
    for mut chunk in bytes.chunks(read) {
        while !chunk.is_empty() {
            let taken = splitter.push(chunk);
            chunk = &chunk[taken..];
            loop {
                match splitter.poll() {
                    Ok(Some(frame)) => frames.push(described(&frame)),
                    Ok(None) => break,
                    Err(error) => return (frames, Some(error)),
                }
            }
        }
    }
    (frames, None)
}

fn described(frame: &Frame<'_>) -> (Result<MessageType, DecodeError>, Vec<String>) {
    let messages = vec![
        format!("{:?}", frame.decode::<HeartMessage>()),
        format!("{:?}", frame.decode::<ReplicaRequest>()),
        format!("{:?}", frame.decode::<Envelope>()),
        format!("{:?}", frame.decode::<Record>()),
        format!("{:?}", frame.decode::<Entry>()),
    ];
    (frame.kind(), messages)
}
