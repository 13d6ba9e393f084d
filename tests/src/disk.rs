//! A small disk of a test's own, to be filled to the last byte.
//!
//! Owns: a tmpfs, mounted in a mount namespace that only the test and what it starts can see: it goes
//! with the last of them, however they end. Never touches a mount of the machine.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use rustix::thread::UnshareFlags;

/// Gives this thread, and every thread and process that it starts from now on, mounts of its own.
/// Says in an error why that was refused: it takes root, and a kernel that lets it.
pub fn own_mounts() -> Result<()> {
    // SAFETY: only `FILES` could take descriptors from under another thread, and it is not asked for.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.context("a mount namespace")?;
    // What is mounted from here on shows nowhere else.
    run(Command::new("mount").args(["--make-rprivate", "/"]))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().context("mount")?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// A mounted tmpfs. Dropping it unmounts it.
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Mounts one of so many MiB on a folder, which is made where it is missing. Needs [`own_mounts`]
    /// on this thread, or on one that started it.
    pub fn mount(at: &Path, mebibytes: u64) -> Result<SmallDisk> {
        std::fs::create_dir_all(at)?;
        let size = format!("size={mebibytes}m");
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "small"])
            .arg(at))?;
        Ok(SmallDisk { at: at.to_owned() })
    }

    /// How much of it is used, in percent.
    pub fn used_percent(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.at)?;
        Ok((stat.f_blocks - stat.f_bfree) * 100 / stat.f_blocks.max(1))
    }

    /// Fills it to so many percent; 100 leaves room for not one byte. Writes to the file that stands
    /// there already, so it can be called again when somebody else has made room.
    pub fn fill(&self, percent: u64) -> Result<()> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(self.ballast());
        let mut file = file.context("the ballast")?;
        while percent == 100 || self.used_percent()? < percent {
            match file.write(&[0x55; PIECE_BYTES]) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Makes room again.
    pub fn empty(&self) -> Result<()> {
        std::fs::remove_file(self.ballast()).context("the ballast")
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whoever still has a file open there keeps it until the namespace ends.
        let _ = run(Command::new("umount").arg("--lazy").arg(&self.at));
    }
}

/// Small enough that a disk of a few MiB can be filled to a percent.
const PIECE_BYTES: usize = 16 * 1024;
