//! The heart's own endpoint: small datagrams, apart from everything else that a node sends.
//!
//! Owns: a UDP socket, a QUIC endpoint on it, and the connections to peers' hearts, which are dialled
//! when somebody has something to say. Shares no socket, task, runtime or lock with the main endpoint.
//! Never retries a message and never answers one: the lease machines count rounds themselves. Never
//! judges a message: one from a peer comes with the node that the peer's certificate names, and
//! whether that node may say it is for the machines.
//!
//! ```text
//!                  ┌ bit 0x40 of the first byte ─▶ QUIC ─▶ datagrams of known nodes ─┐
//! UDP ─ `plain` ───┤                                                                 ├─▶ recv()
//!                  └ 0x01 ─▶ rate limit ─▶ a death note, which proves itself ────────┘
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use quinn::{AsyncUdpSocket, ClientConfig, Connection, Endpoint, Incoming, Runtime, VarInt};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use understudy_protocol::id::NodeId;
use understudy_protocol::wire::codec::{decode_whole, encode_frame};
use understudy_protocol::wire::heart::HeartMessage;

use crate::counters::{Count, Counted, Counters};
use crate::identity::{self, Identity};
use crate::net::{bind, certified_node, is_tls_refusal, reachable_from};
use crate::tls::{self, TlsError};

mod plain;
#[cfg(test)]
mod tests;

pub use plain::{NoteError, PLAIN_PER_SECOND_MAX, plain_note, send_note_plain};

use plain::Split;

/// Why there is no heart. Nothing was left open.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
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
}

/// The socket of a node's heart. Dropping it ends its tasks.
pub struct HeartSocket {
    shared: Arc<Shared>,
    received: mpsc::Receiver<Received>,
}

/// A message, and who sent it; nobody in particular sends a plain one.
pub(crate) type Received = (Option<NodeId>, HeartMessage);

struct Shared {
    endpoint: Endpoint,
    client: ClientConfig,
    identity: Arc<Identity>,
    runtime: Handle,
    counters: Arc<Counters>,
    out: mpsc::Sender<Received>,
    peers: Mutex<BTreeMap<NodeId, Peer>>,
    tasks: Mutex<Option<JoinSet<()>>>,
}

/// What is known of a peer's heart.
#[derive(Default)]
struct Peer {
    /// The newest is last, and is the one that is spoken on. Both sides may have dialled.
    connections: Vec<Connection>,
    is_dialled: bool,
    waiting: VecDeque<Bytes>,
}

impl HeartSocket {
    /// Binds the socket. Everything runs on the runtime that this is called in, which may have one
    /// thread; an error when there is none is a panic of tokio's.
    pub fn bind(listen: SocketAddr, identity: Arc<Identity>) -> Result<HeartSocket, BindError> {
        let server = tls::server_config(&identity, tls::ALPN_HEART, tls::heart_transport_config())?;
        let client = tls::client_config(&identity, tls::ALPN_HEART, tls::heart_transport_config())?;
        let (out, received) = mpsc::channel(RECEIVED_MAX);
        let counters = Arc::<Counters>::default();
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = bind(listen)
            .and_then(|socket| {
                let socket = runtime.wrap_udp_socket(socket)?;
                let split = Split::new(socket, out.clone(), counters.clone());
                let split: Arc<dyn AsyncUdpSocket> = Arc::new(split);
                let config = tls::endpoint_config(&identity, true);
                Endpoint::new_with_abstract_socket(config, Some(server), split, runtime)
            })
            .map_err(|error| BindError::Listen {
                address: listen,
                error,
            })?;
        let shared = Arc::new(Shared {
            endpoint,
            client,
            identity,
            runtime: Handle::current(),
            counters,
            out,
            peers: Mutex::default(),
            tasks: Mutex::new(Some(JoinSet::new())),
        });
        shared.spawn(accept(shared.clone()));
        Ok(HeartSocket { shared, received })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.shared.endpoint.local_addr()
    }

