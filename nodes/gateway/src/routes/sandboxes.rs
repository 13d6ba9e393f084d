//! Sandboxes: guests that keep their state.
//!
//! Owns: what a body means to a guest (a JSON array is numbers, anything else is bytes), and what a
//! guest's answer means to a caller. Never runs a guest: its owner does.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::{BufMut as _, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use understudy_control::handle::Answered;
use understudy_control::listing::LISTED_MAX;
use understudy_protocol::id::ChildId;
use understudy_protocol::wire::codec::CALL_BODY_BYTES_MAX;
use understudy_sandbox::sandbox::{About, KIND};

use super::{
    CALL_PATIENCE, CALL_PATIENCE_MAX, DURABLE, Gateway, NODE, Name, PageOf, Params, REFLECTS,
    TenantOf, Two, idempotency_key, json as read_json, limited, listed, name_of, whole,
    with_status,
};
use crate::problem::{Kind, Problem};
use crate::refusal::Refused;
use crate::{api, params, show};

pub(super) async fn create(
    State(gateway): State<Gateway>,
    Params(of): Params<TenantOf>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let key = idempotency_key(&headers)?;
    let new: api::NewSandbox = read_json(body, None).await?;
    gateway.formed()?;
    let tenant = of.tenant();
    let child = child(&tenant, &new.name)?;
    let module = gateway
        .latest
        .resolve(&gateway, &tenant, &new.module)
        .await?;
    let mut ask = json!({
        "op": "create",
        "module": module.to_string(),
        "policy": new.policy,
        "durability": new.durability,
    });
    if let Some(sha256) = new.sha256 {
        ask["sha256"] = sha256.into();
    }
    if let Some(limits) = new.limits {
        ask["limits"] = json!(limits);
    }
    let until = Instant::now() + CREATE_PATIENCE;
    let body = framed(&ask, &[]);
    let answered = gateway
        .ask(child.clone(), key, body, CREATE_PATIENCE)
        .await?;
    read(&answered.body)?;
    let left = until.saturating_duration_since(Instant::now());
    let sandbox = about(&gateway, child, left).await?;
    Ok(with_status(StatusCode::CREATED, sandbox))
}

pub(super) async fn list(
    State(gateway): State<Gateway>,
    Params(page): Params<PageOf>,
) -> Result<Json<api::Listing<api::ListedSandbox>>, Problem> {
    let children = listed(&gateway, Some(KIND.to_owned()), page, LISTED_MAX).await?;
    let view = gateway.handle.view();
    let items = children.items.iter().map(|listed| api::ListedSandbox {
        id: listed.child.key().to_owned(),
        tenant: listed.child.tenant().to_owned(),
        node: name_of(&view, listed.node),
        record: listed.seq.0,
    });
    let items = items.collect();
    Ok(Json(show::listing(&view, &children, items)))
}

pub(super) async fn inspect(
    State(gateway): State<Gateway>,
    Name(name): Name,
    Params(of): Params<TenantOf>,
) -> Result<Json<api::Sandbox>, Problem> {
    gateway.formed()?;
    let child = child(&of.tenant(), &name)?;
    about(&gateway, child, CREATE_PATIENCE).await.map(Json)
}

/// Whose guest, and how long a call of it may take.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CallOf {
    pub(super) tenant: Option<String>,
    pub(super) timeout: Option<String>,
}

pub(super) async fn call(
    State(gateway): State<Gateway>,
    Two([name, export]): Two,
    Params(of): Params<CallOf>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let tenant = of.tenant.as_deref().unwrap_or(params::TENANT);
    let child = child(tenant, &name)?;
    let key = idempotency_key(&headers)?;
    let patience = limited(of.timeout.as_deref(), CALL_PATIENCE, CALL_PATIENCE_MAX)?;
    let until = Instant::now() + patience;
    let args = args(&headers, body).await?;
    gateway.formed()?;
    let mut ask = json!({ "op": "call", "export": export });
    let raw = match args {
        Args::Numbers(numbers) => {
            ask["args"] = Value::Array(numbers);
            Bytes::new()
        }
        Args::Bytes(bytes) => bytes,
    };
    let body = framed(&ask, &raw);
    if body.len() > CALL_BODY_BYTES_MAX {
        return Err(Problem::new(Kind::TooLarge, "the call is too long").hint("send less"));
    }
    let left = until.saturating_duration_since(Instant::now());
    let answered = gateway.ask(child, key, body, left).await?;
    let said = read(&answered.body)?;
    Ok(response(&gateway, &answered, said))
}

async fn about(
    gateway: &Gateway,
    child: ChildId,
    patience: Duration,
) -> Result<api::Sandbox, Problem> {
    let (id, tenant) = (child.key().to_owned(), child.tenant().to_owned());
    let ask = framed(&json!({ "op": "about" }), &[]);
    let answered = gateway.ask(child, None, ask, patience).await?;
    let said = read(&answered.body).map_err(|problem| match problem.kind {
        Kind::NotFound => not_created(&tenant, &id),
        _ => problem,
    })?;
    let known = said.head.about.zip(said.head.memory_bytes);
    let (about, memory_bytes) = known.ok_or_else(|| strange("nothing of itself"))?;
    Ok(api::Sandbox {
        id,
        tenant,
        node: name_of(&gateway.handle.view(), answered.node),
        record: answered.reflects.0,
        about,
        memory_bytes,
    })
}

fn not_created(tenant: &str, id: &str) -> Problem {
    Problem::new(
        Kind::NotFound,
        format!("tenant `{tenant}` has no sandbox `{id}`"),
    )
    .hint(format!(
        "`understudy sandbox create {id} --module NAME@VERSION` makes it; `understudy sandbox list` \
         shows what there is"
    ))
}

