//! The host has no memory for a guest page: that VM waits for it, and loses
//! nothing.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
// UNSAFETY: the memory behind a guest is taken away under its feet.
#![expect(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guest_images::worker::command;
use guest_images::{Guest, abi};
use tests::{Worker, builder, kvm};
use vmm::{Backing, Event, FaultKind, PAGE_SIZE, Vm};

/// Makes the memory behind guest pages inaccessible, as it is when the host
/// cannot provide it, or accessible again.
fn protect(vm: &Vm, gpa: u64, pages: u64, protection: libc::c_int) {
    // Low RAM: its offset in the window is its address.
    let start = vm.host_range().start + gpa as usize;
    let len = (pages * PAGE_SIZE) as usize;
    assert!(start + len <= vm.host_range().end);
    // SAFETY: (1) the range lies in the window of a VM that the caller keeps;
    // (2) it was readable and writable and only the guest uses it meanwhile,
    // for whom an inaccessible page ends KVM_RUN with an error.
    let result = unsafe { libc::mprotect(start as *mut _, len, protection) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_vm_the_host_has_no_memory_for_waits_and_goes_on_with_nothing_lost() {
    let Some(host) = kvm() else { return };
    const PAGES: u64 = 256;
    let image = abi::IMAGE..abi::IMAGE + Guest::Worker.image().len() as u64;
    for backing in [Backing::Memfd, Backing::Anon] {
        let root = Worker::boot(builder(&host, Guest::Worker).backing(backing));
        root.fill(Worker::memory(), PAGES, 1);
        let (starved, sibling) = (root.fork(), root.fork());
        let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // Panics if anything but being ready stops it.
                    sibling.fill(Worker::memory(), PAGES, 3);
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
            let (gpa, pages) = (Worker::page(100), 28);
            let rw = libc::PROT_READ | libc::PROT_WRITE;
            protect(&starved.vm, gpa, pages, libc::PROT_NONE);
            let mut event = starved.start(command::FILL, [Worker::memory(), PAGES, 2]);
            // Resumed without a remedy, it stops at the same place again.
            for _ in 0..3 {
                let Event::OutOfMemory(fault) = &event else {
                    panic!("{event:?}");
                };
                assert!(!event.is_final());
                assert!(matches!(fault.kind, FaultKind::Backing { .. }), "{fault}");
                assert!(image.contains(&fault.rip.unwrap()), "{fault}");
                let before = rounds.load(Ordering::Relaxed);
                while rounds.load(Ordering::Relaxed) == before {
                    std::thread::yield_now();
                }
                let again = starved.vm.run().unwrap();
                assert_eq!(again, event);
                event = again;
            }
            protect(&starved.vm, gpa, pages, rw);
            assert_eq!(starved.vm.run().unwrap(), Event::Ready);
            stop.store(true, Ordering::Relaxed);
        });
        root.fill(Worker::memory(), PAGES, 2);
        assert_eq!(
            starved.checksum(Worker::memory(), PAGES),
            root.checksum(Worker::memory(), PAGES)
        );
    }
}
