//! Entries taken out of one list, to be supplied elsewhere one by one.

use alloc::vec::{self, Vec};

use crate::edit::Cut;
use crate::error::{EditError, FramesError, FramesErrorKind, RangeError, SpliceDone};
use crate::fill::vacant_view;
use crate::leak;
use crate::list::PageList;
use crate::slab::{Chain, OutOfMemory, Slab, Thin};
use crate::slot::{FrameId, PageOrMarker, Slot, SlotRef};
use crate::{MAX_SIZE, PAGE_SIZE};

/// A range of entries that belongs to no list; see [`PageList::take_pages`].
///
/// Positions come out in order, each exactly once, Empty where nothing was.
/// Dropping one that still owns frames is a bug, as it is for a list:
/// [`PageSpliceList::free_all`] drains it.
pub struct PageSpliceList {
    offset: u64,
    len: u64,
    /// Bytes popped so far.
    done: u64,
    nr_pages: u64,
    source: Source,
}

enum Source {
    /// Slabs out of a list. Their positions are those of that list.
    Slabs {
        chain: Chain,
        /// The position that is popped next.
        pos: u64,
        /// Whether a vacant slot is a marker there.
        flow: bool,
    },
    Frames(vec::IntoIter<FrameId>),
}

impl PageList {
    /// Moves the content of `offset..offset + len` out.
    ///
    /// The cost grows with what is stored there, not with the length.
    ///
    /// ```
    /// use pagelist::{FrameId, PageList};
    ///
    /// let mut list = PageList::new();
    /// list.insert_frames(0x1000, FrameId::new(7), 2)?;
    /// let mut splice = list.take_pages(0x2000, 0x2000)?;
    /// assert_eq!(splice.pop()?.take_frame(), Some(FrameId::new(8)));
    /// assert!(splice.pop()?.is_empty());
    /// assert!(splice.is_done());
    /// assert_eq!(list.page_count(), 1);
    /// # list.remove_all_pages(|_| {});
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If it is no range of this list, or memory for the nodes at its ends
    /// cannot be had. Then nothing has changed.
    pub fn take_pages(&mut self, offset: u64, len: u64) -> Result<PageSpliceList, EditError> {
        let (first, past) = self.positions_of(offset, len)?;
        let mut splice = PageSpliceList {
            offset,
            len,
            done: 0,
            nr_pages: 0,
            source: Source::Slabs {
                chain: Chain::default(),
                pos: first,
                flow: false,
            },
        };
        if first == past {
            return Ok(splice);
        }
        let out_of_memory = |_| EditError::OutOfMemory {
            start: offset,
            end: offset + len,
        };
        let cut = self.reserve_cut(first, past).map_err(out_of_memory)?;
        let mut halves = match self.reserve_halves(first, past, &cut) {
            Ok(halves) => halves,
            Err(error) => {
                for pos in [cut.head, cut.tail].into_iter().flatten() {
                    self.give_back(pos);
                }
                return Err(out_of_memory(error));
            }
        };

        let flow = self.markers_flow_into(first);
        self.nr_markers -= self.markers_in(first, past);
        let nr_pages = self.nr_pages;
        let chain = self.detach(first, past, &cut, &mut halves);
        self.close_cut(first, past, &cut);
        splice.nr_pages = nr_pages - self.nr_pages;
        splice.source = Source::Slabs {
            chain,
            pos: first,
            flow,
        };
        Ok(splice)
    }

    /// A slab for each end of the range where the one that is there has to stay.
    fn reserve_halves(
        &self,
        first: u64,
        past: u64,
        cut: &Cut,
    ) -> Result<[Option<Thin<Slab>>; 2], OutOfMemory> {
        let straddled = |pos: u64| self.index.slab(pos).is_some_and(|slab| slab.base != pos);
        let half = |wanted: bool| wanted.then(|| Thin::try_new(Slab::new(0))).transpose();
        Ok([
            half(cut.head.is_some() || straddled(first))?,
            half(cut.tail.is_some() || straddled(past))?,
        ])
    }

    /// Moves `first..past` into a chain. Totals are adjusted for pages only.
    fn detach(
        &mut self,
        first: u64,
        past: u64,
        cut: &Cut,
        halves: &mut [Option<Thin<Slab>>; 2],
    ) -> Chain {
        let mut chain = Chain::default();
        let kept = self.slabs_of(cut);
        let straddles_end = self.index.slab(past).map(|slab| slab.base);
        let mut above = past;
        while above > first {
            let Some(slab) = self.index.floor(above - 1) else {
                break;
            };
            let base = slab.base;
            above = base;
            if slab.end() <= first {
                break;
            }
            let needed = kept.contains(&Some(base));
            let stays = base < first || Some(base) == straddles_end || needed;
            let moved = if stays {
                let half = halves.iter_mut().find_map(Option::take);
                half.map(|half| self.move_slots(base, first, past, half))
            } else {
                self.index.remove(base)
            };
            if stays && !needed {
                self.give_back(base);
            }
            if let Some(moved) = moved.filter(|slab| !slab.is_vacant()) {
                self.nr_pages -= moved.slots.iter().filter(|slot| slot.is_page()).count() as u64;
                chain.push_front(moved);
            }
        }
        chain
    }

