//! WASI preview 1 for guests, with nothing behind it but this process's memory.
//!
//! Owns: what each function of `wasi_snapshot_preview1` answers, and the state behind the answers: the
//! virtual clock, the place in the seeded chance, the files, the log. Never blocks a thread, never
//! reaches a file or a socket of the machine's, and never grants: [`Policy`] does.
//!
//! ```text
//!   guest ──fd_write──> Wasi ──granted──> the log, or a file in memory
//!                        └────not───────> EACCES to the guest, a Denial to the sink
//! ```
//!
//! It is written here, not taken from an engine's library, for three reasons. The state behind it can
//! then be checkpointed with the guest's memory: a library's is opaque, and a guest whose clock or
//! descriptors are lost on the way is another guest. Every refusal is seen. And a sandbox that knows
//! no file of the machine's cannot be led to one.
//!
//! Every pointer of the guest's is checked against its memory (`EFAULT`), every loop is bounded by a
//! constant of [`crate::policy`], because a host call cannot be interrupted as a guest can.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use minicbor::{Decode, Encode};
use sha2::{Digest, Sha256};
use wasmtime::{Caller, Extern, FuncType, Linker, Val, ValType};

use crate::files::{Access, FIRST_FD, Files, How, Refused, Stat};
use crate::policy::{
    BUFFERS_MAX, COPY_BYTES_MAX, Clock, DENIALS_MAX, Denial, DenialSink, LOG_BYTES_MAX, Output,
    PATH_BYTES_MAX, Policy, RANDOM_BYTES_MAX, Random, SUBSCRIPTIONS_MAX,
};
use crate::rewrite;

/// The module from which guests import.
pub const MODULE: &str = "wasi_snapshot_preview1";

/// Every function of preview 1: its name, and its parameters as `i` (i32) and `I` (i64). Each returns
/// an errno as i32, but `proc_exit`, which does not return.
const FUNCTIONS: [(&str, &str); 46] = [
    ("args_get", "ii"),
    ("args_sizes_get", "ii"),
    ("clock_res_get", "ii"),
    ("clock_time_get", "iIi"),
    ("environ_get", "ii"),
    ("environ_sizes_get", "ii"),
    ("fd_advise", "iIIi"),
    ("fd_allocate", "iII"),
    ("fd_close", "i"),
    ("fd_datasync", "i"),
    ("fd_fdstat_get", "ii"),
    ("fd_fdstat_set_flags", "ii"),
    ("fd_fdstat_set_rights", "iII"),
    ("fd_filestat_get", "ii"),
    ("fd_filestat_set_size", "iI"),
    ("fd_filestat_set_times", "iIIi"),
    ("fd_pread", "iiiIi"),
    ("fd_prestat_dir_name", "iii"),
    ("fd_prestat_get", "ii"),
    ("fd_pwrite", "iiiIi"),
    ("fd_read", "iiii"),
    ("fd_readdir", "iiiIi"),
    ("fd_renumber", "ii"),
    ("fd_seek", "iIii"),
    ("fd_sync", "i"),
    ("fd_tell", "ii"),
    ("fd_write", "iiii"),
    ("path_create_directory", "iii"),
    ("path_filestat_get", "iiiii"),
    ("path_filestat_set_times", "iiiiIIi"),
    ("path_link", "iiiiiii"),
    ("path_open", "iiiiiIIii"),
    ("path_readlink", "iiiiii"),
    ("path_remove_directory", "iii"),
    ("path_rename", "iiiiii"),
    ("path_symlink", "iiiii"),
    ("path_unlink_file", "iii"),
    ("poll_oneoff", "iiii"),
    ("proc_exit", "i"),
    ("proc_raise", "i"),
    ("random_get", "ii"),
    ("sched_yield", ""),
    ("sock_accept", "iii"),
    ("sock_recv", "iiiiii"),
    ("sock_send", "iiiii"),
    ("sock_shutdown", "ii"),
];

/// Those that are refused whatever the policy says, because there is nothing they could reach.
const REFUSED: [&str; 10] = [
    "fd_allocate",
    "fd_filestat_set_times",
    "path_filestat_set_times",
    "path_link",
    "path_readlink",
    "path_symlink",
    "sock_accept",
    "sock_recv",
    "sock_send",
    "sock_shutdown",
];

