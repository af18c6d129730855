//! How the content of leaves changes. What needs memory moved is a plan first:
//! the caller looks at pages, copies or maps as the plan says, and then the
//! plan is carried out here, which cannot fail half-way.

use std::ops::Range;

use pagelist::{PageOrMarker, RunKind, SlotRef};

use super::{NodeId, Reading, Role, Seen, Tree};
use crate::error::MemoryError;
use crate::frame::{FrameSet, file_frame, is_private, private_frame};
use crate::layout::{PAGE_SIZE, PageIdx};
use crate::pages::ByPage;
use crate::room;

/// What a look at a private page found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Content {
    /// The same as what lies below the leaf.
    SameAsBelow,
    /// Zero, where something else lies below.
    Zero,
    /// Something that has to be kept.
    Data,
}

/// What a freeze does to the private pages of a leaf.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct FreezePlan {
    /// Copied into new frames, in this order: those that were known before come
    /// first.
    pub(crate) copies: Vec<PageIdx>,
    /// Places in the list of those that were known, ascending: they hold no data
    /// any more.
    pub(crate) outdated: Vec<usize>,
    /// Known zero from now on, over something.
    pub(crate) zeroes: Vec<PageIdx>,
    /// Nothing of the leaf's own any more; what shows instead.
    pub(crate) same: Vec<(PageIdx, Seen)>,
}

impl FreezePlan {
    /// Pages that cost nothing from now on because they are zero.
    pub(crate) fn nr_zero(&self) -> u64 {
        let over_nothing = |(_, below): &&(PageIdx, Seen)| *below == Seen::Nothing;
        (self.zeroes.len() + self.same.iter().filter(over_nothing).count()) as u64
    }

    /// Every page of the plan, and what it shows once its copies are in the
    /// file pages `stored`.
    pub(crate) fn shown(
        &self,
        stored: impl Iterator<Item = u64>,
    ) -> impl Iterator<Item = (PageIdx, Seen)> {
        let frames = stored.map(|page| Seen::Frame(file_frame(page)));
        let copied = self.copies.iter().copied().zip(frames);
        let zeroed = self.zeroes.iter().map(|page| (*page, Seen::Zero));
        copied.chain(zeroed).chain(self.same.iter().copied())
    }

    /// How many of the `known` copies of an earlier plan are copies still, and
    /// where they are in that plan.
    pub(crate) fn still_known(&self, known: usize) -> (usize, impl Iterator<Item = usize> + Clone) {
        let still = (0..known).filter(|at| self.outdated.binary_search(at).is_err());
        (known - self.outdated.len(), still)
    }

    /// The same as [`shown`](Self::shown) for those pages only with which `found`,
    /// an earlier plan whose copies were known to this one, did something else or
    /// nothing.
    pub(crate) fn shown_otherwise(
        &self,
        found: &Self,
        stored: impl Iterator<Item = u64>,
    ) -> impl Iterator<Item = (PageIdx, Seen)> {
        let (known, _) = self.still_known(found.copies.len());
        let frames = stored.skip(known).map(|page| Seen::Frame(file_frame(page)));
        let copied = self.copies.iter().copied().skip(known).zip(frames);
        let zeroed = self.zeroes.iter().map(|page| (*page, Seen::Zero));
        let zeroed = zeroed.filter(|(page, _)| found.zeroes.binary_search(page).is_err());
        let same = self.same.iter().copied().filter(|(page, _)| {
            let before = found.same.binary_search_by_key(page, |(page, _)| *page);
            before.is_err()
        });
        copied.chain(zeroed).chain(same)
    }
}

/// Whether something of an ancestor would show if a leaf had nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hides {
    /// It would: zero needs a marker.
    Something,
    /// It would not: zero needs nothing.
    Nothing,
}

/// Pages in a row that become zero in the same way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ZeroPart {
    pub(crate) pages: Range<u64>,
    pub(crate) hides: Hides,
}

impl Tree {
    /// The guest has written `page` of `leaf`: its window has a private page.
    /// What the leaf's list had there goes to `freed`.
    ///
    /// # Errors
    /// If there is no memory to note it. Nothing has changed then.
    pub(crate) fn wrote(
        &mut self,
        leaf: NodeId,
        page: PageIdx,
        freed: &mut FrameSet,
    ) -> Result<(), MemoryError> {
        let entry = PageOrMarker::page(private_frame(page));
        let list = &mut self.node_mut(leaf).list;
        match list.insert(page.byte_offset(), entry) {
            Ok(before) => {
                if let Some(frame) = before.take_frame() {
                    freed.add(frame);
                }
                Ok(())
            }
            Err(refused) => {
                let _private = refused.into_entry().take_frame();
                Err(MemoryError::Bookkeeping)
            }
        }
    }

