//! One store and whoever asks it. `a` is the child; `1..=5` in a comment are records by their place.

use alloc::format;
use alloc::vec::Vec;

use super::harness::*;
use crate::cluster::replication::{CutMark, ReplicaEvent, ReplicaRefused};
use crate::id::{ChildId, Epoch, IncarnationId, Seq, SlotRange, StoreId};
use crate::wire::record::{Head, Record, RecordKind};
use crate::wire::replica::{Ask, CHAIN_RECORDS_MAX, INDEX_PAGE, Said, Scope};

fn a() -> ChildId {
    child("a")
}

/// A store sealed at epoch 1 that holds `len` records of `a`, all flushed.
fn holding(len: usize) -> (Store, Vec<Record>) {
    let mut store = Store::new(StoreId(1));
    store.asked(1, seal(all()));
    let chain = more(&[], &a(), 1, len);
    if len > 0 {
        let said = store.asked(1, append(Head::NONE, &chain, 0));
        assert_eq!(said, appended(&chain));
    }
    (store, chain)
}

fn appended(chain: &[Record]) -> Said {
    let last = chain.last().unwrap();
    Said::Appended {
        child: last.child.clone(),
        upto: last.head(),
    }
}

fn mismatch(tail: Head) -> Said {
    Said::Mismatch { child: a(), tail }
}

fn damaged() -> Said {
    Said::Damaged { child: a() }
}

/// The index of a scope sealed at `epoch`: children and places of their tails, and whether cut.
fn sealed(store: &mut Store, epoch: u64, scope: Scope) -> (Vec<(ChildId, u64, bool)>, bool) {
    match store.asked(epoch, seal(scope)) {
        Said::Sealed { page, cut, .. } => {
            let page = page.into_iter();
            let page = page.map(|indexed| (indexed.child, indexed.tail.seq.0, indexed.damaged));
            (page.collect(), cut)
        }
        other => panic!("{other:?}"),
    }
}

// Promises.

#[test]
fn a_promise_is_flushed_before_it_is_answered() {
    let mut store = Store::new(StoreId(1));
    assert_eq!(store.ask(3, seal(all())), []);
    let mut lost = store.clone();
    lost.restart();
    sealed(&mut lost, 1, all());
    assert!(
        matches!(store.flush()[..], [ref answer] if matches!(answer.said, Said::Sealed { .. }))
    );
    store.restart();
    assert_eq!(store.ask(2, seal(all())), [Said::Promised(Epoch(3))]);
}

#[test]
fn a_lower_epoch_is_refused_even_before_the_higher_promise_is_flushed() {
    let (mut store, chain) = holding(1);
    let next = more(&chain, &a(), 1, 1);
    assert_eq!(store.ask(2, seal(all())), []);
    for old in [
        seal(all()),
        append(chain[0].head(), &next[1..], 0),
        Ask::Confirm { scope: all() },
        Ask::Fetch {
            child: a(),
            after: Seq::ZERO,
        },
    ] {
        assert_eq!(store.ask(1, old), [Said::Promised(Epoch(2))]);
    }
}

#[test]
fn an_index_waits_until_every_head_in_it_is_flushed() {
    let (mut store, chain) = holding(1);
    let next = more(&chain, &a(), 1, 1);
    assert_eq!(store.ask(1, append(chain[0].head(), &next[1..], 0)), []);
    // The seal itself changes nothing: the promise stands.
    assert_eq!(store.ask(1, seal(all())), []);
    assert_eq!(store.flush().len(), 2);
}

#[test]
fn what_is_for_another_start_of_the_store_or_not_sealed_is_refused() {
    let (mut store, chain) = holding(1);
    let next = more(&chain, &a(), 1, 1);
    let late = append(chain[0].head(), &next[1..], 0);
    let other = Some(IncarnationId(7));
    assert_eq!(store.request(1, other, late.clone()), [Said::Unsealed]);
    assert_eq!(store.request(1, None, late.clone()), [Said::Unsealed]);
    // A higher epoch that has not sealed.
    assert_eq!(store.ask(2, late.clone()), [Said::Unsealed]);
    let before = store.session();
    store.restart();
    assert_eq!(
        store.request(1, Some(before), late.clone()),
        [Said::Unsealed]
    );
    assert_eq!(store.ask(1, late.clone()), [Said::Unsealed]);
    sealed(&mut store, 1, all());
    assert_eq!(store.asked(1, late), appended(&next));
}

