//! Changing whole ranges: runs of frames in, runs of markers in, everything out.
//!
//! All of them first reserve the slots they will write, which may fail and
//! changes nothing, then do what cannot fail.

use crate::PAGE_SIZE;
use crate::error::{EditError, InsertFramesError, RangeError};
use crate::list::PageList;
use crate::slab::OutOfMemory;
use crate::slot::{FrameId, Slot, SlotRef};

impl PageList {
    /// Stores `nr_pages` consecutive frames, `first` and up, from `offset` on.
    ///
    /// Every position must be Empty or a Marker. Much quicker than as many
    /// [`PageList::insert`]s.
    ///
    /// ```
    /// use pagelist::{FrameId, InsertFramesError, PageList, SlotRef};
    ///
    /// let mut list = PageList::new();
    /// list.insert_frames(0x2000, FrameId::new(100), 512)?;
    /// assert_eq!(list.get(0x3000), SlotRef::Page(FrameId::new(101)));
    ///
    /// let refused = list.insert_frames(0x1000, FrameId::new(0), 2);
    /// let frame = FrameId::new(100);
    /// assert_eq!(refused, Err(InsertFramesError::Occupied { offset: 0x2000, frame }));
    /// # list.remove_all_pages(|_| {});
    /// # Ok::<(), InsertFramesError>(())
    /// ```
    ///
    /// # Errors
    /// If the range is no range of this list, a position holds a page, the frame
    /// numbers run out, or memory cannot be had. Then nothing has changed.
    pub fn insert_frames(
        &mut self,
        offset: u64,
        first: FrameId,
        nr_pages: u64,
    ) -> Result<(), InsertFramesError> {
        let Some(len) = nr_pages.checked_mul(PAGE_SIZE) else {
            let (end, limit) = (u64::MAX, self.limit());
            return Err(RangeError::PastLimit { end, limit }.into());
        };
        let (start, end) = self.positions_of(offset, len)?;
        if start == end {
            return Ok(());
        }
        if nr_pages - 1 > u64::from(FrameId::MAX.index() - first.index()) {
            return Err(InsertFramesError::FrameNumbers { first, nr_pages });
        }
        if let Some((pos, frame)) = self.first_page_in(start, end) {
            let offset = self.offset(pos);
            return Err(InsertFramesError::Occupied { offset, frame });
        }
        if self.reserve_all(start, end).is_err() {
            return Err(InsertFramesError::OutOfMemory {
                start: offset,
                end: self.offset(end),
            });
        }
        let follow = self.markers_flow_out_of(end - 1);
        self.nr_markers -= self.markers_in(start, end);
        self.nr_pages += nr_pages;
        let mut at = start;
        let mut frame = first.index();
        while at < end {
            let reach = self.slab_reach(at, end);
            let slab = self.index.slab_mut(at).expect("reserved above");
            let range = slab.clip(at, reach);
            for slot in &mut slab.slots[range] {
                *slot = Slot::page(FrameId::new(frame));
                // One past the last is at most FrameId::MAX + 1, which fits.
                frame += 1;
            }
            at = reach;
        }
        if self.nr_markers != 0 {
            let last = self.slot(end - 1).with_markers_follow(follow);
            self.replace_slot(end - 1, last);
        }
        // Pages that replaced the last markers may have left explicit gaps beside
        // them, so this does not depend on there being markers now.
        self.tidy_around(start, end - 1);
        Ok(())
    }

    /// Turns all of `start..end` into markers; frames that were there go to
    /// `release` with their offsets, ascending.
    ///
    /// However long the range, it costs two slots.
    ///
    /// ```
    /// use pagelist::{PageList, SlotRef};
    ///
    /// let mut list = PageList::new();
    /// list.mark(0, 16 << 30, |_, _| {})?;
    /// assert_eq!(list.get(12 << 30), SlotRef::Marker);
    /// assert_eq!(list.marker_count(), 4 << 20);
    /// assert!(list.heap_allocation_bytes() < 2048);
    /// # Ok::<(), pagelist::EditError>(())
    /// ```
    ///
    /// # Errors
    /// If the range is no range of this list, or memory for the slots at its
    /// ends cannot be had. Then nothing has changed.
    pub fn mark(
        &mut self,
        start: u64,
        end: u64,
        mut release: impl FnMut(u64, FrameId),
    ) -> Result<(), EditError> {
        let (first, past) = self.positions(start, end)?;
        if first == past {
            return Ok(());
        }
        let last = past - 1;
        self.reserve_both(Some(first), Some(last))
            .map_err(|_| EditError::OutOfMemory { start, end })?;

        let follow = self.markers_flow_out_of(last);
        self.nr_markers += past - first - self.markers_in(first, past);
        if first != last {
            let stretch = first + 1 < last;
            self.overwrite(
                first,
                Slot::explicit(SlotRef::Marker, stretch),
                &mut release,
            );
            let keep = Cut {
                head: None,
                tail: Some(last),
            };
            self.strip_offsets(first + 1, last, &keep, &mut release);
        }
        self.overwrite(last, Slot::explicit(SlotRef::Marker, follow), &mut release);
        self.tidy_around(first, last);
        Ok(())
    }

