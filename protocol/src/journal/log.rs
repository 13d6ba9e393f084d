//! The format of an event log.
//!
//! Owns: the header, the lines and their checksums. Never knows what an event means.
//!
//! A log begins with [`MAGIC`] and the format's version (two bytes, big-endian). Then lines follow:
//!
//! | bytes | field |
//! |---|---|
//! | 4 | length of the payload, big-endian |
//! | 4 | CRC-32C over the check before this one (the header's at first) and the length |
//! | length | the payload: one [`Line`] in CBOR |
//! | 4 | CRC-32C over the check before this one and the payload |
//!
//! Each check covers the one before it, so a line that is changed, lost or repeated is noticed where
//! it happened. The length has a check of its own, so that a log which a killed process left short is
//! never taken for a damaged one, nor the other way round.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::hash::{Hash, Hasher};

use crc::{Digest, Table};
use minicbor::{Decode, Encode};

use super::Sink;
use crate::time::Time;
use crate::wire::CRC32C;
use crate::wire::codec::{DIRECTORY_SNAPSHOT_FRAME_BYTES_MAX, decode_exact};

/// Begins every log. `F5` occurs in no UTF-8 text.
pub const MAGIC: [u8; 8] = *b"\xF5events\n";

/// The version of the format that is written here, and the only one that is read.
pub const FORMAT: u16 = 1;

/// The program whose machines are recorded here. Another's would decide otherwise.
pub const PROGRAM: &str = concat!("understudy ", env!("CARGO_PKG_VERSION"));

/// The longest log in bytes: about two hours of a node with a thousand calls a second, and what a
/// reader keeps in memory whole.
pub const LOG_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// The longest payload of a line: the longest event installs a directory.
pub const LINE_BYTES_MAX: usize = DIRECTORY_SNAPSHOT_FRAME_BYTES_MAX + 1024;

/// Which machine a log is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
#[allow(missing_docs)] // each is named like the machine
pub enum MachineKind {
    #[n(0)]
    Controller,
    #[n(1)]
    Agent,
    #[n(2)]
    LeaseHolder,
    #[n(3)]
    LeaseVoter,
    #[n(4)]
    Replica,
    #[n(5)]
    Warden,
    #[n(6)]
    Caller,
}

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Line<'b> {
    /// The first line, and no other: the machine was started.
    #[n(0)]
    Start {
        /// Which program recorded this: [`PROGRAM`].
        #[n(0)]
        program: &'b str,
        /// Which machine.
        #[n(1)]
        machine: MachineKind,
        /// When.
        #[cbor(n(2), with = "crate::time::as_nanos")]
        at: Time,
        /// What the machine was started with, in CBOR.
        #[cbor(n(3), with = "minicbor::bytes")]
        with: &'b [u8],
    },
    /// The machine was handed an event.
    #[n(1)]
    Event {
        /// When.
        #[cbor(n(0), with = "crate::time::as_nanos")]
        at: Time,
        /// The event, in CBOR.
        #[cbor(n(1), with = "minicbor::bytes")]
        event: &'b [u8],
    },
    /// It refused the event just before.
    #[n(2)]
    Refused,
    /// It was polled.
    #[n(3)]
    Actions {
        /// An [`ActionSum`] of each action, in order.
        #[n(0)]
        sums: Vec<u32>,
        /// Then it had no more.
        #[n(1)]
        drained: bool,
        /// Until when it then wanted to wait, in nanoseconds of its node's clock.
        #[n(2)]
        deadline: Option<u64>,
    },
    /// The last line, and no other.
    #[n(4)]
    Closed(#[n(0)] Closing),
}

/// Why a log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Closing {
    /// The machine was stopped.
    #[n(0)]
    Stopped,
    /// The log is as long as it may be; the machine went on.
    #[n(1)]
    Full,
}