/// What an export is called with.
pub(super) enum Args {
    Numbers(Vec<Value>),
    Bytes(Bytes),
}

pub(super) async fn args(headers: &HeaderMap, body: Body) -> Result<Args, Problem> {
    let body = whole(body, GUEST_BODY_MAX).await?;
    let content = headers.get(header::CONTENT_TYPE);
    let content = content.and_then(|content| content.to_str().ok());
    let content = content.and_then(|content| content.split(';').next());
    let is_json = content.is_some_and(|content| content.trim().eq_ignore_ascii_case(JSON));
    if !is_json || body.trim_ascii_start().first() != Some(&b'[') {
        return Ok(Args::Bytes(body));
    }
    let numbers = serde_json::from_slice(&body).map_err(|error| {
        Problem::new(
            Kind::Invalid,
            format!("the body is no JSON array: {error}"),
        )
        .hint("a JSON array holds the numbers that the export takes; what else is sent as it is needs another content type, such as application/octet-stream")
    })?;
    Ok(Args::Numbers(numbers))
}

/// What a guest's owner said.
struct Said {
    head: Head,
    raw: Bytes,
}

/// The line of JSON before the bytes of an answer.
#[derive(Deserialize)]
struct Head {
    ok: bool,
    results: Option<Vec<Value>>,
    error: Option<Refused>,
    log: Option<String>,
    #[serde(default)]
    denied: u32,
    about: Option<About>,
    memory_bytes: Option<u64>,
}

/// Reads an answer; a refusal is a problem.
fn read(answer: &Bytes) -> Result<Said, Problem> {
    let end = answer.iter().position(|byte| *byte == b'\n');
    let end = end.unwrap_or(answer.len());
    let head: Head = serde_json::from_slice(&answer[..end])
        .map_err(|error| strange(&format!("what this gateway does not understand: {error}")))?;
    match (head.ok, head.error) {
        (true, error) => Ok(Said {
            raw: answer.slice((end + 1).min(answer.len())..),
            head: Head { error, ..head },
        }),
        (false, Some(refused)) => {
            let mut problem = Problem::from(refused);
            if let Some(log) = head.log {
                problem = problem.with("log", log);
            }
            match head.denied {
                0 => Err(problem),
                denied => Err(problem.with("denied", denied)),
            }
        }
        (false, None) => Err(strange("that it failed, and not why")),
    }
}

fn strange(what: &str) -> Problem {
    Problem::new(Kind::Unavailable, format!("the guest's owner said {what}"))
        .hint("ask another node: this one may be older")
}

fn response(gateway: &Gateway, answered: &Answered, said: Said) -> Response {
    let mut response = outcome(said.head.results, said.raw, said.head.denied, said.head.log);
    let headers = response.headers_mut();
    headers.insert(REFLECTS, HeaderValue::from(answered.reflects.0));
    let durable = if answered.durable { "true" } else { "false" };
    headers.insert(DURABLE, HeaderValue::from_static(durable));
    let node = name_of(&gateway.handle.view(), answered.node);
    if let Ok(name) = HeaderValue::from_str(&node) {
        headers.insert(NODE, name);
    }
    response
}

/// A guest's answer: numbers as a JSON array, bytes as they are.
pub(super) fn outcome(
    results: Option<Vec<Value>>,
    raw: Bytes,
    denied: u32,
    log: Option<String>,
) -> Response {
    let (content, body) = match results {
        Some(results) => (JSON, Bytes::from(Value::Array(results).to_string())),
        None => ("application/octet-stream", raw),
    };
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content));
    if denied > 0 {
        headers.insert(DENIED, HeaderValue::from(denied));
    }
    if let Some(log) = log.as_deref().map(percent_encoded)
        && let Ok(log) = HeaderValue::from_str(&log)
    {
        headers.insert(LOG, log);
    }
    response
}

/// What a guest wrote, as a header can carry it: UTF-8, percent-encoded (RFC 3986, section 2.1), cut
/// where it gets long.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::new();
    for sign in text.chars() {
        if encoded.len() > LOG_HEADER_MAX {
            encoded.push_str("%E2%80%A6");
            break;
        }
        if sign.is_ascii_graphic() && sign != '%' {
            encoded.push(sign);
        } else {
            let mut bytes = [0; 4];
            for byte in sign.encode_utf8(&mut bytes).bytes() {
                encoded.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    encoded
}

fn framed(head: &Value, raw: &[u8]) -> Bytes {
    let head = head.to_string();
    let mut all = BytesMut::with_capacity(head.len() + 1 + raw.len());
    all.put_slice(head.as_bytes());
    all.put_u8(b'\n');
    all.put_slice(raw);
    all.freeze()
}

fn child(tenant: &str, name: &str) -> Result<ChildId, Problem> {
    params::light(tenant, KIND, name)
}

/// The longest body of a call of a guest: what a call carries, less its head.
pub const GUEST_BODY_MAX: usize = CALL_BODY_BYTES_MAX - HEAD_ROOM;

/// An export's name, and what stands around it.
const HEAD_ROOM: usize = 4 * 1024;

/// How long a sandbox may take to be there: a module is fetched and compiled, which takes seconds for a
/// large one.
const CREATE_PATIENCE: Duration = Duration::from_secs(30);

/// What a header carries of a guest's log. Clients take some tens of kilobytes of headers in all.
const LOG_HEADER_MAX: usize = 4 * 1024;

const JSON: &str = "application/json";

const DENIED: HeaderName = HeaderName::from_static("understudy-denied");
const LOG: HeaderName = HeaderName::from_static("understudy-log");
