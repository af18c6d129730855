//! Flattening: what a layer shows in many pieces is copied into few.
//!
//! ```text
//!   layer ──┬── forks of before, whose windows map the old frames
//!           └── flat copy ──┬── forks from now on
//!                           └── the snapshot, which holds it in place of the layer
//! ```
//!
//! The layer itself stays as it is, because windows map its frames. Copies go
//! into a new layer above it that shows the same, and the snapshot goes over to
//! that one. Nothing else is special about it: the old layer goes when its last
//! fork has gone, and collapses into the flat one as into any only child, which
//! frees all frames that have been copied.
//!
//! Copying is done a slice at a time, each with the tree's lock; in between
//! others use the tree. Until the end no list has changed: frames that are filled
//! already are in stock, and go back if anything fails.

use std::ops::Range;
use std::sync::{Arc, Weak};

use pagelist::{PageList, PageOrMarker};

use crate::clone_tree::{CloneTree, LayerClaim};
use crate::error::MemoryError;
use crate::frame::{Draft, FrameHome, file_frame, home};
use crate::holds::HoldId;
use crate::layer::Layer;
use crate::layout::{PAGE_SIZE, PageIdx};
use crate::room;
use crate::settle;
use crate::state::{MAP_BUDGET, State};
use crate::tree::{NodeId, Reading, Repack, Source, ViewRun};

/// Pages copied with the lock held: some 100 µs.
const SLICE: u64 = 64;

/// What a step of a [`Flattener`] has come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flattened {
    /// There is more to do.
    Partly,
    /// Forks from now on show the copies.
    Done,
    /// The layer stays as it is: it is not worth more, or has gone.
    LeftAlone,
}

/// Makes the pieces that a layer is made of few; see [`Layer::flattener`].
#[derive(Debug)]
pub struct Flattener {
    layer: Weak<LayerClaim>,
    hold: HoldId,
    forks: u64,
    work: Option<Work>,
}

/// A flat copy on its way.
#[derive(Debug)]
struct Work {
    tree: Arc<CloneTree>,
    layer: NodeId,
    view: Arc<Vec<ViewRun>>,
    /// [`Tree::view_changes`](crate::tree::Tree::view_changes) of the view.
    as_of: u64,
    /// What is left to be copied, the last first.
    left: Vec<Range<u64>>,
    nr_frames: u64,
    draft: Draft,
    list: PageList,
    kept: bool,
}

impl Layer {
    /// Whoever flattens this layer: a fork of it costs a mapping for every piece
    /// that it is made of, and copies when there are too many of them. What has
    /// been paid for that by `forks` forks decides whether it is worth it, and
    /// how much of the layer is copied. What the layer shows stays the same, and
    /// forks of before are not touched.
    ///
    /// ```
    /// use guestmem::{Backing, Flattened, Ram, RamLayout};
    /// use vm_memory::{Bytes, GuestAddress};
    ///
    /// let mut ram = Ram::new(RamLayout::new(16 << 20)?, Backing::Anon)?;
    /// for page in 0..64 {
    ///     ram.guest_ram().write_obj(page + 1, GuestAddress(page * 0x1_0000))?;
    /// }
    /// let (layer, _) = ram.freeze(&mut ram.prepare_freeze()?)?;
    /// assert_eq!(layer.fork()?.stats()?.mappings, 64);
    ///
    /// let mut flattener = layer.flattener(2);
    /// while flattener.step()? == Flattened::Partly {}
    /// assert_eq!(layer.fork()?.stats()?.mappings, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn flattener(&self, forks: u64) -> Flattener {
        Flattener {
            layer: Arc::downgrade(self.claim()),
            hold: self.claim().hold,
            forks,
            work: None,
        }
    }
}

impl Flattener {
    /// Goes on with it: decides first, then copies some pages at a time, and in
    /// the end has the snapshot go over. Each step holds the tree's lock for some
    /// 100 µs, but for the first, which takes as long as a first fork.
    ///
    /// # Errors
    /// If the host has no memory for the copies, or the tree no numbers. Nothing
    /// has changed then; another step begins anew.
    pub fn step(&mut self) -> Result<Flattened, MemoryError> {
        let Some(tree) = self.layer.upgrade().map(|claim| Arc::clone(&claim.tree)) else {
            self.work = None;
            return Ok(Flattened::LeftAlone);
        };
        let mut state = tree.lock();
        let layer = state.holds.layer(self.hold);
        let stepped = match (layer, &mut self.work) {
            (Some(layer), None) => match Work::begin(&tree, &mut state, layer, self.forks) {
                Ok(Some(work)) => {
                    self.work = Some(work);
                    return Ok(Flattened::Partly);
                }
                Ok(None) => Ok(Flattened::LeftAlone),
                Err(error) => Err(error),
            },
            (Some(layer), Some(work)) if layer == work.layer => work.go_on(&mut state),
            _ => Ok(Flattened::LeftAlone), // gone, or flattened by somebody else
        };
        drop(state);
        if !matches!(stepped, Ok(Flattened::Partly)) {
            self.work = None; // takes the lock to give back what was not kept
        }
        stepped
    }

    /// Frames that it takes, once that has been decided.
    pub fn nr_frames(&self) -> u64 {
        self.work.as_ref().map_or(0, |work| work.nr_frames)
    }
}

