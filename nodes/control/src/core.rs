//! The core task: the one owner of the node's controller, agent and callers.
//!
//! Owns: the order in which a node hears things, and the way of every action to whoever carries it
//! out. Never chooses: where an action could go two ways, a machine has said which. Never waits: what
//! takes time is done elsewhere and comes back as an event.
//!
//! ```text
//!   raft ── Apply, Held ────────┐               ┌──> heart (facts, directory, leading)
//!   heart ── lease, sightings ──┤               ├──> raft (proposals, members)
//!   lanes ── calls, answers ────┼── core task ──┼──> lanes (calls, replies, replica requests)
//!   driver ── children ─────────┤               ├──> driver (start, execute, stop)
//!   handle ── asks ─────────────┘               └──> warden (at work), view, events
//! ```

mod carry;
mod inbox;
mod outlet;
mod start;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, info};

use understudy_protocol::cluster::agent::{self, Agent};
use understudy_protocol::cluster::caller::{self, Caller};
use understudy_protocol::cluster::controller::{self, Controller};
use understudy_protocol::cluster::directory::{Command, Directory, Entry, Formation, Registration};
use understudy_protocol::cluster::lease::{holder, voter};
use understudy_protocol::id::{ChildId, LogId, NodeId, Seq, StoreId, Term, UnitId};
use understudy_protocol::journal::Recorded;
use understudy_protocol::machine::Machine;
use understudy_protocol::supervision::Exit;
use understudy_protocol::time::Time;
use understudy_protocol::wire::envelope::{CallKey, Confirmed, Envelope, Outcome, Reply, Route};
use understudy_protocol::wire::heart::Report;
use understudy_protocol::wire::replica::ReplicaAnswer;
use understudy_supervision::clock;
use understudy_supervision::driver::{Driver, DriverEvent};
use understudy_supervision::values::KeepError;
use understudy_transport::net::Hello;

use crate::agents::ExitNotice;
use crate::events::Events;
use crate::handle::{Answered, Ask, CallError, FormError, Peer, View};
use crate::heart::{HeartHandle, HeartInput, HeartOutput};
use crate::listing::ChildrenOf;
use crate::raft::{RaftDriver, RaftEvent};
use outlet::Outlet;

pub use inbox::CoreInbox;
pub use outlet::answer;
pub use start::{CoreConfig, CoreParts, CoreTask, InboxEnds, InboxStart, Warden, inbox, start};

/// Everything that one node decides with, and the ends of everything that carries it out.
struct Core {
    config: CoreConfig,
    controller: Recorded<Controller>,
    agent: Recorded<Agent>,
    caller: Recorded<Caller>,
    raft: RaftDriver,
    heart: HeartHandle,
    driver: Driver,
    /// The kinds of children that can be started here.
    kinds: Vec<String>,
    outlet: Outlet,
    warden: Warden,
    events: Events,
    /// Why children failed, for the other nodes; and how many of those had no room.
    exits: mpsc::Sender<ExitNotice>,
    untold: u64,
    view: watch::Sender<Arc<View>>,
    /// Leads since this term, but has not applied an entry of it yet.
    leads_from: Option<Term>,
    directory: Arc<Directory>,
    directory_moved: bool,
    view_moved: bool,
    peers: BTreeMap<NodeId, Hello>,
    serving: BTreeSet<UnitId>,
    unavailable: BTreeSet<UnitId>,
    waiting: BTreeMap<u64, Waiting>,
    next_call: u64,
    forming: Option<Formation>,
    /// When the node says again that it is there, or that the cluster is to be formed.
    say_again_at: Time,
    random: u64,
}

/// A caller of this process that waits.
struct Waiting {
    answer: oneshot::Sender<Result<Answered, CallError>>,
    child: ChildId,
    patience: Duration,
}

/// What comes over the lanes and the truth plane.
#[derive(Debug)]
pub(crate) enum Input {
    Envelope(Envelope),
    Reply(Reply),
    /// A reply of this node's, put together.
    Fetched(Reply),
    Answer(ReplicaAnswer),
    Confirmed(Confirmed),
    Forwarded(Command),
    Reported(Report),
    Children {
        of: ChildrenOf,
        answer: oneshot::Sender<Vec<(ChildId, Seq)>>,
    },
}

