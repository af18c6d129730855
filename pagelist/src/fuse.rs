//! The machinery under both merges: taking lists apart, clipping, zipping.
//!
//! Both lists are taken apart slab by slab, from their low ends; the slabs are
//! zipped, and one index is built from the blocks of both: no memory is needed.
//! Blocks that lie between two of the other list's go over whole. A slot of
//! the result is occupied only where one of the two was, because between those
//! positions neither list changes between empty and markers; so the slabs at
//! hand suffice as well. Where the range of a merge cuts an interval, a slot is
//! needed where there may be no slab; but then a slab beyond the cut, which held
//! that interval's end, has just become free.

use crate::block::Block;
use crate::fill::vacant_view;
use crate::list::PageList;
use crate::rebuild::{Builder, Stock};
use crate::slab::{NODE_SLOTS, ReversedChain, SLAB_LEN, SLAB_SLOTS, Slab, Thin};
use crate::slot::{FrameId, Slot, SlotRef};

/// What becomes of the loser's pages.
pub(crate) trait Rule {
    /// Whether [`Rule::shown`] must be asked; if not it gives every page back.
    const ASKS: bool;
    /// A page that the winner's content covers.
    fn covered(&mut self, pos: u64, frame: FrameId);
    /// A page where the winner is Empty: what shall be there?
    fn shown(&mut self, pos: u64, frame: FrameId) -> SlotRef;
}

/// One list of a merge, taken apart.
pub(crate) struct Side {
    stock: Stock,
    nr_pages: u64,
    has_markers: bool,
    /// No slab reaches beyond.
    end: u64,
}

impl Side {
    /// Empties `list`, which keeps its skew.
    pub(crate) fn take(list: &mut PageList) -> Self {
        let end = list.index.floor(u64::MAX - 1).map_or(0, Slab::end);
        Side {
            end,
            stock: Stock::new(core::mem::take(&mut list.index)),
            nr_pages: core::mem::take(&mut list.nr_pages),
            has_markers: core::mem::take(&mut list.nr_markers) != 0,
        }
    }

    /// Moves everything `by` positions, a multiple of a node, towards 0.
    pub(crate) fn shift_down(&mut self, by: u64, builder: &mut Builder) {
        debug_assert!(by.is_multiple_of(NODE_SLOTS));
        if by != 0 {
            let chain = self.stock.open_all(builder);
            chain.for_each_mut(|slab| slab.base -= by);
        }
    }

    /// Whether nothing is outside `first..past`, as far as can be told at once.
    fn lies_within(&self, first: u64, past: u64) -> bool {
        self.stock.first().is_none_or(|base| base >= first) && self.end <= past
    }

    /// Cuts off what is outside `first..past`; its pages go to `release`.
    pub(crate) fn clip(
        &mut self,
        first: u64,
        past: u64,
        builder: &mut Builder,
        release: impl FnMut(u64, FrameId),
    ) {
        if first < past && self.lies_within(first, past) {
            return;
        }
        let mut cutter = Cutter {
            release,
            nr_pages: 0,
            flow: false,
            spare: None,
        };
        self.stock.open_all(builder);
        let rest = &mut self.stock;
        let mut kept = ReversedChain::default();

        while rest.first().is_some_and(|base| base <= first) {
            let Some(mut slab) = rest.pop_whole(builder) else {
                break;
            };
            cutter.cut(&mut slab, 0, first);
            if slab.end() > first {
                // What it holds now may be shifted down to 0, so its base must not
                // lie below that.
                slab.rebase(first - first % NODE_SLOTS);
                kept.push_back(slab);
            } else {
                cutter.spare = Some(slab);
            }
        }
        if cutter.flow && first < past {
            put_marker(&mut kept, first, true, &mut cutter.spare);
        }
        if let Some(vacant) = kept.pop_back_if_vacant() {
            cutter.spare = Some(vacant);
        }

        // The last occupied slot of the range decides whether markers run out of it.
        while rest.first().is_some_and(|base| base < past) {
            let Some(slab) = rest.pop_whole(builder) else {
                break;
            };
            kept.push_back(slab);
        }
        let mut flow = false;
        if let Some(mut slab) = kept.pop_back() {
            cutter.cut(&mut slab, past, u64::MAX);
            flow = slab.last_occupied().is_some_and(Slot::markers_follow);
            kept.push_back(slab);
            if let Some(vacant) = kept.pop_back_if_vacant() {
                flow = kept
                    .back()
                    .and_then(Slab::last_occupied)
                    .is_some_and(Slot::markers_follow);
                cutter.spare = Some(vacant);
            }
        }
        while let Some(mut slab) = rest.pop_whole(builder) {
            cutter.cut(&mut slab, 0, u64::MAX);
            cutter.spare = Some(slab);
        }
        if flow {
            put_marker(&mut kept, past - 1, false, &mut cutter.spare);
        }
        self.nr_pages -= cutter.nr_pages;
        rest.put_chain(kept.into_ascending());
    }
}

