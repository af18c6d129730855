//! Is interrupted by the timer of its local APIC: `ticks` (20) times while it
//! spins in ring 3, as often again while it waits in ring 0, and ends.

#![no_std]
#![no_main]

#[macro_use]
mod rt;

use core::sync::atomic::Ordering;

const VECTOR: u8 = 0x40;

#[unsafe(no_mangle)]
extern "C" fn guest_main(_: u64, cpu: u64) -> ! {
    rt::first_only(cpu);
    let ticks = rt::option("ticks").unwrap_or(20);
    let count = rt::interrupts(VECTOR);
    rt::start_timer(VECTOR, 1_000_000);
    while count.load(Ordering::SeqCst) < ticks {
        core::hint::spin_loop();
    }
    loop {
        let seen = count.load(Ordering::SeqCst);
        if seen >= 2 * ticks {
            break;
        }
        rt::wait(count, seen);
    }
    rt::stop_timer();
    say!("at least {} ticks", 2 * ticks);
    rt::exit(0)
}
