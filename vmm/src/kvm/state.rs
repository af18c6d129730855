//! All of a vCPU's state, in and out.
//!
//! The order matters. Restoring goes CPUID (when the vCPU is made) → SREGS →
//! XCRS → XSAVE → LAPIC → MSRs → DEBUGREGS → EVENTS → REGS → MP_STATE: MSRs
//! come after the local APIC, because a TSC deadline set before the APIC's
//! timer mode is accepted and lost. Every result is checked, the count of MSRs
//! set included: a state that was restored in part is an error, never a VM.

// UNSAFETY: XSAVE areas of the size that KVM asks for.
#![expect(unsafe_code)]

use std::io;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Xsave, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;

use crate::boot::VcpuEntry;
use crate::kvm::host::Host;
use crate::kvm::msrs::{MSR_TSC, MSR_TSC_DEADLINE, MSRS_KVM_SYSTEM_TIME, MsrPlan, entries};

/// Why a vCPU's state could not be read or set.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// An ioctl failed.
    #[error("cannot {op} of vCPU {vcpu}: {source}")]
    Ioctl {
        /// What was tried.
        op: &'static str,
        /// The vCPU.
        vcpu: usize,
        /// The system's answer.
        source: io::Error,
    },
    /// An MSR was refused.
    #[error("cannot {op} MSR {index:#x} of vCPU {vcpu}: KVM stopped there")]
    Msr {
        /// Read or set.
        op: &'static str,
        /// The vCPU.
        vcpu: usize,
        /// The MSR.
        index: u32,
    },
}

/// Everything a vCPU is, but its CPUID, which is set when it is made.
#[derive(Clone)]
pub(crate) struct VcpuState {
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcrs: kvm_xcrs,
    xsave: Xsave,
    lapic: kvm_lapic_state,
    msrs: Vec<(u32, u64)>,
    debug_regs: kvm_debugregs,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
}

impl VcpuState {
    /// Reads the state of a vCPU that is out of the guest with no exit pending.
    pub(crate) fn save(host: &Host, vcpu: &VcpuFd, index: usize) -> Result<Self, StateError> {
        let failed = |op| failed(op, index);
        Ok(Self {
            mp_state: vcpu.get_mp_state().map_err(failed("get the run state"))?,
            regs: vcpu.get_regs().map_err(failed("get the registers"))?,
            sregs: vcpu
                .get_sregs()
                .map_err(failed("get the system registers"))?,
            xcrs: vcpu.get_xcrs().map_err(failed("get XCR0"))?,
            xsave: get_xsave(host, vcpu).map_err(failed("get the XSAVE area"))?,
            lapic: vcpu.get_lapic().map_err(failed("get the local APIC"))?,
            msrs: get_msrs(&host.msrs, vcpu, index)?,
            debug_regs: vcpu
                .get_debug_regs()
                .map_err(failed("get the debug registers"))?,
            events: vcpu
                .get_vcpu_events()
                .map_err(failed("get the pending events"))?,
        })
    }

    /// Sets all of it on a vCPU that is out of the guest.
    pub(crate) fn restore(&self, vcpu: &VcpuFd, index: usize) -> Result<(), StateError> {
        let failed = |op| failed(op, index);
        vcpu.set_sregs(&self.sregs)
            .map_err(failed("set the system registers"))?;
        vcpu.set_xcrs(&self.xcrs).map_err(failed("set XCR0"))?;
        // SAFETY: KVM itself filled an area of the size it asks for, and the
        // process does not enable features in between.
        unsafe { vcpu.set_xsave2(&self.xsave) }.map_err(failed("set the XSAVE area"))?;
        vcpu.set_lapic(&self.lapic)
            .map_err(failed("set the local APIC"))?;
        set_msrs(&self.msrs, vcpu, index)?;
        vcpu.set_debug_regs(&self.debug_regs)
            .map_err(failed("set the debug registers"))?;
        vcpu.set_vcpu_events(&self.events)
            .map_err(failed("set the pending events"))?;
        vcpu.set_regs(&self.regs)
            .map_err(failed("set the registers"))?;
        vcpu.set_mp_state(self.mp_state)
            .map_err(failed("set the run state"))
    }

