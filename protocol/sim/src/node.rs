//! One simulated node: a machine with a disk and a clock, a process with the real machines in it, and
//! the warden beside it.
//!
//! Owns: what a node is made of and how a process begins. What happens to it is in `world`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use understudy_protocol::cluster::agent::{Agent, AgentSettings};
use understudy_protocol::cluster::calls::Sealing;
use understudy_protocol::cluster::controller::Controller;
use understudy_protocol::cluster::directory::{Directory, Entry};
use understudy_protocol::cluster::lease::{LeaseHolder, LeaseVoter, Warden};
use understudy_protocol::cluster::replication::Replica;
use understudy_protocol::id::{ChildId, IncarnationId, NodeId, StoreId, Term, UnitId};
use understudy_protocol::journal::log::MachineKind;
use understudy_protocol::journal::{
    ControllerStart, HolderStart, Recorded, ReplicaStart, VoterStart, WardenStart,
};
use understudy_protocol::machine::Machine;
use understudy_protocol::time::Time;
use understudy_protocol::wire::heart::DeathNote;

use crate::clock::{Clock, True};
use crate::disk::Disk;
use crate::raft::{self, Raft};
use crate::record::Recording;
use crate::world::Happening;

/// One machine.
pub(crate) struct Node {
    pub id: NodeId,
    pub votes: bool,
    pub works: bool,
    pub zone: u8,
    pub clock: Clock,
    pub store: StoreId,
    pub disk: Disk,
    /// Counts the processes' lives: what was meant for an earlier one is dropped.
    pub life: u64,
    pub process: Option<Process>,
    pub warden: Option<WardenProcess>,
    /// A note that an earlier warden left on disk (L11).
    pub note: Option<DeathNote>,
    /// `SIGSTOP`.
    pub stopped: bool,
    /// The whole machine is paused; since when, if its clock is too.
    pub frozen: Option<Option<True>>,
    /// Only the heart runs.
    pub hung: bool,
    /// What came while it could not be handled, oldest first.
    pub backlog: VecDeque<Happening>,
    pub wake_at: Option<True>,
    pub warden_wake_at: Option<True>,
    /// The disk answers this much later; `None` when it does not answer at all.
    pub disk_extra: Option<Duration>,
    /// When it is started again; a start that was put off is void.
    pub restart_at: Option<True>,
}

/// One life of the node's process.
pub(crate) struct Process {
    pub incarnation: IncarnationId,
    pub secret: [u8; 32],
    pub raft: Raft<Entry>,
    pub controller: Recorded<Controller>,
    pub holder: Recorded<LeaseHolder>,
    pub voter: Recorded<LeaseVoter>,
    /// The log and the snapshot have been read to the voter.
    pub voter_reads: bool,
    pub agent: Recorded<Agent>,
    pub replica: Recorded<Replica>,
    /// Running children: their state, and the helper process that holds it.
    pub children: BTreeMap<ChildId, Child>,
    pub next_helper: u64,
    /// Leads since this term, but has not applied an entry of it yet.
    pub leads_from: Option<Term>,
    pub register_at: True,
    pub applied_since_snapshot: u64,
    /// Its clock broke rule L2's bound.
    pub excused: bool,
    pub at_work: BTreeSet<UnitId>,
}

/// One running child: a counter of operations.
pub(crate) struct Child {
    pub helper: u64,
    pub state: Vec<u64>,
    /// The next call never comes back.
    pub hangs: bool,
    /// Told to stop; it answers nothing more.
    pub stopping: bool,
}

/// The warden beside a process.
pub(crate) struct WardenProcess {
    pub machine: Recorded<Warden>,
    pub life: u64,
    /// Helpers alive, and whose child each is.
    pub helpers: BTreeMap<u64, ChildId>,
    /// Helpers that outlive their lease because the machine was paused, and until when they may (L2).
    pub overdue: BTreeMap<u64, True>,
}

impl WardenProcess {
    /// A warden that has just been started beside its process.
    pub(crate) fn begin(local: Time, life: u64, start: &Start) -> WardenProcess {
        let recording = start.recording.as_ref();
        let sink = recording.map(|recording| recording.sink(MachineKind::Warden));
        let Start {
            incarnation,
            secret,
            ..
        } = *start;
        let start = WardenStart {
            incarnation,
            secret,
        };
        WardenProcess {
            machine: Recorded::begin(local, start, sink),
            life,
            helpers: BTreeMap::new(),
            overdue: BTreeMap::new(),
        }
    }

    /// The machine goes on after a pause: if the deadline came meanwhile, what still lives is excused
    /// until the warden has killed it, and not for longer than that takes.
    pub(crate) fn thaws(&mut self, now: True, local: Time) {
        if self.machine.next_deadline().is_some_and(|at| at <= local) {
            self.is_late(now);
        }
    }

