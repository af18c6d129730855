//! Resets: back to what was remembered, any number of times.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::time::Duration;

use guest_images::worker::command;
use guest_images::{Guest, abi};
use tests::{Worker, builder, kvm, output};
use vm_memory::{Bytes, GuestAddress};
use vmm::{Backing, Event, Vm, VmError};

#[test]
fn a_thousand_resets_give_a_thousand_identical_runs() {
    let Some(host) = kvm() else { return };
    for backing in [Backing::Memfd, Backing::Anon] {
        let worker = Worker::boot(
            builder(&host, Guest::Worker)
                .memory_bytes(16 << 20)
                .backing(backing),
        );
        worker.fill(Worker::memory(), 8, 1);
        let before = worker.checksum(Worker::memory(), 16);
        let snapshot = worker.vm.snapshot().unwrap();
        for round in 0..1000 {
            // Pages that had content and pages that had none, each round others.
            worker.fill(Worker::page(round % 12), 3, round);
            worker.zero(Worker::page((round + 5) % 12), 2);
            worker.vm.reset(&snapshot).unwrap();
            if round % 10 == 9 {
                assert_eq!(
                    worker.checksum(Worker::memory(), 16),
                    before,
                    "round {round}"
                );
                worker.vm.reset(&snapshot).unwrap();
            }
        }
        worker.vm.tree().check_invariants();
    }
}

#[test]
fn a_reset_brings_back_registers_and_sse_of_a_running_counter() {
    let Some(host) = kvm() else { return };
    // The guest compares register, SSE register and memory each round, and ends
    // when they differ.
    let vm = builder(&host, Guest::Counter).build().unwrap();
    let progress = GuestAddress(Guest::Counter.free_start());
    let rounds = || vm.guest_ram().read_obj::<u64>(progress).unwrap();
    let run_until = |wanted: u64| {
        vm.resume().unwrap();
        while rounds() < wanted {
            assert_eq!(
                vm.wait_for(Duration::from_micros(200)),
                None,
                "{}",
                output(&vm)
            );
        }
    };
    run_until(3);
    let snapshot = vm.snapshot().unwrap();
    for _ in 0..50 {
        vm.reset(&snapshot).unwrap();
        run_until(rounds() + 2);
    }
    vm.reset(&snapshot).unwrap();
    run_until(rounds() + 20);
    vm.pause().unwrap();
    assert_eq!(vm.wait(), Event::Paused, "{}", output(&vm));
}

#[test]
fn a_vm_that_ended_or_failed_runs_again_after_a_reset() {
    let Some(host) = kvm() else { return };
    for how in [
        "triple",
        "invalid",
        "jump",
        "outside-write",
        "outside-read",
        "emulation",
    ] {
        let vm = builder(&host, Guest::Faulty)
            .cmdline(format!("how={how}"))
            .build()
            .unwrap();
        assert_eq!(vm.run().unwrap(), Event::Ready);
        let snapshot = vm.snapshot().unwrap();
        let first = vm.run().unwrap();
        assert!(matches!(first, Event::Failed(_)), "{how}: {first:?}");
        for _ in 0..5 {
            vm.reset(&snapshot).unwrap();
            assert_eq!(vm.wait(), Event::Paused);
            assert_eq!(vm.run().unwrap(), first, "{how}");
        }
    }
}

#[test]
fn a_reset_to_an_older_snapshot_after_forks_and_newer_ones_works_too() {
    let Some(host) = kvm() else { return };
    let worker = Worker::boot(builder(&host, Guest::Worker).memory_bytes(16 << 20));
    let mut snapshots = Vec::new();
    let mut children = Vec::new();
    for value in 0..6 {
        worker.write(Worker::page(value), value + 1);
        snapshots.push(worker.vm.snapshot().unwrap());
        children.push(worker.fork());
    }
    for (snapshot, value) in snapshots.iter().rev().zip((0..6).rev()) {
        worker.vm.reset(snapshot).unwrap();
        for page in 0..6 {
            let wanted = if page <= value { page + 1 } else { 0 };
            assert_eq!(worker.read(Worker::page(page)), wanted);
        }
    }
    for (value, child) in (0..6).zip(&children) {
        assert_eq!(child.read(Worker::page(value)), value + 1);
    }
    worker.vm.tree().check_invariants();
}

#[test]
fn a_fork_can_be_reset_to_a_snapshot_of_its_ancestor() {
    let Some(host) = kvm() else { return };
    let root = Worker::boot(builder(&host, Guest::Worker).memory_bytes(16 << 20));
    root.write(Worker::page(0), 1);
    let snapshot = root.vm.snapshot().unwrap();
    root.write(Worker::page(0), 2);
    let child = root.fork();
    child.vm.reset(&snapshot).unwrap();
    assert_eq!(child.read(Worker::page(0)), 1);
    assert_eq!(root.read(Worker::page(0)), 2);
}

