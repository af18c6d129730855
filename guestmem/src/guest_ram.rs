//! A VM's RAM through vm-memory's traits, for loaders and devices.

use std::sync::Arc;

use vm_memory::bitmap::{BS, Bitmap};
use vm_memory::guest_memory::{Error, Result};
use vm_memory::{
    GuestAddress, GuestMemoryRegion, GuestMemoryRegionBytes, GuestRegionCollection, GuestUsize,
    MemoryRegionAddress, VolatileSlice,
};

use crate::layout::RamRegion;
use crate::ram_window::RamWindow;

/// A VM's RAM as vm-memory sees it: regions of one window. Cheap to clone. It
/// keeps the window mapped; after a VM has moved to another window (a freeze
/// of its root) ask for a new one.
pub type GuestRam = GuestRegionCollection<WindowRegion>;

/// One RAM region of a window.
#[derive(Debug)]
pub struct WindowRegion {
    window: RamWindow,
    region: RamRegion,
}

/// All regions of `window`.
pub(crate) fn regions(window: &RamWindow) -> GuestRam {
    let regions = window.layout().regions().map(|region| {
        Arc::new(WindowRegion {
            window: window.clone(),
            region,
        })
    });
    GuestRam::from_arc_regions(regions.collect()).expect("a layout's regions are in order")
}

impl GuestMemoryRegion for WindowRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.region.len_bytes()
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.region.gpa.0)
    }

    fn bitmap(&self) -> BS<'_, Self::B> {
        ().slice_at(0)
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, Self::B>>> {
        let end = offset.0.checked_add(count as u64);
        if end.is_none_or(|end| end > self.len()) {
            return Err(Error::InvalidBackendAddress);
        }
        let in_window = self.region.first.byte_offset() + offset.0;
        let slice = self.window.window.mapping().slice(in_window, count);
        slice.ok_or(Error::InvalidBackendAddress)
    }
}

impl GuestMemoryRegionBytes for WindowRegion {}
