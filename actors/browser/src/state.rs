//! What a browser session's checkpoint holds.
//!
//! Owns: the state as values, its parts that change on their own (the cookies, one origin, one page),
//! its bytes, and every limit on it. Never asks a browser (the recorder does), and holds nothing that a
//! page keeps only in memory: no script's variables, no open connections, no request bodies.
//!
//! **What is sensitive.** Cookies and storage are, all of them: whoever stores these bytes stores logins.
//! Fields for passwords, one-time codes and card numbers are never taken: a restored page asks for them
//! again. Files chosen for an upload are not taken either.
//!
//! A text that holds half a surrogate pair (scripts may store such) is kept as U+0001 and its JSON; the
//! scripts in the page write and read it so.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// All of a session that outlives its browser.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SessionState {
    /// By domain, path, name and partition.
    pub cookies: Cookies,
    /// Local storage by origin (`https://example.org`), whether a page of it is open or not.
    pub origins: BTreeMap<String, Storage>,
    /// The open pages, in the order in which they were opened.
    pub pages: BTreeMap<PageKey, PageState>,
    /// What is in none of the above.
    pub beyond: Beyond,
}

/// What changed since an older state: whole parts, and those that are gone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Delta {
    cookies: Option<Cookies>,
    origins: BTreeMap<String, Option<Storage>>,
    pages: BTreeMap<PageKey, Option<PageState>>,
    beyond: Option<Beyond>,
}

/// A page's name within its session: later pages have higher ones; a restored page keeps its own.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct PageKey(pub u64);

/// Whole things that were not taken, because there are too many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beyond {
    /// Changes of origins with local storage above [`ORIGINS_MAX`].
    pub origins: u32,
    /// Pages above [`PAGES_MAX`].
    pub pages: u32,
}

/// The cookies of a session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cookies {
    /// In order.
    pub cookies: Vec<Cookie>,
    /// How many were not taken.
    pub left_out: u32,
}

/// One cookie; the names are the protocol's (`Network.CookieParam`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "as in RFC 6265bis and Network.CookieParam")]
pub struct Cookie {
    pub name: String,
    pub value: String,
    /// With a dot in front: for hosts below it too.
    pub domain: String,
    pub path: String,
    /// Seconds since 1970; `None` for one that ends with its session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<f64>,
    pub http_only: bool,
    pub secure: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_site: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_scheme: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition_key: Option<PartitionKey>,
}

/// Where a partitioned cookie applies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartitionKey {
    /// The site of the page itself.
    pub top_level_site: String,
    /// Whether a frame of another site lies between.
    pub has_cross_site_ancestor: bool,
}

/// What an origin stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    /// By key.
    pub items: BTreeMap<String, String>,
    /// How many were not taken, for [`STORAGE_BYTES_MAX`].
    #[serde(default)]
    pub left_out: u32,
}

/// One page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageState {
    /// Its address: the current one of its history.
    pub url: String,
    /// Its title, for people.
    pub title: String,
    /// The addresses that it was at, and those it can go forward to.
    pub history: Vec<String>,
    /// Which of `history` it is at.
    pub index: usize,
    /// `history.state`, as JSON, where JSON can say it.
    pub state: Option<String>,
    /// Whether it is the answer to a form that was posted: such a page comes back by a GET.
    pub is_posted: bool,
    /// Session storage, by origin.
    pub session: BTreeMap<String, Storage>,
    /// In CSS pixels.
    pub scroll_x: i64,
    /// In CSS pixels.
    pub scroll_y: i64,
    /// The fields that are not as the document has them.
    pub fields: Vec<Field>,
    /// The element that has the focus, as a selector.
    pub focus: Option<String>,
    /// How many fields, addresses and origins of the page were not taken.
    pub left_out: u32,
}

/// A field that was filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// Where it is, as a selector.
    pub path: String,
    /// Its element and type, such as `input checkbox`: a field of another kind is not filled.
    pub kind: String,
    /// Its name: a field of another name is not filled.
    pub name: String,
    /// What is in it.
    pub value: FieldValue,
}

/// What is in a field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FieldValue {
    /// The text of an input or a textarea.
    Text(String),
    /// A checkbox or a radio button.
    Checked(bool),
    /// The values of the options chosen.
    Selected(Vec<String>),
    /// What is in an element that can be edited.
    Html(String),
}

