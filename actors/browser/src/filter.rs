//! What a client may say, judged command by command.
//!
//! Owns: the reading of a client's message, and the verdict on it. Never sends anything, and never
//! trusts what it has not read: the command that goes on is written anew from what was read here, so
//! that a key that occurs twice, an escaped letter or a zero byte cannot be one thing to the filter and
//! another to the browser.
//!
//! **By method, on every session.** Chromium answers `Browser.close`, `Target.getTargets` or
//! `Storage.getCookies` on a page's session as it does on the browser's own (measured), so that no rule
//! depends on a message being sent where it usually is.
//!
//! | Where | What |
//! |---|---|
//! | every session | `targetId`, `browserContextId`, `sessionId` and `windowId` are the client's own, else not found |
//! | every session | domains `Browser` and `Target`: only what is named here |
//! | root sessions | all other domains: refused, but for cookies of own contexts |
//! | page sessions | all other domains: passed, but for what is named here |
//!
//! The two defaults differ because what they reach does. A command to the browser itself acts on all
//! sessions at once, and what a later Chromium adds there is unknown: nothing is passed unread. A
//! command to a page acts on that page, its renderer and its context's storage, which are the session's
//! own; the protocol has some four hundred of them, and clients use most. What a later Chromium adds
//! there, and reaches beyond the page, has to be added to `reaches_out`.
//!
//! Protocol: <https://chromedevtools.github.io/devtools-protocol/>.

mod params;
mod read;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::jail::Jail;
use params::Params;
pub use read::{Bad, Command, MESSAGE_BYTES_MAX, read};

/// What a client may name.
#[derive(Debug)]
pub struct Own<'a> {
    /// Its session.
    pub jail: &'a Jail,
    /// The session's targets, by id.
    pub targets: &'a HashMap<Box<str>, Target>,
    /// What it has attached to, by session id. Its own root has none.
    pub attached: &'a HashMap<Box<str>, Attached>,
    /// Windows that the browser named to it.
    pub windows: &'a HashSet<i64>,
}

/// A page, tab, worker or frame of the session.
#[derive(Debug)]
pub struct Target {
    /// Such as `page`.
    pub kind: Box<str>,
    /// Its BrowserContext.
    pub context: Box<str>,
    /// The protocol's `TargetInfo`, as the browser sent it last.
    pub info: Box<RawValue>,
}

/// A session of the protocol that a client has.
#[derive(Clone, Debug)]
pub struct Attached {
    /// The session that it was attached through; empty for the client's root.
    pub parent: Box<str>,
    /// What it is attached to.
    pub target: Box<str>,
    /// What a command on it speaks to.
    pub place: Place,
}

/// What a session speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The browser: a client's root, or one that it attached itself.
    Root,
    /// A page, tab, worker or frame.
    Page,
}

/// What becomes of a command.
#[derive(Debug)]
pub enum Verdict {
    /// It goes to the browser.
    Pass {
        /// Instead of its own parameters.
        params: Option<Box<RawValue>>,
        /// What its answer tells.
        then: Then,
    },
    /// The browser never hears of it.
    Emulate(Emulation),
    /// It is answered with an error.
    Refuse(Refusal),
}

/// What is to be noted when a command that was passed on is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Nothing,
    /// A target was made, which has to be attached to before its maker hears of it.
    Target,
    /// A context was made.
    Context,
    /// This context was disposed of.
    Disposed(Box<str>),
    /// A root was attached.
    Root,
    /// A window was named.
    Window,
}

/// What is answered as if the session were a browser of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Emulation {
    /// `Browser.close`: the session is released.
    Close,
    /// `Target.setAutoAttach` on a root; `None` switches it off.
    AutoAttach(Option<AutoAttach>),
    /// `Target.setDiscoverTargets`; `None` switches it off.
    Discover(Option<TargetFilter>),
    /// `Target.getTargets`.
    Targets(TargetFilter),
    /// `Target.getBrowserContexts`.
    Contexts,
    /// `Target.getTargetInfo` of the browser itself.
    Browser,
}

/// What a root attaches to by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AutoAttach {
    /// Which kinds of target.
    pub filter: TargetFilter,
    /// Whether new ones stand still until the client lets them go.
    pub waits: bool,
}

/// An error in the protocol's words.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Refusal {
    /// As JSON-RPC and Chromium number them.
    pub code: i64,
    /// For people, and for clients that look for Chromium's own words.
    pub message: String,
}

/// Which kinds of target are meant: the first entry that fits decides.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct TargetFilter(Vec<FilterEntry>);

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct FilterEntry {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    exclude: bool,
}

/// Judges one command that came on a session which speaks to `place`.
pub fn judge(command: &Command<'_>, place: Place, own: &Own<'_>) -> Verdict {
    match check(command, place, own) {
        Ok(verdict) => verdict,
        Err(refusal) => Verdict::Refuse(refusal),
    }
}

