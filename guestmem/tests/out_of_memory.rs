//! The allocator refuses each allocation of an operation in turn: whatever was
//! asked for has not happened, nobody else notices, and it works when it is
//! tried again. What cannot fail, because somebody goes, is done all the same.

#![expect(
    unsafe_code,
    clippy::unwrap_used,
    reason = "the allocator below; a failure here is a failed test"
)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use common::freeze;
use guestmem::{
    Backing, BlankWindow, CloneTree, Flattened, Flattener, Gpa, Layer, MemoryError, PAGE_SIZE,
    PageIdx, PreparedFreeze, Ram, RamLayout, TreeStats, Writers,
};
use vm_memory::{Bytes, GuestAddress};

/// Every allocation.
const ANY: usize = 1;
/// Every one but those of handles, whose size nobody decides: a VM, a window, a
/// snapshot. std ends the process where not even that is to be had.
const NOT_HANDLES: usize = 64;

thread_local! {
    /// Allocations of this thread that still succeed, and from how many bytes on
    /// they count; `None` for all.
    static LEFT: Cell<Option<(usize, usize)>> = const { Cell::new(None) };
}

/// The system's allocator, which can be told to say no, once.
struct Failing;

fn may_allocate(size: usize) -> bool {
    LEFT.with(|left| match left.get() {
        Some((n, at_least)) if size >= at_least => {
            left.set(n.checked_sub(1).map(|n| (n, at_least)));
            n != 0
        }
        _ => true,
    })
}

// UNSAFETY: memory running out can only be had from the allocator, and a global
// allocator is an unsafe trait.
//
// SAFETY: every call goes to the system's allocator unchanged, or fails.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !may_allocate(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if !may_allocate(new_size) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

const PAGES: u64 = 400;

/// What a failed operation leaves behind.
#[derive(Clone, Copy, PartialEq)]
enum Leaves {
    /// Everything as it was, to the page.
    Nothing,
    /// The same, but what was staged may be of no use any more, so that the VM
    /// stays in its window, with copies.
    Unstaged,
    /// The same to look at, but pages may be counted as copies in the window, or
    /// not.
    Contents,
    /// Some of its steps done, each whole. And where a step can be done in two
    /// ways, it may be the one that leaves more in the window.
    Steps,
}

/// A family with scattered pages at every level.
///
/// ```text
///   root RAM ── first ── second ── child      one page in three, in two, in five
///      │          └───── other                one in seven; the third layer is made by a test
///     root
/// ```
struct Life {
    tree: Arc<CloneTree>,
    root: Ram,
    first: Option<Layer>,
    second: Option<Layer>,
    third: Option<Layer>,
    child: Option<Ram>,
    other: Option<Ram>,
    /// What the child shows, and what lies below it.
    shows: Content,
    lies_below: Content,
}

fn layout(nr_pages: u64) -> RamLayout {
    RamLayout::new(nr_pages * PAGE_SIZE).unwrap()
}

fn of_first(page: u64) -> u64 {
    match page % 3 {
        0 => page + 1,
        _ => 0,
    }
}

fn of_second(page: u64) -> u64 {
    match page % 8 {
        0 => 0,
        n if n % 2 == 0 => 5000 + page,
        _ => of_first(page),
    }
}

fn of_child(page: u64) -> u64 {
    match page % 20 {
        0 => 0,
        n if n % 5 == 0 => 9000 + page,
        _ => of_second(page),
    }
}

fn of_other(page: u64) -> u64 {
    match page % 7 {
        0 => 7000 + page,
        _ => of_first(page),
    }
}

fn set_page(ram: &Ram, page: u64, value: u64) {
    let at = GuestAddress(page * PAGE_SIZE);
    ram.guest_ram().write_obj(value, at).unwrap();
}

/// What a VM of the family shows at a page, by its number.
type Content = fn(u64) -> u64;

fn write(ram: &Ram, step: usize, content: Content) {
    let memory = ram.guest_ram();
    for page in (0..PAGES).step_by(step) {
        let at = GuestAddress(page * PAGE_SIZE);
        memory.write_obj(content(page), at).unwrap();
    }
}

#[track_caller]
fn shows(ram: &Ram, content: Content) {
    let memory = ram.guest_ram();
    for page in 0..ram.layout().nr_pages() {
        let value: u64 = memory.read_obj(GuestAddress(page * PAGE_SIZE)).unwrap();
        assert_eq!(value, content(page), "page {page}");
    }
}

