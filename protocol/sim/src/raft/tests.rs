//! Raft's promises, under faults and without.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use cluster::{Cluster, Sabotage, Weather, store};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Five seconds of every fault, then none; in the end everybody has applied the same.
fn survives_faults(members: u64, seed: u64, sabotage: Sabotage) -> Cluster {
    let mut cluster = Cluster::of(members, seed, Weather::foul());
    cluster.sabotage = sabotage;
    let ids: Vec<StoreId> = (1..=members).map(store).collect();
    let end = cluster.now + 5 * SECOND;
    let mut command = 0;
    let mut fault_at = cluster.now + SECOND / 2;
    while cluster.now < end {
        let pause = cluster.random.within(2..16);
        cluster.run_for(Duration::from_millis(pause));
        let burst = if cluster.random.chance(20) { 100 } else { 1 };
        for _ in 0..burst {
            command += 1;
            let to = cluster.leader().filter(|_| command % 8 != 0);
            let to = to.unwrap_or_else(|| ids[cluster.random.draw() as usize % ids.len()]);
            if cluster.nodes[&to].raft.is_some() {
                let _ = cluster.propose(to, command);
            }
        }
        if cluster.now >= fault_at {
            let wait = cluster.random.within(20..500);
            fault_at = cluster.now + Duration::from_millis(wait);
            cause_fault(&mut cluster, &ids);
            cluster.audit();
        }
    }
    cluster.heal();
    cluster.settle(&ids);
    cluster.audit();
    cluster
}

fn cause_fault(cluster: &mut Cluster, ids: &[StoreId]) {
    let random = ids[cluster.random.draw() as usize % ids.len()];
    let leader = cluster.leader().unwrap_or(random);
    let victim = if cluster.random.chance(400) {
        leader
    } else {
        random
    };
    let span = Duration::from_millis(cluster.random.within(10..900));
    match cluster.random.within(0..9) {
        0..=2 => {
            cluster.crash(victim);
            cluster.restart_at(victim, cluster.now + span);
        }
        3 => {
            let other = ids[cluster.random.draw() as usize % ids.len()];
            cluster.partition(&[victim, other]);
        }
        4 => {
            let others = ids.iter().filter(|id| **id != victim);
            cluster.cut.extend(others.map(|other| (victim, *other)));
        }
        5 => cluster.pause(victim, span),
        6 => cluster.stall_disk(victim, span),
        7 => {
            let may_lead = cluster.random.chance(500);
            cluster.may_lead(victim, may_lead);
        }
        _ => {}
    }
    if cluster.random.chance(400) {
        cluster.cut.clear();
    }
}

fn check_seeds(members: u64, seeds: std::ops::Range<u64>) {
    let (mut elections, mut entries, mut snapshots) = (0, 0, 0);
    for seed in seeds {
        let run = AssertUnwindSafe(|| survives_faults(members, seed, Sabotage::None));
        let cluster = match catch_unwind(run) {
            Ok(cluster) => cluster,
            Err(_) => panic!("seed {seed} of {members} members failed; see above"),
        };
        elections += cluster.judge.leaders.len();
        entries += cluster.judge.committed.len();
        snapshots += cluster
            .nodes
            .values()
            .map(|node| node.snapshots_installed)
            .sum::<u64>();
    }
    println!("{elections} elections, {entries} entries, {snapshots} snapshots");
}

#[test]
fn three_members_keep_raft_s_promises_under_faults() {
    check_seeds(3, 0..200);
}

#[test]
fn five_members_keep_raft_s_promises_under_faults() {
    check_seeds(5, 1_000..1_150);
}

