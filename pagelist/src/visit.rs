//! Walks that call back, for those who want to stop, fail or take on the way.
//!
//! Callbacks answer [`Visit::Next`] to go on, [`Visit::Stop`] to end the walk
//! successfully, or an error, which ends it and is returned. All of them are
//! made of the same [`Walk`](crate::walk::Walk) as the iterators.

use crate::PAGE_SIZE;
use crate::error::{RemovePagesError, WalkError};
use crate::list::PageList;
use crate::slot::{PageOrMarker, Slot, SlotRef};

/// How a walk goes on after a callback.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Visit {
    /// Go on.
    Next,
    /// End the walk; it has succeeded.
    Stop,
}

/// What a callback of a walk answers.
pub type VisitResult<E> = Result<Visit, E>;

impl PageList {
    /// Calls `page` for everything stored, ascending.
    ///
    /// ```
    /// use pagelist::{FrameId, PageList, Visit};
    ///
    /// let mut list = PageList::new();
    /// list.insert_frames(0, FrameId::new(0), 5)?;
    /// let mut seen = 0;
    /// list.for_every_page(|_, _| {
    ///     seen += 1;
    ///     Ok::<_, ()>(if seen == 3 { Visit::Stop } else { Visit::Next })
    /// })
    /// .unwrap();
    /// assert_eq!(seen, 3);
    /// # list.remove_all_pages(|_| {});
    /// # Ok::<(), pagelist::InsertFramesError>(())
    /// ```
    ///
    /// # Errors
    /// What `page` fails with.
    pub fn for_every_page<E>(
        &self,
        page: impl FnMut(u64, SlotRef) -> VisitResult<E>,
    ) -> Result<(), E> {
        visit_all(self.iter(), page).map(|_| ())
    }

    /// Calls `page` for everything stored in `start..end`, ascending.
    ///
    /// ```
    /// use pagelist::{FrameId, PageList, WalkError};
    ///
    /// let mut list = PageList::new();
    /// list.insert_frames(0, FrameId::new(0), 5)?;
    /// let failed = list.for_every_page_in_range(0x2000, 0x5000, |offset, _| Err(offset));
    /// assert_eq!(failed, Err(WalkError::Callback(0x2000)));
    /// # list.remove_all_pages(|_| {});
    /// # Ok::<(), pagelist::InsertFramesError>(())
    /// ```
    ///
    /// # Errors
    /// If it is no range of this list, or what `page` fails with.
    pub fn for_every_page_in_range<E>(
        &self,
        start: u64,
        end: u64,
        page: impl FnMut(u64, SlotRef) -> VisitResult<E>,
    ) -> Result<(), WalkError<E>> {
        visit_all(self.range(start, end)?, page)
            .map(|_| ())
            .map_err(WalkError::Callback)
    }

    /// Calls `page` for everything stored in `start..end` and `gap` for every
    /// maximal gap, clipped to the range, all in ascending order.
    ///
    /// A gap is reported just before the content that ends it, the last one at
    /// the end. If `gap` stops the walk, the page after it is not reported.
    ///
    /// ```
    /// use pagelist::{FrameId, PageList, PageOrMarker, Visit};
    ///
    /// let mut list = PageList::new();
    /// list.insert(0x1000, PageOrMarker::marker())?;
    /// let seen = std::cell::RefCell::new(Vec::new());
    /// list.for_every_page_and_gap_in_range(
    ///     0,
    ///     0x3000,
    ///     |offset, _| {
    ///         seen.borrow_mut().push((offset, offset + 0x1000));
    ///         Ok::<_, ()>(Visit::Next)
    ///     },
    ///     |start, end| {
    ///         seen.borrow_mut().push((start, end));
    ///         Ok(Visit::Next)
    ///     },
    /// )
    /// .unwrap();
    /// assert_eq!(seen.into_inner(), [(0, 0x1000), (0x1000, 0x2000), (0x2000, 0x3000)]);
    /// # Ok::<(), pagelist::InsertError>(())
    /// ```
    ///
    /// # Errors
    /// If it is no range of this list, or what a callback fails with.
    pub fn for_every_page_and_gap_in_range<E>(
        &self,
        start: u64,
        end: u64,
        mut page: impl FnMut(u64, SlotRef) -> VisitResult<E>,
        mut gap: impl FnMut(u64, u64) -> VisitResult<E>,
    ) -> Result<(), WalkError<E>> {
        let mut at = start;
        let walked = visit_all(self.range(start, end)?, |offset, slot| {
            let before = core::mem::replace(&mut at, offset + PAGE_SIZE);
            if before < offset && gap(before, offset)? == Visit::Stop {
                return Ok(Visit::Stop);
            }
            page(offset, slot)
        });
        if walked.map_err(WalkError::Callback)? == Visit::Next && at < end {
            gap(at, end).map_err(WalkError::Callback)?;
        }
        Ok(())
    }

