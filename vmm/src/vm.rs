//! The handle on one machine.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use guestmem::{CloneTree, GuestRam, MemoryError, RamStats, TreeStats, Writers};

use crate::control::{Ahead, Control, Remains};
use crate::error::VmError;
use crate::event::{Event, Fault, FaultKind};
use crate::kvm::shell::Shell;
use crate::machine::Machine;
use crate::snapshot::Snapshot;
use crate::vcpu::gate::{GateState, Held};
use crate::vcpu::run;

/// A virtual machine: paused when it is made, and then whatever its owner
/// says. All methods may be called from any thread; dropping it stops the
/// machine and gives back all that only it had.
///
/// ```no_run
/// use vmm::{Event, Host, Kernel, VmBuilder};
///
/// let kernel = Kernel::from_file("guest.bin".as_ref())?;
/// let vm = VmBuilder::new(Host::open()?, kernel).build()?;
/// assert_eq!(vm.run()?, Event::Ready);
/// let child = vm.fork()?; // shares every page until one of them writes it
/// println!("child: {:?}, parent: {:?}", child.run()?, vm.run()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Vm {
    control: Mutex<Control>,
    pub(crate) machine: Arc<Machine>,
    /// Nanoseconds that the last snapshot kept the machine from running.
    last_pause: AtomicU64,
}

/// What came of a look for zero pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroScan {
    /// Pages looked at.
    pub looked_at: u64,
    /// Pages that were zero and have been given back.
    pub given_back: u64,
}

/// What a VM costs and shares, settled when it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmStats {
    /// Bytes that this VM has committed itself, by the kernel's count: root RAM
    /// in the file, or the private pages of its window.
    pub committed_bytes: u64,
    /// This VM's RAM.
    pub ram: RamStats,
    /// All of its clone tree.
    pub tree: TreeStats,
}

impl Vm {
    pub(crate) fn new(machine: Arc<Machine>, shell: Shell) -> Self {
        Self {
            control: Mutex::new(Control::new(shell)),
            machine,
            last_pause: AtomicU64::new(0),
        }
    }

    /// Its number in its family: 0 is the VM that was built, forks are 1, 2, …
    pub fn number(&self) -> u64 {
        self.machine.number()
    }

    /// Lets the VM run, and returns at once. A fork that the guest asked for
    /// and nobody made is refused. A running VM goes on running.
    ///
    /// # Errors
    /// If the guest has ended, if it is over a hard [limit](Self::set_limits)
    /// still, or the host has no thread for a vCPU.
    pub fn resume(&self) -> Result<(), VmError> {
        self.start(0)
    }

    /// Stops the VM, wherever it is. Its vCPUs have left the guest when this
    /// returns, and every device access they had begun is finished.
    ///
    /// # Errors
    /// If a vCPU will not stop because the host hangs.
    pub fn pause(&self) -> Result<(), VmError> {
        let _control = self.control();
        self.pause_gate().map(drop)
    }

    /// Waits until something stops the VM, and says what. A VM that is stopped
    /// already says why at once.
    pub fn wait(&self) -> Event {
        loop {
            if let Some(event) = self.machine.gate.wait(None) {
                self.machine.console.flush();
                return event;
            }
        }
    }

    /// As [`wait`](Self::wait), for at most `timeout`; `None` if the VM still
    /// runs then.
    pub fn wait_for(&self, timeout: Duration) -> Option<Event> {
        let event = self.machine.gate.wait(Some(timeout));
        if event.is_some() {
            self.machine.console.flush();
        }
        event
    }

    /// Resumes the VM and waits until something stops it. Quicker than the two
    /// calls: the first vCPU runs on the calling thread.
    ///
    /// # Errors
    /// As [`resume`](Self::resume).
    pub fn run(&self) -> Result<Event, VmError> {
        self.start(1)?;
        run::until_stopped(&self.machine, 0);
        Ok(self.wait())
    }

