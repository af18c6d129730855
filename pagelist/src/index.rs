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

use crate::slab::{Chain, OutOfMemory, SLAB_SLOTS, Slab, Thin};

/// Entries in a block.
const FANOUT: usize = 64;
/// Positions that a full block of dense slabs covers.
const BLOCK_SLOTS: u64 = SLAB_SLOTS * FANOUT as u64;

struct Entry {
    /// The slab's base; `u64::MAX` in unused entries, so that they sort last.
    base: u64,
    slab: Option<Thin<Slab>>,
}

const UNUSED: Entry = Entry {
    base: u64::MAX,
    slab: None,
};

struct Block {
    entries: [Entry; FANOUT],
    len: usize,
    /// A block with larger keys that the root has no room for.
    next: Option<Thin<Block>>,
}

impl Block {
    const fn new() -> Self {
        Block {
            entries: [UNUSED; FANOUT],
            len: 0,
            next: None,
        }
    }

    #[inline]
    fn first(&self) -> u64 {
        self.entries[0].base
    }

    /// Index of the last entry whose base is at most `pos`; there must be one.
    #[inline]
    fn search(&self, pos: u64) -> usize {
        let guess = ((pos - self.first()) / SLAB_SLOTS).min(FANOUT as u64 - 1) as usize;
        let above = self.entries.get(guess + 1);
        if self.entries[guess].base <= pos && above.is_none_or(|entry| pos < entry.base) {
            guess
        } else {
            self.entries.partition_point(|entry| entry.base <= pos) - 1
        }
    }

    /// Puts a slab where it belongs; the block must not be full.
    fn insert(&mut self, slab: Thin<Slab>) {
        let at = self.entries[..self.len].partition_point(|entry| entry.base < slab.base);
        self.entries[self.len] = Entry {
            base: slab.base,
            slab: Some(slab),
        };
        self.entries[at..=self.len].rotate_right(1);
        self.len += 1;
    }

    fn remove(&mut self, at: usize) -> Option<Thin<Slab>> {
        let slab = core::mem::replace(&mut self.entries[at], UNUSED).slab;
        self.entries[at..self.len].rotate_left(1);
        self.len -= 1;
        slab
    }

    /// Where to cut a full block that must also take `base`: at the most
    /// aligned key boundary between the smallest and the largest of the 65.
    fn pivot(&self, base: u64) -> u64 {
        let low = self.first().min(base);
        let high = self.entries[self.len - 1].base.max(base);
        let bit = (low ^ high).ilog2();
        high >> bit << bit
    }

    /// Moves all entries from `pivot` on to `upper`, which is empty.
    fn split_into(&mut self, pivot: u64, upper: &mut Block) {
        let cut = self.entries[..self.len].partition_point(|entry| entry.base < pivot);
        for (to, from) in upper
            .entries
            .iter_mut()
            .zip(&mut self.entries[cut..self.len])
        {
            core::mem::swap(to, from);
        }
        upper.len = self.len - cut;
        self.len = cut;
    }
}

impl Drop for Block {
    /// Iterative: chained blocks must not recurse.
    fn drop(&mut self) {
        let mut next = self.next.take();
        while let Some(mut block) = next {
            next = block.next.take();
        }
    }
}

struct Root {
    /// Base of the block's first slab.
    first: u64,
    block: Thin<Block>,
}

