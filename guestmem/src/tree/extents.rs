//! Which parts of the file are worth a huge page. Policy only: nothing here
//! asks the kernel.
//!
//! ```text
//!   RAM    │  2 MiB  │  2 MiB  │  2 MiB  │     in line: the same place within
//!   run        ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓           2 MiB in RAM and in the file
//!   file   │   ▓▓▓▓▓▓│▓▓▓▓▓▓▓▓▓│▓▓▓▓     │
//!                    └─ extent ┘
//! ```
//!
//! An extent is as many file pages as fill a huge page, aligned as one. Only
//! such are chosen as
//!
//! * one node holds every page of: a hole would be filled with a frame that
//!   nobody holds, and pages of two nodes come and go at different times;
//! * lie in RAM as they do in the file (root RAM always does): a window can map
//!   nothing else in one piece. Otherwise a first read is half the price at
//!   best, which does not pay for moving the pages.

use std::ops::Range;

use super::view::{Source, ViewRun};
use super::{NodeId, Tree};
use crate::error::MemoryError;
use crate::frame::{FrameHome, home};
use crate::layout::HUGE_PAGE;
use crate::pages::ByPage;
use crate::room;

impl Tree {
    /// The extents that `layer` and its ancestors hold whole and in line, the
    /// layer's own first.
    ///
    /// # Errors
    /// If there is no memory to list them.
    pub(crate) fn whole_extents(&self, layer: NodeId) -> Result<Vec<Range<u64>>, MemoryError> {
        let mut found = Vec::new();
        for reach in self.chain(layer) {
            let node = self.node(reach.node);
            if node.list.page_count() >= HUGE_PAGE {
                let runs = node.list.runs_in(0..node.nr_pages());
                let extents = runs.flat_map(|run| whole_extents(&run.into()));
                room::append(&mut found, extents)?;
            }
        }
        Ok(found)
    }
}

/// The extents of the file within `run`, if they are in line.
fn whole_extents(run: &ViewRun) -> impl Iterator<Item = Range<u64>> + use<> {
    let file_page = match run.source {
        Source::Frames(first) => match home(first) {
            FrameHome::File(page) => Some(page),
            FrameHome::Window(_) => None,
        },
        Source::Zero => None,
    };
    let in_line = |page: &u64| *page % HUGE_PAGE == run.pages.start % HUGE_PAGE;
    let extents = file_page.filter(in_line).map(|start| {
        let end = start + (run.pages.end - run.pages.start);
        start.div_ceil(HUGE_PAGE)..end / HUGE_PAGE
    });
    let extents = extents.into_iter().flatten();
    extents.map(|extent| extent * HUGE_PAGE..(extent + 1) * HUGE_PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{file_frame, private_frame};
    use crate::layout::PageIdx;

    #[track_caller]
    fn check(pages: Range<u64>, source: Source, wanted: &[u64]) {
        let wanted = wanted.iter().map(|start| *start..start + HUGE_PAGE);
        let run = ViewRun { pages, source };
        assert!(whole_extents(&run).eq(wanted), "{run:?}");
    }

    fn at(file_page: u64) -> Source {
        Source::Frames(file_frame(file_page))
    }

    #[test]
    fn only_what_is_full_and_aligned_is_an_extent() {
        check(0..512, at(0), &[0]);
        check(1..513, at(1), &[]);
        check(0..511, at(0), &[]);
        check(1..1024, at(1), &[512]);
        check(500..2050, at(500), &[512, 1024, 1536]);
    }

    #[test]
    fn a_packed_layer_has_extents_where_it_happens_to_be_in_line() {
        check(512..1024, at(4096), &[4096]);
        check(500..1100, at(4084), &[4096]);
        check(512..2048, at(4097), &[]);
    }

    #[test]
    fn neither_private_pages_nor_markers_lie_in_the_file() {
        check(0..512, Source::Frames(private_frame(PageIdx(0))), &[]);
        check(0..512, Source::Zero, &[]);
    }
}
