//! Where everything goes before the first instruction.
//!
//! ```text
//!  0x1000     boot information, GDT, IDT, stubs, counters, command line
//!  0x2_0000   a page a vCPU: TSS, ring-0 stack
//!  0x4_0000   page tables
//!  0x10_0000  image (an ELF's segments: anywhere from here on)
//!     ⋮        free
//!             initial RAM disk
//!  low end    stacks, 64 KiB a vCPU, from the end of low RAM down
//! ```

use std::ops::Range;

use guest_images::abi::{self, BootInfo};
use guestmem::{HOLE_START, PAGE_SIZE, RamLayout};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

use super::entry::VcpuEntry;
use super::image::Kernel;
use super::params::boot_params;
use super::stubs::stubs;
use super::tables::{gdt, idt, page_tables, tss};

/// Why a kernel cannot be booted in the VM asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BootError {
    /// Less RAM than the guest environment needs.
    #[error(
        "{size_bytes} bytes of memory are too few: give at least {}",
        abi::MIN_RAM
    )]
    TooLittleRam {
        /// RAM asked for.
        size_bytes: u64,
    },
    /// The kernel wants memory that the guest environment takes up.
    #[error(
        "the kernel needs memory {needs:#x?}, which starts below {:#x}: link it there or higher",
        abi::IMAGE
    )]
    KernelTooLow {
        /// Where it has to go.
        needs: Range<u64>,
    },
    /// The kernel wants addresses that no amount of RAM gives it.
    #[error(
        "the kernel needs memory {needs:#x?}, but memory for kernels ends at {most:#x} at the latest: link it lower"
    )]
    KernelTooHigh {
        /// Where it has to go.
        needs: Range<u64>,
        /// Where room for it would end if there were all the RAM there can be.
        most: u64,
    },
    /// The kernel is larger than the RAM there is for it.
    #[error(
        "the kernel needs memory {needs:#x?}, and there is {room:#x?} for it: give more memory"
    )]
    KernelDoesNotFit {
        /// Where it has to go.
        needs: Range<u64>,
        /// Where it may.
        room: Range<u64>,
    },
    /// The initial RAM disk is larger than what the kernel leaves.
    #[error(
        "the initrd has {len_bytes} bytes, and the kernel leaves {room_bytes} for it: give more memory"
    )]
    InitrdDoesNotFit {
        /// Its length.
        len_bytes: u64,
        /// The room there is.
        room_bytes: u64,
    },
    /// A command line that is too long.
    #[error(
        "the command line has {len_bytes} bytes; at most {} fit",
        abi::MAX_CMDLINE
    )]
    CmdlineTooLong {
        /// Its length.
        len_bytes: u64,
    },
    /// A command line that a guest would not read to its end.
    #[error("the command line has a NUL at byte {0}")]
    CmdlineNul(usize),
}

/// Guest memory did not take what was written to it.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {len_bytes} bytes at gpa {gpa:#x}: {source}")]
pub struct LoadError {
    gpa: u64,
    len_bytes: usize,
    source: GuestMemoryError,
}

/// Where everything goes; checked, and nothing written yet.
#[derive(Debug)]
pub(crate) struct BootPlan<'a> {
    kernel: &'a Kernel,
    cmdline: &'a str,
    initrd_bytes: &'a [u8],
    layout: RamLayout,
    cpus: u32,
    image: Range<u64>,
    initrd: Range<u64>,
}

