//! What can go wrong with a machine, apart from its guest.

use std::io;

use guestmem::MemoryError;

use crate::event::Event;
pub use crate::kvm::shell::ShellError;
pub use crate::kvm::state::StateError;
use crate::limits::MemoryLimit;

/// Why an operation on a VM failed. The VM is as it was before the call,
/// unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// KVM would not make a VM.
    #[error(transparent)]
    Shell(#[from] ShellError),
    /// A vCPU's state could not be read or set.
    #[error(transparent)]
    State(#[from] StateError),
    /// The guest has ended; only a reset brings it back.
    #[error("the guest has ended ({0:?}): reset the VM to a snapshot first")]
    Ended(Event),
    /// The VM has committed more than a hard limit allows, its own or, if that
    /// has stopped it, its family's.
    #[error("{0}")]
    OverLimit(MemoryLimit),
    /// What was asked for commits memory, and the family's hard limit has no
    /// room for it.
    #[error("{wanted_bytes} bytes more are wanted, and the hard memory limit of the family is {} with {} committed: raise the limit, or reset or drop VMs of the family", limit.limit_bytes, limit.committed_bytes)]
    WouldExceed {
        /// The limit and what is committed.
        limit: MemoryLimit,
        /// What it would have committed, at most.
        wanted_bytes: u64,
    },
    /// The VM is not running, so there is nothing to wait for.
    #[error("the VM is not running: resume it first")]
    NotRunning,
    /// The snapshot is of another family of VMs.
    #[error("the snapshot was taken of another VM, not of this one or an ancestor")]
    ForeignSnapshot,
    /// A vCPU would not leave the guest.
    #[error("a vCPU does not stop although it was told to for seconds: the host hangs")]
    Stuck,
    /// No thread for a vCPU.
    #[error("cannot start a vCPU thread: {0}")]
    Thread(#[source] io::Error),
}
