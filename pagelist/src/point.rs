//! Reading, writing and taking single entries.

use crate::PAGE_SIZE;
use crate::error::{InsertError, SlotError};
use crate::list::PageList;
use crate::slot::{PageOrMarker, SlotRef};

impl PageList {
    /// What is stored at `offset`, or `None` where there is not even a node.
    ///
    /// An offset that no page can have, unaligned or past the limit, has no
    /// node. Never allocates.
    ///
    /// ```
    /// use pagelist::{FrameId, PageList, PageOrMarker, SlotRef};
    ///
    /// let mut list = PageList::new();
    /// list.insert(0x1000, PageOrMarker::marker())?;
    /// assert_eq!(list.lookup(0x1000), Some(SlotRef::Marker));
    /// assert_eq!(list.lookup(0x2000), Some(SlotRef::Empty)); // same node
    /// assert_eq!(list.lookup(0x10000), None);
    /// # Ok::<(), pagelist::InsertError>(())
    /// ```
    pub fn lookup(&self, offset: u64) -> Option<SlotRef> {
        let pos = self.pos(offset);
        match self.view(pos) {
            SlotRef::Empty => {
                let slab = self.index.slab(pos)?;
                (!slab.node_is_vacant(pos)).then_some(SlotRef::Empty)
            }
            found => Some(found),
        }
    }

    /// What is stored at `offset`: Empty where nothing is, and for an offset
    /// that no page can have.
    ///
    /// ```
    /// use pagelist::{PageList, SlotRef};
    ///
    /// assert_eq!(PageList::new().get(0x7000), SlotRef::Empty);
    /// ```
    #[inline]
    pub fn get(&self, offset: u64) -> SlotRef {
        self.view(self.pos(offset))
    }

    /// Stores `entry` at `offset` and hands out what was there.
    ///
    /// ```
    /// use pagelist::{FrameId, PageList, PageOrMarker};
    ///
    /// let mut list = PageList::new();
    /// let before = list.insert(0x1000, PageOrMarker::page(FrameId::new(4)))?;
    /// assert!(before.is_empty());
    /// let before = list.insert(0x1000, PageOrMarker::marker())?;
    /// assert_eq!(before.take_frame(), Some(FrameId::new(4)));
    /// # Ok::<(), pagelist::InsertError>(())
    /// ```
    ///
    /// # Errors
    /// If `offset` is unaligned or past the limit, or memory for the node cannot
    /// be had. The error owns the entry.
    #[inline]
    pub fn insert(
        &mut self,
        offset: u64,
        entry: PageOrMarker,
    ) -> Result<PageOrMarker, InsertError> {
        match self.reserve_offset(offset) {
            Ok(pos) => Ok(PageOrMarker::own(self.set(pos, entry.release()))),
            Err(reason) => Err(InsertError { reason, entry }),
        }
    }

    /// The slot at `offset`, for writing; its node is made if need be.
    ///
    /// What can fail happens here, so that filling the slot cannot. A slot that
    /// is not filled is given back when the guard is dropped.
    ///
    /// ```
    /// use pagelist::{FrameId, PageList, PageOrMarker};
    ///
    /// let mut list = PageList::new();
    /// let slot = list.lookup_or_allocate(0x5000)?;
    /// let frame = FrameId::new(1); // got only now that it is sure to find its place
    /// let before = slot.set(PageOrMarker::page(frame));
    /// assert!(before.is_empty());
    ///
    /// drop(list.lookup_or_allocate(0x90_0000)?);
    /// assert_eq!(list.lookup(0x90_0000), None);
    /// # list.remove_all_pages(|_| {});
    /// # Ok::<(), pagelist::SlotError>(())
    /// ```
    ///
    /// # Errors
    /// If `offset` is unaligned or past the limit, or memory cannot be had.
    pub fn lookup_or_allocate(&mut self, offset: u64) -> Result<SlotGuard<'_>, SlotError> {
        let pos = self.reserve_offset(offset)?;
        Ok(SlotGuard { list: self, pos })
    }

    /// Takes out whatever is at `offset` and leaves it Empty. Where nothing is,
    /// or no page can be, that is Empty.
    ///
    /// ```
    /// use pagelist::{FrameId, PageList, PageOrMarker};
    ///
    /// let mut list = PageList::new();
    /// list.insert(0x1000, PageOrMarker::page(FrameId::new(4)))?;
    /// assert_eq!(list.remove_page(0x1000).take_frame(), Some(FrameId::new(4)));
    /// assert!(list.remove_page(0x1000).is_empty());
    /// # Ok::<(), pagelist::InsertError>(())
    /// ```
    ///
    /// # Panics
    /// If the page lies *inside* an interval of markers, so that a slot is
    /// needed to say that it does not any more, and memory for that slot's node
    /// cannot be had. Pages and the ends of intervals have a slot already.
    /// [`PageList::try_remove_page`] reports it instead.
    pub fn remove_page(&mut self, offset: u64) -> PageOrMarker {
        match self.try_remove_page(offset) {
            Ok(entry) => entry,
            Err(error) => panic!("{error}"),
        }
    }

    /// [`PageList::remove_page`], with the list unchanged where that panics.
    ///
    /// # Errors
    /// If memory is needed to take a page out of an interval, and cannot be had.
    pub fn try_remove_page(&mut self, offset: u64) -> Result<PageOrMarker, SlotError> {
        let pos = self.pos(offset);
        if self.view(pos).is_empty() {
            return Ok(PageOrMarker::empty());
        }
        self.reserve(pos)
            .map_err(|_| SlotError::OutOfMemory(offset))?;
        Ok(PageOrMarker::own(self.set(pos, SlotRef::Empty)))
    }

    /// The position of a valid offset, its slot reserved.
    fn reserve_offset(&mut self, offset: u64) -> Result<u64, SlotError> {
        if !offset.is_multiple_of(PAGE_SIZE) {
            return Err(SlotError::Unaligned(offset));
        }
        let limit = self.limit();
        if offset >= limit {
            return Err(SlotError::PastLimit { offset, limit });
        }
        let pos = self.pos(offset);
        self.reserve(pos)
            .map_err(|_| SlotError::OutOfMemory(offset))?;
        Ok(pos)
    }
}

/// A slot that exists and may be filled; see [`PageList::lookup_or_allocate`].
#[must_use = "a slot that is not filled is given back"]
pub struct SlotGuard<'a> {
    list: &'a mut PageList,
    pos: u64,
}

impl SlotGuard<'_> {
    /// What the slot holds.
    pub fn view(&self) -> SlotRef {
        self.list.view(self.pos)
    }

    /// Fills the slot and hands out what was there.
    pub fn set(self, entry: PageOrMarker) -> PageOrMarker {
        PageOrMarker::own(self.list.set(self.pos, entry.release()))
    }
}

impl Drop for SlotGuard<'_> {
    fn drop(&mut self) {
        self.list.give_back(self.pos);
    }
}

impl core::fmt::Debug for SlotGuard<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SlotGuard")
            .field("offset", &self.list.offset(self.pos))
            .field("view", &self.view())
            .finish()
    }
}
