//! The records of every child, and the promises of this store, in sled.
//!
//! Owns: the keys, one commit for many writes, and telling what was lost when it is opened (rules R3
//! and R8). Never decides what is written: that is
//! [`Replica`](understudy_protocol::cluster::replication::Replica)'s.
//!
//! One tree, so that one batch is one commit. The first byte of a key says what it is:
//!
//! | key | value |
//! |---|---|
//! | `c`, child | the child's promise |
//! | `d`, child | present: its chain is damaged after its last record |
//! | `m` | the last commit's number and what all values add up to |
//! | `p`, first slot | a run of slots: one past its last, its promise |
//! | `r`, child, 0, place | the record, in the codec's frame |
//! | `x`, kind, … | a part of the cut that nobody has confirmed |
//!
//! Numbers in keys are big-endian, so that order is theirs; no child's id holds a zero byte.
//!
//! The heads of all chains stand in memory: what to delete is known without reading, and a record
//! that a page silently lost is missed when it is read.

mod index;
mod scan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use understudy_protocol::cluster::replication::{Opened, Write};
use understudy_protocol::id::{ChildId, Seq, StoreId};
use understudy_protocol::wire::codec::{RECORDS_BUDGET_BYTES, records_that_fit};
use understudy_protocol::wire::codec::{decode_whole, record_bytes_max};
use understudy_protocol::wire::content::Pieces;
use understudy_protocol::wire::record::{Head, Record};
use understudy_protocol::wire::replica::CHAIN_RECORDS_MAX;
use understudy_protocol::wire::step::named_by;
use understudy_supervision::store::{CheckpointStore, ReadError, Scrubbed, StoreError};

use crate::chunks::{ChunkName, Chunks};
use crate::damage::Damage;
use crate::disk::Watermark;
use crate::ledger::{self, Ledger, Unopened};
use crate::lock::Lock;
use index::Index;
pub(crate) use scan::Found;

/// The records of one store. Used from one thread.
pub struct SledStore {
    id: StoreId,
    ledger: Ledger,
    index: Index,
    disk: Watermark,
    opened: Option<Opened>,
    chunks: Option<Chunks>,
    /// The chunks that each record names, as often as it does.
    named: BTreeMap<ChildId, BTreeMap<Seq, Vec<ChunkName>>>,
    /// What the records were found to name, until [`SledStore::naming`] knows the chunks.
    found: BTreeMap<ChildId, BTreeMap<Seq, Vec<Pieces>>>,
    /// Outlives the ledger: fields are dropped in order.
    _lock: Option<Arc<Lock>>,
}

/// Without its content.
impl fmt::Debug for SledStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SledStore")
            .field("id", &self.id)
            .field("ledger", &self.ledger)
            .finish_non_exhaustive()
    }
}

impl SledStore {
    pub(crate) fn create(folder: &Path) -> Result<(), Unopened> {
        Ledger::create(folder, &Index::default().summary())
    }

    /// Opens the records; what was found lost is flushed as lost.
    pub(crate) fn open(folder: &Path, id: StoreId) -> Result<SledStore, Unopened> {
        let (mut ledger, stamp) = Ledger::open(folder)?;
        let found = Found::scan(ledger.db(), &stamp)?;
        if let Some(fatal) = found.damages.iter().find(|damage| damage.is_fatal()) {
            return Err(Unopened::Damaged(fatal.to_string()));
        }
        for damage in &found.damages {
            tracing::warn!(store = %id, %damage, "the store was opened with damage");
        }
        if !found.damages.is_empty() {
            let (batch, summary) = found.mending();
            ledger
                .commit(batch, &summary, true)
                .and_then(|()| ledger.mend_mark())
                .map_err(|error| Unopened::Refused(error.to_string()))?;
        }
        let (index, found) = found.into_index();
        Ok(SledStore {
            id,
            ledger,
            disk: Watermark::new(folder),
            opened: Some(index.opened()),
            index,
            chunks: None,
            named: BTreeMap::new(),
            found,
            _lock: None,
        })
    }

    pub(crate) fn locked(mut self, lock: &Arc<Lock>) -> SledStore {
        self._lock = Some(Arc::clone(lock));
        self
    }

