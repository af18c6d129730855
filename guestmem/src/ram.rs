//! The RAM of one VM.

use std::sync::Arc;

use crate::blank_window::BlankWindow;
use crate::clone_tree::{CloneTree, LeafClaim};
use crate::error::MemoryError;
use crate::freeze::{self, Prepared};
use crate::guest_ram::{self, GuestRam};
use crate::layer::Layer;
use crate::layout::{Gpa, PageIdx, RamLayout};
use crate::ram_window::RamWindow;
use crate::settle::{self, Writers, settle_leaf};
use crate::state::{Leaf, State};
use crate::stats::RamStats;
use crate::sys::mapping::HugePages;
use crate::tree::Reading;
use crate::window::{RetiredWindow, Window};
use crate::zeros::{self, ZeroCandidates};
use crate::{reset, resize};

/// What root RAM is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Backing {
    /// A sparse memfd. Freezing costs the same at any size; a first touch
    /// commits one page.
    #[default]
    Memfd,
    /// Anonymous memory with transparent huge pages. A first touch commits
    /// 2 MiB and is some thirty times cheaper a page; freezing copies what is
    /// there. For VMs that want speed and are forked rarely.
    Anon,
}

/// The RAM of one VM: a leaf of a clone tree, and the window it is seen
/// through. Dropping it gives back every frame that nobody else sees, once
/// every [`RamWindow`] and [`GuestRam`] made of it is gone too.
#[derive(Debug)]
pub struct Ram {
    pub(crate) layout: RamLayout,
    pub(crate) window: Arc<Window>,
    pub(crate) claim: Arc<LeafClaim>,
}

impl Ram {
    /// Fresh RAM, all zero, nothing committed: the root of a new clone tree.
    ///
    /// # Errors
    /// If the host has no file, memory or address space for it.
    pub fn new(layout: RamLayout, backing: Backing) -> Result<Self, MemoryError> {
        let reading = match backing {
            Backing::Memfd => Reading::Unread,
            Backing::Anon => Reading::Exact,
        };
        let (tree, root) = CloneTree::new(layout.nr_pages(), reading)?;
        let window = match backing {
            Backing::Memfd => Window::root(&tree.lock().arena, &BlankWindow::new(layout)?)?,
            Backing::Anon => {
                Window::anonymous(&BlankWindow::with_pages(layout, HugePages::Wanted)?)
            }
        };
        let window = Arc::new(window);
        let mut state = tree.lock();
        state.reserve_claims(1)?;
        state.leaves.insert(root, Leaf::new(Arc::clone(&window)))?;
        let claim = Arc::new(LeafClaim::new(&tree, &mut state, root));
        drop(state);
        Ok(Self {
            layout,
            window,
            claim,
        })
    }

    /// The clone tree this RAM is part of.
    pub fn tree(&self) -> &Arc<CloneTree> {
        &self.claim.tree
    }

    /// How it is laid out in guest-physical space.
    pub fn layout(&self) -> RamLayout {
        self.layout
    }

    /// The window, to be bound as KVM memslots.
    pub fn window(&self) -> RamWindow {
        RamWindow {
            layout: self.layout,
            window: Arc::clone(&self.window),
            claim: Arc::clone(&self.claim),
        }
    }

    /// The same memory for loaders and devices.
    pub fn guest_ram(&self) -> GuestRam {
        guest_ram::regions(&self.window())
    }

    /// Does what can be done of a [freeze](Self::freeze) while the VM still
    /// runs, so that its pause is short: lists are read back, pages looked at,
    /// and frames for the copies allocated.
    ///
    /// # Errors
    /// As [`settle`](Self::settle), or if there is no memory for the copies.
    pub fn prepare_freeze(&self) -> Result<PreparedFreeze, MemoryError> {
        let tree = &self.claim.tree;
        let mut state = tree.lock();
        settle::read_back_layers(&mut state, Reading::Listed)?;
        let prepared = freeze::prepare(&mut state, tree.pagemap(), self.claim.leaf)?;
        Ok(PreparedFreeze {
            claim: Arc::clone(&self.claim),
            prepared,
        })
    }

