//! Random lives of a clone tree on real memory, against an oracle that copies
//! eagerly: contents, frames and the kernel's own count must agree.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::{freeze, page_value, set_page};
use guestmem::{
    Backing, BlankWindow, CloneTree, Flattened, Gpa, Layer, MemoryError, PAGE_SIZE, PageIdx, Ram,
    RamLayout, SpareRam, Writers,
};
use proptest::prelude::*;

const PAGES: u64 = 40;

/// One step in the life of a tree. VMs and snapshots are picked modulo how
/// many there are.
#[derive(Clone, Debug)]
enum Op {
    Write {
        vm: usize,
        page: u64,
        value: u64,
    },
    Fork {
        vm: usize,
        over_root: bool,
    },
    Snapshot {
        vm: usize,
    },
    /// What is prepared while others, and the VM itself, go on.
    LateFreeze {
        vm: usize,
        stage: bool,
        meanwhile: Vec<Meanwhile>,
    },
    ForkSnapshot {
        snapshot: usize,
    },
    ClonePart {
        snapshot: usize,
        first: u64,
        len: u64,
    },
    Resize {
        vm: usize,
        len: u64,
    },
    Reset {
        vm: usize,
        snapshot: usize,
    },
    Discard {
        vm: usize,
        page: u64,
        len: u64,
    },
    Settle {
        vm: usize,
    },
    DropVm {
        vm: usize,
    },
    DropSnapshot {
        snapshot: usize,
    },
    /// The snapshot goes over to a flat layer, if that is worth it after so many
    /// forks; others go on meanwhile.
    Flatten {
        snapshot: usize,
        forks: u64,
        meanwhile: Vec<Meanwhile>,
    },
    /// A window that is made now is used by a VM after others have gone on.
    SpareOfSnapshot {
        snapshot: usize,
    },
    UseSpare,
    Reclaim,
}

/// What may happen between preparing a freeze of a VM and freezing it.
#[derive(Clone, Debug)]
enum Meanwhile {
    Write { page: u64, value: u64 },
    Discard { page: u64, len: u64 },
    DropOther { vm: usize },
    WriteOther { vm: usize, page: u64, value: u64 },
    DropSnapshot { snapshot: usize },
    Reclaim,
}