#[test]
fn three_founders_hand_over_to_three_new_stores_under_faults() {
    for seed in 0..60 {
        let mut cluster = Cluster::of(3, seed, Weather::foul());
        let ids: Vec<StoreId> = (1..=6).map(store).collect();
        for id in &ids[3..] {
            cluster.add(*id, Persisted::default());
        }
        let steps = [
            members(&[1, 2, 3], &[4, 5, 6]),
            members(&[1, 2, 3, 4], &[5, 6]),
            members(&[2, 3, 4], &[5, 6]),
            members(&[2, 3, 4, 5], &[6]),
            members(&[2, 4, 5], &[6]),
            members(&[2, 4, 5, 6], &[]),
            members(&[4, 5, 6], &[]),
        ];
        let mut fault_at = cluster.now + SECOND / 2;
        let mut command = 0;
        let mut steps = steps.into_iter().peekable();
        let end = cluster.now + 20 * SECOND;
        while steps.peek().is_some() && cluster.now < end {
            cluster.run_for(Duration::from_millis(10));
            if cluster.now >= fault_at {
                let wait = cluster.random.within(100..600);
                fault_at = cluster.now + Duration::from_millis(wait);
                cause_fault(&mut cluster, &ids);
                cluster.audit();
            }
            let Some(leader) = cluster.leader() else {
                continue;
            };
            command += 1;
            let _ = cluster.propose(leader, command);
            let raft = cluster.raft(leader);
            let is_committed = raft.commit_index() >= raft.log.members_index();
            if is_committed && steps.peek() == Some(raft.members()) {
                steps.next();
            }
            // Slowly, so that faults come between and amid the changes.
            let asks = cluster.random.chance(30);
            if let Some(step) = steps.peek().cloned().filter(|_| asks) {
                let _ = cluster.event(leader, Event::ChangeMembers(step));
            }
        }
        cluster.heal();
        for step in steps {
            change(&mut cluster, step);
        }
        cluster.settle(&ids[3..]);
        cluster.audit();
        cluster.run_until("an election", SECOND, |c| c.leader().is_some());
        let leader = cluster.leader().unwrap();
        assert_eq!(*cluster.raft(leader).members(), members(&[4, 5, 6], &[]));
    }
}

#[test]
fn sabotage_is_noticed() {
    for (sabotage, finding) in [
        (Sabotage::LyingDisk, "lacks an entry"),
        (Sabotage::ForgottenVote, "two leaders"),
        (Sabotage::ReusedStoreId, "lacks an entry"),
    ] {
        let noticed = (0..200).find(|seed| {
            let run = AssertUnwindSafe(|| survives_faults(3, *seed, sabotage));
            let said = catch_unwind(run).err();
            said.and_then(|said| said.downcast::<String>().ok())
                .is_some_and(|said| said.contains(finding))
        });
        println!("{sabotage:?} is found by seed {noticed:?}");
        assert!(noticed.is_some(), "{sabotage:?} went unnoticed");
    }
}

// ---- members ----

fn members(voters: &[u64], learners: &[u64]) -> Members {
    Members {
        voters: voters.iter().copied().map(store).collect(),
        learners: learners.iter().copied().map(store).collect(),
    }
}

/// A cluster in fine weather that has applied its first entries.
fn settled(count: u64, seed: u64) -> Cluster {
    let mut cluster = Cluster::of(count, seed, Weather::fine());
    let ids: Vec<_> = (1..=count).map(store).collect();
    cluster.settle(&ids);
    cluster
}

/// Asks whoever leads for `wanted` until a leader has committed it.
fn change(cluster: &mut Cluster, wanted: Members) {
    let end = cluster.now + 5 * SECOND;
    loop {
        assert!(cluster.now < end, "{wanted:?} is never committed");
        cluster.run_for(Duration::from_millis(10));
        let Some(leader) = cluster.leader() else {
            continue;
        };
        let raft = cluster.raft(leader);
        if *raft.members() != wanted {
            let _ = cluster.event(leader, Event::ChangeMembers(wanted.clone()));
        } else if raft.commit_index() >= raft.log.members_index() {
            return;
        }
    }
}

fn stores(ids: &[u64]) -> Vec<StoreId> {
    ids.iter().copied().map(store).collect()
}