#[test]
fn a_part_of_the_slots_sealed_higher_refuses_the_whole_range() {
    let mut store = Store::new(StoreId(1));
    let half = Scope::Slots {
        range: SlotRange::new(0, 8_192).unwrap(),
        except: Vec::new(),
    };
    store.asked(5, seal(half.clone()));
    assert_eq!(store.ask(4, seal(all())), [Said::Promised(Epoch(5))]);
    let other = Scope::Slots {
        range: SlotRange::new(8_192, 16_384).unwrap(),
        except: Vec::new(),
    };
    sealed(&mut store, 2, other.clone());
    // A merge goes on above both.
    sealed(&mut store, 6, all());
    assert_eq!(
        store.ask(5, Ask::Confirm { scope: half }),
        [Said::Promised(Epoch(6))]
    );
    assert_eq!(
        store.ask(5, Ask::Confirm { scope: other }),
        [Said::Promised(Epoch(6))]
    );
}

#[test]
fn an_excepted_child_keeps_its_promise_when_its_shards_rises() {
    let (mut store, chain) = holding(1);
    let next = more(&chain, &a(), 2, 1);
    // The exception at epoch 2 (S2): both parts are sealed at 2; then the shard moves on to 9.
    sealed(&mut store, 2, only("a"));
    sealed(&mut store, 9, except(&["a"]));
    assert_eq!(
        store.asked(2, append(chain[0].head(), &next[1..], 1)),
        appended(&next)
    );
    store.restart();
    assert_eq!(
        sealed(&mut store, 2, only("a")),
        ([(a(), 2, false)].into(), false)
    );
    assert_eq!(sealed(&mut store, 9, except(&["a"])), (Vec::new(), false));
    assert_eq!(
        store.ask(8, seal(except(&["a"]))),
        [Said::Promised(Epoch(9))]
    );
}

#[test]
fn an_excepted_child_keeps_its_promise_though_its_own_unit_has_not_sealed_yet() {
    let (mut store, _) = holding(1);
    sealed(&mut store, 9, except(&["a"]));
    store.restart();
    sealed(&mut store, 2, only("a"));
}

#[test]
fn a_part_excepted_after_the_askers_grant_refuses_it() {
    let (mut store, _) = holding(1);
    sealed(&mut store, 3, only("a"));
    assert_eq!(store.ask(2, seal(all())), [Said::Promised(Epoch(3))]);
    sealed(&mut store, 3, except(&["a"]));
}

#[test]
fn a_dedicated_child_is_no_shards() {
    let mut store = Store::new(StoreId(1));
    let own = dedicated("a");
    let scope = Scope::Child(own.clone());
    sealed(&mut store, 7, scope.clone());
    let chain = more(&[], &own, 7, 2);
    assert_eq!(
        store.asked(7, append(Head::NONE, &chain, 0)),
        appended(&chain)
    );
    assert_eq!(sealed(&mut store, 2, all()), (Vec::new(), false));
    let next = more(&chain, &own, 2, 1);
    assert_eq!(
        store.ask(2, append(chain[1].head(), &next[2..], 0)),
        [Said::Promised(Epoch(7))]
    );
    // Nor does it lie in slots that are confirmed.
    store.flushed.cut = CutMark {
        slots: [SlotRange::ALL].into(),
        dedicated: true,
        ..CutMark::default()
    };
    store.restart();
    for (epoch, confirmed, other) in [(2, all(), scope.clone()), (7, scope, all())] {
        sealed(&mut store, epoch, confirmed.clone());
        let is_whole = store.replica.is_whole(&other);
        let scope = confirmed.clone();
        let said = store.asked(epoch, Ask::Confirm { scope });
        assert_eq!(said, Said::Confirmed);
        assert!(store.replica.is_whole(&confirmed));
        assert_eq!(store.replica.is_whole(&other), is_whole);
    }
    assert!(!store.replica.is_whole(&Scope::Child(dedicated("b"))));
}

