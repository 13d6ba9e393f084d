//! What the machines of a simulated node were told replays to the same actions, through every fault of
//! the seed; and what was not told that way does not.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use understudy_protocol::cluster::lease::holder;
use understudy_protocol::id::NodeId;
use understudy_protocol::journal::log::{Line, LogReader, LogWriter, MachineKind};
use understudy_protocol::journal::{End, ReplayError, Sink, replay};
use understudy_sim::record::record;
use understudy_sim::run::run;
use understudy_sim::scenario::Scenario;
use understudy_sim::world::World;

const MINUTE: Duration = Duration::from_secs(60);

/// Every machine that a node of the simulator has.
const KINDS: [MachineKind; 6] = [
    MachineKind::Controller,
    MachineKind::Agent,
    MachineKind::LeaseHolder,
    MachineKind::LeaseVoter,
    MachineKind::Replica,
    MachineKind::Warden,
];

/// Replays everything that one node's machines were told in a minute of the seed: events and actions
/// of each kind, and how many logs there were.
fn check(seed: u64, node: u64) -> (BTreeMap<String, (u64, u64)>, usize) {
    let mut counts: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let logs = record(seed, NodeId(node), MINUTE);
    for (kind, bytes) in &logs {
        let replayed = replay(bytes, &mut |_| {});
        let replayed = replayed.unwrap_or_else(|why| panic!("seed {seed}, node {node}: {why}"));
        assert_eq!(replayed.machine, *kind);
        let (events, actions) = counts.entry(format!("{kind:?}")).or_default();
        (*events, *actions) = (*events + replayed.events, *actions + replayed.actions);
    }
    (counts, logs.len())
}

#[test]
fn a_minute_with_faults_replays_to_the_same_actions_for_every_machine() {
    let mut lives = 0;
    for seed in 1..=6 {
        let (counts, logs) = check(seed, 1 + seed % 3);
        lives += logs / KINDS.len();
        for kind in KINDS {
            let (events, _) = counts[&format!("{kind:?}")];
            assert!(events > 0, "seed {seed}: the {kind:?} was told nothing");
        }
        for (kind, least) in [
            ("Controller", 10),
            ("LeaseHolder", 100),
            ("LeaseVoter", 100),
        ] {
            assert!(counts[kind].1 >= least, "seed {seed}: {counts:?}");
        }
    }
    assert!(lives > 6, "nobody was ever killed");
}

