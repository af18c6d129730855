//! Where a machine's output goes, and where its input comes from.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

/// Captured output kept; what a guest writes beyond it pushes the oldest out.
const KEEP_BYTES: usize = 1 << 20;
/// A line longer than this is shown in pieces.
const LONGEST_LINE: usize = 4096;
/// Input kept for a guest that does not read it.
const KEEP_INPUT_BYTES: usize = 64 << 10;

/// What becomes of what a guest writes to its consoles. Forks do as their
/// parent does, each for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConsoleMode {
    /// Kept, the last MiB of it, for [`Vm::output`](crate::Vm::output).
    #[default]
    Capture,
    /// Written to this process's standard output, line by line.
    Stdout,
    /// Nothing.
    Discard,
}

/// One machine's console.
#[derive(Debug)]
pub(crate) struct Console {
    mode: ConsoleMode,
    buffers: Mutex<Buffers>,
}

#[derive(Debug, Default)]
struct Buffers {
    /// Captured, or not yet shown.
    output: VecDeque<u8>,
    input: VecDeque<u8>,
}

impl Console {
    pub(crate) fn new(mode: ConsoleMode) -> Self {
        Self {
            mode,
            buffers: Mutex::default(),
        }
    }

    pub(crate) fn mode(&self) -> ConsoleMode {
        self.mode
    }

    /// The guest writes.
    pub(crate) fn write(&self, bytes: &[u8]) {
        match self.mode {
            ConsoleMode::Discard => {}
            ConsoleMode::Stdout => {
                let output = &mut self.lock().output;
                output.extend(bytes);
                // Whole lines, so that those of several VMs do not mix.
                if let Some(end) = output.iter().rposition(|byte| *byte == b'\n') {
                    to_stdout(output, end + 1);
                } else if output.len() > LONGEST_LINE {
                    to_stdout(output, output.len());
                }
            }
            ConsoleMode::Capture => {
                let output = &mut self.lock().output;
                output.extend(bytes);
                let excess = output.len().saturating_sub(KEEP_BYTES);
                output.drain(..excess);
            }
        }
    }

    /// Shows what has been written of a line that has no end yet: the guest has
    /// stopped, or asks for input.
    pub(crate) fn flush(&self) {
        if self.mode == ConsoleMode::Stdout {
            let output = &mut self.lock().output;
            to_stdout(output, output.len());
        }
    }

    /// What was captured, oldest first.
    pub(crate) fn output(&self) -> Vec<u8> {
        if self.mode != ConsoleMode::Capture {
            return Vec::new();
        }
        self.lock().output.iter().copied().collect()
    }

    /// Queues input; returns how many bytes there was room for.
    pub(crate) fn feed(&self, bytes: &[u8]) -> usize {
        let input = &mut self.lock().input;
        let room = KEEP_INPUT_BYTES
            .saturating_sub(input.len())
            .min(bytes.len());
        input.extend(&bytes[..room]);
        room
    }

    /// Offers the queued input, and forgets as many bytes as were taken.
    pub(crate) fn offer_input(&self, take: impl FnOnce(&[u8]) -> usize) {
        let input = &mut self.lock().input;
        if !input.is_empty() {
            let taken = take(input.make_contiguous());
            input.drain(..taken.min(input.len()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Buffers> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the first `count` bytes of `output` to standard output.
fn to_stdout(output: &mut VecDeque<u8>, count: usize) {
    let bytes: Vec<u8> = output.drain(..count).collect();
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(&bytes).and_then(|()| stdout.flush());
    // The guest goes on either way. A reader that has gone away wants no more;
    // anything else is said once.
    static SAID: Once = Once::new();
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        Err(error) => SAID.call_once(|| {
            log::warn!("the guest's output is lost: cannot write to standard output: {error}");
        }),
    }
}
