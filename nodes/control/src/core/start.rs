//! How the core is put together, and how it ends.
//!
//! Owns: the channels and their sizes. Never decides what happens in them.

use super::*;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;

use tokio::task::JoinSet;
use understudy_protocol::cluster::agent::AgentSettings;
use understudy_protocol::id::IncarnationId;
use understudy_protocol::journal::ControllerStart;
use understudy_protocol::wire::heart::{DeathDigest, Ttl};
use understudy_store::LimitFile;
use understudy_supervision::driver::Kinds;
use understudy_transport::net::{Net, PeerStream};

use crate::agents::{self, LinkParts, LinkTask};
use crate::contents::Contents;
use crate::handle::Handle;
use crate::journal;
use crate::raft::RaftRequests;
use crate::tunnels::{Taker, Tunnels};

/// What stays the same for one start of a node.
#[derive(Clone)]
pub struct CoreConfig {
    /// This node.
    pub node: NodeId,
    /// What people call it.
    pub name: String,
    /// Where its peers reach it.
    pub address: String,
    /// This start of it.
    pub incarnation: IncarnationId,
    /// Its store.
    pub store: StoreId,
    /// What its warden's death note must match.
    pub death: DeathDigest,
    /// Whether its store votes.
    pub votes: bool,
    /// Whether it runs units.
    pub works: bool,
    /// Labels, such as `zone`.
    pub labels: BTreeMap<String, String>,
    /// Nodes that a cluster is formed with.
    pub seeds: Vec<String>,
    /// The TTL of a cluster that is formed here (L3).
    pub ttl: Ttl,
    /// Replicas of a cluster that is formed here (R4).
    pub replicas: u8,
    /// The least copies of a cluster that is formed here (R4).
    pub min_copies: u8,
    /// How long one call may be at work before its child is killed as hung.
    pub work_limit: Duration,
    /// After how long without a call a light child is passivated.
    pub passivate_after: Duration,
    /// Where the event logs of the core's machines go, if they are recorded.
    pub journal: Option<PathBuf>,
    /// Ends the process: the node cannot go on, and says why.
    pub fatal: Arc<dyn Fn(String) + Send + Sync>,
}

/// The warden, as the core needs it.
pub struct Warden {
    /// The unit starts or works (V2).
    pub at_work: Box<dyn Fn(UnitId) + Send>,
    /// The unit rests.
    pub at_rest: Box<dyn Fn(UnitId) + Send>,
    /// Whom a death note goes to.
    pub voters: Arc<dyn Fn(Vec<SocketAddr>) + Send + Sync>,
}

/// What the core works with, started already.
pub struct CoreParts {
    /// Which kinds of children there are.
    pub kinds: Kinds,
    /// The lanes and the truth plane.
    pub net: Net,
    /// The way to this node's store, and where children's long bytes are.
    pub contents: Contents,
    /// The file of the heart's limit.
    pub limit: Arc<Mutex<LimitFile>>,
    /// Raft.
    pub raft: RaftDriver,
    /// What Raft says.
    pub raft_events: mpsc::Receiver<RaftEvent>,
    /// The heart.
    pub heart: HeartHandle,
    /// What the heart says.
    pub heart_outputs: mpsc::Receiver<HeartOutput>,
    /// The warden.
    pub warden: Warden,
    /// What [`CoreInbox`] puts in.
    pub inbox: InboxEnds,
    /// For entries and jitter.
    pub seed: u64,
}

/// The core's ends of a [`CoreInbox`].
pub struct InboxEnds {
    lanes: mpsc::Receiver<Input>,
    fetched: mpsc::Sender<Input>,
    peers: watch::Receiver<BTreeMap<NodeId, Hello>>,
    streams: mpsc::Receiver<PeerStream>,
    taker: Taker,
}

/// The running core.
pub struct CoreTask {
    task: JoinSet<Core>,
    stop: oneshot::Sender<()>,
    links: LinkTask,
    taker: Taker,
}

/// Where the core's own store answers, and what a [`CoreInbox`] is made of.
#[derive(Clone)]
pub struct InboxStart {
    lanes: mpsc::Sender<Input>,
    peers: watch::Sender<BTreeMap<NodeId, Hello>>,
    streams: mpsc::Sender<PeerStream>,
    taker: Taker,
}

/// The two sides of an inbox: what puts in, and what the core reads.
pub fn inbox() -> (InboxStart, InboxEnds) {
    let (lanes, lanes_end) = mpsc::channel(LANES_MAX);
    let (peers, peers_end) = watch::channel(BTreeMap::new());
    let (streams, streams_end) = mpsc::channel(agents::STREAMS_MAX);
    let ends = InboxEnds {
        lanes: lanes_end,
        fetched: lanes.clone(),
        peers: peers_end,
        streams: streams_end,
        taker: Taker::default(),
    };
    let start = InboxStart {
        lanes,
        peers,
        streams,
        taker: ends.taker.clone(),
    };
    (start, ends)
}

impl InboxStart {
    /// An answer of this node's own store, for an owner here. Lost when the core is behind: the owner
    /// asks again.
    pub fn answer(&self, answer: ReplicaAnswer) {
        let _ = self.lanes.try_send(Input::Answer(answer));
    }

