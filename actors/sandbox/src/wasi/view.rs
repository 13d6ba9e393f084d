//! A guest's memory and its WASI together: what each host call does.
//!
//! Owns: the bounds of everything that a guest points at, and WASI's layouts. Never keeps a pointer
//! beyond the call.

use super::{Errno, Wasi};
use crate::files::{FIRST_FD, Stat};
use crate::policy::{BUFFERS_MAX, COPY_BYTES_MAX, PATH_BYTES_MAX, SUBSCRIPTIONS_MAX};

/// The guest's memory and its WASI, for one host call.
pub(super) struct View<'a> {
    pub(super) memory: &'a mut [u8],
    pub(super) wasi: &'a mut Wasi,
    /// Bytes that were copied for it.
    pub(super) copied: u64,
}

impl View<'_> {
    pub(super) fn range(&self, at: u32, len: u32) -> Result<std::ops::Range<usize>, Errno> {
        let start = at as usize;
        let end = start.checked_add(len as usize).ok_or(Errno::FAULT)?;
        match end <= self.memory.len() {
            true => Ok(start..end),
            false => Err(Errno::FAULT),
        }
    }

    pub(super) fn bytes(&self, at: u32, len: u32) -> Result<&[u8], Errno> {
        let range = self.range(at, len)?;
        Ok(&self.memory[range])
    }

    pub(super) fn put(&mut self, at: u32, bytes: &[u8]) -> Result<(), Errno> {
        let range = self.range(at, bytes.len() as u32)?;
        self.memory[range].copy_from_slice(bytes);
        self.copied += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn u32(&self, at: u32) -> Result<u32, Errno> {
        let bytes = self.bytes(at, 4)?.try_into();
        bytes.map(u32::from_le_bytes).map_err(|_| Errno::FAULT)
    }

    pub(super) fn u64(&self, at: u32) -> Result<u64, Errno> {
        let bytes = self.bytes(at, 8)?.try_into();
        bytes.map(u64::from_le_bytes).map_err(|_| Errno::FAULT)
    }

    pub(super) fn path(&self, at: u32, len: u32) -> Result<Vec<u8>, Errno> {
        // Longer ones are refused by whoever reads the path; no need to copy them for that.
        let shown = (len as usize).min(PATH_BYTES_MAX + 1) as u32;
        self.bytes(at, len)?;
        Ok(self.bytes(at, shown)?.to_vec())
    }

    /// The buffers of a read or write, checked, and cut where [`COPY_BYTES_MAX`] is reached.
    pub(super) fn buffers(
        &self,
        at: u32,
        count: u32,
    ) -> Result<Vec<std::ops::Range<usize>>, Errno> {
        if count as usize > BUFFERS_MAX {
            return Err(Errno::INVAL);
        }
        self.bytes(at, count * 8)?;
        let (mut room, mut found) = (COPY_BYTES_MAX, Vec::new());
        for nth in 0..count {
            let entry = at + nth * 8;
            let mut range = self.range(self.u32(entry)?, self.u32(entry + 4)?)?;
            range.end = range.start + range.len().min(room);
            room -= range.len();
            if !range.is_empty() {
                found.push(range);
            }
        }
        Ok(found)
    }

    /// Strings as C has them: their addresses at `table`, themselves at `at`, each with a zero.
    pub(super) fn put_strings(
        &mut self,
        table: u32,
        at: u32,
        texts: &[String],
    ) -> Result<(), Errno> {
        let mut next = at;
        for (nth, text) in (0_u32..).zip(texts) {
            let entry = table.checked_add(nth * 4).ok_or(Errno::FAULT)?;
            self.put(entry, &next.to_le_bytes())?;
            self.put(next, text.as_bytes())?;
            next = next.checked_add(text.len() as u32).ok_or(Errno::FAULT)?;
            self.put(next, &[0])?;
            next = next.checked_add(1).ok_or(Errno::FAULT)?;
        }
        Ok(())
    }

    pub(super) fn put_sizes(
        &mut self,
        count: u32,
        bytes: u32,
        texts: &[String],
    ) -> Result<(), Errno> {
        let all: usize = texts.iter().map(|text| text.len() + 1).sum();
        self.put(count, &(texts.len() as u32).to_le_bytes())?;
        self.put(bytes, &(all as u32).to_le_bytes())
    }

    pub(super) fn environment(&self) -> Vec<String> {
        let pairs = self.wasi.policy.env.iter();
        pairs
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }

    pub(super) fn write(
        &mut self,
        fd: u32,
        at: Option<u64>,
        buffers: (u32, u32),
        out: u32,
    ) -> Result<(), Errno> {
        self.range(out, 4)?;
        if matches!((fd, at), (0..=2, Some(_))) {
            return Err(Errno::SPIPE);
        }
        match fd {
            0 => return Err(Errno::BADF),
            1 | 2 => {}
            fd => drop(self.wasi.state.files.access(fd)?),
        }
        let mut written = 0_u32;
        let mut at = at;
        for range in self.buffers(buffers.0, buffers.1)? {
            let bytes = &self.memory[range];
            let done = match fd {
                1 | 2 => self.wasi.write_log(fd, bytes),
                _ => {
                    let done = self.wasi.state.files.write(fd, at, bytes);
                    done.map(|()| bytes.len())
                }
            };
            match done {
                Ok(copied) => self.copied += copied as u64,
                // What was written before counts: the guest comes again for the rest.
                Err(_) if written > 0 => break,
                Err(errno) => return Err(errno),
            }
            written += bytes.len() as u32;
            at = at.map(|at| at.saturating_add(bytes.len() as u64));
        }
        self.put(out, &written.to_le_bytes())
    }

    pub(super) fn read(
        &mut self,
        fd: u32,
        at: Option<u64>,
        buffers: (u32, u32),
        out: u32,
    ) -> Result<(), Errno> {
        self.range(out, 4)?;
        let mut read = 0_u32;
        let mut at = at;
        for range in self.buffers(buffers.0, buffers.1)? {
            let wanted = range.len();
            let bytes = match fd {
                // Nobody types to a guest: its input has ended.
                0 => &[],
                1 | 2 => return Err(Errno::BADF),
                _ => self.wasi.state.files.read(fd, at, wanted)?,
            };
            let some = bytes.len();
            self.memory[range.start..range.start + some].copy_from_slice(bytes);
            read += some as u32;
            self.copied += some as u64;
            at = at.map(|at| at.saturating_add(some as u64));
            if some < wanted {
                break;
            }
        }
        self.put(out, &read.to_le_bytes())
    }

    pub(super) fn put_stat(&mut self, at: u32, stat: Stat) -> Result<(), Errno> {
        let mut bytes = [0; 64];
        bytes[8..16].copy_from_slice(&stat.inode.to_le_bytes());
        bytes[16] = file_type(stat);
        bytes[24] = 1; // it has one name
        bytes[32..40].copy_from_slice(&stat.bytes.to_le_bytes());
        self.put(at, &bytes)
    }

    /// What a descriptor is: its type, its flags, and what it may be used for.
    pub(super) fn put_fdstat(&mut self, fd: u32, at: u32) -> Result<(), Errno> {
        let files = &self.wasi.state.files;
        let (kind, flags, rights) = match fd {
            0 => (CHARACTERS, 0, RIGHT_READ),
            1 | 2 => (CHARACTERS, 0, RIGHT_WRITE),
            fd => {
                let (access, flags) = files.access(fd)?;
                let read = if access.read { RIGHTS_READING } else { 0 };
                let write = if access.write { RIGHTS_WRITING } else { 0 };
                (file_type(files.stat(fd)?), flags, read | write)
            }
        };
        let mut bytes = [0; 24];
        bytes[0] = kind;
        bytes[2..4].copy_from_slice(&flags.to_le_bytes());
        bytes[8..16].copy_from_slice(&rights.to_le_bytes());
        bytes[16..24].copy_from_slice(&rights.to_le_bytes());
        self.put(at, &bytes)
    }

    pub(super) fn read_folder(
        &mut self,
        fd: u32,
        to: (u32, u32),
        cookie: u64,
        out: u32,
    ) -> Result<(), Errno> {
        let room = self.range(to.0, to.1)?;
        let mut listed = Vec::new();
        let entries = self.wasi.state.files.list(fd)?;
        for (next, (name, stat)) in (1_u64..).zip(entries) {
            if next <= cookie || listed.len() >= room.len() {
                continue;
            }
            listed.extend_from_slice(&next.to_le_bytes());
            listed.extend_from_slice(&stat.inode.to_le_bytes());
            listed.extend_from_slice(&(name.len() as u32).to_le_bytes());
            listed.extend_from_slice(&u32::from(file_type(stat)).to_le_bytes());
            listed.extend_from_slice(name.as_bytes());
        }
        // An entry that is cut says that there are more.
        listed.truncate(room.len());
        self.put(to.0, &listed)?;
        self.put(out, &(listed.len() as u32).to_le_bytes())
    }

    /// What `poll_oneoff` waits for: the events that are there already, or else the first of the clock's.
    pub(super) fn subscriptions(&mut self, at: u32, count: u32) -> Result<Waits, Errno> {
        if count == 0 || count as usize > SUBSCRIPTIONS_MAX {
            return Err(Errno::INVAL);
        }
        self.bytes(at, count * 48)?;
        let mut waits = Waits::default();
        for nth in 0..count {
            let entry = at + nth * 48;
            let userdata = self.u64(entry)?;
            let kind = self.bytes(entry + 8, 1)?[0];
            if kind != 0 {
                let fd = self.u32(entry + 16)?;
                let known = fd < FIRST_FD || self.wasi.state.files.access(fd).is_ok();
                let errno = if known { Errno::SUCCESS } else { Errno::BADF };
                waits.ready.push(event(userdata, errno, kind));
                continue;
            }
            let (clock, timeout) = (self.u32(entry + 16)?, self.u64(entry + 24)?);
            let absolute = self.bytes(entry + 40, 1)?[0] & 1 == 1;
            let now = self.wasi.time(clock)?;
            let wait = if absolute {
                timeout.saturating_sub(now)
            } else {
                timeout
            };
            waits
                .clocks
                .push((wait, event(userdata, Errno::SUCCESS, 0)));
        }
        Ok(waits)
    }
}

