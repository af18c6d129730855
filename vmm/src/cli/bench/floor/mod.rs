//! The bare syscalls that the kernel forces on anyone who wants the same: what
//! the product is held against. Nothing here uses the product, but for the
//! bytes that its loader puts into a new guest's memory.
//!
//! * [`memory`]: mappings of guest memory, and what is dirty in them
//! * [`state`]: a vCPU's registers, in and out
//! * [`machine`]: a VM of one vCPU around them
//! * [`entry`]: a first entry of it, ahead
//! * [`template`]: a guest that is ready, to be copied
//! * [`moving`]: a guest that runs, and moves to another VM
//! * [`process`]: fork(2); [`ticks`]: the clock that guests see

mod entry;
pub(super) mod machine;
pub(super) mod memory;
pub(super) mod moving;
pub(super) mod process;
pub(super) mod state;
pub(super) mod template;
pub(super) mod ticks;
