//! Noticing which pages are written: userfaultfd's asynchronous write protection.
//!
//! Pages are protected by a scan ([`Pagemap`](super::pagemap::Pagemap)). Whoever
//! writes to one, guest or host, goes on after a fault that nobody has to answer;
//! the next scan tells which those were. (Linux 6.7;
//! Documentation/admin-guide/mm/userfaultfd.rst.)

// UNSAFETY: two ioctls on structures of ours, about a range of ours.
#![expect(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::mm::UserfaultfdFlags;

use super::fault;
use super::mapping::Mapping;
use crate::layout::PAGE_SIZE;

/// `UFFD_API`, and the type of its ioctls.
const UFFD: u64 = 0xAA;
/// A write goes on at once.
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_WP: u64 = 1 << 1;

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
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// `_IOWR(UFFD, number, size bytes)`.
const fn iowr(number: u64, size: usize) -> libc::c_ulong {
    (3 << 30) | ((size as libc::c_ulong) << 16) | (UFFD << 8) | number
}

const UFFDIO_API: libc::c_ulong = iowr(0x3F, size_of::<Api>());
const UFFDIO_REGISTER: libc::c_ulong = iowr(0x00, size_of::<Register>());

/// Pages of a mapping can be protected as long as there is one of these. What is
/// mapped there anew is not covered, and counts as written.
#[derive(Debug)]
pub(crate) struct WriteTracking {
    /// What is protected is released when it is closed, which takes longer the more
    /// that is, and next to nothing once it is unmapped.
    _fd: OwnedFd,
}

/// `UFFD_USER_MODE_ONLY`: needs no privilege, and says nothing about protection
/// that the kernel lifts itself.
const USER_MODE_ONLY: UserfaultfdFlags = UserfaultfdFlags::from_bits_retain(1);

impl WriteTracking {
    /// Makes it possible to protect pages of `mapping`.
    ///
    /// # Errors
    /// If the kernel cannot do that, or not for us.
    pub(crate) fn of(mapping: &Arc<Mapping>) -> io::Result<Self> {
        fault::injected()?;
        // SAFETY: with this descriptor faults can be held up, and answered with any
        // memory; it stays in here, and no faults are registered but those that the
        // kernel answers.
        let fd = unsafe { rustix::mm::userfaultfd(UserfaultfdFlags::CLOEXEC | USER_MODE_ONLY) }?;
        let mut api = Api {
            api: UFFD,
            features: FEATURE_WP_ASYNC,
            ioctls: 0,
        };
        // SAFETY: `api` is ours, has the layout that the call wants, and outlives it.
        let agreed = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut api) };
        check(agreed)?;
        let mut register = Register {
            start: mapping.base().addr().get() as u64,
            len: mapping.nr_pages() * PAGE_SIZE,
            mode: REGISTER_MODE_WP,
            ioctls: 0,
        };
        // SAFETY: as above. Protected pages are readable and writable as before: the
        // kernel lifts the protection itself.
        let registered = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) };
        check(registered)?;
        Ok(Self { _fd: fd })
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
