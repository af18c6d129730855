//! Frame numbers: which are taken, and what a number means. No memory here.

use std::ops::Range;

use pagelist::FrameId;

use super::images::{Bridges, Images};
use crate::error::MemoryError;
use crate::layout::{HUGE_PAGE, PageIdx};
use crate::ordered::Ordered;
use crate::room;

/// Frame numbers from here on name pages of a leaf's own window.
pub(crate) const FIRST_PRIVATE: u32 = 1 << 29;

/// Where a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FrameHome {
    /// Page number in the tree's file.
    File(u64),
    /// This page of the window of the leaf whose list holds the frame.
    Window(PageIdx),
}

/// What `frame` names.
pub(crate) fn home(frame: FrameId) -> FrameHome {
    match frame.index().checked_sub(FIRST_PRIVATE) {
        None => FrameHome::File(u64::from(frame.index())),
        Some(page) => FrameHome::Window(PageIdx(u64::from(page))),
    }
}

/// Whether `frame` is a page of a leaf's own window.
pub(crate) fn is_private(frame: FrameId) -> bool {
    matches!(home(frame), FrameHome::Window(_))
}

/// The frame at `page` of the tree's file.
///
/// # Panics
/// If the file has no such page: it is never longer than frame numbers reach.
pub(crate) fn file_frame(page: u64) -> FrameId {
    let page = u32::try_from(page).unwrap_or(u32::MAX);
    assert!(page < FIRST_PRIVATE, "file page {page} has no frame number");
    FrameId::new(page)
}

/// The number of a leaf's private copy of `page`.
///
/// # Panics
/// If the page lies beyond what a root may have ([`FrameNumbers::new`]).
pub(crate) fn private_frame(page: PageIdx) -> FrameId {
    let page = u32::try_from(page.0).unwrap_or(u32::MAX);
    assert!(
        page < FIRST_PRIVATE,
        "page {page} has no private frame number"
    );
    FrameId::new(FIRST_PRIVATE + page)
}

/// The allocator of file pages: free stretches, coalesced.
#[derive(Debug)]
pub(crate) struct FrameNumbers {
    root_pages: u64,
    end: u64,
    /// Numbers that images may take together.
    most_in_images: u64,
    /// The first number of each stretch, by its end: numbers are taken from the
    /// front, which then needs no memory.
    free: Ordered<u64, u64>,
    images: Images,
}