    /// Empties `start..end`; frames go to `release` with their offsets,
    /// ascending, and markers vanish.
    ///
    /// ```
    /// use pagelist::{FrameId, PageList, SlotRef};
    ///
    /// let mut list = PageList::new();
    /// list.mark(0, 1 << 30, |_, _| {})?;
    /// list.clear(0x10_0000, 0x20_0000, |_, _| {})?;
    /// assert_eq!(list.get(0xf_f000), SlotRef::Marker);
    /// assert_eq!(list.get(0x10_0000), SlotRef::Empty);
    /// assert_eq!(list.get(0x20_0000), SlotRef::Marker);
    /// # Ok::<(), pagelist::EditError>(())
    /// ```
    ///
    /// # Errors
    /// If the range is no range of this list, or it cuts an interval of markers
    /// and memory for the slots at the cut cannot be had. Then nothing has changed.
    pub fn clear(
        &mut self,
        start: u64,
        end: u64,
        mut release: impl FnMut(u64, FrameId),
    ) -> Result<(), EditError> {
        let (first, past) = self.positions(start, end)?;
        if first == past {
            return Ok(());
        }
        let cut = self
            .reserve_cut(first, past)
            .map_err(|_| EditError::OutOfMemory { start, end })?;
        self.nr_markers -= self.markers_in(first, past);
        self.strip_offsets(first, past, &cut, &mut release);
        self.close_cut(first, past, &cut);
        Ok(())
    }

    /// The first page in the range.
    fn first_page_in(&self, start: u64, end: u64) -> Option<(u64, FrameId)> {
        self.index
            .slabs_from(start)
            .take_while(|slab| slab.base < end)
            .find_map(|slab| {
                slab.clip(start, end)
                    .find_map(|i| Some((slab.base + i as u64, slab.slots[i].frame()?)))
            })
    }

    /// Where the slab that has `pos` stops being the one responsible, at most `end`.
    fn slab_reach(&self, pos: u64, end: u64) -> u64 {
        let mut slabs = self.index.slabs_from(pos);
        let own = slabs.next().map_or(end, |slab| slab.end());
        let above = slabs.next().map_or(end, |slab| slab.base);
        own.min(above).min(end)
    }

    /// Slots for every position of the range, or none more than before.
    fn reserve_all(&mut self, start: u64, end: u64) -> Result<(), OutOfMemory> {
        let mut at = start;
        while at < end {
            if let Err(error) = self.reserve(at) {
                let mut undo = start;
                while undo < at {
                    let reach = self.slab_reach(undo, at);
                    self.give_back(undo);
                    undo = reach;
                }
                return Err(error);
            }
            at = self.slab_reach(at, end);
        }
        Ok(())
    }

    /// Slots for one or two positions, or none more than before.
    fn reserve_both(&mut self, one: Option<u64>, other: Option<u64>) -> Result<(), OutOfMemory> {
        if let Some(pos) = one {
            self.reserve(pos)?;
        }
        if let Some(pos) = other
            && let Err(error) = self.reserve(pos)
        {
            if let Some(pos) = one {
                self.give_back(pos);
            }
            return Err(error);
        }
        Ok(())
    }

    /// Reserves what emptying `first..past` will need where it cuts an interval.
    pub(crate) fn reserve_cut(&mut self, first: u64, past: u64) -> Result<Cut, OutOfMemory> {
        // A slot right before the range can end the stretch without our help.
        let head = self.markers_flow_into(first)
            && first
                .checked_sub(1)
                .is_some_and(|before| self.slot(before).is_vacant());
        let tail = self.markers_flow_out_of(past - 1);
        let cut = Cut {
            head: head.then_some(first),
            tail: tail.then_some(past - 1),
        };
        self.reserve_both(cut.head, cut.tail)?;
        Ok(cut)
    }

    /// Ends the markers before `first..past`, and begins those after it, once
    /// the range itself has been emptied but for the slots of `cut`.
    pub(crate) fn close_cut(&mut self, first: u64, past: u64, cut: &Cut) {
        let last = past - 1;
        if let Some(before) = first.checked_sub(1) {
            let slot = self.slot(before);
            if slot.markers_follow() {
                self.replace_slot(before, slot.with_markers_follow(false));
            }
        }
        if let Some(pos) = cut.head {
            self.replace_slot(pos, Slot::explicit(SlotRef::Empty, false));
        }
        if let Some(pos) = cut.tail {
            self.replace_slot(pos, Slot::explicit(SlotRef::Empty, true));
        }
        self.tidy_around(first, last);
    }

    /// Writes one reserved slot, releasing a frame it held.
    fn overwrite(&mut self, pos: u64, new: Slot, release: &mut impl FnMut(u64, FrameId)) {
        if let Some(frame) = self.replace_slot(pos, new).frame() {
            self.nr_pages -= 1;
            release(self.offset(pos), frame);
        }
    }

    /// [`PageList::strip`] with offsets in place of positions.
    fn strip_offsets(
        &mut self,
        start: u64,
        end: u64,
        keep: &Cut,
        release: &mut impl FnMut(u64, FrameId),
    ) {
        let skew = self.skew;
        self.strip(start, end, keep, |pos, frame| {
            release(pos * PAGE_SIZE - skew, frame);
        });
    }
}

/// Slots at the ends of an emptied range, where markers beyond it need one to
/// stop at. They are reserved and must not be given back.
pub(crate) struct Cut {
    pub(crate) head: Option<u64>,
    pub(crate) tail: Option<u64>,
}

impl PageList {
    /// The bases of the slabs that the slots of `cut` are in. Another slab may
    /// reach over the same positions, but it may go.
    pub(crate) fn slabs_of(&self, cut: &Cut) -> [Option<u64>; 2] {
        [cut.head, cut.tail].map(|pos| Some(self.index.slab(pos?)?.base))
    }
}
