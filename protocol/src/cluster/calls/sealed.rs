//! The pieces of one child's remembered calls.
//!
//! Owns: which pieces there are, what is next to each other in them, and when one goes. Never holds a
//! call's bytes but those of the last piece, which grows.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use bytes::Bytes;

use crate::time::Time;
use crate::wire::content::{Content, PIECE_BYTES, Parts, PieceName, Pieces, VALUE_BYTES_MAX};
use crate::wire::older::{self, Older, PADDING};
use crate::wire::step::Remembered;

/// What the last base names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Sealed {
    full: VecDeque<Full>,
    open: Open,
    older: Option<Older>,
    /// Names in `answers` of all of them.
    answers: usize,
}

/// A piece that never changes any more.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Full {
    name: PieceName,
    /// When all in it have expired.
    until: Time,
    /// Where answers in it are kept that are in pieces themselves.
    answers: Vec<PieceName>,
}

/// The last piece, while there is room in it; empty where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Open {
    bytes: Vec<u8>,
    until: Time,
    answers: Vec<PieceName>,
}

/// What the next base is to name: the difference.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Next {
    dropped: usize,
    full: Vec<Full>,
    open: Open,
    older: Option<Older>,
    answers: usize,
    parts: Parts,
    drops_open: bool,
}

impl Sealed {
    pub(super) fn older(&self) -> Option<Older> {
        self.older.clone()
    }

    /// The base that the child goes on from names this; its pieces are taken in next.
    pub(super) fn expect(&mut self, older: &Older) {
        self.older = Some(older.clone());
    }

    /// What is left of it now, to be added to.
    pub(super) fn next(&self, now: Time) -> Next {
        let expired = self.full.iter().take_while(|full| full.until <= now);
        let (dropped, answers) = expired.fold((0, self.answers), |(dropped, answers), full| {
            (dropped + 1, answers - full.answers.len())
        });
        let drops_open = !self.open.bytes.is_empty() && self.open.until <= now;
        let (open, answers) = match drops_open {
            true => (Open::default(), answers - self.open.answers.len()),
            false => (self.open.clone(), answers),
        };
        Next {
            dropped,
            full: Vec::new(),
            open,
            older: None,
            answers,
            parts: Parts::new(),
            drops_open,
        }
    }

    pub(super) fn go_on(&mut self, next: Next) {
        self.full.drain(..next.dropped);
        self.full.extend(next.full);
        self.open = next.open;
        self.older = next.older;
        self.answers = next.answers;
    }

    /// A piece of the base that the child goes on from, whose calls are kept until then.
    pub(super) fn take_in(&mut self, piece: &[u8], calls: &[Remembered], until: Time) {
        let answers: Vec<PieceName> = calls.iter().flat_map(names_of).collect();
        self.answers += answers.len();
        if piece.len() == PIECE_BYTES {
            let name = PieceName::of(piece);
            self.full.push_back(Full {
                name,
                until,
                answers,
            });
        } else {
            self.open = Open {
                bytes: piece.to_vec(),
                until,
                answers,
            };
        }
    }
}

impl Next {
    /// Whether something of what is named goes.
    pub(super) fn drops(&self) -> bool {
        self.dropped > 0 || self.drops_open
    }

    /// Adds a call. Not, where there is no room for it or for the names of its answer.
    pub(super) fn push(
        &mut self,
        before: &Sealed,
        call: &Remembered,
        until: Time,
        piece_bytes: usize,
    ) -> bool {
        let answers: Vec<PieceName> = names_of(call).collect();
        let is_listed = matches!(&call.answer, Content::Pieces(pieces) if pieces.list().is_some());
        let encoded = older::encoded(call);
        let pieces = before.full.len() - self.dropped + self.full.len();
        let is_next = self.open.bytes.len() + encoded.len() > piece_bytes;
        let room = pieces + usize::from(is_next) < PIECES_MAX
            && self.answers + answers.len() <= PIECES_MAX
            && encoded.len() <= piece_bytes;
        if !room || is_listed {
            return false;
        }
        if is_next {
            let mut open = core::mem::take(&mut self.open);
            open.bytes.resize(PIECE_BYTES, PADDING);
            let name = PieceName::of(&open.bytes);
            self.parts.push((name, open.bytes.into()));
            self.full.push(Full {
                name,
                until: open.until,
                answers: open.answers,
            });
        }
        self.answers += answers.len();
        self.open.bytes.extend_from_slice(&encoded);
        self.open.until = self.open.until.max(until);
        self.open.answers.extend(answers);
        true
    }

    /// What must be kept before a base names it.
    pub(super) fn finish(&mut self, before: &Sealed) -> Parts {
        let mut parts = core::mem::take(&mut self.parts);
        let full = || before.full.iter().skip(self.dropped).chain(&self.full);
        let mut names: Vec<PieceName> = full().map(|full| full.name).collect();
        let mut last_bytes = PIECE_BYTES;
        if !self.open.bytes.is_empty() {
            let name = PieceName::of(&self.open.bytes);
            names.push(name);
            last_bytes = self.open.bytes.len();
            parts.push((name, Bytes::copy_from_slice(&self.open.bytes)));
        }
        let answers = full().flat_map(|full| &full.answers);
        let answers: Vec<PieceName> = answers.chain(&self.open.answers).copied().collect();
        let mut named = |names: &[PieceName], last_bytes| {
            if names.is_empty() {
                return None;
            }
            let named = Pieces::of_names(names.iter(), last_bytes);
            let (pieces, list) = named.expect("there are at most so many");
            parts.extend(list);
            Some(pieces)
        };
        let answers = named(&answers, PIECE_BYTES);
        self.older = named(&names, last_bytes).map(|calls| Older { calls, answers });
        parts
    }

    pub(super) fn older(&self) -> Option<Older> {
        self.older.clone()
    }
}

/// The pieces of its answer, if it is in pieces.
fn names_of(call: &Remembered) -> impl Iterator<Item = PieceName> {
    let pieces = call.answer.pieces();
    let names = pieces.and_then(|pieces| pieces.names(None).ok());
    names.into_iter().flatten()
}

/// As many as one value has: of calls, and of their answers.
const PIECES_MAX: usize = VALUE_BYTES_MAX / PIECE_BYTES;
