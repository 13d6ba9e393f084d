//! What a node's shell does: it hands events to the machines and carries out their actions.
//!
//! Owns: the routing. Never chooses: where an action could go two ways, a machine must have said which.

use super::*;
use understudy_protocol::cluster::lease::warden::HelperId;
use understudy_protocol::id::Term;
use understudy_protocol::wire::content::{Content, PIECE_BYTES, Parts, PieceName, Pieces};
use understudy_protocol::wire::envelope::{CallId, Outcome, Route};
use understudy_protocol::wire::heart::Verdict;
use understudy_protocol::wire::replica::{Ask, ReplicaRequest, Said};
use understudy_protocol::wire::step::named_by;

use crate::judge::{inline, op_of};
use crate::node::Child;

impl World {
    pub(super) fn restart(&mut self, node: usize) {
        let now = self.now;
        let of = &mut self.nodes[node];
        if of.restart_at != Some(now) {
            return;
        }
        of.restart_at = None;
        if of.process.is_some() {
            return;
        }
        let helpers = of.warden.as_ref().map(|warden| warden.helpers.len());
        if helpers.is_some_and(|helpers| helpers > 0) {
            // Nothing starts beside helpers of the last life.
            return self.come_back(node, Duration::from_millis(50));
        }
        of.life += 1;
        of.backlog.clear();
        (of.stopped, of.hung) = (false, false);
        let mut secret = [0; 32];
        for part in secret.chunks_mut(8) {
            part.copy_from_slice(&self.rng.draw().to_be_bytes());
        }
        let incarnation = IncarnationId(self.rng.draw());
        let seed = self.rng.draw();
        let start = Start {
            incarnation,
            secret,
            seed,
            key_kept: KEY_KEPT,
            recording: self.recording_of(node),
        };
        let of = &mut self.nodes[node];
        of.warden = Some(WardenProcess::begin(of.show(now), of.life, &start));
        of.process = Some(Process::begin(of, now, start));
        of.warden_wake_at = None;
        of.wake_at = None;
        let note = of.note.take();
        self.trace(1, node, || format!("starts as {incarnation}"));
        if let Some(note) = note {
            // L11: what the last warden left is sent by the next start.
            self.broadcast_note(node, note);
        }
        self.settle(node);
    }

    /// The node's process ends; its warden, if it lives, sees it.
    pub(super) fn end_process(&mut self, node: usize, why: &str) {
        let of = &mut self.nodes[node];
        let Some(process) = of.process.take() else {
            return;
        };
        if let Some(warden) = of.warden.as_mut().filter(|_| process.excused) {
            // L2: its clock said that the lease was valid; its warden kills from now on.
            warden.is_late(self.now);
        }
        let life = of.life;
        of.life += 1;
        let kept = self.rng.below(3) as usize;
        let torn = self.rng.chance(200);
        let of = &mut self.nodes[node];
        let torn = torn && !of.disk.store_queue.is_empty();
        of.disk.crash(kept, torn);
        of.backlog.clear();
        (of.stopped, of.hung, of.wake_at) = (false, false, None);
        drop(process);
        self.trace(2, node, || format!("the process ends: {why}"));
        self.after(
            Duration::from_millis(1),
            Happening::NodeReaped { node, life },
        );
        let back = self
            .rng
            .span(Duration::from_millis(100), Duration::from_millis(800));
        self.come_back(node, back);
    }

    pub(super) fn come_back(&mut self, node: usize, after: Duration) {
        if self.nodes[node].restart_at.is_none() {
            self.nodes[node].restart_at = Some(self.now.after(after));
            self.after(after, Happening::Restart { node });
        }
    }

    pub(super) fn warden_of(&self, node: usize, life: u64) -> bool {
        self.nodes[node]
            .warden
            .as_ref()
            .is_some_and(|warden| warden.life == life)
    }

    pub(super) fn tell_warden(&mut self, node: usize, event: warden::Event) {
        let local = self.nodes[node].show(self.now);
        let Some(warden) = &mut self.nodes[node].warden else {
            return;
        };
        let _ = warden.machine.handle(local, event);
        self.settle_warden(node);
    }

    fn settle_warden(&mut self, node: usize) {
        loop {
            let Some(warden) = &mut self.nodes[node].warden else {
                return;
            };
            let life = warden.life;
            let Some(action) = warden.machine.poll_action() else {
                break;
            };
            match action {
                warden::Action::Kill(HelperId(helper)) => {
                    if self.nodes[node].stopped {
                        self.judge.coverage.reach(Path::WardenKilled);
                    }
                    let takes = self
                        .rng
                        .span(Duration::from_millis(1), Duration::from_millis(20));
                    self.after(takes, Happening::Reaped { node, life, helper });
                }
                warden::Action::KeepNote(note) => {
                    self.nodes[node].note = Some(note);
                    self.after(Duration::from_millis(1), Happening::NoteKept { node, life });
                }
                warden::Action::SendNote(note) => self.broadcast_note(node, note),
                warden::Action::Exit => {
                    self.nodes[node].warden = None;
                    return;
                }
            }
        }
        let Some(warden) = &self.nodes[node].warden else {
            return;
        };
        if let Some(deadline) = warden.machine.next_deadline() {
            let at = self.nodes[node].clock.when(deadline).max(self.now);
            if self.nodes[node].warden_wake_at.is_none_or(|set| at < set) {
                self.nodes[node].warden_wake_at = Some(at);
                self.at(at, Happening::WardenWake { node });
            }
        }
    }

