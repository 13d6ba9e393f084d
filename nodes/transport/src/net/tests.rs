//! The main endpoint over real sockets: order, limits, refusals, restarts.

#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::mpsc;
use understudy_protocol::id::{IncarnationId, StoreId};
use understudy_protocol::wire::codec::{HEADER_BYTES, encode_frame};
use understudy_protocol::wire::heart::{DeathNote, HeartMessage};

use super::*;
use crate::identity::Ca;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_arrive_in_order_on_every_lane() {
    let ca = Ca::create("alpha").unwrap();
    let mut a = Node::start(&ca, 1, 1, &[]).await;
    let mut b = Node::start(&ca, 2, 1, &[a.seed()]).await;
    a.until_up(2).await;
    b.until_up(1).await;

    let count = 2_000;
    for number in 0..count {
        a.send(2, Lane::Of(number % 16), number).await;
        b.send(1, Lane::Bulk, number).await;
    }
    let mut last = [None; 8];
    for _ in 0..count {
        let number = b.number().await;
        let lane = &mut last[(number % 8) as usize];
        assert!(*lane < Some(number), "{number} after {lane:?}");
        *lane = Some(number);
    }
    for number in 0..count {
        assert_eq!(a.number().await, number);
    }
    assert_eq!(a.net.counted(), Counted::default());
    assert_eq!(b.net.counted(), Counted::default());
    assert_eq!(a.net.peers()[0].name, "node 2");
    assert!(b.net.missing_seeds().is_empty());
    b.net.close().await;
    a.until_down(2).await;
    assert_eq!(
        a.net.send(NodeId(2), Lane::Bulk, frame_of(1)),
        Err(SendError::NoPeer)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_dial_each_other_settle_on_one_link() {
    let ca = Ca::create("alpha").unwrap();
    let mut a = Node::start(&ca, 1, 1, &[]).await;
    let mut b = Node::start(&ca, 2, 1, &[a.seed()]).await;
    a.net.set_addresses(BTreeMap::from([(NodeId(2), b.seed())]));
    b.net.set_addresses(BTreeMap::from([
        (NodeId(1), a.seed()),
        (NodeId(2), b.seed()),
    ]));
    a.until_up(2).await;
    b.until_up(1).await;
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    assert!(a.changes.try_recv().is_err(), "the link was replaced");
    assert!(b.changes.try_recv().is_err(), "the link was replaced");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_certificate_is_refused() {
    let (ours, theirs) = (Ca::create("alpha").unwrap(), Ca::create("alpha").unwrap());
    let a = Node::start(&ours, 1, 1, &[]).await;
    let mut b = Node::start(&theirs, 2, 1, &[a.seed()]).await;
    until(|| a.net.counted().handshakes_refused > 0 && b.net.counted().handshakes_refused > 0)
        .await;
    assert!(b.changes.try_recv().is_err());
    assert!(a.net.peers().is_empty());
    assert_eq!(b.net.missing_seeds(), [a.seed()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_cluster_is_refused_even_by_the_same_ca() {
    let ca = Ca::create("alpha").unwrap();
    let a = Node::start(&ca, 1, 1, &[]).await;
    // It dials as one of ours would, so that only its certificate's name is wrong.
    let stray = ca.issue_as("beta", "stray", NodeId(2), &[]).unwrap();
    let raw = Raw::dial(&stray, "node.alpha", &a).await;
    raw.connection.closed().await;
    until(|| a.net.counted().identities_refused == 1).await;
    assert!(a.net.peers().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_greeting_that_is_not_the_certificates_is_refused() {
    let ca = Ca::create("alpha").unwrap();
    let a = Node::start(&ca, 1, 1, &[]).await;
    let identity = ca.issue("liar", NodeId(2), &[]).unwrap();
    let raw = Raw::dial(&identity, "node.alpha", &a).await;
    let hello = hello_of(3, 1, "x:1");
    let greeted = Greeting::dial(&raw.connection, Role::Data, &hello, NodeId(1)).await;
    assert!(greeted.is_err());
    until(|| a.net.counted().greetings_refused == 1).await;

    let raw = Raw::dial(&identity, "node.alpha", &a).await;
    let (mut send, _recv) = raw.connection.open_bi().await.unwrap();
    send.write_all(&[1, 0xFF, 0xFF]).await.unwrap(); // a greeting of 65,535 bytes
    until(|| a.net.counted().greetings_refused == 2).await;
    assert!(a.net.peers().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_frames_are_counted_and_the_next_good_one_arrives() {
    let ca = Ca::create("alpha").unwrap();
    let mut a = Node::start(&ca, 1, 1, &[]).await;
    let raw = Raw::join(&ca, 2, &a).await;
    a.until_up(2).await;

    // A type that this version does not know: dropped, and its lane goes on.
    let mut unknown = frame_of(7).to_vec();
    unknown[2] = 200;
    let checksum = {
        let bytes: Vec<u8> = [&unknown[..8], &unknown[HEADER_BYTES..]].concat();
        understudy_protocol::wire::checksum(&bytes)
    };
    unknown[8..12].copy_from_slice(&checksum.to_be_bytes());
    let mut lane = raw.lane(0).await;
    lane.write_all(&unknown).await.unwrap();
    lane.write_all(&frame_of(8)).await.unwrap();
    assert_eq!(a.number().await, 8);
    assert_eq!(a.net.counted().frames_dropped, 1);

    // Bytes that are no frame, an announced length above the lane's limit, a broken checksum.
    let mut oversized = frame_of(1).to_vec();
    oversized[2] = 200;
    oversized[4..8].copy_from_slice(&(LANE_FRAME_BYTES_MAX as u32).to_be_bytes());
    let mut broken = frame_of(1).to_vec();
    *broken.last_mut().unwrap() ^= 1;
    for (count, bytes) in [b"GET / HTTP/1.1\r\n".to_vec(), oversized, broken]
        .iter()
        .enumerate()
    {
        let mut lane = raw.lane(1).await;
        lane.write_all(bytes).await.unwrap();
        assert_eq!(
            lane.stopped().await.unwrap(),
            Some(quinn::VarInt::from_u32(1))
        );
        until(|| a.net.counted().lanes_reset == count as u64 + 1).await;
    }

    // No such lane, and one that is open already.
    for (count, index) in [(4, 9), (5, 0)] {
        let lane = raw.lane(index).await;
        assert_eq!(
            lane.stopped().await.unwrap(),
            Some(quinn::VarInt::from_u32(2))
        );
        assert_eq!(a.net.counted().lanes_reset, count);
    }

    // Half a frame and then the end; the lane may be opened again.
    let mut half = raw.lane(1).await;
    half.write_all(&frame_of(9)[..20]).await.unwrap();
    half.finish().unwrap();
    half.stopped().await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    raw.lane(1).await.write_all(&frame_of(10)).await.unwrap();
    assert_eq!(a.number().await, 10);
    assert_eq!(a.net.peers().len(), 1, "the connection lives");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_the_peer_reset_begins_anew() {
    let ca = Ca::create("alpha").unwrap();
    let mut a = Node::start(&ca, 1, 1, &[]).await;
    let raw = Raw::join(&ca, 2, &a).await;
    a.until_up(2).await;
    for round in 0..3 {
        a.send(2, Lane::Of(5), round).await;
        let mut lane = within(raw.connection.accept_uni()).await.unwrap();
        let mut bytes = vec![0; 1 + frame_of(round).len()];
        lane.read_exact(&mut bytes).await.unwrap();
        assert_eq!((bytes[0], &bytes[1..]), (5, &frame_of(round)[..]));
        lane.stop(1u32.into()).unwrap();
        // The writer hears of it when it writes next, and that frame is lost with the stream.
        tokio::time::sleep(Duration::from_millis(50)).await;
        a.send(2, Lane::Of(5), 99).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_receiver_makes_its_sender_full_and_then_resumes() {
    let ca = Ca::create("alpha").unwrap();
    let mut a = Node::start(&ca, 1, 1, &[]).await;
    let mut b = Node::start(&ca, 2, 1, &[a.seed()]).await;
    a.until_up(2).await;
    b.until_up(1).await;
    b.inbox.is_full.store(true, Ordering::SeqCst);

    let frame = |number| padded(number, 64 * 1024);
    let mut sent = 0;
    let deadline = Instant::now() + PATIENCE;
    let mut fulls = 0;
    while fulls < 50 {
        assert!(Instant::now() < deadline, "never full after {sent} frames");
        match a.net.send(NodeId(2), Lane::Of(3), frame(sent)) {
            Ok(()) => (sent, fulls) = (sent + 1, 0),
            Err(SendError::Full { retry_after }) => {
                fulls += 1;
                tokio::time::sleep(retry_after).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
    // One queue, one stream window, what one write and one read hold.
    let bytes = sent * 64 * 1024;
    assert!(bytes < 14 * 1024 * 1024, "{bytes} bytes were taken");
    assert!(b.frames.try_recv().is_err());

    // Another lane and the truth plane do not notice.
    let answer = a
        .net
        .request(NodeId(2), 7, Bytes::from_static(b"hi"), PATIENCE)
        .await;
    assert_eq!(answer.unwrap(), "hi".as_bytes());
    b.inbox.takes.store(8, Ordering::SeqCst); // frames below this size, whatever `is_full` says
    a.send(2, Lane::Of(4), 77).await;
    assert_eq!(b.number().await, 77);

    b.inbox.is_full.store(false, Ordering::SeqCst);
    for number in 0..sent {
        assert_eq!(b.number().await, number, "in order, and none is lost");
    }
    a.send(2, Lane::Of(3), sent).await;
    assert_eq!(b.number().await, sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_restarts_is_reached_again_at_once() {
    let ca = Ca::create("alpha").unwrap();
    let mut a = Node::start(&ca, 1, 1, &[]).await;
    for (dials, seeds) in [("itself", vec![a.seed()]), ("nobody", vec![])] {
        let identity = Arc::new(ca.issue("b", NodeId(2), &[]).unwrap());
        let b = Mortal::start(identity.clone(), &seeds).await;
        let address = b.node.net.local_addr().unwrap();
        a.net
            .set_addresses(BTreeMap::from([(NodeId(2), b.node.seed())]));
        a.until_up(2).await;
        b.kill().await;
        tokio::time::sleep(Duration::from_millis(700)).await;

        let began = Instant::now();
        let b = Node::start_as(identity, 2, &seeds, address).await;
        a.until_down(2).await;
        a.until_up(2).await;
        let took = began.elapsed();
        println!("reached {took:?} after the start of a peer that dials {dials}");
        // Alone on a machine it is a tenth of this; the tests share theirs.
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert_eq!(a.net.peers()[0].incarnation, IncarnationId(2));
        a.net.set_addresses(BTreeMap::new());
        b.net.close().await;
        a.until_down(2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_answered_refused_or_time_out() {
    let ca = Ca::create("alpha").unwrap();
    let mut a = Node::start(&ca, 1, 1, &[]).await;
    let mut b = Node::start(&ca, 2, 1, &[a.seed()]).await;
    a.until_up(2).await;
    b.until_up(1).await;
    let ask = |kind, body: Bytes, patience| {
        let net = a.net.clone();
        async move { net.request(NodeId(2), kind, body, patience).await }
    };
    let short = Duration::from_millis(200);
    let long = Bytes::from(vec![5; 3 * 1024 * 1024]);
    assert_eq!(ask(ECHO, long.clone(), PATIENCE).await, Ok(long));
    assert_eq!(ask(ECHO, Bytes::new(), PATIENCE).await, Ok(Bytes::new()));
    assert_eq!(
        ask(NEVER, Bytes::new(), short).await,
        Err(RequestError::TimedOut)
    );
    until(|| b.inbox.dropped.load(Ordering::SeqCst) == 1).await;
    let refused = Err(RequestError::Refused(RequestRefused::NotServed));
    assert_eq!(ask(99, Bytes::new(), PATIENCE).await, refused);
    let failed = Err(RequestRefused::Failed("no".to_owned()).into());
    assert_eq!(ask(FAILS, Bytes::new(), PATIENCE).await, failed);
    let too_long = Bytes::from(vec![0; REQUEST_BYTES_MAX + 1]);
    let length = too_long.len();
    assert_eq!(
        ask(ECHO, too_long, PATIENCE).await,
        Err(RequestError::TooLong(length))
    );
    let nobody = a.net.request(NodeId(9), ECHO, Bytes::new(), short).await;
    assert_eq!(nobody, Err(RequestError::NoPeer));

    // As many as may be under way, and one more.
    let mut waiting = JoinSet::new();
    for _ in 0..REQUESTS_AT_ONCE_MAX {
        waiting.spawn(ask(NEVER, Bytes::new(), Duration::from_secs(2)));
    }
    let net = a.net.clone();
    until(|| net.route(NodeId(2)).unwrap().requests.available_permits() == 0).await;
    assert_eq!(
        ask(ECHO, Bytes::new(), PATIENCE).await,
        Err(RequestError::Full)
    );
    while let Some(answer) = waiting.join_next().await {
        assert_eq!(answer.unwrap(), Err(RequestError::TimedOut));
    }
    assert_eq!(ask(ECHO, Bytes::new(), PATIENCE).await, Ok(Bytes::new()));

    // A peer that goes away in the middle.
    let asked = b.inbox.asked.load(Ordering::SeqCst);
    waiting.spawn(ask(NEVER, Bytes::new(), PATIENCE));
    until(|| b.inbox.asked.load(Ordering::SeqCst) > asked).await;
    b.net.close().await;
    let lost = waiting.join_next().await.unwrap();
    assert_eq!(lost.unwrap(), Err(RequestError::Lost));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_session_is_ever_resumed() {
    let ca = Ca::create("alpha").unwrap();
    let a = Node::start(&ca, 1, 1, &[]).await;
    let identity = ca.issue("raw", NodeId(2), &[]).unwrap();
    // A dialler that would resume if it could: it keeps tickets, and allows early data.
    let config = tls::eager_client_config(&identity);
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = a.net.local_addr().unwrap();
    for _ in 0..2 {
        let dial = endpoint
            .connect_with(config.clone(), address, "node.alpha")
            .unwrap();
        let Err(connecting) = dial.into_0rtt() else {
            panic!("a ticket was given");
        };
        let connection = connecting.await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await; // when a ticket would come
        connection.close(0u32.into(), b"");
    }
}

#[test]
fn a_socket_of_ipv6_reaches_both_families() {
    let check = |local: &str, address: &str, expected: Option<&str>| {
        let expected = expected.map(|address| address.parse().unwrap());
        let found = reachable_from(local.parse().unwrap(), address.parse().unwrap());
        assert_eq!(found, expected, "{address} from {local}");
    };
    check("0.0.0.0:1", "10.0.0.1:7", Some("10.0.0.1:7"));
    check("0.0.0.0:1", "[fe80::1]:7", None);
    check("[::]:1", "[fe80::1]:7", Some("[fe80::1]:7"));
    check("[::]:1", "10.0.0.1:7", Some("[::ffff:10.0.0.1]:7"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_that_know_one_seed_and_then_each_other_form_a_mesh() {
    let ca = Ca::create("alpha").unwrap();
    let a = Node::start(&ca, 1, 1, &[]).await;
    let b = Node::start(&ca, 2, 1, &[a.seed()]).await;
    let c = Node::start(&ca, 3, 1, &[a.seed(), "nowhere.invalid:1".to_owned()]).await;
    let ids = |node: &Node| {
        node.net
            .peers()
            .iter()
            .map(|peer| peer.node.0)
            .collect::<Vec<_>>()
    };
    until(|| ids(&a) == [2, 3] && ids(&b) == [1] && ids(&c) == [1]).await;
    assert_eq!(c.net.missing_seeds(), ["nowhere.invalid:1"]);
    // What a directory says, given to all.
    let addresses: BTreeMap<NodeId, String> = [(1, &a), (2, &b), (3, &c)]
        .map(|(id, node)| (NodeId(id), node.seed()))
        .into();
    for node in [&a, &b, &c] {
        node.net.set_addresses(addresses.clone());
    }
    until(|| ids(&b) == [1, 3] && ids(&c) == [1, 2]).await;
    let dropped = b.net.clone();
    drop(b);
    drop(dropped); // the last handle: its peers hear goodbye
    until(|| ids(&a) == [3] && ids(&c) == [1]).await;
}

mod tunnels;

struct Node {
    net: Net,
    inbox: Arc<Recorder>,
    tunnels: mpsc::Receiver<(Bytes, Tunnel)>,
    frames: mpsc::Receiver<Bytes>,
    changes: mpsc::Receiver<PeerChange>,
}

struct Recorder {
    tunnels: mpsc::Sender<(Bytes, Tunnel)>,
    frames: mpsc::Sender<Bytes>,
    changes: mpsc::Sender<PeerChange>,
    is_full: AtomicBool,
    takes: AtomicU64,
    asked: AtomicU64,
    dropped: Arc<AtomicU64>,
}

const ECHO: u8 = 7;
const NEVER: u8 = 8;
const FAILS: u8 = 9;

impl Inbox for Recorder {
    fn frame(&self, _: NodeId, frame: Bytes) -> Result<(), Full> {
        let is_small = number_of(&frame).is_some_and(|(_, units)| units < self.takes());
        if self.is_full.load(Ordering::SeqCst) && !is_small {
            return Err(Full);
        }
        self.frames.try_send(frame).map_err(|_| Full)
    }

    fn request(
        &self,
        _: NodeId,
        kind: u8,
        body: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, RequestRefused>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let noticed = (kind == NEVER).then(|| Noticed(self.dropped.clone()));
        Box::pin(async move {
            match kind {
                ECHO => Ok(body),
                FAILS => Err(RequestRefused::Failed("no".to_owned())),
                NEVER => {
                    let _noticed = noticed;
                    std::future::pending().await
                }
                _ => Err(RequestRefused::NotServed),
            }
        })
    }

    fn peer(&self, change: PeerChange) {
        self.changes.try_send(change).unwrap();
    }

    fn tunnel(&self, from: NodeId, header: Bytes, tunnel: Tunnel) -> Result<(), RequestRefused> {
        assert_eq!(tunnel.peer(), from);
        match &header[..] {
            b"no" => Err(RequestRefused::Failed("not here".to_owned())),
            _ => {
                let taken = self.tunnels.try_send((header, tunnel));
                taken.map_err(|_| RequestRefused::Full)
            }
        }
    }
}

impl Recorder {
    fn takes(&self) -> usize {
        self.takes.load(Ordering::SeqCst) as usize
    }
}

/// Counts the requests that were taken back while they were served.
struct Noticed(Arc<AtomicU64>);

impl Drop for Noticed {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Node {
    async fn start(ca: &Ca, node: u64, incarnation: u64, seeds: &[String]) -> Node {
        let identity = Arc::new(ca.issue("test", NodeId(node), &[]).unwrap());
        let anywhere = (Ipv4Addr::LOCALHOST, 0).into();
        Node::start_as(identity, incarnation, seeds, anywhere).await
    }

    async fn start_as(
        identity: Arc<Identity>,
        incarnation: u64,
        seeds: &[String],
        listen: SocketAddr,
    ) -> Node {
        let (frames, frames_rx) = mpsc::channel(RECORDED_MAX);
        let (changes, changes_rx) = mpsc::channel(RECORDED_MAX);
        let (tunnels, tunnels_rx) = mpsc::channel(RECORDED_MAX);
        let inbox = Arc::new(Recorder {
            tunnels,
            frames,
            changes,
            is_full: AtomicBool::new(false),
            takes: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            dropped: Arc::default(),
        });
        let config = NetConfig {
            listen,
            hello: hello_of(identity.node().0, incarnation, "127.0.0.1:1"),
            identity,
            seeds: seeds.to_vec(),
            segmentation_offload: true,
        };
        let net = Net::start(config, inbox.clone()).await.unwrap();
        Node {
            net,
            inbox,
            tunnels: tunnels_rx,
            frames: frames_rx,
            changes: changes_rx,
        }
    }

    fn seed(&self) -> String {
        self.net.local_addr().unwrap().to_string()
    }

    async fn until_up(&mut self, node: u64) {
        match within(self.changes.recv()).await.unwrap() {
            PeerChange::Up(hello) => assert_eq!(hello.node, NodeId(node)),
            down => panic!("{down:?}"),
        }
    }

    async fn until_down(&mut self, node: u64) {
        let change = within(self.changes.recv()).await.unwrap();
        assert_eq!(change, PeerChange::Down(NodeId(node)));
    }

    async fn send(&self, to: u64, lane: Lane, number: u64) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = self.net.send(NodeId(to), lane, frame_of(number)) {
            assert!(matches!(error, SendError::Full { .. }), "{error}");
            assert!(Instant::now() < deadline, "still full");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn number(&mut self) -> u64 {
        let frame = within(self.frames.recv()).await.unwrap();
        number_of(&frame).unwrap().0
    }
}

/// A node that can end without a packet, as a killed process does: its runtime is its own.
struct Mortal {
    node: Node,
    runtime: tokio::runtime::Runtime,
}

impl Mortal {
    async fn start(identity: Arc<Identity>, seeds: &[String]) -> Mortal {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let seeds = seeds.to_vec();
        let anywhere = (Ipv4Addr::LOCALHOST, 0).into();
        let started =
            runtime.spawn(async move { Node::start_as(identity, 1, &seeds, anywhere).await });
        Mortal {
            node: started.await.unwrap(),
            runtime,
        }
    }

    async fn kill(self) {
        let Mortal { node, runtime } = self;
        let end = move || runtime.shutdown_timeout(PATIENCE);
        tokio::task::spawn_blocking(end).await.unwrap();
        drop(node); // its drivers are gone: nothing more is sent
    }
}

/// A peer by hand, with a valid identity and no manners.
struct Raw {
    connection: Connection,
    _truth: Option<Connection>,
    _endpoint: Endpoint,
}

impl Raw {
    async fn dial(identity: &Identity, name: &str, to: &Node) -> Raw {
        let transport = tls::transport_config(true);
        let config = tls::client_config(identity, tls::ALPN_MAIN, transport).unwrap();
        let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = to.net.local_addr().unwrap();
        let dial = endpoint.connect_with(config, address, name).unwrap();
        Raw {
            connection: dial.await.unwrap(),
            _truth: None,
            _endpoint: endpoint,
        }
    }

    async fn join(ca: &Ca, node: u64, to: &Node) -> Raw {
        let identity = ca.issue("raw", NodeId(node), &[]).unwrap();
        let certified = to.net.shared().identity.node();
        let hello = hello_of(node, 1, "x:1");
        let mut raws = Vec::new();
        for role in [Role::Truth, Role::Data] {
            let raw = Raw::dial(&identity, "node.alpha", to).await;
            let greeted = Greeting::dial(&raw.connection, role, &hello, certified).await;
            greeted.unwrap().taken().await.unwrap();
            tls::admit(&raw.connection, role);
            raws.push(raw);
        }
        let mut data = raws.pop().unwrap();
        data._truth = raws.pop().map(|truth| {
            let connection = truth.connection.clone();
            std::mem::forget(truth);
            connection
        });
        data
    }

    async fn lane(&self, index: u8) -> quinn::SendStream {
        let mut lane = within(self.connection.open_uni()).await.unwrap();
        lane.write_all(&[index]).await.unwrap();
        lane
    }
}

fn hello_of(node: u64, incarnation: u64, address: &str) -> Hello {
    Hello {
        node: NodeId(node),
        incarnation: IncarnationId(incarnation),
        store: StoreId(node),
        name: format!("node {node}"),
        address: address.to_owned(),
        votes: true,
        works: true,
    }
}

/// A valid frame that carries a number.
fn frame_of(number: u64) -> Bytes {
    let mut bytes = Vec::new();
    let note = DeathNote {
        incarnation: IncarnationId(number),
        secret: [0; 32],
        at_work: Vec::new(),
    };
    encode_frame(&HeartMessage::DeathNote(note), &mut bytes).unwrap();
    bytes.into()
}

/// The same, as long as a call with a large body.
fn padded(number: u64, bytes: usize) -> Bytes {
    let mut frame = frame_of(number).to_vec();
    frame[2] = 4; // an envelope, by its header; nobody decodes it here
    frame.resize(bytes, 0);
    let length = (bytes - HEADER_BYTES) as u32;
    frame[4..8].copy_from_slice(&length.to_be_bytes());
    let checked: Vec<u8> = [&frame[..8], &frame[HEADER_BYTES..]].concat();
    let checksum = understudy_protocol::wire::checksum(&checked);
    frame[8..12].copy_from_slice(&checksum.to_be_bytes());
    frame.into()
}

/// The number that a frame carries, and its length in KiB.
fn number_of(frame: &[u8]) -> Option<(u64, usize)> {
    let mut decoder = minicbor::Decoder::new(&frame[HEADER_BYTES..]);
    decoder.array().ok()?;
    decoder.u8().ok()?;
    for _ in 0..2 {
        if decoder.datatype().ok()? == minicbor::data::Type::Array {
            decoder.array().ok()?;
        }
    }
    Some((decoder.u64().ok()?, frame.len() / 1024))
}

async fn until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "it never came to be");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("in time")
}

/// More frames than any test sends before it looks.
const RECORDED_MAX: usize = 4_096;

/// Far above what anything here takes, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(20);
