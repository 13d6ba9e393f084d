//! Brings a session's pages back into a fresh context.
//!
//! Owns: the order in which things come back, so that a page's own first script finds its cookies and
//! storage as they were. Never repeats a request that was not a GET, and tells the page of nothing: no
//! event is dispatched for a field that is filled.
//!
//! ```text
//!   cookies ─> pages, in order: for each address of the history a blank document in its place
//!              (Fetch.fulfillRequest; nothing leaves the browser), which stores what is to be stored
//!           ─> all pages: Fetch.disable, reload (a GET) ─> fields, focus and scroll, tried again while
//!              the page builds itself
//! ```
//!
//! No page is reloaded before every origin has its storage: another page of the same origin may have been
//! the one to bring it.
//!
//! Not restored: what a page keeps in memory, a window's opener, frames' own forms, requests that were
//! under way.

mod tab;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::{Value, json};
use url::Url;

use crate::cdp::{Cdp, CdpError};
use crate::jail::Jail;
use crate::state::{BLANK, Cookie, PageKey, PageState, SessionState, Storage};
use tab::Tab;

/// What became of a session.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// Each page, in order.
    pub pages: Vec<RestoredPage>,
    /// Cookies that the browser refused.
    pub cookies_missed: usize,
    /// Origins whose local storage could not be set, or not all of it, and why.
    pub origins_missed: Vec<(String, String)>,
}

/// What became of a page.
#[derive(Clone, Debug)]
pub struct RestoredPage {
    /// Which.
    pub page: PageKey,
    /// Its address.
    pub url: String,
    /// What it is in the browser now; `None` if it could not be opened.
    pub target: Option<String>,
    /// What is not as it was; empty if all is.
    pub missed: Vec<Missed>,
}

/// What is not as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missed {
    /// The browser refused; the page is closed, or blank.
    #[error("it could not be opened: {0}")]
    Opened(String),
    /// It shows that it could not be loaded, at its address: reloading it later brings it back.
    #[error("it could not be loaded: {0}")]
    Loaded(String),
    /// It is still loading after [`LOAD_LIMIT`].
    #[error("it has not finished loading")]
    Finished,
    /// It was the answer to a form that was posted, and is what a GET of its address gives.
    #[error("it was the answer to a form that was posted; the form was not posted again")]
    Posted,
    /// Its address leads to another page now, in which nothing was filled in.
    #[error("its address leads to {0} now")]
    Moved(String),
    /// So many items of its session storage were refused.
    #[error("{0} items of its session storage")]
    Stored(u64),
    /// So many addresses of its history are not there.
    #[error("{0} addresses of its history")]
    History(usize),
    /// So many fields are not there any more, or are others.
    #[error("{0} fields of its forms")]
    Fields(u64),
    /// It is too short to be scrolled so far.
    #[error("its scroll position")]
    Scroll,
}

impl Restored {
    /// Whether all is as it was.
    pub fn is_whole(&self) -> bool {
        let pages = self.pages.iter().all(|page| page.missed.is_empty());
        pages && self.cookies_missed == 0 && self.origins_missed.is_empty()
    }

    /// Which page each target is.
    pub(crate) fn placed(&self) -> BTreeMap<String, PageKey> {
        let pages = self.pages.iter();
        let placed = pages.filter_map(|page| Some((page.target.clone()?, page.page)));
        placed.collect()
    }
}

/// Brings the pages of `state` back into the context of `jail`, which must be new. Each page has
/// [`PREPARE_LIMIT`] and [`LOAD_LIMIT`], eight are brought at a time, and one that fails holds
/// up no other.
pub async fn restore(cdp: &Cdp, jail: &Jail, state: &SessionState) -> Restored {
    let mut restored = Restored {
        cookies_missed: set_cookies(cdp, jail, &state.cookies.cookies).await,
        ..Restored::default()
    };
    // All at once, so that they come in the order of the session.
    let created = state.pages.iter().map(|_| Tab::create(cdp, jail.context()));
    let created = futures_util::future::join_all(created).await;
    // The first page that is at an origin brings its local storage.
    let mut brought = BTreeSet::new();
    let mut blanks = Vec::new();
    for ((key, page), target) in state.pages.iter().zip(created) {
        let local = origin_of(&page.url).filter(|origin| brought.insert(origin.clone()));
        let local = local.and_then(|origin| state.origins.get_key_value(&origin));
        blanks.push(Blank::prepare(cdp, *key, page, target, local));
    }
    let blanks = futures_util::stream::iter(blanks).buffered(PAGES_AT_ONCE);
    // Those that no page is at come meanwhile, by pages that are closed then.
    let alone = state
        .origins
        .iter()
        .filter(|(origin, _)| !brought.contains(*origin));
    let (blanks, missed) = tokio::join!(
        blanks.collect::<Vec<_>>().boxed(),
        bring_origins(cdp, jail, alone)
    );
    restored.origins_missed = missed;
    let is_brought = |origin: &String| blanks.iter().any(|b| b.brought.as_ref() == Some(origin));
    let failed = brought.iter().filter(|origin| !is_brought(origin));
    let failed = failed.filter_map(|origin| state.origins.get_key_value(origin));
    restored
        .origins_missed
        .extend(bring_origins(cdp, jail, failed).await);
    let finished: Vec<_> = blanks.into_iter().map(Blank::finish).collect();
    let finished = futures_util::stream::iter(finished);
    restored.pages = finished.buffered(PAGES_AT_ONCE).collect().await;
    restored
}

