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

pub(crate) const MSR_TSC: u32 = 0x10;
pub(crate) const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// Where the guest wants KVM's clock to be, and, in bit 0, whether: the number
/// in use since Linux 2.6.33, and the one before.
pub(crate) const MSRS_KVM_SYSTEM_TIME: [u32; 2] = [0x4b56_4d01, 0x12];

/// More ticks than any host has been up for.
const FAR_TSC: u64 = 1 << 60;

/// The MSRs that make up a vCPU's state on this host.
#[derive(Debug)]
pub(crate) struct MsrPlan {
    pub(crate) indices: Vec<u32>,
    /// Whether the time-stamp counter is what it was set to. Software KVM takes
    /// what it is told and leaves it as it was.
    pub(crate) tsc_can_be_set: bool,
}

impl MsrPlan {
    /// Asks `kvm` for its list and tries the doubtful ones on a vCPU like ours.
    pub(crate) fn probe(kvm: &Kvm, vm: &VmFd, cpuid: &CpuId) -> Result<Self, kvm_ioctls::Error> {
        let listed = kvm.get_msr_index_list()?;
        enable_split_irqchip(vm)?;
        let vcpu = vm.create_vcpu(0)?;
        vcpu.set_cpuid2(cpuid)?;
        let one = |index, data| entries([(index, data)].into_iter());
        let works = |index: &u32| {
            let mut msrs = one(*index, 0);
            vcpu.get_msrs(&mut msrs) == Ok(1) && vcpu.set_msrs(&msrs) == Ok(1)
        };
        let mut indices: Vec<u32> = listed.as_slice().to_vec();
        indices.retain(|index| !TOLERATED.contains(index) || works(index));
        // The deadline goes last, after all that changes what it means.
        indices.sort_by_key(|index| *index == MSR_TSC_DEADLINE);
        vcpu.set_msrs(&one(MSR_TSC, FAR_TSC))?;
        let mut read_back = one(MSR_TSC, 0);
        vcpu.get_msrs(&mut read_back)?;
        let is_far = |entry: &kvm_msr_entry| entry.data >= FAR_TSC;
        Ok(Self {
            indices,
            tsc_can_be_set: read_back.as_slice().iter().any(is_far),
        })
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
