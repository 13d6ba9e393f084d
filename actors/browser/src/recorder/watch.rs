//! The task behind a recorder: hears the browser, asks the pages, keeps the model.
//!
//! Owns: which page is which target, what each was asked and has not answered, and when each is asked
//! next. Never waits for an answer: it comes as an event among the others, in their order.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use understudy_protocol::time::Time;
use understudy_supervision::clock;

use super::apply::{CookieList, Navigation, Read};
use super::page::{Asked, Page, Question};
use super::{CHANGED_EVERY, FLUSH_LIMIT, Flush, Health, Model, SWEEP_EVERY, lock};
use crate::cdp::{Cdp, CdpError, Event, Heard, Reply, Root};
use crate::jail::Jail;
use crate::shape::{Attachment, World, params};
use crate::state::{PAGES_MAX, PageKey};

/// See the module.
pub(super) struct Watch {
    cdp: Cdp,
    root: Root,
    jail: Arc<Jail>,
    model: Arc<Mutex<Model>>,
    /// Keys of targets that are not seen yet.
    placed: BTreeMap<String, PageKey>,
    /// Whether targets are still told of that were there before.
    is_starting: bool,
    last_key: u64,
    /// Pages by target.
    pages: HashMap<String, Page>,
    asked: HashMap<u64, Asked>,
    last_tag: u64,
    /// Pages that were closed: they leave the model a little later ([`CLOSED_AFTER`]).
    closed: Vec<(Time, PageKey)>,
    flush: Option<(Time, oneshot::Sender<()>)>,
    cookies_due: Time,
    is_asking_cookies: bool,
    sweep_due: Time,
    told_at: Time,
}

impl Watch {
    pub(super) async fn new(
        cdp: &Cdp,
        jail: Arc<Jail>,
        model: Arc<Mutex<Model>>,
        placed: BTreeMap<String, PageKey>,
    ) -> Result<Watch, CdpError> {
        let root = watching(cdp).await?;
        let now = clock::now();
        let last_key = lock(&model)
            .state
            .pages
            .keys()
            .next_back()
            .map_or(0, |key| key.0);
        Ok(Watch {
            cdp: cdp.clone(),
            root,
            jail,
            model,
            placed,
            is_starting: true,
            last_key,
            pages: HashMap::new(),
            asked: HashMap::new(),
            last_tag: 0,
            closed: Vec::new(),
            flush: None,
            cookies_due: now,
            is_asking_cookies: false,
            sweep_due: now + SWEEP_EVERY,
            told_at: now,
        })
    }

