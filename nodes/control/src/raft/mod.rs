//! Raft: the log of the directory, kept by openraft on this node's store.
//!
//! Owns: openraft's tasks and the order in which the core hears of them. Never applies an entry,
//! grants or proposes by itself: the core does, and what it proposes may be lost and is proposed again.
//!
//! ```text
//!   core ── propose, change_members, form, may_lead ──> RaftDriver ──> openraft ──> RaftLog (disk)
//!   core <── Opened, Held, Truncated, Apply, Install, Snapshot, Role, … ─────────┘ └──> RaftNetwork
//! ```
//!
//! Every event comes over one queue, in this order: first one [`RaftEvent::Opened`]; a fact before
//! openraft hears that its entry is flushed; a leader's [`RaftEvent::Role`] before an entry of its term
//! is applied; committed entries one by one. The core must keep reading: Raft waits while the queue is
//! full.

mod inbound;
mod log;
mod machine;
mod network;
mod outbox;
#[cfg(test)]
mod tests;
mod types;

pub use inbound::RequestRefused;
pub use log::LogError;
pub use network::{
    Asked, KIND_APPEND, KIND_SNAPSHOT, KIND_VOTE, REQUEST_BYTES_MAX, RaftNetwork, RequestFailed,
};

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::{ChangeMembers, Config, EmptyNode, RaftMetrics, ServerState, SnapshotPolicy};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use understudy_protocol::cluster::controller::RaftMembers;
use understudy_protocol::cluster::directory::{Directory, Entry};
use understudy_protocol::cluster::lease::voter::Fact;
use understudy_protocol::id::{LogId, LogIndex, StoreId, Term};
use understudy_store::RaftLog;

use inbound::Receiving;
use log::{Log, decode};
use machine::{Machine, directory_of};
use network::{Factory, Outgoing};
use outbox::Outbox;
use types::{Meta, Raft, Stored, fact_of};

/// What Raft tells the core. Indexes are the directory's (see `types`).
#[derive(Debug)]
pub enum RaftEvent {
    /// The snapshot and the log were read. The first event of every start.
    Opened {
        /// The snapshot's directory; none while the store has no snapshot.
        snapshot: Option<Box<Directory>>,
        /// What the entries after it hold.
        open: Vec<(LogId, Fact)>,
    },
    /// An entry was flushed that a lease voter must know of (L4).
    Held(LogId, Fact),
    /// The log was cut from this index on.
    Truncated(LogIndex),
    /// These entries are committed, in order; `None` is one of Raft's own, to be skipped.
    Apply {
        /// At most [`APPLY_AT_ONCE`] of them.
        entries: Vec<(LogId, Option<Entry>)>,
        /// To be told when all are applied. Raft waits.
        done: oneshot::Sender<()>,
    },
    /// The leader sent a snapshot: the directory is another now.
    Install {
        /// The directory.
        directory: Box<Directory>,
        /// What the entries after it hold: the log may go on behind the snapshot.
        open: Vec<(LogId, Fact)>,
        /// To be told when it is installed. Raft waits.
        done: oneshot::Sender<()>,
    },
    /// Raft wants a snapshot.
    Snapshot {
        /// To be told the directory as applied up to here.
        answer: oneshot::Sender<Arc<Directory>>,
    },
    /// This node became the leader of the term, or is none any more.
    Role {
        /// Whether it leads now.
        leading: bool,
        /// Since which term.
        term: Term,
    },
    /// A leader of the present term spoke, or this node leads and a majority answers it. Said about
    /// every 100 ms.
    LeaderSeen(StoreId),
    /// Raft has stopped: its disk failed, or the log cannot be read. The node must stop too.
    Failed(String),
}

/// One store's member of Raft.
pub struct RaftDriver {
    shared: Arc<Shared>,
    orders: mpsc::Sender<Order>,
    stop: watch::Sender<bool>,
    /// The driver's own task.
    clerk: Mutex<JoinSet<()>>,
}

/// Answers the requests of other members. Cheap to clone.
#[derive(Clone)]
pub struct RaftRequests(Arc<Shared>);

/// What the driver, its task and the requests of others have in common.
struct Shared {
    /// Set once the log has been read.
    raft: OnceLock<Raft>,
    outbox: Arc<Outbox>,
    outgoing: Arc<Outgoing>,
    receiving: Mutex<Option<Receiving>>,
}

/// What the core wants of Raft and does not wait for.
enum Order {
    Form(BTreeSet<u64>),
    Propose(Stored),
    ChangeMembers {
        voters: BTreeSet<u64>,
        learners: BTreeSet<u64>,
    },
}

