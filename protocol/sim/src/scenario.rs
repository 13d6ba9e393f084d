//! What a seed means: the cluster, its clients, and the faults that befall it.
//!
//! Owns: every choice that is made before the run begins. Never reacts to a run, but for faults whose
//! victim is named by its part (the leader, an owner): who that is, is found out when the fault comes.

use std::time::Duration;

use understudy_protocol::wire::heart::Ttl;

use crate::clock::True;
use crate::net::Quality;
use crate::rng::Rng;

/// One run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Where it comes from.
    pub seed: u64,
    /// The nodes, in order.
    pub nodes: Vec<NodePlan>,
    /// The TTL that the cluster is formed with.
    pub ttl: Ttl,
    /// Shards at first.
    pub shards: u16,
    /// Light children.
    pub light: usize,
    /// Dedicated units, and how their supervisor restarts them.
    pub groups: Vec<Group>,
    /// Clients.
    pub clients: usize,
    /// A dedicated unit kills its node's process whenever it works, between these instants.
    pub poison: Option<(True, True)>,
    /// What befalls the cluster, in order of time.
    pub faults: Vec<(True, Fault)>,
    /// When the faults end: everything is mended, and liveness must follow.
    pub calm: True,
    /// When clients make no new calls.
    pub last_call: True,
    /// When the run ends.
    pub end: True,
}

/// One node.
#[derive(Clone, Debug)]
pub struct NodePlan {
    /// Its store votes.
    pub votes: bool,
    /// It runs units; one that only votes is a witness.
    pub works: bool,
    /// How fast its clock runs, within 1 % (L2).
    pub drift_ppm: i64,
    /// Its zone.
    pub zone: u8,
}

/// Dedicated units under a supervisor of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Two units, each on its own.
    OneForOne,
    /// Two units that restart together.
    OneForAll,
    /// Two units, the second of which leans on the first.
    RestForOne,
}

/// Whom a fault befalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// This node.
    Node(usize),
    /// Whoever leads Raft.
    Leader,
    /// Whoever owns most units.
    Owner,
    /// The holder of this store of the last unit's replica set.
    Member(usize),
}

/// A fault, or an operator's doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` of the node's process; its warden lives. Back after this long.
    Kill(Victim, Duration),
    /// The machine stops: process, warden and whatever was not flushed. Back after this long.
    Crash(Victim, Duration),
    /// The machine stops and comes back with an empty disk, if no other loss is still being mended.
    LoseDisk(Victim, Duration),
    /// The machine stops, and the last record of a store is unreadable afterwards, if no other loss is
    /// still being mended.
    DamageLast(Victim, Duration),
    /// The scrubber finds a damaged record, if no other loss is still being mended.
    Scrub(Victim),
    /// Everything stops at once.
    PowerLoss(Duration),
    /// `SIGSTOP` of the node's process, then `SIGCONT`.
    Stop(Victim, Duration),
    /// The virtual machine is paused; its clock goes on.
    Freeze(Victim, Duration),
    /// The virtual machine is paused and its clock with it: rule L2's bound does not hold.
    FreezeClock(Victim, Duration),
    /// The main runtime hangs; the heart does not.
    Hang(Victim, Duration),
    /// Nodes on different sides cannot talk.
    Split(Vec<usize>, Duration),
    /// Nothing gets from these to the others; the other way it does.
    OneWay(Vec<usize>, Duration),
    /// Two sides that only this node can reach both of.
    Bridge(usize, Vec<usize>, Duration),
    /// The victim talks to nobody.
    Isolate(Victim, Duration),
    /// The victim's heart port is blocked (L5).
    BlockHeart(Victim, Duration),
    /// The victim's main port is blocked: its heart beats on while it hears nothing of the directory.
    BlockMain(Victim, Duration),
    /// The hearts of these two cannot hear each other.
    BlockHearts(usize, usize, Duration),
    /// Every link is worse.
    Degrade(u64, Duration),
    /// The victim's disk is slow.
    SlowDisk(Victim, Duration),
    /// The victim's disk does not answer.
    StallDisk(Victim, Duration),
    /// Calls for one child all at once, more than its mailbox holds.
    Flood(u64),
    /// A running child dies.
    ChildDies,
    /// A running child never answers its next call.
    ChildHangs,
    /// A dedicated unit's child dies again and again for this long.
    CrashLoop(Duration),
    /// An operator drains a node for this long.
    Drain(usize, Duration),
    /// An operator sets another TTL.
    SetTtl(Ttl),
    /// An operator splits, merges or excepts.
    Reshape(u64),
    /// An operator moves a unit.
    Move(u64),
    /// An operator rolls a child back.
    RollBack,
}

