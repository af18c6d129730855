//! What the owner of a VM says and asks about limits.

use std::sync::mpsc::Receiver;

use super::{Limits, Notice};
use crate::error::VmError;
use crate::vm::Vm;

impl Vm {
    /// Limits what this VM may commit, from now on. A VM that has more already
    /// is stopped if it runs. Forks made later inherit it; those that exist
    /// keep theirs.
    ///
    /// # Errors
    /// If the host has no thread to watch it with.
    pub fn set_limits(&self, limits: Limits) -> Result<(), VmError> {
        self.machine.seat.set_limits(limits);
        self.machine.family.ledger.watch().map_err(VmError::Thread)
    }

    /// Limits what this VM and everything it shares pages with may commit
    /// together: the VM that was built and all its descendants.
    ///
    /// # Errors
    /// As [`set_limits`](Self::set_limits).
    pub fn set_family_limits(&self, limits: Limits) -> Result<(), VmError> {
        self.machine.family.ledger.set_limits(limits);
        self.machine.family.ledger.watch().map_err(VmError::Thread)
    }

    /// This VM's limits.
    pub fn limits(&self) -> Limits {
        self.machine.seat.limits()
    }

    /// Its family's limits.
    pub fn family_limits(&self) -> Limits {
        self.machine.family.ledger.limits()
    }

    /// Bytes that this VM has committed itself, and its limits are on. It may
    /// run; nothing is settled. What all of its family have is
    /// [`CloneTree::committed_bytes`](guestmem::CloneTree::committed_bytes).
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub fn committed_bytes(&self) -> Result<u64, VmError> {
        let window = self.machine.ram().window();
        Ok(window.committed_bytes()?)
    }

    /// Notices of soft limits that this VM or others of its family pass, from
    /// now on.
    pub fn notices(&self) -> Receiver<Notice> {
        self.machine.family.ledger.listen()
    }
}
