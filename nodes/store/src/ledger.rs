//! One sled database, and what it takes to rely on it.
//!
//! Owns: opening, the numbered commit, its flush, and noticing that commits are missing. Never looks
//! into a value: `records` and `raft` do.
//!
//! What is known of sled 0.34.7, and what is done about it:
//!
//! - A commit is one batch of one tree: after a kill sled recovers it whole or not at all. One that
//!   failed for want of space may be there in part; the sums tell when it is opened again.
//! - `flush` hands bytes to the kernel and no further, so the database's file is flushed through a
//!   second descriptor. A leaf of several large values becomes a file in `blobs/` that sled never
//!   flushes at all: so new files there are, and their folder.
//! - A kill while a database is opened leaves a `snap.*.generating`, which sled later takes for a
//!   damaged snapshot. It is no more than a shortcut for opening, so it is removed first.
//! - A damaged end of its log looks to sled like a torn write. Therefore each commit has a number and
//!   what all values add up to ([`Sum`](crate::value::Sum)), and the last number stands in a
//!   [`mark`](crate::mark) outside.
//! - After an error sled's state is not known: the ledger has failed for good, and its handle is never
//!   closed, since closing flushes and that waits for ever for a write that failed (seen with a full
//!   disk). So the process must end before the database can be opened again.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use understudy_protocol::time::Time;
use understudy_supervision::clock;
use understudy_supervision::store::StoreError;

use crate::files;
use crate::mark::{Found as FoundMark, Mark, Marked};
use crate::value::{Broken, seal, unseal};

/// An open database.
pub(crate) struct Ledger {
    db: sled::Db,
    folder: PathBuf,
    /// A second descriptor of sled's file. Opened before the first write, so that it is told of every
    /// write that failed later.
    data: File,
    mark: Mark,
    marked: Marked,
    blobs: PathBuf,
    blobs_look: BlobsLook,
    blobs_synced: BTreeSet<OsString>,
    failed: Option<StoreError>,
}

/// When `blobs/` was looked through last.
#[derive(Clone, Copy, Debug, Default)]
struct BlobsLook {
    /// The folder's date; compared, never reckoned with.
    changed: Option<SystemTime>,
    since: Time,
    settled: bool,
}

/// What a database says of itself when it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// What the last commit says that all values add up to.
    pub(crate) summary: Vec<u8>,
    /// Commits are missing that were flushed, or may be.
    pub(crate) missing: Missing,
}

/// Which flushed commits a database no longer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// None that anybody knows of.
    None,
    /// The mark is damaged: nobody can tell.
    Unknown,
    /// So many, none of which held a promise or a vote.
    Last(u64),
    /// So many, and a promise or a vote was among them.
    Binding(u64),
}

/// Why a database was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unopened {
    /// It is damaged beyond what can be told apart.
    #[error("{0}")]
    Damaged(String),
    /// A later version wrote it.
    #[error("it was written by a later version")]
    Newer,
    /// The operating system refused; the data may be sound.
    #[error("{0}")]
    Refused(String),
}

impl Ledger {
    /// Makes an empty database in a folder that does not exist yet.
    pub(crate) fn create(folder: &Path, summary: &[u8]) -> Result<(), Unopened> {
        fs::create_dir_all(folder).map_err(|error| Unopened::Refused(error.to_string()))?;
        let (mut ledger, _) = Ledger::open_any(folder)?;
        let first = ledger.commit(sled::Batch::default(), summary, true);
        first.map_err(|error| Unopened::Refused(error.to_string()))?;
        // Both places of the mark are written from the beginning.
        let both = ledger.mark.write_both(clock::now(), ledger.marked);
        both.map_err(|error| Unopened::Refused(error.to_string()))
    }

    /// Opens the database and compares it with its mark.
    pub(crate) fn open(folder: &Path) -> Result<(Ledger, Stamp), Unopened> {
        let (mut ledger, mark) = Ledger::open_any(folder)?;
        let value = ledger.db.get(STAMP).map_err(|error| unopened(&error))?;
        let value = value.ok_or_else(|| Unopened::Damaged("its last commit is gone".into()))?;
        let payload = unseal(STAMP, &value).map_err(|broken| match broken {
            Broken::Damaged => Unopened::Damaged("its last commit's stamp is damaged".into()),
            Broken::Newer => Unopened::Newer,
        })?;
        let (number, summary) = payload
            .split_first_chunk::<8>()
            .ok_or_else(|| Unopened::Damaged("its last commit's stamp is too short".into()))?;
        let number = u64::from_be_bytes(*number);
        let (marked, missing) = match mark {
            FoundMark::Damaged => (Marked::default(), Missing::Unknown),
            FoundMark::Intact(marked) | FoundMark::Half(marked) if marked.number > number => {
                let lost = marked.number - number;
                let missing = match marked.binding > number {
                    true => Missing::Binding(lost),
                    false => Missing::Last(lost),
                };
                (marked, missing)
            }
            FoundMark::Half(marked) => (marked, Missing::Unknown),
            FoundMark::Intact(marked) => (marked, Missing::None),
        };
        ledger.marked = Marked {
            number: number.max(marked.number),
            binding: marked.binding,
        };
        let stamp = Stamp {
            summary: summary.to_vec(),
            missing,
        };
        Ok((ledger, stamp))
    }

