//! What the lock of a clone tree protects.

use std::ops::Range;
use std::sync::Arc;

use pagelist::PageList;

use crate::copies::Copies;
use crate::error::MemoryError;
use crate::frame::{Arena, FrameSet};
use crate::holds::Holds;
use crate::layout::PageIdx;
use crate::ordered::Ordered;
use crate::room;
use crate::sys::pagemap::Pagemap;
use crate::tree::{NodeId, Reach, Tree, ViewRun, WindowPlan};
use crate::window::Window;

/// Mappings that one window may be made of.
pub(crate) const MAP_BUDGET: usize = 512;

/// The tree with its memory.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) tree: Tree,
    pub(crate) arena: Arena,
    /// One for every leaf whose window is mapped.
    pub(crate) leaves: Ordered<NodeId, Leaf>,
    /// Which layer each snapshot and each spare holds.
    pub(crate) holds: Holds,
    /// Who has gone and is still in the tree, because lists could not be read
    /// back at that moment. Has room for everybody there is.
    pub(crate) gone: Vec<Gone>,
    /// How many claims there are.
    pub(crate) nr_claims: usize,
    /// Pages given back so far because they held nothing but zeros.
    pub(crate) zeros_dropped: u64,
    /// Whether the window planned last shows mostly root RAM, in its place. The
    /// next one will, most likely.
    pub(crate) shows_root: bool,
}

/// A claim that nobody holds any more.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Gone {
    /// The VM of this leaf; its window is unmapped.
    Vm(NodeId),
    /// A snapshot that held this layer.
    Snapshot(NodeId),
}

/// What there is of a leaf besides its list.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) window: Arc<Window>,
    /// Its private pages that are copies of what lies below the leaf, unless
    /// they have been written since, which settling finds out.
    pub(crate) copies: Copies,
    /// Markers on pages under which fresh anonymous memory has been mapped.
    pub(crate) overlaid: PageList,
    /// Mappings that made for `overlaid`.
    pub(crate) nr_overlays: usize,
    /// How often its content was changed by anybody but its guest.
    pub(crate) edits: u64,
    /// Its pages given back so far because they held nothing but zeros.
    pub(crate) zeros_dropped: u64,
}

impl Leaf {
    pub(crate) fn new(window: Arc<Window>) -> Self {
        Self {
            window,
            copies: Copies::default(),
            overlaid: PageList::new(),
            nr_overlays: 0,
            edits: 0,
            zeros_dropped: 0,
        }
    }

    /// The pages that its window holds privately for a VM of `nr_pages`, as
    /// maximal runs, ascending.
    pub(crate) fn private_pages(
        &self,
        pagemap: &Pagemap,
        nr_pages: u64,
    ) -> Result<Vec<Range<PageIdx>>, MemoryError> {
        let failed = |source| MemoryError::os("scan for private pages", nr_pages, source);
        let mapping = self.window.mapping();
        pagemap.private_pages(mapping, nr_pages).map_err(failed)
    }

    /// Copies that still are copies, now that `id`, this leaf, is settled.
    pub(crate) fn live_copies(&self, state: &State, id: NodeId) -> u64 {
        // A page that collapsed into the leaf's list is still copied below it.
        let is_copy = |page: &PageIdx| !state.tree.is_private_in(id, *page);
        self.copies.iter().filter(is_copy).count() as u64
    }
}

impl State {
    /// Makes sure that there is room for `more` claims to go, and for one more
    /// layer to be held.
    ///
    /// # Errors
    /// If there is no memory for that.
    pub(crate) fn reserve_claims(&mut self, more: usize) -> Result<(), MemoryError> {
        self.holds.reserve()?;
        room::reserve(&mut self.gone, self.nr_claims + more)
    }

    /// Adds a spare leaf that sees what `reach` says, with its window.
    ///
    /// # Errors
    /// If there is no memory for that.
    pub(crate) fn add_spare(
        &mut self,
        reach: Reach,
        nr_pages: u64,
        at_leaf: Leaf,
    ) -> Result<NodeId, MemoryError> {
        self.tree
            .reserve_node(Some(self.tree.highest(reach).node))?;
        let leaf = self.tree.add_spare(reach, nr_pages);
        let inserted = self.leaves.insert(leaf, at_leaf);
        if inserted.is_err() {
            self.tree.remove_leaf(leaf, &mut FrameSet::default()); // holds none
        }
        inserted.map(|()| leaf)
    }

    /// How a window over what `reach` says is made.
    ///
    /// # Errors
    /// If there is no memory to find out.
    pub(crate) fn plan_window(&mut self, reach: Reach) -> Result<WindowPlan, MemoryError> {
        let bridges = self.arena.bridges();
        let plan = |view: &[ViewRun]| WindowPlan::new(view, &bridges, MAP_BUDGET);
        let plan = self.tree.known_plan(reach, plan)?;
        self.expect_like(&plan, reach.nr_pages());
        Ok(plan)
    }

    /// How a window of `nr_pages` over `view` is made.
    ///
    /// # Errors
    /// If there is no memory for the plan.
    pub(crate) fn plan_to_show(
        &mut self,
        view: &[ViewRun],
        nr_pages: u64,
    ) -> Result<WindowPlan, MemoryError> {
        let plan = WindowPlan::new(view, &self.arena.bridges(), MAP_BUDGET)?;
        self.expect_like(&plan, nr_pages);
        Ok(plan)
    }

    /// The next window will most likely be made as this one, of `nr_pages`.
    fn expect_like(&mut self, plan: &WindowPlan, nr_pages: u64) {
        let root = self.arena.root();
        self.shows_root = plan.pages_in_place(&root) >= nr_pages / 2;
    }

    /// Notes that so many pages of `leaf` were zero and are not kept.
    pub(crate) fn note_zeros(&mut self, leaf: NodeId, dropped: u64) {
        self.zeros_dropped += dropped;
        if let Some(at_leaf) = self.leaves.get_mut(&leaf) {
            at_leaf.zeros_dropped += dropped;
        }
    }

    /// File pages that some list holds.
    pub(crate) fn listed_file_pages(&self) -> u64 {
        self.tree.ids().map(|id| self.tree.file_pages_of(id)).sum()
    }
}
