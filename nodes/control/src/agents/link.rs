//! The links between node agents, kept up for as long as the nodes see each other.
//!
//! Owns: this node's `ractor_cluster` server, its agent, and which peers' agents can be asked. The
//! node with the lower id opens the stream, again and again while there is none; the other takes it.
//! Who a peer is says the certificate of its connection, never its own greeting on the stream.
//!
//! The engine tells who came and went, but tells only once; so what it says is a reason to look, and
//! what is seen then is the truth. A look is one question to an actor of this process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorId, ActorRef};
use ractor_cluster::node::{NodeEventSubscription, NodeServerSessionInformation};
use ractor_cluster::{NodeServer, NodeServerMessage};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tracing::{debug, info, warn};

use understudy_protocol::id::{IncarnationId, NodeId};
use understudy_protocol::time::Time;
use understudy_supervision::clock;
use understudy_transport::net::{Hello, Net, PeerStream};
use understudy_transport::ractor_link;

use super::actor::{AgentMessage, NodeAgent};
use super::rate::Rate;
use super::wire::{self, ExitNotice};
use super::{Agents, Links};
use crate::handle::Handle;

/// What the links are made of.
pub(crate) struct LinkParts {
    /// This node.
    pub(crate) me: NodeId,
    /// Where streams are opened.
    pub(crate) net: Net,
    /// Streams that peers opened.
    pub(crate) streams: mpsc::Receiver<PeerStream>,
    /// Who is connected.
    pub(crate) peers: watch::Receiver<BTreeMap<NodeId, Hello>>,
    /// What the others are to know.
    pub(crate) exits: mpsc::Receiver<ExitNotice>,
}

/// The running control plane of a node.
pub(crate) struct LinkTask {
    task: JoinSet<()>,
    stop: oneshot::Sender<()>,
}

impl LinkTask {
    /// Ends the links, the agent and the server.
    pub(crate) async fn stop(mut self) {
        let _ = self.stop.send(());
        while self.task.join_next().await.is_some() {}
    }
}

/// Starts the control plane. `handle` is what the agent acts through; `with` makes it of the agents
/// that can be asked.
pub(crate) fn start(parts: LinkParts, handle: Handle) -> (Handle, LinkTask) {
    let (links, links_end) = watch::channel(Links::new());
    let handle = handle.with_agents(Agents::new(links_end));
    let (stop, stopped) = oneshot::channel();
    let mut task = JoinSet::new();
    task.spawn(run(parts, handle.clone(), links, stopped));
    (handle, LinkTask { task, stop })
}

async fn run(
    mut parts: LinkParts,
    handle: Handle,
    links: watch::Sender<Links>,
    mut stop: oneshot::Receiver<()>,
) {
    loop {
        match Plane::start(parts.me, handle.clone(), &links).await {
            Ok(mut plane) => {
                let ended = plane.run(&mut parts, &mut stop).await;
                links.send_replace(Links::new());
                plane.end().await;
                if ended == Ended::Stopped {
                    return;
                }
                warn!("the control plane has ended and is started again");
            }
            Err(error) => warn!(error, "the control plane could not be started"),
        }
        tokio::select! {
            _ = &mut stop => return,
            () = tokio::time::sleep(START_AGAIN) => {}
        }
    }
}

#[derive(PartialEq, Eq)]
enum Ended {
    Stopped,
    Failed,
}

/// One life of this node's server and agent.
struct Plane<'a> {
    me: NodeId,
    server: (ActorRef<NodeServerMessage>, JoinHandle<()>),
    agent: (ActorRef<AgentMessage>, JoinHandle<()>),
    moved: Arc<Notify>,
    links: &'a watch::Sender<Links>,
    dials: BTreeMap<NodeId, Dial>,
    opening: JoinSet<Option<PeerStream>>,
    taken_at: BTreeMap<NodeId, Time>,
    rate: Rate,
}

/// A peer that this node opens the stream to.
struct Dial {
    incarnation: IncarnationId,
    due: Time,
    pause: Duration,
}

