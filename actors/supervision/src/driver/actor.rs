//! The actor of one child.
//!
//! Owns: the child's value, and every call of its code: whatever that panics with is caught here and
//! ends this child alone. Never says that it has ended; its watch does.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{self, Poll};

use bytes::Bytes;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use understudy_protocol::id::ChildId;
use understudy_protocol::supervision::Exit;
use understudy_protocol::wire::content::{
    ANSWER_INLINE_MAX, Content, INLINE_MAX, PIECE_BYTES, Parts, Pieces,
};
use understudy_protocol::wire::envelope::Envelope;

use super::{DriverEvent, START_LIMIT};
use crate::child::{Checkpoint, Context, Handled, Request, StartError};
use crate::kinds::{AnyChild, AnyKind, BoxFuture};
use crate::values::{FetchError, KeepError, Values, bytes_of, content_of};

/// What the actor is told. The driver sends one `Execute` or `Prod` at a time, its watch one `Stop`, and
/// the child one `End` and one `WantsProd`: so four messages are the most that wait.
#[derive(Debug)]
pub(super) enum Message {
    Execute {
        envelope: Envelope,
        snapshot: Option<Parts>,
    },
    Prod {
        snapshot: Option<Parts>,
    },
    WantsProd,
    Stop,
    End(Verdict),
}

/// Local only: no message to a child travels between actor systems.
impl ractor::Message for Message {}

/// How the child ended, as the actor saw it. None is left by an actor that was killed.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) exit: Exit,
    pub(super) reason: String,
}

/// What an actor begins with.
pub(super) struct Birth {
    pub(super) child: ChildId,
    pub(super) kind: Arc<dyn AnyKind>,
    /// A base or nothing, and the steps after it.
    pub(super) recorded: Recorded,
    /// What it remembers beside that.
    pub(super) calls: Option<Pieces>,
    pub(super) values: Arc<dyn Values>,
    pub(super) events: mpsc::Sender<DriverEvent>,
    pub(super) busy: Arc<AtomicBool>,
    pub(super) verdict: oneshot::Sender<Verdict>,
}

/// A base or nothing, and the steps after it.
type Recorded = (Option<Content>, Vec<Content>);

pub(super) struct ChildActor;

pub(super) struct State {
    name: ChildId,
    /// What it is started from; taken by the start.
    unborn: Option<(Arc<dyn AnyKind>, Recorded, Option<Pieces>)>,
    child: Option<Box<dyn AnyChild>>,
    values: Arc<dyn Values>,
    events: mpsc::Sender<DriverEvent>,
    busy: Arc<AtomicBool>,
    /// It said that it wants to be prodded, and has not been.
    wants_prod: Arc<AtomicBool>,
    verdict: Option<oneshot::Sender<Verdict>>,
}

impl Actor for ChildActor {
    type Msg = Message;
    type State = State;
    type Arguments = Birth;

    async fn pre_start(
        &self,
        _: ActorRef<Message>,
        birth: Birth,
    ) -> Result<State, ActorProcessingErr> {
        Ok(State {
            name: birth.child,
            unborn: Some((birth.kind, birth.recorded, birth.calls)),
            child: None,
            values: birth.values,
            events: birth.events,
            busy: birth.busy,
            wants_prod: Arc::default(),
            verdict: Some(birth.verdict),
        })
    }

    async fn post_start(
        &self,
        myself: ActorRef<Message>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if let Err(verdict) = state.start(&myself).await {
            state.end(&myself, verdict);
        }
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let ended = match message {
            Message::Execute { envelope, snapshot } => state.execute(envelope, snapshot).await,
            Message::Prod { snapshot } => state.prod(snapshot).await,
            Message::WantsProd => state.say(DriverEvent::Prod(state.name.clone())).await,
            Message::Stop => Err(state.stop().await),
            Message::End(verdict) => Err(verdict),
        };
        if let Err(verdict) = ended {
            state.end(&myself, verdict);
        }
        Ok(())
    }
}

