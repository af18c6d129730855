//! How a window over a layer is made of mappings, within a budget.
//!
//! Every run of frames costs a mapping (microseconds, and one of the 65,530
//! the kernel allows a process). So runs are bridged where the file itself
//! reads zero between them, and when there are still too many, the smallest
//! are copied into the window instead. Everything else is anonymous memory.

use std::ops::Range;
use std::sync::Arc;

use super::view::{Source, ViewRun};
use crate::error::MemoryError;
use crate::frame::{Bridges, FrameHome, ImagePin, home};
use crate::room;

/// Gaps of at most this many pages are bridged even when mappings are not
/// scarce. A bridged gap that is read commits a zero frame in the file, an
/// anonymous one does not; but it saves two mappings.
const BRIDGE_ALWAYS: u64 = 16;

/// Pages of a window and the file pages behind them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct MapRun {
    pub(crate) pages: Range<u64>,
    pub(crate) file_page: u64,
}

impl MapRun {
    pub(crate) fn nr_pages(&self) -> u64 {
        self.pages.end - self.pages.start
    }

    pub(crate) fn file_pages(&self) -> Range<u64> {
        self.file_page..self.file_page + self.nr_pages()
    }

    /// Whether its pages lie in the file as root RAM, the file pages `root`,
    /// does: each at its own offset.
    pub(crate) fn is_in_place(&self, root: &Range<u64>) -> bool {
        self.pages.start == self.file_page && self.pages.end <= root.end
    }
}

/// What to map and what to copy so that a window shows a view. Pages in
/// neither read zero.
#[derive(Clone, Debug)]
pub(crate) struct WindowPlan {
    /// Mapped copy-on-write; ascending, at most the budget's number.
    pub(crate) maps: Arc<Vec<MapRun>>,
    /// Copied in when the window is made; ascending.
    pub(crate) copies: Arc<Vec<MapRun>>,
    /// Images that may be mapped across.
    pub(crate) images: Arc<Vec<ImagePin>>,
}

impl WindowPlan {
    /// The plan for `view`, with at most `budget` mappings. What lies between two
    /// visible runs may be mapped with them where [`Bridges`] says so, and only
    /// there.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn new(
        view: &[ViewRun],
        bridges: &Bridges<'_>,
        budget: usize,
    ) -> Result<Self, MemoryError> {
        let plan = Self::of(runs_to_map(view, bridges, budget)?, budget)?;
        let pins = plan.maps.iter().map(|run| bridges.pins(run.file_pages()));
        Ok(Self {
            images: Arc::new(room::collect(pins.flatten())?),
            ..plan
        })
    }

    /// The same for a view that shows these runs; keeps no images as they are.
    pub(super) fn of(mut maps: Vec<MapRun>, budget: usize) -> Result<Self, MemoryError> {
        if maps.len() <= budget {
            return Ok(Self {
                maps: Arc::new(maps),
                copies: Arc::default(),
                images: Arc::default(),
            });
        }
        // The longest keep their mappings; of those as long as the shortest of
        // them, as many as are left.
        let mut by_length = room::collect(maps.iter().map(MapRun::nr_pages))?;
        by_length.sort_unstable_by(|a, b| b.cmp(a));
        by_length.truncate(budget);
        let shortest = by_length.last().copied().unwrap_or(u64::MAX);
        let mut left = by_length.iter().filter(|len| **len == shortest).count();
        let mut copies = Vec::new();
        room::reserve(&mut copies, maps.len() - by_length.len())?;
        maps.retain(|run| {
            let as_short = run.nr_pages() == shortest && left > 0;
            left -= usize::from(as_short);
            let keeps = as_short || run.nr_pages() > shortest;
            if !keeps {
                copies.push(run.clone());
            }
            keeps
        });
        Ok(Self {
            maps: Arc::new(maps),
            copies: Arc::new(copies),
            images: Arc::default(),
        })
    }

    /// How many pages show root RAM, the file pages `root`, in its place.
    pub(crate) fn pages_in_place(&self, root: &Range<u64>) -> u64 {
        let in_place = self.maps.iter().filter(|run| run.is_in_place(root));
        in_place.map(MapRun::nr_pages).sum()
    }
}

/// The runs that a window over `view` shows, bridged as far as `budget` asks
/// for; there may be more of them.
pub(super) fn runs_to_map(
    view: &[ViewRun],
    bridges: &Bridges<'_>,
    budget: usize,
) -> Result<Vec<MapRun>, MemoryError> {
    let maps = bridged(view, bridges, BRIDGE_ALWAYS)?;
    if maps.len() <= budget {
        return Ok(maps);
    }
    bridged(view, bridges, u64::MAX)
}

