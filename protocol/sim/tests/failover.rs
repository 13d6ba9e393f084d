//! How long units are without an owner that serves, when the one they had is gone.
//!
//! Owns: the limits that takeovers are held to, in virtual time on a good network. A real cluster adds
//! its own disks and schedulers; what the machines wait for is all in here.
//!
//! ```text
//!   cargo test -p understudy-sim --test failover -- --nocapture      the table
//! ```
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use understudy_protocol::cluster::directory::UnitEntry;
use understudy_protocol::id::{Epoch, NodeId, UnitId};
use understudy_protocol::wire::heart::Ttl;
use understudy_sim::clock::True;
use understudy_sim::scenario::{Fault, Group, NodePlan, Scenario, Victim};
use understudy_sim::world::World;

#[test]
fn a_killed_process_is_taken_over_from_at_its_death_note() {
    let kill = |victim| Fault::Kill(victim, AWAY);
    check("kill -9, led nothing", kill, false, MS * 100, MS * 250);
    // Another leader is elected first.
    check("kill -9, led", kill, true, MS * 300, MS * 600);
}

#[test]
fn a_lost_machine_is_taken_over_from_when_its_lease_ends() {
    let lose = |victim| Fault::Crash(victim, AWAY);
    let ttl = Ttl::LAN.duration();
    check(
        "machine lost, led nothing",
        lose,
        false,
        ttl,
        ttl + MS * 100,
    );
    // Another leader is elected meanwhile.
    check("machine lost, led", lose, true, ttl, ttl + MS * 200);
}

/// Every unit of the victim serves elsewhere within `p50` in half of the runs, and within `p99` in all
/// but one of a hundred.
fn check(name: &str, fault: impl Fn(Victim) -> Fault, led: bool, p50: Duration, p99: Duration) {
    let mut took: Vec<Duration> = (1..=SEEDS)
        .filter_map(|seed| takeover(seed, fault(Victim::Owner), led))
        .collect();
    took.sort_unstable();
    let rank = |percent: usize| took[(took.len() - 1) * percent / 100];
    println!(
        "{name:<28} {:>4} runs   p50 {:>5.0} ms   p99 {:>5.0} ms   most {:>5.0} ms",
        took.len(),
        rank(50).as_secs_f64() * 1e3,
        rank(99).as_secs_f64() * 1e3,
        rank(100).as_secs_f64() * 1e3,
    );
    assert!(took.len() > 50, "{name}: only {} runs", took.len());
    assert!(rank(50) < p50, "{name}: p50 {:?}", rank(50));
    assert!(rank(99) < p99, "{name}: p99 {:?}", rank(99));
}

/// From the fault until the last unit of its victim serves elsewhere; none if the victim led and
/// should not have, or the other way round.
fn takeover(seed: u64, fault: Fault, led: bool) -> Option<Duration> {
    let mut world = World::new(scenario(seed, fault), None);
    let mut struck: Option<(Duration, BTreeMap<UnitId, Epoch>)> = None;
    let mut leader = world.leading();
    while world.step() {
        let units = world.judge.truth.units();
        match &struck {
            None if world.figures().faults > 0 => {
                let victim = world.last_victim().unwrap();
                if led != (leader == Some(victim)) {
                    return None;
                }
                let owned = |owner: &_| node_of(owner) == Some(victim);
                let lost = units.iter().filter(|(_, unit)| owned(unit));
                let lost = lost.map(|(id, unit)| (*id, unit.epoch)).collect();
                struck = Some((world.now(), lost));
            }
            None => leader = world.leading(),
            Some((at, lost)) => {
                let serves = |(id, epoch): (&UnitId, &Epoch)| {
                    let unit = &units[id];
                    unit.epoch > *epoch && unit.owner.is_some_and(|owner| owner.serving)
                };
                if lost.iter().all(serves) {
                    return Some(world.now() - *at);
                }
            }
        }
    }
    panic!("seed {seed}: {:?}", world.judge.violation);
}

fn node_of(unit: &UnitEntry) -> Option<NodeId> {
    unit.owner.map(|owner| owner.node)
}

/// Three nodes on one switch, the `lan` preset, four clients, one fault.
fn scenario(seed: u64, fault: Fault) -> Scenario {
    let node = |(zone, drift_ppm)| NodePlan {
        votes: true,
        works: true,
        drift_ppm,
        zone,
    };
    // Not always at the same beat of anything.
    let at = True::secs(10).after(MS * (seed % 97) as u32 * 7);
    Scenario {
        seed,
        nodes: [(0, 3_000), (1, -4_000), (2, 1_000)].map(node).to_vec(),
        ttl: Ttl::LAN,
        shards: 3,
        light: 6,
        groups: vec![Group::OneForOne],
        clients: 4,
        poison: None,
        faults: vec![(at, fault)],
        calm: True::secs(29),
        last_call: True::secs(29),
        end: True::secs(30),
    }
}

const MS: Duration = Duration::from_millis(1);

/// Longer than any takeover: nobody is helped by the victim's return.
const AWAY: Duration = Duration::from_secs(10);

/// Enough that one in a hundred is some of them.
const SEEDS: u64 = 240;
