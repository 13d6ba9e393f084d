//! Modules: pushed, listed, looked at.
//!
//! Owns: a body of up to 32 MiB that becomes parts on its way to the module's child, of which never more
//! than one is held here (unless nobody said what hash it has); and which version a bare name means.
//! Never keeps a module: it is a child, and its bytes are its records.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::str::FromStr as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::body::{Body, BodyDataStream};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use serde::Deserialize;
use tokio::time::Instant;

use understudy_control::listing::{ChildrenOf, LISTED_MAX, Listed};
use understudy_protocol::id::ChildId;
use understudy_sandbox::module::{
    self, Answer, Ask, KIND, Module, ModuleHash, ModuleId, PART_BYTES_MAX, Stage, Told,
};
use understudy_sandbox::validate::Limits;

use super::{
    BODY_PATIENCE, Gateway, HEARD_OUT_MAX, Name, PageOf, Params, TenantOf, Two, listed, name_of,
    with_status,
};
use crate::problem::{Kind, Problem};
use crate::{api, params, show};

/// What a push may say beside its path.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PushOf {
    tenant: Option<String>,
    sha256: Option<String>,
}

pub(super) async fn push(
    State(gateway): State<Gateway>,
    Two([name, version]): Two,
    Params(of): Params<PushOf>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let id = ModuleId::new(&name, &version).map_err(bad_id)?;
    let tenant = of.tenant.unwrap_or_else(|| params::TENANT.to_owned());
    let child = child(&tenant, &id)?;
    let mut parts = Parts::of(body);
    let pushed = take(&gateway, &child, of.sha256.as_deref(), &headers, &mut parts).await;
    if pushed.is_err() {
        // Whoever is still writing reads the answer when it has written (RFC 9112, section 9.6).
        parts.hear_out().await;
    }
    let (told, was_there) = pushed?;
    let status = match was_there {
        true => StatusCode::OK,
        false => StatusCode::CREATED,
    };
    Ok(with_status(status, shown(&tenant, &id, None, told)))
}

/// Which modules to list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListOf {
    tenant: Option<String>,
    state: Option<StateOf>,
    after: Option<String>,
    limit: Option<usize>,
}

/// How far a module has to be. What is not said to be otherwise can be used, or may be: one whose owner
/// cannot be asked now is on every list.
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StateOf {
    #[default]
    Sealed,
    /// Parts of it are there.
    Uploading,
    /// A push was refused, and nothing is left of it.
    Empty,
    All,
}

impl StateOf {
    fn holds(self, module: &api::Module) -> bool {
        let wanted = match self {
            StateOf::Sealed => Stage::Sealed,
            StateOf::Uploading => Stage::Uploading,
            StateOf::Empty => Stage::Empty,
            StateOf::All => return true,
        };
        [state(wanted), UNKNOWN].contains(&&*module.state)
    }
}

pub(super) async fn list(
    State(gateway): State<Gateway>,
    Params(of): Params<ListOf>,
) -> Result<Json<api::Listing<api::Module>>, Problem> {
    let ListOf {
        tenant,
        state,
        after,
        limit,
    } = of;
    let page = PageOf {
        tenant,
        after,
        limit,
    };
    let children = listed(&gateway, Some(KIND.to_owned()), page, PAGE).await?;
    let mut items = asked(&gateway, children.items.clone()).await;
    items.retain(|module| state.unwrap_or_default().holds(module));
    let view = gateway.handle.view();
    Ok(Json(show::listing(&view, &children, items)))
}

/// The versions of one module, the newest first: a higher one comes before a lower one, and a release
/// before what was published ahead of it (<https://semver.org>, section 11).
pub(super) async fn versions(
    State(gateway): State<Gateway>,
    Name(name): Name,
    Params(of): Params<ListOf>,
) -> Result<Json<api::Listing<api::Module>>, Problem> {
    gateway.formed()?;
    let after = of.after.as_deref().map(|text| {
        let version = text.split_once('@').map_or(text, |(_, version)| version);
        ModuleId::new(&name, version).map_err(bad_id)
    });
    let after = after.transpose()?;
    let tenant = of.tenant.unwrap_or_else(|| params::TENANT.to_owned());
    let Versions { mut found, silent } = every_version(&gateway, &tenant, &name).await?;
    found.sort_by_cached_key(|listed| Reverse(id_of(listed)));
    if let Some(after) = &after {
        found.retain(|listed| id_of(listed).is_some_and(|id| id < *after));
    }
    let limit = of.limit.unwrap_or(PAGE).clamp(1, PAGE);
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(|last| last.child.key());
    let next = next.map(str::to_owned);
    let mut items = asked(&gateway, found).await;
    items.retain(|module| of.state.unwrap_or_default().holds(module));
    if items.is_empty() && next.is_none() && after.is_none() {
        return Err(no_version(&tenant, &name, &silent));
    }
    Ok(Json(api::Listing {
        items,
        next,
        silent,
    }))
}

