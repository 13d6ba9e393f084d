//! What needs one process only; links between nodes are tested with real nodes, end to end.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use ractor::Actor;
use tokio::sync::{mpsc, watch};

use understudy_protocol::cluster::directory::Directory;
use understudy_protocol::id::{ChildId, Epoch, IncarnationId, StoreId, UnitId};
use understudy_protocol::supervision::Exit;
use understudy_protocol::time::Time;

use super::actor::NodeAgent;
use super::rate::Rate;
use super::wire::{Asked, TEXT_BYTES_MAX};
use super::*;
use crate::events::{Events, Followed};
use crate::handle::{Ask, Handle, View};

const ME: NodeId = NodeId(1);

fn handle(asks: mpsc::Sender<Ask>, events: Events) -> (Handle, watch::Sender<Arc<View>>) {
    let (view, view_end) = watch::channel(Arc::new(View {
        directory: Arc::new(Directory::default()),
        node: ME,
        incarnation: IncarnationId(1),
        store: StoreId(1),
        leader: None,
        lease_until: Time::ZERO,
        peers: Vec::new(),
        missing_seeds: Vec::new(),
        serving: Default::default(),
        unavailable: Default::default(),
    }));
    (Handle::new(asks, view_end, events), view)
}

fn notice(node: NodeId, reason: String) -> ExitNotice {
    ExitNotice {
        node,
        child: ChildId::parse("@t/k/c").unwrap(),
        unit: Some(UnitId(7)),
        epoch: Some(Epoch(3)),
        exit: Exit::Abnormal,
        reason,
        missed: 2,
    }
}

/// An agent that one can ask as if it were a peer's.
async fn asked(body: Option<Vec<u8>>) -> (Result<(), AskError>, Vec<Ask>) {
    let (asks, mut asks_end) = mpsc::channel(8);
    let (handle, _view) = handle(asks, Events::default());
    let (agent, task) = Actor::spawn(None, NodeAgent, handle).await.unwrap();
    let patience = Duration::from_millis(300);
    let result = match body {
        Some(body) => {
            let message = |reply| AgentMessage::Ask(body, reply);
            let called = agent.call(message, Some(patience)).await.unwrap();
            let CallResult::Success(answer) = called else {
                panic!("no answer");
            };
            match wire::decoded(&answer) {
                Some(Answer::NotUnderstood) => Err(AskError::NotUnderstood),
                other => panic!("{other:?}"),
            }
        }
        None => {
            let (_links, links_end) = watch::channel(Links::from([(ME, agent.clone())]));
            Agents::new(links_end).drain(ME, true, patience).await
        }
    };
    agent.stop(None);
    task.await.unwrap();
    let mut proposed = Vec::new();
    while let Ok(ask) = asks_end.try_recv() {
        proposed.push(ask);
    }
    (result, proposed)
}

#[tokio::test]
async fn a_drain_is_proposed_by_the_asked_node_and_is_answered_in_time_though_nothing_comes_of_it()
{
    let (result, proposed) = asked(None).await;
    assert!(
        matches!(&result, Err(AskError::Refused(why)) if why.contains("majority")),
        "{result:?}"
    );
    let drain = Command::Drain {
        node: ME,
        draining: true,
    };
    let is_drain = |ask: &Ask| matches!(ask, Ask::Propose(command) if *command == drain);
    assert!(proposed.iter().any(is_drain), "{proposed:?}");
}

#[tokio::test]
async fn a_question_that_cannot_be_read_is_answered_so_and_nothing_is_proposed() {
    let good = wire::encoded(&Asked {
        patience_ms: 100,
        request: Request::Drain(true),
    });
    let mut longer = good.clone();
    longer.push(0);
    let frame = Request::Spawn(vec![1, 2, 3]);
    let bad_frame = wire::encoded(&Asked {
        patience_ms: 100,
        request: frame,
    });
    for body in [
        Vec::new(),
        good[..good.len() - 1].to_vec(),
        longer,
        vec![0xff; 64],
        bad_frame,
    ] {
        let (result, proposed) = asked(Some(body)).await;
        assert_eq!(result, Err(AskError::NotUnderstood));
        assert!(proposed.is_empty(), "{proposed:?}");
    }
}

#[tokio::test]
async fn nobody_is_asked_without_a_link() {
    let asked = Agents::none().drain(ME, true, Duration::from_secs(1)).await;
    assert_eq!(asked, Err(AskError::NoLink));
}

#[tokio::test]
async fn a_notice_is_told_on_one_line_and_one_that_claims_to_be_ours_is_not() {
    let events = Events::default();
    let (handle, _view) = handle(mpsc::channel(1).0, events.clone());
    let mut told = events.follow(None);
    let (agent, task) = Actor::spawn(None, NodeAgent, handle).await.unwrap();
    for (node, reason) in [
        (ME, "a lie".to_owned()),
        (NodeId(2), format!("panicked\n{}", "x".repeat(9_999))),
    ] {
        let body = wire::encoded(&notice(node, reason));
        agent.cast(AgentMessage::Exited(body)).unwrap();
    }
    agent.cast(AgentMessage::Exited(vec![0xff; 9])).unwrap();
    let Some(Followed::Event(event)) = told.next().await else {
        panic!("nothing was told");
    };
    assert_eq!(event.node, Some(NodeId(2)));
    assert_eq!(event.unit, Some(UnitId(7)));
    assert_eq!(event.epoch, Some(Epoch(3)));
    assert!(event.text.starts_with("@t/k/c failed: panicked xxx"));
    assert!(event.text.ends_with("… (and 2 others before it)"));
    assert!(event.text.len() < TEXT_BYTES_MAX + 64, "{}", event.text);
    agent.stop(None);
    task.await.unwrap();
}

#[test]
fn a_second_lets_so_many_pass_and_the_next_one_knows_how_many_did_not() {
    let mut rate = Rate::new(2);
    let passed = [10, 20, 30, 40, 1_020, 1_030].map(|at| rate.pass(Time::from_millis(at)));
    // The first second began at zero; counted from the first that came in the next.
    assert_eq!(passed, [Some(0), Some(0), None, None, Some(2), Some(0)]);
}