/// How many were refused.
async fn set_cookies(cdp: &Cdp, jail: &Jail, cookies: &[Cookie]) -> usize {
    let set = |cookies| {
        let params = json!({ "cookies": cookies, "browserContextId": jail.context() });
        async move { cdp.call::<Value>("", "Storage.setCookies", params).await }
    };
    if cookies.is_empty() || set(cookies).await.is_ok() {
        return 0;
    }
    // One that is refused keeps the others out.
    let mut missed = 0;
    for cookie in cookies {
        missed += usize::from(set(std::slice::from_ref(cookie)).await.is_err());
    }
    missed
}

/// The origins that could not be brought, and why.
async fn bring_origins<'a>(
    cdp: &Cdp,
    jail: &Jail,
    origins: impl Iterator<Item = (&'a String, &'a Storage)>,
) -> Vec<(String, String)> {
    let origins: Vec<_> = origins.collect();
    let tabs = origins.chunks(ORIGINS_A_TAB);
    // Boxed and collected before they are awaited: else the whole would not be `Send`.
    let tabs: Vec<_> = tabs
        .map(|origins| bring_origins_by_one(cdp, jail, origins).boxed())
        .collect();
    let tabs = futures_util::stream::iter(tabs).buffered(PAGES_AT_ONCE);
    tabs.concat().await
}

async fn bring_origins_by_one(
    cdp: &Cdp,
    jail: &Jail,
    origins: &[(&String, &Storage)],
) -> Vec<(String, String)> {
    let mut missed = Vec::new();
    let opened = async { Tab::open(cdp, Tab::create(cdp, jail.context()).await?).await };
    let mut tab = match opened.await {
        Ok(tab) => tab,
        Err(error) => {
            let why = |(origin, _): &(&String, _)| ((*origin).clone(), error.to_string());
            return origins.iter().map(why).collect();
        }
    };
    for (origin, storage) in origins {
        let bring = async {
            tab.navigate(&format!("{origin}/")).await?;
            tab.store(None, Some(storage), None).await
        };
        match tokio::time::timeout(PREPARE_LIMIT, bring).await {
            Ok(Ok(0)) => {}
            Ok(Ok(items)) => {
                missed.push(((*origin).clone(), format!("{items} items were refused")))
            }
            Ok(Err(error)) => missed.push(((*origin).clone(), error.to_string())),
            Err(_) => missed.push(((*origin).clone(), "no answer".to_owned())),
        }
    }
    tab.close().await;
    missed
}

/// A page whose documents are still blank: with its history, and its storage.
struct Blank<'a> {
    tab: Option<Tab>,
    state: &'a PageState,
    /// The origin whose local storage it brought.
    brought: Option<String>,
    report: RestoredPage,
}

