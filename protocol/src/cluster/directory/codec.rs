//! What the directory's commands and snapshots promise beyond their shape.
//!
//! Owns: the limits of every command, and what holds in any directory that commands have made; so
//! that whoever has decoded one asks nothing again. Never says whether a command is void: that
//! depends on when it is applied.
//!
//! A command that breaks its limits must be refused before it is in a log: once there, no member
//! could read past it. So it is refused when it is framed, and the leader reads what it is asked to
//! propose.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;

use minicbor::Decode;
use minicbor::decode::{Decoder, Error as DecodeError};

use super::command::{
    ADDRESS_BYTES_MAX, Command, Entry, Formation, GRANTS_MAX, LABEL_BYTES_MAX, LABELS_MAX, Needs,
    RESOURCES_MAX, Registration, SET_MAX,
};
use super::entries::{IncarnationEntry, Member, NodeEntry, StoreEntry, SupervisorEntry, UnitEntry};
use super::{DIRECTORY_VERSION, Directory, ROOT};
use crate::cluster::lease::ENDED_MAX;
use crate::cluster::voters::{VOTERS_MAX, Voters};
use crate::id::{
    COUNTER_MAX, ChildId, Epoch, IncarnationId, LogId, NodeId, SLOTS, StoreId, SupervisorId, UnitId,
};
use crate::time::{ClusterTime, Time};
use crate::wire::codec::{Message, MessageType, holds, scope_holds};
use crate::wire::heart::{AT_WORK_MAX, Ttl};
use crate::wire::replica::Scope;

type Held = Result<(), &'static str>;

impl Message for Entry {
    const TYPE: MessageType = MessageType::DirectoryCommand;

    fn check(&self) -> Held {
        clock_holds(self.at)?;
        match &self.command {
            Command::Form(form) => formation_holds(form),
            Command::Register(new) => registration_holds(new),
            Command::DeathNote { at_work, .. } => holds(
                at_work.len() <= AT_WORK_MAX,
                "a death note names at most 100 units",
            ),
            Command::Grant { grants } => holds(
                grants.len() <= GRANTS_MAX,
                "an entry grants at most 20,000 units",
            ),
            Command::ChangeSet { set, .. } | Command::Recover { set, .. } => set_holds(set),
            Command::Split { at, .. } => holds(
                0 < *at && *at < SLOTS,
                "a shard is cut at a slot that is not the first",
            ),
            Command::Create { needs, set, .. } => {
                needs_hold(needs)?;
                set_holds(set)
            }
            Command::Supervise { policy, .. } => holds(
                policy.is_within_limits(),
                "a supervisor looks at most a year back and ahead",
            ),
            Command::SetTtl(ttl) => ttl_holds(*ttl),
            Command::SetCopies {
                replicas,
                min_copies,
                ..
            } => copies_hold(*replicas, *min_copies),
            Command::SetVoters(voters) => voters_hold(voters),
            Command::Expel { .. }
            | Command::PromisesOver { .. }
            | Command::Release(_)
            | Command::Exited { .. }
            | Command::Serving(_)
            | Command::Merge { .. }
            | Command::Except { .. }
            | Command::Remove { .. }
            | Command::Pardon { .. }
            | Command::Tick
            | Command::Drain { .. }
            | Command::Move { .. } => Ok(()),
        }
    }
}

impl Message for Directory {
    const TYPE: MessageType = MessageType::DirectorySnapshot;

    fn check(&self) -> Held {
        holds(
            self.version == DIRECTORY_VERSION,
            "a directory of another version",
        )?;
        clock_holds(self.clock)?;
        if !self.is_formed() {
            let nothing = Directory {
                applied: self.applied,
                clock: self.clock,
                ..Directory::default()
            };
            return holds(*self == nothing, "nothing comes before the formation");
        }
        ttl_holds(self.ttl)?;
        copies_hold(self.replicas, self.min_copies)?;
        voters_hold(&self.voters)?;
        holds(
            self.next_unit <= COUNTER_MAX && self.next_supervisor <= COUNTER_MAX,
            "a number that nothing could have reached",
        )?;
        self.members_hold()?;
        self.tree_holds()?;
        self.units_hold()?;
        self.slots_hold()
    }
}

