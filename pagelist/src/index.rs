//! Where each slab is: a sorted directory of sorted blocks.
//!
//! ```text
//!   root   [ first: 0 | first: 4096 | first: 8192 | … ]      one Vec
//!              │             └────────────┐
//!   block  [ 0 → slab | 64 → slab | … ]  [ 4096 → slab | … ]  64 entries each
//!              │
//!   slab   64 slots
//! ```
//!
//! Both levels are searched by *guessing first*: where RAM is dense, the slab of
//! `pos` is the `(pos − first) / 64`th of its block and the block is the
//! `(pos − first) / 4096`th of the root. A wrong guess costs one comparison and
//! a binary search follows. A full block is split where an aligned power of two
//! falls between its keys, so that whatever the order of insertion, dense
//! memory ends up in full, aligned blocks and the guess is right.
//!
//! Unlike in a radix tree, `n + m` slabs never need more blocks than the two
//! lists they come from had, however their keys are shifted against each other.
//! That is why merges allocate nothing. If the root's capacity cannot hold all
//! blocks after a merge, blocks are *chained* behind the root's entries; the
//! next insertion that may allocate undoes that.

use alloc::vec::Vec;
use core::slice;

use crate::block::{BLOCK_SLOTS, Block, FANOUT};
use crate::slab::{OutOfMemory, SLAB_SLOTS, Slab, Thin};
use crate::slot::{FrameId, Slot};

pub(crate) struct Root {
    /// Base of the block's first slab.
    first: u64,
    pub(crate) block: Thin<Block>,
}

impl Root {
    pub(crate) fn new(block: Thin<Block>) -> Self {
        Root {
            first: block.first(),
            block,
        }
    }
}

/// An ordered map from slab base to slab.
pub(crate) struct Index {
    root: Vec<Root>,
    nr_blocks: usize,
    nr_slabs: usize,
    /// Which window of [`BLOCK_SLOTS`] the first root entry is about.
    first_window: u64,
}

impl Default for Index {
    fn default() -> Self {
        Self::new()
    }
}

impl Index {
    pub(crate) const fn new() -> Self {
        Index {
            root: Vec::new(),
            nr_blocks: 0,
            nr_slabs: 0,
            first_window: 0,
        }
    }

    /// The index with this root; every block in it is full of slabs or chained.
    pub(crate) fn from_root(root: Vec<Root>, nr_blocks: usize, nr_slabs: usize) -> Self {
        let mut index = Index {
            root,
            nr_blocks,
            nr_slabs,
            first_window: 0,
        };
        index.note_first();
        index
    }

    /// The root, without the index.
    pub(crate) fn into_root(self) -> Vec<Root> {
        self.root
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.nr_slabs == 0
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.nr_slabs * size_of::<Slab>()
            + self.nr_blocks * size_of::<Block>()
            + self.root.capacity() * size_of::<Root>()
    }

    /// Whether some block is reached through another one only.
    #[inline]
    fn is_chained(&self) -> bool {
        self.nr_blocks != self.root.len()
    }

    /// The root entry whose first base is the largest not above `pos`.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "below the root's length")]
    fn root_for(&self, pos: u64) -> Option<usize> {
        let root = self.root.as_slice();
        let lowest = root.first()?.first;
        if pos < lowest {
            return None;
        }
        let last = root.len() - 1;
        let guess = (pos / BLOCK_SLOTS - lowest / BLOCK_SLOTS).min(last as u64) as usize;
        let above = root.get(guess + 1);
        if root[guess].first <= pos && above.is_none_or(|entry| pos < entry.first) {
            Some(guess)
        } else {
            Some(root.partition_point(|entry| entry.first <= pos) - 1)
        }
    }

    /// The entry with the largest base not above `pos`.
    #[inline]
    fn locate(&self, pos: u64) -> Option<(usize, &Block, usize)> {
        let at = self.root_for(pos)?;
        let Root { first, block } = &self.root[at];
        if self.is_chained() {
            let block = block.chained_for(pos);
            return Some((at, block, block.search(pos)));
        }
        Some((at, block, block.search_from(*first, pos)))
    }

