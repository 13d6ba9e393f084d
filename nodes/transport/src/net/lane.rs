//! Lanes: frames to one peer, in order on each lane.
//!
//! Owns: the bounded queue of each lane, the task that writes it, and the task that reads a peer's.
//! Never holds more than its limits, and never drops a frame that it took while the link stands: a
//! receiver that is full makes its senders full.
//!
//! ```text
//! send() ─▶ queue (bytes) ─▶ writer ═ QUIC stream ═▶ reader ─▶ Inbox::frame
//!   ▲ Full      ◀────────────── no credit ◀───────── waits while the inbox is Full
//! ```
//!
//! The credits are QUIC's own stream windows: a reader takes bytes off its stream only as the inbox
//! takes frames, so a peer may be ahead of a full inbox by one stream window and no more. Then its
//! writer waits, its queue fills, and its `send` says `Full`. The windows of all lanes together fit
//! the connection's (`tls`), so one lane that stands still takes nothing from the others.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use quinn::{Connection, RecvStream, SendStream, VarInt, WriteError};
use tokio::sync::Notify;
use understudy_protocol::id::NodeId;
use understudy_protocol::wire::codec::{
    DIRECTORY_COMMAND_FRAME_BYTES_MAX, DecodeError, Frame, HEADER_BYTES, MessageType,
};

use super::{Inbox, SendError};
use crate::counters::{Count, Counters};

/// Which lane a frame takes. Frames of one lane arrive in the order in which they were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// One of the [`HASHED_LANES`], by this hash: of the unit, so that a unit's frames keep order.
    Of(u64),
    /// Content in pieces, which may wait behind other content.
    Bulk,
}

impl Lane {
    fn index(self) -> usize {
        match self {
            Lane::Of(hash) => (hash % HASHED_LANES as u64) as usize,
            Lane::Bulk => HASHED_LANES,
        }
    }

    /// The longest frame that the lane takes, in bytes, its header included.
    pub const fn frame_bytes_max(self) -> usize {
        match self {
            Lane::Of(_) => LANE_FRAME_BYTES_MAX,
            Lane::Bulk => BULK_FRAME_BYTES_MAX,
        }
    }
}

/// The sending side of all lanes to one peer, for the life of one connection.
pub(crate) struct Lanes {
    queues: [Queue; LANES],
}

struct Queue {
    waiting: Mutex<Waiting>,
    filled: Notify,
}

#[derive(Default)]
struct Waiting {
    frames: VecDeque<Bytes>,
    bytes: usize,
    closed: bool,
}

impl Lanes {
    pub(crate) fn new() -> Lanes {
        Lanes {
            queues: std::array::from_fn(|_| Queue {
                waiting: Mutex::default(),
                filled: Notify::new(),
            }),
        }
    }

    pub(crate) fn send(&self, lane: Lane, frame: Bytes) -> Result<(), SendError> {
        let limit = lane.frame_bytes_max();
        if frame.len() > limit {
            return Err(SendError::TooLong {
                length: frame.len(),
                limit,
            });
        }
        debug_assert!(Frame::split(&frame).is_ok_and(|(_, rest)| rest.is_empty()));
        let queue = &self.queues[lane.index()];
        let cost = frame.len() + FRAME_OVERHEAD_BYTES;
        let mut waiting = queue.lock();
        if waiting.closed {
            return Err(SendError::NoPeer);
        }
        if waiting.bytes + cost > LANE_QUEUE_BYTES_MAX {
            return Err(SendError::Full {
                retry_after: FULL_RETRY,
            });
        }
        waiting.bytes += cost;
        waiting.frames.push_back(frame);
        let was_empty = waiting.frames.len() == 1;
        drop(waiting);
        if was_empty {
            queue.filled.notify_one();
        }
        Ok(())
    }

    /// The link is over: what waits is forgotten, and later sends find no peer.
    pub(crate) fn close(&self) {
        for queue in &self.queues {
            let mut waiting = queue.lock();
            waiting.closed = true;
            waiting.frames = VecDeque::new();
            waiting.bytes = 0;
        }
    }
}

