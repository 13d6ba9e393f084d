//! A child's bytes in a record: as they are, or by the names of the pieces that hold them.
//!
//! Owns: where a value is cut, what its pieces are called, and how they become the value again. Never
//! keeps a piece: a store does, in files of their own, before the record that names them is said to
//! be there.
//!
//! A piece is named by the SHA-256 of its content (FIPS 180-4) and cut at a fixed offset, so that one
//! which did not change costs nothing the next time. A piece of zeros alone has the name of 32 zero
//! bytes and is kept nowhere: fresh memory is free.
//!
//! ```text
//!   value ── at most INLINE_MAX ──> the record
//!         └─ cut every 64 KiB ────> pieces; the record holds their names
//!                                   more than NAMES_MAX names: a piece of their own, the list
//! ```

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use bytes::Bytes;
use minicbor::data::Type;
use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::encode::{Encoder, Error as EncodeError, Write};
use minicbor::{Decode, Encode};
use sha2::{Digest as _, Sha256};

/// A child's bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// As they are: a byte string, as before there were pieces.
    Inline(Bytes),
    /// By name.
    Pieces(Pieces),
}

/// A value by the names of its pieces.
#[derive(Clone, PartialEq, Eq, Hash, Encode)]
pub struct Pieces {
    /// The value's length in bytes; at most [`VALUE_BYTES_MAX`].
    #[n(0)]
    length: u64,
    /// One name after the other, or that of the list.
    #[cbor(n(1), with = "crate::wire::cbor_bytes")]
    names: Bytes,
    /// Whether `names` is the name of the list.
    #[n(2)]
    is_listed: bool,
}

/// Names a piece: the SHA-256 of its content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceName(pub [u8; 32]);

/// A value that was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// What the record holds.
    pub pieces: Pieces,
    /// What must be kept before the record may be: the pieces, each once, and the list.
    pub parts: Parts,
}

/// A value is too long to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a value of {bytes} bytes is above the limit of {VALUE_BYTES_MAX}")]
pub struct TooLong {
    /// How long it is.
    pub bytes: usize,
}

/// What must be kept before a record may name it.
pub type Parts = Vec<(PieceName, Bytes)>;

/// Why pieces are not the value that was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTheValue {
    /// The list does not hold a name for every piece.
    #[error("the list of pieces does not fit the value's length")]
    BadList,
    /// This one was not handed in.
    #[error("the piece {0} is missing")]
    Missing(PieceName),
    /// This one is too long or too short for its place.
    #[error("the piece {0} has another length")]
    BadPiece(PieceName),
}

impl Content {
    /// How long the child's bytes are.
    pub fn length(&self) -> u64 {
        match self {
            Content::Inline(bytes) => bytes.len() as u64,
            Content::Pieces(pieces) => pieces.length,
        }
    }

    /// What it takes in a record, in bytes, at most.
    pub fn room(&self) -> usize {
        match self {
            Content::Inline(bytes) => bytes.len() + LENGTH_BYTES_MAX,
            Content::Pieces(pieces) => pieces.names.len() + 3 * LENGTH_BYTES_MAX,
        }
    }

    /// The bytes, where they are inline.
    pub fn inline(&self) -> Option<&Bytes> {
        match self {
            Content::Inline(bytes) => Some(bytes),
            Content::Pieces(_) => None,
        }
    }

    /// The pieces, where it is not inline.
    pub fn pieces(&self) -> Option<&Pieces> {
        match self {
            Content::Inline(_) => None,
            Content::Pieces(pieces) => Some(pieces),
        }
    }
}

impl<T: Into<Bytes>> From<T> for Content {
    fn from(bytes: T) -> Content {
        Content::Inline(bytes.into())
    }
}

