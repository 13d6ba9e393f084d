//! UDP relays in front of nodes, which lose what a test wants lost.
//!
//! Owns: one relay a node and port. Peers know only the relay's address. A relay tells its senders apart
//! by the port they send from, since a node dials from the port it listens on. It never changes a
//! datagram.
//!
//! ```text
//!   a ──> relay of b ── a socket of its own for a ──> b ── answers ──> that socket ──> relay of b ──> a
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::ports;

/// The relays of one cluster.
pub struct Relays {
    shared: Arc<Shared>,
    advertised: Vec<u16>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    /// From which node to which nothing goes.
    cut: Mutex<BTreeSet<(usize, usize)>>,
    /// Datagrams of a thousand that are lost.
    loss: AtomicU64,
    drawn: AtomicU64,
}

impl Relays {
    /// Relays in front of nodes that listen on these ports, and on the next (their hearts).
    pub async fn start(nodes: &[u16]) -> Result<Relays> {
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        let mut advertised = Vec::new();
        let mut senders = BTreeMap::new();
        for (nth, port) in nodes.iter().enumerate() {
            senders.insert(*port, nth);
            senders.insert(port + 1, nth);
        }
        for (nth, port) in nodes.iter().enumerate() {
            let shown = ports::udp_pair()?;
            for offset in [0, 1] {
                let front = UdpSocket::bind((Ipv4Addr::LOCALHOST, shown + offset)).await;
                let relay = Relay {
                    shared: shared.clone(),
                    node: nth,
                    target: (Ipv4Addr::LOCALHOST, port + offset).into(),
                    senders: senders.clone(),
                    front: Arc::new(front.context("a relay's port was taken")?),
                    back: BTreeMap::new(),
                    answers: JoinSet::new(),
                };
                tasks.spawn(relay.run());
            }
            advertised.push(shown);
        }
        Ok(Relays {
            shared,
            advertised,
            _tasks: tasks,
        })
    }

    /// What the nodes say that they are reached at.
    pub fn advertised(&self) -> &[u16] {
        &self.advertised
    }

    /// Nothing goes from one to the other any more; the other way it does.
    pub fn cut_one_way(&self, from: usize, to: usize) {
        self.shared.cut().insert((from, to));
    }

    /// Nothing goes between the node and the others any more.
    pub fn isolate(&self, node: usize) {
        for other in (0..self.advertised.len()).filter(|other| *other != node) {
            self.cut_one_way(node, other);
            self.cut_one_way(other, node);
        }
    }

    /// So many of a thousand datagrams are lost.
    pub fn lose(&self, of_thousand: u64) {
        self.shared.loss.store(of_thousand, Ordering::Relaxed);
    }

    /// Everything goes through again.
    pub fn heal(&self) {
        self.shared.cut().clear();
        self.lose(0);
    }
}

impl Shared {
    fn cut(&self) -> std::sync::MutexGuard<'_, BTreeSet<(usize, usize)>> {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lets(&self, from: Option<usize>, to: Option<usize>) -> bool {
        if let (Some(from), Some(to)) = (from, to)
            && self.cut().contains(&(from, to))
        {
            return false;
        }
        // SplitMix64's step (Steele, Lea and Flood, OOPSLA 2014): the same losses in every run.
        let z = self
            .drawn
            .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % 1_000 >= self.loss.load(Ordering::Relaxed)
    }
}

/// One relay in front of one port of one node.
struct Relay {
    shared: Arc<Shared>,
    node: usize,
    target: SocketAddr,
    senders: BTreeMap<u16, usize>,
    front: Arc<UdpSocket>,
    back: BTreeMap<SocketAddr, Arc<UdpSocket>>,
    answers: JoinSet<()>,
}

impl Relay {
    async fn run(mut self) {
        let mut datagram = vec![0; DATAGRAM_MAX];
        loop {
            // An error is the answer to a datagram that found nobody: the node is down.
            let Ok((length, from)) = self.front.recv_from(&mut datagram).await else {
                continue;
            };
            let sender = self.senders.get(&from.port()).copied();
            if !self.shared.lets(sender, Some(self.node)) {
                continue;
            }
            let Some(back) = self.back_for(from, sender).await else {
                continue;
            };
            let _ = back.send_to(&datagram[..length], self.target).await;
        }
    }

    async fn back_for(
        &mut self,
        from: SocketAddr,
        sender: Option<usize>,
    ) -> Option<Arc<UdpSocket>> {
        if let Some(back) = self.back.get(&from) {
            return Some(back.clone());
        }
        if self.back.len() >= SENDERS_MAX {
            return None;
        }
        let back = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.ok()?;
        let back = Arc::new(back);
        self.back.insert(from, back.clone());
        let (shared, front, node, source) = (
            self.shared.clone(),
            self.front.clone(),
            self.node,
            back.clone(),
        );
        self.answers.spawn(async move {
            let mut datagram = vec![0; DATAGRAM_MAX];
            loop {
                let Ok((length, _)) = source.recv_from(&mut datagram).await else {
                    continue;
                };
                if shared.lets(Some(node), sender) {
                    let _ = front.send_to(&datagram[..length], from).await;
                }
            }
        });
        Some(back)
    }
}

/// Larger than any datagram on loopback.
const DATAGRAM_MAX: usize = 65_536;

/// Senders of one relay: the nodes, and the wardens and restarts of a long test.
const SENDERS_MAX: usize = 1_024;
