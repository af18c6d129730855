//! What must be exact, checked against small sums done by hand and against the
//! kernel's own figures.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::{Smaps, freeze, page_value, set_page};
use guestmem::{Backing, Gpa, MemoryError, PAGE_SIZE, Ram, RamLayout, Writers};

fn root(nr_pages: u64) -> Ram {
    Ram::new(
        RamLayout::new(nr_pages * PAGE_SIZE).unwrap(),
        Backing::Memfd,
    )
    .unwrap()
}

fn fork(parent: &mut Ram) -> Ram {
    freeze(parent).fork().unwrap()
}

#[test]
fn a_chain_that_rewrites_page_after_page_holds_eleven_frames_not_twenty_one() {
    let mut vms = vec![root(6)];
    for page in 0..6 {
        set_page(&vms[0], page, 100);
    }
    for page in 0..5 {
        let child = fork(vms.last_mut().unwrap());
        set_page(&child, page, page + 1);
        vms.push(child);
    }
    let tree = Arc::clone(vms[0].tree());
    tree.reclaim().unwrap();
    tree.check_invariants();
    assert_eq!(tree.stats().unwrap().frames(), 11);
}

/// A tree of five VMs three generations deep, each with pages of its own.
fn small_tree() -> Vec<Ram> {
    let mut a = root(16);
    for page in 0..8 {
        set_page(&a, page, 1);
    }
    let mut b = fork(&mut a);
    set_page(&b, 0, 2);
    let c = fork(&mut a);
    set_page(&c, 1, 3);
    let d = fork(&mut b);
    set_page(&d, 2, 4);
    set_page(&b, 3, 0); // zero over a page of the parent's
    let e = fork(&mut b);
    set_page(&e, 0, 5);
    vec![a, b, c, d, e]
}

fn permutations(items: usize) -> Vec<Vec<usize>> {
    if items == 0 {
        return vec![Vec::new()];
    }
    let shorter = permutations(items - 1);
    let insert = |order: &Vec<usize>, at| {
        let mut order = order.clone();
        order.insert(at, items - 1);
        order
    };
    shorter
        .iter()
        .flat_map(|order| (0..items).map(move |at| insert(order, at)))
        .collect()
}

#[test]
fn closing_in_every_order_keeps_the_others_contents_and_ends_with_nothing() {
    for order in permutations(5) {
        let mut vms: Vec<Option<Ram>> = small_tree().into_iter().map(Some).collect();
        let tree = Arc::clone(vms[0].as_ref().unwrap().tree());
        let contents = |ram: &Ram| {
            (0..16)
                .map(|page| page_value(ram, page))
                .collect::<Vec<_>>()
        };
        let wanted: Vec<_> = vms.iter().flatten().map(contents).collect();
        for closed in order {
            vms[closed] = None;
            for (ram, wanted) in vms.iter_mut().zip(&wanted) {
                if let Some(ram) = ram {
                    ram.settle(Writers::Stopped).unwrap();
                    assert_eq!(&contents(ram), wanted);
                }
            }
            tree.reclaim().unwrap();
            tree.check_invariants();
        }
        let stats = tree.stats().unwrap();
        assert_eq!(
            (stats.frames(), stats.committed_file_frames, stats.layers),
            (0, 0, 0)
        );
    }
}

#[test]
fn forking_twice_without_a_write_between_adds_no_depth() {
    let mut parent = root(8);
    set_page(&parent, 0, 1);
    let first = fork(&mut parent);
    let second = fork(&mut parent);
    assert_eq!(first.stats().unwrap().depth, 1);
    assert_eq!(second.stats().unwrap().depth, 1);
    assert_eq!(parent.tree().stats().unwrap().layers, 1);
}

#[test]
fn write_fork_drop_for_ever_holds_frames_layers_and_mappings_constant() {
    let mut parent = root(64);
    for page in 0..32 {
        set_page(&parent, page, 1);
    }
    drop(fork(&mut parent));
    let mut seen = Vec::new();
    for round in 0..2000 {
        set_page(&parent, round % 32, round + 2);
        let child = fork(&mut parent);
        set_page(&child, (round + 1) % 32, 7);
        drop(child);
        if round % 500 == 499 {
            parent.tree().reclaim().unwrap();
            let tree = parent.tree().stats().unwrap();
            seen.push((tree.frames(), tree.layers, parent.stats().unwrap().mappings));
        }
    }
    assert_eq!(seen, [(32, 0, 1); 4]);
}

