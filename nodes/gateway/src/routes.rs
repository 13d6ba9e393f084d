//! The routes: a request becomes a question to the node, its answer becomes a response.
//!
//! Owns: paths, parameters and who may ask. Never decides anything that the directory does not decide
//! again: what is checked here is checked to say early, and in words, what would have been void.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, Path, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use understudy_control::handle::{Answered, CallError, Handle, View};
use understudy_control::listing::{Children, ChildrenOf, LISTED_MAX};
use understudy_protocol::id::{ChildId, NodeId};
use understudy_protocol::wire::codec::CALL_BODY_BYTES_MAX;
use understudy_protocol::wire::envelope::KEY_BYTES_MAX;

use crate::problem::{Kind, Problem, not_formed};
use crate::token::Token;
use crate::{api, events, params, show};

pub use functions::{Answering, FunctionAsk, RunFunctions};
pub use modules::MODULE_BYTES_MAX;
pub use sandboxes::GUEST_BODY_MAX;
pub use sessions::BROWSER_LABEL;

mod change;
mod functions;
mod modules;
mod sandboxes;
mod sessions;

/// What every route has at hand.
#[derive(Clone)]
pub(crate) struct Gateway {
    handle: Handle,
    functions: RunFunctions,
    token: Token,
    followers: Arc<Semaphore>,
    /// Places for clients of sessions: their connections are no longer the listener's.
    clients: Arc<Semaphore>,
    /// Places for modules that have to be read whole before they are sent on.
    buffers: Arc<Semaphore>,
    latest: modules::Latest,
    stop: watch::Receiver<bool>,
}

impl Gateway {
    pub(crate) fn new(
        handle: Handle,
        functions: RunFunctions,
        token: Token,
        stop: watch::Receiver<bool>,
    ) -> Gateway {
        Gateway {
            handle,
            functions,
            token,
            followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
            clients: Arc::new(Semaphore::new(CLIENTS_MAX)),
            buffers: Arc::new(Semaphore::new(BUFFERS_MAX)),
            latest: modules::Latest::default(),
            stop,
        }
    }

    /// What the node knows, once it belongs to a cluster.
    fn formed(&self) -> Result<Arc<View>, Problem> {
        let view = self.handle.view();
        if view.directory.is_formed() {
            Ok(view)
        } else {
            Err(not_formed())
        }
    }

    /// Calls a child. The node keeps the time; what is waited beyond it is for one that does not answer
    /// at all.
    async fn ask(
        &self,
        child: ChildId,
        key: Option<String>,
        body: Bytes,
        patience: Duration,
    ) -> Result<Answered, Problem> {
        let called = self.handle.call(child, key, body, patience);
        let answered = tokio::time::timeout(patience + CALL_GRACE, called).await;
        let late = || CallError::DeadlineExceeded {
            patience,
            maybe_done: true,
        };
        let answered = answered.unwrap_or_else(|_| Err(late()));
        answered.map_err(|error| {
            let is_late = matches!(error, CallError::DeadlineExceeded { .. });
            let problem = Problem::from(error);
            match self.handle.store_trouble().filter(|_| is_late) {
                Some(trouble) => problem.because_of_the_store(&trouble),
                None => problem,
            }
        })
    }
}

/// Everything that is served.
pub(crate) fn router(gateway: Gateway) -> Router {
    let guarded = Router::new()
        .route("/cluster", get(cluster))
        .route("/cluster/init", post(change::init))
        .route("/nodes", get(nodes))
        .route("/nodes/{node}", get(node))
        .route(
            "/nodes/{node}/drain",
            post(change::drain).delete(change::undrain),
        )
        .route("/units", get(units).post(change::create))
        .route("/units/{unit}", get(unit).delete(change::remove))
        .route("/units/{unit}/explain", get(explain))
        .route("/units/{unit}/move", post(change::move_to))
        .route("/tree", get(tree))
        .route("/events", get(follow))
        .route("/children", get(children))
        .route("/children/{tenant}/{kind}/{key}/call", post(call))
        .route("/modules", get(modules::list))
        .route("/modules/{name}", get(modules::versions))
        .route(
            "/modules/{name}/{version}",
            get(modules::inspect).put(modules::push),
        )
        .route("/sandboxes", get(sandboxes::list).post(sandboxes::create))
        .route("/sandboxes/{id}", get(sandboxes::inspect))
        .route("/sandboxes/{id}/call/{export}", post(sandboxes::call))
        .route("/functions/{name}/call/{export}", post(functions::call))
        .route("/sessions", get(sessions::list).post(sessions::create))
        .route(
            "/sessions/{id}",
            get(sessions::inspect).delete(sessions::release),
        )
        .route("/sessions/{id}/screenshot", get(sessions::screenshot))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(gateway.clone(), admit));
    // Clients of the browser's protocol, some of which can send no header.
    let clients = Router::new()
        .route("/v1/cdp", get(sessions::connect_fresh))
        .route("/v1/sessions/{id}/cdp", get(sessions::connect))
        .route("/v1/sessions/{id}/json/version", get(sessions::version))
        .route("/v1/sessions/{id}/json/version/", get(sessions::version))
        .route("/json/version", get(sessions::root_version))
        .route("/json/version/", get(sessions::root_version))
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(
            gateway.clone(),
            admit_client,
        ));
    Router::new()
        .merge(clients)
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .nest("/v1", guarded)
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .with_state(gateway)
}