impl Pieces {
    /// Cuts a value.
    ///
    /// # Errors
    ///
    /// When it is above [`VALUE_BYTES_MAX`].
    pub fn cut(value: &Bytes) -> Result<Cut, TooLong> {
        let bytes = value.len();
        if bytes > VALUE_BYTES_MAX {
            return Err(TooLong { bytes });
        }
        let mut parts = BTreeMap::new();
        let mut names = Vec::with_capacity(bytes.div_ceil(PIECE_BYTES) * NAME_BYTES);
        for at in (0..bytes).step_by(PIECE_BYTES) {
            let piece = value.slice(at..bytes.min(at + PIECE_BYTES));
            if piece.iter().all(|byte| *byte == 0) {
                names.extend_from_slice(&PieceName::ZEROS.0);
                continue;
            }
            let name = PieceName::of(&piece);
            names.extend_from_slice(&name.0);
            parts.insert(name, piece);
        }
        let (pieces, list) = Pieces::named(bytes as u64, names.into());
        parts.extend(list);
        let parts = parts.into_iter().collect();
        Ok(Cut { pieces, parts })
    }

    /// What is kept under these names, in this order: a value that is cut elsewhere, piece by piece.
    /// All are of [`PIECE_BYTES`] but the last, which is `last_bytes` long. With them goes the list,
    /// where there has to be one: it must be kept before a record may hold these.
    ///
    /// # Errors
    ///
    /// When it is above [`VALUE_BYTES_MAX`].
    pub fn of_names<'n>(
        names: impl ExactSizeIterator<Item = &'n PieceName>,
        last_bytes: usize,
    ) -> Result<(Pieces, Option<(PieceName, Bytes)>), TooLong> {
        let bytes = names.len().saturating_sub(1) * PIECE_BYTES + last_bytes;
        if bytes > VALUE_BYTES_MAX {
            return Err(TooLong { bytes });
        }
        let names: Vec<u8> = names.flat_map(|name| name.0).collect();
        Ok(Pieces::named(bytes as u64, names.into()))
    }

    fn named(length: u64, mut names: Bytes) -> (Pieces, Option<(PieceName, Bytes)>) {
        let is_listed = names.len() > NAMES_MAX * NAME_BYTES;
        let list = is_listed.then(|| {
            let list = PieceName::of(&names);
            let own = Bytes::copy_from_slice(&list.0);
            (list, core::mem::replace(&mut names, own))
        });
        let pieces = Pieces {
            length,
            names,
            is_listed,
        };
        (pieces, list)
    }

    /// How long the value is, in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The list that must be read to know the names of the pieces; none where they stand here.
    pub fn list(&self) -> Option<PieceName> {
        self.is_listed
            .then(|| PieceName::all_in(&self.names).next())
            .flatten()
    }

    /// The names of the pieces in order, [`PieceName::ZEROS`] among them. `list` is what the list
    /// holds, where there is one.
    ///
    /// # Errors
    ///
    /// When there is a list and `list` is not as long as it has to be.
    pub fn names(&self, list: Option<&[u8]>) -> Result<Vec<PieceName>, NotTheValue> {
        let names = match self.is_listed {
            true => list.ok_or(NotTheValue::BadList)?,
            false => &self.names,
        };
        if names.len() != self.count() * NAME_BYTES {
            return Err(NotTheValue::BadList);
        }
        Ok(PieceName::all_in(names).collect())
    }

    /// The value. `names` are those that [`Pieces::names`] says, `piece` what is kept under one.
    ///
    /// # Errors
    ///
    /// When a piece is missing or does not fit its place. Its content is not compared to its name:
    /// whoever keeps pieces does that.
    pub fn join<P: AsRef<[u8]>>(
        &self,
        names: &[PieceName],
        mut piece: impl FnMut(PieceName) -> Option<P>,
    ) -> Result<Bytes, NotTheValue> {
        if names.len() != self.count() {
            return Err(NotTheValue::BadList);
        }
        let length = self.length as usize; // at most 64 MiB
        let mut value = Vec::with_capacity(length);
        for name in names {
            let wanted = PIECE_BYTES.min(length - value.len());
            if *name == PieceName::ZEROS {
                value.resize(value.len() + wanted, 0);
                continue;
            }
            let piece = piece(*name).ok_or(NotTheValue::Missing(*name))?;
            let piece = piece.as_ref();
            if piece.len() != wanted {
                return Err(NotTheValue::BadPiece(*name));
            }
            value.extend_from_slice(piece);
        }
        Ok(value.into())
    }

    fn count(&self) -> usize {
        (self.length as usize).div_ceil(PIECE_BYTES)
    }

    fn is_sound(&self) -> bool {
        if self.length > VALUE_BYTES_MAX as u64 {
            return false;
        }
        match self.is_listed {
            true => self.count() > NAMES_MAX && self.names.len() == NAME_BYTES,
            false => self.count() <= NAMES_MAX && self.names.len() == self.count() * NAME_BYTES,
        }
    }
}

