//! The heart: the thread on which this node's lease is renewed, and the leases of others are promised.
//!
//! Owns: [`LeaseHolder`] and [`LeaseVoter`], a runtime and a socket that nothing else of the process
//! touches, and the end of the process when the lease is over (rules L6, L9). Never waits for the main
//! runtime, a disk or a lock: a lease must be answered, and must end, while those hang. Never decides:
//! the two machines do.
//!
//! ```text
//!   core ── facts, directory, addresses ──> one queue, in order ──┐
//!   other hearts ── renewals, promises, reports, notes ───────────┼──> LeaseHolder, LeaseVoter
//!   clock ── deadlines ───────────────────────────────────────────┘         │
//!   core <── lease, may lead, reports, sightings, notes, limit ─────────────┤
//!   warden <── feed(until) ─┬── on this very thread ────────────────────────┘
//!   process <── lapsed, abort ┘
//! ```
//!
//! The core hands in facts in the order in which Raft told them: a void entry before the commit that
//! reaches it, a held one before anybody can count it.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use understudy_protocol::cluster::lease::{LeaseHolder, LeaseVoter, holder, voter};
use understudy_protocol::id::{IncarnationId, NodeId, StoreId};
use understudy_protocol::journal::{HolderStart, Recorded, VoterStart};
use understudy_protocol::machine::Machine;
use understudy_protocol::time::Time;
use understudy_protocol::wire::heart::{DeathNote, HeartMessage, Report, Sighting, Ttl};
use understudy_supervision::clock;

use crate::journal;
use crate::realtime;

/// The way to other hearts. Lives on the heart's own runtime.
pub trait HeartSocket {
    /// Sends a message to a node's heart, or loses it. Never waits.
    fn send(&mut self, to: NodeId, at: SocketAddr, message: &HeartMessage);

    /// The next message, and the node whose certificate vouches for the sender; none when nobody does,
    /// which only a death note may do without. Loses nothing when it is dropped before it is ready.
    fn recv(&mut self) -> impl Future<Output = (Option<NodeId>, HeartMessage)>;
}

/// Whose heart it is.
#[derive(Clone, Debug)]
pub struct HeartConfig {
    /// This node.
    pub node: NodeId,
    /// This start of it.
    pub incarnation: IncarnationId,
    /// Its store.
    pub store: StoreId,
    /// What the store's file says of the longest TTL that was ever promised (L3); nothing, if it is a
    /// new store.
    pub limit: Ttl,
    /// How long it takes to kill every helper, taken off the lease (L2).
    pub kill_time: Duration,
    /// Where the machines' event logs go, if they are kept.
    pub journal: Option<PathBuf>,
}

/// What the heart does at once, on its own thread. None of these may wait.
pub struct HeartCalls {
    /// The lease is valid until then: for the warden (L10).
    pub feed: Box<dyn FnMut(Time) + Send>,
    /// The lease is over: end the process (L6).
    pub lapsed: Box<dyn FnMut() + Send>,
    /// Something on which leases rest is broken, and why: end the process (L9). May be called from any
    /// thread, more than once.
    pub abort: Arc<dyn Fn(&'static str) + Send + Sync>,
}

/// What the core tells the heart.
#[derive(Clone, Debug)]
pub enum HeartInput {
    /// What Raft's log holds, in its order; what else the voter must know.
    Voter(voter::Event),
    /// The directory as applied here; whether this node leads.
    Holder(holder::Event),
    /// Where the hearts of all stores in the directory are.
    Addresses(BTreeMap<StoreId, (NodeId, SocketAddr)>),
    /// A note that an earlier life's warden left (L11): for every heart there is an address of.
    Note(DeathNote),
}

/// What the heart tells the core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeartOutput {
    /// The lease is valid until then.
    Lease(Time),
    /// Whether this node may lead Raft (L9).
    MayLead(bool),
    /// A report of this node's voter, for the leader, on the truth plane too (L5).
    ReportFor(NodeId, Report),
    /// A voter's report came by the heart.
    Reported(Report),
    /// A voter's sighting came by the heart.
    Sighted(Sighting),
    /// A death note came.
    Died(DeathNote),
    /// Flush the limit, then say [`voter::Event::LimitFlushed`] (L3).
    FlushLimit(Ttl),
}

