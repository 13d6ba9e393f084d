//! The simulated world: one queue of happenings, and what each does to the nodes.
//!
//! Owns: true time, the queue, the clients, and the routing between machines that a shell would do.
//! Like a shell it carries out every action and chooses nothing.

mod clients;
mod faults;
mod route;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

use understudy_protocol::cluster::directory::{Command, Directory, Entry, Registration};
use understudy_protocol::cluster::lease::{holder, voter, warden};
use understudy_protocol::cluster::{agent, controller, replication};
use understudy_protocol::id::{ChildId, IncarnationId, NodeId, StoreId};
use understudy_protocol::machine::Machine;
use understudy_protocol::wire::codec;
use understudy_protocol::wire::content::{Parts, Pieces};
use understudy_protocol::wire::envelope::{Envelope, Reply};
use understudy_protocol::wire::heart::{DeathDigest, HeartMessage, Report};
use understudy_protocol::wire::record::Record;
use understudy_protocol::wire::replica::{ReplicaAnswer, ReplicaRequest};

use crate::clock::{Clock, True};
use crate::cover::Path;
use crate::disk::{Content, Disk};
use crate::judge::Judge;
use crate::net::{Lane, Net};
use crate::node::{Node, Process, Start, WardenProcess};
use crate::raft;
use crate::record::Recording;
use crate::rng::Rng;
use crate::run::Say;
use crate::scenario::Scenario;

use clients::Client;

/// What goes from node to node.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    Heart(HeartMessage),
    Raft {
        from: StoreId,
        message: raft::Message<Entry>,
    },
    Ask(ReplicaRequest),
    Answer(ReplicaAnswer),
    Report(Report),
    Forward(Command),
    Call {
        envelope: Envelope,
        forwarded: bool,
    },
}

/// What may happen.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    Deliver {
        to: usize,
        life: u64,
        from: usize,
        message: Message,
    },
    ToClient {
        client: usize,
        reply: Reply,
        from: usize,
        excused: bool,
    },
    Wake {
        node: usize,
    },
    WardenWake {
        node: usize,
    },
    Flushed {
        node: usize,
        life: u64,
        store: bool,
    },
    LimitFlushed {
        node: usize,
        life: u64,
        ttl: understudy_protocol::wire::heart::Ttl,
    },
    Read {
        node: usize,
        life: u64,
        read: u64,
        child: ChildId,
        after: understudy_protocol::id::Seq,
    },
    ChildUp {
        node: usize,
        life: u64,
        child: ChildId,
        helper: u64,
        calls: Option<Pieces>,
    },
    ChildDone {
        node: usize,
        life: u64,
        child: ChildId,
        helper: u64,
        envelope: Envelope,
        snapshot: Option<Parts>,
    },
    Reaped {
        node: usize,
        life: u64,
        helper: u64,
    },
    ChildEnded {
        node: usize,
        life: u64,
        child: ChildId,
        helper: u64,
    },
    NodeReaped {
        node: usize,
        life: u64,
    },
    NoteKept {
        node: usize,
        life: u64,
    },
    Client {
        client: usize,
        attempt: u64,
    },
    Fault {
        nth: usize,
    },
    Mend {
        what: Mend,
    },
    Restart {
        node: usize,
    },
    CrashLoop {
        until: True,
    },
    Setup,
    Calm,
}

/// The end of a fault.
#[derive(Clone, Debug)]
pub(crate) enum Mend {
    Continue(usize),
    Thaw(usize),
    Unhang(usize),
    Heal(u64),
    Quality(u64),
    Disk(usize),
    Undrain(usize),
}

struct Queued {
    at: True,
    order: u64,
    what: Happening,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Queued) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Queued) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Queued) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// What was counted in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Steps taken.
    pub steps: u64,
    /// Messages sent between nodes.
    pub messages: u64,
    /// Calls answered.
    pub answered: u64,
    /// Takeovers that came to serving.
    pub takeovers: u64,
    /// Faults that struck.
    pub faults: u64,
}

/// One simulated cluster.
pub struct World {
    scenario: Scenario,
    now: True,
    queue: BinaryHeap<Reverse<Queued>>,
    order: u64,
    rng: Rng,
    net: Net,
    nodes: Vec<Node>,
    store_nodes: BTreeMap<StoreId, usize>,
    clients: Vec<Client>,
    light: Vec<ChildId>,
    dedicated: Vec<ChildId>,
    /// The judge.
    pub judge: Judge,
    figures: Figures,
    hash: u64,
    say: Option<Say>,
    cut_number: u64,
    quality_number: u64,
    calm: bool,
    last_setup: True,
    poisoned: Option<ChildId>,
    last_answer: Option<(ChildId, u64)>,
    last_victim: Option<usize>,
    recorded: Option<(usize, Recording)>,
}

