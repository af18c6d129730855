//! What a node sees: its own content over its ancestors'.

use std::ops::Range;
use std::sync::Arc;

use pagelist::{FrameId, Run, RunKind, SlotRef};

use super::{FreezePlan, NodeId, Reach, Tree, WindowPlan};
use crate::error::MemoryError;
use crate::frame::{file_frame, is_private};
use crate::layout::{PAGE_SIZE, PageIdx};
use crate::ordered::Ordered;
use crate::pages::ByPage;
use crate::room;

/// What a reader of one page gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    /// This frame.
    Frame(FrameId),
    /// Zero, and a marker says so: an ancestor's page lies beneath.
    Zero,
    /// Zero, because nobody up to the root holds anything.
    Nothing,
}

/// What stands behind a run of pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// Frames in a row, this one behind the first page.
    Frames(FrameId),
    /// Known zero, over pages of an ancestor.
    Zero,
}

impl Source {
    /// What the first page shows.
    fn first(self) -> Seen {
        match self {
            Self::Frames(first) => Seen::Frame(first),
            Self::Zero => Seen::Zero,
        }
    }
}

/// A run of pages with one source. What no run covers is [`Seen::Nothing`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ViewRun {
    /// The pages.
    pub(crate) pages: Range<u64>,
    /// What they show.
    pub(crate) source: Source,
}

impl From<Run> for ViewRun {
    fn from(run: Run) -> Self {
        Self {
            pages: run.start / PAGE_SIZE..run.end / PAGE_SIZE,
            source: match run.kind {
                RunKind::Frames { first } => Source::Frames(first),
                RunKind::Marker => Source::Zero,
            },
        }
    }
}

impl ViewRun {
    /// Whether its frames live in a window.
    fn is_private(&self) -> bool {
        matches!(self.source, Source::Frames(first) if is_private(first))
    }

    /// The part of the run that lies within `pages`, which overlap it.
    pub(crate) fn within(&self, pages: &Range<u64>) -> Self {
        self.part(self.pages.start.max(pages.start)..self.pages.end.min(pages.end))
    }

    /// The part of the run that `pages`, within it, show.
    pub(crate) fn part(&self, pages: Range<u64>) -> Self {
        let source = match self.source {
            Source::Frames(first) => {
                let skipped = u32::try_from(pages.start - self.pages.start);
                Source::Frames(FrameId::new(
                    first.index() + skipped.expect("within the run"),
                ))
            }
            Source::Zero => Source::Zero,
        };
        Self { pages, source }
    }
}

impl Tree {
    /// What a reader of `page` in node `from` gets. O(depth).
    #[cfg(any(test, fuzzing))]
    pub(crate) fn resolve(&self, from: NodeId, page: PageIdx) -> Seen {
        self.resolve_from(Reach::new(from, 0..self.node(from).nr_pages()), page)
    }

    /// What a reader of `page` would get if `id` itself held nothing there.
    /// O(log R) for R runs if the view of what lies below is known, as it is
    /// after a fork; else O(depth).
    pub(crate) fn below(&self, id: NodeId, page: PageIdx) -> Seen {
        let Some(reach) = self.node(id).parent() else {
            return Seen::Nothing;
        };
        match self.views.get(reach.node) {
            Some(view) => reach
                .page(page)
                .map_or(Seen::Nothing, |page| seen_in(view, page)),
            None => self.resolve_from(reach, page),
        }
    }

    /// Calls `show` for what `pages` of `id` would show if it held nothing
    /// itself: runs without gaps, with what their first page shows; the frames
    /// of the others follow in a row. O(log R + runs) if the view of what lies
    /// below is known.
    ///
    /// # Errors
    /// If there is no memory to find out, or `show` says so.
    pub(super) fn each_below(
        &self,
        id: NodeId,
        pages: Range<u64>,
        mut show: impl FnMut(Range<u64>, Seen) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        let reach = self.node(id).parent();
        let all_of = |reach: &Reach| reach.is_all_of(self.node(reach.node).nr_pages());
        let known = reach
            .filter(all_of)
            .and_then(|reach| self.views.get(reach.node));
        let computed;
        let runs = match known {
            Some(view) => &view[..],
            None => {
                computed = self.runs_below(id, pages.clone())?;
                &computed
            }
        };
        let first = runs.partition_point(|run| run.pages.end <= pages.start);
        let mut at = pages.start;
        for run in runs[first..]
            .iter()
            .take_while(|run| run.pages.start < pages.end)
        {
            let run = run.within(&pages);
            if at < run.pages.start {
                show(at..run.pages.start, Seen::Nothing)?;
            }
            at = run.pages.end;
            show(run.pages, run.source.first())?;
        }
        if at < pages.end {
            show(at..pages.end, Seen::Nothing)?;
        }
        Ok(())
    }

