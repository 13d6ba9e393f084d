//! The agent of this node: the one actor of it that other nodes can speak to.
//!
//! Owns: the messages as `ractor` wants them, and the questions that are being answered. Never stops
//! by itself, and never lets bytes of a peer panic: what cannot be read is answered as such.

use std::time::Duration;

use ractor::message::{BoxedDowncastErr, SerializedMessage};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::task::JoinSet;

use understudy_protocol::cluster::directory::{Command, Directory, Entry};
use understudy_protocol::id::NodeId;
use understudy_protocol::supervision::Exit;
use understudy_protocol::wire::codec::decode_whole;
use understudy_supervision::clock;

use super::rate::Rate;
use super::wire::{self, Answer, Asked, ExitNotice, Request};
use crate::handle::{Handle, View};

/// To an agent, near or far.
#[derive(Debug)]
pub(super) enum AgentMessage {
    /// An [`Asked`]; the reply is an [`Answer`].
    Ask(Vec<u8>, RpcReplyPort<Vec<u8>>),
    /// An [`ExitNotice`].
    Exited(Vec<u8>),
}

impl ractor::Message for AgentMessage {
    fn serializable() -> bool {
        true
    }

    fn serialize(self) -> Result<SerializedMessage, BoxedDowncastErr> {
        Ok(match self {
            AgentMessage::Ask(args, reply) => SerializedMessage::Call {
                variant: ASK.to_owned(),
                args,
                reply,
                metadata: None,
            },
            AgentMessage::Exited(args) => SerializedMessage::Cast {
                variant: EXITED.to_owned(),
                args,
                metadata: None,
            },
        })
    }

    fn deserialize(message: SerializedMessage) -> Result<AgentMessage, BoxedDowncastErr> {
        match message {
            SerializedMessage::Call {
                variant,
                args,
                reply,
                ..
            } if variant == ASK => Ok(AgentMessage::Ask(args, reply)),
            SerializedMessage::Cast { variant, args, .. } if variant == EXITED => {
                Ok(AgentMessage::Exited(args))
            }
            _ => Err(BoxedDowncastErr),
        }
    }
}

/// The actor. It acts through the node's own handle.
pub(super) struct NodeAgent;

pub(super) struct State {
    handle: Handle,
    asks: JoinSet<()>,
    notices: Rate,
}

impl Actor for NodeAgent {
    type Msg = AgentMessage;
    type State = State;
    type Arguments = Handle;

    async fn pre_start(
        &self,
        _: ActorRef<AgentMessage>,
        handle: Handle,
    ) -> Result<State, ActorProcessingErr> {
        Ok(State {
            handle,
            asks: JoinSet::new(),
            notices: Rate::new(NOTICES_TAKEN_PER_SECOND),
        })
    }

    async fn handle(
        &self,
        _: ActorRef<AgentMessage>,
        message: AgentMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            AgentMessage::Ask(body, reply) => state.ask(&body, reply),
            AgentMessage::Exited(body) => state.exited(&body),
        }
        Ok(())
    }
}

impl State {
    fn ask(&mut self, body: &[u8], reply: RpcReplyPort<Vec<u8>>) {
        while self.asks.try_join_next().is_some() {}
        let at_once = match wire::decoded::<Asked>(body) {
            None => Answer::NotUnderstood,
            Some(_) if self.asks.len() >= ANSWERED_AT_ONCE => Answer::Busy,
            Some(Asked {
                patience_ms,
                request,
            }) => {
                let handle = self.handle.clone();
                let patience = Duration::from_millis(patience_ms.into()).min(LONGEST_ANSWER);
                self.asks.spawn(async move {
                    let answer = carry_out(&handle, request, patience).await;
                    // Whoever asked may have gone.
                    let _ = reply.send(wire::encoded(&answer));
                });
                return;
            }
        };
        let _ = reply.send(wire::encoded(&at_once));
    }

    fn exited(&mut self, body: &[u8]) {
        let Some(notice) = wire::decoded::<ExitNotice>(body) else {
            return;
        };
        let is_mine = notice.node == self.handle.view().node;
        if is_mine || self.notices.pass(clock::now()).is_none() {
            return;
        }
        let ExitNotice {
            node,
            child,
            unit,
            epoch,
            exit,
            reason,
            missed,
        } = notice;
        let how = match exit {
            Exit::Normal | Exit::Shutdown => "ended",
            Exit::Abnormal => "failed",
        };
        let more = match missed {
            0 => String::new(),
            missed => format!(" (and {missed} others before it)"),
        };
        let text = format!("{child} {how}: {}{more}", wire::cut(reason));
        self.handle
            .tell("child_ended", Some(node), unit.zip(epoch), text);
    }
}

async fn carry_out(handle: &Handle, request: Request, patience: Duration) -> Answer {
    let me = handle.view().node;
    match request {
        Request::Drain(on) => drain(handle, me, on, patience).await,
        Request::Spawn(frame) => match decode_whole::<Entry>(&frame) {
            Ok(entry) => spawn(handle, me, entry.command, patience).await,
            Err(_) => Answer::NotUnderstood,
        },
    }
}

async fn drain(handle: &Handle, me: NodeId, on: bool, patience: Duration) -> Answer {
    let text = if on {
        "was asked to drain itself"
    } else {
        "was asked to take units again"
    };
    handle.tell("agent_asked", Some(me), None, text.to_owned());
    let command = Command::Drain {
        node: me,
        draining: on,
    };
    let done = |directory: &Directory| {
        let node = directory.nodes().get(&me);
        node.is_some_and(|node| node.draining == on)
    };
    match handle.propose(command, patience, done).await {
        Ok(()) => Answer::Done,
        Err(error) => Answer::Refused(error.to_string()),
    }
}

async fn spawn(handle: &Handle, me: NodeId, command: Command, patience: Duration) -> Answer {
    let Command::Create { child, needs, .. } = &command else {
        return Answer::NotUnderstood;
    };
    if needs.pin != Some(me) {
        return Answer::Refused("the child is not pinned to this node".to_owned());
    }
    let child = child.clone();
    handle.tell(
        "agent_asked",
        Some(me),
        None,
        format!("was asked to run {child}"),
    );
    let began = clock::now();
    let there = |directory: &Directory| directory.unit_of(&child).is_some();
    if let Err(error) = handle.propose(command, patience, there).await {
        return Answer::Refused(error.to_string());
    }
    let serves = |view: &View| {
        let unit = view.directory.unit_of(&child);
        unit.is_some_and(|unit| view.serving.contains(&unit))
    };
    let left = patience.saturating_sub(clock::now().since(began));
    match handle.wait_for(left, serves).await {
        Some(_) => Answer::Done,
        None => Answer::Refused(format!("{child} is created, but does not serve yet")),
    }
}

const ASK: &str = "ask";
const EXITED: &str = "exited";

/// Questions that are being answered at once: each waits for the directory, and costs little else.
const ANSWERED_AT_ONCE: usize = 64;

/// Nobody waits longer for an answer, whatever the question says.
const LONGEST_ANSWER: Duration = Duration::from_secs(60);

/// Notices that are taken from all peers together: as many as a whole cluster of five sends. The
/// history that they go to holds ten thousand.
const NOTICES_TAKEN_PER_SECOND: u32 = 100;
