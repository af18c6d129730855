//! A world without memory: random operations on a [`Tree`], carried out on
//! numbers instead of pages, against an oracle that copies eagerly. Shared by
//! the tests and the fuzz target (`guestmem/fuzz`).
//!
//! ```text
//!   Op ──► Tree (plans) ──► World: file page → content, private page → content
//!     └──► Eager: page → reference-counted frame, for every VM and snapshot
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use pagelist::PageOrMarker;

use super::view::{Seen, each_page, seen_in};
use super::{Content, NodeId, Reading, Repack, Role, Tree, Viewers, WindowPlan};
use crate::frame::{FrameHome, FrameNumbers, FrameSet, ImagePin, file_frame, home};
use crate::layout::PageIdx;

/// Pages of the root.
const PAGES: u64 = 40;
/// Pages that anybody may have.
const MOST_PAGES: u64 = 56;
/// VMs at a time.
const MOST_VMS: usize = 10;
/// Snapshots at a time.
const MOST_SNAPSHOTS: usize = 5;

/// One step. VMs, snapshots and pages are picked modulo how many there are.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// The guest writes a value that nobody has written, or zero.
    Write { vm: u8, page: u8, zero: bool },
    /// Pages become zero.
    Zero { vm: u8, page: u8, len: u8 },
    /// A second VM that is what one is now.
    Fork { vm: u8 },
    /// The same for a part of it, or for more than there is.
    ForkPart { vm: u8, first: u8, len: u8 },
    /// A snapshot is taken.
    Snapshot { vm: u8 },
    /// A snapshot is forked, in part or beyond its end.
    ForkSnapshot { snapshot: u8, first: u8, len: u8 },
    /// A VM becomes what lies below it again.
    Reset { vm: u8 },
    /// A VM becomes larger or smaller.
    Resize { vm: u8, len: u8 },
    /// A VM goes.
    DropVm { vm: u8 },
    /// A snapshot goes.
    DropSnapshot { snapshot: u8 },
    /// A snapshot goes over to a flat copy of its layer, if as many forks of it
    /// would have made that worth it.
    Flatten { snapshot: u8, forks: u8 },
    /// Everything nobody sees is given back.
    Reclaim,
}

impl Op {
    /// Any bytes at all, as operations.
    pub(crate) fn from_bytes(bytes: &[u8]) -> impl Iterator<Item = Self> {
        bytes.chunks_exact(4).map(|chunk| {
            let [kind, a, b, c] = [chunk[0], chunk[1], chunk[2], chunk[3]];
            match kind % 22 {
                0..=5 => Self::Write {
                    vm: a,
                    page: b,
                    zero: c.is_multiple_of(4),
                },
                6 => Self::Zero {
                    vm: a,
                    page: b,
                    len: c,
                },
                7 | 8 => Self::Fork { vm: a },
                9 => Self::ForkPart {
                    vm: a,
                    first: b,
                    len: c,
                },
                10 => Self::Snapshot { vm: a },
                11 | 12 => Self::ForkSnapshot {
                    snapshot: a,
                    first: if b < 128 { 0 } else { b },
                    len: if b < 128 { 0 } else { c },
                },
                13 => Self::Reset { vm: a },
                14 => Self::Resize { vm: a, len: b },
                15 | 16 => Self::DropVm { vm: a },
                17 => Self::DropSnapshot { snapshot: a },
                18 | 19 => Self::Flatten {
                    snapshot: a,
                    forks: b,
                },
                _ => Self::Reclaim,
            }
        })
    }
}

/// What somebody has, as if it had been copied eagerly: a frame for every page
/// that is not zero.
#[derive(Clone, Debug)]
struct Eager {
    nr_pages: u64,
    frames: BTreeMap<u64, Rc<u64>>,
}

impl Eager {
    fn value(&self, page: u64) -> u64 {
        self.frames.get(&page).map_or(0, |value| **value)
    }

