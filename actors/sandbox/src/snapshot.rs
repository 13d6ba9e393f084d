//! A guest's state as bytes: whole, or what changed.
//!
//! Owns: both formats, their checks and their limits. Never touches an instance: see
//! [`durable`](crate::durable).
//!
//! **An image** is the whole state. Its memory comes first and as it is, so that its pages lie at
//! multiples of 64 KiB: whoever stores it in pieces of that size stores a piece that did not change only
//! once. Pages of zeros at the end are left out. The trailer has a CRC32C of each MiB of it, so that a large
//! one can be written and checked in turns with others who want the thread.
//!
//! ```text
//! memory │ trailer, CBOR │ its length: u32 │ CRC32C of the trailer and its length: u32 │ "USi1"
//! ```
//!
//! **A delta** is what became of the last state: the parts that changed, and of the memory the pages of
//! 4 KiB that did. It is numbered; only the next one fits.
//!
//! ```text
//! "USd1" │ CRC32C of all behind: u32 │ length of the head: u32 │ head, CBOR │ pages
//! ```
//!
//! The pages are one behind the other; each MiB of them is an LZ4 block behind its length: u32. Numbers are
//! little-endian. The last byte of each magic is the version of the format.

use minicbor::{Decode, Encode};
use tokio::task::yield_now;
use understudy_protocol::wire::checksum;

use crate::engine::{MAX_MEMORY, PAGE_BYTES};

/// The unit in which changes are found and written: the kernel's own.
pub const PAGE: usize = 4096;

/// How large the part of a delta or an image besides its pages may be: a guest's files are in it, and a
/// thousand globals and four full tables.
const MAX_HEAD: usize = crate::policy::FILE_BYTES_MAX + (4 << 20);

/// How much of a memory is copied or compared before others get the thread: a fraction of a millisecond.
pub(crate) const TURN: usize = 1 << 20;

const DELTA_MAGIC: &[u8; 4] = b"USd1";
const IMAGE_MAGIC: &[u8; 4] = b"USi1";
/// Magic, checksum, length of the head.
const DELTA_PREFIX: usize = 12;
/// Length of the trailer, checksum, magic.
const IMAGE_SUFFIX: usize = 12;

/// The state of a guest besides its memory's bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Rest {
    /// The size of its memory, in pages of 64 KiB.
    #[n(0)]
    pub memory_pages: u32,
    /// The values of its mutable globals, one behind the other; their types are the module's.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub globals: Vec<u8>,
    /// Its tables, if they can change: the index of each function, [`NO_FUNCTION`] for none.
    #[n(2)]
    pub tables: Vec<Vec<u32>>,
    /// What is behind its WASI: its clock, its chance, its files.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub wasi: Vec<u8>,
}

/// What became of a [`Rest`]. None: it is as it was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Change {
    /// The size of its memory now.
    #[n(0)]
    pub memory_pages: u32,
    /// All of its globals.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub globals: Option<Vec<u8>>,
    /// All of its tables.
    #[n(2)]
    pub tables: Option<Vec<Vec<u32>>>,
    /// What is behind its WASI.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub wasi: Option<Vec<u8>>,
}

impl Change {
    /// All of it.
    pub fn whole(rest: &Rest) -> Change {
        Change {
            memory_pages: rest.memory_pages,
            globals: Some(rest.globals.clone()),
            tables: Some(rest.tables.clone()),
            wasi: Some(rest.wasi.clone()),
        }
    }

    /// Makes a state what it became.
    pub fn apply(self, rest: &mut Rest) {
        rest.memory_pages = self.memory_pages;
        if let Some(globals) = self.globals {
            rest.globals = globals;
        }
        if let Some(tables) = self.tables {
            rest.tables = tables;
        }
        if let Some(wasi) = self.wasi {
            rest.wasi = wasi;
        }
    }
}

/// An empty element of a table.
pub const NO_FUNCTION: u32 = u32::MAX;

/// A stretch of pages: the first one's number, and how many.
pub type Run = (u32, u32);

