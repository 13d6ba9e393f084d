//! One failover told in words: what happens to a cluster, and what the cluster does about it.
//!
//! Owns: the story's scenario, what of a run is worth a sentence, and how it looks. It watches the
//! world between its steps and never interferes: the sentences are read off the directory, not assumed.
//!
//! ```text
//!   Scenario by hand ──> World::step ──> what has changed since the last step ──> a sentence
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use understudy_protocol::cluster::directory::UnitEntry;
use understudy_protocol::id::{ChildId, Epoch, IncarnationId, LogId, NodeId, StoreId, UnitId};
use understudy_protocol::wire::heart::Ttl;
use understudy_protocol::wire::replica::Scope;
use understudy_sim::clock::True;
use understudy_sim::cover::Path;
use understudy_sim::scenario::{Fault, Group, NodePlan, Scenario, Victim};
use understudy_sim::world::World;

/// Tells the story of `seed`; true when every invariant held.
pub(crate) fn tell(seed: u64) -> io::Result<bool> {
    let scenario = scenario(seed);
    let faults = scenario.faults.clone();
    let mut world = World::new(scenario, None);
    let mut teller = Teller::new(faults);
    teller.open(seed)?;
    while world.step() {
        teller.watch(&world)?;
    }
    teller.close(&mut world, seed)
}

/// Three nodes on one switch, the `lan` preset, four clients; three faults, twelve seconds apart.
fn scenario(seed: u64) -> Scenario {
    let node = |(zone, drift_ppm)| NodePlan {
        votes: true,
        works: true,
        drift_ppm,
        zone,
    };
    let secs = Duration::from_secs;
    Scenario {
        seed,
        nodes: [(0, 3_000), (1, -4_000), (2, 1_000)].map(node).to_vec(),
        ttl: Ttl::LAN,
        shards: 3,
        light: 6,
        groups: vec![Group::OneForOne],
        clients: 4,
        poison: None,
        faults: vec![
            (True::secs(10), Fault::Kill(Victim::Owner, secs(5))),
            (True::secs(22), Fault::LoseDisk(Victim::Leader, secs(2))),
            (True::secs(34), Fault::Stop(Victim::Owner, secs(5))),
        ],
        calm: True::secs(42),
        last_call: True::secs(44),
        end: True::secs(45),
    }
}

struct Teller {
    out: io::Stdout,
    colour: bool,
    faults: Vec<(True, Fault)>,
    seen: Seen,
    begun: bool,
    episodes: Vec<Episode>,
}

/// What the last step left.
#[derive(Default)]
struct Seen {
    applied: LogId,
    leader: Option<NodeId>,
    faults: u64,
    answered: u64,
    lost: usize,
    notes: u64,
    warden_kills: u64,
    lapses: u64,
}

/// One fault and what became of it.
struct Episode {
    name: &'static str,
    is_stop: bool,
    at: Duration,
    victim: NodeId,
    incarnation: Option<IncarnationId>,
    store: Option<StoreId>,
    /// What the victim owned, and at which epoch.
    units: BTreeMap<UnitId, Epoch>,
    /// What was told of each child before.
    told: BTreeMap<ChildId, u64>,
    expelled: bool,
    over: Option<Duration>,
    granted: BTreeSet<UnitId>,
    granted_at: Option<Duration>,
    serving_at: Option<Duration>,
    answered_at: Option<Duration>,
    back: bool,
    whole: bool,
}

#[derive(Clone, Copy)]
enum Tone {
    Plain,
    Bad,
    Good,
}

impl Teller {
    fn new(faults: Vec<(True, Fault)>) -> Teller {
        let colour = io::stdout().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Teller {
            out: io::stdout(),
            colour,
            faults,
            seen: Seen::default(),
            begun: false,
            episodes: Vec::new(),
        }
    }

    fn open(&mut self, seed: u64) -> io::Result<()> {
        writeln!(
            self.out,
            "A failover, simulated (seed {seed}). The decisions are those that real nodes will make; their network,"
        )?;
        writeln!(
            self.out,
            "disks, clocks and clients are simulated here. Real nodes come next."
        )?;
        writeln!(self.out)?;
        writeln!(self.out, "  virtual time")
    }

    fn say(&mut self, at: Duration, tone: Tone, text: &str) -> io::Result<()> {
        let (on, off) = match (self.colour, tone) {
            (false, _) | (_, Tone::Plain) => ("", ""),
            (_, Tone::Bad) => ("\x1b[1;31m", "\x1b[0m"),
            (_, Tone::Good) => ("\x1b[32m", "\x1b[0m"),
        };
        let mut lead = format!("{:>9.3} s", at.as_secs_f64());
        for line in wrapped(text) {
            writeln!(self.out, "{lead}  {on}{line}{off}")?;
            lead = " ".repeat(lead.len());
        }
        Ok(())
    }

