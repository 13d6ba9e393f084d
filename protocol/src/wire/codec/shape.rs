//! What a payload must look like before and after it is decoded.
//!
//! Owns: the walk over a payload that bounds its nesting and finds its end without decoding it, and
//! the comparison that makes exact types exact. Never allocates and never recurses: both run on
//! bytes that nobody has looked at yet.

use alloc::vec::Vec;

use minicbor::Encode;
use minicbor::encode::Write;

use super::DecodeError;

/// How long the CBOR item at the front of `payload` is. Refuses lengths that the payload cannot
/// hold, indefinite lengths, tags, and nesting beyond [`NESTING_MAX`]; so what is decoded or skipped
/// afterwards needs no stack and no memory beyond the bytes that are there.
pub(super) fn item_length(payload: &[u8]) -> Result<usize, DecodeError> {
    let mut at = 0;
    let mut to_come = [0u64; NESTING_MAX]; // items still to come in each array or map that is open
    let mut depth = 0;
    loop {
        let (major, argument) = head(payload, &mut at)?;
        let left = (payload.len() - at) as u64;
        match major {
            UNSIGNED | NEGATIVE | SIMPLE => {}
            BYTES | TEXT if argument <= left => at += argument as usize,
            // Every item takes a byte or more.
            ARRAY | MAP if argument <= left => {
                let items = if major == MAP { 2 * argument } else { argument };
                if items > 0 {
                    *to_come
                        .get_mut(depth)
                        .ok_or(DecodeError::Malformed("nested too deeply"))? = items;
                    depth += 1;
                    continue;
                }
            }
            BYTES | TEXT | ARRAY | MAP => return Err(ENDS_INSIDE),
            _ => return Err(DecodeError::Malformed("has a tag")),
        }
        loop {
            let Some(open) = depth.checked_sub(1) else {
                return Ok(at);
            };
            to_come[open] -= 1;
            if to_come[open] > 0 {
                break;
            }
            depth = open;
        }
    }
}

/// Whether `bytes` are what encoding `value` gives.
pub(super) fn is_exactly<T: Encode<()>>(value: &T, bytes: &[u8]) -> bool {
    let mut expected = Expected(bytes);
    minicbor::encode(value, &mut expected).is_ok() && expected.0.is_empty()
}

/// A list of values none of which may hold anything unknown, inside a message that may; for
/// `#[cbor(with = "…")]`.
pub(crate) mod exact {
    use super::{Differs, Encode, Vec, Write, is_exactly};
    use minicbor::Decode;
    use minicbor::decode::{Decoder, Error as DecodeError};
    use minicbor::encode::{Encoder, Error as EncodeError};

    pub(crate) fn encode<C, T: Encode<C>, W: Write>(
        values: &[T],
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        values.encode(e, ctx)
    }

    pub(crate) fn decode<'b, C, T: Decode<'b, C> + Encode<()>>(
        d: &mut Decoder<'b>,
        ctx: &mut C,
    ) -> Result<Vec<T>, DecodeError> {
        let length = d
            .array()?
            .ok_or_else(|| DecodeError::message("a list has a definite length"))?;
        let mut values = Vec::new();
        for _ in 0..length {
            let start = d.position();
            let value = T::decode(d, ctx)?;
            if !is_exactly(&value, &d.input()[start..d.position()]) {
                return Err(DecodeError::custom(Differs).at(start));
            }
            values.push(value);
        }
        Ok(values)
    }
}

/// An item's major type and the number beside it (RFC 8949, section 3); moves `at` behind them.
fn head(payload: &[u8], at: &mut usize) -> Result<(u8, u64), DecodeError> {
    let first = *payload.get(*at).ok_or(ENDS_INSIDE)?;
    *at += 1;
    let info = first & 0b1_1111;
    let argument = match info {
        0..=23 => u64::from(info),
        24..=27 => {
            let width = 1 << (info - 24);
            let bytes = payload.get(*at..*at + width).ok_or(ENDS_INSIDE)?;
            *at += width;
            bytes
                .iter()
                .fold(0, |number, byte| number << 8 | u64::from(*byte))
        }
        _ => return Err(DecodeError::Malformed("has an indefinite length")),
    };
    Ok((first >> 5, argument))
}

/// The rest of the bytes that a value's encoding should be.
struct Expected<'b>(&'b [u8]);

impl Write for Expected<'_> {
    type Error = Differs;

    fn write_all(&mut self, written: &[u8]) -> Result<(), Differs> {
        self.0 = self.0.strip_prefix(written).ok_or(Differs)?;
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
#[error("not byte for byte what this version writes")]
pub(crate) struct Differs;

const ENDS_INSIDE: DecodeError = DecodeError::Malformed("ends inside a value");

/// Arrays and maps inside each other. A record's head inside an append is the seventh; a future
/// field may nest some more.
const NESTING_MAX: usize = 32;

const UNSIGNED: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const SIMPLE: u8 = 7;
