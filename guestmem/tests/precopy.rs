//! What is copied while a VM runs is what it was when it was stopped, whatever
//! was done in between.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{freeze, page_value, set_page};
use guestmem::{
    Backing, BlankWindow, Gpa, GuestRam, Layer, PAGE_SIZE, PreparedFreeze, Ram, RamLayout, Writers,
};
use vm_memory::{Bytes, GuestAddress};

const PAGES: u64 = 2000;

fn layout() -> RamLayout {
    RamLayout::new(PAGES * PAGE_SIZE).unwrap()
}

/// A fork of a VM that has written one page in three; it has written all but the
/// last 500 itself.
fn child() -> (Ram, Layer, Ram) {
    let mut root = Ram::new(layout(), Backing::Memfd).unwrap();
    for page in (0..PAGES).step_by(3) {
        set_page(&root, page, 1);
    }
    let layer = freeze(&mut root);
    let child = layer.fork().unwrap();
    for page in 0..PAGES - 500 {
        set_page(&child, page, 1000 + page);
    }
    (root, layer, child)
}

/// What a VMM does while the VM runs.
fn prepare(ram: &Ram) -> PreparedFreeze {
    let mut prepared = ram.prepare_freeze().unwrap();
    prepared.copy_ahead();
    if prepared.wants_window() {
        let blank = BlankWindow::for_tree(ram.tree(), ram.layout()).unwrap();
        ram.stage(&mut prepared, &blank).unwrap();
    }
    prepared.copy_ahead();
    prepared
}

/// The same as [`set_page`], for another thread.
fn write(memory: &GuestRam, page: u64, value: u64) {
    let at = GuestAddress(page * PAGE_SIZE + 8);
    memory.write_obj(value, at).unwrap();
}

fn contents(ram: &Ram) -> Vec<u64> {
    (0..PAGES).map(|page| page_value(ram, page)).collect()
}

/// Freezes; the layer, and the VM itself, show what the VM showed.
#[track_caller]
fn freeze_prepared(ram: &mut Ram, prepared: &mut PreparedFreeze) -> Layer {
    let before = contents(ram);
    let (layer, _) = ram.freeze(prepared).unwrap();
    assert_eq!(contents(ram), before);
    assert_eq!(contents(&layer.fork().unwrap()), before);
    layer
}

#[test]
fn a_writer_at_full_speed_is_frozen_as_it_is_when_it_stops() {
    let (_root, _layer, mut ram) = child();
    for round in 0..30 {
        let memory = ram.guest_ram();
        let (stop, steps) = (AtomicBool::new(false), AtomicU64::new(0));
        let mut prepared = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let step = steps.fetch_add(1, Ordering::Relaxed);
                    let at = step * 777 % PAGES;
                    write(&memory, at, round << 32 | step);
                    // Some become zero, and some of these are written again.
                    write(&memory, (at + 1) % PAGES, 0);
                }
            });
            let prepared = prepare(&ram);
            let then = steps.load(Ordering::Relaxed);
            while steps.load(Ordering::Relaxed) < then + 10 {
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
            prepared
        });
        drop(memory);
        freeze_prepared(&mut ram, &mut prepared);
        drop(prepared);
        ram.tree().check_invariants();
    }
}

#[test]
fn pages_that_come_and_go_after_they_were_copied_are_as_they_are() {
    let (_root, _layer, mut ram) = child();
    let mut prepared = prepare(&ram);
    set_page(&ram, 9, 0); // over a page of the root's
    set_page(&ram, 12, 0);
    set_page(&ram, 12, 5);
    set_page(&ram, 20, 0); // over nothing
    set_page(&ram, 21, 1); // what lies below
    set_page(&ram, PAGES - 1, 9);
    let layer = freeze_prepared(&mut ram, &mut prepared);
    drop(prepared);
    ram.tree().check_invariants();
    // One frame a page but for the two that are zero.
    let own = layer.own_pages().unwrap();
    let own: u64 = own.iter().map(|run| run.end.0 - run.start.0).sum();
    assert_eq!(own, PAGES - 500 + 1 - 2);
    let stats = ram.stats().unwrap();
    assert!(stats.window_copies <= 8, "{}", stats.window_copies);
}

#[test]
fn what_is_discarded_or_reset_or_looked_at_after_it_was_copied_is_as_it_is() {
    let (_root, layer, mut ram) = child();
    let mut prepared = prepare(&ram);
    ram.discard(Gpa(100 * PAGE_SIZE), 200 * PAGE_SIZE).unwrap();
    set_page(&ram, 150, 3);
    freeze_prepared(&mut ram, &mut prepared);

    let mut again = layer.fork().unwrap();
    for page in 0..1000 {
        set_page(&again, page, 7 * page + 1);
    }
    let mut prepared = prepare(&again);
    again.reset(&layer).unwrap();
    set_page(&again, 4, 4);
    freeze_prepared(&mut again, &mut prepared);

    for page in 0..1000 {
        set_page(&again, page, 9 * page + 1);
    }
    set_page(&again, 30, 0);
    let mut prepared = prepare(&again);
    set_page(&again, 31, 0);
    again.settle(Writers::Stopped).unwrap();
    set_page(&again, 30, 30);
    set_page(&again, 31, 31);
    freeze_prepared(&mut again, &mut prepared);
    again.tree().check_invariants();
}

#[test]
fn what_was_copied_before_another_freeze_is_not_used() {
    let (_root, _layer, mut ram) = child();
    let mut late = prepare(&ram);
    let mut first = prepare(&ram);
    freeze_prepared(&mut ram, &mut first);
    for page in 0..900 {
        set_page(&ram, page, 5 * page + 2);
    }
    freeze_prepared(&mut ram, &mut late);
    // Nor is anything used twice.
    for page in 0..900 {
        set_page(&ram, page, 3 * page + 2);
    }
    late.copy_ahead();
    freeze_prepared(&mut ram, &mut late);
    drop((late, first));
    ram.tree().check_invariants();
}

#[test]
fn copies_that_are_not_used_leave_nothing_behind() {
    let (_root, _layer, ram) = child();
    let before = (ram.stats().unwrap(), ram.tree().stats().unwrap());
    drop(prepare(&ram));
    ram.tree().check_invariants();
    assert_eq!((ram.stats().unwrap(), ram.tree().stats().unwrap()), before);
}
