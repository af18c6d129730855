//! Pages of zeros: found, given back, and shown as zero all the same.
//!
//! Dropping a page must never show what lies below it. In the list a marker
//! sees to that, where anything does lie below; in a private window the page
//! is replaced by anonymous memory, or cleared where mappings are scarce.
//!
//! On a VM that runs, looking and dropping are two steps. Looking is done while
//! the guest writes, so what is found are candidates. They are looked at again,
//! and dropped, when the VM has been stopped for a moment: a page that was
//! written in between is kept.

use std::ops::Range;

use pagelist::{RunKind, SlotRef};

use crate::error::MemoryError;
use crate::frame::{FrameHome, FrameSet, home};
use crate::layout::{PAGE_SIZE, PageIdx};
use crate::pages::ByPage;
use crate::room;
use crate::settle::{pages, settle_leaf};
use crate::state::{Leaf, MAP_BUDGET, State};
use crate::sys::pagemap::Pagemap;
use crate::tree::{NodeId, ZeroPart};
use crate::window::Writes;

/// Candidates that one look hands out, so that the stop they need is short.
const BATCH: usize = 200;

/// What a look at part of a VM's pages found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ZeroCandidates {
    pages: Vec<PageIdx>,
    next: PageIdx,
    looked_at: u64,
}

impl ZeroCandidates {
    /// Whether there is nothing to drop.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Where to look next; page 0 again after the last.
    pub fn next(&self) -> PageIdx {
        self.next
    }

    /// Pages looked at.
    pub fn looked_at(&self) -> u64 {
        self.looked_at
    }
}

/// Looks at up to `most` pages that `leaf` has of its own, from `from` on. The
/// guest may run.
pub(crate) fn look(
    state: &mut State,
    pagemap: &Pagemap,
    leaf: NodeId,
    from: PageIdx,
    most: u64,
) -> Result<ZeroCandidates, MemoryError> {
    if from == PageIdx(0) {
        settle_leaf(state, pagemap, leaf)?;
    }
    let window = &state.leaves[&leaf].window;
    let list = &state.tree.node(leaf).list;
    let mut found = ZeroCandidates::default();
    let end = state.tree.node(leaf).nr_pages();
    let content = list.runs_in(from.0.min(end)..end);
    let frames = content.filter(|run| run.kind != RunKind::Marker);
    for page in frames
        .flat_map(|run| run.start / PAGE_SIZE..run.end / PAGE_SIZE)
        .map(PageIdx)
    {
        if found.looked_at == most || found.pages.len() == BATCH {
            found.next = page;
            break;
        }
        found.looked_at += 1;
        if window.page(page).read().is_zero() {
            room::push(&mut found.pages, page)?;
        }
    }
    Ok(found)
}

/// Drops those candidates that are zero still. The VM is stopped. Returns how
/// many went.
pub(crate) fn drop_candidates(
    state: &mut State,
    leaf: NodeId,
    candidates: &ZeroCandidates,
) -> Result<u64, MemoryError> {
    drop_if_zero(state, leaf, candidates.pages.iter().copied())
}

/// Makes the zero pages of a stopped leaf cost nothing: out of the list, and
/// out of the window as far as mappings allow.
pub(crate) fn drop_zero_pages(state: &mut State, leaf: NodeId) -> Result<u64, MemoryError> {
    let list = &state.tree.node(leaf).list;
    let own = list
        .iter()
        .filter(|(_, slot)| matches!(slot, SlotRef::Page(_)));
    let own = room::collect(own.map(|(offset, _)| PageIdx::containing(offset)))?;
    drop_if_zero(state, leaf, own.into_iter())
}

fn drop_if_zero(
    state: &mut State,
    leaf: NodeId,
    pages: impl Iterator<Item = PageIdx>,
) -> Result<u64, MemoryError> {
    let window = &state.leaves[&leaf].window;
    let mut runs: Vec<Range<PageIdx>> = Vec::new();
    for page in pages.filter(|page| window.page(*page).read().is_zero()) {
        match runs.last_mut() {
            Some(last) if last.end == page => last.end.0 += 1,
            _ => room::push(&mut runs, page..PageIdx(page.0 + 1))?,
        }
    }
    let mut dropped = 0;
    for run in runs {
        let went = zero_run(state, leaf, run)?;
        state.note_zeros(leaf, went);
        dropped += went;
    }
    Ok(dropped)
}

/// Makes `run` of `leaf` read zero and gives its pages back; how many. Nobody
/// may be writing to it, or nobody who minds.
pub(crate) fn zero_run(
    state: &mut State,
    leaf: NodeId,
    run: Range<PageIdx>,
) -> Result<u64, MemoryError> {
    // List and window change together, part by part: what a failure leaves
    // behind is either done or untouched.
    let mut dropped = 0;
    for part in state.tree.plan_zero(leaf, run.start.0..run.end.0)? {
        dropped += zero_part(state, leaf, &part)?;
    }
    Ok(dropped)
}

