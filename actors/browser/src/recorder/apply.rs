//! What was heard, put into the model.
//!
//! Owns: the shapes of the browser's answers, and how each changes the state. Never asks.

use serde::Deserialize;

use super::Model;
use crate::state::{
    BLANK, Cookie, Cookies, Field, FieldValue, ORIGINS_MAX, PAGE_ORIGINS_MAX, PageKey, PageState,
    PartitionKey, Storage,
};

/// What `watch.js` reads of a page.
#[derive(Deserialize)]
pub(super) struct Read {
    pub(super) href: String,
    origin: String,
    pub(super) redirected: bool,
    title: String,
    x: i64,
    y: i64,
    focus: Option<String>,
    state: Option<String>,
    fields: Vec<Field>,
    left_out: u32,
    session: Option<Storage>,
    local: Option<Storage>,
}

/// `Page.getNavigationHistory`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Navigation {
    current_index: usize,
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    url: String,
}

/// `Storage.getCookies`.
#[derive(Deserialize)]
pub(super) struct CookieList {
    cookies: Vec<CookieInfo>,
}

/// `Network.Cookie`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CookieInfo {
    name: String,
    value: String,
    domain: String,
    path: String,
    expires: f64,
    http_only: bool,
    secure: bool,
    session: bool,
    same_site: Option<String>,
    priority: Option<String>,
    source_scheme: Option<String>,
    source_port: Option<i32>,
    partition_key: Option<PartitionKey>,
    #[serde(default)]
    partition_key_opaque: bool,
}

/// `DOMStorage.domStorageItemAdded` and its kin.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stored {
    storage_id: StorageId,
    /// None: all were cleared.
    key: Option<String>,
    /// None: it was removed.
    new_value: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StorageId {
    #[serde(default)]
    storage_key: String,
    is_local_storage: bool,
}

impl Model {
    pub(super) fn touch(&mut self) {
        self.is_dirty = true;
        self.is_news = true;
    }

    fn touch_if(&mut self, is_changed: bool) {
        if is_changed {
            self.touch();
        }
    }

    /// Elements of a page that were edited in place: only their old content tells that.
    pub(super) fn edited(&self, key: PageKey) -> Vec<&str> {
        let fields = self.state.pages.get(&key).map(|page| page.fields.iter());
        let fields = fields.into_iter().flatten();
        let edited = fields.filter(|field| matches!(field.value, FieldValue::Html(_)));
        edited.map(|field| field.path.as_str()).collect()
    }

    pub(super) fn open(&mut self, key: PageKey, url: &str, title: &str) {
        if self.state.pages.contains_key(&key) {
            return;
        }
        let mut page = PageState {
            title: title.to_owned(),
            ..PageState::default()
        };
        let url = if url.is_empty() { BLANK } else { url };
        page.set_history(vec![url.to_owned()], 0);
        page.bound();
        self.state.pages.insert(key, page);
        self.touch();
    }

    pub(super) fn close(&mut self, key: PageKey) {
        self.health.remove(&key);
        let is_changed = self.state.pages.remove(&key).is_some();
        self.touch_if(is_changed);
    }

    /// The page `was` is another one, which came back.
    pub(super) fn rename(&mut self, was: PageKey, key: PageKey) {
        self.health.remove(&was);
        if was != key
            && let Some(page) = self.state.pages.remove(&was)
        {
            self.state.pages.insert(key, page);
            self.touch();
        }
    }

    pub(super) fn navigated(&mut self, key: PageKey, navigation: Navigation) {
        let Some(page) = self.state.pages.get_mut(&key) else {
            return;
        };
        let urls = navigation.entries.into_iter().map(|entry| entry.url);
        let mut fresh = PageState::default();
        fresh.set_history(urls.collect(), navigation.current_index);
        if fresh.history.is_empty() {
            return;
        }
        let is_changed = set(&mut page.url, fresh.url)
            | set(&mut page.history, fresh.history)
            | set(&mut page.index, fresh.index);
        self.touch_if(is_changed);
    }

    pub(super) fn page(&mut self, key: PageKey, read: Read, is_posted: bool) {
        // A page that could not be loaded says nothing of what it would be.
        if read.href.starts_with(ERROR_PAGE) {
            return;
        }
        let Some(page) = self.state.pages.get_mut(&key) else {
            return;
        };
        let mut fresh = PageState {
            title: read.title,
            fields: read.fields,
            focus: read.focus,
            state: read.state,
            left_out: read.left_out,
            ..PageState::default()
        };
        fresh.bound();
        let mut is_changed = set(&mut page.title, fresh.title)
            | set(&mut page.fields, fresh.fields)
            | set(&mut page.focus, fresh.focus)
            | set(&mut page.state, fresh.state)
            | set(&mut page.left_out, fresh.left_out)
            | set(&mut page.scroll_x, read.x)
            | set(&mut page.scroll_y, read.y)
            | set(&mut page.is_posted, is_posted);
        // An opaque origin has no storage.
        if read.origin != "null" {
            if let Some(mut session) = read.session {
                session.bound();
                is_changed |= page.keep(&read.origin, session);
            }
            if let Some(mut local) = read.local {
                local.bound();
                is_changed |= self.keep(&read.origin, local);
            }
        }
        self.touch_if(is_changed);
    }