/// Why no heart beats. Nothing has been started.
#[derive(Debug, thiserror::Error)]
pub enum HeartError {
    /// No thread, or no runtime in it.
    #[error("the heart's thread cannot be started: {0}")]
    Thread(#[from] io::Error),
    /// No socket.
    #[error("the heart has no socket: {0}")]
    Socket(String),
}

/// The running heart.
pub struct HeartThread {
    thread: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

/// What the rest of the node has of the heart. Cheap to clone.
#[derive(Clone)]
pub struct HeartHandle {
    inputs: mpsc::Sender<HeartInput>,
    shared: Arc<Shared>,
    asked: watch::Receiver<u64>,
}

struct Shared {
    /// [`HeartHandle::lease_until`], in nanoseconds.
    until: AtomicU64,
    /// The last canary that the main runtime answered.
    answered: AtomicU64,
    abort: Arc<dyn Fn(&'static str) + Send + Sync>,
}

impl HeartThread {
    /// Starts a heart, and waits until it has its socket, which `make_socket` makes within the heart's
    /// runtime.
    pub fn start<S: HeartSocket>(
        config: HeartConfig,
        calls: HeartCalls,
        make_socket: impl FnOnce() -> Result<S, String> + Send + 'static,
    ) -> Result<(HeartThread, HeartHandle, mpsc::Receiver<HeartOutput>), HeartError> {
        let (inputs, inbox) = mpsc::channel(INPUTS_MAX);
        let (outputs, outbox) = mpsc::channel(OUTPUTS_MAX);
        let (asks, asked) = watch::channel(0);
        let (stop, stopping) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        let shared = Arc::new(Shared {
            until: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            abort: calls.abort.clone(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let of = shared.clone();
        let body = move || {
            let _guard = PanicGuard(of.abort.clone());
            if let Err(error) = realtime::prefer_this_thread() {
                tracing::info!(%error, "the heart runs without real-time priority");
            }
            runtime.block_on(async move {
                let socket = match make_socket() {
                    Ok(socket) => socket,
                    Err(error) => {
                        let _ = ready.send(Err(HeartError::Socket(error)));
                        return;
                    }
                };
                let heart = Heart::new(config, calls, socket, of, outputs, asks);
                let _ = ready.send(Ok(()));
                heart.run(inbox, stopping).await;
            });
        };
        let thread = std::thread::Builder::new()
            .name("heart".into())
            .spawn(body)?;
        let gone = || HeartError::Socket("the heart's thread has ended".into());
        is_ready.recv().map_err(|_| gone())??;
        let handle = HeartHandle {
            inputs,
            shared,
            asked,
        };
        Ok((HeartThread { thread, stop }, handle, outbox))
    }

    /// Stops the heart: this node's lease is renewed no more, and it promises nothing. Waits for the
    /// thread, which is never busy for long.
    pub fn stop(self) {
        let _ = self.stop.send(());
        // A heart that panicked has ended the process already.
        let _ = self.thread.join();
    }
}

impl HeartHandle {
    /// Tells the heart something, in order. Never waits: a heart that takes nothing in is broken, what
    /// it does not hear it would promise against, and so the process ends.
    pub fn tell(&self, input: HeartInput) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.inputs.try_send(input) {
            (self.shared.abort)("the heart does not take in what the log holds");
        }
    }

    /// Until when this node's lease is valid; [`Time::ZERO`] before the first, and when it is over.
    pub fn lease_until(&self) -> Time {
        Time::from_nanos(self.shared.until.load(Ordering::Acquire))
    }

    /// Whether this node's lease is valid at `now`: what every reply asks at the moment it leaves (E1).
    pub fn is_valid(&self, now: Time) -> bool {
        now < self.lease_until()
    }

    /// Returns when the heart wants to know whether the main runtime lives (L9). May be dropped and
    /// called again.
    pub async fn canary(&self) {
        let answered = &self.shared.answered;
        let mut asked = self.asked.clone();
        let asks = asked.wait_for(|asked| *asked > answered.load(Ordering::Acquire));
        if asks.await.is_err() {
            // The heart has stopped, and asks no more.
            std::future::pending::<()>().await;
        }
    }

    /// Answers the canary.
    pub fn answer_canary(&self) {
        let asked = *self.asked.borrow();
        self.shared.answered.store(asked, Ordering::Release);
    }
}

/// A heart that panics ends the process: nobody else would notice in time.
struct PanicGuard(Arc<dyn Fn(&'static str) + Send + Sync>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.0)("the heart has panicked");
        }
    }
}

struct Heart<S> {
    config: HeartConfig,
    calls: HeartCalls,
    socket: S,
    holder: Recorded<LeaseHolder>,
    voter: Recorded<LeaseVoter>,
    shared: Arc<Shared>,
    outputs: mpsc::Sender<HeartOutput>,
    /// What must reach the core, and had no room yet.
    owed_lead: Option<bool>,
    owed_limit: Option<Ttl>,
    asks: watch::Sender<u64>,
    ask_at: Time,
    /// The last canary whose answer the holder knows.
    heard_canary: u64,
    stores: BTreeMap<StoreId, (NodeId, SocketAddr)>,
    nodes: BTreeMap<NodeId, SocketAddr>,
    leader: Option<NodeId>,
    /// Notes of earlier lives of this node, said again whenever addresses change.
    notes: Vec<DeathNote>,
    /// From this node to itself.
    own: VecDeque<HeartMessage>,
}

impl<S: HeartSocket> Heart<S> {
    fn new(
        config: HeartConfig,
        calls: HeartCalls,
        socket: S,
        shared: Arc<Shared>,
        outputs: mpsc::Sender<HeartOutput>,
        asks: watch::Sender<u64>,
    ) -> Heart<S> {
        let now = clock::now();
        let log = |name| journal::open(config.journal.as_deref(), name);
        let holder = HolderStart {
            node: config.node,
            incarnation: config.incarnation,
            kill_time: config.kill_time,
        };
        let voter = VoterStart {
            store: config.store,
            limit: config.limit,
        };
        Heart {
            holder: Recorded::begin(now, holder, log("holder")),
            voter: Recorded::begin(now, voter, log("voter")),
            config,
            calls,
            socket,
            shared,
            outputs,
            owed_lead: None,
            owed_limit: None,
            asks,
            ask_at: now,
            heard_canary: 0,
            stores: BTreeMap::new(),
            nodes: BTreeMap::new(),
            leader: None,
            notes: Vec::new(),
            own: VecDeque::new(),
        }
    }

