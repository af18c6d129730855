//! A page list and its naïve twin, driven by the same operations.
//!
//! The twin is a `BTreeMap` from offset to slot and a set of frames. After every
//! operation both must agree in content, walks, runs, gaps and totals, and every
//! frame must have been handed out exactly as often as it was put in: once.
//!
//! Shared by the property test and the fuzz target, so it uses nothing but the
//! public API and the standard library.

#![expect(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a failure here is a failed test, and the numbers are small"
)]

use std::collections::{BTreeMap, BTreeSet};

use pagelist::{
    FrameId, InsertFramesError, MergeError, NODE_SPAN, PAGE_SIZE, PageList, PageOrMarker,
    RemovePagesError, RunKind, SlotRef, Visit,
};

/// One operation. Pages are page numbers; they are taken modulo a small space
/// (see [`Pair::offset`]) so that operations meet.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    InsertPage {
        page: u32,
    },
    InsertMarker {
        page: u32,
    },
    Reserve {
        page: u32,
        fill: bool,
    },
    Remove {
        page: u32,
    },
    InsertFrames {
        page: u32,
        len: u16,
    },
    Mark {
        page: u32,
        len: u16,
    },
    Clear {
        page: u32,
        len: u16,
    },
    /// `keep` decides which entries the callback takes.
    RemovePages {
        page: u32,
        len: u16,
        keep: u8,
    },
    TakePages {
        page: u32,
        len: u16,
        pops: u16,
    },
    /// Swap the list under test with the one beside it.
    Swap,
    /// Give the list its place in the other one, if it is empty.
    Skew {
        page: u32,
    },
    /// Merge the other list, as the parent, into this one.
    MergeFrom {
        node: u8,
        len: u16,
        keep: u8,
    },
    /// Merge this list onto the other one.
    MergeOnto,
    Drain,
}

impl Op {
    /// Reads operations from bytes, eight at a time, whatever the bytes are.
    pub fn from_bytes(bytes: &[u8]) -> impl Iterator<Item = Op> + '_ {
        bytes.chunks_exact(8).map(|chunk| {
            let page = u32::from_le_bytes([chunk[1], chunk[2], chunk[3], chunk[4]]);
            let len = u16::from_le_bytes([chunk[5], chunk[6]]);
            let keep = chunk[7];
            match chunk[0] % 32 {
                0..6 => Op::InsertPage { page },
                6..10 => Op::InsertMarker { page },
                10 => Op::Reserve {
                    page,
                    fill: keep & 1 == 1,
                },
                11..16 => Op::Remove { page },
                16..18 => Op::InsertFrames { page, len },
                18..20 => Op::Mark { page, len },
                20..22 => Op::Clear { page, len },
                22 => Op::RemovePages { page, len, keep },
                23 => Op::TakePages {
                    page,
                    len,
                    pops: u16::from(keep) * 3,
                },
                24..27 => Op::Swap,
                27 => Op::Skew { page },
                28 => Op::MergeFrom {
                    node: chunk[1],
                    len,
                    keep,
                },
                29 | 30 => Op::MergeOnto,
                _ => Op::Drain,
            }
        })
    }
}

/// What a list should be.
#[derive(Clone, Default)]
pub struct Model {
    pub slots: BTreeMap<u64, SlotRef>,
    pub skew: u64,
}

impl Model {
    fn put(&mut self, offset: u64, slot: SlotRef) -> SlotRef {
        let old = match slot {
            SlotRef::Empty => self.slots.remove(&offset),
            slot => self.slots.insert(offset, slot),
        };
        old.unwrap_or_default()
    }

    pub fn get(&self, offset: u64) -> SlotRef {
        self.slots.get(&offset).copied().unwrap_or_default()
    }

    fn take(&mut self, start: u64, end: u64) -> BTreeMap<u64, SlotRef> {
        let mut taken = self.slots.split_off(&start);
        self.slots.append(&mut taken.split_off(&end));
        taken
    }

    fn runs(&self, start: u64, end: u64) -> Vec<(u64, u64, Option<u32>)> {
        let mut runs: Vec<(u64, u64, Option<u32>)> = Vec::new();
        for (&offset, &slot) in self.slots.range(start..end) {
            let frame = slot.frame().map(FrameId::index);
            if let Some((from, to, first)) = runs.last_mut()
                && *to == offset
                && first.map(|first| u64::from(first) + (offset - *from) / PAGE_SIZE)
                    == frame.map(u64::from)
            {
                *to += PAGE_SIZE;
            } else {
                runs.push((offset, offset + PAGE_SIZE, frame));
            }
        }
        runs
    }

