//! How a value stands in the database: sealed, so that no damaged byte is taken for data.
//!
//! Owns: the frame around every value that is not a record, and the sums by which a store notices
//! that a key is missing. Records bring their own frame
//! ([`codec`](understudy_protocol::wire::codec)).
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | `D5`, which begins no frame of the codec |
//! | 1 | 1 | version, 1 |
//! | 2 | 4 | CRC-32C over the key, the version and the payload |
//! | 6 | | the payload |
//!
//! The checksum covers the key, so a value that stands under another's key is damage too.

use understudy_protocol::wire::checksum;

/// The value `payload` under `key`, sealed.
pub(crate) fn seal(key: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEADER + payload.len());
    value.extend_from_slice(&[MAGIC, VERSION]);
    value.extend_from_slice(&crc_of(key, VERSION, payload).to_be_bytes());
    value.extend_from_slice(payload);
    value
}

/// Why a sealed value does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// It is not what was written.
    Damaged,
    /// A later version wrote it: the disk is fine and this program old.
    Newer,
}

/// What was sealed under `key`.
pub(crate) fn unseal<'v>(key: &[u8], value: &'v [u8]) -> Result<&'v [u8], Broken> {
    let Some((&[magic, version, c0, c1, c2, c3], payload)) = value.split_first_chunk::<HEADER>()
    else {
        return Err(Broken::Damaged);
    };
    let stored = u32::from_be_bytes([c0, c1, c2, c3]);
    if magic != MAGIC || stored != crc_of(key, version, payload) {
        Err(Broken::Damaged)
    } else if version > VERSION {
        Err(Broken::Newer)
    } else {
        Ok(payload)
    }
}

fn crc_of(key: &[u8], version: u8, payload: &[u8]) -> u32 {
    // The key's own checksum stands for the key, so that no copy joins the two.
    let mut both = checksum(key).to_be_bytes().to_vec();
    both.push(version);
    both.extend_from_slice(&checksum(payload).to_be_bytes());
    checksum(&both)
}

const MAGIC: u8 = 0xD5;
const VERSION: u8 = 1;
const HEADER: usize = 6;

/// How many keys there are and what they add up to, whatever their order: a key that vanished, came
/// back or changed without anybody noticing makes it another. (CRC-32C and a mixing step; a fault
/// hides with a chance of about one in 2^32, an adversary at will.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    count: u64,
    sum: u64,
}

impl Sum {
    pub(crate) fn add(&mut self, tag: u64) {
        self.count = self.count.wrapping_add(1);
        self.sum = self.sum.wrapping_add(tag);
    }

    pub(crate) fn remove(&mut self, tag: u64) {
        self.count = self.count.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(tag);
    }

    pub(crate) fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.count.to_be_bytes());
        bytes[8..].copy_from_slice(&self.sum.to_be_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Sum {
        let number = u128::from_be_bytes(bytes);
        Sum {
            count: (number >> 64) as u64,
            sum: number as u64,
        }
    }
}

/// What one key adds to a [`Sum`]: a number for the key and one for its value, mixed (the finalizer
/// of SplitMix64), so that two changes do not cancel out.
pub(crate) fn tag(key: u32, value: u32) -> u64 {
    let mut mixed = (u64::from(key) << 32 | u64::from(value)).wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_value_opens_under_its_own_key_and_with_no_bit_changed() {
        let value = seal(b"key", b"payload");
        assert_eq!(unseal(b"key", &value), Ok(&b"payload"[..]));
        assert_eq!(unseal(b"kez", &value), Err(Broken::Damaged));
        for bit in 0..value.len() * 8 {
            let mut flipped = value.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unseal(b"key", &flipped), Err(Broken::Damaged), "bit {bit}");
        }
        for length in 0..value.len() {
            assert_eq!(unseal(b"key", &value[..length]), Err(Broken::Damaged));
        }
    }

    #[test]
    fn a_sum_knows_what_is_missing_and_not_in_which_order_it_came() {
        let (mut one, mut other) = (Sum::default(), Sum::default());
        for n in 0..100 {
            one.add(tag(n, 7));
            other.add(tag(99 - n, 7));
        }
        assert_eq!(one, other);
        assert_eq!(Sum::from_bytes(one.to_bytes()), one);
        other.remove(tag(5, 7));
        assert_ne!(one, other);
        other.add(tag(7, 5));
        assert_ne!(one, other, "as many keys, but not the same");
    }
}
