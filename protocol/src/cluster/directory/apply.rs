//! Applying one entry.
//!
//! Owns: what each command changes and when it is void. Never looks at anything but the directory
//! and the entry.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use super::{
    Action, Claim, Command, Directory, Entry, Formation, GRANTS_MAX, Grant, IncarnationEntry,
    Member, Needs, NodeEntry, Owner, ROOT, Registration, Run, StoreEntry, SupervisorEntry,
    UnitEntry, Void,
};
use crate::cluster::lease::Ended;
use crate::cluster::voters::Voters;
use crate::id::{
    ChildId, ConfigVersion, Epoch, IncarnationId, LogId, NodeId, SLOTS, SlotRange, StoreId,
    SupervisorId, UnitId,
};
use crate::machine::Machine;
use crate::rules::{Rule, keeps};
use crate::supervision::supervisor::CHILDREN_MAX;
use crate::supervision::{self, Exit, Intensity, Policy, RestartType, Strategy, Supervisor};
use crate::time::Time;
use crate::wire::heart::DeathDigest;
use crate::wire::replica::{EXCEPTIONS_MAX, Scope};

type Told = (SupervisorId, supervision::Event<Member>);

impl Directory {
    pub(super) fn apply(&mut self, id: LogId, entry: Entry) -> Result<(), Void> {
        let random = entry.random;
        if !self.is_formed() && !matches!(entry.command, Command::Form(_)) {
            return Err(Void::NotNow);
        }
        match entry.command {
            Command::Form(form) => self.form(form),
            Command::Register(new) => self.register(id, new),
            Command::Expel { incarnation } => self.expel(id, incarnation),
            Command::PromisesOver { incarnation } => self.promises_over(incarnation, random),
            Command::DeathNote {
                incarnation,
                secret,
                at_work,
            } => self.death_note(incarnation, &secret, &at_work, random),
            Command::Grant { grants } => {
                for grant in grants.into_iter().take(GRANTS_MAX) {
                    if let Err(void) = self.grant(id, grant) {
                        self.actions.push_back(Action::Voided(id, void));
                    }
                }
                Ok(())
            }
            Command::Release(claim) => self.release(claim),
            Command::Exited { claim, exit } => self.exited(claim, exit, random),
            Command::Serving(claim) => self.serving(claim),
            Command::ChangeSet { claim, config, set } => self.change_set(claim, config, set),
            Command::Split { claim, config, at } => self.split(id, claim, config, at),
            Command::Merge {
                low,
                low_config,
                high,
                high_config,
            } => self.merge(low, low_config, high, high_config),
            Command::Except {
                claim,
                config,
                child,
            } => self.except(id, claim, config, child),
            Command::Create {
                child,
                supervisor,
                restart,
                needs,
                set,
            } => self.create(child, supervisor, restart, needs, set),
            Command::Remove { unit } => {
                let entry = self.units.get(&unit).ok_or(Void::Unknown)?;
                // S1: every slot has its shard, and every light child a unit: a shard that excepted
                // one would not hold it again.
                if !matches!(&entry.scope, Scope::Child(child) if child.is_dedicated()) {
                    return Err(Void::BadSlots);
                }
                let supervisor = entry.supervisor;
                self.tell(
                    supervisor,
                    supervision::Event::Remove {
                        child: Member::Unit(unit),
                    },
                )
            }
            Command::Supervise {
                parent,
                restart,
                policy,
            } => self.supervise(parent, restart, policy),
            Command::Pardon { unit } => {
                let supervisor = self.units.get(&unit).ok_or(Void::Unknown)?.supervisor;
                self.tell(
                    supervisor,
                    supervision::Event::Pardon {
                        child: Member::Unit(unit),
                    },
                )
            }
            Command::Tick => {
                for supervisor in self.supervisors.keys().copied().collect::<Vec<_>>() {
                    self.tell(supervisor, supervision::Event::Tick)?;
                }
                Ok(())
            }
            Command::SetTtl(ttl) => {
                self.ttl = ttl;
                self.actions.push_back(Action::Membership);
                Ok(())
            }
            Command::SetCopies {
                replicas,
                min_copies,
                by_operator,
            } => {
                if min_copies == 0 || replicas < min_copies {
                    return Err(Void::BadSet);
                }
                (self.replicas, self.min_copies) = (replicas, min_copies);
                self.copies_fixed |= by_operator;
                self.changed_all();
                Ok(())
            }
            Command::SetVoters(voters) => self.set_voters(voters),
            Command::Drain { node, draining } => {
                self.nodes.get_mut(&node).ok_or(Void::Unknown)?.draining = draining;
                self.actions.push_back(Action::Membership);
                Ok(())
            }
            Command::Move { unit, epoch, to } => self.plan_move(unit, epoch, to),
            Command::Recover { unit, set } => self.recover(unit, set),
        }
    }

