//! Raft's log, vote and snapshot on disk.
//!
//! Owns: a database of its own, so that records never wait for a vote; the thread that writes it, many
//! requests to one flush; and the snapshot's file. Never looks into what it keeps: entries, votes and
//! ids are bytes here.
//!
//! ```text
//!   append, save_vote, …  ──>  queue  ──>  writer: all that waits, one commit, one flush  ──>  done
//!   entries               ──>  what is queued, over what is written
//! ```
//!
//! A Raft member that forgets a vote or an entry that it acknowledged may help to elect two leaders.
//! So nothing here is mended: a log with anything missing is not opened.

mod scan;
mod snapshot;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use understudy_protocol::wire::checksum;
use understudy_supervision::store::StoreError;

use crate::ledger::{self, Ledger, Unopened};
use crate::lock::Lock;
use crate::value::{Sum, seal, tag, unseal};
pub(crate) use scan::Found;

/// Raft's log. Every clone is the same log; the last one dropped ends its writer.
#[derive(Clone, Debug)]
pub struct RaftLog {
    writer: Arc<Writer>,
}

/// What a log holds beside its entries. All of it flushed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RaftState {
    /// The last saved vote.
    pub vote: Option<Bytes>,
    /// What was said with the last purge.
    pub purged: Option<Bytes>,
    /// The last saved commit.
    pub committed: Option<Bytes>,
    /// The last entry that is kept, or purged when none is kept.
    pub last_index: Option<u64>,
}

/// Told once, from the writer's thread, when a request is flushed or has failed. It must not block.
pub type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

impl RaftLog {
    pub(crate) fn create(folder: &Path) -> Result<(), Unopened> {
        Ledger::create(folder, &Sum::default().to_bytes())
    }

    pub(crate) fn open(folder: &Path, lock: Option<&Arc<Lock>>) -> Result<RaftLog, Unopened> {
        let (ledger, stamp) = Ledger::open(folder)?;
        let found = Found::scan(ledger.db(), &stamp, folder)?;
        let shared = Arc::new(Shared {
            db: ledger.db().clone(),
            folder: folder.to_path_buf(),
            state: Mutex::new(State {
                kept: found.state.clone(),
                pending: BTreeMap::new(),
                failed: None,
            }),
            snapshot: Mutex::new(()),
        });
        let (queue, jobs) = sync_channel(QUEUE_MAX);
        let writing = Writing {
            ledger,
            shared: Arc::clone(&shared),
            tags: found.tags,
            sum: found.sum,
            purged: found.purged,
        };
        let thread = std::thread::Builder::new()
            .name("raft-log".into())
            .spawn(move || writing.run(&jobs))
            .map_err(|error| Unopened::Refused(error.to_string()))?;
        Ok(RaftLog {
            writer: Arc::new(Writer {
                shared,
                queue: Some(queue),
                thread: Some(thread),
                _lock: lock.cloned(),
            }),
        })
    }

    /// Looks through a log without changing it.
    pub(crate) fn inspect(folder: &Path) -> Result<Found, Unopened> {
        let (ledger, stamp) = Ledger::open(folder)?;
        Found::scan(ledger.db(), &stamp, folder)
    }

    /// What is kept and flushed.
    pub fn state(&self) -> RaftState {
        self.writer.shared.lock().kept.clone()
    }

    /// Appends entries, each at the index after the one before. They can be read when this returns and
    /// are flushed when `done` is told so. Blocks only while 64 requests wait. When `done`
    /// hears [`StoreError::Invalid`] nothing was written; after any other error the log has failed.
    pub fn append(&self, entries: Vec<(u64, Bytes)>, done: Done) {
        {
            let mut state = self.writer.shared.lock();
            state.pending.extend(entries.iter().cloned());
        }
        self.send(Job::Append(entries), done);
    }

    /// Removes the entries from `from` on. Flushed when `Ok`.
    pub fn truncate(&self, from: u64) -> Result<(), StoreError> {
        self.send_and_wait(Job::Truncate { from })
    }