    fn open_any(folder: &Path) -> Result<(Ledger, FoundMark), Unopened> {
        let refused = |error: io::Error| Unopened::Refused(error.to_string());
        let inside = folder.join(DATABASE);
        remove_leftovers(&inside).map_err(refused)?;
        let db = open_sled(&inside)?;
        let data = File::open(inside.join("db")).map_err(refused)?;
        // sled writes its `conf`, its snapshot and their names without flushing all of them.
        files::sync_tree(&inside).map_err(refused)?;
        let (mark, found) = Mark::open(&folder.join(MARK)).map_err(refused)?;
        files::sync_folder(folder).map_err(refused)?;
        let blobs = inside.join("blobs");
        let ledger = Ledger {
            db,
            folder: folder.to_path_buf(),
            data,
            mark,
            marked: Marked::default(),
            blobs_look: BlobsLook::default(),
            blobs_synced: names_in(&blobs).map_err(refused)?,
            blobs,
            failed: None,
        };
        Ok((ledger, found))
    }

    /// Writes the batch and the summary as one commit. Flushed when `Ok`; `binding` when it holds a
    /// promise or a vote.
    pub(crate) fn commit(
        &mut self,
        mut batch: sled::Batch,
        summary: &[u8],
        binding: bool,
    ) -> Result<(), StoreError> {
        self.standing()?;
        let number = self.marked.number + 1;
        let mut stamp = number.to_be_bytes().to_vec();
        stamp.extend_from_slice(summary);
        batch.insert(STAMP, seal(STAMP, &stamp));
        let marked = Marked {
            number,
            binding: if binding { number } else { self.marked.binding },
        };
        // sled asserts what damaged files break; whoever waits for this commit must hear of it.
        let flushed = catch_unwind(AssertUnwindSafe(|| self.flush(batch, marked)));
        let flushed =
            flushed.unwrap_or_else(|_| Err(sled::Error::ReportableBug("sled panicked".into())));
        match flushed {
            Ok(()) => {
                self.marked = marked;
                Ok(())
            }
            Err(error) => Err(self.fail(&error)),
        }
    }

    fn flush(&mut self, batch: sled::Batch, marked: Marked) -> Result<(), sled::Error> {
        self.db.apply_batch(batch)?;
        self.db.flush()?;
        self.sync_blobs()?;
        self.data.sync_data()?;
        // Only now: a mark must never be ahead of what is flushed.
        self.mark.write(clock::now(), marked)?;
        Ok(())
    }

    /// Both places of the mark say the last commit again, after one was found damaged.
    pub(crate) fn mend_mark(&mut self) -> Result<(), StoreError> {
        self.standing()?;
        let written = self.mark.write_both(clock::now(), self.marked);
        written.map_err(|error| self.fail(&error.into()))
    }

    /// The error that the ledger failed with, if it did.
    pub(crate) fn standing(&self) -> Result<(), StoreError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// What an error of a read means. It does not fail the ledger: a commit will, if sled has.
    pub(crate) fn read_error(&self, error: &sled::Error) -> StoreError {
        store_error(&self.folder, error)
    }

    /// The database, to be read. Writes go through [`Ledger::commit`].
    pub(crate) fn db(&self) -> &sled::Db {
        &self.db
    }