impl State {
    async fn start(&mut self, myself: &ActorRef<Message>) -> Result<(), Verdict> {
        let Some((kind, recorded, calls)) = self.unborn.take() else {
            return Ok(());
        };
        let actor = myself.clone();
        let context = Context::new(self.name.clone(), move |exit, reason| {
            // An actor that has just ended does not hear it.
            let _ = actor.send_message(Message::End(Verdict { exit, reason }));
        });
        let (actor, wants) = (myself.clone(), self.wants_prod.clone());
        let context = context.prodded_by(move || {
            if !wants.swap(true, Ordering::AcqRel) {
                // As above.
                let _ = actor.send_message(Message::WantsProd);
            }
        });
        let values = self.values.clone();
        let (name, events) = (self.name.clone(), self.events.clone());
        let start = async move {
            if let Some(calls) = calls {
                recall(&*values, calls, name, &events).await?;
            }
            let checkpoint = checkpoint(&*values, recorded).await.map_err(abnormal)?;
            let child = Caught(kind.start(context, checkpoint)).await;
            child.map_err(panicked)?.map_err(abnormal)
        };
        let child = timeout(START_LIMIT, start)
            .await
            .map_err(|_| abnormal(format!("it did not start within {START_LIMIT:?}")))??;
        self.child = Some(child);
        self.say(DriverEvent::Started(self.name.clone())).await
    }

    async fn execute(
        &mut self,
        envelope: Envelope,
        snapshot: Option<Parts>,
    ) -> Result<(), Verdict> {
        // What waits behind the end of a child is not begun.
        if self.child.is_none() {
            return Ok(());
        }
        let Envelope {
            call, key, body, ..
        } = envelope;
        let request = Request::new(key, body);
        let child = self.name.clone();
        let event = match self.carry_out(request, snapshot).await? {
            Ok(kept) => DriverEvent::Executed {
                child,
                call,
                answer: kept.answer,
                effect: kept.effect,
                state: kept.state,
                durable: kept.durable,
            },
            Err(reason) => DriverEvent::Unkept {
                child,
                call: Some(call),
                reason,
            },
        };
        // First, so that whoever hears of it may hand in the next call.
        self.busy.store(false, Ordering::Release);
        self.say(event).await
    }

    async fn prod(&mut self, snapshot: Option<Parts>) -> Result<(), Verdict> {
        // First, so that what changes from now on is worth another prod.
        self.wants_prod.store(false, Ordering::Release);
        if self.child.is_none() {
            return Ok(());
        }
        let child = self.name.clone();
        let event = match self.carry_out(Request::prod(), snapshot).await? {
            Ok(kept) => DriverEvent::Prodded {
                child,
                effect: kept.effect,
                state: kept.state,
                durable: kept.durable,
            },
            Err(reason) => DriverEvent::Unkept {
                child,
                call: None,
                reason,
            },
        };
        self.busy.store(false, Ordering::Release);
        self.say(event).await
    }

    async fn carry_out(
        &mut self,
        request: Request,
        snapshot: Option<Parts>,
    ) -> Result<Result<Kept, KeepError>, Verdict> {
        let Some(child) = &mut self.child else {
            return Err(abnormal("it has ended"));
        };
        let handled = Caught(child.handle(request))
            .await
            .map_err(panicked)?
            .map_err(abnormal)?;
        let state = match snapshot.filter(|_| handled.effect.is_some()) {
            Some(parts) => {
                let state = Caught(child.snapshot())
                    .await
                    .map_err(panicked)?
                    .map_err(abnormal)?;
                Some((state, parts))
            }
            None => None,
        };
        Ok(keep(self.values.clone(), handled, state).await)
    }

    async fn stop(&mut self) -> Verdict {
        let Some(child) = &mut self.child else {
            return shutdown("it was told to stop");
        };
        match Caught(child.stop()).await {
            Ok(()) => shutdown("it was told to stop"),
            Err(panic) => panicked(panic),
        }
    }

