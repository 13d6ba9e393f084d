//! Damaged files, each opened as a node opens its store: through a probe, in a process that may be
//! killed.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use bytes::Bytes;
use understudy_protocol::cluster::replication::{CutMark, Opened, Write};
use understudy_protocol::id::{Seq, StoreId};
use understudy_protocol::wire::heart::Ttl;
use understudy_store::{
    DataDir, FsckError, OnDamage, OpenError, OpenStore, Probe, QUARANTINED_MAX, fsck,
};
use understudy_supervision::clock;
use understudy_supervision::store::CheckpointStore;
use understudy_supervision::store::conformance::promise;

use crate::support::{Random, chain, child};

const PROBES: &str = "UNDERSTUDY_TEST_PROBES";
const VERIFIES: &str = "UNDERSTUDY_TEST_VERIFIES";
const IDENTITY: &str = "UNDERSTUDY_TEST_STORE";

const CHILDREN: u64 = 12;
const RECORDS: u64 = 25;
const ENTRIES: u64 = 40;
const EPOCH: u64 = 5;

fn name(nth: u64) -> understudy_protocol::id::ChildId {
    match nth % 3 {
        0 => child(&format!("@t/k/{nth}")),
        _ => child(&format!("t/k/{nth}")),
    }
}

/// What a verifier exits with.
const SERVED: i32 = 40;
const SERVED_WITH_LOSS: i32 = 41;
const REBUILT: i32 = 42;

pub(crate) fn probe() -> Probe {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/store/probe.sh");
    // A hang takes as long as this; a sound store of a megabyte is read in a hundredth.
    Probe::new(script).within(Duration::from_secs(4))
}

fn open(data: &Path, on_damage: OnDamage) -> Result<OpenStore, OpenError> {
    DataDir::open(data, on_damage, Some(&probe()))
}

/// A closed store with some of everything.
fn made(data: &Path) -> StoreId {
    let mut store = DataDir::open(data, OnDamage::Refuse, None).unwrap();
    let promised = vec![promise(0, 16_384, EPOCH)];
    store.records.commit(promised).unwrap();
    for nth in 0..CHILDREN {
        for record in chain(&name(nth), RECORDS, 4_000) {
            store.records.commit(vec![Write::Put(record)]).unwrap();
        }
    }
    for index in 1..=ENTRIES {
        let (told, hears) = sync_channel(1);
        let entry = vec![(index, Bytes::from(vec![index as u8; 500]))];
        let done = Box::new(move |result| told.send(result).unwrap());
        store.raft.append(entry, done);
        hears.recv().unwrap().unwrap();
    }
    store.raft.save_vote(Bytes::from_static(b"vote")).unwrap();
    store.raft.save_snapshot(b"meta", &[7; 9_000]).unwrap();
    store.limit.put(Ttl::DEFAULT).unwrap();
    store.chunks.put(&[9; 70_000]).unwrap();
    store.id
}

/// The probe's process.
#[test]
#[ignore = "the process that opens a store before the others do"]
#[allow(clippy::disallowed_methods)] // a test's process has no other way to give a status
fn prober() {
    if let Some(data) = std::env::var_os(PROBES) {
        std::process::exit(understudy_store::probe(Path::new(&data)).into());
    }
}

/// Opens a store as a node does and checks all that it says.
#[test]
#[ignore = "the process that opens a damaged store"]
#[allow(clippy::disallowed_methods)] // as above
fn verifier() {
    let Some(data) = std::env::var_os(VERIFIES) else {
        return;
    };
    let id: u64 = std::env::var(IDENTITY).unwrap().parse().unwrap();
    let mut store = open(Path::new(&data), OnDamage::Rebuild).unwrap();
    let opened = store.records.opened().unwrap();
    let status = match store.rebuilt.take() {
        Some(aside) => {
            assert!(aside.path.is_dir(), "the damaged store is kept");
            assert_ne!(store.id, StoreId(id), "under a new id");
            assert_eq!(opened, Opened::default());
            assert_eq!(store.raft.state(), Default::default());
            REBUILT
        }
        None => {
            assert_eq!(store.id, StoreId(id));
            verify(&mut store, &opened)
        }
    };
    std::process::exit(status);
}

