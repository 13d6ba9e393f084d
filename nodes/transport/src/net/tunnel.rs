//! A client's byte stream, carried to the node that serves it.
//!
//! Owns: one bidirectional stream of the data plane's connection for each tunnel, its credits, and the
//! task that carries it. Never holds more than [`TUNNEL_WINDOW_BYTES`] of what a reader has not taken:
//! a sender has credit for no more, so one that stands still takes nothing from the lanes, nor from
//! other tunnels. QUIC's own windows are not enough for that, being shared by the whole connection.
//!
//! ```text
//! opener ── length u16, header ───────────────▶ peer      Inbox::tunnel says yes or no
//!        ◀── status u8, length u32, why ───────
//!        ◀═ pieces: length u32, bytes        ═▶           length 0: nothing more comes
//!        ◀═ credits: bit 31, bytes u31       ═▶           for as much more
//! ```
//! Integers are big-endian. What ends without a length of 0 was lost, and its reader hears that.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use quinn::{ReadExactError, RecvStream, SendStream, VarInt};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use understudy_protocol::id::NodeId;

use super::Inbox;
use super::peers::Route;
use super::request::{RequestError, STATUS_FULL, STATUS_OK, answer, read_answer, status_of};
use crate::counters::{Count, Counters};
use crate::tls::DATA_BIDI_STREAMS;

/// Bytes both ways, to a peer or within this process. Reading ends with `Ok(0)` when the other side
/// has shut down or dropped its tunnel, and with [`io::ErrorKind::ConnectionReset`] when the way
/// between was lost; writing fails when nobody reads any more. Dropping it sends what was written.
pub struct Tunnel {
    way: Way,
    peer: NodeId,
}

enum Way {
    Far(Far),
    Near(DuplexStream),
}

/// The user's side of a tunnel that is carried.
struct Far(Arc<Shared>);

impl Tunnel {
    /// Both ends of a tunnel within one process, whose node is `node`.
    pub fn within(node: NodeId) -> (Tunnel, Tunnel) {
        let (one, other) = tokio::io::duplex(TUNNEL_WINDOW_BYTES);
        let end = |stream| Tunnel {
            way: Way::Near(stream),
            peer: node,
        };
        (end(one), end(other))
    }

    fn far(peer: NodeId) -> (Tunnel, Carried) {
        let shared = Arc::new(Shared::default());
        let carried = Carried(shared.clone());
        let way = Way::Far(Far(shared));
        (Tunnel { way, peer }, carried)
    }

    /// The node at the other end.
    pub fn peer(&self) -> NodeId {
        self.peer
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("peer", &self.peer).finish()
    }
}

/// A tunnel that a peer has taken, and what has yet to carry it.
pub(crate) struct Opened {
    pub(crate) tunnel: Tunnel,
    carried: Carried,
    send: SendStream,
    recv: RecvStream,
    place: OwnedSemaphorePermit,
}

impl Opened {
    /// Carries it until it ends. Dropping the future loses the tunnel, which hears of it.
    pub(crate) fn split(self) -> (Tunnel, impl Future<Output = ()> + Send + 'static) {
        let carry = carry(self.carried, self.send, self.recv, self.place);
        (self.tunnel, carry)
    }
}

/// Opens a tunnel and waits until the peer has taken it.
pub(crate) async fn open(route: &Route, header: Bytes) -> Result<Opened, RequestError> {
    if header.len() > TUNNEL_HEADER_BYTES_MAX {
        return Err(RequestError::TooLong(header.len()));
    }
    let place = route.tunnels.clone().try_acquire_owned();
    let place = place.map_err(|_| RequestError::Full)?;
    let (mut send, mut recv) = route.data.open_bi().await.map_err(|_| RequestError::Lost)?;
    let length = Bytes::copy_from_slice(&(header.len() as u16).to_be_bytes());
    // A peer that refuses does not read on: then its answer says more than the failed write.
    let _ = send.write_all_chunks(&mut [length, header]).await;
    read_answer(&mut recv).await?;
    let (tunnel, carried) = Tunnel::far(route.hello.node);
    Ok(Opened {
        tunnel,
        carried,
        send,
        recv,
        place,
    })
}