    async fn run(
        mut self,
        mut inputs: mpsc::Receiver<HeartInput>,
        mut stop: oneshot::Receiver<()>,
    ) {
        loop {
            self.tick(clock::now());
            self.settle();
            let wait = self.next_look().since(clock::now());
            // Inputs first: what the log holds must be known before anything is promised.
            tokio::select! {
                biased;
                _ = &mut stop => break,
                Some(input) = inputs.recv() => self.on_input(input),
                (from, message) = self.socket.recv() => self.on_message(from, message),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn next_look(&self) -> Time {
        let deadlines = [self.holder.next_deadline(), self.voter.next_deadline()];
        let soonest = deadlines.into_iter().flatten().min();
        let latest = clock::now() + LOOK_PERIOD;
        soonest.unwrap_or(Time::MAX).min(latest)
    }

    fn tick(&mut self, now: Time) {
        if now >= self.ask_at {
            self.ask_at = now + CANARY_PERIOD;
            let asked = *self.asks.borrow();
            if self.shared.answered.load(Ordering::Acquire) >= asked {
                self.asks.send_replace(asked + 1);
            }
        }
        let answered = self.shared.answered.load(Ordering::Acquire);
        if answered > self.heard_canary {
            self.heard_canary = answered;
            self.tell_holder(holder::Event::CanaryAnswered);
        }
        let due = |deadline: Option<Time>| deadline.is_some_and(|deadline| deadline <= now);
        if due(self.holder.next_deadline()) {
            self.tell_holder(holder::Event::Tick);
        }
        if due(self.voter.next_deadline()) {
            self.tell_voter(voter::Event::Tick);
        }
    }

    fn tell_holder(&mut self, event: holder::Event) {
        // A refusal is an answer: the lease is over, or the promise was late.
        let _ = self.holder.handle(clock::now(), event);
    }

    fn tell_voter(&mut self, event: voter::Event) {
        // A refusal is an answer: the voter has not read its log yet, and who asks asks again.
        let _ = self.voter.handle(clock::now(), event);
    }

    fn on_input(&mut self, input: HeartInput) {
        match input {
            HeartInput::Voter(event) => {
                if let voter::Event::LeaderSeen(leader) = event {
                    self.leader = Some(leader);
                }
                self.tell_voter(event);
            }
            HeartInput::Holder(event) => self.tell_holder(event),
            HeartInput::Addresses(stores) => {
                self.nodes = stores.values().copied().collect();
                self.stores = stores;
                for note in self.notes.clone() {
                    self.spread(&note);
                }
            }
            HeartInput::Note(note) => {
                self.spread(&note);
                self.say(HeartOutput::Died(note.clone()));
                self.notes.truncate(NOTES_MAX - 1);
                self.notes.insert(0, note);
            }
        }
    }

    /// What another heart says. One node cannot speak for another.
    fn on_message(&mut self, from: Option<NodeId>, message: HeartMessage) {
        let speaks_for = |store: StoreId| {
            let node = self.stores.get(&store).map(|(node, _)| *node);
            from.is_some() && node == from
        };
        match message {
            HeartMessage::Renewal(renewal) if from == Some(renewal.node) => {
                self.tell_voter(voter::Event::Asked(renewal));
            }
            HeartMessage::Promise(promise) if speaks_for(promise.voter) => {
                self.tell_holder(holder::Event::Heard(promise));
            }
            HeartMessage::Report(report) if speaks_for(report.voter) => {
                self.say(HeartOutput::Reported(report));
            }
            HeartMessage::Sighting(sighting) if speaks_for(sighting.voter) => {
                self.say(HeartOutput::Sighted(sighting));
            }
            HeartMessage::DeathNote(note) => {
                // The voters hand on what a warden sent; what a heart sent has been handed on.
                let leader = self.leader.filter(|leader| *leader != self.config.node);
                if let Some(leader) = leader.filter(|_| from.is_none()) {
                    self.send(leader, HeartMessage::DeathNote(note.clone()));
                }
                // Anybody can send these: they must not take the room of what nodes say.
                if self.outputs.capacity() > OUTPUTS_MAX / 2 {
                    self.say(HeartOutput::Died(note));
                }
            }
            HeartMessage::Renewal(_)
            | HeartMessage::Promise(_)
            | HeartMessage::Report(_)
            | HeartMessage::Sighting(_) => {
                metrics::counter!("understudy_heart_refused_total").increment(1);
            }
        }
    }

    /// Carries out everything that the machines want.
    fn settle(&mut self) {
        loop {
            let mut idle = true;
            while let Some(action) = self.holder.poll_action() {
                idle = false;
                self.carry_holder(action);
            }
            while let Some(action) = self.voter.poll_action() {
                idle = false;
                self.carry_voter(action);
            }
            while let Some(message) = self.own.pop_front() {
                idle = false;
                match message {
                    HeartMessage::Renewal(renewal) => {
                        self.tell_voter(voter::Event::Asked(renewal));
                    }
                    HeartMessage::Promise(promise) => {
                        self.tell_holder(holder::Event::Heard(promise));
                    }
                    other => self.say_own(other),
                }
            }
            if idle {
                break;
            }
        }
        self.settle_debts();
    }

    fn say_own(&mut self, message: HeartMessage) {
        match message {
            HeartMessage::Report(report) => self.say(HeartOutput::Reported(report)),
            HeartMessage::Sighting(sighting) => self.say(HeartOutput::Sighted(sighting)),
            HeartMessage::DeathNote(note) => self.say(HeartOutput::Died(note)),
            HeartMessage::Renewal(_) | HeartMessage::Promise(_) => {}
        }
    }

    fn carry_holder(&mut self, action: holder::Action) {
        match action {
            holder::Action::Renew { to, renewal } => {
                let message = HeartMessage::Renewal(renewal);
                if to == self.config.store {
                    self.own.push_back(message);
                } else if let Some((node, at)) = self.stores.get(&to) {
                    self.socket.send(*node, *at, &message);
                }
            }
            holder::Action::Valid { until } => {
                self.shared.until.store(until.as_nanos(), Ordering::Release);
                (self.calls.feed)(until);
                self.say(HeartOutput::Lease(until));
            }
            holder::Action::Lapsed => {
                self.shared.until.store(0, Ordering::Release);
                (self.calls.lapsed)();
            }
            holder::Action::Abort => {
                self.shared.until.store(0, Ordering::Release);
                (self.calls.abort)("the main runtime does not answer the heart");
            }
            holder::Action::MayLead(may) => self.owed_lead = Some(may),
        }
    }

    fn carry_voter(&mut self, action: voter::Action) {
        match action {
            voter::Action::Answer { to, promise } => self.send(to, HeartMessage::Promise(promise)),
            voter::Action::Report { to, report } => {
                if to != self.config.node {
                    self.say(HeartOutput::ReportFor(to, report.clone()));
                }
                self.send(to, HeartMessage::Report(report));
            }
            voter::Action::Sight { to, sighting } => {
                self.send(to, HeartMessage::Sighting(sighting));
            }
            voter::Action::FlushLimit(ttl) => self.owed_limit = Some(ttl),
        }
    }

    fn send(&mut self, to: NodeId, message: HeartMessage) {
        if to == self.config.node {
            self.own.push_back(message);
        } else if let Some(at) = self.nodes.get(&to) {
            self.socket.send(to, *at, &message);
        }
    }

    fn spread(&mut self, note: &DeathNote) {
        let others = self
            .nodes
            .iter()
            .filter(|(node, _)| **node != self.config.node);
        for (node, at) in others {
            let message = HeartMessage::DeathNote(note.clone());
            self.socket.send(*node, *at, &message);
        }
    }

    /// Says something that is said again soon: there may be no room for it.
    fn say(&mut self, output: HeartOutput) {
        if self.outputs.try_send(output).is_err() {
            metrics::counter!("understudy_heart_unheard_total").increment(1);
        }
    }

    /// Says what the machines say once.
    fn settle_debts(&mut self) {
        if let Some(may) = self.owed_lead
            && self.outputs.try_send(HeartOutput::MayLead(may)).is_ok()
        {
            self.owed_lead = None;
        }
        if let Some(ttl) = self.owed_limit
            && self.outputs.try_send(HeartOutput::FlushLimit(ttl)).is_ok()
        {
            self.owed_limit = None;
        }
    }
}

/// What the core may be ahead of the heart, which handles a million of these a second: more than the
/// log can hold in the half second that a busy machine might keep this thread from running.
pub const INPUTS_MAX: usize = 65_536;

/// What the heart may be ahead of the core: some seconds of a thousand nodes' sightings. What does not
/// fit is said again.
pub const OUTPUTS_MAX: usize = 4_096;

/// Between two canaries: twelve within the holder's patience.
const CANARY_PERIOD: Duration = Duration::from_millis(250);

/// The heart looks at the clock at least this often: a suspended machine's timers know nothing of the
/// time that it slept.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// Notes of earlier lives that are repeated; older ones have been heard or never will be.
const NOTES_MAX: usize = 16;

#[cfg(test)]
mod tests;
