//! A fuzzer's inner loop: run from a snapshot, look, reset, again.
//!
//! `cargo run --release --example reset_loop [ROUNDS]`

use std::time::{Duration, Instant};

use guest_images::Guest;
use vmm::{Event, Host, Kernel, VmBuilder};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rounds: usize = std::env::args().nth(1).map_or(Ok(200), |arg| arg.parse())?;
    let kernel = Kernel::from_bytes(Guest::Hello.image())?;
    let vm = VmBuilder::new(Host::open()?, kernel).build()?;
    let event = vm.run()?;
    if event != Event::Ready {
        return Err(format!("the guest did not get ready: {event:?}").into());
    }
    let snapshot = vm.snapshot()?;

    let mut resets = Vec::new();
    for round in 0..rounds {
        // A fuzzer would write its input into the guest's memory here.
        match vm.run()? {
            Event::Exited(0) => {}
            other => println!("round {round}: {other:?}"),
        }
        let started = Instant::now();
        vm.reset(&snapshot)?;
        resets.push(started.elapsed());
    }
    resets.sort_unstable();
    let at = |share: usize| {
        resets
            .get(resets.len() * share / 100)
            .copied()
            .unwrap_or(Duration::ZERO)
    };
    println!(
        "{rounds} resets: {:.1?} at least, {:.1?} in the middle, {:.1?} at 99 %",
        at(0),
        at(50),
        at(99)
    );
    Ok(())
}