async fn admit(State(gateway): State<Gateway>, request: Request, next: Next) -> Response {
    let header = request.headers().get(header::AUTHORIZATION);
    if gateway.token.admits(header) {
        return next.run(request).await;
    }
    Problem::new(Kind::Unauthenticated, "no valid token was sent")
        .hint("send `Authorization: Bearer TOKEN`; `understudy --token TOKEN` or UNDERSTUDY_TOKEN does")
        .into_response()
}

/// As [`admit`]; the token may also be a parameter, which is never logged.
async fn admit_client(State(gateway): State<Gateway>, request: Request, next: Next) -> Response {
    #[derive(Deserialize)]
    struct Given {
        token: Option<String>,
    }
    if request.headers().contains_key(header::AUTHORIZATION) {
        return admit(State(gateway), request, next).await;
    }
    let given = Query::<Given>::try_from_uri(request.uri());
    let token = given.ok().and_then(|Query(given)| given.token);
    if token.is_some_and(|token| gateway.token.is(token.as_bytes())) {
        return next.run(request).await;
    }
    Problem::new(Kind::Unauthenticated, "no valid token was sent")
        .hint("add `?token=TOKEN` to the address, or send `Authorization: Bearer TOKEN`")
        .into_response()
}

async fn no_route(request: Request) -> Problem {
    let mut path = request.uri().path().to_owned();
    path.truncate(path.floor_char_boundary(PATH_SHOWN_MAX));
    Problem::new(Kind::NotFound, format!("there is no route `{path}`"))
        .hint("routes begin with /v1: /v1/cluster, /v1/nodes, /v1/units, /v1/tree, /v1/events, /v1/children, \
               /v1/modules, /v1/sandboxes, /v1/functions, /v1/sessions")
}

async fn no_method(request: Request) -> Problem {
    Problem::new(
        Kind::MethodNotAllowed,
        format!("there is no {} here", request.method()),
    )
    .hint("GET asks, POST changes, PUT brings a module, DELETE takes back")
}

/// Whether the node can take part: it belongs to a cluster, is live in it, and knows who leads.
async fn ready(State(gateway): State<Gateway>) -> Result<&'static str, Problem> {
    let view = gateway.formed()?;
    let this = view.directory.nodes().get(&view.node);
    if this.and_then(|node| node.incarnation) != Some(view.incarnation) {
        return Err(Problem::new(
            Kind::Unavailable,
            "this start of the node is not registered",
        )
        .hint("it registers itself when a majority of voters is up"));
    }
    if view.leader.is_none() {
        return Err(Problem::new(
            Kind::Unavailable,
            "the node knows no leader of the directory",
        )
        .hint("one is elected when a majority of voters is up"));
    }
    if !lease_holds(&gateway.handle) {
        return Err(Problem::new(Kind::Unavailable, "the node has no lease")
            .hint("it gets one when a majority of voters answers it"));
    }
    Ok("ready\n")
}

async fn cluster(State(gateway): State<Gateway>) -> Json<api::Cluster> {
    Json(show::cluster(&gateway.handle.view()))
}

async fn nodes(State(gateway): State<Gateway>) -> Result<Json<api::List<api::Node>>, Problem> {
    let items = show::nodes(&*gateway.formed()?);
    Ok(Json(api::List { items, next: None }))
}

async fn node(
    State(gateway): State<Gateway>,
    Name(name): Name,
) -> Result<Json<api::Node>, Problem> {
    let view = gateway.formed()?;
    let id = params::node(&view, &name)?;
    show::node(&view, id).map(Json).ok_or_else(gone)
}

