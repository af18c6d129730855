//! Who is charged for what: every frame, divided by the number who see it.
//!
//! A frame seen by k viewers charges 1/k to each. Thirds and sevenths do not
//! divide 4096, so nothing is rounded: an [`Attribution`] counts *pages by
//! number of viewers*, and sums are compared as those counts.

use std::collections::BTreeMap;
use std::ops::Range;

use pagelist::SlotRef;

use super::view::{Source, ViewRun};
use super::{NodeId, Role, Tree};
use crate::frame::{FrameHome, FrameSet, home, is_private};
use crate::layout::PAGE_SIZE;
use crate::pages::ByPage;

/// Pages a viewer sees, by the number of viewers that share them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attribution {
    by_viewers: BTreeMap<u64, u64>,
}

impl Attribution {
    /// `(viewers, pages)`: so many pages are seen by this one and
    /// `viewers − 1` others. Ascending.
    pub fn by_viewers(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.by_viewers
            .iter()
            .map(|(viewers, pages)| (*viewers, *pages))
    }

    /// Pages nobody else sees.
    pub fn exclusive_pages(&self) -> u64 {
        self.by_viewers.get(&1).copied().unwrap_or(0)
    }

    /// Pages somebody else sees too.
    pub fn shared_pages(&self) -> u64 {
        self.pages() - self.exclusive_pages()
    }

    /// All pages seen.
    pub fn pages(&self) -> u64 {
        self.by_viewers.values().sum()
    }

    /// The charge in bytes: the sum of 4096 / viewers, rounded to nearest for
    /// display. Use [`by_viewers`](Self::by_viewers) where it must be exact.
    pub fn bytes(&self) -> u64 {
        let bytes = |(viewers, pages): (u64, u64)| (pages * PAGE_SIZE) as f64 / viewers as f64;
        // Far below 2^52, so the conversion is exact but for the rounding.
        self.by_viewers().map(bytes).sum::<f64>().round() as u64
    }

    fn add(&mut self, viewers: u64, pages: u64) {
        *self.by_viewers.entry(viewers).or_default() += pages;
    }
}

/// How many viewers every file frame of a tree has.
///
/// Viewers are the leaves, and the layers that a snapshot holds.
#[derive(Debug)]
pub(crate) struct Viewers {
    views: Vec<(NodeId, Vec<ViewRun>)>,
    /// From this file page on, so many viewers.
    counts: BTreeMap<u64, u64>,
}

impl Viewers {
    /// Counts them all. O(runs seen by all viewers); every list must be read
    /// back.
    pub(crate) fn count(tree: &Tree) -> Self {
        let viewers = tree.ids().filter(|id| match tree.node(*id).role() {
            Role::Leaf => true,
            Role::Layer { handles } => handles > 0,
        });
        let views: Vec<_> = viewers.map(|id| (id, tree.view(id))).collect();
        let mut changes: BTreeMap<u64, i64> = BTreeMap::new();
        for pages in views
            .iter()
            .flat_map(|(_, view)| view)
            .filter_map(file_pages)
        {
            *changes.entry(pages.start).or_default() += 1;
            *changes.entry(pages.end).or_default() -= 1;
        }
        let mut now = 0;
        let counts = changes
            .into_iter()
            .map(|(at, change)| {
                now += change;
                (at, u64::try_from(now).expect("runs end after they start"))
            })
            .collect();
        Self { views, counts }
    }

    /// What `id`, a viewer, is charged for.
    pub(crate) fn attribution(&self, id: NodeId) -> Attribution {
        let mut charged = Attribution::default();
        let view = self.views.iter().find(|(viewer, _)| *viewer == id);
        for run in view.map_or(&[][..], |(_, view)| view) {
            match (file_pages(run), run.source) {
                (Some(pages), _) => {
                    for (viewers, part) in self.segments(pages) {
                        charged.add(viewers, part.end - part.start);
                    }
                }
                // Private pages are the window's own.
                (None, Source::Frames(_)) => charged.add(1, run.pages.end - run.pages.start),
                (None, Source::Zero) => {}
            }
        }
        charged
    }

    /// `pages` cut where the number of viewers changes.
    fn segments(&self, pages: Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> + '_ {
        let before = self.counts.range(..=pages.start).next_back();
        let first = before.map_or(0, |(_, viewers)| *viewers);
        let inner = self
            .counts
            .range(pages.start + 1..pages.end.max(pages.start + 1));
        let starts =
            std::iter::once((pages.start, first)).chain(inner.clone().map(|(at, n)| (*at, *n)));
        let ends = inner.map(|(at, _)| *at).chain(std::iter::once(pages.end));
        starts
            .zip(ends)
            .map(|((start, viewers), end)| (viewers, start..end))
    }

    /// Takes every frame that no viewer sees out of the layers that hold it:
    /// all children have covered it, each for itself.
    pub(crate) fn reclaim(&self, tree: &mut Tree, freed: &mut FrameSet) {
        let layers: Vec<_> = tree
            .ids()
            .filter(|id| tree.node(*id).role() != Role::Leaf)
            .collect();
        let pages = 0..tree.nr_pages();
        for id in layers {
            let list = &mut tree.node_mut(id).list;
            let mut unseen: Vec<Range<u64>> = Vec::new();
            for run in list.runs_in(pages.clone()) {
                let run = ViewRun::from(run);
                let Some(pages) = file_pages(&run) else {
                    continue;
                };
                for (viewers, part) in self.segments(pages.clone()) {
                    if viewers == 0 {
                        let start = run.pages.start + (part.start - pages.start);
                        unseen.push(start..start + (part.end - part.start));
                    }
                }
            }
            for pages in unseen {
                list.clear(
                    pages.start * PAGE_SIZE,
                    pages.end * PAGE_SIZE,
                    |_, frame| {
                        freed.add(frame);
                    },
                )
                .expect("whole pages that the list itself reported");
            }
        }
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
        let runs = self.node(id).list.runs_in(0..self.nr_pages());
        runs.filter_map(|run| file_pages(&ViewRun::from(run)))
    }

    /// How many that are.
    pub(crate) fn file_pages_of(&self, id: NodeId) -> u64 {
        self.file_runs_of(id)
            .map(|pages| pages.end - pages.start)
            .sum()
    }

    /// Verifies what must hold between nodes.
    ///
    /// # Panics
    /// If something does not.
    pub(crate) fn check_invariants(&self) {
        let mut held: Vec<Range<u64>> = Vec::new();
        for id in self.ids() {
            let node = self.node(id);
            if let Some(parent) = node.parent() {
                assert_ne!(
                    self.node(parent).role(),
                    Role::Leaf,
                    "leaves have no children"
                );
            }
            let children = self
                .ids()
                .filter(|child| self.node(*child).parent() == Some(id));
            assert_eq!(
                children.count(),
                node.nr_children(),
                "children and parents agree"
            );
            if let Role::Layer { handles } = node.role() {
                assert!(
                    handles + node.nr_children() > 0,
                    "{id:?} is needed by nobody"
                );
                assert!(
                    handles > 0 || node.nr_children() != 1,
                    "{id:?} ought to have collapsed"
                );
                let private = node.list.iter().any(|(_, slot)| match slot {
                    SlotRef::Page(frame) => is_private(frame),
                    _ => false,
                });
                assert!(!private, "{id:?}, a layer, holds private pages");
            }
            held.extend(self.file_runs_of(id));
        }
        held.sort_unstable_by_key(|run| run.start);
        for pair in held.windows(2) {
            assert!(
                pair[0].end <= pair[1].start,
                "frames {pair:?} have two owners"
            );
        }
    }
}
