//! Messages to a client, and the few that are read from the browser.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::filter::Refusal;

/// A message as it is written, in Chromium's order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Speech<'a, T: Serialize + ?Sized> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<&'a T>,
    #[serde(skip_serializing_if = "str::is_empty")]
    session_id: &'a str,
}

impl<'a> Speech<'a, RawValue> {
    pub(crate) fn result(id: i64, session: &'a str, result: &'a RawValue) -> Bytes {
        Speech {
            id: Some(id),
            result: Some(result),
            ..Speech::on(session)
        }
        .written()
    }

    pub(crate) fn error(id: i64, session: &'a str, error: &'a RawValue) -> Bytes {
        Speech {
            id: Some(id),
            error: Some(error),
            ..Speech::on(session)
        }
        .written()
    }

    pub(crate) fn event(method: &'a str, session: &'a str, params: &'a RawValue) -> Bytes {
        Speech {
            method: Some(method),
            params: Some(params),
            ..Speech::on(session)
        }
        .written()
    }
}

impl<'a> Speech<'a, Refusal> {
    pub(crate) fn refusal(id: Option<i64>, session: &'a str, refusal: &'a Refusal) -> Bytes {
        Speech {
            id,
            error: Some(refusal),
            ..Speech::on(session)
        }
        .written()
    }
}

impl<'a, T: Serialize + ?Sized> Speech<'a, T> {
    fn on(session: &'a str) -> Self {
        Speech {
            id: None,
            error: None,
            result: None,
            method: None,
            params: None,
            session_id: session,
        }
    }

    fn written(&self) -> Bytes {
        // Nothing in it can fail to be written.
        serde_json::to_vec(self).unwrap_or_default().into()
    }
}

/// What `Target.attachedToTarget` says.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AttachedTo<'a> {
    pub(crate) session_id: &'a str,
    pub(crate) target_info: &'a RawValue,
    pub(crate) waiting_for_debugger: bool,
}

/// The answer to `Target.getTargets`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Targets<'a> {
    pub(crate) target_infos: Vec<&'a RawValue>,
}

/// What `Target.targetCreated` says.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OneTarget<'a> {
    pub(crate) target_info: &'a RawValue,
}

/// A `TargetInfo`: what is read of it, and the whole.
pub(crate) struct Info<'a> {
    pub(crate) id: Cow<'a, str>,
    pub(crate) kind: Cow<'a, str>,
    pub(crate) context: Option<Cow<'a, str>>,
    pub(crate) raw: &'a RawValue,
}

/// The parameters of an event.
pub(crate) fn params(message: &[u8]) -> Option<&RawValue> {
    #[derive(Deserialize)]
    struct Event<'a> {
        #[serde(borrow)]
        params: &'a RawValue,
    }
    let event: Event<'_> = serde_json::from_slice(message).ok()?;
    Some(event.params)
}

/// The target that an event tells of in full.
pub(crate) fn info(params: &RawValue) -> Option<Info<'_>> {
    read_info(read::<About<'_>>(params)?.target_info?)
}

/// The target that an event names.
pub(crate) fn target_id(params: &RawValue) -> Option<Cow<'_, str>> {
    read::<About<'_>>(params)?.target_id
}

/// The session and the target of `Target.attachedToTarget`.
pub(crate) fn attached(message: &[u8]) -> Option<(Cow<'_, str>, Info<'_>)> {
    let about: About<'_> = read(params(message)?)?;
    Some((about.session_id?, read_info(about.target_info?)?))
}

/// Whether the target of `Target.attachedToTarget` stands still until it is let go.
pub(crate) fn is_waiting(message: &[u8]) -> bool {
    let about = params(message).and_then(read::<About<'_>>);
    about.is_some_and(|about| about.waiting_for_debugger)
}

/// The session of `Target.detachedFromTarget`.
pub(crate) fn detached(message: &[u8]) -> Option<Cow<'_, str>> {
    read::<About<'_>>(params(message)?)?.session_id
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct About<'a> {
    #[serde(borrow)]
    session_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    target_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    target_info: Option<&'a RawValue>,
    #[serde(default)]
    waiting_for_debugger: bool,
}

fn read_info(raw: &RawValue) -> Option<Info<'_>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Read<'a> {
        #[serde(borrow)]
        target_id: Cow<'a, str>,
        #[serde(borrow, rename = "type")]
        kind: Cow<'a, str>,
        #[serde(borrow)]
        browser_context_id: Option<Cow<'a, str>>,
    }
    let info: Read<'_> = read(raw)?;
    Some(Info {
        id: info.target_id,
        kind: info.kind,
        context: info.browser_context_id,
        raw,
    })
}

fn read<'a, T: Deserialize<'a>>(json: &'a RawValue) -> Option<T> {
    serde_json::from_str(json.get()).ok()
}

/// What was made here as JSON.
pub(crate) fn raw(value: &impl Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).unwrap_or_default()
}

/// `{}`.
pub(crate) fn empty() -> Box<RawValue> {
    raw(&serde_json::json!({}))
}