impl<'a> Blank<'a> {
    async fn prepare(
        cdp: &Cdp,
        key: PageKey,
        state: &'a PageState,
        target: Result<String, CdpError>,
        local: Option<(&String, &Storage)>,
    ) -> Blank<'a> {
        let mut blank = Blank {
            tab: None,
            state,
            brought: None,
            report: RestoredPage {
                page: key,
                url: state.url.clone(),
                target: target.as_ref().ok().cloned(),
                missed: Vec::new(),
            },
        };
        let replay = async {
            let mut tab = Tab::open(cdp, target?).await?;
            blank.replay(&mut tab, local).await?;
            Ok::<_, CdpError>(tab)
        };
        let replayed = tokio::time::timeout(PREPARE_LIMIT, replay).await;
        match replayed {
            Ok(Ok(tab)) => blank.tab = Some(tab),
            Ok(Err(error)) => blank.report.missed.push(Missed::Opened(error.to_string())),
            Err(_) => blank
                .report
                .missed
                .push(Missed::Opened("no answer".to_owned())),
        }
        blank
    }

    /// Goes where the page was, and leaves what was stored there.
    async fn replay(
        &mut self,
        tab: &mut Tab,
        local: Option<(&String, &Storage)>,
    ) -> Result<(), CdpError> {
        let state = self.state;
        let here = origin_of(&state.url);
        let mut refused = 0;
        for (origin, storage) in &state.session {
            if Some(origin) != here.as_ref() {
                tab.navigate(&format!("{origin}/")).await?;
                refused += tab.store(Some(storage), None, None).await?;
            }
        }
        let is_possible =
            |url: &str| url == BLANK || url.starts_with("data:") || origin_of(url).is_some();
        let entries = state.history.iter().enumerate();
        let entries: Vec<_> = entries.filter(|(_, url)| is_possible(url)).collect();
        let mut previous = None;
        for (at, url) in &entries {
            if previous == Some(url) {
                tab.repeat().await?;
            } else {
                tab.navigate(url).await?;
            }
            if previous.is_none() {
                // What was visited before is no part of it.
                tab.forget_history().await?;
            }
            previous = Some(url);
            if *at == state.index && here.is_some() {
                let session = here.as_ref().and_then(|here| state.session.get(here));
                let storage = local.map(|(_, storage)| storage);
                refused += tab.store(session, storage, state.state.as_deref()).await?;
                self.brought = local.map(|(origin, _)| origin.clone());
            }
        }
        if let Some(at) = entries.iter().position(|(at, _)| *at == state.index)
            && at + 1 < entries.len()
        {
            tab.go_to(at).await?;
        }
        if refused > 0 {
            self.report.missed.push(Missed::Stored(refused));
        }
        let skipped = state.history.len() - entries.len();
        if skipped > 0 {
            self.report.missed.push(Missed::History(skipped));
        }
        if state.is_posted {
            self.report.missed.push(Missed::Posted);
        }
        Ok(())
    }

    /// Loads what is at its address, and fills it in.
    async fn finish(self) -> RestoredPage {
        let mut report = self.report;
        let Some(mut tab) = self.tab else {
            return report;
        };
        match tokio::time::timeout(LOAD_LIMIT, load(&mut tab, self.state)).await {
            Ok(Ok(mut missed)) => report.missed.append(&mut missed),
            Ok(Err(error)) => report.missed.push(Missed::Loaded(error.to_string())),
            Err(_) => report.missed.push(Missed::Finished),
        }
        report
    }
}

async fn load(tab: &mut Tab, state: &PageState) -> Result<Vec<Missed>, CdpError> {
    if origin_of(&state.url).is_some() {
        tab.reload().await?;
    }
    if tab.is_unreachable() {
        let why = "its server cannot be reached, or refused".to_owned();
        return Ok(vec![Missed::Loaded(why)]);
    }
    let (x, y) = (state.scroll_x, state.scroll_y);
    if state.fields.is_empty() && state.focus.is_none() && (x, y) == (0, 0) {
        return Ok(Vec::new());
    }
    let how =
        json!({ "url": state.url, "fields": state.fields, "x": x, "y": y, "focus": state.focus });
    let mut waited = Duration::ZERO;
    let mut pause = FILL_PAUSE_MIN;
    loop {
        let filled = tab.fill(&how).await?;
        if let Some(to) = filled.moved
            && tab.is_loaded()
        {
            return Ok(vec![Missed::Moved(to)]);
        }
        let is_whole = filled.missing == 0 && filled.is_scrolled;
        // A page's own scripts may fill its fields anew until it has loaded.
        if tab.is_loaded() && (is_whole || waited >= FILL_LIMIT) {
            let fields = (filled.missing > 0).then_some(Missed::Fields(filled.missing));
            let scroll = (!filled.is_scrolled).then_some(Missed::Scroll);
            return Ok(fields.into_iter().chain(scroll).collect());
        }
        tab.pause(pause).await?;
        if tab.is_loaded() {
            waited += pause;
        }
        pause = (2 * pause).min(FILL_PAUSE_MAX);
    }
}

/// The origin of an address that is fetched and may store something.
fn origin_of(url: &str) -> Option<String> {
    let url = Url::parse(url).ok()?;
    let is_fetched = matches!(url.scheme(), "http" | "https");
    is_fetched.then(|| url.origin().ascii_serialization())
}

/// How many pages are brought back at a time: each loads in a process of its own.
const PAGES_AT_ONCE: usize = 8;

/// How many origins without a page one page brings, one after the other: 15 ms each.
const ORIGINS_A_TAB: usize = 16;

/// For a page's history in blank documents, and its storage: 50 addresses take 1 s.
pub const PREPARE_LIMIT: Duration = Duration::from_secs(10);

/// For loading a page and filling it in. Whoever waits for the session waits for the slowest page.
pub const LOAD_LIMIT: Duration = Duration::from_secs(10);

/// How long a page that has loaded may still build the rest of itself.
const FILL_LIMIT: Duration = Duration::from_secs(2);

/// Between two tries to fill it in, at first.
const FILL_PAUSE_MIN: Duration = Duration::from_millis(10);

/// And later.
const FILL_PAUSE_MAX: Duration = Duration::from_millis(200);