/// Which units to list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    kind: Option<String>,
    tenant: Option<String>,
    node: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

async fn units(
    State(gateway): State<Gateway>,
    Params(which): Params<Which>,
) -> Result<Json<api::List<api::Unit>>, Problem> {
    let view = gateway.formed()?;
    let node = which.node.as_deref();
    let node = node.map(|node| params::node(&view, node)).transpose()?;
    let limit = which.limit.unwrap_or(UNITS_PAGE).clamp(1, UNITS_PAGE);
    let after = match which.after.as_deref() {
        None => None,
        Some(text) => Some(cursor(text)?),
    };
    let entries = view.directory.units().iter();
    let mut found = entries
        .filter(|(id, _)| after.is_none_or(|after| **id > after))
        .filter(|(_, entry)| {
            node.is_none_or(|node| entry.owner.is_some_and(|owner| owner.node == node))
        })
        .filter(|(_, entry)| {
            let child = match &entry.scope {
                understudy_protocol::wire::replica::Scope::Child(child) => Some(child),
                _ => None,
            };
            let is = |wanted: &Option<String>, name: Option<&str>| {
                wanted.is_none() || wanted.as_deref() == name
            };
            is(&which.kind, child.map(|child| child.kind()))
                && is(&which.tenant, child.map(|child| child.tenant()))
        })
        .map(|(id, _)| *id);
    let page: Vec<_> = found.by_ref().take(limit).collect();
    let next = found.next().and(page.last()).map(ToString::to_string);
    let items = page.into_iter().filter_map(|id| show::unit(&view, id));
    Ok(Json(api::List {
        items: items.collect(),
        next,
    }))
}

async fn unit(
    State(gateway): State<Gateway>,
    Name(name): Name,
) -> Result<Json<api::Unit>, Problem> {
    let view = gateway.formed()?;
    let id = params::unit(&view, &name)?;
    show::unit(&view, id).map(Json).ok_or_else(gone)
}

async fn explain(
    State(gateway): State<Gateway>,
    Name(name): Name,
) -> Result<Json<api::Explained>, Problem> {
    let view = gateway.formed()?;
    let id = params::unit(&view, &name)?;
    show::explain(&view, id).map(Json).ok_or_else(gone)
}

async fn tree(State(gateway): State<Gateway>) -> Result<Json<api::Supervisor>, Problem> {
    let view = gateway.formed()?;
    show::tree(&view).map(Json).ok_or_else(gone)
}

/// From where to follow, and whether to wait for more.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct From {
    after: Option<String>,
    follow: Option<bool>,
}

async fn follow(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    Params(from): Params<From>,
) -> Result<Response, Problem> {
    let last = match headers.get(LAST_EVENT_ID) {
        Some(last) => Some(last.to_str().unwrap_or_default().to_owned()),
        None => from.after,
    };
    let after = events::after(last.as_deref(), gateway.handle.view().incarnation)?;
    let place = gateway.followers.clone().try_acquire_owned().map_err(|_| {
        Problem::new(
            Kind::Overloaded,
            format!("{FOLLOWERS_MAX} follow the events of this node already"),
        )
        .hint("follow another node, or end one of them")
    })?;
    let follow = from.follow.unwrap_or(true);
    Ok(events::respond(
        gateway.handle.clone(),
        after,
        follow,
        gateway.stop.clone(),
        place,
    ))
}

/// Which children to list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WhichChildren {
    kind: Option<String>,
    tenant: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

/// Which page of one kind's children.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PageOf {
    tenant: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

/// A page of children, asked of every node; `most` on one page.
async fn listed(
    gateway: &Gateway,
    kind: Option<String>,
    page: PageOf,
    most: usize,
) -> Result<Children, Problem> {
    gateway.formed()?;
    if let Some(after) = &page.after {
        params::child(after)?;
    }
    let of = ChildrenOf {
        tenant: page.tenant,
        kind,
        after: page.after,
        limit: page.limit.unwrap_or(most).clamp(1, most),
    };
    Ok(gateway.handle.children(of).await?)
}

async fn children(
    State(gateway): State<Gateway>,
    Params(which): Params<WhichChildren>,
) -> Result<Json<api::Listing<api::ListedChild>>, Problem> {
    let page = PageOf {
        tenant: which.tenant,
        after: which.after,
        limit: which.limit,
    };
    let children = listed(&gateway, which.kind, page, LISTED_MAX).await?;
    Ok(Json(show::children(&gateway.handle.view(), &children)))
}