    fn form(&mut self, form: Formation) -> Result<(), Void> {
        let fits = form.shards > 0 && form.shards <= SLOTS && form.replicas >= form.min_copies;
        let nobody = form.voters.is_empty() || form.set.is_empty();
        if self.is_formed() || form.min_copies == 0 || nobody || !fits {
            return Err(Void::NotNow);
        }
        (self.ttl, self.replicas, self.min_copies) = (form.ttl, form.replicas, form.min_copies);
        self.voters = Voters::first(form.voters);
        // Nothing is above the root: it must not give up.
        let never = Intensity {
            restarts: u16::MAX,
            window: core::time::Duration::ZERO,
        };
        let policy = Policy {
            intensity: never,
            ..Policy::new(Strategy::OneForOne)
        };
        self.supervisors.insert(
            ROOT,
            SupervisorEntry {
                parent: None,
                supervisor: Supervisor::new(policy),
            },
        );
        self.next_supervisor = 1;
        for shard in 0..u32::from(form.shards) {
            let bound = |nth: u32| (nth * u32::from(SLOTS) / u32::from(form.shards)) as u16;
            let range =
                SlotRange::new(bound(shard), bound(shard + 1)).expect("there is a slot for each");
            let scope = Scope::Slots {
                range,
                except: Vec::new(),
            };
            self.add_unit(
                scope,
                ROOT,
                RestartType::Permanent,
                Needs::default(),
                form.set.clone(),
            )?;
        }
        self.actions.push_back(Action::Membership);
        Ok(())
    }

    /// Whether the registration would make a start live. The leader asks before it proposes one: a
    /// registration that is void when it is applied has by then cost the node's live start its lease,
    /// for voters heed an entry as soon as they hold it (L4).
    pub fn may_register(&self, new: &Registration) -> Result<(), Void> {
        if !self.is_formed() || self.incarnations.contains_key(&new.incarnation) {
            return Err(Void::NotNow);
        }
        // Late, or repeated: its promises are over for good.
        let ended = |node: &NodeEntry| node.ended.contains(new.incarnation);
        if self.nodes.get(&new.node).is_some_and(ended) {
            return Err(Void::NoIncarnation);
        }
        // A store id is never reused: not by another node, not after its node came with another.
        let used = |entry: &StoreEntry| entry.retired || entry.node != new.node;
        if self.stores.get(&new.store).is_some_and(used) {
            return Err(Void::StoreUsed);
        }
        Ok(())
    }

