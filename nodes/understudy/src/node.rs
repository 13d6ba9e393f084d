//! One node, put together: the start of its parts in their order, and their end.
//!
//! Owns: the order. Warden first, so that nothing of the node outlives it unseen; the store before
//! Raft, Raft before the network, the heart before the core; the gateway last, when there is something
//! to ask. Never decides anything.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use understudy_config::Config;
use understudy_control::contents::{self, ContentsConfig, ContentsTask};
use understudy_control::core::{self, CoreConfig, CoreParts, CoreTask};
use understudy_control::handle::Handle;
use understudy_control::heart::{HeartCalls, HeartConfig, HeartError, HeartSocket, HeartThread};
use understudy_control::journal;
use understudy_control::raft::{Asked, RaftDriver, RaftNetwork, RequestFailed};
use understudy_control::wakeups::{TTL_WAKEUPS, late_by};
use understudy_gateway::{Reach, Token};
use understudy_protocol::cluster::directory::Command;
use understudy_protocol::id::{IncarnationId, NodeId, StoreId};
use understudy_protocol::wire::heart::{DeathNote, HeartMessage};
use understudy_store::{DataDir, OnDamage, OpenError, Probe, ReplicaThread};
use understudy_supervision::driver::Kinds;
use understudy_transport::heart;
use understudy_transport::identity::{Identity, IdentityError};
use understudy_transport::net::{self, Hello, Net, NetConfig};
use understudy_warden::{
    NotesError, SpawnError, WardenClient, WardenEvent, forget_note, kept_notes,
};

use crate::browsers::helper::Expected;
use crate::browsers::{Browsers, BrowsersError};
use crate::guests::{Guests, GuestsError};

/// A running node.
pub struct Node {
    /// What the gateway and the command line ask.
    pub handle: Handle,
    core: CoreTask,
    net: Net,
    replica: Arc<ReplicaThread>,
    contents: ContentsTask,
    heart: HeartThread,
    tasks: JoinSet<()>,
    /// Ended when it is dropped.
    _beside: JoinSet<()>,
    _browsers: Browsers,
    /// Ended when it is dropped: what was not heard is sent by the next start.
    resends: JoinSet<()>,
    stop_gateway: oneshot::Sender<()>,
    /// It was told to stop: whatever ends it now ends it in order.
    stopping: Arc<AtomicBool>,
    warden: WardenClient,
    config: Config,
    http: SocketAddr,
}

/// Why a node did not start. Nothing of it is left running; what it had written is sound.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The node has no identity, or one that does not do.
    #[error(
        "no identity in {0}: {error}\n  make one: understudy ca issue --dir CA --name NAME --address \
         HOST:PORT --out {0}",
        folder.display()
    )]
    Identity {
        /// Where it was looked for.
        folder: PathBuf,
        /// What is wrong.
        error: IdentityError,
    },
    /// This program does not know where it is, and so cannot start its warden.
    #[error("this program's own path is unknown: {0}")]
    Exe(std::io::Error),
    /// The data folder cannot be made.
    #[error("the data folder {} cannot be made: {error}", folder.display())]
    Data {
        /// Which.
        folder: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The death notes of earlier starts cannot be read.
    #[error("the death notes of earlier starts: {0}")]
    Notes(NotesError),
    /// There is no warden.
    #[error("the warden could not be started: {0}")]
    Warden(SpawnError),
    /// The store's opening was ended by the program's end.
    #[error("the store's opening was ended: {0}")]
    Ended(String),
    /// The store was not opened.
    #[error("the store could not be opened: {0}")]
    Store(OpenError),
    /// Guests cannot run here.
    #[error(transparent)]
    Guests(GuestsError),
    /// Browsers cannot run here.
    #[error(transparent)]
    Browsers(BrowsersError),
    /// There is no thread for the store.
    #[error("the store's thread could not be started: {0}")]
    Thread(std::io::Error),
    /// The network was not started.
    #[error("the network could not be started: {0}")]
    Network(net::StartError),
    /// The heart was not started.
    #[error("the heart could not be started: {0}")]
    Heart(HeartError),
    /// The gateway's address is taken, or not this machine's.
    #[error("cannot listen on {address} (TCP): {error}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// This machine wakes threads so late that a lease of this length would lapse for nothing (L9).
    #[error(
        "this machine wakes a thread up to {late:?} late, and a lease of {ttl:?} must be {TTL_WAKEUPS} \
         times that: choose `[lease] preset = \"default\"` or a longer `ttl`, or a quieter machine"
    )]
    LateWakeups {
        /// The 99.9th percentile.
        late: Duration,
        /// The configured TTL.
        ttl: Duration,
    },
    /// The system gives no randomness.
    #[error("no randomness: {0}")]
    Random(getrandom::Error),
}

