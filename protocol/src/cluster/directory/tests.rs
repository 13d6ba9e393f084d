//! Node `n` has the store `10 + n`; its first start is incarnation `100 n + 1`. [`Cluster::check`]
//! is the one place that touches the machine: a void entry must change nothing.
#![allow(clippy::unwrap_used)]

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;

use super::*;
use crate::cluster::lease::ENDED_MAX;
use crate::cluster::lease::LeaseVoter;
use crate::cluster::lease::voter;
use crate::id::{
    COUNTER_MAX, ConfigVersion, Epoch, LogIndex, SLOTS, SlotRange, Term, VotersVersion,
};
use crate::supervision::supervisor::{CHILDREN_MAX, ChildState};
use crate::supervision::{Exit, Policy, RestartType, Strategy, Supervisor};
use crate::wire::codec::{EncodeError, Message, decode_whole, encode_frame};
use crate::wire::heart::{DeathDigest, Renewal, Verdict};
use crate::wire::replica::{EXCEPTIONS_MAX, Scope};

const PERMANENT: RestartType = RestartType::Permanent;

/// A directory and the index of its last entry.
#[derive(Clone)]
struct Cluster {
    directory: Directory,
    /// The directory's time for the next entry, in milliseconds.
    at: u64,
}

impl Cluster {
    fn new() -> Cluster {
        Cluster {
            directory: Directory::default(),
            at: 0,
        }
    }

    /// `nodes` nodes, `shards` shards with their records on every node, two copies at least.
    fn formed(nodes: u64, shards: u16) -> Cluster {
        let mut cluster = Cluster::new();
        cluster.ok(Command::Form(formation(nodes, shards)));
        for node in 1..=nodes {
            cluster.ok(Command::Register(registration(node, 1)));
        }
        cluster
    }

    /// Every unit granted to node 1 and serving.
    fn serving(nodes: u64, shards: u16) -> Cluster {
        let mut cluster = Cluster::formed(nodes, shards);
        cluster.serve_all(incarnation(1, 1));
        cluster
    }

    /// Applies one entry: what it brought about.
    fn apply(&mut self, command: Command) -> Vec<Action> {
        let entry = Entry {
            at: ClusterTime::from_millis(self.at),
            random: self.at.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            command,
        };
        let id = self.next_id();
        self.directory
            .handle(Time::ZERO, Event::Apply(id, entry))
            .unwrap();
        core::iter::from_fn(|| self.directory.poll_action()).collect()
    }

    /// Applies one entry and says whether it, or any part of it, was void. One that is void as a
    /// whole must have changed nothing.
    fn check(&mut self, command: Command, expected: Result<(), Void>) -> Vec<Action> {
        let mut skipped = self.directory.clone();
        skipped.clock = skipped.clock.max(ClusterTime::from_millis(self.at));
        skipped
            .handle(Time::ZERO, Event::Skip(self.next_id()))
            .unwrap();
        let batch = matches!(command, Command::Grant { .. });
        let what = format!("{command:?}");
        let actions = self.apply(command);
        let voids: Vec<Void> = actions.iter().filter_map(voided).collect();
        assert_eq!(
            voids.first().copied().map_or(Ok(()), Err),
            expected,
            "{what}"
        );
        if expected.is_err() && !batch {
            assert_eq!(
                self.directory, skipped,
                "{what} was void and changed something"
            );
        }
        actions
    }

    fn ok(&mut self, command: Command) -> Vec<Action> {
        self.check(command, Ok(()))
    }

    fn void(&mut self, command: Command, void: Void) {
        self.check(command, Err(void));
    }

    fn next_id(&self) -> LogId {
        LogId {
            term: Term(1),
            index: self.directory.applied.index.next(),
        }
    }

    fn unit(&self, unit: UnitId) -> &UnitEntry {
        self.directory.unit(unit).unwrap()
    }

    fn claim(&self, unit: UnitId) -> Claim {
        let entry = self.unit(unit);
        Claim {
            unit,
            epoch: entry.epoch,
            incarnation: entry.owner.unwrap().incarnation,
        }
    }

    fn grant(&self, unit: UnitId, to: IncarnationId) -> Grant {
        let entry = self.unit(unit);
        Grant {
            unit,
            epoch: entry.epoch,
            config: entry.config,
            to,
        }
    }

    /// Grants whatever is wanted, in one entry.
    fn grant_all(&mut self, to: IncarnationId) {
        let wanted = self.directory.units().iter();
        let grants = wanted
            .filter(|(_, entry)| entry.wants_owner())
            .map(|(unit, _)| self.grant(*unit, to))
            .collect();
        self.ok(Command::Grant { grants });
    }

    fn serve_all(&mut self, to: IncarnationId) {
        self.grant_all(to);
        let owned: Vec<UnitId> = self.directory.units().keys().copied().collect();
        for unit in owned {
            if self.unit(unit).owner.is_some_and(|owner| !owner.serving) {
                self.ok(Command::Serving(self.claim(unit)));
            }
        }
    }

    fn supervise(&mut self, parent: SupervisorId, strategy: Strategy) -> SupervisorId {
        let id = SupervisorId(self.directory.next_supervisor);
        let command = Command::Supervise {
            parent,
            restart: PERMANENT,
            policy: Policy::new(strategy),
        };
        self.ok(command);
        id
    }

    fn create(&mut self, name: &str, supervisor: SupervisorId) -> UnitId {
        self.ok(create(name, supervisor));
        self.directory.unit_of(&dedicated(name)).unwrap()
    }

    /// The incarnation is expelled and its promises are over.
    fn lose(&mut self, incarnation: IncarnationId) -> Vec<Action> {
        self.ok(Command::Expel { incarnation });
        self.ok(Command::PromisesOver { incarnation })
    }

    fn runs(&self, units: &[UnitId]) -> Vec<Run> {
        units.iter().map(|unit| self.unit(*unit).run).collect()
    }
}

fn voided(action: &Action) -> Option<Void> {
    match action {
        Action::Voided(_, void) => Some(*void),
        _ => None,
    }
}

fn formation(nodes: u64, shards: u16) -> Formation {
    Formation {
        voters: (1..=nodes).map(store).collect(),
        ttl: Ttl::DEFAULT,
        replicas: nodes.min(3) as u8,
        min_copies: nodes.min(2) as u8,
        shards,
        set: (1..=nodes.min(3)).map(store).collect(),
    }
}

fn registration(node: u64, start: u64) -> Registration {
    Registration {
        node: NodeId(node),
        incarnation: incarnation(node, start),
        store: store(node),
        death: DeathDigest::of(&secret(node, start)),
        votes: true,
        works: true,
        labels: BTreeMap::new(),
        capacity: BTreeMap::new(),
        name: alloc::string::String::new(),
        address: alloc::string::String::new(),
    }
}

fn create(name: &str, supervisor: SupervisorId) -> Command {
    Command::Create {
        child: dedicated(name),
        supervisor,
        restart: PERMANENT,
        needs: Needs::default(),
        set: stores(&[1, 2]),
    }
}

fn note(node: u64, start: u64, at_work: &[UnitId]) -> Command {
    Command::DeathNote {
        incarnation: incarnation(node, start),
        secret: secret(node, start),
        at_work: at_work.to_vec(),
    }
}

fn secret(node: u64, start: u64) -> [u8; 32] {
    [(node * 16 + start) as u8; 32]
}

fn incarnation(node: u64, start: u64) -> IncarnationId {
    IncarnationId(node * 100 + start)
}

fn store(node: u64) -> StoreId {
    StoreId(10 + node)
}

fn stores(nodes: &[u64]) -> BTreeSet<StoreId> {
    nodes.iter().copied().map(store).collect()
}

fn child(name: &str) -> ChildId {
    ChildId::parse(&format!("t/k/{name}")).unwrap()
}

/// A child of a dedicated kind.
fn dedicated(name: &str) -> ChildId {
    ChildId::parse(&format!("@t/k/{name}")).unwrap()
}

/// A child of the unit's slots.
fn child_in(scope: &Scope, nth: usize) -> ChildId {
    let names = (0..).map(|name| child(&format!("c{name}")));
    names.filter(|child| scope.holds(child)).nth(nth).unwrap()
}

const A: UnitId = UnitId(1);
const B: UnitId = UnitId(2);

// Formation and membership.

#[test]
fn a_cluster_is_formed_once_and_before_everything_else() {
    let mut cluster = Cluster::new();
    for early in [
        Command::Register(registration(1, 1)),
        Command::SetTtl(Ttl::WAN),
        Command::SetVoters(Voters::first([store(1)])),
        Command::SetCopies {
            replicas: 1,
            min_copies: 1,
            by_operator: true,
        },
        Command::Tick,
    ] {
        cluster.void(early, Void::NotNow);
    }
    for bad in [
        Formation {
            shards: 0,
            ..formation(3, 4)
        },
        Formation {
            shards: SLOTS + 1,
            ..formation(3, 4)
        },
        Formation {
            min_copies: 4,
            ..formation(3, 4)
        },
        Formation {
            min_copies: 0,
            ..formation(3, 4)
        },
        Formation {
            voters: BTreeSet::new(),
            ..formation(3, 4)
        },
        Formation {
            set: BTreeSet::new(),
            ..formation(3, 4)
        },
    ] {
        cluster.void(Command::Form(bad), Void::NotNow);
    }
    cluster.ok(Command::Form(formation(3, 7)));
    assert_slots_covered_once(&cluster.directory);
    cluster.void(Command::Form(formation(3, 7)), Void::NotNow);
}