/// Why bytes are no state, or no delta. Nothing is taken from them.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// They are of another version.
    #[error("a browser session's state has version {0}; known is {VERSION}")]
    Version(u8),
    /// They are cut short, or not what was written.
    #[error("a browser session's state is damaged: its checksum is another")]
    Damaged,
    /// What was written is not a state.
    #[error("a browser session's state cannot be read: {0}")]
    Malformed(serde_json::Error),
    /// It holds more than any state that is written.
    #[error("a browser session's state holds more {0} than it may")]
    TooMuch(&'static str),
}

impl SessionState {
    /// Its bytes: the version, a checksum, JSON.
    pub fn encode(&self) -> Bytes {
        encode(self)
    }

    /// Reads what [`SessionState::encode`] wrote.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn decode(bytes: &[u8]) -> Result<SessionState, StateError> {
        let state: SessionState = decode(bytes)?;
        state.check()?;
        Ok(state)
    }

    /// Takes over what changed. A delta of this state gives the newer one; any other gives a state whose
    /// parts are of different times, but which is whole.
    pub fn apply(&mut self, delta: &Delta) {
        if let Some(cookies) = &delta.cookies {
            self.cookies.clone_from(cookies);
        }
        if let Some(beyond) = delta.beyond {
            self.beyond = beyond;
        }
        merge(&mut self.origins, &delta.origins);
        merge(&mut self.pages, &delta.pages);
    }

    /// How many things of the session are not in here, because of the limits.
    pub fn left_out(&self) -> u64 {
        let storage = |storage: &Storage| u64::from(storage.left_out);
        let page = |page: &PageState| {
            u64::from(page.left_out) + page.session.values().map(storage).sum::<u64>()
        };
        u64::from(self.cookies.left_out)
            + u64::from(self.beyond.origins)
            + u64::from(self.beyond.pages)
            + self.origins.values().map(storage).sum::<u64>()
            + self.pages.values().map(page).sum::<u64>()
    }

    /// Drops what an origin stored, the largest first, until all is within [`STATE_BYTES_MAX`].
    pub(crate) fn trim(&mut self) {
        while self.bytes() > STATE_BYTES_MAX {
            let origins = self.origins.values_mut();
            let sessions = self.pages.values_mut().flat_map(|p| p.session.values_mut());
            let storages = origins.chain(sessions);
            let largest = storages.max_by_key(|storage| storage.written());
            let Some(largest) = largest.filter(|storage| !storage.items.is_empty()) else {
                return;
            };
            let dropped = count(largest.items.len());
            largest.left_out = largest.left_out.saturating_add(dropped);
            largest.items.clear();
        }
    }

    /// How many bytes it encodes to, but for names of fields.
    fn bytes(&self) -> usize {
        let pages = self.pages.values().map(PageState::bytes);
        let origins = self.origins.values().map(Storage::written);
        self.cookies.bytes() + pages.sum::<usize>() + origins.sum::<usize>()
    }

    fn check(&self) -> Result<(), StateError> {
        let rules = [
            (self.cookies.cookies.len() > COOKIES_MAX, "cookies"),
            (self.origins.len() > ORIGINS_MAX, "origins"),
            (self.pages.len() > PAGES_MAX, "pages"),
            (!self.pages.values().all(PageState::is_bounded), "of a page"),
        ];
        match rules.iter().find(|(is_above, _)| *is_above) {
            Some((_, what)) => Err(StateError::TooMuch(what)),
            None => Ok(()),
        }
    }
}

impl Delta {
    /// What makes `newer` of `older`; `None` if they are equal.
    pub fn between(older: &SessionState, newer: &SessionState) -> Option<Delta> {
        let delta = Delta {
            cookies: (older.cookies != newer.cookies).then(|| newer.cookies.clone()),
            origins: changes(&older.origins, &newer.origins),
            pages: changes(&older.pages, &newer.pages),
            beyond: (older.beyond != newer.beyond).then_some(newer.beyond),
        };
        (delta != Delta::default()).then_some(delta)
    }

    /// Its bytes, as those of a state.
    pub fn encode(&self) -> Bytes {
        encode(self)
    }

