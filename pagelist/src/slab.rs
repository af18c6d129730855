//! Nodes, allocated four at a time.
//!
//! A node is 16 slots, 64 bytes: one cache line, 64 KiB of offsets. Nodes are
//! allocated in slabs of four consecutive ones, because one allocation a node
//! would cost an index entry and an allocator header for every 64 bytes. A slab
//! starts at any node boundary, *by default* at a multiple of four nodes, and
//! exists only while one of its slots is occupied.
//!
//! Positions (`pos`) count pages in *skewed* space: `(offset + skew) / 4096`.
//! Lists of one clone tree agree on `pos % 16`, so their nodes can be moved
//! between them.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::{Deref, DerefMut};

use crate::slot::Slot;

/// Slots in a node.
pub(crate) const NODE_SLOTS: u64 = 16;
/// Slots in a slab of four nodes.
pub(crate) const SLAB_SLOTS: u64 = SLAB_LEN as u64;
/// The same, to size arrays with.
pub(crate) const SLAB_LEN: usize = 64;

/// The allocator said no.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OutOfMemory;

/// A `Box` whose allocation can fail.
///
/// Stable Rust has no `Box::try_new`; a one-element array made from a `Vec` is
/// the same allocation and the same thin pointer.
pub(crate) struct Thin<T>(Box<[T; 1]>);

impl<T> Thin<T> {
    pub(crate) fn try_new(value: T) -> Result<Self, OutOfMemory> {
        let mut one = Vec::new();
        one.try_reserve_exact(1).map_err(|_| OutOfMemory)?;
        one.push(value);
        // The length is 1, so the conversion cannot fail, and as the capacity
        // is 1 too it does not reallocate.
        one.try_into().map(Thin).map_err(|_| OutOfMemory)
    }
}

impl<T> Deref for Thin<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.0[0]
    }
}

impl<T> DerefMut for Thin<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0[0]
    }
}

/// Four consecutive nodes.
pub(crate) struct Slab {
    /// Position of the first slot; a multiple of [`NODE_SLOTS`].
    pub(crate) base: u64,
    /// The next slab while in a [`Chain`]; `None` while in an index.
    next: Option<Thin<Slab>>,
    pub(crate) slots: [Slot; SLAB_LEN],
}

const _: () = assert!(SLAB_SLOTS == 4 * NODE_SLOTS);
// Four nodes of one cache line each, and what it takes to move them between lists.
const _: () = assert!(size_of::<Slab>() == 4 * 64 + 16);

impl Slab {
    pub(crate) const fn new(base: u64) -> Self {
        Slab {
            base,
            next: None,
            slots: [Slot::VACANT; SLAB_LEN],
        }
    }

    /// One past the last position it has a slot for.
    #[inline]
    pub(crate) const fn end(&self) -> u64 {
        self.base + SLAB_SLOTS
    }

    /// The slot index of `pos`, which must lie in `base..end()`.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "below SLAB_LEN")]
    pub(crate) const fn slot_index(&self, pos: u64) -> usize {
        debug_assert!(pos >= self.base && pos < self.end());
        (pos - self.base) as usize
    }

    /// The slot indices of `start..end`, clipped to this slab.
    pub(crate) fn clip(&self, start: u64, end: u64) -> core::ops::Range<usize> {
        let first = start.saturating_sub(self.base).min(SLAB_SLOTS) as usize;
        let last = end.saturating_sub(self.base).min(SLAB_SLOTS) as usize;
        first..last.max(first)
    }

    /// Moves the slab up to `base`, a node within it or its end; what it has
    /// below is gone.
    pub(crate) fn rebase(&mut self, base: u64) {
        let gone = self.clip(0, base).len();
        self.slots.copy_within(gone.., 0);
        self.slots[SLAB_LEN - gone..].fill(Slot::VACANT);
        self.base = base;
    }

    pub(crate) fn is_vacant(&self) -> bool {
        // No early exit: eight vector compares beat 64 branches.
        self.slots
            .iter()
            .fold(true, |vacant, slot| vacant & slot.is_vacant())
    }

    /// The occupied slot with the largest position.
    pub(crate) fn last_occupied(&self) -> Option<Slot> {
        self.slots
            .iter()
            .rev()
            .copied()
            .find(|slot| !slot.is_vacant())
    }

