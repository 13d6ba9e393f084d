//! One client of one session: it talks to the session as if that were a whole browser.
//!
//! Owns: the client's root, its commands that wait for an answer, what it has attached to, and what
//! it is told of targets. Never decides what may be said ([`crate::filter`] does), and reads no more
//! of the browser's messages than where they belong.
//!
//! ```text
//!   client ──> read, judge ──┬──> refused or emulated: answered here
//!     ^                      └──> passed ──> root ──> Chromium
//!     └── replies and events of its own sessions <───────┘
//! ```
//!
//! **Discovery and attaching.** `Target.setAutoAttach` on a root of Chromium's attaches to the targets
//! of all sessions, and stops new ones until each listener has let them go. So the root listens for all
//! targets (`Target.setDiscoverTargets`), forgets those of other sessions at once, and attaches to the
//! session's own by `Target.attachToTarget`, for each root of the client that asked for it. A target
//! made by the client is attached before the client has its answer, as with Chromium. New pages stand
//! still until the client has seen them where the session has a [`crate::door::Door`].
//!
//! **Leaving.** Dropping the root detaches everything, and Chromium disposes of the contexts that the
//! client made. The session's own context stays, with its pages.

pub(crate) mod speech;
mod targets;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::cdp::{Cdp, Event, Heard, Reply, Root};
use crate::door::Watch;
use crate::filter::{
    self, Attached, AutoAttach, Command, Emulation, Own, Place, Refusal, SERVER_ERROR, Target,
    TargetFilter, Then, Verdict,
};
use crate::jail::Jail;
use speech::{Speech, empty, raw};
use targets::browser_info;

/// How a client's line ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It left. The session goes on.
    Left,
    /// It said `Browser.close`: the session is to be released.
    Released,
    /// The browser is gone. Whatever waited for an answer has one.
    BrowserGone,
    /// It did not take what it was sent. The session goes on.
    TooSlow,
}

impl Ended {
    /// The WebSocket's close code (RFC 6455, 7.4).
    pub fn close_code(self) -> u16 {
        match self {
            Ended::Left | Ended::Released => 1000,
            // Service restart: the same address serves the session again.
            Ended::BrowserGone => 1012,
            // Policy violation.
            Ended::TooSlow => 1008,
        }
    }

    /// The close frame's reason, for people. It fits into one (123 bytes).
    pub fn reason(self) -> &'static str {
        match self {
            Ended::Left => "the client left",
            Ended::Released => "the session was released by Browser.close",
            Ended::BrowserGone => {
                "the browser is gone: connect again, the session is being restored"
            }
            Ended::TooSlow => "the client did not read what it was sent: connect again",
        }
    }
}

/// Serves one client until it leaves, is cut off, or the browser goes.
///
/// `from` are its text messages; one above [`filter::MESSAGE_BYTES_MAX`] is answered with an error. Its
/// room times that is what a client can make this process hold: a handful is enough.
/// `to` is what it hears: best with room for a few dozen messages. When that is full for
/// [`SLOW_LIMIT`], the client is too slow. A session may have any number of clients at a time.
///
/// Dropping the future is as if the client had left.
pub async fn serve(
    cdp: &Cdp,
    jail: &Arc<Jail>,
    mut from: mpsc::Receiver<Bytes>,
    to: mpsc::Sender<Bytes>,
) -> Ended {
    let Ok(root) = cdp.root().await else {
        return Ended::BrowserGone;
    };
    let mut client = Client {
        root,
        jail: jail.clone(),
        to,
        last_tag: 0,
        sent: HashMap::new(),
        targets: HashMap::new(),
        attached: HashMap::new(),
        windows: HashSet::new(),
        roots_expected: 0,
        hands: HashMap::new(),
        held: Vec::new(),
        watch: None,
        made: Vec::new(),
        dialogs: HashSet::new(),
    };
    match client.run(&mut from).await {
        Ok(never) => match never {},
        Err(ended) => ended,
    }
}

