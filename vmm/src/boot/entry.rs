//! The registers that a vCPU starts with.

use guest_images::abi::{self, selector};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use super::tables::TSS_LIMIT;

/// PE, MP, ET, NE, WP, AM, PG.
const CR0: u64 = 0x8005_0033;
/// PAE, and the two bits that say the system knows of SSE.
const CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10;
/// The system knows of XSAVE, and ring 3 may use AVX.
const CR4_OSXSAVE: u64 = 1 << 18;
/// Syscall, long mode enabled and active, no-execute.
const EFER: u64 = 1 << 0 | 1 << 8 | 1 << 10 | 1 << 11;

/// Flags: the bit that is always one.
const RFLAGS: u64 = 1 << 1;
/// Flags: interrupts are enabled.
const RFLAGS_IF: u64 = 1 << 9;

/// When a vCPU begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Starts {
    /// When the VM runs.
    AtOnce,
    /// When another vCPU sends it a start-up interrupt, as on hardware.
    AfterSipi,
}

/// Where a vCPU begins, and with what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct VcpuEntry {
    index: u32,
    stack_top: u64,
    kind: Kind,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Kind {
    /// A flat image, in ring 3.
    Flat,
    /// An ELF kernel, in ring 0.
    Elf { entry: u64 },
}

impl VcpuEntry {
    /// vCPU `index` of a flat guest, with its stack below `stack_top`.
    pub(crate) fn flat(index: u32, stack_top: u64) -> Self {
        let kind = Kind::Flat;
        Self {
            index,
            stack_top,
            kind,
        }
    }

    /// vCPU `index` of an ELF kernel. Linux brings a stack; others need one at
    /// once, if only for an exception to be reported from.
    pub(crate) fn elf(index: u32, stack_top: u64, entry: u64) -> Self {
        let kind = Kind::Elf { entry };
        Self {
            index,
            stack_top,
            kind,
        }
    }

    pub(crate) fn starts(&self) -> Starts {
        match self.kind {
            Kind::Elf { .. } if self.index > 0 => Starts::AfterSipi,
            _ => Starts::AtOnce,
        }
    }

    /// Sets the registers. `xcr0` is what the vCPU's XCR0 will be.
    pub(crate) fn apply(&self, sregs: &mut kvm_sregs, regs: &mut kvm_regs, xcr0: u64) {
        sregs.cr0 = CR0;
        sregs.cr3 = abi::PAGE_TABLES;
        sregs.cr4 = CR4;
        sregs.efer = EFER;
        sregs.gdt = kvm_dtable {
            base: abi::GDT,
            limit: (abi::IDT - abi::GDT - 1) as u16,
            ..Default::default()
        };
        sregs.idt = kvm_dtable {
            base: abi::IDT,
            limit: (abi::STUBS - abi::IDT - 1) as u16,
            ..Default::default()
        };
        sregs.tr = kvm_segment {
            base: abi::vcpu_page(self.index),
            limit: TSS_LIMIT as u32,
            selector: selector::TSS + 16 * self.index as u16,
            type_: 11, // busy 64-bit TSS
            present: 1,
            ..Default::default()
        };
        let (code, data) = match self.kind {
            Kind::Flat => (selector::USER_CODE, selector::USER_DATA),
            Kind::Elf { .. } => (selector::KERNEL_CODE, selector::KERNEL_DATA),
        };
        sregs.cs = code_segment(code);
        let data = data_segment(data);
        (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
        (sregs.fs, sregs.gs) = (data, data);

        *regs = kvm_regs {
            rdi: abi::BOOT_INFO,
            // As if called: a function may expect 16n + 8.
            rsp: self.stack_top - 8,
            rflags: RFLAGS,
            ..Default::default()
        };
        match self.kind {
            Kind::Flat => {
                if xcr0 > 1 {
                    sregs.cr4 |= CR4_OSXSAVE;
                }
                regs.rip = abi::IMAGE;
                regs.rsi = self.index.into();
                regs.rflags |= RFLAGS_IF;
            }
            Kind::Elf { entry } => {
                regs.rip = entry;
                regs.rsi = abi::BOOT_PARAMS;
            }
        }
    }
}

fn code_segment(selector: u16) -> kvm_segment {
    kvm_segment {
        selector,
        type_: 11, // execute, read, accessed
        l: 1,
        ..data_segment(selector)
    }
}

fn data_segment(selector: u16) -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector,
        type_: 3, // read, write, accessed
        present: 1,
        dpl: (selector & 3) as u8,
        s: 1,
        g: 1,
        ..Default::default()
    }
}
