//! The frame around every message on a wire and every value on a disk.
//!
//! Owns: the header, the limit of each message type, the rule for change, and the one door through
//! which bytes become values ([`decode_frame`]). Never reads a socket or a file, and never trusts a
//! byte: no input panics, a claimed length allocates nothing before its bytes are there, nesting is
//! bounded before anything is decoded, and a decoded value already holds its limits
//! ([`Message::check`]), so that nothing inside asks again.
//!
//! # The header
//!
//! Twelve bytes, big-endian, for good: every later version keeps this table, so that an old reader
//! can step over a new frame.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 2 | magic, `F5 55`; `F5` occurs in no UTF-8 text, so a stray HTTP client fails at once |
//! | 2 | 1 | [`MessageType`] |
//! | 3 | 1 | version of that type's payload; every type is at 1 |
//! | 4 | 4 | length of the payload |
//! | 8 | 4 | CRC-32C over bytes 0 to 7 and the payload |
//! | 12 | length | the payload: one CBOR item (RFC 8949) of definite lengths, without tags |
//!
//! # The rule for change
//!
//! A frame is written by one version of Understudy and read by another, on the wire during a rolling
//! upgrade and on a disk years later. The version counts for each type alone, so that a new kind of
//! directory command does not silence the hearts of old nodes.
//!
//! - **A field may be added** to a tolerant type (heart, replica, envelope, reply) with the next
//!   number, as an `Option` whose absence means the old behaviour. An old reader skips it. An absent
//!   `None` at the end leaves the bytes as they were.
//! - **A variant may be added** to a tolerant type. An old reader refuses that message with
//!   [`DecodeError::UnknownVariant`], counts it and drops it; the connection lives. Add no `Option`
//!   of a struct that holds an enum: at an unknown variant inside an `Option` minicbor goes on
//!   behind the variant, in the middle of the struct. An `Option` of the enum itself is safe and
//!   reads as `None`.
//! - **Anything else raises the type's version:** another meaning, a field gone or retyped. A reader
//!   refuses with [`DecodeError::NewerVersion`] and steps over the frame. A writer sends the lowest
//!   version that says what it means.
//! - **Records, directory commands and directory snapshots are exact:** a reader that skipped a part
//!   of one would diverge from its peers for ever, so nothing unknown is skipped. What is read must
//!   be byte for byte what this version would write ([`DecodeError::NotExact`]), also where a record
//!   travels inside a replica message, and every change at all raises the version. Members of an
//!   older version refuse it; so a cluster writes the new version only once all of them read it.
//! - **Numbers are never used again**: not of a field, a variant, or a type.
//!
//! `protocol/corpus/v1` keeps one frame of everything ever written, `protocol/corpus/future` what
//! later versions may send.

use alloc::vec::Vec;

use minicbor::decode::{Decoder, Error as CborError};
use minicbor::{Decode, Encode};

use super::record::{BODY_BYTES_MAX, Record};
use super::replica::CHAIN_RECORDS_MAX;

mod check;
mod shape;
mod splitter;

pub(crate) use check::{holds, scope_holds};
pub(crate) use shape::exact;
pub use splitter::FrameSplitter;

/// What a payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MessageType {
    /// [`HeartMessage`](super::heart::HeartMessage), one a datagram.
    Heart = 1,
    /// [`ReplicaRequest`](super::replica::ReplicaRequest).
    ReplicaRequest = 2,
    /// [`ReplicaAnswer`](super::replica::ReplicaAnswer).
    ReplicaAnswer = 3,
    /// [`Envelope`](super::envelope::Envelope).
    Envelope = 4,
    /// [`Reply`](super::envelope::Reply).
    Reply = 5,
    /// [`Record`], as a store keeps it.
    Record = 6,
    /// What Raft's log holds: one entry of the directory.
    DirectoryCommand = 7,
    /// The whole directory at one place of Raft's log.
    DirectorySnapshot = 8,
    /// [`Confirmed`](super::envelope::Confirmed).
    Confirmed = 9,
}

impl MessageType {
    /// Every type, in order.
    pub const ALL: [MessageType; 9] = [
        MessageType::Heart,
        MessageType::ReplicaRequest,
        MessageType::ReplicaAnswer,
        MessageType::Envelope,
        MessageType::Reply,
        MessageType::Record,
        MessageType::DirectoryCommand,
        MessageType::DirectorySnapshot,
        MessageType::Confirmed,
    ];

