//! A window on loan.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::clone_tree::LeafClaim;
use crate::layout::{RamLayout, RamRegion};
use crate::window::{Window, regions};

/// A VM's window, held by whoever may touch it: it stays mapped, and the
/// frames behind it stay allocated, as long as this lives.
#[derive(Clone, Debug)]
pub struct RamWindow {
    pub(crate) layout: RamLayout,
    // Goes before the claim, whose end gives frames back.
    pub(crate) window: Arc<Window>,
    pub(crate) claim: Arc<LeafClaim>,
}

impl RamWindow {
    /// The host-virtual address of each RAM region, to bind as a memslot.
    pub fn regions(&self) -> impl Iterator<Item = (RamRegion, NonNull<u8>)> + '_ {
        regions(self.window.mapping(), self.layout)
    }

    /// How the RAM behind it is laid out.
    pub fn layout(&self) -> RamLayout {
        self.layout
    }

    /// The window's host-virtual addresses, as the kernel lists them.
    pub fn host_range(&self) -> Range<usize> {
        let start = self.window.mapping().base().addr().get();
        start..start + usize::try_from(self.layout().size_bytes()).unwrap_or(usize::MAX)
    }
}
