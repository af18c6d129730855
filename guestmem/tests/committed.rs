//! What is committed, without settling, against what settling finds.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{freeze, page_value, set_page};
use guestmem::{Backing, PAGE_SIZE, Ram, RamLayout};

const PAGES: u64 = 4096;

fn root(backing: Backing) -> Ram {
    Ram::new(RamLayout::new(PAGES * PAGE_SIZE).unwrap(), backing).unwrap()
}

#[test]
fn a_vm_has_committed_its_root_pages_then_what_it_writes_after_a_freeze() {
    let mut ram = root(Backing::Memfd);
    for page in 0..100 {
        set_page(&ram, page, 1);
    }
    let tree = ram.tree().clone();
    assert_eq!(ram.committed_bytes().unwrap(), 100 * PAGE_SIZE);
    assert_eq!(tree.committed_bytes().unwrap(), 100 * PAGE_SIZE);
    assert_eq!(ram.freeze_commits_bytes().unwrap(), 0);

    // The layer is the tree's; parent and child start with nothing.
    let child = freeze(&mut ram).fork().unwrap();
    assert_eq!(ram.committed_bytes().unwrap(), 0);
    assert_eq!(child.committed_bytes().unwrap(), 0);
    assert_eq!(tree.committed_bytes().unwrap(), 100 * PAGE_SIZE);
    for page in 50..100 {
        set_page(&child, page, 2);
    }
    assert_eq!(child.committed_bytes().unwrap(), 50 * PAGE_SIZE);
    assert_eq!(ram.committed_bytes().unwrap(), 0);
    assert_eq!(tree.committed_bytes().unwrap(), 150 * PAGE_SIZE);
    // The kernel commits a page of the file too for a fork's touch of a hole.
    set_page(&child, 200, 2);
    assert_eq!(child.committed_bytes().unwrap(), 51 * PAGE_SIZE);
    assert_eq!(tree.committed_bytes().unwrap(), 152 * PAGE_SIZE);
    drop(child);
    assert_eq!(tree.committed_bytes().unwrap(), 101 * PAGE_SIZE);
    tree.reclaim().unwrap();
    assert_eq!(tree.committed_bytes().unwrap(), 100 * PAGE_SIZE);
}

#[test]
fn a_freeze_in_place_commits_what_it_said_and_copies_in_the_window_count() {
    let mut ram = root(Backing::Memfd);
    freeze(&mut ram);
    let tree = ram.tree().clone();
    for page in (0..256).step_by(2) {
        set_page(&ram, page, page + 1);
    }
    let (before, file) = (ram.committed_bytes().unwrap(), tree.file_bytes().unwrap());
    assert!(before >= 128 * PAGE_SIZE, "{before}");
    let promised = ram.freeze_commits_bytes().unwrap();
    let layer = freeze(&mut ram);
    let frozen = tree.file_bytes().unwrap() - file;
    assert_eq!(frozen, 128 * PAGE_SIZE);
    assert!(frozen <= promised && promised <= before);
    assert_eq!(ram.committed_bytes().unwrap(), before);
    let all = tree.committed_bytes().unwrap();
    assert_eq!(all, before + file + frozen);
    // Frozen once, it costs nothing to freeze again but for what is new.
    set_page(&ram, 0, 77);
    assert_eq!(ram.freeze_commits_bytes().unwrap(), PAGE_SIZE);
    drop(layer);
}

#[test]
fn a_fork_of_a_layer_in_too_many_pieces_commits_what_it_said() {
    let mut ram = root(Backing::Memfd);
    freeze(&mut ram);
    // Each second page: packed in the layer, so that no two are neighbours.
    for page in (0..PAGES).step_by(2) {
        set_page(&ram, page, page + 1);
    }
    let layer = freeze(&mut ram);
    let promised = layer.fork_commits_bytes().unwrap();
    assert!(promised > 0);
    let child = layer.fork().unwrap();
    assert_eq!(child.committed_bytes().unwrap(), promised);
    assert_eq!(page_value(&child, 4094), 4095);
    assert_eq!(
        child.stats().unwrap().window_copies * PAGE_SIZE,
        child.committed_bytes().unwrap()
    );
}

#[test]
fn a_vm_that_moves_when_it_is_frozen_keeps_no_copies_of_what_the_layer_has() {
    let mut ram = root(Backing::Memfd);
    freeze(&mut ram);
    for page in 0..512 {
        set_page(&ram, page, page + 1);
    }
    let _layer = freeze(&mut ram);
    assert_eq!(ram.committed_bytes().unwrap(), 0);
    assert_eq!(ram.tree().stats().unwrap().frames(), 512);
    assert_eq!(page_value(&ram, 511), 512);
}