/// How far the virtual clock moves whenever it is read: a guest that waits for time to pass by reading
/// it must see it pass.
const VIRTUAL_STEP: Duration = Duration::from_micros(1);

/// Where the virtual clock begins: 1 January 2026, in nanoseconds since 1970. Programs that check
/// certificates or format dates do not like 1970.
const VIRTUAL_EPOCH: u64 = 1_767_225_600_000_000_000;

/// The grain of the real clock: too coarse to measure a cache with.
const REAL_GRAIN: Duration = Duration::from_millis(1);

/// A number by which WASI preview 1 names an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub u16);

#[allow(missing_docs)] // named as WASI names them
impl Errno {
    pub const SUCCESS: Errno = Errno(0);
    pub const TOOBIG: Errno = Errno(1);
    pub const ACCES: Errno = Errno(2);
    pub const BADF: Errno = Errno(8);
    pub const BUSY: Errno = Errno(10);
    pub const EXIST: Errno = Errno(20);
    pub const FAULT: Errno = Errno(21);
    pub const FBIG: Errno = Errno(22);
    pub const ILSEQ: Errno = Errno(25);
    pub const INVAL: Errno = Errno(28);
    pub const IO: Errno = Errno(29);
    pub const ISDIR: Errno = Errno(31);
    pub const MFILE: Errno = Errno(33);
    pub const NAMETOOLONG: Errno = Errno(37);
    pub const NOENT: Errno = Errno(44);
    pub const NOSPC: Errno = Errno(51);
    pub const NOSYS: Errno = Errno(52);
    pub const NOTDIR: Errno = Errno(54);
    pub const NOTEMPTY: Errno = Errno(55);
    pub const NOTSUP: Errno = Errno(58);
    pub const SPIPE: Errno = Errno(70);
}

/// The guest ended itself by `proc_exit`: what a call that did so fails with. The instance is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest exited with code {0}")]
pub struct Exit(pub i32);

/// What a guest wrote during one call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// Standard output and error, as they came; at most [`LOG_BYTES_MAX`].
    pub bytes: Vec<u8>,
    /// How many bytes more there were.
    pub dropped: u64,
}

/// One instance's WASI: put into the store's data.
pub struct Wasi {
    policy: Policy,
    tenant: String,
    sandbox: String,
    sink: DenialSink,
    state: State,
    /// The machine's clock when this began, for the real monotonic one.
    began: u64,
    log: Log,
    denials: u32,
}

/// What is checkpointed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
struct State {
    /// How long the guest has lived by its own clock, in nanoseconds.
    #[n(0)]
    lived: u64,
    /// How many blocks of seeded chance were given.
    #[n(1)]
    blocks: u64,
    #[n(2)]
    files: Files,
    /// The latest time that the guest saw on the wall clock, in nanoseconds since 1970: another machine's
    /// may be behind, and a guest's never goes back.
    #[n(3)]
    seen: u64,
}

/// The state of a checkpoint is not one. Nothing was restored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the state behind a guest's WASI cannot be read: {0}")]
pub struct BadState(String);

impl Wasi {
    /// A new guest's, by a policy that was [checked](Policy::check).
    pub fn new(policy: Policy, tenant: &str, sandbox: &str, sink: DenialSink) -> Wasi {
        let state = State {
            files: Files::new(&policy.folders),
            ..State::default()
        };
        Wasi {
            policy,
            tenant: tenant.to_owned(),
            sandbox: sandbox.to_owned(),
            sink,
            state,
            began: boot_nanos(),
            log: Log::default(),
            denials: 0,
        }
    }

    /// Goes on from what [`Wasi::checkpoint`] gave.
    ///
    /// # Errors
    /// The bytes are no such state; this is as it was.
    pub fn restore(&mut self, state: &[u8]) -> Result<(), BadState> {
        let state = minicbor::decode(state).map_err(|error| BadState(error.to_string()))?;
        self.state = state;
        self.began = boot_nanos();
        Ok(())
    }

