//! Forks made ahead: as good as those made on the spot, and nobody's until
//! they are taken.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use guest_images::Guest;
use tests::{Worker, builder, kvm, run_to_end};
use vm_memory::{Bytes, GuestAddress};
use vmm::{Event, Vm};

#[test]
fn a_fork_from_the_pool_is_what_a_fork_made_on_the_spot_is() {
    let Some(host) = kvm() else { return };
    let worker = Worker::boot(builder(&host, Guest::Worker).memory_bytes(16 << 20));
    worker.fill(Worker::memory(), 8, 1);
    let wanted = worker.checksum(Worker::memory(), 16);
    let snapshot = worker.vm.snapshot().unwrap();
    snapshot.keep_warm(3);
    snapshot.wait_warm().unwrap();
    assert_eq!(snapshot.warm(), 3);
    // What the parent does after the snapshot is not for its forks.
    worker.fill(Worker::memory(), 16, 2);

    let mut generations = BTreeSet::from([worker.generation()]);
    for round in 0..12u64 {
        if round % 4 == 0 {
            snapshot.wait_warm().unwrap();
        }
        let child = Worker {
            vm: snapshot.fork().unwrap(),
        };
        assert_eq!(child.vm.number(), round + 1);
        assert_eq!(child.checksum(Worker::memory(), 16), wanted);
        assert!(generations.insert(child.generation()), "no two are twins");
        child.write(Worker::memory(), round);
    }
    worker.vm.tree().check_invariants();
}

#[test]
fn forks_made_ahead_are_nobodys_memory_until_they_are_taken() {
    let Some(host) = kvm() else { return };
    let worker = Worker::boot(builder(&host, Guest::Worker).memory_bytes(16 << 20));
    worker.fill(Worker::memory(), 8, 1);
    let snapshot = worker.vm.snapshot().unwrap();
    let before = worker.vm.stats().unwrap();

    snapshot.keep_warm(4);
    snapshot.wait_warm().unwrap();
    let with_pool = worker.vm.stats().unwrap();
    assert_eq!(with_pool.tree.spares, 4);
    assert_eq!(with_pool.ram, before.ram);
    assert_eq!(with_pool.tree.leaves, before.tree.leaves);
    assert_eq!(with_pool.tree.frames(), before.tree.frames());
    assert_eq!(with_pool.tree.seen_pages, before.tree.seen_pages);

    let child = snapshot.fork().unwrap();
    assert_eq!(worker.vm.stats().unwrap().tree.leaves, 2);
    snapshot.keep_warm(1);
    assert!(snapshot.warm() <= 1);

    // Pages only the snapshot saw go with it, whatever lay in the pool.
    worker.fill(Worker::memory(), 8, 2);
    drop((child, snapshot));
    let tree = worker.vm.tree();
    tree.reclaim().unwrap();
    tree.check_invariants();
    let after = tree.stats().unwrap();
    assert_eq!((after.spares, after.leaves), (0, 1));
    assert_eq!(after.frames(), before.tree.frames());
}

#[test]
fn many_threads_take_forks_while_others_are_being_made() {
    let Some(host) = kvm() else { return };
    let worker = Worker::boot(builder(&host, Guest::Worker).memory_bytes(16 << 20));
    worker.fill(Worker::memory(), 4, 1);
    let wanted = worker.checksum(Worker::memory(), 4);
    let snapshot = worker.vm.snapshot().unwrap();
    snapshot.keep_warm(4);
    let numbers = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let child = Worker {
                        vm: snapshot.fork().unwrap(),
                    };
                    assert_eq!(child.checksum(Worker::memory(), 4), wanted);
                    assert!(numbers.lock().unwrap().insert(child.vm.number()));
                }
            });
        }
    });
    drop(snapshot);
    worker.vm.tree().check_invariants();
    assert_eq!(worker.vm.stats().unwrap().tree.spares, 0);
}

#[test]
fn a_timer_that_was_running_goes_on_in_a_fork_that_has_waited() {
    let Some(host) = kvm() else { return };
    let parent = builder(&host, Guest::Timer).build().unwrap();
    parent.resume().unwrap();
    std::thread::sleep(Duration::from_millis(5)); // its timer is running, most likely
    let snapshot = parent.snapshot().unwrap();
    snapshot.keep_warm(2);
    snapshot.wait_warm().unwrap();
    std::thread::sleep(Duration::from_millis(20)); // they wait: what is tested
    for _ in 0..4 {
        let child = snapshot.fork().unwrap();
        assert_eq!(run_to_end(&child), Event::Exited(0));
    }
    assert_eq!(parent.wait(), Event::Exited(0));
}

/// What KVM has last told the guest `clock` of the time, as it does now and then
/// when the VM begins to run.
fn guest_clock(vm: &Vm) -> Duration {
    // `system_time` in the kernel's `pvclock_vcpu_time_info`.
    let at = GuestAddress(0x1_0000 + 16);
    Duration::from_nanos(vm.guest_ram().read_obj(at).unwrap())
}

#[test]
fn the_clock_of_a_fork_does_not_count_how_long_it_has_waited() {
    let Some(host) = kvm() else { return };
    let begun = Instant::now();
    let parent = builder(&host, Guest::Clock).build().unwrap();
    assert_eq!(parent.run().unwrap(), Event::Ready);
    assert_eq!(parent.run().unwrap(), Event::Ready);
    let before = guest_clock(&parent);
    assert!(!before.is_zero(), "the guest has a clock");
    let snapshot = parent.snapshot().unwrap();
    let until_snapshot = begun.elapsed();
    snapshot.keep_warm(1);
    snapshot.wait_warm().unwrap();
    std::thread::sleep(Duration::from_millis(300)); // it waits: what is tested
    assert_eq!(snapshot.warm(), 1);
    let asked = Instant::now();
    let child = snapshot.fork().unwrap();
    assert_eq!(child.run().unwrap(), Event::Ready);
    let at_most = until_snapshot + asked.elapsed();
    let gone_by = guest_clock(&child).checked_sub(before);
    let gone_by = gone_by.expect("the clock goes forward");
    assert!(gone_by <= at_most, "{gone_by:?} in at most {at_most:?}");
}

#[test]
fn a_reset_to_a_snapshot_with_a_pool_and_a_pool_that_outlives_its_vm_work() {
    let Some(host) = kvm() else { return };
    let worker = Worker::boot(builder(&host, Guest::Worker).memory_bytes(16 << 20));
    worker.write(Worker::memory(), 7);
    let snapshot = worker.vm.snapshot().unwrap();
    snapshot.keep_warm(2);
    snapshot.wait_warm().unwrap();
    // Twice: the quick way, and after a fork the way through fresh memory.
    for _ in 0..2 {
        worker.write(Worker::memory(), 8);
        worker.vm.reset(&snapshot).unwrap();
        assert_eq!(worker.read(Worker::memory()), 7);
        drop(worker.vm.fork().unwrap());
    }
    drop(worker);
    let children: Vec<Vm> = (0..5).map(|_| snapshot.fork().unwrap()).collect();
    for vm in children {
        assert_eq!(Worker { vm }.read(Worker::memory()), 7);
    }
}
