//! Sessions: browsers that keep their pages.
//!
//! Owns: how a session is made, named, shown and ended. Its clients are [`clients`]' affair.

mod clients;

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use understudy_browser::session::{About, KIND};
use understudy_control::handle::{Answered, View};
use understudy_protocol::id::ChildId;
use understudy_protocol::wire::replica::Scope;

use super::{
    Gateway, NODE, Name, Params, TenantOf, change, gone, json as read_json, name_of, with_status,
};
use crate::problem::{Kind, Problem};
use crate::refusal::{Refused, of_code};
use crate::{api, params, show};

pub(super) use clients::{connect, connect_fresh, root_version, version};

pub(super) async fn create(
    State(gateway): State<Gateway>,
    Params(of): Params<TenantOf>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let new = read_json(body, Some(api::NewSession::default())).await?;
    let tenant = of.tenant();
    let (status, session) = made(&gateway, &tenant, new, &headers).await?;
    Ok(with_status(status, session))
}

async fn made(
    gateway: &Gateway,
    tenant: &str,
    new: api::NewSession,
    headers: &HeaderMap,
) -> Result<(StatusCode, api::Session), Problem> {
    let view = gateway.formed()?;
    let id = match new.id {
        Some(id) => id,
        None => random_id()?,
    };
    let child = child(tenant, &id)?;
    has_browsers(&view)?;
    let mut labels = new.labels;
    // Where no browser is, none is started.
    labels.entry(BROWSER_LABEL.to_owned()).or_insert(None);
    let unit = api::NewUnit {
        child: child.to_string(),
        restart: None,
        labels,
        node: new.node,
    };
    let until = Instant::now() + OPEN_PATIENCE;
    let (status, _) = change::made(gateway, &unit).await?;
    if let Some(url) = new.url {
        let open = json!({ "op": "open", "url": url });
        if let Err(problem) = ask(gateway, child.clone(), &open, until).await {
            // An address that is none never will be: what was made for it goes.
            if problem.kind == Kind::Invalid && status == StatusCode::CREATED {
                clients::forget(gateway, &child).await;
            }
            return Err(problem);
        }
    }
    let session = about(gateway, child, headers, until).await?;
    Ok((status, session))
}

/// Which sessions.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    tenant: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

pub(super) async fn list(
    State(gateway): State<Gateway>,
    Params(which): Params<Which>,
    headers: HeaderMap,
) -> Result<Json<api::Listing<api::ListedSession>>, Problem> {
    let view = gateway.formed()?;
    let limit = which.limit.unwrap_or(SESSIONS_PAGE).clamp(1, SESSIONS_PAGE);
    let sessions = view.directory.units().iter().filter_map(|(unit, entry)| {
        let Scope::Child(child) = &entry.scope else {
            return None;
        };
        let is_asked = child.kind() == KIND
            && which
                .tenant
                .as_deref()
                .is_none_or(|tenant| tenant == child.tenant());
        is_asked.then_some((child, *unit, entry))
    });
    // By tenant and name, which a cursor can say.
    let sessions: BTreeMap<_, _> = sessions
        .map(|(child, unit, entry)| ((child.tenant(), child.key()), (child, unit, entry)))
        .collect();
    let place = |child: &ChildId| format!("{}/{}", child.tenant(), child.key());
    let mut found = sessions.values().filter(|(child, _, _)| {
        which
            .after
            .as_ref()
            .is_none_or(|after| place(child) > *after)
    });
    let page: Vec<_> = found.by_ref().take(limit).collect();
    let next = found
        .next()
        .and(page.last())
        .map(|(child, _, _)| place(child));
    let items = page
        .into_iter()
        .map(|(child, unit, entry)| api::ListedSession {
            id: child.key().to_owned(),
            tenant: child.tenant().to_owned(),
            unit: unit.to_string(),
            node: entry.owner.map(|owner| name_of(&view, owner.node)),
            epoch: entry.epoch.0,
            serving: entry.owner.is_some_and(|owner| owner.serving),
            cdp: address(&headers, child),
        });
    Ok(Json(api::Listing {
        items: items.collect(),
        next,
        // The directory knows them all: nobody has to be asked.
        silent: Vec::new(),
    }))
}

