//! What befalls the cluster, how it is mended, and what an operator does meanwhile.
//!
//! Owns: carrying out the scenario. One budget is kept: a disk is lost or damaged only while no other
//! loss is still being mended (I2 promises the loss of any one node, not of two).

use super::*;
use understudy_protocol::cluster::agent::Reshape;
use understudy_protocol::cluster::directory::{Formation, Needs, ROOT};
use understudy_protocol::id::{SlotRange, UnitId};
use understudy_protocol::supervision::{Backoff, Intensity, Policy, RestartType, Strategy};
use understudy_protocol::wire::envelope::{CallId, CallKey};
use understudy_protocol::wire::replica::Scope;

use crate::net::Quality;
use crate::scenario::{Fault, Group, Victim, quality};

impl World {
    pub(super) fn strike(&mut self, nth: usize) {
        let (_, fault) = self.scenario.faults[nth].clone();
        self.figures.faults += 1;
        self.tell(20, || format!("fault: {fault:?}"));
        match fault {
            Fault::Kill(victim, back) => {
                let node = self.victim(victim);
                self.end_process(node, "kill -9");
                self.nodes[node].restart_at = None;
                self.come_back(node, back);
            }
            Fault::Crash(victim, back) => {
                let node = self.victim(victim);
                self.crash(node, back);
            }
            Fault::LoseDisk(victim, back) => {
                let node = self.victim(victim);
                if self.is_whole() {
                    self.crash(node, back);
                    self.new_disk(node);
                }
            }
            Fault::DamageLast(victim, back) => {
                let node = self.victim(victim);
                if self.is_whole() {
                    self.crash(node, back);
                    if let Some(child) = self.stored_child(node) {
                        self.nodes[node].disk.store.lose_last(&child);
                    }
                }
            }
            Fault::Scrub(victim) => {
                let node = self.victim(victim);
                if self.is_whole() && self.nodes[node].runs() && !self.nodes[node].hung {
                    self.scrub(node);
                }
            }
            Fault::PowerLoss(back) => {
                self.judge.coverage.reach(Path::PowerLoss);
                for node in 0..self.nodes.len() {
                    let more = self.rng.span(Duration::ZERO, Duration::from_millis(1_500));
                    self.crash(node, back + more);
                }
            }
            Fault::Stop(victim, span) => {
                let node = self.victim(victim);
                if self.nodes[node].runs() {
                    self.nodes[node].stopped = true;
                    self.after(
                        span,
                        Happening::Mend {
                            what: Mend::Continue(node),
                        },
                    );
                }
            }
            Fault::Freeze(victim, span) => self.freeze(victim, span, false),
            Fault::FreezeClock(victim, span) => self.freeze(victim, span, true),
            Fault::Hang(victim, span) => {
                let node = self.victim(victim);
                if self.nodes[node].runs() {
                    self.nodes[node].hung = true;
                    self.after(
                        span,
                        Happening::Mend {
                            what: Mend::Unhang(node),
                        },
                    );
                }
            }
            Fault::Split(side, span) => {
                self.cut(
                    |from, to| side.contains(&from) != side.contains(&to),
                    &BOTH,
                    span,
                );
            }
            Fault::OneWay(side, span) => {
                self.cut(
                    |from, to| side.contains(&from) && !side.contains(&to),
                    &BOTH,
                    span,
                );
            }
            Fault::Bridge(middle, side, span) => {
                let apart = |from: usize, to: usize| {
                    from != middle && to != middle && side.contains(&from) != side.contains(&to)
                };
                self.cut(apart, &BOTH, span);
            }
            Fault::Isolate(victim, span) => {
                let node = self.victim(victim);
                self.cut(|from, to| from == node || to == node, &BOTH, span);
            }
            Fault::BlockHeart(victim, span) => {
                let node = self.victim(victim);
                self.cut(|from, to| from == node || to == node, &[Lane::Heart], span);
            }
            Fault::BlockMain(victim, span) => {
                let node = self.victim(victim);
                self.cut(|from, to| from == node || to == node, &[Lane::Main], span);
            }
            Fault::BlockHearts(one, other, span) => {
                let pair = [(one, other), (other, one)];
                self.cut(|from, to| pair.contains(&(from, to)), &[Lane::Heart], span);
            }
            Fault::Degrade(degree, span) => {
                self.net.set_quality(quality(degree));
                self.quality_number += 1;
                let what = Mend::Quality(self.quality_number);
                self.after(span, Happening::Mend { what });
            }
            Fault::SlowDisk(victim, span) => {
                let node = self.victim(victim);
                // A stall that it follows is over: what waits for the disk goes on, slowly.
                self.mend_disk(node);
                let extra = self
                    .rng
                    .span(Duration::from_millis(5), Duration::from_millis(200));
                self.nodes[node].disk_extra = Some(extra);
                self.after(
                    span,
                    Happening::Mend {
                        what: Mend::Disk(node),
                    },
                );
            }
            Fault::StallDisk(victim, span) => {
                let node = self.victim(victim);
                self.nodes[node].disk_extra = None;
                self.after(
                    span,
                    Happening::Mend {
                        what: Mend::Disk(node),
                    },
                );
            }
            Fault::Flood(calls) => self.flood(calls),
            Fault::ChildDies => {
                if let Some((node, child)) = self.running_child(|_| true) {
                    self.kill_child(node, &child);
                }
            }
            Fault::ChildHangs => {
                if let Some((node, child)) = self.running_child(|_| true) {
                    let process = self.nodes[node].process.as_mut().expect("it runs a child");
                    if let Some(known) = process.children.get_mut(&child) {
                        known.hangs = true;
                    }
                }
            }
            Fault::CrashLoop(span) => {
                let until = self.now.after(span);
                self.crash_loop(until);
            }
            Fault::Drain(node, span) => {
                let node_id = self.nodes[node].id;
                self.operate(Command::Drain {
                    node: node_id,
                    draining: true,
                });
                self.after(
                    span,
                    Happening::Mend {
                        what: Mend::Undrain(node),
                    },
                );
            }
            Fault::SetTtl(ttl) => self.operate(Command::SetTtl(ttl)),
            Fault::Reshape(dice) => self.reshape(dice),
            Fault::Move(dice) => self.move_unit(dice),
            Fault::RollBack => self.roll_back(),
        }
    }

