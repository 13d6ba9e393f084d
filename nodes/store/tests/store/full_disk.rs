//! A disk that is really full: a small tmpfs. Where mounting is not permitted, the tests say so and
//! show nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use bytes::Bytes;
use understudy_protocol::cluster::replication::Write;
use understudy_protocol::id::Seq;
use understudy_protocol::wire::record::{Head, Record};
use understudy_store::{DataDir, OnDamage, OpenStore, PutError, USED_PERCENT_MAX};
use understudy_supervision::clock;
use understudy_supervision::store::conformance::promise;
use understudy_supervision::store::{CheckpointStore, StoreError};

use crate::support::{child, next_record};

/// A tmpfs that is unmounted at the end.
struct Disk {
    folder: tempfile::TempDir,
}

const DISK_BYTES: u64 = 24 * 1024 * 1024;

impl Disk {
    fn mount() -> Option<Disk> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={DISK_BYTES}"), "tmpfs"])
            .arg(folder.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Disk { folder }),
            _ => {
                println!("SKIPPED: mounting a tmpfs is not permitted here; nothing was shown");
                None
            }
        }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn open(&self) -> OpenStore {
        open(&self.data())
    }

    /// Runs this test of the file in a process of its own, which fails its store and ends, and gives
    /// how much the store had acknowledged.
    fn fail_in_a_process(&self, test: &str) -> u64 {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--ignored", "--nocapture"])
            .env(FILLS, self.folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let until = clock::now() + Duration::from_secs(60);
        while process.try_wait().unwrap().is_none() {
            if clock::now() > until {
                process.kill().unwrap();
                process.wait().unwrap();
                panic!("a full disk makes the store hang");
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        let said = std::io::read_to_string(process.stdout.take().unwrap()).unwrap();
        assert!(process.wait().unwrap().success(), "{said}");
        let (_, number) = said.split_once("acknowledged ").unwrap();
        make_room(self.folder.path());
        number.split_whitespace().next().unwrap().parse().unwrap()
    }
}

const FILLS: &str = "UNDERSTUDY_TEST_FILLS";

fn open(data: &Path) -> OpenStore {
    DataDir::open(data, OnDamage::Refuse, None).unwrap()
}

/// Fills the disk but for so many bytes.
fn leave(disk: &Path, bytes: u64) {
    make_room(disk);
    let ballast = vec![1; free_bytes(disk).saturating_sub(bytes) as usize];
    fs::write(disk.join("ballast"), ballast).unwrap();
}

fn make_room(disk: &Path) {
    // The first time there is none.
    let _ = fs::remove_file(disk.join("ballast"));
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a database that is just being closed may still be open.
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.folder.path())
            .status();
    }
}

fn free_bytes(folder: &Path) -> u64 {
    let output = Command::new("stat")
        .args(["-f", "-c", "%a %S"])
        .arg(folder)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let numbers: Vec<u64> = said
        .split_whitespace()
        .map(|n| n.parse().unwrap())
        .collect();
    numbers[0] * numbers[1]
}