impl World {
    /// The world of a scenario, before anything has happened.
    pub fn new(scenario: Scenario, say: Option<Say>) -> World {
        let mut rng = Rng::new(scenario.seed, "world");
        let light = (0..scenario.light)
            .map(|nth| child(&format!("t1/counter/{nth}")))
            .collect();
        let mut dedicated = Vec::new();
        for (nth, _) in scenario.groups.iter().enumerate() {
            for which in ["a", "b"] {
                dedicated.push(child(&format!("@t2/session/{nth}{which}")));
            }
        }
        let stores: Vec<StoreId> = scenario.nodes.iter().map(|_| StoreId(rng.draw())).collect();
        let of = |votes: bool| {
            let plans = scenario.nodes.iter().zip(&stores);
            plans
                .filter(move |(plan, _)| plan.votes == votes)
                .map(|(_, store)| *store)
        };
        let members = raft::Members {
            voters: of(true).collect(),
            learners: of(false).collect(),
        };
        let mut nodes = Vec::new();
        for (nth, plan) in scenario.nodes.iter().enumerate() {
            let disk = Disk {
                raft: raft::Persisted::founded(members.clone()),
                ..Disk::default()
            };
            nodes.push(Node {
                id: NodeId(nth as u64 + 1),
                votes: plan.votes,
                works: plan.works,
                zone: plan.zone,
                clock: Clock::new(rng.between(1, 1 << 40), plan.drift_ppm),
                store: stores[nth],
                disk,
                life: 0,
                process: None,
                warden: None,
                note: None,
                stopped: false,
                frozen: None,
                hung: false,
                backlog: VecDeque::new(),
                wake_at: None,
                warden_wake_at: None,
                disk_extra: Some(Duration::ZERO),
                restart_at: None,
            });
        }
        let poisoned = scenario.poison.and(dedicated.last().cloned());
        let mut world = World {
            now: True(0),
            queue: BinaryHeap::new(),
            order: 0,
            net: Net::new(scenario.seed),
            store_nodes: stores
                .iter()
                .enumerate()
                .map(|(nth, store)| (*store, nth))
                .collect(),
            clients: Vec::new(),
            light,
            dedicated,
            judge: Judge::default(),
            figures: Figures::default(),
            hash: 0xcbf2_9ce4_8422_2325,
            say,
            cut_number: 0,
            quality_number: 0,
            calm: false,
            last_setup: True(0),
            poisoned,
            last_answer: None,
            last_victim: None,
            recorded: None,
            rng,
            nodes,
            scenario,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for node in 0..self.nodes.len() {
            let after = self.rng.span(Duration::ZERO, Duration::from_millis(200));
            self.come_back(node, after);
        }
        self.after(Duration::from_millis(300), Happening::Setup);
        for nth in 0..self.scenario.clients {
            self.clients.push(Client::new(nth, self.scenario.seed));
            self.after(
                Duration::from_millis(2_000),
                Happening::Client {
                    client: nth,
                    attempt: 0,
                },
            );
        }
        for nth in 0..self.scenario.faults.len() {
            let at = self.scenario.faults[nth].0;
            self.at(at, Happening::Fault { nth });
        }
        self.at(self.scenario.calm, Happening::Calm);
    }

    /// Keeps the event logs of one node's machines from its next start on.
    ///
    /// # Panics
    ///
    /// When there is no such node: they are numbered from one.
    pub fn record(&mut self, node: NodeId) -> Recording {
        let nth = self.nodes.iter().position(|of| of.id == node);
        let recording = Recording::default();
        let nth = nth.expect("nodes are numbered from one");
        self.recorded = Some((nth, recording.clone()));
        recording
    }

    fn recording_of(&self, node: usize) -> Option<Recording> {
        let recorded = self.recorded.as_ref().filter(|(of, _)| *of == node);
        recorded.map(|(_, recording)| recording.clone())
    }

    /// Runs to the end, or to the first violation.
    pub fn run(&mut self) {
        while self.step() {}
    }

    /// Lets the next thing happen; false when the run is over.
    pub fn step(&mut self) -> bool {
        let next = self.queue.pop().map(|Reverse(queued)| queued);
        let Some(Queued { at, what, .. }) = next.filter(|next| next.at <= self.scenario.end) else {
            self.finish();
            return false;
        };
        self.now = at;
        self.figures.steps += 1;
        self.happen(what);
        self.judge.violation.is_none()
    }

    /// Who leads the directory, when somebody does.
    pub fn leading(&self) -> Option<NodeId> {
        self.leader().map(|node| self.nodes[node].id)
    }

    /// Whom the last fault befell.
    pub fn last_victim(&self) -> Option<NodeId> {
        self.last_victim.map(|node| self.nodes[node].id)
    }

    /// The last answer that a client took: whose it was, and what it said.
    pub fn last_answer(&self) -> Option<&(ChildId, u64)> {
        self.last_answer.as_ref()
    }

    /// Virtual time since the beginning.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.now.0)
    }