    fn part(&self, pages: Range<u64>) -> Self {
        let seen = self.frames.range(pages.clone());
        Self {
            nr_pages: pages.end - pages.start,
            frames: seen
                .map(|(page, value)| (page - pages.start, Rc::clone(value)))
                .collect(),
        }
    }
}

/// What a window shows of the file.
#[derive(Clone, Debug, Default)]
struct Shown {
    /// File pages behind pages; others have nothing beneath.
    file: BTreeMap<u64, u64>,
    /// Pages that are private, or have fresh anonymous memory beneath.
    own: BTreeSet<u64>,
    _images: Arc<Vec<ImagePin>>,
}

/// A tree, what its frames hold, and what the oracle says.
pub(crate) struct World {
    tree: Tree,
    numbers: FrameNumbers,
    /// Committed file pages.
    file: BTreeMap<u64, u64>,
    /// Private pages of the windows.
    private: BTreeMap<(NodeId, u64), u64>,
    /// What windows show that were made long ago.
    windows: BTreeMap<NodeId, Shown>,
    /// The leaf whose writes go to the file, until it is frozen.
    root: Option<NodeId>,
    vms: Vec<(NodeId, Eager)>,
    snapshots: Vec<(NodeId, Eager)>,
    last_value: u64,
}

impl World {
    /// Does `ops` and checks everything after each; then closes everybody.
    pub(crate) fn run(root_in_file: bool, ops: impl Iterator<Item = Op>) {
        let mut world = Self::new(root_in_file);
        for op in ops {
            world.apply(&op);
            world.check_contents();
            world.tree.check_invariants();
            if matches!(op, Op::Reclaim) {
                world.check_frames();
            }
        }
        world.reclaim();
        world.check_contents();
        world.check_frames();
        while !world.vms.is_empty() {
            world.drop_vm(0);
        }
        while !world.snapshots.is_empty() {
            world.drop_snapshot(0);
        }
        assert_eq!(world.file, BTreeMap::new(), "frames nobody can see");
        assert_eq!(world.tree.ids().count(), 0, "nodes nobody needs");
    }

    fn new(root_in_file: bool) -> Self {
        let reading = match root_in_file {
            true => Reading::Unread,
            false => Reading::Exact,
        };
        let (tree, root) = Tree::new(PAGES, reading).expect("memory");
        let eager = Eager {
            nr_pages: PAGES,
            frames: BTreeMap::new(),
        };
        Self {
            tree,
            numbers: FrameNumbers::new(PAGES, 1 << 20).expect("memory"),
            file: BTreeMap::new(),
            private: BTreeMap::new(),
            windows: BTreeMap::from([(root, Shown::default())]),
            root: root_in_file.then_some(root),
            vms: vec![(root, eager)],
            snapshots: Vec::new(),
            last_value: 0,
        }
    }

