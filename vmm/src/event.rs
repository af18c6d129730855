//! Why a machine stopped.

use std::fmt;

use crate::limits::MemoryLimit;

/// Why a machine is stopped. Every event stops all of its vCPUs at once, so
/// that what is forked, reset or measured next is exactly what the guest left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody called [`pause`](crate::Vm::pause), or it has not run yet.
    Paused,
    /// The guest says that it is ready. Resume it, fork it, remember it.
    Ready,
    /// The guest asks to be forked. [`fork`](crate::Vm::fork) answers;
    /// resuming without it refuses.
    ForkRequest,
    /// It has committed more than a hard limit allows, or its family has while
    /// it was growing. Nothing is lost: raise the limit or give memory back,
    /// then resume it.
    MemoryLimit(MemoryLimit),
    /// The host could not give memory for a guest page, of which the fault
    /// tells. Nothing is lost: resume it when the host has memory again, and it
    /// tries once more.
    OutOfMemory(Fault),
    /// The guest has ended with this code. Only a reset brings it back.
    Exited(u8),
    /// The guest cannot go on. Only a reset brings it back.
    Failed(Fault),
}

impl Event {
    /// Whether the machine can go on from here.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Exited(_) | Self::Failed(_))
    }
}

/// What stopped a guest against its will, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The vCPU.
    pub vcpu: usize,
    /// Its instruction pointer, if KVM could still tell.
    pub rip: Option<u64>,
    /// What happened.
    pub kind: FaultKind,
}

/// What stopped a guest against its will.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// An exception that the guest did not handle itself.
    Exception {
        /// Vector, 0 to 31.
        vector: u8,
        /// The CPU's error code; 0 where it pushes none.
        error_code: u64,
        /// Where it happened.
        rip: u64,
        /// The address of the last page fault.
        cr2: u64,
    },
    /// An exception while delivering an exception while delivering one.
    TripleFault,
    /// An access to an address with neither RAM nor a device.
    NoDevice {
        /// Read or write.
        access: Access,
        /// Guest-physical address.
        gpa: u64,
        /// Bytes.
        len: usize,
    },
    /// An instruction that KVM had to emulate and could not.
    Emulation {
        /// Its bytes, as far as KVM says.
        bytes: Vec<u8>,
    },
    /// A guest page whose host memory cannot be had (out of memory, or the
    /// file behind it has failed). Mostly an [`Event::OutOfMemory`]; the guest
    /// has [failed](Event::Failed) where KVM was emulating the instruction, as
    /// it has forgotten then how far it was.
    Backing {
        /// Guest-physical address, if KVM says.
        gpa: Option<u64>,
    },
    /// KVM could not enter the guest.
    Entry {
        /// The hardware's reason.
        reason: u64,
    },
    /// KVM gave up for another reason.
    Kvm {
        /// The exit or error, in KVM's terms.
        what: String,
    },
}

/// The direction of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// From guest-physical memory.
    Read,
    /// To guest-physical memory.
    Write,
}

/// Mnemonics of exception vectors, by Intel's manual (volume 3, table 6-1).
const MNEMONICS: [&str; 22] = [
    "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "#9", "#TS", "#NP", "#SS",
    "#GP", "#PF", "#15", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
];

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}: {}", self.vcpu, self.kind)?;
        match (&self.kind, self.rip) {
            // An exception says where itself; rip is in the stub by now.
            (FaultKind::Exception { .. }, _) | (_, None) => Ok(()),
            (_, Some(rip)) => write!(f, ", at rip {rip:#x}"),
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exception {
                vector,
                error_code,
                rip,
                cr2,
            } => {
                let name = MNEMONICS
                    .get(usize::from(*vector))
                    .copied()
                    .unwrap_or("reserved");
                write!(
                    f,
                    "guest exception {name} (vector {vector}, error code {error_code:#x}) at rip {rip:#x}"
                )?;
                match vector {
                    14 => write!(f, ", address {cr2:#x}"),
                    _ => Ok(()),
                }
            }
            Self::TripleFault => f.write_str("triple fault"),
            Self::NoDevice { access, gpa, len } => {
                let access = match access {
                    Access::Read => "read",
                    Access::Write => "write",
                };
                write!(
                    f,
                    "{access} of {len} bytes at gpa {gpa:#x}, where there is neither RAM nor a device"
                )
            }
            Self::Emulation { bytes } if bytes.is_empty() => {
                f.write_str("an instruction that KVM cannot emulate")
            }
            Self::Emulation { bytes } => {
                write!(f, "an instruction that KVM cannot emulate ({bytes:02x?})")
            }
            Self::Backing { gpa: Some(gpa) } => {
                write!(f, "the host memory behind gpa {gpa:#x} cannot be had")
            }
            Self::Backing { gpa: None } => {
                f.write_str("host memory behind guest RAM cannot be had")
            }
            Self::Entry { reason } => write!(
                f,
                "KVM cannot enter the guest (hardware reason {reason:#x})"
            ),
            Self::Kvm { what } => write!(f, "KVM gave up: {what}"),
        }
    }
}