    /// All that is behind the guest's calls, as bytes: its clock, its chance, its files and
    /// descriptors. Not the log, which belongs to one call.
    pub fn checkpoint(&self) -> Vec<u8> {
        let mut state = self.state.clone();
        if self.policy.clock == Clock::Real {
            state.lived = self.lived_really();
        }
        minicbor::to_vec(state).unwrap_or_default()
    }

    /// A call begins: the log is empty again, and denials are told again.
    pub fn begin_call(&mut self) {
        self.log = Log::default();
        self.denials = 0;
    }

    /// What the guest wrote since the call began.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// How often it was denied something since the call began.
    pub fn denials(&self) -> u32 {
        self.denials
    }

    fn denied(&mut self, call: &str, wanted: impl Into<String>) -> Errno {
        self.denials = self.denials.saturating_add(1);
        if self.denials <= DENIALS_MAX {
            (self.sink)(Denial {
                tenant: self.tenant.clone(),
                sandbox: self.sandbox.clone(),
                call: call.to_owned(),
                wanted: wanted.into(),
                errno: Errno::ACCES.0,
            });
        }
        Errno::ACCES
    }

    /// Of a call on a path: the number, and the event if it was the policy's doing.
    fn refused(&mut self, call: &str, path: &[u8], refused: Refused) -> Errno {
        match refused {
            Refused::Errno(errno) => errno,
            Refused::Denied => {
                let shown = &path[..path.len().min(PATH_BYTES_MAX)];
                self.denied(call, String::from_utf8_lossy(shown).into_owned())
            }
        }
    }

    /// A descriptor that is not there, of a guest that was granted no folder, is reaching for one.
    fn no_folder(&mut self, call: &str, fd: u32) -> Result<(), Errno> {
        match self.state.files.is_empty() && fd >= FIRST_FD {
            true => Err(self.denied(call, format!("descriptor {fd}"))),
            false => Ok(()),
        }
    }

    fn lived_really(&self) -> u64 {
        let lived = boot_nanos().saturating_sub(self.began);
        self.state.lived.saturating_add(lived)
    }

    /// The time of a clock, in nanoseconds: since 1970 for the first, since the guest began for the
    /// others.
    fn time(&mut self, clock: u32) -> Result<u64, Errno> {
        let name = match clock {
            0 => "the wall clock",
            1 => "the monotonic clock",
            2 | 3 => "the processor's time",
            _ => return Err(Errno::INVAL),
        };
        let (lived, epoch) = match self.policy.clock {
            Clock::Denied => return Err(self.denied("clock_time_get", name)),
            Clock::Virtual => {
                let step = VIRTUAL_STEP.as_nanos() as u64;
                self.state.lived = self.state.lived.saturating_add(step);
                (self.state.lived, VIRTUAL_EPOCH)
            }
            Clock::Real if clock == 0 => {
                // A guest's date is a fact that it was granted; nothing of the node's is decided by it.
                #[allow(clippy::disallowed_methods)]
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                let now = now.map_or(0, |now| now.as_nanos() as u64);
                self.state.seen = self.state.seen.max(now);
                (0, self.state.seen)
            }
            Clock::Real => (self.lived_really(), 0),
        };
        let nanos = match clock {
            0 => epoch.saturating_add(lived),
            _ => lived,
        };
        let grain = match self.policy.clock {
            Clock::Real => REAL_GRAIN.as_nanos() as u64,
            _ => 1,
        };
        Ok(nanos - nanos % grain)
    }

