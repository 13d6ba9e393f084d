//! The caller: what a gateway does with the calls it was given, until each has one answer.
//!
//! Owns: which call waits for what, when it is tried again, and what its client is told in the end
//! (rules E1, E2). Never carries a call out, and never looks into the directory: the shell does, and
//! says what it found.
//!
//! ```text
//!   Call ──> Route ──> Routed ──> Send ──> Reply ──> Answer
//!              ^                   │         │ NotOwner, Unknown, Overloaded, Unavailable
//!              └── wait ───────────┴─────────┘
//!                    ^ no reply, the peer was lost, the unit moved
//! ```
//!
//! A call is tried as long as its client's patience lasts. Each attempt has a number of its own and all
//! have the same key, so an owner carries it out once, however many reach it (E2).
//!
//! **What is told is true of the call, not of an attempt.** An attempt that was refused was not done;
//! but the one before it, whose reply was lost, may have been. So a refusal is passed on only when no
//! attempt may have been carried out.
//!
//! **A key is confirmed when nobody can present it any more**: its call has its answer, and no attempt
//! is on its way. Otherwise an owner could forget the key, and then meet a late attempt with it.
//! Confirming is cumulative, so a call that waits for long holds up the confirming of those after it.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;
use minicbor::{Decode, Encode};

use crate::id::{ChildId, IncarnationId, NodeId, Seq, UnitId};
use crate::machine::Machine;
use crate::time::Time;
use crate::wire::envelope::{CallId, CallKey, Confirmed, Envelope, Outcome, Reply, Route};

/// The calls of one gateway's incarnation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    gateway: IncarnationId,
    calls: BTreeMap<u64, Call>,
    /// What their requests take, in bytes.
    bytes: usize,
    /// Whose each attempt is that has no reply.
    attempts: BTreeMap<u64, u64>,
    next_attempt: u64,
    /// Calls by the unit that they were last routed to.
    by_unit: BTreeSet<(UnitId, u64)>,
    /// When each call wants to be looked at again.
    due: BTreeSet<(Time, u64)>,
    keys: Keys,
    actions: VecDeque<Action>,
}

