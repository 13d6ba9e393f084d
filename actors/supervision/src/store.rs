//! What keeps checkpoints: the trait, its store in memory, and the suite that both stores pass.
//!
//! Owns: what a store promises to the replication machine that writes to it. Never decides what is
//! written or who may write: that is
//! [`Replica`](understudy_protocol::cluster::replication::Replica)'s.
//!
//! A store is used from one thread, and its calls block. What it promises is what the simulator's disk
//! does: a commit is there whole or not at all, what was committed is there when the store is opened
//! again, and what it lost it says ([`Opened`]).

mod content;

pub mod conformance;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use understudy_protocol::cluster::replication::{Opened, Write};
use understudy_protocol::id::{ChildId, Seq, StoreId};
use understudy_protocol::wire::record::Record;

use content::Content;

/// One open store.
pub trait CheckpointStore: Send {
    /// Which store this is. Random, made with the store, never used again.
    fn store_id(&self) -> StoreId;

    /// What it held when it was opened, and what it lost. Asked once, before the first commit; what
    /// was found lost is flushed as lost when this returns (rule R8).
    fn opened(&mut self) -> Result<Opened, StoreError>;

    /// Whether it takes records now. A caller that asks first, and turns new records away while it
    /// hears [`StoreError::DiskFull`], never gets that answer from a commit.
    fn room(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Does all of these writes, in order, as one. They are flushed when this returns `Ok`. Batches
    /// without a [`Write::Put`] are taken while the disk is nearly full too: promises must be kept
    /// and records be dropped.
    fn commit(&mut self, batch: Vec<Write>) -> Result<(), StoreError>;

    /// The child's records after `after`, as many as
    /// [`records_that_fit`](understudy_protocol::wire::codec::records_that_fit) one answer; none
    /// when there are none. Every record is intact and follows the one before it.
    fn read(&mut self, child: &ChildId, after: Seq) -> Result<Vec<Record>, ReadError>;

    /// Reads a small part of the store, the children after `after`, only to see whether it is intact:
    /// damage found early is mended from the other replicas while there are some.
    fn scrub(&mut self, after: Option<&ChildId>) -> Result<Scrubbed, StoreError> {
        let _ = after;
        Ok(Scrubbed::default())
    }
}

/// What a part of a round over the whole store found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Each damaged child, and its first damaged record.
    pub damaged: Vec<(ChildId, Seq)>,
    /// Where to go on; `None` at the end of the round.
    pub next: Option<ChildId>,
}

/// Why a store did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The disk is nearly full. Nothing was written and the store is sound: it reads, and takes
    /// records again once there is room.
    #[error(
        "{} is {used_percent} % full; records are refused from {limit_percent} % on: make room",
        path.display()
    )]
    DiskFull {
        /// A folder on the full file system.
        path: PathBuf,
        /// How full it is.
        used_percent: u8,
        /// From where on records are refused.
        limit_percent: u8,
    },
    /// The file system had no room in the middle of a commit. Whether the commit is on the disk is
    /// not known. The store has failed for good: make room, end this process and start again.
    #[error("no space left under {}: make room and start again", path.display())]
    NoSpace {
        /// The store's folder.
        path: PathBuf,
    },
    /// A commit failed, now or earlier. Whether that commit is on the disk is not known; reads go on.
    /// The store has failed for good: end this process and start again.
    #[error("the store failed: {reason}")]
    Failed {
        /// What went wrong first.
        reason: String,
    },
    /// What was asked cannot be stored. Nothing was written and the store is sound.
    #[error("not stored: {0}")]
    Invalid(&'static str),
}

impl StoreError {
    /// Whether the store takes nothing more until it is opened again by another process.
    pub fn is_final(&self) -> bool {
        matches!(self, StoreError::NoSpace { .. } | StoreError::Failed { .. })
    }
}

/// Why records were not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The record at this place is damaged or gone. The records before it are as they were.
    #[error("the record at {at} is damaged")]
    Damaged {
        /// The first damaged record.
        at: Seq,
    },
    /// The store could not read at all.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A store in memory, for tests. Every clone is the same store opened again, so a test that drops one
/// and goes on with another has restarted its node.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    id: StoreId,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    content: Content,
    full: bool,
    failed: Option<StoreError>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new(id: StoreId) -> MemoryStore {
        MemoryStore {
            id,
            shared: Arc::default(),
        }
    }

    /// Damages the child's record at `at`: reads find it, and so does the next opening.
    pub fn damage(&self, child: &ChildId, at: Seq) {
        self.lock().content.damage(child, at);
    }

    /// The last write was torn, or flushed and damaged: the next opening says so.
    pub fn tear(&self) {
        self.lock().content.tear();
    }

    /// The disk is nearly full from now on, or has room again.
    pub fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// Every commit fails from now on; `None` as if the store was opened again.
    pub fn set_failed(&self, error: Option<StoreError>) {
        self.lock().failed = error;
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Nothing panics while it holds the lock; a test that did has failed already.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn room(&self) -> Result<(), StoreError> {
        if self.full {
            return Err(StoreError::DiskFull {
                path: PathBuf::from("memory"),
                used_percent: 100,
                limit_percent: 85,
            });
        }
        Ok(())
    }
}

impl CheckpointStore for MemoryStore {
    fn store_id(&self) -> StoreId {
        self.id
    }

    fn opened(&mut self) -> Result<Opened, StoreError> {
        Ok(self.lock().content.open())
    }

    fn room(&mut self) -> Result<(), StoreError> {
        self.lock().room()
    }

    fn commit(&mut self, batch: Vec<Write>) -> Result<(), StoreError> {
        let mut shared = self.lock();
        if let Some(error) = &shared.failed {
            return Err(error.clone());
        }
        if batch.iter().any(|write| matches!(write, Write::Put(_))) {
            shared.room()?;
        }
        let intact = |write: &Write| !matches!(write, Write::Put(record) if !record.is_intact());
        if !batch.iter().all(intact) {
            return Err(StoreError::Invalid("a record is not intact"));
        }
        for write in batch {
            shared.content.apply(write);
        }
        Ok(())
    }

    fn read(&mut self, child: &ChildId, after: Seq) -> Result<Vec<Record>, ReadError> {
        self.lock().content.read(child, after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_in_memory_keeps_what_a_store_promises() {
        let store = MemoryStore::new(StoreId(7));
        conformance::check(&mut || Box::new(store.clone()));
    }

    #[test]
    fn a_full_store_refuses_records_keeps_promises_and_takes_records_again_later() {
        let mut store = MemoryStore::new(StoreId(7));
        store.set_full(true);
        let put = conformance::records("a/b/c", 1);
        assert!(matches!(
            store.commit(put.iter().cloned().map(Write::Put).collect()),
            Err(StoreError::DiskFull { .. })
        ));
        assert!(store.room().is_err());
        assert!(store.commit(vec![conformance::promise(0, 10, 4)]).is_ok());
        store.set_full(false);
        assert!(
            store
                .commit(put.into_iter().map(Write::Put).collect())
                .is_ok()
        );
    }
}
