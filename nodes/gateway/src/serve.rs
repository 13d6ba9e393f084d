//! The listener and its limits.
//!
//! Owns: connections, from the first byte to the last. Never looks into a request: `routes` does.
//! axum's own `serve` sets no limit on time, headers or connections, so hyper is driven here.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use understudy_control::handle::Handle;

use crate::routes::{Gateway, RunFunctions, router};
use crate::token::Token;

/// Who may reach the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Processes of this machine: what is said here is not encrypted.
    Loopback,
    /// Whoever can reach the listener's address.
    Anyone,
}

/// Why nothing was served. Nothing has been accepted.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listener is open to other machines, and nobody said that it may be.
    #[error("{0} is reachable from other machines, and nothing that the gateway says is encrypted")]
    NotLoopback(SocketAddr),
    /// The listener has no address.
    #[error("the listener has no address: {0}")]
    Listener(std::io::Error),
}

/// Serves until `shutdown`, then lets requests that have begun end for a few seconds.
pub async fn serve(
    listener: TcpListener,
    handle: Handle,
    functions: RunFunctions,
    token: Token,
    reach: Reach,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let address = listener.local_addr().map_err(ServeError::Listener)?;
    if reach == Reach::Loopback && !address.ip().is_loopback() {
        return Err(ServeError::NotLoopback(address));
    }
    let (stopping, stop) = watch::channel(false);
    let service = router(Gateway::new(handle, functions, token, stop.clone()));
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            accepted = accept(&listener, &room) => if let Some((stream, place)) = accepted {
                connections.spawn(connection(stream, service.clone(), stop.clone(), place));
            },
        }
    }
    drop(listener);
    // All receivers are gone when no connection is left.
    let _ = stopping.send(true);
    let ended = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN, ended).await;
    connections.shutdown().await;
    Ok(())
}

/// A connection, once there is room for it; those that wait are in the listener's own queue.
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let place = room.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            tracing::warn!(%error, "no connection was accepted");
            tokio::time::sleep(ACCEPT_AGAIN).await;
            None
        }
    }
}

async fn connection(
    stream: TcpStream,
    service: axum::Router,
    mut stop: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
) {
    // Answers are small and whole: nothing is gained by waiting for more.
    let _ = stream.set_nodelay(true);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE)
        .max_buf_size(HEADER_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    let service = TowerToHyperService::new(service);
    let mut served = pin!(
        http.serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
    );
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stopped(&mut stop) => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the server is gone, which is as good.
    let _ = stop.wait_for(|stopping| *stopping).await;
}

/// Connections at a time. Each costs two buffers and a task; a gateway with more callers than this
/// on one machine is a proxy's, which keeps few.
pub const CONNECTIONS_MAX: usize = 512;

/// How long the headers of a request may take; also how long a connection may be idle between two.
const HEADER_PATIENCE: Duration = Duration::from_secs(30);

/// The longest head of a request: a token, a trace and a path of the longest child, with room.
const HEADER_BYTES_MAX: usize = 32 * 1024;

/// Headers of one request: a browser behind a proxy sends about thirty.
const HEADERS_MAX: usize = 64;

/// How long requests may take to end when the node stops: as long as a usual call's own patience.
const DRAIN: Duration = Duration::from_secs(5);

/// What keeps a connection from being accepted is a full table of files, which empties slowly.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
