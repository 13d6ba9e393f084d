//! One client's messages between two nodes: the one that it connected to, and the one that runs its
//! session.
//!
//! Owns: the frames, and their limits. Never looks into a message.
//!
//! ```text
//!   client ── WebSocket ── gateway ── frames over a stream between nodes ── the session's node
//! ```
//!
//! A frame is its kind (one byte), the length of its body (four bytes, big endian) and the body. `TEXT` is
//! a message, in either direction. `END` comes from the session's side alone and is the last: two bytes
//! of a WebSocket's close code (RFC 6455, section 7.4) and a reason for people. A stream that ends without
//! one was cut off: its node is gone.

use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// What a stream between nodes begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The session, as the id of its child.
    pub session: String,
    /// What the session answered to `attach`.
    pub ticket: String,
}

impl Hello {
    /// As bytes.
    pub fn encode(&self) -> Bytes {
        // Two strings can always be written.
        serde_json::to_vec(self).unwrap_or_default().into()
    }

    /// Out of bytes; `None` when they are none.
    pub fn decode(bytes: &[u8]) -> Option<Hello> {
        serde_json::from_slice(bytes).ok()
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A message.
    Text(Bytes),
    /// The last one.
    End(End),
}

/// How a client's connection is to be closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// A WebSocket's close code.
    pub code: u16,
    /// For people.
    pub reason: String,
}

/// Writes one.
///
/// # Errors
/// The stream is broken; what was written of the frame is lost.
pub async fn write(to: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    let mut head = [0; HEAD];
    match frame {
        Frame::Text(text) => {
            fill(&mut head, TEXT, text.len())?;
            to.write_all(&head).await?;
            to.write_all(text).await?;
        }
        Frame::End(End { code, reason }) => {
            let reason = reason.as_bytes();
            fill(&mut head, END, 2 + reason.len())?;
            to.write_all(&head).await?;
            to.write_all(&code.to_be_bytes()).await?;
            to.write_all(reason).await?;
        }
    }
    to.flush().await
}

fn fill(head: &mut [u8; HEAD], kind: u8, len: usize) -> io::Result<()> {
    let len = u32::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    head[0] = kind;
    head[1..].copy_from_slice(&len.to_be_bytes());
    Ok(())
}

/// Reads one of at most `most` bytes; `None` at the end of the stream. May be dropped only between frames.
///
/// # Errors
/// The stream broke within a frame, or it is none: nothing behind it can be understood.
pub async fn read(from: &mut (impl AsyncRead + Unpin), most: usize) -> io::Result<Option<Frame>> {
    let mut head = [0; HEAD];
    match from.read(&mut head[..1]).await? {
        0 => return Ok(None),
        _ => from.read_exact(&mut head[1..]).await?,
    };
    let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if len > most {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a frame is too long",
        ));
    }
    // Grows with what comes, not with what is announced.
    let mut body = BytesMut::with_capacity(len.min(GROWTH));
    while body.len() < len {
        let left = len - body.len();
        if (&mut *from).take(left as u64).read_buf(&mut body).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    match head[0] {
        TEXT => Ok(Some(Frame::Text(body.freeze()))),
        END if body.len() >= 2 => {
            let code = body.get_u16();
            let reason = String::from_utf8_lossy(&body).into_owned();
            Ok(Some(Frame::End(End { code, reason })))
        }
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "no frame of this stream",
        )),
    }
}

/// Carries a client's messages between a stream and whoever serves it, at the session's node, and ends
/// the stream with what `ended` says. It is over once `from` is closed, which whoever serves the client
/// does; and whoever serves it sees `to` closed when the client has left.
///
/// # Errors
/// The stream is broken, or its other end takes nothing for [`TAKE_LIMIT`].
pub async fn carry(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    to: mpsc::Sender<Bytes>,
    mut from: mpsc::Receiver<Bytes>,
    ended: impl Future<Output = End>,
) -> io::Result<()> {
    let hear = async move {
        while let Ok(Some(Frame::Text(text))) = read(&mut reader, SAID_BYTES_MAX).await {
            if to.send(text).await.is_err() {
                break;
            }
        }
    };
    let say = async {
        while let Some(text) = from.recv().await {
            written(&mut writer, &Frame::Text(text)).await?;
        }
        io::Result::Ok(())
    };
    {
        let (mut hear, mut say) = (pin!(hear), pin!(say));
        let mut has_left = false;
        loop {
            tokio::select! {
                said = &mut say => break said?,
                () = &mut hear, if !has_left => has_left = true,
            }
        }
    }
    written(&mut writer, &Frame::End(ended.await)).await?;
    writer.shutdown().await
}

