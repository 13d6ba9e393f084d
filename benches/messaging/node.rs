//! One end of the bench: a network of ours, and what the bench does with what arrives.
//!
//! Owns: the inbox, which takes the same steps as a node's own (decode, a bounded queue, one task
//! behind it), and an actor of `ractor_cluster`. Never measures.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::{NodeServerMessage, RactorClusterMessage};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use understudy_protocol::id::{ChildId, IncarnationId, NodeId, Seq, StoreId};
use understudy_protocol::wire::checksum;
use understudy_protocol::wire::codec::{Frame, Message, MessageType, encode_frame};
use understudy_protocol::wire::envelope::{CallId, CallKey, Envelope, Outcome, Reply};
use understudy_transport::identity::Identity;
use understudy_transport::net::{
    BoxFuture, Full, Hello, Inbox, Lane, Net, NetConfig, PeerChange, PeerStream, RequestRefused,
};
use understudy_transport::ractor_link;

/// A network and the receiving ends of what arrives.
pub(crate) struct Node {
    pub(crate) net: Net,
    pub(crate) server: ActorRef<NodeServerMessage>,
    pub(crate) letters: mpsc::Receiver<Letter>,
    pub(crate) streams: mpsc::Receiver<PeerStream>,
    pub(crate) ups: mpsc::Receiver<PeerChange>,
    pub(crate) count: Arc<Count>,
}

/// What came over a lane, decoded.
pub(crate) enum Letter {
    Envelope(NodeId, Envelope),
    Reply(Reply),
}

impl Node {
    pub(crate) async fn start(identity: Identity, seeds: Vec<String>) -> Result<Node> {
        let node = identity.node();
        let server = ractor_link::node_server(node, "bench".to_owned());
        let (server, _task) = Actor::spawn(None, server, ()).await?;
        let (letters_in, letters) = mpsc::channel(LETTERS_MAX);
        let (streams_in, streams) = mpsc::channel(16);
        let (ups_in, ups) = mpsc::channel(16);
        let count = Arc::<Count>::default();
        let post = Post {
            letters: letters_in,
            streams: streams_in,
            ups: ups_in,
            count: count.clone(),
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
                votes: false,
                works: false,
            },
            seeds,
            segmentation_offload: true,
        };
        let net = Net::start(config, Arc::new(post)).await?;
        Ok(Node {
            net,
            server,
            letters,
            streams,
            ups,
            count,
        })
    }

    /// Who is there, once somebody is.
    pub(crate) async fn until_up(&mut self) -> Result<NodeId> {
        let up = tokio::time::timeout(PATIENCE, self.ups.recv()).await;
        match up.context("no peer came")? {
            Some(PeerChange::Up(hello)) => Ok(hello.node),
            other => anyhow::bail!("no peer came: {other:?}"),
        }
    }
}

/// The other process: counts tells, answers asks, echoes raw streams, until its parent ends it.
pub(crate) async fn serve(mut node: Node) -> Result<()> {
    let (counter, _task) = Actor::spawn(None, Counter, ()).await?;
    ractor::pg::join(GROUP.to_owned(), vec![counter.get_cell()]);
    // The first stream is `ractor_cluster`'s; the parent opens no other before it has seen the actor.
    let stream = node.streams.recv().await.context("no stream came")?;
    ractor_link::link(&node.server, stream, false)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(answer(node.net.clone(), node.letters, node.count.clone()));
    while let Some(stream) = node.streams.recv().await {
        tasks.spawn(async move {
            // A stream that breaks off shows in the parent.
            let _ = serve_stream(stream).await;
        });
    }
    Ok(())
}

async fn answer(net: Net, mut letters: mpsc::Receiver<Letter>, count: Arc<Count>) {
    let mut taken = Vec::with_capacity(LETTERS_AT_ONCE);
    while letters.recv_many(&mut taken, LETTERS_AT_ONCE).await > 0 {
        let mut told = 0;
        for letter in taken.drain(..) {
            match letter {
                Letter::Envelope(_, envelope) if envelope.patience_ms == 0 => told += 1,
                Letter::Envelope(from, envelope) => {
                    let reply = Reply {
                        call: envelope.call,
                        outcome: Outcome::Answered {
                            body: envelope.body,
                            reflects: Seq(1),
                            durable: true,
                        },
                    };
                    let _ = net.send(from, Lane::Of(reply.call.number), framed(&reply));
                }
                Letter::Reply(_) => {}
            }
        }
        count.add(told);
    }
}

async fn serve_stream(stream: PeerStream) -> Result<()> {
    let (mut send, mut recv) = stream.into_halves();
    let mut kind = [0];
    recv.read_exact(&mut kind).await?;
    match kind[0] {
        PING => {
            let mut body = [0; BODY_BYTES];
            loop {
                recv.read_exact(&mut body).await?;
                send.write_all(&body).await?;
            }
        }
        FLOOD => loop {
            let mut expected = [0; 8];
            recv.read_exact(&mut expected).await?;
            let mut left = u64::from_be_bytes(expected);
            while left > 0 {
                let most = left.min(64 * 1024) as usize;
                let chunk = recv.read_chunk(most, true).await?;
                left -= chunk.context("the stream ended early")?.bytes.len() as u64;
            }
            send.write_all(&[1]).await?;
        },
        kind => anyhow::bail!("no such kind of stream: {kind}"),
    }
}

/// Counts what arrives, and says when all of it has.
#[derive(Debug, Default)]
pub(crate) struct Count {
    seen: AtomicU64,
    wanted: AtomicU64,
    reached: Notify,
}

