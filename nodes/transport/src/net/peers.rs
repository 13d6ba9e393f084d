//! Which connections to which peers are in use.
//!
//! Owns: the two connections of each peer, the choice among several, and the order in which the inbox
//! hears of peers. Never dials, and never says that a node is dead: `Down` says that its frames do
//! not arrive.
//!
//! Of two nodes the one with the lower id decides which connections are used, whoever dialled them:
//! so both agree at once, and none is replaced that somebody relies on. It takes the first of each
//! role. A peer's new incarnation takes the place of its former at once. A second connection of the
//! same incarnation is a duplicate while the first is young, since both may have dialled; later it
//! means that the peer has lost the first without our knowing.
//!
//! A peer is up while both connections stand. The loss of one ends the other: a peer is reached by
//! all planes or by none, and frames and requests come between `Up` and `Down` only.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use quinn::Connection;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use understudy_protocol::id::NodeId;

use super::hello::{CLOSE_BYE, CLOSE_HALF, CLOSE_REPLACED, Hello};
use super::lane::Lanes;
use super::request::REQUESTS_AT_ONCE_MAX;
use super::tunnel::TUNNELS_MAX;
use super::{Inbox, PeerChange};
use crate::tls::Role;

pub(crate) struct Peers {
    us: NodeId,
    inbox: Arc<dyn Inbox>,
    links: Mutex<BTreeMap<NodeId, Link>>,
    /// Peers that are up. Apart from `links`, so that an inbox may send while it hears of a change.
    routes: RwLock<BTreeMap<NodeId, Arc<Route>>>,
    changed: watch::Sender<u64>,
}

/// A peer that is up.
pub(crate) struct Route {
    pub(crate) hello: Hello,
    pub(crate) truth: Connection,
    pub(crate) data: Connection,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) requests: Semaphore,
    pub(crate) tunnels: Arc<Semaphore>,
}

struct Link {
    hello: Hello,
    truth: Option<Taken>,
    data: Option<Taken>,
    lanes: Arc<Lanes>,
    is_up: bool,
}

struct Taken {
    connection: Connection,
    since: Instant,
}

/// The other connection is in use; this one is not needed.
#[derive(Debug)]
pub(crate) struct Duplicate;

impl Peers {
    pub(crate) fn new(us: NodeId, inbox: Arc<dyn Inbox>) -> Peers {
        Peers {
            us,
            inbox,
            links: Mutex::default(),
            routes: RwLock::default(),
            changed: watch::Sender::new(0),
        }
    }

    /// Whether this node chooses among the connections to `peer`.
    pub(crate) fn decides_for(&self, peer: NodeId) -> bool {
        self.us < peer
    }

    pub(crate) fn route(&self, peer: NodeId) -> Option<Arc<Route>> {
        let routes = self.routes.read().expect("nothing panics while it is held");
        routes.get(&peer).cloned()
    }