/// Takes one tunnel that a peer opens, and carries it.
pub(crate) async fn serve(
    mut send: SendStream,
    mut recv: RecvStream,
    from: NodeId,
    room: Arc<Semaphore>,
    inbox: Arc<dyn Inbox>,
    counters: Arc<Counters>,
) {
    let header = match timeout(HEADER_PATIENCE, read_header(&mut recv)).await {
        Ok(Some(header)) => header,
        _ => {
            counters.add(Count::Request);
            let _ = recv.stop(GIVEN_UP);
            let _ = send.reset(GIVEN_UP);
            return;
        }
    };
    let (status, why, taken) = match room.try_acquire_owned() {
        Err(_) => (STATUS_FULL, Bytes::new(), None),
        Ok(place) => {
            let (tunnel, carried) = Tunnel::far(from);
            match inbox.tunnel(from, header, tunnel) {
                Ok(()) => (STATUS_OK, Bytes::new(), Some((carried, place))),
                Err(refused) => {
                    let (status, why) = status_of(refused);
                    (status, why, None)
                }
            }
        }
    };
    let answered = timeout(HEADER_PATIENCE, answer(&mut send, status, why)).await;
    match taken {
        Some((carried, place)) if matches!(answered, Ok(Ok(()))) => {
            carry(carried, send, recv, place).await;
        }
        _ => {
            counters.add(Count::Request);
            let _ = send.finish();
            let _ = recv.stop(GIVEN_UP);
        }
    }
}

async fn read_header(recv: &mut RecvStream) -> Option<Bytes> {
    let mut length = [0; 2];
    recv.read_exact(&mut length).await.ok()?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > TUNNEL_HEADER_BYTES_MAX {
        return None;
    }
    let mut header = vec![0; length];
    recv.read_exact(&mut header).await.ok()?;
    Some(header.into())
}

/// What the user's side and the carrying task share.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something to send, or the user is gone.
    moved: Notify,
    /// The user is gone.
    left: Notify,
}

#[derive(Default)]
struct State {
    inbound: VecDeque<Bytes>,
    /// Of what is in `inbound`, and what was taken out since the last credit: together with what is on
    /// its way never more than the window.
    inbound_bytes: usize,
    freed: usize,
    inbound_end: Option<End>,
    reader: Option<Waker>,
    outbound: BytesMut,
    /// What was sent and has not been credited back: never more than the window.
    unread: usize,
    is_shut: bool,
    end_sent: bool,
    is_broken: bool,
    writer: Option<Waker>,
    is_dropped: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Clean,
    Lost,
}

/// The carrying task's side. However that ends, the user hears of it.
struct Carried(Arc<Shared>);

impl Drop for Carried {
    fn drop(&mut self) {
        self.0.lose();
    }
}

/// What is to be written next.
enum Next {
    Write(Vec<Bytes>),
    Wait,
    Done,
    Broken,
}

async fn carry(
    carried: Carried,
    mut send: SendStream,
    mut recv: RecvStream,
    _place: OwnedSemaphorePermit,
) {
    let shared = &*carried.0;
    let both = async {
        let mut reading = std::pin::pin!(read(shared, &mut recv));
        let mut writing = std::pin::pin!(write(shared, &mut send));
        let mut is_read = false;
        loop {
            tokio::select! {
                wrote = &mut writing => {
                    // Nobody there takes more; what has come, and still comes, is read.
                    if !wrote && !is_read {
                        reading.await;
                    }
                    return wrote;
                }
                () = &mut reading, if !is_read => is_read = true,
            }
        }
    };
    let is_whole = tokio::select! {
        is_whole = both => is_whole,
        () = lingered(shared) => false,
    };
    match is_whole {
        true => drop(send.finish()),
        false => drop(send.reset(GIVEN_UP)),
    }
    let _ = recv.stop(GIVEN_UP);
}

/// Writes pieces and credits until there is nothing more to say (`true`), or nobody to say it to.
async fn write(shared: &Shared, send: &mut SendStream) -> bool {
    loop {
        match shared.next() {
            Next::Write(mut pieces) => {
                if send.write_all_chunks(&mut pieces).await.is_err() {
                    shared.break_off();
                    return false;
                }
            }
            Next::Wait => shared.moved.notified().await,
            Next::Done => return true,
            Next::Broken => return false,
        }
    }
}