struct Client {
    root: Root,
    jail: Arc<Jail>,
    to: mpsc::Sender<Bytes>,
    last_tag: u64,
    sent: HashMap<u64, Sent>,
    /// The session's own, by id; no others are kept.
    targets: HashMap<Box<str>, Target>,
    /// By session id, as the client knows it. Its root is none of them.
    attached: HashMap<Box<str>, Attached>,
    windows: HashSet<i64>,
    /// Roots that the client asked for and that are not attached yet.
    roots_expected: usize,
    /// What is emulated on a session: the client's root is the empty one.
    hands: HashMap<Box<str>, Hand>,
    held: Vec<Held>,
    /// Holds new pages until it has seen them, if it asked for that.
    watch: Option<Watch>,
    /// Contexts that this client made.
    made: Vec<Box<str>>,
    /// Targets whose dialog waits for it.
    dialogs: HashSet<Box<str>>,
}

/// What was sent to the browser.
enum Sent {
    /// On behalf of the client.
    Client {
        id: i64,
        session: Box<str>,
        then: Then,
    },
    /// For one of its roots, to attach by itself.
    Attach { hand: Box<str>, target: Box<str> },
    /// The root's own discovery.
    Discovery,
    /// No answer is of interest.
    Nothing,
}

/// What one session emulates.
#[derive(Default)]
struct Hand {
    discover: Option<TargetFilter>,
    attach: Option<AutoAttach>,
    /// Targets that it attached to by itself, or is about to.
    targets: HashMap<Box<str>, Attachment>,
}

enum Attachment {
    Sent(u64),
    Done(Box<str>),
}

/// An answer that has to come behind others.
struct Held {
    waits_for: HashSet<u64>,
    id: i64,
    session: Box<str>,
    result: Box<RawValue>,
}

enum Never {}

impl Client {
    async fn run(&mut self, from: &mut mpsc::Receiver<Bytes>) -> Result<Never, Ended> {
        self.discover().await?;
        loop {
            tokio::select! {
                heard = self.root.next() => self.hear(heard).await?,
                message = from.recv() => match message {
                    Some(message) => self.command(&message).await?,
                    None => return Err(Ended::Left),
                },
            }
        }
    }

    /// One message of the client.
    async fn command(&mut self, message: &[u8]) -> Result<(), Ended> {
        let command = match filter::read(message) {
            Ok(command) => command,
            Err(bad) => {
                let error = Speech::refusal(bad.id, "", &bad.refusal);
                return self.say(error).await;
            }
        };
        let session = command.session.as_deref().unwrap_or_default();
        let place = match (&command.session, self.attached.get(session)) {
            (None, _) => Place::Root,
            (Some(_), Some(attached)) => attached.place,
            (Some(_), None) => return self.refuse(&command, Refusal::no_session()).await,
        };
        let own = Own {
            jail: &self.jail,
            targets: &self.targets,
            attached: &self.attached,
            windows: &self.windows,
        };
        match filter::judge(&command, place, &own) {
            Verdict::Refuse(refusal) => self.refuse(&command, refusal).await,
            Verdict::Emulate(emulation) => self.emulate(&command, emulation).await,
            Verdict::Pass { params, then } => self.pass(&command, params, then).await,
        }
    }

