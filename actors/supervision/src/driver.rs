//! The driver: one actor a child, and one word when it ends.
//!
//! Owns: the actors of a node's children, from start to end. Never decides: the agent of
//! `understudy-protocol` says start, execute and stop, and hears what came of it.
//!
//! ```text
//!   start ───> actor ──> Started
//!   execute ──> actor ──> Executed          at most one call at a time
//!   stop ────> actor ──> child.stop()  ┐
//!               │ STOP_LIMIT           ├──> Ended, once for every start, and always the last word
//!               └──> killed            ┘
//! ```
//!
//! Every actor has a watch: a task that owns the actor, waits for it to be really gone, whatever ended
//! it, and only then says [`DriverEvent::Ended`]. It does not lean on the actor system's own exit
//! notices, which do not come for an actor that is killed before it is linked.
//!
//! No call blocks. Events wait for room in the channel inside the actor or the watch of the child they
//! speak of, so a slow receiver slows its children and nobody else, and at most two events a child
//! wait.
//!
//! A panic or an error in a child ends that child alone. What no driver can end is a child that holds
//! its thread: its `Ended` comes when it lets go, since it would be a lie before (a unit is given away
//! when its child has ended).

mod actor;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ractor::concurrency::JoinHandle;
use ractor::{ActorRef, ActorRuntime, SpawnErr};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use understudy_protocol::id::ChildId;
use understudy_protocol::supervision::Exit;
use understudy_protocol::wire::content::{Content, Parts, Pieces};
use understudy_protocol::wire::envelope::{CallId, Envelope};

pub use crate::kinds::{About, Kinds};
use crate::values::KeepError;
use crate::values::{MemoryValues, Values};
use actor::{Birth, ChildActor, Message, Verdict};

/// How long a child that is told to stop may take before it is killed: long enough to write a browser
/// session's last words, and shorter than anybody waits for a drained unit.
pub const STOP_LIMIT: Duration = Duration::from_secs(5);

/// How long a start may take: a cold browser or a module to compile on a busy machine takes seconds; a
/// start that takes a minute waits for something that will not come.
pub const START_LIMIT: Duration = Duration::from_secs(60);

/// After how long it is logged, again and again, that a killed child still holds its thread.
pub const KILL_PATIENCE: Duration = Duration::from_secs(1);

/// What became of what the driver was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DriverEvent {
    /// Of the calls that the child remembers this is the next piece; said before it is up.
    Recalled {
        /// Whose.
        child: ChildId,
        /// The piece.
        piece: Bytes,
    },
    /// The child is up.
    Started(ChildId),
    /// The child has carried a call out.
    Executed {
        /// Whose.
        child: ChildId,
        /// Which call.
        call: CallId,
        /// What it answers. That of a step may be in pieces.
        answer: Content,
        /// The step it took; none for a read.
        effect: Option<Content>,
        /// Its whole state after the step, when a snapshot was asked for and there was a step.
        state: Option<Content>,
        /// See [`Handled::durable`](crate::child::Handled::durable).
        durable: bool,
    },
    /// The child wants to be prodded. Not said again before it has been.
    Prod(ChildId),
    /// The child was prodded.
    Prodded {
        /// Which.
        child: ChildId,
        /// The step it took.
        effect: Option<Content>,
        /// Its whole state after the step, when a snapshot was asked for and there was a step.
        state: Option<Content>,
        /// See [`Handled::durable`](crate::child::Handled::durable).
        durable: bool,
    },
    /// The child was called or prodded, and what it handed out cannot be kept. Nothing of the call
    /// may count: stop the child, and start it from what was recorded before.
    Unkept {
        /// Whose.
        child: ChildId,
        /// Which call; none for a prod.
        call: Option<CallId>,
        /// Why.
        reason: KeepError,
    },
    /// Nothing of the child is left in memory. Once for every start, after all else of that start.
    Ended {
        /// Which.
        child: ChildId,
        /// How.
        exit: Exit,
        /// Why, for people.
        reason: String,
    },
}

/// Runs the children of one node.
pub struct Driver {
    kinds: Kinds,
    values: Arc<dyn Values>,
    events: mpsc::Sender<DriverEvent>,
    runtime: Handle,
    children: HashMap<ChildId, Running>,
    /// One a child; each yields the child that it watched.
    watches: JoinSet<ChildId>,
}

/// Without what it is made of.
impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver")
            .field("kinds", &self.kinds)
            .field("children", &self.children)
            .finish_non_exhaustive()
    }
}