/// Each says itself how far it is; one that cannot be asked now is there all the same.
async fn asked(gateway: &Gateway, listed: Vec<Listed>) -> Vec<api::Module> {
    let view = gateway.handle.view();
    let told = stream::iter(listed).map(|listed| async move {
        let child = &listed.child;
        // What is sealed says so without being checked again, and nothing else does.
        let len = Ask::Read { offset: 0, len: 0 };
        let told = match ask(gateway, child, &len, &[], LOOK_PATIENCE).await {
            Err(problem) if problem.kind == Kind::NotFound => {
                ask(gateway, child, &Ask::About {}, &[], LOOK_PATIENCE).await
            }
            told => told,
        };
        (listed, told.ok())
    });
    let told: Vec<_> = told.buffered(LOOKS).collect().await;
    let items = told.into_iter().filter_map(|(listed, told)| {
        let (id, node) = (id_of(&listed)?, name_of(&view, listed.node));
        Some(match told {
            Some(told) => shown(listed.child.tenant(), &id, Some(node), told),
            None => unknown(&node, &listed, &id),
        })
    });
    items.collect()
}

pub(super) async fn inspect(
    State(gateway): State<Gateway>,
    Two([name, version]): Two,
    Params(of): Params<TenantOf>,
) -> Result<Json<api::Module>, Problem> {
    gateway.formed()?;
    let id = ModuleId::new(&name, &version).map_err(bad_id)?;
    let tenant = of.tenant();
    let child = child(&tenant, &id)?;
    let body = module::encode(&Ask::About {}, &[]);
    let answered = gateway.ask(child, None, body, PART_PATIENCE).await?;
    let node = name_of(&gateway.handle.view(), answered.node);
    let told = told(&answered.body)?;
    match told.state {
        Stage::Empty => Err(none(&tenant, &id)),
        _ => Ok(Json(shown(&tenant, &id, Some(node), told))),
    }
}

/// Which version of a module a bare name means: the highest that is sealed, and of those one that is no
/// pre-release, if there is any. Asked again after [`LATEST_KEPT`], since a new one may have come.
#[derive(Clone, Default)]
pub(super) struct Latest(Arc<Mutex<Known>>);

/// By tenant and name: the version, and when that was found out.
type Known = HashMap<(String, String), (Instant, ModuleId)>;