    /// Removes the entries up to and with `upto`, and keeps `meta`. Flushed when `Ok`.
    pub fn purge(&self, upto: u64, meta: Bytes) -> Result<(), StoreError> {
        self.send_and_wait(Job::Purge { upto, meta })
    }

    /// Keeps a vote. Flushed when `Ok`.
    pub fn save_vote(&self, vote: Bytes) -> Result<(), StoreError> {
        self.send_and_wait(Job::Vote(vote))
    }

    /// Keeps how far the log is committed. Flushed when `Ok`.
    pub fn save_committed(&self, committed: Bytes) -> Result<(), StoreError> {
        self.send_and_wait(Job::Committed(committed))
    }

    /// The entries in this range, in order; fewer when some are not kept.
    pub fn entries(&self, range: impl RangeBounds<u64>) -> Result<Vec<(u64, Bytes)>, StoreError> {
        let (start, end) = (range.start_bound().cloned(), range.end_bound().cloned());
        if is_empty(start, end) {
            return Ok(Vec::new());
        }
        let shared = &self.writer.shared;
        // What is queued moves to the database under this lock, so an entry is in one or the other.
        let state = shared.lock();
        let mut entries = BTreeMap::new();
        let keys = (start.map(entry_key), end.map(entry_key));
        let keys = match keys {
            (start, Bound::Unbounded) => (start, Bound::Excluded(vec![ENTRY + 1])),
            keys => keys,
        };
        let keys = match keys {
            (Bound::Unbounded, end) => (Bound::Included(vec![ENTRY]), end),
            keys => keys,
        };
        for pair in shared.db.range(keys) {
            let (key, value) = pair.map_err(|error| ledger::store_error(&shared.folder, &error))?;
            let index = index_of(&key).ok_or_else(|| damaged("an entry's key"))?;
            let entry = unseal(&key, &value).map_err(|_| damaged("an entry"))?;
            entries.insert(index, Bytes::copy_from_slice(entry));
        }
        for (index, entry) in state.pending.range((start, end)) {
            entries.insert(*index, entry.clone());
        }
        Ok(entries.into_iter().collect())
    }

    /// Keeps a snapshot in place of the one before. Flushed when `Ok`; after an error either of the
    /// two stands, whole.
    pub fn save_snapshot(&self, meta: &[u8], data: &[u8]) -> Result<(), StoreError> {
        let _one_at_a_time = unpoisoned(&self.writer.shared.snapshot);
        snapshot::save(&self.writer.shared.folder, meta, data)
    }

    /// The last snapshot: its meta and its data.
    pub fn load_snapshot(&self) -> Result<Option<(Bytes, Vec<u8>)>, StoreError> {
        let _one_at_a_time = unpoisoned(&self.writer.shared.snapshot);
        snapshot::load(&self.writer.shared.folder).map_err(|error| StoreError::Failed {
            reason: error.to_string(),
        })
    }

    fn send_and_wait(&self, job: Job) -> Result<(), StoreError> {
        let (told, hears) = sync_channel(1);
        let done = Box::new(move |result| {
            let _ = told.send(result);
        });
        self.send(job, done);
        hears.recv().unwrap_or_else(|_| Err(ended()))
    }

    fn send(&self, job: Job, done: Done) {
        let queue = self.writer.queue.as_ref();
        let queue = queue.expect("the queue is closed by the last drop only");
        if let Err(unsent) = queue.send((job, done)) {
            let (_, done) = unsent.0;
            done(Err(ended()));
        }
    }
}

#[derive(Debug)]
struct Writer {
    shared: Arc<Shared>,
    queue: Option<SyncSender<(Job, Done)>>,
    thread: Option<JoinHandle<()>>,
    /// Let go when the writer has ended and its ledger is closed.
    _lock: Option<Arc<Lock>>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // What is queued is still written. A panic has been told to whoever waited.
            let _ = thread.join();
        }
    }
}

