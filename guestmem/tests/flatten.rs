//! Layers in many pieces are flattened: forks are the same and cost less, and
//! everything is counted.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::{Smaps, freeze, page_value, set_page};
use guestmem::{Backing, Flattened, Layer, PAGE_SIZE, PageIdx, Ram, RamLayout, Writers};

const PAGES: u64 = 16_384;

fn flatten(layer: &Layer, forks: u64) -> Flattened {
    let mut flattener = layer.flattener(forks);
    loop {
        match flattener.step().unwrap() {
            Flattened::Partly => {}
            end => return end,
        }
    }
}

fn root(nr_pages: u64) -> Ram {
    Ram::new(
        RamLayout::new(nr_pages * PAGE_SIZE).unwrap(),
        Backing::Memfd,
    )
    .unwrap()
}

/// Of a generation; no page twice.
fn page_of(generation: u64, index: u64) -> u64 {
    (generation * 3 + index) * 2_741 % PAGES
}

/// A VM whose first 2,000 pages were written, and then three more in each of
/// 600 generations, of which every second is kept.
fn deep() -> (Ram, Vec<Layer>) {
    let mut ram = root(PAGES);
    for page in 0..2_000 {
        set_page(&ram, page, page + 1);
    }
    let mut layers = vec![freeze(&mut ram)];
    for generation in 1..600 {
        for index in 0..3 {
            set_page(&ram, page_of(generation, index), generation << 32 | index);
        }
        let layer = freeze(&mut ram);
        if generation % 2 == 1 {
            layers.push(layer);
        }
    }
    (ram, layers)
}

fn contents(ram: &Ram) -> Vec<u64> {
    (0..PAGES).map(|page| page_value(ram, page)).collect()
}

#[test]
fn forks_of_a_deep_layer_are_the_same_after_it_is_flattened_and_need_no_copies() {
    let (ram, mut layers) = deep();
    let tree = Arc::clone(ram.tree());
    let layer = layers.pop().unwrap();
    let mut before = layer.fork().unwrap();
    let stats = before.stats().unwrap();
    assert_eq!(stats.mappings, 512);
    assert!(stats.window_copies > 1_000, "{stats:?}");
    let wanted = contents(&ram);
    assert_eq!(contents(&before), wanted);
    let frames = {
        drop(before);
        tree.reclaim().unwrap();
        tree.stats().unwrap().frames()
    };

    before = layer.fork().unwrap();
    assert_eq!(flatten(&layer, 2), Flattened::Done);
    tree.check_invariants();
    let copied = layer.own_pages().unwrap();
    let copied: u64 = copied.iter().map(|run| run.end.0 - run.start.0).sum();
    tree.reclaim().unwrap();
    assert_eq!(tree.stats().unwrap().frames(), frames + copied);
    let after = layer.fork().unwrap();
    let stats = after.stats().unwrap();
    assert!(
        stats.mappings <= 512 && stats.window_copies == 0,
        "{stats:?}"
    );
    assert_eq!(stats.attribution.pages(), frames_seen(&wanted));

    // With more forks it pays to copy longer runs, up to all of them.
    for (forks, most) in [(8, 2), (u64::MAX, 1)] {
        assert_eq!(flatten(&layer, forks), Flattened::Done);
        let more = layer.fork().unwrap().stats().unwrap();
        assert!(more.mappings <= most, "{forks} forks: {more:?}");
        assert_eq!(more.window_copies, 0);
    }
    assert_eq!(flatten(&layer, u64::MAX), Flattened::LeftAlone);
    let last = layer.fork().unwrap();
    let areas = Smaps::of(last.window().host_range()).areas;
    assert!(areas <= 3, "{areas} areas");

    for ram in [&before, &after, &last, &ram] {
        assert_eq!(contents(ram), wanted);
    }
    // Half a chain up nothing has changed.
    let half = layers[150].fork().unwrap();
    assert_eq!(page_value(&half, page_of(299, 1)), 299 << 32 | 1);
    assert_ne!(page_value(&half, page_of(599, 1)), 599 << 32 | 1);

    // When the others have gone, what was copied is the only copy.
    drop((layers, half, before, after, ram));
    tree.reclaim().unwrap();
    tree.check_invariants();
    assert_eq!(contents(&last), wanted);
    tree.reclaim().unwrap();
    assert_eq!(tree.stats().unwrap().frames(), frames_seen(&wanted));
    drop((last, layer));
    let stats = tree.stats().unwrap();
    assert_eq!(
        (stats.frames(), stats.committed_file_frames, stats.layers),
        (0, 0, 0)
    );
}

fn frames_seen(contents: &[u64]) -> u64 {
    contents.iter().filter(|value| **value != 0).count() as u64
}

