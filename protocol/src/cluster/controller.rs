//! The controller: the node's copy of the directory, and the leader's part in keeping it true.
//!
//! Owns: what the leader proposes: expulsions (L7), the end of promises (L5), death notes (L11),
//! grants in one batch (T3, L12), moves, changes of the voters (L8) and of Raft's members, the
//! supervisors' clock. On every node it applies entries and says what changed. Never holds a truth of
//! its own: what it has heard since it leads is forgotten when it ceases to, and a new leader hears it
//! again.
//!
//! ```text
//!   Raft ── Apply ──> Directory ──> Changed, Membership ──> hearts, agent
//!   hearts ── Sighting, Report, DeathNote ──> (leading) ──> Propose ──> Raft
//!   owners, starting nodes, operators ── Forwarded ──> stamped with the directory's time ──> Propose
//! ```

mod translate;

pub use translate::translate;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use minicbor::{Decode, Encode};

use super::directory::{self, Command, Directory, Entry, GRANTS_MAX, Grant, IncarnationEntry};
use super::placement;
use super::voters::VOTERS_MAX;
use crate::id::{IncarnationId, LogId, LogIndex, StoreId, UnitId, VotersVersion};
use crate::machine::Machine;
use crate::rules::{Rule, keeps};
use crate::time::{ClusterTime, Time};
use crate::wire::heart::{DeathNote, Report, Sighted, Sighting};

/// One node's copy of the directory, and the leader's loop.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Controller {
    directory: Directory,
    /// When the directory's clock last moved, by this node's.
    clock_moved: Time,
    /// State of the generator that stamps entries.
    random: u64,
    /// Proofs of death that were heard, for whoever leads when they come; one each at most of the
    /// incarnations that are listed.
    notes: BTreeMap<IncarnationId, DeathNote>,
    leading: Option<Leading>,
    members: RaftMembers,
    actions: VecDeque<Action>,
}

