//! The event logs of one simulated node, kept in memory.
//!
//! Owns: which logs there are. What a log holds is the protocol's own (`journal`), as in a real node.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use understudy_protocol::id::NodeId;
use understudy_protocol::journal::Sink;
use understudy_protocol::journal::log::MachineKind;

use crate::scenario::Scenario;
use crate::world::World;

/// The logs of one node's machines: one each, for every start of the node.
#[derive(Clone, Debug, Default)]
pub struct Recording(Arc<Mutex<Vec<(MachineKind, Memory)>>>);

/// The bytes of one log.
#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Recording {
    /// The logs so far, in the order in which they were begun.
    pub fn logs(&self) -> Vec<(MachineKind, Vec<u8>)> {
        let logs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = |log: &Memory| {
            let bytes = log.0.lock();
            bytes.unwrap_or_else(PoisonError::into_inner).clone()
        };
        logs.iter().map(|(kind, log)| (*kind, bytes(log))).collect()
    }

    /// Begins a log.
    pub(crate) fn sink(&self, kind: MachineKind) -> Box<dyn Sink> {
        let log = Memory::default();
        let mut logs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        logs.push((kind, log.clone()));
        Box::new(log)
    }
}

impl Sink for Memory {
    fn write(&mut self, bytes: &[u8]) {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.extend_from_slice(bytes);
    }
}

/// Runs a seed for that long, and hands back the event logs of one node's machines: whole ones, but
/// for those of the life that was cut short by the end of the run.
pub fn record(seed: u64, node: NodeId, until: Duration) -> Vec<(MachineKind, Vec<u8>)> {
    let mut world = World::new(Scenario::new(seed), None);
    let recording = world.record(node);
    while world.now() < until && world.step() {}
    recording.logs()
}
