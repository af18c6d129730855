//! A shell: a VM as KVM knows it, with nothing in it yet.
//!
//! A machine lives *in* a shell and can move to another one: that is how a
//! running root is forked without copying its RAM. Making a VM, its irqchip and
//! its vCPUs and binding memory to it take longer than a fork may, so shells
//! are made ahead, [`Bound`] to addresses at which a window is made later.

// UNSAFETY: memslots: KVM reads and writes the host memory they name.
#![expect(unsafe_code)]

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use guestmem::{BlankWindow, PAGE_SIZE, RamRegion, RamWindow};
use kvm_bindings::{CpuId, kvm_clock_data, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuFd, VmFd};

use super::first_entry;
use super::host::Host;
use super::kick::Kick;
use super::msrs::enable_split_irqchip;
use super::state::{cpuid_for, effective_cpuid};
use super::translations::{TablesWere, Translations, Walker, give_up_shadows};

/// Why KVM would not make a VM.
#[derive(Debug, thiserror::Error)]
#[error("cannot {op}: {source}")]
pub struct ShellError {
    op: &'static str,
    source: io::Error,
}

fn failed(op: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> ShellError {
    move |source| ShellError {
        op,
        source: source.into(),
    }
}

/// A VM without memory.
#[derive(Debug)]
pub(crate) struct Blank {
    vm: VmFd,
    vcpus: Vec<(VcpuFd, Arc<Kick>)>,
}

/// A vCPU that is out of the guest, ready to be run by some thread.
#[derive(Debug)]
pub(crate) struct Vcpu {
    pub(crate) fd: VcpuFd,
    pub(crate) kick: Arc<Kick>,
    /// A vCPU keeps its VM, and so the memslots, in being.
    _window: RamWindow,
}

/// What is left of a shell when its vCPUs are out with their threads.
#[derive(Debug)]
pub(crate) struct Shell {
    vm: VmFd,
    /// Known from the first reset on.
    translations: Option<Translations>,
    /// Bound as memslots: it must stay mapped while `vm` exists, so it comes
    /// after it.
    _window: RamWindow,
}

impl Blank {
    /// A VM with a split irqchip and vCPUs that have `cpuids`.
    pub(crate) fn new(host: &Host, cpuids: &[CpuId]) -> Result<Self, ShellError> {
        let vm = host.kvm().create_vm().map_err(failed("create a VM"))?;
        enable_split_irqchip(&vm).map_err(failed("split the irqchip"))?;
        let vcpu = |(index, cpuid)| {
            let fd = vm.create_vcpu(index).map_err(failed("create a vCPU"))?;
            fd.set_cpuid2(cpuid).map_err(failed("set a vCPU's CPUID"))?;
            let kick = Kick::new(&fd).map_err(|source| ShellError {
                op: "map a vCPU's run page",
                source,
            })?;
            Ok((fd, Arc::new(kick)))
        };
        let vcpus = (0..)
            .zip(cpuids)
            .map(vcpu)
            .collect::<Result<_, ShellError>>()?;
        Ok(Self { vm, vcpus })
    }

    /// Gives it the addresses of `window` for memory, whatever will be seen
    /// there; and does already what KVM puts off until a vCPU is first
    /// entered, if that pays off on this host.
    pub(crate) fn bind(mut self, host: &Host, window: BlankWindow) -> Result<Bound, ShellError> {
        self.set_memslots(window.regions())?;
        if host.enters_ahead {
            for (vcpu, _) in &mut self.vcpus {
                first_entry::make(vcpu).map_err(|source| ShellError {
                    op: "enter a vCPU ahead",
                    source,
                })?;
            }
        }
        Ok(Bound {
            blank: self,
            window,
        })
    }

    /// Gives it `window` for memory.
    pub(crate) fn bind_to(self, window: RamWindow) -> Result<(Shell, Vec<Vcpu>), ShellError> {
        self.set_memslots(window.regions())?;
        Ok(self.with(window))
    }

    fn set_memslots(
        &self,
        regions: impl Iterator<Item = (RamRegion, NonNull<u8>)>,
    ) -> Result<(), ShellError> {
        for ((region, address), slot) in regions.zip(0..) {
            let memslot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.gpa.0,
                memory_size: region.len_bytes(),
                userspace_addr: address.addr().get() as u64,
            };
            // SAFETY: (1) the range is the region of a window, which stays
            // mapped as long as the `Bound`, or the `Shell` and every `Vcpu`
            // made of it, keep the VM in being (see `with`); (2) host code only
            // touches it by raw pointer or volatile access.
            unsafe { self.vm.set_user_memory_region(memslot) }.map_err(failed("bind RAM"))?;
        }
        Ok(())
    }

    /// `window` is what the memslots show; whoever keeps the VM keeps it.
    fn with(self, window: RamWindow) -> (Shell, Vec<Vcpu>) {
        let vcpu = |(fd, kick)| Vcpu {
            fd,
            kick,
            _window: window.clone(),
        };
        let vcpus = self.vcpus.into_iter().map(vcpu).collect();
        let shell = Shell {
            vm: self.vm,
            translations: None,
            _window: window,
        };
        (shell, vcpus)
    }
}