    /// Whether the node that `pos` belongs to has no occupied slot.
    pub(crate) fn node_is_vacant(&self, pos: u64) -> bool {
        let first = pos - pos % NODE_SLOTS;
        self.slots[self.clip(first, first + NODE_SLOTS)]
            .iter()
            .all(|slot| slot.is_vacant())
    }
}

/// An ascending sequence of slabs that belongs to no index.
///
/// Slabs are linked through themselves, so that taking a list apart and putting
/// two together needs no memory.
#[derive(Default)]
pub(crate) struct Chain {
    head: Option<Thin<Slab>>,
    len: usize,
}

impl Chain {
    pub(crate) fn push_front(&mut self, mut slab: Thin<Slab>) {
        debug_assert!(self.head.as_ref().is_none_or(|head| slab.base < head.base));
        slab.next = self.head.take();
        self.head = Some(slab);
        self.len += 1;
    }

    pub(crate) fn pop_front(&mut self) -> Option<Thin<Slab>> {
        let mut slab = self.head.take()?;
        self.head = slab.next.take();
        self.len -= 1;
        Some(slab)
    }

    /// Moves everything in the 64 positions from `base`, below which there is
    /// nothing, into `slots`.
    pub(crate) fn pull(&mut self, base: u64, slots: &mut [Slot; SLAB_LEN]) {
        while let Some(slab) = self
            .front_mut()
            .filter(|slab| slab.base < base + SLAB_SLOTS)
        {
            // Both are multiples of a node apart, so whole nodes move.
            let skip = SLAB_LEN - slab.clip(0, base + SLAB_SLOTS).len();
            for (to, from) in slots[skip..].iter_mut().zip(&slab.slots) {
                if !from.is_vacant() {
                    *to = *from;
                }
            }
            slab.rebase(base + SLAB_SLOTS);
            if slab.is_vacant() {
                self.pop_front();
            }
        }
    }

    pub(crate) fn for_each_mut(&mut self, mut f: impl FnMut(&mut Slab)) {
        let mut next = self.head.as_deref_mut();
        while let Some(slab) = next {
            f(slab);
            next = slab.next.as_deref_mut();
        }
    }

    pub(crate) fn front(&self) -> Option<&Slab> {
        self.head.as_deref()
    }

    pub(crate) fn front_mut(&mut self) -> Option<&mut Slab> {
        self.head.as_deref_mut()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Chain {
    /// The same slabs, held from the other end.
    pub(crate) fn into_reversed(mut self) -> ReversedChain {
        let mut reversed = ReversedChain::default();
        while let Some(slab) = self.pop_front() {
            reversed.push_back(slab);
        }
        reversed
    }
}

impl Drop for Chain {
    /// Iterative: a chain may be longer than the stack is deep.
    fn drop(&mut self) {
        while self.pop_front().is_some() {}
    }
}

/// A chain held from its far end: what is popped is the largest.
#[derive(Default)]
pub(crate) struct ReversedChain(Chain);

impl ReversedChain {
    pub(crate) fn pop_back(&mut self) -> Option<Thin<Slab>> {
        self.0.pop_front()
    }

    /// Takes the last slab out if it holds nothing.
    pub(crate) fn pop_back_if_vacant(&mut self) -> Option<Thin<Slab>> {
        if self.back()?.is_vacant() {
            self.pop_back()
        } else {
            None
        }
    }

    pub(crate) fn back(&self) -> Option<&Slab> {
        self.0.front()
    }

    pub(crate) fn back_mut(&mut self) -> Option<&mut Slab> {
        self.0.front_mut()
    }

    /// Adds a slab above all others.
    pub(crate) fn push_back(&mut self, mut slab: Thin<Slab>) {
        debug_assert!(self.back().is_none_or(|back| back.base < slab.base));
        slab.next = self.0.head.take();
        self.0.head = Some(slab);
        self.0.len += 1;
    }

    /// The same slabs in ascending order.
    pub(crate) fn into_ascending(mut self) -> Chain {
        let mut chain = Chain::default();
        while let Some(slab) = self.pop_back() {
            chain.push_front(slab);
        }
        chain
    }
}