/// What may happen to a caller. Numbered for the event log: see [`crate::journal`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Event {
    /// A client calls.
    #[n(0)]
    Call {
        /// The shell's name for the call, among those that are here.
        #[n(0)]
        number: u64,
        /// To whom.
        #[n(1)]
        child: ChildId,
        /// The client's key, or one of this gateway's own; those count up.
        #[n(2)]
        key: CallKey,
        /// See [`Envelope::request_hash`].
        #[n(3)]
        request_hash: u64,
        /// The request.
        #[cbor(n(4), with = "crate::wire::cbor_bytes")]
        body: Bytes,
        /// How long the client waits; [`PATIENCE_MAX`] at most.
        #[n(5)]
        patience: Duration,
    },
    /// The shell has looked the child up in the directory.
    #[n(1)]
    Routed {
        /// Which call asked.
        #[n(0)]
        number: u64,
        /// The child's unit, if there is one.
        #[n(1)]
        unit: Option<UnitId>,
        /// Who owns it, if anybody does.
        #[n(2)]
        route: Option<Route>,
    },
    /// An owner replies. Where an envelope could not be sent at all the shell says so by a reply of its
    /// own: `NotOwner` without a hint where there is no connection, `Overloaded` where a lane is full.
    #[n(2)]
    Reply(#[n(0)] Reply),
    /// The connection to that node is gone, with what was on it.
    #[n(3)]
    PeerLost(#[n(0)] NodeId),
    /// The unit's owner or epoch has changed in the directory.
    #[n(4)]
    Moved(#[n(0)] UnitId, #[n(1)] Option<Route>),
    /// The deadline has come.
    #[n(5)]
    Tick,
}

/// What a caller wants done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Look the child up in the directory, then say [`Event::Routed`].
    Route {
        /// Which call asks.
        number: u64,
        /// Whom to look up.
        child: ChildId,
    },
    /// Send the envelope.
    Send {
        /// To which node.
        to: NodeId,
        /// The unit that it is for.
        unit: UnitId,
        /// The attempt.
        envelope: Envelope,
    },
    /// Tell the client. Exactly one for each call.
    Answer {
        /// Which call.
        number: u64,
        /// What became of it.
        answer: Answer,
    },
    /// Tell every node that these calls are answered (E2).
    Confirm(Confirmed),
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// Done, once.
    Answered {
        /// The answer.
        body: Bytes,
        /// The last record that it reflects.
        reflects: Seq,
        /// All that it reflects is in records.
        durable: bool,
        /// Where it was done.
        node: NodeId,
    },
    /// Not done: the key was used for another request.
    Conflict,
    /// Not done, and no retry will help: the step and its answer do not fit a record.
    TooLarge,
    /// Not done, all the time that the client waited: the unit is quarantined, or no complete replica
    /// of it answers.
    Unavailable,
    /// Not done: a queue or a table is full, here or at the owner.
    Overloaded {
        /// When to try again, in milliseconds.
        retry_after_ms: u32,
    },
    /// The client's patience is over.
    DeadlineExceeded {
        /// Whether an attempt may have been carried out, or still may be. Otherwise the call was not
        /// done, and will not be.
        maybe_done: bool,
    },
}

/// Why an event was refused. Nothing has changed, in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A call of that name is here.
    #[error("a call of that name is here")]
    NumberTaken,
    /// A key of this gateway's own that is not above all before it: the owners may have forgotten it.
    #[error("the key is not above all before it")]
    OldKey,
    /// Nobody waits for this: late or repeated.
    #[error("nobody waits for this")]
    NotExpected,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Call {
    child: ChildId,
    key: CallKey,
    request_hash: u64,
    body: Bytes,
    until: Time,
    step: Step,
    /// The unit, and who owned it, as last heard.
    unit: Option<UnitId>,
    route: Option<Route>,
    /// Attempts without a reply, and where they went.
    in_flight: BTreeMap<u64, NodeId>,
    /// Whether an attempt that is not in flight any more may have been carried out.
    maybe_done: bool,
    /// Attempts one after the other at one owner and epoch.
    tries: u32,
    /// Waits since it last went to another owner.
    pauses: u32,
    /// The last refusal, if that is the last that was heard.
    refused: Option<Answer>,
    /// It has waited once because somebody was overloaded.
    has_waited: bool,
    due: Time,
}

/// What a call waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    /// The shell's word on where to send it.
    Routing,
    /// The reply to this attempt.
    Sent(u64),
    /// The time to try again.
    Paused,
    /// Nothing but the replies to its attempts: it is answered.
    Answered,
}

/// This gateway's own keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Keys {
    /// Which somebody may still present.
    open: BTreeSet<u64>,
    highest: Option<u64>,
    confirmed: Option<u64>,
    /// When to confirm next, if there may be something new.
    at: Option<Time>,
}

impl Caller {
    /// The caller of one start of a node: it has no calls.
    pub fn new(gateway: IncarnationId) -> Caller {
        Caller {
            gateway,
            calls: BTreeMap::new(),
            bytes: 0,
            attempts: BTreeMap::new(),
            next_attempt: 1,
            by_unit: BTreeSet::new(),
            due: BTreeSet::new(),
            keys: Keys::default(),
            actions: VecDeque::new(),
        }
    }

    /// How many calls are here, those included that are answered and have attempts on their way; and
    /// the bytes of their requests. Both have a limit.
    pub fn usage(&self) -> (usize, usize) {
        (self.calls.len(), self.bytes)
    }