    pub(super) fn mend(&mut self, what: Mend) {
        match what {
            Mend::Continue(node) => {
                if std::mem::take(&mut self.nodes[node].stopped) {
                    self.trace(21, node, || "SIGCONT".into());
                    self.resume(node);
                }
            }
            Mend::Thaw(node) => self.thaw(node),
            Mend::Unhang(node) => {
                if std::mem::take(&mut self.nodes[node].hung) {
                    self.resume(node);
                }
            }
            Mend::Heal(number) if number == self.cut_number => {
                self.net.heal();
                self.tell(22, || "the network is whole".into());
            }
            Mend::Quality(number) if number == self.quality_number => {
                self.net.set_quality(Quality::GOOD)
            }
            Mend::Heal(_) | Mend::Quality(_) => {}
            Mend::Disk(node) => self.mend_disk(node),
            Mend::Undrain(node) => {
                let node = self.nodes[node].id;
                self.operate(Command::Drain {
                    node,
                    draining: false,
                });
            }
        }
    }

    /// Everything is mended; from now on the cluster must come to rest.
    pub(super) fn calm_down(&mut self) {
        self.calm = true;
        self.tell(23, || "calm".into());
        self.net.heal();
        self.net.set_quality(Quality::GOOD);
        for node in 0..self.nodes.len() {
            self.mend_disk(node);
            self.thaw(node);
            let stopped = std::mem::take(&mut self.nodes[node].stopped);
            let hung = std::mem::take(&mut self.nodes[node].hung);
            if stopped || hung {
                self.resume(node);
            }
            if self.nodes[node].process.is_none() {
                self.nodes[node].restart_at = None;
                self.come_back(node, Duration::from_millis(300));
            }
            let id = self.nodes[node].id;
            self.operate(Command::Drain {
                node: id,
                draining: false,
            });
        }
        self.after(Duration::from_secs(2), Happening::Setup);
    }

