//! One owner after another, with the stores of [`World`].

use alloc::format;
use alloc::vec::Vec;

use bytes::Bytes;

use super::harness::*;
use crate::cluster::directory::Command;
use crate::cluster::replication::{
    Leaving, Owner, OwnerAction, OwnerConfig, OwnerEvent, OwnerRefused, Phase, UnitView,
};
use crate::id::{ConfigVersion, Epoch, IncarnationId, Seq, SlotRange, StoreId, UnitId};
use crate::machine::Machine;
use crate::supervision::Exit;
use crate::wire::record::{Head, Record, RecordKind};
use crate::wire::replica::{Ask, CHAIN_RECORDS_MAX, ReplicaAnswer, Said, Scope};

fn store(id: u64) -> StoreId {
    StoreId(id)
}

/// Writes `records` records of `a` and lets them be acknowledged.
fn write_all(world: &mut World, records: usize) {
    for _ in 0..records {
        world.write("a").unwrap();
    }
    world.run(5);
    assert_eq!(world.acked(), world.owner().tail(&child("a")).0);
}

/// Loads `a` with the new owner: the places of its records.
fn loaded(world: &mut World) -> Vec<u64> {
    world.take_said();
    world.tell(OwnerEvent::Load(child("a"))).unwrap();
    world.run(10);
    let loaded = world.take_said().into_iter().find_map(|said| match said {
        OwnerAction::Loaded { records, .. } => Some(records),
        _ => None,
    });
    loaded.unwrap().iter().map(|record| record.seq.0).collect()
}

fn set_changes(world: &World) -> Vec<Vec<u64>> {
    let proposals = world.proposals.iter();
    proposals
        .filter_map(|command| match command {
            Command::ChangeSet { set, .. } => Some(set.iter().map(|store| store.0).collect()),
            _ => None,
        })
        .collect()
}

// Takeover.

#[test]
fn a_takeover_takes_the_longest_log_and_gives_it_to_the_whole_set() {
    let mut world = World::serving(3, 3, 2);
    write_all(&mut world, 3);
    world.away = [store(1), store(3)].into();
    world.write("a").unwrap();
    world.run(3);
    assert_eq!((world.places(1).len(), world.places(2).len()), (3, 4));
    world.away.clear();
    world.net.clear();
    world.take_over();
    world.run(12);
    assert_eq!(world.owner().phase(), Phase::Serving);
    assert_eq!(
        [1, 2, 3].map(|id| world.heads(id)),
        [(); 3].map(|()| world.heads(2))
    );
    assert_eq!(world.acked(), 4);
    assert_eq!(loaded(&mut world), [1, 2, 3, 4]);
}

#[test]
fn nothing_is_served_before_the_whole_set_agrees() {
    let mut world = World::serving(3, 3, 2);
    write_all(&mut world, 1);
    world.away = [store(1), store(3)].into();
    world.write("a").unwrap();
    world.run(3);
    world.away.clear();
    world.net.clear();
    world.take_over();
    world.run(4);
    assert_eq!(
        world.owner().phase(),
        Phase::Adopting,
        "sealed, and two are behind"
    );
    assert_eq!(world.write("a"), Err(OwnerRefused::NotServing));
    assert_eq!(
        world.tell(OwnerEvent::Load(child("a"))),
        Err(OwnerRefused::NotServing)
    );
}

#[test]
fn a_takeover_waits_for_stragglers_and_then_drops_the_unsealed() {
    let mut world = World::serving(3, 3, 2);
    write_all(&mut world, 2);
    world.away = [store(3)].into();
    world.commits = false;
    world.take_over();
    world.run(101);
    assert_eq!(world.owner().phase(), Phase::Sealing);
    assert_eq!(set_changes(&world), [[0; 0]; 0]);
    world.run(2);
    assert_eq!(world.owner().phase(), Phase::Adopting);
    assert_eq!(set_changes(&world), [[1, 2]]);
    world.run(50);
    assert_eq!(
        world.owner().phase(),
        Phase::Adopting,
        "not before it is dropped"
    );
    world.commits = true;
    world.run(1);
    assert_eq!(world.owner().phase(), Phase::Serving);
}

#[test]
fn a_takeover_does_not_wait_for_stores_whose_node_is_not_live() {
    let mut world = World::serving(3, 3, 2);
    write_all(&mut world, 2);
    world.away = [store(3)].into();
    world.view.unreachable = [store(3)].into();
    world.take_over();
    world.run(5);
    assert_eq!(world.owner().phase(), Phase::Serving);
    assert_eq!(world.set(), [1, 2]);
    assert_eq!(loaded(&mut world), [1, 2]);
}

#[test]
fn all_sealed_need_not_wait() {
    let mut world = World::serving(3, 3, 2);
    world.take_over();
    world.run(3);
    assert_eq!(world.owner().phase(), Phase::Serving);
}

