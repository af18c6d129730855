//! What `benches/pages.rs` measures and no user of the crate needs.

use crate::layout::PageIdx;
use crate::sys::mapping::{HugePages, Mapping};

/// Two stretches of pages, all zero and all committed.
#[doc(hidden)]
#[derive(Debug)]
pub struct PagePairs {
    nr_pages: u64,
    first: Mapping,
    second: Mapping,
}

impl PagePairs {
    /// `nr_pages` of each.
    pub fn new(nr_pages: u64) -> std::io::Result<Self> {
        let pairs = Self {
            nr_pages,
            first: Mapping::anonymous(nr_pages, HugePages::Never)?,
            second: Mapping::anonymous(nr_pages, HugePages::Never)?,
        };
        for page in pairs.pages() {
            pairs.first.page(page).clear();
            pairs.second.page(page).clear();
        }
        Ok(pairs)
    }

    /// How many of the first are zero.
    pub fn count_zero(&self) -> usize {
        let zero = |page: &PageIdx| self.first.page(*page).read().is_zero();
        self.pages().filter(zero).count()
    }

    /// How many of the first equal their second.
    pub fn count_equal(&self) -> usize {
        let equal = |page: &PageIdx| {
            let second = self.second.page(*page).read();
            self.first.page(*page).read().equals(second)
        };
        self.pages().filter(equal).count()
    }

    /// Copies the second over the first.
    pub fn copy(&self) {
        for page in self.pages() {
            self.first
                .page(page)
                .copy_from(self.second.page(page).read());
        }
    }

    /// Clears the first.
    pub fn clear(&self) {
        self.pages().for_each(|page| self.first.page(page).clear());
    }

    fn pages(&self) -> impl Iterator<Item = PageIdx> {
        (0..self.nr_pages).map(PageIdx)
    }
}
