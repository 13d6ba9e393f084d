//! Where frames and requests of peers come in.
//!
//! Owns: decoding, and the way of each message to the core or straight to the store. Called by reader
//! tasks, so it never blocks: a full queue is said, and the transport withholds its credit.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tracing::debug;

use understudy_protocol::cluster::directory::Entry;
use understudy_protocol::id::NodeId;
use understudy_protocol::wire::codec::{DecodeError, Frame, MessageType, decode_whole};
use understudy_protocol::wire::heart::HeartMessage;
use understudy_protocol::wire::replica::ReplicaRequest;
use understudy_transport::net::{Full, Hello, Inbox, PeerChange, RequestRefused};

use super::Input;
use crate::raft::RaftDriver;

/// The receiving side of one node.
pub struct CoreInbox {
    pub(super) lanes: mpsc::Sender<Input>,
    pub(super) store: Box<dyn Fn(NodeId, ReplicaRequest) -> bool + Send + Sync>,
    pub(super) raft: Arc<RaftDriver>,
    /// Who is connected now: nothing is lost when the core is late.
    pub(super) peers: watch::Sender<BTreeMap<NodeId, Hello>>,
}

type Answer = Pin<Box<dyn Future<Output = Result<Bytes, RequestRefused>> + Send>>;

impl CoreInbox {
    fn take(&self, from: NodeId, frame: &[u8]) -> Result<Result<(), Full>, DecodeError> {
        let (parsed, _) = Frame::split(frame)?;
        let input = match parsed.kind()? {
            MessageType::ReplicaRequest => {
                let request = parsed.decode()?;
                let taken = (self.store)(from, request);
                return Ok(if taken { Ok(()) } else { Err(Full) });
            }
            MessageType::ReplicaAnswer => Input::Answer(parsed.decode()?),
            MessageType::Envelope => {
                let envelope = parsed.decode()?;
                Input::Envelope { from, envelope }
            }
            MessageType::Reply => {
                let reply = parsed.decode()?;
                Input::Reply { from, reply }
            }
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

impl Inbox for CoreInbox {
    fn frame(&self, from: NodeId, frame: Bytes) -> Result<(), Full> {
        self.take(from, &frame).unwrap_or_else(|error| {
            metrics::counter!("understudy_frames_refused_total").increment(1);
            debug!(%from, %error, "a frame was refused");
            Ok(())
        })
    }

    fn request(&self, from: NodeId, kind: u8, body: Bytes) -> Answer {
        match kind {
            PROPOSAL => {
                let lanes = self.lanes.clone();
                Box::pin(async move {
                    let entry: Entry = decode_whole(&body).map_err(|_| RequestRefused)?;
                    let input = Input::Forwarded(entry.command);
                    lanes.try_send(input).map_err(|_| RequestRefused)?;
                    Ok(Bytes::new())
                })
            }
            REPORT => {
                let lanes = self.lanes.clone();
                Box::pin(async move {
                    match decode_whole(&body).map_err(|_| RequestRefused)? {
                        HeartMessage::Report(report) => {
                            let input = Input::Reported(report);
                            lanes.try_send(input).map_err(|_| RequestRefused)?;
                            Ok(Bytes::new())
                        }
                        _ => Err(RequestRefused),
                    }
                })
            }
            kind => {
                let raft = self.raft.clone();
                Box::pin(async move {
                    debug!(%from, kind, "a request of raft");
                    let answered = raft.on_request(kind, body).await;
                    answered.map_err(|_| RequestRefused)
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
}

/// A command for the leader, as an entry without a stamp.
pub(super) const PROPOSAL: u8 = 4;

/// A voter's report on the truth plane (L5).
pub(super) const REPORT: u8 = 5;
