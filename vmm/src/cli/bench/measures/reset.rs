//! `reset`: a VM back to its snapshot after its guest has written to some pages,
//! the same in every round.
//!
//! From the call to its return. Floor: PAGEMAP_SCAN for what is dirty, a copy of
//! each such page from the file, and all registers, which keeps the pages mapped
//! as ours does. Rival: the dirty pages are known and thrown away
//! (MADV_DONTNEED), and of the registers only the general and system ones are
//! set, as TinyKVM does; what the guest pays later for its next writes is not
//! counted for it.

use std::time::Instant;

use crate::cli::bench::Bench;
use crate::cli::bench::floor::machine::{Irqchip, Machine};
use crate::cli::bench::floor::memory::DirtyPages;
use crate::cli::bench::floor::template::{Template, expect_ready};
use crate::cli::bench::row::{Row, Target, Unit};
use crate::cli::bench::subject::{self, Work};
use crate::cli::bench::turns::{self, Turn, micros_since};
use crate::cli::exit::Failure;

/// Pages that the guest writes to between two resets.
const DIRTY: &[u64] = &[1, 10, 100, 1000];

pub(super) fn reset(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let bytes = bench.effort.sizes(&[256])[0] << 20;
    let content = [subject::fill(
        (bench.effort.content_mib() << 20) / vmm::PAGE_SIZE,
    )];
    let vm = subject::boot(&bench.host, bytes, &content)?;
    let snapshot = vm.snapshot()?;
    drop(vm);
    let floor = subject::floor(&bench.host, bytes, &content)?;
    let mut rows = Vec::new();
    for pages in DIRTY {
        let work = subject::touch(0, *pages);
        // A VM of its own for each: pages once dirtied stay copied.
        let vm = snapshot.fork()?;
        let snapshot = vm.snapshot()?;
        let mut bare = floor.copy(Irqchip::Split)?;
        let mut rival = floor.copy(Irqchip::Split)?;
        let mut scan = DirtyPages::open()?;
        let mut turns: [Turn<'_>; 3] = [
            Box::new(|| {
                subject::ask(&vm, work)?;
                subject::run_to_ready(&vm)?;
                let start = Instant::now();
                vm.reset(&snapshot)?;
                Ok(micros_since(start))
            }),
            Box::new(|| {
                run(&mut bare, work)?;
                let start = Instant::now();
                let dirty = scan.of(&bare.memory)?;
                bare.memory.copy_back(&floor.shared, &dirty);
                floor.state.restore(&bare.vcpu)?;
                Ok(micros_since(start))
            }),
            Box::new(|| drop_back(&floor, &mut rival, work)),
        ];
        let samples = turns::take(bench.effort.rounds(200), &mut turns)?;
        rows.push(
            Row::new(
                format!("reset/{pages}-pages"),
                Unit::Microseconds,
                samples[0].clone(),
            )
            .floor(&samples[1])
            .rival("pages dropped, as TinyKVM", &samples[2])
            .target(Target::TimesFloor(1.25)),
        );
    }
    Ok(rows)
}

fn run(machine: &mut Machine, work: Work) -> Result<(), Failure> {
    machine.ask(work.command, work.args)?;
    expect_ready(machine)?;
    // Or the instruction under way would be finished over the registers of
    // the reset.
    Ok(machine.finish()?)
}

fn drop_back(template: &Template, machine: &mut Machine, work: Work) -> Result<f64, Failure> {
    run(machine, work)?;
    let dirty = DirtyPages::open()?.of(&machine.memory)?;
    let start = Instant::now();
    machine.memory.drop_private(&dirty)?;
    template.state.restore_registers(&machine.vcpu)?;
    Ok(micros_since(start))
}