impl RaftDriver {
    /// Starts the member of `store`. Returns at once: the log is read, and the first events are told,
    /// while the caller goes on. Must be called within a runtime.
    pub fn start(
        store: StoreId,
        log: RaftLog,
        network: Arc<dyn RaftNetwork>,
        events: mpsc::Sender<RaftEvent>,
    ) -> RaftDriver {
        let (stop, stopping) = watch::channel(false);
        let shared = Arc::new(Shared {
            raft: OnceLock::new(),
            outbox: Arc::new(Outbox::new(events, stopping.clone())),
            outgoing: Arc::new(Outgoing::new(network)),
            receiving: Mutex::default(),
        });
        let (orders, inbox) = mpsc::channel(ORDERS_MAX);
        let clerk = Clerk {
            log: Log {
                me: store,
                store: log,
                outbox: shared.outbox.clone(),
            },
            shared: shared.clone(),
            work: JoinSet::new(),
            changing: false,
            stale_looks: 0,
            campaigned_in: 0,
            campaigns: 0,
            elect_in: 0,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(clerk.run(inbox, stopping));
        RaftDriver {
            shared,
            orders,
            stop,
            clerk: Mutex::new(tasks),
        }
    }

    /// What answers other members' requests.
    pub fn requests(&self) -> RaftRequests {
        RaftRequests(self.shared.clone())
    }

    /// Begins a cluster of these stores, this one among them, unless this store belongs to one. It is
    /// called on one of them; the others hear of it from that one. Never waits: the first entry that is
    /// applied shows that it was done.
    pub fn form(&self, voters: BTreeSet<StoreId>) {
        self.order(Order::Form(numbers(voters)));
    }

    /// Proposes an entry, if this node leads. Nobody says what becomes of it: look at what is applied,
    /// and propose again. Never waits.
    pub fn propose(&self, entry: Entry) {
        if !self.shared.outgoing.may_lead() {
            return;
        }
        match Stored::new(entry) {
            Ok(stored) => self.order(Order::Propose(stored)),
            Err(error) => {
                tracing::warn!(%error, "an entry that no member could read is not proposed")
            }
        }
    }

    /// Moves Raft's members one step towards these, if this node leads: a store joins as a learner, a
    /// learner is promoted, or a store leaves. Nobody says what becomes of it. Never waits.
    pub fn change_members(&self, voters: BTreeSet<StoreId>, learners: BTreeSet<StoreId>) {
        self.order(Order::ChangeMembers {
            voters: numbers(voters),
            learners: numbers(learners),
        });
    }

    /// Whether this member may lead (it does at the start). One that may not is silent: it campaigns
    /// no more, and one that leads sends nothing, so that the others elect another (L9).
    pub fn may_lead(&self, may_lead: bool) {
        self.shared.outgoing.set_may_lead(may_lead);
        if let Some(raft) = self.shared.raft.get() {
            raft.runtime_config().heartbeat(may_lead);
            raft.runtime_config().elect(may_lead);
        }
    }

    /// Raft's members as this one knows them, and who of the learners has caught up: nobody, unless
    /// this one leads.
    pub fn members(&self) -> RaftMembers {
        let raft = self.shared.raft.get();
        raft.map(|raft| members_of(&raft.metrics().borrow()))
            .unwrap_or_default()
    }

    /// Who leads, as far as this member knows.
    pub fn leader(&self) -> Option<StoreId> {
        let raft = self.shared.raft.get()?;
        raft.metrics().borrow().current_leader.map(StoreId)
    }

    /// Stops Raft and waits until nothing of it runs any more; the log is as flushed.
    pub async fn shutdown(&self) {
        let _ = self.stop.send(true);
        let mut clerk = {
            let mut clerk = self.clerk.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *clerk)
        };
        while clerk.join_next().await.is_some() {}
    }

    fn order(&self, order: Order) {
        if self.orders.try_send(order).is_err() {
            tracing::debug!("raft is busy: an order is dropped, and will be given again");
        }
    }
}

impl Drop for RaftDriver {
    /// Without [`RaftDriver::shutdown`], Raft is silent from now on, and stops by itself once nobody
    /// holds its [`RaftRequests`].
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        self.shared.outgoing.set_may_lead(false);
    }
}

impl RaftRequests {
    /// Answers a request of another member: the body of the answer.
    pub async fn on_request(&self, kind: u8, body: Bytes) -> Result<Bytes, RequestRefused> {
        let raft = self.0.raft.get().ok_or(RequestRefused::NotReady)?;
        let (outbox, receiving) = (&self.0.outbox, &self.0.receiving);
        let may_lead = self.0.outgoing.may_lead();
        inbound::answer(raft, outbox, receiving, may_lead, kind, &body).await
    }
}

