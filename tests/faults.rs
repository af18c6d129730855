//! Guests that go wrong end with an error that says what and where, and
//! nobody else hears of it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use guest_images::{Guest, abi};
use tests::{Worker, builder, kvm};
use vmm::{Access, Event, FaultKind, Kernel, VmBuilder};

fn fault_of(host: &std::sync::Arc<vmm::Host>, how: &str) -> vmm::Fault {
    let vm = builder(host, Guest::Faulty)
        .cmdline(format!("how={how}"))
        .build()
        .unwrap();
    assert_eq!(vm.run().unwrap(), Event::Ready);
    match vm.run().unwrap() {
        Event::Failed(fault) => fault,
        event => panic!("{how}: {event:?}"),
    }
}

#[test]
fn every_way_to_go_wrong_says_what_and_where() {
    let Some(host) = kvm() else { return };
    let image = abi::IMAGE..abi::IMAGE + Guest::Faulty.image().len() as u64;

    assert_eq!(fault_of(&host, "triple").kind, FaultKind::TripleFault);

    let invalid = fault_of(&host, "invalid").kind;
    assert!(
        matches!(invalid, FaultKind::Exception { vector: 6, rip, .. } if image.contains(&rip)),
        "{invalid:?}"
    );
    let jump = fault_of(&host, "jump").kind;
    assert!(
        matches!(
            jump,
            FaultKind::Exception {
                vector: 14,
                rip: 0x7f00_0000_0000,
                cr2: 0x7f00_0000_0000,
                ..
            }
        ),
        "{jump:?}"
    );
    let null = fault_of(&host, "null").kind;
    assert!(
        matches!(null, FaultKind::Exception { vector: 14, rip, cr2: 0, .. } if image.contains(&rip)),
        "{null:?}"
    );
    for (how, access) in [
        ("outside-write", Access::Write),
        ("outside-read", Access::Read),
    ] {
        let outside = fault_of(&host, how);
        let wanted = FaultKind::NoDevice {
            access,
            gpa: 0xc000_1000,
            len: 8,
        };
        assert_eq!(outside.kind, wanted);
        assert!(image.contains(&outside.rip.unwrap()), "{outside:?}");
    }
    let emulation = fault_of(&host, "emulation");
    assert!(
        matches!(emulation.kind, FaultKind::Emulation { .. }),
        "{emulation:?}"
    );
    assert_eq!(emulation.rip, Some(abi::CONTROL_PAGE));
    let register = fault_of(&host, "register").kind;
    assert!(
        matches!(
            register,
            FaultKind::NoDevice {
                gpa: 0xd000_0800,
                ..
            }
        ),
        "{register:?}"
    );
}

#[test]
fn siblings_of_a_guest_that_fails_go_on() {
    let Some(host) = kvm() else { return };
    let parent = builder(&host, Guest::Faulty)
        .cmdline("how=triple")
        .build()
        .unwrap();
    assert_eq!(parent.run().unwrap(), Event::Ready);
    let children = [parent.fork().unwrap(), parent.fork().unwrap()];
    let other = Worker::boot(builder(&host, Guest::Worker));
    other.write(Worker::page(0), 5);
    assert!(matches!(children[0].run().unwrap(), Event::Failed(_)));
    assert!(matches!(parent.run().unwrap(), Event::Failed(_)));
    // Each fails for itself: the second child was not stopped by the others.
    assert!(matches!(children[1].run().unwrap(), Event::Failed(_)));
    assert_eq!(other.read(Worker::page(0)), 5);
    let tree = parent.tree();
    drop((parent, children));
    assert_eq!(tree.stats().unwrap().frames(), 0);
}

#[test]
fn garbage_for_a_kernel_ends_with_an_error_not_with_a_hang() {
    let Some(host) = kvm() else { return };
    // A fixed generator, so that a failure repeats.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..40 {
        let bytes: Vec<u8> = (0..512).flat_map(|_| next().to_le_bytes()).collect();
        let kernel = Kernel::from_bytes(bytes).unwrap();
        let vm = VmBuilder::new(host.clone(), kernel)
            .memory_bytes(8 << 20)
            .build()
            .unwrap();
        vm.resume().unwrap();
        // Garbage may loop for ever; then it must still be possible to stop it.
        if vm.wait_for(std::time::Duration::from_millis(20)).is_none() {
            vm.pause().unwrap();
        }
        let event = vm.wait();
        assert_ne!(event, Event::Ready, "round {round}: {event:?}");
    }
}
