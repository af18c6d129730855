//! Freezing: a leaf's content becomes a layer, and the leaf goes on on top.
//!
//! Fork, snapshot and reset point are all this move and something small.

use std::sync::Arc;

use crate::error::MemoryError;
use crate::frame::{Stock, file_frame, private_frame};
use crate::layout::PageIdx;
use crate::settle::{settle_leaf, shows};
use crate::state::{Leaf, State};
use crate::sys::pagemap::Pagemap;
use crate::tree::{Content, FreezePlan, NodeId, Reading, Seen, without};
use crate::window::Window;

/// Freezes root RAM: the frames stay where they are, in the file, and the leaf
/// moves to `staged`, a private window over them. O(1).
pub(crate) fn move_root(state: &mut State, leaf: NodeId, staged: &Arc<Window>) -> NodeId {
    debug_assert_eq!(state.tree.node(leaf).reading(), Reading::Unread);
    state.leaves.insert(leaf, Leaf::new(Arc::clone(staged)));
    state.tree.freeze(leaf)
}

/// What has been done of a freeze while the VM runs.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    /// Frames for all that will be copied, as far as could be told, and some
    /// more.
    pub(crate) stock: Stock,
    /// Pages that held data of their own when they were looked at; ascending.
    /// They are copied without another look: one that has become zero since, or
    /// what lies below, costs a frame more than it had to.
    data: Vec<PageIdx>,
}

/// Frames in stock beyond an eighth of the pages known: those a VM touches
/// between one look and the next.
const STOCK_MARGIN: u64 = 16;

/// Does what can be done of freezing `leaf` while its VM runs.
pub(crate) fn prepare(
    state: &mut State,
    pagemap: &Pagemap,
    leaf: NodeId,
) -> Result<Prepared, MemoryError> {
    settle_leaf(state, pagemap, leaf)?;
    reserve_copies(state, leaf, &[])?;
    let plan = look_at_all(state, leaf, &[]);
    let known = plan.copies.len() as u64;
    Ok(Prepared {
        stock: state.arena.stock_up(known + known / 8 + STOCK_MARGIN)?,
        data: plan.copies,
    })
}

/// Freezes a leaf that writes privately: its private pages are copied into
/// frames of a new layer, zero pages become markers, and pages that are what
/// lies below (written back to it, or zero over nothing) become nothing. All
/// stay in the window, where they now are copies of what lies below.
///
/// O(private pages). A page costs a copy; one that was not known when the
/// freeze was prepared, or not known to hold data, a comparison and perhaps an
/// allocation as well.
pub(crate) fn copy_private(
    state: &mut State,
    pagemap: &Pagemap,
    leaf: NodeId,
    prepared: &mut Prepared,
) -> Result<NodeId, MemoryError> {
    settle_leaf(state, pagemap, leaf)?;
    reserve_copies(state, leaf, &prepared.data)?;
    let plan = look_at_all(state, leaf, &prepared.data);
    let State {
        tree,
        arena,
        leaves,
        ..
    } = &mut *state;
    let Leaf { window, copies, .. } = leaves.get_mut(&leaf).expect("a leaf has a window");
    let pages = plan.copies.iter();
    let sources: Vec<_> = pages.map(|page| window.page(*page).read()).collect();
    let stored = arena.store_in(&mut prepared.stock, &sources)?;
    // From here on nothing fails: every slot is there already.
    let frames = stored.clone().map(|page| Seen::Frame(file_frame(page)));
    let copied = plan.copies.iter().copied().zip(frames);
    let zeroed = plan.zeroes.iter().map(|page| (*page, Seen::Zero));
    for (page, shown) in copied.chain(zeroed).chain(plan.same.iter().copied()) {
        copies.note(page, shown).expect("the slot is there");
    }
    Ok(tree.freeze_as_planned(leaf, &plan, stored))
}

/// Sees to it that noting the private pages of `leaf` as copies cannot fail;
/// for those in `done` it has been done. Until then the list decides, which
/// says that they are the leaf's own.
fn reserve_copies(state: &mut State, leaf: NodeId, done: &[PageIdx]) -> Result<(), MemoryError> {
    let State { tree, leaves, .. } = state;
    let copies = &mut leaves.get_mut(&leaf).expect("a leaf has a window").copies;
    let mut pages = without(tree.private_pages(leaf), done);
    pages.try_for_each(|page| copies.reserve(page, private_frame(page)))
}

/// What freezing `leaf` has to do; the pages in `data` are known to hold data.
fn look_at_all(state: &State, leaf: NodeId, data: &[PageIdx]) -> FreezePlan {
    let window = &state.leaves[&leaf].window;
    state.tree.plan_freeze(leaf, data, |page, below| {
        let content = window.page(page).read();
        if shows(&state.arena, content, below) {
            Content::SameAsBelow
        } else if content.is_zero() {
            Content::Zero
        } else {
            Content::Data
        }
    })
}
