//! The way out: lanes, the truth plane, the node's own store, and the small file of the heart's limit.
//!
//! Owns: framing, and the tasks of what has to be waited for, which end with it. Never repeats: what
//! could not be sent is dropped, and whoever wants it says it again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use understudy_protocol::cluster::directory::{Command, Directory, Entry};
use understudy_protocol::cluster::lease::voter;
use understudy_protocol::id::{IncarnationId, NodeId, Seq, StoreId, UnitId};
use understudy_protocol::time::ClusterTime;
use understudy_protocol::wire::codec::{Message, encode_frame};
use understudy_protocol::wire::content::Pieces;
use understudy_protocol::wire::envelope::{CallId, Confirmed, Envelope, Outcome, Reply};
use understudy_protocol::wire::heart::{HeartMessage, Report, Ttl};
use understudy_protocol::wire::replica::{ReplicaAnswer, ReplicaRequest};
use understudy_store::LimitFile;
use understudy_supervision::Values as _;
use understudy_transport::net::{Hello, Lane, Net, SendError};

use super::Input;
use super::inbox::{PROPOSAL, REPORT};
use super::start::Warden;
use crate::contents::Contents;
use crate::heart::{HeartHandle, HeartInput};

/// Everything that leaves the core.
pub(super) struct Outlet {
    me: NodeId,
    store: StoreId,
    net: Net,
    contents: Contents,
    /// Where what was fetched goes.
    fetched: mpsc::Sender<Input>,
    limit: Arc<Mutex<LimitFile>>,
    /// Where the gateway of an incarnation is, learned from connections: the directory may not list
    /// it any more, or not yet.
    gateways: BTreeMap<IncarnationId, NodeId>,
    /// Requests and small writes under way.
    tasks: JoinSet<()>,
    addresses: JoinSet<()>,
    known: BTreeMap<NodeId, (StoreId, String, bool)>,
}

impl Outlet {
    pub(super) fn new(
        me: NodeId,
        store: StoreId,
        net: Net,
        contents: Contents,
        fetched: mpsc::Sender<Input>,
        limit: Arc<Mutex<LimitFile>>,
    ) -> Outlet {
        Outlet {
            me,
            store,
            net,
            contents,
            fetched,
            limit,
            gateways: BTreeMap::new(),
            tasks: JoinSet::new(),
            addresses: JoinSet::new(),
            known: BTreeMap::new(),
        }
    }

    pub(super) fn peers(&mut self, peers: &BTreeMap<NodeId, Hello>) {
        self.gateways = peers
            .values()
            .map(|hello| (hello.incarnation, hello.node))
            .collect();
    }

    /// Seeds that nobody answers at.
    pub(super) fn missing_seeds(&self) -> Vec<String> {
        self.net.missing_seeds()
    }

    /// To a store: this node's own without a detour.
    pub(super) fn ask(&mut self, to: StoreId, node: Option<NodeId>, request: ReplicaRequest) {
        if to == self.store {
            // A full queue answers nothing; the owner asks again.
            let _ = self.contents.ask(self.me, request);
            return;
        }
        let lane = lane_of(request.unit);
        if let Some(node) = node {
            send(&self.net, node, lane, &request);
        }
    }

