//! The controller, as a leader and as a follower.

use super::*;
use crate::cluster::directory::{Formation, Registration, Void};
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

    fn proposed(&mut self) -> Vec<Command> {
        let actions = core::iter::from_fn(|| self.leader.poll_action());
        actions
            .filter_map(|action| match action {
                Action::Propose(entry) => Some(entry.command),
                _ => None,
            })
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