    fn on_call(
        &mut self,
        now: Time,
        number: u64,
        child: ChildId,
        key: CallKey,
        request_hash: u64,
        body: Bytes,
        patience: Duration,
    ) -> Result<(), Refused> {
        if self.calls.contains_key(&number) {
            return Err(Refused::NumberTaken);
        }
        let own = own_key(self.gateway, &key);
        if own.is_some_and(|own| self.keys.highest.is_some_and(|highest| own <= highest)) {
            return Err(Refused::OldKey);
        }
        if self.calls.len() >= CALLS_MAX || self.bytes + body.len() > REQUESTS_BYTES_MAX {
            let retry_after_ms = FULL_RETRY_AFTER_MS;
            self.tell(number, Answer::Overloaded { retry_after_ms });
            return Ok(());
        }
        if patience.is_zero() {
            let maybe_done = false;
            self.tell(number, Answer::DeadlineExceeded { maybe_done });
            return Ok(());
        }
        if let Some(own) = own {
            if self.keys.highest.is_none() {
                // There is nothing to confirm before the first.
                self.keys.confirmed = own.checked_sub(1);
            }
            self.keys.open.insert(own);
            self.keys.highest = Some(own);
        }
        self.bytes += body.len();
        let until = now + patience.min(PATIENCE_MAX);
        let call = Call {
            child,
            key,
            request_hash,
            body,
            until,
            step: Step::Paused,
            unit: None,
            route: None,
            in_flight: BTreeMap::new(),
            maybe_done: false,
            tries: 0,
            pauses: 0,
            refused: None,
            has_waited: false,
            due: until,
        };
        self.calls.insert(number, call);
        self.due.insert((until, number));
        self.ask_route(number);
        Ok(())
    }

    fn on_routed(
        &mut self,
        now: Time,
        number: u64,
        unit: Option<UnitId>,
        route: Option<Route>,
    ) -> Result<(), Refused> {
        let call = self.calls.get(&number).ok_or(Refused::NotExpected)?;
        if call.step != Step::Routing {
            return Err(Refused::NotExpected);
        }
        // A hint may have come from a node that has applied more than this one.
        let known = call
            .route
            .filter(|known| route.is_some_and(|route| is_after(known, &route)));
        match known.or(route) {
            Some(route) => self.send(now, number, route),
            None => {
                self.watch_unit(number, unit);
                self.pause(now, number);
            }
        }
        Ok(())
    }

    /// One more attempt.
    fn send(&mut self, now: Time, number: u64, route: Route) {
        self.watch_unit(number, Some(route.unit));
        let Some(call) = self.calls.get_mut(&number) else {
            return;
        };
        if now >= call.until {
            return self.give_up(now, number);
        }
        let attempt = self.next_attempt;
        self.next_attempt += 1;
        if call.in_flight.len() >= IN_FLIGHT_MAX
            && let Some((oldest, _)) = call.in_flight.pop_first()
        {
            self.attempts.remove(&oldest);
            call.maybe_done = true;
        }
        if call.route != Some(route) {
            (call.tries, call.pauses) = (0, 0);
        }
        call.tries += 1;
        call.route = Some(route);
        call.step = Step::Sent(attempt);
        call.in_flight.insert(attempt, route.node);
        self.attempts.insert(attempt, number);
        let left = call.until.since(now).as_millis();
        let envelope = Envelope {
            call: CallId {
                gateway: self.gateway,
                number: attempt,
            },
            to: call.child.clone(),
            key: call.key.clone(),
            request_hash: call.request_hash,
            patience_ms: left.clamp(1, u128::from(u32::MAX)) as u32,
            body: call.body.clone(),
        };
        let silence = silence_before_retry(call.tries);
        self.actions.push_back(Action::Send {
            to: route.node,
            unit: route.unit,
            envelope,
        });
        self.look_again(number, now + silence);
    }

