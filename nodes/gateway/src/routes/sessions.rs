//! Sessions: browsers that keep their pages.
//!
//! Owns: how a session is made and named, and a client's connection to one, from its upgrade to its last
//! close frame. Never speaks the browser's protocol: what a client says goes to the session's node unread.
//!
//! ```text
//!   client ── WebSocket ── here ──┬─ attach: a call like any, answered by the session's node: a ticket
//!                                 └─ a tunnel to that node, the ticket first; then every message
//! ```
//!
//! The address of a session names no node, so it is the same before and after its node died. A client's
//! connection does not outlive that node: it is closed with 1012 (RFC 6455, "service restart") and a
//! reason, and the same address serves the restored pages.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, rejection};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use understudy_browser::session::{About, KIND};
use understudy_browser::tunnel::{
    self, End, Frame, HEARD_BYTES_MAX, Hello, RELEASED, SAID_BYTES_MAX,
};
use understudy_control::handle::{Answered, View};
use understudy_protocol::id::{ChildId, NodeId};
use understudy_protocol::wire::replica::Scope;
use understudy_transport::net::Tunnel;

use super::{
    Gateway, NODE, Name, Params, TenantOf, change, gone, json as read_json, limited, name_of,
    with_status,
};
use crate::problem::{Kind, Problem};
use crate::refusal::{Refused, of_code};
use crate::{api, params, show};

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
        ask(gateway, child.clone(), &open, until).await?;
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

/// Whose session, and a token for clients that cannot send a header.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CdpOf {
    tenant: Option<String>,
    token: Option<String>,
    timeout: Option<String>,
}

/// What clients of the browser's protocol look for before they connect.
pub(super) async fn version(
    State(gateway): State<Gateway>,
    Name(name): Name,
    Params(of): Params<CdpOf>,
    headers: HeaderMap,
) -> Result<Json<Value>, Problem> {
    let view = gateway.formed()?;
    let child = child(of.tenant.as_deref().unwrap_or(params::TENANT), &name)?;
    if view.directory.unit_of(&child).is_none() {
        return Err(no_session(&child));
    }
    Ok(Json(discovery(
        &address(&headers, &child),
        of.token.as_deref(),
    )))
}

/// The same at the root: which session is a parameter there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RootOf {
    session: Option<String>,
    tenant: Option<String>,
    token: Option<String>,
}

pub(super) async fn root_version(
    State(gateway): State<Gateway>,
    Params(of): Params<RootOf>,
    headers: HeaderMap,
) -> Result<Json<Value>, Problem> {
    let view = gateway.formed()?;
    let tenant = of.tenant.as_deref().unwrap_or(params::TENANT);
    let address = match &of.session {
        Some(name) => {
            let child = child(tenant, name)?;
            if view.directory.unit_of(&child).is_none() {
                return Err(no_session(&child));
            }
            address(&headers, &child)
        }
        // A session of its own for whoever connects there, and no longer than that.
        None => format!("ws://{}/v1/cdp?tenant={tenant}", host(&headers)),
    };
    Ok(Json(discovery(&address, of.token.as_deref())))
}

/// What `/json/version` answers: no browser is started to say it.
fn discovery(address: &str, token: Option<&str>) -> Value {
    let mut address = address.to_owned();
    if let Some(token) = token {
        // A client that has its token in the address connects with what it is told here.
        let encoded = form_encoded(token);
        address.push_str(&format!("&token={encoded}"));
    }
    json!({
        "Browser": concat!("Understudy/", env!("CARGO_PKG_VERSION")),
        "Protocol-Version": "1.3",
        "webSocketDebuggerUrl": address,
    })
}

pub(super) async fn connect(
    State(gateway): State<Gateway>,
    Name(name): Name,
    Params(of): Params<CdpOf>,
    upgrade: Result<WebSocketUpgrade, rejection::WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let upgrade = upgrade.map_err(no_upgrade)?;
    let view = gateway.formed()?;
    let child = child(of.tenant.as_deref().unwrap_or(params::TENANT), &name)?;
    if view.directory.unit_of(&child).is_none() {
        return Err(no_session(&child));
    }
    let patience = limited(of.timeout.as_deref(), OPEN_PATIENCE, OPEN_PATIENCE)?;
    let (tunnel, node) = attached(&gateway, &child, Instant::now() + patience).await?;
    Ok(bounded(upgrade).on_upgrade(move |socket| async move {
        if serve(&gateway, &child, socket, tunnel, node).await == Served::Released {
            forget(&gateway, &child).await;
        }
    }))
}

