//! What a kind promises: [`Kind`] starts children, [`Child`] is one of them.
//!
//! Owns: the public promise to whoever adds a kind of their own. It changes only with a version of
//! its own. Never does: decide when a child starts, works, is restarted or moves; a child knows
//! nothing of nodes, leases and replicas.
//!
//! ```text
//!   Kind::start(context, checkpoint) ──> child
//!        child.handle(request) ──> Handled{answer, effect}   effect ──> a record, replicated
//!        child.snapshot()      ──> the whole state           ──> the next checkpoint's base
//!        child.stop()          ──> (it was told to end: the last it hears)
//!   Context::ender().end(..)   ──> (it ends by itself)
//!   Context::prodder().prod()  ──> child.handle(a request that is_prod())
//! ```
//!
//! **What survives is what was said.** A child's memory is only a cache: it is gone with its process.
//! What a child has handed out as an effect or a snapshot comes back to it as its next start's
//! [`Checkpoint`]. The answer to a call leaves the node only when its effect is on every replica.
//!
//! **An effect is data, not a command.** It is replayed, perhaps years later, by another process on
//! another machine. So it says what came of the call, after all chance, clocks and calls to others:
//! "the dice showed 4", never "throw the dice". Replaying it must have no outside effect.
//!
//! **The bytes are the kind's own format** and outlive its code: whoever changes it must still read
//! what the last version wrote.
//!
//! **Every end is the same for what the child holds: it is dropped.** [`Child::stop`] is a courtesy
//! that a crash, a kill and a panic leave out; whatever must not outlive the child (a process, a
//! file) must end in its `Drop`.
//!
//! **A child must not block its thread** for more than a few milliseconds: it shares it with others
//! and with the node, and cannot be killed while it holds it. Heavy work belongs into
//! `tokio::task::spawn_blocking` or into a process.
//!
//! What a child does between calls (a page that changes by itself, a frame that is rendered) is its
//! own until the next call's effect or snapshot holds it. To hand it out by itself it has itself prodded
//! ([`Context::prodder`]): the node calls it in its turn, and its effect becomes a record as any.
//!
//! **A child may answer before its step is recorded** ([`Handled::loose`]): its caller is told so, and a
//! later step must hold what it did. Until then its end takes that along, and the call may come again.
//! It is prodded once before it is moved or passivated, so that only a crash does.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use understudy_protocol::id::ChildId;
use understudy_protocol::supervision::{Exit, RestartType};
use understudy_protocol::wire::envelope::CallKey;

use crate::values::FetchError;

/// A kind of child: it starts them. One value serves every child of the kind on a node, so what they
/// share (an engine, a pool) is held here.
///
/// In an implementation, write the methods as plain `async fn`.
pub trait Kind: Send + Sync + 'static {
    /// What it starts.
    type Child: Child;

    /// Starts a child from its checkpoint, or anew from an empty one. The child that comes up must be
    /// in the state in which the last step left it, whoever starts it and how often.
    ///
    /// It may be abandoned at any await, and takes [`START_LIMIT`](crate::driver::START_LIMIT) at
    /// most.
    ///
    /// # Errors
    /// The start failed: nothing of the child runs, its records stand, and its supervisor decides
    /// whether to try again.
    fn start(
        &self,
        context: Context,
        checkpoint: Checkpoint,
    ) -> impl Future<Output = Result<Self::Child, StartError>> + Send;

    /// Whether each child needs a unit of its own (an id that begins with `@`): true for what is
    /// heavy, lives long or holds processes. A kind that does not may have either.
    fn needs_own_unit(&self) -> bool {
        false
    }

    /// After which of its exits a child is started again, unless its maker says otherwise.
    fn restart(&self) -> RestartType {
        RestartType::Permanent
    }
}

