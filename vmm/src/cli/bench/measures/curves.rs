//! `curves`: what a cost becomes as something grows; `--svg` draws them.
//!
//! * against RAM: a fork of a template with 32 MiB of content, to its first
//!   exit; floor as in `fork-cold`
//! * against VMs: the same with so many forks alive that have run
//! * against depth: the same with so many layers below, as in `depth`
//! * against dirty pages: a snapshot and a reset of a paused VM that has written
//!   to so many pages since the last one

use std::time::Instant;

use crate::cli::bench::floor::machine::Irqchip;
use crate::cli::bench::plot::Curve;
use crate::cli::bench::row::{Row, Unit};
use crate::cli::bench::stats::Samples;
use crate::cli::bench::turns::{self, Turn, micros_since};
use crate::cli::bench::{Bench, Effort, subject};
use crate::cli::exit::Failure;

use super::{depth, fork, memory};

const RAM: Curve = Curve {
    name: "ram",
    title: "Fork of a snapshot, against RAM",
    x_label: "RAM in MiB",
};
const VMS: Curve = Curve {
    name: "vms",
    title: "Fork of a snapshot, against VMs alive in the process",
    x_label: "VMs alive",
};
const DEPTH: Curve = Curve {
    name: "depth",
    title: "Fork of a snapshot, against layers below",
    x_label: "layers",
};
const DIRTY: Curve = Curve {
    name: "dirty",
    title: "Snapshot and reset of a paused VM, against dirty pages",
    x_label: "pages written to since the last snapshot",
};

/// Some values of what grows, given those of a full run.
fn values(bench: &Bench, full: &'static [u64]) -> &'static [u64] {
    match bench.effort {
        Effort::Quick => &full[..2],
        Effort::Full => full,
    }
}

fn row(curve: Curve, name: &str, x: u64, samples: Samples) -> Row {
    Row::new(format!("{name}/{x}"), Unit::Microseconds, samples).at(curve, x as f64)
}

pub(super) fn curves(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let mut rows = against_ram(bench)?;
    rows.extend(against_vms(bench)?);
    rows.extend(against_depth(bench)?);
    rows.extend(against_dirty_pages(bench)?);
    Ok(rows)
}

fn against_ram(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for mib in values(bench, &[256, 512, 1024, 2048, 4096, 8192, 16_384]) {
        let (snapshot, floor) = fork::templates(bench, *mib)?;
        let mut turns: [Turn<'_>; 2] = [
            Box::new(|| fork::fork(&snapshot)),
            Box::new(|| fork::copy(&floor, Irqchip::Split)),
        ];
        let samples = turns::take(bench.effort.rounds(20), &mut turns)?;
        rows.push(row(RAM, "fork-by-ram", *mib, samples[0].clone()).floor(&samples[1]));
    }
    Ok(rows)
}

fn against_vms(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let (snapshot, _) = fork::templates(bench, bench.effort.sizes(&[256])[0])?;
    let mut alive = Vec::new();
    let mut rows = Vec::new();
    for count in values(bench, &[1, 10, 30, 100, 300, 1000]) {
        if !memory::room_for(*count as usize + 10)? {
            break;
        }
        while alive.len() < *count as usize {
            let fork = snapshot.fork()?;
            subject::run_to_ready(&fork)?;
            alive.push(fork);
        }
        let mut turns: [Turn<'_>; 1] = [Box::new(|| fork::fork(&snapshot))];
        let samples = turns::take(bench.effort.rounds(20), &mut turns)?;
        rows.push(row(VMS, "fork-by-vms", *count, samples[0].clone()));
    }
    Ok(rows)
}

fn against_depth(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let depths = values(bench, &[1, 10, 30, 100, 300, 1000]);
    let vm = depth::parent(bench)?;
    let snapshots = depth::snapshots(&vm, depths[depths.len() - 1])?;
    let mut rows = Vec::new();
    for layers in depths {
        let snapshot = &snapshots[*layers as usize - 1];
        let mut turns: [Turn<'_>; 1] = [Box::new(|| fork::fork(snapshot))];
        let samples = turns::take(bench.effort.rounds(20), &mut turns)?;
        rows.push(row(DEPTH, "fork-by-depth", *layers, samples[0].clone()));
    }
    Ok(rows)
}

fn against_dirty_pages(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let pages = values(bench, &[1, 10, 100, 1000, 10_000, 100_000]);
    let most = pages[pages.len() - 1];
    let content = subject::touch(0, most);
    let vm = subject::boot(&bench.host, 1 << 30, &[content])?;
    let first = vm.snapshot()?;
    drop(vm);
    let mut snapshots = Vec::new();
    let mut resets = Vec::new();
    for dirty in pages {
        let work = subject::touch(0, *dirty);
        let write = |vm: &vmm::Vm| -> Result<(), Failure> {
            subject::ask(vm, work)?;
            subject::run_to_ready(vm)
        };
        let vm = first.fork()?;
        let base = vm.snapshot()?;
        let mut turns: [Turn<'_>; 2] = [
            Box::new(|| {
                let vm = first.fork()?;
                write(&vm)?;
                let start = Instant::now();
                let snapshot = vm.snapshot()?;
                let took = micros_since(start);
                drop(snapshot);
                Ok(took)
            }),
            Box::new(|| {
                write(&vm)?;
                let start = Instant::now();
                vm.reset(&base)?;
                Ok(micros_since(start))
            }),
        ];
        let rounds = if *dirty > 10_000 { 2 } else { 10 };
        let samples = turns::take(bench.effort.rounds(rounds), &mut turns)?;
        snapshots.push(row(DIRTY, "snapshot-by-dirty", *dirty, samples[0].clone()));
        resets.push(row(DIRTY, "reset-by-dirty", *dirty, samples[1].clone()));
    }
    snapshots.extend(resets);
    Ok(snapshots)
}
