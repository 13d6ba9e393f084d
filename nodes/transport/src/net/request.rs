//! Requests between two nodes: one bidirectional stream each, on the connection of the truth plane.
//!
//! Owns: their framing, their limits and their deadlines. Never repeats one: after an error other
//! than [`RequestError::Full`] and [`RequestError::TooLong`] the peer may have served it.
//!
//! ```text
//! asker ── kind u8, patience u32 ms, length u32, body ──▶ peer
//!       ◀── status u8, length u32, body ─────────────────
//! ```
//! Integers are big-endian. Kind [`STREAM_KIND`] opens a lasting stream instead: after that one byte
//! it belongs to whoever opened it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{ReadExactError, RecvStream, SendStream, VarInt};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use understudy_protocol::id::NodeId;

use super::peers::Route;
use super::{Inbox, PeerStream};
use crate::counters::{Count, Counters};

/// Why a peer did not serve a request. It says so itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestRefused {
    /// It does not know the kind, or does not serve it now. Nothing was done.
    #[error("the peer does not serve this kind of request")]
    NotServed,
    /// It serves as many as it can. Nothing was done; ask again later.
    #[error("the peer is serving as many requests as it can")]
    Full,
    /// It tried and failed, or says no. What was done depends on the kind.
    #[error("{0}")]
    Failed(String),
}

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The peer is not connected. It has not seen the request.
    #[error("the peer is not connected")]
    NoPeer,
    /// Too many requests to that peer wait for answers. It has not seen this one.
    #[error("too many requests to the peer are under way")]
    Full,
    /// Nothing came in time. The peer may have served it, or may yet.
    #[error("no answer in time")]
    TimedOut,
    /// The connection ended, or the peer gave the stream up. It may have served it.
    #[error("the connection was lost")]
    Lost,
    /// The body is above [`REQUEST_BYTES_MAX`], or a tunnel's header above
    /// [`TUNNEL_HEADER_BYTES_MAX`](super::TUNNEL_HEADER_BYTES_MAX). The peer has not seen it.
    #[error("{0} bytes are above the limit")]
    TooLong(usize),
    /// The peer answered no.
    #[error(transparent)]
    Refused(#[from] RequestRefused),
}

/// Asks, and waits for the answer. Dropping the future takes the request back as far as possible.
pub(crate) async fn ask(
    route: &Route,
    kind: u8,
    body: Bytes,
    patience: Duration,
) -> Result<Bytes, RequestError> {
    if body.len() > REQUEST_BYTES_MAX {
        return Err(RequestError::TooLong(body.len()));
    }
    let _permit = route
        .requests
        .try_acquire()
        .map_err(|_| RequestError::Full)?;
    timeout(patience, exchange(route, kind, body, patience))
        .await
        .unwrap_or(Err(RequestError::TimedOut))
}

async fn exchange(
    route: &Route,
    kind: u8,
    body: Bytes,
    patience: Duration,
) -> Result<Bytes, RequestError> {
    let lost = |_| RequestError::Lost;
    let (send, recv) = route.truth.open_bi().await.map_err(lost)?;
    let mut both = Unfinished { send, recv };
    let mut header = [0; REQUEST_HEADER_BYTES];
    header[0] = kind;
    let patience_ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
    header[1..5].copy_from_slice(&patience_ms.to_be_bytes());
    header[5..9].copy_from_slice(&(body.len() as u32).to_be_bytes());
    // A peer that refuses does not read on: then its answer says more than the failed write.
    let wrote = async {
        both.send.write_all(&header).await?;
        both.send.write_chunk(body).await
    };
    let wrote = wrote.await;
    if wrote.is_ok() {
        let _ = both.send.finish();
    }

    read_answer(&mut both.recv).await
}

/// Reads what [`answer`] has written.
pub(crate) async fn read_answer(recv: &mut RecvStream) -> Result<Bytes, RequestError> {
    let mut header = [0; ANSWER_HEADER_BYTES];
    let header_read = recv.read_exact(&mut header).await;
    header_read.map_err(|_| RequestError::Lost)?;
    let [status, length @ ..] = header;
    let length = u32::from_be_bytes(length) as usize;
    if length > REQUEST_BYTES_MAX {
        return Err(RequestError::Lost);
    }
    let body = read_body(recv, length)
        .await
        .map_err(|_| RequestError::Lost)?;
    match status {
        STATUS_OK => Ok(body),
        STATUS_NOT_SERVED => Err(RequestRefused::NotServed.into()),
        STATUS_FULL => Err(RequestRefused::Full.into()),
        _ => {
            let text = String::from_utf8_lossy(&body).into_owned();
            Err(RequestRefused::Failed(text).into())
        }
    }
}

/// Gives both directions up when it is dropped; a finished one is not touched by that.
struct Unfinished {
    send: SendStream,
    recv: RecvStream,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = self.send.reset(GIVEN_UP);
        let _ = self.recv.stop(GIVEN_UP);
    }
}

/// What bounds the requests of one peer while they are served.
pub(crate) struct Serving {
    all: Arc<Semaphore>,
    long: Arc<Semaphore>,
}

impl Serving {
    pub(crate) fn new() -> Serving {
        Serving {
            all: Arc::new(Semaphore::new(REQUESTS_SERVED_MAX)),
            long: Arc::new(Semaphore::new(LONG_AT_ONCE_MAX)),
        }
    }
}