fn check(command: &Command<'_>, place: Place, own: &Own<'_>) -> Result<Verdict, Refusal> {
    let mut params = Params::read(command.params)?;
    check_ids(&params, own)?;
    let method = command.method.as_ref();
    let params = &mut params;
    let verdict = match (method.split_once('.'), place) {
        (Some(("Browser", name)), _) => browser(name, params, own),
        (Some(("Target", name)), _) => target(name, params, place, own),
        // A page's session takes its own context's, and refuses to be told of one (measured).
        (Some(("Storage", "getCookies" | "setCookies" | "clearCookies")), Place::Root) => {
            in_context(params, own)
        }
        (Some((domain, name)), Place::Page) => {
            if reaches_out(domain, name) {
                return Err(Refusal::not_allowed("it would reach other sessions"));
            }
            page(method, params, own)
        }
        _ => None.ok_or_else(|| Refusal::not_found(method)),
    };
    let then = verdict?;
    Ok(match then {
        Step::Pass(then) => Verdict::Pass {
            params: params.changed(),
            then,
        },
        Step::Emulate(emulation) => Verdict::Emulate(emulation),
    })
}

/// What a rule finds.
enum Step {
    Pass(Then),
    Emulate(Emulation),
}

const PASS: Step = Step::Pass(Then::Nothing);

/// Ids of whatever kind are the client's own, whatever the method.
fn check_ids(params: &Params<'_>, own: &Own<'_>) -> Result<(), Refusal> {
    if let Some(id) = params.string("browserContextId")?
        && !own.jail.owns(&id)
    {
        return Err(Refusal::no_context(&id));
    }
    if let Some(id) = params.string("targetId")?
        && id != BROWSER_TARGET
    {
        let target = own.targets.get(&*id);
        if !target.is_some_and(|target| own.jail.owns(&target.context)) {
            return Err(Refusal::new(INVALID_PARAMS, NO_TARGET));
        }
    }
    // `Page.screencastFrameAck` has a number of that name.
    if params.is_string("sessionId")
        && let Some(id) = params.string("sessionId")?
        && !own.attached.contains_key(&*id)
    {
        return Err(Refusal::no_session());
    }
    if let Some(id) = params.read_as::<i64>("windowId")?
        && !own.windows.contains(&id)
    {
        return Err(Refusal::new(SERVER_ERROR, "Browser window not found"));
    }
    Ok(())
}

fn browser(name: &str, params: &mut Params<'_>, own: &Own<'_>) -> Result<Step, Refusal> {
    match name {
        "getVersion" | "getWindowBounds" | "setWindowBounds" | "setContentsSize" => Ok(PASS),
        "getWindowForTarget" => Ok(Step::Pass(Then::Window)),
        "grantPermissions" | "setPermission" | "resetPermissions" | "cancelDownload" => {
            in_context(params, own)
        }
        "setDownloadBehavior" => {
            in_folder(params, own);
            in_context(params, own)
        }
        "close" => Ok(Step::Emulate(Emulation::Close)),
        _ => Err(Refusal::not_allowed("it would reach other sessions")),
    }
}

