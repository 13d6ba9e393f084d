//! The kind `session`: a browser's session, as a child.
//!
//! Owns: the words of its requests and answers, when a step is taken, and who of its clients is served.
//! Never decides where it runs. What a page holds is the recorder's to see and the restorer's to bring
//! back.
//!
//! A request is one line of JSON. An answer is one, with bytes behind its newline where there are any.
//!
//! | request | answer |
//! |---|---|
//! | `{"op":"about"}` | `{"ok":true,"about":{…}}` |
//! | `{"op":"open","url":"https://…"}` | `{"ok":true}`, once the navigation has begun |
//! | `{"op":"attach"}` | `{"ok":true,"ticket":"…"}`, good for one client on the node that answers |
//! | `{"op":"screenshot","page":0,"full":false}` | `{"ok":true}` and a PNG |
//! | anything that went wrong | `{"ok":false,"error":{"code":…,"detail":…}}` |
//!
//! **What survives.** Pages change by themselves, so nothing waits for a step: what the recorder has seen
//! becomes one at most every 250 ms, in a prod of its own. A page that crashed or hangs is begun anew from
//! that, alone. When the browser or the node dies, the next
//! start brings back what the last step said, and a client's connection ends with a reason.
//!
//! **Its steps** are deltas of [`state`](crate::state), **its base** the whole.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use understudy_protocol::id::ChildId;
use understudy_protocol::supervision::Exit;
use understudy_supervision::{
    Checkpoint, Child, ChildError, Context, Handled, Kind, Request, StartError,
};

use crate::cdp::{Cdp, CdpError};
use crate::client::{self, Ended};
use crate::egress::{Denied, Egress, EgressPolicy};
use crate::host::{Browsers, Hosted};
use crate::jail::Jail;
use crate::mend::Mender;
use crate::recorder::Recorder;
use crate::restore;
use crate::state::{Delta, SessionState};
use crate::tunnel::{End, RELEASED};

/// The kind's name in the ids of its children.
pub const KIND: &str = "session";

/// Whether a child may act on the outside world now.
pub type MayAct = Arc<dyn Fn(&ChildId) -> bool + Send + Sync>;

/// Hears of a session. It must not block.
pub type Hears = Arc<dyn Fn(&ChildId, Told) + Send + Sync>;

/// What a node gives to its sessions.
#[derive(Clone)]
pub struct Given {
    /// Its browsers.
    pub browsers: Browsers,
    /// Sessions that run at once: one more does not start.
    pub sessions: usize,
    /// What pages may reach.
    pub policy: Arc<EgressPolicy>,
    /// Whether the child may act on the outside world now: its node's lease is valid, and it serves the
    /// child's unit (rule E3).
    pub permit: MayAct,
    /// Hears of what was denied, of crashes and of what could not be brought back.
    pub told: Hears,
}

/// What people should hear of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// A page asked for what its session may not reach.
    Denied(String),
    /// It was brought back, with what is missing.
    Restored(String),
    /// A page has crashed or hung, and was begun anew.
    PageLost(String),
}

/// The kind. Clones are the same.
#[derive(Clone)]
pub struct Sessions {
    given: Given,
    open: Arc<Mutex<HashMap<ChildId, Open>>>,
    count: Arc<AtomicUsize>,
    hang_limit: Duration,
    restore_limit: Duration,
}

/// A session that runs here, as its clients reach it.
#[derive(Clone)]
struct Open {
    tickets: Arc<Mutex<Vec<String>>>,
    clients: Arc<AtomicUsize>,
    cdp: Cdp,
    jail: Arc<Jail>,
    over: watch::Receiver<bool>,
}

/// A client that was let in.
pub struct Client {
    open: Open,
    _counted: Counted,
}

/// A session that runs.
pub struct Session {
    recorder: Recorder,
    mender: Mender,
    open: Open,
    hosted: Arc<Hosted>,
    _listed: Listed,
    /// The session is over for its clients when this is dropped.
    _over: watch::Sender<bool>,
    _watch: JoinSet<()>,
    _context: ContextGuard,
    _egress: Egress,
    /// Last: there is room for another once all of the above is gone.
    _counted: Counted,
}

/// A session among those of its node, until this is dropped.
struct Listed {
    child: ChildId,
    open: Open,
    all: Arc<Mutex<HashMap<ChildId, Open>>>,
}

/// One client, or one session, more, until this is dropped.
struct Counted(Arc<AtomicUsize>);

/// A context in a browser that others use too: ended with this.
struct ContextGuard(Open);