impl Scenario {
    /// The scenario of a seed.
    pub fn new(seed: u64) -> Scenario {
        let mut rng = Rng::new(seed, "scenario");
        let count = rng.between(3, 7) as usize;
        let voters = if count >= 5 && rng.chance(500) { 5 } else { 3 };
        // With three or four nodes a witness leaves two or three that work.
        let witness = rng.chance(300);
        let nodes: Vec<NodePlan> = (0..count)
            .map(|nth| NodePlan {
                votes: nth < voters,
                works: !(witness && nth == 0),
                drift_ppm: rng.between(0, 18_000) as i64 - 9_000,
                zone: (nth % 3) as u8,
            })
            .collect();
        let ttl = [Ttl::LAN, Ttl::from_millis(1_000), Ttl::DEFAULT][rng.below(3) as usize];
        let groups = [Group::OneForOne, Group::OneForAll, Group::RestForOne];
        let first = rng.below(3) as usize;
        let groups = groups[first..]
            .iter()
            .take(rng.between(1, 2) as usize)
            .copied()
            .collect();
        let mut scenario = Scenario {
            seed,
            nodes,
            ttl,
            shards: rng.between(1, 3) as u16,
            light: rng.between(3, 7) as usize,
            groups,
            clients: rng.between(2, 4) as usize,
            poison: None,
            faults: Vec::new(),
            calm: True::secs(85),
            last_call: True::secs(108),
            end: True::secs(120),
        };
        if rng.chance(120) {
            let from = rng.between(8, 40);
            scenario.poison = Some((True::secs(from), True::secs(from + 25)));
        }
        scenario.draw_faults(&mut rng);
        scenario.draw_plot(&mut Rng::new(seed, "plot"));
        scenario.faults.sort_by_key(|(at, _)| *at);
        scenario
    }

    /// The runs that some rules are there for need several faults in one order, which chance hardly
    /// ever draws: half of the seeds get one of them beside their own faults. Each is within what is
    /// promised: one disk is lost or damaged at a time.
    fn draw_plot(&mut self, rng: &mut Rng) {
        if rng.chance(60) {
            let at = True::secs(rng.between(10, 70));
            self.faults.push((at, Fault::Flood(rng.between(280, 500))));
        }
        if !rng.chance(500) {
            return;
        }
        let ms = Duration::from_millis;
        let begins = True::secs(12).after(rng.span(ms(0), ms(40_000)));
        let some = |rng: &mut Rng, low, high| ms(rng.between(low, high));
        let voters = self.nodes.iter().filter(|node| node.votes).count();
        let plot = match rng.below(7) {
            // L2: promises that are long on their way, then silence, twice.
            0 | 1 => vec![
                (ms(0), Fault::SetTtl(Ttl::LAN)),
                (ms(500), Fault::Degrade(3, ms(12_000))),
                (
                    some(rng, 1_500, 3_500),
                    Fault::BlockHeart(Victim::Owner, ms(2_500)),
                ),
                (
                    some(rng, 6_500, 8_500),
                    Fault::BlockHeart(Victim::Owner, ms(2_500)),
                ),
            ],
            // L3: the TTL gets shorter, and an owner does not hear of it.
            2 => vec![
                (ms(0), Fault::SetTtl(Ttl::WAN)),
                (ms(5_000), Fault::BlockMain(Victim::Owner, ms(6_000))),
                (ms(5_050), Fault::SetTtl(Ttl::LAN)),
            ],
            // L8: an owner's lease rests on a voter that has lost its disk and comes back as another,
            // and on one that is not asked; the third never promised.
            3 | 4 if voters == 3 && self.nodes.len() > 3 => {
                let (lost, deaf) = [(0, 1), (1, 2), (2, 0)][rng.below(3) as usize];
                let silence = some(rng, 7_000, 9_000);
                vec![
                    (ms(0), Fault::SetTtl(Ttl::DEFAULT)),
                    (ms(2_000), Fault::BlockHearts(3, deaf, ms(30_000))),
                    (silence, Fault::LoseDisk(Victim::Node(lost), ms(150))),
                    (silence, Fault::Isolate(Victim::Node(3), ms(5_000))),
                ]
            }
            // R6: all but one of a set go away, and before another is complete the last one's disk dies.
            4 | 5 => vec![
                (ms(0), Fault::Crash(Victim::Member(1), ms(6_000))),
                (ms(0), Fault::Crash(Victim::Member(2), ms(6_000))),
                (
                    some(rng, 350, 900),
                    Fault::LoseDisk(Victim::Member(0), ms(1_000)),
                ),
            ],
            // R8: a store whose last record is damaged is the first of its set to come back.
            _ => vec![
                (ms(0), Fault::DamageLast(Victim::Member(0), ms(100))),
                (ms(0), Fault::Crash(Victim::Member(1), ms(9_000))),
                (ms(0), Fault::Crash(Victim::Member(2), ms(9_000))),
            ],
        };
        let plot = plot.into_iter();
        self.faults
            .extend(plot.map(|(after, fault)| (begins.after(after), fault)));
    }