    fn on_reply(&mut self, now: Time, reply: Reply) -> Result<(), Refused> {
        let Reply { call: id, outcome } = reply;
        if id.gateway != self.gateway {
            return Err(Refused::NotExpected);
        }
        let attempt = id.number;
        let number = self.attempts.remove(&attempt);
        let number = number.ok_or(Refused::NotExpected)?;
        let Some(call) = self.calls.get_mut(&number) else {
            return Err(Refused::NotExpected);
        };
        let Some(node) = call.in_flight.remove(&attempt) else {
            return Err(Refused::NotExpected);
        };
        if call.step == Step::Answered {
            if call.in_flight.is_empty() {
                self.forget(now, number);
            }
            return Ok(());
        }
        let current = call.step == Step::Sent(attempt);
        match outcome {
            Outcome::Answered {
                body,
                reflects,
                durable,
            } => {
                let answer = Answer::Answered {
                    body,
                    reflects,
                    durable,
                    node,
                };
                self.answer(now, number, answer);
            }
            Outcome::Conflict => self.answer(now, number, Answer::Conflict),
            Outcome::TooLarge => self.answer(now, number, Answer::TooLarge),
            Outcome::Unknown => {
                call.maybe_done = true;
                if current {
                    call.refused = None;
                    self.pause(now, number);
                }
            }
            // What an earlier attempt was refused for says nothing of the one that is on its way.
            _ if !current => {}
            Outcome::NotOwner { hint } => {
                let sent = call.route;
                call.refused = None;
                match hint.filter(|hint| is_newer(hint, sent)) {
                    Some(hint) => self.send(now, number, hint),
                    None => self.pause(now, number),
                }
            }
            Outcome::Overloaded { retry_after_ms } => {
                self.on_overloaded(now, number, retry_after_ms)
            }
            Outcome::Unavailable => {
                call.refused = Some(Answer::Unavailable);
                call.step = Step::Paused;
                self.look_again(number, now + UNAVAILABLE_RETRY);
            }
        }
        Ok(())
    }

    /// Given back at once, unless there is time for one more attempt after the hint; but never where
    /// another attempt may have been carried out, since then it is not known that the call was not done.
    fn on_overloaded(&mut self, now: Time, number: u64, retry_after_ms: u32) {
        let Some(call) = self.calls.get_mut(&number) else {
            return;
        };
        let span = Duration::from_millis(u64::from(retry_after_ms)).max(PAUSE_FIRST);
        let answer = Answer::Overloaded { retry_after_ms };
        let in_time = now + span < call.until;
        if !call.may_be_done() && (call.has_waited || !in_time) {
            return self.answer(now, number, answer);
        }
        call.has_waited = true;
        call.refused = Some(answer);
        call.step = Step::Paused;
        self.look_again(number, now + span);
    }

    fn on_peer_lost(&mut self, now: Time, node: NodeId) {
        let at_node: Vec<u64> = self
            .calls
            .iter()
            .filter(|(_, call)| call.in_flight.values().any(|at| *at == node))
            .map(|(number, _)| *number)
            .collect();
        for number in at_node {
            let Some(call) = self.calls.get_mut(&number) else {
                continue;
            };
            let lost = |(attempt, at): (&u64, &NodeId)| (*at == node).then_some(*attempt);
            let lost: Vec<u64> = call.in_flight.iter().filter_map(lost).collect();
            for attempt in &lost {
                call.in_flight.remove(attempt);
                self.attempts.remove(attempt);
            }
            call.maybe_done = true;
            match call.step {
                Step::Sent(attempt) if lost.contains(&attempt) => {
                    call.tries = 0;
                    call.refused = None;
                    self.ask_route(number);
                }
                Step::Answered if call.in_flight.is_empty() => self.forget(now, number),
                _ => {}
            }
        }
    }

    fn on_moved(&mut self, now: Time, unit: UnitId, route: Option<Route>) {
        let numbers: Vec<u64> = self
            .by_unit
            .range((unit, 0)..=(unit, u64::MAX))
            .map(|(_, number)| *number)
            .collect();
        for number in numbers {
            let Some(call) = self.calls.get(&number) else {
                continue;
            };
            // A unit without an owner: its next one is said the same way.
            let Some(route) = route else {
                continue;
            };
            let again = match call.step {
                // The shell looks it up from what moved just now, or the call is over.
                Step::Routing | Step::Answered => false,
                Step::Sent(_) => call.route.is_none_or(|known| is_after(&route, &known)),
                Step::Paused => true,
            };
            // The unit may hold the child no more: the directory says who does.
            if again && now < call.until {
                self.ask_route(number);
            }
        }
    }

