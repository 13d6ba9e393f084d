//! The kind `module`: a child that takes a module in parts, and keeps it for ever.
//!
//! Owns: what is here of one module, its steps and its snapshot. Never compiles it, and never lets a
//! sealed one change.

use bytes::{BufMut, Bytes, BytesMut};
use minicbor::{Decode, Encode};
use understudy_supervision::{
    Checkpoint, Child, ChildError, Context, Handled, Kind, Request, StartError,
};

use super::wire::{Answer, Ask, ModuleRefused, Stage, Told, framed, unframed};
use super::{Module, ModuleHash, PART_BYTES_MAX};
use crate::validate::{About, Limits, validate};

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
    pub(super) content: Content,
    /// What it is; worked out when first asked.
    about: Option<About>,
}

#[derive(Debug, Default)]
pub(super) enum Content {
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
pub(super) enum Step {
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

pub(super) fn packed(content: &Content) -> Bytes {
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
