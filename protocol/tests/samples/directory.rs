//! Every command of the directory, and directories that commands have made.

use std::time::Duration;

use understudy_protocol::cluster::directory::{
    Claim, Command, Directory, Entry, Event, Formation, Grant, Needs, ROOT, Registration,
};
use understudy_protocol::cluster::voters::Voters;
use understudy_protocol::id::{
    COUNTER_MAX, ConfigVersion, Epoch, IncarnationId, LogId, NodeId, SLOTS, StoreId, SupervisorId,
    Term, UnitId,
};
use understudy_protocol::machine::Machine;
use understudy_protocol::supervision::{Backoff, Exit, Intensity, Policy, RestartType, Strategy};
use understudy_protocol::time::{ClusterTime, Time};
use understudy_protocol::wire::heart::{DeathDigest, Ttl};

use super::child;

pub fn entry(command: Command) -> Entry {
    Entry {
        at: ClusterTime::from_millis(90_000),
        random: 0x0123_4567_89AB_CDEF,
        command,
    }
}

/// One entry of each command, and more of those that come in kinds.
pub fn entries() -> Vec<(&'static str, Entry)> {
    let claim = Claim {
        unit: UnitId(12),
        epoch: Epoch(3),
        incarnation: incarnation(1),
    };
    let high = Claim {
        unit: UnitId(13),
        ..claim
    };
    let (unit, config, set) = (UnitId(12), ConfigVersion(2), stores(3));
    let first = Voters::first(stores(3));
    let joint = first.joint(stores(5));
    let many = |count: u64| Command::Grant {
        grants: (0..count)
            .map(|nth| Grant {
                unit: UnitId(nth),
                epoch: Epoch(COUNTER_MAX - nth),
                config,
                to: incarnation(1),
            })
            .collect(),
    };
    let incarnation = incarnation(1);
    let at_work = vec![UnitId(12), UnitId(7)];
    let secret = [0xAB; 32];
    let commands = vec![
        ("form", Command::Form(formation(3, 64))),
        ("register", Command::Register(registration(1))),
        ("register-witness", Command::Register(witness())),
        ("expel", Command::Expel { incarnation }),
        ("promises-over", Command::PromisesOver { incarnation }),
        (
            "death-note",
            Command::DeathNote {
                incarnation,
                secret,
                at_work,
            },
        ),
        ("grant-none", many(0)),
        ("grant-two", many(2)),
        ("release", Command::Release(claim)),
        (
            "exited-normal",
            Command::Exited {
                claim,
                exit: Exit::Normal,
            },
        ),
        (
            "exited-shutdown",
            Command::Exited {
                claim,
                exit: Exit::Shutdown,
            },
        ),
        (
            "exited-abnormal",
            Command::Exited {
                claim,
                exit: Exit::Abnormal,
            },
        ),
        ("serving", Command::Serving(claim)),
        (
            "change-set",
            Command::ChangeSet {
                claim,
                config,
                set: set.clone(),
            },
        ),
        (
            "split",
            Command::Split {
                claim,
                config,
                at: SLOTS - 1,
            },
        ),
        (
            "merge",
            Command::Merge {
                low: claim,
                low_config: config,
                high,
                high_config: config,
            },
        ),
        (
            "except",
            Command::Except {
                claim,
                config,
                child: child("acme/cart/u-1"),
            },
        ),
        ("create", create("plain", ROOT, Needs::default())),
        (
            "create-with-needs",
            create("picky", SupervisorId(2), needs()),
        ),
        ("remove", Command::Remove { unit }),
        ("supervise-one-for-one", supervise(Strategy::OneForOne)),
        ("supervise-one-for-all", supervise(Strategy::OneForAll)),
        ("supervise-rest-for-one", supervise(Strategy::RestForOne)),
        ("pardon", Command::Pardon { unit }),
        ("tick", Command::Tick),
        ("set-ttl", Command::SetTtl(Ttl::LAN)),
        (
            "set-copies",
            Command::SetCopies {
                replicas: 5,
                min_copies: 2,
                by_operator: true,
            },
        ),
        ("set-voters-joint", Command::SetVoters(joint.clone())),
        ("set-voters-settled", Command::SetVoters(joint.settled())),
        (
            "drain",
            Command::Drain {
                node: NodeId(1),
                draining: true,
            },
        ),
        (
            "move",
            Command::Move {
                unit,
                epoch: Epoch(3),
                to: NodeId(2),
            },
        ),
        ("recover", Command::Recover { unit, set }),
    ];
    commands
        .into_iter()
        .map(|(name, command)| (name, entry(command)))
        .collect()
}

