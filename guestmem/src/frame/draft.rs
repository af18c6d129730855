//! An image on its way: frames that no list holds yet.

use std::ops::Range;

/// File pages for the RAM pages `pages`, some of them filled.
#[derive(Debug)]
pub(crate) struct Draft {
    pages: Range<u64>,
    first: u64,
    /// How many are committed, and counted as being in stock.
    pub(super) filled: u64,
}

impl Draft {
    /// For `pages`, at the file pages from `first` on.
    pub(super) fn new(pages: Range<u64>, first: u64) -> Self {
        Self {
            pages,
            first,
            filled: 0,
        }
    }

    /// Where `page` lies.
    pub(crate) fn file_page(&self, page: u64) -> u64 {
        debug_assert!(self.pages.contains(&page));
        self.first + (page - self.pages.start)
    }

    /// All of its file pages.
    pub(super) fn numbers(&self) -> Range<u64> {
        self.first..self.first + (self.pages.end - self.pages.start)
    }
}
