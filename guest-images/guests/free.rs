//! Fills `pages` (64) pages, reports all but the first and the last free, and
//! checks that they read zero, that their neighbours are as they were, and that
//! ranges that are no pages of RAM are refused.

#![no_std]
#![no_main]

#[macro_use]
mod rt;

use rt::PAGE;
use rt::abi::control::REFUSED;

#[unsafe(no_mangle)]
extern "C" fn guest_main(_: u64, cpu: u64) -> ! {
    rt::first_only(cpu);
    let start = rt::info().free_start;
    let pages = rt::option("pages").unwrap_or(64);
    rt::fill(start, pages, 1);
    rt::ready();
    let kept = [start, start + (pages - 1) * PAGE];
    let before = kept.map(|page| rt::checksum(page, 1));
    let dropped = rt::report_free(start + PAGE, (pages - 2) * PAGE);
    for address in (start + PAGE..start + (pages - 1) * PAGE).step_by(8) {
        if rt::peek(address) != 0 {
            say!("{address:#x} is not zero");
            rt::exit(2);
        }
    }
    if kept.map(|page| rt::checksum(page, 1)) != before {
        say!("a neighbour has changed");
        rt::exit(3);
    }
    let ends = rt::info().low_ram_end;
    for (start, len) in [
        (start + 1, PAGE),
        (start, 1),
        (start, 0),
        (ends, PAGE),
        (u64::MAX - 4095, PAGE),
    ] {
        if rt::report_free(start, len) != REFUSED {
            say!("{len} bytes at {start:#x} are not refused");
            rt::exit(4);
        }
    }
    rt::ready();
    say!("dropped {dropped} pages");
    rt::exit(0)
}
