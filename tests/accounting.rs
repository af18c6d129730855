//! Who owns which page, against the kernel's own figures.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use guest_images::Guest;
use guest_images::worker::command;
use tests::{Worker, builder, kvm, run_to_end};
use vm_memory::{Bytes, GuestAddress};
use vmm::{Backing, Event, PAGE_SIZE};

/// Anonymous pages of a VM's window, as the kernel lists them.
fn anonymous_pages(window: Range<usize>) -> u64 {
    let maps = procfs::process::Process::myself().unwrap().smaps().unwrap();
    let within = maps.into_iter().filter(|area| {
        window.start as u64 <= area.address.0 && area.address.1 <= window.end as u64
    });
    within
        .map(|area| area.extension.map["Anonymous"] / PAGE_SIZE)
        .sum()
}

#[test]
fn dropping_in_every_order_leaves_no_frame() {
    let Some(host) = kvm() else { return };
    let orders = [
        [0, 1, 2, 3],
        [3, 2, 1, 0],
        [1, 3, 0, 2],
        [2, 0, 3, 1],
        [0, 3, 1, 2],
        [3, 0, 2, 1],
    ];
    for order in orders {
        let root = Worker::boot(builder(&host, Guest::Worker).memory_bytes(16 << 20));
        let tree = root.vm.tree();
        root.fill(Worker::memory(), 8, 1);
        let child = root.fork();
        child.write(Worker::page(0), 1);
        let sibling = root.fork();
        sibling.write(Worker::page(1), 1);
        let grandchild = child.fork();
        grandchild.write(Worker::page(2), 1);
        let mut vms = [Some(root), Some(child), Some(sibling), Some(grandchild)];
        for dropped in order {
            vms[dropped] = None;
            tree.reclaim().unwrap();
            tree.check_invariants();
        }
        let stats = tree.stats().unwrap();
        assert_eq!(
            (stats.frames(), stats.committed_file_frames),
            (0, 0),
            "{order:?}"
        );
        assert_eq!((stats.leaves, stats.layers), (0, 0), "{order:?}");
    }
}

#[test]
fn lists_blocks_and_private_pages_agree_after_settling() {
    let Some(host) = kvm() else { return };
    let root = Worker::boot(builder(&host, Guest::Worker).memory_bytes(64 << 20));
    root.fill(Worker::memory(), 200, 1);
    let vms = [root.fork(), root.fork(), root];
    for (vm, count) in vms.iter().zip([10, 50, 100]) {
        vm.fill(Worker::memory(), count, 2);
    }
    let tree = vms[0].vm.tree();
    for vm in &vms {
        vm.vm.settle().unwrap();
    }
    tree.reclaim().unwrap();
    let stats = tree.stats().unwrap();
    assert_eq!(stats.file_frames, stats.committed_file_frames);
    let mut private = 0;
    for vm in &vms {
        let ram = vm.vm.stats().unwrap().ram;
        let anonymous = anonymous_pages(vm.vm.host_range());
        assert_eq!(ram.private_pages + ram.window_copies, anonymous);
        private += ram.private_pages;
    }
    assert_eq!(stats.private_frames, private);
    tree.check_invariants();
}

#[test]
fn charges_add_up_to_the_frames_in_use() {
    let Some(host) = kvm() else { return };
    let root = Worker::boot(builder(&host, Guest::Worker).memory_bytes(64 << 20));
    root.fill(Worker::memory(), 100, 1);
    let snapshot = root.vm.snapshot().unwrap();
    let mut vms: Vec<_> = (0..6)
        .map(|_| Worker {
            vm: snapshot.fork().unwrap(),
        })
        .collect();
    vms.push(root);
    drop(snapshot);
    for (vm, count) in vms.iter().zip([0, 1, 7, 20, 50, 99, 100]) {
        vm.fill(Worker::memory(), count, 3);
    }
    let tree = vms[0].vm.tree();
    tree.reclaim().unwrap();
    let frames = tree.stats().unwrap().frames();
    // In units of 1 / (1·2·…·7) page, sevenths and thirds add up exactly.
    const UNITS: u64 = 5040;
    let charges = vms.iter().map(|vm| {
        let attribution = vm.vm.stats().unwrap().ram.attribution;
        attribution
            .by_viewers()
            .map(|(viewers, pages)| pages * UNITS / viewers)
            .sum::<u64>()
    });
    assert_eq!(charges.sum::<u64>(), frames * UNITS);
}

