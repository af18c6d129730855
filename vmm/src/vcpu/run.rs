//! Running a vCPU, from one stop to the next: on a thread of its own, or on
//! the thread of whoever waits for the machine anyway.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::exit::{Outcome, enter, fault, follow_up};
use crate::devices::Asked;
use crate::event::Event;
use crate::kvm::shell::Vcpu;
use crate::machine::Machine;

/// Starts the thread of vCPU `index`.
pub(crate) fn spawn(machine: &Arc<Machine>, index: usize) -> io::Result<JoinHandle<()>> {
    let machine = Arc::clone(machine);
    let name = format!("vm{}-vcpu{index}", machine.number());
    std::thread::Builder::new().name(name).spawn(move || {
        while let Some(vcpu) = machine.gate.take(index) {
            out_and_back(vcpu, index, &machine);
        }
    })
}

/// Runs vCPU `index` on the calling thread until the machine is stopped. Two
/// threads need not be woken for that, which takes longer than many a guest.
pub(crate) fn until_stopped(machine: &Machine, index: usize) {
    while let Some(vcpu) = machine.gate.take_unless_stopped(index) {
        out_and_back(vcpu, index, machine);
    }
}

fn out_and_back(mut vcpu: Vcpu, index: usize, machine: &Machine) {
    vcpu.kick.adopt();
    let event = run(&mut vcpu, index, machine);
    vcpu.kick.disown();
    machine.gate.park(index, vcpu, event);
}

/// Runs `vcpu` until it is wanted out, or something stops the machine.
fn run(vcpu: &mut Vcpu, index: usize, machine: &Machine) -> Option<Event> {
    loop {
        // In this order: see `kvm::kick`.
        vcpu.kick.clear();
        if machine.gate.wants_out() {
            return None;
        }
        match enter(vcpu, index, machine) {
            Outcome::Interrupted => {}
            Outcome::NoMemory(kind) => {
                return Some(Event::OutOfMemory(fault(vcpu, index, kind)));
            }
            Outcome::Fault(kind) => {
                // A read that nobody answered is pending in KVM as well: left
                // there, it would be finished over the registers of a reset.
                let event = Event::Failed(fault(vcpu, index, kind));
                return finish(vcpu, index, machine, Some(event));
            }
            Outcome::Served(asked) => {
                let event = follow_up(asked, vcpu, index, machine);
                if event.is_some() || machine.gate.wants_out() {
                    return finish(vcpu, index, machine, event);
                }
            }
        }
    }
}

/// More accesses than any instruction has left when it is stopped in the middle.
const MOST_ACCESSES: usize = 64;

/// Lets KVM finish the instruction whose access was served, without entering
/// the guest. Until then its registers are from before it: a fork would do it
/// twice, or never.
fn finish(vcpu: &mut Vcpu, index: usize, machine: &Machine, event: Option<Event>) -> Option<Event> {
    let mut event = event;
    for _ in 0..MOST_ACCESSES {
        vcpu.kick.only_finish();
        let next = match enter(vcpu, index, machine) {
            Outcome::Interrupted => return event,
            // Tried again when the machine goes on, and told then.
            Outcome::NoMemory(_) if event.is_some() => return event,
            Outcome::NoMemory(kind) => {
                return Some(Event::OutOfMemory(fault(vcpu, index, kind)));
            }
            // What comes of the rest of an instruction does not matter once it
            // has ended the guest.
            _ if event.as_ref().is_some_and(Event::is_final) => None,
            Outcome::Fault(kind) => Some(Event::Failed(fault(vcpu, index, kind))),
            // One instruction may take several accesses.
            Outcome::Served(Asked::Nothing) => None,
            Outcome::Served(asked) => follow_up(asked, vcpu, index, machine),
        };
        event = match next {
            Some(Event::Failed(_)) => next,
            _ => event.or(next),
        };
    }
    event
}
