//! Rules 17 to 25, walks, merges, splices and intervals, each by a test named as its
//! sentence.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::single_range_in_vec_init,
    reason = "a failure here is a failed test, the numbers are small, one gap is one gap"
)]

mod common;

use common::{P, drain, frame, list_of, offsets, page, put};
use pagelist::{
    FrameId, FramesErrorKind, MAX_SIZE, MergeError, PageList, PageOrMarker, PageSpliceList, Run,
    RunKind, SlotRef, Visit,
};

/// What rules 17 and 18 say, for a fill pattern of four pages: bit i of `pages`
/// is a page at i, and callback number `stop` stops or fails.
fn expected_pages_and_gaps(pages: u32, stop: usize) -> Vec<(char, u64, u64)> {
    let mut events = Vec::new();
    let mut at = 0;
    for i in (0..4).filter(|i| pages >> i & 1 == 1) {
        if at < i {
            events.push(('g', at, i));
        }
        events.push(('p', i, i + 1));
        at = i + 1;
    }
    if at < 4 {
        events.push(('g', at, 4));
    }
    events.truncate(stop + 1);
    events
}

#[test]
fn rule_17_pages_and_gaps_come_interleaved_for_every_pattern_and_every_stop() {
    for base in [0, 14, 62, (1 << 30) + 4094] {
        for pages in 0..16 {
            let fill: Vec<_> = (0..4).filter(|i| pages >> i & 1 == 1).collect();
            let list = list_of(
                &fill
                    .iter()
                    .map(|&i| (base + i, i as u32))
                    .collect::<Vec<_>>(),
            );
            for stop in 0..9 {
                for fails in [false, true] {
                    let events = std::cell::RefCell::new(Vec::new());
                    let event = |kind, start: u64, end: u64| {
                        let mut events = events.borrow_mut();
                        events.push((kind, start / P - base, end / P - base));
                        match (events.len() > stop, fails) {
                            (false, _) => Ok(Visit::Next),
                            (true, false) => Ok(Visit::Stop),
                            (true, true) => Err(events.len()),
                        }
                    };
                    let result = list.for_every_page_and_gap_in_range(
                        base * P,
                        (base + 4) * P,
                        |offset, _| event('p', offset, offset + P),
                        |start, end| event('g', start, end),
                    );
                    let events = events.into_inner();
                    assert_eq!(events, expected_pages_and_gaps(pages, stop), "{pages:04b}");
                    assert_eq!(result.is_err(), fails && events.len() > stop);
                }
            }
            drain(list);
        }
    }
}

#[test]
fn rule_17_an_empty_list_has_exactly_one_gap() {
    let list = PageList::new();
    let gaps: Vec<_> = list.gaps(P, 1 << 40).unwrap().collect();
    assert_eq!(gaps, [P..1 << 40]);
    assert_eq!(list.gaps(P, P).unwrap().count(), 0);
}

/// The events of rule 18 for a pattern of four slots (0 empty, 1 page, 2 marker),
/// pages wanted, page call number `stop` answering something else than Next.
fn expected_runs(pattern: [u32; 4], stop: usize) -> Vec<(char, u64, u64)> {
    let mut events = Vec::new();
    let mut open = None;
    let mut calls = 0;
    for i in 0..4_u64 {
        if pattern[i as usize] == 1 {
            events.push(('p', i, i + 1));
            open = open.or(Some(i));
            calls += 1;
            if calls > stop {
                events.push(('r', open.take().unwrap(), i + 1));
                return events;
            }
        } else if let Some(start) = open.take() {
            events.push(('r', start, i));
        }
    }
    if let Some(start) = open {
        events.push(('r', start, 4));
    }
    events
}