/// Why a state cannot be gone on from. Nothing runs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// Bytes were changed or lost on their way.
    #[error("the checksum of the {0} is wrong")]
    Checksum(&'static str),
    /// It is not what this version, or any, writes.
    #[error("the {0} cannot be read: {1}")]
    Malformed(&'static str, String),
    /// It is of another module.
    #[error("the {0} is of another module")]
    WrongModule(&'static str),
    /// A delta is missing, or out of order.
    #[error("delta {expected} should follow, and it is {found}")]
    Gap {
        /// Which one would have fitted.
        expected: u64,
        /// Which one it is.
        found: u64,
    },
}

/// What became of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// The SHA-256 of the module.
    pub module: [u8; 32],
    /// Its number; the first is 1.
    pub sequence: u64,
    /// What became of the state besides the memory's bytes.
    pub rest: Change,
    /// Pages that are all zeros now.
    pub zeros: Vec<Run>,
    /// Pages that are something else now.
    pub changed: Vec<Run>,
    /// Those pages, in order.
    pub pages: Vec<u8>,
}

#[derive(Encode, Decode)]
struct DeltaHead {
    #[cbor(n(0), with = "minicbor::bytes")]
    module: [u8; 32],
    #[n(1)]
    sequence: u64,
    #[n(2)]
    rest: Change,
    #[n(3)]
    zeros: Vec<Run>,
    #[n(4)]
    changed: Vec<Run>,
}

impl Delta {
    /// A delta without pages.
    pub fn new(module: [u8; 32], sequence: u64, rest: Change) -> Delta {
        Delta {
            module,
            sequence,
            rest,
            zeros: Vec::new(),
            changed: Vec::new(),
            pages: Vec::new(),
        }
    }

    /// Adds a page. Their numbers ascend.
    pub fn push(&mut self, number: u32, page: &[u8]) {
        if is_zero(page) {
            return extend(&mut self.zeros, number);
        }
        extend(&mut self.changed, number);
        self.pages.extend_from_slice(page);
    }

    /// As bytes, in turns with others.
    pub async fn encode(&self) -> Vec<u8> {
        let head = cbor(&DeltaHead {
            module: self.module,
            sequence: self.sequence,
            rest: self.rest.clone(),
            zeros: self.zeros.clone(),
            changed: self.changed.clone(),
        });
        let mut bytes = Vec::with_capacity(DELTA_PREFIX + head.len());
        bytes.extend_from_slice(DELTA_MAGIC);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&(head.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&head);
        for piece in self.pages.chunks(TURN) {
            let block = lz4_flex::block::compress(piece);
            bytes.extend_from_slice(&(block.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&block);
            if piece.len() == TURN {
                yield_now().await;
            }
        }
        let sum = checksum(&bytes[8..]);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// From bytes, in turns with others.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub async fn decode(bytes: &[u8]) -> Result<Delta, SnapshotError> {
        let malformed = |why: &str| SnapshotError::Malformed("delta", why.to_owned());
        let Some((prefix, rest)) = bytes.split_at_checked(DELTA_PREFIX) else {
            return Err(malformed("it is too short"));
        };
        if prefix[..4] != *DELTA_MAGIC {
            return Err(malformed("it does not begin as one"));
        }
        if checksum(&bytes[8..]) != word(prefix, 4) {
            return Err(SnapshotError::Checksum("delta"));
        }
        let length = word(prefix, 8) as usize;
        let cut = rest.split_at_checked(length);
        let Some((head, mut blocks)) = cut.filter(|_| length <= MAX_HEAD) else {
            return Err(malformed("its head is too long"));
        };
        let head: DeltaHead =
            minicbor::decode(head).map_err(|error| malformed(&error.to_string()))?;
        let all = head.rest.memory_pages as usize * (PAGE_BYTES as usize / PAGE);
        if all * PAGE > MAX_MEMORY {
            return Err(malformed("its memory is larger than any may be"));
        }
        if !fits(&head.zeros, all) || !fits(&head.changed, all) {
            return Err(malformed("it has pages beyond its memory"));
        }
        let count: usize = head.changed.iter().map(|run| run.1 as usize).sum();
        let too_few = || malformed("its pages are not as many as it says");
        let mut pages = Vec::new();
        while pages.len() < count * PAGE {
            let (length, behind) = blocks.split_at_checked(4).ok_or_else(too_few)?;
            let length = word(length, 0) as usize;
            let (block, behind) = behind.split_at_checked(length).ok_or_else(too_few)?;
            let piece = (count * PAGE - pages.len()).min(TURN);
            let decompressed = lz4_flex::block::decompress(block, piece);
            let decompressed = decompressed.ok().filter(|bytes| bytes.len() == piece);
            pages.extend_from_slice(&decompressed.ok_or_else(too_few)?);
            blocks = behind;
            if piece == TURN {
                yield_now().await;
            }
        }
        Ok(Delta {
            module: head.module,
            sequence: head.sequence,
            rest: head.rest,
            zeros: head.zeros,
            changed: head.changed,
            pages,
        })
    }

    /// Whether it is the one that follows a state of this module and number.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn follows(&self, module: &[u8; 32], sequence: u64) -> Result<(), SnapshotError> {
        if self.module != *module {
            return Err(SnapshotError::WrongModule("delta"));
        }
        let expected = sequence + 1;
        match self.sequence == expected {
            true => Ok(()),
            false => Err(SnapshotError::Gap {
                expected,
                found: self.sequence,
            }),
        }
    }

    /// Its pages with their numbers: first those of zeros, then the others, each in order.
    pub fn each_page(&self) -> impl Iterator<Item = (u32, &[u8])> {
        let zeros = self.zeros.iter().flat_map(|run| run.0..run.0 + run.1);
        let changed = self.changed.iter().flat_map(|run| run.0..run.0 + run.1);
        let zeros = zeros.map(|number| (number, &[0; PAGE][..]));
        zeros.chain(changed.zip(self.pages.chunks_exact(PAGE)))
    }
}

/// A whole state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image<'a> {
    /// What is not memory.
    pub trailer: Trailer,
    /// The memory, without what are only zeros at its end.
    pub memory: &'a [u8],
}

