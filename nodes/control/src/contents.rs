//! Long values: in pieces, on every store that holds a record which names them.
//!
//! Owns: cutting and keeping what children hand out, putting it together for their starts, fetching
//! pieces from other nodes and handing them out, and the gate before this node's store: a record gets
//! in only when everything that it names is there and flushed. Never decides what is long, where a
//! value is cut, or what a missing piece means for its child.
//!
//! ```text
//!   driver ── keep, fetch ─────────┐
//!   lanes, core ── append ── gate ─┼── chunks ──> this node's disk
//!                   │   all there  └── pull ────> FETCH_CHUNKS to the asker, then to anybody
//!                   └──────────────────────────> the store
//! ```
//!
//! A request of which something cannot be had is dropped, as if it had been lost: its owner asks
//! again. Appends of one child keep their order. While pieces come in, the owner hears so now and then,
//! or it would take this store for a silent one and go on without it (rule R6).

mod gate;
mod pull;

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::debug;

use understudy_protocol::id::{IncarnationId, NodeId, StoreId};
use understudy_protocol::wire::content::{NotTheValue, Parts, Pieces};
use understudy_protocol::wire::replica::{ReplicaAnswer, ReplicaRequest};
use understudy_store::{ChunkName, Chunks, ReplicaThread};
use understudy_supervision::clock;
use understudy_supervision::values::{BoxFuture, FetchError, KeepError, Values};
use understudy_transport::net::{Net, RequestRefused};

use gate::Gate;
use pull::{Lost, Pulls};

/// What long values lean on.
pub struct ContentsConfig {
    /// This node.
    pub node: NodeId,
    /// Its store.
    pub store: StoreId,
    /// This start of it.
    pub incarnation: IncarnationId,
    /// The store's chunks.
    pub chunks: Chunks,
    /// The store's records.
    pub replica: Arc<ReplicaThread>,
    /// The network, once there is one.
    pub net: Arc<OnceLock<Net>>,
    /// Takes what the store says before it answers. It must not block.
    pub answer: Box<dyn Fn(NodeId, ReplicaAnswer) + Send + Sync>,
}

/// The long values of one node. A clone is the same.
#[derive(Clone)]
pub struct Contents {
    shared: Arc<Shared>,
}

struct Shared {
    config: ContentsConfig,
    gate: Gate,
    pulls: Pulls,
    /// Values that are cut or put together: each is in memory, whole.
    values: Semaphore,
    /// Requests for chunks of ours.
    served: Semaphore,
}

/// The tasks behind [`Contents`].
pub struct ContentsTask {
    tasks: JoinSet<()>,
    stop: Vec<oneshot::Sender<()>>,
}

/// Starts both. Must be called within a tokio runtime.
pub fn start(config: ContentsConfig) -> (Contents, ContentsTask) {
    let (waiting, waiting_end) = mpsc::channel(gate::WAITING_MAX);
    let shared = Arc::new(Shared {
        config,
        gate: Gate {
            waiting,
            busy: Mutex::default(),
            bytes: AtomicUsize::new(0),
        },
        pulls: Pulls {
            in_flight: Mutex::default(),
            ended: watch::channel(0).0,
            groups: Semaphore::new(pull::GROUPS_AT_ONCE),
        },
        values: Semaphore::new(VALUES_AT_ONCE),
        served: Semaphore::new(SERVED_AT_ONCE),
    });
    let mut tasks = JoinSet::new();
    let (stop_gate, gate_stopped) = oneshot::channel();
    let (stop_rounds, rounds_stopped) = oneshot::channel();
    tasks.spawn(gate::run(shared.clone(), waiting_end, gate_stopped));
    tasks.spawn(rounds(shared.clone(), rounds_stopped));
    let stop = vec![stop_gate, stop_rounds];
    (Contents { shared }, ContentsTask { tasks, stop })
}

impl Contents {
    /// Asks this node's store, once it has what the request's records name. Whether it was taken; one
    /// that was taken may still be lost, as any.
    pub fn ask(&self, from: NodeId, request: ReplicaRequest) -> bool {
        gate::ask(&self.shared, from, request)
    }

    /// Answers a peer's [`FETCH_CHUNKS`].
    pub fn serve(&self, names: Bytes) -> BoxFuture<'static, Result<Bytes, RequestRefused>> {
        let shared = self.shared.clone();
        Box::pin(async move { shared.serve(&names).await })
    }
}

impl Values for Contents {
    fn keep(&self, value: Bytes) -> BoxFuture<'_, Result<Pieces, KeepError>> {
        Box::pin(self.shared.keep(value))
    }

    fn keep_parts(&self, parts: Parts) -> BoxFuture<'_, Result<(), KeepError>> {
        Box::pin(self.shared.keep_cut(move || Ok((parts, ()))))
    }

    fn fetch(&self, pieces: Pieces) -> BoxFuture<'_, Result<Bytes, FetchError>> {
        Box::pin(self.shared.fetch(pieces))
    }
}

impl ContentsTask {
    /// Ends what is under way: what was being fetched is asked for again elsewhere.
    pub async fn stop(mut self) {
        for stop in self.stop.drain(..) {
            let _ = stop.send(());
        }
        while self.tasks.join_next().await.is_some() {}
    }
}

impl Shared {
    async fn keep(&self, value: Bytes) -> Result<Pieces, KeepError> {
        self.keep_cut(move || {
            let cut = Pieces::cut(&value)?;
            Ok((cut.parts, cut.pieces))
        })
        .await
    }