    /// Says what the last step has changed.
    fn watch(&mut self, world: &World) -> io::Result<()> {
        let leader = world.leading();
        if leader != self.seen.leader {
            self.seen.leader = leader;
            if let Some(leader) = leader {
                self.say(
                    world.now(),
                    Tone::Plain,
                    &format!("{leader} leads the directory"),
                )?;
            }
        }
        let applied = world.judge.truth.applied();
        if applied != self.seen.applied {
            self.seen.applied = applied;
            if self.begun {
                self.directory_changed(world)?;
            } else {
                self.begin(world)?;
            }
        }
        let figures = world.figures();
        if figures.faults != self.seen.faults {
            self.seen.faults = figures.faults;
            self.struck(world)?;
        }
        self.helpers_killed(world)?;
        if figures.answered != self.seen.answered {
            self.seen.answered = figures.answered;
            self.answered(world)?;
        }
        Ok(())
    }

    /// Once every unit is served for the first time: who owns what.
    fn begin(&mut self, world: &World) -> io::Result<()> {
        let truth = &world.judge.truth;
        let units = truth.units();
        let serving = |unit: &UnitEntry| unit.owner.is_some_and(|owner| owner.serving);
        if units.len() < 5 || !units.values().all(serving) {
            return Ok(());
        }
        self.begun = true;
        for node in truth.nodes().keys() {
            let owned = units
                .iter()
                .filter(|(_, unit)| unit.owner.is_some_and(|owner| owner.node == *node));
            let owned: Vec<String> = owned
                .map(|(id, unit)| format!("{id} ({})", scope(&unit.scope)))
                .collect();
            if !owned.is_empty() {
                self.say(
                    world.now(),
                    Tone::Plain,
                    &format!("{node} owns {}", listed(&owned)),
                )?;
            }
        }
        let text = format!(
            "four clients call; an answer waits until its record is flushed on all {} replicas",
            units.values().map(|unit| unit.set.len()).min().unwrap_or(0)
        );
        self.say(world.now(), Tone::Plain, &text)
    }

    fn struck(&mut self, world: &World) -> io::Result<()> {
        let truth = &world.judge.truth;
        let nth = self.episodes.len();
        let (Some((_, fault)), Some(victim)) = (self.faults.get(nth).cloned(), world.last_victim())
        else {
            return Ok(());
        };
        let owned = truth
            .units()
            .iter()
            .filter(|(_, unit)| unit.owner.is_some_and(|owner| owner.node == victim));
        let units: BTreeMap<UnitId, Epoch> = owned.map(|(id, unit)| (*id, unit.epoch)).collect();
        let children = world.judge.acked_children();
        let records: u64 = children
            .iter()
            .map(|child| world.judge.acked(child).seq.0)
            .sum();
        let what = format!(
            "so far {} calls are answered and {records} records of {} children acknowledged",
            world.figures().answered,
            children.len()
        );
        writeln!(self.out)?;
        self.say(world.now(), Tone::Plain, &what)?;
        let lost =
            world.judge.lost.len() > std::mem::replace(&mut self.seen.lost, world.judge.lost.len());
        let names: Vec<String> = units.keys().map(ToString::to_string).collect();
        let owner = if names.is_empty() {
            "which owns nothing".into()
        } else {
            format!("the owner of {}", listed(&names))
        };
        let is_stop = matches!(fault, Fault::Stop(..));
        let (name, text) = match fault {
            Fault::Kill(..) => (
                "SIGKILL of an owner",
                format!("SIGKILL: {victim}, {owner}; its warden lives"),
            ),
            Fault::LoseDisk(..) if lost => (
                "a machine lost, disk included",
                format!("LOST: {victim}, the directory's leader and {owner}: power and disk"),
            ),
            Fault::LoseDisk(..) => (
                "a machine lost (withheld)",
                format!(
                    "{victim} was to lose its disk: withheld, the last loss is still being mended"
                ),
            ),
            _ => (
                "SIGSTOP of an owner, 5 s",
                format!("SIGSTOP: {victim}, {owner}, for 5 s"),
            ),
        };
        self.say(world.now(), Tone::Bad, &text)?;
        let entry = truth.nodes().get(&victim);
        let told = children.into_iter().filter(|child| {
            truth
                .unit_of(child)
                .is_some_and(|unit| units.contains_key(&unit))
        });
        let told = told
            .map(|child| (child.clone(), world.judge.replied_value(&child)))
            .collect();
        self.episodes.push(Episode {
            name,
            is_stop,
            at: world.now(),
            victim,
            incarnation: entry.and_then(|entry| entry.incarnation),
            store: entry.map(|entry| entry.store).filter(|_| lost),
            units,
            told,
            expelled: false,
            over: None,
            granted: BTreeSet::new(),
            granted_at: None,
            serving_at: None,
            answered_at: None,
            back: false,
            whole: false,
        });
        self.seen.lapses = world.judge.coverage.count(Path::Lapsed);
        self.seen.warden_kills = world.judge.coverage.count(Path::WardenKilled);
        Ok(())
    }