    fn register(&mut self, id: LogId, new: Registration) -> Result<(), Void> {
        self.may_register(&new)?;
        let (mut draining, mut ended) = (false, Ended::default());
        if let Some(former) = self.nodes.get(&new.node) {
            draining = former.draining;
            ended.clone_from(&former.ended);
            if former.store != new.store {
                let store = former.store;
                self.stores
                    .entry(store)
                    .and_modify(|entry| entry.retired = true);
            }
            if let Some(incarnation) = former.incarnation {
                self.expel(id, incarnation)?;
            }
        }
        self.stores.insert(
            new.store,
            StoreEntry {
                node: new.node,
                retired: false,
            },
        );
        let live = IncarnationEntry {
            node: new.node,
            death: new.death,
            registered: id,
            expelled: None,
        };
        self.incarnations.insert(new.incarnation, live);
        let entry = NodeEntry {
            incarnation: Some(new.incarnation),
            store: new.store,
            votes: new.votes,
            works: new.works,
            labels: new.labels,
            capacity: new.capacity,
            draining,
            name: new.name,
            address: new.address,
            ended,
        };
        self.nodes.insert(new.node, entry);
        self.actions.push_back(Action::Membership);
        self.changed_all();
        Ok(())
    }

    fn expel(&mut self, id: LogId, incarnation: IncarnationId) -> Result<(), Void> {
        let entry = self
            .incarnations
            .get_mut(&incarnation)
            .filter(|entry| entry.expelled.is_none());
        let entry = entry.ok_or(Void::NoIncarnation)?;
        entry.expelled = Some(id);
        let node = entry.node;
        self.nodes
            .entry(node)
            .and_modify(|node| node.incarnation = None);
        self.actions.push_back(Action::Membership);
        Ok(())
    }

    fn promises_over(&mut self, incarnation: IncarnationId, random: u64) -> Result<(), Void> {
        let expelled = |entry: &IncarnationEntry| entry.expelled.is_some();
        if !self.incarnations.get(&incarnation).is_some_and(expelled) {
            return Err(Void::NoIncarnation);
        }
        self.end_incarnation(incarnation, None, random);
        Ok(())
    }

    fn death_note(
        &mut self,
        incarnation: IncarnationId,
        secret: &[u8; 32],
        at_work: &[UnitId],
        random: u64,
    ) -> Result<(), Void> {
        let entry = self
            .incarnations
            .get(&incarnation)
            .ok_or(Void::NoIncarnation)?;
        if DeathDigest::of(secret) != entry.death {
            return Err(Void::NotProven);
        }
        let node = entry.node;
        let newest = |entry: &mut NodeEntry| {
            if entry.incarnation == Some(incarnation) {
                entry.incarnation = None;
            }
        };
        self.nodes.entry(node).and_modify(newest);
        self.end_incarnation(incarnation, Some(at_work), random);
        Ok(())
    }

    /// The incarnation's promises are over: its units have no owner, and their supervisors hear of
    /// it as one event each (T3). Without a death note only the units that were starting are known
    /// to have been at work (V2).
    fn end_incarnation(
        &mut self,
        incarnation: IncarnationId,
        at_work: Option<&[UnitId]>,
        random: u64,
    ) {
        if let Some(entry) = self.incarnations.remove(&incarnation) {
            self.nodes
                .entry(entry.node)
                .and_modify(|node| node.ended.remember(incarnation));
        }
        let mut lost: BTreeMap<SupervisorId, Vec<(Member, bool)>> = BTreeMap::new();
        for (id, unit) in &mut self.units {
            let Some(owner) = unit.owner.filter(|owner| owner.incarnation == incarnation) else {
                continue;
            };
            let worked = !owner.serving || at_work.is_some_and(|units| units.contains(id));
            unit.owner = None;
            unit.run = Run::Down;
            lost.entry(unit.supervisor)
                .or_default()
                .push((Member::Unit(*id), worked));
            self.actions.push_back(Action::Changed(*id));
        }
        // Those below first, for a supervisor is younger than its parent: a group above that stops
        // them would take their strikes away (V2). V1 is the supervisor's.
        for (supervisor, children) in lost.into_iter().rev() {
            // Refused when the children were told to stop meanwhile, which holds.
            let _ = self.tell(supervisor, supervision::Event::Lost { children, random });
        }
        self.actions.push_back(Action::Membership);
    }

