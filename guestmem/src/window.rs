//! A window: the host-virtual range that a VM's RAM is seen through.
//!
//! ```text
//!   root RAM       memfd, MAP_SHARED                  writes go to the frames
//!   anonymous root private pages, nothing beneath     writes are the VM's own
//!   fork           memfd runs, MAP_PRIVATE,           the kernel copies on write:
//!                  anonymous memory in between        private pages are the difference
//! ```
//!
//! The addresses can be had ahead ([`BlankWindow`]), so that KVM knows them
//! before anybody knows what will be seen there.
//!
//! A window is a cache of what the clone tree says, bound as KVM memslots. It
//! may lag behind the tree (a page that was copied into a new layer is still
//! private here), but never shows anything else.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::clone_tree::CloneTree;
use crate::error::MemoryError;
use crate::frame::Arena;
use crate::layout::{PageIdx, RamLayout, RamRegion};
use crate::ram_window::RamWindow;
use crate::sys::mapping::{HugePages, Mapping, Sharing};
use crate::sys::memfd::Memfd;
use crate::sys::page::WritablePage;
use crate::tree::{MapRun, WindowPlan};

/// Where guest writes through a window end up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Writes {
    /// In the file: root RAM.
    ToFile,
    /// In private pages of the window.
    Private,
}

/// A mapped window; see the [module](self).
#[derive(Debug)]
pub(crate) struct Window {
    mapping: Arc<Mapping>,
    writes: Writes,
    /// The runs mapped from the file, ascending. A page outside of them has
    /// anonymous memory beneath.
    maps: Vec<MapRun>,
}

impl Window {
    /// The window of root RAM in the file.
    pub(crate) fn root(arena: &Arena, blank: &BlankWindow) -> Result<Self, MemoryError> {
        Self::over_root(arena, blank, Sharing::Shared, Writes::ToFile)
    }

    /// A private window over root RAM as it lies in the file, for the VM to go
    /// on in when its root is frozen.
    pub(crate) fn over_frozen_root(
        arena: &Arena,
        blank: &BlankWindow,
    ) -> Result<Self, MemoryError> {
        Self::over_root(arena, blank, Sharing::Private, Writes::Private)
    }

    fn over_root(
        arena: &Arena,
        blank: &BlankWindow,
        sharing: Sharing,
        writes: Writes,
    ) -> Result<Self, MemoryError> {
        let run = blank.all_of_root(arena);
        if sharing == Sharing::Shared || !blank.shows_root_of(arena) {
            map_run(&blank.mapping, arena, &run, sharing)?;
        }
        Ok(Self {
            mapping: Arc::clone(&blank.mapping),
            writes,
            maps: vec![run],
        })
    }

    /// A window of anonymous memory only.
    pub(crate) fn anonymous(blank: &BlankWindow) -> Self {
        Self {
            mapping: Arc::clone(&blank.mapping),
            writes: Writes::Private,
            maps: Vec::new(),
        }
    }

    /// A private window made of the mappings of `plan`; its copies are the
    /// caller's to make.
    pub(crate) fn planned(
        arena: &Arena,
        blank: &BlankWindow,
        plan: &WindowPlan,
    ) -> Result<Self, MemoryError> {
        let mut window = Self::anonymous(blank);
        let there = blank.take_base(arena, plan)?;
        let missing = plan.maps.iter().filter(|run| !there.shows(run));
        for run in missing {
            map_run(&window.mapping, arena, run, Sharing::Private)?;
        }
        window.maps.clone_from(&plan.maps);
        Ok(window)
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    pub(crate) fn writes(&self) -> Writes {
        self.writes
    }

    /// Mappings made from the file, and so about half of the kernel's areas.
    pub(crate) fn nr_maps(&self) -> usize {
        self.maps.len()
    }

    /// Whether file pages lie beneath any of `pages`.
    pub(crate) fn maps_file_in(&self, pages: &Range<u64>) -> bool {
        let after = self
            .maps
            .partition_point(|run| run.pages.end <= pages.start);
        self.maps
            .get(after)
            .is_some_and(|run| run.pages.start < pages.end)
    }

    pub(crate) fn page(&self, page: PageIdx) -> WritablePage<'_> {
        self.mapping.page(page)
    }
}