struct Shared {
    db: sled::Db,
    folder: PathBuf,
    state: Mutex<State>,
    /// Held while the snapshot's file is replaced or read.
    snapshot: Mutex<()>,
}

#[derive(Debug)]
struct State {
    kept: RaftState,
    /// Entries that are queued.
    pending: BTreeMap<u64, Bytes>,
    failed: Option<StoreError>,
}

/// sled's own `Debug` writes out the whole content.
impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        unpoisoned(&self.state)
    }
}

enum Job {
    Append(Vec<(u64, Bytes)>),
    Truncate { from: u64 },
    Purge { upto: u64, meta: Bytes },
    Vote(Bytes),
    Committed(Bytes),
}

/// The writer's thread.
struct Writing {
    ledger: Ledger,
    shared: Arc<Shared>,
    /// What each kept value adds to the sum, by its key.
    tags: BTreeMap<Vec<u8>, u64>,
    sum: Sum,
    purged: Option<u64>,
}

impl Writing {
    fn run(mut self, jobs: &Receiver<(Job, Done)>) {
        while let Ok(first) = jobs.recv() {
            let mut group = vec![first];
            let mut bytes = 0;
            while group.len() < GROUP_MAX
                && bytes < GROUP_BYTES_MAX
                && let Ok(next) = jobs.try_recv()
            {
                bytes += next.0.bytes();
                group.push(next);
            }
            self.commit(group);
        }
    }

    fn commit(&mut self, group: Vec<(Job, Done)>) {
        let mut batch = sled::Batch::default();
        let mut kept = self.shared.lock().kept.clone();
        let mut binding = false;
        let mut told = Vec::new();
        for (job, done) in group {
            binding |= !matches!(job, Job::Committed(_));
            let staged = self.stage(&job, &mut kept, &mut batch);
            told.push((job, done, staged));
        }
        let summary = self.sum.to_bytes();
        let committed = self.ledger.commit(batch, &summary, binding);
        {
            let mut state = self.shared.lock();
            match &committed {
                Ok(()) => state.kept = kept,
                Err(error) => state.failed = Some(error.clone()),
            }
            for (job, ..) in &told {
                let Job::Append(entries) = job else { continue };
                for (index, entry) in entries {
                    // A later append of the same index may be queued already.
                    let same = |pending: &Bytes| pending.as_ptr() == entry.as_ptr();
                    if state.pending.get(index).is_some_and(same) {
                        state.pending.remove(index);
                    }
                }
            }
        }
        for (_, done, staged) in told {
            done(staged.and(committed.clone()));
        }
    }

    fn stage(
        &mut self,
        job: &Job,
        kept: &mut RaftState,
        batch: &mut sled::Batch,
    ) -> Result<(), StoreError> {
        match job {
            Job::Append(entries) => {
                check_follows(kept.last_index, entries)?;
                for (index, entry) in entries {
                    self.insert(batch, entry_key(*index), entry);
                    kept.last_index = Some(*index);
                }
            }
            Job::Truncate { from } => {
                self.remove_entries(batch, *from, u64::MAX);
                let last = from.checked_sub(1).filter(|_| kept.last_index.is_some());
                kept.last_index = kept.last_index.min(last).max(self.purged);
            }
            Job::Purge { upto, meta } => {
                self.remove_entries(batch, 0, *upto);
                let payload = [&upto.to_be_bytes()[..], meta].concat();
                self.insert(batch, PURGED.to_vec(), &payload);
                self.purged = self.purged.max(Some(*upto));
                kept.purged = Some(meta.clone());
                kept.last_index = kept.last_index.max(Some(*upto));
            }
            Job::Vote(vote) => {
                self.insert(batch, VOTE.to_vec(), vote);
                kept.vote = Some(vote.clone());
            }
            Job::Committed(committed) => {
                self.insert(batch, COMMITTED.to_vec(), committed);
                kept.committed = Some(committed.clone());
            }
        }
        Ok(())
    }

