//! `fork-pooled`, `fork-cold` and `drop`: copies of a template that stands
//! still.
//!
//! A fork is measured from the call to the child's first instructions, where it
//! reads the time-stamp counter and notes it in its memory; and again, as
//! `…-exit`, to the return from its run to the first exit, which comes a few
//! instructions later. (Where KVM gives guests a counter of their own, both are
//! to the exit.)
//!
//! Floor of `fork-cold`: every syscall that a VM of one vCPU takes, the private
//! mapping of memory and all registers included, and the entry. Floor of
//! `fork-pooled`: only the entry of a VM whose making, memory, registers and
//! first entry were all done before; nobody can leave that out. `drop` ends when
//! the memory, the VM and its vCPU are gone, or when the product says that they
//! are.

use std::time::Instant;

use vm_memory::{Bytes, GuestAddress};
use vmm::Snapshot;

use crate::cli::bench::floor::machine::{Irqchip, Machine};
use crate::cli::bench::floor::template::{Template, expect_ready};
use crate::cli::bench::floor::ticks::{self, TickRate};
use crate::cli::bench::rival::Spawner;
use crate::cli::bench::row::{Row, Target, Unit};
use crate::cli::bench::subject::{self, READY_AGAIN};
use crate::cli::bench::turns::{self, Turn, micros_since};
use crate::cli::bench::{Bench, stats::Samples};
use crate::cli::exit::Failure;

/// Forks that a pool keeps ready.
pub(super) const WARM: usize = 4;
/// Sizes of templates, in MiB.
const SIZES: &[u64] = &[256, 1024, 4096];

/// The template of every measure here, twice: the product's, and by syscalls.
pub(super) fn templates(bench: &Bench, mib: u64) -> Result<(Snapshot, Template), Failure> {
    let bytes = mib << 20;
    let content = subject::fill((bench.effort.content_mib() << 20) / vmm::PAGE_SIZE);
    let work = [content, READY_AGAIN];
    let vm = subject::boot(&bench.host, bytes, &work)?;
    let floor = subject::floor(&bench.host, bytes, &work)?;
    Ok((vm.snapshot()?, floor))
}

/// When a copy came where, in microseconds.
#[derive(Clone, Copy)]
struct Times {
    instruction: f64,
    exit: f64,
}

/// When a copy was asked for.
struct Asked {
    ticks: u64,
    at: Instant,
}

impl Asked {
    fn now() -> Self {
        Self {
            ticks: ticks::now(),
            at: Instant::now(),
        }
    }

    /// The times of a copy that has just had its first exit and has noted
    /// `noted`.
    fn until(&self, noted: u64, clock: &TickRate, exited: Self) -> Times {
        let exit = exited.at.duration_since(self.at).as_secs_f64() * 1e6;
        let is_ours = (self.ticks..=exited.ticks).contains(&noted);
        let instruction = match is_ours {
            true => clock.micros(noted - self.ticks),
            false => exit,
        };
        Times { instruction, exit }
    }
}

/// The product's fork.
fn times_of_fork(snapshot: &Snapshot, clock: &TickRate) -> Result<Times, Failure> {
    let asked = Asked::now();
    let child = snapshot.fork()?;
    subject::run_to_ready(&child)?;
    let exited = Asked::now();
    let noted = child.guest_ram().read_obj(GuestAddress(subject::result()));
    let noted = noted.map_err(std::io::Error::other)?;
    Ok(asked.until(noted, clock, exited))
}

/// The rest of what `make` began, by syscalls.
fn times_of_copy(
    clock: &TickRate,
    make: impl FnOnce() -> std::io::Result<Machine>,
) -> Result<Times, Failure> {
    let asked = Asked::now();
    let mut child = make()?;
    expect_ready(&mut child)?;
    let exited = Asked::now();
    let noted = child.memory.word(subject::result());
    Ok(asked.until(noted, clock, exited))
}

/// Where to.
type Point = fn(&Times) -> f64;

/// With what is added to a row's name.
const POINTS: [(&str, Point); 2] = [
    ("", |times| times.instruction),
    ("-exit", |times| times.exit),
];

fn to(point: Point, times: &[Times]) -> Samples {
    times.iter().map(point).collect()
}

