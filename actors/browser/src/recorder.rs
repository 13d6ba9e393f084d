//! One session's state, as it changes.
//!
//! Owns: a root of its own with a session on each page of one BrowserContext, and what each was last
//! known to be. Never visible to the pages (its script runs in a world of its own), and never in the way
//! of clients: it intercepts no request, pauses no page, answers no dialog, and switches on no domain
//! that a page can tell. `Page` is such a domain (while it is on, a dialog waits until somebody closes it;
//! measured: `alert` hung), and so is `Runtime` (it looks into what is logged). `DOM` says when there is a
//! new document; the world and the way out of it are made there then.
//!
//! ```text
//!   watch.js ── "change" / "cookies" / "ready" ──> Watch ── reads the page (one question at a time)
//!   DOMStorage events ───────────────────────────>   │  └─ Storage.getCookies: when told, and each second
//!   Target events (pages come, go, crash) ───────>   ▼
//!                                                  Model ──> changed(), at most every 250 ms
//!                                                    └─────> delta()
//! ```
//!
//! **No page holds up another.** Questions are sent and their answers come as events. A page that loops
//! for ever, shows a dialog or has crashed does not answer; what it was last known to be stands.
//!
//! **Cookies have no event.** They are asked for after what may have set one (a document, a resource, a
//! script's own change) and each second, and compared.

mod apply;
mod page;
mod watch;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use understudy_protocol::time::Time;
use understudy_supervision::clock;

use crate::cdp::{Cdp, CdpError};
use crate::jail::Jail;
use crate::restore::Restored;
use crate::state::{Delta, PageKey, SessionState};
use watch::Watch;

/// See the module. Dropping it ends its tasks and detaches from the pages.
#[derive(Debug)]
pub struct Recorder {
    model: Arc<Mutex<Model>>,
    handed: SessionState,
    flushes: mpsc::Sender<Flush>,
    _tasks: JoinSet<()>,
}

/// How a page is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageHealth {
    /// Which.
    pub page: PageKey,
    /// What it is in the browser.
    pub target: Arc<str>,
    /// For how long it has not answered: it loops, or a dialog waits for a client. Zero if it answers.
    pub silent: Duration,
    /// Whether its process has crashed; it lives again once it is navigated.
    pub is_crashed: bool,
}

/// What is known of the session.
#[derive(Debug, Default)]
struct Model {
    state: SessionState,
    health: BTreeMap<PageKey, Health>,
    /// Targets that were told to be these pages, until the task has taken it up.
    renamed: Vec<(String, PageKey)>,
    /// Whether `state` may differ from what was handed out.
    is_dirty: bool,
    /// Whether it changed since `changed` was called.
    is_news: bool,
}

#[derive(Clone, Debug, Default)]
struct Health {
    target: Arc<str>,
    asked: Option<Time>,
    is_crashed: bool,
}

/// Somebody waits until what has changed is read.
#[derive(Debug)]
struct Flush {
    /// Whether pages that said nothing are read too.
    all: bool,
    done: oneshot::Sender<()>,
}

impl Recorder {
    /// Watches a session's context from now on. `known` is what its checkpoint says already; `changed` is
    /// called, at most every [`CHANGED_EVERY`], when [`Recorder::delta`] has something new: it must not
    /// block.
    ///
    /// # Errors
    /// The browser is gone, or refuses: nothing is watched then.
    pub async fn start(
        cdp: &Cdp,
        jail: Arc<Jail>,
        known: SessionState,
        changed: impl Fn() + Send + Sync + 'static,
    ) -> Result<Recorder, CdpError> {
        Self::resume(cdp, jail, known, &Restored::default(), changed).await
    }

