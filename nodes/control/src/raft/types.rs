//! What openraft is told our log holds, and how its log ids become ours.
//!
//! Owns: the mapping. openraft's first entry, the first membership, has index 0; the directory counts
//! from 1. So everywhere outside this folder **index = openraft's index + 1**; inside it, only
//! openraft's is stored and sent. A term has one leader at most (the feature `single-term-leader`), so
//! that term and index name one entry for good: reports on expulsions count by that name (rule L5).

use std::fmt;
use std::io::Cursor;
use std::sync::Arc;

use bytes::Bytes;
use openraft::EntryPayload;
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use understudy_protocol::cluster::directory::Entry;
use understudy_protocol::cluster::lease::voter::Fact;
use understudy_protocol::id::{COUNTER_MAX, LogId, LogIndex, Term};
use understudy_protocol::wire::codec::{self, EncodeError};

openraft::declare_raft_types!(
    pub(super) Types:
        D = Stored,
        R = (),
        NodeId = u64,
        Node = openraft::EmptyNode,
        Entry = openraft::Entry<Types>,
        SnapshotData = Cursor<Vec<u8>>,
);

pub(super) type Raft = openraft::Raft<Types>;
pub(super) type RaftLogId = openraft::LogId<u64>;
pub(super) type RaftEntry = openraft::Entry<Types>;
pub(super) type Vote = openraft::Vote<u64>;
pub(super) type Meta = openraft::SnapshotMeta<u64, openraft::EmptyNode>;
pub(super) type Membership = openraft::StoredMembership<u64, openraft::EmptyNode>;
pub(super) type StorageError = openraft::StorageError<u64>;
pub(super) type IoError = openraft::StorageIOError<u64>;

/// An entry of the directory beside the frame that says the same: in a log and on the wire it is its
/// frame, so that the codec's checks hold for what a peer sends and for what a disk gives back.
#[derive(Clone)]
pub(super) struct Stored {
    pub(super) entry: Arc<Entry>,
    frame: Bytes,
}

impl Stored {
    /// Refuses what no member could read: it must not come into a log.
    pub(super) fn new(entry: Entry) -> Result<Stored, EncodeError> {
        let mut frame = Vec::new();
        codec::encode_frame(&entry, &mut frame)?;
        Ok(Stored {
            entry: Arc::new(entry),
            frame: frame.into(),
        })
    }
}

impl Serialize for Stored {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.frame)
    }
}

impl<'de> Deserialize<'de> for Stored {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Stored, D::Error> {
        struct Frame;

        impl Visitor<'_> for Frame {
            type Value = Stored;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the frame of a directory entry")
            }

            fn visit_bytes<E: serde::de::Error>(self, frame: &[u8]) -> Result<Stored, E> {
                let entry = codec::decode_whole(frame).map_err(E::custom)?;
                Ok(Stored {
                    entry: Arc::new(entry),
                    frame: Bytes::copy_from_slice(frame),
                })
            }
        }

        deserializer
            .deserialize_bytes(Frame)
            .map_err(D::Error::custom)
    }
}

/// The name by which the rest of the node knows an entry.
pub(super) fn id_of(id: &RaftLogId) -> LogId {
    LogId {
        term: Term(id.leader_id.term),
        index: index_of(id.index),
    }
}

pub(super) fn index_of(index: u64) -> LogIndex {
    LogIndex(index + 1)
}

/// Whether a peer's id is one that counting could have reached: nothing behind it overflows.
pub(super) fn is_sane(id: &RaftLogId) -> bool {
    id.index < COUNTER_MAX && id.leader_id.term < COUNTER_MAX
}

/// What a lease voter must know of an entry.
pub(super) fn fact_of(entry: &RaftEntry) -> Option<(LogId, Fact)> {
    let EntryPayload::Normal(stored) = &entry.payload else {
        return None;
    };
    let fact = stored.entry.fact()?;
    Some((id_of(&entry.log_id), fact))
}
