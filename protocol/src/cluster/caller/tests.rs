//! Calls one by one, and calls in random trouble.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::*;
use crate::id::Epoch;

const GATEWAY: IncarnationId = IncarnationId(7);
const UNIT: UnitId = UnitId(3);

/// A caller, and the actions it has not been asked for.
struct Desk {
    caller: Caller,
    now: Time,
}

impl Desk {
    fn new() -> Desk {
        Desk {
            caller: Caller::new(GATEWAY),
            now: Time::from_millis(1_000),
        }
    }

    fn tell(&mut self, event: Event) -> Vec<Action> {
        assert_eq!(self.caller.handle(self.now, event), Ok(()));
        core::iter::from_fn(|| self.caller.poll_action()).collect()
    }

    /// A call of number 1 with two seconds of patience that is on its way to node 1; its attempt.
    fn sent(&mut self) -> Envelope {
        assert_eq!(
            self.tell(call(1, 2_000)),
            [Action::Route {
                number: 1,
                child: child()
            }]
        );
        self.routed(Some(route(1, 1)))
    }

    fn routed(&mut self, route: Option<Route>) -> Envelope {
        let actions = self.tell(Event::Routed {
            number: 1,
            unit: Some(UNIT),
            route,
        });
        only_send(&actions).1
    }

    fn reply(&mut self, to: &Envelope, outcome: Outcome) -> Vec<Action> {
        let call = to.call;
        self.tell(Event::Reply(Reply { call, outcome }))
    }

    /// What happens when so much time has gone by.
    fn later(&mut self, millis: u64) -> Vec<Action> {
        self.now = self.now + Duration::from_millis(millis);
        self.tell(Event::Tick)
    }

    /// It asks for a route after so long, and not before.
    fn asks_again_after(&mut self, millis: u64) {
        assert_eq!(self.later(millis - 1), []);
        assert_eq!(self.later(1), asks());
    }
}

fn child() -> ChildId {
    ChildId::parse("t/counter/a").expect("it is a child's id")
}

fn call(number: u64, patience: u64) -> Event {
    Event::Call {
        number,
        child: child(),
        key: CallKey::Internal {
            gateway: GATEWAY,
            number,
        },
        request_hash: 5,
        body: Bytes::from_static(b"add 1"),
        patience: Duration::from_millis(patience),
    }
}

fn route(epoch: u64, node: u64) -> Route {
    Route {
        unit: UNIT,
        epoch: Epoch(epoch),
        node: NodeId(node),
    }
}

fn asks() -> [Action; 1] {
    [Action::Route {
        number: 1,
        child: child(),
    }]
}

fn only_send(actions: &[Action]) -> (NodeId, Envelope) {
    match actions {
        [
            Action::Send {
                to,
                unit: UNIT,
                envelope,
            },
        ] => (*to, envelope.clone()),
        other => panic!("{other:?} instead of one envelope"),
    }
}

fn told(answer: Answer) -> [Action; 1] {
    [Action::Answer { number: 1, answer }]
}

fn answered() -> Outcome {
    Outcome::Answered {
        body: Bytes::from_static(b"1"),
        reflects: Seq(1),
        durable: true,
    }
}

fn done_at(node: u64) -> [Action; 1] {
    told(Answer::Answered {
        body: Bytes::from_static(b"1"),
        reflects: Seq(1),
        durable: true,
        node: NodeId(node),
    })
}

#[test]
fn a_call_goes_to_its_owner_and_its_answer_comes_back() {
    let mut desk = Desk::new();
    let envelope = desk.sent();
    assert_eq!(envelope.patience_ms, 2_000);
    assert_eq!(envelope.to, child());
    assert_eq!(desk.reply(&envelope, answered()), done_at(1));
    assert_eq!(desk.caller.usage(), (0, 0));
}

#[test]
fn each_attempt_has_the_same_key_a_number_of_its_own_and_the_patience_that_is_left() {
    let mut desk = Desk::new();
    let mut before = desk.sent();
    for (silence, left) in [(250, 1_750), (500, 1_250), (1_000, 250)] {
        desk.asks_again_after(silence);
        let again = desk.routed(Some(route(1, 1)));
        assert_eq!((&again.key, again.request_hash), (&before.key, 5));
        assert!(again.call.number > before.call.number);
        assert_eq!(again.patience_ms, left);
        before = again;
    }
    let over = told(Answer::DeadlineExceeded { maybe_done: true });
    assert_eq!(desk.later(250), over);
}

