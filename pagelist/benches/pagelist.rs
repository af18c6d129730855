//! What a page list costs, beside what one could use instead.
//!
//! ```text
//! cargo bench -p pagelist              every figure
//! cargo bench -p pagelist -- --summary the ratios that are promised, PASS or SHORT
//! ```
//!
//! Everything is measured in one run, the subjects taking turns, and the best of
//! several rounds counts: noise only ever adds. Without `--bench`, which is how
//! `cargo test --benches` runs this, a small size is gone through once.

#![expect(
    unsafe_code,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "the allocator below; figures are rounded; a failure ends the run"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use pagelist::{FrameId, PAGE_SIZE, PageList, PageOrMarker, SlotRef};

/// Bytes that are allocated at the moment.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counting.
struct Counting;

// UNSAFETY: bytes per page of a BTreeMap or a HashMap can only be had from the
// allocator, and a global allocator is an unsafe trait.
//
// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATED.fetch_add(new_size, Ordering::Relaxed);
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A map from offset to frame, as a page list is one.
trait Subject: Default {
    const NAME: &'static str;
    fn insert(&mut self, offset: u64, frame: u32);
    fn get(&self, offset: u64) -> u32;
    /// Goes through all entries in order.
    fn walk(&self) -> u64;
    /// Takes all entries out in order.
    fn drain(&mut self) -> u64;
}

impl Subject for PageList {
    const NAME: &'static str = "PageList";

    fn insert(&mut self, offset: u64, frame: u32) {
        let entry = PageOrMarker::page(FrameId::new(frame));
        let old = PageList::insert(self, offset, entry).unwrap();
        assert!(old.is_empty());
    }

    fn get(&self, offset: u64) -> u32 {
        match PageList::get(self, offset) {
            SlotRef::Page(frame) => frame.index(),
            SlotRef::Empty | SlotRef::Marker => 0,
        }
    }

    fn walk(&self) -> u64 {
        let mut sum = 0;
        for (offset, slot) in self {
            if let SlotRef::Page(frame) = slot {
                sum += offset ^ u64::from(frame.index());
            }
        }
        sum
    }

    fn drain(&mut self) -> u64 {
        let mut sum = 0;
        self.remove_all_pages(|frame| sum += u64::from(frame.index()));
        sum
    }
}

impl Subject for BTreeMap<u64, u32> {
    const NAME: &'static str = "BTreeMap";

    fn insert(&mut self, offset: u64, frame: u32) {
        BTreeMap::insert(self, offset, frame);
    }

    fn get(&self, offset: u64) -> u32 {
        BTreeMap::get(self, &offset).copied().unwrap_or(0)
    }

    fn walk(&self) -> u64 {
        let entries = self.iter();
        entries.fold(0, |sum, (offset, frame)| sum + (offset ^ u64::from(*frame)))
    }

    fn drain(&mut self) -> u64 {
        let entries = std::mem::take(self).into_values();
        entries.fold(0, |sum, frame| sum + u64::from(frame))
    }
}

/// With the standard hasher, as one would reach for it. Its walk and drain are
/// not in order.
impl Subject for HashMap<u64, u32> {
    const NAME: &'static str = "HashMap";

    fn insert(&mut self, offset: u64, frame: u32) {
        HashMap::insert(self, offset, frame);
    }

    fn get(&self, offset: u64) -> u32 {
        HashMap::get(self, &offset).copied().unwrap_or(0)
    }

    fn walk(&self) -> u64 {
        let entries = self.iter();
        entries.fold(0, |sum, (offset, frame)| sum + (offset ^ u64::from(*frame)))
    }

    fn drain(&mut self) -> u64 {
        let entries = std::mem::take(self).into_values();
        entries.fold(0, |sum, frame| sum + u64::from(frame))
    }
}

/// One entry a page of address space: the limit for what is dense.
#[derive(Default)]
struct Flat(Vec<u32>);

impl Subject for Flat {
    const NAME: &'static str = "Vec";

    fn insert(&mut self, offset: u64, frame: u32) {
        let page = (offset / PAGE_SIZE) as usize;
        if page >= self.0.len() {
            self.0.resize(page + 1, 0);
        }
        self.0[page] = frame + 1;
    }

    fn get(&self, offset: u64) -> u32 {
        let page = (offset / PAGE_SIZE) as usize;
        self.0.get(page).map_or(0, |frame| frame.wrapping_sub(1))
    }

