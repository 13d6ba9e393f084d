//! The control plane: `ractor_cluster` over a stream between two nodes.
//!
//! Owns: the stream that `ractor_cluster` reads and writes, and how its server is set up here. Never
//! dials or authenticates: the stream comes from [`Net`](crate::net::Net), whose certificates have
//! done that. The cookie that `ractor_cluster` asks for is no security and is not meant to be one.
//!
//! Few actors belong on this plane, each with a deadline at every call: every remotable actor costs
//! each peer an actor, and its queues have no limit.

use std::net::{IpAddr, Ipv4Addr};

use ractor::{ActorRef, MessagingErr};
use ractor_cluster::node::NodeConnectionMode;
use ractor_cluster::{BoxRead, BoxWrite, ClusterBidiStream, NodeServer, NodeServerMessage};
use tokio::io::BufReader;
use understudy_protocol::id::NodeId;

use crate::net::PeerStream;

/// A server for this node's remotable actors, as this plane wants it: it connects to nobody by
/// itself, and the TCP listener that it insists on stands on a free port of the loopback.
pub fn node_server(node: NodeId, cookie: String) -> NodeServer {
    let name = format!("{:016x}", node.0);
    let mode = NodeConnectionMode::Isolated;
    NodeServer::new(0, cookie, name, "understudy".to_owned(), None, Some(mode))
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

/// The longest message of the control plane: spawn requests and exit notices are far shorter. The
/// server's own limit is 16 MiB.
pub const CONTROL_FRAME_BYTES_MAX: u64 = 1024 * 1024;

const READ_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests;
