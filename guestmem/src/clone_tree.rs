//! One clone tree with its memory: the policy of [`tree`](crate::tree), the
//! frames, and the windows of its leaves, under one lock.
//!
//! ```text
//!   Ram ──┐ claim                 ┌─ Tree     who owns, who sees
//!   Layer ┴─► CloneTree ─ lock ─► ├─ Arena    frames in the file
//!                                 └─ Leaf     window, copies, one per VM
//! ```
//!
//! # Order of going
//!
//! A frame is given back only when no window can show it. So when the last
//! claim on a leaf goes, its window is unmapped first (without the lock, as it
//! may take long), then its list is emptied, then ancestors collapse.

use std::sync::{Arc, PoisonError};

use crate::error::MemoryError;
use crate::frame::{Arena, FrameSet};
use crate::holds::{HeldFor, HoldId, Holds};
use crate::ordered::Ordered;
use crate::room;
use crate::settle::{read_back_layers, reconcile, settle_leaf};
use crate::state::{Gone, State};
use crate::stats::TreeStats;
use crate::sync::{Mutex, MutexGuard};
use crate::sys::memfd::Memfd;
use crate::sys::pagemap::Pagemap;
use crate::tree::{NodeId, Reading, Role, Tree, Viewers};

/// A clone tree: the RAM of a VM and of everything forked from it.
#[derive(Debug)]
pub struct CloneTree {
    pagemap: Pagemap,
    /// The arena's, to count its pages without the lock.
    file: Arc<Memfd>,
    state: Mutex<State>,
}

impl CloneTree {
    pub(crate) fn new(nr_pages: u64, reading: Reading) -> Result<(Arc<Self>, NodeId), MemoryError> {
        let pagemap = Pagemap::open()
            .map_err(|source| MemoryError::os("open /proc/self/pagemap", 0, source))?;
        let arena = Arena::new(nr_pages)?;
        let file = arena.file();
        let (tree, root) = Tree::new(nr_pages, reading)?;
        let state = Mutex::new(State {
            tree,
            arena,
            leaves: Ordered::default(),
            holds: Holds::default(),
            gone: Vec::new(),
            nr_claims: 0,
            zeros_dropped: 0,
            shows_root: reading == Reading::Unread,
        });
        let tree = Arc::new(Self {
            pagemap,
            file,
            state,
        });
        Ok((tree, root))
    }

    /// The lock. A panic while it was held poisons nothing that matters more
    /// than the other VMs going on.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn pagemap(&self) -> &Pagemap {
        &self.pagemap
    }

    pub(crate) fn file(&self) -> &Memfd {
        &self.file
    }

    /// Reads back what the kernel did to every VM of the tree, and adds up who
    /// owns and who sees what. Exact for VMs that are paused; of a running one
    /// it is what had happened when it was looked at.
    ///
    /// # Errors
    /// If the kernel cannot be asked, or there is no memory to note the answer.
    pub fn stats(&self) -> Result<TreeStats, MemoryError> {
        let mut state = self.lock();
        state.settle_all(&self.pagemap)?;
        TreeStats::collect(&state)
    }

    /// Settles every VM and gives back every frame that nobody can see: pages
    /// of layers that all children have covered, each for itself, and zero
    /// pages. Returns how many frames went.
    ///
    /// # Errors
    /// As [`stats`](Self::stats).
    pub fn reclaim(&self) -> Result<u64, MemoryError> {
        let mut state = self.lock();
        state.settle_all(&self.pagemap)?;
        let before = state.arena.committed_pages()?;
        let mut freed = FrameSet::default();
        let viewers = Viewers::count(&state.tree)?;
        let reclaimed = viewers.reclaim(&mut state.tree, &mut freed);
        state.arena.free(freed);
        reclaimed?;
        Ok(before.saturating_sub(state.arena.committed_pages()?))
    }

    /// Verifies what must hold between the lists, the frames and the kernel's
    /// count of them. For tests, after the VMs have been paused.
    ///
    /// # Panics
    /// If something does not hold.
    pub fn check_invariants(&self) {
        let mut state = self.lock();
        state.settle_all(&self.pagemap).expect("settling");
        state.tree.check_invariants();
        let listed = state.listed_file_pages();
        let committed = state.arena.committed_pages().expect("fstat");
        assert_eq!(listed, committed, "file pages listed against committed");
        let is_leaf = |id: &NodeId| !matches!(state.tree.node(*id).role(), Role::Layer { .. });
        assert_eq!(
            state.leaves.len(),
            state.tree.ids().filter(is_leaf).count(),
            "every leaf has a window"
        );
    }
}