    /// Reads what [`Delta::encode`] wrote.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn decode(bytes: &[u8]) -> Result<Delta, StateError> {
        let delta: Delta = decode(bytes)?;
        let mut alone = SessionState::default();
        alone.apply(&delta);
        alone.check()?;
        Ok(delta)
    }
}

impl Cookies {
    /// Those of a session, in order; what is above [`COOKIES_MAX`] is left out.
    pub fn new(mut cookies: Vec<Cookie>) -> Cookies {
        cookies.sort_by(|a, b| a.key().cmp(&b.key()));
        let left_out = count(cookies.len().saturating_sub(COOKIES_MAX));
        cookies.truncate(COOKIES_MAX);
        Cookies { cookies, left_out }
    }

    fn bytes(&self) -> usize {
        let size = |cookie: &Cookie| cookie.name.len() + cookie.value.len() + COOKIE_FIXED_BYTES;
        self.cookies.iter().map(size).sum()
    }
}

impl Cookie {
    fn key(&self) -> (&str, &str, &str, &Option<PartitionKey>) {
        (&self.domain, &self.path, &self.name, &self.partition_key)
    }
}

impl Storage {
    /// Keeps one item, unless there is no room for it: then neither it nor an older one of its key.
    pub fn put(&mut self, key: &str, value: &str) {
        self.items.remove(key);
        if self.bytes() + key.len() + value.len() > STORAGE_BYTES_MAX {
            self.left_out = self.left_out.saturating_add(1);
            return;
        }
        self.items.insert(key.to_owned(), value.to_owned());
    }

    /// Keeps what there is room for.
    pub(crate) fn bound(&mut self) {
        let mut room = STORAGE_BYTES_MAX;
        let before = self.items.len();
        self.items.retain(|key, value| {
            let size = key.len() + value.len();
            let fits = size <= room;
            room -= if fits { size } else { 0 };
            fits
        });
        let dropped = count(before - self.items.len());
        self.left_out = self.left_out.saturating_add(dropped);
    }

    fn bytes(&self) -> usize {
        let items = self.items.iter();
        items.map(|(key, value)| key.len() + value.len()).sum()
    }

    fn written(&self) -> usize {
        let items = self.items.iter();
        items
            .map(|(key, value)| written(key) + written(value))
            .sum()
    }
}

impl PageState {
    /// Leaves out what is above the limits, and counts it.
    pub(crate) fn bound(&mut self) {
        let mut left_out = 0;
        left_out += self.fields.len();
        let mut room = FIELDS_BYTES_MAX;
        self.fields.truncate(FIELDS_MAX);
        self.fields.retain(|field| {
            let fits = field.bytes() <= room;
            room -= if fits { field.bytes() } else { 0 };
            fits
        });
        left_out -= self.fields.len();
        for storage in self.session.values_mut() {
            storage.bound();
        }
        while self.session.len() > PAGE_ORIGINS_MAX {
            self.session.pop_first();
            left_out += 1;
        }
        if self
            .state
            .as_ref()
            .is_some_and(|s| s.len() > FIELD_BYTES_MAX)
        {
            self.state = None;
            left_out += 1;
        }
        if self
            .focus
            .as_ref()
            .is_some_and(|s| s.len() > FIELD_BYTES_MAX)
        {
            self.focus = None;
        }
        cut(&mut self.title, TITLE_BYTES_MAX);
        self.left_out = self.left_out.saturating_add(count(left_out));
    }

    /// Takes the history, the nearest to the current address if it is too long.
    pub(crate) fn set_history(&mut self, mut urls: Vec<String>, index: usize) {
        let index = index.min(urls.len().saturating_sub(1));
        let from = (index + 1).saturating_sub(HISTORY_MAX);
        urls.truncate(from + HISTORY_MAX);
        self.history = urls.split_off(from.min(urls.len()));
        self.index = index - from;
        for url in &mut self.history {
            if url.len() > URL_BYTES_MAX {
                url.clear();
                url.push_str(BLANK);
            }
        }
        if let Some(url) = self.history.get(self.index) {
            self.url.clone_from(url);
        }
    }

    fn is_bounded(&self) -> bool {
        self.history.len() <= HISTORY_MAX
            && (self.history.is_empty() || self.index < self.history.len())
            && self.fields.len() <= FIELDS_MAX
            && self.session.len() <= PAGE_ORIGINS_MAX
    }