    /// The type with this number in the header.
    pub fn from_number(number: u8) -> Option<MessageType> {
        MessageType::ALL
            .into_iter()
            .find(|kind| kind.number() == number)
    }

    /// The type's number in the header.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The version of the type's payload that is written here, and the newest that is read.
    pub const fn version(self) -> u8 {
        1
    }

    /// Whether nothing unknown is skipped: see the rule for change.
    pub const fn is_exact(self) -> bool {
        matches!(
            self,
            MessageType::Record | MessageType::DirectoryCommand | MessageType::DirectorySnapshot
        )
    }

    /// The longest frame of the type in bytes, its header included.
    pub const fn frame_bytes_max(self) -> usize {
        match self {
            MessageType::Heart => HEART_FRAME_BYTES_MAX,
            MessageType::ReplicaRequest | MessageType::ReplicaAnswer => REPLICA_FRAME_BYTES_MAX,
            MessageType::Envelope | MessageType::Reply | MessageType::Confirmed => {
                CALL_FRAME_BYTES_MAX
            }
            MessageType::Record => RECORD_FRAME_BYTES_MAX,
            MessageType::DirectoryCommand => DIRECTORY_COMMAND_FRAME_BYTES_MAX,
            MessageType::DirectorySnapshot => DIRECTORY_SNAPSHOT_FRAME_BYTES_MAX,
        }
    }
}

/// A value that travels in a frame of its own.
pub trait Message: Encode<()> + for<'b> Decode<'b, ()> {
    /// Which type of frame.
    const TYPE: MessageType;

    /// Whether the value holds what its type promises beyond its shape: limits, orders, chains.
    /// Every decoder here runs it, so a decoded message needs no second look. Says what is broken.
    fn check(&self) -> Result<(), &'static str>;

    /// About how many bytes its payload takes, so that the buffer need not grow on the way. Too little
    /// costs a copy, too much some memory for a moment.
    fn room(&self) -> usize {
        FIELDS_ROOM
    }
}

/// Why a message was not framed. The buffer is as it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The message breaks [`Message::check`], and its type is exact: every reader would refuse it,
    /// and from a log or a store nobody could take it back.
    #[error("invalid: {0}")]
    Invalid(&'static str),
    /// The frame would be longer than its type allows: every reader would refuse it. Split the
    /// message (see [`records_that_fit`]) or tell its author that it is too large.
    #[error("a {kind:?} frame of {length} bytes is above its limit of {limit}")]
    TooLong {
        /// The message's type.
        kind: MessageType,
        /// The frame's length in bytes.
        length: usize,
        /// [`MessageType::frame_bytes_max`].
        limit: usize,
    },
}

