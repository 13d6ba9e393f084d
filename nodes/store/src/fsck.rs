//! Looking through a whole store.
//!
//! Owns: the report of `understudy store fsck`, and what the probe's process does. It changes nothing
//! of ours; sled itself tidies its files whenever it opens them.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use understudy_protocol::id::StoreId;

use crate::chunks::Chunks;
use crate::damage::Damage;
use crate::data_dir::{self, Place};
use crate::ledger::Unopened;
use crate::limit::LimitFile;
use crate::lock::{Lock, NoLock};
use crate::raft::RaftLog;
use crate::records::SledStore;

/// What a store holds, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FsckReport {
    /// Whose store; `None` when its id is damaged.
    pub store: Option<StoreId>,
    /// Records that are intact and connected.
    pub records: u64,
    /// Children that have records.
    pub children: u64,
    /// Children whose chain is damaged, found now or earlier and not mended since (rule R3).
    pub damaged_children: u64,
    /// Slots whose last writes may have been lost, now or earlier, and that no owner has confirmed
    /// since (rule R8).
    pub cut_slots: u64,
    /// The same of dedicated children, those left out that were confirmed: what never existed
    /// confirms nothing, so this stands for good where there are none.
    pub cut_dedicated: bool,
    /// Entries in the Raft log.
    pub raft_entries: u64,
    /// Chunks, when they were looked at.
    pub chunks: u64,
    /// Their bytes.
    pub chunk_bytes: u64,
    /// Chunks among them that no record names; a running node removes them after a while.
    pub unnamed_chunks: u64,
    /// What was found wrong now.
    pub damages: Vec<Damage>,
}

impl FsckReport {
    /// Whether the store can go on under its id.
    pub fn is_usable(&self) -> bool {
        !self.damages.iter().any(Damage::is_fatal)
    }
}

/// Why a store was not looked through. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum FsckError {
    /// A node runs on it. Stop the node first.
    #[error("{} is in use: stop the node first", path.display())]
    InUse {
        /// The data folder.
        path: PathBuf,
    },
    /// There is none.
    #[error("{} holds no store", path.display())]
    NoStore {
        /// The data folder.
        path: PathBuf,
    },
    /// A later version wrote it. Use that version.
    #[error("{place} was written by a later version: use that one")]
    Newer {
        /// Which part.
        place: &'static str,
    },
    /// The operating system refused; the data may be sound.
    #[error("{place} was not read: {reason}")]
    Refused {
        /// Which part.
        place: &'static str,
        /// What it said.
        reason: String,
    },
}

/// Opens and reads everything under the data folder `data`. Takes as long as reading it takes, and as
/// much memory as damaged files make sled take: see [`DataDir`](crate::DataDir) for how a node shields
/// itself from that.
pub fn fsck(data: &Path) -> Result<FsckReport, FsckError> {
    let path = data.to_path_buf();
    if !data.join(data_dir::STORE).is_dir() {
        return Err(FsckError::NoStore { path });
    }
    let _lock = Lock::take(data).map_err(|error| match error {
        NoLock::InUse => FsckError::InUse { path },
        NoLock::Io(error) => FsckError::Refused {
            place: "lock",
            reason: error.to_string(),
        },
    })?;
    inspect(&data.join(data_dir::STORE), true)
}

/// What `understudy store fsck --probe DATA` does in a process of its own, under a node that holds
/// the lock: looks through the databases, says so on its standard output, and returns the exit status
/// (0 when the store can go on, else 1). Chunks are not looked at: they are checked when they are
/// read.
pub fn probe(data: &Path) -> u8 {
    println!("{SAYS}{SAYS_BEGUN}");
    let verdict = match inspect(&data.join(data_dir::STORE), false) {
        Ok(report) => match report.damages.iter().find(|damage| damage.is_fatal()) {
            None => SAYS_USABLE.to_owned(),
            Some(damage) => format!("{SAYS_DAMAGED}{damage}"),
        },
        Err(error @ FsckError::Newer { .. }) => format!("{SAYS_NEWER}{error}"),
        Err(error) => format!("{SAYS_REFUSED}{error}"),
    };
    println!("{SAYS}{verdict}");
    u8::from(verdict != SAYS_USABLE)
}

/// Looks through an unlocked store.
pub(crate) fn inspect(store: &Path, with_chunks: bool) -> Result<FsckReport, FsckError> {
    let mut report = FsckReport::default();
    let place = |place: Place| store.join(place.name());
    if let Some(id) = look(&mut report, Place::Id, || {
        data_dir::read_id(&place(Place::Id))
    })? {
        report.store = Some(id);
    }
    let mut named = BTreeSet::new();
    let records = || SledStore::inspect(&place(Place::Records));
    if let Some(found) = look(&mut report, Place::Records, records)? {
        report.records = found.records();
        report.children = found.children();
        report.damaged_children = found.damaged();
        (report.cut_slots, report.cut_dedicated) = found.cut_parts();
        named = found.names(|list| Chunks::peek(&place(Place::Chunks), list));
        report.damages.extend(found.damages);
    }
    let raft = || RaftLog::inspect(&place(Place::Raft));
    if let Some(found) = look(&mut report, Place::Raft, raft)? {
        report.raft_entries = found.entries;
    }
    let limit = || LimitFile::open(&place(Place::Limit));
    look(&mut report, Place::Limit, limit)?;
    if with_chunks {
        let looked = Chunks::inspect(&place(Place::Chunks));
        let found = looked.map_err(|error| FsckError::Refused {
            place: Place::Chunks.name(),
            reason: error.to_string(),
        })?;
        (report.chunks, report.chunk_bytes) = (found.count, found.bytes);
        report.unnamed_chunks = found.names.difference(&named).count() as u64;
        let missing = named.difference(&found.names).map(ToString::to_string);
        let missing = missing.map(|name| Damage::NoChunk { name });
        let damaged = found.damaged.into_iter().map(|name| Damage::Chunk { name });
        report.damages.extend(damaged.chain(missing));
    }
    Ok(report)
}

/// Looks at one part. Damage goes into the report, and so does a panic: sled panics on some damage.
fn look<T>(
    report: &mut FsckReport,
    place: Place,
    look: impl FnOnce() -> Result<T, Unopened>,
) -> Result<Option<T>, FsckError> {
    let place = place.name();
    let looked = catch_unwind(AssertUnwindSafe(look))
        .unwrap_or_else(|_| Err(Unopened::Damaged("sled gave up on it".into())));
    match looked {
        Ok(found) => Ok(Some(found)),
        Err(Unopened::Damaged(noticed)) => {
            report.damages.push(Damage::Unreadable { place, noticed });
            Ok(None)
        }
        Err(Unopened::Newer) => Err(FsckError::Newer { place }),
        Err(Unopened::Refused(reason)) => Err(FsckError::Refused { place, reason }),
    }
}

/// Begins each line of the probe. Its words count and not its exit status, since any program that
/// was started by mistake has one.
pub(crate) const SAYS: &str = "understudy probe: ";
/// It is the probe, and looks from now on: how it ends says something of the store.
pub(crate) const SAYS_BEGUN: &str = "begun";
/// The store can go on.
pub(crate) const SAYS_USABLE: &str = "usable";
/// The store must not be used under its id again.
pub(crate) const SAYS_DAMAGED: &str = "damaged: ";
/// A later version wrote it.
pub(crate) const SAYS_NEWER: &str = "newer: ";
/// It could not be looked at; it may be sound.
pub(crate) const SAYS_REFUSED: &str = "refused: ";
