//! Dialling, for as long as the network lives.
//!
//! Owns: the attempts at one role of one target, their overlap and their pauses. Never gives up, and
//! never dials while the role stands.
//!
//! An attempt may take as long as a far peer needs, but a new one begins long before: the first
//! packets of an attempt that found nobody are sent again more and more rarely, and a peer that comes
//! back is found by the next attempt's first packet.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::ConnectionError;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use understudy_protocol::id::NodeId;

use super::hello::{CLOSE_DUPLICATE, CLOSE_SELF, Greeting};
use super::{Shared, is_tls_refusal, lock, reachable_from, settle};
use crate::counters::Count;
use crate::identity;
use crate::tls::Role;

/// Whom to dial, as `host:port`.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// Whoever is there.
    Seed(String),
    /// This node and no other.
    Node(NodeId, String),
}

/// Dials the target whenever a connection to it is missing: the truth plane's first, so that nobody
/// is there twice to be looked for.
pub(crate) async fn keep_dialling(shared: Arc<Shared>, target: Target) {
    let mut found = target.node();
    let mut last_trouble = String::new();
    loop {
        let role = match found {
            Some(node) => until_missing(&shared, node).await,
            None => Role::Truth,
        };
        if let (Target::Seed(_), Some(node)) = (&target, found)
            && lock(&shared.dialled).contains_key(&node)
        {
            sleep(jittered(SEED_PAUSE)).await; // its own address is dialled, and more often
            if shared.peers.has(node, role) {
                continue;
            }
        }
        // `None`: the role stands, by another connection.
        if let Some(node) = dial_until_found(&shared, &target, role, found, &mut last_trouble).await
        {
            target.remember(&shared, node);
            found = Some(node);
            last_trouble.clear();
            if node == shared.hello.node {
                sleep(SELF_PAUSE).await;
            }
        }
    }
}

/// Attempts, one after another and some beside each other, until one ends at a node.
async fn dial_until_found(
    shared: &Arc<Shared>,
    target: &Target,
    role: Role,
    found: Option<NodeId>,
    last_trouble: &mut String,
) -> Option<NodeId> {
    let mut attempts = JoinSet::new();
    let mut changes = shared.peers.changes();
    let mut pause = PAUSE_MIN;
    for turn in 0.. {
        if attempts.len() < ATTEMPTS_MAX {
            attempts.spawn(attempt(shared.clone(), target.clone(), role, turn));
        }
        let next = sleep(jittered(pause));
        tokio::pin!(next);
        pause = (pause * 2).min(PAUSE_MAX);
        loop {
            if found.is_some_and(|node| shared.peers.missing(node) != Some(role)) {
                return None;
            }
            tokio::select! {
                () = &mut next => break,
                _ = changes.changed() => {}
                Some(ended) = attempts.join_next() => match ended {
                    Ok(Attempt::Taken(node)) => return Some(node),
                    Ok(Attempt::Node(node)) => {
                        // It is there, and another connection to it is, or comes.
                        sleep(jittered(PAUSE_MAX)).await;
                        return Some(node);
                    }
                    Ok(Attempt::Trouble(trouble)) => {
                        if *last_trouble != trouble {
                            let address = target.address();
                            tracing::warn!(address, trouble, "cannot connect; trying on");
                            *last_trouble = trouble;
                        }
                    }
                    Err(_) => {}
                },
            }
        }
    }
    None
}

enum Attempt {
    Taken(NodeId),
    Node(NodeId),
    Trouble(String),
}

async fn attempt(shared: Arc<Shared>, target: Target, role: Role, turn: usize) -> Attempt {
    timeout(ATTEMPT_PATIENCE, try_once(&shared, &target, role, turn))
        .await
        .unwrap_or_else(|_| Attempt::Trouble("no answer".to_owned()))
}

