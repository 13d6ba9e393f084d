//! What must hold for any bytes at all, as functions: the fuzz targets run them on what a fuzzer
//! finds, `tests/replay.rs` on kept inputs and seeded mutations, without nightly.
//!
//! Each takes bytes and panics where a property fails. The first: nothing panics by itself.

use std::fmt::Debug;

use understudy_protocol::wire::checksum;
use understudy_protocol::wire::codec::{
    DecodeError, Frame, FrameSplitter, Message, MessageType, decode_frame, decode_whole,
    encode_frame,
};
use understudy_protocol::wire::envelope::{Envelope, Reply};
use understudy_protocol::wire::heart::HeartMessage;
use understudy_protocol::wire::record::Record;
use understudy_protocol::wire::replica::{ReplicaAnswer, ReplicaRequest};

/// A property, by the name of its fuzz target.
pub type Property = (&'static str, fn(&[u8]));

/// Every target. Those named after a message take the payload of a frame, so that a fuzzer need
/// not guess a checksum; `frame` and `stream` take raw bytes.
pub const TARGETS: [Property; 8] = [
    ("heart", payload::<HeartMessage>),
    ("replica_request", payload::<ReplicaRequest>),
    ("replica_answer", payload::<ReplicaAnswer>),
    ("envelope", payload::<Envelope>),
    ("reply", payload::<Reply>),
    ("record", payload::<Record>),
    ("frame", frame),
    ("stream", stream),
];

/// The bytes as the payload of a frame whose checksum fits.
pub fn payload<T: Message + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(message) = decode_whole::<T>(&framed(T::TYPE.number(), T::TYPE.version(), bytes)) {
        comes_back(&message, bytes);
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
    ];
    (frame.kind(), messages)
}
