//! Content too large for a record, in files named by their SHA-256.
//!
//! Owns: writing a chunk so that it is there whole or not at all, checking it against its name when it
//! is read, and removing what no record names. Never decides what a record names: the records say.
//!
//! ```text
//!   put ──> there, unnamed ── a record names it ──> named n times ── records are dropped ──┐
//!             ▲    └── KEPT_UNNAMED ──> removed                                            │
//!             └────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Which chunks are there and flushed stands in memory, so that asking costs no disk. It is read from
//! the folder when the store is opened, and the records count what they name then.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use understudy_protocol::time::Time;
pub use understudy_protocol::wire::content::PieceName as ChunkName;
use understudy_supervision::clock;

use crate::disk::Watermark;
use crate::files;
use crate::lock::Lock;

/// Why a chunk was not kept. Nothing of it is there under its name.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// Split it into several.
    #[error("a chunk of {bytes} bytes is above the limit of {CHUNK_BYTES_MAX}")]
    TooLarge {
        /// How long it is.
        bytes: usize,
    },
    /// The disk is nearly full; chunks are taken again once there is room.
    #[error("the disk is nearly full: make room")]
    DiskFull,
    /// The operating system refused.
    #[error("the chunk was not written: {0}")]
    Io(#[source] io::Error),
}

/// Why a chunk was not read. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// There is none of this name.
    #[error("there is no chunk {0}")]
    Missing(ChunkName),
    /// Its content is not what its name says. Fetch it from another store and put it again.
    #[error("the chunk {0} is damaged")]
    Damaged(ChunkName),
    /// The operating system refused; the chunk may be sound.
    #[error("the chunk was not read: {0}")]
    Io(#[source] io::Error),
}

/// The chunks of one store. Every clone is the same.
#[derive(Clone, Debug)]
pub struct Chunks {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    shelved: Mutex<Shelved>,
    written: AtomicU64,
    _lock: Option<Arc<Lock>>,
}

/// What is known of the chunks.
#[derive(Debug, Default)]
struct Shelved {
    known: BTreeMap<ChunkName, Known>,
    /// Something that a record names could not be read, so that nobody knows what else it names:
    /// nothing is removed until the store is opened again.
    keeps_all: bool,
    /// Where the next sweep and the next look begin.
    swept: Option<ChunkName>,
    looked: Option<ChunkName>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    /// How often records of this store name it.
    named: u32,
    /// Whether it is there, flushed, and was whole when it was last read.
    is_there: bool,
    /// When it was last written, asked for or given up by a record.
    touched: Time,
}

/// What a step of the round over all chunks found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// Records name these, and they are missing or damaged: fetch them from another store.
    pub lost: Vec<ChunkName>,
    /// It was the last step of the round.
    pub is_last: bool,
}

impl Chunks {
    /// Opens the folder and removes what was never finished in it.
    pub(crate) fn open(folder: &Path, lock: Option<Arc<Lock>>) -> io::Result<Chunks> {
        let writing = folder.join(files::TEMP);
        fs::create_dir_all(&writing)?;
        for entry in fs::read_dir(&writing)? {
            fs::remove_file(entry?.path())?;
        }
        let now = clock::now();
        let mut known = BTreeMap::new();
        for shelf in shelves(folder)? {
            for entry in fs::read_dir(&shelf)? {
                if let Some(name) = parse(&entry?.file_name().to_string_lossy()) {
                    let found = Known {
                        named: 0,
                        is_there: true,
                        touched: now,
                    };
                    known.insert(name, found);
                }
            }
            // A process that was killed between the name and its flush has left the name.
            files::sync_folder(&shelf)?;
        }
        files::sync_folder(folder)?;
        let shelved = Shelved {
            known,
            ..Shelved::default()
        };
        Ok(Chunks {
            shared: Arc::new(Shared {
                folder: folder.to_path_buf(),
                shelved: Mutex::new(shelved),
                written: AtomicU64::new(0),
                _lock: lock,
            }),
        })
    }

    /// Keeps the content under its name, flushed when `Ok`. What stands there already is checked, and
    /// replaced if it is damaged.
    pub fn put(&self, content: &[u8]) -> Result<ChunkName, PutError> {
        let name = ChunkName::of(content);
        if content.len() <= CHUNK_BYTES_MAX && self.get(name).is_ok() {
            self.missing([name]);
            return Ok(name);
        }
        self.put_all(&[(name, Bytes::copy_from_slice(content))])?;
        Ok(name)
    }