    pub(crate) fn up(&self) -> Vec<Hello> {
        let routes = self.routes.read().expect("nothing panics while it is held");
        routes.values().map(|route| route.hello.clone()).collect()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Whether a connection of that role stands.
    pub(crate) fn has(&self, peer: NodeId, role: Role) -> bool {
        let links = self.lock();
        links
            .get(&peer)
            .is_some_and(|link| link.slot(role).is_some())
    }

    /// Which connection to the peer is missing; the truth plane's when both are.
    pub(crate) fn missing(&self, peer: NodeId) -> Option<Role> {
        let links = self.lock();
        let link = links.get(&peer);
        [Role::Truth, Role::Data]
            .into_iter()
            .find(|role| link.and_then(|link| link.slot(*role)).is_none())
    }

    /// Puts a connection to use. Where this node decides, it may be a duplicate; where the peer
    /// decided, it takes the place of any other.
    pub(crate) fn take(
        &self,
        connection: &Connection,
        role: Role,
        hello: Hello,
    ) -> Result<Arc<Lanes>, Duplicate> {
        let peer = hello.node;
        let mut links = self.lock();
        if let Some(link) = links.get(&peer) {
            if let Some(taken) = link.slot(role)
                && self.decides_for(peer)
                && link.hello.incarnation == hello.incarnation
                && taken.connection.close_reason().is_none()
                && taken.since.elapsed() < GLARE
            {
                return Err(Duplicate);
            }
            if link.slot(role).is_some() || link.hello.incarnation != hello.incarnation {
                self.drop_link(&mut links, peer, CLOSE_REPLACED);
            }
        }
        let link = links.entry(peer).or_insert_with(|| Link {
            hello: hello.clone(),
            truth: None,
            data: None,
            lanes: Arc::new(Lanes::new()),
            is_up: false,
        });
        link.hello = hello;
        *link.slot_mut(role) = Some(Taken {
            connection: connection.clone(),
            since: Instant::now(),
        });
        let lanes = link.lanes.clone();
        if let (Some(truth), Some(data)) = (&link.truth, &link.data) {
            let route = Route {
                hello: link.hello.clone(),
                truth: truth.connection.clone(),
                data: data.connection.clone(),
                lanes: lanes.clone(),
                requests: Semaphore::new(REQUESTS_AT_ONCE_MAX),
                tunnels: Arc::new(Semaphore::new(TUNNELS_MAX)),
            };
            let hello = link.hello.clone();
            link.is_up = true;
            self.write_routes(|routes| routes.insert(peer, Arc::new(route)));
            tracing::info!(%peer, name = hello.name, incarnation = %hello.incarnation, "peer up");
            self.inbox.peer(PeerChange::Up(hello));
        }
        self.changed.send_modify(|count| *count += 1);
        Ok(lanes)
    }

    /// A connection has ended. One that was replaced before changes nothing.
    pub(crate) fn lost(&self, connection: &Connection, role: Role, peer: NodeId) {
        let mut links = self.lock();
        let id = connection.stable_id();
        let is_ours = |taken: &Taken| taken.connection.stable_id() == id;
        if links
            .get(&peer)
            .and_then(|link| link.slot(role))
            .is_some_and(is_ours)
        {
            self.drop_link(&mut links, peer, CLOSE_HALF);
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// The network is closed: every peer is down.
    pub(crate) fn drop_all(&self) {
        let mut links = self.lock();
        while let Some(peer) = links.keys().next().copied() {
            self.drop_link(&mut links, peer, CLOSE_BYE);
        }
    }

    /// Waits until the peer is up by this very connection; `false` when that cannot be any more.
    pub(crate) async fn until_up(&self, connection: &Connection, role: Role, peer: NodeId) -> bool {
        let mut changes = self.changes();
        let id = connection.stable_id();
        loop {
            changes.borrow_and_update();
            {
                let links = self.lock();
                let Some(link) = links.get(&peer) else {
                    return false;
                };
                match link.slot(role) {
                    Some(taken) if taken.connection.stable_id() == id => {}
                    _ => return false,
                }
                if link.is_up {
                    return true;
                }
            }
            if changes.changed().await.is_err() {
                return false;
            }
        }
    }

    fn drop_link(&self, links: &mut BTreeMap<NodeId, Link>, peer: NodeId, code: quinn::VarInt) {
        let Some(link) = links.remove(&peer) else {
            return;
        };
        for taken in [&link.truth, &link.data].into_iter().flatten() {
            taken.connection.close(code, b"");
        }
        link.lanes.close();
        if link.is_up {
            self.write_routes(|routes| routes.remove(&peer));
            tracing::info!(%peer, name = link.hello.name, "peer down");
            self.inbox.peer(PeerChange::Down(peer));
        }
    }

    fn write_routes<T>(&self, change: impl FnOnce(&mut BTreeMap<NodeId, Arc<Route>>) -> T) {
        let mut routes = self
            .routes
            .write()
            .expect("nothing panics while it is held");
        change(&mut routes);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, Link>> {
        // An inbox that panics at a change leaves the links as they are: whole.
        self.links
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Link {
    fn slot(&self, role: Role) -> Option<&Taken> {
        match role {
            Role::Truth => self.truth.as_ref(),
            Role::Data => self.data.as_ref(),
        }
    }

    fn slot_mut(&mut self, role: Role) -> &mut Option<Taken> {
        match role {
            Role::Truth => &mut self.truth,
            Role::Data => &mut self.data,
        }
    }
}

/// How long after a connection was taken another of the same incarnation is a duplicate: longer than
/// two dials that crossed are apart.
const GLARE: Duration = Duration::from_secs(2);
