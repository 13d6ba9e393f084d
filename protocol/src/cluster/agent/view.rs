//! What an owner must know of its unit, read from the directory.
//!
//! Owns: the translation. Never decides.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use minicbor::{Decode, Encode};

use crate::cluster::directory::{Directory, Run};
use crate::cluster::placement::{Role, StoreView, ZONE_LABEL, choose_replicas};
use crate::cluster::replication::UnitView;
use crate::id::{Epoch, IncarnationId, StoreId, UnitId};

/// A unit that an incarnation holds the grant of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Granted {
    /// The grant.
    #[n(0)]
    pub epoch: Epoch,
    /// What replication must know.
    #[n(1)]
    pub view: UnitView,
    /// Its supervisor wants it stopped.
    #[n(2)]
    pub stopping: bool,
    /// It is to move.
    #[n(3)]
    pub moving: bool,
}

/// The grant of `unit`, if `incarnation` holds it.
pub fn granted(directory: &Directory, unit: UnitId, incarnation: IncarnationId) -> Option<Granted> {
    let entry = directory.unit(unit)?;
    let owner = entry
        .owner
        .filter(|owner| owner.incarnation == incarnation)?;
    let live = |store: &StoreId| {
        let node = directory
            .node_of(*store)
            .and_then(|node| directory.nodes().get(&node));
        node.is_some_and(|node| node.incarnation.is_some() && node.store == *store)
    };
    let unreachable: BTreeSet<StoreId> = directory
        .stores()
        .keys()
        .filter(|store| !live(store))
        .copied()
        .collect();
    let target = entry.move_to.and_then(|node| directory.nodes().get(&node));
    let move_to = target.map(|node| node.store).filter(|store| {
        directory
            .storing_stores()
            .any(|(storing, _)| storing == *store)
    });
    let view = UnitView {
        scope: entry.scope.clone(),
        config: entry.config,
        set: entry.set.clone(),
        min_copies: directory.min_copies(),
        wanted: directory.wanted_replicas(),
        candidates: candidates(directory, unit, &entry.set, &unreachable),
        unreachable,
        move_to,
        serving: owner.serving,
    };
    let stopping = entry.run != Run::Wanted;
    Some(Granted {
        epoch: entry.epoch,
        view,
        stopping,
        moving: entry.move_to.is_some(),
    })
}

/// Every store that could join the set, best first.
fn candidates(
    directory: &Directory,
    unit: UnitId,
    set: &BTreeSet<StoreId>,
    unreachable: &BTreeSet<StoreId>,
) -> Vec<StoreId> {
    let stores: Vec<StoreView> = directory
        .nodes()
        .iter()
        .filter(|(_, node)| !unreachable.contains(&node.store))
        .map(|(id, node)| StoreView {
            store: node.store,
            node: *id,
            zone: node.labels.get(ZONE_LABEL).map(|zone| zone.as_str().into()),
            role: if node.works {
                Role::Worker
            } else {
                Role::Witness
            },
            fill_milli: 0,
            draining: node.draining,
            suspected: false,
        })
        .collect();
    let set: Vec<StoreId> = set.iter().copied().collect();
    choose_replicas(unit, &set, &stores, stores.len())
}
