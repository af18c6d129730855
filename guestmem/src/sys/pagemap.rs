//! Which pages of a range the kernel has made private: `PAGEMAP_SCAN`.
//!
//! A window maps frames copy-on-write; the page tables *are* the record of
//! what its guest has written. The kernel walks them for us at a few
//! nanoseconds a page and skips what is absent (Linux 6.7, `fs/proc/task_mmu.c`;
//! Documentation/admin-guide/mm/pagemap.rst).

// UNSAFETY: one ioctl that fills a buffer of ours.
#![expect(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use super::fault;
use super::mapping::Mapping;
use crate::layout::{PAGE_SIZE, PageIdx};

const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanArg {
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

/// Pages that are reported are write-protected as well.
const PM_SCAN_WP_MATCHING: u64 = 1 << 0;

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = {
    let size = size_of::<ScanArg>() as libc::c_ulong;
    assert!(size == 96);
    (3 << 30) | (size << 16) | ((b'f' as libc::c_ulong) << 8) | 16
};

/// Regions fetched at a time.
const BATCH: usize = 512;

/// Pages met in one [`Walk::Short`].
const SHORT: u64 = 4096;

/// Pages that are not private even though they are present.
const NOT_PRIVATE: u64 = PAGE_IS_FILE | PAGE_IS_PFNZERO;

/// How the kernel is to walk page tables. It holds the process's map of memory
/// for a walk, and whoever maps or unmaps a window waits for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Walk {
    /// As far as there is room for regions: quickest for whoever asks.
    Long,
    /// Some 100 µs at a time: for whoever should not be noticed.
    Short,
}

/// Which private pages are looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wanted {
    /// Those that are not protected: written since they were, or mapped anew.
    Written,
    /// The same; from now on they are protected, where that can be
    /// ([`WriteTracking`](super::write_tracking::WriteTracking)). Others are left
    /// out.
    WrittenToProtect,
    /// Those that are protected still.
    Unwritten,
}

/// The page tables of this process.
#[derive(Debug)]
pub(crate) struct Pagemap(File);

impl Pagemap {
    pub(crate) fn open() -> io::Result<Self> {
        fault::injected()?;
        File::open("/proc/self/pagemap").map(Self)
    }

    /// The pages among the first `nr_pages` of `mapping` that it holds for itself (neither absent, nor
    /// the file's, nor the shared zero page), as maximal runs, ascending.
    /// Swapped-out pages count: they are committed, only elsewhere.
    pub(crate) fn private_pages(
        &self,
        mapping: &Mapping,
        nr_pages: u64,
    ) -> io::Result<Vec<Range<PageIdx>>> {
        let mut found: Vec<Range<PageIdx>> = Vec::new();
        let mut noted = Ok(());
        let note = |pages: Range<PageIdx>| match found.last_mut() {
            Some(last) if last.end == pages.start => last.end = pages.end,
            _ => match found.try_reserve(1) {
                Ok(()) => found.push(pages),
                Err(error) => noted = Err(error),
            },
        };
        self.each_private_run(mapping, nr_pages, Walk::Long, note, || ())?;
        noted?;
        Ok(found)
    }

    /// How many pages of `mapping` it holds for itself. Nobody waits long for
    /// whoever asks, however many they are; `between` is called between walks.
    pub(crate) fn nr_private_pages(
        &self,
        mapping: &Mapping,
        mut between: impl FnMut(),
    ) -> io::Result<u64> {
        let mut count = 0;
        let found = |pages: Range<PageIdx>| count += pages.end.0 - pages.start.0;
        let all = mapping.nr_pages();
        self.each_private_run(mapping, all, Walk::Short, found, &mut between)?;
        Ok(count)
    }

    /// Calls `found` for runs of pages of `mapping` among `pages` that are private
    /// and `wanted`, ascending; neighbours may come apart.
    pub(crate) fn each_wanted_run(
        &self,
        mapping: &Mapping,
        pages: Range<PageIdx>,
        wanted: Wanted,
        found: impl FnMut(Range<PageIdx>),
    ) -> io::Result<()> {
        let (flags, not) = match wanted {
            Wanted::Written => (0, NOT_PRIVATE),
            Wanted::WrittenToProtect => (PM_SCAN_WP_MATCHING, NOT_PRIVATE),
            Wanted::Unwritten => (0, NOT_PRIVATE | PAGE_IS_WRITTEN),
        };
        let filter = ScanArg {
            flags,
            category_inverted: not,
            category_mask: NOT_PRIVATE | PAGE_IS_WRITTEN,
            ..ScanArg::default()
        };
        self.each_run(mapping, pages, &filter, found, || ())
    }

    /// Calls `found` for runs of private pages among the first `nr_pages`,
    /// ascending; neighbours may come apart.
    fn each_private_run(
        &self,
        mapping: &Mapping,
        nr_pages: u64,
        walk: Walk,
        found: impl FnMut(Range<PageIdx>),
        between: impl FnMut(),
    ) -> io::Result<()> {
        // A short walk has to end at pages of all kinds: the kernel counts only
        // those that it is to report.
        let (not, max_pages) = match walk {
            Walk::Long => (NOT_PRIVATE, 0),
            Walk::Short => (0, SHORT),
        };
        let filter = ScanArg {
            max_pages,
            category_inverted: not,
            category_mask: not,
            ..ScanArg::default()
        };
        let pages = PageIdx(0)..PageIdx(nr_pages);
        self.each_run(mapping, pages, &filter, found, between)
    }

    /// Calls `found` for runs of private pages among `pages` that `filter` lets
    /// through.
    fn each_run(
        &self,
        mapping: &Mapping,
        pages: Range<PageIdx>,
        filter: &ScanArg,
        mut found: impl FnMut(Range<PageIdx>),
        mut between: impl FnMut(),
    ) -> io::Result<()> {
        fault::injected()?;
        let base = mapping.base().addr().get() as u64;
        let end = base + pages.end.0.min(mapping.nr_pages()) * PAGE_SIZE;
        let mut regions = [PageRegion::default(); BATCH];
        let mut at = base + pages.start.byte_offset();
        while at < end {
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                start: at,
                end,
                vec: regions.as_mut_ptr() as u64,
                vec_len: BATCH as u64,
                category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                return_mask: NOT_PRIVATE,
                ..*filter
            };
            // SAFETY: `arg` and the `vec_len` regions it points at are ours
            // and outlive the call; the kernel writes nothing else.
            let count = unsafe { libc::ioctl(self.0.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
            let Ok(count) = usize::try_from(count) else {
                match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => continue,
                    error => return Err(error),
                }
            };
            for region in &regions[..count] {
                let pages = PageIdx((region.start - base) / PAGE_SIZE)
                    ..PageIdx((region.end - base) / PAGE_SIZE);
                if region.categories & NOT_PRIVATE == 0 {
                    found(pages);
                }
            }
            if arg.walk_end <= at {
                return Err(io::Error::other("PAGEMAP_SCAN made no progress"));
            }
            at = arg.walk_end;
            if at < end {
                between();
            }
        }
        Ok(())
    }
}
