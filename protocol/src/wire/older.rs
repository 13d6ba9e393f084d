//! Remembered calls that are too many for a base: in pieces, oldest first.
//!
//! Owns: how calls stand in a piece, and what of them a base names. Never decides which calls go there.
//!
//! A call is in one piece, and none reaches into the next, so a piece that is full never changes: what
//! a base costs is what is new since the last one. The oldest go with the whole piece that holds them.
//!
//! ```text
//!   piece   call call … call 0 0 0        64 KiB
//!   piece   call call … call 0            64 KiB
//!   …
//!   piece   call call                     the last one: as long as it is; it grows
//! ```

use alloc::vec::Vec;

use minicbor::{Decode, Encode};

use super::codec::{DecodeError, split_exact};
use super::content::Pieces;
use super::step::Remembered;

/// What a base says of calls that stand in pieces.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Older {
    /// The calls.
    #[n(0)]
    pub calls: Pieces,
    /// What those of their answers are kept in that are in pieces themselves, for the stores to have
    /// it: the names of all, one after the other, as if it were one value. Nobody puts that together.
    #[n(1)]
    pub answers: Option<Pieces>,
}

impl Older {
    pub(super) fn into_named(self) -> impl Iterator<Item = Pieces> {
        [Some(self.calls), self.answers].into_iter().flatten()
    }
}

/// One call as it stands in a piece.
pub fn encoded(call: &Remembered) -> Vec<u8> {
    minicbor::to_vec(call).expect("encoding into memory does not fail")
}

/// The calls of one piece.
///
/// # Errors
///
/// When it holds anything but calls, each of which names its record, and zeros after them.
pub fn calls_in(piece: &[u8]) -> Result<Vec<Remembered>, DecodeError> {
    let mut calls = Vec::new();
    let mut rest = piece;
    while rest.first().is_some_and(|byte| *byte != PADDING) {
        let call: Remembered;
        (call, rest) = split_exact(rest)?;
        if call.seq.is_none() {
            return Err(DecodeError::Malformed("an older call names no record"));
        }
        calls.push(call);
    }
    match rest.iter().all(|byte| *byte == PADDING) {
        true => Ok(calls),
        false => Err(DecodeError::TrailingBytes),
    }
}

/// Fills a piece up. No call begins with it: a call is a CBOR array.
pub const PADDING: u8 = 0;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::id::Seq;
    use crate::wire::envelope::CallKey;
    use bytes::Bytes;

    fn call(seq: Option<Seq>) -> Remembered {
        Remembered {
            key: CallKey::Client("k".into()),
            request_hash: 7,
            answer: Bytes::from_static(b"5").into(),
            seq,
        }
    }

    /// Disks hold pieces like this one.
    const PIECE: [u8; 24] = [
        0x84, 0x82, 0, 0x81, 0x61, b'k', 7, 0x41, b'5', 9, //
        0x84, 0x82, 0, 0x81, 0x61, b'k', 7, 0x41, b'5', 9, //
        0, 0, 0, 0,
    ];

    #[test]
    fn a_piece_is_its_calls_one_after_the_other_and_then_zeros() {
        let one = encoded(&call(Some(Seq(9))));
        assert_eq!(one, PIECE[..10]);
        let two = [call(Some(Seq(9))), call(Some(Seq(9)))];
        assert_eq!(calls_in(&PIECE).unwrap(), two);
        assert_eq!(calls_in(&PIECE[..20]).unwrap(), two);
        assert_eq!(calls_in(&[]).unwrap(), []);
    }

    #[test]
    fn what_is_no_call_is_an_error() {
        let mut torn = PIECE;
        torn[22] = 1;
        for piece in [&torn[..], &PIECE[..15], &PIECE[1..], &[0xFF]] {
            assert!(calls_in(piece).is_err(), "{piece:02x?}");
        }
        let nameless = encoded(&call(None));
        assert!(calls_in(&nameless).is_err());
    }
}