    /// What is at `pos` if its memory is dense: a page, or `None` if it takes
    /// more than a guess to tell.
    ///
    /// A page is the answer wherever a guess has found it, for there is no
    /// second slot at its position. That spares most lookups the comparison with
    /// the next entries. The fewer instructions there are here the more lookups
    /// the processor has in flight, which is what their speed depends on once
    /// slabs no longer fit its caches.
    #[inline]
    pub(crate) fn guess(&self, pos: u64) -> Option<FrameId> {
        let at = (pos / BLOCK_SLOTS).wrapping_sub(self.first_window);
        let root = self.root.get(usize::try_from(at).ok()?)?;
        let entry = &root.block.entries[(pos / SLAB_SLOTS) as usize % FANOUT];
        let slots = &entry.slab.as_ref()?.slots;
        let i = usize::try_from(pos.wrapping_sub(entry.base)).ok()?;
        slots.get(i)?.plain_frame()
    }

    /// The slot at `pos`, vacant if there is none.
    pub(crate) fn slot(&self, pos: u64) -> Slot {
        self.slab(pos)
            .map_or(Slot::VACANT, |slab| slab.slots[slab.slot_index(pos)])
    }

    /// The slab with the largest base not above `pos`; it need not reach `pos`.
    #[inline]
    pub(crate) fn floor(&self, pos: u64) -> Option<&Slab> {
        let (_, block, i) = self.locate(pos)?;
        block.entries[i].slab.as_deref()
    }

    /// The slab that has a slot for `pos`.
    #[inline]
    pub(crate) fn slab(&self, pos: u64) -> Option<&Slab> {
        self.floor(pos).filter(|slab| pos < slab.end())
    }

    /// The slab that has a slot for `pos`, to write to.
    #[inline]
    pub(crate) fn slab_mut(&mut self, pos: u64) -> Option<&mut Slab> {
        let at = self.root_for(pos)?;
        let chained = self.is_chained();
        let mut block: &mut Block = &mut self.root[at].block;
        if chained {
            while block.next.as_ref().is_some_and(|next| next.first() <= pos) {
                block = block.next.as_deref_mut()?;
            }
        }
        let i = block.search(pos);
        block.entries[i]
            .slab
            .as_deref_mut()
            .filter(|slab| pos < slab.end())
    }

