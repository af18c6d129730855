//! Fails the n-th allocation, for every n, in every operation that may allocate:
//! it must say so and leave the list as it was. And counts allocations where
//! there must be none.

#![expect(
    unsafe_code,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "the allocator below; a failure here is a failed test; numbers are small"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;

use pagelist::{
    EditError, FrameId, InsertFramesError, PAGE_SIZE, PageList, PageOrMarker, RemovePagesError,
    SlotError, SlotRef, Visit,
};

thread_local! {
    /// Allocations of this thread that still succeed; `None` for all.
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The system's allocator, which can be told to say no.
struct Failing;

fn may_allocate() -> bool {
    LEFT.with(|left| match left.get() {
        None => true,
        Some(0) => false,
        Some(n) => {
            left.set(Some(n - 1));
            true
        }
    })
}

// UNSAFETY: memory running out can only be had from the allocator, and a global
// allocator is an unsafe trait.
//
// SAFETY: every call goes to the system's allocator unchanged, or fails.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !may_allocate() {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if !may_allocate() {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

/// Runs `work` with `n` allocations to its name.
fn with_allocations<T>(n: usize, work: impl FnOnce() -> T) -> T {
    LEFT.with(|left| left.set(Some(n)));
    let result = work();
    LEFT.with(|left| left.set(None));
    result
}

fn content(list: &PageList) -> (Vec<pagelist::Run>, u64, u64, usize) {
    let runs = list.runs(0, list.limit()).unwrap().collect();
    let bytes = list.heap_allocation_bytes();
    (runs, list.page_count(), list.marker_count(), bytes)
}

/// Pages, single markers, long intervals, and enough slabs to split blocks.
fn furnished() -> PageList {
    let mut list = PageList::new();
    list.insert_frames(0x1000, FrameId::new(0), 100).unwrap();
    list.mark(1 << 30, 2 << 30, |_, _| {}).unwrap();
    list.mark(0x10_0000, 0x10_1000, |_, _| {}).unwrap();
    for i in 0..62 {
        let offset = (16 << 30) + i * (4 << 30);
        let frame = FrameId::new(1000 + i as u32);
        let old = list.insert(offset, PageOrMarker::page(frame)).unwrap();
        assert!(old.is_empty());
    }
    list
}

/// Runs an operation with 0, 1, 2 … allocations until it succeeds, checking that
/// it changes nothing until then. Returns how many it took.
fn fails_cleanly<E: std::fmt::Debug>(
    make: impl Fn() -> PageList,
    mut operation: impl FnMut(&mut PageList) -> Result<(), E>,
    is_out_of_memory: impl Fn(&E) -> bool,
) -> usize {
    for n in 0.. {
        let mut list = make();
        let before = content(&list);
        let result = with_allocations(n, || operation(&mut list));
        let done = result.is_ok();
        if let Err(error) = result {
            assert!(is_out_of_memory(&error), "{error:?}");
            // Blocks that were split stay so, and the root may have been given
            // room that is not used yet.
            let after = content(&list);
            assert_eq!(
                (&after.0, after.1, after.2),
                (&before.0, before.1, before.2)
            );
            assert!(after.3 <= before.3 + 8192, "{} after {}", after.3, before.3);
        }
        list.remove_all_pages(|_| {});
        assert_eq!(list.heap_allocation_bytes(), 0);
        if done {
            return n;
        }
    }
    unreachable!()
}

const EVERYWHERE: [u64; 6] = [
    0,
    0x7f_f000,
    (1 << 30) + 0x5000,
    3 << 30,
    (17 << 30) + 0x1000,
    1 << 50,
];

#[test]
fn insert_without_memory_hands_the_entry_back_and_changes_nothing() {
    for offset in EVERYWHERE {
        let taken = fails_cleanly(
            furnished,
            |list| {
                let entry = PageOrMarker::page(FrameId::new(7));
                match list.insert(offset, entry) {
                    Ok(old) => {
                        assert_eq!(old.take_frame(), None);
                        Ok(())
                    }
                    Err(error) => {
                        let reason = error.reason();
                        assert_eq!(error.into_entry().take_frame(), Some(FrameId::new(7)));
                        Err(reason)
                    }
                }
            },
            |error| *error == SlotError::OutOfMemory(offset),
        );
        assert!(taken <= 3, "{taken} allocations for one page");
    }
    let taken = fails_cleanly(
        PageList::new,
        |list| drop_guard(list.lookup_or_allocate(0)),
        |error| *error == SlotError::OutOfMemory(0),
    );
    assert_eq!(taken, 3, "slab, block and root of the first page");
}

fn drop_guard(guard: Result<pagelist::SlotGuard<'_>, SlotError>) -> Result<(), SlotError> {
    guard.map(drop)
}

#[test]
fn frames_in_bulk_are_stored_all_or_none() {
    for offset in [0x80_0000, (1 << 30) + 0x5000, 3 << 30] {
        let taken = fails_cleanly(
            furnished,
            |list| list.insert_frames(offset, FrameId::new(5000), 5000),
            |error| matches!(error, InsertFramesError::OutOfMemory { start, .. } if *start == offset),
        );
        assert!(taken >= 78, "one slab for 64 pages at least, not {taken}");
    }
}

#[test]
fn marking_and_clearing_without_memory_change_nothing() {
    let ranges = [
        (0x8000, 3 << 30),
        ((1 << 30) + 0x5000, (1 << 30) + 0x6000),
        ((1 << 30) + 0x5000, (1 << 30) + 0x900_0000),
        (3 << 30, 5 << 30),
    ];
    for (start, end) in ranges {
        let out = EditError::OutOfMemory { start, end };
        fails_cleanly(
            furnished,
            |list| list.mark(start, end, |_, _| {}),
            |error| *error == out,
        );
        fails_cleanly(
            furnished,
            |list| list.clear(start, end, |_, _| {}),
            |error| *error == out,
        );
        fails_cleanly(
            furnished,
            |list| {
                let mut splice = list.take_pages(start, end - start)?;
                splice.free_all(|_| {});
                Ok::<_, EditError>(())
            },
            |error| *error == out,
        );
    }
}

#[test]
fn taking_a_page_out_of_an_interval_without_memory_is_an_error() {
    let offset = (1 << 30) + 0x500_0000;
    let taken = fails_cleanly(
        furnished,
        |list| {
            list.try_remove_page(offset)
                .map(|old| assert_eq!(old.view(), SlotRef::Marker))
        },
        |error| *error == SlotError::OutOfMemory(offset),
    );
    assert!(taken >= 1);
    let taken = fails_cleanly(
        furnished,
        |list| {
            list.remove_pages(offset, offset + 2 * PAGE_SIZE, |_, entry| {
                assert!(entry.take().is_marker());
                Ok::<_, ()>(Visit::Next)
            })
        },
        |error| matches!(error, RemovePagesError::OutOfMemory { .. }),
    );
    assert!(taken >= 1);
}

#[test]
fn what_cannot_fail_allocates_nothing() {
    let mut list = furnished();
    with_allocations(0, || {
        assert_eq!(list.lookup(1 << 50), None);
        assert_eq!(list.get((1 << 30) + 0x5000), SlotRef::Marker);
        assert_eq!(
            list.iter().filter(|(_, s)| s.frame().is_some()).count(),
            162
        );
        let mut cursor = list.cursor();
        assert!(cursor.get(0x2000).frame().is_some());
        assert!(list.remove_page(0x2000).take_frame().is_some());
        assert!(list.remove_page(0x10_0000).is_marker());
        let moved = std::mem::take(&mut list);
        list = moved;
        list.remove_all_pages(|_| {});
    });
    assert_eq!(list.heap_allocation_bytes(), 0);
}

#[test]
fn merges_allocate_nothing_at_any_shift() {
    for skew in [0, 0x5000] {
        for node in [0, 1, 3, 4, 70, 16384, 3 * 16384 + 1] {
            for striped in [false, true] {
                let mut parent = furnished();
                let mut child = PageList::new();
                child.initialize_skew(0, skew).unwrap();
                let offset = node * 0x10000 + skew;
                for i in 0..200 {
                    let at = if striped { i * 0x21_0000 } else { i << 34 };
                    let entry = PageOrMarker::page(FrameId::new(9000 + i as u32));
                    assert!(child.insert(at, entry).unwrap().is_empty());
                }
                child.mark(1 << 29, 1 << 31, |_, _| {}).unwrap();
                let end = if striped { 200 << 30 } else { parent.limit() };
                let pages = |list: &PageList| -> Vec<(u64, SlotRef)> {
                    list.iter().filter(|(_, s)| s.frame().is_some()).collect()
                };
                let own = pages(&child);
                let mut expected: BTreeMap<u64, SlotRef> = own.iter().copied().collect();
                for (from, slot) in pages(&parent) {
                    if (offset..end).contains(&from) && child.get(from - offset).is_empty() {
                        expected.insert(from - offset, slot);
                    }
                }
                with_allocations(0, || {
                    child
                        .merge_from(&mut parent, offset, end, |_, _| {}, |_, page| page)
                        .unwrap();
                });
                assert_eq!(parent.heap_allocation_bytes(), 0);
                child.check_invariants();
                assert!(pages(&child).into_iter().eq(expected));
                child.remove_all_pages(|_| {});
            }
        }
    }
}

/// Merging many lists one after the other, with no insertion between that could
/// give the root more room, chains blocks; everything still works.
#[test]
fn a_list_of_chained_blocks_is_a_list_like_any_other() {
    let mut all = PageList::new();
    for part in 0..40_u64 {
        let mut list = PageList::new();
        for i in 0..64 {
            let page = part * 64 + i;
            let entry = PageOrMarker::page(FrameId::new(page as u32));
            assert!(list.insert(page * 0x100_0000, entry).unwrap().is_empty());
        }
        with_allocations(0, || list.merge_onto(&mut all, |_, _| {}).unwrap());
        all.check_invariants();
    }
    assert_eq!(all.page_count(), 40 * 64);
    for page in 0..40 * 64 {
        let frame = SlotRef::Page(FrameId::new(page as u32));
        assert_eq!(all.get(page * 0x100_0000), frame);
        assert_eq!(all.get(page * 0x100_0000 + PAGE_SIZE), SlotRef::Empty);
    }
    assert!(all.iter().map(|(offset, _)| offset).is_sorted());
    assert_eq!(all.iter().count(), 40 * 64);
    // Every third page goes, then one comes, which needs the root to grow.
    for page in (0..40 * 64).step_by(3) {
        let old = all.remove_page(page * 0x100_0000);
        assert_eq!(old.take_frame(), Some(FrameId::new(page as u32)));
    }
    all.check_invariants();
    let before = content(&all);
    let refused = with_allocations(1, || {
        all.insert(0x1000_1000, PageOrMarker::marker())
            .map(|_| ())
            .map_err(|error| error.reason())
    });
    if refused.is_err() {
        assert_eq!(content(&all), before);
    }
    assert!(
        all.insert(1 << 45, PageOrMarker::marker())
            .unwrap()
            .is_empty()
    );
    for page in 0..40 * 64 {
        let expected = match page % 3 {
            0 => SlotRef::Empty,
            _ => SlotRef::Page(FrameId::new(page as u32)),
        };
        assert_eq!(all.get(page * 0x100_0000), expected);
    }
    all.check_invariants();
    for page in (0..40 * 64).rev() {
        let _: Option<FrameId> = all.remove_page(page * 0x100_0000).take_frame();
    }
    assert_eq!(all.page_count(), 0);
    all.remove_all_pages(|_| {});
}
