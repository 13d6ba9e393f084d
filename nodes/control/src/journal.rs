//! Event logs in files: what the machines of this node were told, for
//! `understudy-sim --replay FILE`.
//!
//! Owns: one file a machine, the one of the start before it, and a thread that writes. Never decides
//! what is in them (`understudy_protocol::journal` does), and never makes a machine wait: neither for
//! the disk nor for a lock. A disk that is too slow, or full, ends the log and nothing else.
//!
//! ```text
//!   machine's thread: write ──> [ waiting bytes ] ──> writer thread: every 10 ms ──> FOLDER/NAME.log
//! ```
//!
//! What has reached the file survives `kill -9`: that is all but the last hundredth of a second. It is
//! not flushed to the disk, since a log is no promise to anybody.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::mem;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tracing::warn;

use understudy_protocol::journal::Sink;
use understudy_protocol::journal::log::LINE_BYTES_MAX;

/// A log for the machine of that name, if a folder is given. A node that cannot write one goes on
/// without it, and says so: what helps to understand a failure must not be one.
pub fn open(folder: Option<&Path>, name: &str) -> Option<Box<dyn Sink>> {
    match FileSink::create(folder?, name) {
        Ok(sink) => Some(Box::new(sink)),
        Err(error) => {
            warn!(name, %error, "no event log is written");
            None
        }
    }
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The folder or the file cannot be made. An older log may have been renamed already.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// No thread. The file is there, and empty.
    #[error("the thread that writes it cannot be started: {0}")]
    Thread(io::Error),
}

/// One log's file, `NAME.log` in its folder, readable by its owner only: it holds what callers said.
/// The log of the start before becomes `NAME.previous.log`, and the one before that is gone; so a node
/// that ends over and over fills no disk. Dropping it waits until everything is written.
pub struct FileSink {
    shared: Arc<Shared>,
    /// What the writer's lock was not free for.
    kept: Vec<u8>,
    writer: Option<JoinHandle<()>>,
}

struct Shared {
    name: String,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// Nothing follows.
    is_over: bool,
    /// Nothing more is taken: the disk failed, or is too slow.
    is_deaf: bool,
}

impl FileSink {
    /// Makes the folder and the file.
    pub fn create(folder: &Path, name: &str) -> Result<FileSink, JournalError> {
        let path = folder.join(format!("{name}.log"));
        let file = create(folder, &path, name).map_err(|source| JournalError::File {
            path: path.clone(),
            source,
        })?;
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            waiting: Mutex::default(),
        });
        let writer = {
            let shared = shared.clone();
            let thread = thread::Builder::new().name(format!("log-{name}"));
            let writer = thread.spawn(move || shared.write_all(file));
            writer.map_err(JournalError::Thread)?
        };
        Ok(FileSink {
            shared,
            kept: Vec::new(),
            writer: Some(writer),
        })
    }
}

fn create(folder: &Path, path: &Path, name: &str) -> io::Result<File> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    match fs::rename(path, folder.join(format!("{name}.previous.log"))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)
}

impl Sink for FileSink {
    fn write(&mut self, bytes: &[u8]) {
        self.kept.extend_from_slice(bytes);
        // The writer has the lock for an exchange of two pointers; the heart waits not even for that.
        if let Ok(mut waiting) = self.shared.waiting.try_lock() {
            waiting.take(&mut self.kept, &self.shared.name);
        }
    }
}

impl Drop for FileSink {
    fn drop(&mut self) {
        {
            let mut waiting = self.shared.lock();
            waiting.take(&mut self.kept, &self.shared.name);
            waiting.is_over = true;
        }
        if let Some(writer) = self.writer.take() {
            writer.thread().unpark();
            // It has panicked only if there is a fault in this file; then the log is short.
            let _ = writer.join();
        }
    }
}

