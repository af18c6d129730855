//! Single pages: read, compare, copy, clear.
//!
//! A [`Page`] is the address of a whole mapped page, borrowed from the mapping
//! that keeps it mapped. It is not a reference to the bytes: guest memory is
//! never borrowed (see [`sys`](super)).

// UNSAFETY: raw reads and writes of pages that a mapping vouched for.
#![expect(unsafe_code)]

use std::marker::PhantomData;
use std::ptr::NonNull;

use crate::layout::PAGE_SIZE;

/// Words looked at before the next decision: 512 bytes, so that a page that
/// differs from zero early (nearly all do) costs one load of a few lines.
const STRIDE: usize = 64;

/// A mapped, readable page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page<'a> {
    start: NonNull<u8>,
    mapping: PhantomData<&'a ()>,
}

/// A mapped page that can also be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WritablePage<'a>(Page<'a>);

impl Page<'_> {
    /// # Safety
    /// `start` must be the start of a page that stays mapped and readable for
    /// the lifetime chosen.
    pub(crate) unsafe fn new(start: NonNull<u8>) -> Self {
        Self {
            start,
            mapping: PhantomData,
        }
    }

    pub(crate) fn start(self) -> NonNull<u8> {
        self.start
    }

    /// Whether all of it is zero.
    pub(crate) fn is_zero(self) -> bool {
        let words = self.start.cast::<[u64; STRIDE]>();
        (0..PAGE_SIZE as usize / size_of::<[u64; STRIDE]>()).all(|i| {
            // SAFETY: (1) within the page by the bound above, which is aligned;
            // (2) mapped and readable by `new`'s contract.
            let chunk = unsafe { words.add(i).read() };
            chunk.iter().fold(0, |all, word| all | word) == 0
        })
    }

    /// Whether it holds the same bytes as `other`.
    pub(crate) fn equals(self, other: Page<'_>) -> bool {
        let (a, b) = (self.start.as_ptr(), other.start.as_ptr());
        // SAFETY: both pages are readable for their whole length.
        unsafe { libc::memcmp(a.cast(), b.cast(), PAGE_SIZE as usize) == 0 }
    }
}

impl<'a> WritablePage<'a> {
    /// # Safety
    /// As [`Page::new`], and the page must be writable too.
    pub(crate) unsafe fn new(start: NonNull<u8>) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { Page::new(start) })
    }

    /// The page, for reading.
    pub(crate) fn read(self) -> Page<'a> {
        self.0
    }

    /// Overwrites it with the bytes of `from`, which must be another page.
    pub(crate) fn copy_from(self, from: Page<'_>) {
        // SAFETY: (1) whole pages, one readable, one writable; (2) two
        // page-aligned addresses overlap only if they are equal.
        unsafe {
            if from.start != self.0.start {
                from.start
                    .copy_to_nonoverlapping(self.0.start, PAGE_SIZE as usize);
            }
        }
    }

    /// Fills it with zeros.
    pub(crate) fn clear(self) {
        // SAFETY: a whole writable page.
        unsafe { self.0.start.write_bytes(0, PAGE_SIZE as usize) }
    }
}

#[cfg(test)]
mod tests {
    use crate::layout::PageIdx;
    use crate::sys::mapping::{HugePages, Mapping};

    #[test]
    fn a_single_set_bit_anywhere_makes_a_page_not_zero() {
        let mapping = Mapping::anonymous(2, HugePages::Never).unwrap();
        let (page, zero) = (mapping.page(PageIdx(0)), mapping.page(PageIdx(1)));
        for at in [0, 1, 511, 512, 2048, 4088, 4095] {
            assert!(page.read().is_zero() && page.read().equals(zero.read()));
            // SAFETY: a byte of a mapped, writable page.
            unsafe { page.read().start().add(at).write(1) };
            assert!(
                !page.read().is_zero() && !page.read().equals(zero.read()),
                "byte {at}"
            );
            page.copy_from(zero.read());
        }
    }
}
