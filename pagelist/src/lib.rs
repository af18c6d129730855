//! Ordered, page-granular map with Empty, Page and Marker slots.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod check;
mod edit;
mod error;
mod fill;
mod fuse;
mod index;
mod leak;
mod list;
mod merge;
mod point;
mod rebuild;
mod slab;
mod slot;
mod splice;
mod visit;
mod walk;

pub use error::{
    EditError, FramesError, FramesErrorKind, InsertError, InsertFramesError, MergeError,
    RangeError, RemovePagesError, SkewError, SlotError, SpliceDone, WalkError,
};
pub use list::PageList;
pub use point::SlotGuard;
pub use slot::{FrameId, PageOrMarker, SlotRef};
pub use splice::PageSpliceList;
pub use visit::{Visit, VisitResult};
pub use walk::{Cursor, Gaps, Iter, Run, RunKind, Runs};

/// Bytes in a page.
pub const PAGE_SIZE: u64 = 4096;

/// Bytes of offsets that a node of 16 slots spans.
pub const NODE_SPAN: u64 = 16 * PAGE_SIZE;

/// No list reaches this offset, whatever its skew.
///
/// Two node spans are kept back from the end of the 64-bit space, so that adding
/// a skew to an offset and rounding up to a node never wraps.
pub const MAX_SIZE: u64 = u64::MAX / (2 * NODE_SPAN) * (2 * NODE_SPAN);

const _: () = assert!(MAX_SIZE == 0xFFFF_FFFF_FFFE_0000);