/// The receiving ends, apart from the core so that it can be borrowed while one is waited for.
struct Inputs {
    raft: mpsc::Receiver<RaftEvent>,
    heart: mpsc::Receiver<HeartOutput>,
    lanes: mpsc::Receiver<Input>,
    children: mpsc::Receiver<DriverEvent>,
    asks: mpsc::Receiver<Ask>,
    peers: watch::Receiver<BTreeMap<NodeId, Hello>>,
    stop: oneshot::Receiver<()>,
}

impl Core {
    async fn run(mut self, mut inputs: Inputs) -> Core {
        let mut lanes = Vec::with_capacity(LANES_AT_ONCE);
        self.settle();
        loop {
            let wait = self.next_deadline().since(clock::now());
            tokio::select! {
                biased;
                _ = &mut inputs.stop => return self,
                Some(event) = inputs.raft.recv() => self.on_raft(event),
                Some(output) = inputs.heart.recv() => self.on_heart(output),
                () = self.heart.canary() => self.heart.answer_canary(),
                Some(event) = inputs.children.recv() => self.on_child(event),
                count = inputs.lanes.recv_many(&mut lanes, LANES_AT_ONCE) => {
                    if count == 0 {
                        return self;
                    }
                    for input in lanes.drain(..) {
                        self.on_input(input);
                    }
                }
                Ok(()) = inputs.peers.changed() => {
                    let peers = inputs.peers.borrow_and_update().clone();
                    self.on_peers(peers);
                }
                Some(ask) = inputs.asks.recv() => self.on_ask(ask),
                () = tokio::time::sleep(wait) => {}
            }
            self.tick();
            self.settle();
        }
    }

    fn next_deadline(&self) -> Time {
        let machines = [
            self.controller.next_deadline(),
            self.agent.next_deadline(),
            self.caller.next_deadline(),
        ];
        let saying = self.has_something_to_say().then_some(self.say_again_at);
        let soonest = machines.into_iter().flatten().chain(saying).min();
        soonest
            .unwrap_or(Time::MAX)
            .min(clock::now() + LONGEST_SLEEP)
    }

    /// What time alone changes.
    fn tick(&mut self) {
        let now = clock::now();
        let due = |deadline: Option<Time>| deadline.is_some_and(|deadline| deadline <= now);
        if due(self.controller.next_deadline()) {
            if self.controller.is_leading() {
                self.tell_controller(controller::Event::Members(self.raft.members()));
            }
            self.tell_controller(controller::Event::Tick);
        }
        if due(self.agent.next_deadline()) {
            self.tell_agent(agent::Event::Tick);
        }
        if due(self.caller.next_deadline()) {
            self.tell_caller(caller::Event::Tick);
        }
        if self.has_something_to_say() && self.say_again_at <= now {
            self.say_again_at = now + SAY_AGAIN;
            self.say();
        }
    }

    /// Carries out everything that the machines want.
    fn settle(&mut self) {
        loop {
            let mut idle = true;
            while let Some(action) = self.controller.poll_action() {
                idle = false;
                self.carry_controller(action);
            }
            while let Some(action) = self.agent.poll_action() {
                idle = false;
                self.carry_agent(action);
            }
            while let Some(action) = self.caller.poll_action() {
                idle = false;
                self.carry_caller(action);
            }
            if idle {
                break;
            }
        }
        self.publish();
    }

    fn tell_controller(&mut self, event: controller::Event) {
        // A refusal is an answer: this node does not lead, and who asks asks again.
        let _ = self.controller.handle(clock::now(), event);
    }

    fn tell_agent(&mut self, event: agent::Event) {
        // A refusal is an answer: the event was late, or repeated.
        let _ = self.agent.handle(clock::now(), event);
    }

    fn tell_caller(&mut self, event: caller::Event) {
        let _ = self.caller.handle(clock::now(), event);
    }

    fn tell_voter(&mut self, event: voter::Event) {
        self.heart.tell(HeartInput::Voter(event));
    }

    fn tell_holder(&mut self, event: holder::Event) {
        self.heart.tell(HeartInput::Holder(event));
    }

