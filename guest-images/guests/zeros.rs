//! Fills `pages` (64) pages, zeroes them again, is ready, checks that they
//! still read zero, and ends.

#![no_std]
#![no_main]

#[macro_use]
mod rt;

#[unsafe(no_mangle)]
extern "C" fn guest_main(_: u64, cpu: u64) -> ! {
    rt::first_only(cpu);
    let start = rt::info().free_start;
    let pages = rt::option("pages").unwrap_or(64);
    rt::fill(start, pages, 1);
    rt::zero(start, pages);
    rt::ready();
    let dirty = (start..start + pages * rt::PAGE)
        .step_by(8)
        .find(|address| rt::peek(*address) != 0);
    if let Some(address) = dirty {
        say!("{address:#x} is not zero");
        rt::exit(2);
    }
    say!("{pages} pages are zero");
    rt::exit(0)
}
