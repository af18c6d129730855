//! How the tree changes shape: freezing, cloning, resizing, going.

use std::ops::Range;

use pagelist::PageList;

use super::{Node, NodeId, Reach, Reading, Role, Tree};
use crate::error::MemoryError;
use crate::frame::FrameSet;
use crate::layout::{PAGE_SIZE, PageIdx};
use crate::pages::ByPage;

impl Tree {
    /// Adds a spare leaf of `nr_pages` that sees what `reach` says. Where that
    /// is nothing at all, it is the root of a tree of its own.
    pub(crate) fn add_spare(&mut self, mut reach: Reach, nr_pages: u64) -> NodeId {
        reach.shorten(nr_pages);
        if reach.seen().is_empty() {
            return self.insert(None, nr_pages, Role::Spare);
        }
        let reach = self.highest(reach);
        let leaf = self.insert(Some(reach), nr_pages, Role::Spare);
        let skew = self.node(reach.node).list.skew();
        let list = &mut self.node_mut(leaf).list;
        list.initialize_skew(skew, reach.seen().start * PAGE_SIZE)
            .expect("a fresh list, at a whole page");
        leaf
    }

    /// A VM uses `spare` from now on.
    pub(crate) fn use_spare(&mut self, spare: NodeId) {
        let role = &mut self.node_mut(spare).role;
        debug_assert_eq!(*role, Role::Spare);
        *role = Role::Leaf;
    }

    /// What there is of `pages` in `layer`, seen from the first of them on.
    pub(crate) fn part_of(&self, layer: NodeId, pages: Range<u64>) -> Reach {
        let end = self.node(layer).nr_pages;
        Reach::new(layer, pages.start.min(end)..pages.end.min(end))
    }

    /// The same view from as high up as can be: nodes that hold nothing in it
    /// are passed by, so that clones of clones add no depth without a write.
    pub(crate) fn highest(&self, mut reach: Reach) -> Reach {
        loop {
            let node = self.node(reach.node);
            let holds_some =
                node.is_unread_layer() || node.list.runs_in(reach.seen()).next().is_some();
            match node.parent {
                Some(parent) if !holds_some => reach = reach.onward(parent),
                _ => return reach,
            }
        }
    }

    /// Freezes `leaf`: its list becomes a layer between it and its parent, and
    /// its own list is empty after. A leaf that has nothing of its own adds no
    /// depth: its parent already is that layer.
    pub(crate) fn freeze(&mut self, leaf: NodeId) -> NodeId {
        let node = self.node(leaf);
        debug_assert_eq!(node.role, Role::Leaf);
        let (nr_pages, parent) = (node.nr_pages, node.parent);
        if let Some(reach) = parent
            && node.list.is_empty()
            && reach.is_all_of(nr_pages)
            && self.node(reach.node).nr_pages == nr_pages
        {
            return reach.node;
        }
        let layer = self.insert(None, nr_pages, Role::Layer { handles: 0 });
        let node = self.node_mut(leaf);
        let empty = like(&node.list);
        let list = std::mem::replace(&mut node.list, empty);
        let reading = std::mem::replace(&mut node.reading, Reading::Exact);
        node.parent = Some(Reach::new(layer, 0..nr_pages));
        *self.node_mut(layer) = Node {
            list,
            nr_pages,
            parent,
            children: vec![leaf],
            role: Role::Layer { handles: 0 },
            reading,
        };
        if let Some(parent) = parent {
            self.replace_child(parent.node, leaf, layer);
        }
        layer
    }

    /// Gives `leaf` another size. What a smaller leaf loses is gone: when it
    /// grows again it reads zero there.
    ///
    /// # Errors
    /// If there is no memory to note it. Nothing has changed then.
    pub(crate) fn resize(
        &mut self,
        leaf: NodeId,
        nr_pages: u64,
        freed: &mut FrameSet,
    ) -> Result<(), MemoryError> {
        let node = self.node_mut(leaf);
        debug_assert_eq!(node.role, Role::Leaf);
        if nr_pages < node.nr_pages {
            let lost = nr_pages..node.nr_pages;
            if node.reading == Reading::Unread {
                // Whatever is committed there, listed or not.
                freed.add_run(lost.clone());
            }
            let unread = node.reading == Reading::Unread;
            let cleared =
                node.list
                    .clear(lost.start * PAGE_SIZE, lost.end * PAGE_SIZE, |_, frame| {
                        if !unread {
                            freed.add(frame);
                        }
                    });
            cleared.map_err(|_| MemoryError::Bookkeeping)?;
            if let Some(reach) = &mut node.parent {
                reach.shorten(nr_pages);
            }
        }
        node.nr_pages = nr_pages;
        Ok(())
    }