    fn on_raft(&mut self, event: RaftEvent) {
        match event {
            RaftEvent::Opened { snapshot, open } => {
                let settled = snapshot.as_ref().map(|directory| directory.facts());
                self.tell_voter(voter::Event::Read {
                    settled: settled.unwrap_or_default(),
                    open,
                });
                if let Some(directory) = snapshot {
                    self.install(*directory);
                }
            }
            RaftEvent::Held(id, fact) => self.tell_voter(voter::Event::Held(id, fact)),
            RaftEvent::Truncated(from) => self.tell_voter(voter::Event::Truncated(from)),
            RaftEvent::Apply { entries, done } => {
                for (id, entry) in entries {
                    self.apply(id, entry);
                }
                // Raft may be gone when the node stops.
                let _ = done.send(());
            }
            RaftEvent::Install {
                directory,
                open,
                done,
            } => {
                let settled = directory.facts();
                self.tell_voter(voter::Event::Read { settled, open });
                self.install(*directory);
                let _ = done.send(());
            }
            RaftEvent::Snapshot { answer } => {
                let _ = answer.send(Arc::new(self.controller.directory().clone()));
            }
            RaftEvent::Failed(why) => (self.config.fatal)(format!("Raft has stopped: {why}")),
            RaftEvent::Role { leading, term } => {
                self.leads_from = leading.then_some(term);
                self.tell_holder(holder::Event::Leading(leading));
                if leading {
                    info!(%term, "leads the directory");
                    self.tell_event("leading", None, format!("leads the directory in {term}"));
                } else {
                    self.tell_controller(controller::Event::Leading(false));
                }
                self.view_moved = true;
            }
            RaftEvent::LeaderSeen(store) => {
                if let Some(leader) = self.node_of_store(store) {
                    self.tell_voter(voter::Event::LeaderSeen(leader));
                }
            }
        }
    }

    /// One committed entry, in order. What was void is no fact: the voter hears that before the entry
    /// is settled for good (L4).
    fn apply(&mut self, id: LogId, entry: Option<Entry>) {
        let told = entry.as_ref().map(|entry| entry.command.clone());
        let event = match entry {
            Some(entry) => controller::Event::Apply(id, entry),
            None => controller::Event::Skip(id),
        };
        if let Err(refused) = self.controller.handle(clock::now(), event) {
            // The log and the directory have parted: going on would part it from the others'.
            let why = format!("entry {id:?} cannot be applied: {refused}");
            return (self.config.fatal)(why);
        }
        self.directory_moved = true;
        while let Some(action) = self.controller.poll_action() {
            self.carry_controller(action);
        }
        self.tell_voter(voter::Event::Committed(id.index));
        if self.leads_from == Some(id.term) && !self.controller.is_leading() {
            self.tell_controller(controller::Event::Leading(true));
        }
        self.tell_holder_of_directory();
        if let Some(command) = told {
            self.tell_of(&command);
        }
    }

    fn install(&mut self, directory: Directory) {
        self.directory_moved = true;
        self.tell_controller(controller::Event::Install(directory));
        self.tell_holder_of_directory();
    }

    fn tell_holder_of_directory(&mut self) {
        let directory = self.controller.directory();
        let event = holder::Event::Directory {
            voters: directory.voters().clone(),
            ttl: directory.ttl(),
            applied: directory.applied().index,
        };
        self.tell_holder(event);
    }

    fn on_heart(&mut self, output: HeartOutput) {
        match output {
            HeartOutput::Lease(until) => {
                self.view_moved |= self.view.borrow().lease_until == Time::ZERO;
                self.tell_agent(agent::Event::Lease(until));
            }
            HeartOutput::MayLead(may) => self.raft.may_lead(may),
            HeartOutput::ReportFor(to, report) => self.outlet.report(to, report),
            HeartOutput::Reported(report) => {
                self.tell_controller(controller::Event::Reported(report));
            }
            HeartOutput::Sighted(sighting) => {
                self.tell_controller(controller::Event::Sighted(sighting));
            }
            HeartOutput::Died(note) => self.tell_controller(controller::Event::Died(note)),
            HeartOutput::FlushLimit(ttl) => self.outlet.flush_limit(ttl, &self.heart),
        }
    }

