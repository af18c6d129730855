//! All of a vCPU's registers by the plain ioctls: read once, set as often as
//! there are copies.

// UNSAFETY: XSAVE areas of the size that KVM asks for, and structures of plain
// numbers as bytes.
#![expect(unsafe_code)]

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, Xsave, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

/// The last to be set: the APIC decides what it means.
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// What a vCPU is, its CPUID included.
#[derive(Clone)]
pub(in super::super) struct State {
    pub(in super::super) cpuid: CpuId,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcrs: kvm_xcrs,
    xsave: Xsave,
    lapic: kvm_lapic_state,
    msrs: Msrs,
    debug_regs: kvm_debugregs,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
}

impl State {
    /// Reads it from a vCPU that is out of the guest.
    pub(in super::super) fn save(kvm: &Kvm, vm: &VmFd, vcpu: &VcpuFd) -> io::Result<Self> {
        let listed = kvm.get_msr_index_list()?;
        let mut indices = listed.as_slice().to_vec();
        indices.sort_by_key(|index| *index == MSR_TSC_DEADLINE);
        let entry = |index| kvm_msr_entry {
            index,
            ..Default::default()
        };
        let mut msrs = Vec::new();
        for index in indices {
            let mut one = msr_list(&[entry(index)])?;
            // What cannot be set on this host is no part of a vCPU here.
            if vcpu.get_msrs(&mut one) == Ok(1) && vcpu.set_msrs(&one) == Ok(1) {
                msrs.push(one.as_slice()[0]);
            }
        }
        let mut xsave = empty_xsave(vm.check_extension_int(Cap::Xsave2))?;
        // SAFETY: the area has the size that KVM says it fills.
        unsafe { vcpu.get_xsave2(&mut xsave) }?;
        Ok(Self {
            cpuid: vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES)?,
            regs: vcpu.get_regs()?,
            sregs: vcpu.get_sregs()?,
            xcrs: vcpu.get_xcrs()?,
            xsave,
            lapic: vcpu.get_lapic()?,
            msrs: msr_list(&msrs)?,
            debug_regs: vcpu.get_debug_regs()?,
            events: vcpu.get_vcpu_events()?,
            mp_state: vcpu.get_mp_state()?,
        })
    }

    /// Reads again what changes while a guest runs, the list of MSRs being
    /// known.
    pub(in super::super) fn save_again(&mut self, vcpu: &VcpuFd) -> io::Result<()> {
        self.regs = vcpu.get_regs()?;
        self.sregs = vcpu.get_sregs()?;
        self.xcrs = vcpu.get_xcrs()?;
        // SAFETY: the area has the size that KVM says it fills.
        unsafe { vcpu.get_xsave2(&mut self.xsave) }?;
        self.lapic = vcpu.get_lapic()?;
        vcpu.get_msrs(&mut self.msrs)?;
        self.debug_regs = vcpu.get_debug_regs()?;
        self.events = vcpu.get_vcpu_events()?;
        self.mp_state = vcpu.get_mp_state()?;
        Ok(())
    }

    /// Sets all of it but CPUID, in the order that KVM needs.
    pub(in super::super) fn restore(&self, vcpu: &VcpuFd) -> io::Result<()> {
        vcpu.set_sregs(&self.sregs)?;
        vcpu.set_xcrs(&self.xcrs)?;
        // SAFETY: KVM itself has filled an area of this size.
        unsafe { vcpu.set_xsave2(&self.xsave) }?;
        vcpu.set_lapic(&self.lapic)?;
        let set = vcpu.set_msrs(&self.msrs)?;
        if set != self.msrs.as_slice().len() {
            return Err(io::Error::other("an MSR was refused"));
        }
        vcpu.set_debug_regs(&self.debug_regs)?;
        vcpu.set_vcpu_events(&self.events)?;
        vcpu.set_regs(&self.regs)?;
        vcpu.set_mp_state(self.mp_state)?;
        Ok(())
    }

    /// Sets only the general and the system registers.
    pub(in super::super) fn restore_registers(&self, vcpu: &VcpuFd) -> io::Result<()> {
        vcpu.set_sregs(&self.sregs)?;
        Ok(vcpu.set_regs(&self.regs)?)
    }

    /// Writes it to a file, for another process on this host.
    pub(in super::super) fn write_to(&self, to: &mut impl Write) -> io::Result<()> {
        for count in [self.cpuid.as_slice().len(), self.msrs.as_slice().len()] {
            to.write_all(&count.to_le_bytes())?;
        }
        for entry in self.cpuid.as_slice() {
            put(to, entry)?;
        }
        for entry in self.msrs.as_slice() {
            put(to, entry)?;
        }
        let extra = self.xsave.as_slice();
        to.write_all(&extra.len().to_le_bytes())?;
        for word in extra {
            put(to, word)?;
        }
        put(to, &self.xsave.as_fam_struct_ref().xsave.region)?;
        put(to, &self.regs)?;
        put(to, &self.sregs)?;
        put(to, &self.xcrs)?;
        put(to, &self.lapic)?;
        put(to, &self.debug_regs)?;
        put(to, &self.events)?;
        put(to, &self.mp_state)
    }

    /// Reads what [`write_to`](Self::write_to) wrote.
    pub(in super::super) fn read_from(from: &mut impl Read) -> io::Result<Self> {
        let cpuids: usize = take(from)?;
        let msrs: usize = take(from)?;
        let cpuids: Vec<kvm_cpuid_entry2> = take_all(from, cpuids)?;
        let msrs: Vec<kvm_msr_entry> = take_all(from, msrs)?;
        let extra: usize = take(from)?;
        let extra: Vec<u32> = take_all(from, extra)?;
        let mut xsave = Xsave::new(extra.len()).map_err(refused)?;
        xsave.as_mut_slice().copy_from_slice(&extra);
        // SAFETY: the length, which lies elsewhere, stays as it is.
        unsafe { xsave.as_mut_fam_struct() }.xsave.region = take(from)?;
        Ok(Self {
            cpuid: CpuId::from_entries(&cpuids).map_err(refused)?,
            msrs: msr_list(&msrs)?,
            xsave,
            regs: take(from)?,
            sregs: take(from)?,
            xcrs: take(from)?,
            lapic: take(from)?,
            debug_regs: take(from)?,
            events: take(from)?,
            mp_state: take(from)?,
        })
    }
}

