//! Where guest RAM lies: guest-physical addresses against pages of the object.
//!
//! ```text
//!   gpa   0          3 GiB        4 GiB                 4 GiB + (size − 3 GiB)
//!         ├── low RAM ──┤ the hole ├────── high RAM ──────┤
//!   page  0          786432     786432                 size / 4096
//! ```
//!
//! A VM's RAM is *one* memory object without a gap; only guest-physical space
//! has the hole (devices, the local APIC). Both regions start on a multiple of
//! 1 GiB on either side, so guest-physical address, host-virtual address and
//! file offset agree modulo 2 MiB and huge pages fit.

use std::fmt;
use std::ops::Range;

/// Bytes in a page: the unit of everything here.
pub const PAGE_SIZE: u64 = 4096;
/// Pages in a huge page.
pub(crate) const HUGE_PAGE: u64 = 512;
/// First guest-physical address of the hole that devices live in.
pub const HOLE_START: Gpa = Gpa(3 << 30);
/// First guest-physical address after the hole.
pub const HOLE_END: Gpa = Gpa(4 << 30);
/// Most RAM a layout can describe: what is left of a 46-bit guest-physical
/// space after the hole. The host's own limit (CPUID leaf 0x8000_0008) may be
/// lower and is the caller's to check.
pub const MAX_RAM_BYTES: u64 = (1 << 46) - (HOLE_END.0 - HOLE_START.0);

/// A guest-physical address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

impl fmt::Debug for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gpa {:#x}", self.0)
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The position of a page inside one memory object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PageIdx(pub u64);

impl PageIdx {
    /// The page that the byte at `offset` of its object lies in.
    pub fn containing(offset: u64) -> Self {
        Self(offset / PAGE_SIZE)
    }

    /// The byte offset of this page in its object.
    pub fn byte_offset(self) -> u64 {
        self.0 * PAGE_SIZE
    }
}

/// Why a RAM size was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// No RAM at all.
    #[error("memory size is 0: give at least {PAGE_SIZE} bytes")]
    Zero,
    /// A size that is not a whole number of pages.
    #[error("memory size {0} is not a multiple of {PAGE_SIZE} bytes")]
    NotPageAligned(u64),
    /// More than the guest-physical address space holds.
    #[error(
        "memory size {0} is larger than the {MAX_RAM_BYTES} bytes that fit in the guest's physical address space"
    )]
    TooLarge(u64),
}

/// One stretch of guest-physical space with RAM behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RamRegion {
    /// Where the guest sees it.
    pub gpa: Gpa,
    /// The object's page behind its first byte.
    pub first: PageIdx,
    /// How many pages it has; never 0.
    pub nr_pages: u64,
}

impl RamRegion {
    /// The guest-physical addresses of the region.
    pub fn gpa_range(&self) -> Range<Gpa> {
        self.gpa..Gpa(self.gpa.0 + self.len_bytes())
    }

    /// Its length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.nr_pages * PAGE_SIZE
    }
}

/// How a VM's RAM is laid out in guest-physical space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RamLayout {
    nr_pages: u64,
}

impl RamLayout {
    /// The layout of `size_bytes` of RAM.
    ///
    /// # Errors
    /// If the size is zero, not a multiple of [`PAGE_SIZE`], or larger than
    /// [`MAX_RAM_BYTES`].
    pub fn new(size_bytes: u64) -> Result<Self, LayoutError> {
        if size_bytes == 0 {
            return Err(LayoutError::Zero);
        }
        if size_bytes > MAX_RAM_BYTES {
            return Err(LayoutError::TooLarge(size_bytes));
        }
        if !size_bytes.is_multiple_of(PAGE_SIZE) {
            return Err(LayoutError::NotPageAligned(size_bytes));
        }
        Ok(Self {
            nr_pages: size_bytes / PAGE_SIZE,
        })
    }

    /// Pages of RAM.
    pub fn nr_pages(&self) -> u64 {
        self.nr_pages
    }

    /// Bytes of RAM.
    pub fn size_bytes(&self) -> u64 {
        self.nr_pages * PAGE_SIZE
    }

    /// The end of the RAM below the hole (exclusive).
    pub fn low_end(&self) -> Gpa {
        Gpa(self.size_bytes().min(HOLE_START.0))
    }

