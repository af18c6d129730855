//! What `kvm_run` says about exits that kvm-ioctls leaves opaque.

// UNSAFETY: reads of the union in `kvm_run`, by the exit reason.
#![expect(unsafe_code)]

use kvm_bindings::{KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_EMULATION};
use kvm_ioctls::VcpuFd;

/// KVM_EXIT_INTERNAL_ERROR, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum InternalError {
    /// KVM's emulator does not know the instruction; its bytes, if KVM says.
    Emulation(Vec<u8>),
    /// Another sub-error.
    Other(u32),
}

/// Most bytes an x86 instruction has.
const LONGEST_INSTRUCTION: usize = 15;

/// What the internal error that `vcpu` just left the guest with was.
pub(crate) fn internal_error(vcpu: &mut VcpuFd) -> InternalError {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return InternalError::Other(0);
    }
    // SAFETY: the exit reason says that this is the union's member in use, and
    // all of its bit patterns are valid.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    if internal.suberror != KVM_INTERNAL_ERROR_EMULATION {
        return InternalError::Other(internal.suberror);
    }
    // Documented layout: data[0] flags (bit 0: bytes follow), then the length
    // in one byte and up to fifteen bytes of the instruction.
    let bytes: Vec<u8> = internal.data[1..]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    let given = internal.ndata >= 4 && internal.data[0] & 1 != 0;
    let len = usize::from(bytes[0]).min(LONGEST_INSTRUCTION);
    InternalError::Emulation(if given {
        bytes[1..=len].to_vec()
    } else {
        Vec::new()
    })
}