/// A shell whose memslots are bound to addresses with nothing in them yet.
#[derive(Debug)]
pub(crate) struct Bound {
    blank: Blank,
    /// Must stay mapped while the VM exists, so it comes after it.
    window: BlankWindow,
}

impl Bound {
    /// The addresses: make the window there that the machine is to see.
    pub(crate) fn window(&self) -> &BlankWindow {
        &self.window
    }

    #[cfg(test)]
    pub(crate) fn vcpus(&mut self) -> impl Iterator<Item = &mut VcpuFd> {
        self.blank.vcpus.iter_mut().map(|(vcpu, _)| vcpu)
    }

    /// The shell, now that `window` has been made at its addresses.
    ///
    /// # Panics
    /// If it is another window.
    pub(crate) fn with(self, window: RamWindow) -> (Shell, Vec<Vcpu>) {
        assert!(self.window.is_of(&window), "made at other addresses");
        self.blank.with(window)
    }
}

impl Shell {
    /// The CPUID tables for `cpus` vCPUs as KVM itself completes them, so that
    /// every shell of a machine gets the identical ones.
    pub(crate) fn cpuids(host: &Host, cpus: u32) -> Result<Vec<CpuId>, ShellError> {
        let vm = host.kvm().create_vm().map_err(failed("create a VM"))?;
        enable_split_irqchip(&vm).map_err(failed("split the irqchip"))?;
        (0..cpus)
            .map(|index| {
                let vcpu = vm
                    .create_vcpu(index.into())
                    .map_err(failed("create a vCPU"))?;
                vcpu.set_cpuid2(&cpuid_for(host, index, cpus))
                    .map_err(failed("set a vCPU's CPUID"))?;
                effective_cpuid(&vcpu).map_err(failed("get a vCPU's CPUID"))
            })
            .collect()
    }

    /// Has KVM forget what it remembers of page tables, if it may be wrong:
    /// memory was changed while none of `vcpus`, which are all there are, ran.
    pub(crate) fn forget_translations<'a>(
        &mut self,
        host: &Host,
        vcpus: impl Iterator<Item = &'a Vcpu>,
        tables: TablesWere,
    ) -> Result<(), ShellError> {
        if self.translations.is_none() {
            match Translations::new(&self.vm, vcpus.map(|vcpu| &vcpu.fd)) {
                Ok(translations) => self.translations = Some(translations),
                Err(error) => log::debug!("KVM does not tell its counts: {error}"),
            }
        }
        let uncounted = |source| ShellError {
            op: "read what KVM counts",
            source,
        };
        let may_be_wrong = match &mut self.translations {
            Some(translations) => translations.may_be_wrong(tables).map_err(uncounted)?,
            None => host.walker == Walker::Kvm,
        };
        if may_be_wrong {
            let last = (1 << host.physical_address_bits()) - PAGE_SIZE;
            give_up_shadows(&self.vm, last).map_err(failed("give up shadow page tables"))?;
        }
        Ok(())
    }

    /// The VM's clock, to go on with elsewhere.
    pub(crate) fn clock(&self) -> Result<kvm_clock_data, ShellError> {
        self.vm.get_clock().map_err(failed("get the clock"))
    }

    /// Lets the clock go on from `clock`, without a jump.
    pub(crate) fn set_clock(&self, clock: &kvm_clock_data) -> Result<(), ShellError> {
        // Without flags: what was read then is what it says now.
        let clock = kvm_clock_data {
            clock: clock.clock,
            ..Default::default()
        };
        self.vm.set_clock(&clock).map_err(failed("set the clock"))
    }
}
