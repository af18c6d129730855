//! Rules 1 to 16, what a list is and holds, each by a test named as its sentence.

#![expect(
    clippy::cast_possible_truncation,
    clippy::single_range_in_vec_init,
    reason = "a failure here is a failed test, the numbers are small, one gap is one gap"
)]

mod common;

use common::{P, drain, frame, list_of, offsets, page, put};
use pagelist::{
    EditError, InsertFramesError, MAX_SIZE, NODE_SPAN, PageList, PageOrMarker, RangeError,
    SkewError, SlotError, SlotRef, Visit,
};

#[test]
fn rule_01_a_slot_is_empty_a_page_or_a_marker() {
    let mut list = PageList::new();
    assert_eq!(list.get(0), SlotRef::Empty);
    put(&mut list, 0, page(1));
    assert_eq!(list.get(0), SlotRef::Page(frame(1)));
    put(&mut list, P, PageOrMarker::marker());
    assert_eq!(list.get(P), SlotRef::Marker);
    assert_eq!(drain(list), [1]);
}

#[test]
fn rule_02_an_entry_is_moved_not_copied_and_what_was_there_comes_back() {
    let mut list = list_of(&[(0, 1)]);
    let old = list.insert(0, page(2)).unwrap();
    assert_eq!(old.take_frame(), Some(frame(1)));
    assert!(list.insert(P, PageOrMarker::marker()).unwrap().is_empty());
    assert!(list.insert(P, page(3)).unwrap().is_marker());
    assert_eq!(list.remove_page(P).take_frame(), Some(frame(3)));
    assert_eq!(list.get(P), SlotRef::Empty);
    assert_eq!(drain(list), [2]);
}

#[cfg(all(debug_assertions, feature = "std"))]
#[test]
fn rule_02_dropping_what_still_owns_a_frame_is_caught() {
    let caught = |drop_it: fn()| std::panic::catch_unwind(drop_it).is_err();
    assert!(caught(|| drop(list_of(&[(0, 1)]))));
    assert!(caught(|| drop(page(1))));
    assert!(caught(|| {
        let splice = pagelist::PageSpliceList::from_frames(0, P, vec![frame(1)]);
        drop(splice.unwrap());
    }));
    // While unwinding already, it must not panic again: that would abort.
    assert!(caught(|| {
        let _list = list_of(&[(0, 1)]);
        panic!("the first panic");
    }));
}

#[test]
fn rule_03_a_marker_is_content_but_no_page() {
    let mut list = PageList::new();
    put(&mut list, 5 * P, PageOrMarker::marker());
    assert!(!list.is_empty());
    assert!(list.has_no_pages());
    assert!(list.any_pages_in_range(0, 6 * P).unwrap());
    assert!(!list.any_pages_in_range(0, 5 * P).unwrap());
    assert_eq!(offsets(&list), [5 * P]);
    assert_eq!((list.page_count(), list.marker_count()), (0, 1));
}

#[test]
fn rule_04_one_page_of_bookkeeping_costs_four_bytes_and_little_more() {
    let mut list = PageList::new();
    list.insert_frames(0, frame(0), 1 << 16).unwrap();
    let bytes = list.heap_allocation_bytes() as f64 / f64::from(1 << 16);
    assert!(bytes <= 5.0, "{bytes} bytes a page");
    list.remove_all_pages(|_| {});
    // And in any order of insertion.
    let mut at = 1;
    for i in 0..1 << 16 {
        put(&mut list, at % 65537 % (1 << 16) * P, page(i));
        at = at * 3 % 65537; // 3 generates all of 1..65537
    }
    let bytes = list.heap_allocation_bytes() as f64 / f64::from(1 << 16);
    assert!(bytes <= 5.0, "{bytes} bytes a page");
    list.remove_all_pages(|_| {});
}

#[test]
fn rule_05_nodes_exist_only_where_something_is_stored() {
    let list = list_of(&[(3, 1), (100, 2)]);
    assert_eq!(list.lookup(4 * P), Some(SlotRef::Empty));
    assert_eq!(list.lookup(16 * P), None);
    assert_eq!(list.lookup(99 * P), Some(SlotRef::Empty));
    drain(list);
    let mut list = PageList::new();
    for i in 0..1024 {
        put(&mut list, i << 30, page(i as u32));
    }
    assert!(list.heap_allocation_bytes() < 1 << 20);
    drain(list);
}

