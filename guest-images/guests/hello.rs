//! Says that it is ready, then hello, and ends.

#![no_std]
#![no_main]

#[macro_use]
mod rt;

#[unsafe(no_mangle)]
extern "C" fn guest_main() -> ! {
    rt::ready();
    say!("hello");
    rt::exit(0)
}
