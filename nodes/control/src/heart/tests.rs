//! Hearts in one process, over real datagrams on the loopback.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::sync::Mutex;

use understudy_protocol::cluster::lease::voter::Fact;
use understudy_protocol::cluster::voters::Voters;
use understudy_protocol::id::{LogId, LogIndex, Term, UnitId};
use understudy_protocol::wire::codec::{decode_whole, encode_frame};
use understudy_protocol::wire::heart::{DeathDigest, Promise, Verdict};

use super::*;

/// A frame behind eight bytes that say whose it is; zeroes are nobody's.
struct Datagrams {
    me: NodeId,
    socket: tokio::net::UdpSocket,
}

impl HeartSocket for Datagrams {
    fn send(&mut self, _: NodeId, at: SocketAddr, message: &HeartMessage) {
        let _ = self.socket.try_send_to(&datagram(self.me.0, message), at);
    }

    async fn recv(&mut self) -> (Option<NodeId>, HeartMessage) {
        let mut bytes = [0; 2_048];
        loop {
            let Ok((length, _)) = self.socket.recv_from(&mut bytes).await else {
                continue;
            };
            let (from, frame) = bytes[..length].split_at(8);
            let from = u64::from_be_bytes(from.try_into().unwrap());
            if let Ok(message) = decode_whole(frame) {
                return (Some(NodeId(from)).filter(|node| node.0 != 0), message);
            }
        }
    }
}

fn datagram(from: u64, message: &HeartMessage) -> Vec<u8> {
    let mut bytes = from.to_be_bytes().to_vec();
    encode_frame(message, &mut bytes).unwrap();
    bytes
}

/// What a heart did on its own thread.
#[derive(Default)]
struct Done {
    fed: Vec<Time>,
    lapses: Vec<Time>,
    aborts: Vec<&'static str>,
}

struct Beating {
    heart: Option<HeartThread>,
    handle: HeartHandle,
    outputs: mpsc::Receiver<HeartOutput>,
    done: Arc<Mutex<Done>>,
    at: SocketAddr,
}

/// A heart whose limit is flushed, and that knows nothing else yet.
fn beat(number: u64) -> Beating {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    socket.set_nonblocking(true).unwrap();
    let at = socket.local_addr().unwrap();
    let done = Arc::new(Mutex::new(Done::default()));
    let (feeds, lapses, aborts) = (done.clone(), done.clone(), done.clone());
    let calls = HeartCalls {
        feed: Box::new(move |until| feeds.lock().unwrap().fed.push(until)),
        lapsed: Box::new(move || lapses.lock().unwrap().lapses.push(clock::now())),
        abort: Arc::new(move |why| aborts.lock().unwrap().aborts.push(why)),
    };
    let config = HeartConfig {
        node: NodeId(number),
        incarnation: IncarnationId(number),
        store: StoreId(number),
        limit: Ttl::LAN,
        kill_time: Duration::from_millis(50),
        journal: None,
    };
    let make = move || {
        let socket = tokio::net::UdpSocket::from_std(socket).map_err(|error| error.to_string())?;
        Ok(Datagrams {
            me: NodeId(number),
            socket,
        })
    };
    let (heart, handle, outputs) = HeartThread::start(config, calls, make).unwrap();
    Beating {
        heart: Some(heart),
        handle,
        outputs,
        done,
        at,
    }
}

fn id(index: u64) -> LogId {
    LogId {
        term: Term(1),
        index: LogIndex(index),
    }
}

impl Beating {
    /// What a core tells at its start: the directory lists stores 1 to 3, all live, and they vote.
    fn introduce(&self, hearts: &BTreeMap<StoreId, (NodeId, SocketAddr)>) {
        let voters = Voters::first([StoreId(1), StoreId(2), StoreId(3)]);
        let formed = Fact::Formed {
            voters: voters.clone(),
            ttl: Ttl::LAN,
        };
        let live = (1..=3).map(|number| Fact::Live {
            node: NodeId(number),
            incarnation: IncarnationId(number),
            death: DeathDigest::of(&[number as u8; 32]),
        });
        let facts = std::iter::once(formed).chain(live);
        let settled = (1..).map(id).zip(facts).collect();
        let open = Vec::new();
        self.voter(voter::Event::Read { settled, open });
        self.voter(voter::Event::LeaderSeen(NodeId(1)));
        self.handle.tell(HeartInput::Addresses(hearts.clone()));
        self.handle
            .tell(HeartInput::Holder(holder::Event::Directory {
                voters,
                ttl: Ttl::LAN,
                applied: LogIndex(4),
            }));
    }

    fn voter(&self, event: voter::Event) {
        self.handle.tell(HeartInput::Voter(event));
    }