/// Nothing is wrong, and whatever is missing is said to be missing.
fn verify(store: &mut OpenStore, opened: &Opened) -> i32 {
    let cut = opened.cut != CutMark::default();
    let mut lost = cut;
    assert_eq!(opened.promises.len(), 1);
    assert_eq!(opened.promises[0].1.0, EPOCH, "no promise is forgotten");
    for nth in 0..CHILDREN {
        let expected = chain(&name(nth), RECORDS, 4_000);
        let mut chains = opened.chains.iter();
        let found = chains.find(|chain| chain.child == name(nth));
        let stands = found.map_or(0, |chain| chain.heads.len());
        let damaged = found.is_some_and(|chain| chain.damaged);
        assert!(stands == expected.len() || damaged || cut, "a silent loss");
        lost |= damaged;
        let read = store.records.read(&name(nth), Seq(0)).unwrap();
        assert!(read == expected[..stands], "a wrong record was read");
    }
    let entries = store.raft.entries(..).unwrap();
    assert_eq!(entries.len() as u64, ENTRIES, "no entry is forgotten");
    for (index, entry) in entries {
        assert_eq!(entry, vec![index as u8; 500]);
    }
    assert_eq!(store.raft.state().vote, Some(Bytes::from_static(b"vote")));
    let (_, data) = store.raft.load_snapshot().unwrap().unwrap();
    assert_eq!(data, [7; 9_000]);
    assert_eq!(store.limit.get(), Ttl::DEFAULT);
    if lost { SERVED_WITH_LOSS } else { SERVED }
}

fn spawn_verifier(data: &Path, id: StoreId) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "damage::verifier", "--ignored", "--nocapture"])
        .env(VERIFIES, data)
        .env(IDENTITY, id.0.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs the verifier; it must end by itself.
fn verified(data: &Path, id: StoreId, harm: &str) -> i32 {
    let mut verifier = spawn_verifier(data, id);
    let until = clock::now() + Duration::from_secs(60);
    let status = loop {
        if let Some(status) = verifier.try_wait().unwrap() {
            break status;
        }
        if clock::now() > until {
            verifier.kill().unwrap();
            verifier.wait().unwrap();
            panic!("{harm}: the store hangs although it was probed");
        }
        std::thread::park_timeout(Duration::from_millis(5));
    };
    let code = status.code().unwrap_or(-1);
    if ![SERVED, SERVED_WITH_LOSS, REBUILT].contains(&code) {
        let said = std::io::read_to_string(verifier.stderr.take().unwrap()).unwrap();
        panic!("{harm}: {status}: {said}");
    }
    code
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

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            files.extend(files_in(&entry.path()));
        } else if entry.metadata().unwrap().len() > 0 {
            files.push(entry.path());
        }
    }
    files.sort();
    files
}

fn flip(path: &Path, byte: u64, bit: u32) {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut value = [0];
    file.read_exact_at(&mut value, byte).unwrap();
    value[0] ^= 1 << bit;
    file.write_all_at(&value, byte).unwrap();
}

/// Each of so many flips is done to a fresh copy of one store.
const FLIPS: u64 = 120;

#[test]
fn no_flipped_bit_gives_a_wrong_record_or_a_hang() {
    let template = tempfile::tempdir().unwrap();
    let id = made(template.path());
    let outcomes = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..2)
            .map(|lane| {
                let template = template.path();
                scope.spawn(move || {
                    let nths = (lane..FLIPS).step_by(2);
                    let outcomes: Vec<i32> = nths.map(|nth| flipped(template, id, nth)).collect();
                    outcomes
                })
            })
            .collect();
        lanes
            .into_iter()
            .flat_map(|lane| lane.join().unwrap())
            .collect::<Vec<i32>>()
    });
    let count = |status| {
        outcomes
            .iter()
            .filter(|outcome| **outcome == status)
            .count()
    };
    let (served, lossy, rebuilt) = (count(SERVED), count(SERVED_WITH_LOSS), count(REBUILT));
    println!("{served} served, {lossy} with a loss that was told, {rebuilt} put aside");
    assert_eq!(served + lossy + rebuilt, FLIPS as usize);
    assert!(
        served > 0 && rebuilt > 0,
        "the flips hit both what matters and what does not"
    );
}

fn flipped(template: &Path, id: StoreId, nth: u64) -> i32 {
    let folder = tempfile::tempdir().unwrap();
    copy(template, folder.path());
    let files = files_in(&folder.path().join("store"));
    let mut random = Random(nth * 7_919 + 13);
    random.below(2);
    // Half of them hit the records' own file, the rest any file.
    let records = folder.path().join("store/records/sled/db");
    let path = match nth % 2 {
        0 => records,
        _ => files[random.below(files.len() as u64) as usize].clone(),
    };
    let length = fs::metadata(&path).unwrap().len();
    let (byte, bit) = (random.below(length), random.below(8) as u32);
    flip(&path, byte, bit);
    let harm = format!("bit {bit} of byte {byte} of {}", path.display());
    verified(folder.path(), id, &harm)
}