    fn grant(&mut self, id: LogId, grant: Grant) -> Result<(), Void> {
        let owner = self
            .incarnations
            .get(&grant.to)
            .ok_or(Void::NoIncarnation)?;
        // L12: a grant to an expelled incarnation is void.
        if owner.expelled.is_some() && keeps(Rule::L12) {
            return Err(Void::NoIncarnation);
        }
        let node = owner.node;
        let held = self.units.get(&grant.unit).and_then(|unit| unit.owner);
        let holder_expelled = held.is_some_and(|held| !self.is_live(held.incarnation));
        let unit = self.units.get_mut(&grant.unit).ok_or(Void::Unknown)?;
        // L7: only after the last grantee's promises are over, or it released the unit.
        let free =
            unit.wants_owner() || (!keeps(Rule::L7) && holder_expelled && unit.run == Run::Wanted);
        if !free {
            return Err(Void::NotOwner);
        }
        // R7: a batch computed before a change voids this unit's grant only.
        if (unit.epoch, unit.config) != (grant.epoch, grant.config) {
            return Err(Void::Stale);
        }
        unit.epoch = unit.epoch.next();
        unit.owner = Some(Owner {
            node,
            incarnation: grant.to,
            granted: id,
            serving: false,
        });
        if unit.move_to.take().is_some() {
            unit.last_moved = Some(self.clock);
        }
        self.actions.push_back(Action::Changed(grant.unit));
        Ok(())
    }

    fn release(&mut self, claim: Claim) -> Result<(), Void> {
        let unit = self.owned(claim)?;
        unit.owner = None;
        let (supervisor, stopping) = (unit.supervisor, unit.run == Run::Stopping);
        unit.run = Run::Down;
        self.actions.push_back(Action::Changed(claim.unit));
        let child = Member::Unit(claim.unit);
        let event = if stopping {
            supervision::Event::Exited {
                child,
                exit: Exit::Shutdown,
                random: 0,
            }
        } else {
            supervision::Event::Drained { child }
        };
        self.tell(supervisor, event)
    }

    fn exited(&mut self, claim: Claim, exit: Exit, random: u64) -> Result<(), Void> {
        let unit = self.owned(claim)?;
        unit.owner = None;
        unit.run = Run::Down;
        let supervisor = unit.supervisor;
        self.actions.push_back(Action::Changed(claim.unit));
        let child = Member::Unit(claim.unit);
        self.tell(
            supervisor,
            supervision::Event::Exited {
                child,
                exit,
                random,
            },
        )
    }

    fn serving(&mut self, claim: Claim) -> Result<(), Void> {
        let unit = self.owned(claim)?;
        let (supervisor, owner) = (
            unit.supervisor,
            unit.owner.as_mut().expect("owned() saw the owner"),
        );
        if owner.serving {
            return Ok(());
        }
        owner.serving = true;
        self.actions.push_back(Action::Changed(claim.unit));
        // Refused when the supervisor has told the unit to stop meanwhile, which holds.
        let child = Member::Unit(claim.unit);
        self.tell(supervisor, supervision::Event::Started { child })
            .or(Ok(()))
    }

    fn change_set(
        &mut self,
        claim: Claim,
        config: ConfigVersion,
        set: BTreeSet<StoreId>,
    ) -> Result<(), Void> {
        let min_copies = self.min_copies();
        let not_in_use = |store: &StoreId| self.node_of(*store).is_none();
        let strangers: BTreeSet<StoreId> = set.iter().copied().filter(not_in_use).collect();
        let unit = self.owned(claim)?;
        // R6, R7: by compare-and-swap.
        if unit.config != config && keeps(Rule::R7) {
            return Err(Void::Stale);
        }
        let invents = !strangers.is_subset(&unit.set);
        // R6: no entry takes a set below `min_copies`.
        let too_few = set.len() < min_copies && set.len() < unit.set.len() && keeps(Rule::R6);
        if set.is_empty() || too_few || invents {
            return Err(Void::BadSet);
        }
        unit.set = set;
        unit.config = unit.config.next();
        self.actions.push_back(Action::Changed(claim.unit));
        Ok(())
    }

