//! Freezing: a leaf's content becomes a layer, and the leaf goes on on top.
//!
//! Fork, snapshot and reset point are all this move and something small.

use std::sync::Arc;

use pagelist::{FrameId, PageOrMarker};

use crate::error::MemoryError;
use crate::frame::{FrameSet, file_frame, private_frame};
use crate::layout::PageIdx;
use crate::settle::{private_pages, settle_leaf, shows};
use crate::state::{Leaf, State};
use crate::sys::pagemap::Pagemap;
use crate::tree::{Node, NodeId, Reading, Seen};
use crate::window::Window;
use crate::zeros::zero_slot;

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
    let mut data = Vec::new();
    let mut zero = Vec::new();
    let mut same = Vec::new();
    for page in private_pages(&tree.node(leaf).list) {
        // Where a copy is noted and the list holds the page, the list decides.
        copies.reserve(page, private_frame(page))?;
        let content = window.page(page).read();
        let below = tree.below(leaf, page);
        if shows(arena, content, below) {
            same.push((page, below));
        } else if content.is_zero() {
            zero.push(page);
        } else {
            data.push((page, content));
        }
    }
    let sources: Vec<_> = data.iter().map(|(_, content)| *content).collect();
    let stored = arena.store(&sources)?;
    // From here on nothing fails: every slot is there already.
    for ((page, _), file_page) in data.iter().zip(stored) {
        let frame = file_frame(file_page);
        replace(tree.node_mut(leaf), *page, frame);
        copies
            .note(*page, Seen::Frame(frame))
            .expect("the slot is there");
    }
    let mut freed = FrameSet::default();
    for page in zero {
        zero_slot(tree, leaf, page, &mut freed).expect("the slot is there");
        copies.note(page, Seen::Zero).expect("the slot is there");
    }
    for (page, below) in same {
        let _private = tree
            .node_mut(leaf)
            .list
            .remove_page(page.byte_offset())
            .take_frame();
        copies.note(page, below).expect("the slot is there");
    }
    Ok(tree.freeze(leaf))
}

/// The private page of `node` is in `frame` now.
fn replace(node: &mut Node, page: PageIdx, frame: FrameId) {
    let before = node
        .list
        .insert(page.byte_offset(), PageOrMarker::page(frame))
        .expect("the slot is there");
    let _private = before.take_frame();
}
