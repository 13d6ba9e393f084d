//! `[sandbox]`: what WebAssembly guests may use of a node.

use std::time::Duration;

use crate::read::{Entry, Section};
use crate::units;

/// What guests may use of a node. Nodes of one cluster should agree on it: a guest that moves to a node
/// with less memory for it than it has cannot go on there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SandboxConfig {
    /// `memory_limit`: bytes of memory of one guest, `"256MiB"` by default; from [`MEMORY_MIN`] to
    /// [`MEMORY_MAX`].
    pub memory_limit: u64,
    /// `call_cpu`: how long one call may compute, `"1s"` by default; in slices of [`SLICE`].
    pub call_cpu: Duration,
    /// `call_limit`: how long one call may take by the clock, sleeps included; `"10s"` by default, which
    /// is the most.
    pub call_limit: Duration,
    /// `guests`: how many guests may be in memory at once, 1000 by default, up to [`GUESTS_MAX`]. Each
    /// reserves 4 GiB of addresses, which is not memory.
    pub guests: u32,
    /// `function_instances`: how many instances of one stateless function may run at once, 5 by default,
    /// up to [`FUNCTION_INSTANCES_MAX`].
    pub function_instances: u32,
    /// `module_cache`: bytes on disk for modules that were fetched, `"1GiB"` by default. At least
    /// [`MODULE_CACHE_MIN`].
    pub module_cache: u64,
}

impl Default for SandboxConfig {
    /// What a large script interpreter needs, on a machine that has other work too.
    fn default() -> SandboxConfig {
        SandboxConfig {
            memory_limit: MEMORY_MAX,
            call_cpu: Duration::from_secs(1),
            call_limit: CALL_LIMIT_MAX,
            guests: 1_000,
            function_instances: 5,
            module_cache: 1 << 30,
        }
    }
}

pub(crate) fn read(mut section: Section<'_>) -> Option<SandboxConfig> {
    let usual = SandboxConfig::default();
    let call_limit_at = section.place("call_limit");
    let memory_limit = section.get_or("memory_limit", usual.memory_limit, |entry| {
        bytes(entry, MEMORY_MIN, MEMORY_MAX)
    });
    let call_cpu = section.get_or("call_cpu", usual.call_cpu, |entry| {
        let span = span(entry, SLICE, CALL_LIMIT_MAX)?;
        match span.as_millis().is_multiple_of(SLICE.as_millis()) {
            true => Ok(span),
            false => Err(format!(
                "{span:?} should be a multiple of {SLICE:?}, the slice that a guest holds a core for"
            )),
        }
    });
    let call_limit = section.get_or("call_limit", usual.call_limit, |entry| {
        span(entry, SLICE, CALL_LIMIT_MAX)
    });
    let guests = section.get_or("guests", usual.guests, |entry| count(entry, GUESTS_MAX));
    let function_instances =
        section.get_or("function_instances", usual.function_instances, |entry| {
            count(entry, FUNCTION_INSTANCES_MAX)
        });
    let module_cache = section.get_or("module_cache", usual.module_cache, |entry| {
        bytes(entry, MODULE_CACHE_MIN, u64::MAX)
    });
    if let Some((cpu, limit)) = call_cpu.zip(call_limit)
        && cpu > limit
    {
        let what = format!("{limit:?} is less than `call_cpu`, which is {cpu:?}");
        section.fail(call_limit_at, "call_limit", what);
    }
    let sandbox = (|| {
        Some(SandboxConfig {
            memory_limit: memory_limit?,
            call_cpu: call_cpu?,
            call_limit: call_limit?,
            guests: guests?,
            function_instances: function_instances?,
            module_cache: module_cache?,
        })
    })();
    section.finish(sandbox)
}

fn bytes(entry: &Entry, min: u64, max: u64) -> Result<u64, String> {
    let text = entry.text()?;
    let bytes = units::bytes(text)?;
    match bytes {
        bytes if bytes < min => Err(format!("{text} is less than {}", units::bytes_written(min))),
        bytes if bytes > max => Err(format!("{text} is more than {}", units::bytes_written(max))),
        bytes => Ok(bytes),
    }
}

fn span(entry: &Entry, min: Duration, max: Duration) -> Result<Duration, String> {
    let span = units::duration(entry.text()?)?;
    match (min..=max).contains(&span) {
        true => Ok(span),
        false => Err(format!("{span:?} is not from {min:?} to {max:?}")),
    }
}

fn count(entry: &Entry, max: u32) -> Result<u32, String> {
    let number = entry.integer()?;
    u32::try_from(number)
        .ok()
        .filter(|number| (1..=max).contains(number))
        .ok_or_else(|| format!("{number} is not from 1 to {max}"))
}

impl SandboxConfig {
    pub(crate) fn write(&self) -> toml::Table {
        let mut keys = toml::Table::new();
        let mut put = |key: &str, value: toml::Value| keys.insert(key.to_owned(), value);
        put(
            "memory_limit",
            units::bytes_written(self.memory_limit).into(),
        );
        put("call_cpu", units::written(self.call_cpu).into());
        put("call_limit", units::written(self.call_limit).into());
        put("guests", i64::from(self.guests).into());
        put(
            "function_instances",
            i64::from(self.function_instances).into(),
        );
        put(
            "module_cache",
            units::bytes_written(self.module_cache).into(),
        );
        keys
    }
}

/// How long a guest holds a core before others get their turn; the engine's own.
pub const SLICE: Duration = Duration::from_millis(10);

/// One page of WebAssembly: with less a guest has none.
pub const MEMORY_MIN: u64 = 64 << 10;

/// The most that the engine's slots have room for.
pub const MEMORY_MAX: u64 = 256 << 20;

/// The longest call: the engine's own limit, well below the time after which a child counts as hung.
pub const CALL_LIMIT_MAX: Duration = Duration::from_secs(10);

/// 32 TiB of addresses, a quarter of what a process has.
pub const GUESTS_MAX: u32 = 8_000;

/// More instances of one function than any machine has cores only wait for each other.
pub const FUNCTION_INSTANCES_MAX: u32 = 256;

/// Two of the largest modules: one that is used, and one that comes.
pub const MODULE_CACHE_MIN: u64 = 64 << 20;
