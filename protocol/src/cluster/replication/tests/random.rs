//! Owners in random trouble: messages lost, repeated, late and out of order, stores that crash, lose
//! what was not flushed and find damage, set changes of unknown outcome, and successive owners that
//! do not know of each other.
//!
//! Three things must hold whatever happens: an acknowledged record stands on every member of the set
//! that calls itself whole (or was pruned there); no other is ever acknowledged in its place; and when
//! the trouble is over, the next owner finds every one of them.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use bytes::Bytes;

use super::harness::*;
use crate::cluster::replication::{Leaving, OwnerAction, OwnerEvent, Phase};
use crate::id::{ChildId, Seq, StoreId};
use crate::wire::record::{Head, Record, RecordKind};

const SEEDS: u64 = 300;
const STEPS: usize = 1_200;
const CHILDREN: [&str; 3] = ["a", "b", "c"];

/// Xorshift: enough to pick with.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

struct Trouble {
    world: World,
    rng: Rng,
    acked: BTreeMap<ChildId, BTreeMap<Seq, Head>>,
    /// The one store whose disk is bad.
    bad_disk: StoreId,
    why: String,
}

impl Trouble {
    fn new(seed: u64) -> Trouble {
        let mut world = World::new(4, 2 + seed % 2, 2);
        world.view.wanted = 3;
        world.commits = false;
        world.take_over();
        Trouble {
            world,
            rng: Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            acked: BTreeMap::new(),
            bad_disk: StoreId(1 + seed % 4),
            why: format!("seed {seed}"),
        }
    }