    fn resume(&mut self, node: usize) {
        // What is due by the clock comes before what has waited: a lease that has lapsed ends the
        // process before it reads its mailbox.
        self.nodes[node].wake_at = Some(self.now);
        self.wake(node);
        let mut waiting = std::mem::take(&mut self.nodes[node].backlog);
        while let Some(what) = waiting.pop_front() {
            self.happen(what);
        }
        self.settle(node);
    }

    fn freeze(&mut self, victim: Victim, span: Duration, clock_too: bool) {
        let node = self.victim(victim);
        if self.nodes[node].runs() {
            self.nodes[node].frozen = Some(clock_too.then_some(self.now));
            self.after(
                span,
                Happening::Mend {
                    what: Mend::Thaw(node),
                },
            );
        }
    }

    fn thaw(&mut self, node: usize) {
        let Some(clock) = self.nodes[node].frozen.take() else {
            return;
        };
        if let Some(since) = clock {
            self.nodes[node].clock.stood_still(since, self.now);
            if let Some(process) = &mut self.nodes[node].process {
                // L2: a paused virtual machine may break the bound; state stays safe all the same.
                process.excused = true;
            }
        }
        self.trace(24, node, || "thaws".into());
        let local = self.nodes[node].show(self.now);
        if let Some(warden) = &mut self.nodes[node].warden {
            warden.thaws(self.now, local);
        }
        self.nodes[node].warden_wake_at = None;
        self.tell_warden(node, warden::Event::Tick);
        self.resume(node);
    }

    fn mend_disk(&mut self, node: usize) {
        let stalled = self.nodes[node]
            .disk_extra
            .replace(Duration::ZERO)
            .is_none();
        if stalled {
            for store in [false, true] {
                let disk = &mut self.nodes[node].disk;
                let flushing = if store {
                    &mut disk.store_flushing
                } else {
                    &mut disk.raft_flushing
                };
                *flushing = None;
                self.flush(node, store);
            }
        }
    }

    fn victim(&mut self, victim: Victim) -> usize {
        let named = match victim {
            Victim::Node(node) => Some(node),
            Victim::Leader => self.leader(),
            Victim::Member(nth) => {
                let set = self
                    .judge
                    .truth
                    .units()
                    .values()
                    .last()
                    .map(|unit| &unit.set);
                let store = set.and_then(|set| set.iter().nth(nth % set.len().max(1)));
                store.and_then(|store| self.node_of_store(*store))
            }
            Victim::Owner => {
                let mut owned: BTreeMap<usize, usize> = BTreeMap::new();
                for unit in self.judge.truth.units().values() {
                    if let Some(owner) = unit.owner {
                        *owned.entry(self.node_of(owner.node)).or_default() += 1;
                    }
                }
                owned
                    .into_iter()
                    .max_by_key(|(_, count)| *count)
                    .map(|(node, _)| node)
            }
        };
        let node = named.unwrap_or(0);
        self.last_victim = Some(node);
        node
    }

    pub(super) fn leader(&self) -> Option<usize> {
        let leads = |of: &Node| {
            of.process
                .as_ref()
                .is_some_and(|process| process.controller.is_leading())
        };
        self.nodes.iter().position(|of| of.runs() && leads(of))
    }

    fn crash(&mut self, node: usize, back: Duration) {
        let life = self.nodes[node].life;
        self.end_process(node, "the machine stops");
        let of = &mut self.nodes[node];
        // The warden stops with it, and says nothing.
        of.warden = None;
        of.frozen = None;
        of.restart_at = None;
        of.life = life + 1;
        of.disk.crash(0, false);
        self.come_back(node, back);
    }

