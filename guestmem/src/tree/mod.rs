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
//! * A `Marker` is known zero that stops the look-up. It is kept only where a
//!   page of an ancestor would show through otherwise.
//!
//! Frames that nobody can see any more are handed to the caller in a
//! [`FrameSet`]; giving them back to the host is its business.

mod account;
mod plan;
mod sight;
mod view;

use pagelist::{PageList, SlotRef};

pub use account::Attribution;
pub(crate) use account::Viewers;
pub(crate) use plan::{MapRun, WindowPlan};
use view::KnownViews;
pub(crate) use view::Seen;

use crate::frame::FrameSet;
use crate::layout::{PAGE_SIZE, PageIdx};

/// A node of one tree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct NodeId(u32);

/// What a node is to the outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// The RAM of a VM; never has children.
    Leaf,
    /// Immutable and shared; kept by its children and by this many handles.
    Layer {
        /// Snapshots that hold it.
        handles: usize,
    },
}

/// One node: its own content and its place.
#[derive(Debug)]
pub(crate) struct Node {
    /// What this node itself holds; the truth about its pages.
    pub(crate) list: PageList,
    parent: Option<NodeId>,
    children: Vec<NodeId>,
    role: Role,
    reading: Reading,
}

/// How far the list of a node that holds root RAM is known to be right.
///
/// The kernel commits root RAM behind our back; other frames enter a list
/// when they are made and are exact from the start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Reading {
    /// Every committed page is listed, and none of them is known to be zero.
    Exact,
    /// Every committed page is listed, zero pages among them.
    Listed,
    /// Any page without a slot may be committed in root RAM all the same.
    Unread,
}

/// All nodes of one tree.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Option<Node>>,
    vacant: Vec<NodeId>,
    views: KnownViews,
    nr_pages: u64,
}

impl Tree {
    /// A tree of memory objects of `nr_pages`, with its root as only leaf.
    pub(crate) fn new(nr_pages: u64, reading: Reading) -> (Self, NodeId) {
        let mut tree = Self {
            nodes: Vec::new(),
            vacant: Vec::new(),
            views: KnownViews::default(),
            nr_pages,
        };
        let root = tree.insert(None, Role::Leaf);
        tree.node_mut(root).reading = reading;
        (tree, root)
    }

    /// Pages of every object in the tree.
    pub(crate) fn nr_pages(&self) -> u64 {
        self.nr_pages
    }

