//! Death notes on a disk and on their way (rule L11).
//!
//! Owns: the file of a note and its datagram. Never judges a note: the directory holds the digest
//! that it must match.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use understudy_protocol::id::IncarnationId;
use understudy_protocol::wire::codec::{HEART_FRAME_BYTES_MAX, decode_whole, encode_frame};
use understudy_protocol::wire::heart::{DeathNote, HeartMessage};

/// Why the notes cannot be read or forgotten. No note is lost.
#[derive(Debug, thiserror::Error)]
pub enum NotesError {
    /// The directory cannot be read.
    #[error("the death notes in {} cannot be read: {source}", dir.display())]
    Unreadable {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A note cannot be removed; it will be found, and sent, again.
    #[error("the death note {} cannot be removed: {source}", path.display())]
    Stays {
        /// The note.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The notes that earlier wardens left in `dir`, the newest first, at most [`KEPT_NOTES_MAX`]. What
/// is no whole note proves nothing and is passed over. No directory, no notes.
pub fn kept_notes(dir: &Path) -> Result<Vec<DeathNote>, NotesError> {
    let unreadable = |source| NotesError::Unreadable {
        dir: dir.to_owned(),
        source,
    };
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(unreadable)?,
    };
    let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|ending| ending == NOTE_ENDING) {
            let written = fs::metadata(&path).and_then(|of| of.modified());
            found.push((written.unwrap_or(SystemTime::UNIX_EPOCH), path));
        }
    }
    found.sort_by(|a, b| b.cmp(a));
    let newest = found.iter().take(KEPT_NOTES_MAX);
    Ok(newest.filter_map(|(_, path)| read(path)).collect())
}

/// Removes the note of `incarnation` from `dir`: every voter knows of that death, or nobody needs to
/// any more. One that is not there is forgotten already.
pub fn forget_note(dir: &Path, incarnation: IncarnationId) -> Result<(), NotesError> {
    let path = path_of(dir, incarnation);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(NotesError::Stays { path, source })
        }
        _ => Ok(()),
    }
}

/// Writes `note` into `dir`. When this returns it survives a power cut; when it fails, no half of it
/// is found.
pub(crate) fn keep(dir: &Path, note: &DeathNote) -> io::Result<()> {
    let path = path_of(dir, note.incarnation);
    let unfinished = path.with_extension("unfinished");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)?;
    file.write_all(&frame(note))?;
    file.sync_all()?;
    fs::rename(&unfinished, &path)?;
    File::open(dir)?.sync_all()
}

/// Sends `note` once to each of `voters`. What is lost is lost: the machine repeats it.
pub(crate) fn send(voters: &[SocketAddr], note: &DeathNote) {
    let mut datagram = vec![NOTE_MARK];
    datagram.extend(frame(note));
    let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
    let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0));
    for voter in voters {
        if let Ok(socket) = if voter.is_ipv4() { &v4 } else { &v6 } {
            // A full buffer or an unreachable voter is one more lost datagram.
            let _ = socket.set_nonblocking(true);
            let _ = socket.send_to(&datagram, voter);
        }
    }
}

fn frame(note: &DeathNote) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_frame(&HeartMessage::DeathNote(note.clone()), &mut bytes)
        .expect("a note of at most 100 units fits a datagram");
    bytes
}

fn read(path: &Path) -> Option<DeathNote> {
    let mut bytes = Vec::new();
    let most = HEART_FRAME_BYTES_MAX as u64 + 1;
    File::open(path)
        .ok()?
        .take(most)
        .read_to_end(&mut bytes)
        .ok()?;
    match decode_whole(&bytes) {
        Ok(HeartMessage::DeathNote(note)) => Some(note),
        _ => None,
    }
}

fn path_of(dir: &Path, incarnation: IncarnationId) -> PathBuf {
    dir.join(format!("{:016x}.{NOTE_ENDING}", incarnation.0))
}

/// The first byte of a death note's datagram; the frame follows. Every QUIC packet has bit 0x40 of
/// its first byte set (RFC 9000, section 17.2), so a heart tells the two apart by one byte.
pub const NOTE_MARK: u8 = 0x01;

/// Notes that one start reads: a node that dies again and again while it cannot reach its cluster
/// leaves one each time, and the older ones tell of leases that are long over.
pub const KEPT_NOTES_MAX: usize = 64;

const NOTE_ENDING: &str = "note";

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use understudy_protocol::id::UnitId;

    fn note(incarnation: u64) -> DeathNote {
        DeathNote {
            incarnation: IncarnationId(incarnation),
            secret: [9; 32],
            at_work: vec![UnitId(u64::MAX); 100],
        }
    }

    #[test]
    fn a_note_is_found_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        keep(dir.path(), &note(1)).unwrap();
        keep(dir.path(), &note(2)).unwrap();
        keep(dir.path(), &note(2)).unwrap();
        assert_eq!(kept_notes(dir.path()).unwrap().len(), 2);
        forget_note(dir.path(), IncarnationId(2)).unwrap();
        forget_note(dir.path(), IncarnationId(2)).unwrap();
        assert_eq!(kept_notes(dir.path()).unwrap(), [note(1)]);
    }

    #[test]
    fn what_is_no_whole_note_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(kept_notes(&dir.path().join("none")).unwrap(), []);
        let mut cut = frame(&note(3));
        cut.truncate(20);
        for (name, bytes) in [
            ("a.note", &cut[..]),
            ("b.note", b""),
            ("c.note", &[0; 5_000]),
            ("d.unfinished", &frame(&note(4))),
        ] {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        assert_eq!(kept_notes(dir.path()).unwrap(), []);
    }

    #[test]
    fn only_the_newest_notes_are_read() {
        let dir = tempfile::tempdir().unwrap();
        for incarnation in 0..=KEPT_NOTES_MAX as u64 {
            keep(dir.path(), &note(incarnation)).unwrap();
        }
        let kept = kept_notes(dir.path()).unwrap();
        assert_eq!(kept.len(), KEPT_NOTES_MAX);
        assert_eq!(kept[0].incarnation, IncarnationId(KEPT_NOTES_MAX as u64));
    }
}