    fn walk(&self) -> u64 {
        let mut sum = 0;
        for (page, &frame) in self.0.iter().enumerate() {
            if frame != 0 {
                sum += (page as u64 * PAGE_SIZE) ^ u64::from(frame - 1);
            }
        }
        sum
    }

    fn drain(&mut self) -> u64 {
        let entries = std::mem::take(&mut self.0).into_iter();
        let frames = entries.filter(|&frame| frame != 0);
        frames.fold(0, |sum, frame| sum + u64::from(frame - 1))
    }
}

/// Best times so far, in nanoseconds for each page.
#[derive(Clone, Copy)]
struct Times {
    insert: f64,
    lookup: f64,
    /// The same, each lookup waiting for the one before.
    chase: f64,
    walk: f64,
    drain: f64,
    bytes: f64,
}

impl Times {
    const NONE: Times = Times {
        insert: f64::INFINITY,
        lookup: f64::INFINITY,
        chase: f64::INFINITY,
        walk: f64::INFINITY,
        drain: f64::INFINITY,
        bytes: f64::INFINITY,
    };
}

/// Runs `work` and keeps its time for each of `nr` in `best` if it is the best.
fn timed<T>(best: &mut f64, nr: u64, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = black_box(work());
    let each = start.elapsed().as_nanos() as f64 / nr as f64;
    *best = best.min(each);
    result
}

/// How many pages and how far apart they are.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    nr_pages: u64,
    stride: u64,
    rounds: u32,
}

impl Shape {
    fn offset(&self, i: u64) -> u64 {
        i * self.stride
    }

    /// Offsets of pages in no order, so that a prefetcher is no help.
    fn lookups(&self) -> Vec<u64> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        (0..self.nr_pages.min(1 << 20))
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                self.offset(state % self.nr_pages)
            })
            .collect()
    }
}

fn round<S: Subject>(shape: Shape, lookups: &[u64], best: &mut Times) {
    let before = ALLOCATED.load(Ordering::Relaxed);
    let mut subject = S::default();
    timed(&mut best.insert, shape.nr_pages, || {
        for i in 0..shape.nr_pages {
            subject.insert(shape.offset(i), i as u32);
        }
    });
    let bytes = ALLOCATED.load(Ordering::Relaxed) - before;
    best.bytes = bytes as f64 / shape.nr_pages as f64;
    for _ in 0..3 {
        timed(&mut best.lookup, lookups.len() as u64, || {
            let found = lookups.iter().map(|&offset| u64::from(subject.get(offset)));
            found.sum::<u64>()
        });
    }
    timed(&mut best.chase, lookups.len() as u64, || {
        // Which of two neighbours is asked for depends on the last answer.
        lookups.iter().fold(0, |last, &offset| {
            subject.get(offset ^ ((u64::from(last) & 1) * shape.stride))
        })
    });
    timed(&mut best.walk, shape.nr_pages, || subject.walk());
    timed(&mut best.drain, shape.nr_pages, || subject.drain());
}

/// What only a page list does.
#[derive(Clone, Copy)]
struct Special {
    insert_frames: f64,
    runs: f64,
    cursor: f64,
    /// Two lists of half the pages each: halves of the range, and alternate MiB.
    onto_halves: f64,
    onto_stripes: f64,
    from_halves: f64,
    from_stripes: f64,
    /// The same by taking every page out of one and inserting it into the other.
    reinsert_halves: f64,
    reinsert_stripes: f64,
    remove_pages: f64,
}

/// Two lists with every page in one of them.
fn split(shape: Shape, first: impl Fn(u64) -> bool) -> (PageList, PageList) {
    let mut lists = (PageList::new(), PageList::new());
    for i in 0..shape.nr_pages {
        let list = if first(i) { &mut lists.0 } else { &mut lists.1 };
        Subject::insert(list, shape.offset(i), i as u32);
    }
    lists
}

fn reinsert(from: &mut PageList, to: &mut PageList) {
    from.remove_pages(0, from.limit(), |offset, entry| {
        let old = to.insert(offset, entry.take()).unwrap();
        assert!(old.is_empty());
        Ok::<_, ()>(pagelist::Visit::Next)
    })
    .unwrap();
}

