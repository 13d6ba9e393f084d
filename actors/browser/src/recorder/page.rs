//! One page as its recorder knows it.
//!
//! Owns: what the page was asked and has not answered, and when it is asked next. Never sends.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use understudy_protocol::time::Time;
use understudy_supervision::clock;

use super::limits;
use crate::state::PageKey;

/// One page.
#[derive(Default)]
pub(super) struct Page {
    pub(super) key: PageKey,
    pub(super) target: Arc<str>,
    pub(super) session: Option<Arc<str>>,
    /// Where `watch.js` runs, in the document that is there now.
    pub(super) world: Option<i64>,
    /// When one is to be made.
    pub(super) enter_due: Option<Time>,
    /// When that was done last.
    pub(super) entered: Option<Time>,
    /// How many documents there were.
    pub(super) documents: u64,
    /// When it is to be read.
    pub(super) due: Option<Time>,
    /// Whether it is to be read once more when it has answered.
    pub(super) again: bool,
    /// Whether what its origin stored is read with it; changes of that come as events.
    pub(super) stored: bool,
    /// Since when the page itself has not answered a question. It is asked no other meanwhile.
    pub(super) waiting: Option<Time>,
    pub(super) is_asking_history: bool,
    /// Where a form is on its way to.
    pub(super) posting: Option<String>,
    /// Where the form went by which this document came.
    pub(super) posted_to: Option<String>,
    pub(super) is_crashed: bool,
}

/// What an answer is to.
pub(super) enum Asked {
    Attach {
        target: String,
    },
    World {
        target: String,
    },
    /// Nothing but the answer itself is of interest.
    Probe {
        target: String,
    },
    Read {
        target: String,
        document: u64,
    },
    History {
        target: String,
    },
    Cookies,
    Nothing,
}

/// What is to be asked.
pub(super) struct Question {
    pub(super) asked: Asked,
    pub(super) session: Arc<str>,
    pub(super) method: &'static str,
    pub(super) params: Value,
}

impl Page {
    /// Its document may be another one.
    pub(super) fn enter_soon(&mut self) {
        let now = clock::now();
        let due = self
            .entered
            .map_or(now, |entered| now.max(entered + ENTER_EVERY));
        self.enter_due.get_or_insert(due);
    }

    /// Its process is gone; what it was last known to be stands.
    pub(super) fn crashed(&mut self) {
        self.is_crashed = true;
        self.world = None;
        self.waiting = None;
        self.due = None;
    }

    /// It has answered, and may be asked again.
    pub(super) fn answered(&mut self) {
        self.waiting = None;
        if std::mem::take(&mut self.again) {
            self.due = Some(clock::now());
        }
    }

    /// What is asked when it is due.
    pub(super) fn ask(
        &mut self,
        target: &str,
        now: Time,
        edited: &[&str],
        questions: &mut Vec<Question>,
    ) {
        let Some(session) = &self.session else {
            self.due = None;
            return;
        };
        if !self.is_asking_history {
            self.is_asking_history = true;
            questions.push(Question {
                asked: Asked::History {
                    target: target.to_owned(),
                },
                session: session.clone(),
                method: "Page.getNavigationHistory",
                params: json!({}),
            });
        }
        self.due = None;
        self.again = self.waiting.is_some();
        if self.again {
            return;
        }
        let Some(world) = self.world else {
            return;
        };
        self.waiting = Some(now);
        let stored = std::mem::take(&mut self.stored);
        questions.push(Question {
            asked: Asked::Read {
                target: target.to_owned(),
                document: self.documents,
            },
            session: session.clone(),
            method: "Runtime.evaluate",
            params: json!({
                "expression": format!("understudyRead({})", limits(stored, edited)),
                "contextId": world,
                "returnByValue": true,
            }),
        });
    }
}

/// A navigation tells of its document twice; a page may write itself anew for ever.
const ENTER_EVERY: Duration = Duration::from_millis(50);