    /// The disk is gone: the node comes back with a new store, which is nobody it was (the core
    /// review's second finding).
    fn new_disk(&mut self, node: usize) {
        let store = StoreId(self.rng.draw());
        let of = &mut self.nodes[node];
        let old = std::mem::replace(&mut of.store, store);
        of.disk = Disk::default();
        of.note = None;
        self.store_nodes.insert(store, node);
        self.judge.lost.insert(old);
        self.trace(25, node, || format!("{old} is lost; {store} is new"));
    }

    /// Every set is on stores that are there and unhurt, and so is Raft. How large a set is, is no
    /// excuse: that is for R6 to see to.
    fn is_whole(&self) -> bool {
        let truth = &self.judge.truth;
        let fits = |store: &StoreId| {
            let node = self.node_of_store(*store).map(|node| &self.nodes[node]);
            node.is_some_and(|of| of.store == *store && !of.disk.store.is_hurt())
        };
        let sets = truth.units().values().all(|unit| unit.set.iter().all(fits));
        let voters = truth.voters();
        let raft = self.leader().is_some_and(|leader| {
            let process = self.nodes[leader].process.as_ref().expect("it leads");
            let members = process.raft.members();
            let held = |store: &StoreId| {
                process
                    .raft
                    .replicated(*store)
                    .is_some_and(|upto| upto >= process.raft.commit_index())
            };
            members.voters == voters.current && members.voters.iter().all(held)
        });
        truth.is_formed()
            && sets
            && raft
            && voters.outgoing.is_none()
            && voters.current.iter().all(fits)
    }

    fn stored_child(&mut self, node: usize) -> Option<ChildId> {
        let children: Vec<ChildId> = self.nodes[node].disk.store.children().cloned().collect();
        let nth = self.rng.below(children.len().max(1) as u64) as usize;
        children.get(nth).cloned()
    }

    fn scrub(&mut self, node: usize) {
        let Some(child) = self.stored_child(node) else {
            return;
        };
        let records = self.nodes[node].disk.store.chain(&child).len() as u64;
        let nth = self.rng.below(records) as usize;
        let at = self.nodes[node].disk.store.chain(&child)[nth].seq;
        let life = self.nodes[node].life;
        self.trace(26, node, || format!("{child} is damaged from {at} on"));
        self.with(node, life, |process, local| {
            let _ = process
                .replica
                .handle(local, replication::ReplicaEvent::Damage { child, at });
        });
    }

    fn cut(&mut self, apart: impl Fn(usize, usize) -> bool, lanes: &[Lane], span: Duration) {
        for from in 0..self.nodes.len() {
            for to in 0..self.nodes.len() {
                if from != to && apart(from, to) {
                    self.net.block(from, to, lanes);
                }
            }
        }
        self.cut_number += 1;
        let what = Mend::Heal(self.cut_number);
        self.after(span, Happening::Mend { what });
    }

    fn running_child(&mut self, fits: impl Fn(&ChildId) -> bool) -> Option<(usize, ChildId)> {
        let mut running = Vec::new();
        for (node, of) in self.nodes.iter().enumerate().filter(|(_, of)| of.runs()) {
            let children = of
                .process
                .iter()
                .flat_map(|process| process.children.keys());
            running.extend(
                children
                    .filter(|child| fits(child))
                    .map(|child| (node, child.clone())),
            );
        }
        let nth = self.rng.below(running.len().max(1) as u64) as usize;
        running.get(nth).cloned()
    }

    fn kill_child(&mut self, node: usize, child: &ChildId) {
        let life = self.nodes[node].life;
        let process = self.nodes[node].process.as_ref();
        let helper = process
            .and_then(|process| process.children.get(child))
            .map(|known| known.helper);
        if let Some(helper) = helper {
            self.trace(27, node, || format!("{child} dies"));
            self.after(
                Duration::from_micros(10),
                Happening::Reaped { node, life, helper },
            );
        }
    }

