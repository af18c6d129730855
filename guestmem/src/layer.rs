//! Frozen RAM, to fork VMs from.

use std::ops::Range;
use std::sync::Arc;

use pagelist::{Run, RunKind};

use crate::blank_window::BlankWindow;
use crate::clone_tree::{CloneTree, LayerClaim, LeafClaim};
use crate::error::MemoryError;
use crate::frame::{Arena, file_frame};
use crate::holds::HeldFor;
use crate::layout::{PageIdx, RamLayout};
use crate::pages::ByPage;
use crate::ram::Ram;
use crate::ram_window::RamWindow;
use crate::room;
use crate::settle;
use crate::state::{Leaf, State};
use crate::tree::{NodeId, Reading, Seen};
use crate::window::Window;

/// Frozen RAM: a layer held by a snapshot. It never changes; RAM forked from
/// it starts out as it is.
#[derive(Debug)]
pub struct Layer {
    claim: Arc<LayerClaim>,
    layout: RamLayout,
}

impl Layer {
    /// Takes hold of `layer`; `state` is the tree's, locked.
    pub(crate) fn new(
        tree: &Arc<CloneTree>,
        state: &mut State,
        layer: NodeId,
        layout: RamLayout,
    ) -> Self {
        let claim = Arc::new(LayerClaim::new(tree, state, layer, HeldFor::Snapshot));
        Self { claim, layout }
    }

    /// The clone tree this layer is part of.
    pub fn tree(&self) -> &Arc<CloneTree> {
        &self.claim.tree
    }

    /// How the RAM was laid out that was frozen.
    pub fn layout(&self) -> RamLayout {
        self.layout
    }

    pub(crate) fn claim(&self) -> &Arc<LayerClaim> {
        &self.claim
    }

    /// The node it is now; `state` is the tree's, locked. Flattening changes it.
    pub(crate) fn node(&self, state: &State) -> NodeId {
        let held = state.holds.layer(self.claim.hold);
        held.expect("a claim holds a layer as long as it lives")
    }

    /// Whether both are one layer: snapshots of a VM that has written nothing in
    /// between.
    pub fn is_same_as(&self, other: &Self) -> bool {
        let same_tree = Arc::ptr_eq(self.tree(), other.tree());
        same_tree && {
            let state = self.tree().lock();
            self.node(&state) == other.node(&state)
        }
    }

    /// The pages that it holds itself, ascending; what else it shows is held by
    /// those before it.
    ///
    /// # Errors
    /// As [`CloneTree::stats`].
    pub fn own_pages(&self) -> Result<Vec<Range<PageIdx>>, MemoryError> {
        let mut state = self.tree().lock();
        settle::read_back_layers(&mut state, Reading::Exact)?;
        let node = state.tree.node(self.node(&state));
        let runs = node.list.runs_in(0..node.nr_pages());
        let frames = runs.filter(|run| run.kind != RunKind::Marker);
        let pages = |run: Run| PageIdx::containing(run.start)..PageIdx::containing(run.end);
        room::collect(frames.map(pages))
    }

    /// New RAM that shares all of this layer.
    ///
    /// # Errors
    /// If the host has no address space or mappings for its window, or no
    /// memory for pages that have to be copied because the layer is made of
    /// more runs than a window may have mappings.
    pub fn fork(&self) -> Result<Ram, MemoryError> {
        self.clone_part(PageIdx(0), self.layout)
    }

    /// The same made ahead, at the addresses of `blank`: it costs no frames and
    /// is nobody's RAM until it is [used](SpareRam::into_ram). What of it the
    /// addresses have no room for is left out.
    ///
    /// # Errors
    /// As [`fork`](Self::fork).
    pub fn spare(&self, blank: &BlankWindow) -> Result<SpareRam, MemoryError> {
        self.spare_part(PageIdx(0), blank)
    }

    /// New memory of another size that shares what this layer has from page
    /// `first` on, as far as both reach. What lies beyond reads zero.
    ///
    /// ```
    /// use guestmem::{Backing, PageIdx, Ram, RamLayout};
    /// use vm_memory::{Bytes, GuestAddress};
    ///
    /// let mut ram = Ram::new(RamLayout::new(16 << 20)?, Backing::Anon)?;
    /// ram.guest_ram().write_obj(42u64, GuestAddress(8 << 20))?;
    /// let (layer, _) = ram.freeze(&mut ram.prepare_freeze()?)?;
    ///
    /// let upper = layer.clone_part(PageIdx(2048), RamLayout::new(32 << 20)?)?;
    /// assert_eq!(upper.guest_ram().read_obj::<u64>(GuestAddress(0))?, 42);
    /// assert_eq!(upper.guest_ram().read_obj::<u64>(GuestAddress(24 << 20))?, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`fork`](Self::fork), or if the clone is larger than a tree can
    /// number.
    pub fn clone_part(&self, first: PageIdx, layout: RamLayout) -> Result<Ram, MemoryError> {
        let blank = BlankWindow::new(layout)?;
        Ok(self.spare_part(first, &blank)?.into_ram())
    }

    fn spare_part(&self, first: PageIdx, blank: &BlankWindow) -> Result<SpareRam, MemoryError> {
        let layout = blank.layout();
        let tree = &self.claim.tree;
        let mut state = tree.lock();
        let state = &mut *state;
        let nr_pages = layout.nr_pages();
        Arena::can_number(nr_pages)?;
        let end = first.0.saturating_add(nr_pages);
        let layer = self.node(state);
        let reach = state.tree.part_of(layer, first.0..end);
        let plan = state.plan_window(reach)?;
        let window = Arc::new(Window::planned(&state.arena, blank, &plan)?);
        let mut at_leaf = Leaf::new(Arc::clone(&window));
        for run in plan.copies.iter() {
            let (start, end) = (run.pages.start, run.pages.end);
            for (page, file_page) in (start..end).map(PageIdx).zip(run.file_page..) {
                at_leaf
                    .copies
                    .note(page, Seen::Frame(file_frame(file_page)))?;
                window.page(page).copy_from(state.arena.page(file_page));
            }
        }
        state.reserve_claims(2)?;
        let leaf = state.add_spare(reach, nr_pages, at_leaf)?;
        let ram = Ram {
            layout,
            window,
            claim: Arc::new(LeafClaim::new(tree, state, leaf)),
        };
        let shown = LayerClaim::new(tree, state, layer, HeldFor::Spare);
        Ok(SpareRam { ram, _shown: shown })
    }
}

/// RAM that is ready and that no VM uses yet. Its window can be bound as
/// memslots already; it must not be written to.
#[derive(Debug)]
pub struct SpareRam {
    ram: Ram,
    /// What it shows counts as seen by whoever holds the layer only, and the
    /// snapshot may go over to another.
    _shown: LayerClaim,
}

impl SpareRam {
    /// The window, to be bound as KVM memslots.
    pub fn window(&self) -> RamWindow {
        self.ram.window()
    }

    /// Makes it the RAM of a VM. O(1).
    pub fn into_ram(self) -> Ram {
        let claim = &self.ram.claim;
        claim.tree.lock().tree.use_spare(claim.leaf);
        self.ram
    }
}
