//! What single pages cost: looking for zeros, comparing, copying, clearing; and
//! what the first read of one through a new window costs.
//!
//! ```text
//! cargo bench -p guestmem
//! ```
//!
//! The best of several rounds counts: noise only ever adds. Without `--bench`,
//! which is how `cargo test --benches` runs this, small sizes are gone through
//! once.

#![expect(
    clippy::cast_precision_loss,
    clippy::unwrap_used,
    reason = "figures are rounded; a failure ends the run"
)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use guestmem::{
    Backing, BlankWindow, Collapsed, Layer, PAGE_SIZE, PageIdx, PagePairs, Ram, RamLayout,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// Two times 256 KiB: in any level-2 cache.
const IN_CACHE: u64 = 64;
/// Two times 1 GiB: in none.
const IN_MEMORY: u64 = 1 << 18;
/// 64 MiB to be read through windows.
const WINDOW: u64 = 1 << 14;

fn best(rounds: usize, mut work: impl FnMut()) -> Duration {
    let timed = |_| {
        let started = Instant::now();
        work();
        started.elapsed()
    };
    (0..rounds).map(timed).min().unwrap()
}

fn single_pages(place: &str, nr_pages: u64, rounds: usize) {
    let pairs = PagePairs::new(nr_pages).unwrap();
    let report = |what: &str, took: Duration| {
        let bytes = (nr_pages * PAGE_SIZE) as f64;
        let ns = took.as_secs_f64() * 1e9;
        println!(
            "{what:<28} {place:<12} {:8.1} GB/s {:9.1} ns a page",
            bytes / ns,
            ns / nr_pages as f64
        );
    };
    let all = nr_pages as usize;
    report(
        "is it zero? (it is)",
        best(rounds, || {
            assert_eq!(black_box(&pairs).count_zero(), all);
        }),
    );
    report(
        "are they equal? (they are)",
        best(rounds, || {
            assert_eq!(black_box(&pairs).count_equal(), all);
        }),
    );
    report("copy", best(rounds, || black_box(&pairs).copy()));
    report("clear", best(rounds, || black_box(&pairs).clear()));
}

/// Nanoseconds a page to read the first word of each, first and once more.
fn read_window(ram: &Ram, nr_pages: u64) -> (f64, f64) {
    let memory = ram.guest_ram();
    let len = (nr_pages * PAGE_SIZE) as usize;
    let slice = memory.get_slice(GuestAddress(0), len).unwrap();
    let pass = || {
        let started = Instant::now();
        for offset in (0..len).step_by(PAGE_SIZE as usize) {
            let word: u64 = slice.read_obj(offset).unwrap();
            black_box(word);
        }
        started.elapsed().as_secs_f64() * 1e9 / nr_pages as f64
    };
    (pass(), pass())
}

fn windows(nr_pages: u64, rounds: usize) {
    let layout = RamLayout::new(nr_pages * PAGE_SIZE).unwrap();
    let mut root = Ram::new(layout, Backing::Memfd).unwrap();
    for page in 0..nr_pages {
        let at = GuestAddress(page * PAGE_SIZE);
        root.guest_ram().write_obj(page + 1, at).unwrap();
    }
    let mut prepared = root.prepare_freeze().unwrap();
    let blank = BlankWindow::new(root.layout()).unwrap();
    root.stage(&mut prepared, &blank).unwrap();
    let (layer, _) = root.freeze(&mut prepared).unwrap();
    let in_line = |layer: &Layer| layer.fork().unwrap();
    let shifted = |layer: &Layer| layer.clone_part(PageIdx(3), layout).unwrap();
    let report = |what: &str, fork: &dyn Fn(&Layer) -> Ram| {
        let read = |_| read_window(&fork(&layer), nr_pages - 3);
        let (first, again) = (0..rounds)
            .map(read)
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .unwrap();
        println!("{what:<41} {first:8.1} ns a page, once more {again:5.1}");
    };
    report("first read, single pages", &in_line);
    report("first read, single pages, not in line", &shifted);
    let started = Instant::now();
    let mut collapser = layer.collapser();
    let mut huge = 0;
    while let Some(outcome) = collapser.step().unwrap() {
        huge += u32::from(outcome == Collapsed::Huge);
    }
    if huge == 0 {
        return println!("this host does not collapse files into huge pages");
    }
    println!(
        "{:<41} {:8.2} ms an extent",
        "collapsing",
        started.elapsed().as_secs_f64() * 1e3 / f64::from(huge)
    );
    report("first read, huge pages", &in_line);
    report("first read, huge pages, not in line", &shifted);
}

fn main() {
    if std::env::args().any(|arg| arg == "--bench") {
        single_pages("from cache", IN_CACHE, 5000);
        single_pages("from memory", IN_MEMORY, 5);
        windows(WINDOW, 5);
    } else {
        single_pages("from cache", IN_CACHE, 1);
        windows(1024, 1);
    }
}