#[test]
fn an_answer_to_any_attempt_is_the_answer() {
    let mut desk = Desk::new();
    let first = desk.sent();
    desk.asks_again_after(250);
    let second = desk.routed(Some(route(2, 2)));
    assert_eq!(desk.reply(&first, answered()), done_at(1));
    assert_eq!(desk.reply(&second, answered()), []);
    let repeated = Event::Reply(Reply {
        call: second.call,
        outcome: answered(),
    });
    assert_eq!(
        desk.caller.handle(desk.now, repeated),
        Err(Refused::NotExpected)
    );
}

#[test]
fn a_newer_hint_is_followed_at_once_and_another_one_is_not() {
    let mut desk = Desk::new();
    let first = desk.sent();
    let hint = Some(route(2, 2));
    let (to, second) = only_send(&desk.reply(&first, Outcome::NotOwner { hint }));
    assert_eq!(to, NodeId(2));
    // It points back, or nowhere: two nodes that point at each other do not keep the call going round.
    for hint in [Some(route(1, 1)), Some(route(2, 2)), None] {
        let mut desk = Desk {
            caller: desk.caller.clone(),
            now: desk.now,
        };
        assert_eq!(desk.reply(&second, Outcome::NotOwner { hint }), []);
        desk.asks_again_after(25);
        // The directory here has not heard of the later grant.
        let (to, _) = only_send(&desk.tell(Event::Routed {
            number: 1,
            unit: Some(UNIT),
            route: Some(route(1, 1)),
        }));
        assert_eq!(to, NodeId(2));
    }
}

#[test]
fn an_owner_that_is_not_ready_is_asked_again_ever_more_slowly() {
    let mut desk = Desk::new();
    let mut envelope = desk.sent();
    for pause in [25, 50, 100, 200, 400, 400] {
        assert_eq!(desk.reply(&envelope, Outcome::NotOwner { hint: None }), []);
        desk.asks_again_after(pause);
        envelope = desk.routed(Some(route(1, 1)));
    }
}

#[test]
fn a_call_is_tried_again_at_once_when_its_peer_is_lost_or_its_unit_moves() {
    for (event, at_once) in [
        (Event::PeerLost(NodeId(1)), true),
        (Event::PeerLost(NodeId(2)), false),
        (Event::Moved(UNIT, Some(route(2, 2))), true),
        (Event::Moved(UNIT, Some(route(2, 1))), true),
        (Event::Moved(UNIT, Some(route(1, 1))), false),
        (Event::Moved(UNIT, None), false),
        (Event::Moved(UnitId(4), Some(route(2, 2))), false),
    ] {
        let mut desk = Desk::new();
        desk.sent();
        let expected: &[Action] = if at_once { &asks() } else { &[] };
        assert_eq!(desk.tell(event.clone()), expected, "{event:?}");
    }
}

#[test]
fn a_unit_without_an_owner_is_waited_for_until_it_has_one() {
    let mut desk = Desk::new();
    desk.tell(call(1, 2_000));
    let nobody = Event::Routed {
        number: 1,
        unit: Some(UNIT),
        route: None,
    };
    assert_eq!(desk.tell(nobody), []);
    assert_eq!(desk.tell(Event::Moved(UNIT, Some(route(2, 2)))), asks());
    assert_eq!(desk.routed(Some(route(2, 2))).patience_ms, 2_000);
}

#[test]
fn what_nobody_knows_is_asked_again_with_the_same_key() {
    let mut desk = Desk::new();
    let first = desk.sent();
    assert_eq!(desk.reply(&first, Outcome::Unknown), []);
    desk.asks_again_after(25);
    let second = desk.routed(Some(route(1, 1)));
    assert_eq!(second.key, first.key);
    assert_eq!(desk.reply(&second, answered()), done_at(1));
}

#[test]
fn overloaded_is_given_back_after_one_more_attempt_or_at_once_where_there_is_no_time_for_it() {
    let full = |retry_after_ms| Outcome::Overloaded { retry_after_ms };
    let mut desk = Desk::new();
    let first = desk.sent();
    let late = told(Answer::Overloaded {
        retry_after_ms: 2_000,
    });
    let mut hurried = Desk {
        caller: desk.caller.clone(),
        now: desk.now,
    };
    assert_eq!(hurried.reply(&first, full(2_000)), late);

    assert_eq!(desk.reply(&first, full(300)), []);
    desk.asks_again_after(300);
    let second = desk.routed(Some(route(1, 1)));
    let given_back = told(Answer::Overloaded { retry_after_ms: 40 });
    assert_eq!(desk.reply(&second, full(40)), given_back);
}