#[test]
fn learner_is_sent_the_log_and_its_copy_does_not_count() {
    let mut cluster = settled(3, 1);
    cluster.add(store(4), Persisted::default());
    change(&mut cluster, members(&[1, 2, 3], &[4]));
    cluster.settle(&stores(&[1, 2, 3, 4]));

    let leader = cluster.leader().unwrap();
    assert!(cluster.raft(leader).replicated(store(4)).unwrap() > LogIndex(2));
    for follower in [1, 2, 3].map(store).into_iter().filter(|id| *id != leader) {
        cluster.crash(follower);
    }
    let commit = cluster.raft(leader).commit_index();
    cluster.propose(leader, 7).unwrap();
    cluster.run_for(2 * SECOND);
    assert_eq!(cluster.raft(leader).commit_index(), commit);
    assert_eq!(cluster.leader(), None);
}

#[test]
fn learner_made_voter_counts() {
    let mut cluster = settled(2, 2);
    cluster.add(store(3), Persisted::default());
    change(&mut cluster, members(&[1, 2], &[3]));
    change(&mut cluster, members(&[1, 2, 3], &[]));
    cluster.crash(store(1));
    cluster.settle(&stores(&[2, 3]));
}

#[test]
fn removed_leader_steps_down_and_the_rest_go_on() {
    let mut cluster = settled(3, 3);
    let leader = cluster.leader().unwrap();
    let rest: Vec<_> = [1, 2, 3]
        .map(store)
        .into_iter()
        .filter(|id| *id != leader)
        .collect();
    let term = cluster.raft(leader).term();
    cluster
        .event(
            leader,
            Event::ChangeMembers(Members::of(rest.iter().copied())),
        )
        .unwrap();
    cluster.settle(&rest);
    assert!(!cluster.raft(leader).is_leader());
    cluster.run_for(2 * SECOND);
    assert_eq!(cluster.raft(leader).term(), term, "it does not campaign");
    assert!(rest.contains(&cluster.leader().unwrap()));
}

#[test]
fn store_that_lost_its_disk_is_replaced_under_a_new_id() {
    let mut cluster = settled(3, 4);
    cluster.crash(store(3));
    cluster.nodes.remove(&store(3));
    cluster.add(store(9), Persisted::default());
    change(&mut cluster, members(&[1, 2, 3], &[9]));
    cluster.settle(&stores(&[1, 2, 9]));
    change(&mut cluster, members(&[1, 2], &[9]));
    change(&mut cluster, members(&[1, 2, 9], &[]));
    cluster.crash(store(1));
    cluster.settle(&stores(&[2, 9]));
}

#[test]
fn members_that_were_never_committed_revert() {
    let mut cluster = settled(3, 5);
    let old = cluster.leader().unwrap();
    cluster.partition(&[old]);
    cluster
        .event(old, Event::ChangeMembers(members(&[1, 2, 3], &[8])))
        .unwrap();
    assert!(cluster.raft(old).members().contains(store(8)));
    cluster.run_until("an election", 2 * SECOND, |c| c.leader() != Some(old));
    cluster.run_for(SECOND);
    cluster.heal();
    cluster.settle(&stores(&[1, 2, 3]));
    assert_eq!(*cluster.raft(old).members(), members(&[1, 2, 3], &[]));
}

// ---- snapshots, disks, leaders ----

#[test]
fn follower_behind_the_log_catches_up_by_snapshot() {
    let mut cluster = settled(3, 6);
    let leader = cluster.leader().unwrap();
    let away = [1, 2, 3]
        .map(store)
        .into_iter()
        .find(|id| *id != leader)
        .unwrap();
    cluster.partition(&[away]);
    for command in 0..1_000 {
        cluster.propose(leader, command).unwrap();
        cluster.run_for(Duration::from_millis(1));
    }
    let kept = cluster.raft(leader).log_entries_from(LogIndex(1)).count() as u64;
    assert!(kept <= ENTRIES_KEPT_UNDER_SNAPSHOT + cluster.snapshot_every + 10);
    cluster.heal();
    cluster.settle(&stores(&[1, 2, 3]));
    assert_eq!(cluster.nodes[&away].snapshots_installed, 1);

    // What it installed is what its restart sees.
    cluster.crash(away);
    cluster.restart(away);
    assert_eq!(cluster.nodes[&away].snapshots_installed, 2);
    cluster.settle(&stores(&[1, 2, 3]));
}