    fn split(
        &mut self,
        id: LogId,
        claim: Claim,
        config: ConfigVersion,
        at: u16,
    ) -> Result<(), Void> {
        let unit = self.reshaped(claim, config)?.clone();
        let Scope::Slots { range, except } = &unit.scope else {
            return Err(Void::BadSlots);
        };
        let (low, high) = range.split(at).ok_or(Void::BadSlots)?;
        self.room_under(unit.supervisor)?;
        let epoch = reshaped_epoch(&[unit.epoch]);
        let part = |range: SlotRange| {
            let except = except
                .iter()
                .filter(|child| range.contains(child.slot()))
                .cloned()
                .collect();
            Scope::Slots { range, except }
        };
        let high_unit = self.next_unit();
        let owner = unit.owner.map(|owner| Owner {
            granted: id,
            ..owner
        });
        let high_entry = UnitEntry {
            scope: part(high),
            epoch: if keeps(Rule::S2) { epoch } else { Epoch(1) },
            owner,
            ..unit.clone()
        };
        let low_entry = UnitEntry {
            scope: part(low),
            epoch,
            owner,
            ..unit
        };
        self.put_unit(claim.unit, low_entry);
        self.adopt_running(high_unit, high_entry)
    }

    fn merge(
        &mut self,
        low: Claim,
        low_config: ConfigVersion,
        high: Claim,
        high_config: ConfigVersion,
    ) -> Result<(), Void> {
        let low_unit = self.reshaped(low, low_config)?.clone();
        let high_unit = self.reshaped(high, high_config)?.clone();
        // S2: one owner, one set.
        let alike = low_unit.set == high_unit.set && low_unit.supervisor == high_unit.supervisor;
        let (
            Scope::Slots {
                range: a,
                except: x,
            },
            Scope::Slots {
                range: b,
                except: y,
            },
        ) = (&low_unit.scope, &high_unit.scope)
        else {
            return Err(Void::BadSlots);
        };
        let range = a
            .join(*b)
            .filter(|_| alike && low.incarnation == high.incarnation);
        let mut except: Vec<ChildId> = x.iter().chain(y).cloned().collect();
        except.sort_unstable();
        if except.len() > EXCEPTIONS_MAX {
            return Err(Void::BadSlots);
        }
        let merged = UnitEntry {
            scope: Scope::Slots {
                range: range.ok_or(Void::BadSlots)?,
                except,
            },
            epoch: reshaped_epoch(&[low_unit.epoch, high_unit.epoch]),
            config: low_unit.config.max(high_unit.config).next(),
            ..low_unit
        };
        self.drop_unit(high.unit);
        self.put_unit(low.unit, merged);
        let gone = supervision::Event::Remove {
            child: Member::Unit(high.unit),
        };
        self.tell(high_unit.supervisor, gone)
    }

    fn except(
        &mut self,
        id: LogId,
        claim: Claim,
        config: ConfigVersion,
        child: ChildId,
    ) -> Result<(), Void> {
        let unit = self.reshaped(claim, config)?.clone();
        let Scope::Slots { range, except } = &unit.scope else {
            return Err(Void::BadSlots);
        };
        if !unit.scope.holds(&child) || except.len() >= EXCEPTIONS_MAX {
            return Err(Void::BadSlots);
        }
        if self.dedicated.contains_key(&child) {
            return Err(Void::Exists);
        }
        self.room_under(unit.supervisor)?;
        let epoch = reshaped_epoch(&[unit.epoch]);
        let mut except = except.clone();
        except.push(child.clone());
        except.sort_unstable();
        let owner = unit.owner.map(|owner| Owner {
            granted: id,
            ..owner
        });
        let own = UnitEntry {
            scope: Scope::Child(child),
            epoch: if keeps(Rule::S2) { epoch } else { Epoch(1) },
            owner,
            ..unit.clone()
        };
        let rest = UnitEntry {
            scope: Scope::Slots {
                range: *range,
                except,
            },
            epoch,
            owner,
            ..unit
        };
        let dedicated = self.next_unit();
        self.put_unit(claim.unit, rest);
        self.adopt_running(dedicated, own)
    }

