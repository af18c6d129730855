//! Reading in order: entries, runs, gaps, and a cursor.
//!
//! One walk, [`Walk`], goes through the slabs; everything else is made of it.

use core::ops;

use crate::PAGE_SIZE;
use crate::error::RangeError;
use crate::fill::vacant_view;
use crate::index::Slabs;
use crate::list::PageList;
use crate::slab::Slab;
use crate::slot::{FrameId, Slot, SlotRef};

/// One page, or a stretch of markers (not necessarily all of a run).
#[derive(Clone, Copy)]
pub(crate) enum Segment {
    Page(u64, FrameId),
    Markers(u64, u64),
}

/// Everything stored in a range of positions, ascending.
#[derive(Clone)]
pub(crate) struct Walk<'a> {
    /// Slots of the slab being walked that are in the range and not yet seen
    /// from `i` on.
    slots: &'a [Slot],
    i: usize,
    /// Position of `slots[0]`.
    base: u64,
    /// Whether vacant slots are markers here.
    flow: bool,
    end: u64,
    next: Option<&'a Slab>,
    rest: Slabs<'a>,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(list: &'a PageList, start: u64, end: u64) -> Self {
        let mut rest = list.index.slabs_from(start);
        Walk {
            slots: &[],
            i: 0,
            base: start,
            flow: list.markers_flow_into(start),
            end,
            next: rest.next(),
            rest,
        }
    }

    /// The position that comes next.
    #[inline]
    fn at(&self) -> u64 {
        self.base + self.i as u64
    }

    /// Moves on to the next slab, over the missing ones before it; gives the
    /// markers those are.
    #[cold]
    fn enter_next_slab(&mut self) -> Option<Result<(), Segment>> {
        let at = self.at();
        let resume = self.next.map_or(self.end, |slab| slab.base.max(at));
        let resume = resume.min(self.end);
        if resume > at {
            self.slots = &[];
            self.i = 0;
            self.base = resume;
            if self.flow {
                return Some(Err(Segment::Markers(at, resume)));
            }
        }
        if resume == self.end {
            return None;
        }
        let slab = self.next?;
        self.next = self.rest.next();
        let reach = self.next.map_or(self.end, |above| above.base);
        self.slots = &slab.slots[slab.clip(resume, reach.min(self.end))];
        self.i = 0;
        self.base = resume;
        Some(Ok(()))
    }
}

impl Iterator for Walk<'_> {
    type Item = Segment;

    #[inline]
    fn next(&mut self) -> Option<Segment> {
        loop {
            while let Some(&slot) = self.slots.get(self.i) {
                let pos = self.at();
                if slot.is_vacant() {
                    if self.flow {
                        let rest = &self.slots[self.i..];
                        let run = rest.iter().take_while(|slot| slot.is_vacant()).count();
                        self.i += run;
                        return Some(Segment::Markers(pos, pos + run as u64));
                    }
                    self.i += 1;
                    continue;
                }
                self.i += 1;
                self.flow = slot.markers_follow();
                match slot.view() {
                    SlotRef::Page(frame) => return Some(Segment::Page(pos, frame)),
                    SlotRef::Marker => return Some(Segment::Markers(pos, pos + 1)),
                    SlotRef::Empty => {}
                }
            }
            if let Err(markers) = self.enter_next_slab()? {
                return Some(markers);
            }
        }
    }
}

