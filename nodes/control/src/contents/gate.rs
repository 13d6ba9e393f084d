//! The gate before the store: an append waits here until everything is there that its records name.
//!
//! Owns: who waits, and their order. Never answers for the store.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::{Id, JoinSet};
use tokio::time::timeout;
use tracing::debug;

use understudy_protocol::id::{ChildId, Epoch, IncarnationId, NodeId, UnitId};
use understudy_protocol::wire::codec::record_bytes_max;
use understudy_protocol::wire::content::Pieces;
use understudy_protocol::wire::replica::{Ask, ReplicaAnswer, ReplicaRequest, Said};
use understudy_protocol::wire::step::named_by;
use understudy_supervision::values::FetchError;

use super::{Shared, lock};

/// What waits.
pub(super) struct Gate {
    pub(super) waiting: mpsc::Sender<Waiting>,
    /// Appends of each child that wait: none of its others may overtake them.
    pub(super) busy: Mutex<BTreeMap<ChildId, usize>>,
    /// What all of them take in memory.
    pub(super) bytes: AtomicUsize,
}

/// An append that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    from: NodeId,
    child: ChildId,
    named: Vec<Pieces>,
    request: ReplicaRequest,
    bytes: usize,
}

/// See [`super::Contents::ask`].
pub(super) fn ask(shared: &Shared, from: NodeId, request: ReplicaRequest) -> bool {
    let replica = &shared.config.replica;
    let Ask::Append(append) = &request.ask else {
        return replica.ask(from, request).is_ok();
    };
    let mut named = Vec::new();
    for record in &append.records {
        match named_by(record) {
            Ok(pieces) => named.extend(pieces),
            Err(error) => {
                drop_it(from, &append.child, &error);
                return true;
            }
        }
    }
    let gate = &shared.gate;
    let waits = lock(&gate.busy).contains_key(&append.child);
    if !waits && shared.has(&named) {
        return replica.ask(from, request).is_ok();
    }
    let bytes = append.records.iter().map(record_bytes_max).sum();
    let waiting = Waiting {
        from,
        child: append.child.clone(),
        named,
        request,
        bytes,
    };
    let queued = gate.bytes.fetch_add(bytes, Ordering::Relaxed);
    *lock(&gate.busy).entry(waiting.child.clone()).or_default() += 1;
    if queued > WAITING_BYTES_MAX {
        gate.forget(&waiting);
        drop_it(from, &waiting.child, &"too much waits for its pieces");
    } else if let Err(full) = gate.waiting.try_send(waiting) {
        let waiting = full.into_inner();
        gate.forget(&waiting);
        drop_it(from, &waiting.child, &"too many wait for their pieces");
    }
    true
}

/// Lets in who has everything. One of each child at a time, so that they keep their order.
pub(super) async fn run(
    shared: Arc<Shared>,
    mut arriving: mpsc::Receiver<Waiting>,
    mut stop: oneshot::Receiver<()>,
) {
    let mut queues: BTreeMap<ChildId, VecDeque<Waiting>> = BTreeMap::new();
    let mut pulls = Pulling::default();
    loop {
        tokio::select! {
            _ = &mut stop => return,
            Some(waiting) = arriving.recv() => {
                let queue = queues.entry(waiting.child.clone()).or_default();
                if queue.len() >= WAITING_EACH_MAX {
                    shared.gate.forget(&waiting);
                    drop_it(waiting.from, &waiting.child, &"too many of its appends wait");
                    continue;
                }
                if queue.is_empty() {
                    pulls.spawn(&shared, Pull::of(&waiting));
                }
                queue.push_back(waiting);
            }
            Some((child, pulled)) = pulls.next() => {
                let Some(mut queue) = queues.remove(&child) else { continue };
                if let Err(error) = &pulled {
                    // The later ones follow this one.
                    for waiting in queue.drain(..) {
                        shared.gate.forget(&waiting);
                        drop_it(waiting.from, &child, error);
                    }
                } else if let Some(waiting) = queue.pop_front() {
                    let (from, request) = (waiting.from, waiting.request.clone());
                    // A full queue answers nothing; the owner asks again.
                    let _ = shared.config.replica.ask(from, request);
                    shared.gate.forget(&waiting);
                }
                if let Some(next) = queue.front() {
                    pulls.spawn(&shared, Pull::of(next));
                    queues.insert(child, queue);
                }
            }
        }
    }
}

