//! Frames allocated ahead of a freeze, so that what happens while a VM stands
//! still is copying and nothing else: no allocation, no fault, no failure.

use std::ops::Range;

use crate::layout::PageIdx;
use crate::sys::mapping::Mapping;
use crate::sys::page::Page;

/// Committed frames in a row that no list holds yet, mapped to be filled.
#[derive(Debug, Default)]
pub(crate) struct Stock {
    /// What is left, as file pages.
    left: Range<u64>,
    /// The file from `mapped_from` on.
    window: Option<Mapping>,
    mapped_from: u64,
}

impl Stock {
    /// The frames `pages`, which `window` maps shared.
    pub(super) fn new(pages: Range<u64>, window: Mapping) -> Self {
        Self {
            mapped_from: pages.start,
            left: pages,
            window: Some(window),
        }
    }

    /// The file page that is filled next.
    pub(crate) fn first(&self) -> u64 {
        self.left.start
    }

    /// How many frames are left.
    pub(crate) fn nr_left(&self) -> u64 {
        self.left.end - self.left.start
    }

    /// Copies `sources`, no more than are [left](Self::nr_left), into frames in
    /// a row.
    pub(super) fn fill(&mut self, sources: &[Page<'_>]) -> Range<u64> {
        let count = sources.len() as u64;
        assert!(count <= self.nr_left(), "{count} of {:?}", self.left);
        let taken = self.left.start..self.left.start + count;
        if let Some(window) = &self.window {
            for (page, source) in taken.clone().zip(sources) {
                window
                    .page(PageIdx(page - self.mapped_from))
                    .copy_from(*source);
            }
        }
        self.left.start = taken.end;
        taken
    }

    /// What is left is somebody else's to give back.
    pub(super) fn take_rest(&mut self) -> Range<u64> {
        std::mem::replace(&mut self.left, 0..0)
    }
}