impl Latest {
    /// The module that `text` means: `name@version`, or a bare name.
    pub(super) async fn resolve(
        &self,
        gateway: &Gateway,
        tenant: &str,
        text: &str,
    ) -> Result<ModuleId, Problem> {
        if text.contains('@') {
            let id = ModuleId::from_str(text).map_err(bad_id)?;
            // A tenant's name could lead to a child of another kind.
            return child(tenant, &id).map(|_| id);
        }
        let key = (tenant.to_owned(), text.to_owned());
        if let Some((at, id)) = self.lock().get(&key)
            && at.elapsed() < LATEST_KEPT
        {
            return Ok(id.clone());
        }
        let found = highest(gateway, tenant, text).await?;
        let mut latest = self.lock();
        if latest.len() >= LATEST_MAX {
            latest.clear();
        }
        latest.insert(key, (Instant::now(), found.clone()));
        Ok(found)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn highest(gateway: &Gateway, tenant: &str, name: &str) -> Result<ModuleId, Problem> {
    let Versions { found, silent } = every_version(gateway, tenant, name).await?;
    let mut versions: Vec<ModuleId> = found.iter().filter_map(id_of).collect();
    versions.sort_by_cached_key(|id| Reverse((id.version().pre.is_empty(), id.version().clone())));
    for id in versions {
        let len = Ask::Read { offset: 0, len: 0 };
        match ask(gateway, &child(tenant, &id)?, &len, &[], LOOK_PATIENCE).await {
            Ok(_) => return Ok(id),
            // It is being pushed.
            Err(problem) if problem.kind == Kind::NotFound => {}
            Err(problem) => return Err(problem),
        }
    }
    Err(no_version(tenant, name, &silent))
}

/// The versions of a module that somebody began to push, and the nodes that did not answer.
struct Versions {
    found: Vec<Listed>,
    silent: Vec<String>,
}

async fn every_version(gateway: &Gateway, tenant: &str, name: &str) -> Result<Versions, Problem> {
    // Any version will do to see whether the name is one.
    ModuleId::new(name, "0.0.0").map_err(bad_id)?;
    let begin = params::light(tenant, KIND, &format!("{name}@"))?;
    let (mut after, mut found, mut silent) = (begin.clone(), Vec::new(), BTreeSet::new());
    for _ in 0..VERSION_PAGES {
        let of = ChildrenOf {
            tenant: Some(tenant.to_owned()),
            kind: Some(KIND.to_owned()),
            after: Some(after.to_string()),
            limit: LISTED_MAX,
        };
        let page = gateway.handle.children(of).await?;
        silent.extend(page.silent);
        let is_one = |listed: &Listed| listed.child.as_str().starts_with(begin.as_str());
        let last = page.items.last().filter(|last| page.more && is_one(last));
        let next = last.map(|last| last.child.clone());
        found.extend(page.items.into_iter().filter(is_one));
        match next {
            Some(next) => after = next,
            None => break,
        }
    }
    let view = gateway.handle.view();
    let silent = silent.into_iter().map(|node| name_of(&view, node));
    let silent = silent.collect();
    Ok(Versions { found, silent })
}

fn no_version(tenant: &str, name: &str, silent: &[String]) -> Problem {
    if !silent.is_empty() {
        let silent = silent.join(", ");
        return Problem::new(
            Kind::Unavailable,
            format!("no module `{name}` is known, and {silent} did not answer"),
        )
        .hint("name its version: `NAME@VERSION` is asked for where it is");
    }
    Problem::new(
        Kind::NotFound,
        format!("tenant `{tenant}` has no module `{name}`"),
    )
    .hint("`understudy module list` shows what there is; `understudy module push FILE NAME@VERSION` adds one")
}

/// Sends a body to the module's child: what it then is, and whether it was so before.
async fn take(
    gateway: &Gateway,
    child: &ChildId,
    sha256: Option<&str>,
    headers: &HeaderMap,
    parts: &mut Parts,
) -> Result<(Told, bool), Problem> {
    gateway.formed()?;
    let wanted = hash(sha256, headers)?;
    let length = headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if let Some(length) = length.filter(|length| *length > MODULE_BYTES_MAX as u64) {
        return Err(too_large(length));
    }
    if let Some((sha256, bytes)) = wanted.zip(length) {
        return send(gateway, child, sha256, bytes, parts).await;
    }
    // Nobody has said what it is, so all of it is read first; only a few at a time.
    let place = gateway.buffers.clone().try_acquire_owned();
    let _place = place.map_err(|_| {
        Problem::new(Kind::Overloaded, "too many modules are pushed at a time")
            .hint("say its SHA-256 (`?sha256=`), and it need not be held here")
    })?;
    let whole = tokio::time::timeout(WHOLE_PATIENCE, parts.whole()).await;
    let wasm = whole.map_err(|_| {
        let detail = format!("the body did not come within {WHOLE_PATIENCE:?}");
        Problem::new(Kind::Invalid, detail)
            .hint("say its SHA-256 (`?sha256=`), and it may come as slowly as it does")
    })??;
    let module = tokio::task::spawn_blocking(move || Module::new(wasm)).await;
    let module = module.map_err(|_| Problem::new(Kind::Unavailable, "it could not be read"))?;
    if let Some(wanted) = wanted.filter(|wanted| *wanted != module.sha256()) {
        let found = module.sha256();
        let detail = format!("the bytes have the SHA-256 {found}, not {wanted}");
        return Err(Problem::new(Kind::Invalid, detail)
            .hint("push it again: the bytes changed on their way")
            .with("reason", "wrong_hash"));
    }
    let bytes = module.wasm().len() as u64;
    let mut parts = Parts::of(Body::from(module.wasm().clone()));
    send(gateway, child, module.sha256(), bytes, &mut parts).await
}

async fn send(
    gateway: &Gateway,
    child: &ChildId,
    sha256: ModuleHash,
    bytes: u64,
    parts: &mut Parts,
) -> Result<(Told, bool), Problem> {
    let mut told = sure(gateway, child, &Ask::Begin { sha256, bytes }, &[]).await?;
    let was_there = told.state == Stage::Sealed;
    let mut at = 0;
    while let Some(part) = parts.next().await? {
        let end = at + part.len() as u64;
        if end > bytes {
            return Err(
                Problem::new(Kind::Invalid, "the body is longer than it was said to be")
                    .hint("send all of the module, and nothing else"),
            );
        }
        // What came with an earlier push is there already.
        let new = told.received.clamp(at, end);
        if !was_there && new < end {
            let raw = part.slice((new - at) as usize..);
            let offset = new;
            told = sure(gateway, child, &Ask::Part { sha256, offset }, &raw).await?;
        }
        at = end;
    }
    if at < bytes {
        return Err(Problem::new(
            Kind::Invalid,
            format!("the body ended after {at} of {bytes} bytes"),
        )
        .hint("send it again: the push goes on where it ended"));
    }
    let told = sure(gateway, child, &Ask::Seal { sha256 }, &[]).await?;
    Ok((told, was_there))
}

/// Asks until there is an answer, which may be a refusal: a push that comes again changes nothing.
async fn sure(gateway: &Gateway, child: &ChildId, what: &Ask, raw: &[u8]) -> Result<Told, Problem> {
    let until = Instant::now() + PART_PATIENCE;
    let body = module::encode(what, raw);
    loop {
        let left = until.saturating_duration_since(Instant::now()).min(ONCE);
        let problem = match gateway.ask(child.clone(), None, body.clone(), left).await {
            Ok(answered) => return told(&answered.body),
            Err(problem) => problem,
        };
        let passes = matches!(
            problem.kind,
            Kind::Overloaded | Kind::Unavailable | Kind::DeadlineExceeded
        );
        let wait = problem.retry_after.unwrap_or(AGAIN).min(AGAIN);
        if !passes || Instant::now() + wait >= until {
            return Err(problem);
        }
        tokio::time::sleep(wait).await;
    }
}

async fn ask(
    gateway: &Gateway,
    child: &ChildId,
    what: &Ask,
    raw: &[u8],
    patience: Duration,
) -> Result<Told, Problem> {
    let body = module::encode(what, raw);
    let answered = gateway.ask(child.clone(), None, body, patience).await?;
    told(&answered.body)
}

fn told(answer: &Bytes) -> Result<Told, Problem> {
    match module::decode(answer) {
        Ok((Answer::Ok(told), _)) => Ok(told),
        Ok((Answer::Error(refusal), _)) => Err(refusal.into()),
        Err(why) => Err(Problem::new(
            Kind::Unavailable,
            format!("the module's owner said what this gateway does not understand: {why}"),
        )
        .hint("ask another node: this one may be older")),
    }
}

/// A body in pieces of at most [`PART_BYTES_MAX`].
struct Parts {
    body: BodyDataStream,
    held: BytesMut,
    seen: usize,
    ended: bool,
}

impl Parts {
    fn of(body: Body) -> Parts {
        Parts {
            body: body.into_data_stream(),
            held: BytesMut::new(),
            seen: 0,
            ended: false,
        }
    }

    /// The next piece; each full but the last.
    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        while self.held.len() < PART_BYTES_MAX && !self.ended {
            let Some(chunk) = self.chunk().await? else {
                break;
            };
            if self.seen > MODULE_BYTES_MAX {
                return Err(too_large(self.seen as u64));
            }
            self.held.extend_from_slice(&chunk);
        }
        let part = self.held.split_to(self.held.len().min(PART_BYTES_MAX));
        Ok((!part.is_empty()).then(|| part.freeze()))
    }

    async fn whole(&mut self) -> Result<Bytes, Problem> {
        let mut whole = BytesMut::new();
        while let Some(part) = self.next().await? {
            whole.extend_from_slice(&part);
        }
        Ok(whole.freeze())
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, Problem> {
        let chunk = tokio::time::timeout(BODY_PATIENCE, self.body.next()).await;
        let chunk = chunk.map_err(|_| {
            self.ended = true;
            Problem::new(
                Kind::Invalid,
                format!("no more of the body came for {BODY_PATIENCE:?}"),
            )
            .hint("send it again: the push goes on where it ended")
        })?;
        match chunk {
            Some(Ok(chunk)) => {
                self.seen = self.seen.saturating_add(chunk.len());
                Ok(Some(chunk))
            }
            Some(Err(_)) => {
                self.ended = true;
                Err(Problem::new(Kind::Invalid, "the body ended early")
                    .hint("send it again: the push goes on where it ended"))
            }
            None => {
                self.ended = true;
                Ok(None)
            }
        }
    }

    /// Reads what is left and throws it away, as far as that is reasonable.
    async fn hear_out(&mut self) {
        while !self.ended && self.seen <= MODULE_BYTES_MAX + HEARD_OUT_MAX {
            if !matches!(self.chunk().await, Ok(Some(_))) {
                return;
            }
        }
    }
}

/// The hash that the caller says, as `?sha256=` in hexadecimal or in a `Digest` or `Content-Digest`
/// header in base64 (RFC 3230, RFC 9530).
fn hash(query: Option<&str>, headers: &HeaderMap) -> Result<Option<ModuleHash>, Problem> {
    let bad = |what: &str| {
        Problem::new(Kind::Invalid, format!("{what} is no SHA-256"))
            .hint("`?sha256=` takes 64 hexadecimal digits, `Digest: sha-256=` takes base64")
    };
    let named = query.map(|text| text.parse::<ModuleHash>().map_err(|_| bad("`sha256`")));
    let named = named.transpose()?;
    let mut digest = None;
    for name in ["digest", "content-digest"] {
        let Some(value) = headers.get(name) else {
            continue;
        };
        let value = value.to_str().map_err(|_| bad(name))?;
        for item in value.split(',') {
            let Some((algorithm, text)) = item.trim().split_once('=') else {
                continue;
            };
            if algorithm.eq_ignore_ascii_case("sha-256") {
                let text = text.trim_matches(':');
                digest = Some(ModuleHash(base64(text).ok_or_else(|| bad(name))?));
            }
        }
    }
    match (named, digest) {
        (Some(named), Some(digest)) if named != digest => Err(Problem::new(
            Kind::Invalid,
            "`?sha256=` and the header say different hashes",
        )
        .hint("one of them will do")),
        (named, digest) => Ok(named.or(digest)),
    }
}

/// Thirty-two bytes in base64 (RFC 4648, section 4), padded or not.
fn base64(text: &str) -> Option<[u8; 32]> {
    let text = text.trim_end_matches('=');
    let (mut bytes, mut held, mut bits) = (Vec::with_capacity(33), 0_u32, 0);
    if text.len() != 43 {
        return None;
    }
    for sign in text.bytes() {
        let value = match sign {
            b'A'..=b'Z' => sign - b'A',
            b'a'..=b'z' => sign - b'a' + 26,
            b'0'..=b'9' => sign - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        held = held << 6 | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits) as u8);
        }
    }
    bytes.try_into().ok()
}