#[test]
fn rule_18_runs_are_delivered_once_for_every_pattern_and_every_stop() {
    for base in [0, 13, 63, 4095] {
        for code in 0..81_u32 {
            let pattern = [code % 3, code / 3 % 3, code / 9 % 3, code / 27];
            let mut list = PageList::new();
            for (i, kind) in pattern.iter().enumerate() {
                let offset = (base + i as u64) * P;
                match kind {
                    1 => put(&mut list, offset, page(i as u32)),
                    2 => put(&mut list, offset, PageOrMarker::marker()),
                    _ => {}
                }
            }
            for stop in 0..5 {
                for fails in [false, true] {
                    let events = std::cell::RefCell::new(Vec::new());
                    let mut calls = 0;
                    let result = list.for_every_page_and_contiguous_run_in_range(
                        base * P,
                        (base + 4) * P,
                        |_, slot| slot.frame().is_some(),
                        |offset, _| {
                            let at = offset / P - base;
                            events.borrow_mut().push(('p', at, at + 1));
                            calls += 1;
                            match (calls > stop, fails) {
                                (false, _) => Ok(Visit::Next),
                                (true, false) => Ok(Visit::Stop),
                                (true, true) => Err("page"),
                            }
                        },
                        |start, end| {
                            let run = ('r', start / P - base, end / P - base);
                            events.borrow_mut().push(run);
                            Ok(Visit::Next)
                        },
                    );
                    assert_eq!(events.into_inner(), expected_runs(pattern, stop));
                    assert_eq!(result.is_err(), fails && calls > stop);
                }
            }
            drain(list);
        }
    }
}

#[test]
fn rule_18_a_stop_or_an_error_of_run_ends_the_walk_after_one_call() {
    let list = list_of(&[(0, 0), (1, 1), (3, 3)]);
    for answer in [Ok(Visit::Stop), Err("run")] {
        let mut runs = Vec::new();
        let mut pages = 0;
        let result = list.for_every_page_and_contiguous_run_in_range(
            0,
            10 * P,
            |_, _| true,
            |_, _| {
                pages += 1;
                Ok(Visit::Next)
            },
            |start, end| {
                runs.push(start..end);
                answer
            },
        );
        assert_eq!(runs, [0..2 * P]);
        assert_eq!(pages, 2);
        assert_eq!(result.is_err(), answer.is_err());
    }
    // An error of `run` wins over one of `page`.
    let result = list.for_every_page_and_contiguous_run_in_range(
        0,
        10 * P,
        |_, _| true,
        |_, _| Err("page"),
        |_, _| Err("run"),
    );
    assert_eq!(result, Err(pagelist::WalkError::Callback("run")));
    drain(list);
}

#[test]
fn rule_19_iterators_and_the_cursor_tell_the_same() {
    let mut list = list_of(&[(0, 10), (1, 11), (2, 13), (70, 5)]);
    list.mark(4 * P, 6 * P, |_, _| {}).unwrap();
    assert_eq!(offsets(&list), [0, P, 2 * P, 4 * P, 5 * P, 70 * P]);
    let run = |start: u64, end: u64, kind| Run {
        start: start * P,
        end: end * P,
        kind,
    };
    let frames = |n| RunKind::Frames { first: frame(n) };
    let runs: Vec<_> = list.runs(0, 1 << 30).unwrap().collect();
    assert_eq!(
        runs,
        [
            run(0, 2, frames(10)),
            run(2, 3, frames(13)),
            run(4, 6, RunKind::Marker),
            run(70, 71, frames(5))
        ]
    );
    let mut cursor = list.cursor();
    for at in (0..100).chain((0..100).rev()) {
        assert_eq!(cursor.get(at * P), list.get(at * P));
    }
    drain(list);
}

