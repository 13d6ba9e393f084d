//! Folders of helpers: removed once their helper has ended.
//!
//! Owns: the folders, and one thread that removes them, so that a disk which hangs delays no kill.
//! Never follows a link out of a folder (`remove_dir_all` does not).

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use understudy_protocol::cluster::lease::warden::HelperId;

/// See the module.
pub(crate) struct Scratch {
    of: BTreeMap<HelperId, PathBuf>,
    remover: Option<SyncSender<PathBuf>>,
    ended: Receiver<()>,
}

impl Scratch {
    pub(crate) fn new() -> io::Result<Scratch> {
        let (remover, orders) = sync_channel(FOLDERS_MAX);
        let (end, ended) = sync_channel(1);
        thread::Builder::new().spawn(move || {
            remove(&orders);
            let _ = end.send(());
        })?;
        Ok(Scratch {
            of: BTreeMap::new(),
            remover: Some(remover),
            ended,
        })
    }

    /// This helper has a folder.
    pub(crate) fn hold(&mut self, helper: HelperId, folder: PathBuf) {
        self.of.insert(helper, folder);
    }

    /// It has ended, or never began: its folder goes.
    pub(crate) fn drop_of(&mut self, helper: HelperId) {
        if let (Some(folder), Some(remover)) = (self.of.remove(&helper), &self.remover) {
            // Never waits for a disk: what there is no room for, the node's next start removes.
            let _ = remover.try_send(folder);
        }
    }

    /// Waits for what is still to be removed, for [`END_PATIENCE`] at most.
    pub(crate) fn finish(&mut self) {
        let helpers: Vec<HelperId> = self.of.keys().copied().collect();
        for helper in helpers {
            self.drop_of(helper);
        }
        self.remover = None;
        let _ = self.ended.recv_timeout(END_PATIENCE);
    }
}

/// Removes what is ordered. A folder in which a process that is just being killed still writes is tried
/// again; one that cannot be removed is left after a while.
fn remove(orders: &Receiver<PathBuf>) {
    let mut left: VecDeque<(PathBuf, u32)> = VecDeque::new();
    let mut is_over = false;
    while !is_over || !left.is_empty() {
        match orders.recv_timeout(if left.is_empty() { LONG } else { AGAIN }) {
            Ok(folder) => left.push_back((folder, 0)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                if is_over {
                    thread::park_timeout(AGAIN);
                }
                is_over = true;
            }
        }
        for _ in 0..left.len() {
            let Some((folder, tries)) = left.pop_front() else {
                break;
            };
            let removed = fs::remove_dir_all(&folder);
            let is_gone = matches!(&removed, Ok(()))
                || removed.is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
            if !is_gone && tries < TRIES_MAX {
                left.push_back((folder, tries + 1));
            }
        }
    }
}

/// Folders that wait to be removed: more than a node has helpers.
const FOLDERS_MAX: usize = 4_096;

/// Between two tries: a killed process is gone after some milliseconds.
const AGAIN: Duration = Duration::from_millis(20);

/// Nothing is to be done.
const LONG: Duration = Duration::from_secs(3_600);

/// Tries for one folder: two seconds, a second longer than orphans live.
const TRIES_MAX: u32 = 100;

/// What a warden that has done all else waits for its folders.
const END_PATIENCE: Duration = Duration::from_secs(5);
