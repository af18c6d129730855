//! Reset: a leaf becomes what the layer below it is again.
//!
//! The pages it has dirtied are copied back and stay mapped, because a page
//! dirtied once is likely dirtied again: the next run then takes no fault for
//! it. Dropping them (`MADV_DONTNEED`) would cost the same call plus a fault
//! and a copy each, later.

use std::ops::Range;

use pagelist::RunKind;

use crate::error::MemoryError;
use crate::frame::{FrameHome, FrameSet, home, is_private};
use crate::layout::{PAGE_SIZE, PageIdx};
use crate::pages::ByPage;
use crate::room;
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
    let plan = tree.plan_reset(leaf, &dirty)?;
    // Noted first: a page that is noted and differs is only settled later.
    let copies = &mut at_leaf.copies;
    let mut runs = plan.iter();
    let noted = runs.try_for_each(|(pages, below)| copies.note_run(pages.clone(), *below));
    if let Err(error) = noted {
        forget_own(tree, at_leaf, leaf);
        return Err(error);
    }
    let mut copied = 0;
    for (pages, below) in plan {
        copied += pages.end - pages.start;
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

/// There is no reset, and so no page is a copy for which `leaf` has something
/// else of its own: were it written to be what lies below, it would be taken for
/// a copy, and the list would be believed.
fn forget_own(tree: &Tree, at_leaf: &mut Leaf, leaf: NodeId) {
    let node = tree.node(leaf);
    for run in node.list.runs_in(0..node.nr_pages()) {
        let is_private = matches!(run.kind, RunKind::Frames { first } if is_private(first));
        if !is_private {
            let pages = PageIdx::containing(run.start)..PageIdx::containing(run.end);
            at_leaf.copies.forget(pages);
        }
    }
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
    let private = private.into_iter().map(|run| run.start.0..run.end.0);
    let mut dirty = room::collect(private)?;
    // It also differs where anonymous memory was mapped over it, and where it
    // shows what the leaf got from a layer that collapsed into it.
    let own = &tree.node(leaf).list;
    let other = at_leaf
        .overlaid
        .runs_in(all.clone())
        .chain(own.runs_in(all));
    let private = dirty.len();
    let other = other.map(|run| run.start / PAGE_SIZE..run.end / PAGE_SIZE);
    room::append(&mut dirty, other)?;
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
