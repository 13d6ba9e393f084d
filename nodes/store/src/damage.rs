//! What can be wrong with a store, in words that say where.
//!
//! Owns: the list that `store fsck` prints, and the line between damage that is one child's and
//! damage that makes the whole store useless.

use std::fmt;

use understudy_protocol::id::{ChildId, Seq};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A record is damaged or gone, and the child's chain ends before it. The store goes on and says
    /// so to the child's owner (rule R3).
    Record {
        /// Whose.
        child: ChildId,
        /// The first record that is lost.
        at: Seq,
    },
    /// The last commits are gone although they were flushed, or some keys are. No promise was among
    /// them. The store goes on and counts in a takeover only beside a whole one (rule R8).
    Cut {
        /// What was noticed.
        noticed: String,
    },
    /// A chunk's content is not what its name says. Reading it fails; the store goes on.
    Chunk {
        /// Its name, the SHA-256 in hexadecimal digits.
        name: String,
    },
    /// Records name this chunk and it is not there. The store fetches it from another; until then its
    /// children are started from what others have.
    NoChunk {
        /// Its name, the SHA-256 in hexadecimal digits.
        name: String,
    },
    /// A promise, a vote or a mark is damaged or gone. The store may have promised more than it
    /// remembers, so it must not be used under its id again.
    Memory {
        /// Where: `records`, `raft` or the file's name.
        place: &'static str,
        /// What was noticed.
        noticed: String,
    },
    /// A database or a file does not open or cannot be read to its end.
    Unreadable {
        /// Where: `records`, `raft` or the file's name.
        place: &'static str,
        /// What was noticed.
        noticed: String,
    },
}

impl Damage {
    /// Whether the store must not be used under its id again.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Damage::Memory { .. } | Damage::Unreadable { .. })
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::Record { child, at } => write!(f, "{child}: the record {at} is lost"),
            Damage::Cut { noticed } => write!(f, "the last writes are lost: {noticed}"),
            Damage::Chunk { name } => write!(f, "chunk {name} is damaged"),
            Damage::NoChunk { name } => write!(f, "chunk {name} is missing"),
            Damage::Memory { place, noticed } => {
                write!(f, "{place}: what was promised is lost: {noticed}")
            }
            Damage::Unreadable { place, noticed } => write!(f, "{place} is unreadable: {noticed}"),
        }
    }
}