/// How long a call may take.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Patience {
    timeout: Option<String>,
}

async fn call(
    State(gateway): State<Gateway>,
    Called([tenant, kind, key]): Called,
    Params(patience): Params<Patience>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let child = params::child(&format!("{tenant}/{kind}/{key}"))?;
    let patience = limited(
        patience.timeout.as_deref(),
        CALL_PATIENCE,
        CALL_PATIENCE_MAX,
    )?;
    let key = idempotency_key(&headers)?;
    let until = Instant::now() + patience;
    let body = whole(body, CALL_BODY_MAX)
        .await
        .map_err(|problem| match problem.kind {
            Kind::TooLarge => {
                problem.hint("put more under a name and send the name, or send it in several calls")
            }
            _ => problem,
        })?;
    gateway.formed()?;
    let left = until.saturating_duration_since(Instant::now());
    let answer = gateway.ask(child, key, body, left).await?;
    let view = gateway.handle.view();
    let mut response = answer.body.into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(REFLECTS, HeaderValue::from(answer.reflects.0));
    headers.insert(
        DURABLE,
        HeaderValue::from_static(if answer.durable { "true" } else { "false" }),
    );
    if let Ok(name) = HeaderValue::from_str(&name_of(&view, answer.node)) {
        headers.insert(NODE, name);
    }
    Ok(response)
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(key) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    let key = key.to_str().ok().filter(|key| {
        (1..=KEY_BYTES_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic())
    });
    key.map(|key| Some(key.to_owned())).ok_or_else(|| {
        Problem::new(
            Kind::Invalid,
            format!("an `Idempotency-Key` has 1 to {KEY_BYTES_MAX} visible ASCII characters"),
        )
        .hint("a UUID will do")
    })
}

/// The last path segment that names something, percent-encoding undone.
struct Name(String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Name, Problem> {
        let Path(name) = Path::from_request_parts(parts, state)
            .await
            .map_err(bad_path)?;
        Ok(Name(name))
    }
}

/// A child's three names.
struct Called([String; 3]);

impl<S: Send + Sync> FromRequestParts<S> for Called {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Called, Problem> {
        let Path((tenant, kind, key)) = Path::from_request_parts(parts, state)
            .await
            .map_err(bad_path)?;
        Ok(Called([tenant, kind, key]))
    }
}

/// Two names of a path.
struct Two([String; 2]);

impl<S: Send + Sync> FromRequestParts<S> for Two {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Two, Problem> {
        let Path((first, second)) = Path::from_request_parts(parts, state)
            .await
            .map_err(bad_path)?;
        Ok(Two([first, second]))
    }
}

/// Whose thing it is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TenantOf {
    tenant: Option<String>,
}

impl TenantOf {
    fn tenant(self) -> String {
        self.tenant.unwrap_or_else(|| params::TENANT.to_owned())
    }
}

/// The query.
struct Params<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Params<T>, Problem> {
        let read = Query::from_request_parts(parts, state).await;
        let Query(read) = read.map_err(|error| {
            Problem::new(Kind::Invalid, error.body_text())
                .hint("the parameter is not one of this route, or has another type")
        })?;
        Ok(Params(read))
    }
}

fn bad_path(error: axum::extract::rejection::PathRejection) -> Problem {
    Problem::new(Kind::Invalid, error.body_text())
        .hint("percent-encode what stands between two slashes as UTF-8")
}

/// Reads a JSON body; an empty one is `T`'s default where it has one.
async fn json<T: DeserializeOwned>(body: Body, empty: Option<T>) -> Result<T, Problem> {
    let body = whole(body, JSON_BODY_MAX).await?;
    if let (true, Some(empty)) = (body.is_empty(), empty) {
        return Ok(empty);
    }
    serde_json::from_slice(&body).map_err(|error| {
        Problem::new(
            Kind::Invalid,
            format!("the body is not as expected: {error}"),
        )
        .hint("send JSON with the fields of this route, and no others")
    })
}

