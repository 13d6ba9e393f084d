//! A node's last starts that are over.
//!
//! Owns: how many are remembered. Never says when one is over: promises do.

use alloc::vec::Vec;

use minicbor::{Decode, Encode};

use crate::id::IncarnationId;

/// The last starts of one node that are over, oldest first, at most [`ENDED_MAX`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct Ended(#[n(0)] Vec<IncarnationId>);

impl Ended {
    /// Remembers one more; the oldest is forgotten where it is one too many.
    pub fn remember(&mut self, incarnation: IncarnationId) {
        if self.contains(incarnation) {
            return;
        }
        if self.0.len() >= ENDED_MAX {
            self.0.remove(0);
        }
        self.0.push(incarnation);
    }

    /// Whether the start is one of them.
    pub fn contains(&self, incarnation: IncarnationId) -> bool {
        self.0.contains(&incarnation)
    }

    /// All of them, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = IncarnationId> {
        self.0.iter().copied()
    }
}

/// Ended starts remembered of a node. A node repeats its registration only until it is listed, and each
/// further start takes at least a new process and the end of the promises before it: a message or a
/// proposal that outlives sixteen of them has outlived every connection that could carry it.
pub const ENDED_MAX: usize = 16;