impl PageList {
    /// Everything stored, ascending: each page and each marker with its offset.
    ///
    /// Intervals are given page by page; [`PageList::runs`] gives them whole.
    ///
    /// ```
    /// use pagelist::{FrameId, PageList, PageOrMarker, SlotRef};
    ///
    /// let mut list = PageList::new();
    /// list.insert(0x8000, PageOrMarker::page(FrameId::new(1)))?;
    /// list.mark(0x1000, 0x3000, |_, _| {})?;
    /// let all: Vec<_> = list.iter().collect();
    /// assert_eq!(all[0], (0x1000, SlotRef::Marker));
    /// assert_eq!(all[1], (0x2000, SlotRef::Marker));
    /// assert_eq!(all[2], (0x8000, SlotRef::Page(FrameId::new(1))));
    /// # list.remove_all_pages(|_| {});
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn iter(&self) -> Iter<'_> {
        Iter::new(self, 0, self.pos(self.limit()))
    }

    /// What is stored in `start..end`, ascending.
    ///
    /// ```
    /// use pagelist::{FrameId, PageList};
    ///
    /// let mut list = PageList::new();
    /// list.insert_frames(0, FrameId::new(0), 8)?;
    /// let offsets: Vec<u64> = list.range(0x2000, 0x4000)?.map(|(offset, _)| offset).collect();
    /// assert_eq!(offsets, [0x2000, 0x3000]);
    /// # list.remove_all_pages(|_| {});
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If it is no range of this list.
    pub fn range(&self, start: u64, end: u64) -> Result<Iter<'_>, RangeError> {
        let (start, end) = self.positions(start, end)?;
        Ok(Iter::new(self, start, end))
    }

    /// The runs in `start..end`, ascending and as long as they can be: frames
    /// consecutive in offset *and* number, or markers. Gaps are left out.
    ///
    /// ```
    /// use pagelist::{FrameId, PageList, Run, RunKind};
    ///
    /// let mut list = PageList::new();
    /// list.insert_frames(0, FrameId::new(10), 4)?;
    /// list.mark(0x4000, 0x8000_0000, |_, _| {})?;
    /// let runs: Vec<Run> = list.runs(0x1000, 0x8000_0000)?.collect();
    /// let frames = RunKind::Frames { first: FrameId::new(11) };
    /// assert_eq!(runs[0], Run { start: 0x1000, end: 0x4000, kind: frames });
    /// assert_eq!(runs[1], Run { start: 0x4000, end: 0x8000_0000, kind: RunKind::Marker });
    /// assert_eq!(runs.len(), 2);
    /// # list.remove_all_pages(|_| {});
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If it is no range of this list.
    pub fn runs(&self, start: u64, end: u64) -> Result<Runs<'_>, RangeError> {
        let (start, end) = self.positions(start, end)?;
        Ok(Runs::new(self, start, end))
    }

    /// Entries at positions `start..end`.
    pub(crate) fn range_of(&self, start: u64, end: u64) -> Iter<'_> {
        Iter::new(self, start, end)
    }

    /// Where the markers that begin at `pos` end, at most at `past`.
    pub(crate) fn marker_run_end(&self, pos: u64, past: u64) -> u64 {
        let mut end = pos;
        for segment in Walk::new(self, pos, past) {
            match segment {
                Segment::Markers(start, reach) if start == end => end = reach,
                _ => break,
            }
        }
        end
    }

    /// All runs of the list.
    pub(crate) fn all_runs(&self) -> Runs<'_> {
        Runs::new(self, 0, self.pos(self.limit()))
    }

    /// The gaps in `start..end`, ascending: maximal ranges where nothing is stored.
    ///
    /// ```
    /// use pagelist::{FrameId, PageList};
    ///
    /// let mut list = PageList::new();
    /// list.insert_frames(0x2000, FrameId::new(0), 2)?;
    /// let gaps: Vec<_> = list.gaps(0, 0x10_0000)?.collect();
    /// assert_eq!(gaps, [0..0x2000, 0x4000..0x10_0000]);
    /// # list.remove_all_pages(|_| {});
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If it is no range of this list.
    pub fn gaps(&self, start: u64, end: u64) -> Result<Gaps<'_>, RangeError> {
        let (start, end) = self.positions(start, end)?;
        Ok(Gaps {
            walk: Walk::new(self, start, end),
            at: start,
            end,
            skew: self.skew,
        })
    }

    /// Whether `start..end` holds anything, be it a page or a marker.
    ///
    /// ```
    /// use pagelist::{PageList, PageOrMarker};
    ///
    /// let mut list = PageList::new();
    /// list.insert(0x5000, PageOrMarker::marker())?;
    /// assert!(list.any_pages_in_range(0x4000, 0x6000)?);
    /// assert!(!list.any_pages_in_range(0x6000, 0x7000)?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If it is no range of this list.
    pub fn any_pages_in_range(&self, start: u64, end: u64) -> Result<bool, RangeError> {
        let (start, end) = self.positions(start, end)?;
        Ok(Walk::new(self, start, end).next().is_some())
    }

    /// A reader that is quick when it is asked for neighbouring offsets.
    ///
    /// ```
    /// use pagelist::{FrameId, PageList, SlotRef};
    ///
    /// let mut list = PageList::new();
    /// list.insert_frames(0, FrameId::new(0), 100)?;
    /// let mut cursor = list.cursor();
    /// for page in 0..100 {
    ///     assert_eq!(cursor.get(page * 4096), SlotRef::Page(FrameId::new(page as u32)));
    /// }
    /// # list.remove_all_pages(|_| {});
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn cursor(&self) -> Cursor<'_> {
        Cursor {
            list: self,
            slots: &[],
            base: 0,
        }
    }
}

/// Entries in order; see [`PageList::iter`] and [`PageList::range`].
#[derive(Clone)]
pub struct Iter<'a> {
    walk: Walk<'a>,
    /// Markers found but not yet given.
    markers: ops::Range<u64>,
    skew: u64,
}

impl<'a> Iter<'a> {
    fn new(list: &'a PageList, start: u64, end: u64) -> Self {
        Iter {
            walk: Walk::new(list, start, end),
            markers: 0..0,
            skew: list.skew,
        }
    }
}

impl Iterator for Iter<'_> {
    type Item = (u64, SlotRef);

    #[inline]
    fn next(&mut self) -> Option<(u64, SlotRef)> {
        if let Some(pos) = self.markers.next() {
            return Some((pos * PAGE_SIZE - self.skew, SlotRef::Marker));
        }
        match self.walk.next()? {
            Segment::Page(pos, frame) => Some((pos * PAGE_SIZE - self.skew, SlotRef::Page(frame))),
            Segment::Markers(start, end) => {
                self.markers = start + 1..end;
                Some((start * PAGE_SIZE - self.skew, SlotRef::Marker))
            }
        }
    }
}

