//! Who owns and who sees what, in numbers.

use crate::error::MemoryError;
use crate::layout::PAGE_SIZE;
use crate::state::State;
use crate::tree::{Attribution, NodeId, Role, Viewers};

/// What a clone tree holds, to the page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeStats {
    /// VMs: visible leaves.
    pub leaves: u64,
    /// Windows made ahead for VMs to come.
    pub spares: u64,
    /// Layers: hidden nodes.
    pub layers: u64,
    /// Frames in the tree's file that some list holds.
    pub file_frames: u64,
    /// Frames that the kernel says the file has. The same, when settled.
    pub committed_file_frames: u64,
    /// Frames that VMs have written privately.
    pub private_frames: u64,
    /// Private pages of windows that are copies of what a layer holds.
    pub window_copies: u64,
    /// Markers: known zero over an ancestor's page.
    pub markers: u64,
    /// Pages given back so far because they held nothing but zeros: found when
    /// a VM was frozen or settled, or by a look for them. A page that is
    /// written and zeroed again counts again.
    pub zeros_dropped: u64,
    /// Pages that all VMs see together; each would be a frame without sharing.
    pub seen_pages: u64,
    /// Heap memory of all page lists, in bytes.
    pub list_bytes: u64,
}

impl TreeStats {
    /// Frames in use: what the tree costs the host, window copies aside.
    pub fn frames(&self) -> u64 {
        self.file_frames + self.private_frames
    }

    /// Bytes given back so far because they held nothing but zeros.
    pub fn zero_bytes_dropped(&self) -> u64 {
        self.zeros_dropped * PAGE_SIZE
    }

    /// Bytes that sharing saves against a full copy for every VM.
    pub fn bytes_saved(&self) -> u64 {
        self.seen_pages.saturating_sub(self.frames()) * PAGE_SIZE
    }

    pub(crate) fn collect(state: &State) -> Result<Self, MemoryError> {
        let mut stats = Self {
            committed_file_frames: state.arena.committed_pages()?,
            file_frames: state.listed_file_pages(),
            zeros_dropped: state.zeros_dropped,
            ..Self::default()
        };
        for id in state.tree.ids() {
            let node = state.tree.node(id);
            stats.markers += node.list.marker_count();
            stats.list_bytes += node.list.heap_allocation_bytes() as u64;
            match node.role() {
                Role::Leaf => stats.leaves += 1,
                Role::Spare => stats.spares += 1,
                Role::Layer { .. } => stats.layers += 1,
            }
        }
        stats.seen_pages = Viewers::count(&state.tree)?.seen_by_leaves();
        for (id, leaf) in state.leaves.iter() {
            let private = state.tree.private_pages(id).count() as u64;
            stats.private_frames += private;
            stats.window_copies += leaf.live_copies(state, id);
        }
        Ok(stats)
    }
}

/// What one VM owns, sees and is charged for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RamStats {
    /// Its share of every frame it sees.
    pub attribution: Attribution,
    /// Pages it has written privately.
    pub private_pages: u64,
    /// Private pages of its window that are copies of what a layer holds.
    pub window_copies: u64,
    /// Its pages given back so far because they held nothing but zeros.
    pub zeros_dropped: u64,
    /// Its own markers.
    pub markers: u64,
    /// Layers below it.
    pub depth: u64,
    /// Mappings its window is made of. The kernel has at most two areas for
    /// each, and one more.
    pub mappings: u64,
    /// Heap memory of its own page list, in bytes.
    pub list_bytes: u64,
}

impl RamStats {
    pub(crate) fn collect(state: &State, leaf: NodeId) -> Result<Self, MemoryError> {
        let node = state.tree.node(leaf);
        let at_leaf = &state.leaves[&leaf];
        Ok(Self {
            attribution: Viewers::count(&state.tree)?.attribution(&state.tree, leaf)?,
            private_pages: state.tree.private_pages(leaf).count() as u64,
            window_copies: at_leaf.live_copies(state, leaf),
            zeros_dropped: at_leaf.zeros_dropped,
            markers: node.list.marker_count(),
            depth: state.tree.chain(leaf).count() as u64 - 1,
            mappings: (at_leaf.window.nr_maps() + at_leaf.nr_overlays) as u64,
            list_bytes: node.list.heap_allocation_bytes() as u64,
        })
    }
}