#[test]
fn follower_away_for_a_moment_catches_up_by_entries() {
    let mut cluster = settled(3, 6);
    let leader = cluster.leader().unwrap();
    let away = [1, 2, 3]
        .map(store)
        .into_iter()
        .find(|id| *id != leader)
        .unwrap();
    cluster.partition(&[away]);
    for command in 0..ENTRIES_KEPT_UNDER_SNAPSHOT - 10 {
        cluster.propose(leader, command).unwrap();
        cluster.run_for(Duration::from_millis(1));
    }
    cluster.heal();
    cluster.settle(&stores(&[1, 2, 3]));
    assert_eq!(cluster.nodes[&away].snapshots_installed, 0);
}

#[test]
fn everybody_restarts_and_nothing_committed_is_lost() {
    let mut cluster = settled(5, 7);
    let leader = cluster.leader().unwrap();
    for command in 0..300 {
        cluster.propose(leader, command).unwrap();
        cluster.run_for(Duration::from_micros(500));
    }
    let committed = cluster.judge.committed.len();
    assert!(committed > 200);
    for id in stores(&[1, 2, 3, 4, 5]) {
        cluster.crash(id);
        cluster.restart_at(id, cluster.now + SECOND / 2);
    }
    cluster.run_for(SECOND);
    cluster.settle(&stores(&[1, 2, 3, 4, 5]));
    assert!(cluster.judge.committed.len() > committed);
}

#[test]
fn leader_that_may_not_lead_falls_silent_and_another_emerges() {
    let mut cluster = settled(3, 8);
    let old = cluster.leader().unwrap();
    cluster.may_lead(old, false);
    let refused = cluster.propose(old, 1);
    assert_eq!(refused, Err(Refused::NotLeader { hint: None }));
    cluster.run_until("an election", SECOND, |c| {
        c.leader().is_some_and(|leader| leader != old)
    });
    cluster.settle(&stores(&[1, 2, 3]));

    // Not even when it is the only one to notice that the leader is gone.
    let leader = cluster.leader().unwrap();
    cluster.crash(leader);
    cluster.run_for(2 * SECOND);
    assert_ne!(cluster.leader(), Some(old));
}

#[test]
fn leader_that_may_lead_again_in_time_goes_on() {
    let mut cluster = settled(3, 9);
    let (leader, term) = (cluster.leader().unwrap(), cluster.judge.leaders.len());
    cluster.may_lead(leader, false);
    cluster.run_for(Duration::from_millis(60));
    cluster.may_lead(leader, true);
    cluster.settle(&stores(&[1, 2, 3]));
    assert_eq!(cluster.leader(), Some(leader));
    assert_eq!(cluster.judge.leaders.len(), term);
}

#[test]
fn leader_nobody_hears_from_steps_down() {
    check_replaced(|cluster, leader| {
        let others: Vec<_> = cluster.nodes.keys().copied().collect();
        cluster
            .cut
            .extend(others.iter().map(|other| (*other, leader)));
    });
}

#[test]
fn leader_whose_disk_stalls_is_replaced() {
    check_replaced(|cluster, leader| {
        cluster.stall_disk(leader, 10 * SECOND);
        cluster.propose(leader, 1).unwrap();
    });
}

#[test]
fn leader_that_is_paused_is_replaced() {
    check_replaced(|cluster, leader| cluster.pause(leader, 3 * SECOND));
}