    /// Somebody who is no client of ours calls one child more often than its mailbox holds.
    fn flood(&mut self, calls: u64) {
        let Some((node, child)) = self.running_child(|_| true) else {
            return;
        };
        let life = self.nodes[node].life;
        for number in 0..calls {
            let envelope = Envelope {
                call: CallId {
                    gateway: IncarnationId(u64::from(u32::MAX)),
                    number,
                },
                to: child.clone(),
                key: CallKey::Client(format!("flood {} {number}", self.now.0)),
                request_hash: 0,
                patience_ms: 400,
                body: bytes::Bytes::from_static(&[0; 8]),
            };
            let message = Message::Call {
                envelope,
                forwarded: false,
            };
            let delay = self.net.delay();
            self.after(
                delay,
                Happening::Deliver {
                    to: node,
                    life,
                    from: node,
                    message,
                },
            );
        }
    }

    pub(super) fn crash_loop(&mut self, until: True) {
        if self.now >= until || self.calm {
            return;
        }
        let dedicated = self.dedicated.first().cloned();
        if let Some((node, child)) = self.running_child(|child| Some(child) == dedicated.as_ref()) {
            self.kill_child(node, &child);
        }
        let again = self
            .rng
            .span(Duration::from_millis(50), Duration::from_millis(400));
        self.after(again, Happening::CrashLoop { until });
    }

    pub(super) fn is_poison(&self, child: &ChildId) -> bool {
        let poisonous = self
            .scenario
            .poison
            .is_some_and(|(from, to)| from <= self.now && self.now < to);
        poisonous && self.poisoned.as_ref() == Some(child)
    }

    pub(super) fn first_stores(&self) -> std::collections::BTreeSet<StoreId> {
        let mut stores: std::collections::BTreeSet<StoreId> =
            self.store_nodes.keys().copied().collect();
        if self.judge.lost.is_empty() {
            return stores;
        }
        let lost = &self.judge.lost;
        // Nodes that lost a store have another now; it is not one of the first.
        let renewed = self.nodes.iter().enumerate().filter(|(nth, of)| {
            lost.iter()
                .any(|lost| self.store_nodes.get(lost) == Some(nth) && *lost != of.store)
        });
        for (_, of) in renewed {
            stores.remove(&of.store);
        }
        stores
    }

    fn operate(&mut self, command: Command) {
        if let Some(node) = self.leader() {
            self.propose(node, command);
        }
    }

    fn reshape(&mut self, dice: u64) {
        let shards: Vec<(UnitId, SlotRange, usize)> = self
            .judge
            .truth
            .units()
            .iter()
            .filter_map(|(id, unit)| match (&unit.scope, unit.owner) {
                (Scope::Slots { range, .. }, Some(owner)) => {
                    Some((*id, *range, self.node_of(owner.node)))
                }
                _ => None,
            })
            .collect();
        let Some((unit, range, node)) = shards.get(dice as usize % shards.len().max(1)).copied()
        else {
            return;
        };
        let how = match dice >> 60 {
            0..6 => Reshape::Merge,
            6..12 => Reshape::Split(range.start() + range.len() / 2),
            _ => {
                let held = self.light.iter().find(|child| range.contains(child.slot()));
                let Some(child) = held.cloned() else { return };
                Reshape::Except(child)
            }
        };
        if self.nodes[node].runs() && !self.nodes[node].hung {
            let life = self.nodes[node].life;
            self.with(node, life, |process, local| {
                let _ = process
                    .agent
                    .handle(local, agent::Event::Reshape(unit, how));
            });
        }
    }

    fn move_unit(&mut self, dice: u64) {
        let units: Vec<UnitId> = self.judge.truth.units().keys().copied().collect();
        let Some(unit) = units.get(dice as usize % units.len().max(1)).copied() else {
            return;
        };
        let epoch = self.judge.truth.unit(unit).map(|unit| unit.epoch);
        let to = self.nodes[(dice >> 32) as usize % self.nodes.len()].id;
        if let Some(epoch) = epoch {
            self.judge.coverage.reach(Path::Moved);
            self.operate(Command::Move { unit, epoch, to });
        }
    }

