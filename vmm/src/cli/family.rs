//! Running a VM from the command line, and whatever it forks into.
//!
//! Each VM has a thread that waits for what stops it. The command ends when
//! all of them have; its exit code is that of the first VM.

use std::io::Read;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};

use vmm::{Event, Vm};

use super::exit::{Failure, GUEST_FAILED};

/// Runs `root` and its descendants to their end.
pub(crate) fn run(root: Vm, max_forks: u32) -> Result<u8, Failure> {
    let root = Arc::new(root);
    feed_stdin(&root);
    let forks = Arc::new(Forks {
        left: AtomicU32::new(max_forks),
    });
    let (alive, all_gone) = mpsc::channel();
    let code = serve(&root, &forks, &alive);
    drop(alive);
    // Nothing is sent: this returns when every descendant's thread has ended.
    let _ = all_gone.recv();
    code
}

/// How many forks may still be made.
struct Forks {
    left: AtomicU32,
}

impl Forks {
    fn take(&self) -> bool {
        let less = |left: u32| left.checked_sub(1);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok()
    }
}

/// Runs one VM to its end; returns its exit code.
fn serve(vm: &Vm, forks: &Arc<Forks>, alive: &mpsc::Sender<()>) -> Result<u8, Failure> {
    loop {
        match vm.run()? {
            Event::Exited(code) => return Ok(code),
            Event::Failed(fault) => {
                eprintln!("vmm: VM {}: {fault}", vm.number());
                return Ok(GUEST_FAILED);
            }
            Event::ForkRequest if !forks.take() => {
                log::warn!(
                    "VM {}: a fork is refused: --max-forks are made",
                    vm.number()
                );
            }
            Event::ForkRequest => match vm.fork() {
                Ok(child) => start(child, forks, alive),
                Err(error) => log::warn!("VM {}: a fork is refused: {error}", vm.number()),
            },
            Event::Ready => log::info!("VM {} is ready", vm.number()),
            Event::Paused => {}
        }
    }
}

/// Runs `child` on a thread of its own.
fn start(child: Vm, forks: &Arc<Forks>, alive: &mpsc::Sender<()>) {
    let (forks, alive) = (Arc::clone(forks), alive.clone());
    let number = child.number();
    let body = move || match serve(&child, &forks, &alive) {
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
