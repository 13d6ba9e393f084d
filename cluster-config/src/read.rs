//! From text to values that know where they stand.
//!
//! Owns: the two sources and which goes first, unknown keys and sections, and the shape of a value
//! (text, number, list, table). What a value means is its section's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{ConfigError, ConfigErrors, Place};

/// The file and the variables, and what is wrong with them so far.
pub(crate) struct Sources {
    path: PathBuf,
    sections: BTreeMap<String, Found>,
    known: Vec<&'static str>,
    errors: Vec<ConfigError>,
    is_toml: bool,
}

/// A section as it was found.
struct Found {
    place: Place,
    entries: BTreeMap<String, Entry>,
}

/// A value and its place.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) place: Place,
    value: Value,
}

#[derive(Clone, Debug)]
enum Value {
    /// Text of a file, or a variable's whole value, which may yet become anything.
    Text(String),
    Integer(i64),
    Flag(bool),
    List(Vec<Value>),
    Table(Vec<(String, Value)>),
    Other(&'static str),
}

impl Sources {
    pub(crate) fn read(
        path: &Path,
        text: &str,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Sources {
        let mut sources = Sources {
            path: path.to_owned(),
            sections: BTreeMap::new(),
            known: Vec::new(),
            errors: Vec::new(),
            is_toml: true,
        };
        sources.read_file(text);
        for (name, value) in env {
            sources.read_variable(name, value);
        }
        sources
    }

    fn read_file(&mut self, text: &str) {
        let (table, errors) = DeTable::parse_recoverable(text);
        let line_of = |at: usize| 1 + text[..at.min(text.len())].matches('\n').count();
        for error in errors {
            let line = error.span().map_or(1, |span| line_of(span.start));
            let what = error.message().to_owned();
            self.fail(Place::Line(self.path.clone(), line), String::new(), what);
            self.is_toml = false;
        }
        for (name, value) in table.into_inner() {
            let line = line_of(name.span().start);
            let place = Place::Line(self.path.clone(), line);
            let name = name.into_inner().into_owned();
            let DeValue::Table(keys) = value.into_inner() else {
                let what = format!("belongs into a section, or is one: [{name}]");
                self.fail(place, name, what);
                continue;
            };
            let entry = |(key, value): (Spanned<_>, Spanned<_>)| {
                let place = Place::Line(self.path.clone(), line_of(key.span().start));
                let value = Value::from_toml(value.into_inner());
                let key: std::borrow::Cow<'_, str> = key.into_inner();
                (key.into_owned(), Entry { place, value })
            };
            let entries = keys.into_iter().map(entry).collect();
            self.sections.insert(name, Found { place, entries });
        }
    }

    /// `UNDERSTUDY_NODE__NAME=a` is `[node] name = "a"`. A variable without the double underscore is
    /// the command line's.
    fn read_variable(&mut self, name: String, value: String) {
        let Some((section, key)) = name
            .strip_prefix("UNDERSTUDY_")
            .and_then(|rest| rest.split_once("__"))
        else {
            return;
        };
        let (section, key) = (section.to_lowercase(), key.to_lowercase());
        let place = Place::Variable(name);
        let entry = Entry {
            place: place.clone(),
            value: Value::Text(value),
        };
        let entries = BTreeMap::new();
        let found = Found { place, entries };
        let found = self.sections.entry(section).or_insert(found);
        found.entries.insert(key, entry);
    }

    /// The section of this name, which is empty when nobody wrote it. Asked once for each there is.
    pub(crate) fn section(&mut self, name: &'static str) -> Section<'_> {
        self.known.push(name);
        let (place, entries) = match self.sections.remove(name) {
            Some(found) => (found.place, found.entries),
            None => (Place::File(self.path.clone()), BTreeMap::new()),
        };
        Section {
            name,
            place,
            entries,
            known: Vec::new(),
            sources: self,
            failed: false,
        }
    }

    /// What is wrong, once every section was asked for.
    pub(crate) fn finish(mut self) -> Result<(), ConfigErrors> {
        for (name, found) in std::mem::take(&mut self.sections) {
            let hint = did_you_mean(&name, &self.known);
            self.fail(found.place, name, format!("there is no such section{hint}"));
        }
        match self.errors.is_empty() {
            true => Ok(()),
            false => Err(ConfigErrors(self.errors)),
        }
    }

    fn fail(&mut self, place: Place, key: String, what: String) {
        // What is wrong behind a broken line may be that line's fault.
        if !self.is_toml && !key.is_empty() {
            return;
        }
        self.errors.push(ConfigError { place, key, what });
    }
}

/// One section while it is read. Whatever is not asked for is unknown.
pub(crate) struct Section<'s> {
    name: &'static str,
    place: Place,
    entries: BTreeMap<String, Entry>,
    known: Vec<&'static str>,
    sources: &'s mut Sources,
    failed: bool,
}

impl Section<'_> {
    /// The value of `key`, as `parse` makes it; `None` when nobody wrote it or it is wrong, which is
    /// said then.
    pub(crate) fn get<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&Entry) -> Result<T, String>,
    ) -> Option<T> {
        self.known.push(key);
        let entry = self.entries.remove(key)?;
        match parse(&entry) {
            Ok(value) => Some(value),
            Err(what) => {
                self.fail(entry.place, key, what);
                None
            }
        }
    }

    /// The value of `key`, or `default` when nobody wrote it; `None` when it is wrong.
    pub(crate) fn get_or<T>(
        &mut self,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&Entry) -> Result<T, String>,
    ) -> Option<T> {
        let is_written = self.has(key);
        let value = self.get(key, parse);
        if is_written { value } else { Some(default) }
    }

    /// Whether somebody wrote `key`, before it is read.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// The value of `key`, which must be there.
    pub(crate) fn need<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&Entry) -> Result<T, String>,
    ) -> Option<T> {
        if !self.has(key) {
            self.known.push(key);
            let place = self.place.clone();
            self.fail(place, key, "is needed".to_owned());
            return None;
        }
        self.get(key, parse)
    }

    /// Where `key` stands, before it is read.
    pub(crate) fn place(&self, key: &str) -> Place {
        let entry = self.entries.get(key);
        entry.map_or(&self.place, |entry| &entry.place).clone()
    }

    pub(crate) fn fail(&mut self, place: Place, key: &str, what: String) {
        self.failed = true;
        let key = format!("{}.{key}", self.name);
        self.sources.fail(place, key, what);
    }

    /// The section, unless something in it was wrong or unknown.
    pub(crate) fn finish<T>(mut self, made: Option<T>) -> Option<T> {
        for (key, entry) in std::mem::take(&mut self.entries) {
            let hint = did_you_mean(&key, &self.known);
            self.fail(entry.place, &key, format!("there is no such key{hint}"));
        }
        made.filter(|_| !self.failed)
    }
}