#[test]
fn entries_come_in_order_each_once() {
    let mut cluster = Cluster::formed(1, 1);
    let before = cluster.directory.clone();
    let applied = cluster.directory.applied();
    let ahead = LogId {
        term: Term(1),
        index: applied.index.next().next(),
    };
    for id in [applied, ahead, LogId::default()] {
        assert_eq!(
            cluster.directory.handle(Time::ZERO, Event::Skip(id)),
            Err(ApplyError::OutOfOrder)
        );
    }
    assert_eq!(cluster.directory, before);
}

#[test]
fn the_clock_never_goes_back() {
    let mut cluster = Cluster::formed(1, 1);
    cluster.at = 5_000;
    cluster.ok(Command::Tick);
    cluster.at = 1_000;
    cluster.ok(Command::Tick);
    assert_eq!(cluster.directory.clock().as_millis(), 5_000);
}

#[test]
fn a_new_start_of_a_node_expels_the_one_before() {
    let mut cluster = Cluster::serving(2, 1);
    cluster.ok(Command::Register(registration(1, 2)));
    assert!(!cluster.directory.is_live(incarnation(1, 1)));
    assert!(cluster.directory.is_live(incarnation(1, 2)));
    // L7: what it was granted stays with it until its promises are over.
    assert_eq!(cluster.claim(A).incarnation, incarnation(1, 1));
    cluster.void(Command::Register(registration(1, 1)), Void::NotNow);
    cluster.ok(Command::PromisesOver {
        incarnation: incarnation(1, 1),
    });
    assert!(cluster.unit(A).wants_owner());
}

#[test]
fn a_start_that_has_ended_is_not_made_live_again() {
    let mut cluster = Cluster::serving(2, 1);
    cluster.ok(note(1, 1, &[]));
    cluster.void(Command::Register(registration(1, 1)), Void::NoIncarnation);
    cluster.ok(Command::Register(registration(1, 2)));
    // As many starts back as are remembered.
    for start in 2..2 + ENDED_MAX as u64 - 1 {
        cluster.ok(note(1, start, &[]));
        cluster.ok(Command::Register(registration(1, start + 1)));
    }
    let live = incarnation(1, 1 + ENDED_MAX as u64);
    for start in 1..=ENDED_MAX as u64 {
        cluster.void(
            Command::Register(registration(1, start)),
            Void::NoIncarnation,
        );
    }
    assert!(cluster.directory.is_live(live));
    let node = &cluster.directory.nodes()[&NodeId(1)];
    assert_eq!(node.ended.iter().count(), ENDED_MAX);
    // The list has an end.
    cluster.ok(note(1, 1 + ENDED_MAX as u64, &[]));
    let node = &cluster.directory.nodes()[&NodeId(1)];
    assert_eq!(node.ended.iter().count(), ENDED_MAX);
    assert_eq!(node.ended.iter().last(), Some(live));
}

#[test]
fn a_store_id_is_never_used_again() {
    let mut cluster = Cluster::formed(2, 1);
    let others = Registration {
        store: store(2),
        ..registration(1, 2)
    };
    cluster.void(Command::Register(others), Void::StoreUsed);
    let renewed = Registration {
        store: StoreId(99),
        ..registration(1, 2)
    };
    cluster.ok(Command::Register(renewed));
    assert!(cluster.directory.stores()[&store(1)].retired);
    assert_eq!(cluster.directory.node_of(store(1)), None);
    assert_eq!(cluster.directory.node_of(StoreId(99)), Some(NodeId(1)));
    cluster.void(Command::Register(registration(1, 3)), Void::StoreUsed);
}

#[test]
fn a_witness_stores_while_fewer_than_three_others_do() {
    let mut cluster = Cluster::formed(2, 1);
    let witness = Registration {
        works: false,
        ..registration(3, 1)
    };
    cluster.ok(Command::Register(witness));
    assert_eq!(cluster.directory.storing_stores().count(), 3);
    cluster.ok(Command::Register(registration(4, 1)));
    let stores: Vec<StoreId> = cluster
        .directory
        .storing_stores()
        .map(|(id, _)| id)
        .collect();
    assert_eq!(stores, [store(1), store(2), store(4)]);
}

// Leases.

#[test]
fn only_a_live_incarnation_is_expelled_and_only_an_expelled_one_is_over() {
    let mut cluster = Cluster::serving(2, 1);
    let (first, nobody) = (incarnation(1, 1), IncarnationId(7));
    cluster.void(
        Command::Expel {
            incarnation: nobody,
        },
        Void::NoIncarnation,
    );
    cluster.void(
        Command::PromisesOver { incarnation: first },
        Void::NoIncarnation,
    );
    cluster.ok(Command::Expel { incarnation: first });
    cluster.void(Command::Expel { incarnation: first }, Void::NoIncarnation);
    assert!(cluster.unit(A).owner.is_some(), "L7: not before it is over");
    cluster.ok(Command::PromisesOver { incarnation: first });
    assert!(cluster.unit(A).wants_owner());
    cluster.void(
        Command::PromisesOver { incarnation: first },
        Void::NoIncarnation,
    );
}

#[test]
fn a_death_note_ends_all_promises_if_it_proves_itself() {
    let mut cluster = Cluster::serving(2, 1);
    let forged = Command::DeathNote {
        incarnation: incarnation(1, 1),
        secret: [0; 32],
        at_work: Vec::new(),
    };
    cluster.void(forged, Void::NotProven);
    cluster.void(note(1, 2, &[]), Void::NoIncarnation);
    cluster.ok(note(1, 1, &[]));
    assert!(cluster.unit(A).wants_owner());
    assert_eq!(cluster.directory.nodes()[&NodeId(1)].incarnation, None);
    cluster.void(note(1, 1, &[]), Void::NoIncarnation);
}

#[test]
fn a_late_death_note_does_not_touch_the_next_start() {
    let mut cluster = Cluster::serving(2, 1);
    cluster.ok(Command::Register(registration(1, 2)));
    cluster.ok(note(1, 1, &[]));
    assert!(cluster.directory.is_live(incarnation(1, 2)));
    assert_eq!(
        cluster.directory.nodes()[&NodeId(1)].incarnation,
        Some(incarnation(1, 2))
    );
}

#[test]
fn the_voters_change_one_step_at_a_time() {
    let mut cluster = Cluster::formed(3, 1);
    let first = cluster.directory.voters().clone();
    let (joint, elsewhere) = (first.joint(stores(&[1, 2])), Voters::first([store(3)]));
    let jump = Voters {
        version: first.version.next(),
        ..elsewhere.clone()
    };
    for bad in [
        first.clone(),
        elsewhere,
        joint.settled(),
        jump,
        first.settled(),
        Voters {
            outgoing: Some(stores(&[3])),
            ..joint.clone()
        },
        first.joint(BTreeSet::new()),
    ] {
        cluster.void(Command::SetVoters(bad), Void::OldVoters);
    }
    cluster.ok(Command::SetVoters(joint.clone()));
    cluster.void(Command::SetVoters(joint.clone()), Void::OldVoters);
    for bad in [
        joint.joint(stores(&[3])),
        Voters {
            current: stores(&[3]),
            ..joint.settled()
        },
    ] {
        cluster.void(Command::SetVoters(bad), Void::OldVoters);
    }
    cluster.ok(Command::SetVoters(joint.settled()));
    assert_eq!(cluster.directory.voters().version, VotersVersion(3));
}

// Grants.

#[test]
fn a_grant_moves_the_epoch_forward_by_one() {
    let mut cluster = Cluster::formed(2, 1);
    let grant = cluster.grant(A, incarnation(1, 1));
    cluster.ok(Command::Grant {
        grants: [grant].into(),
    });
    assert_eq!(cluster.unit(A).epoch, Epoch(1));
    cluster.void(
        Command::Grant {
            grants: [grant].into(),
        },
        Void::NotOwner,
    );
    cluster.ok(Command::Release(cluster.claim(A)));
    cluster.void(
        Command::Grant {
            grants: [grant].into(),
        },
        Void::Stale,
    );
    cluster.grant_all(incarnation(2, 1));
    assert_eq!(cluster.unit(A).epoch, Epoch(2));
}

#[test]
fn one_void_grant_of_a_batch_leaves_the_others() {
    let mut cluster = Cluster::formed(2, 5);
    let unit = UnitId;
    cluster.ok(Command::Expel {
        incarnation: incarnation(2, 1),
    });
    let to = incarnation(1, 1);
    let good = cluster.grant(A, to);
    let stale_epoch = Grant {
        epoch: Epoch(3),
        ..cluster.grant(unit(2), to)
    };
    let stale_set = Grant {
        config: ConfigVersion(9),
        ..cluster.grant(unit(3), to)
    };
    let expelled = cluster.grant(unit(4), incarnation(2, 1));
    let stranger = cluster.grant(unit(4), IncarnationId(7));
    let nothing = Grant {
        unit: unit(77),
        ..good
    };
    let last = cluster.grant(unit(5), to);
    let batch = [
        good,
        stale_epoch,
        stale_set,
        expelled,
        stranger,
        nothing,
        good,
        last,
    ];
    let actions = cluster.apply(Command::Grant {
        grants: batch.into(),
    });
    let voids: Vec<Void> = actions.iter().filter_map(voided).collect();
    assert_eq!(
        voids,
        [
            Void::Stale,
            Void::Stale,
            Void::NoIncarnation,
            Void::NoIncarnation,
            Void::Unknown,
            Void::NotOwner,
        ]
    );
    let granted = |id: u64| cluster.unit(unit(id)).owner.is_some();
    assert_eq!(
        [1, 2, 3, 4, 5].map(granted),
        [true, false, false, false, true]
    );
}