async fn written(to: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    let taken = timeout(TAKE_LIMIT, write(to, frame)).await;
    taken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The code of an [`End`] of a client that has released its session: it is to be removed. No client hears
/// it (RFC 6455 leaves these numbers to applications).
pub const RELEASED: u16 = 4000;

const TEXT: u8 = 0;
const END: u8 = 1;
const HEAD: usize = 5;

/// How much is reserved before anything has come.
const GROWTH: usize = 64 << 10;

/// How long one message may take to be taken. A client that is slower is gone for all that one can know.
const TAKE_LIMIT: Duration = Duration::from_secs(30);

/// The longest message of a client: what Playwright sends is a thousand times shorter; uploads are sent
/// in parts.
pub const SAID_BYTES_MAX: usize = 16 << 20;

/// The longest message to a client: what the browser's own pipe carries.
pub const HEARD_BYTES_MAX: usize = 256 << 20;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_out_as_they_went_in() {
        let (mut near, mut far) = tokio::io::duplex(64);
        let long = Bytes::from(vec![7; 100_000]);
        let frames = [
            Frame::Text(Bytes::new()),
            Frame::Text(Bytes::from_static(b"{}")),
            Frame::Text(long),
            Frame::End(End {
                code: 1012,
                reason: "its node is gone".to_owned(),
            }),
        ];
        let sent = frames.clone();
        let send = async move {
            for frame in &sent {
                write(&mut near, frame).await.unwrap();
            }
        };
        let receive = async {
            let mut received = Vec::new();
            while let Some(frame) = read(&mut far, 1 << 20).await.unwrap() {
                received.push(frame);
            }
            received
        };
        let ((), received) = tokio::join!(send, receive);
        assert_eq!(received, frames);
    }

    #[tokio::test]
    async fn what_is_no_frame_is_refused_and_takes_no_memory() {
        for (bytes, kind) in [
            (&[0, 0xff, 0xff, 0xff, 0xff][..], io::ErrorKind::InvalidData),
            (&[9, 0, 0, 0, 0], io::ErrorKind::InvalidData),
            (&[1, 0, 0, 0, 1, 3], io::ErrorKind::InvalidData),
            (&[0, 0, 0, 0, 9, 1], io::ErrorKind::UnexpectedEof),
            (&[0, 0, 0], io::ErrorKind::UnexpectedEof),
        ] {
            let error = read(&mut &*bytes, 1 << 20).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn a_client_that_leaves_is_told_of_to_whoever_serves_it_and_hears_the_end_of_it() {
        let (mut client, node) = tokio::io::duplex(1 << 16);
        let (reader, writer) = tokio::io::split(node);
        let (to, mut heard) = mpsc::channel(4);
        let (say, from) = mpsc::channel(4);
        let end = End {
            code: 1000,
            reason: "left".to_owned(),
        };
        let told = end.clone();
        let serve = async move {
            let first = heard.recv().await.unwrap();
            say.send(first).await.unwrap();
            assert!(heard.recv().await.is_none());
        };
        let carried = carry(reader, writer, to, from, async { told });
        let speak = async {
            let text = Frame::Text(Bytes::from_static(b"hello"));
            write(&mut client, &text).await.unwrap();
            assert_eq!(read(&mut client, 1 << 20).await.unwrap(), Some(text));
            // Only its own half: it still hears.
            client.shutdown().await.unwrap();
            let last = read(&mut client, 1 << 20).await.unwrap();
            assert_eq!(last, Some(Frame::End(end)));
        };
        let (carried, (), ()) = tokio::join!(carried, serve, speak);
        carried.unwrap();
    }
}