    fn on_child(&mut self, event: DriverEvent) {
        let event = match event {
            DriverEvent::Recalled { child, piece } => agent::Event::Recalled { child, piece },
            DriverEvent::Started(child) => agent::Event::Started(child),
            DriverEvent::Executed {
                child,
                call,
                answer,
                effect,
                state,
                durable,
            } => agent::Event::Executed {
                child,
                call,
                answer,
                effect,
                state,
                durable,
            },
            DriverEvent::Prod(child) => agent::Event::Prod(child),
            DriverEvent::Prodded {
                child,
                effect,
                state,
                durable,
            } => agent::Event::Prodded {
                child,
                effect,
                state,
                durable,
            },
            DriverEvent::Unkept {
                child,
                call,
                reason,
            } => {
                metrics::counter!("understudy_values_refused_total").increment(1);
                debug!(%child, ?call, %reason, "what a child handed out was not kept");
                let too_large = matches!(reason, KeepError::TooLong(_));
                agent::Event::Unkept {
                    child,
                    call,
                    too_large,
                }
            }
            DriverEvent::Ended {
                child,
                exit,
                reason,
            } => {
                debug!(%child, ?exit, reason, "a child has ended");
                if self.agent.is_killed(&child) {
                    let limit = self.config.work_limit;
                    let reason = format!("killed: it was at work on one call for {limit:?}");
                    self.tell_failure(&child, reason);
                } else if exit == Exit::Abnormal {
                    self.tell_failure(&child, reason);
                }
                let random = self.draw();
                agent::Event::Ended {
                    child,
                    exit,
                    random,
                }
            }
        };
        self.tell_agent(event);
    }

    /// Tells people here why a child failed, and those who look elsewhere.
    fn tell_failure(&mut self, child: &ChildId, reason: String) {
        let directory = self.controller.directory();
        let unit = directory.unit_of(child);
        let epoch = unit
            .and_then(|unit| directory.unit(unit))
            .map(|of| of.epoch);
        self.tell_event("child_ended", unit, format!("{child} failed: {reason}"));
        let notice = ExitNotice {
            node: self.config.node,
            child: child.clone(),
            unit,
            epoch,
            exit: Exit::Abnormal,
            reason,
            missed: self.untold,
        };
        match self.exits.try_send(notice) {
            Ok(()) => self.untold = 0,
            Err(_) => self.untold += 1,
        }
    }

    fn on_input(&mut self, input: Input) {
        match input {
            Input::Envelope(envelope) => {
                let route = self.route(&envelope.to);
                self.tell_agent(agent::Event::Call { envelope, route });
            }
            Input::Reply(reply) => self.tell_caller(caller::Event::Reply(reply)),
            Input::Fetched(reply) => self.reply(reply),
            Input::Answer(answer) => self.tell_agent(agent::Event::Answer(answer)),
            Input::Confirmed(Confirmed { gateway, upto }) => {
                self.tell_agent(agent::Event::Confirmed(gateway, upto));
            }
            Input::Forwarded(command) => {
                self.tell_controller(controller::Event::Forwarded(command));
            }
            Input::Reported(report) => self.tell_controller(controller::Event::Reported(report)),
            Input::Children { of, answer } => {
                // Whoever asked may have gone.
                let _ = answer.send(of.here(&self.agent));
            }
        }
    }

    fn on_peers(&mut self, peers: BTreeMap<NodeId, Hello>) {
        let lost: Vec<NodeId> = self
            .peers
            .iter()
            .filter(|(node, known)| {
                let now = peers.get(node).map(|hello| hello.incarnation);
                now != Some(known.incarnation)
            })
            .map(|(node, _)| *node)
            .collect();
        self.peers = peers;
        self.view_moved = true;
        self.outlet.peers(&self.peers);
        for node in lost {
            self.tell_caller(caller::Event::PeerLost(node));
        }
    }

