//! Who hears what: the bookkeeping of one pipe.
//!
//! Owns: commands without an answer, roots, and the sessions below each. Never touches the pipe.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};

use super::{CdpError, Event, Heard, Reply, Waiting};

/// What a command to a crashed page is refused with, in the protocol's own numbers.
pub const CRASHED: &str = "Target crashed";

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Router {
    last_id: u64,
    is_closed: bool,
    waiting: HashMap<u64, Sent>,
    roots: HashMap<Arc<str>, Listener>,
    sessions: HashMap<Arc<str>, Session>,
}

/// Who waits for an answer.
#[derive(Debug)]
pub(super) enum Waiter {
    /// A call of our own.
    Caller(oneshot::Sender<Result<Box<RawValue>, CdpError>>),
    /// A command that was passed on.
    Root {
        /// On whose behalf.
        root: Arc<str>,
        /// What it named the command by.
        tag: u64,
    },
    /// The answer is of no interest.
    Nobody,
}

#[derive(Debug)]
struct Sent {
    session: Arc<str>,
    method: Box<str>,
    waiter: Waiter,
}

#[derive(Debug)]
struct Listener {
    heard: mpsc::Sender<Heard>,
    waiting: Arc<Waiting>,
}

#[derive(Debug)]
struct Session {
    root: Arc<str>,
    parent: Arc<str>,
    target: Box<str>,
    is_crashed: bool,
}

