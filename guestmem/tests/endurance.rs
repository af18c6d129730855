//! Lives that go on for long: what one round leaves behind must be nothing.
//!
//! A test binary of its own with one test, because the file descriptors, areas
//! and memory of the whole process are counted.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::{freeze, page_value, set_page};
use guestmem::{Backing, CloneTree, PAGE_SIZE, Ram, RamLayout, TreeStats};
use procfs::process::Process;

/// Rounds of each life.
const ROUNDS: u64 = 100_000;
/// By then everything has been allocated that is kept.
const SETTLED: u64 = 1_000;
/// How many pages the VMs have, and write.
const PAGES: u64 = 64;
const WRITTEN: u64 = 8;
/// Resident memory may differ by so much: the allocator's affair.
const SLACK_BYTES: u64 = 1 << 20;

/// All that could grow.
#[derive(Debug, PartialEq, Eq)]
struct Footprint {
    tree: TreeStats,
    descriptors: usize,
}

fn footprint(tree: &CloneTree) -> Footprint {
    tree.reclaim().unwrap();
    let this = Process::myself().unwrap();
    Footprint {
        tree: tree.stats().unwrap(),
        descriptors: this.fd_count().unwrap(),
    }
}

/// Mappings of the process. They come and go by a few: frames that happen to be
/// neighbours in the file are mapped as one.
fn areas() -> u64 {
    let maps = Process::myself().unwrap().maps().unwrap();
    maps.into_iter().count() as u64
}

fn resident_bytes() -> u64 {
    Process::myself().unwrap().statm().unwrap().resident * PAGE_SIZE
}

/// Lives `round` over and over: after the last one nothing may be more than it
/// was early on.
fn live(name: &str, vm: Ram, mut round: impl FnMut(Ram, u64) -> Ram) {
    let mut vm = vm;
    let tree = Arc::clone(vm.tree());
    let mut early = None;
    for number in 0..ROUNDS {
        vm = round(vm, number);
        if number == SETTLED {
            early = Some((footprint(&tree), areas(), resident_bytes()));
        }
    }
    let (wanted, mapped, resident) = early.unwrap();
    assert_eq!(footprint(&tree), wanted, "{name}");
    let areas = areas();
    assert!(areas <= mapped + WRITTEN, "{name}: {areas}, not {mapped}");
    let grown = resident_bytes().saturating_sub(resident);
    assert!(grown <= SLACK_BYTES, "{name}: {grown} bytes more");
    assert_eq!(wanted.tree.frames(), WRITTEN, "{name}");
    assert_eq!((wanted.tree.leaves, wanted.tree.layers), (1, 0), "{name}");
    tree.check_invariants();
    drop(vm);
    let end = tree.stats().unwrap();
    assert_eq!((end.frames(), end.committed_file_frames), (0, 0), "{name}");
}

/// A VM with all of its pages written, on a frozen root.
fn begin() -> Ram {
    let layout = RamLayout::new(PAGES * PAGE_SIZE).unwrap();
    let mut vm = Ram::new(layout, Backing::Memfd).unwrap();
    for page in 0..WRITTEN {
        set_page(&vm, page, 1);
    }
    freeze(&mut vm);
    vm
}

#[test]
fn a_hundred_thousand_rounds_leave_nothing_behind() {
    live("the child goes on", begin(), |mut parent, round| {
        let child = freeze(&mut parent).fork().unwrap();
        set_page(&child, round % WRITTEN, round + 2);
        drop(parent);
        assert_eq!(page_value(&child, round % WRITTEN), round + 2);
        child
    });
    live("the fork is dropped", begin(), |mut vm, round| {
        set_page(&vm, round % WRITTEN, round + 2);
        let fork = freeze(&mut vm).fork().unwrap();
        assert_eq!(page_value(&fork, round % WRITTEN), round + 2);
        set_page(&fork, (round + 1) % PAGES, round);
        drop(fork);
        vm
    });
}