fn shown(tenant: &str, id: &ModuleId, node: Option<String>, told: Told) -> api::Module {
    api::Module {
        id: id.to_string(),
        tenant: tenant.to_owned(),
        name: id.name().to_owned(),
        version: id.version().to_string(),
        state: state(told.state).to_owned(),
        node,
        sha256: told.sha256.map(|sha256| sha256.to_string()),
        bytes: told.sha256.map(|_| told.bytes),
        received: told.sha256.map(|_| told.received),
        about: told.about,
    }
}

fn state(stage: Stage) -> &'static str {
    match stage {
        Stage::Empty => "empty",
        Stage::Uploading => "uploading",
        Stage::Sealed => "sealed",
    }
}

/// One that could not be asked.
fn unknown(node: &str, listed: &Listed, id: &ModuleId) -> api::Module {
    api::Module {
        id: id.to_string(),
        tenant: listed.child.tenant().to_owned(),
        name: id.name().to_owned(),
        version: id.version().to_string(),
        state: UNKNOWN.to_owned(),
        node: Some(node.to_owned()),
        sha256: None,
        bytes: None,
        received: None,
        about: None,
    }
}

fn id_of(listed: &Listed) -> Option<ModuleId> {
    ModuleId::from_str(listed.child.key()).ok()
}

