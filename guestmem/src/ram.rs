//! The RAM of one VM, and frozen RAM to fork it from.

use std::sync::Arc;

use crate::clone_tree::{CloneTree, LayerClaim, LeafClaim};
use crate::error::MemoryError;
use crate::frame::file_frame;
use crate::freeze;
use crate::guest_ram::{self, GuestRam};
use crate::layout::{Gpa, PageIdx, RamLayout};
use crate::ram_window::RamWindow;
use crate::reset;
use crate::settle::{self, Writers, settle_leaf};
use crate::state::{Leaf, MAP_BUDGET};
use crate::stats::RamStats;
use crate::sys::mapping::HugePages;
use crate::tree::{Reading, Seen, WindowPlan};
use crate::window::{RetiredWindow, StagedWindow, Window, Writes};
use crate::zeros::{self, ZeroCandidates};

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
    window: Arc<Window>,
    claim: Arc<LeafClaim>,
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
        let (tree, root) = CloneTree::new(layout, reading)?;
        let window = match backing {
            Backing::Memfd => Window::root(&tree.lock().arena)?,
            Backing::Anon => Window::anonymous(layout.nr_pages(), HugePages::Wanted)?,
        };
        let window = Arc::new(window);
        tree.lock()
            .leaves
            .insert(root, Leaf::new(Arc::clone(&window)));
        Ok(Self {
            window,
            claim: Arc::new(LeafClaim { tree, leaf: root }),
        })
    }

    /// The clone tree this RAM is part of.
    pub fn tree(&self) -> &Arc<CloneTree> {
        &self.claim.tree
    }

    /// How it is laid out in guest-physical space.
    pub fn layout(&self) -> RamLayout {
        self.claim.tree.layout()
    }

    /// The window, to be bound as KVM memslots.
    pub fn window(&self) -> RamWindow {
        RamWindow {
            window: Arc::clone(&self.window),
            claim: Arc::clone(&self.claim),
        }
    }

    /// The same memory for loaders and devices.
    pub fn guest_ram(&self) -> GuestRam {
        guest_ram::regions(&self.window())
    }

    /// Whether freezing moves this RAM to another window, which then has to be
    /// [staged](Self::stage) and bound first. True of root RAM in a memfd.
    pub fn moves_when_frozen(&self) -> bool {
        self.window.writes() == Writes::ToFile
    }

    /// The window to go on in when this root RAM is frozen. The VM may run.
    ///
    /// # Errors
    /// If the host has no address space for it.
    pub fn stage(&self) -> Result<StagedWindow, MemoryError> {
        let window = Window::over_frozen_root(&self.claim.tree.lock().arena)?;
        Ok(StagedWindow {
            window: Arc::new(window),
        })
    }

    /// A staged window as it will be once this RAM is frozen, to be bound
    /// ahead of it.
    pub fn staged_window(&self, staged: &StagedWindow) -> RamWindow {
        RamWindow {
            window: Arc::clone(&staged.window),
            claim: Arc::clone(&self.claim),
        }
    }

    /// Does what can be done of a freeze while the VM still runs, so that its
    /// pause is short: layers are read back.
    ///
    /// # Errors
    /// As [`settle`](Self::settle).
    pub fn prepare_freeze(&self) -> Result<(), MemoryError> {
        settle::read_back_layers(&mut self.claim.tree.lock(), Reading::Listed)
    }

    /// Freezes root RAM by moving to `staged`: nothing is copied, and the cost
    /// does not depend on the size. The VM must be stopped, and must go on in
    /// the staged window only.
    pub fn freeze_root(&mut self, staged: StagedWindow) -> (Layer, RetiredWindow) {
        assert!(self.moves_when_frozen(), "only root RAM in a memfd moves");
        let tree = &self.claim.tree;
        let mut state = tree.lock();
        let layer = freeze::move_root(&mut state, self.claim.leaf, &staged.window);
        let claim = LayerClaim::new(tree, &mut state, layer);
        let retired = std::mem::replace(&mut self.window, staged.window);
        (Layer { claim }, RetiredWindow::new(retired))
    }

    /// Freezes RAM that writes privately, where it is: what it has of its own
    /// is copied into a layer. The VM must be stopped; it goes on in the same
    /// window.
    ///
    /// # Errors
    /// If there is no memory for the copy. Nothing has changed then.
    pub fn freeze_in_place(&mut self) -> Result<Layer, MemoryError> {
        assert!(!self.moves_when_frozen(), "root RAM in a memfd moves");
        let tree = &self.claim.tree;
        let mut state = tree.lock();
        let layer = freeze::copy_private(&mut state, tree.pagemap(), self.claim.leaf)?;
        let claim = LayerClaim::new(tree, &mut state, layer);
        Ok(Layer { claim })
    }

    /// Whether [`reset`](Self::reset) to `layer` can be done in this window.
    /// If not, go on in a [fork](Layer::fork) of the layer instead.
    pub fn can_reset_to(&self, layer: &Layer) -> bool {
        let same_tree = Arc::ptr_eq(&self.claim.tree, &layer.claim.tree);
        same_tree && {
            let state = self.claim.tree.lock();
            let leaf = self.claim.leaf;
            state.tree.node(leaf).parent() == Some(layer.claim.layer)
                && reset::is_worth_it(&state.tree, leaf)
        }
    }

    /// Makes this RAM what `layer` was again, by copying back what differs.
    /// The VM must be stopped. Returns how many pages were copied back.
    ///
    /// # Errors
    /// If `layer` is not what this RAM lies directly upon
    /// ([`can_reset_to`](Self::can_reset_to)), or the kernel cannot be asked.
    pub fn reset(&mut self, layer: &Layer) -> Result<u64, MemoryError> {
        if !self.can_reset_to(layer) {
            return Err(MemoryError::ForeignLayer);
        }
        let tree = &self.claim.tree;
        reset::copy_back(&mut tree.lock(), tree.pagemap(), self.claim.leaf)
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
        Ok(RamStats::collect(&state, self.claim.leaf))
    }
}

