//! Stores without a cluster: what the disk gives, and what a store makes of it.
//!
//! Owns: the raw writes, and the owners that keep one append under way for each child, as a node's
//! callers would. Each store is the real one, on its own thread; three of them stand on the one disk,
//! since three nodes of this machine would too.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use tempfile::TempDir;
use understudy_protocol::id::{
    ChildId, ConfigVersion, Epoch, IncarnationId, NodeId, Seq, SlotRange, UnitId,
};
use understudy_protocol::wire::record::{Head, Record, RecordKind};
use understudy_protocol::wire::replica::{Append, Ask, ReplicaAnswer, ReplicaRequest, Said, Scope};
use understudy_store::{DataDir, OnDamage, ReplicaThread};

use crate::{CALLERS, RECORD_BYTES, Round};

/// Appends of 4 KiB to one file, `group` of them for each `fdatasync`.
pub(crate) fn raw(folder: &Path, group: usize, time: Duration) -> Result<Round> {
    let path = folder.join("raw");
    let mut file = File::create(&path)?;
    let record = [7; RECORD_BYTES];
    let mut took = Vec::new();
    let began = Instant::now();
    let mut records = 0_u64;
    while began.elapsed() < time {
        let turn = Instant::now();
        for _ in 0..group {
            file.write_all(&record)?;
        }
        file.sync_data()?;
        took.push(turn.elapsed());
        records += group as u64;
    }
    let round = Round::new(records, began.elapsed(), took);
    std::fs::remove_file(&path)?;
    Ok(round)
}

/// Some stores, and a chain of records for each child.
pub(crate) struct Stores {
    _folder: TempDir,
    threads: Vec<ReplicaThread>,
    answers: Receiver<(usize, ReplicaAnswer)>,
    children: Vec<Writer>,
}

/// One child's chain, as its owner knows it.
struct Writer {
    child: ChildId,
    tail: Head,
    base: Seq,
    /// Which stores have answered for the record under way.
    answered: usize,
    since: Instant,
}

impl Stores {
    pub(crate) fn start(base: &Path, count: usize) -> Result<Stores> {
        let folder = tempfile::tempdir_in(base)?;
        let (heard, answers) = sync_channel(ANSWERS_MAX);
        let threads = (0..count)
            .map(|nth| start(&folder.path().join(nth.to_string()), nth, heard.clone()))
            .collect::<Result<Vec<_>>>()?;
        let children = (0..CALLERS)
            .map(|nth| {
                Ok(Writer {
                    child: ChildId::parse(&format!("bench/writer/{nth}"))?,
                    tail: Head::NONE,
                    base: Seq::ZERO,
                    answered: 0,
                    since: Instant::now(),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let stores = Stores {
            _folder: folder,
            threads,
            answers,
            children,
        };
        let scope = Scope::Slots {
            range: SlotRange::ALL,
            except: Vec::new(),
        };
        for thread in &stores.threads {
            let scope = scope.clone();
            ask(thread, Ask::Seal { scope, after: None })?;
        }
        for _ in 0..count {
            let (_, answer) = stores.answers.recv_timeout(PATIENCE)?;
            if !matches!(answer.said, Said::Sealed { .. }) {
                bail!("a store answered {:?}", answer.said);
            }
        }
        Ok(stores)
    }

    /// Every child writes its next record when its last is on every store.
    pub(crate) fn run(&mut self, time: Duration) -> Result<Round> {
        let began = Instant::now();
        let mut took = Vec::new();
        for nth in 0..self.children.len() {
            self.write(nth)?;
        }
        let mut under_way = self.children.len();
        while under_way > 0 {
            let (_, answer) = self.answers.recv_timeout(PATIENCE)?;
            let Said::Appended { child, upto } = answer.said else {
                bail!("a store answered {:?}", answer.said);
            };
            let nth = child.key().parse::<usize>()?;
            let stores = self.threads.len();
            let writer = self.children.get_mut(nth).context("an unknown child")?;
            if upto != writer.tail {
                bail!("{child} is at {upto:?}, not {:?}", writer.tail);
            }
            writer.answered += 1;
            if writer.answered < stores {
                continue;
            }
            took.push(writer.since.elapsed());
            if began.elapsed() < time {
                self.write(nth)?;
            } else {
                under_way -= 1;
            }
        }
        Ok(Round::new(took.len() as u64, began.elapsed(), took))
    }

    fn write(&mut self, nth: usize) -> Result<()> {
        let writer = &mut self.children[nth];
        // As an agent does: a snapshot after 64 records, and what is before it may go.
        let kind = match writer.tail.seq.0 % SNAPSHOT_EVERY {
            0 => RecordKind::Snapshot,
            _ => RecordKind::Delta,
        };
        let mut body = vec![7; RECORD_BYTES];
        body[..8].copy_from_slice(&writer.tail.seq.0.to_be_bytes());
        let record = Record::chained(
            writer.child.clone(),
            EPOCH,
            CONFIG,
            writer.tail,
            kind,
            1,
            Bytes::from(body),
        );
        let append = Append {
            child: writer.child.clone(),
            prev: writer.tail,
            from_base: false,
            adopted: Seq::ZERO,
            keep_from: writer.base,
            records: vec![record.clone()],
        };
        if kind == RecordKind::Snapshot {
            writer.base = record.seq;
        }
        writer.tail = record.head();
        writer.answered = 0;
        writer.since = Instant::now();
        for thread in &self.threads {
            ask(thread, Ask::Append(append.clone()))?;
        }
        Ok(())
    }
}

fn start(
    folder: &Path,
    nth: usize,
    heard: SyncSender<(usize, ReplicaAnswer)>,
) -> Result<ReplicaThread> {
    let open = DataDir::open(folder, OnDamage::Refuse, None)?;
    let answer = move |_, answer| {
        // Nobody hears it when the bench is over.
        let _ = heard.send((nth, answer));
    };
    let failed = |error| eprintln!("a store has failed: {error}");
    let thread = ReplicaThread::start(
        Box::new(open.records),
        SESSION,
        None,
        Box::new(answer),
        Box::new(failed),
    );
    Ok(thread?)
}

fn ask(thread: &ReplicaThread, ask: Ask) -> Result<()> {
    let request = ReplicaRequest {
        unit: UnitId(1),
        epoch: EPOCH,
        config: CONFIG,
        session: Some(SESSION),
        ask,
    };
    Ok(thread.ask(NodeId(1), request)?)
}

const SESSION: IncarnationId = IncarnationId(1);
const EPOCH: Epoch = Epoch(1);
const CONFIG: ConfigVersion = ConfigVersion(1);

/// As a node's agent.
const SNAPSHOT_EVERY: u64 = 64;

/// More than can be under way.
const ANSWERS_MAX: usize = 4_096;

const PATIENCE: Duration = Duration::from_secs(30);
