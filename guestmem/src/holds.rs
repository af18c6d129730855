//! Who holds which layer.

use std::collections::BTreeMap;

use crate::tree::NodeId;

/// One claim on a layer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct HoldId(u64);

/// What a layer is held for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HeldFor {
    /// A snapshot: any layer that shows the same will do.
    Snapshot,
    /// A window made ahead, which shows the frames of this very layer.
    Spare,
}

/// The layer behind every claim. It is kept here, under the tree's lock, because
/// a snapshot is moved to another layer when its own is flattened.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    of: BTreeMap<HoldId, (NodeId, HeldFor)>,
    next: u64,
}

impl Holds {
    /// Somebody takes hold of `layer`.
    pub(crate) fn add(&mut self, layer: NodeId, held_for: HeldFor) -> HoldId {
        let id = HoldId(self.next);
        self.next += 1;
        self.of.insert(id, (layer, held_for));
        id
    }

    /// The layer held, as long as it is.
    pub(crate) fn layer(&self, id: HoldId) -> Option<NodeId> {
        self.of.get(&id).map(|(layer, _)| *layer)
    }

    /// Somebody lets go of the layer returned.
    pub(crate) fn remove(&mut self, id: HoldId) -> Option<NodeId> {
        self.of.remove(&id).map(|(layer, _)| layer)
    }

    /// Moves every snapshot of `from` to `to`. Returns how many there are.
    pub(crate) fn move_snapshots(&mut self, from: NodeId, to: NodeId) -> usize {
        let all = self.of.values_mut();
        let moved = all.filter(|held| **held == (from, HeldFor::Snapshot));
        moved.map(|held| held.0 = to).count()
    }
}
