//! Which pages of a memory were written: since it was mapped, or since the last time somebody asked.
//!
//! Owns: the one `unsafe` of this crate, questions to the kernel about our own page tables. Never reads
//! what lies in a page, and never leaves a memory that a program could tell from another.
//!
//! A guest's memory is a private mapping of its module's image, or anonymous beyond it. A page that was
//! written is therefore a page of our own: present or swapped out, neither of a file nor the shared
//! page of zeros. The kernel (since 6.7) lists such pages in one call, `PAGEMAP_SCAN` of
//! `/proc/self/pagemap`: microseconds for megabytes, exact, and nothing is instrumented.
//!
//! That is all that was written since the memory was mapped. For what was written *since the last
//! question*, the same call also protects each page that it names. Whoever writes to one next stumbles
//! over it once, the kernel lifts the protection by itself, and the page is named
//! again: `userfaultfd` in its mode without messages (`UFFD_FEATURE_WP_ASYNC`). A page that was never
//! written needs no protection, since it becomes a page of our own with the first write.
//!
//! | [`Method`] | needs | a question costs |
//! |---|---|---|
//! | `Watching` | Linux 6.7 and `userfaultfd`, which some containers forbid | what was written since the last one |
//! | `Scanning` | Linux 6.7 | what was ever written |
//! | `Comparing` | nothing | the whole memory |
//!
//! The answers differ in what they name too much, which is slower and as right.
//!
//! Sources: the kernel's `Documentation/admin-guide/mm/pagemap.rst` and `userfaultfd.rst`,
//! `PAGEMAP_SCAN(2const)`, `UFFDIO_REGISTER(2const)`.

use std::ffi::c_void;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::ptr::null_mut;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};
use rustix::mm::{
    MapFlags, ProtFlags, UserfaultfdFlags, mmap, mmap_anonymous, munmap, userfaultfd,
};

/// How many stretches of written pages one question asks for: 12 KiB of answer. A guest that writes
/// every other page is asked about several times.
const REGIONS: usize = 512;

/// How written pages are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// The kernel does not say. Everything may have been written.
    Comparing,
    /// The kernel says what was written since the memory was mapped.
    Scanning,
    /// The kernel says what was written since the last question.
    Watching,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Method::Comparing => "comparing",
            Method::Scanning => "scanning",
            Method::Watching => "watching",
        })
    }
}

/// Asks which pages were written. One for all instances of an engine; clones are the same one.
#[derive(Clone, Debug)]
pub struct Scanner(Arc<Kernel>);

#[derive(Debug)]
struct Kernel {
    /// None where the kernel does not know the question.
    pagemap: Option<File>,
    /// By which memories are watched. None where that is not allowed, or not wanted.
    faults: Option<OwnedFd>,
}

impl Scanner {
    /// Uses the best of what the kernel offers.
    pub fn new() -> Scanner {
        Scanner::at_most(Method::Watching)
    }

    /// Uses the best of what the kernel offers, but nothing better than that.
    pub fn at_most(method: Method) -> Scanner {
        if method >= Method::Watching {
            match Scanner::watching() {
                Ok(scanner) => return scanner,
                Err(error) => tracing::info!(%error, "written pages cannot be watched for"),
            }
        }
        if method >= Method::Scanning {
            match Scanner::scanning() {
                Ok(scanner) => return scanner,
                Err(error) => tracing::info!(%error, "written pages cannot be asked for"),
            }
        }
        Scanner(Arc::new(Kernel {
            pagemap: None,
            faults: None,
        }))
    }

    /// Which one it uses.
    pub fn method(&self) -> Method {
        match (&self.0.pagemap, &self.0.faults) {
            (Some(_), Some(_)) => Method::Watching,
            (Some(_), None) => Method::Scanning,
            (None, _) => Method::Comparing,
        }
    }

    /// The stretches of `memory` that may have been written since it was mapped, in order, as offsets
    /// in bytes. All of it where the kernel cannot say.
    ///
    /// # Errors
    /// The kernel refused, and nothing is known.
    pub fn written(&self, memory: &[u8]) -> io::Result<Vec<Range<usize>>> {
        match &self.0.pagemap {
            Some(pagemap) => scan(pagemap, memory, Since::Mapped),
            None => {
                let everything = 0..memory.len();
                Ok(vec![everything])
            }
        }
    }

    /// Begins to watch a memory, of which nothing is known yet.
    pub fn watch(&self) -> Watch {
        Watch {
            scanner: self.clone(),
            start: 0,
            length: 0,
            is_blind: self.0.faults.is_none(),
        }
    }

