//! Who is charged for what: every frame, divided by the number who see it.
//!
//! A frame seen by k viewers charges 1/k to each. Thirds and sevenths do not
//! divide 4096, so nothing is rounded: an [`Attribution`] counts *pages by
//! number of viewers*, and sums are compared as those counts.

use std::ops::Range;

use super::sight::{Count, Sight};
use super::view::{Source, ViewRun};
use super::{NodeId, Role, Tree};
use crate::error::MemoryError;
use crate::frame::{FrameHome, FrameSet, home};
use crate::layout::PAGE_SIZE;
use crate::ordered::Ordered;
use crate::pages::ByPage;
use crate::room;

/// Pages a viewer sees, by the number of viewers that share them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attribution {
    /// Ascending.
    by_viewers: Vec<(u64, u64)>,
}

impl Attribution {
    /// `(viewers, pages)`: so many pages are seen by this one and
    /// `viewers − 1` others. Ascending.
    pub fn by_viewers(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.by_viewers.iter().copied()
    }

    /// Pages nobody else sees.
    pub fn exclusive_pages(&self) -> u64 {
        match self.by_viewers.first() {
            Some((1, pages)) => *pages,
            _ => 0,
        }
    }

    /// Pages somebody else sees too.
    pub fn shared_pages(&self) -> u64 {
        self.pages() - self.exclusive_pages()
    }

    /// All pages seen.
    pub fn pages(&self) -> u64 {
        self.by_viewers().map(|(_, pages)| pages).sum()
    }

    /// The charge in bytes: the sum of 4096 / viewers, rounded to nearest for
    /// display. Use [`by_viewers`](Self::by_viewers) where it must be exact.
    pub fn bytes(&self) -> u64 {
        let bytes = |(viewers, pages): (u64, u64)| (pages * PAGE_SIZE) as f64 / viewers as f64;
        // Far below 2^52, so the conversion is exact but for the rounding.
        self.by_viewers().map(bytes).sum::<f64>().round() as u64
    }

    fn add(&mut self, viewers: u64, pages: u64) -> Result<(), MemoryError> {
        let known = &mut self.by_viewers;
        match known.binary_search_by_key(&viewers, |(viewers, _)| *viewers) {
            Ok(at) => known[at].1 += pages,
            Err(at) => {
                room::reserve(known, 1)?;
                known.insert(at, (viewers, pages));
            }
        }
        Ok(())
    }
}

/// How many viewers every frame of a tree has.
///
/// Viewers are the leaves, and the layers that a snapshot holds.
#[derive(Debug)]
pub(crate) struct Viewers {
    /// Runs of file pages, ascending, and how many see them.
    files: Vec<(Range<u64>, u64)>,
    /// Pages of layers that nobody sees: every child has covered them.
    unseen: Vec<(NodeId, Range<u64>)>,
    /// Pages that the leaves see together.
    seen_by_leaves: u64,
}

impl Viewers {
    /// Counts them all; every list must be read back. O(R log² R) for R runs
    /// in all lists, whatever the shape of the tree.
    ///
    /// # Errors
    /// If there is no memory to count.
    pub(crate) fn count(tree: &Tree) -> Result<Self, MemoryError> {
        let mut viewers = Self {
            files: Vec::new(),
            unseen: Vec::new(),
            seen_by_leaves: 0,
        };
        let mut sights: Ordered<NodeId, Sight> = Ordered::default();
        for id in tree.children_first()? {
            let node = tree.node(id);
            let mut sight = sights.remove(&id).unwrap_or_default();
            match node.role() {
                Role::Leaf => sight.add_everywhere(Count::LEAF),
                Role::Spare | Role::Layer { handles: 0 } => {}
                Role::Layer { .. } => sight.add_everywhere(Count::SNAPSHOT),
            }
            for run in node.list.runs_in(0..node.nr_pages()) {
                let run = ViewRun::from(run);
                viewers.note(id, &run, &sight)?;
                sight.hide(run.pages)?;
            }
            if let Some(reach) = node.parent() {
                let nr_pages = tree.node(reach.node).nr_pages();
                let sight = sight.lifted(reach, nr_pages)?;
                let sum = match sights.remove(&reach.node) {
                    Some(siblings) => siblings.join(sight, nr_pages)?,
                    None => sight,
                };
                sights.insert(reach.node, sum)?;
            }
        }
        let by_start = |(pages, _): &(Range<u64>, u64)| pages.start;
        viewers.files.sort_unstable_by_key(by_start);
        Ok(viewers)
    }