impl FrameNumbers {
    /// File pages `0..root_pages` belong to root RAM for good: they are never
    /// handed out again, even when nothing is there any more, because windows
    /// may be mapped across their holes. The rest up to `end` can be taken.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn new(root_pages: u64, end: u64) -> Result<Self, MemoryError> {
        debug_assert!(root_pages <= end && end <= u64::from(FIRST_PRIVATE));
        let mut numbers = Self {
            root_pages,
            end,
            // They are mostly holes, and freezing needs numbers too.
            most_in_images: (end - root_pages) / 4,
            free: Ordered::default(),
            images: Images::default(),
        };
        numbers.free = numbers.free_without(&[])?;
        Ok(numbers)
    }

    /// What is free if only `held`, ascending runs, are taken.
    ///
    /// # Errors
    /// If there is no memory for the answer.
    pub(crate) fn free_without(
        &self,
        held: &[Range<u64>],
    ) -> Result<Ordered<u64, u64>, MemoryError> {
        let mut taken = room::collect(self.images.ranges())?;
        room::append(&mut taken, held.iter().cloned())?;
        taken.sort_unstable_by_key(|run| run.start);
        let mut free = Ordered::default();
        let mut at = self.root_pages;
        for run in taken.iter().chain([&(self.end..self.end)]) {
            if at < run.start {
                free.insert(run.start, at)?;
            }
            at = at.max(run.end);
        }
        Ok(free)
    }

    /// Only `held`, ascending runs, are taken; `free` is what is free then.
    pub(crate) fn hold_only(&mut self, held: &[Range<u64>], free: Ordered<u64, u64>) {
        self.images.hold_only(held);
        self.free = free;
    }

    /// Takes numbers for an image of `pages`, which will lie within 2 MiB in
    /// the file as they do in RAM, so that huge pages fit. `None` if there are
    /// not enough.
    ///
    /// # Errors
    /// If there is no memory to note it. Nothing has changed then.
    pub(crate) fn begin_image(
        &mut self,
        pages: &Range<u64>,
    ) -> Result<Option<Range<u64>>, MemoryError> {
        let count = pages.end - pages.start;
        let in_images: u64 = self.images.ranges().map(|of| of.end - of.start).sum();
        if in_images + count > self.most_in_images {
            return Ok(None);
        }
        let in_line = |start: u64| start + (pages.start.wrapping_sub(start)) % HUGE_PAGE;
        let fits = |(end, start): &(u64, &u64)| in_line(**start) + count <= *end;
        let Some((_, start)) = self.free.iter().find(fits) else {
            return Ok(None);
        };
        let first = in_line(*start);
        let numbers = first..first + count;
        self.images.begin(numbers.clone())?;
        let taken = self.take_within(numbers.clone());
        if taken.is_err() {
            self.images.give_up(first);
        }
        taken.map(|_| Some(numbers))
    }

    /// Of the image of `numbers`, `held` are taken; the others read zero.
    pub(crate) fn finish_image(
        &mut self,
        numbers: &Range<u64>,
        held: impl Iterator<Item = Range<u64>>,
    ) {
        self.images.finish(numbers.start, held);
    }

    /// `numbers`, of an image that was begun, are to be given back.
    pub(crate) fn give_up_image(&mut self, numbers: &Range<u64>) {
        self.images.give_up(numbers.start);
    }

    /// An image that nobody needs any more is none from now on; its numbers are
    /// to be given back.
    pub(crate) fn take_idle_image(&mut self) -> Option<Range<u64>> {
        self.images.take_idle()
    }

    /// The images that are finished, ascending.
    pub(crate) fn images(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.images.filled()
    }

    /// What may be mapped across, if holes of `root` may be.
    pub(crate) fn bridges(&self, root: Range<u64>) -> Bridges<'_> {
        Bridges {
            root,
            images: &self.images,
        }
    }

    /// The file pages of root RAM.
    pub(crate) fn root(&self) -> Range<u64> {
        0..self.root_pages
    }

    /// All file pages.
    pub(crate) fn all(&self) -> Range<u64> {
        0..self.end
    }

    /// Takes `count` numbers in a row, the lowest that fit.
    pub(crate) fn take(&mut self, count: u64) -> Option<Range<u64>> {
        let fits = |(end, start): &(u64, &mut u64)| *end - **start >= count;
        let (end, first) = self.free.at_or_after_mut(&0).find(fits)?;
        let start = *first;
        *first += count;
        if *first == end {
            self.free.remove(&end);
        }
        Some(start..start + count)
    }

    /// Takes all that are free within `range`.
    ///
    /// # Errors
    /// If there is no memory to tell which. Nothing has changed then.
    pub(crate) fn take_within(
        &mut self,
        range: Range<u64>,
    ) -> Result<Vec<Range<u64>>, MemoryError> {
        let overlapping = self.free.at_or_after(&(range.start + 1));
        let overlapping = overlapping.map(|(end, start)| *start..end);
        let mut found = room::collect(overlapping.take_while(|run| run.start < range.end))?;
        // Of the first a part may stay before the range: the only one that is new.
        if let Some(first) = found.first()
            && first.start < range.start
        {
            self.free.insert(range.start, first.start)?;
        }
        for run in &mut found {
            if range.end < run.end {
                let first = self.free.get_mut(&run.end).expect("found above");
                *first = range.end;
            } else {
                self.free.remove(&run.end);
            }
            *run = run.start.max(range.start)..run.end.min(range.end);
        }
        Ok(found)
    }

    /// Gives numbers back. Those of root RAM stay reserved, and those of images
    /// as long as there is the image.
    ///
    /// # Errors
    /// If there is no memory to note it. They stay taken then.
    pub(crate) fn give_back(&mut self, numbers: Range<u64>) -> Result<(), MemoryError> {
        let Self {
            images,
            free,
            root_pages,
            ..
        } = self;
        let mut noted = Ok(());
        images.let_go(numbers, |run| {
            if let Err(error) = add_free(free, run.start.max(*root_pages)..run.end) {
                noted = Err(error);
            }
        });
        noted
    }
}
/// `numbers` become free, together with their neighbours.
fn add_free(free: &mut Ordered<u64, u64>, numbers: Range<u64>) -> Result<(), MemoryError> {
    let Range { start, end } = numbers;
    if start >= end {
        return Ok(());
    }
    let before = free.get(&start).copied();
    let first = before.unwrap_or(start);
    let after = free.at_or_after_mut(&(start + 1)).next();
    match after {
        Some((_, after)) if *after == end => *after = first,
        after => {
            debug_assert!(
                after.is_none_or(|(_, after)| end < *after),
                "frames {numbers:?} given back twice"
            );
            free.insert(end, first)?;
        }
    }
    if before.is_some() {
        free.remove(&start);
    }
    Ok(())
}

/// File pages collected one by one, in runs where they are neighbours.
///
/// Collecting cannot fail, because those who have to give frames back cannot
/// stop half-way. Where there is no memory to note a run it goes astray: it is
/// in no list any more, and is found by looking for what no list holds.
#[derive(Debug, Default)]
pub(crate) struct FrameSet {
    runs: Vec<Range<u64>>,
    astray: bool,
}

impl FrameSet {
    /// Makes sure that none of the next `count` runs goes astray.
    pub(crate) fn reserve(&mut self, count: usize) -> Result<(), MemoryError> {
        room::reserve(&mut self.runs, count)
    }

    /// Adds `frame`, unless it lives in a window, which keeps its own.
    pub(crate) fn add(&mut self, frame: FrameId) {
        let FrameHome::File(page) = home(frame) else {
            return;
        };
        match self.runs.last_mut() {
            Some(last) if last.end == page => last.end += 1,
            _ => self.add_run(page..page + 1),
        }
    }

