//! A node's data folder: one store under one id, or a new one under a new id.
//!
//! Owns: the layout, the lock, and what happens to a damaged store. A store that may have forgotten a
//! promise must not answer under its id, so it is put aside as a whole and a new one is made: the
//! cluster then knows that this disk remembers nothing, and sends it everything again.
//!
//! ```text
//! <data>/lock                     held by the one process that uses the store
//! <data>/store/id                 the random id
//! <data>/store/records/           promises and records (sled, its mark)
//! <data>/store/raft/              Raft's log and vote (sled, its mark), the snapshot
//! <data>/store/chunks/            content by its SHA-256
//! <data>/store/heart-limit        the longest TTL promised by
//! <data>/store.making/            a store whose making was interrupted; removed
//! <data>/store.bad-<unix seconds> a damaged store that was put aside; never removed by a node
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use understudy_protocol::id::StoreId;

use crate::chunks::Chunks;
use crate::files::{self, Content};
use crate::fsck::{FsckError, inspect};
use crate::ledger::Unopened;
use crate::limit::LimitFile;
use crate::lock::{Lock, NoLock};
use crate::probe::{self, Probe, Verdict};
use crate::raft::RaftLog;
use crate::records::SledStore;
use crate::value::Broken;

/// Opens stores.
#[derive(Debug)]
pub struct DataDir;

/// What to do with a store that must not be used under its id again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDamage {
    /// Put it aside and make a new one, under a new id.
    Rebuild,
    /// Say so and stop.
    Refuse,
}

/// An open store. The folder is locked while any of its parts is in use.
#[derive(Debug)]
pub struct OpenStore {
    /// Its id: random, made with it, never used again.
    pub id: StoreId,
    /// Promises and records.
    pub records: SledStore,
    /// Raft's log, vote and snapshot.
    pub raft: RaftLog,
    /// The heart's one number.
    pub limit: LimitFile,
    /// Large content.
    pub chunks: Chunks,
    /// The damaged store that this one replaces, when it was replaced now.
    pub rebuilt: Option<Quarantined>,
}

/// A damaged store that was put aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// Where it is now. To be rid of it: `rm -r` this folder once the cluster is whole.
    pub path: PathBuf,
    /// What was found.
    pub reason: String,
}

/// Why a store was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process uses it. Nothing has changed.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The data folder.
        path: PathBuf,
    },
    /// It is damaged, and was to be refused then. Nothing has changed.
    #[error(
        "the store in {} is damaged: {reason}. If other nodes hold its records, start with rebuilding allowed: it is put aside and made anew",
        path.display()
    )]
    Damaged {
        /// The store's folder.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// It is damaged, and so many damaged ones were put aside before that something else is wrong.
    /// Nothing has changed.
    #[error(
        "the store in {} is damaged: {reason}. {QUARANTINED_MAX} damaged stores were put aside before: check the disk, then remove {}.bad-*",
        path.display(),
        path.display()
    )]
    TooManyDamaged {
        /// The store's folder.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// A later version wrote it. Nothing has changed.
    #[error("{0}. Use that version, or give this one a data folder of its own")]
    Newer(String),
    /// The probe could not be run or was ended by somebody else. Nothing has changed.
    #[error("the store was not probed: {0}")]
    Probe(String),
    /// The operating system refused. A store that was being made is made anew at the next start; one
    /// that was there is as it was, or put aside whole.
    #[error("{}: {reason}", path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What it said.
        reason: String,
    },
}

impl DataDir {
    /// Opens the store under the data folder, or makes one where there is none.
    ///
    /// `probe` looks through the store first, in a process whose memory and time are limited: a damaged database can make sled hang or grow without end. Without one the store is
    /// looked through in this process, which is for tests.
    pub fn open(
        data: &Path,
        on_damage: OnDamage,
        probe: Option<&Probe>,
    ) -> Result<OpenStore, OpenError> {
        let lock = Lock::take(data).map_err(|error| match error {
            NoLock::InUse => OpenError::InUse {
                path: data.to_path_buf(),
            },
            NoLock::Io(error) => io_error(data, &error),
        })?;
        let lock = Arc::new(lock);
        let store = data.join(STORE);
        if !store.exists() {
            make(data)?;
        } else {
            match verdict(data, &store, probe)? {
                Verdict::Usable => {}
                Verdict::Damaged(reason) => return replace(data, on_damage, reason, &lock),
            }
        }
        match open_parts(&store, &lock) {
            Err(Unopened::Damaged(reason)) => replace(data, on_damage, reason, &lock),
            opened => opened.map_err(|error| unopened(&store, error)),
        }
    }
}

fn verdict(data: &Path, store: &Path, probe: Option<&Probe>) -> Result<Verdict, OpenError> {
    if let Some(probe) = probe {
        return probe::run(probe, data, &store.join(Place::Records.name()));
    }
    match inspect(store, false) {
        Ok(report) => {
            let fatal = report.damages.iter().find(|damage| damage.is_fatal());
            Ok(fatal.map_or(Verdict::Usable, |damage| {
                Verdict::Damaged(damage.to_string())
            }))
        }
        Err(error @ FsckError::Newer { .. }) => Err(OpenError::Newer(error.to_string())),
        Err(error) => Err(OpenError::Io {
            path: store.to_path_buf(),
            reason: error.to_string(),
        }),
    }
}

