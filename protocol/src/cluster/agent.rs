//! The agent: what one node does for the units it was granted.
//!
//! Owns: which children are loaded, one call at a time for each, when its record is written, and when
//! its reply may leave (rules E1, E2, E4, S3). One [`Owner`] a unit does the replication. Never runs
//! a child: the shell does, and says what came of it.
//!
//! ```text
//!   Call ──> mailbox ──> Execute ──> Executed{effect, answer} ──> record ──> acknowledged ──> Reply
//!              │ not loaded                                          │ lease not valid
//!              └──> Load ──> Loaded ──> Start ──> Started            └──> (nothing: the caller asks again)
//! ```
//!
//! A child may ask to be prodded: it gets a call of the node's own in its turn, and the step that it
//! takes is a record without a call. A child may also answer before its step (loosely): then the reply
//! says so, and the first step after it holds the call.
//!
//! A reply, a read's too, waits until every record that it reflects is acknowledged, and leaves only
//! while the lease is valid (E1). A child whose effect could not be written is dropped and loaded
//! again: its memory is ahead of its records.

mod view;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;
use minicbor::{Decode, Encode};

pub use view::{Granted, granted};

use super::calls::{Admission, CALLS_ALWAYS, Calls, NODE_BYTES_MAX, Sealing};
use super::directory::Command;
use super::replication::{
    Leaving, Owner, OwnerAction, OwnerConfig, OwnerEvent, OwnerRefused, Phase,
};
use crate::id::{ChildId, IncarnationId, Seq, StoreId, UnitId};
use crate::machine::Machine;
use crate::rules::{Rule, keeps};
use crate::supervision::{self, Exit, Intensity, Policy, RestartType, Strategy, Supervisor};
use crate::time::Time;
use crate::wire::codec::{CALL_BODY_BYTES_MAX, DecodeError, decode_exact};
use crate::wire::content::{Content, Parts, Pieces, VALUE_BYTES_MAX};
use crate::wire::envelope::{CallId, CallKey, Envelope, Outcome, Reply, Route};
use crate::wire::older::Older;
use crate::wire::record::{BODY_BYTES_MAX, Head, Record, RecordKind};
use crate::wire::replica::{CHAIN_RECORDS_MAX, ReplicaAnswer, ReplicaRequest, Scope};
use crate::wire::step::{Base, INLINE_CALLS_MAX, Remembered, Step};

/// One node's units and their children.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Agent {
    settings: AgentSettings,
    owners: BTreeMap<UnitId, Owner>,
    children: BTreeMap<ChildId, Host>,
    /// Children that were told to stop and have not ended, and whose they were: a unit is not given
    /// back, and no child is started again, before they have.
    stopping: BTreeMap<ChildId, UnitId>,
    /// What is proposed once the unit's children have ended.
    withheld: BTreeMap<UnitId, Command>,
    /// Units that are left once these of their children have been prodded.
    parting: BTreeMap<UnitId, (Leaving, BTreeSet<ChildId>)>,
    /// Restarts of light children.
    light: Supervisor<ChildId>,
    lease_until: Time,
    /// What the calls that its children remember take in memory, in bytes, about.
    calls_bytes: usize,
    /// Children at work, by their unit; no unit where none is.
    working: BTreeMap<UnitId, usize>,
    /// Of the event that is being handled.
    now: Time,
    /// When each owner and each host wants to be looked at again.
    due: BTreeSet<(Time, Due)>,
    owner_due: BTreeMap<UnitId, Time>,
    actions: VecDeque<Action>,
}

/// What stays the same for one start of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct AgentSettings {
    /// Which start of the node.
    #[n(0)]
    pub incarnation: IncarnationId,
    /// The node's own store.
    #[n(1)]
    pub home: StoreId,
    /// For how long a client's key is kept (E2); [`super::calls::KEY_KEPT`] unless a test hurries.
    #[n(2)]
    pub key_kept: Duration,
    /// After how long without a call a light child is passivated.
    #[n(3)]
    pub passivate_after: Duration,
    /// How long one call may be at work before its child is killed as hung.
    #[n(4)]
    pub work_limit: Duration,
    /// A snapshot is written when this many records follow the last one; at most
    /// [`SNAPSHOT_EVERY_MAX`].
    #[n(5)]
    pub snapshot_every: u64,
    /// When remembered calls go into pieces.
    #[cbor(n(6), default)]
    pub sealing: Sealing,
}

