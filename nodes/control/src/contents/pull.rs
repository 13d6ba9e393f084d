//! Fetching chunks from other nodes.
//!
//! Owns: whom they are asked of, how many at once, and that no chunk is fetched twice at a time. What
//! comes is believed by its name alone.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tracing::debug;

use understudy_protocol::id::NodeId;
use understudy_protocol::wire::content::PIECE_BYTES;
use understudy_store::{ChunkName, Chunks};

use super::{FETCH_CHUNKS, Shared, lock};

/// What is being fetched.
pub(super) struct Pulls {
    pub(super) in_flight: Mutex<BTreeSet<ChunkName>>,
    /// Counts up whenever something is in flight no more.
    pub(super) ended: watch::Sender<u64>,
    /// Requests of this node that are under way.
    pub(super) groups: Semaphore,
}

/// Some chunks are not to be had now. Those that were had stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody has {missing} chunks, among them {first}")]
pub(super) struct Lost {
    pub(super) missing: usize,
    pub(super) first: ChunkName,
}

impl Shared {
    /// Has all of these here, flushed: whatever is missing is fetched, of `first` before all others.
    /// `progress` is called whenever some have come.
    pub(super) async fn pull(
        &self,
        names: Vec<ChunkName>,
        first: Option<NodeId>,
        progress: &(dyn Fn() + Send + Sync),
    ) -> Result<(), Lost> {
        let chunks = &self.config.chunks;
        loop {
            let mut ended = self.pulls.ended.subscribe();
            let missing = chunks.missing(names.iter().copied());
            if missing.is_empty() {
                return Ok(());
            }
            let claim = Claim::on(&self.pulls, missing);
            if claim.names.is_empty() {
                // Others fetch all of it. Theirs may fail; then it is tried here.
                let _ = timeout(OTHERS_LIMIT, ended.changed()).await;
                progress();
                continue;
            }
            let lost = self.pull_from_all(&claim.names, first, progress).await;
            if let Some(first) = lost.first() {
                let (missing, first) = (lost.len(), *first);
                return Err(Lost { missing, first });
            }
        }
    }

    /// What nobody had.
    async fn pull_from_all(
        &self,
        names: &BTreeSet<ChunkName>,
        first: Option<NodeId>,
        progress: &(dyn Fn() + Send + Sync),
    ) -> Vec<ChunkName> {
        let mut lost: Vec<ChunkName> = names.iter().copied().collect();
        let Some(net) = self.config.net.get() else {
            return lost;
        };
        let others = net.peers().into_iter().map(|hello| hello.node);
        let others = others.filter(|node| Some(*node) != first);
        for peer in first.into_iter().chain(others) {
            let mut still = Vec::new();
            for group in lost.chunks(GROUP_MAX) {
                let came = self.pull_group(peer, group).await;
                if !came.is_empty() {
                    progress();
                }
                still.extend(group.iter().filter(|name| !came.contains(name)));
            }
            lost = still;
            if lost.is_empty() {
                break;
            }
        }
        lost
    }

    /// What came of one request and is here now, flushed.
    async fn pull_group(&self, peer: NodeId, group: &[ChunkName]) -> BTreeSet<ChunkName> {
        let none = BTreeSet::new();
        let Ok(_permit) = self.pulls.groups.acquire().await else {
            return none;
        };
        let Some(net) = self.config.net.get() else {
            return none;
        };
        let asked: Bytes = group.iter().flat_map(|name| name.0).collect();
        let answer = match net.request(peer, FETCH_CHUNKS, asked, GROUP_PATIENCE).await {
            Ok(answer) => answer,
            Err(error) => {
                debug!(%peer, %error, "chunks were not had");
                return none;
            }
        };
        let chunks = self.config.chunks.clone();
        let group = group.to_vec();
        let put = tokio::task::spawn_blocking(move || {
            let parts = read_answer(&group, answer);
            let put = chunks.put_all(&parts);
            put.map(|()| parts.iter().map(|(name, _)| *name).collect())
        });
        match put.await {
            Ok(Ok(came)) => came,
            Ok(Err(error)) => {
                debug!(%peer, %error, "chunks that came were not written");
                none
            }
            Err(_) => none,
        }
    }
}

/// What one pull fetches and no other does meanwhile.
struct Claim<'p> {
    pulls: &'p Pulls,
    names: BTreeSet<ChunkName>,
}

