//! The judge: DESIGN's invariants, checked from outside after every step.
//!
//! Owns: what was told to whom, which records exist, and what the committed log makes of the
//! directory. It sees every disk and every machine and is seen by none. Never repairs, never
//! relaxes: what a broken clock bound excuses (rule L2) is named where it is excused.
//!
//! | checked | where |
//! |---|---|
//! | I1 one chain of acknowledged records a child | `acknowledged` |
//! | I2 acknowledged records stay on every complete member of the set | `acknowledged`, `stored`, `set_changed` |
//! | I3 no child starts while another node runs it | `child_started` |
//! | I4 a reply only under promises of a majority | `replied` |
//! | I5 every queue within its limit | `within_limits` |
//! | I6 supervision as an independent count has it | `applied` |
//! | I8 a reply only when what it reflects is acknowledged | `replied` |
//! | each key at most once | `executed`, `finish` |

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use understudy_protocol::cluster::directory::{
    self, Command, Directory, Entry, Event as DirectoryEvent, Member, Run, Void,
};
use understudy_protocol::id::{ChildId, IncarnationId, LogId, Seq, StoreId, SupervisorId, UnitId};
use understudy_protocol::machine::Machine;
use understudy_protocol::supervision::{Exit, Strategy};
use understudy_protocol::time::{ClusterTime, Time};
use understudy_protocol::wire::content;
use understudy_protocol::wire::record::{Head, Record, RecordKind};
use understudy_protocol::wire::step::Step;

use crate::cover::{Coverage, Path};
use crate::disk::Content;

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which invariant.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}

/// The judge of one run.
#[derive(Clone, Debug, Default)]
pub struct Judge {
    /// The directory as the committed log makes it.
    pub truth: Directory,
    /// The committed log, to hold every node to it.
    log: Vec<(LogId, Option<Entry>)>,
    ledgers: BTreeMap<ChildId, Ledger>,
    strikes: BTreeMap<UnitId, Strikes>,
    restarts: BTreeMap<SupervisorId, Vec<ClusterTime>>,
    /// What was found wrong, the first only.
    pub violation: Option<Violation>,
    /// Rare paths taken.
    pub coverage: Coverage,
    /// Stores whose disk is gone.
    pub lost: BTreeSet<StoreId>,
}

#[derive(Clone, Debug, Default)]
struct Ledger {
    /// Every record ever written to any disk: what it follows and which operation it is.
    records: BTreeMap<Head, (Head, Option<u64>)>,
    /// The last acknowledged record.
    acked: Head,
    /// The longest reply.
    replied: u64,
    /// What each operation was answered.
    answers: BTreeMap<u64, u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Strikes {
    count: u32,
    serving_since: Option<ClusterTime>,
}

impl Judge {
    /// Says that an invariant does not hold.
    pub fn fail(&mut self, invariant: &'static str, what: String) {
        if self.violation.is_none() {
            self.violation = Some(Violation { invariant, what });
        }
    }

    /// The last acknowledged record of a child.
    pub fn acked(&self, child: &ChildId) -> Head {
        self.ledgers
            .get(child)
            .map_or(Head::NONE, |ledger| ledger.acked)
    }

    /// The greatest value that anybody was told of a child.
    pub fn replied_value(&self, child: &ChildId) -> u64 {
        self.ledgers.get(child).map_or(0, |ledger| ledger.replied)
    }

