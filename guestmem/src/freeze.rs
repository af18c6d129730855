//! Freezing: a leaf's content becomes a layer, and the leaf goes on on top.
//!
//! Fork, snapshot and reset point are all this move and something small.

use std::sync::Arc;

use crate::error::MemoryError;
use crate::frame::{file_frame, private_frame};
use crate::settle::{settle_leaf, shows};
use crate::state::{Leaf, State};
use crate::sys::pagemap::Pagemap;
use crate::tree::{Content, NodeId, Reading, Seen};
use crate::window::Window;

/// Freezes root RAM: the frames stay where they are, in the file, and the leaf
/// moves to `staged`, a private window over them. O(1).
pub(crate) fn move_root(state: &mut State, leaf: NodeId, staged: &Arc<Window>) -> NodeId {
    debug_assert_eq!(state.tree.node(leaf).reading(), Reading::Unread);
    state.leaves.insert(leaf, Leaf::new(Arc::clone(staged)));
    state.tree.freeze(leaf)
}

/// Freezes a leaf that writes privately: its private pages are copied into
/// frames of a new layer, zero pages become markers, and pages that are what
/// lies below (written back to it, or zero over nothing) become nothing. All
/// stay in the window, where they now are copies of what lies below.
///
/// O(private pages); a page costs a comparison, a check for zero and a copy.
pub(crate) fn copy_private(
    state: &mut State,
    pagemap: &Pagemap,
    leaf: NodeId,
) -> Result<NodeId, MemoryError> {
    settle_leaf(state, pagemap, leaf)?;
    let State {
        tree,
        arena,
        leaves,
        ..
    } = &mut *state;
    let Leaf { window, copies, .. } = leaves.get_mut(&leaf).expect("a leaf has a window");
    for page in tree.private_pages(leaf) {
        // Where a copy is noted and the list holds the page, the list decides.
        copies.reserve(page, private_frame(page))?;
    }
    let plan = tree.plan_freeze(leaf, |page, below| {
        let content = window.page(page).read();
        if shows(arena, content, below) {
            Content::SameAsBelow
        } else if content.is_zero() {
            Content::Zero
        } else {
            Content::Data
        }
    });
    let pages = plan.copies.iter();
    let sources: Vec<_> = pages.map(|page| window.page(*page).read()).collect();
    let stored = arena.store(&sources)?;
    // From here on nothing fails: every slot is there already.
    let frames = stored.clone().map(|page| Seen::Frame(file_frame(page)));
    let copied = plan.copies.iter().copied().zip(frames);
    let zeroed = plan.zeroes.iter().map(|page| (*page, Seen::Zero));
    for (page, shown) in copied.chain(zeroed).chain(plan.same.iter().copied()) {
        copies.note(page, shown).expect("the slot is there");
    }
    Ok(tree.freeze_as_planned(leaf, &plan, stored))
}