/// What a session says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct About {
    /// Its browser's product, such as `HeadlessChrome/156.0.8078.79`.
    pub browser: String,
    /// The browser's process on its node.
    pub pid: u32,
    /// Its pages, oldest first.
    pub pages: Vec<PageAbout>,
    /// Clients that are connected.
    pub clients: usize,
}

/// One page.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PageAbout {
    /// Its address.
    pub url: String,
    /// Its title.
    pub title: String,
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
enum Ask {
    About,
    Open {
        url: String,
    },
    Attach,
    Screenshot {
        #[serde(default)]
        page: usize,
        #[serde(default)]
        full: bool,
    },
}

/// Why a client is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotHere {
    /// No such session runs on this node, any more or yet.
    #[error("the session does not run on this node")]
    NoSession,
    /// The ticket is not one of its own, or was used.
    #[error("the ticket is not valid")]
    BadTicket,
}

/// A request that was not carried out.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{detail}")]
struct Refusal {
    code: &'static str,
    detail: String,
}

impl Sessions {
    /// The sessions of a node.
    pub fn new(given: Given) -> Sessions {
        Sessions {
            given,
            open: Arc::default(),
            count: Arc::default(),
            hang_limit: HANG_LIMIT,
            restore_limit: RESTORE_LIMIT,
        }
    }

    /// The same, whose pages hang after so long without an answer: for tests.
    #[must_use]
    pub fn with_hang_limit(self, hang_limit: Duration) -> Sessions {
        Sessions { hang_limit, ..self }
    }

    /// The same, which do not start when their pages take longer to be back: for tests.
    #[must_use]
    pub fn with_restore_limit(self, restore_limit: Duration) -> Sessions {
        Sessions {
            restore_limit,
            ..self
        }
    }

    /// Room for one session more.
    fn counted(&self) -> Result<Counted, StartError> {
        let limit = self.given.sessions;
        let more = |count: usize| (count < limit).then_some(count + 1);
        match self
            .count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
        {
            Ok(_) => Ok(Counted(self.count.clone())),
            Err(count) => Err(StartError::Full(format!(
                "{count} sessions run on this node, and `[browser] sessions` is {limit}"
            ))),
        }
    }

    /// Lets a client in that has a ticket.
    ///
    /// # Errors
    /// It is not served here; see [`NotHere`].
    pub fn admit(&self, child: &ChildId, ticket: &str) -> Result<Client, NotHere> {
        let open = lock(&self.open).get(child).cloned();
        let open = open.ok_or(NotHere::NoSession)?;
        let mut tickets = lock(&open.tickets);
        let at = tickets.iter().position(|known| known == ticket);
        tickets.swap_remove(at.ok_or(NotHere::BadTicket)?);
        drop(tickets);
        open.clients.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(open.clients.clone());
        Ok(Client {
            open,
            _counted: counted,
        })
    }
}

impl Client {
    /// Serves it until it leaves, or the session does, and says how its connection is to be closed. `from`
    /// is what it says, `to` what it hears.
    pub async fn serve(mut self, from: mpsc::Receiver<Bytes>, to: mpsc::Sender<Bytes>) -> End {
        let served = client::serve(&self.open.cdp, &self.open.jail, from, to);
        let ended = tokio::select! {
            ended = served => ended,
            // An error means that the session is gone, which is what it would say.
            _ = self.open.over.wait_for(|over| *over) => Ended::BrowserGone,
        };
        End {
            code: match ended {
                Ended::Released => RELEASED,
                _ => ended.close_code(),
            },
            reason: ended.reason().to_owned(),
        }
    }
}

impl Kind for Sessions {
    type Child = Session;

