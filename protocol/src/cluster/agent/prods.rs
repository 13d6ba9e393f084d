//! Prods, and answers that no record holds yet.
//!
//! Owns: that a prod takes its turn and no more, that what it brings is a record without a call, and
//! that a loose call's key is in the first record that holds its effect.

#![allow(clippy::unwrap_used)]

use alloc::vec;

use super::tests::{Node, UNIT, child, granted};
use super::*;
use crate::wire::codec::decode_exact;

fn prods(node: &Node) -> usize {
    let prod = |action: &&Action| matches!(action, Action::Prod { .. });
    node.said.iter().filter(prod).count()
}

fn executes(node: &Node) -> usize {
    let execute = |action: &&Action| matches!(action, Action::Execute { .. });
    node.said.iter().filter(execute).count()
}

fn prodded(node: &mut Node, effect: Option<&'static [u8]>) {
    node.tell(Event::Prodded {
        child: child(),
        effect: effect.map(|effect| Bytes::from_static(effect).into()),
        state: None,
        durable: true,
    });
}

fn loosely(node: &mut Node, call: CallId, answer: &'static [u8]) {
    node.tell(Event::Executed {
        child: child(),
        call,
        answer: Bytes::from_static(answer).into(),
        effect: None,
        state: None,
        durable: false,
    });
}

fn last_step(node: &Node) -> Step {
    decode_exact(&node.chain.last().unwrap().body).unwrap()
}

#[test]
fn what_a_prod_brings_is_a_record_without_a_call_and_answers_nobody() {
    let mut node = Node::serving();
    node.tell(Event::Prod(child()));
    assert_eq!(prods(&node), 1);
    prodded(&mut node, None);
    assert_eq!(node.chain, [], "it changed nothing");
    node.tell(Event::Prod(child()));
    prodded(&mut node, Some(b"by itself"));
    let step = last_step(&node);
    assert_eq!((step.call, step.earlier), (None, vec![]));
    assert_eq!(step.effect, Bytes::from_static(b"by itself").into());
    let replies = |action: &Action| matches!(action, Action::Reply(_));
    assert!(!node.said.iter().any(replies));
    let late = Event::Prodded {
        child: child(),
        effect: None,
        state: None,
        durable: true,
    };
    let refused = node.agent.handle(node.now, late);
    assert_eq!(refused, Err(Refused::NotExpected));
}

#[test]
fn one_prod_waits_at_most_and_it_takes_turns_with_the_calls() {
    let mut node = Node::serving();
    let first = node.call();
    let second = node.call();
    for _ in 0..3 {
        node.tell(Event::Prod(child()));
    }
    assert_eq!((executes(&node), prods(&node)), (1, 0), "one at a time");
    node.executed(first, Bytes::new(), None);
    assert_eq!((executes(&node), prods(&node)), (1, 1));
    // It prods itself again and again: the call that waits has its turn all the same.
    node.tell(Event::Prod(child()));
    prodded(&mut node, None);
    assert_eq!((executes(&node), prods(&node)), (2, 1));
    node.executed(second, Bytes::new(), None);
    assert_eq!((executes(&node), prods(&node)), (2, 2));
    prodded(&mut node, None);
    assert_eq!((executes(&node), prods(&node)), (2, 2));
}

#[test]
fn a_prod_of_a_child_that_is_not_here_does_nothing() {
    let mut node = Node::serving();
    let stranger = ChildId::parse("@t/k/stranger").unwrap();
    let refused = node.agent.handle(node.now, Event::Prod(stranger));
    assert_eq!(refused, Err(Refused::NotExpected));
    node.tell(Event::Units(vec![(UNIT, None)]));
    let refused = node.agent.handle(node.now, Event::Prod(child()));
    assert_eq!(refused, Err(Refused::NotExpected));
    assert_eq!(prods(&node), 0);
}

#[test]
fn a_child_that_hangs_on_a_prod_is_killed_as_one_that_hangs_on_a_call() {
    let mut node = Node::serving();
    node.tell(Event::Prod(child()));
    node.now = node.now + node.agent.settings.work_limit;
    node.tell(Event::Tick);
    assert!(node.agent.is_killed(&child()));
    assert!(node.is_stopped());
}

