//! What a store says when a part of it is gone. Damage is done to sled's content, so that exactly one
//! thing is wrong; damage to sled's files is done in `tests/`.
#![allow(clippy::unwrap_used)]

use std::fs;

use bytes::Bytes;
use understudy_protocol::cluster::replication::CutMark;
use understudy_protocol::id::{ConfigVersion, Epoch, SlotRange};
use understudy_protocol::wire::record::RecordKind;
use understudy_supervision::store::conformance::promise;

use super::*;
use crate::ledger::DATABASE;

const ID: StoreId = StoreId(1);

fn child(name: &str) -> ChildId {
    ChildId::parse(name).unwrap()
}

/// Snapshots at 1, 5, 9, …
fn chain(name: &str, count: u64) -> Vec<Record> {
    let mut prev = Head::NONE;
    let chained = (1..=count).map(|seq| {
        let kind = match seq % 4 {
            1 => RecordKind::Snapshot,
            _ => RecordKind::Delta,
        };
        let body = Bytes::from(format!("{name} {seq}"));
        let record = Record::chained(child(name), Epoch(1), ConfigVersion(1), prev, kind, 1, body);
        prev = record.head();
        record
    });
    chained.collect()
}

fn puts(records: &[Record]) -> Vec<Write> {
    records.iter().cloned().map(Write::Put).collect()
}

/// A store with the children `t/k/a` (8 records), `t/k/b` (8) and `@t/k/c` (1), closed.
fn made() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    SledStore::create(folder.path()).unwrap();
    let mut store = open(&folder).unwrap();
    let own = Write::ChildPromise {
        child: child("@t/k/c"),
        epoch: Epoch(4),
    };
    store.commit(vec![promise(0, 100, 3), own]).unwrap();
    for (name, count) in [("t/k/a", 8), ("t/k/b", 8), ("@t/k/c", 1)] {
        store.commit(puts(&chain(name, count))).unwrap();
    }
    folder
}

fn open(folder: &tempfile::TempDir) -> Result<SledStore, Unopened> {
    SledStore::open(folder.path(), ID)
}

/// Changes sled's content behind the store's back.
fn tamper(folder: &tempfile::TempDir, tamper: impl FnOnce(&sled::Db)) {
    let db = crate::ledger::open_sled(&folder.path().join(DATABASE)).unwrap();
    tamper(&db);
    db.flush().unwrap();
}

fn key(name: &str, seq: u64) -> Vec<u8> {
    record_key(&child(name), Seq(seq))
}

fn spoil(db: &sled::Db, key: &[u8]) {
    let mut value = db.get(key).unwrap().unwrap().to_vec();
    let last = value.len() - 1;
    value[last] ^= 1;
    db.insert(key, value).unwrap();
}

fn all_cut() -> CutMark {
    CutMark {
        slots: vec![SlotRange::ALL],
        dedicated: true,
        ..CutMark::default()
    }
}

/// What must be found: the records that stand of `t/k/a`, whether it is damaged, whether all is cut.
/// It is found at every opening, `t/k/b` is as it was, and the store goes on.
#[track_caller]
fn check(folder: &tempfile::TempDir, stands: u64, damaged: bool, cut: bool) {
    for _ in 0..2 {
        let mut store = open(folder).unwrap();
        let opened = store.opened().unwrap();
        let chain_of = |name: &str| {
            let mut chains = opened.chains.iter();
            chains.find(|chain| chain.child.as_str() == name)
        };
        let a = chain_of("t/k/a").unwrap();
        let expected: Vec<Head> = chain("t/k/a", stands).iter().map(Record::head).collect();
        assert_eq!((&a.heads, a.damaged), (&expected, damaged));
        assert_eq!(opened.cut, if cut { all_cut() } else { CutMark::default() });
        let b = chain_of("t/k/b").unwrap();
        assert_eq!((b.heads.len(), b.damaged), (8, false));
        assert_eq!(opened.promises.len(), 1);
        assert_eq!(
            store.read(&child("t/k/b"), Seq(0)).unwrap(),
            chain("t/k/b", 8)
        );
        assert_eq!(
            store.read(&child("t/k/a"), Seq(0)).unwrap(),
            chain("t/k/a", stands)
        );
    }
    let mut store = open(folder).unwrap();
    let again = chain("t/k/a", 8);
    store.commit(puts(&again[stands as usize..])).unwrap();
    let mended = Write::Damaged {
        child: child("t/k/a"),
        damaged: false,
    };
    store
        .commit(vec![mended, Write::Cut(CutMark::default())])
        .unwrap();
    drop(store);
    let found = SledStore::inspect(folder.path()).unwrap();
    assert_eq!(found.damages, []);
    assert!(
        !found.is_cut() && found.damaged() == 0,
        "and is whole again"
    );
}