    async fn start(&self, context: Context, checkpoint: Checkpoint) -> Result<Session, StartError> {
        let state = state_of(&checkpoint)?;
        let child = context.child().clone();
        let failed = |why: String| StartError::Failed(why);
        let counted = self.counted()?;
        let hosted = self.given.browsers.of(&child).await;
        let hosted = hosted.map_err(|error| failed(error.to_string()))?;
        let permit = {
            let (permit, child) = (self.given.permit.clone(), child.clone());
            Arc::new(move || permit(&child))
        };
        let denied = {
            let (told, child) = (self.given.told.clone(), child.clone());
            Arc::new(move |denied: Denied| {
                let Denied {
                    host, port, why, ..
                } = denied;
                told(&child, Told::Denied(format!("{host}:{port}: {why}")));
            })
        };
        let egress = Egress::open(self.given.policy.clone(), permit, denied);
        let egress = egress.map_err(|error| failed(format!("no proxy for its pages: {error}")))?;
        let proxy = format!("http://{}", egress.address());
        let jail = open_context(&hosted, &proxy).await;
        let jail = Arc::new(jail.map_err(|error| failed(error.to_string()))?);
        // From here on the context ends with the session.
        let (over, is_over) = watch::channel(false);
        let open = Open {
            tickets: Arc::default(),
            clients: Arc::default(),
            cdp: hosted.browser.cdp().clone(),
            jail,
            over: is_over,
        };
        let context_guard = ContextGuard(open.clone());
        let restored = timeout(
            self.restore_limit,
            restore::restore(&open.cdp, &open.jail, &state),
        )
        .await;
        // A session that went on with some of its pages would record that the others are closed. So it
        // does not start; its records stand, and it is started again.
        let restored = restored.map_err(|_| {
            let limit = self.restore_limit;
            failed(format!("its pages were not all back within {limit:?}"))
        })?;
        if !restored.is_whole() {
            (self.given.told)(&child, Told::Restored(missing(&restored)));
        }
        if state.pages.is_empty() {
            let blank = json!({ "url": "about:blank", "browserContextId": open.jail.context() });
            let made = open
                .cdp
                .call::<Value>("", "Target.createTarget", blank)
                .await;
            made.map_err(|error| failed(error.to_string()))?;
        }
        let prodder = context.prodder();
        let prod = {
            let prodder = prodder.clone();
            move || prodder.prod()
        };
        let recorder = Recorder::resume(&open.cdp, open.jail.clone(), state, &restored, prod);
        let recorder = recorder.await.map_err(|error| failed(error.to_string()))?;
        let mut watching = JoinSet::new();
        let (cdp, ender) = (open.cdp.clone(), context.ender());
        watching.spawn(async move {
            cdp.closed().await;
            ender.end(Exit::Abnormal, "its browser has ended");
        });
        watching.spawn(async move {
            let mut look = tokio::time::interval(LOOK_EVERY);
            loop {
                look.tick().await;
                prodder.prod();
            }
        });
        let lost = {
            let (told, child) = (self.given.told.clone(), child.clone());
            Arc::new(move |text| told(&child, Told::PageLost(text)))
        };
        let mender = Mender::new(open.cdp.clone(), open.jail.clone(), self.hang_limit, lost);
        lock(&self.open).insert(child.clone(), open.clone());
        let listed = Listed {
            child,
            open: open.clone(),
            all: self.open.clone(),
        };
        Ok(Session {
            recorder,
            mender,
            open,
            hosted,
            _listed: listed,
            _over: over,
            _watch: watching,
            _context: context_guard,
            _egress: egress,
            _counted: counted,
        })
    }

    fn needs_own_unit(&self) -> bool {
        true
    }
}

impl Child for Session {
    async fn handle(&mut self, request: Request) -> Result<Handled, ChildError> {
        if request.is_prod() {
            if self.mender.is_busy(&mut self.recorder) {
                return Ok(Handled::read(Bytes::new()));
            }
            let delta = self.recorder.delta().await;
            self.mender.look(&self.recorder);
            return Ok(match delta {
                Some(delta) => Handled::step(Bytes::new(), delta.encode()),
                None => Handled::read(Bytes::new()),
            });
        }
        let answer = match serde_json::from_slice(&request.body) {
            Ok(ask) => self.answer(ask).await,
            Err(error) => Err(Refusal {
                code: "invalid",
                detail: format!("no request of a session: {error}"),
            }),
        };
        Ok(Handled::loose(answer.unwrap_or_else(|refusal| {
            let Refusal { code, detail } = refusal;
            let error = json!({ "code": code, "detail": detail });
            framed(&json!({ "ok": false, "error": error }), &[])
        })))
    }

    async fn snapshot(&mut self) -> Result<Bytes, ChildError> {
        Ok(self.recorder.state().encode())
    }
}

impl Session {
    async fn answer(&mut self, ask: Ask) -> Result<Bytes, Refusal> {
        match ask {
            Ask::About => {
                let about = serde_json::to_value(self.about());
                let about = about.map_err(|error| broken(&error))?;
                Ok(framed(&json!({ "ok": true, "about": about }), &[]))
            }
            Ask::Attach => {
                let ticket = ticket().map_err(|error| broken(&error))?;
                let mut tickets = lock(&self.open.tickets);
                if tickets.len() >= TICKETS_MAX {
                    // The oldest was given to somebody who never came.
                    tickets.remove(0);
                }
                tickets.push(ticket.clone());
                Ok(framed(&json!({ "ok": true, "ticket": ticket }), &[]))
            }
            Ask::Open { url } => self.go(&url).await,
            Ask::Screenshot { page, full } => self.screenshot(page, full).await,
        }
    }

