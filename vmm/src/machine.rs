//! What a machine's vCPU threads and its owner share.
//!
//! Locks, in the order in which they may be taken: the owner's control lock,
//! the gate, RAM, devices. A vCPU thread that is out holds none of them across
//! an entry into the guest, and never takes the control lock, so that an owner
//! who waits for vCPUs to park can wait with it held.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use guestmem::{BlankWindow, CloneTree, GuestRam, PageIdx, Ram, RamLayout};
use kvm_bindings::{CpuId, kvm_clock_data};

use crate::background;
use crate::devices::{Console, DeviceState, Devices};
use crate::error::VmError;
use crate::huge_layers::HugeLayers;
use crate::kvm::host::Host;
use crate::kvm::shell::{Blank, Bound, Shell, Vcpu};
use crate::kvm::state::{Paging, VcpuState};
use crate::limits::{Ledger, Seat};
use crate::page_tables::PageTables;
use crate::vcpu::gate::Gate;

/// Shells kept for the next fork: one for the child, one for a parent that has
/// to move.
const KEEP_SHELLS: usize = 2;

/// What a machine and everything forked from it have in common.
#[derive(Debug)]
pub(crate) struct Family {
    pub(crate) host: Arc<Host>,
    /// One table a vCPU, as KVM completed it.
    pub(crate) cpuids: Vec<CpuId>,
    /// How the RAM of each is laid out.
    layout: RamLayout,
    /// All of their RAM.
    tree: Arc<CloneTree>,
    /// What becomes of the memory of templates.
    pub(crate) huge_layers: HugeLayers,
    /// Made ahead, from the first run on.
    shells: Mutex<Vec<Bound>>,
    next_number: AtomicU64,
    next_generation: AtomicU64,
    /// Memory limits.
    pub(crate) ledger: Arc<Ledger>,
}

impl Drop for Family {
    fn drop(&mut self) {
        self.ledger.close();
    }
}

impl Family {
    pub(crate) fn new(
        host: Arc<Host>,
        cpuids: Vec<CpuId>,
        layout: RamLayout,
        tree: Arc<CloneTree>,
        huge_layers: HugeLayers,
    ) -> Arc<Self> {
        Arc::new(Self {
            host,
            cpuids,
            layout,
            tree: Arc::clone(&tree),
            huge_layers,
            shells: Mutex::default(),
            next_number: AtomicU64::new(0),
            next_generation: AtomicU64::new(1),
            ledger: Ledger::new(tree),
        })
    }

    /// A shell that only lacks the window at its addresses. Whoever takes one
    /// has others [made](Self::work_ahead) when its own work is done, so as not
    /// to share the host's cores with that.
    pub(crate) fn shell(&self) -> Result<Bound, VmError> {
        let ready = self.shells().pop();
        match ready {
            Some(shell) => Ok(shell),
            None => self.make_shell(),
        }
    }

    /// The same, made now.
    pub(crate) fn make_shell(&self) -> Result<Bound, VmError> {
        let blank = Blank::new(&self.host, &self.cpuids)?;
        let window = BlankWindow::for_tree(&self.tree, self.layout)?;
        Ok(blank.bind(&self.host, window)?)
    }

    /// Has shells made for the next fork, in the background.
    pub(crate) fn work_ahead(self: &Arc<Self>) {
        if self.shells().len() >= KEEP_SHELLS {
            return;
        }
        let family = Arc::downgrade(self);
        background::ahead(move || {
            if let Some(family) = family.upgrade() {
                family.make_shells();
            }
        });
    }

    fn make_shells(&self) {
        while self.shells().len() < KEEP_SHELLS {
            match self.make_shell() {
                Ok(shell) => self.shells().push(shell),
                // Whoever needs one will try again, and be told.
                Err(error) => return log::debug!("no shell made ahead: {error}"),
            }
        }
    }

    fn shells(&self) -> MutexGuard<'_, Vec<Bound>> {
        self.shells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for a new machine: 0 for the first, then 1, 2, …
    pub(crate) fn next_number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// A generation that no machine of the family has had.
    pub(crate) fn next_generation(&self) -> u64 {
        self.next_generation.fetch_add(1, Ordering::Relaxed)
    }
}

/// One machine, as its vCPU threads see it.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) gate: Gate,
    devices: Mutex<Devices>,
    ram: Mutex<Ram>,
    /// Where the next look for zero pages begins.
    scanned_to: Mutex<PageIdx>,
    pub(crate) console: Arc<Console>,
    pub(crate) family: Arc<Family>,
    /// Its place in the family's ledger.
    pub(crate) seat: Arc<Seat>,
    number: u64,
    layout: RamLayout,
}