#[test]
fn pages_that_a_guest_zeroed_are_found_and_given_back() {
    let Some(host) = kvm() else { return };
    for backing in [Backing::Memfd, Backing::Anon] {
        let vm = builder(&host, Guest::Zeros)
            .cmdline("pages=128")
            .backing(backing)
            .build()
            .unwrap();
        assert_eq!(vm.run().unwrap(), Event::Ready);
        let before = vm.stats().unwrap().tree.frames();
        vm.settle().unwrap();
        let after = vm.stats().unwrap().tree.frames();
        assert!(before >= after + 128, "{before} frames, then {after}");
        assert_eq!(run_to_end(&vm), Event::Exited(0));
    }
}

#[test]
fn zero_pages_of_a_fork_become_markers_and_read_zero_not_the_parents() {
    let Some(host) = kvm() else { return };
    let parent = Worker::boot(builder(&host, Guest::Worker).memory_bytes(16 << 20));
    parent.fill(Worker::memory(), 64, 1);
    let child = parent.fork();
    child.zero(Worker::memory(), 64);
    child.vm.settle().unwrap();
    assert!(child.vm.stats().unwrap().ram.markers >= 64);
    let grandchild = child.fork();
    for page in 0..64 {
        assert_eq!(child.read(Worker::page(page)), 0);
        assert_eq!(grandchild.read(Worker::page(page)), 0);
        assert_ne!(parent.read(Worker::page(page)), 0);
    }
}

#[test]
fn a_guest_that_writes_at_full_speed_loses_nothing_to_the_zero_scanner() {
    let Some(host) = kvm() else { return };
    const PAGES: u64 = 256;
    let boot = |backing| {
        let builder = builder(&host, Guest::Churn).backing(backing);
        let vm = builder
            .cmdline(format!("writes={} pages={PAGES}", u64::MAX))
            .build()
            .unwrap();
        assert_eq!(vm.run().unwrap(), Event::Ready);
        vm
    };
    let root = boot(Backing::Memfd);
    let child = root.fork().unwrap();
    let anonymous = boot(Backing::Anon);
    for vm in [&root, &child, &anonymous] {
        let progress = GuestAddress(Guest::Churn.free_start() + PAGES * PAGE_SIZE);
        let writes = || vm.guest_ram().read_obj::<u64>(progress).unwrap();
        vm.resume().unwrap();
        let (mut scans, mut given_back) = (0, 0);
        while scans < 40 || writes() < 500_000 {
            given_back += vm.scan_zeros(1000).unwrap().given_back;
            scans += 1;
            // A write that got lost ends the guest. It gets time to touch its
            // pages again and write at full speed between two scans.
            let stopped = vm.wait_for(Duration::from_millis(20));
            assert_eq!(stopped, None, "{}", tests::output(vm));
        }
        // Half of its pages are zero at any time, so a scanner finds some.
        assert!(given_back > 0);
        vm.pause().unwrap();
    }
    root.tree().check_invariants();
}

#[test]
fn a_scan_finds_the_zero_pages_of_a_stopped_vm_in_as_many_looks_as_it_takes() {
    let Some(host) = kvm() else { return };
    let vm = builder(&host, Guest::Zeros)
        .cmdline("pages=1000")
        .build()
        .unwrap();
    assert_eq!(vm.run().unwrap(), Event::Ready);
    let mut given_back = 0;
    for _ in 0..100 {
        let scan = vm.scan_zeros(100).unwrap();
        assert!(scan.looked_at <= 100);
        given_back += scan.given_back;
    }
    assert!(given_back >= 1000, "{given_back}");
    assert_eq!(run_to_end(&vm), Event::Exited(0));
}

