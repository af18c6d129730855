//! What threads do to one clone tree at the same time, in every order that
//! matters.
//!
//! ```text
//! RUSTFLAGS="--cfg shuttle" cargo test -p guestmem --lib interleaving --target-dir target/shuttle
//! ```
//!
//! Shuttle runs the threads one at a time and switches wherever one takes or
//! gives back the tree's lock, which is the only thing they share: first every
//! order there is (or as many as [`BOUND`]), then random ones. Memory and
//! system calls are real.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler};
use shuttle::thread::spawn;
use shuttle::{Config, Runner};
use vm_memory::{Bytes, GuestAddress};

use crate::failing::{flatten, freeze};
use crate::layout::HUGE_PAGE;
use crate::{
    Backing, BlankWindow, CloneTree, Flattened, Layer, MemoryError, PAGE_SIZE, PageIdx, Ram,
    RamLayout, Writers,
};

const PAGES: u64 = 16;
/// Orders tried one after the other.
const BOUND: usize = 1500;
/// Random orders, of each kind.
const RANDOM: usize = 500;

fn in_every_order(life: impl Fn() + Send + Sync + Copy + 'static) {
    in_orders(BOUND, RANDOM, life);
}

fn in_orders(bound: usize, random: usize, life: impl Fn() + Send + Sync + Copy + 'static) {
    let config = || {
        let mut config = Config::new();
        config.stack_size = 1 << 20;
        config
    };
    Runner::new(DfsScheduler::new(Some(bound), false), config()).run(life);
    Runner::new(RandomScheduler::new(random), config()).run(life);
    Runner::new(PctScheduler::new(3, random), config()).run(life);
}

fn layout(nr_pages: u64) -> RamLayout {
    RamLayout::new(nr_pages * PAGE_SIZE).unwrap()
}

fn set(ram: &Ram, page: u64, value: u64) {
    let at = GuestAddress(page * PAGE_SIZE);
    ram.guest_ram().write_obj(value, at).unwrap();
}

#[track_caller]
fn check(ram: &Ram, wanted: &[u64]) {
    let memory = ram.guest_ram();
    let word = |page| memory.read_obj(GuestAddress(page * PAGE_SIZE)).unwrap();
    let seen: Vec<u64> = (0..wanted.len() as u64).map(word).collect();
    assert_eq!(seen, wanted);
}

/// A root with its first four pages written, frozen.
fn frozen_root() -> (Ram, Layer) {
    let mut root = Ram::new(layout(PAGES), Backing::Memfd).unwrap();
    for page in 0..4 {
        set(&root, page, page + 1);
    }
    let layer = freeze(&mut root).unwrap();
    (root, layer)
}

/// A VM that has written two pages on top of a frozen root, and its tree.
fn written_child() -> (Ram, Ram, Arc<CloneTree>) {
    let (root, layer) = frozen_root();
    let child = layer.fork().unwrap();
    set(&child, 0, 10);
    set(&child, 5, 11);
    let tree = Arc::clone(root.tree());
    (root, child, tree)
}

/// Everybody has gone: so has everything.
fn check_end(tree: &CloneTree) {
    tree.check_invariants();
    let stats = tree.stats().unwrap();
    assert_eq!((stats.frames(), stats.committed_file_frames), (0, 0));
    assert_eq!((stats.leaves, stats.spares, stats.layers), (0, 0, 0));
}

#[test]
fn a_parent_is_closed_while_its_layer_is_forked() {
    in_every_order(|| {
        let (root, layer) = frozen_root();
        set(&root, 1, 20);
        let tree = Arc::clone(root.tree());
        let layer = Arc::new(layer);
        let other = Arc::clone(&layer);
        let forks = spawn(move || {
            let fork = other.fork().unwrap();
            drop(other);
            set(&fork, 2, 30);
            check(&fork, &[1, 2, 30, 4, 0]);
            fork
        });
        let closes = spawn(move || drop((root, layer)));
        let fork = forks.join().unwrap();
        closes.join().unwrap();
        tree.reclaim().unwrap();
        tree.check_invariants();
        check(&fork, &[1, 2, 30, 4, 0]);
        assert_eq!(tree.stats().unwrap().frames(), 4);
        drop(fork);
        check_end(&tree);
    });
}

#[test]
fn a_parent_is_frozen_and_forked_while_its_sibling_is_closed() {
    in_every_order(|| {
        let (root, mut child, tree) = written_child();
        let forks = spawn(move || {
            let layer = freeze(&mut child).unwrap();
            let fork = layer.fork().unwrap();
            drop(layer);
            set(&child, 5, 12);
            set(&fork, 0, 13);
            check(&fork, &[13, 2, 3, 4, 0, 11]);
            (child, fork)
        });
        let closes = spawn(move || drop(root));
        let (child, fork) = forks.join().unwrap();
        closes.join().unwrap();
        tree.reclaim().unwrap();
        tree.check_invariants();
        check(&child, &[10, 2, 3, 4, 0, 12]);
        check(&fork, &[13, 2, 3, 4, 0, 11]);
        // Pages 1 to 3 of the root's, 10 and 11 of the layer's, 12 and 13.
        assert_eq!(tree.stats().unwrap().frames(), 7);
        drop(child);
        check(&fork, &[13, 2, 3, 4, 0, 11]);
        drop(fork);
        check_end(&tree);
    });
}

