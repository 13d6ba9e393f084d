#![allow(clippy::unwrap_used)]
//! Raft's promises, under faults and without.

mod cluster;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use cluster::{Cluster, Sabotage, Weather, store};
use understudy_protocol::id::StoreId;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Five seconds of every fault, then none; in the end everybody has applied the same.
fn survives_faults(members: u64, seed: u64, sabotage: Sabotage) -> Cluster {
    let mut cluster = Cluster::of(members, seed, Weather::foul());
    cluster.sabotage = sabotage;
    let ids: Vec<StoreId> = (1..=members).map(store).collect();
    let end = cluster.now + 5 * SECOND;
    let mut command = 0;
    let mut fault_at = cluster.now + SECOND / 2;
    while cluster.now < end {
        let pause = cluster.random.within(2..16);
        cluster.run_for(Duration::from_millis(pause));
        let burst = if cluster.random.chance(20) { 100 } else { 1 };
        for _ in 0..burst {
            command += 1;
            let to = cluster.leader().filter(|_| command % 8 != 0);
            let to = to.unwrap_or_else(|| ids[cluster.random.draw() as usize % ids.len()]);
            if cluster.nodes[&to].raft.is_some() {
                let _ = cluster.propose(to, command);
            }
        }
        if cluster.now >= fault_at {
            let wait = cluster.random.within(20..500);
            fault_at = cluster.now + Duration::from_millis(wait);
            cause_fault(&mut cluster, &ids);
            cluster.audit();
        }
    }
    cluster.heal();
    cluster.settle(&ids);
    cluster.audit();
    cluster
}

fn cause_fault(cluster: &mut Cluster, ids: &[StoreId]) {
    let random = ids[cluster.random.draw() as usize % ids.len()];
    let leader = cluster.leader().unwrap_or(random);
    let victim = if cluster.random.chance(400) {
        leader
    } else {
        random
    };
    let span = Duration::from_millis(cluster.random.within(10..900));
    match cluster.random.within(0..9) {
        0..=2 => {
            cluster.crash(victim);
            cluster.restart_at(victim, cluster.now + span);
        }
        3 => {
            let other = ids[cluster.random.draw() as usize % ids.len()];
            cluster.partition(&[victim, other]);
        }
        4 => {
            let others = ids.iter().filter(|id| **id != victim);
            cluster.cut.extend(others.map(|other| (victim, *other)));
        }
        5 => cluster.pause(victim, span),
        6 => cluster.stall_disk(victim, span),
        7 => {
            let may_lead = cluster.random.chance(500);
            cluster.may_lead(victim, may_lead);
        }
        _ => {}
    }
    if cluster.random.chance(400) {
        cluster.cut.clear();
    }
}

fn check_seeds(members: u64, seeds: std::ops::Range<u64>) {
    let (mut elections, mut entries, mut snapshots) = (0, 0, 0);
    for seed in seeds {
        let run = AssertUnwindSafe(|| survives_faults(members, seed, Sabotage::None));
        let cluster = match catch_unwind(run) {
            Ok(cluster) => cluster,
            Err(_) => panic!("seed {seed} of {members} members failed; see above"),
        };
        elections += cluster.judge.leaders.len();
        entries += cluster.judge.committed.len();
        snapshots += cluster
            .nodes
            .values()
            .map(|node| node.snapshots_installed)
            .sum::<u64>();
    }
    println!("{elections} elections, {entries} entries, {snapshots} snapshots");
}

#[test]
fn three_members_keep_raft_s_promises_under_faults() {
    check_seeds(3, 0..200);
}

#[test]
fn five_members_keep_raft_s_promises_under_faults() {
    check_seeds(5, 1_000..1_150);
}

#[test]
fn sabotage_is_noticed() {
    for sabotage in [
        Sabotage::LyingDisk,
        Sabotage::ForgottenVote,
        Sabotage::ReusedStoreId,
    ] {
        let noticed = (0..400).find(|seed| {
            let run = AssertUnwindSafe(|| survives_faults(3, *seed, sabotage));
            catch_unwind(run).is_err()
        });
        assert!(noticed.is_some());
    }
}