#[test]
fn a_file_cut_short_is_told_or_put_aside() {
    let template = tempfile::tempdir().unwrap();
    let id = made(template.path());
    for database in ["records", "raft"] {
        let file = format!("store/{database}/sled/db");
        let length = fs::metadata(template.path().join(&file)).unwrap().len();
        for left in [length - 100, length - 5_000, length / 2, length / 10, 1, 0] {
            let folder = tempfile::tempdir().unwrap();
            copy(template.path(), folder.path());
            let cut = fs::OpenOptions::new()
                .write(true)
                .open(folder.path().join(&file))
                .unwrap();
            cut.set_len(left).unwrap();
            let harm = format!("{database} cut to {left} of {length}");
            let outcome = verified(folder.path(), id, &harm);
            println!("{harm}: {outcome}");
            // sled sets room aside behind what it wrote, so a short cut may take nothing.
            assert!(outcome != SERVED || left > 1, "{harm}");
        }
    }
}

#[test]
fn an_opening_that_was_killed_leaves_nothing_in_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let id = made(folder.path());
    for database in ["records", "raft"] {
        let inside = folder.path().join("store").join(database).join("sled");
        let left = inside.join("snap.00000000FFFFFFFF.generating");
        fs::write(left, b"half a snapshot").unwrap();
    }
    assert_eq!(verified(folder.path(), id, "a leftover"), SERVED);
    assert!(
        files_in(folder.path())
            .iter()
            .all(|path| !path.to_string_lossy().ends_with(".generating"))
    );
}

#[test]
fn a_damaged_store_is_refused_or_comes_back_under_a_new_id() {
    let folder = tempfile::tempdir().unwrap();
    let mut id = made(folder.path());
    let spoil = || fs::write(folder.path().join("store/heart-limit"), b"nonsense").unwrap();
    spoil();
    let refused = open(folder.path(), OnDamage::Refuse);
    assert!(
        matches!(refused, Err(OpenError::Damaged { .. })),
        "{refused:?}"
    );
    let report = fsck(folder.path()).unwrap();
    assert_eq!((report.store, report.is_usable()), (Some(id), false));
    assert_eq!(
        report.records,
        CHILDREN * RECORDS,
        "refusing changed nothing"
    );

    for nth in 1..=QUARANTINED_MAX {
        let store = open(folder.path(), OnDamage::Rebuild).unwrap();
        let aside = store.rebuilt.clone().unwrap();
        assert!(aside.path.join("records").is_dir(), "{aside:?}");
        assert_ne!(store.id, id);
        id = store.id;
        drop(store);
        let again = open(folder.path(), OnDamage::Refuse).unwrap();
        assert_eq!(
            (again.id, again.rebuilt.clone()),
            (id, None),
            "rebuild {nth}"
        );
        drop(again);
        spoil();
    }
    let refused = open(folder.path(), OnDamage::Rebuild);
    assert!(
        matches!(refused, Err(OpenError::TooManyDamaged { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_store_has_one_user() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path());
    let store = DataDir::open(folder.path(), OnDamage::Refuse, None).unwrap();
    let second = DataDir::open(folder.path(), OnDamage::Rebuild, None);
    assert!(matches!(second, Err(OpenError::InUse { .. })), "{second:?}");
    assert!(matches!(fsck(folder.path()), Err(FsckError::InUse { .. })));
    let raft = store.raft.clone();
    drop(store);
    let second = DataDir::open(folder.path(), OnDamage::Rebuild, None);
    assert!(
        matches!(second, Err(OpenError::InUse { .. })),
        "the Raft log is in use"
    );
    drop(raft);
    let report = fsck(folder.path()).unwrap();
    assert_eq!((report.children, report.raft_entries), (CHILDREN, ENTRIES));
    assert_eq!((report.chunks, report.chunk_bytes), (1, 70_000));
    assert_eq!(report.damages, []);
}

#[test]
fn a_probe_that_cannot_be_run_harms_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let id = made(folder.path());
    for exe in [
        "/nonexistent/understudy",
        "/bin/false",
        "/bin/true",
        "/bin/cat",
    ] {
        let refused = DataDir::open(folder.path(), OnDamage::Rebuild, Some(&Probe::new(exe)));
        assert!(
            matches!(refused, Err(OpenError::Probe(_))),
            "{exe}: {refused:?}"
        );
    }
    assert_eq!(open(folder.path(), OnDamage::Refuse).unwrap().id, id);
}