/// What an image says besides its memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Trailer {
    /// The SHA-256 of the module.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub module: [u8; 32],
    /// The number of the last delta that is in it.
    #[n(1)]
    pub sequence: u64,
    /// All of the state besides the memory's bytes.
    #[n(2)]
    pub rest: Rest,
    /// Words of whoever keeps the guest, which are handed back to it.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub about: Vec<u8>,
    /// The CRC32C of each MiB of the memory.
    #[n(4)]
    sums: Vec<u32>,
}

impl Trailer {
    /// Of an image whose memory is still to be written.
    pub fn new(module: [u8; 32], sequence: u64, rest: Rest, about: Vec<u8>) -> Trailer {
        Trailer {
            module,
            sequence,
            rest,
            about,
            sums: Vec::new(),
        }
    }
}

impl<'a> Image<'a> {
    /// Opens an image without copying its memory, which is still to be [verified](Image::verify).
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn open(bytes: &'a [u8]) -> Result<Image<'a>, SnapshotError> {
        let malformed = |why: &str| SnapshotError::Malformed("image", why.to_owned());
        let at = bytes.len().checked_sub(IMAGE_SUFFIX);
        let at = at.ok_or_else(|| malformed("it is too short"))?;
        let (body, suffix) = bytes.split_at(at);
        if suffix[8..] != *IMAGE_MAGIC {
            return Err(malformed("it does not end as one"));
        }
        let length = word(suffix, 0) as usize;
        let start = body.len().checked_sub(length);
        let start = start.filter(|_| length <= MAX_HEAD);
        let start = start.ok_or_else(|| malformed("its trailer is too long"))?;
        if checksum(&bytes[start..at + 4]) != word(suffix, 4) {
            return Err(SnapshotError::Checksum("image"));
        }
        let (memory, trailer) = body.split_at(start);
        let trailer: Trailer =
            minicbor::decode(trailer).map_err(|error| malformed(&error.to_string()))?;
        let all = trailer.rest.memory_pages as usize * PAGE_BYTES as usize;
        if memory.len() > all || memory.len() % PAGE_BYTES as usize != 0 || all > MAX_MEMORY {
            return Err(malformed("its memory is not of the size that it says"));
        }
        Ok(Image { trailer, memory })
    }

    /// Holds the memory against its checksums, in turns with others.
    ///
    /// # Errors
    /// [`SnapshotError::Checksum`].
    pub async fn verify(&self) -> Result<(), SnapshotError> {
        let pieces = self.memory.chunks(TURN);
        if pieces.len() != self.trailer.sums.len() {
            return Err(SnapshotError::Checksum("image"));
        }
        for (piece, sum) in pieces.zip(&self.trailer.sums) {
            if checksum(piece) != *sum {
                return Err(SnapshotError::Checksum("image"));
            }
            yield_now().await;
        }
        Ok(())
    }

    /// Writes an image of this memory, in turns with others. Zeros at its end are left out. What `sums`
    /// knows of the memory from an image before is not summed again.
    pub async fn write(memory: &[u8], mut trailer: Trailer, sums: &mut Sums) -> Vec<u8> {
        let stored = &memory[..stored_len(memory)];
        let mut bytes = Vec::with_capacity(stored.len() + (64 << 10));
        trailer.sums.clear();
        for (nth, piece) in stored.chunks(TURN).enumerate() {
            bytes.extend_from_slice(piece);
            trailer.sums.push(sums.of(nth, piece));
            yield_now().await;
        }
        let trailer = cbor(&trailer);
        let at = bytes.len();
        bytes.extend_from_slice(&trailer);
        bytes.extend_from_slice(&(trailer.len() as u32).to_le_bytes());
        let sum = checksum(&bytes[at..]);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes.extend_from_slice(IMAGE_MAGIC);
        bytes
    }
}

/// The checksums of one memory's pieces, as the last image of it had them.
#[derive(Clone, Debug, Default)]
pub struct Sums(Vec<Option<Sum>>);

#[derive(Clone, Copy, Debug)]
struct Sum {
    /// The piece at the end may be longer or shorter in the next image.
    bytes: usize,
    crc32c: u32,
}

impl Sums {
    /// This page is another one now.
    pub fn forget(&mut self, page: u32) {
        if let Some(sum) = self.0.get_mut(page as usize / (TURN / PAGE)) {
            *sum = None;
        }
    }