    /// A node applied a committed entry: every node must apply the same log.
    pub fn applied(&mut self, id: LogId, entry: Option<&Entry>) {
        let place = (id.index.0 - 1) as usize;
        if let Some((known, _)) = self.log.get(place) {
            if *known != id {
                self.fail(
                    "Raft",
                    format!(
                        "two entries committed at {}: {known:?} and {id:?}",
                        id.index
                    ),
                );
            }
            return;
        }
        if place != self.log.len() {
            return self.fail(
                "Raft",
                format!("{id:?} applied before {}", self.log.len() + 1),
            );
        }
        self.log.push((id, entry.cloned()));
        let before = entry.map(|entry| self.before(entry));
        let event = match entry {
            Some(entry) => DirectoryEvent::Apply(id, entry.clone()),
            None => DirectoryEvent::Skip(id),
        };
        if let Err(error) = self.truth.handle(Time::ZERO, event) {
            self.fail("Raft", error.to_string());
        }
        let mut changed = BTreeSet::new();
        let mut voided = false;
        while let Some(action) = self.truth.poll_action() {
            match action {
                directory::Action::Changed(unit) => {
                    changed.insert(unit);
                }
                directory::Action::Quarantined(_) => self.coverage.reach(Path::Quarantine),
                directory::Action::Voided(_, void) => voided |= !matches!(void, Void::NotNow),
                directory::Action::Membership => {}
            }
        }
        if let (Some(entry), Some(before)) = (entry, before) {
            self.supervised(entry, &before, voided);
            self.cover(entry, &before, &changed);
        }
    }

    fn cover(&mut self, entry: &Entry, before: &Before, changed: &BTreeSet<UnitId>) {
        if let (Command::ChangeSet { claim, .. }, Some(old)) = (&entry.command, &before.set) {
            let Some(unit) = self.truth.unit(claim.unit).filter(|unit| unit.set != *old) else {
                return;
            };
            let path = match (unit.set.is_superset(old), unit.set.is_subset(old)) {
                (true, _) => Path::Grown,
                (_, true) => Path::Shrunk,
                _ if old.len() <= self.truth.min_copies() => Path::Swapped,
                _ => return,
            };
            return self.coverage.reach(path);
        }
        let falls = matches!(
            entry.command,
            Command::Exited { .. } | Command::PromisesOver { .. } | Command::DeathNote { .. }
        );
        let grouped = |unit: &UnitId| {
            let unit = self
                .truth
                .unit(*unit)
                .filter(|unit| unit.run == Run::Stopping);
            let supervisor = unit.and_then(|unit| self.truth.supervisors().get(&unit.supervisor));
            supervisor
                .is_some_and(|entry| entry.supervisor.policy().strategy != Strategy::OneForOne)
        };
        if falls && changed.iter().any(grouped) {
            self.coverage.reach(Path::GroupRestarted);
        }
    }

    /// Units whose sets or scopes the last entry may have changed: all of them, to be sure. Called by
    /// the world, which has the disks.
    pub fn units_of_truth(&self) -> impl Iterator<Item = (UnitId, &directory::UnitEntry)> {
        self.truth.units().iter().map(|(id, unit)| (*id, unit))
    }

    /// A record reached a disk.
    pub fn written(&mut self, record: &Record) {
        let op = match record.kind {
            RecordKind::Delta => minicbor_step(record).map(|step| op_of(inline(&step.effect))),
            RecordKind::Snapshot => None,
        };
        let ledger = self.ledgers.entry(record.child.clone()).or_default();
        ledger.records.insert(record.head(), (record.prev, op));
    }

    /// I1, I2: an owner says that a record is acknowledged.
    pub fn acknowledged<'a>(
        &mut self,
        child: &ChildId,
        upto: Head,
        contents: impl Fn(StoreId) -> Option<&'a Content>,
    ) {
        let ledger = self.ledgers.entry(child.clone()).or_default();
        let known = ledger.acked;
        let (longer, shorter) = if upto.seq >= known.seq {
            (upto, known)
        } else {
            (known, upto)
        };
        if !ledger.descends(longer, shorter) {
            let what = format!(
                "{child}: {upto:?} acknowledged, but so was {known:?}, which is on another chain"
            );
            return self.fail("I1", what);
        }
        ledger.acked = longer;
        let taken_over = self
            .truth
            .unit_of(child)
            .and_then(|unit| self.truth.unit(unit));
        if longer.seq > known.seq && taken_over.is_some_and(|unit| longer.epoch < unit.epoch) {
            self.coverage.reach(Path::UnackedTail);
        }
        let Some(unit) = self
            .truth
            .unit_of(child)
            .and_then(|unit| self.truth.unit(unit))
        else {
            return;
        };
        let min_copies = self.truth.min_copies();
        let mut held = 0;
        let mut missing = None;
        for store in &unit.set {
            match contents(*store) {
                Some(content) if self.holds(content, child, upto) => held += 1,
                Some(content) if content.admits_loss(child) => {}
                Some(_) => missing = Some(*store),
                None => {}
            }
        }
        if let Some(store) = missing {
            let what = format!(
                "{child}: {upto:?} acknowledged, but {store} of the set {:?} does not hold it",
                unit.set
            );
            return self.fail("I2", what);
        }
        if held == 0 || (unit.set.len() < min_copies && held < unit.set.len()) {
            self.fail(
                "I2",
                format!("{child}: {upto:?} acknowledged on {held} of {:?}", unit.set),
            );
        }
    }