#[test]
fn stragglers_are_waited_for_from_the_first_complete_replica_on() {
    // The first to be sealed was cut, so it does not count alone (R8); a whole one comes later.
    let mut world = World::serving(3, 3, 2);
    write_all(&mut world, 2);
    let cut = world.stores.get_mut(&store(1)).unwrap();
    cut.flushed.cut_last(&child("a"));
    cut.restart();
    world.away = [store(2), store(3)].into();
    world.take_over();
    world.run(200);
    assert_eq!(world.owner().phase(), Phase::Sealing);
    world.away = [store(3)].into();
    world.run(120);
    let wait = "store 3 may be on its way too";
    assert_eq!(world.owner().phase(), Phase::Sealing, "{wait}");
    // Four round trips; a store's absence counts as one of 300 ms at most.
    world.run(1_300);
    assert_eq!(world.owner().phase(), Phase::Serving);
}

#[test]
fn the_unsealed_are_not_dropped_below_min_copies() {
    let mut world = World::serving(3, 2, 2);
    write_all(&mut world, 2);
    world.away = [store(2)].into();
    world.view.candidates.clear();
    world.take_over();
    world.run(2_000);
    assert_eq!(world.owner().phase(), Phase::Adopting);
    assert_eq!(world.set(), [1, 2]);
    // One is made complete and swapped in.
    world.change(|view| view.candidates = [store(3)].into());
    world.run(100);
    assert_eq!(world.set(), [1, 3]);
    assert_eq!(world.owner().phase(), Phase::Serving);
    assert_eq!(world.places(3), [1, 2]);
}

/// Store 2 alone holds the unacknowledged record 4 of `a` and is sealed; then it goes away.
fn holder_of_the_longest_log_goes(members: u64) -> World {
    let mut world = World::serving(3, members, 2);
    write_all(&mut world, 3);
    world.away = [store(1), store(3)].into();
    world.write("a").unwrap();
    world.run(3);
    assert_eq!((world.places(1).len(), world.places(2).len()), (3, 4));
    world.away.clear();
    world.net.clear();
    world.take_over();
    while world.owner().phase() == Phase::Sealing {
        world.run(1);
    }
    world.away = [store(2)].into();
    world
}

#[test]
fn a_tail_whose_only_holder_is_gone_is_given_up() {
    let mut world = holder_of_the_longest_log_goes(3);
    world.change(|view| view.unreachable = [store(2)].into());
    world.run(50);
    assert_eq!(world.owner().phase(), Phase::Serving);
    assert_eq!(world.set(), [1, 3]);
    assert_eq!(world.acked(), 3);
    assert_eq!(loaded(&mut world), [1, 2, 3]);
    world.write("a").unwrap();
    world.run(5);
    assert_eq!(world.acked(), 4);
    // What the lost one kept to itself gives way to what was written since.
    world.away.clear();
    world.change(|view| view.unreachable.clear());
    world.run(100);
    assert_eq!(world.set(), [1, 2, 3]);
    assert_eq!(world.heads(2), world.heads(1));
}

#[test]
fn a_tail_whose_only_holder_is_silent_and_cannot_be_dropped_is_given_up() {
    let mut world = holder_of_the_longest_log_goes(2);
    world.run(200);
    assert_eq!(
        world.owner().phase(),
        Phase::Adopting,
        "it may only be slow"
    );
    world.run(1_000);
    assert_eq!(world.owner().phase(), Phase::Serving);
    assert_eq!(world.set(), [1, 3]);
    assert_eq!(loaded(&mut world), [1, 2, 3]);
}

#[test]
fn a_tail_that_only_cut_stores_are_left_without_is_not_given_up() {
    // Stores 1 and 2 may have lost the acknowledged record 3: only store 3 can tell (R8).
    let mut world = World::serving(3, 3, 1);
    write_all(&mut world, 3);
    for id in [1, 2] {
        let cut = world.stores.get_mut(&store(id)).unwrap();
        cut.flushed.cut_last(&child("a"));
        cut.restart();
    }
    world.take_over();
    while world.owner().phase() == Phase::Sealing {
        world.run(1);
    }
    world.away = [store(3)].into();
    world.run(3_000);
    assert_eq!(world.owner().phase(), Phase::Adopting);
    assert_eq!(world.set(), [1, 2, 3]);
    world.away.clear();
    world.run(1_500);
    assert_eq!(world.owner().phase(), Phase::Serving);
    assert_eq!(loaded(&mut world), [1, 2, 3]);
}

#[test]
fn without_a_complete_replica_the_unit_is_unavailable_and_not_empty() {
    let mut world = World::serving(2, 2, 2);
    write_all(&mut world, 2);
    world.away = [store(1), store(2)].into();
    world.take_said();
    world.take_over();
    world.run(900);
    assert!(!world.owner().is_unavailable());
    world.run(4_000);
    assert!(world.owner().is_unavailable());
    assert_eq!(world.take_said(), [OwnerAction::Unavailable], "said once");
    assert_eq!(world.write("a"), Err(OwnerRefused::NotServing));
    world.away.clear();
    world.run(100);
    assert_eq!(world.owner().phase(), Phase::Serving);
    assert!(!world.owner().is_unavailable());
    assert_eq!(loaded(&mut world), [1, 2]);
}