    /// Keeps what `cut` says, where it may take its time; then what it says besides is true.
    async fn keep_cut<T: Send + 'static>(
        &self,
        cut: impl FnOnce() -> Result<(Parts, T), KeepError> + Send + 'static,
    ) -> Result<T, KeepError> {
        let refused = |error: &dyn std::fmt::Display| KeepError::Refused(error.to_string());
        let permit = self.values.acquire().await;
        let _permit = permit.map_err(|error| refused(&error))?;
        let chunks = self.config.chunks.clone();
        let kept = tokio::task::spawn_blocking(move || {
            let (mut parts, cut) = cut()?;
            let missing = chunks.missing(parts.iter().map(|(name, _)| *name));
            parts.retain(|(name, _)| missing.contains(name));
            metrics::counter!("understudy_chunks_written_total").increment(parts.len() as u64);
            let written = chunks.put_all(&parts);
            written.map_err(|error| KeepError::Refused(error.to_string()))?;
            Ok(cut)
        });
        kept.await.unwrap_or_else(|error| Err(refused(&error)))
    }

    async fn fetch(&self, pieces: Pieces) -> Result<Bytes, FetchError> {
        let refused = |error: &dyn std::fmt::Display| FetchError::Refused(error.to_string());
        let permit = self.values.acquire().await;
        let _permit = permit.map_err(|error| refused(&error))?;
        let mut tries = 0;
        loop {
            tries += 1;
            let names = self.names_of(&pieces, None, &|| {}).await?;
            self.pull(names.clone(), None, &|| {}).await?;
            let (chunks, of) = (self.config.chunks.clone(), pieces.clone());
            let joined = move || {
                let joined = of.join(&names, |name| chunks.get(name).ok());
                if joined.is_err() {
                    // One is damaged; reading them finds the others.
                    names.iter().for_each(|name| drop(chunks.get(*name)));
                }
                joined
            };
            let joined = tokio::task::spawn_blocking(joined).await;
            match joined.map_err(|error| refused(&error))? {
                // It was there, and damaged: it is fetched from another node now.
                Err(NotTheValue::Missing(_)) if tries < FETCH_TRIES => {}
                joined => return Ok(joined?),
            }
        }
    }

    /// What a value's pieces are called. Fetches the list where there is one.
    async fn names_of(
        &self,
        pieces: &Pieces,
        first: Option<NodeId>,
        progress: &(dyn Fn() + Send + Sync),
    ) -> Result<Vec<ChunkName>, FetchError> {
        let Some(name) = pieces.list() else {
            return Ok(pieces.names(None)?);
        };
        let mut tries = 0;
        loop {
            tries += 1;
            self.pull(vec![name], first, progress).await?;
            let chunks = self.config.chunks.clone();
            let list = tokio::task::spawn_blocking(move || chunks.get(name)).await;
            match list.map_err(|error| FetchError::Refused(error.to_string()))? {
                Ok(list) => return Ok(pieces.names(Some(&list))?),
                Err(_) if tries < FETCH_TRIES => {}
                Err(error) => return Err(FetchError::Refused(error.to_string())),
            }
        }
    }

    async fn serve(&self, names: &[u8]) -> Result<Bytes, RequestRefused> {
        let names: Vec<ChunkName> = ChunkName::all_in(names).take(pull::GROUP_MAX + 1).collect();
        if names.len() > pull::GROUP_MAX {
            return Err(RequestRefused::Failed("too many chunks at once".into()));
        }
        let permit = self.served.acquire().await;
        let _permit = permit.map_err(|_| RequestRefused::NotServed)?;
        let chunks = self.config.chunks.clone();
        let read = tokio::task::spawn_blocking(move || pull::write_answer(&chunks, &names));
        read.await
            .map_err(|error| RequestRefused::Failed(error.to_string()))
    }
}

impl From<Lost> for FetchError {
    fn from(lost: Lost) -> FetchError {
        let Lost { missing, first } = lost;
        FetchError::Missing { missing, first }
    }
}

/// Removes what nothing names, looks at what there is, and fetches what is lost.
async fn rounds(shared: Arc<Shared>, mut stop: oneshot::Receiver<()>) {
    let mut look_at = clock::now() + LOOK_EVERY;
    loop {
        let step = async {
            tokio::time::sleep(SWEEP_EVERY).await;
            let now = clock::now();
            let looks = look_at <= now;
            let chunks = shared.config.chunks.clone();
            let round = tokio::task::spawn_blocking(move || {
                let removed = chunks.sweep(now);
                metrics::counter!("understudy_chunks_removed_total").increment(removed as u64);
                let looked = looks.then(|| chunks.look());
                (chunks.lost(), looked.is_some_and(|looked| looked.is_last))
            });
            let Ok((lost, is_last)) = round.await else {
                return;
            };
            if looks {
                look_at = now + if is_last { LOOK_REST } else { LOOK_EVERY };
            }
            if !lost.is_empty()
                && let Err(error) = shared.pull(lost, None, &|| {}).await
            {
                debug!(?error, "chunks that records here name are not to be had");
            }
        };
        tokio::select! {
            _ = &mut stop => return,
            () = step => {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks a peer for chunks by their names, one after the other; at most [`pull::GROUP_MAX`]. The answer
/// holds for each its length in four bytes, big-endian, and its content; the length of one that the
/// peer has not is the greatest there is.
pub(crate) const FETCH_CHUNKS: u8 = 6;

/// Values that are in memory while they are cut or put together: a quarter of a gigabyte.
const VALUES_AT_ONCE: usize = 4;

/// Requests of peers that are read from the disk at once.
const SERVED_AT_ONCE: usize = 8;

/// A piece that was there and is damaged is noticed when it is read: then it is fetched, once.
const FETCH_TRIES: usize = 2;

/// Between two steps of a sweep.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// Between two steps of a look: a megabyte or so each, which is no load.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Between two rounds.
const LOOK_REST: Duration = Duration::from_secs(3_600);

#[cfg(test)]
mod tests;
