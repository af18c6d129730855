//! A vCPU's first entry, made ahead: a pending signal that only KVM_RUN lets
//! through sends it back from the guest's door.

// UNSAFETY: an ioctl that kvm-ioctls lacks, and a signal to the own thread.
#![expect(unsafe_code)]

use std::io;

use kvm_bindings::{KVMIO, kvm_signal_mask};
use vmm_sys_util::ioctl::ioctl_with_ptr;
use vmm_sys_util::ioctl_iow_nr;
use vmm_sys_util::signal::{
    Error as SignalError, SIGRTMIN, block_signal, clear_signal, unblock_signal,
};

use super::machine::{Exit, Machine};

ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, kvm_signal_mask);

/// `kvm_signal_mask` with its set: nothing is blocked.
const NOTHING_BLOCKED: [u32; 3] = [8, 0, 0];

impl Machine {
    /// Enters the vCPU as far as the guest's first instruction.
    pub(in super::super) fn enter_ahead(&mut self) -> io::Result<()> {
        let refused = |error: SignalError| io::Error::other(error.to_string());
        let signal = SIGRTMIN() + 12;
        block_signal(signal).map_err(refused)?;
        // SAFETY: to this thread, where it is blocked.
        unsafe { libc::raise(signal) };
        self.set_signal_mask(NOTHING_BLOCKED.as_ptr())?;
        let exit = self.run()?;
        self.set_signal_mask(std::ptr::null())?;
        clear_signal(signal).map_err(refused)?;
        unblock_signal(signal).map_err(refused)?;
        match exit {
            Exit::Interrupted => Ok(()),
            other => Err(io::Error::other(format!("{other:?} in spite of a signal"))),
        }
    }

    fn set_signal_mask(&self, mask: *const u32) -> io::Result<()> {
        // SAFETY: null, or a length and as many bytes.
        match unsafe { ioctl_with_ptr(&self.vcpu, KVM_SET_SIGNAL_MASK(), mask) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