fn special(shape: Shape, best: &mut Special) {
    let drop_all = |mut list: PageList| list.remove_all_pages(|_| {});
    let nr = shape.nr_pages;
    if shape.stride == PAGE_SIZE {
        let mut list = PageList::new();
        timed(&mut best.insert_frames, nr, || {
            list.insert_frames(0, FrameId::new(0), nr).unwrap();
        });
        drop_all(list);
    }
    let (list, _) = split(shape, |_| true);
    timed(&mut best.runs, nr, || {
        list.runs(0, list.limit()).unwrap().count()
    });
    timed(&mut best.cursor, nr, || {
        let mut cursor = list.cursor();
        (0..nr).fold(0, |sum, i| {
            sum + u64::from(
                cursor
                    .get(shape.offset(i))
                    .frame()
                    .map_or(0, FrameId::index),
            )
        })
    });
    let mut list = list;
    timed(&mut best.remove_pages, nr, || {
        let mut sum = 0;
        list.remove_pages(0, list.limit(), |_, entry| {
            sum += entry.take().take_frame().map_or(0, FrameId::index) as u64;
            Ok::<_, ()>(pagelist::Visit::Next)
        })
        .unwrap();
        sum
    });
    let halves = |i: u64| i < nr / 2;
    let stripes = |i: u64| shape.offset(i) >> 20 & 1 == 0;
    for striped in [false, true] {
        let make = || {
            if striped {
                split(shape, stripes)
            } else {
                split(shape, halves)
            }
        };
        let Special {
            onto_halves,
            onto_stripes,
            from_halves,
            from_stripes,
            reinsert_halves,
            reinsert_stripes,
            ..
        } = best;
        let (onto, from, again) = if striped {
            (onto_stripes, from_stripes, reinsert_stripes)
        } else {
            (onto_halves, from_halves, reinsert_halves)
        };
        let (mut to, mut source) = make();
        timed(onto, nr / 2, || {
            source.merge_onto(&mut to, |_, _| {}).unwrap();
        });
        drop_all(to);
        let (mut child, mut parent) = make();
        timed(from, nr / 2, || {
            let end = parent.limit();
            // Counts what moves in, so that the callback cannot be left out.
            let mut moved = 0_u64;
            child
                .merge_from(
                    &mut parent,
                    0,
                    end,
                    |_, _| {},
                    |_, entry| {
                        moved += 1;
                        entry
                    },
                )
                .unwrap();
            moved
        });
        drop_all(child);
        let (mut to, mut source) = make();
        timed(again, nr / 2, || reinsert(&mut source, &mut to));
        drop_all(to);
    }
}

struct Report {
    shape: Shape,
    list: Times,
    btree: Times,
    hash: Times,
    flat: Times,
    special: Special,
}

fn measure(shape: Shape) -> Report {
    let lookups = shape.lookups();
    let mut report = Report {
        shape,
        list: Times::NONE,
        btree: Times::NONE,
        hash: Times::NONE,
        flat: Times::NONE,
        special: Special {
            insert_frames: f64::INFINITY,
            runs: f64::INFINITY,
            cursor: f64::INFINITY,
            onto_halves: f64::INFINITY,
            onto_stripes: f64::INFINITY,
            from_halves: f64::INFINITY,
            from_stripes: f64::INFINITY,
            reinsert_halves: f64::INFINITY,
            reinsert_stripes: f64::INFINITY,
            remove_pages: f64::INFINITY,
        },
    };
    for _ in 0..shape.rounds {
        round::<PageList>(shape, &lookups, &mut report.list);
        round::<Flat>(shape, &lookups, &mut report.flat);
        round::<BTreeMap<u64, u32>>(shape, &lookups, &mut report.btree);
        round::<HashMap<u64, u32>>(shape, &lookups, &mut report.hash);
        special(shape, &mut report.special);
    }
    report
}

impl Report {
    fn print(&self) {
        println!("\n{} (ns a page, best of rounds)", self.shape.name);
        println!(
            "{:>12} {:>8} {:>8} {:>8} {:>8} {:>8} {:>10}",
            "", "insert", "lookup", "chase", "walk", "drain", "bytes/page"
        );
        for (name, times) in [
            (PageList::NAME, self.list),
            (Flat::NAME, self.flat),
            (<BTreeMap<u64, u32>>::NAME, self.btree),
            (<HashMap<u64, u32>>::NAME, self.hash),
        ] {
            println!(
                "{name:>12} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {:>10.2}",
                times.insert, times.lookup, times.chase, times.walk, times.drain, times.bytes
            );
        }
        let s = &self.special;
        if s.insert_frames.is_finite() {
            println!("    frames in bulk {:.2}", s.insert_frames);
        }
        println!(
            "    cursor {:.2}, run walk {:.2}, remove_pages {:.2}",
            s.cursor, s.runs, s.remove_pages
        );
        println!(
            "    merge halves: onto {:.2}, from {:.2}, re-insert {:.2}; stripes of 1 MiB: onto {:.2}, from {:.2}, re-insert {:.2}",
            s.onto_halves,
            s.from_halves,
            s.reinsert_halves,
            s.onto_stripes,
            s.from_stripes,
            s.reinsert_stripes
        );
    }
}

