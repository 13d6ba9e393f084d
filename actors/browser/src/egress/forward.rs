//! One request of the browser's: forwarded, tunnelled or refused.
//!
//! Owns: what of a request's and an answer's head goes on to the other side, and the pages that say
//! why nothing did. Never repeats a request, and never sends two over one connection: what one site
//! holds open is nobody else's, and a kept connection that closes at the wrong moment would have to
//! be asked again. It adds no `Via`: to a site this is the browser, wherever it runs.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::{Authority, Scheme, Uri};
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tracing::debug;
use understudy_protocol::workload::egress::denial;
use url::Host;

use super::policy::name_of;
use super::upstream::{ConnectError, Upstream, connect};
use super::{Opened, Session};

type Answer = Response<UnsyncBoxBody<Bytes, hyper::Error>>;

/// Why nothing was forwarded, for a person.
struct Refused {
    status: StatusCode,
    why: Cow<'static, str>,
}

impl Refused {
    fn new(status: StatusCode, why: impl Into<Cow<'static, str>>) -> Refused {
        let why = why.into();
        Refused { status, why }
    }
}

/// Answers one request; never fails, since whatever goes wrong is an answer.
pub(super) async fn answer(
    session: Arc<Session>,
    opened: Arc<Opened>,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let answered = match *request.method() {
        Method::CONNECT => tunnel(&session, &opened, request).await,
        _ => forward(&session, &opened, request).await,
    };
    Ok(answered.unwrap_or_else(page))
}

/// The answer to every request of a connection that has no place.
pub(super) fn full() -> Result<Answer, Infallible> {
    let why = "This session has too many connections open.\n";
    Ok(page(Refused::new(StatusCode::SERVICE_UNAVAILABLE, why)))
}

async fn tunnel(
    session: &Arc<Session>,
    opened: &Opened,
    mut request: Request<Incoming>,
) -> Result<Answer, Refused> {
    let (host, port) = target(request.uri().authority(), None)?;
    let mut upstream = open(session, &host, port).await?;
    let upgraded = hyper::upgrade::on(&mut request);
    let idle_limit = session.limits.idle;
    opened.spawn_tunnel(async move {
        let Ok(client) = upgraded.await else {
            return;
        };
        let mut client = TokioIo::new(client);
        let moved = upstream.moved();
        let ended = tokio::select! {
            ended = tokio::io::copy_bidirectional(&mut client, &mut upstream) => ended.map(|_| ()),
            () = moved.until_idle(idle_limit) => Ok(()),
        };
        if let Err(error) = ended {
            debug!(%error, "a tunnel was cut");
        }
    });
    Ok(Response::new(whole(Empty::new())))
}

async fn forward(
    session: &Arc<Session>,
    opened: &Opened,
    mut request: Request<Incoming>,
) -> Result<Answer, Refused> {
    let uri = request.uri();
    if uri.scheme() != Some(&Scheme::HTTP) {
        return Err(Refused::new(
            StatusCode::BAD_REQUEST,
            "This is a proxy: it takes `http://…` and CONNECT.\n",
        ));
    }
    let (host, port) = target(uri.authority(), Some(80))?;
    let asked_for = origin(uri)?;
    let upstream = open(session, &host, port).await?;

    remove_hop_by_hop(request.headers_mut());
    request.headers_mut().insert(header::HOST, asked_for.0);
    *request.uri_mut() = asked_for.1;
    *request.version_mut() = Version::HTTP_11;
    let mut response = exchange(session, opened, upstream, request).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let what = "The site changed the protocol, which nobody had asked for.\n";
        return Err(Refused::new(StatusCode::BAD_GATEWAY, what));
    }
    remove_hop_by_hop(response.headers_mut());
    *response.version_mut() = Version::HTTP_11;
    Ok(response.map(|body| body.boxed_unsync()))
}

/// Sends the request and waits for the head of the answer; the bodies flow on by themselves, as long
/// as the browser's connection lives.
async fn exchange(
    session: &Session,
    opened: &Opened,
    upstream: Upstream,
    request: Request<Incoming>,
) -> Result<Response<Incoming>, Refused> {
    let moved = upstream.moved();
    let handshake = http1::Builder::new()
        .preserve_header_case(true)
        .ignore_invalid_headers_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .max_headers(ANSWER_HEADERS_MAX)
        .max_buf_size(ANSWER_HEAD_BYTES_MAX)
        .handshake(TokioIo::new(upstream))
        .await;
    let (mut sender, connection) = handshake.map_err(|error| broken(session, &error))?;
    let idle_limit = session.limits.idle;
    opened.spawn(async move {
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                debug!(%error, "a site's connection ended early");
            },
            () = moved.until_idle(idle_limit) => {}
        }
    });
    let response = sender.send_request(request).await;
    response.map_err(|error| broken(session, &error))
}