impl Node {
    /// Starts a node. Whatever fails, nothing of it is left running but the process itself.
    pub async fn start(config: Config, kinds: Kinds, token: Token) -> Result<Node, StartError> {
        let identity =
            Identity::load(&config.transport.identity).map_err(|error| StartError::Identity {
                folder: config.transport.identity.clone(),
                error,
            })?;
        let identity = Arc::new(identity);
        let node = identity.node();
        let incarnation = IncarnationId(random()?);
        let late = late_by().map_err(StartError::Thread)?;
        let ttl = config.lease.ttl.duration();
        if ttl < late * TTL_WAKEUPS {
            return Err(StartError::LateWakeups { late, ttl });
        }
        let exe = std::env::current_exe().map_err(StartError::Exe)?;
        let data = &config.node.data_dir;
        std::fs::create_dir_all(data).map_err(|error| StartError::Data {
            folder: data.clone(),
            error,
        })?;

        let guests = Guests::start(&config.sandbox, data).map_err(StartError::Guests)?;
        let kinds = guests.register(kinds);
        let expected = Expected::default();

        let journal_folder = config.log.events.then(|| data.join("events"));
        let notes = data.join("notes");
        kept_notes(&notes).map_err(StartError::Notes)?;
        let heard = expected.clone();
        let on_event = Box::new(move |event| {
            heard.hear(&event);
            on_warden(event);
        });
        let (warden, death) =
            WardenClient::spawn(&exe, incarnation, &notes, on_event).map_err(StartError::Warden)?;
        let browsers = Browsers::start(&config.browser, node, warden.clone(), expected)
            .map_err(StartError::Browsers)?;
        let kinds = browsers.register(kinds);

        let on_damage = match config.store.on_damage {
            understudy_config::OnDamage::Rebuild => OnDamage::Rebuild,
            understudy_config::OnDamage::Refuse => OnDamage::Refuse,
        };
        let open = {
            let (data, exe) = (data.clone(), exe.clone());
            let open = move || DataDir::open(&data, on_damage, Some(&Probe::new(exe)));
            tokio::task::spawn_blocking(open).await
        };
        let open = open.map_err(|error| StartError::Ended(error.to_string()))?;
        let open = open.map_err(StartError::Store)?;
        if let Some(bad) = &open.rebuilt {
            warn!(
                kept = %bad.path.display(),
                why = bad.reason,
                store = %open.id,
                "the store was damaged and is kept aside; a new one begins empty"
            );
        }
        let store = open.id;
        info!(node = %config.node.name, id = %node, %incarnation, %store, "starts");

        let slot: Arc<OnceLock<Net>> = Arc::default();
        let (inbox, inbox_ends) = core::inbox();
        let replica = {
            let slot = slot.clone();
            let own = inbox.clone();
            let answer = move |to, answer| {
                if to == node {
                    own.answer(answer);
                } else if let Some(net) = slot.get() {
                    core::answer(net, to, &answer);
                }
            };
            let failed = |error| fatal(&format!("the store has failed: {error}"));
            let thread = ReplicaThread::start(
                Box::new(open.records),
                incarnation,
                journal::open(journal_folder.as_deref(), "replica"),
                Box::new(answer),
                Box::new(failed),
            );
            Arc::new(thread.map_err(StartError::Thread)?)
        };
        let (raft_events, raft_end) = mpsc::channel(RAFT_EVENTS_MAX);
        let routes = Arc::new(Routes {
            me: store,
            net: slot.clone(),
        });
        let raft = RaftDriver::start(store, open.raft, routes, raft_events);
        let own = inbox.clone();
        let answering = slot.clone();
        let (contents, contents_task) = contents::start(ContentsConfig {
            node,
            store,
            incarnation,
            chunks: open.chunks,
            replica: replica.clone(),
            net: slot.clone(),
            answer: Box::new(move |to, answer| {
                if to == node {
                    own.answer(answer);
                } else if let Some(net) = answering.get() {
                    core::answer(net, to, &answer);
                }
            }),
        });
        let inbox = inbox.inbox(contents.clone(), raft.requests());
        let seeds: Vec<String> = config
            .transport
            .seeds
            .iter()
            .map(ToString::to_string)
            .collect();
        let hello = Hello {
            node,
            incarnation,
            store,
            name: config.node.name.clone(),
            address: config.transport.advertise.to_string(),
            votes: config.node.roles.votes,
            works: config.node.roles.works,
        };
        let net = Net::start(
            NetConfig {
                listen: config.transport.listen,
                identity: identity.clone(),
                hello,
                seeds: seeds.clone(),
                segmentation_offload: true,
            },
            Arc::new(inbox),
        )
        .await
        .map_err(StartError::Network)?;
        // Nobody else sets it.
        let _ = slot.set(net.clone());

        let heart_address = SocketAddr::new(
            config.transport.listen.ip(),
            config.transport.listen.port() + 1,
        );
        let limit = open.limit;
        let heart_config = HeartConfig {
            node,
            incarnation,
            store,
            limit: limit.get(),
            kill_time: KILL_TIME,
            journal: journal_folder.clone(),
        };
        let feeder = warden.clone();
        let stopping = Arc::new(AtomicBool::new(false));
        let calls = HeartCalls {
            feed: Box::new(move |until| {
                let _ = feeder.feed(until);
            }),
            lapsed: Box::new({
                let stopping = stopping.clone();
                move || lapsed(stopping.load(Ordering::Relaxed))
            }),
            abort: Arc::new(fatal),
        };
        let own = identity.clone();
        let socket = move || {
            let socket = heart::HeartSocket::bind(heart_address, own);
            socket.map(Heart).map_err(|error| error.to_string())
        };
        let (heart, heart_handle, heart_outputs) =
            HeartThread::start(heart_config, calls, socket).map_err(StartError::Heart)?;

        let limit = Arc::new(Mutex::new(limit));
        let (working, resting, voters) = (warden.clone(), warden.clone(), warden.clone());
        let mut labels = config.node.labels.clone();
        // Found out, and not declared.
        labels.remove(understudy_gateway::BROWSER_LABEL);
        labels.extend(browsers.label());
        let core_config = CoreConfig {
            node,
            name: config.node.name.clone(),
            address: config.transport.advertise.to_string(),
            incarnation,
            store,
            death,
            votes: config.node.roles.votes,
            works: config.node.roles.works,
            labels,
            seeds: seeds.clone(),
            ttl: config.lease.ttl,
            replicas: config.checkpoint.replicas,
            min_copies: config.checkpoint.min_copies,
            work_limit: WORK_LIMIT,
            passivate_after: PASSIVATE_AFTER,
            journal: journal_folder,
            fatal: Arc::new(|why| fatal(&why)),
        };
        let (handle, core) = core::start(
            core_config,
            CoreParts {
                kinds,
                net: net.clone(),
                contents,
                limit,
                raft,
                raft_events: raft_end,
                heart: heart_handle,
                heart_outputs,
                warden: core::Warden {
                    at_work: Box::new(move |unit| {
                        let _ = working.at_work(unit);
                    }),
                    at_rest: Box::new(move |unit| {
                        let _ = resting.at_rest(unit);
                    }),
                    voters: Arc::new(move |addresses| {
                        let _ = voters.voters(&addresses);
                    }),
                },
                inbox: inbox_ends,
                seed: random()?,
            },
        );
        let handle = handle.with_fullness(replica.fullness());
        guests.know(handle.clone());
        let own = vec![config.transport.listen, heart_address];
        browsers.know(handle.clone(), &own);
        let mut tasks = JoinSet::new();
        let mut beside = JoinSet::new();
        beside.spawn(browsers.serve(handle.clone(), own));
        let mut resends = JoinSet::new();
        resends.spawn(resend(handle.clone(), notes));

        let listener = TcpListener::bind(config.gateway.listen)
            .await
            .map_err(|error| StartError::Listen {
                address: config.gateway.listen,
                error,
            })?;
        let http = listener.local_addr().unwrap_or(config.gateway.listen);
        let (stop_gateway, stopped) = oneshot::channel();
        let serving = understudy_gateway::serve(
            listener,
            handle.clone(),
            guests.functions(),
            token,
            Reach::Loopback,
            async {
                let _ = stopped.await;
            },
        );
        tasks.spawn(async move {
            if let Err(error) = serving.await {
                error!(%error, "the HTTP surface has ended");
            }
        });
        info!(%http, "answers HTTP");
        Ok(Node {
            handle,
            core,
            net,
            replica,
            contents: contents_task,
            heart,
            tasks,
            _beside: beside,
            _browsers: browsers,
            resends,
            stop_gateway,
            stopping,
            warden,
            config,
            http,
        })
    }
}