    /// New files in `blobs/`, and their folder.
    fn sync_blobs(&mut self) -> io::Result<()> {
        let changed = fs::metadata(&self.blobs)?.modified()?;
        let now = clock::now();
        if self.blobs_look.changed != Some(changed) {
            self.blobs_look = BlobsLook {
                changed: Some(changed),
                since: now,
                settled: false,
            };
        }
        if self.blobs_look.settled {
            return Ok(());
        }
        // A file made within the file system's tick of this look would not change the date again.
        self.blobs_look.settled = now.since(self.blobs_look.since) > FOLDER_TICK;
        let names = names_in(&self.blobs)?;
        for name in names.difference(&self.blobs_synced) {
            match File::open(self.blobs.join(name)) {
                Ok(file) => file.sync_data()?,
                // sled has dropped it in the meantime: nothing points to it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if names != self.blobs_synced {
            files::sync_folder(&self.blobs)?;
        }
        self.blobs_synced = names;
        Ok(())
    }

    fn fail(&mut self, error: &sled::Error) -> StoreError {
        let failed = store_error(&self.folder, error);
        tracing::error!(folder = %self.folder.display(), %error, "a commit failed");
        if self.failed.is_none() {
            // Keeps the last handle from being closed: that could wait for ever.
            std::mem::forget(self.db.clone());
        }
        self.failed = Some(failed.clone());
        failed
    }
}

/// sled's own `Debug` writes out the whole content.
impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger")
            .field("folder", &self.folder)
            .field("marked", &self.marked)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // Everything is flushed but perhaps the mark, without which a damaged end of the log would
        // not be noticed. Nothing more can be done about an error here.
        let _ = self.mark.sync(clock::now());
    }
}

/// What sled's error means to whoever asked for a write.
pub(crate) fn store_error(folder: &Path, error: &sled::Error) -> StoreError {
    let full = matches!(error, sled::Error::Io(error) if is_no_space(error));
    match full {
        true => StoreError::NoSpace {
            path: folder.to_path_buf(),
        },
        false => StoreError::Failed {
            reason: error.to_string(),
        },
    }
}

/// Whether the file system has no room.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Whether sled's error says that its files are damaged, or only that it could not look.
pub(crate) fn unopened(error: &sled::Error) -> Unopened {
    match error {
        sled::Error::Io(io) if could_not_look(io) => Unopened::Refused(error.to_string()),
        error => Unopened::Damaged(error.to_string()),
    }
}

fn could_not_look(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    let kind = error.kind();
    let is_lock = error.to_string().contains(LOCK_WORDS);
    let refused = matches!(
        kind,
        Kind::PermissionDenied
            | Kind::ReadOnlyFilesystem
            | Kind::StorageFull
            | Kind::QuotaExceeded
            | Kind::OutOfMemory
    );
    // The disk itself failed (EIO), or this process has too many files open (EMFILE, ENFILE): data
    // that cannot be read is no proof that it is wrong.
    let by_number = error.raw_os_error().is_some_and(|number| {
        [
            rustix::io::Errno::IO,
            rustix::io::Errno::MFILE,
            rustix::io::Errno::NFILE,
        ]
        .iter()
        .any(|errno| errno.raw_os_error() == number)
    });
    is_lock || refused || by_number
}

pub(crate) fn open_sled(inside: &Path) -> Result<sled::Db, Unopened> {
    let config = sled::Config::new()
        .path(inside)
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(None);
    let until = clock::now() + LOCK_PATIENCE;
    loop {
        match config.open() {
            Err(sled::Error::Io(error))
                if error.to_string().contains(LOCK_WORDS) && clock::now() < until =>
            {
                std::thread::park_timeout(LOCK_RETRY);
            }
            opened => return opened.map_err(|error| unopened(&error)),
        }
    }
}

/// A kill while the database was opened left these behind; sled would take one for its snapshot.
fn remove_leftovers(inside: &Path) -> io::Result<()> {
    if !inside.exists() {
        return Ok(());
    }
    for name in names_in(inside)? {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("snap.") && name_text.ends_with(".generating") {
            tracing::info!(file = %name_text, "removed a snapshot that was never finished");
            fs::remove_file(inside.join(&name))?;
        }
    }
    files::sync_folder(inside)
}

fn names_in(folder: &Path) -> io::Result<BTreeSet<OsString>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

/// The key of the last commit's stamp: its number and the summary.
pub(crate) const STAMP: &[u8] = b"m";

/// sled's folder inside the ledger's.
pub(crate) const DATABASE: &str = "sled";
const MARK: &str = "mark";

/// sled's own default of 1 GiB would be a fifth of a small machine; what is read often is small.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;

/// sled lets go of its lock a moment after its handle is dropped, so one that was just closed may
/// still be held.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(10);
/// What sled says when another process, or a handle just dropped, holds its file.
const LOCK_WORDS: &str = "could not acquire lock";

/// Longer than the tick by which file systems date their changes (4 ms at 250 Hz).
const FOLDER_TICK: Duration = Duration::from_millis(50);