pub(super) async fn inspect(
    State(gateway): State<Gateway>,
    Name(name): Name,
    Params(of): Params<TenantOf>,
    headers: HeaderMap,
) -> Result<Json<api::Session>, Problem> {
    gateway.formed()?;
    let child = child(&of.tenant(), &name)?;
    let until = Instant::now() + OPEN_PATIENCE;
    about(&gateway, child, &headers, until).await.map(Json)
}

pub(super) async fn release(
    State(gateway): State<Gateway>,
    Name(name): Name,
    Params(of): Params<TenantOf>,
) -> Result<Json<change::Removed>, Problem> {
    let view = gateway.formed()?;
    let child = child(&of.tenant(), &name)?;
    let unit = view.directory.unit_of(&child);
    let unit = unit.ok_or_else(|| no_session(&child))?;
    change::removed(&gateway, &view, unit).await.map(Json)
}

/// Of which page a picture is wanted, and how much of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Shot {
    tenant: Option<String>,
    page: Option<usize>,
    full: Option<bool>,
}

pub(super) async fn screenshot(
    State(gateway): State<Gateway>,
    Name(name): Name,
    Params(shot): Params<Shot>,
) -> Result<Response, Problem> {
    gateway.formed()?;
    let tenant = shot.tenant.as_deref().unwrap_or(params::TENANT);
    let child = child(tenant, &name)?;
    let page = shot.page.unwrap_or_default();
    let full = shot.full.unwrap_or_default();
    let take = json!({ "op": "screenshot", "page": page, "full": full });
    let until = Instant::now() + OPEN_PATIENCE;
    let (answered, said) = ask(&gateway, child, &take, until).await?;
    let mut response = said.raw.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("image/png"));
    // It is what the page looked like a moment ago.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let node = name_of(&gateway.handle.view(), answered.node);
    if let Ok(name) = HeaderValue::from_str(&node) {
        headers.insert(NODE, name);
    }
    Ok(response)
}

/// An answer of a session.
struct Said {
    head: Head,
    raw: Bytes,
}

#[derive(Deserialize)]
struct Head {
    ok: bool,
    error: Option<Refused>,
    about: Option<About>,
    ticket: Option<String>,
}

async fn ask(
    gateway: &Gateway,
    child: ChildId,
    ask: &Value,
    until: Instant,
) -> Result<(Answered, Said), Problem> {
    let left = until.saturating_duration_since(Instant::now());
    let body = Bytes::from(ask.to_string());
    let answered = gateway.ask(child.clone(), None, body, left).await;
    let answered = answered.map_err(|problem| match problem.kind {
        Kind::NotFound => no_session(&child),
        _ => problem,
    })?;
    let answer = &answered.body;
    let line = answer.iter().position(|byte| *byte == b'\n');
    let line = line.unwrap_or(answer.len());
    let head: Head = serde_json::from_slice(&answer[..line])
        .map_err(|error| strange(&format!("what this gateway does not understand: {error}")))?;
    match (head.ok, head.error) {
        (true, error) => {
            let raw = answer.slice((line + 1).min(answer.len())..);
            let head = Head { error, ..head };
            Ok((answered, Said { head, raw }))
        }
        (false, Some(refused)) => {
            let problem = of_code(&refused.code, refused.detail);
            Err(problem.hint(hint(&refused.code)))
        }
        (false, None) => Err(strange("that it failed, and not why")),
    }
}