impl<'a> IntoIterator for &'a PageList {
    type Item = (u64, SlotRef);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// What a [`Run`] is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunKind {
    /// Frames `first`, `first + 1`, and so on, one a page.
    Frames {
        /// The frame of the first page.
        first: FrameId,
    },
    /// Markers.
    Marker,
}

/// Neighbouring pages that belong together; see [`PageList::runs`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Offset of the first page.
    pub start: u64,
    /// Offset after the last page.
    pub end: u64,
    /// What they hold.
    pub kind: RunKind,
}

impl Run {
    /// Its length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.end - self.start
    }

    /// Its length in pages.
    pub fn nr_pages(&self) -> u64 {
        self.len_bytes() / PAGE_SIZE
    }
}

/// A run being collected, in positions.
#[derive(Clone, Copy)]
struct OpenRun {
    start: u64,
    end: u64,
    first: Option<FrameId>,
}

impl OpenRun {
    #[inline]
    fn begin(segment: Segment) -> Self {
        let (start, end, first) = match segment {
            Segment::Page(pos, frame) => (pos, pos + 1, Some(frame)),
            Segment::Markers(start, end) => (start, end, None),
        };
        OpenRun { start, end, first }
    }

    /// Takes on what follows, or gives it back as the start of another run.
    #[inline]
    fn extend(&mut self, segment: Segment) -> Result<(), OpenRun> {
        let next = OpenRun::begin(segment);
        let belongs = next.start == self.end
            && match (self.first, next.first) {
                (None, None) => true,
                (Some(first), Some(frame)) => {
                    u64::from(first.index()) + (next.start - self.start) == u64::from(frame.index())
                }
                _ => false,
            };
        if belongs {
            self.end = next.end;
            Ok(())
        } else {
            Err(next)
        }
    }
}

/// Runs in order; see [`PageList::runs`].
#[derive(Clone)]
pub struct Runs<'a> {
    walk: Walk<'a>,
    open: Option<OpenRun>,
    skew: u64,
}

impl<'a> Runs<'a> {
    fn new(list: &'a PageList, start: u64, end: u64) -> Self {
        Runs {
            walk: Walk::new(list, start, end),
            open: None,
            skew: list.skew,
        }
    }

    fn close(&self, run: OpenRun) -> Run {
        Run {
            start: run.start * PAGE_SIZE - self.skew,
            end: run.end * PAGE_SIZE - self.skew,
            kind: match run.first {
                Some(first) => RunKind::Frames { first },
                None => RunKind::Marker,
            },
        }
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => OpenRun::begin(self.walk.next()?),
        };
        for segment in self.walk.by_ref() {
            if let Err(next) = open.extend(segment) {
                self.open = Some(next);
                break;
            }
        }
        Some(self.close(open))
    }
}

/// Gaps in order; see [`PageList::gaps`].
#[derive(Clone)]
pub struct Gaps<'a> {
    walk: Walk<'a>,
    at: u64,
    end: u64,
    skew: u64,
}

impl Iterator for Gaps<'_> {
    type Item = ops::Range<u64>;

    fn next(&mut self) -> Option<ops::Range<u64>> {
        loop {
            let (start, end) = match self.walk.next() {
                Some(Segment::Page(pos, _)) => (pos, pos + 1),
                Some(Segment::Markers(start, end)) => (start, end),
                None => (self.end, self.end),
            };
            let gap = self.at..start;
            self.at = end;
            if !gap.is_empty() {
                let offset = |pos: u64| pos * PAGE_SIZE - self.skew;
                return Some(offset(gap.start)..offset(gap.end));
            }
            if start == self.end {
                return None;
            }
        }
    }
}

/// Reads neighbouring offsets quickly; see [`PageList::cursor`].
#[derive(Clone)]
pub struct Cursor<'a> {
    list: &'a PageList,
    /// The slots last read from, without those that another slab is responsible for.
    slots: &'a [Slot],
    base: u64,
}

impl Cursor<'_> {
    /// What is stored at `offset`, as [`PageList::get`] has it.
    #[inline]
    pub fn get(&mut self, offset: u64) -> SlotRef {
        let pos = self.list.pos(offset);
        let slot = usize::try_from(pos.wrapping_sub(self.base))
            .ok()
            .and_then(|i| self.slots.get(i));
        match slot {
            Some(slot) if !slot.is_vacant() => slot.view(),
            Some(_) if self.list.nr_markers == 0 => SlotRef::Empty,
            Some(_) => vacant_view(self.list.markers_flow_into(pos)),
            None => self.move_to(pos),
        }
    }

    #[cold]
    fn move_to(&mut self, pos: u64) -> SlotRef {
        let mut slabs = self.list.index.slabs_from(pos);
        if let Some(slab) = slabs.next().filter(|slab| slab.base <= pos) {
            let reach = slabs.next().map_or(slab.end(), |above| above.base);
            self.slots = &slab.slots[slab.clip(slab.base, reach)];
            self.base = slab.base;
        }
        self.list.view(pos)
    }
}