    fn of(&mut self, nth: usize, piece: &[u8]) -> u32 {
        let bytes = piece.len();
        if self.0.len() <= nth {
            self.0.resize(nth + 1, None);
        }
        match self.0[nth] {
            Some(sum) if sum.bytes == bytes => sum.crc32c,
            _ => {
                let crc32c = checksum(piece);
                self.0[nth] = Some(Sum { bytes, crc32c });
                crc32c
            }
        }
    }
}

/// How much of a memory an image must hold: up to the last page of 64 KiB that is not all zeros.
pub(crate) fn stored_len(memory: &[u8]) -> usize {
    let pages = memory.chunks(PAGE_BYTES as usize).rev();
    let zeros = pages.take_while(|page| is_zero(page)).count();
    memory.len() - zeros * PAGE_BYTES as usize
}

/// Whether all of it is zero. Compared page by page with one of zeros, which is the fastest way there is
/// in an optimised build and in any other.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; PAGE] = [0; PAGE];
    bytes.chunks(PAGE).all(|page| *page == ZEROS[..page.len()])
}

fn extend(runs: &mut Vec<Run>, number: u32) {
    match runs.last_mut() {
        Some(run) if run.0 + run.1 == number => run.1 += 1,
        _ => runs.push((number, 1)),
    }
}

/// Whether runs ascend, do not overlap and end in time.
fn fits(runs: &[Run], pages: usize) -> bool {
    let mut next = 0u64;
    for (first, count) in runs {
        if u64::from(*first) < next {
            return false;
        }
        next = u64::from(*first) + u64::from(*count);
    }
    next <= pages as u64
}

