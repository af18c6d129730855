//! What depth costs: a fork, its first reads and its first writes, with 1, 64
//! and 1,000 layers below, memory only.
//!
//! ```text
//! cargo bench -p guestmem --bench depth
//! ```
//!
//! Every generation writes 16 pages: *the same* each time, as a program does
//! that goes on with its work, or *others* each time, scattered over all RAM,
//! which is the worst that can be. The depths take turns, round by round;
//! medians count. Then all is done again with the layers *flat*, as they are
//! when as many forks have paid for it. Without `--bench`, which is how `cargo test --benches` runs
//! this, a few generations are gone through once.

#![expect(
    clippy::cast_precision_loss,
    clippy::unwrap_used,
    reason = "figures are rounded; a failure ends the run"
)]

use std::time::Instant;

use guestmem::{Backing, BlankWindow, Flattened, Layer, PAGE_SIZE, Ram, RamLayout};
use vm_memory::{Bytes, GuestAddress};

/// 256 MiB, of which 32 are not zero.
const PAGES: u64 = 65_536;
const CONTENT: u64 = 8_192;
/// Pages that a generation writes.
const WRITTEN: u64 = 16;
/// Pages that are read and written first in a fork.
const TOUCHED: u64 = 64;

/// Which pages a generation writes.
#[derive(Clone, Copy, Debug)]
enum Pattern {
    TheSame,
    Others,
}

impl Pattern {
    fn page(self, generation: u64, index: u64) -> u64 {
        match self {
            Self::TheSame => index * 3,
            // An odd factor: no page twice in PAGES / WRITTEN generations.
            Self::Others => (generation * WRITTEN + index) * 40_503 % PAGES,
        }
    }
}

fn set(ram: &Ram, page: u64, value: u64) {
    let at = GuestAddress(page * PAGE_SIZE);
    ram.guest_ram().write_obj(value, at).unwrap();
}

fn freeze(ram: &mut Ram) -> Layer {
    let mut prepared = ram.prepare_freeze().unwrap();
    if prepared.wants_window() {
        let blank = BlankWindow::new(ram.layout()).unwrap();
        ram.stage(&mut prepared, &blank).unwrap();
    }
    ram.freeze(&mut prepared).unwrap().0
}

/// Microseconds of one fork of `layer`, and nanoseconds a page of its first
/// reads and writes.
fn one_fork(layer: &Layer) -> [f64; 3] {
    let started = Instant::now();
    let ram = layer.fork().unwrap();
    let fork = started.elapsed().as_secs_f64() * 1e6;
    let memory = ram.guest_ram();
    let at = |index: u64| GuestAddress(index * (PAGES / TOUCHED) * PAGE_SIZE);
    let started = Instant::now();
    for index in 0..TOUCHED {
        let _: u64 = memory.read_obj(at(index)).unwrap();
    }
    let reads = started.elapsed().as_secs_f64() * 1e9 / TOUCHED as f64;
    let started = Instant::now();
    for index in 0..TOUCHED {
        memory.write_obj(index, at(index)).unwrap();
    }
    let writes = started.elapsed().as_secs_f64() * 1e9 / TOUCHED as f64;
    [fork, reads, writes]
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

fn run(pattern: Pattern, depths: &[u64], rounds: usize) {
    let layout = RamLayout::new(PAGES * PAGE_SIZE).unwrap();
    let mut ram = Ram::new(layout, Backing::Memfd).unwrap();
    for page in 0..CONTENT {
        set(&ram, page, page + 1);
    }
    let mut layers = vec![freeze(&mut ram)];
    for generation in 1..*depths.last().unwrap() {
        for index in 0..WRITTEN {
            let page = pattern.page(generation, index);
            set(&ram, page, (generation << 32) | (index + 1));
        }
        layers.push(freeze(&mut ram));
    }
    let layers: Vec<_> = depths
        .iter()
        .map(|depth| &layers[*depth as usize - 1])
        .collect();
    let alone = compare(pattern, "", depths, &layers, rounds, None);
    for forks in [2, 16, 256] {
        for (depth, layer) in depths.iter().zip(&layers) {
            flatten(layer, *depth, forks);
        }
        let when = format!(", flat after {forks} forks");
        compare(pattern, &when, depths, &layers, rounds, Some(alone));
    }
}

fn flatten(layer: &Layer, depth: u64, forks: u64) {
    let started = Instant::now();
    let mut flattener = layer.flattener(forks);
    let mut longest = 0.0_f64;
    let mut frames = 0;
    let end = loop {
        let step = Instant::now();
        let stepped = flattener.step().unwrap();
        longest = longest.max(step.elapsed().as_secs_f64() * 1e6);
        frames = frames.max(flattener.nr_frames());
        if stepped != Flattened::Partly {
            break stepped;
        }
    };
    let took = started.elapsed().as_secs_f64() * 1e3;
    if end == Flattened::Done {
        println!(
            "  {depth:>5} layers: {frames} pages copied in {took:.1} ms, \
             {longest:.0} us at a time at most"
        );
    }
}

/// Measures forks of `layers`, and prints how they compare with the first of
/// them, or with what `first` says. Returns what that was.
fn compare(
    pattern: Pattern,
    when: &str,
    depths: &[u64],
    layers: &[&Layer],
    rounds: usize,
    first: Option<[f64; 3]>,
) -> [f64; 3] {
    let mut samples = vec![[const { Vec::new() }; 3]; depths.len()];
    for round in 0..=rounds {
        for (layer, samples) in layers.iter().zip(&mut samples) {
            let figures = one_fork(layer);
            if round > 0 {
                figures
                    .into_iter()
                    .zip(samples)
                    .for_each(|(figure, all)| all.push(figure));
            }
        }
    }
    let medians: Vec<[f64; 3]> = samples.into_iter().map(|of| of.map(median)).collect();
    let first = first.unwrap_or(medians[0]);
    for ((depth, layer), [fork, reads, writes]) in depths.iter().zip(layers).zip(&medians) {
        let [fork_1, reads_1, writes_1] = first;
        let window = layer.fork().unwrap().stats().unwrap();
        println!(
            "{pattern:?}{when}, {depth:>5} layers: fork {fork:8.1} us ({:5.2} x)  \
             first read {reads:7.0} ns ({:4.2} x)  first write {writes:7.0} ns ({:4.2} x)  \
             {} mappings, {} copies",
            fork / fork_1,
            reads / reads_1,
            writes / writes_1,
            window.mappings,
            window.window_copies,
        );
    }
    first
}

fn main() {
    let measured = std::env::args().any(|arg| arg == "--bench");
    let (depths, rounds): (&[u64], _) = if measured {
        (&[1, 64, 1_000], 200)
    } else {
        (&[1, 3], 1)
    };
    for pattern in [Pattern::TheSame, Pattern::Others] {
        run(pattern, depths, rounds);
    }
}
