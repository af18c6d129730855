//! Addresses for a window, to be had before anybody knows what will be seen.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::clone_tree::CloneTree;
use crate::error::MemoryError;
use crate::frame::Arena;
use crate::layout::{RamLayout, RamRegion};
use crate::ram_window::RamWindow;
use crate::room;
use crate::sys::mapping::{HugePages, Mapping, Sharing};
use crate::sys::memfd::Memfd;
use crate::tree::{MapRun, WindowPlan};
use crate::window::{map_run, regions};

/// Addresses for a window, with nothing but anonymous memory there yet. KVM
/// can be told of them ahead: what is mapped there later, before the VM has
/// run, costs no more than anywhere else, whereas a memslot takes longer the
/// larger it is. It becomes one window only.
#[derive(Debug)]
pub struct BlankWindow {
    mapping: Arc<Mapping>,
    layout: RamLayout,
    /// The file whose root RAM is mapped there already, privately, as it lies in
    /// the file. Mapping anything takes KVM some 0.3 ms a GiB once it knows the
    /// addresses, so what will most likely be seen is mapped before.
    root_of: Option<Arc<Memfd>>,
}

/// The part of root RAM that stays mapped.
pub(crate) struct There {
    root: Option<MapRun>,
}

impl There {
    /// Whether `run` is mapped already.
    pub(crate) fn shows(&self, run: &MapRun) -> bool {
        let root = self.root.as_ref();
        root.is_some_and(|root| run.is_in_place(&root.pages))
    }
}

/// Gaps that are cut into a base of root RAM one by one. With more of them it
/// is not worth keeping.
const MOST_GAPS: usize = 16;

impl BlankWindow {
    /// Addresses for RAM of this layout.
    ///
    /// # Errors
    /// If the host has none.
    pub fn new(layout: RamLayout) -> Result<Self, MemoryError> {
        Self::with_pages(layout, HugePages::Never)
    }

    /// The same, with root RAM of `tree` mapped there already if most of it is
    /// likely to be seen, as it was in the window made last. What the window
    /// will show does not depend on that.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn for_tree(tree: &CloneTree, layout: RamLayout) -> Result<Self, MemoryError> {
        let mut blank = Self::new(layout)?;
        let state = tree.lock();
        let arena = &state.arena;
        if state.shows_root {
            let run = blank.all_of_root(arena);
            map_run(&blank.mapping, arena, &run, Sharing::Private)?;
            blank.root_of = Some(arena.file());
        }
        Ok(blank)
    }

    pub(crate) fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// Root RAM as it lies in the file, as far as there is room.
    pub(crate) fn all_of_root(&self, arena: &Arena) -> MapRun {
        MapRun {
            pages: 0..arena.root().end.min(self.mapping.nr_pages()),
            file_page: 0,
        }
    }

    /// Whether root RAM of `arena` is mapped there.
    pub(crate) fn shows_root_of(&self, arena: &Arena) -> bool {
        let file = self.root_of.as_ref();
        file.is_some_and(|file| Arc::ptr_eq(file, &arena.file()))
    }

    /// Leaves of root RAM what `plan` maps too; the rest becomes anonymous.
    pub(crate) fn take_base(&self, arena: &Arena, plan: &WindowPlan) -> Result<There, MemoryError> {
        if self.root_of.is_none() {
            return Ok(There { root: None });
        }
        let root = self.all_of_root(arena);
        let mut gaps = Vec::new();
        let mut at = 0;
        for run in plan.maps.iter() {
            room::push(&mut gaps, at..run.pages.start.min(root.pages.end))?;
            at = run.pages.end;
        }
        room::push(&mut gaps, at..root.pages.end)?;
        gaps.retain(|gap| gap.start < gap.end);
        let few = plan.copies.is_empty() && gaps.len() <= MOST_GAPS;
        let keep = few && self.shows_root_of(arena);
        if !keep {
            gaps.clear();
            gaps.push(0..self.mapping.nr_pages());
        }
        for gap in gaps {
            let nr_pages = gap.end - gap.start;
            let mapped = self.mapping.map_zero(gap);
            mapped.map_err(|source| MemoryError::os("map zero pages", nr_pages, source))?;
        }
        Ok(There {
            root: keep.then_some(root),
        })
    }

    pub(crate) fn with_pages(layout: RamLayout, huge: HugePages) -> Result<Self, MemoryError> {
        let nr_pages = layout.nr_pages();
        let mapping = Mapping::anonymous(nr_pages, huge)
            .map_err(|source| MemoryError::os("reserve addresses for RAM", nr_pages, source))?;
        Ok(Self {
            mapping: Arc::new(mapping),
            layout,
            root_of: None,
        })
    }

    /// How the RAM will be laid out.
    pub fn layout(&self) -> RamLayout {
        self.layout
    }

    /// The host-virtual address of each RAM region, to bind as a memslot.
    pub fn regions(&self) -> impl Iterator<Item = (RamRegion, NonNull<u8>)> + '_ {
        regions(&self.mapping, self.layout)
    }

    /// Whether `window` is the one that this has become.
    pub fn is_of(&self, window: &RamWindow) -> bool {
        Arc::ptr_eq(&self.mapping, &window.window.mapping)
    }
}
