//! Exit codes of the VMM's own failures.

use vmm::{BuildError, Event, HostError, KernelError, MemoryError, VmError};

/// Wrong arguments.
pub(crate) const USAGE: u8 = 64;
/// The kernel or initrd is not what it should be.
const BAD_IMAGE: u8 = 65;
/// The kernel or initrd cannot be read.
const NO_IMAGE: u8 = 66;
/// No usable KVM.
const NO_KVM: u8 = 69;
/// The guest stopped without ending by itself.
pub(crate) const GUEST_FAILED: u8 = 70;
/// The host lacks something: memory, threads, addresses.
pub(crate) const HOST: u8 = 71;
/// A hard memory limit was passed; with a higher one it might go on.
pub(crate) const OVER_LIMIT: u8 = 75;
/// `/dev/kvm` may not be opened.
const NO_PERMISSION: u8 = 77;
/// The VM asked for cannot be: its memory or number of vCPUs.
const BAD_CONFIG: u8 = 78;

/// For `--help`.
pub(crate) const CODES_HELP: &str = "\
Exit codes: the guest's own, or
  64  wrong arguments
  65  the kernel or initrd is not valid, or does not fit
  66  the kernel or initrd cannot be read
  69  no usable KVM on this host
  70  the guest failed (triple fault, no device at an address, …)
  71  the host refused something: memory, threads, …
  75  a hard memory limit was passed
  77  no permission to use /dev/kvm
  78  a VM with this memory or number of vCPUs cannot be";

/// Why the command failed: one line, and a code.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    fn new(error: &impl std::error::Error, code: u8) -> Self {
        Self {
            message: error.to_string(),
            code,
        }
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn code(&self) -> u8 {
        self.code
    }
}

impl From<std::io::Error> for Failure {
    /// Standard output could not be written to.
    fn from(error: std::io::Error) -> Self {
        Self::new(&error, HOST)
    }
}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Self {
        let code = if error.is_unreadable() {
            NO_IMAGE
        } else {
            BAD_IMAGE
        };
        Self::new(&error, code)
    }
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Self {
        let code = match error {
            HostError::Permission { .. } => NO_PERMISSION,
            HostError::Ask { .. } => HOST,
            _ => NO_KVM,
        };
        Self::new(&error, code)
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        let code = match error {
            BuildError::OverLimit(_) => OVER_LIMIT,
            BuildError::Boot(_) => BAD_IMAGE,
            BuildError::Layout(_)
            | BuildError::BeyondAddressSpace { .. }
            | BuildError::Cpus { .. }
            | BuildError::Memory(MemoryError::TooMuchRam { .. }) => BAD_CONFIG,
            _ => HOST,
        };
        Self::new(&error, code)
    }
}

impl From<VmError> for Failure {
    fn from(error: VmError) -> Self {
        let code = match error {
            VmError::Ended(Event::Failed(_)) => GUEST_FAILED,
            VmError::OverLimit(_) | VmError::WouldExceed { .. } => OVER_LIMIT,
            _ => HOST,
        };
        Self::new(&error, code)
    }
}