impl Claim<'_> {
    /// As many of these as are free.
    fn on(pulls: &Pulls, mut names: BTreeSet<ChunkName>) -> Claim<'_> {
        let mut in_flight = lock(&pulls.in_flight);
        names.retain(|name| in_flight.insert(*name));
        drop(in_flight);
        Claim { pulls, names }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut in_flight = lock(&self.pulls.in_flight);
        in_flight.retain(|name| !self.names.contains(name));
        drop(in_flight);
        self.pulls.ended.send_modify(|ended| *ended += 1);
    }
}

/// The answer to a peer that asks for these.
pub(super) fn write_answer(chunks: &Chunks, names: &[ChunkName]) -> Bytes {
    let mut answer = BytesMut::new();
    for name in names {
        match chunks.get(*name) {
            Ok(content) if content.len() <= PIECE_BYTES => {
                answer.extend_from_slice(&(content.len() as u32).to_be_bytes());
                answer.extend_from_slice(&content);
            }
            _ => answer.extend_from_slice(&HAS_NOT.to_be_bytes()),
        }
    }
    answer.freeze()
}

/// What of an answer is what it should be. Where it makes no sense, nothing after that is.
fn read_answer(asked: &[ChunkName], mut answer: Bytes) -> Vec<(ChunkName, Bytes)> {
    let mut parts = Vec::with_capacity(asked.len());
    for name in asked {
        let Ok(length) = answer.try_get_u32() else {
            break;
        };
        if length == HAS_NOT {
            continue;
        }
        let length = length as usize;
        if length > PIECE_BYTES || length > answer.len() {
            break;
        }
        let content = answer.split_to(length);
        if ChunkName::of(&content) == *name {
            parts.push((*name, content));
        } else {
            metrics::counter!("understudy_chunks_refused_total").increment(1);
        }
    }
    parts
}

/// Chunks in one request: a megabyte, whose flushes the disk takes as one.
pub(super) const GROUP_MAX: usize = 16;

/// Requests of this node under way: Raft shares the connection, and a disk takes no more at once.
pub(super) const GROUPS_AT_ONCE: usize = 8;

/// How long a peer may take for a megabyte.
const GROUP_PATIENCE: Duration = Duration::from_secs(5);

/// How long another pull is waited for before this one looks again.
const OTHERS_LIMIT: Duration = Duration::from_secs(1);

/// Where a length belongs: the peer has no such chunk.
const HAS_NOT: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_believed_chunk_by_chunk_and_only_by_name() {
        let [a, b, c] = [&b"one"[..], b"two", b"three"].map(Bytes::from_static);
        let names = [&a, &b, &c].map(|content| ChunkName::of(content));
        let framed = |content: &[u8]| {
            let length = (content.len() as u32).to_be_bytes();
            [&length[..], content].concat()
        };
        let check = |answer: Vec<u8>, expected: &[usize]| {
            let read = read_answer(&names, answer.into());
            let read: Vec<ChunkName> = read.into_iter().map(|(name, _)| name).collect();
            let expected: Vec<ChunkName> = expected.iter().map(|nth| names[*nth]).collect();
            assert_eq!(read, expected);
        };
        let whole = [framed(&a), framed(&b), framed(&c)].concat();
        check(whole.clone(), &[0, 1, 2]);
        check(whole[..whole.len() - 1].to_vec(), &[0, 1]);
        check([framed(&a), framed(b"twO"), framed(&c)].concat(), &[0, 2]);
        let has_not = HAS_NOT.to_be_bytes().to_vec();
        check([framed(&a), has_not, framed(&c)].concat(), &[0, 2]);
        check([&[0xFF, 0xFF, 0, 0][..], &framed(&b)].concat(), &[]);
        check(Vec::new(), &[]);
        check([whole, vec![1; 100]].concat(), &[0, 1, 2]);
    }

    #[test]
    fn what_is_in_flight_is_claimed_once_and_free_again_when_its_pull_is_gone() {
        let pulls = Pulls {
            in_flight: Mutex::default(),
            ended: watch::channel(0).0,
            groups: Semaphore::new(1),
        };
        let [a, b, c] = [&b"one"[..], b"two", b"three"].map(ChunkName::of);
        let first = Claim::on(&pulls, [a, b].into());
        let second = Claim::on(&pulls, [b, c].into());
        assert_eq!(second.names, [c].into());
        drop(first);
        assert_eq!(Claim::on(&pulls, [a, b, c].into()).names, [a, b].into());
        drop(second);
        assert!(lock(&pulls.in_flight).is_empty());
    }
}
