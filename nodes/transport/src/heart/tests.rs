//! The heart over real sockets: who is heard, who is not, and what a flood may cost.

#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Instant;

use understudy_protocol::id::{IncarnationId, LogIndex, UnitId, VotersVersion};
use understudy_protocol::wire::heart::{AT_WORK_MAX, DeathNote, Renewal, Ttl};

use super::*;
use crate::identity::Ca;

#[tokio::test]
async fn datagrams_arrive_with_the_senders_certified_id() {
    let ca = Ca::create("alpha").unwrap();
    let (mut a, mut b) = (heart(&ca, 1), heart(&ca, 2));
    for round in 0..20 {
        a.send(NodeId(2), b.local_addr().unwrap(), &renewal(1, round));
        let (from, message) = within(b.recv()).await;
        assert_eq!((from, message), (Some(NodeId(1)), renewal(1, round)));
        // Answered on the connection that the other side has dialled: nobody listens there.
        b.send(NodeId(1), nowhere(), &renewal(2, round));
        let (from, message) = within(a.recv()).await;
        assert_eq!((from, message), (Some(NodeId(2)), renewal(2, round)));
    }
    assert_eq!(a.counted(), Counted::default());
    a.close().await;
}

#[tokio::test]
async fn a_heart_that_restarts_is_reached_again() {
    let ca = Ca::create("alpha").unwrap();
    let a = heart(&ca, 1);
    let mut b = heart(&ca, 2);
    let address = b.local_addr().unwrap();
    a.send(NodeId(2), address, &renewal(1, 0));
    within(b.recv()).await;
    b.close().await;
    a.send(NodeId(2), address, &renewal(1, 1)); // to nobody

    let identity = Arc::new(ca.issue("b", NodeId(2), &[]).unwrap());
    let began = Instant::now();
    let mut b = loop {
        match HeartSocket::bind(address, identity.clone()) {
            Ok(heart) => break heart,
            // quinn's own task lets go of the socket a moment later; a real restart is another process.
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let mut round = 2;
    let reached = loop {
        a.send(NodeId(2), address, &renewal(1, round));
        round += 1;
        if let Ok(received) = timeout(Duration::from_millis(50), b.recv()).await {
            break received;
        }
        assert!(began.elapsed() < PATIENCE, "not reached");
    };
    assert_eq!(reached.0, Some(NodeId(1)));
}

#[tokio::test]
async fn strangers_and_the_wrong_node_are_not_heard() {
    let ca = Ca::create("alpha").unwrap();
    let mut a = heart(&ca, 1);
    let address = a.local_addr().unwrap();
    let foreign = heart(&Ca::create("alpha").unwrap(), 2);
    foreign.send(NodeId(1), address, &renewal(2, 1));
    until(|| a.counted().handshakes_refused == 1).await;

    let stray = ca.issue_as("beta", "stray", NodeId(3), &[]).unwrap();
    let stray = HeartSocket::bind(anywhere(), Arc::new(stray)).unwrap();
    stray.send(NodeId(1), address, &renewal(3, 1)); // refuses us, as we would refuse it
    until(|| stray.counted().handshakes_refused == 1).await;

    let b = heart(&ca, 4);
    b.send(NodeId(5), address, &renewal(4, 1)); // node 5 does not live here
    until(|| b.counted().handshakes_refused == 1).await;
    assert!(timeout(Duration::from_millis(100), a.recv()).await.is_err());
}

#[tokio::test]
async fn a_plain_death_note_arrives_and_nothing_else_does() {
    let ca = Ca::create("alpha").unwrap();
    let (mut a, b) = (heart(&ca, 1), heart(&ca, 2));
    let address = a.local_addr().unwrap();
    let note = DeathNote {
        incarnation: IncarnationId(u64::MAX),
        secret: [7; 32],
        at_work: vec![UnitId(u64::MAX); AT_WORK_MAX],
    };
    send_note_plain(&[address], &note).unwrap();
    let expected = (None, HeartMessage::DeathNote(note.clone()));
    assert_eq!(within(a.recv()).await, expected);

    let stranger = UdpSocket::bind(anywhere()).unwrap();
    let good = plain_note(&note).unwrap();
    let mut renewal_bytes = vec![0x01];
    encode_frame(&renewal(1, 1), &mut renewal_bytes).unwrap();
    let mut broken = good.clone();
    *broken.last_mut().unwrap() ^= 1;
    let long = [vec![0x01], vec![0; 2_000]].concat();
    let refused = [renewal_bytes, broken, good[..40].to_vec(), long, vec![0x01]];
    for (count, bytes) in refused.iter().enumerate() {
        stranger.send_to(bytes, address).unwrap();
        until(|| a.counted().datagrams_dropped == count as u64 + 1).await;
    }
    stranger.send_to(&[], address).unwrap();
    stranger.send_to(&good[1..], address).unwrap(); // the frame alone looks like QUIC, and is none

    // QUIC goes on beside it.
    b.send(NodeId(1), address, &renewal(2, 9));
    assert_eq!(within(a.recv()).await, (Some(NodeId(2)), renewal(2, 9)));
}

#[tokio::test]
async fn a_flood_of_plain_datagrams_is_limited() {
    let ca = Ca::create("alpha").unwrap();
    let a = heart(&ca, 1);
    let stranger = UdpSocket::bind(anywhere()).unwrap();
    let address = a.local_addr().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while a.counted().datagrams_limited == 0 {
        assert!(Instant::now() < deadline, "never limited");
        for _ in 0..500 {
            stranger.send_to(&[0x01, 1, 2, 3], address).unwrap();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(a.counted().datagrams_dropped >= u64::from(PLAIN_PER_SECOND_MAX));
}

fn heart(ca: &Ca, node: u64) -> HeartSocket {
    let identity = Arc::new(ca.issue("heart", NodeId(node), &[]).unwrap());
    HeartSocket::bind(anywhere(), identity).unwrap()
}

fn renewal(node: u64, round: u64) -> HeartMessage {
    HeartMessage::Renewal(Renewal {
        node: NodeId(node),
        incarnation: IncarnationId(node),
        round,
        ttl: Ttl::LAN,
        voters: VotersVersion(1),
        applied: LogIndex(1),
    })
}

fn anywhere() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn nowhere() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 9).into()
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

const PATIENCE: Duration = Duration::from_secs(20);