    /// I2: what a store or a set has become still holds everything acknowledged.
    pub fn check_child<'a>(
        &mut self,
        child: &ChildId,
        contents: impl Fn(StoreId) -> Option<&'a Content>,
    ) {
        let acked = self.acked(child);
        if acked == Head::NONE {
            return;
        }
        let Some(unit) = self
            .truth
            .unit_of(child)
            .and_then(|unit| self.truth.unit(unit))
        else {
            return;
        };
        let mut held = 0;
        let mut missing = None;
        for store in &unit.set {
            let Some(content) = contents(*store) else {
                continue;
            };
            if self.holds(content, child, acked) {
                held += 1;
            } else if !content.admits_loss(child) {
                missing = Some(*store);
            }
        }
        let what = match missing {
            Some(store) => format!("{child}: {store} of the set {:?} lacks {acked:?}", unit.set),
            None if held == 0 => format!(
                "{child}: no store of the set {:?} holds {acked:?}",
                unit.set
            ),
            None => return,
        };
        self.fail("I2", what);
    }

    /// Every child that has an acknowledged record.
    pub fn acked_children(&self) -> Vec<ChildId> {
        let acked = self
            .ledgers
            .iter()
            .filter(|(_, ledger)| ledger.acked != Head::NONE);
        acked.map(|(child, _)| child.clone()).collect()
    }

    fn holds(&self, content: &Content, child: &ChildId, head: Head) -> bool {
        let chain = content.chain(child);
        let (Some(first), Some(last)) = (chain.first(), chain.last()) else {
            return head == Head::NONE;
        };
        if head.seq > last.seq {
            return false;
        }
        if head.seq >= first.seq {
            return chain[(head.seq.0 - first.seq.0) as usize].head() == head;
        }
        self.ledgers
            .get(child)
            .is_some_and(|ledger| ledger.descends(first.head(), head))
    }

    /// I4, I8 and the reader's order: a reply leaves. `value` is how many operations the child had
    /// taken; `floor` what anybody had been told before the caller asked.
    pub fn replied(
        &mut self,
        child: &ChildId,
        reflects: Seq,
        op: Option<u64>,
        value: u64,
        floor: u64,
        excused: bool,
    ) {
        let acked = self.acked(child);
        if reflects > acked.seq {
            let what = format!(
                "{child}: a reply reflects {reflects}, acknowledged is {}",
                acked.seq
            );
            return self.fail("I8", what);
        }
        if value < floor && !excused {
            let what = format!("{child}: a reply says {value} after somebody was told {floor}");
            return self.fail("I8", what);
        }
        let ledger = self.ledgers.entry(child.clone()).or_default();
        if !excused {
            ledger.replied = ledger.replied.max(value);
        }
        if let Some(op) = op {
            let first = *ledger.answers.entry(op).or_insert(value);
            if first != value {
                let what = format!("{child}: operation {op:x} was answered {first}, then {value}");
                self.fail("keys", what);
            }
        }
    }

    /// An operation is carried out on a state: it must not be in it.
    pub fn executed(&mut self, child: &ChildId, op: u64, state: &[u64]) {
        if state.contains(&op) {
            self.fail(
                "keys",
                format!("{child}: operation {op:x} took effect twice"),
            );
        }
    }

    /// At the end: every answered operation is in the acknowledged chain exactly once.
    pub fn finish(&mut self) {
        let mut wrong = None;
        for (child, ledger) in &self.ledgers {
            let mut seen: BTreeMap<u64, u32> = BTreeMap::new();
            let mut at = ledger.acked;
            while let Some((prev, op)) = ledger.records.get(&at) {
                if let Some(op) = op {
                    *seen.entry(*op).or_default() += 1;
                }
                at = *prev;
            }
            for op in ledger.answers.keys() {
                match seen.get(op) {
                    Some(1) => {}
                    Some(times) => {
                        wrong = Some(format!(
                            "{child}: operation {op:x} stands there {times} times"
                        ))
                    }
                    None => {
                        wrong = Some(format!(
                            "{child}: operation {op:x} was answered and is not there"
                        ))
                    }
                }
            }
        }
        if let Some(what) = wrong {
            self.fail("keys", what);
        }
    }

    fn before(&self, entry: &Entry) -> Before {
        let now = Time::from_millis(self.truth.clock().max(entry.at).as_millis());
        let restarts = self
            .truth
            .supervisors()
            .iter()
            .map(|(id, entry)| (*id, entry.supervisor.restarts_in_window(now)))
            .collect();
        let owned = match &entry.command {
            Command::PromisesOver { incarnation } | Command::DeathNote { incarnation, .. } => self
                .truth
                .units()
                .iter()
                .filter_map(|(id, unit)| unit.owner.map(|owner| (*id, owner)))
                .filter(|(_, owner)| owner.incarnation == *incarnation)
                .map(|(id, owner)| (id, owner.serving))
                .collect(),
            _ => Vec::new(),
        };
        let owner = match &entry.command {
            Command::Exited { claim, .. } => self
                .truth
                .unit(claim.unit)
                .filter(|unit| unit.epoch == claim.epoch)
                .map(|unit| (unit.supervisor, unit.run)),
            _ => None,
        };
        let set = match &entry.command {
            Command::ChangeSet { claim, .. } => {
                self.truth.unit(claim.unit).map(|unit| unit.set.clone())
            }
            _ => None,
        };
        Before {
            set,
            restarts,
            owned,
            owner,
            known: self.truth.incarnations().keys().copied().collect(),
        }
    }

    /// I6: an independent count of restarts and strikes.
    fn supervised(&mut self, entry: &Entry, before: &Before, voided: bool) {
        let clock = self.truth.clock();
        match &entry.command {
            Command::Serving(claim) if !voided => {
                let strikes = self.strikes.entry(claim.unit).or_default();
                strikes.serving_since = strikes.serving_since.or(Some(clock));
            }
            Command::Pardon { unit } if !voided => {
                self.strikes.insert(*unit, Strikes::default());
                self.coverage.reach(Path::Pardon);
            }
            Command::Exited { claim, exit } if !voided => {
                if let Some(strikes) = self.strikes.get_mut(&claim.unit) {
                    strikes.rest(clock);
                }
                if let (Exit::Abnormal, Some((supervisor, Run::Wanted))) = (exit, before.owner) {
                    self.check_intensity(supervisor, clock);
                }
            }
            Command::Release(claim) if !voided => {
                if let Some(strikes) = self.strikes.get_mut(&claim.unit) {
                    strikes.rest(clock);
                }
            }
            Command::PromisesOver { incarnation } | Command::DeathNote { incarnation, .. } => {
                let ended = before.known.contains(incarnation)
                    && !self.truth.incarnations().contains_key(incarnation);
                if !ended {
                    return;
                }
                let at_work: &[UnitId] = match &entry.command {
                    Command::DeathNote { at_work, .. } => {
                        self.coverage.reach(Path::DeathNote);
                        at_work
                    }
                    _ => {
                        self.coverage.reach(Path::ReportsOver);
                        &[]
                    }
                };
                self.check_loss(before, at_work, clock);
            }
            _ => {}
        }
    }

    /// V1: node loss counts as no restart. V2: whoever was starting or at work has a strike, and
    /// three quarantine.
    fn check_loss(&mut self, before: &Before, at_work: &[UnitId], clock: ClusterTime) {
        let now = Time::from_millis(clock.as_millis());
        let mut wrong = None;
        for (id, entry) in self.truth.supervisors() {
            // A child supervisor that was giving up has gone down with this entry: that one counts.
            let gave_up = self
                .truth
                .supervisors()
                .values()
                .any(|below| below.parent == Some(*id) && below.supervisor.is_down());
            if gave_up {
                continue;
            }
            let counted = entry.supervisor.restarts_in_window(now);
            if before
                .restarts
                .get(id)
                .is_some_and(|before| counted > *before)
            {
                wrong = Some(format!("{id}: a node loss was counted as a restart"));
            }
        }
        for (unit, serving) in &before.owned {
            let strikes = self.strikes.entry(*unit).or_default();
            strikes.rest(clock);
            if !serving || at_work.contains(unit) {
                strikes.count += 1;
            }
            if strikes.count >= 3 && !self.truth.is_quarantined(*unit) {
                wrong = Some(format!("{unit}: three strikes and no quarantine"));
            }
        }
        if let Some(what) = wrong {
            self.fail("I6", what);
        }
    }

    fn check_intensity(&mut self, supervisor: SupervisorId, clock: ClusterTime) {
        let Some(entry) = self.truth.supervisors().get(&supervisor) else {
            return;
        };
        let intensity = entry.supervisor.policy().intensity;
        let restarts = self.restarts.entry(supervisor).or_default();
        restarts.push(clock);
        restarts.retain(|at| clock.since(*at) <= intensity.window);
        if restarts.len() <= usize::from(intensity.restarts) {
            return;
        }
        restarts.clear();
        self.coverage.reach(Path::Escalated);
        // Too many: nothing of the supervisor may be up or about to be, until its parent starts it.
        let up = self
            .truth
            .units()
            .values()
            .any(|unit| unit.supervisor == supervisor && unit.run == Run::Wanted);
        let waiting = entry.supervisor.children().any(|(child, _, state)| {
            matches!(child, Member::Unit(_))
                && matches!(
                    state,
                    understudy_protocol::supervision::ChildState::Waiting { .. }
                )
        });
        if up || waiting {
            self.fail(
                "I6",
                format!("{supervisor}: more restarts than the intensity allows, and it goes on"),
            );
        }
    }
}

