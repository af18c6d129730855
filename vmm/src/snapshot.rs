//! A point in a machine's life, in memory.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use guestmem::{GuestRam, Layer, Ram};

use crate::background;
use crate::devices::{Console, ConsoleMode, Devices};
use crate::error::VmError;
use crate::flat_layers::Forks;
use crate::huge_layers::Template;
use crate::kvm::shell::{Bound, Shell, Vcpu};
use crate::kvm::translations::TablesWere;
use crate::limits::Limits;
use crate::machine::{Family, Machine, MachineState};
use crate::page_tables::PageTables;
use crate::pool::{Pool, Warm};
use crate::vm::Vm;

/// What a VM was at one instant: its memory as a frozen layer, vCPUs and
/// devices as data. Fork VMs from it, or reset its VM to it, any number of
/// times; it holds the layer until it is dropped.
#[derive(Debug)]
pub struct Snapshot {
    pool: Arc<Pool>,
    point: Arc<Point>,
}

/// A snapshot, as whoever makes forks ahead shares it.
#[derive(Debug)]
pub(crate) struct Point {
    pub(crate) family: Arc<Family>,
    pub(crate) layer: Layer,
    pub(crate) state: MachineState,
    /// Known from the first reset in place on; `None` if nobody is to look.
    tables: OnceLock<Option<PageTables>>,
    console: ConsoleMode,
    /// What forks of it inherit.
    limits: Limits,
    template: Template,
    forks: Forks,
}

impl Snapshot {
    pub(crate) fn new(
        family: Arc<Family>,
        layer: Layer,
        state: MachineState,
        console: ConsoleMode,
        limits: Limits,
    ) -> Self {
        Self {
            pool: Arc::default(),
            point: Arc::new(Point {
                template: Template::new(family.huge_layers),
                forks: Forks::default(),
                family,
                layer,
                state,
                tables: OnceLock::new(),
                console,
                limits,
            }),
        }
    }

    pub(crate) fn point(&self) -> &Point {
        &self.point
    }

    /// Keeps `count` forks of this snapshot ready: taking one is then a matter
    /// of microseconds, at any depth and size. They are made in the background,
    /// each time one has been taken. None is kept at first.
    ///
    /// One that is ready costs no frames, but what KVM needs for a VM (some
    /// hundred KiB, and 2.5 KiB a MiB of RAM).
    pub fn keep_warm(&self, count: usize) {
        self.pool.keep(count);
        if count > 0 {
            self.point.template.serves(&self.point.layer);
        }
        self.refill();
    }

    /// How many forks are ready to be taken.
    pub fn warm(&self) -> usize {
        self.pool.ready()
    }

    /// Waits until as many forks are ready as [`keep_warm`](Self::keep_warm)
    /// asked for.
    ///
    /// # Errors
    /// If one of them could not be made: the host lacks memory, or will not
    /// make a VM.
    pub fn wait_warm(&self) -> Result<(), VmError> {
        self.refill();
        self.pool.wait_full()
    }

    /// A new VM that is what the snapshot's was. It is paused; its generation
    /// is its own. If the guest had asked to be forked at that moment, its
    /// call returns the new VM's number.
    ///
    /// # Errors
    /// If the family's hard memory limit leaves no room, or the host lacks
    /// memory or will not make a VM.
    pub fn fork(&self) -> Result<Vm, VmError> {
        self.point.family.may_fork(&self.point.layer)?;
        let (ram, shell, vcpus) = self.embody()?;
        let Point {
            family,
            state,
            console,
            limits,
            ..
        } = &*self.point;
        let number = family.next_number();
        let console = Arc::new(Console::new(*console));
        let generation = family.next_generation();
        let mut devices = Devices::new(vcpus.len(), generation, Arc::clone(&console));
        devices.restore(&state.devices);
        devices.control.set_generation(generation);
        devices.control.answer_fork(Some(number));
        let machine = Machine::new(Arc::clone(family), number, vcpus, devices, ram, console);
        machine.seat.set_limits(*limits);
        self.refill();
        Ok(Vm::new(machine, shell))
    }

    /// As many new VMs, made by as many threads as the host has CPUs: all of
    /// them, or none.
    ///
    /// # Errors
    /// As [`fork`](Self::fork).
    pub fn fork_many(&self, count: usize) -> Result<Vec<Vm>, VmError> {
        let begun = AtomicUsize::new(0);
        let make_some = || -> Result<Vec<Vm>, VmError> {
            let mut made = Vec::new();
            while begun.fetch_add(1, Ordering::Relaxed) < count {
                let fork = self.fork();
                if fork.is_err() {
                    begun.store(count, Ordering::Relaxed); // nobody need go on
                }
                made.push(fork?);
            }
            Ok(made)
        };
        let ready = self.warm().min(count);
        let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
        let helpers = cpus.min(count - ready).saturating_sub(1);
        std::thread::scope(|scope| {
            let start = |_| std::thread::Builder::new().spawn_scoped(scope, make_some);
            // Where there is no thread to be had, those that are make more.
            let helpers: Vec<_> = (0..helpers).flat_map(start).collect();
            let mut made = make_some();
            for helper in helpers {
                let more = helper.join().unwrap_or_else(|panic| resume_unwind(panic));
                made = made.and_then(|mut made| {
                    made.extend(more?);
                    Ok(made)
                });
            }
            made
        })
    }

    /// Memory, a shell around it, and vCPUs as they were.
    pub(crate) fn embody(&self) -> Result<(Ram, Shell, Vec<Vcpu>), VmError> {
        let Point { layer, family, .. } = &*self.point;
        self.point.template.is_forked(layer);
        self.point.forks.one_more(layer, family);
        let Some(warm) = self.pool.take() else {
            let shell = self.point.family.shell()?;
            let Warm { vcpus, shell, ram } = self.point.make(shell)?;
            return Ok((ram.into_ram(), shell, vcpus));
        };
        let Warm { vcpus, shell, ram } = warm;
        let Point { family, state, .. } = &*self.point;
        state.restart_clocks(&family.host, &shell, vcpus.iter())?;
        Ok((ram.into_ram(), shell, vcpus))
    }

    /// Has forks made as long as there are too few, and what the next one that
    /// is not among them will need.
    pub(crate) fn refill(&self) {
        self.point.family.work_ahead();
        if !self.pool.lacks() {
            return;
        }
        let pool = Arc::clone(&self.pool);
        let point = Arc::downgrade(&self.point);
        background::ahead(move || while pool.fill(|| Some(point.upgrade()?.make_ahead())) {});
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.pool.close();
    }
}

impl Point {
    /// Whether the page tables that a VM has in `ram` are those it had here.
    pub(crate) fn tables_were(&self, ram: &GuestRam) -> TablesWere {
        match self.tables.get() {
            Some(Some(tables)) if tables.are_in(ram) => TablesWere::Same,
            _ => TablesWere::Unknown,
        }
    }

    /// Has a look at them, for the next time: `ram` is what it was here.
    pub(crate) fn note_tables(&self, ram: &GuestRam) {
        self.tables.get_or_init(|| self.state.page_tables(ram));
    }

    /// One for the pool. Shells that lie ready are for those who cannot wait.
    fn make_ahead(&self) -> Result<Warm, VmError> {
        self.make(self.family.make_shell()?)
    }

    /// All of a fork that does not depend on when it is taken.
    fn make(&self, bound: Bound) -> Result<Warm, VmError> {
        let ram = self.layer.spare(bound.window())?;
        let (shell, vcpus) = bound.with(ram.window());
        self.state.restore(&shell, vcpus.iter())?;
        Ok(Warm { vcpus, shell, ram })
    }
}