    /// Where its page tables begin.
    pub(crate) fn paging(&self) -> Paging {
        match (self.sregs.cr0 & CR0_PG, self.sregs.efer & EFER_LMA) {
            (0, _) => Paging::Off,
            (_, 0) => Paging::Other,
            _ if self.sregs.cr4 & CR4_LA57 != 0 => Paging::Other,
            _ => Paging::FourLevels {
                cr3: self.sregs.cr3,
            },
        }
    }

    /// Sets paging to something else than [`restore`](Self::restore) will, so
    /// that the processor forgets what it remembers of page tables.
    pub(crate) fn page_otherwise(&self, vcpu: &VcpuFd, index: usize) -> Result<(), StateError> {
        let mut sregs = self.sregs;
        sregs.cr4 ^= CR4_PGE;
        let set = vcpu.set_sregs(&sregs);
        set.map_err(failed("set the system registers", index))
    }

    /// Sets again what has moved on since [`restore`](Self::restore) and can be
    /// set: the time stamp counter, and a timer that was running.
    pub(crate) fn restart_clocks(
        &self,
        host: &Host,
        vcpu: &VcpuFd,
        index: usize,
    ) -> Result<(), StateError> {
        let timer = self.timer_is_armed();
        if timer {
            // The whole APIC, because the timer may have fired into it.
            vcpu.set_lapic(&self.lapic)
                .map_err(failed("set the local APIC", index))?;
        }
        let moves = |msr: u32| match msr {
            MSR_TSC => host.msrs.tsc_can_be_set,
            MSR_TSC_DEADLINE => timer,
            _ => false,
        };
        let msrs = self.msrs.iter().filter(|(msr, _)| moves(*msr)).copied();
        match msrs.collect::<Vec<_>>().as_slice() {
            [] => Ok(()),
            msrs => set_msrs(msrs, vcpu, index),
        }
    }

    /// Whether the guest has told KVM where to keep its clock.
    pub(crate) fn reads_kvm_clock(&self) -> bool {
        let enabled =
            |(msr, value): &(u32, u64)| MSRS_KVM_SYSTEM_TIME.contains(msr) && value & 1 != 0;
        self.msrs.iter().any(enabled)
    }

    /// Whether the local APIC's timer runs: it has a count or a deadline.
    fn timer_is_armed(&self) -> bool {
        let initial_count = &self.lapic.regs[TIMER_INITIAL_COUNT..TIMER_INITIAL_COUNT + 4];
        let deadline = |(index, value): &(u32, u64)| *index == MSR_TSC_DEADLINE && *value != 0;
        initial_count.iter().any(|byte| *byte != 0) || self.msrs.iter().any(deadline)
    }
}

/// How a vCPU finds its page tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Paging {
    /// It has none.
    Off,
    /// Those of 64-bit mode.
    FourLevels {
        /// Where the first is, and flags.
        cr3: u64,
    },
    /// Those of 32-bit modes, or five levels.
    Other,
}

const CR0_PG: u64 = 1 << 31;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;

/// Of all that paging depends on, what may be changed in any mode.
const CR4_PGE: u64 = 1 << 7;

/// Offset of the initial-count register in the local APIC's page (Intel's
/// manual, volume 3, 12.5.4).
const TIMER_INITIAL_COUNT: usize = 0x380;

impl std::fmt::Debug for VcpuState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VcpuState")
            .field("rip", &self.regs.rip)
            .finish_non_exhaustive()
    }
}