#[test]
fn a_unit_is_granted_again_only_after_its_owner_is_over_or_released_it() {
    let mut cluster = Cluster::formed(2, 1);
    cluster.grant_all(incarnation(1, 1));
    let again = |cluster: &Cluster| Command::Grant {
        grants: [cluster.grant(A, incarnation(2, 1))].into(),
    };
    // L7: serving or not.
    cluster.void(again(&cluster), Void::NotOwner);
    cluster.ok(Command::Expel {
        incarnation: incarnation(1, 1),
    });
    cluster.void(again(&cluster), Void::NotOwner);
    cluster.ok(Command::PromisesOver {
        incarnation: incarnation(1, 1),
    });
    cluster.at = cluster.directory.next_deadline().unwrap().as_millis();
    cluster.ok(Command::Tick);
    cluster.ok(again(&cluster));
}

#[test]
fn what_an_expelled_owner_asks_for_is_void() {
    let mut cluster = Cluster::serving(3, 2);
    let (a, b) = (cluster.claim(A), cluster.claim(B));
    let config = ConfigVersion(1);
    let child = child_in(&cluster.unit(A).scope, 0);
    cluster.ok(Command::Expel {
        incarnation: incarnation(1, 1),
    });
    let exit = Exit::Normal;
    let set = stores(&[1, 2]);
    for asked in [
        Command::Release(a),
        Command::Exited { claim: a, exit },
        Command::Serving(a),
        Command::ChangeSet {
            claim: a,
            config,
            set,
        },
        Command::Split {
            claim: a,
            config,
            at: 100,
        },
        Command::Merge {
            low: a,
            low_config: config,
            high: b,
            high_config: config,
        },
        Command::Except {
            claim: a,
            config,
            child,
        },
    ] {
        cluster.void(asked, Void::NotOwner);
    }
}

#[test]
fn a_claim_must_be_the_present_grant() {
    let mut cluster = Cluster::serving(2, 1);
    let claim = cluster.claim(A);
    let old = Claim {
        epoch: Epoch(0),
        ..claim
    };
    let other = Claim {
        incarnation: incarnation(2, 1),
        ..claim
    };
    let nothing = Claim {
        unit: UnitId(77),
        ..claim
    };
    cluster.void(Command::Release(old), Void::NotOwner);
    cluster.void(Command::Release(other), Void::NotOwner);
    cluster.void(Command::Release(nothing), Void::Unknown);
    cluster.ok(Command::Release(claim));
    cluster.void(Command::Release(claim), Void::NotOwner);
    cluster.void(Command::Serving(claim), Void::NotOwner);
}

#[test]
fn a_released_unit_is_wanted_at_once_and_counts_as_no_restart() {
    let mut cluster = Cluster::serving(2, 1);
    for _ in 0..20 {
        cluster.ok(Command::Release(cluster.claim(A)));
        assert!(cluster.unit(A).wants_owner());
        cluster.serve_all(incarnation(2, 1));
    }
}

#[test]
fn a_planned_move_is_made_by_the_next_grant() {
    let mut cluster = Cluster::serving(2, 1);
    let epoch = cluster.unit(A).epoch;
    let to = |unit, epoch, node| Command::Move {
        unit,
        epoch,
        to: NodeId(node),
    };
    cluster.void(to(UnitId(77), epoch, 2), Void::Unknown);
    cluster.void(to(A, Epoch(7), 2), Void::Stale);
    cluster.void(to(A, epoch, 9), Void::Unknown);
    cluster.ok(to(A, epoch, 2));
    assert_eq!(cluster.unit(A).move_to, Some(NodeId(2)));
    cluster.at = 77;
    cluster.ok(Command::Release(cluster.claim(A)));
    cluster.grant_all(incarnation(2, 1));
    assert_eq!(cluster.unit(A).move_to, None);
    assert_eq!(
        cluster.unit(A).last_moved,
        Some(ClusterTime::from_millis(77))
    );
}

#[test]
fn draining_is_remembered_across_a_restart_of_the_node() {
    let mut cluster = Cluster::formed(2, 1);
    let drain = |node, draining| Command::Drain {
        node: NodeId(node),
        draining,
    };
    cluster.void(drain(9, true), Void::Unknown);
    cluster.ok(drain(1, true));
    cluster.ok(Command::Register(registration(1, 2)));
    assert!(cluster.directory.nodes()[&NodeId(1)].draining);
    cluster.ok(drain(1, false));
    assert!(!cluster.directory.nodes()[&NodeId(1)].draining);
}

// Replica sets.

#[test]
fn a_set_changes_by_compare_and_swap_and_never_below_min_copies() {
    let mut cluster = Cluster::serving(4, 1);
    let claim = cluster.claim(A);
    let change = |config, nodes: &[u64]| Command::ChangeSet {
        claim,
        config: ConfigVersion(config),
        set: stores(nodes),
    };
    cluster.void(change(2, &[1, 2]), Void::Stale);
    cluster.void(change(1, &[1]), Void::BadSet);
    cluster.void(change(1, &[]), Void::BadSet);
    cluster.void(change(1, &[1, 2, 9]), Void::BadSet);
    cluster.ok(change(1, &[1, 2]));
    cluster.void(change(1, &[1, 2, 3]), Void::Stale);
    cluster.void(change(2, &[2]), Void::BadSet);
    cluster.ok(change(2, &[2, 4]));
    assert_eq!(cluster.unit(A).set, stores(&[2, 4]));
    assert_eq!(cluster.unit(A).config, ConfigVersion(3));
}

#[test]
fn a_retired_store_may_stay_in_a_set_and_never_join_one() {
    let mut cluster = Cluster::serving(4, 1);
    let renewed = |node| {
        Command::Register(Registration {
            store: StoreId(90 + node),
            ..registration(node, 2)
        })
    };
    cluster.ok(renewed(3));
    cluster.ok(renewed(4));
    let claim = cluster.claim(A);
    let change = |config, nodes: &[u64]| Command::ChangeSet {
        claim,
        config: ConfigVersion(config),
        set: stores(nodes),
    };
    cluster.void(change(1, &[1, 2, 3, 4]), Void::BadSet);
    cluster.ok(change(1, &[1, 3]));
    cluster.ok(change(2, &[1, 2]));
    cluster.void(change(3, &[1, 3]), Void::BadSet);
}

#[test]
fn min_copies_is_at_least_one_and_no_more_than_the_replicas() {
    let mut cluster = Cluster::formed(3, 1);
    let copies = |replicas, min_copies| Command::SetCopies {
        replicas,
        min_copies,
        by_operator: true,
    };
    cluster.void(copies(3, 0), Void::BadSet);
    cluster.void(copies(0, 0), Void::BadSet);
    cluster.void(copies(2, 3), Void::BadSet);
    cluster.ok(copies(5, 1));
    assert_eq!(cluster.directory.min_copies(), 1);
    assert_eq!(
        cluster.directory.wanted_replicas(),
        3,
        "R4: all storing nodes if fewer"
    );
    assert!(!cluster.directory.may_raise_min_copies());
}

#[test]
fn recovery_accepts_loss_and_invents_nothing() {
    let mut cluster = Cluster::serving(4, 1);
    let recover = |unit, nodes: &[u64]| Command::Recover {
        unit,
        set: stores(nodes),
    };
    cluster.void(recover(UnitId(77), &[1]), Void::Unknown);
    cluster.void(recover(A, &[]), Void::BadSet);
    cluster.void(recover(A, &[1, 4]), Void::BadSet);
    cluster.ok(recover(A, &[2]));
    assert_eq!(cluster.unit(A).set, stores(&[2]));
    assert_eq!(cluster.unit(A).config, ConfigVersion(2));
}

// Slots.

fn assert_slots_covered_once(directory: &Directory) {
    let mut covered = alloc::vec![None; usize::from(SLOTS)];
    let mut children = BTreeSet::new();
    for (id, unit) in directory.units() {
        match &unit.scope {
            Scope::Slots { range, .. } => {
                for slot in range.start()..range.end() {
                    let before = covered[usize::from(slot)].replace(*id);
                    assert_eq!(before, None, "slot {slot} has two shards");
                }
            }
            Scope::Child(child) => {
                assert!(children.insert(child), "{child} has two units");
                assert_eq!(directory.unit_of(child), Some(*id));
            }
        }
    }
    for (slot, unit) in covered.into_iter().enumerate() {
        let slot = Slot::new(slot as u16).unwrap();
        assert!(unit.is_some(), "{slot:?} has no shard");
        assert_eq!(directory.shard_of(slot), unit);
    }
}

