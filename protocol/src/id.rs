//! Typed ids, counters and slots.
//!
//! Owns: the newtypes that keep a node from being passed where a store is meant, and the format
//! constants of slots (rule S1). Never makes an id: random ones are drawn by the shells, counters
//! advance in the directory.

use alloc::sync::Arc;
use core::fmt;

use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::encode::{Encoder, Error as EncodeError, Write};
use minicbor::{Decode, Encode};

/// Slots that light children hash to (rule S1). A format constant: changing it orphans every record.
pub const SLOTS: u16 = 16_384;

/// The longest child id in bytes: three names and two slashes. Long enough for a UUID-based key
/// beside a tenant's name, short enough that an index of 256 children fits one 64 KiB message.
pub const CHILD_ID_BYTES_MAX: usize = 192;

/// The highest count that is read. A billion steps a second take three centuries to reach it, and as
/// many again lie between it and the end of the numbers: so no stored byte makes `next` overflow.
pub const COUNTER_MAX: u64 = 1 << 63;

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
        #[cbor(transparent)]
        pub struct $name(#[n(0)] pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{:x}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode)]
        #[cbor(transparent)]
        pub struct $name(#[n(0)] pub u64);

        impl $name {
            /// Before the first.
            pub const ZERO: $name = $name(0);

            /// The one after this one.
            #[must_use]
            pub const fn next(self) -> $name {
                $name(self.0 + 1)
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
                match d.u64()? {
                    count @ 0..=COUNTER_MAX => Ok($name(count)),
                    _ => Err(DecodeError::message("a count that nothing could have reached")),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

random_id!(
    /// A configured member of the cluster. It outlives its processes.
    NodeId,
    "node-"
);
random_id!(
    /// One start of a node's process, drawn at random; never used again.
    IncarnationId,
    "inc-"
);
random_id!(
    /// One disk's data, drawn at random when the store is made; never used again. A lost,
    /// quarantined or rebuilt store gets a new one. Raft members, lease voters and replica sets
    /// name stores, so that a member that lost its disk is not mistaken for one that remembers.
    StoreId,
    "store-"
);
random_id!(
    /// What the directory places: a dedicated child, or a shard. Numbered by the directory.
    UnitId,
    "unit-"
);
random_id!(
    /// A supervisor in the directory's tree. Numbered by the directory.
    SupervisorId,
    "sup-"
);

counter!(
    /// How often a unit has been granted. Only moves forward.
    Epoch,
    "e"
);
counter!(
    /// How often a unit's replica set has changed within its history. Only moves forward.
    ConfigVersion,
    "c"
);
counter!(
    /// A record's place in its child's chain; the first record is 1.
    Seq,
    "r"
);
counter!(
    /// A place in the Raft log; the first entry is 1.
    LogIndex,
    "i"
);
counter!(
    /// A Raft term.
    Term,
    "t"
);
counter!(
    /// How often the list of lease voters has changed (rule L8).
    VotersVersion,
    "v"
);

/// Names one entry of the Raft log for good: two entries at one index differ in term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[allow(missing_docs)]
pub struct LogId {
    #[n(0)]
    pub term: Term,
    #[n(1)]
    pub index: LogIndex,
}

/// One of the [`SLOTS`] that light children hash to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode)]
#[cbor(transparent)]
pub struct Slot(#[n(0)] u16);

impl Slot {
    /// The slot numbered `slot`, or `None` from [`SLOTS`] up.
    pub const fn new(slot: u16) -> Option<Slot> {
        if slot < SLOTS { Some(Slot(slot)) } else { None }
    }

    /// The slot's number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl<'b, C> Decode<'b, C> for Slot {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
        Slot::new(d.u16()?).ok_or_else(|| DecodeError::message("a slot is below 16384"))
    }
}

/// A run of slots, from `start` up to and not including `end`; never empty.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode)]
pub struct SlotRange {
    #[n(0)]
    start: u16,
    #[n(1)]
    end: u16,
}

impl SlotRange {
    /// All slots.
    pub const ALL: SlotRange = SlotRange {
        start: 0,
        end: SLOTS,
    };

    /// `start..end`, or `None` when it is empty or leaves the slot space.
    pub const fn new(start: u16, end: u16) -> Option<SlotRange> {
        if start < end && end <= SLOTS {
            Some(SlotRange { start, end })
        } else {
            None
        }
    }

    /// The first slot's number.
    pub const fn start(self) -> u16 {
        self.start
    }

    /// One past the last slot's number.
    pub const fn end(self) -> u16 {
        self.end
    }

    /// How many slots.
    #[allow(clippy::len_without_is_empty)] // a range is never empty
    pub const fn len(self) -> u16 {
        self.end - self.start
    }

    /// Whether `slot` lies in it.
    pub const fn contains(self, slot: Slot) -> bool {
        self.start <= slot.0 && slot.0 < self.end
    }

    /// Whether the two share a slot.
    pub const fn overlaps(self, other: SlotRange) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Whether all of `other` lies in it.
    pub const fn covers(self, other: SlotRange) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// The two ranges before and from `at`, or `None` when one would be empty.
    pub fn split(self, at: u16) -> Option<(SlotRange, SlotRange)> {
        Some((
            SlotRange::new(self.start, at)?,
            SlotRange::new(at, self.end)?,
        ))
    }

    /// This range and the one that begins where it ends, as one.
    pub fn join(self, next: SlotRange) -> Option<SlotRange> {
        (self.end == next.start).then_some(SlotRange {
            start: self.start,
            end: next.end,
        })
    }
}

impl fmt::Debug for SlotRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

impl<'b, C> Decode<'b, C> for SlotRange {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, DecodeError> {
        #[derive(Decode)]
        struct Raw {
            #[n(0)]
            start: u16,
            #[n(1)]
            end: u16,
        }
        let raw = Raw::decode(d, ctx)?;
        SlotRange::new(raw.start, raw.end).ok_or_else(|| {
            DecodeError::message("a slot range is not empty and ends at 16384 at most")
        })
    }
}

/// A child's virtual id, `tenant/kind/key`: addressable anywhere whether or not it is running.
/// Cheap to clone.
///
/// A child of a dedicated kind (a browser session, a render job) is written `@tenant/kind/key`. It
/// has a unit of its own from the beginning and lies in no shard. Whether a kind is dedicated is
/// known where an id is first read; from there on the id says it, so that a store, which knows no
/// kinds, never takes such a child's records for a shard's (rule S1).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChildId(Arc<str>);

/// Why a text is no child id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChildIdError {
    /// Longer than [`CHILD_ID_BYTES_MAX`].
    #[error("a child id has at most {CHILD_ID_BYTES_MAX} bytes")]
    TooLong,
    /// Not three names with a slash between them.
    #[error("a child id is `tenant/kind/key`, three names that are not empty")]
    NotThreeNames,
    /// A control character or a space.
    #[error("a child id has no spaces and no control characters")]
    BadCharacter,
}

impl ChildId {
    /// Reads `tenant/kind/key` or `@tenant/kind/key`. The key may hold further slashes.
    pub fn parse(text: &str) -> Result<ChildId, ChildIdError> {
        if text.len() > CHILD_ID_BYTES_MAX {
            return Err(ChildIdError::TooLong);
        }
        let mut names = text.strip_prefix(DEDICATED).unwrap_or(text).splitn(3, '/');
        let whole = (0..3).all(|_| names.next().is_some_and(|name| !name.is_empty()));
        if !whole {
            return Err(ChildIdError::NotThreeNames);
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(ChildIdError::BadCharacter);
        }
        Ok(ChildId(Arc::from(text)))
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the child's kind is dedicated: it lies in no shard.
    pub fn is_dedicated(&self) -> bool {
        self.0.starts_with(DEDICATED)
    }

    /// The tenant's name.
    pub fn tenant(&self) -> &str {
        self.name(0)
    }

    /// The kind's name.
    pub fn kind(&self) -> &str {
        self.name(1)
    }

    /// The key within the tenant's children of the kind.
    pub fn key(&self) -> &str {
        self.name(2)
    }

    /// The slot it hashes to: the low 14 bits of the id's CRC-32C. A format constant (rule S1).
    pub fn slot(&self) -> Slot {
        Slot((crate::wire::checksum(self.0.as_bytes()) & u32::from(SLOTS - 1)) as u16)
    }

    fn name(&self, nth: usize) -> &str {
        let names = self.0.strip_prefix(DEDICATED).unwrap_or(&self.0);
        names
            .splitn(3, '/')
            .nth(nth)
            .expect("a child id holds three names: parse checked it")
    }
}

/// Begins the id of a child of a dedicated kind.
const DEDICATED: char = '@';

impl fmt::Display for ChildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ChildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<C> Encode<C> for ChildId {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        e.str(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for ChildId {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
        ChildId::parse(d.str()?).map_err(|_| DecodeError::message("not a child id"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn check<T>(counter: impl Fn(u64) -> T, next: impl Fn(T) -> T)
    where
        T: Copy + PartialEq + fmt::Debug + Encode<()> + for<'b> Decode<'b, ()>,
    {
        for count in [0, 1, COUNTER_MAX - 1, COUNTER_MAX] {
            let bytes = minicbor::to_vec(counter(count)).unwrap();
            let read: T = minicbor::decode(&bytes).unwrap();
            assert_eq!(read, counter(count));
            assert_eq!(next(read), counter(count + 1));
        }
        for count in [COUNTER_MAX + 1, u64::MAX] {
            let bytes = minicbor::to_vec(count).unwrap();
            assert!(minicbor::decode::<T>(&bytes).is_err(), "{count}");
        }
    }

    #[test]
    fn no_counter_that_is_read_can_overflow() {
        check(Epoch, Epoch::next);
        check(ConfigVersion, ConfigVersion::next);
        check(Seq, Seq::next);
        check(LogIndex, LogIndex::next);
        check(Term, Term::next);
        check(VotersVersion, VotersVersion::next);
    }
}