#[test]
fn overloaded_is_not_said_of_a_call_that_may_have_been_done() {
    let mut desk = Desk::new();
    desk.sent();
    desk.tell(Event::PeerLost(NodeId(1)));
    for _ in 0..10 {
        let again = desk.routed(Some(route(1, 1)));
        let full = Outcome::Overloaded {
            retry_after_ms: 100,
        };
        assert_eq!(desk.reply(&again, full), []);
        desk.asks_again_after(100);
    }
    let over = told(Answer::DeadlineExceeded { maybe_done: true });
    assert_eq!(desk.later(2_000), over);
}

#[test]
fn unavailable_is_tried_until_the_patience_is_over_and_then_said() {
    let mut desk = Desk::new();
    let envelope = desk.sent();
    assert_eq!(desk.reply(&envelope, Outcome::Unavailable), []);
    desk.asks_again_after(1_000);
    let envelope = desk.routed(Some(route(1, 1)));
    assert_eq!(desk.reply(&envelope, Outcome::Unavailable), []);
    assert_eq!(desk.later(1_000), told(Answer::Unavailable));
}

#[test]
fn what_no_retry_changes_is_said_at_once() {
    for (outcome, answer) in [
        (Outcome::Conflict, Answer::Conflict),
        (Outcome::TooLarge, Answer::TooLarge),
    ] {
        let mut desk = Desk::new();
        let envelope = desk.sent();
        assert_eq!(desk.reply(&envelope, outcome), told(answer));
    }
}

#[test]
fn a_call_that_reached_nobody_was_not_done_and_that_is_said() {
    let mut desk = Desk::new();
    let envelope = desk.sent();
    desk.reply(&envelope, Outcome::NotOwner { hint: None });
    let over = told(Answer::DeadlineExceeded { maybe_done: false });
    desk.asks_again_after(25);
    assert_eq!(desk.later(2_000), over);
    let late = Event::Routed {
        number: 1,
        unit: Some(UNIT),
        route: Some(route(1, 1)),
    };
    assert_eq!(
        desk.caller.handle(desk.now, late),
        Err(Refused::NotExpected)
    );
}

#[test]
fn a_full_table_and_no_patience_are_said_at_once() {
    let mut desk = Desk::new();
    for number in 1..=CALLS_MAX as u64 {
        desk.tell(call(number, 1_000));
    }
    let number = CALLS_MAX as u64 + 1;
    let answer = Answer::Overloaded {
        retry_after_ms: FULL_RETRY_AFTER_MS,
    };
    assert_eq!(
        desk.tell(call(number, 1_000)),
        [Action::Answer { number, answer }]
    );

    let mut desk = Desk::new();
    let over = told(Answer::DeadlineExceeded { maybe_done: false });
    assert_eq!(desk.tell(call(1, 0)), over);
    assert_eq!(desk.caller.usage(), (0, 0));
}

#[test]
fn long_requests_fill_the_table_by_their_bytes() {
    let mut desk = Desk::new();
    let long = Bytes::from(alloc::vec![0; REQUESTS_BYTES_MAX / 4]);
    for number in 1..=5 {
        let Event::Call {
            child,
            key,
            patience,
            ..
        } = call(number, 1_000)
        else {
            continue;
        };
        let actions = desk.tell(Event::Call {
            number,
            child,
            key,
            request_hash: 5,
            body: long.clone(),
            patience,
        });
        let refused = matches!(actions[..], [Action::Answer { .. }]);
        assert_eq!(refused, number == 5, "{number}");
    }
}

#[test]
fn a_name_or_a_key_that_was_used_is_refused() {
    let mut desk = Desk::new();
    desk.tell(call(2, 1_000));
    let handle = |desk: &mut Desk, event| desk.caller.handle(desk.now, event);
    assert_eq!(handle(&mut desk, call(2, 1_000)), Err(Refused::NumberTaken));
    assert_eq!(handle(&mut desk, call(1, 1_000)), Err(Refused::OldKey));
    let foreign = Event::Reply(Reply {
        call: CallId {
            gateway: IncarnationId(8),
            number: 1,
        },
        outcome: answered(),
    });
    assert_eq!(handle(&mut desk, foreign), Err(Refused::NotExpected));
}

#[test]
fn keys_are_confirmed_up_to_the_first_that_waits_and_once_a_second() {
    let mut desk = Desk::new();
    let confirm = |upto| {
        let gateway = GATEWAY;
        [Action::Confirm(Confirmed { gateway, upto })]
    };
    let mut attempts = Vec::new();
    for number in 1..=4 {
        desk.tell(call(number, 60_000));
        let actions = desk.tell(Event::Routed {
            number,
            unit: Some(UNIT),
            route: Some(route(1, 1)),
        });
        attempts.push(only_send(&actions).1);
    }
    for answered_now in [1, 3, 0] {
        desk.reply(&attempts[answered_now], answered());
    }
    desk.now = desk.now + CONFIRM_EVERY;
    let actions = desk.tell(Event::Tick);
    assert_eq!(actions.last(), confirm(2).last());
    desk.reply(&attempts[2], answered());
    assert_eq!(desk.later(999), []);
    assert_eq!(desk.later(1), confirm(4));
    assert_eq!(desk.caller.next_deadline(), None);
}

