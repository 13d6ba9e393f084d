//! Two nodes with a store and a network each, and no core: appends come by function call.

#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use understudy_protocol::id::{ChildId, ConfigVersion, Epoch, Seq, SlotRange, UnitId};
use understudy_protocol::wire::content::Content;
use understudy_protocol::wire::record::{Head, Record, RecordKind};
use understudy_protocol::wire::replica::{Append, Ask, Said, Scope};
use understudy_protocol::wire::step::Step;
use understudy_store::{DataDir, OnDamage};
use understudy_transport::identity::Ca;
use understudy_transport::net::{Full, Hello, Inbox, NetConfig, PeerChange};

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

struct Node {
    folder: tempfile::TempDir,
    contents: Contents,
    task: ContentsTask,
    net: Net,
    answers: mpsc::Receiver<(NodeId, ReplicaAnswer)>,
    /// Whoever says that pieces come in panics over it.
    panics: Arc<AtomicBool>,
}

/// Serves chunks, and nothing else.
struct OnlyChunks(Contents);

impl Inbox for OnlyChunks {
    fn frame(&self, _: NodeId, _: Bytes) -> Result<(), Full> {
        Ok(())
    }

    fn request(
        &self,
        _: NodeId,
        kind: u8,
        body: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, RequestRefused>> {
        assert_eq!(kind, FETCH_CHUNKS);
        self.0.serve(body)
    }

    fn peer(&self, _: PeerChange) {}
}

impl Node {
    async fn start(ca: &Ca, number: u64, seeds: &[String]) -> Node {
        let folder = tempfile::tempdir().unwrap();
        let (node, store) = (NodeId(number), StoreId(number));
        let incarnation = IncarnationId(number);
        let opened = DataDir::open(folder.path(), OnDamage::Refuse, None).unwrap();
        let (says, answers) = mpsc::channel(1_000);
        let said = says.clone();
        let answer = move |to, answer| says.try_send((to, answer)).unwrap();
        let records = Box::new(opened.records);
        let failed = Box::new(|error| panic!("{error}"));
        let replica = ReplicaThread::start(records, incarnation, None, Box::new(answer), failed);
        let slot: Arc<OnceLock<Net>> = Arc::default();
        let panics = Arc::<AtomicBool>::default();
        let may = panics.clone();
        let (contents, task) = start(ContentsConfig {
            node,
            store,
            incarnation,
            chunks: opened.chunks,
            replica: Arc::new(replica.unwrap()),
            net: slot.clone(),
            answer: Box::new(move |to, answer| {
                assert!(!may.load(Ordering::Relaxed), "as it was asked to");
                said.try_send((to, answer)).unwrap();
            }),
        });
        let hello = Hello {
            node,
            incarnation,
            store,
            name: format!("node {number}"),
            address: "127.0.0.1:1".into(),
            votes: true,
            works: true,
        };
        let config = NetConfig {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            identity: Arc::new(ca.issue("test", node, &[]).unwrap()),
            hello,
            seeds: seeds.to_vec(),
            segmentation_offload: true,
        };
        let inbox = Arc::new(OnlyChunks(contents.clone()));
        let net = Net::start(config, inbox).await.unwrap();
        let _ = slot.set(net.clone());
        Node {
            folder,
            contents,
            task,
            net,
            answers,
            panics,
        }
    }

    fn seed(&self) -> String {
        self.net.local_addr().unwrap().to_string()
    }

    fn chunks(&self) -> &Chunks {
        &self.contents.shared.config.chunks
    }

    fn ask(&self, from: u64, ask: Ask) {
        let request = ReplicaRequest {
            unit: UnitId(1),
            epoch: Epoch(1),
            config: ConfigVersion(1),
            session: Some(self.contents.shared.config.incarnation),
            ask,
        };
        assert!(self.contents.ask(NodeId(from), request));
    }

