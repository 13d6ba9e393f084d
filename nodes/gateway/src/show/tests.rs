//! Views of a real directory.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use understudy_protocol::cluster::directory::{
    Claim, Command, Entry, Event, Formation, Grant, Needs, Registration,
};
use understudy_protocol::id::{ChildId, IncarnationId, LogId, Term};
use understudy_protocol::machine::Machine as _;
use understudy_protocol::supervision::Policy;
use understudy_protocol::time::ClusterTime;
use understudy_protocol::wire::heart::{DeathDigest, Ttl};

use super::*;

/// Node `n` is called `a`, `b`, …; its store is `10 + n`, its start `100 + n`.
struct World {
    directory: Directory,
}

impl World {
    /// `nodes` nodes and four shards, all granted to `a` and serving.
    fn formed(nodes: u64) -> World {
        let mut world = World {
            directory: Directory::default(),
        };
        let stores = || (1..=nodes).map(|node| StoreId(10 + node)).collect();
        world.apply(Command::Form(Formation {
            voters: stores(),
            ttl: Ttl::DEFAULT,
            replicas: 3,
            min_copies: 2,
            shards: 4,
            set: stores(),
        }));
        for node in 1..=nodes {
            world.apply(Command::Register(Registration {
                node: NodeId(node),
                incarnation: IncarnationId(100 + node),
                store: StoreId(10 + node),
                death: DeathDigest::of(&[node as u8; 32]),
                votes: true,
                works: true,
                labels: BTreeMap::new(),
                capacity: BTreeMap::new(),
                name: name(node),
                address: format!("127.0.0.1:{}", 7600 + node),
            }));
        }
        for unit in 1..=4 {
            world.serve(UnitId(unit), 1);
        }
        world
    }

    fn apply(&mut self, command: Command) {
        let id = LogId {
            term: Term(1),
            index: self.directory.applied().index.next(),
        };
        let entry = Entry {
            at: ClusterTime::from_millis(id.index.0),
            random: id.index.0,
            command,
        };
        self.directory
            .handle(Time::ZERO, Event::Apply(id, entry))
            .unwrap();
        while let Some(action) = self.directory.poll_action() {
            let void = matches!(
                action,
                understudy_protocol::cluster::directory::Action::Voided(..)
            );
            assert!(!void, "{action:?}");
        }
    }

    fn serve(&mut self, unit: UnitId, node: u64) {
        let entry = self.directory.unit(unit).unwrap();
        let (epoch, config, to) = (entry.epoch, entry.config, IncarnationId(100 + node));
        self.apply(Command::Grant {
            grants: vec![Grant {
                unit,
                epoch,
                config,
                to,
            }],
        });
        self.apply(Command::Serving(Claim {
            unit,
            epoch: epoch.next(),
            incarnation: to,
        }));
    }

    fn view(&self) -> View {
        View {
            directory: Arc::new(self.directory.clone()),
            node: NodeId(1),
            incarnation: IncarnationId(101),
            store: StoreId(11),
            leader: Some(NodeId(2)),
            lease_until: Time::MAX,
            peers: Vec::new(),
            missing_seeds: Vec::new(),
            serving: BTreeSet::new(),
            unavailable: BTreeSet::new(),
        }
    }
}

fn name(node: u64) -> String {
    char::from(b'a' + node as u8 - 1).to_string()
}

fn created(world: &mut World, child: &str) -> UnitId {
    if world.directory.supervisors().len() == 1 {
        world.apply(Command::Supervise {
            parent: ROOT,
            restart: RestartType::Permanent,
            policy: Policy::new(Strategy::OneForOne),
        });
    }
    let child = ChildId::parse(child).unwrap();
    world.apply(Command::Create {
        child: child.clone(),
        supervisor: SupervisorId(1),
        restart: RestartType::Transient,
        needs: Needs::default(),
        set: [StoreId(11), StoreId(12)].into(),
    });
    world.directory.unit_of(&child).unwrap()
}

fn check_states(world: &World, expected: &[(UnitId, &str)]) {
    let view = world.view();
    for (id, state) in expected {
        assert_eq!(unit(&view, *id).unwrap().state, *state, "{id}");
    }
}

