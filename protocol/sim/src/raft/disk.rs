//! What a flush brings: promises that waited for it, and entries that may be applied.
//!
//! Owns: the way from a write to its consequences, and this member's own snapshots. Never does:
//! saying anything that an unflushed write would have to back.

use std::sync::Arc;

use bytes::Bytes;
use understudy_protocol::id::{LogId, LogIndex};
use understudy_protocol::time::Time;

use super::log::{Effect, Snapshot, Write};
use super::{Action, Raft, Refused, Role};

/// How many entries stay in the log under a snapshot, so that a follower that was away for a moment
/// catches up by entries.
pub const ENTRIES_KEPT_UNDER_SNAPSHOT: u64 = 128;

impl<T: Clone> Raft<T> {
    pub(super) fn persist(
        &mut self,
        now: Time,
        write: Write<T>,
        upto: LogId,
        effect: Effect<T>,
    ) -> u64 {
        let ticket = self.flushes.ask(now, upto, effect);
        self.actions.push_back(Action::Persist { ticket, write });
        ticket
    }

    pub(super) fn flushed(&mut self, now: Time, ticket: u64) -> Result<(), Refused> {
        if ticket > self.flushes.last_ticket() {
            return Err(Refused::UnknownTicket);
        }
        while let Some(effect) = self.flushes.flushed(ticket) {
            match effect {
                Effect::Nothing => {}
                Effect::Appended(entries) => self.actions.push_back(Action::Appended { entries }),
                Effect::Truncated(from) => self.actions.push_back(Action::Truncated { from }),
                Effect::Installed(snapshot) => self.installed(&snapshot),
            }
        }
        if self.flushes.covers(self.hard_ticket) {
            for (to, message) in self.held.drain(..) {
                self.actions.push_back(Action::Send { to, message });
            }
            if self.hard_state.voted_for == Some(self.me) {
                self.voted(now, self.me);
            }
        }
        self.pay();
        self.advance_commit(now);
        self.apply_committed();
        Ok(())
    }

    pub(super) fn installed(&mut self, snapshot: &Snapshot) {
        self.applied = snapshot.last.index;
        self.actions.push_back(Action::InstallSnapshot {
            last: snapshot.last,
            members: snapshot.members.clone(),
            data: snapshot.data.clone(),
        });
    }

    pub(super) fn snapshot_made(
        &mut self,
        now: Time,
        upto: LogIndex,
        data: Bytes,
    ) -> Result<(), Refused> {
        if upto > self.applied {
            return Err(Refused::SnapshotAhead);
        }
        let newest = self.log.snapshot().map_or(LogIndex::ZERO, |s| s.last.index);
        let last = self.log.id_at(upto).filter(|last| last.index > newest);
        let last = last.ok_or(Refused::SnapshotOld)?;
        let snapshot = Arc::new(Snapshot {
            last,
            members: self.log.members_at(upto).clone(),
            data,
        });
        let drop_upto = LogIndex(upto.0.saturating_sub(ENTRIES_KEPT_UNDER_SNAPSHOT));
        let drop_upto = self.log.id_at(drop_upto).unwrap_or(self.log.start());
        self.log.compact(snapshot.clone(), drop_upto);
        let write = Write::Snapshot {
            snapshot,
            drop_upto,
        };
        self.persist(now, write, LogId::default(), Effect::Nothing);
        Ok(())
    }

    /// Hands out what is committed and flushed here. Waits while a snapshot is being installed.
    pub(super) fn apply_committed(&mut self) {
        let upto = self.commit.min(self.flushes.held().index);
        while self.applied < upto {
            let Some(entry) = self.log.get(self.applied.next()) else {
                return;
            };
            self.applied = entry.id.index;
            let entry = entry.clone();
            self.actions.push_back(Action::Apply { entry });
        }
        if let Role::Leader(leader) = &mut self.role {
            let applied = self.applied;
            while leader
                .proposals
                .pop_front_if(|(index, _)| *index <= applied)
                .is_some()
            {}
        }
    }
}
