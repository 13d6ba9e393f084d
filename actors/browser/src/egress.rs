//! The way out of a session: one small HTTP proxy for each.
//!
//! Owns: a listener on the loopback for one session (so the port says who asks), its connections, and
//! their ends. A page's `http:` requests are forwarded one by one; everything else (`https:`, `ws:`,
//! `wss:`) is a tunnel that the browser asks for with `CONNECT` (RFC 9110, section 9.3.6). Never
//! opens a connection that [`EgressPolicy`] refuses, and never lets a byte out when the node's lease
//! no longer covers the session (rule E3): that is asked before every single write.
//!
//! ```text
//!   Chromium ── GET http://host/… ─┐
//!            ── CONNECT host:443 ──┤ forward ── policy: resolve once, judge ── upstream ══▶ site
//!                                  │   └ 4xx, 403 + Denied, 503: no lease         │
//!                                  │                                permit? before each write
//! ```
//!
//! Nobody logs in to the proxy: whoever may open loopback ports of this machine could use it, under
//! the same rules as the session. Sessions cannot use each other's: the policy knows their ports.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use understudy_protocol::time::Time;
use understudy_protocol::workload::egress::EgressRefused;
use understudy_supervision::clock;

mod forward;
mod policy;
#[cfg(test)]
mod tests;
mod upstream;

pub use policy::{EgressPolicy, Resolved, Resolver, SystemResolver};

/// Whether the node's lease is valid for the session now.
pub type Permit = Arc<dyn Fn() -> bool + Send + Sync>;

/// Hears what a session was refused. Called from the proxy's tasks: it must not block.
pub type Denials = Arc<dyn Fn(Denied) + Send + Sync>;

/// Something that a page may not reach was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// The host, as a browser reads it: a name in lower case, or an address in its usual form.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Why it is refused.
    pub why: EgressRefused,
    /// How many denials before this one were not told, since there were too many in one second.
    pub missed: u64,
}

/// The proxy of one session. Dropping it closes its listener and every connection, and nothing is
/// written upstream from then on.
pub struct Egress {
    session: Arc<Session>,
    address: SocketAddr,
}

impl Egress {
    /// Opens a proxy on a free port of the loopback. Must be called within a tokio runtime, which
    /// then runs all of it. Nothing is left open after an error.
    pub fn open(policy: Arc<EgressPolicy>, permit: Permit, denials: Denials) -> io::Result<Egress> {
        Egress::open_within(policy, permit, denials, Limits::default())
    }

    fn open_within(
        policy: Arc<EgressPolicy>,
        permit: Permit,
        denials: Denials,
        limits: Limits,
    ) -> io::Result<Egress> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        policy.add_proxy(address);
        let session = Arc::new(Session {
            policy,
            permit,
            denials,
            limits,
            is_closed: AtomicBool::new(false),
            told: Mutex::default(),
            tasks: Mutex::new(Some(JoinSet::new())),
        });
        session.spawn(accept(session.clone(), listener));
        Ok(Egress { session, address })
    }

    /// Where the browser finds the proxy; it speaks plain HTTP/1.1.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Egress {
    fn drop(&mut self) {
        self.session.is_closed.store(true, Ordering::SeqCst);
        self.session.policy.remove_proxy(self.address);
        // The tasks hold the session, and it holds them: this breaks the ring.
        drop(lock(&self.session.tasks).take());
    }
}

/// What all connections of one proxy share.
struct Session {
    policy: Arc<EgressPolicy>,
    permit: Permit,
    denials: Denials,
    limits: Limits,
    is_closed: AtomicBool,
    told: Mutex<Told>,
    /// The listener and its connections, until the proxy is dropped.
    tasks: Mutex<Option<JoinSet<()>>>,
}

/// Denials of the current second.
#[derive(Default)]
struct Told {
    since: Time,
    count: u32,
    missed: u64,
}

impl Session {
    /// Rule E3: whether a byte may go upstream now.
    fn may_write(&self) -> bool {
        !self.is_closed.load(Ordering::SeqCst) && (self.permit)()
    }