    fn create(
        &mut self,
        child: ChildId,
        supervisor: SupervisorId,
        restart: RestartType,
        needs: Needs,
        set: BTreeSet<StoreId>,
    ) -> Result<(), Void> {
        if self.dedicated.contains_key(&child) {
            return Err(Void::Exists);
        }
        // S1: a light child lies in a shard and gets a unit of its own by an exception, never beside it.
        if !child.is_dedicated() {
            return Err(Void::BadSlots);
        }
        if set.is_empty() || set.iter().any(|store| self.node_of(*store).is_none()) {
            return Err(Void::BadSet);
        }
        self.room_under(supervisor)?;
        self.add_unit(Scope::Child(child), supervisor, restart, needs, set)
    }

    fn supervise(
        &mut self,
        parent: SupervisorId,
        restart: RestartType,
        policy: Policy,
    ) -> Result<(), Void> {
        self.room_under(parent)?;
        let id = SupervisorId(self.next_supervisor);
        self.next_supervisor += 1;
        let entry = SupervisorEntry {
            parent: Some(parent),
            supervisor: Supervisor::new(policy),
        };
        self.supervisors.insert(id, entry);
        self.tell(
            parent,
            supervision::Event::Add {
                child: Member::Supervisor(id),
                restart,
            },
        )
    }

    fn set_voters(&mut self, voters: Voters) -> Result<(), Void> {
        // L8: one step at a time, each from the newest list.
        if !self.voters.may_become(&voters) {
            return Err(Void::OldVoters);
        }
        self.voters = voters;
        self.actions.push_back(Action::Membership);
        Ok(())
    }

    fn plan_move(&mut self, unit: UnitId, epoch: Epoch, to: NodeId) -> Result<(), Void> {
        let live = self
            .nodes
            .get(&to)
            .is_some_and(|node| node.works && node.incarnation.is_some());
        let entry = self.units.get_mut(&unit).ok_or(Void::Unknown)?;
        if entry.epoch != epoch {
            return Err(Void::Stale);
        }
        if !live {
            return Err(Void::Unknown);
        }
        entry.move_to = Some(to);
        self.actions.push_back(Action::Changed(unit));
        Ok(())
    }

    fn recover(&mut self, unit: UnitId, set: BTreeSet<StoreId>) -> Result<(), Void> {
        let entry = self.units.get_mut(&unit).ok_or(Void::Unknown)?;
        // What is left of the old set: loss is accepted, invention is not.
        if set.is_empty() || !set.is_subset(&entry.set) {
            return Err(Void::BadSet);
        }
        entry.set = set;
        entry.config = entry.config.next();
        self.actions.push_back(Action::Changed(unit));
        Ok(())
    }

    /// The unit, if the claim is its present grant and its holder is live (R7).
    fn owned(&mut self, claim: Claim) -> Result<&mut UnitEntry, Void> {
        let live = self.is_live(claim.incarnation) || !keeps(Rule::R7);
        let unit = self.units.get_mut(&claim.unit).ok_or(Void::Unknown)?;
        let holds = unit
            .owner
            .is_some_and(|owner| owner.incarnation == claim.incarnation);
        if !live || !holds || unit.epoch != claim.epoch {
            return Err(Void::NotOwner);
        }
        Ok(unit)
    }

    /// The unit, if its serving owner may reshape it (S2).
    fn reshaped(&mut self, claim: Claim, config: ConfigVersion) -> Result<&UnitEntry, Void> {
        let unit = self.owned(claim)?;
        if unit.config != config {
            return Err(Void::Stale);
        }
        let serving = unit.owner.is_some_and(|owner| owner.serving);
        if !serving || unit.run != Run::Wanted {
            return Err(Void::NotOwner);
        }
        Ok(unit)
    }

