//! A lasting stream between two nodes, for an engine with a protocol of its own.
//!
//! Owns: both halves of one bidirectional stream on the truth plane's connection. Never frames
//! anything. It ends with the connection, whose idle timeout notices a peer that went silent.

use quinn::{RecvStream, SendStream};
use understudy_protocol::id::NodeId;

use super::peers::Route;
use super::request::{RequestError, STREAM_KIND};

/// Both directions of a stream, and who is at its other end.
#[derive(Debug)]
pub struct PeerStream {
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
    peer: NodeId,
}

impl PeerStream {
    pub(crate) fn new(send: SendStream, recv: RecvStream, peer: NodeId) -> PeerStream {
        PeerStream { send, recv, peer }
    }

    pub(crate) async fn open(route: &Route) -> Result<PeerStream, RequestError> {
        let lost = |_| RequestError::Lost;
        let (mut send, recv) = route.truth.open_bi().await.map_err(lost)?;
        let opened = send.write_all(&[STREAM_KIND]).await;
        opened.map_err(|_| RequestError::Lost)?;
        Ok(PeerStream::new(send, recv, route.hello.node))
    }

    /// Who is at the other end.
    pub fn peer(&self) -> NodeId {
        self.peer
    }

    /// The sending and the receiving half.
    pub fn into_halves(self) -> (SendStream, RecvStream) {
        (self.send, self.recv)
    }
}