impl Queue {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting
            .lock()
            .expect("nothing panics while it is held")
    }

    /// Everything that waits, up to [`WRITE_BYTES_MAX`] or one frame: small frames are copied into
    /// one piece, since each piece costs QUIC more than the copy.
    async fn take(&self) -> Vec<Bytes> {
        loop {
            let pieces = self.take_now();
            if !pieces.is_empty() {
                return pieces;
            }
            self.filled.notified().await;
        }
    }

    fn take_now(&self) -> Vec<Bytes> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        let mut waiting = self.lock();
        let mut small = BytesMut::with_capacity(waiting.bytes.min(WRITE_BYTES_MAX));
        while let Some(frame) = waiting.frames.front() {
            if bytes > 0 && bytes + frame.len() > WRITE_BYTES_MAX {
                break;
            }
            bytes += frame.len();
            let Some(frame) = waiting.frames.pop_front() else {
                break;
            };
            waiting.bytes -= frame.len() + FRAME_OVERHEAD_BYTES;
            if frame.len() <= COPIED_BYTES_MAX {
                small.extend_from_slice(&frame);
                continue;
            }
            if !small.is_empty() {
                taken.push(small.split().freeze());
            }
            taken.push(frame);
        }
        drop(waiting);
        if !small.is_empty() {
            taken.push(small.freeze());
        }
        taken
    }
}

/// Writes lane `index` until the connection ends.
pub(crate) async fn write_lane(connection: Connection, lanes: Arc<Lanes>, index: usize) {
    let mut stream: Option<SendStream> = None;
    loop {
        let mut pieces = lanes.queues[index].take().await;
        let open = match &mut stream {
            Some(open) => open,
            None => match open_lane(&connection, index).await {
                Ok(opened) => stream.insert(opened),
                Err(_) => return,
            },
        };
        match open.write_all_chunks(&mut pieces).await {
            Ok(()) => {}
            Err(WriteError::Stopped(code)) => {
                // The peer could not find the next frame. What it had not read is lost, like with a
                // lost connection; the next frames begin a new stream.
                tracing::warn!(lane = index, %code, "the peer reset a lane; it begins anew");
                stream = None;
                tokio::time::sleep(REOPEN_PAUSE).await;
            }
            Err(_) => return,
        }
    }
}

async fn open_lane(connection: &Connection, index: usize) -> Result<SendStream, WriteError> {
    let mut stream = connection.open_uni().await?;
    if index == HASHED_LANES {
        let _ = stream.set_priority(BULK_PRIORITY);
    }
    stream.write_all(&[index as u8]).await?;
    Ok(stream)
}

/// Which of a peer's lanes are being read.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    lanes: [AtomicBool; LANES],
}

/// Reads one stream of a peer's until it ends, or until its next frame cannot be found.
pub(crate) async fn read_lane(
    mut stream: RecvStream,
    from: NodeId,
    reading: Arc<Reading>,
    inbox: Arc<dyn Inbox>,
    counters: Arc<Counters>,
) {
    let mut index = [0];
    if stream.read_exact(&mut index).await.is_err() {
        return;
    }
    let index = usize::from(index[0]);
    let is_free = |taken: &AtomicBool| !taken.swap(true, Ordering::AcqRel);
    if !reading.lanes.get(index).is_some_and(is_free) {
        counters.add(Count::Lane);
        if counters.may_log() {
            tracing::warn!(%from, index, "a peer opened a lane that is open, or that is none");
        }
        let _ = stream.stop(STOP_NO_LANE);
        return;
    }
    let limit = match index {
        HASHED_LANES => BULK_FRAME_BYTES_MAX,
        _ => LANE_FRAME_BYTES_MAX,
    };
    let result = read_frames(&mut stream, limit, from, inbox, &counters).await;
    reading.lanes[index].store(false, Ordering::Release);
    if let Err(error) = result {
        counters.add(Count::Lane);
        if counters.may_log() {
            tracing::warn!(%from, lane = index, %error, "a lane was reset");
        }
        let _ = stream.stop(STOP_NO_FRAME);
    }
}

async fn read_frames(
    stream: &mut RecvStream,
    limit: usize,
    from: NodeId,
    inbox: Arc<dyn Inbox>,
    counters: &Counters,
) -> Result<(), DecodeError> {
    let mut buffer = BytesMut::new();
    loop {
        match next_frame(&mut buffer, limit)? {
            Next::Frame(frame) => hand_over(frame, from, &*inbox).await,
            Next::Unknown(kind) => {
                counters.add(Count::Frame);
                tracing::debug!(%from, kind, "a frame of a type that this version does not know");
            }
            Next::More => match stream.read_chunk(READ_BYTES_MAX, true).await {
                Ok(Some(chunk)) => buffer.extend_from_slice(&chunk.bytes),
                Ok(None) | Err(_) => return Ok(()), // the link says why; half a frame goes with it
            },
        }
    }
}