    fn roll_back(&mut self) {
        let Some((node, child)) = self.running_child(|_| true) else {
            return;
        };
        let life = self.nodes[node].life;
        let process = self.nodes[node].process.as_ref().expect("it runs a child");
        // Rolled back to what it is: nothing is un-said, and every key is still known (E4).
        let Some(known) = process.children.get(&child) else {
            return;
        };
        let state: bytes::Bytes = known.state.iter().flat_map(|op| op.to_be_bytes()).collect();
        let state = state.into();
        self.judge.coverage.reach(Path::RolledBack);
        self.with(node, life, |process, local| {
            let _ = process
                .agent
                .handle(local, agent::Event::RollBack { child, state });
        });
    }

    /// What an operator does at first, and again until it is done: form the cluster, define
    /// supervisors, create units; and pardon what is quarantined once all is calm.
    pub(super) fn set_up(&mut self) {
        self.after(Duration::from_millis(700), Happening::Setup);
        let Some(leader) = self.leading_raft() else {
            return;
        };
        let truth = &self.judge.truth;
        if !truth.is_formed() {
            let voters: std::collections::BTreeSet<StoreId> = self
                .nodes
                .iter()
                .filter(|of| of.votes)
                .map(|of| of.store)
                .collect();
            let form = Formation {
                set: voters.clone(),
                voters,
                ttl: self.scenario.ttl,
                replicas: 3,
                min_copies: 2,
                shards: self.scenario.shards,
            };
            return self.propose(leader, Command::Form(form));
        }
        if self.now.since(self.last_setup) < Duration::from_millis(1_400) {
            return;
        }
        let missing = self.dedicated.iter().position(|child| {
            !truth
                .units()
                .values()
                .any(|unit| unit.scope == Scope::Child(child.clone()))
        });
        let supervisors = truth.supervisors().len() - 1;
        if let Some(nth) = missing.filter(|_| self.now < True::secs(60)) {
            self.last_setup = self.now;
            if supervisors <= nth / 2 {
                let strategy = match self.scenario.groups[nth / 2] {
                    Group::OneForOne => Strategy::OneForOne,
                    Group::OneForAll => Strategy::OneForAll,
                    Group::RestForOne => Strategy::RestForOne,
                };
                let policy = Policy {
                    strategy,
                    intensity: Intensity {
                        restarts: 3,
                        window: Duration::from_secs(10),
                    },
                    backoff: Backoff::DEFAULT,
                };
                let restart = RestartType::Permanent;
                return self.propose(
                    leader,
                    Command::Supervise {
                        parent: ROOT,
                        restart,
                        policy,
                    },
                );
            }
            let stores: Vec<StoreId> = truth.storing_stores().map(|(store, _)| store).collect();
            if stores.len() < 2 {
                return;
            }
            let create = Command::Create {
                child: self.dedicated[nth].clone(),
                supervisor: understudy_protocol::id::SupervisorId(nth as u64 / 2 + 1),
                restart: RestartType::Permanent,
                needs: Needs::default(),
                set: stores.into_iter().take(3).collect(),
            };
            return self.propose(leader, create);
        }
        let poison_over = self.scenario.poison.is_none_or(|(_, to)| to <= self.now);
        let quarantined = truth
            .units()
            .iter()
            .find(|(id, _)| truth.is_quarantined(**id))
            .map(|(id, _)| *id);
        if let Some(unit) = quarantined.filter(|_| poison_over) {
            self.last_setup = self.now;
            self.propose(leader, Command::Pardon { unit });
        }
    }

    fn leading_raft(&self) -> Option<usize> {
        self.nodes.iter().position(|of| {
            of.runs()
                && of
                    .process
                    .as_ref()
                    .is_some_and(|process| process.raft.is_leader())
        })
    }
}

const BOTH: [Lane; 2] = [Lane::Heart, Lane::Main];