/// What may happen to an agent. Numbered for the event log: see [`crate::journal`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Event {
    /// One directory entry changed these units; `None` where they are not this incarnation's.
    #[n(0)]
    Units(#[n(0)] Vec<(UnitId, Option<Granted>)>),
    /// A store answers one of our owners.
    #[n(1)]
    Answer(#[n(0)] ReplicaAnswer),
    /// A call arrives. `route` is where the directory sends calls to that child.
    #[n(2)]
    Call {
        /// The call.
        #[n(0)]
        envelope: Envelope,
        /// For the answer to a caller who is wrong here.
        #[n(1)]
        route: Option<Route>,
    },
    /// The child is up.
    #[n(3)]
    Started(#[n(0)] ChildId),
    /// The child has carried the call out.
    #[n(4)]
    Executed {
        /// Whose.
        #[n(0)]
        child: ChildId,
        /// Which call.
        #[n(1)]
        call: CallId,
        /// What it answers. That of a step may be in pieces.
        #[n(2)]
        answer: Content,
        /// The step it took; none for a read.
        #[n(3)]
        effect: Option<Content>,
        /// Its whole state after the step, when a snapshot was asked for.
        #[n(4)]
        state: Option<Content>,
        /// What it did is in the step, or was nothing. If not, the child holds it until a later step
        /// does; then the answer goes without waiting for that.
        #[n(5)]
        durable: bool,
    },
    /// The child ended: by itself, or killed.
    #[n(5)]
    Ended {
        /// Which.
        #[n(0)]
        child: ChildId,
        /// How.
        #[n(1)]
        exit: Exit,
        /// For the jitter of its backoff.
        #[n(2)]
        random: u64,
    },
    /// An operator rolls the child back: its state is to be this one again. Remembered calls stay
    /// (E4).
    #[n(6)]
    RollBack {
        /// Which.
        #[n(0)]
        child: ChildId,
        /// The state.
        #[n(1)]
        state: Content,
    },
    /// The lease is valid until then.
    #[n(7)]
    Lease(#[cbor(n(0), with = "crate::time::as_nanos")] Time),
    /// Split, merge with the next shard, or except a child.
    #[n(8)]
    Reshape(#[n(0)] UnitId, #[n(1)] Reshape),
    /// A gateway has its answers up to this call (E2).
    #[n(9)]
    Confirmed(#[n(0)] IncarnationId, #[n(1)] u64),
    /// A gateway's incarnation is expelled (E2).
    #[n(10)]
    GatewayGone(#[n(0)] IncarnationId),
    /// The deadline has come.
    #[n(11)]
    Tick,
    /// The child was called or prodded, and what it handed out cannot be kept: nothing of it counts.
    #[n(12)]
    Unkept {
        /// Whose.
        #[n(0)]
        child: ChildId,
        /// Which call; none for a prod.
        #[n(1)]
        call: Option<CallId>,
        /// It is above [`VALUE_BYTES_MAX`]; else the disk would not take it, and may another time.
        #[n(2)]
        too_large: bool,
    },
    /// The child asks to be prodded: it has changed by itself, or holds what it was slow to hand out.
    #[n(13)]
    Prod(#[n(0)] ChildId),
    /// The child was prodded.
    #[n(14)]
    Prodded {
        /// Which.
        #[n(0)]
        child: ChildId,
        /// The step it took by itself, if it took one.
        #[n(1)]
        effect: Option<Content>,
        /// As in [`Event::Executed`].
        #[n(2)]
        state: Option<Content>,
        /// It holds nothing any more that no step holds.
        #[n(3)]
        durable: bool,
    },
    /// Of the remembered calls that the child is to be started with, this is the next piece.
    #[n(15)]
    Recalled {
        /// Whose.
        #[n(0)]
        child: ChildId,
        /// The piece.
        #[cbor(n(1), with = "crate::wire::cbor_bytes")]
        piece: Bytes,
    },
}

/// How a shard may be reshaped (S2).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Reshape {
    /// In two, at this slot.
    #[n(0)]
    Split(#[n(0)] u16),
    /// With the shard that follows it.
    #[n(1)]
    Merge,
    /// This child gets a unit of its own.
    #[n(2)]
    Except(#[n(0)] ChildId),
}

/// What an agent wants done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send a request to a store.
    Ask {
        /// Which.
        to: StoreId,
        /// What to send.
        request: ReplicaRequest,
    },
    /// Have this committed.
    Propose(Command),
    /// Start the child from its records, then say [`Event::Started`] or [`Event::Ended`]. Before it has
    /// started say [`Event::Recalled`] for each piece of its calls, in order.
    Start {
        /// Which.
        child: ChildId,
        /// The child's bytes: a base or nothing, then the steps after it.
        base: Option<Content>,
        /// In order.
        steps: Vec<Content>,
        /// What it remembers beside that.
        calls: Option<Pieces>,
    },
    /// Hand the call to the child, then say [`Event::Executed`] or [`Event::Ended`].
    Execute {
        /// Which.
        child: ChildId,
        /// The call.
        envelope: Envelope,
        /// Hand back the whole state too, and keep these before.
        snapshot: Option<Parts>,
    },
    /// Prod the child, then say [`Event::Prodded`] or [`Event::Ended`].
    Prod {
        /// Which.
        child: ChildId,
        /// Hand back the whole state too, if it takes a step, and keep these before.
        snapshot: Option<Parts>,
    },
    /// Stop the child, then say [`Event::Ended`].
    Stop(ChildId),
    /// Send the reply.
    Reply(Reply),
    /// Send the answer that these pieces hold, if it can be had.
    ReplyPieces {
        /// To which call.
        call: CallId,
        /// The answer.
        pieces: Pieces,
        /// As in [`Outcome::Answered`].
        reflects: Seq,
        /// Likewise.
        durable: bool,
    },
    /// The unit starts or works; the warden must know (V2).
    AtWork(UnitId),
    /// The unit rests.
    AtRest(UnitId),
    /// Every record of the child up to this one is acknowledged (R2).
    Acknowledged {
        /// Whose.
        child: ChildId,
        /// Up to which.
        upto: Head,
    },
    /// The unit is served here now.
    Serving(UnitId),
    /// No complete replica of the unit answers (T2).
    Unavailable(UnitId),
}

/// Why an event was refused. Nothing has changed, in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The child is not here, or not in a state in which this can happen: late or repeated.
    #[error("the child is not here, or does not expect this")]
    NotExpected,
    /// The unit is not served here, or already changing.
    #[error("the unit is not served here, or is changing")]
    NotServed,
    /// The answer is to none of our owners.
    #[error("the answer is to none of our owners")]
    NotMine,
    /// The slots or the child do not fit the unit.
    #[error("the slots or the child do not fit the unit")]
    BadReshape,
    /// The child remembers more calls than a base holds; the oldest are forgotten with time.
    #[error("the child remembers too many calls for a base")]
    Full,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Due {
    Owner(UnitId),
    Host(ChildId),
    Restarts,
}

/// One child that is here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Host {
    unit: UnitId,
    state: State,
    mailbox: VecDeque<Waiting>,
    calls: Calls,
    /// Replies that wait for records, in the order of the records.
    held: VecDeque<Held>,
    /// It asked to be prodded and was not yet.
    wants_prod: bool,
    /// It was prodded last, so the next turn is a call's.
    was_prodded: bool,
    /// What it has done since its last step is in no record.
    is_loose: bool,
    /// Calls among that, and what they take in the step that will hold them, in bytes.
    loose: BTreeSet<CallKey>,
    loose_bytes: usize,
    /// What its calls were last counted with among those of all.
    calls_bytes: usize,
    /// Bytes of the steps since the last snapshot: all of them are read by the next start.
    replayed_bytes: u64,
    used: Time,
    /// When it is looked at again: its one place in the agent's `due`. Not later than it has to be,
    /// often earlier.
    due: Option<Time>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    /// Its records are on their way.
    Loading,
    /// Told to start.
    Starting,
    /// Waits for a call.
    Ready,
    /// Carries a call out, since then.
    Working(Envelope, Time),
    /// Was prodded, then.
    Prodded(Time),
    /// Told to stop because it hung; it has not ended yet.
    Killed,
    /// It ended; its supervisor will say when it may be loaded again.
    Down,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Waiting {
    envelope: Envelope,
    until: Time,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Held {
    reflects: Seq,
    call: CallId,
    body: Content,
    durable: bool,
}

/// What came of a call.
struct Done {
    answer: Content,
    effect: Option<Content>,
    state: Option<Content>,
    durable: bool,
}

impl Agent {
    /// The agent of one start of a node: it has no units yet.
    pub fn new(settings: AgentSettings) -> Agent {
        Agent {
            settings,
            owners: BTreeMap::new(),
            children: BTreeMap::new(),
            stopping: BTreeMap::new(),
            withheld: BTreeMap::new(),
            parting: BTreeMap::new(),
            light: Supervisor::new(light_policy()),
            lease_until: Time::ZERO,
            calls_bytes: 0,
            working: BTreeMap::new(),
            now: Time::ZERO,
            due: BTreeSet::new(),
            owner_due: BTreeMap::new(),
            actions: VecDeque::new(),
        }
    }

    /// The units that it owns.
    pub fn owners(&self) -> &BTreeMap<UnitId, Owner> {
        &self.owners
    }

    /// Whether the child was killed because it hung, and has not ended yet.
    pub fn is_killed(&self, child: &ChildId) -> bool {
        let host = self.children.get(child);
        host.is_some_and(|host| host.state == State::Killed)
    }

    /// The longest mailbox, the most replies held and the most calls remembered of any child: each
    /// has a limit.
    pub fn usage(&self) -> (usize, usize, usize) {
        let hosts = || self.children.values();
        let most = |of: fn(&Host) -> usize| hosts().map(of).max().unwrap_or(0);
        (
            most(|host| host.mailbox.len()),
            most(|host| host.held.len()),
            most(|host| host.calls.len()),
        )
    }

    /// Takes in what one directory entry changed. Units that this node went quiet for to have them
    /// reshaped come back as their parts, which go on with what is known here (S2).
    fn on_units(&mut self, now: Time, units: Vec<(UnitId, Option<Granted>)>) {
        let mut fresh = Vec::new();
        let mut parts = Vec::new();
        let mut old = Vec::new();
        let mut gone = Vec::new();
        for (unit, granted) in units {
            let mine = self.owners.get(&unit).map(|owner| owner.claim().epoch);
            if let Some(same) = granted
                .clone()
                .filter(|granted| mine == Some(granted.epoch))
            {
                self.on_view(now, unit, same);
                continue;
            }
            if let Some(owner) = self.forget_owner(unit) {
                let reshapes = matches!(
                    owner.leaving(),
                    Some(Leaving::Split(_) | Leaving::Except(_) | Leaving::Merge)
                );
                if reshapes {
                    old.push(owner)
                } else {
                    gone.push(unit)
                }
            }
            match granted {
                Some(granted) if granted.view.serving => parts.push((unit, granted)),
                Some(granted) => fresh.push((unit, granted)),
                None => {}
            }
        }
        if old.is_empty() {
            fresh.append(&mut parts);
        }
        for unit in gone {
            self.drop_hosts(|host| host.unit == unit);
        }
        let old_units: BTreeSet<UnitId> = old.iter().map(|owner| owner.claim().unit).collect();
        let configs = parts
            .iter()
            .map(|(unit, granted)| (self.owner_config(*unit, granted), granted.view.clone()));
        for owner in Owner::reshaped(now, old, configs.collect()) {
            let unit = owner.claim().unit;
            let mut at_work = Vec::new();
            for (child, host) in &mut self.children {
                if old_units.contains(&host.unit) && owner.view().scope.holds(child) {
                    let before = core::mem::replace(&mut host.unit, unit);
                    if host.is_at_work() && before != unit {
                        at_work.push(before);
                    }
                }
            }
            for before in at_work {
                self.end_work(before);
                self.begin_work(unit);
            }
            self.owners.insert(unit, owner);
            self.drive(now, unit);
        }
        let owners = &self.owners;
        let lost: BTreeSet<UnitId> = old_units
            .into_iter()
            .filter(|unit| !owners.contains_key(unit))
            .collect();
        self.drop_hosts(|host| lost.contains(&host.unit));
        for (unit, granted) in fresh {
            self.drop_hosts(|host| host.unit == unit);
            self.actions.push_back(Action::AtWork(unit));
            let owner = Owner::new(now, self.owner_config(unit, &granted), granted.view.clone());
            self.owners.insert(unit, owner);
            self.on_view(now, unit, granted);
        }
    }

    fn owner_config(&self, unit: UnitId, granted: &Granted) -> OwnerConfig {
        let AgentSettings {
            incarnation, home, ..
        } = self.settings;
        OwnerConfig {
            unit,
            epoch: granted.epoch,
            incarnation,
            home,
        }
    }

    fn on_view(&mut self, now: Time, unit: UnitId, granted: Granted) {
        let Some(owner) = self.owners.get_mut(&unit) else {
            return;
        };
        tell(owner, now, OwnerEvent::View(granted.view));
        if granted.stopping {
            self.part(now, unit, Leaving::Exit(Exit::Shutdown));
        } else if granted.moving {
            self.part(now, unit, Leaving::Release);
        }
        self.drive(now, unit);
    }

    /// Leaves the unit, when those of its children that hold what no record does have been asked for
    /// it once.
    fn part(&mut self, now: Time, unit: UnitId, leaving: Leaving) {
        if let Some((then, _)) = self.parting.get_mut(&unit) {
            *then = leaving;
            return;
        }
        let left = self
            .owners
            .get(&unit)
            .is_none_or(|owner| owner.phase() != Phase::Serving || owner.leaving().is_some());
        let hosts = self.children.iter_mut();
        let loose = hosts.filter(|(_, host)| host.unit == unit && host.is_loose && !left);
        let loose: BTreeSet<ChildId> = loose
            .map(|(child, host)| {
                host.wants_prod = true;
                child.clone()
            })
            .collect();
        self.parting.insert(unit, (leaving, loose.clone()));
        for child in &loose {
            self.work(now, child);
        }
        self.parted(now, unit, None);
    }

    /// Goes on with leaving the unit, if this child was the last that it waited for.
    fn parted(&mut self, now: Time, unit: UnitId, child: Option<&ChildId>) {
        let Some((_, waits)) = self.parting.get_mut(&unit) else {
            return;
        };
        if let Some(child) = child {
            waits.remove(child);
        }
        if !waits.is_empty() {
            return;
        }
        let Some((leaving, _)) = self.parting.remove(&unit) else {
            return;
        };
        if matches!(leaving, Leaving::Exit(_)) {
            self.drop_hosts(|host| host.unit == unit);
        }
        self.leave(now, unit, leaving);
    }

    fn leave(&mut self, now: Time, unit: UnitId, leaving: Leaving) {
        if let Some(owner) = self.owners.get_mut(&unit) {
            tell(owner, now, OwnerEvent::Leave(leaving));
        }
    }

    fn on_call(&mut self, now: Time, envelope: Envelope, route: Option<Route>) {
        let child = envelope.to.clone();
        let owner = route.and_then(|route| self.owners.get(&route.unit));
        let owner = owner.filter(|owner| owner.view().scope.holds(&child));
        let Some(owner) = owner else {
            return self.reply(envelope.call, Outcome::NotOwner { hint: route });
        };
        if owner.is_unavailable() {
            return self.reply(envelope.call, Outcome::Unavailable);
        }
        if owner.phase() != Phase::Serving || now >= self.lease_until {
            return self.reply(envelope.call, Outcome::NotOwner { hint: route });
        }
        let unit = owner.claim().unit;
        if !self.children.contains_key(&child) {
            self.add_host(now, unit, child.clone());
        }
        let host = self.children.get_mut(&child).expect("it was just added");
        if host.mailbox.len() >= MAILBOX_MAX {
            let retry_after_ms = RETRY_AFTER_MS;
            return self.reply(envelope.call, Outcome::Overloaded { retry_after_ms });
        }
        let until = now + envelope.patience();
        host.mailbox.push_back(Waiting { envelope, until });
        self.work(now, &child);
        self.drive(now, unit);
    }

    fn add_host(&mut self, now: Time, unit: UnitId, child: ChildId) {
        let host = Host {
            unit,
            state: State::Down,
            mailbox: VecDeque::new(),
            calls: Calls::new(self.settings.sealing),
            held: VecDeque::new(),
            wants_prod: false,
            was_prodded: false,
            is_loose: false,
            loose: BTreeSet::new(),
            loose_bytes: 0,
            calls_bytes: 0,
            replayed_bytes: 0,
            used: now,
            due: None,
        };
        self.children.insert(child.clone(), host);
        let dedicated = self.owners.get(&unit).is_some_and(is_dedicated);
        if dedicated {
            // Its supervisor is in the directory: the grant is the start.
            self.load(now, &child);
        } else {
            let restart = RestartType::Permanent;
            self.supervise(now, supervision::Event::Add { child, restart });
        }
    }

    fn load(&mut self, now: Time, child: &ChildId) {
        if self.stopping.contains_key(child) {
            // It is loaded when its former self has ended.
            return;
        }
        let Some(host) = self.children.get_mut(child) else {
            return;
        };
        let Some(owner) = self.owners.get_mut(&host.unit) else {
            return;
        };
        match owner.handle(now, OwnerEvent::Load(child.clone())) {
            Ok(()) => host.state = State::Loading,
            Err(_) => {
                let child = child.clone();
                self.drop_hosts_named(&child);
            }
        }
    }

    fn on_loaded(&mut self, now: Time, child: ChildId, records: Vec<Record>) {
        let kept = self.settings.key_kept;
        let Some(host) = self.children.get_mut(&child) else {
            return;
        };
        if host.state != State::Loading {
            return;
        }
        if now >= self.lease_until {
            // I3: a node without a lease starts nothing.
            self.drop_hosts_named(&child);
            return;
        }
        host.calls = Calls::new(self.settings.sealing);
        let Ok((base, steps, older)) = read_bodies(now, kept, &records, &mut host.calls) else {
            return self.give_up(now, &child);
        };
        host.state = State::Starting;
        host.replayed_bytes = steps.iter().map(Content::length).sum();
        self.actions.push_back(Action::Start {
            child,
            base,
            steps,
            calls: older.map(|older| older.calls),
        });
    }

    /// Its records cannot be read. Going on without a part of its history would be another child's
    /// history.
    fn give_up(&mut self, now: Time, child: &ChildId) {
        let Some(host) = self.children.get_mut(child) else {
            return;
        };
        let unit = host.unit;
        for waiting in core::mem::take(&mut host.mailbox) {
            self.reply(waiting.envelope.call, Outcome::Unavailable);
        }
        self.drop_hosts_named(child);
        if self.owners.get(&unit).is_some_and(is_dedicated) {
            self.leave(now, unit, Leaving::Exit(Exit::Abnormal));
        }
    }

    fn on_recalled(&mut self, now: Time, child: &ChildId, piece: &[u8]) -> Result<(), Refused> {
        let kept = self.settings.key_kept;
        let host = self.children.get_mut(child).ok_or(Refused::NotExpected)?;
        if host.state != State::Starting || host.calls.is_recalled() {
            return Err(Refused::NotExpected);
        }
        let unit = host.unit;
        if host.calls.recall(now, piece, kept).is_err() {
            self.give_up(now, child);
            self.drive(now, unit);
            return Ok(());
        }
        self.count_calls(child);
        Ok(())
    }

    /// Counts what the child's calls take now.
    fn count_calls(&mut self, child: &ChildId) {
        if let Some(host) = self.children.get_mut(child) {
            let bytes = host.calls.memory_bytes();
            let before = core::mem::replace(&mut host.calls_bytes, bytes);
            self.calls_bytes = self.calls_bytes - before + bytes;
        }
    }

    fn on_started(&mut self, now: Time, child: ChildId) -> Result<(), Refused> {
        let host = self
            .children
            .get_mut(&child)
            .filter(|host| host.state == State::Starting && host.calls.is_recalled());
        let host = host.ok_or(Refused::NotExpected)?;
        host.state = State::Ready;
        host.used = now;
        let unit = host.unit;
        if !self.owners.get(&unit).is_some_and(is_dedicated) {
            self.supervise(
                now,
                supervision::Event::Started {
                    child: child.clone(),
                },
            );
        }
        self.work(now, &child);
        self.drive(now, unit);
        Ok(())
    }

    /// Takes the child's next calls until one is being carried out or none is left.
    fn work(&mut self, now: Time, child: &ChildId) {
        loop {
            self.count_calls(child);
            let crowded = self.calls_bytes >= NODE_BYTES_MAX;
            let Some(host) = self.children.get_mut(child) else {
                return;
            };
            if host.state != State::Ready {
                return;
            }
            let turn = host.mailbox.is_empty() || !host.was_prodded;
            if host.wants_prod && turn && self.prod(now, child) {
                return;
            }
            let Some(host) = self.children.get_mut(child) else {
                return;
            };
            let Some(Waiting { envelope, until }) = host.mailbox.pop_front() else {
                let at = host.used + self.settings.passivate_after;
                return host.look_again(&mut self.due, child, at);
            };
            (host.used, host.was_prodded) = (now, false);
            let call = envelope.call;
            let Some(owner) = self
                .owners
                .get(&host.unit)
                .filter(|owner| owner.phase() == Phase::Serving)
            else {
                self.reply(call, Outcome::NotOwner { hint: None });
                continue;
            };
            if now >= until {
                // The caller has gone; what was not begun is not begun now.
                continue;
            }
            let held_full = host.held.len() >= HELD_MAX;
            let loose_full = host.loose.len() >= LOOSE_MAX || host.loose_bytes >= LOOSE_BYTES_MAX;
            let full = held_full
                || loose_full
                || owner.chain_len(child) + RECORDS_PER_CALL > CHAIN_RECORDS_MAX;
            let every = self.settings.snapshot_every.min(SNAPSHOT_EVERY_MAX);
            let due_snapshot = owner.since_snapshot(child) + 1 >= every
                || host.replayed_bytes >= REPLAYED_BYTES_MAX;
            let (key, request_hash) = (&envelope.key, envelope.request_hash);
            match host.calls.admit(now, key, request_hash, crowded) {
                // I5: who asks again and again waits for the same records.
                Admission::Answered { .. } if held_full => {
                    let retry_after_ms = RETRY_AFTER_MS;
                    self.reply(call, Outcome::Overloaded { retry_after_ms });
                }
                Admission::Answered { answer, seq } => {
                    let durable = !host.loose.contains(&envelope.key);
                    self.hold(now, child, seq, call, answer, durable);
                }
                Admission::Conflict => self.reply(call, Outcome::Conflict),
                Admission::Full { until } => {
                    let retry_after_ms =
                        until.since(now).as_millis().min(u128::from(u32::MAX)) as u32;
                    self.reply(call, Outcome::Overloaded { retry_after_ms });
                }
                Admission::Fresh if full => {
                    let retry_after_ms = RETRY_AFTER_MS;
                    self.reply(call, Outcome::Overloaded { retry_after_ms });
                }
                Admission::Fresh => {
                    host.state = State::Working(envelope.clone(), now);
                    let unit = host.unit;
                    let at = now + self.settings.work_limit;
                    host.look_again(&mut self.due, child, at);
                    let snapshot = due_snapshot.then(|| host.calls.seal(now, &host.loose));
                    self.begin_work(unit);
                    let child = child.clone();
                    self.actions.push_back(Action::Execute {
                        child,
                        envelope,
                        snapshot,
                    });
                }
            }
        }
    }

    /// Prods the child, unless its unit or its chain takes no step now: then it is its turn again when
    /// there is room. The time of its last call stays: a prod keeps nobody from being passivated.
    fn prod(&mut self, now: Time, child: &ChildId) -> bool {
        let Some(host) = self.children.get_mut(child) else {
            return false;
        };
        let owner = self.owners.get(&host.unit);
        let Some(owner) = owner.filter(|owner| owner.phase() == Phase::Serving) else {
            return false;
        };
        let full = owner.chain_len(child) + RECORDS_PER_CALL > CHAIN_RECORDS_MAX;
        if full || now >= self.lease_until {
            return false;
        }
        let every = self.settings.snapshot_every.min(SNAPSHOT_EVERY_MAX);
        let due_snapshot =
            owner.since_snapshot(child) + 1 >= every || host.replayed_bytes >= REPLAYED_BYTES_MAX;
        let snapshot = due_snapshot.then(|| host.calls.seal(now, &host.loose));
        (host.wants_prod, host.was_prodded) = (false, true);
        host.state = State::Prodded(now);
        let unit = host.unit;
        host.look_again(&mut self.due, child, now + self.settings.work_limit);
        self.begin_work(unit);
        let child = child.clone();
        self.actions.push_back(Action::Prod { child, snapshot });
        true
    }

    fn on_prod(&mut self, now: Time, child: &ChildId) -> Result<(), Refused> {
        let host = self.children.get_mut(child).ok_or(Refused::NotExpected)?;
        if !host.is_up() {
            return Err(Refused::NotExpected);
        }
        host.wants_prod = true;
        let unit = host.unit;
        self.work(now, child);
        self.drive(now, unit);
        Ok(())
    }

    fn on_prodded(
        &mut self,
        now: Time,
        child: ChildId,
        effect: Option<Content>,
        state: Option<Content>,
        durable: bool,
    ) -> Result<(), Refused> {
        let unit = self.end_prod(&child)?;
        if let Some(effect) = effect
            && self.write_step(now, &child, None, effect, state).is_err()
        {
            // Its memory is ahead of its records: it starts again from them.
            self.drop_hosts_named(&child);
            return Ok(());
        }
        if let Some(host) = self.children.get_mut(&child) {
            host.is_loose = !durable;
        }
        self.parted(now, unit, Some(&child));
        self.work(now, &child);
        self.drive(now, unit);
        Ok(())
    }

    fn end_prod(&mut self, child: &ChildId) -> Result<UnitId, Refused> {
        let host = self.children.get_mut(child).ok_or(Refused::NotExpected)?;
        if !matches!(host.state, State::Prodded(_)) {
            return Err(Refused::NotExpected);
        }
        host.state = State::Ready;
        let unit = host.unit;
        self.end_work(unit);
        Ok(unit)
    }

    /// One child more of the unit is at work: the warden knows it before the child does (V2).
    fn begin_work(&mut self, unit: UnitId) {
        let working = self.working.entry(unit).or_insert(0);
        *working += 1;
        if *working == 1 {
            self.actions.push_back(Action::AtWork(unit));
        }
    }

    fn end_work(&mut self, unit: UnitId) {
        let Some(working) = self.working.get_mut(&unit) else {
            return;
        };
        *working -= 1;
        if *working == 0 {
            self.working.remove(&unit);
            self.actions.push_back(Action::AtRest(unit));
        }
    }

    fn on_executed(
        &mut self,
        now: Time,
        child: ChildId,
        call: CallId,
        done: Done,
    ) -> Result<(), Refused> {
        let Done {
            answer,
            effect,
            state,
            durable,
        } = done;
        let (unit, envelope) = self.end_call(&child, call)?;
        let (key, request_hash) = (envelope.key, envelope.request_hash);
        let is_framed = answer.length() <= CALL_BODY_BYTES_MAX as u64;
        let remembered = Remembered {
            key,
            request_hash,
            answer: answer.clone(),
            seq: None,
        };
        if effect.is_some() || !durable {
            let written = if is_framed {
                match effect {
                    Some(effect) => self.write_step(now, &child, Some(remembered), effect, state),
                    None => {
                        self.remember_loosely(now, &child, remembered);
                        Ok(())
                    }
                }
            } else {
                Err(OwnerRefused::TooLarge)
            };
            if let Err(refused) = written {
                // Its memory is ahead of its records: it starts again from them.
                self.reply(
                    call,
                    match refused {
                        OwnerRefused::TooLarge => Outcome::TooLarge,
                        _ => Outcome::Unknown,
                    },
                );
                self.drop_hosts_named(&child);
                return Ok(());
            }
        }
        if let Some(host) = self.children.get_mut(&child) {
            host.is_loose |= !durable;
        }
        let tail = self
            .owners
            .get(&unit)
            .map_or(Seq::ZERO, |owner| owner.tail(&child));
        if is_framed {
            self.hold(now, &child, tail, call, answer, durable);
        } else {
            // A read: nothing was done, and no lane would take its answer.
            self.reply(call, Outcome::TooLarge);
        }
        self.work(now, &child);
        self.drive(now, unit);
        Ok(())
    }

    /// The child is ready again: whose it is, and what it was at work on.
    fn end_call(&mut self, child: &ChildId, call: CallId) -> Result<(UnitId, Envelope), Refused> {
        let host = self.children.get_mut(child).ok_or(Refused::NotExpected)?;
        if !matches!(&host.state, State::Working(envelope, _) if envelope.call == call) {
            return Err(Refused::NotExpected);
        }
        let State::Working(envelope, _) = core::mem::replace(&mut host.state, State::Ready) else {
            return Err(Refused::NotExpected);
        };
        let unit = host.unit;
        self.end_work(unit);
        Ok((unit, envelope))
    }

    /// Its memory is ahead of its records: it starts again from them.
    fn on_unkept(
        &mut self,
        child: ChildId,
        call: Option<CallId>,
        too_large: bool,
    ) -> Result<(), Refused> {
        match call {
            Some(call) => {
                self.end_call(&child, call)?;
                let outcome = match too_large {
                    true => Outcome::TooLarge,
                    false => Outcome::Unknown,
                };
                self.reply(call, outcome);
            }
            None => drop(self.end_prod(&child)?),
        }
        self.drop_hosts_named(&child);
        Ok(())
    }

    /// A call whose effect no record holds yet. The first that does holds its key and its answer too,
    /// so that neither is ever there without the other (E2).
    fn remember_loosely(&mut self, now: Time, child: &ChildId, call: Remembered) {
        let Some(host) = self.children.get_mut(child) else {
            return;
        };
        let owner = self.owners.get(&host.unit);
        let tail = owner.map_or(Seq::ZERO, |owner| owner.tail(child));
        host.loose.insert(call.key.clone());
        host.loose_bytes += call.room();
        host.calls.remember(now, call, tail, self.settings.key_kept);
    }

    fn write_step(
        &mut self,
        now: Time,
        child: &ChildId,
        call: Option<Remembered>,
        effect: Content,
        state: Option<Content>,
    ) -> Result<(), OwnerRefused> {
        let host = self
            .children
            .get_mut(child)
            .ok_or(OwnerRefused::NotLoaded)?;
        let owner = self
            .owners
            .get_mut(&host.unit)
            .ok_or(OwnerRefused::NotServing)?;
        let replayed_bytes = effect.length();
        let step = Step {
            call: call.clone(),
            effect,
            earlier: host.calls.of(&host.loose),
        };
        let (schema, body) = (step.schema(), encoded(&step));
        let (child, kind) = (child.clone(), RecordKind::Delta);
        owner.handle(
            now,
            OwnerEvent::Write {
                child: child.clone(),
                kind,
                schema,
                body,
            },
        )?;
        let (tail, kept) = (owner.tail(&child), self.settings.key_kept);
        if let Some(call) = call {
            host.calls.remember(now, call, tail, kept);
        }
        host.calls.recorded(&core::mem::take(&mut host.loose), tail);
        (host.is_loose, host.loose_bytes) = (false, 0);
        host.replayed_bytes += replayed_bytes;
        if let Some(state) = state {
            let (calls, older) = host.calls.base(now);
            let calls_fit = calls.len() <= INLINE_CALLS_MAX;
            let base = Base {
                calls,
                state,
                older,
            };
            let (schema, body) = (base.schema(), encoded(&base));
            let kind = RecordKind::Snapshot;
            // Gateways may have confirmed too little: until they have no new call is admitted, and the
            // steps stand.
            if calls_fit && body.len() <= BODY_BYTES_MAX {
                host.replayed_bytes = 0;
                owner.handle(
                    now,
                    OwnerEvent::Write {
                        child,
                        kind,
                        schema,
                        body,
                    },
                )?;
                host.calls.sealed();
            }
        }
        Ok(())
    }

    /// Holds a reply until everything that it reflects is acknowledged (E1).
    fn hold(
        &mut self,
        now: Time,
        child: &ChildId,
        reflects: Seq,
        call: CallId,
        body: Content,
        durable: bool,
    ) {
        if !keeps(Rule::E1) {
            let action = answered(call, body, reflects, durable);
            return self.actions.push_back(action);
        }
        let Some(host) = self.children.get_mut(child) else {
            return;
        };
        // What is acknowledged may be less than what this answer was made from.
        let tail = self
            .owners
            .get(&host.unit)
            .map_or(reflects, |owner| owner.tail(child));
        host.held.push_back(Held {
            reflects: reflects.max(tail),
            call,
            body,
            durable,
        });
        let acknowledged = self
            .owners
            .get(&host.unit)
            .map_or(Seq::ZERO, |owner| owner.acknowledged(child));
        self.release(now, child, acknowledged);
    }

    /// Lets the replies go whose records are acknowledged, if the lease is valid now (E1).
    fn release(&mut self, now: Time, child: &ChildId, upto: Seq) {
        let Some(host) = self.children.get_mut(child) else {
            return;
        };
        while host.held.front().is_some_and(|held| held.reflects <= upto) {
            let Some(Held {
                reflects,
                call,
                body,
                durable,
            }) = host.held.pop_front()
            else {
                return;
            };
            if now < self.lease_until {
                let action = answered(call, body, reflects, durable);
                self.actions.push_back(action);
            }
        }
    }

    fn on_ended(
        &mut self,
        now: Time,
        child: ChildId,
        exit: Exit,
        random: u64,
    ) -> Result<(), Refused> {
        if let Some(unit) = self.stopping.remove(&child) {
            self.on_stopped(now, &child, unit);
            return Ok(());
        }
        let host = self.children.get_mut(&child).ok_or(Refused::NotExpected)?;
        let up = host.is_up();
        if !up {
            return Err(Refused::NotExpected);
        }
        let unit = host.unit;
        let exit = match core::mem::replace(&mut host.state, State::Down) {
            State::Working(envelope, _) => {
                self.reply(envelope.call, Outcome::Unknown);
                self.end_work(unit);
                exit
            }
            State::Prodded(_) => {
                self.end_work(unit);
                exit
            }
            // It was stopped because it hung: however well it ended, it did not end by itself.
            State::Killed => Exit::Abnormal,
            _ => exit,
        };
        if let Some(host) = self.children.get_mut(&child) {
            host.forget_what_it_held();
        }
        self.parted(now, unit, Some(&child));
        if self.owners.get(&unit).is_some_and(is_dedicated) {
            self.drop_hosts_named(&child);
            self.leave(now, unit, Leaving::Exit(exit));
        } else {
            self.supervise(
                now,
                supervision::Event::Exited {
                    child,
                    exit,
                    random,
                },
            );
        }
        self.drive(now, unit);
        Ok(())
    }

    fn roll_back(&mut self, now: Time, child: ChildId, state: Content) -> Result<(), Refused> {
        let host = self
            .children
            .get_mut(&child)
            .filter(|host| host.state == State::Ready);
        let host = host.ok_or(Refused::NotExpected)?;
        let owner = self.owners.get_mut(&host.unit).ok_or(Refused::NotServed)?;
        // E4: a new record, with the calls remembered now and not those of then.
        host.calls.unsealed();
        let (calls, older) = host.calls.base(now);
        let calls_fit = calls.len() <= INLINE_CALLS_MAX;
        let base = Base {
            calls,
            state,
            older,
        };
        let (kind, schema, body) = (RecordKind::Snapshot, base.schema(), encoded(&base));
        if !calls_fit || body.len() > BODY_BYTES_MAX {
            return Err(Refused::Full);
        }
        let write = OwnerEvent::Write {
            child: child.clone(),
            kind,
            schema,
            body,
        };
        owner.handle(now, write).map_err(|_| Refused::NotServed)?;
        let unit = host.unit;
        host.state = State::Down;
        host.forget_what_it_held();
        self.stop(&child, unit);
        self.drive(now, unit);
        Ok(())
    }

    fn on_reshape(&mut self, now: Time, unit: UnitId, reshape: Reshape) -> Result<(), Refused> {
        let owner = self.owners.get(&unit).ok_or(Refused::NotServed)?;
        let free = |owner: &Owner| owner.phase() == Phase::Serving && owner.leaving().is_none();
        if !free(owner) || !owner.view().serving {
            return Err(Refused::NotServed);
        }
        let Scope::Slots { range, except } = &owner.view().scope else {
            return Err(Refused::BadReshape);
        };
        match reshape {
            Reshape::Split(at) => {
                range.split(at).ok_or(Refused::BadReshape)?;
                self.leave(now, unit, Leaving::Split(at));
            }
            Reshape::Except(child) => {
                let room = except.len() < crate::wire::replica::EXCEPTIONS_MAX;
                if !owner.view().scope.holds(&child) || !room {
                    return Err(Refused::BadReshape);
                }
                self.leave(now, unit, Leaving::Except(child));
            }
            Reshape::Merge => {
                let next = self.owners.iter().find(|(_, other)| follows(owner, other));
                let (high, other) = next.ok_or(Refused::BadReshape)?;
                if !free(other) || !other.view().serving || other.view().set != owner.view().set {
                    return Err(Refused::NotServed);
                }
                let high = *high;
                self.leave(now, unit, Leaving::Merge);
                self.leave(now, high, Leaving::Merge);
                self.drive(now, high);
            }
        }
        self.drive(now, unit);
        Ok(())
    }

    /// One of two shards to be merged is quiet: when its neighbour is too, the merge is proposed. Where
    /// it cannot be any more, both serve again: what was proposed of it is void for good, since a set
    /// that changed has moved its version on and a neighbour that went has lost its claim (S2).
    fn on_quiet(&mut self, now: Time, unit: UnitId) {
        let merges = |owner: &&Owner| owner.leaving() == Some(&Leaving::Merge);
        let Some(me) = self.owners.get(&unit).filter(merges) else {
            return;
        };
        let low = self
            .owners
            .values()
            .filter(merges)
            .find(|other| follows(other, me))
            .unwrap_or(me);
        let high = self
            .owners
            .values()
            .filter(merges)
            .find(|other| follows(low, other));
        let Some(high) = high else {
            return self.resume(now, &[unit]);
        };
        if !low.is_quiet() || !high.is_quiet() {
            return;
        }
        let (low_claim, high_claim) = (low.claim(), high.claim());
        if low.view().set != high.view().set {
            return self.resume(now, &[low_claim.unit, high_claim.unit]);
        }
        self.actions.push_back(Action::Propose(Command::Merge {
            low: low_claim,
            low_config: low.set_version(),
            high: high_claim,
            high_config: high.set_version(),
        }));
    }

    fn resume(&mut self, now: Time, units: &[UnitId]) {
        for unit in units {
            if let Some(owner) = self.owners.get_mut(unit) {
                tell(owner, now, OwnerEvent::Resume);
            }
        }
    }

    /// Proposes what an owner wants, but gives a unit back only when nothing of it runs here (I3).
    fn propose(&mut self, unit: UnitId, command: Command) {
        if matches!(command, Command::Release(_) | Command::Exited { .. }) {
            self.drop_hosts(|host| host.unit == unit);
            if self.stopping.values().any(|of| *of == unit) {
                self.withheld.insert(unit, command);
                return;
            }
        }
        self.actions.push_back(Action::Propose(command));
    }

    /// A child that was told to stop has ended.
    fn on_stopped(&mut self, now: Time, child: &ChildId, unit: UnitId) {
        if self.stopping.values().all(|of| *of != unit)
            && let Some(command) = self.withheld.remove(&unit)
            && self.owners.contains_key(&unit)
        {
            self.actions.push_back(Action::Propose(command));
        }
        let waits = |host: &&Host| host.state == State::Down;
        let again = self.children.get(child).filter(waits).map(|host| host.unit);
        if let Some(unit) = again {
            self.load(now, child);
            self.drive(now, unit);
        }
    }

    /// A dedicated unit's child is up as long as the unit is served; but no child is started without a
    /// lease, be it one that has not come yet (I3).
    fn start_dedicated(&mut self, now: Time, unit: UnitId) {
        let Some(owner) = self.owners.get(&unit) else {
            return;
        };
        let Scope::Child(child) = &owner.view().scope else {
            return;
        };
        let serving = owner.phase() == Phase::Serving && owner.leaving().is_none();
        if serving && now < self.lease_until && !self.children.contains_key(child) {
            let child = child.clone();
            self.add_host(now, unit, child);
            self.drive(now, unit);
        }
    }

    fn on_lease(&mut self, now: Time, until: Time) {
        let had = now < self.lease_until;
        self.lease_until = self.lease_until.max(until);
        if !had {
            let units: Vec<UnitId> = self.owners.keys().copied().collect();
            for unit in units {
                self.start_dedicated(now, unit);
            }
        }
    }

    /// Carries out what an owner wants, and sees when it wants to be looked at again.
    fn drive(&mut self, now: Time, unit: UnitId) {
        while let Some(action) = self.owners.get_mut(&unit).and_then(Machine::poll_action) {
            match action {
                OwnerAction::Ask { to, request } => {
                    self.actions.push_back(Action::Ask { to, request })
                }
                OwnerAction::Propose(command) => self.propose(unit, command),
                OwnerAction::Acknowledged { child, upto } => {
                    self.release(now, &child, upto.seq);
                    self.passivate(now, &child);
                    if self
                        .children
                        .get(&child)
                        .is_some_and(|host| host.wants_prod)
                    {
                        // There may be room for it now.
                        self.work(now, &child);
                    }
                    self.actions.push_back(Action::Acknowledged { child, upto });
                }
                OwnerAction::Loaded { child, records } => self.on_loaded(now, child, records),
                OwnerAction::Serve => {
                    self.actions.push_back(Action::Serving(unit));
                    self.actions.push_back(Action::AtRest(unit));
                    self.start_dedicated(now, unit);
                }
                OwnerAction::Unavailable => self.actions.push_back(Action::Unavailable(unit)),
                OwnerAction::Quiet => self.on_quiet(now, unit),
            }
        }
        let wants = self.owners.get(&unit).and_then(Owner::next_deadline);
        if self.owner_due.get(&unit).copied() == wants {
            return;
        }
        if let Some(old) = self.owner_due.remove(&unit) {
            self.due.remove(&(old, Due::Owner(unit)));
        }
        if let Some(at) = wants {
            self.owner_due.insert(unit, at);
            self.due.insert((at, Due::Owner(unit)));
        }
    }

    fn on_tick(&mut self, now: Time) {
        while self.due.first().is_some_and(|(at, _)| *at <= now) {
            match self.due.pop_first() {
                Some((_, Due::Owner(unit))) => {
                    self.owner_due.remove(&unit);
                    if let Some(owner) = self.owners.get_mut(&unit) {
                        tell(owner, now, OwnerEvent::Tick);
                    }
                    self.drive(now, unit);
                }
                Some((_, Due::Host(child))) => {
                    if let Some(host) = self.children.get_mut(&child) {
                        host.due = None;
                    }
                    self.kill_if_hung(now, &child);
                    self.forget_calls(now, &child);
                    self.passivate(now, &child);
                }
                Some((_, Due::Restarts)) => self.supervise(now, supervision::Event::Tick),
                None => {}
            }
        }
    }

    /// A call that is at work for too long will not end by itself.
    fn kill_if_hung(&mut self, now: Time, child: &ChildId) {
        let limit = self.settings.work_limit;
        let Some(host) = self.children.get_mut(child) else {
            return;
        };
        let (call, since) = match &host.state {
            State::Working(envelope, since) => (Some(envelope.call), *since),
            State::Prodded(since) => (None, *since),
            _ => return,
        };
        let until = since + limit;
        if now < until {
            return host.look_again(&mut self.due, child, until);
        }
        let unit = host.unit;
        host.state = State::Killed;
        if let Some(call) = call {
            self.reply(call, Outcome::Unknown);
        }
        self.end_work(unit);
        self.actions.push_back(Action::Stop(child.clone()));
    }

    /// Calls are forgotten as they come; of a child that nobody calls any more they would stay.
    fn forget_calls(&mut self, now: Time, child: &ChildId) {
        let Some(host) = self.children.get_mut(child) else {
            return;
        };
        if host.calls.len() < CALLS_ALWAYS {
            return;
        }
        host.calls.expire(now, FORGOTTEN_AT_ONCE);
        if let Some(next) = host.calls.next_expiry() {
            let at = match next <= now {
                true => now + FORGOTTEN_AFTER,
                false => next + self.settings.passivate_after,
            };
            host.look_again(&mut self.due, child, at);
        }
        self.count_calls(child);
    }

    /// A light child that nobody calls leaves only its records.
    fn passivate(&mut self, now: Time, child: &ChildId) {
        let Some(host) = self.children.get_mut(child) else {
            return;
        };
        let waits = !host.mailbox.is_empty() || !host.held.is_empty() || host.wants_prod;
        let idle = host.state == State::Ready && !waits;
        if !idle {
            return;
        }
        let until = host.used + self.settings.passivate_after;
        let Some(owner) = self
            .owners
            .get_mut(&host.unit)
            .filter(|owner| !is_dedicated(owner))
        else {
            return;
        };
        if now < until {
            return host.look_again(&mut self.due, child, until);
        }
        if host.is_loose {
            // Once: whatever comes of it, it goes after that.
            (host.is_loose, host.wants_prod) = (false, true);
            return self.work(now, child);
        }
        tell(owner, now, OwnerEvent::Unload(child.clone()));
        self.drop_hosts_named(child);
    }

    fn supervise(&mut self, now: Time, event: supervision::Event<ChildId>) {
        // A refusal is an answer here: the child's state has moved on.
        let _ = self.light.handle(now, event);
        while let Some(action) = self.light.poll_action() {
            if let supervision::Action::Start { child } = action
                && let Some(host) = self.children.get(&child)
                && host.state == State::Down
            {
                let unit = host.unit;
                self.load(now, &child);
                self.drive(now, unit);
            }
        }
        if let Some(at) = self.light.next_deadline() {
            self.due.insert((at, Due::Restarts));
        }
    }

    fn forget_owner(&mut self, unit: UnitId) -> Option<Owner> {
        self.parting.remove(&unit);
        if let Some(at) = self.owner_due.remove(&unit) {
            self.due.remove(&(at, Due::Owner(unit)));
        }
        self.owners.remove(&unit)
    }

    fn drop_hosts(&mut self, which: impl Fn(&Host) -> bool) {
        let names: Vec<ChildId> = self
            .children
            .iter()
            .filter(|(_, host)| which(host))
            .map(|(child, _)| child.clone())
            .collect();
        for child in names {
            self.drop_hosts_named(&child);
        }
    }

    /// The child leaves this node's memory: what was not begun may go elsewhere, what was begun is
    /// for the caller to ask again with its key.
    fn drop_hosts_named(&mut self, child: &ChildId) {
        let Some(host) = self.children.remove(child) else {
            return;
        };
        self.calls_bytes -= host.calls_bytes;
        if let Some(at) = host.due {
            self.due.remove(&(at, Due::Host(child.clone())));
        }
        let remove = supervision::Event::Remove {
            child: child.clone(),
        };
        if self.light.handle(self.now, remove).is_ok() {
            let exited = supervision::Event::Exited {
                child: child.clone(),
                exit: Exit::Shutdown,
                random: 0,
            };
            let _ = self.light.handle(self.now, exited);
            while self.light.poll_action().is_some() {}
        }
        let at_work = host.is_at_work();
        if host.is_up() {
            self.stop(child, host.unit);
        }
        for waiting in host.mailbox {
            self.reply(waiting.envelope.call, Outcome::NotOwner { hint: None });
        }
        for held in host.held {
            self.reply(held.call, Outcome::Unknown);
        }
        if let State::Working(envelope, _) = host.state {
            self.reply(envelope.call, Outcome::Unknown);
        }
        if at_work {
            self.end_work(host.unit);
        }
        self.parted(self.now, host.unit, Some(child));
    }

    fn stop(&mut self, child: &ChildId, unit: UnitId) {
        self.stopping.insert(child.clone(), unit);
        self.actions.push_back(Action::Stop(child.clone()));
    }

    fn reply(&mut self, call: CallId, outcome: Outcome) {
        self.actions
            .push_back(Action::Reply(Reply { call, outcome }));
    }
}

impl Host {
    /// Whether a process of it runs.
    fn is_up(&self) -> bool {
        matches!(
            self.state,
            State::Starting | State::Ready | State::Working(..) | State::Prodded(_) | State::Killed
        )
    }

    fn is_at_work(&self) -> bool {
        matches!(self.state, State::Working(..) | State::Prodded(_))
    }

    /// Its process has ended, and with it what no record holds: calls among that may come again.
    fn forget_what_it_held(&mut self) {
        (self.wants_prod, self.was_prodded, self.is_loose) = (false, false, false);
        self.loose.clear();
        self.loose_bytes = 0;
    }

    /// Has it looked at then, or before. A place for every call would leave thousands behind: none is
    /// taken out before its time has come.
    fn look_again(&mut self, due: &mut BTreeSet<(Time, Due)>, child: &ChildId, at: Time) {
        if self.due.is_some_and(|sooner| sooner <= at) {
            return;
        }
        if let Some(later) = self.due.replace(at) {
            due.remove(&(later, Due::Host(child.clone())));
        }
        due.insert((at, Due::Host(child.clone())));
    }
}

impl Machine for Agent {
    type Event = Event;
    type Action = Action;
    type Error = Refused;

    fn handle(&mut self, now: Time, event: Event) -> Result<(), Refused> {
        self.now = now;
        match event {
            Event::Units(units) => self.on_units(now, units),
            Event::Answer(answer) => {
                let unit = answer.unit;
                let owner = self.owners.get_mut(&unit).ok_or(Refused::NotMine)?;
                owner
                    .handle(now, OwnerEvent::Answer(answer))
                    .map_err(|_| Refused::NotMine)?;
                self.drive(now, unit);
            }
            Event::Call { envelope, route } => self.on_call(now, envelope, route),
            Event::Started(child) => self.on_started(now, child)?,
            Event::Executed {
                child,
                call,
                answer,
                effect,
                state,
                durable,
            } => {
                let done = Done {
                    answer,
                    effect,
                    state,
                    durable,
                };
                self.on_executed(now, child, call, done)?;
            }
            Event::Ended {
                child,
                exit,
                random,
            } => self.on_ended(now, child, exit, random)?,
            Event::RollBack { child, state } => self.roll_back(now, child, state)?,
            Event::Lease(until) => self.on_lease(now, until),
            Event::Reshape(unit, reshape) => self.on_reshape(now, unit, reshape)?,
            Event::Confirmed(gateway, upto) => {
                self.children
                    .values_mut()
                    .for_each(|host| host.calls.confirmed(gateway, upto));
            }
            Event::GatewayGone(gateway) => {
                self.children
                    .values_mut()
                    .for_each(|host| host.calls.gateway_gone(gateway));
            }
            Event::Tick => self.on_tick(now),
            Event::Unkept {
                child,
                call,
                too_large,
            } => self.on_unkept(child, call, too_large)?,
            Event::Prod(child) => self.on_prod(now, &child)?,
            Event::Recalled { child, piece } => self.on_recalled(now, &child, &piece)?,
            Event::Prodded {
                child,
                effect,
                state,
                durable,
            } => self.on_prodded(now, child, effect, state, durable)?,
        }
        Ok(())
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn next_deadline(&self) -> Option<Time> {
        self.due.first().map(|(at, _)| *at)
    }
}

/// Tells an owner something that it cannot refuse.
fn tell(owner: &mut Owner, now: Time, event: OwnerEvent) {
    let told = owner.handle(now, event);
    debug_assert_eq!(
        told,
        Ok(()),
        "views, ticks, leaves and unloads are not refused"
    );
}

fn is_dedicated(owner: &Owner) -> bool {
    matches!(owner.view().scope, Scope::Child(_))
}

fn follows(low: &Owner, high: &Owner) -> bool {
    match (&low.view().scope, &high.view().scope) {
        (Scope::Slots { range: a, .. }, Scope::Slots { range: b, .. }) => a.end() == b.start(),
        _ => false,
    }
}

/// The child's last base and the steps after it.
type Read = (Option<Content>, Vec<Content>, Option<Older>);

/// That, and every call that they remember, but for the older ones.
fn read_bodies(
    now: Time,
    kept: Duration,
    records: &[Record],
    calls: &mut Calls,
) -> Result<Read, DecodeError> {
    let (mut base, mut steps, mut older) = (None, Vec::new(), None);
    for record in records {
        match record.kind {
            RecordKind::Snapshot => {
                let read: Base = decode_exact(&record.body)?;
                calls.clear();
                for call in read.calls {
                    let seq = call.seq.unwrap_or(record.seq);
                    calls.remember(now, call, seq, kept);
                }
                (base, older) = (Some(read.state), read.older);
                steps.clear();
            }
            RecordKind::Delta => {
                let read: Step = decode_exact(&record.body)?;
                for call in read.earlier.into_iter().chain(read.call) {
                    calls.remember(now, call, record.seq, kept);
                }
                steps.push(read.effect);
            }
        }
    }
    if let Some(older) = &older {
        calls.expect(older);
    }
    Ok((base, steps, older))
}

fn answered(call: CallId, body: Content, reflects: Seq, durable: bool) -> Action {
    match body {
        Content::Inline(body) => {
            let outcome = Outcome::Answered {
                body,
                reflects,
                durable,
            };
            Action::Reply(Reply { call, outcome })
        }
        Content::Pieces(pieces) => Action::ReplyPieces {
            call,
            pieces,
            reflects,
            durable,
        },
    }
}

fn encoded<T: minicbor::Encode<()>>(body: &T) -> Bytes {
    Bytes::from(minicbor::to_vec(body).expect("encoding into memory does not fail"))
}

/// Light children are restarted one for one, each with its own backoff, and their shard never gives
/// up for them: a child that keeps failing must not take its neighbours down.
fn light_policy() -> Policy {
    let intensity = Intensity {
        restarts: u16::MAX,
        window: Duration::ZERO,
    };
    Policy {
        intensity,
        ..Policy::new(Strategy::OneForOne)
    }
}

/// Calls that wait for one child (I5): about a second of work at a few milliseconds each.
pub const MAILBOX_MAX: usize = 256;

/// Replies of one child that wait for acknowledgement: more than a chain has records would mean
/// that reads pile up behind a stalled store.
pub const HELD_MAX: usize = 256;

/// Calls of one child that were answered loosely and that no step holds yet, and their bytes: the step
/// that does holds all of them, in half a record.
pub const LOOSE_MAX: usize = INLINE_CALLS_MAX - 1;
const LOOSE_BYTES_MAX: usize = 32 * 1024;

/// Calls that an idle child forgets before others have their turn: a millisecond or two of work.
const FORGOTTEN_AT_ONCE: usize = 4_096;

/// After which time it goes on.
const FORGOTTEN_AFTER: Duration = Duration::from_millis(20);

/// What a caller is told to wait when something is full, in milliseconds: some flushes.
const RETRY_AFTER_MS: u32 = 50;

/// A call writes a step, and sometimes a snapshot.
const RECORDS_PER_CALL: usize = 2;

/// Records between two snapshots, at most. A chain holds two generations and the one that is being
/// written, each with its snapshot: were they longer, a chain would be full before the snapshot came
/// that shortens it, and its child could take no step any more.
pub const SNAPSHOT_EVERY_MAX: u64 = 40;
const _: () =
    assert!(3 * (SNAPSHOT_EVERY_MAX as usize + 1) + RECORDS_PER_CALL <= CHAIN_RECORDS_MAX);

/// Bytes of steps after which a snapshot is due: a start reads all of them into memory.
const REPLAYED_BYTES_MAX: u64 = VALUE_BYTES_MAX as u64;

#[cfg(test)]
mod held;
#[cfg(test)]
mod prods;
#[cfg(test)]
mod steady;
#[cfg(test)]
mod tests;