    /// What the warden of a stopped process does, and the process when it wakes.
    fn helpers_killed(&mut self, world: &World) -> io::Result<()> {
        let kills = world.judge.coverage.count(Path::WardenKilled);
        let lapses = world.judge.coverage.count(Path::Lapsed);
        let first_kill = self.seen.warden_kills < kills;
        let first_lapse = self.seen.lapses < lapses;
        let stopped = self.episodes.last().filter(|episode| episode.is_stop);
        let Some(victim) = stopped.map(|episode| episode.victim) else {
            return Ok(());
        };
        if first_kill && self.seen.warden_kills != u64::MAX {
            self.seen.warden_kills = u64::MAX;
            let text = format!(
                "the warden of {victim} kills its children: the lease is over, stopped or not"
            );
            self.say(world.now(), Tone::Plain, &text)?;
        }
        if first_lapse && self.seen.lapses != u64::MAX {
            self.seen.lapses = u64::MAX;
            let text =
                format!("{victim} wakes, finds its lease over and ends itself without a word");
            self.say(world.now(), Tone::Plain, &text)?;
        }
        Ok(())
    }

    fn directory_changed(&mut self, world: &World) -> io::Result<()> {
        let notes = world.judge.coverage.count(Path::DeathNote);
        let by_note = notes > std::mem::replace(&mut self.seen.notes, notes);
        let Some(mut episode) = self.episodes.pop() else {
            return Ok(());
        };
        let said = self.follow(world, &mut episode, by_note);
        self.episodes.push(episode);
        said
    }

    /// From the loss of the victim's lease to its units being served elsewhere, and its return.
    fn follow(&mut self, world: &World, episode: &mut Episode, by_note: bool) -> io::Result<()> {
        let truth = &world.judge.truth;
        let now = world.now();
        let victim = episode.victim;
        let entry = episode
            .incarnation
            .and_then(|incarnation| truth.incarnations().get(&incarnation));
        if !episode.expelled && entry.is_some_and(|entry| entry.expelled.is_some()) {
            episode.expelled = true;
            self.say(
                now,
                Tone::Plain,
                &format!("expelled: a majority of voters holds no promise to {victim}"),
            )?;
        }
        if episode.over.is_none() && entry.is_none() {
            episode.over = Some(now);
            let how = if by_note {
                format!(
                    "death note: the warden of {victim} proves the process dead; all promises end"
                )
            } else {
                format!("a majority reports its promises to {victim} over")
            };
            self.say(now, Tone::Plain, &how)?;
        }
        let mut grants: BTreeMap<(NodeId, Epoch), Vec<String>> = BTreeMap::new();
        for (unit, epoch) in &episode.units {
            let Some(entry) = truth.unit(*unit) else {
                continue;
            };
            if let Some(owner) = entry.owner
                && entry.epoch > *epoch
                && episode.granted.insert(*unit)
            {
                let granted = grants.entry((owner.node, entry.epoch)).or_default();
                granted.push(unit.to_string());
            }
        }
        for ((node, epoch), units) in grants {
            episode.granted_at.get_or_insert(now);
            self.say(
                now,
                Tone::Plain,
                &format!("{} granted to {node} at epoch {}", listed(&units), epoch.0),
            )?;
        }
        let serves = |(unit, epoch): (&UnitId, &Epoch)| {
            truth.unit(*unit).is_some_and(|entry| {
                entry.epoch > *epoch && entry.owner.is_some_and(|owner| owner.serving)
            })
        };
        if episode.serving_at.is_none()
            && !episode.units.is_empty()
            && episode.units.iter().all(serves)
        {
            episode.serving_at = Some(now);
            let took = millis(now - episode.at);
            let text = format!(
                "sealed, longest log taken, tail on the whole set: all serve, {took} after the fault"
            );
            self.say(now, Tone::Good, &text)?;
        }
        self.comes_back(world, episode)
    }