    pub(super) fn cookies(&mut self, list: CookieList) {
        let all = list.cookies.len();
        let cookies = list.cookies.into_iter();
        // A partition of an opaque origin ends with its page.
        let cookies = cookies.filter(|cookie| !cookie.partition_key_opaque);
        let cookies: Vec<_> = cookies.map(Cookie::from).collect();
        let opaque = u32::try_from(all - cookies.len()).unwrap_or(u32::MAX);
        let mut cookies = Cookies::new(cookies);
        cookies.left_out = cookies.left_out.saturating_add(opaque);
        let is_changed = set(&mut self.state.cookies, cookies);
        self.touch_if(is_changed);
    }

    /// Whether the event was enough to know what is stored now.
    pub(super) fn stored(&mut self, key: PageKey, change: &Stored) -> bool {
        let Some(origin) = change.storage_id.storage_key.strip_suffix('/') else {
            // A frame of another site within the page: its storage is not the origin's own.
            return true;
        };
        let texts = [&change.key, &change.new_value];
        // Half a surrogate pair does not come through an event.
        let is_odd = |text: &str| text.contains(REPLACEMENT) || text.starts_with(ESCAPED);
        if texts.into_iter().flatten().any(|text| is_odd(text)) {
            return false;
        }
        let storages = if change.storage_id.is_local_storage {
            if !self.has_room(origin) {
                return true;
            }
            &mut self.state.origins
        } else if let Some(page) = self.state.pages.get_mut(&key) {
            if !page.session.contains_key(origin) && page.session.len() >= PAGE_ORIGINS_MAX {
                return false;
            }
            &mut page.session
        } else {
            return true;
        };
        let storage = storages.entry(origin.to_owned()).or_default();
        match (&change.key, &change.new_value) {
            (Some(key), Some(value)) => storage.put(key, value),
            (Some(key), None) => _ = storage.items.remove(key),
            (None, _) => *storage = Storage::default(),
        }
        if *storage == Storage::default() {
            storages.remove(origin);
        }
        self.touch();
        true
    }

    fn keep(&mut self, origin: &str, storage: Storage) -> bool {
        if storage == Storage::default() {
            return self.state.origins.remove(origin).is_some();
        }
        if !self.has_room(origin) || self.state.origins.get(origin) == Some(&storage) {
            return false;
        }
        self.state.origins.insert(origin.to_owned(), storage);
        true
    }

    fn has_room(&mut self, origin: &str) -> bool {
        let state = &mut self.state;
        if state.origins.len() < ORIGINS_MAX || state.origins.contains_key(origin) {
            return true;
        }
        state.beyond.origins = state.beyond.origins.saturating_add(1);
        self.touch();
        false
    }
}

impl PageState {
    fn keep(&mut self, origin: &str, storage: Storage) -> bool {
        if storage == Storage::default() {
            return self.session.remove(origin).is_some();
        }
        if self.session.get(origin) == Some(&storage) {
            return false;
        }
        if self.session.len() >= PAGE_ORIGINS_MAX && !self.session.contains_key(origin) {
            self.session.pop_first();
            self.left_out = self.left_out.saturating_add(1);
        }
        self.session.insert(origin.to_owned(), storage);
        true
    }
}

impl From<CookieInfo> for Cookie {
    fn from(info: CookieInfo) -> Cookie {
        Cookie {
            name: info.name,
            value: info.value,
            domain: info.domain,
            path: info.path,
            expires: (!info.session).then_some(info.expires),
            http_only: info.http_only,
            secure: info.secure,
            same_site: info.same_site,
            priority: info.priority,
            source_scheme: info.source_scheme,
            source_port: info.source_port,
            partition_key: info.partition_key,
        }
    }
}

/// Whether it was another one.
fn set<T: PartialEq>(place: &mut T, value: T) -> bool {
    let is_changed = *place != value;
    if is_changed {
        *place = value;
    }
    is_changed
}

/// Where Chromium shows that a page could not be loaded.
const ERROR_PAGE: &str = "chrome-error:";

/// What stands for a text that is none.
const REPLACEMENT: char = '\u{FFFD}';

/// In front of a text that is kept as JSON.
const ESCAPED: char = '\u{1}';