impl Node {
    /// Where it answers HTTP.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Moves this node's units to others, as far as there are others to move them to and time allows.
    ///
    /// From here on the end of the lease is no failure: all nodes of a cluster may be told to stop at
    /// once, and the last of them have nobody left who could promise them anything.
    pub async fn drain(&self, patience: Duration) -> bool {
        self.stopping.store(true, Ordering::Relaxed);
        let node = self.handle.view().node;
        if !has_elsewhere(&self.handle, node) {
            return false;
        }
        let drain = Command::Drain {
            node,
            draining: true,
        };
        let began = tokio::time::Instant::now();
        let drained = self.handle.propose(drain, patience, |directory| {
            let entry = directory.nodes().get(&node);
            entry.is_some_and(|entry| entry.draining)
        });
        if drained.await.is_err() {
            return false;
        }
        let left = patience.saturating_sub(began.elapsed());
        let empty = self.handle.wait_for(left, |view| {
            let mut owners = view
                .directory
                .units()
                .values()
                .filter_map(|unit| unit.owner);
            !owners.any(|owner| owner.incarnation == view.incarnation)
        });
        empty.await.is_some()
    }

    /// Ends the node in the order that loses least: no new calls, children stopped, Raft and store
    /// flushed, network closed. Its units must have been moved before, or are taken over.
    pub async fn stop(mut self) {
        drop(self.resends);
        let _ = self.stop_gateway.send(());
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(GATEWAY_LIMIT, ended).await.is_err() {
            warn!("some requests did not end in time");
            self.tasks.abort_all();
        }
        self.core.stop().await;
        self.contents.stop().await;
        self.heart.stop();
        self.net.close().await;
        // Closes the store: nobody else holds it any more.
        drop(self.replica);
        drop(self.warden);
        info!(node = %self.config.node.name, "has stopped");
    }
}