    /// Writes all of these, whatever stands there, and flushes them together: when `Ok`, every one is
    /// there. After an error some may be. Blocks for some flushes of the disk.
    ///
    /// # Panics
    ///
    /// In debug builds, when a content has another name.
    pub fn put_all(&self, parts: &[(ChunkName, Bytes)]) -> Result<(), PutError> {
        if let Some((_, long)) = parts.iter().find(|(_, part)| part.len() > CHUNK_BYTES_MAX) {
            let bytes = long.len();
            return Err(PutError::TooLarge { bytes });
        }
        if parts.is_empty() {
            return Ok(());
        }
        debug_assert!(
            parts
                .iter()
                .all(|(name, part)| ChunkName::of(part) == *name)
        );
        Watermark::new(&self.shared.folder)
            .look()
            .map_err(|_| PutError::DiskFull)?;
        self.write_all(parts).map_err(PutError::Io)?;
        let now = clock::now();
        let mut shelved = self.lock();
        for (name, _) in parts {
            let known = shelved.known.entry(*name).or_insert(Known::unnamed(now));
            (known.is_there, known.touched) = (true, now);
        }
        Ok(())
    }

    /// The content of this name, checked.
    pub fn get(&self, name: ChunkName) -> Result<Vec<u8>, GetError> {
        let read = self.read(name);
        if matches!(read, Err(GetError::Missing(_) | GetError::Damaged(_)))
            && let Some(known) = self.lock().known.get_mut(&name)
        {
            known.is_there = false;
        }
        read
    }

    fn read(&self, name: ChunkName) -> Result<Vec<u8>, GetError> {
        let file = match File::open(self.path_of(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(GetError::Missing(name));
            }
            Err(error) => return Err(GetError::Io(error)),
        };
        let mut content = Vec::new();
        let read = file
            .take(CHUNK_BYTES_MAX as u64 + 1)
            .read_to_end(&mut content);
        read.map_err(GetError::Io)?;
        if ChunkName::of(&content) != name {
            return Err(GetError::Damaged(name));
        }
        Ok(content)
    }

    /// Whether there is a chunk of this name, flushed. Its content is not looked at.
    pub fn contains(&self, name: ChunkName) -> bool {
        let shelved = self.lock();
        shelved.known.get(&name).is_some_and(|known| known.is_there)
    }

    /// Which of these are not there, each once. Those that are stay for [`KEPT_UNNAMED`] from now on,
    /// whatever happens: time enough for a record that names them to be written. Asks no disk.
    pub fn missing(&self, names: impl IntoIterator<Item = ChunkName>) -> BTreeSet<ChunkName> {
        let now = clock::now();
        let mut shelved = self.lock();
        let is_missing = |name: &ChunkName| match shelved.known.get_mut(name) {
            Some(known) if known.is_there => {
                known.touched = now;
                false
            }
            _ => *name != ChunkName::ZEROS,
        };
        names.into_iter().filter(is_missing).collect()
    }

    /// Records were written that name `new`, and dropped that named `old`; a name stands there as often
    /// as it is named.
    pub(crate) fn count(&self, new: &[ChunkName], old: &[ChunkName]) {
        let now = clock::now();
        let mut shelved = self.lock();
        for name in new {
            let known = shelved.known.entry(*name).or_insert(Known {
                is_there: false,
                ..Known::unnamed(now)
            });
            known.named += 1;
        }
        for name in old {
            if let Some(known) = shelved.known.get_mut(name) {
                known.named = known.named.saturating_sub(1);
                known.touched = now;
            }
        }
    }

    /// Nobody knows what else is named: nothing is removed before the store is opened again.
    pub(crate) fn keep_all(&self) {
        self.lock().keeps_all = true;
    }