    async fn pass(
        &mut self,
        command: &Command<'_>,
        params: Option<Box<RawValue>>,
        then: Then,
    ) -> Result<(), Ended> {
        if let Some(refusal) = self.too_many(&then, &command.method) {
            return self.refuse(command, refusal).await;
        }
        let session = command.session.as_deref().unwrap_or_default();
        let at = self.real(session);
        self.last_tag += 1;
        let tag = self.last_tag;
        self.roots_expected += usize::from(then == Then::Root);
        let sent = Sent::Client {
            id: command.id,
            session: session.into(),
            then,
        };
        self.sent.insert(tag, sent);
        let params = params.as_deref().or(command.params);
        let passed = self.root.pass(tag, &at, &command.method, params).await;
        if let Err(error) = passed
            && let Some(Sent::Client { then, .. }) = self.sent.remove(&tag)
        {
            self.roots_expected -= usize::from(then == Then::Root);
            let error = error.as_protocol();
            let speech = Speech::error(command.id, session, &error);
            return self.say(speech).await;
        }
        if command.method == "Runtime.runIfWaitingForDebugger"
            && let (Some(watch), Some(attached)) = (&self.watch, self.attached.get(session))
        {
            watch.let_go(&attached.target);
        }
        Ok(())
    }

    fn too_many(&self, then: &Then, method: &str) -> Option<Refusal> {
        let attaches = *then == Then::Root || method == "Target.attachToTarget";
        let why = if self.sent.len() >= SENT_MAX {
            "too many commands wait for an answer"
        } else if attaches && self.attached.len() >= ATTACHED_MAX {
            "too many sessions are attached"
        } else if *then == Then::Target && self.targets.len() >= TARGETS_MAX {
            "too many targets are open"
        } else if *then == Then::Context && self.made.len() >= CONTEXTS_MAX {
            "too many contexts were made"
        } else {
            return None;
        };
        Some(Refusal::new(SERVER_ERROR, why))
    }

    async fn emulate(&mut self, command: &Command<'_>, what: Emulation) -> Result<(), Ended> {
        let session = command.session.as_deref().unwrap_or_default();
        let result = match what {
            Emulation::Close => {
                self.result(command, &empty()).await?;
                return Err(Ended::Released);
            }
            Emulation::AutoAttach(filter) => return self.auto_attach(command, filter).await,
            Emulation::Discover(filter) => {
                self.start_discovery(session, filter).await?;
                empty()
            }
            Emulation::Targets(filter) => {
                let ours = self.targets.values();
                let ours = ours.filter(|target| filter.matches(&target.kind));
                let infos: Vec<_> = ours.map(|target| &*target.info).collect();
                raw(&speech::Targets {
                    target_infos: infos,
                })
            }
            Emulation::Contexts => raw(&serde_json::json!({
                "browserContextIds": self.jail.others(),
                "defaultBrowserContextId": self.jail.context(),
            })),
            Emulation::Browser => raw(&serde_json::json!({ "targetInfo": browser_info() })),
        };
        self.result(command, &result).await
    }

    /// Sends a command of the root's own. If it cannot be sent, what comes next says so.
    async fn pass_own(&mut self, at: &str, method: &str, params: &RawValue, sent: Sent) -> u64 {
        self.last_tag += 1;
        self.sent.insert(self.last_tag, sent);
        let passed = self.root.pass(self.last_tag, at, method, Some(params));
        if passed.await.is_err() {
            self.sent.remove(&self.last_tag);
        }
        self.last_tag
    }

    /// One message of the browser.
    async fn hear(&mut self, heard: Option<Heard>) -> Result<(), Ended> {
        match heard {
            Some(Heard::Reply(reply)) => self.reply(reply).await,
            Some(Heard::Event(event)) => self.event(event).await,
            None => Err(self.end().await),
        }
    }

    async fn reply(&mut self, reply: Reply) -> Result<(), Ended> {
        let (id, session, then) = match self.sent.remove(&reply.tag) {
            Some(Sent::Client { id, session, then }) => (id, session, then),
            Some(Sent::Attach { hand, target }) => {
                if reply.outcome.is_err()
                    && let Some(hand) = self.hands.get_mut(&hand)
                {
                    hand.targets.remove(&target);
                }
                return self.release(reply.tag).await;
            }
            Some(Sent::Discovery | Sent::Nothing) | None => return Ok(()),
        };
        self.roots_expected -= usize::from(then == Then::Root);
        match reply.outcome {
            Ok(result) => {
                let waits_for = self.note(&session, then, &result);
                self.answer(id, &session, result, waits_for).await
            }
            Err(error) => {
                let error = Speech::error(id, &session, &error);
                self.say(error).await
            }
        }
    }