    fn gaps(&self, start: u64, end: u64) -> Vec<core::ops::Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = start;
        for &offset in self.slots.range(start..end).map(|(offset, _)| offset) {
            if at < offset {
                gaps.push(at..offset);
            }
            at = offset + PAGE_SIZE;
        }
        if at < end {
            gaps.push(at..end);
        }
        gaps
    }
}

/// A list beside its model.
#[derive(Default)]
pub struct Pair {
    pub list: PageList,
    pub model: Model,
}

impl Pair {
    /// Most operations land in a small space, some far out, some at the very end.
    fn offset(&self, page: u32) -> u64 {
        let low = u64::from(page % 300);
        match page / 300 % 64 {
            0 => (self.list.limit() / PAGE_SIZE - 300 + low) * PAGE_SIZE,
            1 => ((1 << 40) + low) * PAGE_SIZE,
            far @ 2..20 => (u64::from(far) * 4096 * 7 + low) * PAGE_SIZE,
            _ => low * PAGE_SIZE,
        }
    }

    fn range(&self, page: u32, len: u16) -> (u64, u64) {
        let start = self.offset(page);
        let len = match len % 16 {
            0 => 1 << 20, // past many nodes, or the far clusters, or the limit
            1..6 => u64::from(len / 16 % 200),
            _ => u64::from(len / 16 % 20),
        };
        let end = start.saturating_add(len * PAGE_SIZE).min(self.list.limit());
        (start, end)
    }

    /// Compares everything there is to compare.
    pub fn check(&self) {
        let Pair { list, model } = self;
        list.check_invariants();
        let content: Vec<(u64, SlotRef)> = list.iter().collect();
        assert_eq!(content.len(), model.slots.len(), "entries of {list:?}");
        assert!(
            content
                .iter()
                .copied()
                .eq(model.slots.iter().map(|(&offset, &slot)| (offset, slot))),
            "content of {list:?}"
        );
        assert_eq!(list.is_empty(), model.slots.is_empty());
        let nr_pages = model.slots.values().filter(|s| s.frame().is_some()).count() as u64;
        assert_eq!(list.page_count(), nr_pages);
        assert_eq!(list.marker_count(), model.slots.len() as u64 - nr_pages);
        assert_eq!(list.has_no_pages(), nr_pages == 0);
        assert_eq!(list.skew(), model.skew);

        let runs: Vec<_> = list
            .runs(0, list.limit())
            .unwrap()
            .map(|run| match run.kind {
                RunKind::Frames { first } => (run.start, run.end, Some(first.index())),
                RunKind::Marker => (run.start, run.end, None),
            })
            .collect();
        assert_eq!(runs, model.runs(0, list.limit()));
        let gaps: Vec<_> = list.gaps(0, list.limit()).unwrap().collect();
        assert_eq!(gaps, model.gaps(0, list.limit()));

        // No more memory than the runs justify: each page run and each run of
        // markers touches at most the nodes it covers or two, a slab is 272
        // bytes, a block 1040, the root at most 16 a block and room to spare.
        let slabs: u64 = runs
            .iter()
            .map(|(start, end, first)| match first {
                Some(_) => (end - start) / (16 * PAGE_SIZE) + 2,
                None => 2 + 2,
            })
            .sum();
        let bytes = list.heap_allocation_bytes() as u64;
        assert_eq!(bytes == 0, list.is_empty());
        assert!(
            bytes <= slabs * (272 + 1040 + 16 * 8),
            "{bytes} bytes for {slabs} slabs: {list:?}"
        );
    }

    /// Compares the answers around one offset.
    pub fn check_near(&self, offset: u64) {
        let Pair { list, model } = self;
        let mut cursor = list.cursor();
        let start = offset.saturating_sub(5 * PAGE_SIZE);
        let end = offset.saturating_add(5 * PAGE_SIZE).min(list.limit());
        for at in (start..end).step_by(PAGE_SIZE as usize) {
            let expected = model.get(at);
            assert_eq!(list.get(at), expected, "at {at:#x} of {list:?}");
            assert_eq!(cursor.get(at), expected, "at {at:#x} of {list:?}");
            assert_eq!(list.lookup(at).unwrap_or_default(), expected);
        }
        let range: Vec<_> = list.range(start, end).unwrap().collect();
        let expected: Vec<_> = model
            .slots
            .range(start..end)
            .map(|(&offset, &slot)| (offset, slot))
            .collect();
        assert_eq!(range, expected);
        assert_eq!(
            list.any_pages_in_range(start, end).unwrap(),
            !expected.is_empty()
        );
    }
}