/// A child between its start and its end.
#[derive(Debug)]
struct Running {
    actor: ActorRef<Message>,
    /// Whether it was handed a call that it has not answered.
    busy: Arc<AtomicBool>,
    /// Until it was told to stop. Closed as soon as the child has ended.
    stop: Option<oneshot::Sender<()>>,
    ended: Arc<AtomicBool>,
}

impl Driver {
    /// A driver of children of these kinds, which tells `events` what becomes of them. Their long
    /// bytes are kept in memory: for tests and benches.
    ///
    /// # Panics
    /// Outside a tokio runtime. The children run on the one that it is called in.
    pub fn new(kinds: Kinds, events: mpsc::Sender<DriverEvent>) -> Driver {
        Driver::keeping(kinds, Arc::new(MemoryValues::default()), events)
    }

    /// A driver whose children's long bytes are kept there.
    ///
    /// # Panics
    /// As [`Driver::new`].
    pub fn keeping(
        kinds: Kinds,
        values: Arc<dyn Values>,
        events: mpsc::Sender<DriverEvent>,
    ) -> Driver {
        Driver {
            kinds,
            values,
            events,
            runtime: Handle::current(),
            children: HashMap::new(),
            watches: JoinSet::new(),
        }
    }

    /// Starts a child from its base and the steps after it; what it remembers, if it stands in
    /// `calls`, is told in [`DriverEvent::Recalled`], piece by piece. Ends in [`DriverEvent::Started`] and, at
    /// once or later, in exactly one [`DriverEvent::Ended`]. A child that has not ended is not started
    /// again: that is logged, and the running one goes on.
    pub fn start(
        &mut self,
        child: ChildId,
        base: Option<Content>,
        steps: Vec<Content>,
        calls: Option<Pieces>,
    ) {
        self.forget_ended();
        if self.children.get(&child).is_some_and(Running::is_up) {
            tracing::error!(%child, "started while it is up: ignored");
            return;
        }
        let kind = match self.kind_of(&child) {
            Ok(kind) => kind,
            Err(reason) => return self.refuse(child, reason),
        };
        let busy = Arc::new(AtomicBool::new(false));
        let ended = Arc::new(AtomicBool::new(false));
        let (verdict, judged) = oneshot::channel();
        let (stop, told_to_stop) = oneshot::channel();
        let birth = Birth {
            child: child.clone(),
            kind,
            recorded: (base, steps),
            calls,
            values: self.values.clone(),
            events: self.events.clone(),
            busy: busy.clone(),
            verdict,
        };
        let _inside = self.runtime.enter();
        let (actor, spawned) = match ActorRuntime::spawn_instant(None, ChildActor, birth) {
            Ok(spawned) => spawned,
            Err(error) => return self.refuse(child, error.to_string()),
        };
        let watch = Watch {
            child: child.clone(),
            life: Life {
                actor: actor.clone(),
                spawned,
            },
            judged,
            told_to_stop,
            ended: ended.clone(),
            events: self.events.clone(),
        };
        self.watches.spawn(watch.run());
        let running = Running {
            actor,
            busy,
            stop: Some(stop),
            ended,
        };
        self.children.insert(child, running);
    }

    /// Hands a call to the child; with `snapshot`, its whole state is handed back too if it takes a
    /// step, and what `snapshot` holds is kept before. Ends in [`DriverEvent::Executed`] or [`DriverEvent::Ended`]. A child that has ended
    /// ignores it, since its end is on its way; one at work refuses a second call: that is logged.
    pub fn execute(&mut self, child: &ChildId, envelope: Envelope, snapshot: Option<Parts>) {
        let Some(running) = self.children.get(child).filter(|running| running.is_up()) else {
            return;
        };
        if running.busy.swap(true, Ordering::AcqRel) {
            let call = envelope.call;
            tracing::error!(%child, ?call, "handed a second call while at work: refused");
            return;
        }
        let message = Message::Execute { envelope, snapshot };
        // One that has just ended does not hear it; its end is on its way.
        let _ = running.actor.send_message(message);
    }

    /// Prods the child, as [`Driver::execute`] hands it a call. Ends in [`DriverEvent::Prodded`] or
    /// [`DriverEvent::Ended`].
    pub fn prod(&mut self, child: &ChildId, snapshot: Option<Parts>) {
        let Some(running) = self.children.get(child).filter(|running| running.is_up()) else {
            return;
        };
        if running.busy.swap(true, Ordering::AcqRel) {
            tracing::error!(%child, "prodded while at work: refused");
            return;
        }
        // As above.
        let _ = running.actor.send_message(Message::Prod { snapshot });
    }

