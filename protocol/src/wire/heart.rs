//! What the hearts of two nodes say to each other: small datagrams, any of which may be lost,
//! repeated or late.
//!
//! Owns: renewals, promises, reports, sightings and death notes (rules L1-L11). Never carries state
//! of units: the heart shares nothing with the rest of the node.

use alloc::vec::Vec;
use core::time::Duration;

use minicbor::{Decode, Encode};
use sha2::{Digest, Sha256};

use crate::id::{IncarnationId, LogId, LogIndex, NodeId, StoreId, UnitId, VotersVersion};

/// How long a lease lasts from one renewal, in whole milliseconds (rule L3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct Ttl(#[n(0)] u32);

impl Ttl {
    /// Preset `default`: rides out a stall of two seconds.
    pub const DEFAULT: Ttl = Ttl(3_000);
    /// Preset `lan`: for quiet machines on one switch.
    pub const LAN: Ttl = Ttl(500);
    /// Preset `wan`: for round trips of 80 to 220 ms with jitter.
    pub const WAN: Ttl = Ttl(5_000);

    /// A TTL of `millis` milliseconds.
    pub const fn from_millis(millis: u32) -> Ttl {
        Ttl(millis)
    }

    /// In milliseconds.
    pub const fn as_millis(self) -> u32 {
        self.0
    }

    /// As a span of time.
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0 as u64)
    }
}

/// A node asks a voter to promise that it will help nobody to take the node's units away for a TTL.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Renewal {
    /// Who asks.
    #[n(0)]
    pub node: NodeId,
    /// Which start of it.
    #[n(1)]
    pub incarnation: IncarnationId,
    /// Numbers the asker's rounds, so that an answer is counted from the sending it answers (L2).
    #[n(2)]
    pub round: u64,
    /// For how long (L3).
    #[n(3)]
    pub ttl: Ttl,
    /// Which list of voters the asker counts majorities in (L8).
    #[n(4)]
    pub voters: VotersVersion,
    /// How far the asker has applied the directory (L7).
    #[n(5)]
    pub applied: LogIndex,
}

/// A voter's answer to a [`Renewal`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Promise {
    /// The voter's store.
    #[n(0)]
    pub voter: StoreId,
    /// Whose renewal it answers.
    #[n(1)]
    pub incarnation: IncarnationId,
    /// Which round it answers.
    #[n(2)]
    pub round: u64,
    /// Promised, or why not.
    #[n(3)]
    pub verdict: Verdict,
}

/// What a voter said to a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Verdict {
    /// Promised for the TTL that the renewal named, counted from its receipt.
    #[n(0)]
    Promised,
    /// The voter's log or snapshot holds this incarnation's expulsion (L4). It is final.
    #[n(1)]
    Expelled,
    /// The voter's log and snapshot do not list this incarnation as live (L4). It may yet.
    #[n(2)]
    NotLive,
    /// The TTL is above the limit that the voter has flushed (L3).
    #[n(3)]
    TtlAboveLimit,
    /// The renewal names an older list of voters than the voter's log holds (L8).
    #[n(4)]
    OldVoters,
    /// The voter has seen no leader for ten TTL (L9).
    #[n(5)]
    NoLeader,
}

/// A voter that holds `expel` says that it has no promise left to that incarnation (L5).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Report {
    /// The voter's store.
    #[n(0)]
    pub voter: StoreId,
    /// Whose promises are over.
    #[n(1)]
    pub incarnation: IncarnationId,
    /// The entry it holds; an expulsion that was truncated and proposed again is another entry.
    #[n(2)]
    pub expel: LogId,
}

/// What a voter tells the leader of every incarnation that it knows as live (L7, L8).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Sighting {
    /// The voter's store.
    #[n(0)]
    pub voter: StoreId,
    /// The newest list of voters that the voter's log holds.
    #[n(1)]
    pub voters: VotersVersion,
    /// At most [`SIGHTED_MAX`] of them.
    #[n(2)]
    pub sighted: Vec<Sighted>,
}

/// One incarnation as a voter sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Sighted {
    /// Which.
    #[n(0)]
    pub incarnation: IncarnationId,
    /// Whether the voter's promise to it stands, or may stand (after the voter's own restart).
    #[n(1)]
    pub promised: bool,
    /// How far it had applied the directory at its last renewal.
    #[n(2)]
    pub applied: LogIndex,
}

/// Incarnations in one sighting: 40 datagrams of 1,200 bytes carry 1,000 nodes; one message of
/// this many entries stays within a datagram.
pub const SIGHTED_MAX: usize = 50;

/// The warden's proof that a node's process and all its helpers are dead (L11): 32 bytes that only
/// the warden knew and whose SHA-256 the directory holds. Proves itself, so it travels in the clear.
#[derive(Clone, PartialEq, Eq, Hash, Encode, Decode)]
pub struct DeathNote {
    /// Whose death.
    #[n(0)]
    pub incarnation: IncarnationId,
    /// The proof.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub secret: [u8; 32],
    /// Units that were starting or at work when the process died (V2); at most [`AT_WORK_MAX`].
    #[n(2)]
    pub at_work: Vec<UnitId>,
}

/// Units named in a death note: what fits a datagram of 1,200 bytes beside the proof.
pub const AT_WORK_MAX: usize = 100;

impl DeathNote {
    /// Whether the note proves the death of the incarnation that committed `digest`.
    pub fn proves(&self, digest: &DeathDigest) -> bool {
        DeathDigest::of(&self.secret) == *digest
    }
}

impl core::fmt::Debug for DeathNote {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "DeathNote({}, at work {:?})",
            self.incarnation, self.at_work
        )
    }
}

/// SHA-256 of a warden's secret, committed with the incarnation (L10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct DeathDigest(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 32]);

impl DeathDigest {
    /// The digest of `secret`.
    pub fn of(secret: &[u8; 32]) -> DeathDigest {
        DeathDigest(Sha256::digest(secret).into())
    }
}

/// Everything that a heart may receive.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
#[allow(missing_docs)] // each variant is the type it carries
pub enum HeartMessage {
    #[n(0)]
    Renewal(#[n(0)] Renewal),
    #[n(1)]
    Promise(#[n(0)] Promise),
    #[n(2)]
    Report(#[n(0)] Report),
    #[n(3)]
    Sighting(#[n(0)] Sighting),
    #[n(4)]
    DeathNote(#[n(0)] DeathNote),
}