    fn on_tick(&mut self, now: Time) {
        while let Some((at, number)) = self.due.first().copied() {
            if at > now {
                break;
            }
            let Some(call) = self.calls.get(&number) else {
                self.due.remove(&(at, number));
                continue;
            };
            match call.step {
                Step::Answered => self.forget(now, number),
                _ if now >= call.until => self.give_up(now, number),
                Step::Routing => self.look_again(number, Time::MAX),
                Step::Sent(_) | Step::Paused => self.ask_route(number),
            }
        }
        if self.keys.at.is_some_and(|at| at <= now) {
            self.keys.at = None;
            self.confirm();
        }
    }

    fn ask_route(&mut self, number: u64) {
        let Some(call) = self.calls.get_mut(&number) else {
            return;
        };
        call.step = Step::Routing;
        let child = call.child.clone();
        self.actions.push_back(Action::Route { number, child });
        self.look_again(number, Time::MAX);
    }

    /// Waits for its unit to move, or for a while that grows.
    fn pause(&mut self, now: Time, number: u64) {
        let Some(call) = self.calls.get_mut(&number) else {
            return;
        };
        call.step = Step::Paused;
        let span = PAUSE_FIRST * (1 << call.pauses.min(PAUSE_DOUBLINGS));
        call.pauses += 1;
        self.look_again(number, now + span);
    }

    /// Its client's patience is over.
    fn give_up(&mut self, now: Time, number: u64) {
        let Some(call) = self.calls.get_mut(&number) else {
            return;
        };
        let maybe_done = call.may_be_done();
        let refused = call.refused.take().filter(|_| !maybe_done);
        let answer = refused.unwrap_or(Answer::DeadlineExceeded { maybe_done });
        self.answer(now, number, answer);
    }

    /// Tells the client. The call stays while somebody may still present its key, since until then the
    /// key must not be confirmed.
    fn answer(&mut self, now: Time, number: u64, answer: Answer) {
        self.tell(number, answer);
        let Some(call) = self.calls.get_mut(&number) else {
            return;
        };
        call.step = Step::Answered;
        self.bytes -= call.body.len();
        call.body = Bytes::new();
        let lingers = own_key(self.gateway, &call.key).is_some() && !call.in_flight.is_empty();
        if !lingers {
            return self.forget(now, number);
        }
        call.until = Time::MAX;
        self.watch_unit(number, None);
        self.look_again(number, now + LINGER);
    }

    fn forget(&mut self, now: Time, number: u64) {
        self.watch_unit(number, None);
        let Some(call) = self.calls.remove(&number) else {
            return;
        };
        self.bytes -= call.body.len();
        self.due.remove(&(call.due, number));
        for attempt in call.in_flight.keys() {
            self.attempts.remove(attempt);
        }
        if let Some(own) = own_key(self.gateway, &call.key) {
            self.keys.open.remove(&own);
            self.keys.at.get_or_insert(now + CONFIRM_EVERY);
        }
    }

    fn confirm(&mut self) {
        let upto = match self.keys.open.first() {
            Some(open) => open.checked_sub(1),
            None => self.keys.highest,
        };
        if let Some(upto) = upto.filter(|upto| Some(*upto) > self.keys.confirmed) {
            self.keys.confirmed = Some(upto);
            let gateway = self.gateway;
            self.actions
                .push_back(Action::Confirm(Confirmed { gateway, upto }));
        }
    }

    fn tell(&mut self, number: u64, answer: Answer) {
        self.actions.push_back(Action::Answer { number, answer });
    }

    fn watch_unit(&mut self, number: u64, unit: Option<UnitId>) {
        let Some(call) = self.calls.get_mut(&number) else {
            return;
        };
        if let Some(old) = core::mem::replace(&mut call.unit, unit) {
            self.by_unit.remove(&(old, number));
        }
        if let Some(unit) = unit {
            self.by_unit.insert((unit, number));
        }
    }

    /// At that instant, or when the client's patience is over.
    fn look_again(&mut self, number: u64, at: Time) {
        let Some(call) = self.calls.get_mut(&number) else {
            return;
        };
        self.due.remove(&(call.due, number));
        call.due = at.min(call.until);
        self.due.insert((call.due, number));
    }
}

impl Call {
    fn may_be_done(&self) -> bool {
        self.maybe_done || !self.in_flight.is_empty()
    }
}