#[test]
fn a_cluster_says_who_leads_it_and_how_much_of_it_serves() {
    let world = World::formed(3);
    let shown = cluster(&world.view());
    assert!(shown.formed);
    assert_eq!(shown.node, "a");
    assert_eq!(shown.leader.as_deref(), Some("b"));
    assert_eq!((shown.nodes_live, shown.nodes), (3, 3));
    assert_eq!((shown.units_serving, shown.units), (4, 4));
    assert_eq!(shown.ttl, "3s");
    assert_eq!(shown.voters.len(), 3);
}

#[test]
fn before_there_is_a_cluster_a_view_is_shown_too() {
    let world = World {
        directory: Directory::default(),
    };
    let shown = cluster(&world.view());
    assert!(!shown.formed);
    assert_eq!(shown.node, "node-1");
    assert!(tree(&world.view()).is_none());
    assert!(nodes(&world.view()).is_empty());
    assert!(explain(&world.view(), UnitId(1)).is_none());
}

#[test]
fn a_node_is_live_then_expelled_then_down() {
    let mut world = World::formed(3);
    let state = |world: &World| {
        let shown = nodes(&world.view());
        let names: Vec<_> = shown.iter().map(|node| &*node.name).collect();
        assert_eq!(names, ["a", "b", "c"]);
        (
            shown[2].state.clone(),
            shown[2].incarnation.clone(),
            shown[0].units,
        )
    };
    assert_eq!(state(&world), ("live".into(), Some("inc-67".into()), 4));
    let incarnation = IncarnationId(103);
    world.apply(Command::Expel { incarnation });
    assert_eq!(state(&world), ("expelled".into(), None, 4));
    world.apply(Command::PromisesOver { incarnation });
    assert_eq!(state(&world), ("down".into(), None, 4));
    let shown = node(&world.view(), NodeId(1)).unwrap();
    assert_eq!(shown, nodes(&world.view())[0]);
    assert!(shown.this && shown.voter && !shown.leader);
}

#[test]
fn a_unit_has_one_word_for_what_it_does() {
    let mut world = World::formed(3);
    let a = created(&mut world, "@t/counter/a");
    check_states(&world, &[(UnitId(1), "serving"), (a, "unowned")]);
    let entry = world.directory.unit(a).unwrap();
    let (epoch, config) = (entry.epoch, entry.config);
    let to = IncarnationId(102);
    world.apply(Command::Grant {
        grants: vec![Grant {
            unit: a,
            epoch,
            config,
            to,
        }],
    });
    check_states(&world, &[(a, "starting")]);
    let claim = Claim {
        unit: a,
        epoch: epoch.next(),
        incarnation: to,
    };
    world.apply(Command::Serving(claim));
    check_states(&world, &[(a, "serving")]);
    world.apply(Command::Move {
        unit: a,
        epoch: claim.epoch,
        to: NodeId(3),
    });
    check_states(&world, &[(a, "moving")]);
    world.apply(Command::Remove { unit: a });
    check_states(&world, &[(a, "stopping")]);

    let mut view = world.view();
    view.unavailable.insert(UnitId(1));
    assert_eq!(unit(&view, UnitId(1)).unwrap().state, "unavailable");
    assert!(unit(&view, UnitId(99)).is_none());
}

#[test]
fn a_unit_shows_where_its_records_are_and_which_of_them_are_up() {
    let mut world = World::formed(3);
    let shown = unit(&world.view(), UnitId(2)).unwrap();
    assert_eq!(shown.scope, "slots 4096..8192");
    assert_eq!(shown.child, None);
    assert_eq!((shown.replicas.len(), shown.replicas_live), (3, 3));
    world.apply(Command::Expel {
        incarnation: IncarnationId(103),
    });
    let shown = unit(&world.view(), UnitId(2)).unwrap();
    assert_eq!((shown.replicas.len(), shown.replicas_live), (3, 2));
    assert_eq!(shown.replicas[2].node.as_deref(), Some("c"));
    assert!(!shown.replicas[2].live);
}