fn check_replaced(fault: impl FnOnce(&mut Cluster, StoreId)) {
    let mut cluster = settled(3, 10);
    let old = cluster.leader().unwrap();
    let rest: Vec<_> = [1, 2, 3]
        .map(store)
        .into_iter()
        .filter(|id| *id != old)
        .collect();
    fault(&mut cluster, old);
    cluster.run_until("an election", 2 * SECOND, |c| {
        c.leader().is_some_and(|leader| leader != old)
    });
    cluster.settle(&rest);
}

#[test]
fn lone_member_leads_and_commits() {
    settled(1, 11);
}

#[test]
fn idle_cluster_sends_heartbeats_alone() {
    let mut cluster = settled(5, 12);
    cluster.run_for(SECOND);
    let before = cluster.messages;
    cluster.run_for(10 * SECOND);
    let beats = 10 * 1000 / 40;
    let sent = cluster.messages - before;
    assert!((beats - 1) * 8 <= sent && sent <= (beats + 1) * 8, "{sent}");
}

// ---- one member by hand ----

/// A member whose disk is instant, driven message by message.
struct Alone {
    raft: Raft<u64>,
    now: Time,
    said: Vec<Action<u64>>,
}

impl Alone {
    fn of(me: u64, voters: &[u64]) -> Alone {
        Alone::from_disk(me, Persisted::founded(members(voters, &[])))
    }

    fn from_disk(me: u64, disk: Persisted<u64>) -> Alone {
        let now = Time::from_millis(1_000);
        let raft = Raft::restart(store(me), Config::default(), me, disk, now);
        let said = Vec::new();
        let mut alone = Alone { raft, now, said };
        alone.event(Event::Tick).unwrap();
        alone
    }

    fn event(&mut self, event: Event<u64>) -> Result<(), Refused> {
        let outcome = self.raft.handle(self.now, event);
        while let Some(action) = self.raft.poll_action() {
            if let Action::Persist { ticket, .. } = action {
                self.raft
                    .handle(self.now, Event::Flushed { ticket })
                    .unwrap();
            }
            self.said.push(action);
        }
        outcome
    }

    fn hears(&mut self, from: u64, message: Message<u64>) {
        let from = store(from);
        self.event(Event::Receive { from, message }).unwrap();
    }

    fn wait(&mut self, span: Duration) {
        self.now = self.now + span;
        self.event(Event::Tick).unwrap();
    }

    /// Campaigns and is voted for by `voter`.
    fn elect(&mut self, voter: u64) {
        self.wait(Config::default().election_max);
        let term = self.raft.term();
        self.hears(
            voter,
            Message::Vote {
                term,
                granted: true,
            },
        );
        assert!(self.raft.is_leader());
    }

    /// Checks that `event` is refused with `why` and changes nothing.
    fn check_refused(&mut self, event: Event<u64>, why: Refused) {
        let before = self.raft.clone();
        assert_eq!(self.event(event), Err(why));
        assert_eq!(self.raft, before);
    }
}

fn entry(term: u64, index: u64) -> Arc<Entry<u64>> {
    Arc::new(Entry {
        id: id(term, index),
        payload: Payload::Command(index),
    })
}

fn id(term: u64, index: u64) -> LogId {
    LogId {
        term: Term(term),
        index: LogIndex(index),
    }
}

#[test]
fn entries_of_older_terms_commit_only_under_one_of_the_leader_s_own() {
    let mut disk = Persisted::founded(members(&[1, 2, 3], &[]));
    disk.apply(Write::Append(vec![entry(2, 2)]));
    let term = Term(3);
    let voted_for = None;
    disk.apply(Write::HardState(HardState { term, voted_for }));
    let mut alone = Alone::from_disk(1, disk);
    alone.elect(2);
    let term = alone.raft.term();
    let matched = LogIndex(2);
    alone.hears(2, Message::Appended { term, matched });
    assert_eq!(alone.raft.commit_index(), LogIndex::ZERO);
    let matched = LogIndex(3);
    alone.hears(2, Message::Appended { term, matched });
    assert_eq!(alone.raft.commit_index(), LogIndex(3));
}

