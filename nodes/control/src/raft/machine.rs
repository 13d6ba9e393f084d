//! openraft's state machine: the core, at the other end of the events.
//!
//! Owns: snapshots of the directory, and the membership that belongs to each. Never holds a directory
//! itself: the core applies, and is asked for what it has applied. Both go through one queue, so a
//! snapshot that is asked for after an entry contains it.

use std::io::Cursor;
use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot};
use tokio::sync::oneshot;

use understudy_protocol::cluster::directory::{Directory, Entry};
use understudy_protocol::id::LogId;
use understudy_protocol::wire::codec;

use super::log::{Log, LogError, decode, encode};
use super::outbox::Stopped;
use super::types::{IoError, Membership, Meta, RaftEntry, RaftLogId, StorageError, Types, id_of};
use super::{APPLY_AT_ONCE, RaftEvent};

pub(super) struct Machine {
    log: Log,
    applied: Option<RaftLogId>,
    membership: Membership,
}

impl Machine {
    /// As the snapshot says, before any entry is applied.
    pub(super) fn new(log: Log, meta: Option<Meta>) -> Machine {
        let (applied, membership) = meta
            .map(|meta| (meta.last_log_id, meta.last_membership))
            .unwrap_or_default();
        Machine {
            log,
            applied,
            membership,
        }
    }

    async fn apply_batch(&self, entries: Vec<(LogId, Option<Entry>)>) -> Result<(), Stopped> {
        let (done, is_done) = oneshot::channel();
        let told = self.log.outbox.tell(move |told| {
            for (id, _) in &entries {
                told.open.remove(&id.index);
            }
            Some(RaftEvent::Apply { entries, done })
        });
        told.await?;
        self.log.outbox.wait(is_done).await
    }

    async fn install(&self, directory: Directory) -> Result<(), Stopped> {
        let next = directory.applied().index.next();
        let (done, is_done) = oneshot::channel();
        let told = self.log.outbox.tell(move |told| {
            told.open = told.open.split_off(&next);
            Some(RaftEvent::Install {
                directory: Box::new(directory),
                open: told.open.values().cloned().collect(),
                done,
            })
        });
        told.await?;
        self.log.outbox.wait(is_done).await
    }

    async fn directory(&self) -> Result<Arc<Directory>, LogError> {
        let (answer, answered) = oneshot::channel();
        let asked = self
            .log
            .outbox
            .tell(|_| Some(RaftEvent::Snapshot { answer }));
        asked.await.map_err(|error| LogError(error.to_string()))?;
        let directory = self.log.outbox.wait(answered).await;
        let directory = directory.map_err(|error| LogError(error.to_string()))?;
        let applied = self.applied.as_ref().map(id_of).unwrap_or_default();
        if directory.applied() != applied {
            return Err(LogError(format!(
                "the core has applied {:?}, not {applied:?}",
                directory.applied()
            )));
        }
        Ok(directory)
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<RaftLogId>, Membership), StorageError> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<()>, StorageError>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut answers = Vec::new();
        let mut batch = Vec::new();
        let mut entries = entries.into_iter().peekable();
        while let Some(entry) = entries.next() {
            let log_id = entry.log_id;
            let entry = match entry.payload {
                EntryPayload::Normal(stored) => Some(Arc::unwrap_or_clone(stored.entry)),
                EntryPayload::Blank => None,
                EntryPayload::Membership(membership) => {
                    self.membership = Membership::new(Some(log_id), membership);
                    None
                }
            };
            batch.push((id_of(&log_id), entry));
            answers.push(());
            if batch.len() < APPLY_AT_ONCE && entries.peek().is_some() {
                continue;
            }
            self.apply_batch(std::mem::take(&mut batch))
                .await
                .map_err(|error| IoError::apply(log_id, &error))?;
            self.applied = Some(log_id);
        }
        Ok(answers)
    }

    /// Called between two entries: what the core has applied now is what the builder will keep.
    async fn get_snapshot_builder(&mut self) -> Builder {
        let id = self.applied.as_ref().map(id_of).unwrap_or_default();
        let meta = Meta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
            snapshot_id: format!("{}-{}-{:x}", id.term, id.index, self.log.me.0),
        };
        Builder {
            log: self.log.clone(),
            meta,
            directory: self.directory().await,
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &Meta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let kept = meta.clone();
        let installed = self.log.blocking(move |store| {
            let data = snapshot.into_inner();
            let directory = directory_of(&kept, &data)?;
            store.save_snapshot(&encode(&kept)?, &data)?;
            Ok(directory)
        });
        let failed = |error: &LogError| IoError::write_snapshot(Some(meta.signature()), error);
        let directory = installed.await.map_err(|error| failed(&error))?;
        let told = self.install(directory).await;
        let told = told.map_err(|error| LogError(error.to_string()));
        told.map_err(|error| failed(&error))?;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError> {
        let loaded = self.log.blocking(|store| {
            let Some((meta, data)) = store.load_snapshot()? else {
                return Ok(None);
            };
            Ok(Some((decode(&meta)?, data)))
        });
        let loaded: Option<(Meta, Vec<u8>)> = loaded
            .await
            .map_err(|error| IoError::read_snapshot(None, &error))?;
        Ok(loaded.map(|(meta, data)| Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(data)),
        }))
    }
}

pub(super) struct Builder {
    log: Log,
    meta: Meta,
    directory: Result<Arc<Directory>, LogError>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError> {
        let (meta, directory) = (self.meta.clone(), self.directory.clone());
        let built = self.log.blocking(move |store| {
            let mut data = Vec::new();
            codec::encode_frame(&*directory?, &mut data)
                .map_err(|error| LogError(error.to_string()))?;
            store.save_snapshot(&encode(&meta)?, &data)?;
            Ok(data)
        });
        let meta = self.meta.clone();
        let data = built
            .await
            .map_err(|error| IoError::write_snapshot(Some(meta.signature()), &error))?;
        Ok(Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(data)),
        })
    }
}

/// The directory that a snapshot holds; an error when it is none, or another than `meta` says.
pub(super) fn directory_of(meta: &Meta, data: &[u8]) -> Result<Directory, LogError> {
    let directory: Directory =
        codec::decode_whole(data).map_err(|error| LogError(format!("no snapshot: {error}")))?;
    let expected: LogId = meta.last_log_id.as_ref().map(id_of).unwrap_or_default();
    if directory.applied() != expected {
        return Err(LogError(format!(
            "a snapshot of {:?} that says {expected:?}",
            directory.applied()
        )));
    }
    Ok(directory)
}
