//! `ractor` keeps its registries in statics, so the second node is a second process: this test
//! starts itself again, with two variables that tell it to be the other node.

#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorClusterMessage;
use tokio::process::Command;
use tokio::sync::mpsc;
use understudy_protocol::id::{IncarnationId, StoreId};

use super::*;
use crate::identity::{Ca, Identity};
use crate::net::{BoxFuture, Full, Hello, Inbox, Net, NetConfig, PeerChange, RequestRefused};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_actor_of_another_process_answers_until_that_process_dies() {
    if let (Ok(dir), Ok(seed)) = (std::env::var(DIR), std::env::var(SEED)) {
        return be_the_other_node(Path::new(&dir), seed).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::create("alpha").unwrap();
    let theirs = ca.issue("b", NodeId(2), &[]).unwrap();
    theirs.save(dir.path()).unwrap();
    let (net, mut changes, _server) = start(ca.issue("a", NodeId(1), &[]).unwrap(), &[]).await;

    let test = "ractor_link::tests::an_actor_of_another_process_answers_until_that_process_dies";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(DIR, dir.path())
        .env(SEED, net.local_addr().unwrap().to_string())
        .stdin(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let up = tokio::time::timeout(PATIENCE, changes.recv())
        .await
        .unwrap();
    assert!(matches!(up, Some(PeerChange::Up(hello)) if hello.node == NodeId(2)));

    let remote: ActorRef<Doubling> = until_member().await.into();
    assert!(!remote.get_id().is_local());
    let patience_ms = PATIENCE.as_millis() as u64;
    for number in 0..100 {
        let doubled = ractor::call_t!(remote, Doubling::Of, patience_ms, number).unwrap();
        assert_eq!(doubled, 2 * number);
    }

    child.kill().await.unwrap();
    let began = Instant::now();
    while !ractor::pg::get_members(&GROUP.to_owned()).is_empty() {
        assert!(
            began.elapsed() < PATIENCE,
            "a dead process's actor is still listed"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let answer = ractor::call_t!(remote, Doubling::Of, 1_000, 1);
    assert!(answer.is_err(), "{answer:?}");
    net.close().await;
}

async fn be_the_other_node(dir: &Path, seed: String) {
    let identity = Identity::load(dir).unwrap();
    let (net, mut changes, server) = start(identity, &[seed]).await;
    let (doubler, _task) = Actor::spawn(None, Doubler, ()).await.unwrap();
    ractor::pg::join(GROUP.to_owned(), vec![doubler.get_cell()]);
    let up = tokio::time::timeout(PATIENCE, changes.recv())
        .await
        .unwrap();
    assert!(matches!(up, Some(PeerChange::Up(_))));
    let stream = net.open_stream(NodeId(1), PATIENCE).await.unwrap();
    link(&server, stream, true).unwrap();
    // Lives until its parent ends it, or ends.
    let wait = || std::io::stdin().read_to_end(&mut Vec::new());
    let _ = tokio::task::spawn_blocking(wait).await;
}

async fn start(
    identity: Identity,
    seeds: &[String],
) -> (Net, mpsc::Receiver<PeerChange>, ActorRef<NodeServerMessage>) {
    let node = identity.node();
    let server = node_server(node, "cookie".to_owned());
    let (server, _task) = Actor::spawn(None, server, ()).await.unwrap();
    let (changes, received) = mpsc::channel(16);
    let inbox = Linking {
        server: server.clone(),
        changes,
    };
    let listen: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
    let config = NetConfig {
        listen,
        identity: Arc::new(identity),
        hello: Hello {
            node,
            incarnation: IncarnationId(node.0),
            store: StoreId(node.0),
            name: node.to_string(),
            address: listen.to_string(),
            votes: true,
            works: true,
        },
        seeds: seeds.to_vec(),
        segmentation_offload: true,
    };
    let net = Net::start(config, Arc::new(inbox)).await.unwrap();
    (net, received, server)
}

async fn until_member() -> ActorCell {
    let began = Instant::now();
    loop {
        if let Some(member) = ractor::pg::get_members(&GROUP.to_owned()).pop() {
            return member;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "the other node's actor never appeared"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

struct Linking {
    server: ActorRef<NodeServerMessage>,
    changes: mpsc::Sender<PeerChange>,
}

impl Inbox for Linking {
    fn frame(&self, _: NodeId, _: Bytes) -> Result<(), Full> {
        Ok(())
    }

    fn request(
        &self,
        _: NodeId,
        _: u8,
        _: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, RequestRefused>> {
        Box::pin(async { Err(RequestRefused::NotServed) })
    }

    fn peer(&self, change: PeerChange) {
        let _ = self.changes.try_send(change);
    }

    fn stream(&self, _: NodeId, stream: PeerStream) {
        link(&self.server, stream, false).unwrap();
    }
}

#[derive(RactorClusterMessage)]
enum Doubling {
    #[rpc]
    Of(u64, RpcReplyPort<u64>),
}

struct Doubler;

impl Actor for Doubler {
    type Msg = Doubling;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Doubling>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<Doubling>,
        message: Doubling,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        let Doubling::Of(number, reply) = message;
        let _ = reply.send(2 * number);
        Ok(())
    }
}

const GROUP: &str = "doublers";
const DIR: &str = "UNDERSTUDY_LINK_TEST_DIR";
const SEED: &str = "UNDERSTUDY_LINK_TEST_SEED";
const PATIENCE: Duration = Duration::from_secs(20);
