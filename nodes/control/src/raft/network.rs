//! What openraft sends, over requests that somebody else carries.
//!
//! Owns: the bodies (postcard) and their limits, and silence: a node that may not lead sends none of a
//! leader's or a candidate's requests, so that others elect another (rule L9).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::error::{InstallSnapshotError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, RaftNetworkFactory};
use serde::Serialize;
use serde::de::DeserializeOwned;

use understudy_protocol::id::StoreId;

use super::log::{decode, encode};
use super::types::Types;

/// How one store's member asks another's.
pub trait RaftNetwork: Send + Sync + 'static {
    /// Asks the member of `to` and gives its answer; an error after `patience` at the latest. The other
    /// side gives `kind` and `body` to [`super::RaftRequests::on_request`].
    fn request(&self, to: StoreId, kind: u8, body: Bytes, patience: Duration) -> Asked;
}

/// An answer that is under way.
pub type Asked = Pin<Box<dyn Future<Output = Result<Bytes, RequestFailed>> + Send>>;

/// No answer came. Whether the request was heard is unknown; Raft repeats it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RequestFailed(pub String);

pub(super) struct Outgoing {
    network: Arc<dyn RaftNetwork>,
    may_lead: AtomicBool,
}

impl Outgoing {
    pub(super) fn new(network: Arc<dyn RaftNetwork>) -> Outgoing {
        let may_lead = AtomicBool::new(true);
        Outgoing { network, may_lead }
    }

    pub(super) fn set_may_lead(&self, may_lead: bool) {
        self.may_lead.store(may_lead, Ordering::Relaxed);
    }

    pub(super) fn may_lead(&self) -> bool {
        self.may_lead.load(Ordering::Relaxed)
    }
}

pub(super) struct Factory(pub(super) Arc<Outgoing>);

impl RaftNetworkFactory<Types> for Factory {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _: &EmptyNode) -> Peer {
        Peer {
            to: StoreId(target),
            outgoing: self.0.clone(),
        }
    }
}

/// The way to one other member.
pub(super) struct Peer {
    to: StoreId,
    outgoing: Arc<Outgoing>,
}

impl Peer {
    async fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        kind: u8,
        question: &Q,
        option: RPCOption,
    ) -> Result<A, Unreachable> {
        if !self.outgoing.may_lead() {
            return Err(Unreachable::new(&RequestFailed(
                "this member keeps silent: it may not lead".into(),
            )));
        }
        let body = encode(question).map_err(|error| Unreachable::new(&error))?;
        let network = &self.outgoing.network;
        let answer = network.request(self.to, kind, body, option.hard_ttl());
        let answer = answer.await.map_err(|error| Unreachable::new(&error))?;
        decode(&answer).map_err(|error| Unreachable::new(&error))
    }
}

type Failed<E = openraft::error::Infallible> = RPCError<u64, EmptyNode, RaftError<u64, E>>;

impl openraft::RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, Failed> {
        Ok(self.ask(KIND_APPEND, &request, option).await?)
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, Failed<InstallSnapshotError>> {
        let answer: SnapshotAnswer = self.ask(KIND_SNAPSHOT, &request, option).await?;
        answer.map_err(|error| {
            RPCError::RemoteError(RemoteError::new(self.to.0, RaftError::APIError(error)))
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, Failed> {
        Ok(self.ask(KIND_VOTE, &request, option).await?)
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(REACH_AGAIN))
    }
}

/// The answer to a piece of a snapshot.
pub(super) type SnapshotAnswer = Result<InstallSnapshotResponse<u64>, InstallSnapshotError>;

/// A candidate asks for a vote.
pub const KIND_VOTE: u8 = 1;
/// A leader sends entries, or nothing but that it leads.
pub const KIND_APPEND: u8 = 2;
/// A leader sends a piece of a snapshot.
pub const KIND_SNAPSHOT: u8 = 3;

/// The longest body of a request, in bytes: one entry of the greatest length and what is around it.
pub const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024 + 64 * 1024;

/// A member that did not answer is asked again after this: a restarted one should hear its leader well
/// before it would elect.
const REACH_AGAIN: Duration = Duration::from_millis(100);
