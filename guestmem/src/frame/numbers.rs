//! Frame numbers: which are taken, and what a number means. No memory here.

use std::collections::BTreeMap;
use std::ops::Range;

use pagelist::FrameId;

use super::images::{Bridges, ImagePin, Images};
use crate::layout::{HUGE_PAGE, PageIdx};

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
    /// Numbers that images may take together.
    most_in_images: u64,
    free: BTreeMap<u64, u64>, // start → end
    images: Images,
}

impl FrameNumbers {
    /// File pages `0..root_pages` belong to root RAM for good: they are never
    /// handed out again, even when nothing is there any more, because windows
    /// may be mapped across their holes. The rest up to `end` can be taken.
    pub(crate) fn new(root_pages: u64, end: u64) -> Self {
        debug_assert!(root_pages <= end && end <= u64::from(FIRST_PRIVATE));
        Self {
            root_pages,
            // They are mostly holes, and freezing needs numbers too.
            most_in_images: (end - root_pages) / 4,
            free: BTreeMap::from([(root_pages, end)]),
            images: Images::default(),
        }
    }

    /// Takes numbers for an image of `pages`, which will lie within 2 MiB in
    /// the file as they do in RAM, so that huge pages fit.
    pub(crate) fn take_image(&mut self, pages: &Range<u64>) -> Option<Range<u64>> {
        let count = pages.end - pages.start;
        let in_images: u64 = self.images.ranges().map(|of| of.end - of.start).sum();
        if in_images + count > self.most_in_images {
            return None;
        }
        let in_line = |start: u64| start + (pages.start.wrapping_sub(start)) % HUGE_PAGE;
        let fits = |(start, end): (&u64, &u64)| in_line(*start) + count <= *end;
        let (start, _) = self.free.iter().find(|stretch| fits(*stretch))?;
        let first = in_line(*start);
        self.take_within(first..first + count);
        Some(first..first + count)
    }

    /// `numbers` are an image from now on, of which `held` are taken; the
    /// others read zero.
    pub(crate) fn add_image(
        &mut self,
        numbers: Range<u64>,
        held: impl Iterator<Item = Range<u64>>,
    ) {
        self.images.add(numbers, held);
    }

    /// Pins of the images that `numbers` reach into.
    pub(crate) fn pins(&self, numbers: Range<u64>) -> impl Iterator<Item = ImagePin> + '_ {
        self.images.pins(numbers)
    }

    /// The images, ascending.
    pub(crate) fn images(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.images.ranges()
    }

    /// Images that nobody needs any more are none from now on; their numbers are to be
    /// given back.
    pub(crate) fn take_idle_images(&mut self) -> Vec<Range<u64>> {
        self.images.take_idle()
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

    /// Takes `count` numbers in a row, the lowest that fit.
    pub(crate) fn take(&mut self, count: u64) -> Option<Range<u64>> {
        let (&start, &end) = self
            .free
            .iter()
            .find(|(start, end)| **end - **start >= count)?;
        self.free.remove(&start);
        if start + count < end {
            self.free.insert(start + count, end);
        }
        Some(start..start + count)
    }

    /// Takes all that are free within `range`.
    pub(crate) fn take_within(&mut self, range: Range<u64>) -> Vec<Range<u64>> {
        let before = self.free.range(..range.start).next_back();
        let inside = self.free.range(range.clone());
        let overlapping: Vec<_> = before
            .into_iter()
            .chain(inside)
            .map(|(start, end)| *start..*end)
            .filter(|run| range.start < run.end)
            .collect();
        let mut taken = Vec::new();
        for run in overlapping {
            self.free.remove(&run.start);
            if run.start < range.start {
                self.free.insert(run.start, range.start);
            }
            if range.end < run.end {
                self.free.insert(range.end, run.end);
            }
            taken.push(run.start.max(range.start)..run.end.min(range.end));
        }
        taken
    }

    /// Gives numbers back. Those of root RAM stay reserved, and those of images
    /// as long as there is the image.
    pub(crate) fn give_back(&mut self, numbers: Range<u64>) {
        for others in self.images.let_go(numbers) {
            self.free_run(others);
        }
    }

    fn free_run(&mut self, numbers: Range<u64>) {
        let start = numbers.start.max(self.root_pages);
        if start >= numbers.end {
            return;
        }
        let mut merged = start..numbers.end;
        if let Some((&before, &end)) = self.free.range(..merged.start).next_back() {
            debug_assert!(
                end <= merged.start,
                "frame {} given back twice",
                merged.start
            );
            if end == merged.start {
                self.free.remove(&before);
                merged.start = before;
            }
        }
        if let Some((&after, &end)) = self.free.range(merged.start..).next() {
            debug_assert!(merged.end <= after, "frame {after} given back twice");
            if after == merged.end {
                self.free.remove(&after);
                merged.end = end;
            }
        }
        self.free.insert(merged.start, merged.end);
    }
}

