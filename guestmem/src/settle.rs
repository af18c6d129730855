//! Settling: reading back what the kernel did, so that the lists are exact.
//!
//! The kernel commits frames without asking us: a hole of root RAM on first
//! touch, a private page on the first write to a fork. Nothing of ours is in
//! that path, which is why it is quick; the price is that a list lags behind
//! until somebody wants to know. Then the kernel is asked: which parts of the
//! file hold data (`SEEK_DATA`), which pages of a window are private
//! (`PAGEMAP_SCAN`).

use std::ops::Range;

use crate::error::MemoryError;
use crate::frame::{Arena, FrameHome, FrameSet, home};
use crate::layout::PageIdx;
use crate::state::State;
use crate::sys::page::Page;
use crate::sys::pagemap::Pagemap;
use crate::tree::{NodeId, Reading, Role, Seen, Tree};
use crate::window::Writes;
use crate::zeros::drop_zero_frames;

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
        tree.list_committed(node, data)?;
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
    let private = at_leaf.private_pages(pagemap, tree.node(leaf).nr_pages())?;
    let mut replaced = FrameSet::default();
    let result = private.into_iter().flat_map(pages).try_for_each(|page| {
        if tree.is_private_in(leaf, page) {
            return Ok(());
        }
        if let Some(source) = at_leaf.copies.source(page) {
            if shows(arena, at_leaf.window.page(page).read(), source) {
                return Ok(());
            }
            at_leaf.copies.forget(page)?;
        }
        tree.wrote(leaf, page, &mut replaced)
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
        let is_layer = matches!(node.role(), Role::Layer { .. });
        node.reading() > wanted && (is_layer || node.reading() != Reading::Unread)
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

/// Gives back pages of root RAM and of images that the kernel committed although
/// nobody holds them: holes that a fork has read.
pub(crate) fn reconcile(state: &mut State) -> Result<(), MemoryError> {
    state.arena.retry_refused();
    state.arena.retire_images();
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
    for data in state.arena.bridged_data()? {
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

/// The pages of a range, one by one.
pub(crate) fn pages(range: Range<PageIdx>) -> impl Iterator<Item = PageIdx> {
    (range.start.0..range.end.0).map(PageIdx)
}