fn child(tenant: &str, id: &ModuleId) -> Result<ChildId, Problem> {
    params::light(tenant, KIND, &id.to_string())
}

fn bad_id(error: module::ModuleIdError) -> Problem {
    Problem::new(Kind::Invalid, error.to_string())
        .hint("write `NAME@VERSION`, as in `hash@1.2.0`; in a path, `NAME/VERSION`")
}

fn none(tenant: &str, id: &ModuleId) -> Problem {
    Problem::new(
        Kind::NotFound,
        format!("tenant `{tenant}` has no module {id}"),
    )
    .hint(format!(
        "`understudy module push FILE {id}` adds it; `understudy module list` shows what there is"
    ))
}

fn too_large(bytes: u64) -> Problem {
    Problem::new(
        Kind::TooLarge,
        format!("a module has at most {MODULE_BYTES_MAX} bytes, and this one has {bytes} or more"),
    )
    .hint("strip it (`wasm-strip`, `-s`), or split it")
}

/// The state of a module whose owner did not answer.
const UNKNOWN: &str = "unknown";

/// How many pages of one module's versions are read: ten thousand versions.
const VERSION_PAGES: usize = 10;

/// The longest module.
pub const MODULE_BYTES_MAX: usize = Limits::NODE.bytes;

/// How long a body may take that is held here while it comes: its place is kept from others.
const WHOLE_PATIENCE: Duration = Duration::from_secs(120);