    /// Notes what an answer tells; what the client has to hear before it.
    fn note(&mut self, session: &str, then: Then, result: &RawValue) -> HashSet<u64> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Made {
            target_id: Option<Box<str>>,
            browser_context_id: Option<Box<str>>,
            window_id: Option<i64>,
        }
        let mut waits_for = HashSet::new();
        let made = || serde_json::from_str::<Made>(result.get()).ok();
        match then {
            Then::Target => {
                let target = made().and_then(|made| made.target_id);
                let attachment = target.and_then(|target| {
                    let hand = self.hands.get(session)?;
                    hand.targets.get(&target)
                });
                if let Some(Attachment::Sent(tag)) = attachment {
                    waits_for.insert(*tag);
                }
            }
            Then::Context => {
                if let Some(context) = made().and_then(|made| made.browser_context_id) {
                    self.jail.add(&context);
                    self.made.push(context);
                }
            }
            Then::Disposed(context) => {
                self.jail.remove(&context);
                self.made.retain(|made| *made != context);
            }
            Then::Window => self.windows.extend(made().and_then(|made| made.window_id)),
            Then::Root | Then::Nothing => {}
        }
        waits_for
    }

    /// What a held answer waited for has come.
    async fn release(&mut self, tag: u64) -> Result<(), Ended> {
        for held in &mut self.held {
            held.waits_for.remove(&tag);
        }
        let ready: Vec<_> = self
            .held
            .extract_if(.., |held| held.waits_for.is_empty())
            .collect();
        for held in ready {
            let speech = Speech::result(held.id, &held.session, &held.result);
            self.say(speech).await?;
        }
        Ok(())
    }

    async fn event(&mut self, event: Event) -> Result<(), Ended> {
        let is_root = event.session == *self.root.session();
        let session: Box<str> = if is_root {
            "".into()
        } else {
            (&*event.session).into()
        };
        let place = if is_root {
            Some(Place::Root)
        } else {
            self.attached.get(&session).map(|attached| attached.place)
        };
        match (&*event.method, place) {
            ("Target.attachedToTarget", Some(_)) => self.attached_to(&session, &event).await,
            ("Target.detachedFromTarget", Some(_)) => self.detached_from(&session, &event).await,
            (method, Some(Place::Page)) => {
                if method.starts_with(DIALOG) {
                    self.dialog(&session, method);
                }
                self.say(event.raw).await
            }
            (method, Some(Place::Root)) if method.starts_with("Target.") => {
                if is_root {
                    self.discovered(&event).await?;
                }
                Ok(())
            }
            // Of downloads, for whom they were asked.
            (method, Some(Place::Root)) if method.starts_with("Browser.") => {
                self.forward(&session, &event).await
            }
            // Nothing else was asked for on a root, or it is of a session that is none of the client's.
            _ => Ok(()),
        }
    }

    /// A page that shows a dialog stands still until a client has closed it.
    fn dialog(&mut self, session: &str, method: &str) {
        let Some(attached) = self.attached.get(session) else {
            return;
        };
        let target = &attached.target;
        if method == "Page.javascriptDialogClosed" {
            if self.dialogs.remove(target) {
                self.jail.dialog_over(target);
            }
        } else if self.dialogs.len() < TARGETS_MAX && self.dialogs.insert(target.clone()) {
            self.jail.dialog_opened(target);
        }
    }

    /// Passes an event on, as one of the session that the client knows.
    async fn forward(&mut self, session: &str, event: &Event) -> Result<(), Ended> {
        if !session.is_empty() {
            return self.say(event.raw.clone()).await;
        }
        let none = empty();
        let params = speech::params(&event.raw).unwrap_or(&none);
        self.say(Speech::event(&event.method, "", params)).await
    }

    /// Answers once everything that has to come before has come.
    async fn answer(
        &mut self,
        id: i64,
        session: &str,
        result: Box<RawValue>,
        mut waits_for: HashSet<u64>,
    ) -> Result<(), Ended> {
        waits_for.retain(|tag| self.sent.contains_key(tag));
        if waits_for.is_empty() {
            return self.say(Speech::result(id, session, &result)).await;
        }
        self.held.push(Held {
            waits_for,
            id,
            session: session.into(),
            result,
        });
        Ok(())
    }

    async fn result(&self, command: &Command<'_>, result: &RawValue) -> Result<(), Ended> {
        let session = command.session.as_deref().unwrap_or_default();
        self.say(Speech::result(command.id, session, result)).await
    }

    async fn refuse(&self, command: &Command<'_>, refusal: Refusal) -> Result<(), Ended> {
        tracing::debug!(method = %command.method, why = refusal.message, "a command was refused");
        let session = command.session.as_deref().unwrap_or_default();
        let error = Speech::refusal(Some(command.id), session, &refusal);
        self.say(error).await
    }

    async fn say(&self, message: Bytes) -> Result<(), Ended> {
        match timeout(SLOW_LIMIT, self.to.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Ended::Left),
            Err(_) => Err(Ended::TooSlow),
        }
    }

    /// Nothing more is heard: why, once nobody waits for an answer any more.
    async fn end(&mut self) -> Ended {
        // The pipe says that it is closed a moment after the last message.
        if timeout(CLOSED_LIMIT, self.root.cdp().closed())
            .await
            .is_err()
        {
            return Ended::TooSlow;
        }
        let gone = Refusal::new(SERVER_ERROR, "Browser closed");
        let mut waiting: Vec<_> = self.sent.drain().collect();
        waiting.sort_by_key(|(tag, _)| *tag);
        let waiting = waiting.into_iter().filter_map(|(_, sent)| match sent {
            Sent::Client { id, session, .. } => Some((id, session)),
            _ => None,
        });
        let held = self.held.drain(..).map(|held| (held.id, held.session));
        let unanswered: Vec<_> = waiting.chain(held).collect();
        for (id, session) in unanswered {
            let error = Speech::refusal(Some(id), &session, &gone);
            if let Err(ended) = self.say(error).await {
                return ended;
            }
        }
        Ended::BrowserGone
    }

    /// A session as the browser calls it.
    fn real(&self, session: &str) -> Arc<str> {
        if session.is_empty() {
            self.root.session().clone()
        } else {
            session.into()
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Chromium disposes of them when the root, which is dropped next, is detached.
        for context in &self.made {
            self.jail.remove(context);
        }
        // And answers what nobody else sees.
        for target in &self.dialogs {
            self.jail.dialog_over(target);
        }
    }
}

/// How the events of dialogs begin.
const DIALOG: &str = "Page.javascriptDialog";

/// How long a client may leave what it is sent untaken: a long pause of its garbage collector, or a
/// network that lost a few packets. Meanwhile the root keeps up to
/// [`crate::cdp::HEARD_BYTES_MAX`] for it.
pub const SLOW_LIMIT: Duration = Duration::from_secs(10);

/// From a pipe's last message until it is said to be closed: no time, but for a machine that is busy.
const CLOSED_LIMIT: Duration = Duration::from_millis(500);

/// Commands of a client without an answer. Clients of test suites have a few hundred at once.
pub const SENT_MAX: usize = 4096;

/// Targets of a session beyond which its clients make none: each page is two, and costs some 15 MiB.
pub const TARGETS_MAX: usize = 512;

/// Sessions of a client: ten for each of a hundred pages.
pub const ATTACHED_MAX: usize = 1024;

/// Contexts of a client: each costs some 15 MiB.
pub const CONTEXTS_MAX: usize = 64;