/// Whether another node that works is live and may take units.
fn has_elsewhere(handle: &Handle, me: NodeId) -> bool {
    let view = handle.view();
    let mut nodes = view.directory.nodes().iter();
    nodes.any(|(id, node)| *id != me && node.works && !node.draining && node.incarnation.is_some())
}

/// A drain that was only for the node's own stop ends with its next start: an operator's does not.
pub async fn end_own_drain(handle: &Handle, marker: &Path) {
    if !marker.exists() {
        return;
    }
    let view = handle.view();
    let (node, incarnation) = (view.node, view.incarnation);
    let listed = handle.wait_for(LISTED_LIMIT, |view| view.directory.is_live(incarnation));
    if listed.await.is_none() {
        return;
    }
    let undrain = Command::Drain {
        node,
        draining: false,
    };
    let done = handle.propose(undrain, LISTED_LIMIT, |directory| {
        let entry = directory.nodes().get(&node);
        entry.is_some_and(|entry| !entry.draining)
    });
    if done.await.is_ok() {
        let _ = std::fs::remove_file(marker);
    }
}

/// The notes of earlier starts go to the leader until the directory has no use for them (L11). The
/// warden of the start before may still be writing its own when this one begins, and nobody may lead
/// while it sends it: so the folder is looked at again.
async fn resend(handle: Handle, folder: PathBuf) {
    let mut sent = BTreeSet::new();
    let mut sending = JoinSet::new();
    for wait in NOTES_LOOKED_AT {
        tokio::time::sleep(wait).await;
        let notes = kept_notes(&folder).unwrap_or_else(|error| {
            warn!(%error, "the death notes of earlier starts");
            Vec::new()
        });
        for note in notes {
            if sent.insert(note.incarnation) {
                sending.spawn(resend_one(handle.clone(), note, folder.clone()));
            }
        }
    }
    while sending.join_next().await.is_some() {}
}

