//! Which stores to add to a unit's replica set (rule R4).
//!
//! Owns: the choice. Never changes a set: that is a compare-and-swap in the directory (rules R5, R6).

use alloc::vec::Vec;
use core::cmp::Reverse;

use super::view::{LabelValue, Role};
use crate::id::{NodeId, StoreId, UnitId};

/// How many replicas a unit has unless configured otherwise (rule R4): two copies may be lost or
/// away at once without losing an acknowledged record.
pub const REPLICAS: usize = 3;

/// A store this full takes no new replicas: the rest is for those it has, which still grow.
pub const STORE_FULL_MILLI: u32 = 900;

/// One store that may hold replicas.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StoreView {
    /// The store.
    pub store: StoreId,
    /// The node that opened it.
    pub node: NodeId,
    /// The node's zone; those without one share one.
    pub zone: Option<LabelValue>,
    /// What the node is for.
    pub role: Role,
    /// How full its disk is, in thousandths.
    pub fill_milli: u32,
    /// The node is on its way out: a replica there no longer counts.
    pub draining: bool,
    /// Membership gossip doubts the node: last choice.
    pub suspected: bool,
}

/// The stores to add to `set`, best first, so that it has `wanted` members that stay, or as many as
/// there are storing nodes: two copies on one node would be lost together. `candidates` are all stores seen, members included; a member that is not among
/// them, or drains, is about to be replaced and does not count.
///
/// No two on one node, spread over zones, then the least full (in steps of a twentieth, so that new units do
/// not all go to the one store that is emptiest by a hair), then by rendezvous hash, which gives each
/// unit its own order of stores.
pub fn choose_replicas(
    unit: UnitId,
    set: &[StoreId],
    candidates: &[StoreView],
    wanted: usize,
) -> Vec<StoreId> {
    let there = || candidates.iter().filter(|store| !store.draining);
    let workers = there().filter(|store| store.role == Role::Worker);
    let mut worker_nodes: Vec<NodeId> = workers.map(|store| store.node).collect();
    worker_nodes.sort_unstable();
    worker_nodes.dedup();
    // R4: a witness stores when fewer than three other nodes do.
    let witness_stores = worker_nodes.len() < REPLICAS;

    let mut members: Vec<&StoreView> = there().filter(|store| set.contains(&store.store)).collect();
    let mut free: Vec<&StoreView> = there()
        .filter(|store| !set.contains(&store.store) && store.fill_milli < STORE_FULL_MILLI)
        .filter(|store| store.role == Role::Worker || witness_stores)
        .collect();
    let mut added = Vec::new();
    while members.len() < wanted {
        let rank = |store: &&StoreView| {
            let in_zone = members
                .iter()
                .filter(|member| member.zone == store.zone)
                .count();
            let is_witness = store.role == Role::Witness;
            let weight = Reverse(rendezvous(unit, store.store));
            (
                store.suspected,
                is_witness,
                in_zone,
                store.fill_milli / FILL_STEP_MILLI,
                weight,
                store.store,
            )
        };
        free.retain(|store| members.iter().all(|member| member.node != store.node));
        let Some(at) = (0..free.len()).min_by_key(|at| rank(&free[*at])) else {
            break;
        };
        let store = free.swap_remove(at);
        members.push(store);
        added.push(store.store);
    }
    added
}

/// The weight of a store for a unit (highest random weight hashing, Thaler and Ravishankar 1998).
/// The mixing is SplitMix64's finaliser. No format: it may change between versions.
fn rendezvous(unit: UnitId, store: StoreId) -> u64 {
    mix(unit.0 ^ mix(store.0))
}

fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Stores closer than this are as full as one another.
const FILL_STEP_MILLI: u32 = 50;
