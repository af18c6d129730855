//! From a kernel image to a vCPU's first instruction.
//!
//! ```text
//!   file ─► Kernel ─► BootPlan ─► load: bytes into guest memory
//!           what it is   where everything goes   └► entry: registers of each vCPU
//!                        (pure; all checks)
//! ```
//!
//! * [`image`]: reading a file, telling flat images from ELF
//! * [`elf`]: the segments of an ELF64 executable
//! * [`plan`]: who lies where in low memory
//! * [`tables`]: page tables, GDT, IDT and TSS as bytes
//! * [`stubs`]: the ring-0 code that flat guests get
//! * [`params`]: Linux's boot parameters, for ELF kernels
//! * [`entry`]: the registers to start with
//!
//! What guests may rely on is in `docs/guest-abi.md`.

mod elf;
mod entry;
mod image;
mod params;
mod plan;
mod stubs;
mod tables;
#[cfg(test)]
mod tests;

pub use elf::ElfError;
pub(crate) use entry::{Starts, VcpuEntry};
pub use image::{Kernel, KernelError};
pub(crate) use plan::BootPlan;
pub use plan::{BootError, LoadError};
