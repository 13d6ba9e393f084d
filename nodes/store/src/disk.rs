//! How full the disk is.
//!
//! Owns: the watermark from which on records are refused, long before the disk is full: sled does not
//! survive a full one without being opened again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use understudy_protocol::time::Time;
use understudy_supervision::clock;
use understudy_supervision::store::StoreError;

/// Whether the file system under a folder has room for records, now.
///
/// # Errors
/// [`StoreError::DiskFull`], in words for people.
pub fn room_under(folder: &Path) -> Result<(), StoreError> {
    Watermark::new(folder).look()
}

/// Watches the file system under a folder.
#[derive(Debug)]
pub(crate) struct Watermark {
    folder: PathBuf,
    looked_at: Option<Time>,
    used_percent: u8,
}

impl Watermark {
    pub(crate) fn new(folder: &Path) -> Watermark {
        Watermark {
            folder: folder.to_path_buf(),
            looked_at: None,
            used_percent: 0,
        }
    }

    /// Whether there is room.
    pub(crate) fn look(&mut self) -> Result<(), StoreError> {
        self.look_within(LOOK_EVERY)
    }

    /// Whether there is room: as the last look found, unless it is a second old. So whoever asked a
    /// moment ago gets the same answer when it commits.
    pub(crate) fn last_look(&mut self) -> Result<(), StoreError> {
        self.look_within(LOOK_LASTS)
    }

    fn look_within(&mut self, age: Duration) -> Result<(), StoreError> {
        let now = clock::now();
        if self.looked_at.is_none_or(|looked| now.since(looked) >= age) {
            // A file system that cannot be asked is not taken for a full one: the write will tell.
            self.used_percent = used_percent(&self.folder).unwrap_or(0);
            self.looked_at = Some(now);
            metrics::gauge!("understudy_store_disk_used_percent").set(f64::from(self.used_percent));
        }
        if self.used_percent < USED_PERCENT_MAX {
            return Ok(());
        }
        Err(StoreError::DiskFull {
            path: self.folder.clone(),
            used_percent: self.used_percent,
            limit_percent: USED_PERCENT_MAX,
        })
    }
}

/// How much of what an ordinary user may fill is filled.
fn used_percent(folder: &Path) -> rustix::io::Result<u8> {
    let stat = rustix::fs::statvfs(folder)?;
    let used = stat.f_blocks.saturating_sub(stat.f_bfree);
    let usable = used.saturating_add(stat.f_bavail).max(1);
    let percent = u128::from(used) * 100 / u128::from(usable);
    Ok(percent.min(100) as u8)
}

/// Records are refused from here on. What is left must hold sled's own rewriting and everything else
/// on the disk until somebody comes.
pub const USED_PERCENT_MAX: u8 = 85;

/// A disk of 10 GiB that takes 1 GiB/s gains a few percent between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const LOOK_LASTS: Duration = Duration::from_secs(1);
