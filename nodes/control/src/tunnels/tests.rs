//! Two nodes with a network each and handles, and no core: nobody decides anything here.

#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};

use understudy_protocol::cluster::directory::Directory;
use understudy_protocol::id::{IncarnationId, StoreId};
use understudy_protocol::time::Time;
use understudy_transport::identity::Ca;
use understudy_transport::net::{BoxFuture, Full, Hello, Inbox, NetConfig, PeerChange};

use super::*;
use crate::events::Events;
use crate::handle::{Handle, View};

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_is_the_same_to_another_node_and_to_this_one() {
    let ca = Ca::create("alpha").unwrap();
    let a = Node::start(&ca, 1, &[]).await;
    let b = Node::start(&ca, 2, &[a.address()]).await;
    a.until_up().await;
    b.until_up().await;
    for (from, to) in [(&a, NodeId(1)), (&a, NodeId(2)), (&b, NodeId(1))] {
        let open = |header: Bytes| from.handle.open_tunnel(to, header, PATIENCE);
        // Nobody takes any yet.
        let refused = open(Bytes::new()).await.err();
        assert_eq!(refused, Some(RequestRefused::NotServed.into()));
        let long = Bytes::from(vec![0; TUNNEL_HEADER_BYTES_MAX + 1]);
        let length = long.len();
        assert_eq!(open(long).await.err(), Some(RequestError::TooLong(length)));

        let (took, mut taken) = mpsc::channel(8);
        let take: TakeTunnel = Arc::new(move |from, header, tunnel| match &header[..] {
            b"session 7" => took
                .try_send((from, tunnel))
                .map_err(|_| RequestRefused::Full),
            _ => Err(RequestRefused::Failed(
                "there is no such session".to_owned(),
            )),
        });
        let node = if to == NodeId(1) { &a } else { &b };
        node.handle.take_tunnels(take);
        let mut tunnel = open(Bytes::from_static(b"session 7")).await.unwrap();
        assert_eq!(tunnel.peer(), to);
        let (by, mut session) = taken.recv().await.unwrap();
        assert_eq!((by, session.peer()), (from.node(), from.node()));
        tunnel.write_all(b"ask").await.unwrap();
        let mut heard = [0; 3];
        session.read_exact(&mut heard).await.unwrap();
        session.write_all(b"answered").await.unwrap();
        drop(session);
        let mut answer = String::new();
        tunnel.read_to_string(&mut answer).await.unwrap();
        assert_eq!((&heard, answer.as_str()), (b"ask", "answered"));

        let refused = open(Bytes::from_static(b"session 8")).await.err();
        let why = RequestRefused::Failed("there is no such session".to_owned());
        assert_eq!(refused, Some(why.into()));
        node.taker.set(None);
        let refused = open(Bytes::from_static(b"session 7")).await.err();
        assert_eq!(refused, Some(RequestRefused::NotServed.into()));
    }
    let nobody = a
        .handle
        .open_tunnel(NodeId(9), Bytes::new(), PATIENCE)
        .await;
    assert_eq!(nobody.err(), Some(RequestError::NoPeer));
}

struct Node {
    handle: Handle,
    net: Net,
    taker: Taker,
}

/// Takes tunnels, and nothing else.
struct OnlyTunnels(Taker);

impl Inbox for OnlyTunnels {
    fn frame(&self, _: NodeId, _: Bytes) -> Result<(), Full> {
        Ok(())
    }

    fn request(
        &self,
        _: NodeId,
        _: u8,
        _: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, RequestRefused>> {
        Box::pin(std::future::ready(Err(RequestRefused::NotServed)))
    }

    fn peer(&self, _: PeerChange) {}

    fn tunnel(&self, from: NodeId, header: Bytes, tunnel: Tunnel) -> Result<(), RequestRefused> {
        self.0.take(from, header, tunnel)
    }
}

impl Node {
    async fn start(ca: &Ca, number: u64, seeds: &[String]) -> Node {
        let node = NodeId(number);
        let hello = Hello {
            node,
            incarnation: IncarnationId(number),
            store: StoreId(number),
            name: format!("node {number}"),
            address: "127.0.0.1:1".into(),
            votes: true,
            works: true,
        };
        let config = NetConfig {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            identity: Arc::new(ca.issue("test", node, &[]).unwrap()),
            hello,
            seeds: seeds.to_vec(),
            segmentation_offload: true,
        };
        let taker = Taker::default();
        let net = Net::start(config, Arc::new(OnlyTunnels(taker.clone())))
            .await
            .unwrap();
        let view = View {
            directory: Arc::new(Directory::default()),
            node,
            incarnation: IncarnationId(number),
            store: StoreId(number),
            leader: None,
            lease_until: Time::ZERO,
            peers: Vec::new(),
            missing_seeds: Vec::new(),
            serving: Default::default(),
            unavailable: Default::default(),
        };
        let (asks, _) = mpsc::channel(1);
        let (_, view) = watch::channel(Arc::new(view));
        let tunnels = Tunnels {
            me: node,
            net: Some(net.clone()),
            taker: taker.clone(),
        };
        let handle = Handle::new(asks, view, Events::default()).with_tunnels(tunnels);
        Node { handle, net, taker }
    }

    fn address(&self) -> String {
        self.net.local_addr().unwrap().to_string()
    }

    fn node(&self) -> NodeId {
        self.handle.view().node
    }

    async fn until_up(&self) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.net.peers().is_empty() {
            assert!(tokio::time::Instant::now() < deadline, "the peer is not up");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
