//! A guest that is ready, by plain syscalls: a file with its memory, and the
//! registers that go with it. It is the same guest, in the same state and with
//! the same content, as [`subject`](super::super::subject) makes.

use std::io;
use std::os::fd::OwnedFd;

use guest_images::abi::{self, control, selector};
use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_RUNNABLE, kvm_dtable, kvm_mp_state, kvm_segment,
};
use kvm_ioctls::Kvm;
use vm_memory::{Bytes, GuestAddress};
use vmm::Vm;

use super::machine::{Exit, Irqchip, Machine, Shell};
use super::memory::{Mapping, Writes, new_file};
use super::state::State;
use crate::cli::bench::subject::{NOTHING, Work, mailbox};

/// Where a loader has put everything that a guest finds at its entry.
const LOADED_BYTES: usize = 2 << 20;

/// A guest that is ready, to be copied any number of times.
pub(in super::super) struct Template {
    kvm: Kvm,
    /// Its memory; nobody writes to it any more.
    pub(in super::super) file: OwnedFd,
    /// The same, to copy pages back from.
    pub(in super::super) shared: Mapping,
    pub(in super::super) state: State,
}

impl Template {
    /// Boots the guest that `loaded` has in its memory, has it do `work`, and
    /// leaves it about to be ready again.
    pub(in super::super) fn boot(loaded: &Vm, len_bytes: u64, work: &[Work]) -> io::Result<Self> {
        let mut image = vec![0; LOADED_BYTES];
        let memory = loaded.guest_ram();
        memory
            .read_slice(&mut image, GuestAddress(0))
            .map_err(io::Error::other)?;
        let file = new_file(len_bytes)?;
        let map = || Mapping::new(&file, len_bytes, Writes::ToFile);
        let mut shared = map()?;
        shared.write(0, &image);

        let kvm = Kvm::new()?;
        let mut machine = at_entry(&kvm, map()?)?;
        expect_ready(&mut machine)?;
        for work in work {
            machine.ask(work.command, work.args)?;
            expect_ready(&mut machine)?;
        }
        machine.ask(NOTHING.command, NOTHING.args)?;
        machine.finish()?;
        let state = State::save(&kvm, &machine.vm, &machine.vcpu)?;
        Ok(Self {
            kvm,
            file,
            shared,
            state,
        })
    }

    /// A private mapping of its memory.
    pub(in super::super) fn private_memory(&self) -> io::Result<Mapping> {
        Mapping::new(&self.file, self.shared.len_bytes(), Writes::Private)
    }

    /// A copy from nothing, ready to run.
    pub(in super::super) fn copy(&self, irqchip: Irqchip) -> io::Result<Machine> {
        let memory = self.private_memory()?;
        Machine::new(&self.kvm, &self.state, irqchip, memory)
    }

    /// A VM without memory and registers.
    pub(in super::super) fn shell(&self) -> io::Result<Shell> {
        Shell::new(&self.kvm, &self.state.cpuid, Irqchip::Split)
    }

    /// A copy that lacks nothing but its registers.
    pub(in super::super) fn bound(&self) -> io::Result<Machine> {
        self.shell()?.bind(self.private_memory()?)
    }

    /// The guest itself, in a new VM: what it writes changes the template.
    pub(in super::super) fn in_the_file(&self) -> io::Result<Machine> {
        let memory = Mapping::new(&self.file, self.shared.len_bytes(), Writes::ToFile)?;
        Machine::new(&self.kvm, &self.state, Irqchip::Split, memory)
    }

    /// A file with the registers, for a process that reads them.
    pub(in super::super) fn state_file(&self) -> io::Result<std::fs::File> {
        let mut file = std::fs::File::from(new_file(0)?);
        let mut bytes = Vec::new();
        self.state.write_to(&mut bytes)?;
        io::Write::write_all(&mut file, &bytes)?;
        Ok(file)
    }
}

impl Machine {
    /// Writes a command to the guest's mailbox, for its next run.
    pub(in super::super) fn ask(&mut self, command: u64, args: [u64; 3]) -> io::Result<()> {
        let words = [command, args[0], args[1], args[2], 0];
        for (word, at) in words.into_iter().zip((mailbox()..).step_by(8)) {
            self.memory.set_word(at, word);
        }
        Ok(())
    }
}

/// Runs `machine` until its guest is ready.
pub(in super::super) fn expect_ready(machine: &mut Machine) -> io::Result<()> {
    match machine.run()? {
        Exit::Control(control::READY) => Ok(()),
        other => Err(io::Error::other(format!("{other:?}, and not ready"))),
    }
}

/// A VM at the entry of the flat guest in `memory`, as docs/guest-abi.md has it.
fn at_entry(kvm: &Kvm, memory: Mapping) -> io::Result<Machine> {
    let stack_top = memory.len_bytes().min(guestmem::HOLE_START.0);
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let shell = Shell::new(kvm, &cpuid, Irqchip::Split)?;
    let machine = shell.bind(memory)?;
    let mut sregs = machine.vcpu.get_sregs()?;
    sregs.cr0 = 0x8005_0033;
    sregs.cr3 = abi::PAGE_TABLES;
    sregs.cr4 = 1 << 5 | 1 << 9 | 1 << 10;
    sregs.efer = 1 << 0 | 1 << 8 | 1 << 10 | 1 << 11;
    sregs.gdt = table(abi::GDT, abi::IDT);
    sregs.idt = table(abi::IDT, abi::STUBS);
    sregs.tr = kvm_segment {
        base: abi::vcpu_page(0),
        limit: 0x67,
        selector: selector::TSS,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        limit: u32::MAX,
        selector: selector::USER_DATA,
        type_: 3,
        present: 1,
        dpl: 3,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        selector: selector::USER_CODE,
        type_: 11,
        l: 1,
        ..data
    };
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    (sregs.fs, sregs.gs) = (data, data);
    machine.vcpu.set_sregs(&sregs)?;
    let mut regs = machine.vcpu.get_regs()?;
    regs.rip = abi::IMAGE;
    regs.rdi = abi::BOOT_INFO;
    regs.rsi = 0;
    regs.rsp = stack_top - 8;
    regs.rflags = 1 << 1 | 1 << 9;
    machine.vcpu.set_regs(&regs)?;
    machine.vcpu.set_mp_state(kvm_mp_state {
        mp_state: KVM_MP_STATE_RUNNABLE,
    })?;
    Ok(machine)
}

fn table(start: u64, end: u64) -> kvm_dtable {
    kvm_dtable {
        base: start,
        limit: (end - start - 1) as u16,
        ..Default::default()
    }
}
