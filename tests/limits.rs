//! Memory limits: who has more than it may is stopped and says so, loses
//! nothing, and nobody else hears of it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use guest_images::Guest;
use guest_images::worker::command;
use tests::{Worker, builder, kvm, output};
use vmm::{
    Backing, BuildError, Event, Limits, MemoryLimit, PAGE_SIZE, VmBuilder, VmError, VmStats, Whose,
};

const MIB: u64 = 1 << 20;
/// Long enough for anything that happens at all.
const PATIENCE: Duration = Duration::from_secs(30);

fn worker(host: &Arc<vmm::Host>) -> VmBuilder {
    builder(host, Guest::Worker).memory_bytes(512 * MIB)
}

/// The limit that has stopped a VM.
#[track_caller]
fn limit(event: Event) -> MemoryLimit {
    match event {
        Event::MemoryLimit(limit) => limit,
        event => panic!("{event:?}"),
    }
}

/// Runs a VM that its family's limit stops until there is no room any more:
/// each time what nobody sees is given back first.
#[track_caller]
fn run_until_refused(worker: &Worker) -> MemoryLimit {
    loop {
        match worker.vm.run() {
            Ok(event) => assert_eq!(limit(event).whose, Whose::Family),
            Err(VmError::OverLimit(limit)) => return limit,
            Err(error) => panic!("{error}"),
        }
    }
}

/// All that may not change when something is refused.
fn everything(worker: &Worker) -> (VmStats, u64, u64) {
    let vm = &worker.vm;
    (
        vm.stats().unwrap(),
        vm.committed_bytes().unwrap(),
        vm.tree().committed_bytes().unwrap(),
    )
}

#[test]
fn a_vm_that_grows_is_stopped_says_why_and_ends_right_when_the_limit_is_raised() {
    let Some(host) = kvm() else { return };
    let touch = |limits: Limits, backing| {
        let builder = builder(&host, Guest::Touch).memory_bytes(512 * MIB);
        let builder = builder.backing(backing).limits(limits);
        builder.cmdline("pages=32768 seed=5").build().unwrap()
    };
    for backing in [Backing::Memfd, Backing::Anon] {
        let free = touch(Limits::NONE, backing);
        assert_eq!(free.run().unwrap(), Event::Ready);
        assert_eq!(free.run().unwrap(), Event::Exited(0));

        let vm = touch(Limits::hard(32 * MIB), backing);
        let passed = limit(vm.run().unwrap());
        assert_eq!((passed.whose, passed.limit_bytes), (Whose::Vm(0), 32 * MIB));
        assert!(passed.committed_bytes > 32 * MIB, "{passed}");
        let said = passed.to_string();
        for word in ["VM 0", "33554432", "raise"] {
            assert!(said.contains(word), "{said}");
        }
        assert!(vm.committed_bytes().unwrap() < 128 * MIB, "it was stopped");

        // Until it is raised, it does not run.
        let refused = vm.run().unwrap_err();
        assert!(
            matches!(refused, VmError::OverLimit(again) if again.whose == Whose::Vm(0)),
            "{refused}"
        );
        vm.set_limits(Limits::hard(160 * MIB)).unwrap();
        assert_eq!(vm.run().unwrap(), Event::Ready);
        assert_eq!(vm.run().unwrap(), Event::Exited(0));
        assert_eq!(output(&vm), output(&free));
    }
}

#[test]
fn a_limit_as_large_as_its_ram_never_stops_a_vm() {
    let Some(host) = kvm() else { return };
    let vm = builder(&host, Guest::Touch)
        .memory_bytes(32 * MIB)
        .limits(Limits::hard(32 * MIB))
        .cmdline("pages=7000")
        .build()
        .unwrap();
    assert_eq!(vm.run().unwrap(), Event::Ready);
    assert_eq!(vm.run().unwrap(), Event::Exited(0));
}