/// Two lists, so that they can be merged, and the frames in circulation.
#[derive(Default)]
pub struct World {
    pub one: Pair,
    pub other: Pair,
    next_frame: u32,
    /// Frames that the lists own.
    inside: BTreeSet<FrameId>,
}

impl World {
    fn frames(&mut self, nr: u32) -> FrameId {
        let first = self.next_frame;
        self.next_frame += nr + 1; // so that runs end
        self.inside.extend((first..first + nr).map(FrameId::new));
        FrameId::new(first)
    }

    /// Applies one operation to the lists and to the models.
    pub fn apply(&mut self, op: Op) {
        let World { one, .. } = self;
        match op {
            Op::InsertPage { page } => {
                let offset = one.offset(page);
                let frame = self.frames(1);
                self.insert(offset, PageOrMarker::page(frame));
            }
            Op::InsertMarker { page } => {
                let offset = one.offset(page);
                self.insert(offset, PageOrMarker::marker());
            }
            Op::Reserve { page, fill } => {
                let offset = one.offset(page);
                let guard = one.list.lookup_or_allocate(offset).unwrap();
                assert_eq!(guard.view(), one.model.get(offset));
                if fill {
                    let old = guard.set(PageOrMarker::marker()).take_frame();
                    let expected = one.model.put(offset, SlotRef::Marker);
                    assert_eq!(old, expected.frame());
                    self.out(old);
                }
            }
            Op::Remove { page } => {
                let offset = one.offset(page);
                let old = one.list.remove_page(offset);
                assert_eq!(old.view(), one.model.put(offset, SlotRef::Empty));
                self.out(old.take_frame());
            }
            Op::InsertFrames { page, len } => {
                let (start, end) = one.range(page, len % 1024);
                let nr_pages = ((end - start) / PAGE_SIZE).min(400);
                let end = start + nr_pages * PAGE_SIZE;
                let occupied = one
                    .model
                    .slots
                    .range(start..end)
                    .find_map(|(&offset, slot)| Some((offset, slot.frame()?)));
                let first = FrameId::new(self.next_frame);
                let result = one.list.insert_frames(start, first, nr_pages);
                if let Some((offset, frame)) = occupied {
                    assert_eq!(result, Err(InsertFramesError::Occupied { offset, frame }));
                } else {
                    result.unwrap();
                    self.frames(nr_pages as u32);
                    for i in 0..nr_pages {
                        let frame = FrameId::new(first.index() + i as u32);
                        self.one
                            .model
                            .put(start + i * PAGE_SIZE, SlotRef::Page(frame));
                    }
                }
            }
            Op::Mark { page, len } => {
                let (start, end) = one.range(page, len);
                let end = end.min(start.saturating_add(3000 * PAGE_SIZE));
                let mut released = Vec::new();
                one.list
                    .mark(start, end, |offset, frame| released.push((offset, frame)))
                    .unwrap();
                let covered = one.model.take(start, end);
                for offset in (start..end).step_by(PAGE_SIZE as usize) {
                    one.model.put(offset, SlotRef::Marker);
                }
                self.released(&released, &covered);
            }
            Op::Clear { page, len } => {
                let (start, end) = one.range(page, len);
                let mut released = Vec::new();
                one.list
                    .clear(start, end, |offset, frame| released.push((offset, frame)))
                    .unwrap();
                let covered = one.model.take(start, end);
                self.released(&released, &covered);
            }
            Op::RemovePages { page, len, keep } => self.remove_pages(page, len, keep),
            Op::TakePages { page, len, pops } => {
                let (start, end) = one.range(page, len);
                let mut splice = one.list.take_pages(start, end - start).unwrap();
                let mut taken = one.model.take(start, end);
                let nr_pages = taken.values().filter(|s| s.frame().is_some()).count();
                assert_eq!(splice.page_count(), nr_pages as u64);
                let pops = u64::from(pops).min((end - start) / PAGE_SIZE);
                for i in 0..pops {
                    let offset = start + i * PAGE_SIZE;
                    assert_eq!(splice.next_offset(), offset);
                    let entry = splice.pop().unwrap();
                    let expected = taken.remove(&offset).unwrap_or_default();
                    assert_eq!(entry.view(), expected, "popped at {offset:#x}");
                    self.out(entry.take_frame());
                }
                assert_eq!(splice.is_done(), start + pops * PAGE_SIZE == end);
                let mut freed = Vec::new();
                splice.free_all(|frame| freed.push(frame));
                let rest: Vec<_> = taken.values().filter_map(|s| s.frame()).collect();
                assert_eq!(freed, rest);
                assert!(splice.is_done());
                freed.into_iter().for_each(|frame| self.out(Some(frame)));
            }
            Op::Swap => core::mem::swap(&mut self.one, &mut self.other),
            Op::Skew { page } => {
                let offset = u64::from(page % 64) * PAGE_SIZE;
                if one.list.is_empty() {
                    one.list
                        .initialize_skew(self.other.list.skew(), offset)
                        .unwrap();
                    one.model.skew = (self.other.model.skew + offset) % NODE_SPAN;
                } else {
                    one.list.initialize_skew(0, offset).unwrap_err();
                }
            }
            Op::MergeFrom { node, len, keep } => self.merge_from(node, len, keep),
            Op::MergeOnto => self.merge_onto(),
            Op::Drain => {
                let mut freed = Vec::new();
                one.list.remove_all_pages(|frame| freed.push(frame));
                let all: Vec<_> = one.model.slots.values().filter_map(|s| s.frame()).collect();
                assert_eq!(freed, all);
                assert_eq!(one.list.heap_allocation_bytes(), 0);
                one.model.slots.clear();
                freed.into_iter().for_each(|frame| self.out(Some(frame)));
            }
        }
    }

