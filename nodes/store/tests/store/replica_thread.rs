use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use understudy_protocol::id::{
    ConfigVersion, Epoch, IncarnationId, NodeId, Seq, SlotRange, StoreId, UnitId,
};
use understudy_protocol::wire::record::{Head, Record};
use understudy_protocol::wire::replica::{Append, Ask, ReplicaAnswer, ReplicaRequest, Said, Scope};
use understudy_store::{DataDir, Full, OnDamage, ReplicaThread};
use understudy_supervision::store::{CheckpointStore, MemoryStore, StoreError};

use crate::support::{chain, child};

const SESSION: IncarnationId = IncarnationId(9);
const OWNER: NodeId = NodeId(1);

struct Bench {
    thread: ReplicaThread,
    answers: Receiver<ReplicaAnswer>,
    failures: Receiver<StoreError>,
}

fn start(store: Box<dyn CheckpointStore>) -> Bench {
    let (answer, answers) = sync_channel(4_096);
    let (fail, failures) = sync_channel(1);
    let thread = ReplicaThread::start(
        store,
        SESSION,
        None,
        Box::new(move |to, said| {
            assert_eq!(to, OWNER);
            answer.send(said).unwrap();
        }),
        Box::new(move |error| fail.send(error).unwrap()),
    );
    Bench {
        thread: thread.unwrap(),
        answers,
        failures,
    }
}

impl Bench {
    fn ask(&self, ask: Ask) -> Result<(), Full> {
        let request = ReplicaRequest {
            unit: UnitId(1),
            epoch: Epoch(1),
            config: ConfigVersion(1),
            session: Some(SESSION),
            ask,
        };
        self.thread.ask(OWNER, request)
    }

    fn hear(&self) -> Said {
        let answer = self.answers.recv_timeout(Duration::from_secs(20));
        answer.expect("an answer").said
    }

    fn seal(&self) -> Said {
        let scope = Scope::Slots {
            range: SlotRange::ALL,
            except: Vec::new(),
        };
        self.ask(Ask::Seal { scope, after: None }).unwrap();
        self.hear()
    }

    fn append(&self, prev: Head, records: &[Record]) {
        self.ask(append(prev, records)).unwrap();
    }

    fn fetch(&self) -> Said {
        let (child, after) = (child("t/k/a"), Seq(0));
        self.ask(Ask::Fetch { child, after }).unwrap();
        self.hear()
    }
}

fn append(prev: Head, records: &[Record]) -> Ask {
    Ask::Append(Append {
        child: child("t/k/a"),
        prev,
        from_base: false,
        records: records.to_vec(),
        adopted: Seq(0),
        keep_from: Seq(0),
    })
}

#[test]
fn what_was_answered_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let store = DataDir::open(folder.path(), OnDamage::Refuse, None).unwrap();
        Box::new(store.records)
    };
    let records = chain(&child("t/k/a"), 50, 2_000);
    let bench = start(open());
    assert!(matches!(bench.seal(), Said::Sealed { cut: false, .. }));
    for record in &records {
        bench.append(record.prev, std::slice::from_ref(record));
    }
    for record in &records {
        let expected = Said::Appended {
            child: child("t/k/a"),
            upto: record.head(),
        };
        assert_eq!(bench.hear(), expected);
    }
    bench.thread.stop();

    let bench = start(open());
    let Said::Sealed { page, cut, .. } = bench.seal() else {
        panic!("it is sealed");
    };
    assert_eq!(page[0].tail, records[49].head());
    assert!(!cut && !page[0].damaged);
    let expected = Said::Fetched {
        child: child("t/k/a"),
        after: Seq(0),
        records,
    };
    assert_eq!(bench.fetch(), expected);
}