    fn fill_random(&mut self, into: &mut [u8]) -> Result<(), Errno> {
        if into.len() > RANDOM_BYTES_MAX {
            return Err(Errno::TOOBIG);
        }
        match self.policy.random {
            Random::Denied => {
                let wanted = format!("{} bytes", into.len());
                Err(self.denied("random_get", wanted))
            }
            Random::Seeded(seed) => {
                for chunk in into.chunks_mut(32) {
                    let mut block = Sha256::new();
                    block.update(seed.to_le_bytes());
                    block.update(self.state.blocks.to_le_bytes());
                    self.state.blocks += 1;
                    chunk.copy_from_slice(&block.finalize()[..chunk.len()]);
                }
                Ok(())
            }
            Random::Real => {
                let mut filled = 0;
                while filled < into.len() {
                    let rest = &mut into[filled..];
                    match rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty()) {
                        Ok(some) => filled += some,
                        Err(rustix::io::Errno::INTR) => {}
                        Err(_) => return Err(Errno::IO),
                    }
                }
                Ok(())
            }
        }
    }

    /// Standard output or error takes bytes.
    fn write_log(&mut self, fd: u32, bytes: &[u8]) -> Result<(), Errno> {
        if self.policy.output == Output::Denied {
            let name = if fd == 1 {
                "standard output"
            } else {
                "standard error"
            };
            return Err(self.denied("fd_write", name));
        }
        let room = LOG_BYTES_MAX - self.log.bytes.len();
        let (kept, dropped) = bytes.split_at(bytes.len().min(room));
        self.log.bytes.extend_from_slice(kept);
        self.log.dropped += dropped.len() as u64;
        Ok(())
    }
}

impl std::fmt::Debug for Wasi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Wasi {
            tenant, sandbox, ..
        } = self;
        write!(f, "Wasi({tenant}/{sandbox})")
    }
}

/// The parameters and results of a function of preview 1, as [`crate::validate::About`] writes types.
pub(crate) fn type_text(name: &str) -> Option<String> {
    let at = FUNCTIONS
        .binary_search_by_key(&name, |(name, _)| name)
        .ok()?;
    let (_, parameters) = FUNCTIONS[at];
    let names = parameters
        .chars()
        .map(|c| if c == 'I' { "i64" } else { "i32" });
    let names: Vec<&str> = names.collect();
    let result = if name == "proc_exit" { "" } else { "i32" };
    Some(format!("({}) -> ({result})", names.join(", ")))
}

fn boot_nanos() -> u64 {
    understudy_supervision::clock::now().as_nanos()
}

/// The guest's memory and its WASI, for one host call.
struct View<'a> {
    memory: &'a mut [u8],
    wasi: &'a mut Wasi,
}