fn meanwhile() -> impl Strategy<Value = Meanwhile> {
    let value = || prop_oneof![Just(0), any::<u64>()];
    prop_oneof![
        4 => (0..PAGES, value()).prop_map(|(page, value)| Meanwhile::Write { page, value }),
        1 => (0..PAGES, 1..8u64).prop_map(|(page, len)| Meanwhile::Discard { page, len }),
        1 => (0..64usize).prop_map(|vm| Meanwhile::DropOther { vm }),
        1 => (0..64usize, 0..PAGES, value())
            .prop_map(|(vm, page, value)| Meanwhile::WriteOther { vm, page, value }),
        1 => (0..64usize).prop_map(|snapshot| Meanwhile::DropSnapshot { snapshot }),
        1 => Just(Meanwhile::Reclaim),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let vm = 0..64usize;
    let snapshot = 0..64usize;
    prop_oneof![
        // Zero is a value like others, and more likely than most.
        12 => (vm.clone(), 0..PAGES, prop_oneof![Just(0), any::<u64>()])
            .prop_map(|(vm, page, value)| Op::Write { vm, page, value }),
        4 => (vm.clone(), any::<bool>()).prop_map(|(vm, over_root)| Op::Fork { vm, over_root }),
        2 => vm.clone().prop_map(|vm| Op::Snapshot { vm }),
        3 => (vm.clone(), any::<bool>(), prop::collection::vec(meanwhile(), 0..4))
            .prop_map(|(vm, stage, meanwhile)| Op::LateFreeze { vm, stage, meanwhile }),
        2 => snapshot.clone().prop_map(|snapshot| Op::ForkSnapshot { snapshot }),
        2 => (snapshot.clone(), 0..PAGES + 2, 1..PAGES + 8)
            .prop_map(|(snapshot, first, len)| Op::ClonePart { snapshot, first, len }),
        2 => (vm.clone(), 1..PAGES + 8).prop_map(|(vm, len)| Op::Resize { vm, len }),
        2 => (vm.clone(), snapshot.clone()).prop_map(|(vm, snapshot)| Op::Reset { vm, snapshot }),
        2 => (vm.clone(), 0..PAGES, 1..8u64).prop_map(|(vm, page, len)| Op::Discard { vm, page, len }),
        2 => vm.clone().prop_map(|vm| Op::Settle { vm }),
        3 => vm.prop_map(|vm| Op::DropVm { vm }),
        2 => snapshot.clone().prop_map(|snapshot| Op::DropSnapshot { snapshot }),
        3 => (snapshot.clone(), 1..6u64, prop::collection::vec(meanwhile(), 0..3))
            .prop_map(|(snapshot, forks, meanwhile)| Op::Flatten {
                snapshot,
                forks: if forks == 5 { 1 << 32 } else { 4 * forks },
                meanwhile,
            }),
        1 => snapshot.prop_map(|snapshot| Op::SpareOfSnapshot { snapshot }),
        1 => Just(Op::UseSpare),
        1 => Just(Op::Reclaim),
    ]
}

/// What a VM or snapshot holds, as the oracle has it: a shared frame for every
/// page that is not zero.
type Content = BTreeMap<u64, Arc<u64>>;

struct World {
    tree: Arc<CloneTree>,
    vms: Vec<(Ram, Content)>,
    snapshots: Vec<(Layer, Content)>,
    /// At most one, used by nobody yet.
    spare: Option<(SpareRam, Content)>,
}

impl World {
    fn new(backing: Backing) -> Self {
        let layout = RamLayout::new(PAGES * PAGE_SIZE).unwrap();
        let root = Ram::new(layout, backing).unwrap();
        Self {
            tree: Arc::clone(root.tree()),
            vms: vec![(root, Content::new())],
            snapshots: Vec::new(),
            spare: None,
        }
    }

    fn apply(&mut self, op: &Op) {
        let (vms, snapshots) = (self.vms.len(), self.snapshots.len());
        match *op {
            Op::Write { vm, page, value } if vms > 0 => {
                let (ram, content) = &mut self.vms[vm % vms];
                let page = page % ram.layout().nr_pages();
                set_page(ram, page, value);
                if value == 0 {
                    content.remove(&page);
                } else {
                    content.insert(page, Arc::new(value));
                }
            }
            Op::Fork { vm, over_root } if vms > 0 && vms < 12 => {
                let (ram, content) = &mut self.vms[vm % vms];
                let blank = match over_root {
                    true => BlankWindow::for_tree(&self.tree, ram.layout()).unwrap(),
                    false => BlankWindow::new(ram.layout()).unwrap(),
                };
                let child = freeze(ram).spare(&blank).unwrap().into_ram();
                let content = content.clone();
                self.vms.push((child, content));
            }
            Op::Snapshot { vm } if vms > 0 && snapshots < 6 => {
                let (ram, content) = &mut self.vms[vm % vms];
                let layer = freeze(ram);
                let content = content.clone();
                self.snapshots.push((layer, content));
            }
            Op::LateFreeze {
                vm,
                stage,
                ref meanwhile,
            } if vms > 0 && snapshots < 6 => self.late_freeze(vm % vms, stage, meanwhile),
            Op::ForkSnapshot { snapshot } if snapshots > 0 && vms < 12 => {
                let (layer, content) = &self.snapshots[snapshot % snapshots];
                self.vms.push((layer.fork().unwrap(), content.clone()));
            }
            Op::ClonePart {
                snapshot,
                first,
                len,
            } if snapshots > 0 && vms < 12 => {
                let (layer, content) = &self.snapshots[snapshot % snapshots];
                let layout = RamLayout::new(len * PAGE_SIZE).unwrap();
                let clone = layer.clone_part(PageIdx(first), layout).unwrap();
                let seen = content.range(first..first + len);
                let seen = seen.map(|(page, value)| (page - first, Arc::clone(value)));
                self.vms.push((clone, seen.collect()));
            }
            Op::Resize { vm, len } if vms > 0 => {
                let (ram, content) = &mut self.vms[vm % vms];
                match ram.resize(RamLayout::new(len * PAGE_SIZE).unwrap()) {
                    Ok(()) => content.retain(|page, _| *page < len),
                    Err(error) => {
                        assert!(matches!(error, MemoryError::BeyondWindow { .. }));
                        assert!(ram.layout().nr_pages() < len);
                    }
                }
            }
            Op::Reset { vm, snapshot } if vms > 0 && snapshots > 0 => {
                let (layer, wanted) = &self.snapshots[snapshot % snapshots];
                let (ram, content) = &mut self.vms[vm % vms];
                if ram.can_reset_to(layer) {
                    ram.reset(layer).unwrap();
                } else {
                    *ram = layer.fork().unwrap();
                }
                content.clone_from(wanted);
            }
            Op::Discard { vm, page, len } if vms > 0 => {
                let (ram, content) = &mut self.vms[vm % vms];
                let page = page % ram.layout().nr_pages();
                let len = len.min(ram.layout().nr_pages() - page);
                ram.discard(Gpa(page * PAGE_SIZE), len * PAGE_SIZE).unwrap();
                content.retain(|at, _| !(page..page + len).contains(at));
            }
            Op::Settle { vm } if vms > 0 => {
                self.vms[vm % vms].0.settle(Writers::Stopped).unwrap();
            }
            Op::DropVm { vm } if vms > 0 => drop(self.vms.swap_remove(vm % vms)),
            Op::DropSnapshot { snapshot } if snapshots > 0 => {
                drop(self.snapshots.swap_remove(snapshot % snapshots));
            }
            Op::Flatten {
                snapshot,
                forks,
                ref meanwhile,
            } if snapshots > 0 => self.flatten(snapshot % snapshots, forks, meanwhile),
            Op::SpareOfSnapshot { snapshot } if snapshots > 0 => {
                let (layer, content) = &self.snapshots[snapshot % snapshots];
                let blank = BlankWindow::new(layer.layout()).unwrap();
                self.spare = Some((layer.spare(&blank).unwrap(), content.clone()));
            }
            Op::UseSpare if vms < 12 => {
                let spare = self.spare.take();
                self.vms
                    .extend(spare.map(|(ram, content)| (ram.into_ram(), content)));
            }
            Op::Reclaim => drop(self.tree.reclaim().unwrap()),
            _ => {}
        }
    }

    fn flatten(&mut self, snapshot: usize, forks: u64, meanwhile: &[Meanwhile]) {
        let (layer, content) = self.snapshots.swap_remove(snapshot);
        let mut flattener = layer.flattener(forks);
        let mut flattened = Some((layer, content));
        let mut stepped = flattener.step().unwrap();
        for step in meanwhile {
            match *step {
                Meanwhile::DropSnapshot { snapshot } if snapshot % 2 == 0 => flattened = None,
                _ => self.go_on(step),
            }
        }
        while stepped == Flattened::Partly {
            stepped = flattener.step().unwrap();
        }
        let Some((layer, content)) = flattened else {
            assert_eq!(stepped, Flattened::LeftAlone);
            return;
        };
        self.snapshots.push((layer, content.clone()));
        if stepped == Flattened::LeftAlone {
            return;
        }
        // What was copied has frames of its own now, for all these snapshots.
        let (layer, _) = self.snapshots.last().unwrap();
        let copied = layer.own_pages().unwrap().into_iter();
        let copied = copied.flat_map(|pages| pages.start.0..pages.end.0);
        let frames = copied.map(|page| (page, Arc::new(*content[&page])));
        let frames: Content = frames.collect();
        assert!(!frames.is_empty());
        let same = self
            .snapshots
            .iter()
            .map(|(other, _)| other.is_same_as(layer));
        let same: Vec<bool> = same.collect();
        for ((_, content), _) in self
            .snapshots
            .iter_mut()
            .zip(same)
            .filter(|(_, same)| *same)
        {
            content.extend(
                frames
                    .iter()
                    .map(|(page, value)| (*page, Arc::clone(value))),
            );
        }
    }

    fn late_freeze(&mut self, vm: usize, stage: bool, meanwhile: &[Meanwhile]) {
        let (mut ram, mut content) = self.vms.swap_remove(vm);
        let mut prepared = ram.prepare_freeze().unwrap();
        if stage || prepared.wants_window() {
            let blank = BlankWindow::for_tree(&self.tree, ram.layout()).unwrap();
            ram.stage(&mut prepared, &blank).unwrap();
        }
        for step in meanwhile {
            match *step {
                Meanwhile::Write { page, value } => {
                    let page = page % ram.layout().nr_pages();
                    set_page(&ram, page, value);
                    if value == 0 {
                        content.remove(&page);
                    } else {
                        content.insert(page, Arc::new(value));
                    }
                }
                Meanwhile::Discard { page, len } => {
                    let page = page % ram.layout().nr_pages();
                    let len = len.min(ram.layout().nr_pages() - page);
                    ram.discard(Gpa(page * PAGE_SIZE), len * PAGE_SIZE).unwrap();
                    content.retain(|at, _| !(page..page + len).contains(at));
                }
                _ => self.go_on(step),
            }
        }
        let (layer, _left) = ram.freeze(&mut prepared).unwrap();
        self.snapshots.push((layer, content.clone()));
        self.vms.push((ram, content));
    }

    /// What others do.
    fn go_on(&mut self, step: &Meanwhile) {
        match *step {
            Meanwhile::Write { .. } | Meanwhile::Discard { .. } => {}
            Meanwhile::DropOther { vm } => self.apply(&Op::DropVm { vm }),
            Meanwhile::WriteOther { vm, page, value } => {
                self.apply(&Op::Write { vm, page, value });
            }
            Meanwhile::DropSnapshot { snapshot } => self.apply(&Op::DropSnapshot { snapshot }),
            Meanwhile::Reclaim => self.apply(&Op::Reclaim),
        }
    }

    fn check_contents(&self) {
        for (index, (ram, content)) in self.vms.iter().enumerate() {
            for page in 0..ram.layout().nr_pages() {
                let found = page_value(ram, page);
                let wanted = content.get(&page).map_or(0, |value| **value);
                assert_eq!(found, wanted, "page {page} of VM {index}");
            }
        }
    }

    /// After reclaiming, exactly the frames of the oracle are in use.
    fn check_frames(&mut self) {
        for (ram, _) in &mut self.vms {
            ram.settle(Writers::Stopped).unwrap();
        }
        self.tree.reclaim().unwrap();
        self.tree.check_invariants();
        let contents = self.vms.iter().map(|(_, content)| content);
        let contents = contents.chain(self.snapshots.iter().map(|(_, content)| content));
        let contents = contents.chain(self.spare.iter().map(|(_, content)| content));
        let frames: BTreeSet<*const u64> = contents
            .flat_map(Content::values)
            .map(Arc::as_ptr)
            .collect();
        let stats = self.tree.stats().unwrap();
        assert_eq!(stats.frames(), frames.len() as u64, "{stats:?}");
        assert_eq!(stats.leaves, self.vms.len() as u64);
        self.check_attribution();
    }

    /// Charges are exact: k pages seen by n viewers each come up in n places.
    fn check_attribution(&self) {
        let mut viewers: BTreeMap<*const u64, u64> = BTreeMap::new();
        let contents = self.vms.iter().map(|(_, content)| content);
        for content in contents.chain(self.snapshots.iter().map(|(_, content)| content)) {
            for frame in content.values() {
                *viewers.entry(Arc::as_ptr(frame)).or_default() += 1;
            }
        }
        // Snapshots of the same layer are one viewer to the tree; leave those out.
        let distinct: BTreeSet<Vec<*const u64>> = self
            .snapshots
            .iter()
            .map(|(_, content)| content.values().map(Arc::as_ptr).collect())
            .collect();
        // A layer that a spare shows is one more viewer if its snapshot has moved.
        if distinct.len() < self.snapshots.len() || self.spare.is_some() {
            return;
        }
        for (ram, content) in &self.vms {
            let mut wanted: BTreeMap<u64, u64> = BTreeMap::new();
            for frame in content.values() {
                *wanted.entry(viewers[&Arc::as_ptr(frame)]).or_default() += 1;
            }
            let charged = ram.stats().unwrap().attribution;
            assert_eq!(charged.by_viewers().collect::<BTreeMap<_, _>>(), wanted);
        }
    }
}

fn live(backing: Backing, ops: &[Op]) {
    let mut world = World::new(backing);
    for (step, op) in ops.iter().enumerate() {
        world.apply(op);
        world.check_contents();
        if step % 8 == 7 {
            world.check_frames();
            world.check_contents();
        }
    }
    world.check_frames();
    let tree = Arc::clone(&world.tree);
    drop(world);
    let stats = tree.stats().unwrap();
    assert_eq!((stats.frames(), stats.committed_file_frames), (0, 0));
    assert_eq!((stats.leaves, stats.layers), (0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_life_of_a_memfd_tree_matches_eager_copies(ops in prop::collection::vec(op(), 1..80)) {
        live(Backing::Memfd, &ops);
    }

    #[test]
    fn any_life_of_an_anonymous_tree_matches_eager_copies(ops in prop::collection::vec(op(), 1..80)) {
        live(Backing::Anon, &ops);
    }
}
