//! Tunnels over real sockets: bytes, ends, refusals, and who waits for whom.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_carries_bytes_both_ways_and_each_end_by_itself() {
    let (a, mut b) = pair().await;
    let tunnel = a.open(2, b"session 7").await;
    let (header, taken) = within(b.tunnels.recv()).await.unwrap();
    assert_eq!((&header[..], taken.peer()), (&b"session 7"[..], NodeId(1)));
    assert_eq!(tunnel.peer(), NodeId(2));
    let bytes = |salt: usize| -> Vec<u8> { (0..3_000_000).map(|at| (at % salt) as u8).collect() };
    let say = |tunnel: Tunnel, sent: Vec<u8>| async move {
        let (mut read, mut write) = tokio::io::split(tunnel);
        let mut heard = Vec::new();
        let writing = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let reading = async {
            read.read_to_end(&mut heard).await.unwrap();
        };
        tokio::join!(writing, reading);
        heard
    };
    let (at_a, at_b) =
        within(async { tokio::join!(say(tunnel, bytes(251)), say(taken, bytes(241))) }).await;
    assert!(at_a == bytes(241), "{} bytes came", at_a.len());
    assert!(at_b == bytes(251), "{} bytes came", at_b.len());
    // Their places are free again on both sides.
    until(|| a.places(2) == TUNNELS_MAX).await;

    // A small word goes at once, with nothing after it.
    let (mut one, mut other) = a.open_to(&mut b).await;
    for round in 0..100u8 {
        one.write_all(&[round]).await.unwrap();
        assert_eq!(within(other.read_u8()).await.unwrap(), round);
        other.write_all(&[round]).await.unwrap();
        assert_eq!(within(one.read_u8()).await.unwrap(), round);
    }
    // What was said before the end is heard after it.
    one.write_all(b"last words").await.unwrap();
    drop(one);
    let mut heard = String::new();
    within(other.read_to_string(&mut heard)).await.unwrap();
    assert_eq!(heard, "last words");
    until_fails(&mut other).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_tunnels_as_there_may_be_and_one_more() {
    let (a, mut b) = pair().await;
    let mut tunnels = Vec::new();
    for at in 0..TUNNELS_MAX {
        let (mut one, other) = a.open_to(&mut b).await;
        one.write_all(&(at as u32).to_be_bytes()).await.unwrap();
        tunnels.push((one, other));
    }
    let more = a.net.open_tunnel(NodeId(2), Bytes::new(), PATIENCE).await;
    assert_eq!(more.err(), Some(RequestError::Full));
    for (at, (one, other)) in tunnels.iter_mut().enumerate() {
        let number = within(other.read_u32()).await.unwrap();
        assert_eq!(number as usize, at);
        other.write_all(&number.to_be_bytes()).await.unwrap();
        assert_eq!(within(one.read_u32()).await.unwrap(), number);
    }
    // The other direction has places of its own.
    within(b.net.open_tunnel(NodeId(1), Bytes::new(), PATIENCE))
        .await
        .unwrap();
    tunnels.truncate(TUNNELS_MAX - 1);
    until(|| a.places(2) == 1).await;
    let deadline = Instant::now() + PATIENCE;
    while a
        .net
        .open_tunnel(NodeId(2), Bytes::new(), PATIENCE)
        .await
        .is_err()
    {
        assert!(Instant::now() < deadline, "the place was not given back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_tunnel_stops_neither_lanes_nor_other_tunnels() {
    let (a, mut b) = pair().await;
    let mut stalled = Vec::new();
    // Without credits of their own these would take the whole connection's window.
    for _ in 0..40 {
        let (mut one, other) = a.open_to(&mut b).await;
        let took = fill(&mut one).await;
        assert!(took <= 2 * TUNNEL_WINDOW_BYTES, "{took} bytes were taken");
        assert!(took >= TUNNEL_WINDOW_BYTES, "{took} bytes were taken");
        stalled.push((one, other, took));
    }
    let (mut one, mut other) = a.open_to(&mut b).await;
    let long = vec![7; 4 * 1024 * 1024];
    let mut heard = vec![0; long.len()];
    let writing = async { one.write_all(&long).await.unwrap() };
    let reading = async { other.read_exact(&mut heard).await.unwrap() };
    within(async { tokio::join!(writing, reading) }).await;
    for number in 0..100 {
        a.send(2, Lane::Of(number % 8), number).await;
    }
    a.send(2, Lane::Bulk, 100).await;
    for _ in 0..=100 {
        b.number().await;
    }
    // They have lost nothing meanwhile.
    for (one, mut other, took) in stalled {
        drop(one);
        let mut heard = Vec::new();
        within(other.read_to_end(&mut heard)).await.unwrap();
        assert_eq!(heard.len(), took);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_lanes_do_not_stop_a_tunnel() {
    let (a, mut b) = pair().await;
    b.inbox.is_full.store(true, Ordering::SeqCst);
    let mut fulls = 0;
    let deadline = Instant::now() + PATIENCE;
    while fulls < 20 {
        assert!(Instant::now() < deadline, "the lanes are never full");
        let frame = padded(1, 512 * 1024);
        let sent = (0..8).map(|lane| a.net.send(NodeId(2), Lane::Of(lane), frame.clone()));
        match sent.filter(Result::is_ok).count() {
            0 => fulls += 1,
            _ => fulls = 0,
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (mut one, mut other) = a.open_to(&mut b).await;
    for round in 0..64 {
        let sent = vec![round; 128 * 1024];
        let mut heard = vec![0; sent.len()];
        let writing = async { one.write_all(&sent).await.unwrap() };
        let reading = async { other.read_exact(&mut heard).await.unwrap() };
        within(async { tokio::join!(writing, reading) }).await;
        assert_eq!(heard, sent);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_a_peer_ends_its_tunnels_with_an_error() {
    let ca = Ca::create("alpha").unwrap();
    let mut a = Node::start(&ca, 1, 1, &[]).await;
    let identity = Arc::new(ca.issue("b", NodeId(2), &[]).unwrap());
    let mut b = Mortal::start(identity, &[a.seed()]).await;
    a.until_up(2).await;
    b.node.until_up(1).await;
    let mut tunnel = a.open(2, b"x").await;
    let (_, mut taken) = within(b.node.tunnels.recv()).await.unwrap();
    taken.write_all(b"before").await.unwrap();
    let mut heard = [0; 6];
    within(tunnel.read_exact(&mut heard)).await.unwrap();
    b.kill().await;
    let error = within(tunnel.read(&mut heard)).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    until_fails(&mut tunnel).await;

    // A node that closes takes its own tunnels with it, on both sides.
    let (a, mut b) = pair().await;
    let (mut one, mut other) = a.open_to(&mut b).await;
    b.net.close().await;
    for end in [&mut one, &mut other] {
        let error = within(end.read(&mut heard)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_is_not_taken_says_why() {
    let (a, b) = pair().await;
    let open = |to, header: &'static [u8]| {
        let net = a.net.clone();
        async move {
            let header = Bytes::from_static(header);
            net.open_tunnel(NodeId(to), header, PATIENCE).await.err()
        }
    };
    static LONG: [u8; TUNNEL_HEADER_BYTES_MAX + 1] = [0; TUNNEL_HEADER_BYTES_MAX + 1];
    let too_long = RequestError::TooLong(LONG.len());
    assert_eq!(open(2, &LONG).await, Some(too_long));
    assert_eq!(open(2, &LONG[1..]).await, None);
    assert_eq!(open(9, b"x").await, Some(RequestError::NoPeer));
    let refused = RequestRefused::Failed("not here".to_owned());
    assert_eq!(open(2, b"no").await, Some(refused.into()));
    until(|| b.net.counted().requests_refused == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_without_manners_loses_its_tunnel_and_no_more() {
    let ca = Ca::create("alpha").unwrap();
    let mut a = Node::start(&ca, 1, 1, &[]).await;
    let raw = Raw::join(&ca, 2, &a).await;
    a.until_up(2).await;
    // A header above the limit.
    let (mut send, mut recv) = within(raw.connection.open_bi()).await.unwrap();
    send.write_all(&[0xFF, 0xFF, 0]).await.unwrap();
    assert!(within(recv.read_to_end(64)).await.is_err());

    let credit: u32 = 1 << 31;
    let window = TUNNEL_WINDOW_BYTES as u32;
    for (what, words) in [
        (
            "more than there is credit for",
            vec![(window, true), (1, true)],
        ),
        ("more than the window at once", vec![(window + 1, true)]),
        ("credit for what nobody sent", vec![(credit | 1, false)]),
        ("bytes after the end", vec![(0, false), (1, true)]),
        ("half a piece", vec![(100, false)]),
    ] {
        let (mut send, mut recv) = within(raw.connection.open_bi()).await.unwrap();
        send.write_all(&[0, 1, b'x']).await.unwrap();
        let mut status = [0; 5];
        within(recv.read_exact(&mut status)).await.unwrap();
        let (_, mut taken) = within(a.tunnels.recv()).await.unwrap();
        for (word, has_bytes) in words {
            let _ = send.write_all(&word.to_be_bytes()).await;
            if has_bytes {
                let _ = send.write_all(&vec![1; word as usize]).await;
            }
        }
        let _ = send.finish();
        until_fails(&mut taken).await;
        let mut heard = Vec::new();
        let read = within(taken.read_to_end(&mut heard)).await;
        let is_said_whole = what == "bytes after the end";
        assert_eq!(read.is_ok(), is_said_whole, "{what}");
        assert!(heard.len() <= TUNNEL_WINDOW_BYTES, "{what}");
    }
    raw.lane(3).await.write_all(&frame_of(5)).await.unwrap();
    assert_eq!(a.number().await, 5, "the connection lives");
}

#[tokio::test]
async fn a_tunnel_within_a_node_is_like_any_other() {
    let (mut one, mut other) = Tunnel::within(NodeId(1));
    assert_eq!((one.peer(), other.peer()), (NodeId(1), NodeId(1)));
    one.write_all(b"hello").await.unwrap();
    one.shutdown().await.unwrap();
    let mut heard = String::new();
    within(other.read_to_string(&mut heard)).await.unwrap();
    assert_eq!(heard, "hello");
    other.write_all(b"and back").await.unwrap();
    drop(other);
    heard.clear();
    within(one.read_to_string(&mut heard)).await.unwrap();
    assert_eq!(heard, "and back");
    until_fails(&mut one).await;
}

/// Two nodes that are up to each other.
async fn pair() -> (Node, Node) {
    let ca = Ca::create("alpha").unwrap();
    let mut a = Node::start(&ca, 1, 1, &[]).await;
    let mut b = Node::start(&ca, 2, 1, &[a.seed()]).await;
    a.until_up(2).await;
    b.until_up(1).await;
    (a, b)
}

impl Node {
    async fn open(&self, to: u64, header: &'static [u8]) -> Tunnel {
        let header = Bytes::from_static(header);
        self.net
            .open_tunnel(NodeId(to), header, PATIENCE)
            .await
            .unwrap()
    }

    async fn open_to(&self, other: &mut Node) -> (Tunnel, Tunnel) {
        let node = other.net.shared().hello.node.0;
        let tunnel = self.open(node, b"x").await;
        let (_, taken) = within(other.tunnels.recv()).await.unwrap();
        (tunnel, taken)
    }

    /// Tunnels that may be opened yet.
    fn places(&self, to: u64) -> usize {
        self.net
            .route(NodeId(to))
            .unwrap()
            .tunnels
            .available_permits()
    }
}

/// Writes until nothing more is taken, and says how much was.
async fn fill(tunnel: &mut Tunnel) -> usize {
    let mut took = 0;
    let still = Duration::from_millis(100);
    while let Ok(wrote) = timeout(still, tunnel.write(&[1; 8 * 1024])).await {
        took += wrote.unwrap();
    }
    took
}

async fn until_fails(tunnel: &mut Tunnel) {
    let deadline = Instant::now() + PATIENCE;
    while tunnel.write_all(b"x").await.is_ok() {
        assert!(Instant::now() < deadline, "it takes bytes for ever");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