/// Why bytes are no message. Only [`DecodeError::ends_stream`] errors leave a reader not knowing
/// where the next frame begins; after any other the frame's checksum fits, and the reader drops
/// this one frame, counts it, and goes on. A datagram is simply dropped; a value on a disk is
/// damaged, except for [`DecodeError::NewerVersion`], where the disk is fine and this program old.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DecodeError {
    /// The frame goes on after these bytes. On a stream: read on. Elsewhere it was cut short.
    #[error("{needed} or more bytes are missing")]
    Incomplete {
        /// At least so many more bytes are needed.
        needed: usize,
    },
    /// This is no frame. Close the stream.
    #[error("no frame begins here")]
    BadMagic,
    /// The header claims more than the type or the stream allows. Nothing was allocated for it.
    /// Close the stream.
    #[error("a frame of {length} bytes is above the limit of {limit}")]
    TooLong {
        /// What the header claims, itself included.
        length: u64,
        /// The most that is allowed.
        limit: usize,
    },
    /// Some byte is not the one that was sent, perhaps of the length. Close the stream.
    #[error("the checksum does not fit")]
    BadChecksum,
    /// A type that this version does not know. Skip the frame.
    #[error("unknown message type {seen}")]
    UnknownType {
        /// The number in the header.
        seen: u8,
    },
    /// Another type than the one asked for. Skip the frame; somebody mixes up two streams.
    #[error("a {seen:?} where a {expected:?} belongs")]
    WrongType {
        /// The frame's type.
        seen: MessageType,
        /// The type asked for.
        expected: MessageType,
    },
    /// Written by a later version than this reader knows. Skip the frame. In a log or a store, stop:
    /// going on without it would diverge.
    #[error("{kind:?} version {seen}; this program knows {known}")]
    NewerVersion {
        /// The frame's type.
        kind: MessageType,
        /// The version in the header.
        seen: u8,
        /// The newest that is known.
        known: u8,
    },
    /// A variant that this version does not know. Skip the frame.
    #[error("the message has a variant that this version does not know")]
    UnknownVariant,
    /// The payload is no CBOR item of the expected shape. Skip the frame: its checksum fits, so it
    /// was written like this.
    #[error("malformed payload: {0}")]
    Malformed(&'static str),
    /// Bytes follow the payload's item, or the frame where only one belongs. Skip the frame.
    #[error("bytes follow where the message should end")]
    TrailingBytes,
    /// A record or a directory entry holds something that this version would not have written. Skip
    /// the frame, and never apply a part of it.
    #[error("not byte for byte what this version writes")]
    NotExact,
    /// The value breaks a promise of its type. Skip the frame: its sender has a fault.
    #[error("invalid: {0}")]
    Invalid(&'static str),
}

impl DecodeError {
    /// Whether a stream cannot go on: where its next frame begins is unknown.
    /// ([`DecodeError::Incomplete`] does not end it: more bytes may come.)
    pub const fn ends_stream(&self) -> bool {
        matches!(
            self,
            DecodeError::BadMagic | DecodeError::TooLong { .. } | DecodeError::BadChecksum
        )
    }
}

/// Appends the frame of `message` to `out`.
///
/// # Panics
///
/// In debug builds, when a `message` of a tolerant type breaks its own [`Message::check`]: every
/// reader would refuse it. One of an exact type is refused in any build.
pub fn encode_frame<T: Message>(message: &T, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    if T::TYPE.is_exact() {
        message.check().map_err(EncodeError::Invalid)?;
    }
    debug_assert_eq!(message.check(), Ok(()), "no reader would take this");
    let start = out.len();
    out.reserve(HEADER_BYTES + message.room());
    out.extend_from_slice(&MAGIC);
    out.push(T::TYPE.number());
    out.push(T::TYPE.version());
    out.extend_from_slice(&[0; 8]);
    minicbor::encode(message, &mut *out)
        .expect("a vector takes every byte, and no message of ours refuses to be encoded");

    let length = out.len() - start;
    let limit = T::TYPE.frame_bytes_max();
    if length > limit {
        out.truncate(start);
        return Err(EncodeError::TooLong {
            kind: T::TYPE,
            length,
            limit,
        });
    }
    let frame = &mut out[start..];
    let payload_length = (length - HEADER_BYTES) as u32; // below its limit, so below 4 GiB
    frame[4..8].copy_from_slice(&payload_length.to_be_bytes());
    let checksum = checksum_of(&frame[..8], &frame[HEADER_BYTES..]);
    frame[8..12].copy_from_slice(&checksum.to_be_bytes());
    Ok(())
}

/// The message at the front of `bytes`, and the bytes after its frame.
pub fn decode_frame<T: Message>(bytes: &[u8]) -> Result<(T, &[u8]), DecodeError> {
    let (frame, rest) = Frame::split(bytes)?;
    Ok((frame.decode()?, rest))
}

/// The one message that `bytes` are: a datagram, or a value on a disk.
pub fn decode_whole<T: Message>(bytes: &[u8]) -> Result<T, DecodeError> {
    match decode_frame(bytes)? {
        (message, []) => Ok(message),
        _ => Err(DecodeError::TrailingBytes),
    }
}

/// The value that `bytes` are without a frame, such as a record's body whose record was framed. Exact
/// like a record: nothing unknown is skipped.
pub fn decode_exact<'b, T: Encode<()> + Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, DecodeError> {
    let value: T = decode_item(bytes)?;
    if !shape::is_exactly(&value, bytes) {
        return Err(DecodeError::NotExact);
    }
    Ok(value)
}

/// Decodes the first of several values that stand one after the other, as [`decode_exact`] does a
/// single one, and yields what follows it.
///
/// # Errors
///
/// As [`decode_exact`], but for what follows.
pub fn split_exact<'b, T: Encode<()> + Decode<'b, ()>>(
    bytes: &'b [u8],
) -> Result<(T, &'b [u8]), DecodeError> {
    let (first, rest) = bytes.split_at(shape::item_length(bytes)?);
    Ok((decode_exact(first)?, rest))
}

