//! Running a VM from the command line, and whatever it forks into.
//!
//! Each VM has a thread that waits for what stops it. The command ends when
//! all of them have; its exit code is that of the first VM.

use std::io::Read;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm::{Event, Vm, Whose};

use super::exit::{Failure, GUEST_FAILED, HOST, OVER_LIMIT};

/// Runs `root` and its descendants to their end.
pub(crate) fn run(root: Vm, max_forks: u32, zero_scan: u64) -> Result<u8, Failure> {
    let root = Arc::new(root);
    feed_stdin(&root);
    let limits = Arc::new(Limits {
        forks_left: AtomicU32::new(max_forks),
        zero_scan,
    });
    let (alive, all_gone) = mpsc::channel();
    scan_zeros(&root, zero_scan);
    let notices = print_notices(&root);
    let code = serve(&root, &limits, &alive);
    drop(alive);
    // Its memory is given back now, and not when all have ended.
    drop(root);
    // Nothing is sent: this returns when every descendant's thread has ended.
    let _ = all_gone.recv();
    if let Some(notices) = notices {
        // It ends with the family, when it has printed what there was.
        let _ = notices.join();
    }
    code
}

/// What holds for the whole family.
struct Limits {
    /// Forks that may still be made.
    forks_left: AtomicU32,
    /// Pages a second to look at for zeros, in each VM.
    zero_scan: u64,
}

impl Limits {
    fn take_fork(&self) -> bool {
        let less = |left: u32| left.checked_sub(1);
        let left = &self.forks_left;
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok()
    }
}

/// Runs one VM to its end; returns its exit code.
fn serve(vm: &Vm, limits: &Arc<Limits>, alive: &mpsc::Sender<()>) -> Result<u8, Failure> {
    loop {
        match vm.run()? {
            Event::Exited(code) => return Ok(code),
            Event::Failed(fault) => {
                eprintln!("vmm: VM {}: {fault}", vm.number());
                return Ok(GUEST_FAILED);
            }
            // Running it again gives back what nobody sees, and says if that is
            // not enough.
            Event::MemoryLimit(limit) if limit.whose == Whose::Family => {}
            // Nobody is here to raise a limit or to find memory.
            Event::MemoryLimit(limit) => {
                eprintln!("vmm: VM {}: stopped: {limit}", vm.number());
                return Ok(OVER_LIMIT);
            }
            Event::OutOfMemory(fault) => {
                eprintln!("vmm: VM {}: out of host memory: {fault}", vm.number());
                return Ok(HOST);
            }
            Event::ForkRequest if !limits.take_fork() => {
                log::warn!(
                    "VM {}: a fork is refused: --max-forks are made",
                    vm.number()
                );
            }
            Event::ForkRequest => match vm.fork() {
                Ok(child) => start(child, limits, alive),
                Err(error) => log::warn!("VM {}: a fork is refused: {error}", vm.number()),
            },
            Event::Ready => log::info!("VM {} is ready", vm.number()),
            Event::Paused => {}
        }
    }
}

/// Runs `child` on a thread of its own.
fn start(child: Vm, limits: &Arc<Limits>, alive: &mpsc::Sender<()>) {
    let (limits, alive) = (Arc::clone(limits), alive.clone());
    let number = child.number();
    let child = Arc::new(child);
    scan_zeros(&child, limits.zero_scan);
    let body = move || match serve(&child, &limits, &alive) {
        Ok(code) => log::info!("VM {number} ended with {code}"),
        Err(failure) => eprintln!("vmm: VM {number}: {}", failure.message()),
    };
    let spawned = std::thread::Builder::new()
        .name(format!("vm{number}"))
        .spawn(body);
    if let Err(error) = spawned {
        eprintln!("vmm: VM {number}: no thread for it: {error}");
    }
}

/// Says when soft limits are passed, until the family has gone.
fn print_notices(vm: &Vm) -> Option<JoinHandle<()>> {
    let notices = vm.notices();
    let body = move || notices.iter().for_each(|notice| eprintln!("vmm: {notice}"));
    let spawned = std::thread::Builder::new()
        .name("notices".into())
        .spawn(body);
    let failed = |error| log::warn!("no thread to tell of memory limits: {error}");
    spawned.map_err(failed).ok()
}

/// Passes standard input on to the VM's serial port, in the background. The
/// process does not wait for more of it when the VM has ended.
fn feed_stdin(vm: &Arc<Vm>) {
    let vm = Arc::downgrade(vm);
    let body = move || {
        let mut buffer = [0; 1024];
        let mut stdin = std::io::stdin().lock();
        while let Ok(count @ 1..) = stdin.read(&mut buffer) {
            let Some(vm) = vm.upgrade() else { return };
            if vm.feed_input(&buffer[..count]) < count {
                log::warn!("the guest does not read its input; some of it is lost");
            }
        }
    };
    let spawned = std::thread::Builder::new().name("stdin".into()).spawn(body);
    if let Err(error) = spawned {
        log::warn!("no thread for standard input: {error}");
    }
}

/// How often zero pages are looked for, each time among a share of the pages
/// that a second may have.
const SCANS_PER_SECOND: u32 = 20;

/// Looks for zero pages of `vm` in the background until it has gone.
fn scan_zeros(vm: &Arc<Vm>, pages_per_second: u64) {
    if pages_per_second == 0 {
        return;
    }
    let share = pages_per_second.div_ceil(SCANS_PER_SECOND.into());
    let vm = Arc::downgrade(vm);
    let body = move || {
        while let Some(vm) = vm.upgrade() {
            match vm.scan_zeros(share) {
                Ok(scan) => log::trace!("VM {}: {scan:?}", vm.number()),
                Err(error) => return log::warn!("VM {}: zero scan: {error}", vm.number()),
            }
            drop(vm);
            // The pace that was asked for. Not a wait for the VM: that would take
            // its events from whoever serves it.
            std::thread::sleep(Duration::from_secs(1) / SCANS_PER_SECOND);
        }
    };
    let spawned = std::thread::Builder::new()
        .name("zero-scan".into())
        .spawn(body);
    if let Err(error) = spawned {
        log::warn!("no thread to look for zero pages: {error}");
    }
}