    fn resolve_from(&self, reach: Reach, page: PageIdx) -> Seen {
        for reach in self.upwards(reach) {
            let Some(page) = reach.page(page) else { break };
            let node = self.node(reach.node);
            match node.list.get(page.byte_offset()) {
                SlotRef::Page(frame) => return Seen::Frame(frame),
                SlotRef::Marker => return Seen::Zero,
                // Root RAM lies in the file page by page; a hole reads zero.
                SlotRef::Empty if node.is_unread_layer() => {
                    return Seen::Frame(file_frame(page.0));
                }
                SlotRef::Empty => {}
            }
        }
        Seen::Nothing
    }

    /// All that node `from` sees, as maximal runs, ascending. O(R log R) for R
    /// runs in the chain, up to the first layer whose view is known.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub(crate) fn view(&self, from: NodeId) -> Result<Vec<ViewRun>, MemoryError> {
        let all = 0..self.node(from).nr_pages();
        self.runs_along(Reach::new(from, all.clone()), all)
    }

    /// What `leaf` will see once it is frozen as `found` says, with its copies in
    /// the file from `first_frame` on.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn view_when_frozen(
        &self,
        leaf: NodeId,
        found: &FreezePlan,
        first_frame: u64,
    ) -> Result<Vec<ViewRun>, MemoryError> {
        let mut cover = Cover::default();
        for (page, shown) in found.shown(first_frame..) {
            let pages = page.0..page.0 + 1;
            let source = match shown {
                Seen::Frame(first) => Source::Frames(first),
                Seen::Zero => Source::Zero,
                Seen::Nothing => continue,
            };
            cover.put_under(&ViewRun { pages, source })?;
        }
        let node = self.node(leaf);
        let all = 0..node.nr_pages();
        let own = node.list.runs_in(all.clone()).map(ViewRun::from);
        own.filter(|run| !run.is_private())
            .try_for_each(|run| cover.put_under(&run))?;
        self.runs_below(leaf, all)?
            .iter()
            .try_for_each(|run| cover.put_under(run))?;
        cover.into_runs()
    }

    /// What `pages` of `id` would show if it held nothing itself.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(super) fn runs_below(
        &self,
        id: NodeId,
        pages: Range<u64>,
    ) -> Result<Vec<ViewRun>, MemoryError> {
        let parent = self.node(id).parent();
        parent.map_or(Ok(Vec::new()), |reach| self.runs_along(reach, pages))
    }

    /// What a looker with this reach sees in those of its own pages.
    fn runs_along(&self, reach: Reach, pages: Range<u64>) -> Result<Vec<ViewRun>, MemoryError> {
        let mut cover = Cover::default();
        for reach in self.upwards(reach) {
            let seen = reach.seen();
            let start = (seen.start + pages.start).min(seen.end);
            let within = start..(seen.start + pages.end).min(seen.end);
            if within.is_empty() {
                break;
            }
            let mut put = |run: &ViewRun| {
                let shown = run.within(&within);
                cover.put_under(&ViewRun {
                    pages: reach.shown_as(shown.pages),
                    source: shown.source,
                })
            };
            if let Some(known) = self.views.get(reach.node) {
                let first = known.partition_point(|run| run.pages.end <= within.start);
                let there = known[first..].iter();
                there
                    .take_while(|run| run.pages.start < within.end)
                    .try_for_each(put)?;
                break;
            }
            let node = self.node(reach.node);
            for run in node.list.runs_in(within.clone()) {
                put(&run.into())?;
            }
            if node.is_unread_layer() {
                put(&ViewRun {
                    pages: 0..node.nr_pages(),
                    source: Source::Frames(file_frame(0)),
                })?;
            }
        }
        cover.into_runs()
    }

    /// What a clone with this reach starts out seeing.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn view_through(&mut self, reach: Reach) -> Result<Arc<Vec<ViewRun>>, MemoryError> {
        let view = self.layer_view(reach.node)?;
        if reach.is_all_of(self.node(reach.node).nr_pages()) {
            return Ok(view);
        }
        let nr_pages = reach.nr_pages();
        Ok(Arc::new(self.runs_along(reach, 0..nr_pages)?))
    }

    /// Changes whenever a view that was right may have become wrong: of a layer
    /// that somebody holds, because frames of zeros went out of it.
    pub(crate) fn view_changes(&self) -> u64 {
        self.views.changes
    }

    /// How a window over what `reach` says is made, by `plan` if that is not
    /// known. It is right as long as the view is: what was a hole stays one.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn known_plan(
        &mut self,
        reach: Reach,
        plan: impl FnOnce(&[ViewRun]) -> Result<WindowPlan, MemoryError>,
    ) -> Result<WindowPlan, MemoryError> {
        let view = self.view_through(reach)?;
        if !reach.is_all_of(self.node(reach.node).nr_pages()) {
            return plan(&view);
        }
        let mut known = self.views.of.iter_mut();
        let known = known.find(|known| known.layer == reach.node);
        if let Some(plan) = known.as_ref().and_then(|known| known.plan.as_ref()) {
            return Ok(plan.clone());
        }
        let plan = plan(&view)?;
        if let Some(known) = known {
            known.plan = Some(plan.clone());
        }
        Ok(plan)
    }

    /// What `layer` sees, remembered for the next fork of it or of what will be
    /// frozen upon it: without that, forks would cost more with every
    /// generation.
    pub(crate) fn layer_view(&mut self, layer: NodeId) -> Result<Arc<Vec<ViewRun>>, MemoryError> {
        if let Some(known) = self.views.get(layer) {
            return Ok(Arc::clone(known));
        }
        let view = Arc::new(self.view(layer)?);
        self.views.remember(layer, Arc::clone(&view));
        Ok(view)
    }
}

