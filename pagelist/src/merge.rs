//! Two lists into one.
//!
//! Both merges are the same fusion of a *winner* and a *loser*: where the winner
//! holds something it stays, and a page of the loser under it is released;
//! elsewhere the loser shows. `child.merge_from(parent)` lets the child win,
//! `source.merge_onto(receiver)` the source.

use crate::error::MergeError;
use crate::fuse::{Rule, Side, fuse};
use crate::list::PageList;
use crate::rebuild::Builder;
use crate::slot::{FrameId, PageOrMarker, SlotRef};
use crate::{NODE_SPAN, PAGE_SIZE};

impl PageList {
    /// Moves the parent's content in `offset..end` into this list, the child,
    /// which begins at the parent's `offset`. The parent ends empty.
    ///
    /// What the child holds wins, markers included: a parent's page under it
    /// goes to `release`, as do all pages outside the range. A parent's page
    /// where the child is Empty goes to `migrate`, which gives it back to have it
    /// moved in, or keeps it and gives Empty (or a Marker). A parent's marker
    /// moves in. Offsets given to the callbacks are the parent's; within the
    /// range they ascend.
    ///
    /// Nothing is allocated, and once the arguments are checked nothing can fail.
    /// If a callback panics both lists are left empty, and their frames leak.
    ///
    /// ```
    /// use pagelist::{FrameId, PageList, PageOrMarker, SlotRef};
    ///
    /// let mut parent = PageList::new();
    /// parent.insert_frames(0x10000, FrameId::new(0), 4)?;
    /// let mut child = PageList::new();
    /// child.insert(0, PageOrMarker::page(FrameId::new(50)))?;
    /// child.insert(0x1000, PageOrMarker::marker())?;
    ///
    /// let mut freed = Vec::new();
    /// child.merge_from(
    ///     &mut parent,
    ///     0x10000,
    ///     0x13000,
    ///     |offset, frame| freed.push((offset, frame.index())),
    ///     |_, page| page,
    /// )?;
    /// assert_eq!(child.get(0), SlotRef::Page(FrameId::new(50)));
    /// assert_eq!(child.get(0x1000), SlotRef::Marker);
    /// assert_eq!(child.get(0x2000), SlotRef::Page(FrameId::new(2)));
    /// assert_eq!(child.get(0x3000), SlotRef::Empty); // outside the range
    /// freed.sort();
    /// assert_eq!(freed, [(0x10000, 0), (0x11000, 1), (0x13000, 3)]);
    /// assert!(parent.is_empty());
    /// # child.remove_all_pages(|_| {});
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If the range is no range of the parent, or the lists do not agree on
    /// skew: the child's must be that of the parent's `offset`.
    pub fn merge_from(
        &mut self,
        parent: &mut PageList,
        offset: u64,
        end: u64,
        release: impl FnMut(u64, FrameId),
        migrate: impl FnMut(u64, PageOrMarker) -> PageOrMarker,
    ) -> Result<(), MergeError> {
        let (first, past) = parent.positions(offset, end)?;
        let place = parent.skew + offset % NODE_SPAN;
        if place % NODE_SPAN != self.skew {
            return Err(MergeError::Skew {
                wanted: place % NODE_SPAN,
                found: self.skew,
            });
        }
        let mut loser = Side::take(parent);
        let mut rule = ChildWins {
            release,
            migrate,
            shift: first - self.skew / PAGE_SIZE,
            skew: parent.skew,
        };
        let mut builder = Builder::default();
        loser.clip(first, past, &mut builder, |pos, frame| {
            (rule.release)(pos * PAGE_SIZE - rule.skew, frame);
        });
        loser.shift_down(rule.shift, &mut builder);
        let winner = Side::take(self);
        fuse(winner, loser, builder, &mut rule, self);
        Ok(())
    }

    /// Replaces the receiver's content by this list's, the source's, where the
    /// source holds something, be it a page or a marker. Replaced pages go to
    /// `release` with their offsets, ascending. The source ends empty.
    ///
    /// Nothing is allocated, and once the skews are checked nothing can fail.
    /// If `release` panics both lists are left empty, and their frames leak.
    ///
    /// ```
    /// use pagelist::{FrameId, PageList, PageOrMarker, SlotRef};
    ///
    /// let mut receiver = PageList::new();
    /// receiver.insert_frames(0, FrameId::new(0), 3)?;
    /// let mut source = PageList::new();
    /// source.insert(0, PageOrMarker::marker())?;
    /// source.insert(0x1000, PageOrMarker::page(FrameId::new(9)))?;
    ///
    /// let mut freed = Vec::new();
    /// source.merge_onto(&mut receiver, |_, frame| freed.push(frame.index()))?;
    /// assert_eq!(receiver.get(0), SlotRef::Marker);
    /// assert_eq!(receiver.get(0x1000), SlotRef::Page(FrameId::new(9)));
    /// assert_eq!(receiver.get(0x2000), SlotRef::Page(FrameId::new(2)));
    /// assert_eq!(freed, [0, 1]);
    /// assert!(source.is_empty());
    /// # receiver.remove_all_pages(|_| {});
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If the skews differ.
    pub fn merge_onto(
        &mut self,
        receiver: &mut PageList,
        release: impl FnMut(u64, FrameId),
    ) -> Result<(), MergeError> {
        if self.skew != receiver.skew {
            return Err(MergeError::Skew {
                wanted: self.skew,
                found: receiver.skew,
            });
        }
        let winner = Side::take(self);
        let loser = Side::take(receiver);
        let mut rule = SourceWins {
            release,
            skew: self.skew,
        };
        fuse(winner, loser, Builder::default(), &mut rule, receiver);
        Ok(())
    }
}

struct ChildWins<R, M> {
    release: R,
    migrate: M,
    /// From the child's positions to the parent's.
    shift: u64,
    /// The parent's.
    skew: u64,
}

impl<R, M> Rule for ChildWins<R, M>
where
    R: FnMut(u64, FrameId),
    M: FnMut(u64, PageOrMarker) -> PageOrMarker,
{
    const ASKS: bool = true;

    fn covered(&mut self, pos: u64, frame: FrameId) {
        (self.release)((pos + self.shift) * PAGE_SIZE - self.skew, frame);
    }

    #[inline]
    fn shown(&mut self, pos: u64, frame: FrameId) -> SlotRef {
        let offset = (pos + self.shift) * PAGE_SIZE - self.skew;
        (self.migrate)(offset, PageOrMarker::page(frame)).release()
    }
}

struct SourceWins<R> {
    release: R,
    skew: u64,
}

impl<R: FnMut(u64, FrameId)> Rule for SourceWins<R> {
    const ASKS: bool = false;

    fn covered(&mut self, pos: u64, frame: FrameId) {
        (self.release)(pos * PAGE_SIZE - self.skew, frame);
    }

    fn shown(&mut self, _pos: u64, frame: FrameId) -> SlotRef {
        SlotRef::Page(frame)
    }
}