    fn about(&self) -> About {
        let state = self.recorder.state();
        let shown = self.recorder.health(Duration::ZERO);
        let pages = shown.iter().map(|shown| {
            // One that has just been opened is in no record yet.
            let page = state.pages.get(&shown.page);
            PageAbout {
                url: page.map_or_else(|| "about:blank".to_owned(), |page| page.url.clone()),
                title: page.map(|page| page.title.clone()).unwrap_or_default(),
            }
        });
        About {
            browser: self.hosted.browser.about().product.clone(),
            pid: self.hosted.browser.pid(),
            pages: pages.collect(),
            clients: self.open.clients.load(Ordering::Relaxed),
        }
    }

    async fn go(&mut self, url: &str) -> Result<Bytes, Refusal> {
        let parsed = url::Url::parse(url).map_err(|error| Refusal {
            code: "invalid",
            detail: format!("`{url}` is no address: {error}"),
        })?;
        if !matches!(
            parsed.scheme(),
            "http" | "https" | "about" | "data" | "blob"
        ) {
            return Err(Refusal {
                code: "invalid",
                detail: format!("pages of `{}:` are not opened", parsed.scheme()),
            });
        }
        let (root, page) = self.attached(0).await?;
        let navigate = json!({ "url": url });
        let went = self
            .open
            .cdp
            .call::<Value>(&page, "Page.navigate", navigate);
        let went = timeout(PAGE_LIMIT, went).await.map_err(|_| silent())?;
        let went = went.map_err(|error| broken(&error))?;
        drop(root);
        match went.get("errorText").and_then(Value::as_str) {
            Some(why) => Err(Refusal {
                code: "unavailable",
                detail: format!("{url}: {why}"),
            }),
            None => Ok(framed(&json!({ "ok": true }), &[])),
        }
    }

    async fn screenshot(&mut self, page: usize, full: bool) -> Result<Bytes, Refusal> {
        #[derive(Deserialize)]
        struct Shot {
            data: String,
        }
        let (root, page) = self.attached(page).await?;
        let mut ask = json!({ "format": "png" });
        if full {
            #[derive(Deserialize)]
            #[serde(rename_all = "camelCase")]
            struct Metrics {
                css_content_size: Size,
            }
            #[derive(Deserialize)]
            struct Size {
                width: f64,
                height: f64,
            }
            let metrics = self
                .open
                .cdp
                .call::<Metrics>(&page, "Page.getLayoutMetrics", json!({}));
            let metrics = timeout(PAGE_LIMIT, metrics).await.map_err(|_| silent())?;
            let Size { width, height } = metrics.map_err(|error| broken(&error))?.css_content_size;
            let height = height.min(PICTURE_HEIGHT_MAX);
            // The document's own pixels, wherever it is scrolled to.
            ask["clip"] = json!({ "x": 0, "y": 0, "width": width, "height": height, "scale": 1 });
            ask["captureBeyondViewport"] = true.into();
        }
        let shot = self
            .open
            .cdp
            .call::<Shot>(&page, "Page.captureScreenshot", ask);
        let shot = timeout(PAGE_LIMIT, shot).await.map_err(|_| silent())?;
        let shot = shot.map_err(|error| broken(&error))?;
        drop(root);
        let png = base64::engine::general_purpose::STANDARD.decode(shot.data);
        let png = png.map_err(|error| broken(&error))?;
        if png.len() > PICTURE_BYTES_MAX {
            return Err(Refusal {
                code: "quota_exceeded",
                detail: format!(
                    "the picture has {} bytes, and an answer holds {PICTURE_BYTES_MAX}",
                    png.len()
                ),
            });
        }
        Ok(framed(&json!({ "ok": true, "type": "image/png" }), &png))
    }

    /// The session of one page, on a root that is to be dropped afterwards.
    async fn attached(&self, page: usize) -> Result<(crate::cdp::Root, String), Refusal> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Attached {
            session_id: String,
        }
        let Open { cdp, jail, .. } = &self.open;
        // All of them, in the order in which they are shown.
        let own = self.recorder.health(Duration::ZERO);
        let target = match own.get(page) {
            Some(page) => page.target.to_string(),
            None if own.is_empty() && page == 0 => {
                let blank = json!({ "url": "about:blank", "browserContextId": jail.context() });
                let made = cdp.call::<Value>("", "Target.createTarget", blank).await;
                let made = made.map_err(|error| broken(&error))?;
                made["targetId"].as_str().unwrap_or_default().to_owned()
            }
            None => {
                return Err(Refusal {
                    code: "not_found",
                    detail: format!("there is no page {page}; there are {}", own.len()),
                });
            }
        };
        let root = cdp.root().await.map_err(|error| broken(&error))?;
        let attach = json!({ "targetId": target, "flatten": true });
        let attached = cdp.call::<Attached>(root.session(), "Target.attachToTarget", attach);
        let attached = attached.await.map_err(|error| broken(&error))?;
        Ok((root, attached.session_id))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut all = lock(&self.all);
        // A session that was begun anew has its own entry by now.
        let is_own = |open: &Open| Arc::ptr_eq(&open.jail, &self.open.jail);
        if all.get(&self.child).is_some_and(is_own) {
            all.remove(&self.child);
        }
    }
}

