//! `fork-pooled`, `fork-cold` and `drop`: copies of a template that stands
//! still.
//!
//! A fork is measured from the call to the return from its run to the first
//! exit, which comes a few instructions after the child's first. For the
//! product that includes the thread that runs the vCPU.
//!
//! Floor of `fork-cold`: every syscall that a VM of one vCPU takes, the private
//! mapping of memory and all registers included, and the entry to the first
//! exit. Floor of `fork-pooled`: only the entry to the first exit of a VM whose
//! making, memory and registers were all done before; nobody can leave that
//! out. `drop` ends when the memory, the VM and its vCPU are gone, or when the
//! product says that they are.

use std::time::Instant;

use vmm::Snapshot;

use crate::cli::bench::floor::machine::Irqchip;
use crate::cli::bench::floor::template::{Template, expect_ready};
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

/// A fork of a snapshot that keeps some ready, when all of them are.
pub(super) fn warm_fork(snapshot: &Snapshot) -> Result<f64, Failure> {
    snapshot.wait_warm()?;
    fork(snapshot)
}

pub(super) fn pooled(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for mib in bench.effort.sizes(SIZES) {
        let (snapshot, floor) = templates(bench, *mib)?;
        snapshot.keep_warm(WARM);
        let rounds = bench.effort.rounds(200);
        let mut turns: [Turn<'_>; 3] = [
            Box::new(|| warm_fork(&snapshot)),
            Box::new(|| {
                let mut child = floor.bound()?;
                floor.state.restore(&child.vcpu)?;
                let start = Instant::now();
                expect_ready(&mut child)?;
                Ok(micros_since(start))
            }),
            Box::new(|| {
                let mut child = floor.bound()?;
                let start = Instant::now();
                floor.state.restore(&child.vcpu)?;
                expect_ready(&mut child)?;
                Ok(micros_since(start))
            }),
        ];
        let samples = turns::take(rounds, &mut turns)?;
        rows.push(
            Row::new(
                format!("fork-pooled/{mib}M"),
                Unit::Microseconds,
                samples[0].clone(),
            )
            .floor(&samples[1])
            .rival("bound VM, registers set at the fork", &samples[2])
            .target(Target::AtMost(100.0))
            .target(Target::TimesFloor(1.3)),
        );
    }
    Ok(rows)
}

pub(super) fn cold(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for mib in bench.effort.sizes(SIZES) {
        let (snapshot, floor) = templates(bench, *mib)?;
        let spawner = Spawner::new(&floor)?;
        let mut turns: [Turn<'_>; 4] = [
            Box::new(|| fork(&snapshot)),
            Box::new(|| copy(&floor, Irqchip::Split)),
            Box::new(|| copy(&floor, Irqchip::Full)),
            Box::new(|| {
                let start = Instant::now();
                let process = spawner.copy()?;
                let took = micros_since(start);
                process.end()?;
                Ok(took)
            }),
        ];
        let samples = turns::take(bench.effort.rounds(60), &mut turns)?;
        let row = |name: &str, ours: &Samples| {
            Row::new(format!("{name}/{mib}M"), Unit::Microseconds, ours.clone()).floor(&samples[1])
        };
        rows.push(
            row("fork-cold", &samples[0])
                .rival("zeroboot sequence", &samples[2])
                .target(Target::TimesFloor(1.3))
                .target(Target::TimesQuickerThanRival(8.0)),
        );
        rows.push(
            row("fork-cold-against-process", &samples[0])
                .rival("process and snapshot file, as Firecracker", &samples[3]),
        );
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