#[test]
fn a_long_index_comes_in_pages() {
    let mut store = Store::new(StoreId(1));
    store.asked(1, seal(all()));
    let mut children: Vec<ChildId> = (0..INDEX_PAGE * 2 + 10)
        .map(|nth| child(&format!("c{nth}")))
        .collect();
    for child in &children {
        store.asked(1, append(Head::NONE, &more(&[], child, 1, 1), 0));
    }
    children.sort();
    let (mut after, mut got) = (None, Vec::new());
    for pages in 1.. {
        let scope = all();
        let Said::Sealed {
            after: of,
            page,
            more,
            ..
        } = store.asked(
            2,
            Ask::Seal {
                scope,
                after: after.clone(),
            },
        )
        else {
            panic!("a page");
        };
        assert_eq!(of, after);
        assert!(page.len() <= INDEX_PAGE);
        got.extend(page.into_iter().map(|indexed| indexed.child));
        after = got.last().cloned();
        if !more {
            assert_eq!(pages, 3);
            break;
        }
    }
    assert_eq!(got, children);
}

#[test]
fn an_index_of_exactly_one_page_has_no_more() {
    let mut store = Store::new(StoreId(1));
    store.asked(1, seal(all()));
    for nth in 0..INDEX_PAGE {
        let child = child(&format!("c{nth}"));
        store.asked(1, append(Head::NONE, &more(&[], &child, 1, 1), 0));
    }
    assert!(matches!(
        store.asked(1, seal(all())),
        Said::Sealed { more: false, .. }
    ));
}

// Chains.

#[test]
fn records_are_answered_when_they_are_flushed() {
    let (mut store, _) = holding(0);
    let chain = more(&[], &a(), 1, 2);
    assert_eq!(store.ask(1, append(Head::NONE, &chain[..1], 0)), []);
    assert_eq!(store.ask(1, append(chain[0].head(), &chain[1..], 0)), []);
    let first: Vec<Said> = store
        .flush_one()
        .into_iter()
        .map(|answer| answer.said)
        .collect();
    assert_eq!(first, [appended(&chain[..1])]);
    store.restart();
    assert_eq!(store.chain(&a()), chain[..1]);
}

#[test]
fn a_repeated_append_is_answered_again_and_changes_nothing() {
    let (mut store, chain) = holding(3);
    for (from, to) in [(0, 3), (1, 2), (2, 3), (0, 1)] {
        let prev = if from == 0 {
            Head::NONE
        } else {
            chain[from - 1].head()
        };
        let said = store.asked(1, append(prev, &chain[from..to], 0));
        assert_eq!(said, appended(&chain[..to]));
        assert_eq!(store.chain(&a()), chain);
    }
}

#[test]
fn a_repeated_append_is_answered_only_when_the_first_is_flushed() {
    let (mut store, _) = holding(0);
    let chain = more(&[], &a(), 1, 1);
    let ask = append(Head::NONE, &chain, 0);
    assert_eq!(store.ask(1, ask.clone()), []);
    assert_eq!(store.ask(1, ask), []);
    assert_eq!(store.flush_one().len(), 2);
}

#[test]
fn a_record_that_came_before_its_predecessor_is_a_mismatch() {
    let (mut store, chain) = holding(2);
    let next = more(&chain, &a(), 1, 3);
    assert_eq!(
        store.asked(1, append(next[3].head(), &next[4..], 0)),
        mismatch(chain[1].head())
    );
    assert_eq!(
        store.asked(1, append(chain[1].head(), &next[2..], 0)),
        appended(&next)
    );
}

#[test]
fn a_mismatch_waits_until_the_tail_that_it_names_is_flushed() {
    let (mut store, chain) = holding(1);
    let next = more(&chain, &a(), 1, 3);
    assert_eq!(store.ask(1, append(chain[0].head(), &next[1..2], 0)), []);
    assert_eq!(store.ask(1, append(next[2].head(), &next[3..], 0)), []);
    let said: Vec<Said> = store
        .flush()
        .into_iter()
        .map(|answer| answer.said)
        .collect();
    assert_eq!(said, [appended(&next[..2]), mismatch(next[1].head())]);
}