    /// Makes a second VM that is what this one is now: memory, vCPUs, devices.
    /// They share every page until one of them writes it. This VM is paused
    /// for a moment if it runs, and goes on; the child is paused.
    ///
    /// If the guest has asked to be forked, this is the answer: its call
    /// returns 0 here and the child's [number](Self::number) in the child.
    ///
    /// # Errors
    /// If the guest has ended, a hard [limit](Self::set_limits) leaves no room,
    /// or the host lacks memory or will not make a VM.
    pub fn fork(&self) -> Result<Vm, VmError> {
        let was_running = self.machine.gate.is_running();
        let (snapshot, remains) = self.freeze()?;
        let child = snapshot.fork();
        if let Some(remains) = remains {
            // Not before: unmapping would have been in the way of the child.
            self.control().retire(remains);
        }
        let child = child?;
        // If its guest had asked, this VM has been stopped since. It hears of
        // the child only now that there is one.
        if snapshot.point().state.devices.control.wants_fork() {
            let mut control = self.control();
            let mut gate = self.hold()?;
            self.machine.devices().control.answer_fork(Some(0));
            gate.forget(|event| *event == Event::ForkRequest);
            drop(gate);
            if was_running {
                // It asked while this fork was under way. Whoever ran it has
                // been told so, and left.
                self.start_threads(&mut control, 0)?;
                self.let_run();
            }
        }
        Ok(child)
    }

    /// Remembers what this VM is now, to [reset](Self::reset) it to and to
    /// fork others from, any number of times. It is paused for a moment if it
    /// runs, and goes on.
    ///
    /// # Errors
    /// As [`fork`](Self::fork).
    pub fn snapshot(&self) -> Result<Snapshot, VmError> {
        let (snapshot, remains) = self.freeze()?;
        if let Some(remains) = remains {
            self.control().retire(remains);
        }
        snapshot.refill();
        Ok(snapshot)
    }

    /// A snapshot, and what the machine has left to be retired.
    fn freeze(&self) -> Result<(Snapshot, Option<Remains>), VmError> {
        let mut control = self.control();
        self.machine.may_freeze()?;
        // All that takes long or may fail comes first, while the VM runs.
        let mut ahead = Ahead::prepare(&self.machine)?;
        let asked = Instant::now();
        let mut held = self.hold()?;
        let frozen = control.freeze(&self.machine, &mut held, &mut ahead);
        // It goes on before what was not needed is taken down.
        drop(held);
        let nanos = u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.last_pause.store(nanos, Ordering::Relaxed);
        frozen
    }

    /// How long the last [`snapshot`](Self::snapshot) or [`fork`](Self::fork)
    /// kept the VM from running: from asking its vCPUs to stop to letting them
    /// go on. Zero if there was none.
    pub fn last_pause(&self) -> Duration {
        Duration::from_nanos(self.last_pause.load(Ordering::Relaxed))
    }

    /// Makes this VM what it was when `snapshot` was taken of it or of one it
    /// descends from. It is paused afterwards; output that was captured stays.
    ///
    /// Quick (what the guest has dirtied is copied back) when `snapshot` is the
    /// last one taken and the VM was not forked since; otherwise the VM moves
    /// to fresh memory, as a fork does. It also moves once when the snapshot has
    /// been forked so often that its memory was rearranged. A VM that is above a memory limit, soft
    /// or hard, moves too, and so gives back all that it had.
    ///
    /// # Errors
    /// If the snapshot is of another family, or the host lacks memory. A VM that
    /// was reset half-way when something was refused has
    /// [failed](Event::Failed), and may be reset again.
    pub fn reset(&self, snapshot: &Snapshot) -> Result<(), VmError> {
        let machine = &self.machine;
        if !Arc::ptr_eq(&machine.family, &snapshot.point().family) {
            return Err(VmError::ForeignSnapshot);
        }
        let mut control = self.control();
        let mut gate = self.pause_gate()?;
        let gives_back = machine.is_above_a_limit()?;
        let mut ram = machine.ram();
        let point = snapshot.point();
        let in_place = !gives_back && ram.can_reset_to(&point.layer);
        let copied_back = match in_place.then(|| control.copy_back(&gate, &mut ram, point)) {
            // Somebody has flattened the layer this very moment.
            Some(Err(VmError::Memory(MemoryError::ForeignLayer))) => None,
            other => other,
        };
        let restored = if let Some(copied_back) = copied_back {
            copied_back
        } else {
            // Fails before anything has changed, or not at all.
            control.move_to(&mut gate, &mut ram, snapshot)?;
            snapshot.refill();
            Ok(())
        };
        drop(ram);
        gate.forget(|_| true);
        if let Err(error) = restored {
            gate.fail(Event::Failed(Fault {
                vcpu: 0,
                rip: None,
                kind: FaultKind::Kvm {
                    what: format!("a reset went wrong: {error}"),
                },
            }));
            return Err(error);
        }
        let mut devices = machine.devices();
        devices.restore(&snapshot.point().state.devices);
        devices
            .control
            .set_generation(machine.family.next_generation());
        Ok(())
    }

