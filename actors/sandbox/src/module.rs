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

use bytes::{BufMut, Bytes, BytesMut};
use minicbor::{Decode, Encode};
use semver::Version;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use understudy_supervision::{
    Checkpoint, Child, ChildError, Context, Handled, Kind, Request, StartError,
};

use crate::validate::{About, Limits, ValidateError, validate};

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

/// What the kind is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// A push begins, or goes on where it was.
    Begin {
        /// Of the whole module.
        sha256: ModuleHash,
        /// Of the whole module.
        bytes: u64,
    },
    /// The bytes from `offset` on follow.
    Part {
        /// Of the whole module.
        sha256: ModuleHash,
        /// In bytes.
        offset: u64,
    },
    /// All parts are there.
    Seal {
        /// Of the whole module.
        sha256: ModuleHash,
    },
    /// So many bytes from there, please; at most [`PART_BYTES_MAX`] come.
    Read {
        /// In bytes.
        offset: u64,
        /// In bytes.
        len: u64,
    },
    /// What is there?
    About {},
}

/// What the kind answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Line", into = "Line")]
pub enum Answer {
    /// It was done, or was so already.
    Ok(Told),
    /// It was not.
    Error(Refusal),
}

/// An answer as its line of JSON.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Error {
        ok: bool,
        error: Refusal,
    },
    Ok {
        ok: bool,
        #[serde(flatten)]
        told: Told,
    },
}

impl From<Line> for Answer {
    fn from(line: Line) -> Answer {
        match line {
            Line::Error { error, .. } => Answer::Error(error),
            Line::Ok { told, .. } => Answer::Ok(told),
        }
    }
}

impl From<Answer> for Line {
    fn from(answer: Answer) -> Line {
        match answer {
            Answer::Error(error) => Line::Error { ok: false, error },
            Answer::Ok(told) => Line::Ok { ok: true, told },
        }
    }
}

/// What there is of a module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// How far it is.
    pub state: Stage,
    /// Its hash, once a push has begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<ModuleHash>,
    /// Its length, once a push has begun.
    pub bytes: u64,
    /// How much of it is here.
    pub received: u64,
    /// What it is, once it is sealed and if that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<About>,
}

/// How far a module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Nobody has pushed it.
    Empty,
    /// Parts of it are here.
    Uploading,
    /// It is whole, checked, and will not change.
    Sealed,
}

/// Why something was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs: a type of error of the HTTP interface.
    pub code: String,
    /// For programs that want to know more exactly.
    pub reason: String,
    /// For people.
    pub detail: String,
    /// What to do about it.
    pub next_step: String,
    /// Where in the module it is, if at one place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
}

/// Why the kind refuses a request. Unless it says otherwise, the module is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModuleRefused {
    /// The request is not one.
    #[error("this is no request of a module: {0}")]
    BadRequest(String),
    /// The version is taken by other bytes.
    #[error("this version is sealed with other bytes, whose SHA-256 is {0}")]
    Conflict(ModuleHash),
    /// A module of no bytes, or of more than there may be.
    #[error("a module has 8 to {max} bytes, not {bytes}")]
    Size {
        /// What was said.
        bytes: u64,
        /// What is allowed.
        max: usize,
    },
    /// No push of this hash is going on.
    #[error("no push of {0} is going on here")]
    NoPush(ModuleHash),
    /// The part does not follow what is here.
    #[error("the part begins at {offset}, but {received} bytes are here")]
    Gap {
        /// Where it begins.
        offset: u64,
        /// What is here.
        received: u64,
    },
    /// The part repeats bytes that are here, as other bytes.
    #[error("the part at {0} differs from what is here")]
    Differs(u64),
    /// The part has too many bytes, or reaches beyond the module's end.
    #[error("the part of {len} bytes at {offset} is too long")]
    PartTooLong {
        /// Where it begins.
        offset: u64,
        /// Its length.
        len: usize,
    },
    /// Parts are missing.
    #[error("{received} of {bytes} bytes are here")]
    Incomplete {
        /// What is here.
        received: u64,
        /// What there should be.
        bytes: u64,
    },
    /// The bytes have another hash. The push is given up: what was here is gone.
    #[error("the bytes have the SHA-256 {found}, not {wanted}")]
    WrongHash {
        /// What was said.
        wanted: ModuleHash,
        /// What they have.
        found: ModuleHash,
    },
    /// It is not sealed, so it cannot be read.
    #[error("the module is not sealed")]
    NotSealed,
    /// It is no module that may run here. The push is given up: what was here is gone.
    #[error(transparent)]
    Invalid(#[from] ValidateError),
}