#[test]
fn an_unavailable_unit_can_be_given_back_or_ended() {
    for (leaving, is_release) in [
        (Leaving::Release, true),
        (Leaving::Exit(Exit::Shutdown), false),
    ] {
        let mut world = World::serving(2, 2, 2);
        world.away = [store(1), store(2)].into();
        world.commits = false;
        world.take_over();
        world.run(2_000);
        world.proposals.clear();
        world.tell(OwnerEvent::Leave(leaving)).unwrap();
        world.run(600);
        assert_eq!(world.proposals.len(), 3, "repeated until it is applied");
        for proposed in &world.proposals {
            assert_eq!(matches!(proposed, Command::Release(_)), is_release);
        }
        // L12: after it the owner does not resume, and what it has not read it does not mend.
        world.away.clear();
        world.run(500);
        assert_eq!(world.owner().phase(), Phase::Sealing);
    }
}

/// Stores that were cut, and those that are away: whether the takeover goes on.
fn check_cut(cut: &[u64], away: &[u64], goes_on: bool) {
    let mut world = World::serving(3, 3, 1);
    write_all(&mut world, 3);
    for id in cut {
        let store = world.stores.get_mut(&store(*id)).unwrap();
        store.flushed.cut_last(&child("a"));
        store.restart();
    }
    world.away = away.iter().copied().map(store).collect();
    world.take_over();
    world.run(1_500);
    let phase = world.owner().phase();
    assert_eq!(
        phase == Phase::Serving,
        goes_on,
        "cut {cut:?}, away {away:?}"
    );
    assert_eq!(world.owner().is_unavailable(), !goes_on);
    if goes_on && cut.len() < 3 {
        assert_eq!(loaded(&mut world), [1, 2, 3]);
        for id in world.set() {
            let scope = all();
            assert!(
                world.stores[&store(id)].replica.is_whole(&scope),
                "confirmed"
            );
        }
    }
}

#[test]
fn a_cut_store_counts_only_beside_a_whole_one_or_when_the_whole_set_is_sealed() {
    check_cut(&[1], &[2, 3], false);
    check_cut(&[1, 2], &[3], false);
    check_cut(&[1], &[3], true);
    check_cut(&[1, 2], &[], true);
    check_cut(&[1, 2, 3], &[], true);
    check_cut(&[1, 2, 3], &[3], false);
}

#[test]
fn a_damaged_chain_is_no_complete_one_and_is_mended_and_confirmed() {
    let mut world = World::serving(2, 2, 1);
    write_all(&mut world, 4);
    let damaged = world.stores.get_mut(&store(1)).unwrap();
    damaged.flushed.damage(&child("a"), 2);
    damaged.restart();
    world.away = [store(2)].into();
    world.take_over();
    world.run(1_500);
    assert!(world.owner().is_unavailable());
    world.away.clear();
    world.run(300);
    assert_eq!(world.owner().phase(), Phase::Serving);
    assert_eq!(world.places(1), [1, 2, 3, 4]);
    assert!(world.stores[&store(1)].replica.is_whole(&all()));
}

#[test]
fn damage_that_the_scrubber_finds_is_mended_while_serving() {
    let mut world = World::serving(2, 2, 2);
    write_all(&mut world, 4);
    world.tell(OwnerEvent::Unload(child("a"))).unwrap();
    let damaged = world.stores.get_mut(&store(1)).unwrap();
    damaged.damage(&child("a"), 2);
    let said = Said::Damaged { child: child("a") };
    let answer = answer(&world, 1, said);
    world.tell(OwnerEvent::Answer(answer)).unwrap();
    world.run(20);
    assert_eq!(world.places(1), [1, 2, 3, 4]);
    assert!(world.stores[&store(1)].replica.is_whole(&all()));
}

fn answer(world: &World, id: u64, said: Said) -> ReplicaAnswer {
    ReplicaAnswer {
        store: store(id),
        unit: UNIT,
        epoch: world.owner().claim().epoch,
        session: world.stores[&store(id)].session(),
        said,
    }
}

#[test]
fn a_straggler_that_is_sealed_late_does_not_keep_the_unit_from_being_released() {
    let mut world = World::serving(3, 3, 3);
    write_all(&mut world, 2);
    world.away = [store(3)].into();
    world.take_over();
    world.run(110);
    assert_eq!(world.owner().phase(), Phase::Adopting);
    world.away.clear();
    world.run(100);
    assert_eq!(world.owner().phase(), Phase::Serving);
    assert_eq!(world.acked(), 2);
    world.take_said();
    world.tell(OwnerEvent::Leave(Leaving::Release)).unwrap();
    world.run(10);
    let release = Command::Release(world.owner().claim());
    assert!(world.take_said().contains(&OwnerAction::Propose(release)));
}

