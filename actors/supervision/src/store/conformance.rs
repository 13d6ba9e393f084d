//! What every [`CheckpointStore`] does, as a suite that any of them can be put through.
//!
//! Owns: the content that a store must show after each kind of write, before and after it is opened
//! again. Says nothing of kills, torn files and full disks: those depend on what a store is made of.
//!
//! Everything here panics with a sentence where a store breaks a promise.

use bytes::Bytes;
use understudy_protocol::cluster::replication::{CutMark, Opened, OpenedChain, SlotMap, Write};
use understudy_protocol::id::{ChildId, ConfigVersion, Epoch, Seq, SlotRange};
use understudy_protocol::wire::codec::records_that_fit;
use understudy_protocol::wire::record::{BODY_BYTES_MAX, Head, Record, RecordKind};

use super::{CheckpointStore, StoreError};

/// Puts a store through the suite. `open` opens one and the same store, empty at first; it is only
/// called when what it gave before has been dropped.
///
/// # Panics
///
/// With what the store did otherwise than promised.
pub fn check(open: &mut dyn FnMut() -> Box<dyn CheckpointStore>) {
    begins_empty(open);
    keeps_chains(open);
    truncates_prunes_and_drops(open);
    keeps_promises(open);
    keeps_marks(open);
    takes_a_batch_in_order(open);
    reads_what_fits(open);
    refuses_what_is_not_intact(open);
    keeps_neighbours_apart(open);
}

/// `count` records of this child, the first a snapshot, chained.
pub fn records(child: &str, count: usize) -> Vec<Record> {
    let child = ChildId::parse(child).expect("a child id");
    let body = |nth: usize| Bytes::from(format!("{child} {nth}"));
    chain(&child, Head::NONE, 1, (0..count).map(body))
}

/// A promise for the slots `start..end`.
pub fn promise(start: u16, end: u16, epoch: u64) -> Write {
    Write::Promise {
        range: SlotRange::new(start, end).expect("a range"),
        epoch: Epoch(epoch),
    }
}

fn begins_empty(open: &mut dyn FnMut() -> Box<dyn CheckpointStore>) {
    let mut store = open();
    let id = store.store_id();
    assert_eq!(
        opened(&mut *store),
        Opened::default(),
        "a new store is empty"
    );
    assert_eq!(read(&mut *store, "t/k/none", 0), []);
    assert_eq!(store.room(), Ok(()));
    assert_eq!(store.commit(Vec::new()), Ok(()), "nothing is a commit too");
    drop(store);
    assert_eq!(open().store_id(), id, "the same store has the same id");
}

fn keeps_chains(open: &mut dyn FnMut() -> Box<dyn CheckpointStore>) {
    let records = records("t/k/chain", 6);
    let mut store = open();
    opened(&mut *store);
    put(&mut *store, &records[..2]);
    put(&mut *store, &records[2..]);
    for _ in 0..2 {
        assert_eq!(read(&mut *store, "t/k/chain", 0), records);
        assert_eq!(read(&mut *store, "t/k/chain", 4), records[4..]);
        assert_eq!(read(&mut *store, "t/k/chain", 6), []);
        drop(store);
        store = open();
        let found = chain_of(&opened(&mut *store), "t/k/chain");
        assert_eq!(found, Some((heads(&records), false)));
    }
}

fn truncates_prunes_and_drops(open: &mut dyn FnMut() -> Box<dyn CheckpointStore>) {
    let child = child("t/k/cut");
    let records = records("t/k/cut", 6);
    let mut store = open();
    opened(&mut *store);
    put(&mut *store, &records);
    let rows = [
        (
            Write::Prune {
                child: child.clone(),
                from: Seq(2),
            },
            &records[1..],
        ),
        (
            Write::Truncate {
                child: child.clone(),
                after: Seq(4),
            },
            &records[1..4],
        ),
        (
            Write::Drop {
                child: child.clone(),
            },
            &[],
        ),
    ];
    for (write, left) in rows {
        commit(&mut *store, vec![write.clone()]);
        assert_eq!(read(&mut *store, "t/k/cut", 0), left, "after {write:?}");
        commit(&mut *store, vec![write]);
        assert_eq!(read(&mut *store, "t/k/cut", 0), left, "twice is once");
    }
    drop(store);
    let mut store = open();
    assert_eq!(chain_of(&opened(&mut *store), "t/k/cut"), None);
}

