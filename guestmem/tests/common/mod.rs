//! What several of these tests use.

#![allow(dead_code, reason = "no test uses all of it")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::ops::Range;

use guestmem::{BlankWindow, Layer, PAGE_SIZE, Ram};
use vm_memory::{Bytes, GuestAddress};

/// Freezes as a VMM does.
pub(crate) fn freeze(ram: &mut Ram) -> Layer {
    let mut prepared = ram.prepare_freeze().unwrap();
    if prepared.wants_window() {
        let blank = BlankWindow::new(ram.layout()).unwrap();
        ram.stage(&mut prepared, &blank).unwrap();
    }
    ram.freeze(&mut prepared).unwrap().0
}

fn gpa(ram: &Ram, page: u64) -> GuestAddress {
    let regions = ram.layout().regions();
    let region = regions
        .filter(|region| region.first.0 <= page)
        .last()
        .unwrap();
    GuestAddress(region.gpa.0 + (page - region.first.0) * PAGE_SIZE + 8)
}

/// Writes a word of `page`, and so the page.
pub(crate) fn set_page(ram: &Ram, page: u64, value: u64) {
    ram.guest_ram().write_obj(value, gpa(ram, page)).unwrap();
}

/// That word.
pub(crate) fn page_value(ram: &Ram, page: u64) -> u64 {
    ram.guest_ram().read_obj(gpa(ram, page)).unwrap()
}

/// What the kernel lists of a range of addresses, in pages.
#[derive(Debug, Default)]
pub(crate) struct Smaps {
    pub(crate) areas: u64,
    pub(crate) resident_pages: u64,
    pub(crate) pss_pages: u64,
    pub(crate) anonymous_pages: u64,
    /// Pages of the file that are mapped in huge pages.
    pub(crate) huge_pages: u64,
}

impl Smaps {
    /// Adds up the areas of this process that lie within `range`.
    pub(crate) fn of(range: Range<usize>) -> Self {
        let maps = procfs::process::Process::myself().unwrap().smaps().unwrap();
        let within = maps.into_iter().filter(|area| {
            range.start as u64 <= area.address.0 && area.address.1 <= range.end as u64
        });
        within.fold(Self::default(), |mut sum, area| {
            let pages = |key| area.extension.map[key] / PAGE_SIZE;
            sum.areas += 1;
            sum.resident_pages += pages("Rss");
            sum.pss_pages += pages("Pss");
            sum.anonymous_pages += pages("Anonymous");
            sum.huge_pages += pages("ShmemPmdMapped");
            sum
        })
    }
}
