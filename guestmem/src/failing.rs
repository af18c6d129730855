//! Every system call fails once, in turn: whatever was asked for has not
//! happened, nobody else notices, and it works when it is tried again.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use crate::sys::fault;
use crate::{
    Backing, BlankWindow, Flattened, Flattener, Gpa, Layer, MemoryError, PAGE_SIZE, Ram, RamLayout,
    Writers,
};

const PAGES: u64 = 32;

/// Tries `op` until it works; `check` must hold after each failure.
fn until_it_works<T>(mut op: impl FnMut() -> Result<T, MemoryError>, mut check: impl FnMut()) -> T {
    for _ in 0..3 {
        match op() {
            Ok(done) => return done,
            Err(error) => {
                assert!(error.to_string().contains("memory"), "{error}");
                check();
            }
        }
    }
    panic!("it fails although only one call does");
}

/// Freezes as a VMM does.
pub(crate) fn freeze(ram: &mut Ram) -> Result<Layer, MemoryError> {
    let mut prepared = ram.prepare_freeze()?;
    if prepared.wants_window() {
        ram.stage(
            &mut prepared,
            &BlankWindow::for_tree(ram.tree(), ram.layout())?,
        )?;
    }
    Ok(ram.freeze(&mut prepared)?.0)
}

/// Flattens to the end.
pub(crate) fn flatten(flattener: &mut Flattener) -> Result<Flattened, MemoryError> {
    loop {
        match flattener.step()? {
            Flattened::Partly => {}
            end => return Ok(end),
        }
    }
}

fn set(ram: &Ram, page: u64, value: u64) {
    ram.guest_ram()
        .write_obj(value, GuestAddress(page * PAGE_SIZE))
        .unwrap();
}

fn contents(ram: &Ram) -> Vec<u64> {
    let memory = ram.guest_ram();
    let word = |page| memory.read_obj(GuestAddress(page * PAGE_SIZE)).unwrap();
    (0..PAGES).map(word).collect()
}

/// A life with every operation in it, in which one system call fails: the one
/// after `calls` others. Returns whether there were so many.
fn live(backing: Backing, calls: u64) -> bool {
    let layout = RamLayout::new(PAGES * PAGE_SIZE).unwrap();
    fault::fail_after(calls);
    let mut root = until_it_works(|| Ram::new(layout, backing), || {});
    let tree = Arc::clone(root.tree());
    for page in 0..8 {
        set(&root, page, 100 + page);
    }
    set(&root, 9, 0);
    let before = contents(&root);

    let layer = until_it_works(|| freeze(&mut root), || {});
    assert_eq!(contents(&root), before);
    let mut child = until_it_works(|| layer.fork(), || assert_eq!(contents(&root), before));
    assert_eq!(contents(&child), before);

    // Written, zeroed, and neither; then a generation deeper.
    set(&child, 0, 7);
    set(&child, 1, 0);
    set(&child, 20, 8);
    let written = contents(&child);
    let deeper = until_it_works(|| freeze(&mut child), || {});
    assert_eq!(contents(&child), written);
    let mut grandchild = until_it_works(|| deeper.fork(), || assert_eq!(contents(&child), written));
    assert_eq!(contents(&grandchild), written);

    set(&grandchild, 2, 0);
    until_it_works(|| grandchild.settle(Writers::Stopped), || {});
    until_it_works(
        || grandchild.discard(Gpa(4 * PAGE_SIZE), 2 * PAGE_SIZE),
        || {},
    );
    let mut wanted = written.clone();
    for page in [2, 4, 5] {
        wanted[page] = 0;
    }
    assert_eq!(contents(&grandchild), wanted);
    until_it_works(|| grandchild.reset(&deeper), || {});
    assert_eq!(contents(&grandchild), written);
    until_it_works(|| tree.stats(), || {});
    until_it_works(|| tree.reclaim(), || {});

    // What is in pieces becomes one, for forks from now on.
    let mut flattener = deeper.flattener(u64::MAX);
    let before_it = tree.stats().ok().map(|stats| stats.frames());
    let flattened = until_it_works(
        || flatten(&mut flattener),
        || {
            assert_eq!(contents(&grandchild), written);
            tree.check_invariants();
            assert_eq!(tree.stats().ok().map(|stats| stats.frames()), before_it);
        },
    );
    assert_eq!(flattened, Flattened::Done);
    let flat = until_it_works(|| deeper.fork(), || {});
    assert_eq!(contents(&flat), written);
    let own = until_it_works(|| flat.stats(), || {});
    assert_eq!((own.mappings, own.window_copies), (1, 0));
    set(&flat, 3, 9);
    until_it_works(|| tree.reclaim(), || {});

    // Nobody has noticed anything; then all of them go.
    assert_eq!(contents(&root), before);
    assert_eq!(contents(&child), written);
    drop((layer, child));
    assert_eq!(contents(&grandchild), written);
    drop(deeper);
    assert_eq!(contents(&grandchild), written);
    assert_eq!(contents(&root), before);
    drop(root);
    assert_eq!(contents(&grandchild), written);
    let failed = fault::stop();
    tree.reclaim().unwrap();
    tree.check_invariants();
    drop(grandchild);
    assert_eq!(contents(&flat)[3], 9);
    drop(flat);
    let stats = tree.stats().unwrap();
    assert_eq!(
        (stats.frames(), stats.committed_file_frames),
        (0, 0),
        "{calls} calls"
    );
    assert_eq!((stats.leaves, stats.layers), (0, 0), "{calls} calls");
    failed
}

