//! What one page position holds.
//!
//! Three views of the same thing: [`SlotRef`] says what is there and may be
//! copied, [`PageOrMarker`] *owns* it and may only be moved, and `Slot` is the
//! four bytes it is stored in.
//!
//! ```text
//!   31        30 ……………………………………………… 0
//!  ┌─────────┬─────────────────────────┐   0      vacant: read the run it lies in
//!  │ markers │ what this slot says     │   1      explicit Marker
//!  │ follow  │                         │   2      explicit Empty (a gap inside markers)
//!  └─────────┴─────────────────────────┘   3 + n  Page(frame n)
//! ```
//!
//! A *vacant* slot says nothing by itself: the nearest occupied slot before it
//! tells, by its top bit, whether the vacant stretch behind it is made of
//! markers or is empty. So a run of markers of any length costs its two ends,
//! and a page stored into the middle of one costs nothing beyond its own slot.

use core::fmt;

use crate::leak;

/// A frame: the index of a page of backing memory in its owner's arena.
///
/// The list never looks behind the number. Two encodings are kept back for
/// markers and gaps and one bit for intervals, so the largest is
/// [`FrameId::MAX`].
///
/// ```
/// use pagelist::FrameId;
///
/// assert_eq!(FrameId::new(7).index(), 7);
/// assert_eq!(FrameId::try_new(u32::MAX), None);
/// assert!(FrameId::MAX.index() >= 1 << 30);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameId(u32);

impl FrameId {
    /// The largest frame number a slot can hold, 2^31 − 4.
    pub const MAX: FrameId = FrameId(!Slot::MARKERS_FOLLOW - Slot::FIRST_FRAME);

    /// The frame with this index.
    ///
    /// # Panics
    /// If `index` is above [`FrameId::MAX`]; [`FrameId::try_new`] reports it instead.
    pub const fn new(index: u32) -> Self {
        match Self::try_new(index) {
            Some(frame) => frame,
            None => panic!("frame index above FrameId::MAX"),
        }
    }

    /// The frame with this index, or `None` above [`FrameId::MAX`].
    pub const fn try_new(index: u32) -> Option<Self> {
        if index > Self::MAX.0 {
            None
        } else {
            Some(FrameId(index))
        }
    }

    /// The index it was made from.
    pub const fn index(self) -> u32 {
        self.0
    }
}

impl fmt::Debug for FrameId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frame {}", self.0)
    }
}

impl fmt::Display for FrameId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What a slot holds, as seen from outside: a copy that owns nothing.
///
/// ```
/// use pagelist::{FrameId, PageOrMarker, SlotRef};
///
/// let entry = PageOrMarker::page(FrameId::new(3));
/// assert_eq!(entry.view(), SlotRef::Page(FrameId::new(3)));
/// assert_eq!(entry.take_frame(), Some(FrameId::new(3)));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum SlotRef {
    /// Nothing here. What that means (zero, or "ask the parent") is the owner's business.
    #[default]
    Empty,
    /// The list owns this frame.
    Page(FrameId),
    /// The content is zero; do not ask the parent.
    Marker,
}

impl SlotRef {
    /// Nothing is stored here.
    pub const fn is_empty(self) -> bool {
        matches!(self, SlotRef::Empty)
    }

    /// The frame stored here, if there is one.
    pub const fn frame(self) -> Option<FrameId> {
        match self {
            SlotRef::Page(frame) => Some(frame),
            SlotRef::Empty | SlotRef::Marker => None,
        }
    }
}

/// An entry on its way into or out of a list: Empty, a Page it owns, or a Marker.
///
/// It can be moved but not copied, so a frame has one owner at a time. Dropping
/// one that still owns a frame is a bug: debug builds with the `std` feature
/// panic, others leak the frame.
///
/// ```
/// use pagelist::{FrameId, PageOrMarker};
///
/// let entry = PageOrMarker::page(FrameId::new(9));
/// assert!(entry.is_page());
/// let frame = entry.take_frame();
/// assert_eq!(frame, Some(FrameId::new(9)));
/// ```
#[must_use = "an entry may own a frame: store it or take the frame out"]
#[derive(Debug, PartialEq, Eq, Default)]
pub struct PageOrMarker(SlotRef);

impl PageOrMarker {
    /// Nothing.
    pub const fn empty() -> Self {
        PageOrMarker(SlotRef::Empty)
    }

    /// A page, owning `frame`.
    pub const fn page(frame: FrameId) -> Self {
        PageOrMarker(SlotRef::Page(frame))
    }

