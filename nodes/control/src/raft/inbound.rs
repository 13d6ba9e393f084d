//! What other members ask of this one.
//!
//! Owns: the check of every request before openraft sees it: openraft trusts its peers' numbers, and
//! would stop this node over some of them. Also the assembly of a snapshot, which has a limit.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use openraft::SnapshotSegmentId;
use openraft::error::{InstallSnapshotError, SnapshotMismatch};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest,
};
use openraft::{Snapshot, SnapshotId};

use understudy_protocol::id::{COUNTER_MAX, StoreId};
use understudy_protocol::wire::codec::DIRECTORY_SNAPSHOT_FRAME_BYTES_MAX;

use super::log::{LogError, decode, encode};
use super::machine::directory_of;
use super::network::{KIND_APPEND, KIND_SNAPSHOT, KIND_VOTE, SnapshotAnswer};
use super::outbox::Outbox;
use super::types::{Raft, RaftLogId, Types, Vote, is_sane};

/// Why a member's request has no answer. Nothing has changed, unless said otherwise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestRefused {
    /// The log is still being read; ask again.
    #[error("the log is still being read")]
    NotReady,
    /// The candidate's log is behind this member's, which may not lead itself (L9). It has no vote
    /// from here, and need not wait for this member.
    #[error("this member has the longer log, and may not lead")]
    MayNotLead,
    /// No such kind of request.
    #[error("raft knows no request of kind {0}")]
    UnknownKind(u8),
    /// The body is no request, or one that no member would send.
    #[error("not a request that a member sends: {0}")]
    Malformed(&'static str),
    /// The body cannot be read; perhaps a later version wrote it.
    #[error("{0}")]
    Unreadable(#[from] LogError),
    /// Raft has stopped. What the request asked may have been done.
    #[error("raft has stopped: {0}")]
    Stopped(String),
}

/// A snapshot of which not every piece has come yet.
pub(super) struct Receiving {
    id: SnapshotId,
    data: Vec<u8>,
}

pub(super) async fn answer(
    raft: &Raft,
    outbox: &Outbox,
    receiving: &Mutex<Option<Receiving>>,
    may_lead: bool,
    kind: u8,
    body: &[u8],
) -> Result<Bytes, RequestRefused> {
    match kind {
        KIND_VOTE => {
            let request: VoteRequest<u64> = decode(body)?;
            check_vote(&request.vote, false)?;
            check_ids(request.last_log_id.iter())?;
            let asked_with = request.last_log_id;
            let answer = raft.vote(request).await.map_err(stopped)?;
            // A candidate that hears of a longer log waits for its holder to campaign: this one will
            // not, and two that wait for it alike would go on colliding.
            if !may_lead && !answer.vote_granted && answer.last_log_id > asked_with {
                return Err(RequestRefused::MayNotLead);
            }
            Ok(encode(&answer)?)
        }
        KIND_APPEND => {
            let request: AppendEntriesRequest<Types> = decode(body)?;
            check_append(raft, &request)?;
            let leader = request.vote.leader_id.voted_for.map(StoreId);
            let answer = raft.append_entries(request).await.map_err(stopped)?;
            let accepted = !matches!(answer, AppendEntriesResponse::HigherVote(_));
            if let Some(leader) = leader.filter(|_| accepted) {
                outbox.leader_seen(leader);
            }
            Ok(encode(&answer)?)
        }
        KIND_SNAPSHOT => {
            let request: InstallSnapshotRequest<Types> = decode(body)?;
            let vote = request.vote;
            check_vote(&vote, true)?;
            check_same_term(raft, &vote)?;
            check_ids(request.meta.last_log_id.iter())?;
            check_ids(request.meta.last_membership.log_id().iter())?;
            let answer = on_snapshot(raft, receiving, request).await?;
            let accepted = answer.as_ref().is_ok_and(|answer| answer.vote == vote);
            if let Some(leader) = vote.leader_id.voted_for.filter(|_| accepted) {
                outbox.leader_seen(StoreId(leader));
            }
            Ok(encode(&answer)?)
        }
        _ => Err(RequestRefused::UnknownKind(kind)),
    }
}

/// Keeps a piece; installs the snapshot with the last.
async fn on_snapshot(
    raft: &Raft,
    receiving: &Mutex<Option<Receiving>>,
    request: InstallSnapshotRequest<Types>,
) -> Result<SnapshotAnswer, RequestRefused> {
    let vote = raft.metrics().borrow().vote;
    if request.vote < vote {
        return Ok(Ok(InstallSnapshotResponse { vote }));
    }
    let (vote, meta, done) = (request.vote, request.meta.clone(), request.done);
    let received = match receive(receiving, request)? {
        Ok(received) => received,
        Err(mismatch) => return Ok(Err(InstallSnapshotError::SnapshotMismatch(mismatch))),
    };
    let Some(data) = received.filter(|_| done) else {
        return Ok(Ok(InstallSnapshotResponse { vote }));
    };
    let of = meta.clone();
    let read = tokio::task::spawn_blocking(move || directory_of(&of, &data).map(|_| data)).await;
    let data = read.map_err(stopped)??;
    let snapshot = Snapshot {
        meta,
        snapshot: Box::new(std::io::Cursor::new(data)),
    };
    let installed = raft.install_full_snapshot(vote, snapshot).await;
    Ok(Ok(installed.map_err(stopped)?.into()))
}

/// Adds a piece to what has come. Gives the whole with the last piece.
fn receive(
    receiving: &Mutex<Option<Receiving>>,
    request: InstallSnapshotRequest<Types>,
) -> Result<Result<Option<Vec<u8>>, SnapshotMismatch>, RequestRefused> {
    let mut receiving = receiving.lock().unwrap_or_else(PoisonError::into_inner);
    let id = request.meta.snapshot_id;
    if id.len() > SNAPSHOT_ID_BYTES_MAX {
        return Err(RequestRefused::Malformed("a snapshot's id is a short one"));
    }
    if request.offset == 0 {
        *receiving = Some(Receiving {
            id: id.clone(),
            data: Vec::new(),
        });
    }
    let known = receiving
        .as_mut()
        .filter(|known| known.id == id && known.data.len() as u64 == request.offset);
    let Some(known) = known else {
        // The sender begins again.
        let expect = SnapshotSegmentId {
            id: id.clone(),
            offset: 0,
        };
        let got = SnapshotSegmentId {
            id,
            offset: request.offset,
        };
        return Ok(Err(SnapshotMismatch { expect, got }));
    };
    if known.data.len() + request.data.len() > DIRECTORY_SNAPSHOT_FRAME_BYTES_MAX {
        *receiving = None;
        return Err(RequestRefused::Malformed("a snapshot has at most 64 MiB"));
    }
    known.data.extend_from_slice(&request.data);
    if !request.done {
        return Ok(Ok(None));
    }
    Ok(Ok(receiving.take().map(|whole| whole.data)))
}

fn check_append(raft: &Raft, request: &AppendEntriesRequest<Types>) -> Result<(), RequestRefused> {
    check_vote(&request.vote, true)?;
    check_same_term(raft, &request.vote)?;
    check_ids(request.prev_log_id.iter())?;
    check_ids(request.leader_commit.iter())?;
    check_ids(request.entries.iter().map(|entry| &entry.log_id))?;
    let first = request.prev_log_id.map_or(0, |id| id.index + 1);
    let follow = (first..).zip(&request.entries);
    if follow
        .into_iter()
        .any(|(index, entry)| entry.log_id.index != index)
    {
        return Err(RequestRefused::Malformed("entries follow one another"));
    }
    Ok(())
}

fn check_vote(vote: &Vote, committed: bool) -> Result<(), RequestRefused> {
    let sane = vote.leader_id.voted_for.is_some()
        && vote.committed == committed
        && vote.leader_id.term < COUNTER_MAX;
    let malformed = RequestRefused::Malformed("a vote is for somebody, and a leader's is won");
    if sane { Ok(()) } else { Err(malformed) }
}

/// A term has one leader: openraft takes two for impossible.
fn check_same_term(raft: &Raft, vote: &Vote) -> Result<(), RequestRefused> {
    let known = raft.metrics().borrow().vote;
    let two = known.committed
        && known.leader_id.term == vote.leader_id.term
        && known.leader_id.voted_for != vote.leader_id.voted_for;
    if two {
        return Err(RequestRefused::Malformed("a term has one leader"));
    }
    Ok(())
}

fn check_ids<'a>(ids: impl Iterator<Item = &'a RaftLogId>) -> Result<(), RequestRefused> {
    for id in ids {
        if !is_sane(id) {
            return Err(RequestRefused::Malformed("a count that nothing reaches"));
        }
    }
    Ok(())
}

fn stopped(error: impl std::fmt::Display) -> RequestRefused {
    RequestRefused::Stopped(error.to_string())
}

/// Ours have three numbers in them.
const SNAPSHOT_ID_BYTES_MAX: usize = 128;