impl Drop for ContextGuard {
    fn drop(&mut self) {
        let dispose = json!({ "browserContextId": self.0.jail.context() });
        self.0.cdp.post("Target.disposeBrowserContext", &dispose);
    }
}

/// A context of its own, whose pages reach the network through `proxy` alone.
async fn open_context(hosted: &Hosted, proxy: &str) -> Result<Jail, CdpError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Made {
        browser_context_id: String,
    }
    let ask = json!({
        "disposeOnDetach": false,
        "proxyServer": proxy,
        // Loopback too: without this, Chromium reaches it past the proxy.
        "proxyBypassList": "<-loopback>",
    });
    let Hosted { browser, door } = hosted;
    let made: Made = browser
        .cdp()
        .call("", "Target.createBrowserContext", ask)
        .await?;
    let downloads = browser.dir().join("files").join(&made.browser_context_id);
    Ok(Jail::new(made.browser_context_id, downloads)
        .with_proxy(proxy.to_owned())
        .with_door(door.clone()))
}

/// What could not be brought back, for people.
fn missing(restored: &restore::Restored) -> String {
    let mut said = Vec::new();
    for page in restored.pages.iter().filter(|page| !page.missed.is_empty()) {
        let what: Vec<String> = page.missed.iter().map(ToString::to_string).collect();
        said.push(format!("{}: {}", page.url, what.join(", ")));
    }
    for (origin, why) in &restored.origins_missed {
        said.push(format!("the storage of {origin}: {why}"));
    }
    if restored.cookies_missed > 0 {
        said.push(format!("{} cookies were refused", restored.cookies_missed));
    }
    format!("not all is back: {}", said.join("; "))
}

fn state_of(checkpoint: &Checkpoint) -> Result<SessionState, StartError> {
    let bad = |error: crate::state::StateError| StartError::BadCheckpoint(error.to_string());
    let mut state = match &checkpoint.base {
        Some(base) => SessionState::decode(base).map_err(bad)?,
        None => SessionState::default(),
    };
    for step in &checkpoint.steps {
        state.apply(&Delta::decode(step).map_err(bad)?);
    }
    Ok(state)
}

fn framed(head: &Value, raw: &[u8]) -> Bytes {
    let mut bytes = head.to_string().into_bytes();
    if !raw.is_empty() {
        bytes.push(b'\n');
        bytes.extend_from_slice(raw);
    }
    bytes.into()
}

fn ticket() -> Result<String, getrandom::Error> {
    let mut random = [0; 16];
    getrandom::fill(&mut random)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn broken(error: &dyn std::fmt::Display) -> Refusal {
    Refusal {
        code: "unavailable",
        detail: error.to_string(),
    }
}

fn silent() -> Refusal {
    Refusal {
        code: "deadline_exceeded",
        detail: format!("the page has not answered within {PAGE_LIMIT:?}"),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that is done while one of these is held can be left half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long all pages may take to be back: below the time that a child gets for its start, and enough for
/// sixteen pages whose servers do not answer.
const RESTORE_LIMIT: Duration = Duration::from_secs(50);

/// How long a page may not answer before it is begun anew: longer than a script of a page that people use
/// keeps them waiting.
pub const HANG_LIMIT: Duration = Duration::from_secs(30);

/// How often it is looked for pages that crashed or hang.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long a page may take for one request: below the time that a call of a child may take.
const PAGE_LIMIT: Duration = Duration::from_secs(8);

/// Tickets that wait for their client: each is taken within a second.
const TICKETS_MAX: usize = 64;

/// How much of a page one picture shows, in its own pixels: what Chromium draws in one piece.
const PICTURE_HEIGHT_MAX: f64 = 16_384.0;

/// The longest picture: an answer has 1 MiB, its first line included.
const PICTURE_BYTES_MAX: usize = (1 << 20) - 1024;
