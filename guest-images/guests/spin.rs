//! Counts in its first free page for ever, without ever leaving ring 3.

#![no_std]
#![no_main]

mod rt;

#[unsafe(no_mangle)]
extern "C" fn guest_main(_: u64, cpu: u64) -> ! {
    rt::first_only(cpu);
    let word = rt::info().free_start;
    loop {
        rt::poke(word, rt::peek(word) + 1);
    }
}
