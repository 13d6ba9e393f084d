//! The kind `sandbox`: a guest that keeps its state, as a child.
//!
//! Owns: the words of its requests and answers, what its steps and its base are, and which module it
//! runs. Never decides where it runs or how many copies there are: it is a child like any other.
//!
//! A request is one line of JSON and, where there are any, raw bytes behind its newline. So is an answer.
//!
//! | request | answer |
//! |---|---|
//! | `{"op":"create","module":"name@version","sha256":…,"policy":{},"durability":"every-call","limits":{}}` | `{"ok":true}` |
//! | `{"op":"call","export":"f","args":[1,2]}` | `{"ok":true,"results":[3]}` |
//! | `{"op":"call","export":"f"}` and bytes | `{"ok":true}` and bytes |
//! | `{"op":"about"}` | `{"ok":true,"about":{…}}` |
//! | anything that went wrong | `{"ok":false,"error":{"code":…,"detail":…}}` |
//!
//! Only `module` is needed to create one. A call's answer may also have `log`, what the guest wrote, and
//! `denied`, how often it reached for what it may not have.
//!
//! A call takes a step if any of the guest's state changed, whether it then succeeded or said that it
//! failed (`guest_failed`). A call that trapped, ran out of time or pointed out of its memory takes none:
//! the guest is as before it. With `"durability":{"interval_ms":N}` an answer does not wait for its step:
//! what calls have changed is recorded together, `N` milliseconds after the first of them.
//!
//! **Its steps** are deltas ([`snapshot`](crate::snapshot)); the first also says what was created. **Its
//! base** is an image.

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;
use understudy_protocol::id::ChildId;
use understudy_supervision::{
    Checkpoint, Child, ChildError, Context, Handled, Kind, Prodder, Request, StartError,
};

use crate::abi::{Args, CallError, Failure, Outcome, cut};
use crate::durable::{CallFailed, Durable, DurableError};
use crate::engine::{Compiled, Limits};
use crate::instance::Setup;
use crate::library::Library;
use crate::module::{ModuleHash, ModuleId, ModuleSource};
use crate::policy::{DenialSink, Policy};
use crate::snapshot::Image;

/// The kind's name in the ids of its children.
pub const KIND: &str = "sandbox";

/// How long the line of JSON before the bytes may be: a policy may name some files.
const MAX_HEAD: usize = 256 << 10;

/// How long the words about what went wrong may be: some repeat what was asked.
const MAX_DETAIL: usize = 4 << 10;

/// How much of what a guest wrote comes with an answer. In JSON it may be six times as long.
const MAX_LOG: usize = 16 << 10;

/// How long an interval of [`Durability::Interval`] may be, in milliseconds: not so short that recording
/// each call costs less, not so long that whoever asked has forgotten what may be lost.
const INTERVALS: RangeInclusive<u32> = 10..=3_600_000;

/// Starts sandboxes.
pub struct Sandbox<M>(Arc<Inner<M>>);

struct Inner<M> {
    library: Library<M>,
    denials: DenialSink,
    /// What any guest may use at most.
    limits: Limits,
}

/// When what a call changed is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// With the call, before its answer.
    #[default]
    EveryCall,
    /// So many milliseconds later at most; then what was answered since is lost with the node.
    #[serde(rename = "interval_ms")]
    Interval(u32),
}

/// What a sandbox was created as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Its module, as `name@version`.
    pub module: String,
    /// The SHA-256 of the module, in hexadecimal.
    pub sha256: String,
    /// What it may reach.
    pub policy: Policy,
    /// When what it changes is recorded.
    pub durability: Durability,
    /// What it may use.
    pub limits: Limits,
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum Op {
    Create(Create),
    Call {
        export: String,
        args: Option<Vec<Value>>,
    },
    About,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    module: String,
    sha256: Option<String>,
    #[serde(default)]
    policy: Policy,
    #[serde(default)]
    durability: Durability,
    #[serde(default)]
    limits: Limits,
}

/// One step of a sandbox.
#[derive(Encode, Decode)]
struct Step {
    /// What was created, as JSON, in the first step.
    #[cbor(n(0), with = "minicbor::bytes")]
    about: Option<Vec<u8>>,
    /// What changed.
    #[cbor(n(1), with = "minicbor::bytes")]
    delta: Vec<u8>,
}

/// Why something was refused: a word for machines, and words for people.
struct Refusal {
    code: &'static str,
    detail: String,
    more: Value,
}

impl<M: ModuleSource> Sandbox<M> {
    /// A kind whose guests come from there.
    pub fn new(library: Library<M>) -> Sandbox<M> {
        let denials: DenialSink = Arc::new(|denial| tracing::info!(%denial, "denied"));
        Sandbox::telling(library, denials)
    }

