//! Records with known bodies, and random numbers from a seed.

use bytes::Bytes;
use understudy_protocol::id::{ChildId, ConfigVersion, Epoch};
use understudy_protocol::wire::record::{Head, Record, RecordKind};

pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

pub(crate) fn child(id: &str) -> ChildId {
    ChildId::parse(id).unwrap()
}

/// The record after `prev`. Everything of it follows from its place, so that anybody can tell whether
/// it is the right one. Every tenth is a snapshot.
pub(crate) fn next_record(child: &ChildId, prev: Head, bytes_max: usize) -> Record {
    let seq = prev.seq.next().0;
    let kind = match seq % 10 {
        1 => RecordKind::Snapshot,
        _ => RecordKind::Delta,
    };
    let text = format!("{child} {seq} ");
    let mut random = Random(u64::from(understudy_protocol::wire::checksum(text.as_bytes())) | 1);
    let length = random.below(bytes_max as u64) as usize;
    let mut body = text.repeat(length / text.len() + 1).into_bytes();
    body.truncate(length);
    let (epoch, config) = (Epoch(1), ConfigVersion(1));
    Record::chained(
        child.clone(),
        epoch,
        config,
        prev,
        kind,
        1,
        Bytes::from(body),
    )
}

/// The chain of this child up to and with `last`.
pub(crate) fn chain(child: &ChildId, last: u64, bytes_max: usize) -> Vec<Record> {
    let mut prev = Head::NONE;
    (0..last)
        .map(|_| {
            let record = next_record(child, prev, bytes_max);
            prev = record.head();
            record
        })
        .collect()
}