impl Machine {
    pub(crate) fn new(
        family: Arc<Family>,
        number: u64,
        vcpus: Vec<Vcpu>,
        devices: Devices,
        ram: Ram,
        console: Arc<Console>,
    ) -> Arc<Self> {
        let machine = Arc::new(Self {
            gate: Gate::new(vcpus),
            devices: Mutex::new(devices),
            layout: ram.layout(),
            ram: Mutex::new(ram),
            scanned_to: Mutex::default(),
            console,
            seat: family.ledger.seat(number),
            family,
            number,
        });
        machine.seat.occupy(&machine);
        machine
    }

    pub(crate) fn devices(&self) -> MutexGuard<'_, Devices> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ram(&self) -> MutexGuard<'_, Ram> {
        self.ram.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its RAM, unless somebody is working on it.
    pub(crate) fn try_ram(&self) -> Option<MutexGuard<'_, Ram>> {
        match self.ram.try_lock() {
            Ok(ram) => Some(ram),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub(crate) fn scanned_to(&self) -> MutexGuard<'_, PageIdx> {
        self.scanned_to
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn layout(&self) -> RamLayout {
        self.layout
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

/// All of a machine but its memory, as plain data.
#[derive(Clone, Debug)]
pub(crate) struct MachineState {
    vcpus: Vec<VcpuState>,
    pub(crate) devices: DeviceState,
    clock: kvm_clock_data,
}

impl MachineState {
    /// Reads it from a machine whose vCPUs are parked.
    pub(crate) fn save<'a>(
        machine: &Machine,
        shell: &Shell,
        vcpus: impl Iterator<Item = &'a Vcpu>,
    ) -> Result<Self, VmError> {
        let host = &machine.family.host;
        let vcpus = vcpus
            .enumerate()
            .map(|(index, vcpu)| VcpuState::save(host, &vcpu.fd, index));
        Ok(Self {
            vcpus: vcpus.collect::<Result<_, _>>()?,
            clock: shell.clock()?,
            devices: machine.devices().save(),
        })
    }

    /// Sets clock and vCPUs of `shell`; devices are not the shell's.
    pub(crate) fn restore<'a>(
        &self,
        shell: &Shell,
        vcpus: impl Iterator<Item = &'a Vcpu>,
    ) -> Result<(), VmError> {
        shell.set_clock(&self.clock)?;
        for (index, (state, vcpu)) in self.vcpus.iter().zip(vcpus).enumerate() {
            state.restore(&vcpu.fd, index)?;
        }
        Ok(())
    }

    /// The page tables that its vCPUs begin with, in `ram`, which is the
    /// machine's; `None` if they are many, or of a kind that nobody looks at.
    pub(crate) fn page_tables(&self, ram: &GuestRam) -> Option<PageTables> {
        let mut roots = Vec::new();
        for vcpu in &self.vcpus {
            match vcpu.paging() {
                Paging::Off => {}
                Paging::FourLevels { cr3 } => roots.push(cr3),
                Paging::Other => return None,
            }
        }
        PageTables::reached_from(roots.into_iter(), ram)
    }

    /// Sets paging of the vCPUs to something else than
    /// [`restore`](Self::restore) will.
    pub(crate) fn page_otherwise<'a>(
        &self,
        vcpus: impl Iterator<Item = &'a Vcpu>,
    ) -> Result<(), VmError> {
        for (index, (state, vcpu)) in self.vcpus.iter().zip(vcpus).enumerate() {
            state.page_otherwise(&vcpu.fd, index)?;
        }
        Ok(())
    }

    /// Sets what has moved on since [`restore`](Self::restore): time, as far as
    /// the guest has a way to see it.
    pub(crate) fn restart_clocks<'a>(
        &self,
        host: &Host,
        shell: &Shell,
        vcpus: impl Iterator<Item = &'a Vcpu>,
    ) -> Result<(), VmError> {
        if self.vcpus.iter().any(VcpuState::reads_kvm_clock) {
            shell.set_clock(&self.clock)?;
        }
        for (index, (state, vcpu)) in self.vcpus.iter().zip(vcpus).enumerate() {
            state.restart_clocks(host, &vcpu.fd, index)?;
        }
        Ok(())
    }
}
