//! The way of every action of the core's machines.
//!
//! Owns: one function a machine, one arm an action. Never chooses.

use super::*;

impl Core {
    pub(super) fn carry_controller(&mut self, action: controller::Action) {
        match action {
            controller::Action::Propose(entry) => self.raft.propose(entry),
            controller::Action::ChangeMembers { voters, learners } => {
                self.raft.change_members(voters, learners);
            }
            controller::Action::Changed(units) => {
                self.directory_moved = true;
                for unit in &units {
                    let route = self.route_of(*unit);
                    self.tell_caller(caller::Event::Moved(*unit, route));
                }
                self.tell_agent_of(units);
            }
            controller::Action::Membership => {
                self.directory_moved = true;
                self.tell_holder_of_directory();
                self.outlet
                    .addresses(self.controller.directory(), &self.heart, &self.warden);
                let mine = self.agent.owners().keys().copied().collect();
                self.tell_agent_of(mine);
            }
            controller::Action::Over(incarnation) => {
                self.tell_agent(agent::Event::GatewayGone(incarnation));
            }
            controller::Action::Voided(id, void) => {
                debug!(?id, %void, "an entry was void");
                self.tell_voter(voter::Event::Voided(id.index));
            }
            controller::Action::Quarantined(unit) => {
                let text = format!("{unit} failed too often and is in quarantine");
                self.tell_event("unit_quarantined", Some(unit), text);
            }
        }
    }

    fn tell_agent_of(&mut self, units: Vec<UnitId>) {
        let directory = self.controller.directory();
        let incarnation = self.config.incarnation;
        let granted = |unit| (unit, agent::granted(directory, unit, incarnation));
        let units: Vec<_> = units.into_iter().map(granted).collect();
        for (unit, granted) in &units {
            if granted.is_none() {
                self.view_moved |= self.serving.remove(unit) | self.unavailable.remove(unit);
            }
        }
        self.tell_agent(agent::Event::Units(units));
    }

    pub(super) fn carry_agent(&mut self, action: agent::Action) {
        match action {
            agent::Action::Ask { to, request } => {
                let node = self.node_of_store(to);
                self.outlet.ask(to, node, request);
            }
            agent::Action::Propose(command) => self.propose(command),
            agent::Action::Start {
                child,
                base,
                steps,
                calls,
            } => self.driver.start(child, base, steps, calls),
            agent::Action::Execute {
                child,
                envelope,
                snapshot,
            } => self.driver.execute(&child, envelope, snapshot),
            agent::Action::Stop(child) => self.driver.stop(&child),
            agent::Action::Reply(reply) => self.reply(reply),
            agent::Action::ReplyPieces {
                call,
                pieces,
                reflects,
                durable,
            } => self.outlet.fetch_answer(call, pieces, reflects, durable),
            agent::Action::Prod { child, snapshot } => self.driver.prod(&child, snapshot),
            agent::Action::AtWork(unit) => (self.warden.at_work)(unit),
            agent::Action::AtRest(unit) => (self.warden.at_rest)(unit),
            agent::Action::Acknowledged { .. } => {}
            agent::Action::Serving(unit) => {
                self.unavailable.remove(&unit);
                self.serving.insert(unit);
                self.view_moved = true;
                self.tell_event("unit_serving", Some(unit), format!("{unit} is served here"));
            }
            agent::Action::Unavailable(unit) => {
                self.unavailable.insert(unit);
                self.view_moved = true;
                let text = format!("no complete copy of {unit}'s records answers");
                self.tell_event("unit_unavailable", Some(unit), text);
            }
        }
    }

    /// E1: an answer leaves only while the lease is valid, and the last look is here.
    pub(super) fn reply(&mut self, reply: Reply) {
        let answered = matches!(reply.outcome, Outcome::Answered { .. });
        if answered && !self.heart.is_valid(clock::now()) {
            return;
        }
        if reply.call.gateway == self.config.incarnation {
            return self.tell_caller(caller::Event::Reply(reply));
        }
        let gateway = self.controller.directory().incarnations();
        let gateway = gateway.get(&reply.call.gateway).map(|entry| entry.node);
        self.outlet.reply(gateway, reply);
    }

