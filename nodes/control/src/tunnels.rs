//! Tunnels from the node that a client has found to the node that serves it.
//!
//! Owns: who takes the tunnels that come to this node, from its peers and from itself. Never reads
//! what they carry. A caller need not know whether the other node is its own: then the tunnel does not
//! leave the process.

use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::Bytes;

use understudy_protocol::id::NodeId;
use understudy_transport::net::{
    Net, RequestError, RequestRefused, TUNNEL_HEADER_BYTES_MAX, Tunnel,
};

/// Takes a tunnel from a node, for what its header says, or says why not. Called from the tasks that
/// read: it must not block.
pub type TakeTunnel =
    Arc<dyn Fn(NodeId, Bytes, Tunnel) -> Result<(), RequestRefused> + Send + Sync>;

/// Who takes the tunnels of this node; everybody who has it has the same.
#[derive(Clone, Default)]
pub(crate) struct Taker(Arc<RwLock<Option<TakeTunnel>>>);

impl Taker {
    pub(crate) fn set(&self, take: Option<TakeTunnel>) {
        let mut taker = self.0.write().expect("nothing panics while it is held");
        *taker = take;
    }

    pub(crate) fn take(
        &self,
        from: NodeId,
        header: Bytes,
        tunnel: Tunnel,
    ) -> Result<(), RequestRefused> {
        let taker = self.0.read().expect("nothing panics while it is held");
        let take = taker.clone().ok_or(RequestRefused::NotServed)?;
        drop(taker);
        take(from, header, tunnel)
    }
}

/// The tunnels of this node, for whoever lives in its process.
#[derive(Clone)]
pub(crate) struct Tunnels {
    pub(crate) me: NodeId,
    /// Without one, only this node itself is reached.
    pub(crate) net: Option<Net>,
    pub(crate) taker: Taker,
}

impl Tunnels {
    pub(crate) async fn open(
        &self,
        node: NodeId,
        header: Bytes,
        patience: Duration,
    ) -> Result<Tunnel, RequestError> {
        if node != self.me {
            let net = self.net.as_ref().ok_or(RequestError::NoPeer)?;
            return net.open_tunnel(node, header, patience).await;
        }
        if header.len() > TUNNEL_HEADER_BYTES_MAX {
            return Err(RequestError::TooLong(header.len()));
        }
        let (ours, theirs) = Tunnel::within(node);
        self.taker.take(node, header, theirs)?;
        Ok(ours)
    }
}

#[cfg(test)]
mod tests;
