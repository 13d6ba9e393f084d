//! Clients: they call with keys, retry with the same key at any node, and remember what they were
//! told.
//!
//! Owns: what is called, when it is retried, and what the answers are held against. Never gives up a
//! key while it might still take effect unseen, except at the very end of its patience.

use super::*;
use understudy_protocol::wire::envelope::{CallId, CallKey, Outcome};

/// One client.
pub(crate) struct Client {
    rng: Rng,
    /// Numbers the attempts: a turn that is for an earlier one is void.
    attempt: u64,
    made: u64,
    call: Option<Call>,
    /// The last answered operation, to be asked again now and then.
    last: Option<Call>,
}

#[derive(Clone, Debug)]
struct Call {
    child: ChildId,
    key: u64,
    /// The operation; none for a read.
    op: Option<u64>,
    /// What anybody had been told before this call was first made.
    floor: u64,
    began: True,
    tries: u32,
    first_to: Option<usize>,
    /// It reuses a key for another request: a conflict is the right answer.
    conflicts: bool,
    /// It is asked again though it was answered.
    again: bool,
}

impl Client {
    pub(crate) fn new(nth: usize, seed: u64) -> Client {
        let rng = Rng::new(seed, &format!("client {nth}"));
        Client {
            rng,
            attempt: 0,
            made: 0,
            call: None,
            last: None,
        }
    }

    /// A call that should have been answered long ago.
    pub(crate) fn waits_too_long(&self, now: True) -> Option<String> {
        let call = self.call.as_ref()?;
        (now.since(call.began) >= ANSWER_BOUND).then(|| {
            format!(
                "{}: a call begun at {:.3} s is not answered",
                call.child,
                call.began.0 as f64 / 1e9
            )
        })
    }
}

impl World {
    pub(super) fn client_turn(&mut self, client: usize, attempt: u64) {
        if self.clients[client].attempt != attempt {
            return;
        }
        if self.clients[client].call.is_none() {
            if self.now >= self.scenario.last_call {
                return;
            }
            self.new_call(client);
        }
        let nodes = self.nodes.len() as u64;
        let of = &mut self.clients[client];
        let Some(call) = &mut of.call else { return };
        if self.now.since(call.began) >= PATIENCE {
            // Nobody can say whether it took effect; the key is not used again.
            of.call = None;
            of.attempt += 1;
            let attempt = of.attempt;
            self.after(
                Duration::from_millis(50),
                Happening::Client { client, attempt },
            );
            return;
        }
        call.tries += 1;
        let to = of.rng.below(nodes) as usize;
        call.first_to.get_or_insert(to);
        of.attempt += 1;
        let attempt = of.attempt;
        let op = call.op.unwrap_or(0);
        let request_hash = op ^ u64::from(call.conflicts);
        let envelope = Envelope {
            call: CallId {
                gateway: IncarnationId(client as u64),
                number: attempt,
            },
            to: call.child.clone(),
            key: CallKey::Client(format!("{:x}", call.key)),
            request_hash,
            patience_ms: TRY_AGAIN.as_millis() as u32,
            body: bytes::Bytes::copy_from_slice(&op.to_be_bytes()),
        };
        if self.net_lets_through() {
            let delay = self.net.delay();
            let life = self.nodes[to].life;
            let message = Message::Call {
                envelope,
                forwarded: false,
            };
            self.after(
                delay,
                Happening::Deliver {
                    to,
                    life,
                    from: to,
                    message,
                },
            );
        }
        self.after(TRY_AGAIN, Happening::Client { client, attempt });
    }