#[test]
fn a_late_seal_of_a_stores_former_start_does_not_make_it_whole() {
    let mut world = World::serving(2, 2, 1);
    write_all(&mut world, 3);
    world.away = [store(2)].into();
    world.take_over();
    // Sealed and flushed, but the answer is slow and the last record is lost in between.
    let net = core::mem::take(&mut world.net);
    for message in net {
        world.deliver(message);
    }
    world.flush(store(1));
    let late = core::mem::take(&mut world.net);
    assert_eq!(late.len(), 1);
    let cut = world.stores.get_mut(&store(1)).unwrap();
    cut.flushed.cut_last(&child("a"));
    cut.restart();
    world.run(200);
    for message in late {
        world.deliver(message);
    }
    world.run(2_000);
    assert_eq!(world.owner().phase(), Phase::Sealing);
    assert!(world.owner().is_unavailable());
}

// Acknowledgements.

#[test]
fn a_record_is_acknowledged_when_every_member_has_flushed_it() {
    let mut world = World::serving(3, 3, 2);
    for id in [1, 2, 3] {
        world.unflushed.insert(store(id));
    }
    world.write("a").unwrap();
    for id in [1, 2, 3] {
        world.run(10);
        assert_eq!(world.acked(), 0);
        world.unflushed.remove(&store(id));
    }
    world.run(2);
    assert_eq!(world.acked(), 1);
    let acked = world.said.iter().filter(|(_, said)| match said {
        OwnerAction::Acknowledged { upto, .. } => *upto == world.heads(1)[0],
        _ => false,
    });
    assert_eq!(acked.count(), 1);
}

#[test]
fn a_silent_member_is_dropped_after_300_ms_and_not_before() {
    let mut world = World::serving(3, 3, 2);
    world.away = [store(3)].into();
    world.write("a").unwrap();
    world.run(295);
    assert_eq!((world.set(), world.acked()), ([1, 2, 3].into(), 0));
    world.run(60);
    assert_eq!((world.set(), world.acked()), ([1, 2].into(), 1));
}

#[test]
fn a_member_that_answers_late_is_not_silent() {
    let mut world = World::serving(3, 3, 2);
    for _ in 0..5 {
        world.away = [store(3)].into();
        world.write("a").unwrap();
        world.run(200);
        world.away.clear();
        world.run(100);
    }
    assert_eq!((world.set(), world.acked()), ([1, 2, 3].into(), 5));
}

#[test]
fn no_set_is_shrunk_below_min_copies_and_its_writes_wait() {
    let mut world = World::serving(2, 2, 2);
    world.away = [store(2)].into();
    world.write("a").unwrap();
    world.run(3_000);
    assert_eq!((world.set(), world.acked()), ([1, 2].into(), 0));
    world.away.clear();
    world.run(60);
    assert_eq!((world.set(), world.acked()), ([1, 2].into(), 1));
}

#[test]
fn below_min_copies_nothing_is_acknowledged() {
    let mut world = World::serving(2, 1, 1);
    write_all(&mut world, 1);
    world.change(|view| view.min_copies = 2);
    world.write("a").unwrap();
    world.run(20);
    assert_eq!(world.acked(), 1);
    world.change(|view| view.wanted = 2);
    world.run(20);
    assert_eq!((world.set(), world.acked()), ([1, 2].into(), 2));
}

#[test]
fn a_learner_is_made_complete_and_then_grown_into_the_set() {
    let mut world = World::serving(3, 2, 2);
    write_all(&mut world, 3);
    // An odd tail of long ago goes.
    let odd = more(&[], &child("odd"), 0, 2);
    let learner = world.stores.get_mut(&store(3)).unwrap();
    learner.asked(0, seal(all()));
    learner.asked(0, append(Head::NONE, &odd, 0));
    world.commits = false;
    world.change(|view| view.wanted = 3);
    world.run(10);
    assert_eq!(set_changes(&world), [[1, 2, 3]]);
    assert_eq!(world.places(3), [1, 2, 3], "complete before it is proposed");
    assert_eq!(world.stores[&store(3)].chain(&child("odd")), []);
    world.commits = true;
    world.run(260);
    assert_eq!(world.set(), [1, 2, 3]);
}

#[test]
fn acknowledgements_need_the_proposed_set_until_the_outcome_is_known() {
    let mut world = World::serving(3, 2, 2);
    write_all(&mut world, 1);
    world.commits = false;
    world.change(|view| view.wanted = 3);
    world.run(10);
    assert_eq!(set_changes(&world), [[1, 2, 3]]);
    world.unflushed = [store(3)].into();
    world.write("a").unwrap();
    world.run(20);
    assert_eq!(
        world.acked(),
        1,
        "R5: sealed on the new member alone it would be lost"
    );
    // The outcome: another entry was first, without it.
    world.proposals.clear();
    world.change(|view| view.config = ConfigVersion(9));
    assert_eq!(world.acked(), 2);
}

