//! What a guest may reach, as data; and what is told when it reaches for more.
//!
//! Owns: [`Policy`], every grant that there is; the limits on grants; [`Denial`], the event of a
//! refusal. Never acts: [`crate::wasi`] asks here on each call of the guest.
//!
//! The default grants nothing. A guest without grants can compute, and be called; it cannot learn the
//! time, the machine's chance, a name from the environment, or write a line anywhere. There is no grant
//! for the network or for the machine's own files: what is not implemented cannot be escaped from.
//!
//! ```text
//!   {"args":["serve"], "env":{"LANG":"C"}, "clock":"virtual", "random":{"seeded":7}, "output":"captured"}
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The most arguments a guest is given; more are refused as `E2BIG`.
pub const ARGS_MAX: usize = 8;

/// The most variables in its environment: a program reads a handful.
pub const ENV_MAX: usize = 64;

/// The most bytes of arguments and of environment, each: they are copied into the guest at its start.
pub const TEXT_BYTES_MAX: usize = 32 << 10;

/// The most bytes of output kept of one call: what a person reads of it. The rest is counted.
pub const LOG_BYTES_MAX: usize = 64 << 10;

/// The most bytes of chance that one host call gives: a host call cannot be interrupted, and this is
/// about half a millisecond of hashing.
pub const RANDOM_BYTES_MAX: usize = 64 << 10;

/// The most bytes that one host call copies; the guest is told how many were taken.
pub const COPY_BYTES_MAX: usize = 1 << 20;

/// The most buffers in one host call (`IOV_MAX` of POSIX systems).
pub const BUFFERS_MAX: usize = 1024;

/// The most things one `poll_oneoff` waits for: there is a clock, and three descriptors.
pub const SUBSCRIPTIONS_MAX: usize = 64;

/// The most files in the folders of a guest, folders included.
pub const FILES_MAX: usize = 1024;

/// The most bytes of files in the folders of a guest: they are part of every checkpoint.
pub const FILE_BYTES_MAX: usize = 8 << 20;

/// The most files a guest holds open.
pub const OPEN_MAX: usize = 64;

/// The longest path, in bytes.
pub const PATH_BYTES_MAX: usize = 512;

/// The most denials that are told of one call; the rest are counted. A guest that tries in a loop must
/// not fill its tenant's event log.
pub const DENIALS_MAX: u32 = 16;

/// What a guest may reach. Nothing, unless it says so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Its arguments, the first of which is its own name by custom.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Its environment.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Whether it may know the time, and which.
    pub clock: Clock,
    /// Whether it may have random bytes, and which.
    pub random: Random,
    /// Whether it may write to its standard output and error.
    pub output: Output,
    /// Folders in its memory, by the path at which it sees them. They live and die with the instance,
    /// and are part of its checkpoints; no file of the machine's is ever among them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub folders: BTreeMap<String, Folder>,
}

/// Which time a guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clock {
    /// None.
    #[default]
    Denied,
    /// A clock of its own, which moves a little whenever it is read, and by as much as it sleeps, at
    /// once. It is in the checkpoint, so that a restored guest reads what the first would have.
    Virtual,
    /// The machine's, in whole milliseconds: a finer one measures what neighbours do.
    Real,
}

/// Which chance a guest is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Random {
    /// None.
    #[default]
    Denied,
    /// Bytes that follow from this number alone. Their place is in the checkpoint. Not for keys.
    Seeded(u64),
    /// The machine's.
    Real,
}

/// What becomes of standard output and error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Output {
    /// Writing is denied.
    #[default]
    Denied,
    /// The first [`LOG_BYTES_MAX`] bytes of each call are kept.
    Captured,
}

/// A folder in the guest's own memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Folder {
    /// Whether the guest may change it.
    pub write: bool,
    /// The text files that are in it at first, by relative path.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
}

/// Why a policy is no policy. Nothing was created with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// More arguments than [`ARGS_MAX`]: `E2BIG`.
    #[error("{0} arguments are more than the {ARGS_MAX} that a guest is given (E2BIG)")]
    TooManyArgs(usize),
    /// More variables than [`ENV_MAX`].
    #[error("{0} variables are more than the {ENV_MAX} that an environment has")]
    TooManyVariables(usize),
    /// Arguments or environment of more than [`TEXT_BYTES_MAX`].
    #[error("{0} bytes of {1} are more than the {TEXT_BYTES_MAX} that are allowed")]
    TooMuchText(usize, &'static str),
    /// A text that cannot be handed over: with a zero byte, or a name that is empty or has an `=`.
    #[error("{0:?} cannot be an argument, a variable or a path of a guest")]
    BadText(String),
    /// More files than [`FILES_MAX`], or of more bytes than [`FILE_BYTES_MAX`].
    #[error(
        "the folders hold too much: at most {FILES_MAX} files of {FILE_BYTES_MAX} bytes in all"
    )]
    TooManyFiles,
}

impl Policy {
    /// What most compiled programs need to run at all, and nothing that differs from one machine to
    /// another: a virtual clock, seeded chance, and captured output.
    pub fn deterministic(seed: u64) -> Policy {
        Policy {
            clock: Clock::Virtual,
            random: Random::Seeded(seed),
            output: Output::Captured,
            ..Policy::default()
        }
    }