    fn scanning() -> io::Result<Scanner> {
        let scanner = Scanner(Arc::new(Kernel {
            pagemap: Some(File::open("/proc/self/pagemap")?),
            faults: None,
        }));
        let probe = Probe::map()?;
        probe.write(0);
        let first = 0..Probe::PAGE;
        match scanner.written(probe.memory())?.as_slice() {
            [range] if *range == first => Ok(scanner),
            _ => Err(io::Error::other("the kernel's answer is not the right one")),
        }
    }

    fn watching() -> io::Result<Scanner> {
        let scanner = Scanner(Arc::new(Kernel {
            pagemap: Some(File::open("/proc/self/pagemap")?),
            faults: Some(open_faults()?),
        }));
        // A kernel, or whatever plays one, that only claims to is found out here.
        let probe = Probe::map()?;
        let mut watch = scanner.watch();
        for pages in [&[0, 2][..], &[], &[2], &[1, 2], &[0, 3]] {
            for page in pages {
                probe.write(*page);
            }
            let ranges = watch.written(probe.memory())?;
            let found = ranges
                .into_iter()
                .flat_map(|range| range.step_by(Probe::PAGE));
            let is_right = found.eq(pages.iter().map(|page| page * Probe::PAGE));
            if !is_right || watch.is_blind {
                return Err(io::Error::other("the kernel's answer is not the right one"));
            }
        }
        drop(watch);
        Ok(scanner)
    }
}

impl Default for Scanner {
    fn default() -> Scanner {
        Scanner::new()
    }
}

/// What is known of one memory: that of one instance, from when nothing had run in it. It ends before
/// the memory does.
#[derive(Debug)]
pub struct Watch {
    scanner: Scanner,
    /// What the kernel watches: where it starts, and its bytes.
    start: usize,
    length: usize,
    /// The kernel does not watch, or has failed to. From then on all that was ever written is named.
    is_blind: bool,
}

impl Watch {
    /// The stretches of `memory` that may have been written since the last question, in order, as offsets
    /// in bytes; with the first, since it was mapped. It may have grown, but not moved.
    ///
    /// # Errors
    /// The kernel refused, and nothing is known. The next answer is of all that was ever written.
    pub fn written(&mut self, memory: &[u8]) -> io::Result<Vec<Range<usize>>> {
        if memory.is_empty() {
            return Ok(Vec::new());
        }
        if !self.is_blind {
            match self.since_last(memory) {
                Ok(written) => return Ok(written),
                Err(error) => {
                    // It may have lifted marks that nobody will hear of, so they count no more.
                    self.is_blind = true;
                    tracing::warn!(%error, "a guest's written pages are not watched any more");
                }
            }
        }
        self.scanner.written(memory)
    }

    fn since_last(&mut self, memory: &[u8]) -> io::Result<Vec<Range<usize>>> {
        self.reach(memory)?;
        match &self.scanner.0.pagemap {
            Some(pagemap) => scan(pagemap, memory, Since::LastQuestion),
            None => Err(io::Error::other("nothing asks")),
        }
    }

    /// Has the kernel watch all of it.
    fn reach(&mut self, memory: &[u8]) -> io::Result<()> {
        let Some(faults) = &self.scanner.0.faults else {
            return Err(io::Error::other("nothing watches"));
        };
        let start = memory.as_ptr() as usize;
        if self.length != 0 && (start != self.start || memory.len() < self.length) {
            return Err(io::Error::other("the memory is another one"));
        }
        if memory.len() == self.length {
            return Ok(());
        }
        let mut register = Register {
            start: (start + self.length) as u64,
            length: (memory.len() - self.length) as u64,
            mode: WRITE_PROTECT,
            ioctls: 0,
        };
        // SAFETY: the stretch is memory of ours, borrowed here. In the mode of `open_faults` a write to a
        // page that is protected later goes on after the kernel has lifted the protection, so nothing but
        // the time that it takes can be noticed by who writes, and nothing at all by who reads.
        unsafe { ioctl(faults, UffdRegister(&mut register)) }?;
        self.start = start;
        self.length = memory.len();
        Ok(())
    }
}

