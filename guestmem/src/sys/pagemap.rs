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

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = {
    let size = size_of::<ScanArg>() as libc::c_ulong;
    assert!(size == 96);
    (3 << 30) | (size << 16) | ((b'f' as libc::c_ulong) << 8) | 16
};

/// Regions fetched at a time.
const BATCH: usize = 512;

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
        fault::injected()?;
        let base = mapping.base().addr().get() as u64;
        let end = base + nr_pages.min(mapping.nr_pages()) * PAGE_SIZE;
        let mut regions = [PageRegion::default(); BATCH];
        let mut found: Vec<Range<PageIdx>> = Vec::new();
        let mut at = base;
        while at < end {
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                start: at,
                end,
                vec: regions.as_mut_ptr() as u64,
                vec_len: BATCH as u64,
                category_inverted: PAGE_IS_FILE | PAGE_IS_PFNZERO,
                category_mask: PAGE_IS_FILE | PAGE_IS_PFNZERO,
                category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                return_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                ..ScanArg::default()
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
                match found.last_mut() {
                    Some(last) if last.end == pages.start => last.end = pages.end,
                    _ => found.push(pages),
                }
            }
            if arg.walk_end <= at {
                return Err(io::Error::other("PAGEMAP_SCAN made no progress"));
            }
            at = arg.walk_end;
        }
        Ok(found)
    }
}