impl ModuleRefused {
    /// A word for machines: a type of error of the HTTP interface.
    pub fn code(&self) -> &'static str {
        match self {
            ModuleRefused::Conflict(_) => "conflict",
            ModuleRefused::NotSealed | ModuleRefused::NoPush(_) => "not_found",
            ModuleRefused::Size { .. } => "quota_exceeded",
            _ => "invalid",
        }
    }

    /// The refusal's own name.
    pub fn reason(&self) -> &'static str {
        match self {
            ModuleRefused::BadRequest(_) => "bad_request",
            ModuleRefused::Conflict(_) => "conflict",
            ModuleRefused::Size { .. } => "module_size",
            ModuleRefused::NoPush(_) => "no_push",
            ModuleRefused::Gap { .. } => "gap",
            ModuleRefused::Differs(_) => "part_differs",
            ModuleRefused::PartTooLong { .. } => "part_too_long",
            ModuleRefused::Incomplete { .. } => "incomplete",
            ModuleRefused::WrongHash { .. } => "wrong_hash",
            ModuleRefused::NotSealed => "not_sealed",
            ModuleRefused::Invalid(error) => error.code(),
        }
    }

    /// What can be done about it.
    pub fn next_step(&self) -> &'static str {
        match self {
            ModuleRefused::BadRequest(_) => "send a line of JSON with one known request",
            ModuleRefused::Conflict(_) => "push it as another version: a version never changes",
            ModuleRefused::Size { .. } => "strip it, or split it",
            ModuleRefused::NoPush(_) => "begin the push again",
            ModuleRefused::Gap { .. } | ModuleRefused::Incomplete { .. } => {
                "go on from the bytes that are here"
            }
            ModuleRefused::Differs(_) => "begin again: the file changed, or two push at once",
            ModuleRefused::PartTooLong { .. } => "send parts of at most 512 KiB, to the end",
            ModuleRefused::WrongHash { .. } => "push it again: the bytes changed on their way",
            ModuleRefused::NotSealed => "push it first",
            ModuleRefused::Invalid(error) => error.next_step(),
        }
    }

    fn refusal(&self) -> Refusal {
        let offset = match self {
            ModuleRefused::Invalid(error) => error.offset().map(|offset| offset as u64),
            ModuleRefused::Gap { received, .. } => Some(*received),
            _ => None,
        };
        Refusal {
            code: self.code().to_owned(),
            reason: self.reason().to_owned(),
            detail: self.to_string(),
            next_step: self.next_step().to_owned(),
            offset,
        }
    }
}

/// A request as bytes. `raw` follows the line: only a part has any.
pub fn encode(ask: &Ask, raw: &[u8]) -> Bytes {
    framed(ask, raw)
}

/// What an answer says, and the bytes after it.
///
/// # Errors
/// It is no answer of this kind; the sentence says what is wrong.
pub fn decode(answer: &Bytes) -> Result<(Answer, Bytes), String> {
    unframed(answer)
}

fn framed(head: &impl Serialize, raw: &[u8]) -> Bytes {
    let head = serde_json::to_vec(head).unwrap_or_default();
    let mut all = BytesMut::with_capacity(head.len() + 1 + raw.len());
    all.put_slice(&head);
    all.put_u8(b'\n');
    all.put_slice(raw);
    all.freeze()
}

fn unframed<T: for<'de> Deserialize<'de>>(all: &Bytes) -> Result<(T, Bytes), String> {
    let end = all.iter().position(|byte| *byte == b'\n');
    let end = end.unwrap_or(all.len());
    let head = serde_json::from_slice(&all[..end]).map_err(|error| error.to_string())?;
    Ok((head, all.slice((end + 1).min(all.len())..)))
}