impl Machine for Caller {
    type Event = Event;
    type Action = Action;
    type Error = Refused;

    fn handle(&mut self, now: Time, event: Event) -> Result<(), Refused> {
        match event {
            Event::Call {
                number,
                child,
                key,
                request_hash,
                body,
                patience,
            } => self.on_call(now, number, child, key, request_hash, body, patience)?,
            Event::Routed {
                number,
                unit,
                route,
            } => self.on_routed(now, number, unit, route)?,
            Event::Reply(reply) => self.on_reply(now, reply)?,
            Event::PeerLost(node) => self.on_peer_lost(now, node),
            Event::Moved(unit, route) => self.on_moved(now, unit, route),
            Event::Tick => self.on_tick(now),
        }
        Ok(())
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn next_deadline(&self) -> Option<Time> {
        let call = self.due.first().map(|(at, _)| *at);
        [call, self.keys.at].into_iter().flatten().min()
    }
}

/// The number of a key that is this gateway's own.
fn own_key(gateway: IncarnationId, key: &CallKey) -> Option<u64> {
    match key {
        CallKey::Internal {
            gateway: of,
            number,
        } if *of == gateway => Some(*number),
        CallKey::Internal { .. } | CallKey::Client(_) => None,
    }
}

/// Whether the hint knows of a later grant than the one that an attempt went by: following only such
/// hints, two nodes that point at each other cannot keep a call going round.
fn is_newer(hint: &Route, sent: Option<Route>) -> bool {
    sent.is_none_or(|sent| hint.epoch > sent.epoch)
}

/// Whether `one` is a later grant of the same unit.
fn is_after(one: &Route, other: &Route) -> bool {
    one.unit == other.unit && one.epoch > other.epoch
}

/// How long an attempt may be without a reply before another one is sent: it doubles to a second, and is
/// longer when this many have gone to one owner, since the call is at work there and each further attempt
/// takes a place in the child's mailbox.
fn silence_before_retry(tries: u32) -> Duration {
    match tries {
        0 | 1 => SILENCE_FIRST,
        2 => SILENCE_FIRST * 2,
        3 | 4 => SILENCE_FIRST * 4,
        _ => SILENCE_AT_WORK,
    }
}

/// The most calls: as many as one node's clients have at once when every one of them waits, a few
/// megabytes of bookkeeping.
pub const CALLS_MAX: usize = 16 * 1024;

/// The most bytes of their requests, which are kept for another attempt: 64 of the longest.
pub const REQUESTS_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What a client is told to wait when there is no room here, in milliseconds: most calls take less.
pub const FULL_RETRY_AFTER_MS: u32 = 100;

/// The longest patience: half of the time for which an owner keeps a client's key, so that no attempt is
/// sent when its key may be forgotten.
pub const PATIENCE_MAX: Duration = Duration::from_secs(super::calls::KEY_KEPT.as_secs() / 2);

/// Attempts of one call without a reply that are remembered; the oldest is forgotten beyond it.
pub const IN_FLIGHT_MAX: usize = 16;

/// The silence after a first attempt: several times what a healthy call takes.
pub const SILENCE_FIRST: Duration = Duration::from_millis(250);

/// The silence when four attempts have gone to one owner.
pub const SILENCE_AT_WORK: Duration = Duration::from_secs(5);

/// The first wait of a call that nobody could take: a new owner seals within 100 ms.
const PAUSE_FIRST: Duration = Duration::from_millis(25);

/// Up to 400 ms: a takeover that takes longer is said by the directory.
const PAUSE_DOUBLINGS: u32 = 4;

/// A unit whose replicas are gone comes back in minutes, if at all.
pub const UNAVAILABLE_RETRY: Duration = Duration::from_secs(1);

/// How long after its answer a call's key is kept open for attempts that never got a reply: longer than
/// anything stays in a lane or in a mailbox whose node lives.
pub const LINGER: Duration = Duration::from_secs(10);

/// How often it is confirmed, at most: an owner's table holds what a child answers in much longer.
pub const CONFIRM_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