    /// What the core does meanwhile, until `shows`.
    async fn live_until(&mut self, what: &str, mut shows: impl FnMut(&mut Beating) -> bool) {
        let lives = async {
            loop {
                self.handle.answer_canary();
                if shows(self) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let shown = tokio::time::timeout(PATIENCE, lives).await;
        assert!(shown.is_ok(), "it never shows that {what}");
    }

    async fn output(&mut self, what: &str, wanted: impl Fn(&HeartOutput) -> bool) {
        let hears = async {
            while let Some(output) = self.outputs.recv().await {
                if wanted(&output) {
                    return;
                }
            }
        };
        let heard = tokio::time::timeout(PATIENCE, hears).await;
        assert!(heard.is_ok(), "it never says that {what}");
    }

    fn lapses(&self) -> Vec<Time> {
        self.done.lock().unwrap().lapses.clone()
    }

    fn stop(&mut self) {
        if let Some(heart) = self.heart.take() {
            heart.stop();
        }
    }
}

impl Drop for Beating {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Three hearts that hold leases.
async fn three() -> Vec<Beating> {
    let mut hearts: Vec<Beating> = (1..=3).map(beat).collect();
    let numbered = (1..).zip(&hearts);
    let book = numbered.map(|(number, heart)| (StoreId(number), (NodeId(number), heart.at)));
    let book: BTreeMap<StoreId, (NodeId, SocketAddr)> = book.collect();
    for heart in &hearts {
        heart.introduce(&book);
    }
    for heart in &mut hearts {
        let valid = |heart: &mut Beating| heart.handle.is_valid(clock::now());
        heart.live_until("its lease is valid", valid).await;
    }
    hearts
}

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_node_whose_voters_are_gone_freezes_within_its_ttl_and_lapses_once() {
    let mut hearts = three().await;
    let (third, others) = hearts.split_last_mut().unwrap();
    // Renewed again and again: every deadline is later than the one before.
    let many = |heart: &mut Beating| heart.done.lock().unwrap().fed.len() > 10;
    third.live_until("its lease is renewed", many).await;
    for other in others {
        other.stop();
    }
    let stopped = clock::now();
    third
        .live_until("it lapsed", |heart| !heart.lapses().is_empty())
        .await;
    let lapsed = third.lapses()[0];
    assert!(
        lapsed.since(stopped) <= Ttl::LAN.duration(),
        "{:?}",
        lapsed.since(stopped)
    );
    assert!(!third.handle.is_valid(clock::now()));
    assert_eq!(third.handle.lease_until(), Time::ZERO);
    let fed = third.done.lock().unwrap().fed.clone();
    assert!(fed.is_sorted() && fed.iter().collect::<BTreeSet<_>>().len() == fed.len());
    assert!(
        *fed.last().unwrap() <= lapsed,
        "the warden may kill before, never after"
    );
    tokio::time::sleep(Ttl::LAN.duration()).await;
    assert_eq!(third.lapses().len(), 1);
    assert_eq!(third.done.lock().unwrap().aborts, [] as [&str; 0]);
}

#[tokio::test]
async fn two_of_three_hearts_keep_each_others_leases() {
    let mut hearts = three().await;
    hearts[2].stop();
    let before = hearts[0].handle.lease_until();
    for heart in &mut hearts[..2] {
        let later = before + Ttl::LAN.duration() * 2;
        let renewed = |heart: &mut Beating| heart.handle.lease_until() > later;
        heart.live_until("its lease goes on", renewed).await;
        assert_eq!(heart.lapses(), []);
    }
}

#[tokio::test]
async fn a_main_runtime_that_hangs_ends_the_process_though_the_lease_is_renewed() {
    let mut hearts = three().await;
    let hung = clock::now();
    let aborts = hearts[0].done.clone();
    let others = &mut hearts[1];
    let aborted = |_: &mut Beating| !aborts.lock().unwrap().aborts.is_empty();
    others.live_until("the hung one aborts", aborted).await;
    let took = clock::now().since(hung);
    let patience = holder::CANARY_PATIENCE;
    assert!(
        took + Duration::from_secs(1) > patience && took < patience * 2,
        "{took:?}"
    );
    assert_eq!(hearts[0].handle.lease_until(), Time::ZERO);
    assert_eq!(hearts[0].lapses(), []);
}

#[tokio::test]
async fn a_held_expulsion_ends_the_lease_and_its_report_reaches_the_leader_both_ways() {
    let mut hearts = three().await;
    for heart in &hearts {
        let expelled = Fact::Expelled(IncarnationId(3));
        heart.voter(voter::Event::Held(id(9), expelled));
    }
    let lapsed = |heart: &mut Beating| !heart.lapses().is_empty();
    hearts[2].live_until("it heard of it", lapsed).await;
    let report = |of: u64| Report {
        voter: StoreId(of),
        incarnation: IncarnationId(3),
        expel: id(9),
    };
    let truth = HeartOutput::ReportFor(NodeId(1), report(2));
    hearts[1]
        .output("for the truth plane", |output| *output == truth)
        .await;
    for voter in [1, 2] {
        let reported = HeartOutput::Reported(report(voter));
        hearts[0]
            .output("a voter's report came", |output| *output == reported)
            .await;
    }
    let sighted = |output: &HeartOutput| matches!(output, HeartOutput::Sighted(sighting) if sighting.voter == StoreId(2));
    hearts[0].output("a voter's sighting came", sighted).await;
}

#[tokio::test]
async fn nobody_speaks_for_another_and_a_note_needs_nobody_to_vouch() {
    let mut hearts = three().await;
    hearts[1].stop();
    hearts[2].stop();
    let forger = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let at = hearts[0].at;
    let promise = |round| {
        HeartMessage::Promise(Promise {
            voter: StoreId(2),
            incarnation: IncarnationId(1),
            round,
            verdict: Verdict::Promised,
        })
    };
    // Store 2 is of node 2: neither node 3 nor nobody promises for it.
    let first = &mut hearts[0];
    let mut round = 0;
    let lapsed = |heart: &mut Beating| {
        round += 1;
        for from in [0, 3] {
            forger
                .send_to(&datagram(from, &promise(round)), at)
                .unwrap();
        }
        !heart.lapses().is_empty()
    };
    first.live_until("it lapsed", lapsed).await;
    let note = DeathNote {
        incarnation: IncarnationId(2),
        secret: [2; 32],
        at_work: vec![UnitId(7)],
    };
    let bytes = datagram(0, &HeartMessage::DeathNote(note.clone()));
    forger.send_to(&bytes, at).unwrap();
    let died = HeartOutput::Died(note);
    first.output("a note came", |output| *output == died).await;
}

#[tokio::test]
async fn a_voter_that_does_not_lead_hands_a_wardens_note_on_to_the_leader() {
    let mut hearts = three().await;
    let note = DeathNote {
        incarnation: IncarnationId(3),
        secret: [3; 32],
        at_work: Vec::new(),
    };
    let warden = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let bytes = datagram(0, &HeartMessage::DeathNote(note.clone()));
    warden.send_to(&bytes, hearts[1].at).unwrap();
    let died = HeartOutput::Died(note.clone());
    hearts[0]
        .output("the leader has the note", |output| *output == died)
        .await;
    // The next start of a node says the notes of its former lives itself.
    let old = DeathNote {
        incarnation: IncarnationId(33),
        ..note
    };
    hearts[2].handle.tell(HeartInput::Note(old.clone()));
    let died = HeartOutput::Died(old);
    hearts[0]
        .output("the leader has the old note", |output| *output == died)
        .await;
}

#[tokio::test]
async fn a_longer_ttl_is_promised_once_its_limit_is_flushed() {
    let mut hearts = three().await;
    for heart in &mut hearts {
        heart.voter(voter::Event::Held(id(9), Fact::Ttl(Ttl::DEFAULT)));
        let flush = HeartOutput::FlushLimit(Ttl::DEFAULT);
        heart
            .output("the limit is to be flushed", |output| *output == flush)
            .await;
        heart.voter(voter::Event::LimitFlushed(Ttl::DEFAULT));
    }
    for heart in &hearts {
        let voters = Voters::first([StoreId(1), StoreId(2), StoreId(3)]);
        let directory = holder::Event::Directory {
            voters,
            ttl: Ttl::DEFAULT,
            applied: LogIndex(9),
        };
        heart.handle.tell(HeartInput::Holder(directory));
    }
    for heart in &mut hearts {
        let long = |heart: &mut Beating| {
            heart.handle.lease_until() > clock::now() + Ttl::LAN.duration() * 2
        };
        heart.live_until("its lease is a long one", long).await;
    }
}

#[tokio::test]
async fn a_heart_that_takes_nothing_in_ends_the_process() {
    let heart = beat(1);
    // The queue of a heart that has stopped is closed, and that is no fault: so one that hangs.
    let (inputs, _unread) = mpsc::channel(1);
    let handle = HeartHandle {
        inputs,
        ..heart.handle.clone()
    };
    let event = || HeartInput::Voter(voter::Event::Truncated(LogIndex(1)));
    handle.tell(event());
    assert_eq!(heart.done.lock().unwrap().aborts.len(), 0);
    handle.tell(event());
    assert_eq!(heart.done.lock().unwrap().aborts.len(), 1);
}

#[tokio::test]
async fn a_heart_without_a_socket_is_said_and_a_stopped_one_asks_no_canary() {
    let calls = || HeartCalls {
        feed: Box::new(|_| {}),
        lapsed: Box::new(|| {}),
        abort: Arc::new(|_| {}),
    };
    let config = HeartConfig {
        node: NodeId(1),
        incarnation: IncarnationId(1),
        store: StoreId(1),
        limit: Ttl::LAN,
        kill_time: Duration::ZERO,
        journal: None,
    };
    let none = || Err::<Datagrams, _>("the port is taken".to_owned());
    let error = HeartThread::start(config, calls(), none).err().unwrap();
    assert_eq!(
        error.to_string(),
        "the heart has no socket: the port is taken"
    );
    let mut heart = beat(2);
    let asked = tokio::time::timeout(PATIENCE, heart.handle.canary()).await;
    assert!(asked.is_ok());
    heart.handle.answer_canary();
    heart.stop();
    let asked = tokio::time::timeout(Duration::from_millis(400), heart.handle.canary()).await;
    assert!(asked.is_err());
}
