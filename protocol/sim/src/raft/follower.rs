//! The follower's log (3.5): taking the leader's entries and snapshots in, and acknowledging them.
//!
//! Owns: what is cut off, and what a leader is told of it. Never does: an acknowledgement of
//! anything that is not flushed.

use std::sync::Arc;

use understudy_protocol::id::{LogId, LogIndex, StoreId};
use understudy_protocol::time::Time;

use super::log::{Effect, Entry, Snapshot, Write};
use super::{Action, Message, Raft};

impl<T: Clone> Raft<T> {
    pub(super) fn append(
        &mut self,
        now: Time,
        from: StoreId,
        prev: LogId,
        mut entries: Vec<Arc<Entry<T>>>,
        commit: LogIndex,
    ) {
        // What was dropped here is committed, so the leader's log agrees with it.
        let start = self.log.start().index;
        let agrees = prev.index < start || self.log.id_at(prev.index) == Some(prev);
        if !agrees {
            let message = Message::Conflict {
                term: self.hard_state.term,
                prev: prev.index,
                hint: self.log.first_of_term_at(prev.index),
            };
            self.send_once_flushed(from, message);
            return;
        }
        let matched = LogIndex(prev.index.0 + entries.len() as u64);
        let known = entries
            .iter()
            .take_while(|e| e.id.index <= start || self.log.id_at(e.id.index) == Some(e.id))
            .count();
        let has_news = known < entries.len();
        if has_news {
            entries.drain(..known);
            self.replace_tail(now, entries);
        }
        self.commit = self.commit.max(commit.min(matched));
        self.acknowledge(from, matched.max(start), !has_news);
        self.apply_committed();
    }

    /// Cuts off what conflicts with `entries` and appends them.
    pub(super) fn replace_tail(&mut self, now: Time, entries: Vec<Arc<Entry<T>>>) {
        let from = entries[0].id.index;
        if from <= self.log.last().index {
            assert!(from > self.commit, "a committed entry is never cut off");
            self.log.truncate(from);
            self.flushes.cut(self.log.last());
            self.persist(
                now,
                Write::Truncate(from),
                LogId::default(),
                Effect::Truncated(from),
            );
        }
        for entry in &entries {
            self.log.push(entry.clone());
        }
        let write = Write::Append(entries.clone());
        self.persist(now, write, self.log.last(), Effect::Appended(entries));
    }

    pub(super) fn install(&mut self, now: Time, from: StoreId, snapshot: Arc<Snapshot>) {
        let last = snapshot.last;
        if last.index <= self.commit {
            self.acknowledge(from, last.index, true);
            return;
        }
        let is_held = self.log.id_at(last.index) == Some(last);
        if !is_held {
            // The committed part of the old log stays true; the rest counts as cut off.
            if let Some(committed) = self.log.id_at(self.commit) {
                self.flushes.cut(committed);
            }
            self.log.install(snapshot.clone());
            let write = Write::Install(snapshot.clone());
            self.persist(now, write, last, Effect::Installed(snapshot));
        }
        self.commit = last.index;
        self.acknowledge(from, last.index, is_held);
        self.apply_committed();
    }

    /// Owes `leader` an acknowledgement up to `matched`. `at_once`: nothing of it is on its way to
    /// the disk for the first time, so the leader hears now how much is flushed.
    pub(super) fn acknowledge(&mut self, leader: StoreId, matched: LogIndex, at_once: bool) {
        let matched = self.owed.map_or(matched, |(_, owed)| owed.max(matched));
        self.owed = Some((leader, matched));
        if at_once {
            self.pay();
        }
    }

    pub(super) fn pay(&mut self) {
        let Some((to, matched)) = self.owed else {
            return;
        };
        if !self.flushes.covers(self.hard_ticket) {
            return;
        }
        let flushed = matched.min(self.flushes.held().index);
        if flushed == matched {
            self.owed = None;
        }
        let message = Message::Appended {
            term: self.hard_state.term,
            matched: flushed,
        };
        self.actions.push_back(Action::Send { to, message });
    }
}
