//! Vacant slots: what they mean, and how few occupied ones can say it.
//!
//! An occupied slot speaks for itself and, with its `markers_follow` bit, for
//! the vacant stretch up to the next occupied one. Three things hold between
//! any two operations:
//!
//! 1. the bit is set only if the next position is vacant (else there is no
//!    stretch, and clearing a neighbour would bring a marker back);
//! 2. the last occupied slot's bit is clear, and nothing precedes the first;
//! 3. no explicit Marker or Empty could be left out: each begins or ends a
//!    stretch of its kind. Runs are thus as long as they can be, whatever the
//!    order they were made in, and two slots suffice for any.
//!
//! While a list has no markers all of this is moot: every occupied slot is a
//! page and every vacant one is empty.

use crate::edit::Cut;
use crate::list::PageList;
use crate::slab::{OutOfMemory, SLAB_SLOTS};
use crate::slot::{Slot, SlotRef};

/// What a vacant position is, given the bit of the slot before it.
#[inline]
pub(crate) const fn vacant_view(markers_follow: bool) -> SlotRef {
    if markers_follow {
        SlotRef::Marker
    } else {
        SlotRef::Empty
    }
}

impl PageList {
    /// The stored slot at `pos`, vacant if there is no node.
    #[inline]
    pub(crate) fn slot(&self, pos: u64) -> Slot {
        self.index.slot(pos)
    }

    /// Writes a slot whose node exists and says what was there.
    pub(crate) fn replace_slot(&mut self, pos: u64, new: Slot) -> Slot {
        let slab = self
            .index
            .slab_mut(pos)
            .expect("the slot was reserved or occupied");
        let i = slab.slot_index(pos);
        core::mem::replace(&mut slab.slots[i], new)
    }

    /// The last occupied slot before `pos`.
    pub(crate) fn occupied_before(&self, pos: u64) -> Option<(u64, Slot)> {
        let mut above = pos;
        while let Some(last) = above.checked_sub(1) {
            let slab = self.index.floor(last)?;
            let reach = slab.clip(slab.base, above);
            if let Some(i) = slab.slots[reach].iter().rposition(|slot| !slot.is_vacant()) {
                return Some((slab.base + i as u64, slab.slots[i]));
            }
            above = slab.base;
        }
        None
    }

    /// Whether a vacant slot at `pos` would be a marker.
    pub(crate) fn markers_flow_into(&self, pos: u64) -> bool {
        self.nr_markers != 0
            && self
                .occupied_before(pos)
                .is_some_and(|(_, slot)| slot.markers_follow())
    }

    /// Whether the position after `pos` is vacant and a marker.
    pub(crate) fn markers_flow_out_of(&self, pos: u64) -> bool {
        if self.nr_markers == 0 || !self.slot(pos + 1).is_vacant() {
            return false;
        }
        let slot = self.slot(pos);
        if slot.is_vacant() {
            self.markers_flow_into(pos)
        } else {
            slot.markers_follow()
        }
    }

    /// What is at `pos`.
    #[inline]
    pub(crate) fn view(&self, pos: u64) -> SlotRef {
        match self.index.guess(pos) {
            Some(frame) => SlotRef::Page(frame),
            None => self.view_without_guess(pos),
        }
    }

    #[inline(never)]
    fn view_without_guess(&self, pos: u64) -> SlotRef {
        let slot = self.slot(pos);
        if slot.is_vacant() && self.nr_markers != 0 {
            vacant_view(self.markers_flow_into(pos))
        } else {
            slot.view()
        }
    }

    /// Makes sure that `pos` has a slot. Undo with [`PageList::give_back`].
    pub(crate) fn reserve(&mut self, pos: u64) -> Result<(), OutOfMemory> {
        self.index.reserve(pos)
    }

    /// Frees the node of a slot that was not filled after all.
    pub(crate) fn give_back(&mut self, pos: u64) {
        let vacant = self.index.slab(pos).filter(|slab| slab.is_vacant());
        if let Some(base) = vacant.map(|slab| slab.base) {
            self.index.remove(base);
        }
    }

    /// Makes `pos` say `new`; its slot must have been reserved. Gives what was there.
    pub(crate) fn set(&mut self, pos: u64, new: SlotRef) -> SlotRef {
        if self.nr_markers == 0 && new != SlotRef::Marker {
            let slot = match new {
                SlotRef::Page(frame) => Slot::page(frame),
                SlotRef::Empty | SlotRef::Marker => Slot::VACANT,
            };
            let old = self.replace_slot(pos, slot).view();
            self.count(old, new);
            if new.is_empty() {
                self.give_back(pos);
            }
            return old;
        }
        let old = self.view(pos);
        let follow = self.markers_flow_out_of(pos);
        self.replace_slot(pos, Slot::explicit(new, follow));
        self.count(old, new);
        self.tidy_around(pos, pos);
        old
    }