    fn broadcast_note(&mut self, node: usize, note: understudy_protocol::wire::heart::DeathNote) {
        for to in 0..self.nodes.len() {
            self.send(
                node,
                to,
                Lane::Heart,
                Message::Heart(HeartMessage::DeathNote(note.clone())),
            );
        }
    }

    pub(super) fn reaped(&mut self, node: usize, life: u64, helper: u64) {
        if !self.warden_of(node, life) {
            return;
        }
        let warden = self.nodes[node].warden.as_mut().expect("it was just seen");
        let Some(child) = warden.helpers.remove(&helper) else {
            return;
        };
        self.trace(3, node, || format!("the helper of {child} is reaped"));
        self.tell_warden(node, warden::Event::HelperReaped(HelperId(helper)));
        self.happen(Happening::ChildEnded {
            node,
            life,
            child,
            helper,
        });
    }

    /// The process hears that a child of it has ended.
    pub(super) fn child_ended(&mut self, node: usize, life: u64, child: ChildId, helper: u64) {
        let random = self.rng.draw();
        self.with(node, life, |process, local| {
            if process
                .children
                .get(&child)
                .is_some_and(|known| known.helper == helper)
            {
                process.children.remove(&child);
                let exit = understudy_protocol::supervision::Exit::Abnormal;
                let _ = process.agent.handle(
                    local,
                    agent::Event::Ended {
                        child,
                        exit,
                        random,
                    },
                );
            }
        });
    }

    pub(super) fn wake(&mut self, node: usize) {
        if self.nodes[node].wake_at != Some(self.now) {
            return;
        }
        self.nodes[node].wake_at = None;
        if !self.nodes[node].runs() {
            return;
        }
        let local = self.nodes[node].show(self.now);
        let hung = self.nodes[node].hung;
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let due = |deadline: Option<Local>| deadline.is_some_and(|deadline| deadline <= local);
        if due(process.holder.next_deadline()) {
            if !hung {
                let _ = process.holder.handle(local, holder::Event::CanaryAnswered);
            }
            let _ = process.holder.handle(local, holder::Event::Tick);
        }
        if due(process.voter.next_deadline()) {
            let _ = process.voter.handle(local, voter::Event::Tick);
        }
        if !hung {
            if due(process.raft.next_deadline()) {
                let _ = process.raft.handle(local, raft::Event::Tick);
                if process.raft.is_leader() {
                    let me = NodeId(node as u64 + 1);
                    let _ = process.voter.handle(local, voter::Event::LeaderSeen(me));
                }
            }
            if due(process.controller.next_deadline()) {
                if process.raft.is_leader() {
                    let _ = process
                        .controller
                        .handle(local, controller::Event::Members(members(&process.raft)));
                }
                let _ = process.controller.handle(local, controller::Event::Tick);
            }
            if due(process.agent.next_deadline()) {
                let _ = process.agent.handle(local, agent::Event::Tick);
            }
        }
        self.settle(node);
    }

    /// Carries out everything that the node's machines want, then sets the alarm.
    pub(super) fn settle(&mut self, node: usize) {
        if !self.nodes[node].runs() {
            return;
        }
        loop {
            let mut idle = true;
            macro_rules! drain {
                ($machine:ident, $carry:ident) => {
                    while let Some(action) = self.nodes[node]
                        .process
                        .as_mut()
                        .and_then(|process| process.$machine.poll_action())
                    {
                        idle = false;
                        self.$carry(node, action);
                    }
                };
            }
            drain!(raft, on_raft);
            drain!(controller, on_controller);
            drain!(holder, on_holder);
            drain!(voter, on_voter);
            drain!(agent, on_agent);
            drain!(replica, on_replica);
            if idle {
                break;
            }
        }
        self.register(node);
        self.set_alarm(node);
    }

    fn set_alarm(&mut self, node: usize) {
        let of = &self.nodes[node];
        let Some(process) = &of.process else { return };
        let heart = [
            process.holder.next_deadline(),
            process.voter.next_deadline(),
        ];
        let main = [
            process.raft.next_deadline(),
            process.controller.next_deadline(),
            process.agent.next_deadline(),
        ];
        let main = main.into_iter().filter(|_| !of.hung);
        let Some(deadline) = heart.into_iter().chain(main).flatten().min() else {
            return;
        };
        let mut at = of
            .clock
            .when(deadline)
            .max(self.now.after(Duration::from_nanos(1)));
        let listed = process
            .controller
            .directory()
            .incarnations()
            .contains_key(&process.incarnation);
        if !listed {
            at = at.min(
                process
                    .register_at
                    .max(self.now.after(Duration::from_nanos(1))),
            );
        }
        if of.wake_at.is_none_or(|set| at < set || set <= self.now) {
            self.nodes[node].wake_at = Some(at);
            self.at(at, Happening::Wake { node });
        }
    }

    /// A starting node says that it is there until the directory lists it.
    fn register(&mut self, node: usize) {
        let now = self.now;
        let of = &mut self.nodes[node];
        let (id, store, votes, works, zone) = (of.id, of.store, of.votes, of.works, of.zone);
        let Some(process) = &mut of.process else {
            return;
        };
        let listed = process
            .controller
            .directory()
            .incarnations()
            .contains_key(&process.incarnation);
        if listed || now < process.register_at {
            return;
        }
        process.register_at = now.after(Duration::from_millis(250));
        let new = Registration {
            node: id,
            incarnation: process.incarnation,
            store,
            death: DeathDigest::of(&process.secret),
            votes,
            works,
            labels: BTreeMap::from([("zone".into(), format!("z{zone}"))]),
            capacity: BTreeMap::new(),
            name: String::new(),
            address: String::new(),
        };
        for to in 0..self.nodes.len() {
            self.send(
                node,
                to,
                Lane::Main,
                Message::Forward(Command::Register(new.clone())),
            );
        }
    }

