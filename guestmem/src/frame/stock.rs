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

    /// Copies `source` into one of the frames that are left, by its place.
    pub(crate) fn fill(&self, at: usize, source: Page<'_>) {
        let page = self.left.start + at as u64;
        assert!(page < self.left.end, "frame {at} of {:?}", self.left);
        if let Some(window) = &self.window {
            let frame = window.page(PageIdx(page - self.mapped_from));
            frame.copy_from(source);
        }
    }

    /// Takes the first `count` frames, no more than are left.
    pub(super) fn take(&mut self, count: usize) -> Range<u64> {
        let end = self.left.start + count as u64;
        assert!(end <= self.left.end, "{count} of {:?}", self.left);
        std::mem::replace(&mut self.left.start, end)..end
    }

    /// What is left is somebody else's to give back.
    pub(super) fn take_rest(&mut self) -> Range<u64> {
        std::mem::replace(&mut self.left, 0..0)
    }
}