async fn try_once(shared: &Arc<Shared>, target: &Target, role: Role, turn: usize) -> Attempt {
    let address = match resolve(shared, target.address(), turn).await {
        Ok(address) => address,
        Err(trouble) => return Attempt::Trouble(trouble),
    };
    let cluster = shared.identity.cluster();
    let name = match target.node() {
        Some(node) => identity::dns_name_of(cluster, node),
        None => identity::any_node_of(cluster),
    };
    let config = shared.client.clone();
    let connecting = match shared.endpoint.connect_with(config, address, &name) {
        Ok(connecting) => connecting,
        Err(error) => return Attempt::Trouble(error.to_string()),
    };
    let connection = match connecting.await {
        Ok(connection) => connection,
        Err(error) => {
            if is_tls_refusal(&error) {
                shared.counters.add(Count::Handshake);
            }
            return Attempt::Trouble(error.to_string());
        }
    };
    let Ok(node) = shared.certified(&connection, target.node()) else {
        return Attempt::Trouble("its certificate was refused".to_owned());
    };
    if node == shared.hello.node {
        connection.close(CLOSE_SELF, b"");
        return Attempt::Node(node);
    }
    if shared.peers.has(node, role) {
        connection.close(CLOSE_DUPLICATE, b"");
        return Attempt::Node(node);
    }
    let greeting = match Greeting::dial(&connection, role, &shared.hello, node).await {
        Ok(greeting) => greeting,
        Err(error) => return ended(&connection, node, error.to_string()),
    };
    match settle(shared, connection.clone(), greeting).await {
        Some(node) => Attempt::Taken(node),
        None if shared.peers.has(node, role) => Attempt::Node(node), // we took another
        None => ended(
            &connection,
            node,
            "the peer did not take the connection".to_owned(),
        ),
    }
}

/// Why a connection to `node` ended before it was taken.
fn ended(connection: &quinn::Connection, node: NodeId, trouble: String) -> Attempt {
    match connection.close_reason() {
        Some(ConnectionError::ApplicationClosed(close)) if close.error_code == CLOSE_DUPLICATE => {
            Attempt::Node(node)
        }
        Some(reason) => Attempt::Trouble(reason.to_string()),
        None => Attempt::Trouble(trouble),
    }
}

/// An address of `host:port` that the socket can reach: another each turn, where there are several.
async fn resolve(shared: &Shared, address: &str, turn: usize) -> Result<SocketAddr, String> {
    let local = shared
        .endpoint
        .local_addr()
        .map_err(|error| error.to_string())?;
    let found = tokio::net::lookup_host(address)
        .await
        .map_err(|error| format!("{address}: {error}"))?;
    let reachable: Vec<SocketAddr> = found
        .filter_map(|found| reachable_from(local, found))
        .take(ADDRESSES_MAX)
        .collect();
    match reachable.len() {
        0 => Err(format!("{address} has no address of the family of {local}")),
        count => Ok(reachable[turn % count]),
    }
}

/// Waits until a connection to the node is missing, and says which is to be dialled.
async fn until_missing(shared: &Shared, node: NodeId) -> Role {
    let mut changes = shared.peers.changes();
    loop {
        changes.borrow_and_update();
        if let Some(role) = shared.peers.missing(node) {
            return role;
        }
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await; // the network ends, and this task with it
        }
    }
}

impl Target {
    fn node(&self) -> Option<NodeId> {
        match self {
            Target::Seed(_) => None,
            Target::Node(node, _) => Some(*node),
        }
    }

    fn address(&self) -> &str {
        match self {
            Target::Seed(address) | Target::Node(_, address) => address,
        }
    }

    /// Says who stands at a seed.
    fn remember(&self, shared: &Shared, node: NodeId) {
        if let Target::Seed(seed) = self
            && let Some(known) = lock(&shared.seeds).get_mut(seed)
        {
            *known = Some(node);
        }
    }
}

/// Between three quarters of `pause` and all of it, so that nodes that lost each other at one moment
/// do not dial at one moment.
fn jittered(pause: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(0) % 256;
    pause * (768 + random) / 1_024
}

/// Pauses between the beginnings of two attempts. A peer that restarts dials itself, and its seeds
/// hear of it at once; this is for those that it does not know.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// A seed whose node the directory names is a second way to it, for when the directory is wrong.
const SEED_PAUSE: Duration = Duration::from_secs(2);

/// From the first packet to the taken connection: several round trips of a far peer, with losses.
const ATTEMPT_PATIENCE: Duration = Duration::from_secs(3);

/// Attempts beside each other; with [`PAUSE_MAX`] and [`ATTEMPT_PATIENCE`] about as many as begin
/// before the first ends.
const ATTEMPTS_MAX: usize = 16;

/// Addresses of one host name.
const ADDRESSES_MAX: usize = 16;

/// A seed list that is the same for all nodes names this one too; its address may change hands.
const SELF_PAUSE: Duration = Duration::from_secs(30);