async fn resend_one(handle: Handle, note: DeathNote, folder: PathBuf) {
    let incarnation = note.incarnation;
    let command = Command::DeathNote {
        incarnation,
        secret: note.secret,
        at_work: note.at_work,
    };
    let over = handle.propose(command, NOTE_LIMIT, |directory| {
        directory.is_formed() && !directory.incarnations().contains_key(&incarnation)
    });
    if over.await.is_ok() {
        let _ = forget_note(&folder, incarnation);
    }
}

fn on_warden(event: WardenEvent) {
    match event {
        WardenEvent::Gone => fatal("the warden is gone: nothing would kill the helpers in time"),
        WardenEvent::NotUnderstood { why } => warn!(why, "the warden did not understand"),
        WardenEvent::HelperStarted { .. }
        | WardenEvent::HelperRefused { .. }
        | WardenEvent::HelperEnded { .. } => {}
    }
}

/// The lease is over before the node has ended by itself (L6).
fn lapsed(stopping: bool) {
    if stopping {
        info!("has stopped: too few other nodes were left to hand its units to; its records stand");
        end(0);
    }
    fatal("the lease has lapsed (L6)");
}

/// Something on which all rests is broken: whoever keeps the node running starts it again.
fn fatal(why: &str) {
    error!("{why}; the process ends, to be started again");
    end(EXIT_FATAL)
}

/// Ends the process at once: nothing of it may run on, whatever its threads are doing. The warden
/// kills the helpers and proves the death.
fn end(code: i32) -> ! {
    // Another thread may hold what an orderly exit waits for.
    let _ = std::thread::Builder::new().spawn(|| {
        #[allow(clippy::disallowed_methods)] // nothing is waited for but the end itself
        std::thread::sleep(EXIT_LIMIT);
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    });
    // No destructor may run on: the warden kills what is left.
    #[allow(clippy::disallowed_methods)]
    std::process::exit(code)
}

/// The heart's way to other hearts.
struct Heart(heart::HeartSocket);

impl HeartSocket for Heart {
    fn send(&mut self, to: NodeId, at: SocketAddr, message: &HeartMessage) {
        self.0.send(to, at, message);
    }

    async fn recv(&mut self) -> (Option<NodeId>, HeartMessage) {
        self.0.recv().await
    }
}

/// Raft's way to other stores.
struct Routes {
    me: StoreId,
    net: Arc<OnceLock<Net>>,
}

impl RaftNetwork for Routes {
    fn request(&self, to: StoreId, kind: u8, body: Bytes, patience: Duration) -> Asked {
        let net = self.net.get().cloned();
        let me = self.me;
        Box::pin(async move {
            let failed = |why: String| RequestFailed(why);
            let net = net.ok_or_else(|| failed("the network has not been started".into()))?;
            let peer = net
                .peers()
                .into_iter()
                .find(|peer| peer.store == to && to != me);
            let peer = peer.ok_or_else(|| failed(format!("store {to} is not connected")))?;
            let answer = net.request(peer.node, kind, body, patience).await;
            answer.map_err(|error| failed(error.to_string()))
        })
    }
}

/// A number that nobody else draws.
pub fn random() -> Result<u64, StartError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(StartError::Random)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Exit code of a node that cannot go on and should be started again: `EX_TEMPFAIL` of sysexits.
pub const EXIT_FATAL: i32 = 75;

/// How long it may take to kill every helper, taken off the lease (L2): SIGKILL, and reaping some dozen
/// processes on a busy machine.
const KILL_TIME: Duration = Duration::from_millis(50);

/// An orderly exit gets this long.
const EXIT_LIMIT: Duration = Duration::from_millis(200);

/// Raft's events that wait for the core: Raft waits when it is full.
const RAFT_EVENTS_MAX: usize = 1_024;

/// One call may be at work this long before its child is killed as hung.
const WORK_LIMIT: Duration = Duration::from_secs(30);

/// A light child that nobody called for this long is passivated.
const PASSIVATE_AFTER: Duration = Duration::from_secs(300);

/// Requests under way get this long when the node stops.
const GATEWAY_LIMIT: Duration = Duration::from_secs(5);

/// A started node is listed within this time, or says why in its log.
const LISTED_LIMIT: Duration = Duration::from_secs(60);

/// Between two looks for notes of earlier starts. A warden writes its own as soon as the last helper
/// is reaped: in milliseconds, as a rule, and within seconds on a busy disk.
const NOTES_LOOKED_AT: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(500),
    Duration::from_secs(5),
];

/// How long a note of an earlier start is sent.
const NOTE_LIMIT: Duration = Duration::from_secs(60);