    /// Hash over everything that happened.
    pub fn trace_hash(&self) -> u64 {
        self.hash
    }

    /// What was counted.
    pub fn figures(&self) -> Figures {
        Figures {
            messages: self.net.sent,
            ..self.figures
        }
    }

    /// Liveness: after the calm every unit runs and every call is answered.
    fn finish(&mut self) {
        let mut wrong = Vec::new();
        for (id, unit) in self.judge.truth.units() {
            let serving = unit.owner.is_some_and(|owner| owner.serving);
            let quarantined = self.judge.truth.is_quarantined(*id);
            if !serving && !quarantined {
                wrong.push(format!(
                    "{id} ({:?}, {:?}) is not served: {:?}",
                    unit.scope, unit.run, unit.owner
                ));
            }
        }
        for client in &self.clients {
            if let Some(call) = client.waits_too_long(self.now) {
                wrong.push(call);
            }
        }
        if let Some(what) = wrong.into_iter().next() {
            self.judge.fail("liveness", what);
        }
        self.judge.finish();
    }

    fn after(&mut self, span: Duration, what: Happening) {
        self.at(self.now.after(span), what);
    }

    fn at(&mut self, at: True, what: Happening) {
        self.order += 1;
        let order = self.order;
        self.queue.push(Reverse(Queued { at, order, what }));
    }

    /// Adds to the trace's hash, and says it aloud when somebody listens.
    fn trace(&mut self, code: u64, node: usize, text: impl FnOnce() -> String) {
        for word in [code, node as u64, self.now.0] {
            self.hash = (self.hash ^ word)
                .wrapping_mul(0x0000_0100_0000_01b3)
                .rotate_left(23);
        }
        if let Some(say) = &mut self.say {
            let seconds = self.now.0 as f64 / 1e9;
            let who = if node == CLUSTER {
                "cluster".into()
            } else {
                format!("node-{}", node + 1)
            };
            say(&format!("{seconds:>11.6}  {who:<7}  {}", text()));
        }
    }

    /// For happenings of the cluster as a whole.
    fn tell(&mut self, code: u64, text: impl FnOnce() -> String) {
        self.trace(code, CLUSTER, text);
    }

    fn happen(&mut self, what: Happening) {
        // What a process, or a whole machine, cannot take in now waits until it can.
        if let Some(node) = self.deferred_by(&what) {
            let backlog = &mut self.nodes[node].backlog;
            // Like a socket's buffer it is bounded; completions of the disk and of children are not
            // lost.
            let droppable = matches!(what, Happening::Deliver { .. });
            if !droppable || backlog.len() < BACKLOG_MAX {
                backlog.push_back(what);
            }
            return;
        }
        match what {
            Happening::Deliver {
                to,
                life,
                from,
                message,
            } => self.deliver(to, life, from, message),
            Happening::ToClient {
                client,
                reply,
                from,
                excused,
            } => {
                self.on_reply(client, reply, from, excused);
            }
            Happening::Wake { node } => self.wake(node),
            Happening::WardenWake { node } => {
                if self.nodes[node].warden_wake_at == Some(self.now) {
                    self.nodes[node].warden_wake_at = None;
                    self.tell_warden(node, warden::Event::Tick);
                }
            }
            Happening::Flushed { node, life, store } => self.flushed(node, life, store),
            Happening::LimitFlushed { node, life, ttl } => {
                self.nodes[node].disk.limit.0 = self.nodes[node].disk.limit.0.max(ttl);
                self.with(node, life, |process, local| {
                    let _ = process.voter.handle(local, voter::Event::LimitFlushed(ttl));
                });
            }
            Happening::Read {
                node,
                life,
                read,
                child,
                after,
            } => {
                let most = understudy_protocol::wire::replica::CHAIN_RECORDS_MAX;
                let records: Vec<Record> = self.nodes[node].disk.store.read(&child, after, most);
                self.with(node, life, |process, local| {
                    let _ = process
                        .replica
                        .handle(local, replication::ReplicaEvent::Read { read, records });
                });
            }
            Happening::ChildUp {
                node,
                life,
                child,
                helper,
                calls,
            } => self.child_up(node, life, child, helper, calls),
            Happening::ChildDone {
                node,
                life,
                child,
                helper,
                envelope,
                snapshot,
            } => {
                self.child_done(node, life, &child, helper, &envelope, snapshot);
            }
            Happening::Reaped { node, life, helper } => self.reaped(node, life, helper),
            Happening::ChildEnded {
                node,
                life,
                child,
                helper,
            } => self.child_ended(node, life, child, helper),
            Happening::NodeReaped { node, life } => {
                if self.warden_of(node, life) {
                    self.tell_warden(node, warden::Event::NodeEnded);
                }
            }
            Happening::NoteKept { node, life } => {
                if self.warden_of(node, life) {
                    self.tell_warden(node, warden::Event::NoteKept);
                }
            }
            Happening::Client { client, attempt } => self.client_turn(client, attempt),
            Happening::Fault { nth } => self.strike(nth),
            Happening::Mend { what } => self.mend(what),
            Happening::Restart { node } => self.restart(node),
            Happening::CrashLoop { until } => self.crash_loop(until),
            Happening::Setup => self.set_up(),
            Happening::Calm => self.calm_down(),
        }
    }