#[test]
fn what_is_no_intact_chain_of_the_child_is_refused() {
    let (mut store, chain) = holding(2);
    let next = more(&chain, &a(), 1, 2);
    let mut torn = next.clone();
    torn[3].checksum ^= 1;
    let gap = [next[2].clone(), more(&next, &a(), 1, 1)[4].clone()];
    let mut others = next.clone();
    others[3] = record(&child("b"), 1, next[2].head(), RecordKind::Delta);
    let long = more(&chain, &a(), 1, CHAIN_RECORDS_MAX + 1);
    for bad in [&torn[2..], &gap, &others[2..], &next[3..], &long[2..]] {
        let mut ask = append(chain[1].head(), bad, 0);
        if let Ask::Append(append) = &mut ask {
            append.child = a();
        }
        let session = Some(store.session());
        let request = crate::wire::replica::ReplicaRequest {
            unit: UNIT,
            epoch: Epoch(1),
            config: crate::id::ConfigVersion(1),
            session,
            ask,
        };
        let asked = ReplicaEvent::Asked {
            from: OWNER,
            request,
        };
        assert_eq!(store.handle(asked), Err(ReplicaRefused::BadChain));
    }
    let ticket = 999;
    assert_eq!(
        store.handle(ReplicaEvent::Flushed { ticket }),
        Err(ReplicaRefused::Unknown)
    );
    let read = ReplicaEvent::Read {
        read: 9,
        records: Vec::new(),
    };
    assert_eq!(store.handle(read), Err(ReplicaRefused::Unknown));
}

#[test]
fn the_unacknowledged_tail_of_an_earlier_owner_is_truncated() {
    let (mut store, chain) = holding(5);
    // The new owner took over at 3 without this store's 4 and 5.
    sealed(&mut store, 2, all());
    assert_eq!(
        store.asked(2, append(chain[2].head(), &[], 3)),
        appended(&chain[..3])
    );
    assert_eq!(store.chain(&a()), chain[..3]);
    // And one that took over at 2, and wrote another 3 since.
    let (mut store, chain) = holding(5);
    let other = more(&chain[..2], &a(), 2, 1);
    sealed(&mut store, 2, all());
    assert_eq!(
        store.asked(2, append(chain[1].head(), &other[2..], 2)),
        appended(&other)
    );
    assert_eq!(store.chain(&a()), other);
}

#[test]
fn an_owner_without_any_record_of_the_child_drops_its_odd_tail() {
    let (mut store, _) = holding(2);
    sealed(&mut store, 2, all());
    let said = store.asked(2, from_base(&[], 0));
    let upto = Head::NONE;
    assert_eq!(said, Said::Appended { child: a(), upto });
    assert_eq!(store.chain(&a()), []);
}

#[test]
fn records_within_what_the_owner_took_over_are_not_truncated_by_an_early_part() {
    let (mut store, chain) = holding(5);
    sealed(&mut store, 2, all());
    assert_eq!(
        store.asked(2, append(chain[1].head(), &[], 5)),
        appended(&chain[..2])
    );
    assert_eq!(store.chain(&a()), chain);
}

#[test]
fn what_lies_beyond_a_part_that_agrees_is_compared_before_it_counts() {
    // 1 and 2 are common; this store's 3 is another than the owner's, and the owner's come in two
    // parts, the second repeated.
    let (mut store, chain) = holding(3);
    let other = more(&chain[..2], &a(), 2, 2);
    sealed(&mut store, 3, all());
    store.asked(3, append(chain[0].head(), &other[1..2], 4));
    for _ in 0..2 {
        let said = store.asked(3, append(other[1].head(), &other[2..3], 4));
        assert_eq!(said, appended(&other[..3]));
        assert_eq!(store.chain(&a()), other[..3]);
    }
}