/// File pages collected one by one, in runs where they are neighbours.
#[derive(Debug, Default)]
pub(crate) struct FrameSet {
    runs: Vec<Range<u64>>,
}

impl FrameSet {
    /// Adds `frame`, unless it lives in a window, which keeps its own.
    pub(crate) fn add(&mut self, frame: FrameId) {
        let FrameHome::File(page) = home(frame) else {
            return;
        };
        match self.runs.last_mut() {
            Some(last) if last.end == page => last.end += 1,
            _ => self.runs.push(page..page + 1),
        }
    }

    /// Adds a run of file pages.
    pub(crate) fn add_run(&mut self, pages: Range<u64>) {
        self.runs.push(pages);
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
        let mut numbers = FrameNumbers::new(10, 100);
        let taken: Vec<_> = (0..9).map(|_| numbers.take(10).unwrap()).collect();
        assert_eq!(numbers.take(1), None);
        for i in [4, 0, 8, 2, 6, 1, 7, 3, 5] {
            numbers.give_back(taken[i].clone());
        }
        assert_eq!(numbers.take(90), Some(10..100));
    }

    #[test]
    fn numbers_of_root_ram_are_never_handed_out_again() {
        let mut numbers = FrameNumbers::new(10, 12);
        numbers.give_back(0..10);
        assert_eq!(numbers.take(3), None);
        assert_eq!(numbers.take(2), Some(10..12));
    }

    #[test]
    fn what_is_free_in_a_range_can_be_taken_and_the_rest_stays_free() {
        let mut numbers = FrameNumbers::new(10, 100);
        assert_eq!(numbers.take(90), Some(10..100));
        for run in [10..20, 30..31, 40..50] {
            numbers.give_back(run);
        }
        assert_eq!(numbers.take_within(20..30), []);
        assert_eq!(numbers.take_within(15..45), [15..20, 30..31, 40..45]);
        assert_eq!(numbers.take_within(0..100), [10..15, 45..50]);
        numbers.give_back(0..100);
        assert_eq!(numbers.take_within(50..60), [50..60], "out of one stretch");
        assert_eq!(numbers.take(41), None);
        assert_eq!(numbers.take(40), Some(10..50));
    }

    #[test]
    fn an_image_is_in_line_and_its_numbers_come_back_with_it() {
        let mut numbers = FrameNumbers::new(10, 10_010);
        let image = numbers.take_image(&(700..900)).unwrap();
        assert_eq!(image, 188..388);
        numbers.add_image(image, [190..200, 387..388].into_iter());
        assert_eq!(numbers.take_image(&(0..2301)), None, "a quarter at most");
        assert_eq!(numbers.take(200), Some(388..588));
        numbers.give_back(195..588);
        assert_eq!(numbers.take(201), Some(388..589));
        numbers.give_back(190..195);
        let idle = numbers.take_idle_images();
        assert_eq!(idle, [188..388]);
        idle.into_iter().for_each(|image| numbers.give_back(image));
        assert_eq!(numbers.take(378), Some(10..388));
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