    /// The inbox of the network.
    pub fn inbox(self, contents: Contents, raft: RaftRequests) -> CoreInbox {
        CoreInbox {
            lanes: self.lanes,
            contents,
            raft,
            peers: self.peers,
            streams: self.streams,
            taker: self.taker,
        }
    }
}

/// Starts the core; the handle is what everybody else talks to.
pub fn start(config: CoreConfig, parts: CoreParts) -> (Handle, CoreTask) {
    let now = clock::now();
    let settings = AgentSettings {
        incarnation: config.incarnation,
        home: config.store,
        key_kept: understudy_protocol::cluster::calls::KEY_KEPT,
        passivate_after: config.passivate_after,
        work_limit: config.work_limit,
        snapshot_every: SNAPSHOT_EVERY,
        sealing: understudy_protocol::cluster::calls::Sealing::default(),
    };
    let controller = ControllerStart {
        directory: Directory::default(),
        seed: parts.seed,
    };
    let log = |name| journal::open(config.journal.as_deref(), name);
    let (children, children_end) = mpsc::channel(CHILDREN_MAX);
    let (asks, asks_end) = mpsc::channel(ASKS_MAX);
    let (stop, stop_end) = oneshot::channel();
    let (exits, exits_end) = mpsc::channel(agents::EXITS_MAX);
    let links = LinkParts {
        me: config.node,
        net: parts.net.clone(),
        streams: parts.inbox.streams,
        peers: parts.inbox.peers.clone(),
        exits: exits_end,
    };
    let tunnels = Tunnels {
        me: config.node,
        net: Some(parts.net.clone()),
        taker: parts.inbox.taker.clone(),
    };
    let events = Events::default();
    let directory = Arc::new(Directory::default());
    let (view, view_end) = watch::channel(Arc::new(View {
        directory: directory.clone(),
        node: config.node,
        incarnation: config.incarnation,
        store: config.store,
        leader: None,
        lease_until: Time::ZERO,
        peers: Vec::new(),
        missing_seeds: config.seeds.clone(),
        serving: BTreeSet::new(),
        unavailable: BTreeSet::new(),
    }));
    let core = Core {
        controller: Recorded::begin(now, controller, log("controller")),
        agent: Recorded::begin(now, settings, log("agent")),
        caller: Recorded::begin(now, config.incarnation, log("caller")),
        raft: parts.raft,
        heart: parts.heart,
        kinds: parts.kinds.names().map(str::to_owned).collect(),
        driver: Driver::keeping(parts.kinds, Arc::new(parts.contents.clone()), children),
        outlet: Outlet::new(
            config.node,
            config.store,
            parts.net,
            parts.contents.clone(),
            parts.inbox.fetched,
            parts.limit,
        ),
        warden: parts.warden,
        events: events.clone(),
        exits,
        untold: 0,
        view,
        leads_from: None,
        directory,
        directory_moved: false,
        view_moved: true,
        peers: BTreeMap::new(),
        serving: BTreeSet::new(),
        unavailable: BTreeSet::new(),
        waiting: BTreeMap::new(),
        next_call: 1,
        forming: None,
        say_again_at: now,
        random: parts.seed ^ 0x5EED,
        config,
    };
    let inputs = Inputs {
        raft: parts.raft_events,
        heart: parts.heart_outputs,
        lanes: parts.inbox.lanes,
        children: children_end,
        asks: asks_end,
        peers: parts.inbox.peers,
        stop: stop_end,
    };
    let heart = core.heart.clone();
    let mut task = JoinSet::new();
    task.spawn(core.run(inputs));
    let handle = Handle::new(asks, view_end, events)
        .with_tunnels(tunnels)
        .with_heart(heart);
    let (handle, links) = agents::start(links, handle);
    let core = CoreTask {
        task,
        stop,
        links,
        taker: parts.inbox.taker,
    };
    (handle, core)
}

impl CoreTask {
    /// Ends the core and everything that it started. Children are stopped; what they had not
    /// acknowledged is lost with them.
    pub async fn stop(mut self) {
        // Whoever takes tunnels may hold a handle, which holds the network, which holds the taker.
        self.taker.set(None);
        // It acts through the core, so it goes first.
        self.links.stop().await;
        let _ = self.stop.send(());
        let Some(Ok(core)) = self.task.join_next().await else {
            return;
        };
        core.driver.shutdown().await;
        core.raft.shutdown().await;
        core.outlet.close().await;
    }
}

/// Messages of peers that wait for the core: some milliseconds of work. More is withheld credit.
const LANES_MAX: usize = 4_096;

/// Calls and questions of this process that wait for the core.
const ASKS_MAX: usize = 4_096;

/// What children say that waits for the core: each child has one call at work at most, and waits
/// with its next word until there is room.
const CHILDREN_MAX: usize = 1_024;

/// Records of a child between two snapshots. A snapshot repeats every call that is remembered (some
/// tens of bytes each), so it is worth its place once a few dozen steps have gathered.
const SNAPSHOT_EVERY: u64 = 32;
const _: () = assert!(SNAPSHOT_EVERY <= agent::SNAPSHOT_EVERY_MAX);