/// As much of a message as is read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head<'a> {
    id: Option<u64>,
    #[serde(borrow)]
    method: Option<std::borrow::Cow<'a, str>>,
    #[serde(borrow)]
    session_id: Option<std::borrow::Cow<'a, str>>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Attachment {
    session_id: String,
    target_info: TargetRef,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Detachment {
    session_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TargetRef {
    target_id: Box<str>,
}

impl Router {
    /// The number of a command that is about to be sent.
    pub(super) fn expect(
        &mut self,
        session: &str,
        method: &str,
        waiter: Waiter,
    ) -> Result<u64, CdpError> {
        if self.is_closed {
            return Err(CdpError::Gone(method.to_owned()));
        }
        let session: Arc<str> = if session.is_empty() {
            Arc::from("")
        } else if let Some((id, _)) = self.roots.get_key_value(session) {
            id.clone()
        } else {
            let (id, known) = self
                .sessions
                .get_key_value(session)
                .ok_or_else(|| CdpError::Detached(method.to_owned()))?;
            if known.is_crashed && !revives(method) {
                return Err(CdpError::Crashed(method.to_owned()));
            }
            id.clone()
        };
        if let Waiter::Root { root, .. } = &waiter
            && self.root_of(&session).as_ref() != Some(root)
        {
            return Err(CdpError::Detached(method.to_owned()));
        }
        self.last_id += 1;
        let sent = Sent {
            session,
            method: method.into(),
            waiter,
        };
        self.waiting.insert(self.last_id, sent);
        Ok(self.last_id)
    }

    /// Nobody waits for this answer any more.
    pub(super) fn forget(&mut self, id: u64) {
        self.waiting.remove(&id);
    }

    pub(super) fn add_root(
        &mut self,
        session: Arc<str>,
        heard: mpsc::Sender<Heard>,
        waiting: Arc<Waiting>,
    ) {
        self.roots.insert(session, Listener { heard, waiting });
    }

    /// Drops a root and all below it. Their commands are failed.
    pub(super) fn remove_root(&mut self, root: &str) {
        self.roots.remove(root);
        self.sessions.retain(|_, session| &*session.root != root);
        self.fail_gone();
    }

    /// The root that a session belongs to: itself, if it is one.
    pub(super) fn root_of(&self, session: &str) -> Option<Arc<str>> {
        if let Some((root, _)) = self.roots.get_key_value(session) {
            return Some(root.clone());
        }
        Some(self.sessions.get(session)?.root.clone())
    }

    /// The browser is gone: nothing more comes.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
        for (_, sent) in std::mem::take(&mut self.waiting) {
            let method = sent.method.to_string();
            self.fail(sent, CdpError::Gone(method));
        }
        self.roots.clear();
        self.sessions.clear();
    }

    /// One message of the browser.
    pub(super) fn hear(&mut self, raw: Bytes) {
        let head: Head<'_> = match serde_json::from_slice(&raw) {
            Ok(head) => head,
            Err(error) => {
                tracing::warn!(%error, "a browser's message was not understood and dropped");
                return;
            }
        };
        match (head.id, head.method) {
            (Some(id), _) => self.answer(id, head.result, head.error),
            (None, Some(method)) => {
                let session = head.session_id.as_deref().unwrap_or_default();
                self.event(session, &method, head.params, &raw);
            }
            (None, None) => tracing::warn!("a browser's message has neither id nor method"),
        }
    }

    fn answer(&mut self, id: u64, result: Option<&RawValue>, error: Option<&RawValue>) {
        // One that was given up has nobody waiting.
        let Some(sent) = self.waiting.remove(&id) else {
            return;
        };
        let outcome = match (result, error) {
            (Some(result), _) => Ok(result.to_owned()),
            (None, Some(error)) => Err(error.to_owned()),
            (None, None) => Ok(empty()),
        };
        if outcome.is_ok()
            && revives(&sent.method)
            && let Some(session) = self.sessions.get(&sent.session)
        {
            let target = session.target.clone();
            self.mark(&target, false);
        }
        match sent.waiter {
            Waiter::Caller(caller) => {
                // A caller that gave up hears nothing.
                let _ = caller.send(outcome.map_err(|error| refused(&sent.method, &error)));
            }
            Waiter::Root { root, tag } => {
                let session = sent.session;
                let reply = Reply {
                    tag,
                    session,
                    outcome,
                };
                self.tell(&root, Heard::Reply(reply));
            }
            Waiter::Nobody => {}
        }
    }

    fn event(&mut self, session: &str, method: &str, params: Option<&RawValue>, raw: &Bytes) {
        let params = params.map_or("{}", RawValue::get);
        let mut over = None;
        match method {
            "Target.attachedToTarget" => self.attached(session, params),
            "Target.detachedFromTarget" => {
                over = serde_json::from_str::<Detachment>(params).ok();
            }
            "Target.targetCrashed" => {
                if let Ok(target) = serde_json::from_str::<TargetRef>(params) {
                    self.mark(&target.target_id, true);
                }
            }
            "Inspector.targetCrashed" => {
                if let Some(known) = self.sessions.get(session) {
                    let target = known.target.clone();
                    self.mark(&target, true);
                }
            }
            "Inspector.targetReloadedAfterCrash" => {
                if let Some(known) = self.sessions.get(session) {
                    let target = known.target.clone();
                    self.mark(&target, false);
                }
            }
            _ => {}
        }
        // Ours, and of interest for what it told us above.
        if !session.is_empty()
            && let Some(root) = self.root_of(session)
        {
            let session = match self.sessions.get_key_value(session) {
                Some((session, _)) => session.clone(),
                None => root.clone(),
            };
            let event = Event {
                session,
                method: method.into(),
                raw: raw.clone(),
            };
            self.tell(&root, Heard::Event(event));
        }
        if let Some(over) = over {
            self.detached(&over.session_id);
        }
    }

    fn attached(&mut self, parent: &str, params: &str) {
        let Ok(attached) = serde_json::from_str::<Attachment>(params) else {
            return;
        };
        let Some(root) = self.root_of(parent) else {
            return;
        };
        let session = Session {
            root,
            parent: parent.into(),
            target: attached.target_info.target_id,
            is_crashed: false,
        };
        self.sessions.insert(attached.session_id.into(), session);
    }

    /// A session is over, and so are those attached through it.
    fn detached(&mut self, session: &str) {
        let mut over = vec![Arc::<str>::from(session)];
        while let Some(next) = over.pop() {
            self.roots.remove(&next);
            self.sessions.remove(&next);
            let below = self
                .sessions
                .iter()
                .filter(|(_, known)| known.parent == next);
            over.extend(below.map(|(id, _)| id.clone()));
        }
        self.fail_gone();
    }

    /// Fails what was sent on sessions that are there no more.
    fn fail_gone(&mut self) {
        let (roots, sessions) = (&self.roots, &self.sessions);
        let is_there = |session: &str| {
            session.is_empty() || roots.contains_key(session) || sessions.contains_key(session)
        };
        let gone: Vec<_> = self
            .waiting
            .extract_if(|_, sent| !is_there(&sent.session))
            .collect();
        for (_, sent) in gone {
            let method = sent.method.to_string();
            self.fail(sent, CdpError::Detached(method));
        }
    }

    /// A page has crashed, or lives again.
    fn mark(&mut self, target: &str, is_crashed: bool) {
        for session in self.sessions.values_mut() {
            if &*session.target == target {
                session.is_crashed = is_crashed;
            }
        }
        if !is_crashed {
            return;
        }
        let sessions = &self.sessions;
        let of_it = |sent: &Sent| {
            let session = sessions.get(&sent.session);
            session.is_some_and(|session| &*session.target == target) && !revives(&sent.method)
        };
        let hang: Vec<_> = self.waiting.extract_if(|_, sent| of_it(sent)).collect();
        for (_, sent) in hang {
            let method = sent.method.to_string();
            self.fail(sent, CdpError::Crashed(method));
        }
    }

    fn fail(&mut self, sent: Sent, error: CdpError) {
        match sent.waiter {
            Waiter::Caller(caller) => {
                let _ = caller.send(Err(error));
            }
            Waiter::Root { root, tag } => {
                let reply = Reply {
                    tag,
                    session: sent.session,
                    outcome: Err(error.as_protocol()),
                };
                self.tell(&root, Heard::Reply(reply));
            }
            Waiter::Nobody => {}
        }
    }

    fn tell(&mut self, root: &Arc<str>, heard: Heard) {
        let Some(listener) = self.roots.get(root) else {
            return;
        };
        if !listener.waiting.add(&heard) || listener.heard.try_send(heard).is_err() {
            // It hears what is in its queue, then that it is over.
            tracing::warn!("a client of a browser read too slowly and is cut off");
            self.remove_root(&root.clone());
        }
    }
}

