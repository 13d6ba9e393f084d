//! openraft's log, on the store's [`RaftLog`].
//!
//! Owns: what an entry and a vote look like on the disk (postcard around the directory's own frames),
//! and telling the core what the log holds: a fact is told when its entry is flushed, and before
//! openraft hears that it is, so before any leader can count it (rule L4).
//!
//! The commit index is not kept: that would be a flush for each commit, and a node that starts learns
//! it from its leader. Nor is it kept that a vote was won: a node that restarts has voted for itself in
//! that term, and leads only after another election.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use bytes::Bytes;
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use understudy_protocol::id::{StoreId, Term};
use understudy_store::RaftLog;
use understudy_supervision::store::StoreError;

use super::RaftEvent;
use super::outbox::Outbox;
use super::types::{IoError, RaftEntry, RaftLogId, StorageError, Types, Vote, fact_of, index_of};

#[derive(Clone)]
pub(super) struct Log {
    pub(super) me: StoreId,
    pub(super) store: RaftLog,
    pub(super) outbox: Arc<Outbox>,
}

impl Log {
    /// Runs `ask`, which may wait for the disk, beside the runtime's own threads.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&RaftLog) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        let store = self.store.clone();
        let asked = tokio::task::spawn_blocking(move || ask(&store)).await;
        asked.unwrap_or_else(|gone| Err(LogError(gone.to_string())))
    }

    /// The entries of a range of openraft's indexes.
    pub(super) async fn read(&self, from: u64, to: u64) -> Result<Vec<RaftEntry>, LogError> {
        self.blocking(move |store| {
            let found = store.entries(from..to)?;
            found.iter().map(|(_, bytes)| decode(bytes)).collect()
        })
        .await
    }

    /// The index after the last entry, and the last id that was purged.
    pub(super) async fn ends(&self) -> Result<(u64, Option<RaftLogId>), LogError> {
        self.blocking(|store| {
            let state = store.state();
            let purged: Option<RaftLogId> = state.purged.as_deref().map(decode).transpose()?;
            let end = state.last_index.map_or(0, |last| last + 1);
            Ok((end, purged))
        })
        .await
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<RaftEntry>, StorageError> {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(from) => from.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(to) => to.saturating_add(1),
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        let read = self.read(from, to).await;
        read.map_err(|error| IoError::read_logs(&error).into())
    }

    /// As many as fit one request, at least one.
    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<RaftEntry>, StorageError> {
        let read = self.blocking(move |store| {
            let mut entries = Vec::new();
            let mut bytes_left = APPEND_BYTES;
            for index in start..end {
                // One at a time: a few of the largest must not be read only to be left out.
                let found = store.entries(index..index + 1)?;
                let Some((_, bytes)) = found.first() else {
                    break;
                };
                if bytes.len() > bytes_left && !entries.is_empty() {
                    break;
                }
                bytes_left = bytes_left.saturating_sub(bytes.len());
                entries.push(decode(bytes)?);
            }
            Ok(entries)
        });
        read.await
            .map_err(|error| IoError::read_logs(&error).into())
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Log;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let read = self.blocking(|store| {
            let state = store.state();
            let last_purged_log_id: Option<RaftLogId> =
                state.purged.as_deref().map(decode).transpose()?;
            let last = match state.last_index {
                Some(last) => store.entries(last..last + 1)?,
                None => Vec::new(),
            };
            let last = last.first().map(|(_, bytes)| decode::<RaftEntry>(bytes));
            let last_log_id = last.transpose()?.map(|entry| entry.log_id);
            Ok(LogState {
                last_purged_log_id,
                last_log_id: last_log_id.or(last_purged_log_id),
            })
        });
        read.await
            .map_err(|error| IoError::read_logs(&error).into())
    }

    async fn get_log_reader(&mut self) -> Log {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let bytes = encode(vote).map_err(|error| IoError::write_vote(&error))?;
        let saved = self
            .blocking(move |store| Ok(store.save_vote(bytes)?))
            .await;
        saved.map_err(|error| IoError::write_vote(&error))?;
        // A leader's own vote is saved before its first entry: so the core hears that this node leads
        // before it applies an entry of that term.
        let won = vote.committed && vote.leader_id.voted_for == Some(self.me.0);
        let term = Term(vote.leader_id.term);
        let leads = won.then_some(term);
        let told = self.outbox.tell(move |told| {
            let changes = told.leads != leads;
            told.leads = leads;
            let leading = leads.is_some();
            changes.then_some(RaftEvent::Role { leading, term })
        });
        told.await
            .map_err(|error| IoError::write_vote(&error).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        let read = self.blocking(|store| {
            store
                .state()
                .vote
                .as_deref()
                .map(decode::<Vote>)
                .transpose()
        });
        let mut vote = read.await.map_err(|error| IoError::read_vote(&error))?;
        if let Some(vote) = vote
            .as_mut()
            .filter(|vote| vote.leader_id.voted_for == Some(self.me.0))
        {
            // openraft would lead on without an election, and without an entry that says how far the
            // directory must be applied before it may be led (see the core).
            vote.committed = false;
        }
        Ok(vote)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        flushed: LogFlushed<Types>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut values = Vec::new();
        let mut facts = Vec::new();
        for entry in entries {
            let bytes =
                encode(&entry).map_err(|error| IoError::write_log_entry(entry.log_id, &error))?;
            values.push((entry.log_id.index, bytes));
            facts.extend(fact_of(&entry));
        }
        let (done, is_done) = oneshot::channel();
        let done = Box::new(move |written| {
            // Nobody waits any more when Raft is being stopped.
            let _ = done.send(written);
        });
        self.store.append(values, done);
        let written = match is_done.await {
            Ok(written) => written.map_err(LogError::from),
            Err(_) => Err(LogError("the log's writer is gone".into())),
        };
        if let Err(error) = written {
            flushed.log_io_completed(Err(io::Error::other(error)));
            return Ok(());
        }
        for (id, fact) in facts {
            let told = self.outbox.tell(move |told| {
                told.open.insert(id.index, (id, fact.clone()));
                Some(RaftEvent::Held(id, fact))
            });
            told.await.map_err(|error| IoError::write_logs(&error))?;
        }
        flushed.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, from: RaftLogId) -> Result<(), StorageError> {
        let cut = self
            .blocking(move |store| Ok(store.truncate(from.index)?))
            .await;
        cut.map_err(|error| IoError::write_logs(&error))?;
        let from = index_of(from.index);
        let told = self.outbox.tell(move |told| {
            told.open.split_off(&from);
            Some(RaftEvent::Truncated(from))
        });
        told.await
            .map_err(|error| IoError::write_logs(&error).into())
    }

    async fn purge(&mut self, upto: RaftLogId) -> Result<(), StorageError> {
        let meta = encode(&upto).map_err(|error| IoError::write_logs(&error))?;
        let purged = self
            .blocking(move |store| Ok(store.purge(upto.index, meta)?))
            .await;
        purged.map_err(|error| IoError::write_logs(&error).into())
    }
}

/// The disk failed, or what it holds cannot be read: Raft stops, and the node with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LogError(pub(super) String);

impl From<StoreError> for LogError {
    fn from(error: StoreError) -> LogError {
        LogError(error.to_string())
    }
}

pub(super) fn encode<T: Serialize>(value: &T) -> Result<Bytes, LogError> {
    let bytes = postcard::to_stdvec(value).map_err(|error| LogError(error.to_string()))?;
    Ok(bytes.into())
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, LogError> {
    postcard::from_bytes(bytes).map_err(|error| LogError(format!("unreadable: {error}")))
}

/// Entries of one request, in bytes: what a slow link of 100 Mbit/s carries in the time of a heartbeat.
/// A single entry may be four times this.
const APPEND_BYTES: usize = 1024 * 1024;
