//! Whether a layer is worth flattening, and what of it. Policy only.
//!
//! A window over a layer in many pieces costs each fork a mapping a piece, and
//! private copies when mappings run out. Flattening copies the short pieces
//! into one image, once:
//!
//! ```text
//!   seen by the layer   ▓▓▓▓▓▓▓▓▓ a ▓▓▓▓▓▓▓▓▓▓▓▓▓ b ▓ c ▓  . d .  e .   9 runs
//!   kept                ▓▓▓▓▓▓▓▓▓   ▓▓▓▓▓▓▓▓▓▓▓▓▓                       2, long
//!   the image                     a               b ▓ c ▓  . d .  e .   2 mappings
//! ```
//!
//! Nobody knows how many forks there will be. As many as there have been is the
//! guess that is never far off: what is done now then costs at most as much as
//! what was paid for not doing it earlier. So
//!
//! * a run is copied if it is no longer than two mappings in each of those
//!   forks: that is what keeping it costs, one for itself and one because it
//!   cuts the image in two;
//! * the layer is flattened once its forks have paid more for its pieces than
//!   the copying costs.
//!
//! A page that is copied counts as much as a mapping: half of that is the time
//! it takes, the other half the memory that it takes as long as the snapshot
//! is there.

use std::ops::Range;

use pagelist::PageList;

use super::plan::{MapRun, WindowPlan, runs_to_map};
use super::view::{Source, ViewRun};
use super::{NodeId, Reach, Role, Tree};
use crate::error::MemoryError;
use crate::frame::Bridges;
use crate::room;

/// What flattening costs beside its pages, in mappings: with less to gain it is
/// not worth a layer.
const EFFORT: u64 = 32;

/// The pages of a layer that are to become an image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Repack {
    /// Ascending. Only what has a frame is copied; holes stay holes.
    pub(crate) runs: Vec<Range<u64>>,
    /// How many frames they have.
    pub(crate) nr_frames: u64,
}

impl Repack {
    /// What to copy of a layer with this view, of which so many forks were made,
    /// with at most `budget` mappings each; `None` if it is not worth it.
    ///
    /// # Errors
    /// If there is no memory to find out.
    pub(crate) fn new(
        view: &[ViewRun],
        bridges: &Bridges<'_>,
        budget: usize,
        forks: u64,
    ) -> Result<Option<Self>, MemoryError> {
        let runs = runs_to_map(view, bridges, budget)?;
        let now = WindowPlan::of(room::collect(runs.iter().cloned())?, budget)?;
        let copied: u64 = now.copies.iter().map(MapRun::nr_pages).sum();
        let paid = now.maps.len() as u64 + copied;

        let frames = frames_in(view, &runs)?;
        let shortest = shortest_kept(&frames, budget, forks)?;
        let is_kept = |frames: &u64| *frames >= shortest;
        let mut after = 0;
        let mut found = Self {
            runs: Vec::new(),
            nr_frames: 0,
        };
        let mut cut = true;
        for (run, frames) in runs.into_iter().zip(&frames) {
            after += u64::from(is_kept(frames) || cut);
            cut = is_kept(frames);
            if !is_kept(frames) {
                found.nr_frames += frames;
                room::push(&mut found.runs, run.pages)?;
            }
        }
        let saved = paid.saturating_sub(after);
        let worth = forks.saturating_mul(saved) >= found.nr_frames + EFFORT;
        Ok(worth.then_some(found))
    }

    /// The stretch of RAM that the image is made for.
    pub(crate) fn span(&self) -> Range<u64> {
        let first = self.runs.first().map_or(0, |run| run.start);
        first..self.runs.last().map_or(first, |run| run.end)
    }
}

/// How many frames a run has that is kept. All that are longer than keeping
/// costs, if a window with that many has mappings enough.
fn shortest_kept(frames: &[u64], budget: usize, forks: u64) -> Result<u64, MemoryError> {
    let worth_keeping = forks.saturating_mul(2).saturating_add(1);
    let mut longest = room::collect(frames.iter().copied())?;
    longest.sort_unstable_by(|a, b| b.cmp(a));
    // Each kept run may have a part of the image before and after it.
    let first_beyond = longest.get(budget.saturating_sub(1) / 2);
    Ok(first_beyond.map_or(worth_keeping, |beyond| worth_keeping.max(beyond + 1)))
}