    fn deny(&self, host: &str, port: u16, why: EgressRefused) {
        let missed = {
            let mut told = lock(&self.told);
            let now = clock::now();
            if now.since(told.since) >= Duration::from_secs(1) {
                (told.since, told.count) = (now, 0);
            }
            if told.count == DENIALS_TOLD_PER_SECOND {
                told.missed += 1;
                return;
            }
            told.count += 1;
            std::mem::take(&mut told.missed)
        };
        debug!(host, port, %why, "a page may not go there");
        (self.denials)(Denied {
            host: host.to_owned(),
            port,
            why,
            missed,
        });
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(tasks) = lock(&self.tasks).as_mut() {
            while tasks.try_join_next().is_some() {}
            tasks.spawn(task);
        }
    }
}

async fn accept(session: Arc<Session>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(session.limits.connections));
    let refusals = Arc::new(Semaphore::new(REFUSED_AT_ONCE));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "a browser's connection was not accepted");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let (place, is_full) = match room.clone().try_acquire_owned() {
            Ok(place) => (Ok(place), false),
            Err(_) => (refusals.clone().acquire_owned().await, true),
        };
        if let Ok(place) = place {
            session.spawn(connection(session.clone(), stream, is_full, place));
        }
    }
}

/// Serves one connection of the browser's until it ends, and what it has opened with it.
async fn connection(
    session: Arc<Session>,
    stream: TcpStream,
    is_full: bool,
    _place: OwnedSemaphorePermit,
) {
    let _ = stream.set_nodelay(true);
    let opened = Arc::new(Opened::default());
    let service = service_fn(|request| {
        let (session, opened) = (session.clone(), opened.clone());
        async move {
            match is_full {
                true => forward::full(),
                false => forward::answer(session, opened, request).await,
            }
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(session.limits.head)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .preserve_header_case(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        debug!(%error, "a browser's connection ended early");
    }
    opened.ended().await;
}

/// What one connection of the browser's has opened: at most one request's way at a time, or a tunnel.
/// It ends with the connection, which owns it.
#[derive(Default)]
struct Opened {
    tasks: Mutex<JoinSet<()>>,
    is_tunnel: AtomicBool,
}

impl Opened {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    fn spawn_tunnel(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.is_tunnel.store(true, Ordering::Relaxed);
        self.spawn(task);
    }

    /// HTTP is over: a tunnel goes on, and all else is aborted.
    async fn ended(&self) {
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        if self.is_tunnel.load(Ordering::Relaxed) {
            while tasks.join_next().await.is_some() {}
        }
        tasks.shutdown().await;
    }
}

/// What differs between a session and a test.
#[derive(Clone, Copy, Debug)]
struct Limits {
    connections: usize,
    head: Duration,
    idle: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: CONNECTIONS_MAX,
            head: HEAD_PATIENCE,
            idle: IDLE_LIMIT,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it is held")
}

/// Connections of one session. Chromium keeps 32 to a proxy for requests and as many for WebSockets;
/// this is as much again, for what it closes while it opens more.
pub const CONNECTIONS_MAX: usize = 128;

/// Connections above that are told so, this many at a time; others wait in the listener's queue.
const REFUSED_AT_ONCE: usize = 16;

/// The longest head of a request: the cookies of one site (180 of 4 KiB are legal, servers take far
/// less) and an address as long as Chromium shows.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Headers of one request: a page may add its own.
const HEADERS_MAX: usize = 128;

/// How long a head may take; also how long a connection may rest between two requests. The browser
/// opens another without a word to the page.
const HEAD_PATIENCE: Duration = Duration::from_secs(60);

/// How long nothing may move in a tunnel or between request and answer: as long as most address
/// translators on the way remember a connection. A living WebSocket says something far sooner.
const IDLE_LIMIT: Duration = Duration::from_secs(10 * 60);

/// Denials told to the node in a second, of one session: a page may try thousands of addresses.
const DENIALS_TOLD_PER_SECOND: u32 = 10;

/// What keeps a connection from being accepted is a full table of files, which empties slowly.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