#[test]
fn at_min_copies_a_silent_member_is_swapped_for_a_complete_one() {
    let mut world = World::serving(3, 2, 2);
    write_all(&mut world, 2);
    world.away = [store(2)].into();
    world.write("a").unwrap();
    world.run(500);
    assert_eq!((world.set(), world.acked()), ([1, 3].into(), 3));
    assert_eq!(world.places(3), [1, 2, 3]);
}

#[test]
fn an_unreachable_member_is_dropped_at_once() {
    let mut world = World::serving(3, 3, 2);
    world.change(|view| view.unreachable = [store(3)].into());
    world.run(2);
    assert_eq!(world.set(), [1, 2]);
}

#[test]
fn a_learner_that_does_not_answer_gives_way_to_another() {
    let mut world = World::serving(4, 2, 2);
    write_all(&mut world, 2);
    world.away = [store(3)].into();
    world.change(|view| view.wanted = 3);
    world.run(1_900);
    assert_eq!(world.set(), [1, 2]);
    world.run(200);
    assert_eq!(world.set(), [1, 2, 4]);
}

#[test]
fn a_set_change_that_can_no_longer_be_made_is_given_up() {
    // The learner is proposed, and its node comes back with another store before the entry is
    // applied, which is void from then on.
    let mut world = World::serving(3, 2, 2);
    write_all(&mut world, 1);
    world.commits = false;
    world.change(|view| view.wanted = 3);
    world.run(10);
    assert_eq!(set_changes(&world), [[1, 2, 3]]);
    world.proposals.clear();
    world.away = [store(3)].into();
    world.change(|view| {
        view.unreachable = [store(3)].into();
        view.candidates = [store(1), store(2)].into();
    });
    world.write("a").unwrap();
    world.run(600);
    assert!(
        set_changes(&world).iter().all(|set| *set == [1, 2]),
        "{:?}",
        set_changes(&world)
    );
    world.commits = true;
    world.run(300);
    assert_eq!((world.set(), world.acked()), ([1, 2].into(), 2));
}

#[test]
fn a_spare_member_leaves_but_not_the_one_at_home() {
    let mut world = World::serving(3, 3, 2);
    write_all(&mut world, 1);
    world.change(|view| view.wanted = 2);
    world.run(5);
    assert_eq!(world.set(), [1, 2]);
}

#[test]
fn a_store_that_was_opened_again_is_sealed_again_and_gets_what_it_lost() {
    let mut world = World::serving(2, 2, 2);
    write_all(&mut world, 2);
    world.unflushed = [store(2)].into();
    world.write("a").unwrap();
    world.run(5);
    world.stores.get_mut(&store(2)).unwrap().restart();
    world.unflushed.clear();
    assert_eq!(world.acked(), 2);
    world.run(100);
    assert_eq!((world.acked(), world.places(2)), (3, [1, 2, 3].into()));
}

#[test]
fn a_late_answer_of_a_stores_former_start_does_not_count() {
    let mut world = World::serving(2, 2, 2);
    write_all(&mut world, 2);
    let mut late = answer(&world, 2, Said::Unsealed);
    let (after, more, cut) = (None, false, false);
    late.said = Said::Sealed {
        after,
        page: Vec::new(),
        more,
        cut,
    };
    world.stores.get_mut(&store(2)).unwrap().restart();
    world.write("a").unwrap();
    world.run(100);
    assert_eq!(world.acked(), 3);
    world.tell(OwnerEvent::Answer(late)).unwrap();
    // It may be of a later start as well: whoever answers now says which.
    world.run(100);
    world.write("a").unwrap();
    world.run(5);
    assert_eq!((world.acked(), world.places(2)), (4, [1, 2, 3, 4].into()));
}

#[test]
fn an_answer_to_another_epoch_or_from_a_stranger_is_refused() {
    let mut world = World::serving(3, 2, 2);
    let mut other = answer(&world, 1, Said::Confirmed);
    other.epoch = Epoch(7);
    assert_eq!(
        world.tell(OwnerEvent::Answer(other)),
        Err(OwnerRefused::NotMine)
    );
    let stranger = answer(&world, 3, Said::Confirmed);
    assert_eq!(
        world.tell(OwnerEvent::Answer(stranger)),
        Err(OwnerRefused::NotMine)
    );
}

// Children.

#[test]
fn a_child_is_written_only_when_it_is_loaded_and_ours() {
    let mut world = World::serving(2, 2, 2);
    assert_eq!(world.write("b"), Err(OwnerRefused::NotLoaded));
    world.change(|view| view.scope = except(&["b"]));
    assert_eq!(
        world.tell(OwnerEvent::Load(child("b"))),
        Err(OwnerRefused::NotOurs)
    );
    write_all(&mut world, 2);
    world.tell(OwnerEvent::Unload(child("a"))).unwrap();
    assert_eq!(world.write("a"), Err(OwnerRefused::NotLoaded));
    assert_eq!(world.owner().chain_len(&child("a")), 0);
    assert_eq!(loaded(&mut world), [1, 2]);
    world.write("a").unwrap();
}

