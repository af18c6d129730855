//! Where a machine lives: its shell and threads, and how it moves.
//!
//! ```text
//!   root RAM    pause ─ save ─ restore into the shell made ahead ─ go on there
//!   the rest    pause ─ save ─ copy what is private ─ go on here, or there
//! ```

use std::sync::Arc;
use std::thread::JoinHandle;

use guestmem::{PreparedFreeze, Ram, RetiredWindow};

use crate::background::{self, Retired};
use crate::error::VmError;
use crate::kvm::shell::{Shell, Vcpu};
use crate::kvm::translations::{TablesWere, Walker};
use crate::machine::{Machine, MachineState};
use crate::snapshot::{Point, Snapshot};
use crate::vcpu::gate::GateState;

/// What only the owner's calls use, one at a time.
#[derive(Debug)]
pub(crate) struct Control {
    shell: Shell,
    /// One a vCPU, started when first needed.
    pub(crate) threads: Vec<Option<JoinHandle<()>>>,
    retired: Vec<Retired>,
}

/// What a freeze needs, made while the machine still runs.
#[derive(Debug)]
pub(crate) struct Ahead {
    prepared: PreparedFreeze,
    /// Where the machine goes on, if it is to move.
    next: Option<(Shell, Vec<Vcpu>)>,
}

/// What a machine leaves behind when it moves.
#[derive(Debug)]
pub(crate) struct Remains {
    vcpus: Vec<Vcpu>,
    /// Holds the window, as each vCPU does.
    _shell: Shell,
    window: RetiredWindow,
}

impl Remains {
    fn lessen(&mut self) -> bool {
        self.window.let_go(self.vcpus.len() + 1)
    }
}

impl Ahead {
    /// Makes what freezing `machine` needs. If it runs, as much as can be is done
    /// while it does.
    pub(crate) fn prepare(machine: &Machine) -> Result<Self, VmError> {
        let mut prepared = machine.ram().prepare_freeze()?;
        let runs = machine.gate.is_running();
        if runs {
            prepared.copy_ahead();
        }
        let mut next = None;
        if prepared.wants_window() {
            let bound = machine.family.shell()?;
            let window = machine.ram().stage(&mut prepared, bound.window())?;
            next = window.map(|window| bound.with(window));
        }
        if runs {
            prepared.copy_ahead();
        }
        Ok(Self { prepared, next })
    }
}

impl Control {
    /// Of a machine that lives in `shell`.
    pub(crate) fn new(shell: Shell) -> Self {
        Self {
            shell,
            threads: Vec::new(),
            retired: Vec::new(),
        }
    }

    /// The part of a freeze that happens under the pause. What the machine has
    /// left is to be [retired](Self::retire) when nobody is in a hurry.
    pub(crate) fn freeze(
        &mut self,
        machine: &Machine,
        gate: &mut GateState,
        ahead: &mut Ahead,
    ) -> Result<(Snapshot, Option<Remains>), VmError> {
        if let Some(event) = gate.final_event() {
            return Err(VmError::Ended(event.clone()));
        }
        let state = MachineState::save(machine, &self.shell, gate.vcpus())?;
        if let Some((shell, vcpus)) = &ahead.next {
            state.restore(shell, vcpus.iter())?;
        }
        // Fails here or not at all.
        let (layer, left) = machine.ram().freeze(&mut ahead.prepared)?;
        let remains = left
            .zip(ahead.next.take())
            .map(|(window, (shell, vcpus))| Remains {
                vcpus: gate.replace(vcpus),
                _shell: std::mem::replace(&mut self.shell, shell),
                window,
            });
        let snapshot = Snapshot::new(
            Arc::clone(&machine.family),
            layer,
            state,
            machine.console.mode(),
            machine.seat.limits(),
        );
        Ok((snapshot, remains))
    }

    /// Makes the machine, whose RAM this is, what it was at `point`, where it is:
    /// what differs is copied back.
    pub(crate) fn copy_back(
        &mut self,
        gate: &GateState,
        ram: &mut Ram,
        point: &Point,
    ) -> Result<(), VmError> {
        let Point { family, state, .. } = point;
        let host = &family.host;
        let tables = match host.walker {
            Walker::Kvm => point.tables_were(&ram.guest_ram()),
            Walker::Processor => TablesWere::Unknown,
        };
        ram.reset(&point.layer)?;
        if host.walker == Walker::Kvm {
            point.note_tables(&ram.guest_ram());
        }
        self.shell.forget_translations(host, gate.vcpus(), tables)?;
        if host.walker == Walker::Processor {
            state.page_otherwise(gate.vcpus())?;
        }
        state.restore(&self.shell, gate.vcpus())
    }

    /// Moves the machine to fresh memory and a fresh shell, made of `snapshot`.
    pub(crate) fn move_to(
        &mut self,
        gate: &mut GateState,
        ram: &mut Ram,
        snapshot: &Snapshot,
    ) -> Result<(), VmError> {
        let (new_ram, shell, vcpus) = snapshot.embody()?;
        let old_vcpus = gate.replace(vcpus);
        let old_shell = std::mem::replace(&mut self.shell, shell);
        let old_ram = std::mem::replace(ram, new_ram);
        let remains = (old_vcpus, old_shell, old_ram);
        self.note_retired(background::retire(remains, |_| false));
        Ok(())
    }

    /// Waits until what the machine had before is gone: it counts as its own
    /// until then.
    pub(crate) fn wait_retired(&mut self) {
        self.retired.drain(..).for_each(Retired::wait);
    }

    /// Takes down what the machine has left, in the background.
    pub(crate) fn retire(&mut self, remains: Remains) {
        self.note_retired(background::retire(remains, Remains::lessen));
    }

    fn note_retired(&mut self, retired: Retired) {
        self.retired.retain(|retired| !retired.is_done());
        self.retired.push(retired);
    }
}