#[test]
fn rule_06_the_last_usable_page_is_below_max_size_and_nothing_wraps() {
    let mut list = PageList::new();
    let last = 0xFFFF_FFFF_FFFD_F000;
    assert_eq!(last, MAX_SIZE - P);
    put(&mut list, last, page(1));
    let past = list.insert(last + P, PageOrMarker::marker()).unwrap_err();
    let limit = MAX_SIZE;
    assert_eq!(
        past.reason(),
        SlotError::PastLimit {
            offset: last + P,
            limit
        }
    );
    assert_eq!(list.get(u64::MAX), SlotRef::Empty);
    assert_eq!(list.get(u64::MAX - P + 1), SlotRef::Empty);
    list.mark(0, last, |_, _| {}).unwrap();
    assert_eq!(list.marker_count(), last / P);
    assert_eq!(list.get(last), SlotRef::Page(frame(1)));
    let result = list.insert_frames(last, frame(2), 2);
    assert!(matches!(
        result,
        Err(InsertFramesError::Range(RangeError::PastLimit { .. }))
    ));
    let result = list.insert_frames(P, frame(2), u64::MAX);
    assert!(matches!(
        result,
        Err(InsertFramesError::Range(RangeError::PastLimit { .. }))
    ));
    assert!(list.take_pages(P, u64::MAX - P + 1).is_err());
    drain(list);

    let mut skewed = PageList::new();
    skewed.initialize_skew(0, 15 * P).unwrap();
    put(&mut skewed, MAX_SIZE - 16 * P, page(1));
    assert!(skewed.insert(MAX_SIZE - 15 * P, page(2)).is_err_and(|e| {
        let refused = matches!(e.reason(), SlotError::PastLimit { .. });
        e.into_entry().take_frame() == Some(frame(2)) && refused
    }));
    for wrapping in (0..15).map(|i| (u64::MAX - i * P) & !(P - 1)) {
        assert_eq!(skewed.get(wrapping), SlotRef::Empty);
    }
    drain(skewed);
}

#[test]
fn rule_07_bad_offsets_come_back_as_errors_that_name_the_value() {
    let mut list = PageList::new();
    let unaligned = RangeError::Unaligned(0x123);
    let reversed = RangeError::Reversed { start: P, end: 0 };
    assert_eq!(list.range(0x123, P).err(), Some(unaligned));
    assert_eq!(list.runs(0, 0x123).err(), Some(unaligned));
    assert_eq!(list.gaps(P, 0).err(), Some(reversed));
    assert_eq!(list.any_pages_in_range(P, 0), Err(reversed));
    assert_eq!(list.mark(P, 0, |_, _| {}), Err(EditError::Range(reversed)));
    assert_eq!(
        list.clear(0, 0x123, |_, _| {}),
        Err(EditError::Range(unaligned))
    );
    assert_eq!(
        list.take_pages(0, 0x123).err(),
        Some(EditError::Range(unaligned))
    );
    assert_eq!(
        list.lookup_or_allocate(0x123).err(),
        Some(SlotError::Unaligned(0x123))
    );
    let past = RangeError::PastLimit {
        end: MAX_SIZE + P,
        limit: MAX_SIZE,
    };
    assert_eq!(list.range(0, MAX_SIZE + P).err(), Some(past));
    assert!(past.to_string().contains("0xfffffffffffe1000"));
    assert!(unaligned.to_string().contains("0x123"));
    assert_eq!(list.lookup(0x123), None);
    assert!(list.remove_page(0x123).is_empty());
    assert_eq!(list.heap_allocation_bytes(), 0);
}

#[test]
fn rule_08_lists_of_one_tree_agree_on_slot_index() {
    let mut child = PageList::new();
    child.initialize_skew(0x3000, 0x1_f000).unwrap();
    assert_eq!(child.skew(), 0x2000);
    // A node ends where the parent's does: 14 pages from the child's start.
    put(&mut child, 13 * P, PageOrMarker::marker());
    assert_eq!(child.lookup(0), Some(SlotRef::Empty));
    assert_eq!(child.lookup(14 * P), None);
    assert_eq!(
        child.initialize_skew(0, 0),
        Err(SkewError::NotEmpty(1)),
        "wants an empty list"
    );
    drain(child);
    let mut list = PageList::new();
    assert_eq!(
        list.initialize_skew(0, 0x10),
        Err(SkewError::Unaligned(0x10))
    );
    assert_eq!(list.initialize_skew(0, NODE_SPAN), Ok(()));
    assert_eq!(list.skew(), 0);
}

#[test]
fn rule_09_no_node_is_left_wholly_empty() {
    let mut list = PageList::new();
    drop(list.lookup_or_allocate(0x5000).unwrap());
    assert_eq!(list.heap_allocation_bytes(), 0);
    put(&mut list, 0, page(1));
    put(&mut list, 1 << 30, PageOrMarker::marker());
    let with_both = list.heap_allocation_bytes();
    assert!(list.remove_page(1 << 30).is_marker());
    assert!(list.heap_allocation_bytes() < with_both);
    assert_eq!(list.lookup(1 << 30), None);
    assert_eq!(list.remove_page(0).take_frame(), Some(frame(1)));
    assert_eq!(list.heap_allocation_bytes(), 0);
}

#[test]
fn rule_10_lookup_gives_none_where_the_node_is_absent() {
    let list = list_of(&[(20, 1)]);
    assert_eq!(list.lookup(20 * P), Some(SlotRef::Page(frame(1))));
    assert_eq!(list.lookup(21 * P), Some(SlotRef::Empty));
    assert_eq!(list.lookup(15 * P), None);
    assert_eq!(list.lookup(32 * P), None);
    drain(list);
}