    /// Calls `page` for everything in `start..end` that satisfies `wanted`, and
    /// `run` for every run of such neighbours, once it is known where it ends
    /// and before any later `page`.
    ///
    /// If `page` stops or fails at some page, that page is part of its run and
    /// the run is still delivered; an error of `run` then wins over one of `page`.
    ///
    /// ```
    /// use pagelist::{FrameId, PageList, PageOrMarker, SlotRef, Visit};
    ///
    /// let mut list = PageList::new();
    /// list.insert_frames(0x1000, FrameId::new(0), 3)?;
    /// list.insert(0x4000, PageOrMarker::marker())?;
    /// let mut runs = Vec::new();
    /// list.for_every_page_and_contiguous_run_in_range(
    ///     0,
    ///     0x10000,
    ///     |_, slot| slot != SlotRef::Marker,
    ///     |_, _| Ok::<_, ()>(Visit::Next),
    ///     |start, end| {
    ///         runs.push(start..end);
    ///         Ok(Visit::Next)
    ///     },
    /// )
    /// .unwrap();
    /// assert_eq!(runs, [0x1000..0x4000]);
    /// # list.remove_all_pages(|_| {});
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If it is no range of this list, or what a callback fails with.
    pub fn for_every_page_and_contiguous_run_in_range<E>(
        &self,
        start: u64,
        end: u64,
        mut wanted: impl FnMut(u64, SlotRef) -> bool,
        mut page: impl FnMut(u64, SlotRef) -> VisitResult<E>,
        mut run: impl FnMut(u64, u64) -> VisitResult<E>,
    ) -> Result<(), WalkError<E>> {
        // Empty while no run is open.
        let mut open = start..start;
        let walked = visit_all(self.range(start, end)?, |offset, slot| {
            let wanted = wanted(offset, slot);
            if (!wanted || open.end != offset) && !open.is_empty() {
                let done = core::mem::replace(&mut open, 0..0);
                if run(done.start, done.end)? == Visit::Stop {
                    return Ok(Visit::Stop);
                }
            }
            if !wanted {
                return Ok(Visit::Next);
            }
            if open.is_empty() {
                open.start = offset;
            }
            open.end = offset + PAGE_SIZE;
            page(offset, slot)
        });
        if !open.is_empty() {
            run(open.start, open.end).map_err(WalkError::Callback)?;
        }
        walked.map(|_| ()).map_err(WalkError::Callback)
    }

    /// Calls `page` for everything stored in `start..end`, ascending; it may
    /// take or change what it is shown.
    ///
    /// Nodes that become empty are freed, also when the walk ends early.
    ///
    /// ```
    /// use pagelist::{FrameId, PageList, Visit};
    ///
    /// let mut list = PageList::new();
    /// list.insert_frames(0, FrameId::new(0), 4)?;
    /// let mut freed = Vec::new();
    /// list.remove_pages(0x1000, 0x3000, |offset, entry| {
    ///     freed.push((offset, entry.take().take_frame()));
    ///     Ok::<_, ()>(Visit::Next)
    /// })
    /// .unwrap();
    /// assert_eq!(freed[1], (0x2000, Some(FrameId::new(2))));
    /// assert_eq!(list.page_count(), 2);
    /// # list.remove_all_pages(|_| {});
    /// # Ok::<(), pagelist::InsertFramesError>(())
    /// ```
    ///
    /// # Errors
    /// If it is no range of this list; what `page` fails with; or if memory is
    /// needed to change something inside an interval of markers and cannot be had.
    pub fn remove_pages<E>(
        &mut self,
        start: u64,
        end: u64,
        mut page: impl FnMut(u64, &mut PageOrMarker) -> VisitResult<E>,
    ) -> Result<(), RemovePagesError<E>> {
        let (mut at, past) = self.positions(start, end)?;
        while at < past {
            let visited = if self.nr_markers == 0 {
                self.remove_from_slab(&mut at, past, &mut page)
                    .map_err(RemovePagesError::Callback)
            } else {
                self.remove_from_segment(&mut at, past, &mut page)
            };
            if visited? == Visit::Stop {
                break;
            }
        }
        Ok(())
    }

