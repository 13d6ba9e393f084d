//! The heart's one number on disk (rule L3).
//!
//! Owns: the longest TTL that this store's voter ever promised by. Never forgets it silently: a voter
//! that restarts waits that long, so a damaged file makes the store useless.

use std::io;
use std::path::{Path, PathBuf};

use understudy_protocol::wire::heart::Ttl;

use crate::files::{self, Content};
use crate::ledger::Unopened;
use crate::value::Broken;

/// The flushed limit.
#[derive(Clone, Debug)]
pub struct LimitFile {
    path: PathBuf,
    limit: Ttl,
}

impl LimitFile {
    pub(crate) fn create(path: &Path) -> io::Result<()> {
        files::replace_sealed(path, &0_u32.to_be_bytes())
    }

    pub(crate) fn open(path: &Path) -> Result<LimitFile, Unopened> {
        let content =
            files::read_sealed(path).map_err(|error| Unopened::Refused(error.to_string()))?;
        let damaged = || Unopened::Damaged("the heart's limit is damaged".into());
        match content {
            Content::Payload(payload) => {
                let bytes = payload.try_into().map_err(|_| damaged())?;
                Ok(LimitFile {
                    path: path.to_path_buf(),
                    limit: Ttl::from_millis(u32::from_be_bytes(bytes)),
                })
            }
            Content::Missing => Err(Unopened::Damaged("the heart's limit is gone".into())),
            Content::Broken(Broken::Newer) => Err(Unopened::Newer),
            Content::Broken(Broken::Damaged) => Err(damaged()),
        }
    }

    /// The limit; zero in a new store.
    pub fn get(&self) -> Ttl {
        self.limit
    }

    /// Keeps a new limit, flushed when `Ok`. After an error the old one is still what
    /// [`LimitFile::get`] says, and the disk holds one of the two.
    pub fn put(&mut self, limit: Ttl) -> io::Result<()> {
        files::replace_sealed(&self.path, &limit.as_millis().to_be_bytes())?;
        self.limit = limit;
        Ok(())
    }
}
