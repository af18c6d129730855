//! Taking indexes apart and building new ones, without allocating.
//!
//! A [`Stock`] is an index being taken apart from its low end: whole blocks, and
//! a chain of the slabs of the blocks that were opened. The memory of opened
//! blocks goes to the [`Builder`] of the new index, which fills them again; it
//! can be handed whole blocks, too. There are always blocks enough: each slab of
//! a chain came out of a block that the builder was given.

use alloc::vec::Vec;

use crate::block::{BLOCK_SLOTS, Block, FANOUT};
use crate::index::{Index, Root};
use crate::slab::{Chain, SLAB_LEN, SLAB_SLOTS, Slab, Thin};
use crate::slot::Slot;

/// Blocks that are linked to one another, the last one first.
#[derive(Default)]
struct Pile {
    top: Option<Thin<Block>>,
    len: usize,
}

impl Pile {
    fn push(&mut self, mut block: Thin<Block>) {
        block.next = self.top.take();
        self.top = Some(block);
        self.len += 1;
    }

    fn pop(&mut self) -> Option<Thin<Block>> {
        let mut block = self.top.take()?;
        self.top = block.next.take();
        self.len -= 1;
        Some(block)
    }
}

/// An index being taken apart.
pub(crate) struct Stock {
    /// Root entries not touched yet, the lowest last.
    root: Vec<Root>,
    /// Blocks that were chained behind the root entry taken last.
    chained: Option<Thin<Block>>,
    /// Slabs of the opened blocks. They are below all blocks.
    chain: Chain,
}

impl Stock {
    pub(crate) fn new(index: Index) -> Self {
        let mut root = index.into_root();
        root.reverse();
        Stock {
            root,
            chained: None,
            chain: Chain::default(),
        }
    }

    /// The smallest base there is.
    pub(crate) fn first(&self) -> Option<u64> {
        let block = || {
            let next = self.chained.as_ref();
            next.or(self.root.last().map(|root| &root.block))
        };
        match self.chain.front() {
            Some(slab) => Some(slab.base),
            None => block().map(|block| block.first()),
        }
    }

    fn next_block(&mut self) -> Option<Thin<Block>> {
        let mut block = match self.chained.take() {
            Some(block) => block,
            None => self.root.pop()?.block,
        };
        self.chained = block.next.take();
        Some(block)
    }

    /// The next block as a whole, if nothing of it was taken yet and all of it
    /// is below `limit`.
    pub(crate) fn take_block(&mut self, limit: u64) -> Option<Thin<Block>> {
        if self.chain.front().is_some() {
            return None;
        }
        let block = self.next_block()?;
        if block.last() + SLAB_SLOTS <= limit {
            return Some(block);
        }
        self.put_back(block);
        None
    }

    fn put_back(&mut self, mut block: Thin<Block>) {
        block.next = self.chained.take();
        self.chained = Some(block);
    }

    /// Opens the next block if the chain is used up.
    fn open(&mut self, builder: &mut Builder) {
        if self.chain.front().is_none()
            && let Some(block) = self.next_block()
        {
            self.open_block(block, builder);
        }
    }

    fn open_block(&mut self, mut block: Thin<Block>, builder: &mut Builder) {
        for last in (0..block.len()).rev() {
            if let Some(slab) = block.remove(last) {
                self.chain.push_front(slab);
            }
        }
        builder.spare.push(block);
    }

    /// Opens everything that is left.
    pub(crate) fn open_all(&mut self, builder: &mut Builder) -> &mut Chain {
        let mut blocks = Pile::default();
        while let Some(block) = self.next_block() {
            blocks.push(block);
        }
        let mut low = core::mem::take(&mut self.chain).into_reversed();
        while let Some(block) = blocks.pop() {
            self.open_block(block, builder);
        }
        while let Some(slab) = low.pop_back() {
            self.chain.push_front(slab);
        }
        &mut self.chain
    }