    /// Until the browser is gone.
    pub(super) async fn run(&mut self, flushes: &mut mpsc::Receiver<Flush>, changed: &impl Fn()) {
        self.hear_of_those_there().await;
        loop {
            self.ask().await;
            self.finish_flush();
            self.tell(changed);
            let wait = self.due().since(clock::now());
            tokio::select! {
                heard = self.root.next() => match heard {
                    Some(heard) => self.heard(heard).await,
                    None if self.again().await => {}
                    None => return,
                },
                Some(flush) = flushes.recv() => self.begin_flush(flush),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// More came than was read in time, and the root was cut off: everything is asked anew. False when
    /// it is the browser that is gone.
    async fn again(&mut self) -> bool {
        let Ok(root) = watching(&self.cdp).await else {
            return false;
        };
        tracing::warn!("a session's recorder read too slowly, and asks everything anew");
        self.root = root;
        self.asked.clear();
        self.is_asking_cookies = false;
        let keys = self.pages.drain().map(|(target, page)| (target, page.key));
        self.placed.extend(keys);
        self.hear_of_those_there().await;
        true
    }

    /// Pages that were there when discovery began have been told of by now. Those that are known and not
    /// there are gone.
    async fn hear_of_those_there(&mut self) {
        self.is_starting = true;
        while let Some(Some(heard)) = self.root.next().now_or_never() {
            self.heard(heard).await;
        }
        self.is_starting = false;
        self.placed.clear();
        let due = clock::now() + CLOSED_AFTER;
        let mut model = lock(&self.model);
        let is_there = |key: PageKey| self.pages.values().any(|page| page.key == key);
        let unseen = model.state.pages.keys().filter(|key| !is_there(**key));
        self.closed.extend(unseen.map(|key| (due, *key)));
        model.health.retain(|key, _| is_there(*key));
    }

    async fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Event(event) => self.event(event).await,
            Heard::Reply(reply) => self.reply(reply).await,
        }
    }

    async fn event(&mut self, event: Event) {
        match &*event.method {
            "Target.targetCreated" => {
                if let Some(Created { target_info }) = params(&event) {
                    self.created(target_info).await;
                }
            }
            "Target.targetInfoChanged" => {
                if let Some(Created { target_info }) = params(&event) {
                    self.read_soon(&target_info.target_id, SETTLE);
                }
            }
            "Target.targetDestroyed" => {
                if let Some(TargetId { target_id }) = params(&event) {
                    self.destroyed(&target_id);
                }
            }
            "Target.targetCrashed" => {
                if let Some(TargetId { target_id }) = params(&event)
                    && let Some(page) = self.pages.get_mut(&target_id)
                {
                    page.crashed();
                }
            }
            "Inspector.targetCrashed" => {
                let mut pages = self.pages.values_mut();
                let page = pages.find(|page| page.session.as_ref() == Some(&event.session));
                if let Some(page) = page {
                    page.crashed();
                }
            }
            "Target.detachedFromTarget" => {
                if let Some(Attachment { session_id }) = params(&event) {
                    self.detached(&session_id);
                }
            }
            "Runtime.bindingCalled" => {
                if let Some(called) = params(&event) {
                    self.told(&event.session, called);
                }
            }
            "DOM.documentUpdated" => {
                let mut pages = self.pages.values_mut();
                let page = pages.find(|page| page.session.as_ref() == Some(&event.session));
                if let Some(page) = page {
                    page.enter_soon();
                }
            }
            method if method.starts_with("DOMStorage.") => self.stored(&event),
            _ => {}
        }
    }

    async fn created(&mut self, info: TargetInfo) {
        let is_page = info.kind == "page" && info.subtype.is_none();
        if !is_page
            || info.browser_context_id != self.jail.context()
            || self.pages.contains_key(&info.target_id)
        {
            return;
        }
        if self.pages.len() >= PAGES_MAX {
            let mut model = lock(&self.model);
            model.state.beyond.pages = model.state.beyond.pages.saturating_add(1);
            model.touch();
            return;
        }
        let key = self.key_of(&info);
        lock(&self.model).open(key, &info.url, &info.title);
        let page = Page {
            key,
            target: info.target_id.as_str().into(),
            ..Page::default()
        };
        self.pages.insert(info.target_id.clone(), page);
        self.attach(info.target_id).await;
    }

    /// A page keeps the key that it had before its browser did; at the start, one at a known address may
    /// be it.
    fn key_of(&mut self, info: &TargetInfo) -> PageKey {
        if let Some(key) = self.placed.remove(&info.target_id) {
            return key;
        }
        if self.is_starting {
            let is_free = |key: PageKey| {
                let is_placed = self.placed.values().any(|placed| *placed == key);
                !is_placed && self.pages.values().all(|page| page.key != key)
            };
            let model = lock(&self.model);
            let mut known = model.state.pages.iter();
            let known = known.find(|(key, page)| page.url == info.url && is_free(**key));
            if let Some((key, _)) = known {
                return *key;
            }
        }
        self.last_key += 1;
        PageKey(self.last_key)
    }

    async fn attach(&mut self, target: String) {
        let params = json!({ "targetId": target, "flatten": true });
        let root = self.root.session().clone();
        self.send(Question {
            asked: Asked::Attach { target },
            session: root,
            method: "Target.attachToTarget",
            params,
        })
        .await;
    }

    /// The page is reached: it tells of storage and of new documents from now on.
    async fn attached(&mut self, target: String, session: Arc<str>) {
        let Some(page) = self.pages.get_mut(&target) else {
            return;
        };
        page.session = Some(session.clone());
        page.waiting = Some(clock::now());
        page.enter_soon();
        // `Inspector` tells of a page that had crashed before.
        for method in ["Inspector.enable", "DOMStorage.enable", "DOM.enable"] {
            let session = session.clone();
            self.send(Question {
                asked: Asked::Nothing,
                session,
                method,
                params: json!({}),
            })
            .await;
        }
    }

    /// A document is there: a world of our own is made in it.
    async fn enter(&mut self, target: String) {
        let Some(page) = self.pages.get_mut(&target) else {
            return;
        };
        page.enter_due = None;
        let Some(session) = page.session.clone() else {
            return;
        };
        let now = clock::now();
        page.waiting.get_or_insert(now);
        page.entered = Some(now);
        // One for each root: what one that was cut off left behind calls nobody.
        let world = format!("understudy {}", self.root.session());
        let params = json!({ "frameId": target, "worldName": world });
        self.send(Question {
            asked: Asked::World { target },
            session,
            method: "Page.createIsolatedWorld",
            params,
        })
        .await;
    }

    /// The world is there: the script goes into it.
    async fn entered(&mut self, target: String, world: i64) {
        let page = self.pages.get(&target);
        let Some(session) = page.and_then(|page| page.session.clone()) else {
            return;
        };
        let binding = json!({ "name": "understudyTell", "executionContextId": world });
        let script = json!({
            "expression": include_str!("../scripts/watch.js"),
            "contextId": world,
        });
        let questions = [
            (Asked::Nothing, "Runtime.addBinding", binding),
            (Asked::Probe { target }, "Runtime.evaluate", script),
        ];
        for (asked, method, params) in questions {
            let session = session.clone();
            self.send(Question {
                asked,
                session,
                method,
                params,
            })
            .await;
        }
    }

    fn detached(&mut self, session: &str) {
        // Its target is gone as well, or will be attached to again by the sweep.
        let mut pages = self.pages.values_mut();
        if let Some(page) = pages.find(|page| page.session.as_deref() == Some(session)) {
            page.session = None;
            page.world = None;
            page.waiting = None;
        }
    }

    fn destroyed(&mut self, target: &str) {
        if let Some(page) = self.pages.remove(target) {
            self.closed.push((clock::now() + CLOSED_AFTER, page.key));
            self.cookies_due = clock::now();
        }
    }

    /// What `watch.js` says.
    fn told(&mut self, session: &str, called: Called) {
        let now = clock::now();
        let mut pages = self.pages.values_mut();
        let page = pages.find(|page| page.session.as_deref() == Some(session));
        let Some(page) = page else {
            return;
        };
        match called.payload.as_str() {
            "ready" => {
                page.world = Some(called.execution_context_id);
                page.documents += 1;
                page.is_crashed = false;
                page.waiting = None;
                page.posted_to = page.posting.take();
                page.stored = true;
                page.due = Some(now);
                self.cookies_due = now;
            }
            "change" => page.due = Some(now),
            "again" => {
                page.world = Some(called.execution_context_id);
                page.due = Some(now);
            }
            "cookies" => self.cookies_due = now,
            payload => page.posting = payload.strip_prefix("post ").map(str::to_owned),
        }
    }

    /// Storage changed: the event says how.
    fn stored(&mut self, event: &Event) {
        let now = clock::now();
        let mut pages = self.pages.values_mut();
        let page = pages.find(|page| page.session.as_deref() == Some(&*event.session));
        let Some(page) = page else {
            return;
        };
        let change = params(event);
        let is_applied = change.is_some_and(|change| lock(&self.model).stored(page.key, &change));
        if !is_applied {
            page.stored = true;
            page.due = Some(now);
        }
    }

    async fn reply(&mut self, reply: Reply) {
        let asked = self.asked.remove(&reply.tag).unwrap_or(Asked::Nothing);
        let answer = reply.outcome.ok();
        match asked {
            Asked::Attach { target } => {
                if let Some(Attachment { session_id }) = read(answer) {
                    self.attached(target, session_id.into()).await;
                }
            }
            Asked::World { target } => {
                if let Some(World {
                    execution_context_id,
                }) = read(answer)
                {
                    self.entered(target, execution_context_id).await;
                } else if let Some(page) = self.pages.get_mut(&target) {
                    page.answered();
                }
            }
            Asked::Probe { target } => {
                if let Some(page) = self.pages.get_mut(&target) {
                    page.answered();
                }
            }
            Asked::Read { target, document } => self.page_read(&target, document, answer),
            Asked::History { target } => {
                let Some(page) = self.pages.get_mut(&target) else {
                    return;
                };
                page.is_asking_history = false;
                if let Some(navigation) = read::<Navigation>(answer) {
                    lock(&self.model).navigated(page.key, navigation);
                }
            }
            Asked::Cookies => {
                self.is_asking_cookies = false;
                if let Some(list) = read::<CookieList>(answer) {
                    lock(&self.model).cookies(list);
                }
            }
            Asked::Nothing => {}
        }
    }

    fn page_read(&mut self, target: &str, document: u64, answer: Option<Box<RawValue>>) {
        let Some(page) = self.pages.get_mut(target) else {
            return;
        };
        // Of a document that is there no more.
        if page.documents != document {
            return;
        }
        page.answered();
        let evaluated = read::<Evaluated>(answer).and_then(|evaluated| evaluated.result.value);
        let read = evaluated.and_then(|text| serde_json::from_str::<Read>(&text).ok());
        match read {
            Some(read) => {
                let is_posted = page.posted_to.as_deref() == Some(read.href.as_str());
                let is_posted = is_posted && !read.redirected;
                lock(&self.model).page(page.key, read, is_posted);
            }
            // The document went away; the next one says that it is ready.
            None => page.world = None,
        }
    }

    fn read_soon(&mut self, target: &str, after: Duration) {
        if let Some(page) = self.pages.get_mut(target) {
            page.due.get_or_insert(clock::now() + after);
        }
    }

    /// Asks what is due.
    async fn ask(&mut self) {
        let now = clock::now();
        let mut questions = Vec::new();
        if now >= self.sweep_due {
            self.sweep_due = now + SWEEP_EVERY;
            self.sweep(now).await;
        }
        let pages = self.pages.iter();
        let entered = pages.filter(|(_, page)| page.enter_due.is_some_and(|due| now >= due));
        let entered: Vec<_> = entered.map(|(target, _)| target.clone()).collect();
        for target in entered {
            self.enter(target).await;
        }
        let root = self.root.session();
        if now >= self.cookies_due && !self.is_asking_cookies {
            self.is_asking_cookies = true;
            self.cookies_due = now + COOKIES_EVERY;
            questions.push(Question {
                asked: Asked::Cookies,
                session: root.clone(),
                method: "Storage.getCookies",
                params: json!({ "browserContextId": self.jail.context() }),
            });
        }
        self.questions(now, &mut questions);
        self.settle(now);
        for question in questions {
            self.send(question).await;
        }
    }

    fn questions(&mut self, now: Time, questions: &mut Vec<Question>) {
        let model = lock(&self.model);
        for (target, page) in &mut self.pages {
            if page.due.is_some_and(|due| now >= due) {
                // Only those who were there know what was edited before the first document of theirs.
                let edited = if page.documents == 1 {
                    model.edited(page.key)
                } else {
                    Vec::new()
                };
                page.ask(target, now, &edited, questions);
            }
        }
    }

    fn settle(&mut self, now: Time) {
        let mut model = lock(&self.model);
        for (target, key) in std::mem::take(&mut model.renamed) {
            if let Some(page) = self.pages.get_mut(&target) {
                model.rename(std::mem::replace(&mut page.key, key), key);
                self.closed.retain(|(_, closed)| *closed != key);
            }
        }
        self.closed.retain(|(due, key)| {
            if now >= *due {
                model.close(*key);
            }
            now < *due
        });
        for page in self.pages.values() {
            let health = Health {
                target: page.target.clone(),
                asked: page.waiting,
                is_crashed: page.is_crashed,
            };
            model.health.insert(page.key, health);
        }
    }

    /// Each page is read, those without a world are entered, and those without a session attached to.
    async fn sweep(&mut self, now: Time) {
        let mut lost = Vec::new();
        for (target, page) in &mut self.pages {
            page.due.get_or_insert(now);
            if page.session.is_none() {
                lost.push(target.clone());
            } else if page.world.is_none() && page.waiting.is_none() && !page.is_crashed {
                page.enter_soon();
            }
        }
        for target in lost {
            self.attach(target).await;
        }
    }

    async fn send(&mut self, question: Question) {
        self.last_tag += 1;
        let Ok(params) = serde_json::value::to_raw_value(&question.params) else {
            return;
        };
        let (session, method) = (question.session, question.method);
        self.asked.insert(self.last_tag, question.asked);
        let sent = self
            .root
            .pass(self.last_tag, &session, method, Some(&params))
            .await;
        if let Err(error) = sent
            && let Some(asked) = self.asked.remove(&self.last_tag)
        {
            self.unanswered(asked, &error);
        }
    }

    /// No answer comes: the page has crashed, or is gone.
    fn unanswered(&mut self, asked: Asked, error: &CdpError) {
        match asked {
            Asked::Read { target, .. } | Asked::Probe { target } | Asked::World { target } => {
                if let Some(page) = self.pages.get_mut(&target) {
                    page.waiting = None;
                    page.world = None;
                    page.is_crashed |= matches!(error, CdpError::Crashed(_));
                }
            }
            Asked::History { target } => {
                if let Some(page) = self.pages.get_mut(&target) {
                    page.is_asking_history = false;
                }
            }
            Asked::Cookies => self.is_asking_cookies = false,
            Asked::Attach { .. } | Asked::Nothing => {}
        }
    }

    fn begin_flush(&mut self, flush: Flush) {
        let now = clock::now();
        self.cookies_due = now;
        for page in self.pages.values_mut() {
            if page.due.is_some() || flush.all {
                page.due = Some(now);
                page.stored |= flush.all;
            }
        }
        self.flush = Some((now + FLUSH_LIMIT, flush.done));
    }

    fn finish_flush(&mut self) {
        let Some((deadline, _)) = &self.flush else {
            return;
        };
        let now = clock::now();
        let is_settled = |page: &Page| {
            let is_reached = page.session.is_some() || page.is_crashed;
            let is_read = page.due.is_none() && page.waiting.is_none();
            let is_silent = page.waiting.is_some_and(|since| now >= since + FLUSH_LIMIT);
            is_reached && !page.is_asking_history && (is_read || is_silent)
        };
        let is_settled = !self.is_asking_cookies && self.pages.values().all(is_settled);
        if (is_settled || now >= *deadline)
            && let Some((_, done)) = self.flush.take()
        {
            // Whoever waited may have given up.
            let _ = done.send(());
        }
    }

    fn tell(&mut self, changed: &impl Fn()) {
        let now = clock::now();
        if now < self.told_at + CHANGED_EVERY {
            return;
        }
        let is_news = std::mem::take(&mut lock(&self.model).is_news);
        if is_news {
            self.told_at = now;
            changed();
        }
    }

    /// When something is to be done though nothing is heard.
    fn due(&self) -> Time {
        let mut due = self.sweep_due;
        if !self.is_asking_cookies {
            due = due.min(self.cookies_due);
        }
        let reads = self.pages.values().filter_map(|page| page.due);
        let closed = self.closed.iter().map(|(closed, _)| *closed);
        let flush = self.flush.as_ref().map(|(deadline, _)| *deadline);
        let enters = self.pages.values().filter_map(|page| page.enter_due);
        due = reads
            .chain(enters)
            .chain(closed)
            .chain(flush)
            .fold(due, Time::min);
        if lock(&self.model).is_news {
            due = due.min(self.told_at + CHANGED_EVERY);
        }
        due
    }
}

/// A root that hears of every page that comes and goes.
async fn watching(cdp: &Cdp) -> Result<Root, CdpError> {
    let root = cdp.root().await?;
    let discover = json!({ "discover": true, "filter": [{ "type": "page" }] });
    let _: Value = cdp
        .call(root.session(), "Target.setDiscoverTargets", discover)
        .await?;
    Ok(root)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Created {
    target_info: TargetInfo,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TargetInfo {
    target_id: String,
    #[serde(rename = "type")]
    kind: String,
    subtype: Option<String>,
    #[serde(default)]
    title: String,
    #[serde(default)]
    url: String,
    #[serde(default)]
    browser_context_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TargetId {
    target_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Called {
    payload: String,
    execution_context_id: i64,
}

#[derive(Deserialize)]
struct Evaluated {
    result: Remote,
}

#[derive(Deserialize)]
struct Remote {
    value: Option<String>,
}

fn read<T: DeserializeOwned>(answer: Option<Box<RawValue>>) -> Option<T> {
    serde_json::from_str(answer?.get()).ok()
}

/// How often cookies are asked for though nothing was heard: answers to workers and sockets set some.
const COOKIES_EVERY: Duration = Duration::from_secs(1);

/// A page changes its title and address several times as it loads.
const SETTLE: Duration = Duration::from_millis(100);

/// A browser that is being ended closes its pages first: those are not gone from the session. Measured: it
/// is gone 0.14 s after it was told to, on a busy machine.
const CLOSED_AFTER: Duration = Duration::from_millis(500);
