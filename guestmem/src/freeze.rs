//! Freezing: a leaf's content becomes a layer, and the leaf goes on on top.
//!
//! Fork, snapshot and reset point are all this move and something small.
//!
//! ```text
//!   prepare   the VM runs: list what is private, look at it, allocate frames
//!   copy      the VM runs: fill the frames, if they are many
//!   stage     the VM runs: make the window that it will go on in, if it is to move
//!   copy      the VM runs: fill those again that have been written since
//!   freeze    the VM stands still: copy what is private into the frames; move
//! ```
//!
//! Root RAM always moves: its frames stay where they are, and nothing is
//! copied. Other RAM can stay in its window, where all that was private now
//! are *copies* of what lies below; each of them costs a comparison at every
//! freeze to come. When there are many it moves, to a window that maps the
//! frames which are filled under the pause.

use std::sync::Arc;

use crate::blank_window::BlankWindow;
use crate::copies::Copies;
use crate::error::MemoryError;
use crate::frame::{Arena, FrameSet, Stock, private_frame};
use crate::layout::PageIdx;
use crate::precopy::{self, Precopy};
use crate::room;
use crate::settle::{settle_leaf, shows};
use crate::state::{Leaf, State};
use crate::sys::pagemap::Pagemap;
use crate::tree::{Content, FreezePlan, NodeId, without};
use crate::window::{RetiredWindow, Window, Writes};

/// Copies that a freeze may leave in a window: where there would be more, the
/// VM moves to another. Comparing so many takes about as long as moving.
const MOST_COPIES: usize = 256;

/// Frames in stock beyond an eighth of the pages known: those a VM touches
/// between one look and the next.
const STOCK_MARGIN: u64 = 16;

/// What has been done of a freeze while the VM runs.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    /// Frames for all that will be copied, as far as could be told, and some
    /// more.
    pub(crate) stock: Stock,
    /// What was found. Pages that held data of their own are not compared with
    /// what lies below again: one that has become the same since costs a frame
    /// more than it had to.
    found: FreezePlan,
    /// [`Leaf::edits`] and [`Arena::frees`] when it was found.
    ///
    /// [`Arena::frees`]: crate::frame::Arena::frees
    as_of: (u64, u64),
    /// Whether the VM is to move.
    pub(crate) moves: bool,
    /// The window that it moves to.
    staged: Option<Arc<Window>>,
    /// The window that it has now.
    window: Option<Arc<Window>>,
    /// Copies of what was found, if there are any yet.
    ahead: Option<Precopy>,
}

impl Prepared {
    /// Copies what was found into the stock, if there is much of it, or what has
    /// been written since that was done.
    pub(crate) fn copy_ahead(&mut self, pagemap: &Pagemap) {
        let pages = &self.found.copies;
        let Some(window) = self
            .window
            .as_ref()
            .filter(|_| pages.len() >= precopy::LEAST)
        else {
            return;
        };
        let stock = &self.stock;
        let copied = match self.ahead.take() {
            None => Precopy::begin(pagemap, window, pages, stock),
            Some(mut ahead) => ahead.catch_up(pagemap, pages, stock).map(|()| ahead),
        };
        match copied {
            Ok(ahead) => self.ahead = Some(ahead),
            Err(error) => log::debug!("all is copied while the VM stands still: {error}"),
        }
    }

    /// By place, which of the pages found are in their frames as they are now in
    /// `window`, whose VM stands still. Empty if none is.
    fn copied(&self, pagemap: &Pagemap, window: &Arc<Window>) -> Vec<bool> {
        let ahead = self.ahead.as_ref().filter(|ahead| ahead.is_of(window));
        let unwritten = ahead.map(|ahead| ahead.unwritten(pagemap, &self.found.copies));
        unwritten.unwrap_or(Ok(Vec::new())).unwrap_or_else(|error| {
            log::debug!("all is copied once more: {error}");
            Vec::new()
        })
    }
}

