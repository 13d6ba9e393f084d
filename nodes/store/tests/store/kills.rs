//! A writer in a process of its own, killed at random moments.

use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use understudy_protocol::cluster::replication::{CutMark, Write};
use understudy_protocol::id::{ChildId, Seq};
use understudy_protocol::wire::record::{Head, RecordKind};
use understudy_store::{DataDir, OnDamage, OpenStore};
use understudy_supervision::clock;
use understudy_supervision::store::CheckpointStore;
use understudy_supervision::store::conformance::promise;

use crate::damage::probe;
use crate::support::{Random, chain, child, next_record};

const CHILDREN: [&str; 5] = ["t/k/a", "t/k/b", "t/k/c", "@t/k/own", "t/k/large"];
const WRITES: &str = "UNDERSTUDY_TEST_WRITES";

/// So many writers are killed after they acknowledged something, and some more before.
const KILLS: u32 = 24;
const EARLY_KILLS: u32 = 8;

fn bytes_max(nth: usize) -> usize {
    if nth == 4 { 64_000 } else { 3_000 }
}

/// What a writer says once it is flushed: each child's last record, the promise, the last entry.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Acknowledged {
    tails: [u64; 5],
    promise: u64,
    entry: u64,
}

impl Acknowledged {
    fn parse(line: &str) -> Option<Acknowledged> {
        let (_, numbers) = line.split_once("acknowledged ")?;
        let numbers: Vec<u64> = numbers
            .split_whitespace()
            .map(|number| number.parse().unwrap())
            .collect();
        let [a, b, c, d, e, promise, entry] = numbers.try_into().ok()?;
        Some(Acknowledged {
            tails: [a, b, c, d, e],
            promise,
            entry,
        })
    }
}

#[test]
fn a_killed_writer_loses_nothing_it_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = Random(0x5EED);
    let mut known = Acknowledged::default();
    for round in 0..KILLS + EARLY_KILLS {
        let mut writer = spawn(folder.path(), round);
        let heard = if round % 4 == 3 {
            // It may be opening the store, or just begin to write.
            listen(&mut writer, None, Duration::from_millis(random.below(300)))
        } else {
            let first = Duration::from_secs(60);
            let heard = listen(
                &mut writer,
                Some(first),
                Duration::from_millis(random.below(150)),
            );
            Some(heard.expect("the writer begins to write"))
        };
        known = heard.unwrap_or(known);
        check(folder.path(), known, round);
    }
}

/// A power failure may also take what the killed writer's last writes reached of the disk.
#[test]
fn what_a_torn_end_takes_of_the_acknowledged_is_told() {
    let mut random = Random(0x7EA2);
    let (mut told, mut aside) = (0, 0);
    for round in 0..12 {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = spawn(folder.path(), round);
        let (first, life) = (Duration::from_secs(60), random.below(100));
        let heard = listen(&mut writer, Some(first), Duration::from_millis(life));
        let known = heard.expect("the writer begins to write");
        tear(folder.path(), random.below(60_000) + 1);
        let mut store = DataDir::open(folder.path(), OnDamage::Rebuild, Some(&probe())).unwrap();
        if store.rebuilt.is_some() {
            aside += 1;
            continue;
        }
        let opened = store.records.opened().unwrap();
        let cut = opened.cut != CutMark::default();
        told += u32::from(cut);
        let promised = opened.promises.first().map_or(0, |(_, epoch)| epoch.0);
        assert!(
            promised >= known.promise,
            "round {round}: a promise is forgotten"
        );
        for (nth, name) in CHILDREN.into_iter().enumerate() {
            let records = read_all(&mut store, &child(name));
            let last = records.last().map_or(0, |record| record.seq.0);
            let mut chains = opened.chains.iter();
            let damaged = chains.any(|chain| chain.child.as_str() == name && chain.damaged);
            assert!(
                last >= known.tails[nth] || cut || damaged,
                "round {round}: {name} ends at {last} without a word, acknowledged was {known:?}"
            );
        }
    }
    println!("{told} were told of, {aside} stores were put aside");
    assert!(told + aside > 0, "nothing was torn");
}

/// Takes so many bytes off the end of what was written of the records.
fn tear(data: &Path, bytes: u64) {
    let path = data.join("store/records/sled/db");
    let content = std::fs::read(&path).unwrap();
    let end = content.iter().rposition(|byte| *byte != 0).unwrap() as u64;
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(end.saturating_sub(bytes)).unwrap();
}