impl Drop for Watch {
    /// The next instance in the same place is not to pay for this one's marks.
    fn drop(&mut self) {
        let Some(faults) = self.scanner.0.faults.as_ref().filter(|_| self.length != 0) else {
            return;
        };
        let mut stretch = Stretch {
            start: self.start as u64,
            length: self.length as u64,
        };
        // SAFETY: what is not watched behaves as what is, and is asked about in vain: should another
        // instance have this place already, `Watch::written` of that one hears from the kernel that it is
        // not watched, and names too much.
        let ended = unsafe { ioctl(faults, UffdUnregister(&mut stretch)) };
        if let Err(error) = ended {
            tracing::debug!(%error, "a memory that is no more was still watched");
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Since {
    Mapped,
    LastQuestion,
}

fn scan(pagemap: &File, memory: &[u8], since: Since) -> io::Result<Vec<Range<usize>>> {
    let base = memory.as_ptr() as u64;
    let end = base + memory.len() as u64;
    // The kernel wants whole pages.
    let page = rustix::param::page_size() as u64;
    let (flags, and, told) = match since {
        Since::Mapped => (0, 0, PRESENT | SWAPPED),
        Since::LastQuestion => (PROTECT_THEM | REFUSE_UNWATCHED, WRITTEN, WRITTEN),
    };
    let mut written: Vec<Range<usize>> = Vec::new();
    let mut regions = [Region::default(); REGIONS];
    let mut from = base / page * page;
    while from < end {
        let mut question = Scan {
            size: size_of::<Scan>() as u64,
            flags,
            start: from,
            end: end.next_multiple_of(page),
            vec: regions.as_mut_ptr() as u64,
            vec_len: REGIONS as u64,
            category_inverted: FILE | ZERO_PAGE,
            category_mask: FILE | ZERO_PAGE | and,
            category_anyof_mask: PRESENT | SWAPPED,
            return_mask: told,
            ..Scan::default()
        };
        // SAFETY: the kernel writes at most `vec_len` regions at `vec`, which is `regions`, alive and
        // unshared until the call returns; of the memory from `start` to `end` it reads the page
        // tables, and protects pages only where `Watch::reach` has said what that does.
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

/// A file descriptor through which memories are watched without messages. Our own writes only
/// (`UFFD_USER_MODE_ONLY`), for which nobody needs rights; the kernel's on our behalf lift the protection
/// all the same.
fn open_faults() -> io::Result<OwnedFd> {
    let flags = UserfaultfdFlags::CLOEXEC
        | UserfaultfdFlags::NONBLOCK
        | UserfaultfdFlags::from_bits_retain(USER_MODE_ONLY);
    // SAFETY: it is used in this file only, and what it does to memories is said where it does it.
    let faults = unsafe { userfaultfd(flags) }?;
    let mut api = Api {
        api: UFFD_API,
        features: WP_ASYNC | WP_UNPOPULATED,
        ioctls: 0,
    };
    // SAFETY: it only agrees with the kernel on what may be asked for later.
    unsafe { ioctl(&faults, UffdApi(&mut api)) }?;
    Ok(faults)
}

/// Four pages mapped as a guest's memory is: two of a file's, private, and two that are anonymous.
struct Probe(*mut c_void);

impl Probe {
    /// The unit that a guest's memory comes in is a multiple of every kernel's page.
    const PAGE: usize = 64 << 10;
    const LENGTH: usize = 4 * Probe::PAGE;

    fn map() -> io::Result<Probe> {
        let image = memfd_create("probe", MemfdFlags::CLOEXEC)?;
        ftruncate(&image, 2 * Probe::PAGE as u64)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping where the kernel likes.
        let base = unsafe { mmap_anonymous(null_mut(), Probe::LENGTH, access, MapFlags::PRIVATE) }?;
        let probe = Probe(base);
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        // SAFETY: it takes the place of the first half of the mapping above, which is ours alone.
        unsafe { mmap(base, 2 * Probe::PAGE, access, flags, &image, 0) }?;
        Ok(probe)
    }

    fn memory(&self) -> &[u8] {
        // SAFETY: mapped and initialised by the kernel, until `self` is dropped. It is written only by
        // `Probe::write`, while no such slice is used.
        unsafe { std::slice::from_raw_parts(self.0.cast::<u8>(), Probe::LENGTH) }
    }

    /// Writes to every page of the kernel's that is in that page of ours.
    fn write(&self, page: usize) {
        for at in (0..Probe::PAGE).step_by(rustix::param::page_size()) {
            // SAFETY: `page` is less than four, and nobody else looks at it now.
            unsafe {
                self.0
                    .cast::<u8>()
                    .add(page * Probe::PAGE + at)
                    .write_volatile(1)
            };
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // SAFETY: this mapping is ours, and nobody has borrowed from it any more.
        let _ = unsafe { munmap(self.0, Probe::LENGTH) };
    }
}

// `linux/fs.h`: PAGE_IS_* and PM_SCAN_*.
const WRITTEN: u64 = 1 << 1;
const FILE: u64 = 1 << 2;
const PRESENT: u64 = 1 << 3;
const SWAPPED: u64 = 1 << 4;
const ZERO_PAGE: u64 = 1 << 5;
const PROTECT_THEM: u64 = 1 << 0;
const REFUSE_UNWATCHED: u64 = 1 << 1;

// `linux/userfaultfd.h`.
const UFFD_API: u64 = 0xaa;
const USER_MODE_ONLY: u32 = 1;
const WRITE_PROTECT: u64 = 1 << 1;
const WP_UNPOPULATED: u64 = 1 << 13;
const WP_ASYNC: u64 = 1 << 15;

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

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    length: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
struct Stretch {
    start: u64,
    length: u64,
}

/// A call of a `userfaultfd` with nothing to say but whether it was done.
macro_rules! uffd_call {
    ($name:ident, $argument:ty, $opcode:expr) => {
        struct $name<'a>(&'a mut $argument);

        // SAFETY: the opcode is the kernel's for a `userfaultfd`, and its argument is laid out like the
        // kernel's structure, which has no pointers that the kernel follows.
        unsafe impl Ioctl for $name<'_> {
            type Output = ();

            const IS_MUTATING: bool = true;

            fn opcode(&self) -> Opcode {
                $opcode
            }

            fn as_ptr(&mut self) -> *mut c_void {
                std::ptr::from_mut(self.0).cast()
            }

            unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
                Ok(())
            }
        }
    };
}

uffd_call!(UffdApi, Api, opcode::read_write::<Api>(0xaa, 0x3f));
uffd_call!(
    UffdRegister,
    Register,
    opcode::read_write::<Register>(0xaa, 0x00)
);
uffd_call!(UffdUnregister, Stretch, opcode::read::<Stretch>(0xaa, 0x01));

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;

    use super::*;

    const PAGE: usize = 4096;
    const NONE: [usize; 0] = [];

    /// Memory straight from the kernel, as a guest's is: none of its pages was ever written.
    struct Untouched {
        memory: Vec<u8>,
        skew: usize,
    }

    impl Untouched {
        /// More than the 32 MiB from which on the C library always maps afresh.
        const PAGES: usize = 9000;

        fn new() -> Untouched {
            let memory = vec![0u8; (Untouched::PAGES + 1) * PAGE];
            let skew = memory.as_ptr().align_offset(PAGE);
            Untouched { memory, skew }
        }

        fn pages(&mut self, count: usize) -> &mut [u8] {
            &mut self.memory[self.skew..][..count * PAGE]
        }
    }

    /// The best scanner, if it is one of these; tests of others say that they were left out.
    fn kernel(method: Method) -> Option<Scanner> {
        let scanner = Scanner::at_most(method);
        if scanner.method() != method {
            eprintln!("SKIPPED: this kernel allows no {method}");
            return None;
        }
        Some(scanner)
    }

    fn pages(ranges: io::Result<Vec<Range<usize>>>) -> Vec<usize> {
        let ranges = ranges.unwrap().into_iter();
        ranges
            .flat_map(|range| range.start / PAGE..range.end / PAGE)
            .collect()
    }

    #[test]
    fn written_pages_are_found_and_read_ones_are_not() {
        for method in [Method::Scanning, Method::Watching] {
            let Some(scanner) = kernel(method) else {
                continue;
            };
            let mut untouched = Untouched::new();
            let memory = untouched.pages(4096);
            let sum: u64 = memory.iter().map(|byte| u64::from(*byte)).sum();
            assert_eq!(sum, 0);
            assert_eq!(scanner.written(memory).unwrap(), []);
            let mut watch = scanner.watch();
            assert_eq!(watch.written(memory).unwrap(), []);
            for page in [3, 4, 900] {
                memory[page * PAGE + 17] = 1;
            }
            let expected = [3 * PAGE..5 * PAGE, 900 * PAGE..901 * PAGE];
            assert_eq!(watch.written(memory).unwrap(), expected);
            assert_eq!(scanner.written(memory).unwrap(), expected);
        }
    }

    #[test]
    fn more_stretches_than_one_question_holds_are_all_found_and_not_again() {
        for method in [Method::Scanning, Method::Watching] {
            let Some(scanner) = kernel(method) else {
                continue;
            };
            let mut untouched = Untouched::new();
            let memory = untouched.pages(4000);
            for page in (0..4000).step_by(2) {
                memory[page * PAGE] = 1;
            }
            let mut watch = scanner.watch();
            assert_eq!(watch.written(memory).unwrap().len(), 2000);
            if method == Method::Watching {
                assert_eq!(watch.written(memory).unwrap(), []);
                for page in (0..4000).step_by(3) {
                    memory[page * PAGE + 5] = 2;
                }
                let expected: Vec<usize> = (0..4000).step_by(3).collect();
                assert_eq!(pages(watch.written(memory)), expected);
            }
            assert!(pages(scanner.written(memory)).len() >= 2000);
        }
    }

    #[test]
    fn a_page_that_is_written_again_is_named_again() {
        let Some(scanner) = kernel(Method::Watching) else {
            return;
        };
        let mut untouched = Untouched::new();
        let memory = untouched.pages(64);
        let mut watch = scanner.watch();
        for value in 1..5 {
            memory[7 * PAGE] = value;
            memory[8 * PAGE - 1] = value;
            assert_eq!(pages(watch.written(memory)), [7]);
            assert_eq!(memory[7 * PAGE], value);
            assert_eq!(pages(watch.written(memory)), NONE);
        }
        // The same value is a write too.
        memory[7 * PAGE] = std::hint::black_box(4);
        assert_eq!(pages(watch.written(memory)), [7]);
    }

    #[test]
    fn what_the_kernel_writes_for_us_is_found() {
        let Some(scanner) = kernel(Method::Watching) else {
            return;
        };
        let mut untouched = Untouched::new();
        let memory = untouched.pages(64);
        memory.fill(1);
        let mut watch = scanner.watch();
        assert_eq!(pages(watch.written(memory)).len(), 64);
        let mut zeros = File::open("/dev/zero").unwrap();
        zeros.read_exact(&mut memory[9 * PAGE..11 * PAGE]).unwrap();
        assert_eq!(pages(watch.written(memory)), [9, 10]);
        assert_eq!((memory[9 * PAGE], memory[11 * PAGE]), (0, 1));
    }

    #[test]
    fn a_memory_that_grows_is_watched_where_it_grew() {
        let Some(scanner) = kernel(Method::Watching) else {
            return;
        };
        let mut untouched = Untouched::new();
        untouched.pages(100).fill(1);
        let mut watch = scanner.watch();
        assert_eq!(pages(watch.written(untouched.pages(16))).len(), 16);
        untouched.pages(100)[3 * PAGE] = 2;
        let expected: Vec<usize> = [3].into_iter().chain(16..32).collect();
        assert_eq!(pages(watch.written(untouched.pages(32))), expected);
        untouched.pages(100)[20 * PAGE] = 2;
        assert_eq!(pages(watch.written(untouched.pages(32))), [20]);
        assert!(!watch.is_blind);
    }

    #[test]
    fn what_cannot_be_watched_any_more_is_named_whole() {
        let Some(scanner) = kernel(Method::Watching) else {
            return;
        };
        let mut untouched = Untouched::new();
        let memory = untouched.pages(64);
        let mut watch = scanner.watch();
        memory[PAGE] = 1;
        assert_eq!(pages(watch.written(memory)), [1]);
        // Somebody else's watch of the same place ends, and this one with it.
        let mut other = scanner.watch();
        other.written(memory).unwrap();
        memory[2 * PAGE] = 1;
        drop(other);
        assert_eq!(pages(watch.written(memory)), [1, 2]);
        memory[3 * PAGE] = 1;
        assert_eq!(pages(watch.written(memory)), [1, 2, 3]);
        assert!(watch.is_blind);
    }

    #[test]
    fn a_memory_whose_watch_has_ended_can_be_watched_afresh() {
        let Some(scanner) = kernel(Method::Watching) else {
            return;
        };
        let mut untouched = Untouched::new();
        let memory = untouched.pages(64);
        for value in 1..4 {
            memory[5 * PAGE] = value;
            let mut watch = scanner.watch();
            assert_eq!(pages(watch.written(memory)), [5]);
            assert_eq!(pages(watch.written(memory)), NONE);
        }
    }

    #[test]
    fn without_the_kernels_help_everything_may_have_been_written() {
        let memory = [0u8; 100];
        let scanner = Scanner::at_most(Method::Comparing);
        assert_eq!(scanner.method(), Method::Comparing);
        let everything = 0..100;
        let written = scanner.watch().written(&memory).unwrap();
        assert_eq!(written, std::slice::from_ref(&everything));
        assert_eq!(scanner.written(&memory).unwrap(), [everything]);
        assert_eq!(scanner.watch().written(&[]).unwrap(), []);
    }
}
