//! A node of the tree, and how it lies in its parent.

use std::ops::Range;

use pagelist::PageList;

use crate::layout::PageIdx;

/// A node of one tree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct NodeId(pub(super) u32);

impl NodeId {
    /// Not after any other.
    pub(crate) const FIRST: Self = Self(0);

    /// Not before any that comes after this one.
    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// What a node is to the outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// The RAM of a VM; never has children.
    Leaf,
    /// A leaf made ahead: nobody uses it yet, so it views nothing.
    Spare,
    /// Immutable and shared; kept by its children and by this many handles.
    Layer {
        /// Snapshots that hold it.
        handles: usize,
    },
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

/// How a node further up is seen from below.
///
/// ```text
///   looker   0 ───────────── limit ──────── its end
///            │  sees the node  │  sees nothing
///   node     offset ──── offset + limit
/// ```
///
/// Every node counts its own pages from 0. This is the only place where page
/// numbers of one become page numbers of another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Reach {
    /// The node that is seen.
    pub(crate) node: NodeId,
    /// Its page behind the looker's page 0.
    offset: u64,
    /// The looker's pages from here on see nothing of it.
    limit: u64,
}

impl Reach {
    /// `pages` of `node`, seen from page 0 on.
    pub(crate) fn new(node: NodeId, pages: Range<u64>) -> Self {
        Self {
            node,
            offset: pages.start,
            limit: pages.end.saturating_sub(pages.start),
        }
    }

    /// The node's page that the looker sees as `page`.
    pub(crate) fn page(self, page: PageIdx) -> Option<PageIdx> {
        (page.0 < self.limit).then(|| PageIdx(page.0 + self.offset))
    }

    /// The node's pages that can be seen.
    pub(crate) fn seen(self) -> Range<u64> {
        self.offset..self.offset + self.limit
    }

    /// How many of the looker's pages see something of it.
    pub(crate) fn nr_pages(self) -> u64 {
        self.limit
    }

    /// `pages` of the node, all of them [seen](Self::seen), as the looker
    /// counts them.
    pub(crate) fn shown_as(self, pages: Range<u64>) -> Range<u64> {
        debug_assert!(self.offset <= pages.start && pages.end <= self.offset + self.limit);
        pages.start - self.offset..pages.end - self.offset
    }

    /// The same looker's reach into what this node sees as `next`.
    pub(crate) fn onward(self, next: Self) -> Self {
        Self {
            node: next.node,
            offset: self.offset + next.offset,
            limit: self.limit.min(next.limit.saturating_sub(self.offset)),
        }
    }

    /// The looker sees no more than its first `nr_pages`.
    pub(super) fn shorten(&mut self, nr_pages: u64) {
        self.limit = self.limit.min(nr_pages);
    }

    /// Whether the looker's pages and the node's are the same, all `nr_pages`.
    pub(crate) fn is_all_of(self, nr_pages: u64) -> bool {
        self.offset == 0 && self.limit == nr_pages
    }
}

/// One node: its own content and its place.
#[derive(Debug)]
pub(crate) struct Node {
    /// What this node itself holds; the truth about its pages.
    pub(crate) list: PageList,
    pub(super) nr_pages: u64,
    pub(super) parent: Option<Reach>,
    pub(super) children: Vec<NodeId>,
    pub(super) role: Role,
    pub(super) reading: Reading,
}

impl Node {
    /// Pages it has.
    pub(crate) fn nr_pages(&self) -> u64 {
        self.nr_pages
    }

    /// What it sees where it holds nothing itself.
    pub(crate) fn parent(&self) -> Option<Reach> {
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
    pub(super) fn is_unread_layer(&self) -> bool {
        self.reading == Reading::Unread && matches!(self.role, Role::Layer { .. })
    }

    pub(crate) fn nr_children(&self) -> usize {
        self.children.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    #[test]
    fn reaching_on_adds_offsets_and_keeps_the_nearer_limit() {
        // Pages 5.. of A show pages 3..7 of the looker's 0..4; A lies at 10 in B
        // and sees B in its first six pages only.
        let reach = Reach::new(A, 5..9).onward(Reach::new(B, 10..16));
        assert_eq!(reach, Reach::new(B, 15..16));
        assert_eq!(reach.page(PageIdx(0)), Some(PageIdx(15)));
        assert_eq!(reach.page(PageIdx(1)), None);
        assert_eq!(reach.shown_as(15..16), 0..1);
    }

    #[test]
    fn what_lies_behind_the_end_of_the_next_node_is_not_reached() {
        let reach = Reach::new(A, 8..9).onward(Reach::new(B, 0..4));
        assert_eq!(reach.page(PageIdx(0)), None);
        assert_eq!(reach.seen().count(), 0);
    }
}
