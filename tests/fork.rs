//! Forks: of running VMs, at any depth, in any state.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::time::Duration;

use guest_images::Guest;
use guest_images::worker::command;
use tests::{REFUSED, Worker, builder, kvm, output, run_to_end};
use vm_memory::{Bytes, GuestAddress};
use vmm::{Event, PAGE_SIZE, Vm, VmError};

/// Lets a running VM get somewhere. Nothing depends on how far.
const A_WHILE: Duration = Duration::from_millis(2);

/// Lets a VM run and forks it in flight, up to `forks` times. A guest that had
/// ended before the first fork is started again: the machine may be busy.
fn fork_in_flight(build: impl Fn() -> Vm, forks: usize) -> (Vm, Vec<Vm>) {
    loop {
        let vm = build();
        vm.resume().unwrap();
        let mut children = Vec::new();
        while children.len() < forks {
            match vm.fork() {
                Ok(child) => children.push(child),
                Err(VmError::Ended(_)) => break,
                Err(error) => panic!("{error}"),
            }
            vm.wait_for(A_WHILE / 4);
        }
        if !children.is_empty() {
            return (vm, children);
        }
    }
}

/// Rounds that a `counter` has done so far.
fn rounds(vm: &Vm) -> u64 {
    let progress = GuestAddress(Guest::Counter.free_start());
    vm.guest_ram().read_obj(progress).unwrap()
}

/// Waits until a running `counter` has done so many rounds.
fn run_until(vm: &Vm, wanted: u64) {
    while rounds(vm) < wanted {
        let stopped = vm.wait_for(Duration::from_micros(200));
        assert_eq!(stopped, None, "VM {}: {}", vm.number(), output(vm));
    }
}

#[test]
fn a_fork_of_a_running_counter_continues_exactly_in_parent_and_child() {
    let Some(host) = kvm() else { return };
    let vm = builder(&host, Guest::Counter).build().unwrap();
    vm.resume().unwrap();
    let mut vms = vec![vm];
    for _ in 0..8 {
        // Each fork is a generation deeper; all of them run.
        let newest = vms.last().unwrap();
        run_until(newest, rounds(newest) + 2);
        let child = newest.fork().unwrap();
        child.resume().unwrap();
        vms.push(child);
    }
    for vm in &vms {
        // The guest compares register, SSE register and memory each round, and
        // ends when they differ.
        run_until(vm, rounds(vm) + 5);
        vm.pause().unwrap();
        assert_eq!(
            vm.wait(),
            Event::Paused,
            "VM {}: {}",
            vm.number(),
            output(vm)
        );
    }
}

#[test]
fn a_fork_of_a_guest_that_writes_to_much_of_its_own_memory_loses_no_write() {
    let Some(host) = kvm() else { return };
    const PAGES: u64 = 1000;
    let template = builder(&host, Guest::Churn).cmdline(format!("writes=3000000 pages={PAGES}"));
    let template = template.build().unwrap();
    assert_eq!(template.run().unwrap(), Event::Ready);
    let parent = template.fork().unwrap();
    let progress = GuestAddress(Guest::Churn.free_start() + PAGES * PAGE_SIZE);
    let steps = || parent.guest_ram().read_obj::<u64>(progress).unwrap();
    parent.resume().unwrap();
    let mut children = Vec::new();
    while children.len() < 8 {
        // So many pages of its own by then that they are copied while it writes.
        let enough = steps() + 2 * PAGES;
        while steps() < enough && parent.wait_for(A_WHILE / 20).is_none() {}
        match parent.fork() {
            Ok(child) => children.push(child),
            Err(VmError::Ended(_)) if !children.is_empty() => break, // on a busy host
            Err(error) => panic!("{error}: {}", output(&parent)),
        }
    }
    // Each checks all that it reads.
    assert_eq!(parent.wait(), Event::Exited(0), "{}", output(&parent));
    for child in children {
        assert_eq!(run_to_end(&child), Event::Exited(0), "{}", output(&child));
    }
}