impl Directory {
    /// Nodes, incarnations and stores name each other.
    fn members_hold(&self) -> Held {
        let seen = |entry: LogId| entry.index <= self.applied.index;
        for (id, entry) in &self.incarnations {
            let node = self.nodes.get(&entry.node);
            let node = node.ok_or("an incarnation's node is there")?;
            // One live incarnation a node: whoever reads the facts would expel the other.
            holds(
                entry.expelled.is_none() == (node.incarnation == Some(*id)),
                "a node names its live incarnation and no other",
            )?;
            holds(
                seen(entry.registered) && entry.expelled.is_none_or(seen),
                "an incarnation's entries have been applied",
            )?;
        }
        for (id, node) in &self.nodes {
            let of_node = |entry: &IncarnationEntry| entry.node == *id;
            let known = |incarnation| self.incarnations.get(&incarnation).is_some_and(of_node);
            holds(
                node.incarnation.is_none_or(known),
                "a node's incarnation is its own",
            )?;
            holds(
                self.node_of(node.store) == Some(*id),
                "a node's store is in use and its own",
            )?;
            labels_hold(node.labels.iter().map(|(name, value)| (name, Some(value))))?;
            resources_hold(&node.capacity)?;
            holds(
                node.ended.iter().count() <= ENDED_MAX,
                "at most sixteen ended starts of a node are remembered",
            )?;
            let over = |ended| !self.incarnations.contains_key(&ended);
            holds(node.ended.iter().all(over), "what has ended is over")?;
        }
        let known = |store: &StoreEntry| self.nodes.contains_key(&store.node);
        holds(self.stores.values().all(known), "a store's node is there")
    }

    /// Supervisors and what they supervise name each other, and form a tree.
    fn tree_holds(&self) -> Held {
        for (id, entry) in &self.supervisors {
            holds(
                id.0 < self.next_supervisor,
                "the next supervisor's number is free",
            )?;
            match entry.parent {
                None => holds(*id == ROOT, "only the root has no parent")?,
                // It is younger than its parent, so there is no circle.
                Some(parent) => holds(
                    parent < *id && self.supervises(parent, &Member::Supervisor(*id)),
                    "a supervisor is its parent's",
                )?,
            }
            let mut children = entry.supervisor.children();
            holds(
                children.all(|(child, ..)| self.parent_of(child) == Some(*id)),
                "what a supervisor supervises is there, and its own",
            )?;
        }
        holds(
            self.supervisors.contains_key(&ROOT),
            "the tree has its root",
        )
    }

    fn units_hold(&self) -> Held {
        for (id, unit) in &self.units {
            holds(
                0 < id.0 && id.0 <= self.next_unit,
                "the next unit's number is free",
            )?;
            holds(
                self.supervises(unit.supervisor, &Member::Unit(*id)),
                "a unit is its supervisor's",
            )?;
            needs_hold(&unit.needs)?;
            set_holds(&unit.set)?;
            scope_holds(&unit.scope)?;
            if let Some(owner) = &unit.owner {
                let granted = owner.granted.index <= self.applied.index;
                let holder = self.incarnations.get(&owner.incarnation);
                holds(
                    granted && holder.is_some_and(|holder| holder.node == owner.node),
                    "a unit's owner is known",
                )?;
            }
            let known = |node| self.nodes.contains_key(&node);
            holds(
                unit.move_to.is_none_or(known),
                "a unit moves to a known node",
            )?;
        }
        Ok(())
    }

    /// S1: every slot has one shard, every child at most one unit of its own, and a light one that
    /// has is excepted by its shard. The indexes are as decoding made them.
    fn slots_hold(&self) -> Held {
        let mut next = 0;
        let mut shards = 0;
        for unit in self.shards.values() {
            let Some(Scope::Slots { range, except }) = self.units.get(unit).map(|unit| &unit.scope)
            else {
                return Err("a shard is a unit of slots");
            };
            holds(range.start() == next, "every slot has one shard")?;
            next = range.end();
            shards += 1;
            holds(
                except
                    .iter()
                    .all(|child| !child.is_dedicated() && range.contains(child.slot())),
                "a shard excepts what would be its own",
            )?;
        }
        holds(next == SLOTS, "every slot has one shard")?;
        // A unit that lost its place in an index to another is in none.
        holds(
            shards + self.dedicated.len() == self.units.len(),
            "every slot and every child has one unit",
        )?;
        let excepted = |child: &ChildId| {
            let shard = self.shard_of(child.slot()).and_then(|id| self.unit(id));
            shard.is_some_and(|shard| !shard.scope.holds(child))
        };
        holds(
            self.dedicated
                .keys()
                .all(|child| child.is_dedicated() || excepted(child)),
            "a light child with a unit of its own is excepted",
        )
    }

    fn supervises(&self, supervisor: SupervisorId, child: &Member) -> bool {
        let entry = self.supervisors.get(&supervisor);
        entry.is_some_and(|entry| entry.supervisor.state(child).is_some())
    }

    fn parent_of(&self, child: &Member) -> Option<SupervisorId> {
        match child {
            Member::Unit(unit) => Some(self.units.get(unit)?.supervisor),
            Member::Supervisor(below) => self.supervisors.get(below)?.parent,
        }
    }
}