#[test]
fn a_split_gives_both_halves_the_owner_and_the_next_epoch() {
    let mut cluster = Cluster::serving(3, 1);
    let claim = cluster.claim(A);
    let split = |config, at| Command::Split {
        claim,
        config: ConfigVersion(config),
        at,
    };
    cluster.void(split(2, 100), Void::Stale);
    cluster.void(split(1, 0), Void::BadSlots);
    cluster.void(split(1, SLOTS), Void::BadSlots);
    cluster.ok(split(1, 100));
    let (low, high) = (cluster.unit(A).clone(), cluster.unit(B).clone());
    assert_eq!((low.epoch, high.epoch), (Epoch(2), Epoch(2)));
    assert_eq!(low.owner, high.owner);
    assert!(high.owner.unwrap().serving);
    assert_eq!((low.run, high.run), (Run::Wanted, Run::Wanted));
    assert_slots_covered_once(&cluster.directory);
    cluster.void(split(1, 50), Void::NotOwner);
    // Both are their supervisor's: they come back after the node.
    cluster.lose(incarnation(1, 1));
    cluster.serve_all(incarnation(2, 1));
    assert_eq!(cluster.unit(B).epoch, Epoch(3));
}

#[test]
fn a_merge_goes_on_at_the_highest_epoch_and_one_more() {
    let mut cluster = Cluster::serving(3, 3);
    let unit = |id| UnitId(id);
    for _ in 0..4 {
        cluster.ok(Command::Release(cluster.claim(B)));
        cluster.serve_all(incarnation(1, 1));
    }
    let merge = |cluster: &Cluster, low: u64, high: u64| Command::Merge {
        low: cluster.claim(unit(low)),
        low_config: cluster.unit(unit(low)).config,
        high: cluster.claim(unit(high)),
        high_config: cluster.unit(unit(high)).config,
    };
    cluster.void(merge(&cluster, 2, 1), Void::BadSlots);
    cluster.void(merge(&cluster, 1, 3), Void::BadSlots);
    cluster.void(merge(&cluster, 1, 1), Void::BadSlots);
    // S2: the same set.
    cluster.ok(Command::ChangeSet {
        claim: cluster.claim(B),
        config: ConfigVersion(1),
        set: stores(&[1, 2]),
    });
    cluster.void(merge(&cluster, 1, 2), Void::BadSlots);
    let stale = match merge(&cluster, 1, 2) {
        Command::Merge {
            low,
            low_config,
            high,
            ..
        } => Command::Merge {
            low,
            low_config,
            high,
            high_config: ConfigVersion(1),
        },
        other => other,
    };
    cluster.void(stale, Void::Stale);
    cluster.ok(Command::ChangeSet {
        claim: cluster.claim(B),
        config: ConfigVersion(2),
        set: stores(&[1, 2, 3]),
    });
    cluster.ok(merge(&cluster, 1, 2));
    assert_eq!(cluster.directory.unit(B), None);
    assert_eq!(cluster.unit(A).epoch, Epoch(6));
    assert_eq!(cluster.unit(A).config, ConfigVersion(4));
    assert_slots_covered_once(&cluster.directory);
    let supervisor = &cluster.directory.supervisors()[&ROOT].supervisor;
    assert_eq!(supervisor.len(), 2, "the merged one is forgotten");
}

#[test]
fn shards_of_two_owners_do_not_merge() {
    let mut cluster = Cluster::serving(2, 2);
    cluster.ok(Command::Release(cluster.claim(B)));
    cluster.serve_all(incarnation(2, 1));
    let merge = Command::Merge {
        low: cluster.claim(A),
        low_config: ConfigVersion(1),
        high: cluster.claim(B),
        high_config: ConfigVersion(1),
    };
    cluster.void(merge, Void::BadSlots);
}

#[test]
fn only_a_serving_owner_reshapes() {
    let mut cluster = Cluster::formed(2, 1);
    cluster.grant_all(incarnation(1, 1));
    let split = Command::Split {
        claim: cluster.claim(A),
        config: ConfigVersion(1),
        at: 100,
    };
    cluster.void(split.clone(), Void::NotOwner);
    cluster.ok(Command::Serving(cluster.claim(A)));
    cluster.ok(split);
}

#[test]
fn an_excepted_child_gets_a_unit_of_its_own_at_the_next_epoch() {
    let mut cluster = Cluster::serving(2, 2);
    let child = child_in(&cluster.unit(A).scope, 0);
    let except = |cluster: &Cluster, config, child: &ChildId| Command::Except {
        claim: cluster.claim(A),
        config: ConfigVersion(config),
        child: child.clone(),
    };
    let elsewhere = child_in(&cluster.unit(B).scope, 0);
    cluster.void(except(&cluster, 1, &elsewhere), Void::BadSlots);
    cluster.void(except(&cluster, 2, &child), Void::Stale);
    cluster.ok(except(&cluster, 1, &child));
    let own = cluster.directory.unit_of(&child).unwrap();
    assert_eq!(cluster.unit(own).scope, Scope::Child(child.clone()));
    assert_eq!(
        (cluster.unit(own).epoch, cluster.unit(A).epoch),
        (Epoch(2), Epoch(2))
    );
    assert_eq!(cluster.unit(own).owner, cluster.unit(A).owner);
    assert!(!cluster.unit(A).scope.holds(&child));
    cluster.void(except(&cluster, 1, &child), Void::BadSlots);
    let of_child = Command::Except {
        claim: cluster.claim(own),
        config: ConfigVersion(1),
        child: child.clone(),
    };
    cluster.void(of_child, Void::BadSlots);
    cluster.lose(incarnation(1, 1));
    assert!(cluster.unit(own).wants_owner() && cluster.unit(A).wants_owner());
}

#[test]
fn a_light_child_always_has_a_unit() {
    let mut cluster = Cluster::serving(2, 2);
    let child = child_in(&cluster.unit(A).scope, 0);
    cluster.ok(Command::Except {
        claim: cluster.claim(A),
        config: ConfigVersion(1),
        child: child.clone(),
    });
    let own = cluster.directory.unit_of(&child).unwrap();
    for unit in [own, A] {
        cluster.void(Command::Remove { unit }, Void::BadSlots);
    }
    assert!(cluster.unit(own).scope.holds(&child));
}

#[test]
fn a_shard_excepts_a_limited_number_of_children_also_when_merged() {
    let mut cluster = Cluster::serving(2, 2);
    for (unit, count) in [(A, EXCEPTIONS_MAX), (B, 1)] {
        for _ in 0..count {
            let child = child_in(&cluster.unit(unit).scope, 0);
            cluster.ok(Command::Except {
                claim: cluster.claim(unit),
                config: ConfigVersion(1),
                child,
            });
        }
    }
    let child = child_in(&cluster.unit(A).scope, 0);
    let one_more = Command::Except {
        claim: cluster.claim(A),
        config: ConfigVersion(1),
        child,
    };
    cluster.void(one_more, Void::BadSlots);
    let merge = Command::Merge {
        low: cluster.claim(A),
        low_config: ConfigVersion(1),
        high: cluster.claim(B),
        high_config: ConfigVersion(1),
    };
    cluster.void(merge, Void::BadSlots);
    cluster.ok(Command::Split {
        claim: cluster.claim(A),
        config: ConfigVersion(1),
        at: 4_000,
    });
    let high = cluster
        .directory
        .shard_of(Slot::new(4_000).unwrap())
        .unwrap();
    let excepted = |unit| match &cluster.unit(unit).scope {
        Scope::Slots { except, .. } => except.len(),
        Scope::Child(_) => 0,
    };
    assert_eq!(excepted(A) + excepted(high), EXCEPTIONS_MAX);
    assert!(excepted(A) > 0 && excepted(high) > 0);
}

/// Xorshift: enough to pick with.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

#[test]
fn random_splits_merges_and_exceptions_keep_every_slot_in_one_shard() {
    for seed in 1..=20 {
        let mut rng = Rng(seed * 77);
        let mut cluster = Cluster::serving(3, 1 + (seed as u16) % 5);
        for _ in 0..60 {
            let units: Vec<UnitId> = cluster.directory.units().keys().copied().collect();
            let (one, two) = (rng.pick(&units), rng.pick(&units));
            let command = match rng.below(4) {
                0 => Command::Merge {
                    low: cluster.claim(one),
                    low_config: cluster.unit(one).config,
                    high: cluster.claim(two),
                    high_config: cluster.unit(two).config,
                },
                1 => Command::Except {
                    claim: cluster.claim(one),
                    config: cluster.unit(one).config,
                    child: child(&format!("r{}", rng.below(500))),
                },
                _ => Command::Split {
                    claim: cluster.claim(one),
                    config: cluster.unit(one).config,
                    at: rng.below(u64::from(SLOTS)) as u16,
                },
            };
            let epochs: BTreeMap<UnitId, Epoch> = cluster
                .directory
                .units()
                .iter()
                .map(|(id, unit)| (*id, unit.epoch))
                .collect();
            let _ = cluster.apply(command);
            for (id, unit) in cluster.directory.units() {
                assert!(epochs.get(id).is_none_or(|epoch| unit.epoch >= *epoch));
            }
        }
        assert_slots_covered_once(&cluster.directory);
    }
}

// The supervisors' tree.

