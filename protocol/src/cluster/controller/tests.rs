//! The controller, as a leader and as a follower.

use super::*;
use crate::cluster::directory::{Claim, Formation, Registration, Void};
use crate::id::{NodeId, Term};
use crate::wire::heart::{DeathDigest, Ttl};

const TTL: Ttl = Ttl::LAN;

/// A leader of a cluster of three nodes, and its log.
struct World {
    leader: Controller,
    index: u64,
    now: u64,
}

fn at(millis: u64) -> Time {
    Time::from_millis(millis)
}

fn incarnation(node: u64, start: u64) -> IncarnationId {
    IncarnationId(node * 100 + start)
}

fn secret(node: u64, start: u64) -> [u8; 32] {
    [(node * 16 + start) as u8; 32]
}

fn register(node: u64, start: u64) -> Command {
    Command::Register(Registration {
        node: NodeId(node),
        incarnation: incarnation(node, start),
        store: StoreId(node),
        death: DeathDigest::of(&secret(node, start)),
        votes: true,
        works: true,
        labels: BTreeMap::new(),
        capacity: BTreeMap::new(),
        name: Default::default(),
        address: Default::default(),
    })
}

impl World {
    fn new() -> World {
        let mut world = World {
            leader: Controller::new(at(0), Directory::default(), 7),
            index: 0,
            now: 0,
        };
        let stores: BTreeSet<StoreId> = [1, 2, 3].map(StoreId).into();
        world.commit(Command::Form(Formation {
            voters: stores.clone(),
            ttl: TTL,
            replicas: 3,
            min_copies: 2,
            shards: 1,
            set: stores,
        }));
        for node in [1, 2, 3] {
            world.commit(register(node, 1));
        }
        world.tell(Event::Leading(true)).expect("taken in");
        world.proposed();
        world
    }

    fn tell(&mut self, event: Event) -> Result<(), Refused> {
        self.leader.handle(at(self.now), event)
    }

    fn commit(&mut self, command: Command) {
        self.index += 1;
        let id = LogId {
            term: Term(1),
            index: LogIndex(self.index),
        };
        let entry = Entry {
            at: ClusterTime::from_millis(self.now),
            random: 0,
            command,
        };
        self.tell(Event::Apply(id, entry)).expect("the next entry");
    }

    /// What was proposed since, but for grants.
    fn proposed(&mut self) -> Vec<Command> {
        let actions = core::iter::from_fn(|| self.leader.poll_action());
        actions
            .filter_map(|action| match action {
                Action::Propose(entry) => Some(entry.command),
                _ => None,
            })
            .filter(|command| !matches!(command, Command::Grant { .. }))
            .collect()
    }
}

#[test]
fn a_registration_that_would_be_void_is_not_proposed() {
    // Voters that only held it would end the lease of the start that is live now.
    let mut world = World::new();
    world.commit(Command::DeathNote {
        incarnation: incarnation(1, 1),
        secret: secret(1, 1),
        at_work: Vec::new(),
    });
    world.commit(register(1, 2));
    world.proposed();
    let again = world.tell(Event::Forwarded(register(1, 1)));
    assert_eq!(again, Err(Refused::Void(Void::NoIncarnation)));
    let repeated = world.tell(Event::Forwarded(register(1, 2)));
    assert_eq!(repeated, Err(Refused::Void(Void::NotNow)));
    assert_eq!(world.proposed(), []);
    world
        .tell(Event::Forwarded(register(1, 3)))
        .expect("proposed");
    assert_eq!(world.proposed(), [register(1, 3)]);
}

/// Two of three voters say whether they have promised to the first start of each node.
fn sight(world: &mut World, nodes: &[u64], promised: bool, applied: u64) {
    for voter in [2, 3] {
        sight_by(world, voter, nodes, promised, applied);
    }
}

/// One voter says it.
fn sight_by(world: &mut World, voter: u64, nodes: &[u64], promised: bool, applied: u64) {
    let sighted = nodes.iter().map(|node| Sighted {
        incarnation: incarnation(*node, 1),
        promised,
        applied: LogIndex(applied),
    });
    let sighted: Vec<Sighted> = sighted.collect();
    let voters = world.leader.directory().voters().version;
    let sighting = Sighting {
        voter: StoreId(voter),
        voters,
        sighted,
    };
    world.tell(Event::Sighted(sighting)).expect("taken in");
}

/// Found with real nodes: the first renewals of a start reach the voters one after the other.
#[test]
fn a_start_that_one_voter_has_promised_to_is_not_expelled_for_the_silence_of_the_others() {
    let mut world = World::new();
    sight(&mut world, &[1], false, 0);
    sight_by(&mut world, 1, &[1], true, 4);
    assert_eq!(world.proposed(), []);
    sight_by(&mut world, 2, &[1], false, 4);
    assert_eq!(world.proposed(), []);
    sight_by(&mut world, 3, &[1], false, 4);
    let incarnation = incarnation(1, 1);
    assert_eq!(world.proposed(), [Command::Expel { incarnation }]);
}

