//! Page lists by page number. A list counts in bytes and checks every offset;
//! page numbers of an object are aligned and in range by their type.

use std::ops::Range;

use pagelist::{PageList, Run};

use crate::layout::PAGE_SIZE;

/// Walks over a range given in pages.
pub(crate) trait ByPage {
    /// The runs of content within `pages`, ascending.
    fn runs_in(&self, pages: Range<u64>) -> impl Iterator<Item = Run> + '_;

    /// The pages within `pages` without content, in runs, ascending.
    fn gaps_in(&self, pages: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_;
}

/// Why walking cannot fail.
const IN_RANGE: &str = "page ranges are aligned, ordered and far below the list's limit";

impl ByPage for PageList {
    fn runs_in(&self, pages: Range<u64>) -> impl Iterator<Item = Run> + '_ {
        self.runs(pages.start * PAGE_SIZE, pages.end * PAGE_SIZE)
            .expect(IN_RANGE)
    }

    fn gaps_in(&self, pages: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let gaps = self
            .gaps(pages.start * PAGE_SIZE, pages.end * PAGE_SIZE)
            .expect(IN_RANGE);
        gaps.map(|gap| gap.start / PAGE_SIZE..gap.end / PAGE_SIZE)
    }
}