impl Life {
    fn new() -> Self {
        let mut root = Ram::new(layout(PAGES), Backing::Memfd).unwrap();
        write(&root, 3, of_first);
        let first = freeze(&mut root);
        // From here on it is known which pages of root RAM are zero, so that it
        // does not matter who has looked when.
        first.tree().stats().unwrap();
        let mut child = first.fork().unwrap();
        write(&child, 2, of_second);
        let second = freeze(&mut child);
        write(&child, 5, of_child);
        let other = first.fork().unwrap();
        write(&other, 7, of_other);
        Self {
            tree: Arc::clone(root.tree()),
            root,
            first: Some(first),
            second: Some(second),
            third: None,
            child: Some(child),
            other: Some(other),
            shows: of_child,
            lies_below: of_second,
        }
    }

    fn child(&mut self) -> &mut Ram {
        self.child.as_mut().unwrap()
    }

    /// What the list of the child says is what its window shows, once its guest
    /// has written `content`.
    fn check_list(&mut self, content: Content) {
        write(self.child(), 1, content);
        let layer = freeze(self.child());
        shows(&layer.fork().unwrap(), content);
    }

    /// All but the child, of which the caller knows what it shows.
    fn check_others(&self) {
        shows(&self.root, of_first);
        if let Some(other) = &self.other {
            shows(other, of_other);
        }
    }

    fn check(&self) {
        self.check_others();
        if let Some(child) = &self.child {
            shows(child, self.shows);
        }
    }

    /// To the page, but for the memory of the lists: a failed attempt may have
    /// made nodes that stay.
    fn stats(&self) -> TreeStats {
        self.tree.check_invariants();
        TreeStats {
            list_bytes: 0,
            ..self.tree.stats().unwrap()
        }
    }

    /// Everybody goes, and nothing stays.
    fn end(self) {
        let tree = Arc::clone(&self.tree);
        drop(self);
        let stats = tree.stats().unwrap();
        assert_eq!((stats.frames(), stats.committed_file_frames), (0, 0));
        assert_eq!((stats.leaves, stats.layers), (0, 0));
    }
}

/// Tells the allocator to say no to the `n`-th allocation that `operation`
/// makes; whether it made so many.
fn refusing<T>(n: usize, at_least: usize, operation: impl FnOnce() -> T) -> (T, bool) {
    LEFT.set(Some((n, at_least)));
    let result = operation();
    (result, LEFT.take().is_none())
}

/// Does `operation` on a life each time that `prepare` has prepared, with the
/// first, the second, … allocation refused, until none is. `check` says what
/// the child shows afterwards.
fn fails_cleanly<P, T>(
    (at_least, leaves): (usize, Leaves),
    prepare: impl Fn(&mut Life) -> P,
    operation: impl Fn(&mut Life, &mut P) -> Result<T, MemoryError>,
    check: impl Fn(&Life),
) {
    let mut life = Life::new();
    drop(prepare(&mut life));
    let before = life.stats();
    life.end();
    let mut life = Life::new();
    let mut prepared = prepare(&mut life);
    drop(operation(&mut life, &mut prepared).unwrap());
    drop(prepared);
    let after = life.stats();
    life.end();

    for n in 0.. {
        let mut life = Life::new();
        let mut prepared = prepare(&mut life);
        let attempt = || operation(&mut life, &mut prepared).map(drop);
        let (result, refused) = refusing(n, at_least, attempt);
        if let Err(error) = result {
            let is_memory = match &error {
                MemoryError::Bookkeeping => true,
                MemoryError::Os { source, .. } => source.kind() == std::io::ErrorKind::OutOfMemory,
                _ => false,
            };
            assert!(refused && is_memory, "allocation {n}: {error}");
            life.check_others();
            if leaves != Leaves::Steps {
                life.check();
            }
            // Whoever counts, settles: other lives are tried again without.
            match n % 4 {
                0 if matches!(leaves, Leaves::Nothing | Leaves::Unstaged) => {
                    assert_eq!(life.stats(), before, "after allocation {n} was refused");
                }
                1 if leaves != Leaves::Steps => {
                    life.check_list(life.shows);
                    continue;
                }
                2 if leaves != Leaves::Steps => {
                    life.check_list(life.lies_below);
                    continue;
                }
                _ => {}
            }
            drop(operation(&mut life, &mut prepared).unwrap());
        }
        check(&life);
        life.check_others();
        drop(prepared);
        let mut now = life.stats();
        if leaves == Leaves::Unstaged {
            now.window_copies = after.window_copies;
        }
        if !refused || leaves != Leaves::Steps {
            assert_eq!(now, after, "with allocation {n} refused at first");
        }
        life.end();
        if !refused {
            assert!(n > 0, "nothing was allocated");
            return;
        }
    }
}

