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

use crate::blank_window::BlankWindow;
use crate::error::MemoryError;
use crate::frame::{Arena, ImagePin};
use crate::layout::{PageIdx, RamLayout, RamRegion};
use crate::sys::mapping::{Mapping, Sharing};
use crate::sys::page::WritablePage;
use crate::sys::write_tracking::WriteTracking;
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
    pub(crate) mapping: Arc<Mapping>,
    writes: Writes,
    /// The runs mapped from the file, ascending. A page outside of them has
    /// anonymous memory beneath.
    maps: Arc<Vec<MapRun>>,
    /// It may be mapped across holes of these.
    _images: Arc<Vec<ImagePin>>,
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
            map_run(blank.mapping(), arena, &run, sharing)?;
        }
        Ok(Self {
            mapping: Arc::clone(blank.mapping()),
            writes,
            maps: Arc::new(vec![run]),
            _images: Arc::default(),
        })
    }

    /// A window of anonymous memory only.
    pub(crate) fn anonymous(blank: &BlankWindow) -> Self {
        Self {
            mapping: Arc::clone(blank.mapping()),
            writes: Writes::Private,
            maps: Arc::default(),
            _images: Arc::default(),
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
        window.maps = Arc::clone(&plan.maps);
        window._images = Arc::clone(&plan.images);
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
    /// Given up after the window, because it takes no time then.
    _tracking: Option<WriteTracking>,
    /// Pages before this one have been let go.
    next: u64,
}

/// Pages that are let go at a time; takes some hundred microseconds.
const SLICE: u64 = 256;

impl RetiredWindow {
    pub(crate) fn new(window: Arc<Window>, tracking: Option<WriteTracking>) -> Self {
        Self {
            window,
            _tracking: tracking,
            next: 0,
        }
    }

    /// Lets go of the next MiB; whether there is more. `bound` is how many
    /// [`RamWindow`](crate::RamWindow)s of it are left that nobody looks through: those of the VM
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

/// Maps the frames of `run` where it says.
pub(crate) fn map_run(
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
