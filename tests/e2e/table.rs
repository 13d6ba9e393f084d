//! The table of faults.
//!
//! Owns: for each fault, what must come of it and within which bound. The bounds are what an operator
//! may rely on (TTL 3 s: the `default` preset), doubled for a machine that builds other things
//! meanwhile; speed is for the benches. Each test prints what it saw as the row's last column.

use std::time::Duration;

/// One row: the fault, what comes of it, and within which bound.
pub(crate) struct Row {
    pub(crate) fault: &'static str,
    pub(crate) outcome: &'static str,
    pub(crate) bound: Duration,
}

/// Every row.
pub(crate) const TABLE: [Row; 21] = [
    row(
        "kill -9 of the owner of most",
        "its units are served elsewhere",
        DIED,
    ),
    row(
        "kill -9 of the leader",
        "another leads; its units are served elsewhere",
        DIED,
    ),
    row(
        "kill -9 of owner and leader in turn, ten times",
        "as above, each time",
        DIED,
    ),
    row(
        "two of three down",
        "the third serves nothing; goes on when one is back",
        LOST,
    ),
    row(
        "restart of all three",
        "everything acknowledged is there",
        RESTARTED,
    ),
    row(
        "a unit that kills its process each time it works",
        "quarantined after three strikes; the others go on",
        DIED,
    ),
    row(
        "SIGSTOP of an owner for 5 s, then SIGCONT",
        "served elsewhere; the stopped one ends itself",
        LOST,
    ),
    row(
        "SIGTERM of each in turn, callers at work",
        "drains, ends with 0; no caller is refused",
        RESTARTED,
    ),
    row(
        "SIGTERM of all three at once",
        "each ends with 0; everything acknowledged is there",
        RESTARTED,
    ),
    row(
        "an owner cut off in both directions",
        "served by the majority; the minority serves nothing",
        LOST,
    ),
    row(
        "an owner that is heard by nobody, but hears",
        "as above",
        LOST,
    ),
    row(
        "one datagram of ten lost for 30 s",
        "nobody is expelled; callers go on",
        DIED,
    ),
    row(
        "the owner's machine lost with its disk",
        "nothing acknowledged is lost; it comes back as a new store",
        LOST,
    ),
    row(
        "one damaged record",
        "the copy is mended from the others",
        MENDED,
    ),
    row(
        "one byte flipped in a store",
        "mended, or quarantined and filled as a new store",
        MENDED,
    ),
    row(
        "a store file cut short",
        "quarantined; a new store id; filled from the others",
        MENDED,
    ),
    row(
        "a disk nearly full",
        "its store leaves the sets; all goes on; back when there is room",
        LOST,
    ),
    row(
        "a disk full to the last byte",
        "its node ends; the others go on; the same store comes back",
        LOST,
    ),
    row(
        "a peer that should not be one, or babbles",
        "refused, with a word in the log; callers go on",
        DIED,
    ),
    row(
        "requests that are none",
        "a typed problem each; the node goes on",
        DIED,
    ),
    row(
        "a configuration that is none",
        "exit 2, and a word on what was meant",
        DIED,
    ),
];

/// A process died and its warden said so: no lease is waited out.
const DIED: Duration = Duration::from_secs(10);

/// A machine is lost: TTL, detection, and an election when it led; doubled.
const LOST: Duration = Duration::from_secs(15);

/// Processes start again and take their units up, a node after the other.
const RESTARTED: Duration = Duration::from_secs(30);

/// A copy is filled again, record by record.
const MENDED: Duration = Duration::from_secs(60);

const fn row(fault: &'static str, outcome: &'static str, bound: Duration) -> Row {
    Row {
        fault,
        outcome,
        bound,
    }
}

fn row_of(fault: &str) -> &'static Row {
    let row = TABLE.iter().find(|row| row.fault == fault);
    row.unwrap_or_else(|| panic!("{fault:?} is not in the table"))
}

/// How long the outcome may take.
pub(crate) fn bound(fault: &str) -> Duration {
    row_of(fault).bound
}

/// Prints what was seen, in the row's shape.
pub(crate) fn say(fault: &str, saw: impl std::fmt::Display) {
    let row = row_of(fault);
    println!(
        "{:<48} | {:<63} | {:>3} s | {saw}",
        row.fault,
        row.outcome,
        row.bound.as_secs()
    );
}

#[test]
fn every_row_is_shown_by_one_test() {
    let tests = [
        include_str!("disks.rs"),
        include_str!("faults.rs"),
        include_str!("input.rs"),
        include_str!("links.rs"),
    ];
    for row in &TABLE {
        let named = format!("\"{}\"", row.fault);
        let count: usize = tests.iter().map(|test| test.matches(&named).count()).sum();
        assert_eq!(count, 1, "tests that show {named}");
    }
}
