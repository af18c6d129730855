//! Who holds which layer.

use crate::error::MemoryError;
use crate::room;
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
    /// In the order of their numbers, which is that of their beginning.
    of: Vec<Hold>,
    next: u64,
}

#[derive(Debug)]
struct Hold {
    id: HoldId,
    layer: NodeId,
    held_for: HeldFor,
}

impl Holds {
    /// Makes sure that there is room for one more.
    ///
    /// # Errors
    /// If there is no memory for that.
    pub(crate) fn reserve(&mut self) -> Result<(), MemoryError> {
        room::reserve(&mut self.of, 1)
    }

    /// Somebody takes hold of `layer`; there is room for it.
    pub(crate) fn add(&mut self, layer: NodeId, held_for: HeldFor) -> HoldId {
        debug_assert!(self.of.len() < self.of.capacity(), "was reserved");
        let id = HoldId(self.next);
        self.next += 1;
        self.of.push(Hold {
            id,
            layer,
            held_for,
        });
        id
    }

    fn find(&self, id: HoldId) -> Option<usize> {
        self.of.binary_search_by_key(&id, |hold| hold.id).ok()
    }

    /// The layer held, as long as it is.
    pub(crate) fn layer(&self, id: HoldId) -> Option<NodeId> {
        Some(self.of[self.find(id)?].layer)
    }

    /// Somebody lets go of the layer returned.
    pub(crate) fn remove(&mut self, id: HoldId) -> Option<NodeId> {
        let at = self.find(id)?;
        Some(self.of.remove(at).layer)
    }

    /// How many snapshots hold `layer`.
    pub(crate) fn nr_snapshots(&self, layer: NodeId) -> usize {
        let all = self.of.iter();
        all.filter(|hold| hold.is_snapshot_of(layer)).count()
    }

    /// Moves every snapshot of `from` to `to`.
    pub(crate) fn move_snapshots(&mut self, from: NodeId, to: NodeId) {
        let all = self.of.iter_mut();
        all.filter(|hold| hold.is_snapshot_of(from))
            .for_each(|hold| hold.layer = to);
    }
}

impl Hold {
    fn is_snapshot_of(&self, layer: NodeId) -> bool {
        self.layer == layer && self.held_for == HeldFor::Snapshot
    }
}