#[test]
fn a_key_stays_open_while_an_attempt_with_it_is_on_its_way() {
    let confirm = [Action::Confirm(Confirmed {
        gateway: GATEWAY,
        upto: 1,
    })];
    for how_it_ends in ["a reply", "the peer is lost", "long enough"] {
        let mut desk = Desk::new();
        let first = desk.sent();
        desk.asks_again_after(250);
        let second = desk.routed(Some(route(2, 2)));
        assert_eq!(desk.reply(&second, answered()), done_at(2));
        assert_eq!(desk.later(5_000), [], "{how_it_ends}");
        assert_eq!(desk.caller.usage(), (1, 0));
        match how_it_ends {
            "a reply" => assert_eq!(desk.reply(&first, Outcome::Unknown), []),
            "the peer is lost" => assert_eq!(desk.tell(Event::PeerLost(NodeId(1))), []),
            _ => assert_eq!(desk.later(5_000), []),
        }
        assert_eq!(desk.later(1_000), confirm, "{how_it_ends}");
        assert_eq!(desk.caller.next_deadline(), None, "{how_it_ends}");
    }
}

/// Xorshift: enough to pick with.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// A cluster that loses, repeats and delays, whose units move and whose peers are lost.
struct Trouble {
    desk: Desk,
    rng: Rng,
    seed: u64,
    /// Answers by call.
    told: BTreeMap<u64, Answer>,
    until: BTreeMap<u64, Time>,
    /// On their way: whose, to which node, since when.
    envelopes: Vec<(u64, NodeId, Time, Envelope)>,
    attempts: BTreeSet<u64>,
    /// Calls that an owner has carried out.
    done: BTreeSet<u64>,
    confirmed: u64,
    confirmed_at: Option<Time>,
    epoch: u64,
}

