//! The clone tree: who owns a page, who sees it, and what goes when somebody
//! leaves. Pure bookkeeping: no memory, no system call, no KVM.
//!
//! ```text
//!        hidden layer L0            a list each: Empty | Page(frame) | Marker
//!         │          ╲
//!   hidden layer L1    leaf C       a leaf is the RAM of one VM
//!    │         ╲
//!   leaf A     leaf B               a reader of page p takes the first slot that is
//!                                   not Empty, from its leaf upwards; none: zero
//! ```
//!
//! * A **leaf** is visible: a VM writes to it. A **layer** is hidden and never
//!   changes; its children share it. Freezing a leaf turns its list into a
//!   layer and leaves it an empty list on top.
//! * A layer lives while it has children, or while a handle (a snapshot) holds
//!   it. With one child and no handle it collapses into that child.
//! * A layer in many pieces is repeated by a **flat** layer above it, which new
//!   forks go upon (`repack.rs`). To everybody else it is a layer as any.
//! * A `Marker` is known zero that stops the look-up. It is kept only where a
//!   page of an ancestor would show through otherwise.
//!
//! Whatever changes memory is decided here first, as a plain value
//! ([`FreezePlan`], [`ZeroPart`], [`WindowPlan`], a list of pages to copy
//! back); the caller carries it out and then says so. Frames that nobody can
//! see any more are handed to the caller in a [`FrameSet`]; giving them back
//! to the host is its business. So all of it is tested without memory
//! (`model.rs`).
//!
//! [`FrameSet`]: crate::frame::FrameSet

mod account;
mod check;
mod content;
mod extents;
#[cfg(any(test, fuzzing))]
pub(crate) mod model;
mod node;
mod plan;
mod repack;
mod shape;
mod sight;
#[cfg(test)]
mod tests;
mod view;

pub use account::Attribution;
pub(crate) use account::Viewers;
pub(crate) use content::{Content, FreezePlan, ZeroPart, without};
pub(crate) use node::{Node, NodeId, Reach, Reading, Role};
pub(crate) use plan::{MapRun, WindowPlan};
pub(crate) use repack::Repack;
use view::KnownViews;
pub(crate) use view::{Seen, Source, ViewRun, each_page};

use crate::error::MemoryError;
use crate::room;

/// All nodes of one tree.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Option<Node>>,
    vacant: Vec<NodeId>,
    views: KnownViews,
}

impl Tree {
    /// A tree with its root, of `nr_pages`, as only leaf.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn new(nr_pages: u64, reading: Reading) -> Result<(Self, NodeId), MemoryError> {
        let mut tree = Self {
            nodes: Vec::new(),
            vacant: Vec::new(),
            views: KnownViews::default(),
        };
        tree.reserve_node(None)?;
        let root = tree.insert(None, nr_pages, Role::Leaf);
        tree.node_mut(root).reading = reading;
        Ok((tree, root))
    }

    /// Makes sure that one more node can be added, below `parent`, and taken out
    /// again.
    ///
    /// # Errors
    /// If there is no memory for that.
    pub(crate) fn reserve_node(&mut self, parent: Option<NodeId>) -> Result<(), MemoryError> {
        room::reserve(&mut self.nodes, 1)?;
        let vacant = self.nodes.len() + 1 - self.vacant.len();
        room::reserve(&mut self.vacant, vacant)?;
        match parent {
            Some(parent) => room::reserve(&mut self.node_mut(parent).children, 1),
            None => Ok(()),
        }
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        self.nodes[id.0 as usize]
            .as_ref()
            .expect("a node that a guard holds")
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id.0 as usize]
            .as_mut()
            .expect("a node that a guard holds")
    }

    /// Every node.
    pub(crate) fn ids(&self) -> impl Iterator<Item = NodeId> {
        let present = self
            .nodes
            .iter()
            .zip(0..)
            .filter(|(node, _)| node.is_some());
        present.map(|(_, index)| NodeId(index))
    }

    /// The node itself and its ancestors as it sees them, nearest first.
    pub(crate) fn chain(&self, from: NodeId) -> impl Iterator<Item = Reach> {
        self.upwards(Reach::new(from, 0..self.node(from).nr_pages))
    }

    /// `reach` and what lies further up along it.
    fn upwards(&self, reach: Reach) -> impl Iterator<Item = Reach> {
        std::iter::successors(Some(reach), |reach| {
            let next = self.node(reach.node).parent?;
            Some(reach.onward(next))
        })
    }

    /// Every node, each after all of its children. Not recursive, because
    /// chains may be long.
    fn children_first(&self) -> Result<Vec<NodeId>, MemoryError> {
        let roots = self.ids().filter(|id| self.node(*id).parent.is_none());
        let mut order = room::collect(roots)?;
        let mut next = 0;
        while let Some(id) = order.get(next).copied() {
            room::append(&mut order, self.node(id).children.iter().copied())?;
            next += 1;
        }
        order.reverse();
        Ok(order)
    }
}
