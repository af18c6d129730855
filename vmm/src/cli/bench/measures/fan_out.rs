//! `fan-out`: 32 forks of one snapshot, all of them there and running.
//!
//! From the call to the first exit of the last fork; once with nothing
//! kept warm, and once with a full pool. Floor of both: the syscalls
//! of 32 VMs, made and run to their first exit by as many threads as the host
//! has CPUs. Rival: zeroboot's sequence, in the same way.

use std::time::Instant;

use crate::cli::bench::Bench;
use crate::cli::bench::floor::machine::{Irqchip, Machine};
use crate::cli::bench::floor::template::{Template, expect_ready};
use crate::cli::bench::row::{Row, Target, Unit};
use crate::cli::bench::stats::Samples;
use crate::cli::bench::turns::{self, Turn, micros_since};
use crate::cli::exit::Failure;
use vmm::Snapshot;

const FORKS: usize = 32;

pub(super) fn fan_out(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let mib = bench.effort.sizes(&[256])[0];
    let (snapshot, floor) = super::fork::templates(bench, mib)?;
    let mut turns: [Turn<'_>; 3] = [
        Box::new(|| by_product(&snapshot)),
        Box::new(|| by_syscalls(&floor, Irqchip::Split)),
        Box::new(|| by_syscalls(&floor, Irqchip::Full)),
    ];
    let samples = turns::take(bench.effort.rounds(20), &mut turns)?;
    drop(turns);
    snapshot.keep_warm(FORKS);
    let warm = turns::take(
        bench.effort.rounds(20),
        &mut [Box::new(|| {
            snapshot.wait_warm()?;
            by_product(&snapshot)
        })],
    )?;
    let row = |name: &str, ours: &Samples| {
        Row::new(format!("{name}/{FORKS}"), Unit::Microseconds, ours.clone())
            .floor(&samples[1])
            .rival("zeroboot sequence", &samples[2])
            .target(Target::AtMost(10_000.0))
    };
    Ok(vec![
        row("fan-out", &samples[0]),
        row("fan-out-pooled", &warm[0]),
    ])
}

fn by_product(snapshot: &Snapshot) -> Result<f64, Failure> {
    let start = Instant::now();
    let forks = snapshot.fork_many(FORKS)?;
    for fork in &forks {
        fork.resume()?;
    }
    for fork in &forks {
        fork.wait();
    }
    Ok(micros_since(start))
}

fn by_syscalls(template: &Template, irqchip: Irqchip) -> Result<f64, Failure> {
    let threads = std::thread::available_parallelism()?.get().min(FORKS);
    let some = || -> std::io::Result<Vec<Machine>> {
        let copy = |_| {
            let mut machine = template.copy(irqchip)?;
            expect_ready(&mut machine)?;
            Ok(machine)
        };
        (0..FORKS.div_ceil(threads)).map(copy).collect()
    };
    let start = Instant::now();
    let made: Vec<_> = std::thread::scope(|scope| {
        let started: Vec<_> = (0..threads).map(|_| scope.spawn(some)).collect();
        started
            .into_iter()
            .map(|thread| {
                let panicked = |_| Err(std::io::Error::other("a thread panicked"));
                thread.join().unwrap_or_else(panicked)
            })
            .collect::<Result<_, _>>()
    })?;
    let took = micros_since(start);
    drop::<Vec<Vec<Machine>>>(made);
    Ok(took)
}