#[test]
fn a_limit_set_below_what_a_running_vm_has_stops_it() {
    let Some(host) = kvm() else { return };
    let vm = builder(&host, Guest::Spin).build().unwrap();
    let sibling = vm.fork().unwrap();
    vm.resume().unwrap();
    sibling.resume().unwrap();
    // It writes one page for ever; so it has at least that, some time soon.
    while vm.committed_bytes().unwrap() == 0 {
        std::thread::yield_now();
    }
    vm.set_limits(Limits::hard(1)).unwrap();
    assert_eq!(limit(vm.wait()).whose, Whose::Vm(0));
    assert_eq!(sibling.wait_for(Duration::ZERO), None, "it runs on");
}

/// Has `worker` write the same pages over and over while `during` is done;
/// it must be making progress when that is finished.
fn works_on_during<T>(worker: &Worker, pages: u64, during: impl FnOnce() -> T) -> T {
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // Panics if anything but being ready stops it.
                worker.fill(Worker::memory(), pages, 3);
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        let done = during();
        let (before, started) = (rounds.load(Ordering::Relaxed), Instant::now());
        while rounds.load(Ordering::Relaxed) < before + 3 && started.elapsed() < PATIENCE {
            std::thread::yield_now();
        }
        let after = rounds.load(Ordering::Relaxed);
        stop.store(true, Ordering::Relaxed);
        assert!(after >= before + 3, "{before} rounds, then {after}");
        done
    })
}

#[test]
fn siblings_of_a_vm_over_its_limit_go_on_and_forks_inherit_it() {
    let Some(host) = kvm() else { return };
    let root = Worker::boot(worker(&host).limits(Limits::hard(24 * MIB)));
    root.fill(Worker::memory(), 64, 1);
    let (sibling, grower) = (root.fork(), root.fork());
    let generation = grower.fork();
    assert_eq!(generation.vm.limits(), Limits::hard(24 * MIB));
    drop(generation);
    let passed = works_on_during(&sibling, 64, || {
        limit(grower.start(command::FILL, [Worker::memory(), 24576, 2]))
    });
    assert_eq!(passed.whose, Whose::Vm(grower.vm.number()));
    assert_eq!(root.vm.limits(), sibling.vm.limits());
    // Raised for one of them, it is raised for that one only.
    grower.vm.set_limits(Limits::NONE).unwrap();
    assert_eq!(sibling.vm.limits(), Limits::hard(24 * MIB));
    assert_eq!(grower.vm.run().unwrap(), Event::Ready);
    let free = Worker::boot(worker(&host));
    free.fill(Worker::memory(), 24576, 2);
    assert_eq!(
        grower.checksum(Worker::memory(), 24576),
        free.checksum(Worker::memory(), 24576)
    );
}

#[test]
fn the_limit_of_a_family_stops_who_grows_and_nobody_else() {
    let Some(host) = kvm() else { return };
    let root = Worker::boot(worker(&host));
    root.fill(Worker::memory(), 1024, 1);
    let (sibling, grower) = (root.fork(), root.fork());
    sibling.fill(Worker::memory(), 64, 1);
    grower.fill(Worker::memory(), 64, 1);
    let family = root.vm.tree();
    let room = family.committed_bytes().unwrap() + 16 * MIB;
    root.vm.set_family_limits(Limits::hard(room)).unwrap();
    assert_eq!(sibling.vm.family_limits(), Limits::hard(room));

    let passed = works_on_during(&sibling, 64, || {
        limit(grower.start(command::FILL, [Worker::memory(), 24576, 2]))
    });
    assert_eq!((passed.whose, passed.limit_bytes), (Whose::Family, room));
    assert!(family.committed_bytes().unwrap() > room);
    assert_eq!(run_until_refused(&grower).whose, Whose::Family);
    // Who did not grow may be stopped and go on as ever; forks have no room.
    assert_eq!(root.read(Worker::page(1)), root.read(Worker::page(1)));
    let refused = sibling.vm.fork().unwrap_err();
    assert!(matches!(refused, VmError::WouldExceed { .. }), "{refused}");

    root.vm.set_family_limits(Limits::hard(1 << 40)).unwrap();
    assert_eq!(grower.vm.run().unwrap(), Event::Ready);
    let seen = grower.checksum(Worker::memory(), 24576);
    root.vm.set_family_limits(Limits::NONE).unwrap();
    root.fill(Worker::memory(), 24576, 2);
    assert_eq!(root.checksum(Worker::memory(), 24576), seen);
}

