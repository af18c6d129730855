//! `memory`: what a fork costs the host that has run and written to 16 pages.
//!
//! By how much MemAvailable falls from before the first of N forks to after the
//! last has had its first exit, divided by N: pages, page tables, KVM's own
//! memory and the threads' stacks, whoever in the kernel holds them. Other
//! processes disturb it, the fewer forks the more. 68 KiB of it are the
//! guest's: 16 pages and its mailbox. Floor: VMs by bare syscalls over private
//! mappings, which have no threads.

use std::io;
use std::time::Duration;

use crate::cli::bench::floor::machine::Irqchip;
use crate::cli::bench::floor::template::expect_ready;
use crate::cli::bench::row::{Row, Unit};
use crate::cli::bench::subject;
use crate::cli::bench::turns::{self, Turn};
use crate::cli::bench::{Bench, Effort};
use crate::cli::exit::Failure;

/// How many forks at a time, and rounds.
const COUNTS: &[(usize, usize)] = &[(1, 20), (100, 5), (1000, 2)];
/// Pages that each of them writes to.
const DIRTY: u64 = 16;

pub(super) fn memory(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let bytes = bench.effort.sizes(&[256])[0] << 20;
    let content = [subject::fill(
        (bench.effort.content_mib() << 20) / vmm::PAGE_SIZE,
    )];
    let vm = subject::boot(&bench.host, bytes, &content)?;
    // Every fork finds this in its mailbox.
    let work = subject::touch(0, DIRTY);
    subject::ask(&vm, work)?;
    let snapshot = vm.snapshot()?;
    let floor = subject::floor(&bench.host, bytes, &content)?;
    let mut rows = Vec::new();
    let counts: &[(usize, usize)] = match bench.effort {
        Effort::Quick => &[(1, 3), (10, 3)],
        Effort::Full => COUNTS,
    };
    for (count, rounds) in counts.iter().copied() {
        if !room_for(count)? {
            log::warn!("{count} VMs need more open files than this process may have");
            continue;
        }
        let mut turns: [Turn<'_>; 2] = [
            Box::new(|| {
                per_copy(count, || {
                    let fork = snapshot.fork()?;
                    subject::run_to_ready(&fork)?;
                    Ok(fork)
                })
            }),
            Box::new(|| {
                per_copy(count, || {
                    let mut copy = floor.copy(Irqchip::Split)?;
                    copy.ask(work.command, work.args)?;
                    expect_ready(&mut copy)?;
                    Ok(copy)
                })
            }),
        ];
        let samples = turns::take(bench.effort.rounds(rounds), &mut turns)?;
        let name = format!("memory/{count}");
        rows.push(Row::new(name, Unit::Kibibytes, samples[0].clone()).floor(&samples[1]));
    }
    Ok(rows)
}

/// KiB of the host's memory that each of `count` things takes.
fn per_copy<T>(count: usize, mut make: impl FnMut() -> Result<T, Failure>) -> Result<f64, Failure> {
    let before = settled_kib()?;
    let made = (0..count).map(|_| make()).collect::<Result<Vec<_>, _>>()?;
    let after = settled_kib()?;
    drop(made);
    Ok((before - after) / count as f64)
}

/// MemAvailable when it has stopped moving: what was dropped before is given
/// back by and by.
fn settled_kib() -> io::Result<f64> {
    const STILL_KIB: f64 = 128.0;
    const STILL_TIMES: u32 = 4;
    let mut last = available_kib()?;
    let mut still = 0;
    for _ in 0..80 {
        std::thread::sleep(Duration::from_millis(25));
        let now = available_kib()?;
        let moved = (now - last).abs() >= STILL_KIB;
        still = if moved { 0 } else { still + 1 };
        if still == STILL_TIMES {
            return Ok(now);
        }
        last = now;
    }
    Ok(last)
}

fn available_kib() -> io::Result<f64> {
    // Has the CPUs tell what they have counted; refused to all but root, and
    // then the figure of a single fork is coarse.
    let _ = std::fs::read("/proc/sys/vm/stat_refresh");
    let text = std::fs::read_to_string("/proc/meminfo")?;
    meminfo(&text, "MemAvailable").ok_or_else(|| io::Error::other("no MemAvailable"))
}

/// A line of /proc/meminfo, in KiB.
fn meminfo(text: &str, name: &str) -> Option<f64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Whether this process may have `count` VMs: each has some five files open.
pub(super) fn room_for(count: usize) -> io::Result<bool> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = count as u64 * 5 + 100;
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(true);
    }
    if limit.maximum.is_some_and(|most| most < wanted) {
        return Ok(false);
    }
    let raised = Rlimit {
        current: Some(wanted),
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::meminfo;

    #[test]
    fn a_line_is_found_by_its_whole_name() {
        let text = "MemTotal:       100 kB\nMemAvailable:    42 kB\n";
        assert_eq!(meminfo(text, "MemAvailable"), Some(42.0));
        assert_eq!(meminfo(text, "Mem"), None);
    }
}