/// The kind `module`. Its limits are a node's.
#[derive(Clone, Copy, Debug)]
pub struct Modules {
    limits: Limits,
}

impl Default for Modules {
    fn default() -> Modules {
        Modules::new(Limits::NODE)
    }
}

impl Modules {
    /// The kind, with these limits on modules.
    pub fn new(limits: Limits) -> Modules {
        Modules { limits }
    }
}

/// One module, or what has come of it yet.
#[derive(Debug)]
pub struct Stored {
    limits: Limits,
    content: Content,
    /// What it is; worked out when first asked.
    about: Option<About>,
}

#[derive(Debug, Default)]
enum Content {
    #[default]
    Empty,
    Uploading {
        sha256: ModuleHash,
        bytes: u64,
        received: BytesMut,
    },
    Sealed(Module),
}

/// What is recorded of a request. The bytes outlive this code: variants are only added.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
enum Step {
    #[n(0)]
    Begin {
        #[n(0)]
        sha256: ModuleHash,
        #[n(1)]
        bytes: u64,
    },
    #[n(1)]
    Part {
        #[n(0)]
        offset: u64,
        #[cbor(n(1), with = "minicbor::bytes")]
        bytes: Vec<u8>,
    },
    #[n(2)]
    Seal,
    #[n(3)]
    Discard,
}

/// What stands behind a snapshot's bytes. The module is first, so that its pieces are the same as those
/// of every other copy of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
struct Tail {
    #[n(0)]
    sha256: ModuleHash,
    #[n(1)]
    bytes: u64,
    #[n(2)]
    sealed: bool,
}

impl Kind for Modules {
    type Child = Stored;

    async fn start(&self, _: Context, checkpoint: Checkpoint) -> Result<Stored, StartError> {
        let content = match &checkpoint.base {
            Some(base) => unpacked(base).ok_or_else(|| bad("the snapshot"))?,
            None => Content::Empty,
        };
        let mut stored = Stored {
            limits: self.limits,
            content,
            about: None,
        };
        for step in &checkpoint.steps {
            let step = minicbor::decode(step).map_err(|_| bad("a step"))?;
            stored
                .apply(step)
                .ok_or_else(|| bad("the order of the steps"))?;
        }
        Ok(stored)
    }
}

fn bad(what: &str) -> StartError {
    StartError::BadCheckpoint(format!("{what} is not what this kind writes"))
}

impl Child for Stored {
    async fn handle(&mut self, request: Request) -> Result<Handled, ChildError> {
        let done = match unframed::<Ask>(&request.body) {
            Ok((ask, raw)) => self.carry_out(ask, raw).await,
            Err(why) => Err(ModuleRefused::BadRequest(why).into()),
        };
        let (answer, step) = match done {
            Ok((raw, about, step)) => {
                let told = self.told(about);
                (framed(&Answer::Ok(told), &raw), step)
            }
            Err(NotDone { why, step }) => (framed(&Answer::Error(why.refusal()), &[]), step),
        };
        Ok(match step.and_then(|step| minicbor::to_vec(step).ok()) {
            Some(step) => Handled::step(answer, step),
            None => Handled::read(answer),
        })
    }

    async fn snapshot(&mut self) -> Result<Bytes, ChildError> {
        Ok(packed(&self.content))
    }
}

/// The bytes that go with the answer, what the module is, and what is recorded.
type Done = (Bytes, Option<About>, Option<Step>);

/// Why not, and what is recorded all the same.
struct NotDone {
    why: Box<ModuleRefused>,
    step: Option<Step>,
}

impl From<ModuleRefused> for NotDone {
    fn from(why: ModuleRefused) -> NotDone {
        let why = Box::new(why);
        NotDone { why, step: None }
    }
}

impl Stored {
    async fn carry_out(&mut self, ask: Ask, raw: Bytes) -> Result<Done, NotDone> {
        match ask {
            Ask::Begin { sha256, bytes } => self.begin(sha256, bytes),
            Ask::Part { sha256, offset } => self.part(sha256, offset, &raw),
            Ask::Seal { sha256 } => self.seal(sha256).await,
            Ask::Read { offset, len } => self.read(offset, len),
            Ask::About {} => {
                let about = self.about().await?;
                Ok((Bytes::new(), about, None))
            }
        }
    }

