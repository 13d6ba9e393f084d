//! How far one peer is, as its leader knows, and what to send it next.
//!
//! Owns: back-off and the window of entries under way. Never does: sending, or counting copies.
//!
//! A peer is *probed* until it answers (one append at a time, from where it may agree), then entries
//! stream to it without waiting. No timer guards an append: each heartbeat names the last entry sent,
//! and a peer that missed one answers with a conflict, which starts a probe.

use std::time::Duration;

use understudy_protocol::id::{LogId, LogIndex, Term};
use understudy_protocol::time::Time;

use super::Message;
use super::log::Log;

/// The most entries in one append: a few microseconds of work for its receiver, so that a heartbeat
/// is never stuck behind one.
pub const APPEND_ENTRIES_MAX: usize = 64;

/// The most entries sent to one peer and not yet acknowledged: four full appends cover a round trip,
/// and a peer whose disk stalls holds no more than these unflushed.
pub const WINDOW_ENTRIES_MAX: u64 = 4 * APPEND_ENTRIES_MAX as u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Mode {
    /// Finding where the logs agree. `sent`: an append is under way; the next waits for its answer
    /// or for a heartbeat's.
    Probe { sent: bool },
    /// The peer agreed; entries go out as they come.
    Stream,
}

/// How far one peer is, as its leader knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Progress {
    /// It holds the log up to here, flushed.
    pub(super) matched: LogIndex,
    /// The next entry to send.
    next: LogIndex,
    mode: Mode,
    snapshot_sent_at: Option<Time>,
    pub(super) heard_at: Time,
}

/// What appends are made from.
pub(super) struct Source<'a, T> {
    pub(super) now: Time,
    pub(super) term: Term,
    pub(super) commit: LogIndex,
    pub(super) log: &'a Log<T>,
    /// How long an unanswered snapshot is waited for before it is sent again.
    pub(super) snapshot_patience: Duration,
}

impl Progress {
    pub(super) fn new(now: Time, next: LogIndex) -> Progress {
        Progress {
            matched: LogIndex::ZERO,
            next,
            mode: Mode::Probe { sent: false },
            snapshot_sent_at: None,
            heard_at: now,
        }
    }

    /// The next append or snapshot, if there is something to send and the window has room.
    pub(super) fn next_message<T>(&mut self, source: &Source<'_, T>) -> Option<Message<T>> {
        let log = source.log;
        if self.next > log.last().index {
            return None;
        }
        let Some(prev) = log.id_at(LogIndex(self.next.0 - 1)) else {
            return self.snapshot(source);
        };
        let under_way = self.next.0 - 1 - self.matched.0;
        match self.mode {
            Mode::Probe { sent: true } => return None,
            Mode::Stream if under_way >= WINDOW_ENTRIES_MAX => return None,
            _ => {}
        }
        let entries: Vec<_> = log
            .from(self.next)
            .take(APPEND_ENTRIES_MAX)
            .cloned()
            .collect();
        match &mut self.mode {
            Mode::Probe { sent } => *sent = true,
            Mode::Stream => self.next = LogIndex(self.next.0 + entries.len() as u64),
        }
        Some(Message::Append {
            term: source.term,
            prev,
            entries,
            commit: source.commit,
        })
    }

    /// An append without entries that asks whether all that was sent has come.
    pub(super) fn heartbeat<T>(&self, source: &Source<'_, T>) -> Message<T> {
        let log = source.log;
        let prev = log
            .id_at(LogIndex(self.next.0 - 1))
            .unwrap_or_else(|| log.start());
        empty_append(source, prev)
    }

    /// An append without entries that tells the commit index and cannot conflict.
    pub(super) fn commit_notice<T>(&self, source: &Source<'_, T>) -> Option<Message<T>> {
        let prev = source.log.id_at(self.matched)?;
        Some(empty_append(source, prev))
    }

    /// The peer holds the log up to `matched`.
    pub(super) fn agrees(&mut self, matched: LogIndex) {
        self.matched = self.matched.max(matched);
        self.next = self.next.max(self.matched.next());
        self.mode = Mode::Stream;
    }

    /// The peer does not hold `prev`; the logs may agree before `hint`.
    pub(super) fn conflicts(&mut self, prev: LogIndex, hint: LogIndex) {
        let is_news = match self.mode {
            Mode::Stream => prev > self.matched,
            Mode::Probe { .. } => prev > self.matched && prev.next() == self.next,
        };
        if is_news {
            self.next = hint.min(prev).max(self.matched.next());
            self.mode = Mode::Probe { sent: false };
        }
    }

    fn snapshot<T>(&mut self, source: &Source<'_, T>) -> Option<Message<T>> {
        let waits = self
            .snapshot_sent_at
            .is_some_and(|at| source.now.since(at) < source.snapshot_patience);
        if waits {
            return None;
        }
        self.snapshot_sent_at = Some(source.now);
        let snapshot = source.log.snapshot();
        Some(Message::InstallSnapshot {
            term: source.term,
            snapshot: snapshot
                .expect("entries are dropped only under a snapshot")
                .clone(),
        })
    }
}

fn empty_append<T>(source: &Source<'_, T>, prev: LogId) -> Message<T> {
    Message::Append {
        term: source.term,
        prev,
        entries: Vec::new(),
        commit: source.commit,
    }
}
