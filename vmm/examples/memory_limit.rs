//! A guest that commits memory as fast as it can, and how far past its hard
//! limit it gets before it is stopped.
//!
//! `cargo run --release --example memory_limit [ROUNDS]`
//!
//! The guest touches one page after the other. Each round boots it (and forks
//! it, for the second line) with a limit, runs it into that, raises the limit,
//! and runs it into the next.

use std::time::{Duration, Instant};

use guest_images::Guest;
use vmm::{Backing, Event, Host, Kernel, Limits, Vm, VmBuilder};

const MIB: u64 = 1 << 20;
/// The limits of a round, each raised to the next.
const HARD_MIB: [u64; 3] = [32, 128, 512];

/// One stop at a limit.
struct Stop {
    past_bytes: u64,
    bytes_per_ms: f64,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rounds: usize = std::env::args().nth(1).map_or(Ok(10), |arg| arg.parse())?;
    let host = Host::open()?;
    let boot = |backing| -> Result<Vm, Box<dyn std::error::Error>> {
        let kernel = Kernel::from_bytes(Guest::Churn.image())?;
        let vm = VmBuilder::new(host.clone(), kernel)
            .memory_bytes(2 << 30)
            .backing(backing)
            .cmdline("pages=500000")
            .build()?;
        match vm.run()? {
            Event::Ready => Ok(vm),
            event => Err(format!("the guest did not get ready: {event:?}").into()),
        }
    };
    println!("VM               limit  MiB/s  past it: median   most  in time: median    most");
    for (name, backing, forked) in [
        ("root, memfd", Backing::Memfd, false),
        ("fork", Backing::Memfd, true),
        ("root, anonymous", Backing::Anon, false),
    ] {
        let mut stops: [Vec<Stop>; HARD_MIB.len()] = Default::default();
        for _ in 0..rounds {
            let root = boot(backing)?;
            let fork = if forked { Some(root.fork()?) } else { None };
            let vm = fork.as_ref().unwrap_or(&root);
            for (hard_mib, stops) in HARD_MIB.iter().zip(&mut stops) {
                stops.push(run_into(vm, hard_mib * MIB)?);
            }
        }
        for (hard_mib, mut stops) in HARD_MIB.iter().zip(stops) {
            report(name, *hard_mib, &mut stops);
        }
    }
    Ok(())
}

fn run_into(vm: &Vm, hard_bytes: u64) -> Result<Stop, Box<dyn std::error::Error>> {
    vm.set_limits(Limits::hard(hard_bytes))?;
    let before = vm.committed_bytes()?;
    let started = Instant::now();
    match vm.run()? {
        Event::MemoryLimit(_) => {}
        event => return Err(format!("not stopped by its limit: {event:?}").into()),
    }
    let took = started.elapsed();
    let committed = vm.committed_bytes()?;
    Ok(Stop {
        past_bytes: committed.saturating_sub(hard_bytes),
        bytes_per_ms: (committed - before) as f64 / took.as_secs_f64() / 1000.0,
    })
}

fn report(name: &str, hard_mib: u64, stops: &mut [Stop]) {
    stops.sort_unstable_by_key(|stop| stop.past_bytes);
    let (Some(median), Some(most)) = (stops.get(stops.len() / 2), stops.last()) else {
        return;
    };
    let in_time = |stop: &Stop| {
        let ms = stop.past_bytes as f64 / stop.bytes_per_ms;
        Duration::from_secs_f64(ms / 1000.0)
    };
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    println!(
        "{name:<16} {hard_mib:>5}  {:>5.0}  {:>13.2} M {:>4.2} M  {:>13.2?} {:>7.2?}",
        median.bytes_per_ms * 1000.0 / MIB as f64,
        mib(median.past_bytes),
        mib(most.past_bytes),
        in_time(median),
        in_time(most),
    );
}