/// Types of files.
pub(super) const CHARACTERS: u8 = 2;
const FOLDER: u8 = 3;
const REGULAR: u8 = 4;

/// What a descriptor may be used for, as WASI's `rights` number it.
pub(super) const RIGHT_READ: u64 = 1 << 1;
pub(super) const RIGHT_WRITE: u64 = 1 << 6;
/// Read, seek, tell, open, list, and ask what a file is.
const RIGHTS_READING: u64 = RIGHT_READ | 1 << 2 | 1 << 5 | 1 << 13 | 1 << 14 | 1 << 18 | 1 << 21;
/// Write, seek, tell, make and rename and remove, and set a size.
const RIGHTS_WRITING: u64 = RIGHT_WRITE
    | 1 << 2
    | 1 << 5
    | 1 << 9
    | 1 << 10
    | 1 << 16
    | 1 << 17
    | 1 << 19
    | 1 << 22
    | 1 << 25
    | 1 << 26;

fn file_type(stat: Stat) -> u8 {
    if stat.folder { FOLDER } else { REGULAR }
}

#[derive(Default)]
pub(super) struct Waits {
    pub(super) ready: Vec<[u8; 32]>,
    /// How long until each, in nanoseconds.
    pub(super) clocks: Vec<(u64, [u8; 32])>,
}

fn event(userdata: u64, errno: Errno, kind: u8) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&userdata.to_le_bytes());
    bytes[8..10].copy_from_slice(&errno.0.to_le_bytes());
    bytes[10] = kind;
    bytes
}