fn nothing(_: &mut Life) {}

#[test]
fn settling_is_refused_or_done() {
    let settle = |life: &mut Life, (): &mut ()| life.child().settle(Writers::MayRun);
    fails_cleanly((ANY, Leaves::Nothing), nothing, settle, Life::check);
}

#[test]
fn settling_with_a_look_for_zeros_is_refused_or_done() {
    let settle = |life: &mut Life, (): &mut ()| life.child().settle(Writers::Stopped);
    fails_cleanly((ANY, Leaves::Steps), nothing, settle, Life::check);
}

#[test]
fn counting_is_refused_or_done() {
    let tree = |life: &mut Life, (): &mut ()| life.tree.stats();
    fails_cleanly((ANY, Leaves::Nothing), nothing, tree, Life::check);
    let child = |life: &mut Life, (): &mut ()| life.child().stats();
    fails_cleanly((ANY, Leaves::Nothing), nothing, child, Life::check);
    let commits = |life: &mut Life, (): &mut ()| life.child().freeze_commits_bytes();
    fails_cleanly((ANY, Leaves::Nothing), nothing, commits, Life::check);
}

#[test]
fn reclaiming_is_refused_or_done() {
    let unseen = |life: &mut Life| {
        for ram in [&mut life.root, life.child.as_mut().unwrap()] {
            write(ram, 1, |page| page + 1);
        }
        write(life.child(), 1, of_child);
        write(&life.root, 1, of_first);
        (life.first, life.second) = (None, None);
    };
    let reclaim = |life: &mut Life, (): &mut ()| life.tree.reclaim();
    fails_cleanly((ANY, Leaves::Steps), unseen, reclaim, Life::check);
}

fn prepare(life: &mut Life) -> PreparedFreeze {
    life.child().prepare_freeze().unwrap()
}

fn stage(life: &mut Life, prepared: &mut PreparedFreeze) -> Result<(), MemoryError> {
    let blank = BlankWindow::new(layout(PAGES)).unwrap();
    life.child().stage(prepared, &blank).map(drop)
}

#[test]
fn preparing_a_freeze_is_refused_or_done() {
    let prepare = |life: &mut Life, (): &mut ()| life.child().prepare_freeze();
    let limits = (NOT_HANDLES, Leaves::Nothing);
    fails_cleanly(limits, nothing, prepare, Life::check);
}

#[test]
fn staging_a_window_is_refused_or_done() {
    let limits = (NOT_HANDLES, Leaves::Nothing);
    fails_cleanly(limits, prepare, stage, Life::check);
}

fn freeze_prepared(life: &mut Life, prepared: &mut PreparedFreeze) -> Result<(), MemoryError> {
    let (layer, _) = life.child.as_mut().unwrap().freeze(prepared)?;
    life.third = Some(layer);
    Ok(())
}

#[test]
fn a_freeze_is_refused_or_done() {
    let freeze = freeze_prepared;
    let check = |life: &Life| {
        life.check();
        shows(&life.third.as_ref().unwrap().fork().unwrap(), life.shows);
    };
    let limits = (NOT_HANDLES, Leaves::Nothing);
    fails_cleanly(limits, prepare, freeze, check);
    let in_a_staged_window = |life: &mut Life| {
        let mut prepared = prepare(life);
        stage(life, &mut prepared).unwrap();
        write(life.child(), 2, |page| page + 1);
        write(life.child(), 1, of_child);
        prepared
    };
    let limits = (NOT_HANDLES, Leaves::Unstaged);
    fails_cleanly(limits, in_a_staged_window, freeze, check);
    let after_a_reset = |life: &mut Life| {
        let prepared = prepare(life);
        let below = life.second.take().unwrap();
        life.child().reset(&below).unwrap();
        life.second = Some(below);
        write(life.child(), 5, of_child);
        prepared
    };
    let limits = (NOT_HANDLES, Leaves::Contents);
    fails_cleanly(limits, after_a_reset, freeze, check);
}