#[test]
fn a_damaged_record_ends_its_childs_chain_and_nothing_else() {
    let folder = made();
    tamper(&folder, |db| spoil(db, &key("t/k/a", 4)));
    check(&folder, 3, true, false);
}

#[test]
fn a_missing_record_ends_its_childs_chain_and_nothing_else() {
    let folder = made();
    tamper(&folder, |db| drop(db.remove(key("t/k/a", 4)).unwrap()));
    check(&folder, 3, true, false);
}

#[test]
fn a_record_under_anothers_key_is_damage() {
    let folder = made();
    tamper(&folder, |db| {
        let other = db.get(key("t/k/b", 4)).unwrap().unwrap();
        db.insert(key("t/k/a", 4), other).unwrap();
    });
    check(&folder, 3, true, false);
}

#[test]
fn a_damaged_last_record_may_have_been_acknowledged() {
    let folder = made();
    tamper(&folder, |db| spoil(db, &key("t/k/a", 8)));
    check(&folder, 7, true, true);
}

#[test]
fn missing_last_records_are_a_cut() {
    let folder = made();
    tamper(&folder, |db| {
        for seq in [7, 8] {
            db.remove(key("t/k/a", seq)).unwrap();
        }
    });
    check(&folder, 6, false, true);
}

#[test]
fn a_child_that_is_gone_altogether_is_a_cut_of_the_dedicated_too() {
    let folder = made();
    tamper(&folder, |db| drop(db.remove(key("@t/k/c", 1)).unwrap()));
    check(&folder, 8, false, true);
}

#[test]
fn a_chain_that_lost_its_base_is_damaged() {
    let folder = made();
    let prune = Write::Prune {
        child: child("t/k/a"),
        from: Seq(5),
    };
    open(&folder).unwrap().commit(vec![prune]).unwrap();
    let found = SledStore::inspect(folder.path()).unwrap();
    assert_eq!(found.damages, [], "a pruned chain is whole");
    tamper(&folder, |db| drop(db.remove(key("t/k/a", 5)).unwrap()));
    check(&folder, 0, true, true);
}

#[test]
fn a_store_that_forgot_a_promise_is_not_opened() {
    type Harm = fn(&sled::Db);
    let rows: [Harm; 4] = [
        |db| drop(db.remove([PROMISE, 0, 0]).unwrap()),
        |db| spoil(db, &[PROMISE, 0, 0]),
        |db| {
            drop(
                db.remove(child_key(CHILD_PROMISE, &child("@t/k/c")))
                    .unwrap(),
            )
        },
        |db| spoil(db, crate::ledger::STAMP),
    ];
    for harm in rows {
        let folder = made();
        tamper(&folder, harm);
        assert!(matches!(open(&folder), Err(Unopened::Damaged(_))));
    }
}

/// Copies the database as it is now, does `then`, and puts the copy back: as if the disk had lost
/// what was flushed since. The mark outside stays.
fn lose(folder: &tempfile::TempDir, then: impl FnOnce(&mut SledStore)) {
    let kept = tempfile::tempdir().unwrap();
    let database = folder.path().join(DATABASE);
    copy(&database, kept.path());
    let mut store = open(folder).unwrap();
    then(&mut store);
    drop(store);
    fs::remove_dir_all(&database).unwrap();
    copy(kept.path(), &database);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn flushed_commits_that_are_gone_are_noticed() {
    let folder = made();
    lose(&folder, |store| {
        let record = chain("t/k/a", 9).pop().unwrap();
        store.commit(vec![Write::Put(record)]).unwrap();
    });
    check(&folder, 8, false, true);
}

#[test]
fn flushed_promises_that_are_gone_make_the_store_useless() {
    let folder = made();
    lose(&folder, |store| {
        store.commit(vec![promise(0, 9, 9)]).unwrap()
    });
    assert!(matches!(open(&folder), Err(Unopened::Damaged(_))));
}

#[test]
fn without_its_mark_a_store_cannot_tell_and_says_so() {
    let folder = made();
    fs::remove_file(folder.path().join("mark")).unwrap();
    check(&folder, 8, false, true);
}

#[test]
fn a_scrub_finds_damage_without_being_asked_for_the_record() {
    let folder = made();
    let mut store = open(&folder).unwrap();
    assert_eq!(store.scrub(None).unwrap(), Scrubbed::default());
    spoil(store.ledger.db(), &key("t/k/a", 2));
    store.ledger.db().remove(key("t/k/b", 8)).unwrap();
    let damaged = vec![(child("t/k/a"), Seq(2)), (child("t/k/b"), Seq(8))];
    assert_eq!(store.scrub(None).unwrap().damaged, damaged);
    let after = child("t/k/a");
    assert_eq!(store.scrub(Some(&after)).unwrap().damaged, damaged[1..]);
    let read = store.read(&child("t/k/b"), Seq(5));
    assert_eq!(read, Err(ReadError::Damaged { at: Seq(8) }));
}
