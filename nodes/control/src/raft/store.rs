//! What Raft asks of a disk.
//!
//! Owns: the promise. Values are opaque here and there; indexes are openraft's.

use std::ops::Range;

use bytes::Bytes;

/// A log, a vote and a snapshot on a disk. Every method but [`LogStore::append`] may block, and what
/// it wrote is flushed when it returns. Writes happen in the order of the calls; nobody calls two at
/// once.
pub trait LogStore: Send + Sync + 'static {
    /// What was last written, but for the entries themselves.
    fn state(&self) -> Result<LogState, LogError>;

    /// Appends entries, whose indexes follow the last one. Returns at once; `done` is called when they
    /// are flushed, from any thread.
    fn append(&self, entries: Vec<(u64, Bytes)>, done: Appended);

    /// Removes every entry from `from` on.
    fn truncate(&self, from: u64) -> Result<(), LogError>;

    /// Removes every entry up to and including `upto`, and keeps `meta` as [`LogState::purged`].
    fn purge(&self, upto: u64, meta: Bytes) -> Result<(), LogError>;

    /// Keeps the vote.
    fn save_vote(&self, vote: Bytes) -> Result<(), LogError>;

    /// The entries there are in the range, in order.
    fn entries(&self, range: Range<u64>) -> Result<Vec<(u64, Bytes)>, LogError>;

    /// Replaces the snapshot, as one.
    fn save_snapshot(&self, meta: Bytes, data: &[u8]) -> Result<(), LogError>;

    /// The snapshot, if there is one.
    fn load_snapshot(&self) -> Result<Option<(Bytes, Vec<u8>)>, LogError>;
}

/// Told once when entries are flushed, or never will be.
pub type Appended = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// What a [`LogStore`] holds beside entries and snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The last vote.
    pub vote: Option<Bytes>,
    /// What the last purge kept.
    pub purged: Option<Bytes>,
    /// The index of the last entry; none when there is no entry.
    pub last_index: Option<u64>,
}

/// The disk failed, or holds what cannot be read. What a write left behind is unknown: the node must
/// stop and open its store anew.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LogError(pub String);

/// A log in memory, which outlives the drivers that use it.
#[cfg(test)]
#[derive(Default)]
pub(super) struct MemoryLog {
    held: std::sync::Mutex<Memory>,
}

#[cfg(test)]
#[derive(Default)]
struct Memory {
    vote: Option<Bytes>,
    purged: Option<Bytes>,
    entries: std::collections::BTreeMap<u64, Bytes>,
    snapshot: Option<(Bytes, Vec<u8>)>,
}

#[cfg(test)]
impl MemoryLog {
    fn held(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.held.lock().expect("no test panics inside")
    }
}

#[cfg(test)]
impl LogStore for MemoryLog {
    fn state(&self) -> Result<LogState, LogError> {
        let held = self.held();
        Ok(LogState {
            vote: held.vote.clone(),
            purged: held.purged.clone(),
            last_index: held.entries.keys().next_back().copied(),
        })
    }

    fn append(&self, entries: Vec<(u64, Bytes)>, done: Appended) {
        self.held().entries.extend(entries);
        done(Ok(()));
    }

    fn truncate(&self, from: u64) -> Result<(), LogError> {
        self.held().entries.split_off(&from);
        Ok(())
    }

    fn purge(&self, upto: u64, meta: Bytes) -> Result<(), LogError> {
        let mut held = self.held();
        held.entries = held.entries.split_off(&(upto + 1));
        held.purged = Some(meta);
        Ok(())
    }

    fn save_vote(&self, vote: Bytes) -> Result<(), LogError> {
        self.held().vote = Some(vote);
        Ok(())
    }

    fn entries(&self, range: Range<u64>) -> Result<Vec<(u64, Bytes)>, LogError> {
        let held = self.held();
        let found = held.entries.range(range);
        Ok(found
            .map(|(index, bytes)| (*index, bytes.clone()))
            .collect())
    }

    fn save_snapshot(&self, meta: Bytes, data: &[u8]) -> Result<(), LogError> {
        self.held().snapshot = Some((meta, data.to_vec()));
        Ok(())
    }

    fn load_snapshot(&self) -> Result<Option<(Bytes, Vec<u8>)>, LogError> {
        Ok(self.held().snapshot.clone())
    }
}
