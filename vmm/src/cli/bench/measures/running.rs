//! `fork-running`: fork of a VM whose guest writes to its memory at full speed.
//!
//! The pause is what the guest sees: it reads the time-stamp counter at each
//! step and keeps the longest time between two, so that being kicked out, woken
//! again and the faults of the first steps afterwards are all part of it, and
//! so is the host's scheduler. The hold is the VMM's part of that, from asking
//! the vCPU to stop to letting it go on; it and the whole call are measured by
//! the host's clock.
//!
//! Floor: two VMs stand ready without memory. In the call both get a private
//! mapping of the file that the guest writes to; its vCPU is kicked out, its
//! registers are read and set in one of them, where it goes on, and then in the
//! other, the child. Rival: fork(2) of a process with as much memory, to the
//! child's first instruction.
//!
//! * `…/256M` and so on: a VM that was built, with every page resident
//! * `…/1000-private`: one that has so many pages of its own over a layer
//! * `…/repeated`: the pauses of the last ten of 100 forks against the first ten

use std::time::{Duration, Instant};

use guest_images::worker::{Watch, command};
use vm_memory::{Bytes, GuestAddress};
use vmm::{GuestRam, Vm};

use crate::cli::bench::floor::moving::Running;
use crate::cli::bench::floor::process::Forker;
use crate::cli::bench::floor::ticks::TickRate;
use crate::cli::bench::row::{Row, Target, Unit};
use crate::cli::bench::stats::Samples;
use crate::cli::bench::subject::{self, Work, page};
use crate::cli::bench::{Bench, Effort};
use crate::cli::exit::Failure;

/// Sizes in MiB, and how many VMs of each are built and forked.
const SIZES: [(u64, usize); 3] = [(256, 10), (1024, 4), (4096, 2)];
/// Private pages, how many such VMs are forked, and the longest pause that is
/// asked for in microseconds.
const PRIVATE: [(u64, usize, f64); 2] = [(1000, 40, 1000.0), (10_000, 20, 3000.0)];
/// How long the guest runs before it is forked and before it is asked.
const SLICE: Duration = Duration::from_millis(5);

/// What forks of running VMs cost, in microseconds.
#[derive(Default)]
struct Costs {
    /// As the guest sees it.
    pauses: Samples,
    /// As the VMM sees it.
    holds: Samples,
    calls: Samples,
}

/// What one of them costs.
struct Cost {
    pause: f64,
    hold: f64,
    call: f64,
}

impl Costs {
    fn push(&mut self, cost: &Cost) {
        self.pauses.push(cost.pause);
        self.holds.push(cost.hold);
        self.calls.push(cost.call);
    }
}

pub(super) fn running(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    let clock = TickRate::measure();
    let sizes: &[(u64, usize)] = match bench.effort {
        Effort::Quick => &[(64, 2)],
        Effort::Full => &SIZES,
    };
    for (mib, rounds) in sizes {
        rows.extend(resident(bench, &clock, *mib, *rounds)?);
    }
    let private: &[(u64, usize, f64)] = match bench.effort {
        Effort::Quick => &[(100, 2, 1000.0)],
        Effort::Full => &PRIVATE,
    };
    for (pages, rounds, most) in private {
        rows.extend(with_private_pages(bench, &clock, *pages, *rounds, *most)?);
    }
    rows.push(repeated(bench, &clock)?);
    Ok(rows)
}

/// Forks of VMs that were built and have every page resident.
fn resident(bench: &Bench, clock: &TickRate, mib: u64, rounds: usize) -> Result<Vec<Row>, Failure> {
    let mut ours = Costs::default();
    let mut floor = Costs::default();
    let mut forks = Samples::default();
    let mut forker = Forker::new(mib)?;
    for _ in 0..rounds {
        let vm = subject::boot(&bench.host, mib << 20, &touch_everything(mib))?;
        start(&vm, spin(1, 8192))?;
        let (cost, child) = fork_and_watch(&vm, clock)?;
        ours.push(&cost);
        drop((child, vm));
        floor.push(&floor_fork(bench, clock, mib)?);
        forks.push(forker.fork()?);
    }
    let row = |name: &str, samples| {
        Row::new(format!("{name}/{mib}M"), Unit::Microseconds, samples).rival("fork(2)", &forks)
    };
    Ok(vec![
        row("fork-running-pause", ours.pauses)
            .floor(&floor.pauses)
            .target(Target::AtMost(500.0)),
        row("fork-running-hold", ours.holds).floor(&floor.holds),
        row("fork-running-call", ours.calls).floor(&floor.calls),
    ])
}

