//! Frames out of a stream of bytes.
//!
//! Owns: a bounded buffer of what has arrived and is not yet a whole frame. Never reads the stream
//! itself, and never sets memory aside for bytes that are only announced.
//!
//! ```text
//! bytes ── push ──▶ [ …whole frames… | part of a frame ] ── poll ──▶ Frame
//! ```

use alloc::vec::Vec;

use super::{DecodeError, Frame, HEADER_BYTES};

/// Splits a stream into frames. Push bytes, then poll to `None`, and again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FrameSplitter {
    limit: usize,
    buffer: Vec<u8>,
    /// Everything before this has been polled.
    start: usize,
    failed: Option<DecodeError>,
}

impl FrameSplitter {
    /// A splitter for a stream whose frames have at most `limit` bytes, header included: the largest
    /// [`frame_bytes_max`](super::MessageType::frame_bytes_max) of the types that belong on it.
    pub fn new(limit: usize) -> FrameSplitter {
        FrameSplitter {
            limit: limit.max(HEADER_BYTES),
            buffer: Vec::new(),
            start: 0,
            failed: None,
        }
    }

    /// Takes bytes from the stream, and says how many: fewer than all when the buffer is full, and
    /// then at least one more after `poll` has said `None`. After an error it takes and forgets all.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        if self.failed.is_some() {
            return bytes.len();
        }
        let room = self.limit.max(READ_AHEAD_BYTES) - self.buffer.len();
        let taken = bytes.len().min(room);
        self.buffer.extend_from_slice(&bytes[..taken]);
        taken
    }

    /// The next whole frame, or `None` until more bytes come. An error ends the stream: every later
    /// poll repeats it.
    pub fn poll(&mut self) -> Result<Option<Frame<'_>>, DecodeError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let waiting = &self.buffer[self.start..];
        match Frame::split_within(waiting, self.limit) {
            // The frame is made anew from its place: one that borrows the buffer here would keep it
            // borrowed in the arms below.
            Ok((frame, _)) => {
                let begin = self.start + HEADER_BYTES;
                self.start = begin + frame.payload.len();
                let (kind, version) = (frame.kind, frame.version);
                Ok(Some(Frame {
                    kind,
                    version,
                    payload: &self.buffer[begin..self.start],
                }))
            }
            Err(DecodeError::Incomplete { .. }) => {
                // The part of a frame that is left moves to the front, once for each frame.
                self.buffer.drain(..self.start);
                self.start = 0;
                Ok(None)
            }
            Err(error) => {
                self.buffer = Vec::new();
                self.start = 0;
                self.failed = Some(error);
                Err(error)
            }
        }
    }

    /// Whether the stream may end here: no part of a frame waits for the rest of it.
    pub fn is_between_frames(&self) -> bool {
        self.failed.is_none() && self.start == self.buffer.len()
    }
}

/// Small frames that one read may bring together: about what a QUIC stream hands over at once.
const READ_AHEAD_BYTES: usize = 64 * 1024;