#[test]
fn a_snapshot_of_another_vm_is_refused_and_nothing_changes() {
    let Some(host) = kvm() else { return };
    let one = Worker::boot(builder(&host, Guest::Worker));
    let other = Worker::boot(builder(&host, Guest::Worker));
    one.write(Worker::page(0), 1);
    let foreign = other.vm.snapshot().unwrap();
    assert!(matches!(
        one.vm.reset(&foreign),
        Err(VmError::ForeignSnapshot)
    ));
    assert_eq!(one.read(Worker::page(0)), 1);
}

#[test]
fn every_reset_has_a_generation_of_its_own() {
    let Some(host) = kvm() else { return };
    let worker = Worker::boot(builder(&host, Guest::Worker));
    let snapshot = worker.vm.snapshot().unwrap();
    let mut generations = BTreeSet::from([worker.generation()]);
    for _ in 0..20 {
        worker.vm.reset(&snapshot).unwrap();
        assert!(generations.insert(worker.generation()));
    }
}

#[test]
fn a_running_vm_with_two_vcpus_is_reset_in_flight() {
    let Some(host) = kvm() else { return };
    let vm = builder(&host, Guest::Smp)
        .cpus(2)
        .cmdline("steps=200000")
        .build()
        .unwrap();
    let snapshot = vm.snapshot().unwrap();
    for _ in 0..10 {
        vm.resume().unwrap();
        vm.wait_for(Duration::from_millis(1));
        vm.reset(&snapshot).unwrap();
    }
    assert_eq!(vm.run().unwrap(), Event::Exited(0), "{}", output(&vm));
}

#[test]
fn freed_pages_come_back_with_a_reset() {
    let Some(host) = kvm() else { return };
    let worker = Worker::boot(builder(&host, Guest::Worker).memory_bytes(16 << 20));
    worker.fill(Worker::memory(), 32, 5);
    let before = worker.checksum(Worker::memory(), 32);
    let snapshot = worker.vm.snapshot().unwrap();
    for _ in 0..3 {
        assert_eq!(worker.free(Worker::page(4), 16 * 4096), 16);
        assert_eq!(worker.read(Worker::page(4)), 0);
        worker.vm.reset(&snapshot).unwrap();
        assert_eq!(worker.checksum(Worker::memory(), 32), before);
        worker.vm.reset(&snapshot).unwrap();
    }
}

#[test]
fn a_fork_request_that_was_remembered_can_be_answered_after_each_reset() {
    let Some(host) = kvm() else { return };
    let worker = Worker::boot(builder(&host, Guest::Worker));
    assert_eq!(worker.start(command::FORK, [0; 3]), Event::ForkRequest);
    let snapshot = worker.vm.snapshot().unwrap();
    for _ in 0..3 {
        worker.vm.reset(&snapshot).unwrap();
        let child = worker.fork();
        assert_eq!(child.vm.run().unwrap(), Event::Ready);
        assert_eq!(child.result(), child.vm.number());
        assert_eq!(worker.vm.run().unwrap(), Event::Ready);
        assert_eq!(worker.result(), 0);
    }
}

/// The page-directory entry of the 2 MiB at `address` in a flat guest: where it
/// is.
fn directory_entry(vm: &Vm, address: u64) -> u64 {
    let memory = vm.guest_ram();
    let next = |table: u64| {
        let entry: u64 = memory.read_obj(GuestAddress(table)).unwrap();
        entry & 0x000f_ffff_ffff_f000
    };
    let index = |shift: u32| (address >> shift & 511) * 8;
    next(next(abi::PAGE_TABLES) + index(30)) + index(21)
}

#[test]
fn page_tables_that_the_guest_has_changed_are_those_of_the_snapshot_again() {
    let Some(host) = kvm() else { return };
    // Tables in use, and a directory that nothing was looked up in yet.
    for (page, other) in [(0x60_0000, 0x80_0000), (0x1_2060_0000, 0x1_2080_0000_u64)] {
        let worker = Worker::boot(builder(&host, Guest::Worker).memory_bytes(5 << 30));
        let memory = worker.vm.guest_ram();
        memory.write_obj(0xa_u64, GuestAddress(page)).unwrap();
        memory.write_obj(0xb_u64, GuestAddress(other)).unwrap();
        let entry = directory_entry(&worker.vm, page);
        let points_at_other: u64 = memory.read_obj(GuestAddress(entry + 8)).unwrap();
        let snapshot = worker.vm.snapshot().unwrap();
        // The first may begin from nothing; what matters is those that follow.
        worker.generation();
        worker.vm.reset(&snapshot).unwrap();
        for round in 0..5 {
            // The guest has not used these addresses yet, so that no processor
            // can have remembered what they were.
            worker.write(entry, points_at_other);
            assert_eq!(worker.read(page), 0xb, "{page:#x}, round {round}");
            worker.vm.reset(&snapshot).unwrap();
            assert_eq!(worker.read(page), 0xa, "{page:#x}, round {round}");
            worker.vm.reset(&snapshot).unwrap();
        }
    }
}