/// Puts a fresh vCPU at its entry, or leaves it to wait for its start-up
/// interrupt. XCR0 gets what the guest environment promises: x87, SSE, AVX.
pub(crate) fn start_vcpu(
    vcpu: &VcpuFd,
    index: usize,
    host: &Host,
    entry: Option<&VcpuEntry>,
) -> Result<(), StateError> {
    let Some(entry) = entry else {
        return Ok(());
    };
    let failed = |op| failed(op, index);
    let mut sregs = vcpu
        .get_sregs()
        .map_err(failed("get the system registers"))?;
    let mut regs = vcpu.get_regs().map_err(failed("get the registers"))?;
    entry.apply(&mut sregs, &mut regs, host.basic_xcr0());
    vcpu.set_sregs(&sregs)
        .map_err(failed("set the system registers"))?;
    let mut xcrs = vcpu.get_xcrs().map_err(failed("get XCR0"))?;
    xcrs.nr_xcrs = 1;
    xcrs.xcrs[0].xcr = 0;
    xcrs.xcrs[0].value = host.basic_xcr0();
    vcpu.set_xcrs(&xcrs).map_err(failed("set XCR0"))?;
    vcpu.set_regs(&regs).map_err(failed("set the registers"))?;
    let runnable = kvm_mp_state {
        mp_state: kvm_bindings::KVM_MP_STATE_RUNNABLE,
    };
    vcpu.set_mp_state(runnable)
        .map_err(failed("set the run state"))
}

/// The table that vCPU `index` gets: the host's, with the vCPU's own APIC id.
pub(crate) fn cpuid_for(host: &Host, index: u32, cpus: u32) -> CpuId {
    let mut cpuid = host.cpuid().clone();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            // Initial APIC id and the number of logical processors.
            1 => entry.ebx = (entry.ebx & 0xffff) | (cpus << 16 & 0xff_0000) | (index << 24),
            // x2APIC id, in the topology leaves.
            0xb | 0x1f => entry.edx = index,
            _ => {}
        }
    }
    cpuid
}

/// The table KVM has given `vcpu`, which may hold more than was asked for.
pub(crate) fn effective_cpuid(vcpu: &VcpuFd) -> Result<CpuId, kvm_ioctls::Error> {
    vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES)
}

fn failed(op: &'static str, vcpu: usize) -> impl FnOnce(kvm_ioctls::Error) -> StateError {
    move |source| StateError::Ioctl {
        op,
        vcpu,
        source: source.into(),
    }
}

fn get_xsave(host: &Host, vcpu: &VcpuFd) -> Result<Xsave, kvm_ioctls::Error> {
    let extra = host.xsave_bytes - size_of::<kvm_xsave>();
    let mut xsave = Xsave::new(extra.div_ceil(size_of::<u32>()))
        .map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))?;
    // SAFETY: `xsave_bytes` is what KVM said that it fills, asked of a VM of
    // this process.
    unsafe { vcpu.get_xsave2(&mut xsave) }?;
    Ok(xsave)
}

fn get_msrs(plan: &MsrPlan, vcpu: &VcpuFd, index: usize) -> Result<Vec<(u32, u64)>, StateError> {
    let mut msrs = entries(plan.indices.iter().map(|index| (*index, 0)));
    let count = vcpu
        .get_msrs(&mut msrs)
        .map_err(failed("get the MSRs", index))?;
    match plan.indices.get(count) {
        Some(refused) => Err(StateError::Msr {
            op: "read",
            vcpu: index,
            index: *refused,
        }),
        None => Ok(msrs
            .as_slice()
            .iter()
            .map(|entry| (entry.index, entry.data))
            .collect()),
    }
}

fn set_msrs(values: &[(u32, u64)], vcpu: &VcpuFd, index: usize) -> Result<(), StateError> {
    let msrs = entries(values.iter().copied());
    let count = vcpu
        .set_msrs(&msrs)
        .map_err(failed("set the MSRs", index))?;
    match values.get(count) {
        Some((refused, _)) => Err(StateError::Msr {
            op: "set",
            vcpu: index,
            index: *refused,
        }),
        None => Ok(()),
    }
}
