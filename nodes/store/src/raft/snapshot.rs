//! The snapshot's file: whole or not at all, and checked when it is read.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;
use understudy_protocol::wire::checksum;
use understudy_protocol::wire::codec::DIRECTORY_SNAPSHOT_FRAME_BYTES_MAX;
use understudy_supervision::store::StoreError;

use super::io_error;
use crate::files;
use crate::value::{Broken, seal, unseal};

/// Why a snapshot was not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LoadError {
    /// It is not what was written.
    #[error("the snapshot is damaged")]
    Damaged,
    /// A later version wrote it.
    #[error("the snapshot was written by a later version")]
    Newer,
    /// The operating system refused.
    #[error("the snapshot was not read: {0}")]
    Io(String),
}

pub(super) fn save(folder: &Path, meta: &[u8], data: &[u8]) -> Result<(), StoreError> {
    if meta.len() > META_BYTES_MAX || data.len() > DATA_BYTES_MAX {
        return Err(StoreError::Invalid("a snapshot is above its limit"));
    }
    let mut head = Vec::with_capacity(HEAD_PAYLOAD_BYTES);
    for part in [meta, data] {
        head.extend_from_slice(&(part.len() as u32).to_be_bytes()); // below its limit
        head.extend_from_slice(&checksum(part).to_be_bytes());
    }
    let head = seal(KEY, &head);
    files::replace(&folder.join(FILE), &[&head, meta, data])
        .map_err(|error| io_error(folder, &error))
}

pub(super) fn load(folder: &Path) -> Result<Option<(Bytes, Vec<u8>)>, LoadError> {
    let refused = |error: io::Error| LoadError::Io(error.to_string());
    let file = match File::open(folder.join(FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refused(error)),
    };
    let mut bytes = Vec::new();
    let limit = (HEAD_BYTES + META_BYTES_MAX + DATA_BYTES_MAX + 1) as u64;
    file.take(limit).read_to_end(&mut bytes).map_err(refused)?;
    let (head, rest) = bytes
        .split_at_checked(HEAD_BYTES)
        .ok_or(LoadError::Damaged)?;
    let head = unseal(KEY, head).map_err(|broken| match broken {
        Broken::Damaged => LoadError::Damaged,
        Broken::Newer => LoadError::Newer,
    })?;
    let numbers: [[u8; 4]; 4] = head
        .as_chunks::<4>()
        .0
        .try_into()
        .map_err(|_| LoadError::Damaged)?;
    let [meta_length, meta_crc, data_length, data_crc] = numbers.map(u32::from_be_bytes);
    let (meta, data) = rest
        .split_at_checked(meta_length as usize)
        .ok_or(LoadError::Damaged)?;
    let is_whole = data.len() == data_length as usize
        && checksum(meta) == meta_crc
        && checksum(data) == data_crc;
    if !is_whole {
        return Err(LoadError::Damaged);
    }
    Ok(Some((Bytes::copy_from_slice(meta), data.to_vec())))
}

const FILE: &str = "snapshot";
const KEY: &[u8] = b"snapshot";
const HEAD_PAYLOAD_BYTES: usize = 16;
const HEAD_BYTES: usize = HEAD_PAYLOAD_BYTES + 6;

/// Raft's ids and a list of members.
const META_BYTES_MAX: usize = 1024 * 1024;
/// The longest directory snapshot, and room for a frame around it.
const DATA_BYTES_MAX: usize = DIRECTORY_SNAPSHOT_FRAME_BYTES_MAX + 1024 * 1024;