impl Count {
    fn add(&self, more: u64) {
        let seen = self.seen.fetch_add(more, Ordering::AcqRel) + more;
        if more > 0 && seen == self.wanted.load(Ordering::Acquire) {
            self.reached.notify_one();
        }
    }
}

struct Post {
    letters: mpsc::Sender<Letter>,
    streams: mpsc::Sender<PeerStream>,
    ups: mpsc::Sender<PeerChange>,
    count: Arc<Count>,
}

impl Post {
    fn put(&self, letter: Option<Letter>) -> Result<(), Full> {
        match letter {
            Some(letter) => self.letters.try_send(letter).map_err(|_| Full),
            None => Ok(()),
        }
    }
}

impl Inbox for Post {
    fn frame(&self, from: NodeId, frame: Bytes) -> Result<(), Full> {
        match MessageType::from_number(frame[2]) {
            Some(MessageType::Envelope) => {
                let envelope = decoded(&frame);
                self.put(envelope.map(|envelope| Letter::Envelope(from, envelope)))
            }
            Some(MessageType::Reply) => self.put(decoded(&frame).map(Letter::Reply)),
            _ => {
                self.count.add(1);
                Ok(())
            }
        }
    }

    fn request(
        &self,
        _: NodeId,
        kind: u8,
        body: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, RequestRefused>> {
        let count = self.count.clone();
        Box::pin(async move {
            match kind {
                EXPECT => {
                    let wanted = body.as_ref().try_into().map(u64::from_be_bytes);
                    count.wanted.store(wanted.unwrap_or(0), Ordering::Release);
                    count.seen.store(0, Ordering::Release);
                    Ok(Bytes::new())
                }
                REACHED => {
                    count.reached.notified().await;
                    Ok(Bytes::new())
                }
                _ => Err(RequestRefused::NotServed),
            }
        })
    }

    fn peer(&self, change: PeerChange) {
        let _ = self.ups.try_send(change);
    }

    fn stream(&self, _: NodeId, stream: PeerStream) {
        let _ = self.streams.try_send(stream);
    }
}

/// The actor that `ractor_cluster` carries messages to.
#[derive(RactorClusterMessage)]
pub(crate) enum Told {
    /// A tell.
    Tell(Vec<u8>),
    /// An ask: the same bytes back.
    #[rpc]
    Ask(Vec<u8>, RpcReplyPort<Vec<u8>>),
    /// How many tells were counted since the last time this was asked.
    #[rpc]
    Counted(RpcReplyPort<u64>),
}

struct Counter;

impl Actor for Counter {
    type Msg = Told;
    type State = u64;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Told>, (): ()) -> Result<u64, ActorProcessingErr> {
        Ok(0)
    }

    async fn handle(
        &self,
        _: ActorRef<Told>,
        message: Told,
        counted: &mut u64,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Told::Tell(_) => *counted += 1,
            Told::Ask(body, port) => port.send(body)?,
            Told::Counted(port) => port.send(std::mem::take(counted))?,
        }
        Ok(())
    }
}

/// A call as a gateway would frame it, to a child with a short name; without patience it is a tell.
pub(crate) fn envelope(number: u64, to: &ChildId, patience_ms: u32) -> Envelope {
    let mut body = [0; BODY_BYTES];
    body[..8].copy_from_slice(&number.to_be_bytes());
    let gateway = IncarnationId(0x0123_4567_89ab_cdef);
    Envelope {
        call: CallId { gateway, number },
        to: to.clone(),
        key: CallKey::Internal { gateway, number },
        request_hash: number,
        patience_ms,
        body: Bytes::copy_from_slice(&body),
    }
}

/// As a node's own inbox does it.
fn decoded<T: Message>(frame: &[u8]) -> Option<T> {
    Frame::checked_before(frame).ok()?.decode().ok()
}

/// The frame of a message, made as a node makes it.
pub(crate) fn framed<T: Message>(message: &T) -> Bytes {
    let mut frame = Vec::new();
    // None of these is too long.
    let _ = encode_frame(message, &mut frame);
    frame.into()
}

/// The smallest frame that carries 64 bytes: a header and a byte string.
pub(crate) fn bare_frame(number: u64) -> Bytes {
    let mut hashed = [0; 8 + 2 + BODY_BYTES];
    hashed[..2].copy_from_slice(&[0xF5, 0x55]);
    hashed[2] = MessageType::ReplicaAnswer.number();
    hashed[3] = 1;
    hashed[4..8].copy_from_slice(&(2 + BODY_BYTES as u32).to_be_bytes());
    hashed[8..10].copy_from_slice(&[0x58, BODY_BYTES as u8]);
    hashed[10..18].copy_from_slice(&number.to_be_bytes());
    let mut frame = Vec::with_capacity(BARE_FRAME_BYTES);
    frame.extend_from_slice(&hashed[..8]);
    frame.extend_from_slice(&checksum(&hashed).to_be_bytes());
    frame.extend_from_slice(&hashed[8..]);
    frame.into()
}

/// The payload of every message of this bench.
pub(crate) const BODY_BYTES: usize = 64;

/// A bare frame: twelve bytes of header, two of a byte string's length.
pub(crate) const BARE_FRAME_BYTES: usize = 12 + 2 + BODY_BYTES;

/// Kinds of requests: so many frames are to come; answer when they have.
pub(crate) const EXPECT: u8 = 1;
pub(crate) const REACHED: u8 = 2;

/// Kinds of raw streams, their first byte.
pub(crate) const PING: u8 = b'p';
pub(crate) const FLOOD: u8 = b'f';

pub(crate) const GROUP: &str = "counters";

/// As in a node's core.
const LETTERS_MAX: usize = 4_096;
const LETTERS_AT_ONCE: usize = 128;

const PATIENCE: Duration = Duration::from_secs(20);
