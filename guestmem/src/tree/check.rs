//! What must hold between nodes, verified by tests.

use std::ops::Range;

use super::{NodeId, Role, Tree};
use crate::layout::PAGE_SIZE;
use crate::pages::ByPage;

impl Tree {
    /// Verifies what must hold between nodes.
    ///
    /// # Panics
    /// If something does not.
    pub(crate) fn check_invariants(&self) {
        let mut held: Vec<Range<u64>> = Vec::new();
        for id in self.ids() {
            self.check_node(id);
            held.extend(self.file_runs_of(id));
        }
        held.sort_unstable_by_key(|run| run.start);
        for pair in held.windows(2) {
            assert!(
                pair[0].end <= pair[1].start,
                "frames {pair:?} have two owners"
            );
        }
    }

    fn check_node(&self, id: NodeId) {
        let node = self.node(id);
        node.list.check_invariants();
        let behind = node.nr_pages()..node.list.limit() / PAGE_SIZE;
        assert_eq!(
            node.list.runs_in(behind).next(),
            None,
            "{id:?} holds pages behind its end"
        );
        if let Some(reach) = node.parent() {
            let parent = self.node(reach.node);
            let is_layer = matches!(parent.role(), Role::Layer { .. });
            assert!(is_layer, "only layers have children");
            let seen = reach.seen();
            assert!(
                seen.is_empty() || seen.end <= parent.nr_pages(),
                "{id:?} sees what its parent does not have"
            );
        }
        let parent_of = |child: &NodeId| self.node(*child).parent().map(|reach| reach.node);
        let children = self.ids().filter(|child| parent_of(child) == Some(id));
        assert_eq!(
            children.count(),
            node.nr_children(),
            "children and parents agree"
        );
        if let Role::Layer { handles } = node.role() {
            assert!(
                handles + node.nr_children() > 0,
                "{id:?} is needed by nobody"
            );
            assert!(
                handles > 0 || node.nr_children() != 1,
                "{id:?} ought to have collapsed"
            );
            assert_eq!(
                self.private_pages(id).count(),
                0,
                "{id:?}, a layer, holds private pages"
            );
        }
    }
}