#[test]
fn keeping_the_newest_of_a_thousand_generations_does_not_grow() {
    let mut vm = root(64);
    set_page(&vm, 0, 1);
    for generation in 0..1000 {
        let child = fork(&mut vm);
        set_page(&child, generation % 64, generation + 1);
        vm = child; // the parent goes
    }
    let tree = vm.tree().stats().unwrap();
    assert_eq!((tree.leaves, tree.layers), (1, 0));
    vm.tree().reclaim().unwrap();
    assert_eq!(vm.tree().stats().unwrap().frames(), 64);
    assert_eq!(page_value(&vm, 999 % 64), 1000);
}

#[test]
fn a_deep_chain_kept_alive_reads_right_at_every_depth_and_goes_away_whole() {
    const DEPTH: u64 = 400;
    let mut vms = vec![root(512)];
    for generation in 0..DEPTH {
        let child = fork(vms.last_mut().unwrap());
        set_page(&child, generation, generation + 1);
        vms.push(child);
    }
    for (depth, vm) in (0..).zip(&vms) {
        for page in 0..DEPTH {
            let wanted = if page < depth { page + 1 } else { 0 };
            assert_eq!(page_value(vm, page), wanted, "page {page} at depth {depth}");
        }
    }
    let tree = Arc::clone(vms[0].tree());
    tree.check_invariants();
    assert_eq!(tree.stats().unwrap().layers, DEPTH);
    drop(vms);
    assert_eq!(tree.stats().unwrap().frames(), 0);
}

#[test]
fn a_window_of_more_runs_than_the_budget_copies_the_rest_and_says_so() {
    const PAGES: u64 = 3000;
    let mut parent = root(2 * PAGES);
    let mut middle = fork(&mut parent);
    for page in 0..PAGES {
        set_page(&middle, 2 * page, page + 1); // every other page: no two in a row
    }
    let child = fork(&mut middle);
    for page in 0..PAGES {
        assert_eq!(page_value(&child, 2 * page), page + 1);
        assert_eq!(page_value(&child, 2 * page + 1), 0);
    }
    let stats = child.stats().unwrap();
    assert!(stats.mappings <= 512, "{stats:?}");
    assert_eq!(stats.window_copies, PAGES - 512);
    assert_eq!(stats.private_pages, 0);

    // A copied page that is written becomes the child's own.
    set_page(&child, 2 * (PAGES - 1), 9);
    let stats = child.stats().unwrap();
    assert_eq!(stats.private_pages, 1);
    assert_eq!(page_value(&middle, 2 * (PAGES - 1)), PAGES);
}

#[test]
fn eight_gigabytes_of_untouched_ram_cost_nothing() {
    let ram = root((8 << 30) / PAGE_SIZE);
    let tree = ram.tree().stats().unwrap();
    assert_eq!((tree.frames(), tree.committed_file_frames), (0, 0));
    set_page(&ram, (8 << 30) / PAGE_SIZE - 1, 3); // above the hole
    let tree = ram.tree().stats().unwrap();
    assert_eq!((tree.frames(), tree.committed_file_frames), (1, 1));
}

#[test]
fn private_pages_and_shared_frames_are_what_the_kernel_lists() {
    let mut parent = root(4096);
    for page in 0..1000 {
        set_page(&parent, page, 1);
    }
    let child = fork(&mut parent);
    for page in 0..100 {
        set_page(&child, page * 3, 2);
    }
    for page in 0..1000 {
        assert_ne!(page_value(&child, page), 0);
    }
    // The parent has moved to a window that it has not touched since, so the
    // child's is the only one that maps the 900 pages they share.
    let alone = Smaps::of(child.window().host_range());
    assert_eq!((alone.resident_pages, alone.pss_pages), (1000, 1000));
    for page in 0..1000 {
        assert_eq!(page_value(&parent, page), 1);
    }
    let shared = Smaps::of(child.window().host_range());
    assert_eq!(shared.pss_pages, 100 + 900 / 2);

    let stats = child.stats().unwrap();
    assert_eq!(stats.private_pages, shared.anonymous_pages);
    assert_eq!(
        stats.attribution.by_viewers().collect::<Vec<_>>(),
        [(1, 100), (2, 900)]
    );
    assert_eq!(stats.attribution.bytes(), shared.pss_pages * PAGE_SIZE);
    let tree = child.tree().stats().unwrap();
    assert_eq!(tree.file_frames, tree.committed_file_frames);
}