    /// Makes the window that this RAM will go on in, at the addresses of
    /// `blank`, to be bound ahead of the freeze. The VM may run. `None` if it is
    /// to stay where it is after all.
    ///
    /// # Errors
    /// If the host has no mappings for it.
    pub fn stage(
        &self,
        prepared: &mut PreparedFreeze,
        blank: &BlankWindow,
    ) -> Result<Option<RamWindow>, MemoryError> {
        let mut state = self.claim.tree.lock();
        let prepared = &mut prepared.prepared;
        let staged = freeze::stage(&mut state, self.claim.leaf, prepared, blank)?;
        Ok(staged.map(|window| RamWindow {
            layout: self.layout,
            window,
            claim: Arc::clone(&self.claim),
        }))
    }

    /// Freezes this RAM: what it is now becomes a layer, for others to fork and
    /// for itself to go on upon. The VM must be stopped. Where a window was
    /// [staged](Self::stage), and still fits, it must go on in that one only;
    /// the one that it has left is returned then.
    ///
    /// Root RAM in a memfd costs the same at any size. For other RAM what it
    /// has of its own is copied.
    ///
    /// # Errors
    /// If there is no memory for what was not prepared, if that was for another
    /// VM, or if root RAM in a memfd has no window staged. Nothing has changed
    /// then.
    pub fn freeze(
        &mut self,
        prepared: &mut PreparedFreeze,
    ) -> Result<(Layer, Option<RetiredWindow>), MemoryError> {
        if !Arc::ptr_eq(&self.claim, &prepared.claim) {
            return Err(MemoryError::ForeignLayer);
        }
        let tree = &self.claim.tree;
        let mut state = tree.lock();
        state.reserve_claims(1)?;
        let leaf = self.claim.leaf;
        let prepared = &mut prepared.prepared;
        let (layer, left) = freeze::freeze(&mut state, tree.pagemap(), leaf, prepared)?;
        if left.is_some() {
            self.window = Arc::clone(&state.leaves[&leaf].window);
        }
        let layer = Layer::new(tree, &mut state, layer, self.layout);
        Ok((layer, left))
    }

    /// Whether [`reset`](Self::reset) to `layer` can be done in this window.
    /// If not, go on in a [fork](Layer::fork) of the layer instead: after the
    /// layer has been [flattened](crate::Flattener), too, when this was forked
    /// from it before.
    pub fn can_reset_to(&self, layer: &Layer) -> bool {
        let same_tree = Arc::ptr_eq(&self.claim.tree, layer.tree());
        same_tree && self.lies_upon(&self.claim.tree.lock(), layer)
    }

    /// Whether it starts out as `layer`, of the same tree, and copying back is
    /// the better way; `state` is the tree's, locked.
    fn lies_upon(&self, state: &State, layer: &Layer) -> bool {
        let leaf = self.claim.leaf;
        let nr_pages = self.layout.nr_pages();
        self.layout == layer.layout() && {
            let all = state.tree.part_of(layer.node(state), 0..nr_pages);
            state.tree.node(leaf).parent() == Some(state.tree.highest(all))
                && reset::is_worth_it(&state.tree, leaf)
        }
    }

    /// Makes this RAM what `layer` was again, by copying back what differs.
    /// The VM must be stopped. Returns how many pages were copied back.
    ///
    /// # Errors
    /// If `layer` is not what this RAM lies directly upon
    /// ([`can_reset_to`](Self::can_reset_to); it may be [flattened] at any time
    /// by another thread), or the kernel cannot be asked.
    ///
    /// [flattened]: crate::Flattener
    pub fn reset(&mut self, layer: &Layer) -> Result<u64, MemoryError> {
        let tree = &self.claim.tree;
        if !Arc::ptr_eq(tree, layer.tree()) {
            return Err(MemoryError::ForeignLayer);
        }
        let mut state = tree.lock();
        if !self.lies_upon(&state, layer) {
            return Err(MemoryError::ForeignLayer);
        }
        reset::copy_back(&mut state, tree.pagemap(), self.claim.leaf)
    }

    /// Brings the page list up to date with what the kernel did. With
    /// [`Writers::Stopped`] zero pages are found and given back as well.
    ///
    /// # Errors
    /// If the kernel cannot be asked, or there is no memory to note the answer.
    pub fn settle(&mut self, writers: Writers) -> Result<(), MemoryError> {
        let tree = &self.claim.tree;
        let mut state = tree.lock();
        settle::read_back_layers(&mut state, Reading::Exact)?;
        settle_leaf(&mut state, tree.pagemap(), self.claim.leaf)?;
        if writers == Writers::Stopped {
            zeros::drop_zero_pages(&mut state, self.claim.leaf)?;
        }
        settle::reconcile(&mut state)
    }