    /// Removes some of what no record names and nobody has asked for in [`KEPT_UNNAMED`]; returns how
    /// many. One step of a round: call it every few seconds.
    pub fn sweep(&self, now: Time) -> usize {
        let mut shelved = self.lock();
        if shelved.keeps_all {
            return 0;
        }
        let from = shelved.swept.map_or(Bound::Unbounded, Bound::Excluded);
        let range = shelved.known.range((from, Bound::Unbounded));
        let (mut looked, mut last, mut unnamed) = (0, None, Vec::new());
        for (name, known) in range.take(SWEPT_MAX) {
            (looked, last) = (looked + 1, Some(*name));
            let kept = known.named > 0 || now.since(known.touched) < KEPT_UNNAMED;
            if !kept {
                unnamed.push(*name);
            }
            if unnamed.len() == REMOVED_MAX {
                break;
            }
        }
        let is_last = looked < SWEPT_MAX && unnamed.len() < REMOVED_MAX;
        shelved.swept = last.filter(|_| !is_last);
        // Under the lock, so that nobody hears that one of them is there.
        for name in &unnamed {
            match fs::remove_file(self.path_of(*name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(chunk = %name, %error, "not removed");
                }
                _ => {
                    shelved.known.remove(name);
                }
            }
        }
        unnamed.len()
    }

    /// Reads a few chunks to see whether they are whole; then, at the end of the round, tells which of
    /// those that records name are lost. Call it now and then.
    pub fn look(&self) -> Looked {
        let some: Vec<ChunkName> = {
            let shelved = self.lock();
            let from = shelved.looked.map_or(Bound::Unbounded, Bound::Excluded);
            let range = shelved.known.range((from, Bound::Unbounded));
            let there = range.filter(|(_, known)| known.is_there);
            there.map(|(name, _)| *name).take(LOOKED_MAX).collect()
        };
        for name in &some {
            if let Err(error) = self.get(*name) {
                metrics::counter!("understudy_store_damaged_chunks").increment(1);
                tracing::error!(%error, "a chunk is not what it was");
            }
        }
        let is_last = some.len() < LOOKED_MAX;
        self.lock().looked = some.last().copied().filter(|_| !is_last);
        let lost = self.lost();
        Looked { lost, is_last }
    }

    /// What records name and is not there, as far as one pull takes.
    pub fn lost(&self) -> Vec<ChunkName> {
        let shelved = self.lock();
        let lost = shelved.known.iter();
        let lost = lost.filter(|(_, known)| known.named > 0 && !known.is_there);
        lost.map(|(name, _)| *name).take(SWEPT_MAX).collect()
    }

    /// Checks every chunk: how many there are, their bytes, the names of all, and of the damaged ones.
    pub(crate) fn inspect(folder: &Path) -> io::Result<Inspected> {
        let mut inspected = Inspected::default();
        if !folder.exists() {
            return Ok(inspected);
        }
        for shelf in shelves(folder)? {
            for entry in fs::read_dir(shelf)? {
                let entry = entry?;
                let name_text = entry.file_name().to_string_lossy().into_owned();
                let mut digest = Sha256::new();
                let mut file = File::open(entry.path())?;
                inspected.bytes += io::copy(&mut file, &mut Hashing(&mut digest))?;
                inspected.count += 1;
                let found: [u8; 32] = digest.finalize().into();
                let name = parse(&name_text);
                inspected.names.extend(name);
                if name != Some(ChunkName(found)) {
                    inspected.damaged.push(name_text);
                }
            }
        }
        Ok(inspected)
    }

    /// What is kept under this name in a folder that nobody has open.
    pub(crate) fn peek(folder: &Path, name: ChunkName) -> Option<Vec<u8>> {
        let content = fs::read(path_of(folder, name)).ok()?;
        (ChunkName::of(&content) == name).then_some(content)
    }

    /// Files first, some at a time so that their flushes are one for the disk; then each shelf once.
    fn write_all(&self, parts: &[(ChunkName, Bytes)]) -> io::Result<()> {
        let mut shelves = BTreeSet::new();
        for (name, _) in parts {
            let path = self.path_of(*name);
            shelves.extend(path.parent().map(Path::to_path_buf));
        }
        let mut new_shelf = false;
        for shelf in shelves.iter().filter(|shelf| !shelf.exists()) {
            fs::create_dir_all(shelf)?;
            new_shelf = true;
        }
        if new_shelf {
            files::sync_folder(&self.shared.folder)?;
        }
        side_by_side(parts, |(name, content)| self.write(*name, content))?;
        let shelves: Vec<PathBuf> = shelves.into_iter().collect();
        side_by_side(&shelves, |shelf| files::sync_folder(shelf))
    }