/// A log that is being written.
pub struct LogWriter {
    /// `None` once it is closed.
    sink: Option<Box<dyn Sink>>,
    /// Bytes that may still be written.
    left: u64,
    check: u32,
    line: Vec<u8>,
}

impl LogWriter {
    /// A log of at most `limit` bytes; its header goes to `sink` at once.
    pub fn new(mut sink: Box<dyn Sink>, limit: u64) -> LogWriter {
        let header = header();
        sink.write(&header);
        LogWriter {
            sink: Some(sink),
            left: limit.saturating_sub(header.len() as u64),
            check: crate::wire::checksum(&header),
            line: Vec::new(),
        }
    }

    /// Writes a line, or closes the log as full when there is no room for it and the closing.
    pub fn write(&mut self, line: &Line<'_>) {
        if self.sink.is_some() && !self.try_write(line, CLOSING_BYTES_MAX) {
            self.close(Closing::Full);
        }
    }

    /// Whether nothing more is written: it was closed, or is full.
    pub fn is_closed(&self) -> bool {
        self.sink.is_none()
    }

    /// Writes the last line and lets go of the sink. Nothing happens the second time.
    pub fn close(&mut self, why: Closing) {
        self.try_write(&Line::Closed(why), 0);
        self.sink = None;
    }

    fn try_write(&mut self, line: &Line<'_>, spared: u64) -> bool {
        let Some(sink) = &mut self.sink else {
            return false;
        };
        self.line.clear();
        self.line.extend_from_slice(&[0; HEAD_BYTES]);
        minicbor::encode(line, &mut self.line).expect("a vector takes every byte");
        let length = self.line.len() - HEAD_BYTES;
        let whole = (self.line.len() + CHECK_BYTES) as u64;
        if length > LINE_BYTES_MAX || whole + spared > self.left {
            shrink(&mut self.line);
            return false;
        }
        let length = (length as u32).to_be_bytes(); // below its limit, so below 4 GiB
        let head = check(self.check, &length);
        self.check = check(head, &self.line[HEAD_BYTES..]);
        self.line[..4].copy_from_slice(&length);
        self.line[4..HEAD_BYTES].copy_from_slice(&head.to_be_bytes());
        self.line.extend_from_slice(&self.check.to_be_bytes());
        self.left -= whole;
        sink.write(&self.line);
        shrink(&mut self.line);
        true
    }
}

/// Why bytes are no log, or not from here on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It does not begin like one.
    #[error("this is no event log")]
    NotALog,
    /// Another version of the format.
    #[error("the log has format {seen}; this program reads format {FORMAT} only")]
    OtherFormat {
        /// The version in the header.
        seen: u16,
    },
    /// A check does not fit: what was written here was changed afterwards. The lines before it are
    /// whole.
    #[error("the log is damaged at byte {at}: a check does not fit")]
    Damaged {
        /// Where the line begins.
        at: usize,
    },
    /// The checks fit, but this is no line. It was written like this, by another program.
    #[error("the line at byte {at} is not one that this program writes")]
    BadLine {
        /// Where the line begins.
        at: usize,
    },
    /// The log ends inside a line, as one does whose process was killed. The lines before it are
    /// whole.
    #[error("the log ends inside the line at byte {at}")]
    Cut {
        /// Where the line begins.
        at: usize,
    },
    /// Something follows the last line.
    #[error("the log goes on at byte {at}, after its last line")]
    Trailing {
        /// Where.
        at: usize,
    },
}

/// Reads a log line by line.
#[derive(Clone, Debug)]
pub struct LogReader<'b> {
    bytes: &'b [u8],
    at: usize,
    check: u32,
    closed: bool,
}