    /// Tells the child to stop once the call at work is answered; after [`STOP_LIMIT`] it is killed.
    /// Either way it ends in [`DriverEvent::Ended`]. Telling it twice is telling it once.
    pub fn stop(&mut self, child: &ChildId) {
        if let Some(stop) = self
            .children
            .get_mut(child)
            .and_then(|child| child.stop.take())
        {
            let _ = stop.send(());
        }
    }

    /// How many children have not ended.
    pub fn len(&self) -> usize {
        self.children.values().filter(|child| child.is_up()).count()
    }

    /// Whether every child has ended.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Stops all children. Go on receiving events meanwhile, or drop the receiver: a full channel that
    /// nobody reads ends the wait at twice [`STOP_LIMIT`], with the remaining children killed.
    pub async fn shutdown(mut self) {
        for running in self.children.values_mut() {
            running.stop.take().map(|stop| stop.send(()));
        }
        let all = async { while self.watches.join_next().await.is_some() {} };
        if timeout(2 * STOP_LIMIT, all).await.is_err() {
            tracing::error!(
                left = self.len(),
                "children that did not end are left behind"
            );
        }
    }

    fn kind_of(&self, child: &ChildId) -> Result<Arc<dyn crate::kinds::AnyKind>, String> {
        let name = child.kind();
        let kind = self.kinds.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.kinds.names().collect();
            format!(
                "there is no kind {name:?} here; there are: {}",
                known.join(", ")
            )
        })?;
        if kind.about().needs_own_unit && !child.is_dedicated() {
            return Err(format!(
                "a child of the kind {name:?} needs a unit of its own: @{child}"
            ));
        }
        Ok(kind)
    }

    /// A start that ends before there was an actor.
    fn refuse(&mut self, child: ChildId, reason: String) {
        let events = self.events.clone();
        let refusal = async move {
            let ended = DriverEvent::Ended {
                child: child.clone(),
                exit: Exit::Abnormal,
                reason,
            };
            let _ = events.send(ended).await;
            child
        };
        self.watches.spawn_on(refusal, &self.runtime);
    }

    fn forget_ended(&mut self) {
        while let Some(watched) = self.watches.try_join_next() {
            if let Ok(child) = watched
                && self
                    .children
                    .get(&child)
                    .is_some_and(|child| !child.is_up())
            {
                self.children.remove(&child);
            }
        }
    }
}

impl Running {
    fn is_up(&self) -> bool {
        !self.ended.load(Ordering::Acquire)
    }
}

/// Waits for one child to be gone, and says so.
struct Watch {
    child: ChildId,
    life: Life,
    judged: oneshot::Receiver<Verdict>,
    told_to_stop: oneshot::Receiver<()>,
    ended: Arc<AtomicBool>,
    events: mpsc::Sender<DriverEvent>,
}

/// An actor that is killed when nobody waits for it any more.
struct Life {
    actor: ActorRef<Message>,
    spawned: JoinHandle<Result<JoinHandle<()>, SpawnErr>>,
}

impl Watch {
    async fn run(mut self) -> ChildId {
        let actor = self.life.actor.clone();
        let mut killed = false;
        let mut gone = Box::pin(self.life.is_gone());
        tokio::select! {
            () = &mut gone => {}
            _ = &mut self.told_to_stop => {
                let _ = actor.send_message(Message::Stop);
                if timeout(STOP_LIMIT, &mut gone).await.is_err() {
                    killed = true;
                    actor.kill();
                    while timeout(KILL_PATIENCE, &mut gone).await.is_err() {
                        tracing::error!(child = %self.child, "killed, and it still holds its thread");
                    }
                }
            }
        }
        drop(gone);
        let Verdict { exit, reason } = self.judged.try_recv().unwrap_or_else(|_| Verdict {
            exit: Exit::Abnormal,
            reason: match killed {
                true => format!("it did not stop within {STOP_LIMIT:?} and was killed"),
                false => "its actor was lost".to_owned(),
            },
        });
        // First, so that whoever hears of the end may start it again.
        self.ended.store(true, Ordering::Release);
        let child = self.child.clone();
        let ended = DriverEvent::Ended {
            child,
            exit,
            reason,
        };
        let _ = self.events.send(ended).await;
        self.child.clone()
    }
}

impl Life {
    /// Waits for the actor's tasks: whatever they held is dropped then.
    async fn is_gone(&mut self) {
        if let Ok(Ok(task)) = (&mut self.spawned).await {
            let _ = task.await;
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.actor.kill();
    }
}