    /// Has these chunks counted: what records name stays, from their opening on.
    pub(crate) fn naming(mut self, chunks: Chunks) -> SledStore {
        for (child, found) in std::mem::take(&mut self.found) {
            let named = self.named.entry(child).or_default();
            for (seq, pieces) in found {
                let names = names_in(&chunks, &pieces);
                chunks.count(&names, &[]);
                named.insert(seq, names);
            }
        }
        self.chunks = Some(chunks);
        self
    }

    /// Has counted what these writes have changed; they are flushed.
    fn count(&mut self, batch: &[Write]) {
        let Some(chunks) = &self.chunks else { return };
        let (mut new, mut old) = (Vec::new(), Vec::new());
        for write in batch {
            match write {
                Write::Put(record) => {
                    let Ok(pieces) = named_by(record) else {
                        continue;
                    };
                    if pieces.is_empty() {
                        continue;
                    }
                    let names = names_in(chunks, &pieces);
                    new.extend_from_slice(&names);
                    let named = self.named.entry(record.child.clone()).or_default();
                    old.extend(named.insert(record.seq, names).unwrap_or_default());
                }
                Write::Truncate { child, after } => {
                    if let Some(named) = self.named.get_mut(child) {
                        old.extend(named.split_off(&after.next()).into_values().flatten());
                    }
                }
                Write::Prune { child, from } => {
                    if let Some(named) = self.named.get_mut(child) {
                        let rest = named.split_off(from);
                        let pruned = std::mem::replace(named, rest);
                        old.extend(pruned.into_values().flatten());
                    }
                }
                Write::Drop { child } => {
                    let dropped = self.named.remove(child).unwrap_or_default();
                    old.extend(dropped.into_values().flatten());
                }
                Write::Promise { .. }
                | Write::ChildPromise { .. }
                | Write::Damaged { .. }
                | Write::Cut(_) => {}
            }
        }
        if !new.is_empty() || !old.is_empty() {
            chunks.count(&new, &old);
        }
    }

    /// Looks through a database without changing it.
    pub(crate) fn inspect(folder: &Path) -> Result<Found, Unopened> {
        let (ledger, stamp) = Ledger::open(folder)?;
        Found::scan(ledger.db(), &stamp)
    }

    /// Whether the record names chunks that are not there.
    fn lacks_chunks(&self, child: &ChildId, seq: Seq) -> bool {
        let names = self.named.get(child).and_then(|named| named.get(&seq));
        let (Some(chunks), Some(names)) = (&self.chunks, names) else {
            return false;
        };
        !chunks.missing(names.iter().copied()).is_empty()
    }

    /// The record of this name, or that it is damaged: gone, unreadable, or another.
    fn read_record(&self, child: &ChildId, head: Head) -> Result<Record, ReadError> {
        let damaged = ReadError::Damaged { at: head.seq };
        let value = match self.ledger.db().get(record_key(child, head.seq)) {
            Ok(value) => value.ok_or(damaged.clone())?,
            Err(error) => match ledger::unopened(&error) {
                // sled found a page damaged; this record is on it.
                Unopened::Damaged(_) => return Err(damaged),
                _ => return Err(self.ledger.read_error(&error).into()),
            },
        };
        let record: Record = decode_whole(&value).map_err(|_| damaged.clone())?;
        if record.child != *child || record.head() != head || !record.is_intact() {
            return Err(damaged);
        }
        Ok(record)
    }
}

impl CheckpointStore for SledStore {
    fn store_id(&self) -> StoreId {
        self.id
    }

    fn opened(&mut self) -> Result<Opened, StoreError> {
        self.opened
            .take()
            .ok_or(StoreError::Invalid("what was found is asked for once"))
    }

    fn room(&mut self) -> Result<(), StoreError> {
        self.ledger.standing()?;
        self.disk.look()
    }