    fn apply(&mut self, op: &Op) {
        let nr_vms = self.vms.len();
        let nr_snapshots = self.snapshots.len();
        let pick_vm = |vm: u8| (nr_vms > 0).then(|| usize::from(vm) % nr_vms.max(1));
        let pick_snapshot =
            |snapshot: u8| (nr_snapshots > 0).then(|| usize::from(snapshot) % nr_snapshots.max(1));
        let room = nr_vms < MOST_VMS;
        match *op {
            Op::Write { vm, page, zero } => {
                if let Some(vm) = pick_vm(vm) {
                    self.write(vm, u64::from(page), zero);
                }
            }
            Op::Zero { vm, page, len } => {
                if let Some(vm) = pick_vm(vm) {
                    self.zero(vm, u64::from(page), u64::from(len));
                }
            }
            Op::Fork { vm } => {
                if let Some(vm) = pick_vm(vm).filter(|_| room) {
                    let nr_pages = self.vms[vm].1.nr_pages;
                    self.fork(vm, 0..nr_pages);
                }
            }
            Op::ForkPart { vm, first, len } => {
                if let Some(vm) = pick_vm(vm).filter(|_| room) {
                    self.fork(vm, part(first, len));
                }
            }
            Op::Snapshot { vm } => {
                if let Some(vm) = pick_vm(vm).filter(|_| nr_snapshots < MOST_SNAPSHOTS) {
                    let layer = self.freeze(vm);
                    self.tree.retain(layer);
                    let eager = self.vms[vm].1.clone();
                    self.snapshots.push((layer, eager));
                }
            }
            Op::ForkSnapshot {
                snapshot,
                first,
                len,
            } => {
                if let Some(snapshot) = pick_snapshot(snapshot).filter(|_| room) {
                    let (layer, eager) = self.snapshots[snapshot].clone();
                    let pages = match len {
                        0 => 0..eager.nr_pages,
                        _ => part(first, len),
                    };
                    self.clone_layer(layer, &eager, pages);
                }
            }
            Op::Reset { vm } => {
                if let Some(vm) = pick_vm(vm) {
                    self.reset(vm);
                }
            }
            Op::Resize { vm, len } => {
                if let Some(vm) = pick_vm(vm) {
                    self.resize(vm, 1 + u64::from(len) % MOST_PAGES);
                }
            }
            Op::DropVm { vm } => {
                if let Some(vm) = pick_vm(vm) {
                    self.drop_vm(vm);
                }
            }
            Op::DropSnapshot { snapshot } => {
                if let Some(snapshot) = pick_snapshot(snapshot) {
                    self.drop_snapshot(snapshot);
                }
            }
            Op::Flatten { snapshot, forks } => {
                if let Some(snapshot) = pick_snapshot(snapshot) {
                    self.flatten(snapshot, u64::from(forks));
                }
            }
            Op::Reclaim => self.reclaim(),
        }
    }

    fn flatten(&mut self, snapshot: usize, forks: u64) {
        self.read_back(Reading::Listed);
        while let Some(image) = self.numbers.take_idle_image() {
            self.numbers.give_back(image).expect("memory");
        }
        let (layer, eager) = self.snapshots[snapshot].clone();
        let view = self.tree.layer_view(layer).expect("memory");
        // So few mappings that windows would need copies.
        let bridges = self.numbers.bridges(0..PAGES);
        let repack = Repack::new(&view, &bridges, 5, forks).expect("memory");
        let Some(repack) = repack else {
            return;
        };
        let span = repack.span();
        let image = self.numbers.begin_image(&span).expect("memory");
        let image = image.expect("numbers");
        let mut list = self.tree.list_above(layer);
        let mut after = eager;
        let (mut looked_at, mut held) = (0, Vec::new());
        for page in repack.runs.into_iter().flatten() {
            let seen @ Seen::Frame(_) = seen_in(&view, PageIdx(page)) else {
                continue;
            };
            looked_at += 1;
            let value = self.value_of(layer, seen);
            let file_page = image.start + (page - span.start);
            let entry = match value {
                0 => PageOrMarker::marker(),
                _ => PageOrMarker::page(file_frame(file_page)),
            };
            if value != 0 {
                assert_eq!(self.file.insert(file_page, value), None, "a frame in use");
                held.push(file_page..file_page + 1);
                after.frames.insert(page, Rc::new(value));
            }
            let before = list.insert(PageIdx(page).byte_offset(), entry);
            let _nothing = before.expect("memory").take_frame();
        }
        assert_eq!(looked_at, repack.nr_frames);
        let flat = self.tree.add_flat(layer, list);
        self.numbers.finish_image(&image, held.into_iter());
        let held = |(of, _): &&mut (NodeId, Eager)| *of == layer;
        let mut moved = 0;
        for snapshot in self.snapshots.iter_mut().filter(held) {
            *snapshot = (flat, after.clone());
            self.tree.retain(flat);
            moved += 1;
        }
        (0..moved).for_each(|_| self.release(layer));
        self.check_plan(flat, &after);
    }

    /// Forks of a flat layer need no copies.
    fn check_plan(&mut self, flat: NodeId, eager: &Eager) {
        let view = self.tree.layer_view(flat).expect("memory");
        let plan = WindowPlan::new(&view, &self.numbers.bridges(0..PAGES), 5);
        let plan = plan.expect("memory");
        assert_eq!(*plan.copies, [], "of {view:?}");
        self.check_window(&plan, 5, eager);
    }