    /// What this VM owns, sees and is charged for, to the page. It may run
    /// meanwhile; the figures are exact if it is paused.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub fn stats(&self) -> Result<VmStats, VmError> {
        let _control = self.control();
        let ram = self.machine.ram();
        Ok(VmStats {
            committed_bytes: ram.committed_bytes()?,
            ram: ram.stats()?,
            tree: ram.tree().stats()?,
        })
    }

    /// Reads back what the kernel did, and gives back the pages that hold
    /// nothing but zeros. The VM is paused meanwhile if it runs.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub fn settle(&self) -> Result<(), VmError> {
        let _control = self.control();
        let _held = self.hold()?;
        Ok(self.machine.ram().settle(Writers::Stopped)?)
    }

    /// Looks for zero pages among up to `most` pages that this VM has of its
    /// own, going on where the last call ended, and gives back those it finds
    /// (200 at most). A running VM is paused for a moment, and only if there is
    /// something to give back; what it writes meanwhile is kept.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub fn scan_zeros(&self, most: u64) -> Result<ZeroScan, VmError> {
        let _control = self.control();
        let machine = &self.machine;
        let mut from = machine.scanned_to();
        let found = machine.ram().look_for_zeros(*from, most)?;
        *from = found.next();
        let mut scan = ZeroScan {
            looked_at: found.looked_at(),
            given_back: 0,
        };
        if !found.is_empty() {
            let _held = self.hold()?;
            scan.given_back = machine.ram().drop_zeros(&found)?;
        }
        Ok(scan)
    }

    /// The clone tree its RAM is part of.
    pub fn tree(&self) -> Arc<CloneTree> {
        Arc::clone(self.machine.ram().tree())
    }

    /// Its memory, by guest-physical address. After a fork of the built VM or
    /// a reset ask again: the VM may have moved to another window.
    ///
    /// A guest that runs does not notice when its page tables are written to: what
    /// a processor, or software KVM, remembers of them stays as it was.
    pub fn guest_ram(&self) -> GuestRam {
        self.machine.ram().guest_ram()
    }

    /// Where its memory is in this process, as `/proc/self/smaps` lists it.
    pub fn host_range(&self) -> std::ops::Range<usize> {
        self.machine.ram().window().host_range()
    }

    /// What the guest has written to its consoles so far, if it is captured.
    pub fn output(&self) -> Vec<u8> {
        self.machine.console.output()
    }

    /// Gives the guest input on its serial port; returns how many bytes there
    /// was room for.
    pub fn feed_input(&self, bytes: &[u8]) -> usize {
        self.machine.console.feed(bytes)
    }

    fn hold(&self) -> Result<Held<'_>, VmError> {
        self.machine.gate.hold().map_err(|_| VmError::Stuck)
    }

    fn pause_gate(&self) -> Result<MutexGuard<'_, GateState>, VmError> {
        self.machine.gate.pause().map_err(|_| VmError::Stuck)
    }

    /// Lets the VM run, if it does not; vCPUs before `first` are the caller's.
    fn start(&self, first: usize) -> Result<(), VmError> {
        let mut control = self.control();
        if self.machine.gate.is_running() {
            return Ok(());
        }
        self.machine.may_run()?;
        let gate = self.pause_gate()?;
        if let Some(event) = gate.final_event() {
            return Err(VmError::Ended(event.clone()));
        }
        drop(gate);
        self.machine.devices().control.answer_fork(None);
        self.start_threads(&mut control, first)?;
        self.let_run();
        Ok(())
    }

    /// Sees to it that every vCPU from `first` on has a thread.
    fn start_threads(&self, control: &mut Control, first: usize) -> Result<(), VmError> {
        let cpus = self.pause_gate()?.vcpus().count();
        if control.threads.is_empty() {
            // A VM that runs may be forked any moment.
            self.machine.family.work_ahead();
            control.threads.resize_with(cpus, || None);
        }
        for (index, thread) in control.threads.iter_mut().enumerate().skip(first) {
            if thread.is_none() {
                let started = run::spawn(&self.machine, index).map_err(VmError::Thread)?;
                *thread = Some(started);
            }
        }
        Ok(())
    }

    fn let_run(&self) {
        self.machine.gate.resume();
        self.machine.was_let_run();
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.machine.gate.quit();
        let control = self
            .control
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        for thread in control.threads.drain(..).flatten() {
            // A vCPU thread that panicked has said so on stderr.
            let _ = thread.join();
        }
        control.wait_retired();
        self.machine.family.ledger.leave(&self.machine.seat);
    }
}