#[test]
fn a_unit_is_created_once_under_a_known_supervisor_on_known_stores() {
    let mut cluster = Cluster::serving(2, 1);
    cluster.void(create("a", SupervisorId(7)), Void::Unknown);
    let with = |set| match create("a", ROOT) {
        Command::Create {
            child,
            supervisor,
            restart,
            needs,
            ..
        } => Command::Create {
            child,
            supervisor,
            restart,
            needs,
            set,
        },
        other => other,
    };
    cluster.void(with(BTreeSet::new()), Void::BadSet);
    cluster.void(with(stores(&[1, 9])), Void::BadSet);
    let unit = cluster.create("a", ROOT);
    cluster.void(create("a", ROOT), Void::Exists);
    assert!(cluster.unit(unit).wants_owner());
    cluster.void(Command::Remove { unit: UnitId(77) }, Void::Unknown);
    cluster.ok(Command::Remove { unit });
    assert_eq!(cluster.directory.unit(unit), None);
}

#[test]
fn a_running_unit_is_removed_when_its_owner_has_stopped_it() {
    let mut cluster = Cluster::serving(2, 1);
    let unit = cluster.create("a", ROOT);
    cluster.serve_all(incarnation(1, 1));
    cluster.ok(Command::Remove { unit });
    assert_eq!(cluster.unit(unit).run, Run::Stopping);
    cluster.void(Command::Remove { unit }, Void::Refused);
    cluster.ok(Command::Exited {
        claim: cluster.claim(unit),
        exit: Exit::Shutdown,
    });
    assert_eq!(cluster.directory.unit(unit), None);
    // The name is free, and no promise of its former life is in the way of the new one.
    let again = cluster.create("a", ROOT);
    assert!(cluster.unit(again).epoch >= Epoch(1));
}

#[test]
fn a_light_child_gets_a_unit_by_an_exception_and_a_dedicated_one_by_its_creation() {
    let mut cluster = Cluster::serving(2, 1);
    let own = cluster.create("a", ROOT);
    let except = |cluster: &Cluster, child| Command::Except {
        claim: cluster.claim(A),
        config: ConfigVersion(1),
        child,
    };
    cluster.void(except(&cluster, dedicated("a")), Void::BadSlots);
    assert_eq!(cluster.directory.unit_of(&dedicated("a")), Some(own));
    let create = Command::Create {
        child: child("a"),
        supervisor: ROOT,
        restart: PERMANENT,
        needs: Needs::default(),
        set: cluster.unit(own).set.clone(),
    };
    cluster.void(create, Void::BadSlots);
    assert_eq!(cluster.directory.unit_of(&child("a")), Some(A));
}

#[test]
fn a_failed_unit_waits_and_starts_again_when_it_is_due() {
    let mut cluster = Cluster::serving(2, 1);
    let unit = cluster.create("a", ROOT);
    cluster.serve_all(incarnation(1, 1));
    cluster.ok(Command::Exited {
        claim: cluster.claim(unit),
        exit: Exit::Abnormal,
    });
    assert_eq!(cluster.unit(unit).run, Run::Down);
    let due = cluster.directory.next_deadline().unwrap().as_millis();
    cluster.at = due - 1;
    cluster.ok(Command::Tick);
    assert_eq!(cluster.unit(unit).run, Run::Down);
    cluster.at = due;
    cluster.ok(Command::Tick);
    assert!(cluster.unit(unit).wants_owner());
    assert_eq!(cluster.directory.next_deadline(), None);
}

#[test]
fn lost_node_restarts_a_one_for_all_group_in_the_same_entry() {
    let mut cluster = Cluster::serving(3, 1);
    let group = cluster.supervise(ROOT, Strategy::OneForAll);
    let units = ["a", "b", "c"].map(|name| cluster.create(name, group));
    let [a, b, c] = units;
    for (unit, node) in [(a, 1), (b, 1), (c, 2)] {
        let grants = [cluster.grant(unit, incarnation(node, 1))].into();
        cluster.ok(Command::Grant { grants });
        cluster.ok(Command::Serving(cluster.claim(unit)));
    }
    cluster.lose(incarnation(1, 1));
    // c, which was not lost, stops first: none can live without the others.
    assert_eq!(cluster.runs(&units), [Run::Down, Run::Down, Run::Stopping]);
    cluster.ok(Command::Exited {
        claim: cluster.claim(c),
        exit: Exit::Shutdown,
    });
    assert_eq!(cluster.runs(&units), [Run::Wanted; 3]);

    // All on one node: lost and wanted again in the one entry (T3).
    cluster.serve_all(incarnation(2, 1));
    cluster.ok(Command::Expel {
        incarnation: incarnation(2, 1),
    });
    cluster.ok(Command::PromisesOver {
        incarnation: incarnation(2, 1),
    });
    assert!(units.iter().all(|unit| cluster.unit(*unit).wants_owner()));
}

#[test]
fn losing_nodes_is_no_restart_however_often() {
    let mut cluster = Cluster::serving(2, 1);
    let group = cluster.supervise(ROOT, Strategy::OneForAll);
    let units = ["a", "b"].map(|name| cluster.create(name, group));
    for start in 1..=9 {
        cluster.serve_all(incarnation(1, start));
        cluster.ok(Command::Register(registration(1, start + 1)));
        cluster.ok(note(1, start, &[]));
        assert_eq!(cluster.runs(&units), [Run::Wanted; 2]);
    }
}

#[test]
fn a_supervisor_that_gives_up_is_restarted_by_its_parent_with_its_children() {
    let mut cluster = Cluster::serving(2, 1);
    let top = cluster.supervise(ROOT, Strategy::OneForAll);
    let below = cluster.supervise(top, Strategy::OneForOne);
    let sibling = cluster.create("sibling", top);
    let poor = cluster.create("poor", below);
    let bystander = cluster.create("bystander", below);
    cluster.serve_all(incarnation(1, 1));
    let mut failures = 0;
    while cluster.unit(bystander).run == Run::Wanted {
        cluster.ok(Command::Exited {
            claim: cluster.claim(poor),
            exit: Exit::Abnormal,
        });
        failures += 1;
        assert!(failures < 20);
        if cluster.unit(bystander).run == Run::Wanted {
            cluster.at = cluster.directory.next_deadline().unwrap().as_millis();
            cluster.ok(Command::Tick);
            cluster.serve_all(incarnation(1, 1));
        }
    }
    // One too many within the window: `below` stops what it has, then escalates.
    assert_eq!(failures, 6);
    assert_eq!(cluster.unit(bystander).run, Run::Stopping);
    assert_eq!(cluster.unit(sibling).run, Run::Wanted);
    cluster.ok(Command::Exited {
        claim: cluster.claim(bystander),
        exit: Exit::Shutdown,
    });
    // The parent's strategy is `one_for_all`: the sibling stops too.
    assert_eq!(cluster.unit(sibling).run, Run::Stopping);
    cluster.ok(Command::Exited {
        claim: cluster.claim(sibling),
        exit: Exit::Shutdown,
    });
    cluster.at += 10_000;
    cluster.ok(Command::Tick);
    assert_eq!(cluster.runs(&[sibling, poor, bystander]), [Run::Wanted; 3]);
}

#[test]
fn three_strikes_quarantine_a_unit_until_it_is_pardoned() {
    let mut cluster = Cluster::serving(2, 1);
    let poison = cluster.create("poison", ROOT);
    let healthy = cluster.create("healthy", ROOT);
    cluster.void(Command::Pardon { unit: poison }, Void::Refused);
    cluster.void(Command::Pardon { unit: UnitId(77) }, Void::Unknown);
    let mut actions = Vec::new();
    for start in 1..=3 {
        if let Some(due) = cluster.directory.next_deadline() {
            cluster.at = due.as_millis();
            cluster.ok(Command::Tick);
        }
        cluster.serve_all(incarnation(1, start));
        cluster.ok(Command::Register(registration(1, start + 1)));
        actions = cluster.ok(note(1, start, &[poison]));
    }
    assert!(actions.contains(&Action::Quarantined(poison)));
    assert!(cluster.directory.is_quarantined(poison));
    assert!(cluster.unit(healthy).wants_owner());
    let grants = [cluster.grant(poison, incarnation(2, 1))].into();
    cluster.void(Command::Grant { grants }, Void::NotOwner);
    cluster.ok(Command::Pardon { unit: poison });
    assert!(cluster.unit(poison).wants_owner());
}

#[test]
fn poison_gets_its_strike_also_when_its_group_above_was_lost_with_it() {
    let mut cluster = Cluster::serving(2, 1);
    let above = cluster.supervise(ROOT, Strategy::OneForAll);
    let below = cluster.supervise(above, Strategy::OneForOne);
    let units = [
        cluster.create("sibling", above),
        cluster.create("poison", below),
    ];
    for start in 1..=3 {
        cluster.serve_all(incarnation(1, start));
        cluster.ok(Command::Register(registration(1, start + 1)));
        cluster.ok(note(1, start, &units));
        cluster.at += 9_000;
        cluster.ok(Command::Tick);
    }
    assert_eq!(cluster.runs(&units), [Run::Down, Run::Down]);
}

