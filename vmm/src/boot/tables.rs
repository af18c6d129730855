//! The tables that a vCPU needs before its first instruction, as bytes.

use guest_images::abi::{self, selector};
use guestmem::{HOLE_END, HOLE_START, PAGE_SIZE};

use super::stubs::WAIT_VECTOR;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const WRITE_THROUGH: u64 = 1 << 3;
const UNCACHED: u64 = 1 << 4;
/// The CPU has used this entry, and written to the page it maps. Set from the
/// start, so that the CPU does not do it: page tables would become pages that
/// each fork must copy and each reset restore.
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// In a page directory: a 2 MiB page.
const LARGE: u64 = 1 << 7;

const TABLE: u64 = PRESENT | WRITABLE | USER | ACCESSED;
const PAGE: u64 = TABLE | DIRTY;
const ENTRIES: u64 = 512;
const GIB: u64 = 1 << 30;
const LARGE_PAGE: u64 = 2 << 20;

/// PML4, page-directory-pointer table, and the page table of the first 2 MiB.
const FIXED_TABLES: u64 = 3;

/// Gigabytes that the room for page tables can map, one directory each.
const MOST_GIB: u64 = (abi::PAGE_TABLES_END - abi::PAGE_TABLES) / PAGE_SIZE - FIXED_TABLES;