    /// One past the last byte of every object.
    pub(crate) fn end_bytes(&self) -> u64 {
        self.nr_pages * PAGE_SIZE
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

    /// Frames have been taken out of layers: what was known of them is not
    /// right any more.
    pub(crate) fn layers_have_changed(&mut self) {
        self.views.forget_all();
    }

    /// Every node, each after all of its children. Not recursive, because
    /// chains may be long.
    fn children_first(&self) -> Vec<NodeId> {
        let roots = self.ids().filter(|id| self.node(*id).parent.is_none());
        let mut order: Vec<NodeId> = roots.collect();
        let mut next = 0;
        while let Some(id) = order.get(next) {
            order.extend(&self.node(*id).children);
            next += 1;
        }
        order.reverse();
        order
    }

    /// The node itself and its ancestors, nearest first.
    pub(crate) fn chain(&self, from: NodeId) -> impl Iterator<Item = NodeId> {
        std::iter::successors(Some(from), |id| self.node(*id).parent)
    }

    /// Adds a leaf that sees `layer`.
    pub(crate) fn add_leaf(&mut self, layer: NodeId) -> NodeId {
        self.insert(Some(layer), Role::Leaf)
    }

    /// Freezes `leaf`: its list becomes a layer between it and its parent, and
    /// its own list is empty after. A leaf that has nothing of its own adds no
    /// depth: its parent already is that layer.
    pub(crate) fn freeze(&mut self, leaf: NodeId) -> NodeId {
        let node = self.node(leaf);
        debug_assert_eq!(node.role, Role::Leaf);
        let parent = node.parent;
        if let Some(parent) = parent
            && node.list.is_empty()
        {
            return parent;
        }
        let layer = self.insert(None, Role::Layer { handles: 0 });
        let node = self.node_mut(leaf);
        let list = std::mem::take(&mut node.list);
        let reading = std::mem::replace(&mut node.reading, Reading::Exact);
        node.parent = Some(layer);
        *self.node_mut(layer) = Node {
            list,
            parent,
            children: vec![leaf],
            role: Role::Layer { handles: 0 },
            reading,
        };
        if let Some(parent) = parent {
            self.replace_child(parent, leaf, layer);
        }
        layer
    }

    /// A snapshot takes hold of `layer`.
    pub(crate) fn retain(&mut self, layer: NodeId) {
        match &mut self.node_mut(layer).role {
            Role::Layer { handles } => *handles += 1,
            Role::Leaf => unreachable!("only layers are held"),
        }
    }

    /// A snapshot lets go of `layer`.
    pub(crate) fn release(&mut self, layer: NodeId, freed: &mut FrameSet) {
        match &mut self.node_mut(layer).role {
            Role::Layer { handles } => *handles -= 1,
            Role::Leaf => unreachable!("only layers are held"),
        }
        self.prune(layer, freed);
    }

    /// Takes `leaf` out, with what only it could see.
    pub(crate) fn remove_leaf(&mut self, leaf: NodeId, freed: &mut FrameSet) {
        debug_assert_eq!(self.node(leaf).role, Role::Leaf);
        if let Some(parent) = self.remove(leaf, freed) {
            self.prune(parent, freed);
        }
    }

    /// Drops `from` and its ancestors as far as nobody needs them, and
    /// collapses the first that only one child needs. A loop, because chains
    /// may be tens of thousands of layers long.
    fn prune(&mut self, from: NodeId, freed: &mut FrameSet) {
        let mut at = Some(from);
        while let Some(id) = at {
            let node = self.node(id);
            at = match (node.role, node.children.as_slice()) {
                (Role::Layer { handles: 0 }, []) => self.remove(id, freed),
                (Role::Layer { handles: 0 }, &[child]) => {
                    self.collapse(id, child, freed);
                    None
                }
                _ => None,
            };
        }
    }

    /// Removes a node without children; returns its parent.
    fn remove(&mut self, id: NodeId, freed: &mut FrameSet) -> Option<NodeId> {
        let mut node = self.take(id);
        debug_assert!(node.children.is_empty());
        if node.reading == Reading::Unread {
            freed.add_run(0..self.nr_pages);
        }
        node.list.remove_all_pages(|frame| freed.add(frame));
        if let Some(parent) = node.parent {
            self.node_mut(parent).children.retain(|child| *child != id);
        }
        node.parent
    }

    /// Folds `layer` into its only child: what the child covers is freed, the
    /// rest moves over.
    fn collapse(&mut self, layer: NodeId, child: NodeId, freed: &mut FrameSet) {
        let mut gone = self.take(layer);
        debug_assert_ne!(
            gone.reading,
            Reading::Unread,
            "lists are read back before they merge"
        );
        let mut covered = Vec::new();
        let end = self.end_bytes();
        let heir = self.node_mut(child);
        heir.parent = gone.parent;
        heir.reading = heir.reading.max(gone.reading);
        heir.list
            .merge_from(
                &mut gone.list,
                0,
                end,
                |offset, frame| {
                    covered.push(offset);
                    freed.add(frame);
                },
                |_, entry| entry,
            )
            .expect("lists of one tree are aligned alike");
        if let Some(parent) = gone.parent {
            self.replace_child(parent, layer, child);
        }
        // The child's markers over pages that are gone may hide nothing now.
        for offset in covered {
            self.drop_idle_marker(child, PageIdx(offset / PAGE_SIZE));
        }
    }

    /// Takes a marker of `id` away if nothing of an ancestor would show.
    fn drop_idle_marker(&mut self, id: NodeId, page: PageIdx) {
        let is_marker = self.node(id).list.get(page.byte_offset()) == SlotRef::Marker;
        if is_marker && self.below(id, page) == Seen::Nothing {
            let list = &mut self.node_mut(id).list;
            if list.try_remove_page(page.byte_offset()).is_err() {
                log::debug!("{page:?} keeps a marker that hides nothing: out of memory");
            }
        }
    }

    fn replace_child(&mut self, parent: NodeId, old: NodeId, new: NodeId) {
        let children = &mut self.node_mut(parent).children;
        let at = children.iter().position(|child| *child == old);
        children[at.expect("a child is known to its parent")] = new;
    }

    fn take(&mut self, id: NodeId) -> Node {
        let node = self.nodes[id.0 as usize].take();
        self.vacant.push(id);
        self.views.forget(id);
        node.expect("a node that a guard holds")
    }

    fn insert(&mut self, parent: Option<NodeId>, role: Role) -> NodeId {
        let node = Node {
            list: PageList::new(),
            parent,
            children: Vec::new(),
            role,
            reading: Reading::Exact,
        };
        let id = self.vacant.pop().unwrap_or_else(|| {
            self.nodes.push(None);
            NodeId(u32::try_from(self.nodes.len() - 1).expect("fewer nodes than frames"))
        });
        self.nodes[id.0 as usize] = Some(node);
        if let Some(parent) = parent {
            self.node_mut(parent).children.push(id);
        }
        id
    }
}

impl Node {
    pub(crate) fn parent(&self) -> Option<NodeId> {
        self.parent
    }

    pub(crate) fn role(&self) -> Role {
        self.role
    }

    pub(crate) fn reading(&self) -> Reading {
        self.reading
    }

    pub(crate) fn set_reading(&mut self, reading: Reading) {
        self.reading = reading;
    }

    /// Whether pages without a slot may be committed in root RAM. (Of a live
    /// root the same is true, but whoever asks about one has settled it.)
    fn is_unread_layer(&self) -> bool {
        self.reading == Reading::Unread && self.role != Role::Leaf
    }

    pub(crate) fn nr_children(&self) -> usize {
        self.children.len()
    }
}
