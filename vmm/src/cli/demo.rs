//! The run without a kernel: the embedded guest boots, is forked while it
//! runs, and every page is accounted for.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use vmm::{Event, PAGE_SIZE, Vm, VmBuilder, VmError};

use super::exit::Failure;

/// Forks to make.
const FORKS: usize = 4;
/// How long everybody runs between two forks.
const SLICE: Duration = Duration::from_millis(20);

/// Runs the counter that `builder` makes, on standard output.
pub(crate) fn run(builder: VmBuilder) -> Result<u8, Failure> {
    let out = &mut io::stdout().lock();
    let booting = Instant::now();
    let root = builder.build()?;
    root.resume()?;
    writeln!(
        out,
        "booted the embedded guest `counter` in {:.2?}",
        booting.elapsed()
    )?;
    root.wait_for(SLICE);

    let mut vms = vec![root];
    for _ in 0..FORKS {
        // The newest VM runs and is forked, so each is one generation deeper.
        let parent = vms.last().expect("the root is there");
        let started = Instant::now();
        let child = parent.fork()?;
        let took = started.elapsed();
        writeln!(
            out,
            "forked VM {} off the running VM {} in {took:.2?}",
            child.number(),
            parent.number()
        )?;
        // Only one runs at a time: the host may have few cores.
        parent.pause()?;
        child.resume()?;
        child.wait_for(SLICE);
        vms.push(child);
    }
    for vm in &vms {
        if let Some(event @ Event::Failed(_)) = vm.wait_for(Duration::ZERO) {
            writeln!(out, "VM {} stopped: {event:?}", vm.number())?;
        }
        vm.pause()?;
        vm.settle()?;
    }
    // Layers keep what all their children have covered until this is called.
    vms[0].tree().reclaim().map_err(VmError::from)?;
    print_accounts(out, &vms)?;
    Ok(0)
}

fn print_accounts(out: &mut impl Write, vms: &[Vm]) -> Result<(), Failure> {
    writeln!(out)?;
    writeln!(out, "VM  layers  sees  alone  shared  markers  charged")?;
    for vm in vms {
        let ram = vm.stats()?.ram;
        writeln!(
            out,
            "{:>2}  {:>6}  {:>4}  {:>5}  {:>6}  {:>7}  {:>6.1} KiB",
            vm.number(),
            ram.depth,
            ram.attribution.pages(),
            ram.attribution.exclusive_pages(),
            ram.attribution.shared_pages(),
            ram.markers,
            ram.attribution.bytes() as f64 / 1024.0,
        )?;
    }
    let tree = vms[0].stats()?.tree;
    writeln!(out)?;
    writeln!(
        out,
        "{} VMs over {} layers see {} pages in {} frames ({} in the file, {} private): {} KiB, {} KiB saved by sharing",
        tree.leaves,
        tree.layers,
        tree.seen_pages,
        tree.frames(),
        tree.file_frames,
        tree.private_frames,
        tree.frames() * PAGE_SIZE / 1024,
        tree.bytes_saved() / 1024,
    )?;
    writeln!(
        out,
        "the kernel counts {} committed pages in the file",
        tree.committed_file_frames
    )?;
    Ok(())
}