    /// Sends a message to a peer's heart at `address`; never waits. While there is no connection it
    /// dials and keeps the newest few messages; it forgets them when nobody answers.
    pub fn send(&self, to: NodeId, address: SocketAddr, message: &HeartMessage) {
        let mut frame = Vec::new();
        if encode_frame(message, &mut frame).is_err() {
            self.shared.counters.add(Count::Datagram);
            return;
        }
        let frame = Bytes::from(frame);
        let shared = &self.shared;
        let mut peers = shared.lock();
        let peer = peers.entry(to).or_default();
        peer.connections
            .retain(|connection| connection.close_reason().is_none());
        if let Some(connection) = peer.connections.last() {
            if connection.send_datagram(frame).is_err() {
                shared.counters.add(Count::Datagram);
            }
            return;
        }
        if peer.waiting.len() == WAITING_MAX {
            peer.waiting.pop_front();
        }
        peer.waiting.push_back(frame);
        if !peer.is_dialled {
            peer.is_dialled = true;
            drop(peers);
            shared.spawn(dial(shared.clone(), to, address));
        }
    }

    /// The next message. `None` in place of a node: a death note in the clear, which must prove
    /// itself. Dropping the future loses nothing.
    pub async fn recv(&mut self) -> (Option<NodeId>, HeartMessage) {
        match self.received.recv().await {
            Some(received) => received,
            None => std::future::pending().await, // closed: nothing comes any more
        }
    }

    /// What was refused and dropped so far.
    pub fn counted(&self) -> Counted {
        self.shared.counters.counted()
    }

    /// Says goodbye to every peer and ends every task. Waits at most a second.
    pub async fn close(self) {
        self.shared.endpoint.close(CLOSE_BYE, b"");
        let tasks = self.shared.take_tasks();
        if let Some(mut tasks) = tasks {
            tasks.shutdown().await;
        }
        let _ = timeout(CLOSE_PATIENCE, self.shared.endpoint.wait_idle()).await;
    }
}

impl Drop for HeartSocket {
    fn drop(&mut self) {
        self.shared.endpoint.close(CLOSE_BYE, b"");
        drop(self.shared.take_tasks());
    }
}

impl Shared {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().expect("nothing panics while it is held");
        if let Some(tasks) = tasks.as_mut() {
            while tasks.try_join_next().is_some() {}
            tasks.spawn_on(task, &self.runtime);
        }
    }

    fn take_tasks(&self) -> Option<JoinSet<()>> {
        self.tasks
            .lock()
            .expect("nothing panics while it is held")
            .take()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, Peer>> {
        self.peers.lock().expect("nothing panics while it is held")
    }

    /// Puts a connection to use, sends what waited for one, and hears the peer until it ends.
    async fn run(&self, node: NodeId, connection: Connection) {
        {
            let mut peers = self.lock();
            let peer = peers.entry(node).or_default();
            for frame in peer.waiting.drain(..) {
                let _ = connection.send_datagram(frame);
            }
            peer.connections.push(connection.clone());
            if peer.connections.len() > CONNECTIONS_MAX {
                peer.connections.remove(0).close(CLOSE_REPLACED, b"");
            }
        }
        while let Ok(bytes) = connection.read_datagram().await {
            let taken = match decode_whole(&bytes) {
                Ok(message) => self.out.try_send((Some(node), message)).is_ok(),
                Err(_) => false,
            };
            if !taken {
                self.counters.add(Count::Datagram);
            }
        }
        let id = connection.stable_id();
        if let Some(peer) = self.lock().get_mut(&node) {
            peer.connections.retain(|other| other.stable_id() != id);
        }
    }

    /// The node at the other end, by its certificate, if it is the dialled one.
    fn certified(&self, connection: &Connection, dialled: Option<NodeId>) -> Option<NodeId> {
        let found = certified_node(connection, self.identity.cluster());
        let why = match (found, dialled) {
            (Ok(node), None) => return Some(node),
            (Ok(node), Some(dialled)) if node == dialled => return Some(node),
            (Ok(node), _) => format!("it is of {node}"),
            (Err(error), _) => error,
        };
        self.counters.add(Count::Identity);
        if self.counters.may_log() {
            let address = connection.remote_address();
            tracing::warn!(%address, why, "a heart's certificate was refused");
        }
        connection.close(CLOSE_IDENTITY, b"certificate refused");
        None
    }

    fn failed(&self, address: SocketAddr, error: &quinn::ConnectionError) {
        if is_tls_refusal(error) {
            self.counters.add(Count::Handshake);
            if self.counters.may_log() {
                tracing::warn!(%address, %error, "a heart's handshake was refused");
            }
        }
    }
}

