//! Where frames and requests of peers come in.
//!
//! Owns: decoding, and the way of each message to the core or straight to the store. Called by reader
//! tasks, so it never blocks: a full queue is said, and the transport withholds its credit.

use std::collections::BTreeMap;
use std::future::{Future, ready};
use std::pin::Pin;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::debug;

use understudy_protocol::cluster::directory::Entry;
use understudy_protocol::id::NodeId;
use understudy_protocol::wire::codec::{DecodeError, Frame, MessageType, decode_whole};
use understudy_protocol::wire::heart::HeartMessage;
use understudy_transport::net::{
    Full, Hello, Inbox, PeerChange, PeerStream, RequestRefused, Tunnel,
};

use super::Input;
use crate::contents::{Contents, FETCH_CHUNKS};
use crate::listing::{self, ChildrenOf};
use crate::raft::{self, RaftRequests};
use crate::tunnels::Taker;

/// The receiving side of one node.
pub struct CoreInbox {
    pub(super) lanes: mpsc::Sender<Input>,
    pub(super) contents: Contents,
    pub(super) raft: RaftRequests,
    /// Who is connected now: nothing is lost when the core is late.
    pub(super) peers: watch::Sender<BTreeMap<NodeId, Hello>>,
    /// For the control plane.
    pub(super) streams: mpsc::Sender<PeerStream>,
    pub(super) taker: Taker,
}

type Answer = Pin<Box<dyn Future<Output = Result<Bytes, RequestRefused>> + Send>>;

impl CoreInbox {
    fn take(&self, from: NodeId, frame: &[u8]) -> Result<Result<(), Full>, DecodeError> {
        let parsed = Frame::checked_before(frame)?;
        let input = match parsed.kind()? {
            MessageType::ReplicaRequest => {
                let taken = self.contents.ask(from, parsed.decode()?);
                return Ok(if taken { Ok(()) } else { Err(Full) });
            }
            MessageType::ReplicaAnswer => Input::Answer(parsed.decode()?),
            MessageType::Envelope => Input::Envelope(parsed.decode()?),
            MessageType::Reply => Input::Reply(parsed.decode()?),
            MessageType::Confirmed => Input::Confirmed(parsed.decode()?),
            MessageType::Heart
            | MessageType::Record
            | MessageType::DirectoryCommand
            | MessageType::DirectorySnapshot => {
                debug!(%from, kind = ?parsed.kind(), "a frame that has no place on a lane");
                return Ok(Ok(()));
            }
        };
        Ok(self.lanes.try_send(input).map_err(|_| Full))
    }
}

impl CoreInbox {
    /// A command for the leader. Whether this node leads, the core knows.
    fn proposal(&self, body: &[u8]) -> Result<Bytes, RequestRefused> {
        let entry: Entry = decode_whole(body).map_err(unreadable)?;
        self.put(Input::Forwarded(entry.command))
    }

    /// A voter's report (L5).
    fn report(&self, body: &[u8]) -> Result<Bytes, RequestRefused> {
        match decode_whole(body).map_err(unreadable)? {
            HeartMessage::Report(report) => self.put(Input::Reported(report)),
            _ => Err(RequestRefused::NotServed),
        }
    }

    fn put(&self, input: Input) -> Result<Bytes, RequestRefused> {
        let put = self.lanes.try_send(input);
        put.map(|()| Bytes::new()).map_err(|_| RequestRefused::Full)
    }
}

fn decode_children(body: &[u8]) -> Result<ChildrenOf, RequestRefused> {
    postcard::from_bytes(body).map_err(|error| RequestRefused::Failed(error.to_string()))
}

fn unreadable(error: DecodeError) -> RequestRefused {
    RequestRefused::Failed(error.to_string())
}

impl Inbox for CoreInbox {
    fn frame(&self, from: NodeId, frame: Bytes) -> Result<(), Full> {
        self.take(from, &frame).unwrap_or_else(|error| {
            metrics::counter!("understudy_frames_refused_total").increment(1);
            debug!(%from, %error, "a frame was refused");
            Ok(())
        })
    }

    fn request(&self, _: NodeId, kind: u8, body: Bytes) -> Answer {
        match kind {
            PROPOSAL => Box::pin(ready(self.proposal(&body))),
            REPORT => Box::pin(ready(self.report(&body))),
            CHILDREN => {
                let (answer, answered) = oneshot::channel();
                let put = decode_children(&body).and_then(|of| {
                    let input = Input::Children { of, answer };
                    let put = self.lanes.try_send(input);
                    put.map_err(|_| RequestRefused::Full)
                });
                Box::pin(async move {
                    put?;
                    let said = answered.await.map_err(|_| RequestRefused::Full)?;
                    Ok(listing::encode(said).into())
                })
            }
            FETCH_CHUNKS => self.contents.serve(body),
            kind => {
                let raft = self.raft.clone();
                Box::pin(async move {
                    let answered = raft.on_request(kind, body).await;
                    answered.map_err(|error| match error {
                        raft::RequestRefused::UnknownKind(_) => RequestRefused::NotServed,
                        error => RequestRefused::Failed(error.to_string()),
                    })
                })
            }
        }
    }

    fn peer(&self, change: PeerChange) {
        self.peers.send_modify(|peers| match change {
            PeerChange::Up(hello) => {
                peers.insert(hello.node, hello);
            }
            PeerChange::Down(node) => {
                peers.remove(&node);
            }
        });
    }

    fn stream(&self, from: NodeId, stream: PeerStream) {
        // Whoever opened it opens another when this one ends.
        if self.streams.try_send(stream).is_err() {
            debug!(%from, "too many control streams wait to be taken");
        }
    }

    fn tunnel(&self, from: NodeId, header: Bytes, tunnel: Tunnel) -> Result<(), RequestRefused> {
        self.taker.take(from, header, tunnel)
    }
}

/// A command for the leader, as an entry without a stamp.
pub(super) const PROPOSAL: u8 = 4;

/// A voter's report on the truth plane (L5).
pub(super) const REPORT: u8 = 5;

/// Which children the node has ([`ChildrenOf`]).
pub(super) const CHILDREN: u8 = 7;
