//! COM1: vm-superio's 16550 on a machine's console. Polled: nothing routes its
//! interrupt line yet.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, SerialState, Trigger};

use super::Console;

/// An interrupt line that leads nowhere.
#[derive(Debug)]
pub(crate) struct NoLine;

impl Trigger for NoLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// What the 16550 transmits goes to the console.
#[derive(Debug)]
pub(crate) struct ToConsole(Arc<Console>);

impl io::Write for ToConsole {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The port; register offsets are from its base.
pub(crate) struct SerialPort {
    uart: Serial<NoLine, NoEvents, ToConsole>,
    console: Arc<Console>,
}

impl SerialPort {
    pub(crate) fn new(console: Arc<Console>) -> Self {
        Self {
            uart: Serial::new(NoLine, ToConsole(Arc::clone(&console))),
            console,
        }
    }

    pub(crate) fn from_state(state: &SerialState, console: Arc<Console>) -> Self {
        match Serial::from_state(state, NoLine, NoEvents, ToConsole(Arc::clone(&console))) {
            Ok(uart) => Self { uart, console },
            // Only a FIFO longer than the UART's own is refused.
            Err(error) => unreachable!("a state that a UART gave: {error:?}"),
        }
    }

    pub(crate) fn state(&self) -> SerialState {
        self.uart.state()
    }

    pub(crate) fn read(&mut self, offset: u16) -> u8 {
        self.console.flush();
        // Input waits in the console until the guest looks for it.
        // A full FIFO takes none of it, and gets it later.
        let uart = &mut self.uart;
        self.console
            .offer_input(|bytes| uart.enqueue_raw_bytes(bytes).unwrap_or(0));
        u8::try_from(offset).map_or(0xff, |offset| self.uart.read(offset))
    }

    pub(crate) fn write(&mut self, offset: u16, value: u8) {
        let written = u8::try_from(offset).map(|offset| self.uart.write(offset, value));
        if let Ok(Err(error)) = written {
            log::debug!("COM1 does not take a byte: {error:?}");
        }
    }
}

impl std::fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SerialPort")
            .field("state", &self.uart.state())
            .finish_non_exhaustive()
    }
}
