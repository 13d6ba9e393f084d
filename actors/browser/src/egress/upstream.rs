//! A connection to a site, behind the lease.
//!
//! Owns: the connect, and the question before every write (rule E3). Never lets bytes that the kernel
//! still holds out of a connection that was cut short: those are discarded with it.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use understudy_protocol::workload::egress::EgressRefused;
use url::Host;

use super::Session;
use super::policy::{Unreached, name_of};

/// A stream to a site. Every write asks first.
pub(super) struct Upstream {
    stream: TcpStream,
    session: Arc<Session>,
    moved: Arc<Moved>,
    is_finished: bool,
}

/// When bytes last moved on a connection.
pub(super) struct Moved {
    began: Instant,
    last_ms: AtomicU64,
}

/// Why there is no connection. Nothing was written.
#[derive(Debug)]
pub(super) enum ConnectError {
    /// The lease is over.
    NoLease,
    /// It is refused; the node has been told.
    Denied(EgressRefused),
    /// The name has no address.
    Unresolved(io::Error),
    /// It did not answer.
    TimedOut,
    /// It is not there.
    Failed(io::Error),
}

/// Connects to the first address of `host` that may be reached and answers.
pub(super) async fn connect(
    session: &Arc<Session>,
    host: &Host,
    port: u16,
) -> Result<Upstream, ConnectError> {
    // Looking a name up is heard outside, too.
    if !session.may_write() {
        return Err(ConnectError::NoLease);
    }
    let resolved = timeout(RESOLVE_PATIENCE, session.policy.addresses(host, port)).await;
    let addresses = match resolved.map_err(|_| ConnectError::TimedOut)? {
        Ok(addresses) => addresses,
        Err(Unreached::Unresolved(error)) => return Err(ConnectError::Unresolved(error)),
        Err(Unreached::Denied(why)) => {
            session.deny(&name_of(host), port, why);
            return Err(ConnectError::Denied(why));
        }
    };
    let mut trouble = ConnectError::TimedOut;
    for address in addresses.into_iter().take(ADDRESSES_TRIED) {
        match connect_to(session, address).await {
            Ok(upstream) => return Ok(upstream),
            Err(ConnectError::NoLease) => return Err(ConnectError::NoLease),
            Err(error) => trouble = error,
        }
    }
    Err(trouble)
}

async fn connect_to(session: &Arc<Session>, address: SocketAddr) -> Result<Upstream, ConnectError> {
    if !session.may_write() {
        return Err(ConnectError::NoLease);
    }
    let stream = timeout(CONNECT_PATIENCE, TcpStream::connect(address)).await;
    let stream = stream.map_err(|_| ConnectError::TimedOut)?;
    let stream = stream.map_err(ConnectError::Failed)?;
    let _ = stream.set_nodelay(true);
    Ok(Upstream {
        stream,
        session: session.clone(),
        moved: Arc::new(Moved {
            began: Instant::now(),
            last_ms: AtomicU64::new(0),
        }),
        is_finished: false,
    })
}

impl Upstream {
    pub(super) fn moved(&self) -> Arc<Moved> {
        self.moved.clone()
    }

    /// Rule E3. An error ends the connection, whoever gets it.
    fn ask(&self) -> io::Result<()> {
        match self.session.may_write() {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the node's lease is over",
            )),
        }
    }
}

impl Moved {
    fn now(&self) {
        let ms = self.began.elapsed().as_millis() as u64;
        self.last_ms.store(ms, Ordering::Relaxed);
    }

    /// Waits until nothing has moved for as long as `limit`.
    pub(super) async fn until_idle(&self, limit: Duration) {
        loop {
            let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
            let idle = self.began.elapsed().saturating_sub(last);
            match limit.checked_sub(idle) {
                None | Some(Duration::ZERO) => return,
                Some(left) => sleep(left).await,
            }
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if !self.is_finished {
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Upstream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() {
            self.moved.now();
        }
        read
    }
}

impl AsyncWrite for Upstream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.ask()?;
        let wrote = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if wrote.is_ready() {
            self.moved.now();
        }
        wrote
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.ask()?;
        let wrote = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        if wrote.is_ready() {
            self.moved.now();
        }
        wrote
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A page that hears the end takes what came before it for whole.
        self.ask()?;
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        if matches!(shut, Poll::Ready(Ok(()))) {
            self.is_finished = true;
        }
        shut
    }
}

/// How long a name may take: a resolver asks its second server after five seconds.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(15);

/// How long one address may take to answer: three of the kernel's attempts (0, 1, 3 s).
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// Addresses of one name that are tried: with [`CONNECT_PATIENCE`], as long as a person waits.
const ADDRESSES_TRIED: usize = 4;