/// Does what can be done of freezing `leaf` while its VM runs.
pub(crate) fn prepare(
    state: &mut State,
    pagemap: &Pagemap,
    leaf: NodeId,
) -> Result<Prepared, MemoryError> {
    if state.leaves[&leaf].window.writes() == Writes::ToFile {
        return Ok(Prepared {
            moves: true,
            ..Prepared::default()
        });
    }
    settle_leaf(state, pagemap, leaf)?;
    reserve_copies(state, leaf, &[])?;
    let found = look_at_all(state, leaf, &[], |_| false)?;
    let known = found.copies.len() as u64;
    // What is private now has been noted as a copy to be.
    let at_leaf = &state.leaves[&leaf];
    Ok(Prepared {
        stock: state.arena.stock_up(known + known / 8 + STOCK_MARGIN)?,
        found,
        as_of: (at_leaf.edits, state.arena.frees()),
        moves: at_leaf.copies.iter().nth(MOST_COPIES).is_some(),
        staged: None,
        window: Some(Arc::clone(&at_leaf.window)),
        ahead: None,
    })
}

/// Makes the window for `leaf` to go on in, at the addresses of `blank`; `None`
/// if it is better off where it is.
///
/// Root RAM is mapped as it lies in the file. Other RAM is mapped as it will be
/// if the guest writes nothing more: frames of the stock, still empty, where it
/// has data of its own now.
pub(crate) fn stage(
    state: &mut State,
    leaf: NodeId,
    prepared: &mut Prepared,
    blank: &BlankWindow,
) -> Result<Option<Arc<Window>>, MemoryError> {
    let window = if state.leaves[&leaf].window.writes() == Writes::ToFile {
        Window::over_frozen_root(&state.arena, blank)?
    } else {
        let view = state
            .tree
            .view_when_frozen(leaf, &prepared.found, prepared.stock.first())?;
        let nr_pages = state.tree.node(leaf).nr_pages();
        let plan = state.plan_to_show(&view, nr_pages)?;
        if !plan.copies.is_empty() {
            return Ok(None);
        }
        Window::planned(&state.arena, blank, &plan)?
    };
    let window = Arc::new(window);
    prepared.staged = Some(Arc::clone(&window));
    Ok(Some(window))
}

/// Freezes `leaf`, whose VM stands still. Returns the layer, and the window
/// that the leaf has left if it moved.
pub(crate) fn freeze(
    state: &mut State,
    pagemap: &Pagemap,
    leaf: NodeId,
    prepared: &mut Prepared,
) -> Result<(NodeId, Option<RetiredWindow>), MemoryError> {
    state.tree.reserve_node(None)?;
    if state.leaves[&leaf].window.writes() == Writes::ToFile {
        let staged = prepared.staged.take().ok_or(MemoryError::NotStaged)?;
        let at_leaf = state.leaves.get_mut(&leaf).expect("a leaf has a window");
        let next = Leaf {
            zeros_dropped: at_leaf.zeros_dropped,
            ..Leaf::new(staged)
        };
        let left = std::mem::replace(at_leaf, next);
        let left = RetiredWindow::new(left.window, None);
        return Ok((state.tree.freeze(leaf), Some(left)));
    }
    settle_leaf(state, pagemap, leaf)?;
    // Who else has changed anything may have taken what was reserved.
    let is_as_found = state.leaves[&leaf].edits == prepared.as_of.0;
    let reserved = is_as_found.then_some(prepared.found.copies.as_slice());
    reserve_copies(state, leaf, reserved.unwrap_or_default())?;
    let window = Arc::clone(&state.leaves[&leaf].window);
    let copied = prepared.copied(pagemap, &window);
    let is_copied = |at: usize| copied.get(at).is_some_and(|copied| *copied);
    let plan = look_at_all(state, leaf, &prepared.found.copies, is_copied)?;
    let (stored, unused) = store(&mut state.arena, &window, prepared, &plan, is_copied)?;

    // From here on nothing fails. What was staged is right if only the guest has
    // changed anything since, and nothing that it maps has been given back.
    let as_of = (state.leaves[&leaf].edits, state.arena.frees());
    let staged = prepared.staged.take();
    let staged = staged.filter(|_| prepared.as_of == as_of);
    let found = std::mem::take(&mut prepared.found);
    prepared.window = None;
    state.note_zeros(leaf, plan.nr_zero());
    state.tree.fill_as_planned(leaf, &plan, stored.clone());
    let layer = state.tree.freeze(leaf);
    let at_leaf = state.leaves.get_mut(&leaf).expect("a leaf has a window");
    let next = staged.and_then(|staged| moved(at_leaf, &plan, stored.clone(), &found, staged));
    // Not before: what was staged shows these until it has copies.
    state.arena.free(unused);
    let Some(next) = next else {
        note_copies(&mut at_leaf.copies, &plan, stored);
        return Ok((layer, None));
    };
    let left = std::mem::replace(at_leaf, next);
    let tracking = prepared.ahead.take().map(Precopy::into_tracking);
    Ok((layer, Some(RetiredWindow::new(left.window, tracking))))
}

