//! What a unit's owner and the stores that hold its records say to each other (rules R1-R8, T1).
//!
//! Owns: the requests and answers of replication. Never carries calls of users.
//!
//! Any of these may be lost, repeated, late or out of order; each is idempotent, and each answer
//! names the epoch of the request it answers.

use alloc::vec::Vec;

use minicbor::{Decode, Encode};

use super::record::{Head, Record};
use crate::id::{ChildId, ConfigVersion, Epoch, IncarnationId, Seq, SlotRange, StoreId, UnitId};

/// Children in one page of a sealed index: with ids of the greatest length it fits 64 KiB.
pub const INDEX_PAGE: usize = 256;

/// Records in one append or one fetched page, and in a child's chain above its base. A child writes
/// a snapshot before its chain grows past this, so a replica can always be sent the whole chain.
pub const CHAIN_RECORDS_MAX: usize = 128;

/// Excepted children named by one shard (rule S1): more means that the shard should be split.
pub const EXCEPTIONS_MAX: usize = 64;

/// Which children's records a unit owns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Scope {
    /// A shard: every child that hashes into the range, but for the excepted ones.
    #[n(0)]
    Slots {
        /// The shard's slots.
        #[n(0)]
        range: SlotRange,
        /// Children with a unit of their own, in order; at most [`EXCEPTIONS_MAX`].
        #[n(1)]
        except: Vec<ChildId>,
    },
    /// A dedicated unit: this child.
    #[n(1)]
    Child(#[n(0)] ChildId),
}

impl Scope {
    /// Whether the unit owns this child's records.
    pub fn holds(&self, child: &ChildId) -> bool {
        match self {
            Scope::Slots { range, except } => {
                !child.is_dedicated()
                    && range.contains(child.slot())
                    && except.binary_search(child).is_err()
            }
            Scope::Child(only) => only == child,
        }
    }
}

/// From a unit's owner to a store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct ReplicaRequest {
    /// Which unit.
    #[n(0)]
    pub unit: UnitId,
    /// The owner's epoch.
    #[n(1)]
    pub epoch: Epoch,
    /// The replica set's version as the owner has it applied.
    #[n(2)]
    pub config: ConfigVersion,
    /// Which start of the store's node the request is for; none while the owner does not know it
    /// yet, which only a seal may do. A request that was under way while the store was opened anew
    /// is refused: it may say what the owner no longer means.
    #[n(3)]
    pub session: Option<IncarnationId>,
    /// What is asked.
    #[n(4)]
    pub ask: Ask,
}

/// What an owner asks of a store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Ask {
    /// Promise to refuse every lower epoch in the scope, and list the children's heads (T1).
    #[n(0)]
    Seal {
        /// What to seal.
        #[n(0)]
        scope: Scope,
        /// List the children after this one; `None` from the first.
        #[n(1)]
        after: Option<ChildId>,
    },
    /// Make the child's chain agree with the owner's, and flush it (R1).
    #[n(1)]
    Append(#[n(0)] Append),
    /// Send the child's records from its base on, beginning after `after`.
    #[n(2)]
    Fetch {
        /// Whose.
        #[n(0)]
        child: ChildId,
        /// The last record that the owner has; [`Seq::ZERO`] for all.
        #[n(1)]
        after: Seq,
    },
    /// The owner has found every chain in the scope in agreement with its own: a log that was cut
    /// at start is whole again (R8).
    #[n(3)]
    Confirm {
        /// What agrees.
        #[n(0)]
        scope: Scope,
    },
}

/// Records for one child.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Append {
    /// Whose.
    #[n(0)]
    pub child: ChildId,
    /// The record that the first of `records` follows, or the owner's tail when there are none.
    #[n(1)]
    pub prev: Head,
    /// `records` begins with the owner's base: whatever the replica has before it does not matter.
    #[n(2)]
    pub from_base: bool,
    /// In order; at most [`CHAIN_RECORDS_MAX`].
    #[cbor(n(3), with = "crate::wire::codec::exact")]
    pub records: Vec<Record>,
    /// The owner's tail when it took over. A record beyond it from a lower epoch is an
    /// unacknowledged tail that disagrees, and is truncated (R1).
    #[n(4)]
    pub adopted: Seq,
    /// The replica may drop records before this one: a later snapshot is acknowledged.
    #[n(5)]
    pub keep_from: Seq,
}

/// From a store to a unit's owner.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct ReplicaAnswer {
    /// Which store answers.
    #[n(0)]
    pub store: StoreId,
    /// Which unit's request.
    #[n(1)]
    pub unit: UnitId,
    /// The epoch of the request.
    #[n(2)]
    pub epoch: Epoch,
    /// Which start of the store's node answers.
    #[n(3)]
    pub session: IncarnationId,
    /// The answer.
    #[n(4)]
    pub said: Said,
}

/// What a store answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Said {
    /// The promise is flushed; here is a page of the index.
    #[n(0)]
    Sealed {
        /// The request's `after`.
        #[n(0)]
        after: Option<ChildId>,
        /// Children and the heads their chains end in, in order; at most [`INDEX_PAGE`].
        #[n(1)]
        page: Vec<Indexed>,
        /// There are children after the last of the page.
        #[n(2)]
        more: bool,
        /// A log in the scope was cut when the store was opened, and nobody has confirmed it since:
        /// what is missing may have been torn, or acknowledged and damaged (R8).
        #[n(3)]
        cut: bool,
    },
    /// The chain is flushed and agrees with the owner's up to this head.
    #[n(1)]
    Appended {
        /// Whose.
        #[n(0)]
        child: ChildId,
        /// The last record of the request, or its `prev` when it had none.
        #[n(1)]
        upto: Head,
    },
    /// The chain does not reach the request's `prev`, or is damaged: send from the base.
    #[n(2)]
    Mismatch {
        /// Whose.
        #[n(0)]
        child: ChildId,
        /// Where the replica's own chain ends.
        #[n(1)]
        tail: Head,
    },
    /// A page of a child's records.
    #[n(3)]
    Fetched {
        /// Whose.
        #[n(0)]
        child: ChildId,
        /// The request's `after`.
        #[n(1)]
        after: Seq,
        /// In order; at most [`CHAIN_RECORDS_MAX`].
        #[cbor(n(2), with = "crate::wire::codec::exact")]
        records: Vec<Record>,
    },
    /// A higher epoch was promised: another owner has been granted the unit (R1).
    #[n(4)]
    Promised(#[n(0)] Epoch),
    /// This start of the store has not been sealed at this epoch; seal first.
    #[n(5)]
    Unsealed,
    /// The store found a damaged record of this child and holds its chain no longer (scrub).
    #[n(6)]
    Damaged {
        /// Whose.
        #[n(0)]
        child: ChildId,
    },
    /// The scope is confirmed.
    #[n(7)]
    Confirmed,
    /// It has got some of what records of this child name and fetches the rest: the records are not
    /// there yet, and the store is not silent.
    #[n(8)]
    Fetching {
        /// Whose.
        #[n(0)]
        child: ChildId,
    },
}

/// One child in a sealed index.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Indexed {
    /// Which.
    #[n(0)]
    pub child: ChildId,
    /// Where its chain ends.
    #[n(1)]
    pub tail: Head,
    /// A damaged record cost the replica part of this chain; it is not complete (R3).
    #[n(2)]
    pub damaged: bool,
}