#[test]
fn zero_pages_of_a_fork_hide_the_parents_and_cost_nothing() {
    let mut parent = root(64);
    for page in 0..32 {
        set_page(&parent, page, 1);
    }
    let mut child = fork(&mut parent);
    for page in 0..16 {
        set_page(&child, page, 0);
    }
    child.settle(Writers::Stopped).unwrap();
    let stats = child.stats().unwrap();
    assert_eq!((stats.private_pages, stats.markers), (0, 16));
    assert_eq!(stats.zeros_dropped, 16);
    let tree = child.tree().stats().unwrap();
    assert_eq!(tree.zero_bytes_dropped(), 16 * PAGE_SIZE);
    let grandchild = fork(&mut child);
    for page in 0..32 {
        let wanted = u64::from(page >= 16);
        assert_eq!(page_value(&child, page), wanted);
        assert_eq!(page_value(&grandchild, page), wanted);
        assert_eq!(page_value(&parent, page), 1);
    }
}

#[test]
fn a_window_is_made_of_as_few_areas_of_the_kernel_as_its_mappings_say() {
    let mut parent = root(4096);
    for page in (0..4096).step_by(64) {
        set_page(&parent, page, page + 1);
    }
    let mut child = fork(&mut parent);
    for page in (1..4096).step_by(256) {
        set_page(&child, page, page + 1);
    }
    let grandchild = fork(&mut child);
    for ram in [&parent, &child, &grandchild] {
        let areas = Smaps::of(ram.window().host_range()).areas;
        let mappings = ram.stats().unwrap().mappings;
        assert!(
            areas <= 2 * mappings + 1,
            "{areas} areas, {mappings} mappings"
        );
        assert!(mappings <= areas, "{areas} areas, {mappings} mappings");
    }
}

#[test]
fn a_page_written_back_to_what_it_was_is_not_kept_twice() {
    let mut parent = root(64);
    for page in 0..32 {
        set_page(&parent, page, page + 1);
    }
    let mut child = fork(&mut parent);
    for page in 0..32 {
        set_page(&child, page, 99);
        set_page(&child, page, page + 1);
    }
    let grandchild = fork(&mut child);
    assert_eq!(
        grandchild.stats().unwrap().depth,
        1,
        "nothing of its own to freeze"
    );
    assert_eq!(grandchild.tree().stats().unwrap().frames(), 32);
    set_page(&child, 0, 5);
    assert_eq!(page_value(&grandchild, 0), 1);
}

#[test]
fn ten_thousand_generations_kept_alive_go_away_in_either_order() {
    const GENERATIONS: u64 = 10_000;
    for oldest_first in [true, false] {
        let mut vm = root(16);
        let tree = Arc::clone(vm.tree());
        let mut layers = Vec::new();
        for generation in 0..GENERATIONS {
            set_page(&vm, generation % 16, generation + 1);
            layers.push(freeze(&mut vm));
        }
        let stats = tree.stats().unwrap();
        assert_eq!((stats.layers, stats.frames()), (GENERATIONS, GENERATIONS));
        let newest = layers.last().unwrap().fork().unwrap();
        for page in 0..16 {
            assert_eq!(page_value(&newest, page), GENERATIONS - 15 + page);
        }
        if oldest_first {
            layers.reverse();
        }
        while layers.pop().is_some() {}
        assert_eq!(page_value(&newest, 15), GENERATIONS);
        drop((vm, newest));
        assert_eq!(tree.stats().unwrap().frames(), 0);
    }
}

#[test]
fn a_range_that_is_not_ram_is_refused_and_nothing_is_dropped() {
    let mut ram = root(16);
    set_page(&ram, 15, 1);
    for (start, len) in [
        (0, 0),
        (1, PAGE_SIZE),
        (15 * PAGE_SIZE, 2 * PAGE_SIZE),
        (u64::MAX - 4095, PAGE_SIZE),
    ] {
        let refused = ram.discard(Gpa(start), len).unwrap_err();
        assert!(matches!(refused, MemoryError::NotRam { .. }), "{refused}");
    }
    assert_eq!(page_value(&ram, 15), 1);
}
