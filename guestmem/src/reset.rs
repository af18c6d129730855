//! Reset: a leaf becomes what the layer below it is again.
//!
//! The pages it has dirtied are copied back and stay mapped, because a page
//! dirtied once is likely dirtied again: the next run then takes no fault for
//! it. Dropping them (`MADV_DONTNEED`) would cost the same call plus a fault
//! and a copy each, later.

use std::ops::Range;

use crate::error::MemoryError;
use crate::frame::{FrameHome, FrameSet, home};
use crate::layout::PAGE_SIZE;
use crate::pages::ByPage;
use crate::state::{Leaf, State};
use crate::sys::pagemap::Pagemap;
use crate::tree::{NodeId, Seen, Tree, each_page};

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
    let dirty = dirty_pages(tree, at_leaf, pagemap, leaf)?;
    let mut copied = 0;
    for (pages, below) in tree.plan_reset(leaf, &dirty) {
        copied += pages.end - pages.start;
        // Noted first: a page that is noted and differs is only settled later.
        at_leaf.copies.note_run(pages.clone(), below)?;
        for (page, below) in each_page(pages, below) {
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
    }
    let mut freed = FrameSet::default();
    tree.reset(leaf, &mut freed);
    arena.free(freed);
    Ok(copied)
}

/// Where the window may show anything but what lies below `leaf`, as disjoint
/// runs, ascending.
fn dirty_pages(
    tree: &Tree,
    at_leaf: &Leaf,
    pagemap: &Pagemap,
    leaf: NodeId,
) -> Result<Vec<Range<u64>>, MemoryError> {
    let all = 0..tree.node(leaf).nr_pages();
    let private = at_leaf.private_pages(pagemap, all.end)?;
    let mut dirty: Vec<_> = private
        .into_iter()
        .map(|run| run.start.0..run.end.0)
        .collect();
    // It also differs where anonymous memory was mapped over it, and where it
    // shows what the leaf got from a layer that collapsed into it.
    let own = &tree.node(leaf).list;
    let other = at_leaf
        .overlaid
        .runs_in(all.clone())
        .chain(own.runs_in(all));
    let private = dirty.len();
    dirty.extend(other.map(|run| run.start / PAGE_SIZE..run.end / PAGE_SIZE));
    if dirty.len() > private {
        dirty.sort_unstable_by_key(|run| run.start);
        dirty.dedup_by(|next, run| {
            let joins = next.start <= run.end;
            if joins {
                run.end = run.end.max(next.end);
            }
            joins
        });
    }
    Ok(dirty)
}
