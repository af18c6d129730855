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
use crate::room;
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
        let source = at_leaf.copies.source(page);
        let is_copy = |source| shows(arena, at_leaf.window.page(page).read(), source);
        if source.is_some_and(is_copy) {
            return Ok(());
        }
        tree.wrote(leaf, page, &mut replaced)?;
        if source.is_some() {
            at_leaf.copies.forget(page..PageIdx(page.0 + 1));
        }
        Ok(())
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
    let lagging = room::collect(state.tree.ids().filter(behind))?;
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
/// nobody holds them: holes that a fork has read. And frames that have gone astray.
pub(crate) fn reconcile(state: &mut State) -> Result<(), MemoryError> {
    let knew_holes = state.arena.knows_holes();
    let result = give_back_strays(state);
    if !knew_holes && state.arena.knows_holes() {
        state.tree.layers_have_changed(); // windows may be mapped across more now
    }
    result
}

fn give_back_strays(state: &mut State) -> Result<(), MemoryError> {
    state.arena.retry_refused();
    state.arena.retire_images();
    let root_is_live = state
        .leaves
        .iter()
        .any(|(_, leaf)| leaf.window.writes() == Writes::ToFile);
    let wants_sweep = state.arena.wants_sweep();
    let is_exact = state.arena.committed_pages()? <= state.listed_file_pages();
    if root_is_live || (is_exact && !wants_sweep) {
        return Ok(());
    }
    let mut held = Vec::new();
    for id in state.tree.ids() {
        room::append(&mut held, state.tree.file_runs_of(id))?;
    }
    held.sort_unstable_by_key(|run| run.start);
    match wants_sweep {
        true => state.arena.sweep(&held),
        false => state.arena.sweep_holes(&held),
    }
}

/// The pages of a range, one by one.
pub(crate) fn pages(range: Range<PageIdx>) -> impl Iterator<Item = PageIdx> {
    (range.start.0..range.end.0).map(PageIdx)
}