#[test]
fn forks_of_a_flat_layer_are_reset_in_place_and_forks_of_before_move_once() {
    let (mut ram, mut layers) = deep();
    let layer = layers.pop().unwrap();
    let wanted = contents(&ram);
    assert!(ram.can_reset_to(&layer));
    assert_eq!(flatten(&layer, 2), Flattened::Done);
    assert!(!ram.can_reset_to(&layer), "its window shows the old frames");
    assert!(ram.reset(&layer).is_err());
    assert_eq!(contents(&ram), wanted);
    ram = layer.fork().unwrap();
    for round in 1..4 {
        for page in [3, page_of(400, 2), page_of(599, 0), PAGES - 1] {
            set_page(&ram, page, round);
        }
        assert!(ram.can_reset_to(&layer));
        assert_eq!(ram.reset(&layer).unwrap(), 4);
        assert_eq!(contents(&ram), wanted);
    }
    // Life goes on on top, and is flattened again.
    for page in 0..40 {
        set_page(&ram, 5 + 100 * page, 7);
        let next = freeze(&mut ram);
        layers.push(next);
    }
    let wanted = contents(&ram);
    let layer = layers.pop().unwrap();
    assert_eq!(flatten(&layer, 8), Flattened::Done);
    let fork = layer.fork().unwrap();
    assert_eq!(contents(&fork), wanted);
    assert_eq!(fork.stats().unwrap().window_copies, 0);
    let part = layer
        .clone_part(PageIdx(1_000), RamLayout::new(8 << 20).unwrap())
        .unwrap();
    let seen: Vec<u64> = (0..2_048).map(|page| page_value(&part, page)).collect();
    assert_eq!(seen, wanted[1_000..3_048]);
    ram.tree().check_invariants();
}

#[test]
fn a_hole_of_an_image_stays_zero_for_those_who_have_mapped_it() {
    const FEW: u64 = 1_200;
    let mut ram = root(FEW);
    // Two pages far apart, which lie elsewhere in the file.
    set_page(&ram, 0, 1);
    let _first = freeze(&mut ram);
    set_page(&ram, 100, 2);
    let _second = freeze(&mut ram);
    set_page(&ram, 1_100, 3);
    let layer = freeze(&mut ram);
    assert_eq!(flatten(&layer, u64::MAX), Flattened::Done);
    let tree = Arc::clone(ram.tree());
    let mut fork = layer.fork().unwrap();
    assert_eq!(fork.stats().unwrap().mappings, 1);
    for page in [0, 100, 1_100] {
        set_page(&fork, page, 9);
    }
    fork.settle(Writers::MayRun).unwrap();
    // Nobody holds a page of the image any more, but the fork has it mapped.
    drop(layer);
    tree.reclaim().unwrap();
    assert_eq!(tree.stats().unwrap().file_frames, 3);
    for page in 0..FEW {
        set_page(&ram, page, 10_000 + page);
    }
    let full = freeze(&mut ram);
    assert!((0..FEW).all(|page| page_value(&full.fork().unwrap(), page) == 10_000 + page));
    for page in 0..FEW {
        let wanted = if [0, 100, 1_100].contains(&page) {
            9
        } else {
            0
        };
        assert_eq!(page_value(&fork, page), wanted, "page {page}");
    }
    // What these reads have committed is given back, and the numbers are when
    // the fork has gone.
    tree.check_invariants();
    drop((fork, ram, full));
    tree.check_invariants();
}

#[test]
fn three_thousand_snapshots_that_are_flattened_and_go_leave_nothing_behind() {
    let mut ram = root(512);
    for page in 0..8 {
        set_page(&ram, page, page + 1);
    }
    let tree = Arc::clone(ram.tree());
    let mut steady = None;
    for round in 0..3_000 {
        for index in 0..20 {
            set_page(&ram, (round * 7 + index * 13) % 512, round);
        }
        let layer = freeze(&mut ram);
        flatten(&layer, u64::MAX);
        let fork = layer.fork().unwrap();
        match round % 3 {
            0 => ram = fork,
            _ => drop(fork),
        }
        drop(layer);
        if round % 500 == 499 {
            tree.reclaim().unwrap();
            let stats = tree.stats().unwrap();
            let now = (stats.frames(), stats.layers, stats.committed_file_frames);
            assert!(now.0 <= 512 && now.1 <= 1, "{stats:?}");
            steady.get_or_insert(stats.list_bytes);
            assert!(stats.list_bytes <= steady.unwrap_or(0) * 2, "{stats:?}");
        }
    }
    drop(ram);
    let stats = tree.stats().unwrap();
    assert_eq!(
        (stats.frames(), stats.committed_file_frames, stats.layers),
        (0, 0, 0)
    );
}
