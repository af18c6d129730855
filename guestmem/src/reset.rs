//! Reset: a leaf becomes what the layer below it is again.
//!
//! The pages it has dirtied are copied back and stay mapped, because a page
//! dirtied once is likely dirtied again: the next run then takes no fault for
//! it. Dropping them (`MADV_DONTNEED`) would cost the same call plus a fault
//! and a copy each, later.

use crate::error::MemoryError;
use crate::frame::{FrameHome, FrameSet, home};
use crate::layout::{PAGE_SIZE, PageIdx};
use crate::pages::ByPage;
use crate::settle::pages;
use crate::state::State;
use crate::sys::pagemap::Pagemap;
use crate::tree::{NodeId, Seen, Tree};

/// Pages of its own in the file that a leaf may have and still be reset in
/// place: each costs a copy that a fresh window would not need.
const MOST_FILE_PAGES: u64 = 512;

/// Whether [`copy_back`] is the better way for `leaf`.
pub(crate) fn is_worth_it(tree: &Tree, leaf: NodeId) -> bool {
    tree.file_pages_of(leaf) <= MOST_FILE_PAGES
}

/// Copies back every page that `leaf` has of its own. O(such pages).
pub(crate) fn copy_back(
    state: &mut State,
    pagemap: &Pagemap,
    leaf: NodeId,
) -> Result<u64, MemoryError> {
    let State {
        tree,
        arena,
        leaves,
        ..
    } = &mut *state;
    let at_leaf = leaves.get_mut(&leaf).expect("a leaf has a window");
    at_leaf.edits += 1;
    let all = 0..tree.node(leaf).nr_pages();
    let private = at_leaf.private_pages(pagemap, all.end)?;
    // The window also differs where anonymous memory was mapped over it, and
    // where it shows what the leaf got from a layer that collapsed into it.
    let own = &tree.node(leaf).list;
    let other = at_leaf
        .overlaid
        .runs_in(all.clone())
        .chain(own.runs_in(all));
    let other = other.map(|run| PageIdx(run.start / PAGE_SIZE)..PageIdx(run.end / PAGE_SIZE));
    let dirty = private.into_iter().chain(other).flat_map(pages);
    let plan = tree.plan_reset(leaf, dirty);
    let copied = plan.len() as u64;
    for (page, below) in plan {
        // Noted first: a page that is noted and differs is only settled later.
        at_leaf.copies.note(page, below)?;
        let target = at_leaf.window.page(page);
        match below {
            Seen::Frame(frame) => {
                let FrameHome::File(file_page) = home(frame) else {
                    unreachable!("a layer holds no private pages");
                };
                target.copy_from(arena.page(file_page));
            }
            Seen::Zero | Seen::Nothing if target.read().is_zero() => {}
            Seen::Zero | Seen::Nothing => target.clear(),
        }
    }
    let mut freed = FrameSet::default();
    tree.reset(leaf, &mut freed);
    arena.free(freed);
    Ok(copied)
}
