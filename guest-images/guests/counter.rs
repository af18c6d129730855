//! Counts in a register, in an SSE register and in memory, in lock step, and
//! exits with 2 when they disagree: so a fork that loses any of them is found.
//!
//! Each round of 65,536 steps writes its number to a page of its own, `pages`
//! (64) pages in turn, from the first free page on; the page before those holds
//! the rounds done so far. With `rounds=N` it ends after N rounds and says so.

#![no_std]
#![no_main]

#[macro_use]
mod rt;

use core::arch::asm;
use core::arch::x86_64::__m128i;

const STEPS: u64 = 0x1_0000;

static IN_MEMORY: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);

#[unsafe(no_mangle)]
extern "C" fn guest_main(_: u64, cpu: u64) -> ! {
    rt::first_only(cpu);
    let rounds = rt::option("rounds").unwrap_or(u64::MAX);
    let pages = rt::option("pages").unwrap_or(64);
    let first = rt::info().free_start;
    let mut in_register: u64 = 0;
    // SAFETY: all bit patterns are valid.
    let mut in_sse: __m128i = unsafe { core::mem::transmute([0u64; 2]) };
    // SAFETY: as above.
    let ones: __m128i = unsafe { core::mem::transmute([1u64; 2]) };
    for round in 1..=rounds {
        // SAFETY: adds one to each, STEPS times.
        unsafe {
            asm!(
                "2:",
                "inc {count}",
                "paddq {sse}, {ones}",
                "inc qword ptr [{memory}]",
                "dec {left}",
                "jnz 2b",
                count = inout(reg) in_register,
                sse = inout(xmm_reg) in_sse,
                ones = in(xmm_reg) ones,
                memory = in(reg) IN_MEMORY.as_ptr(),
                left = inout(reg) STEPS => _,
            );
        }
        // SAFETY: all bit patterns are valid.
        let [low, high]: [u64; 2] = unsafe { core::mem::transmute(in_sse) };
        let in_memory = IN_MEMORY.load(core::sync::atomic::Ordering::Relaxed);
        let wanted = round * STEPS;
        if [in_register, low, high, in_memory] != [wanted; 4] {
            say!("{wanted} steps, but {in_register} {low} {high} {in_memory}");
            rt::exit(2);
        }
        rt::poke(first, round);
        rt::poke(first + rt::PAGE * (1 + round % pages), round);
    }
    say!("counted {}", rounds * STEPS);
    rt::exit(0)
}
