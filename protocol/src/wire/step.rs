//! What a record's body holds: the child's own bytes, and what was answered to whom (rule E2).
//!
//! Owns: the shape of a body. Never knows what the child's bytes mean.
//!
//! The key, the request's hash and the answer are in the same record as the effect, so there is no
//! moment at which one is kept and the other lost.

use alloc::vec::Vec;

use bytes::Bytes;
use minicbor::{Decode, Encode};

use super::envelope::CallKey;
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
    /// Every call that is remembered.
    #[n(0)]
    pub calls: Vec<Remembered>,
    /// The child's bytes.
    #[cbor(n(1), with = "crate::wire::cbor_bytes")]
    pub state: Bytes,
}

/// A call whose answer is kept for those who ask again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Remembered {
    /// What makes a retry the same call.
    #[n(0)]
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