#[test]
fn vote_requests_are_ignored_while_a_leader_was_just_heard() {
    let mut alone = Alone::of(1, &[1, 2, 3]);
    let (term, prev) = (Term(1), id(0, 1));
    let (entries, commit) = (vec![], LogIndex(1));
    alone.hears(
        2,
        Message::Append {
            term,
            prev,
            entries,
            commit,
        },
    );
    let request = Message::RequestVote {
        term: Term(9),
        last: id(8, 8),
    };
    let before = alone.raft.clone();
    alone.hears(3, request.clone());
    assert_eq!(alone.raft, before);

    alone.now = alone.now + Config::default().election_min;
    alone.hears(3, request);
    assert_eq!(alone.raft.hard_state.voted_for, Some(store(3)));
}

#[test]
fn vote_goes_to_one_candidate_with_a_log_as_new() {
    let term = Term(5);
    let ask = |last| Message::RequestVote { term, last };
    let answers = |alone: &mut Alone, from: u64, last| {
        alone.said.clear();
        alone.hears(from, ask(last));
        let message = Message::Vote {
            term,
            granted: true,
        };
        let to = store(from);
        alone.said.contains(&Action::Send { to, message })
    };
    let mut disk = Persisted::founded(members(&[1, 2, 3], &[]));
    disk.apply(Write::Append(vec![entry(2, 2)]));
    let mut alone = Alone::from_disk(1, disk);
    assert!(!answers(&mut alone, 2, id(0, 9)), "longer and older");
    assert!(!answers(&mut alone, 2, id(2, 1)), "shorter");
    assert!(answers(&mut alone, 2, id(2, 2)), "as new");
    assert!(answers(&mut alone, 2, id(2, 2)), "asked again");
    assert!(!answers(&mut alone, 3, id(4, 4)), "another candidate");
}

#[test]
fn nothing_is_promised_before_it_is_flushed() {
    let mut alone = Alone::of(1, &[1, 2, 3]);
    let (term, prev) = (Term(1), id(0, 1));
    let (entries, commit) = (vec![entry(1, 2)], LogIndex(2));
    let message = Message::Append {
        term,
        prev,
        entries,
        commit,
    };
    let from = store(2);
    alone
        .raft
        .handle(alone.now, Event::Receive { from, message })
        .unwrap();
    let mut tickets = vec![];
    while let Some(action) = alone.raft.poll_action() {
        match action {
            Action::Persist { ticket, .. } => tickets.push(ticket),
            Action::LeaderKnown { .. } => {}
            // Flushed before, and committed by what the message says.
            Action::Apply { entry } => assert_eq!(entry.id, id(0, 1)),
            other => panic!("said before the flush: {other:?}"),
        }
    }
    assert_eq!(alone.raft.held_last(), id(0, 1));
    assert_eq!(tickets, [1, 2], "the term, then the entry");
    alone.said.clear();
    let ticket = 2;
    alone.event(Event::Flushed { ticket }).unwrap();
    let matched = LogIndex(2);
    let message = Message::Appended { term, matched };
    let says = [
        Action::Appended {
            entries: vec![entry(1, 2)],
        },
        Action::Send { to: from, message },
    ];
    assert_eq!(alone.said[..2], says);
    assert_eq!(alone.raft.applied_index(), LogIndex(2));
}

