//! The guest ABI: where things are and what they mean, shared by guests and
//! the VMM. `docs/guest-abi.md` explains it.
//!
//! This file has no dependencies: guests compile it too, by path.

/// Guest-physical address of the boot information, a [`BootInfo`].
pub const BOOT_INFO: u64 = 0x1000;
/// Guest-physical address of the global descriptor table.
pub const GDT: u64 = 0x2000;
/// Guest-physical address of the interrupt descriptor table: 256 gates.
pub const IDT: u64 = 0x3000;
/// Guest-physical address of the ring-0 stubs, [`STUB_LEN`] bytes a vector.
pub const STUBS: u64 = 0x4000;
/// Bytes between the stubs of two vectors.
pub const STUB_LEN: u64 = 32;
/// Guest-physical address of the code that exception stubs share.
pub const STUBS_END: u64 = STUBS + 256 * STUB_LEN;
/// Guest-physical address of the interrupt counters: one `u64` a vector.
pub const COUNTERS: u64 = 0x7000;
/// Guest-physical address of Linux's `boot_params` for ELF kernels.
pub const BOOT_PARAMS: u64 = 0x8000;
/// Guest-physical address of the command line, ended by a NUL.
pub const CMDLINE: u64 = 0x9000;
/// Most bytes of command line, the NUL not counted.
pub const MAX_CMDLINE: u64 = 4095;
/// Guest-physical address of the vCPUs' ring-0 pages: TSS and stack.
pub const VCPU_PAGES: u64 = 0x2_0000;
/// Most vCPUs.
pub const MAX_CPUS: u32 = 32;
/// Guest-physical address of the page tables; the first is the PML4.
pub const PAGE_TABLES: u64 = 0x4_0000;
/// Where the room for page tables ends.
pub const PAGE_TABLES_END: u64 = 0x9_f000;
/// Where flat images are loaded and entered, and the lowest address that an
/// ELF segment may have.
pub const IMAGE: u64 = 0x10_0000;
/// Bytes of ring-3 stack that each vCPU has, from the end of low RAM down.
pub const STACK_LEN: u64 = 0x1_0000;
/// Least RAM.
pub const MIN_RAM: u64 = 4 << 20;
/// Guest-physical address of the control page.
pub const CONTROL_PAGE: u64 = 0xd000_0000;
/// Guest-physical address of the local APIC.
pub const LOCAL_APIC: u64 = 0xfee0_0000;

/// Segment selectors.
pub mod selector {
    /// Ring-0 code, 64-bit.
    pub const KERNEL_CODE: u16 = 0x10;
    /// Ring-0 data.
    pub const KERNEL_DATA: u16 = 0x18;
    /// Ring-3 data.
    pub const USER_DATA: u16 = 0x2b;
    /// Ring-3 code, 64-bit.
    pub const USER_CODE: u16 = 0x33;
    /// TSS of vCPU 0; the others follow 16 bytes apart.
    pub const TSS: u16 = 0x40;
}

/// Registers of the control page: byte offsets. Reads and writes are of 8
/// bytes if nothing else is said.
pub mod control {
    /// Read: [`MAGIC_VALUE`].
    pub const MAGIC: u64 = 0x00;
    /// What [`MAGIC`] reads: "vmmctl" and the version of this interface, 1.
    pub const MAGIC_VALUE: u64 = u64::from_le_bytes(*b"vmmctl\x01\x00");
    /// Write 1, 2, 4 or 8 bytes: they appear on the console, lowest first.
    pub const CONSOLE: u64 = 0x08;
    /// Write anything: the guest is ready.
    pub const READY: u64 = 0x10;
    /// Write: the guest ends; the low 8 bits are its exit code.
    pub const EXIT: u64 = 0x18;
    /// Write anything: the guest asks to be forked. Then read [`FORK_RESULT`].
    pub const FORK: u64 = 0x20;
    /// Read: 0 in the parent, the child's number (1 or more) in the child,
    /// [`REFUSED`] if there is no child.
    pub const FORK_RESULT: u64 = 0x28;
    /// Read: another value after every reset and in every fork.
    pub const GENERATION: u64 = 0x30;
    /// Read: random bytes from the host, fresh at each read.
    pub const SEED: u64 = 0x38;
    /// Write: start of a range to report free, a guest-physical address.
    pub const FREE_START: u64 = 0x40;
    /// Write: length in bytes of that range, which is free now and reads zero.
    pub const FREE_LEN: u64 = 0x48;
    /// Read: pages dropped by the last report, or [`REFUSED`].
    pub const FREE_RESULT: u64 = 0x50;
    /// Write 4 bytes, from ring-0 stubs: address of a [`TrapFrame`](super::TrapFrame).
    pub const TRAP: u64 = 0x58;
    /// What result registers read when the VMM refused.
    pub const REFUSED: u64 = u64::MAX;
}

/// What a guest is told at its entry, at [`BOOT_INFO`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootInfo {
    /// [`BOOT_INFO_MAGIC`].
    pub magic: u64,
    /// Version of this structure: 1. Fields are only ever added at its end.
    pub version: u32,
    /// Number of vCPUs.
    pub cpus: u32,
    /// RAM is `0..low_ram_end` …
    pub low_ram_end: u64,
    /// … and `high_ram_start..high_ram_end`, empty if there is no more.
    pub high_ram_start: u64,
    /// End of RAM above 4 GiB.
    pub high_ram_end: u64,
    /// Where the image was loaded.
    pub image_start: u64,
    /// End of the image.
    pub image_end: u64,
    /// Where the initial RAM disk is; equal to its end if there is none.
    pub initrd_start: u64,
    /// End of the initial RAM disk.
    pub initrd_end: u64,
    /// Address of the command line.
    pub cmdline: u64,
    /// Its length without the NUL.
    pub cmdline_len: u64,
    /// Low RAM that nothing uses at entry: `free_start..free_end`.
    pub free_start: u64,
    /// Its end.
    pub free_end: u64,
    /// Address of the control page.
    pub control_page: u64,
    /// Address of the interrupt counters.
    pub counters: u64,
}

impl BootInfo {
    /// Its bytes as guests read them.
    pub fn to_bytes(&self) -> [u8; 120] {
        let cpus = u64::from(self.cpus) << 32 | u64::from(self.version);
        let words = [
            self.magic,
            cpus,
            self.low_ram_end,
            self.high_ram_start,
            self.high_ram_end,
            self.image_start,
            self.image_end,
            self.initrd_start,
            self.initrd_end,
            self.cmdline,
            self.cmdline_len,
            self.free_start,
            self.free_end,
            self.control_page,
            self.counters,
        ];
        let mut bytes = [0; 120];
        for (at, word) in bytes.chunks_exact_mut(8).zip(words) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// What [`BootInfo::magic`] holds: "guestabi".
pub const BOOT_INFO_MAGIC: u64 = u64::from_le_bytes(*b"guestabi");

/// What exception stubs leave on the ring-0 stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrapFrame {
    /// Vector, 0 to 31.
    pub vector: u64,
    /// The CPU's error code, or 0 where it pushes none.
    pub error_code: u64,
    /// Where it happened.
    pub rip: u64,
    /// Code selector there.
    pub cs: u64,
    /// Flags there.
    pub rflags: u64,
    /// Stack pointer there.
    pub rsp: u64,
    /// Stack selector there.
    pub ss: u64,
}

/// The page of vCPU `index` in ring 0: its TSS is at the start, its stack comes
/// down from the end.
pub const fn vcpu_page(index: u32) -> u64 {
    VCPU_PAGES + index as u64 * 0x1000
}