impl CdpError {
    /// As the protocol says it, for a client that waits for an answer.
    pub fn as_protocol(&self) -> Box<RawValue> {
        let (code, message) = match self {
            CdpError::Refused { code, message, .. } => (*code, message.as_str()),
            CdpError::Crashed(_) => (SERVER_ERROR, CRASHED),
            // What Chromium says itself, and clients look for.
            CdpError::Detached(_) => (SESSION_NOT_FOUND, "Session with given id not found."),
            CdpError::Gone(_) => (SERVER_ERROR, "Browser closed"),
            CdpError::Unexpected { why, .. } => (SERVER_ERROR, why.as_str()),
        };
        let error = serde_json::json!({ "code": code, "message": message });
        serde_json::value::to_raw_value(&error).unwrap_or_else(|_| empty())
    }
}

fn refused(method: &str, error: &RawValue) -> CdpError {
    #[derive(Deserialize)]
    struct Refusal {
        #[serde(default)]
        code: i64,
        #[serde(default)]
        message: String,
    }
    let refusal = serde_json::from_str(error.get()).unwrap_or_else(|_| Refusal {
        code: 0,
        message: error.get().to_owned(),
    });
    CdpError::Refused {
        method: method.to_owned(),
        code: refusal.code,
        message: refusal.message,
    }
}

/// Commands that the browser's own process answers for a page that has crashed, and by which it lives
/// again or ends.
fn revives(method: &str) -> bool {
    matches!(method, "Page.navigate" | "Page.reload" | "Page.close")
}

/// `{}`.
fn empty() -> Box<RawValue> {
    RawValue::from_string("{}".to_owned()).unwrap_or_default()
}

/// Chromium's number for whatever went wrong on its side.
const SERVER_ERROR: i64 = -32000;

/// Chromium's number for a session that is not there.
const SESSION_NOT_FOUND: i64 = -32001;