    fn on_raft(&mut self, node: usize, action: raft::Action<Entry>) {
        let local = self.nodes[node].show(self.now);
        match action {
            raft::Action::Send { to, message } => {
                let from = self.nodes[node].store;
                if let Some(to) = self.node_of_store(to) {
                    self.send(node, to, Lane::Main, Message::Raft { from, message });
                }
            }
            raft::Action::Persist { ticket, write } => {
                self.nodes[node].disk.raft_queue.push_back((ticket, write));
                self.flush(node, false);
            }
            raft::Action::Appended { entries } => {
                let Some(process) = &mut self.nodes[node].process else {
                    return;
                };
                read_log(process, local);
                for entry in entries {
                    let raft::Payload::Command(command) = &entry.payload else {
                        continue;
                    };
                    if let Some(fact) = command.fact() {
                        let _ = process
                            .voter
                            .handle(local, voter::Event::Held(entry.id, fact));
                    }
                }
            }
            raft::Action::Truncated { from } => {
                let Some(process) = &mut self.nodes[node].process else {
                    return;
                };
                let _ = process.voter.handle(local, voter::Event::Truncated(from));
            }
            raft::Action::Apply { entry } => self.apply(node, &entry),
            raft::Action::InstallSnapshot { data, .. } => {
                let directory: Directory =
                    minicbor::decode(&data).expect("a snapshot is what was encoded");
                self.judge.coverage.reach(Path::SnapshotInstalled);
                let Some(process) = &mut self.nodes[node].process else {
                    return;
                };
                let read = voter::Event::Read {
                    settled: directory.facts(),
                    open: Vec::new(),
                };
                let _ = process.voter.handle(local, read);
                process.voter_reads = true;
                let _ = process
                    .controller
                    .handle(local, controller::Event::Install(directory));
            }
            raft::Action::Proposed { .. } | raft::Action::ProposalLost { .. } => {}
            raft::Action::Role { leader, term } => {
                let Some(process) = &mut self.nodes[node].process else {
                    return;
                };
                process.leads_from = leader.then_some(term);
                let _ = process.holder.handle(local, holder::Event::Leading(leader));
                if !leader {
                    let _ = process
                        .controller
                        .handle(local, controller::Event::Leading(false));
                }
                self.trace(4, node, || {
                    format!(
                        "{} in {term}",
                        if leader { "leads" } else { "leads no more" }
                    )
                });
            }
            raft::Action::LeaderKnown { .. } => {}
        }
    }

    fn apply(&mut self, node: usize, entry: &raft::Entry<Entry>) {
        let command = match &entry.payload {
            raft::Payload::Command(command) => Some(command),
            _ => None,
        };
        let news = self.judge.truth.applied().index < entry.id.index;
        self.judge.applied(entry.id, command);
        let local = self.nodes[node].show(self.now);
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        read_log(process, local);
        let event = match command {
            Some(command) => controller::Event::Apply(entry.id, command.clone()),
            None => controller::Event::Skip(entry.id),
        };
        if let Err(refused) = process.controller.handle(local, event) {
            self.judge.fail(
                "Raft",
                format!("node {} cannot apply {:?}: {refused}", node + 1, entry.id),
            );
            return;
        }
        // What was void is no fact: the voter hears it before the entry is settled for good.
        while let Some(action) = self.nodes[node]
            .process
            .as_mut()
            .and_then(|process| process.controller.poll_action())
        {
            self.on_controller(node, action);
        }
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let _ = process
            .voter
            .handle(local, voter::Event::Committed(entry.id.index));
        if process.leads_from == Some(entry.id.term) && !process.controller.is_leading() {
            let outstanding = process
                .controller
                .directory()
                .incarnations()
                .values()
                .any(|incarnation| incarnation.expelled.is_some());
            let _ = process
                .controller
                .handle(local, controller::Event::Leading(true));
            if outstanding {
                self.judge.coverage.reach(Path::LeaderWithPromises);
            }
        }
        let process = self.nodes[node]
            .process
            .as_mut()
            .expect("it was just there");
        tell_holder(process, local);
        process.applied_since_snapshot += 1;
        if process.applied_since_snapshot >= SNAPSHOT_EVERY {
            process.applied_since_snapshot = 0;
            let data =
                minicbor::to_vec(process.controller.directory()).expect("memory does not fail");
            let upto = entry.id.index;
            let _ = process.raft.handle(
                local,
                raft::Event::SnapshotMade {
                    upto,
                    data: data.into(),
                },
            );
        }
        if news {
            self.news(node, entry.id.term, command);
        }
    }

    /// The first node has applied an entry: it is true from now on.
    fn news(&mut self, node: usize, _: Term, command: Option<&Entry>) {
        let Some(entry) = command else { return };
        self.trace(5, node, || format!("committed: {:?}", entry.command));
        let path = match &entry.command {
            Command::SetTtl(_) => Some(Path::TtlChanged),
            Command::SetVoters(voters) if voters.outgoing.is_none() => Some(Path::VotersChanged),
            Command::Expel { incarnation } => {
                let now = self.now;
                let promised = self.nodes.iter().filter(|of| {
                    let process = of.process.as_ref();
                    process.is_some_and(|process| {
                        process.voter.may_have_promised(of.show(now), *incarnation)
                    })
                });
                (promised.count() > self.nodes.len() / 2).then_some(Path::LagExpelled)
            }
            _ => None,
        };
        if let Some(path) = path {
            self.judge.coverage.reach(path);
        }
        if matches!(
            entry.command,
            Command::ChangeSet { .. }
                | Command::Split { .. }
                | Command::Merge { .. }
                | Command::Except { .. }
                | Command::Recover { .. }
        ) {
            self.cover_set(&entry.command);
            let children = self.judge.acked_children();
            self.check_children(&children);
        }
    }

