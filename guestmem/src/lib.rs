//! Guest memory as clone trees: lazily committed, forkable while it is in
//! use, and accounted for to the page.
//!
//! ```text
//!  guest ──EPT──► window   (host-virtual range, bound as KVM memslots; a cache)
//!                   │ made from
//!    leaf ──► layer ──► layer …   each owns a page list: the truth
//!                   │
//!            frames  in one sparse memfd a tree, or private in a window
//! ```
//!
//! * [`Ram`] is the RAM of one VM, [`Layer`] is RAM frozen for others to fork,
//!   [`CloneTree`] is all that descends from one root.
//! * The kernel commits frames and copies pages on write; nothing of ours runs
//!   in a fault. [Settling](Ram::settle) reads back what it did.
//! * [`GuestRam`] offers it to loaders and devices through vm-memory's traits.
//!
//! ```
//! use guestmem::{Backing, BlankWindow, Ram, RamLayout};
//! use vm_memory::{Bytes, GuestAddress};
//!
//! let layout = RamLayout::new(16 << 20)?;
//! let mut parent = Ram::new(layout, Backing::Memfd)?;
//! parent.guest_ram().write_obj(42u64, GuestAddress(0x1000))?;
//!
//! // Freeze the parent (nothing is copied) and fork a child off.
//! let mut prepared = parent.prepare_freeze()?;
//! parent.stage(&mut prepared, &BlankWindow::new(layout)?)?;
//! let (layer, _old_window) = parent.freeze(&mut prepared)?;
//! let child = layer.fork()?;
//! child.guest_ram().write_obj(7u64, GuestAddress(0x1000))?;
//!
//! assert_eq!(parent.guest_ram().read_obj::<u64>(GuestAddress(0x1000))?, 42);
//! assert_eq!(parent.tree().stats()?.frames(), 2); // the shared page and the child's
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod blank_window;
mod clone_tree;
mod committed;
mod copies;
mod error;
#[cfg(test)]
mod failing;
mod flatten;
mod frame;
mod freeze;
mod guest_ram;
mod holds;
mod huge;
#[cfg(all(test, shuttle))]
mod interleaving;
mod layer;
mod layout;
mod measured;
mod ordered;
mod pages;
mod precopy;
mod ram;
mod ram_window;
mod reset;
mod resize;
mod room;
mod settle;
mod state;
mod stats;
mod sync;
mod sys;
mod tree;
mod window;
mod zeros;

pub use blank_window::BlankWindow;
pub use clone_tree::CloneTree;
pub use error::MemoryError;
pub use flatten::{Flattened, Flattener};
pub use guest_ram::{GuestRam, WindowRegion};
pub use huge::{Collapsed, Collapser};
pub use layer::{Layer, SpareRam};
pub use layout::{
    Gpa, HOLE_END, HOLE_START, LayoutError, MAX_RAM_BYTES, PAGE_SIZE, PageIdx, RamLayout, RamRegion,
};
#[doc(hidden)]
pub use measured::PagePairs;
pub use ram::{Backing, PreparedFreeze, Ram};
pub use ram_window::RamWindow;
pub use settle::Writers;
pub use stats::{RamStats, TreeStats};
pub use tree::Attribution;
pub use window::RetiredWindow;
pub use zeros::ZeroCandidates;