/// Directories: before the formation, just formed, and in the middle of everything.
pub fn snapshots() -> Vec<(&'static str, Directory)> {
    let mut formed = Steps::default();
    formed.apply(Command::Form(formation(1, 1)));
    vec![
        ("unformed", Directory::default()),
        ("formed", formed.directory),
        ("busy", busy()),
    ]
}

/// Supervisors in the middle of a restart, on their way down and waiting; a unit in quarantine, one
/// on the move, one excepted; an expelled start, a retired store, voters that change.
pub fn busy() -> Directory {
    let mut steps = Steps::default();
    steps.apply(Command::Form(formation(3, 4)));
    for node in 1..=4 {
        steps.apply(Command::Register(registration(node)));
    }
    steps.apply(Command::Register(witness()));
    for strategy in [
        Strategy::OneForAll,
        Strategy::RestForOne,
        Strategy::OneForOne,
    ] {
        steps.apply(supervise(strategy));
    }
    let below = Command::Supervise {
        parent: SupervisorId(3),
        restart: RestartType::Temporary,
        policy: Policy::new(Strategy::OneForAll),
    };
    steps.apply(below);
    for (name, supervisor) in [
        ("a", 1),
        ("b", 1),
        ("c", 1),
        ("d", 2),
        ("e", 2),
        ("f", 3),
        ("g", 4),
    ] {
        steps.apply(create(name, SupervisorId(supervisor), Needs::default()));
    }
    steps.apply(create("picky", SupervisorId(3), needs()));
    steps.serve(1);

    // The second shard is cut and one child of it excepted.
    let (claim, config) = steps.claim(UnitId(2));
    steps.apply(Command::Split {
        claim,
        config,
        at: 6_000,
    });
    let (claim, config) = steps.claim(UnitId(2));
    let own = (0..)
        .map(|nth| child(&format!("acme/cart/u-{nth}")))
        .find(|child| steps.directory.unit(UnitId(2)).unwrap().scope.holds(child));
    let own = Command::Except {
        claim,
        config,
        child: own.unwrap(),
    };
    steps.apply(own);
    steps.apply(Command::Move {
        unit: UnitId(3),
        epoch: Epoch(1),
        to: NodeId(2),
    });

    // Unit 8 ("d") brings three starts of node 4 down, with it at work.
    steps.exit(UnitId(8), Exit::Shutdown);
    steps.exit(UnitId(9), Exit::Shutdown);
    for _ in 0..3 {
        steps.after(3_000);
        steps.serve(4);
        let incarnation = steps.incarnation_of(4);
        let at_work = vec![UnitId(8)];
        let secret = secret_of(incarnation);
        steps.apply(Command::DeathNote {
            incarnation,
            secret,
            at_work,
        });
        steps.restart(4);
    }
    // The youngest supervisor is asked for one restart too many.
    for _ in 0..6 {
        steps.exit(UnitId(11), Exit::Abnormal);
        steps.after(2_000);
        steps.serve(2);
    }
    // A child of the one-for-all group fails: the others are to stop. One of another's fails alone.
    steps.exit(UnitId(6), Exit::Abnormal);
    steps.exit(UnitId(10), Exit::Abnormal);

    let mut moved = registration(3);
    (moved.incarnation, moved.store) = (incarnation(399), StoreId(303));
    steps.apply(Command::Register(moved));
    steps.apply(Command::Drain {
        node: NodeId(2),
        draining: true,
    });
    let joint = steps.directory.voters().joint(stores(5));
    steps.apply(Command::SetVoters(joint));
    steps.apply(Command::SetCopies {
        replicas: 3,
        min_copies: 2,
        by_operator: true,
    });
    steps.apply(create("late", ROOT, Needs::default()));
    steps.directory
}

/// A directory, fed.
#[derive(Default)]
struct Steps {
    directory: Directory,
    at: u64,
    starts: u64,
}

impl Steps {
    fn apply(&mut self, command: Command) {
        let id = LogId {
            term: Term(7),
            index: self.directory.applied().index.next(),
        };
        let entry = Entry {
            at: ClusterTime::from_millis(self.at),
            random: self.at.wrapping_mul(0x9E37_79B9_7F4A_7C15),
            command,
        };
        self.directory
            .handle(Time::ZERO, Event::Apply(id, entry))
            .unwrap();
        while self.directory.poll_action().is_some() {}
    }