    fn begin(&mut self, sha256: ModuleHash, bytes: u64) -> Result<Done, NotDone> {
        let max = self.limits.bytes;
        match &self.content {
            Content::Sealed(module) if module.sha256 == sha256 => return NOTHING_NEW,
            Content::Sealed(module) => return Err(ModuleRefused::Conflict(module.sha256).into()),
            _ if bytes < 8 || bytes > max as u64 => {
                return Err(ModuleRefused::Size { bytes, max }.into());
            }
            Content::Uploading {
                sha256: before,
                bytes: length,
                ..
            } if (*before, *length) == (sha256, bytes) => return NOTHING_NEW,
            _ => {}
        }
        self.take(Step::Begin { sha256, bytes })
    }

    fn part(&mut self, sha256: ModuleHash, offset: u64, raw: &Bytes) -> Result<Done, NotDone> {
        let refused = |why: ModuleRefused| Err(why.into());
        let (bytes, received) = match &self.content {
            Content::Sealed(module) if module.sha256 == sha256 => return NOTHING_NEW,
            Content::Sealed(module) => return refused(ModuleRefused::Conflict(module.sha256)),
            Content::Uploading {
                sha256: before,
                bytes,
                received,
            } if *before == sha256 => (*bytes, received),
            _ => return refused(ModuleRefused::NoPush(sha256)),
        };
        let len = raw.len();
        let end = offset.saturating_add(len as u64);
        if len > PART_BYTES_MAX || end > bytes {
            return refused(ModuleRefused::PartTooLong { offset, len });
        }
        let here = received.len() as u64;
        if end <= here {
            // A part that comes again is the caller's retry.
            return match received[offset as usize..end as usize] == raw[..] {
                true => NOTHING_NEW,
                false => refused(ModuleRefused::Differs(offset)),
            };
        }
        if offset != here {
            let received = here;
            return refused(ModuleRefused::Gap { offset, received });
        }
        self.take(Step::Part {
            offset,
            bytes: raw.to_vec(),
        })
    }

    async fn seal(&mut self, sha256: ModuleHash) -> Result<Done, NotDone> {
        let refused = |why: ModuleRefused| Err(why.into());
        let (bytes, received) = match &self.content {
            Content::Sealed(module) if module.sha256 == sha256 => {
                let about = self.about().await?;
                return Ok((Bytes::new(), about, None));
            }
            Content::Sealed(module) => return refused(ModuleRefused::Conflict(module.sha256)),
            Content::Uploading {
                sha256: before,
                bytes,
                received,
            } if *before == sha256 => (*bytes, received),
            _ => return refused(ModuleRefused::NoPush(sha256)),
        };
        if (received.len() as u64) < bytes {
            let received = received.len() as u64;
            return refused(ModuleRefused::Incomplete { received, bytes });
        }
        match checked(received.clone().freeze(), sha256, self.limits).await {
            Ok(about) => {
                let (_, _, step) = self.take(Step::Seal)?;
                self.about = Some(about.clone());
                Ok((Bytes::new(), Some(about), step))
            }
            Err(why) => {
                let (_, _, step) = self.take(Step::Discard)?;
                let why = Box::new(why);
                Err(NotDone { why, step })
            }
        }
    }

    fn read(&self, offset: u64, len: u64) -> Result<Done, NotDone> {
        let Content::Sealed(module) = &self.content else {
            return Err(ModuleRefused::NotSealed.into());
        };
        let all = &module.wasm;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(all.len());
        let len = len.min(PART_BYTES_MAX as u64) as usize;
        let end = (start + len).min(all.len());
        Ok((all.slice(start..end), None, None))
    }

    /// What the module is, if it is sealed. The limits may be tighter than when it was: then it cannot be
    /// used any more, and this says so.
    async fn about(&mut self) -> Result<Option<About>, ModuleRefused> {
        let Content::Sealed(module) = &self.content else {
            return Ok(None);
        };
        if self.about.is_none() {
            let about = checked(module.wasm.clone(), module.sha256, self.limits).await?;
            self.about = Some(about);
        }
        Ok(self.about.clone())
    }

