//! Guest memory by plain mmap: a file, mappings of it, and the two ways to take
//! back what was written to a private one.

// UNSAFETY: mmap, munmap, madvise and the PAGEMAP_SCAN ioctl on ranges that a
// mapping owns, and volatile words and copies of pages within them.
#![expect(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use vmm::PAGE_SIZE;

/// A sparse file in memory of `len_bytes`.
pub(in super::super) fn new_file(len_bytes: u64) -> io::Result<OwnedFd> {
    let file = memfd_create("bench", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, len_bytes)?;
    Ok(file)
}

/// Who sees what is written to a mapping.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Writes {
    /// The file, and so everybody.
    ToFile,
    /// Only the mapping: pages are copied when written.
    Private,
}

/// A mapping of a whole file.
pub(in super::super) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it is a range of addresses, good in any thread.
unsafe impl Send for Mapping {}
// SAFETY: shared references only read: words, volatilely, and pages that nobody
// writes to meanwhile.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len_bytes` of `file`.
    pub(in super::super) fn new(
        file: impl AsFd,
        len_bytes: u64,
        writes: Writes,
    ) -> io::Result<Self> {
        let len = usize::try_from(len_bytes).map_err(io::Error::other)?;
        let sharing = match writes {
            Writes::ToFile => MapFlags::SHARED,
            Writes::Private => MapFlags::PRIVATE,
        };
        let (access, flags) = (
            ProtFlags::READ | ProtFlags::WRITE,
            sharing | MapFlags::NORESERVE,
        );
        // SAFETY: a new mapping, where the kernel finds room.
        let start = unsafe { mmap(std::ptr::null_mut(), len, access, flags, file, 0) }?;
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { start, len })
    }

    /// Its address.
    pub(in super::super) fn address(&self) -> u64 {
        self.start.addr().get() as u64
    }

    /// Its length.
    pub(in super::super) fn len_bytes(&self) -> u64 {
        self.len as u64
    }

    fn at(&self, offset: u64, len: usize) -> *mut u8 {
        let offset = usize::try_from(offset).expect("an offset in memory");
        assert!(offset <= self.len && len <= self.len - offset);
        // SAFETY: in bounds, as was just checked.
        unsafe { self.start.add(offset) }.as_ptr()
    }

    /// The word at `offset`, which is a multiple of 8.
    pub(in super::super) fn word(&self, offset: u64) -> u64 {
        assert!(offset.is_multiple_of(8));
        // SAFETY: in bounds and aligned; a guest may write it meanwhile, hence
        // volatile.
        unsafe { self.at(offset, 8).cast::<u64>().read_volatile() }
    }

    /// Sets the word at `offset`.
    pub(in super::super) fn set_word(&mut self, offset: u64, value: u64) {
        assert!(offset.is_multiple_of(8));
        // SAFETY: as above.
        unsafe { self.at(offset, 8).cast::<u64>().write_volatile(value) }
    }

    /// Copies `bytes` to `offset`.
    pub(in super::super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: in bounds; `bytes` is no guest memory, so they do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    /// Copies pages back from another mapping of the same file, which nobody
    /// writes to.
    pub(in super::super) fn copy_back(&mut self, from: &Mapping, pages: &[Range<u64>]) {
        for run in pages {
            let offset = run.start * PAGE_SIZE;
            let len = ((run.end - run.start) * PAGE_SIZE) as usize;
            let (to, from) = (self.at(offset, len), from.at(offset, len));
            // SAFETY: in bounds of two mappings, which do not overlap; the
            // vCPU that could write is out of the guest.
            unsafe { std::ptr::copy_nonoverlapping(from, to, len) }
        }
    }

    /// Throws away the private copies of pages, so that they are the file's.
    pub(in super::super) fn drop_private(&mut self, pages: &[Range<u64>]) -> io::Result<()> {
        for run in pages {
            let len = ((run.end - run.start) * PAGE_SIZE) as usize;
            let start = self.at(run.start * PAGE_SIZE, len);
            // SAFETY: whole pages of this mapping, which nobody has a
            // reference to.
            unsafe { madvise(start.cast(), len, Advice::LinuxDontNeed) }?;
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the whole of our own mapping, and nobody uses it any more:
        // the VM that was given it has been closed.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// One stretch that the kernel reports, as the kernel lays it out.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// The argument of `PAGEMAP_SCAN`, as the kernel lays it out.
#[repr(C)]
#[derive(Default)]
struct ScanArgument {
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
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_ZERO_FRAME: u64 = 1 << 5;

/// Finds the pages that a private mapping has copies of.
pub(in super::super) struct DirtyPages {
    pagemap: File,
    regions: Vec<PageRegion>,
}

impl DirtyPages {
    pub(in super::super) fn open() -> io::Result<Self> {
        Ok(Self {
            pagemap: File::open("/proc/self/pagemap")?,
            regions: vec![PageRegion::default(); 4096],
        })
    }

    /// The runs of such pages, ascending.
    pub(in super::super) fn of(&mut self, mapping: &Mapping) -> io::Result<Vec<Range<u64>>> {
        let (base, end) = (mapping.address(), mapping.address() + mapping.len as u64);
        let mut runs = Vec::new();
        let mut at = base;
        while at < end {
            let mut argument = ScanArgument {
                size: size_of::<ScanArgument>() as u64,
                start: at,
                end,
                vec: self.regions.as_mut_ptr() as u64,
                vec_len: self.regions.len() as u64,
                category_inverted: PAGE_IS_FILE | PAGE_IS_ZERO_FRAME,
                category_mask: PAGE_IS_FILE | PAGE_IS_ZERO_FRAME | PAGE_IS_PRESENT,
                return_mask: PAGE_IS_PRESENT,
                ..ScanArgument::default()
            };
            let pagemap = self.pagemap.as_raw_fd();
            // SAFETY: the argument and the regions it names are ours and
            // outlive the call; the kernel writes nothing else.
            let count = unsafe { libc::ioctl(pagemap, PAGEMAP_SCAN, &raw mut argument) };
            let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
            let found = self.regions[..count].iter();
            runs.extend(
                found.map(|run| (run.start - base) / PAGE_SIZE..(run.end - base) / PAGE_SIZE),
            );
            if argument.walk_end <= at {
                return Err(io::Error::other("PAGEMAP_SCAN made no progress"));
            }
            at = argument.walk_end;
        }
        Ok(runs)
    }
}