    /// A snapshot takes hold of `layer`.
    pub(crate) fn retain(&mut self, layer: NodeId) {
        match &mut self.node_mut(layer).role {
            Role::Layer { handles } => *handles += 1,
            Role::Leaf | Role::Spare => unreachable!("only layers are held"),
        }
    }

    /// A snapshot lets go of `layer`.
    pub(crate) fn release(&mut self, layer: NodeId, freed: &mut FrameSet) {
        match &mut self.node_mut(layer).role {
            Role::Layer { handles } => *handles -= 1,
            Role::Leaf | Role::Spare => unreachable!("only layers are held"),
        }
        self.prune(layer, freed);
    }

    /// Whether taking `leaf` out, or letting go of a layer once, changes
    /// lists of layers, which have to be read back then.
    pub(crate) fn merges_without(&self, gone: NodeId) -> bool {
        let node = self.node(gone);
        let (layer, handles_less, children_less) = match node.role {
            Role::Layer { .. } => (Some(gone), 1, 0),
            Role::Leaf | Role::Spare => (node.parent.map(|reach| reach.node), 0, 1),
        };
        layer.is_some_and(|layer| {
            let layer = self.node(layer);
            let Role::Layer { handles } = layer.role else {
                return false;
            };
            handles <= handles_less && layer.children.len() - children_less <= 1
        })
    }

    /// Takes `leaf` out, with what only it could see.
    pub(crate) fn remove_leaf(&mut self, leaf: NodeId, freed: &mut FrameSet) {
        debug_assert!(!matches!(self.node(leaf).role, Role::Layer { .. }));
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
            freed.add_run(0..node.nr_pages);
        }
        node.list.remove_all_pages(|frame| freed.add(frame));
        let parent = node.parent?.node;
        self.node_mut(parent).children.retain(|child| *child != id);
        Some(parent)
    }

    /// Folds `layer` into its only child: what the child covers, or cannot
    /// see, is freed; the rest moves over.
    fn collapse(&mut self, layer: NodeId, child: NodeId, freed: &mut FrameSet) {
        let mut gone = self.take(layer);
        debug_assert_ne!(
            gone.reading,
            Reading::Unread,
            "lists are read back before they merge"
        );
        let mut covered = Vec::new();
        let heir = self.node_mut(child);
        let reach = heir.parent.expect("a child has a parent");
        heir.parent = gone.parent.map(|parent| reach.onward(parent));
        heir.reading = heir.reading.max(gone.reading);
        let seen = reach.seen();
        heir.list
            .merge_from(
                &mut gone.list,
                seen.start * PAGE_SIZE,
                seen.end * PAGE_SIZE,
                |offset, frame| {
                    freed.add(frame);
                    let page = PageIdx::containing(offset);
                    // Without room for it a marker stays that hides nothing.
                    if seen.contains(&page.0) && covered.try_reserve(1).is_ok() {
                        covered.push(reach.shown_as(page.0..page.0 + 1).start);
                    }
                },
                |_, entry| entry,
            )
            .expect("a list has the skew of its place in its parent");
        if let Some(parent) = gone.parent {
            self.replace_child(parent.node, layer, child);
        }
        // The child's markers over pages that are gone may hide nothing now.
        for page in covered {
            self.drop_idle_marker(child, PageIdx(page));
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

    pub(super) fn insert(&mut self, parent: Option<Reach>, nr_pages: u64, role: Role) -> NodeId {
        let node = Node {
            list: PageList::new(),
            nr_pages,
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
            self.node_mut(parent.node).children.push(id);
        }
        id
    }
}

/// An empty list that lies as `list` does.
pub(super) fn like(list: &PageList) -> PageList {
    let mut empty = PageList::new();
    empty
        .initialize_skew(list.skew(), 0)
        .expect("a fresh list, at a whole page");
    empty
}
