//! The OS edge: every system call and every `unsafe` of this crate.
//!
//! * [`mapping`]: address ranges of our own, and what is mapped into them
//! * [`memfd`]: the sparse file that frames live in
//! * [`pagemap`]: which pages of a range the kernel has made private
//! * [`write_tracking`]: noticing which pages are written
//! * [`fault`]: making any of it fail, in tests
//! * [`page`]: reading, comparing, copying and clearing single pages
//!
//! # Guest memory and Rust's memory model
//!
//! Guest RAM changes behind the compiler's back: a vCPU is a writer that no
//! Rust type knows of. This crate therefore never forms a reference (`&T`,
//! `&[u8]`) to mapped guest memory. It holds raw pointers whose bounds are
//! checked here, moves bytes with `copy_nonoverlapping` or system calls, and
//! hands memory to devices as vm-memory's volatile slices. What is *decided*
//! from bytes read (is this page zero? does it equal its parent's?) is only
//! acted on while the writers are stopped; callers say so with
//! [`Writers`](crate::Writers).

pub(crate) mod fault;
pub(crate) mod mapping;
pub(crate) mod memfd;
pub(crate) mod page;
pub(crate) mod pagemap;
pub(crate) mod write_tracking;