/// Vacates slots of slabs that go by.
struct Cutter<F> {
    release: F,
    /// Pages released.
    nr_pages: u64,
    /// The bit of the last slot vacated.
    flow: bool,
    /// A slab that nothing is left in.
    spare: Option<Thin<Slab>>,
}

impl<F: FnMut(u64, FrameId)> Cutter<F> {
    fn cut(&mut self, slab: &mut Slab, start: u64, end: u64) {
        for i in slab.clip(start, end) {
            let slot = core::mem::replace(&mut slab.slots[i], Slot::VACANT);
            if let Some(frame) = slot.frame() {
                self.nr_pages += 1;
                (self.release)(slab.base + i as u64, frame);
            }
            if !slot.is_vacant() {
                self.flow = slot.markers_follow();
            }
        }
    }
}

/// Makes an occupied slot at `pos`, which lies at the end of `chain` or above,
/// so that a run of markers can begin or end there. A slot that is occupied
/// already only has its bit cleared if no markers may follow.
fn put_marker(chain: &mut ReversedChain, pos: u64, follow: bool, spare: &mut Option<Thin<Slab>>) {
    if chain.back().is_none_or(|slab| slab.end() <= pos) {
        let mut slab = spare
            .take()
            .expect("the interval's end beyond the cut was in a slab that is free now");
        slab.base = pos - pos % NODE_SLOTS;
        chain.push_back(slab);
    }
    let Some(slab) = chain.back_mut() else { return };
    let i = slab.slot_index(pos);
    slab.slots[i] = if slab.slots[i].is_vacant() {
        Slot::explicit(SlotRef::Marker, follow)
    } else {
        slab.slots[i].with_markers_follow(slab.slots[i].markers_follow() && follow)
    };
}

/// Builds `into`, which is empty, from a winner and a loser.
pub(crate) fn fuse(
    winner: Side,
    loser: Side,
    builder: Builder,
    rule: &mut impl Rule,
    into: &mut PageList,
) {
    let mut zip = Zip {
        winner: winner.stock,
        loser: loser.stock,
        builder,
        winner_flow: false,
        loser_flow: false,
        has_markers: winner.has_markers || loser.has_markers,
        nr_lost: 0,
    };
    while zip.step(rule) {}
    into.nr_pages = winner.nr_pages + loser.nr_pages - zip.nr_lost;
    into.index = zip.builder.finish(zip.winner, zip.loser);
    if zip.has_markers {
        into.tidy_all();
    }
}

/// Two lists becoming one.
struct Zip {
    winner: Stock,
    loser: Stock,
    builder: Builder,
    /// Whether vacant slots of the winner are markers here; only kept up where
    /// there are markers at all.
    winner_flow: bool,
    loser_flow: bool,
    has_markers: bool,
    /// Pages of the loser that are not in the result.
    nr_lost: u64,
}

impl Zip {
    /// Moves one slab, or one block, into the result; says whether there was one.
    fn step(&mut self, rule: &mut impl Rule) -> bool {
        let winner = self.winner.first().unwrap_or(u64::MAX);
        let loser = self.loser.first().unwrap_or(u64::MAX);
        let base = winner.min(loser);
        if base == u64::MAX {
            return false;
        }
        if !self.has_markers {
            if self.move_block(winner, loser, rule) {
                return true;
            }
            // A slab that only one list has is passed on as it is.
            let other = winner.max(loser);
            if other >= base + SLAB_SLOTS {
                let from_loser = loser < winner;
                let stock = if from_loser {
                    &mut self.loser
                } else {
                    &mut self.winner
                };
                if let Some(mut slab) = stock.pop_whole(&mut self.builder)
                    && (!from_loser || self.show_all(&mut slab, rule) || !slab.is_vacant())
                {
                    self.push(slab);
                }
                return true;
            }
        }
        let stock = if winner <= loser {
            &mut self.winner
        } else {
            &mut self.loser
        };
        let Some(mut slab) = stock.pop_whole(&mut self.builder) else {
            return false;
        };
        let own = slab.slots;
        let mut others = [Slot::VACANT; SLAB_LEN];
        if winner <= loser {
            self.loser.pull(base, &mut others, &mut self.builder);
            self.zip(base, &own, &others, &mut slab.slots, rule);
        } else {
            self.winner.pull(base, &mut others, &mut self.builder);
            self.zip(base, &others, &own, &mut slab.slots, rule);
        }
        if !slab.is_vacant() {
            self.push(slab);
        }
        true
    }

    fn push(&mut self, slab: Thin<Slab>) {
        let nr_open = self.winner.nr_open() + self.loser.nr_open();
        self.builder.push(slab, nr_open);
    }

