//! What crosses a wire or a disk.
//!
//! Owns: every message between nodes, the record, and the codec that frames them. Never decides
//! anything, and never trusts a byte: every decoder answers with an error, none panics.
//!
//! Message fields are numbered (CBOR arrays by `minicbor`'s derive). The rule for change is in
//! [`codec`].

use crc::{CRC_32_ISCSI, Crc, Table};

pub mod codec;
pub mod content;
pub mod envelope;
pub mod heart;
pub mod older;
pub mod record;
pub mod replica;
pub mod step;

/// CRC-32C (Castagnoli; RFC 3720 appendix B.4) of `bytes`.
pub fn checksum(bytes: &[u8]) -> u32 {
    CRC32C.checksum(bytes)
}

/// Slice-by-16 tables: 16 KiB of read-only data for about a byte a cycle without `std` or `unsafe`.
pub(crate) static CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

/// Encodes [`bytes::Bytes`] as a CBOR byte string, for `#[cbor(with = "…")]`.
pub(crate) mod cbor_bytes {
    use bytes::Bytes;
    use minicbor::decode::{Decoder, Error as DecodeError};
    use minicbor::encode::{Encoder, Error as EncodeError, Write};

    pub(crate) fn encode<C, W: Write>(
        bytes: &Bytes,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.bytes(bytes)?.ok()
    }

    pub(crate) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Bytes, DecodeError> {
        Ok(Bytes::copy_from_slice(d.bytes()?))
    }
}

/// A fact that is only told where it is not so.
pub(crate) mod unless_durable {
    use minicbor::decode::{Decoder, Error as DecodeError};
    use minicbor::encode::{Encoder, Error as EncodeError, Write};

    pub(crate) fn encode<C, W: Write>(
        durable: &bool,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.bool(*durable)?.ok()
    }

    pub(crate) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<bool, DecodeError> {
        d.bool()
    }

    pub(crate) fn is_nil(durable: &bool) -> bool {
        *durable
    }

    pub(crate) fn nil() -> Option<bool> {
        Some(true)
    }
}
