//! A fork server: boot once, fork per request, drop.
//!
//! `cargo run --release --example fork_server [REQUESTS [WARM]]`
//!
//! The guest boots and says that it is ready; that is the snapshot. Every
//! request gets a VM of its own, which starts where the snapshot was taken and
//! shares every page that it does not write. `WARM` forks (2) are kept ready for
//! requests to come; with 0 each is made when it is asked for.

use std::time::Instant;

use guest_images::Guest;
use vmm::{Event, Host, Kernel, VmBuilder};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let requests: usize = std::env::args().nth(1).map_or(Ok(20), |arg| arg.parse())?;
    let kernel = Kernel::from_bytes(Guest::Hello.image())?;
    let template = VmBuilder::new(Host::open()?, kernel).build()?;
    let event = template.run()?;
    if event != Event::Ready {
        return Err(format!("the guest did not get ready: {event:?}").into());
    }
    let snapshot = template.snapshot()?;
    let warm = std::env::args().nth(2).map_or(Ok(2), |arg| arg.parse())?;
    snapshot.keep_warm(warm);

    let (mut forks, mut runs) = (Vec::new(), Vec::new());
    for request in 0..requests {
        // Requests come one by one here, and not as fast as they can.
        snapshot.wait_warm()?;
        let started = Instant::now();
        let vm = snapshot.fork()?;
        forks.push(started.elapsed());
        let started = Instant::now();
        let event = vm.run()?;
        runs.push(started.elapsed());
        let output = String::from_utf8_lossy(&vm.output()).into_owned();
        println!("request {request}: VM {} {event:?} {output:?}", vm.number());
    }
    for (what, times) in [("fork", &mut forks), ("run to the end", &mut runs)] {
        times.sort_unstable();
        if let (Some(least), Some(median)) = (times.first(), times.get(times.len() / 2)) {
            println!("{what}: {least:.1?} at least, {median:.1?} in the middle");
        }
    }
    let tree = template.stats()?.tree;
    println!("{} frames are in use by {} VM", tree.frames(), tree.leaves);
    Ok(())
}