    /// Whether it is within the limits.
    ///
    /// # Errors
    /// The first limit that it breaks.
    pub fn check(&self) -> Result<(), PolicyError> {
        if self.args.len() > ARGS_MAX {
            return Err(PolicyError::TooManyArgs(self.args.len()));
        }
        if self.env.len() > ENV_MAX {
            return Err(PolicyError::TooManyVariables(self.env.len()));
        }
        let fits = |bytes: usize, what| match bytes <= TEXT_BYTES_MAX {
            true => Ok(()),
            false => Err(PolicyError::TooMuchText(bytes, what)),
        };
        fits(self.args.iter().map(|arg| arg.len() + 1).sum(), "arguments")?;
        let env = self
            .env
            .iter()
            .map(|(name, value)| name.len() + value.len() + 2);
        fits(env.sum(), "environment")?;
        let names = self.env.keys();
        if let Some(bad) = names
            .clone()
            .find(|name| name.is_empty() || name.contains('='))
        {
            return Err(PolicyError::BadText(bad.clone()));
        }
        let mut texts = self.args.iter().chain(names).chain(self.env.values());
        if let Some(bad) = texts.find(|text| text.contains('\0')) {
            return Err(PolicyError::BadText(bad.clone()));
        }
        self.check_folders()
    }

    fn check_folders(&self) -> Result<(), PolicyError> {
        let (mut files, mut bytes) = (0, 0);
        for (path, folder) in &self.folders {
            let fits = path.starts_with('/') && path.len() <= PATH_BYTES_MAX;
            if !fits || path.contains('\0') {
                return Err(PolicyError::BadText(path.clone()));
            }
            files += 1;
            for (name, text) in &folder.files {
                let parts = name.split('/');
                let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
                if name.len() > PATH_BYTES_MAX || name.contains('\0') || !parts.clone().all(plain) {
                    return Err(PolicyError::BadText(name.clone()));
                }
                files += parts.count();
                bytes += text.len();
            }
        }
        match files <= FILES_MAX && bytes <= FILE_BYTES_MAX {
            true => Ok(()),
            false => Err(PolicyError::TooManyFiles),
        }
    }
}

/// A guest reached for what its policy does not grant, and was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Denial {
    /// Whose it is.
    pub tenant: String,
    /// Which sandbox or function.
    pub sandbox: String,
    /// The call it made, as WASI names it.
    pub call: String,
    /// What it wanted: a path, a clock, a descriptor.
    pub wanted: String,
    /// The number it was answered with, as WASI preview 1 numbers errors.
    pub errno: u16,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Denial {
            tenant,
            sandbox,
            call,
            wanted,
            errno,
        } = self;
        write!(
            f,
            "{tenant}/{sandbox}: {call} of {wanted} was denied (errno {errno})"
        )
    }
}

/// Where denials are told. It is called while the guest waits, and must not block.
pub type DenialSink = Arc<dyn Fn(Denial) + Send + Sync>;

/// A sink that writes a line to the node's own log.
pub fn log_denials() -> DenialSink {
    Arc::new(|denial| tracing::warn!(%denial, "a guest was denied something"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_policy_that_says_nothing_grants_nothing() {
        let policy: Policy = serde_json::from_str("{}").unwrap();
        assert_eq!(policy, Policy::default());
        assert_eq!(policy.clock, Clock::Denied);
        assert_eq!(policy.random, Random::Denied);
        assert_eq!(policy.output, Output::Denied);
        assert!(policy.args.is_empty() && policy.env.is_empty() && policy.folders.is_empty());
    }

    #[test]
    fn a_policy_is_the_same_after_json() {
        let text = r#"{"args":["serve"],"env":{"LANG":"C"},"clock":"virtual",
            "random":{"seeded":7},"output":"captured",
            "folders":{"/data":{"write":true,"files":{"a/b":"text"}}}}"#;
        let policy: Policy = serde_json::from_str(text).unwrap();
        assert_eq!(policy.check(), Ok(()));
        let again = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<Policy>(&again).unwrap(), policy);
    }

    #[test]
    fn a_grant_that_does_not_exist_is_refused_not_ignored() {
        let refused = serde_json::from_str::<Policy>(r#"{"network":["example.org"]}"#);
        assert!(refused.unwrap_err().to_string().contains("network"));
    }

    #[test]
    fn a_policy_beyond_a_limit_is_refused() {
        let nine = vec!["x".to_owned(); ARGS_MAX + 1];
        let mut policy = Policy {
            args: nine,
            ..Policy::default()
        };
        assert_eq!(policy.check(), Err(PolicyError::TooManyArgs(9)));
        policy.args = vec!["y".repeat(TEXT_BYTES_MAX)];
        assert!(matches!(policy.check(), Err(PolicyError::TooMuchText(..))));
        policy.args = vec!["a\0b".into()];
        assert!(matches!(policy.check(), Err(PolicyError::BadText(_))));
        policy.args.clear();
        policy.env.insert("a=b".into(), "c".into());
        assert_eq!(policy.check(), Err(PolicyError::BadText("a=b".into())));
        policy.env.clear();
        let folder = Folder {
            write: false,
            files: [("../escape".to_owned(), String::new())].into(),
        };
        policy.folders.insert("/data".into(), folder);
        assert!(matches!(policy.check(), Err(PolicyError::BadText(_))));
    }
}