    /// The kernel has committed `data` of root RAM, which `id` holds.
    ///
    /// # Errors
    /// If there is no memory to note all of it.
    pub(crate) fn list_committed(
        &mut self,
        id: NodeId,
        data: Range<u64>,
    ) -> Result<(), MemoryError> {
        let node = self.node_mut(id);
        let data = data.start..data.end.min(node.nr_pages);
        if data.is_empty() {
            return Ok(());
        }
        let gaps = room::collect(node.list.gaps_in(data))?;
        for gap in gaps {
            let offset = PageIdx(gap.start).byte_offset();
            node.list
                .insert_frames(offset, file_frame(gap.start), gap.end - gap.start)
                .map_err(|_| MemoryError::Bookkeeping)?;
        }
        Ok(())
    }

    /// How `pages` of `leaf` become zero, in parts that are done alike.
    ///
    /// # Errors
    /// If there is no memory for the plan.
    pub(crate) fn plan_zero(
        &self,
        leaf: NodeId,
        pages: Range<u64>,
    ) -> Result<Vec<ZeroPart>, MemoryError> {
        let mut parts: Vec<ZeroPart> = Vec::new();
        let mut add = |pages: Range<u64>, hides| match parts.last_mut() {
            _ if pages.is_empty() => Ok(()),
            Some(last) if last.hides == hides => {
                last.pages.end = pages.end;
                Ok(())
            }
            _ => room::push(&mut parts, ZeroPart { pages, hides }),
        };
        let mut at = pages.start;
        for run in self.runs_below(leaf, pages.clone())? {
            add(at..run.pages.start, Hides::Nothing)?;
            at = run.pages.end;
            add(run.pages, Hides::Something)?;
        }
        add(at..pages.end, Hides::Nothing)?;
        Ok(parts)
    }

    /// Makes `part` of `leaf` zero. In root RAM that is being written to, pages
    /// that are committed and not listed go to `freed` as well.
    ///
    /// # Errors
    /// If there is no memory to note it. Nothing has changed then.
    pub(crate) fn zero(
        &mut self,
        leaf: NodeId,
        part: &ZeroPart,
        freed: &mut FrameSet,
    ) -> Result<(), MemoryError> {
        let node = self.node_mut(leaf);
        let unread = node.reading == Reading::Unread;
        let (start, end) = (part.pages.start * PAGE_SIZE, part.pages.end * PAGE_SIZE);
        let release = |_, frame| {
            if !unread {
                freed.add(frame);
            }
        };
        let listed = match part.hides {
            Hides::Something => node.list.mark(start, end, release),
            Hides::Nothing => node.list.clear(start, end, release),
        };
        listed.map_err(|_| MemoryError::Bookkeeping)?;
        if unread {
            freed.add_run(part.pages.clone());
        }
        Ok(())
    }

    /// Says in the list of `id` that `page`, which has a slot there, is zero.
    ///
    /// # Errors
    /// If there is no memory to note it. Nothing has changed then.
    pub(crate) fn zero_slot(
        &mut self,
        id: NodeId,
        page: PageIdx,
        freed: &mut FrameSet,
    ) -> Result<(), MemoryError> {
        let hides = self.below(id, page) != Seen::Nothing;
        let list = &mut self.node_mut(id).list;
        let before = if hides {
            list.insert(page.byte_offset(), PageOrMarker::marker())
                .map_err(|_| MemoryError::Bookkeeping)?
        } else {
            list.try_remove_page(page.byte_offset())
                .map_err(|_| MemoryError::Bookkeeping)?
        };
        if let Some(frame) = before.take_frame() {
            freed.add(frame);
        }
        Ok(())
    }

    /// Takes a marker of `id` away if nothing of an ancestor would show.
    pub(super) fn drop_idle_marker(&mut self, id: NodeId, page: PageIdx) {
        let is_marker = self.node(id).list.get(page.byte_offset()) == SlotRef::Marker;
        if is_marker && self.below(id, page) == Seen::Nothing {
            let list = &mut self.node_mut(id).list;
            if list.try_remove_page(page.byte_offset()).is_err() {
                log::debug!("{page:?} keeps a marker that hides nothing: out of memory");
            }
        }
    }

    /// Takes every marker away that hides nothing.
    ///
    /// # Errors
    /// If there is no memory to find them. Those that are left are found the
    /// next time.
    pub(super) fn drop_idle_markers(&mut self) -> Result<(), MemoryError> {
        // From the top, because a marker may hide nothing but another marker.
        for id in self.children_first()?.into_iter().rev() {
            let node = self.node(id);
            if node.list.marker_count() == 0 {
                continue;
            }
            let runs = node.list.runs_in(0..node.nr_pages());
            let markers = room::collect(runs.filter(|run| run.kind == RunKind::Marker))?;
            for run in markers {
                let pages = run.start / PAGE_SIZE..run.end / PAGE_SIZE;
                let idle = self.plan_zero(id, pages)?.into_iter();
                for part in idle.filter(|part| part.hides == Hides::Nothing) {
                    let (start, end) = (part.pages.start * PAGE_SIZE, part.pages.end * PAGE_SIZE);
                    let list = &mut self.node_mut(id).list;
                    let cleared = list.clear(start, end, |_, _| {});
                    cleared.map_err(|_| MemoryError::Bookkeeping)?;
                }
            }
        }
        Ok(())
    }