/// How long one part may take to be on every replica, a failover of the module's owner included.
const PART_PATIENCE: Duration = Duration::from_secs(30);

/// How long one question takes at most before it is asked again.
const ONCE: Duration = Duration::from_secs(10);

/// Before it is asked again.
const AGAIN: Duration = Duration::from_millis(250);

/// How long a module may take to say how far it is, for a list.
const LOOK_PATIENCE: Duration = Duration::from_secs(2);

/// How many are asked at a time.
const LOOKS: usize = 8;

/// Modules on one page: each is asked.
const PAGE: usize = 100;

/// How long a bare name means the same version: a new one is taken up within this time.
const LATEST_KEPT: Duration = Duration::from_secs(2);

/// Bare names remembered.
const LATEST_MAX: usize = 1_000;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        headers
    }

    #[test]
    fn a_hash_is_said_in_the_query_or_in_a_header() {
        // Of "".
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let base64 = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        let none = HeaderMap::new();
        let expected = Some(ModuleHash::of(b""));
        let check = |query, headers: &HeaderMap| hash(query, headers).unwrap();
        assert_eq!(check(Some(hex), &none), expected);
        for (name, value) in [
            ("digest", format!("SHA-256={base64}")),
            ("digest", format!("md5=abc, sha-256={base64}")),
            ("content-digest", format!("sha-256=:{base64}:")),
        ] {
            assert_eq!(check(None, &headers(name, &value)), expected, "{value}");
        }
        assert_eq!(check(None, &none), None);
        assert_eq!(check(None, &headers("digest", "md5=abc")), None);
    }

    #[test]
    fn a_hash_that_is_none_or_contradicts_is_refused() {
        let hex = "00".repeat(32);
        let base64 = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        let none = HeaderMap::new();
        for (query, headers) in [
            (Some("abc"), none.clone()),
            (Some(&*"g".repeat(64)), none.clone()),
            (None, headers("digest", "sha-256=abc")),
            (
                None,
                headers("digest", &format!("sha-256=!{}", &base64[1..])),
            ),
            (Some(&*hex), headers("digest", &format!("sha-256={base64}"))),
        ] {
            let refused = hash(query, &headers).unwrap_err();
            assert_eq!(refused.kind, Kind::Invalid);
            assert!(refused.hint.is_some());
        }
    }
}
