//! What a record's body holds: the child's own bytes, and what was answered to whom (rule E2).
//!
//! Owns: the shape of a body. Never knows what the child's bytes mean.
//!
//! The key, the request's hash and the answer are in the same record as the effect, so there is no
//! moment at which one is kept and the other lost. Bytes that are long stand here by the names of their
//! pieces ([`super::content`]); [`named_by`] says which those are. The remembered calls of a base that
//! are too many for a record stand in pieces too ([`super::older`]).

use alloc::vec::Vec;

use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::{Decode, Encode};

use super::codec::{self, decode_exact};
use super::content::{Content, Pieces};
use super::envelope::{CallKey, KEY_BYTES_MAX};
use super::older::Older;
use super::record::{Record, RecordKind};
use crate::id::Seq;

/// The body of a delta.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Step {
    /// The call that brought it about; none for a step that the child took by itself.
    #[n(0)]
    pub call: Option<Remembered>,
    /// The child's bytes.
    #[n(1)]
    pub effect: Content,
    /// Calls that were answered before their effects were in any record: this one is the first that
    /// holds them. At most [`INLINE_CALLS_MAX`].
    #[cbor(n(2), with = "earlier", has_nil)]
    pub earlier: Vec<Remembered>,
}

/// The body of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Base {
    /// The calls that are remembered, or the last of them; at most [`INLINE_CALLS_MAX`].
    #[cbor(n(0), decode_with = "decode_calls")]
    pub calls: Vec<Remembered>,
    /// The child's bytes.
    #[n(1)]
    pub state: Content,
    /// The calls before those, where they are too many for a record.
    #[n(2)]
    pub older: Option<Older>,
}

/// A call whose answer is kept for those who ask again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Remembered {
    /// What makes a retry the same call.
    #[cbor(n(0), decode_with = "decode_key")]
    pub key: CallKey,
    /// The same key with another body is a conflict.
    #[n(1)]
    pub request_hash: u64,
    /// What was answered.
    #[n(2)]
    pub answer: Content,
    /// The record of the effect; none in the body of that record itself.
    #[n(3)]
    pub seq: Option<Seq>,
}

/// Remembered calls that a body holds itself. With small answers a snapshot with so many stays within
/// a record's 64 KiB.
pub const INLINE_CALLS_MAX: usize = 512;

impl Remembered {
    /// What it takes in a record, in bytes, at most.
    pub fn room(&self) -> usize {
        let key = match &self.key {
            CallKey::Client(key) => key.len(),
            CallKey::Internal { .. } => 0,
        };
        key + self.answer.room() + FIELDS_BYTES_MAX
    }
}

impl Step {
    /// The version that the record of this body says.
    pub fn schema(&self) -> u16 {
        let calls = self.call.iter().chain(&self.earlier);
        schema_of(calls.map(|call| &call.answer).chain([&self.effect]))
    }
}

impl Base {
    /// The version that the record of this body says.
    pub fn schema(&self) -> u16 {
        if self.older.is_some() {
            return SCHEMA_OLDER;
        }
        let answers = self.calls.iter().map(|call| &call.answer);
        schema_of(answers.chain([&self.state]))
    }
}

/// Whose pieces a store must have before it may say that it has this record.
///
/// # Errors
///
/// When the record says that it names pieces and its body cannot be read.
pub fn named_by(record: &Record) -> Result<Vec<Pieces>, codec::DecodeError> {
    if !matches!(record.schema, SCHEMA_PIECES | SCHEMA_OLDER) {
        return Ok(Vec::new());
    }
    let mut older = None;
    let contents: Vec<Content> = match record.kind {
        RecordKind::Delta => {
            let step: Step = decode_exact(&record.body)?;
            let calls = step.call.into_iter().chain(step.earlier);
            calls.map(|call| call.answer).chain([step.effect]).collect()
        }
        RecordKind::Snapshot => {
            let base: Base = decode_exact(&record.body)?;
            older = base.older;
            let answers = base.calls.into_iter().map(|call| call.answer);
            answers.chain([base.state]).collect()
        }
    };
    let pieces = contents.into_iter().filter_map(|content| match content {
        Content::Pieces(pieces) => Some(pieces),
        Content::Inline(_) => None,
    });
    let older = older.into_iter().flat_map(Older::into_named);
    Ok(pieces.chain(older).collect())
}

fn schema_of<'c>(mut contents: impl Iterator<Item = &'c Content>) -> u16 {
    match contents.any(|content| content.pieces().is_some()) {
        true => SCHEMA_PIECES,
        false => SCHEMA_INLINE,
    }
}

/// The fields of one remembered call beside its key and its answer, in bytes, at most.
pub(crate) const FIELDS_BYTES_MAX: usize = 39;

/// Everything stands in the body itself: what every record was before there were pieces.
pub const SCHEMA_INLINE: u16 = 1;

/// Something in the body stands there by the names of its pieces.
pub const SCHEMA_PIECES: u16 = 2;

/// So do remembered calls, in a base.
pub const SCHEMA_OLDER: u16 = 3;

/// A list that is left out where there is nothing in it: as every step was before there were any.
mod earlier {
    use super::{DecodeError, Decoder, Encode, Remembered, Vec, decode_calls};
    use minicbor::encode::{Encoder, Error as EncodeError, Write};

    pub(super) fn encode<C, W: Write>(
        calls: &[Remembered],
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        calls.encode(e, ctx)
    }

    pub(super) fn decode<C>(
        d: &mut Decoder<'_>,
        ctx: &mut C,
    ) -> Result<Vec<Remembered>, DecodeError> {
        decode_calls(d, ctx)
    }

    pub(super) fn is_nil(calls: &[Remembered]) -> bool {
        calls.is_empty()
    }

    pub(super) fn nil() -> Option<Vec<Remembered>> {
        Some(Vec::new())
    }
}

fn decode_calls<C>(d: &mut Decoder<'_>, ctx: &mut C) -> Result<Vec<Remembered>, DecodeError> {
    let calls: Vec<Remembered> = d.decode_with(ctx)?;
    if calls.len() > INLINE_CALLS_MAX {
        return Err(DecodeError::message("a body holds at most 512 calls"));
    }
    Ok(calls)
}

fn decode_key<C>(d: &mut Decoder<'_>, ctx: &mut C) -> Result<CallKey, DecodeError> {
    match d.decode_with(ctx)? {
        CallKey::Client(key) if key.len() > KEY_BYTES_MAX => {
            Err(DecodeError::message("a key has at most 64 bytes"))
        }
        key => Ok(key),
    }
}