    /// Notes who looks at `run`, which `id` holds.
    fn note(&mut self, id: NodeId, run: &ViewRun, sight: &Sight) -> Result<(), MemoryError> {
        let Source::Frames(_) = run.source else {
            return Ok(());
        };
        for (pages, count) in sight.pieces(run.pages.clone()) {
            let nr_pages = pages.end - pages.start;
            self.seen_by_leaves += u64::try_from(count.leaves).unwrap_or(0) * nr_pages;
            if let Some(file) = file_pages(&run.part(pages.clone())) {
                room::push(&mut self.files, (file, count.viewers()))?;
            }
            if count.viewers() == 0 {
                room::push(&mut self.unseen, (id, pages))?;
            }
        }
        Ok(())
    }

    /// Pages that the leaves see together; each would be a frame of its own if
    /// nothing were shared.
    pub(crate) fn seen_by_leaves(&self) -> u64 {
        self.seen_by_leaves
    }

    /// What `id`, a viewer, is charged for.
    ///
    /// # Errors
    /// If there is no memory to find out what it sees.
    pub(crate) fn attribution(&self, tree: &Tree, id: NodeId) -> Result<Attribution, MemoryError> {
        let mut charged = Attribution::default();
        for run in tree.view(id)? {
            match (file_pages(&run), run.source) {
                (Some(pages), _) => self.charge(&pages, &mut charged)?,
                // Private pages are the window's own.
                (None, Source::Frames(_)) => charged.add(1, run.pages.end - run.pages.start)?,
                (None, Source::Zero) => {}
            }
        }
        Ok(charged)
    }

    fn charge(&self, pages: &Range<u64>, charged: &mut Attribution) -> Result<(), MemoryError> {
        let first = self
            .files
            .partition_point(|(known, _)| known.end <= pages.start);
        let known = self.files[first..].iter();
        for (known, viewers) in known.take_while(|(known, _)| known.start < pages.end) {
            let (start, end) = (pages.start.max(known.start), pages.end.min(known.end));
            charged.add(*viewers, end - start)?;
        }
        Ok(())
    }

    /// Takes every frame that no viewer sees out of the layers that hold it,
    /// and the markers that hide nothing.
    ///
    /// # Errors
    /// If there is no memory for that. What has been taken out is in `freed`,
    /// and the rest is found the next time.
    pub(crate) fn reclaim(self, tree: &mut Tree, freed: &mut FrameSet) -> Result<(), MemoryError> {
        tree.layers_have_changed();
        for (id, pages) in self.unseen {
            let list = &mut tree.node_mut(id).list;
            let (start, end) = (pages.start * PAGE_SIZE, pages.end * PAGE_SIZE);
            let cleared = list.clear(start, end, |_, frame| freed.add(frame));
            cleared.map_err(|_| MemoryError::Bookkeeping)?;
        }
        tree.drop_idle_markers()
    }
}

/// The file pages behind a run, if it has any.
fn file_pages(run: &ViewRun) -> Option<Range<u64>> {
    let Source::Frames(first) = run.source else {
        return None;
    };
    match home(first) {
        FrameHome::File(page) => Some(page..page + (run.pages.end - run.pages.start)),
        FrameHome::Window(_) => None,
    }
}

impl Tree {
    /// The file pages that the list of `id` holds, in runs.
    pub(crate) fn file_runs_of(&self, id: NodeId) -> impl Iterator<Item = Range<u64>> + '_ {
        let node = self.node(id);
        let runs = node.list.runs_in(0..node.nr_pages());
        runs.filter_map(|run| file_pages(&ViewRun::from(run)))
    }

    /// How many that are.
    pub(crate) fn file_pages_of(&self, id: NodeId) -> u64 {
        self.file_runs_of(id)
            .map(|pages| pages.end - pages.start)
            .sum()
    }
}
