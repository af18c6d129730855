//! Hands a word from one vCPU to the next, `rounds` (2,000) times round, by
//! interrupts: each waits in ring 0 until it is its turn. An interrupt that is
//! lost between the look and the halt stops the relay for ever.

#![no_std]
#![no_main]

#[macro_use]
mod rt;

use core::sync::atomic::{AtomicU64, Ordering};

const VECTOR: u8 = 0x50;

static TURN: AtomicU64 = AtomicU64::new(0);
static READY: AtomicU64 = AtomicU64::new(0);

#[unsafe(no_mangle)]
extern "C" fn guest_main(_: u64, cpu: u64) -> ! {
    let cpus = u64::from(rt::info().cpus);
    let rounds = rt::option("rounds").unwrap_or(2_000);
    rt::enable_apic();
    rt::add(&READY, 1);
    while READY.load(Ordering::SeqCst) < cpus {
        core::hint::spin_loop();
    }
    for round in 0..rounds {
        let own_turn = round * cpus + cpu;
        loop {
            let turn = TURN.load(Ordering::SeqCst);
            if turn == own_turn {
                break;
            }
            rt::wait(&TURN, turn);
        }
        TURN.store(own_turn + 1, Ordering::SeqCst);
        // The others wait for the word, and only an interrupt ends that.
        rt::interrupt_others(VECTOR);
    }
    while cpu > 0 || TURN.load(Ordering::SeqCst) < rounds * cpus {
        core::hint::spin_loop();
    }
    say!("{cpus} vCPUs, {} turns", rounds * cpus);
    rt::exit(0)
}