    /// As [`Sandbox::new`], with somebody to tell of denials.
    pub fn telling(library: Library<M>, denials: DenialSink) -> Sandbox<M> {
        Sandbox(Arc::new(Inner {
            library,
            denials,
            limits: Limits::default(),
        }))
    }

    /// As this one, but no guest may use more than that, whatever it was created with.
    #[must_use]
    pub fn limited(self, limits: Limits) -> Sandbox<M> {
        let Inner {
            library, denials, ..
        } = &*self.0;
        Sandbox(Arc::new(Inner {
            library: library.clone(),
            denials: denials.clone(),
            limits,
        }))
    }
}

impl<M: ModuleSource> Kind for Sandbox<M> {
    type Child = Guest<M>;

    async fn start(
        &self,
        context: Context,
        checkpoint: Checkpoint,
    ) -> Result<Guest<M>, StartError> {
        let child = context.child().clone();
        let inner = self.0.clone();
        let live = inner.restore(&child, checkpoint).await?;
        Ok(Guest {
            inner,
            child,
            prodder: context.prodder(),
            live,
        })
    }
}

impl<M: ModuleSource> Inner<M> {
    async fn restore(
        &self,
        child: &ChildId,
        checkpoint: Checkpoint,
    ) -> Result<Option<Live>, StartError> {
        if checkpoint.is_empty() {
            return Ok(None);
        }
        let bad = |error: &dyn std::fmt::Display| StartError::BadCheckpoint(error.to_string());
        let image = checkpoint.base.as_deref().map(Image::open).transpose();
        let image = image.map_err(|error| bad(&error))?;
        let mut about = image.as_ref().map(|image| image.trailer.about.clone());
        let mut deltas = Vec::new();
        for step in &checkpoint.steps {
            let step: Step = minicbor::decode(step).map_err(|error| bad(&error))?;
            about = about.or(step.about);
            deltas.push(step.delta);
        }
        let about = about.ok_or_else(|| bad(&"nothing says what was created"))?;
        let about: About = serde_json::from_slice(&about).map_err(|error| bad(&error))?;
        let failed = |refusal: Refusal| StartError::Failed(refusal.detail);
        let sha256 = Some(&about.sha256);
        let compiled = self.module(child, &about.module, sha256).await;
        let compiled = compiled.map_err(failed)?;
        let setup = self.setup(child, &about);
        let guest = Durable::restore(&compiled, setup, image.as_ref(), deltas).await;
        match guest {
            Ok(guest) => Ok(Some(Live::new(about, guest))),
            Err(error @ DurableError::Snapshot(_)) => Err(bad(&error)),
            Err(error) => Err(StartError::Failed(error.to_string())),
        }
    }

    /// The module `name@version`, compiled, if it is the one of this hash.
    async fn module(
        &self,
        child: &ChildId,
        module: &str,
        sha256: Option<&String>,
    ) -> Result<Compiled, Refusal> {
        let invalid = |error: &dyn std::fmt::Display| Refusal::new("invalid", error);
        let id = ModuleId::from_str(module).map_err(|error| invalid(&error))?;
        let wanted = sha256.map(|text| ModuleHash::from_str(text)).transpose();
        let wanted = wanted.map_err(|error| invalid(&error))?;
        let loaded = self.library.load(child.tenant(), &id, wanted).await;
        loaded.map_err(|error| Refusal::new(error.code(), error))
    }

    fn setup(&self, child: &ChildId, about: &About) -> Setup {
        Setup {
            policy: about.policy.clone(),
            limits: about.limits.within(self.limits),
            tenant: child.tenant().to_owned(),
            name: child.key().to_owned(),
            denials: self.denials.clone(),
        }
    }
}

/// One sandbox.
pub struct Guest<M> {
    inner: Arc<Inner<M>>,
    child: ChildId,
    prodder: Prodder,
    /// None until it is created.
    live: Option<Live>,
}

struct Live {
    about: About,
    guest: Durable,
    /// Until what is not recorded yet is to be: at most one, and gone with the guest.
    timer: JoinSet<()>,
}

impl Live {
    fn new(about: About, guest: Durable) -> Live {
        Live {
            about,
            guest,
            timer: JoinSet::new(),
        }
    }

    /// An answer with the step that holds what was done for it, or what it is to be recorded by later.
    async fn record(&mut self, answer: Vec<u8>, prodder: &Prodder) -> Handled {
        if let Durability::Interval(milliseconds) = self.about.durability {
            if !self.guest.has_pending() {
                return Handled::read(answer);
            }
            // What was done before is in this answer too, so it is as loose as that.
            self.timer.try_join_next();
            if self.timer.is_empty() {
                let prodder = prodder.clone();
                self.timer.spawn(async move {
                    sleep(Duration::from_millis(milliseconds.into())).await;
                    prodder.prod();
                });
            }
            return Handled::loose(answer);
        }
        self.step(answer).await
    }

