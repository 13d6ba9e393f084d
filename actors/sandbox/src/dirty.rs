//! Which pages of a memory were written since its instance was made.
//!
//! Owns: the one `unsafe` of this crate, a question to the kernel about our own page tables. Never
//! changes a mapping, and never reads what lies in a page.
//!
//! A guest's memory is a private mapping of its module's image, or anonymous beyond it. A page that was
//! written is therefore a page of our own: present or swapped out, neither of a file nor the shared
//! page of zeros. The kernel (since 6.7) lists such pages in one call, `PAGEMAP_SCAN` of
//! `/proc/self/pagemap`: microseconds for megabytes, exact, and nothing is instrumented. Where that
//! call is missing the answer is "any of them", which is slower and as right.
//!
//! Source: the kernel's `Documentation/admin-guide/mm/pagemap.rst` and `PAGEMAP_SCAN(2const)`.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};

/// How many stretches of written pages one question asks for: 12 KiB of answer. A guest that writes
/// every other page is asked about several times.
const REGIONS: usize = 512;

const PRESENT: u64 = 1 << 3;
const SWAPPED: u64 = 1 << 4;
const FILE: u64 = 1 << 2;
const ZERO_PAGE: u64 = 1 << 5;

/// Asks which pages were written. One for all instances of a process.
#[derive(Debug)]
pub struct Scanner {
    /// None where the kernel does not know the question.
    pagemap: Option<File>,
}

impl Scanner {
    /// Finds out whether the kernel answers.
    pub fn new() -> Scanner {
        let scanner = Scanner {
            pagemap: File::open("/proc/self/pagemap").ok(),
        };
        let probe = vec![1u8; 1];
        match scanner.written(&probe) {
            Ok(_) => scanner,
            Err(error) => {
                tracing::info!(%error, "written pages cannot be asked for: memories are compared");
                Scanner::comparing()
            }
        }
    }

    /// One that does not ask, as on an old kernel.
    pub fn comparing() -> Scanner {
        Scanner { pagemap: None }
    }

    /// Whether [`Scanner::written`] leaves pages out.
    pub fn is_exact(&self) -> bool {
        self.pagemap.is_some()
    }

    /// The stretches of `memory` that may have been written since it was mapped, in order, as offsets
    /// in bytes. All of it where the kernel cannot say.
    ///
    /// # Errors
    /// The kernel refused, and nothing is known.
    pub fn written(&self, memory: &[u8]) -> io::Result<Vec<Range<usize>>> {
        let Some(pagemap) = &self.pagemap else {
            let all = 0..memory.len();
            return Ok(vec![all]);
        };
        let base = memory.as_ptr() as u64;
        let end = base + memory.len() as u64;
        // The kernel wants whole pages.
        let page = rustix::param::page_size() as u64;
        let mut written: Vec<Range<usize>> = Vec::new();
        let mut regions = [Region::default(); REGIONS];
        let mut from = base / page * page;
        while from < end {
            let mut question = Scan {
                size: size_of::<Scan>() as u64,
                start: from,
                end: end.next_multiple_of(page),
                vec: regions.as_mut_ptr() as u64,
                vec_len: REGIONS as u64,
                category_inverted: FILE | ZERO_PAGE,
                category_mask: FILE | ZERO_PAGE,
                category_anyof_mask: PRESENT | SWAPPED,
                return_mask: PRESENT | SWAPPED,
                ..Scan::default()
            };
            // SAFETY: the kernel writes at most `vec_len` regions at `vec`, which is `regions`, alive and
            // unshared until the call returns; of the memory from `start` to `end` it reads the page
            // tables only.
            let found = unsafe { ioctl(pagemap, PagemapScan(&mut question)) }?;
            for region in regions.iter().take(found) {
                let start = region.start.max(base) - base;
                let stop = region.end.min(end).saturating_sub(base);
                match written.last_mut() {
                    Some(last) if last.end as u64 == start => last.end = stop as usize,
                    _ => written.push(start as usize..stop as usize),
                }
            }
            if question.walk_end <= from {
                return Err(io::Error::other("the scan of written pages stands still"));
            }
            from = question.walk_end;
        }
        Ok(written)
    }
}

impl Default for Scanner {
    fn default() -> Scanner {
        Scanner::new()
    }
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// The call, whose answer is how many regions were filled.
struct PagemapScan<'a>(&'a mut Scan);

// SAFETY: the opcode is that of `PAGEMAP_SCAN`, whose argument is a `struct pm_scan_arg` that the kernel
// reads and writes; `Scan` is laid out like it, and its pointer is filled in by the caller, who vouches
// for it.
unsafe impl Ioctl for PagemapScan<'_> {
    type Output = usize;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::read_write::<Scan>(b'f', 16)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<usize> {
        usize::try_from(out).map_err(|_| rustix::io::Errno::RANGE)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Memory straight from the kernel, as a guest's is: none of its pages was ever written.
    fn untouched(pages: usize) -> Vec<u8> {
        vec![0u8; pages * 4096]
    }

    #[test]
    fn written_pages_are_found_and_read_ones_are_not() {
        let scanner = Scanner::new();
        if !scanner.is_exact() {
            eprintln!("SKIPPED: this kernel has no PAGEMAP_SCAN");
            return;
        }
        // Large enough that the allocator maps it afresh.
        let mut memory = untouched(4096);
        let sum: u64 = memory.iter().map(|byte| u64::from(*byte)).sum();
        assert_eq!(sum, 0);
        let skew = memory.as_ptr().align_offset(4096);
        let aligned = &mut memory[skew..];
        let whole = aligned.len() / 4096 * 4096;
        let aligned = &mut aligned[..whole];
        assert_eq!(scanner.written(aligned).unwrap(), []);
        for page in [3, 4, 900] {
            aligned[page * 4096 + 17] = 1;
        }
        let written = scanner.written(aligned).unwrap();
        let expected = [3 * 4096..5 * 4096, 900 * 4096..901 * 4096];
        assert_eq!(written, expected);
    }

    #[test]
    fn more_stretches_than_one_question_holds_are_all_found() {
        let scanner = Scanner::new();
        if !scanner.is_exact() {
            return;
        }
        let mut memory = untouched(4096);
        let skew = memory.as_ptr().align_offset(4096);
        let aligned = &mut memory[skew..skew + 4000 * 4096];
        for page in (0..4000).step_by(2) {
            aligned[page * 4096] = 1;
        }
        let written = scanner.written(aligned).unwrap();
        assert_eq!(written.len(), 2000);
    }

    #[test]
    fn without_the_kernels_help_everything_may_have_been_written() {
        let memory = [0u8; 100];
        let written = Scanner::comparing().written(&memory).unwrap();
        assert_eq!(written.len(), 1);
        assert_eq!(written[0], 0..100);
    }
}
