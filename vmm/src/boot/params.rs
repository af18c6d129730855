//! Linux's boot parameters, the "zero page", for ELF kernels.
//!
//! Only the fields that the 64-bit boot protocol asks for, at the offsets of
//! Documentation/arch/x86/boot.rst and zero-page.rst.

use std::ops::Range;

use guestmem::{PAGE_SIZE, RamLayout};

/// Usable memory, in the memory map.
const E820_RAM: u32 = 1;
/// Where conventional memory ends: the extended BIOS data area of a PC.
const LOW_MEMORY_END: u64 = 0x9_f000;
/// Where memory goes on above video memory and BIOS.
const HIGH_MEMORY: u64 = 0x10_0000;

/// The page, to be put at [`BOOT_PARAMS`](guest_images::abi::BOOT_PARAMS).
/// Addresses are below 4 GiB.
pub(crate) fn boot_params(
    layout: &RamLayout,
    cmdline: u32,
    cmdline_len: u32,
    initrd: &Range<u64>,
) -> Vec<u8> {
    let mut page = vec![0; PAGE_SIZE as usize];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    let low_half = |address: u64| u32::try_from(address).unwrap_or(0).to_le_bytes();

    put(0x1fe, &0xaa55_u16.to_le_bytes()); // boot_flag
    put(0x202, b"HdrS");
    put(0x206, &0x020f_u16.to_le_bytes()); // protocol version
    put(0x210, &[0xff]); // type_of_loader: none that is registered
    put(0x211, &[0x01]); // loadflags: loaded high
    put(0x218, &low_half(initrd.start));
    put(0x21c, &low_half(initrd.end - initrd.start));
    put(0x228, &cmdline.to_le_bytes());
    put(0x238, &cmdline_len.to_le_bytes());

    let high = layout
        .high()
        .map(|region| region.gpa_range().start.0..region.gpa_range().end.0);
    let map = [
        Some(0..LOW_MEMORY_END),
        Some(HIGH_MEMORY..layout.low_end().0),
        high,
    ];
    let map: Vec<_> = map.into_iter().flatten().collect();
    put(0x1e8, &[map.len() as u8]);
    for (index, range) in map.into_iter().enumerate() {
        let at = 0x2d0 + 20 * index;
        put(at, &range.start.to_le_bytes());
        put(at + 8, &(range.end - range.start).to_le_bytes());
        put(at + 16, &E820_RAM.to_le_bytes());
    }
    page
}