impl PieceName {
    /// The name of every piece that holds zeros alone. No content is known whose SHA-256 this is.
    pub const ZEROS: PieceName = PieceName([0; NAME_BYTES]);

    /// The name of this content, which is not all zeros.
    pub fn of(content: &[u8]) -> PieceName {
        PieceName(Sha256::digest(content).into())
    }

    /// The names that stand here one after the other; what is left over is no name.
    pub fn all_in(names: &[u8]) -> impl Iterator<Item = PieceName> {
        let names = names.as_chunks::<NAME_BYTES>().0;
        names.iter().map(|name| PieceName(*name))
    }
}

impl fmt::Display for PieceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PieceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Without the names: there may be dozens.
impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes in {} pieces", self.length, self.count())
    }
}

/// The two shapes are told apart by their first byte, so what was written before there were pieces is
/// read as ever, and written as ever while it is short.
impl<C> Encode<C> for Content {
    fn encode<W: Write>(
        &self,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        match self {
            Content::Inline(bytes) => e.bytes(bytes)?.ok(),
            Content::Pieces(pieces) => pieces.encode(e, ctx),
        }
    }
}

impl<'b, C> Decode<'b, C> for Content {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Content, DecodeError> {
        match d.datatype()? {
            Type::Array => Ok(Content::Pieces(Pieces::decode(d, ctx)?)),
            _ => Ok(Content::Inline(Bytes::copy_from_slice(d.bytes()?))),
        }
    }
}

impl<'b, C> Decode<'b, C> for Pieces {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Pieces, DecodeError> {
        if d.array()? != Some(3) {
            return Err(DecodeError::message("pieces are three fields"));
        }
        let pieces = Pieces {
            length: d.u64()?,
            names: Bytes::copy_from_slice(d.bytes()?),
            is_listed: d.bool()?,
        };
        if !pieces.is_sound() {
            return Err(DecodeError::message("the names do not fit the length"));
        }
        Ok(pieces)
    }
}

/// The longest value. A checkpoint is read and written whole, in memory, on three nodes: at 64 MiB a
/// takeover has it over 1 Gbit/s in half a second, and a node that starts twenty at once needs a few
/// gigabytes.
pub const VALUE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A piece: a page of a WebAssembly memory, so that a page which was not written costs nothing.
pub const PIECE_BYTES: usize = 64 * 1024;

/// Longer values are cut. A quarter of a record: beside it there is room for what a snapshot says of
/// remembered calls, and a file with two flushes costs more than so many bytes twice in a log.
pub const INLINE_MAX: usize = 16 * 1024;

/// Longer answers of calls that took a step are cut: the table of remembered calls must fit a
/// snapshot, and an answer is in it for ten minutes.
pub const ANSWER_INLINE_MAX: usize = 4 * 1024;

/// Names that a record holds itself (2 KiB): more than that go into a list, since a delta often has a
/// name or two and a snapshot all of them.
pub const NAMES_MAX: usize = 64;

/// A SHA-256.
const NAME_BYTES: usize = 32;

/// A CBOR item's head.
const LENGTH_BYTES_MAX: usize = 9;

