//! What the gateway and the binary call: one node, seen from inside its process.
//!
//! Owns: the questions that may be asked of a node, and the errors they may end in. Never answers one
//! itself: the core task does, and a call that has to go elsewhere goes over the lanes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use understudy_protocol::cluster::directory::{Command, Directory};
use understudy_protocol::id::{ChildId, Epoch, IncarnationId, NodeId, Seq, StoreId, UnitId};
use understudy_protocol::time::Time;
use understudy_store::USED_PERCENT_MAX;
use understudy_transport::net::{RequestError, Tunnel};

use crate::agents::Agents;
use crate::events::{EventStream, Events};
use crate::heart::HeartHandle;
use crate::listing::{Children, ChildrenOf};
use crate::tunnels::{TakeTunnel, Taker, Tunnels};

/// A node, for whoever lives in its process. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    asks: mpsc::Sender<Ask>,
    view: watch::Receiver<Arc<View>>,
    events: Events,
    agents: Agents,
    tunnels: Tunnels,
    /// Whether this node's store turns records away.
    store_full: Arc<AtomicBool>,
    heart: Option<HeartHandle>,
}

/// What a node knows, at one moment.
#[derive(Clone, Debug)]
pub struct View {
    /// The directory as applied here.
    pub directory: Arc<Directory>,
    /// This node.
    pub node: NodeId,
    /// This start of it.
    pub incarnation: IncarnationId,
    /// Its store.
    pub store: StoreId,
    /// Who leads the directory, as far as this node knows.
    pub leader: Option<NodeId>,
    /// Until when its lease was valid, by its own clock, when this view was made; [`Time::ZERO`] before the
    /// first. For now there is [`Handle::lease_until`].
    pub lease_until: Time,
    /// Peers that it has connections to.
    pub peers: Vec<Peer>,
    /// Seeds of the configuration that no connected peer stands at.
    pub missing_seeds: Vec<String>,
    /// Units that it serves.
    pub serving: BTreeSet<UnitId>,
    /// Units that it owns and of which no complete replica answers (T2).
    pub unavailable: BTreeSet<UnitId>,
}

/// A connected peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Which node.
    pub node: NodeId,
    /// What people call it.
    pub name: String,
    /// Where it is reached.
    pub address: String,
    /// Its store.
    pub store: StoreId,
    /// Whether its store should vote.
    pub votes: bool,
}

/// The answer to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// What the child answered.
    pub body: Bytes,
    /// The last record that it reflects.
    pub reflects: Seq,
    /// All that it reflects is in records that are acknowledged. If not, the end of the child takes it
    /// along.
    pub durable: bool,
    /// Who served it.
    pub node: NodeId,
}

/// Why a call was not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Not done: a queue or a table is full.
    #[error("the child, or the way to it, is full; try again in {retry_after:?}")]
    Overloaded {
        /// When to try again.
        retry_after: Duration,
    },
    /// Not done: the key was used for another request.
    #[error("this idempotency key was used for another request")]
    Conflict,
    /// Not done: the unit is quarantined, or no complete replica of it answers.
    #[error("{0} is unavailable: it is in quarantine, or no complete copy of its records answers")]
    Unavailable(ChildId),
    /// Not done: no such dedicated child exists.
    #[error("there is no child {0}")]
    NotFound(ChildId),
    /// Not done: nodes know no such kind of children.
    #[error("there is no kind `{kind}`; there are: {}", known.join(", "))]
    UnknownKind {
        /// What was asked for.
        kind: String,
        /// What there is.
        known: Vec<String>,
    },
    /// Not done: the answer is above 1 MiB, or the step or the state after it above 64 MiB.
    #[error("the answer, the step or the state after it is above its limit")]
    TooLarge,
    /// The caller's time is over.
    #[error("no answer within {:.1} s; {}", patience.as_secs_f64(), if *maybe_done {
        "nobody can say whether it was done: ask again with the same key"
    } else {
        "it was not done"
    })]
    DeadlineExceeded {
        /// How long the caller waited.
        patience: Duration,
        /// Whether it may have been done, or may still be. Otherwise it was not, and will not be.
        maybe_done: bool,
    },
    /// Not done: the cluster has not been formed.
    #[error("the cluster is not formed")]
    NotFormed,
    /// Nobody can say whether it was done: the node is stopping.
    #[error("the node is stopping; ask another with the same key")]
    Stopping,
}