impl Work {
    /// What there is to do of `layer`, if anything.
    fn begin(
        tree: &Arc<CloneTree>,
        state: &mut State,
        layer: NodeId,
        forks: u64,
    ) -> Result<Option<Self>, MemoryError> {
        // Reading back root RAM takes long, and is not needed to see that it is
        // in one piece.
        if look(state, layer, forks)?.1.is_none() {
            return Ok(None);
        }
        settle::read_back_layers(state, Reading::Listed)?;
        let (view, Some(repack)) = look(state, layer, forks)? else {
            return Ok(None);
        };
        let draft = state.arena.draft(repack.span())?;
        let Repack {
            runs: mut left,
            nr_frames,
        } = repack;
        left.reverse();
        Ok(Some(Self {
            tree: Arc::clone(tree),
            layer,
            view,
            as_of: state.tree.view_changes(),
            left,
            nr_frames,
            draft,
            list: state.tree.list_above(layer),
            kept: false,
        }))
    }

    fn go_on(&mut self, state: &mut State) -> Result<Flattened, MemoryError> {
        // What is seen goes on being held as long as it is seen, but frames of
        // zeros are given back, and their numbers may be others' then.
        if self.as_of != state.tree.view_changes() {
            self.view = state.tree.layer_view(self.layer)?;
            self.as_of = state.tree.view_changes();
        }
        let mut looked_at = 0;
        while looked_at < SLICE
            && let Some(run) = self.left.pop()
        {
            let now = run.start..run.end.min(run.start + SLICE);
            if now.end < run.end {
                self.left.push(now.end..run.end);
            }
            looked_at += self.copy(state, now)?;
        }
        if !self.left.is_empty() {
            return Ok(Flattened::Partly);
        }
        if self.list.has_no_pages() {
            return Ok(Flattened::LeftAlone);
        }
        state.reserve_claims(state.holds.nr_snapshots(self.layer))?;
        state.tree.reserve_node(Some(self.layer))?;
        self.finish(state);
        Ok(Flattened::Done)
    }

    /// Copies what is seen of `pages`, and returns how many frames that were.
    fn copy(&mut self, state: &mut State, pages: Range<u64>) -> Result<u64, MemoryError> {
        let first = self
            .view
            .partition_point(|run| run.pages.end <= pages.start);
        let runs = self.view[first..].iter();
        let runs = runs.take_while(|run| run.pages.start < pages.end);
        // Next to one another in RAM, and so in the image.
        let mut next: (u64, Vec<u64>) = (pages.start, Vec::new());
        let mut looked_at = 0;
        for run in runs.map(|run| run.within(&pages)) {
            let Source::Frames(frame) = run.source else {
                continue;
            };
            let FrameHome::File(file_page) = home(frame) else {
                unreachable!("a layer holds no private pages");
            };
            looked_at += run.pages.end - run.pages.start;
            for (page, file_page) in run.pages.zip(file_page..) {
                if state.arena.page(file_page).is_zero() {
                    // A hole will do, with a marker over what would show.
                    insert(&mut self.list, page, PageOrMarker::marker())?;
                    continue;
                }
                if page != next.0 + next.1.len() as u64 {
                    store(state, &mut self.draft, &mut self.list, &next)?;
                    next = (page, Vec::new());
                }
                room::push(&mut next.1, file_page)?;
            }
        }
        store(state, &mut self.draft, &mut self.list, &next)?;
        Ok(looked_at)
    }

    /// The copies become a layer, and the snapshot goes over to it. Cannot fail.
    fn finish(&mut self, state: &mut State) {
        let list = std::mem::replace(&mut self.list, PageList::new());
        let flat = state.tree.add_flat(self.layer, list);
        state.arena.keep(&self.draft, state.tree.file_runs_of(flat));
        self.kept = true;
        let snapshots = state.holds.nr_snapshots(self.layer);
        state.holds.move_snapshots(self.layer, flat);
        state.nr_claims += snapshots;
        for _ in 0..snapshots {
            state.tree.retain(flat);
        }
        for _ in 0..snapshots {
            state.lets_go(self.layer);
        }
    }
}

/// What `layer` shows, and what is worth copying of it.
fn look(
    state: &mut State,
    layer: NodeId,
    forks: u64,
) -> Result<(Arc<Vec<ViewRun>>, Option<Repack>), MemoryError> {
    let view = state.tree.layer_view(layer)?;
    let repack = Repack::new(&view, &state.arena.bridges(), MAP_BUDGET, forks)?;
    Ok((view, repack))
}

/// Copies file pages to where the pages from `next.0` on lie in `draft`, and
/// notes them in `list`.
fn store(
    state: &mut State,
    draft: &mut Draft,
    list: &mut PageList,
    (page, sources): &(u64, Vec<u64>),
) -> Result<(), MemoryError> {
    if sources.is_empty() {
        return Ok(());
    }
    state.arena.fill(draft, *page, sources)?;
    let first = file_frame(draft.file_page(*page));
    list.insert_frames(page * PAGE_SIZE, first, sources.len() as u64)
        .map_err(|_| MemoryError::Bookkeeping)
}

fn insert(list: &mut PageList, page: u64, entry: PageOrMarker) -> Result<(), MemoryError> {
    let before = list.insert(PageIdx(page).byte_offset(), entry);
    let before = before.map_err(|_| MemoryError::Bookkeeping)?;
    debug_assert!(before.take_frame().is_none(), "each page is copied once");
    Ok(())
}

impl Drop for Work {
    fn drop(&mut self) {
        if !self.kept {
            self.list.remove_all_pages(|_| {});
            self.tree.lock().arena.discard(&self.draft);
        }
    }
}