/// How many records from the front of `records` go into one append or one fetched page: at most
/// [`CHAIN_RECORDS_MAX`], and no more than [`RECORDS_BUDGET_BYTES`] by their [`record_bytes_max`].
/// At least one when there is one. The rest follow in the next message, chained to the last of
/// these; only the first of them begins from the base.
pub fn records_that_fit<'r>(records: impl IntoIterator<Item = &'r Record>) -> usize {
    let mut left = RECORDS_BUDGET_BYTES;
    records
        .into_iter()
        .take(CHAIN_RECORDS_MAX)
        .take_while(|record| {
            let fits = record_bytes_max(record) <= left;
            left = left.saturating_sub(record_bytes_max(record));
            fits
        })
        .count()
}

/// What `record` takes inside a message, in bytes, at most.
pub fn record_bytes_max(record: &Record) -> usize {
    record.body.len() + record.child.as_str().len() + RECORD_FIELDS_BYTES_MAX
}

/// A whole frame whose checksum fits. What it holds is not decoded yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'b> {
    kind: u8,
    version: u8,
    payload: &'b [u8],
}

impl<'b> Frame<'b> {
    /// The frame at the front of `bytes`, and the bytes after it.
    pub fn split(bytes: &'b [u8]) -> Result<(Frame<'b>, &'b [u8]), DecodeError> {
        Frame::split_within(bytes, usize::MAX)
    }