/// The driver's own task: it opens Raft, carries orders out and looks at how Raft stands.
struct Clerk {
    log: Log,
    shared: Arc<Shared>,
    /// Proposals and changes of members under way.
    work: JoinSet<Done>,
    /// A change of members is among them.
    changing: bool,
    /// Looks since openraft last said how it stands.
    stale_looks: u32,
    /// The term of this member's last campaign that did not end in a leader.
    campaigned_in: u64,
    /// This member's campaigns since there was a leader.
    campaigns: u32,
    /// Looks until it may campaign again.
    elect_in: u32,
}

enum Done {
    Said,
    Changed,
}

impl Clerk {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>, mut stop: watch::Receiver<bool>) {
        let raft = match self.open().await {
            Ok(raft) => raft,
            Err(error) => {
                let reason = error.to_string();
                let _ = self
                    .log
                    .outbox
                    .tell(|_| Some(RaftEvent::Failed(reason)))
                    .await;
                return;
            }
        };
        let _ = self.shared.raft.set(raft.clone());
        raft.runtime_config()
            .heartbeat(self.shared.outgoing.may_lead());
        raft.runtime_config().elect(self.shared.outgoing.may_lead());
        let mut metrics = raft.metrics();
        let mut look = tokio::time::interval(LOOK_PERIOD);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stopped(&mut stop) => break,
                Some(done) = self.work.join_next() => {
                    self.changing &= matches!(done, Ok(Done::Said));
                }
                Some(order) = orders.recv(), if self.work.len() < WORK_MAX => {
                    self.carry(&raft, order);
                }
                _ = look.tick() => {
                    if let Err(reason) = self.look(&raft, &mut metrics).await {
                        tracing::error!(%reason, "raft has stopped");
                        let _ = self.log.outbox.tell(|_| Some(RaftEvent::Failed(reason))).await;
                        break;
                    }
                }
            }
        }
        let _ = raft.shutdown().await;
        self.work.shutdown().await;
    }

    /// Reads snapshot and log, tells the core, and starts openraft on them.
    async fn open(&mut self) -> Result<Raft, LogError> {
        let loaded = self.log.blocking(|store| {
            let Some((meta, data)) = store.load_snapshot()? else {
                return Ok(None);
            };
            let meta: Meta = decode(&meta)?;
            let directory = directory_of(&meta, &data)?;
            Ok(Some((meta, directory)))
        });
        let (meta, directory) = loaded.await?.unzip();
        let (end, purged) = self.log.ends().await?;
        let covered = meta.as_ref().and_then(|meta: &Meta| meta.last_log_id);
        let next = |id: Option<openraft::LogId<u64>>| id.map_or(0, |id| id.index + 1);
        let mut from = next(covered).max(next(purged));
        let mut open = Vec::new();
        while from < end {
            let to = end.min(from + READ_AT_ONCE);
            open.extend(self.log.read(from, to).await?.iter().filter_map(fact_of));
            from = to;
        }
        let told = self.log.outbox.tell(|told| {
            told.open = open
                .iter()
                .map(|held| (held.0.index, held.clone()))
                .collect();
            Some(RaftEvent::Opened {
                snapshot: directory.map(Box::new),
                open,
            })
        });
        told.await.map_err(|error| LogError(error.to_string()))?;
        let config = config().validate().expect("the settings are constants");
        let machine = Machine::new(self.log.clone(), meta);
        let factory = Factory(self.shared.outgoing.clone());
        let opened = Raft::new(
            self.log.me.0,
            Arc::new(config),
            factory,
            self.log.clone(),
            machine,
        );
        opened.await.map_err(|error| LogError(error.to_string()))
    }

    fn carry(&mut self, raft: &Raft, order: Order) {
        let raft = raft.clone();
        match order {
            Order::Form(voters) => {
                self.work.spawn(async move {
                    if let Err(error) = raft.initialize(voters).await {
                        tracing::warn!(%error, "no cluster was formed");
                    }
                    Done::Said
                });
            }
            Order::Propose(stored) => {
                self.work.spawn(async move {
                    if let Err(error) = raft.client_write(stored).await {
                        tracing::debug!(%error, "a proposal is lost");
                    }
                    Done::Said
                });
            }
            Order::ChangeMembers { voters, learners } => {
                let metrics = raft.metrics().borrow().clone();
                if let Some(change) = next_change(&metrics, &voters, &learners) {
                    self.change(raft, change);
                }
            }
        }
    }

    /// One change of members at a time: openraft would refuse a second, and so would Raft.
    fn change(&mut self, raft: Raft, change: ChangeMembers<u64, EmptyNode>) {
        if self.changing {
            return;
        }
        self.changing = true;
        self.work.spawn(async move {
            if let Err(error) = raft.change_membership(change, false).await {
                tracing::debug!(%error, "a change of raft's members is lost");
            }
            Done::Changed
        });
    }

    /// Says what openraft does not say by itself. An error is why Raft has stopped.
    async fn look(
        &mut self,
        raft: &Raft,
        metrics: &mut watch::Receiver<RaftMetrics<u64, EmptyNode>>,
    ) -> Result<(), String> {
        let fresh = metrics.has_changed().unwrap_or(false);
        let now = metrics.borrow_and_update().clone();
        now.running_state.as_ref().map_err(ToString::to_string)?;
        self.stale_looks = if fresh { 0 } else { self.stale_looks + 1 };
        self.pace_elections(raft, &now);
        if now.state != ServerState::Leader {
            return self.steps_down(&now).await;
        }
        // A leader whose numbers stand still may have lost everybody: it hears nobody, itself included.
        let answered = now
            .millis_since_quorum_ack
            .is_some_and(|ago| ago <= ELECTION_MILLIS_MAX);
        let recent = self.stale_looks <= STALE_LOOKS_MAX;
        if answered && recent && self.shared.outgoing.may_lead() {
            self.log.outbox.leader_seen(self.log.me);
        }
        // A leader that died between the two steps of a change left both lists in force.
        let lists = now.membership_config.membership().get_joint_config();
        if let [_, .., last] = lists.as_slice() {
            self.change(raft.clone(), ChangeMembers::ReplaceAllVoters(last.clone()));
        }
        Ok(())
    }

    /// A leader that left the members leads no more, though nobody else was voted for.
    async fn steps_down(&mut self, now: &RaftMetrics<u64, EmptyNode>) -> Result<(), String> {
        let term = Term(now.current_term);
        let won = now.vote.committed && now.vote.leader_id.voted_for == Some(self.log.me.0);
        if !won {
            return Ok(());
        }
        let told = self.log.outbox.tell(|told| {
            let led = told.leads == Some(term);
            if led {
                told.leads = None;
            }
            let leading = false;
            led.then_some(RaftEvent::Role { leading, term })
        });
        told.await.map_err(|error| error.to_string())
    }

    /// openraft draws a member's election timeout once for its whole life. Two that have drawn nearly
    /// the same would split every vote, so one whose campaign found no majority waits a random while,
    /// of up to twice as long with each campaign: one that saw a longer log waits a second anyway.
    fn pace_elections(&mut self, raft: &Raft, now: &RaftMetrics<u64, EmptyNode>) {
        if self.elect_in > 0 {
            self.elect_in -= 1;
            raft.runtime_config()
                .elect(self.elect_in == 0 && self.shared.outgoing.may_lead());
        }
        if now.state == ServerState::Candidate && now.current_term != self.campaigned_in {
            self.campaigned_in = now.current_term;
            let mut random = [0];
            // Without randomness the pause is the shortest one.
            let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::NONBLOCK);
            let longest = ELECT_PAUSE_LOOKS << self.campaigns.min(ELECT_PAUSE_DOUBLINGS);
            self.campaigns += 1;
            self.elect_in = 1 + u32::from(random[0]) % longest;
            raft.runtime_config().elect(false);
        }
        if now.current_leader.is_some() {
            self.campaigns = 0;
        }
    }
}