fn msr_list(entries: &[kvm_msr_entry]) -> io::Result<Msrs> {
    Msrs::from_entries(entries).map_err(refused)
}

fn refused(error: vmm_sys_util::fam::Error) -> io::Error {
    io::Error::other(format!("{error:?}"))
}

fn empty_xsave(bytes: i32) -> io::Result<Xsave> {
    let bytes = usize::try_from(bytes).unwrap_or(0);
    let extra = bytes.saturating_sub(size_of::<kvm_xsave>());
    Xsave::new(extra.div_ceil(size_of::<u32>())).map_err(refused)
}

/// A structure of KVM's interface that is nothing but numbers.
///
/// # Safety
/// Any bytes are a value of it.
unsafe trait Plain: Copy {}

/// The part of an XSAVE area that every host has.
type XsaveRegion = [u32; 1024];

macro_rules! plain {
    ($($name:ty)*) => {
        $(
            // SAFETY: integers, arrays and unions of them.
            unsafe impl Plain for $name {}
        )*
    };
}

plain! {
    u32 usize kvm_cpuid_entry2 kvm_msr_entry XsaveRegion kvm_regs kvm_sregs kvm_xcrs
    kvm_lapic_state kvm_debugregs kvm_vcpu_events kvm_mp_state
}

fn put<T: Plain>(to: &mut impl Write, value: &T) -> io::Result<()> {
    let start = std::ptr::from_ref(value).cast::<u8>();
    // SAFETY: the bytes of a value that is borrowed for as long; KVM's
    // structures name their padding, so that all of them are initialized.
    to.write_all(unsafe { std::slice::from_raw_parts(start, size_of::<T>()) })
}

fn take<T: Plain>(from: &mut impl Read) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let start = value.as_mut_ptr().cast::<u8>();
    // SAFETY: the bytes of a value of our own, zeroed.
    from.read_exact(unsafe { std::slice::from_raw_parts_mut(start, size_of::<T>()) })?;
    // SAFETY: any bytes are a value.
    Ok(unsafe { value.assume_init() })
}

fn take_all<T: Plain>(from: &mut impl Read, count: usize) -> io::Result<Vec<T>> {
    (0..count).map(|_| take(from)).collect()
}
