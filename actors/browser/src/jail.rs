//! What one session owns in a browser that others use too.
//!
//! Owns: the session's BrowserContext, the contexts that its clients made besides, the folder that its
//! files stay in, and the proxy that its traffic leaves by. Never touches the browser: the filter asks
//! it, and the virtual root tells it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::door::Door;

/// See the module. One per session, shared by its clients and its recorder.
#[derive(Debug)]
pub struct Jail {
    context: String,
    downloads: PathBuf,
    proxy: Option<String>,
    door: Option<Arc<Door>>,
    made: Mutex<BTreeSet<String>>,
    /// By target: how many clients see a dialog of it that nobody has closed.
    dialogs: Mutex<BTreeMap<String, usize>>,
}

impl Jail {
    /// A session whose default BrowserContext is `context` and whose files are in `downloads`, an
    /// absolute path that the browser's user can write to.
    pub fn new(context: String, downloads: PathBuf) -> Jail {
        Jail {
            context,
            downloads,
            proxy: None,
            door: None,
            made: Mutex::default(),
            dialogs: Mutex::default(),
        }
    }

    /// Contexts that clients make go through this proxy, such as `http://127.0.0.1:3128`, whatever they
    /// ask for. Without one, contexts are made without one.
    #[must_use]
    pub fn with_proxy(self, proxy: String) -> Jail {
        Jail {
            proxy: Some(proxy),
            ..self
        }
    }

    /// Clients who ask for it (`waitForDebuggerOnStart`, as Playwright and Puppeteer do) see new pages
    /// before these run. Without a door, soon after.
    #[must_use]
    pub fn with_door(self, door: Arc<Door>) -> Jail {
        Jail {
            door: Some(door),
            ..self
        }
    }

    /// The id of the session's default BrowserContext.
    pub fn context(&self) -> &str {
        &self.context
    }

    /// Whether a BrowserContext is the session's.
    pub fn owns(&self, context: &str) -> bool {
        context == self.context || self.made().contains(context)
    }

    /// The contexts that clients made and have not left yet.
    pub fn others(&self) -> Vec<String> {
        self.made().iter().cloned().collect()
    }

    /// The folder that downloads go to, and that files for upload are taken from.
    pub fn downloads(&self) -> &Path {
        &self.downloads
    }

    /// What contexts leave by.
    pub fn proxy(&self) -> Option<&str> {
        self.proxy.as_deref()
    }

    pub(crate) fn door(&self) -> Option<&Door> {
        self.door.as_deref()
    }

    /// A client has made a context.
    pub(crate) fn add(&self, context: &str) {
        self.made().insert(context.to_owned());
    }

    /// A context is disposed of.
    pub(crate) fn remove(&self, context: &str) {
        self.made().remove(context);
    }

    /// Whether a page stands still because a client has not closed its dialog yet.
    pub(crate) fn shows_dialog(&self, target: &str) -> bool {
        self.dialogs().contains_key(target)
    }

    /// A client sees a dialog of this target.
    pub(crate) fn dialog_opened(&self, target: &str) {
        *self.dialogs().entry(target.to_owned()).or_default() += 1;
    }

    /// It is closed, or the client is gone.
    pub(crate) fn dialog_over(&self, target: &str) {
        let mut dialogs = self.dialogs();
        if let Some(count) = dialogs.get_mut(target) {
            *count -= 1;
            if *count == 0 {
                dialogs.remove(target);
            }
        }
    }

    fn dialogs(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        // As for `made`.
        self.dialogs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn made(&self) -> MutexGuard<'_, BTreeSet<String>> {
        // No code that holds it can panic half-way.
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