impl<'a> BootPlan<'a> {
    /// Plans for a VM with this RAM and `cpus` vCPUs, at most
    /// [`abi::MAX_CPUS`].
    pub(crate) fn new(
        kernel: &'a Kernel,
        layout: &RamLayout,
        cpus: u32,
        cmdline: &'a str,
        initrd: Option<&'a [u8]>,
    ) -> Result<Self, BootError> {
        if layout.size_bytes() < abi::MIN_RAM {
            return Err(BootError::TooLittleRam {
                size_bytes: layout.size_bytes(),
            });
        }
        let len_bytes = cmdline.len() as u64;
        if len_bytes > abi::MAX_CMDLINE {
            return Err(BootError::CmdlineTooLong { len_bytes });
        }
        if let Some(at) = cmdline.bytes().position(|byte| byte == 0) {
            return Err(BootError::CmdlineNul(at));
        }
        // 32 stacks of 64 KiB leave room in the least RAM there may be.
        assert!(cpus <= abi::MAX_CPUS, "more vCPUs than there are pages for");
        let stacks = u64::from(cpus) * abi::STACK_LEN;
        let room = abi::IMAGE..layout.low_end().0 - stacks;
        let most = HOLE_START.0 - stacks;
        let image = match kernel.elf() {
            Some(elf) => elf.memory(),
            None => abi::IMAGE..abi::IMAGE + kernel.bytes().len() as u64,
        };
        if image.start < room.start {
            return Err(BootError::KernelTooLow { needs: image });
        }
        if image.end > most {
            return Err(BootError::KernelTooHigh { needs: image, most });
        }
        if image.end > room.end {
            return Err(BootError::KernelDoesNotFit { needs: image, room });
        }
        let initrd_bytes = initrd.unwrap_or_default();
        let len_bytes = initrd_bytes.len() as u64;
        let room_bytes = room.end - image.end;
        let start = room
            .end
            .checked_sub(len_bytes)
            .map(|start| start / PAGE_SIZE * PAGE_SIZE);
        let start = start.filter(|start| *start >= image.end);
        let initrd_start = start.ok_or(BootError::InitrdDoesNotFit {
            len_bytes,
            room_bytes,
        })?;
        Ok(Self {
            kernel,
            cmdline,
            initrd_bytes,
            layout: *layout,
            cpus,
            image,
            initrd: initrd_start..initrd_start + len_bytes,
        })
    }

    /// Where vCPU `index` begins.
    pub(crate) fn entry(&self, index: u32) -> VcpuEntry {
        let stack_top = self.layout.low_end().0 - u64::from(index) * abi::STACK_LEN;
        match self.kernel.elf() {
            Some(elf) => VcpuEntry::elf(index, stack_top, elf.entry),
            None => VcpuEntry::flat(index, stack_top),
        }
    }

    /// Bytes of kernel and initial RAM disk that [`load`](Self::load) writes.
    pub(crate) fn loaded_bytes(&self) -> u64 {
        let kernel = match self.kernel.elf() {
            None => self.kernel.bytes().len(),
            Some(elf) => elf.segments.iter().map(|part| part.file.len()).sum(),
        };
        (kernel + self.initrd_bytes.len()) as u64
    }

    /// Writes all of it to fresh (zero) memory.
    pub(crate) fn load<M: GuestMemory>(&self, memory: &M) -> Result<(), LoadError> {
        let write = |gpa: u64, bytes: &[u8]| {
            memory
                .write_slice(bytes, GuestAddress(gpa))
                .map_err(|source| LoadError {
                    gpa,
                    len_bytes: bytes.len(),
                    source,
                })
        };
        write(abi::BOOT_INFO, &self.boot_info())?;
        write(abi::GDT, &gdt(self.cpus))?;
        write(abi::IDT, &idt())?;
        write(abi::STUBS, &stubs())?;
        write(abi::CMDLINE, self.cmdline.as_bytes())?;
        for index in 0..self.cpus {
            write(abi::vcpu_page(index), &tss(index))?;
        }
        write(abi::PAGE_TABLES, &page_tables(self.layout.end().0))?;
        let bytes = self.kernel.bytes();
        match self.kernel.elf() {
            None => write(abi::IMAGE, bytes)?,
            Some(elf) => {
                for segment in &elf.segments {
                    write(segment.memory.start, &bytes[segment.file.clone()])?;
                }
                write(abi::BOOT_PARAMS, &self.boot_params())?;
            }
        }
        write(self.initrd.start, self.initrd_bytes)
    }

    fn boot_params(&self) -> Vec<u8> {
        boot_params(
            &self.layout,
            abi::CMDLINE as u32,
            self.cmdline.len() as u32,
            &self.initrd,
        )
    }