/// By hand, because the indexes follow from the units.
impl<'b, C> Decode<'b, C> for Directory {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, DecodeError> {
        #[derive(Decode)]
        struct Stored {
            #[n(0)]
            version: u16,
            #[n(1)]
            applied: LogId,
            #[n(2)]
            clock: ClusterTime,
            #[n(3)]
            ttl: Ttl,
            #[n(4)]
            replicas: u8,
            #[n(5)]
            min_copies: u8,
            #[n(6)]
            voters: Voters,
            #[n(7)]
            nodes: BTreeMap<NodeId, NodeEntry>,
            #[n(8)]
            incarnations: BTreeMap<IncarnationId, IncarnationEntry>,
            #[n(9)]
            stores: BTreeMap<StoreId, StoreEntry>,
            #[n(10)]
            units: BTreeMap<UnitId, UnitEntry>,
            #[n(11)]
            supervisors: BTreeMap<SupervisorId, SupervisorEntry>,
            #[n(12)]
            next_unit: u64,
            #[n(13)]
            next_supervisor: u64,
            #[n(14)]
            copies_fixed: bool,
            #[n(15)]
            epoch_floor: Epoch,
        }
        let stored = Stored::decode(d, ctx)?;
        let mut directory = Directory {
            version: stored.version,
            applied: stored.applied,
            clock: stored.clock,
            ttl: stored.ttl,
            replicas: stored.replicas,
            min_copies: stored.min_copies,
            voters: stored.voters,
            nodes: stored.nodes,
            incarnations: stored.incarnations,
            stores: stored.stores,
            units: stored.units,
            supervisors: stored.supervisors,
            next_unit: stored.next_unit,
            next_supervisor: stored.next_supervisor,
            copies_fixed: stored.copies_fixed,
            epoch_floor: stored.epoch_floor,
            shards: BTreeMap::new(),
            dedicated: BTreeMap::new(),
            actions: VecDeque::new(),
        };
        for (id, unit) in &directory.units {
            match &unit.scope {
                Scope::Slots { range, .. } => directory.shards.insert(range.start(), *id),
                Scope::Child(child) => directory.dedicated.insert(child.clone(), *id),
            };
        }
        Ok(directory)
    }
}

fn formation_holds(form: &Formation) -> Held {
    ttl_holds(form.ttl)?;
    copies_hold(form.replicas, form.min_copies)?;
    voters_hold(&Voters::first(form.voters.iter().copied()))?;
    holds(
        0 < form.shards && form.shards <= SLOTS,
        "a cluster begins with a shard, and with no more than slots",
    )?;
    set_holds(&form.set)
}

fn registration_holds(new: &Registration) -> Held {
    labels_hold(new.labels.iter().map(|(name, value)| (name, Some(value))))?;
    for text in [&new.name, &new.address] {
        holds(
            text.len() <= ADDRESS_BYTES_MAX,
            "a node's name and address have at most 260 bytes each",
        )?;
    }
    resources_hold(&new.capacity)
}

fn needs_hold(needs: &Needs) -> Held {
    labels_hold(
        needs
            .labels
            .iter()
            .map(|(name, value)| (name, value.as_ref())),
    )?;
    resources_hold(&needs.resources)
}

fn labels_hold<'l>(
    labels: impl ExactSizeIterator<Item = (&'l String, Option<&'l String>)>,
) -> Held {
    holds(labels.len() <= LABELS_MAX, "at most 64 labels")?;
    for (name, value) in labels {
        name_holds(name)?;
        holds(
            value.is_none_or(|value| value.len() <= LABEL_BYTES_MAX),
            "a label's value has at most 128 bytes",
        )?;
    }
    Ok(())
}

fn resources_hold(amounts: &BTreeMap<String, u64>) -> Held {
    holds(amounts.len() <= RESOURCES_MAX, "at most 32 resources")?;
    amounts.keys().try_for_each(|name| name_holds(name))
}

fn name_holds(name: &str) -> Held {
    holds(
        !name.is_empty() && name.len() <= LABEL_BYTES_MAX,
        "a label's and a resource's name has 1 to 128 bytes",
    )
}

fn set_holds(set: &BTreeSet<StoreId>) -> Held {
    holds(
        !set.is_empty() && set.len() <= SET_MAX,
        "a replica set has 1 to 512 stores",
    )
}

fn copies_hold(replicas: u8, min_copies: u8) -> Held {
    holds(
        0 < min_copies && min_copies <= replicas,
        "`min_copies` is at least one and at most `replicas`",
    )
}

fn ttl_holds(ttl: Ttl) -> Held {
    holds(ttl.as_millis() > 0, "a TTL is not zero")
}

/// Nobody's majority is everybody's: an empty list would agree to anything.
fn voters_hold(voters: &Voters) -> Held {
    let fits = |list: &BTreeSet<StoreId>| !list.is_empty() && list.len() <= VOTERS_MAX;
    holds(
        fits(&voters.current) && voters.outgoing.iter().all(fits),
        "a list of voters has 1 to 1,024 stores",
    )
}

/// A supervisor counts the directory's time as a [`Time`], which ends sooner.
fn clock_holds(at: ClusterTime) -> Held {
    holds(
        at.as_millis() <= Time::MAX.as_millis(),
        "a time that nothing could have reached",
    )
}