#[test]
fn a_unit_that_was_starting_when_its_node_was_lost_gets_a_strike_without_a_note() {
    let mut cluster = Cluster::formed(2, 1);
    cluster.grant_all(incarnation(1, 1));
    cluster.lose(incarnation(1, 1));
    assert_eq!(cluster.unit(A).run, Run::Down, "strikes back off");
}

#[test]
fn a_supervisor_is_added_under_a_known_one() {
    let mut cluster = Cluster::formed(1, 1);
    let orphan = Command::Supervise {
        parent: SupervisorId(9),
        restart: PERMANENT,
        policy: Policy::new(Strategy::OneForOne),
    };
    cluster.void(orphan, Void::Unknown);
}

#[test]
fn a_supervisor_that_ends_for_good_takes_its_units_along() {
    let mut cluster = Cluster::serving(2, 1);
    let below = SupervisorId(1);
    cluster.ok(Command::Supervise {
        parent: ROOT,
        restart: RestartType::Temporary,
        policy: Policy {
            intensity: crate::supervision::Intensity {
                restarts: 0,
                window: core::time::Duration::from_secs(1),
            },
            ..Policy::new(Strategy::OneForOne)
        },
    });
    let inner = cluster.supervise(below, Strategy::OneForOne);
    let units = [cluster.create("a", below), cluster.create("b", inner)];
    cluster.serve_all(incarnation(1, 1));
    cluster.ok(Command::Exited {
        claim: cluster.claim(units[0]),
        exit: Exit::Abnormal,
    });
    cluster.ok(Command::Exited {
        claim: cluster.claim(units[1]),
        exit: Exit::Shutdown,
    });
    assert!(!cluster.directory.supervisors().contains_key(&below));
    assert!(!cluster.directory.supervisors().contains_key(&inner));
    assert!(
        units
            .iter()
            .all(|unit| cluster.directory.unit(*unit).is_none())
    );
}

#[test]
fn a_supervisor_that_is_full_refuses_and_nothing_changes() {
    let mut cluster = Cluster::serving(1, 1);
    let room = CHILDREN_MAX - cluster.directory.supervisors()[&ROOT].supervisor.len();
    for nth in 0..room {
        let _ = cluster.apply(Command::Create {
            child: dedicated(&format!("n{nth}")),
            supervisor: ROOT,
            restart: PERMANENT,
            needs: Needs::default(),
            set: stores(&[1]),
        });
    }
    let config = ConfigVersion(1);
    let claim = cluster.claim(A);
    for full in [
        create("one-more", ROOT),
        Command::Supervise {
            parent: ROOT,
            restart: PERMANENT,
            policy: Policy::new(Strategy::OneForOne),
        },
        Command::Split {
            claim,
            config,
            at: 9,
        },
        Command::Except {
            claim,
            config,
            child: child("hot"),
        },
    ] {
        let full = match full {
            Command::Create {
                child,
                supervisor,
                restart,
                needs,
                ..
            } => Command::Create {
                child,
                supervisor,
                restart,
                needs,
                set: stores(&[1]),
            },
            other => other,
        };
        cluster.void(full, Void::Refused);
    }
}

// Snapshots and facts.

/// A random command; most fit the state, some do not.
fn random_command(rng: &mut Rng, cluster: &Cluster, starts: &mut BTreeMap<u64, u64>) -> Command {
    let directory = &cluster.directory;
    let units: Vec<UnitId> = directory.units().keys().copied().collect();
    let unit = rng.pick(&units);
    let entry = cluster.unit(unit);
    let config = entry.config;
    let node = 1 + rng.below(4);
    let start = starts.get(&node).copied().unwrap_or(0);
    let recent = incarnation(node, start.saturating_sub(rng.below(2)));
    let claim = Claim {
        unit,
        epoch: entry.epoch,
        incarnation: entry.owner.map_or(recent, |owner| owner.incarnation),
    };
    match rng.below(22) {
        0 | 1 => {
            let start = starts.entry(node).or_default();
            *start += 1;
            let new = registration(node, *start);
            let store = if rng.below(6) == 0 {
                StoreId(rng.below(20))
            } else {
                directory
                    .nodes()
                    .get(&NodeId(node))
                    .map_or(new.store, |node| node.store)
            };
            Command::Register(Registration { store, ..new })
        }
        2 => Command::Expel {
            incarnation: recent,
        },
        3 => Command::PromisesOver {
            incarnation: recent,
        },
        4 => match note(node, recent.0 % 100, &[unit]) {
            Command::DeathNote { at_work, .. } if rng.below(3) == 0 => Command::DeathNote {
                incarnation: recent,
                secret: [0; 32],
                at_work,
            },
            note => note,
        },
        5..=8 => Command::Grant {
            grants: units
                .iter()
                .map(|unit| cluster.grant(*unit, recent))
                .collect(),
        },
        9 | 10 => Command::Serving(claim),
        11 => Command::Release(claim),
        12 => Command::Exited {
            claim,
            exit: rng.pick(&[Exit::Normal, Exit::Shutdown, Exit::Abnormal]),
        },
        13 => Command::ChangeSet {
            claim,
            config,
            set: (0..3).map(|_| StoreId(11 + rng.below(4))).collect(),
        },
        14 => Command::Split {
            claim,
            config,
            at: rng.below(u64::from(SLOTS)) as u16,
        },
        15 => Command::Except {
            claim,
            config,
            child: child(&format!("r{}", rng.below(9))),
        },
        16 => create(
            &format!("r{}", rng.below(9)),
            SupervisorId(rng.below(directory.next_supervisor + 1)),
        ),
        17 => Command::Supervise {
            parent: SupervisorId(rng.below(directory.next_supervisor + 1)),
            restart: rng.pick(&[PERMANENT, RestartType::Transient, RestartType::Temporary]),
            policy: Policy::new(rng.pick(&[
                Strategy::OneForOne,
                Strategy::OneForAll,
                Strategy::RestForOne,
            ])),
        },
        18 => Command::SetTtl(rng.pick(&[Ttl::LAN, Ttl::DEFAULT, Ttl::WAN])),
        19 => {
            let voters = directory.voters();
            let some = (0..3).map(|_| StoreId(11 + rng.below(4))).collect();
            Command::SetVoters(match rng.below(4) {
                0 => voters.joint(some),
                1 => voters.settled(),
                2 => Voters::first(some),
                _ => voters.joint(some).settled(),
            })
        }
        20 => match rng.below(4) {
            0 => Command::Form(formation(4, 1)),
            1 => Command::Pardon { unit },
            2 => Command::Remove { unit },
            _ => Command::Move {
                unit,
                epoch: entry.epoch,
                to: NodeId(node),
            },
        },
        _ => Command::Tick,
    }
}

#[test]
fn a_directory_restored_from_a_snapshot_goes_on_as_the_original() {
    for seed in 1..=30 {
        let mut rng = Rng(seed * 1_234_567);
        let mut starts: BTreeMap<u64, u64> = (1..=4).map(|node| (node, 1)).collect();
        let mut original = Cluster::formed(4, 3);
        let mut copy = original.clone();
        for step in 0..150 {
            if step % 25 == 0 {
                let mut bytes = Vec::new();
                encode_frame(&original.directory, &mut bytes).unwrap();
                copy.directory = decode_whole(&bytes).unwrap();
                assert_eq!(
                    copy.directory, original.directory,
                    "seed {seed}, step {step}"
                );
            }
            original.at += rng.below(2_000);
            copy.at = original.at;
            let command = random_command(&mut rng, &original, &mut starts);
            assert_eq!(
                original.apply(command.clone()),
                copy.apply(command),
                "seed {seed}, step {step}"
            );
        }
        assert_eq!(copy.directory, original.directory);
        assert_slots_covered_once(&original.directory);
    }
}

#[test]
fn a_unit_is_its_supervisors_and_an_owner_is_live_or_not_over() {
    for seed in 1..=60 {
        let mut rng = Rng(seed * 7_654_321);
        let mut starts: BTreeMap<u64, u64> = (1..=4).map(|node| (node, 1)).collect();
        let mut cluster = Cluster::formed(4, 3);
        for step in 0..200 {
            cluster.at += rng.below(2_000);
            let command = random_command(&mut rng, &cluster, &mut starts);
            let before = cluster.directory.units().clone();
            let _ = cluster.apply(command.clone());
            let directory = &cluster.directory;
            assert_eq!(
                directory.check(),
                Ok(()),
                "seed {seed}, step {step}, {command:?}"
            );
            for (id, unit) in directory.units() {
                let why = format!("seed {seed}, step {step}, {command:?}: {id} {unit:?}");
                if let Some(old) = before.get(id) {
                    assert!(
                        unit.epoch >= old.epoch && unit.config >= old.config,
                        "{why}"
                    );
                }
                let supervisor = directory.supervisors().get(&unit.supervisor);
                let supervisor = &supervisor.expect(&why).supervisor;
                let mut children = supervisor.children();
                let state = children.find(|(child, ..)| **child == Member::Unit(*id));
                let (.., state) = state.expect(&why);
                if let Some(owner) = unit.owner {
                    assert!(
                        directory.incarnations().contains_key(&owner.incarnation),
                        "{why}"
                    );
                }
                let run = match state {
                    ChildState::Starting | ChildState::Running { .. } => Run::Wanted,
                    ChildState::Stopping => Run::Stopping,
                    _ => Run::Down,
                };
                assert_eq!(unit.run, run, "{why}");
                assert!(
                    unit.owner.is_none() || unit.run == Run::Wanted || unit.run == Run::Stopping,
                    "{why}"
                );
            }
        }
    }
}

