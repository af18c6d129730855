//! `first-writes`: what a fork pays for memory that it has not used yet.
//!
//! A fork that has had its first exit is told to write one word to each of 1000
//! pages of the template, or to read one word of each page of 64 MiB. From its
//! start to its being ready, the thread of the vCPU included. Floor: the same
//! guest over a plain private mapping of a memfd.

use std::time::Instant;

use guest_images::worker::command;

use crate::cli::bench::Bench;
use crate::cli::bench::floor::machine::Irqchip;
use crate::cli::bench::floor::template::expect_ready;
use crate::cli::bench::row::{Row, Target, Unit};
use crate::cli::bench::subject::{self, Work, page};
use crate::cli::bench::turns::{self, Turn, micros_since};
use crate::cli::exit::Failure;

/// Pages to be written first.
const WRITES: u64 = 1000;

pub(super) fn first_writes(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let mib = bench.effort.content_mib() * 2;
    let pages = (mib << 20) / vmm::PAGE_SIZE;
    let bytes = bench.effort.sizes(&[256])[0] << 20;
    let content = [subject::fill(pages)];
    let snapshot = subject::boot(&bench.host, bytes, &content)?.snapshot()?;
    let floor = subject::floor(&bench.host, bytes, &content)?;
    let reads = Work {
        command: command::LOOK,
        args: [page(0), pages, 0],
    };
    let mut rows = Vec::new();
    for (name, work) in [
        (
            format!("first-writes/{WRITES}-pages"),
            subject::touch(0, WRITES),
        ),
        (format!("first-reads/{mib}M"), reads),
    ] {
        let mut turns: [Turn<'_>; 2] = [
            Box::new(|| {
                let child = snapshot.fork()?;
                subject::run_to_ready(&child)?;
                subject::ask(&child, work)?;
                let start = Instant::now();
                subject::run_to_ready(&child)?;
                Ok(micros_since(start))
            }),
            Box::new(|| {
                let mut child = floor.copy(Irqchip::Split)?;
                expect_ready(&mut child)?;
                child.ask(work.command, work.args)?;
                let start = Instant::now();
                expect_ready(&mut child)?;
                Ok(micros_since(start))
            }),
        ];
        let samples = turns::take(bench.effort.rounds(30), &mut turns)?;
        rows.push(
            Row::new(name, Unit::Microseconds, samples[0].clone())
                .floor(&samples[1])
                .target(Target::TimesFloor(1.1)),
        );
    }
    Ok(rows)
}