fn target(
    name: &str,
    params: &mut Params<'_>,
    place: Place,
    own: &Own<'_>,
) -> Result<Step, Refusal> {
    let filter = |params: &Params<'_>| {
        let filter = params.read_as::<TargetFilter>("filter")?;
        Ok(filter.unwrap_or_default())
    };
    let means_browser = match params.string("targetId")? {
        Some(id) => id == BROWSER_TARGET,
        None => place == Place::Root,
    };
    match name {
        "getTargetInfo" if means_browser => Ok(Step::Emulate(Emulation::Browser)),
        "getTargets" => Ok(Step::Emulate(Emulation::Targets(filter(params)?))),
        "getBrowserContexts" => Ok(Step::Emulate(Emulation::Contexts)),
        "setDiscoverTargets" => {
            let is_on = params.read_as("discover")?.unwrap_or_default();
            let filter = if is_on { Some(filter(params)?) } else { None };
            Ok(Step::Emulate(Emulation::Discover(filter)))
        }
        "setAutoAttach" => {
            let is_on = params.read_as("autoAttach")?.unwrap_or_default();
            if is_on {
                flat(params)?;
            }
            if place == Place::Page {
                return Ok(PASS);
            }
            let wanted = AutoAttach {
                filter: filter(params)?,
                waits: params
                    .read_as("waitForDebuggerOnStart")?
                    .unwrap_or_default(),
            };
            let filter = &wanted.filter;
            if is_on && filter.matches("tab") && filter.matches("page") {
                let why = "\"tab\" and \"page\": page targets are attached via tab targets";
                return Err(Refusal::invalid(why));
            }
            let wanted = is_on.then_some(wanted);
            Ok(Step::Emulate(Emulation::AutoAttach(wanted)))
        }
        "attachToTarget" => {
            flat(params)?;
            Ok(PASS)
        }
        "attachToBrowserTarget" => Ok(Step::Pass(Then::Root)),
        "activateTarget" | "closeTarget" | "detachFromTarget" | "getTargetInfo" => Ok(PASS),
        "createTarget" => {
            if let Some(url) = params.string("url")? {
                check_url(&url)?;
            }
            in_context(params, own)?;
            Ok(Step::Pass(Then::Target))
        }
        "createBrowserContext" => {
            if params.has("originsWithUniversalNetworkAccess") {
                return Err(Refusal::not_allowed("no origin may read all others"));
            }
            params.remove("proxyServer");
            params.remove("proxyBypassList");
            if let Some(proxy) = own.jail.proxy() {
                params.set("proxyServer", proxy);
                params.set("proxyBypassList", BYPASS_NOTHING);
            }
            // A client's contexts go with it.
            params.set("disposeOnDetach", true);
            Ok(Step::Pass(Then::Context))
        }
        "disposeBrowserContext" => match params.string("browserContextId")? {
            Some(id) if id == own.jail.context() => {
                let why = "the session's own context goes with the session (Browser.close)";
                Err(Refusal::not_allowed(why))
            }
            Some(id) => Ok(Step::Pass(Then::Disposed(id.into()))),
            None => Err(Refusal::invalid("browserContextId: string value expected")),
        },
        // Among them `sendMessageToTarget`, by which a message would go on unread.
        _ => Err(Refusal::not_allowed("it would reach other sessions")),
    }
}

/// Domains and methods that reach beyond the page whose session they are sent on.
fn reaches_out(domain: &str, name: &str) -> bool {
    match domain {
        // Of the whole process, its devices and its machine.
        "SystemInfo" | "Tracing" | "Tethering" | "Extensions" | "PWA" | "Cast" | "DeviceAccess"
        | "BluetoothEmulation" | "SmartCardEmulation" => true,
        "Memory" => matches!(
            name,
            "prepareForLeakDetection"
                | "setPressureNotificationsSuppressed"
                | "simulatePressureNotification"
                | "getAllTimeSamplingProfile"
                | "getBrowserSamplingProfile"
        ),
        "Emulation" => matches!(
            name,
            "addScreen" | "removeScreen" | "updateScreen" | "setPrimaryScreen"
        ),
        _ => false,
    }
}

/// Commands to a page that name an address or a file.
fn page(method: &str, params: &mut Params<'_>, own: &Own<'_>) -> Result<Step, Refusal> {
    match method {
        "Page.navigate" | "Fetch.continueRequest" | "Network.continueInterceptedRequest" => {
            if let Some(url) = params.string("url")? {
                check_url(&url)?;
            }
        }
        "Network.loadNetworkResource" => {
            let url = params.string("url")?.unwrap_or_default();
            if !matches!(&*scheme(&url), "http" | "https") {
                return Err(Refusal::no_address(&url));
            }
        }
        "Page.setDownloadBehavior" => in_folder(params, own),
        "DOM.setFileInputFiles" => {
            if let Some(files) = params.read_as::<Vec<String>>("files")? {
                params.set("files", inside(&files, own)?);
            }
        }
        "Input.dispatchDragEvent" => {
            #[derive(Deserialize)]
            struct Data {
                #[serde(default)]
                files: Option<Vec<String>>,
            }
            let data: Option<Data> = params.read_as("data")?;
            // Chromium takes them as they are: nothing is mapped, only checked.
            if let Some(files) = data.and_then(|data| data.files)
                && inside(&files, own)? != files
            {
                return Err(Refusal::no_file());
            }
        }
        _ => {}
    }
    Ok(PASS)
}

/// The session's own context, where none is named.
fn in_context(params: &mut Params<'_>, own: &Own<'_>) -> Result<Step, Refusal> {
    if !params.has("browserContextId") {
        params.set("browserContextId", own.jail.context());
    }
    Ok(PASS)
}

/// Downloads go to the session's folder, wherever the client has its own.
fn in_folder(params: &mut Params<'_>, own: &Own<'_>) {
    if params.has("downloadPath") {
        params.set("downloadPath", own.jail.downloads().to_string_lossy());
    }
}

/// Files below the session's folder, named from there or by their whole path.
fn inside(files: &[String], own: &Own<'_>) -> Result<Vec<String>, Refusal> {
    let folder = own.jail.downloads();
    let inside = |file: &String| {
        // By its components alone: the folder belongs to the browser, which makes no links.
        let path: PathBuf = folder.join(file);
        let mut rest = path.strip_prefix(folder).ok()?.components().peekable();
        rest.peek()?;
        let is_plain = rest.all(|part| matches!(part, Component::Normal(_)));
        (is_plain && !file.contains('\0')).then(|| display(&path))
    };
    let inside: Option<Vec<String>> = files.iter().map(inside).collect();
    inside.ok_or_else(Refusal::no_file)
}

