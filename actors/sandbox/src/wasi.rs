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

use crate::engine::Limits;
use crate::files::{FIRST_FD, Files, Refused};
use crate::policy::{
    Clock, DENIALS_MAX, Denial, DenialSink, LOG_BYTES_MAX, Output, PATH_BYTES_MAX, Policy,
    RANDOM_BYTES_MAX, Random,
};

mod link;
mod view;

pub use link::add_to_linker;

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
const REFUSED: [&str; 8] = [
    "fd_filestat_set_times",
    "path_filestat_set_times",
    "path_link",
    "path_readlink",
    "path_symlink",
    "sock_accept",
    "sock_recv",
    "sock_send",
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
    pub const NOTSOCK: Errno = Errno(57);
    pub const NOTSUP: Errno = Errno(58);
    pub const SPIPE: Errno = Errno(70);
}

/// The guest ended itself by `proc_exit`: what a call that did so fails with. The instance is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest exited with code {0}")]
pub struct Exit(pub i32);

/// What the host does for one call is used up: what that call fails with. The instance is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest had the host do more than one call may: {what}, {most} of them at most")]
pub struct Exhausted {
    /// Of what.
    pub what: &'static str,
    /// How much there was of it.
    pub most: u64,
}

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
    budget: Budget,
}

/// What the host still does for this call.
#[derive(Clone, Copy, Default)]
struct Budget {
    calls: u32,
    bytes: u64,
    calls_at_most: u32,
    bytes_at_most: u64,
}

impl Budget {
    fn of(limits: &Limits) -> Budget {
        Budget {
            calls: limits.host_calls,
            bytes: limits.host_bytes,
            calls_at_most: limits.host_calls,
            bytes_at_most: limits.host_bytes,
        }
    }

    /// One more function.
    fn call(&mut self) -> Result<(), Exhausted> {
        let left = self.calls.checked_sub(1).ok_or(Exhausted {
            what: "functions used",
            most: self.calls_at_most.into(),
        })?;
        self.calls = left;
        Ok(())
    }

    /// So many bytes, which were copied: no single function copies many.
    fn copied(&mut self, bytes: u64) -> Result<(), Exhausted> {
        let left = self.bytes.checked_sub(bytes).ok_or(Exhausted {
            what: "bytes copied",
            most: self.bytes_at_most,
        })?;
        self.bytes = left;
        Ok(())
    }
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
            budget: Budget::of(&Limits::default()),
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
        if self.policy.clock != Clock::Real {
            return minicbor::to_vec(&self.state).unwrap_or_default();
        }
        let mut state = self.state.clone();
        state.lived = self.lived_really();
        minicbor::to_vec(state).unwrap_or_default()
    }

    /// Whether [`Wasi::checkpoint`] gives what it gave before the call began: the guest has asked the host
    /// for nothing, and no time has passed by its clock.
    pub fn is_untouched(&self) -> bool {
        self.budget.calls == self.budget.calls_at_most && self.policy.clock != Clock::Real
    }

    /// A call begins, with these limits: the log is empty again, and denials are told again.
    pub fn begin_call(&mut self, limits: &Limits) {
        self.budget = Budget::of(limits);
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

    fn denied(&mut self, call: &str, wanted: impl std::fmt::Display) -> Errno {
        self.denials = self.denials.saturating_add(1);
        if self.denials <= DENIALS_MAX {
            (self.sink)(Denial {
                tenant: self.tenant.clone(),
                sandbox: self.sandbox.clone(),
                call: call.to_owned(),
                wanted: wanted.to_string(),
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
                self.denied(call, String::from_utf8_lossy(shown))
            }
        }
    }

    /// A descriptor that is not there, of a guest that was granted no folder, is reaching for one.
    fn no_folder(&mut self, call: &str, fd: u32) -> Result<(), Errno> {
        match self.state.files.is_empty() && fd >= FIRST_FD {
            true => Err(self.denied(call, format_args!("descriptor {fd}"))),
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
                let length = into.len();
                Err(self.denied("random_get", format_args!("{length} bytes")))
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

    /// Standard output or error takes bytes, and keeps as many as it says.
    fn write_log(&mut self, fd: u32, bytes: &[u8]) -> Result<usize, Errno> {
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
        Ok(kept.len())
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

#[cfg(test)]
mod tests;
