//! Small files that are there whole or not at all.
//!
//! Owns: temp, fsync, rename, fsync of the folder; and the checksum around a small file's content.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use crate::value::{Broken, seal, unseal};

/// Replaces the file at `path`, flushed. After an error the old content stands, or the new one.
pub(crate) fn replace(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let temp = path.with_extension(TEMP);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&temp)?;
    for part in parts {
        file.write_all(part)?;
    }
    file.sync_all()?;
    fs::rename(&temp, path)?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// What a small file may be.
pub(crate) enum Content {
    /// Intact.
    Payload(Vec<u8>),
    /// There is no such file.
    Missing,
    /// There is one, but not as it was written.
    Broken(Broken),
}

/// Replaces the small file with this payload, sealed under its name.
pub(crate) fn replace_sealed(path: &Path, payload: &[u8]) -> io::Result<()> {
    replace(path, &[&seal(name_of(path), payload)])
}

/// Reads a small file that was sealed under its name.
pub(crate) fn read_sealed(path: &Path) -> io::Result<Content> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Content::Missing),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(SMALL_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(match unseal(name_of(path), &bytes) {
        Ok(payload) => Content::Payload(payload.to_vec()),
        Err(broken) => Content::Broken(broken),
    })
}

/// Flushes a folder: what was made, renamed or removed in it.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Flushes everything in and under a folder, and the folder.
pub(crate) fn sync_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_folder(path)
}

fn name_of(path: &Path) -> &[u8] {
    path.file_name().unwrap_or_default().as_encoded_bytes()
}

/// Ends the name of a file that is being written. One found later was never finished.
pub(crate) const TEMP: &str = "writing";

/// More than any small file holds; what is longer is damaged.
const SMALL_BYTES_MAX: u64 = 4_096;
