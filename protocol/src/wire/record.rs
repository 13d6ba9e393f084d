//! The record: one step of a child's history, chained to the step before it (rule R1).
//!
//! Owns: what a record holds, its name ([`Head`]) and its checksum. Never knows what a body means:
//! that is the child's business.
//!
//! A record's checksum covers its predecessor's name, so two chains that agree in one head agree in
//! everything before it.

use bytes::Bytes;
use minicbor::{Decode, Encode};

use crate::id::{ChildId, ConfigVersion, Epoch, Seq};

/// The largest record body in bytes. Larger state goes into content-addressed files which a record
/// names: sled's values beyond a quarter of its segment become blobs of many times their size.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// Names one record of a child for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Head {
    /// Under which grant it was written.
    #[n(0)]
    pub epoch: Epoch,
    /// Its place in the chain.
    #[n(1)]
    pub seq: Seq,
    /// Its checksum.
    #[n(2)]
    pub checksum: u32,
}

impl Head {
    /// Before the first record.
    pub const NONE: Head = Head {
        epoch: Epoch::ZERO,
        seq: Seq::ZERO,
        checksum: 0,
    };
}

/// What a record's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum RecordKind {
    /// The whole state: a base from which the records after it go on.
    #[n(0)]
    Snapshot,
    /// A step from the record before it.
    #[n(1)]
    Delta,
}

/// One record. Build it with [`Record::chained`]; one from outside is believed after
/// [`Record::is_intact`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Record {
    /// Whose history.
    #[n(0)]
    pub child: ChildId,
    /// Under which grant it was written.
    #[n(1)]
    pub epoch: Epoch,
    /// Under which replica set it was written.
    #[n(2)]
    pub config: ConfigVersion,
    /// Its place in the chain.
    #[n(3)]
    pub seq: Seq,
    /// The record before it.
    #[n(4)]
    pub prev: Head,
    /// What the body is.
    #[n(5)]
    pub kind: RecordKind,
    /// The version of the child's own encoding of the body.
    #[n(6)]
    pub schema: u16,
    /// The child's bytes; at most [`BODY_BYTES_MAX`].
    #[cbor(n(7), with = "crate::wire::cbor_bytes")]
    pub body: Bytes,
    /// CRC-32C over everything above.
    #[n(8)]
    pub checksum: u32,
}

impl Record {
    /// The record that follows `prev`, with its checksum.
    pub fn chained(
        child: ChildId,
        epoch: Epoch,
        config: ConfigVersion,
        prev: Head,
        kind: RecordKind,
        schema: u16,
        body: Bytes,
    ) -> Record {
        let mut record = Record {
            child,
            epoch,
            config,
            seq: prev.seq.next(),
            prev,
            kind,
            schema,
            body,
            checksum: 0,
        };
        record.checksum = record.computed_checksum();
        record
    }

    /// The record's name.
    pub fn head(&self) -> Head {
        Head {
            epoch: self.epoch,
            seq: self.seq,
            checksum: self.checksum,
        }
    }

    /// Whether the checksum fits, the place follows the predecessor's, and the body is within its
    /// limit.
    pub fn is_intact(&self) -> bool {
        self.body.len() <= BODY_BYTES_MAX
            && self.prev.seq.0.checked_add(1) == Some(self.seq.0)
            && self.checksum == self.computed_checksum()
    }

    fn computed_checksum(&self) -> u32 {
        let mut digest = super::CRC32C.digest();
        digest.update(self.child.as_str().as_bytes());
        digest.update(&self.epoch.0.to_be_bytes());
        digest.update(&self.config.0.to_be_bytes());
        digest.update(&self.seq.0.to_be_bytes());
        digest.update(&self.prev.epoch.0.to_be_bytes());
        digest.update(&self.prev.seq.0.to_be_bytes());
        digest.update(&self.prev.checksum.to_be_bytes());
        digest.update(&[self.kind as u8]);
        digest.update(&self.schema.to_be_bytes());
        digest.update(&self.body);
        digest.finalize()
    }
}
