//! The list itself: its fields, its limits and its totals.

use crate::error::{RangeError, SkewError};
use crate::index::Index;
use crate::slab::NODE_SLOTS;
use crate::slot::FrameId;
use crate::{MAX_SIZE, NODE_SPAN, PAGE_SIZE, leak};

/// An ordered map from page-aligned offsets to pages and markers.
///
/// See the [crate documentation](crate) for what it is for. An empty list owns
/// no memory, and [`core::mem::take`] moves a whole list out in constant time
/// (what it leaves has skew 0).
///
/// ```
/// use pagelist::{FrameId, PageList, PageOrMarker, SlotRef};
///
/// let mut list = PageList::new();
/// list.insert(0x3000, PageOrMarker::page(FrameId::new(8)))?;
/// list.mark(0x10000, 0x4000_0000, |_, _| {})?;
///
/// assert_eq!(list.get(0x3000), SlotRef::Page(FrameId::new(8)));
/// assert_eq!(list.get(0x2345_6000), SlotRef::Marker);
/// assert_eq!(list.get(0x4000), SlotRef::Empty);
/// assert_eq!((list.page_count(), list.marker_count()), (1, 0x3fff0));
///
/// list.remove_all_pages(|frame| assert_eq!(frame.index(), 8));
/// assert_eq!(list.heap_allocation_bytes(), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Default)]
pub struct PageList {
    pub(crate) index: Index,
    /// Bytes that offsets are shifted by; a multiple of the page size, below the node span.
    pub(crate) skew: u64,
    /// Slots that hold a frame.
    pub(crate) nr_pages: u64,
    /// Positions that are markers, those without a slot of their own included.
    /// While it is 0 every occupied slot is a page.
    pub(crate) nr_markers: u64,
}

impl PageList {
    /// A list that holds nothing, with skew 0.
    pub const fn new() -> Self {
        PageList {
            index: Index::new(),
            skew: 0,
            nr_pages: 0,
            nr_markers: 0,
        }
    }

    /// Gives an empty list the skew of its place in a parent: it begins at
    /// `parent_offset` of a list whose skew is `parent_skew`.
    ///
    /// Lists that agree on skew agree on which slot of a node a page is in, so
    /// that a merge moves whole nodes.
    ///
    /// ```
    /// use pagelist::PageList;
    ///
    /// let parent = PageList::new();
    /// let mut child = PageList::new();
    /// child.initialize_skew(parent.skew(), 0x1_3000)?;
    /// assert_eq!(child.skew(), 0x3000);
    /// # Ok::<(), pagelist::SkewError>(())
    /// ```
    ///
    /// # Errors
    /// If the list is not empty, or a value is not page-aligned.
    pub fn initialize_skew(
        &mut self,
        parent_skew: u64,
        parent_offset: u64,
    ) -> Result<(), SkewError> {
        for value in [parent_skew, parent_offset] {
            if !value.is_multiple_of(PAGE_SIZE) {
                return Err(SkewError::Unaligned(value));
            }
        }
        if !self.is_empty() {
            return Err(SkewError::NotEmpty(
                self.nr_pages.saturating_add(self.nr_markers),
            ));
        }
        self.skew = (parent_skew % NODE_SPAN + parent_offset % NODE_SPAN) % NODE_SPAN;
        Ok(())
    }

    /// Bytes that node boundaries are shifted by, below 64 KiB.
    pub fn skew(&self) -> u64 {
        self.skew
    }

    /// The first offset that is too large for this list.
    pub fn limit(&self) -> u64 {
        MAX_SIZE - self.skew
    }

    /// Whether nothing is stored: neither a page nor a marker.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Whether no frame is owned. Markers are allowed.
    pub fn has_no_pages(&self) -> bool {
        self.nr_pages == 0
    }

    /// How many frames the list owns.
    pub fn page_count(&self) -> u64 {
        self.nr_pages
    }

    /// How many page positions are markers, each page of an interval counted.
    pub fn marker_count(&self) -> u64 {
        self.nr_markers
    }

    /// Bytes of heap the list holds; 0 when it is empty.
    pub fn heap_allocation_bytes(&self) -> usize {
        self.index.heap_bytes()
    }

    /// Takes everything out: each frame goes to `release`, ascending, and the
    /// markers vanish. The skew stays.
    ///
    /// ```
    /// use pagelist::{FrameId, PageList};
    ///
    /// let mut list = PageList::new();
    /// list.insert_frames(0, FrameId::new(5), 3)?;
    /// let mut freed = Vec::new();
    /// list.remove_all_pages(|frame| freed.push(frame.index()));
    /// assert_eq!(freed, [5, 6, 7]);
    /// assert!(list.is_empty());
    /// # Ok::<(), pagelist::InsertFramesError>(())
    /// ```
    pub fn remove_all_pages(&mut self, mut release: impl FnMut(FrameId)) {
        let index = core::mem::take(&mut self.index);
        self.nr_pages = 0;
        self.nr_markers = 0;
        for slab in index.slabs_from(0) {
            for frame in slab.slots.iter().filter_map(|slot| slot.frame()) {
                release(frame);
            }
        }
    }

    /// The position of a page. Offsets that no page can have (unaligned, past
    /// the limit) give a position that no slot and no marker can have.
    #[inline]
    pub(crate) fn pos(&self, offset: u64) -> u64 {
        // No branches: rotating moves the bits below the page size to the top,
        // where they make the position larger than any that exists, and an
        // offset so large that the sum wraps lands below the skew, where
        // nothing ever is.
        offset
            .wrapping_add(self.skew)
            .rotate_right(PAGE_SIZE.trailing_zeros())
    }

    /// The offset of the page at `pos`.
    #[inline]
    pub(crate) fn offset(&self, pos: u64) -> u64 {
        pos * PAGE_SIZE - self.skew
    }

    /// Positions of a range that may lie anywhere up to the limit.
    pub(crate) fn positions(&self, start: u64, end: u64) -> Result<(u64, u64), RangeError> {
        for value in [start, end] {
            if !value.is_multiple_of(PAGE_SIZE) {
                return Err(RangeError::Unaligned(value));
            }
        }
        if end < start {
            return Err(RangeError::Reversed { start, end });
        }
        if end > self.limit() {
            return Err(RangeError::PastLimit {
                end,
                limit: self.limit(),
            });
        }
        Ok((self.pos(start), self.pos(end)))
    }

    /// The same for a range given by its length.
    pub(crate) fn positions_of(&self, start: u64, len: u64) -> Result<(u64, u64), RangeError> {
        if !len.is_multiple_of(PAGE_SIZE) {
            return Err(RangeError::Unaligned(len));
        }
        match start.checked_add(len) {
            Some(end) => self.positions(start, end),
            None => Err(RangeError::PastLimit {
                end: u64::MAX,
                limit: self.limit(),
            }),
        }
    }
}

impl Drop for PageList {
    fn drop(&mut self) {
        leak::check(self.nr_pages, "a page list");
    }
}

impl core::fmt::Debug for PageList {
    /// Totals and runs, not single pages: a list may hold millions.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "PageList {{ skew: {:#x}, pages: {}, markers: {}, runs: ",
            self.skew, self.nr_pages, self.nr_markers
        )?;
        f.debug_list().entries(self.all_runs()).finish()?;
        f.write_str(" }")
    }
}

// What a skew is for: node boundaries are 16 pages apart.
const _: () = assert!(NODE_SPAN == NODE_SLOTS * PAGE_SIZE);
// Sharing a list between threads is the owner's lock's business, not ours.
const _: () = {
    const fn sendable<T: Send + Sync>() {}
    sendable::<PageList>();
};
