//! Guest memory as clone trees.

mod layout;

pub use layout::{
    Gpa, HOLE_END, HOLE_START, LayoutError, MAX_RAM_BYTES, PAGE_SIZE, PageIdx, RamLayout, RamRegion,
};