#[test]
fn refusals_name_their_reason_and_change_nothing() {
    let mut alone = Alone::of(1, &[1, 2, 3]);
    let propose = |token| Event::Propose { token, command: 0 };
    let change = |voters, learners| Event::ChangeMembers(members(voters, learners));
    let snapshot = |upto| Event::SnapshotMade {
        upto: LogIndex(upto),
        data: Bytes::new(),
    };
    let not_leader = Refused::NotLeader { hint: None };
    alone.check_refused(propose(1), not_leader);
    alone.check_refused(change(&[1, 2], &[]), not_leader);
    alone.check_refused(snapshot(1), Refused::SnapshotAhead);
    alone.check_refused(Event::Flushed { ticket: 1 }, Refused::UnknownTicket);

    alone.elect(2);
    alone.check_refused(change(&[1, 2], &[]), Refused::LeaderTooNew);
    let term = alone.raft.term();
    let matched = LogIndex(2);
    alone.hears(2, Message::Appended { term, matched });
    alone.check_refused(change(&[1, 2, 3, 4, 5], &[]), Refused::NotOneVoter);
    alone.check_refused(change(&[1, 2, 4], &[]), Refused::NotOneVoter);
    alone.check_refused(change(&[], &[1]), Refused::BadMembers);
    alone.check_refused(change(&[1, 2, 3], &[3]), Refused::BadMembers);
    let crowd: Vec<u64> = (4..=MEMBERS_MAX as u64 + 1).collect();
    alone.check_refused(change(&[1, 2, 3], &crowd), Refused::BadMembers);
    alone.event(change(&[1, 2, 3, 4], &[])).unwrap();
    alone.check_refused(change(&[1, 2, 3], &[]), Refused::ChangeUnderWay);
    alone.event(snapshot(2)).unwrap();
    alone.check_refused(snapshot(2), Refused::SnapshotOld);

    for token in 0..PROPOSALS_IN_FLIGHT_MAX as u64 {
        alone.event(propose(token)).unwrap();
    }
    alone.check_refused(propose(0), Refused::Overloaded);

    // A newer leader: every proposal is lost to this one, and it says who leads.
    alone.said.clear();
    let term = Term(9);
    let (prev, entries, commit) = (id(0, 1), vec![], LogIndex(1));
    alone.hears(
        3,
        Message::Append {
            term,
            prev,
            entries,
            commit,
        },
    );
    let lost = |action: &&Action<u64>| matches!(action, Action::ProposalLost { .. });
    let lost = alone.said.iter().filter(lost).count();
    assert_eq!(lost, PROPOSALS_IN_FLIGHT_MAX);
    let hint = Some(store(3));
    alone.check_refused(propose(1), Refused::NotLeader { hint });
}

#[test]
fn ticks_that_come_early_or_twice_are_harmless() {
    let mut alone = Alone::of(1, &[1, 2, 3]);
    let before = alone.raft.clone();
    alone.event(Event::Tick).unwrap();
    assert_eq!(alone.raft, before);
    alone.elect(2);
    let before = alone.raft.clone();
    alone.event(Event::Tick).unwrap();
    assert_eq!(alone.raft, before);
}

/// `cargo nextest run -p understudy-sim --run-ignored all --no-capture idle_round`
#[test]
#[ignore = "a measurement"]
fn cost_of_an_idle_round() {
    for peers in [2, 4, 6] {
        let voters: Vec<u64> = (1..=peers + 1).collect();
        let mut all: Vec<Alone> = voters.iter().map(|me| Alone::of(*me, &voters)).collect();
        let rounds = 100_000;
        let mut began = Instant::now();
        for round in 0..rounds + 100 {
            if round == 100 {
                began = Instant::now();
            }
            let mut mail: Vec<(u64, StoreId, Message<u64>)> = vec![];
            let post = |alone: &mut Alone, mail: &mut Vec<_>| {
                let me = alone.raft.me.0;
                for action in alone.said.drain(..) {
                    if let Action::Send { to, message } = action {
                        mail.push((me, to, message));
                    }
                }
            };
            for alone in all.iter_mut().take(if round < 20 { 1 } else { usize::MAX }) {
                alone.wait(Config::default().heartbeat);
                post(alone, &mut mail);
            }
            while let Some((from, to, message)) = mail.pop() {
                let alone = &mut all[to.0 as usize - 1];
                alone.hears(from, message);
                post(alone, &mut mail);
            }
        }
        assert!(all[0].raft.is_leader());
        let each = began.elapsed().as_nanos() / rounds as u128;
        println!(
            "{} members: {each} ns a round, {} ns a message",
            peers + 1,
            each / (2 * peers as u128)
        );
    }
}