/// Forks of VMs that are forks themselves and have written to `pages` pages.
fn with_private_pages(
    bench: &Bench,
    clock: &TickRate,
    pages: u64,
    rounds: usize,
    most: f64,
) -> Result<[Row; 3], Failure> {
    let bytes = bench.effort.sizes(&[256])[0] << 20;
    let content = subject::fill((bench.effort.content_mib() << 20) / vmm::PAGE_SIZE);
    let snapshot = subject::boot(&bench.host, bytes, &[content])?.snapshot()?;
    let mut costs = Costs::default();
    for _ in 0..rounds {
        let vm = snapshot.fork()?;
        subject::ask(&vm, subject::touch(1, pages))?;
        subject::run_to_ready(&vm)?;
        start(&vm, spin(1, pages))?;
        costs.push(&fork_and_watch(&vm, clock)?.0);
    }
    let row = |name: &str, samples| {
        Row::new(
            format!("{name}/{pages}-private"),
            Unit::Microseconds,
            samples,
        )
    };
    Ok([
        row("fork-running-pause", costs.pauses).target(Target::AtMost(most)),
        row("fork-running-hold", costs.holds),
        row("fork-running-call", costs.calls),
    ])
}

/// A hundred forks of one VM that goes on writing, with every child kept.
fn repeated(bench: &Bench, clock: &TickRate) -> Result<Row, Failure> {
    const FORKS: usize = 100;
    const ENDS: usize = 10;
    let bytes = bench.effort.sizes(&[256])[0] << 20;
    let content = subject::fill((bench.effort.content_mib() << 20) / vmm::PAGE_SIZE);
    let mut ratios = Samples::default();
    for _ in 0..bench.effort.rounds(5) {
        let vm = subject::boot(&bench.host, bytes, &[content])?;
        start(&vm, spin(1, 256))?;
        let mut pauses = Samples::default();
        let mut children = Vec::new();
        for _ in 0..FORKS {
            let (cost, child) = fork_and_watch(&vm, clock)?;
            pauses.push(cost.pause);
            children.push(child);
        }
        ratios.push(pauses.last(ENDS).p50() / pauses.first(ENDS).p50());
    }
    let row = Row::new("fork-running-pause/repeated", Unit::Times, ratios);
    Ok(row.target(Target::AtMost(1.2)))
}

/// A word to every page of a guest of `mib` MiB that is free, but for its
/// stack. RAM goes on at 4 GiB where it reaches 3 GiB.
fn touch_everything(mib: u64) -> Vec<Work> {
    const STACK_BYTES: u64 = 1 << 20;
    let bytes = mib << 20;
    let low_end = bytes.min(guestmem::HOLE_START.0) - STACK_BYTES;
    let high = bytes.saturating_sub(guestmem::HOLE_START.0);
    let touch = |start: u64, bytes: u64| Work {
        command: command::TOUCH,
        args: [start, bytes / vmm::PAGE_SIZE, 7],
    };
    let mut work = vec![touch(page(0), low_end - page(0))];
    if high > 0 {
        work.push(touch(guestmem::HOLE_END.0, high));
    }
    work
}

/// Write for ever to `pages` pages from page `first` on, and watch the time.
fn spin(first: u64, pages: u64) -> Work {
    Work {
        command: command::SPIN,
        args: [page(first), pages, page(0)],
    }
}