#[test]
fn a_child_that_is_unloaded_before_its_records_are_acknowledged_is_acknowledged_yet() {
    let mut world = World::serving(2, 2, 2);
    world.unflushed = [store(2)].into();
    world.write("a").unwrap();
    world.tell(OwnerEvent::Unload(child("a"))).unwrap();
    world.run(10);
    world.stores.get_mut(&store(2)).unwrap().restart();
    world.unflushed.clear();
    world.run(200);
    assert_eq!(world.acked(), 1);
    assert_eq!(world.owner().chain_len(&child("a")), 0);
}

#[test]
fn a_load_waits_until_a_store_that_has_the_records_can_be_asked() {
    let mut world = World::serving(1, 1, 1);
    write_all(&mut world, 2);
    world.tell(OwnerEvent::Unload(child("a"))).unwrap();
    world.stores.get_mut(&store(1)).unwrap().restart();
    let unsealed = answer(&world, 1, Said::Unsealed);
    world.tell(OwnerEvent::Answer(unsealed)).unwrap();
    world.take_said();
    world.tell(OwnerEvent::Load(child("a"))).unwrap();
    world.run(1_000);
    let said = world.take_said();
    assert!(
        said.iter()
            .any(|said| matches!(said, OwnerAction::Loaded { records, .. } if records.len() == 2)),
        "{said:?}"
    );
}

#[test]
fn a_long_chain_is_loaded_from_another_store_when_the_own_one_does_not_answer() {
    let mut world = World::serving(2, 2, 1);
    write_all(&mut world, 100);
    world.tell(OwnerEvent::Unload(child("a"))).unwrap();
    world.away = [store(1)].into();
    world.take_said();
    world.tell(OwnerEvent::Load(child("a"))).unwrap();
    world.run(700);
    let said = world.take_said();
    assert!(
        said.iter().any(
            |said| matches!(said, OwnerAction::Loaded { records, .. } if records.len() == 100)
        )
    );
}

#[test]
fn a_child_that_never_wrote_is_forgotten_when_it_is_unloaded() {
    let mut world = World::serving(2, 2, 2);
    let before = world.owner().clone();
    for nth in 0..10 {
        let child = child(&format!("nobody{nth}"));
        world.tell(OwnerEvent::Load(child.clone())).unwrap();
        world.tell(OwnerEvent::Unload(child)).unwrap();
    }
    assert_eq!(*world.owner(), before);
}

#[test]
fn records_loaded_only_to_mend_a_store_are_dropped_again() {
    let mut world = World::serving(3, 2, 2);
    write_all(&mut world, 20);
    world.tell(OwnerEvent::Unload(child("a"))).unwrap();
    world.change(|view| view.wanted = 3);
    world.run(50);
    assert_eq!(world.set(), [1, 2, 3]);
    assert_eq!(world.places(3).len(), 20);
    assert_eq!(world.owner().chain_len(&child("a")), 0);
}

#[test]
fn a_chain_at_its_limit_takes_nothing_more() {
    let mut world = World::serving(1, 1, 1);
    write_all(&mut world, CHAIN_RECORDS_MAX);
    assert_eq!(world.write("a"), Err(OwnerRefused::ChainFull));
}

#[test]
fn two_generations_of_snapshots_are_kept() {
    let mut world = World::serving(2, 2, 2);
    for _ in 0..4 {
        world.write_kind("a", RecordKind::Snapshot).unwrap();
        write_all(&mut world, 4);
    }
    assert_eq!(world.owner().chain_len(&child("a")), 10);
    assert_eq!(world.owner().since_snapshot(&child("a")), 4);
    // A store hears with the next record what it need not keep.
    write_all(&mut world, 1);
    assert_eq!(world.places(1), (11..=21).collect::<Vec<_>>());
    world.take_over();
    world.run(10);
    assert_eq!(loaded(&mut world), (11..=21).collect::<Vec<_>>());
}

#[test]
fn large_records_are_sent_in_parts() {
    let mut world = World::serving(2, 1, 1);
    for _ in 0..10 {
        let body = Bytes::from(alloc::vec![7; crate::wire::record::BODY_BYTES_MAX]);
        world
            .tell(OwnerEvent::Write {
                child: child("a"),
                kind: RecordKind::Delta,
                schema: 0,
                body,
            })
            .unwrap();
    }
    world.run(5);
    world.change(|view| view.wanted = 2);
    world.run(20);
    assert_eq!(world.set(), [1, 2]);
    assert_eq!(world.places(2).len(), 10);
}

// Leaving.

