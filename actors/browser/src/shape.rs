//! What the browser says, as far as more than one part of this crate reads it.
//!
//! Owns: shapes of the protocol's messages. Never keeps any.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::cdp::Event;

/// What came with an event; `None` if it is not of that shape.
pub(crate) fn params<T: DeserializeOwned>(event: &Event) -> Option<T> {
    #[derive(Deserialize)]
    struct Message<T> {
        params: T,
    }
    let message = serde_json::from_slice::<Message<T>>(&event.raw);
    message.ok().map(|message| message.params)
}

/// A session that began, or ended.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Attachment {
    pub(crate) session_id: String,
}

/// `Page.createIsolatedWorld`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct World {
    pub(crate) execution_context_id: i64,
}