    fn next_unit(&mut self) -> UnitId {
        self.next_unit += 1;
        UnitId(self.next_unit)
    }

    fn add_unit(
        &mut self,
        scope: Scope,
        supervisor: SupervisorId,
        restart: RestartType,
        needs: Needs,
        set: BTreeSet<StoreId>,
    ) -> Result<(), Void> {
        let unit = self.next_unit();
        let entry = UnitEntry {
            scope,
            supervisor,
            needs,
            epoch: self.epoch_floor,
            config: ConfigVersion(1),
            set,
            owner: None,
            run: Run::Down,
            move_to: None,
            last_moved: None,
        };
        self.put_unit(unit, entry);
        self.tell(
            supervisor,
            supervision::Event::Add {
                child: Member::Unit(unit),
                restart,
            },
        )
    }

    /// A supervisor that is full would refuse only after the entry has begun to change things.
    fn room_under(&self, supervisor: SupervisorId) -> Result<(), Void> {
        let entry = self.supervisors.get(&supervisor).ok_or(Void::Unknown)?;
        if entry.supervisor.len() >= CHILDREN_MAX {
            return Err(Void::Refused);
        }
        Ok(())
    }

    /// A unit that came out of a running one: its supervisor learns of it as of one that runs.
    fn adopt_running(&mut self, unit: UnitId, entry: UnitEntry) -> Result<(), Void> {
        let supervisor = entry.supervisor;
        let (run, owner) = (entry.run, entry.owner);
        self.put_unit(unit, entry);
        let child = Member::Unit(unit);
        let restart = RestartType::Permanent;
        self.tell(supervisor, supervision::Event::Add { child, restart })?;
        self.tell(supervisor, supervision::Event::Started { child })
            .or(Ok(()))?;
        let entry = self.units.get_mut(&unit).expect("it was just put there");
        (entry.run, entry.owner) = (run, owner);
        Ok(())
    }

    fn put_unit(&mut self, unit: UnitId, entry: UnitEntry) {
        match &entry.scope {
            Scope::Slots { range, .. } => self.shards.insert(range.start(), unit),
            Scope::Child(child) => self.dedicated.insert(child.clone(), unit),
        };
        self.units.insert(unit, entry);
        self.actions.push_back(Action::Changed(unit));
    }

    fn drop_unit(&mut self, unit: UnitId) {
        if let Some(entry) = self.units.remove(&unit) {
            match &entry.scope {
                Scope::Slots { range, .. } => self.shards.remove(&range.start()),
                Scope::Child(child) => self.dedicated.remove(child),
            };
            self.epoch_floor = self.epoch_floor.max(entry.epoch);
            self.actions.push_back(Action::Changed(unit));
        }
    }

    /// A supervisor has ended for good, and everything under it is down: nobody could start any of
    /// it again.
    fn drop_supervisor(&mut self, ended: SupervisorId) {
        let mut below = alloc::vec![ended];
        while let Some(supervisor) = below.pop() {
            self.supervisors.remove(&supervisor);
            let children = self
                .supervisors
                .iter()
                .filter(|(_, entry)| entry.parent == Some(supervisor));
            below.extend(children.map(|(id, _)| *id));
            let units = self
                .units
                .iter()
                .filter(|(_, entry)| entry.supervisor == supervisor);
            for unit in units.map(|(id, _)| *id).collect::<Vec<_>>() {
                self.drop_unit(unit);
            }
        }
    }

    fn changed_all(&mut self) {
        self.actions
            .extend(self.units.keys().copied().map(Action::Changed));
    }