/// One child. Its methods are called one at a time.
///
/// In an implementation, write the methods as plain `async fn`.
pub trait Child: Send + 'static {
    /// Carries one call out. A wrong request is no error: answer that it is wrong, without an effect.
    ///
    /// A call at work for too long is given up, and the child killed.
    ///
    /// # Errors
    /// The child is broken and ends; its caller learns that nobody can say whether the call was done,
    /// and asks again with the same key. Nothing of this call was recorded.
    fn handle(
        &mut self,
        request: Request,
    ) -> impl Future<Output = Result<Handled, ChildError>> + Send;

    /// Its whole state after the last step, as bytes from which [`Kind::start`] makes it again. At
    /// most [`VALUE_BYTES_MAX`](understudy_protocol::wire::content::VALUE_BYTES_MAX) (64 MiB): above it, the call that was to be the last before the
    /// snapshot is refused as too large, and so is every later one that takes a step.
    ///
    /// It is asked for after some dozens of steps, and sooner where they are long. What is long is kept
    /// in pieces of 64 KiB, cut at fixed offsets: one whose bytes are those of an earlier snapshot, or
    /// all zero, costs nothing. So a large state has its parts at multiples of 64 KiB, and is not
    /// compressed.
    ///
    /// # Errors
    /// The child is broken and ends, as in [`Child::handle`].
    fn snapshot(&mut self) -> impl Future<Output = Result<Bytes, ChildError>> + Send;

    /// It was told to end, and this is the last it hears. It takes
    /// [`STOP_LIMIT`](crate::driver::STOP_LIMIT) at most, then the child is killed.
    fn stop(&mut self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// What a child is to go on from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checkpoint {
    /// The last snapshot, if there ever was one.
    pub base: Option<Bytes>,
    /// The effects since then, in order. At most a few hundred.
    pub steps: Vec<Bytes>,
}

impl Checkpoint {
    /// A base, and the steps after it.
    pub fn new(base: Option<Bytes>, steps: Vec<Bytes>) -> Checkpoint {
        Checkpoint { base, steps }
    }

    /// Whether the child is new.
    pub fn is_empty(&self) -> bool {
        self.base.is_none() && self.steps.is_empty()
    }
}

/// What a child is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Request {
    /// The request, in the kind's own words. At most 1 MiB.
    pub body: Bytes,
    /// What makes a retry the same call. The node keeps a child from carrying a call out twice; this
    /// is for handing on to others, who must not do twice what the child asks of them.
    pub key: CallKey,
    is_prod: bool,
}

impl Request {
    /// A request.
    pub fn new(key: CallKey, body: Bytes) -> Request {
        Request {
            body,
            key,
            is_prod: false,
        }
    }

    /// A request of the node, without a body, because the child wanted to be prodded or is about to be
    /// moved or passivated. Its key is nobody's, and its answer goes nowhere.
    pub fn prod() -> Request {
        let gateway = understudy_protocol::id::IncarnationId(0);
        Request {
            body: Bytes::new(),
            key: CallKey::Internal { gateway, number: 0 },
            is_prod: true,
        }
    }

    /// Whether it is a prod and no call: hand out as an effect what no step holds yet.
    pub fn is_prod(&self) -> bool {
        self.is_prod
    }
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Handled {
    /// The answer.
    pub answer: Bytes,
    /// The step that the child took; none when its state is as it was.
    pub effect: Option<Bytes>,
    /// The child holds nothing that neither this step nor an earlier one holds.
    pub durable: bool,
}

impl Handled {
    /// An answer that left the child's state as it was. At most 1 MiB.
    pub fn read(answer: impl Into<Bytes>) -> Handled {
        Handled {
            answer: answer.into(),
            effect: None,
            durable: true,
        }
    }

    /// An answer that does not wait for a step: what was done for it is in the child's memory alone,
    /// and in the effect of a later call or prod. Until that is recorded the child's end takes it along,
    /// and its caller is told so (`understudy-durable: false`). At most 1 MiB.
    ///
    /// In answer to a prod it says that the child goes on holding what no step holds.
    pub fn loose(answer: impl Into<Bytes>) -> Handled {
        Handled {
            answer: answer.into(),
            effect: None,
            durable: false,
        }
    }