impl Entry {
    pub(crate) fn text(&self) -> Result<&str, String> {
        match &self.value {
            Value::Text(text) => Ok(text),
            other => Err(format!("should be a text, but is {}", other.shape())),
        }
    }

    pub(crate) fn integer(&self) -> Result<i64, String> {
        match &self.value {
            Value::Integer(number) => Ok(*number),
            // A variable has no other way to write it.
            Value::Text(text) if matches!(self.place, Place::Variable(_)) => {
                let number = text.trim().parse();
                number.map_err(|_| format!("should be a whole number, but is {text:?}"))
            }
            other => Err(format!(
                "should be a whole number, but is {}",
                other.shape()
            )),
        }
    }

    pub(crate) fn flag(&self) -> Result<bool, String> {
        match &self.value {
            Value::Flag(flag) => Ok(*flag),
            Value::Text(text) if matches!(self.place, Place::Variable(_)) => {
                word(text.trim(), &[("true", true), ("false", false)])
            }
            other => Err(format!("should be true or false, but is {}", other.shape())),
        }
    }

    /// A list of texts.
    pub(crate) fn list(&self) -> Result<Vec<String>, String> {
        match &self.value {
            Value::List(values) => values.iter().map(Value::member).collect(),
            Value::Text(text) if matches!(self.place, Place::Variable(_)) => {
                let members = text.split(',').map(|member| member.trim().to_owned());
                Ok(members.filter(|member| !member.is_empty()).collect())
            }
            other => Err(format!("should be a list, but is {}", other.shape())),
        }
    }