    fn insert(&mut self, batch: &mut sled::Batch, key: Vec<u8>, payload: &[u8]) {
        batch.insert(key.as_slice(), seal(&key, payload));
        let added = value_tag(&key, payload);
        self.sum.add(added);
        if let Some(old) = self.tags.insert(key, added) {
            self.sum.remove(old);
        }
    }

    fn remove_entries(&mut self, batch: &mut sled::Batch, from: u64, upto: u64) {
        let keys = entry_key(from)..=entry_key(upto);
        let gone: Vec<Vec<u8>> = self.tags.range(keys).map(|(key, _)| key.clone()).collect();
        for key in gone {
            batch.remove(key.as_slice());
            if let Some(old) = self.tags.remove(&key) {
                self.sum.remove(old);
            }
        }
    }
}

impl Job {
    fn bytes(&self) -> usize {
        match self {
            Job::Append(entries) => entries.iter().map(|(_, entry)| entry.len()).sum(),
            _ => 0,
        }
    }
}

/// Each entry stands at the index after the one before. In an empty log the first may stand anywhere:
/// a member that joins begins behind a snapshot.
fn check_follows(last: Option<u64>, entries: &[(u64, Bytes)]) -> Result<(), StoreError> {
    let mut last = last;
    for (index, entry) in entries {
        if last.is_some_and(|last| last.checked_add(1) != Some(*index)) {
            return Err(StoreError::Invalid(
                "an entry does not follow the last one: truncate first",
            ));
        }
        if entry.len() > ENTRY_BYTES_MAX {
            return Err(StoreError::Invalid("an entry is above 8 MiB"));
        }
        last = Some(*index);
    }
    Ok(())
}

fn value_tag(key: &[u8], payload: &[u8]) -> u64 {
    tag(checksum(key), checksum(payload))
}

fn entry_key(index: u64) -> Vec<u8> {
    let mut key = vec![ENTRY];
    key.extend_from_slice(&index.to_be_bytes());
    key
}

fn index_of(key: &[u8]) -> Option<u64> {
    let (_, index) = key.split_first()?;
    Some(u64::from_be_bytes(index.try_into().ok()?))
}

fn is_empty(start: Bound<u64>, end: Bound<u64>) -> bool {
    let first = match start {
        Bound::Included(first) => Some(first),
        Bound::Excluded(before) => before.checked_add(1),
        Bound::Unbounded => Some(0),
    };
    let behind = match end {
        Bound::Included(last) => last.checked_add(1),
        Bound::Excluded(behind) => Some(behind),
        Bound::Unbounded => None,
    };
    first.is_none_or(|first| behind.is_some_and(|behind| behind <= first))
}

fn damaged(what: &str) -> StoreError {
    StoreError::Failed {
        reason: format!("{what} of the Raft log is damaged: start again, and the store is checked"),
    }
}

fn ended() -> StoreError {
    StoreError::Failed {
        reason: "the Raft log's writer has ended".into(),
    }
}

fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the locks guard is replaced in single steps, so it is whole after a panic too.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An I/O error as a store's.
pub(super) fn io_error(folder: &Path, error: &io::Error) -> StoreError {
    if ledger::is_no_space(error) {
        return StoreError::NoSpace {
            path: folder.to_path_buf(),
        };
    }
    StoreError::Failed {
        reason: error.to_string(),
    }
}

const ENTRY: u8 = b'e';
const COMMITTED: &[u8] = b"k";
const PURGED: &[u8] = b"u";
const VOTE: &[u8] = b"v";

/// Requests that wait for the writer: Raft keeps few appends under way, each of up to 4 MiB.
const QUEUE_MAX: usize = 64;

/// Requests that share a flush. A flush costs what a hundred small entries cost.
const GROUP_MAX: usize = 128;
/// Bytes that share a flush: 10 ms of a disk that writes 400 MB/s.
const GROUP_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Twice the longest directory command; Raft's own fields are small.
const ENTRY_BYTES_MAX: usize = 8 * 1024 * 1024;
