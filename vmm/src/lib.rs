//! A KVM hypervisor that forks running virtual machines.
//!
//! ```text
//!   Vm ── handle: run, pause, fork, snapshot, reset, stats
//!    │
//!    ├─ shell    the VM as KVM knows it: vCPUs, local APICs, memslots.
//!    │           A VM can move to another one while its owner holds on to it
//!    ├─ RAM      guestmem: a leaf of a clone tree, and its window
//!    ├─ devices  plain data, saved and restored whole
//!    └─ limits   how much memory it and its family may have committed
//! ```
//!
//! ```no_run
//! use vmm::{Event, Host, Kernel, VmBuilder};
//!
//! let kernel = Kernel::from_file("guest.bin".as_ref())?;
//! let template = VmBuilder::new(Host::open()?, kernel).build()?;
//! assert_eq!(template.run()?, Event::Ready); // boot once
//! let snapshot = template.snapshot()?;
//! for request in 0..3 {
//!     let vm = snapshot.fork()?; // a VM of its own per request
//!     println!("request {request}: {:?}", vm.run()?);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Guests are described in `docs/guest-abi.md`. Everything the `vmm` command
//! does it does through this library.

mod background;
mod boot;
mod builder;
mod control;
mod devices;
mod error;
mod event;
mod flat_layers;
mod huge_layers;
mod kvm;
mod limits;
mod machine;
mod page_tables;
mod pool;
mod snapshot;
mod vcpu;
mod vm;

pub use boot::{BootError, ElfError, Kernel, KernelError, LoadError};
pub use builder::{BuildError, DEFAULT_MEMORY_BYTES, VmBuilder};
pub use devices::ConsoleMode;
pub use error::{ShellError, StateError, VmError};
pub use event::{Access, Event, Fault, FaultKind};
pub use guestmem::{
    Attribution, Backing, CloneTree, GuestRam, LayoutError, MemoryError, PAGE_SIZE, RamStats,
    TreeStats,
};
pub use huge_layers::HugeLayers;
pub use kvm::host::{Host, HostError};
pub use limits::{Limits, LimitsError, MemoryLimit, Notice, Whose};
pub use snapshot::Snapshot;
pub use vm::{Vm, VmStats, ZeroScan};