impl State {
    /// Settles every leaf and every layer.
    pub(crate) fn settle_all(&mut self, pagemap: &Pagemap) -> Result<(), MemoryError> {
        self.bury()?;
        read_back_layers(self, Reading::Exact)?;
        // Nobody has written to a spare.
        let in_use = |leaf: &NodeId| self.tree.node(*leaf).role() == Role::Leaf;
        let leaves = self.leaves.iter().map(|(leaf, _)| leaf);
        for leaf in room::collect(leaves.filter(in_use))? {
            settle_leaf(self, pagemap, leaf)?;
        }
        reconcile(self)
    }

    /// Takes those who have gone out of the tree, with what only they could
    /// see. What fails is tried again the next time.
    fn bury(&mut self) -> Result<(), MemoryError> {
        while let Some(gone) = self.gone.last().copied() {
            let (Gone::Vm(node) | Gone::Snapshot(node)) = gone;
            if self.tree.merges_without(node) {
                read_back_layers(self, Reading::Listed)?;
            }
            self.gone.pop();
            let mut freed = FrameSet::default();
            match gone {
                Gone::Vm(leaf) => self.tree.remove_leaf(leaf, &mut freed),
                Gone::Snapshot(layer) => self.tree.release(layer, &mut freed),
            }
            self.arena.free(freed);
        }
        Ok(())
    }

    /// A claim on `layer` is given up.
    pub(crate) fn lets_go(&mut self, layer: NodeId) {
        self.has_gone(Gone::Snapshot(layer));
    }

    /// Notes that somebody has gone, and takes it out now if that can be.
    fn has_gone(&mut self, gone: Gone) {
        self.nr_claims -= 1;
        debug_assert!(self.gone.len() < self.gone.capacity(), "was reserved");
        self.gone.push(gone);
        if let Err(error) = self.bury() {
            log::warn!("frames cannot be given back for now: {error}");
        }
    }
}

/// A claim on a leaf: whoever may still touch its window holds one.
#[derive(Debug)]
pub(crate) struct LeafClaim {
    pub(crate) tree: Arc<CloneTree>,
    pub(crate) leaf: NodeId,
}

impl LeafClaim {
    /// Takes hold of `leaf`; `state` is the tree's, locked, and has room for it.
    pub(crate) fn new(tree: &Arc<CloneTree>, state: &mut State, leaf: NodeId) -> Self {
        state.nr_claims += 1;
        Self {
            tree: Arc::clone(tree),
            leaf,
        }
    }
}

impl Drop for LeafClaim {
    fn drop(&mut self) {
        let window = self.tree.lock().leaves.remove(&self.leaf);
        drop(window); // unmaps, which may take long, so not under the lock
        self.tree.lock().has_gone(Gone::Vm(self.leaf));
    }
}

/// A claim on a layer: a snapshot holds one, and so does every spare.
#[derive(Debug)]
pub(crate) struct LayerClaim {
    pub(crate) tree: Arc<CloneTree>,
    pub(crate) hold: HoldId,
}

impl LayerClaim {
    /// Takes hold of `layer`; `state` is the tree's, locked, and has room for it.
    pub(crate) fn new(
        tree: &Arc<CloneTree>,
        state: &mut State,
        layer: NodeId,
        held_for: HeldFor,
    ) -> Self {
        state.nr_claims += 1;
        state.tree.retain(layer);
        Self {
            tree: Arc::clone(tree),
            hold: state.holds.add(layer, held_for),
        }
    }
}

impl Drop for LayerClaim {
    fn drop(&mut self) {
        let mut state = self.tree.lock();
        if let Some(layer) = state.holds.remove(self.hold) {
            state.lets_go(layer);
        }
    }
}
