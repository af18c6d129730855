//! Templates go into huge pages, and nobody notices but the clock.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::{Duration, Instant};

use guest_images::Guest;
use procfs::process::Process;
use tests::{Worker, builder, kvm};
use vmm::{HugeLayers, PAGE_SIZE, Vm};

const PAGES: u64 = 8192;

/// Pages that the VM's window maps from the file in huge pages.
fn huge_pages(vm: &Vm) -> u64 {
    let range = vm.host_range();
    let areas = Process::myself().unwrap().smaps().unwrap();
    let of_vm = areas
        .into_iter()
        .filter(|area| range.start as u64 <= area.address.0 && area.address.1 <= range.end as u64);
    of_vm
        .map(|area| area.extension.map["ShmemPmdMapped"] / PAGE_SIZE)
        .sum()
}

fn template(huge_layers: HugeLayers) -> Option<Worker> {
    let host = kvm()?;
    let builder = builder(&host, Guest::Worker).memory_bytes(64 << 20);
    let worker = Worker::boot(builder.huge_layers(huge_layers));
    worker.fill(Worker::memory(), PAGES, 1);
    Some(worker)
}

fn read_all(worker: &Worker) -> (u64, Duration) {
    let started = Instant::now();
    (worker.checksum(Worker::memory(), PAGES), started.elapsed())
}

#[test]
fn a_template_goes_into_huge_pages_and_stays_what_it_was() {
    let Some(worker) = template(HugeLayers::Background) else {
        return;
    };
    let snapshot = worker.vm.snapshot().unwrap();
    let fork = || Worker {
        vm: snapshot.fork().unwrap(),
    };
    let before = fork();
    let (wanted, slow) = read_all(&before);
    let frames = worker.vm.stats().unwrap().tree.frames();
    snapshot.keep_warm(1);
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut last = 0;
    let quick = loop {
        let child = fork();
        let (sum, took) = read_all(&child);
        assert_eq!(sum, wanted);
        let huge = huge_pages(&child.vm);
        if huge >= PAGES - 512 {
            break took;
        }
        if Instant::now() > deadline {
            assert_eq!(last, 0, "it began, and did not end");
            eprintln!("\n*** this host does not collapse files into huge pages\n");
            return;
        }
        last = huge;
        std::thread::sleep(Duration::from_millis(100)); // it takes pauses itself
    };
    let (again, known) = read_all(&before);
    assert_eq!(again, wanted);
    println!("{PAGES} pages read by a fork: {slow:?} before, {quick:?} after; again: {known:?}");
    // Its owner goes on writing, and everything is counted as before. (One
    // mailbox goes, another comes.)
    worker.fill(Worker::memory(), 100, 2);
    drop(before);
    let tree = worker.vm.tree();
    tree.check_invariants();
    assert_eq!(worker.vm.stats().unwrap().tree.frames(), frames + 100);
    assert_eq!(read_all(&fork()).0, wanted);
    drop(snapshot);
    tree.reclaim().unwrap();
    tree.check_invariants();
    drop(worker);
    assert_eq!(tree.stats().unwrap().committed_file_frames, 0);
}

#[test]
fn a_snapshot_forked_when_it_is_no_longer_new_is_a_template() {
    let Some(worker) = template(HugeLayers::Background) else {
        return;
    };
    let snapshot = worker.vm.snapshot().unwrap();
    let fork = || Worker {
        vm: snapshot.fork().unwrap(),
    };
    drop(fork());
    // A snapshot is new for a second.
    std::thread::sleep(Duration::from_millis(1200));
    let wanted = read_all(&worker).0;
    assert_eq!(huge_pages(&worker.vm), 0, "it was new when it was forked");
    for _ in 0..200 {
        let child = fork();
        assert_eq!(read_all(&child).0, wanted);
        if huge_pages(&child.vm) > 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(20)); // until it has been done
    }
    eprintln!("\n*** this host does not collapse files into huge pages\n");
}

#[test]
fn a_family_that_does_not_want_huge_pages_gets_none() {
    let Some(worker) = template(HugeLayers::Never) else {
        return;
    };
    let snapshot = worker.vm.snapshot().unwrap();
    snapshot.keep_warm(1);
    // By then others have some. A slow host only notices less.
    std::thread::sleep(Duration::from_millis(1500));
    let child = Worker {
        vm: snapshot.fork().unwrap(),
    };
    let wanted = read_all(&worker).0;
    assert_eq!(read_all(&child).0, wanted);
    assert_eq!(huge_pages(&child.vm), 0);
}