/// What to do about a refusal of a session.
fn hint(code: &str) -> &'static str {
    match code {
        "not_found" => "`understudy session show ID` lists its pages",
        "invalid" => "pages are opened by `http:` and `https:` addresses",
        "quota_exceeded" => "ask for less of the page, or take the picture over the `cdp` address",
        "deadline_exceeded" => {
            "the page computes without end or shows a dialog: connect and close it"
        }
        _ => "try again; `understudy events` shows what its pages were refused",
    }
}

async fn about(
    gateway: &Gateway,
    child: ChildId,
    headers: &HeaderMap,
    until: Instant,
) -> Result<api::Session, Problem> {
    let (answered, said) = ask(gateway, child.clone(), &json!({ "op": "about" }), until).await?;
    let about = said
        .head
        .about
        .ok_or_else(|| strange("nothing of itself"))?;
    let view = gateway.handle.view();
    let unit = view.directory.unit_of(&child).ok_or_else(gone)?;
    Ok(api::Session {
        id: child.key().to_owned(),
        tenant: child.tenant().to_owned(),
        unit: unit.to_string(),
        node: show::node_name(&view.directory, answered.node),
        record: answered.reflects.0,
        cdp: address(headers, &child),
        about,
    })
}

/// Where a client connects to: the host that the request was sent to, which reaches this gateway.
fn address(headers: &HeaderMap, child: &ChildId) -> String {
    let (id, tenant) = (child.key(), clients::form_encoded(child.tenant()));
    format!(
        "ws://{}/v1/sessions/{id}/cdp?tenant={tenant}",
        host(headers)
    )
}

fn host(headers: &HeaderMap) -> &str {
    let host = headers.get(header::HOST);
    host.and_then(|host| host.to_str().ok())
        .unwrap_or("127.0.0.1")
}

fn child(tenant: &str, id: &str) -> Result<ChildId, Problem> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if id.is_empty() || id.len() > ID_BYTES_MAX || !id.chars().all(is_plain) {
        return Err(Problem::new(
            Kind::Invalid,
            format!(
                "a session's id has 1 to {ID_BYTES_MAX} letters, digits, dots, dashes and underscores"
            ),
        )
        .hint("leave it out to have one drawn, or take one such as `shop-42`"));
    }
    // The same rules for the tenant as anywhere.
    params::light(tenant, KIND, id)?;
    params::child(&format!("@{tenant}/{KIND}/{id}"))
}

fn random_id() -> Result<String, Problem> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| {
        Problem::new(Kind::Unavailable, format!("no id can be drawn: {error}"))
            .hint("send an `id` of your own")
    })?;
    let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("s-{hex}"))
}

/// Whether any node that lives has a browser.
fn has_browsers(view: &View) -> Result<(), Problem> {
    let mut nodes = view.directory.nodes().values();
    let has =
        nodes.any(|node| node.incarnation.is_some() && node.labels.contains_key(BROWSER_LABEL));
    if has {
        return Ok(());
    }
    Err(
        Problem::new(Kind::Unavailable, "no node that is up has a browser").hint(
            "install one on a node and start it again: `apt-get install chromium-headless-shell`, or name \
             yours with `[browser] binary`",
        ),
    )
}

fn no_session(child: &ChildId) -> Problem {
    Problem::new(
        Kind::NotFound,
        format!(
            "there is no session `{}` of `{}`",
            child.key(),
            child.tenant()
        ),
    )
    .hint("`understudy session list` shows them, `understudy session open` makes one")
}

fn strange(what: &str) -> Problem {
    Problem::new(
        Kind::Unavailable,
        format!("the session's owner said {what}"),
    )
    .hint("ask another node: this one may be older")
}

/// What a node that has a browser is labelled with, by itself.
pub const BROWSER_LABEL: &str = "browser";

/// How long a session may take to be there: a failover, a browser's start, and its pages.
const OPEN_PATIENCE: Duration = Duration::from_secs(30);

/// The longest id: what fits a label of a host's name.
const ID_BYTES_MAX: usize = 63;

/// Sessions of one page.
const SESSIONS_PAGE: usize = 1_000;
