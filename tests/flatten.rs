//! Snapshots that are forked again and again are flattened, and nobody notices
//! but the clock and the accounts.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::{Duration, Instant};

use guest_images::Guest;
use tests::{Worker, builder, kvm};
use vmm::{HugeLayers, Snapshot, Vm};

/// How many snapshots on top of one another, and of how many pages.
const DEEP: u64 = 600;
const PAGES: u64 = 6_000;

/// A VM, and the last of its snapshots. Each has a page or two that only it has
/// written, anywhere among those written before.
fn deep() -> Option<(Worker, Vec<Snapshot>)> {
    let host = kvm()?;
    let builder = builder(&host, Guest::Worker).memory_bytes(64 << 20);
    let worker = Worker::boot(builder.huge_layers(HugeLayers::Never));
    worker.fill(Worker::memory(), PAGES, 1);
    let mut snapshots = Vec::new();
    for round in 0..DEEP {
        worker.write(Worker::page(round * 2_741 % (2 * PAGES)), round + 1);
        snapshots.push(worker.vm.snapshot().unwrap());
    }
    Some((worker, snapshots))
}

fn fork(snapshot: &Snapshot) -> Worker {
    let vm = snapshot.fork().unwrap();
    Worker { vm }
}

fn checksum(worker: &Worker) -> u64 {
    worker.checksum(Worker::memory(), 2 * PAGES)
}

/// Forks `snapshot` until its forks have no private copies and are made of at
/// most `mappings`.
fn fork_until_flat(snapshot: &Snapshot, mappings: u64) -> Worker {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let child = fork(snapshot);
        let ram = child.vm.stats().unwrap().ram;
        if ram.window_copies == 0 && ram.mappings <= mappings {
            return child;
        }
        assert!(Instant::now() < deadline, "{} mappings", ram.mappings);
        std::thread::sleep(Duration::from_millis(1)); // leaves it the host's cores
    }
}

fn private_bytes(vm: &Vm) -> u64 {
    vm.committed_bytes().unwrap()
}

#[test]
fn forks_of_a_deep_snapshot_read_the_same_after_it_is_flattened_and_take_no_memory() {
    let Some((worker, mut snapshots)) = deep() else {
        return;
    };
    let snapshot = snapshots.pop().unwrap();
    let before = fork(&snapshot);
    let ram = before.vm.stats().unwrap().ram;
    let made_of = (ram.mappings, ram.window_copies);
    assert!(made_of.0 == 512 && made_of.1 > 300, "{made_of:?}");
    let took_before = private_bytes(&before.vm);
    let wanted = checksum(&worker);
    assert_eq!(checksum(&before), wanted);

    let after = fork_until_flat(&snapshot, 512);
    let took_after = private_bytes(&after.vm);
    println!("a fork takes {took_before} bytes at once before, {took_after} after");
    assert!(took_after * 20 < took_before, "{took_before} {took_after}");
    assert_eq!(checksum(&after), wanted);
    let flat = fork_until_flat(&snapshot, 4);
    assert_eq!(checksum(&flat), wanted);
    assert_eq!(checksum(&before), wanted);
    assert_eq!(checksum(&worker), wanted);

    // Each goes on by itself, and can go back.
    for (child, page) in [(&flat, 5), (&before, 6), (&worker, 7)] {
        child.write(Worker::page(page), 77);
        assert_ne!(checksum(child), wanted);
    }
    for child in [&flat, &before, &worker, &flat, &before] {
        child.vm.reset(&snapshot).unwrap();
        assert_eq!(checksum(child), wanted);
        child.fill(Worker::memory(), 30, 3);
        child.vm.reset(&snapshot).unwrap();
        assert_eq!(checksum(child), wanted);
        assert_eq!(
            child.vm.stats().unwrap().ram.mappings,
            flat.vm.stats().unwrap().ram.mappings
        );
    }
    let tree = worker.vm.tree();
    tree.check_invariants();
    let other = fork(&snapshots[300]);
    assert_ne!(checksum(&other), wanted);

    // The copies are all that is left in the end.
    drop((snapshots, before, after, worker, other));
    tree.reclaim().unwrap();
    tree.check_invariants();
    assert_eq!(checksum(&flat), wanted);
    drop((flat, snapshot));
    tree.reclaim().unwrap();
    let stats = tree.stats().unwrap();
    assert_eq!(
        (stats.frames(), stats.committed_file_frames, stats.layers),
        (0, 0, 0)
    );
}

#[test]
fn a_snapshot_kept_warm_is_flattened_too() {
    let Some((worker, mut snapshots)) = deep() else {
        return;
    };
    let wanted = checksum(&worker);
    let snapshot = snapshots.pop().unwrap();
    snapshot.keep_warm(2);
    snapshot.wait_warm().unwrap();
    assert_eq!(checksum(&fork_until_flat(&snapshot, 512)), wanted);
}

#[test]
fn a_snapshot_that_is_forked_once_stays_as_it_is() {
    let Some((worker, snapshots)) = deep() else {
        return;
    };
    let frames = || worker.vm.stats().unwrap().tree.file_frames;
    let before = frames();
    let _once = fork(&snapshots[snapshots.len() - 1]);
    // Many times as long as flattening takes. A slow host only notices less.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(frames(), before);
}
