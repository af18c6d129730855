//! Says that it is ready, then hello, and ends.

#![no_std]
#![no_main]

#[macro_use]
mod rt;

#[unsafe(no_mangle)]
extern "C" fn guest_main(_: u64, cpu: u64) -> ! {
    rt::first_only(cpu);
    rt::ready();
    say!("hello");
    rt::exit(0)
}
