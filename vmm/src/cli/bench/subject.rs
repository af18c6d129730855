//! What is measured: the product, through its public interface, with the guest
//! `worker` in it.

use std::sync::Arc;

use guest_images::Guest;
use guest_images::abi::BOOT_INFO;
use guest_images::worker::{Mailbox, command};
use vm_memory::{Bytes, GuestAddress};
use vmm::{Event, Host, Kernel, PAGE_SIZE, Vm, VmBuilder, VmError};

use super::floor::template::Template;
use crate::cli::exit::Failure;

/// Something for the guest to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub(super) command: u64,
    pub(super) args: [u64; 3],
}

/// The guest is about to note the time and be ready again, and so is every copy
/// of it: their first exit comes a few instructions after their first.
pub(super) const READY_AGAIN: Work = Work {
    command: command::AGAIN,
    args: [0; 3],
};

/// Nothing to speak of. It is left for every guest, so that copies of it which
/// are not told anything else do not repeat what made the template.
pub(super) const NOTHING: Work = Work {
    command: command::READ,
    args: [BOOT_INFO, 0, 0],
};

/// Where the guest finds what it is to do.
pub(super) fn mailbox() -> u64 {
    Guest::Worker.free_start()
}

/// Where it says what came of that.
pub(super) fn result() -> u64 {
    mailbox() + std::mem::offset_of!(Mailbox, result) as u64
}

/// The address of page `page` of the memory that the guest may be told to use.
pub(super) fn page(page: u64) -> u64 {
    mailbox() + (16 + page) * PAGE_SIZE
}

/// Fill `pages` pages so that none of them is zero.
pub(super) fn fill(pages: u64) -> Work {
    Work {
        command: command::FILL,
        args: [page(0), pages, 1],
    }
}

/// Write one word to each of `pages` pages, from page `first` on.
pub(super) fn touch(first: u64, pages: u64) -> Work {
    Work {
        command: command::TOUCH,
        args: [page(first), pages, 7],
    }
}

/// A paused VM of `bytes` that has just been built.
fn build(host: &Arc<Host>, bytes: u64) -> Result<Vm, Failure> {
    let kernel = Kernel::from_bytes(Guest::Worker.image())?;
    let builder = VmBuilder::new(Arc::clone(host), kernel);
    Ok(builder.memory_bytes(bytes).build()?)
}

/// A VM of `bytes` whose guest has done `work` and is ready.
pub(super) fn boot(host: &Arc<Host>, bytes: u64, work: &[Work]) -> Result<Vm, Failure> {
    let vm = build(host, bytes)?;
    run_to_ready(&vm)?;
    for work in work {
        ask(&vm, *work)?;
        run_to_ready(&vm)?;
    }
    ask(&vm, NOTHING)?;
    Ok(vm)
}

/// The same guest in the same state, made by plain syscalls.
pub(super) fn floor(host: &Arc<Host>, bytes: u64, work: &[Work]) -> Result<Template, Failure> {
    Ok(Template::boot(&build(host, bytes)?, bytes, work)?)
}

/// Writes what the guest is to do when it runs next.
pub(super) fn ask(vm: &Vm, work: Work) -> Result<(), Failure> {
    let [a, b, c] = work.args;
    let words = [work.command, a, b, c, 0];
    let memory = vm.guest_ram();
    let written = memory.write_obj(words, GuestAddress(mailbox()));
    written.map_err(|error| std::io::Error::other(error).into())
}

/// Lets the guest run until it is ready.
pub(super) fn run_to_ready(vm: &Vm) -> Result<(), Failure> {
    match vm.run()? {
        Event::Ready => Ok(()),
        other => Err(VmError::Ended(other).into()),
    }
}