#[test]
fn writes_of_parent_and_child_are_invisible_to_each_other_at_every_depth() {
    let Some(host) = kvm() else { return };
    for depth in [1, 2, 8, 64] {
        let root = Worker::boot(builder(&host, Guest::Worker).memory_bytes(16 << 20));
        root.fill(Worker::memory(), 8, 1);
        let mut chain = vec![root];
        for generation in 0..depth {
            let child = chain[generation as usize].fork();
            child.write(Worker::page(generation % 8), generation + 100);
            chain.push(child);
        }
        let (child, parent) = (chain.pop().unwrap(), chain.pop().unwrap());
        let at = Worker::page(3);
        let before = [parent.read(at), child.read(at)];
        parent.write(at, 1);
        assert_eq!(child.read(at), before[1], "depth {depth}");
        child.write(at, 2);
        assert_eq!(parent.read(at), 1, "depth {depth}");
        // An ancestor far up is as it was, and neither hears of it.
        if let Some(root) = chain.first() {
            root.write(at, 3);
            assert_eq!([parent.read(at), child.read(at)], [1, 2], "depth {depth}");
        }
    }
}

#[test]
fn sixty_four_children_of_one_template_are_isolated_from_each_other() {
    let Some(host) = kvm() else { return };
    let template = Worker::boot(builder(&host, Guest::Worker).memory_bytes(16 << 20));
    template.fill(Worker::memory(), 16, 1);
    let checksum = template.checksum(Worker::memory(), 16);
    let snapshot = template.vm.snapshot().unwrap();
    let forks = snapshot.fork_many(64).unwrap();
    let children: Vec<_> = forks.into_iter().map(|vm| Worker { vm }).collect();
    for (child, number) in children.iter().zip(0..) {
        assert_eq!(child.checksum(Worker::memory(), 16), checksum);
        child.write(Worker::page(number % 16), number);
    }
    for (child, number) in children.iter().zip(0..) {
        assert_eq!(child.read(Worker::page(number % 16)), number);
    }
    assert_eq!(template.checksum(Worker::memory(), 16), checksum);
    let late = Worker {
        vm: snapshot.fork().unwrap(),
    };
    assert_eq!(late.checksum(Worker::memory(), 16), checksum);
    let numbers: BTreeSet<_> = children.iter().map(|child| child.vm.number()).collect();
    assert_eq!(numbers.len(), 64);
}

#[test]
fn a_fork_while_interrupts_arrive_loses_none_that_matter() {
    let Some(host) = kvm() else { return };
    let build = || {
        builder(&host, Guest::Timer)
            .cmdline("ticks=40")
            .build()
            .unwrap()
    };
    let (parent, children) = fork_in_flight(build, 6);
    for child in &children {
        child.resume().unwrap();
    }
    for vm in children.iter().chain([&parent]) {
        // A lost timer would leave it waiting for ever.
        let event = vm.wait_for(Duration::from_secs(60));
        assert_eq!(event, Some(Event::Exited(0)), "VM {}", vm.number());
    }
}

#[test]
fn a_fork_in_the_middle_of_device_accesses_repeats_and_loses_none() {
    let Some(host) = kvm() else { return };
    let text: String = (1..=400).map(|number| format!("{number}\n")).collect();
    let build = || {
        builder(&host, Guest::Talk)
            .cmdline("lines=400")
            .build()
            .unwrap()
    };
    let (vm, children) = fork_in_flight(build, 20);
    assert_eq!(vm.wait(), Event::Exited(0));
    assert_eq!(output(&vm), text);
    for child in &children {
        assert_eq!(child.run().unwrap(), Event::Exited(0));
        let rest = output(child);
        assert!(
            text.ends_with(&rest),
            "VM {} says {:?}",
            child.number(),
            &rest[..rest.len().min(20)]
        );
    }
}

#[test]
fn what_parent_and_child_print_after_a_fork_follows_what_was_printed_before() {
    let Some(host) = kvm() else { return };
    let text: String = (1..=100).map(|number| format!("{number}\n")).collect();
    let vm = builder(&host, Guest::Talk)
        .cmdline("lines=100")
        .build()
        .unwrap();
    for _ in 0..10 {
        vm.resume().unwrap();
        vm.wait_for(Duration::from_micros(300));
        vm.pause().unwrap();
        let before = output(&vm);
        let Ok(child) = vm.fork() else { break };
        assert_eq!(child.run().unwrap(), Event::Exited(0));
        assert_eq!(before + &output(&child), text);
    }
}

#[test]
fn a_fork_of_two_vcpus_keeps_both() {
    let Some(host) = kvm() else { return };
    let build = || {
        let builder = builder(&host, Guest::Smp).cpus(2);
        builder.cmdline("steps=3000000").build().unwrap()
    };
    let (parent, children) = fork_in_flight(build, 4);
    for child in &children {
        child.resume().unwrap();
    }
    for vm in children.iter().chain([&parent]) {
        assert_eq!(
            vm.wait(),
            Event::Exited(0),
            "VM {}: {}",
            vm.number(),
            output(vm)
        );
        assert_eq!(output(vm), "2 vCPUs counted 6000000\n");
    }
}