    /// Moves the slots of one slab that are in the range into another.
    fn move_slots(&mut self, base: u64, first: u64, past: u64, mut to: Thin<Slab>) -> Thin<Slab> {
        to.base = base;
        if let Some(slab) = self.index.slab_mut(base) {
            for i in slab.clip(first, past) {
                to.slots[i] = core::mem::replace(&mut slab.slots[i], Slot::VACANT);
            }
        }
        to
    }
}

impl PageSpliceList {
    /// A splice list made of frames, one a page, for `offset..offset + len`.
    ///
    /// ```
    /// use pagelist::{FrameId, PageSpliceList};
    ///
    /// let frames = vec![FrameId::new(3), FrameId::new(1)];
    /// let mut splice = PageSpliceList::from_frames(0x4000, 0x2000, frames)?;
    /// assert_eq!(splice.pop()?.take_frame(), Some(FrameId::new(3)));
    /// splice.free_all(|frame| assert_eq!(frame, FrameId::new(1)));
    ///
    /// let refused = PageSpliceList::from_frames(0, 0x3000, vec![FrameId::new(5)]).unwrap_err();
    /// assert_eq!(refused.into_frames(), [FrameId::new(5)]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If it is no range, or the frames are not one a page. The error owns the frames.
    pub fn from_frames(offset: u64, len: u64, frames: Vec<FrameId>) -> Result<Self, FramesError> {
        let kind = match frames_fit(offset, len, frames.len() as u64) {
            Ok(()) => {
                return Ok(PageSpliceList {
                    offset,
                    len,
                    done: 0,
                    nr_pages: frames.len() as u64,
                    source: Source::Frames(frames.into_iter()),
                });
            }
            Err(kind) => kind,
        };
        Err(FramesError { kind, frames })
    }

    /// Where the range begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How long the range is, what was popped included.
    pub fn len_bytes(&self) -> u64 {
        self.len
    }

    /// The offset of the entry that [`PageSpliceList::pop`] gives next.
    pub fn next_offset(&self) -> u64 {
        self.offset + self.done
    }

    /// How many frames it still owns.
    pub fn page_count(&self) -> u64 {
        self.nr_pages
    }

    /// Whether all positions were popped.
    pub fn is_done(&self) -> bool {
        self.done == self.len
    }

    /// The entry of the next position.
    ///
    /// # Errors
    /// If all were popped.
    pub fn pop(&mut self) -> Result<PageOrMarker, SpliceDone> {
        if self.is_done() {
            return Err(SpliceDone {
                end: self.next_offset(),
            });
        }
        self.done += PAGE_SIZE;
        let view = match &mut self.source {
            Source::Frames(frames) => frames.next().map_or(SlotRef::Empty, SlotRef::Page),
            Source::Slabs { chain, pos, flow } => {
                let at = *pos;
                *pos += 1;
                pop_slot(chain, at, flow)
            }
        };
        self.nr_pages -= u64::from(view.frame().is_some());
        Ok(PageOrMarker::own(view))
    }

    /// Gives all frames that are left to `release`, ascending, and is done.
    pub fn free_all(&mut self, mut release: impl FnMut(FrameId)) {
        self.done = self.len;
        self.nr_pages = 0;
        match &mut self.source {
            Source::Frames(frames) => frames.for_each(release),
            Source::Slabs { chain, .. } => {
                while let Some(slab) = chain.pop_front() {
                    for frame in slab.slots.iter().filter_map(|slot| slot.frame()) {
                        release(frame);
                    }
                }
            }
        }
    }
}

/// Takes the entry at `pos` out of a chain that begins at or after it.
fn pop_slot(chain: &mut Chain, pos: u64, flow: &mut bool) -> SlotRef {
    let Some(slab) = chain.front_mut().filter(|slab| slab.base <= pos) else {
        return vacant_view(*flow);
    };
    let i = slab.slot_index(pos);
    let slot = core::mem::replace(&mut slab.slots[i], Slot::VACANT);
    if slab.is_vacant() {
        chain.pop_front();
    }
    if slot.is_vacant() {
        return vacant_view(*flow);
    }
    *flow = slot.markers_follow();
    slot.view()
}

/// Whether `nr_frames` are one a page of a range that can be.
fn frames_fit(offset: u64, len: u64, nr_frames: u64) -> Result<(), FramesErrorKind> {
    for value in [offset, len] {
        if !value.is_multiple_of(PAGE_SIZE) {
            return Err(RangeError::Unaligned(value).into());
        }
    }
    if len > MAX_SIZE.saturating_sub(offset) {
        let end = offset.saturating_add(len);
        let limit = MAX_SIZE;
        return Err(RangeError::PastLimit { end, limit }.into());
    }
    if len / PAGE_SIZE != nr_frames {
        return Err(FramesErrorKind::Count { nr_frames, len });
    }
    Ok(())
}

impl Drop for PageSpliceList {
    fn drop(&mut self) {
        leak::check(self.nr_pages, "a splice list");
    }
}

impl core::fmt::Debug for PageSpliceList {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("PageSpliceList")
            .field("offset", &self.offset)
            .field("len", &self.len)
            .field("done", &self.done)
            .field("pages", &self.nr_pages)
            .finish()
    }
}