    fn draw_faults(&mut self, rng: &mut Rng) {
        let mut at = True::secs(4).after(rng.span(Duration::ZERO, Duration::from_secs(6)));
        // Some seeds are crowded, most are not.
        let (least, most) = if rng.chance(250) {
            (100, 4_000)
        } else {
            (2_000, 20_000)
        };
        while at < True::secs(78) || self.faults.len() < 3 {
            let fault = self.draw_fault(rng);
            self.faults.push((at, fault));
            at = at.after(rng.span(Duration::from_millis(least), Duration::from_millis(most)));
            if at >= True::secs(80) {
                at = True::secs(79);
                if self.faults.len() >= 3 {
                    break;
                }
            }
        }
    }

    fn draw_fault(&self, rng: &mut Rng) -> Fault {
        let count = self.nodes.len();
        let victim = match rng.below(4) {
            0 => Victim::Leader,
            1 => Victim::Owner,
            _ => Victim::Node(rng.below(count as u64) as usize),
        };
        let ms = |rng: &mut Rng, low, high| Duration::from_millis(rng.between(low, high));
        let mut some: Vec<usize> = (0..count).collect();
        rng.shuffle(&mut some);
        some.truncate(rng.between(1, count as u64 - 1) as usize);
        match rng.below(100) {
            0..12 => Fault::Kill(victim, ms(rng, 50, 5_000)),
            12..18 => Fault::Crash(victim, ms(rng, 200, 12_000)),
            18..25 => Fault::LoseDisk(victim, ms(rng, 200, 6_000)),
            25..29 => Fault::DamageLast(victim, ms(rng, 100, 3_000)),
            29..32 => Fault::Scrub(victim),
            32..34 => Fault::PowerLoss(ms(rng, 100, 3_000)),
            34..40 => Fault::Stop(victim, ms(rng, 100, 10_000)),
            40..43 => Fault::Freeze(victim, ms(rng, 100, 10_000)),
            43..45 => Fault::FreezeClock(victim, ms(rng, 500, 8_000)),
            45..47 => Fault::Hang(victim, ms(rng, 500, 6_000)),
            47..53 => Fault::Split(some, ms(rng, 300, 12_000)),
            53..56 => Fault::OneWay(some, ms(rng, 300, 10_000)),
            56..58 => Fault::Bridge(rng.below(count as u64) as usize, some, ms(rng, 300, 10_000)),
            58..64 => Fault::Isolate(victim, ms(rng, 200, 10_000)),
            64..66 => Fault::BlockHeart(victim, ms(rng, 300, 10_000)),
            66..70 => Fault::Degrade(rng.between(0, 3), ms(rng, 500, 10_000)),
            70..74 => Fault::SlowDisk(victim, ms(rng, 500, 10_000)),
            74..78 => Fault::StallDisk(victim, ms(rng, 200, 8_000)),
            78..81 => Fault::ChildDies,
            81..83 => Fault::ChildHangs,
            83..85 => Fault::CrashLoop(ms(rng, 1_000, 9_000)),
            85..88 => Fault::Drain(rng.below(count as u64) as usize, ms(rng, 1_000, 10_000)),
            88..91 => {
                let ttls = [Ttl::LAN, Ttl::from_millis(1_000), Ttl::DEFAULT, Ttl::WAN];
                Fault::SetTtl(rng.pick(&ttls).expect("there are four"))
            }
            91..95 => Fault::Reshape(rng.draw()),
            95..98 => Fault::Move(rng.draw()),
            _ => Fault::RollBack,
        }
    }
}

/// How bad a degraded network is.
pub fn quality(degree: u64) -> Quality {
    let ms = Duration::from_millis;
    match degree {
        0 => Quality {
            loss_permille: 100,
            double_permille: 100,
            late_permille: 100,
            ..Quality::GOOD
        },
        1 => Quality {
            delay: (ms(5), ms(60)),
            loss_permille: 20,
            double_permille: 20,
            late_permille: 50,
        },
        2 => Quality {
            delay: (ms(1), ms(10)),
            loss_permille: 300,
            double_permille: 200,
            late_permille: 200,
        },
        _ => Quality {
            delay: (ms(40), ms(110)),
            loss_permille: 5,
            double_permille: 5,
            late_permille: 10,
        },
    }
}