/// Puts what is to be copied of `window` into frames, but for what is there: each
/// page that was found into the one that it was given then. Returns the frames in
/// the order of the copies, and those that were given to pages which need none.
fn store<'plan, F: Fn(usize) -> bool>(
    arena: &mut Arena,
    window: &Window,
    prepared: &mut Prepared,
    plan: &'plan FreezePlan,
    is_copied: F,
) -> Result<(impl Iterator<Item = u64> + Clone + use<'plan, F>, FrameSet), MemoryError> {
    let nr_known = prepared.found.copies.len();
    let (nr_still, still) = plan.still_known(nr_known);
    let read = |page: &PageIdx| window.page(*page).read();
    let others = room::collect(plan.copies[nr_still..].iter().map(read))?;
    for (at, page) in still.clone().zip(&plan.copies) {
        if !is_copied(at) {
            prepared.stock.fill(at, read(page));
        }
    }
    let (frames, others) = arena.store_in(&mut prepared.stock, nr_known, &others)?;
    let frame_at = move |at: usize| frames.start + at as u64;
    let mut unused = FrameSet::default();
    for at in &plan.outdated {
        unused.add_run(frame_at(*at)..frame_at(at + 1));
    }
    Ok((still.map(frame_at).chain(others), unused))
}

/// The private pages of a leaf are copies now.
fn note_copies(copies: &mut Copies, plan: &FreezePlan, stored: impl Iterator<Item = u64>) {
    for (page, shown) in plan.shown(stored) {
        copies.note(page, shown).expect("the slot is there");
    }
}

/// The leaf in the window `staged`, which shows what was `found`; `None` if there is
/// no memory to note what differs.
fn moved(
    at_leaf: &Leaf,
    plan: &FreezePlan,
    stored: impl Iterator<Item = u64>,
    found: &FreezePlan,
    staged: Arc<Window>,
) -> Option<Leaf> {
    let mut next = Leaf {
        zeros_dropped: at_leaf.zeros_dropped,
        ..Leaf::new(staged)
    };
    // Pages found otherwise than before, or for the first time, are brought
    // over as they are.
    for (page, shown) in plan.shown_otherwise(found, stored) {
        next.copies.note(page, shown).ok()?;
        let content = at_leaf.window.page(page).read();
        next.window.page(page).copy_from(content);
    }
    Some(next)
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

/// What freezing `leaf` has to do. The pages in `data` are known to have held data,
/// and to hold it still where `is_copied` says so by their place.
fn look_at_all(
    state: &State,
    leaf: NodeId,
    data: &[PageIdx],
    is_copied: impl Fn(usize) -> bool,
) -> Result<FreezePlan, MemoryError> {
    let window = &state.leaves[&leaf].window;
    let is_zero = |at: usize| !is_copied(at) && window.page(data[at]).read().is_zero();
    state.tree.plan_freeze(leaf, data, is_zero, |page, below| {
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