    /// Puts slabs back, of which there must not be more than were taken.
    pub(crate) fn put_chain(&mut self, chain: Chain) {
        self.chain = chain;
    }

    /// Slabs taken out of blocks and not yet taken from here.
    pub(crate) fn nr_open(&self) -> usize {
        self.chain.len()
    }

    /// Takes the first slab together with whatever the next ones have in its
    /// reach, so that what remains lies above it.
    pub(crate) fn pop_whole(&mut self, builder: &mut Builder) -> Option<Thin<Slab>> {
        self.open(builder);
        let mut slab = self.chain.pop_front()?;
        let base = slab.base;
        self.pull(base, &mut slab.slots, builder);
        Some(slab)
    }

    /// Moves everything in the 64 positions from `base`, below which there is
    /// nothing, into `slots`.
    pub(crate) fn pull(&mut self, base: u64, slots: &mut [Slot; SLAB_LEN], builder: &mut Builder) {
        while self.first().is_some_and(|first| first < base + SLAB_SLOTS) {
            self.open(builder);
            self.chain.pull(base, slots);
        }
    }
}

/// Builds an index from slabs and blocks that come in ascending order.
#[derive(Default)]
pub(crate) struct Builder {
    /// Empty blocks.
    spare: Pile,
    /// The block being filled.
    open: Option<Thin<Block>>,
    done: Pile,
    nr_slabs: usize,
}

impl Builder {
    /// Adds a slab. `nr_open` others are out of their blocks.
    pub(crate) fn push(&mut self, slab: Thin<Slab>, nr_open: usize) {
        if let Some(open) = &self.open {
            // Aligned blocks make for good guesses, but only where there are
            // blocks enough to leave some partly empty.
            let next_window = slab.base / BLOCK_SLOTS != open.first() / BLOCK_SLOTS;
            if open.len() == FANOUT || (next_window && self.has_room_for(nr_open + 1)) {
                self.close();
            }
        }
        let spare = &mut self.spare;
        let open = self.open.get_or_insert_with(|| {
            spare
                .pop()
                .expect("the blocks that held these slabs before hold them again")
        });
        open.push(slab);
        self.nr_slabs += 1;
    }

    /// Whether the empty blocks alone can take this many slabs.
    fn has_room_for(&self, nr_slabs: usize) -> bool {
        self.spare.len * FANOUT >= nr_slabs
    }

    /// Whether a whole block can follow, with `nr_open` slabs out of theirs.
    pub(crate) fn takes_blocks(&self, nr_open: usize) -> bool {
        self.open.is_none() || self.has_room_for(nr_open)
    }

    /// Adds a whole block, which may have become empty.
    pub(crate) fn push_block(&mut self, block: Thin<Block>) {
        if block.len() == 0 {
            self.spare.push(block);
            return;
        }
        self.close();
        self.nr_slabs += block.len();
        self.done.push(block);
    }

    fn close(&mut self) {
        if let Some(block) = self.open.take() {
            self.done.push(block);
        }
    }

    /// The index, with the larger of two used up roots.
    pub(crate) fn finish(mut self, one: Stock, other: Stock) -> Index {
        self.close();
        let mut root = if one.root.capacity() < other.root.capacity() {
            other.root
        } else {
            one.root
        };
        debug_assert!(root.is_empty());
        let nr_blocks = self.done.len;
        if nr_blocks == 0 {
            return Index::new();
        }
        // As many blocks behind each entry as it takes to fit all of them.
        let per_entry = nr_blocks.div_ceil(root.capacity().max(1));
        let mut behind = None;
        let mut nr_behind = 0;
        while let Some(mut block) = self.done.pop() {
            block.next = behind.take();
            nr_behind += 1;
            if nr_behind == per_entry || self.done.len == 0 {
                root.push(Root::new(block));
                nr_behind = 0;
            } else {
                behind = Some(block);
            }
        }
        root.reverse();
        Index::from_root(root, nr_blocks, self.nr_slabs)
    }
}