    fn insert(&mut self, offset: u64, entry: PageOrMarker) {
        let expected = self.one.model.put(offset, entry.view());
        let old = self.one.list.insert(offset, entry).unwrap();
        assert_eq!(old.view(), expected);
        self.out(old.take_frame());
    }

    /// A frame left the lists: it must have been in them.
    fn out(&mut self, frame: Option<FrameId>) {
        if let Some(frame) = frame {
            assert!(self.inside.remove(&frame), "{frame:?} handed out twice");
        }
    }

    fn released(&mut self, released: &[(u64, FrameId)], covered: &BTreeMap<u64, SlotRef>) {
        let expected: Vec<_> = covered
            .iter()
            .filter_map(|(&offset, slot)| Some((offset, slot.frame()?)))
            .collect();
        assert_eq!(released, expected);
        released
            .iter()
            .for_each(|&(_, frame)| self.out(Some(frame)));
    }

    /// A walk that leaves, takes or marks what it sees, and may stop or fail.
    fn remove_pages(&mut self, page: u32, len: u16, keep: u8) {
        let World { one, .. } = self;
        let (start, end) = one.range(page, len);
        let mut shown = Vec::new();
        let mut taken = Vec::new();
        let end_after = usize::from(len % 97);
        let result = one.list.remove_pages(start, end, |offset, entry| {
            let before = entry.view();
            match (offset / PAGE_SIZE) as u8 & keep & 3 {
                0 => taken.push(entry.take().take_frame()),
                1 => {
                    taken.push(entry.take().take_frame());
                    *entry = PageOrMarker::marker();
                }
                _ => {}
            }
            shown.push((offset, before, entry.view()));
            match shown.len() > end_after {
                false => Ok(Visit::Next),
                true if keep & 16 == 0 => Ok(Visit::Stop),
                true => Err(offset),
            }
        });
        let expected: Vec<_> = one
            .model
            .slots
            .range(start..end)
            .map(|(&offset, &slot)| (offset, slot))
            .take(end_after + 1)
            .collect();
        let ended = expected.len() > end_after && keep & 16 != 0;
        match result {
            Ok(()) => assert!(!ended),
            Err(RemovePagesError::Callback(offset)) => {
                assert!(ended);
                assert_eq!(expected.last().unwrap().0, offset);
            }
            Err(error) => panic!("{error}"),
        }
        assert!(expected.into_iter().eq(shown.iter().map(|s| (s.0, s.1))));
        for (offset, _, left) in shown {
            one.model.put(offset, left);
        }
        taken.into_iter().for_each(|frame| self.out(frame));
    }