    fn store(&mut self) -> StoreId {
        StoreId(1 + self.rng.below(4) as u64)
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..=44 => {
                for _ in 0..=self.rng.below(8) {
                    self.deliver();
                }
            }
            45..=64 => {
                let id = self.store();
                for _ in 0..=self.rng.below(3) {
                    let answers = self.world.stores.get_mut(&id).unwrap().flush_one();
                    let answers = answers.into_iter().map(Message::Answer);
                    self.world.net.extend(answers);
                }
            }
            65..=74 => {
                self.world.now += 1 + self.rng.below(60) as u64;
                self.world.tick();
            }
            75..=88 => self.call(),
            89..=93 => {
                let proposals = self.world.proposals.len();
                if proposals > 0 {
                    let nth = self.rng.below(proposals);
                    let command = self.world.proposals[nth].clone();
                    // It may be applied again: compare-and-swap must make that harmless.
                    if !self.rng.one_in(4) {
                        self.world.proposals.remove(nth);
                    }
                    self.world.commit(&command);
                }
            }
            94 if self.rng.one_in(2) => {
                let id = self.store();
                let store = self.world.stores.get_mut(&id).unwrap();
                if id == self.bad_disk && self.rng.one_in(3) {
                    let child = child(CHILDREN[self.rng.below(3)]);
                    if store
                        .flushed
                        .chains
                        .get(&child)
                        .is_some_and(|chain| !chain.is_empty())
                    {
                        store.flushed.cut_last(&child);
                    }
                }
                store.restart();
            }
            95 => self.scrub(),
            96 => {
                let id = self.store();
                if !self.world.away.is_empty() {
                    self.world.away.clear();
                } else if self.rng.one_in(2) {
                    self.world.away.insert(id);
                }
            }
            97 => {
                let out = self.store();
                let unreachable = self.rng.one_in(2);
                self.world.change(|view| {
                    view.unreachable.clear();
                    view.unreachable.extend(unreachable.then_some(out));
                });
            }
            98 if self.rng.one_in(4) => self.world.take_over(),
            99 if self.rng.one_in(8) => {
                let nth = self.rng.below(self.world.owners.len());
                let _ = self
                    .world
                    .tell_nth(nth, OwnerEvent::Leave(Leaving::Release));
            }
            _ => {}
        }
        self.note_acknowledged();
        self.check();
    }

    fn deliver(&mut self) {
        let under_way = self.world.net.len();
        if under_way == 0 {
            return;
        }
        // Mostly the oldest, so that things get on; the rest stays as late as chance has it.
        let nth = if self.rng.one_in(3) {
            self.rng.below(under_way)
        } else {
            0
        };
        let message = self.world.net.remove(nth);
        if self.rng.one_in(12) {
            return;
        }
        if self.rng.one_in(12) {
            self.world.net.push(message.clone());
        }
        self.world.deliver(message);
    }

    /// Somebody calls an owner, perhaps one that was replaced long ago.
    fn call(&mut self) {
        let owners = self.world.owners.len();
        let nth = if self.rng.one_in(4) {
            self.rng.below(owners)
        } else {
            owners - 1
        };
        let child = child(CHILDREN[self.rng.below(3)]);
        let kind = if self.rng.one_in(4) {
            RecordKind::Snapshot
        } else {
            RecordKind::Delta
        };
        // Large bodies are sent in parts.
        let len = if self.rng.one_in(3) { 60_000 } else { 10 };
        let mut body = alloc::vec![0; len];
        body[..8].copy_from_slice(&self.rng.0.to_be_bytes());
        let event = match self.rng.below(10) {
            0 => OwnerEvent::Unload(child),
            1 | 2 => OwnerEvent::Load(child),
            _ => OwnerEvent::Write {
                child,
                kind,
                schema: 0,
                body: Bytes::from(body),
            },
        };
        let _ = self.world.tell_nth(nth, event);
    }

    /// The scrubber finds a damaged record on the bad disk.
    fn scrub(&mut self) {
        let child = child(CHILDREN[self.rng.below(3)]);
        let store = self.world.stores.get_mut(&self.bad_disk).unwrap();
        store.flush();
        let chain = store
            .flushed
            .chains
            .get(&child)
            .cloned()
            .unwrap_or_default();
        if chain.is_empty() || !self.rng.one_in(2) {
            return;
        }
        let at = chain[self.rng.below(chain.len())].seq;
        store.flushed.damage(&child, at.0);
        let damage = crate::cluster::replication::ReplicaEvent::Damage { child, at };
        let answers = store.handle(damage).unwrap();
        self.world
            .net
            .extend(answers.into_iter().map(Message::Answer));
    }

    fn note_acknowledged(&mut self) {
        let mut said = core::mem::take(&mut self.world.said);
        for (epoch, said) in said.drain(..) {
            let OwnerAction::Acknowledged { child, upto } = said else {
                continue;
            };
            let acked = self.acked.entry(child.clone()).or_default();
            let before = acked.insert(upto.seq, upto);
            assert!(
                before.is_none_or(|before| before == upto),
                "{}: {child} {before:?} and {upto:?}, by {epoch}",
                self.why
            );
        }
    }

    fn check(&self) {
        for (child, acked) in &self.acked {
            for id in &self.world.view.set {
                let store = &self.world.stores[id];
                // Its damage is known, and it does not count alone (R8).
                if *id == self.bad_disk && !store.opened_whole() {
                    continue;
                }
                let chain = store.flushed.chains.get(child);
                let chain: Vec<Head> = chain.into_iter().flatten().map(Record::head).collect();
                let first = chain.first().map_or(Seq(1), |head| head.seq);
                for head in acked.values().filter(|head| head.seq >= first) {
                    let place = (head.seq.0 - first.0) as usize;
                    let why = &self.why;
                    assert_eq!(
                        chain.get(place),
                        Some(head),
                        "{why}: {child} on {id}, in the set"
                    );
                }
            }
        }
    }

    /// Nothing goes wrong any more; another owner takes over.
    fn calm(&mut self) {
        let world = &mut self.world;
        world.net.clear();
        world.proposals.clear();
        world.away.clear();
        world.view.unreachable.clear();
        for store in world.stores.values_mut() {
            store.restart();
        }
        world.commits = true;
        world.take_over();
        world.run(4_000);
        let owner = world.owner();
        assert_eq!(owner.phase(), Phase::Serving, "{}: {owner:#?}", self.why);
        self.note_acknowledged();
        self.check();
        for (child, acked) in self.acked.clone() {
            self.world.tell(OwnerEvent::Load(child.clone())).unwrap();
            self.world.run(50);
            let said = core::mem::take(&mut self.world.said);
            let loaded = said.into_iter().find_map(|(_, said)| match said {
                OwnerAction::Loaded { records, .. } => Some(records),
                _ => None,
            });
            let loaded = loaded.expect("it is loaded");
            let first = loaded.first().map_or(Seq(1), |record| record.seq);
            for head in acked.values().filter(|head| head.seq >= first) {
                let place = (head.seq.0 - first.0) as usize;
                assert_eq!(
                    loaded.get(place).map(Record::head),
                    Some(*head),
                    "{}",
                    self.why
                );
            }
            let write = OwnerEvent::Write {
                child,
                kind: RecordKind::Delta,
                schema: 0,
                body: Bytes::new(),
            };
            match self.world.tell(write) {
                Ok(()) | Err(crate::cluster::replication::OwnerRefused::ChainFull) => {}
                other => panic!("{}: {other:?}", self.why),
            }
        }
        self.world.run(1_000);
        for child in self.acked.keys() {
            let owner = self.world.owner();
            assert_eq!(owner.acknowledged(child), owner.tail(child), "{}", self.why);
        }
        assert_eq!(self.world.view.set.len(), 3, "{}", self.why);
    }
}

#[test]
fn an_acknowledged_record_is_never_lost_and_never_replaced() {
    let (mut acknowledged, mut owners) = (0, 0);
    for seed in 1..=SEEDS {
        let mut trouble = Trouble::new(seed);
        let why = trouble.why.clone();
        for step in 0..STEPS {
            trouble.why = format!("{why}, step {step}");
            trouble.step();
        }
        trouble.calm();
        owners += trouble.world.owners.len() as u64;
        acknowledged += trouble.acked.values().map(BTreeMap::len).sum::<usize>() as u64;
    }
    // The trouble was such that there was something to lose.
    assert!(acknowledged > SEEDS * 10, "{acknowledged} acknowledged");
    assert!(owners > SEEDS * 3, "{owners} owners");
}
