//! The main endpoint: two connections to every peer, and what they carry.
//!
//! Owns: the socket, the tasks that dial and accept, and the tasks of each connection; all of them
//! end with [`Net::close`], or when the last [`Net`] is dropped. Never decides that a node is dead,
//! and never takes a peer's word for who it is.
//!
//! ```text
//!            ┌ truth ─ requests, the control stream ──────────┐
//! Net ═ QUIC ┤                                               ├ peer        both dial; `peers` chooses
//!            └ data ── 8 lanes by hash, 1 bulk lane, tunnels ┘
//! ```

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use quinn::{ClientConfig, Connection, Endpoint, Incoming};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use understudy_protocol::id::NodeId;

use crate::counters::{Count, Counted, Counters};
use crate::identity::{self, Identity};
use crate::tls::{self, Role, TlsError};

mod dial;
mod hello;
mod lane;
mod peers;
mod request;
mod stream;
#[cfg(test)]
mod tests;
mod tunnel;

pub use hello::{Hello, NAME_BYTES_MAX};
pub use lane::{
    BULK_FRAME_BYTES_MAX, HASHED_LANES, LANE_FRAME_BYTES_MAX, LANE_QUEUE_BYTES_MAX, Lane,
};
pub use request::{
    REQUEST_BYTES_MAX, REQUESTS_AT_ONCE_MAX, RequestError, RequestRefused, STREAM_KIND,
};
pub use stream::PeerStream;
pub use tunnel::{TUNNEL_HEADER_BYTES_MAX, TUNNEL_WINDOW_BYTES, TUNNELS_MAX, Tunnel};

use hello::Greeting;
use peers::{Peers, Route};

/// A future that anybody may await.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a node's network needs to know.
#[derive(Debug)]
pub struct NetConfig {
    /// The UDP address to listen on, and to dial from.
    pub listen: SocketAddr,
    /// Who this node is.
    pub identity: Arc<Identity>,
    /// What it says of itself.
    pub hello: Hello,
    /// Where other members may be found, as `host:port`.
    pub seeds: Vec<String>,
    /// Whether the kernel may segment large writes; off where a relay or a driver mishandles it.
    pub segmentation_offload: bool,
}

/// What the node does with what arrives. Called from the tasks that read: nothing here may block.
pub trait Inbox: Send + Sync + 'static {
    /// One whole frame of a known type, within its lane's limit; its checksum fits, its payload is
    /// not decoded yet. [`Full`] makes the lane wait and offer the same frame again.
    fn frame(&self, from: NodeId, frame: Bytes) -> Result<(), Full>;

    /// A request on the truth plane. It is dropped when the asker gives up.
    fn request(
        &self,
        from: NodeId,
        kind: u8,
        body: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, RequestRefused>>;

    /// A peer came or went. It must not call [`Net::close`].
    fn peer(&self, change: PeerChange);

    /// A peer has opened a lasting stream with [`Net::open_stream`]. Dropped where nobody wants it.
    fn stream(&self, from: NodeId, stream: PeerStream) {
        let _ = (from, stream);
    }

    /// A peer has opened a tunnel with [`Net::open_tunnel`], for what `header` says; an error is what
    /// the peer hears. Refused where nobody wants tunnels.
    fn tunnel(&self, from: NodeId, header: Bytes, tunnel: Tunnel) -> Result<(), RequestRefused> {
        let _ = (from, header, tunnel);
        Err(RequestRefused::NotServed)
    }
}

/// Where a frame belongs has no room. Offer it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A peer came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerChange {
    /// Frames and requests reach it from now on. A new incarnation is first `Down`, then `Up`.
    Up(Hello),
    /// They do not. What was under way may or may not have arrived. It says nothing about the node.
    Down(NodeId),
}

/// Why there is no network. Nothing was left open.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address could not be bound.
    #[error("cannot listen on {address} (UDP): {error}")]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// Why not.
        error: io::Error,
    },
    /// The identity does not do.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The greeting names another node than the certificate.
    #[error("the greeting names {greeting}, the certificate {certificate}")]
    OtherNode {
        /// What the greeting says.
        greeting: NodeId,
        /// What the certificate says.
        certificate: NodeId,
    },
    /// Every peer would refuse the greeting.
    #[error("a name or an address is longer than {NAME_BYTES_MAX} bytes")]
    LongHello,
}