    /// What freezing `leaf` has to do, as `look` finds the pages: it is told
    /// what lies below each. Those in `data`, ascending, come first, and are
    /// taken to differ from it without a look: `is_zero` is all that is asked, by
    /// their place in `data`.
    ///
    /// # Errors
    /// If there is no memory for the plan.
    pub(crate) fn plan_freeze(
        &self,
        leaf: NodeId,
        data: &[PageIdx],
        is_zero: impl Fn(usize) -> bool,
        mut look: impl FnMut(PageIdx, Seen) -> Content,
    ) -> Result<FreezePlan, MemoryError> {
        let mut plan = FreezePlan::default();
        for (at, page) in data.iter().copied().enumerate() {
            let is_private = self.is_private_in(leaf, page);
            if is_private && !is_zero(at) {
                room::push(&mut plan.copies, page)?;
                continue;
            }
            room::push(&mut plan.outdated, at)?;
            if is_private {
                match self.below(leaf, page) {
                    Seen::Nothing => room::push(&mut plan.same, (page, Seen::Nothing))?,
                    _ => room::push(&mut plan.zeroes, page)?,
                }
            }
        }
        for page in without(self.private_pages(leaf), data) {
            let below = self.below(leaf, page);
            match look(page, below) {
                Content::SameAsBelow => room::push(&mut plan.same, (page, below))?,
                Content::Zero => room::push(&mut plan.zeroes, page)?,
                Content::Data => room::push(&mut plan.copies, page)?,
            }
        }
        plan.zeroes.sort_unstable();
        plan.same.sort_unstable_by_key(|(page, _)| *page);
        Ok(plan)
    }

    /// The list of `leaf` is what the plan says, its copies in the file pages
    /// `stored`: it can be [frozen](Self::freeze). Every slot that changes is
    /// there already, so nothing can fail.
    pub(crate) fn fill_as_planned(
        &mut self,
        leaf: NodeId,
        plan: &FreezePlan,
        stored: impl Iterator<Item = u64>,
    ) {
        const HAS_A_SLOT: &str = "private pages have slots";
        let list = &mut self.node_mut(leaf).list;
        for (page, file_page) in plan.copies.iter().zip(stored) {
            let frame = PageOrMarker::page(file_frame(file_page));
            let before = list.insert(page.byte_offset(), frame).expect(HAS_A_SLOT);
            let _private = before.take_frame();
        }
        for page in &plan.zeroes {
            let marker = PageOrMarker::marker();
            let before = list.insert(page.byte_offset(), marker).expect(HAS_A_SLOT);
            let _private = before.take_frame();
        }
        for (page, _) in &plan.same {
            let _private = list.remove_page(page.byte_offset()).take_frame();
        }
    }

    /// What each of `pages` of `leaf` shows when the leaf has nothing of its
    /// own: what a reset copies back.
    ///
    /// # Errors
    /// If there is no memory for the plan.
    pub(crate) fn plan_reset(
        &self,
        leaf: NodeId,
        dirty: &[Range<u64>],
    ) -> Result<Vec<(Range<u64>, Seen)>, MemoryError> {
        let mut plan = Vec::new();
        room::reserve(&mut plan, dirty.len())?;
        for pages in dirty {
            let note = |pages, seen| room::push(&mut plan, (pages, seen));
            self.each_below(leaf, pages.clone(), note)?;
        }
        Ok(plan)
    }

    /// `leaf` has nothing of its own any more.
    pub(crate) fn reset(&mut self, leaf: NodeId, freed: &mut FrameSet) {
        debug_assert_eq!(self.node(leaf).role(), Role::Leaf);
        let list = &mut self.node_mut(leaf).list;
        list.remove_all_pages(|frame| freed.add(frame));
    }

    /// The pages of `leaf` that live in its own window.
    pub(crate) fn private_pages(&self, leaf: NodeId) -> impl Iterator<Item = PageIdx> + '_ {
        let slots = self.node(leaf).list.iter();
        slots.filter_map(|(offset, slot)| match slot {
            SlotRef::Page(frame) if is_private(frame) => Some(PageIdx::containing(offset)),
            _ => None,
        })
    }

    /// Whether `page` of `leaf` is listed as living in its own window.
    pub(crate) fn is_private_in(&self, leaf: NodeId, page: PageIdx) -> bool {
        let slot = self.node(leaf).list.get(page.byte_offset());
        matches!(slot, SlotRef::Page(frame) if is_private(frame))
    }

    /// Frames have been taken out of layers, or found in them: what was known
    /// of them is not right any more.
    pub(crate) fn layers_have_changed(&mut self) {
        self.views.forget_all();
    }
}

/// `pages` but for those in `out`; both ascending.
pub(crate) fn without<'a>(
    pages: impl Iterator<Item = PageIdx> + 'a,
    out: &'a [PageIdx],
) -> impl Iterator<Item = PageIdx> + 'a {
    let mut out = out.iter().peekable();
    pages.filter(move |page| {
        while out.next_if(|next| *next < page).is_some() {}
        out.peek() != Some(&page)
    })
}