    fn on_ask(&mut self, ask: Ask) {
        match ask {
            Ask::Propose(command) => self.propose(command),
            Ask::Children { of, answer } => {
                let here = of.here(&self.agent);
                let directory = self.controller.directory();
                let nodes = directory.nodes().iter();
                let live = nodes.filter(|(_, node)| node.incarnation.is_some() && node.works);
                let live = live.map(|(id, _)| *id).collect();
                self.outlet.children(of, here, live, answer);
            }
            Ask::Form { single, answer } => {
                let formation = self.formation(single);
                let formed = formation.map(|formation| {
                    self.raft.form(formation.voters.clone());
                    self.forming = Some(formation);
                    self.say_again_at = clock::now();
                });
                // Whoever asked may have gone.
                let _ = answer.send(formed);
            }
            Ask::Call {
                child,
                key,
                body,
                patience,
                answer,
            } => self.call(child, key, body, patience, answer),
        }
    }

    fn call(
        &mut self,
        child: ChildId,
        key: Option<String>,
        body: Bytes,
        patience: Duration,
        answer: oneshot::Sender<Result<Answered, CallError>>,
    ) {
        let directory = self.controller.directory();
        let refused = if !directory.is_formed() {
            Some(CallError::NotFormed)
        } else if !self.kinds.iter().any(|kind| kind == child.kind()) {
            Some(CallError::UnknownKind {
                kind: child.kind().to_owned(),
                known: self.kinds.clone(),
            })
        } else if directory.unit_of(&child).is_none() {
            Some(CallError::NotFound(child.clone()))
        } else {
            None
        };
        if let Some(refused) = refused {
            let _ = answer.send(Err(refused));
            return;
        }
        let number = self.next_call;
        self.next_call += 1;
        let key = match key {
            Some(key) => CallKey::Client(key),
            None => CallKey::Internal {
                gateway: self.config.incarnation,
                number,
            },
        };
        let event = caller::Event::Call {
            number,
            child: child.clone(),
            key,
            request_hash: request_hash(&body),
            body,
            patience,
        };
        if self.caller.handle(clock::now(), event).is_err() {
            let retry_after = RETRY_AFTER;
            let _ = answer.send(Err(CallError::Overloaded { retry_after }));
            return;
        }
        let waiting = Waiting {
            answer,
            child,
            patience,
        };
        self.waiting.insert(number, waiting);
    }

    /// Where the directory sends calls to the child.
    fn route(&self, child: &ChildId) -> Option<Route> {
        let directory = self.controller.directory();
        let unit = directory.unit_of(child)?;
        self.route_of(unit)
    }

    fn route_of(&self, unit: UnitId) -> Option<Route> {
        let entry = self.controller.directory().unit(unit)?;
        let owner = entry.owner?;
        Some(Route {
            unit,
            epoch: entry.epoch,
            node: owner.node,
        })
    }

    /// How the cluster of this node and its seeds, or of this node alone, would begin.
    fn formation(&self, single: bool) -> Result<Formation, FormError> {
        if self.controller.directory().is_formed() {
            return Err(FormError::AlreadyFormed);
        }
        let missing = self.outlet.missing_seeds();
        if !single && !missing.is_empty() {
            return Err(FormError::Missing(missing));
        }
        if !single && self.config.seeds.is_empty() && self.peers.is_empty() {
            return Err(FormError::NotSingle);
        }
        let me = (self.config.store, (self.config.votes, self.config.works));
        let peers = self.peers.values().filter(|_| !single);
        let stores: BTreeMap<StoreId, (bool, bool)> = peers
            .map(|peer| (peer.store, (peer.votes, peer.works)))
            .chain([me])
            .collect();
        let of = |which: fn(&(bool, bool)) -> bool| -> BTreeSet<StoreId> {
            let stores = stores.iter().filter(|(_, roles)| which(roles));
            stores.map(|(store, _)| *store).collect()
        };
        let voters = of(|(votes, _)| *votes);
        if voters.is_empty() {
            return Err(FormError::BadVoters(0));
        }
        // R4: a witness stores when fewer than three other nodes do.
        let workers = of(|(_, works)| *works);
        let storing = if workers.len() < 3 {
            of(|_| true)
        } else {
            workers
        };
        let replicas = self.config.replicas;
        let set: BTreeSet<StoreId> = storing.into_iter().take(usize::from(replicas)).collect();
        Ok(Formation {
            voters,
            ttl: self.config.ttl,
            replicas,
            // R4: one while there is one store; raised when every set has two.
            min_copies: if set.len() == 1 {
                1
            } else {
                self.config.min_copies
            },
            shards: FIRST_SHARDS,
            set,
        })
    }