/// Whose, and a token.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FreshOf {
    tenant: Option<String>,
    #[allow(dead_code)] // read before the route is
    token: Option<String>,
}

/// A session that lives as long as the connection.
pub(super) async fn connect_fresh(
    State(gateway): State<Gateway>,
    Params(of): Params<FreshOf>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, rejection::WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let upgrade = upgrade.map_err(no_upgrade)?;
    let tenant = of.tenant.unwrap_or_else(|| params::TENANT.to_owned());
    let new = api::NewSession::default();
    let (_, session) = made(&gateway, &tenant, new, &headers).await?;
    let child = child(&tenant, &session.id)?;
    let (tunnel, node) = match attached(&gateway, &child, Instant::now() + OPEN_PATIENCE).await {
        Ok(attached) => attached,
        Err(problem) => {
            forget(&gateway, &child).await;
            return Err(problem);
        }
    };
    Ok(bounded(upgrade).on_upgrade(move |socket| async move {
        serve(&gateway, &child, socket, tunnel, node).await;
        forget(&gateway, &child).await;
    }))
}

/// Removes a session that nobody else knows of.
async fn forget(gateway: &Gateway, child: &ChildId) {
    let view = gateway.handle.view();
    if let Some(unit) = view.directory.unit_of(child)
        && let Err(problem) = change::removed(gateway, &view, unit).await
    {
        tracing::warn!(%child, why = problem.detail, "a session whose client has left was not removed");
    }
}

fn bounded(upgrade: WebSocketUpgrade) -> WebSocketUpgrade {
    // One byte more than is served, so that what is too long is told apart from what is broken.
    upgrade
        .max_message_size(SAID_BYTES_MAX + 1)
        .max_frame_size(SAID_BYTES_MAX + 1)
}

/// A stream to the node that runs the session, with somebody at its other end who serves it, and which
/// node that is.
async fn attached(
    gateway: &Gateway,
    child: &ChildId,
    until: Instant,
) -> Result<(Tunnel, NodeId), Problem> {
    let mut why = String::from("the session does not answer");
    while Instant::now() < until {
        let attach = json!({ "op": "attach" });
        let (answered, said) = ask(gateway, child.clone(), &attach, until).await?;
        let ticket = said.head.ticket.ok_or_else(|| strange("no ticket"))?;
        let hello = Hello {
            session: child.to_string(),
            ticket,
        };
        let opened = gateway
            .handle
            .open_tunnel(answered.node, hello.encode(), TUNNEL_PATIENCE);
        match opened.await {
            Ok(mut tunnel) => {
                let greeting = tunnel::read(&mut tunnel, GREETING_BYTES_MAX);
                match tokio::time::timeout(TUNNEL_PATIENCE, greeting).await {
                    Ok(Ok(Some(Frame::Text(_)))) => return Ok((tunnel, answered.node)),
                    Ok(Ok(Some(Frame::End(end)))) => why = end.reason,
                    Ok(Ok(None)) | Ok(Err(_)) | Err(_) => {
                        why = "its node did not answer".to_owned();
                    }
                }
            }
            Err(error) => why = error.to_string(),
        }
        // It moved between the two questions: the next answer is another node's.
        tokio::time::sleep(ATTACH_AGAIN).await;
    }
    Err(Problem::new(Kind::Unavailable, why).hint(format!(
        "connect again; `understudy unit explain {child}` says where it is"
    )))
}

/// Until the session belongs to another start than the one of `node` that has it now. A stream to a node
/// that was killed breaks seconds after the directory knows.
async fn moved(gateway: &Gateway, child: &ChildId, node: NodeId) -> Option<End> {
    let owner = |view: &View| {
        let unit = view.directory.unit_of(child)?;
        view.directory.unit(unit)?.owner
    };
    let handle = &gateway.handle;
    let here = |view: &View| owner(view).is_some_and(|owner| owner.node == node);
    // One that this node's directory does not show yet is known by its stream alone.
    let Some(view) = handle.wait_for(MOVED_PATIENCE, here).await else {
        return std::future::pending().await;
    };
    let had = owner(&view).map(|owner| owner.incarnation);
    loop {
        // A session that was released ends by its own word.
        let is_other =
            |view: &View| owner(view).is_some_and(|owner| Some(owner.incarnation) != had);
        if handle.wait_for(MOVED_PATIENCE, is_other).await.is_some() {
            return Some(end(1012, NODE_GONE));
        }
    }
}

