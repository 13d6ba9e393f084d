//! What each message promises beyond its shape.
//!
//! Owns: the limits, orders and chains that hold for every decoded message. Never judges whether a
//! message is welcome now: that is for the machine it goes to.

use super::{CALL_BODY_BYTES_MAX, FIELDS_ROOM, Message, MessageType, record_bytes_max};
use crate::id::ChildId;
use crate::wire::envelope::{CallKey, Confirmed, Envelope, KEY_BYTES_MAX, Outcome, Reply};
use crate::wire::heart::{AT_WORK_MAX, HeartMessage, SIGHTED_MAX};
use crate::wire::record::{Head, Record};
use crate::wire::replica::{
    Append, Ask, CHAIN_RECORDS_MAX, EXCEPTIONS_MAX, INDEX_PAGE, Indexed, ReplicaAnswer,
    ReplicaRequest, Said, Scope,
};

impl Message for HeartMessage {
    const TYPE: MessageType = MessageType::Heart;

    fn check(&self) -> Result<(), &'static str> {
        match self {
            HeartMessage::Sighting(sighting) => holds(
                sighting.sighted.len() <= SIGHTED_MAX,
                "a sighting names at most 50 incarnations",
            ),
            HeartMessage::DeathNote(note) => holds(
                note.at_work.len() <= AT_WORK_MAX,
                "a death note names at most 100 units",
            ),
            HeartMessage::Renewal(_) | HeartMessage::Promise(_) | HeartMessage::Report(_) => Ok(()),
        }
    }
}

impl Message for ReplicaRequest {
    const TYPE: MessageType = MessageType::ReplicaRequest;

    fn check(&self) -> Result<(), &'static str> {
        match &self.ask {
            Ask::Seal { scope, .. } | Ask::Confirm { scope } => scope_holds(scope),
            Ask::Append(append) => append_holds(append),
            Ask::Fetch { .. } => Ok(()),
        }
    }

    fn room(&self) -> usize {
        match &self.ask {
            Ask::Append(append) => FIELDS_ROOM + records_room(&append.records),
            Ask::Seal { .. } | Ask::Fetch { .. } | Ask::Confirm { .. } => FIELDS_ROOM,
        }
    }
}

impl Message for ReplicaAnswer {
    const TYPE: MessageType = MessageType::ReplicaAnswer;

    fn check(&self) -> Result<(), &'static str> {
        match &self.said {
            Said::Sealed {
                after, page, more, ..
            } => page_holds(after.as_ref(), page, *more),
            Said::Fetched {
                child,
                after,
                records,
            } => {
                chain_holds(child, records)?;
                holds(
                    records.first().is_none_or(|first| first.seq > *after),
                    "a fetched page begins after what was asked",
                )
            }
            Said::Appended { .. }
            | Said::Mismatch { .. }
            | Said::Promised(_)
            | Said::Unsealed
            | Said::Damaged { .. }
            | Said::Confirmed
            | Said::Fetching { .. } => Ok(()),
        }
    }

    fn room(&self) -> usize {
        match &self.said {
            Said::Fetched { records, .. } => FIELDS_ROOM + records_room(records),
            _ => FIELDS_ROOM,
        }
    }
}

impl Message for Envelope {
    const TYPE: MessageType = MessageType::Envelope;

    fn check(&self) -> Result<(), &'static str> {
        if let CallKey::Client(key) = &self.key {
            holds(key.len() <= KEY_BYTES_MAX, "a key has at most 64 bytes")?;
        }
        body_holds(&self.body)
    }

    fn room(&self) -> usize {
        FIELDS_ROOM + self.body.len()
    }
}

impl Message for Reply {
    const TYPE: MessageType = MessageType::Reply;

    fn check(&self) -> Result<(), &'static str> {
        match &self.outcome {
            Outcome::Answered { body, .. } => body_holds(body),
            Outcome::NotOwner { .. }
            | Outcome::Overloaded { .. }
            | Outcome::Conflict
            | Outcome::Unavailable
            | Outcome::TooLarge
            | Outcome::Unknown => Ok(()),
        }
    }

    fn room(&self) -> usize {
        match &self.outcome {
            Outcome::Answered { body, .. } => FIELDS_ROOM + body.len(),
            _ => FIELDS_ROOM,
        }
    }
}

impl Message for Confirmed {
    const TYPE: MessageType = MessageType::Confirmed;

    fn check(&self) -> Result<(), &'static str> {
        Ok(())
    }
}

impl Message for Record {
    const TYPE: MessageType = MessageType::Record;

    fn check(&self) -> Result<(), &'static str> {
        record_holds(self)
    }

    fn room(&self) -> usize {
        record_bytes_max(self)
    }
}

fn records_room(records: &[Record]) -> usize {
    records.iter().map(record_bytes_max).sum()
}

pub(crate) fn scope_holds(scope: &Scope) -> Result<(), &'static str> {
    let Scope::Slots { except, .. } = scope else {
        return Ok(());
    };
    holds(
        except.len() <= EXCEPTIONS_MAX,
        "a shard names at most 64 exceptions",
    )?;
    // `Scope::holds` searches by halves.
    holds(
        except.is_sorted_by(|one, next| one < next),
        "exceptions are in order, each once",
    )
}

fn append_holds(append: &Append) -> Result<(), &'static str> {
    chain_holds(&append.child, &append.records)?;
    holds(
        append
            .records
            .first()
            .is_none_or(|first| first.prev == append.prev),
        "an append's first record follows its `prev`",
    )
}

/// Records of one child, each intact and following the one before it (R1).
fn chain_holds(child: &ChildId, records: &[Record]) -> Result<(), &'static str> {
    holds(
        records.len() <= CHAIN_RECORDS_MAX,
        "a message carries at most 128 records",
    )?;
    let mut tail: Option<Head> = None;
    for record in records {
        holds(record.child == *child, "all records are the child's")?;
        holds(
            tail.is_none_or(|tail| record.prev == tail),
            "each record follows the one before it",
        )?;
        record_holds(record)?;
        tail = Some(record.head());
    }
    Ok(())
}

fn record_holds(record: &Record) -> Result<(), &'static str> {
    holds(record.is_intact(), "the record is not intact")
}

fn page_holds(after: Option<&ChildId>, page: &[Indexed], more: bool) -> Result<(), &'static str> {
    holds(
        page.len() <= INDEX_PAGE,
        "a page lists at most 256 children",
    )?;
    holds(
        page.is_sorted_by(|one, next| one.child < next.child),
        "a page lists children in order, each once",
    )?;
    holds(
        page.first()
            .is_none_or(|first| after.is_none_or(|after| first.child > *after)),
        "a page begins after what was asked",
    )?;
    // The next page is asked for after the last child of this one.
    holds(!(more && page.is_empty()), "an empty page is the last")
}

fn body_holds(body: &[u8]) -> Result<(), &'static str> {
    holds(
        body.len() <= CALL_BODY_BYTES_MAX,
        "a call's body has at most 1 MiB",
    )
}

pub(crate) fn holds(fact: bool, broken: &'static str) -> Result<(), &'static str> {
    if fact { Ok(()) } else { Err(broken) }
}