    async fn hear(&mut self) -> Said {
        let answer = tokio::time::timeout(PATIENCE, self.answers.recv()).await;
        answer.expect("an answer").unwrap().1.said
    }

    async fn seal(&mut self, from: u64) {
        let (range, except) = (SlotRange::ALL, Vec::new());
        let scope = Scope::Slots { range, except };
        self.ask(from, Ask::Seal { scope, after: None });
        assert!(matches!(self.hear().await, Said::Sealed { .. }));
    }

    /// What it says until it says something else than that it fetches; whether it said that.
    async fn hear_in_the_end(&mut self) -> (Said, bool) {
        let mut fetches = false;
        loop {
            match self.hear().await {
                Said::Fetching { .. } => fetches = true,
                said => return (said, fetches),
            }
        }
    }

    /// No append waits any more.
    async fn until_nothing_waits(&self) {
        let nothing = async {
            while !lock(&self.contents.shared.gate.busy).is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, nothing).await.unwrap();
    }

    async fn until_peer(&self) {
        let up = async {
            while self.net.peers().is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, up).await.unwrap();
    }

    fn path_of(&self, name: ChunkName) -> PathBuf {
        let name = name.to_string();
        let chunks = self.folder.path().join("store/chunks");
        chunks.join(&name[..2]).join(name)
    }