impl Waiting {
    fn take(&mut self, bytes: &mut Vec<u8>, name: &str) {
        if !self.is_deaf && self.bytes.len() + bytes.len() > WAITING_BYTES_MAX {
            self.is_deaf = true;
            warn!(name, "the disk is too slow: the event log ends here");
        }
        if !self.is_deaf {
            self.bytes.extend_from_slice(bytes);
        }
        bytes.clear();
        bytes.shrink_to(KEPT_BYTES);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Whoever panicked with it left bytes in order: they are only ever added.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer's thread.
    fn write_all(&self, mut file: File) {
        let mut batch = Vec::new();
        loop {
            let is_over = {
                let mut waiting = self.lock();
                mem::swap(&mut batch, &mut waiting.bytes);
                waiting.is_over
            };
            if let Err(error) = file.write_all(&batch) {
                warn!(name = self.name, %error, "the event log ends here");
                let mut waiting = self.lock();
                (waiting.is_deaf, waiting.bytes) = (true, Vec::new());
                return;
            }
            if is_over {
                return;
            }
            batch.clear();
            batch.shrink_to(KEPT_BYTES);
            thread::park_timeout(WRITE_PERIOD);
        }
    }
}

/// What a killed process loses of its log, and how often an idle log wakes a thread.
const WRITE_PERIOD: Duration = Duration::from_millis(10);

/// The longest line, and what a busy node says in the seconds for which a disk may hang.
const WAITING_BYTES_MAX: usize = LINE_BYTES_MAX + 16 * 1024 * 1024;

/// Some periods of a busy node.
const KEPT_BYTES: usize = 1024 * 1024;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn written(folder: &Path, name: &str, bytes: &[u8]) {
        let mut sink = FileSink::create(folder, name).unwrap();
        for part in bytes.chunks(3) {
            sink.write(part);
        }
    }

    #[test]
    fn a_dropped_log_is_whole_and_the_one_before_it_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("events");
        let read = |name: &str| fs::read(folder.join(name));
        written(&folder, "agent", b"the first start");
        assert_eq!(read("agent.log").unwrap(), b"the first start");
        assert!(read("agent.previous.log").is_err());
        written(&folder, "agent", b"the second");
        written(&folder, "caller", b"another machine");
        written(&folder, "agent", b"the third");
        assert_eq!(read("agent.log").unwrap(), b"the third");
        assert_eq!(read("agent.previous.log").unwrap(), b"the second");
        assert_eq!(read("caller.log").unwrap(), b"another machine");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);
    }

    #[test]
    fn a_log_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("a/events");
        written(&folder, "agent", b"what a caller said");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        assert_eq!(mode(&folder.join("agent.log")), 0o600);
    }

    #[test]
    fn what_was_written_is_in_the_file_before_the_log_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let mut sink = FileSink::create(folder.path(), "agent").unwrap();
        sink.write(b"soon");
        let path = folder.path().join("agent.log");
        let is_there = (0..500).any(|_| {
            thread::sleep(WRITE_PERIOD);
            fs::read(&path).unwrap() == b"soon"
        });
        assert!(is_there);
    }

    #[test]
    fn a_writer_that_holds_the_lock_makes_nobody_wait_and_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut sink = FileSink::create(folder.path(), "agent").unwrap();
        let shared = sink.shared.clone();
        let held = shared.lock();
        sink.write(b"while it is held, ");
        drop(held);
        sink.write(b"and after");
        drop(sink);
        let read = fs::read(folder.path().join("agent.log")).unwrap();
        assert_eq!(read, b"while it is held, and after");
    }

    #[test]
    fn a_disk_that_is_too_slow_ends_the_log_and_not_the_node() {
        let mut waiting = Waiting::default();
        let half = || vec![7; WAITING_BYTES_MAX / 2];
        for _ in 0..3 {
            let mut bytes = half();
            waiting.take(&mut bytes, "agent");
            assert!(bytes.is_empty());
        }
        assert!(waiting.is_deaf);
        waiting.take(&mut vec![8], "agent");
        // What it holds is a first part of the log.
        assert_eq!(waiting.bytes.len(), 2 * half().len());
        assert!(waiting.bytes.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn a_folder_that_cannot_be_made_costs_the_log_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, b"").unwrap();
        let refused = FileSink::create(&file.join("events"), "agent")
            .err()
            .unwrap();
        assert!(matches!(refused, JournalError::File { .. }), "{refused}");
        assert!(open(Some(&file), "agent").is_none());
        assert!(open(None, "agent").is_none());
    }
}