#[test]
fn rule_20_and_21_the_tables_of_both_merges() {
    let entries = [
        || PageOrMarker::empty(),
        || PageOrMarker::marker(),
        || page(1),
    ];
    for (receiver_is, make_receiver) in entries.iter().enumerate() {
        for (source_is, make_source) in entries.iter().enumerate() {
            let lists = || {
                let mut receiver = PageList::new();
                let mut source = PageList::new();
                put(&mut receiver, P, make_receiver());
                let entry = match make_source().take_frame() {
                    Some(_) => page(2),
                    None => make_source(),
                };
                put(&mut source, P, entry);
                (receiver, source)
            };
            let (empty, marker) = (SlotRef::Empty, SlotRef::Marker);
            let (one, two) = (SlotRef::Page(frame(1)), SlotRef::Page(frame(2)));

            let (mut child, mut parent) = lists();
            let mut released = Vec::new();
            let result = child.merge_from(
                &mut parent,
                0,
                MAX_SIZE,
                |_, frame| released.push(frame.index()),
                |_, entry| entry,
            );
            result.unwrap();
            let expected = [
                [(empty, 0), (marker, 0), (two, 0)],
                [(marker, 0), (marker, 0), (marker, 2)],
                [(one, 0), (one, 0), (one, 2)],
            ][receiver_is][source_is];
            let from = (child.get(P), released.first().copied().unwrap_or(0));
            assert_eq!(from, expected, "from: {receiver_is} under {source_is}");
            assert!(parent.is_empty());
            drain(child);

            let (mut receiver, mut source) = lists();
            let mut released = Vec::new();
            let result = source.merge_onto(&mut receiver, |_, frame| released.push(frame.index()));
            result.unwrap();
            let expected = [
                [(empty, 0), (marker, 0), (two, 0)],
                [(marker, 0), (marker, 0), (two, 0)],
                [(one, 0), (marker, 1), (two, 1)],
            ][receiver_is][source_is];
            let onto = (receiver.get(P), released.first().copied().unwrap_or(0));
            assert_eq!(onto, expected, "onto: {receiver_is} under {source_is}");
            assert!(source.is_empty());
            drain(receiver);
        }
    }
}

#[test]
fn rule_20_merge_from_needs_a_skew_that_fits_for_all_16_by_16_pairs() {
    for parent_skew in 0..16 {
        for child_skew in 0..16 {
            for at in 0..32 {
                let mut parent = PageList::new();
                parent.initialize_skew(0, parent_skew * P).unwrap();
                for i in 0..40 {
                    put(&mut parent, i * P, page(i as u32));
                }
                let mut child = PageList::new();
                child.initialize_skew(0, child_skew * P).unwrap();
                put(&mut child, 3 * P, page(100));
                let mut released = Vec::new();
                let result = child.merge_from(
                    &mut parent,
                    at * P,
                    38 * P,
                    |offset, frame| released.push((offset / P, frame.index())),
                    |_, entry| entry,
                );
                let wanted = (parent_skew + at) % 16;
                if wanted != child_skew {
                    let skews = MergeError::Skew {
                        wanted: wanted * P,
                        found: child_skew * P,
                    };
                    assert_eq!(result, Err(skews));
                    assert_eq!(parent.page_count(), 40, "unchanged");
                    drain(parent);
                    drain(child);
                    continue;
                }
                result.unwrap();
                for i in 0..40 {
                    let expected = match i {
                        3 => SlotRef::Page(frame(100)),
                        i if at + i < 38 => SlotRef::Page(frame((at + i) as u32)),
                        _ => SlotRef::Empty,
                    };
                    assert_eq!(child.get(i * P), expected);
                }
                let outside = (0..40).filter(|&i| i < at || i >= 38 || i == at + 3);
                let mut outside: Vec<_> = outside.map(|i| (i, i as u32)).collect();
                released.sort_unstable();
                outside.sort_unstable();
                assert_eq!(released, outside, "offsets are the parent's");
                drain(child);
            }
        }
    }
}