    /// Gives back the pages of `[start, start + len_bytes)`, which the guest
    /// has declared free; they read zero. Returns how many pages were dropped;
    /// pages that cannot be are cleared instead.
    ///
    /// # Errors
    /// If the range is not whole pages of one RAM region (nothing is touched),
    /// or the kernel refuses.
    pub fn discard(&mut self, start: Gpa, len_bytes: u64) -> Result<u64, MemoryError> {
        let range = self
            .layout()
            .pages_of(start, len_bytes)
            .ok_or(MemoryError::NotRam {
                start_gpa: start.0,
                len_bytes,
            })?;
        zeros::zero_run(&mut self.claim.tree.lock(), self.claim.leaf, range)
    }

    /// Gives this RAM another size. The pages it loses are gone: where it grows
    /// again it reads zero. The VM must be stopped, and not reach beyond the new
    /// size; windows on loan keep the size they had.
    ///
    /// # Errors
    /// If the new layout is larger than what the RAM was made with (take a
    /// [clone](Layer::clone_part) then), or the kernel refuses.
    pub fn resize(&mut self, layout: RamLayout) -> Result<(), MemoryError> {
        resize::resize(&mut self.claim.tree.lock(), self.claim.leaf, layout)?;
        self.layout = layout;
        Ok(())
    }

    /// Looks for zero pages among up to `most` of this RAM's own, from page
    /// `from` on; finds 200 at most. The VM may run: what is found are
    /// candidates for [`drop_zeros`](Self::drop_zeros).
    ///
    /// # Errors
    /// As [`settle`](Self::settle).
    pub fn look_for_zeros(&self, from: PageIdx, most: u64) -> Result<ZeroCandidates, MemoryError> {
        let tree = &self.claim.tree;
        zeros::look(
            &mut tree.lock(),
            tree.pagemap(),
            self.claim.leaf,
            from,
            most,
        )
    }

    /// Gives back those of `candidates` that are zero still. The VM must be
    /// stopped. Returns how many went.
    ///
    /// # Errors
    /// As [`discard`](Self::discard).
    pub fn drop_zeros(&mut self, candidates: &ZeroCandidates) -> Result<u64, MemoryError> {
        zeros::drop_candidates(&mut self.claim.tree.lock(), self.claim.leaf, candidates)
    }

    /// What this VM owns, sees and is charged for, settled now.
    ///
    /// # Errors
    /// As [`CloneTree::stats`].
    pub fn stats(&self) -> Result<RamStats, MemoryError> {
        let tree = &self.claim.tree;
        let mut state = tree.lock();
        state.settle_all(tree.pagemap())?;
        RamStats::collect(&state, self.claim.leaf)
    }
}

/// What has been done of a freeze to come. Frames that were allocated for it
/// and not needed are given back when this is dropped, which may take a while:
/// not in the pause.
#[derive(Debug)]
pub struct PreparedFreeze {
    prepared: Prepared,
    /// Goes last: windows go before the frames that they show.
    claim: Arc<LeafClaim>,
}

impl PreparedFreeze {
    /// Whether the RAM is to move to another window, which has to be
    /// [staged](Ram::stage) then. Root RAM in a memfd always does; other RAM
    /// when its window holds many copies of what lies below it, as it does
    /// after a few freezes without moving.
    pub fn wants_window(&self) -> bool {
        self.prepared.moves
    }

    /// Copies what will have to be copied, if that is a lot, and what has been
    /// written since the last call. For a VM that runs: once before its window is
    /// staged, and again right before it is stopped, so that only what it writes
    /// afterwards is left for the pause. The guest is slowed down meanwhile: it
    /// faults its pages in again.
    ///
    /// Where the kernel cannot tell what is written (Linux 6.7, and userfaultfd(2)
    /// not forbidden), all is copied in the pause.
    pub fn copy_ahead(&mut self) {
        self.prepared.copy_ahead(self.claim.tree.pagemap());
    }
}

impl Drop for PreparedFreeze {
    fn drop(&mut self) {
        let arena = &mut self.claim.tree.lock().arena;
        arena.unstock(&mut self.prepared.stock);
    }
}