/// One promised ratio.
fn verdict(what: &str, got: f64, unit: &str, at_least: bool, target: f64) {
    let reached = if at_least {
        got >= target
    } else {
        got <= target
    };
    println!(
        "{:<58} {got:>8.2} {unit:<10} {} {target:<6} {}",
        what,
        if at_least { "≥" } else { "≤" },
        if reached { "PASS" } else { "SHORT" }
    );
}

fn summary(dense: &Report, sparse: &Report, large: &Report) {
    println!("\nWhat is promised, and what was measured");
    for report in [dense, large] {
        let name = report.shape.name;
        let (list, special) = (&report.list, &report.special);
        verdict(
            &format!("{name}: random lookup, BTreeMap / PageList"),
            report.btree.lookup / list.lookup,
            "times",
            true,
            5.0,
        );
        verdict(
            &format!("{name}: random lookup, PageList / flat Vec"),
            list.lookup / report.flat.lookup,
            "times",
            false,
            2.0,
        );
        verdict(
            &format!("{name}: dependent lookup, BTreeMap / PageList"),
            report.btree.chase / list.chase,
            "times",
            true,
            5.0,
        );
        verdict(
            &format!("{name}: dependent lookup, PageList / flat Vec"),
            list.chase / report.flat.chase,
            "times",
            false,
            2.0,
        );
        verdict(
            &format!("{name}: ordered walk"),
            1000.0 / list.walk,
            "M slots/s",
            true,
            500.0,
        );
        verdict(
            &format!("{name}: memory"),
            list.bytes,
            "bytes/page",
            false,
            5.0,
        );
        for (how, again, merge) in [
            ("onto, halves", special.reinsert_halves, special.onto_halves),
            ("from, halves", special.reinsert_halves, special.from_halves),
            (
                "onto, 1 MiB stripes",
                special.reinsert_stripes,
                special.onto_stripes,
            ),
            (
                "from, 1 MiB stripes",
                special.reinsert_stripes,
                special.from_stripes,
            ),
        ] {
            verdict(
                &format!("{name}: merge {how}, re-insert / merge"),
                again / merge,
                "times",
                true,
                10.0,
            );
        }
    }
    verdict(
        &format!("{}: random lookup, BTreeMap / PageList", sparse.shape.name),
        sparse.btree.lookup / sparse.list.lookup,
        "times",
        true,
        5.0,
    );
    let bytes_of = |fill: &dyn Fn(&mut PageList)| {
        let mut list = PageList::new();
        fill(&mut list);
        let bytes = list.heap_allocation_bytes();
        list.remove_all_pages(|_| {});
        bytes as f64
    };
    verdict(
        "1 TiB with one page a GiB: memory",
        bytes_of(&|list| {
            for i in 0..1024 {
                Subject::insert(list, i << 30, i as u32);
            }
        }) / 1024.0,
        "KiB",
        false,
        1024.0,
    );
    verdict(
        "16 GiB of zeroes: memory",
        bytes_of(&|list| list.mark(0, 16 << 30, |_, _| {}).unwrap()) / 1024.0,
        "KiB",
        false,
        2.0,
    );
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let asked = |flag: &str| args.iter().any(|arg| arg == flag);
    if !asked("--bench") {
        let shape = Shape {
            name: "4 Ki pages",
            nr_pages: 4096,
            stride: PAGE_SIZE,
            rounds: 1,
        };
        measure(shape).print();
        return;
    }
    let reports = [
        Shape {
            name: "1 Mi dense",
            nr_pages: 1 << 20,
            stride: PAGE_SIZE,
            rounds: 9,
        },
        Shape {
            name: "1 Mi sparse",
            nr_pages: 1 << 20,
            stride: 16 * PAGE_SIZE,
            rounds: 5,
        },
        Shape {
            name: "16 Mi dense",
            nr_pages: 16 << 20,
            stride: PAGE_SIZE,
            rounds: 3,
        },
    ]
    .map(measure);
    if !asked("--summary") {
        reports.iter().for_each(Report::print);
    }
    let [dense, sparse, large] = &reports;
    summary(dense, sparse, large);
}