    fn new_call(&mut self, client: usize) {
        let floor = |judge: &Judge, child: &ChildId| judge.replied_value(child);
        let of = &mut self.clients[client];
        let dice = of.rng.below(100);
        if let Some(last) = of.last.clone().filter(|_| dice < 6) {
            // The same key again, with the same request or with another.
            let conflicts = dice < 2;
            let floor = floor(&self.judge, &last.child);
            let call = Call {
                began: self.now,
                tries: 0,
                floor,
                conflicts,
                again: true,
                ..last
            };
            of.call = Some(call);
            return;
        }
        of.made += 1;
        let all = self.light.len() + self.dedicated.len();
        let mut nth = of.rng.below(all as u64) as usize;
        let poisoned = self.poisoned.as_ref();
        let spare = |nth: usize, light: &[ChildId], dedicated: &[ChildId]| {
            if nth < light.len() {
                light[nth].clone()
            } else {
                dedicated[nth - light.len()].clone()
            }
        };
        let mut child = spare(nth, &self.light, &self.dedicated);
        // The poisonous one is called now and then: each call costs a process.
        if Some(&child) == poisoned && of.rng.chance(700) {
            nth = of.rng.below(self.light.len() as u64) as usize;
            child = spare(nth, &self.light, &self.dedicated);
        }
        let key = ((client as u64 + 1) << 32) | of.made;
        let op = of.rng.chance(700).then_some(key);
        let floor = floor(&self.judge, &child);
        of.call = Some(Call {
            child,
            key,
            op,
            floor,
            began: self.now,
            tries: 0,
            first_to: None,
            conflicts: false,
            again: false,
        });
    }

    pub(super) fn on_reply(&mut self, client: usize, reply: Reply, from: usize, excused: bool) {
        let Some(of) = self.clients.get_mut(client) else {
            // One of a flood.
            if matches!(reply.outcome, Outcome::Overloaded { .. }) {
                self.judge.coverage.reach(Path::Overloaded);
            }
            return;
        };
        if reply.call.number != of.attempt {
            return;
        }
        let Some(call) = of.call.clone() else { return };
        match reply.outcome {
            Outcome::Answered { body, reflects, .. } => {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&body);
                let value = u64::from_be_bytes(bytes);
                if call.conflicts && call.op.is_some() {
                    self.judge.fail(
                        "keys",
                        format!("{}: another request got the first's answer", call.child),
                    );
                    return;
                }
                // A repeated answer says what was true then.
                let floor = if call.again { 0 } else { call.floor };
                self.judge
                    .replied(&call.child, reflects, call.op, value, floor, excused);
                if call.again && call.op.is_some() {
                    self.judge.coverage.reach(Path::DuplicateAnswered);
                }
                if call.tries > 1 && call.first_to.is_some_and(|first| first != from) {
                    self.judge.coverage.reach(Path::RetryAcrossFailover);
                }
                self.figures.answered += 1;
                self.last_answer = Some((call.child.clone(), value));
                let what = format!("{} answered {value}", call.child);
                self.trace(12, from, || what);
                self.done(client, call);
            }
            Outcome::Conflict => {
                if !call.conflicts {
                    self.judge
                        .fail("keys", format!("{}: a conflict nobody made", call.child));
                    return;
                }
                self.judge.coverage.reach(Path::KeyConflict);
                self.done(client, call);
            }
            Outcome::Overloaded { .. } => {
                self.judge.coverage.reach(Path::Overloaded);
                self.again(client);
            }
            Outcome::TooLarge => self
                .judge
                .fail("keys", "a small step was called too large".into()),
            Outcome::NotOwner { .. } | Outcome::Unavailable | Outcome::Unknown => {
                self.again(client)
            }
        }
    }

    fn done(&mut self, client: usize, call: Call) {
        let of = &mut self.clients[client];
        of.last = call.op.map(|_| call);
        of.call = None;
        of.attempt += 1;
        let attempt = of.attempt;
        let think = of
            .rng
            .span(Duration::from_millis(5), Duration::from_millis(400));
        self.after(think, Happening::Client { client, attempt });
    }

    fn again(&mut self, client: usize) {
        let of = &mut self.clients[client];
        let soon = of
            .rng
            .span(Duration::from_millis(20), Duration::from_millis(120));
        let attempt = of.attempt;
        self.after(soon, Happening::Client { client, attempt });
    }
}

/// The operation that a request asks for; none for a read.
pub(super) fn op_in(body: &[u8]) -> Option<u64> {
    Some(crate::judge::op_of(body)).filter(|op| *op != 0)
}

/// After how long a call is tried again at another node.
const TRY_AGAIN: Duration = Duration::from_millis(400);

/// How long a client goes on: well within the time that its key is kept.
const PATIENCE: Duration = Duration::from_secs(25);

/// After the calm a call is answered within this.
const ANSWER_BOUND: Duration = Duration::from_secs(10);
