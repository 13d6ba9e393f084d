//! Clients of sessions: how they find one, and their connection to it.
//!
//! Owns: what `/json/version` says, and a client's connection from its upgrade to its last close frame.
//! Never speaks the browser's protocol: what a client says goes to the session's node unread.
//!
//! ```text
//!   client ── WebSocket ── here ──┬─ attach: a call like any, answered by the session's node: a ticket
//!                                 └─ a tunnel to that node, the ticket first; then every message
//! ```
//!
//! The address of a session names no node, so it is the same before and after its node died. A client's
//! connection does not outlive that node: it is closed with 1012 (RFC 6455, "service restart") and a
//! reason, and the same address serves the restored pages.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, rejection};
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;

use understudy_browser::tunnel::{
    self, End, Frame, HEARD_BYTES_MAX, Hello, RELEASED, SAID_BYTES_MAX,
};
use understudy_control::handle::View;
use understudy_protocol::id::{ChildId, NodeId};
use understudy_transport::net::Tunnel;

use super::super::{CLIENTS_MAX, Gateway, Name, Params, change, limited};
use super::{OPEN_PATIENCE, address, ask, child, host, made, no_session, strange};
use crate::problem::{Kind, Problem};
use crate::{api, params};

/// Whose session, and a token for clients that cannot send a header.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::routes) struct CdpOf {
    tenant: Option<String>,
    token: Option<String>,
    timeout: Option<String>,
}

/// What clients of the browser's protocol look for before they connect.
pub(in crate::routes) async fn version(
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
pub(in crate::routes) struct RootOf {
    session: Option<String>,
    tenant: Option<String>,
    token: Option<String>,
}

pub(in crate::routes) async fn root_version(
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
        None => {
            let tenant = form_encoded(tenant);
            format!("ws://{}/v1/cdp?tenant={tenant}", host(&headers))
        }
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

pub(in crate::routes) async fn connect(
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
    let place = place(&gateway)?;
    let patience = limited(of.timeout.as_deref(), OPEN_PATIENCE, OPEN_PATIENCE)?;
    let (tunnel, node) = attached(&gateway, &child, Instant::now() + patience).await?;
    Ok(bounded(upgrade).on_upgrade(move |socket| async move {
        let _place = place;
        if serve(&gateway, &child, socket, tunnel, node).await == Served::Released {
            forget(&gateway, &child).await;
        }
    }))
}

/// Whose, and a token.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::routes) struct FreshOf {
    tenant: Option<String>,
    #[allow(dead_code)] // read before the route is
    token: Option<String>,
}

/// A session that lives as long as the connection.
pub(in crate::routes) async fn connect_fresh(
    State(gateway): State<Gateway>,
    Params(of): Params<FreshOf>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, rejection::WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let upgrade = upgrade.map_err(no_upgrade)?;
    let place = place(&gateway)?;
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
        let _place = place;
        serve(&gateway, &child, socket, tunnel, node).await;
        forget(&gateway, &child).await;
    }))
}

/// Room for one client more, as long as it is kept.
fn place(gateway: &Gateway) -> Result<OwnedSemaphorePermit, Problem> {
    gateway.clients.clone().try_acquire_owned().map_err(|_| {
        Problem::new(
            Kind::Overloaded,
            format!("{CLIENTS_MAX} clients of sessions are connected to this node already"),
        )
        .hint("connect to the same path at another node: every node serves every session")
    })
}

/// Removes a session that nobody else knows of.
pub(super) async fn forget(gateway: &Gateway, child: &ChildId) {
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

fn no_upgrade(error: rejection::WebSocketUpgradeRejection) -> Problem {
    Problem::new(
        Kind::Invalid,
        format!("this address takes WebSocket clients: {error}"),
    )
    .hint("give it to `chromium.connectOverCDP` or `puppeteer.connect` as it is")
}

/// `application/x-www-form-urlencoded` of what a token may hold.
pub(super) fn form_encoded(token: &str) -> String {
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

const NODE_GONE: &str = "the session's node is gone; connect again to the same address";
const TOO_LONG: &str = "a message has at most 16 MiB";

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