    fn write(&mut self, vm: usize, page: u64, zero: bool) {
        let (leaf, eager) = &mut self.vms[vm];
        let (leaf, page) = (*leaf, page % eager.nr_pages);
        if zero {
            eager.frames.remove(&page);
        } else {
            self.last_value += 1;
            eager.frames.insert(page, Rc::new(self.last_value));
        }
        let value = eager.value(page);
        if self.root == Some(leaf) {
            self.file.insert(page, value);
            return;
        }
        self.owns(leaf, page..page + 1);
        if !self.tree.is_private_in(leaf, PageIdx(page)) {
            let mut freed = FrameSet::default();
            self.tree
                .wrote(leaf, PageIdx(page), &mut freed)
                .expect("memory");
            self.free(freed);
        }
        self.private.insert((leaf, page), value);
    }

    /// The window of `leaf` shows nothing else's in `pages` from now on.
    fn owns(&mut self, leaf: NodeId, pages: impl IntoIterator<Item = u64>) {
        let window = self.windows.get_mut(&leaf).expect("a leaf has a window");
        window.own.extend(pages);
    }

    fn zero(&mut self, vm: usize, page: u64, len: u64) {
        let (leaf, eager) = &mut self.vms[vm];
        let leaf = *leaf;
        let start = page % eager.nr_pages;
        let pages = start..(start + 1 + len % 16).min(eager.nr_pages);
        eager.frames.retain(|page, _| !pages.contains(page));
        if self.root != Some(leaf) {
            self.owns(leaf, pages.clone());
        }
        let mut freed = FrameSet::default();
        for part in self.tree.plan_zero(leaf, pages.clone()).expect("memory") {
            self.tree.zero(leaf, &part, &mut freed).expect("memory");
        }
        self.private
            .retain(|(of, page), _| *of != leaf || !pages.contains(page));
        self.free(freed);
    }

    fn fork(&mut self, vm: usize, pages: Range<u64>) {
        let layer = self.freeze(vm);
        let eager = self.vms[vm].1.clone();
        self.tree.retain(layer);
        self.clone_layer(layer, &eager, pages);
        self.release(layer);
    }

    fn clone_layer(&mut self, layer: NodeId, eager: &Eager, pages: Range<u64>) {
        let nr_pages = pages.end - pages.start;
        let reach = self.tree.part_of(layer, pages.clone());
        let eager = eager.part(pages);
        let view = self.tree.view_through(reach).expect("memory");
        let mut shown = Shown::default();
        for budget in [0, 2, 512] {
            let plan = WindowPlan::new(&view, &self.numbers.bridges(0..PAGES), budget);
            let plan = plan.expect("memory");
            self.check_window(&plan, budget, &eager);
            if plan.copies.is_empty() {
                shown = Self::shown(&plan);
            }
        }
        let leaf = self.tree.add_spare(reach, nr_pages);
        self.tree.use_spare(leaf);
        self.windows.insert(leaf, shown);
        self.vms.push((leaf, eager));
    }

    fn shown(plan: &WindowPlan) -> Shown {
        let runs = plan.maps.iter();
        let pages = runs.flat_map(|run| run.pages.clone().zip(run.file_pages()));
        Shown {
            file: pages.collect(),
            own: BTreeSet::new(),
            _images: Arc::clone(&plan.images),
        }
    }

