//! The number of the last flushed commit, kept beside the database.
//!
//! Owns: the one piece of evidence that a database which lost its last commits cannot have lost with
//! them. sled takes a damaged end of its log for a write that was torn, and opens without a word.
//!
//! The mark is written after each flush of the database and before anything is acknowledged, but it
//! is not always flushed itself, since that would double the cost of every commit:
//!
//! - **When the process is killed** the mark is exact: what was written to a file outlives its writer.
//! - **When the machine loses power** the mark may be older than the last commit: by what was written
//!   since the last second or, when commits ended, since the kernel last wrote back (30 s as a rule).
//!   Commits that hold a promise or a vote flush it. So a lost *promise* is always noticed; a lost
//!   record is not when a power failure and damage of just the last commits meet.
//! - **When the disk lies** about what it flushed, and loses both, nothing here notices.
//!
//! A mark that is behind the database says nothing: the process ended between the two writes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use understudy_protocol::time::Time;

use crate::value::{seal, unseal};

/// What a mark says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marked {
    /// The last commit that was flushed.
    pub(crate) number: u64,
    /// The last of them that holds something which must never be forgotten: a promise or a vote.
    pub(crate) binding: u64,
}

/// What was found when the mark was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Intact.
    Intact(Marked),
    /// One of its two places is damaged, so this may be the commit before.
    Half(Marked),
    /// Gone.
    Damaged,
}

/// An open mark.
#[derive(Debug)]
pub(crate) struct Mark {
    file: File,
    synced_at: Time,
}

impl Mark {
    pub(crate) fn open(path: &Path) -> io::Result<(Mark, Found)> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let places = [read_place(&file, 0)?, read_place(&file, 1)?];
        let found = match places {
            [Some(one), Some(other)] if one.number > other.number => Found::Intact(one),
            [Some(_), Some(other)] => Found::Intact(other),
            [Some(only), None] | [None, Some(only)] => Found::Half(only),
            [None, None] => Found::Damaged,
        };
        let mark = Mark {
            file,
            synced_at: Time::ZERO,
        };
        Ok((mark, found))
    }

    /// Writes the mark; flushes it when it must be or has not been for long.
    pub(crate) fn write(&mut self, now: Time, marked: Marked) -> io::Result<()> {
        self.write_place(marked.number % 2, marked)?;
        if marked.binding == marked.number || now.since(self.synced_at) >= SYNC_EVERY {
            self.sync(now)?;
        }
        Ok(())
    }

    /// Writes both places and flushes: a new mark, or one whose half was damaged.
    pub(crate) fn write_both(&mut self, now: Time, marked: Marked) -> io::Result<()> {
        self.write_place(0, marked)?;
        self.write_place(1, marked)?;
        self.sync(now)
    }

    pub(crate) fn sync(&mut self, now: Time) -> io::Result<()> {
        self.synced_at = now;
        self.file.sync_data()
    }

    fn write_place(&self, place: u64, marked: Marked) -> io::Result<()> {
        let mut payload = [0; PAYLOAD_BYTES];
        payload[..8].copy_from_slice(&marked.number.to_be_bytes());
        payload[8..].copy_from_slice(&marked.binding.to_be_bytes());
        self.file
            .write_all_at(&seal(KEY, &payload), place * PLACE_BYTES)
    }
}

fn read_place(file: &File, place: u64) -> io::Result<Option<Marked>> {
    let mut bytes = [0; SEALED_BYTES];
    match file.read_exact_at(&mut bytes, place * PLACE_BYTES) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let payload = unseal(KEY, &bytes).ok();
    let payload = payload.and_then(|payload| payload.as_chunks::<8>().0.try_into().ok());
    Ok(payload.map(|[number, binding]: [[u8; 8]; 2]| Marked {
        number: u64::from_be_bytes(number),
        binding: u64::from_be_bytes(binding),
    }))
}

/// Seals every mark.
const KEY: &[u8] = b"mark";
const PAYLOAD_BYTES: usize = 16;
const SEALED_BYTES: usize = PAYLOAD_BYTES + 6;

/// The two places lie in different pages, so that no torn write hits both.
const PLACE_BYTES: u64 = 4_096;

/// How old a flushed mark may grow while commits go on: one flush a second is no load.
const SYNC_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_newer_place_counts_and_a_damaged_one_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mark");
        let at = |number| Marked { number, binding: 3 };
        let (mut mark, found) = Mark::open(&path).unwrap();
        assert_eq!(found, Found::Damaged, "none was ever written");
        mark.write_both(Time::ZERO, at(4)).unwrap();
        mark.write(Time::ZERO, at(5)).unwrap();
        assert_eq!(Mark::open(&path).unwrap().1, Found::Intact(at(5)));

        mark.file.write_all_at(&[0xFF], PLACE_BYTES + 9).unwrap();
        assert_eq!(Mark::open(&path).unwrap().1, Found::Half(at(4)));
        mark.file.set_len(7).unwrap();
        assert_eq!(Mark::open(&path).unwrap().1, Found::Damaged);
    }
}