#[test]
fn freed_ranges_are_given_back_in_roots_and_forks() {
    let Some(host) = kvm() else { return };
    let root = Worker::boot(builder(&host, Guest::Worker).memory_bytes(64 << 20));
    root.fill(Worker::memory(), 512, 1);
    let before = root.vm.stats().unwrap().tree.frames();
    assert_eq!(root.free(Worker::memory(), 256 * PAGE_SIZE), 256);
    assert_eq!(root.vm.stats().unwrap().tree.frames(), before - 256);

    let child = root.fork();
    child.fill(Worker::memory(), 512, 2);
    assert!(child.vm.stats().unwrap().ram.private_pages >= 512);
    assert_eq!(child.free(Worker::memory(), 512 * PAGE_SIZE), 512);
    let ram = child.vm.stats().unwrap().ram;
    assert!(ram.private_pages < 16, "{ram:?}");
    assert_eq!(child.checksum(Worker::memory(), 512), {
        root.zero(Worker::memory(), 512);
        root.checksum(Worker::memory(), 512)
    });
}

#[test]
fn eight_gigabytes_are_lazy_and_work_above_the_hole_in_forks_too() {
    let Some(host) = kvm() else { return };
    let root = Worker::boot(builder(&host, Guest::Worker).memory_bytes(8 << 30));
    assert!(root.vm.stats().unwrap().tree.frames() < 64);
    let high = (8 << 30) + (512 << 20); // above 4 GiB, below 9
    root.write(high, 1);
    let child = root.fork();
    child.write(high, 2);
    let grandchild = child.fork();
    grandchild.write(4 << 30, 3);
    assert_eq!(
        [root.read(high), child.read(high), grandchild.read(high)],
        [1, 2, 2]
    );
    assert_eq!([root.read(4 << 30), grandchild.read(4 << 30)], [0, 3]);
    root.vm.tree().check_invariants();
    assert!(root.vm.tree().stats().unwrap().frames() < 128);
}

#[test]
fn anonymous_roots_fork_like_others() {
    let Some(host) = kvm() else { return };
    let root = builder(&host, Guest::Worker)
        .memory_bytes(64 << 20)
        .backing(Backing::Anon);
    let root = Worker::boot(root);
    root.fill(Worker::memory(), 64, 1);
    let checksum = root.checksum(Worker::memory(), 64);
    let child = root.fork();
    root.fill(Worker::memory(), 64, 2);
    let grandchild = child.fork();
    assert_eq!(child.checksum(Worker::memory(), 64), checksum);
    assert_eq!(grandchild.checksum(Worker::memory(), 64), checksum);
    assert_ne!(root.checksum(Worker::memory(), 64), checksum);
    let tree = root.vm.tree();
    tree.check_invariants();
    drop((root, child, grandchild));
    assert_eq!(tree.stats().unwrap().frames(), 0);
}

#[test]
fn forking_and_dropping_for_long_holds_everything_constant() {
    let Some(host) = kvm() else { return };
    let root = Worker::boot(builder(&host, Guest::Worker).memory_bytes(16 << 20));
    let tree = root.vm.tree();
    let open_files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut seen = Vec::new();
    for round in 0..200 {
        root.write(Worker::page(round % 8), round + 1);
        let child = root.fork();
        child.write(Worker::page(round % 8), 1);
        drop(child);
        if round % 50 == 49 {
            tree.reclaim().unwrap();
            let stats = tree.stats().unwrap();
            seen.push((stats.frames(), stats.layers, stats.leaves));
        }
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
    // Other tests of this process open files too; ours would be hundreds.
    assert!(open_files() < 500, "{} files are open", open_files());
    assert!(Arc::strong_count(&tree) < 20);
    assert_eq!(root.start(command::EXIT, [3, 0, 0]), Event::Exited(3));
}
