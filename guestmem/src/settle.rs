//! Settling: reading back what the kernel did, so that the lists are exact.
//!
//! The kernel commits frames without asking us: a hole of root RAM on first
//! touch, a private page on the first write to a fork. Nothing of ours is in
//! that path, which is why it is quick; the price is that a list lags behind
//! until somebody wants to know. Then the kernel is asked: which parts of the
//! file hold data (`SEEK_DATA`), which pages of a window are private
//! (`PAGEMAP_SCAN`).

use std::ops::Range;

use pagelist::{PageList, PageOrMarker, SlotRef};

use crate::error::MemoryError;
use crate::frame::{Arena, FrameHome, FrameSet, file_frame, home, is_private, private_frame};
use crate::layout::{PAGE_SIZE, PageIdx};
use crate::pages::ByPage;
use crate::state::{Leaf, MAP_BUDGET, State};
use crate::sys::page::Page;
use crate::sys::pagemap::Pagemap;
use crate::tree::{NodeId, Reading, Role, Seen, Tree};
use crate::window::Writes;

/// Whether anybody may be writing to a VM's memory meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Writers {
    /// Its vCPUs and devices are stopped: what is read stays true.
    Stopped,
    /// They may run. Pages are counted, none is dropped.
    MayRun,
}

/// Brings the list of `leaf` up to date.
pub(crate) fn settle_leaf(
    state: &mut State,
    pagemap: &Pagemap,
    leaf: NodeId,
) -> Result<(), MemoryError> {
    match state.leaves[&leaf].window.writes() {
        Writes::ToFile => list_root_pages(&mut state.tree, &state.arena, leaf),
        Writes::Private => list_private_pages(state, pagemap, leaf),
    }
}

/// Lists the committed pages of root RAM in `node`.
fn list_root_pages(tree: &mut Tree, arena: &Arena, node: NodeId) -> Result<(), MemoryError> {
    for data in arena.root_data()? {
        let list = &mut tree.node_mut(node).list;
        let gaps: Vec<_> = list.gaps_in(data).collect();
        for gap in gaps {
            let offset = PageIdx(gap.start).byte_offset();
            list.insert_frames(offset, file_frame(gap.start), gap.end - gap.start)
                .map_err(|_| MemoryError::Bookkeeping)?;
        }
    }
    Ok(())
}

/// Lists the pages that the window of `leaf` holds privately. A page that is
/// private here and equal to what lies below is the window's affair, not the
/// VM's content, and stays unlisted.
fn list_private_pages(
    state: &mut State,
    pagemap: &Pagemap,
    leaf: NodeId,
) -> Result<(), MemoryError> {
    let State {
        tree,
        arena,
        leaves,
        ..
    } = state;
    let at_leaf = leaves.get_mut(&leaf).expect("a leaf has a window");
    let private = at_leaf.private_pages(pagemap)?;
    let mut replaced = FrameSet::default();
    let result = private.into_iter().flat_map(pages).try_for_each(|page| {
        let offset = page.byte_offset();
        if let SlotRef::Page(held) = tree.node(leaf).list.get(offset)
            && is_private(held)
        {
            return Ok(());
        }
        if let Some(source) = at_leaf.copies.source(page) {
            if shows(arena, at_leaf.window.page(page).read(), source) {
                return Ok(());
            }
            at_leaf.copies.forget(page);
        }
        let entry = PageOrMarker::page(private_frame(page));
        match tree.node_mut(leaf).list.insert(offset, entry) {
            Ok(before) => {
                if let Some(frame) = before.take_frame() {
                    replaced.add(frame);
                }
                Ok(())
            }
            Err(refused) => {
                let _private = refused.into_entry().take_frame();
                Err(MemoryError::Bookkeeping)
            }
        }
    });
    // The window shows its private page now; these are seen by nobody.
    arena.free(replaced);
    result
}