/// Frozen RAM: a layer held by a snapshot. It never changes; RAM forked from
/// it starts out as it is.
#[derive(Debug)]
pub struct Layer {
    claim: LayerClaim,
}

impl Layer {
    /// The clone tree this layer is part of.
    pub fn tree(&self) -> &Arc<CloneTree> {
        &self.claim.tree
    }

    /// New RAM that shares all of this layer.
    ///
    /// # Errors
    /// If the host has no address space or mappings for its window, or no
    /// memory for pages that have to be copied because the layer is made of
    /// more runs than a window may have mappings.
    pub fn fork(&self) -> Result<Ram, MemoryError> {
        let tree = &self.claim.tree;
        let mut state = tree.lock();
        let state = &mut *state;
        let view = state.tree.layer_view(self.claim.layer);
        let plan = WindowPlan::new(&view, &state.arena.root(), MAP_BUDGET);
        let nr_pages = state.tree.nr_pages();
        let window = Arc::new(Window::planned(&state.arena, nr_pages, &plan)?);
        let mut at_leaf = Leaf::new(Arc::clone(&window));
        for run in &plan.copies {
            let (start, end) = (run.pages.start, run.pages.end);
            for (page, file_page) in (start..end).map(PageIdx).zip(run.file_page..) {
                at_leaf
                    .copies
                    .note(page, Seen::Frame(file_frame(file_page)))?;
                window.page(page).copy_from(state.arena.page(file_page));
            }
        }
        let leaf = state.tree.add_leaf(self.claim.layer);
        state.leaves.insert(leaf, at_leaf);
        Ok(Ram {
            window,
            claim: Arc::new(LeafClaim {
                tree: Arc::clone(tree),
                leaf,
            }),
        })
    }
}