/// What is fetched for one append.
struct Pull {
    from: NodeId,
    child: ChildId,
    named: Vec<Pieces>,
    unit: UnitId,
    epoch: Epoch,
    session: Option<IncarnationId>,
}

impl Pull {
    fn of(waiting: &Waiting) -> Pull {
        Pull {
            from: waiting.from,
            child: waiting.child.clone(),
            named: waiting.named.clone(),
            unit: waiting.request.unit,
            epoch: waiting.request.epoch,
            session: waiting.request.session,
        }
    }
}

/// The pulls under way, and whose each is: one that panics cannot say so itself.
#[derive(Default)]
struct Pulling {
    tasks: JoinSet<Result<(), FetchError>>,
    children: HashMap<Id, ChildId>,
}

impl Pulling {
    fn spawn(&mut self, shared: &Arc<Shared>, what: Pull) {
        let child = what.child.clone();
        let task = self.tasks.spawn(pull(shared.clone(), what));
        self.children.insert(task.id(), child);
    }

    /// What came of one of them; none while there are none.
    async fn next(&mut self) -> Option<(ChildId, Result<(), FetchError>)> {
        let ended = self.tasks.join_next_with_id().await?;
        let (task, pulled) = ended.unwrap_or_else(|error| {
            let why = FetchError::Refused(error.to_string());
            (error.id(), Err(why))
        });
        let child = self.children.remove(&task);
        Some((child.expect("each task was entered when it began"), pulled))
    }
}

async fn pull(shared: Arc<Shared>, pull: Pull) -> Result<(), FetchError> {
    let config = &shared.config;
    let progress = || {
        // What is said to another start of this node is not for this one to answer.
        if pull.session == Some(config.incarnation) {
            let answer = ReplicaAnswer {
                store: config.store,
                unit: pull.unit,
                epoch: pull.epoch,
                session: config.incarnation,
                said: Said::Fetching {
                    child: pull.child.clone(),
                },
            };
            (config.answer)(pull.from, answer);
        }
    };
    let first = (pull.from != config.node).then_some(pull.from);
    let all = async {
        let mut names = Vec::new();
        for pieces in &pull.named {
            names.extend(shared.names_of(pieces, first, &progress).await?);
        }
        Ok(shared.pull(names, first, &progress).await?)
    };
    let late = || FetchError::Refused(format!("they did not come within {PULL_LIMIT:?}"));
    let pulled = timeout(PULL_LIMIT, all).await;
    pulled.unwrap_or_else(|_| Err(late()))
}

impl Shared {
    /// Whether everything is there that these name, as far as memory can tell.
    fn has(&self, named: &[Pieces]) -> bool {
        let listed = named.iter().any(|pieces| pieces.list().is_some());
        let names = named.iter().flat_map(|pieces| pieces.names(None));
        !listed && self.config.chunks.missing(names.flatten()).is_empty()
    }
}

impl Gate {
    fn forget(&self, waiting: &Waiting) {
        self.bytes.fetch_sub(waiting.bytes, Ordering::Relaxed);
        let mut busy = lock(&self.busy);
        if let Some(count) = busy.get_mut(&waiting.child) {
            *count -= 1;
            if *count == 0 {
                busy.remove(&waiting.child);
            }
        }
    }
}

fn drop_it(from: NodeId, child: &ChildId, why: &dyn std::fmt::Display) {
    metrics::counter!("understudy_appends_dropped_without_pieces_total").increment(1);
    debug!(%from, %child, %why, "an append is dropped: its owner asks again");
}

/// Appends that wait to be queued.
pub(super) const WAITING_MAX: usize = 1_024;

/// Appends of one child that wait: an owner sends what is new and, when nothing is said, all of it
/// again.
const WAITING_EACH_MAX: usize = 8;

/// What all that wait may take: as much as the store's own queue.
const WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How long the pieces of one append may take: 64 MiB at 20 Mbit/s. A takeover does not wait for a
/// store that is slower.
const PULL_LIMIT: Duration = Duration::from_secs(30);
