//! Short ways to make lists, for tests.

#![expect(
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by test binaries, where a failure is a failed test"
)]
#![allow(dead_code, reason = "not every test binary uses all of it")]

use pagelist::{FrameId, PAGE_SIZE, PageList, PageOrMarker};

pub const P: u64 = PAGE_SIZE;

pub fn frame(n: u32) -> FrameId {
    FrameId::new(n)
}

pub fn page(n: u32) -> PageOrMarker {
    PageOrMarker::page(frame(n))
}

pub fn put(list: &mut PageList, offset: u64, entry: PageOrMarker) {
    let old = list.insert(offset, entry).unwrap();
    assert_eq!(old.take_frame(), None, "something was at {offset:#x}");
}

/// A list with these frames, at (offset in pages, frame number).
pub fn list_of(pages: &[(u64, u32)]) -> PageList {
    let mut list = PageList::new();
    for &(at, n) in pages {
        put(&mut list, at * P, page(n));
    }
    list
}

pub fn offsets(list: &PageList) -> Vec<u64> {
    list.iter().map(|(offset, _)| offset).collect()
}

pub fn drain(mut list: PageList) -> Vec<u32> {
    let mut frames = Vec::new();
    list.remove_all_pages(|frame| frames.push(frame.index()));
    assert_eq!(list.heap_allocation_bytes(), 0);
    frames
}
