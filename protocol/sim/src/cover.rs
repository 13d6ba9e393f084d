//! "Sometimes" assertions: rare paths that a thousand seeds must have reached.
//!
//! Owns: their names and counts. Never fails a seed: one run need not reach any of them.

use std::fmt;

macro_rules! paths {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A path that must sometimes be taken.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Path { $($(#[$doc])* #[doc = $text] $name,)* }

        impl Path {
            /// Every path.
            pub const ALL: &'static [Path] = &[$(Path::$name,)*];
        }

        impl fmt::Display for Path {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Path::$name => $text,)* })
            }
        }
    };
}

paths! {
    LeaderWithPromises = "a new leader with promises outstanding",
    UnackedTail = "a takeover with an unacknowledged tail",
    NewStoreId = "a store that came back under a new id joined a replica set",
    DuplicateAnswered = "a duplicate answered from the table",
    KeyConflict = "a key used again for another request",
    Quarantine = "a unit quarantined after three strikes",
    Pardon = "a quarantined unit pardoned and served again",
    DeathNote = "a death note ended promises",
    ReportsOver = "a majority of reports ended promises",
    LagExpelled = "an incarnation expelled while its promises stood",
    WardenKilled = "a warden killed the helpers of a node that was stopped",
    Lapsed = "a lease lapsed and the node ended itself",
    Aborted = "a heart aborted its process over a silent main runtime",
    Grown = "a replica set grown",
    Shrunk = "a replica set shrunk",
    Swapped = "a member swapped at min_copies",
    CutConfirmed = "a cut store confirmed whole again",
    CutHeldBack = "a takeover that waited because only cut stores were sealed",
    DamageMended = "a damaged chain mended from the owner",
    Unavailable = "a unit unavailable, and served again later",
    Split = "a shard split",
    Merged = "two shards merged",
    Excepted = "a child excepted from its shard",
    Moved = "a unit moved",
    VotersChanged = "the lease voters changed in two entries",
    TtlChanged = "the TTL changed",
    SnapshotInstalled = "a Raft snapshot installed",
    Escalated = "a supervisor gave up",
    GroupRestarted = "a group restarted with one of its members",
    Overloaded = "a call refused as overloaded",
    StaleRefused = "a stale epoch refused by a store",
    RetryAcrossFailover = "a call answered by another incarnation than it was first sent to",
    MinorityFroze = "a call that reached a node without a lease",
    Hung = "a hung child killed",
    RolledBack = "a child rolled back",
    CallsRecalled = "a child started with calls that stood in pieces",
    PiecesPulled = "a store that fetched the pieces that a record names",
    PieceFilled = "a piece filled with remembered calls",
    LateMessageAfterRestart = "a request meant for an earlier start of a store",
    PowerLoss = "every node lost power at once",
}

/// How often each path was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage(Vec<u64>);

impl Default for Coverage {
    fn default() -> Coverage {
        Coverage(vec![0; Path::ALL.len()])
    }
}

impl Coverage {
    /// The path was taken.
    pub fn reach(&mut self, path: Path) {
        self.0[path as usize] += 1;
    }

    /// How often it was taken.
    pub fn count(&self, path: Path) -> u64 {
        self.0[path as usize]
    }

    /// The paths that were never taken.
    pub fn untaken(&self) -> Vec<Path> {
        let all = Path::ALL.iter().copied();
        all.filter(|path| self.count(*path) == 0).collect()
    }

    /// A table: of `runs` runs, how many took each path.
    pub fn table(&self, runs: u64) -> String {
        let mut table = String::new();
        for path in Path::ALL {
            let count = self.count(*path);
            let mark = if count == 0 { "  never" } else { "" };
            table.push_str(&format!("{count:>7} of {runs}  {path}{mark}\n"));
        }
        table
    }

    /// Counts, for each path, one run that took it.
    pub fn add_run(&mut self, run: &Coverage) {
        for (total, count) in self.0.iter_mut().zip(&run.0) {
            *total += u64::from(*count > 0);
        }
    }
}
