//! What records name stays as long as they do, and what is missing is said.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use understudy_protocol::cluster::replication::Write;
use understudy_protocol::id::{ConfigVersion, Epoch, Seq};
use understudy_protocol::wire::content::{Content, Pieces};
use understudy_protocol::wire::record::{Head, Record, RecordKind};
use understudy_protocol::wire::step::{Base, Step};
use understudy_store::{Chunks, Damage, DataDir, KEPT_UNNAMED, OnDamage, OpenStore, fsck};
use understudy_supervision::clock;
use understudy_supervision::store::CheckpointStore;

use crate::support::child;

/// Five megabytes, so that there is a list; one piece of two is zeros.
fn long(seed: u8) -> Bytes {
    let mut value = vec![0; 5 << 20];
    for (piece, nth) in value.chunks_mut(65_536).zip(0u8..).step_by(2) {
        (piece[0], piece[1]) = (seed, nth);
    }
    value.into()
}

/// A record that names the pieces of this value, which are kept.
fn put(chunks: &Chunks, prev: Head, kind: RecordKind, value: &Bytes) -> Record {
    let cut = Pieces::cut(value).unwrap();
    chunks.put_all(&cut.parts).unwrap();
    let content = Content::Pieces(cut.pieces);
    let (schema, body) = match kind {
        RecordKind::Snapshot => {
            let calls = Vec::new();
            let base = Base {
                calls,
                state: content,
                older: None,
            };
            (base.schema(), minicbor::to_vec(&base).unwrap())
        }
        RecordKind::Delta => {
            let step = Step {
                call: None,
                effect: content,
                earlier: Vec::new(),
            };
            (step.schema(), minicbor::to_vec(&step).unwrap())
        }
    };
    let (epoch, config) = (Epoch(1), ConfigVersion(1));
    let child = child("t/k/a");
    Record::chained(child, epoch, config, prev, kind, schema, body.into())
}

fn open(folder: &Path) -> OpenStore {
    DataDir::open(folder, OnDamage::Refuse, None).unwrap()
}

fn sweep(chunks: &Chunks) -> usize {
    let later = clock::now() + KEPT_UNNAMED + Duration::from_secs(1);
    (0..100).map(|_| chunks.sweep(later)).sum()
}

fn files(value: &Bytes) -> usize {
    Pieces::cut(value).unwrap().parts.len()
}

#[test]
fn what_a_record_names_goes_with_the_record_and_not_before_also_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    let (first, second) = (long(1), long(100));
    let (delta, snapshot) = (RecordKind::Delta, RecordKind::Snapshot);
    let one = put(&store.chunks, Head::NONE, delta, &first);
    let two = put(&store.chunks, one.head(), snapshot, &second);
    let writes = [&one, &two].map(|record| Write::Put(record.clone()));
    store.records.commit(writes.to_vec()).unwrap();
    assert_eq!(sweep(&store.chunks), 0);
    drop(store);

    let mut store = open(folder.path());
    assert_eq!(sweep(&store.chunks), 0, "they are counted again");
    let prune = Write::Prune {
        child: child("t/k/a"),
        from: Seq(2),
    };
    store.records.commit(vec![prune]).unwrap();
    assert_eq!(sweep(&store.chunks), files(&first));
    let rest = put(&store.chunks, two.head(), delta, &first);
    store.records.commit(vec![Write::Put(rest)]).unwrap();
    let truncate = Write::Truncate {
        child: child("t/k/a"),
        after: Seq(2),
    };
    store.records.commit(vec![truncate]).unwrap();
    assert_eq!(sweep(&store.chunks), files(&first));
    let drop_all = Write::Drop {
        child: child("t/k/a"),
    };
    store.records.commit(vec![drop_all]).unwrap();
    assert_eq!(sweep(&store.chunks), files(&second));
    drop(store);
    assert_eq!(fsck(folder.path()).unwrap().chunks, 0);
}

#[test]
fn fsck_and_the_scrub_say_which_chunks_are_missing_or_named_by_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    let record = put(&store.chunks, Head::NONE, RecordKind::Delta, &long(1));
    store.records.commit(vec![Write::Put(record)]).unwrap();
    let unnamed = store.chunks.put(b"nobody's").unwrap();
    let lost = Pieces::cut(&long(1)).unwrap().parts[7].0;
    assert_eq!(store.records.scrub(None).unwrap().damaged, []);
    drop(store);

    let path = |name: &str| {
        folder
            .path()
            .join("store/chunks")
            .join(&name[..2])
            .join(name)
    };
    std::fs::remove_file(path(&lost.to_string())).unwrap();
    let report = fsck(folder.path()).unwrap();
    let name = lost.to_string();
    assert_eq!(report.damages, [Damage::NoChunk { name }]);
    assert!(report.is_usable());
    assert_eq!(report.unnamed_chunks, 1);

    let mut store = open(folder.path());
    assert_eq!(store.chunks.lost(), [lost]);
    let damaged = store.records.scrub(None).unwrap().damaged;
    assert_eq!(damaged, [(child("t/k/a"), Seq(1))]);
    assert!(store.chunks.contains(unnamed));
}

#[test]
fn nothing_is_removed_while_a_list_of_names_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    let record = put(&store.chunks, Head::NONE, RecordKind::Delta, &long(1));
    store.records.commit(vec![Write::Put(record)]).unwrap();
    drop(store);
    let list = Pieces::cut(&long(1)).unwrap().pieces.list().unwrap();
    let name = list.to_string();
    let path = folder.path().join("store/chunks").join(&name[..2]);
    std::fs::write(path.join(&name), b"torn").unwrap();
    let store = open(folder.path());
    assert_eq!(sweep(&store.chunks), 0);
    assert_eq!(store.chunks.lost(), [list]);
}