/// The whole body, if it is short enough and comes soon enough.
async fn whole(body: Body, bytes_max: usize) -> Result<Bytes, Problem> {
    match tokio::time::timeout(BODY_PATIENCE, gather(body, bytes_max)).await {
        Ok(Ok(Some(body))) => Ok(body),
        Ok(Ok(None)) => Err(Problem::new(
            Kind::TooLarge,
            format!("a body here has at most {bytes_max} bytes"),
        )
        .hint("send less")),
        Ok(Err(_)) => {
            Err(Problem::new(Kind::Invalid, "the body ended early").hint("send all of it"))
        }
        Err(_) => Err(Problem::new(
            Kind::Invalid,
            format!("the body did not come within {BODY_PATIENCE:?}"),
        )
        .hint("send it at once")),
    }
}

/// The body; none when it is longer than `bytes_max`. Whoever sends a little too much is still heard
/// out: a connection that is closed under a writer takes the answer with it (RFC 9112, section 9.6).
async fn gather(body: Body, bytes_max: usize) -> Result<Option<Bytes>, axum::Error> {
    let mut chunks = body.into_data_stream();
    let mut kept = Vec::new();
    let mut seen = 0_usize;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        seen = seen.saturating_add(chunk.len());
        if seen <= bytes_max {
            kept.extend_from_slice(&chunk);
        } else if seen > bytes_max.saturating_add(HEARD_OUT_MAX) {
            return Ok(None);
        }
    }
    Ok((seen <= bytes_max).then(|| kept.into()))
}

/// What is read and thrown away of a body that is too long: enough for a mistake, not for a flood.
const HEARD_OUT_MAX: usize = 4 * 1024 * 1024;

fn limited(text: Option<&str>, usual: Duration, max: Duration) -> Result<Duration, Problem> {
    let span = text.map(params::span).transpose()?.unwrap_or(usual);
    if span.is_zero() || span > max {
        return Err(Problem::new(
            Kind::Invalid,
            format!(
                "{} is not above 0 and at most {}",
                params::span_text(span),
                params::span_text(max)
            ),
        )
        .hint("ask again with the same key when the time is over"));
    }
    Ok(span)
}

fn cursor(text: &str) -> Result<understudy_protocol::id::UnitId, Problem> {
    let hex = text.strip_prefix("unit-").unwrap_or(text);
    let id = u64::from_str_radix(hex, 16).map(understudy_protocol::id::UnitId);
    id.map_err(|_| {
        Problem::new(Kind::Invalid, "`after` is no id of a unit")
            .hint("send `next` of the page before")
    })
}

/// Removed between two looks at one view: cannot happen, and yet is no reason to panic.
fn gone() -> Problem {
    Problem::new(Kind::NotFound, "it is not there any more")
}

/// Whether the node's lease is valid at this moment of its own clock.
fn lease_holds(handle: &Handle) -> bool {
    handle.lease_until() > understudy_supervision::clock::now()
}

fn name_of(view: &View, node: NodeId) -> String {
    show::node_name(&view.directory, node)
}

fn with_status(status: StatusCode, body: impl serde::Serialize) -> Response {
    (status, Json(body)).into_response()
}

/// The longest body of a call to a child: what a node takes. A step that is longer than a record goes
/// into pieces.
pub const CALL_BODY_MAX: usize = CALL_BODY_BYTES_MAX;

/// The longest body of JSON: labels of a unit at their limits, with room.
const JSON_BODY_MAX: usize = 64 * 1024;

/// A body that is slower keeps a connection for nothing.
const BODY_PATIENCE: Duration = Duration::from_secs(10);

/// How long a call waits unless told otherwise: a failover with room.
const CALL_PATIENCE: Duration = Duration::from_secs(5);

/// How long a call may wait; a proxy's usual limit.
const CALL_PATIENCE_MAX: Duration = Duration::from_secs(60);

/// How much longer than the caller's own patience its node is waited for.
const CALL_GRACE: Duration = Duration::from_secs(1);

/// Clients of sessions at a time through one gateway: as many as tunnels to one peer. Each may hold a
/// message of 16 MiB.
const CLIENTS_MAX: usize = 512;

/// Followers of events at a time; each may be a thousand events behind.
const FOLLOWERS_MAX: usize = 64;

/// Modules at a time that come without their hash: each is held in memory, 32 MiB at most.
const BUFFERS_MAX: usize = 4;

/// Units of one page: a second's reading for a program, and half a megabyte.
const UNITS_PAGE: usize = 1_000;

/// How much of a wrong path is repeated.
const PATH_SHOWN_MAX: usize = 200;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REFLECTS: HeaderName = HeaderName::from_static("understudy-reflects");
const NODE: HeaderName = HeaderName::from_static("understudy-node");
const DURABLE: HeaderName = HeaderName::from_static("understudy-durable");