    /// Tells a supervisor something and carries out what it wants, up and down the tree, until all
    /// is said.
    fn tell(
        &mut self,
        supervisor: SupervisorId,
        event: supervision::Event<Member>,
    ) -> Result<(), Void> {
        let now = Time::from_millis(self.clock.as_millis());
        let entry = self.supervisors.get_mut(&supervisor).ok_or(Void::Unknown)?;
        entry
            .supervisor
            .handle(now, event)
            .map_err(|_| Void::Refused)?;
        let mut told: VecDeque<Told> = VecDeque::new();
        self.obey(supervisor, &mut told);
        while let Some((supervisor, event)) = told.pop_front() {
            let Some(entry) = self.supervisors.get_mut(&supervisor) else {
                continue;
            };
            // A refusal is an answer here: the other side has decided otherwise meanwhile.
            if entry.supervisor.handle(now, event).is_ok() {
                self.obey(supervisor, &mut told);
            }
        }
        Ok(())
    }

    fn obey(&mut self, supervisor: SupervisorId, told: &mut VecDeque<Told>) {
        use supervision::Action as Wants;
        let mut wants = Vec::new();
        if let Some(entry) = self.supervisors.get_mut(&supervisor) {
            wants.extend(core::iter::from_fn(|| entry.supervisor.poll_action()));
        }
        for want in wants {
            match want {
                Wants::Start {
                    child: Member::Unit(unit),
                } => self.set_run(unit, Run::Wanted),
                Wants::Start {
                    child: child @ Member::Supervisor(below),
                } => {
                    told.push_back((below, supervision::Event::Start));
                    told.push_back((supervisor, supervision::Event::Started { child }));
                }
                Wants::Stop {
                    child: child @ Member::Unit(unit),
                } => {
                    let running = self
                        .units
                        .get(&unit)
                        .is_some_and(|unit| unit.owner.is_some());
                    if running {
                        self.set_run(unit, Run::Stopping);
                    } else {
                        self.set_run(unit, Run::Down);
                        let exit = Exit::Shutdown;
                        told.push_back((
                            supervisor,
                            supervision::Event::Exited {
                                child,
                                exit,
                                random: 0,
                            },
                        ));
                    }
                }
                Wants::Stop {
                    child: Member::Supervisor(below),
                } => {
                    told.push_back((below, supervision::Event::Shutdown));
                }
                Wants::Quarantine {
                    child: Member::Unit(unit),
                    ..
                } => {
                    self.actions.push_back(Action::Quarantined(unit));
                }
                Wants::Quarantine {
                    child: Member::Supervisor(_),
                    ..
                } => {}
                Wants::Forget {
                    child: Member::Unit(unit),
                } => self.drop_unit(unit),
                Wants::Forget {
                    child: Member::Supervisor(below),
                } => self.drop_supervisor(below),
                Wants::Escalate { .. } | Wants::Down => {
                    let parent = self
                        .supervisors
                        .get(&supervisor)
                        .and_then(|entry| entry.parent);
                    if let Some(parent) = parent {
                        let child = Member::Supervisor(supervisor);
                        let exit = Exit::Shutdown;
                        told.push_back((
                            parent,
                            supervision::Event::Exited {
                                child,
                                exit,
                                random: 0,
                            },
                        ));
                    }
                }
            }
        }
    }

    fn set_run(&mut self, unit: UnitId, run: Run) {
        if let Some(entry) = self.units.get_mut(&unit) {
            entry.run = run;
            self.actions.push_back(Action::Changed(unit));
        }
    }

    /// The node of a store, if the store is in use.
    pub fn node_of(&self, store: StoreId) -> Option<NodeId> {
        self.stores
            .get(&store)
            .filter(|entry| !entry.retired)
            .map(|entry| entry.node)
    }
}

/// S2: the owner stays, at the highest epoch and one more.
fn reshaped_epoch(of: &[Epoch]) -> Epoch {
    let highest = of.iter().copied().max().unwrap_or(Epoch::ZERO);
    if keeps(Rule::S2) {
        highest.next()
    } else {
        highest
    }
}
