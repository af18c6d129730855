//! All vCPUs add to one word, `steps` (1,000,000) times each, while a round
//! passes between them; the first checks the sum and ends.

#![no_std]
#![no_main]

#[macro_use]
mod rt;

use core::sync::atomic::{AtomicU64, Ordering};

static SUM: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);

#[unsafe(no_mangle)]
extern "C" fn guest_main(_: u64, cpu: u64) -> ! {
    let cpus = u64::from(rt::info().cpus);
    let steps = rt::option("steps").unwrap_or(1_000_000);
    for _ in 0..steps {
        rt::add(&SUM, 1);
    }
    rt::add(&DONE, 1);
    if cpu > 0 {
        loop {
            core::hint::spin_loop();
        }
    }
    while DONE.load(Ordering::SeqCst) < cpus {
        core::hint::spin_loop();
    }
    let sum = SUM.load(Ordering::SeqCst);
    say!("{cpus} vCPUs counted {sum}");
    rt::exit(if sum == cpus * steps { 0 } else { 2 })
}
