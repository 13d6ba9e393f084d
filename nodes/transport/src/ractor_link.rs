//! The control plane: `ractor_cluster` over a stream between two nodes.
//!
//! Owns: the stream that `ractor_cluster` reads and writes, and how its server is set up here. Never
//! dials or authenticates: the stream comes from [`Net`](crate::net::Net), whose certificates have
//! done that. The cookie that `ractor_cluster` asks for is no security and is not meant to be one: the
//! TCP listener that comes with its server lets nobody in at all.
//!
//! Few actors belong on this plane, each with a deadline at every call: every remotable actor costs
//! each peer an actor, and its queues have no limit.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ractor::{ActorRef, MessagingErr};
use ractor_cluster::node::NodeConnectionMode;
use ractor_cluster::{
    BoxRead, BoxWrite, ClusterBidiStream, IncomingEncryptionMode, NodeServer, NodeServerMessage,
};
use rustls::server::{ClientHello, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use tokio::io::BufReader;
use tokio_rustls::TlsAcceptor;
use understudy_protocol::id::NodeId;

use crate::net::PeerStream;

/// A server for this node's remotable actors, as this plane wants it: it connects to nobody by
/// itself, and the TCP listener that it insists on stands on a free port of the loopback, where every
/// handshake fails: otherwise whoever is on this machine and guesses the cookie could speak for a node.
pub fn node_server(node: NodeId, cookie: String) -> NodeServer {
    let name = format!("{:016x}", node.0);
    let mode = NodeConnectionMode::Isolated;
    let locked = Some(IncomingEncryptionMode::Tls(locked()));
    NodeServer::new(0, cookie, name, HOST.to_owned(), locked, Some(mode))
        .with_listen_addr(IpAddr::V4(Ipv4Addr::LOCALHOST))
        .with_max_inbound_frame_size(CONTROL_FRAME_BYTES_MAX)
}

/// Hands a stream to the server. `opened_here`: this node opened it with
/// [`Net::open_stream`](crate::net::Net::open_stream); otherwise it came through
/// [`Inbox::stream`](crate::net::Inbox::stream). An error says that the server has stopped; the
/// stream is gone.
pub fn link(
    server: &ActorRef<NodeServerMessage>,
    stream: PeerStream,
    opened_here: bool,
) -> Result<(), MessagingErr<NodeServerMessage>> {
    server.cast(NodeServerMessage::ConnectionOpenedExternal {
        stream: Box::new(ControlStream(stream)),
        is_server: !opened_here,
    })
}

fn locked() -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(NoCertificate));
    TlsAcceptor::from(Arc::new(config))
}

/// Has no certificate for anybody, so that no handshake is ever completed.
#[derive(Debug)]
struct NoCertificate;

impl ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

struct ControlStream(PeerStream);

impl ClusterBidiStream for ControlStream {
    fn split(self: Box<Self>) -> (BoxRead, BoxWrite) {
        let (send, recv) = self.0.into_halves();
        // It reads eight bytes of length at a time, and each read of QUIC takes a lock.
        let recv = BufReader::with_capacity(READ_BYTES, recv);
        (Box::new(recv), Box::new(send))
    }

    fn peer_label(&self) -> Option<String> {
        Some(self.0.peer().to_string())
    }
}

/// What a node is called at, beside its own name; an address is nobody's business.
const HOST: &str = "understudy";

/// The longest message of the control plane: spawn requests and exit notices are far shorter. The
/// server's own limit is 16 MiB.
pub const CONTROL_FRAME_BYTES_MAX: u64 = 1024 * 1024;

const READ_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests;