/// Why a command was not seen applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// It may still be applied later.
    #[error("the directory did not take the change within {0:?}; is a majority of voters up?")]
    TimedOut(Duration),
    /// The node is stopping; it may still be applied.
    #[error("the node is stopping")]
    Stopping,
}

/// Why no cluster was formed. Nothing has changed, unless said otherwise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// It was formed before.
    #[error("this node belongs to a cluster already")]
    AlreadyFormed,
    /// A seed does not answer.
    #[error("no connection to {}; start them, or form the cluster of this node alone", .0.join(", "))]
    Missing(Vec<String>),
    /// A node alone was not asked for by name.
    #[error("this node has no seeds: say that it is to be a cluster alone")]
    NotSingle,
    /// Too few voters to outlive one.
    #[error("{0} voters can outlive the loss of none; configure three, or one alone")]
    BadVoters(usize),
    /// Raft refused.
    #[error("{0}")]
    Raft(String),
    /// It was begun, but nobody has seen the first entry applied: look again later.
    #[error("the first entry was not applied within {0:?}; the nodes go on trying")]
    TimedOut(Duration),
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
}

/// What the core is asked: the other end of a [`Handle`].
#[derive(Debug)]
#[allow(missing_docs)] // the fields are those of the handle's methods
pub enum Ask {
    /// See [`Handle::call`].
    Call {
        child: ChildId,
        key: Option<String>,
        body: Bytes,
        patience: Duration,
        answer: oneshot::Sender<Result<Answered, CallError>>,
    },
    /// See [`Handle::propose`].
    Propose(Command),
    /// See [`Handle::children`].
    Children {
        of: ChildrenOf,
        answer: oneshot::Sender<Children>,
    },
    /// See [`Handle::form`].
    Form {
        single: bool,
        answer: oneshot::Sender<Result<(), FormError>>,
    },
}

impl Handle {
    /// A handle of whoever answers `asks` and keeps `view` true. It has no way to other nodes.
    pub fn new(
        asks: mpsc::Sender<Ask>,
        view: watch::Receiver<Arc<View>>,
        events: Events,
    ) -> Handle {
        let agents = Agents::none();
        let tunnels = Tunnels {
            me: view.borrow().node,
            net: None,
            taker: Taker::default(),
        };
        Handle {
            asks,
            view,
            events,
            agents,
            tunnels,
            store_full: Arc::default(),
            heart: None,
        }
    }

    pub(crate) fn with_tunnels(self, tunnels: Tunnels) -> Handle {
        Handle { tunnels, ..self }
    }

    /// The same, which asks the heart itself for the lease.
    pub(crate) fn with_heart(self, heart: HeartHandle) -> Handle {
        Handle {
            heart: Some(heart),
            ..self
        }
    }

    /// Until when this node's lease is valid, by its own clock, as it is at this moment. The one in a
    /// [`View`] is as old as the view, and views come when something else changes.
    pub fn lease_until(&self) -> Time {
        match &self.heart {
            Some(heart) => heart.lease_until(),
            None => self.view.borrow().lease_until,
        }
    }

    /// The same, with what says whether this node's store turns records away.
    #[must_use]
    pub fn with_fullness(self, store_full: Arc<AtomicBool>) -> Handle {
        Handle { store_full, ..self }
    }

    /// Why what changes something may get no answer, as far as this node's own store knows. Stores are
    /// filled alike, so the others' owners mostly have the same reason.
    pub fn store_trouble(&self) -> Option<String> {
        let full = self.store_full.load(Ordering::Relaxed);
        full.then(|| {
            format!(
                "the store of this node takes no records: its disk is more than {USED_PERCENT_MAX} % \
                 full"
            )
        })
    }

    pub(crate) fn with_agents(self, agents: Agents) -> Handle {
        Handle { agents, ..self }
    }

    /// The agents of the other nodes.
    pub fn agents(&self) -> &Agents {
        &self.agents
    }

    /// Adds an event of this node's own, for people.
    pub fn tell(
        &self,
        kind: &'static str,
        node: Option<NodeId>,
        unit: Option<(UnitId, Epoch)>,
        text: String,
    ) {
        self.events.tell(kind, node, unit, text);
    }