// A list is one piece.
const _: () = assert!(VALUE_BYTES_MAX / PIECE_BYTES * NAME_BYTES <= PIECE_BYTES);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wire::codec::decode_exact;
    use alloc::vec;

    fn value(bytes: usize) -> Bytes {
        let mut state = bytes as u32 | 1;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..bytes).map(|_| next()).collect()
    }

    fn rejoined(cut: &Cut) -> Result<Bytes, NotTheValue> {
        let kept: BTreeMap<PieceName, Bytes> = cut.parts.iter().cloned().collect();
        let list = cut.pieces.list().map(|list| &kept[&list][..]);
        let names = cut.pieces.names(list)?;
        cut.pieces
            .join(&names, |name| kept.get(&name).map(|piece| &piece[..]))
    }

    #[test]
    fn a_value_of_any_length_is_its_pieces_again() {
        let most = NAMES_MAX * PIECE_BYTES;
        for bytes in [0, 1, PIECE_BYTES, PIECE_BYTES + 1, most, most + 1] {
            let value = value(bytes);
            let cut = Pieces::cut(&value).unwrap();
            assert_eq!(cut.pieces.list().is_some(), bytes > most, "{bytes}");
            assert_eq!(rejoined(&cut).as_ref(), Ok(&value), "{bytes}");
            let content = Content::Pieces(cut.pieces);
            let encoded = minicbor::to_vec(&content).unwrap();
            assert!(encoded.len() <= content.room(), "{bytes}");
            assert_eq!(decode_exact(&encoded), Ok(content), "{bytes}");
        }
        let refused = Pieces::cut(&vec![1; VALUE_BYTES_MAX + 1].into());
        let bytes = VALUE_BYTES_MAX + 1;
        assert_eq!(refused, Err(TooLong { bytes }));
    }

    #[test]
    fn zeros_and_what_did_not_change_cost_nothing() {
        let fresh = Pieces::cut(&vec![0; 3 * PIECE_BYTES + 7].into()).unwrap();
        assert_eq!(fresh.parts, []);
        assert_eq!(rejoined(&fresh).unwrap(), vec![0; 3 * PIECE_BYTES + 7]);

        let before = value(8 * PIECE_BYTES);
        let mut after = before.to_vec();
        after[3 * PIECE_BYTES] ^= 1;
        let (before, after) = (Pieces::cut(&before), Pieces::cut(&after.into()));
        let (before, after) = (before.unwrap().parts, after.unwrap().parts);
        let new = after.iter().filter(|part| !before.contains(part));
        assert_eq!(new.count(), 1);
    }

    #[test]
    fn what_is_missing_or_has_another_length_is_an_error_and_not_another_value() {
        let cut = Pieces::cut(&value(2 * PIECE_BYTES)).unwrap();
        let names = cut.pieces.names(None).unwrap();
        let missing = cut.pieces.join::<Bytes>(&names, |_| None);
        assert_eq!(missing, Err(NotTheValue::Missing(names[0])));
        let bad = cut.pieces.join(&names, |_| Some(&b"short"[..]));
        assert_eq!(bad, Err(NotTheValue::BadPiece(names[0])));
        let few = cut.pieces.join::<Bytes>(&names[1..], |_| None);
        assert_eq!(few, Err(NotTheValue::BadList));

        let listed = Pieces::cut(&value(65 * PIECE_BYTES)).unwrap().pieces;
        for list in [None, Some(&[0; 64 * 32][..]), Some(&[0; 66 * 32][..])] {
            assert_eq!(listed.names(list), Err(NotTheValue::BadList));
        }
    }

    #[test]
    fn names_that_do_not_fit_the_length_are_not_read() {
        let check = |length: u64, names: usize, is_listed: bool, sound: bool| {
            let mut bytes = Vec::new();
            let mut e = Encoder::new(&mut bytes);
            let written = e.array(3).and_then(|e| e.u64(length));
            let written = written.and_then(|e| e.bytes(&vec![7; names]));
            written.and_then(|e| e.bool(is_listed)).unwrap();
            let read = decode_exact::<Content>(&bytes);
            assert_eq!(read.is_ok(), sound, "{length} {names} {is_listed}");
        };
        let listed = PIECE_BYTES as u64 * 65;
        check(1, 32, false, true);
        check(1, 31, false, false);
        check(1, 64, false, false);
        check(1, 32, true, false);
        check(listed, 32, true, true);
        check(listed, 65 * 32, false, false);
        check(u64::MAX, 32, true, false);
        check(VALUE_BYTES_MAX as u64 + 1, 32, true, false);
    }
}