/// Returns when the driver is to stop, or is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn numbers(stores: BTreeSet<StoreId>) -> BTreeSet<u64> {
    stores.into_iter().map(|store| store.0).collect()
}

fn members_of(metrics: &RaftMetrics<u64, EmptyNode>) -> RaftMembers {
    let membership = metrics.membership_config.membership();
    let lists = membership.get_joint_config();
    let voters = lists.last().cloned().unwrap_or_default();
    let applied = metrics.last_applied.map_or(0, |id| id.index);
    let caught_up = |store: &u64| {
        let replicated = metrics.replication.as_ref().and_then(|all| all.get(store));
        replicated.is_some_and(|held| held.is_some_and(|id| id.index + CAUGHT_UP >= applied))
    };
    let learners: BTreeSet<u64> = membership.learner_ids().collect();
    let named = |stores: BTreeSet<u64>| stores.into_iter().map(StoreId).collect();
    RaftMembers {
        caught_up: named(
            learners
                .iter()
                .filter(|store| caught_up(store))
                .copied()
                .collect(),
        ),
        voters: named(voters),
        learners: named(learners),
    }
}

/// The one change that leads towards the wanted members; `None` when they are what they should be.
fn next_change(
    metrics: &RaftMetrics<u64, EmptyNode>,
    voters: &BTreeSet<u64>,
    learners: &BTreeSet<u64>,
) -> Option<ChangeMembers<u64, EmptyNode>> {
    let membership = metrics.membership_config.membership();
    let voting: BTreeSet<u64> = membership.voter_ids().collect();
    let listening: BTreeSet<u64> = membership.learner_ids().collect();
    let unknown = |store: &&u64| !voting.contains(store) && !listening.contains(store);
    let joining = voters.union(learners).find(unknown);
    if let Some(joining) = joining {
        return Some(ChangeMembers::AddNodes([(*joining, EmptyNode {})].into()));
    }
    if voting != *voters && !voters.is_empty() {
        return Some(ChangeMembers::ReplaceAllVoters(voters.clone()));
    }
    let leaving: BTreeSet<u64> = listening.difference(learners).copied().collect();
    (!leaving.is_empty()).then_some(ChangeMembers::RemoveNodes(leaving))
}