async fn dial(shared: Arc<Shared>, node: NodeId, address: SocketAddr) {
    let connected = timeout(DIAL_PATIENCE, connect(&shared, node, address)).await;
    {
        let mut peers = shared.lock();
        let peer = peers.entry(node).or_default();
        peer.is_dialled = false;
        if !matches!(connected, Ok(Some(_))) {
            peer.waiting.clear(); // old by now; what is said next dials again
        }
    }
    if let Ok(Some(connection)) = connected {
        shared.run(node, connection).await;
    }
}

async fn connect(shared: &Shared, node: NodeId, address: SocketAddr) -> Option<Connection> {
    let local = shared.endpoint.local_addr().ok()?;
    let name = identity::dns_name_of(shared.identity.cluster(), node);
    let address = reachable_from(local, address).unwrap_or(address); // the error says it better
    let config = shared.client.clone();
    let connecting = match shared.endpoint.connect_with(config, address, &name) {
        Ok(connecting) => connecting,
        Err(error) => {
            if shared.counters.may_log() {
                tracing::warn!(%node, %address, %error, "cannot dial a heart");
            }
            return None;
        }
    };
    match connecting.await {
        Ok(connection) => {
            shared.certified(&connection, Some(node))?;
            Some(connection)
        }
        Err(error) => {
            shared.failed(address, &error);
            None
        }
    }
}

async fn accept(shared: Arc<Shared>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    while let Some(incoming) = shared.endpoint.accept().await {
        if handshakes.available_permits() < HANDSHAKES_MAX / 2 && incoming.may_retry() {
            let _ = incoming.retry(); // a forged address does not come back
            continue;
        }
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let task_shared = shared.clone();
        shared.spawn(async move {
            let welcomed = timeout(WELCOME_PATIENCE, welcome(&task_shared, incoming)).await;
            drop(permit);
            if let Ok(Some((node, connection))) = welcomed {
                task_shared.run(node, connection).await;
            }
        });
    }
}

async fn welcome(shared: &Shared, incoming: Incoming) -> Option<(NodeId, Connection)> {
    let address = incoming.remote_address();
    match incoming.accept().ok()?.await {
        Ok(connection) => Some((shared.certified(&connection, None)?, connection)),
        Err(error) => {
            shared.failed(address, &error);
            None
        }
    }
}

/// Messages that wait for the heart's own thread: what 500 nodes send in one round. A thread that
/// is further behind has lost these rounds anyway.
const RECEIVED_MAX: usize = 1_024;

/// Messages that wait for a connection: a renewal, a report and a sighting, and one to spare.
const WAITING_MAX: usize = 4;

/// Connections with one peer: both may have dialled.
const CONNECTIONS_MAX: usize = 2;

/// A heart that does not answer within this is dialled anew by the next message, whose first packet
/// then finds it as soon as it is back.
const DIAL_PATIENCE: Duration = Duration::from_secs(1);

/// From a stranger's first packet to its certificate.
const WELCOME_PATIENCE: Duration = Duration::from_secs(3);

/// Handshakes at once; from half of them on an address must prove itself first. The heart's thread
/// has better things to do.
const HANDSHAKES_MAX: usize = 64;

/// How long a closing waits for its last packets.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

const CLOSE_BYE: VarInt = VarInt::from_u32(0);
const CLOSE_IDENTITY: VarInt = VarInt::from_u32(1);
const CLOSE_REPLACED: VarInt = VarInt::from_u32(4);
