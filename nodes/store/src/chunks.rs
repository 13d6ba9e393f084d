//! Content too large for a record, in files named by their SHA-256.
//!
//! Owns: writing a chunk so that it is there whole or not at all, and checking it against its name
//! when it is read. Never decides what is still needed: whoever holds the names removes chunks.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use crate::disk::Watermark;
use crate::files;
use crate::lock::Lock;
use std::sync::Arc;

/// Names a chunk: the SHA-256 of its content (FIPS 180-4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkName(pub [u8; 32]);

impl ChunkName {
    /// The name of this content.
    pub fn of(content: &[u8]) -> ChunkName {
        ChunkName(Sha256::digest(content).into())
    }

    /// Reads 64 hexadecimal digits in lower case.
    pub fn parse(text: &str) -> Option<ChunkName> {
        let digits: &[u8; 64] = text.as_bytes().try_into().ok()?;
        let mut name = [0; 32];
        for (byte, [high, low]) in name.iter_mut().zip(digits.as_chunks::<2>().0) {
            *byte = value_of(*high)? << 4 | value_of(*low)?;
        }
        Some(ChunkName(name))
    }
}

fn value_of(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for ChunkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChunkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

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
    folder: PathBuf,
    written: Arc<AtomicU64>,
    _lock: Option<Arc<Lock>>,
}

impl Chunks {
    /// Opens the folder and removes what was never finished in it.
    pub(crate) fn open(folder: &Path, lock: Option<Arc<Lock>>) -> io::Result<Chunks> {
        let writing = folder.join(files::TEMP);
        fs::create_dir_all(&writing)?;
        for entry in fs::read_dir(&writing)? {
            fs::remove_file(entry?.path())?;
        }
        files::sync_folder(folder)?;
        Ok(Chunks {
            folder: folder.to_path_buf(),
            written: Arc::default(),
            _lock: lock,
        })
    }

    /// Keeps the content under its name, flushed when `Ok`. What stands there already is checked, and
    /// replaced if it is damaged.
    pub fn put(&self, content: &[u8]) -> Result<ChunkName, PutError> {
        if content.len() > CHUNK_BYTES_MAX {
            return Err(PutError::TooLarge {
                bytes: content.len(),
            });
        }
        let name = ChunkName::of(content);
        if self.get(name).is_ok() {
            return Ok(name);
        }
        Watermark::new(&self.folder)
            .look()
            .map_err(|_| PutError::DiskFull)?;
        self.write(name, content).map_err(PutError::Io)?;
        Ok(name)
    }

    /// The content of this name, checked.
    pub fn get(&self, name: ChunkName) -> Result<Vec<u8>, GetError> {
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

    /// Whether there is a chunk of this name. Its content is not looked at.
    pub fn contains(&self, name: ChunkName) -> bool {
        self.path_of(name).is_file()
    }

    /// Removes the chunk, if there is one.
    pub fn remove(&self, name: ChunkName) -> io::Result<()> {
        match fs::remove_file(self.path_of(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Checks every chunk: how many there are, their bytes, and the names of the damaged ones.
    pub(crate) fn inspect(folder: &Path) -> io::Result<(u64, u64, Vec<String>)> {
        let (mut count, mut bytes, mut damaged) = (0, 0, Vec::new());
        if !folder.exists() {
            return Ok((0, 0, damaged));
        }
        for shelf in fs::read_dir(folder)? {
            let shelf = shelf?;
            if !shelf.file_type()?.is_dir() || shelf.file_name() == files::TEMP {
                continue;
            }
            for entry in fs::read_dir(shelf.path())? {
                let entry = entry?;
                let name_text = entry.file_name().to_string_lossy().into_owned();
                let mut digest = Sha256::new();
                bytes += io::copy(&mut File::open(entry.path())?, &mut Hashing(&mut digest))?;
                count += 1;
                let found: [u8; 32] = digest.finalize().into();
                if ChunkName::parse(&name_text) != Some(ChunkName(found)) {
                    damaged.push(name_text);
                }
            }
        }
        Ok((count, bytes, damaged))
    }

    fn write(&self, name: ChunkName, content: &[u8]) -> io::Result<()> {
        let path = self.path_of(name);
        let shelf = path.parent().unwrap_or(&self.folder);
        if !shelf.exists() {
            fs::create_dir_all(shelf)?;
            files::sync_folder(&self.folder)?;
        }
        let nth = self.written.fetch_add(1, Ordering::Relaxed);
        let temp = self
            .folder
            .join(files::TEMP)
            .join(format!("{nth}.{}", files::TEMP));
        let written = fs::write(&temp, content)
            .and_then(|()| File::open(&temp)?.sync_all())
            .and_then(|()| fs::rename(&temp, &path))
            .and_then(|()| files::sync_folder(shelf));
        if written.is_err() {
            // What is left of it would only take room; the next opening removes it otherwise.
            let _ = fs::remove_file(&temp);
        }
        written
    }

    /// Shelves by the first byte, so that no folder grows past what file systems list quickly.
    fn path_of(&self, name: ChunkName) -> PathBuf {
        let text = name.to_string();
        self.folder.join(&text[..2]).join(text)
    }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_what_its_name_says_or_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let chunks = Chunks::open(folder.path(), None).unwrap();
        let name = chunks.put(b"content").unwrap();
        assert_eq!(ChunkName::parse(&name.to_string()), Some(name));
        assert_eq!(chunks.get(name).unwrap(), b"content");
        assert!(chunks.contains(name));

        let path = chunks.path_of(name);
        for bad in [&b"Content"[..], b"conten", b"", b"content!"] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(chunks.get(name), Err(GetError::Damaged(_))));
        }
        let (count, _, damaged) = Chunks::inspect(folder.path()).unwrap();
        assert_eq!((count, damaged), (1, vec![name.to_string()]));
        chunks.put(b"content").unwrap();
        assert_eq!(
            chunks.get(name).unwrap(),
            b"content",
            "put again, it is whole"
        );

        chunks.remove(name).unwrap();
        chunks.remove(name).unwrap();
        assert!(matches!(chunks.get(name), Err(GetError::Missing(_))));
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
}