/// Lets the guest do `work` for ever.
fn start(vm: &Vm, work: Work) -> Result<(), Failure> {
    subject::ask(vm, work)?;
    vm.resume()?;
    match vm.wait_for(SLICE) {
        None => Ok(()),
        Some(event) => Err(vmm::VmError::Ended(event).into()),
    }
}

/// Forks `vm`: what that cost, and the child.
fn fork_and_watch(vm: &Vm, clock: &TickRate) -> Result<(Cost, Vm), Failure> {
    let number = reset_watch(&vm.guest_ram())?;
    let start = Instant::now();
    let child = vm.fork()?;
    let call = start.elapsed().as_secs_f64() * 1e6;
    // On a busy host it may be a while until the guest is on a CPU again: only
    // then has it seen how long it was away.
    let memory = vm.guest_ram();
    let steps = read_watch(&memory)?.steps;
    until(|| Ok(read_watch(&memory)?.steps != steps))?;
    std::thread::sleep(SLICE);
    let watch = read_watch(&memory)?;
    if watch.answered != number {
        return Err(std::io::Error::other("the guest looks at something else").into());
    }
    let cost = Cost {
        pause: clock.micros(watch.longest),
        hold: vm.last_pause().as_secs_f64() * 1e6,
        call,
    };
    Ok((cost, child))
}

const WORDS: usize = size_of::<Watch>() / 8;

fn read_watch(memory: &GuestRam) -> Result<Watch, Failure> {
    let words: [u64; WORDS] = memory
        .read_obj(GuestAddress(page(0)))
        .map_err(std::io::Error::other)?;
    Ok(watch_of(words))
}

fn watch_of([asked, answered, longest, steps]: [u64; WORDS]) -> Watch {
    Watch {
        asked,
        answered,
        longest,
        steps,
    }
}

/// Has the guest look anew; returns the number of that look.
fn reset_watch(memory: &GuestRam) -> Result<u64, Failure> {
    let number = read_watch(memory)?.asked + 1;
    let written = memory.write_obj(number, GuestAddress(page(0)));
    written.map_err(std::io::Error::other)?;
    until(|| Ok(read_watch(memory)?.answered == number))?;
    Ok(number)
}

/// Waits until `there` holds.
fn until(mut there: impl FnMut() -> Result<bool, Failure>) -> Result<(), Failure> {
    let begun = Instant::now();
    while !there()? {
        if begun.elapsed() > Duration::from_secs(10) {
            return Err(std::io::Error::other("the guest does not answer").into());
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// The same by syscalls.
fn floor_fork(bench: &Bench, clock: &TickRate, mib: u64) -> Result<Cost, Failure> {
    let mut template = subject::floor(&bench.host, mib << 20, &touch_everything(mib))?;
    let mut machine = template.in_the_file()?;
    let work = spin(1, 8192);
    machine.ask(work.command, work.args)?;
    let (next, child) = (template.shell()?, template.shell()?);
    let running = Running::start(machine, template.state.clone())?;
    std::thread::sleep(SLICE);
    template.shared.set_word(page(0), 1);
    until(|| Ok(template.shared.word(page(0) + 8) == 1))?;

    let start = Instant::now();
    let next = next.bind(template.private_memory()?)?;
    let child = child.bind(template.private_memory()?)?;
    let asked = Instant::now();
    let old = running.move_to(next)?;
    let hold = asked.elapsed().as_secs_f64() * 1e6;
    template.state.restore(&child.vcpu)?;
    let call = start.elapsed().as_secs_f64() * 1e6;
    std::thread::sleep(20 * SLICE);
    let moved = running.stop()?;
    let watched = watch_of(std::array::from_fn(|word| {
        moved.memory.word(page(0) + 8 * word as u64)
    }));
    // The file is as the guest left it.
    if watched.steps == template.shared.word(page(0) + 24) {
        return Err(std::io::Error::other("the guest did not run after its move").into());
    }
    let pause = clock.micros(watched.longest);
    drop((moved, old, child));
    Ok(Cost { pause, hold, call })
}