impl<'a> Plane<'a> {
    async fn start(
        me: NodeId,
        handle: Handle,
        links: &'a watch::Sender<Links>,
    ) -> Result<Plane<'a>, String> {
        let server: NodeServer = ractor_link::node_server(me, COOKIE.to_owned());
        let server = Actor::spawn(None, server, ()).await;
        let server = server.map_err(|error| error.to_string())?;
        let name = format!("node agent {:016x}", me.0);
        let agent = match Actor::spawn(Some(name), NodeAgent, handle).await {
            Ok(agent) => agent,
            Err(error) => {
                server.0.stop(None);
                return Err(error.to_string());
            }
        };
        let moved = Arc::new(Notify::new());
        ractor::pg::join(GROUP.to_owned(), vec![agent.0.get_cell()]);
        let subscription = Box::new(Moved(moved.clone()));
        let id = "links".to_owned();
        let subscribed = server
            .0
            .cast(NodeServerMessage::SubscribeToEvents { id, subscription });
        let plane = Plane {
            me,
            server,
            agent,
            moved,
            links,
            dials: BTreeMap::new(),
            opening: JoinSet::new(),
            taken_at: BTreeMap::new(),
            rate: Rate::new(NOTICES_PER_SECOND),
        };
        match subscribed {
            Ok(()) => Ok(plane),
            Err(error) => {
                plane.end().await;
                Err(error.to_string())
            }
        }
    }

    async fn run(&mut self, parts: &mut LinkParts, stop: &mut oneshot::Receiver<()>) -> Ended {
        let moved = self.moved.clone();
        loop {
            tokio::select! {
                _ = &mut *stop => return Ended::Stopped,
                _ = &mut self.server.1 => return Ended::Failed,
                _ = &mut self.agent.1 => return Ended::Failed,
                Some(stream) = parts.streams.recv() => self.take(stream),
                Some(Ok(stream)) = self.opening.join_next() => self.opened(stream),
                Some(notice) = parts.exits.recv() => {
                    self.tell(notice);
                    continue;
                }
                Ok(()) = parts.peers.changed() => {}
                () = moved.notified() => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
            let peers = parts.peers.borrow_and_update().clone();
            self.look(&peers, &parts.net).await;
        }
    }

    async fn end(mut self) {
        self.opening.shutdown().await;
        // Nobody waits for a reply of ours any more that could be lost by this.
        for stopped in [
            self.agent.0.stop_and_wait(None, Some(STOP_PATIENCE)).await,
            self.server.0.stop_and_wait(None, Some(STOP_PATIENCE)).await,
        ] {
            if let Err(error) = stopped {
                debug!(%error, "an actor of the control plane did not stop in time");
            }
        }
    }

    /// A stream that a peer opened: only those with a lower id do, and none in a hurry.
    fn take(&mut self, stream: PeerStream) {
        let peer = stream.peer();
        let now = clock::now();
        let last = self.taken_at.get(&peer).copied().unwrap_or(Time::ZERO);
        if peer >= self.me || now.since(last) < TAKEN_EVERY {
            debug!(%peer, "a control stream was not taken");
            return;
        }
        self.taken_at.insert(peer, now);
        let _ = ractor_link::link(&self.server.0, stream, false);
    }

    fn opened(&mut self, stream: Option<PeerStream>) {
        // Without a stream the next look tries again.
        if let Some(stream) = stream {
            let _ = ractor_link::link(&self.server.0, stream, true);
        }
    }

    /// Sees who can be asked, and opens streams to those who cannot.
    async fn look(&mut self, peers: &BTreeMap<NodeId, Hello>, net: &Net) {
        self.taken_at.retain(|node, _| peers.contains_key(node));
        let asked = self
            .server
            .0
            .call(NodeServerMessage::GetSessions, Some(LOOK_PATIENCE))
            .await;
        let Ok(ractor::rpc::CallResult::Success(sessions)) = asked else {
            return;
        };
        // The transport has labelled each session with the node that its certificate names.
        let node_of = |label: &str| {
            let named = peers.keys().find(|node| node.to_string() == label);
            named.copied()
        };
        let sessions: BTreeMap<u64, NodeId> = sessions
            .into_iter()
            .filter_map(|(id, session)| Some((id, node_of(&session.peer_addr)?)))
            .collect();
        let mut links = Links::new();
        let mut newest: BTreeMap<NodeId, u64> = BTreeMap::new();
        for member in ractor::pg::get_members(&GROUP.to_owned()) {
            let ActorId::Remote { node_id, .. } = member.get_id() else {
                continue;
            };
            let Some(node) = sessions.get(&node_id).copied() else {
                continue;
            };
            if newest.get(&node).is_none_or(|known| *known < node_id) {
                newest.insert(node, node_id);
                links.insert(node, member.into());
            }
        }
        let ids = |links: &Links| -> Vec<(NodeId, ActorId)> {
            let all = links.iter();
            all.map(|(node, agent)| (*node, agent.get_id())).collect()
        };
        self.links.send_if_modified(|known| {
            let is_new = ids(known) != ids(&links);
            if is_new {
                info!(nodes = links.len(), "node agents can be asked");
                *known = links;
            }
            is_new
        });
        let linked = |node: &NodeId| sessions.values().any(|of| of == node);
        self.dial(peers, net, linked);
    }

    fn dial(
        &mut self,
        peers: &BTreeMap<NodeId, Hello>,
        net: &Net,
        linked: impl Fn(&NodeId) -> bool,
    ) {
        let now = clock::now();
        let is_known = |node: &NodeId, dial: &Dial| {
            let hello = peers.get(node);
            hello.is_some_and(|hello| hello.incarnation == dial.incarnation)
        };
        self.dials.retain(|node, dial| is_known(node, dial));
        for (node, hello) in peers.iter().filter(|(node, _)| **node > self.me) {
            let dial = self.dials.entry(*node).or_insert(Dial {
                incarnation: hello.incarnation,
                due: now,
                pause: DIAL_AGAIN,
            });
            if linked(node) {
                (dial.due, dial.pause) = (now, DIAL_AGAIN);
            } else if dial.due <= now {
                dial.due = now + dial.pause;
                dial.pause = (dial.pause * 2).min(DIAL_AGAIN_MAX);
                let (net, node) = (net.clone(), *node);
                self.opening
                    .spawn(async move { net.open_stream(node, OPEN_PATIENCE).await.ok() });
            }
        }
    }

    /// Says why a child failed to every agent that can be asked. Those that cannot do not hear it.
    fn tell(&mut self, mut notice: ExitNotice) {
        let Some(missed) = self.rate.pass(clock::now()) else {
            metrics::counter!("understudy_exit_notices_dropped_total").increment(1);
            return;
        };
        notice.missed += missed;
        notice.reason = wire::cut(notice.reason);
        let body = wire::encoded(&notice);
        for agent in self.links.borrow().values() {
            let _ = agent.cast(AgentMessage::Exited(body.clone()));
        }
    }
}