    /// A table of texts.
    pub(crate) fn table(&self) -> Result<Vec<(String, String)>, String> {
        match &self.value {
            Value::Table(pairs) => pairs
                .iter()
                .map(|(name, value)| Ok((name.clone(), value.member()?)))
                .collect(),
            Value::Text(_) if matches!(self.place, Place::Variable(_)) => self
                .list()?
                .iter()
                .map(|pair| match pair.split_once('=') {
                    Some((name, value)) => Ok((name.trim().to_owned(), value.trim().to_owned())),
                    None => Err(format!("{pair:?} should be written name=value")),
                })
                .collect(),
            other => Err(format!("should be a table, but is {}", other.shape())),
        }
    }

    /// A text that is one of `words`, and what it stands for.
    pub(crate) fn word<T: Copy>(&self, words: &[(&'static str, T)]) -> Result<T, String> {
        word(self.text()?, words)
    }
}

/// What `text` stands for among `words`.
pub(crate) fn word<T: Copy>(text: &str, words: &[(&'static str, T)]) -> Result<T, String> {
    if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*meaning);
    }
    let known: Vec<&'static str> = words.iter().map(|(word, _)| *word).collect();
    let hint = did_you_mean(text, &known);
    Err(format!("{text:?} is none of {}{hint}", known.join(", ")))
}

/// The word among `words` that stands for `value`.
pub(crate) fn spelled<T: PartialEq>(value: &T, words: &[(&'static str, T)]) -> &'static str {
    let word = words.iter().find(|(_, meaning)| meaning == value);
    word.expect("every value has its word").0
}

/// An absolute path.
pub(crate) fn path(entry: &Entry) -> Result<PathBuf, String> {
    let path = PathBuf::from(entry.text()?);
    match path.is_absolute() {
        true => Ok(path),
        false => Err(format!(
            "{} should be an absolute path: where a node is started from says nothing",
            path.display()
        )),
    }
}

impl Value {
    fn from_toml(value: DeValue<'_>) -> Value {
        match value {
            DeValue::String(text) => Value::Text(text.into_owned()),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or(Value::Other("a number beyond all sense"), Value::Integer),
            DeValue::Array(values) => {
                let values = values.into_iter();
                Value::List(values.map(|of| Value::from_toml(of.into_inner())).collect())
            }
            DeValue::Table(pairs) => {
                let pair = |(name, value): (Spanned<std::borrow::Cow<'_, str>>, Spanned<_>)| {
                    let name = name.into_inner().into_owned();
                    (name, Value::from_toml(value.into_inner()))
                };
                Value::Table(pairs.into_iter().map(pair).collect())
            }
            DeValue::Boolean(flag) => Value::Flag(flag),
            DeValue::Float(_) => Value::Other("a broken number"),
            DeValue::Datetime(_) => Value::Other("a date"),
        }
    }

    fn member(&self) -> Result<String, String> {
        match self {
            Value::Text(text) => Ok(text.clone()),
            other => Err(format!("should hold texts, but holds {}", other.shape())),
        }
    }

    fn shape(&self) -> String {
        match self {
            Value::Text(text) => format!("the text {text:?}"),
            Value::Integer(number) => format!("the number {number}"),
            Value::Flag(_) => "true or false".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Table(_) => "a table".to_owned(),
            Value::Other(what) => (*what).to_owned(),
        }
    }
}

/// ", did you mean …?", when something known is near.
fn did_you_mean(seen: &str, known: &[&'static str]) -> String {
    let near = known
        .iter()
        .map(|word| (strsim::damerau_levenshtein(seen, word), word))
        .min()
        .filter(|(distance, word)| *distance <= 1 + word.len() / 4);
    near.map_or(String::new(), |(_, word)| {
        format!(", did you mean {word:?}?")
    })
}