fn bridged(
    view: &[ViewRun],
    bridges: &Bridges<'_>,
    bridge: u64,
) -> Result<Vec<MapRun>, MemoryError> {
    let mut maps: Vec<MapRun> = Vec::new();
    // Whether nothing but `Seen::Nothing` lies between the last map and here.
    let mut open = false;
    for run in view {
        let Source::Frames(first) = run.source else {
            open = false;
            continue;
        };
        let FrameHome::File(file_page) = home(first) else {
            unreachable!("a layer holds no private pages");
        };
        if let Some(last) = maps.last_mut() {
            let gap = run.pages.start - last.pages.end;
            let in_line = run.pages.start.wrapping_sub(file_page)
                == last.pages.start.wrapping_sub(last.file_page);
            let in_root =
                || open && gap <= bridge && bridges.join_in_root(last.file_page, file_page);
            // Also beneath a marker, because nothing was ever stored there.
            let in_image = || bridges.are_holes(&(last.file_pages().end..file_page));
            if in_line && (in_root() || in_image()) {
                last.pages.end = run.pages.end;
                continue;
            }
        }
        let run = MapRun {
            pages: run.pages.clone(),
            file_page,
        };
        room::push(&mut maps, run)?;
        open = true;
    }
    Ok(maps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Images;
    use pagelist::FrameId;

    fn frames(pages: Range<u64>, first: u32) -> ViewRun {
        ViewRun {
            pages,
            source: Source::Frames(FrameId::new(first)),
        }
    }

    fn zero(pages: Range<u64>) -> ViewRun {
        ViewRun {
            pages,
            source: Source::Zero,
        }
    }

    fn map(pages: Range<u64>, file_page: u64) -> MapRun {
        MapRun { pages, file_page }
    }

    /// Root RAM of 1000 pages.
    fn bridges(images: &Images) -> Bridges<'_> {
        Bridges {
            root: 0..1000,
            images,
        }
    }

    #[test]
    fn holes_of_an_image_are_bridged_however_long_and_beneath_markers_too() {
        let mut images = Images::default();
        images.begin(2000..3000).unwrap();
        images.finish(2000, [2000..2001, 2500..2501, 2502..2504].into_iter());
        let view = [
            frames(10..11, 2000),
            zero(300..301),
            frames(510..511, 2500),
            frames(513..514, 2503),
        ];
        let plan = WindowPlan::new(&view, &bridges(&images), 512).unwrap();
        // Behind page 512 the image has something that is not seen here.
        assert_eq!(*plan.maps, [map(10..511, 2000), map(513..514, 2503)]);
    }

    #[test]
    fn small_holes_of_root_ram_are_bridged_and_long_ones_are_not() {
        let images = Images::default();
        let view = [frames(0..4, 0), frames(8..10, 8), frames(500..510, 500)];
        let plan = WindowPlan::new(&view, &bridges(&images), 512).unwrap();
        assert_eq!(*plan.maps, [map(0..10, 0), map(500..510, 500)]);
        assert_eq!(*plan.copies, []);
    }

    #[test]
    fn a_marker_is_never_bridged_because_the_file_holds_old_data_there() {
        let images = Images::default();
        let view = [frames(0..4, 0), zero(4..5), frames(5..10, 5)];
        let plan = WindowPlan::new(&view, &bridges(&images), 1).unwrap();
        assert_eq!(*plan.maps, [map(5..10, 5)]);
        assert_eq!(*plan.copies, [map(0..4, 0)]);
    }

    #[test]
    fn packed_frames_are_never_bridged_because_others_own_what_lies_between() {
        let images = Images::default();
        let view = [frames(0..1, 2000), frames(2..3, 2002)];
        let plan = WindowPlan::new(&view, &bridges(&images), 512).unwrap();
        assert_eq!(plan.maps.len(), 2);
    }

    #[test]
    fn beyond_the_budget_the_shortest_runs_are_copied() {
        let images = Images::default();
        let view: Vec<_> = (0..8u32)
            .map(|i| {
                frames(
                    u64::from(i) * 100..u64::from(i) * 100 + 1 + u64::from(i),
                    2000 + 20 * i,
                )
            })
            .collect();
        let plan = WindowPlan::new(&view, &bridges(&images), 3).unwrap();
        assert_eq!(
            *plan.maps,
            [
                map(500..506, 2100),
                map(600..607, 2120),
                map(700..708, 2140)
            ]
        );
        assert_eq!(plan.copies.len(), 5);
    }

    #[test]
    fn a_long_run_keeps_its_mapping_however_many_short_ones_come_before() {
        let images = Images::default();
        let short = (0..8u32).map(|i| frames(u64::from(i) * 2..u64::from(i) * 2 + 1, 2000 + 2 * i));
        let view: Vec<_> = short.chain([frames(100..200, 3000)]).collect();
        let plan = WindowPlan::new(&view, &bridges(&images), 4).unwrap();
        assert_eq!(plan.maps.len(), 4);
        assert_eq!(plan.maps[3], map(100..200, 3000));
        assert_eq!(plan.copies.len(), 5);
    }
}