#[test]
fn being_recorded_changes_nothing() {
    let mut world = World::new(Scenario::new(5), None);
    let recording = world.record(NodeId(1));
    world.run();
    assert!(world.judge.violation.is_none());
    assert_eq!(world.trace_hash(), run(5, None).trace_hash);
    let logs = recording.logs();
    assert!(logs.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() > 100_000);
    assert_eq!(record(5, NodeId(1), MINUTE), record(5, NodeId(1), MINUTE));
}

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Sink for Memory {
    fn write(&mut self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

/// The longest log of a machine in a minute of seed 3.
fn log_of(kind: MachineKind) -> Vec<u8> {
    let logs = record(3, NodeId(2), MINUTE).into_iter();
    let of_kind = logs.filter(|(of, _)| *of == kind);
    of_kind
        .map(|(_, bytes)| bytes)
        .max_by_key(Vec::len)
        .unwrap()
}

/// The log without its `nth` event: what the log of a machine with another history would be.
fn without(bytes: &[u8], nth: u64) -> Vec<u8> {
    let memory = Memory::default();
    let mut writer = LogWriter::new(Box::new(memory.clone()), u64::MAX);
    let mut reader = LogReader::new(bytes).unwrap();
    let mut seen = 0;
    while let Some(line) = reader.next_line().unwrap() {
        seen += u64::from(matches!(line, Line::Event { .. }));
        if seen != nth {
            writer.write(&line);
        }
    }
    drop(writer);
    memory.0.lock().unwrap().clone()
}

#[test]
fn a_log_that_lacks_one_event_differs_after_it() {
    for kind in KINDS {
        let bytes = log_of(kind);
        let whole = replay(&bytes, &mut |_| {}).unwrap();
        let mut differ = 0;
        let step = (whole.events / 20).max(1);
        for nth in (1..=whole.events).step_by(step as usize) {
            match replay(&without(&bytes, nth), &mut |_| {}) {
                Err(ReplayError::Difference(difference)) => {
                    assert!(difference.number >= nth.saturating_sub(1), "{difference}");
                    differ += 1;
                }
                // What was refused, or changed nothing in the end, is not missed.
                Ok(replayed) => assert_eq!(replayed.events, whole.events - 1),
                Err(other) => panic!("{kind:?}, event {nth}: {other}"),
            }
        }
        assert!(differ > 0, "{kind:?}: every event can be left out");
    }
}

#[test]
fn a_flipped_byte_of_a_real_log_is_noticed() {
    let bytes = log_of(MachineKind::LeaseVoter);
    for at in (0..bytes.len())
        .step_by(97)
        .chain(bytes.len() - 64..bytes.len())
    {
        let mut hurt = bytes.clone();
        hurt[at] ^= 0x10;
        let refused = replay(&hurt, &mut |_| {});
        let unreadable = matches!(refused, Err(ReplayError::Unreadable(_)));
        assert!(unreadable, "byte {at}: {refused:?}");
    }
}

fn sim(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_understudy-sim"));
    command.args(arguments).output().unwrap()
}

/// Replays a file with these bytes as somebody would; gives the exit code and what was printed.
fn replayed(name: &str, bytes: &[u8]) -> (Option<i32>, String) {
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&file, bytes).unwrap();
    let output = sim(&["--replay", file.to_str().unwrap()]);
    let printed = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), printed)
}

#[test]
fn the_command_line_says_how_a_replay_went() {
    let mut bytes = log_of(MachineKind::LeaseHolder);
    // As a node that is still running, or was killed, leaves it.
    let whole = replay(&bytes, &mut |_| {}).unwrap();
    let told = format!(
        "LeaseHolder: {} events, {} actions, all equal",
        whole.events, whole.actions
    );
    let (code, printed) = replayed("whole.log", &bytes);
    assert!(code == Some(0) && printed.starts_with(&told), "{printed}");

    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("whole.log");
    let traced = sim(&["--trace", "--replay", file.to_str().unwrap()]).stdout;
    let traced = String::from_utf8(traced).unwrap();
    let lines = whole.events + whole.actions + 1;
    assert_eq!(traced.lines().count() as u64, lines);

    let (code, printed) = replayed("altered.log", &without(&bytes, 2));
    assert_eq!(code, Some(1), "{printed}");
    assert!(
        printed.contains("the LeaseHolder differs after event"),
        "{printed}"
    );

    bytes.truncate(bytes.len() - 30);
    let (code, printed) = replayed("cut.log", &bytes);
    assert_eq!(code, Some(0), "{printed}");
    assert!(printed.contains("cut inside the line at byte"), "{printed}");

    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let (code, printed) = replayed("damaged.log", &bytes);
    assert_eq!(code, Some(1), "{printed}");
    assert!(printed.contains("the log is damaged at byte"), "{printed}");

    let (code, printed) = replayed("none.log", b"not a log");
    assert_eq!(code, Some(1), "{printed}");
    assert!(printed.contains("this is no event log"), "{printed}");
    let output = sim(&["--replay", "/nowhere/at.all"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn what_a_log_holds_can_be_read_without_replaying_it() {
    let bytes = log_of(MachineKind::LeaseHolder);
    let mut reader = LogReader::new(&bytes).unwrap();
    let mut ticks = 0;
    while let Some(line) = reader.next_line().unwrap() {
        if let Line::Event { event, .. } = line {
            let event: holder::Event = minicbor::decode(event).unwrap();
            ticks += u64::from(event == holder::Event::Tick);
        }
    }
    assert!(ticks > 100, "{ticks}");
    assert_ne!(replay(&bytes, &mut |_| {}).unwrap().end, End::Full);
}