    /// One slab's worth of [`PageList::remove_pages`] in a list without markers.
    fn remove_from_slab<E>(
        &mut self,
        at: &mut u64,
        past: u64,
        page: &mut impl FnMut(u64, &mut PageOrMarker) -> VisitResult<E>,
    ) -> VisitResult<E> {
        let skew = self.skew;
        let base = self.index.base_from(*at).filter(|&base| base < past);
        let Some((base, slab)) =
            base.and_then(|base| Some((base, self.index.slab_mut(base.max(*at))?)))
        else {
            *at = past;
            return Ok(Visit::Next);
        };
        let mut visited = Ok(Visit::Next);
        let mut marked = None;
        let mut taken = 0;
        let mut reach = slab.end();
        for i in slab.clip(*at, past) {
            let Some(frame) = slab.slots[i].frame() else {
                continue;
            };
            let pos = base + i as u64;
            let mut entry = PageOrMarker::page(frame);
            visited = page(pos * PAGE_SIZE - skew, &mut entry);
            match entry.release() {
                SlotRef::Page(left) => slab.slots[i] = Slot::page(left),
                SlotRef::Empty => {
                    slab.slots[i] = Slot::VACANT;
                    taken += 1;
                }
                // The list has a marker now, which takes more than this.
                SlotRef::Marker => marked = Some(pos),
            }
            if marked.is_some() || !matches!(visited, Ok(Visit::Next)) {
                reach = pos + 1;
                break;
            }
        }
        let above = self.index.base_above(base).unwrap_or(past);
        self.nr_pages -= taken;
        if let Some(pos) = marked {
            self.set(pos, SlotRef::Marker);
        } else {
            self.give_back(base);
        }
        *at = reach.min(above).min(past).max(*at);
        visited
    }

    /// One page, or one stretch of markers, of [`PageList::remove_pages`].
    fn remove_from_segment<E>(
        &mut self,
        at: &mut u64,
        past: u64,
        page: &mut impl FnMut(u64, &mut PageOrMarker) -> VisitResult<E>,
    ) -> Result<Visit, RemovePagesError<E>> {
        let Some((offset, first)) = self.range_of(*at, past).next() else {
            *at = past;
            return Ok(Visit::Next);
        };
        let mut pos = self.pos(offset);
        if let SlotRef::Page(frame) = first {
            *at = pos + 1;
            let mut entry = PageOrMarker::page(frame);
            let visited = page(offset, &mut entry);
            if entry.view() != first {
                self.set(pos, entry.release());
            } else {
                entry.release();
            }
            return visited.map_err(RemovePagesError::Callback);
        }
        // Markers: those that are taken one after the other become one gap, with
        // the slots that takes and no more.
        let end = self.marker_run_end(pos, past);
        let taken_from = pos;
        let mut visited = Ok(Visit::Next);
        let mut left = PageOrMarker::empty();
        while pos < end && matches!(visited, Ok(Visit::Next)) {
            let mut entry = PageOrMarker::marker();
            visited = page(self.offset(pos), &mut entry);
            if !entry.is_empty() {
                left = entry;
                break;
            }
            pos += 1;
        }
        *at = pos;
        if taken_from < pos {
            let (start, end) = (self.offset(taken_from), self.offset(pos));
            // Nothing but markers is there, so there is nothing to release.
            if self.clear(start, end, |_, _| {}).is_err() {
                return Err(RemovePagesError::OutOfMemory {
                    offset: start,
                    entry: left,
                });
            }
        }
        if !left.is_empty() {
            *at = pos + 1;
            if !left.is_marker() {
                if self.reserve(pos).is_err() {
                    return Err(RemovePagesError::OutOfMemory {
                        offset: self.offset(pos),
                        entry: left,
                    });
                }
                self.set(pos, left.release());
            }
        }
        visited.map_err(RemovePagesError::Callback)
    }
}

/// Calls `page` for each; whether the walk went on to its end is in the answer.
fn visit_all<E>(
    entries: impl Iterator<Item = (u64, SlotRef)>,
    mut page: impl FnMut(u64, SlotRef) -> VisitResult<E>,
) -> VisitResult<E> {
    for (offset, slot) in entries {
        if page(offset, slot)? == Visit::Stop {
            return Ok(Visit::Stop);
        }
    }
    Ok(Visit::Next)
}