    /// Drops the child. Only the first verdict counts.
    fn end(&mut self, myself: &ActorRef<Message>, verdict: Verdict) {
        if let Some(judge) = self.verdict.take() {
            let _ = judge.send(verdict);
        }
        myself.stop(None);
        self.child = None;
    }

    async fn say(&mut self, event: DriverEvent) -> Result<(), Verdict> {
        let sent = self.events.send(event).await;
        sent.map_err(|_| shutdown("nobody hears what it does any more"))
    }
}

/// What of a call stands in records, or will.
struct Kept {
    answer: Content,
    effect: Option<Content>,
    state: Option<Content>,
    durable: bool,
}

/// Keeps what is long of what stands in records. A read's answer is in none.
async fn keep(
    values: Arc<dyn Values>,
    handled: Handled,
    state: Option<(Bytes, Parts)>,
) -> Result<Kept, KeepError> {
    let Handled {
        answer,
        effect,
        durable,
    } = handled;
    let is_read = effect.is_none() && durable;
    let effect = match effect {
        Some(effect) => Some(content_of(&*values, effect, INLINE_MAX).await?),
        None => None,
    };
    let answer = match is_read {
        true => answer.into(),
        false => content_of(&*values, answer, ANSWER_INLINE_MAX).await?,
    };
    let state = match state {
        Some((state, parts)) => {
            if !parts.is_empty() {
                values.keep_parts(parts).await?;
            }
            Some(content_of(&*values, state, INLINE_MAX).await?)
        }
        None => None,
    };
    Ok(Kept {
        answer,
        effect,
        state,
        durable,
    })
}

/// Tells what a child remembers, piece by piece, since nobody should have to take in all of it at once.
async fn recall(
    values: &dyn Values,
    calls: Pieces,
    child: ChildId,
    events: &mpsc::Sender<DriverEvent>,
) -> Result<(), Verdict> {
    let lost = |error: FetchError| {
        abnormal(format!(
            "the calls that it remembers are not to be had: {error}"
        ))
    };
    let calls = values.fetch(calls).await.map_err(lost)?;
    for at in (0..calls.len()).step_by(PIECE_BYTES) {
        let recalled = DriverEvent::Recalled {
            child: child.clone(),
            piece: calls.slice(at..calls.len().min(at + PIECE_BYTES)),
        };
        let told = events.send(recalled).await;
        told.map_err(|_| shutdown("nobody hears what it does any more"))?;
    }
    Ok(())
}

/// Everything that a child is to go on from, in memory.
async fn checkpoint(
    values: &dyn Values,
    (base, recorded): Recorded,
) -> Result<Checkpoint, StartError> {
    let base = match base {
        Some(base) => Some(bytes_of(values, base).await?),
        None => None,
    };
    let mut steps = Vec::with_capacity(recorded.len());
    for step in recorded {
        steps.push(bytes_of(values, step).await?);
    }
    Ok(Checkpoint::new(base, steps))
}

fn abnormal(reason: impl ToString) -> Verdict {
    Verdict {
        exit: Exit::Abnormal,
        reason: reason.to_string(),
    }
}

fn panicked(message: String) -> Verdict {
    abnormal(format!("it panicked: {message}"))
}

fn shutdown(reason: &str) -> Verdict {
    Verdict {
        exit: Exit::Shutdown,
        reason: reason.to_owned(),
    }
}

/// A child's own code; yields the message of its panic as an error. After one, nothing of the child is
/// used but its drop, so what the panic left half done is seen by nobody.
struct Caught<'a, T>(BoxFuture<'a, T>);

impl<T> Future for Caught<'_, T> {
    type Output = Result<T, String>;

    fn poll(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<Self::Output> {
        let polled = catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(context)));
        match polled {
            Ok(polled) => polled.map(Ok),
            Err(panic) => Poll::Ready(Err(message_of(&*panic))),
        }
    }
}

fn message_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("without a message").to_owned()
}
