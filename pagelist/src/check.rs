//! What must hold between any two operations, checked the slow way.

use crate::list::PageList;
use crate::slot::SlotRef;

impl PageList {
    /// Checks everything that holds between operations: the order of the index,
    /// the totals, and that no slot is occupied without need. For tests: it
    /// costs a walk, and a search for each marker.
    ///
    /// # Panics
    /// If something does not hold, which is a bug in this crate.
    #[doc(hidden)]
    pub fn check_invariants(&self) {
        self.index.check();
        let (mut nr_pages, mut nr_markers) = (0, 0);
        // The last occupied position and whether markers follow it.
        let mut before: Option<(u64, bool)> = None;
        for slab in self.index.slabs_from(0) {
            assert!(!slab.is_vacant(), "vacant slab at {:#x}", slab.base);
            for (i, slot) in slab.slots.iter().enumerate() {
                if slot.is_vacant() {
                    continue;
                }
                let pos = slab.base + i as u64;
                assert!(
                    self.offset(pos) < self.limit(),
                    "{pos:#x} is past the limit"
                );
                let adjacent = before.is_some_and(|(last, _)| last + 1 == pos);
                let flow = before.is_some_and(|(_, follow)| follow);
                assert!(!(adjacent && flow), "no stretch before {pos:#x}");
                if let (true, Some((last, _))) = (flow, before) {
                    nr_markers += pos - last - 1;
                }
                match slot.view() {
                    SlotRef::Page(_) => nr_pages += 1,
                    view => {
                        let marker = view == SlotRef::Marker;
                        nr_markers += u64::from(marker);
                        let continues = adjacent || marker == flow;
                        let ends = self.slot(pos + 1).is_vacant()
                            && slot.markers_follow() != if adjacent { marker } else { flow };
                        assert!(!continues || ends, "{slot:?} at {pos:#x} says nothing new");
                    }
                }
                before = Some((pos, slot.markers_follow()));
            }
        }
        assert!(
            before.is_none_or(|(_, follow)| !follow),
            "markers without end"
        );
        assert_eq!((self.nr_pages, self.nr_markers), (nr_pages, nr_markers));
    }
}