impl Trouble {
    fn event(&mut self, event: Event) {
        // A refusal is an answer too: much of this is late or repeated.
        let _ = self.desk.caller.handle(self.desk.now, event);
        while let Some(action) = self.desk.caller.poll_action() {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        let (seed, now) = (self.seed, self.desk.now);
        match action {
            Action::Route { number, .. } => {
                let owner = route(self.epoch, 1 + self.epoch % 3);
                let route = (self.rng.below(5) > 0).then_some(owner);
                let unit = Some(UNIT);
                self.event(Event::Routed {
                    number,
                    unit,
                    route,
                });
            }
            Action::Send { to, envelope, .. } => {
                let CallKey::Internal { number, .. } = envelope.key else {
                    panic!("seed {seed}: another key");
                };
                let left = self.until[&number].since(now);
                assert!(!left.is_zero(), "seed {seed}: sent after its time");
                assert!(
                    envelope.patience() <= left.max(Duration::from_millis(1)),
                    "seed {seed}: too patient"
                );
                assert!(!self.told.contains_key(&number), "seed {seed}: sent on");
                assert!(number > self.confirmed, "seed {seed}: sent a confirmed key");
                assert!(
                    self.attempts.insert(envelope.call.number),
                    "seed {seed}: one number twice"
                );
                self.envelopes.push((number, to, now, envelope));
            }
            Action::Answer { number, answer } => {
                assert!(
                    !(says_not_done(&answer) && self.done.contains(&number)),
                    "seed {seed}: {answer:?} of call {number}, which was done"
                );
                let before = self.told.insert(number, answer);
                assert_eq!(before, None, "seed {seed}: call {number} answered twice");
            }
            Action::Confirm(Confirmed { upto, .. }) => {
                assert!(upto > self.confirmed, "seed {seed}");
                let since = self.confirmed_at.map(|at| now.since(at));
                assert!(since.is_none_or(|since| since >= CONFIRM_EVERY));
                for number in self.confirmed + 1..=upto {
                    assert!(self.told.contains_key(&number), "seed {seed}: {number}");
                }
                (self.confirmed, self.confirmed_at) = (upto, Some(now));
            }
        }
    }

    /// An owner does something with an envelope, or somebody loses it.
    fn one_envelope(&mut self) {
        if self.envelopes.is_empty() {
            return;
        }
        let at = self.rng.below(self.envelopes.len() as u64) as usize;
        let (number, _, since, envelope) = self.envelopes.swap_remove(at);
        if self.desk.now.since(since) >= LINGER {
            return;
        }
        let call = envelope.call;
        assert!(
            number > self.confirmed,
            "seed {}: the key of call {number} is confirmed and comes again",
            self.seed
        );
        let refusal = match self.rng.below(10) {
            0 => Some(Outcome::NotOwner { hint: None }),
            1 => Some(Outcome::NotOwner {
                hint: Some(route(self.epoch, 1 + self.epoch % 3)),
            }),
            2 => Some(Outcome::Overloaded {
                retry_after_ms: self.rng.below(400) as u32,
            }),
            3 => Some(Outcome::Unavailable),
            4 => Some(Outcome::Unknown),
            _ => None,
        };
        // The owner remembers what it has done: every attempt after it gets the answer.
        let reached = self.rng.below(4) > 0;
        let outcome = match refusal {
            Some(refusal) => refusal,
            None if reached => {
                let told = self.told.get(&number);
                assert!(
                    !told.is_some_and(says_not_done),
                    "seed {}: call {number} is done after {told:?}",
                    self.seed
                );
                self.done.insert(number);
                answered()
            }
            None => return,
        };
        if self.rng.below(4) > 0 {
            self.event(Event::Reply(Reply {
                call,
                outcome: outcome.clone(),
            }));
        }
        if self.rng.below(8) == 0 {
            self.event(Event::Reply(Reply { call, outcome }));
        }
    }
}

fn says_not_done(answer: &Answer) -> bool {
    !matches!(
        answer,
        Answer::Answered { .. } | Answer::DeadlineExceeded { maybe_done: true }
    )
}

#[test]
fn every_call_has_exactly_one_answer_and_it_is_true() {
    const CALLS: u64 = 60;
    let mut kinds_of_answers = BTreeSet::new();
    for seed in 1..=400 {
        let mut trouble = Trouble {
            desk: Desk::new(),
            rng: Rng(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15) | 1),
            seed,
            told: BTreeMap::new(),
            until: BTreeMap::new(),
            envelopes: Vec::new(),
            attempts: BTreeSet::new(),
            done: BTreeSet::new(),
            confirmed: 0,
            confirmed_at: None,
            epoch: 1,
        };
        let mut called = 0;
        for _ in 0..6_000 {
            let step = Duration::from_millis(trouble.rng.below(20));
            trouble.desk.now = trouble.desk.now + step;
            match trouble.rng.below(12) {
                0 if called < CALLS => {
                    called += 1;
                    let patience = trouble.rng.below(4_000);
                    let until = trouble.desk.now + Duration::from_millis(patience);
                    trouble.until.insert(called, until);
                    trouble.event(call(called, patience));
                }
                1 if trouble.rng.below(8) == 0 => {
                    trouble.epoch += 1;
                    let owner = route(trouble.epoch, 1 + trouble.epoch % 3);
                    let route = (trouble.rng.below(3) > 0).then_some(owner);
                    trouble.event(Event::Moved(UNIT, route));
                }
                2 if trouble.rng.below(8) == 0 => {
                    let node = NodeId(1 + trouble.rng.below(3));
                    trouble.envelopes.retain(|(_, to, _, _)| *to != node);
                    trouble.event(Event::PeerLost(node));
                }
                3..=5 => trouble.one_envelope(),
                _ => {
                    let due = trouble.desk.caller.next_deadline();
                    if due.is_some_and(|due| due <= trouble.desk.now) {
                        trouble.event(Event::Tick);
                    }
                }
            }
        }
        for _ in 0..100 {
            if let Some(due) = trouble.desk.caller.next_deadline() {
                trouble.desk.now = trouble.desk.now.max(due);
                trouble.event(Event::Tick);
            }
        }
        assert_eq!(trouble.told.len() as u64, called, "seed {seed}");
        assert_eq!(trouble.confirmed, called, "seed {seed}");
        assert_eq!(trouble.desk.caller.usage(), (0, 0), "seed {seed}");
        assert_eq!(trouble.desk.caller.next_deadline(), None, "seed {seed}");
        assert!(trouble.desk.caller.attempts.is_empty(), "seed {seed}");
        assert!(trouble.desk.caller.by_unit.is_empty(), "seed {seed}");
        kinds_of_answers.extend(
            trouble
                .told
                .values()
                .map(core::mem::discriminant)
                .map(|kind| alloc::format!("{kind:?}")),
        );
    }
    assert_eq!(kinds_of_answers.len(), 4, "{kinds_of_answers:?}");
}