/// Serves one stream that a peer has opened.
pub(crate) async fn serve(
    mut send: SendStream,
    mut recv: RecvStream,
    from: NodeId,
    serving: Arc<Serving>,
    inbox: Arc<dyn Inbox>,
    counters: Arc<Counters>,
) {
    let mut kind = [0];
    match timeout(SERVE_PATIENCE_MAX, recv.read_exact(&mut kind)).await {
        Ok(Ok(())) => {}
        _ => return,
    }
    if kind[0] == STREAM_KIND {
        inbox.stream(from, PeerStream::new(send, recv, from));
        return;
    }
    let Ok(_permit) = serving.all.try_acquire() else {
        counters.add(Count::Request);
        let _ = recv.stop(GIVEN_UP);
        let _ = answer(&mut send, STATUS_FULL, Bytes::new()).await;
        let _ = send.finish();
        return;
    };
    let served = async {
        let mut header = [0; REQUEST_HEADER_BYTES - 1];
        recv.read_exact(&mut header).await.ok()?;
        let [p0, p1, p2, p3, l0, l1, l2, l3] = header;
        let patience = Duration::from_millis(u32::from_be_bytes([p0, p1, p2, p3]).into());
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        if length > REQUEST_BYTES_MAX {
            return None;
        }
        let _long = match length > SHORT_BYTES_MAX {
            true => serving.long.acquire().await.ok(),
            false => None,
        };
        let body = read_body(&mut recv, length).await.ok()?;
        let patience = patience.min(SERVE_PATIENCE_MAX);
        // The asker's own clock ends it, as a rule; this ends what is left of a lost asker.
        let patience = patience + SERVE_GRACE;
        let result = timeout(patience, inbox.request(from, kind[0], body));
        tokio::select! {
            result = result => Some(result.ok()?),
            _ = send.stopped() => None,
        }
    };
    let result = match timeout(SERVE_PATIENCE_MAX + SERVE_GRACE, served).await {
        Ok(Some(result)) => result,
        _ => {
            counters.add(Count::Request);
            let _ = recv.stop(GIVEN_UP);
            let _ = send.reset(GIVEN_UP);
            return;
        }
    };
    let (status, body) = match result {
        Ok(body) if body.len() <= REQUEST_BYTES_MAX => (STATUS_OK, body),
        Ok(_) => (STATUS_FAILED, Bytes::from_static(b"the answer is too long")),
        Err(refused) => status_of(refused),
    };
    // A peer that does not read its answer holds the permit until here, and no longer.
    let _ = timeout(SERVE_PATIENCE_MAX, answer(&mut send, status, body)).await;
    let _ = send.finish();
}

/// A refusal as it is written.
pub(crate) fn status_of(refused: RequestRefused) -> (u8, Bytes) {
    match refused {
        RequestRefused::NotServed => (STATUS_NOT_SERVED, Bytes::new()),
        RequestRefused::Full => (STATUS_FULL, Bytes::new()),
        RequestRefused::Failed(mut text) => {
            text.truncate(text.floor_char_boundary(REFUSAL_BYTES_MAX));
            (STATUS_FAILED, text.into())
        }
    }
}

/// Writes an answer; the stream stays open.
pub(crate) async fn answer(
    send: &mut SendStream,
    status: u8,
    body: Bytes,
) -> Result<(), quinn::WriteError> {
    let mut header = [status, 0, 0, 0, 0];
    header[1..].copy_from_slice(&(body.len() as u32).to_be_bytes());
    send.write_all(&header).await?;
    send.write_chunk(body).await
}

/// `length` bytes. Memory grows as they come, not as they are announced.
async fn read_body(recv: &mut RecvStream, length: usize) -> Result<Bytes, ReadExactError> {
    let mut body = Vec::new();
    while body.len() < length {
        let left = length - body.len();
        match recv.read_chunk(left, true).await? {
            Some(chunk) => body.extend_from_slice(&chunk.bytes),
            None => return Err(ReadExactError::FinishedEarly(body.len())),
        }
    }
    Ok(body.into())
}

/// A request's or an answer's body: pieces of a directory's snapshot, and nothing longer.
pub const REQUEST_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Requests to one peer that wait for answers: Raft has one to each peer under way, and callers come
/// in tens.
pub const REQUESTS_AT_ONCE_MAX: usize = 128;

/// Requests of one peer that are served: twice as many, since one that was given up is still being
/// taken back here when its asker asks the next.
const REQUESTS_SERVED_MAX: usize = 2 * REQUESTS_AT_ONCE_MAX;

/// A body that is long takes one of few turns: so a peer's requests hold 80 MiB at most.
const SHORT_BYTES_MAX: usize = 64 * 1024;
const LONG_AT_ONCE_MAX: usize = 4;

/// However patient the asker says it is.
const SERVE_PATIENCE_MAX: Duration = Duration::from_secs(60);

/// What a request on its way back takes, so that the asker sees its own deadline and not a reset.
const SERVE_GRACE: Duration = Duration::from_secs(1);

/// A refusal's text.
const REFUSAL_BYTES_MAX: usize = 1_024;

/// Opens a lasting stream; no kind of request.
pub const STREAM_KIND: u8 = 255;

const REQUEST_HEADER_BYTES: usize = 9;
const ANSWER_HEADER_BYTES: usize = 5;

pub(crate) const STATUS_OK: u8 = 0;
const STATUS_NOT_SERVED: u8 = 1;
pub(crate) const STATUS_FULL: u8 = 2;
const STATUS_FAILED: u8 = 3;

const GIVEN_UP: VarInt = VarInt::from_u32(3);