#[test]
fn the_tree_holds_every_unit_under_its_supervisor() {
    let mut world = World::formed(3);
    created(&mut world, "@t/counter/a");
    let root = tree(&world.view()).unwrap();
    assert_eq!((root.children.len(), root.more), (5, 0));
    let Some(api::Child::Supervisor(below)) = root.children.last() else {
        panic!("{root:?}");
    };
    assert_eq!(below.strategy, "one_for_one");
    assert_eq!((below.restarts, below.restarts_max), (0, 5));
    assert_eq!(below.window, "10s");
    let Some(api::Child::Unit(unit)) = below.children.first() else {
        panic!("{below:?}");
    };
    assert_eq!(unit.child.as_deref(), Some("@t/counter/a"));
    assert_eq!(unit.restart.as_deref(), Some("transient"));
    let text = serde_json::to_string(&root).unwrap();
    let read: api::Supervisor = serde_json::from_str(&text).unwrap();
    assert_eq!(read, root);
}

#[test]
fn an_explanation_speaks_of_nodes_by_name() {
    let mut world = World::formed(3);
    world.apply(Command::Drain {
        node: NodeId(3),
        draining: true,
    });
    let shown = explain(&world.view(), UnitId(1)).unwrap();
    let text = shown.sentences.join("\n");
    assert!(!text.contains("node-"), "{text}");
    for part in [
        "unit-1 (slots 0..4096) ",
        "a serves it, at epoch 1.",
        "Its records are on a, b, c: 3 of 3 copies, 3 of them on live nodes.",
        "c is draining.",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    assert_eq!(shown.nodes.len(), 3);
    assert_eq!(shown.copies.min_copies, 2);
    assert_eq!(shown.restarts.state.as_deref(), Some("running"));
}

#[test]
fn an_explanation_says_that_too_few_copies_are_left() {
    let mut world = World::formed(3);
    for node in [2, 3] {
        let incarnation = IncarnationId(100 + node);
        world.apply(Command::Expel { incarnation });
    }
    let text = explain(&world.view(), UnitId(1))
        .unwrap()
        .sentences
        .join("\n");
    assert!(text.contains("1 of them on live nodes"), "{text}");
    assert!(text.contains("nothing is acknowledged"), "{text}");
}

#[test]
fn an_explanation_counts_strikes_and_names_quarantine() {
    let mut world = World::formed(3);
    let a = created(&mut world, "@t/counter/a");
    let mut start = 0;
    for nth in 1..=3 {
        let entry = world.directory.unit(a).unwrap();
        let (epoch, config) = (entry.epoch, entry.config);
        // Lost while it was starting, which counts.
        let to = IncarnationId(if start == 0 { 103 } else { 300 + start });
        world.apply(Command::Grant {
            grants: vec![Grant {
                unit: a,
                epoch,
                config,
                to,
            }],
        });
        world.apply(Command::Expel { incarnation: to });
        world.apply(Command::PromisesOver { incarnation: to });
        start += 1;
        world.apply(Command::Register(Registration {
            node: NodeId(3),
            incarnation: IncarnationId(300 + start),
            store: StoreId(13),
            death: DeathDigest::of(&[3; 32]),
            votes: true,
            works: true,
            labels: BTreeMap::new(),
            capacity: BTreeMap::new(),
            name: name(3),
            address: "127.0.0.1:7603".to_owned(),
        }));
        let shown = explain(&world.view(), a).unwrap();
        let text = shown.sentences.join("\n");
        if nth < 3 {
            assert!(text.contains(&format!("{nth} of 3 strikes")), "{text}");
            assert_eq!(shown.unit.state, "waiting");
            world.wait(10_000);
        } else {
            assert!(text.contains("quarantine"), "{text}");
            assert_eq!(shown.unit.state, "quarantined");
        }
    }
}

impl World {
    /// Time passes for the supervisors, until what waits is due.
    fn wait(&mut self, millis: u64) {
        let id = LogId {
            term: Term(1),
            index: self.directory.applied().index.next(),
        };
        let entry = Entry {
            at: ClusterTime::from_millis(self.directory.clock().as_millis() + millis),
            random: 0,
            command: Command::Tick,
        };
        self.directory
            .handle(Time::ZERO, Event::Apply(id, entry))
            .unwrap();
        while self.directory.poll_action().is_some() {}
    }
}

#[test]
fn only_whole_ids_are_replaced_by_names() {
    let world = World::formed(3);
    let check = |text: &str, expected: &str| {
        assert_eq!(named(&world.directory, text), expected);
    };
    check("node-1 and node-2", "a and b");
    check("node-1f", "node-1f");
    check("node-", "node-");
    check(
        "no such node-99999999999999999999 here",
        "no such node-99999999999999999999 here",
    );
    check("", "");
}