    /// What lives now is being killed, and could not be in time.
    pub(crate) fn is_late(&mut self, now: True) {
        let until = now.after(KILL_TIME);
        for helper in self.helpers.keys() {
            self.overdue.entry(*helper).or_insert(until);
        }
    }

    /// Whether the child runs here against rule L2.
    pub(crate) fn runs(&self, child: &ChildId, now: True) -> bool {
        let excused = |helper: &u64| self.overdue.get(helper).is_some_and(|until| now < *until);
        let mut helpers = self.helpers.iter();
        helpers.any(|(helper, of)| of == child && !excused(helper))
    }
}

impl Node {
    /// Whether the process can act at all.
    pub(crate) fn runs(&self) -> bool {
        self.process.is_some() && !self.stopped && self.frozen.is_none()
    }

    /// What its clock shows.
    pub(crate) fn show(&self, now: True) -> Time {
        match self.frozen {
            Some(Some(since)) => self.clock.show(since),
            _ => self.clock.show(now),
        }
    }
}

/// What a node that starts is told.
pub(crate) struct Start {
    pub incarnation: IncarnationId,
    pub secret: [u8; 32],
    pub seed: u64,
    pub key_kept: Duration,
    /// Who keeps the logs of its machines, if anybody does.
    pub recording: Option<Recording>,
}

impl Process {
    /// A process that opens the node's disk.
    pub(crate) fn begin(node: &Node, now: True, start: Start) -> Process {
        let Start {
            incarnation,
            secret,
            seed,
            key_kept,
            recording,
        } = start;
        let sink = |kind| recording.as_ref().map(|recording| recording.sink(kind));
        let local = node.show(now);
        let settings = AgentSettings {
            incarnation,
            home: node.store,
            key_kept,
            passivate_after: Duration::from_secs(6),
            work_limit: Duration::from_secs(2),
            snapshot_every: 6,
            // A handful of calls each, so that pieces fill up and go.
            sealing: Sealing {
                at_bytes: 200,
                piece_bytes: 400,
            },
        };
        Process {
            incarnation,
            secret,
            raft: Raft::restart(
                node.store,
                raft::Config::default(),
                seed,
                node.disk.raft.clone(),
                local,
            ),
            controller: Recorded::begin(
                local,
                ControllerStart {
                    directory: Directory::default(),
                    seed: seed ^ 0xC0,
                },
                sink(MachineKind::Controller),
            ),
            holder: Recorded::begin(
                local,
                HolderStart {
                    node: node.id,
                    incarnation,
                    kill_time: KILL_TIME,
                },
                sink(MachineKind::LeaseHolder),
            ),
            voter: Recorded::begin(
                local,
                VoterStart {
                    store: node.store,
                    limit: node.disk.limit.0,
                },
                sink(MachineKind::LeaseVoter),
            ),
            voter_reads: false,
            agent: Recorded::begin(local, settings, sink(MachineKind::Agent)),
            replica: Recorded::begin(
                local,
                ReplicaStart {
                    store: node.store,
                    session: incarnation,
                    opened: node.disk.store.open(),
                },
                sink(MachineKind::Replica),
            ),
            children: BTreeMap::new(),
            next_helper: 1,
            leads_from: None,
            register_at: now,
            applied_since_snapshot: 0,
            excused: false,
            at_work: BTreeSet::new(),
        }
    }
}

/// How long it may take to kill every helper: what the holder takes off its lease (L2).
pub(crate) const KILL_TIME: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_protocol::cluster::lease::warden::Event;

    /// Whether a helper whose deadline is at 1 s, on a machine that thaws at `thaws`, counts as running
    /// at `now`, all in milliseconds.
    fn check(thaws: u64, now: u64, runs: bool) {
        let child = ChildId::parse("t/k/c").expect("a child id");
        let start = Start {
            incarnation: IncarnationId(1),
            secret: [0; 32],
            seed: 0,
            key_kept: Duration::ZERO,
            recording: None,
        };
        let mut warden = WardenProcess::begin(Time::ZERO, 1, &start);
        warden.helpers.insert(1, child.clone());
        let deadline = Event::Deadline(Time::from_millis(1_000));
        warden
            .machine
            .handle(Time::ZERO, deadline)
            .expect("it is fed");
        let at = |millis: u64| True(millis * 1_000_000);
        warden.thaws(at(thaws), Time::from_millis(thaws));
        assert_eq!(warden.runs(&child, at(now)), runs, "{thaws} {now}");
    }

    #[test]
    fn a_thawed_machine_is_excused_until_its_warden_has_killed_and_no_longer() {
        check(3_000, 3_001, false);
        check(3_000, 3_049, false);
        check(3_000, 3_050, true);
        check(999, 1_000, true);
    }
}