/// What may happen to a controller. Numbered for the event log: see [`crate::journal`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Event {
    /// Raft committed an entry; in order, each once.
    #[n(0)]
    Apply(#[n(0)] LogId, #[n(1)] Entry),
    /// Raft committed an entry that is none of the directory's.
    #[n(1)]
    Skip(#[n(0)] LogId),
    /// Raft installed a snapshot.
    #[n(2)]
    Install(#[n(0)] Directory),
    /// Raft made this node its leader, or another. A leader that has not applied an entry of its own
    /// term yet must not be announced: it does not know the directory.
    #[n(3)]
    Leading(#[n(0)] bool),
    /// A voter reports a promise over.
    #[n(4)]
    Reported(#[n(0)] Report),
    /// A voter says whom it sees.
    #[n(5)]
    Sighted(#[n(0)] Sighting),
    /// A warden's proof of death.
    #[n(6)]
    Died(#[n(0)] DeathNote),
    /// An owner, a starting node or an operator has something to commit.
    #[n(7)]
    Forwarded(#[n(0)] Command),
    /// Raft's members, as this leader sees them.
    #[n(8)]
    Members(#[n(0)] RaftMembers),
    /// The deadline has come.
    #[n(9)]
    Tick,
}

/// Raft's members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Encode, Decode)]
pub struct RaftMembers {
    /// Those that vote.
    #[n(0)]
    pub voters: BTreeSet<StoreId>,
    /// Those that only listen.
    #[n(1)]
    pub learners: BTreeSet<StoreId>,
    /// Learners that hold nearly the whole log.
    #[n(2)]
    pub caught_up: BTreeSet<StoreId>,
}

/// What a controller wants done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Propose the entry to Raft.
    Propose(Entry),
    /// Change Raft's members: one store joins, is promoted or leaves.
    ChangeMembers {
        /// Those that vote.
        voters: BTreeSet<StoreId>,
        /// Those that only listen.
        learners: BTreeSet<StoreId>,
    },
    /// One entry changed these units.
    Changed(Vec<UnitId>),
    /// The voters, the TTL, a node or an incarnation changed.
    Membership,
    /// The incarnation's promises are over.
    Over(IncarnationId),
    /// An entry, or a part of it, changed nothing.
    Voided(LogId, directory::Void),
    /// A unit is in quarantine (V2).
    Quarantined(UnitId),
}

/// Why an event was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The entry is not the next one. Nothing changed.
    #[error(transparent)]
    Apply(#[from] directory::ApplyError),
    /// This node does not lead. Nothing changed; ask the leader.
    #[error("this node does not lead")]
    NotLeading,
    /// The registration would be void: the start is listed already, has ended, or came with a store
    /// that was used before. Nothing was proposed.
    #[error("the registration is void: {0}")]
    Void(directory::Void),
}

/// What a leader has heard since it leads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Leading {
    since: Time,
    sightings: BTreeMap<StoreId, Seen>,
    /// Who reported which expulsion's promises over.
    reports: BTreeMap<LogId, BTreeSet<StoreId>>,
    /// Since when each live incarnation is known to this leader.
    known: BTreeMap<IncarnationId, Time>,
    /// Since when an incarnation has not applied this grant.
    lagging: BTreeMap<IncarnationId, (LogIndex, Time)>,
    /// Since when majorities of both lists hold the first entry of a change of voters (L8).
    joint_held: Option<Time>,
    /// What was proposed when, to give it time to be applied.
    proposed: BTreeMap<Topic, Time>,
    /// Something changed that placement should look at.
    plan_due: bool,
    /// A node began to drain: placement looks at once.
    drains: bool,
    planned: Time,
    look_at: Time,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Seen {
    at: Time,
    voters: VotersVersion,
    live: BTreeMap<IncarnationId, Sighted>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Topic {
    Expel(IncarnationId),
    Over(IncarnationId),
    Note(IncarnationId),
    Grants,
    Move(UnitId),
    Voters,
    Members,
    Copies,
    Tick,
}

impl Controller {
    /// A node's copy, as its store held it. `seed` is for the entries that this node will stamp.
    pub fn new(now: Time, directory: Directory, seed: u64) -> Controller {
        Controller {
            directory,
            clock_moved: now,
            random: seed,
            notes: BTreeMap::new(),
            leading: None,
            members: RaftMembers::default(),
            actions: VecDeque::new(),
        }
    }

    /// The directory as applied here.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Whether this node leads.
    pub fn is_leading(&self) -> bool {
        self.leading.is_some()
    }

    fn applied(&mut self, now: Time, event: directory::Event) -> Result<(), Refused> {
        let clock = self.directory.clock();
        let topic = match &event {
            directory::Event::Apply(_, entry) => topic_of(&entry.command),
            directory::Event::Skip(_) => None,
        };
        let over = match &event {
            directory::Event::Apply(_, entry) => ended(&entry.command),
            directory::Event::Skip(_) => None,
        };
        let drains = matches!(
            &event,
            directory::Event::Apply(_, entry)
                if matches!(entry.command, Command::Drain { draining: true, .. })
        );
        let stood = over.filter(|over| self.directory.incarnations().contains_key(over));
        self.directory.handle(now, event)?;
        if self.directory.clock() > clock {
            self.clock_moved = now;
        }
        let mut changed = Vec::new();
        while let Some(action) = self.directory.poll_action() {
            match action {
                directory::Action::Changed(unit) if changed.contains(&unit) => {}
                directory::Action::Changed(unit) => changed.push(unit),
                directory::Action::Membership => self.actions.push_back(Action::Membership),
                directory::Action::Voided(id, void) => {
                    self.actions.push_back(Action::Voided(id, void))
                }
                directory::Action::Quarantined(unit) => {
                    self.actions.push_back(Action::Quarantined(unit))
                }
            }
        }
        if let Some(over) = stood.filter(|over| !self.directory.incarnations().contains_key(over)) {
            self.notes.remove(&over);
            self.actions.push_back(Action::Over(over));
        }
        if let Some(leading) = &mut self.leading {
            leading.plan_due = true;
            leading.drains |= drains;
            if let Some(topic) = topic {
                leading.proposed.remove(&topic);
            }
        }
        if !changed.is_empty() {
            self.actions.push_back(Action::Changed(changed));
        }
        Ok(())
    }

    /// Everything that the leader proposes by itself.
    fn lead(&mut self, now: Time) {
        let Some(leading) = &mut self.leading else {
            return;
        };
        leading.look_at = now + LOOK_AGAIN;
        if !self.directory.is_formed() {
            return;
        }
        self.expel(now);
        self.end_promises(now);
        self.change_voters(now);
        self.change_members(now);
        self.raise_min_copies(now);
        self.tick_supervisors(now);
        self.place(now);
    }

    /// L7: the leader expels whom a majority of voters has no live promise to, and who does not
    /// apply its grants.
    fn expel(&mut self, now: Time) {
        let ttl = self.directory.ttl().duration();
        let Some(leading) = &mut self.leading else {
            return;
        };
        let live: Vec<IncarnationId> = self
            .directory
            .incarnations()
            .keys()
            .copied()
            .filter(|id| self.directory.is_live(*id))
            .collect();
        leading
            .known
            .retain(|incarnation, _| self.directory.is_live(*incarnation));
        leading
            .lagging
            .retain(|incarnation, _| self.directory.is_live(*incarnation));
        let mut expelled = Vec::new();
        for incarnation in live {
            let known = *leading.known.entry(incarnation).or_insert(now);
            let sighted = |voter: StoreId| {
                let seen = leading
                    .sightings
                    .get(&voter)
                    .filter(|seen| now.since(seen.at) < ttl);
                seen.and_then(|seen| seen.live.get(&incarnation))
            };
            let unpromised = self
                .directory
                .voters()
                .majority(|voter| sighted(voter).is_some_and(|sighted| !sighted.promised));
            // A start that is new to the voters must first get to renew. To a voter that it has renewed
            // at it is not new, though it may be to a new leader; but what one voter has heard says
            // nothing of another, which may not have heard the first renewal yet.
            let lapsed = self.directory.voters().majority(|voter| {
                let seen = sighted(voter);
                seen.is_some_and(|seen| !seen.promised && seen.applied > LogIndex::ZERO)
            });
            let grace = now.since(known) < ttl * NEW_GRACE_TTL;
            if lapsed
                || (unpromised && !grace)
                || leading.lags(now, incarnation, &self.directory, ttl * LAG_TTL)
            {
                expelled.push(incarnation);
            }
        }
        for incarnation in expelled {
            self.propose_once(
                now,
                Topic::Expel(incarnation),
                Command::Expel { incarnation },
            );
        }
    }

    /// L5, L11: promises are over when a majority reports so, or the warden proves death.
    fn end_promises(&mut self, now: Time) {
        let Some(leading) = &mut self.leading else {
            return;
        };
        let incarnations = self.directory.incarnations();
        // A voter may speak of an entry before it is applied here.
        let applied = self.directory.applied().index;
        let held = |id: &LogId| {
            let stands = |entry: &IncarnationEntry| entry.expelled == Some(*id);
            id.index > applied || incarnations.values().any(stands)
        };
        leading.reports.retain(|expel, _| held(expel));
        let mut commands = Vec::new();
        for (incarnation, entry) in incarnations {
            if let Some(note) = self
                .notes
                .get(incarnation)
                .filter(|note| note.proves(&entry.death))
            {
                let DeathNote {
                    incarnation,
                    secret,
                    at_work,
                } = note.clone();
                let command = Command::DeathNote {
                    incarnation,
                    secret,
                    at_work,
                };
                commands.push((Topic::Note(incarnation), command));
                continue;
            }
            let Some(expel) = entry.expelled else {
                continue;
            };
            let reports = leading.reports.get(&expel);
            let over = self
                .directory
                .voters()
                .majority(|voter| reports.is_some_and(|reports| reports.contains(&voter)));
            // L5: a majority, each holding the entry.
            if over || !keeps(Rule::L5) {
                let incarnation = *incarnation;
                commands.push((
                    Topic::Over(incarnation),
                    Command::PromisesOver { incarnation },
                ));
            }
        }
        for (topic, command) in commands {
            self.propose_once(now, topic, command);
        }
    }

    /// L8: the stores of the nodes that should vote become the voters, in two entries.
    fn change_voters(&mut self, now: Time) {
        let voters = self.directory.voters();
        let ttl = self.directory.ttl().duration();
        let Some(leading) = &mut self.leading else {
            return;
        };
        let next = if voters.outgoing.is_none() {
            leading.joint_held = None;
            let wanted: BTreeSet<StoreId> = self
                .directory
                .nodes()
                .values()
                .filter(|node| node.votes)
                .map(|node| node.store)
                .take(VOTERS_MAX)
                .collect();
            // All of them must be known: a cluster that is being formed has voters that have yet to
            // register.
            let registered = voters
                .current
                .iter()
                .all(|store| self.directory.stores().contains_key(store));
            if !registered || wanted.is_empty() || wanted == voters.current {
                return;
            }
            voters.joint(wanted)
        } else {
            let held = voters.majority(|voter| {
                let seen = leading.sightings.get(&voter);
                seen.is_some_and(|seen| seen.voters >= voters.version)
            });
            let since = match (held, leading.joint_held) {
                (false, _) if keeps(Rule::L8) => return,
                (_, None) => {
                    leading.joint_held = Some(now);
                    now
                }
                (_, Some(since)) => since,
            };
            // L8: a full TTL after majorities of both hold the first entry. The longest in use.
            if now.since(since) < ttl.max(LONGEST_TTL) && keeps(Rule::L8) {
                return;
            }
            voters.settled()
        };
        self.propose_once(now, Topic::Voters, Command::SetVoters(next));
    }

    /// Raft's members follow the directory's stores, one change at a time.
    fn change_members(&mut self, now: Time) {
        let Some(leading) = &mut self.leading else {
            return;
        };
        let RaftMembers {
            voters,
            learners,
            caught_up,
        } = &self.members;
        if voters.is_empty() || leading.waits(now, Topic::Members) {
            return;
        }
        let in_use = |store: &StoreId| self.directory.node_of(*store).is_some();
        let mut stores = self.directory.nodes().values();
        let promoted = stores.find(|node| node.votes && caught_up.contains(&node.store));
        let (mut voters, mut learners) = (voters.clone(), learners.clone());
        if let Some(node) = promoted.filter(|node| !voters.contains(&node.store)) {
            learners.remove(&node.store);
            voters.insert(node.store);
        } else if let Some(node) = self
            .directory
            .nodes()
            .values()
            .find(|node| !voters.contains(&node.store) && !learners.contains(&node.store))
        {
            learners.insert(node.store);
        } else if let Some(gone) = voters
            .iter()
            .chain(&learners)
            .copied()
            .find(|store| self.directory.stores().contains_key(store) && !in_use(store))
        {
            voters.remove(&gone);
            learners.remove(&gone);
        } else {
            return;
        }
        leading.proposed.insert(Topic::Members, now);
        self.actions
            .push_back(Action::ChangeMembers { voters, learners });
    }

    /// R4: two copies at least, once every set has two.
    fn raise_min_copies(&mut self, now: Time) {
        let directory = &self.directory;
        let two = || directory.units().values().all(|unit| unit.set.len() >= 2);
        if directory.may_raise_min_copies() && two() {
            let command = Command::SetCopies {
                replicas: directory.replicas().max(2),
                min_copies: 2,
                by_operator: false,
            };
            self.propose_once(now, Topic::Copies, command);
        }
    }

    fn tick_supervisors(&mut self, now: Time) {
        let due = self.directory.next_deadline();
        let stamp = Time::from_millis(self.stamp(now).as_millis());
        if due.is_some_and(|due| due <= stamp) {
            self.propose_once(now, Topic::Tick, Command::Tick);
        }
    }

    /// T3, L12: every ownerless unit that should run is granted, all in one batch.
    fn place(&mut self, now: Time) {
        let clock = self.stamp(now);
        let Some(leading) = &mut self.leading else {
            return;
        };
        let ownerless = self.directory.units().values().any(|unit| {
            // L7: the sabotaged rule grants beside an owner that is expelled and not over.
            let expelled = unit
                .owner
                .is_some_and(|owner| !self.directory.is_live(owner.incarnation));
            unit.wants_owner() || (!keeps(Rule::L7) && expelled)
        });
        let again = leading.drains || now.since(leading.planned) >= PLAN_PERIOD;
        let due = leading.plan_due && ownerless;
        if !again && !due {
            return;
        }
        if ownerless && leading.waits(now, Topic::Grants) {
            return;
        }
        (leading.plan_due, leading.drains) = (false, false);
        leading.planned = now;
        let suspected = leading.suspected(now, &self.directory);
        let (desired, observed) = translate(&self.directory, &suspected, clock);
        let plan = placement::plan(&desired, &observed);
        let mut grants = Vec::new();
        for grant in plan.grants.into_iter().take(GRANTS_MAX) {
            let (Some(unit), Some(node)) = (
                self.directory.unit(grant.unit),
                self.directory.nodes().get(&grant.node),
            ) else {
                continue;
            };
            if let Some(to) = node.incarnation {
                let (epoch, config) = (unit.epoch, unit.config);
                grants.push(Grant {
                    unit: grant.unit,
                    epoch,
                    config,
                    to,
                });
            }
        }
        if !grants.is_empty() {
            self.propose_once(now, Topic::Grants, Command::Grant { grants });
        }
        for step in plan.moves {
            let Some(unit) = self
                .directory
                .unit(step.unit)
                .filter(|unit| unit.move_to.is_none())
            else {
                continue;
            };
            let command = Command::Move {
                unit: step.unit,
                epoch: unit.epoch,
                to: step.to,
            };
            self.propose_once(now, Topic::Move(step.unit), command);
        }
    }

    /// Proposes, unless the same was proposed a moment ago.
    fn propose_once(&mut self, now: Time, topic: Topic, command: Command) {
        let Some(leading) = &mut self.leading else {
            return;
        };
        if leading.waits(now, topic) {
            return;
        }
        leading.proposed.insert(topic, now);
        self.propose(now, command);
    }

    fn propose(&mut self, now: Time, command: Command) {
        let at = self.stamp(now);
        let random = self.draw();
        self.actions.push_back(Action::Propose(Entry {
            at,
            random,
            command,
        }));
    }

    /// The directory's time, carried on by this node's clock.
    fn stamp(&self, now: Time) -> ClusterTime {
        self.directory.clock() + now.since(self.clock_moved)
    }

    /// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): the seed is the shell's.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Leading {
    fn new(now: Time) -> Leading {
        Leading {
            since: now,
            sightings: BTreeMap::new(),
            reports: BTreeMap::new(),
            known: BTreeMap::new(),
            lagging: BTreeMap::new(),
            joint_held: None,
            proposed: BTreeMap::new(),
            plan_due: true,
            drains: false,
            planned: now,
            look_at: now,
        }
    }

    fn waits(&self, now: Time, topic: Topic) -> bool {
        self.proposed
            .get(&topic)
            .is_some_and(|at| now.since(*at) < PROPOSAL_RETRY)
    }

    /// Whether the incarnation has left one grant unapplied for `patience`.
    fn lags(
        &mut self,
        now: Time,
        incarnation: IncarnationId,
        directory: &Directory,
        patience: Duration,
    ) -> bool {
        let applied = self
            .sightings
            .values()
            .filter_map(|seen| seen.live.get(&incarnation).map(|sighted| sighted.applied))
            .max()
            .unwrap_or(LogIndex::ZERO);
        let owned = directory.units().values().filter_map(|unit| unit.owner);
        let grants = owned.filter(|owner| owner.incarnation == incarnation);
        let unapplied = grants
            .map(|owner| owner.granted.index)
            .filter(|index| *index > applied)
            .min();
        let Some(index) = unapplied else {
            self.lagging.remove(&incarnation);
            return false;
        };
        let (of, since) = self.lagging.entry(incarnation).or_insert((index, now));
        if *of != index {
            (*of, *since) = (index, now);
        }
        now.since(*since) >= patience
    }

    /// Nodes that a majority of voters does not see renew: last choice for placement.
    fn suspected(&self, now: Time, directory: &Directory) -> BTreeSet<IncarnationId> {
        let ttl = directory.ttl().duration();
        let promised = |incarnation: IncarnationId| {
            directory.voters().majority(|voter| {
                let seen = self
                    .sightings
                    .get(&voter)
                    .filter(|seen| now.since(seen.at) < ttl);
                seen.and_then(|seen| seen.live.get(&incarnation))
                    .is_some_and(|sighted| sighted.promised)
            })
        };
        directory
            .incarnations()
            .keys()
            .copied()
            .filter(|incarnation| !promised(*incarnation))
            .collect()
    }

    fn on_sighting(&mut self, now: Time, sighting: Sighting) {
        let Sighting {
            voter,
            voters,
            sighted,
        } = sighting;
        let seen = self.sightings.entry(voter).or_insert_with(|| Seen {
            at: now,
            voters,
            live: BTreeMap::new(),
        });
        (seen.at, seen.voters) = (now, voters);
        seen.live.extend(
            sighted
                .into_iter()
                .map(|sighted| (sighted.incarnation, sighted)),
        );
    }
}

impl Machine for Controller {
    type Event = Event;
    type Action = Action;
    type Error = Refused;

    fn handle(&mut self, now: Time, event: Event) -> Result<(), Refused> {
        match event {
            Event::Apply(id, entry) => self.applied(now, directory::Event::Apply(id, entry))?,
            Event::Skip(id) => self.applied(now, directory::Event::Skip(id))?,
            Event::Install(directory) => {
                self.directory = directory;
                let listed = self.directory.incarnations();
                self.notes
                    .retain(|incarnation, _| listed.contains_key(incarnation));
                self.clock_moved = now;
                self.actions.push_back(Action::Membership);
                let units = self.directory.units().keys().copied().collect();
                self.actions.push_back(Action::Changed(units));
            }
            Event::Leading(false) => self.leading = None,
            Event::Leading(true) => self.leading = Some(Leading::new(now)),
            Event::Forwarded(command) => {
                if self.leading.is_none() {
                    return Err(Refused::NotLeading);
                }
                if let Command::Register(new) = &command {
                    self.directory.may_register(new).map_err(Refused::Void)?;
                }
                self.propose(now, command);
            }
            Event::Reported(Report { voter, expel, .. }) => {
                let leading = self.leading.as_mut().ok_or(Refused::NotLeading)?;
                // Kept by the entry's own name: a report on an entry that was never committed counts
                // for no other.
                if leading.reports.len() < REPORTS_MAX || leading.reports.contains_key(&expel) {
                    leading.reports.entry(expel).or_default().insert(voter);
                }
            }
            Event::Sighted(sighting) => {
                let leading = self.leading.as_mut().ok_or(Refused::NotLeading)?;
                let votes = self.directory.voters().contains(sighting.voter);
                if votes {
                    let live = self.directory.incarnations();
                    leading.on_sighting(now, sighting);
                    for seen in leading.sightings.values_mut() {
                        seen.live
                            .retain(|incarnation, _| live.contains_key(incarnation));
                    }
                }
            }
            Event::Died(note) => {
                // Also for one that does not lead: a note may come while nobody does.
                let entry = self.directory.incarnations().get(&note.incarnation);
                if entry.is_some_and(|entry| note.proves(&entry.death)) {
                    self.notes.insert(note.incarnation, note);
                }
            }
            Event::Members(members) => self.members = members,
            Event::Tick => {}
        }
        self.lead(now);
        Ok(())
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn next_deadline(&self) -> Option<Time> {
        self.leading.as_ref().map(|leading| leading.look_at)
    }
}

fn topic_of(command: &Command) -> Option<Topic> {
    match command {
        Command::Expel { incarnation } => Some(Topic::Expel(*incarnation)),
        Command::PromisesOver { incarnation } => Some(Topic::Over(*incarnation)),
        Command::DeathNote { incarnation, .. } => Some(Topic::Note(*incarnation)),
        Command::Grant { .. } => Some(Topic::Grants),
        Command::Move { unit, .. } => Some(Topic::Move(*unit)),
        Command::SetVoters(_) => Some(Topic::Voters),
        Command::SetCopies { .. } => Some(Topic::Copies),
        Command::Tick => Some(Topic::Tick),
        _ => None,
    }
}

fn ended(command: &Command) -> Option<IncarnationId> {
    match command {
        Command::PromisesOver { incarnation } | Command::DeathNote { incarnation, .. } => {
            Some(*incarnation)
        }
        _ => None,
    }
}

/// How often the leader looks at what only time changes: well within the shortest TTL.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What was proposed is given this long to be applied before it is proposed again.
const PROPOSAL_RETRY: Duration = Duration::from_millis(500);

/// How often placement looks for moves when no unit lacks an owner.
const PLAN_PERIOD: Duration = Duration::from_secs(1);

/// A new incarnation has this many TTL to renew for the first time.
const NEW_GRACE_TTL: u32 = 2;

/// An incarnation has this many TTL to apply its grants (L7).
const LAG_TTL: u32 = 2;

/// The longest TTL of the presets: a joint list of voters is kept at least as long, since a lease of
/// the longest TTL may have begun before the TTL was lowered.
const LONGEST_TTL: Duration = Duration::from_secs(5);

/// Expulsions reported on at once. Each is one incarnation; a cluster has at most a thousand nodes.
const REPORTS_MAX: usize = 4_096;

#[cfg(test)]
mod tests;