    fn bytes(&self) -> usize {
        let history = self.history.iter().map(String::len).sum::<usize>();
        let fields = self.fields.iter().map(Field::bytes).sum::<usize>();
        let session = self.session.values().map(Storage::written).sum::<usize>();
        PAGE_FIXED_BYTES + self.url.len() + history + fields + session
    }
}

impl Field {
    fn bytes(&self) -> usize {
        let value = match &self.value {
            FieldValue::Text(text) | FieldValue::Html(text) => written(text),
            FieldValue::Checked(_) => 1,
            FieldValue::Selected(values) => values.iter().map(|value| written(value)).sum(),
        };
        written(&self.path) + self.kind.len() + written(&self.name) + value
    }
}

fn merge<K: Ord + Clone, V: Clone>(parts: &mut BTreeMap<K, V>, changed: &BTreeMap<K, Option<V>>) {
    for (key, part) in changed {
        match part {
            Some(part) => parts.insert(key.clone(), part.clone()),
            None => parts.remove(key),
        };
    }
}

fn changes<K: Ord + Clone, V: Clone + PartialEq>(
    older: &BTreeMap<K, V>,
    newer: &BTreeMap<K, V>,
) -> BTreeMap<K, Option<V>> {
    let gone = older.keys().filter(|key| !newer.contains_key(key));
    let gone = gone.map(|key| (key.clone(), None));
    let changed = newer
        .iter()
        .filter(|(key, part)| older.get(key) != Some(part));
    let changed = changed.map(|(key, part)| (key.clone(), Some(part.clone())));
    gone.chain(changed).collect()
}

fn encode(value: &impl Serialize) -> Bytes {
    let mut bytes = vec![VERSION];
    bytes.extend([0; CHECKSUM_BYTES]);
    // Nothing in it can fail to be written: keys of maps are texts and numbers.
    let written = serde_json::to_writer(&mut bytes, value);
    debug_assert!(written.is_ok(), "{written:?}");
    let sum = checksum(&bytes[HEAD_BYTES..]);
    bytes[1..HEAD_BYTES].copy_from_slice(&sum);
    bytes.into()
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StateError> {
    if bytes.len() > ENCODED_BYTES_MAX {
        return Err(StateError::TooMuch("bytes"));
    }
    let (version, rest) = bytes.split_first().ok_or(StateError::Damaged)?;
    if *version != VERSION {
        return Err(StateError::Version(*version));
    }
    let (sum, body) = rest
        .split_at_checked(CHECKSUM_BYTES)
        .ok_or(StateError::Damaged)?;
    if *sum != checksum(body) {
        return Err(StateError::Damaged);
    }
    serde_json::from_slice(body).map_err(StateError::Malformed)
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let digest = Sha256::digest(bytes);
    std::array::from_fn(|at| digest[at])
}

fn count(things: usize) -> u32 {
    u32::try_from(things).unwrap_or(u32::MAX)
}

/// How long a text is as JSON.
fn written(text: &str) -> usize {
    let byte = |byte| match byte {
        0..0x20 => 6,
        b'"' | b'\\' => 2,
        _ => 1,
    };
    text.bytes().map(byte).sum()
}

fn cut(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max));
    }
}

/// The page that shows nothing.
pub(crate) const BLANK: &str = "about:blank";

/// Of the bytes.
const VERSION: u8 = 1;

/// Enough to tell damage; whoever could write these bytes on purpose can write the checksum too.
const CHECKSUM_BYTES: usize = 8;

const HEAD_BYTES: usize = 1 + CHECKSUM_BYTES;

/// What a cookie has beside its name and value, roughly: its path, its domain, names of fields.
const COOKIE_FIXED_BYTES: usize = 256;

/// As for cookies.
const PAGE_FIXED_BYTES: usize = 512;

/// Chromium keeps 3,300 for a profile and drops the oldest.
pub const COOKIES_MAX: usize = 3300;

/// Origins with local storage: more than a person visits between two logins; a crawler's are not worth
/// their room.
pub const ORIGINS_MAX: usize = 256;

/// One origin's items. Browsers give an origin 5 Mi characters for keys and values.
pub const STORAGE_BYTES_MAX: usize = 5 << 20;

