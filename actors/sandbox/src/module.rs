//! Modules: their names, the kind `module` that keeps one, and the cache of what was compiled.
//!
//! Owns: `NAME@VERSION`; the child that takes a module in parts and never changes it once it is sealed;
//! compiling a module once, however many ask for it at the same time. Never runs one.
//!
//! ```text
//!   empty ──begin──> uploading ──part, part, …──> uploading ──seal──> sealed   (for ever)
//!                        │ ^                          │
//!                        └─┘ begin with another hash  └──seal: wrong hash, or not valid──> empty
//! ```
//!
//! A module is a child, `TENANT/module/NAME@VERSION`, and its bytes are its state. So it is replicated
//! and fenced as any record is, and there is no registry beside the directory that could disagree.
//!
//! **A version means one content, for ever.** Whoever got `hash@1.2.0` once gets the same bytes at any
//! later time, on any node. A push of the same bytes again changes nothing and succeeds; of other bytes
//! it is a `conflict`, and the answer says to take another version.
//!
//! **Every request names the hash that it means**, so two who push different contents at once cannot mix
//! them: the later `begin` wins, and the parts of the other are refused.
//!
//! A request is a line of JSON, then bytes if it has any; an answer too:
//!
//! | request | answer |
//! |---|---|
//! | `{"op":"begin","sha256":"…","bytes":N}` | `{"ok":true,"state":"uploading","received":0,…}` |
//! | `{"op":"part","sha256":"…","offset":N}` and at most [`PART_BYTES_MAX`] bytes | the same |
//! | `{"op":"seal","sha256":"…"}` | `{"ok":true,"state":"sealed","about":{…},…}` |
//! | `{"op":"read","offset":N,"len":N}` | `{"ok":true,"state":"sealed",…}` and the bytes |
//! | `{"op":"about"}` | `{"ok":true,…}` |
//! | whatever is refused | `{"ok":false,"error":{"code":"…","reason":"…","detail":"…","next_step":"…"}}` |

use std::fmt;
use std::future::Future;
use std::str::FromStr;

use bytes::Bytes;
use minicbor::{Decode, Encode};
use semver::Version;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
pub use stored::{Modules, Stored};
pub use wire::{
    Answer, Ask, ModuleRefused, Refusal, Stage, Told, TransferError, decode, encode, pull, push,
};

mod stored;
mod wire;

/// The name of the kind, in a child's id.
pub const KIND: &str = "module";

/// The most bytes in one part: half of what a request may hold, so that its line of JSON fits too.
pub const PART_BYTES_MAX: usize = 512 << 10;

/// The longest name of a module, in bytes: it stands in child ids, which have 255.
pub const NAME_BYTES_MAX: usize = 64;

/// The longest version, in bytes, with its pre-release and build.
pub const VERSION_BYTES_MAX: usize = 64;

/// A module's name and version, `NAME@VERSION`: the name of lower-case letters, digits, `.`, `_` and
/// `-`, the version as <https://semver.org> has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuleId {
    name: String,
    version: Version,
}

/// Why a text is no `NAME@VERSION`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModuleIdError {
    /// There is no `@`.
    #[error("{0:?} is not NAME@VERSION")]
    NoVersion(String),
    /// The name is not one.
    #[error(
        "{0:?} is no name of a module: 1 to {NAME_BYTES_MAX} of a-z, 0-9, '.', '_' and '-', a letter or \
         a digit first"
    )]
    Name(String),
    /// The version is not one.
    #[error("{0:?} is no version like 1.2.3 or 1.2.3-rc.1")]
    Version(String),
}

impl ModuleId {
    /// A name and a version.
    ///
    /// # Errors
    /// One of them is not one.
    pub fn new(name: &str, version: &str) -> Result<ModuleId, ModuleIdError> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let fits = name.len() <= NAME_BYTES_MAX
            && name.starts_with(plain)
            && name
                .chars()
                .all(|c| plain(c) || matches!(c, '.' | '_' | '-'));
        if !fits {
            return Err(ModuleIdError::Name(name.to_owned()));
        }
        let bad = || ModuleIdError::Version(version.to_owned());
        if version.len() > VERSION_BYTES_MAX {
            return Err(bad());
        }
        Ok(ModuleId {
            name: name.to_owned(),
            version: Version::parse(version).map_err(|_| bad())?,
        })
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version; versions order as semantic versions do.
    pub fn version(&self) -> &Version {
        &self.version
    }
}

impl FromStr for ModuleId {
    type Err = ModuleIdError;

    fn from_str(text: &str) -> Result<ModuleId, ModuleIdError> {
        let (name, version) = text
            .split_once('@')
            .ok_or_else(|| ModuleIdError::NoVersion(text.to_owned()))?;
        ModuleId::new(name, version)
    }
}

impl fmt::Display for ModuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

/// The SHA-256 of a module; written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct ModuleHash(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 32]);

/// A text is no SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a SHA-256 is written as 64 hexadecimal digits")]
pub struct NoHash;

impl ModuleHash {
    /// The hash of these bytes. It takes about 2 ms a MiB.
    pub fn of(bytes: &[u8]) -> ModuleHash {
        ModuleHash(Sha256::digest(bytes).into())
    }
}

impl FromStr for ModuleHash {
    type Err = NoHash;

    fn from_str(text: &str) -> Result<ModuleHash, NoHash> {
        let digits = text.as_bytes();
        let mut hash = [0; 32];
        if digits.len() != 2 * hash.len() {
            return Err(NoHash);
        }
        let value = |digit: u8| (digit as char).to_digit(16).ok_or(NoHash);
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = (value(pair[0])? << 4 | value(pair[1])?) as u8;
        }
        Ok(ModuleHash(hash))
    }
}

impl fmt::Display for ModuleHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ModuleHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ModuleHash {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ModuleHash {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<ModuleHash, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A module as it was pushed. Its hash is that of its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    wasm: Bytes,
    sha256: ModuleHash,
}

impl Module {
    /// A module, with the hash that its bytes have. It takes about 2 ms a MiB.
    pub fn new(wasm: impl Into<Bytes>) -> Module {
        let wasm = wasm.into();
        let sha256 = ModuleHash::of(&wasm);
        Module { wasm, sha256 }
    }

    /// Its bytes.
    pub fn wasm(&self) -> &Bytes {
        &self.wasm
    }

    /// Their SHA-256.
    pub fn sha256(&self) -> ModuleHash {
        self.sha256
    }
}

/// Why a module is not to be had. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModuleError {
    /// Nobody pushed it, or it is not sealed yet.
    #[error("there is no module {0}")]
    NotFound(String),
    /// Whoever has it cannot be asked now.
    #[error("the module cannot be fetched now: {0}")]
    Unavailable(String),
}

/// Gives modules by name and version.
pub trait ModuleSource: Send + Sync + 'static {
    /// A tenant's module.
    ///
    /// # Errors
    /// See [`ModuleError`].
    fn fetch(
        &self,
        tenant: &str,
        module: &ModuleId,
    ) -> impl Future<Output = Result<Module, ModuleError>> + Send;
}

#[cfg(test)]
mod tests;