    fn cover_set(&mut self, command: &Command) {
        let path = match command {
            Command::Split { .. } => Path::Split,
            Command::Merge { .. } => Path::Merged,
            Command::Except { .. } => Path::Excepted,
            Command::ChangeSet { claim, set, .. } => {
                let Some(unit) = self
                    .judge
                    .truth
                    .unit(claim.unit)
                    .filter(|unit| unit.set == *set)
                else {
                    return;
                };
                let first: std::collections::BTreeSet<StoreId> = self.first_stores();
                if unit.set.iter().any(|store| !first.contains(store)) {
                    self.judge.coverage.reach(Path::NewStoreId);
                }
                return;
            }
            _ => return,
        };
        self.judge.coverage.reach(path);
    }

    fn on_controller(&mut self, node: usize, action: controller::Action) {
        let local = self.nodes[node].show(self.now);
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        match action {
            controller::Action::Propose(entry) => {
                let _ = process.raft.handle(
                    local,
                    raft::Event::Propose {
                        token: 0,
                        command: entry,
                    },
                );
            }
            controller::Action::ChangeMembers { voters, learners } => {
                let members = raft::Members { voters, learners };
                let _ = process
                    .raft
                    .handle(local, raft::Event::ChangeMembers(members));
            }
            controller::Action::Changed(units) => {
                let directory = process.controller.directory();
                let granted = |unit| (unit, agent::granted(directory, unit, process.incarnation));
                let units = units.into_iter().map(granted).collect();
                let _ = process.agent.handle(local, agent::Event::Units(units));
            }
            controller::Action::Membership => {
                tell_holder(process, local);
                let directory = process.controller.directory();
                let mine = process.agent.owners().keys().copied();
                let granted = |unit| (unit, agent::granted(directory, unit, process.incarnation));
                let units = mine.map(granted).collect();
                let _ = process.agent.handle(local, agent::Event::Units(units));
            }
            controller::Action::Over(incarnation) => {
                let _ = process
                    .agent
                    .handle(local, agent::Event::GatewayGone(incarnation));
            }
            controller::Action::Voided(id, _) => {
                let _ = process.voter.handle(local, voter::Event::Voided(id.index));
            }
            controller::Action::Quarantined(_) => {}
        }
    }

    fn on_holder(&mut self, node: usize, action: holder::Action) {
        let local = self.nodes[node].show(self.now);
        match action {
            holder::Action::Renew { to, renewal } => {
                if let Some(to) = self.node_of_store(to) {
                    self.send(
                        node,
                        to,
                        Lane::Heart,
                        Message::Heart(HeartMessage::Renewal(renewal)),
                    );
                }
            }
            holder::Action::Valid { until } => {
                if let Some(process) = &mut self.nodes[node].process {
                    let _ = process.agent.handle(local, agent::Event::Lease(until));
                }
                self.tell_warden(node, warden::Event::Deadline(until));
            }
            holder::Action::Lapsed => {
                self.judge.coverage.reach(Path::Lapsed);
                self.end_process(node, "its lease has lapsed");
            }
            holder::Action::Abort => {
                self.judge.coverage.reach(Path::Aborted);
                self.end_process(node, "its main runtime is silent");
            }
            holder::Action::MayLead(may) => {
                if let Some(process) = &mut self.nodes[node].process {
                    let _ = process.raft.handle(local, raft::Event::MayLead(may));
                }
            }
        }
    }

    fn on_voter(&mut self, node: usize, action: voter::Action) {
        match action {
            voter::Action::Answer { to, promise } => {
                let to = self.node_of(to);
                self.send(
                    node,
                    to,
                    Lane::Heart,
                    Message::Heart(HeartMessage::Promise(promise)),
                );
            }
            voter::Action::Report { to, report } => {
                let to = self.node_of(to);
                // L5: by the heart and on the truth plane.
                self.send(
                    node,
                    to,
                    Lane::Heart,
                    Message::Heart(HeartMessage::Report(report.clone())),
                );
                self.send(node, to, Lane::Main, Message::Report(report));
            }
            voter::Action::Sight { to, sighting } => {
                let to = self.node_of(to);
                self.send(
                    node,
                    to,
                    Lane::Heart,
                    Message::Heart(HeartMessage::Sighting(sighting)),
                );
            }
            voter::Action::FlushLimit(ttl) => {
                let life = self.nodes[node].life;
                let takes = self.disk_time(node);
                self.after(takes, Happening::LimitFlushed { node, life, ttl });
            }
        }
    }