/// A window that its VM has left. Unmapping a touched one takes tens of
/// milliseconds a GiB, in which nobody in the process can map anything and the
/// faults of guests queue behind whoever wants to. So it can be [let
/// go](Self::let_go) bit by bit before it is dropped.
#[derive(Debug)]
pub struct RetiredWindow {
    window: Arc<Window>,
    /// Pages before this one have been let go.
    next: u64,
}

/// Pages that are let go at a time; takes some hundred microseconds.
const SLICE: u64 = 256;

impl RetiredWindow {
    pub(crate) fn new(window: Arc<Window>) -> Self {
        Self { window, next: 0 }
    }

    /// Lets go of the next MiB; whether there is more. `bound` is how many
    /// [`RamWindow`]s of it are left that nobody looks through: those of the VM
    /// that was bound to it. With more than those it is left as it is.
    pub fn let_go(&mut self, bound: usize) -> bool {
        let mapping = &self.window.mapping;
        let slice = self.next..(self.next + SLICE).min(mapping.nr_pages());
        if slice.is_empty() || Arc::strong_count(&self.window) > 1 + bound {
            return false;
        }
        self.next = slice.end;
        match mapping.drop_private(slice) {
            Ok(()) => true,
            Err(error) => {
                log::debug!("a retired window goes in one piece: {error}");
                false
            }
        }
    }
}

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
struct There {
    root: Option<MapRun>,
}

impl There {
    fn shows(&self, run: &MapRun) -> bool {
        let within = |root: &MapRun| run.pages.end <= root.pages.end;
        run.pages.start == run.file_page && self.root.as_ref().is_some_and(within)
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
    /// likely to be seen: as long as root RAM has not been frozen, or if half
    /// of it is committed. What the window will show does not depend on that.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn for_tree(tree: &CloneTree, layout: RamLayout) -> Result<Self, MemoryError> {
        let mut blank = Self::new(layout)?;
        let state = tree.lock();
        let arena = &state.arena;
        let mut leaves = state.leaves.values();
        let root_is_live = leaves.any(|leaf| leaf.window.writes() == Writes::ToFile);
        if root_is_live || arena.committed_pages()? >= layout.nr_pages() / 2 {
            let run = blank.all_of_root(arena);
            map_run(&blank.mapping, arena, &run, Sharing::Private)?;
            blank.root_of = Some(arena.file());
        }
        Ok(blank)
    }

    /// Root RAM as it lies in the file, as far as there is room.
    fn all_of_root(&self, arena: &Arena) -> MapRun {
        MapRun {
            pages: 0..arena.root().end.min(self.mapping.nr_pages()),
            file_page: 0,
        }
    }

    fn shows_root_of(&self, arena: &Arena) -> bool {
        let file = self.root_of.as_ref();
        file.is_some_and(|file| Arc::ptr_eq(file, &arena.file()))
    }

    /// Leaves of root RAM what `plan` maps too; the rest becomes anonymous.
    fn take_base(&self, arena: &Arena, plan: &WindowPlan) -> Result<There, MemoryError> {
        if self.root_of.is_none() {
            return Ok(There { root: None });
        }
        let root = self.all_of_root(arena);
        let mut gaps = Vec::new();
        let mut at = 0;
        for run in &plan.maps {
            gaps.push(at..run.pages.start.min(root.pages.end));
            at = run.pages.end;
        }
        gaps.push(at..root.pages.end);
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

fn map_run(
    mapping: &Mapping,
    arena: &Arena,
    run: &MapRun,
    sharing: Sharing,
) -> Result<(), MemoryError> {
    let offset = PageIdx(run.file_page).byte_offset();
    mapping
        .map_file(run.pages.clone(), arena.fd(), offset, sharing)
        .map_err(|source| MemoryError::os("map frames into a window", run.nr_pages(), source))
}

/// Where the regions of `layout` are in `mapping`.
pub(crate) fn regions(
    mapping: &Mapping,
    layout: RamLayout,
) -> impl Iterator<Item = (RamRegion, NonNull<u8>)> + '_ {
    let start = |region: &RamRegion| mapping.page(region.first).read().start();
    layout.regions().map(move |region| (region, start(&region)))
}