/// Pages open at a time: each is a process of 10 to 100 MB. Those above are never watched, not even when
/// others close.
pub const PAGES_MAX: usize = 64;

/// Origins whose session storage one page holds: it gets one more whenever it goes to another site.
pub const PAGE_ORIGINS_MAX: usize = 16;

/// Chromium keeps 50 entries.
pub const HISTORY_MAX: usize = 50;

/// A longer address (most are `data:`) becomes a blank page.
pub const URL_BYTES_MAX: usize = 8 << 10;

/// Titles are for people.
pub const TITLE_BYTES_MAX: usize = 1 << 10;

/// Fields of a page that differ from its document: a large sheet has hundreds.
pub const FIELDS_MAX: usize = 1000;

/// One field: a long letter.
pub const FIELD_BYTES_MAX: usize = 64 << 10;

/// All fields of a page.
pub const FIELDS_BYTES_MAX: usize = 256 << 10;

/// All of a session: the checkpoint store holds it on every replica. Above it, what the largest origins
/// stored is left out.
pub const STATE_BYTES_MAX: usize = 32 << 20;

/// What is read: cookies, addresses and fields are not dropped for [`STATE_BYTES_MAX`], and come to less
/// than 64 MiB by their own limits.
const ENCODED_BYTES_MAX: usize = 4 * STATE_BYTES_MAX;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn storage(items: &[(&str, &str)]) -> Storage {
        let items = items.iter();
        Storage {
            items: items.map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            left_out: 0,
        }
    }

    fn state() -> SessionState {
        let cookie = |name: &str, expires, partition_key| Cookie {
            name: name.to_owned(),
            value: "v".to_owned(),
            domain: ".example.org".to_owned(),
            path: "/".to_owned(),
            expires,
            http_only: true,
            secure: true,
            same_site: Some("Lax".to_owned()),
            priority: Some("Medium".to_owned()),
            source_scheme: Some("Secure".to_owned()),
            source_port: Some(443),
            partition_key,
        };
        let partition = PartitionKey {
            top_level_site: "https://example.org".to_owned(),
            has_cross_site_ancestor: true,
        };
        let field = |path: &str, value| Field {
            path: path.to_owned(),
            kind: "input text".to_owned(),
            name: "q".to_owned(),
            value,
        };
        let page = PageState {
            url: "https://example.org/b".to_owned(),
            title: "B".to_owned(),
            history: vec![
                "https://example.org/a".into(),
                "https://example.org/b".into(),
            ],
            index: 1,
            state: Some("{\"n\":1}".to_owned()),
            is_posted: true,
            session: [("https://example.org".to_owned(), storage(&[("s", "1")]))].into(),
            scroll_x: 1,
            scroll_y: 2,
            fields: vec![
                field("#text", FieldValue::Text("hello\n\u{1}".to_owned())),
                field("#check", FieldValue::Checked(false)),
                field(
                    "#select",
                    FieldValue::Selected(vec!["a".into(), "b".into()]),
                ),
                field("#rich", FieldValue::Html("<b>x</b>".to_owned())),
            ],
            focus: Some("#text".to_owned()),
            left_out: 3,
        };
        SessionState {
            cookies: Cookies::new(vec![
                cookie("two", Some(1_900_000_000.25), Some(partition)),
                cookie("one", None, None),
            ]),
            origins: [(
                "https://example.org".to_owned(),
                storage(&[("k", "v"), ("\u{1}\"\\ud800\"", "half")]),
            )]
            .into(),
            pages: [(PageKey(7), page)].into(),
            beyond: Beyond {
                origins: 1,
                pages: 2,
            },
        }
    }

    #[test]
    fn the_bytes_are_those_that_were_agreed_on_and_read_as_what_was_written() {
        let bytes = state().encode();
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/session.state");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(golden, &bytes).unwrap();
        }
        assert_eq!(std::fs::read(golden).unwrap(), bytes);
        assert_eq!(SessionState::decode(&bytes).unwrap(), state());
        assert_eq!(state().left_out(), 6);
    }

    #[test]
    fn damaged_bytes_are_refused_wherever_they_are_damaged() {
        let bytes = state().encode();
        for at in 0..bytes.len() {
            assert!(SessionState::decode(&bytes[..at]).is_err(), "cut at {at}");
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1;
            assert!(SessionState::decode(&damaged).is_err(), "changed at {at}");
        }
        let mut later = bytes.to_vec();
        later[0] = VERSION + 1;
        assert!(matches!(
            SessionState::decode(&later),
            Err(StateError::Version(2))
        ));
        let other = encode(&"no state");
        assert!(matches!(
            SessionState::decode(&other),
            Err(StateError::Malformed(_))
        ));
    }

    #[test]
    fn more_than_may_be_written_is_refused_when_it_is_read() {
        let mut many = SessionState::default();
        for key in 0..=PAGES_MAX {
            many.pages.insert(PageKey(key as u64), PageState::default());
        }
        let refused = SessionState::decode(&many.encode());
        assert!(
            matches!(refused, Err(StateError::TooMuch("pages"))),
            "{refused:?}"
        );
        let delta = Delta::between(&SessionState::default(), &many).unwrap();
        assert!(Delta::decode(&delta.encode()).is_err());
        let mut beside = SessionState::default();
        let page = PageState {
            index: 2,
            history: vec![BLANK.to_owned()],
            ..PageState::default()
        };
        beside.pages.insert(PageKey(1), page);
        assert!(SessionState::decode(&beside.encode()).is_err());
    }

    #[test]
    fn a_delta_holds_what_changed_and_no_more() {
        let old = state();
        assert_eq!(Delta::between(&old, &old), None);
        let mut new = old.clone();
        new.origins
            .insert("https://other.org".into(), storage(&[("a", "b")]));
        let page = new.pages.remove(&PageKey(7)).unwrap();
        new.pages.insert(PageKey(8), page);
        let delta = Delta::between(&old, &new).unwrap();
        assert_eq!(delta.cookies, None);
        assert_eq!(delta.origins.len(), 1);
        assert_eq!(delta.pages[&PageKey(7)], None);
        let mut applied = old.clone();
        applied.apply(&Delta::decode(&delta.encode()).unwrap());
        assert_eq!(applied, new);
    }

    #[test]
    fn what_is_above_a_limit_is_left_out_and_counted() {
        let cookies = Cookies::new(vec![state().cookies.cookies[0].clone(); COOKIES_MAX + 2]);
        assert_eq!((cookies.cookies.len(), cookies.left_out), (COOKIES_MAX, 2));

        let mut storage = Storage::default();
        storage.put("small", "1");
        storage.put("large", &"x".repeat(STORAGE_BYTES_MAX));
        assert_eq!((storage.items.len(), storage.left_out), (1, 1));

        let mut page = PageState::default();
        let urls: Vec<_> = (0..200)
            .map(|at| format!("https://example.org/{at}"))
            .collect();
        page.set_history(urls.clone(), 120);
        assert_eq!(page.history.len(), HISTORY_MAX);
        assert_eq!(page.history[page.index], urls[120]);
        assert_eq!(page.url, urls[120]);
        page.set_history(urls.clone(), 3);
        assert_eq!((page.index, &page.url), (3, &urls[3]));
        page.set_history(vec![format!("data:,{}", "x".repeat(URL_BYTES_MAX))], 9);
        assert_eq!((page.index, page.url.as_str()), (0, BLANK));

        let field = state().pages[&PageKey(7)].fields[0].clone();
        page.fields = vec![field; FIELDS_MAX + 5];
        page.session = (0..20)
            .map(|at| (format!("o{at}"), storage.clone()))
            .collect();
        page.bound();
        assert_eq!(page.fields.len(), FIELDS_MAX);
        assert_eq!(page.session.len(), PAGE_ORIGINS_MAX);
        assert_eq!(page.left_out, 5 + 4);

        // Control characters are long in JSON: half of the limit is above it.
        let mut state = SessionState::default();
        let controls = "\u{2}".repeat(STORAGE_BYTES_MAX - 1);
        storage.put("c", &controls[..STORAGE_BYTES_MAX - 100]);
        state.origins = (0..3)
            .map(|at| (format!("o{at}"), storage.clone()))
            .collect();
        state.trim();
        assert!(state.bytes() <= STATE_BYTES_MAX);
        assert!(state.left_out() > 3);
        assert!(SessionState::decode(&state.encode()).is_ok());
    }
}