/// Page tables that map the first 4 GiB and RAM up to `ram_end` (as far as
/// there is room for tables), each address to itself, for ring 3 too. Page 0 is
/// left out, so that null pointers fault. From [`abi::PAGE_TABLES`] on.
pub(crate) fn page_tables(ram_end: u64) -> Vec<u8> {
    let directories = ram_end.max(HOLE_END.0).div_ceil(GIB).min(MOST_GIB);
    let table = |index: u64| abi::PAGE_TABLES + index * PAGE_SIZE;
    let mut words = vec![0u64; ((FIXED_TABLES + directories) * ENTRIES) as usize];
    let mut set = |table: u64, entry: u64, value: u64| {
        words[(table * ENTRIES + entry) as usize] = value;
    };
    set(0, 0, table(1) | TABLE);
    for page in 1..ENTRIES {
        set(2, page, (page * PAGE_SIZE) | PAGE);
    }
    for gib in 0..directories {
        set(1, gib, table(FIXED_TABLES + gib) | TABLE);
        for entry in 0..ENTRIES {
            let address = gib * GIB + entry * LARGE_PAGE;
            let devices = (HOLE_START.0..HOLE_END.0).contains(&address);
            let caching = if devices { UNCACHED | WRITE_THROUGH } else { 0 };
            set(FIXED_TABLES + gib, entry, address | PAGE | LARGE | caching);
        }
    }
    set(FIXED_TABLES, 0, table(2) | TABLE);
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The global descriptor table for `cpus` vCPUs, at [`abi::GDT`].
pub(crate) fn gdt(cpus: u32) -> Vec<u8> {
    // Base 0, limit 4 GiB, present; what differs is type, ring and size.
    const KERNEL_CODE: u64 = 0x00af_9b00_0000_ffff;
    const KERNEL_DATA: u64 = 0x00cf_9300_0000_ffff;
    const USER_DATA: u64 = 0x00cf_f300_0000_ffff;
    const USER_CODE: u64 = 0x00af_fb00_0000_ffff;
    /// Present, ring 0, busy 64-bit TSS.
    const TSS: u64 = 0x8b << 40;

    let mut words = vec![0u64; usize::from(selector::TSS / 8)];
    for (selector, descriptor) in [
        (selector::KERNEL_CODE, KERNEL_CODE),
        (selector::KERNEL_DATA, KERNEL_DATA),
        (selector::USER_DATA, USER_DATA),
        (selector::USER_CODE, USER_CODE),
    ] {
        words[usize::from(selector / 8)] = descriptor;
    }
    for index in 0..cpus {
        let base = abi::vcpu_page(index);
        words.push(TSS | TSS_LIMIT | (base & 0xff_ffff) << 16 | (base >> 24 & 0xff) << 56);
        words.push(base >> 32);
    }
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Bytes of a 64-bit TSS before its I/O bitmap.
const TSS_LEN: usize = 104;
/// Ports that the bitmap covers; those beyond are forbidden.
const BITMAP_PORTS: usize = 0x400;
/// COM1, the only ports that ring 3 may use.
const COM1_BITMAP_BYTE: usize = 0x3f8 / 8;
/// The last byte of the TSS, a terminator after the bitmap included.
pub(crate) const TSS_LIMIT: u64 = (TSS_LEN + BITMAP_PORTS / 8) as u64;

/// The TSS of vCPU `index`, at the start of its [`abi::vcpu_page`].
pub(crate) fn tss(index: u32) -> Vec<u8> {
    let mut bytes = vec![0; TSS_LEN];
    let ring0_stack = abi::vcpu_page(index) + PAGE_SIZE;
    bytes[4..12].copy_from_slice(&ring0_stack.to_le_bytes());
    bytes[102..104].copy_from_slice(&(TSS_LEN as u16).to_le_bytes());
    bytes.resize(TSS_LIMIT as usize + 1, 0xff);
    bytes[TSS_LEN + COM1_BITMAP_BYTE] = 0;
    bytes
}

/// The interrupt descriptor table, at [`abi::IDT`]: interrupt gates to the
/// stubs; ring 3 may call one of them.
pub(crate) fn idt() -> Vec<u8> {
    const INTERRUPT_GATE: u64 = 0x8e << 40;
    const FROM_RING_3: u64 = 0x60 << 40;
    let gate = |vector: u8| {
        let stub = abi::STUBS + u64::from(vector) * abi::STUB_LEN;
        let ring = if vector == WAIT_VECTOR {
            FROM_RING_3
        } else {
            0
        };
        let selector = u64::from(selector::KERNEL_CODE) << 16;
        let low = (stub & 0xffff) | selector | INTERRUPT_GATE | ring | (stub >> 16 & 0xffff) << 48;
        [low, stub >> 32]
    };
    (0..=u8::MAX)
        .flat_map(gate)
        .flat_map(u64::to_le_bytes)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: &[u8], index: usize) -> u64 {
        u64::from_le_bytes(bytes[8 * index..8 * index + 8].try_into().unwrap())
    }

    /// Walks the tables as the CPU does.
    fn translate(tables: &[u8], address: u64) -> Option<u64> {
        let mut table = abi::PAGE_TABLES;
        for shift in [39, 30, 21, 12] {
            let at = (table - abi::PAGE_TABLES) / 8 + (address >> shift & 511);
            let entry = word(tables, at as usize);
            if entry & PRESENT == 0 {
                return None;
            }
            let base = entry & 0x000f_ffff_ffff_f000;
            if shift == 12 || entry & LARGE != 0 {
                return Some(base + (address & ((1 << shift) - 1)));
            }
            table = base;
        }
        None
    }

    #[test]
    fn every_address_maps_to_itself_but_the_first_page() {
        let tables = page_tables(9 * GIB);
        for address in [
            0x1000,
            0x1f_ffff,
            0x20_0000,
            HOLE_START.0,
            abi::LOCAL_APIC,
            9 * GIB - 1,
        ] {
            assert_eq!(translate(&tables, address), Some(address), "{address:#x}");
        }
        for address in [0, 0xfff, 9 * GIB] {
            assert_eq!(translate(&tables, address), None, "{address:#x}");
        }
    }

    #[test]
    fn more_ram_than_there_is_room_for_tables_is_mapped_in_part() {
        let tables = page_tables(1 << 45);
        assert!(abi::PAGE_TABLES + tables.len() as u64 <= abi::PAGE_TABLES_END);
        assert_eq!(
            translate(&tables, MOST_GIB * GIB - 1),
            Some(MOST_GIB * GIB - 1)
        );
        assert_eq!(translate(&tables, MOST_GIB * GIB), None);
    }

    #[test]
    fn only_com1_is_open_to_ring_3() {
        let tss = tss(0);
        for port in 0..BITMAP_PORTS {
            let open = tss[TSS_LEN + port / 8] & (1 << (port % 8)) == 0;
            assert_eq!(open, (0x3f8..0x400).contains(&port), "port {port:#x}");
        }
    }

    #[test]
    fn tables_fit_between_their_neighbours() {
        assert!(abi::GDT + gdt(abi::MAX_CPUS).len() as u64 <= abi::IDT);
        assert_eq!(abi::IDT + idt().len() as u64, abi::STUBS);
        assert!(abi::vcpu_page(abi::MAX_CPUS) <= abi::PAGE_TABLES);
    }
}