#[test]
fn a_released_unit_is_quiet_and_acknowledged_first() {
    let mut world = World::serving(2, 2, 2);
    world.unflushed = [store(2)].into();
    world.write("a").unwrap();
    world.take_said();
    world.tell(OwnerEvent::Leave(Leaving::Release)).unwrap();
    assert_eq!(world.owner().phase(), Phase::Quiet);
    assert_eq!(world.write("a"), Err(OwnerRefused::NotServing));
    world.run(20);
    assert_eq!(world.take_said(), []);
    world.unflushed.clear();
    world.run(5);
    let claim = world.owner().claim();
    assert_eq!(
        world.take_said(),
        [OwnerAction::Propose(Command::Release(claim))]
    );
}

#[test]
fn a_quiet_owner_drops_a_member_that_falls_silent() {
    let mut world = World::serving(3, 3, 2);
    world.away = [store(3)].into();
    world.write("a").unwrap();
    world.take_said();
    world.tell(OwnerEvent::Leave(Leaving::Split(100))).unwrap();
    world.run(400);
    assert_eq!((world.set(), world.acked()), ([1, 2].into(), 1));
    let split = Command::Split {
        claim: world.owner().claim(),
        config: world.view.config,
        at: 100,
    };
    assert!(world.take_said().contains(&OwnerAction::Propose(split)));
}

#[test]
fn a_move_waits_until_its_target_is_complete() {
    let mut world = World::serving(3, 2, 2);
    write_all(&mut world, 3);
    world.unflushed = [store(3)].into();
    world.take_said();
    world.change(|view| view.move_to = Some(store(3)));
    world.tell(OwnerEvent::Leave(Leaving::Release)).unwrap();
    world.run(200);
    assert_eq!(world.owner().phase(), Phase::Serving);
    world.unflushed.clear();
    world.run(100);
    assert_eq!(world.set(), [1, 3], "the one neither here nor there leaves");
    let claim = world.owner().claim();
    assert!(
        world
            .take_said()
            .contains(&OwnerAction::Propose(Command::Release(claim)))
    );
}

#[test]
fn an_exit_waits_for_nobody_and_overrides() {
    let mut world = World::serving(2, 2, 2);
    world.away = [store(2)].into();
    world.write("a").unwrap();
    world.tell(OwnerEvent::Leave(Leaving::Release)).unwrap();
    world.take_said();
    let exit = Exit::Abnormal;
    world.tell(OwnerEvent::Leave(Leaving::Exit(exit))).unwrap();
    world.tell(OwnerEvent::Leave(Leaving::Release)).unwrap();
    world.run(1);
    let claim = world.owner().claim();
    assert_eq!(
        world.take_said(),
        [OwnerAction::Propose(Command::Exited { claim, exit })]
    );
}

/// The parts of a unit as the directory cut it: each a unit of its own at epoch 2.
fn parts(world: &World, scopes: &[Scope]) -> Vec<(OwnerConfig, UnitView)> {
    let part = |(nth, scope): (usize, &Scope)| {
        let config = OwnerConfig {
            unit: UnitId(1 + nth as u64),
            epoch: Epoch(2),
            incarnation: IncarnationId(1),
            home: store(1),
        };
        let view = UnitView {
            scope: scope.clone(),
            serving: true,
            ..world.view.clone()
        };
        (config, view)
    };
    scopes.iter().enumerate().map(part).collect()
}

fn reshape(world: &mut World, scopes: &[Scope]) {
    let old = core::mem::take(&mut world.owners);
    world.owners = Owner::reshaped(world.time(), old, parts(world, scopes));
    world.sent = 0;
    world.take_said();
    world.drain();
}

#[test]
fn a_reshaped_unit_goes_on_without_copying() {
    let (a, b) = (child("a"), child("b"));
    let at = a.slot().get().max(b.slot().get());
    let (low, high) = SlotRange::ALL.split(at).unwrap();
    let slots = |range| Scope::Slots {
        range,
        except: Vec::new(),
    };
    for scopes in [[slots(low), slots(high)], [except(&["b"]), only("b")]] {
        let mut world = World::serving(3, 3, 2);
        world.tell(OwnerEvent::Load(b.clone())).unwrap();
        write_all(&mut world, 3);
        world.write("b").unwrap();
        world.run(5);
        world.tell(OwnerEvent::Leave(Leaving::Split(at))).unwrap();
        world.run(5);
        reshape(&mut world, &scopes);
        for nth in [0, 1] {
            let mine = |child| scopes[nth].holds(child);
            for (child, tail) in [(&a, 3), (&b, 1)] {
                let tail = if mine(child) { Seq(tail) } else { Seq::ZERO };
                assert_eq!(world.owners[nth].tail(child), tail);
                assert_eq!(world.owners[nth].acknowledged(child), tail);
            }
        }
        // Calls need not wait; acknowledgements wait for the seals.
        for (nth, name) in [(0, "a"), (1, "b"), (0, "b"), (1, "a")] {
            let write = OwnerEvent::Write {
                child: child(name),
                kind: RecordKind::Delta,
                schema: 0,
                body: Bytes::new(),
            };
            let expected = if scopes[nth].holds(&child(name)) {
                Ok(())
            } else {
                Err(OwnerRefused::NotLoaded)
            };
            assert_eq!(world.tell_nth(nth, write), expected);
        }
        world.run(60);
        let acked = |child| {
            world
                .owners
                .iter()
                .map(|owner| owner.acknowledged(child))
                .max()
        };
        assert_eq!((acked(&a), acked(&b)), (Some(Seq(4)), Some(Seq(2))));
        assert_eq!(
            world.sent,
            2 * 3,
            "two new records to three stores, nothing else"
        );
    }
}