/// Carries messages until one side is done, and closes the connection with the reason.
async fn serve(
    gateway: &Gateway,
    child: &ChildId,
    socket: WebSocket,
    tunnel: Tunnel,
    node: NodeId,
) -> Served {
    let mut stop: watch::Receiver<bool> = gateway.stop.clone();
    let (mut sink, mut stream) = socket.split();
    let (mut reader, mut writer) = tokio::io::split(tunnel);
    let hear = async {
        while let Some(message) = stream.next().await {
            let text = match message {
                Ok(Message::Text(text)) => Bytes::from(text),
                Ok(Message::Binary(_)) => return Some(end(1003, "messages are text")),
                Ok(Message::Ping(_) | Message::Pong(_)) => continue,
                Ok(Message::Close(_)) => return None,
                Err(_) => return Some(end(1009, TOO_LONG)),
            };
            if text.len() > SAID_BYTES_MAX {
                return Some(end(1009, TOO_LONG));
            }
            if tunnel::write(&mut writer, &Frame::Text(text))
                .await
                .is_err()
            {
                return Some(end(1012, NODE_GONE));
            }
        }
        None
    };
    let say = async {
        loop {
            match tunnel::read(&mut reader, HEARD_BYTES_MAX).await {
                Ok(Some(Frame::Text(text))) => {
                    let Ok(text) = Utf8Bytes::try_from(text) else {
                        return Some(end(1011, "the browser's answer is no UTF-8"));
                    };
                    if sink.send(Message::Text(text)).await.is_err() {
                        return None;
                    }
                }
                Ok(Some(Frame::End(end))) => return Some(end),
                Ok(None) | Err(_) => return Some(end(1012, NODE_GONE)),
            }
        }
    };
    let stopping = async {
        // An error means that the server is gone, which is as good.
        let _ = stop.wait_for(|stopping| *stopping).await;
        Some(end(1012, "this node stops; connect again, to any node"))
    };
    let end = tokio::select! {
        end = hear => end,
        end = say => end,
        end = stopping => end,
        end = moved(gateway, child, node) => end,
    };
    let released = end.as_ref().is_some_and(|end| end.code == RELEASED);
    if let Some(end) = end {
        let mut reason = end.reason;
        reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        let frame = CloseFrame {
            code: if released { 1000 } else { end.code },
            reason: reason.into(),
        };
        let close = sink.send(Message::Close(Some(frame)));
        // Whoever does not take it has left.
        let _ = tokio::time::timeout(CLOSE_PATIENCE, close).await;
    }
    match released {
        true => Served::Released,
        false => Served::Left,
    }
}

/// How a client's time ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Served {
    /// The session goes on.
    Left,
    /// It said that the session is over.
    Released,
}

fn end(code: u16, reason: &str) -> End {
    End {
        code,
        reason: reason.to_owned(),
    }
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
    let (id, tenant) = (child.key(), child.tenant());
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

fn no_upgrade(error: rejection::WebSocketUpgradeRejection) -> Problem {
    Problem::new(
        Kind::Invalid,
        format!("this address takes WebSocket clients: {error}"),
    )
    .hint("give it to `chromium.connectOverCDP` or `puppeteer.connect` as it is")
}

fn strange(what: &str) -> Problem {
    Problem::new(
        Kind::Unavailable,
        format!("the session's owner said {what}"),
    )
    .hint("ask another node: this one may be older")
}

/// `application/x-www-form-urlencoded` of what a token may hold.
fn form_encoded(token: &str) -> String {
    let mut encoded = String::new();
    for byte in token.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// What a node that has a browser is labelled with, by itself.
pub const BROWSER_LABEL: &str = "browser";

const NODE_GONE: &str = "the session's node is gone; connect again to the same address";
const TOO_LONG: &str = "a message has at most 16 MiB";

/// How long a session may take to be there: a failover, a browser's start, and its pages.
const OPEN_PATIENCE: Duration = Duration::from_secs(30);

/// How long a stream to another node may take.
const TUNNEL_PATIENCE: Duration = Duration::from_secs(5);

/// After which it is looked anew whether a session is elsewhere; a change is seen at once.
const MOVED_PATIENCE: Duration = Duration::from_secs(3600);

/// Before a session that has moved is asked again.
const ATTACH_AGAIN: Duration = Duration::from_millis(100);

/// How long a client may take for the last frame.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// What a close frame carries beside its code (RFC 6455, section 5.5).
const REASON_BYTES_MAX: usize = 123;

/// The first frame of a stream says yes or why not.
const GREETING_BYTES_MAX: usize = 4 << 10;

/// The longest id: what fits a label of a host's name.
const ID_BYTES_MAX: usize = 63;

/// Sessions of one page.
const SESSIONS_PAGE: usize = 1_000;
