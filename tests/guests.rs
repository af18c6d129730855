//! Every guest runs and does what it says.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use guest_images::Guest;
use tests::{builder, kvm, output, run_to_end};
use vmm::{Backing, Event};

#[test]
fn every_guest_that_ends_by_itself_ends_well() {
    let Some(host) = kvm() else { return };
    for (guest, cmdline, cpus, says) in [
        (Guest::Hello, "", 1, "hello\n"),
        (Guest::Counter, "rounds=20", 1, "counted 1310720\n"),
        (Guest::Touch, "pages=32 seed=7", 1, "checksum 0x"),
        (Guest::Zeros, "pages=32", 1, "32 pages are zero\n"),
        (Guest::Timer, "ticks=5", 1, "at least 10 ticks\n"),
        (Guest::Smp, "steps=100000", 2, "2 vCPUs counted 200000\n"),
        (Guest::Smp, "steps=20000", 5, "5 vCPUs counted 100000\n"),
        (Guest::Free, "pages=32", 1, "dropped 30 pages\n"),
        (Guest::Talk, "lines=4", 1, "1\n2\n3\n4\n"),
    ] {
        for backing in [Backing::Memfd, Backing::Anon] {
            let builder = builder(&host, guest)
                .cmdline(cmdline)
                .cpus(cpus)
                .backing(backing);
            let vm = builder.build().unwrap();
            assert_eq!(
                run_to_end(&vm),
                Event::Exited(0),
                "{guest:?}: {}",
                output(&vm)
            );
            let said = output(&vm);
            assert!(said.starts_with(says), "{guest:?} says {said:?}");
        }
    }
}

#[test]
fn an_elf_kernel_runs_in_ring_0_and_its_code_is_the_exit_code() {
    let Some(host) = kvm() else { return };
    let vm = builder(&host, Guest::Ring0).build().unwrap();
    assert_eq!(vm.run().unwrap(), Event::Exited(42));
    assert_eq!(output(&vm), "hello from ring 0\nko!\n");
}

#[test]
fn touch_prints_the_same_checksum_for_the_same_seed_only() {
    let Some(host) = kvm() else { return };
    let checksum = |cmdline: &str| {
        let vm = builder(&host, Guest::Touch)
            .cmdline(cmdline)
            .build()
            .unwrap();
        assert_eq!(run_to_end(&vm), Event::Exited(0));
        output(&vm)
    };
    assert_eq!(checksum("pages=8 seed=1"), checksum("pages=8 seed=1"));
    assert_ne!(checksum("pages=8 seed=1"), checksum("pages=8 seed=2"));
}

#[test]
fn a_spinning_guest_can_be_stopped_and_goes_on_where_it_was() {
    let Some(host) = kvm() else { return };
    use vm_memory::{Bytes, GuestAddress};
    let vm = builder(&host, Guest::Spin).build().unwrap();
    let count = || {
        vm.guest_ram()
            .read_obj::<u64>(GuestAddress(Guest::Spin.free_start()))
            .unwrap()
    };
    let mut before = 0;
    for _ in 0..100 {
        vm.resume().unwrap();
        while count() == before {
            std::thread::yield_now();
        }
        vm.pause().unwrap();
        assert_eq!(vm.wait(), Event::Paused);
        let stopped = count();
        assert!(stopped > before);
        std::thread::yield_now();
        assert_eq!(count(), stopped, "it runs although it is paused");
        before = stopped;
    }
}

#[test]
fn input_reaches_the_guest_that_polls_for_it() {
    let Some(host) = kvm() else { return };
    // Nothing reads it here; it must be taken, up to a bound, and harm nobody.
    let vm = builder(&host, Guest::Talk)
        .cmdline("lines=10")
        .build()
        .unwrap();
    assert_eq!(vm.feed_input(b"abc"), 3);
    assert!(vm.feed_input(&vec![0; 1 << 20]) < 1 << 20);
    assert_eq!(run_to_end(&vm), Event::Exited(0));
}
