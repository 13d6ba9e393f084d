//! Modules on this node's disk, by their hash.
//!
//! Owns: a folder of files `HASH.wasm`, and how much of the disk they take. Never trusts what it reads:
//! a file whose bytes have another hash than its name is removed, and was never there. Never fails: a
//! disk that does not take a module only means that it is fetched again.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustix::fs::{Timespec, Timestamps, UTIME_NOW, futimens};
use tracing::warn;

use understudy_sandbox::module::{Module, ModuleHash};
use understudy_store::room_under;

/// Modules that were fetched. A clone is the same folder.
#[derive(Clone, Debug)]
pub(super) struct ModuleFiles(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    bytes_max: u64,
    /// Tells files apart that are being written.
    written: AtomicU64,
}

impl ModuleFiles {
    /// The folder, of which `bytes_max` bytes are used at most. It is made when something is put there.
    pub(super) fn open(folder: &Path, bytes_max: u64) -> ModuleFiles {
        let files = ModuleFiles(Arc::new(Inner {
            folder: folder.to_owned(),
            bytes_max,
            written: AtomicU64::new(0),
        }));
        files.0.tidy();
        files
    }

    /// The module with this hash, if it is here and whole.
    pub(super) async fn get(&self, sha256: ModuleHash) -> Option<Module> {
        let inner = self.0.clone();
        let read = tokio::task::spawn_blocking(move || inner.read(sha256)).await;
        read.ok().flatten()
    }

    /// Keeps a module, as long as there is room.
    pub(super) async fn put(&self, module: &Module) {
        let (inner, module) = (self.0.clone(), module.clone());
        let put = tokio::task::spawn_blocking(move || {
            if let Err(error) = inner.write(&module) {
                warn!(%error, folder = %inner.folder.display(), "a module was not kept");
            }
            inner.make_room();
        });
        let _ = put.await;
    }
}

impl Inner {
    fn path(&self, sha256: ModuleHash) -> PathBuf {
        self.folder.join(format!("{sha256}.{WASM}"))
    }

    fn read(&self, sha256: ModuleHash) -> Option<Module> {
        let path = self.path(sha256);
        let wasm = fs::read(&path).ok()?;
        let module = Module::new(wasm);
        if module.sha256() != sha256 {
            warn!(path = %path.display(), "a module on disk was damaged, and is fetched again");
            let _ = fs::remove_file(&path);
            return None;
        }
        // What is used stays longest.
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        };
        let used = Timestamps {
            last_access: now,
            last_modification: now,
        };
        if let Ok(file) = File::open(&path) {
            let _ = futimens(&file, &used);
        }
        Some(module)
    }

    /// Whole under its name, or not there. It is not flushed: what a crash leaves is read with its hash.
    fn write(&self, module: &Module) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        // Records come first: what is here can be fetched again.
        room_under(&self.folder).map_err(io::Error::other)?;
        let nth = self.written.fetch_add(1, Ordering::Relaxed);
        let unfinished = self.folder.join(format!("{nth}.{UNFINISHED}"));
        let written = File::create(&unfinished)
            .and_then(|mut file| file.write_all(module.wasm()))
            .and_then(|()| fs::rename(&unfinished, self.path(module.sha256())));
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written
    }

    /// Removes what has not been used for the longest time, until the rest fits.
    fn make_room(&self) {
        let mut files = self.files(WASM);
        files.sort_by_key(|(_, _, used)| std::cmp::Reverse(*used));
        let mut bytes = 0_u64;
        for (path, length, _) in files {
            bytes = bytes.saturating_add(length);
            if bytes > self.bytes_max {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// What an earlier start left half-written goes.
    fn tidy(&self) {
        for (path, _, _) in self.files(UNFINISHED) {
            let _ = fs::remove_file(path);
        }
        self.make_room();
    }

    fn files(&self, extension: &str) -> Vec<(PathBuf, u64, SystemTime)> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let files = entries.filter_map(|entry| {
            let path = entry.path();
            let about = entry.metadata().ok().filter(fs::Metadata::is_file)?;
            let is_one = path.extension().is_some_and(|of| of == extension);
            is_one.then_some((path, about.len(), about.modified().ok()?))
        });
        files.collect()
    }
}

const WASM: &str = "wasm";

const UNFINISHED: &str = "unfinished";

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn module(nth: u8, length: usize) -> Module {
        Module::new(vec![nth; length])
    }

    #[tokio::test]
    async fn what_was_kept_is_there_again_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let of = module(1, 100);
        assert_eq!(
            ModuleFiles::open(folder.path(), 1_000)
                .get(of.sha256())
                .await,
            None
        );
        ModuleFiles::open(folder.path(), 1_000).put(&of).await;
        fs::write(folder.path().join("9.unfinished"), b"half").unwrap();
        let again = ModuleFiles::open(folder.path(), 1_000);
        assert_eq!(again.get(of.sha256()).await, Some(of));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_damaged_file_is_never_a_module() {
        let folder = tempfile::tempdir().unwrap();
        let files = ModuleFiles::open(folder.path(), 1_000);
        let of = module(1, 100);
        files.put(&of).await;
        let path = files.0.path(of.sha256());
        for damaged in [&[1; 99][..], &[1; 101], &[2; 100], &[]] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(files.get(of.sha256()).await, None);
            assert!(!path.exists());
        }
        files.put(&of).await;
        assert_eq!(files.get(of.sha256()).await, Some(of));
    }

    #[tokio::test]
    async fn what_was_not_used_for_the_longest_time_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let files = ModuleFiles::open(folder.path(), 250);
        let of: Vec<Module> = (0..3).map(|nth| module(nth, 100)).collect();
        let age = |nth: usize, seconds| {
            let file = File::open(files.0.path(of[nth].sha256())).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
                .unwrap();
        };
        files.put(&of[0]).await;
        files.put(&of[1]).await;
        age(0, 1);
        age(1, 2);
        // Used, and so the younger of the two.
        assert!(files.get(of[0].sha256()).await.is_some());
        files.put(&of[2]).await;
        assert!(files.get(of[0].sha256()).await.is_some());
        assert_eq!(files.get(of[1].sha256()).await, None);
        assert!(files.get(of[2].sha256()).await.is_some());
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_only_forgets() {
        let folder = tempfile::tempdir().unwrap();
        let taken = folder.path().join("modules");
        fs::write(&taken, b"a file").unwrap();
        let files = ModuleFiles::open(&taken, 1_000);
        let of = module(1, 100);
        files.put(&of).await;
        assert_eq!(files.get(of.sha256()).await, None);
    }
}