    /// Adds a run of file pages.
    pub(crate) fn add_run(&mut self, pages: Range<u64>) {
        match self.reserve(1) {
            Ok(()) => self.runs.push(pages),
            Err(_) => self.astray = true,
        }
    }

    /// Whether some have gone astray.
    pub(crate) fn is_astray(&self) -> bool {
        self.astray
    }

    /// The runs, ascending and maximal.
    pub(crate) fn into_runs(mut self) -> Vec<Range<u64>> {
        self.runs.sort_unstable_by_key(|run| run.start);
        self.runs.dedup_by(|next, run| {
            let neighbours = run.end == next.start;
            if neighbours {
                run.end = next.end;
            }
            neighbours
        });
        self.runs
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "one run is a list of runs")]
mod tests {
    use super::*;

    #[test]
    fn numbers_given_back_in_any_order_become_one_stretch_again() {
        let mut numbers = FrameNumbers::new(10, 100).unwrap();
        let taken: Vec<_> = (0..9).map(|_| numbers.take(10).unwrap()).collect();
        assert_eq!(numbers.take(1), None);
        for i in [4, 0, 8, 2, 6, 1, 7, 3, 5] {
            numbers.give_back(taken[i].clone()).unwrap();
        }
        assert_eq!(numbers.take(90), Some(10..100));
    }

    #[test]
    fn numbers_of_root_ram_are_never_handed_out_again() {
        let mut numbers = FrameNumbers::new(10, 12).unwrap();
        numbers.give_back(0..10).unwrap();
        assert_eq!(numbers.take(3), None);
        assert_eq!(numbers.take(2), Some(10..12));
    }

    #[test]
    fn what_is_free_in_a_range_can_be_taken_and_the_rest_stays_free() {
        let mut numbers = FrameNumbers::new(10, 100).unwrap();
        assert_eq!(numbers.take(90), Some(10..100));
        for run in [10..20, 30..31, 40..50] {
            numbers.give_back(run).unwrap();
        }
        assert_eq!(numbers.take_within(20..30).unwrap(), []);
        assert_eq!(
            numbers.take_within(15..45).unwrap(),
            [15..20, 30..31, 40..45]
        );
        assert_eq!(numbers.take_within(0..100).unwrap(), [10..15, 45..50]);
        numbers.give_back(0..100).unwrap();
        assert_eq!(
            numbers.take_within(50..60).unwrap(),
            [50..60],
            "out of one stretch"
        );
        assert_eq!(numbers.take(41), None);
        assert_eq!(numbers.take(40), Some(10..50));
    }

    #[test]
    fn an_image_is_in_line_and_its_numbers_come_back_with_it() {
        let mut numbers = FrameNumbers::new(10, 10_010).unwrap();
        let image = numbers.begin_image(&(700..900)).unwrap().unwrap();
        assert_eq!(image, 188..388);
        numbers.finish_image(&image, [190..200, 387..388].into_iter());
        let larger = numbers.begin_image(&(0..2301)).unwrap();
        assert_eq!(larger, None, "a quarter at most");
        assert_eq!(numbers.take(200), Some(388..588));
        numbers.give_back(195..588).unwrap();
        assert_eq!(numbers.take(201), Some(388..589));
        numbers.give_back(190..195).unwrap();
        assert_eq!(numbers.take_idle_image(), Some(188..388));
        numbers.give_back(188..388).unwrap();
        assert_eq!(numbers.take(378), Some(10..388));
    }

    #[test]
    fn images_stay_when_all_other_numbers_are_found_again() {
        let mut numbers = FrameNumbers::new(10, 10_010).unwrap();
        let image = numbers.begin_image(&(700..900)).unwrap().unwrap();
        numbers.finish_image(&image, [190..200, 387..388].into_iter());
        let pins: Vec<_> = numbers.bridges(0..0).pins(190..191).collect();
        assert_eq!(numbers.take(178), Some(10..188));
        let held = [20..30, 195..196];
        let free = numbers.free_without(&held).unwrap();
        numbers.hold_only(&held, free);
        assert_eq!(numbers.take(10), Some(10..20));
        assert_eq!(numbers.take(159), Some(388..547), "not 30..188");
        assert_eq!(numbers.take(158), Some(30..188));
        assert!(numbers.bridges(0..0).are_holes(&(190..195)));
        numbers.give_back(195..196).unwrap();
        assert_eq!(numbers.take_idle_image(), None);
        drop(pins);
        assert_eq!(numbers.take_idle_image(), Some(188..388));
    }

    #[test]
    fn a_set_of_frames_is_as_few_runs_as_possible() {
        let mut set = FrameSet::default();
        for frame in [7, 8, 3, 4, 5, 6, 1] {
            set.add(FrameId::new(frame));
        }
        set.add(private_frame(PageIdx(9)));
        assert_eq!(set.into_runs(), [1..2, 3..9]);
    }
}