#[test]
fn rule_20_migrate_may_keep_a_page_or_leave_a_marker() {
    let mut parent = list_of(&[(0, 0), (1, 1), (2, 2)]);
    let mut child = PageList::new();
    let mut kept = Vec::new();
    child
        .merge_from(
            &mut parent,
            0,
            3 * P,
            |_, _| panic!("nothing to release"),
            |offset, entry| match offset / P {
                0 => entry,
                at => {
                    kept.push(entry.take_frame().unwrap().index());
                    match at {
                        1 => PageOrMarker::empty(),
                        _ => PageOrMarker::marker(),
                    }
                }
            },
        )
        .unwrap();
    assert_eq!(kept, [1, 2]);
    assert_eq!(child.get(0), SlotRef::Page(frame(0)));
    assert_eq!(child.get(P), SlotRef::Empty);
    assert_eq!(child.get(2 * P), SlotRef::Marker);
    assert_eq!((child.page_count(), child.marker_count()), (1, 1));
    drain(child);
}

#[test]
fn rule_21_merge_onto_needs_equal_skews_for_all_16_by_16_pairs() {
    for source_skew in 0..16 {
        for receiver_skew in 0..16 {
            let mut source = PageList::new();
            source.initialize_skew(0, source_skew * P).unwrap();
            put(&mut source, 20 * P, page(1));
            let mut receiver = PageList::new();
            receiver.initialize_skew(0, receiver_skew * P).unwrap();
            put(&mut receiver, 20 * P, page(2));
            let mut released = Vec::new();
            let result = source.merge_onto(&mut receiver, |at, frame| released.push((at, frame)));
            if source_skew == receiver_skew {
                result.unwrap();
                assert_eq!(released, [(20 * P, frame(2))]);
                assert_eq!(drain(receiver), [1]);
                assert_eq!(source.skew(), source_skew * P);
            } else {
                assert!(matches!(result, Err(MergeError::Skew { .. })));
                assert_eq!(drain(source), [1]);
                assert_eq!(drain(receiver), [2]);
            }
        }
    }
}

#[test]
fn rule_22_a_splice_list_gives_one_entry_for_each_position_once() {
    let mut list = list_of(&[(1, 1), (2, 2), (100, 3)]);
    list.mark(10 * P, 90 * P, |_, _| {}).unwrap();
    let mut splice = list.take_pages(2 * P, 96 * P).unwrap();
    assert_eq!(list.page_count(), 2);
    assert_eq!(list.marker_count(), 0);
    for at in 2..98 {
        assert!(!splice.is_done());
        let expected = match at {
            2 => SlotRef::Page(frame(2)),
            10..90 => SlotRef::Marker,
            _ => SlotRef::Empty,
        };
        let entry = splice.pop().unwrap();
        assert_eq!(entry.view(), expected, "position {at}");
        let _: Option<FrameId> = entry.take_frame();
    }
    assert!(splice.is_done());
    assert_eq!(splice.pop().unwrap_err().end, 98 * P);
    let splice = list.take_pages(5 * P, 0).unwrap();
    assert!(splice.is_done(), "length 0 is done at once");
    // A length of petabytes costs no more than what is stored.
    let mut splice = list.take_pages(0, 1 << 60).unwrap();
    assert_eq!(splice.page_count(), 2);
    splice.free_all(|_| {});
    assert!(list.is_empty());
}

#[test]
fn rule_23_from_frames_wants_one_frame_a_page_and_hands_them_back() {
    let frames = vec![frame(1), frame(2)];
    let refused = PageSpliceList::from_frames(0, 3 * P, frames).unwrap_err();
    let count = FramesErrorKind::Count {
        nr_frames: 2,
        len: 3 * P,
    };
    assert_eq!(refused.kind(), count);
    let frames = refused.into_frames();
    let mut splice = PageSpliceList::from_frames(P, 2 * P, frames).unwrap();
    assert_eq!(splice.next_offset(), P);
    assert_eq!(splice.pop().unwrap().take_frame(), Some(frame(1)));
    assert_eq!(splice.pop().unwrap().take_frame(), Some(frame(2)));
    assert!(splice.is_done());
    let past = PageSpliceList::from_frames(MAX_SIZE, P, vec![frame(1)]).unwrap_err();
    assert!(matches!(past.kind(), FramesErrorKind::Range(_)));
}