    fn comes_back(&mut self, world: &World, episode: &mut Episode) -> io::Result<()> {
        let truth = &world.judge.truth;
        let Some(entry) = truth.nodes().get(&episode.victim) else {
            return Ok(());
        };
        let fresh = entry
            .incarnation
            .filter(|incarnation| Some(*incarnation) != episode.incarnation);
        if !episode.back && episode.over.is_some() && fresh.is_some() {
            episode.back = true;
            let text = match episode.store {
                Some(_) => format!(
                    "{} is back with an empty disk, as a store that was nobody before",
                    episode.victim
                ),
                None => format!("{} is back, as a new incarnation", episode.victim),
            };
            self.say(world.now(), Tone::Plain, &text)?;
        }
        let voters = truth.voters();
        let votes = voters.outgoing.is_none() && voters.current.contains(&entry.store);
        let whole = truth.units().values().all(|unit| {
            unit.set.len() >= truth.wanted_replicas() && unit.set.contains(&entry.store)
        });
        if episode.back && !episode.whole && votes && whole {
            episode.whole = true;
            let text = match episode.store {
                Some(_) => format!(
                    "{} has copied every record and votes: all sets are whole again",
                    episode.victim
                ),
                None => "all replica sets are whole again".into(),
            };
            self.say(world.now(), Tone::Good, &text)?;
        }
        Ok(())
    }

    fn answered(&mut self, world: &World) -> io::Result<()> {
        let Some((child, value)) = world.last_answer() else {
            return Ok(());
        };
        let truth = &world.judge.truth;
        let Some(unit) = truth.unit_of(child) else {
            return Ok(());
        };
        let epoch = truth.unit(unit).map(|entry| entry.epoch);
        let Some(episode) = self.episodes.last_mut() else {
            return Ok(());
        };
        let elsewhere = episode
            .units
            .get(&unit)
            .is_some_and(|before| epoch > Some(*before));
        if episode.answered_at.is_some() || !elsewhere {
            return Ok(());
        }
        episode.answered_at = Some(world.now());
        let before = episode.told.get(child).copied().unwrap_or(0);
        let took = millis(world.now() - episode.at);
        let text = format!(
            "first answer: {child} counts {value} operations ({before} told before), after {took}"
        );
        self.say(world.now(), Tone::Good, &text)
    }

    fn close(&mut self, world: &mut World, seed: u64) -> io::Result<bool> {
        let out = &mut self.out;
        let cell =
            |from: Duration, at: Option<Duration>| at.map_or("-".into(), |at| millis(at - from));
        writeln!(out)?;
        writeln!(
            out,
            "{:<32} {:>14} {:>10} {:>10} {:>15}",
            "fault", "promises over", "granted", "serving", "first answer"
        )?;
        for episode in &self.episodes {
            let [over, granted, serving, answered] = [
                episode.over,
                episode.granted_at,
                episode.serving_at,
                episode.answered_at,
            ]
            .map(|at| cell(episode.at, at));
            writeln!(
                out,
                "{:<32} {over:>14} {granted:>10} {serving:>10} {answered:>15}",
                episode.name
            )?;
        }
        writeln!(out)?;
        let replay = format!("cargo run -p understudy-sim -- --story --seed {seed}");
        if let Some(violation) = world.judge.violation.take() {
            writeln!(
                out,
                "Did not hold: {}: {}\n  {replay}",
                violation.invariant, violation.what
            )?;
            return Ok(false);
        }
        let figures = world.figures();
        let children = world.judge.acked_children();
        let records: u64 = children
            .iter()
            .map(|child| world.judge.acked(child).seq.0)
            .sum();
        writeln!(
            out,
            "Held after each of {} steps: one owner a unit, no acknowledged record lost, no answer without\n\
             a lease. {} calls answered, {records} records acknowledged, every acknowledged operation exactly once.",
            figures.steps, figures.answered
        )?;
        writeln!(out, "Again, step for step: {replay}")?;
        Ok(true)
    }
}

fn scope(scope: &Scope) -> String {
    match scope {
        Scope::Slots { range, .. } => format!(
            "slots {}-{}",
            range.start(),
            range.start() + range.len() - 1
        ),
        Scope::Child(child) => child.to_string(),
    }
}

fn listed(names: &[String]) -> String {
    match names {
        [] => "nothing".into(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

/// Cut at spaces, so that a line with its time is no longer than a hundred columns.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is at least one");
        if !line.is_empty() && line.len() + 1 + word.len() > TEXT_WIDTH {
            lines.push(format!("  {word}"));
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// A hundred columns less the time before it.
const TEXT_WIDTH: usize = 87;

fn millis(span: Duration) -> String {
    format!("{} ms", span.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_sentence_is_cut_at_a_space() {
        assert_eq!(wrapped("short"), ["short"]);
        let long = format!("{} end", "a".repeat(TEXT_WIDTH - 2));
        assert_eq!(wrapped(&long), ["a".repeat(TEXT_WIDTH - 2), "  end".into()]);
    }
}