    /// An answer with all that no step holds yet.
    async fn step(&mut self, answer: Vec<u8>) -> Handled {
        match self.guest.take_delta().await {
            Some(delta) => Handled::step(answer, step(None, delta)),
            None => Handled::read(answer),
        }
    }
}

impl<M: ModuleSource> Child for Guest<M> {
    async fn handle(&mut self, request: Request) -> Result<Handled, ChildError> {
        self.there(|mut guest| async move {
            let done = guest.carry_out(request).await;
            (guest, done)
        })
        .await
    }

    async fn snapshot(&mut self) -> Result<Bytes, ChildError> {
        self.there(|mut guest| async move {
            let done = guest.image().await;
            (guest, done)
        })
        .await
    }
}

impl<M: ModuleSource> Guest<M> {
    /// Has the guest taken to the guests' threads and back: it computes for whole slices, which the
    /// node's own tasks must not wait for. Whoever stops waiting ends what it does, and the guest with it.
    async fn there<T, W>(&mut self, work: impl FnOnce(Guest<M>) -> W) -> Result<T, ChildError>
    where
        T: Send + 'static,
        W: Future<Output = (Guest<M>, Result<T, ChildError>)> + Send + 'static,
    {
        let guest = Guest {
            inner: self.inner.clone(),
            child: self.child.clone(),
            prodder: self.prodder.clone(),
            live: self.live.take(),
        };
        let threads = self.inner.library.threads().clone();
        let done = threads.run(work(guest)).await;
        let (guest, done) = done.map_err(|lost| ChildError::Broken(lost.to_string()))?;
        self.live = guest.live;
        done
    }

    async fn carry_out(&mut self, request: Request) -> Result<Handled, ChildError> {
        if request.is_prod() {
            return Ok(match &mut self.live {
                Some(live) => live.step(Vec::new()).await,
                None => Handled::read(Bytes::new()),
            });
        }
        let (head, bytes) = split(&request.body);
        let op = match head.len() <= MAX_HEAD {
            true => serde_json::from_slice(head).map_err(|error| error.to_string()),
            false => Err(format!("the head is longer than {MAX_HEAD} bytes")),
        };
        let handled = match op {
            Err(why) => Err(Refusal::new("invalid", why)),
            Ok(Op::Create(create)) => self.create(create).await,
            Ok(Op::Call { export, args }) => {
                let args = match &args {
                    Some(numbers) => Args::Numbers(numbers),
                    None => Args::Bytes(bytes),
                };
                return self.call(&export, args).await;
            }
            Ok(Op::About) => self.about(),
        };
        Ok(handled.unwrap_or_else(|refusal| Handled::read(refusal.answer())))
    }

    async fn image(&mut self) -> Result<Bytes, ChildError> {
        let Some(live) = &mut self.live else {
            return Ok(Bytes::new());
        };
        let about = words(&live.about);
        let image = live.guest.image(&about).await;
        image.map(Bytes::from).map_err(broken)
    }

    async fn create(&mut self, create: Create) -> Result<Handled, Refusal> {
        let Create {
            module,
            sha256,
            policy,
            durability,
            limits,
        } = create;
        policy
            .check()
            .map_err(|error| Refusal::new("invalid", error))?;
        if let Durability::Interval(milliseconds) = durability
            && !INTERVALS.contains(&milliseconds)
        {
            let (least, most) = (INTERVALS.start(), INTERVALS.end());
            let why = format!("an interval is {least} to {most} milliseconds long");
            return Err(Refusal::new("invalid", why));
        }
        if let Some(live) = &self.live {
            let is = &live.about;
            let same_hash = sha256.is_none_or(|wanted| wanted.eq_ignore_ascii_case(&is.sha256));
            let asked = (&module, &policy, durability, limits);
            return match same_hash && asked == (&is.module, &is.policy, is.durability, is.limits) {
                true => Ok(Handled::read(answer(json!({"ok": true})))),
                false => Err(Refusal::new(
                    "conflict",
                    "the sandbox exists, as another one",
                )),
            };
        }
        let compiled = self.inner.module(&self.child, &module, sha256.as_ref());
        let compiled = compiled.await?;
        let about = About {
            module,
            sha256: hex(compiled.sha256()),
            policy,
            durability,
            limits,
        };
        let setup = self.inner.setup(&self.child, &about);
        let guest = Durable::create(&compiled, setup).await;
        let mut guest = guest.map_err(Refusal::of_durable)?;
        let delta = guest.take_delta().await.unwrap_or_default();
        let effect = step(Some(words(&about)), delta);
        self.live = Some(Live::new(about, guest));
        Ok(Handled::step(answer(json!({"ok": true})), effect))
    }