    /// The end of all RAM in guest-physical space (exclusive).
    pub fn end(&self) -> Gpa {
        self.high()
            .map_or(self.low_end(), |high| high.gpa_range().end)
    }

    /// The RAM below the hole.
    pub fn low(&self) -> RamRegion {
        RamRegion {
            gpa: Gpa(0),
            first: PageIdx(0),
            nr_pages: self.low_end().0 / PAGE_SIZE,
        }
    }

    /// The RAM above the hole, when there is more than fits below it.
    pub fn high(&self) -> Option<RamRegion> {
        let low_pages = self.low().nr_pages;
        (self.nr_pages > low_pages).then(|| RamRegion {
            gpa: HOLE_END,
            first: PageIdx(low_pages),
            nr_pages: self.nr_pages - low_pages,
        })
    }

    /// The regions, ascending: one, or two.
    pub fn regions(&self) -> impl Iterator<Item = RamRegion> + use<> {
        std::iter::once(self.low()).chain(self.high())
    }

    /// The pages of the object behind guest-physical `start..start + len_bytes`,
    /// or `None` if any byte of it is not RAM of a single region, the range is
    /// empty, or either end is not page-aligned.
    pub fn pages_of(&self, start: Gpa, len_bytes: u64) -> Option<Range<PageIdx>> {
        let end = start.0.checked_add(len_bytes)?;
        if len_bytes == 0 || !start.0.is_multiple_of(PAGE_SIZE) || !end.is_multiple_of(PAGE_SIZE) {
            return None;
        }
        self.regions().find_map(|region| {
            let range = region.gpa_range();
            (range.start <= start && end <= range.end.0).then(|| {
                let first = region.first.0 + (start.0 - range.start.0) / PAGE_SIZE;
                PageIdx(first)..PageIdx(first + len_bytes / PAGE_SIZE)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_ram_is_one_region_from_zero() {
        let layout = RamLayout::new(256 << 20).unwrap();
        assert_eq!(layout.regions().count(), 1);
        assert_eq!(layout.end(), Gpa(256 << 20));
        assert_eq!(layout.high(), None);
    }

    #[test]
    fn eight_gib_continue_above_the_hole_without_losing_a_page() {
        let layout = RamLayout::new(8 << 30).unwrap();
        let regions: Vec<_> = layout.regions().collect();
        assert_eq!(regions[0].gpa_range(), Gpa(0)..HOLE_START);
        assert_eq!(regions[1].gpa_range(), HOLE_END..Gpa(9 << 30));
        assert_eq!(regions[1].first.0, regions[0].nr_pages);
        assert_eq!(
            regions.iter().map(|r| r.nr_pages).sum::<u64>(),
            layout.nr_pages()
        );
    }

    #[test]
    fn sizes_that_cannot_be_are_refused_by_value() {
        assert_eq!(RamLayout::new(0), Err(LayoutError::Zero));
        assert_eq!(RamLayout::new(4097), Err(LayoutError::NotPageAligned(4097)));
        assert_eq!(
            RamLayout::new(u64::MAX),
            Err(LayoutError::TooLarge(u64::MAX))
        );
        assert!(RamLayout::new(MAX_RAM_BYTES).is_ok());
    }

    #[test]
    fn a_range_is_found_only_when_every_byte_of_it_is_ram() {
        let layout = RamLayout::new(8 << 30).unwrap();
        assert_eq!(
            layout.pages_of(Gpa(0x1000), 0x2000),
            Some(PageIdx(1)..PageIdx(3))
        );
        assert_eq!(
            layout.pages_of(HOLE_END, 0x1000),
            Some(PageIdx(786_432)..PageIdx(786_433))
        );
        for (start, len) in [
            (HOLE_START.0 - 0x1000, 0x2000), // runs into the hole
            (HOLE_START.0, 0x1000),          // in the hole
            (9 << 30, 0x1000),               // past the end
            (0x1000, 0),
            (0x1001, 0x1000),
            (0x1000, 0x1001),
            (u64::MAX - 0xfff, 0x2000), // wraps
        ] {
            assert_eq!(
                layout.pages_of(Gpa(start), len),
                None,
                "{start:#x}+{len:#x}"
            );
        }
    }
}