/// Whether `page` holds what `seen` says.
pub(crate) fn shows(arena: &Arena, page: Page<'_>, seen: Seen) -> bool {
    match seen {
        Seen::Zero | Seen::Nothing => page.is_zero(),
        Seen::Frame(frame) => match home(frame) {
            FrameHome::File(file_page) => page.equals(arena.page(file_page)),
            FrameHome::Window(_) => true,
        },
    }
}

/// Brings the lists of layers up to `wanted`. Layers hold still, so this is
/// right at any time, and needed once for each frozen root.
pub(crate) fn read_back_layers(state: &mut State, wanted: Reading) -> Result<(), MemoryError> {
    let behind = |id: &NodeId| {
        let node = state.tree.node(*id);
        let root_leaf = node.role() == Role::Leaf && node.reading() == Reading::Unread;
        node.reading() > wanted && !root_leaf
    };
    let lagging: Vec<_> = state.tree.ids().filter(behind).collect();
    if !lagging.is_empty() {
        state.tree.layers_have_changed();
    }
    for id in lagging {
        if state.tree.node(id).reading() == Reading::Unread {
            list_root_pages(&mut state.tree, &state.arena, id)?;
            state.tree.node_mut(id).set_reading(Reading::Listed);
        }
        if wanted == Reading::Exact {
            drop_zero_frames(state, id)?;
            state.tree.node_mut(id).set_reading(Reading::Exact);
        }
    }
    Ok(())
}

/// Gives back the frames of root RAM in the list of `id` that hold nothing but
/// zeros. They are never handed out again, so windows mapped over them go on
/// reading zero.
fn drop_zero_frames(state: &mut State, id: NodeId) -> Result<(), MemoryError> {
    let root = state.arena.root();
    let list = &state.tree.node(id).list;
    let zero: Vec<PageIdx> = list
        .iter()
        .filter_map(|(offset, slot)| match slot {
            SlotRef::Page(frame) => Some((PageIdx(offset / PAGE_SIZE), home(frame))),
            _ => None,
        })
        .filter(|(_, home)| match home {
            FrameHome::File(at) => root.contains(at) && state.arena.page(*at).is_zero(),
            FrameHome::Window(_) => false,
        })
        .map(|(page, _)| page)
        .collect();
    let mut freed = FrameSet::default();
    let result = zero
        .into_iter()
        .try_for_each(|page| zero_slot(&mut state.tree, id, page, &mut freed));
    state.arena.free(freed);
    result
}

/// Says in the list of `id` that `page` reads zero: by a marker if anything
/// lies below, else by nothing.
pub(crate) fn zero_slot(
    tree: &mut Tree,
    id: NodeId,
    page: PageIdx,
    freed: &mut FrameSet,
) -> Result<(), MemoryError> {
    let offset = page.byte_offset();
    let hides = tree.below(id, page) != Seen::Nothing;
    let list = &mut tree.node_mut(id).list;
    let before = if hides {
        list.insert(offset, PageOrMarker::marker())
            .map_err(|_| MemoryError::Bookkeeping)?
    } else {
        list.remove_page(offset)
    };
    if let Some(frame) = before.take_frame() {
        freed.add(frame);
    }
    Ok(())
}

/// Gives back pages of root RAM that the kernel committed although nobody
/// holds them: holes that a fork has read.
pub(crate) fn reconcile(state: &mut State) -> Result<(), MemoryError> {
    state.arena.retry_refused();
    let root_is_live = state
        .leaves
        .values()
        .any(|leaf| leaf.window.writes() == Writes::ToFile);
    if root_is_live || state.arena.committed_pages()? <= state.listed_file_pages() {
        return Ok(());
    }
    let mut held = FrameSet::default();
    for id in state.tree.ids() {
        for pages in state.tree.file_runs_of(id) {
            held.add_run(pages);
        }
    }
    let held = held.into_runs();
    let mut stray = FrameSet::default();
    for data in state.arena.root_data()? {
        let mut at = data.start;
        let first = held.partition_point(|run| run.end <= data.start);
        for run in held[first..].iter().take_while(|run| run.start < data.end) {
            if at < run.start {
                stray.add_run(at..run.start);
            }
            at = run.end;
        }
        if at < data.end {
            stray.add_run(at..data.end);
        }
    }
    state.arena.free(stray);
    Ok(())
}