/// Puts the damaged store aside and makes a new one.
fn replace(
    data: &Path,
    on_damage: OnDamage,
    reason: String,
    lock: &Arc<Lock>,
) -> Result<OpenStore, OpenError> {
    let store = data.join(STORE);
    if on_damage == OnDamage::Refuse {
        return Err(OpenError::Damaged {
            path: store,
            reason,
        });
    }
    let aside = aside(data).map_err(|error| io_error(data, &error))?;
    let Some(path) = aside else {
        return Err(OpenError::TooManyDamaged {
            path: store,
            reason,
        });
    };
    fs::rename(&store, &path)
        .and_then(|()| files::sync_folder(data))
        .map_err(|error| io_error(&store, &error))?;
    tracing::error!(path = %path.display(), %reason, "a damaged store was put aside; a new one is made");
    make(data)?;
    let opened = open_parts(&store, lock).map_err(|error| unopened(&store, error))?;
    Ok(OpenStore {
        rebuilt: Some(Quarantined { path, reason }),
        ..opened
    })
}

/// Where to put a damaged store; `None` when there are too many already.
fn aside(data: &Path) -> io::Result<Option<PathBuf>> {
    let mut count = 0;
    for entry in fs::read_dir(data)? {
        let name = entry?.file_name();
        count += usize::from(name.to_string_lossy().starts_with(BAD));
    }
    if count >= QUARANTINED_MAX {
        return Ok(None);
    }
    let mut seconds = unix_seconds();
    loop {
        let path = data.join(format!("{BAD}{seconds}"));
        if !path.exists() {
            return Ok(Some(path));
        }
        seconds += 1; // at most QUARANTINED_MAX times
    }
}

/// A date for whoever looks at the folder; nothing is decided by it.
#[allow(clippy::disallowed_methods)]
fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Makes a new store beside its place and moves it there whole.
fn make(data: &Path) -> Result<(), OpenError> {
    let making = data.join(MAKING);
    let io = |error: io::Error| io_error(&making, &error);
    if making.exists() {
        fs::remove_dir_all(&making).map_err(io)?;
    }
    fs::create_dir_all(making.join(Place::Chunks.name())).map_err(io)?;
    let mut id = [0; 8];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| io(error.into()))?;
    files::replace_sealed(&making.join(Place::Id.name()), &id).map_err(io)?;
    LimitFile::create(&making.join(Place::Limit.name())).map_err(io)?;
    SledStore::create(&making.join(Place::Records.name()))
        .and_then(|()| RaftLog::create(&making.join(Place::Raft.name())))
        .map_err(|error| unopened(&making, error))?;
    files::sync_tree(&making)
        .and_then(|()| fs::rename(&making, data.join(STORE)))
        .and_then(|()| files::sync_folder(data))
        .map_err(io)
}

fn open_parts(store: &Path, lock: &Arc<Lock>) -> Result<OpenStore, Unopened> {
    let place = |place: Place| store.join(place.name());
    let id = read_id(&place(Place::Id))?;
    let refused = |error: io::Error| Unopened::Refused(error.to_string());
    let chunks = Chunks::open(&place(Place::Chunks), Some(Arc::clone(lock))).map_err(refused)?;
    Ok(OpenStore {
        id,
        records: SledStore::open(&place(Place::Records), id)?
            .naming(chunks.clone())
            .locked(lock),
        raft: RaftLog::open(&place(Place::Raft), Some(lock))?,
        limit: LimitFile::open(&place(Place::Limit))?,
        chunks,
        rebuilt: None,
    })
}

pub(crate) fn read_id(path: &Path) -> Result<StoreId, Unopened> {
    let content = files::read_sealed(path).map_err(|error| Unopened::Refused(error.to_string()))?;
    let damaged = || Unopened::Damaged("the store's id is damaged".into());
    match content {
        Content::Payload(payload) => {
            let bytes = payload.try_into().map_err(|_| damaged())?;
            Ok(StoreId(u64::from_be_bytes(bytes)))
        }
        Content::Missing => Err(Unopened::Damaged("the store's id is gone".into())),
        Content::Broken(Broken::Newer) => Err(Unopened::Newer),
        Content::Broken(Broken::Damaged) => Err(damaged()),
    }
}

fn unopened(path: &Path, error: Unopened) -> OpenError {
    let path = path.to_path_buf();
    match error {
        Unopened::Damaged(reason) => OpenError::Damaged { path, reason },
        Unopened::Newer => OpenError::Newer(format!(
            "the store in {} was written by a later version",
            path.display()
        )),
        Unopened::Refused(reason) => OpenError::Io { path, reason },
    }
}

fn io_error(path: &Path, error: &io::Error) -> OpenError {
    OpenError::Io {
        path: path.to_path_buf(),
        reason: error.to_string(),
    }
}

/// A part of a store.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    Id,
    Records,
    Raft,
    Chunks,
    Limit,
}

impl Place {
    /// Its name in the store's folder.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Place::Id => "id",
            Place::Records => "records",
            Place::Raft => "raft",
            Place::Chunks => "chunks",
            Place::Limit => "heart-limit",
        }
    }
}

/// The store's folder in the data folder.
pub(crate) const STORE: &str = "store";
const MAKING: &str = "store.making";
const BAD: &str = "store.bad-";

/// Damaged stores that may lie aside. Nothing removes them but a person: each may hold the last copy
/// of something. More than these say that the disk itself should be looked at.
pub const QUARANTINED_MAX: usize = 4;