/// Runs a VM whose guest forks itself; the codes of it and all descendants.
fn run_family(vm: &Vm, codes: &mut Vec<u8>) {
    loop {
        match vm.run().unwrap() {
            Event::ForkRequest => run_family(&vm.fork().unwrap(), codes),
            Event::Exited(code) => return codes.push(code),
            event => panic!("{event:?}: {}", output(vm)),
        }
    }
}

#[test]
fn a_guest_that_asks_for_forks_gets_them_and_each_knows_which_it_is() {
    let Some(host) = kvm() else { return };
    let vm = builder(&host, Guest::Forker).build().unwrap();
    let mut codes = Vec::new();
    run_family(&vm, &mut codes);
    codes.sort_unstable();
    assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn a_guests_fork_that_nobody_makes_is_refused() {
    let Some(host) = kvm() else { return };
    let vm = builder(&host, Guest::Forker).build().unwrap();
    assert_eq!(vm.run().unwrap(), Event::ForkRequest);
    assert_eq!(vm.run().unwrap(), Event::Exited(99));

    let worker = Worker::boot(builder(&host, Guest::Worker));
    assert_eq!(worker.start(command::FORK, [0; 3]), Event::ForkRequest);
    assert_eq!(worker.vm.run().unwrap(), Event::Ready);
    assert_eq!(worker.result(), REFUSED);
}

#[test]
fn a_childs_number_is_what_its_guest_was_told() {
    let Some(host) = kvm() else { return };
    let parent = Worker::boot(builder(&host, Guest::Worker));
    for _ in 0..3 {
        assert_eq!(parent.start(command::FORK, [0; 3]), Event::ForkRequest);
        let child = parent.fork();
        assert_eq!(child.vm.run().unwrap(), Event::Ready);
        assert_eq!(child.result(), child.vm.number());
        assert_eq!(parent.vm.run().unwrap(), Event::Ready);
        assert_eq!(parent.result(), 0);
    }
}

#[test]
fn forks_differ_in_generation_and_random_bytes() {
    let Some(host) = kvm() else { return };
    let parent = Worker::boot(builder(&host, Guest::Worker));
    let before = parent.generation();
    let children: Vec<_> = (0..4).map(|_| parent.fork()).collect();
    let mut generations: BTreeSet<_> = children.iter().map(Worker::generation).collect();
    assert_eq!(parent.generation(), before, "a parent stays who it is");
    assert!(generations.insert(before));
    assert_eq!(generations.len(), 5);
    let seeds: BTreeSet<_> = children.iter().map(Worker::seed).collect();
    assert_eq!(seeds.len(), 4);
}

#[test]
fn whoever_waits_for_a_vm_to_stop_does_not_hear_of_forks_and_snapshots() {
    let Some(host) = kvm() else { return };
    let vm = builder(&host, Guest::Spin).build().unwrap();
    vm.resume().unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| vm.wait());
        for _ in 0..100 {
            drop(vm.fork().unwrap());
            vm.scan_zeros(100).unwrap();
            vm.settle().unwrap();
            assert!(!waiter.is_finished());
        }
        vm.pause().unwrap();
        assert_eq!(waiter.join().unwrap(), Event::Paused);
    });
}

#[test]
fn a_vm_that_has_ended_is_not_forked_and_says_why() {
    let Some(host) = kvm() else { return };
    let vm = builder(&host, Guest::Hello).build().unwrap();
    assert_eq!(run_to_end(&vm), Event::Exited(0));
    assert!(matches!(vm.fork(), Err(VmError::Ended(Event::Exited(0)))));
    assert!(matches!(vm.resume(), Err(VmError::Ended(Event::Exited(0)))));
    assert_eq!(vm.wait(), Event::Exited(0));
}

#[test]
fn a_parent_may_go_before_its_children_and_they_run_on() {
    let Some(host) = kvm() else { return };
    let mut newest = Worker::boot(builder(&host, Guest::Worker).memory_bytes(16 << 20));
    newest.fill(Worker::memory(), 4, 9);
    let checksum = newest.checksum(Worker::memory(), 4);
    for _ in 0..30 {
        newest = newest.fork(); // and the parent is dropped
        assert_eq!(newest.checksum(Worker::memory(), 4), checksum);
    }
    assert_eq!(newest.vm.stats().unwrap().tree.leaves, 1);
}