/// What two voters say, one fed with every entry, one with what the directory says of all of them.
fn assert_voters_agree(streamed: &mut LeaseVoter, cluster: &Cluster, why: &str) {
    let now = Time::from_millis(1_000_000);
    let mut read = LeaseVoter::new(Time::ZERO, store(1), Ttl::from_millis(0));
    let settled = cluster.directory.facts();
    let open = Vec::new();
    tell(&mut read, voter::Event::Read { settled, open });
    for voter in [&mut *streamed, &mut read] {
        tell(voter, voter::Event::LimitFlushed(Ttl::WAN));
        voter
            .handle(now, voter::Event::LeaderSeen(NodeId(9)))
            .unwrap();
        while voter.poll_action().is_some() {}
    }
    let asked = (1..=4).flat_map(|node| (0..60).map(move |start| (node, start)));
    for (node, start) in asked {
        let (node, incarnation) = (NodeId(node), incarnation(node, start));
        let renewal = Renewal {
            node,
            incarnation,
            round: 1,
            ttl: Ttl::LAN,
            voters: cluster.directory.voters().version,
            applied: LogIndex(1),
        };
        let verdicts = [&mut *streamed, &mut read].map(|voter| {
            voter
                .handle(now, voter::Event::Asked(renewal.clone()))
                .unwrap();
            match voter.poll_action() {
                Some(voter::Action::Answer { promise, .. }) => promise.verdict,
                other => panic!("{other:?}"),
            }
        });
        assert_eq!(verdicts[0], verdicts[1], "{why}: {incarnation}");
        let entry = cluster.directory.incarnations().get(&incarnation);
        let known = cluster.directory.nodes().get(&node);
        let expected = match entry {
            None if known.is_some_and(|known| known.ended.contains(incarnation)) => {
                Verdict::Expelled
            }
            None => Verdict::NotLive,
            Some(entry) if entry.expelled.is_some() => Verdict::Expelled,
            Some(_) => Verdict::Promised,
        };
        assert_eq!(verdicts[0], expected, "{why}: {incarnation}");
    }
    // The reports name the entry that the directory calls the expulsion.
    let later = Time::from_millis(2_000_000);
    let reports = [&mut *streamed, &mut read].map(|voter| {
        let mut voter = voter.clone();
        voter
            .handle(later, voter::Event::LeaderSeen(NodeId(9)))
            .unwrap();
        voter.handle(later, voter::Event::Tick).unwrap();
        core::iter::from_fn(|| voter.poll_action()).collect::<Vec<_>>()
    });
    assert_eq!(reports[0], reports[1], "{why}");
}

fn tell(voter: &mut LeaseVoter, event: voter::Event) {
    voter.handle(Time::ZERO, event).unwrap();
}

#[test]
fn facts_say_the_same_as_the_stream_of_entries() {
    for seed in 1..=25 {
        let mut rng = Rng(seed * 99_991);
        let mut starts: BTreeMap<u64, u64> = (1..=4).map(|node| (node, 1)).collect();
        let mut cluster = Cluster::new();
        let mut streamed = LeaseVoter::new(Time::ZERO, store(1), Ttl::from_millis(0));
        let read = voter::Event::Read {
            settled: Vec::new(),
            open: Vec::new(),
        };
        tell(&mut streamed, read);
        let first = core::iter::once(Command::Form(formation(4, 2)))
            .chain((1..=4).map(|node| Command::Register(registration(node, 1))));
        let mut first: alloc::collections::VecDeque<Command> = first.collect();
        for step in 0..120 {
            cluster.at += 10;
            let command = first
                .pop_front()
                .unwrap_or_else(|| random_command(&mut rng, &cluster, &mut starts));
            let why = format!("seed {seed}, step {step}: {command:?}");
            let entry = Entry {
                at: ClusterTime::ZERO,
                random: 0,
                command: command.clone(),
            };
            let id = cluster.next_id();
            if let Some(fact) = entry.fact() {
                tell(&mut streamed, voter::Event::Held(id, fact));
            }
            let actions = cluster.apply(command);
            if actions.iter().any(|action| voided(action).is_some()) {
                tell(&mut streamed, voter::Event::Voided(id.index));
            }
            tell(&mut streamed, voter::Event::Committed(id.index));
            assert_voters_agree(&mut streamed, &cluster, &why);
        }
    }
}

/// A snapshot with one thing wrong in it.
#[track_caller]
fn refuses_snapshot(of: &Directory, edit: impl FnOnce(&mut Directory), why: &'static str) {
    let mut snapshot = of.clone();
    edit(&mut snapshot);
    let bytes = minicbor::to_vec(&snapshot).unwrap();
    let decoded: Directory = minicbor::decode(&bytes).unwrap();
    assert_eq!(decoded.check(), Err(why));
    let refused = encode_frame(&decoded, &mut Vec::new());
    assert_eq!(refused, Err(EncodeError::Invalid(why)));
}

#[test]
fn a_snapshot_that_no_commands_could_have_made_is_refused() {
    let mut cluster = Cluster::serving(3, 2);
    let below = cluster.supervise(ROOT, Strategy::OneForAll);
    let lower = cluster.supervise(below, Strategy::RestForOne);
    let own = cluster.create("a", lower);
    let other = cluster.create("b", lower);
    let light = child_in(&cluster.unit(A).scope, 0);
    let (claim, config) = (cluster.claim(A), cluster.unit(A).config);
    cluster.ok(Command::Except {
        claim,
        config,
        child: light,
    });
    cluster.ok(Command::Expel {
        incarnation: incarnation(3, 1),
    });
    let good = cluster.directory.clone();
    assert_eq!(good.check(), Ok(()));

    refuses_snapshot(&good, |d| d.version = 2, "a directory of another version");
    let late = ClusterTime::from_millis(u64::MAX);
    refuses_snapshot(
        &good,
        |d| d.clock = late,
        "a time that nothing could have reached",
    );
    refuses_snapshot(
        &good,
        |d| d.replicas = 0,
        "nothing comes before the formation",
    );
    refuses_snapshot(&good, |d| d.ttl = Ttl::from_millis(0), "a TTL is not zero");
    let copies = "`min_copies` is at least one and at most `replicas`";
    refuses_snapshot(&good, |d| d.min_copies = 4, copies);
    refuses_snapshot(&good, |d| d.min_copies = 0, copies);
    let list = "a list of voters has 1 to 1,024 stores";
    refuses_snapshot(&good, |d| d.voters.current.clear(), list);
    refuses_snapshot(&good, |d| d.voters.outgoing = Some(BTreeSet::new()), list);
    let many = (0..=1_024).map(StoreId).collect();
    refuses_snapshot(&good, |d| d.voters.current = many, list);
    refuses_snapshot(
        &good,
        |d| d.next_unit = u64::MAX,
        "a number that nothing could have reached",
    );

    let live = "a node names its live incarnation and no other";
    refuses_snapshot(
        &good,
        |d| d.incarnations.get_mut(&incarnation(3, 1)).unwrap().expelled = None,
        live,
    );
    refuses_snapshot(
        &good,
        |d| d.nodes.get_mut(&NodeId(1)).unwrap().incarnation = None,
        live,
    );
    refuses_snapshot(
        &good,
        |d| {
            d.nodes.remove(&NodeId(3));
        },
        "an incarnation's node is there",
    );
    let own_store = "a node's store is in use and its own";
    refuses_snapshot(
        &good,
        |d| d.nodes.get_mut(&NodeId(1)).unwrap().store = store(2),
        own_store,
    );
    refuses_snapshot(
        &good,
        |d| d.stores.get_mut(&store(1)).unwrap().retired = true,
        own_store,
    );
    let ahead = LogId {
        term: Term(1),
        index: LogIndex(999),
    };
    refuses_snapshot(
        &good,
        |d| {
            d.incarnations
                .get_mut(&incarnation(1, 1))
                .unwrap()
                .registered = ahead
        },
        "an incarnation's entries have been applied",
    );
    let stranger = |d: &mut Directory| d.stores.get_mut(&store(3)).unwrap().node = NodeId(9);
    refuses_snapshot(&good, stranger, own_store);

    refuses_snapshot(
        &good,
        |d| d.next_supervisor = lower.0,
        "the next supervisor's number is free",
    );
    let orphan = |parent| {
        move |d: &mut Directory| {
            let supervisor = Supervisor::new(Policy::new(Strategy::OneForOne));
            let id = SupervisorId(d.next_supervisor);
            d.next_supervisor += 1;
            d.supervisors
                .insert(id, SupervisorEntry { parent, supervisor });
        }
    };
    refuses_snapshot(&good, orphan(None), "only the root has no parent");
    let parents = "a supervisor is its parent's";
    refuses_snapshot(&good, orphan(Some(lower)), parents);
    let under = |supervisor, parent| {
        move |d: &mut Directory| d.supervisors.get_mut(&supervisor).unwrap().parent = Some(parent)
    };
    refuses_snapshot(&good, under(ROOT, lower), parents);
    let children = "what a supervisor supervises is there, and its own";
    refuses_snapshot(&good, under(lower, ROOT), children);
    refuses_snapshot(&good, under(below, lower), children);
    let without = |d: &mut Directory| {
        d.supervisors.remove(&lower);
    };
    refuses_snapshot(&good, without, children);
    let without = |d: &mut Directory| {
        d.units.remove(&own);
    };
    refuses_snapshot(&good, without, children);

    refuses_snapshot(&good, |d| d.next_unit = 3, "the next unit's number is free");
    refuses_snapshot(
        &good,
        |d| d.units.get_mut(&own).unwrap().supervisor = below,
        children,
    );
    let set = "a replica set has 1 to 512 stores";
    refuses_snapshot(&good, |d| d.units.get_mut(&own).unwrap().set.clear(), set);
    let owners = "a unit's owner is known";
    let of_a = |d: &mut Directory| d.units.get_mut(&A).unwrap().owner.unwrap();
    let owned = |edit: fn(&mut Owner)| {
        move |d: &mut Directory| {
            let mut owner = of_a(d);
            edit(&mut owner);
            d.units.get_mut(&A).unwrap().owner = Some(owner);
        }
    };
    refuses_snapshot(
        &good,
        owned(|owner| owner.incarnation = incarnation(9, 9)),
        owners,
    );
    refuses_snapshot(&good, owned(|owner| owner.node = NodeId(2)), owners);
    refuses_snapshot(
        &good,
        owned(|owner| owner.granted.index = LogIndex(999)),
        owners,
    );
    refuses_snapshot(
        &good,
        |d| d.units.get_mut(&own).unwrap().move_to = Some(NodeId(9)),
        "a unit moves to a known node",
    );

    let scope = |unit: UnitId, scope: Scope| {
        move |d: &mut Directory| d.units.get_mut(&unit).unwrap().scope = scope
    };
    let slots = |start, end, except: &[ChildId]| Scope::Slots {
        range: SlotRange::new(start, end).unwrap(),
        except: except.to_vec(),
    };
    let covered = "every slot has one shard";
    let half = SLOTS / 2;
    refuses_snapshot(&good, scope(B, slots(half + 1, SLOTS, &[])), covered);
    refuses_snapshot(&good, scope(B, slots(half - 1, SLOTS, &[])), covered);
    refuses_snapshot(&good, scope(B, slots(half, SLOTS - 1, &[])), covered);
    refuses_snapshot(&good, scope(B, Scope::Child(dedicated("z"))), covered);
    let once = "every slot and every child has one unit";
    refuses_snapshot(&good, scope(other, Scope::Child(dedicated("a"))), once);
    refuses_snapshot(&good, scope(own, slots(half, SLOTS, &[])), once);
    let theirs = "a shard excepts what would be its own";
    refuses_snapshot(
        &good,
        scope(B, slots(half, SLOTS, &[dedicated("z")])),
        theirs,
    );
    let of_a = child_in(&good.unit(A).unwrap().scope, 1);
    refuses_snapshot(&good, scope(B, slots(half, SLOTS, &[of_a])), theirs);
    refuses_snapshot(
        &good,
        scope(A, slots(0, half, &[])),
        "a light child with a unit of its own is excepted",
    );
    let unformed = Directory::default();
    refuses_snapshot(
        &unformed,
        |d| d.next_unit = 1,
        "nothing comes before the formation",
    );
}