    fn is_listed(&self) -> bool {
        let incarnations = self.controller.directory().incarnations();
        incarnations.contains_key(&self.config.incarnation)
    }

    fn has_something_to_say(&self) -> bool {
        self.forming.is_some() || !self.is_listed()
    }

    /// A starting node says that it is there until the directory lists it; whoever was told to form
    /// the cluster says so until it is formed.
    fn say(&mut self) {
        if self.controller.directory().is_formed() {
            self.forming = None;
        }
        if let Some(formation) = self.forming.clone() {
            self.propose(Command::Form(formation));
        }
        if !self.is_listed() {
            let config = &self.config;
            self.propose(Command::Register(Registration {
                node: config.node,
                incarnation: config.incarnation,
                store: config.store,
                death: config.death,
                votes: config.votes,
                works: config.works,
                labels: config.labels.clone(),
                capacity: BTreeMap::new(),
                name: config.name.clone(),
                address: config.address.clone(),
            }));
        }
    }

    /// To the leader, as far as this node knows it; to every peer when it knows none. What is not
    /// heard is said again by who wants it.
    fn propose(&mut self, command: Command) {
        if self.controller.is_leading() {
            return self.tell_controller(controller::Event::Forwarded(command));
        }
        let leader = self
            .raft
            .leader()
            .and_then(|store| self.node_of_store(store));
        match leader.filter(|leader| *leader != self.config.node) {
            Some(leader) => self.outlet.propose(leader, command),
            None => {
                for peer in self.peers.keys() {
                    self.outlet.propose(*peer, command.clone());
                }
            }
        }
    }

    fn node_of_store(&self, store: StoreId) -> Option<NodeId> {
        if store == self.config.store {
            return Some(self.config.node);
        }
        let connected = self.peers.values().find(|peer| peer.store == store);
        let connected = connected.map(|peer| peer.node);
        connected.or_else(|| self.controller.directory().node_of(store))
    }

    fn tell_event(&self, kind: &'static str, unit: Option<UnitId>, text: String) {
        let epoch = |unit| self.controller.directory().unit(unit).map(|of| of.epoch);
        let unit = unit.and_then(|unit| epoch(unit).map(|epoch| (unit, epoch)));
        self.events.tell(kind, Some(self.config.node), unit, text);
    }

    /// Shows what changed to whoever looks.
    fn publish(&mut self) {
        if !self.directory_moved && !self.view_moved {
            return;
        }
        if self.directory_moved {
            self.directory = Arc::new(self.controller.directory().clone());
        }
        (self.directory_moved, self.view_moved) = (false, false);
        let leader = self
            .raft
            .leader()
            .and_then(|store| self.node_of_store(store));
        self.view.send_replace(Arc::new(View {
            directory: self.directory.clone(),
            node: self.config.node,
            incarnation: self.config.incarnation,
            store: self.config.store,
            leader,
            lease_until: self.heart.lease_until(),
            peers: self.peers.values().map(peer_of).collect(),
            missing_seeds: self.outlet.missing_seeds(),
            serving: self.serving.clone(),
            unavailable: self.unavailable.clone(),
        }));
    }

    /// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), seeded at the start.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn peer_of(hello: &Hello) -> Peer {
    Peer {
        node: hello.node,
        name: hello.name.clone(),
        address: hello.address.clone(),
        store: hello.store,
        votes: hello.votes,
    }
}

/// SHA-256 of the request, first eight bytes (rule E2).
fn request_hash(body: &[u8]) -> u64 {
    let digest: [u8; 32] = Sha256::digest(body).into();
    digest[..8]
        .iter()
        .fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

/// What is taken from the lanes before anything else is looked at again: some hundred microseconds.
const LANES_AT_ONCE: usize = 128;

/// The core looks around at least this often.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// How often a node that the directory does not list says that it is there.
const SAY_AGAIN: Duration = Duration::from_millis(250);

/// What a caller is told to wait when the table of calls is full: some flushes.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Shards of a new cluster: enough that twenty nodes share them evenly, few enough that one node
/// takes a third of them over in some milliseconds.
const FIRST_SHARDS: u16 = 64;