#[test]
fn a_family_over_its_limit_goes_on_when_one_of_it_is_dropped() {
    let Some(host) = kvm() else { return };
    let root = Worker::boot(worker(&host));
    let (heavy, grower) = (root.fork(), root.fork());
    heavy.fill(Worker::memory(), 4096, 1);
    let room = root.vm.tree().committed_bytes().unwrap() + 4 * MIB;
    root.vm.set_family_limits(Limits::hard(room)).unwrap();
    limit(grower.start(command::FILL, [Worker::memory(), 24576, 2]));
    run_until_refused(&grower);
    drop(heavy);
    // There is room for a while again.
    limit(grower.vm.run().unwrap());
}

#[test]
fn a_soft_limit_gives_a_notice_once_and_again_after_falling_below() {
    let Some(host) = kvm() else { return };
    let worker = Worker::boot(worker(&host));
    let now = worker.vm.committed_bytes().unwrap();
    let notices = worker.vm.notices();
    let limits = Limits::soft(now + 4 * MIB);
    worker.vm.set_limits(limits).unwrap();
    worker
        .vm
        .set_family_limits(Limits::soft(now + 16 * MIB))
        .unwrap();

    worker.fill(Worker::memory(), 2048, 1);
    let notice = notices.recv_timeout(PATIENCE).unwrap();
    assert_eq!(notice.0.whose, Whose::Vm(0));
    assert_eq!(Some(notice.0.limit_bytes), limits.soft_bytes());
    assert!(notice.to_string().contains("soft"), "{notice}");
    worker.fill(Worker::page(2048), 1024, 1);
    worker.fill(Worker::memory(), 64, 1);
    assert_eq!(notices.try_recv().ok(), None, "it was said");

    worker.free(Worker::memory(), 3072 * PAGE_SIZE);
    worker.fill(Worker::memory(), 8192, 1);
    let whose = [(); 2].map(|()| notices.recv_timeout(PATIENCE).unwrap().0.whose);
    assert!(
        whose.contains(&Whose::Vm(0)) && whose.contains(&Whose::Family),
        "{whose:?}"
    );
    worker.fill(Worker::memory(), 64, 1);
    assert_eq!(notices.try_recv().ok(), None, "it was said");
}

#[test]
fn a_fork_that_the_limit_has_no_room_for_is_refused_and_changes_nothing() {
    let Some(host) = kvm() else { return };
    let root = Worker::boot(worker(&host));
    let child = root.fork();
    child.fill(Worker::memory(), 2048, 7);
    let checksum = child.checksum(Worker::memory(), 2048);
    // What nobody sees would be given back first.
    let snapshot = child.vm.snapshot().unwrap();
    root.vm.tree().reclaim().unwrap();
    let has = root.vm.tree().committed_bytes().unwrap();
    root.vm.set_family_limits(Limits::hard(has - MIB)).unwrap();
    let before = everything(&child);
    for refused in [snapshot.fork().err(), snapshot.fork_many(8).err()] {
        assert!(refused.is_some());
    }
    assert_eq!(everything(&child), before, "not one of them is left");
    drop(snapshot);
    root.vm.set_family_limits(Limits::NONE).unwrap(); // or it would be stopped
    child.fill(Worker::memory(), 2048, 7);
    root.vm.tree().reclaim().unwrap();
    let room = root.vm.tree().committed_bytes().unwrap() + MIB;
    root.vm.set_family_limits(Limits::hard(room)).unwrap();

    let before = everything(&child);
    for refused in [child.vm.fork().err(), child.vm.snapshot().err()] {
        let refused = refused.unwrap();
        let VmError::WouldExceed {
            limit,
            wanted_bytes,
        } = &refused
        else {
            panic!("{refused}");
        };
        assert!(
            *wanted_bytes >= 2048 * PAGE_SIZE && limit.limit_bytes == room,
            "{refused}"
        );
    }
    assert_eq!(everything(&child), before);

    // A limit of its own, which it is over already.
    root.vm.set_family_limits(Limits::NONE).unwrap();
    child.vm.set_limits(Limits::hard(MIB)).unwrap();
    for refused in [child.vm.fork().err(), child.vm.snapshot().err()] {
        assert!(
            matches!(refused, Some(VmError::OverLimit(_))),
            "{refused:?}"
        );
    }
    assert_eq!(everything(&child), before);
    child.vm.set_limits(Limits::NONE).unwrap();
    let grandchild = child.fork();
    assert_eq!(grandchild.checksum(Worker::memory(), 2048), checksum);
    assert_eq!(child.checksum(Worker::memory(), 2048), checksum);
}