    /// Known zero.
    pub const fn marker() -> Self {
        PageOrMarker(SlotRef::Marker)
    }

    /// What it is.
    pub const fn view(&self) -> SlotRef {
        self.0
    }

    /// Whether it is Empty.
    pub const fn is_empty(&self) -> bool {
        matches!(self.0, SlotRef::Empty)
    }

    /// Whether it owns a frame.
    pub const fn is_page(&self) -> bool {
        matches!(self.0, SlotRef::Page(_))
    }

    /// Whether it is a Marker.
    pub const fn is_marker(&self) -> bool {
        matches!(self.0, SlotRef::Marker)
    }

    /// Hands the frame over to the caller; a Marker or Empty gives `None`.
    pub fn take_frame(self) -> Option<FrameId> {
        self.release().frame()
    }

    /// Moves the entry out, leaving Empty.
    pub fn take(&mut self) -> PageOrMarker {
        core::mem::take(self)
    }

    /// Takes ownership of what `view` names. The caller must own it.
    pub(crate) const fn own(view: SlotRef) -> Self {
        PageOrMarker(view)
    }

    /// Gives up ownership: what was owned is now the caller's to account for.
    pub(crate) fn release(mut self) -> SlotRef {
        core::mem::take(&mut self.0)
    }
}

impl Drop for PageOrMarker {
    #[inline]
    fn drop(&mut self) {
        leak::check(u64::from(self.is_page()), "an entry");
    }
}

/// The four stored bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Slot(u32);

const _: () = assert!(size_of::<Slot>() == 4);

impl Slot {
    const MARKER: u32 = 1;
    const HOLE: u32 = 2;
    const FIRST_FRAME: u32 = 3;
    const MARKERS_FOLLOW: u32 = 1 << 31;

    /// Says nothing; zero so that a fresh node is zeroed memory.
    pub(crate) const VACANT: Slot = Slot(0);

    /// The slot that holds `frame`, with an empty stretch after it.
    #[inline]
    pub(crate) const fn page(frame: FrameId) -> Self {
        Slot(frame.0 + Self::FIRST_FRAME)
    }

    /// The occupied slot that says `view`, and whether markers follow it.
    #[inline]
    pub(crate) const fn explicit(view: SlotRef, markers_follow: bool) -> Self {
        let content = match view {
            SlotRef::Empty => Self::HOLE,
            SlotRef::Marker => Self::MARKER,
            SlotRef::Page(frame) => frame.0 + Self::FIRST_FRAME,
        };
        Slot(content).with_markers_follow(markers_follow)
    }

    #[inline]
    pub(crate) const fn is_vacant(self) -> bool {
        self.0 == 0
    }

    #[inline]
    const fn content(self) -> u32 {
        self.0 & !Self::MARKERS_FOLLOW
    }

    #[inline]
    pub(crate) const fn is_page(self) -> bool {
        self.content() >= Self::FIRST_FRAME
    }

    #[inline]
    pub(crate) const fn frame(self) -> Option<FrameId> {
        match self.content().checked_sub(Self::FIRST_FRAME) {
            Some(index) => Some(FrameId(index)),
            None => None,
        }
    }

    /// The frame of a page that no markers follow: all that most lookups need,
    /// in one comparison.
    #[inline]
    pub(crate) const fn plain_frame(self) -> Option<FrameId> {
        if self.0.wrapping_sub(Self::FIRST_FRAME) <= FrameId::MAX.0 {
            Some(FrameId(self.0 - Self::FIRST_FRAME))
        } else {
            None
        }
    }

    /// What the slot itself says; Empty for a vacant one.
    #[inline]
    pub(crate) const fn view(self) -> SlotRef {
        match self.content() {
            Self::MARKER => SlotRef::Marker,
            0 | Self::HOLE => SlotRef::Empty,
            page => SlotRef::Page(FrameId(page - Self::FIRST_FRAME)),
        }
    }

    /// Whether the vacant stretch after this slot is made of markers.
    #[inline]
    pub(crate) const fn markers_follow(self) -> bool {
        self.0 & Self::MARKERS_FOLLOW != 0
    }

    #[inline]
    pub(crate) const fn with_markers_follow(self, follow: bool) -> Self {
        if follow {
            Slot(self.0 | Self::MARKERS_FOLLOW)
        } else {
            Slot(self.content())
        }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tail = if self.markers_follow() {
            " + markers"
        } else {
            ""
        };
        match self.content() {
            0 => write!(f, "vacant{tail}"),
            _ => write!(f, "{:?}{tail}", self.view()),
        }
    }
}