#[test]
fn a_freeze_of_what_was_copied_ahead_is_refused_or_done() {
    fn of_its_own(page: u64) -> u64 {
        1_000_000 + page
    }
    let written = |life: &mut Life| {
        write(life.child(), 1, of_its_own);
        life.shows = of_its_own;
        let mut prepared = prepare(life);
        stage(life, &mut prepared).unwrap();
        prepared
    };
    let copied = |life: &mut Life| {
        let mut prepared = written(life);
        prepared.copy_ahead();
        write(life.child(), 3, of_its_own);
        prepared
    };
    let copy_and_freeze = |life: &mut Life, prepared: &mut PreparedFreeze| {
        prepared.copy_ahead();
        freeze_prepared(life, prepared)
    };
    let check = |life: &Life| {
        life.check();
        shows(&life.third.as_ref().unwrap().fork().unwrap(), of_its_own);
    };
    let limits = (NOT_HANDLES, Leaves::Unstaged);
    fails_cleanly(limits, written, copy_and_freeze, check);
    fails_cleanly(limits, copied, freeze_prepared, check);
}

#[test]
fn a_fork_is_refused_or_done() {
    let fork = |life: &mut Life, (): &mut ()| {
        let fork = life.second.as_ref().unwrap().fork()?;
        life.other = None;
        life.child = Some(fork);
        Ok(())
    };
    let limits = (NOT_HANDLES, Leaves::Nothing);
    let check = |life: &Life| shows(life.child.as_ref().unwrap(), of_second);
    fails_cleanly(limits, nothing, fork, check);
}

#[test]
fn a_clone_of_a_part_is_refused_or_done() {
    let clone = |life: &mut Life, (): &mut ()| {
        let part = life.second.as_ref().unwrap();
        life.child = Some(part.clone_part(PageIdx(20), layout(300))?);
        Ok(())
    };
    let limits = (NOT_HANDLES, Leaves::Nothing);
    let check = |life: &Life| {
        shows(life.child.as_ref().unwrap(), |page| of_second(page + 20));
    };
    fails_cleanly(limits, nothing, clone, check);
}

#[test]
fn a_reset_is_refused_or_done() {
    let reset = |life: &mut Life, (): &mut ()| {
        let layer = life.second.as_ref().unwrap();
        life.child.as_mut().unwrap().reset(layer)
    };
    let check = |life: &Life| shows(life.child.as_ref().unwrap(), of_second);
    fails_cleanly((ANY, Leaves::Contents), nothing, reset, check);
}

#[test]
fn a_reset_of_a_vm_with_frames_and_markers_of_its_own_is_refused_or_done() {
    fn of_mixed(page: u64) -> u64 {
        match page {
            0..30 => 3000 + page,
            30..60 => 0,
            _ if page.is_multiple_of(11) => 4000 + page,
            _ => of_first(page),
        }
    }
    let mixed = |life: &mut Life| {
        let mut mixed = life.first.as_ref().unwrap().fork().unwrap();
        for page in 0..30 {
            set_page(&mixed, page, of_mixed(page));
        }
        drop(freeze(&mut mixed)); // the frames are the VM's own again
        let (start, len) = (Gpa(30 * PAGE_SIZE), 30 * PAGE_SIZE);
        mixed.discard(start, len).unwrap();
        for page in (66..PAGES).step_by(11) {
            set_page(&mixed, page, of_mixed(page));
        }
        (life.second, life.child) = (None, Some(mixed));
        (life.shows, life.lies_below) = (of_mixed, of_first);
    };
    let reset = |life: &mut Life, (): &mut ()| {
        let layer = life.first.as_ref().unwrap();
        life.child.as_mut().unwrap().reset(layer)
    };
    let check = |life: &Life| shows(life.child.as_ref().unwrap(), of_first);
    fails_cleanly((ANY, Leaves::Contents), mixed, reset, check);
}

#[test]
fn a_discard_is_refused_or_done() {
    let discard = |life: &mut Life, (): &mut ()| {
        let start = Gpa(100 * PAGE_SIZE);
        life.child().discard(start, 200 * PAGE_SIZE)
    };
    let check = |life: &Life| {
        shows(life.child.as_ref().unwrap(), |page| match page {
            100..300 => 0,
            _ => of_child(page),
        });
    };
    fails_cleanly((ANY, Leaves::Steps), nothing, discard, check);
}

