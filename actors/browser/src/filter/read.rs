//! A client's message: what of it is read.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{INVALID_REQUEST, PARSE_ERROR, Refusal};

/// One command.
#[derive(Debug)]
pub struct Command<'a> {
    /// The client's own number for it.
    pub id: i64,
    /// Such as `Page.navigate`.
    pub method: Cow<'a, str>,
    /// The session that it is meant for; `None` for the client's root.
    pub session: Option<Cow<'a, str>>,
    /// An object, not too deep for the browser's own reader.
    pub params: Option<&'a RawValue>,
}

/// A message that is no command, and the answer to it.
#[derive(Debug, PartialEq, Eq)]
pub struct Bad {
    /// Its number, as far as it has one.
    pub id: Option<i64>,
    /// What is wrong.
    pub refusal: Refusal,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<&'a RawValue>,
    #[serde(borrow)]
    session_id: Option<&'a RawValue>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

/// Reads a message.
///
/// # Errors
/// It is none. The line is as good as before.
pub fn read(message: &[u8]) -> Result<Command<'_>, Bad> {
    let bad = |id, code, why: &str| Bad {
        id,
        refusal: Refusal::new(code, why),
    };
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(bad(None, INVALID_REQUEST, "Message is above 16 MiB"));
    }
    if first(message) != Some(b'{') && serde_json::from_slice::<&RawValue>(message).is_ok() {
        return Err(bad(None, INVALID_REQUEST, "Message must be an object"));
    }
    let head: Head<'_> = serde_json::from_slice(message).map_err(|error| {
        let code = match error.classify() {
            serde_json::error::Category::Data => INVALID_REQUEST,
            _ => PARSE_ERROR,
        };
        bad(None, code, &format!("JSON: {error}"))
    })?;
    let id = head.id.and_then(|id| serde_json::from_str(id.get()).ok());
    let invalid = |why| bad(id, INVALID_REQUEST, why);
    let Some(number) = id else {
        return Err(invalid("Message must have integer 'id' property"));
    };
    let method = head.method.and_then(text);
    let method = method.ok_or_else(|| invalid("Message must have string 'method' property"))?;
    let session = match head.session_id {
        None => None,
        Some(session) => {
            let session = text(session);
            Some(session.ok_or_else(|| invalid("Message may have string 'sessionId' property"))?)
        }
    };
    if let Some(params) = head.params {
        if first(params.get().as_bytes()) != Some(b'{') {
            return Err(invalid("Message may have object 'params' property"));
        }
        if depth(params.get().as_bytes()) > DEPTH_MAX {
            return Err(bad(id, PARSE_ERROR, "JSON: stack limit exceeded"));
        }
    }
    Ok(Command {
        id: number,
        method,
        session,
        params: head.params,
    })
}

/// The first byte that is no blank.
fn first(json: &[u8]) -> Option<u8> {
    json.iter()
        .copied()
        .find(|byte| !byte.is_ascii_whitespace())
}

fn text(json: &RawValue) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    let text: Text<'_> = serde_json::from_str(json.get()).ok()?;
    Some(text.0)
}

/// How many brackets are open at once in what is known to be JSON.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut is_text, mut is_escaped) = (false, false);
    for byte in json {
        match (is_text, byte) {
            (true, _) if is_escaped => is_escaped = false,
            (true, b'\\') => is_escaped = true,
            (_, b'"') => is_text = !is_text,
            (false, b'{' | b'[') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// The longest message of a client. The largest that clients send are files for upload and bodies of
/// intercepted requests, in base64.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Chromium's reader gives up at 300 and then answers without the command's number, so that nobody
/// would hear of it. What clients send has a dozen levels.
pub(super) const DEPTH_MAX: usize = 128;