fn keeps_promises(open: &mut dyn FnMut() -> Box<dyn CheckpointStore>) {
    let dedicated = child("@t/k/own");
    let mut store = open();
    opened(&mut *store);
    commit(&mut *store, vec![promise(0, 16_384, 3)]);
    commit(
        &mut *store,
        vec![promise(100, 200, 7), promise(150, 300, 5)],
    );
    let of_child = |epoch| Write::ChildPromise {
        child: dedicated.clone(),
        epoch: Epoch(epoch),
    };
    commit(&mut *store, vec![of_child(4), of_child(9)]);
    drop(store);
    let mut store = open();
    let found = opened(&mut *store);
    let mut promises = SlotMap::default();
    for (range, epoch) in &found.promises {
        promises.set(*range, *epoch);
    }
    let runs: Vec<_> = promises
        .iter(SlotRange::ALL)
        .map(|(range, epoch)| (range.start(), range.end(), epoch.0))
        .collect();
    // A promise is only ever raised (rule R1).
    let expected = [(0, 100, 3), (100, 200, 7), (200, 300, 5), (300, 16_384, 3)];
    assert_eq!(runs, expected);
    assert_eq!(found.child_promises, [(dedicated, Epoch(9))]);
}

fn keeps_marks(open: &mut dyn FnMut() -> Box<dyn CheckpointStore>) {
    let hurt = child("t/k/hurt");
    let mark = CutMark {
        slots: vec![SlotRange::new(5, 9).expect("a range")],
        children: [child("t/k/x"), child("t/k/y")].into(),
        confirmed: [child("@t/k/z")].into(),
        dedicated: true,
    };
    let damaged = |damaged| Write::Damaged {
        child: hurt.clone(),
        damaged,
    };
    let mut store = open();
    opened(&mut *store);
    commit(&mut *store, vec![damaged(true), Write::Cut(mark.clone())]);
    drop(store);
    let mut store = open();
    let found = opened(&mut *store);
    assert_eq!(found.cut, mark, "a cut stands until it is confirmed (R8)");
    assert_eq!(
        chain_of(&found, "t/k/hurt"),
        Some((Vec::new(), true)),
        "a child that lost every record is still known to be damaged (R3)"
    );
    commit(
        &mut *store,
        vec![damaged(false), Write::Cut(CutMark::default())],
    );
    drop(store);
    let mut store = open();
    let found = opened(&mut *store);
    assert_eq!(found.cut, CutMark::default());
    assert_eq!(chain_of(&found, "t/k/hurt"), None);
}

fn takes_a_batch_in_order(open: &mut dyn FnMut() -> Box<dyn CheckpointStore>) {
    let name = child("t/k/order");
    let old = records("t/k/order", 4);
    let new = chain(&name, old[1].head(), 2, [Bytes::from_static(b"other")]);
    let mut store = open();
    opened(&mut *store);
    let drop_all = Write::Drop {
        child: name.clone(),
    };
    let truncate = Write::Truncate {
        child: name,
        after: Seq(2),
    };
    let mut batch = vec![drop_all.clone()];
    batch.extend(old.iter().cloned().map(Write::Put));
    batch.push(drop_all);
    batch.extend(old.iter().cloned().map(Write::Put));
    batch.push(truncate);
    batch.push(Write::Put(new[0].clone()));
    commit(&mut *store, batch);
    let expected = [old[0].clone(), old[1].clone(), new[0].clone()];
    assert_eq!(read(&mut *store, "t/k/order", 0), expected);
    drop(store);
    let mut store = open();
    let found = chain_of(&opened(&mut *store), "t/k/order");
    assert_eq!(found, Some((heads(&expected), false)));
}