    fn freeze(&mut self, vm: usize) -> NodeId {
        let leaf = self.vms[vm].0;
        if self.root == Some(leaf) {
            self.root = None;
            let root = self.windows.get_mut(&leaf).expect("a leaf has a window");
            root.file = (0..PAGES).zip(0..PAGES).collect();
            return self.tree.freeze(leaf);
        }
        // Some were looked at before, and held data then.
        let private = self.tree.private_pages(leaf);
        let known: Vec<_> = private.filter(|page| page.0 % 3 == 0).collect();
        let is_zero = |at: usize| self.private[&(leaf, known[at].0)] == 0;
        let plan = self.tree.plan_freeze(leaf, &known, is_zero, |page, below| {
            assert!(!known.contains(&page), "{page:?} is known already");
            let value = self.private[&(leaf, page.0)];
            let shown = self.value_of(leaf, below);
            match value {
                _ if value == shown => Content::SameAsBelow,
                0 => Content::Zero,
                _ => Content::Data,
            }
        });
        let plan = plan.expect("memory");
        let (count, still) = plan.still_known(known.len());
        assert!(
            still
                .map(|at| known[at])
                .eq(plan.copies[..count].iter().copied())
        );
        let stored = match plan.copies.len() as u64 {
            0 => 0..0,
            count => self.numbers.take(count).expect("numbers"),
        };
        for (page, file_page) in plan.copies.iter().zip(stored.clone()) {
            let value = self.private[&(leaf, page.0)];
            assert_eq!(self.file.insert(file_page, value), None, "a frame in use");
        }
        self.private.retain(|(of, _), _| *of != leaf);
        self.tree.fill_as_planned(leaf, &plan, stored);
        self.tree.freeze(leaf)
    }

    /// The VM becomes what it was when it was frozen last, if that can be told.
    fn reset(&mut self, vm: usize) {
        let leaf = self.vms[vm].0;
        let Some(reach) = self.tree.node(leaf).parent() else {
            return;
        };
        let nr_pages = self.vms[vm].1.nr_pages;
        let same_place = |layer: &NodeId| {
            let all = self.tree.part_of(*layer, 0..nr_pages);
            self.tree.node(*layer).nr_pages() == nr_pages && self.tree.highest(all) == reach
        };
        let found = self.snapshots.iter().find(|(layer, _)| same_place(layer));
        let Some((_, eager)) = found.cloned() else {
            return;
        };
        let dirty = [0..nr_pages / 2, nr_pages / 2..nr_pages];
        let mut next = 0;
        for (pages, seen) in self.tree.plan_reset(leaf, &dirty).expect("memory") {
            assert_eq!(pages.start, next, "runs without gaps");
            next = pages.end;
            for (page, seen) in each_page(pages, seen) {
                let value = self.value_of(leaf, seen);
                assert_eq!(value, eager.value(page.0), "reset of {page:?}");
            }
        }
        assert_eq!(next, nr_pages);
        // What it has of its own is copied back, also what collapsed into it.
        let listed = self.tree.node(leaf).list.iter();
        let listed: Vec<_> = listed
            .map(|(offset, _)| PageIdx::containing(offset).0)
            .collect();
        self.owns(leaf, listed);
        let mut freed = FrameSet::default();
        self.tree.reset(leaf, &mut freed);
        self.private.retain(|(of, _), _| *of != leaf);
        self.free(freed);
        self.vms[vm].1 = eager;
    }

    fn resize(&mut self, vm: usize, nr_pages: u64) {
        let (leaf, eager) = &mut self.vms[vm];
        let leaf = *leaf;
        // Root RAM in a file has no room behind its end.
        let nr_pages = match self.root == Some(leaf) {
            true => nr_pages.min(PAGES),
            false => nr_pages,
        };
        let changed = nr_pages.min(eager.nr_pages)..nr_pages.max(eager.nr_pages);
        eager.nr_pages = nr_pages;
        eager.frames.retain(|page, _| *page < nr_pages);
        if self.root != Some(leaf) {
            self.owns(leaf, changed);
        }
        let mut freed = FrameSet::default();
        self.tree
            .resize(leaf, nr_pages, &mut freed)
            .expect("memory");
        self.private
            .retain(|(of, page), _| *of != leaf || *page < nr_pages);
        self.free(freed);
    }

    fn drop_vm(&mut self, vm: usize) {
        self.read_back(Reading::Listed);
        let (leaf, _) = self.vms.swap_remove(vm);
        self.windows.remove(&leaf);
        self.root = self.root.filter(|root| *root != leaf);
        let mut freed = FrameSet::default();
        self.tree.remove_leaf(leaf, &mut freed);
        self.private.retain(|(of, _), _| *of != leaf);
        self.free(freed);
    }

