//! An ordered map from page offsets to frames, for memory that is cloned.
//!
//! A memory object owns a [`PageList`]. For each page of the object the list
//! says one of three things:
//!
//! - **Empty**: nothing is known here. What that means is the owner's business:
//!   zero for a root, "ask the parent" for a clone.
//! - **Page**: this object owns that frame.
//! - **Marker**: the content is zero. *Do not ask the parent.*
//!
//! ```text
//!   parent   │ P 7 │ P 8 │ P 9 │     │ P 3 │     │
//!   child    │ P 5 │  M  │     │  M  │     │     │
//!            └─────┴─────┴─────┴─────┴─────┴─────┘
//!   child reads  5     0     9     0     3     0
//! ```
//!
//! A marker is not a hole. If the child's second page were merely dropped when
//! it is found to be zero, the parent's frame 8 would show through: old data
//! that the child had overwritten. Only what has nothing beneath it may become
//! Empty.
//!
//! ```
//! use pagelist::{FrameId, PageList, PageOrMarker, SlotRef};
//!
//! let mut parent = PageList::new();
//! parent.insert_frames(0, FrameId::new(7), 3)?; // frames 7, 8, 9
//!
//! let mut child = PageList::new();
//! child.insert(0, PageOrMarker::page(FrameId::new(5)))?;
//! child.insert(0x1000, PageOrMarker::marker())?;
//!
//! // What the child sees: its own entry first.
//! let read = |offset| match child.get(offset) {
//!     SlotRef::Empty => parent.get(offset).frame(),
//!     own => own.frame(),
//! };
//! assert_eq!(read(0), Some(FrameId::new(5)));
//! assert_eq!(read(0x1000), None);
//! assert_eq!(read(0x2000), Some(FrameId::new(9)));
//!
//! // The parent goes away, and what the child could see of it moves in.
//! let mut freed = Vec::new();
//! child.merge_from(
//!     &mut parent,
//!     0,
//!     0x10000,
//!     |_, frame| freed.push(frame.index()),
//!     |_, page| page,
//! )?;
//! assert_eq!(freed, [7, 8]);
//! assert_eq!(child.get(0x2000), SlotRef::Page(FrameId::new(9)));
//!
//! child.remove_all_pages(|frame| freed.push(frame.index()));
//! assert_eq!(freed, [7, 8, 5, 9]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it costs
//!
//! Four bytes a page and half a byte of index where memory is dense; 272 bytes
//! and 16 of index for a page on its own. A run of markers costs two slots,
//! however long it is. Merging moves nodes, or blocks of them, and allocates
//! nothing. `docs/page-list.md` has the structure and the figures.
//!
//! # Ownership
//!
//! Frames are numbers to a list; it cannot free them. So they come in as
//! [`PageOrMarker`], which can be moved but not copied, and every one of them
//! goes out again exactly once: returned, or handed to a callback. Dropping
//! something that still owns a frame is a bug. Debug builds with the `std`
//! feature (the default) panic; otherwise the frame leaks.
//!
//! # Errors
//!
//! Offsets are bytes and must be page-aligned; a range ends at or after its
//! start and at or below [`PageList::limit`]. What breaks that comes back as an
//! error that names the value, and so does an allocation that fails. In each
//! case the list has not changed.
//!
//! # Threads
//!
//! A list has no lock. It is `Send` and `Sync`; whoever owns the clone tree
//! decides who may change it.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod block;
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