#[test]
fn rule_24_free_all_drains_a_splice_list() {
    let mut list = list_of(&[(0, 1), (1, 2), (50, 3)]);
    let mut splice = list.take_pages(0, 60 * P).unwrap();
    assert_eq!(splice.pop().unwrap().take_frame(), Some(frame(1)));
    let mut freed = Vec::new();
    splice.free_all(|frame| freed.push(frame.index()));
    assert_eq!(freed, [2, 3]);
    assert!(splice.is_done());
    assert!(list.is_empty());
}

#[test]
fn rule_25_a_run_of_markers_costs_two_slots_however_it_was_made() {
    let mut whole = PageList::new();
    whole.mark(0, 16 << 30, |_, _| {}).unwrap();
    assert_eq!(whole.marker_count(), 4 << 20);
    let two_slabs = whole.heap_allocation_bytes();
    assert!(two_slabs < 2048);

    // From pieces in any order, page by page, and filled up again.
    let mut pieces = PageList::new();
    for piece in [3, 0, 2, 1] {
        let start = piece * (4 << 30);
        pieces.mark(start, start + (4 << 30), |_, _| {}).unwrap();
    }
    let mut single = PageList::new();
    for i in (0..1000)
        .step_by(2)
        .chain((0..500).rev().map(|i| 2 * i + 1))
    {
        put(&mut single, i * P, PageOrMarker::marker());
    }
    single.mark(1000 * P, 16 << 30, |_, _| {}).unwrap();
    let mut refilled = PageList::new();
    refilled.mark(0, 16 << 30, |_, _| {}).unwrap();
    refilled.clear(1 << 30, 2 << 30, |_, _| {}).unwrap();
    assert!(refilled.remove_page(3 << 30).is_marker());
    put(&mut refilled, 5 << 30, page(1));
    assert_eq!(refilled.remove_page(5 << 30).take_frame(), Some(frame(1)));
    refilled.mark(1 << 30, 6 << 30, |_, _| {}).unwrap();
    for list in [pieces, single, refilled] {
        assert_eq!(list.heap_allocation_bytes(), two_slabs);
        let runs: Vec<_> = list.runs(0, MAX_SIZE).unwrap().collect();
        assert_eq!(runs.len(), 1, "one run in run walks");
        assert_eq!(runs[0].len_bytes(), 16 << 30);
        let walked = list.range(8 << 30, (8 << 30) + 5 * P).unwrap();
        assert_eq!(walked.count(), 5, "page by page in page walks");
    }
    drain(whole);
}

#[test]
fn rule_25_an_interval_is_split_by_a_write_and_closed_by_a_marker() {
    let mut list = PageList::new();
    list.mark(0, 1 << 30, |_, _| {}).unwrap();
    let middle = 0x1234_5000;
    assert!(list.insert(middle, page(7)).unwrap().is_marker());
    let kinds: Vec<_> = list
        .runs(0, MAX_SIZE)
        .unwrap()
        .map(|run| run.kind)
        .collect();
    let frames = RunKind::Frames { first: frame(7) };
    assert_eq!(kinds, [RunKind::Marker, frames, RunKind::Marker]);
    assert_eq!(list.get(middle - P), SlotRef::Marker);
    assert_eq!(list.get(middle + P), SlotRef::Marker);
    let old = list.insert(middle, PageOrMarker::marker()).unwrap();
    assert_eq!(old.take_frame(), Some(frame(7)));
    assert_eq!(list.runs(0, MAX_SIZE).unwrap().count(), 1);
    assert_eq!(list.remove_page(middle).view(), SlotRef::Marker);
    assert_eq!(list.get(middle), SlotRef::Empty);
    assert_eq!(list.marker_count(), (1 << 18) - 1);
    drain(list);
}