async fn open(session: &Arc<Session>, host: &Host, port: u16) -> Result<Upstream, Refused> {
    connect(session, host, port).await.map_err(|error| {
        let name = name_of(host);
        let (status, why) = match error {
            ConnectError::NoLease => return no_lease(),
            ConnectError::Denied(why) => (StatusCode::FORBIDDEN, denial(&name, port, &why)),
            ConnectError::TimedOut => (
                StatusCode::GATEWAY_TIMEOUT,
                format!("{name} did not answer on port {port}.\n"),
            ),
            ConnectError::Unresolved(error) => (
                StatusCode::BAD_GATEWAY,
                format!("{name} has no address: {error}\n"),
            ),
            ConnectError::Failed(error) => (
                StatusCode::BAD_GATEWAY,
                format!("{name} is not reached on port {port}: {error}\n"),
            ),
        };
        Refused::new(status, why)
    })
}

fn broken(session: &Session, error: &hyper::Error) -> Refused {
    match session.may_write() {
        true => Refused::new(
            StatusCode::BAD_GATEWAY,
            format!("The site gave no answer: {error}\n"),
        ),
        false => no_lease(),
    }
}

/// Rule E3.
fn no_lease() -> Refused {
    Refused::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "This node may not act for the session now: its lease is over. The session goes on elsewhere.\n",
    )
}

/// Whom a request is for, as a browser reads it: `0x7f.1` is 127.0.0.1 (WHATWG URL, host parsing).
fn target(authority: Option<&Authority>, usual: Option<u16>) -> Result<(Host, u16), Refused> {
    let bad = |what| Refused::new(StatusCode::BAD_REQUEST, what);
    let authority = authority.ok_or_else(|| bad("The request names no host.\n"))?;
    if authority.as_str().contains('@') {
        return Err(bad("An address for a proxy holds no user.\n"));
    }
    let rest = authority.as_str().strip_prefix(authority.host());
    let port = match (rest, usual) {
        (Some("" | ":"), Some(usual)) => Some(usual),
        _ => authority.port_u16().filter(|port| *port > 0),
    };
    let port = port.ok_or_else(|| bad("The request names no port from 1 to 65535.\n"))?;
    let host = Host::parse(authority.host());
    let host = host.map_err(|_| bad("The request's host is neither a name nor an address.\n"))?;
    Ok((host, port))
}

/// The `Host` header and the target that the site itself sees (RFC 9112, section 3.2).
fn origin(uri: &Uri) -> Result<(HeaderValue, Uri), Refused> {
    let bad = || Refused::new(StatusCode::BAD_REQUEST, "The address is malformed.\n");
    let authority = uri.authority().map_or("", Authority::as_str);
    let host = HeaderValue::from_str(authority).map_err(|_| bad())?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let path = match path.starts_with('/') {
        true => path.parse(),
        false => format!("/{path}").parse(),
    };
    Ok((host, path.map_err(|_| bad())?))
}

/// Takes away what is meant for this hop alone (RFC 9110, section 7.6.1), and what is meant for the
/// proxy itself.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // Where a body ends is no option of a connection.
        .filter(|name| name != header::CONTENT_LENGTH && name != header::HOST)
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

fn page(refused: Refused) -> Answer {
    let mut response = Response::new(whole(Full::from(refused.why)));
    *response.status_mut() = refused.status;
    let headers = response.headers_mut();
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, plain);
    let no_store = HeaderValue::from_static("no-store");
    headers.insert(header::CACHE_CONTROL, no_store);
    // What is left of a refused request's body is not worth reading.
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn whole<B>(body: B) -> UnsyncBoxBody<Bytes, hyper::Error>
where
    B: hyper::body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    body.map_err(|never| match never {}).boxed_unsync()
}

const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "proxy-connection",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "proxy-authenticate",
    "proxy-authorization",
];

/// The longest head of an answer: what Chromium itself takes.
const ANSWER_HEAD_BYTES_MAX: usize = 256 * 1024;

/// Headers of one answer; a site that sets a cookie with each is still far below.
const ANSWER_HEADERS_MAX: usize = 256;
