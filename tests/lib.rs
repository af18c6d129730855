//! What the end-to-end tests have in common.
//!
//! They run real guests on `/dev/kvm`. Where it is absent each test says that
//! it did not run, and fails if `CI` is set: a test that did not run is not a
//! test that passed.

use std::sync::{Arc, OnceLock};

use guest_images::worker::{Mailbox, command};
use guest_images::{Guest, abi};
use vm_memory::{Bytes, GuestAddress};
use vmm::{Event, Host, Kernel, PAGE_SIZE, Vm, VmBuilder};

/// The host, if it can run VMs; else says so in the name of the test.
///
/// # Panics
/// In CI, if there is no usable KVM.
pub fn kvm() -> Option<Arc<Host>> {
    static HOST: OnceLock<Result<Arc<Host>, String>> = OnceLock::new();
    match HOST.get_or_init(|| Host::open().map_err(|error| error.to_string())) {
        Ok(host) => Some(Arc::clone(host)),
        Err(error) => {
            let thread = std::thread::current();
            let test = thread.name().unwrap_or("a test");
            assert!(
                std::env::var_os("CI").is_none(),
                "{test} DID NOT RUN: {error}"
            );
            eprintln!("\n*** {test} DID NOT RUN: {error}\n");
            None
        }
    }
}

/// A builder for `guest`.
pub fn builder(host: &Arc<Host>, guest: Guest) -> VmBuilder {
    let kernel = Kernel::from_bytes(guest.image()).expect("our own guest");
    VmBuilder::new(Arc::clone(host), kernel)
}

/// What the VM has printed.
pub fn output(vm: &Vm) -> String {
    String::from_utf8(vm.output()).expect("our guests print text")
}

/// Runs the VM to the next event that is not `Ready`.
pub fn run_to_end(vm: &Vm) -> Event {
    loop {
        match vm.run().expect("a VM that can run") {
            Event::Ready => {}
            event => return event,
        }
    }
}

/// A VM with the guest `worker`, which does memory work on demand. It is
/// stopped between calls.
#[derive(Debug)]
pub struct Worker {
    /// The VM.
    pub vm: Vm,
}

impl Worker {
    /// Where the memory begins that a worker may be told to use.
    pub fn memory() -> u64 {
        Guest::Worker.free_start() + 16 * PAGE_SIZE
    }

    /// The address of page `page` of that memory.
    pub fn page(page: u64) -> u64 {
        Self::memory() + page * PAGE_SIZE
    }

    /// Boots a worker.
    pub fn boot(builder: VmBuilder) -> Self {
        let vm = builder.build().expect("a VM");
        assert_eq!(vm.run().expect("it runs"), Event::Ready);
        Self { vm }
    }

    /// A fork of this worker.
    pub fn fork(&self) -> Self {
        let vm = self.vm.fork().expect("a fork");
        Self { vm }
    }

    /// Has the guest do something that may stop it otherwise than by being
    /// ready again.
    pub fn start(&self, command: u64, args: [u64; 3]) -> Event {
        let memory = self.vm.guest_ram();
        let mailbox = GuestAddress(Guest::Worker.free_start());
        let words = [command, args[0], args[1], args[2], 0];
        assert_eq!(size_of_val(&words), size_of::<Mailbox>());
        memory
            .write_obj(words, mailbox)
            .expect("the mailbox is RAM");
        self.vm.run().expect("it runs")
    }

    /// What the last command returned.
    pub fn result(&self) -> u64 {
        let mailbox = Guest::Worker.free_start();
        let at = mailbox + std::mem::offset_of!(Mailbox, result) as u64;
        self.vm
            .guest_ram()
            .read_obj(GuestAddress(at))
            .expect("the mailbox is RAM")
    }

    fn call(&self, command: u64, args: [u64; 3]) -> u64 {
        assert_eq!(self.start(command, args), Event::Ready);
        self.result()
    }

    /// Writes a word.
    pub fn write(&self, address: u64, value: u64) {
        self.call(command::WRITE, [address, value, 0]);
    }

    /// Reads a word.
    pub fn read(&self, address: u64) -> u64 {
        self.call(command::READ, [address, 0, 0])
    }

    /// Fills pages with a pattern.
    pub fn fill(&self, start: u64, pages: u64, seed: u64) {
        self.call(command::FILL, [start, pages, seed]);
    }

    /// Fills pages with zeros.
    pub fn zero(&self, start: u64, pages: u64) {
        self.call(command::ZERO, [start, pages, 0]);
    }

    /// A checksum of pages.
    pub fn checksum(&self, start: u64, pages: u64) -> u64 {
        self.call(command::CHECKSUM, [start, pages, 0])
    }

    /// Reports a range free; pages dropped.
    pub fn free(&self, start: u64, len: u64) -> u64 {
        self.call(command::FREE, [start, len, 0])
    }

    /// The generation register.
    pub fn generation(&self) -> u64 {
        self.call(command::GENERATION, [0; 3])
    }

    /// Random bytes.
    pub fn seed(&self) -> u64 {
        self.call(command::SEED, [0; 3])
    }
}

/// The result that means "refused".
pub const REFUSED: u64 = abi::control::REFUSED;