    /// As [`Recorder::start`], for a session that was restored just now: its pages keep their keys. (Else
    /// a page takes over the key of one at the same address.)
    ///
    /// # Errors
    /// As [`Recorder::start`].
    pub async fn resume(
        cdp: &Cdp,
        jail: Arc<Jail>,
        known: SessionState,
        restored: &Restored,
        changed: impl Fn() + Send + Sync + 'static,
    ) -> Result<Recorder, CdpError> {
        let model = Model {
            state: known.clone(),
            ..Model::default()
        };
        let model = Arc::new(Mutex::new(model));
        let mut watch = Watch::new(cdp, jail, model.clone(), restored.placed()).await?;
        let (flushes, mut asked) = mpsc::channel(FLUSHES_MAX);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { watch.run(&mut asked, &changed).await });
        let mut recorder = Recorder {
            model,
            handed: known,
            flushes,
            _tasks: tasks,
        };
        recorder.flush(true).await;
        Ok(recorder)
    }

    /// What changed since the last one handed out; `None` if nothing did. Pages that said that they
    /// changed are read first, for [`FLUSH_LIMIT`] at most.
    pub async fn delta(&mut self) -> Option<Delta> {
        self.flush(false).await;
        self.take()
    }

    /// As [`Recorder::delta`], but every page is read, whether it said anything or not: the last word
    /// before a session moves.
    pub async fn last_delta(&mut self) -> Option<Delta> {
        self.flush(true).await;
        self.take()
    }

    /// The state that the deltas handed out so far add up to.
    pub fn state(&self) -> &SessionState {
        &self.handed
    }

    /// Pages that have crashed, and those that have not answered for `silent`. Each page is asked
    /// something at least every [`SWEEP_EVERY`].
    pub fn health(&self, silent: Duration) -> Vec<PageHealth> {
        let now = clock::now();
        let health = self.model().health.clone();
        let pages = health.into_iter().map(|(page, health)| PageHealth {
            page,
            target: health.target,
            silent: health
                .asked
                .map_or(Duration::ZERO, |asked| now.since(asked)),
            is_crashed: health.is_crashed,
        });
        let is_ill = |page: &PageHealth| page.is_crashed || page.silent >= silent;
        pages.filter(is_ill).collect()
    }

    /// A page that was lost is this target from now on: it was brought back alone.
    pub fn is_now(&mut self, page: PageKey, target: String) {
        let mut model = self.model();
        // Of the one that was lost.
        model.health.remove(&page);
        model.renamed.push((target, page));
    }

    async fn flush(&mut self, all: bool) {
        let (done, is_done) = oneshot::channel();
        // When the browser is gone, what is known is all there is.
        if self.flushes.try_send(Flush { all, done }).is_ok() {
            let _ = tokio::time::timeout(2 * FLUSH_LIMIT, is_done).await;
        }
    }

    fn take(&mut self) -> Option<Delta> {
        let delta = {
            let mut model = self.model();
            if !std::mem::take(&mut model.is_dirty) {
                return None;
            }
            model.state.trim();
            Delta::between(&self.handed, &model.state)?
        };
        self.handed.apply(&delta);
        Some(delta)
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        lock(&self.model)
    }
}

fn lock(model: &Mutex<Model>) -> MutexGuard<'_, Model> {
    // A panic while it was held can have lost one answer at worst; the sweep asks again.
    model.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What `watch.js` is told when it reads a page.
fn limits(stored: bool, edited: &[&str]) -> Value {
    use crate::state::{FIELD_BYTES_MAX, FIELDS_MAX, STORAGE_BYTES_MAX};
    json!({
        "stored": stored,
        "edited": edited,
        "fieldsMax": FIELDS_MAX,
        "fieldMax": FIELD_BYTES_MAX,
        "storageMax": STORAGE_BYTES_MAX,
    })
}

/// How often `changed` is called at most: a checkpoint of each keystroke would be read by nobody.
pub const CHANGED_EVERY: Duration = Duration::from_millis(250);

/// How long a delta waits for pages. A page answers in a few milliseconds, or does not answer.
pub const FLUSH_LIMIT: Duration = Duration::from_millis(500);

/// How often each page is read though it said nothing: values that scripts set have no event, and a page
/// that hangs is noticed so.
pub const SWEEP_EVERY: Duration = Duration::from_secs(2);

/// Those who wait at a time: `delta` takes the recorder for itself, so there is one.
const FLUSHES_MAX: usize = 1;
