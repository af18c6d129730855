//! Address ranges of our own.
//!
//! A [`Mapping`] owns a range of host-virtual addresses and is readable *and
//! writable from its first byte to its last, always*: it starts out as
//! anonymous memory and stretches of it are replaced in place. That is what
//! lets pages be read through it without a check per access, and what a KVM
//! memslot wants: a remap under a live memslot is seen by the guest at once.

// UNSAFETY: mmap, munmap and madvise on ranges that this module owns.
#![expect(unsafe_code)]

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use vm_memory::VolatileSlice;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use super::fault;
use super::page::{Page, WritablePage};
use crate::layout::{HUGE_PAGE, PAGE_SIZE, PageIdx};

/// Windows start on this boundary, so that guest-physical address, address in
/// the window and file offset agree modulo a huge page.
const ALIGN: usize = (HUGE_PAGE * PAGE_SIZE) as usize;

/// Whether the kernel may back anonymous stretches with huge pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HugePages {
    /// Ask for them: a first touch commits 2 MiB and costs a thirtieth.
    Wanted,
    /// Forbid them: a first touch commits exactly the page touched.
    Never,
}

/// Whether writes through a file mapping reach the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sharing {
    /// They do (`MAP_SHARED`).
    Shared,
    /// The kernel copies a page on its first write (`MAP_PRIVATE`).
    Private,
}

/// An owned range of readable and writable pages; see the [module](self).
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    nr_pages: u64,
}