/// Makes the zero pages of a stopped leaf cost nothing: out of the list, and
/// out of the window as far as mappings allow.
pub(crate) fn drop_zero_pages(state: &mut State, leaf: NodeId) -> Result<(), MemoryError> {
    let at_leaf = &state.leaves[&leaf];
    if at_leaf.window.writes() == Writes::ToFile {
        return drop_zero_frames(state, leaf);
    }
    let window = &at_leaf.window;
    let zero = private_pages(&state.tree.node(leaf).list)
        .filter(|page| window.page(*page).read().is_zero());
    let mut runs: Vec<Range<PageIdx>> = Vec::new();
    for page in zero {
        match runs.last_mut() {
            Some(last) if last.end == page => last.end.0 += 1,
            _ => runs.push(page..PageIdx(page.0 + 1)),
        }
    }
    for run in runs {
        zero_run(state, leaf, run)?;
    }
    Ok(())
}

/// Makes `run` of a stopped private leaf read zero. The pages are given back
/// where that can be done without showing what is mapped beneath; where it
/// cannot (too many mappings) they are cleared and stay the VM's own.
pub(crate) fn zero_run(
    state: &mut State,
    leaf: NodeId,
    run: Range<PageIdx>,
) -> Result<u64, MemoryError> {
    let State {
        tree,
        arena,
        leaves,
        ..
    } = state;
    let at_leaf = leaves.get_mut(&leaf).expect("a leaf has a window");
    if !make_room(at_leaf, &run)? {
        for page in pages(run) {
            at_leaf.window.page(page).clear();
        }
        return Ok(0);
    }
    let mut freed = FrameSet::default();
    let nr_pages = run.end.0 - run.start.0;
    at_leaf.copies.forget_all(run.clone())?;
    let result = pages(run).try_for_each(|page| zero_slot(tree, leaf, page, &mut freed));
    arena.free(freed);
    result.map(|()| nr_pages)
}

/// Drops the private pages of `run` such that it reads zero, if possible.
fn make_room(at_leaf: &mut Leaf, run: &Range<PageIdx>) -> Result<bool, MemoryError> {
    let window = &at_leaf.window;
    let range = run.start.0..run.end.0;
    let nr_pages = range.end - range.start;
    let (start, end) = (run.start.byte_offset(), run.end.byte_offset());
    let anonymous =
        !window.maps_file_in(&range) || at_leaf.overlaid.gaps_in(range.clone()).next().is_none();
    if anonymous {
        window
            .mapping()
            .drop_private(range)
            .map_err(|source| MemoryError::os("drop zero pages", nr_pages, source))?;
        return Ok(true);
    }
    if window.nr_maps() + at_leaf.nr_overlays >= MAP_BUDGET {
        return Ok(false);
    }
    let fresh: Vec<_> = at_leaf.overlaid.gaps_in(range.clone()).collect();
    at_leaf
        .overlaid
        .mark(start, end, |_, _| {})
        .map_err(|_| MemoryError::Bookkeeping)?;
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
    Ok(true)
}

/// The pages of `list` that live in the leaf's own window.
pub(crate) fn private_pages(list: &PageList) -> impl Iterator<Item = PageIdx> + '_ {
    list.iter().filter_map(|(offset, slot)| match slot {
        SlotRef::Page(frame) if is_private(frame) => Some(PageIdx(offset / PAGE_SIZE)),
        _ => None,
    })
}

/// The pages of a range, one by one.
pub(crate) fn pages(range: Range<PageIdx>) -> impl Iterator<Item = PageIdx> {
    (range.start.0..range.end.0).map(PageIdx)
}