    /// An answer and the step that the child took: what its next start will find among
    /// [`Checkpoint::steps`]. The answer has at most 1 MiB, the effect at most [`VALUE_BYTES_MAX`](understudy_protocol::wire::content::VALUE_BYTES_MAX)
    /// (64 MiB): above it the call is refused as too large, and the child starts again from what was
    /// recorded before. What is above 16 KiB is kept in files of its own beside the record, which
    /// costs two flushes more.
    pub fn step(answer: impl Into<Bytes>, effect: impl Into<Bytes>) -> Handled {
        Handled {
            answer: answer.into(),
            effect: Some(effect.into()),
            durable: true,
        }
    }
}

/// What a child knows of where it is.
#[derive(Clone, Debug)]
pub struct Context {
    child: ChildId,
    ender: Ender,
    prodder: Prodder,
}

impl Context {
    /// The context of `child`; `end` is called when it ends by itself, at most once. Drivers and
    /// tests make these.
    pub fn new(child: ChildId, end: impl Fn(Exit, String) + Send + Sync + 'static) -> Context {
        let end = std::sync::Mutex::new(Some(end));
        let once = move |exit, reason| {
            let end = end.lock().ok().and_then(|mut end| end.take());
            if let Some(end) = end {
                end(exit, reason);
            }
        };
        Context {
            child,
            ender: Ender {
                end: Arc::new(once),
            },
            prodder: Prodder {
                prod: Arc::new(|| {}),
            },
        }
    }

    /// This context, whose prodder calls `prod`. Drivers and tests make these.
    #[must_use]
    pub fn prodded_by(mut self, prod: impl Fn() + Send + Sync + 'static) -> Context {
        self.prodder = Prodder {
            prod: Arc::new(prod),
        };
        self
    }

    /// Which child it is.
    pub fn child(&self) -> &ChildId {
        &self.child
    }

    /// By which the child ends itself.
    pub fn ender(&self) -> Ender {
        self.ender.clone()
    }

    /// By which the child has itself called.
    pub fn prodder(&self) -> Prodder {
        self.prodder.clone()
    }
}

/// By which a child has itself called, from a task or a timer of its own.
#[derive(Clone)]
pub struct Prodder {
    prod: Arc<dyn Fn() + Send + Sync>,
}

impl Prodder {
    /// Has the child called with a request that [`Request::is_prod`] once it is its turn, between calls.
    /// One prod waits at most: prodding it again before that is prodding it once. It keeps no child
    /// from being passivated; whoever is not there any more is not called.
    pub fn prod(&self) {
        (self.prod)();
    }
}

impl fmt::Debug for Prodder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Prodder")
    }
}

/// By which a child ends itself, from wherever it notices that it is over.
#[derive(Clone)]
pub struct Ender {
    end: Arc<dyn Fn(Exit, String) + Send + Sync>,
}

impl Ender {
    /// Ends the child once the call at work, if any, is answered; only the first word counts.
    /// `reason` is for people.
    pub fn end(&self, exit: Exit, reason: impl Into<String>) {
        (self.end)(exit, reason.into());
    }
}

impl fmt::Debug for Ender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ender")
    }
}

/// Why a child did not start. Nothing of it runs; its records stand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The checkpoint is not what this kind writes.
    #[error("the checkpoint cannot be read: {0}")]
    BadCheckpoint(String),
    /// Something that the child needs is not to be had.
    #[error("the child cannot start: {0}")]
    Failed(String),
    /// The node runs as many of this kind as its configuration allows.
    #[error("there is no room here: {0}")]
    Full(String),
    /// A part of the checkpoint is not to be had now. The node says this, before the kind is asked.
    #[error("the checkpoint is not to be had: {0}")]
    Unfetched(#[from] FetchError),
}

/// Why a child cannot go on. Its memory is dropped; its records stand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChildError {
    /// Its state, or something that it leans on, is broken.
    #[error("the child is broken: {0}")]
    Broken(String),
}