#[test]
fn both_children_are_dropped_at_once() {
    in_every_order(|| {
        let (root, mut child, tree) = written_child();
        let layer = freeze(&mut child).unwrap();
        let fork = layer.fork().unwrap();
        set(&fork, 1, 14);
        drop(layer);
        let first = spawn(move || drop(child));
        let second = spawn(move || drop(fork));
        check(&root, &[1, 2, 3, 4, 0]);
        first.join().unwrap();
        second.join().unwrap();
        tree.reclaim().unwrap();
        tree.check_invariants();
        check(&root, &[1, 2, 3, 4, 0]);
        let stats = tree.stats().unwrap();
        assert_eq!((stats.frames(), stats.leaves, stats.layers), (4, 1, 0));
        drop(root);
        check_end(&tree);
    });
}

#[test]
fn all_three_of_a_family_are_dropped_at_once() {
    in_every_order(|| {
        let (root, mut child, tree) = written_child();
        let layer = freeze(&mut child).unwrap();
        let gone = [
            spawn(move || drop(root)),
            spawn(move || drop(layer)),
            spawn(move || drop(child)),
        ];
        for thread in gone {
            thread.join().unwrap();
        }
        check_end(&tree);
    });
}

#[test]
fn a_parent_is_resized_while_its_layer_is_forked() {
    in_every_order(|| {
        let (mut root, layer) = frozen_root();
        set(&root, 3, 40);
        let tree = Arc::clone(root.tree());
        let resizes = spawn(move || {
            root.resize(layout(2)).unwrap();
            root.resize(layout(4)).unwrap();
            check(&root, &[1, 2, 0, 0]);
            root
        });
        let forks = spawn(move || {
            let fork = layer.fork().unwrap();
            check(&fork, &[1, 2, 3, 4, 0]);
            let part = layer.clone_part(PageIdx(2), layout(4)).unwrap();
            check(&part, &[3, 4, 0, 0]);
            (fork, part)
        });
        let root = resizes.join().unwrap();
        let (fork, part) = forks.join().unwrap();
        tree.reclaim().unwrap();
        tree.check_invariants();
        check(&root, &[1, 2, 0, 0]);
        check(&fork, &[1, 2, 3, 4, 0]);
        check(&part, &[3, 4, 0, 0]);
        assert_eq!(tree.stats().unwrap().frames(), 4);
        drop((fork, root));
        tree.reclaim().unwrap();
        check(&part, &[3, 4, 0, 0]);
        assert_eq!(tree.stats().unwrap().frames(), 2);
        drop(part);
        check_end(&tree);
    });
}

#[test]
fn statistics_are_taken_while_one_is_settled_and_another_closed() {
    in_every_order(|| {
        let (mut root, child, tree) = written_child();
        set(&root, 2, 0);
        let counts = {
            let tree = Arc::clone(&tree);
            spawn(move || {
                let before = tree.stats().unwrap();
                tree.reclaim().unwrap();
                let after = tree.stats().unwrap();
                assert!(after.leaves <= before.leaves && after.frames() <= before.frames());
                assert_eq!(after.file_frames, after.committed_file_frames);
            })
        };
        let settles = spawn(move || {
            root.settle(Writers::Stopped).unwrap();
            let own = root.stats().unwrap();
            // A marker lasts as long as what it hides.
            assert!(own.private_pages == 0 && own.markers <= 1);
            root
        });
        let closes = spawn(move || drop(child));
        counts.join().unwrap();
        let root = settles.join().unwrap();
        closes.join().unwrap();
        tree.reclaim().unwrap();
        tree.check_invariants();
        check(&root, &[1, 2, 0, 4, 0]);
        assert_eq!(tree.stats().unwrap().frames(), 3);
        drop(root);
        check_end(&tree);
    });
}

#[test]
fn a_fork_is_reset_and_another_made_ahead_is_used_while_a_third_is_closed() {
    in_every_order(|| {
        let (root, layer) = frozen_root();
        let tree = Arc::clone(root.tree());
        let mut child = layer.fork().unwrap();
        let layer = Arc::new(layer);
        let resets = {
            let layer = Arc::clone(&layer);
            spawn(move || {
                set(&child, 0, 50);
                child.reset(&layer).unwrap();
                check(&child, &[1, 2, 3, 4, 0]);
                child
            })
        };
        let uses = spawn(move || {
            let ram = layer
                .spare(&BlankWindow::new(layer.layout()).unwrap())
                .unwrap()
                .into_ram();
            drop(layer);
            set(&ram, 4, 51);
            ram
        });
        let closes = spawn(move || drop(root));
        let child = resets.join().unwrap();
        let ram = uses.join().unwrap();
        closes.join().unwrap();
        tree.reclaim().unwrap();
        tree.check_invariants();
        check(&child, &[1, 2, 3, 4, 0]);
        check(&ram, &[1, 2, 3, 4, 51]);
        assert_eq!(tree.stats().unwrap().frames(), 5);
        drop((child, ram));
        check_end(&tree);
    });
}