    fn on_agent(&mut self, node: usize, action: agent::Action) {
        let life = self.nodes[node].life;
        match action {
            agent::Action::Ask { to, request } => {
                if let Some(to) = self.node_of_store(to) {
                    self.send(node, to, Lane::Main, Message::Ask(request));
                }
            }
            agent::Action::Propose(command) => self.propose(node, command),
            agent::Action::Start {
                child,
                base,
                steps,
                calls,
            } => self.start_child(node, child, base, &steps, calls),
            agent::Action::Execute {
                child,
                envelope,
                snapshot,
            } => {
                let helper = self.nodes[node]
                    .process
                    .as_mut()
                    .and_then(|process| process.children.get_mut(&child))
                    .map(|known| (known.helper, std::mem::take(&mut known.hangs)));
                let Some((helper, hangs)) = helper else {
                    return;
                };
                if self.is_poison(&child) {
                    // It takes the whole process with it.
                    self.trace(6, node, || format!("{child} kills its node"));
                    return self.end_process(node, "a poisonous unit killed it");
                }
                let takes = self
                    .rng
                    .span(Duration::from_micros(50), Duration::from_millis(3));
                if hangs {
                    self.judge.coverage.reach(Path::Hung);
                } else {
                    let done = Happening::ChildDone {
                        node,
                        life,
                        child,
                        helper,
                        envelope,
                        snapshot,
                    };
                    self.after(takes, done);
                }
            }
            agent::Action::Stop(child) => self.stop_child(node, &child),
            agent::Action::Reply(reply) => {
                let lease = self.has_promises(node);
                let Some(process) = &self.nodes[node].process else {
                    return;
                };
                let excused = process.excused;
                if matches!(reply.outcome, Outcome::Answered { .. }) && !excused && !lease {
                    let what = format!("node {} answers without promises of a majority", node + 1);
                    self.judge.fail("I4", what);
                }
                self.reply(node, reply, excused);
            }
            // No child here is prodded.
            agent::Action::Prod { .. } => {}
            // No answer here is long.
            agent::Action::ReplyPieces { .. } => {}
            agent::Action::AtWork(unit) => {
                if let Some(process) = &mut self.nodes[node].process {
                    process.at_work.insert(unit);
                }
                self.tell_warden(node, warden::Event::AtWork(unit));
            }
            agent::Action::AtRest(unit) => {
                if let Some(process) = &mut self.nodes[node].process {
                    process.at_work.remove(&unit);
                }
                self.tell_warden(node, warden::Event::AtRest(unit));
            }
            agent::Action::Acknowledged { child, upto } => {
                self.trace(7, node, || format!("{child} acknowledged up to {upto:?}"));
                let mut judge = std::mem::take(&mut self.judge);
                judge.acknowledged(&child, upto, self.contents());
                self.judge = judge;
            }
            agent::Action::Serving(unit) => {
                self.figures.takeovers += 1;
                self.trace(8, node, || format!("serves {unit}"));
            }
            agent::Action::Unavailable(unit) => {
                self.judge.coverage.reach(Path::Unavailable);
                self.cover_held_back(unit);
                self.trace(9, node, || format!("{unit} is unavailable"));
            }
        }
    }

    /// R8: stores of its set are up, but each of them was cut.
    fn cover_held_back(&mut self, unit: understudy_protocol::id::UnitId) {
        let set = self.judge.truth.unit(unit).map(|unit| &unit.set);
        let up = set.into_iter().flatten().filter_map(|store| {
            let of = &self.nodes[self.node_of_store(*store)?];
            (of.store == *store && of.runs()).then_some(of)
        });
        let hurt: Vec<bool> = up.map(|of| of.disk.store.is_hurt()).collect();
        if !hurt.is_empty() && hurt.iter().all(|hurt| *hurt) {
            self.judge.coverage.reach(Path::CutHeldBack);
        }
    }

    /// I4: whether a majority of voters has promised, or may have, by their own clocks.
    fn has_promises(&self, node: usize) -> bool {
        let Some(process) = &self.nodes[node].process else {
            return false;
        };
        let incarnation = process.incarnation;
        self.judge.truth.voters().majority(|store| {
            let Some(of) = self.node_of_store(store).map(|node| &self.nodes[node]) else {
                return true;
            };
            // A voter that is down cannot say; its restart will wait out what it may have promised.
            let Some(voter) = of.process.as_ref().filter(|_| of.store == store) else {
                return true;
            };
            !voter.voter_reads
                || voter
                    .voter
                    .may_have_promised(of.show(self.now), incarnation)
        })
    }

    fn reply(&mut self, node: usize, reply: Reply, excused: bool) {
        let client = reply.call.gateway.0 as usize;
        if !self.net_lets_through() {
            return;
        }
        let delay = self.net.delay();
        self.after(
            delay,
            Happening::ToClient {
                client,
                reply,
                from: node,
                excused,
            },
        );
    }

    pub(super) fn net_lets_through(&mut self) -> bool {
        !self.rng.chance(5)
    }

    /// To the leader, as far as this node knows it. What is not heard is said again by who wants it.
    pub(super) fn propose(&mut self, node: usize, command: Command) {
        let leader = self.nodes[node]
            .process
            .as_ref()
            .and_then(|process| process.raft.leader());
        if let Some(to) = leader.and_then(|store| self.node_of_store(store)) {
            self.send(node, to, Lane::Main, Message::Forward(command));
        }
    }