    /// The one frame that `bytes` are, whose checksum a reader has compared already: a lane hands over
    /// no other. Anything else about it is looked at as ever.
    pub fn checked_before(bytes: &'b [u8]) -> Result<Frame<'b>, DecodeError> {
        match Frame::parse(bytes, usize::MAX)? {
            (frame, _, []) => Ok(frame),
            _ => Err(DecodeError::TrailingBytes),
        }
    }

    /// The frame's type; an error where this version does not know it.
    pub fn kind(&self) -> Result<MessageType, DecodeError> {
        MessageType::from_number(self.kind).ok_or(DecodeError::UnknownType { seen: self.kind })
    }

    /// The message that the frame holds.
    pub fn decode<T: Message>(&self) -> Result<T, DecodeError> {
        let kind = self.kind()?;
        if kind != T::TYPE {
            return Err(DecodeError::WrongType {
                seen: kind,
                expected: T::TYPE,
            });
        }
        if self.version > kind.version() {
            return Err(DecodeError::NewerVersion {
                kind,
                seen: self.version,
                known: kind.version(),
            });
        }
        if self.version == 0 {
            return Err(DecodeError::Malformed("version 0 was never written"));
        }
        let message: T = if kind.is_exact() {
            decode_exact(self.payload)?
        } else {
            decode_item(self.payload)?
        };
        message.check().map_err(DecodeError::Invalid)?;
        Ok(message)
    }

    /// [`Frame::split`] for a stream that allows no frame above `limit` bytes.
    fn split_within(bytes: &'b [u8], limit: usize) -> Result<(Frame<'b>, &'b [u8]), DecodeError> {
        let (frame, checksum, rest) = Frame::parse(bytes, limit)?;
        if checksum_of(&bytes[..8], frame.payload) != checksum {
            return Err(DecodeError::BadChecksum);
        }
        Ok((frame, rest))
    }

    /// The frame at the front of `bytes`, the checksum that its header says, and the bytes after it.
    fn parse(bytes: &'b [u8], limit: usize) -> Result<(Frame<'b>, u32, &'b [u8]), DecodeError> {
        if !MAGIC.starts_with(&bytes[..bytes.len().min(MAGIC.len())]) {
            return Err(DecodeError::BadMagic);
        }
        let Some((header, after)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(DecodeError::Incomplete {
                needed: HEADER_BYTES - bytes.len(),
            });
        };
        let &[_, _, kind, version, l0, l1, l2, l3, c0, c1, c2, c3] = header;
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        let limit = limit.min(frame_bytes_max(kind, version));
        if length > limit.saturating_sub(HEADER_BYTES) {
            return Err(DecodeError::TooLong {
                length: length as u64 + HEADER_BYTES as u64,
                limit,
            });
        }
        let Some((payload, rest)) = after.split_at_checked(length) else {
            return Err(DecodeError::Incomplete {
                needed: length - after.len(),
            });
        };
        let frame = Frame {
            kind,
            version,
            payload,
        };
        Ok((frame, u32::from_be_bytes([c0, c1, c2, c3]), rest))
    }
}

/// The one CBOR item that `bytes` are. Its shape is looked at before anything of it is decoded.
fn decode_item<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, DecodeError> {
    if shape::item_length(bytes)? != bytes.len() {
        return Err(DecodeError::TrailingBytes);
    }
    let mut decoder = Decoder::new(bytes);
    let value = decoder.decode()?;
    if decoder.position() != bytes.len() {
        return Err(DecodeError::TrailingBytes);
    }
    Ok(value)
}

/// A later version may have raised its limit, so its frames need only keep to the largest of all.
fn frame_bytes_max(kind: u8, version: u8) -> usize {
    match MessageType::from_number(kind) {
        Some(kind) if version <= kind.version() => kind.frame_bytes_max(),
        _ => DIRECTORY_SNAPSHOT_FRAME_BYTES_MAX,
    }
}

fn checksum_of(header: &[u8], payload: &[u8]) -> u32 {
    let mut digest = super::CRC32C.digest();
    digest.update(header);
    digest.update(payload);
    digest.finalize()
}

impl From<CborError> for DecodeError {
    fn from(error: CborError) -> DecodeError {
        if error.is_unknown_variant() {
            DecodeError::UnknownVariant
        } else if error.is_custom() {
            DecodeError::NotExact // `shape::exact` alone raises custom errors
        } else if error.is_missing_value() {
            DecodeError::Malformed("a field is missing")
        } else if error.is_end_of_input() {
            DecodeError::Malformed("ends inside a value")
        } else if error.is_type_mismatch() {
            DecodeError::Malformed("a value is of another type")
        } else {
            DecodeError::Malformed("a value is out of its range")
        }
    }
}

/// Room for the fields of a message beside its bodies: ids, a key, a child's name of usual length.
pub(crate) const FIELDS_ROOM: usize = 160;

/// Begins every frame.
const MAGIC: [u8; 2] = [0xF5, 0x55];

/// Bytes before the payload. A tell of 64 bytes has a budget of about 16 bytes of frame.
pub const HEADER_BYTES: usize = 12;

/// A heart message is one datagram: QUIC promises no path more than 1,200 bytes (RFC 9000,
/// section 14), and a fragmented renewal is a lost one.
pub const HEART_FRAME_BYTES_MAX: usize = 1_200;

/// The longest body of a call or an answer. A lane hands over whole messages, so one of 1 MiB already
/// holds up the small ones behind it for 9 ms at 1 Gbit/s; anything longer is content, goes over a
/// bulk lane in pieces, and is named by its hash.
pub const CALL_BODY_BYTES_MAX: usize = 1024 * 1024;

/// A call's body, and room for its ids and keys.
pub const CALL_FRAME_BYTES_MAX: usize = CALL_BODY_BYTES_MAX + 1024;

/// A replica message holds up its lane like a call, and sixteen of the largest records in one flush
/// already cost the disk more than the flush. A page of the index takes about 57 KiB.
pub const REPLICA_FRAME_BYTES_MAX: usize = 1024 * 1024;

/// The part of a replica message that its records may take: see [`records_that_fit`].
pub const RECORDS_BUDGET_BYTES: usize = REPLICA_FRAME_BYTES_MAX - 1024;

/// A record without its body and its child's name: eight fields of at most nine bytes, a head, and
/// their lengths come to 78.
const RECORD_FIELDS_BYTES_MAX: usize = 96;

/// A body and room for the fields beside it.
pub const RECORD_FRAME_BYTES_MAX: usize = BODY_BYTES_MAX + 512;

/// One entry grants all units of a lost node again (rule T3): 50,000 of them at about 64 bytes.
pub const DIRECTORY_COMMAND_FRAME_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The whole directory, sent on a bulk lane of its own: half a million units at about 128 bytes.
pub const DIRECTORY_SNAPSHOT_FRAME_BYTES_MAX: usize = 64 * 1024 * 1024;

// One record always fits a replica message, and every limit the header's length.
const _: () = assert!(
    BODY_BYTES_MAX + crate::id::CHILD_ID_BYTES_MAX + RECORD_FIELDS_BYTES_MAX
        <= RECORDS_BUDGET_BYTES
);
const _: () = assert!(DIRECTORY_SNAPSHOT_FRAME_BYTES_MAX < u32::MAX as usize);
