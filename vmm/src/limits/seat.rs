//! One VM as the watcher has it.
//!
//! A seat outlives neither locks nor VMs: the watcher reaches the machine only
//! while it holds the seat's lock, and a VM that is dropped takes that lock to
//! leave. So nothing of a VM is kept by whoever looks at it, and the owner of
//! another VM never waits for a look.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::policy::{Edge, Runner, Verdict, headroom, judge};
use super::{Limits, MemoryLimit, Notice, Whose};
use crate::event::Event;
use crate::machine::Machine;
use crate::vcpu::gate::Glance;

/// Rest between two steps of counting: long enough that the scheduler does not
/// take the core away in a step, where it would keep forks waiting.
const BREATH: Duration = Duration::from_micros(10);

/// A VM's place in its family's ledger.
#[derive(Debug)]
pub(crate) struct Seat {
    number: u64,
    machine: Mutex<Weak<Machine>>,
    account: Mutex<Account>,
}

/// What is known of a VM's memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Account {
    pub(super) limits: Limits,
    edge: Edge,
    /// As last measured.
    pub(super) committed_bytes: u64,
    /// As the watcher knew it at its last look.
    looked_bytes: u64,
    /// These bytes are the file's, which the family counts anyway.
    in_file: bool,
    /// How often it was let run, or may otherwise have changed.
    runs: u64,
    /// `runs` when it was last found at rest, and measured after that.
    settled_runs: u64,
}

/// What a look has found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) runner: Runner,
    pub(super) headroom: Option<u64>,
    pub(super) notice: Option<Notice>,
    pub(super) over: Option<MemoryLimit>,
}

impl Seat {
    pub(super) fn new(number: u64) -> Arc<Self> {
        Arc::new(Self {
            number,
            machine: Mutex::default(),
            account: Mutex::default(),
        })
    }

    /// `machine` is whose seat this is.
    pub(crate) fn occupy(&self, machine: &Arc<Machine>) {
        *self.machine() = Arc::downgrade(machine);
    }

    /// The machine goes; when this returns nobody here holds it.
    pub(super) fn vacate(&self) {
        *self.machine() = Weak::new();
    }

    pub(crate) fn set_limits(&self, limits: Limits) {
        self.account().limits = limits;
    }

    pub(crate) fn limits(&self) -> Limits {
        self.account().limits
    }

    /// It runs, or may have. To be said after it was let run: a look that found
    /// it at rest before is not the last word then.
    pub(super) fn runs(&self) {
        let mut account = self.account();
        account.runs += 1;
        // What it was given while it stood still is no growth of its own.
        account.looked_bytes = account.committed_bytes;
    }

    /// What it had when it was last measured.
    pub(super) fn known_bytes(&self) -> u64 {
        self.account().committed_bytes
    }

    /// Whether there may be news of it.
    pub(super) fn may_have_changed(&self) -> bool {
        let account = self.account();
        account.runs != account.settled_runs
    }

    /// What of it the file does not hold.
    pub(super) fn private_bytes(&self) -> u64 {
        let account = self.account();
        match account.in_file {
            true => 0,
            false => account.committed_bytes,
        }
    }

    /// Looks at the VM. `None` if it has gone, or cannot be looked at now.
    pub(super) fn look(&self) -> Option<Found> {
        let machine = self.machine();
        let machine = machine.upgrade()?;
        // In this order: if it is let run after any of these, there is another look.
        let runs = self.account().runs;
        let at_rest = machine.gate.glance() == Glance::AtRest;
        let measured = self.measure(&machine)?;
        let mut account = self.account();
        if at_rest {
            account.settled_runs = runs;
        }
        let before_bytes = std::mem::replace(&mut account.looked_bytes, measured);
        let notice = account.notice(self.number);
        Some(Found {
            runner: Runner {
                before_bytes,
                now_bytes: measured,
            },
            headroom: headroom(measured, &account.limits),
            notice,
            over: over(Whose::Vm(self.number), measured, &account.limits),
        })
    }

    /// Measures it again, for the sum of its family.
    pub(super) fn refresh(&self) {
        if let Some(machine) = self.machine().upgrade() {
            self.measure(&machine);
        }
    }

    /// Notes that the owner has measured `bytes`.
    pub(super) fn note(&self, bytes: u64, in_file: bool) -> Option<Notice> {
        let mut account = self.account();
        (account.committed_bytes, account.in_file) = (bytes, in_file);
        account.notice(self.number)
    }

    /// Stops the VM if it runs. False if that has to be tried again.
    pub(super) fn stop(&self, why: MemoryLimit) -> bool {
        let machine = self.machine();
        let stopped = |machine: Arc<Machine>| machine.gate.try_stop(Event::MemoryLimit(why));
        machine.upgrade().is_none_or(stopped)
    }

    fn measure(&self, machine: &Machine) -> Option<u64> {
        // The window and not the RAM is held while the kernel counts, so that
        // no fork waits for it.
        let window = machine.try_ram()?.window();
        let in_file = window.is_in_file();
        match window.count_committed(|| std::thread::sleep(BREATH)) {
            Ok(bytes) => {
                let mut account = self.account();
                (account.committed_bytes, account.in_file) = (bytes, in_file);
                Some(bytes)
            }
            Err(error) => {
                log::warn!("VM {}: {error}", self.number);
                None
            }
        }
    }

    fn machine(&self) -> MutexGuard<'_, Weak<Machine>> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Account {
    /// The notice to give of what was just measured, if any.
    fn notice(&mut self, number: u64) -> Option<Notice> {
        let passed = self.edge.passes(self.committed_bytes, &self.limits);
        let limit_bytes = self.limits.soft_bytes()?;
        passed.then_some(Notice(MemoryLimit {
            whose: Whose::Vm(number),
            limit_bytes,
            committed_bytes: self.committed_bytes,
        }))
    }
}

/// The hard limit that `bytes` is over, if it is.
pub(super) fn over(whose: Whose, bytes: u64, limits: &Limits) -> Option<MemoryLimit> {
    let limit_bytes = limits.hard_bytes()?;
    (judge(bytes, limits) == Verdict::AboveHard).then_some(MemoryLimit {
        whose,
        limit_bytes,
        committed_bytes: bytes,
    })
}