fn cbor<T: Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).expect("a vector takes every byte")
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn delta() -> Delta {
        let rest = Rest {
            memory_pages: 2,
            globals: vec![1, 2, 3, 4],
            tables: vec![vec![1, NO_FUNCTION]],
            wasi: vec![5; 9],
        };
        let mut delta = Delta::new([9; 32], 3, Change::whole(&rest));
        delta.push(0, &[7; PAGE]);
        delta.push(1, &[0; PAGE]);
        delta.push(2, &[0; PAGE]);
        delta.push(30, &[8; PAGE]);
        delta.push(31, &[9; PAGE]);
        delta
    }

    async fn image() -> Vec<u8> {
        let rest = Rest {
            memory_pages: 40,
            ..Rest::default()
        };
        let trailer = Trailer::new([9; 32], 5, rest, b"about".to_vec());
        let mut memory = vec![0; 40 * PAGE_BYTES as usize];
        memory[70_000] = 1;
        memory[17 * PAGE_BYTES as usize] = 1;
        Image::write(&memory, trailer, &mut Sums::default()).await
    }

    async fn read(bytes: &[u8]) -> Result<Image<'_>, SnapshotError> {
        let image = Image::open(bytes)?;
        image.verify().await?;
        Ok(image)
    }

    #[tokio::test]
    async fn a_delta_comes_back_with_its_pages() {
        let delta = delta();
        let bytes = delta.encode().await;
        assert!(bytes.len() < 1000, "{} bytes", bytes.len());
        let back = Delta::decode(&bytes).await.unwrap();
        assert_eq!(back, delta);
        let pages: Vec<(u32, u8)> = back.each_page().map(|(n, page)| (n, page[5])).collect();
        assert_eq!(pages, [(1, 0), (2, 0), (0, 7), (30, 8), (31, 9)]);
    }

    #[tokio::test]
    async fn an_image_leaves_out_zeros_at_its_end_and_nothing_else() {
        let bytes = image().await;
        let back = read(&bytes).await.unwrap();
        assert_eq!(
            (back.trailer.sequence, &back.trailer.about[..]),
            (5, &b"about"[..])
        );
        assert_eq!(back.memory.len(), 18 * PAGE_BYTES as usize);
        assert_eq!((back.memory[70_000], back.trailer.sums.len()), (1, 2));
    }

    #[tokio::test]
    async fn every_flipped_bit_and_every_truncation_is_noticed() {
        let delta = delta().encode().await;
        for length in 0..delta.len() {
            assert!(Delta::decode(&delta[..length]).await.is_err());
        }
        for bit in 0..delta.len() * 8 {
            let mut delta = delta.clone();
            delta[bit / 8] ^= 1 << (bit % 8);
            assert!(Delta::decode(&delta).await.is_err(), "bit {bit}");
        }
        let mut image = image().await;
        let far = (0..image.len()).step_by(100_003);
        for at in far.chain(image.len() - 120..image.len()) {
            assert!(read(&image[..at]).await.is_err());
            image[at] ^= 16;
            assert!(read(&image).await.is_err(), "byte {at}");
            image[at] ^= 16;
        }
        read(&image).await.unwrap();
    }

    #[test]
    fn a_delta_fits_only_its_own_module_and_only_the_next() {
        let delta = delta();
        assert_eq!(delta.follows(&[9; 32], 2), Ok(()));
        let wrong = delta.follows(&[8; 32], 2);
        assert_eq!(wrong, Err(SnapshotError::WrongModule("delta")));
        for before in [0, 1, 3, 4] {
            let expected = before + 1;
            let gap = SnapshotError::Gap { expected, found: 3 };
            assert_eq!(delta.follows(&[9; 32], before), Err(gap));
        }
    }

    #[tokio::test]
    async fn a_delta_that_lies_about_its_size_takes_no_memory() {
        let mut huge = delta();
        huge.rest.memory_pages = u32::MAX / 4096;
        huge.changed = vec![(0, u32::MAX / 2)];
        let error = Delta::decode(&huge.encode().await).await.unwrap_err();
        assert!(matches!(error, SnapshotError::Malformed(..)), "{error}");
        let mut beyond = delta();
        beyond.rest.memory_pages = 1;
        assert!(Delta::decode(&beyond.encode().await).await.is_err());
        let mut fewer = delta();
        fewer.pages.truncate(PAGE);
        assert!(Delta::decode(&fewer.encode().await).await.is_err());
    }
}
