//! What can go wrong, one small enum for each kind of operation.
//!
//! Every error names the value that was refused. The list is unchanged.

use alloc::vec::Vec;

use crate::slot::{FrameId, PageOrMarker};
use crate::{MAX_SIZE, PAGE_SIZE};

/// Why a range of offsets was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError {
    /// A start, end or length that is not a whole number of pages.
    #[error("offset {0:#x} is not a multiple of {PAGE_SIZE}: round it to a page boundary")]
    Unaligned(u64),
    /// An end before its start.
    #[error("range ends at {end:#x}, before its start {start:#x}: swap or shorten it")]
    Reversed {
        /// Where it starts.
        start: u64,
        /// Where it ends.
        end: u64,
    },
    /// An end past what a list can hold.
    #[error(
        "offset {end:#x} is past the limit {limit:#x} of this list: stay at or below {MAX_SIZE:#x} less its skew"
    )]
    PastLimit {
        /// The end that was asked for; saturated if it does not fit 64 bits.
        end: u64,
        /// The largest end this list allows.
        limit: u64,
    },
}

/// Why a slot could not be had for writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SlotError {
    /// The offset is not that of a page.
    #[error("offset {0:#x} is not a multiple of {PAGE_SIZE}: round it to a page boundary")]
    Unaligned(u64),
    /// The offset is past what a list can hold.
    #[error("page at {offset:#x} is past the limit {limit:#x} of this list: stay below it")]
    PastLimit {
        /// The offset that was asked for.
        offset: u64,
        /// The first offset that is too large for this list.
        limit: u64,
    },
    /// No memory for the node.
    #[error("out of memory for the node of the page at {0:#x}: free some and try again")]
    OutOfMemory(u64),
}

/// Why an entry was not stored. It owns the entry: take it back.
///
/// ```
/// use pagelist::{FrameId, PageList, PageOrMarker, SlotError};
///
/// let mut list = PageList::new();
/// let refused = list
///     .insert(0x123, PageOrMarker::page(FrameId::new(1)))
///     .unwrap_err();
/// assert_eq!(refused.reason(), SlotError::Unaligned(0x123));
/// assert_eq!(refused.into_entry().take_frame(), Some(FrameId::new(1)));
/// ```
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
#[error("entry not stored: {reason}")]
pub struct InsertError {
    #[source]
    pub(crate) reason: SlotError,
    pub(crate) entry: PageOrMarker,
}

impl InsertError {
    /// Why.
    pub fn reason(&self) -> SlotError {
        self.reason
    }

    /// The entry that was not stored.
    pub fn into_entry(self) -> PageOrMarker {
        self.entry
    }
}

/// Why a range could not be marked, cleared or taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EditError {
    /// The range itself is at fault.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// No memory for the nodes at the ends of the range.
    #[error("out of memory at an end of {start:#x}..{end:#x}: free some and try again")]
    OutOfMemory {
        /// Where the range starts.
        start: u64,
        /// Where it ends.
        end: u64,
    },
}

/// Why a run of frames was not stored. None of them was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InsertFramesError {
    /// The range itself is at fault.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// One of the positions holds a page already.
    #[error("page at {offset:#x} already holds frame {frame}: take it out first")]
    Occupied {
        /// The first such position.
        offset: u64,
        /// The frame it holds.
        frame: FrameId,
    },
    /// The run reaches past the last frame number.
    #[error("{nr_pages} frames from {first} reach past the last, {last}: use smaller frame numbers", last = FrameId::MAX)]
    FrameNumbers {
        /// The first frame of the run.
        first: FrameId,
        /// How many were to be stored.
        nr_pages: u64,
    },
    /// No memory for the nodes.
    #[error("out of memory for the nodes of {start:#x}..{end:#x}: free some and try again")]
    OutOfMemory {
        /// Where the range starts.
        start: u64,
        /// Where it ends.
        end: u64,
    },
}

/// Why a walk ended early.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalkError<E> {
    /// The range itself is at fault; no callback was made.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// What the callback failed with.
    #[error("walk ended by its callback: {0}")]
    Callback(E),
}

/// Why [`PageList::remove_pages`](crate::PageList::remove_pages) ended early.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemovePagesError<E> {
    /// The range itself is at fault; no callback was made.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// What the callback failed with.
    #[error("walk ended by its callback: {0}")]
    Callback(E),
    /// No memory for a node to say that the marker at `offset` is one no longer.
    /// From there on the list is unchanged.
    #[error("out of memory to change the marker at {offset:#x}: free some and try again")]
    OutOfMemory {
        /// The first position that could not be changed.
        offset: u64,
        /// What the callback left in the last one it saw.
        entry: PageOrMarker,
    },
}

/// Why two lists cannot be merged. Neither has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// The range of the parent is at fault.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The lists do not agree on slot index.
    #[error(
        "skew {found:#x} where {wanted:#x} is needed to move whole nodes: initialize the list with the skew of its place in the parent"
    )]
    Skew {
        /// The skew that would fit.
        wanted: u64,
        /// The skew of the receiving list.
        found: u64,
    },
}

/// Why a skew could not be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SkewError {
    /// The parent's skew or the offset in it is not a whole number of pages.
    #[error("offset {0:#x} is not a multiple of {PAGE_SIZE}: round it to a page boundary")]
    Unaligned(u64),
    /// The list holds something already.
    #[error("the list holds {0} page(s) and marker(s): set the skew while it is empty")]
    NotEmpty(u64),
}

/// Every position of a splice list was popped already.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("splice list is done: nothing is left to pop at {end:#x}")]
pub struct SpliceDone {
    /// Where it ends.
    pub end: u64,
}

/// What is wrong with the frames for a splice list.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FramesErrorKind {
    /// The range itself is at fault.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// Not one frame a page.
    #[error("{nr_frames} frame(s) for {len:#x} bytes: give one for each {PAGE_SIZE}")]
    Count {
        /// How many frames were given.
        nr_frames: u64,
        /// The length they were given for.
        len: u64,
    },
}

/// Why no splice list was made of some frames. It owns them: take them back.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
#[error("frames not spliced: {kind}")]
pub struct FramesError {
    #[source]
    pub(crate) kind: FramesErrorKind,
    pub(crate) frames: Vec<FrameId>,
}

impl FramesError {
    /// Why.
    pub fn kind(&self) -> FramesErrorKind {
        self.kind
    }

    /// The frames.
    pub fn into_frames(self) -> Vec<FrameId> {
        self.frames
    }
}