fn config() -> Config {
    Config {
        cluster_name: "directory".into(),
        heartbeat_interval: HEARTBEAT_MILLIS,
        election_timeout_min: ELECTION_MILLIS_MIN,
        election_timeout_max: ELECTION_MILLIS_MAX,
        install_snapshot_timeout: SNAPSHOT_MILLIS_MAX,
        snapshot_max_chunk_size: SNAPSHOT_PIECE_BYTES,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
        max_in_snapshot_log_to_keep: LOG_KEPT,
        replication_lag_threshold: LAG_MAX,
        max_payload_entries: ENTRIES_AT_ONCE,
        ..Config::default()
    }
}

/// Between two heartbeats, and how long a follower may take to answer one. openraft looks at its clock
/// every one and a half of them, so they come every 150 ms.
const HEARTBEAT_MILLIS: u64 = 100;

/// A follower waits the longest of these (openraft's leader lease) and then one between the two, drawn
/// at its start: 750 ms to a second after the last heartbeat the next election begins, which with the
/// shortest TTL of 500 ms keeps a failover near two seconds. Two heartbeats may be lost.
const ELECTION_MILLIS_MIN: u64 = 250;
/// See [`ELECTION_MILLIS_MIN`].
const ELECTION_MILLIS_MAX: u64 = 500;

/// A piece of a snapshot, with the writing and reading of the whole after the last: 64 MiB on a slow
/// disk.
const SNAPSHOT_MILLIS_MAX: u64 = 10_000;

/// A piece of a snapshot: well within [`REQUEST_BYTES_MAX`], and no hindrance to a heartbeat beside it.
const SNAPSHOT_PIECE_BYTES: u64 = 256 * 1024;

/// Entries between two snapshots: read again at a start within a second.
const SNAPSHOT_EVERY: u64 = if cfg!(test) { 50 } else { 1_000 };

/// Entries that are kept though a snapshot holds them: a member that was away for a restart needs no
/// snapshot.
const LOG_KEPT: u64 = if cfg!(test) { 10 } else { 500 };

/// A member that is this far behind is sent a snapshot: more than one snapshot's worth, as openraft
/// asks.
const LAG_MAX: u64 = if cfg!(test) { 100 } else { 2_000 };

/// Entries in one request; their bytes are limited as well.
const ENTRIES_AT_ONCE: u64 = 128;

/// Entries that are read at once at a start.
const READ_AT_ONCE: u64 = 128;

/// Entries in one [`RaftEvent::Apply`]: some milliseconds of the core's time.
pub const APPLY_AT_ONCE: usize = 64;

/// A learner this close to the leader's applied index has caught up: a few flushes' worth.
const CAUGHT_UP: u64 = 16;

/// How often the driver looks at openraft, and how often the leader is seen by itself.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// A leader's numbers may stand still for this many looks: three of openraft's own.
const STALE_LOOKS_MAX: u32 = 5;

/// The longest pause after a campaign that found no majority, in looks: an election's timeout.
const ELECT_PAUSE_LOOKS: u32 = 4;

/// After so many campaigns the longest pause grows no more: 3.2 s, twice what openraft lets a member
/// wait that saw a longer log.
const ELECT_PAUSE_DOUBLINGS: u32 = 3;

/// Orders that wait: two seconds' worth of a leader in trouble. What does not fit is ordered again.
const ORDERS_MAX: usize = 1_024;

/// Proposals under way: openraft's own queue has no limit, so this is it.
const WORK_MAX: usize = 256;