impl View<'_> {
    fn range(&self, at: u32, len: u32) -> Result<std::ops::Range<usize>, Errno> {
        let start = at as usize;
        let end = start.checked_add(len as usize).ok_or(Errno::FAULT)?;
        match end <= self.memory.len() {
            true => Ok(start..end),
            false => Err(Errno::FAULT),
        }
    }

    fn bytes(&self, at: u32, len: u32) -> Result<&[u8], Errno> {
        let range = self.range(at, len)?;
        Ok(&self.memory[range])
    }

    fn put(&mut self, at: u32, bytes: &[u8]) -> Result<(), Errno> {
        let range = self.range(at, bytes.len() as u32)?;
        self.memory[range].copy_from_slice(bytes);
        Ok(())
    }

    fn u32(&self, at: u32) -> Result<u32, Errno> {
        let bytes = self.bytes(at, 4)?.try_into();
        bytes.map(u32::from_le_bytes).map_err(|_| Errno::FAULT)
    }

    fn u64(&self, at: u32) -> Result<u64, Errno> {
        let bytes = self.bytes(at, 8)?.try_into();
        bytes.map(u64::from_le_bytes).map_err(|_| Errno::FAULT)
    }

    fn path(&self, at: u32, len: u32) -> Result<Vec<u8>, Errno> {
        // Longer ones are refused by whoever reads the path; no need to copy them for that.
        let shown = (len as usize).min(PATH_BYTES_MAX + 1) as u32;
        self.bytes(at, len)?;
        Ok(self.bytes(at, shown)?.to_vec())
    }

    /// The buffers of a read or write, checked, and cut where [`COPY_BYTES_MAX`] is reached.
    fn buffers(&self, at: u32, count: u32) -> Result<Vec<std::ops::Range<usize>>, Errno> {
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
    fn put_strings(&mut self, table: u32, at: u32, texts: &[String]) -> Result<(), Errno> {
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

    fn put_sizes(&mut self, count: u32, bytes: u32, texts: &[String]) -> Result<(), Errno> {
        let all: usize = texts.iter().map(|text| text.len() + 1).sum();
        self.put(count, &(texts.len() as u32).to_le_bytes())?;
        self.put(bytes, &(all as u32).to_le_bytes())
    }

    fn environment(&self) -> Vec<String> {
        let pairs = self.wasi.policy.env.iter();
        pairs
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }

    fn write(
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
        if fd == 0 {
            return Err(Errno::BADF);
        }
        let mut written = 0_u32;
        let mut at = at;
        for range in self.buffers(buffers.0, buffers.1)? {
            let bytes = &self.memory[range];
            let done = match fd {
                1 | 2 => self.wasi.write_log(fd, bytes),
                _ => self.wasi.state.files.write(fd, at, bytes),
            };
            match done {
                Ok(()) => {}
                // What was written before counts: the guest comes again for the rest.
                Err(_) if written > 0 => break,
                Err(errno) => return Err(errno),
            }
            written += bytes.len() as u32;
            at = at.map(|at| at.saturating_add(bytes.len() as u64));
        }
        self.put(out, &written.to_le_bytes())
    }

    fn read(
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
            at = at.map(|at| at.saturating_add(some as u64));
            if some < wanted {
                break;
            }
        }
        self.put(out, &read.to_le_bytes())
    }

    fn put_stat(&mut self, at: u32, stat: Stat) -> Result<(), Errno> {
        let mut bytes = [0; 64];
        bytes[8..16].copy_from_slice(&stat.inode.to_le_bytes());
        bytes[16] = file_type(stat);
        bytes[24] = 1; // it has one name
        bytes[32..40].copy_from_slice(&stat.bytes.to_le_bytes());
        self.put(at, &bytes)
    }

    /// What a descriptor is: its type, its flags, and what it may be used for.
    fn put_fdstat(&mut self, fd: u32, at: u32) -> Result<(), Errno> {
        let files = &self.wasi.state.files;
        let (kind, flags, rights) = match fd {
            0 => (CHARACTERS, 0, RIGHT_READ),
            1 | 2 => (CHARACTERS, 0, RIGHT_WRITE),
            fd => {
                let (access, append) = files.access(fd)?;
                let read = if access.read { RIGHTS_READING } else { 0 };
                let write = if access.write { RIGHTS_WRITING } else { 0 };
                (file_type(files.stat(fd)?), u16::from(append), read | write)
            }
        };
        let mut bytes = [0; 24];
        bytes[0] = kind;
        bytes[2..4].copy_from_slice(&flags.to_le_bytes());
        bytes[8..16].copy_from_slice(&rights.to_le_bytes());
        bytes[16..24].copy_from_slice(&rights.to_le_bytes());
        self.put(at, &bytes)
    }

    fn read_folder(&mut self, fd: u32, to: (u32, u32), cookie: u64, out: u32) -> Result<(), Errno> {
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
    fn subscriptions(&mut self, at: u32, count: u32) -> Result<Waits, Errno> {
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
const CHARACTERS: u8 = 2;
const FOLDER: u8 = 3;
const REGULAR: u8 = 4;

/// What a descriptor may be used for, as WASI's `rights` number it.
const RIGHT_READ: u64 = 1 << 1;
const RIGHT_WRITE: u64 = 1 << 6;
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
struct Waits {
    ready: Vec<[u8; 32]>,
    /// How long until each, in nanoseconds.
    clocks: Vec<(u64, [u8; 32])>,
}

fn event(userdata: u64, errno: Errno, kind: u8) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&userdata.to_le_bytes());
    bytes[8..10].copy_from_slice(&errno.0.to_le_bytes());
    bytes[10] = kind;
    bytes
}

/// Defines every function of preview 1. `get` finds the [`Wasi`] in a store's data. Instances must be
/// made and called by the engine's async functions, because a guest may sleep.
///
/// # Errors
/// The linker has one of the names already.
pub fn add_to_linker<T: Send + 'static>(
    linker: &mut Linker<T>,
    get: fn(&mut T) -> &mut Wasi,
) -> wasmtime::Result<()> {
    /// Defines one: what follows has the memory and the WASI as a [`View`].
    macro_rules! define {
        ($name:literal, |$view:ident $(, $arg:ident: $ty:ty)*| $body:expr) => {
            linker.func_wrap(MODULE, $name, move |mut caller: Caller<'_, T> $(, $arg: $ty)*| -> i32 {
                answer(&mut caller, get, |$view: &mut View<'_>| -> Result<(), Errno> { $body })
            })?;
        };
    }

    define!("args_get", |v, table: u32, at: u32| {
        let args = v.wasi.policy.args.clone();
        v.put_strings(table, at, &args)
    });
    define!("args_sizes_get", |v, count: u32, bytes: u32| {
        let args = v.wasi.policy.args.clone();
        v.put_sizes(count, bytes, &args)
    });
    define!("environ_get", |v, table: u32, at: u32| {
        let env = v.environment();
        v.put_strings(table, at, &env)
    });
    define!("environ_sizes_get", |v, count: u32, bytes: u32| {
        let env = v.environment();
        v.put_sizes(count, bytes, &env)
    });
    define!("clock_res_get", |v, clock: u32, out: u32| {
        let grain = match (v.wasi.policy.clock, clock) {
            (_, 4..) => return Err(Errno::INVAL),
            (Clock::Denied, _) => return Err(v.wasi.denied("clock_res_get", "a clock")),
            (Clock::Virtual, _) => VIRTUAL_STEP,
            (Clock::Real, _) => REAL_GRAIN,
        };
        v.put(out, &(grain.as_nanos() as u64).to_le_bytes())
    });
    define!("clock_time_get", |v,
                               clock: u32,
                               _precision: u64,
                               out: u32| {
        v.range(out, 8)?;
        let time = v.wasi.time(clock)?;
        v.put(out, &time.to_le_bytes())
    });
    define!("random_get", |v, at: u32, len: u32| {
        let range = v.range(at, len)?;
        v.wasi.fill_random(&mut v.memory[range])
    });
    define!("sched_yield", |_v| Ok(()));
    define!("proc_raise", |_v, _signal: u32| Err(Errno::NOSYS));

    define!("fd_write", |v, fd: u32, at: u32, count: u32, out: u32| {
        v.write(fd, None, (at, count), out)
    });
    define!("fd_pwrite", |v,
                          fd: u32,
                          at: u32,
                          count: u32,
                          offset: u64,
                          out: u32| {
        v.write(fd, Some(offset), (at, count), out)
    });
    define!("fd_read", |v, fd: u32, at: u32, count: u32, out: u32| {
        v.read(fd, None, (at, count), out)
    });
    define!("fd_pread", |v,
                         fd: u32,
                         at: u32,
                         count: u32,
                         offset: u64,
                         out: u32| {
        v.read(fd, Some(offset), (at, count), out)
    });
    define!("fd_seek", |v, fd: u32, by: i64, whence: u32, out: u32| {
        if fd < FIRST_FD {
            return Err(Errno::SPIPE);
        }
        v.range(out, 8)?;
        let at = v.wasi.state.files.seek(fd, by, whence)?;
        v.put(out, &at.to_le_bytes())
    });
    define!("fd_tell", |v, fd: u32, out: u32| {
        if fd < FIRST_FD {
            return Err(Errno::SPIPE);
        }
        let at = v.wasi.state.files.seek(fd, 0, 1)?;
        v.put(out, &at.to_le_bytes())
    });
    define!("fd_close", |v, fd: u32| match fd {
        // They are the host's; a program that closes them at its end means well.
        0..FIRST_FD => Ok(()),
        fd => v.wasi.state.files.close(fd),
    });
    define!("fd_renumber", |v, from: u32, to: u32| v
        .wasi
        .state
        .files
        .renumber(from, to));
    define!("fd_sync", |v, fd: u32| v
        .wasi
        .state
        .files
        .access(fd)
        .map(drop));
    define!("fd_datasync", |v, fd: u32| v
        .wasi
        .state
        .files
        .access(fd)
        .map(drop));
    define!("fd_advise", |v,
                          fd: u32,
                          _at: u64,
                          _len: u64,
                          _advice: u32| {
        v.wasi.state.files.access(fd).map(drop)
    });
    define!("fd_fdstat_get", |v, fd: u32, out: u32| v
        .put_fdstat(fd, out));
    define!("fd_fdstat_set_flags", |v, fd: u32, _flags: u32| match fd {
        // Whether a call waits makes no difference to files in memory.
        0..FIRST_FD => Ok(()),
        fd => v.wasi.state.files.access(fd).map(drop),
    });
    define!(
        "fd_fdstat_set_rights",
        |v, fd: u32, _base: u64, _inheriting: u64| v.wasi.state.files.access(fd).map(drop)
    );
    define!("fd_filestat_get", |v, fd: u32, out: u32| {
        if fd < FIRST_FD {
            let mut bytes = [0; 64];
            bytes[16] = CHARACTERS;
            return v.put(out, &bytes);
        }
        let stat = v.wasi.state.files.stat(fd)?;
        v.put_stat(out, stat)
    });
    define!("fd_filestat_set_size", |v, fd: u32, size: u64| {
        v.wasi.state.files.set_size(fd, size)
    });
    define!("fd_prestat_get", |v, fd: u32, out: u32| {
        let path = v.wasi.state.files.mount_path(fd).ok_or(Errno::BADF)?;
        let mut bytes = [0; 8];
        bytes[4..].copy_from_slice(&(path.len() as u32).to_le_bytes());
        v.put(out, &bytes)
    });
    define!("fd_prestat_dir_name", |v, fd: u32, at: u32, len: u32| {
        let path = v
            .wasi
            .state
            .files
            .mount_path(fd)
            .ok_or(Errno::BADF)?
            .to_owned();
        if path.len() > len as usize {
            return Err(Errno::NAMETOOLONG);
        }
        v.put(at, path.as_bytes())
    });
    define!("fd_readdir", |v,
                           fd: u32,
                           at: u32,
                           len: u32,
                           cookie: u64,
                           out: u32| {
        v.read_folder(fd, (at, len), cookie, out)
    });

    define!("path_open", |v,
                          fd: u32,
                          _lookup: u32,
                          at: u32,
                          len: u32,
                          oflags: u32,
                          rights: u64,
                          _inheriting: u64,
                          flags: u32,
                          out: u32| {
        v.range(out, 4)?;
        let path = v.path(at, len)?;
        v.wasi.no_folder("path_open", fd)?;
        let how = How {
            create: oflags & 1 != 0,
            folder: oflags & 2 != 0,
            exclusive: oflags & 4 != 0,
            truncate: oflags & 8 != 0,
            append: flags & 1 != 0,
            access: Access {
                read: rights & RIGHT_READ != 0 || rights & 1 << 14 != 0,
                write: rights & RIGHT_WRITE != 0,
            },
        };
        let opened = v.wasi.state.files.open(fd, &path, how);
        let fd = opened.map_err(|refused| v.wasi.refused("path_open", &path, refused))?;
        v.put(out, &fd.to_le_bytes())
    });
    define!(
        "path_filestat_get",
        |v, fd: u32, _lookup: u32, at: u32, len: u32, out: u32| {
            let path = v.path(at, len)?;
            v.wasi.no_folder("path_filestat_get", fd)?;
            let stat = v.wasi.state.files.stat_path(fd, &path);
            let stat =
                stat.map_err(|refused| v.wasi.refused("path_filestat_get", &path, refused))?;
            v.put_stat(out, stat)
        }
    );
    define!("path_create_directory", |v, fd: u32, at: u32, len: u32| {
        let path = v.path(at, len)?;
        v.wasi.no_folder("path_create_directory", fd)?;
        let made = v.wasi.state.files.make_folder(fd, &path);
        made.map_err(|refused| v.wasi.refused("path_create_directory", &path, refused))
    });
    define!("path_unlink_file", |v, fd: u32, at: u32, len: u32| {
        let path = v.path(at, len)?;
        v.wasi.no_folder("path_unlink_file", fd)?;
        let gone = v.wasi.state.files.remove(fd, &path, false);
        gone.map_err(|refused| v.wasi.refused("path_unlink_file", &path, refused))
    });
    define!("path_remove_directory", |v, fd: u32, at: u32, len: u32| {
        let path = v.path(at, len)?;
        v.wasi.no_folder("path_remove_directory", fd)?;
        let gone = v.wasi.state.files.remove(fd, &path, true);
        gone.map_err(|refused| v.wasi.refused("path_remove_directory", &path, refused))
    });
    define!("path_rename", |v,
                            fd: u32,
                            at: u32,
                            len: u32,
                            to: u32,
                            new: u32,
                            new_len: u32| {
        let (path, new) = (v.path(at, len)?, v.path(new, new_len)?);
        v.wasi.no_folder("path_rename", fd)?;
        let done = v.wasi.state.files.rename(fd, &path, to, &new);
        done.map_err(|refused| v.wasi.refused("path_rename", &path, refused))
    });

    for name in REFUSED {
        define_refused(linker, get, name)?;
    }
    linker.func_wrap(MODULE, "proc_exit", |code: i32| -> wasmtime::Result<()> {
        Err(wasmtime::Error::new(Exit(code)))
    })?;
    linker.func_wrap_async(
        MODULE,
        "poll_oneoff",
        move |mut caller: Caller<'_, T>, asked: (u32, u32, u32, u32)| {
            Box::new(async move { poll(&mut caller, get, asked).await })
        },
    )?;
    Ok(())
}