    /// What the node knows now.
    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// Waits until the view shows what `shows` looks for; `None` after `patience`.
    pub async fn wait_for(
        &self,
        patience: Duration,
        mut shows: impl FnMut(&View) -> bool,
    ) -> Option<Arc<View>> {
        let mut view = self.view.clone();
        let seen = tokio::time::timeout(patience, view.wait_for(|view| shows(view)));
        seen.await.ok()?.ok().map(|view| view.clone())
    }

    /// Calls a child, wherever it is. The body is done once under a key, however often it is asked.
    pub async fn call(
        &self,
        child: ChildId,
        key: Option<String>,
        body: Bytes,
        patience: Duration,
    ) -> Result<Answered, CallError> {
        let (answer, answered) = oneshot::channel();
        let ask = Ask::Call {
            child,
            key,
            body,
            patience,
            answer,
        };
        match self.asks.try_send(ask) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                return Err(CallError::Overloaded {
                    retry_after: RETRY_AFTER,
                });
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(CallError::Stopping),
        }
        answered.await.unwrap_or(Err(CallError::Stopping))
    }

    /// Has a command committed: repeats it to the leader until `done` holds of the directory as
    /// applied here. A command must be one that may be repeated.
    pub async fn propose(
        &self,
        command: Command,
        patience: Duration,
        done: impl Fn(&Directory) -> bool,
    ) -> Result<(), ProposeError> {
        let until = tokio::time::Instant::now() + patience;
        while tokio::time::Instant::now() < until {
            let asked = self.asks.send(Ask::Propose(command.clone())).await;
            asked.map_err(|_| ProposeError::Stopping)?;
            let left = until - tokio::time::Instant::now();
            if self
                .wait_for(left.min(PROPOSE_AGAIN), |view| done(&view.directory))
                .await
                .is_some()
            {
                return Ok(());
            }
        }
        Err(ProposeError::TimedOut(patience))
    }

    /// Which children have records, wherever they are: every live node is asked. Takes
    /// [`CHILDREN_PATIENCE`] at most; who has not answered by then is named.
    pub async fn children(&self, of: ChildrenOf) -> Result<Children, CallError> {
        let (answer, answered) = oneshot::channel();
        let asked = self.asks.send(Ask::Children { of, answer }).await;
        asked.map_err(|_| CallError::Stopping)?;
        answered.await.map_err(|_| CallError::Overloaded {
            retry_after: RETRY_AFTER,
        })
    }

    /// Forms the cluster of this node and its seeds, or of this node alone. Once: nodes never form
    /// one by themselves.
    pub async fn form(&self, single: bool) -> Result<(), FormError> {
        let (answer, answered) = oneshot::channel();
        let asked = self.asks.send(Ask::Form { single, answer }).await;
        asked.map_err(|_| FormError::Stopping)?;
        answered.await.unwrap_or(Err(FormError::Stopping))?;
        let formed = |view: &View| view.directory.is_formed();
        let seen = self.wait_for(FORM_PATIENCE, formed).await;
        seen.map(|_| ()).ok_or(FormError::TimedOut(FORM_PATIENCE))
    }

    /// A tunnel to whoever takes those of `node`, which may be this node itself: then it stays within
    /// the process. `header` says what for, in
    /// [`TUNNEL_HEADER_BYTES_MAX`](understudy_transport::net::TUNNEL_HEADER_BYTES_MAX) at most.
    pub async fn open_tunnel(
        &self,
        node: NodeId,
        header: Bytes,
        patience: Duration,
    ) -> Result<Tunnel, RequestError> {
        self.tunnels.open(node, header, patience).await
    }

    /// Has `take` get every tunnel that comes to this node from now on, in place of whoever got them.
    /// Until the first of them, and after the node's end, none is taken.
    pub fn take_tunnels(&self, take: TakeTunnel) {
        self.tunnels.taker.set(Some(take));
    }

    /// What happened after the event with this number (of the last [`crate::events::HISTORY_MAX`]),
    /// and then what happens.
    pub fn events(&self, after: Option<u64>) -> EventStream {
        self.events.follow(after)
    }
}

/// A caller waits this long when the node's own queue is full: some milliseconds empty it.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// How long a proposal may take before it is made again: some round trips and a flush.
const PROPOSE_AGAIN: Duration = Duration::from_millis(500);

/// How long the first election and the first entry may take.
const FORM_PATIENCE: Duration = Duration::from_secs(20);

/// How long the other nodes may take to say which children they have: what a person waits for.
pub const CHILDREN_PATIENCE: Duration = Duration::from_secs(2);
