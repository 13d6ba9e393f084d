//! One process a store.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Held while anything of the store is open. The operating system lets go of it when the process
/// ends, however it ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// Why there is no lock.
#[derive(Debug)]
pub(crate) enum NoLock {
    InUse,
    Io(io::Error),
}

impl Lock {
    /// Takes the lock of a data folder, which is made if it is not there.
    pub(crate) fn take(data: &Path) -> Result<Lock, NoLock> {
        fs::create_dir_all(data).map_err(NoLock::Io)?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(data.join("lock"))
            .map_err(NoLock::Io)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock { _file: file }),
            Err(Errno::WOULDBLOCK) => Err(NoLock::InUse),
            Err(error) => Err(NoLock::Io(error.into())),
        }
    }
}