    /// The file is flushed under its name; the name is not.
    fn write(&self, name: ChunkName, content: &[u8]) -> io::Result<()> {
        let nth = self.shared.written.fetch_add(1, Ordering::Relaxed);
        let temp = self
            .shared
            .folder
            .join(files::TEMP)
            .join(format!("{nth}.{}", files::TEMP));
        let write = || {
            let mut file = File::create(&temp)?;
            file.write_all(content)?;
            file.sync_data()?;
            fs::rename(&temp, self.path_of(name))
        };
        let written = write();
        if written.is_err() {
            // What is left of it would only take room; the next opening removes it otherwise.
            let _ = fs::remove_file(&temp);
        }
        written
    }

    fn path_of(&self, name: ChunkName) -> PathBuf {
        path_of(&self.shared.folder, name)
    }

    fn lock(&self) -> MutexGuard<'_, Shelved> {
        let shelved = &self.shared.shelved;
        shelved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn unnamed(now: Time) -> Known {
        Known {
            named: 0,
            is_there: true,
            touched: now,
        }
    }
}

/// What a folder of chunks holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inspected {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    pub(crate) names: BTreeSet<ChunkName>,
    pub(crate) damaged: Vec<String>,
}

/// Reads 64 hexadecimal digits in lower case.
fn parse(text: &str) -> Option<ChunkName> {
    let digits: &[u8; 64] = text.as_bytes().try_into().ok()?;
    let mut name = [0; 32];
    for (byte, [high, low]) in name.iter_mut().zip(digits.as_chunks::<2>().0) {
        *byte = value_of(*high)? << 4 | value_of(*low)?;
    }
    Some(ChunkName(name))
}

fn value_of(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Shelves by the first byte, so that no folder grows past what file systems list quickly.
fn path_of(folder: &Path, name: ChunkName) -> PathBuf {
    let text = name.to_string();
    folder.join(&text[..2]).join(text)
}

fn shelves(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut shelves = Vec::new();
    for shelf in fs::read_dir(folder)? {
        let shelf = shelf?;
        if shelf.file_type()?.is_dir() && shelf.file_name() != files::TEMP {
            shelves.push(shelf.path());
        }
    }
    Ok(shelves)
}

/// Does the same with each, a few at a time; the first error ends it.
fn side_by_side<T: Sync>(all: &[T], each: impl Fn(&T) -> io::Result<()> + Sync) -> io::Result<()> {
    let threads = all.len().min(FLUSHED_AT_ONCE);
    if threads <= 1 {
        return all.iter().try_for_each(each);
    }
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = each(one) {
                next.store(all.len(), Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let ends = workers.into_iter().map(|worker| {
            let panicked = |_| Err(io::Error::other("a writer of chunks panicked"));
            worker.join().unwrap_or_else(panicked)
        });
        ends.fold(Ok(()), Result::and)
    })
}

struct Hashing<'d>(&'d mut Sha256);

impl io::Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A chunk is read and written whole, in memory: a tile of 4,096 by 4,096 pixels of 16 bytes is a
/// quarter of a gigabyte and goes in four.
pub const CHUNK_BYTES_MAX: usize = 64 * 1024 * 1024;

/// For how long a chunk stays that no record names. Its record is written after it, here and on other
/// nodes, and a start that is under way still reads what a later snapshot has replaced: each of those
/// takes a minute at most.
pub const KEPT_UNNAMED: Duration = Duration::from_secs(600);

/// Chunks that one step of a sweep looks at: some hundred microseconds in which nobody else is told
/// what there is.
const SWEPT_MAX: usize = 4_096;

/// Chunks that one step removes: some milliseconds.
const REMOVED_MAX: usize = 64;

/// Chunks that one step of a look reads: a megabyte or so.
const LOOKED_MAX: usize = 16;