    /// The bytes of the guest's [`BootInfo`].
    fn boot_info(&self) -> Vec<u8> {
        let high_end = self.layout.high().map(|region| region.gpa_range().end.0);
        let info = BootInfo {
            magic: abi::BOOT_INFO_MAGIC,
            version: 1,
            cpus: self.cpus,
            low_ram_end: self.layout.low_end().0,
            high_ram_start: guestmem::HOLE_END.0,
            high_ram_end: high_end.unwrap_or(guestmem::HOLE_END.0),
            image_start: self.image.start,
            image_end: self.image.end,
            initrd_start: self.initrd.start,
            initrd_end: self.initrd.end,
            cmdline: abi::CMDLINE,
            cmdline_len: self.cmdline.len() as u64,
            free_start: self.image.end.next_multiple_of(PAGE_SIZE),
            free_end: self.initrd.start,
            control_page: abi::CONTROL_PAGE,
            counters: abi::COUNTERS,
        };
        info.to_bytes().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::elf::tests::elf_file;

    fn layout(bytes: u64) -> RamLayout {
        RamLayout::new(bytes).unwrap()
    }

    fn flat(len: usize) -> Kernel {
        Kernel::from_bytes(vec![0x90; len]).unwrap()
    }

    #[test]
    fn image_initrd_and_stacks_do_not_overlap() {
        let (kernel, initrd) = (flat(5000), vec![1; 70_000]);
        let plan = BootPlan::new(&kernel, &layout(16 << 20), 4, "", Some(&initrd)).unwrap();
        assert_eq!(plan.image, 0x10_0000..0x10_0000 + 5000);
        assert!(plan.image.end <= plan.initrd.start);
        assert!(plan.initrd.end <= (16 << 20) - 4 * abi::STACK_LEN);
        assert_eq!(plan.initrd.start % PAGE_SIZE, 0);
    }

    #[test]
    fn all_vcpus_fit_in_the_least_ram() {
        let kernel = flat(1);
        BootPlan::new(&kernel, &layout(abi::MIN_RAM), abi::MAX_CPUS, "", None).unwrap();
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let small = layout(abi::MIN_RAM);
        let smaller = layout(abi::MIN_RAM - PAGE_SIZE);
        let error = |kernel: &Kernel, layout, cmdline: &str, initrd: Option<&[u8]>| {
            BootPlan::new(kernel, layout, 1, cmdline, initrd).unwrap_err()
        };
        let tiny = flat(1);
        assert!(matches!(
            error(&tiny, &smaller, "", None),
            BootError::TooLittleRam { .. }
        ));
        assert!(matches!(
            error(&flat(4 << 20), &small, "", None),
            BootError::KernelDoesNotFit { .. }
        ));
        assert!(matches!(
            error(&tiny, &small, "", Some(&vec![0; 4 << 20])),
            BootError::InitrdDoesNotFit { .. }
        ));
        assert!(matches!(
            error(&flat((3 << 20) - 0x1_0000), &small, "", Some(&[0])),
            BootError::InitrdDoesNotFit { room_bytes: 0, .. }
        ));
        let long = "x".repeat(4096);
        assert!(matches!(
            error(&tiny, &small, &long, None),
            BootError::CmdlineTooLong { .. }
        ));
        assert_eq!(error(&tiny, &small, "a\0b", None), BootError::CmdlineNul(1));
        let refused = |address: u64, memory_len: u64| {
            let kernel = elf_file(address, &[(address, b"code", memory_len)]);
            error(&Kernel::from_bytes(kernel).unwrap(), &small, "", None)
        };
        let needs = |address: u64, memory_len: u64| address..address + memory_len;
        assert_eq!(
            refused(0xf_f000, 0x2000),
            BootError::KernelTooLow {
                needs: needs(0xf_f000, 0x2000)
            }
        );
        let most = (3 << 30) - abi::STACK_LEN;
        for (address, memory_len) in [(most - 4, 8), (3 << 30, 8), (0x10_0000, 1 << 40)] {
            assert_eq!(
                refused(address, memory_len),
                BootError::KernelTooHigh {
                    needs: needs(address, memory_len),
                    most
                }
            );
        }
        assert!(matches!(
            refused(0x3e_fffc, 5),
            BootError::KernelDoesNotFit { .. }
        ));
    }
}