    /// An attempt of a call; what there is to say at once when it cannot be sent.
    pub(super) fn send_call(
        &self,
        to: NodeId,
        unit: UnitId,
        envelope: &Envelope,
    ) -> Option<Outcome> {
        match send(&self.net, to, lane_of(unit), envelope)? {
            SendError::NoPeer => Some(Outcome::NotOwner { hint: None }),
            SendError::Full { retry_after } => Some(Outcome::Overloaded {
                retry_after_ms: u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX),
            }),
            SendError::TooLong { .. } => Some(Outcome::TooLarge),
        }
    }

    pub(super) fn reply(&mut self, gateway: Option<NodeId>, reply: Reply) {
        let to = self.gateways.get(&reply.call.gateway).copied().or(gateway);
        if let Some(to) = to {
            // Replies of one gateway need no order among each other.
            send(&self.net, to, Lane::Of(reply.call.number), &reply);
        }
    }

    pub(super) fn confirm(&mut self, peers: impl Iterator<Item = NodeId>, confirmed: Confirmed) {
        for peer in peers {
            send(&self.net, peer, Lane::Of(0), &confirmed);
        }
    }

    /// Fetches an answer that is kept in pieces; it comes back as an input, for the core looks at the
    /// lease last of all. Where it is not to be had, the caller asks again.
    pub(super) fn fetch_answer(
        &mut self,
        call: CallId,
        pieces: Pieces,
        reflects: Seq,
        durable: bool,
    ) {
        while self.tasks.try_join_next().is_some() {}
        if self.tasks.len() >= REQUESTS_MAX {
            debug!(?call, "too many requests are under way");
            return;
        }
        let (contents, fetched) = (self.contents.clone(), self.fetched.clone());
        self.tasks.spawn(async move {
            match contents.fetch(pieces).await {
                Ok(body) => {
                    let outcome = Outcome::Answered {
                        body,
                        reflects,
                        durable,
                    };
                    // The core may be gone when the node stops.
                    let _ = fetched.send(Input::Fetched(Reply { call, outcome })).await;
                }
                Err(error) => debug!(?call, %error, "an answer is not to be had"),
            }
        });
    }

    /// A command for the leader.
    pub(super) fn propose(&mut self, leader: NodeId, command: Command) {
        let entry = Entry {
            at: ClusterTime::ZERO,
            random: 0,
            command,
        };
        self.request(leader, PROPOSAL, &entry);
    }

    /// A voter's report on the truth plane (L5).
    pub(super) fn report(&mut self, leader: NodeId, report: Report) {
        self.request(leader, REPORT, &HeartMessage::Report(report));
    }

    fn request<T: Message>(&mut self, to: NodeId, kind: u8, message: &T) {
        while self.tasks.try_join_next().is_some() {}
        if self.tasks.len() >= REQUESTS_MAX {
            debug!(%to, kind, "too many requests are under way");
            return;
        }
        let Some(frame) = framed(message) else { return };
        let net = self.net.clone();
        self.tasks.spawn(async move {
            if let Err(error) = net.request(to, kind, frame, REQUEST_PATIENCE).await {
                debug!(%to, kind, %error, "a request was not answered");
            }
        });
    }

    /// L3: the limit is on disk before the heart promises by it.
    pub(super) fn flush_limit(&mut self, ttl: Ttl, heart: &HeartHandle) {
        let (limit, heart) = (self.limit.clone(), heart.clone());
        self.tasks
            .spawn_blocking(move || match lock(&limit).put(ttl) {
                Ok(()) => heart.tell(HeartInput::Voter(voter::Event::LimitFlushed(ttl))),
                Err(error) => {
                    warn!(%error, "the longest TTL could not be flushed; the voter stays mute")
                }
            });
    }

    /// Tells the transport, the heart and the warden where everybody is, when that has changed.
    pub(super) fn addresses(
        &mut self,
        directory: &Directory,
        heart: &HeartHandle,
        warden: &Warden,
    ) {
        let nodes = directory.nodes().iter();
        let known: BTreeMap<NodeId, (StoreId, String, bool)> = nodes
            .map(|(id, node)| {
                let votes = directory.voters().contains(node.store);
                (*id, (node.store, node.address.clone(), votes))
            })
            .collect();
        if known == self.known {
            return;
        }
        self.known = known.clone();
        let others = known.iter().filter(|(node, _)| **node != self.me);
        let others = others.map(|(node, (_, address, _))| (*node, address.clone()));
        self.net.set_addresses(others.collect());
        self.addresses.abort_all();
        let (heart, voters) = (heart.clone(), warden.voters.clone());
        self.addresses.spawn(async move {
            // A name that cannot be resolved now may be later.
            for pause in [Duration::ZERO, RESOLVE_AGAIN, RESOLVE_AGAIN * 6] {
                tokio::time::sleep(pause).await;
                let mut hearts = BTreeMap::new();
                let mut notes = Vec::new();
                for (node, (store, address, votes)) in &known {
                    let Some(heart) = resolve(address).await else {
                        continue;
                    };
                    hearts.insert(*store, (*node, heart));
                    if *votes {
                        notes.push(heart);
                    }
                }
                let all = hearts.len() == known.len();
                heart.tell(HeartInput::Addresses(hearts));
                voters(notes);
                if all {
                    return;
                }
            }
        });
    }

    /// Ends what is under way.
    pub(super) async fn close(mut self) {
        self.addresses.shutdown().await;
        self.tasks.shutdown().await;
    }
}

/// Frames an answer of this node's store and sends it; called on the store's thread.
pub fn answer(net: &Net, to: NodeId, answer: &ReplicaAnswer) {
    send(net, to, lane_of(answer.unit), answer);
}

fn send<T: Message>(net: &Net, to: NodeId, lane: Lane, message: &T) -> Option<SendError> {
    let frame = framed(message)?;
    let error = net.send(to, lane, frame).err()?;
    metrics::counter!("understudy_frames_dropped_total").increment(1);
    debug!(%to, %error, "a frame was not sent");
    Some(error)
}

fn framed<T: Message>(message: &T) -> Option<Bytes> {
    let mut frame = Vec::new();
    match encode_frame(message, &mut frame) {
        Ok(()) => Some(frame.into()),
        Err(error) => {
            warn!(%error, "a message could not be framed");
            None
        }
    }
}

fn lock(limit: &Mutex<LimitFile>) -> MutexGuard<'_, LimitFile> {
    limit.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the heart of a node listens: one port above its address.
async fn resolve(address: &str) -> Option<SocketAddr> {
    let mut found = tokio::net::lookup_host(address).await.ok()?;
    let main = found.next()?;
    Some(SocketAddr::new(main.ip(), main.port().checked_add(1)?))
}

fn lane_of(unit: UnitId) -> Lane {
    Lane::Of(unit.0)
}

/// Requests under way at once: proposals are small, and each ends within [`REQUEST_PATIENCE`].
const REQUESTS_MAX: usize = 1_024;

/// How long a proposal or a report may take; then it is said again by whoever wants it.
const REQUEST_PATIENCE: Duration = Duration::from_secs(1);

/// After this long a name that could not be resolved is tried again.
const RESOLVE_AGAIN: Duration = Duration::from_secs(5);