/// Reads pieces and credits until the peer has finished, or is not to be understood.
async fn read(shared: &Shared, recv: &mut RecvStream) {
    let read = read_pieces(shared, recv).await;
    if let Err(error) = read {
        tracing::debug!(%error, "a tunnel was lost");
    }
    shared.read_to_the_end();
}

async fn read_pieces(shared: &Shared, recv: &mut RecvStream) -> Result<(), PieceError> {
    loop {
        let mut word = [0; 4];
        match recv.read_exact(&mut word).await {
            Ok(()) => {}
            Err(ReadExactError::FinishedEarly(0)) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let word = u32::from_be_bytes(word);
        let length = (word & !CREDIT) as usize;
        if word & CREDIT != 0 {
            shared.credit(length)?;
            continue;
        }
        if length == 0 {
            shared.end_inbound(End::Clean);
            continue;
        }
        let mut left = length;
        while left > 0 {
            match recv.read_chunk(left, true).await? {
                Some(chunk) => {
                    left -= chunk.bytes.len();
                    shared.take_in(chunk.bytes)?;
                }
                None => return Err(ReadExactError::FinishedEarly(length - left).into()),
            }
        }
    }
}

/// Why a tunnel's bytes are not read any further.
#[derive(Debug, thiserror::Error)]
enum PieceError {
    #[error(transparent)]
    Lost(#[from] ReadExactError),
    #[error("the peer sent more than it had credit for")]
    NoCredit,
    #[error("the peer gave credit for more than it had taken")]
    Credit,
}

impl From<quinn::ReadError> for PieceError {
    fn from(error: quinn::ReadError) -> PieceError {
        PieceError::Lost(error.into())
    }
}

/// A user that is gone is waited for no longer than this, whatever it has left behind.
async fn lingered(shared: &Shared) {
    shared.left.notified().await;
    sleep(LINGER).await;
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it is held")
    }

    fn next(&self) -> Next {
        let mut state = self.lock();
        if state.is_broken {
            return Next::Broken;
        }
        let mut pieces = Vec::new();
        if state.freed >= CREDIT_AT_ONCE && state.inbound_end.is_none() && !state.is_dropped {
            let credit = CREDIT | std::mem::take(&mut state.freed) as u32;
            pieces.push(Bytes::copy_from_slice(&credit.to_be_bytes()));
        }
        let room = TUNNEL_WINDOW_BYTES - state.unread;
        let length = state.outbound.len().min(room).min(PIECE_BYTES_MAX);
        if length > 0 {
            state.unread += length;
            pieces.push(Bytes::copy_from_slice(&(length as u32).to_be_bytes()));
            pieces.push(state.outbound.split_to(length).freeze());
            wake(&mut state.writer);
        }
        let is_said = state.outbound.is_empty() && (state.is_shut || state.is_dropped);
        if is_said && !state.end_sent {
            state.end_sent = true;
            pieces.push(Bytes::from_static(&[0; 4]));
        }
        match pieces.is_empty() {
            false => Next::Write(pieces),
            true if state.end_sent && (state.inbound_end.is_some() || state.is_dropped) => {
                Next::Done
            }
            true => Next::Wait,
        }
    }

    fn take_in(&self, bytes: Bytes) -> Result<(), PieceError> {
        let mut state = self.lock();
        let held = state.inbound_bytes + state.freed + bytes.len();
        if held > TUNNEL_WINDOW_BYTES || state.inbound_end.is_some() {
            return Err(PieceError::NoCredit);
        }
        if state.is_dropped {
            return Ok(()); // nobody reads it, and no credit is given for more
        }
        state.inbound_bytes += bytes.len();
        state.inbound.push_back(bytes);
        wake(&mut state.reader);
        Ok(())
    }

    fn credit(&self, bytes: usize) -> Result<(), PieceError> {
        let mut state = self.lock();
        state.unread = state.unread.checked_sub(bytes).ok_or(PieceError::Credit)?;
        drop(state);
        self.moved.notify_one();
        Ok(())
    }

    fn end_inbound(&self, end: End) {
        let mut state = self.lock();
        state.inbound_end.get_or_insert(end);
        wake(&mut state.reader);
        drop(state);
        self.moved.notify_one();
    }

    /// The peer says nothing more: it has finished, or it is lost. Either way nobody gives credit.
    fn read_to_the_end(&self) {
        self.end_inbound(End::Lost);
        let mut state = self.lock();
        // A peer that finishes first has heard our end, or does not want to.
        if !state.end_sent || !state.outbound.is_empty() {
            drop(state);
            self.break_off();
        } else {
            wake(&mut state.writer);
        }
    }

    fn break_off(&self) {
        let mut state = self.lock();
        state.is_broken = true;
        state.outbound = BytesMut::new();
        wake(&mut state.writer);
        drop(state);
        self.moved.notify_one();
    }

    fn lose(&self) {
        self.end_inbound(End::Lost);
        self.break_off();
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_dropped = true;
        state.inbound = VecDeque::new();
        drop(state);
        self.0.moved.notify_one();
        self.0.left.notify_one();
    }
}

impl AsyncRead for Far {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        let mut taken = 0;
        while let Some(piece) = state.inbound.front_mut() {
            let length = piece.len().min(buf.remaining());
            if length == 0 {
                break;
            }
            buf.put_slice(&piece[..length]);
            piece.advance(length);
            taken += length;
            if piece.is_empty() {
                state.inbound.pop_front();
            }
        }
        if taken > 0 {
            state.inbound_bytes -= taken;
            state.freed += taken;
            let is_due = state.freed >= CREDIT_AT_ONCE;
            drop(state);
            if is_due {
                self.0.moved.notify_one();
            }
            return Poll::Ready(Ok(()));
        }
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        match state.inbound_end {
            Some(End::Clean) => Poll::Ready(Ok(())),
            Some(End::Lost) => Poll::Ready(Err(lost())),
            None => {
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for Far {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.0.lock();
        if state.is_broken || state.is_shut {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = OUTBOUND_BYTES_MAX.saturating_sub(state.outbound.len());
        let length = bytes.len().min(room);
        if length == 0 && !bytes.is_empty() {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.outbound.extend_from_slice(&bytes[..length]);
        drop(state);
        self.0.moved.notify_one();
        Poll::Ready(Ok(length))
    }

    /// What was written is on its way already.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().is_shut = true;
        self.0.moved.notify_one();
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.way {
            Way::Far(far) => Pin::new(far).poll_read(cx, buf),
            Way::Near(near) => Pin::new(near).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.way {
            Way::Far(far) => Pin::new(far).poll_write(cx, bytes),
            Way::Near(near) => Pin::new(near).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.way {
            Way::Far(far) => Pin::new(far).poll_flush(cx),
            Way::Near(near) => Pin::new(near).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.way {
            Way::Far(far) => Pin::new(far).poll_shutdown(cx),
            Way::Near(near) => Pin::new(near).poll_shutdown(cx),
        }
    }
}

fn lost() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionReset,
        "the way to the other node was lost",
    )
}

/// What a tunnel says of itself when it is opened: whose it is and what for.
pub const TUNNEL_HEADER_BYTES_MAX: usize = 4 * 1024;

/// Tunnels that one node has open to another. Each is a client's, and what it looks at costs the other
/// node some 20 MiB: these are 10 GiB.
pub const TUNNELS_MAX: usize = 512;
const _: () = assert!(2 * TUNNELS_MAX <= DATA_BIDI_STREAMS as usize); // some are just being refused

/// What a tunnel holds of bytes that nobody has read yet, each way: 2 ms at 1 Gbit/s, several round
/// trips within a building. All tunnels of a peer that stand still hold 128 MiB.
pub const TUNNEL_WINDOW_BYTES: usize = 256 * 1024;

/// What a writer may be ahead of its tunnel.
const OUTBOUND_BYTES_MAX: usize = 64 * 1024;

/// One piece: no more than a tunnel may put before the others.
const PIECE_BYTES_MAX: usize = 32 * 1024;

/// Credit is given for this much at a time: often enough that a sender never waits for a reader that
/// keeps up.
const CREDIT_AT_ONCE: usize = TUNNEL_WINDOW_BYTES / 4;

/// How long a peer may take with its header, or to take an answer.
const HEADER_PATIENCE: Duration = Duration::from_secs(5);

/// How long bytes of a user that is gone may take to leave: a client's last words are few.
const LINGER: Duration = Duration::from_secs(5);

/// Says that a word is a credit.
const CREDIT: u32 = 1 << 31;

const GIVEN_UP: VarInt = VarInt::from_u32(3);
