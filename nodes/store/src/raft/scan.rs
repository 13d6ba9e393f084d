//! Looking through a Raft log when it is opened.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;

use super::snapshot::{self, LoadError};
use super::{COMMITTED, ENTRY, PURGED, RaftState, VOTE, index_of, value_tag};
use crate::ledger::{Missing, STAMP, Stamp, Unopened, unopened};
use crate::value::{Broken, Sum, unseal};

/// A whole log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    pub(super) state: RaftState,
    pub(super) tags: BTreeMap<Vec<u8>, u64>,
    pub(super) sum: Sum,
    pub(super) purged: Option<u64>,
    /// How many entries are kept.
    pub(crate) entries: u64,
}

impl Found {
    /// Everything that the log holds, or what is wrong with it.
    pub(crate) fn scan(db: &sled::Db, stamp: &Stamp, folder: &Path) -> Result<Found, Unopened> {
        let mut found = Found::default();
        let mut first = None;
        let mut last: Option<u64> = None;
        for pair in db.iter() {
            let (key, value) = pair.map_err(|error| unopened(&error))?;
            if key == STAMP {
                continue;
            }
            let payload = unseal(&key, &value).map_err(|broken| match broken {
                Broken::Damaged => damaged("a value is damaged"),
                Broken::Newer => Unopened::Newer,
            })?;
            let added = value_tag(&key, payload);
            found.sum.add(added);
            found.tags.insert(key.to_vec(), added);
            match &key[..] {
                [ENTRY, ..] => {
                    let index = index_of(&key).ok_or_else(|| damaged("an entry's key"))?;
                    if last.is_some_and(|last| last.checked_add(1) != Some(index)) {
                        return Err(damaged("an entry is gone"));
                    }
                    first.get_or_insert(index);
                    last = Some(index);
                    found.entries += 1;
                }
                VOTE => found.state.vote = Some(Bytes::copy_from_slice(payload)),
                COMMITTED => found.state.committed = Some(Bytes::copy_from_slice(payload)),
                PURGED => {
                    let (upto, meta) = payload
                        .split_first_chunk::<8>()
                        .ok_or_else(|| damaged("what was purged"))?;
                    found.purged = Some(u64::from_be_bytes(*upto));
                    found.state.purged = Some(Bytes::copy_from_slice(meta));
                }
                _ => return Err(damaged("a key makes no sense")),
            }
        }
        found.state.last_index = last.max(found.purged);
        found.compare(stamp, first)?;
        let snapshot = snapshot::load(folder).map_err(|error| match error {
            LoadError::Damaged => damaged("the snapshot is damaged"),
            LoadError::Newer => Unopened::Newer,
            LoadError::Io(error) => Unopened::Refused(error),
        })?;
        if found.purged.is_some() && snapshot.is_none() {
            return Err(damaged("the snapshot of what was purged is gone"));
        }
        Ok(found)
    }

    fn compare(&self, stamp: &Stamp, first: Option<u64>) -> Result<(), Unopened> {
        match stamp.missing {
            Missing::None => {}
            Missing::Unknown => return Err(damaged("the mark beside it is damaged")),
            Missing::Last(lost) | Missing::Binding(lost) => {
                return Err(Unopened::Damaged(format!(
                    "{lost} flushed commits are gone"
                )));
            }
        }
        if stamp.summary != self.sum.to_bytes() {
            return Err(damaged("not everything is there that was written"));
        }
        match (self.purged, first) {
            (Some(purged), Some(first)) if purged.checked_add(1) != Some(first) => {
                Err(damaged("entries are gone behind what was purged"))
            }
            _ => Ok(()),
        }
    }
}

fn damaged(what: &str) -> Unopened {
    Unopened::Damaged(what.into())
}