    async fn call(&mut self, export: &str, args: Args<'_>) -> Result<Handled, ChildError> {
        let refused = |refusal: Refusal| Ok(Handled::read(refusal.answer()));
        let Some(live) = &mut self.live else {
            return refused(Refusal::new("not_found", "the sandbox is not created"));
        };
        let mut head = json!({"ok": true});
        let mut bytes = Vec::new();
        let called = live.guest.call(export, args, |outcome| match outcome {
            Outcome::Numbers(numbers) => head["results"] = Value::Array(numbers),
            // The answer's line of JSON is not known yet; it is short, and its place is left free.
            Outcome::Bytes(answer) => {
                bytes.reserve_exact(HEAD_ROOM + answer.len());
                bytes.resize(HEAD_ROOM, 0);
                bytes.extend_from_slice(answer);
            }
            Outcome::Failed { code, message } => {
                head = json!({"ok": false, "error": {
                    "code": "guest_failed",
                    "detail": message,
                    "error_code": code,
                    "failure": Failure::of(code).name(),
                }});
            }
        });
        match called.await {
            Ok(()) => {}
            Err(CallFailed::Call(error)) => return refused(Refusal::of_call(error)),
            Err(CallFailed::Lost(error)) => return Err(broken(error)),
        }
        let log = live.guest.log();
        if !log.bytes.is_empty() {
            let shown = &log.bytes[..log.bytes.len().min(MAX_LOG)];
            head["log"] = Value::from(String::from_utf8_lossy(shown));
        }
        match live.guest.denied() {
            0 => {}
            denied => head["denied"] = Value::from(denied),
        }
        let answer = join(&head, bytes);
        Ok(live.record(answer, &self.prodder).await)
    }

    fn about(&self) -> Result<Handled, Refusal> {
        let live = self.live.as_ref();
        let live = live.ok_or_else(|| Refusal::new("not_found", "the sandbox is not created"))?;
        Ok(Handled::read(answer(json!({
            "ok": true,
            "about": &live.about,
            "sequence": live.guest.sequence(),
            "memory_bytes": live.guest.memory().len(),
        }))))
    }
}

impl Refusal {
    fn new(code: &'static str, detail: impl ToString) -> Refusal {
        Refusal {
            code,
            detail: detail.to_string(),
            more: Value::Null,
        }
    }

    fn of_call(error: CallError) -> Refusal {
        let more = match &error {
            CallError::Trapped(trap) => json!({
                "trap": trap.message,
                "function": trap.function,
                "backtrace": trap.backtrace,
            }),
            _ => Value::Null,
        };
        Refusal {
            code: error.code(),
            detail: error.to_string(),
            more,
        }
    }

    fn of_durable(error: DurableError) -> Refusal {
        match error {
            DurableError::Obstacle(obstacle) => Refusal {
                more: json!({"obstacle": obstacle.code()}),
                ..Refusal::new("state_not_checkpointable", error)
            },
            DurableError::Call(error) => Refusal::of_call(error),
            error => Refusal::new("unavailable", error),
        }
    }

    fn answer(self) -> Vec<u8> {
        let mut error = json!({"code": self.code, "detail": cut(&self.detail, MAX_DETAIL)});
        if let (Some(error), Value::Object(more)) = (error.as_object_mut(), self.more) {
            error.extend(more);
        }
        answer(json!({"ok": false, "error": error}))
    }
}

/// Room for the line of JSON before an answer's bytes, as it usually is.
const HEAD_ROOM: usize = 12;

/// The line of JSON and the bytes behind it, for which the first [`HEAD_ROOM`] bytes are left free.
fn join(head: &Value, mut bytes: Vec<u8>) -> Vec<u8> {
    let head = answer(head);
    match bytes.get_mut(..HEAD_ROOM) {
        Some(room) if head.len() == HEAD_ROOM => room.copy_from_slice(&head),
        Some(_) => {
            bytes.splice(..HEAD_ROOM, head);
        }
        None => return head,
    }
    bytes
}

fn answer(head: impl ToString) -> Vec<u8> {
    let mut bytes = head.to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

fn split(body: &[u8]) -> (&[u8], &[u8]) {
    match body.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&body[..at], &body[at + 1..]),
        None => (body, &[]),
    }
}

fn step(about: Option<Vec<u8>>, delta: Vec<u8>) -> Vec<u8> {
    minicbor::to_vec(Step { about, delta }).expect("a vector takes every byte")
}

fn words(about: &About) -> Vec<u8> {
    serde_json::to_vec(about).expect("its keys are strings")
}

fn broken(error: DurableError) -> ChildError {
    ChildError::Broken(error.to_string())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