/// The pages of a run one by one, the first of which shows `first`.
pub(crate) fn each_page(pages: Range<u64>, first: Seen) -> impl Iterator<Item = (PageIdx, Seen)> {
    let start = pages.start;
    pages.map(move |page| {
        let seen = match first {
            Seen::Frame(frame) => {
                let skipped = u32::try_from(page - start).expect("a run of frames");
                Seen::Frame(FrameId::new(frame.index() + skipped))
            }
            other => other,
        };
        (PageIdx(page), seen)
    })
}

/// What `page` shows in `view`.
pub(super) fn seen_in(view: &[ViewRun], page: PageIdx) -> Seen {
    let at = view.partition_point(|run| run.pages.end <= page.0);
    match view.get(at) {
        Some(run) if run.pages.start <= page.0 => run.within(&(page.0..page.0 + 1)).source.first(),
        _ => Seen::Nothing,
    }
}

/// Views kept. Forks are mostly of the newest layers.
const KEEP_VIEWS: usize = 8;

/// The views of a few layers, newest last.
///
/// A layer never changes, so its view is right until frames that nobody sees
/// are taken out of it. Layers that are merged into others take their views
/// with them; the views of those below show the same frames as before.
#[derive(Debug, Default)]
pub(crate) struct KnownViews {
    of: Vec<Known>,
    /// How often all were forgotten.
    changes: u64,
}

/// What is known of a layer.
#[derive(Debug)]
struct Known {
    layer: NodeId,
    view: Arc<Vec<ViewRun>>,
    /// How windows over it are made.
    plan: Option<WindowPlan>,
}

impl KnownViews {
    fn get(&self, layer: NodeId) -> Option<&Arc<Vec<ViewRun>>> {
        let known = self.of.iter().find(|known| known.layer == layer);
        known.map(|known| &known.view)
    }

    /// Without memory for it the view is found anew the next time.
    fn remember(&mut self, layer: NodeId, view: Arc<Vec<ViewRun>>) {
        if self.of.len() == KEEP_VIEWS {
            self.of.remove(0);
        }
        if self.of.try_reserve(1).is_ok() {
            self.of.push(Known {
                layer,
                view,
                plan: None,
            });
        }
    }

    /// The layer is gone, and its number may be another's.
    pub(crate) fn forget(&mut self, layer: NodeId) {
        self.of.retain(|known| known.layer != layer);
    }

    /// Frames have been taken out of layers.
    pub(crate) fn forget_all(&mut self) {
        self.of.clear();
        self.changes += 1;
    }
}

/// Disjoint runs; what is put in later lies under what is there.
#[derive(Default)]
struct Cover {
    runs: Ordered<u64, ViewRun>,
}

impl Cover {
    fn put_under(&mut self, run: &ViewRun) -> Result<(), MemoryError> {
        let mut at = run.pages.start;
        if let Some((_, before)) = self.runs.at_or_before(&at) {
            at = at.max(before.pages.end);
        }
        while at < run.pages.end {
            let covered = self.runs.at_or_after(&at).next();
            let covered = covered.map(|(_, run)| run.pages.clone());
            let covered = covered.filter(|covered| covered.start < run.pages.end);
            let end = covered.as_ref().map_or(run.pages.end, |next| next.start);
            if at < end {
                self.runs.insert(at, run.part(at..end))?;
            }
            at = covered.map_or(end, |covered| covered.end);
        }
        Ok(())
    }

    fn into_runs(self) -> Result<Vec<ViewRun>, MemoryError> {
        let mut runs: Vec<ViewRun> = Vec::new();
        room::reserve(&mut runs, self.runs.len())?;
        for run in self.runs.into_values() {
            match runs.last_mut() {
                Some(last) if last.pages.end == run.pages.start && continues(last, &run) => {
                    last.pages.end = run.pages.end;
                }
                _ => runs.push(run),
            }
        }
        Ok(runs)
    }
}

/// Whether `next`, which starts where `run` ends, goes on in its source too.
fn continues(run: &ViewRun, next: &ViewRun) -> bool {
    match (run.source, next.source) {
        (Source::Zero, Source::Zero) => true,
        (Source::Frames(a), Source::Frames(b)) => {
            u64::from(a.index()) + (run.pages.end - run.pages.start) == u64::from(b.index())
        }
        _ => false,
    }
}