struct Before {
    /// The replica set that the entry is about.
    set: Option<BTreeSet<StoreId>>,
    restarts: BTreeMap<SupervisorId, usize>,
    owned: Vec<(UnitId, bool)>,
    owner: Option<(SupervisorId, Run)>,
    known: BTreeSet<IncarnationId>,
}

impl Strikes {
    /// It comes down: strikes are cleared by ten seconds of clean running.
    fn rest(&mut self, clock: ClusterTime) {
        let ran = self
            .serving_since
            .take()
            .map_or(Duration::ZERO, |since| clock.since(since));
        if ran >= Duration::from_secs(10) {
            self.count = 0;
        }
    }
}

impl Ledger {
    /// Whether `head` follows from `from`, or is it.
    fn descends(&self, head: Head, from: Head) -> bool {
        let mut at = head;
        while at.seq > from.seq {
            match self.records.get(&at) {
                Some((prev, _)) => at = *prev,
                None => return false,
            }
        }
        at == from
    }
}

fn minicbor_step(record: &Record) -> Option<Step> {
    minicbor::decode(&record.body).ok()
}

/// No child here has long bytes.
pub fn inline(content: &content::Content) -> &[u8] {
    content.inline().expect("a few words are inline")
}

/// The operation that an effect is.
pub fn op_of(effect: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&effect[..8]);
    u64::from_be_bytes(bytes)
}
