//! What a record's body holds: the child's own bytes, and what was answered to whom (rule E2).
//!
//! Owns: the shape of a body. Never knows what the child's bytes mean.
//!
//! The key, the request's hash and the answer are in the same record as the effect, so there is no
//! moment at which one is kept and the other lost.

use alloc::vec::Vec;

use bytes::Bytes;
use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::{Decode, Encode};

use super::envelope::{CallKey, KEY_BYTES_MAX};
use crate::id::Seq;

/// The body of a delta.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Step {
    /// The call that brought it about; none for a step that the child took by itself.
    #[n(0)]
    pub call: Option<Remembered>,
    /// The child's bytes.
    #[cbor(n(1), with = "crate::wire::cbor_bytes")]
    pub effect: Bytes,
}

/// The body of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Base {
    /// Every call that is remembered; at most [`CALLS_MAX`].
    #[cbor(n(0), decode_with = "decode_calls")]
    pub calls: Vec<Remembered>,
    /// The child's bytes.
    #[cbor(n(1), with = "crate::wire::cbor_bytes")]
    pub state: Bytes,
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
    #[cbor(n(2), with = "crate::wire::cbor_bytes")]
    pub answer: Bytes,
    /// The record of the effect; none in the body of that record itself.
    #[n(3)]
    pub seq: Option<Seq>,
}

/// Calls that one child remembers. With small answers a snapshot that holds them all stays within a
/// record's 64 KiB.
pub const CALLS_MAX: usize = 512;

fn decode_calls<C>(d: &mut Decoder<'_>, ctx: &mut C) -> Result<Vec<Remembered>, DecodeError> {
    let calls: Vec<Remembered> = d.decode_with(ctx)?;
    if calls.len() > CALLS_MAX {
        return Err(DecodeError::message("a child remembers at most 512 calls"));
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