/// Waits while the inbox is full. Meanwhile nothing is read, so the peer's credit runs out.
async fn hand_over(frame: Bytes, from: NodeId, inbox: &dyn Inbox) {
    let mut pause = FULL_PAUSE_MIN;
    while inbox.frame(from, frame.clone()).is_err() {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(FULL_PAUSE_MAX);
    }
}

enum Next {
    Frame(Bytes),
    Unknown(u8),
    More,
}

/// The frame at the front of `buffer`, taken out of it. An error ends the stream.
fn next_frame(buffer: &mut BytesMut, limit: usize) -> Result<Next, DecodeError> {
    let (length, kind) = match Frame::split(buffer) {
        Ok((frame, rest)) => (buffer.len() - rest.len(), frame.kind()),
        Err(DecodeError::Incomplete { needed }) => {
            let length = buffer.len() + needed; // of the header, until that is there
            return match length > limit {
                true => Err(too_long(length, limit)),
                false => Ok(Next::More),
            };
        }
        Err(error) => return Err(error),
    };
    if length > limit {
        return Err(too_long(length, limit));
    }
    debug_assert!(length >= HEADER_BYTES);
    if let Err(DecodeError::UnknownType { seen }) = kind {
        buffer.advance(length);
        return Ok(Next::Unknown(seen));
    }
    // A small frame is copied: one that shared its buffer would keep all of that alive. The buffer
    // then only moves on, where a split would make it shared and count its owners.
    let frame = match length <= COPIED_BYTES_MAX {
        true => {
            let frame = Bytes::copy_from_slice(&buffer[..length]);
            buffer.advance(length);
            frame
        }
        false => buffer.split_to(length).freeze(),
    };
    Ok(Next::Frame(frame))
}

fn too_long(length: usize, limit: usize) -> DecodeError {
    DecodeError::TooLong {
        length: length as u64,
        limit,
    }
}

/// Lanes by hash, each way. More would make smaller writes, fewer would let one slow unit's frames
/// stand before more of the others'.
pub const HASHED_LANES: usize = 8;

/// And the bulk lane.
pub(crate) const LANES: usize = HASHED_LANES + 1;

/// The longest frame on a hashed lane: a call, or a replica message.
pub const LANE_FRAME_BYTES_MAX: usize = {
    let call = MessageType::Envelope.frame_bytes_max();
    let replica = MessageType::ReplicaRequest.frame_bytes_max();
    if call > replica { call } else { replica }
};

/// The longest frame on the bulk lane. Anything larger goes in pieces; a directory's snapshot goes in
/// the body of a request.
pub const BULK_FRAME_BYTES_MAX: usize = DIRECTORY_COMMAND_FRAME_BYTES_MAX;

/// What may wait on one lane, in bytes, a little for each frame's handle included: the longest
/// frame and as much again. Nine lanes to one peer hold at most 72 MiB, when it takes nothing.
pub const LANE_QUEUE_BYTES_MAX: usize = 8 * 1024 * 1024;
const _: () = assert!(2 * BULK_FRAME_BYTES_MAX <= LANE_QUEUE_BYTES_MAX);

/// What a waiting frame takes beside its bytes: its handle and its share of the allocator.
const FRAME_OVERHEAD_BYTES: usize = 64;

/// One write: enough to fill many packets, and no more than a lane may put before the others.
const WRITE_BYTES_MAX: usize = 64 * 1024;

/// One read.
const READ_BYTES_MAX: usize = 64 * 1024;

/// Copying this much costs less than keeping a piece of its own.
const COPIED_BYTES_MAX: usize = 16 * 1024;

/// What a refused sender is told: about what a peer needs for a full queue at 10 Gbit/s.
const FULL_RETRY: Duration = Duration::from_millis(10);

/// How soon a full inbox is asked again: soon at first, then rarely enough to cost nothing.
const FULL_PAUSE_MIN: Duration = Duration::from_millis(1);
const FULL_PAUSE_MAX: Duration = Duration::from_millis(16);

/// Between two streams of one lane, so that a fault that repeats itself does not spin.
const REOPEN_PAUSE: Duration = Duration::from_millis(50);

/// Bulk waits for everything else of its connection.
const BULK_PRIORITY: i32 = -1;

const STOP_NO_FRAME: VarInt = VarInt::from_u32(1);
const STOP_NO_LANE: VarInt = VarInt::from_u32(2);