#[test]
fn a_delayed_duplicate_never_truncates_or_replaces_newer_records() {
    let (mut store, chain) = holding(3);
    sealed(&mut store, 2, all());
    let next = more(&chain, &a(), 2, 4);
    let old = [
        append(chain[2].head(), &[], 3),
        append(chain[2].head(), &next[3..4], 3),
        from_base(&next[..3], 3),
        from_base(&next[..5], 3),
    ];
    for ask in old.iter().cloned() {
        store.asked(2, ask);
    }
    store.asked(2, append(chain[2].head(), &next[3..], 3));
    for late in old {
        store.asked(2, late);
        assert_eq!(store.chain(&a()), next);
    }
    // Also when what they begin with was pruned since.
    let last = more(&next, &a(), 2, 1);
    let ask = append(next[6].head(), &last[7..], 3);
    store.asked(2, keep_from(ask, 6));
    store.asked(2, from_base(&next[..4], 3));
    assert_eq!(store.chain(&a()), last[5..]);
}

#[test]
fn an_append_from_the_base_replaces_a_chain_that_does_not_reach_it() {
    let (mut store, _) = holding(2);
    let chain = more(&[], &a(), 1, 9);
    sealed(&mut store, 2, all());
    assert_eq!(
        store.asked(2, append(chain[5].head(), &chain[6..], 9)),
        mismatch(chain[1].head())
    );
    assert_eq!(store.asked(2, from_base(&chain[4..], 9)), appended(&chain));
    assert_eq!(store.chain(&a()), chain[4..]);
}

#[test]
fn records_before_the_kept_one_are_pruned() {
    let (mut store, chain) = holding(5);
    let next = more(&chain, &a(), 1, 1);
    store.asked(1, keep_from(append(chain[4].head(), &next[5..], 0), 4));
    assert_eq!(store.chain(&a()), next[3..]);
    // A place that does not stand here prunes nothing.
    let last = more(&next, &a(), 1, 1);
    store.asked(1, keep_from(append(next[5].head(), &last[6..], 0), 99));
    assert_eq!(store.chain(&a()), last[3..]);
}

#[test]
fn a_store_that_has_pruned_more_than_the_owner_keeps_its_records_while_it_is_mended() {
    // This store keeps 5..=8 and an odd 9; the next owner's base is 1, and it sends two at a time.
    let (mut store, chain) = holding(8);
    let odd = more(&chain, &a(), 1, 1);
    store.asked(1, keep_from(append(chain[7].head(), &odd[8..], 0), 5));
    sealed(&mut store, 3, all());
    let owners = more(&chain, &a(), 2, 2);
    store.asked(3, from_base(&owners[..2], 10));
    for at in (2..10).step_by(2) {
        let ask = append(owners[at - 1].head(), &owners[at..at + 2], 10);
        assert_eq!(store.asked(3, ask), appended(&owners[..at + 2]));
        let held = store.chain(&a());
        assert_eq!(
            held[..4],
            chain[4..],
            "acknowledged records were gone for a while"
        );
    }
    assert_eq!(store.chain(&a()), owners[4..]);
}

#[test]
fn a_chain_that_parts_from_the_owners_below_its_base_is_given_up() {
    let (mut store, chain) = holding(8);
    let next = more(&chain, &a(), 1, 1);
    store.asked(1, keep_from(append(chain[7].head(), &next[8..], 0), 5));
    sealed(&mut store, 3, all());
    let owners = more(&chain[..2], &a(), 2, 8);
    // In one piece, or in two.
    let mut one = store.clone();
    assert_eq!(one.asked(3, from_base(&owners, 10)), appended(&owners));
    assert_eq!(one.chain(&a()), owners);
    store.asked(3, from_base(&owners[..3], 10));
    assert_eq!(
        store.asked(3, append(owners[2].head(), &owners[3..], 10)),
        mismatch(Head::NONE)
    );
    assert_eq!(
        store.asked(3, append(Head::NONE, &owners, 10)),
        appended(&owners)
    );
    assert_eq!(store.chain(&a()), owners);
}

