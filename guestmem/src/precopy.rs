//! Copying ahead of a freeze, while the VM runs.
//!
//! ```text
//!   protect, copy all      the guest runs, and writes some of them again
//!   protect, copy those    … which takes less long, so that there are fewer now
//!   pause                  what has been written since is copied here
//! ```
//!
//! Each page is protected before it is read, so a copy that a write has torn is
//! known to be no good. KVM forgets what it has mapped of a range that is
//! protected, so a guest faults each of its pages in again (10 to 25 µs on software
//! KVM): it is slowed down, and cannot outrun the copying.

use std::ops::Range;
use std::sync::Arc;

use crate::error::MemoryError;
use crate::frame::Stock;
use crate::layout::PageIdx;
use crate::room;
use crate::sys::pagemap::{Pagemap, Wanted};
use crate::sys::write_tracking::WriteTracking;
use crate::window::Window;

/// Pages below which it is not worth it: copying so many takes 0.2 ms, about as
/// long as a VM that moves is held up anyway.
pub(crate) const LEAST: usize = 300;

/// Pages that may be left for the pause. Copying so many takes some 40 µs.
const FEW: usize = 64;

/// Rounds at a time, for a guest that writes so much that there are no fewer.
const MOST_ROUNDS: usize = 3;

/// Copies of a window's pages in frames of a stock.
#[derive(Debug)]
pub(crate) struct Precopy {
    window: Arc<Window>,
    /// By place in the list of pages: whether the frame is what the page was when
    /// it was protected last.
    copied: Vec<bool>,
    tracking: WriteTracking,
}

impl Precopy {
    /// Copies `pages` of `window`, each to its place in `stock`.
    ///
    /// # Errors
    /// If the kernel cannot tell what is written, or not us.
    pub(crate) fn begin(
        pagemap: &Pagemap,
        window: &Arc<Window>,
        pages: &[PageIdx],
        stock: &Stock,
    ) -> Result<Self, MemoryError> {
        let copied = room::collect(pages.iter().map(|_| false))?;
        let failed =
            |source| MemoryError::os("notice writes to memory", pages.len() as u64, source);
        let mut begun = Self {
            window: Arc::clone(window),
            copied,
            tracking: WriteTracking::of(&window.mapping).map_err(failed)?,
        };
        begun.copy_written(pagemap, pages, stock)?;
        Ok(begun)
    }

