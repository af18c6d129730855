//! How many viewers look at each page of a node.
//!
//! ```text
//!   page         0    10        20        30
//!   looked at by ├─ 3 ─┼─── 1 ───┼─── 0 ───┤ …     pieces, each of one count
//! ```
//!
//! A leaf looks at all of its pages, once. What a node holds hides the pages
//! of its parent, so the node's sight goes on to the parent without them; a
//! parent's sight is the sum of its children's, and one more if a snapshot
//! holds it. Adding a child's sight to another goes from the smaller to the
//! larger, so that a long chain costs no more than its runs.

use std::ops::{AddAssign, Range, SubAssign};

use super::Reach;
use crate::error::MemoryError;
use crate::ordered::Ordered;

/// Viewers of one page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// VMs.
    pub(crate) leaves: i64,
    /// Layers that a snapshot holds.
    pub(crate) snapshots: i64,
}

impl Count {
    /// One VM.
    pub(crate) const LEAF: Self = Self {
        leaves: 1,
        snapshots: 0,
    };
    /// One layer that a snapshot holds.
    pub(crate) const SNAPSHOT: Self = Self {
        leaves: 0,
        snapshots: 1,
    };

    /// All of them.
    pub(crate) fn viewers(self) -> u64 {
        u64::try_from(self.leaves + self.snapshots).unwrap_or(0)
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.leaves += other.leaves;
        self.snapshots += other.snapshots;
    }
}

impl SubAssign for Count {
    fn sub_assign(&mut self, other: Self) {
        self.leaves -= other.leaves;
        self.snapshots -= other.snapshots;
    }
}

/// A count for every page of an object. It grows with the pieces; where there is
/// no memory for them it is of no use any more.
#[derive(Debug, Default)]
pub(crate) struct Sight {
    /// The count from this page on, less `all`; nobody before the first.
    from: Ordered<u64, Count>,
    /// Added to every count: so that one more viewer of everything is cheap.
    all: Count,
}

impl Sight {
    /// One more looks at every page.
    pub(crate) fn add_everywhere(&mut self, count: Count) {
        self.all += count;
    }

    /// Nobody looks at `pages` any more.
    pub(crate) fn hide(&mut self, pages: Range<u64>) -> Result<(), MemoryError> {
        self.cut(pages.end)?;
        self.from.remove_all(&pages);
        let mut nobody = Count::default();
        nobody -= self.all;
        self.from.insert(pages.start, nobody)
    }

    /// The same as the parent counts its pages: page 0 of those who look lies
    /// at `reach`, and they see no more of the parent than it says.
    pub(crate) fn lifted(
        mut self,
        reach: Reach,
        nr_parent_pages: u64,
    ) -> Result<Self, MemoryError> {
        let seen = reach.seen();
        if seen.start == 0 {
            if seen.end < nr_parent_pages {
                self.hide(seen.end..nr_parent_pages)?;
            }
            return Ok(self);
        }
        let mut lifted = Self::default();
        for (pages, count) in self.pieces(0..seen.end - seen.start) {
            lifted.from.insert(pages.start + seen.start, count)?;
        }
        lifted.from.insert(seen.end, Count::default())?;
        Ok(lifted)
    }

    /// All who look at either.
    pub(crate) fn join(mut self, mut other: Self, nr_pages: u64) -> Result<Self, MemoryError> {
        if self.from.len() < other.from.len() {
            std::mem::swap(&mut self, &mut other);
        }
        for (pages, count) in other.pieces(0..nr_pages) {
            self.cut(pages.end)?;
            self.cut(pages.start)?;
            let inside = self.from.at_or_after_mut(&pages.start);
            inside
                .take_while(|(at, _)| *at < pages.end)
                .for_each(|(_, here)| *here += count);
        }
        Ok(self)
    }

    /// `pages` in pieces of one count each, ascending.
    pub(crate) fn pieces(
        &self,
        pages: Range<u64>,
    ) -> impl Iterator<Item = (Range<u64>, Count)> + '_ {
        let first = self.count_at(pages.start);
        let inner = self.from.at_or_after(&(pages.start + 1));
        let inner = inner.take_while(move |(at, _)| *at < pages.end);
        let starts = std::iter::once((pages.start, first));
        let starts = starts.chain(inner.clone().map(|(at, count)| (at, *count)));
        let ends = inner.map(|(at, _)| at).chain(std::iter::once(pages.end));
        starts.zip(ends).map(|((start, mut count), end)| {
            count += self.all;
            (start..end, count)
        })
    }

    /// Makes a piece begin at `page`.
    fn cut(&mut self, page: u64) -> Result<(), MemoryError> {
        let count = self.count_at(page);
        self.from.insert(page, count)
    }

    /// The count of `page`, less `all`.
    fn count_at(&self, page: u64) -> Count {
        let before = self.from.at_or_before(&page);
        before.map_or(Count::default(), |(_, count)| *count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::NodeId;

    fn leaves(sight: &Sight, nr_pages: u64) -> Vec<i64> {
        let pieces = sight.pieces(0..nr_pages);
        pieces
            .flat_map(|(pages, count)| pages.map(move |_| count.leaves))
            .collect()
    }

    #[test]
    fn hiding_and_adding_count_page_by_page() {
        let mut sight = Sight::default();
        sight.add_everywhere(Count::LEAF);
        sight.hide(2..4).unwrap();
        sight.add_everywhere(Count::LEAF);
        sight.hide(5..6).unwrap();
        assert_eq!(leaves(&sight, 7), [2, 2, 1, 1, 2, 0, 2]);
        let pieces: Vec<_> = sight.pieces(1..3).map(|(pages, _)| pages).collect();
        assert_eq!(pieces, [1..2, 2..3]);
    }

    #[test]
    fn joining_adds_page_by_page_whichever_is_larger() {
        for swap in [false, true] {
            let (mut a, mut b) = (Sight::default(), Sight::default());
            a.add_everywhere(Count::LEAF);
            a.hide(1..2).unwrap();
            a.hide(4..6).unwrap();
            b.add_everywhere(Count::LEAF);
            b.hide(0..5).unwrap();
            let joined = if swap { b.join(a, 7) } else { a.join(b, 7) }.unwrap();
            assert_eq!(leaves(&joined, 7), [1, 0, 1, 1, 0, 1, 2]);
        }
    }

    #[test]
    fn a_parent_counts_those_who_look_at_a_part_of_it_where_that_part_is() {
        let looking = || {
            let mut sight = Sight::default();
            sight.add_everywhere(Count::LEAF);
            sight.hide(1..2).unwrap();
            sight
        };
        let part = looking().lifted(Reach::new(NodeId(0), 2..5), 7).unwrap();
        assert_eq!(leaves(&part, 7), [0, 0, 1, 0, 1, 0, 0]);
        let start = looking().lifted(Reach::new(NodeId(0), 0..3), 7).unwrap();
        assert_eq!(leaves(&start, 7), [1, 0, 1, 0, 0, 0, 0]);
    }
}