    fn drop_snapshot(&mut self, snapshot: usize) {
        let (layer, _) = self.snapshots.swap_remove(snapshot);
        self.release(layer);
    }

    fn release(&mut self, layer: NodeId) {
        self.read_back(Reading::Listed);
        let mut freed = FrameSet::default();
        self.tree.release(layer, &mut freed);
        self.free(freed);
    }

    fn reclaim(&mut self) {
        self.read_back(Reading::Exact);
        let leaves: Vec<_> = self.vms.iter().map(|(leaf, _)| *leaf).collect();
        for leaf in leaves {
            if self.root == Some(leaf) {
                self.list_committed(leaf);
            }
            self.drop_zeros(leaf);
        }
        let mut freed = FrameSet::default();
        let viewers = Viewers::count(&self.tree).expect("memory");
        viewers.reclaim(&mut self.tree, &mut freed).expect("memory");
        self.free(freed);
    }

    /// Lists of layers are brought up to `wanted`.
    fn read_back(&mut self, wanted: Reading) {
        let lagging: Vec<_> = self
            .tree
            .ids()
            .filter(|id| self.tree.node(*id).reading() > wanted && self.root != Some(*id))
            .collect();
        for id in lagging {
            self.tree.layers_have_changed();
            if self.tree.node(id).reading() == Reading::Unread {
                self.list_committed(id);
            }
            if wanted == Reading::Exact {
                self.drop_zeros(id);
            }
            self.tree.node_mut(id).set_reading(wanted);
        }
    }

    fn list_committed(&mut self, id: NodeId) {
        let committed: Vec<u64> = self.file.range(0..PAGES).map(|(page, _)| *page).collect();
        for page in committed {
            self.tree
                .list_committed(id, page..page + 1)
                .expect("memory");
        }
    }

    /// Frames in the list of `id` that hold zero go.
    fn drop_zeros(&mut self, id: NodeId) {
        let node = self.tree.node(id);
        let all = node
            .list
            .iter()
            .map(|(offset, _)| PageIdx::containing(offset));
        let zero: Vec<_> = all
            .filter(|page| match self.tree.resolve(id, *page) {
                seen @ Seen::Frame(_) => self.value_of(id, seen) == 0,
                Seen::Zero | Seen::Nothing => false,
            })
            .collect();
        let mut freed = FrameSet::default();
        for page in zero {
            self.tree.zero_slot(id, page, &mut freed).expect("memory");
            self.private.remove(&(id, page.0));
        }
        self.free(freed);
    }

    fn free(&mut self, frames: FrameSet) {
        for run in frames.into_runs() {
            self.file.retain(|page, _| !run.contains(page));
            self.numbers.give_back(run).expect("memory");
        }
    }

    /// What `viewer` reads where it sees `seen`.
    fn value_of(&self, viewer: NodeId, seen: Seen) -> u64 {
        match seen {
            Seen::Zero | Seen::Nothing => 0,
            Seen::Frame(frame) => match home(frame) {
                // A page of root RAM that nobody has touched is a hole.
                FrameHome::File(page) if page < PAGES => self.file.get(&page).copied().unwrap_or(0),
                FrameHome::File(page) => *self.file.get(&page).expect("a frame in use"),
                FrameHome::Window(page) => self.private[&(viewer, page.0)],
            },
        }
    }

    fn check_window(&self, plan: &WindowPlan, budget: usize, eager: &Eager) {
        assert!(plan.maps.len() <= budget);
        let mut shown = BTreeMap::new();
        for run in plan.maps.iter().chain(plan.copies.iter()) {
            for (page, file_page) in run.pages.clone().zip(run.file_page..) {
                shown.insert(page, self.file.get(&file_page).copied().unwrap_or(0));
            }
        }
        for page in 0..eager.nr_pages {
            let shown = shown.get(&page).copied().unwrap_or(0);
            assert_eq!(shown, eager.value(page), "page {page} of a new window");
        }
    }