impl<'b> LogReader<'b> {
    /// A reader of the log that `bytes` are, behind its header.
    pub fn new(bytes: &'b [u8]) -> Result<LogReader<'b>, ReadError> {
        let known = &bytes[..bytes.len().min(MAGIC.len())];
        if !MAGIC.starts_with(known) || known.is_empty() {
            return Err(ReadError::NotALog);
        }
        let Some((header, _)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(ReadError::Cut { at: 0 });
        };
        let seen = u16::from_be_bytes([header[MAGIC.len()], header[MAGIC.len() + 1]]);
        if seen != FORMAT {
            return Err(ReadError::OtherFormat { seen });
        }
        Ok(LogReader {
            bytes,
            at: HEADER_BYTES,
            check: crate::wire::checksum(header),
            closed: false,
        })
    }

    /// The next line; `None` behind the last one, whether or not that is [`Line::Closed`].
    pub fn next_line(&mut self) -> Result<Option<Line<'b>>, ReadError> {
        let at = self.at;
        let rest = &self.bytes[at..];
        if rest.is_empty() {
            return Ok(None);
        }
        if self.closed {
            return Err(ReadError::Trailing { at });
        }
        let cut = ReadError::Cut { at };
        let (head, rest) = rest.split_first_chunk::<HEAD_BYTES>().ok_or(cut)?;
        let &[l0, l1, l2, l3, c0, c1, c2, c3] = head;
        let length = [l0, l1, l2, l3];
        let head = check(self.check, &length);
        let length = u32::from_be_bytes(length) as usize;
        if head != u32::from_be_bytes([c0, c1, c2, c3]) || length > LINE_BYTES_MAX {
            return Err(ReadError::Damaged { at });
        }
        let (payload, rest) = rest.split_at_checked(length).ok_or(cut)?;
        let (seen, rest) = rest.split_first_chunk::<CHECK_BYTES>().ok_or(cut)?;
        let whole = check(head, payload);
        if whole != u32::from_be_bytes(*seen) {
            return Err(ReadError::Damaged { at });
        }
        let line = decode_exact(payload).map_err(|_| ReadError::BadLine { at })?;
        self.check = whole;
        self.at = self.bytes.len() - rest.len();
        self.closed = matches!(line, Line::Closed(_));
        Ok(Some(line))
    }
}

/// What a log keeps of an action: a CRC-32C over what its `Hash` says, numbers being written alike
/// on every machine.
pub struct ActionSum(Digest<'static, u32, Table<16>>);

impl ActionSum {
    /// The checksum of `action`.
    pub fn of(action: &impl Hash) -> u32 {
        let mut sum = ActionSum(CRC32C.digest());
        action.hash(&mut sum);
        sum.0.finalize()
    }
}

impl Hasher for ActionSum {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn write_u16(&mut self, number: u16) {
        self.write(&number.to_le_bytes());
    }

    fn write_u32(&mut self, number: u32) {
        self.write(&number.to_le_bytes());
    }

    fn write_u64(&mut self, number: u64) {
        self.write(&number.to_le_bytes());
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn finish(&self) -> u64 {
        self.0.clone().finalize().into()
    }
}

fn header() -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let (magic, format) = header.split_at_mut(MAGIC.len());
    magic.copy_from_slice(&MAGIC);
    format.copy_from_slice(&FORMAT.to_be_bytes());
    header
}

fn check(before: u32, bytes: &[u8]) -> u32 {
    let mut digest = CRC32C.digest();
    digest.update(&before.to_be_bytes());
    digest.update(bytes);
    digest.finalize()
}

/// Gives back what one very long event has taken.
pub(super) fn shrink(buffer: &mut Vec<u8>) {
    if buffer.capacity() > BUFFER_BYTES_KEPT {
        *buffer = Vec::new();
    }
}

const HEADER_BYTES: usize = MAGIC.len() + 2;

/// A line's length and the check of it.
const HEAD_BYTES: usize = 8;

const CHECK_BYTES: usize = 4;

/// Room that is spared for [`Line::Closed`]: its payload takes four bytes.
const CLOSING_BYTES_MAX: u64 = 32;

/// Nearly every event is shorter than the longest replica message.
const BUFFER_BYTES_KEPT: usize = 2 * 1024 * 1024;