    fn on_replica(&mut self, node: usize, action: replication::ReplicaAction) {
        match action {
            replication::ReplicaAction::Write { ticket, batch } => {
                for write in &batch {
                    if let replication::Write::Put(record) = write {
                        self.judge.written(record);
                    }
                    if let replication::Write::Cut(mark) = write
                        && mark.slots.is_empty()
                        && mark.children.is_empty()
                    {
                        self.judge.coverage.reach(Path::CutConfirmed);
                    }
                    if let replication::Write::Damaged { damaged: false, .. } = write {
                        self.judge.coverage.reach(Path::DamageMended);
                    }
                }
                self.nodes[node].disk.store_queue.push_back((ticket, batch));
                self.flush(node, true);
            }
            replication::ReplicaAction::Read { read, child, after } => {
                let life = self.nodes[node].life;
                let takes = self.disk_time(node);
                self.after(
                    takes,
                    Happening::Read {
                        node,
                        life,
                        read,
                        child,
                        after,
                    },
                );
            }
            replication::ReplicaAction::Answer { to, answer } => {
                match &answer.said {
                    Said::Promised(_) => self.judge.coverage.reach(Path::StaleRefused),
                    Said::Unsealed => self.judge.coverage.reach(Path::LateMessageAfterRestart),
                    _ => {}
                }
                let to = self.node_of(to);
                self.send(node, to, Lane::Main, Message::Answer(answer));
            }
        }
    }

    fn disk_time(&mut self, node: usize) -> Duration {
        let usual = self
            .rng
            .span(Duration::from_micros(100), Duration::from_millis(2));
        match self.nodes[node].disk_extra {
            Some(extra) => usual + extra,
            None => Duration::from_secs(3_600),
        }
    }

    /// Begins a flush of everything that is queued, unless one is under way.
    pub(super) fn flush(&mut self, node: usize, store: bool) {
        let disk = &mut self.nodes[node].disk;
        let (queued, flushing) = if store {
            (disk.store_queue.len(), &mut disk.store_flushing)
        } else {
            (disk.raft_queue.len(), &mut disk.raft_flushing)
        };
        if flushing.is_some() || queued == 0 {
            return;
        }
        *flushing = Some(queued);
        if self.nodes[node].disk_extra.is_none() {
            // The disk does not answer; mending it begins the flush anew.
            return;
        }
        let life = self.nodes[node].life;
        let takes = self.disk_time(node);
        self.after(takes, Happening::Flushed { node, life, store });
    }

    pub(super) fn flushed(&mut self, node: usize, life: u64, store: bool) {
        let of = &mut self.nodes[node];
        if of.life != life {
            return;
        }
        if store {
            let Some(count) = of.disk.store_flushing.take() else {
                return;
            };
            let mut last = 0;
            let mut touched = Vec::new();
            for (ticket, batch) in of.disk.store_queue.drain(..count) {
                last = ticket;
                for write in batch {
                    if let replication::Write::Truncate { child, .. }
                    | replication::Write::Drop { child } = &write
                    {
                        touched.push(child.clone());
                    }
                    of.disk.store.apply(write);
                }
            }
            if !touched.is_empty() {
                self.check_children(&touched);
            }
            self.with(node, life, |process, local| {
                let _ = process
                    .replica
                    .handle(local, replication::ReplicaEvent::Flushed { ticket: last });
            });
        } else {
            let Some(count) = of.disk.raft_flushing.take() else {
                return;
            };
            let mut last = 0;
            for (ticket, write) in of.disk.raft_queue.drain(..count) {
                last = ticket;
                of.disk.raft.apply(write);
            }
            self.with(node, life, |process, local| {
                let _ = process
                    .raft
                    .handle(local, raft::Event::Flushed { ticket: last });
            });
        }
        self.flush(node, store);
    }

    pub(super) fn deliver(&mut self, to: usize, life: u64, from: usize, message: Message) {
        // A datagram finds whoever listens now; a stream of the earlier life is closed.
        let finds_anyone = matches!(
            message,
            Message::Heart(_) | Message::Forward(_) | Message::Ask(_)
        );
        if self.nodes[to].life != life && !finds_anyone {
            return;
        }
        let local = self.nodes[to].show(self.now);
        let Some(process) = &mut self.nodes[to].process else {
            return;
        };
        match message {
            Message::Heart(HeartMessage::Renewal(renewal)) => {
                let _ = process.voter.handle(local, voter::Event::Asked(renewal));
            }
            Message::Heart(HeartMessage::Promise(promise)) => {
                let expelled = promise.verdict == Verdict::Expelled;
                let told = process.holder.handle(local, holder::Event::Heard(promise));
                if expelled && told.is_ok() {
                    self.trace(10, to, || "hears that it is expelled".into());
                }
            }
            Message::Heart(HeartMessage::Report(report)) | Message::Report(report) => {
                let _ = process
                    .controller
                    .handle(local, controller::Event::Reported(report));
            }
            Message::Heart(HeartMessage::Sighting(sighting)) => {
                let _ = process
                    .controller
                    .handle(local, controller::Event::Sighted(sighting));
            }
            Message::Heart(HeartMessage::DeathNote(note)) => {
                if process
                    .controller
                    .handle(local, controller::Event::Died(note.clone()))
                    .is_err()
                {
                    // The voters hand it on to the leader.
                    let leader = process
                        .raft
                        .leader()
                        .and_then(|store| self.node_of_store(store));
                    if let Some(leader) = leader.filter(|leader| *leader != to) {
                        let note = Message::Heart(HeartMessage::DeathNote(note));
                        self.send(to, leader, Lane::Heart, note);
                    }
                }
            }
            Message::Raft {
                from: store,
                message,
            } => {
                let leads = matches!(
                    message,
                    raft::Message::Append { .. } | raft::Message::InstallSnapshot { .. }
                );
                let _ = process.raft.handle(
                    local,
                    raft::Event::Receive {
                        from: store,
                        message,
                    },
                );
                if leads && process.raft.leader() == Some(store) {
                    let leader = NodeId(from as u64 + 1);
                    let _ = process
                        .voter
                        .handle(local, voter::Event::LeaderSeen(leader));
                }
            }
            Message::Ask(request) => {
                if !self.has_pieces(to, &request) {
                    // It is dropped, and asked again.
                    return;
                }
                let Some(process) = &mut self.nodes[to].process else {
                    return;
                };
                let from = NodeId(from as u64 + 1);
                let event = replication::ReplicaEvent::Asked { from, request };
                if let Err(refused) = process.replica.handle(local, event) {
                    self.judge
                        .fail("chain", format!("node {}: {refused}", to + 1));
                    return;
                }
            }
            Message::Answer(answer) => {
                let _ = process.agent.handle(local, agent::Event::Answer(answer));
            }
            Message::Forward(command) => {
                let _ = process
                    .controller
                    .handle(local, controller::Event::Forwarded(command));
            }
            Message::Call {
                envelope,
                forwarded,
            } => self.gateway(to, envelope, forwarded),
        }
        self.settle(to);
    }

