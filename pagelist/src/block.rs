//! Sixty-four entries of the index, sorted.

use crate::slab::{SLAB_SLOTS, Slab, Thin};

/// Entries in a block.
pub(crate) const FANOUT: usize = 64;
/// Positions that a full block of dense slabs covers.
pub(crate) const BLOCK_SLOTS: u64 = SLAB_SLOTS * FANOUT as u64;

pub(crate) struct Entry {
    /// The slab's base; `u64::MAX` in unused entries, so that they sort last.
    pub(crate) base: u64,
    pub(crate) slab: Option<Thin<Slab>>,
}

const UNUSED: Entry = Entry {
    base: u64::MAX,
    slab: None,
};

pub(crate) struct Block {
    pub(crate) entries: [Entry; FANOUT],
    pub(crate) len: usize,
    /// A block with larger keys that the root has no room for, or the
    /// next one of a pile of blocks.
    pub(crate) next: Option<Thin<Block>>,
}

impl Block {
    pub(crate) const fn new() -> Self {
        Block {
            entries: [UNUSED; FANOUT],
            len: 0,
            next: None,
        }
    }

    /// The smallest base.
    #[inline]
    pub(crate) fn first(&self) -> u64 {
        self.entries[0].base
    }

    /// The largest base.
    pub(crate) fn last(&self) -> u64 {
        self.entries[self.len - 1].base
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn slab_at(&mut self, i: usize) -> Option<&mut Slab> {
        self.entries[i].slab.as_deref_mut()
    }

    /// Adds a slab above all others; the block must not be full.
    pub(crate) fn push(&mut self, slab: Thin<Slab>) {
        self.entries[self.len] = Entry {
            base: slab.base,
            slab: Some(slab),
        };
        self.len += 1;
    }

    /// Index of the last entry whose base is at most `pos`; there must be one.
    #[inline]
    pub(crate) fn search(&self, pos: u64) -> usize {
        self.search_from(self.first(), pos)
    }

    /// The same with the first base at hand, which saves a cache line.
    #[inline]
    pub(crate) fn search_from(&self, first: u64, pos: u64) -> usize {
        let guess = ((pos - first) / SLAB_SLOTS).min(FANOUT as u64 - 1) as usize;
        let above = self.entries.get(guess + 1);
        if self.entries[guess].base <= pos && above.is_none_or(|entry| pos < entry.base) {
            guess
        } else {
            self.entries.partition_point(|entry| entry.base <= pos) - 1
        }
    }

    /// The block behind this one, or this one, that `pos` belongs to.
    #[cold]
    pub(crate) fn chained_for(&self, pos: u64) -> &Block {
        let mut block = self;
        while let Some(next) = block.next.as_deref()
            && next.first() <= pos
        {
            block = next;
        }
        block
    }

    /// Puts a slab where it belongs; the block must not be full.
    pub(crate) fn insert(&mut self, slab: Thin<Slab>) {
        let at = self.entries[..self.len].partition_point(|entry| entry.base < slab.base);
        self.entries[self.len] = Entry {
            base: slab.base,
            slab: Some(slab),
        };
        self.entries[at..=self.len].rotate_right(1);
        self.len += 1;
    }

    pub(crate) fn remove(&mut self, at: usize) -> Option<Thin<Slab>> {
        let slab = core::mem::replace(&mut self.entries[at], UNUSED).slab;
        self.entries[at..self.len].rotate_left(1);
        self.len -= 1;
        slab
    }

    /// Where to cut a full block that must also take `base`: at the most
    /// aligned key boundary between the smallest and the largest of the 65.
    pub(crate) fn pivot(&self, base: u64) -> u64 {
        let low = self.first().min(base);
        let high = self.last().max(base);
        let bit = (low ^ high).ilog2();
        high >> bit << bit
    }

    /// Moves all entries from `pivot` on to `upper`, which is empty.
    pub(crate) fn split_into(&mut self, pivot: u64, upper: &mut Block) {
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
