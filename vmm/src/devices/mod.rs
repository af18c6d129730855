//! The devices of a machine, and who answers at which address.
//!
//! ```text
//!   MMIO  0xd000_0000  control page   what guests tell and ask the VMM
//!   port  0x3f8–0x3ff  COM1           16550, polled
//! ```
//!
//! Device state is plain data: [`Devices::save`] and [`Devices::restore`] are
//! how a fork gets its own.

mod console;
mod control;
mod serial;

use std::ops::RangeInclusive;
use std::sync::Arc;

use guest_images::abi;

pub(crate) use console::Console;
pub use console::ConsoleMode;
pub(crate) use control::{Asked, ControlPage};
pub(crate) use serial::SerialPort;

/// COM1.
const COM1: RangeInclusive<u16> = 0x3f8..=0x3ff;

/// Bytes of guest-physical space the control page takes.
const CONTROL_LEN: u64 = guestmem::PAGE_SIZE;

/// All devices of one machine.
#[derive(Debug)]
pub(crate) struct Devices {
    pub(crate) control: ControlPage,
    pub(crate) serial: SerialPort,
    console: Arc<Console>,
}

/// What a fork takes over from its parent's devices.
#[derive(Clone, Debug)]
pub(crate) struct DeviceState {
    pub(crate) control: ControlPage,
    serial: vm_superio::SerialState,
}

/// Nobody answers at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unclaimed;

impl Devices {
    pub(crate) fn new(cpus: usize, generation: u64, console: Arc<Console>) -> Self {
        Self {
            control: ControlPage::new(cpus, generation),
            serial: SerialPort::new(Arc::clone(&console)),
            console,
        }
    }

    /// The state of all devices.
    pub(crate) fn save(&self) -> DeviceState {
        DeviceState {
            control: self.control.clone(),
            serial: self.serial.state(),
        }
    }

    /// Makes all devices what they were in `state`.
    pub(crate) fn restore(&mut self, state: &DeviceState) {
        self.control = state.control.clone();
        self.serial = SerialPort::from_state(&state.serial, Arc::clone(&self.console));
    }

    /// vCPU `vcpu` reads `data.len()` bytes of MMIO space.
    pub(crate) fn mmio_read(
        &mut self,
        vcpu: usize,
        gpa: u64,
        data: &mut [u8],
    ) -> Result<(), Unclaimed> {
        let offset = control_offset(gpa, data.len())?;
        self.control.read(vcpu, offset, data)
    }

    /// vCPU `vcpu` writes `data` to MMIO space.
    pub(crate) fn mmio_write(
        &mut self,
        vcpu: usize,
        gpa: u64,
        data: &[u8],
    ) -> Result<Asked, Unclaimed> {
        let offset = control_offset(gpa, data.len())?;
        self.control.write(vcpu, offset, data, &self.console)
    }

    /// A vCPU reads a port. Nobody there: all ones, as on a real bus.
    pub(crate) fn port_read(&mut self, port: u16, data: &mut [u8]) {
        // A string instruction delivers many single accesses at once.
        for byte in data {
            *byte = match port {
                port if COM1.contains(&port) => self.serial.read(port - COM1.start()),
                _ => 0xff,
            };
        }
    }

    /// A vCPU writes a port. Nobody there: nothing happens.
    pub(crate) fn port_write(&mut self, port: u16, data: &[u8]) {
        if COM1.contains(&port) {
            for byte in data {
                self.serial.write(port - COM1.start(), *byte);
            }
        }
    }
}

fn control_offset(gpa: u64, len: usize) -> Result<u64, Unclaimed> {
    let offset = gpa.checked_sub(abi::CONTROL_PAGE).ok_or(Unclaimed)?;
    let inside = offset < CONTROL_LEN && len as u64 <= CONTROL_LEN - offset;
    inside.then_some(offset).ok_or(Unclaimed)
}