fn display(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Only flat sessions have their messages judged.
fn flat(params: &Params<'_>) -> Result<(), Refusal> {
    match params.read_as("flatten")? {
        Some(true) => Ok(()),
        _ => Err(Refusal::not_allowed("sessions are flat (`flatten: true`)")),
    }
}

/// Addresses that a page may be sent to: those that it could go to by itself.
fn check_url(url: &str) -> Result<(), Refusal> {
    let is_allowed = match &*scheme(url) {
        "http" | "https" | "data" | "javascript" => true,
        "blob" => {
            let inner = trimmed(url).split_off("blob:".len());
            matches!(&*scheme(&inner), "http" | "https") || inner.starts_with("null/")
        }
        // `about:version` is `chrome://version`.
        "about" => {
            let url = trimmed(url).to_ascii_lowercase();
            let page = url.split(['?', '#']).next();
            matches!(page, Some("about:blank" | "about:srcdoc"))
        }
        "" => trimmed(url).is_empty(),
        _ => false,
    };
    let refused = || Refusal::no_address(url);
    is_allowed.then_some(()).ok_or_else(refused)
}

/// As browsers read it: in lower case, behind blanks, without tabs and line ends. Empty if none.
fn scheme(url: &str) -> String {
    let url = trimmed(url);
    let Some((scheme, _)) = url.split_once(':') else {
        return String::new();
    };
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    // What is no scheme to us may be one to another: an unknown one.
    if is_scheme {
        scheme.to_ascii_lowercase()
    } else {
        "?".to_owned()
    }
}

/// Without what browsers leave out (WHATWG URL, basic parser, steps 1 to 3).
fn trimmed(url: &str) -> String {
    let url = url.trim_matches(|c: char| c <= ' ');
    url.chars()
        .filter(|c| !matches!(c, '\t' | '\n' | '\r'))
        .collect()
}

impl TargetFilter {
    /// Whether targets of this kind are meant.
    pub fn matches(&self, kind: &str) -> bool {
        let fits = |entry: &&FilterEntry| entry.kind.as_deref().is_none_or(|of| of == kind);
        self.0.iter().find(fits).is_some_and(|entry| !entry.exclude)
    }
}

impl Default for TargetFilter {
    /// What Chromium takes where a client names none.
    fn default() -> Self {
        let entry = |kind: Option<&str>| FilterEntry {
            kind: kind.map(str::to_owned),
            exclude: kind.is_some(),
        };
        TargetFilter(vec![
            entry(Some("browser")),
            entry(Some("tab")),
            entry(None),
        ])
    }
}

impl Refusal {
    pub(crate) fn new(code: i64, message: impl Into<String>) -> Refusal {
        Refusal {
            code,
            message: message.into(),
        }
    }

    pub(crate) fn no_session() -> Refusal {
        Refusal::new(SESSION_NOT_FOUND, "Session with given id not found.")
    }

    pub(crate) fn not_allowed(why: &str) -> Refusal {
        Refusal::new(SERVER_ERROR, format!("Not allowed: {why}"))
    }

    fn not_found(method: &str) -> Refusal {
        Refusal::new(METHOD_NOT_FOUND, format!("'{method}' wasn't found"))
    }

    fn invalid(why: &str) -> Refusal {
        Refusal::new(INVALID_PARAMS, format!("Invalid parameters: {why}"))
    }

    fn no_context(id: &str) -> Refusal {
        Refusal::new(
            SERVER_ERROR,
            format!("Failed to find browser context with id {id}"),
        )
    }

    fn no_address(url: &str) -> Refusal {
        let shown: String = url.chars().take(SHOWN_MAX).collect();
        Refusal::not_allowed(&format!(
            "addresses such as {shown:?} are none of a session"
        ))
    }

    fn no_file() -> Refusal {
        Refusal::not_allowed("files are taken from the session's own folder alone")
    }
}

/// What the browser calls itself to a client. Its true id is that of all sessions.
pub const BROWSER_TARGET: &str = "browser";

/// Not even loopback goes past the proxy.
pub const BYPASS_NOTHING: &str = "<-loopback>";

/// As much of an address as an error repeats.
const SHOWN_MAX: usize = 80;

const NO_TARGET: &str = "No target with given id found";

// As JSON-RPC 2.0 numbers them, and Chromium beyond it.
pub(crate) const PARSE_ERROR: i64 = -32700;
pub(crate) const INVALID_REQUEST: i64 = -32600;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
pub(crate) const SERVER_ERROR: i64 = -32000;
const SESSION_NOT_FOUND: i64 = -32001;
