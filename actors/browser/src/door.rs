//! New pages wait at the door until the clients that want to see them first have done so.
//!
//! Owns: one root per browser, which Chromium stops new pages for, and who is to look at them. Never
//! speaks to a page but to let it go on, and never holds one of a session that nobody asked for.
//!
//! ```text
//!   page opens ──> Chromium stops it ──> Door: whose context is it?
//!                                          ├── nobody's who wants to wait: on it goes
//!                                          └── clients': until each of them has said
//!                                              Runtime.runIfWaitingForDebugger, or HOLD_LIMIT
//! ```
//!
//! **One for all.** Chromium stops a new page for whatever root switched that on, whichever session
//! the page is of. Were each client's root to do so, each would attach to the pages of all others, and
//! one that hangs would stop them all. So only this one does; it lives as long as its browser.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::cdp::{Cdp, CdpError, Event, Heard, Root};
use crate::client::speech;
use crate::jail::Jail;

/// See the module. Dropping it lets every page go on.
#[derive(Debug)]
pub struct Door {
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    last_watcher: u64,
    watchers: HashMap<u64, Watcher>,
    held: HashMap<Box<str>, HeldPage>,
}

#[derive(Debug)]
struct Watcher {
    jail: Arc<Jail>,
    /// Targets that it has let go: it may be quicker than the door hears of them.
    let_go: HashSet<Box<str>>,
}

#[derive(Debug)]
struct HeldPage {
    session: Box<str>,
    waits_for: HashSet<u64>,
    until: Instant,
}

/// A client that wants to see new pages of its session before they run. Dropping it lets go of them.
#[derive(Debug)]
pub(crate) struct Watch {
    shared: Arc<Shared>,
    id: u64,
}

impl Door {
    /// Stands at a browser's door. Best done before it has pages.
    ///
    /// # Errors
    /// See [`CdpError`]; nothing is held then.
    pub async fn open(cdp: &Cdp) -> Result<Door, CdpError> {
        let root = cdp.root().await?;
        let params = json!({
            "autoAttach": true,
            "waitForDebuggerOnStart": true,
            "flatten": true,
            "filter": [{ "type": "page" }],
        });
        let shared = Arc::<Shared>::default();
        let mut tasks = JoinSet::new();
        let session = root.session().clone();
        tasks.spawn(keep(root, shared.clone()));
        let _: serde_json::Value = cdp.call(&session, "Target.setAutoAttach", params).await?;
        Ok(Door {
            shared,
            _tasks: tasks,
        })
    }

    pub(crate) fn watch(&self, jail: &Arc<Jail>) -> Watch {
        let mut state = self.shared.state();
        state.last_watcher += 1;
        let id = state.last_watcher;
        let watcher = Watcher {
            jail: jail.clone(),
            let_go: HashSet::new(),
        };
        state.watchers.insert(id, watcher);
        Watch {
            shared: self.shared.clone(),
            id,
        }
    }
}

impl Watch {
    /// Whether a target waits for this client.
    pub(crate) fn holds(&self, target: &str) -> bool {
        let state = self.shared.state();
        let held = state.held.get(target);
        held.is_some_and(|held| held.waits_for.contains(&self.id))
    }

    /// The client has seen a target.
    pub(crate) fn let_go(&self, target: &str) {
        let mut state = self.shared.state();
        if let Some(watcher) = state.watchers.get_mut(&self.id) {
            watcher.let_go.insert(target.into());
        }
        if let Some(held) = state.held.get_mut(target) {
            held.waits_for.remove(&self.id);
            self.shared.changed.notify_one();
        }
    }

    /// A target is gone.
    pub(crate) fn forget(&self, target: &str) {
        if let Some(watcher) = self.shared.state().watchers.get_mut(&self.id) {
            watcher.let_go.remove(target);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.watchers.remove(&self.id);
        for held in state.held.values_mut() {
            held.waits_for.remove(&self.id);
        }
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while it was held can have lost one page at worst, which then waits for HOLD_LIMIT.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A page came: whether it is to be held.
    fn came(&mut self, session: &str, info: &speech::Info<'_>, now: Instant) -> bool {
        let context = info.context.as_deref().unwrap_or_default();
        let wants = |(id, watcher): (&u64, &Watcher)| {
            let is_new = !watcher.let_go.contains(&*info.id);
            (watcher.jail.owns(context) && is_new).then_some(*id)
        };
        let waits_for: HashSet<u64> = self.watchers.iter().filter_map(wants).collect();
        if waits_for.is_empty() {
            return false;
        }
        let held = HeldPage {
            session: session.into(),
            waits_for,
            until: now + HOLD_LIMIT,
        };
        self.held.insert(info.id.as_ref().into(), held);
        true
    }

    /// Sessions of pages that need not wait any longer.
    fn due(&mut self, now: Instant) -> Vec<Box<str>> {
        let due = self
            .held
            .extract_if(|_, held| held.waits_for.is_empty() || held.until <= now);
        due.map(|(_, held)| held.session).collect()
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.held.values().map(|held| held.until).min()
    }
}

/// Hears of pages until the browser is gone.
async fn keep(mut root: Root, shared: Arc<Shared>) {
    loop {
        let deadline = shared.state().next_deadline();
        let late = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            heard = root.next() => match heard {
                Some(Heard::Event(event)) => hear(&root, &shared, &event).await,
                Some(Heard::Reply(_)) => {}
                None => return,
            },
            () = shared.changed.notified() => {}
            () = late => {}
        }
        let due = shared.state().due(Instant::now());
        for session in due {
            let_go(&root, &session).await;
        }
    }
}

async fn hear(root: &Root, shared: &Shared, event: &Event) {
    match &*event.method {
        "Target.attachedToTarget" => {
            let Some((session, info)) = speech::attached(&event.raw) else {
                return;
            };
            let is_waiting = speech::is_waiting(&event.raw);
            if !is_waiting || !shared.state().came(&session, &info, Instant::now()) {
                let_go(root, &session).await;
            }
        }
        "Target.detachedFromTarget" => {
            if let Some(session) = speech::detached(&event.raw) {
                shared
                    .state()
                    .held
                    .retain(|_, held| *held.session != *session);
            }
        }
        _ => {}
    }
}

async fn let_go(root: &Root, session: &str) {
    let detach = speech::raw(&json!({ "sessionId": session }));
    // Errors mean that the page or the browser is gone.
    let _ = root
        .pass(0, session, "Runtime.runIfWaitingForDebugger", None)
        .await;
    let at = root.session().clone();
    let _ = root
        .pass(0, &at, "Target.detachFromTarget", Some(&detach))
        .await;
}

/// How long a page waits for clients to say that it may run. They do so at once: what takes longer is
/// a client that hangs, or is held up by a network on which a page that stands still is worse than one
/// that is seen late.
pub const HOLD_LIMIT: Duration = Duration::from_secs(2);
