//! What crosses a wire or a disk.
//!
//! Owns: every serialised type that is not directory data, and the codec. Never decides anything.

use crc::{CRC_32_ISCSI, Crc, Table};

/// CRC-32C (Castagnoli; RFC 3720 appendix B.4) of `bytes`.
pub fn checksum(bytes: &[u8]) -> u32 {
    CRC32C.checksum(bytes)
}

/// Slice-by-16 tables: 16 KiB of read-only data for about a byte a cycle without `std` or `unsafe`.
pub(crate) static CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);