/// Runs one host call and turns what came of it into the number that the guest sees.
fn answer<T: 'static>(
    caller: &mut Caller<'_, T>,
    get: fn(&mut T) -> &mut Wasi,
    call: impl FnOnce(&mut View<'_>) -> Result<(), Errno>,
) -> i32 {
    // The one that preview 1 asks for; or, of a module that hides it, the name that it has for us.
    let memory = caller.get_export("memory");
    let memory = memory.or_else(|| caller.get_export(rewrite::MEMORY));
    let Some(Extern::Memory(memory)) = memory else {
        return Errno::FAULT.0.into();
    };
    let (memory, data) = memory.data_and_store_mut(caller);
    let mut view = View {
        memory,
        wasi: get(data),
    };
    match call(&mut view) {
        Ok(()) => 0,
        Err(errno) => errno.0.into(),
    }
}

/// Defines a function that is denied always, with the type that preview 1 gives it.
fn define_refused<T: Send + 'static>(
    linker: &mut Linker<T>,
    get: fn(&mut T) -> &mut Wasi,
    name: &'static str,
) -> wasmtime::Result<()> {
    let found = FUNCTIONS.iter().find(|(of, _)| *of == name);
    let parameters = found.map_or("", |(_, parameters)| parameters);
    let types = parameters.chars().map(|c| match c {
        'I' => ValType::I64,
        _ => ValType::I32,
    });
    let ty = FuncType::new(linker.engine(), types, [ValType::I32]);
    linker.func_new(MODULE, name, ty, move |mut caller, _, results| {
        let errno = get(caller.data_mut()).denied(name, "what is never granted");
        results[0] = Val::I32(errno.0.into());
        Ok(())
    })?;
    Ok(())
}