fn spawn(folder: &Path, round: u32) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kills::writer", "--ignored", "--nocapture"])
        .env(WRITES, folder)
        .env("UNDERSTUDY_TEST_ROUND", round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Hears what the writer acknowledges, kills it, and gives what it said last. It is killed after
/// `life`, counted from what it says first when that is waited for.
fn listen(writer: &mut Child, first: Option<Duration>, life: Duration) -> Option<Acknowledged> {
    let lines = BufReader::new(writer.stdout.take().unwrap()).lines();
    let (told, hears) = sync_channel(100_000);
    let reader = std::thread::spawn(move || {
        for line in lines {
            if let Some(said) = Acknowledged::parse(&line.unwrap()) {
                told.send(said).unwrap();
            }
        }
    });
    let mut last = first.and_then(|patience| hears.recv_timeout(patience).ok());
    let until = clock::now() + life;
    loop {
        match hears.recv_timeout(until.since(clock::now())) {
            Ok(said) => last = Some(said),
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) => panic!("the writer ended by itself"),
        }
    }
    writer.kill().unwrap();
    writer.wait().unwrap();
    reader.join().unwrap();
    hears.try_iter().last().or(last)
}

fn check(folder: &Path, known: Acknowledged, round: u32) {
    let mut store = DataDir::open(folder, OnDamage::Refuse, None).unwrap();
    let opened = store.records.opened().unwrap();
    assert_eq!(
        opened.cut,
        CutMark::default(),
        "round {round}: nothing was cut"
    );
    for (nth, name) in CHILDREN.into_iter().enumerate() {
        let name = child(name);
        let records = read_all(&mut store, &name);
        let (first, last) = match (records.first(), records.last()) {
            (Some(first), Some(last)) => (first.seq.0, last.seq.0),
            _ => (1, 0),
        };
        assert!(
            last >= known.tails[nth],
            "round {round}: {name} ends at {last}, acknowledged was {known:?}"
        );
        let expected = chain(&name, last, bytes_max(nth));
        assert!(records == expected[first as usize - 1..last as usize]);
        let of_child = opened.chains.iter().find(|chain| chain.child == name);
        assert!(of_child.is_none_or(|chain| !chain.damaged));
    }
    let promised = opened.promises.first().map_or(0, |(_, epoch)| epoch.0);
    assert!(promised >= known.promise, "round {round}");
    let entries = store.raft.entries(..).unwrap();
    assert!(entries.len() as u64 >= known.entry, "round {round}");
    for (index, entry) in entries {
        assert_eq!(entry, format!("entry {index}"));
    }
}

fn read_all(
    store: &mut OpenStore,
    child: &ChildId,
) -> Vec<understudy_protocol::wire::record::Record> {
    let mut records = Vec::new();
    let mut after = Seq(0);
    loop {
        let page = store.records.read(child, after).unwrap();
        let Some(last) = page.last() else {
            return records;
        };
        after = last.seq;
        records.extend(page);
    }
}

#[test]
#[ignore = "the process that the test above kills"]
fn writer() {
    let Some(folder) = std::env::var_os(WRITES) else {
        return;
    };
    let round: u64 = std::env::var("UNDERSTUDY_TEST_ROUND")
        .unwrap()
        .parse()
        .unwrap();
    let mut store = DataDir::open(Path::new(&folder), OnDamage::Refuse, None).unwrap();
    let opened = store.records.opened().unwrap();
    let mut heads = CHILDREN.map(|name| {
        let mut chains = opened.chains.iter();
        let chain = chains.find(|chain| chain.child.as_str() == name);
        chain
            .and_then(|chain| chain.heads.last().copied())
            .unwrap_or(Head::NONE)
    });
    let mut promised = opened.promises.first().map_or(0, |(_, epoch)| epoch.0);
    let mut entry = store.raft.state().last_index.unwrap_or(0);
    let mut random = Random(round + 77);
    let mut out = std::io::stdout();
    // The parent kills this process long before; should it be gone, the end is near too.
    for _ in 0..100_000 {
        let mut batch = Vec::new();
        for _ in 0..random.below(12) + 1 {
            let nth = random.below(5) as usize;
            let name = child(CHILDREN[nth]);
            let record = next_record(&name, heads[nth], bytes_max(nth));
            heads[nth] = record.head();
            let (kind, from) = (record.kind, record.seq);
            batch.push(Write::Put(record));
            if kind == RecordKind::Snapshot {
                batch.push(Write::Prune { child: name, from });
            }
        }
        if random.below(10) == 0 {
            promised += 1;
            batch.push(promise(0, 16_384, promised));
        }
        store.records.commit(batch).unwrap();
        if random.below(4) == 0 {
            entry += 1;
            append(&store, entry);
        }
        let tails = heads.map(|head| head.seq.0.to_string()).join(" ");
        writeln!(out, "\nacknowledged {tails} {promised} {entry}").unwrap();
    }
}

fn append(store: &OpenStore, index: u64) {
    let (told, hears) = sync_channel(1);
    let entry = vec![(index, Bytes::from(format!("entry {index}")))];
    store
        .raft
        .append(entry, Box::new(move |result| told.send(result).unwrap()));
    hears.recv().unwrap().unwrap();
}
