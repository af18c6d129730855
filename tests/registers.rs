//! No register is lost, mixed up or left behind: not in forks, not in resets,
//! not by VMs that take turns on a CPU.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::time::Duration;

use guest_images::Guest;
use tests::{builder, kvm, output};
use vm_memory::{Bytes, GuestAddress};
use vmm::{Event, Host, Vm};

/// A running guest that looks at all of its registers, which hold values made
/// from `seed`, and ends when one has changed.
fn start(host: &Arc<Host>, seed: u64) -> Vm {
    let vm = builder(host, Guest::Registers)
        .cmdline(format!("seed={seed}"))
        .build()
        .unwrap();
    assert_eq!(vm.run().unwrap(), Event::Ready);
    vm.resume().unwrap();
    run_on(&vm);
    vm
}

fn word(offset: u64) -> GuestAddress {
    GuestAddress(Guest::Registers.free_start() + offset)
}

fn rounds(vm: &Vm) -> u64 {
    vm.guest_ram().read_obj(word(0)).unwrap()
}

/// Waits until a running VM has looked at its registers a few times more.
#[track_caller]
fn run_on(vm: &Vm) {
    let wanted = rounds(vm) + 3;
    while rounds(vm) < wanted {
        let stopped = vm.wait_for(Duration::from_micros(200));
        assert_eq!(stopped, None, "VM {}: {}", vm.number(), output(vm));
    }
}

#[test]
fn a_fork_of_a_running_vm_has_every_register_and_the_parent_keeps_its_own() {
    let Some(host) = kvm() else { return };
    // Two families with other values in the same registers, side by side.
    let mut families = [1, 2].map(|seed| vec![start(&host, seed)]);
    for _ in 0..6 {
        for family in &mut families {
            let newest = family.last().unwrap();
            let child = newest.fork().unwrap();
            child.resume().unwrap();
            run_on(&child);
            run_on(newest);
            family.push(child);
        }
    }
    for vm in families.iter().flatten() {
        run_on(vm);
    }
}

#[test]
fn a_reset_brings_every_register_back() {
    let Some(host) = kvm() else { return };
    let vm = start(&host, 1);
    let snapshot = vm.snapshot().unwrap();
    for _ in 0..30 {
        vm.reset(&snapshot).unwrap();
        vm.resume().unwrap();
        run_on(&vm);
    }
}

#[test]
fn the_guest_notices_a_register_that_is_not_what_it_was() {
    let Some(host) = kvm() else { return };
    // What it compares with is in memory: general registers, MXCSR, the lowest
    // and the highest word of a vector register, x87.
    for (offset, verdict) in [(16, 1), (96, 1), (104, 3), (176, 2), (184, 2), (1232, 3)] {
        let vm = start(&host, 1);
        vm.pause().unwrap();
        assert_eq!(vm.wait(), Event::Paused);
        let memory = vm.guest_ram();
        let value: u64 = memory.read_obj(word(offset)).unwrap();
        memory.write_obj(value ^ 0x4000, word(offset)).unwrap();
        assert_eq!(vm.run().unwrap(), Event::Exited(verdict), "{offset}");
    }
}

#[test]
fn vcpus_that_wait_to_be_started_wait_in_forks_too() {
    let Some(host) = kvm() else { return };
    let parent = builder(&host, Guest::Ring0Smp).cpus(3).build().unwrap();
    let child = parent.fork().unwrap();
    let grandchild = child.fork().unwrap();
    for vm in [&grandchild, &parent, &child] {
        assert_eq!(vm.run().unwrap(), Event::Exited(3), "{}", output(vm));
    }
}