    /// What a node's gateway does with a call: it follows the directory, once.
    fn gateway(&mut self, node: usize, envelope: Envelope, forwarded: bool) {
        let local = self.nodes[node].show(self.now);
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let directory = process.controller.directory();
        let unit = directory.unit_of(&envelope.to);
        let entry = unit.and_then(|unit| directory.unit(unit).map(|entry| (unit, entry)));
        let owner =
            entry.and_then(|(unit, entry)| entry.owner.map(|owner| (unit, entry.epoch, owner)));
        let route = owner.map(|(unit, epoch, owner)| Route {
            unit,
            epoch,
            node: owner.node,
        });
        let elsewhere = owner.filter(|(_, _, owner)| owner.incarnation != process.incarnation);
        match elsewhere {
            Some((_, _, owner)) if !forwarded => {
                let to = self.node_of(owner.node);
                self.send(
                    node,
                    to,
                    Lane::Main,
                    Message::Call {
                        envelope,
                        forwarded: true,
                    },
                );
            }
            _ => {
                let lease = process.holder.is_valid(local);
                if !lease
                    && route.is_some_and(|route| process.agent.owners().contains_key(&route.unit))
                {
                    self.judge.coverage.reach(Path::MinorityFroze);
                }
                let _ = process
                    .agent
                    .handle(local, agent::Event::Call { envelope, route });
            }
        }
    }

    fn start_child(
        &mut self,
        node: usize,
        child: ChildId,
        base: Option<Content>,
        steps: &[Content],
        calls: Option<Pieces>,
    ) {
        let mut state: Vec<u64> = Vec::new();
        if let Some(base) = base {
            state.extend(inline(&base).chunks_exact(8).map(op_of));
        }
        state.extend(steps.iter().map(|step| op_of(inline(step))));
        // I3: nobody else may still run it.
        let excused = self.nodes[node]
            .process
            .as_ref()
            .is_some_and(|process| process.excused);
        let other = self.nodes.iter().enumerate().find(|(nth, of)| {
            let runs = of
                .warden
                .as_ref()
                .is_some_and(|warden| warden.runs(&child, self.now));
            let excused = of.process.as_ref().is_some_and(|process| process.excused);
            *nth != node && runs && of.frozen.is_none() && !excused
        });
        if let Some((other, _)) = other.filter(|_| !excused) {
            let what = format!(
                "{child} starts on node {} and still runs on node {}",
                node + 1,
                other + 1
            );
            return self.judge.fail("I3", what);
        }
        let life = self.nodes[node].life;
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let helper = process.next_helper;
        process.next_helper += 1;
        process.children.insert(
            child.clone(),
            Child {
                helper,
                state,
                hangs: false,
                stopping: false,
            },
        );
        if let Some(warden) = &mut self.nodes[node].warden {
            warden.helpers.insert(helper, child.clone());
        }
        self.trace(11, node, || format!("starts {child}"));
        self.tell_warden(node, warden::Event::HelperStarted(HelperId(helper)));
        let takes = self
            .rng
            .span(Duration::from_micros(200), Duration::from_millis(4));
        self.after(
            takes,
            Happening::ChildUp {
                node,
                life,
                child,
                helper,
                calls,
            },
        );
    }

    /// The gate before a store: what the request's records name is there, or is fetched now.
    fn has_pieces(&mut self, node: usize, request: &ReplicaRequest) -> bool {
        let Ask::Append(append) = &request.ask else {
            return true;
        };
        let named = append
            .records
            .iter()
            .map(|record| named_by(record).expect("it was just written"));
        let named: Vec<Pieces> = named.flatten().collect();
        named
            .iter()
            .all(|pieces| self.fetch(node, pieces).is_some())
    }

    /// A value, from the node's own disk or from those of nodes that are up.
    fn fetch(&mut self, node: usize, pieces: &Pieces) -> Option<bytes::Bytes> {
        let list = match pieces.list() {
            Some(list) => Some(self.piece(node, list)?),
            None => None,
        };
        let names = pieces.names(list.as_deref()).expect("it was cut like this");
        for name in &names {
            self.piece(node, *name)?;
        }
        let kept = &self.nodes[node].disk.pieces;
        let value = pieces.join(&names, |name| kept.get(&name));
        Some(value.expect("each is what it was"))
    }

    fn piece(&mut self, node: usize, name: PieceName) -> Option<bytes::Bytes> {
        if let Some(kept) = self.nodes[node].disk.pieces.get(&name) {
            return Some(kept.clone());
        }
        let up = self.nodes.iter().filter(|of| of.runs());
        let had = up
            .filter_map(|of| of.disk.pieces.get(&name))
            .next()?
            .clone();
        self.judge.coverage.reach(Path::PiecesPulled);
        self.nodes[node].disk.pieces.insert(name, had.clone());
        Some(had)
    }