/// Why a frame was not sent. It was not taken: nothing of it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The peer is not connected.
    #[error("the peer is not connected")]
    NoPeer,
    /// The lane's queue is full, because the peer takes frames more slowly than they come.
    #[error("the lane is full; try again in {retry_after:?}")]
    Full {
        /// When another attempt is worth making.
        retry_after: Duration,
    },
    /// No peer would take a frame as long as this on that lane.
    #[error("a frame of {length} bytes is above the lane's limit of {limit}")]
    TooLong {
        /// The frame's length in bytes.
        length: usize,
        /// [`Lane::frame_bytes_max`].
        limit: usize,
    },
}

/// A node's network. Clones are handles to the same; it ends when the last is dropped.
#[derive(Clone)]
pub struct Net {
    owner: Arc<Owner>,
}

/// Ends the tasks when nobody holds the network any more.
struct Owner {
    shared: Arc<Shared>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.endpoint.close(hello::CLOSE_BYE, b"");
        drop(self.shared.take_tasks());
    }
}

struct Shared {
    endpoint: Endpoint,
    client: ClientConfig,
    identity: Arc<Identity>,
    hello: Hello,
    inbox: Arc<dyn Inbox>,
    peers: Peers,
    counters: Arc<Counters>,
    seeds: Mutex<BTreeMap<String, Option<NodeId>>>,
    dialled: Mutex<BTreeMap<NodeId, Dialled>>,
    /// Every task of this network, until it is closed. They hold `Shared` themselves, so it is
    /// [`Owner`] that breaks the ring.
    tasks: Mutex<Option<JoinSet<()>>>,
}

/// A node whose address was given, and the task that dials it.
struct Dialled {
    address: String,
    task: Option<AbortHandle>,
}