/// Something has changed: a reason to look.
struct Moved(Arc<Notify>);

impl NodeEventSubscription for Moved {
    fn node_session_opened(&self, _: NodeServerSessionInformation) {}

    fn node_session_disconnected(&self, _: NodeServerSessionInformation) {
        self.0.notify_one();
    }

    fn node_session_authenticated(&self, _: NodeServerSessionInformation) {}

    fn node_session_ready(&self, _: NodeServerSessionInformation) {
        self.0.notify_one();
    }
}

/// Where agents are found: the version of what they say is in the name.
const GROUP: &str = "understudy node agents 1";

/// What the engine wants to hear from both sides. No secret: certificates have let the peer in.
const COOKIE: &str = "understudy";

/// How often it looks without a reason.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The engine's server answers at once, or is broken.
const LOOK_PATIENCE: Duration = Duration::from_secs(1);

/// A stream is opened without a round trip; what can wait is the peer's permission for one more.
const OPEN_PATIENCE: Duration = Duration::from_secs(2);

/// After how long without a link the stream is opened again, at first: the engine's greeting takes
/// four round trips.
const DIAL_AGAIN: Duration = Duration::from_secs(1);

/// And at most: a peer that refuses this plane is asked rarely, and missed by nobody.
const DIAL_AGAIN_MAX: Duration = Duration::from_secs(10);

/// Streams of one peer that are taken: each costs some actors until its greeting fails.
const TAKEN_EVERY: Duration = Duration::from_millis(250);

/// Notices that leave this node in a second, to each peer: a kind that fails at every start would
/// fill queues without a limit otherwise, and people read the first few.
const NOTICES_PER_SECOND: u32 = 20;

/// The plane is started again after this long.
const START_AGAIN: Duration = Duration::from_secs(1);

/// An actor of this plane does nothing that takes longer.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// Streams that wait to be taken.
pub(crate) const STREAMS_MAX: usize = 64;

/// Notices that wait to be told: some seconds at the rate above.
pub(crate) const EXITS_MAX: usize = 64;