/// `poll_oneoff`: what is ready is told at once; otherwise it sleeps until the first clock's time, by
/// the virtual clock without any delay. The call's own deadline ends a sleep that is too long.
async fn poll<T: Send + 'static>(
    caller: &mut Caller<'_, T>,
    get: fn(&mut T) -> &mut Wasi,
    (subscriptions, out, count, told): (u32, u32, u32, u32),
) -> i32 {
    let mut waits = Waits::default();
    let read = answer(caller, get, |view| {
        view.range(told, 4)?;
        view.range(out, count.saturating_mul(32))?;
        waits = view.subscriptions(subscriptions, count)?;
        Ok(())
    });
    if read != 0 {
        return read;
    }
    if waits.ready.is_empty() {
        let first = waits
            .clocks
            .iter()
            .map(|(wait, _)| *wait)
            .min()
            .unwrap_or(0);
        let wasi = get(caller.data_mut());
        if wasi.policy.clock == Clock::Virtual {
            wasi.state.lived = wasi.state.lived.saturating_add(first);
        } else {
            tokio::time::sleep(Duration::from_nanos(first)).await;
        }
        let due = waits.clocks.iter().filter(|(wait, _)| *wait <= first);
        waits.ready.extend(due.map(|(_, event)| *event));
    }
    answer(caller, get, |view| {
        for (nth, event) in (0_u32..).zip(&waits.ready) {
            view.put(out + nth * 32, event)?;
        }
        view.put(told, &(waits.ready.len() as u32).to_le_bytes())
    })
}

#[cfg(test)]
mod tests;
