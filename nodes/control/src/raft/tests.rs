//! Members of Raft in one process: their requests go by function call, their core only applies.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use understudy_protocol::cluster::directory::{self, Command, Formation, Registration};
use understudy_protocol::id::{IncarnationId, NodeId};
use understudy_protocol::machine::Machine as _;
use understudy_protocol::time::{ClusterTime, Time};
use understudy_protocol::wire::heart::{DeathDigest, Ttl};
use understudy_store::{DataDir, OnDamage, OpenError, OpenStore};

use super::types::Types;
use super::*;

/// The store in a folder, as soon as whoever had it open has let it go.
async fn open(folder: &Path) -> OpenStore {
    let tries = async {
        loop {
            match DataDir::open(folder, OnDamage::Refuse, None) {
                Ok(store) => return store,
                Err(OpenError::InUse { .. }) => tokio::time::sleep(Duration::from_millis(2)).await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    let opened = tokio::time::timeout(PATIENCE, tries).await;
    opened.expect("the folder is let go")
}

/// What one core has heard.
#[derive(Clone, Debug, Default)]
struct Heard {
    directory: Directory,
    /// Facts of entries that were held and not truncated, applied or not.
    held: BTreeMap<LogIndex, (LogId, Fact)>,
    /// For every `Read`: whether there was a snapshot, and how many facts were open.
    reads: Vec<(bool, usize)>,
    leads: Option<Term>,
    /// Terms of this node's roles that came after an entry of the term was applied: none may.
    late_roles: Vec<Term>,
    leaders: BTreeMap<StoreId, usize>,
    failed: Option<String>,
}

/// A core that only applies, and checks what it is told on the way.
async fn core(mut events: mpsc::Receiver<RaftEvent>, heard: watch::Sender<Heard>) {
    while let Some(event) = events.recv().await {
        heard.send_modify(|heard| hear(heard, event));
    }
}

fn hear(heard: &mut Heard, event: RaftEvent) {
    match event {
        RaftEvent::Opened { snapshot, open } => {
            heard.reads.push((snapshot.is_some(), open.len()));
            if let Some(directory) = snapshot {
                heard.directory = *directory;
            }
            heard.held = open.into_iter().map(|fact| (fact.0.index, fact)).collect();
        }
        RaftEvent::Install {
            directory,
            open,
            done,
        } => {
            heard.reads.push((true, open.len()));
            heard.directory = *directory;
            heard.held = open.into_iter().map(|fact| (fact.0.index, fact)).collect();
            let _ = done.send(());
        }
        RaftEvent::Held(id, fact) => {
            assert!(
                heard.directory.applied().index < id.index,
                "{id:?} was counted before it was held"
            );
            heard.held.insert(id.index, (id, fact));
        }
        RaftEvent::Truncated(from) => drop(heard.held.split_off(&from)),
        RaftEvent::Apply { entries, done } => {
            assert!(entries.len() <= APPLY_AT_ONCE);
            for (id, entry) in entries {
                apply(heard, id, entry);
            }
            let _ = done.send(());
        }
        RaftEvent::Snapshot { answer } => {
            let _ = answer.send(Arc::new(heard.directory.clone()));
        }
        RaftEvent::Role { leading, term } => {
            if leading && heard.directory.applied().term >= term {
                heard.late_roles.push(term);
            }
            heard.leads = leading.then_some(term);
        }
        RaftEvent::LeaderSeen(leader) => *heard.leaders.entry(leader).or_default() += 1,
        RaftEvent::Failed(reason) => heard.failed = Some(reason),
    }
}

fn apply(heard: &mut Heard, id: LogId, entry: Option<Entry>) {
    if let Some(fact) = entry.as_ref().and_then(Entry::fact) {
        assert_eq!(heard.held.get(&id.index), Some(&(id, fact)));
    }
    let event = match entry {
        Some(entry) => directory::Event::Apply(id, entry),
        None => directory::Event::Skip(id),
    };
    heard.directory.handle(Time::ZERO, event).unwrap();
    while heard.directory.poll_action().is_some() {}
}

/// Members that are up, by their store.
type Up = Arc<Mutex<BTreeMap<StoreId, Arc<RaftDriver>>>>;

struct Wires {
    from: StoreId,
    up: Up,
    /// Who hears nobody, and is heard by nobody.
    cut: Arc<Mutex<BTreeSet<StoreId>>>,
}

impl RaftNetwork for Wires {
    fn request(&self, to: StoreId, kind: u8, body: Bytes, patience: Duration) -> Asked {
        assert!(body.len() <= REQUEST_BYTES_MAX);
        let up = self.up.lock().unwrap().get(&to).cloned();
        let cut = self.cut.lock().unwrap();
        let up = up.filter(|_| !cut.contains(&to) && !cut.contains(&self.from));
        Box::pin(async move {
            let failed = |why: String| RequestFailed(why);
            let up = up.ok_or_else(|| failed("it is down".into()))?;
            let asked = tokio::time::timeout(patience, up.requests().on_request(kind, body)).await;
            let answer = asked.map_err(|_| failed("no answer".into()))?;
            answer.map_err(|refused| failed(refused.to_string()))
        })
    }
}

#[derive(Default)]
struct Cluster {
    up: Up,
    cut: Arc<Mutex<BTreeSet<StoreId>>>,
    disks: BTreeMap<StoreId, tempfile::TempDir>,
    heard: BTreeMap<StoreId, watch::Receiver<Heard>>,
    cores: BTreeMap<StoreId, JoinSet<()>>,
}

impl Cluster {
    async fn start(&mut self, store: u64) {
        let store = StoreId(store);
        let disk = self.disks.entry(store);
        let disk = disk.or_insert_with(|| tempfile::tempdir().unwrap());
        let log = open(disk.path()).await.raft;
        let (events, inbox) = mpsc::channel(64);
        let (heard, hears) = watch::channel(Heard::default());
        let mut task = JoinSet::new();
        task.spawn(core(inbox, heard));
        let wires = Wires {
            from: store,
            up: self.up.clone(),
            cut: self.cut.clone(),
        };
        let driver = RaftDriver::start(store, log, Arc::new(wires), events);
        self.up.lock().unwrap().insert(store, Arc::new(driver));
        self.heard.insert(store, hears);
        self.cores.insert(store, task);
    }

    /// Nobody says goodbye; it is only waited for, so that its folder can be opened again.
    async fn kill(&mut self, store: StoreId) {
        let member = self.up.lock().unwrap().remove(&store).unwrap();
        self.cores.remove(&store);
        member.shutdown().await;
    }

    fn member(&self, store: u64) -> Arc<RaftDriver> {
        self.up.lock().unwrap()[&StoreId(store)].clone()
    }

    async fn until(&self, store: u64, what: &str, shows: impl FnMut(&Heard) -> bool) -> Heard {
        let mut heard = self.heard[&StoreId(store)].clone();
        let shown = tokio::time::timeout(PATIENCE, heard.wait_for(shows)).await;
        match shown {
            Ok(shown) => shown.unwrap().clone(),
            Err(_) => panic!("store {store} never shows that {what}: {}", self.stand()),
        }
    }

    /// How Raft stands on every member, for who reads of a failure.
    fn stand(&self) -> String {
        let up = self.up.lock().unwrap();
        let said = up.iter().filter_map(|(store, driver)| {
            let raft = driver.shared.raft.get()?;
            Some(format!("\n{store}: {}", *raft.metrics().borrow()))
        });
        said.collect()
    }

    async fn leader(&self) -> u64 {
        let asks = async {
            loop {
                for (store, heard) in &self.heard {
                    let heard = heard.borrow();
                    let leads = heard
                        .leads
                        .is_some_and(|term| heard.directory.applied().term == term);
                    if leads && self.up.lock().unwrap().contains_key(store) {
                        return store.0;
                    }
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, asks)
            .await
            .expect("a leader")
    }

    /// Has the command applied on every store of `on`, proposing it again as a core would.
    async fn commit(&self, command: Command, on: &[u64], shows: impl Fn(&Directory) -> bool) {
        for store in on {
            let mut heard = self.heard[&StoreId(*store)].clone();
            let tries = async {
                loop {
                    let leader = self.leader().await;
                    if !shows(&heard.borrow().directory) {
                        self.member(leader).propose(entry(command.clone()));
                    }
                    let applied = heard.wait_for(|heard| shows(&heard.directory));
                    let wait = Duration::from_millis(300);
                    if tokio::time::timeout(wait, applied).await.is_ok() {
                        return;
                    }
                }
            };
            let done = tokio::time::timeout(PATIENCE, tries).await;
            assert!(done.is_ok(), "{command:?} is never applied on {store}");
        }
    }

    /// Three stores that have formed a cluster.
    async fn of_three() -> Cluster {
        let mut cluster = Cluster::default();
        for store in [1, 2, 3] {
            cluster.start(store).await;
        }
        cluster.form(1, &[1, 2, 3]);
        cluster
            .commit(formation(&[1, 2, 3]), &[1, 2, 3], Directory::is_formed)
            .await;
        cluster
    }

    fn form(&self, first: u64, voters: &[u64]) {
        let voters = voters.iter().copied().map(StoreId).collect();
        self.member(first).form(voters);
    }

    /// No core heard of a fault, or of a role too late.
    fn check(&self) {
        for (store, heard) in &self.heard {
            let heard = heard.borrow();
            assert_eq!(heard.failed, None, "{store}");
            assert_eq!(heard.late_roles, [], "{store}");
        }
    }
}

fn entry(command: Command) -> Entry {
    Entry {
        at: ClusterTime::ZERO,
        random: 7,
        command,
    }
}

fn formation(stores: &[u64]) -> Command {
    let stores: BTreeSet<StoreId> = stores.iter().copied().map(StoreId).collect();
    Command::Form(Formation {
        voters: stores.clone(),
        ttl: Ttl::LAN,
        replicas: 3,
        min_copies: 1,
        shards: 1,
        set: stores,
    })
}

fn registration(number: u64) -> Command {
    Command::Register(Registration {
        node: NodeId(number),
        incarnation: IncarnationId(number),
        store: StoreId(number),
        death: DeathDigest::of(&[1; 32]),
        votes: true,
        works: true,
        labels: BTreeMap::new(),
        capacity: BTreeMap::new(),
        name: format!("n{number}"),
        address: String::new(),
    })
}

fn knows(number: u64) -> impl Fn(&Directory) -> bool {
    move |directory| {
        directory
            .incarnations()
            .contains_key(&IncarnationId(number))
    }
}

/// Elections and restarts on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_proposed_is_applied_everywhere_and_its_facts_are_held_before() {
    let cluster = Cluster::of_three().await;
    for number in 1..=5 {
        let applied = knows(number);
        cluster
            .commit(registration(number), &[1, 2, 3], applied)
            .await;
    }
    let leader = StoreId(cluster.leader().await);
    for store in [1, 2, 3] {
        let seen = |heard: &Heard| heard.leaders.get(&leader).is_some_and(|seen| *seen > 5);
        let heard = cluster.until(store, "the leader is seen", seen).await;
        // The directory counts from one, and Raft's own first entry is one of it.
        assert!(heard.directory.applied().index >= LogIndex(8));
        assert_eq!(cluster.member(store).leader(), Some(leader));
        assert_eq!(
            cluster.member(store).members().voters,
            [1, 2, 3].map(StoreId).into()
        );
    }
    // A second cluster is not formed.
    cluster.form(2, &[2]);
    cluster.commit(registration(6), &[1, 2, 3], knows(6)).await;
    let voters = cluster.member(2).members().voters;
    assert_eq!(voters, [1, 2, 3].map(StoreId).into());
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_leads_when_the_leader_is_killed_and_it_catches_up_from_the_log() {
    let mut cluster = Cluster::of_three().await;
    let old = cluster.leader().await;
    cluster.kill(StoreId(old)).await;
    let killed = tokio::time::Instant::now();
    let rest: Vec<u64> = (1..=3).filter(|store| *store != old).collect();
    let new = cluster.leader().await;
    println!("another led after {:?}", killed.elapsed());
    assert_ne!(new, old);
    cluster.commit(registration(1), &rest, knows(1)).await;
    cluster.start(old).await;
    let back = cluster
        .until(old, "it has caught up", |heard| knows(1)(&heard.directory))
        .await;
    // It knew of the formation before it heard of anybody, and never of a snapshot.
    assert!(matches!(back.reads[..], [(false, 1..)]), "{:?}", back.reads);
    assert_eq!(back.leads, None);
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_for_long_catches_up_from_a_snapshot_and_restarts_from_it() {
    let mut cluster = Cluster::of_three().await;
    let leader = cluster.leader().await;
    let away = (1..=3).find(|store| *store != leader).unwrap();
    let rest: Vec<u64> = (1..=3).filter(|store| *store != away).collect();
    cluster.kill(StoreId(away)).await;
    for number in 1..=SNAPSHOT_EVERY + LAG_MAX {
        let applied = knows(number);
        cluster
            .commit(registration(number), &rest[..1], applied)
            .await;
    }
    cluster.start(away).await;
    let all = knows(SNAPSHOT_EVERY + LAG_MAX);
    let back = cluster
        .until(away, "it has caught up", |heard| all(&heard.directory))
        .await;
    assert!(matches!(back.reads[0], (false, 1..)), "{:?}", back.reads);
    assert!(
        back.reads[1..].iter().any(|(snapshot, _)| *snapshot),
        "{:?}",
        back.reads
    );
    // Its own disk holds the snapshot now.
    cluster.kill(StoreId(away)).await;
    cluster.start(away).await;
    let again = cluster
        .until(away, "it has read", |heard| !heard.reads.is_empty())
        .await;
    assert!(again.reads[0].0);
    let all = knows(SNAPSHOT_EVERY + LAG_MAX);
    cluster
        .until(
            away,
            "it has caught up again",
            |heard| all(&heard.directory),
        )
        .await;
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_may_not_lead_falls_silent_and_another_is_elected() {
    let cluster = Cluster::of_three().await;
    let old = cluster.leader().await;
    cluster.member(old).may_lead(false);
    // Its own proposals must not keep it in office.
    let deposed = cluster.until(old, "it leads no more", |heard| heard.leads.is_none());
    let proposes = async {
        loop {
            cluster.member(old).propose(entry(Command::Tick));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        _ = deposed => {}
        () = proposes => {}
    }
    assert_ne!(cluster.leader().await, old);
    cluster.member(old).may_lead(true);
    cluster.commit(registration(9), &[1, 2, 3], knows(9)).await;
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_longer_log_that_may_not_lead_keeps_no_candidate_waiting() {
    let cluster = Cluster::of_three().await;
    let old = cluster.leader().await;
    cluster.cut.lock().unwrap().insert(StoreId(old));
    cluster.member(old).propose(entry(registration(77)));
    let of_77 = |heard: &Heard| {
        let mut facts = heard.held.values();
        facts.any(|(_, fact)| matches!(fact, Fact::Live { node, .. } if node.0 == 77))
    };
    cluster.until(old, "it holds the fact", of_77).await;
    cluster.member(old).may_lead(false);
    // The lease of a leader is over: it would refuse for that alone.
    let lease = Duration::from_millis(2 * ELECTION_MILLIS_MAX);
    tokio::time::sleep(lease).await;
    let candidate = openraft::Vote::new(9, (old + 1) % 3 + 1);
    let ask = || {
        let request = openraft::raft::VoteRequest::new(candidate, None);
        let body = super::log::encode(&request).unwrap();
        let member = cluster.member(old);
        async move { member.requests().on_request(KIND_VOTE, body).await }
    };
    assert_eq!(ask().await, Err(RequestRefused::MayNotLead));
    cluster.member(old).may_lead(true);
    let answer = ask().await.unwrap();
    let answer: openraft::raft::VoteResponse<u64> = super::log::decode(&answer).unwrap();
    assert!(!answer.vote_granted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fact_that_only_a_minority_held_is_taken_back() {
    let cluster = Cluster::of_three().await;
    let old = cluster.leader().await;
    cluster.cut.lock().unwrap().insert(StoreId(old));
    cluster.member(old).propose(entry(registration(77)));
    let of_77 = |heard: &Heard| {
        let mut facts = heard.held.values();
        facts.any(|(_, fact)| matches!(fact, Fact::Live { node, .. } if node.0 == 77))
    };
    cluster.until(old, "it holds the fact", of_77).await;
    let rest: Vec<u64> = (1..=3).filter(|store| *store != old).collect();
    let led = |heard: &Heard| heard.leads.is_some();
    tokio::select! {
        _ = cluster.until(rest[0], "it leads", led) => {}
        _ = cluster.until(rest[1], "it leads", led) => {}
    }
    cluster.cut.lock().unwrap().clear();
    cluster.until(old, "it follows", |heard| !led(heard)).await;
    cluster.commit(registration(1), &[1, 2, 3], knows(1)).await;
    let heard = cluster
        .until(old, "the fact is gone", |heard| !of_77(heard))
        .await;
    assert!(!knows(77)(&heard.directory));
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_one_leads_again_after_a_restart_in_another_term() {
    let mut cluster = Cluster::default();
    cluster.start(1).await;
    cluster.form(1, &[1]);
    let formed = Directory::is_formed;
    cluster.commit(formation(&[1]), &[1], formed).await;
    cluster.commit(registration(1), &[1], knows(1)).await;
    let first = cluster.heard[&StoreId(1)].borrow().leads;
    cluster.kill(StoreId(1)).await;
    cluster.start(1).await;
    cluster.commit(registration(2), &[1], knows(2)).await;
    let heard = cluster
        .until(1, "it leads", |heard| heard.leads.is_some())
        .await;
    assert!(heard.leads > first, "{:?} {first:?}", heard.leads);
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_joins_is_promoted_and_leaves() {
    let mut cluster = Cluster::of_three().await;
    cluster.start(4).await;
    let stores =
        |stores: &[u64]| -> BTreeSet<StoreId> { stores.iter().copied().map(StoreId).collect() };
    let steps = [
        (stores(&[1, 2, 3]), stores(&[4])),
        (stores(&[1, 2, 3, 4]), stores(&[])),
        (stores(&[1, 2, 4]), stores(&[])),
    ];
    for (voters, learners) in steps {
        let moves = async {
            loop {
                let leader = cluster.member(cluster.leader().await);
                let now = leader.members();
                let caught_up = now.caught_up == learners;
                if now.voters == voters && now.learners == learners && caught_up {
                    return;
                }
                leader.change_members(voters.clone(), learners.clone());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let moved = tokio::time::timeout(PATIENCE, moves).await;
        assert!(moved.is_ok(), "{voters:?} {learners:?}");
    }
    cluster.kill(StoreId(3)).await;
    cluster.commit(registration(1), &[1, 2, 4], knows(1)).await;
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_member_would_send_is_refused_and_stops_nobody() {
    let cluster = Cluster::of_three().await;
    let leader = cluster.leader().await;
    let other = (1..=3).find(|store| *store != leader).unwrap();
    let member = cluster.member(other);
    let term = cluster
        .until(leader, "it leads", |heard| heard.leads.is_some())
        .await;
    let term = term.leads.unwrap().0;
    let vote = |term, of, committed| types::Vote {
        leader_id: openraft::LeaderId {
            term,
            voted_for: of,
        },
        committed,
    };
    let id = |index| openraft::LogId::new(openraft::CommittedLeaderId::new(term, 0), index);
    let append = |vote, prev_log_id, at: &[u64]| {
        let blank = |index: &u64| types::RaftEntry {
            log_id: id(*index),
            payload: openraft::EntryPayload::Blank,
        };
        let request = openraft::raft::AppendEntriesRequest::<Types> {
            vote,
            prev_log_id,
            entries: at.iter().map(blank).collect(),
            leader_commit: None,
        };
        (KIND_APPEND, log::encode(&request).unwrap())
    };
    let piece = |offset, data: &[u8], done| {
        let request = openraft::raft::InstallSnapshotRequest::<Types> {
            vote: vote(term, Some(leader), true),
            meta: Meta {
                snapshot_id: "forged".into(),
                last_log_id: Some(id(100)),
                ..Meta::default()
            },
            offset,
            data: data.to_vec(),
            done,
        };
        (KIND_SNAPSHOT, log::encode(&request).unwrap())
    };
    let ask_vote = |vote| {
        let request = openraft::raft::VoteRequest::<u64> {
            vote,
            last_log_id: None,
        };
        (KIND_VOTE, log::encode(&request).unwrap())
    };
    let right = vote(term, Some(leader), true);
    let requests = [
        (9, Bytes::new()),
        (KIND_APPEND, Bytes::from_static(b"nonsense")),
        (KIND_SNAPSHOT, Bytes::from_static(&[0xff; 64])),
        append(vote(term, Some(leader), false), None, &[]),
        append(vote(term, None, true), None, &[]),
        append(vote(term, Some(77), true), None, &[]),
        append(right, Some(id(u64::MAX)), &[]),
        append(right, Some(id(3)), &[5]),
        append(right, Some(id(3)), &[4, 6]),
        ask_vote(vote(u64::MAX, Some(leader), false)),
        ask_vote(vote(term + 1, Some(leader), true)),
        piece(0, b"no directory", true),
    ];
    for (nth, (kind, body)) in requests.into_iter().enumerate() {
        let answer = member.requests().on_request(kind, body).await;
        assert!(answer.is_err(), "request {nth} was answered");
    }
    // A piece from the middle makes the sender begin again.
    let (kind, body) = piece(10, b"later", false);
    let answer = member.requests().on_request(kind, body).await.unwrap();
    let answer: network::SnapshotAnswer = log::decode(&answer).unwrap();
    assert!(answer.is_err());
    cluster.commit(registration(1), &[1, 2, 3], knows(1)).await;
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_stops_though_nobody_reads_what_it_says() {
    let (events, _unread) = mpsc::channel(1);
    let disk = tempfile::tempdir().unwrap();
    let driver = RaftDriver::start(
        StoreId(1),
        open(disk.path()).await.raft,
        Arc::new(Wires {
            from: StoreId(1),
            up: Up::default(),
            cut: Arc::default(),
        }),
        events,
    );
    driver.form([StoreId(1)].into());
    // The queue is full, so Raft hangs in the midst of this.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let stops = tokio::time::timeout(PATIENCE, driver.shutdown()).await;
    assert!(stops.is_ok());
}