    /// Copies those of the same pages that have been written since, until few are
    /// left. As long as there are only few they stay unprotected: the guest would have
    /// to fault in all of them again right before it is stopped, and would be away
    /// for as long as that takes and the pause together.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub(crate) fn catch_up(
        &mut self,
        pagemap: &Pagemap,
        pages: &[PageIdx],
        stock: &Stock,
    ) -> Result<(), MemoryError> {
        for _ in 0..MOST_ROUNDS {
            let written = self.places(pagemap, pages, Wanted::Written)?;
            if written.iter().map(Range::len).sum::<usize>() <= FEW {
                break;
            }
            self.copy_written(pagemap, pages, stock)?;
        }
        Ok(())
    }

    fn copy_written(
        &mut self,
        pagemap: &Pagemap,
        pages: &[PageIdx],
        stock: &Stock,
    ) -> Result<(), MemoryError> {
        let written = self.places(pagemap, pages, Wanted::WrittenToProtect)?;
        for at in written.into_iter().flatten() {
            let page = self.window.page(pages[at]).read();
            // Whether it is zero still is asked in the pause.
            self.copied[at] = !page.is_zero();
            if self.copied[at] {
                stock.fill(at, page);
            }
        }
        Ok(())
    }

    /// By place, which of the same pages are in their frames as they are now. Nobody
    /// writes to them any more.
    ///
    /// Only what the kernel says is private and unwritten is taken for that: a page
    /// may have become another without a write, as one of a huge page whose zeros
    /// the kernel has taken back.
    ///
    /// # Errors
    /// As [`catch_up`](Self::catch_up).
    pub(crate) fn unwritten(
        &self,
        pagemap: &Pagemap,
        pages: &[PageIdx],
    ) -> Result<Vec<bool>, MemoryError> {
        let mut unwritten = room::collect(pages.iter().map(|_| false))?;
        for places in self.places(pagemap, pages, Wanted::Unwritten)? {
            unwritten[places.clone()].copy_from_slice(&self.copied[places]);
        }
        Ok(unwritten)
    }

    /// Whether these are copies of what `window` shows.
    pub(crate) fn is_of(&self, window: &Arc<Window>) -> bool {
        Arc::ptr_eq(&self.window, window)
    }

    /// For whoever takes the window down.
    pub(crate) fn into_tracking(self) -> WriteTracking {
        self.tracking
    }

    /// The places of `pages` that are private and `wanted`.
    fn places(
        &self,
        pagemap: &Pagemap,
        pages: &[PageIdx],
        wanted: Wanted,
    ) -> Result<Vec<Range<usize>>, MemoryError> {
        let (Some(first), Some(last)) = (pages.first(), pages.last()) else {
            return Ok(Vec::new());
        };
        let mut places: Vec<Range<usize>> = Vec::new();
        let mut noted = Ok(());
        let mapping = self.window.mapping();
        let all = *first..PageIdx(last.0 + 1);
        let scanned = pagemap.each_wanted_run(mapping, all, wanted, |run| {
            let start = pages.partition_point(|page| *page < run.start);
            let end = pages.partition_point(|page| *page < run.end);
            match places.last_mut() {
                _ if start == end || noted.is_err() => {}
                Some(last) if last.end == start => last.end = end,
                _ => noted = room::push(&mut places, start..end),
            }
        });
        scanned.map_err(|source| {
            MemoryError::os("look for written pages", pages.len() as u64, source)
        })?;
        noted.map(|()| places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backing, PAGE_SIZE, Ram, RamLayout};
    use vm_memory::{Bytes, GuestAddress};

    const PAGES: u64 = 1000;

    fn set(ram: &Ram, page: u64, value: u64) {
        let at = GuestAddress(page * PAGE_SIZE);
        ram.guest_ram().write_obj(value, at).unwrap();
    }

    #[test]
    fn only_what_is_written_after_it_was_copied_is_left_for_the_pause() {
        let layout = RamLayout::new(PAGES * PAGE_SIZE).unwrap();
        let ram = Ram::new(layout, Backing::Anon).unwrap();
        let pages: Vec<_> = (0..PAGES)
            .filter(|page| page % 3 > 0)
            .map(PageIdx)
            .collect();
        for page in &pages {
            set(&ram, page.0, page.0);
        }
        let tree = ram.tree();
        let stock = &mut tree.lock().arena.stock_up(PAGES).unwrap();
        let begun = Precopy::begin(tree.pagemap(), &ram.window, &pages, stock);
        let mut ahead = match begun {
            Ok(ahead) => ahead,
            // Needs Linux 6.7 and leave to use userfaultfd(2).
            Err(error) if std::env::var_os("CI").is_none() => {
                eprintln!("\n*** copying ahead DID NOT RUN: {error}\n");
                tree.lock().arena.unstock(stock);
                return;
            }
            Err(error) => panic!("copying ahead DID NOT RUN: {error}"),
        };
        assert!(ahead.copied.iter().all(|copied| *copied));

        // So many that they are copied again …
        for page in &pages[..100] {
            set(&ram, page.0, 1);
        }
        ahead.catch_up(tree.pagemap(), &pages, stock).unwrap();
        // … and few, some of them for the second time, one of them zero.
        set(&ram, pages[99].0, 0);
        set(&ram, pages[300].0, 2);
        // What is mapped anew counts as written, too.
        ram.window
            .mapping()
            .map_zero(pages[500].0..pages[500].0 + 1)
            .unwrap();
        ram.window
            .mapping()
            .drop_private(pages[520].0..pages[520].0 + 1)
            .unwrap();
        set(&ram, pages[520].0, 3);
        ram.window
            .mapping()
            .drop_private(pages[540].0..pages[540].0 + 1)
            .unwrap();
        let unwritten = ahead.unwritten(tree.pagemap(), &pages).unwrap();
        let left: Vec<_> = (0..pages.len()).filter(|at| !unwritten[*at]).collect();
        assert_eq!(left, [99, 300, 500, 520, 540]);
        tree.lock().arena.unstock(stock);
    }
}
