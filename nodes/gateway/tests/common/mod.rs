//! A directory without a cluster: a task that applies each command at once, grants every unit to node
//! `a`, and answers calls by echoing them; modules and sandboxes are real ones. For tests of what stands in front of a node.

mod guests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use understudy_control::handle::{Answered, Ask, CallError, FormError, View};
use understudy_control::listing::{Children, Listed};
use understudy_protocol::cluster::directory::{
    Action, Claim, Command, Directory, Entry, Event, Formation, Grant, Registration, Run,
};
use understudy_protocol::id::{ChildId, IncarnationId, LogId, NodeId, Seq, StoreId, Term};
use understudy_protocol::machine::Machine as _;
use understudy_protocol::time::{ClusterTime, Time};
use understudy_protocol::wire::heart::{DeathDigest, Ttl};

pub(crate) use guests::Guests;

/// What node `a` knows.
pub(crate) fn view(directory: &Directory) -> View {
    View {
        directory: Arc::new(directory.clone()),
        node: NodeId(1),
        incarnation: IncarnationId(101),
        store: StoreId(11),
        leader: directory.is_formed().then_some(NodeId(1)),
        lease_until: Time::MAX,
        peers: Vec::new(),
        missing_seeds: Vec::new(),
        serving: BTreeSet::new(),
        unavailable: BTreeSet::new(),
    }
}

/// Answers what a handle asks.
pub(crate) async fn core(
    mut asked: mpsc::Receiver<Ask>,
    shown: watch::Sender<Arc<View>>,
    guests: Guests,
) {
    let mut directory = Directory::default();
    let mut at_work = JoinSet::new();
    while let Some(ask) = asked.recv().await {
        match ask {
            Ask::Propose(command) => apply(&mut directory, command),
            Ask::Children { of, answer }
                if of.kind.is_some() && of.kind.as_deref() != Some("counter") =>
            {
                let _ = answer.send(guests.list(&of).await);
            }
            Ask::Children { of, answer } => {
                let child = ChildId::parse("t1/counter/a").unwrap();
                let listed = Listed {
                    child,
                    seq: Seq(3),
                    node: NodeId(1),
                };
                let after_it = of.after.is_some_and(|after| *after >= *"t1/counter/a");
                let _ = answer.send(Children {
                    items: if after_it { Vec::new() } else { vec![listed] },
                    more: !after_it,
                    silent: vec![NodeId(1)],
                });
            }
            Ask::Form { answer, .. } => {
                let formed = directory.is_formed();
                if !formed {
                    form(&mut directory);
                }
                let result = if formed {
                    Err(FormError::AlreadyFormed)
                } else {
                    Ok(())
                };
                let _ = answer.send(result);
            }
            Ask::Call {
                child,
                body,
                answer,
                ..
            } if Guests::has(&child) => {
                at_work.spawn(guests.clone().call(child, body, answer));
            }
            Ask::Call {
                child,
                key,
                body,
                patience,
                answer,
            } => {
                let result = match child.key() {
                    "full" => Err(CallError::Overloaded {
                        retry_after: Duration::from_millis(50),
                    }),
                    "late" => Err(CallError::DeadlineExceeded {
                        patience,
                        maybe_done: true,
                    }),
                    // Never answers: the gateway must not wait for ever.
                    "dumb" => {
                        std::mem::forget(answer);
                        continue;
                    }
                    _ => Ok(Answered {
                        body: Bytes::from([key.unwrap_or_default().as_bytes(), &body].concat()),
                        reflects: Seq(7),
                        node: NodeId(1),
                    }),
                };
                let _ = answer.send(result);
            }
        }
        serve_all(&mut directory);
        let _ = shown.send(Arc::new(view(&directory)));
    }
}

fn form(directory: &mut Directory) {
    apply(
        directory,
        Command::Form(Formation {
            voters: [StoreId(11)].into(),
            ttl: Ttl::DEFAULT,
            replicas: 3,
            min_copies: 1,
            shards: 4,
            set: [StoreId(11)].into(),
        }),
    );
    for node in 1..=2 {
        let registration = Registration {
            node: NodeId(node),
            incarnation: IncarnationId(100 + node),
            store: StoreId(10 + node),
            death: DeathDigest::of(&[node as u8; 32]),
            votes: true,
            works: true,
            labels: BTreeMap::new(),
            capacity: BTreeMap::new(),
            name: ["a", "b"][node as usize - 1].to_owned(),
            address: format!("127.0.0.1:{}", 7600 + node),
        };
        apply(directory, Command::Register(registration));
    }
}

/// Grants and serves what has no owner, where it is to move or at `a`, and releases what must leave.
fn serve_all(directory: &mut Directory) {
    for id in directory.units().keys().copied().collect::<Vec<_>>() {
        let unit = directory.unit(id).unwrap().clone();
        let draining = |node: NodeId| directory.nodes()[&node].draining;
        if let Some(owner) = unit.owner {
            let claim = Claim {
                unit: id,
                epoch: unit.epoch,
                incarnation: owner.incarnation,
            };
            let stopping = unit.run == Run::Stopping;
            if unit.move_to.is_some_and(|to| to != owner.node) || draining(owner.node) || stopping {
                apply(directory, Command::Release(claim));
            }
        }
        let Some(unit) = directory
            .unit(id)
            .filter(|unit| unit.wants_owner())
            .cloned()
        else {
            continue;
        };
        let usual = if directory.nodes()[&NodeId(1)].draining {
            NodeId(2)
        } else {
            NodeId(1)
        };
        let pinned = unit.needs.pin.unwrap_or(usual);
        let to = IncarnationId(100 + unit.move_to.unwrap_or(pinned).0);
        let grant = Grant {
            unit: id,
            epoch: unit.epoch,
            config: unit.config,
            to,
        };
        apply(
            directory,
            Command::Grant {
                grants: vec![grant],
            },
        );
        let claim = Claim {
            unit: id,
            epoch: unit.epoch.next(),
            incarnation: to,
        };
        apply(directory, Command::Serving(claim));
    }
}

fn apply(directory: &mut Directory, command: Command) {
    let id = LogId {
        term: Term(1),
        index: directory.applied().index.next(),
    };
    let entry = Entry {
        at: ClusterTime::from_millis(id.index.0),
        random: id.index.0,
        command,
    };
    directory
        .handle(Time::ZERO, Event::Apply(id, entry))
        .unwrap();
    while let Some(action) = directory.poll_action() {
        if let Action::Voided(_, void) = action {
            eprintln!("void: {void}");
        }
    }
}