#[track_caller]
fn refuses_command(command: Command, why: &'static str) {
    let entry = Entry {
        at: ClusterTime::ZERO,
        random: 0,
        command,
    };
    let refused = encode_frame(&entry, &mut Vec::new());
    assert_eq!(refused, Err(EncodeError::Invalid(why)), "{entry:?}");
}

#[test]
fn a_command_beyond_its_limits_never_gets_into_a_log() {
    let form = |edit: fn(&mut Formation)| {
        let mut form = formation(3, 4);
        edit(&mut form);
        Command::Form(form)
    };
    let copies = "`min_copies` is at least one and at most `replicas`";
    let list = "a list of voters has 1 to 1,024 stores";
    let set = "a replica set has 1 to 512 stores";
    let shards = "a cluster begins with a shard, and with no more than slots";
    let ttl = "a TTL is not zero";
    refuses_command(form(|form| form.voters.clear()), list);
    refuses_command(
        form(|form| form.voters = (0..=1_024).map(store).collect()),
        list,
    );
    refuses_command(form(|form| form.ttl = Ttl::from_millis(0)), ttl);
    refuses_command(form(|form| form.min_copies = 0), copies);
    refuses_command(form(|form| form.replicas = 1), copies);
    refuses_command(form(|form| form.shards = 0), shards);
    refuses_command(form(|form| form.shards = SLOTS + 1), shards);
    refuses_command(form(|form| form.set.clear()), set);

    let register = |edit: &dyn Fn(&mut Registration)| {
        let mut new = registration(1, 1);
        edit(&mut new);
        Command::Register(new)
    };
    let name = |nth: usize| format!("n{nth}");
    let long = || "n".repeat(LABEL_BYTES_MAX + 1);
    let labels = |count| (0..count).map(|nth| (name(nth), name(nth))).collect();
    let capacity = |count| (0..count).map(|nth| (name(nth), 1)).collect();
    let names = "a label's and a resource's name has 1 to 128 bytes";
    let many = register(&|new| new.labels = labels(LABELS_MAX + 1));
    refuses_command(many, "at most 64 labels");
    let many = register(&|new| new.capacity = capacity(RESOURCES_MAX + 1));
    refuses_command(many, "at most 32 resources");
    refuses_command(
        register(&|new| new.labels = [(long(), name(1))].into()),
        names,
    );
    refuses_command(
        register(&|new| new.capacity = [(name(1).repeat(0), 1)].into()),
        names,
    );
    let value = register(&|new| new.labels = [(name(1), long())].into());
    refuses_command(value, "a label's value has at most 128 bytes");

    let units: Vec<UnitId> = (0..=100).map(UnitId).collect();
    refuses_command(note(1, 1, &units), "a death note names at most 100 units");
    let grant = Grant {
        unit: A,
        epoch: Epoch(1),
        config: ConfigVersion(1),
        to: incarnation(1, 1),
    };
    let grants = alloc::vec![grant; GRANTS_MAX + 1];
    refuses_command(
        Command::Grant { grants },
        "an entry grants at most 20,000 units",
    );
    let (unit, config) = (A, ConfigVersion(1));
    let claim = Claim {
        unit,
        epoch: Epoch(1),
        incarnation: incarnation(1, 1),
    };
    let none = BTreeSet::new();
    let change = Command::ChangeSet {
        claim,
        config,
        set: none.clone(),
    };
    refuses_command(change, set);
    refuses_command(Command::Recover { unit, set: none }, set);
    for at in [0, SLOTS] {
        let why = "a shard is cut at a slot that is not the first";
        refuses_command(Command::Split { claim, config, at }, why);
    }
    let needs = Needs {
        resources: capacity(RESOURCES_MAX + 1),
        ..Needs::default()
    };
    let create = Command::Create {
        child: dedicated("a"),
        supervisor: ROOT,
        restart: PERMANENT,
        needs,
        set: stores(&[1]),
    };
    refuses_command(create, "at most 32 resources");
    let mut policy = Policy::new(Strategy::OneForOne);
    policy.backoff.max = core::time::Duration::MAX;
    let supervise = Command::Supervise {
        parent: ROOT,
        restart: PERMANENT,
        policy,
    };
    refuses_command(
        supervise,
        "a supervisor looks at most a year back and ahead",
    );
    refuses_command(Command::SetTtl(Ttl::from_millis(0)), ttl);
    let set_copies = Command::SetCopies {
        replicas: 1,
        min_copies: 2,
        by_operator: true,
    };
    refuses_command(set_copies, copies);
    refuses_command(Command::SetVoters(Voters::first([])), list);

    let late = Entry {
        at: ClusterTime::from_millis(u64::MAX),
        random: 0,
        command: Command::Tick,
    };
    assert!(late.check().is_err());
}

/// The largest entries, each number spelled in nine bytes.
#[test]
fn commands_at_their_limits_fit_their_frames() {
    let grant = Grant {
        unit: UnitId(u64::MAX),
        epoch: Epoch(COUNTER_MAX),
        config: ConfigVersion(COUNTER_MAX),
        to: IncarnationId(u64::MAX),
    };
    let name = |nth: usize| format!("{nth:0>width$}", width = LABEL_BYTES_MAX);
    let mut new = registration(1, 1);
    new.labels = (0..LABELS_MAX).map(|nth| (name(nth), name(nth))).collect();
    new.capacity = (0..RESOURCES_MAX)
        .map(|nth| (name(nth), u64::MAX))
        .collect();
    let grants = alloc::vec![grant; GRANTS_MAX];
    for (command, most) in [
        (Command::Grant { grants }, 1_000_000),
        (Command::Register(new), 32 * 1024),
    ] {
        let entry = Entry {
            at: ClusterTime::ZERO,
            random: u64::MAX,
            command,
        };
        let mut frame = Vec::new();
        encode_frame(&entry, &mut frame).unwrap();
        assert!(frame.len() < most, "{}", frame.len());
        assert_eq!(decode_whole(&frame), Ok(entry));
    }
}