    async fn stop(self) {
        self.task.stop().await;
        self.net.close().await;
    }
}

fn child() -> ChildId {
    ChildId::parse("t/k/a").unwrap()
}

fn noise(kib: usize, seed: u64) -> Bytes {
    understudy_supervision::testing::noise(kib, seed).into()
}

fn record(prev: Head, effect: Content) -> Record {
    let step = Step {
        call: None,
        effect,
        earlier: Vec::new(),
    };
    let body = minicbor::to_vec(&step).unwrap().into();
    let (epoch, config, kind) = (Epoch(1), ConfigVersion(1), RecordKind::Delta);
    Record::chained(child(), epoch, config, prev, kind, step.schema(), body)
}

fn append(record: &Record) -> Ask {
    Ask::Append(Append {
        child: child(),
        prev: record.prev,
        from_base: false,
        records: vec![record.clone()],
        adopted: Seq(0),
        keep_from: Seq(0),
    })
}

fn appended(record: &Record) -> Said {
    Said::Appended {
        child: child(),
        upto: record.head(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_whose_pieces_nobody_has_is_not_acknowledged_and_is_when_they_are_there() {
    let ca = Ca::create("alpha").unwrap();
    let mut node = Node::start(&ca, 1, &[]).await;
    node.seal(1).await;
    // One with a list, so that it is not enough to have that.
    let cut = Pieces::cut(&noise(5 * 1024, 1)).unwrap();
    let list = cut.pieces.list().unwrap();
    let one = record(Head::NONE, Content::Pieces(cut.pieces));
    let two = record(one.head(), Bytes::from_static(b"short").into());
    let after = Seq(0);
    let child = child();
    let (some, rest): (Vec<_>, Vec<_>) = cut.parts.into_iter().partition(|(name, _)| *name == list);
    for parts in [Vec::new(), some] {
        node.chunks().put_all(&parts).unwrap();
        node.ask(1, append(&one));
        node.until_nothing_waits().await;
        node.ask(
            1,
            Ask::Fetch {
                child: child.clone(),
                after,
            },
        );
        let fetched = Said::Fetched {
            child: child.clone(),
            after,
            records: Vec::new(),
        };
        assert_eq!(node.hear().await, fetched, "nothing else was said before");
    }
    node.chunks().put_all(&rest).unwrap();
    node.ask(1, append(&one));
    node.ask(1, append(&two));
    assert_eq!(node.hear().await, appended(&one), "in their order");
    assert_eq!(node.hear().await, appended(&two));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_record_names_is_fetched_of_its_owner_and_again_when_a_bit_flips() {
    let ca = Ca::create("alpha").unwrap();
    let owner = Node::start(&ca, 1, &[]).await;
    let mut other = Node::start(&ca, 2, &[owner.seed()]).await;
    owner.until_peer().await;
    other.until_peer().await;
    other.seal(1).await;

    let value = noise(6 * 1024, 7);
    let pieces = owner.contents.keep(value.clone()).await.unwrap();
    let one = record(Head::NONE, Content::Pieces(pieces.clone()));
    let two = record(one.head(), Bytes::from_static(b"short").into());
    other.ask(1, append(&one));
    other.ask(1, append(&two));
    let (said, fetches) = other.hear_in_the_end().await;
    assert_eq!(said, appended(&one));
    assert!(fetches, "its owner heard that it was not silent");
    assert_eq!(other.hear().await, appended(&two), "in their order");
    let cut = Pieces::cut(&value).unwrap();
    let names = || cut.parts.iter().map(|(name, _)| *name);
    assert!(other.chunks().missing(names()).is_empty());

    for name in names().step_by(40).chain(pieces.list()) {
        let path = other.path_of(name);
        let mut content = std::fs::read(&path).unwrap();
        content[100] ^= 4;
        std::fs::write(&path, content).unwrap();
    }
    let again = other.contents.fetch(pieces.clone()).await.unwrap();
    assert!(again == value, "a byte differs");
    for name in names() {
        assert!(other.chunks().get(name).is_ok(), "it is mended for good");
    }

    // What nobody has whole is missing, and no other bytes are made of it.
    owner.task.stop().await;
    owner.net.close().await;
    let name = cut.parts[3].0;
    std::fs::write(other.path_of(name), b"torn").unwrap();
    let lost = other.contents.fetch(pieces).await;
    let missing = FetchError::Missing {
        missing: 1,
        first: name,
    };
    assert_eq!(lost, Err(missing));
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_whose_pull_panicked_wait_no_more_and_are_taken_when_they_come_again() {
    let ca = Ca::create("alpha").unwrap();
    let owner = Node::start(&ca, 1, &[]).await;
    let mut other = Node::start(&ca, 2, &[owner.seed()]).await;
    owner.until_peer().await;
    other.until_peer().await;
    other.seal(1).await;
    let pieces = owner.contents.keep(noise(1024, 3)).await.unwrap();
    let one = record(Head::NONE, Content::Pieces(pieces));
    let two = record(one.head(), Bytes::from_static(b"short").into());
    other.panics.store(true, Ordering::Relaxed);
    other.ask(1, append(&one));
    other.ask(1, append(&two));
    other.until_nothing_waits().await;
    other.panics.store(false, Ordering::Relaxed);
    other.ask(1, append(&one));
    other.ask(1, append(&two));
    assert_eq!(other.hear_in_the_end().await.0, appended(&one));
    assert_eq!(other.hear().await, appended(&two), "in their order");
    owner.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_asks_for_too_much_or_for_what_is_not_there_is_answered_so() {
    let ca = Ca::create("alpha").unwrap();
    let node = Node::start(&ca, 1, &[]).await;
    let here = node.chunks().put(b"here").unwrap();
    let ask = |names: Vec<ChunkName>| {
        let names: Bytes = names.iter().flat_map(|name| name.0).collect();
        node.contents.serve(names)
    };
    let answer = ask(vec![ChunkName::of(b"not here"), here]).await.unwrap();
    let expected = [&[0xFF; 4][..], &[0, 0, 0, 4], b"here"].concat();
    assert_eq!(answer, expected);
    assert_eq!(ask(Vec::new()).await.unwrap(), Bytes::new());
    let many = ask(vec![here; pull::GROUP_MAX + 1]).await;
    assert!(matches!(many, Err(RequestRefused::Failed(_))));
    let long = node.chunks().put(&vec![1; 70_000]).unwrap();
    assert_eq!(ask(vec![long]).await.unwrap(), [0xFF; 4].to_vec());
    node.stop().await;
}
