//! A command's parameters, by name: looked at without being understood, and changed one by one.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::value::RawValue;

use super::Refusal;

/// See the module. No name occurs twice.
#[derive(Debug, Default)]
pub(super) struct Params<'a> {
    entries: Vec<(Cow<'a, str>, Cow<'a, RawValue>)>,
    is_changed: bool,
}

impl<'a> Params<'a> {
    pub(super) fn read(params: Option<&'a RawValue>) -> Result<Params<'a>, Refusal> {
        match params {
            Some(params) => serde_json::from_str(params.get())
                .map_err(|error| Refusal::invalid(&error.to_string())),
            None => Ok(Params::default()),
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub(super) fn is_string(&self, name: &str) -> bool {
        let value = self.get(name).map(RawValue::get);
        value.is_some_and(|value| value.starts_with('"'))
    }

    pub(super) fn string(&self, name: &str) -> Result<Option<String>, Refusal> {
        self.read_as(name)
    }

    /// The value of one, if it is there.
    pub(super) fn read_as<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Refusal> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let value = serde_json::from_str(value.get());
        value
            .map(Some)
            .map_err(|error| Refusal::invalid(&format!("{name}: {error}")))
    }

    pub(super) fn set(&mut self, name: &'static str, value: impl Serialize) {
        self.remove(name);
        // Strings, lists of them and truth values can all be written.
        if let Ok(value) = serde_json::value::to_raw_value(&value) {
            self.entries.push((Cow::Borrowed(name), Cow::Owned(value)));
        }
        self.is_changed = true;
    }

    pub(super) fn remove(&mut self, name: &str) {
        let before = self.entries.len();
        self.entries.retain(|(known, _)| known != name);
        self.is_changed |= self.entries.len() != before;
    }

    /// As they are to be sent, if they are not as they came.
    pub(super) fn changed(&self) -> Option<Box<RawValue>> {
        if !self.is_changed {
            return None;
        }
        serde_json::value::to_raw_value(self).ok()
    }

    fn get(&self, name: &str) -> Option<&RawValue> {
        let found = self.entries.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_ref())
    }
}

impl<'de> Deserialize<'de> for Params<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        #[derive(serde::Deserialize)]
        struct Name<'a>(#[serde(borrow)] Cow<'a, str>);
        impl<'de> Visitor<'de> for Entries {
            type Value = Params<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Params<'de>, M::Error> {
                let mut params = Params::default();
                while let Some((Name(name), value)) = map.next_entry::<Name<'de>, &RawValue>()? {
                    if params.entries.len() == PARAMS_MAX {
                        return Err(de::Error::custom("too many of them"));
                    }
                    if params.has(&name) {
                        return Err(de::Error::custom(format!("{name} occurs twice")));
                    }
                    params.entries.push((name, Cow::Borrowed(value)));
                }
                Ok(params)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl Serialize for Params<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.entries.len()))?;
        for (name, value) in &self.entries {
            map.serialize_entry(name, value.as_ref())?;
        }
        map.end()
    }
}

/// The protocol's longest list has some twenty.
const PARAMS_MAX: usize = 64;
