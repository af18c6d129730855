//! A point in a machine's life, in memory.

use std::sync::Arc;

use guestmem::{Layer, Ram};

use crate::devices::{Console, ConsoleMode, Devices};
use crate::error::VmError;
use crate::kvm::shell::{Shell, Vcpu};
use crate::machine::{Family, Machine, MachineState};
use crate::vm::Vm;

/// What a VM was at one instant: its memory as a frozen layer, vCPUs and
/// devices as data. Fork VMs from it, or reset its VM to it, any number of
/// times; it holds the layer until it is dropped.
#[derive(Debug)]
pub struct Snapshot {
    pub(crate) family: Arc<Family>,
    pub(crate) layer: Layer,
    pub(crate) state: MachineState,
    console: ConsoleMode,
}

impl Snapshot {
    pub(crate) fn new(
        family: Arc<Family>,
        layer: Layer,
        state: MachineState,
        console: ConsoleMode,
    ) -> Self {
        Self {
            family,
            layer,
            state,
            console,
        }
    }

    /// A new VM that is what the snapshot's was. It is paused; its generation
    /// is its own. If the guest had asked to be forked at that moment, its
    /// call returns the new VM's number.
    ///
    /// # Errors
    /// If the host lacks memory or will not make a VM.
    pub fn fork(&self) -> Result<Vm, VmError> {
        let (ram, shell, vcpus) = self.embody()?;
        let number = self.family.next_number();
        let console = Arc::new(Console::new(self.console));
        let generation = self.family.next_generation();
        let mut devices = Devices::new(vcpus.len(), generation, Arc::clone(&console));
        devices.restore(&self.state.devices);
        devices.control.set_generation(generation);
        devices.control.answer_fork(Some(number));
        let machine = Machine::new(
            Arc::clone(&self.family),
            number,
            vcpus,
            devices,
            ram,
            console,
        );
        Ok(Vm::new(machine, shell))
    }

    /// Memory, a shell around it, and vCPUs as they were.
    pub(crate) fn embody(&self) -> Result<(Ram, Shell, Vec<Vcpu>), VmError> {
        let ram = self.layer.fork()?;
        let (shell, vcpus) = self.family.shell(ram.window())?;
        self.state.restore(&shell, vcpus.iter())?;
        Ok((ram, shell, vcpus))
    }
}
