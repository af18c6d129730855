//! Private pages of a window that are not its VM's content: copies of what lies
//! below the VM, made by a freeze, a reset, or for want of mappings.
//!
//! The guest writes them without our noticing, so a copy is one only as long
//! as it still equals what it was copied from. That is noted with it, so that
//! finding out needs no walk up the tree.

use std::ops::Range;

use pagelist::{FrameId, PageList, PageOrMarker, Run, RunKind, SlotRef};

use crate::error::MemoryError;
use crate::layout::{PAGE_SIZE, PageIdx};
use crate::pages::ByPage;
use crate::tree::{Seen, each_page};

/// The copies of one window.
///
/// A list of frames that it does *not* own: each is one that the VM sees below
/// itself, and so stays allocated. A marker stands for a copy of zero.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    of: PageList,
}

impl Copies {
    /// Notes that `page` is a copy of what `seen` says.
    pub(crate) fn note(&mut self, page: PageIdx, seen: Seen) -> Result<(), MemoryError> {
        let entry = match seen {
            Seen::Frame(frame) => PageOrMarker::page(frame),
            Seen::Zero | Seen::Nothing => PageOrMarker::marker(),
        };
        self.put(page, entry)
    }

    /// The same for a run of pages, the first of which is a copy of what `first`
    /// says, the others of the frames that follow. O(log n) if that is what was
    /// noted last, as it is at a reset to where the last one was.
    pub(crate) fn note_run(&mut self, pages: Range<u64>, first: Seen) -> Result<(), MemoryError> {
        let kind = match first {
            Seen::Frame(first) => RunKind::Frames { first },
            Seen::Zero | Seen::Nothing => RunKind::Marker,
        };
        let run = Run {
            start: pages.start * PAGE_SIZE,
            end: pages.end * PAGE_SIZE,
            kind,
        };
        if self.of.runs_in(pages.clone()).next() == Some(run) {
            return Ok(());
        }
        each_page(pages, first).try_for_each(|(page, seen)| self.note(page, seen))
    }

    /// Makes sure that noting `page` cannot fail afterwards. The page is noted
    /// as a copy of `frame` until then.
    pub(crate) fn reserve(&mut self, page: PageIdx, frame: FrameId) -> Result<(), MemoryError> {
        self.put(page, PageOrMarker::page(frame))
    }

    /// What `page` was copied from; `None` if it is no copy.
    pub(crate) fn source(&self, page: PageIdx) -> Option<Seen> {
        match self.of.get(page.byte_offset()) {
            SlotRef::Empty => None,
            SlotRef::Page(frame) => Some(Seen::Frame(frame)),
            SlotRef::Marker => Some(Seen::Zero),
        }
    }

    /// `pages` are no copies any more. That cannot fail: where there is no memory
    /// to cut a run of them, the rest of that run is forgotten as well. Who
    /// settles next finds pages of the VM's own there, which happen to be what
    /// lies below.
    pub(crate) fn forget(&mut self, pages: Range<PageIdx>) {
        let (start, end) = (pages.start.byte_offset(), pages.end.byte_offset());
        // The frames are other lists'.
        if self.of.clear(start, end, |_, _| {}).is_ok() {
            return;
        }
        let cut = self.of.runs_in(0..self.of.limit() / PAGE_SIZE);
        let cut = cut.filter(|run| run.start < end && start < run.end);
        let (start, end) = cut.fold((start, end), |(start, end), run| {
            (start.min(run.start), end.max(run.end))
        });
        let cleared = self.of.clear(start, end, |_, _| {});
        cleared.expect("whole runs are forgotten without memory");
    }

    /// All pages noted, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = PageIdx> + '_ {
        self.of
            .iter()
            .map(|(offset, _)| PageIdx::containing(offset))
    }

    fn put(&mut self, page: PageIdx, entry: PageOrMarker) -> Result<(), MemoryError> {
        let (before, result) = match self.of.insert(page.byte_offset(), entry) {
            Ok(before) => (before, Ok(())),
            Err(refused) => (refused.into_entry(), Err(MemoryError::Bookkeeping)),
        };
        // Either frame is another list's.
        let _frame = before.take_frame();
        result
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        // Gives up the frames, which are others' to free.
        self.of.remove_all_pages(|_| {});
    }
}