    /// Moves one position's worth from one total to another.
    fn count(&mut self, old: SlotRef, new: SlotRef) {
        self.nr_pages -= u64::from(matches!(old, SlotRef::Page(_)));
        self.nr_markers -= u64::from(old == SlotRef::Marker);
        self.nr_pages += u64::from(matches!(new, SlotRef::Page(_)));
        self.nr_markers += u64::from(new == SlotRef::Marker);
    }

    /// Restores what holds between operations after the occupied slots `first`
    /// and `last` and anything between them were rewritten.
    pub(crate) fn tidy_around(&mut self, first: u64, last: u64) {
        if let Some(before) = first.checked_sub(1) {
            self.clear_bit_if_next_is_occupied(before);
            self.leave_out_if_redundant(before);
        }
        self.leave_out_if_redundant(first);
        if last != first {
            self.clear_bit_if_next_is_occupied(first);
            self.leave_out_if_redundant(last);
        }
        self.leave_out_if_redundant(last + 1);
    }

    /// Rule 1 of this module.
    pub(crate) fn clear_bit_if_next_is_occupied(&mut self, pos: u64) {
        let slot = self.slot(pos);
        if slot.markers_follow() && !self.slot(pos + 1).is_vacant() {
            self.replace_slot(pos, slot.with_markers_follow(false));
        }
    }

    /// Rule 3 of this module: vacates an explicit Marker or Empty at `pos` that
    /// the stretch around it says already. Frees its node if it was the last.
    pub(crate) fn leave_out_if_redundant(&mut self, pos: u64) {
        let slot = self.slot(pos);
        if slot.is_vacant() || slot.is_page() {
            return;
        }
        let marker = slot.view() == SlotRef::Marker;
        let before = self.occupied_before(pos);
        // With no stretch between, the slot before can still take one on.
        let adjacent = before.filter(|&(at, _)| at + 1 == pos);
        let flow = match (adjacent, before) {
            (Some(_), _) => marker,
            (None, Some((_, slot))) => slot.markers_follow(),
            (None, None) => false,
        };
        let ends_a_stretch = self.slot(pos + 1).is_vacant() && slot.markers_follow() != flow;
        if marker != flow || ends_a_stretch {
            return;
        }
        if let Some((at, before)) = adjacent {
            self.replace_slot(at, before.with_markers_follow(marker));
        }
        self.replace_slot(pos, Slot::VACANT);
        self.give_back(pos);
    }

    /// How many markers `start..end` has. Costs what is stored there.
    pub(crate) fn markers_in(&self, start: u64, end: u64) -> u64 {
        if self.nr_markers == 0 {
            return 0;
        }
        let mut flow = self.markers_flow_into(start);
        let mut at = start;
        let mut total = 0;
        for slab in self.index.slabs_from(start) {
            if slab.base >= end {
                break;
            }
            for i in slab.clip(start, end) {
                let slot = slab.slots[i];
                if slot.is_vacant() {
                    continue;
                }
                let pos = slab.base + i as u64;
                total += if flow { pos - at } else { 0 };
                total += u64::from(slot.view() == SlotRef::Marker);
                flow = slot.markers_follow();
                at = pos + 1;
            }
        }
        total + if flow { end.max(at) - at } else { 0 }
    }

    /// Vacates `start..end`, freeing nodes but for those of `keep`; each frame goes to `on_page` with
    /// its position, ascending. Totals are adjusted for pages, not for markers,
    /// and the slots around the range are as they were.
    pub(crate) fn strip(
        &mut self,
        start: u64,
        end: u64,
        keep: &Cut,
        mut on_page: impl FnMut(u64, crate::FrameId),
    ) {
        let kept = self.slabs_of(keep);
        let mut next = self.index.base_from(start);
        while let Some(base) = next.filter(|&base| base < end) {
            next = self.index.base_above(base);
            let Some(slab) = self.index.slab_mut(base) else {
                break;
            };
            let mut pages = 0;
            for i in slab.clip(start, end) {
                let slot = core::mem::replace(&mut slab.slots[i], Slot::VACANT);
                if let Some(frame) = slot.frame() {
                    pages += 1;
                    on_page(base + i as u64, frame);
                }
            }
            let vacant = slab.is_vacant() && !kept.contains(&Some(base));
            self.nr_pages -= pages;
            if vacant {
                self.index.remove(base);
            }
        }
    }
}

// The slot after the last one of a list has a position, too.
const _: () = assert!(crate::MAX_SIZE / crate::PAGE_SIZE + SLAB_SLOTS < u64::MAX >> 1);