#[test]
fn a_chain_whose_base_lies_beyond_the_owners_tail_is_an_odd_tail() {
    let (mut store, chain) = holding(8);
    let next = more(&chain, &a(), 1, 1);
    store.asked(1, keep_from(append(chain[7].head(), &next[8..], 0), 5));
    sealed(&mut store, 4, all());
    assert_eq!(
        store.asked(4, from_base(&chain[..2], 2)),
        appended(&chain[..2])
    );
    assert_eq!(store.chain(&a()), chain[..2]);
}

#[test]
fn records_are_fetched_in_order_after_a_place() {
    let (mut store, chain) = holding(4);
    for after in [0, 2, 4] {
        let ask = Ask::Fetch {
            child: a(),
            after: Seq(after),
        };
        let said = store.asked(1, ask);
        let (child, after, records) = (a(), Seq(after), chain[after as usize..].to_vec());
        assert_eq!(
            said,
            Said::Fetched {
                child,
                after,
                records
            }
        );
    }
}

// Damage and cuts (R8).

#[test]
fn found_damage_is_said_to_the_owner_and_mended_from_the_base_and_confirmed() {
    let (mut store, chain) = holding(5);
    assert_eq!(store.damage(&a(), 3), [damaged()]);
    assert!(!store.replica.is_whole(&all()));
    let mut again = store.clone();
    again.flush();
    again.restart();
    assert_eq!(
        sealed(&mut again, 2, all()),
        ([(a(), 2, true)].into(), false)
    );
    store.flush();
    for (mut store, epoch) in [(store, 1), (again, 2)] {
        let said = store.asked(epoch, from_base(&chain, 5));
        assert_eq!(said, appended(&chain));
        assert!(
            !store.replica.is_whole(&all()),
            "not before it is confirmed"
        );
        let scope = all();
        assert_eq!(store.asked(epoch, Ask::Confirm { scope }), Said::Confirmed);
        assert!(store.replica.is_whole(&all()));
        store.restart();
        assert!(store.replica.is_whole(&all()));
    }
}

#[test]
fn damage_of_what_does_not_stand_here_is_none() {
    let (mut store, chain) = holding(5);
    let next = more(&chain, &a(), 1, 1);
    store.asked(1, keep_from(append(chain[4].head(), &next[5..], 0), 4));
    for at in [0, 3, 7, 99] {
        assert_eq!(store.damage(&a(), at), []);
    }
    assert_eq!(store.damage(&child("b"), 1), []);
    assert!(store.replica.is_whole(&all()));
    assert_eq!(store.chain(&a()), next[3..]);
}

#[test]
fn damage_found_after_a_takeover_is_said_to_the_new_owner() {
    let (mut store, _) = holding(3);
    sealed(&mut store, 2, all());
    let child = a();
    let at = Seq(2);
    let answers = store.handle(ReplicaEvent::Damage { child, at }).unwrap();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].epoch, Epoch(2));
}

#[test]
fn a_record_that_is_found_damaged_before_it_is_answered_is_not_answered() {
    let (mut store, chain) = holding(2);
    let next = more(&chain, &a(), 1, 2);
    assert_eq!(store.ask(1, append(chain[1].head(), &next[2..3], 0)), []);
    assert_eq!(store.ask(1, append(next[2].head(), &next[3..], 0)), []);
    assert_eq!(store.damage(&a(), 1), [damaged()]);
    assert_eq!(store.flush(), []);
}

#[test]
fn a_damaged_chain_that_does_not_connect_says_so_again() {
    let (mut store, chain) = holding(5);
    store.damage(&a(), 3);
    let next = more(&chain, &a(), 1, 1);
    assert_eq!(
        store.asked(1, append(chain[4].head(), &next[5..], 0)),
        damaged()
    );
    assert_eq!(store.asked(1, from_base(&next, 0)), appended(&next));
}