    fn after(&mut self, millis: u64) {
        self.at += millis;
        self.apply(Command::Tick);
    }

    /// Whatever wants an owner gets this node, and serves there.
    fn serve(&mut self, node: u64) {
        let to = self.incarnation_of(node);
        let wanted = self
            .directory
            .units()
            .iter()
            .filter(|(_, unit)| unit.wants_owner());
        let grants: Vec<Grant> = wanted
            .map(|(unit, entry)| Grant {
                unit: *unit,
                epoch: entry.epoch,
                config: entry.config,
                to,
            })
            .collect();
        let units: Vec<UnitId> = grants.iter().map(|grant| grant.unit).collect();
        self.apply(Command::Grant { grants });
        for unit in units {
            let (claim, _) = self.claim(unit);
            self.apply(Command::Serving(claim));
        }
    }

    fn exit(&mut self, unit: UnitId, exit: Exit) {
        let owned = self
            .directory
            .unit(unit)
            .is_some_and(|unit| unit.owner.is_some());
        if owned {
            let (claim, _) = self.claim(unit);
            self.apply(Command::Exited { claim, exit });
        }
    }

    fn restart(&mut self, node: u64) {
        self.starts += 1;
        let mut again = registration(node);
        again.incarnation = incarnation(node * 100 + self.starts);
        again.death = DeathDigest::of(&secret_of(again.incarnation));
        self.apply(Command::Register(again));
    }

    fn incarnation_of(&self, node: u64) -> IncarnationId {
        self.directory.nodes()[&NodeId(node)].incarnation.unwrap()
    }

    fn claim(&self, unit: UnitId) -> (Claim, ConfigVersion) {
        let entry = self.directory.unit(unit).unwrap();
        let claim = Claim {
            unit,
            epoch: entry.epoch,
            incarnation: entry.owner.unwrap().incarnation,
        };
        (claim, entry.config)
    }
}

fn formation(nodes: u64, shards: u16) -> Formation {
    Formation {
        voters: stores(nodes).into_iter().collect(),
        ttl: Ttl::DEFAULT,
        replicas: nodes as u8,
        min_copies: nodes.min(2) as u8,
        shards,
        set: stores(nodes).into_iter().collect(),
    }
}

fn registration(node: u64) -> Registration {
    Registration {
        node: NodeId(node),
        incarnation: incarnation(node * 100),
        store: StoreId(node),
        death: DeathDigest::of(&secret_of(incarnation(node * 100))),
        votes: true,
        works: true,
        labels: [("zone", "north"), ("host", "quiet-1")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        capacity: [("memory_bytes", 1 << 36), ("gpu", 1)]
            .map(|(name, amount)| (name.to_owned(), amount))
            .into(),
        name: format!("node-{node}"),
        address: format!("node-{node}.example.net:7600"),
    }
}

fn witness() -> Registration {
    Registration {
        works: false,
        labels: [].into(),
        capacity: [].into(),
        ..registration(5)
    }
}

fn needs() -> Needs {
    Needs {
        labels: [("zone", Some("north")), ("gpu", None)]
            .map(|(name, value)| (name.to_owned(), value.map(str::to_owned)))
            .into(),
        resources: [("memory_bytes".to_owned(), 1 << 30)].into(),
        pin: Some(NodeId(2)),
    }
}

fn create(name: &str, supervisor: SupervisorId, needs: Needs) -> Command {
    Command::Create {
        child: child(&format!("@acme/browser/{name}")),
        supervisor,
        restart: RestartType::Permanent,
        needs,
        set: stores(2),
    }
}

fn supervise(strategy: Strategy) -> Command {
    let intensity = Intensity {
        restarts: 2,
        window: Duration::from_secs(60),
    };
    let backoff = Backoff {
        first: Duration::from_millis(250),
        max: Duration::from_secs(30),
    };
    Command::Supervise {
        parent: ROOT,
        restart: RestartType::Transient,
        policy: Policy {
            strategy,
            intensity,
            backoff,
        },
    }
}

fn stores(count: u64) -> std::collections::BTreeSet<StoreId> {
    (1..=count).map(StoreId).collect()
}

fn incarnation(number: u64) -> IncarnationId {
    IncarnationId(number)
}

fn secret_of(incarnation: IncarnationId) -> [u8; 32] {
    [incarnation.0 as u8; 32]
}