#[test]
fn rule_11_lookup_or_allocate_gives_a_slot_for_writing() {
    let mut list = PageList::new();
    let slot = list.lookup_or_allocate(7 * P).unwrap();
    assert_eq!(slot.view(), SlotRef::Empty);
    assert!(slot.set(page(4)).is_empty());
    let slot = list.lookup_or_allocate(7 * P).unwrap();
    assert_eq!(slot.set(page(5)).take_frame(), Some(frame(4)));
    assert!(matches!(
        list.lookup_or_allocate(MAX_SIZE),
        Err(SlotError::PastLimit { .. })
    ));
    assert_eq!(drain(list), [5]);
}

#[test]
fn rule_12_remove_page_hands_out_what_is_there_and_leaves_empty() {
    let mut list = list_of(&[(1, 9)]);
    put(&mut list, 2 * P, PageOrMarker::marker());
    assert_eq!(list.remove_page(P).take_frame(), Some(frame(9)));
    assert!(list.remove_page(2 * P).is_marker());
    assert!(list.remove_page(2 * P).is_empty());
    assert!(list.is_empty());
}

#[test]
fn rule_13_remove_all_pages_is_ascending_and_the_skew_stays() {
    let mut list = PageList::new();
    list.initialize_skew(0, 0x4000).unwrap();
    for (at, n) in [(1 << 40, 3), (0, 1), (77, 2)] {
        put(&mut list, at * P, page(n));
    }
    list.mark(100 * P, 1 << 30, |_, _| {}).unwrap();
    let mut frames = Vec::new();
    list.remove_all_pages(|frame| frames.push(frame.index()));
    assert_eq!(frames, [1, 2, 3]);
    assert!(list.is_empty());
    assert_eq!(list.skew(), 0x4000);
}

#[test]
fn rule_14_has_no_pages_allows_markers_and_is_empty_does_not() {
    let mut list = PageList::new();
    assert!(list.is_empty() && list.has_no_pages());
    list.mark(0, 4 * P, |_, _| {}).unwrap();
    assert!(!list.is_empty() && list.has_no_pages());
    put(&mut list, 9 * P, page(1));
    assert!(!list.is_empty() && !list.has_no_pages());
    drain(list);
}

#[test]
fn rule_15_a_walk_shows_every_slot_that_is_not_empty_and_a_stop_is_a_success() {
    let mut list = list_of(&[(3, 1), (1 << 30, 2)]);
    put(&mut list, 40 * P, PageOrMarker::marker());
    let mut seen = Vec::new();
    let result: Result<(), ()> = list.for_every_page(|offset, slot| {
        seen.push((offset / P, slot));
        Ok(Visit::Next)
    });
    assert_eq!(result, Ok(()));
    assert_eq!(
        seen,
        [
            (3, SlotRef::Page(frame(1))),
            (40, SlotRef::Marker),
            (1 << 30, SlotRef::Page(frame(2)))
        ]
    );
    let mut calls = 0;
    let result = list.for_every_page_in_range(3 * P, 3 * P, |_, _| {
        calls += 1;
        Ok::<_, ()>(Visit::Next)
    });
    assert!(result.is_ok() && calls == 0);
    let result = list.for_every_page_in_range(0, 50 * P, |_, _| {
        calls += 1;
        Ok::<_, ()>(Visit::Stop)
    });
    assert!(result.is_ok() && calls == 1);
    drain(list);
}

#[test]
fn rule_16_remove_pages_frees_nodes_also_where_it_stopped_or_failed() {
    for answer in [Ok(Visit::Stop), Err("no")] {
        let mut list = list_of(&[(0, 1), (1000, 2), (2000, 3)]);
        let before = list.heap_allocation_bytes();
        let result = list.remove_pages(0, 3000 * P, |offset, entry| {
            assert!(entry.take().take_frame().is_some());
            if offset == 1000 * P {
                answer
            } else {
                Ok(Visit::Next)
            }
        });
        assert_eq!(result.is_err(), answer.is_err());
        assert_eq!(offsets(&list), [2000 * P]);
        assert_eq!(list.lookup(1000 * P), None);
        assert!(list.heap_allocation_bytes() < before);
        drain(list);
    }
}

#[test]
fn rule_16_taking_an_interval_page_by_page_leaves_one_gap() {
    let mut list = PageList::new();
    list.mark(0, 1 << 30, |_, _| {}).unwrap();
    let before = list.heap_allocation_bytes();
    list.remove_pages(0x100_0000, 0x3000_0000, |_, entry| {
        assert!(entry.take().is_marker());
        Ok::<_, ()>(Visit::Next)
    })
    .unwrap();
    let gaps: Vec<_> = list.gaps(0, 1 << 30).unwrap().collect();
    assert_eq!(gaps, [0x100_0000..0x3000_0000]);
    assert!(list.heap_allocation_bytes() <= before + 4 * 272);
    drain(list);
}