/// An ordered map from slab base to slab.
pub(crate) struct Index {
    root: Vec<Root>,
    nr_blocks: usize,
    nr_slabs: usize,
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
        }
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
        let mut block: &Block = &self.root[at].block;
        if self.is_chained() {
            while let Some(next) = block.next.as_deref()
                && next.first() <= pos
            {
                block = next;
            }
        }
        Some((at, block, block.search(pos)))
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
            self.root.push(Root { first: base, block });
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
                let first = upper.first();
                self.root[at].first = self.root[at].block.first();
                self.root.insert(
                    at + 1,
                    Root {
                        first,
                        block: upper,
                    },
                );
                self.nr_blocks += 1;
            } else {
                let entry = &mut self.root[at];
                entry.block.insert(slab);
                entry.first = entry.block.first();
            }
        }
        self.nr_slabs += 1;
        Ok(())
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
                flat.push(Root {
                    first: block.first(),
                    block,
                });
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

    /// Takes the index apart: its slabs in order, and the memory it was made of.
    pub(crate) fn dismantle(&mut self) -> (Chain, Parts) {
        let mut whole = core::mem::take(self);
        let mut slabs = Chain::default();
        let mut parts = Parts::default();
        while let Some(root) = whole.root.pop() {
            // Largest keys first: turn the chained blocks round.
            let mut rest = Some(root.block);
            let mut reversed = None;
            while let Some(mut block) = rest {
                rest = block.next.take();
                block.next = reversed;
                reversed = Some(block);
            }
            while let Some(mut block) = reversed {
                reversed = block.next.take();
                while block.len > 0 {
                    let last = block.len - 1;
                    if let Some(slab) = block.remove(last) {
                        slabs.push_front(slab);
                    }
                }
                parts.give(block);
            }
        }
        parts.root = whole.root;
        (slabs, parts)
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

/// Empty blocks and an empty root, to build an index from without allocating.
#[derive(Default)]
pub(crate) struct Parts {
    root: Vec<Root>,
    blocks: Option<Thin<Block>>,
    nr_blocks: usize,
}

impl Parts {
    fn give(&mut self, mut block: Thin<Block>) {
        block.next = self.blocks.take();
        self.blocks = Some(block);
        self.nr_blocks += 1;
    }

    fn take(&mut self) -> Option<Thin<Block>> {
        let mut block = self.blocks.take()?;
        self.blocks = block.next.take();
        self.nr_blocks -= 1;
        Some(block)
    }

    /// The parts of two indexes together.
    pub(crate) fn join(mut self, mut other: Parts) -> Parts {
        while let Some(block) = other.take() {
            self.give(block);
        }
        if other.root.capacity() > self.root.capacity() {
            self.root = core::mem::take(&mut other.root);
        }
        self
    }
}

/// Builds an index from ascending slabs and the parts of dismantled ones.
pub(crate) struct Builder {
    parts: Parts,
    index: Index,
    open: Option<Thin<Block>>,
    /// Blocks each root entry gets, so that all fit into the root's capacity.
    blocks_per_root: usize,
    /// Blocks behind the last root entry.
    chained: usize,
}

impl Builder {
    pub(crate) fn new(mut parts: Parts) -> Self {
        let root = core::mem::take(&mut parts.root);
        Builder {
            blocks_per_root: parts.nr_blocks.div_ceil(root.capacity().max(1)),
            chained: 0,
            open: None,
            index: Index {
                root,
                ..Index::new()
            },
            parts,
        }
    }

    /// Adds a slab above all others. `at_most` bounds how many are still to
    /// come, this one included; the parts suffice for that many.
    pub(crate) fn push(&mut self, slab: Thin<Slab>, at_most: usize) {
        if let Some(open) = &self.open {
            let next_window = slab.base / BLOCK_SLOTS != open.first() / BLOCK_SLOTS;
            // Aligned blocks make for good guesses, but only where there are
            // blocks enough to leave some partly empty.
            let plenty = self.parts.nr_blocks * FANOUT >= at_most;
            if open.len == FANOUT || (next_window && plenty) {
                self.close();
            }
        }
        let parts = &mut self.parts;
        let open = self.open.get_or_insert_with(|| {
            parts
                .take()
                .expect("the blocks that held these slabs before hold them again")
        });
        let at = open.len;
        open.entries[at] = Entry {
            base: slab.base,
            slab: Some(slab),
        };
        open.len += 1;
        self.index.nr_slabs += 1;
    }

    fn close(&mut self) {
        let Some(block) = self.open.take() else {
            return;
        };
        self.index.nr_blocks += 1;
        match self.index.root.last_mut() {
            Some(root) if self.chained < self.blocks_per_root => {
                let mut link = &mut root.block.next;
                while let Some(next) = link {
                    link = &mut next.next;
                }
                *link = Some(block);
                self.chained += 1;
            }
            _ => {
                self.index.root.push(Root {
                    first: block.first(),
                    block,
                });
                self.chained = 1;
            }
        }
    }

    pub(crate) fn finish(mut self) -> Index {
        self.close();
        if self.index.root.is_empty() {
            return Index::new();
        }
        self.index
    }
}