#[test]
fn a_merged_unit_has_the_children_of_both() {
    let (a, b) = (child("a"), child("b"));
    let mut world = World::serving(2, 2, 2);
    world.tell(OwnerEvent::Load(b.clone())).unwrap();
    write_all(&mut world, 3);
    world.write("b").unwrap();
    world.run(5);
    let at = a.slot().get().max(b.slot().get());
    let (low, high) = SlotRange::ALL.split(at).unwrap();
    let slots = |range| Scope::Slots {
        range,
        except: Vec::new(),
    };
    reshape(&mut world, &[slots(low), slots(high)]);
    world.run(10);
    for nth in [0, 1] {
        world
            .tell_nth(nth, OwnerEvent::Leave(Leaving::Merge))
            .unwrap();
        assert!(world.owners[nth].is_quiet());
    }
    assert!(world.take_said().contains(&OwnerAction::Quiet));
    reshape(&mut world, &[all()]);
    assert_eq!(
        (world.owner().tail(&a), world.owner().tail(&b)),
        (Seq(3), Seq(1))
    );
}

#[test]
fn a_load_that_was_under_way_goes_on_in_the_part() {
    let mut world = World::serving(2, 2, 2);
    write_all(&mut world, 3);
    world.tell(OwnerEvent::Unload(child("a"))).unwrap();
    world.tell(OwnerEvent::Load(child("a"))).unwrap();
    world.net.clear();
    reshape(&mut world, &[all()]);
    world.run(1_000);
    let said = world.take_said();
    assert!(
        said.iter()
            .any(|said| matches!(said, OwnerAction::Loaded { .. })),
        "{said:?}"
    );
}

// Time.

#[test]
fn an_idle_owner_wants_no_tick() {
    let mut world = World::serving(3, 3, 2);
    write_all(&mut world, 3);
    world.run(300);
    assert_eq!(world.owner().next_deadline(), None);
    let before = world.owner().clone();
    world.now += 10_000;
    world.tell(OwnerEvent::Tick).unwrap();
    assert!(world.net.is_empty() && world.proposals.is_empty());
    assert_eq!(world.owner().phase(), before.phase());
}

#[test]
fn lost_requests_are_sent_again() {
    let mut world = World::new(3, 3, 2);
    world.take_over();
    let mut dropped = 0;
    for _ in 0..100 {
        // Every other message is lost.
        let net = core::mem::take(&mut world.net);
        for message in net {
            dropped += 1;
            if dropped % 2 == 0 {
                world.net.push(message);
            }
        }
        world.run(10);
        if world.owner().phase() == Phase::Serving && world.owner().tail(&child("a")) == Seq::ZERO {
            world.tell(OwnerEvent::Load(child("a"))).unwrap();
            world.write("a").unwrap();
        }
    }
    assert_eq!(world.acked(), 1);
}

#[test]
fn the_records_of_a_loaded_child_are_its_chain() {
    let mut world = World::serving(2, 2, 2);
    write_all(&mut world, 5);
    world.take_said();
    world.tell(OwnerEvent::Load(child("a"))).unwrap();
    let said = world.take_said();
    let [OwnerAction::Loaded { records, .. }] = &said[..] else {
        panic!("{said:?}");
    };
    let heads: Vec<Head> = records.iter().map(Record::head).collect();
    assert_eq!(heads, world.heads(1));
}

#[test]
fn a_seal_asks_for_the_whole_index_page_by_page() {
    let mut world = World::serving(1, 1, 1);
    let names: Vec<_> = (0..600).map(|nth| format!("c{nth}")).collect();
    for name in &names {
        world.tell(OwnerEvent::Load(child(name))).unwrap();
        world.write(name).unwrap();
    }
    world.run(5);
    world.take_over();
    world.run(20);
    assert_eq!(world.owner().phase(), Phase::Serving);
    for name in &names {
        assert_eq!(world.owner().tail(&child(name)), Seq(1));
    }
    let seals = world.net.iter().filter(|message| {
        matches!(message, Message::Request { request, .. } if matches!(request.ask, Ask::Seal { .. }))
    });
    assert_eq!(seals.count(), 0, "nothing is asked twice");
}