    fn merge_from(&mut self, node: u8, len: u16, keep: u8) {
        let World { one, other, .. } = self;
        // An offset that fits the skews, most of the time.
        let fit = (NODE_SPAN + one.model.skew - other.model.skew) % NODE_SPAN;
        let offset = match node {
            255 => fit + PAGE_SIZE,
            node => fit + u64::from(node % 24) * NODE_SPAN,
        };
        let end = match len % 4 {
            0 => other.list.limit(),
            _ => (offset + u64::from(len / 4) * PAGE_SIZE).min(other.list.limit()),
        };
        let mut released = Vec::new();
        let mut migrated = Vec::new();
        let mut kept_back = Vec::new();
        let result = one.list.merge_from(
            &mut other.list,
            offset,
            end,
            |offset, frame| released.push((offset, frame)),
            |offset, entry| {
                migrated.push((offset, entry.view().frame().unwrap()));
                let pick = (offset / PAGE_SIZE) as u8 & keep;
                if pick & 3 == 3 {
                    kept_back.push(entry.take_frame().unwrap());
                    if pick & 4 == 4 {
                        return PageOrMarker::marker();
                    }
                    return PageOrMarker::empty();
                }
                entry
            },
        );
        if node == 255 {
            assert!(matches!(result, Err(MergeError::Skew { .. })));
            return;
        }
        result.unwrap();

        let mut expected_released = Vec::new();
        let mut expected_migrated = Vec::new();
        for (from, slot) in core::mem::take(&mut other.model.slots) {
            let inside = (offset..end).contains(&from);
            let to = from.wrapping_sub(offset);
            match slot {
                SlotRef::Page(frame) if !inside || !one.model.get(to).is_empty() => {
                    expected_released.push((from, frame));
                }
                SlotRef::Page(frame) => {
                    expected_migrated.push((from, frame));
                    let pick = (from / PAGE_SIZE) as u8 & keep;
                    let stays = match (pick & 3 == 3, pick & 4 == 4) {
                        (false, _) => slot,
                        (true, true) => SlotRef::Marker,
                        (true, false) => SlotRef::Empty,
                    };
                    one.model.put(to, stays);
                }
                marker => {
                    if inside && one.model.get(to).is_empty() {
                        one.model.put(to, marker);
                    }
                }
            }
        }
        released.sort_unstable();
        assert_eq!(released, expected_released);
        assert_eq!(migrated, expected_migrated);
        for (_, frame) in released {
            self.out(Some(frame));
        }
        kept_back
            .into_iter()
            .for_each(|frame| self.out(Some(frame)));
    }

    fn merge_onto(&mut self) {
        let World { one, other, .. } = self;
        let mut released = Vec::new();
        let result = one.list.merge_onto(&mut other.list, |offset, frame| {
            released.push((offset, frame));
        });
        if one.model.skew != other.model.skew {
            assert!(matches!(result, Err(MergeError::Skew { .. })));
            return;
        }
        result.unwrap();
        let mut replaced = BTreeMap::new();
        for (offset, slot) in core::mem::take(&mut one.model.slots) {
            replaced.insert(offset, other.model.put(offset, slot));
        }
        self.released(&released, &replaced);
    }

    /// Checks both lists.
    pub fn check(&self) {
        self.one.check();
        self.other.check();
        let inside = self
            .one
            .model
            .slots
            .values()
            .chain(self.other.model.slots.values())
            .filter_map(|slot| slot.frame());
        assert!(inside.collect::<BTreeSet<_>>() == self.inside);
    }

    /// Empties both lists.
    pub fn finish(mut self) {
        self.apply(Op::Drain);
        self.apply(Op::Swap);
        self.apply(Op::Drain);
        assert!(self.inside.is_empty(), "frames left: {:?}", self.inside);
    }

    /// The offset an operation is about.
    pub fn offset_of(&self, op: Op) -> Option<u64> {
        match op {
            Op::InsertPage { page }
            | Op::InsertMarker { page }
            | Op::Reserve { page, .. }
            | Op::Remove { page }
            | Op::InsertFrames { page, .. }
            | Op::Mark { page, .. }
            | Op::Clear { page, .. }
            | Op::RemovePages { page, .. }
            | Op::TakePages { page, .. } => Some(self.one.offset(page)),
            _ => None,
        }
    }

    /// Runs a whole sequence, checking after every step.
    pub fn run(ops: impl IntoIterator<Item = Op>) {
        let mut world = World::default();
        for op in ops {
            let near = world.offset_of(op);
            world.apply(op);
            world.check();
            if let Some(near) = near {
                world.one.check_near(near);
            }
        }
        world.finish();
    }
}