    pub(super) fn carry_caller(&mut self, action: caller::Action) {
        match action {
            caller::Action::Route { number, child } => {
                let unit = self.controller.directory().unit_of(&child);
                let route = unit.and_then(|unit| self.route_of(unit));
                self.tell_caller(caller::Event::Routed {
                    number,
                    unit,
                    route,
                });
            }
            caller::Action::Send { to, unit, envelope } if to == self.config.node => {
                let route = self.route_of(unit);
                self.tell_agent(agent::Event::Call { envelope, route });
            }
            caller::Action::Send { to, unit, envelope } => {
                if let Some(outcome) = self.outlet.send_call(to, unit, &envelope) {
                    let call = envelope.call;
                    self.tell_caller(caller::Event::Reply(Reply { call, outcome }));
                }
            }
            caller::Action::Answer { number, answer } => self.answer(number, answer),
            caller::Action::Confirm(confirmed) => {
                let Confirmed { gateway, upto } = confirmed;
                self.tell_agent(agent::Event::Confirmed(gateway, upto));
                self.outlet.confirm(self.peers.keys().copied(), confirmed);
            }
        }
    }

    fn answer(&mut self, number: u64, answer: caller::Answer) {
        let Some(waiting) = self.waiting.remove(&number) else {
            return;
        };
        let answer = match answer {
            caller::Answer::Answered {
                body,
                reflects,
                durable,
                node,
            } => Ok(Answered {
                body,
                reflects,
                durable,
                node,
            }),
            caller::Answer::Conflict => Err(CallError::Conflict),
            caller::Answer::TooLarge => Err(CallError::TooLarge),
            caller::Answer::Unavailable => Err(CallError::Unavailable(waiting.child)),
            caller::Answer::Overloaded { retry_after_ms } => Err(CallError::Overloaded {
                retry_after: Duration::from_millis(retry_after_ms.into()),
            }),
            caller::Answer::DeadlineExceeded { maybe_done } => Err(CallError::DeadlineExceeded {
                patience: waiting.patience,
                maybe_done,
            }),
        };
        // Whoever asked may have gone.
        let _ = waiting.answer.send(answer);
    }

    /// Tells people what the directory did.
    pub(super) fn tell_of(&self, command: &Command) {
        let directory = self.controller.directory();
        let name = |node: NodeId| {
            let entry = directory.nodes().get(&node);
            entry.map_or_else(|| node.to_string(), |entry| entry.name.clone())
        };
        let (kind, node, text) = match command {
            Command::Form(_) => ("cluster_formed", None, "the cluster is formed".to_owned()),
            Command::Register(new) => {
                let text = format!("{} has started as {}", name(new.node), new.incarnation);
                ("node_started", Some(new.node), text)
            }
            Command::Expel { incarnation } => {
                let node = directory.incarnations().get(incarnation);
                let node = node.map(|entry| entry.node);
                let who = node.map_or_else(|| incarnation.to_string(), name);
                let text = format!("{who} does not renew its lease and may run nothing any more");
                ("node_expelled", node, text)
            }
            Command::PromisesOver { incarnation } => {
                let text = format!("the promises to {incarnation} are over; its units are free");
                ("promises_over", None, text)
            }
            Command::DeathNote { incarnation, .. } => {
                let text = format!("the warden of {incarnation} has proven its death");
                ("node_died", None, text)
            }
            Command::Grant { grants } => {
                let mut counts: BTreeMap<String, usize> = BTreeMap::new();
                for grant in grants {
                    let node = directory.incarnations().get(&grant.to);
                    let to = node.map_or_else(|| grant.to.to_string(), |entry| name(entry.node));
                    *counts.entry(to).or_default() += 1;
                }
                let counts: Vec<String> = counts
                    .into_iter()
                    .map(|(to, count)| format!("{count} to {to}"))
                    .collect();
                ("units_granted", None, counts.join(", "))
            }
            Command::Drain { node, draining } => {
                let what = if *draining {
                    "is drained"
                } else {
                    "may hold units again"
                };
                ("node_drain", Some(*node), format!("{} {what}", name(*node)))
            }
            Command::Move { unit, to, .. } => (
                "unit_moves",
                Some(*to),
                format!("{unit} moves to {}", name(*to)),
            ),
            Command::SetVoters(voters) => {
                let text = format!("the lease voters are {:?}", voters.current);
                ("voters_changed", None, text)
            }
            _ => return,
        };
        self.events.tell(kind, node, None, text);
    }
}