    fn commit(&mut self, batch: Vec<Write>) -> Result<(), StoreError> {
        self.ledger.standing()?;
        if batch.is_empty() {
            return Ok(());
        }
        if batch.iter().any(|write| matches!(write, Write::Put(_))) {
            // Whoever asked for room a moment ago gets the same answer here.
            self.disk.last_look()?;
        }
        let staged = self.index.stage(&batch)?;
        let binding = staged.is_binding();
        let summary = staged.summary();
        let mut writes = sled::Batch::default();
        for (key, value) in staged.writes() {
            match value {
                Some(value) => writes.insert(key.as_slice(), value.as_slice()),
                None => writes.remove(key.as_slice()),
            }
        }
        self.ledger.commit(writes, &summary, binding)?;
        staged.settle(&mut self.index);
        self.count(&batch);
        Ok(())
    }

    fn read(&mut self, child: &ChildId, after: Seq) -> Result<Vec<Record>, ReadError> {
        let heads = self.index.heads(child);
        let wanted = heads.filter(|head| head.seq > after);
        let mut records = Vec::new();
        let mut bytes = 0;
        for head in wanted.take(CHAIN_RECORDS_MAX) {
            let record = self.read_record(child, *head)?;
            bytes += record_bytes_max(&record);
            if bytes > RECORDS_BUDGET_BYTES {
                break;
            }
            records.push(record);
        }
        debug_assert_eq!(records_that_fit(&records), records.len());
        Ok(records)
    }

    /// What sled holds in its cache is not read from the disk again.
    fn scrub(&mut self, after: Option<&ChildId>) -> Result<Scrubbed, StoreError> {
        let mut scrubbed = Scrubbed::default();
        let mut bytes = 0;
        for (child, heads) in self.index.chains_after(after) {
            for head in heads {
                if self.lacks_chunks(child, head.seq) {
                    scrubbed.damaged.push((child.clone(), head.seq));
                    break;
                }
                match self.read_record(child, *head) {
                    Ok(record) => bytes += record_bytes_max(&record),
                    Err(ReadError::Damaged { at }) => {
                        scrubbed.damaged.push((child.clone(), at));
                        break;
                    }
                    Err(ReadError::Store(error)) => return Err(error),
                }
            }
            if bytes >= SCRUB_BYTES {
                scrubbed.next = Some(child.clone());
                break;
            }
        }
        Ok(scrubbed)
    }
}

/// Damage by child, and what else there is.
pub(crate) type Damages = Vec<Damage>;

/// The chunks that these pieces name.
fn names_in(chunks: &Chunks, pieces: &[Pieces]) -> Vec<ChunkName> {
    let list = |name| chunks.get(name).ok();
    let mut names = Vec::new();
    for pieces in pieces {
        names.extend(names_of(pieces, list).unwrap_or_else(|known| {
            tracing::error!(
                ?pieces,
                "what these are called is lost: no chunk is removed"
            );
            chunks.keep_all();
            known
        }));
    }
    names
}

/// The chunks that a value names, its list among them; only the list where that cannot be had.
fn names_of(
    pieces: &Pieces,
    list: impl Fn(ChunkName) -> Option<Vec<u8>>,
) -> Result<Vec<ChunkName>, Vec<ChunkName>> {
    let own = pieces.list();
    let list = own.and_then(list);
    let own = own.into_iter();
    match pieces.names(list.as_deref()) {
        Ok(names) => {
            let kept = names.into_iter().filter(|name| *name != ChunkName::ZEROS);
            Ok(own.chain(kept).collect())
        }
        Err(_) => Err(own.collect()),
    }
}

fn record_key(child: &ChildId, seq: Seq) -> Vec<u8> {
    let mut key = child_key(RECORD, child);
    key.push(0);
    key.extend_from_slice(&seq.0.to_be_bytes());
    key
}

fn child_key(space: u8, child: &ChildId) -> Vec<u8> {
    let mut key = vec![space];
    key.extend_from_slice(child.as_str().as_bytes());
    key
}

type Writes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// One step of a scrub: a few milliseconds of a disk, and of whoever waits behind it.
const SCRUB_BYTES: usize = 1024 * 1024;

const CHILD_PROMISE: u8 = b'c';
const DAMAGED: u8 = b'd';
const PROMISE: u8 = b'p';
const RECORD: u8 = b'r';
const CUT: u8 = b'x';
