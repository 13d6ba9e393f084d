//! The control plane: one node agent a node, which the others ask over `ractor_cluster`.
//!
//! Owns: what may be asked of a node agent, with a deadline each time, and the notices that say why a
//! child ended. Never decides, and nothing depends on it: whatever an agent does is a command of the
//! directory, which any node can propose as well, and a notice is for people.
//!
//! ```text
//!   Agents::drain, spawn ──> agent of that node ──> its own Handle ──> the directory
//!   core: a child failed ──> link ──> every linked agent ──> its Events
//! ```
//!
//! The traps of `ractor_cluster` 0.16.5 that shape this page: every remotable actor costs each peer an
//! actor (so there is one, of ten at most); a call without a timeout can hang; a reply followed by a
//! stop is lost, and stopping a remote reference ends the whole link (so agents live as long as their
//! node, and nobody stops another's); casts queue without limit (so notices have a rate).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::ActorRef;
use ractor::rpc::CallResult;
use tokio::sync::{Semaphore, watch};

use understudy_protocol::cluster::directory::{Command, Entry};
use understudy_protocol::id::NodeId;
use understudy_protocol::time::ClusterTime;
use understudy_protocol::wire::codec::encode_frame;

mod actor;
mod link;
mod rate;
#[cfg(test)]
mod tests;
mod wire;

pub(crate) use link::{EXITS_MAX, LinkParts, LinkTask, STREAMS_MAX, start};
pub(crate) use wire::ExitNotice;

use actor::AgentMessage;
use wire::{Answer, Request};

/// Agents of peers that can be asked now.
type Links = BTreeMap<NodeId, ActorRef<AgentMessage>>;

/// The agents of the other nodes, for whoever lives in this process. Cheap to clone.
#[derive(Clone)]
pub struct Agents {
    links: watch::Receiver<Links>,
    asking: Arc<Semaphore>,
}

/// Why an agent did not do what it was asked. The directory can always be asked instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Not done: there is no link to that node now.
    #[error("there is no link to that node")]
    NoLink,
    /// Not done: too many questions wait, here or there.
    #[error("too many questions to node agents wait")]
    Busy,
    /// Not done: it does not know such a question, being of another version.
    #[error("that node does not know such a question")]
    NotUnderstood,
    /// Begun or not, and not seen done: it says why.
    #[error("{0}")]
    Refused(String),
    /// Nobody can say: it has not answered.
    #[error("the node agent has not answered within {0:?}")]
    TimedOut(Duration),
    /// Nobody can say: the link was lost.
    #[error("the link was lost")]
    Lost,
}

impl Agents {
    fn new(links: watch::Receiver<Links>) -> Agents {
        Agents {
            links,
            asking: Arc::new(Semaphore::new(ASKED_AT_ONCE)),
        }
    }

    /// Nobody can be asked: a node without a control plane.
    pub fn none() -> Agents {
        Agents::new(watch::channel(Links::new()).1)
    }

    /// Nodes that can be asked now.
    pub fn linked(&self) -> Vec<NodeId> {
        self.links.borrow().keys().copied().collect()
    }

    /// Has a node drain itself, or take units again. Done when the directory says so there.
    pub async fn drain(&self, node: NodeId, on: bool, patience: Duration) -> Result<(), AskError> {
        self.ask(node, Request::Drain(on), patience).await
    }

    /// Has a node run a dedicated child: `create` is the [`Command::Create`] with that node as its
    /// pin. Done when the child's unit is served there.
    pub async fn spawn(
        &self,
        node: NodeId,
        create: Command,
        patience: Duration,
    ) -> Result<(), AskError> {
        let entry = Entry {
            at: ClusterTime::ZERO,
            random: 0,
            command: create,
        };
        let mut frame = Vec::new();
        let framed = encode_frame(&entry, &mut frame);
        framed.map_err(|error| AskError::Refused(error.to_string()))?;
        self.ask(node, Request::Spawn(frame), patience).await
    }

    async fn ask(
        &self,
        node: NodeId,
        request: Request,
        patience: Duration,
    ) -> Result<(), AskError> {
        let _asking = self.asking.try_acquire().map_err(|_| AskError::Busy)?;
        let agent = self.links.borrow().get(&node).cloned();
        let agent = agent.ok_or(AskError::NoLink)?;
        let asked = wire::Asked {
            // The agent answers before the caller has gone.
            patience_ms: u32::try_from(patience.as_millis() * 9 / 10).unwrap_or(u32::MAX),
            request,
        };
        let asked = wire::encoded(&asked);
        let message = |reply| AgentMessage::Ask(asked, reply);
        // What is shipped is a duration, and a dead shim drops the reply: both deadlines are needed.
        let called = tokio::time::timeout(patience, agent.call(message, Some(patience)));
        let answer = match called.await {
            Err(_) | Ok(Ok(CallResult::Timeout)) => return Err(AskError::TimedOut(patience)),
            Ok(Err(_) | Ok(CallResult::SenderError)) => return Err(AskError::Lost),
            Ok(Ok(CallResult::Success(answer))) => answer,
        };
        match wire::decoded(&answer) {
            Some(Answer::Done) => Ok(()),
            Some(Answer::Refused(why)) => Err(AskError::Refused(wire::cut(why))),
            Some(Answer::Busy) => Err(AskError::Busy),
            Some(Answer::NotUnderstood) | None => Err(AskError::NotUnderstood),
        }
    }
}

/// Questions of this node under way at once: operators ask by hand. The engine's own queues have no
/// limit.
const ASKED_AT_ONCE: usize = 32;
