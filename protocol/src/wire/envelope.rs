//! A call on its way to a child, and the answer on its way back.
//!
//! Owns: envelopes, idempotency keys and outcomes (rules E1, E2). Never routes.

use core::time::Duration;

use alloc::string::String;
use bytes::Bytes;
use minicbor::{Decode, Encode};

use crate::id::{ChildId, Epoch, IncarnationId, NodeId, Seq, UnitId};

/// The longest idempotency key of a client, in bytes: a UUID in any spelling, with room.
pub const KEY_BYTES_MAX: usize = 64;

/// Names one attempt of a call, so that its answer finds the one who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct CallId {
    /// The incarnation of the node whose gateway waits.
    #[n(0)]
    pub gateway: IncarnationId,
    /// Counts its calls.
    #[n(1)]
    pub number: u64,
}

/// What makes a retry the same call (rule E2).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum CallKey {
    /// Chosen by the client; kept for ten minutes.
    #[n(0)]
    Client(#[n(0)] String),
    /// Given by a gateway to a call without one; kept until that gateway confirms the answer or is
    /// expelled.
    #[n(1)]
    Internal {
        /// The gateway's incarnation.
        #[n(0)]
        gateway: IncarnationId,
        /// Counts its calls.
        #[n(1)]
        number: u64,
    },
}

/// A call on its way to a child.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Envelope {
    /// Which attempt.
    #[n(0)]
    pub call: CallId,
    /// To whom.
    #[n(1)]
    pub to: ChildId,
    /// What makes a retry the same call.
    #[n(2)]
    pub key: CallKey,
    /// SHA-256 of the request, first eight bytes: the same key with another body is a conflict.
    #[n(3)]
    pub request_hash: u64,
    /// How long the caller will still wait, in milliseconds from the sending.
    #[n(4)]
    pub patience_ms: u32,
    /// The request.
    #[cbor(n(5), with = "crate::wire::cbor_bytes")]
    pub body: Bytes,
}

impl Envelope {
    /// How long the caller will still wait, from the sending.
    pub fn patience(&self) -> Duration {
        Duration::from_millis(u64::from(self.patience_ms))
    }
}

/// An answer on its way back.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Reply {
    /// Which attempt it answers.
    #[n(0)]
    pub call: CallId,
    /// What became of it.
    #[n(1)]
    pub outcome: Outcome,
}

/// What became of a call.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Outcome {
    /// Done, once; every record that the answer reflects is acknowledged (rule E1).
    ///
    /// An answer that is not `durable` reflects something beside them that no record holds yet: the
    /// child's end takes it along, and then its call may be carried out again.
    #[n(0)]
    Answered {
        /// The answer.
        #[cbor(n(0), with = "crate::wire::cbor_bytes")]
        body: Bytes,
        /// The last record that it reflects: the logical sequence of its effects (rule E3).
        #[n(1)]
        reflects: Seq,
        /// All that it reflects is in records. It is, where this is absent.
        #[cbor(n(2), with = "crate::wire::unless_durable", has_nil)]
        durable: bool,
    },
    /// Not done: the unit is served elsewhere, or is on its way there. Safe to retry without a key.
    #[n(1)]
    NotOwner {
        /// Who the directory says owns the unit, as far as the answering node knows.
        #[n(0)]
        hint: Option<Route>,
    },
    /// Not done: a queue or a table is full.
    #[n(2)]
    Overloaded {
        /// When to try again, in milliseconds.
        #[n(0)]
        retry_after_ms: u32,
    },
    /// Not done: the key was used for another request.
    #[n(3)]
    Conflict,
    /// Not done, and a retry will not help yet: the unit is quarantined, or no complete replica of
    /// it answers (rule T2).
    #[n(4)]
    Unavailable,
    /// Nobody can say whether it was done: retry with the same key.
    #[n(5)]
    Unknown,
    /// Not done, and no retry will help: the step and its answer do not fit a record.
    #[n(6)]
    TooLarge,
}

/// A gateway has the answers of all its calls up to one: what was remembered for them under internal
/// keys may be forgotten (rule E2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Confirmed {
    /// Whose calls.
    #[n(0)]
    pub gateway: IncarnationId,
    /// The last of them, this one included.
    #[n(1)]
    pub upto: u64,
}

/// Where a unit is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Route {
    /// Which unit.
    #[n(0)]
    pub unit: UnitId,
    /// At which epoch.
    #[n(1)]
    pub epoch: Epoch,
    /// By which node.
    #[n(2)]
    pub node: NodeId,
}