// SAFETY: the range is owned by this value, and memory reached through it is
// only ever accessed by raw pointer or by the kernel (see `sys`), so it may be
// used from any thread.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `nr_pages` of anonymous memory, nothing of it committed.
    pub(crate) fn anonymous(nr_pages: u64, huge: HugePages) -> io::Result<Self> {
        let mapping = Self::reserve(nr_pages)?;
        mapping.advise(
            0..nr_pages,
            match huge {
                HugePages::Wanted => Advice::LinuxHugepage,
                HugePages::Never => Advice::LinuxNoHugepage,
            },
        )?;
        Ok(mapping)
    }

    fn reserve(nr_pages: u64) -> io::Result<Self> {
        fault::injected()?;
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let len = usize::try_from(nr_pages)
            .ok()
            .and_then(|n| n.checked_mul(PAGE_SIZE as usize))
            .filter(|len| *len > 0)
            .ok_or_else(too_large)?;
        let padded = len.checked_add(ALIGN).ok_or_else(too_large)?;
        // SAFETY: a fresh range chosen by the kernel; nothing of ours is replaced.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                padded,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?
        .cast::<u8>();
        let head = start.addr().next_multiple_of(ALIGN) - start.addr();
        let tail = padded - head - len;
        // SAFETY: (1) `head + len + tail == padded`, so both ends lie in the
        // range mapped above; (2) nobody knows of that range yet.
        unsafe {
            let base = start.add(head);
            if head > 0 {
                munmap(start.cast(), head)?;
            }
            if tail > 0 {
                munmap(base.add(len).cast(), tail)?;
            }
            Ok(Self {
                base: NonNull::new_unchecked(base),
                nr_pages,
            })
        }
    }

    /// Its first address.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn nr_pages(&self) -> u64 {
        self.nr_pages
    }

    /// Page `page` of it.
    ///
    /// # Panics
    /// If the page is not in this mapping.
    pub(crate) fn page(&self, page: PageIdx) -> WritablePage<'_> {
        assert!(page.0 < self.nr_pages, "{page:?} of {}", self.nr_pages);
        // SAFETY: (1) in bounds by the assertion; the length fitted a usize
        // when the range was reserved; (2) a mapping is readable and writable
        // throughout, for as long as it lives.
        unsafe { WritablePage::new(self.base.add(page.byte_offset() as usize)) }
    }

    /// `len_bytes` from `offset` on, for volatile access; `None` if they are not
    /// all in this mapping.
    pub(crate) fn slice(&self, offset: u64, len_bytes: usize) -> Option<VolatileSlice<'_>> {
        let end = offset.checked_add(len_bytes as u64)?;
        if end > self.nr_pages * PAGE_SIZE {
            return None;
        }
        // SAFETY: (1) in bounds by the check above, and mapped readable and
        // writable while the mapping is borrowed; (2) all others access it by
        // raw pointer, or are the guest itself.
        unsafe {
            let start = self.base.add(offset as usize);
            Some(VolatileSlice::new(start.as_ptr(), len_bytes))
        }
    }

    /// The bytes of `pages`: address and length.
    fn span(&self, pages: Range<u64>) -> (*mut core::ffi::c_void, usize) {
        assert!(pages.start < pages.end && pages.end <= self.nr_pages);
        let start = self.page(PageIdx(pages.start)).read().start().as_ptr();
        (
            start.cast(),
            ((pages.end - pages.start) * PAGE_SIZE) as usize,
        )
    }

    /// Replaces `pages` by the file from `file_offset` on.
    pub(crate) fn map_file(
        &self,
        pages: Range<u64>,
        file: BorrowedFd<'_>,
        file_offset: u64,
        sharing: Sharing,
    ) -> io::Result<()> {
        fault::injected()?;
        let (start, len) = self.span(pages);
        let sharing = match sharing {
            Sharing::Shared => MapFlags::SHARED,
            Sharing::Private => MapFlags::PRIVATE,
        };
        // SAFETY: (1) `span` checked that the range is ours; (2) it stays
        // readable and writable, and no reference into it exists (see `sys`).
        unsafe {
            mmap(
                start,
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::FIXED | MapFlags::NORESERVE | sharing,
                file,
                file_offset,
            )
        }?;
        Ok(())
    }

    /// Replaces `pages` by fresh anonymous memory, which reads zero. What the
    /// range held privately is given back.
    pub(crate) fn map_zero(&self, pages: Range<u64>) -> io::Result<()> {
        fault::injected()?;
        let (start, len) = self.span(pages.clone());
        // SAFETY: as in `map_file`.
        unsafe {
            mmap_anonymous(
                start,
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::FIXED | MapFlags::NORESERVE | MapFlags::PRIVATE,
            )
        }?;
        self.advise(pages, Advice::LinuxNoHugepage)
    }

    /// Gives the private pages of `pages` back; they read as what is mapped
    /// beneath them again.
    pub(crate) fn drop_private(&self, pages: Range<u64>) -> io::Result<()> {
        fault::injected()?;
        self.advise(pages, Advice::LinuxDontNeed)
    }

    /// Makes every page of it writable without a fault.
    pub(crate) fn populate(&self) -> io::Result<()> {
        fault::injected()?;
        self.advise(0..self.nr_pages, Advice::LinuxPopulateWrite)
    }

    /// Moves the file pages behind all of this mapping, which is of a file and
    /// a number of huge pages long, into huge pages of the file. Takes
    /// milliseconds; whoever uses the file waits for the page at worst. Holes
    /// are filled.
    pub(crate) fn collapse(&self) -> io::Result<()> {
        fault::injected()?;
        let (start, len) = self.span(0..self.nr_pages);
        // SAFETY: the range is ours, and its contents do not change.
        match unsafe { libc::madvise(start, len, libc::MADV_COLLAPSE) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn advise(&self, pages: Range<u64>, advice: Advice) -> io::Result<()> {
        let (start, len) = self.span(pages);
        // SAFETY: the range is ours; none of the advice used makes it
        // unreadable, and no reference into it exists (see `sys`).
        match unsafe { madvise(start, len, advice) } {
            // A kernel built without huge pages has nothing to forbid.
            Err(rustix::io::Errno::INVAL)
                if matches!(advice, Advice::LinuxHugepage | Advice::LinuxNoHugepage) =>
            {
                Ok(())
            }
            other => Ok(other?),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let (start, len) = self.span(0..self.nr_pages);
        // SAFETY: the range is ours and goes with this value; whoever holds an
        // address in it holds an `Arc` of the owner.
        if let Err(error) = unsafe { munmap(start, len) } {
            // Only possible when splitting at the map-count limit; the range
            // then stays mapped, which leaks but harms nobody.
            log::error!("munmap of {len} bytes: {error}");
        }
    }
}

/// A read-only view of a whole file, for reading frames that are committed.
#[derive(Debug)]
pub(crate) struct View {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: read-only, owned, and accessed by raw pointer only.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// Maps `len_bytes` of `file` from its start.
    pub(crate) fn new(file: BorrowedFd<'_>, len_bytes: u64) -> io::Result<Self> {
        fault::injected()?;
        let len = usize::try_from(len_bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // SAFETY: a fresh range chosen by the kernel.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ,
                MapFlags::SHARED | MapFlags::NORESERVE,
                file,
                0,
            )
        }?;
        // SAFETY: mmap does not return null for a range it chose itself.
        let base = unsafe { NonNull::new_unchecked(base.cast()) };
        Ok(Self { base, len })
    }

    /// The page at `offset` bytes, which should be committed: reading a hole
    /// commits it, and raises SIGBUS where that fails.
    ///
    /// # Panics
    /// If it is not in the view.
    pub(crate) fn page(&self, offset: u64) -> Page<'_> {
        assert!(offset + PAGE_SIZE <= self.len as u64);
        // SAFETY: in bounds by the assertion; mapped while the view lives, and
        // the file is sealed against shrinking.
        unsafe { Page::new(self.base.add(offset as usize)) }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the range is ours and goes with this value.
        if let Err(error) = unsafe { munmap(self.base.as_ptr().cast(), self.len) } {
            log::error!("munmap of a {} byte view: {error}", self.len);
        }
    }
}