fn reads_what_fits(open: &mut dyn FnMut() -> Box<dyn CheckpointStore>) {
    let name = child("t/k/large");
    let body = |nth: u8| Bytes::from(vec![nth; BODY_BYTES_MAX]);
    let large = chain(&name, Head::NONE, 1, (0..20).map(body));
    let fit = records_that_fit(&large);
    assert!(fit < large.len(), "not all fit one answer");
    let mut store = open();
    opened(&mut *store);
    put(&mut *store, &large);
    assert_eq!(read(&mut *store, "t/k/large", 0), large[..fit]);
    let rest = read(&mut *store, "t/k/large", fit as u64);
    assert_eq!(rest, large[fit..]);
    drop(store);
    let mut store = open();
    opened(&mut *store);
    assert_eq!(read(&mut *store, "t/k/large", 0), large[..fit]);
}

fn refuses_what_is_not_intact(open: &mut dyn FnMut() -> Box<dyn CheckpointStore>) {
    let mut broken = records("t/k/broken", 2);
    broken[1].checksum ^= 1;
    let mut store = open();
    opened(&mut *store);
    let batch = broken.into_iter().map(Write::Put).collect();
    assert!(matches!(store.commit(batch), Err(StoreError::Invalid(_))));
    assert_eq!(
        read(&mut *store, "t/k/broken", 0),
        [],
        "nothing of a refused batch is written"
    );
    put(&mut *store, &records("t/k/broken", 1));
}

/// Ids of which one is another's beginning.
fn keeps_neighbours_apart(open: &mut dyn FnMut() -> Box<dyn CheckpointStore>) {
    let names = ["t/n/a", "t/n/aa", "t/n/a/b", "@t/n/a", "t/n/b"];
    let mut store = open();
    opened(&mut *store);
    for (nth, name) in names.into_iter().enumerate() {
        put(&mut *store, &records(name, 300 + nth));
    }
    let drop_first = Write::Drop {
        child: child("t/n/a"),
    };
    commit(&mut *store, vec![drop_first]);
    drop(store);
    let mut store = open();
    let found = opened(&mut *store);
    assert_eq!(chain_of(&found, "t/n/a"), None);
    assert_eq!(read(&mut *store, "t/n/a", 0), []);
    for (nth, name) in names.into_iter().enumerate().skip(1) {
        let expected = records(name, 300 + nth);
        assert_eq!(chain_of(&found, name), Some((heads(&expected), false)));
        let first = read(&mut *store, name, 290);
        assert_eq!(first, expected[290..]);
    }
}

fn child(id: &str) -> ChildId {
    ChildId::parse(id).expect("a child id")
}

fn chain(
    child: &ChildId,
    mut prev: Head,
    epoch: u64,
    bodies: impl IntoIterator<Item = Bytes>,
) -> Vec<Record> {
    let mut made = Vec::new();
    for body in bodies {
        let kind = match prev {
            Head::NONE => RecordKind::Snapshot,
            // Every chain here may be pruned to its second record, so that one is a snapshot too.
            Head { seq: Seq(1), .. } => RecordKind::Snapshot,
            _ => RecordKind::Delta,
        };
        let (epoch, config) = (Epoch(epoch), ConfigVersion(1));
        let record = Record::chained(child.clone(), epoch, config, prev, kind, 1, body);
        prev = record.head();
        made.push(record);
    }
    made
}

fn heads(records: &[Record]) -> Vec<Head> {
    records.iter().map(Record::head).collect()
}

fn opened(store: &mut dyn CheckpointStore) -> Opened {
    store.opened().expect("the store says what it holds")
}

fn chain_of(opened: &Opened, name: &str) -> Option<(Vec<Head>, bool)> {
    let mut chains = opened.chains.iter();
    let found = chains.find(|OpenedChain { child, .. }| child.as_str() == name)?;
    Some((found.heads.clone(), found.damaged))
}

fn put(store: &mut dyn CheckpointStore, records: &[Record]) {
    commit(store, records.iter().cloned().map(Write::Put).collect());
}

fn commit(store: &mut dyn CheckpointStore, batch: Vec<Write>) {
    store.commit(batch).expect("the store commits");
}

fn read(store: &mut dyn CheckpointStore, name: &str, after: u64) -> Vec<Record> {
    let read = store.read(&child(name), Seq(after));
    read.expect("the store reads")
}
