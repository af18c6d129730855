//! Building a machine from a kernel image.

use std::io;
use std::sync::Arc;

use guestmem::{Backing, LayoutError, MemoryError, Ram, RamLayout};

use crate::boot::{BootError, BootPlan, Kernel, LoadError, Starts};
use crate::devices::{Console, ConsoleMode, Devices};
use crate::error::{ShellError, StateError};
use crate::huge_layers::HugeLayers;
use crate::kvm::host::Host;
use crate::kvm::shell::{Blank, Shell};
use crate::kvm::state::start_vcpu;
use crate::limits::{Limits, MemoryLimit, may_build};
use crate::machine::{Family, Machine};
use crate::vm::Vm;

/// RAM of a VM whose builder does not say.
pub const DEFAULT_MEMORY_BYTES: u64 = 256 << 20;

/// Why a VM could not be built. Everything about the request is checked before
/// any VM exists.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A memory size that cannot be.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// More memory than the host's vCPUs can address.
    #[error(
        "memory size {size_bytes} reaches past the {bits} bits of physical address that vCPUs of this host have"
    )]
    BeyondAddressSpace {
        /// Size asked for.
        size_bytes: u64,
        /// The host's limit.
        bits: u32,
    },
    /// No vCPU, or too many.
    #[error("{cpus} vCPUs: give at least 1 and at most {most}")]
    Cpus {
        /// Number asked for.
        cpus: u32,
        /// What the guest environment and the host have room for.
        most: u32,
    },
    /// The kernel does not fit.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The kernel could not be written to guest memory.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// No memory for it.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// KVM would not make it.
    #[error(transparent)]
    Shell(#[from] ShellError),
    /// A vCPU could not be put at its entry.
    #[error(transparent)]
    State(#[from] StateError),
    /// The kernel alone takes more than a hard limit allows.
    #[error("loading the kernel commits {} bytes, more than the hard memory limit of {}", .0.committed_bytes, .0.limit_bytes)]
    OverLimit(MemoryLimit),
    /// No thread to watch the limits with.
    #[error("cannot start a thread to watch memory limits: {0}")]
    Thread(#[source] io::Error),
}

/// What a VM is to be; [`build`](Self::build) makes it.
#[derive(Debug)]
pub struct VmBuilder {
    host: Arc<Host>,
    kernel: Kernel,
    memory_bytes: u64,
    backing: Backing,
    cpus: u32,
    cmdline: String,
    initrd: Option<Vec<u8>>,
    console: ConsoleMode,
    limits: Limits,
    family_limits: Limits,
    huge_layers: HugeLayers,
}

impl VmBuilder {
    /// A VM that boots `kernel` with 256 MiB, one vCPU, and no more.
    pub fn new(host: Arc<Host>, kernel: Kernel) -> Self {
        Self {
            host,
            kernel,
            memory_bytes: DEFAULT_MEMORY_BYTES,
            backing: Backing::default(),
            cpus: 1,
            cmdline: String::new(),
            initrd: None,
            console: ConsoleMode::default(),
            limits: Limits::NONE,
            family_limits: Limits::NONE,
            huge_layers: HugeLayers::default(),
        }
    }

    /// How much RAM, in bytes. It is committed as the guest touches it, so
    /// this may be more than the host has.
    #[must_use]
    pub fn memory_bytes(mut self, bytes: u64) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// What the RAM is made of.
    #[must_use]
    pub fn backing(mut self, backing: Backing) -> Self {
        self.backing = backing;
        self
    }

    /// How many vCPUs.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// The kernel's command line.
    #[must_use]
    pub fn cmdline(mut self, cmdline: impl Into<String>) -> Self {
        self.cmdline = cmdline.into();
        self
    }

    /// An initial RAM disk.
    #[must_use]
    pub fn initrd(mut self, initrd: Vec<u8>) -> Self {
        self.initrd = Some(initrd);
        self
    }

    /// What becomes of the guest's output.
    #[must_use]
    pub fn console(mut self, console: ConsoleMode) -> Self {
        self.console = console;
        self
    }

    /// How much the VM may commit, and so each of its forks. No limit if
    /// nothing is said.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// How much the VM and all that descends from it may commit together.
    #[must_use]
    pub fn family_limits(mut self, limits: Limits) -> Self {
        self.family_limits = limits;
        self
    }

    /// What becomes of the memory of snapshots that serve as templates, of this
    /// VM and of all that are forked from it.
    #[must_use]
    pub fn huge_layers(mut self, huge_layers: HugeLayers) -> Self {
        self.huge_layers = huge_layers;
        self
    }

    /// Makes the VM. It is paused at its first instruction.
    ///
    /// # Errors
    /// If the request cannot be met; nothing is left behind.
    pub fn build(self) -> Result<Vm, BuildError> {
        let layout = RamLayout::new(self.memory_bytes)?;
        let bits = self.host.physical_address_bits();
        if layout.end().0 > 1 << bits {
            return Err(BuildError::BeyondAddressSpace {
                size_bytes: self.memory_bytes,
                bits,
            });
        }
        let most = self.host.max_vcpus().min(guest_images::abi::MAX_CPUS);
        if self.cpus == 0 || self.cpus > most {
            return Err(BuildError::Cpus {
                cpus: self.cpus,
                most,
            });
        }
        let plan = BootPlan::new(
            &self.kernel,
            &layout,
            self.cpus,
            &self.cmdline,
            self.initrd.as_deref(),
        )?;

        let may_have = |bytes| {
            may_build(bytes, &self.limits, &self.family_limits).map_err(BuildError::OverLimit)
        };
        may_have(plan.loaded_bytes())?;
        let ram = Ram::new(layout, self.backing)?;
        plan.load(&ram.guest_ram())?;
        // Page tables and huge pages come on top of what was asked for.
        may_have(ram.committed_bytes()?)?;
        let family = Family::new(
            Arc::clone(&self.host),
            Shell::cpuids(&self.host, self.cpus)?,
            layout,
            Arc::clone(ram.tree()),
            self.huge_layers,
        );
        let blank = Blank::new(&self.host, &family.cpuids)?;
        let (shell, vcpus) = blank.bind_to(ram.window())?;
        for (vcpu, index) in vcpus.iter().zip(0..) {
            let entry = plan.entry(index);
            let at_once = entry.starts() == Starts::AtOnce;
            start_vcpu(
                &vcpu.fd,
                index as usize,
                &self.host,
                at_once.then_some(&entry),
            )?;
        }
        let console = Arc::new(Console::new(self.console));
        let devices = Devices::new(vcpus.len(), family.next_generation(), Arc::clone(&console));
        let number = family.next_number();
        let machine = Machine::new(family, number, vcpus, devices, ram, console);
        let ledger = &machine.family.ledger;
        machine.seat.set_limits(self.limits);
        ledger.set_limits(self.family_limits);
        ledger.watch().map_err(BuildError::Thread)?;
        Ok(Vm::new(machine, shell))
    }
}