#[test]
fn whichever_system_call_fails_nothing_is_lost_and_trying_again_works() {
    for backing in [Backing::Memfd, Backing::Anon] {
        let mut calls = 0;
        while live(backing, calls) {
            calls += 1;
        }
        assert!(calls > 20, "only {calls} system calls were made");
    }
}

/// A freeze of so much that it is copied while the VM runs, in which one system
/// call fails. Returns whether there were so many.
fn freeze_ahead(calls: u64) -> bool {
    const WRITTEN: u64 = 400;
    let layout = RamLayout::new(2 * WRITTEN * PAGE_SIZE).unwrap();
    let mut ram = Ram::new(layout, Backing::Anon).unwrap();
    let tree = Arc::clone(ram.tree());
    let show = |ram: &Ram| {
        let memory = ram.guest_ram();
        let word = |page| memory.read_obj(GuestAddress(page * PAGE_SIZE)).unwrap();
        (0..2 * WRITTEN).map(word).collect::<Vec<u64>>()
    };
    (0..WRITTEN).for_each(|page| set(&ram, page, 1 + page));

    fault::fail_after(calls);
    let mut prepared = until_it_works(|| ram.prepare_freeze(), || {});
    prepared.copy_ahead();
    (100..300).for_each(|page| set(&ram, page, 1000 + page));
    let stage = || ram.stage(&mut prepared, &BlankWindow::new(layout)?);
    assert!(until_it_works(stage, || {}).is_some());
    prepared.copy_ahead();
    (0..10).for_each(|page| set(&ram, 50 * page, page));
    let before = show(&ram);
    let (layer, _) = until_it_works(|| ram.freeze(&mut prepared), || {});
    let failed = fault::stop();

    assert_eq!(show(&ram), before);
    assert_eq!(show(&layer.fork().unwrap()), before);
    drop(prepared);
    tree.check_invariants();
    drop((ram, layer));
    assert_eq!(tree.stats().unwrap().frames(), 0);
    failed
}

#[test]
fn whichever_system_call_fails_what_was_copied_ahead_is_what_there_was() {
    let mut calls = 0;
    while freeze_ahead(calls) {
        calls += 1;
    }
    assert!(calls > 10, "only {calls} system calls were made");
}