/// Files that are flushed at once: the journal of a file system takes them as one, and more of them
/// would only wait.
const FLUSHED_AT_ONCE: usize = 8;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn opened() -> (tempfile::TempDir, Chunks) {
        let folder = tempfile::tempdir().unwrap();
        let chunks = Chunks::open(folder.path(), None).unwrap();
        (folder, chunks)
    }

    #[test]
    fn a_chunk_is_what_its_name_says_or_an_error() {
        let (folder, chunks) = opened();
        let name = chunks.put(b"content").unwrap();
        assert_eq!(parse(&name.to_string()), Some(name));
        assert_eq!(chunks.get(name).unwrap(), b"content");
        assert!(chunks.contains(name));

        let path = chunks.path_of(name);
        for bad in [&b"Content"[..], b"conten", b"", b"content!"] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(chunks.get(name), Err(GetError::Damaged(_))));
            assert!(!chunks.contains(name));
        }
        let inspected = Chunks::inspect(folder.path()).unwrap();
        assert_eq!(inspected.count, 1);
        assert_eq!(inspected.damaged, [name.to_string()]);
        chunks.put(b"content").unwrap();
        assert_eq!(
            chunks.get(name).unwrap(),
            b"content",
            "put again, it is whole"
        );
    }

    #[test]
    fn what_was_never_finished_is_gone_and_what_is_too_large_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        drop(Chunks::open(folder.path(), None).unwrap());
        let left = folder.path().join(files::TEMP).join("7.writing");
        fs::write(&left, b"half").unwrap();
        let chunks = Chunks::open(folder.path(), None).unwrap();
        assert!(!left.exists());
        let refused = chunks.put(&vec![0; CHUNK_BYTES_MAX + 1]);
        assert!(matches!(refused, Err(PutError::TooLarge { .. })));
    }

    #[test]
    fn many_are_written_together_and_are_there_after_a_restart() {
        let (folder, chunks) = opened();
        let parts: Vec<_> = (0..100u8)
            .map(|nth| Bytes::from(vec![nth; 5_000]))
            .collect();
        let parts: Vec<_> = parts.into_iter().map(|p| (ChunkName::of(&p), p)).collect();
        let names = || parts.iter().map(|(name, _)| *name);
        assert_eq!(chunks.missing(names()).len(), 100);
        chunks.put_all(&parts).unwrap();
        drop(chunks);
        let chunks = Chunks::open(folder.path(), None).unwrap();
        assert_eq!(chunks.missing(names()), BTreeSet::new());
        assert_eq!(chunks.missing([ChunkName::ZEROS]), BTreeSet::new());
        for (name, part) in &parts {
            assert_eq!(chunks.get(*name).unwrap(), part[..]);
        }
    }

    #[test]
    fn what_no_record_names_goes_after_its_time_and_nothing_else_does() {
        let (folder, chunks) = opened();
        let [named, unnamed, asked] = [&b"named"[..], b"unnamed", b"asked for"];
        let [named, unnamed, asked] = [named, unnamed, asked].map(|c| chunks.put(c).unwrap());
        chunks.count(&[named, named], &[]);
        let later = |seconds| clock::now() + Duration::from_secs(seconds);
        assert_eq!(chunks.sweep(later(590)), 0, "a record may yet come");
        assert_eq!(chunks.sweep(later(610)), 2);
        assert!(chunks.contains(named) && !chunks.contains(unnamed));
        assert!(!chunks.contains(asked));

        chunks.count(&[], &[named]);
        assert_eq!(chunks.sweep(later(700)), 0, "another record names it");
        chunks.count(&[], &[named]);
        assert_eq!(chunks.sweep(later(590)), 0, "a start may still read it");
        assert_eq!(chunks.sweep(later(700)), 1);
        assert_eq!(Chunks::inspect(folder.path()).unwrap().count, 0);

        chunks.put(b"unnamed").unwrap();
        chunks.keep_all();
        assert_eq!(chunks.sweep(later(700)), 0, "who knows what names it");
    }

    #[test]
    fn a_look_finds_what_records_name_and_is_gone() {
        let (_folder, chunks) = opened();
        let whole = chunks.put(b"whole").unwrap();
        let torn = chunks.put(b"torn").unwrap();
        let gone = ChunkName::of(b"gone");
        chunks.count(&[whole, torn, gone], &[]);
        assert_eq!(chunks.lost(), [gone]);
        fs::write(chunks.path_of(torn), b"tor").unwrap();
        let looked = chunks.look();
        assert!(looked.is_last);
        let lost: BTreeSet<ChunkName> = looked.lost.into_iter().collect();
        assert_eq!(lost, [gone, torn].into());
        chunks.put(b"torn").unwrap();
        assert_eq!(chunks.look().lost, [gone]);
    }
}
