use std::sync::mpsc::sync_channel;

use bytes::Bytes;
use understudy_store::{DataDir, OnDamage, RaftLog};
use understudy_supervision::store::StoreError;

fn open(folder: &tempfile::TempDir) -> RaftLog {
    DataDir::open(folder.path(), OnDamage::Refuse, None)
        .unwrap()
        .raft
}

fn entries(indexes: impl IntoIterator<Item = u64>) -> Vec<(u64, Bytes)> {
    let entry = |index| (index, Bytes::from(format!("entry {index}")));
    indexes.into_iter().map(entry).collect()
}

fn append(log: &RaftLog, indexes: impl IntoIterator<Item = u64>) -> Result<(), StoreError> {
    let (told, hears) = sync_channel(1);
    let done = Box::new(move |result| told.send(result).unwrap());
    log.append(entries(indexes), done);
    hears.recv().unwrap()
}

#[test]
fn what_was_appended_is_read_at_once_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(&folder);
    assert_eq!(log.state(), Default::default());
    let (told, hears) = sync_channel(8);
    for from in [0, 10, 20] {
        let told = told.clone();
        let done = Box::new(move |result| told.send((from, result)).unwrap());
        log.append(entries(from..from + 10), done);
        let read = log.entries(from..).unwrap();
        assert_eq!(read, entries(from..from + 10), "before it is flushed");
    }
    for from in [0, 10, 20] {
        assert_eq!(hears.recv().unwrap(), (from, Ok(())), "in order");
    }
    let check = |log: RaftLog| {
        assert_eq!(log.state().last_index, Some(29));
        assert_eq!(log.entries(..).unwrap(), entries(0..30));
        assert_eq!(log.entries(5..=7).unwrap(), entries(5..8));
        assert_eq!(log.entries(28..99).unwrap(), entries(28..30));
        assert_eq!(log.entries(9..9).unwrap(), []);
    };
    check(log);
    check(open(&folder));
}

#[test]
fn a_conflicting_tail_is_truncated_and_written_anew() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(&folder);
    append(&log, 0..10).unwrap();
    log.truncate(6).unwrap();
    assert_eq!(log.state().last_index, Some(5));
    log.append(vec![(6, Bytes::from_static(b"other"))], Box::new(|_| {}));
    drop(log);
    let log = open(&folder);
    let mut expected = entries(0..6);
    expected.push((6, Bytes::from_static(b"other")));
    assert_eq!(log.entries(..).unwrap(), expected);
    log.truncate(0).unwrap();
    assert_eq!(log.state().last_index, None);
    assert_eq!(log.entries(..).unwrap(), []);
}

#[test]
fn a_gap_is_refused_and_harms_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(&folder);
    append(&log, 3..5).unwrap();
    for wrong in [vec![6], vec![4], vec![5, 7]] {
        let refused = append(&log, wrong);
        assert!(
            matches!(refused, Err(StoreError::Invalid(_))),
            "{refused:?}"
        );
    }
    assert_eq!(log.entries(..).unwrap(), entries(3..5));
    append(&log, 5..6).unwrap();
    log.save_vote(Bytes::from_static(b"vote")).unwrap();
}

#[test]
fn votes_commits_purges_and_snapshots_outlive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(&folder);
    append(&log, 1..40).unwrap();
    for vote in ["one", "two"] {
        log.save_vote(Bytes::from(vote)).unwrap();
    }
    log.save_committed(Bytes::from_static(b"committed"))
        .unwrap();
    assert_eq!(log.load_snapshot().unwrap(), None);
    log.save_snapshot(b"old", &vec![1; 100_000]).unwrap();
    log.save_snapshot(b"meta", &vec![7; 300_000]).unwrap();
    log.purge(30, Bytes::from_static(b"purged")).unwrap();
    drop(log);
    let log = open(&folder);
    let state = log.state();
    assert_eq!(state.vote, Some(Bytes::from_static(b"two")));
    assert_eq!(state.committed, Some(Bytes::from_static(b"committed")));
    assert_eq!(state.purged, Some(Bytes::from_static(b"purged")));
    assert_eq!(state.last_index, Some(39));
    assert_eq!(log.entries(..).unwrap(), entries(31..40));
    let (meta, data) = log.load_snapshot().unwrap().unwrap();
    assert_eq!((&meta[..], data), (&b"meta"[..], vec![7; 300_000]));

    log.purge(60, Bytes::from_static(b"installed")).unwrap();
    assert_eq!(log.state().last_index, Some(60), "a snapshot was installed");
    append(&log, 61..63).unwrap();
    drop(log);
    assert_eq!(open(&folder).entries(..).unwrap(), entries(61..63));
}

#[test]
fn entries_of_four_mebibytes_come_back_whole() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(&folder);
    let large: Vec<(u64, Bytes)> = (1..4)
        .map(|index| (index, Bytes::from(vec![index as u8; 4 * 1024 * 1024])))
        .collect();
    let (told, hears) = sync_channel(1);
    log.append(
        large.clone(),
        Box::new(move |result| told.send(result).unwrap()),
    );
    hears.recv().unwrap().unwrap();
    drop(log);
    assert!(open(&folder).entries(..).unwrap() == large);
}
