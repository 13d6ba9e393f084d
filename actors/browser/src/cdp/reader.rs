//! Messages out of the pipe: whatever stands between two zero bytes.
//!
//! Owns: the buffer. Never looks into a message.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

/// Reads until the pipe ends, and hands over each message.
///
/// # Errors
/// The pipe broke, or a message is above [`MESSAGE_BYTES_MAX`]: there is no way to go on behind it.
pub(super) async fn read(mut pipe: pipe::Receiver, mut hear: impl FnMut(Bytes)) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    // Bytes at the front that hold no zero.
    let mut seen = 0;
    loop {
        buffer.reserve(READ_BYTES);
        if pipe.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        while let Some(at) = buffer[seen..].iter().position(|byte| *byte == 0) {
            let len = seen + at;
            let message = buffer.split_to(len + 1).freeze();
            seen = 0;
            hear(message.slice(..len));
        }
        seen = buffer.len();
        if seen > MESSAGE_BYTES_MAX {
            let why = "the browser sent a message of more than 256 MiB";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
    }
}

/// How much is read at a time: what a pipe holds.
const READ_BYTES: usize = 64 << 10;

/// Chromium's own limit on a message.
const MESSAGE_BYTES_MAX: usize = 256 << 20;