    /// The node that cannot take this in now.
    fn deferred_by(&self, what: &Happening) -> Option<usize> {
        let (node, heart) = match what {
            Happening::Deliver { to, message, .. } => (*to, matches!(message, Message::Heart(_))),
            Happening::Flushed { node, .. }
            | Happening::Read { node, .. }
            | Happening::ChildUp { node, .. }
            | Happening::ChildEnded { node, .. }
            | Happening::ChildDone { node, .. } => (*node, false),
            Happening::LimitFlushed { node, .. } => (*node, true),
            Happening::WardenWake { node }
            | Happening::Reaped { node, .. }
            | Happening::NodeReaped { node, .. }
            | Happening::NoteKept { node, .. } => {
                // The warden runs on beside a stopped process, not in a frozen machine.
                return self.nodes[*node].frozen.is_some().then_some(*node);
            }
            _ => return None,
        };
        let of = &self.nodes[node];
        let waits = of.frozen.is_some() || of.stopped || (of.hung && !heart);
        waits.then_some(node)
    }

    /// Lets the process handle something, then carries out what it wants.
    fn with(&mut self, node: usize, life: u64, act: impl FnOnce(&mut Process, Local)) {
        let of = &mut self.nodes[node];
        if of.life != life {
            return;
        }
        let local = of.show(self.now);
        if let Some(process) = &mut of.process {
            act(process, local);
            self.settle(node);
        }
    }

    fn send(&mut self, from: usize, to: usize, lane: Lane, message: Message) {
        if self.net.sent.is_multiple_of(FRAMED_ONE_IN) {
            self.frame(&message);
        }
        let life = self.nodes[to].life;
        for delay in self.net.deliver(from, to, lane).into_iter().flatten() {
            self.after(
                delay,
                Happening::Deliver {
                    to,
                    life,
                    from,
                    message: message.clone(),
                },
            );
        }
    }

    /// Some messages go through the codec, to hold it to what really travels.
    fn frame(&mut self, message: &Message) {
        let comes_back = match message {
            Message::Heart(heart) => comes_back(heart),
            Message::Ask(request) => comes_back(request),
            Message::Answer(answer) => comes_back(answer),
            Message::Call { envelope, .. } => comes_back(envelope),
            Message::Raft { .. } | Message::Report(_) | Message::Forward(_) => true,
        };
        if !comes_back {
            self.judge.fail(
                "codec",
                format!("it does not come back from its frame: {message:?}"),
            );
        }
    }

    fn node_of_store(&self, store: StoreId) -> Option<usize> {
        self.store_nodes.get(&store).copied()
    }

    fn node_of(&self, node: NodeId) -> usize {
        (node.0 - 1) as usize
    }

    fn contents<'a>(&'a self) -> impl Fn(StoreId) -> Option<&'a Content> {
        move |store| {
            let node = self.store_nodes.get(&store)?;
            let node = &self.nodes[*node];
            (node.store == store).then_some(&node.disk.store)
        }
    }

    /// Checks that everything acknowledged is still where it must be.
    fn check_children(&mut self, children: &[ChildId]) {
        let mut judge = std::mem::take(&mut self.judge);
        for child in children {
            judge.check_child(child, self.contents());
        }
        self.judge = judge;
    }
}

pub(crate) type Local = understudy_protocol::time::Time;

fn comes_back<T: codec::Message + PartialEq>(message: &T) -> bool {
    let mut frame = Vec::new();
    let sent = codec::encode_frame(message, &mut frame);
    sent.is_ok() && codec::decode_whole::<T>(&frame).is_ok_and(|read| read == *message)
}

/// One message in this many is framed: enough to see every kind in every run.
const FRAMED_ONE_IN: u64 = 16;

fn child(id: &str) -> ChildId {
    ChildId::parse(id).expect("the name is well formed")
}

/// No node: what concerns the cluster as a whole.
const CLUSTER: usize = usize::MAX;

/// Messages that wait for a stopped process: what socket buffers hold.
const BACKLOG_MAX: usize = 2_000;
