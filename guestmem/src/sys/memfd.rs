//! The sparse file that frames live in.

// UNSAFETY: pwritev straight from guest memory, which must not be borrowed as
// a slice (see `sys`).
#![expect(unsafe_code)]

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, SeekFrom, fallocate, fcntl_add_seals, fstat, ftruncate,
    memfd_create, seek,
};

use super::fault;
use super::page::Page;
use crate::layout::PAGE_SIZE;

/// Pieces that one `pwritev` takes (`IOV_MAX`).
const MAX_PIECES: usize = 1024;

/// A memfd of fixed length: sparse, and sealed against resizing, so that no
/// mapping of it can ever be cut short under a guest.
#[derive(Debug)]
pub(crate) struct Memfd {
    fd: OwnedFd,
}

impl Memfd {
    pub(crate) fn new(name: &str, nr_pages: u64) -> io::Result<Self> {
        fault::injected()?;
        let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, nr_pages * PAGE_SIZE)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(Self { fd })
    }

    /// Pages the kernel has committed, by its own count of blocks.
    pub(crate) fn committed_pages(&self) -> io::Result<u64> {
        fault::injected()?;
        let blocks = u64::try_from(fstat(&self.fd)?.st_blocks).unwrap_or(0);
        Ok(blocks / (PAGE_SIZE / 512))
    }

    /// The committed stretches within `pages`, ascending.
    pub(crate) fn data(&self, pages: Range<u64>) -> io::Result<Vec<Range<u64>>> {
        fault::injected()?;
        let mut found = Vec::new();
        let mut at = pages.start;
        while at < pages.end {
            let start = match seek(&self.fd, SeekFrom::Data(at * PAGE_SIZE)) {
                Ok(offset) => offset / PAGE_SIZE,
                Err(rustix::io::Errno::NXIO) => break, // no data from here on
                Err(error) => return Err(error.into()),
            };
            if start >= pages.end {
                break;
            }
            let end = seek(&self.fd, SeekFrom::Hole(start * PAGE_SIZE))?.div_ceil(PAGE_SIZE);
            found.try_reserve(1)?;
            found.push(start..end.min(pages.end));
            at = end;
        }
        Ok(found)
    }

    /// Gives the frames of `pages` back to the host; they read zero.
    pub(crate) fn punch(&self, pages: Range<u64>) -> io::Result<()> {
        fault::injected()?;
        Ok(fallocate(
            &self.fd,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            pages.start * PAGE_SIZE,
            (pages.end - pages.start) * PAGE_SIZE,
        )?)
    }

    /// Allocates the frames of `pages` (`ENOSPC`, `ENOMEM` if there are none).
    pub(crate) fn allocate(&self, pages: Range<u64>) -> io::Result<()> {
        fault::injected()?;
        Ok(fallocate(
            &self.fd,
            FallocateFlags::KEEP_SIZE,
            pages.start * PAGE_SIZE,
            (pages.end - pages.start) * PAGE_SIZE,
        )?)
    }

    /// Writes the pages at `sources`, in order, to consecutive pages from
    /// `first` on. Out of host memory is an error here (`ENOSPC`, `ENOMEM`),
    /// where a store through a mapping would be a SIGBUS.
    pub(crate) fn write_pages(&self, first: u64, sources: &[Page<'_>]) -> io::Result<()> {
        fault::injected()?;
        let mut page = first;
        for batch in sources.chunks(MAX_PIECES) {
            let mut pieces: Vec<libc::iovec> = Vec::new();
            pieces.try_reserve(batch.len())?;
            pieces.extend(batch.iter().map(|source| libc::iovec {
                iov_base: source.start().as_ptr().cast(),
                iov_len: PAGE_SIZE as usize,
            }));
            let mut done = 0;
            while done < pieces.len() {
                let left = &pieces[done..];
                // SAFETY: a `Page` is mapped and readable while borrowed; `left`
                // outlives the call and has at most `MAX_PIECES` entries. The
                // kernel reads, it does not write.
                let written = unsafe {
                    libc::pwritev(
                        self.fd.as_raw_fd(),
                        left.as_ptr(),
                        left.len() as libc::c_int,
                        ((page + done as u64) * PAGE_SIZE) as libc::off_t,
                    )
                };
                match usize::try_from(written) {
                    // A page cut in the middle is written again from its start.
                    Ok(bytes) if bytes >= PAGE_SIZE as usize => done += bytes / PAGE_SIZE as usize,
                    Ok(_) => return Err(io::ErrorKind::StorageFull.into()),
                    Err(_) => match io::Error::last_os_error() {
                        error if error.kind() == io::ErrorKind::Interrupted => {}
                        error => return Err(error),
                    },
                }
            }
            page += batch.len() as u64;
        }
        Ok(())
    }
}

impl AsFd for Memfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