    fn check_contents(&self) {
        for (id, eager) in self.vms.iter().chain(&self.snapshots) {
            assert_eq!(self.tree.node(*id).nr_pages(), eager.nr_pages);
            for page in 0..eager.nr_pages {
                let value = if self.root == Some(*id) {
                    self.file.get(&page).copied().unwrap_or(0)
                } else {
                    self.value_of(*id, self.tree.resolve(*id, PageIdx(page)))
                };
                assert_eq!(value, eager.value(page), "page {page} of {id:?}");
            }
        }
        for (id, eager) in self.vms.iter().filter(|(id, _)| self.root != Some(*id)) {
            let window = &self.windows[id];
            for page in (0..eager.nr_pages).filter(|page| !window.own.contains(page)) {
                let file_page = window.file.get(&page);
                let value = file_page.and_then(|page| self.file.get(page));
                let value = value.copied().unwrap_or(0);
                assert_eq!(
                    value,
                    eager.value(page),
                    "page {page} in the window of {id:?}"
                );
            }
        }
    }

    /// After a reclaim: frames, charges and markers are the oracle's.
    fn check_frames(&self) {
        // Snapshots of one layer are one viewer.
        let snapshots: BTreeMap<NodeId, &Eager> = self
            .snapshots
            .iter()
            .map(|(id, eager)| (*id, eager))
            .collect();
        let vms = self.vms.iter().map(|(id, eager)| (*id, eager));
        let viewers: Vec<(NodeId, &Eager)> = vms.chain(snapshots).collect();
        let mut seen_by: BTreeMap<*const u64, u64> = BTreeMap::new();
        for (_, eager) in &viewers {
            let frames: BTreeSet<_> = eager.frames.values().map(Rc::as_ptr).collect();
            frames
                .into_iter()
                .for_each(|frame| *seen_by.entry(frame).or_default() += 1);
        }
        let frames = self.file.len() + self.private.len();
        assert_eq!(frames, seen_by.len(), "frames in use");

        let counted = Viewers::count(&self.tree).expect("memory");
        let mut charged: BTreeMap<u64, u64> = BTreeMap::new();
        for (id, eager) in viewers {
            let mut wanted: BTreeMap<u64, u64> = BTreeMap::new();
            for frame in eager.frames.values() {
                *wanted.entry(seen_by[&Rc::as_ptr(frame)]).or_default() += 1;
            }
            let attribution = counted.attribution(&self.tree, id).expect("memory");
            let found: BTreeMap<u64, u64> = attribution.by_viewers().collect();
            assert_eq!(found, wanted, "charges of {id:?}");
            found
                .into_iter()
                .for_each(|(k, pages)| *charged.entry(k).or_default() += pages);
        }
        // Each k-th of a page is charged k times: whole pages, and all of them.
        let whole = charged.iter().map(|(k, pages)| {
            assert_eq!(pages % k, 0, "{pages} charges of 1/{k} are no whole pages");
            pages / k
        });
        assert_eq!(
            whole.sum::<u64>(),
            frames as u64,
            "charges add up to the frames"
        );
        self.check_markers();
    }

    /// Every marker hides something, and every layer is of use.
    fn check_markers(&self) {
        for id in self.tree.ids() {
            let list = &self.tree.node(id).list;
            let markers = list
                .iter()
                .filter(|(_, slot)| *slot == pagelist::SlotRef::Marker);
            for (offset, _) in markers {
                let page = PageIdx::containing(offset);
                assert_ne!(
                    self.tree.below(id, page),
                    Seen::Nothing,
                    "{page:?} of {id:?}"
                );
            }
            if self.tree.node(id).role() == (Role::Layer { handles: 0 }) {
                assert!(
                    self.tree.node(id).nr_children() >= 2,
                    "{id:?} is not shared"
                );
            }
        }
    }
}

/// Pages to clone, of any kind.
fn part(first: u8, len: u8) -> Range<u64> {
    let first = u64::from(first) % MOST_PAGES;
    first..first + 1 + u64::from(len) % MOST_PAGES
}