#[test]
fn damage_that_a_read_finds_is_told_to_the_owner() {
    let store = MemoryStore::new(StoreId(4));
    let bench = start(Box::new(store.clone()));
    let records = chain(&child("t/k/a"), 5, 100);
    bench.seal();
    bench.append(Head::NONE, &records);
    bench.hear();
    store.damage(&child("t/k/a"), Seq(3));
    let expected = Said::Damaged {
        child: child("t/k/a"),
    };
    assert_eq!(bench.fetch(), expected);
    let Said::Sealed { page, .. } = bench.seal() else {
        panic!("it is sealed");
    };
    assert_eq!(page[0].tail, records[1].head());
    assert!(page[0].damaged, "it says so until it is whole (R3)");
}

#[test]
fn a_full_disk_turns_records_away_and_keeps_reading_and_promising() {
    let store = MemoryStore::new(StoreId(4));
    let bench = start(Box::new(store.clone()));
    let records = chain(&child("t/k/a"), 2, 100);
    bench.seal();
    bench.append(Head::NONE, &records[..1]);
    bench.hear();
    store.set_full(true);
    bench.append(records[0].head(), &records[1..]);
    assert!(
        matches!(bench.seal(), Said::Sealed { .. }),
        "no answer to the append"
    );
    let full = bench.thread.fullness();
    assert!(full.load(Ordering::Relaxed));
    assert!(matches!(bench.fetch(), Said::Fetched { records, .. } if records.len() == 1));
    store.set_full(false);
    bench.append(records[0].head(), &records[1..]);
    assert!(matches!(bench.hear(), Said::Appended { upto, .. } if upto == records[1].head()));
    assert!(!full.load(Ordering::Relaxed));
}

#[test]
fn a_failed_store_is_told_once_and_answers_nothing_more() {
    let store = MemoryStore::new(StoreId(4));
    let bench = start(Box::new(store.clone()));
    bench.seal();
    let failed = StoreError::Failed {
        reason: "the disk is gone".into(),
    };
    store.set_failed(Some(failed.clone()));
    bench.append(Head::NONE, &chain(&child("t/k/a"), 1, 100));
    let told = bench.failures.recv_timeout(Duration::from_secs(20));
    assert_eq!(told, Ok(failed));
    assert!(bench.answers.recv_timeout(Duration::from_secs(20)).is_err());
    while bench.ask(append(Head::NONE, &[])).is_ok() {}
    bench.thread.stop();
}

/// A store whose first read waits until it is let go.
struct Stuck(MemoryStore, Receiver<()>);

impl CheckpointStore for Stuck {
    fn store_id(&self) -> StoreId {
        self.0.store_id()
    }

    fn opened(&mut self) -> Result<understudy_protocol::cluster::replication::Opened, StoreError> {
        let _ = self.1.recv();
        self.0.opened()
    }

    fn commit(
        &mut self,
        batch: Vec<understudy_protocol::cluster::replication::Write>,
    ) -> Result<(), StoreError> {
        self.0.commit(batch)
    }

    fn read(
        &mut self,
        child: &understudy_protocol::id::ChildId,
        after: Seq,
    ) -> Result<Vec<Record>, understudy_supervision::store::ReadError> {
        self.0.read(child, after)
    }
}

#[test]
fn a_slow_store_says_full_and_never_blocks_who_asks() {
    let (let_go, held) = sync_channel(1);
    let bench = start(Box::new(Stuck(MemoryStore::new(StoreId(4)), held)));
    let large = chain(&child("t/k/a"), 20, 64_000);
    let mut taken = 0;
    while bench.ask(append(Head::NONE, &large)).is_ok() {
        taken += 1;
        assert!(taken < 2_000, "the queue has no limit");
    }
    let small = Ask::Fetch {
        child: child("t/k/a"),
        after: Seq(0),
    };
    assert_eq!(bench.ask(small), Err(Full), "by bytes, not only by number");
    let_go.send(()).unwrap();
    for _ in 0..taken {
        assert_eq!(bench.hear(), Said::Unsealed);
    }
    assert!(
        matches!(bench.seal(), Said::Sealed { .. }),
        "it takes more again"
    );
}