impl Net {
    /// Binds the socket, and dials the seeds from now on. Must be called within a tokio runtime,
    /// which then runs all of it.
    pub async fn start(config: NetConfig, inbox: Arc<dyn Inbox>) -> Result<Net, StartError> {
        let identity = config.identity;
        if config.hello.node != identity.node() {
            return Err(StartError::OtherNode {
                greeting: config.hello.node,
                certificate: identity.node(),
            });
        }
        if !hello::is_within_limits(&config.hello) {
            return Err(StartError::LongHello);
        }
        let transport = || tls::transport_config(config.segmentation_offload);
        let server = tls::server_config(&identity, tls::ALPN_MAIN, transport())?;
        let client = tls::client_config(&identity, tls::ALPN_MAIN, transport())?;
        let endpoint = bind(config.listen)
            .and_then(|socket| {
                Endpoint::new(
                    tls::endpoint_config(&identity, false),
                    Some(server),
                    socket,
                    Arc::new(quinn::TokioRuntime),
                )
            })
            .map_err(|error| StartError::Listen {
                address: config.listen,
                error,
            })?;
        let shared = Arc::new(Shared {
            endpoint,
            client,
            peers: Peers::new(identity.node(), inbox.clone()),
            identity,
            hello: config.hello,
            inbox,
            counters: Arc::default(),
            seeds: Mutex::new(config.seeds.into_iter().map(|seed| (seed, None)).collect()),
            dialled: Mutex::default(),
            tasks: Mutex::new(Some(JoinSet::new())),
        });
        shared.spawn(accept(shared.clone()));
        let seeds: Vec<String> = lock(&shared.seeds).keys().cloned().collect();
        for seed in seeds {
            let target = dial::Target::Seed(seed);
            shared.spawn(dial::keep_dialling(shared.clone(), target));
        }
        Ok(Net {
            owner: Arc::new(Owner { shared }),
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.shared().endpoint.local_addr()
    }

    /// Puts one frame on a lane; never waits. `Ok` says that it is queued, not that it will arrive.
    pub fn send(&self, to: NodeId, lane: Lane, frame: Bytes) -> Result<(), SendError> {
        self.route(to)
            .ok_or(SendError::NoPeer)?
            .lanes
            .send(lane, frame)
    }

    /// Asks a peer on the truth plane and waits for at most `patience`. Kinds are below
    /// [`STREAM_KIND`].
    pub async fn request(
        &self,
        to: NodeId,
        kind: u8,
        body: Bytes,
        patience: Duration,
    ) -> Result<Bytes, RequestError> {
        debug_assert_ne!(kind, STREAM_KIND);
        let route = self.route(to).ok_or(RequestError::NoPeer)?;
        request::ask(&route, kind, body, patience).await
    }

    /// A lasting stream to a peer, which its [`Inbox::stream`] gets. It has no framing of its own.
    pub async fn open_stream(
        &self,
        to: NodeId,
        patience: Duration,
    ) -> Result<PeerStream, RequestError> {
        let route = self.route(to).ok_or(RequestError::NoPeer)?;
        timeout(patience, PeerStream::open(&route))
            .await
            .unwrap_or(Err(RequestError::TimedOut))
    }

    /// A tunnel to a peer, whose [`Inbox::tunnel`] has taken it. At most [`TUNNELS_MAX`] to one peer are
    /// open; `header` has at most [`TUNNEL_HEADER_BYTES_MAX`].
    pub async fn open_tunnel(
        &self,
        to: NodeId,
        header: Bytes,
        patience: Duration,
    ) -> Result<Tunnel, RequestError> {
        let route = self.route(to).ok_or(RequestError::NoPeer)?;
        let opened = timeout(patience, tunnel::open(&route, header)).await;
        let opened = opened.unwrap_or(Err(RequestError::TimedOut))?;
        let (tunnel, carry) = opened.split();
        self.shared().spawn(carry).ok_or(RequestError::Lost)?;
        Ok(tunnel)
    }

    /// Peers that are up.
    pub fn peers(&self) -> Vec<Hello> {
        self.shared().peers.up()
    }

    /// Seeds at which no peer stands that is up (this node itself counts as up).
    pub fn missing_seeds(&self) -> Vec<String> {
        let shared = self.shared();
        let stands = |node: &NodeId| *node == shared.hello.node || self.route(*node).is_some();
        lock(&shared.seeds)
            .iter()
            .filter(|(_, node)| !node.as_ref().is_some_and(stands))
            .map(|(seed, _)| seed.clone())
            .collect()
    }

    /// Nodes to dial beside the seeds, as `host:port`. Those that are no longer named are not dialled
    /// any more; a connection that stands stays.
    pub fn set_addresses(&self, addresses: BTreeMap<NodeId, String>) {
        let shared = self.shared();
        let mut dialled = lock(&shared.dialled);
        dialled.retain(|node, old| {
            let keeps = addresses.get(node) == Some(&old.address);
            if !keeps {
                old.task.iter().for_each(AbortHandle::abort);
            }
            keeps
        });
        for (node, address) in addresses {
            if node == shared.hello.node || dialled.contains_key(&node) {
                continue;
            }
            let target = dial::Target::Node(node, address.clone());
            let task = shared.spawn(dial::keep_dialling(shared.clone(), target));
            dialled.insert(node, Dialled { address, task });
        }
    }

    /// What was refused and dropped so far.
    pub fn counted(&self) -> Counted {
        self.shared().counters.counted()
    }

    /// Says goodbye to every peer and ends every task, in [`CLOSE_PATIENCE`] at most. What is still
    /// queued or on its way is lost: wait for the answers that matter before.
    pub async fn close(&self) {
        let shared = self.shared();
        shared.endpoint.close(hello::CLOSE_BYE, b"");
        let tasks = shared.take_tasks();
        if let Some(mut tasks) = tasks {
            tasks.shutdown().await;
        }
        shared.peers.drop_all();
        let _ = timeout(CLOSE_PATIENCE, shared.endpoint.wait_idle()).await;
    }

    fn route(&self, to: NodeId) -> Option<Arc<Route>> {
        self.shared().peers.route(to)
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.owner.shared
    }
}

impl Shared {
    /// Runs a task until it ends or the network is closed; `None` when it is closed already.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> Option<AbortHandle> {
        let mut tasks = lock(&self.tasks);
        let tasks = tasks.as_mut()?;
        while tasks.try_join_next().is_some() {}
        Some(tasks.spawn(task))
    }

    fn take_tasks(&self) -> Option<JoinSet<()>> {
        lock(&self.tasks).take()
    }

    /// The node at the other end, by its certificate.
    fn certified(
        &self,
        connection: &Connection,
        dialled: Option<NodeId>,
    ) -> Result<NodeId, Refused> {
        let refuse = |why: String| {
            self.counters.add(Count::Identity);
            if self.counters.may_log() {
                let address = connection.remote_address();
                tracing::warn!(%address, why, "a peer's certificate was refused");
            }
            connection.close(hello::CLOSE_IDENTITY, b"certificate refused");
            Err(Refused)
        };
        match certified_node(connection, self.identity.cluster()) {
            Err(error) => refuse(error),
            Ok(node) => match dialled {
                Some(dialled) if dialled != node => refuse(format!("{dialled} was dialled")),
                _ => Ok(node),
            },
        }
    }
}

/// Refused, counted and told to the log.
struct Refused;

/// The node that the peer's certificate names. TLS has checked the certificate itself.
pub(crate) fn certified_node(connection: &Connection, cluster: &str) -> Result<NodeId, String> {
    let chain = connection
        .peer_identity()
        .and_then(|any| {
            any.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>()
                .ok()
        })
        .ok_or("it has none")?;
    let certificate = chain.first().ok_or("it has none")?;
    identity::node_named_by(certificate, cluster).map_err(|error| error.to_string())
}

/// Whether a handshake failed at TLS, rather than for want of packets.
pub(crate) fn is_tls_refusal(error: &quinn::ConnectionError) -> bool {
    let code = match error {
        quinn::ConnectionError::TransportError(error) => u64::from(error.code),
        quinn::ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
        _ => return false,
    };
    (0x100..0x200).contains(&code) // CRYPTO_ERROR (RFC 9000, section 20.1)
}

pub(crate) fn bind(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    // The kernel grants what its limit allows; without it a burst of lanes overflows its default.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    Ok(socket)
}

/// `address` as a socket bound to `local` has to write it: one of IPv6 reaches IPv4 by mapped
/// addresses (RFC 4291, section 2.5.5.2), one of IPv4 reaches no IPv6.
pub(crate) fn reachable_from(local: SocketAddr, address: SocketAddr) -> Option<SocketAddr> {
    match (local, address) {
        (SocketAddr::V6(_), SocketAddr::V4(v4)) => {
            Some((v4.ip().to_ipv6_mapped(), v4.port()).into())
        }
        (SocketAddr::V4(_), SocketAddr::V6(_)) => None,
        _ => Some(address),
    }
}

async fn accept(shared: Arc<Shared>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    while let Some(incoming) = shared.endpoint.accept().await {
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let is_busy = handshakes.available_permits() < HANDSHAKES_MAX - HANDSHAKES_UNVALIDATED_MAX;
        if is_busy && incoming.may_retry() {
            let _ = incoming.retry(); // a forged address does not come back
            continue;
        }
        let task_shared = shared.clone();
        shared.spawn(async move {
            let _ = timeout(WELCOME_PATIENCE, welcome(&task_shared, incoming)).await;
            drop(permit);
        });
    }
}

async fn welcome(shared: &Arc<Shared>, incoming: Incoming) -> Option<NodeId> {
    let address = incoming.remote_address();
    let connection = match incoming.accept().ok()?.await {
        Ok(connection) => connection,
        Err(error) => {
            if is_tls_refusal(&error) {
                shared.counters.add(Count::Handshake);
                if shared.counters.may_log() {
                    tracing::warn!(%address, %error, "a handshake was refused");
                }
            }
            return None;
        }
    };
    let node = shared.certified(&connection, None).ok()?;
    if node == shared.hello.node {
        connection.close(hello::CLOSE_SELF, b"");
        return None;
    }
    let greeting = match Greeting::accept(&connection, &shared.hello, node).await {
        Ok(greeting) => greeting,
        Err(error) => return refuse_greeting(shared, &connection, error),
    };
    settle(shared, connection, greeting).await
}

/// Both have greeted: one of them decides, and the connection is used or closed. From the moment when
/// it counts as used it has a task of its own, whatever becomes of this one.
async fn settle(
    shared: &Arc<Shared>,
    connection: Connection,
    greeting: Greeting,
) -> Option<NodeId> {
    let (role, peer) = (greeting.role, greeting.peer.clone());
    let node = peer.node;
    let unsaid = if shared.peers.decides_for(node) {
        Some(greeting)
    } else {
        if let Err(error) = greeting.taken().await {
            return refuse_greeting(shared, &connection, error);
        }
        None
    };
    let Ok(lanes) = shared.peers.take(&connection, role, peer) else {
        connection.close(hello::CLOSE_DUPLICATE, b"");
        return None;
    };
    tls::admit(&connection, role);
    let run = run_connection(
        shared.clone(),
        connection.clone(),
        role,
        node,
        lanes,
        unsaid,
    );
    if shared.spawn(run).is_none() {
        connection.close(hello::CLOSE_BYE, b"");
        shared.peers.lost(&connection, role, node);
    }
    Some(node)
}

fn refuse_greeting<T>(
    shared: &Shared,
    connection: &Connection,
    error: hello::HelloError,
) -> Option<T> {
    if matches!(
        error,
        hello::HelloError::Malformed | hello::HelloError::Impostor { .. }
    ) {
        shared.counters.add(Count::Greeting);
        if shared.counters.may_log() {
            let address = connection.remote_address();
            tracing::warn!(%address, %error, "a greeting was refused");
        }
    }
    connection.close(hello::CLOSE_HELLO, b"");
    None
}

/// Serves a connection that is in use until it ends. `unsaid`: the peer has not heard that it is.
async fn run_connection(
    shared: Arc<Shared>,
    connection: Connection,
    role: Role,
    node: NodeId,
    lanes: Arc<lane::Lanes>,
    unsaid: Option<Greeting>,
) {
    if let Some(greeting) = unsaid
        && greeting.take().await.is_err()
    {
        connection.close(hello::CLOSE_HELLO, b"");
    }
    let is_up = tokio::select! {
        is_up = shared.peers.until_up(&connection, role, node) => is_up,
        _ = connection.closed() => false,
    };
    if is_up {
        let mut tasks = JoinSet::new();
        match role {
            Role::Data => serve_lanes(&shared, &connection, node, lanes, &mut tasks).await,
            Role::Truth => serve_requests(&shared, &connection, node, &mut tasks).await,
        }
        tasks.shutdown().await;
    }
    shared.peers.lost(&connection, role, node);
}

async fn serve_lanes(
    shared: &Arc<Shared>,
    connection: &Connection,
    node: NodeId,
    lanes: Arc<lane::Lanes>,
    tasks: &mut JoinSet<()>,
) {
    for index in 0..lane::LANES {
        tasks.spawn(lane::write_lane(connection.clone(), lanes.clone(), index));
    }
    let reading = Arc::new(lane::Reading::default());
    let room = Arc::new(Semaphore::new(TUNNELS_MAX));
    loop {
        let (inbox, counters) = (shared.inbox.clone(), shared.counters.clone());
        tokio::select! {
            stream = connection.accept_uni() => {
                let Ok(stream) = stream else { return };
                let reading = reading.clone();
                tasks.spawn(lane::read_lane(stream, node, reading, inbox, counters));
            }
            stream = connection.accept_bi() => {
                let Ok((send, recv)) = stream else { return };
                let room = room.clone();
                tasks.spawn(tunnel::serve(send, recv, node, room, inbox, counters));
            }
        }
        while tasks.try_join_next().is_some() {}
    }
}

async fn serve_requests(
    shared: &Arc<Shared>,
    connection: &Connection,
    node: NodeId,
    tasks: &mut JoinSet<()>,
) {
    let serving = Arc::new(request::Serving::new());
    while let Ok((send, recv)) = connection.accept_bi().await {
        while tasks.try_join_next().is_some() {}
        let (inbox, counters) = (shared.inbox.clone(), shared.counters.clone());
        tasks.spawn(request::serve(
            send,
            recv,
            node,
            serving.clone(),
            inbox,
            counters,
        ));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it is held")
}

/// How long [`Net::close`] waits for its last packets.
pub const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// From a stranger's first packet to its greeting: a few round trips, with losses.
const WELCOME_PATIENCE: Duration = Duration::from_secs(3);

/// Handshakes at once; each costs about a millisecond of a core.
const HANDSHAKES_MAX: usize = 256;

/// Above this many, an address must prove itself first.
const HANDSHAKES_UNVALIDATED_MAX: usize = 64;

/// For both directions of the socket: what arrives in 30 ms at 1 Gbit/s.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
