//! Death notes in the clear, beside QUIC on one socket.
//!
//! Owns: the layout of a plain datagram, and the split of what the socket receives. Never takes
//! anything but a death note this way, and never more of them than a rate allows: the note proves
//! itself, and a warden has no connection, no certificate, and no time to get either.
//!
//! A plain datagram is the byte `01` and one frame of a [`HeartMessage`]. Every QUIC packet has the
//! bit `40` of its first byte set (RFC 9000, section 17; greasing it, RFC 9287, is off on this
//! endpoint), so the two cannot be mistaken for each other (RFC 9443).

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::mpsc;
use understudy_protocol::wire::codec::{
    EncodeError, HEART_FRAME_BYTES_MAX, decode_whole, encode_frame,
};
use understudy_protocol::wire::heart::{DeathNote, HeartMessage};

use super::Received;
use crate::counters::{Allowance, Count, Counters};

/// Why a death note was not sent to some address. It was sent to the others.
#[derive(Debug, thiserror::Error)]
pub enum NoteError {
    /// It does not fit a datagram; it was sent to nobody.
    #[error(transparent)]
    TooLong(#[from] EncodeError),
    /// The kernel refused, for this address.
    #[error("a death note was not sent to {address}: {error}")]
    Send {
        /// To whom.
        address: SocketAddr,
        /// Why not.
        error: io::Error,
    },
}

/// The datagram that carries a note in the clear.
pub fn plain_note(note: &DeathNote) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = vec![PLAIN_MARK];
    encode_frame(&HeartMessage::DeathNote(note.clone()), &mut bytes)?;
    Ok(bytes)
}

/// Sends a note to the hearts at these addresses, once each, from a socket of its own. Needs no
/// runtime. Goes on after an error and returns the last; datagrams may be lost, so the caller
/// repeats it until it hears that the note was taken.
pub fn send_note_plain(addresses: &[SocketAddr], note: &DeathNote) -> Result<(), NoteError> {
    let bytes = plain_note(note)?;
    let mut result = Ok(());
    for &address in addresses {
        let from: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let sent = UdpSocket::bind(from).and_then(|socket| socket.send_to(&bytes, address));
        if let Err(error) = sent {
            result = Err(NoteError::Send { address, error });
        }
    }
    result
}

/// A socket that keeps plain datagrams from QUIC.
pub(crate) struct Split {
    inner: Arc<dyn AsyncUdpSocket>,
    out: mpsc::Sender<Received>,
    counters: Arc<Counters>,
    allowance: Allowance,
}

impl Split {
    pub(crate) fn new(
        inner: Arc<dyn AsyncUdpSocket>,
        out: mpsc::Sender<Received>,
        counters: Arc<Counters>,
    ) -> Split {
        Split {
            inner,
            out,
            counters,
            allowance: Allowance::new(PLAIN_PER_SECOND_MAX),
        }
    }

    fn take_plain(&self, datagram: &[u8]) {
        if !self.allowance.take() {
            self.counters.add(Count::Limited);
            return;
        }
        let taken = match read_plain(datagram) {
            Some(note) => self
                .out
                .try_send((None, HeartMessage::DeathNote(note)))
                .is_ok(),
            None => false,
        };
        if !taken {
            self.counters.add(Count::Datagram);
        }
    }

    /// Takes the plain datagrams out of one buffer, which may hold several of `stride` bytes (the
    /// last may be shorter), and says how many bytes of QUIC are left at its front.
    fn keep_quic(&self, buffer: &mut [u8], stride: usize) -> usize {
        if !buffer.chunks(stride).any(is_plain) {
            return buffer.len(); // as a rule
        }
        let mut kept = 0;
        let mut start = 0;
        while start < buffer.len() {
            let end = (start + stride).min(buffer.len());
            if is_plain(&buffer[start..end]) {
                self.take_plain(&buffer[start..end]);
            } else {
                buffer.copy_within(start..end, kept);
                kept += end - start;
            }
            start = end;
        }
        kept
    }
}

impl AsyncUdpSocket for Split {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.inner.poll_recv(cx, bufs, meta))?;
        for (buffer, meta) in bufs.iter_mut().zip(meta.iter_mut()).take(count) {
            let filled = meta.len.min(buffer.len());
            meta.len = self.keep_quic(&mut buffer[..filled], meta.stride.max(1));
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

impl fmt::Debug for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Split").field(&self.inner).finish()
    }
}

fn is_plain(datagram: &[u8]) -> bool {
    datagram.first() == Some(&PLAIN_MARK)
}

fn read_plain(datagram: &[u8]) -> Option<DeathNote> {
    let frame = datagram.strip_prefix(&[PLAIN_MARK])?;
    if frame.len() > HEART_FRAME_BYTES_MAX {
        return None;
    }
    match decode_whole(frame) {
        Ok(HeartMessage::DeathNote(note)) => Some(note),
        _ => None,
    }
}

/// Looking at one costs a checksum and a short decode, together about 2 us: so strangers get 0.2 % of
/// a core, and a flood has to be this dense before it hides a note, which is repeated.
pub const PLAIN_PER_SECOND_MAX: u32 = 1_000;

const PLAIN_MARK: u8 = 0x01;
