//! The browsers of a node: one process a tenant, shared by its sessions, or one a session.
//!
//! Owns: who has which process, and how long one is kept after its last session. Never shows one
//! tenant's process to another: a process is the wall between tenants, a context the one between sessions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use understudy_protocol::id::ChildId;

use crate::door::Door;
use crate::process::{Browser, BrowserError, BrowserSetup, SharedLauncher};

/// A browser that runs, and what stands at its door.
#[derive(Debug)]
pub struct Hosted {
    /// The browser.
    pub browser: Browser,
    /// Where its new pages wait for the clients that want to see them first.
    pub door: Arc<Door>,
}

/// The browsers of a node. Dropping the last clone ends those that no session holds.
#[derive(Clone)]
pub struct Browsers {
    inner: Arc<Inner>,
    _sweeper: Arc<JoinSet<()>>,
}

/// Which sessions share a process. Those of two tenants never do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Those of one tenant.
    Tenant,
    /// None: each has its own.
    Nobody,
}

struct Inner {
    setup: BrowserSetup,
    sharing: Sharing,
    launcher: SharedLauncher,
    of: Mutex<HashMap<String, Arc<Slot>>>,
}

/// One process. The lock is held while it starts, so that it starts once.
#[derive(Default)]
struct Slot {
    kept: tokio::sync::Mutex<Option<Kept>>,
}

struct Kept {
    hosted: Arc<Hosted>,
    /// When no session was seen to hold it for the first time.
    idle_since: Option<Instant>,
}

impl Browsers {
    /// None runs yet. Needs a runtime, for the task that ends those that nobody uses.
    pub fn new(setup: BrowserSetup, sharing: Sharing, launcher: SharedLauncher) -> Browsers {
        let inner = Arc::new(Inner {
            setup,
            sharing,
            launcher,
            of: Mutex::default(),
        });
        let mut sweeper = JoinSet::new();
        sweeper.spawn(sweep(Arc::downgrade(&inner)));
        Browsers {
            inner,
            _sweeper: Arc::new(sweeper),
        }
    }

    /// How they are started.
    pub fn setup(&self) -> &BrowserSetup {
        &self.inner.setup
    }

    /// The session's browser, started if none runs.
    ///
    /// # Errors
    /// See [`BrowserError`]: none runs.
    pub async fn of(&self, session: &ChildId) -> Result<Arc<Hosted>, BrowserError> {
        let whose = match self.inner.sharing {
            Sharing::Tenant => session.tenant().to_owned(),
            Sharing::Nobody => session.to_string(),
        };
        let slot = self.inner.slots().entry(whose.clone()).or_default().clone();
        let mut kept = slot.kept.lock().await;
        if let Some(running) = kept
            .as_mut()
            .filter(|kept| !kept.hosted.browser.cdp().is_closed())
        {
            running.idle_since = None;
            return Ok(running.hosted.clone());
        }
        let browser = Browser::start(&*self.inner.launcher, &self.inner.setup).await?;
        let door = Door::open(browser.cdp()).await;
        let door = door.map_err(|error| BrowserError::NotReady {
            program: self.inner.setup.program(),
            error,
            sandbox: self.inner.setup.sandbox,
        })?;
        tracing::info!(
            whose,
            pid = browser.pid(),
            product = browser.about().product,
            "a browser runs"
        );
        let hosted = Arc::new(Hosted {
            browser,
            door: Arc::new(door),
        });
        *kept = Some(Kept {
            hosted: hosted.clone(),
            idle_since: None,
        });
        Ok(hosted)
    }

    /// Process ids of those that run, by tenant, or by session where each has its own: for people.
    pub fn running(&self) -> Vec<(String, u32)> {
        let slots = self.inner.slots().clone();
        let running = slots.into_iter().filter_map(|(whose, slot)| {
            let kept = slot.kept.try_lock().ok()?;
            Some((whose, kept.as_ref()?.hosted.browser.pid()))
        });
        running.collect()
    }
}

impl Inner {
    fn slots(&self) -> MutexGuard<'_, HashMap<String, Arc<Slot>>> {
        // Nothing that is done while it is held can be left half done.
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what has been idle for [`KEEP`], or is dead. One session's own is of use to nobody else.
    fn sweep(&self) {
        let keep = match self.sharing {
            Sharing::Tenant => KEEP,
            Sharing::Nobody => Duration::ZERO,
        };
        let mut ended = Vec::new();
        self.slots().retain(|_, slot| {
            // Somebody is about to use it.
            if Arc::strong_count(slot) > 1 {
                return true;
            }
            let Ok(mut kept) = slot.kept.try_lock() else {
                return true;
            };
            let is_held = |kept: &Kept| Arc::strong_count(&kept.hosted) > 1;
            match kept.as_mut() {
                None => return false,
                Some(kept) if kept.hosted.browser.cdp().is_closed() => {}
                Some(kept) if is_held(kept) => {
                    kept.idle_since = None;
                    return true;
                }
                Some(kept) => {
                    let since = *kept.idle_since.get_or_insert_with(Instant::now);
                    if since.elapsed() < keep {
                        return true;
                    }
                }
            }
            ended.extend(kept.take());
            false
        });
        // Outside of the lock: ending a process takes a moment.
        drop(ended);
    }
}

async fn sweep(inner: Weak<Inner>) {
    let mut tick = tokio::time::interval(SWEEP);
    loop {
        tick.tick().await;
        match inner.upgrade() {
            Some(inner) => inner.sweep(),
            None => return,
        }
    }
}

/// How long a browser without a session is kept for the tenant's next one: starting one takes ten times
/// as long as opening a context in it.
const KEEP: Duration = Duration::from_secs(60);

/// Between two looks.
const SWEEP: Duration = Duration::from_secs(5);
