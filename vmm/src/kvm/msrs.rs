//! Which MSRs make up a vCPU's state.

use kvm_bindings::{CpuId, Msrs, kvm_enable_cap, kvm_msr_entry};
use kvm_ioctls::{Kvm, VmFd};

/// MSRs that some hosts list and read but do not let us set, by name. They
/// hold nothing that a VM without the feature in question could miss.
const TOLERATED: [u32; 3] = [
    0x4b56_4d06, // MSR_KVM_ASYNC_PF_INT: needs an in-kernel local APIC
    0x4b56_4d07, // MSR_KVM_ASYNC_PF_ACK: write-only trigger
    0x4b56_4d08, // MSR_KVM_MIGRATION_CONTROL: needs encrypted guests
];

pub(crate) const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// The MSRs that make up a vCPU's state on this host.
#[derive(Debug)]
pub(crate) struct MsrPlan {
    pub(crate) indices: Vec<u32>,
}

impl MsrPlan {
    /// Asks `kvm` for its list and tries the doubtful ones on a vCPU like ours.
    pub(crate) fn probe(kvm: &Kvm, vm: &VmFd, cpuid: &CpuId) -> Result<Self, kvm_ioctls::Error> {
        let listed = kvm.get_msr_index_list()?;
        enable_split_irqchip(vm)?;
        let vcpu = vm.create_vcpu(0)?;
        vcpu.set_cpuid2(cpuid)?;
        let works = |index: &u32| {
            let mut msrs = entries([*index].iter().map(|index| (*index, 0)));
            vcpu.get_msrs(&mut msrs) == Ok(1) && vcpu.set_msrs(&msrs) == Ok(1)
        };
        let mut indices: Vec<u32> = listed.as_slice().to_vec();
        indices.retain(|index| !TOLERATED.contains(index) || works(index));
        // The deadline goes last, after all that changes what it means.
        indices.sort_by_key(|index| *index == MSR_TSC_DEADLINE);
        Ok(Self { indices })
    }
}

/// A request for, or the values of, these MSRs.
pub(crate) fn entries(values: impl Iterator<Item = (u32, u64)>) -> Msrs {
    let entries: Vec<_> = values
        .map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        })
        .collect();
    Msrs::from_entries(&entries).expect("fewer MSRs than KVM_MAX_MSR_ENTRIES")
}

/// Gives the VM local APICs in the kernel and leaves the IOAPIC to us. To be
/// done before the first vCPU.
pub(crate) fn enable_split_irqchip(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    const IOAPIC_PINS: u64 = 24;
    let mut cap = kvm_enable_cap {
        cap: kvm_bindings::KVM_CAP_SPLIT_IRQCHIP,
        ..Default::default()
    };
    cap.args[0] = IOAPIC_PINS;
    vm.enable_cap(&cap)
}