pub(super) fn pooled(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    let clock = &TickRate::measure();
    for mib in bench.effort.sizes(SIZES) {
        let (snapshot, floor) = templates(bench, *mib)?;
        snapshot.keep_warm(WARM);
        let mut turns: [Turn<'_, Times>; 3] = [
            Box::new(|| {
                snapshot.wait_warm()?;
                times_of_fork(&snapshot, clock)
            }),
            Box::new(|| {
                let mut child = floor.bound()?;
                child.enter_ahead()?;
                floor.state.restore(&child.vcpu)?;
                times_of_copy(clock, || Ok(child))
            }),
            Box::new(|| {
                let child = floor.bound()?;
                times_of_copy(clock, || {
                    floor.state.restore(&child.vcpu)?;
                    Ok(child)
                })
            }),
        ];
        let taken = turns::take_each(bench.effort.rounds(200), &mut turns)?;
        for (suffix, point) in POINTS {
            let name = format!("fork-pooled{suffix}/{mib}M");
            let row = Row::new(name, Unit::Microseconds, to(point, &taken[0]))
                .floor(&to(point, &taken[1]))
                .rival("bound VM, registers set at the fork", &to(point, &taken[2]));
            rows.push(match suffix {
                "" => row
                    .target(Target::AtMost(100.0))
                    .target(Target::TimesFloor(1.3)),
                _ => row,
            });
        }
    }
    Ok(rows)
}

pub(super) fn cold(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    let clock = &TickRate::measure();
    for mib in bench.effort.sizes(SIZES) {
        let (snapshot, floor) = templates(bench, *mib)?;
        let spawner = Spawner::new(&floor)?;
        let mut turns: [Turn<'_, Times>; 4] = [
            Box::new(|| times_of_fork(&snapshot, clock)),
            Box::new(|| times_of_copy(clock, || floor.copy(Irqchip::Split))),
            Box::new(|| times_of_copy(clock, || floor.copy(Irqchip::Full))),
            Box::new(|| {
                let asked = Asked::now();
                let process = spawner.copy()?;
                let times = asked.until(0, clock, Asked::now());
                process.end()?;
                Ok(times)
            }),
        ];
        let taken = turns::take_each(bench.effort.rounds(60), &mut turns)?;
        for (suffix, point) in POINTS {
            let name = format!("fork-cold{suffix}/{mib}M");
            let row = Row::new(name, Unit::Microseconds, to(point, &taken[0]))
                .floor(&to(point, &taken[1]));
            rows.push(match suffix {
                "" => row
                    .rival("zeroboot sequence", &to(point, &taken[2]))
                    .target(Target::TimesFloor(1.3))
                    .target(Target::TimesQuickerThanRival(8.0)),
                _ => row.rival(
                    "process and snapshot file, as Firecracker",
                    &to(point, &taken[3]),
                ),
            });
        }
    }
    Ok(rows)
}

pub(super) fn dropping(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let mib = bench.effort.sizes(&[256])[0];
    let (snapshot, floor) = templates(bench, mib)?;
    let drop_copy = |irqchip| -> Result<f64, Failure> {
        let mut child = floor.copy(irqchip)?;
        expect_ready(&mut child)?;
        let start = Instant::now();
        drop(child);
        Ok(micros_since(start))
    };
    let mut turns: [Turn<'_>; 3] = [
        Box::new(|| {
            let child = snapshot.fork()?;
            subject::run_to_ready(&child)?;
            let start = Instant::now();
            drop(child);
            Ok(micros_since(start))
        }),
        Box::new(|| drop_copy(Irqchip::Split)),
        Box::new(|| drop_copy(Irqchip::Full)),
    ];
    let samples = turns::take(bench.effort.rounds(100), &mut turns)?;
    let row = Row::new(
        format!("drop/{mib}M"),
        Unit::Microseconds,
        samples[0].clone(),
    )
    .floor(&samples[1])
    .rival("zeroboot sequence", &samples[2])
    .target(Target::AtMost(500.0));
    Ok(vec![row])
}

/// A fork of a snapshot that keeps some ready, when all of them are, to the
/// child's first exit.
pub(super) fn warm_fork(snapshot: &Snapshot) -> Result<f64, Failure> {
    snapshot.wait_warm()?;
    fork(snapshot)
}

/// The product's fork, to the child's first exit.
pub(super) fn fork(snapshot: &Snapshot) -> Result<f64, Failure> {
    let start = Instant::now();
    let child = snapshot.fork()?;
    subject::run_to_ready(&child)?;
    let took = micros_since(start);
    drop(child);
    Ok(took)
}

/// A copy by syscalls, to its first exit.
pub(super) fn copy(template: &Template, irqchip: Irqchip) -> Result<f64, Failure> {
    let start = Instant::now();
    let mut child = template.copy(irqchip)?;
    expect_ready(&mut child)?;
    let took = micros_since(start);
    drop(child);
    Ok(took)
}
