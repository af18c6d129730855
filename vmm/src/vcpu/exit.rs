//! What to do about one exit from the guest.

use guestmem::{Gpa, RamLayout};
use kvm_ioctls::VcpuExit;
use vm_memory::{Bytes, GuestAddress};

use crate::devices::{Asked, Unclaimed};
use crate::event::{Access, Event, Fault, FaultKind};
use crate::kvm::detail::{InternalError, internal_error};
use crate::kvm::shell::Vcpu;
use crate::machine::Machine;

/// What came of one entry into the guest.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// A device access was served; KVM finishes the instruction at the next
    /// entry. What it asked for beyond the device is left to do.
    Served(Asked),
    /// Nothing to do: a signal, or something KVM only wanted to tell.
    Interrupted,
    /// The host has no memory for a guest page. The instruction has not
    /// happened; the next entry tries it again.
    NoMemory(FaultKind),
    /// The guest cannot go on.
    Fault(FaultKind),
}

/// Enters the guest once and serves the exit.
pub(crate) fn enter(vcpu: &mut Vcpu, index: usize, machine: &Machine) -> Outcome {
    let exit = match vcpu.fd.run() {
        Ok(exit) => exit,
        Err(error) => {
            return match error.errno() {
                libc::EINTR | libc::EAGAIN => Outcome::Interrupted,
                libc::EFAULT | libc::ENOMEM => Outcome::NoMemory(FaultKind::Backing { gpa: None }),
                _ => Outcome::Fault(FaultKind::Kvm {
                    what: format!("KVM_RUN: {error}"),
                }),
            };
        }
    };
    let layout = machine.layout();
    match exit {
        VcpuExit::MmioRead(gpa, data) => {
            let len = data.len();
            match machine.devices().mmio_read(index, gpa, data) {
                Ok(()) => Outcome::Served(Asked::Nothing),
                Err(Unclaimed) => Outcome::Fault(unclaimed(layout, Access::Read, gpa, len)),
            }
        }
        VcpuExit::MmioWrite(gpa, data) => match machine.devices().mmio_write(index, gpa, data) {
            Ok(asked) => Outcome::Served(asked),
            Err(Unclaimed) => Outcome::Fault(unclaimed(layout, Access::Write, gpa, data.len())),
        },
        VcpuExit::IoIn(port, data) => {
            machine.devices().port_read(port, data);
            Outcome::Served(Asked::Nothing)
        }
        VcpuExit::IoOut(port, data) => {
            machine.devices().port_write(port, data);
            Outcome::Served(Asked::Nothing)
        }
        VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::IoapicEoi(_) => Outcome::Interrupted,
        VcpuExit::Shutdown => Outcome::Fault(FaultKind::TripleFault),
        VcpuExit::FailEntry(reason, _) => Outcome::Fault(FaultKind::Entry { reason }),
        VcpuExit::MemoryFault { gpa, .. } => {
            Outcome::NoMemory(FaultKind::Backing { gpa: Some(gpa) })
        }
        VcpuExit::InternalError => Outcome::Fault(match internal_error(&mut vcpu.fd) {
            InternalError::Emulation(bytes) => FaultKind::Emulation { bytes },
            InternalError::Other(suberror) => FaultKind::Kvm {
                what: format!("internal error {suberror}"),
            },
        }),
        other => Outcome::Fault(FaultKind::Kvm {
            what: format!("exit {other:?}"),
        }),
    }
}

/// An access that KVM gave us and no device claims: beside RAM, or in RAM
/// whose host page cannot be had.
fn unclaimed(layout: RamLayout, access: Access, gpa: u64, len: usize) -> FaultKind {
    let in_ram = layout
        .regions()
        .any(|region| region.gpa_range().contains(&Gpa(gpa)));
    if in_ram {
        FaultKind::Backing { gpa: Some(gpa) }
    } else {
        FaultKind::NoDevice { access, gpa, len }
    }
}

/// Does what a served access asked for; an event stops the machine.
pub(crate) fn follow_up(
    asked: Asked,
    vcpu: &Vcpu,
    index: usize,
    machine: &Machine,
) -> Option<Event> {
    match asked {
        Asked::Nothing => None,
        Asked::Ready => Some(Event::Ready),
        Asked::Exit(code) => Some(Event::Exited(code)),
        Asked::Fork => Some(Event::ForkRequest),
        Asked::Free { start, len_bytes } => {
            let dropped = machine.ram().discard(Gpa(start), len_bytes);
            if let Err(error) = &dropped {
                log::info!("machine {}: free report refused: {error}", machine.number());
            }
            machine.devices().control.answer_free(index, dropped.ok());
            None
        }
        Asked::Trap { frame } => Some(Event::Failed(fault(
            vcpu,
            index,
            trap(vcpu, frame, machine),
        ))),
    }
}

/// The exception that the guest's ring 0 reports.
fn trap(vcpu: &Vcpu, frame: u32, machine: &Machine) -> FaultKind {
    let ram = machine.ram().guest_ram();
    // What the stub and the CPU have pushed, lowest address first.
    match ram.read_obj::<[u64; 3]>(GuestAddress(frame.into())) {
        Ok([vector, error_code, rip]) => FaultKind::Exception {
            vector: u8::try_from(vector).unwrap_or(u8::MAX),
            error_code,
            rip,
            cr2: vcpu.fd.get_sregs().map_or(0, |sregs| sregs.cr2),
        },
        Err(_) => FaultKind::Kvm {
            what: format!("a trap report with a frame at {frame:#x}, which is not RAM"),
        },
    }
}

/// `kind`, and where.
pub(crate) fn fault(vcpu: &Vcpu, index: usize, kind: FaultKind) -> Fault {
    Fault {
        vcpu: index,
        rip: vcpu.fd.get_regs().ok().map(|regs| regs.rip),
        kind,
    }
}