#[test]
fn a_layer_is_flattened_while_it_is_forked_and_who_was_forked_before_goes() {
    in_every_order(|| {
        let (root, mut child, tree) = written_child();
        set(&child, 9, 12);
        set(&child, 2, 0);
        let layer = Arc::new(freeze(&mut child).unwrap());
        let other = Arc::clone(&layer);
        let mut flattener = layer.flattener(u64::MAX);
        let flattens = spawn(move || flatten(&mut flattener).unwrap());
        let forks = spawn(move || {
            let spare = other.spare(&BlankWindow::new(layout(PAGES)).unwrap());
            let first = other.fork().unwrap();
            set(&first, 3, 70);
            drop(other);
            let second = spare.unwrap().into_ram();
            check(&first, &[10, 2, 0, 70, 0, 11, 0, 0, 0, 12]);
            (first, second)
        });
        let goes = {
            let tree = Arc::clone(&tree);
            spawn(move || {
                drop(child);
                tree.reclaim().unwrap();
                drop((root, layer));
            })
        };
        let (first, second) = forks.join().unwrap();
        flattens.join().unwrap();
        goes.join().unwrap();
        tree.reclaim().unwrap();
        tree.check_invariants();
        check(&first, &[10, 2, 0, 70, 0, 11, 0, 0, 0, 12]);
        check(&second, &[10, 2, 0, 4, 0, 11, 0, 0, 0, 12]);
        drop(first);
        tree.reclaim().unwrap();
        check(&second, &[10, 2, 0, 4, 0, 11, 0, 0, 0, 12]);
        assert_eq!(tree.stats().unwrap().frames(), 5);
        drop(second);
        check_end(&tree);
    });
}

#[test]
fn a_layer_is_flattened_by_two_while_a_fork_of_it_is_reset() {
    in_every_order(|| {
        let (root, mut child, tree) = written_child();
        let layer = Arc::new(freeze(&mut child).unwrap());
        let mut fork = layer.fork().unwrap();
        set(&fork, 0, 80);
        let flattens = [0, 1].map(|_| {
            let mut flattener = layer.flattener(u64::MAX);
            spawn(move || flatten(&mut flattener).unwrap())
        });
        let resets = {
            let layer = Arc::clone(&layer);
            let tree = Arc::clone(&tree);
            spawn(move || {
                tree.reclaim().unwrap();
                match fork.reset(&layer) {
                    Ok(_) => {}
                    Err(error) => {
                        assert!(matches!(error, MemoryError::ForeignLayer));
                        fork = layer.fork().unwrap();
                    }
                }
                check(&fork, &[10, 2, 3, 4, 0, 11]);
                fork
            })
        };
        let done = flattens.map(|flattens| flattens.join().unwrap());
        assert!(done.contains(&Flattened::Done), "{done:?}");
        assert!(done.contains(&Flattened::LeftAlone), "{done:?}");
        let fork = resets.join().unwrap();
        drop((child, layer));
        tree.reclaim().unwrap();
        tree.check_invariants();
        check(&fork, &[10, 2, 3, 4, 0, 11]);
        check(&root, &[1, 2, 3, 4, 0]);
        drop((fork, root));
        check_end(&tree);
    });
}

#[test]
fn a_layer_is_collapsed_while_who_holds_it_goes() {
    const ALL: u64 = HUGE_PAGE;
    // A collapse takes milliseconds.
    in_orders(60, 30, || {
        let mut root = Ram::new(layout(ALL), Backing::Memfd).unwrap();
        for page in 0..ALL {
            set(&root, page, page + 1);
        }
        let layer = freeze(&mut root).unwrap();
        let tree = Arc::clone(root.tree());
        let child = layer.fork().unwrap();
        set(&child, 7, 60);
        set(&root, 7, 61);
        let mut collapser = layer.collapser();
        let collapses = spawn(move || while collapser.step().unwrap().is_some() {});
        let reclaims = {
            let tree = Arc::clone(&tree);
            spawn(move || {
                drop(layer);
                tree.reclaim().unwrap();
                drop(root);
            })
        };
        collapses.join().unwrap();
        reclaims.join().unwrap();
        tree.reclaim().unwrap();
        tree.check_invariants();
        assert_eq!(tree.stats().unwrap().frames(), ALL);
        check(&child, &[1, 2, 3, 4, 5, 6, 7, 60, 9]);
        drop(child);
        check_end(&tree);
    });
}