/// How many frames there are in each of `runs`, which together show all that
/// have one.
fn frames_in(view: &[ViewRun], runs: &[MapRun]) -> Result<Vec<u64>, MemoryError> {
    let mut frames = room::collect(runs.iter().map(|_| 0))?;
    let mut at = 0;
    for seen in view.iter().filter(|run| run.source != Source::Zero) {
        while runs[at].pages.end <= seen.pages.start {
            at += 1;
        }
        frames[at] += seen.pages.end - seen.pages.start;
    }
    Ok(frames)
}

impl Tree {
    /// An empty list for [`add_flat`](Self::add_flat).
    pub(crate) fn list_above(&self, layer: NodeId) -> PageList {
        super::shape::like(&self.node(layer).list)
    }

    /// Adds a layer above `layer` that shows the same: `list` has copies of some
    /// of what is seen there. Forks of it are as good, and show fewer runs; what
    /// was forked from `layer` before goes on as it is. There is
    /// [room](Self::reserve_node) for it.
    pub(crate) fn add_flat(&mut self, layer: NodeId, list: PageList) -> NodeId {
        let nr_pages = self.node(layer).nr_pages;
        let reach = Reach::new(layer, 0..nr_pages);
        let flat = self.insert(Some(reach), nr_pages, Role::Layer { handles: 0 });
        self.node_mut(flat).list = list;
        flat
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Images, file_frame};

    /// Runs of these lengths, each behind a hole of 100 pages; frames of one are
    /// nowhere near those of the next.
    fn view(lengths: &[u64]) -> Vec<ViewRun> {
        let mut at = 0;
        let runs = lengths.iter().map(|len| {
            at += 100 + len;
            ViewRun {
                pages: at - len..at,
                source: Source::Frames(file_frame(10_000 + 2 * at)),
            }
        });
        runs.collect()
    }

    fn copied(lengths: &[u64], budget: usize, forks: u64) -> Option<Vec<u64>> {
        let images = Images::default();
        let bridges = Bridges {
            root: 0..0,
            images: &images,
        };
        let repack = Repack::new(&view(lengths), &bridges, budget, forks).unwrap()?;
        let copied: Vec<u64> = repack.runs.iter().map(|run| run.end - run.start).collect();
        assert_eq!(copied.iter().sum::<u64>(), repack.nr_frames);
        Some(copied)
    }

    #[test]
    fn nothing_is_copied_before_forks_have_paid_for_it() {
        // 199 mappings less, for 200 pages and the effort.
        assert_eq!(copied(&[1; 200], 512, 1), None);
        assert_eq!(copied(&[1; 200], 512, 2), Some(vec![1; 200]));
        // With 100 copies in each window it pays sooner.
        assert_eq!(copied(&[1; 200], 100, 2), Some(vec![1; 200]));
        assert_eq!(copied(&[1; 20], 512, 2), None);
        assert_eq!(copied(&[1; 20], 512, 3), Some(vec![1; 20]));
        assert_eq!(copied(&[1], 512, u64::MAX), None);
        assert_eq!(copied(&[], 512, u64::MAX), None);
    }

    #[test]
    fn the_more_forks_there_were_the_longer_are_runs_that_are_copied() {
        let mut lengths = [[1; 30], [7; 30]].concat();
        lengths.push(1000);
        assert_eq!(copied(&lengths, 512, 3), Some(vec![1; 30]));
        assert_eq!(copied(&lengths, 512, 5).unwrap().len(), 60);
        // All in one, when even 1000 pages are less than what has been paid.
        assert_eq!(copied(&lengths, 512, 499).unwrap().len(), 60);
        assert_eq!(copied(&lengths, 512, 500).unwrap().len(), 61);
    }

    #[test]
    fn so_much_is_copied_that_no_window_needs_copies() {
        // 100 long runs, cut by single pages: 9 mappings are 4 runs and what
        // lies between.
        let lengths = [[1, 50]; 100].concat();
        let copied = copied(&lengths, 9, 20).unwrap();
        assert_eq!(copied.len(), 200, "runs as long as the first beyond go too");
        let mut lengths = lengths;
        lengths[7] = 51;
        lengths[9] = 52;
        assert_eq!(super::tests::copied(&lengths, 9, 20).unwrap().len(), 198);
    }
}
