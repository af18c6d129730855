//! `depth`: forks of snapshots with 1, 64 and 1000 layers below the child, each
//! layer with a page that only it has written.
//!
//! From the call to the child's first exit, which here comes after it has
//! written one page; once with nothing kept warm, and once with a full pool. No
//! floor: the kernel has no layers. What is asked for is
//! the ratio, taken round by round, of deep to shallow.

use crate::cli::bench::row::{Row, Target, Unit};
use crate::cli::bench::subject;
use crate::cli::bench::turns::{self, Turn};
use crate::cli::bench::{Bench, Effort};
use crate::cli::exit::Failure;
use vmm::{Snapshot, Vm};

use super::fork;

/// How deep; the first is what the others are compared with.
const DEPTHS: &[u64] = &[1, 64, 1000];

pub(super) fn depth(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let depths = match bench.effort {
        Effort::Quick => &[1, 8],
        Effort::Full => DEPTHS,
    };
    let vm = parent(bench)?;
    let snapshots = snapshots(&vm, depths[depths.len() - 1])?;
    let at = |depth: &u64| &snapshots[*depth as usize - 1];
    let cold = |depth: &u64| -> Turn<'_> {
        let snapshot = at(depth);
        Box::new(|| fork::fork(snapshot))
    };
    let mut rows = compare(bench, "depth", depths, cold)?;
    for depth in depths {
        at(depth).keep_warm(fork::WARM);
    }
    let warm = |depth: &u64| -> Turn<'_> {
        let snapshot = at(depth);
        Box::new(|| fork::warm_fork(snapshot))
    };
    rows.extend(compare(bench, "depth-pooled", depths, warm)?);
    Ok(rows)
}

/// A row for each of `depths`, and one for the ratio of each to the first.
fn compare<'a>(
    bench: &Bench,
    name: &str,
    depths: &[u64],
    turn: impl FnMut(&u64) -> Turn<'a>,
) -> Result<Vec<Row>, Failure> {
    let mut turns: Vec<_> = depths.iter().map(turn).collect();
    let samples = turns::take(bench.effort.rounds(40), &mut turns)?;
    let mut rows = Vec::new();
    for (depth, samples) in depths.iter().zip(&samples) {
        let name = format!("{name}/{depth}");
        rows.push(Row::new(name, Unit::Microseconds, samples.clone()));
    }
    for (depth, deep) in depths.iter().zip(&samples).skip(1) {
        let ratios = deep.over(&samples[0]);
        let name = format!("{name}/{depth}-to-{}", depths[0]);
        rows.push(Row::new(name, Unit::Times, ratios).target(Target::AtMost(1.2)));
    }
    Ok(rows)
}

/// A VM to take snapshots of.
pub(super) fn parent(bench: &Bench) -> Result<Vm, Failure> {
    let bytes = bench.effort.sizes(&[256])[0] << 20;
    let content = subject::fill((bench.effort.content_mib() << 20) / vmm::PAGE_SIZE);
    subject::boot(&bench.host, bytes, &[content])
}

/// Snapshots of `vm` on top of one another, one with 1 layer, one with 2, and
/// so on; a page is written before each.
pub(super) fn snapshots(vm: &Vm, most: u64) -> Result<Vec<Snapshot>, Failure> {
    let mut snapshots = Vec::new();
    for layer in 0..most {
        subject::ask(vm, subject::touch(layer % 1024, 1))?;
        subject::run_to_ready(vm)?;
        snapshots.push(vm.snapshot()?);
    }
    Ok(snapshots)
}
