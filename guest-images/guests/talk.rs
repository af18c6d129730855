//! Counts aloud from 1 to `lines` (500), every other line on COM1, and ends:
//! most of its time is spent in device accesses.

#![no_std]
#![no_main]

#[macro_use]
mod rt;

use core::fmt::Write;

#[unsafe(no_mangle)]
extern "C" fn guest_main(_: u64, cpu: u64) -> ! {
    rt::first_only(cpu);
    for number in 1..=rt::option("lines").unwrap_or(500) {
        if number % 2 == 0 {
            say!("{number}");
            continue;
        }
        let mut line = rt::Line::new();
        let _ = writeln!(line, "{number}");
        for byte in line.text().bytes() {
            rt::com1(byte);
        }
    }
    rt::exit(0)
}