fn zero_part(state: &mut State, leaf: NodeId, part: &ZeroPart) -> Result<u64, MemoryError> {
    let State {
        tree,
        arena,
        leaves,
        ..
    } = state;
    let at_leaf = leaves.get_mut(&leaf).expect("a leaf has a window");
    let run = PageIdx(part.pages.start)..PageIdx(part.pages.end);
    let mut freed = FrameSet::default();
    // The window of root RAM shows the frames: none may go astray.
    freed.reserve(1)?;
    tree.zero(leaf, part, &mut freed)?;
    at_leaf.edits += 1;
    at_leaf.copies.forget(run.clone());
    let nr_pages = part.pages.end - part.pages.start;
    let dropped = if at_leaf.window.writes() == Writes::ToFile {
        nr_pages // what is freed below is what the window shows
    } else {
        match make_room(at_leaf, &run) {
            Ok(true) => nr_pages,
            // They stay the VM's own, as settling will find, and read zero.
            Ok(false) | Err(_) => {
                pages(run).for_each(|page| at_leaf.window.page(page).clear());
                0
            }
        }
    };
    arena.free(freed);
    Ok(dropped)
}

/// Drops what the window holds in `run` such that it reads zero. `false` if
/// there are too many mappings for that.
fn make_room(at_leaf: &mut Leaf, run: &Range<PageIdx>) -> Result<bool, MemoryError> {
    let window = &at_leaf.window;
    let range = run.start.0..run.end.0;
    let nr_pages = range.end - range.start;
    let anonymous =
        !window.maps_file_in(&range) || at_leaf.overlaid.gaps_in(range.clone()).next().is_none();
    if anonymous {
        let dropped = window.mapping().drop_private(range);
        dropped.map_err(|source| MemoryError::os("drop zero pages", nr_pages, source))?;
        return Ok(true);
    }
    if window.nr_maps() + at_leaf.nr_overlays >= MAP_BUDGET {
        return Ok(false);
    }
    map_anonymous(at_leaf, run)?;
    Ok(true)
}

/// Maps fresh anonymous memory over `run`, whatever lies beneath.
pub(crate) fn map_anonymous(at_leaf: &mut Leaf, run: &Range<PageIdx>) -> Result<(), MemoryError> {
    let window = &at_leaf.window;
    let range = run.start.0..run.end.0;
    let nr_pages = range.end - range.start;
    // Noted ahead: a page noted although it is not overlaid would be dropped
    // wrongly later, so a failure takes back what is new.
    let fresh = room::collect(at_leaf.overlaid.gaps_in(range.clone()))?;
    let (start, end) = (run.start.byte_offset(), run.end.byte_offset());
    let noted = at_leaf.overlaid.mark(start, end, |_, _| {});
    noted.map_err(|_| MemoryError::Bookkeeping)?;
    if let Err(source) = window.mapping().map_zero(range) {
        for gap in fresh {
            let (start, end) = (PageIdx(gap.start), PageIdx(gap.end));
            let overlaid = &mut at_leaf.overlaid;
            let cleared = overlaid.clear(start.byte_offset(), end.byte_offset(), |_, _| {});
            cleared.map_err(|_| MemoryError::Bookkeeping)?;
        }
        return Err(MemoryError::os("map zero pages", nr_pages, source));
    }
    at_leaf.nr_overlays += 1;
    Ok(())
}

/// Gives back the frames of root RAM in the list of `id` that hold nothing but
/// zeros. They are never handed out again, so windows mapped over them go on
/// reading zero.
pub(crate) fn drop_zero_frames(state: &mut State, id: NodeId) -> Result<(), MemoryError> {
    let root = state.arena.root();
    let list = &state.tree.node(id).list;
    let zero = list
        .iter()
        .filter_map(|(offset, slot)| match slot {
            SlotRef::Page(frame) => Some((PageIdx(offset / PAGE_SIZE), home(frame))),
            _ => None,
        })
        .filter(|(_, home)| match home {
            FrameHome::File(at) => root.contains(at) && state.arena.page(*at).is_zero(),
            FrameHome::Window(_) => false,
        })
        .map(|(page, _)| page);
    let zero = room::collect(zero)?;
    let mut freed = FrameSet::default();
    let result = zero.into_iter().try_for_each(|page| {
        state.tree.zero_slot(id, page, &mut freed)?;
        state.zeros_dropped += 1;
        Ok(())
    });
    state.arena.free(freed);
    result
}
