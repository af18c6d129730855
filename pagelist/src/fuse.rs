//! The machinery under both merges: taking lists apart, clipping, zipping.
//!
//! Both lists are taken apart into chains of slabs, the chains are zipped, and
//! one index is built from the blocks of both: no memory is needed. A slot of
//! the result is occupied only where one of the two was, because between those
//! positions neither list changes between empty and markers; so the slabs at
//! hand suffice as well. Where the range of a merge cuts an interval, a slot is
//! needed where there may be no slab; but then a slab beyond the cut, which held
//! that interval's end, has just become free.

use crate::fill::vacant_view;
use crate::index::{Builder, Parts};
use crate::list::PageList;
use crate::slab::{Chain, NODE_SLOTS, ReversedChain, SLAB_LEN, Slab, Thin};
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
    chain: Chain,
    parts: Parts,
    nr_pages: u64,
    has_markers: bool,
}

impl Side {
    /// Empties `list`, which keeps its skew.
    pub(crate) fn take(list: &mut PageList) -> Self {
        let (chain, parts) = list.index.dismantle();
        Side {
            chain,
            parts,
            nr_pages: core::mem::take(&mut list.nr_pages),
            has_markers: core::mem::take(&mut list.nr_markers) != 0,
        }
    }

    /// Moves everything `by` positions, a multiple of a node, towards 0.
    pub(crate) fn shift_down(&mut self, by: u64) {
        debug_assert!(by.is_multiple_of(NODE_SLOTS));
        if by != 0 {
            self.chain.for_each_mut(|slab| slab.base -= by);
        }
    }

    /// Cuts off what is outside `first..past`; its pages go to `release`.
    pub(crate) fn clip(&mut self, first: u64, past: u64, release: impl FnMut(u64, FrameId)) {
        let mut cutter = Cutter {
            release,
            nr_pages: 0,
            flow: false,
            spare: None,
        };
        let mut rest = core::mem::take(&mut self.chain);
        let mut kept = ReversedChain::default();

        while rest.front().is_some_and(|slab| slab.base <= first) {
            let Some(mut slab) = rest.pop_whole() else {
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

        // The last occupied slot of the range decides whether markers run out of it.
        while rest.front().is_some_and(|slab| slab.base < past) {
            let Some(slab) = rest.pop_whole() else { break };
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
        while let Some(mut slab) = rest.pop_whole() {
            cutter.cut(&mut slab, 0, u64::MAX);
            cutter.spare = Some(slab);
        }
        if flow {
            put_marker(&mut kept, past - 1, false, &mut cutter.spare);
        }
        self.nr_pages -= cutter.nr_pages;
        self.chain = kept.into_ascending();
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
pub(crate) fn fuse(winner: Side, loser: Side, rule: &mut impl Rule, into: &mut PageList) {
    let mut zip = Zip {
        winner: winner.chain,
        loser: loser.chain,
        winner_flow: false,
        loser_flow: false,
        has_markers: winner.has_markers || loser.has_markers,
        nr_lost: 0,
    };
    let mut builder = Builder::new(winner.parts.join(loser.parts));
    while let Some(slab) = zip.next(rule) {
        if !slab.is_vacant() {
            let at_most = 1 + zip.winner.len() + zip.loser.len();
            builder.push(slab, at_most);
        }
    }
    into.index = builder.finish();
    into.nr_pages = winner.nr_pages + loser.nr_pages - zip.nr_lost;
    if zip.has_markers {
        into.tidy_all();
    }
}

/// Two chains becoming one.
struct Zip {
    winner: Chain,
    loser: Chain,
    /// Whether vacant slots of the winner are markers here; only kept up where
    /// there are markers at all.
    winner_flow: bool,
    loser_flow: bool,
    has_markers: bool,
    /// Pages of the loser that are not in the result.
    nr_lost: u64,
}

impl Zip {
    /// The next slab of the result, which may have become vacant.
    fn next(&mut self, rule: &mut impl Rule) -> Option<Thin<Slab>> {
        let winner = self.winner.front().map_or(u64::MAX, |slab| slab.base);
        let loser = self.loser.front().map_or(u64::MAX, |slab| slab.base);
        if winner <= loser {
            let mut slab = self.winner.pop_whole()?;
            if loser < slab.end() || self.has_markers {
                let mut low = [Slot::VACANT; SLAB_LEN];
                self.loser.pull(slab.base, &mut low);
                let high = slab.slots;
                self.zip(slab.base, &high, &low, &mut slab.slots, rule);
            }
            Some(slab)
        } else {
            let mut slab = self.loser.pop_whole()?;
            if winner < slab.end() || self.has_markers {
                let mut high = [Slot::VACANT; SLAB_LEN];
                self.winner.pull(slab.base, &mut high);
                let low = slab.slots;
                self.zip(slab.base, &high, &low, &mut slab.slots, rule);
            } else {
                self.show_all(&mut slab, rule);
            }
            Some(slab)
        }
    }

    /// A slab of a loser without markers where the winner has nothing.
    fn show_all<R: Rule>(&mut self, slab: &mut Slab, rule: &mut R) {
        if !R::ASKS {
            return;
        }
        let base = slab.base;
        for (i, slot) in slab.slots.iter_mut().enumerate() {
            let Some(frame) = slot.frame() else { continue };
            *slot = match rule.shown(base + i as u64, frame) {
                SlotRef::Page(kept) => Slot::page(kept),
                other => {
                    self.nr_lost += 1;
                    self.put(other, false)
                }
            };
        }
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