#[test]
fn another_size_is_refused_or_given() {
    let smaller = |life: &mut Life, (): &mut ()| life.child().resize(layout(PAGES / 2));
    let check = |life: &Life| shows(life.child.as_ref().unwrap(), of_child);
    fails_cleanly((ANY, Leaves::Nothing), nothing, smaller, check);
    let small = |life: &mut Life| life.child().resize(layout(PAGES / 2)).unwrap();
    let larger = |life: &mut Life, (): &mut ()| life.child().resize(layout(PAGES));
    let limits = (ANY, Leaves::Steps);
    fails_cleanly(limits, small, larger, |life| {
        shows(life.child.as_ref().unwrap(), |page| match page {
            200.. => 0,
            _ => of_child(page),
        });
    });
}

#[test]
fn looking_for_zeros_and_dropping_them_is_refused_or_done() {
    let look = |life: &mut Life, (): &mut ()| {
        let found = life.child().look_for_zeros(PageIdx(0), PAGES)?;
        life.child().drop_zeros(&found)
    };
    fails_cleanly((ANY, Leaves::Steps), nothing, look, Life::check);
}

#[test]
fn collapsing_is_refused_or_done() {
    let whole = |_: &mut Life| {
        let mut huge = Ram::new(layout(512), Backing::Memfd).unwrap();
        let memory = huge.guest_ram();
        for page in 0..512 {
            memory
                .write_obj(page + 1, GuestAddress(page * PAGE_SIZE))
                .unwrap();
        }
        drop(memory);
        let layer = freeze(&mut huge);
        (layer.collapser(), layer)
    };
    let collapse =
        |_: &mut Life, (collapser, _): &mut (guestmem::Collapser, Layer)| collapser.step();
    fails_cleanly((ANY, Leaves::Nothing), whole, collapse, Life::check);
}

/// The child is frozen upon three layers, and nobody has forked from its layer.
fn layered(life: &mut Life) -> Flattener {
    let layer = freeze(life.child());
    let flattener = layer.flattener(u64::MAX);
    life.third = Some(layer);
    flattener
}

/// Flattens a layer, in front of others that know nothing of it.
fn flatten(flattener: &mut Flattener) -> Result<(), MemoryError> {
    while flattener.step()? == Flattened::Partly {}
    Ok(())
}

#[test]
fn flattening_is_refused_or_done() {
    let flatten = |_: &mut Life, flattener: &mut Flattener| flatten(flattener);
    let check = |life: &Life| {
        life.check();
        let fork = life.third.as_ref().unwrap().fork().unwrap();
        shows(&fork, of_child);
        assert_eq!(fork.stats().unwrap().mappings, 1);
    };
    fails_cleanly((NOT_HANDLES, Leaves::Nothing), layered, flatten, check);
}

/// What cannot fail: each has to be done, whatever is refused, and no frame is
/// lost for it.
fn goes_anyway(prepare: impl Fn(&mut Life), go: impl Fn(&mut Life)) {
    let mut life = Life::new();
    prepare(&mut life);
    go(&mut life);
    let after = life.stats();
    life.end();
    for n in 0.. {
        let mut life = Life::new();
        prepare(&mut life);
        let ((), refused) = refusing(n, ANY, || go(&mut life));
        life.check();
        assert_eq!(life.stats(), after, "with allocation {n} refused");
        life.end();
        if !refused {
            return;
        }
    }
}

#[test]
fn a_vm_goes_without_memory_for_it() {
    goes_anyway(nothing, |life| life.other = None);
    goes_anyway(nothing, |life| (life.child, life.second) = (None, None));
}

#[test]
fn a_snapshot_goes_without_memory_for_it() {
    goes_anyway(nothing, |life| life.second = None);
    goes_anyway(nothing, |life| (life.first, life.second) = (None, None));
    goes_anyway(nothing, |life| {
        (life.first, life.other, life.second) = (None, None, None)
    });
}

#[test]
fn a_flat_layer_goes_without_memory_for_it() {
    let flat = |life: &mut Life| {
        flatten(&mut layered(life)).unwrap();
        life.other = Some(life.third.as_ref().unwrap().fork().unwrap());
        write(life.other.as_ref().unwrap(), 7, of_other);
        write(life.other.as_ref().unwrap(), 1, of_other);
    };
    goes_anyway(flat, |life| life.third = None);
    goes_anyway(flat, |life| (life.third, life.other) = (None, None));
    let all_but_root = |life: &mut Life| {
        (life.first, life.second, life.third) = (None, None, None);
        (life.child, life.other) = (None, None);
    };
    goes_anyway(flat, all_but_root);
}