#[test]
fn a_new_start_gets_to_renew_and_one_that_has_renewed_has_no_grace() {
    let expel = Command::Expel {
        incarnation: incarnation(1, 1),
    };
    let mut world = World::new();
    sight(&mut world, &[1], false, 0);
    assert_eq!(world.proposed(), []);
    sight(&mut world, &[1], false, 4);
    assert_eq!(world.proposed(), core::slice::from_ref(&expel));
    let mut world = World::new();
    world.now = 2 * TTL.duration().as_millis() as u64;
    sight(&mut world, &[1], false, 0);
    assert_eq!(world.proposed(), [expel]);
}

#[test]
fn a_death_note_that_came_before_its_hearer_led_is_proposed_when_it_leads() {
    let mut world = World::new();
    world.tell(Event::Leading(false)).expect("taken in");
    let note = |start| DeathNote {
        incarnation: incarnation(1, start),
        secret: secret(1, start),
        at_work: Vec::new(),
    };
    for heard in [note(1), note(2)] {
        world.tell(Event::Died(heard)).expect("taken in");
    }
    assert_eq!(world.proposed(), []);
    world.tell(Event::Leading(true)).expect("taken in");
    let DeathNote {
        incarnation,
        secret,
        at_work,
    } = note(1);
    let command = Command::DeathNote {
        incarnation,
        secret,
        at_work,
    };
    assert_eq!(world.proposed(), core::slice::from_ref(&command));
    // It is kept until the incarnation is over, and not longer.
    assert_eq!(world.leader.notes.len(), 1);
    world.commit(command);
    assert_eq!(world.leader.notes.len(), 0);
}

#[test]
fn a_report_on_an_expulsion_that_is_not_applied_yet_is_kept_and_one_on_another_is_not() {
    let expelled = incarnation(1, 1);
    let over = Command::PromisesOver {
        incarnation: expelled,
    };
    for (ahead, ends) in [(1, true), (2, false)] {
        let mut world = World::new();
        let expel = LogId {
            term: Term(1),
            index: LogIndex(world.index + ahead),
        };
        for voter in [2, 3].map(StoreId) {
            let report = Report {
                voter,
                incarnation: expelled,
                expel,
            };
            world.tell(Event::Reported(report)).expect("taken in");
        }
        assert_eq!(world.proposed(), []);
        world.commit(Command::Expel {
            incarnation: expelled,
        });
        let expect = ends.then(|| over.clone());
        assert_eq!(world.proposed(), Vec::from_iter(expect));
        world.commit(Command::Tick);
        world.proposed();
        let left = world.leader.leading.as_ref().expect("it leads");
        assert_eq!(left.reports.contains_key(&expel), ends);
    }
}

/// The moves among what was proposed.
fn moves(world: &mut World) -> Vec<(UnitId, NodeId)> {
    let moves = world
        .proposed()
        .into_iter()
        .filter_map(|command| match command {
            Command::Move { unit, to, .. } => Some((unit, to)),
            _ => None,
        });
    moves.collect()
}

#[test]
fn a_drain_moves_at_once_what_moved_a_moment_ago() {
    let mut world = World::new();
    let unit = UnitId(1);
    let grant = |world: &World, to| {
        let entry = world.leader.directory().unit(unit).expect("a shard");
        let (epoch, config) = (entry.epoch, entry.config);
        let to = incarnation(to, 1);
        let grants = [Grant {
            unit,
            epoch,
            config,
            to,
        }];
        Command::Grant {
            grants: grants.into(),
        }
    };
    let claim = |world: &World, node| Claim {
        unit,
        epoch: world.leader.directory().unit(unit).expect("a shard").epoch,
        incarnation: incarnation(node, 1),
    };
    let given = grant(&world, 1);
    world.commit(given);
    let epoch = claim(&world, 1).epoch;
    let to = NodeId(2);
    world.commit(Command::Move { unit, epoch, to });
    let left = claim(&world, 1);
    world.commit(Command::Release(left));
    let given = grant(&world, 2);
    world.commit(given);
    assert_eq!(moves(&mut world), []);
    world.now += 10;
    let applied = world.index;
    sight(&mut world, &[1, 2, 3], true, applied);
    world.commit(Command::Drain {
        node: to,
        draining: true,
    });
    let moved = moves(&mut world);
    assert!(matches!(moved[..], [(of, to)] if of == unit && to != NodeId(2)));
}