    /// Makes a step, which is then recorded.
    fn take(&mut self, step: Step) -> Result<Done, NotDone> {
        match self.apply(step.clone()) {
            Some(()) => Ok((Bytes::new(), None, Some(step))),
            None => Err(ModuleRefused::BadRequest("out of order".into()).into()),
        }
    }

    /// The one place where the content changes, now and in every replay. None if the step does not
    /// follow what is here; nothing has changed then.
    fn apply(&mut self, step: Step) -> Option<()> {
        match (step, &mut self.content) {
            (Step::Begin { .. }, Content::Sealed(_)) => return None,
            (Step::Begin { sha256, bytes }, content) => {
                *content = Content::Uploading {
                    sha256,
                    bytes,
                    received: BytesMut::new(),
                };
            }
            (
                Step::Part { offset, bytes: new },
                Content::Uploading {
                    bytes, received, ..
                },
            ) => {
                let end = offset.checked_add(new.len() as u64)?;
                if offset != received.len() as u64 || end > *bytes {
                    return None;
                }
                received.extend_from_slice(&new);
            }
            (Step::Seal, content @ Content::Uploading { .. }) => {
                if let Content::Uploading {
                    sha256, received, ..
                } = std::mem::take(content)
                {
                    let wasm = received.freeze();
                    *content = Content::Sealed(Module { wasm, sha256 });
                }
            }
            (Step::Discard, content @ Content::Uploading { .. }) => *content = Content::Empty,
            (Step::Part { .. } | Step::Seal | Step::Discard, _) => return None,
        }
        Some(())
    }

    fn told(&self, about: Option<About>) -> Told {
        let (state, sha256, bytes, received) = match &self.content {
            Content::Empty => (Stage::Empty, None, 0, 0),
            Content::Uploading {
                sha256,
                bytes,
                received,
            } => (
                Stage::Uploading,
                Some(*sha256),
                *bytes,
                received.len() as u64,
            ),
            Content::Sealed(module) => {
                let bytes = module.wasm.len() as u64;
                (Stage::Sealed, Some(module.sha256), bytes, bytes)
            }
        };
        Told {
            state,
            sha256,
            bytes,
            received,
            about,
        }
    }
}

/// It is so already.
const NOTHING_NEW: Result<Done, NotDone> = Ok((Bytes::new(), None, None));

/// The hash first, then everything that a module must be; on a thread of its own, because both take
/// longer than a child may hold one.
async fn checked(wasm: Bytes, wanted: ModuleHash, limits: Limits) -> Result<About, ModuleRefused> {
    let check = move || {
        let found = ModuleHash::of(&wasm);
        if found != wanted {
            return Err(ModuleRefused::WrongHash { wanted, found });
        }
        Ok(validate(&wasm, &limits)?)
    };
    match tokio::task::spawn_blocking(check).await {
        Ok(checked) => checked,
        Err(_) => Err(ModuleRefused::BadRequest("it could not be read".into())),
    }
}

fn packed(content: &Content) -> Bytes {
    let (tail, wasm) = match content {
        Content::Empty => return Bytes::new(),
        Content::Uploading {
            sha256,
            bytes,
            received,
        } => {
            let tail = Tail {
                sha256: *sha256,
                bytes: *bytes,
                sealed: false,
            };
            (tail, &received[..])
        }
        Content::Sealed(module) => {
            let tail = Tail {
                sha256: module.sha256,
                bytes: module.wasm.len() as u64,
                sealed: true,
            };
            (tail, &module.wasm[..])
        }
    };
    let tail = minicbor::to_vec(tail).unwrap_or_default();
    let mut all = BytesMut::with_capacity(wasm.len() + tail.len() + 4);
    all.put_slice(wasm);
    all.put_slice(&tail);
    all.put_u32_le(tail.len() as u32);
    all.freeze()
}

