//! What is said to a module's child and by it, and how a whole module is pushed and pulled.
//!
//! Owns: the requests, the answers, and the reasons of refusals. Never holds a module.

use std::future::Future;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::{Module, ModuleHash, PART_BYTES_MAX};
use crate::validate::{About, Limits, ValidateError};

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

    pub(super) fn refusal(&self) -> Refusal {
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

pub(super) fn framed(head: &impl Serialize, raw: &[u8]) -> Bytes {
    let head = serde_json::to_vec(head).unwrap_or_default();
    let mut all = BytesMut::with_capacity(head.len() + 1 + raw.len());
    all.put_slice(&head);
    all.put_u8(b'\n');
    all.put_slice(raw);
    all.freeze()
}

pub(super) fn unframed<T: for<'de> Deserialize<'de>>(all: &Bytes) -> Result<(T, Bytes), String> {
    let end = all.iter().position(|byte| *byte == b'\n');
    let end = end.unwrap_or(all.len());
    let head = serde_json::from_slice(&all[..end]).map_err(|error| error.to_string())?;
    Ok((head, all.slice((end + 1).min(all.len())..)))
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