    /// All slabs from the one that has a slot for `pos` on, or from the first above it.
    #[inline]
    pub(crate) fn slabs_from(&self, pos: u64) -> Slabs<'_> {
        match self.locate(pos) {
            Some((at, block, i)) => {
                let reaches = block.entries[i]
                    .slab
                    .as_ref()
                    .is_some_and(|slab| pos < slab.end());
                Slabs {
                    roots: self.root[at + 1..].iter(),
                    block: Some(block),
                    next: if reaches { i } else { i + 1 },
                }
            }
            None => Slabs {
                roots: self.root.iter(),
                block: None,
                next: 0,
            },
        }
    }

    /// Base of the first slab that [`Index::slabs_from`] gives.
    pub(crate) fn base_from(&self, pos: u64) -> Option<u64> {
        self.slabs_from(pos).next().map(|slab| slab.base)
    }

    /// The smallest base above `base`.
    pub(crate) fn base_above(&self, base: u64) -> Option<u64> {
        self.slabs_from(base)
            .map(|slab| slab.base)
            .find(|&next| next > base)
    }

    /// Makes sure that `pos` has a slot. On failure nothing has changed.
    pub(crate) fn reserve(&mut self, pos: u64) -> Result<(), OutOfMemory> {
        let mut base = pos - pos % SLAB_SLOTS;
        if let Some(below) = self.floor(pos) {
            if pos < below.end() {
                return Ok(());
            }
            // After an unaligned merge the slab below may reach into ours.
            base = base.max(below.end());
        }
        let slab = Thin::try_new(Slab::new(base))?;
        self.insert(slab)
    }

    fn insert(&mut self, slab: Thin<Slab>) -> Result<(), OutOfMemory> {
        if self.is_chained() {
            self.unchain()?;
        }
        let base = slab.base;
        if self.root.is_empty() {
            let mut block = Thin::try_new(Block::new())?;
            self.reserve_root()?;
            block.insert(slab);
            self.root.push(Root::new(block));
            self.nr_blocks += 1;
        } else {
            let at = self.root_for(base).unwrap_or(0);
            if self.root[at].block.len == FANOUT {
                let mut upper = Thin::try_new(Block::new())?;
                self.reserve_root()?;
                let lower = &mut self.root[at].block;
                let pivot = lower.pivot(base);
                lower.split_into(pivot, &mut upper);
                if base < pivot {
                    lower.insert(slab);
                } else {
                    upper.insert(slab);
                }
                self.root[at].first = self.root[at].block.first();
                self.root.insert(at + 1, Root::new(upper));
                self.nr_blocks += 1;
            } else {
                let entry = &mut self.root[at];
                entry.block.insert(slab);
                entry.first = entry.block.first();
            }
        }
        self.nr_slabs += 1;
        self.note_first();
        Ok(())
    }

    fn note_first(&mut self) {
        self.first_window = self.root.first().map_or(0, |root| root.first / BLOCK_SLOTS);
    }

    /// Makes room for one more root entry, and then some: with twice the room
    /// that is needed, two lists of a size merge without chaining.
    fn reserve_root(&mut self) -> Result<(), OutOfMemory> {
        let wanted = self.root.len() + 1;
        if self.root.capacity() < 2 * wanted
            && self.root.try_reserve_exact(3 * wanted + 1).is_err()
            && self.root.capacity() < wanted
        {
            return Err(OutOfMemory);
        }
        Ok(())
    }

    /// Gives every block a root entry of its own.
    fn unchain(&mut self) -> Result<(), OutOfMemory> {
        let mut flat = Vec::new();
        flat.try_reserve_exact(2 * self.nr_blocks)
            .map_err(|_| OutOfMemory)?;
        for root in self.root.drain(..) {
            let mut rest = Some(root.block);
            while let Some(mut block) = rest {
                rest = block.next.take();
                flat.push(Root::new(block));
            }
        }
        self.root = flat;
        Ok(())
    }

    /// Takes out the slab with exactly this base.
    pub(crate) fn remove(&mut self, base: u64) -> Option<Thin<Slab>> {
        let at = self.root_for(base)?;
        let mut block = &mut self.root[at].block;
        while block.next.as_ref().is_some_and(|next| next.first() <= base) {
            block = block.next.as_mut()?;
        }
        let i = block.search(base);
        if block.entries[i].base != base {
            return None;
        }
        let slab = block.remove(i);
        self.nr_slabs -= 1;
        if block.len == 0 {
            self.nr_blocks -= 1;
            if let Some(next) = block.next.take() {
                *block = next;
            } else {
                self.drop_empty_tail(at);
            }
        }
        if let Some(root) = self.root.get_mut(at) {
            root.first = root.block.first();
        }
        if self.root.is_empty() {
            self.root = Vec::new();
        }
        self.note_first();
        slab
    }

    /// Drops the empty block at the end of root entry `at`'s chain.
    fn drop_empty_tail(&mut self, at: usize) {
        let mut block = &mut self.root[at].block;
        if block.len == 0 {
            self.root.remove(at);
            return;
        }
        while block.next.as_ref().is_some_and(|next| next.len > 0) {
            match &mut block.next {
                Some(next) => block = next,
                None => return,
            }
        }
        block.next = None;
    }
}

impl Index {
    /// Checks order, counts and the bases that are kept twice.
    pub(crate) fn check(&self) {
        let (mut nr_blocks, mut nr_slabs) = (0, 0);
        let mut above = 0;
        for root in &self.root {
            assert_eq!(root.first, root.block.first());
            let mut next: Option<&Block> = Some(&root.block);
            while let Some(block) = next {
                nr_blocks += 1;
                nr_slabs += block.len;
                assert!(block.len > 0, "an empty block");
                for entry in &block.entries[..block.len] {
                    assert!(entry.base >= above, "slabs out of order");
                    assert_eq!(entry.slab.as_ref().map(|slab| slab.base), Some(entry.base));
                    above = entry.base + 1;
                }
                for entry in &block.entries[block.len..] {
                    assert!(entry.slab.is_none() && entry.base == u64::MAX);
                }
                next = block.next.as_deref();
            }
        }
        assert_eq!((self.nr_blocks, self.nr_slabs), (nr_blocks, nr_slabs));
        assert_eq!(self.root.is_empty(), self.root.capacity() == 0);
    }
}

/// All slabs of an index, ascending.
#[derive(Clone)]
pub(crate) struct Slabs<'a> {
    roots: slice::Iter<'a, Root>,
    block: Option<&'a Block>,
    next: usize,
}

impl<'a> Iterator for Slabs<'a> {
    type Item = &'a Slab;

    #[inline]
    fn next(&mut self) -> Option<&'a Slab> {
        loop {
            if let Some(block) = self.block {
                if self.next < block.len {
                    let slab = block.entries[self.next].slab.as_deref();
                    self.next += 1;
                    return slab;
                }
                self.block = block.next.as_deref();
            }
            if self.block.is_none() {
                self.block = Some(&self.roots.next()?.block);
            }
            self.next = 0;
        }
    }
}
