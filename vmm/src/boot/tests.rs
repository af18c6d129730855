//! From arbitrary kernels to guest memory: whatever is planned can be loaded,
//! and is where it was planned.

use std::mem::offset_of;
use std::ops::Range;

use guest_images::abi::{self, BootInfo};
use guestmem::{Backing, PAGE_SIZE, Ram, RamLayout};
use kvm_bindings::{kvm_regs, kvm_sregs};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::elf::tests::elf_file;
use super::{BootPlan, Kernel, stubs, tables};

/// Addresses in the least RAM, and some at and around the ends of things.
fn address() -> impl Strategy<Value = u64> {
    let landmark = prop::sample::select(vec![
        0,
        abi::IMAGE,
        abi::MIN_RAM,
        abi::MIN_RAM - abi::STACK_LEN,
        guestmem::HOLE_START.0,
        guestmem::HOLE_END.0,
        u64::MAX,
    ]);
    let beside =
        (landmark, -0x40..0x40i64).prop_map(|(landmark, by)| landmark.wrapping_add_signed(by));
    prop_oneof![15 => abi::IMAGE..abi::MIN_RAM / 2, 1 => beside]
}

/// A segment: where, how many bytes of file, how many zeros after them.
fn segment() -> impl Strategy<Value = (u64, Vec<u8>, u64)> {
    let zeros = prop_oneof![15 => 0..0x3000u64, 1 => Just(1 << 40), 1 => address()];
    (
        address(),
        prop::collection::vec(1..=u8::MAX, 1..0x60),
        zeros,
    )
}

/// An ELF file, most often one that can be loaded.
fn elf() -> impl Strategy<Value = Vec<u8>> {
    (
        prop::collection::vec(segment(), 1..5),
        prop::option::weighted(0.05, address()),
        prop::collection::vec((0..400usize, any::<u8>()), 0..2),
    )
        .prop_map(|(segments, entry, changes)| {
            let entry = entry.unwrap_or(segments[0].0);
            let segments: Vec<_> = segments
                .iter()
                .map(|(address, bytes, zeros)| {
                    let len = (bytes.len() as u64).wrapping_add(*zeros);
                    (*address, bytes.as_slice(), len)
                })
                .collect();
            let mut file = elf_file(entry, &segments);
            for (at, value) in changes {
                if let Some(byte) = file.get_mut(at) {
                    *byte = value;
                }
            }
            file
        })
}

fn kernel() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => elf(),
        1 => prop::collection::vec(any::<u8>(), 0..0x3000),
        1 => (2u64 << 20..5 << 20).prop_map(|len| vec![0x90; len as usize]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_kernel_is_refused_or_lies_in_memory_as_planned(
        file in kernel(),
        pages in 1000..2100u64,
        cpus in 1..=abi::MAX_CPUS,
        cmdline in "[ -~]{0,40}|\0|x{4094,4097}",
        initrd in prop::option::of(prop::collection::vec(any::<u8>(), 0..0x5000)),
    ) {
        let layout = RamLayout::new(pages * PAGE_SIZE).unwrap();
        let Ok(kernel) = Kernel::from_bytes(file.clone()) else {
            return Ok(());
        };
        let Ok(plan) = BootPlan::new(&kernel, &layout, cpus, &cmdline, initrd.as_deref()) else {
            return Ok(());
        };
        let ram = Ram::new(layout, Backing::Memfd).unwrap();
        let memory = ram.guest_ram();
        plan.load(&memory).unwrap();
        let read = |range: Range<u64>| {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            memory.read_slice(&mut bytes, GuestAddress(range.start)).unwrap();
            bytes
        };

        // What came last has not overwritten what came before.
        let at = |gpa: u64, wanted: &[u8]| read(gpa..gpa + wanted.len() as u64) == wanted;
        prop_assert!(at(abi::GDT, &tables::gdt(cpus)));
        prop_assert!(at(abi::IDT, &tables::idt()));
        prop_assert!(at(abi::STUBS, &stubs::stubs()));
        prop_assert!(at(abi::PAGE_TABLES, &tables::page_tables(layout.end().0)));
        prop_assert!(at(abi::CMDLINE, cmdline.as_bytes()));
        prop_assert!(at(abi::CMDLINE + cmdline.len() as u64, &[0]));
        match kernel.elf() {
            None => prop_assert!(at(abi::IMAGE, &file)),
            Some(elf) => for segment in &elf.segments {
                let mut wanted = file[segment.file.clone()].to_vec();
                wanted.resize((segment.memory.end - segment.memory.start) as usize, 0);
                prop_assert!(at(segment.memory.start, &wanted));
            },
        }
        let word = |offset: usize| {
            let at = abi::BOOT_INFO + offset as u64;
            let bytes = read(at..at + 8);
            u64::from_le_bytes(bytes.try_into().unwrap())
        };
        let initrd = initrd.as_deref().unwrap_or_default();
        let (initrd_start, initrd_end) = (
            word(offset_of!(BootInfo, initrd_start)),
            word(offset_of!(BootInfo, initrd_end)),
        );
        prop_assert_eq!(initrd_end - initrd_start, initrd.len() as u64);
        prop_assert!(at(initrd_start, initrd));

        // Free memory, and every stack, is nobody else's.
        let (free_start, free_end) = (
            word(offset_of!(BootInfo, free_start)),
            word(offset_of!(BootInfo, free_end)),
        );
        prop_assert!(word(offset_of!(BootInfo, image_end)) <= free_start);
        prop_assert!(free_start <= free_end && free_end <= initrd_start);
        prop_assert_eq!((free_start % PAGE_SIZE, free_end % PAGE_SIZE), (0, 0));
        let mut below = layout.low_end().0;
        for index in 0..cpus {
            let (mut sregs, mut regs) = (kvm_sregs::default(), kvm_regs::default());
            plan.entry(index).apply(&mut sregs, &mut regs, 7);
            prop_assert_eq!(regs.rsp, below - 8);
            below -= abi::STACK_LEN;
            prop_assert!(initrd_end <= below);
            prop_assert!(at(below, &vec![0; abi::STACK_LEN as usize]));
        }
    }
}
