//! A VM of one vCPU: the syscalls that it takes, one after the other.

// UNSAFETY: memslots: KVM reads and writes the memory they name.
#![expect(unsafe_code)]

use std::io;

use guest_images::abi::CONTROL_PAGE;
use guestmem::RamLayout;
use kvm_bindings::{
    CpuId, KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use super::memory::Mapping;
use super::state::State;

/// Where interrupts are handled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Irqchip {
    /// Local APICs in the kernel, the rest in the VMM.
    Split,
    /// All of it and the interval timer in the kernel.
    Full,
}

/// A VM with a vCPU and no memory yet.
pub(in super::super) struct Shell {
    vcpu: VcpuFd,
    vm: VmFd,
}

/// A VM that can run. Fields go in this order: nothing may use the memory when
/// it is unmapped.
pub(in super::super) struct Machine {
    pub(in super::super) vcpu: VcpuFd,
    pub(in super::super) vm: VmFd,
    pub(in super::super) memory: Mapping,
}

/// Why a vCPU came out of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Exit {
    /// The guest wrote a register of its control page.
    Control(u64),
    /// A signal, or `immediate_exit`.
    Interrupted,
}

impl Shell {
    /// A VM with an irqchip and a vCPU with `cpuid`.
    pub(in super::super) fn new(kvm: &Kvm, cpuid: &CpuId, irqchip: Irqchip) -> io::Result<Self> {
        let vm = new_vm(kvm, irqchip)?;
        let vcpu = vm.create_vcpu(0)?;
        vcpu.set_cpuid2(cpuid)?;
        Ok(Self { vcpu, vm })
    }

    /// Gives it memory.
    pub(in super::super) fn bind(self, memory: Mapping) -> io::Result<Machine> {
        bind(&self.vm, &memory)?;
        let Self { vcpu, vm } = self;
        Ok(Machine { vcpu, vm, memory })
    }
}

/// A VM with its irqchip and nothing else.
fn new_vm(kvm: &Kvm, irqchip: Irqchip) -> io::Result<VmFd> {
    let vm = kvm.create_vm()?;
    match irqchip {
        Irqchip::Split => {
            let mut split = kvm_enable_cap {
                cap: KVM_CAP_SPLIT_IRQCHIP,
                ..Default::default()
            };
            split.args[0] = 24;
            vm.enable_cap(&split)?;
        }
        Irqchip::Full => {
            vm.create_irq_chip()?;
            vm.create_pit2(kvm_pit_config::default())?;
        }
    }
    Ok(vm)
}

fn bind(vm: &VmFd, memory: &Mapping) -> io::Result<()> {
    let layout = RamLayout::new(memory.len_bytes()).map_err(io::Error::other)?;
    for (region, slot) in layout.regions().zip(0..) {
        let memslot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.gpa.0,
            memory_size: region.len_bytes(),
            userspace_addr: memory.address() + region.first.byte_offset(),
        };
        // SAFETY: the range lies in the mapping, which is unmapped after the
        // VM has been closed; host code touches it volatilely, or while the
        // vCPU is out of the guest.
        unsafe { vm.set_user_memory_region(memslot) }?;
    }
    Ok(())
}

impl Machine {
    /// A VM from nothing: the sequence that any copy takes which nobody has
    /// prepared. With [`Irqchip::Full`] it is zeroboot's.
    pub(in super::super) fn new(
        kvm: &Kvm,
        state: &State,
        irqchip: Irqchip,
        memory: Mapping,
    ) -> io::Result<Self> {
        // The irqchip comes before the memory and that before the vCPU, as
        // those who publish their sequence do it.
        let vm = new_vm(kvm, irqchip)?;
        bind(&vm, &memory)?;
        let vcpu = vm.create_vcpu(0)?;
        vcpu.set_cpuid2(&state.cpuid)?;
        state.restore(&vcpu)?;
        Ok(Self { vcpu, vm, memory })
    }

    /// Lets the guest run to its next exit.
    pub(in super::super) fn run(&mut self) -> io::Result<Exit> {
        match self.vcpu.run() {
            Ok(VcpuExit::MmioWrite(address, _)) if address >= CONTROL_PAGE => {
                Ok(Exit::Control(address - CONTROL_PAGE))
            }
            Ok(other) => Err(io::Error::other(format!("the guest stopped: {other:?}"))),
            Err(error) if error.errno() == libc::EINTR => Ok(Exit::Interrupted),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets KVM finish the instruction that the last exit was in the middle of,
    /// so that registers are those after it.
    pub(in super::super) fn finish(&mut self) -> io::Result<()> {
        self.vcpu.set_kvm_immediate_exit(1);
        let exit = self.run()?;
        self.vcpu.set_kvm_immediate_exit(0);
        match exit {
            Exit::Interrupted => Ok(()),
            other => Err(io::Error::other(format!("{other:?} in place of an end"))),
        }
    }
}