/// So many records of up to `bytes_max`, after `prev`.
fn records(prev: Head, count: usize, bytes_max: usize) -> Vec<Record> {
    let mut prev = prev;
    let next = || {
        let record = next_record(&child("t/k/a"), prev, bytes_max);
        prev = record.head();
        record
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn puts(records: &[Record]) -> Vec<Write> {
    records.iter().cloned().map(Write::Put).collect()
}

#[test]
fn from_the_watermark_on_records_are_refused_and_all_else_goes_on() {
    let Some(disk) = Disk::mount() else { return };
    let mut store = disk.open();
    let some = records(Head::NONE, 20, 4_000);
    store.records.commit(puts(&some)).unwrap();
    leave(disk.folder.path(), DISK_BYTES / 10);
    let more = records(some[19].head(), 1, 4_000);
    let refused = poll(|| store.records.room().err());
    assert!(
        matches!(refused, StoreError::DiskFull { used_percent, .. } if used_percent >= USED_PERCENT_MAX),
        "{refused:?}"
    );
    let refused = store.records.commit(puts(&more)).unwrap_err();
    assert!(matches!(refused, StoreError::DiskFull { .. }) && !refused.is_final());
    assert!(matches!(
        store.chunks.put(&[1; 100]),
        Err(PutError::DiskFull)
    ));

    store.records.commit(vec![promise(0, 16_384, 7)]).unwrap();
    let read = store.records.read(&child("t/k/a"), Seq(0)).unwrap();
    assert_eq!(read, some);

    make_room(disk.folder.path());
    poll(|| store.records.room().ok());
    store.records.commit(puts(&more)).unwrap();
}

/// The store looks at its disk now and then.
fn poll<T>(mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..200 {
        if let Some(seen) = look() {
            return seen;
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    panic!("it did not come");
}

#[test]
fn a_disk_that_fills_up_in_a_commit_fails_the_store_and_loses_nothing_acknowledged() {
    let Some(disk) = Disk::mount() else { return };
    let acknowledged = disk.fail_in_a_process("full_disk::records_fill_the_disk");
    assert!(acknowledged > 0);
    let mut store = disk.open();
    let opened = store.records.opened().unwrap();
    let heads = &opened.chains[0].heads;
    assert!(
        heads.len() as u64 >= acknowledged,
        "{acknowledged} were acknowledged, {} stand, {:?}",
        heads.len(),
        opened.cut
    );
    let expected = records(Head::NONE, heads.len(), 60_000);
    assert!(
        heads
            .iter()
            .eq(expected.iter().map(Record::head).collect::<Vec<_>>().iter())
    );
    let first = store.records.read(&child("t/k/a"), Seq(0)).unwrap();
    assert!(first == expected[..first.len()]);
    store.records.commit(vec![promise(0, 9, 9)]).unwrap();
}

#[test]
#[ignore = "the process whose disk is full in the test above"]
fn records_fill_the_disk() {
    let Some(disk) = std::env::var_os(FILLS).map(PathBuf::from) else {
        return;
    };
    let mut store = open(&disk.join("data"));
    let (mut prev, mut acknowledged) = (Head::NONE, Vec::new());
    store.records.room().unwrap();
    // There was room at the store's last look, and then the disk fills at once.
    let failed = loop {
        let some = records(prev, 10, 60_000);
        prev = some[9].head();
        match store.records.commit(puts(&some)) {
            Ok(()) => acknowledged.extend(some),
            Err(error) => break error,
        }
        leave(&disk, 0);
        assert!(acknowledged.len() < 1_000, "the disk never fills");
    };
    assert!(matches!(failed, StoreError::NoSpace { .. }), "{failed:?}");
    assert!(failed.is_final());
    make_room(&disk);
    let again = store.records.commit(vec![promise(0, 9, 9)]);
    assert_eq!(again, Err(failed), "for good, with room too");
    let read = store.records.read(&child("t/k/a"), Seq(0)).unwrap();
    assert!(read == acknowledged[..read.len()], "it still reads");
    println!("\nacknowledged {}", acknowledged.len());
}

#[test]
fn a_raft_log_on_a_full_disk_says_so_and_loses_nothing_acknowledged() {
    let Some(disk) = Disk::mount() else { return };
    let acknowledged = disk.fail_in_a_process("full_disk::raft_fills_the_disk");
    let store = disk.open();
    assert!(store.raft.state().last_index >= Some(acknowledged));
    for (index, entry) in store.raft.entries(..).unwrap() {
        assert_eq!(entry, vec![index as u8; 100_000]);
    }
    store.raft.save_vote(Bytes::from_static(b"v")).unwrap();
}

#[test]
#[ignore = "the process whose disk is full in the test above"]
fn raft_fills_the_disk() {
    let Some(disk) = std::env::var_os(FILLS).map(PathBuf::from) else {
        return;
    };
    let store = open(&disk.join("data"));
    let append = |index: u64| {
        let (told, hears) = sync_channel(1);
        let entry = vec![(index, Bytes::from(vec![index as u8; 100_000]))];
        let done = Box::new(move |result| told.send(result).unwrap());
        store.raft.append(entry, done);
        hears.recv().unwrap()
    };
    append(1).unwrap();
    leave(&disk, 0);
    let mut last = 1;
    let failed = loop {
        match append(last + 1) {
            Ok(()) => last += 1,
            Err(error) => break error,
        }
        assert!(last < 1_000, "the disk never fills");
    };
    assert!(matches!(failed, StoreError::NoSpace { .. }), "{failed:?}");
    let again = store.raft.save_vote(Bytes::from_static(b"v"));
    assert_eq!(again, Err(failed));
    assert_eq!(
        store.raft.entries(1..=1).unwrap().len(),
        1,
        "it still reads"
    );
    println!("\nacknowledged {last}");
}