    fn keep(&mut self, node: usize, parts: Parts) {
        if parts.iter().any(|(_, part)| part.len() == PIECE_BYTES) {
            self.judge.coverage.reach(Path::PieceFilled);
        }
        self.nodes[node].disk.pieces.extend(parts);
    }

    fn stop_child(&mut self, node: usize, child: &ChildId) {
        let life = self.nodes[node].life;
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        if let Some(known) = process.children.get_mut(child) {
            known.stopping = true;
            let helper = known.helper;
            let takes = self
                .rng
                .span(Duration::from_micros(100), Duration::from_millis(2));
            self.after(takes, Happening::Reaped { node, life, helper });
        }
    }

    pub(super) fn child_up(
        &mut self,
        node: usize,
        life: u64,
        child: ChildId,
        helper: u64,
        calls: Option<Pieces>,
    ) {
        if !self.runs_child(node, life, &child, helper) {
            return;
        }
        let calls = match calls {
            Some(calls) => match self.fetch(node, &calls) {
                Some(calls) => {
                    self.judge.coverage.reach(Path::CallsRecalled);
                    calls
                }
                None => return self.stop_child(node, &child),
            },
            None => bytes::Bytes::new(),
        };
        self.with(node, life, |process, local| {
            for piece in calls.chunks(PIECE_BYTES) {
                let (child, piece) = (child.clone(), bytes::Bytes::copy_from_slice(piece));
                let recalled = agent::Event::Recalled { child, piece };
                let told = process.agent.handle(local, recalled);
                assert_eq!(told, Ok(()), "the child starts");
            }
            let _ = process.agent.handle(local, agent::Event::Started(child));
        });
    }

    fn runs_child(&self, node: usize, life: u64, child: &ChildId, helper: u64) -> bool {
        let of = &self.nodes[node];
        let known = of
            .process
            .as_ref()
            .and_then(|process| process.children.get(child));
        let alive = of
            .warden
            .as_ref()
            .is_some_and(|warden| warden.helpers.contains_key(&helper));
        of.life == life
            && alive
            && known.is_some_and(|known| known.helper == helper && !known.stopping)
    }

    pub(super) fn child_done(
        &mut self,
        node: usize,
        life: u64,
        child: &ChildId,
        helper: u64,
        envelope: &Envelope,
        snapshot: Option<Parts>,
    ) {
        if !self.runs_child(node, life, child, helper) {
            return;
        }
        let asks_state = snapshot.is_some();
        self.keep(node, snapshot.unwrap_or_default());
        let process = self.nodes[node].process.as_mut().expect("it was just seen");
        let known = process.children.get_mut(child).expect("it was just seen");
        let op = clients::op_in(&envelope.body);
        if let Some(op) = op {
            self.judge.executed(child, op, &known.state);
            known.state.push(op);
        }
        let value = (known.state.len() as u64).to_be_bytes();
        let effect = op.map(|op| bytes::Bytes::copy_from_slice(&op.to_be_bytes()));
        let state = asks_state.then(|| encode_state(&known.state));
        let (child, call): (ChildId, CallId) = (child.clone(), envelope.call);
        let answer = bytes::Bytes::copy_from_slice(&value);
        self.with(node, life, |process, local| {
            let done = agent::Event::Executed {
                child,
                call,
                answer: answer.into(),
                effect: effect.map(Content::from),
                state: state.map(Content::from),
                durable: true,
            };
            let _ = process.agent.handle(local, done);
            let (mailbox, held, calls) = process.agent.usage();
            assert!(
                mailbox <= agent::MAILBOX_MAX
                    && held <= agent::HELD_MAX
                    && calls <= understudy_protocol::cluster::calls::CALLS_MAX,
                "{mailbox} calls wait, {held} replies are held, {calls} calls are remembered"
            );
        });
    }
}

fn encode_state(state: &[u64]) -> bytes::Bytes {
    state.iter().flat_map(|op| op.to_be_bytes()).collect()
}

/// The voter has read its log once Raft has said what the log holds.
fn read_log(process: &mut Process, local: Local) {
    if !process.voter_reads {
        process.voter_reads = true;
        let read = voter::Event::Read {
            settled: Vec::new(),
            open: Vec::new(),
        };
        let _ = process.voter.handle(local, read);
    }
}

fn tell_holder(process: &mut Process, local: Local) {
    let directory = process.controller.directory();
    let event = holder::Event::Directory {
        voters: directory.voters().clone(),
        ttl: directory.ttl(),
        applied: directory.applied().index,
    };
    let _ = process.holder.handle(local, event);
}

fn members(raft: &raft::Raft<Entry>) -> controller::RaftMembers {
    let members = raft.members();
    let commit = raft.commit_index();
    let caught_up = |store: &&StoreId| {
        raft.replicated(**store)
            .is_some_and(|upto| upto.0 + CAUGHT_UP >= commit.0)
    };
    controller::RaftMembers {
        voters: members.voters.clone(),
        learners: members.learners.clone(),
        caught_up: members.learners.iter().filter(caught_up).copied().collect(),
    }
}

/// A learner this close to the commit index has caught up.
const CAUGHT_UP: u64 = 16;

/// Entries between two snapshots of the directory: few, so that snapshots are installed.
const SNAPSHOT_EVERY: u64 = 150;

/// Clients here give up earlier than this: ten minutes would never pass.
pub(super) const KEY_KEPT: Duration = Duration::from_secs(35);
