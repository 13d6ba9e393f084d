//! The proxy over real sockets: what passes, what is refused, and when the lease ends.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::AtomicUsize;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use understudy_protocol::workload::egress::{Allow, Range};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_and_its_answer_pass_whole_both_ways() {
    let site = Site::start(Serving::Echo).await;
    let world = World::new(&[&format!("shop.localhost:{}", site.port())]);
    let body = "~".repeat(300_000);
    for framing in ["length", "chunked"] {
        let framed = match framing {
            "length" => format!("Content-Length: {}\r\n\r\n{body}", body.len()),
            _ => format!(
                "Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
                body.len()
            ),
        };
        let answer = world
            .ask(&format!(
                "POST http://shop.localhost:{}/a?b=c HTTP/1.1\r\nHost: liar.example\r\n\
                 X-Mine: kept\r\nX-Hop: gone\r\nConnection: close, X-Hop\r\nKeep-Alive: 5\r\n\
                 Proxy-Authorization: secret\r\nTE: trailers\r\nUpgrade: websocket\r\n{framed}",
                site.port()
            ))
            .await;
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n"),
            "{framing}: {}",
            head(&answer)
        );
        let length = answer.matches('~').count();
        assert_eq!(length, body.len(), "{framing}: the body is not whole");
        let (said, heard) = answer.split_once("\r\n\r\n").unwrap();
        assert!(!said.to_lowercase().contains("x-site-hop"), "{said}");
        // The site says back what it saw.
        let seen = heard.split("\r\n\r\n").next().unwrap().to_lowercase();
        assert!(seen.contains("post /a?b=c http/1.1"), "{seen}");
        assert!(
            seen.contains(&format!("host: shop.localhost:{}", site.port())),
            "{seen}"
        );
        assert!(seen.contains("x-mine: kept"), "{seen}");
        for gone in [
            "x-hop",
            "keep-alive",
            "secret",
            "liar",
            "te: ",
            "upgrade",
            "via",
        ] {
            assert!(!seen.contains(gone), "{gone} in {seen}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_of_the_browsers_asks_for_many_pages_of_many_sites() {
    let (one, two) = (
        Site::start(Serving::Echo).await,
        Site::start(Serving::Echo).await,
    );
    let world = World::new(&["127.0.0.1"]);
    let mut client = world.connect().await;
    for site in [&one, &two, &one, &two] {
        let ask = format!(
            "GET http://127.0.0.1:{}/page HTTP/1.1\r\nHost: x\r\n\r\n",
            site.port()
        );
        client.write_all(ask.as_bytes()).await.unwrap();
        let heard = until_heard(&mut client, &format!("127.0.0.1:{}\r\n", site.port())).await;
        assert!(heard.starts_with("HTTP/1.1 200"), "{heard}");
        until_heard(&mut client, "0\r\n\r\n").await;
    }
    assert_eq!((one.connections(), two.connections()), (2, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_carries_bytes_both_ways_and_each_end_by_itself() {
    let site = Site::start(Serving::Tcp).await;
    let world = World::new(&["127.0.0.1"]);
    let mut client = world.tunnel(&format!("localhost:{}", site.port())).await;
    let sent: Vec<u8> = (0..2_000_000u32).map(|at| (at % 251) as u8).collect();
    let (mut read, mut write) = client.split();
    let writing = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut heard = Vec::new();
    let reading = async { read.read_to_end(&mut heard).await.unwrap() };
    within(async { tokio::join!(writing, reading) }).await;
    assert!(heard == sent, "{} of {} bytes", heard.len(), sent.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_public_is_denied_however_it_is_spelled() {
    let world = World::resolving(&[], |host| match host {
        "inside.example" => vec!["10.0.0.1".parse().unwrap()],
        "mapped.example" => vec!["::ffff:127.0.0.1".parse().unwrap()],
        "both.example" => vec!["fd00::1".parse().unwrap(), "10.0.0.2".parse().unwrap()],
        _ => Vec::new(),
    });
    let cluster = [
        "127.0.0.9:81".parse().unwrap(),
        "198.41.0.4:7600".parse().unwrap(),
    ];
    world.policy.set_cluster(BTreeSet::from(cluster));
    let own = world.egress.address();
    let mut denied = world.denied;
    let in_range = |address: &str, range| EgressRefused::Range {
        address: address.parse().unwrap(),
        range,
    };
    let metadata = in_range("169.254.169.254", Range::Metadata);
    let loopback = in_range("127.0.0.1", Range::Loopback);
    for (authority, why) in [
        ("127.0.0.1:80".to_owned(), loopback),
        ("127.1:80".to_owned(), loopback),
        ("0x7f.1:80".to_owned(), loopback),
        ("0177.0.0.1:80".to_owned(), loopback),
        ("2130706433:80".to_owned(), loopback),
        ("[::ffff:127.0.0.1]:80".to_owned(), loopback),
        ("[::ffff:7f00:1]:80".to_owned(), loopback),
        ("[64:ff9b::7f00:1]:80".to_owned(), loopback),
        ("localhost:80".to_owned(), loopback),
        ("LOCALHOST.:80".to_owned(), loopback),
        ("a.localhost:80".to_owned(), loopback),
        ("mapped.example:80".to_owned(), loopback),
        ("[::1]:80".to_owned(), in_range("::1", Range::Loopback)),
        (
            "0.0.0.0:80".to_owned(),
            EgressRefused::Unspecified("0.0.0.0".parse().unwrap()),
        ),
        (
            "0:80".to_owned(),
            EgressRefused::Unspecified("0.0.0.0".parse().unwrap()),
        ),
        (
            "[::]:80".to_owned(),
            EgressRefused::Unspecified("::".parse().unwrap()),
        ),
        ("169.254.169.254:80".to_owned(), metadata),
        ("0xa9fea9fe:80".to_owned(), metadata),
        ("[::ffff:a9fe:a9fe]:80".to_owned(), metadata),
        (
            "[fd00:ec2::254]:80".to_owned(),
            in_range("fd00:ec2::254", Range::Metadata),
        ),
        (
            "[fe80::1]:80".to_owned(),
            in_range("fe80::1", Range::LinkLocal),
        ),
        (
            "[2002:7f00:1::]:80".to_owned(),
            in_range("2002:7f00:1::", Range::Embedded),
        ),
        (
            "inside.example:443".to_owned(),
            in_range("10.0.0.1", Range::Private),
        ),
        (
            "both.example:443".to_owned(),
            in_range("fd00::1", Range::Private),
        ),
        (
            "198.41.0.4:7600".to_owned(),
            EgressRefused::Cluster(cluster[1]),
        ),
        (
            "198.41.0.4:80".to_owned(),
            EgressRefused::Machine(cluster[1].ip()),
        ),
        (
            "127.0.0.9:81".to_owned(),
            EgressRefused::Cluster(cluster[0]),
        ),
        (own.to_string(), EgressRefused::Cluster(own)),
    ] {
        let connect = format!("CONNECT {authority} HTTP/1.1\r\n\r\n");
        let get = format!("GET http://{authority}/ HTTP/1.1\r\nHost: x\r\n\r\n");
        for request in [connect, get] {
            let answer = ask(own, &request).await;
            assert!(answer.starts_with("HTTP/1.1 403"), "{request}: {answer}");
            assert!(answer.contains(&why.to_string()), "{request}: {answer}");
            assert_eq!(
                answer.contains("egress_allow = ["),
                why.may_be_allowed(),
                "{answer}"
            );
        }
        // At most so many a second are told, and none of the others is forgotten.
        if let Ok(told) = denied.try_recv() {
            assert_eq!((told.port, told.missed), (address_port(&authority), 0));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_is_told_and_too_many_are_counted() {
    let mut world = World::new(&[]);
    let own = world.egress.address();
    let mut made = 0;
    let mut told = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    // Until a second has passed in which more were made than are told.
    while told.iter().all(|denied: &Denied| denied.missed == 0) {
        assert!(
            Instant::now() < deadline,
            "{} of {made} were told",
            told.len()
        );
        ask(own, "CONNECT 10.0.0.1:443 HTTP/1.1\r\n\r\n").await;
        made += 1;
        while let Ok(denied) = world.denied.try_recv() {
            told.push(denied);
        }
    }
    assert_eq!((told[0].host.as_str(), told[0].port), ("10.0.0.1", 443));
    let missed: u64 = told.iter().map(|denied| denied.missed).sum();
    assert_eq!(told.len() as u64 + missed, made);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_answers_otherwise_the_second_time_gains_nothing() {
    let (public, inside) = (
        Site::start(Serving::Tcp).await,
        Site::start(Serving::Tcp).await,
    );
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    // 127.0.0.2 stands for the public address here, since it may be reached.
    let world = World::resolving(&["127.0.0.2"], move |_| {
        match counted.fetch_add(1, Ordering::SeqCst) {
            0 => vec!["127.0.0.2".parse().unwrap()],
            _ => vec!["127.0.0.1".parse().unwrap()],
        }
    });
    let own = world.egress.address();
    let at = |site: &Site| format!("CONNECT rebinds.example:{} HTTP/1.1\r\n\r\n", site.port());
    let first = ask_open(own, &at(&public)).await;
    assert!(first.starts_with("HTTP/1.1 200"), "{first}");
    assert_eq!(
        asked.load(Ordering::SeqCst),
        1,
        "one look-up for one connection"
    );
    assert_eq!(
        public.reached_at(),
        ["127.0.0.2".parse::<IpAddr>().unwrap()]
    );
    let second = ask(own, &at(&inside)).await;
    assert!(second.starts_with("HTTP/1.1 403"), "{second}");
    assert_eq!(inside.connections(), 0);
    // Of two addresses the one that may not be reached is left out, whichever comes first.
    let world = World::resolving(&["127.0.0.2"], |_| {
        vec!["127.0.0.1".parse().unwrap(), "127.0.0.2".parse().unwrap()]
    });
    let both = ask_open(world.egress.address(), &at(&inside)).await;
    assert!(both.starts_with("HTTP/1.1 200"), "{both}");
    assert_eq!(
        inside.reached_at(),
        ["127.0.0.2".parse::<IpAddr>().unwrap()]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_ends_in_the_middle_stops_the_bytes() {
    for way in ["tunnel", "upload"] {
        let site = Site::start(Serving::Count).await;
        let world = World::new(&["127.0.0.1"]);
        let mut client = match way {
            "tunnel" => world.tunnel(&format!("127.0.0.1:{}", site.port())).await,
            _ => {
                let mut client = world.connect().await;
                let head = format!(
                    "POST http://127.0.0.1:{}/ HTTP/1.1\r\nHost: x\r\n\
                     Content-Length: 100000000\r\n\r\n",
                    site.port()
                );
                client.write_all(head.as_bytes()).await.unwrap();
                client
            }
        };
        client.write_all(&[1; 100_000]).await.unwrap();
        until(|| site.bytes() == 100_000).await;
        world.is_leased.store(false, Ordering::SeqCst);
        // It writes on until the proxy closes.
        let mut wrote = 0;
        while client.write_all(&[2; 10_000]).await.is_ok() {
            wrote += 10_000;
            assert!(wrote < 100_000_000, "{way}: the proxy takes bytes for ever");
        }
        until(|| site.ended() == 1).await;
        assert_eq!(
            site.bytes(),
            100_000,
            "{way}: bytes went out without a lease"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_lease_nothing_is_connected() {
    let site = Site::start(Serving::Echo).await;
    let world = World::new(&["127.0.0.1"]);
    world.is_leased.store(false, Ordering::SeqCst);
    let port = site.port();
    for request in [
        format!("CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n"),
        format!("GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: x\r\n\r\n"),
    ] {
        let answer = world.ask(&request).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains("lease"), "{answer}");
    }
    assert_eq!(site.connections(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_connections_at_a_time_and_the_end_of_all() {
    let site = Site::start(Serving::Tcp).await;
    let world = World::new(&["127.0.0.1"]);
    let mut clients = Vec::new();
    for _ in 0..100 {
        clients.push(world.tunnel(&format!("127.0.0.1:{}", site.port())).await);
    }
    for (at, client) in clients.iter_mut().enumerate() {
        client.write_all(&[at as u8; 1_000]).await.unwrap();
    }
    for (at, client) in clients.iter_mut().enumerate() {
        let mut heard = [0; 1_000];
        within(client.read_exact(&mut heard)).await.unwrap();
        assert_eq!(heard, [at as u8; 1_000]);
    }
    let address = world.egress.address();
    drop(world);
    for client in &mut clients {
        let mut byte = [0];
        let ended = within(client.read(&mut byte)).await;
        assert!(
            matches!(ended, Ok(0) | Err(_)),
            "a tunnel outlived its session"
        );
    }
    until(|| site.ended() == 100).await;
    until_refused(address).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_above_the_limit_is_told_so_and_the_others_go_on() {
    let site = Site::start(Serving::Tcp).await;
    let limits = Limits {
        connections: 2,
        ..Limits::default()
    };
    let world = World::within(&["127.0.0.1"], limits);
    let at = format!("127.0.0.1:{}", site.port());
    let (mut one, two) = (world.tunnel(&at).await, world.tunnel(&at).await);
    let connect = format!("CONNECT {at} HTTP/1.1\r\n\r\n");
    let third = world.ask(&connect).await;
    assert!(third.starts_with("HTTP/1.1 503"), "{third}");
    one.write_all(b"still").await.unwrap();
    let mut heard = [0; 5];
    within(one.read_exact(&mut heard)).await.unwrap();
    drop(two);
    let deadline = Instant::now() + PATIENCE;
    while !ask_open(world.egress.address(), &connect)
        .await
        .starts_with("HTTP/1.1 200")
    {
        assert!(Instant::now() < deadline, "the place was not given back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_requests_are_refused_and_slow_ones_end() {
    let site = Site::start(Serving::Tcp).await;
    let limits = Limits {
        head: Duration::from_millis(300),
        ..Limits::default()
    };
    let world = World::within(&["127.0.0.1"], limits);
    let mut good = world.tunnel(&format!("127.0.0.1:{}", site.port())).await;
    let long = format!(
        "GET http://a/ HTTP/1.1\r\nX: {}\r\n\r\n",
        "x".repeat(2 * HEAD_BYTES_MAX)
    );
    for (request, status) in [
        ("\u{16}\u{3}\u{1} hello\r\n\r\n", "400"),
        ("GET\r\n\r\n", "400"),
        ("CONNECT example.com HTTP/1.1\r\n\r\n", "400"),
        ("CONNECT example.com: HTTP/1.1\r\n\r\n", "400"),
        ("CONNECT example.com:0 HTTP/1.1\r\n\r\n", "400"),
        ("CONNECT example.com:65536 HTTP/1.1\r\n\r\n", "400"),
        ("CONNECT user@example.com:443 HTTP/1.1\r\n\r\n", "400"),
        ("CONNECT 1.2.3.4.5:443 HTTP/1.1\r\n\r\n", "400"),
        ("CONNECT a_b%:443 HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", "400"),
        (
            "GET https://example.com/ HTTP/1.1\r\nHost: x\r\n\r\n",
            "400",
        ),
        ("GET ftp://example.com/ HTTP/1.1\r\nHost: x\r\n\r\n", "400"),
        (
            "GET http://u:p@example.com/ HTTP/1.1\r\nHost: x\r\n\r\n",
            "400",
        ),
        (
            "GET http://nowhere.example/ HTTP/1.1\r\nHost: x\r\n\r\n",
            "502",
        ),
        (&long, "431"),
    ] {
        let answer = world.ask(request).await;
        let expected = format!("HTTP/1.1 {status} ");
        let shown: String = request.chars().take(60).collect();
        assert!(
            answer.starts_with(&expected),
            "{shown:?}: {}",
            head(&answer)
        );
    }
    // Half a head, and then nothing.
    let mut slow = world.connect().await;
    slow.write_all(b"GET http://127.0.0.1/ HT").await.unwrap();
    let mut rest = Vec::new();
    within(slow.read_to_end(&mut rest)).await.unwrap();

    good.write_all(b"still").await.unwrap();
    let mut heard = [0; 5];
    within(good.read_exact(&mut heard)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_move_for_too_long_ends() {
    let site = Site::start(Serving::Count).await;
    let limits = Limits {
        idle: Duration::from_millis(200),
        ..Limits::default()
    };
    let world = World::within(&["127.0.0.1"], limits);
    let mut tunnel = world.tunnel(&format!("127.0.0.1:{}", site.port())).await;
    let mut byte = [0];
    let ended = within(tunnel.read(&mut byte)).await;
    assert!(matches!(ended, Ok(0) | Err(_)));
    let silent = world
        .ask(&format!(
            "GET http://127.0.0.1:{}/ HTTP/1.1\r\nHost: x\r\n\r\n",
            site.port()
        ))
        .await;
    assert!(silent.starts_with("HTTP/1.1 502"), "{silent}");
    until(|| site.ended() == 2).await;
}

/// A proxy, and what it is asked with.
struct World {
    egress: Egress,
    policy: Arc<EgressPolicy>,
    is_leased: Arc<AtomicBool>,
    denied: mpsc::Receiver<Denied>,
}

impl World {
    fn new(allow: &[&str]) -> World {
        World::within(allow, Limits::default())
    }

    fn within(allow: &[&str], limits: Limits) -> World {
        World::of(allow, limits, |_| Vec::new())
    }

    fn resolving(
        allow: &[&str],
        names: impl Fn(&str) -> Vec<IpAddr> + Send + Sync + 'static,
    ) -> World {
        World::of(allow, Limits::default(), names)
    }

    fn of(
        allow: &[&str],
        limits: Limits,
        names: impl Fn(&str) -> Vec<IpAddr> + Send + Sync + 'static,
    ) -> World {
        let allow = allow.iter().map(|text| Allow::parse(text).unwrap());
        let policy = EgressPolicy::with_resolver(allow.collect(), Box::new(Names(names)));
        let policy = Arc::new(policy);
        let is_leased = Arc::new(AtomicBool::new(true));
        let permit = is_leased.clone();
        let (told, denied) = mpsc::channel(1_024);
        let egress = Egress::open_within(
            policy.clone(),
            Arc::new(move || permit.load(Ordering::SeqCst)),
            Arc::new(move |denied| told.try_send(denied).unwrap()),
            limits,
        );
        World {
            egress: egress.unwrap(),
            policy,
            is_leased,
            denied,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.egress.address()).await.unwrap()
    }

    async fn tunnel(&self, to: &str) -> TcpStream {
        let mut client = self.connect().await;
        let connect = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n");
        client.write_all(connect.as_bytes()).await.unwrap();
        let heard = until_heard(&mut client, "\r\n\r\n").await;
        assert!(heard.starts_with("HTTP/1.1 200"), "{heard}");
        client
    }

    async fn ask(&self, request: &str) -> String {
        ask(self.egress.address(), request).await
    }
}

/// A resolver that a test answers for.
struct Names<F>(F);

impl<F: Fn(&str) -> Vec<IpAddr> + Send + Sync> Resolver for Names<F> {
    fn resolve<'a>(&'a self, host: &'a str) -> Resolved<'a> {
        Box::pin(std::future::ready(Ok((self.0)(host))))
    }
}

/// What a site does with a connection.
#[derive(Clone, Copy)]
enum Serving {
    /// Says back whatever comes.
    Tcp,
    /// Answers a request with its own head and body.
    Echo,
    /// Counts the bytes 1 and 2, of which no head has any, and says nothing.
    Count,
}

/// A site on every loopback address.
struct Site {
    address: SocketAddr,
    seen: Arc<Seen>,
    _task: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    reached_at: Mutex<Vec<IpAddr>>,
    bytes: AtomicUsize,
    ended: AtomicUsize,
}

impl Site {
    async fn start(serving: Serving) -> Site {
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let shared = seen.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let at = stream.local_addr().unwrap().ip();
                lock(&shared.reached_at).push(at);
                let seen = shared.clone();
                connections.spawn(async move {
                    let _ = serve(stream, serving, &seen).await;
                    seen.ended.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        Site {
            address,
            seen,
            _task: task,
        }
    }

    fn port(&self) -> u16 {
        self.address.port()
    }

    fn connections(&self) -> usize {
        lock(&self.seen.reached_at).len()
    }

    fn reached_at(&self) -> Vec<IpAddr> {
        lock(&self.seen.reached_at).clone()
    }

    fn bytes(&self) -> usize {
        self.seen.bytes.load(Ordering::SeqCst)
    }

    fn ended(&self) -> usize {
        self.seen.ended.load(Ordering::SeqCst)
    }
}

async fn serve(mut stream: TcpStream, serving: Serving, seen: &Seen) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut request = Vec::new();
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        let counted = buffer[..read].iter().filter(|byte| **byte < 3).count();
        seen.bytes.fetch_add(counted, Ordering::SeqCst);
        match serving {
            Serving::Tcp => stream.write_all(&buffer[..read]).await?,
            Serving::Count => {}
            Serving::Echo => {
                request.extend_from_slice(&buffer[..read]);
                let text = String::from_utf8_lossy(&request).into_owned();
                let Some((head, body)) = text.split_once("\r\n\r\n") else {
                    continue;
                };
                let length = head
                    .to_lowercase()
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                let is_whole = match length {
                    Some(length) => body.len() >= length,
                    None => body.is_empty() || body.ends_with("0\r\n\r\n"),
                };
                if is_whole {
                    let said =
                        "HTTP/1.1 200 OK\r\nX-Site-Hop: 1\r\nConnection: close, x-site-hop\r\n\r\n";
                    stream.write_all(said.as_bytes()).await?;
                    stream.write_all(text.as_bytes()).await?;
                    return stream.shutdown().await;
                }
            }
        }
    }
}

/// Everything that is answered until the proxy closes.
async fn ask(proxy: SocketAddr, request: &str) -> String {
    let mut client = TcpStream::connect(proxy).await.unwrap();
    // A refusal may come before the end of what is asked.
    let _ = client.write_all(request.as_bytes()).await;
    let mut heard = Vec::new();
    let _ = within(client.read_to_end(&mut heard)).await;
    String::from_utf8_lossy(&heard).into_owned()
}

/// The head of an answer after which the connection may stay open.
async fn ask_open(proxy: SocketAddr, request: &str) -> String {
    let mut client = TcpStream::connect(proxy).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    until_heard(&mut client, "\r\n\r\n").await
}

async fn until_heard(client: &mut TcpStream, what: &str) -> String {
    let mut heard = Vec::new();
    let mut byte = [0];
    while !heard.ends_with(what.as_bytes()) {
        let read = within(client.read(&mut byte)).await;
        if !matches!(read, Ok(1)) {
            break;
        }
        heard.push(byte[0]);
    }
    String::from_utf8_lossy(&heard).into_owned()
}

async fn until_refused(address: SocketAddr) {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(address).await.is_ok() {
        assert!(
            Instant::now() < deadline,
            "the listener outlived its session"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn head(answer: &str) -> &str {
    answer.split("\r\n\r\n").next().unwrap()
}

fn address_port(authority: &str) -> u16 {
    authority.rsplit(':').next().unwrap().parse().unwrap()
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

/// Far above what anything here takes, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(20);