#[test]
fn a_confirmation_from_before_the_damage_confirms_nothing() {
    let (mut store, chain) = holding(5);
    store.damage(&a(), 3);
    store.flush();
    let confirm = Ask::Confirm { scope: all() };
    assert_eq!(store.asked(1, confirm.clone()), damaged());
    // Nor while it is being mended.
    store.asked(1, from_base(&chain[..4], 0));
    assert_eq!(store.asked(1, confirm.clone()), damaged());
    assert!(!store.replica.is_whole(&all()));
    store.asked(1, append(chain[3].head(), &chain[4..], 0));
    assert_eq!(store.asked(1, confirm), Said::Confirmed);
    assert!(store.replica.is_whole(&all()));
}

#[test]
fn damage_to_an_odd_tail_does_not_keep_a_store_from_being_confirmed() {
    let (mut store, chain) = holding(5);
    sealed(&mut store, 2, all());
    // The owner took over at 4; this store's odd 5 goes with the damaged 3.
    store.damage(&a(), 3);
    store.flush();
    assert_eq!(
        store.asked(2, from_base(&chain[..4], 4)),
        appended(&chain[..4])
    );
    assert_eq!(
        store.asked(2, Ask::Confirm { scope: all() }),
        Said::Confirmed
    );
}

#[test]
fn a_cut_store_says_so_until_it_is_confirmed() {
    let (mut store, chain) = holding(3);
    store.flushed.cut_last(&a());
    store.restart();
    assert_eq!(
        sealed(&mut store, 2, all()),
        ([(a(), 2, false)].into(), true)
    );
    store.asked(2, append(chain[1].head(), &chain[2..], 3));
    store.restart();
    assert!(sealed(&mut store, 2, all()).1, "an append confirms nothing");
    assert_eq!(
        store.asked(2, Ask::Confirm { scope: all() }),
        Said::Confirmed
    );
    store.restart();
    assert!(!sealed(&mut store, 2, all()).1);
}

#[test]
fn a_confirmation_is_answered_when_it_is_flushed_and_only_for_a_sealed_scope() {
    let (mut store, _) = holding(1);
    store.flushed.cut_last(&a());
    store.restart();
    let confirm = Ask::Confirm { scope: all() };
    assert_eq!(store.ask(1, confirm.clone()), [Said::Unsealed]);
    sealed(&mut store, 1, all());
    assert_eq!(store.ask(1, confirm), []);
    store.restart();
    assert!(!store.replica.is_whole(&all()));
}

/// Confirms `scopes` one after another on a store that was cut; which of the others stay cut.
fn check_cut(scopes: &[Scope], whole: &[(&Scope, bool)]) {
    let (mut store, _) = holding(1);
    store.flushed.cut_last(&a());
    store.restart();
    for scope in scopes {
        sealed(&mut store, 2, scope.clone());
        let scope = scope.clone();
        assert_eq!(store.asked(2, Ask::Confirm { scope }), Said::Confirmed);
    }
    for _ in 0..2 {
        for (scope, is_whole) in whole {
            assert_eq!(store.replica.is_whole(scope), *is_whole, "{scope:?}");
        }
        store.restart();
    }
}

#[test]
fn a_cut_is_confirmed_scope_by_scope() {
    let (shard, own, other) = (except(&["a", "b"]), only("a"), only("b"));
    check_cut(&[], &[(&shard, false), (&own, false), (&other, false)]);
    check_cut(
        core::slice::from_ref(&own),
        &[(&shard, false), (&own, true), (&other, false)],
    );
    check_cut(
        core::slice::from_ref(&shard),
        &[(&shard, true), (&own, false), (&other, false)],
    );
    check_cut(
        &[shard.clone(), own.clone()],
        &[(&shard, true), (&own, true), (&other, false)],
    );
    check_cut(
        &[own.clone(), other.clone(), shard.clone()],
        &[(&shard, true), (&own, true), (&other, true)],
    );
}

#[test]
fn a_wholly_confirmed_store_keeps_no_mark() {
    let (mut store, _) = holding(1);
    store.flushed.cut_last(&a());
    store.restart();
    for scope in [except(&["a"]), only("a")] {
        sealed(&mut store, 2, scope.clone());
        store.asked(2, Ask::Confirm { scope });
    }
    assert_eq!(store.flushed.cut, CutMark::default());
}
