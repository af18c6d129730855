//! Writes a pattern of `seed` (1) over `pages` (64) pages from `start` (the
//! first free page) on, checks it, prints its checksum, and ends. Ready between
//! writing and checking.

#![no_std]
#![no_main]

#[macro_use]
mod rt;

#[unsafe(no_mangle)]
extern "C" fn guest_main(_: u64, cpu: u64) -> ! {
    rt::first_only(cpu);
    let start = rt::option("start").unwrap_or(rt::info().free_start);
    let pages = rt::option("pages").unwrap_or(64);
    let seed = rt::option("seed").unwrap_or(1);
    rt::fill(start, pages, seed);
    rt::ready();
    for address in (start..start + pages * rt::PAGE).step_by(8) {
        if rt::peek(address) != rt::pattern(address, seed) {
            say!("{address:#x} does not hold what was written");
            rt::exit(2);
        }
    }
    say!("checksum {:#018x}", rt::checksum(start, pages));
    rt::exit(0)
}