    /// Moves a whole block of the list that comes next, if all of it comes
    /// before the other one and there are blocks to spare.
    fn move_block(&mut self, winner: u64, loser: u64, rule: &mut impl Rule) -> bool {
        let nr_open = self.winner.nr_open() + self.loser.nr_open();
        if !self.builder.takes_blocks(nr_open) {
            return false;
        }
        let block = if winner <= loser {
            self.winner.take_block(loser)
        } else {
            let block = self.loser.take_block(winner);
            block.map(|block| self.show_block(block, rule))
        };
        match block {
            Some(block) => {
                self.builder.push_block(block);
                true
            }
            None => false,
        }
    }

    /// Asks about every page of a block; slabs that become vacant are dropped.
    fn show_block<R: Rule>(&mut self, mut block: Thin<Block>, rule: &mut R) -> Thin<Block> {
        if !R::ASKS {
            return block;
        }
        let mut i = 0;
        while i < block.len() {
            let vacant = block
                .slab_at(i)
                .is_some_and(|slab| !self.show_all(slab, rule) && slab.is_vacant());
            if vacant {
                block.remove(i);
            } else {
                i += 1;
            }
        }
        block
    }

    /// Asks about every page of a slab of a loser without markers where the
    /// winner has nothing. Says whether all were given back.
    fn show_all<R: Rule>(&mut self, slab: &mut Slab, rule: &mut R) -> bool {
        if !R::ASKS {
            return true;
        }
        let base = slab.base;
        let lost = self.nr_lost;
        for (i, slot) in slab.slots.iter_mut().enumerate() {
            let Some(frame) = slot.plain_frame() else {
                continue;
            };
            match rule.shown(base + i as u64, frame) {
                // Most pages are given back as they were: leave their cache
                // lines clean.
                SlotRef::Page(kept) if kept == frame => {}
                SlotRef::Page(kept) => *slot = Slot::page(kept),
                other => {
                    self.nr_lost += 1;
                    *slot = self.put(other, false);
                }
            }
        }
        self.nr_lost == lost
    }

    /// 64 positions of both lists.
    fn zip(
        &mut self,
        base: u64,
        high: &[Slot; SLAB_LEN],
        low: &[Slot; SLAB_LEN],
        out: &mut [Slot; SLAB_LEN],
        rule: &mut impl Rule,
    ) {
        for i in 0..SLAB_LEN {
            if high[i].is_vacant() && low[i].is_vacant() {
                out[i] = Slot::VACANT;
                continue;
            }
            let above = pass(high[i], &mut self.winner_flow);
            let below = pass(low[i], &mut self.loser_flow);
            let pos = base + i as u64;
            let result = match (above, below) {
                (SlotRef::Empty, SlotRef::Page(frame)) => rule.shown(pos, frame),
                (SlotRef::Empty, below) => below,
                (above, SlotRef::Page(frame)) => {
                    rule.covered(pos, frame);
                    self.nr_lost += 1;
                    above
                }
                (above, _) => above,
            };
            if above.is_empty() && below.frame().is_some() && result.frame().is_none() {
                self.nr_lost += 1;
            }
            out[i] = self.put(result, self.winner_flow || self.loser_flow);
        }
    }

    /// The slot that says `view`, as far as it takes one.
    fn put(&mut self, view: SlotRef, follow: bool) -> Slot {
        match view {
            SlotRef::Empty if !self.has_markers => Slot::VACANT,
            SlotRef::Marker => {
                self.has_markers = true;
                Slot::explicit(view, follow)
            }
            _ => Slot::explicit(view, follow),
        }
    }
}

/// What a slot that goes by is, and what its vacant successors will be.
fn pass(slot: Slot, flow: &mut bool) -> SlotRef {
    if slot.is_vacant() {
        vacant_view(*flow)
    } else {
        *flow = slot.markers_follow();
        slot.view()
    }
}

impl PageList {
    /// Restores what holds between operations, everywhere, and counts anew.
    fn tidy_all(&mut self) {
        let mut next = self.index.base_from(0);
        while let Some(base) = next {
            for pos in base..base + SLAB_LEN as u64 {
                let slot = self.slot(pos);
                if !slot.is_vacant() {
                    self.clear_bit_if_next_is_occupied(pos);
                    self.leave_out_if_redundant(pos);
                }
            }
            next = self.index.base_above(base);
        }
        self.nr_pages = 0;
        let mut nr_markers = 0;
        let mut flow = None;
        for slab in self.index.slabs_from(0) {
            for (i, slot) in slab.slots.iter().enumerate() {
                if slot.is_vacant() {
                    continue;
                }
                let pos = slab.base + i as u64;
                if let Some(from) = flow {
                    nr_markers += pos - from;
                }
                nr_markers += u64::from(slot.view() == SlotRef::Marker);
                self.nr_pages += u64::from(slot.is_page());
                flow = slot.markers_follow().then_some(pos + 1);
            }
        }
        self.nr_markers = nr_markers;
    }
}