#[test]
fn a_reset_of_a_vm_over_its_limit_gives_memory_back_and_it_goes_on() {
    let Some(host) = kvm() else { return };
    let worker = Worker::boot(worker(&host));
    worker.fill(Worker::memory(), 64, 1);
    let checksum = worker.checksum(Worker::memory(), 64);
    let snapshot = worker.vm.snapshot().unwrap();
    worker.vm.set_limits(Limits::hard(16 * MIB)).unwrap();
    for _ in 0..3 {
        limit(worker.start(command::FILL, [Worker::memory(), 24576, 2]));
        worker.vm.reset(&snapshot).unwrap();
        assert_eq!(worker.vm.committed_bytes().unwrap(), 0);
        assert_eq!(worker.checksum(Worker::memory(), 64), checksum);
    }
}

#[test]
fn a_kernel_that_takes_more_than_the_limit_is_not_built() {
    let Some(host) = kvm() else { return };
    for (own, family, whose) in [
        (Limits::hard(4096), Limits::NONE, Whose::Vm(0)),
        (Limits::NONE, Limits::hard(4096), Whose::Family),
    ] {
        let refused = worker(&host).limits(own).family_limits(family).build();
        assert!(
            matches!(&refused, Err(BuildError::OverLimit(limit)) if limit.whose == whose),
            "{refused:?}"
        );
    }
    let initrd = vec![1; 8 << 20];
    let refused = worker(&host)
        .initrd(initrd)
        .limits(Limits::hard(4 * MIB))
        .build();
    assert!(
        matches!(refused, Err(BuildError::OverLimit(_))),
        "{refused:?}"
    );
}

#[test]
fn nobody_who_is_dropped_is_kept_by_the_watcher() {
    let Some(host) = kvm() else { return };
    let spin = builder(&host, Guest::Spin)
        .limits(Limits::new(Some(1), Some(1 << 30)).unwrap())
        .family_limits(Limits::hard(1 << 30))
        .build()
        .unwrap();
    let tree = spin.tree();
    spin.resume().unwrap();
    for _ in 0..100 {
        let child = spin.fork().unwrap();
        child.resume().unwrap();
        drop(child);
        // The layer under the child has been merged: only the parent is left.
        let stats = tree.stats().unwrap();
        assert_eq!((stats.leaves, stats.layers), (1, 0));
    }
    let notices = spin.notices();
    drop(spin);
    let stats = tree.stats().unwrap();
    assert_eq!(
        (stats.leaves, stats.frames(), stats.committed_file_frames),
        (0, 0, 0)
    );
    // The family has gone, and the watcher with it.
    assert!(notices.recv_timeout(PATIENCE).is_err());
    let started = Instant::now();
    while Arc::strong_count(&tree) > 1 && started.elapsed() < PATIENCE {
        std::thread::yield_now();
    }
    assert_eq!(Arc::strong_count(&tree), 1);
}