#[test]
fn a_loose_answer_says_so_and_its_key_is_in_the_first_record_that_holds_its_effect() {
    let mut node = Node::serving();
    let call = node.call();
    loosely(&mut node, call, b"loose");
    let answered = |durable| Outcome::Answered {
        body: Bytes::from_static(b"loose"),
        reflects: Seq(if durable { 1 } else { 0 }),
        durable,
    };
    assert_eq!(node.outcome(call), Some(&answered(false)));
    assert_eq!(node.chain, []);
    let again = node.again(call);
    assert_eq!(executes(&node), 1, "it is not carried out again");
    assert_eq!(node.outcome(again), Some(&answered(false)));

    node.tell(Event::Prod(child()));
    prodded(&mut node, Some(b"all of it"));
    let step = last_step(&node);
    assert_eq!(step.call, None);
    assert_eq!(step.earlier.len(), 1);
    assert_eq!(step.earlier[0].answer, Bytes::from_static(b"loose").into());
    let again = node.again(call);
    assert_eq!(node.outcome(again), Some(&answered(true)));

    let mut calls = Calls::default();
    let kept = Duration::from_secs(1);
    read_bodies(node.now, kept, &node.chain, &mut calls).unwrap();
    let key = &step.earlier[0].key;
    assert!(matches!(
        calls.admit(node.now, key, 1, false),
        Admission::Answered { .. }
    ));

    let call = node.call();
    node.executed(call, Bytes::new(), Some(Bytes::from_static(b"step")));
    assert_eq!(last_step(&node).earlier, [], "each is written once");
}

#[test]
fn a_step_of_another_call_holds_the_loose_ones_before_it_too() {
    let mut node = Node::serving();
    let first = node.call();
    loosely(&mut node, first, b"loose");
    let second = node.call();
    node.executed(second, Bytes::new(), Some(Bytes::from_static(b"step")));
    let step = last_step(&node);
    assert_eq!((step.call.is_some(), step.earlier.len()), (true, 1));
}

#[test]
fn what_a_child_held_is_gone_with_it_and_its_calls_may_come_again() {
    let mut node = Node::serving();
    let call = node.call();
    loosely(&mut node, call, b"loose");
    let (child, exit, random) = (child(), Exit::Abnormal, 0);
    node.tell(Event::Ended {
        child,
        exit,
        random,
    });
    let told = |action: &Action| matches!(action, Action::Propose(Command::Exited { .. }));
    assert!(node.said.iter().any(told));
    assert_eq!(node.chain, [], "neither its key nor its effect is recorded");
}

#[test]
fn a_child_that_holds_something_is_prodded_once_before_its_unit_moves() {
    for is_loose in [true, false] {
        let mut node = Node::serving();
        let call = node.call();
        if is_loose {
            loosely(&mut node, call, b"loose");
        } else {
            node.executed(call, Bytes::new(), None);
        }
        node.tell(Event::Units(vec![(
            UNIT,
            Some(Granted {
                moving: true,
                ..granted(true)
            }),
        )]));
        assert_eq!(prods(&node), usize::from(is_loose));
        if is_loose {
            assert!(!node.is_stopped(), "it is asked first");
            prodded(&mut node, Some(b"all of it"));
            assert_eq!(last_step(&node).earlier.len(), 1);
        }
        assert!(node.is_stopped(), "then it ends");
        let (child, exit, random) = (child(), Exit::Shutdown, 0);
        node.tell(Event::Ended {
            child,
            exit,
            random,
        });
        let released = |action: &Action| matches!(action, Action::Propose(Command::Release(_)));
        assert!(node.said.iter().any(released), "{:?}", node.said);
    }
}

#[test]
fn a_child_that_ends_instead_of_handing_out_what_it_holds_keeps_no_unit() {
    let mut node = Node::serving();
    let call = node.call();
    loosely(&mut node, call, b"loose");
    let moving = Granted {
        moving: true,
        ..granted(true)
    };
    node.tell(Event::Units(vec![(UNIT, Some(moving))]));
    assert_eq!(prods(&node), 1);
    let (child, exit, random) = (child(), Exit::Abnormal, 0);
    node.tell(Event::Ended {
        child,
        exit,
        random,
    });
    let proposed = |action: &Action| {
        matches!(
            action,
            Action::Propose(Command::Release(_) | Command::Exited { .. })
        )
    };
    assert!(node.said.iter().any(proposed), "{:?}", node.said);
}