fn unpacked(all: &Bytes) -> Option<Content> {
    if all.is_empty() {
        return Some(Content::Empty);
    }
    let (rest, length) = all.split_last_chunk::<4>()?;
    let length = u32::from_le_bytes(*length) as usize;
    let at = rest.len().checked_sub(length)?;
    let tail: Tail = minicbor::decode(&rest[at..]).ok()?;
    let wasm = all.slice(..at);
    match tail.sealed {
        true if wasm.len() as u64 == tail.bytes => Some(Content::Sealed(Module {
            wasm,
            sha256: tail.sha256,
        })),
        false if wasm.len() as u64 <= tail.bytes => Some(Content::Uploading {
            sha256: tail.sha256,
            bytes: tail.bytes,
            received: BytesMut::from(&wasm[..]),
        }),
        _ => None,
    }
}

/// Why a push or a pull did not end well.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError<E> {
    /// The module's child refused. Of a push, what was sent may still be there.
    #[error("{} ({})", .0.detail, .0.next_step)]
    Refused(Refusal),
    /// The child cannot be asked: it may have taken some of it.
    #[error("the module's owner cannot be asked")]
    Call(E),
    /// The answer is not one of a module.
    #[error("the module's owner gave no answer of a module: {0}")]
    BadAnswer(String),
    /// What came has another hash than was asked for or said.
    #[error("what came has the SHA-256 {found}, not {wanted}")]
    WrongHash {
        /// What was said.
        wanted: ModuleHash,
        /// What came.
        found: ModuleHash,
    },
}

/// Pushes a module, part by part, going on where an earlier push of the same bytes ended. `call` asks
/// the module's child once; each of its calls may be retried with the same bytes.
///
/// # Errors
/// See [`TransferError`]. Pushing again is always right.
pub async fn push<E, F>(
    module: &Module,
    mut call: impl FnMut(Bytes) -> F,
) -> Result<Told, TransferError<E>>
where
    F: Future<Output = Result<Bytes, E>>,
{
    let sha256 = module.sha256;
    let bytes = module.wasm.len() as u64;
    let (mut told, _) = asked(&mut call, &Ask::Begin { sha256, bytes }, &[]).await?;
    while told.state == Stage::Uploading && told.received < bytes {
        let offset = told.received;
        let rest = &module.wasm[offset as usize..];
        let part = &rest[..rest.len().min(PART_BYTES_MAX)];
        (told, _) = asked(&mut call, &Ask::Part { sha256, offset }, part).await?;
        if told.received <= offset {
            let why = "a part was taken, and there are no more bytes than before";
            return Err(TransferError::BadAnswer(why.into()));
        }
    }
    let (told, _) = asked(&mut call, &Ask::Seal { sha256 }, &[]).await?;
    Ok(told)
}

/// Fetches a sealed module, part by part, and checks its hash.
///
/// # Errors
/// See [`TransferError`]. Nothing has changed.
pub async fn pull<E, F>(mut call: impl FnMut(Bytes) -> F) -> Result<Module, TransferError<E>>
where
    F: Future<Output = Result<Bytes, E>>,
{
    let mut wasm = BytesMut::new();
    loop {
        let offset = wasm.len() as u64;
        let len = PART_BYTES_MAX as u64;
        let (told, part) = asked(&mut call, &Ask::Read { offset, len }, &[]).await?;
        wasm.extend_from_slice(&part);
        let have = wasm.len() as u64;
        let Some(wanted) = told.sha256.filter(|_| have >= told.bytes) else {
            if part.is_empty() || told.bytes > Limits::NODE.bytes as u64 {
                let why = format!("{have} of {} bytes came", told.bytes);
                return Err(TransferError::BadAnswer(why));
            }
            continue;
        };
        let module = Module::new(wasm.freeze());
        let found = module.sha256;
        return match found == wanted {
            true => Ok(module),
            false => Err(TransferError::WrongHash { wanted, found }),
        };
    }
}

async fn asked<E, F>(
    call: &mut impl FnMut(Bytes) -> F,
    ask: &Ask,
    raw: &[u8],
) -> Result<(Told, Bytes), TransferError<E>>
where
    F: Future<Output = Result<Bytes, E>>,
{
    let answer = call(encode(ask, raw)).await.map_err(TransferError::Call)?;
    match decode(&answer).map_err(TransferError::BadAnswer)? {
        (Answer::Ok(told), raw) => Ok((told, raw)),
        (Answer::Error(refusal), _) => Err(TransferError::Refused(refusal)),
    }
}

#[cfg(test)]
mod tests;
